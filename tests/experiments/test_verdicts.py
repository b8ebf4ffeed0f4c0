"The verdicts of the study on results that differ from the stored ones: too few mice, other numbers, missing scores."
import math
from copy import deepcopy
from pathlib import Path

import pytest

from gslrm_mouse.experiments.plan import records_of
from gslrm_mouse.experiments.recipes import recipes_scores, summary, verdict
from gslrm_mouse.experiments.runner import stored_parts
from gslrm_mouse.models.checkpoint import shipped_checkpoint

RESULTS = Path(__file__).parents[2]/"nbs/results"


@pytest.fixture
def stored_section():
    "An experiment with its stored conditions, which the test may change."
    def section_of(name):
        section = stored_parts(RESULTS, shipped_checkpoint(), only=(name,))[0]
        return section.experiment, deepcopy(section.done)
    return section_of


def finding_about(findings, words):
    found = [finding for finding in findings if words in finding.claim]
    assert len(found) == 1
    return found[0]


def test_a_gradient_norm_that_is_not_finite_has_exploded(stored_section):
    "Stored results have None for infinity, and the median of such a run is not a number."
    experiment, done = stored_section("history_b")
    assert finding_about(experiment.findings(done), "Gradient norms").verdict == "not reproduced"
    exploding = next(line for line in done if line["name"] == "heads, exact, 0.0001")
    trace = next(record for record in exploding["records"] if record["split"] == "trace")
    trace["norm"][-1] = None
    trace["median"] = None
    finding = finding_about(experiment.findings(done), "Gradient norms")
    assert finding.verdict == "reproduced"
    assert "largest norms over their median: heads, exact, 0.0001 not finite; heads, exact, 0.01" in finding.measured
    assert "0.0001 the squared gradient lies in" in finding.why


@pytest.mark.parametrize("name", ["control", "zoom", "refine"])
def test_three_mice_are_too_few_for_a_verdict(name, stored_section):
    "As in the quick study; the tables say so beside each interval."
    experiment, done = stored_section(name)
    mice = sorted({record["scene"] for record in records_of(done, "scene")})
    three = [line for line in done if line["settings"]["scene"] in mice[:3]]
    assert {f.verdict for f in experiment.findings(done)} <= {"reproduced", "partly", "not reproduced", "answered"}
    assert {(f.verdict, f.why) for f in experiment.findings(three)} == {("open", "too few mice")}


def test_three_scenes_are_too_few_for_a_verdict(stored_section):
    experiment, done = stored_section("variety")
    assert not any(f.verdict == "open" for f in experiment.findings(done))
    three = [line for line in done if line["seed"] < 3]
    assert [(f.verdict, f.why) for f in experiment.findings(three)] == [("open", "too few scenes")]*4


def test_two_starts_are_compared_with_their_numbers_of_gaussians(stored_section):
    "Fits from the network have a tenth of the Gaussians of those from the visual hull."
    experiment, done = stored_section("refine")
    start = finding_about(experiment.findings(done), "needed at all")
    assert "from the visual hull 0.93 (19.2 dB, 1000 Gaussians), from the network 0.93 (18.0 dB, 153" in start.measured
    assert start.why.endswith("; the two also differ in the number of their Gaussians")
    assert "mean number of Gaussians" in experiment.table(done).head
    for record in records_of(done, "iou"):
        record["n_gaussians"] = 1000
    assert "number" not in finding_about(experiment.findings(done), "needed at all").why


def invented(**iou_of_method):
    "Records of six mice, each with an image; a method has an IoU for every mouse."
    return [
        dict(arm=method, frame=str(i), split=split, iou=value, psnr=20., psnr_fg=10., psnr_white=18.)
        for method, iou in iou_of_method.items() for i, value in enumerate(iou) for split in ("novel", "input")]


def test_methods_are_compared_mouse_by_mouse():
    "Mice differ much, the methods little but on every mouse in the same way: their intervals overlap."
    exact = [.2, .3, .4, .5, .6, .7]
    a_little_more = [iou + gain for iou, gain in zip(exact, (.02, .03, .02, .03, .02, .03))]
    better = verdict(invented(mm=[0.]*6, exact=exact, pixel_based=a_little_more))
    assert "not `exact`" in better and "shows the network a larger animal" in better
    other = verdict(invented(exact=exact, similarity=a_little_more))
    assert "the difference is +0.025 [" in other and "larger animal" not in other
    by_chance = [iou + gain for iou, gain in zip(exact, (.3, -.2, .1, -.1, .2, -.2))]
    assert "cannot tell them apart" in verdict(invented(exact=exact, pixel_based=by_chance))
    assert "cannot tell them apart" in verdict(invented(exact=exact[:3], pixel_based=a_little_more[:3])) # too few


def test_an_image_without_foreground_has_no_foreground_psnr():
    "Stored records have None there; the mean is over the other images."
    records = invented(mm=[.1]*6, exact=[.6]*6)
    records[0]["psnr_fg"] = None
    scores = {row["arm"]: row["psnr_fg"] for row in summary(records)}
    assert scores == {"mm": 10., "exact": 10.}
    assert "10.00" in str(recipes_scores(records))
    for record in records:
        record["psnr_fg"] = None
    assert math.isnan(summary(records)[0]["psnr_fg"])
