"""Mice that fill their images: their size, their numbers, and what a run notes of them."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gslrm_mouse.cameras.domain import CameraDomain
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.preprocess.canonical import canonicalize
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.dataset import FIRST_MOUSE, HELD_OUT, VarietySettings, scene_views
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.training.evaluation import training_domain
from gslrm_mouse.training.settings import load_settings, settings_from
from gslrm_mouse.training.sources import build_dataset
from gslrm_mouse.training.state import weights_settings

torch.set_num_threads(1)
CONFIG = Path(__file__).parents[2]/"configs"/"mouse_adapter.yaml"
VARIED = CameraDomain(fov=(8., 64.), distance=(1., 20.), canonical=(50., 2.7), visible=(1.1, 3.6), image_size=128)
MICE = range(FIRST_MOUSE, FIRST_MOUSE + 6)


def size_and_width(views): # means: relative size of the animal, width seen at it
    cams = views.cameras
    size = (views.alpha > .5).double().mean((1, 2)).sqrt().mean().item()
    return size, (cams.width*cams.centers.norm(dim=-1)/cams.K[:, 0, 0]).mean().item()


def test_mice_are_as_large_as_reconstruct_shows_them():
    rig = mouse_rig().resized(288, 256)
    variety = load_settings(CONFIG).training.dataset.camera_variety
    filmed = [raytrace(mouse_scene(i), rig, 2) for i in MICE]
    shown = [size_and_width(canonicalize(views, VARIED, choose="object").views) for views in filmed]
    trained = [size_and_width(scene_views(i, "mouse", 128, variety=variety)) for i in MICE]
    size, width = torch.tensor(shown).mean(0).tolist()
    trained_size, trained_width = torch.tensor(trained).mean(0).tolist()
    assert trained_size == pytest.approx(size, rel=.1)
    assert trained_width == pytest.approx(width, rel=.05)


@pytest.mark.parametrize("kinds", [["mouse"], ["head", "mouse"]])
def test_no_mouse_of_the_study_is_trained_on(tmp_path, kinds):
    tree = dict(model=dict(image_tokenizer=dict(image_size=16)), training=dict(dataset=dict(kinds=kinds, n_scenes=8)))
    source = build_dataset(settings_from(tree), tmp_path)
    names = [source.name(i).split() for i in range(len(source))]
    assert all(kind != "mouse" or int(number) >= FIRST_MOUSE for kind, number in names)
    i = kinds.index("mouse")
    difference = source[i].images - scene_views(FIRST_MOUSE + i, "mouse", 16).images
    assert difference.abs().max() <= .51/255
    assert source.name(HELD_OUT + i) == f"mouse {HELD_OUT + i}" # validation


def test_runs_without_the_setting_resume():
    stored = settings_from(dict(training=dict(dataset=dict(camera_variety=dict(fov=[9., 60.])))))
    assert "tight" not in weights_settings(stored)["training"]["dataset"]["camera_variety"]
    assert "tight" not in VarietySettings(fov=[9., 60.]).to_dict()
    assert weights_settings(load_settings(CONFIG))["training"]["dataset"]["camera_variety"]["tight"]


def test_tight_without_varied_cameras_is_refused():
    tree = dict(training=dict(dataset=dict(camera_variety=dict(tight=True))))
    with pytest.raises(ValueError, match="tight acts only where"):
        settings_from(tree)


def test_the_domain_of_an_adapter_keeps_what_is_replayed(tmp_path):
    s = load_settings(CONFIG, ["training.dataset.n_scenes=20", "model.image_tokenizer.image_size=16"])
    domain = training_domain(s, build_dataset(s, tmp_path), (3, 6), 16, VARIED)
    assert domain.fov[0] == 8. and domain.fov[1] == 64. and domain.visible == VARIED.visible
    assert domain.canonical == (50., 2.7)
    alone = replace(s, training=replace(s.training, dataset=replace(s.training.dataset, replay_share=0.)))
    assert 30 < training_domain(alone, build_dataset(alone, tmp_path), (3, 6), 16, VARIED).fov[0] < 35
