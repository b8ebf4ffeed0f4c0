"The pairs that a rig gives to a generator, and what they teach."
from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from gslrm_mouse.evaluation.scoring import rig_and_novel_views
from gslrm_mouse.experiments import one_image
from gslrm_mouse.models.view_flow import ViewFlowGenerator, load_laptop_generator
from gslrm_mouse.scenes.bodies import mouse_scene

SCORES = ("iou", "psnr", "psnr_fg", "psnr_white")


@pytest.fixture(scope="module")
def pairs():
    "Rendered and true pairs of one mouse."
    views, _ = rig_and_novel_views(100)
    generator = ViewFlowGenerator(network=load_laptop_generator())
    rendered = one_image.pairs_from_rig(views, generator, quality="draft")
    return rendered, one_image.true_pairs(mouse_scene(100), views, generator)


def test_every_camera_gives_a_pair_whose_views_resemble_the_true_ones(pairs):
    "The same image, and target views that lie where the true ones do: at no other camera do they fit as well."
    rendered, true = pairs
    assert len(rendered) == len(true) == 6
    for (image, drawn), (same, truth) in zip(rendered, true):
        assert torch.equal(image.images, same.images)
        assert torch.equal(drawn.cameras.w2c, truth.cameras.w2c)
        assert drawn.images.shape == truth.images.shape == (6, 64, 64, 3)
        at_its_camera = one_image._compared(drawn, truth)["iou"]
        at_the_next = one_image._compared(drawn[[1, 2, 3, 4, 5, 0]], truth)["iou"]
        assert at_its_camera > .75
        assert at_its_camera > at_the_next + .1


def test_sides_are_those_of_the_generators_cameras(pairs):
    "Scores from above and from below are of different views, and together they are all of them."
    rendered, true = pairs
    sides = one_image._by_side(rendered, true)
    assert list(sides) == ["above", "below"]
    whole = torch.tensor([one_image._compared(made[1], real[1])["iou"] for made, real in zip(rendered, true)])
    assert abs((sides["above"]["iou"] + sides["below"]["iou"])/2 - whole.mean().item()) < 1e-5
    assert sides["above"]["iou"] != sides["below"]["iou"]


def test_a_lesson_is_kept_and_its_sources_differ(tmp_path, monkeypatch):
    "One step with the pairs of one mouse; scored again, a run that has ended makes no pairs."
    arms = {arm.name: arm for arm in one_image.one_image_arms(False, None)}
    arm = arms[one_image.TAUGHT]
    lesson = asdict(replace(one_image._LESSON, steps=1, batch=1, warmup=1))
    arm = replace(arm, settings=arm.settings | dict(quality="draft", training=lesson, scenes=1))
    records = one_image.one_image_run(arm, None, tmp_path)
    monkeypatch.setattr(one_image, "_targets", None)
    next(tmp_path.rglob("scores.jsonl")).unlink()
    assert one_image.one_image_run(arm, None, tmp_path) == records
    found = {(r["taught"], r["answer"], r["kind"]): [r[score] for score in SCORES] for r in records}
    assert len(found) == len(records) == (1 + 3*2) + (1 + 3)
    mean = {name: found[name, "conditional mean", "mouse"] for name in ("nothing", "rendered", "true")}
    assert mean["nothing"] != mean["rendered"] != mean["true"]
