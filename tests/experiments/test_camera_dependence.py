"""Conditions of the comparison, findings that follow the numbers, and stored results that are measured again."""
import math
from pathlib import Path

import pytest
import torch
from gslrm_mouse.evaluation.dependence import DOSES, Dose
from gslrm_mouse.experiments.base import VERDICTS, Arm, load_results
from gslrm_mouse.experiments.dependence import NETWORKS, dependence_arms, dependence_findings, dependence_models
from gslrm_mouse.experiments.dependence import dependence_of, dependence_run, dependence_table, home_score
from gslrm_mouse.experiments.registry import EXPERIMENTS, OTHER_FINDINGS

torch.set_num_threads(1)
RESULTS = Path(__file__).parents[2]/"nbs/results/dependence.jsonl"
ONE, MANY = NETWORKS


def scene(subject, home, told, consistent, is_told=True):
    shared = dict(subject=subject, is_told=is_told, value=1., psnr=20., psnr_fg=14., psnr_white=9.)
    first = dict(way="home", knob="none", pixels=0., iou=home, iou_registered=home, iou_oracle=home)
    doses = [dict(way="told", knob="aim", pixels=m, iou=home*kept, iou_as_told=home*kept) for m, kept in told]
    doses += [dict(way="gauge", knob="unit", pixels=0., iou=home, iou_as_told=0.)]
    doses += [dict(way="consistent", knob="roll", pixels=0., iou=home*consistent)]
    return [shared | record for record in (first, *doses)]


def arm(name, seed, **kwargs):
    records = [r for subject in ("head", "mouse") for r in scene(subject, .8, **kwargs)]
    return dict(name=name, seed=seed, settings={}, seconds=1., records=records)


def test_every_model_has_as_many_scenes_and_all_keys_differ():
    full, quick = dependence_arms(True, None), dependence_arms(False, None)
    assert len({a.key for a in full + quick}) == len(full) + len(quick)
    for name in dependence_models():
        assert sorted(a.seed for a in full if a.name == name) == list(range(6))
    assert {Dose(*dose) for dose in full[0].settings["doses"]} == set(DOSES)
    assert {a.name for a in quick} >= {ONE, MANY}
    hashes = {a.name: a.settings.get("checkpoint") for a in full}
    assert hashes[ONE] == hashes[f"{ONE}, 4 views"] != hashes[MANY]


def test_the_open_row_is_gone_and_its_question_is_answered_here():
    assert "dependence" in EXPERIMENTS
    assert not any("Zero123" in finding.claim for finding in OTHER_FINDINGS)
    claims = [finding.claim for finding in dependence_findings([arm(ONE, 0, told=[(1., .9), (9., .2)], consistent=.8)])]
    assert sum("Zero123++" in claim for claim in claims) == 1


def test_numbers_by_hand():
    done = [arm(ONE, i, told=[(1., .75), (4., .25)], consistent=.6) for i in range(2)]
    numbers = dependence_of(done, ONE)
    assert math.isclose(numbers.told.mean, .5) and math.isclose(numbers.unfamiliar.mean, .4)
    assert math.isclose(numbers.half.mean, 2.) and numbers.told.n == 4
    assert math.isclose(home_score(done, ONE, "iou").mean, .8)
    row = next(row for row in dependence_table(done).rows if row[0] == ONE)
    assert row[1] == "very high / badly" and row[2].startswith("2.0 px") and row[-1] == "0.80 → 0.80 → 0.80"


@pytest.mark.parametrize("unfamiliar, words", [(.95, "the training's"), (.6, "both alike")])
def test_the_verdict_follows_the_numbers(unfamiliar, words):
    done = [arm(ONE, i, told=[(1., .9), (9., .2)], consistent=.6 + .01*(i % 2)) for i in range(4)]
    done += [arm(MANY, i, told=[(1., .9), (9., .2)], consistent=unfamiliar + .01*(i // 2)) for i in range(4)]
    found = dependence_findings(done)
    assert words in found[0].why
    assert all(f.verdict in VERDICTS for f in found)


def test_a_model_that_is_not_told_has_no_half_dose():
    done = [arm("mean shape", i, told=[(1., 1.), (9., 1.)], consistent=.9, is_told=False) for i in range(2)]
    row = dependence_table(done).rows[0]
    assert row[2:4] == ["cannot be misinformed", "0 by construction; as told 0.00"]


@pytest.mark.skipif(not RESULTS.is_file(), reason="nbs/results/dependence.jsonl is not there")
def test_stored_results_are_measured_again():
    "Two doses of one scene, by one baseline and one network."
    stored = {} # of the full and of the quick study
    for line in load_results(RESULTS):
        stored.setdefault((line["name"], line["seed"]), []).extend(line["records"])
    wanted = {MANY: [("told", "aim", 3.), ("consistent", "roll", 20.)], "mean shape": [("told", "aim", 10.)]}
    for name, doses in wanted.items():
        again = Arm("dependence", name, 0, dict(scene=0, subjects=["mouse"], registered=[], doses=doses))
        for record in dependence_run(again):
            same = ("subject", "way", "knob", "value")
            before = next(r for r in stored[name, 0] if all(r[key] == record[key] for key in same))
            assert abs(before["iou"] - record["iou"]) < .01
            assert math.isclose(before["pixels"], record["pixels"], rel_tol=.01, abs_tol=1e-3)
