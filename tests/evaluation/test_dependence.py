"""Pixels of contradiction against closed forms and another optimiser; doses, blind models and half doses."""
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from gslrm_mouse.cameras.domain import CameraDomain
from gslrm_mouse.cameras.perturb import raised, shifted, zoomed
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.cameras.rotations import rotvec_to_matrix
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.evaluation.baselines import MeanShape, with_views
from gslrm_mouse.evaluation.dependence import DOSES, GAUGE, RIG_DOMAIN, TOLD, Dose, answer, at_home, contradiction
from gslrm_mouse.evaluation.dependence import dose_scores, dosed, half_dose, half_dose_ci, half_dose_text
from gslrm_mouse.evaluation.dependence import measure_dependence, rig_trial, summarise_dependence, surface_points
from gslrm_mouse.evaluation.scoring import score_cloud
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.models.lgm import LGM, LGMConfig
from gslrm_mouse.models.reconstructor import LGMReconstructor, Reconstructor
from gslrm_mouse.preprocess.canonical import canonicalize
from gslrm_mouse.scenes.tracer import raytrace

torch.set_num_threads(1)
RIG = orbit([10, 75, 128, 190, 250, 305], [5., 35, 15, 40, 0, 25], size=64).to(torch.float64)
POINTS = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3))*[.4, .2, .1])


def turned_world(seed):
    rng = np.random.default_rng(seed)
    Q = torch.from_numpy(rotvec_to_matrix(rng.normal(size=3)))
    return Similarity(float(np.exp(rng.normal())), Q, torch.from_numpy(rng.normal(size=3)))


@pytest.mark.parametrize("seed", range(3))
def test_a_similarity_contradicts_nothing_and_is_found(seed):
    world = turned_world(seed)
    found = contradiction(world.cameras(RIG), RIG, POINTS)
    assert found.pixels < 1e-5
    assert torch.allclose(found.similarity(POINTS), world(POINTS), atol=1e-5*world.scale)


def test_a_similarity_of_the_told_cameras_changes_no_contradiction():
    told = raised(RIG, 15.)
    here, elsewhere = contradiction(told, RIG, POINTS), contradiction(turned_world(5).cameras(told), RIG, POINTS)
    assert math.isclose(here.pixels, elsewhere.pixels, rel_tol=1e-3)


@pytest.mark.parametrize("pixels", [.5, 4.])
def test_a_principal_point_to_the_right_of_a_level_ring(pixels):
    "No motion of a small object goes to the right in all images of a ring."
    ring = orbit(60*torch.arange(6), 0., size=64)
    small = .01*POINTS
    assert math.isclose(contradiction(shifted(ring, pixels/64, 0.), ring, small).pixels, pixels, rel_tol=.01)
    assert contradiction(shifted(ring, 0., pixels/64), ring, small).pixels < .05*pixels # the object sinks instead


def test_relabelled_cameras_of_an_even_ring_are_a_turn_and_of_another_are_not():
    ring = orbit(60*torch.arange(6), 20., size=64)
    around, two = [1, 2, 3, 4, 5, 0], [1, 0, 2, 3, 4, 5]
    assert contradiction(ring[around], ring, POINTS).pixels < 1e-5
    assert contradiction(RIG[around], RIG, POINTS).pixels > 1
    assert contradiction(ring[two], ring, POINTS).pixels > 1


def test_one_camera_is_contradicted_by_its_lens_only():
    assert contradiction(raised(RIG[:1], 40.), RIG[:1], POINTS).pixels < 1e-5
    assert contradiction(zoomed(RIG[:1], 1., 1.3), RIG[:1], POINTS).pixels > .1


NOISE = (1e-12, 1e-10, 1e-8, 1e-6) # of the surface points, units of their world


@pytest.mark.parametrize("told, true", [
    (raised(RIG[:1], 30.), RIG[:1]), (shifted(RIG[:1], .06, .02), RIG[:1]), (zoomed(RIG[:1], 1., 1.3), RIG[:1]),
    (RIG[[0]*6], RIG), (raised(RIG, 30.), RIG)], ids=["up", "shift", "zoom", "one place", "several places"])
def test_noise_of_the_surface_does_not_change_the_similarity(told, true):
    noise = torch.randn(POINTS.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = contradiction(told, true, POINTS).similarity
    for size in NOISE:
        again = contradiction(told, true, POINTS + size*noise).similarity
        assert math.isclose(again.scale, found.scale, rel_tol=1e-4), size
        assert torch.allclose(again(POINTS), found(POINTS), atol=1e-4), size


@pytest.mark.parametrize("told", [raised(RIG[:1], 30.), zoomed(RIG[:1], 1.4)], ids=["up", "zoom"])
def test_a_scale_that_the_cameras_leave_open_keeps_the_distance_to_them(told):
    found = contradiction(told, RIG[:1], POINTS)
    distances = [(points - told.centers).norm(dim=-1).mean().item() for points in (found.similarity(POINTS), POINTS)]
    assert math.isclose(*distances, rel_tol=1e-9)
    error = told.project(found.similarity(POINTS)) - RIG[:1].project(POINTS)
    assert math.isclose(error.square().sum(-1).mean().sqrt().item(), found.pixels, rel_tol=1e-6, abs_tol=1e-6)


@pytest.mark.parametrize(
    "told", [raised(RIG, 25.), zoomed(RIG, 1.5), shifted(RIG, .06, .02)], ids=["up", "zoom", "shift"])
def test_another_optimiser_finds_no_better_similarity(told):
    optimize = pytest.importorskip("scipy.optimize")
    target, told64 = RIG.to(torch.float64).project(POINTS), told.to(torch.float64)

    def residuals(x):
        Q = torch.from_numpy(rotvec_to_matrix(x[1:4]))
        y = Similarity(math.exp(x[0]), Q, torch.from_numpy(x[4:]))(POINTS)
        return (told64.project(y) - target).flatten().numpy()

    rng = np.random.default_rng(1)
    found = [optimize.least_squares(residuals, .1*rng.normal(size=7)) for _ in range(2)]
    best = math.sqrt(min(2*f.cost for f in found)/target[..., 0].numel())
    assert math.isclose(contradiction(told, RIG, POINTS).pixels, best, rel_tol=1e-3)


@dataclass(frozen=True, kw_only=True)
class Dots(Reconstructor):
    "A cross of Gaussians at the origin; one that looks at its cameras is as far off as the first focal length states."
    name:str = "dots"
    n_views:tuple = (1, 6)
    conditioning:str = "none"
    gauge:str = "none"
    domain:CameraDomain = RIG_DOMAIN
    looks:bool = False

    def prepare(self, views, up=None):
        return canonicalize(views, self.domain, up=up)

    def predict(self, views, seed=0):
        means = torch.tensor([[.3, 0., 0.], [-.3, 0., .1], [0., .2, 0.], [0., -.2, 0.]])
        if self.looks:
            means = means*torch.tensor([views.cameras.K[0, 0, 0].item()/64, 1., 1.])
        return Gaussians(means, torch.tensor([[1., 0, 0, 0]]*4), torch.full((4, 3), .1), torch.ones(4),
                         torch.zeros(4, 1, 3), views.cameras.unit)


@pytest.fixture(scope="module")
def mouse():
    return rig_trial("mouse", 1)


@pytest.fixture(scope="module")
def home(mouse):
    return at_home(Dots(), mouse)


def test_gauge_doses_contradict_nothing_and_told_doses_do(home):
    points = surface_points(home.trial.scene, home.trial.cameras)
    for dose in GAUGE + TOLD:
        m = contradiction(dosed(home, dose).views.cameras, home.trial.cameras, points).pixels
        assert (m < 1e-3) == (dose.way == "gauge"), dose


@dataclass(frozen=True, kw_only=True)
class BeforeTheCamera(Dots):
    "The same cross, always at the same place before its first camera."
    conditioning:str = "rays"

    def predict(self, views, seed=0):
        first = views.cameras.to(torch.float64)[0]
        to_world = Similarity(1., first.R[0].T, first.centers[0])
        cross = super().predict(views)
        return replace(cross, means=to_world(cross.means.double() + torch.tensor([0., 0., 2.7])).float())


@pytest.mark.parametrize("dose", [Dose("gauge", "origin", .4), Dose("gauge", "tilted", 90.)])
def test_one_camera_in_another_world_costs_nothing_where_the_answer_follows_it(mouse, dose):
    model = with_views(BeforeTheCamera(), 1)
    home = at_home(model, mouse)
    points = surface_points(mouse.scene, home.trial.cameras)
    undisturbed = answer(model, home, home.views)
    scores = dose_scores(model, home, dose, undisturbed, points)
    expected = score_cloud(undisturbed, mouse.truth)["iou"]
    assert expected > .05 and math.isclose(scores["iou_carried"], expected, abs_tol=1e-3)


def test_surface_points_lie_on_the_surface(home):
    points = surface_points(home.trial.scene, home.trial.cameras, 30).numpy()
    scene = home.trial.scene
    inside = [np.linalg.norm((points - c) @ A.T, axis=1) for c, A in zip(scene.centers, scene.A)]
    assert np.abs(np.min(inside, 0) - 1).max() < 1e-6


def test_each_way_changes_what_it_should(home):
    told, taken, both = (dosed(home, Dose(way, "roll", 20.)) for way in ("told", "taken", "consistent"))
    assert torch.equal(told.views.images, home.views.images)
    assert not torch.allclose(told.views.cameras.w2c, home.trial.cameras.w2c, atol=.01)
    assert torch.equal(taken.views.cameras.w2c, home.trial.cameras.w2c)
    assert not torch.allclose(taken.views.images, home.views.images, atol=.1)
    assert torch.equal(both.views.images, taken.views.images)
    assert torch.equal(both.views.cameras.w2c, told.views.cameras.w2c)
    expected = raytrace(home.trial.scene, both.true)
    assert torch.equal(both.views.images, expected.images)


def test_a_blind_model_cannot_be_misinformed_and_a_false_claim_is_refused(mouse):
    doses = [Dose("told", "focal", 1.6), Dose("consistent", "roll", 90.)]
    records = measure_dependence(Dots(), mouse, doses, registered=False)
    assert records[1]["iou"] == records[0]["iou"] > 0
    assert records[1]["pixels"] > 0
    with pytest.raises(ValueError, match="states that it is not given the cameras, but its shape changes"):
        measure_dependence(Dots(looks=True), mouse, doses, registered=False)
    misled = measure_dependence(Dots(looks=True, conditioning="rays"), mouse, doses, registered=False)
    assert misled[1]["iou"] != misled[0]["iou"]


def test_a_model_in_another_frame_scores_the_same(mouse):
    "The same Gaussians by way of a model whose world is turned and larger."
    world = turned_world(3)

    class Elsewhere(Dots):
        def prepare(self, views, up=None):
            prepared = super().prepare(views, up)
            cameras = world.cameras(prepared.views.cameras)
            moved = replace(prepared.views, cameras=cameras)
            return replace(prepared, views=moved, to_source=prepared.to_source @ world.inverse)

        def predict(self, views, seed=0):
            return super().predict(views, seed).transform(world)

    doses = [dose for dose in DOSES if dose.knob in ("aim", "unit", "coverage")]
    kinds = (Dots(conditioning="rays"), Elsewhere(conditioning="rays"))
    one, other = (measure_dependence(model, mouse, doses, registered=False) for model in kinds)
    np.testing.assert_allclose([r["iou"] for r in one], [r["iou"] for r in other], atol=.02)


def test_a_model_with_fewer_views_gets_them(mouse):
    class Counting(Dots):
        def predict(self, views, seed=0):
            assert len(views) == 4
            return super().predict(views, seed)

    four = with_views(Counting(), 4)
    home = at_home(four, mouse)
    assert len(answer(four, home, home.views)) == 4
    assert four.name == "dots, 4 views"
    with pytest.raises(ValueError, match="needs at least 8 views, the rig has 6"):
        at_home(with_views(Dots(), 8), mouse)


def test_lgm_with_random_weights_goes_through(mouse):
    narrow = LGMConfig(down=(32, 32), down_attention=(False, True), up=(32,), up_attention=(True,), image_size=16)
    torch.manual_seed(0)
    lgm = LGMReconstructor(network=LGM(narrow).eval())
    doses = (Dose("told", "exchanged", 2.), Dose("gauge", "unit", 1.5), Dose("consistent", "roll", 20.))
    home, *records = measure_dependence(lgm, mouse, doses, registered=False)
    assert [r["way"] for r in records] == ["told", "gauge", "consistent"]
    assert all(0 <= r["iou"] <= 1 for r in [home, *records])
    assert records[0]["pixels"] > .1 > 1e-3 > records[1]["pixels"]


def test_half_dose_of_a_noisy_curve_and_its_interval():
    rng = np.random.default_rng(0)
    m = np.geomspace(.2, 20, 15)*np.exp(.05*rng.normal(size=(12, 15)))
    kept = 1/(1 + m/3) + .03*rng.normal(size=m.shape)
    found = half_dose_ci(m, kept, resamples=200)
    assert found.low <= found.mean <= found.high
    assert found.low < 3.2 and found.high > 2.8 and found.high - found.low < 2
    order = rng.permutation(15)
    assert math.isclose(half_dose(m[0], kept[0]), half_dose(m[0][order], kept[0][order]))
    assert half_dose(m[0], np.ones(15)) == math.inf
    each = [half_dose(x, y) for x, y in zip(m, kept)]
    np.testing.assert_allclose(half_dose(m, kept), each)


def record(way, m, iou):
    return dict(way=way, knob="focal", value=1., pixels=m, iou=iou, iou_as_told=iou/2)


def test_summary_by_hand():
    "Losses of two scenes, worked out on paper."
    scenes = [
        [record("home", 0., .8), record("told", 1., .72), record("told", 4., .2), record("gauge", 0., .4),
         record("consistent", 0., .6)],
        [record("home", 0., .5), record("told", 1., .45), record("told", 4., .1), record("gauge", 0., .5),
         record("consistent", 0., .5)]]
    d = summarise_dependence(scenes, True)
    assert math.isclose(d.told.mean, ((.1 + .75)/2 + (.1 + .8)/2)/2)
    assert math.isclose(d.gauge.mean, .25)
    assert math.isclose(d.unfamiliar.mean, .125)
    assert math.isclose(d.half.mean, 4**((.9 - .5)/(.9 - .225)))
    assert math.isclose(d.as_told.mean, 1 - (1 - d.told.mean)/2)
    never = replace(d, half=d.half._replace(mean=math.inf, low=2., high=math.inf))
    assert half_dose_text(never) == "> 4.0 px [2.0, > 4.0; n = 2]"
    blind = summarise_dependence(scenes, False)
    assert (blind.half, blind.told, blind.gauge) == (None, None, None)
    assert half_dose_text(blind) == "cannot be misinformed"
    nothing = [record("home", 0., .1), *[record(r["way"], r["pixels"], .3) for r in scenes[0][1:]]]
    assert summarise_dependence([*scenes, nothing], True).told == d.told
    with pytest.raises(ValueError, match="no scene has an IoU of 0.2"):
        summarise_dependence([nothing], True)
    with pytest.raises(ValueError, match="the same told doses"):
        summarise_dependence([scenes[0], scenes[1][:2]], True)


def test_mean_shape_ignores_its_input(mouse):
    a, b = at_home(MeanShape(), mouse), at_home(MeanShape(), rig_trial("head", 0))
    assert torch.equal(MeanShape().predict(a.views).means, MeanShape().predict(b.views).means)
