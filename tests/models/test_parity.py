"Against numbers that others recorded from the original, with random weights and data. They are not shipped."
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import recorded_numbers

from gslrm_mouse.cameras.pinhole import Cameras, orbit
from gslrm_mouse.cameras.rotations import quat_to_matrix
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.filters import FILTERS, Filters
from gslrm_mouse.metrics import psnr
from gslrm_mouse.models.facelift import facelift_picture, facelift_ply, inria_camera_matrices
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.training import losses
from gslrm_mouse.training.step import lr_factor


@pytest.fixture(scope="module")
def stages(): return recorded_numbers("a_released_flags.npz")


@pytest.fixture(scope="module")
def extras(): return recorded_numbers("d_extras.npz")


def K_of(fxfycxcy):
    fx, fy, cx, cy = fxfycxcy.unbind(-1)
    K = torch.zeros(*fxfycxcy.shape[:-1], 3, 3, dtype=fxfycxcy.dtype)
    K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2], K[..., 2, 2] = fx, fy, cx, cy, 1
    return K


def assert_close(ours, theirs, tolerance=2e-5):
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    torch.testing.assert_close(ours.to(theirs), theirs, atol=tolerance, rtol=0)


CONFIG = GSLRMConfig(image_size=32, d=64, d_head=32, n_layer=2)
PREFIX = "param/"


def recorded_run(stages): # network, images, cameras
    model = GSLRM(CONFIG)
    weights = {key.removeprefix(PREFIX): v for key, v in stages.items() if key.startswith(PREFIX)}
    model.load_state_dict(weights)
    images = stages["in/image"].permute(0, 1, 3, 4, 2)
    cameras = Cameras(K_of(stages["in/fxfycxcy"]), torch.linalg.inv(stages["in/c2w"].double()), 32, 32)
    return model.eval(), images, cameras


def test_every_stage_of_the_network(stages):
    model, images, cameras = recorded_run(stages)
    ours = model.forward_stages(images, cameras)
    theirs = {key.split("/")[1]: v for key, v in stages.items() if key.startswith(("mid/", "out/"))}
    assert len(theirs) == 15
    for name, v in theirs.items(): assert_close(ours[name], v, 5e-5 if name == "act_rotation" else 2e-5)


def test_float32_poses_are_enough(stages):
    "The original is given c2w in float32; here we are too."
    model, images, cameras = recorded_run(stages)
    gaussians = model(images, Cameras(cameras.K, stages["in/w2c"], 32, 32))
    assert_close(gaussians.means, stages["out/xyz"])
    assert_close(gaussians.scales, stages["out/act_scaling"])
    assert_close(gaussians.opacities[..., None], stages["out/act_opacity"])


@pytest.mark.parametrize("broken", ["clip", "moment", "views swapped", "transposed rotation"])
def test_the_comparison_can_fail(stages, broken):
    model, images, cameras = recorded_run(stages)
    if broken == "clip": model.config = replace(CONFIG, clip_xyz=True)
    if broken == "moment": model.config = replace(CONFIG, rays="moment")
    if broken == "views swapped": images = images.flip(1)
    if broken == "transposed rotation":
        w2c = cameras.w2c.clone()
        w2c[..., :3, :3] = cameras.R.mT
        cameras = replace(cameras, w2c=w2c)
    assert (model(images, cameras).means - stages["out/xyz"]).abs().max() > 1e-2


def test_camera_matrices(extras):
    names = dict(view="view_T", projection="proj_T", full="viewproj_T", tanfov="tanfov", center="center")
    for i, (H, W) in enumerate(extras["camera/hw"].tolist()):
        w2c = torch.linalg.inv(extras["camera/c2w"][i:i + 1].double())
        matrices = inria_camera_matrices(Cameras(K_of(extras["camera/fxfycxcy"][i:i + 1]), w2c, W, H))
        for ours, theirs in names.items(): assert_close(matrices[ours][0], extras[f"camera/{theirs}"][i])


@pytest.mark.parametrize("elevation", [0, 20])
def test_turntable(extras, elevation):
    rig = orbit(270 + 60*torch.arange(6), elevation, 2.7, 50., 64)
    assert_close(torch.linalg.inv(rig.w2c.double()), extras[f"turntable/c2w_elev{elevation}"])
    assert_close(rig.K, K_of(extras["turntable/fxfycxcy"]))


@pytest.fixture
def gaussians(extras):
    return Gaussians(
        means=extras["gs/xyz"],
        quats=extras["gs/rotation"],
        scales=extras["gs/scaling"].exp(),
        opacities=torch.sigmoid(extras["gs/opacity"][:, 0]),
        sh=extras["gs/features"])


def test_covariance(extras, gaussians):
    assert_close(quat_to_matrix(extras["gs/rotation"]), extras["gs/rotmat"])
    upper_triangle = gaussians.covariances().flatten(1)[:, [0, 1, 2, 4, 5, 8]]
    assert_close(upper_triangle, extras["gs/covariance6"])


@pytest.mark.parametrize("name, filters", [
    ("inference", FILTERS["facelift"]),
    ("training", FILTERS["training"]),
    ("opacity_only_0p05", Filters(.05)),
    ("scaling_0p1_only", Filters(None, .1)),
    ("floater_0p6_only", Filters(None, floater=.6)),
    ("nearfar_0p05_0p95", Filters(None, near_far=(.05, .95))),
])
def test_filters(extras, gaussians, name, filters):
    kept = filters.mask(gaussians, extras["filter/cam_origins"]).nonzero()[:, 0]
    assert kept.tolist() == extras[f"filter/kept_{name}"].tolist()


def test_ply_bytes(extras):
    params = {key: extras[f"gs/{key}"][:6] for key in ("xyz", "features", "scaling", "rotation", "opacity")}
    theirs = {key: extras[f"ply/{key}_bytes"].numpy().tobytes()
              for key in ("sh0", "sh0_modifier0p5", "sh1_noviewer", "sh1_viewer")}
    assert facelift_ply(params) == theirs["sh0"]
    assert facelift_ply(params, .5) == theirs["sh0_modifier0p5"]
    degree_1 = {**params, "features": extras["ply/sh1_features"]}
    assert facelift_ply(degree_1, viewer=False) == theirs["sh1_noviewer"]
    # the original's padding puts f_rest into wrong columns
    assert len(facelift_ply(degree_1)) == len(theirs["sh1_viewer"])
    assert facelift_ply(degree_1) != theirs["sh1_viewer"]


def test_images_of_the_data_set(extras):
    for i, rgba in enumerate(extras["dataset/rgba_u8"].numpy()):
        white = facelift_picture(rgba, 16).permute(2, 0, 1)
        grey = facelift_picture(rgba, 16, .5, alpha=False).permute(2, 0, 1)
        assert torch.equal(white, extras["dataset/image_white_keepalpha"][i])
        assert torch.equal(grey, extras["dataset/image_gray_removealpha"][i])
    cameras = Cameras(K_of(extras["dataset/fxfycxcy_json"]), extras["dataset/w2c"], 24, 24).resized(16, 16)
    assert_close(cameras.K, K_of(extras["dataset/fxfycxcy"]))
    assert_close(torch.linalg.inv(cameras.w2c), extras["dataset/c2w"])


def test_metrics(extras):
    image, truth = (extras[key][0].permute(0, 2, 3, 1)[..., :3] for key in ("loss/rendering", "loss/target_rgba"))
    assert_close(psnr(image, truth), extras["metric/psnr"], 1e-4)


def channels_last(x): return x.movedim(2, -1)


def per_pixel(x): return channels_last(x.expand(2, 2, 3, 32, 32)).flatten(2, 3)


def test_losses(extras):
    image, rgba = channels_last(extras["loss/rendering"]), channels_last(extras["loss/target_rgba"])
    rgb, alpha = rgba[..., :3], rgba[..., 3].flatten(2)
    xyz, o, d = (per_pixel(extras[f"loss/{key}"]) for key in ("xyz", "ray_o", "ray_d"))
    ours = dict(
        l2_loss=losses.l2_loss(image, rgb),
        ssim_loss=losses.ssim_loss(image, rgb),
        pixelalign_unmasked=losses.pixelalign_loss(xyz, o, d),
        pixelalign_loss=losses.pixelalign_loss(xyz, o, d, alpha),
        pointsdist_loss=losses.pointsdist_loss(xyz, o))
    for name, value in ours.items(): assert_close(value, extras[f"loss/value_{name}"])


def test_learning_rate(extras):
    "The original's schedule up to its end; after that the original rises again, and ours stays at zero."
    theirs = extras["lr/cosine_warm5_total40_base1e-4"].numpy()
    ours = np.array([1e-4*lr_factor(i, 5, 40, first=0) for i in range(45)])
    np.testing.assert_allclose(ours[:41], theirs[:41], atol=1e-12)
    assert theirs[44] > theirs[40]
    assert not ours[41:].any()
