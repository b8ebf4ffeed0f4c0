"""The shipped sensitivity table is complete, belongs to this checkpoint, and agrees with new measurements."""
import json
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from gslrm_mouse.cameras.perturb import shifted, turned
from gslrm_mouse.evaluation.sensitivity import (
    PERTURBATIONS, Shown, draw_sensitivity, extend_sensitivity, load_sensitivity, measure_sensitivity,
    score_perturbation, sensitivity, sensitivity_file, trial,
)
from gslrm_mouse.models.checkpoint import ModelCard, load_checkpoint, read_card, save_checkpoint, shipped_checkpoint
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.scenes.dataset import HELD_OUT
from gslrm_mouse.scenes.tracer import raytrace

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def table():
    return load_sensitivity()


def test_every_perturbation_and_kind_is_there(table):
    expected = set()
    for knob, perturbation in PERTURBATIONS.items():
        points = [(kind, value) for kind in perturbation.kinds for value in perturbation.values]
        expected |= {(subject, knob, kind, value) for subject in ("head", "mouse") for kind, value in points}
    assert {(r["subject"], r["knob"], r["kind"], r["value"]) for r in table.rows} == expected


def test_rows_are_consistent(table):
    for row in table.rows:
        assert row["low"] <= row["iou"] <= row["high"]
        assert row["n"] == len(row["scenes"])
        assert abs(sum(row["scenes"])/row["n"] - row["iou"]) < 2e-4


def test_the_neutral_value_disturbs_nothing(table):
    for row in table.rows:
        if PERTURBATIONS[row["knob"]].neutral == row["value"]:
            assert abs(row["iou"] - row["iou_undisturbed"]) < 2e-3, row


def test_extreme_values(table):
    assert table.predict("unit", 120.).iou < .05
    assert table.predict("unit", 120., subject="head").iou < .05
    assert table.predict("focal", 2., "lie").high < table.predict("focal", 2.).low < table.predict("focal", 1.).low
    assert table.predict("views", 1).high < table.predict("views", 4).low


@pytest.mark.parametrize("subject", ["head", "mouse"])
def test_undisturbed_agrees_with_the_card(subject):
    "Scored as in the model card: four views, the model's own image size, no blur."
    model, card = load_checkpoint()
    options = dict(subjects=(subject,), knobs=("views",), values={"views": (4,)}, size=64, smooth=False)
    row = next(r for r in sensitivity(model, card, 6, **options))
    expected = card.training["held_out"][subject]["iou"]
    margin = row["high"] - row["low"] + .002 # the card has other cameras and 26 scenes more
    assert abs(row["iou"] - expected) < margin
    assert abs(.8*row["iou"] - expected) > margin # a model a fifth worse would be noticed


def test_a_new_measurement_repeats_the_table(table):
    model, card = load_checkpoint()
    scores = score_perturbation(model, trial("mouse", HELD_OUT + 4, card.domain), "distance", 1.5)
    for kind in PERTURBATIONS["distance"].kinds:
        stored = next(r for r in table.curve("distance", kind) if r["value"] == 1.5)["scenes"]
        assert abs(scores[kind]["iou"] - stored[4]) < .02
        assert abs(scores[kind]["iou"] - stored[5]) > 1e-4


def test_prediction_is_the_measurement_at_measured_points(table):
    for row in table.rows[::7]:
        predicted = table.predict(row["knob"], row["value"], row["kind"], row["subject"])
        assert predicted[:3] == pytest.approx((row["iou"], row["low"], row["high"]), abs=1e-9)


def test_prediction_interpolates_and_never_extrapolates(table):
    between = table.predict("focal", 1.5)
    below, above = table.predict("focal", 1.41).iou, table.predict("focal", 1.6).iou
    assert min(below, above) < between.iou < max(below, above)
    assert "interpolated" in between.said
    outside = table.predict("distance", 4.01)
    assert math.isnan(outside.iou) and "outside the measured 1.5 to 4" in outside.said
    assert math.isnan(table.predict_joint({"aspect": 1.1, "distance": 9.}).iou)


def test_focal_and_distance_undo_each_other(table):
    both = table.predict_joint({"focal": 1.4, "distance": 3.78}).iou
    assert both == pytest.approx(table.predict("dolly", 3.78).iou, abs=1e-3)
    assert both > table.predict_joint({"focal": 1.4}).iou


@pytest.mark.parametrize("knob, width", [("tight_narrow", .7), ("tight", 1.), ("tight_wide", 1.4)])
def test_zoom_and_size_together_are_read_from_the_curves_measured_for_them(table, knob, width):
    for row in table.curve(knob):
        predicted = table.predict_object(Shown(row["value"], width, row["coverage"]))
        assert predicted[:3] == pytest.approx((row["iou"], row["low"], row["high"]), abs=1e-3)
    narrow, middle, wide = (table.predict_object(Shown(2., w, .266)).iou for w in (.7, .84, 1.))
    assert narrow < middle < wide # as measured for this checkpoint at its ends
    smaller, larger = (table.predict_object(Shown(2., 1., size)).iou for size in (.12, .2))
    assert smaller < larger # as its curve of sizes


def test_zoom_and_size_beyond_the_measured_have_no_prediction(table):
    for shown, said in ((Shown(.8, 1., .2), "outside the measured 1 to 4"), (Shown(5., 1., .2), "outside the measured"),
                        (Shown(2., .5, .2), "visible width of 0.5"), (Shown(2., 1., .05), "relative object size")):
        predicted = table.predict_object(shown)
        assert math.isnan(predicted.iou) and said in predicted.said
        assert math.isnan(table.predict_joint({"aim": 2.}, shown=shown).iou)
    older = replace(table, rows=tuple(r for r in table.rows if r["knob"] != "tight_wide"))
    assert "extend_sensitivity measures them" in older.predict_object(Shown(2., 1., .2)).said


def test_zoom_and_size_are_one_share_of_several(table):
    shown = Shown(1.5, 1., .2)
    together = table.predict_joint({"aim": 4.}, shown=shown)
    alone, aim = table.predict_object(shown).iou, table.predict("aim", 4.).iou
    assert together.iou == pytest.approx(alone*aim/table.curve("aim")[0]["iou_undisturbed"])
    assert "zoom 1.5 to a relative size of 0.2" in together.said


def test_the_table_of_another_checkpoint_is_refused(tmp_path):
    path = tmp_path/"model.safetensors"
    path.write_bytes(shipped_checkpoint().read_bytes() + b"\0")
    sensitivity_file(path).write_bytes(sensitivity_file(shipped_checkpoint()).read_bytes())
    with pytest.raises(ValueError, match="curves of another network"): load_sensitivity(path)
    path.write_bytes(shipped_checkpoint().read_bytes())
    assert load_sensitivity(path).rows
    sensitivity_file(path).unlink()
    with pytest.raises(FileNotFoundError, match="no sensitivity table"): load_sensitivity(path)


@pytest.mark.parametrize("key, value", [
    ("n", None), ("iou_undisturbed", None), ("iou_undisturbed", [.5]), ("value", 10**100), ("scenes", []), ("knob", 3),
])
def test_rows_that_cannot_be_predicted_from_are_refused(tmp_path, key, value):
    content = json.loads(sensitivity_file(shipped_checkpoint()).read_text())
    if value is None: del content["rows"][3][key]
    else: content["rows"][3][key] = value
    path = tmp_path/"table.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not a sensitivity table") as e: load_sensitivity(path=path)
    assert len(str(e.value).splitlines()) == 1


@pytest.fixture
def of_mice(tmp_path): # an untrained checkpoint, and its table of one perturbation, with mice only
    network = GSLRM(GSLRMConfig(image_size=16, d=32, d_head=16, n_layer=1))
    domain = replace(read_card(shipped_checkpoint()).domain, image_size=16)
    path = save_checkpoint(tmp_path/"mice.safetensors", network, ModelCard(network.config, domain))
    measure_sensitivity(path, scenes=1, subjects=("mouse",), knobs=("aim",), values={"aim": (0., 4.)})
    return path


def test_only_the_subjects_of_a_table_are_extended(of_mice):
    before = load_sensitivity(of_mice).rows
    extend_sensitivity(of_mice, knobs=("aim", "tight"))
    after = load_sensitivity(of_mice).rows
    assert after[:len(before)] == before
    assert {(r["subject"], r["knob"]) for r in after[len(before):]} == {("mouse", "tight")}


def drawn(table, knobs): # colours of curves with several points, and what the legend names
    figure = draw_sensitivity(table, knobs)
    lines = [line for ax in figure.axes for line in ax.lines if line.get_marker() == "."]
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    plt.close(figure)
    return [line.get_color() for line in lines], named


def test_a_subject_that_a_table_lacks_is_added(of_mice):
    before = load_sensitivity(of_mice).rows
    extend_sensitivity(of_mice, knobs=("aim",), subjects=("head", "mouse"))
    table = load_sensitivity(of_mice)
    assert table.rows[:len(before)] == before
    assert {(r["subject"], r["knob"]) for r in table.rows[len(before):]} == {("head", "aim")}
    assert [(added["subject"], added["knobs"]) for added in table.facts["added"]] == [("head", ["aim"])]


@pytest.mark.parametrize("name", ["gslrm_64", "gslrm_128", "gslrm_any", "gslrm_any_128"])
def test_every_shipped_table_has_all_curves_of_heads_and_mice(name):
    measured = {(r["subject"], r["knob"], r["kind"], r["value"]) for r in load_sensitivity(name).rows}
    expected = {(subject, knob, kind, value) for subject in ("head", "mouse") for knob, p in PERTURBATIONS.items()
                for kind in p.kinds for value in p.values}
    assert measured == expected


def test_a_table_of_mice_is_drawn_without_heads(table):
    mice = replace(table, rows=tuple(r for r in table.rows if r["subject"] == "mouse"))
    colors, named = drawn(mice, ("focal", "views"))
    assert colors == ["C0"]*(4 + 1)
    assert "mouse" in named and "head" not in named


def test_a_table_of_both_is_drawn_with_both(table):
    colors, named = drawn(table, ("focal", "views"))
    assert colors == ["C1"]*4 + ["C0"]*4 + ["C1", "C0"]
    assert {"mouse", "head"} <= named


def test_a_curve_that_only_one_subject_has_is_drawn(table):
    without_views = [r for r in table.rows if (r["subject"], r["knob"]) != ("head", "views")]
    colors, _ = drawn(replace(table, rows=tuple(without_views)), ("views", "unit"))
    assert colors == ["C0"] + ["C1"]*2 + ["C0"]*2


def test_what_a_table_lacks_is_named(of_mice):
    mice = load_sensitivity(of_mice)
    with pytest.raises(ValueError, match="no curve 'views' in the table"):
        draw_sensitivity(mice, ("views",))
    plt.close("all")
    with pytest.raises(ValueError, match="the subjects mouse"):
        mice.curve("aim", subject="head")
    with pytest.raises(ValueError, match="no curve of 'head'.* the subjects mouse"):
        mice.predict_joint({"aim": 4.}, subject="head")


def test_a_table_is_never_written_over_another_file(tmp_path):
    out = tmp_path/"t.json"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"): measure_sensitivity(out=out, scenes=1)
    assert out.read_text() == "mine"


def test_points_move_with_the_principal_point():
    mouse = trial("mouse", HELD_OUT, read_card(shipped_checkpoint()).domain)
    points = torch.tensor([[.3, -.1, .2], [-.2, .4, -.1], [0., 0., 0.]])
    moved = shifted(mouse.cameras, .1, -.05).project(points) - mouse.cameras.project(points)
    assert torch.allclose(moved, torch.tensor([.1*64, -.05*64]).expand_as(moved), atol=1e-4)


def test_images_move_with_the_principal_point():
    mouse = trial("mouse", HELD_OUT, read_card(shipped_checkpoint()).domain)

    def centroids(cameras): # column and row of the silhouettes
        alpha, pixels = raytrace(mouse.scene, cameras).alpha, torch.arange(64)
        area = alpha.sum((1, 2))
        return (alpha.sum(1)*pixels).sum(-1)/area, (alpha.sum(2)*pixels).sum(-1)/area

    before, after = centroids(mouse.cameras), centroids(shifted(mouse.cameras, .125, -.0625))
    assert torch.allclose(after[0] - before[0], torch.full((6,), 8.), atol=.05)
    assert torch.allclose(after[1] - before[1], torch.full((6,), -4.), atol=.05)


def test_turned_cameras_stay_rotations_in_place():
    head = trial("head", HELD_OUT, read_card(shipped_checkpoint()).domain)
    cameras = replace(head.cameras, w2c=head.cameras.w2c.double())
    after = turned(cameras, 7., 5)
    identity = torch.eye(3, dtype=torch.float64).expand(6, 3, 3)
    assert torch.allclose(after.R @ after.R.mT, identity, atol=1e-6)
    assert torch.allclose(after.centers, cameras.centers, atol=1e-5)
    angle = (cameras.axes*after.axes).sum(-1).clamp(max=1).acos().rad2deg()
    assert torch.allclose(angle, torch.full((6,), 7., dtype=torch.float64), atol=1e-3)
