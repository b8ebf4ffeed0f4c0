"Generators on a rig: the crop, the way home, silhouettes of generated views, and what a generator is given."
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gslrm_mouse.cameras.pinhole import look_at, orbit
from gslrm_mouse.cameras.rotations import rotvec_to_matrix
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.models.generator import (
    Generator, GeneratorReconstructor, SV3DGenerator, evenly_chosen, floor_depth, generator_input, scale_to_image,
    without_background)
from gslrm_mouse.models.reconstructor import Reconstructor
from gslrm_mouse.models.sv3d import SV3D_DOMAIN, sv3d_orbit
from gslrm_mouse.models.zero123plus import zero123plus_cameras, zero123plus_domain
from gslrm_mouse.scenes.bodies import ball_scene, canonical_scene
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.views.triangulation import triangulate
from gslrm_mouse.views.views import MaskError, Views

DOMAIN = zero123plus_domain("1.2")


@pytest.fixture(scope="module")
def views():
    "A head in a world of its own, seen by four cameras with different lenses, none of them in the middle."
    cams = orbit([20., 110., 200., 290.], [15., 35., 25., 5.], 3., 40., 64, (.1, -.1, .05))
    K = cams.K.clone()
    K[:, 0, 2] += torch.tensor([5., -4., 3., 0.])
    return raytrace(canonical_scene("head", 5), replace(cams, K=K), 2)


def test_the_way_home(views):
    "Up stays up, the camera of the image stands at azimuth 0, and its centre comes home."
    prepared = generator_input(views, DOMAIN, size=48, depth="masks")
    cam, home = prepared.views.cameras, prepared.to_source
    assert prepared.views.images.shape == (1, 48, 48, 3) and not prepared.exact
    torch.testing.assert_close(home.Q @ torch.tensor([0., 0., 1.]).double(), torch.tensor([0., 0., 1.]).double())
    assert cam.centers[0, 0] > 0 and abs(cam.centers[0, 1]) < 1e-5
    torch.testing.assert_close(home.cameras(cam).centers[0].float(), views.cameras.centers[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(cam.axes[0], -cam.centers[0]/cam.centers[0].norm(), atol=1e-5, rtol=0)
    seen = raytrace(canonical_scene("head", 5), home.cameras(cam), 2) # pixels, lens and pose agree
    a, b = seen.alpha > .5, prepared.views.alpha > .5
    overlap = (a & b).sum()/(a | b).sum()
    assert overlap > .9

    seen_width = 2*math.tan(math.radians(15))*DOMAIN.mean_distance
    width = 48/cam.K[0, 0, 0]*cam.centers[0].norm()
    assert width == pytest.approx(seen_width, rel=1e-4)


def test_another_vertical_turns_the_answer_only(views):
    Q = torch.from_numpy(rotvec_to_matrix([.7, -1.1, .4])).double()
    turn = Similarity(1., Q, Q.new_tensor([3., -2., 1.]))
    turned = replace(views, cameras=turn.cameras(views.cameras.to(torch.float64)))
    expected = generator_input(views, DOMAIN, size=32, depth=2.9)
    got = generator_input(turned, DOMAIN, size=32, depth=2.9, up=Q[:, 2])
    torch.testing.assert_close(got.views.images, expected.views.images, atol=1e-3, rtol=0)
    points = torch.randn(5, 3).double()
    torch.testing.assert_close(got.to_source(points), turn(expected.to_source(points)), atol=1e-5, rtol=0)
    wrong = generator_input(turned, DOMAIN, size=32, depth=2.9)
    assert (wrong.to_source(points) - turn(expected.to_source(points))).abs().max() > .1


def test_depth_is_the_one_open_number(views):
    "Another depth scales the answer about the camera, and changes nothing of the image."
    near, far = (generator_input(views, DOMAIN, size=32, depth=z) for z in (2., 3.))
    assert torch.equal(near.views.images, far.views.images)
    points, eye = torch.randn(6, 3).double(), views.cameras.centers[0].double()
    torch.testing.assert_close(far.to_source(points) - eye, 1.5*(near.to_source(points) - eye), atol=1e-6, rtol=0)

    z = views.cameras[0].to_camera(triangulate(views).point.float()[None])[0, 0, 2].item()
    points = torch.randn(4, 3).double()
    by_masks, by_number = (generator_input(views, DOMAIN, size=32, depth=x) for x in ("masks", z))
    torch.testing.assert_close(by_masks.to_source(points), by_number.to_source(points), atol=1e-5, rtol=0)
    for depth, message in (("floors", "'floor', 'masks' or a positive number, got 'floors'"), (-1., "got -1.0"),
                           ("masks", "needs the masks of two cameras or more, got one view")):
        with pytest.raises(ValueError, match=message):
            generator_input(views[0], DOMAIN, size=32, depth=depth)


def lifted(views, height):
    "The same views, calibrated in a world whose floor lies higher."
    sim = Similarity(1., torch.eye(3).double(), torch.tensor([0., 0., height]).double())
    return replace(views, cameras=sim.cameras(views.cameras.to(torch.float64)))


@pytest.mark.parametrize("height", [-1.5, 0., 1., 4.])
def test_masks_tell_the_depth_whatever_the_floor(views, height):
    "The floor counts only where a single view shows the object."
    moved = lifted(views, height)
    expected = generator_input(views, DOMAIN, size=32, depth="masks").to_source.c
    expected = expected + expected.new_tensor([0., 0., height])
    prepared = generator_input(moved, DOMAIN, size=32)
    assert "comes from the masks of 4 views" in prepared.statement
    torch.testing.assert_close(prepared.to_source.c, expected, atol=1e-5, rtol=0)
    alone = replace(moved, alpha=moved.alpha*torch.tensor([1., 0., 0., 0.])[:, None, None])
    by_floor = generator_input(alone, DOMAIN, size=32, floor=height - 1.)
    assert f"a floor at height {height - 1:g} " in by_floor.statement
    assert generator_input(moved[0], DOMAIN, size=32, floor=height - 1.).statement == by_floor.statement
    two = replace(moved, alpha=moved.alpha*torch.tensor([1., 0., 1., 0.])[:, None, None])
    assert "comes from the masks of 2 views" in generator_input(two, DOMAIN, size=32).statement
    hidden = replace(moved, alpha=moved.alpha*torch.tensor([0., 1., 1., 1.])[:, None, None])
    with pytest.raises(MaskError, match="the mask is empty"):
        generator_input(hidden, DOMAIN, size=32)


def standing(height, bottom, floor=0., size=40):
    "A level camera and a silhouette whose last row is `bottom`, counted from the principal point."
    eye = torch.tensor([[0., -5., floor + height]])
    cams = orbit([0.], 0., 1., 40., size, unit="mm")
    cams = replace(cams, w2c=look_at(eye, eye + torch.tensor([0., 1., 0.])))
    alpha = torch.zeros(1, size, size)
    alpha[0, size//2 + bottom - 3:size//2 + bottom + 1, 15:20] = 1.
    return Views(1 - alpha[..., None].expand(1, size, size, 3)*.5, alpha, cams)


def test_depth_of_what_stands_on_the_floor():
    view = standing(height=30., bottom=9, floor=12.)
    f = view.cameras.K[0, 1, 1].item()
    assert floor_depth(view, floor=12., below=0.) == pytest.approx(30*f/9.5, rel=1e-5)
    assert floor_depth(view, floor=0., below=0.) == pytest.approx(42*f/9.5, rel=1e-5)
    assert floor_depth(view, floor=12.) >= floor_depth(view, floor=12., below=0.)
    with pytest.raises(ValueError, match="the camera is -10 above it"):
        floor_depth(view, floor=52.)
    with pytest.raises(ValueError, match="the lowest rays fall by -"):
        floor_depth(standing(30., -4))
    with pytest.raises(ValueError, match="the mask is empty"):
        generator_input(replace(view, alpha=torch.zeros_like(view.alpha)), DOMAIN, size=32)


def test_a_background_is_what_the_border_reaches():
    ndimage = pytest.importorskip("scipy.ndimage")
    draw = np.random.default_rng(0)
    like = torch.from_numpy(draw.random((3, 40, 33)) < .6)
    images = torch.where(like[..., None], torch.tensor(.5), torch.tensor(.9)).expand(3, 40, 33, 3)
    found = without_background(images, .5, orbit([0., 1., 2.]))
    for mask, alpha in zip(like.numpy(), found.alpha):
        labels, _ = ndimage.label(mask)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        outside = np.isin(labels, border[border > 0])
        assert 100 < outside.sum() < mask.sum() # some of it is enclosed
        np.testing.assert_array_equal(alpha.numpy() == 0, outside)


def test_edges_are_unmixed():
    "A half covered pixel becomes half transparent on white; what is enclosed stays as it is."
    images = torch.full((1, 9, 9, 3), .5)
    images[0, 2:7, 2:7] = torch.tensor([.2, .4, .6])
    images[0, 4, 4] = .5 # enclosed
    images[0, 2, 4] = .5 + .06
    found = without_background(images, .5, orbit([0.]), faint=.02, clear=.1)
    assert found.alpha[0, 4, 4] == 1 and found.alpha[0, 0, 0] == 0
    torch.testing.assert_close(found.alpha[0, 2, 4].item(), .5, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.images[0, 2, 4], torch.full((3,), .56 - .25 + .5), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.images[0, 3, 3], torch.tensor([.2, .4, .6]))
    with pytest.raises(MaskError, match="generated view 0 shows nothing but background .brightness 0.50"):
        without_background(torch.full((1, 4, 4, 3), .51), .5, orbit([0.]))
    with pytest.raises(MaskError, match="generated view 0 shows no background") as error:
        without_background(torch.full((1, 4, 4, 3), .9), .5, orbit([0.]))
    assert error.value.problem == "mask_full"
    noise = torch.full((1, 9, 9, 3), .9)
    noise[0, 0, 4] = noise[0, 4, 0] = .5 # some background at the border, as noise has it
    with pytest.raises(MaskError, match="generated view 0 shows no background"):
        without_background(noise, .5, orbit([0.]))


@dataclass(frozen=True, kw_only=True)
class Drawing(Generator):
    "A generator that knows a ball, in a size of its own."
    radius:float
    image_size:int = 48
    name = "drawing"
    conditioning = "none"
    domain = DOMAIN

    def cameras(self, view):
        return zero123plus_cameras("1.2", size=48)

    def generate(self, view, seed=0):
        return raytrace(ball_scene(radius=self.radius), self.cameras(view), 2)


@dataclass(frozen=True, kw_only=True)
class Blob(Reconstructor):
    "One Gaussian where the silhouettes meet, as large as they are."
    name:str = "blob"
    n_views:tuple = (2, 32)
    conditioning:str = "rays"
    gauge:str = "none"
    domain:object = replace(DOMAIN, n_views=(4, 4))

    def prepare(self, views, up=None):
        raise AssertionError("called directly")

    def predict(self, views, seed=0):
        raise AssertionError("called directly")

    def __call__(self, views, up=None, seed=0):
        assert len(views) == 4 # as many as it was trained with
        distance = views.cameras.centers.norm(dim=-1)
        sizes = (views.alpha > .5).double().mean((1, 2)).sqrt()*views.cameras.width/views.cameras.K[:, 0, 0]*distance
        return Gaussians(
            triangulate(views).point.float()[None], torch.tensor([[1., 0., 0., 0.]]),
            (sizes.mean()/math.sqrt(math.pi)).float().expand(1, 3), torch.ones(1), torch.zeros(1, 1, 3))


@pytest.mark.parametrize("radius", [.2, .3])
def test_size_and_place_come_home(radius, monkeypatch):
    "A ball of another size in the generator's world comes back where it was and as large as it was."
    true, centre = .7, torch.tensor([2., -1., .5])
    cams = orbit([25., 140., 260.], [30., 10., 20.], 6., 40., 96, tuple((centre + .3).tolist()))
    views = raytrace(ball_scene(tuple(centre.tolist()), true), cams, 2)
    model = GeneratorReconstructor(generator=Drawing(radius=radius), reconstructor=Blob(), depth="masks")
    assert (model.name, model.conditioning, model.gauge) == ("drawing and blob", "none", "depth")
    g = model(views)
    assert (g.means[0] - centre).norm() < .1*true
    assert g.scales[0, 0].item() == pytest.approx(true, rel=.06)

    monkeypatch.setattr("gslrm_mouse.models.generator.scale_to_image", lambda generated, view: Similarity())
    assert abs(model(views).scales[0, 0].item()/true - 1) > .2


def test_an_empty_generated_view_is_named(views, monkeypatch):
    "Not as a camera of the rig, whose masks are all right."
    generator = Drawing(radius=.3)
    drawn = generator.generate(views)
    monkeypatch.setattr(Drawing, "generate", lambda *_: replace(drawn, alpha=drawn.alpha*torch.tensor(
        [1., 1., 0., 1., 1., 1.])[:, None, None]))
    model = GeneratorReconstructor(generator=generator, reconstructor=Blob(), depth="masks")
    with pytest.raises(MaskError, match="drawing drew nothing in view 2 of its 6"):
        model.predict(views[0])


def test_the_nearest_views_give_the_size():
    "Views at the side of the object say nothing of the image's size."
    cams = zero123plus_cameras("1.2", size=40)
    alpha = torch.zeros(6, 40, 40)
    for k, side in enumerate((10, 30, 30, 30, 30, 14)):
        alpha[k, 2:2 + side, 3:3 + side] = 1.
    image = torch.zeros(1, 40, 40)
    image[0, :24, :24] = 1.
    generated = Views(torch.zeros(6, 40, 40, 3), alpha, cams)
    view = Views(torch.zeros(1, 40, 40, 3), image, cams[[0]])
    assert scale_to_image(generated, view).scale == pytest.approx(24/12)

    farther = Similarity(3.).cameras(cams[[0]]) # a pixel covers three times as much of the world
    assert scale_to_image(generated, replace(view, cameras=farther)).scale == pytest.approx(3*24/12)
    with pytest.raises(ValueError, match="show nothing"):
        scale_to_image(replace(generated, alpha=0*alpha), view)


def test_evenly_chosen():
    assert evenly_chosen(21, 6) == [3, 6, 10, 13, 17, 20] and evenly_chosen(3, 6) == [0, 1, 2]
    for n, most in ((21, 4), (6, 5), (7, 7)):
        chosen = evenly_chosen(n, most)
        assert len(chosen) == min(n, most) and chosen[-1] == n - 1 and chosen == sorted(set(chosen))


@pytest.mark.parametrize("is_told_angles", [True, False])
def test_sv3d_is_given_the_elevation_of_the_calibration(views, is_told_angles):
    calls = []

    def pipeline(image, **how):
        calls.append(how)
        frames = torch.ones(21, 32, 32, 3)
        frames[:, 8:20, 10:24] = .3
        return frames

    answer = SimpleNamespace(is_told_angles=is_told_angles, name="sv3d")
    generator = SV3DGenerator(pipeline=_Callable(pipeline, answer), image_size=32, steps=7, show_progress=False)
    assert generator.conditioning == ("angles" if is_told_angles else "none")
    prepared = generator_input(views, SV3D_DOMAIN, size=32, depth="masks")
    got = generator.generate(prepared.views, seed=4)
    o = views.cameras.centers[0].double() - prepared.to_source(torch.zeros(1, 3).double())[0]
    elevation = math.degrees(math.asin(o[2]/o.norm()))
    assert (calls[0]["seed"], calls[0]["steps"]) == (4, 7) and ("elevations" in calls[0]) == is_told_angles
    if is_told_angles:
        assert calls[0]["elevations"] == pytest.approx(elevation, abs=1e-3)
    torch.testing.assert_close(got.cameras.w2c, sv3d_orbit(elevation, size=32).w2c, atol=1e-4, rtol=0)
    assert torch.equal(got.alpha[-1], prepared.views.alpha[0]) and torch.equal(got.images[-1], prepared.views.images[0])
    assert got.alpha[0, 12, 15] == 1 and got.alpha[0, 0, 0] == 0

    assert scale_to_image(got, prepared.views).scale == pytest.approx(1.) # the image itself is the nearest view


class _Callable:
    def __init__(self, function, facts):
        self.function, self.facts = function, facts

    def __call__(self, *args, **how):
        return self.function(*args, **how)

    def __getattr__(self, name):
        return getattr(self.facts, name)
