"""The shipped sensitivity table: whole, of this checkpoint, and saying what a new measurement says."""
import math
from dataclasses import replace

import pytest
import torch
from gslrm_mouse.models.checkpoint import load_checkpoint, read_card, shipped_checkpoint
from gslrm_mouse.cameras.perturb import shifted, turned
from gslrm_mouse.evaluation.sensitivity import PERTURBATIONS, load_sensitivity, measure_sensitivity
from gslrm_mouse.evaluation.sensitivity import score_perturbation, sensitivity, sensitivity_file, trial
from gslrm_mouse.scenes.dataset import HELD_OUT

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def table():
    return load_sensitivity()


def test_every_knob_and_kind_is_there(table):
    want = {(s, k, kind, v) for s in ("head", "mouse") for k, b in PERTURBATIONS.items() for kind in b.kinds for v in b.values}
    assert {(r["subject"], r["knob"], r["kind"], r["value"]) for r in table.rows} == want
    for r in table.rows:
        assert r["low"] <= r["iou"] <= r["high"] and r["n"] == len(r["scenes"]) and abs(sum(r["scenes"])/r["n"] - r["iou"]) < 2e-4


def test_at_home_every_curve_is_undisturbed(table):
    for r in table.rows:
        if PERTURBATIONS[r["knob"]].home == r["value"]:
            assert abs(r["iou"] - r["iou_undisturbed"]) < 2e-3, r


def test_the_ends_of_the_world(table):
    assert table.predict("unit", 120.).iou < .05 and table.predict("unit", 120., subject="head").iou < .05
    assert table.predict("focal", 2., "lie").high < table.predict("focal", 2.).low < table.predict("focal", 1.).low
    assert table.predict("views", 1).high < table.predict("views", 4).low


@pytest.mark.parametrize("subject", ["head", "mouse"])
def test_undisturbed_agrees_with_the_card(subject):
    """Scored as the card is: four views, the model's own picture size, no blur baked in."""
    model, card = load_checkpoint()
    row = next(r for r in sensitivity(model, card, 6, subjects=(subject,), knobs=("views",), values={"views": (4,)}, size=64, smooth=False))
    want = card.training["held_out"][subject]["iou"]
    room = row["high"] - row["low"] + .002        # the card has other cameras and 26 scenes more
    assert abs(row["iou"] - want) < room, (row["iou"], want, room)
    assert abs(.8*row["iou"] - want) > room             # a model a fifth worse would be noticed


def test_a_new_measurement_repeats_the_table(table):
    model, card = load_checkpoint()
    got = score_perturbation(model, trial("mouse", HELD_OUT + 4, card.domain), "distance", 1.5)
    for kind in PERTURBATIONS["distance"].kinds:
        kept = next(r for r in table.curve("distance", kind) if r["value"] == 1.5)["scenes"]
        assert abs(got[kind]["iou"] - kept[4]) < .02 and abs(got[kind]["iou"] - kept[5]) > 1e-4


def test_prediction_is_measurement_at_measured_points_and_nothing_outside(table):
    for r in table.rows[::7]:
        assert table.predict(r["knob"], r["value"], r["kind"], r["subject"])[:3] == pytest.approx((r["iou"], r["low"], r["high"]), abs=1e-9)
    p = table.predict("focal", 1.5)
    a, b = table.predict("focal", 1.41).iou, table.predict("focal", 1.6).iou
    assert min(a, b) < p.iou < max(a, b) and "interpolated" in p.said
    q = table.predict("distance", 4.01)
    assert math.isnan(q.iou) and "outside the measured 1.5 to 4" in q.said
    assert math.isnan(table.predict_joint({"aspect": 1.1, "distance": 9.}).iou)


def test_focal_and_distance_undo_each_other(table):
    both = table.predict_joint({"focal": 1.4, "distance": 3.78}).iou
    assert both == pytest.approx(table.predict("dolly", 3.78).iou, abs=1e-3)
    assert both > table.predict_joint({"focal": 1.4}).iou


def test_the_table_of_another_checkpoint_is_refused(tmp_path):
    path = tmp_path/"model.safetensors"
    path.write_bytes(shipped_checkpoint().read_bytes() + b"\0")
    sensitivity_file(path).write_bytes(sensitivity_file(shipped_checkpoint()).read_bytes())
    with pytest.raises(ValueError, match="curves of another network"):
        load_sensitivity(path)
    path.write_bytes(shipped_checkpoint().read_bytes())
    assert load_sensitivity(path).rows
    sensitivity_file(path).unlink()
    with pytest.raises(FileNotFoundError, match="no sensitivity table"):
        load_sensitivity(path)


def test_a_table_is_written_whole_and_never_over_another(tmp_path):
    out = tmp_path/"t.json"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        measure_sensitivity(out=out, scenes=1)
    assert out.read_text() == "mine"


def test_pixels_move_where_the_principal_point_goes():
    t = trial("mouse", HELD_OUT, read_card(shipped_checkpoint()).domain)
    points = torch.tensor([[.3, -.1, .2], [-.2, .4, -.1], [0., 0., 0.]])
    moved = shifted(t.cameras, .1, -.05).project(points) - t.cameras.project(points)
    assert torch.allclose(moved, torch.tensor([.1*64, -.05*64]).expand_as(moved), atol=1e-4)
    from gslrm_mouse.scenes.tracer import raytrace
    column = lambda v: (v.alpha.sum(1)*torch.arange(64)).sum(-1)/v.alpha.sum((1, 2))
    row = lambda v: (v.alpha.sum(2)*torch.arange(64)).sum(-1)/v.alpha.sum((1, 2))
    a, b = raytrace(t.scene, t.cameras), raytrace(t.scene, shifted(t.cameras, .125, -.0625))
    assert torch.allclose(column(b) - column(a), torch.full((6,), 8.), atol=.05) and torch.allclose(row(b) - row(a), torch.full((6,), -4.), atol=.05)


def test_turned_cameras_stay_rotations_in_place():
    t = trial("head", HELD_OUT, read_card(shipped_checkpoint()).domain)
    c = replace(t.cameras, w2c=t.cameras.w2c.double())
    d = turned(c, 7., 5)
    assert torch.allclose(d.R @ d.R.mT, torch.eye(3, dtype=torch.float64).expand(6, 3, 3), atol=1e-6) and torch.allclose(d.centers, c.centers, atol=1e-5)
    angle = (c.axes*d.axes).sum(-1).clamp(max=1).acos().rad2deg()
    assert torch.allclose(angle, torch.full((6,), 7., dtype=torch.float64), atol=1e-3)
