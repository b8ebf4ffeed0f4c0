"LGM: the original's numbers, key names by the specification, a rig with another up direction and another unit."
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import recorded_numbers

from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.cameras.rotations import rotvec_to_matrix
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.rasterize import render
from gslrm_mouse.models.lgm import LGM, LGMConfig, first_camera_frame, lgm_gaussians, lgm_input, posed_images
from gslrm_mouse.scenes.bodies import canonical_scene
from gslrm_mouse.scenes.tracer import raytrace

NARROW = LGMConfig(
    down=(32, 32, 64), down_attention=(False, True, True), up=(64, 32), up_attention=(True, False), image_size=32)


@pytest.fixture(scope="module")
def recorded(): return recorded_numbers("lgm_tiny.npz")


@pytest.fixture(scope="module")
def original(recorded):
    "The network with the weights of the fixture, loaded strictly."
    model = LGM(NARROW).eval()
    model.load_state_dict({key[2:]: v for key, v in recorded.items() if key.startswith("w:")})
    return model


def columns(g):
    "Gaussians as the original lays them out: position, opacity, scale, quaternion, colour."
    return torch.cat([g.means, g.opacities[..., None], g.scales, g.quats, g.colors], -1)


def test_the_network_computes_what_the_original_computed(original, recorded):
    with torch.no_grad(): raw = original.raw(recorded["input"])
    difference = (raw - recorded["raw"]).abs().max()
    assert raw.shape == recorded["raw"].shape
    assert difference <= 1e-5, difference
    assert recorded["raw"].std() > .1


def test_the_gaussians_are_those_of_the_original(recorded):
    difference = (columns(lgm_gaussians(recorded["raw"])) - recorded["gaussians"]).abs().max()
    assert difference <= 1e-5, difference
    identity = lgm_gaussians(recorded["raw"], unit_quats=False)
    assert torch.equal(identity.quats, torch.tensor([1., 0., 0., 0.]).expand_as(identity.quats))


def test_views_meet_within_a_scene_only(original, recorded):
    x = torch.cat([recorded["input"], recorded["input"].flip(1)])
    with torch.no_grad(): raw = original.raw(x)
    assert (raw[:1] - recorded["raw"]).abs().max() <= 1e-5
    assert (raw[1:] - recorded["raw"].flip(1)).abs().max() <= 1e-5 # no view is special to the network
    changed = recorded["input"].clone()
    changed[:, 3] += 1
    with torch.no_grad(): other = original.raw(changed)
    assert (other[:, 0] - recorded["raw"][:, 0]).abs().max() > 1e-4


def test_names_of_tensors():
    with torch.device("meta"): state = LGM().state_dict()
    names = {name: tuple(v.shape) for name, v in state.items()}
    assert names["unet.down_blocks.4.nets.0.shortcut.weight"] == (1024, 512, 1, 1)
    assert names["unet.down_blocks.3.attns.1.attn.qkv.weight"] == (1536, 512)
    assert names["unet.up_blocks.0.nets.2.norm1.weight"] == (2048,)
    assert names["unet.up_blocks.4.nets.2.conv1.weight"] == (128, 128 + 64, 3, 3)
    assert names["unet.up_blocks.3.nets.2.conv1.weight"] == (256, 256 + 128, 3, 3)
    assert names["unet.mid_block.attns.0.attn.proj.bias"] == (1024,)
    absent = ("unet.down_blocks.5.downsample.weight", "unet.up_blocks.4.upsample.weight",
              "unet.down_blocks.2.attns.0.norm.weight", "unet.down_blocks.0.nets.1.shortcut.weight",
              "unet.down_blocks.3.attns.0.attn.qkv.bias")
    assert not names.keys() & set(absent)


def rotation(*rotvec): return torch.from_numpy(rotvec_to_matrix(np.array(rotvec)))


def random_rig(unit="mm"):
    "Four rolled cameras at unequal distances from a point off the origin."
    cams = orbit([10., 95., 200., 280.], [5., 20., 35., 10.], distance=3., fov=49.1, size=16)
    world = Similarity(120., rotation(.3, -.8, .5),
                       torch.tensor([40., -7., 90.], dtype=torch.float64), "model", unit)
    cams = world.cameras(cams.to(torch.float64))
    R = torch.stack([rotation(.1, -.2, .3), rotation(0., .3, -.1), rotation(-.2, .1, .4), rotation(.2, .2, -.5)])
    w2c = cams.w2c.clone()
    w2c[:, :3] = R @ w2c[:, :3]
    return replace(cams, w2c=w2c), world


def test_the_frame_of_the_first_camera_does_not_depend_on_the_world():
    "Rays are the same whatever world the rig is calibrated in, and the first camera's are those of an OpenGL identity."
    cams, world = random_rig()
    distance = (cams.centers[0] - world.c).norm().item()
    given = first_camera_frame(cams, distance).cameras(cams)
    model_cams = world.inverse.cameras(cams)
    same = first_camera_frame(model_cams, distance/120.).cameras(model_cams)
    assert torch.allclose(given.w2c, same.w2c, atol=1e-6)
    assert torch.allclose(given.R[0], torch.diag(torch.tensor([1., -1., -1.], dtype=torch.float64)), atol=1e-6)
    assert torch.allclose(given.centers[0], torch.tensor([0., 0., 1.5], dtype=torch.float64), atol=1e-6)
    ratio = (given.centers[1:] - given.centers[:1]).norm(dim=-1)/(cams.centers[1:] - cams.centers[:1]).norm(dim=-1)
    assert torch.allclose(ratio, torch.full_like(ratio, 1.5/distance)) # one scale for all views

    # by hand: OpenGL camera-to-world times (x, y, -1)
    rays = posed_images(torch.rand(1, 4, 16, 16, 3), given.batch())[0]
    f = float(8/np.tan(np.radians(49.1/2)))
    direction = torch.tensor([(3 - 8 + .5)/f, -(11 - 8 + .5)/f, -1.]) # column 3, row 11
    direction = direction/direction.norm()
    assert torch.allclose(rays[0, 6:, 11, 3], direction, atol=1e-6)
    assert torch.allclose(rays[0, 3:6, 11, 3], torch.linalg.cross(torch.tensor([0., 0., 1.5]), direction), atol=1e-6)


def test_a_rig_whose_up_is_not_z():
    "The same head in a turned world in centimetres: LGM is given the same images and rays."
    scene = canonical_scene("head", 5)
    cams = orbit([0., 80., 170., 275., 130.], [10., 25., 5., 15., 40.], distance=3.1, fov=40., size=48)
    views = raytrace(scene, cams, 2)
    turn = Similarity(10., rotation(1.1, .4, -.7),
                      torch.tensor([5., -3., 8.], dtype=torch.float64), "model", "mm")
    turned = replace(views, cameras=turn.cameras(cams.to(torch.float64)))
    a = lgm_input(views, size=32)
    b = lgm_input(turned, up=turn.Q[:, 2], size=32)
    assert torch.allclose(a.views.images, b.views.images, atol=2e-3)
    assert torch.allclose(a.views.cameras.w2c.double(), b.views.cameras.w2c.double(), atol=1e-4)
    assert torch.allclose(b.to_source.cameras(b.views.cameras).centers.double(),
                          turned.cameras.centers[[0, 1, 2, 3]], atol=1e-3)
    with pytest.raises(ValueError, match="4 cameras are needed, the rig has 3"): lgm_input(views[:3])
    other = lgm_input(views, chosen=[4, 0, 1, 2], size=32)
    assert torch.allclose(other.to_source.cameras(other.views.cameras).centers[0].double(),
                          cams.centers[4].double(), atol=1e-4)


def test_gaussians_return_to_the_rig():
    "A ball at the object's place, predicted in LGM's frame, is drawn where the rig's camera sees that place."
    scene = canonical_scene("head", 5)
    cams = orbit([0., 80., 170., 275.], [10., 25., 5., 15.], distance=3.1, fov=40., size=48)
    prepared = lgm_input(raytrace(scene, cams, 2), size=32)
    place = torch.tensor([.2, -.1, .3])
    in_frame = prepared.to_source.inverse(place.double())
    ball = Gaussians(in_frame[None].float(), torch.tensor([[1., 0., 0., 0.]]), torch.full((1, 3), .02),
                     torch.ones(1), torch.zeros(1, 1, 3)).transform(prepared.to_source)
    _, alpha = render(ball, cams)
    expected = cams.project(place[None])[:, 0].floor().long()
    for image, (x, y) in zip(alpha, expected.tolist()): assert divmod(image.argmax().item(), 48) == (y, x)


def test_cameras_of_another_batch_size_are_not_broadcast():
    cams = orbit([0.]*5, 0., distance=1.5, fov=49.1, size=32).batch()
    with pytest.raises(ValueError, match="got 5 of 32 × 32"): LGM(NARROW)(torch.rand(1, 5, 32, 32, 3), cams)
