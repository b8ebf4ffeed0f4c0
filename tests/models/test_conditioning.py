"What a network is told of its cameras: what can change its answer, and what cannot."
from dataclasses import replace

import pytest
import torch

from gslrm_mouse.cameras.perturb import zoomed
from gslrm_mouse.cameras.pinhole import Cameras, orbit
from gslrm_mouse.cameras.presets import facelift_rig
from gslrm_mouse.cameras.rotations import quat_to_matrix
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.evaluation.scoring import score_cloud
from gslrm_mouse.models.checkpoint import read_card
from gslrm_mouse.models.conditioning import (
    CONDITIONINGS, TRAININGS, conditioned_reconstructors, conditioning_path, load_conditioning,
)
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig, first_camera_frame, rig_rays
from gslrm_mouse.scenes.bodies import canonical_scene
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.training.settings import Settings, model_settings, settings_from, to_plain_dict
from gslrm_mouse.training.state import weights_settings

RAYS = GSLRMConfig(image_size=16, d=32, d_head=16, n_layer=2, n_gaussians=0)
CONFIGS = {
    "rays": RAYS,
    "fixed": replace(RAYS, rays="fixed", hard_pixelalign=False),
    "relative": replace(RAYS, rays="relative"),
    "none": replace(RAYS, rays="none", hard_pixelalign=False, refsrc_marker=True),
}
TOLD_NOTHING = ("fixed", "none")


def irregular_cameras() -> Cameras: # (1, 3), 16 px
    "Unequal distances and focal lengths, fx ≠ fy, principal points off the centre, one camera rolled."
    cams = facelift_rig(16, n=8)[[1, 4, 6]].to(torch.float64)
    K, w2c = cams.K.clone(), cams.w2c.clone()
    K[:, 0, 0] *= torch.tensor([1.3, .8, 1.1])
    K[:, 1, 1] *= torch.tensor([1.2, .9, 1.])
    K[:, 0, 2] += torch.tensor([1., -.5, .3])
    K[:, 1, 2] += torch.tensor([-.7, .2, .6])
    w2c[:, :3, 3] *= torch.tensor([1.4, .9, 1.1])[:, None]
    w2c[0, :3] = quat_to_matrix(torch.tensor([.97, .05, -.04, .2], dtype=torch.float64)) @ w2c[0, :3]
    return replace(cams, K=K, w2c=w2c).batch()


CAMERAS = irregular_cameras()
IMAGES = torch.rand(1, 3, 16, 16, 3, generator=torch.Generator().manual_seed(0))


def network(name):
    "Weights large enough for every part to have an effect."
    model = GSLRM(CONFIGS[name]).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(.15*torch.randn(p.shape, generator=rng) + (p.ndim == 1))
    return model


@torch.no_grad()
def answer(name, cams=CAMERAS, images=IMAGES):
    return network(name)(images, cams).scene(0)


def others_misreported(cams=CAMERAS):
    "The first camera as it is; the second and third exchanged, moved and zoomed."
    changed = zoomed(cams, 1.7)
    w2c = cams.w2c.clone()
    w2c[:, 1:] = cams.w2c[:, [2, 1]]
    w2c[:, 1:, :3, 3] += torch.tensor([.3, -.2, .5], dtype=torch.float64)
    return replace(cams, K=torch.cat([cams.K[:, :1], changed.K[:, 1:]], 1), w2c=w2c)


RIGID = Similarity(1., quat_to_matrix(torch.tensor([.5, -.1, .7, .3], dtype=torch.float64)/.84**.5),
                   torch.tensor([.4, -.2, .3], dtype=torch.float64))
ABOUT_ORIGIN = Similarity(2.5, RIGID.Q)


def distance(a, b):
    return (a.means - b.means).norm(dim=-1).max().item()


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_other_cameras_are_said_to_be(name):
    wrong = others_misreported()
    true_rays, wrong_rays = (rig_rays(cams, CONFIGS[name]) for cams in (CAMERAS, wrong))
    true_answer, wrong_answer = answer(name), answer(name, wrong)
    if name in TOLD_NOTHING:
        for key in ("features", "o", "d"):
            assert torch.equal(getattr(true_rays, key), getattr(wrong_rays, key))
        for key in ("means", "quats", "scales", "opacities", "sh"):
            assert torch.equal(getattr(true_answer, key), getattr(wrong_answer, key))
    else:
        assert not torch.equal(true_rays.features, wrong_rays.features)
        assert distance(true_answer, wrong_answer) > .05


@pytest.mark.parametrize("name", TOLD_NOTHING)
def test_the_first_camera_decides_where_the_answer_stands_and_nothing_else(name):
    changed = replace(CAMERAS, K=torch.cat([zoomed(CAMERAS, 1.7).K[:, :1], CAMERAS.K[:, 1:]], 1))
    assert torch.equal(rig_rays(CAMERAS, CONFIGS[name]).features, rig_rays(changed, CONFIGS[name]).features)
    before, after = answer(name), answer(name, changed)
    assert torch.equal(before.sh, after.sh) and torch.equal(before.opacities, after.opacities)
    torch.testing.assert_close(after.scales*1.7, before.scales) # a longer lens at the same depth: a smaller object
    assert distance(before, after) > .05


@pytest.mark.parametrize("name, world, follows", [
    ("relative", RIGID, True), ("rays", RIGID, False),
    ("fixed", ABOUT_ORIGIN, True), ("none", ABOUT_ORIGIN, True), ("rays", ABOUT_ORIGIN, False),
    ("relative", ABOUT_ORIGIN, True), ("none", RIGID, False), # the world's origin is where the object is expected
])
def test_a_change_of_the_world(name, world, follows):
    before = answer(name).transform(world)
    after = answer(name, world.cameras(CAMERAS))
    change = distance(before, after)/world.scale
    covariances = (before.covariances() - after.covariances()).abs().max().item()/world.scale**2
    if follows:
        assert change < 2e-4 and covariances < 2e-4
    else:
        assert change > .05


@pytest.mark.parametrize("name, indifferent", [("none", True), ("fixed", False)])
def test_the_order_of_the_other_views(name, indifferent):
    order = [0, 2, 1]
    permuted = answer(name, replace(CAMERAS, K=CAMERAS.K[:, order], w2c=CAMERAS.w2c[:, order]), IMAGES[:, order])
    expected = answer(name).means.view(3, -1, 3)[order].flatten(0, 1)
    change = (permuted.means - expected).abs().max().item()
    if indifferent:
        assert change < 1e-4
    else:
        assert change > 1e-2


def test_the_order_decides_the_frame():
    order = [1, 0, 2]
    permuted = answer("none", replace(CAMERAS, K=CAMERAS.K[:, order], w2c=CAMERAS.w2c[:, order]), IMAGES[:, order])
    assert (permuted.means - answer("none").means.view(3, -1, 3)[order].flatten(0, 1)).abs().max() > .05


def test_the_frame_of_the_first_camera():
    "The centre of the first image shows the frame's origin, as wide as at home, and the axes are the camera's."
    frame, home = first_camera_frame(CAMERAS), facelift_rig(16, n=8)
    camera = Cameras(CAMERAS.K[0, :1], CAMERAS.w2c[0, :1], 16, 16)
    torch.testing.assert_close(camera.project(frame.origin)[0, 0], torch.tensor([8., 8.], dtype=torch.float64))
    depth = camera.to_camera(frame.origin)[0, 0, 2]
    assert depth.item() == pytest.approx(camera.t[0, 2].item())
    home_width = 2.7*16/home.K[0, 0, 0].item() # seen at the origin
    assert (frame.unit*home_width).item() == pytest.approx((depth*16/camera.K[0, 0, 0]).item(), rel=1e-6)
    torch.testing.assert_close(camera.R[0] @ frame.Q[0], home.R[0].double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name, azimuths", [("fixed", [0, 45, 90]), ("none", [0, 0, 0])])
def test_free_positions_are_counted_from_the_home_rays(name, azimuths):
    "A network whose decoder returns zeros puts each pixel's Gaussian in the plane of its home camera at the origin."
    model = network(name)
    with torch.no_grad():
        model.pixel_gaussian_decoder[1].weight.zero_()
    at_home = facelift_rig(16, n=8)[[0, 3, 5]]
    with torch.no_grad():
        means = model(IMAGES, at_home.batch()).scene(0).means.view(3, -1, 3)
    for points, azimuth in zip(means, azimuths):
        home = orbit([azimuth], 20., 2.7, 50., 16)
        pixels = home.project(points)[0]
        assert torch.allclose(pixels.sort(0).values, (torch.arange(256) // 16 + .5)[:, None].expand(256, 2), atol=1e-3)
        closest = points.norm(dim=-1) # the distance of each ray from the origin
        toward = torch.nn.functional.normalize(points - home.centers, dim=-1)
        assert torch.allclose((points*toward).sum(-1), torch.zeros(256), atol=1e-4) and closest.max() > .5


def test_what_is_refused():
    for name in TOLD_NOTHING:
        with pytest.raises(ValueError, match="hard_pixelalign=False"):
            replace(CONFIGS[name], hard_pixelalign=True)
        with pytest.raises(ValueError, match="sh_degree=0"):
            replace(CONFIGS[name], sh_degree=1)
    with pytest.raises(ValueError, match="refsrc_marker"):
        replace(CONFIGS["none"], refsrc_marker=False)
    nine = facelift_rig(16, n=9).batch()
    with pytest.raises(ValueError, match="8 views, got 9"):
        rig_rays(nine, CONFIGS["fixed"])
    assert rig_rays(nine, CONFIGS["none"]).views == 9
    behind = replace(CAMERAS, w2c=CAMERAS.w2c.clone())
    behind.w2c[0, 0, 2, 3] *= -1
    with pytest.raises(ValueError, match="behind the first camera"):
        rig_rays(behind, CONFIGS["none"])
    with pytest.raises(ValueError, match="model units"):
        rig_rays(replace(CAMERAS, unit="mm"), CONFIGS["none"])


@pytest.mark.parametrize("name", CONFIGS)
def test_settings(name):
    "Every conditioning survives the settings, and keys that are not used change no stored result."
    s = settings_from(dict(model=model_settings(CONFIGS[name])))
    assert s.config == CONFIGS[name]
    new = {"use_fixed_cameras", "use_no_cameras"}
    used = {key for key in new if to_plain_dict(s)["model"][key]}
    assert used == {"fixed": {"use_fixed_cameras"}, "none": {"use_no_cameras"}}.get(name, set())
    assert new & weights_settings(s)["model"].keys() == used
    assert not new & weights_settings(Settings())["model"].keys()


def test_contradictory_settings():
    for keys in (("use_fixed_cameras", "use_no_cameras"), ("use_relative_cameras", "use_no_cameras")):
        model = model_settings(CONFIGS["none"]) | dict.fromkeys(keys, True)
        with pytest.raises(ValueError, match="exclude each other"):
            settings_from(dict(model=model))


@pytest.mark.parametrize("trained", TRAININGS)
@pytest.mark.parametrize("name", CONDITIONINGS)
def test_a_shipped_network_is_what_its_name_says(name, trained):
    path = conditioning_path(name, trained)
    card = read_card(path)
    dataset = card.training["settings"]["training"]["dataset"]
    assert card.config.rays == {"rays": "nearest"}.get(name, name)
    assert bool(dataset["camera_variety"]["fov"]) == (trained == "varied")
    assert (card.domain.fov[1] - card.domain.fov[0] > 40) == (trained == "varied")
    assert path.stat().st_size < 2_100_000
    assert "/root" not in card.to_json() and "/tmp" not in card.to_json()
    for part in ("held_out", "held_out_varied"):
        assert set(card.training[part]) == {"head", "object", "mouse"}


def test_the_runs_differ_in_conditioning_and_cameras_only():
    def shared(settings):
        model, training = dict(settings["model"]), dict(settings["training"])
        for key in ("add_refsrc_marker", "hard_pixelalign", "use_relative_cameras", "use_fixed_cameras",
                    "use_no_cameras"):
            model.pop(key)
        model["image_tokenizer"] = {**model["image_tokenizer"], "in_channels": None}
        training["dataset"] = {**training["dataset"], "camera_variety": None}
        training.pop("checkpointing")
        return dict(settings, model=model, training=training)

    cards = [read_card(conditioning_path(name, trained)) for name in CONDITIONINGS for trained in TRAININGS]
    assert len({card.training["steps"] for card in cards}) == 1
    first = shared(cards[0].training["settings"])
    for card in cards[1:]:
        assert shared(card.training["settings"]) == first


def test_the_reconstructors():
    models = conditioned_reconstructors()
    assert list(models) == [f"{name}, {trained}" for trained in TRAININGS for name in CONDITIONINGS]
    views = raytrace(canonical_scene("head", 1_000_003), facelift_rig(64, n=8)[[0, 2, 4, 6, 1]], 2)
    scores = {}
    for name in ("rays, canonical", "none, canonical"):
        given = models[name].prepare(views[:4]).views
        assert len(given) == 4 and models[name].name == name
        scores[name] = score_cloud(models[name](views[:4]), views[4:])["iou"]
    assert scores["rays, canonical"] > scores["none, canonical"] > .6
    for name, trained, fragment in (("angles", "varied", "the conditioning should be"),
                                    ("rays", "any", "the training should be one of canonical, varied, got 'any'")):
        with pytest.raises(ValueError, match=fragment):
            load_conditioning(name, trained)
