"""The study as it is used: stopped and continued, by seeds and by names, on a recording, from stored results.

And that no result of another network slips in."""
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gslrm_mouse.experiments.base import Arm, append_result, load_results
from gslrm_mouse.experiments.hull import HULL_ROWS, of_networks
from gslrm_mouse.experiments.plan import Plan, records_of
from gslrm_mouse.experiments.recipes import summary
from gslrm_mouse.experiments.registry import EXPERIMENTS, experiments
from gslrm_mouse.experiments.report import report_from, study
from gslrm_mouse.experiments.runner import planned_arms, run_arms, stored_parts
from gslrm_mouse.models.checkpoint import checkpoint_hash, shipped_checkpoint

ROOT = Path(__file__).parents[2]
RESULTS = ROOT/"nbs/results"
FAKE = '''
import os, time
from pathlib import Path
from gslrm_mouse.experiments.base import Arm, Experiment, Finding
from gslrm_mouse.models.checkpoint import checkpoint_hash

def arms(full, checkpoint):
    settings = dict(checkpoint=checkpoint_hash(checkpoint))
    return [Arm("{name}", speed, seed, settings) for seed in range(3 if full else 1) for speed in ("slow", "fast")]

def run(arm, checkpoint, cache):
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache/"calls", "a") as f: f.write(f"{{arm.experiment}} {{arm.name}} {{arm.seed}} {{os.getpid()}}\\n")
    time.sleep(.3)
    return [dict(iou=arm.seed/10, psnr=20., psnr_white=18., blob="x"*20000)]

def plot(done, folder): return []

def findings(done): return [Finding(claim="claim", measured=f"{{len(done)}} arms", verdict="open", why="")]

E = Experiment(name="{name}", question="?", arms=arms, run=run, plot=plot, findings=findings)
'''


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    "Two experiments of six conditions, in modules that worker processes find too."
    for name in ("north", "south"): (tmp_path/f"fake_{name}.py").write_text(FAKE.format(name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    return {name: (f"fake_{name}:E", True) for name in ("north", "south")}


def calls(cache): # experiment, condition, seed and process of each run
    return [line.split() for line in (cache/"calls").read_text().splitlines()]


def quiet(line): pass


def test_two_at_a_time_write_whole_lines(fakes, tiny_checkpoint, tmp_path):
    plan, results, cache, said = Plan(str(tiny_checkpoint), full=True), tmp_path/"results", tmp_path/"cache", []
    assert run_arms(plan, results, cache, jobs=2, known=fakes, say=said.append) == []
    check_progress(said, "12 conditions of 2 experiments", "north|south", 12)
    processes = {process for *_, process in calls(cache)}
    assert len(processes) == 2 and str(os.getpid()) not in processes
    expected = sorted((speed, seed) for speed in ("slow", "fast") for seed in range(3))
    for name in fakes:
        lines = load_results(results/f"{name}.jsonl")
        assert sorted((line["name"], line["seed"]) for line in lines) == expected
        assert all(line["seconds"] > .2 for line in lines)
    run_arms(plan, results, cache, jobs=2, known=fakes, say=quiet)
    assert len(calls(cache)) == 12


def check_progress(said, heading, names, n):
    "Each line names the experiment and the time left."
    assert said[0].startswith(f"{heading}, 0 of them stored")
    assert [line.split("·")[0].strip() for line in said[1:]] == [f"{i}/{n}" for i in range(1, n + 1)]
    expected = re.compile(rf"· ({names}): (slow|fast), seed \d · \d+ s · about \d+ (s|min) left$")
    assert all(expected.search(line) for line in said[1:-1])
    assert said[-1].endswith("finished")


def test_progress_names_the_experiment_and_the_time_left(fakes, tiny_checkpoint, tmp_path):
    "In one process; `test_two_at_a_time_write_whole_lines` looks at two."
    said = []
    plan = Plan(str(tiny_checkpoint), full=True, only=("south",))
    run_arms(plan, tmp_path/"results", tmp_path/"cache", jobs=1, known=fakes, say=said.append)
    check_progress(said, "6 conditions of 1 experiment", "south", 6)


def test_killed_and_continued(fakes, tiny_checkpoint, tmp_path):
    out, cache = tmp_path/"study", tmp_path/"study/cache"
    code = ("from gslrm_mouse.experiments.report import study; from gslrm_mouse.experiments.plan import Plan; "
            f"study({str(out)!r}, Plan({str(tiny_checkpoint)!r}, full=True), known={fakes!r})")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 60
    while time.time() < end:
        if (cache/"calls").is_file() and len(calls(cache)) >= 4: break
        time.sleep(.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 4 <= len(calls(cache)) < 12

    sections, failed = study(out, Plan(str(tiny_checkpoint), full=True), known=fakes, say=quiet)
    assert failed == []
    assert [len(section.done) for section in sections] == [6, 6]
    after = [tuple(call[:3]) for call in calls(cache)]
    assert len(after) <= 13 # only the condition that was running is run twice
    assert len(set(after)) == 12


def test_seeds_names_and_folders(fakes, tiny_checkpoint, tmp_path):
    plan = Plan(str(tiny_checkpoint), full=True, only=("south",), seeds=(2,))
    study(tmp_path/"study", plan, results=tmp_path/"kept", cache=tmp_path/"cache", known=fakes, say=quiet)
    assert [call[:3] for call in calls(tmp_path/"cache")] == [["south", "slow", "2"], ["south", "fast", "2"]]
    assert [x.name for x in (tmp_path/"kept").iterdir()] == ["south.jsonl"]
    assert not (tmp_path/"study/results").exists()
    page = (tmp_path/"study/index.html").read_text()
    assert "seeds 2" in page and "Not in this report: north" in page


def test_threads_as_torch_decides(fakes, tiny_checkpoint, tmp_path):
    plan = Plan(str(tiny_checkpoint), only=("south",))
    failed = run_arms(plan, tmp_path/"results", tmp_path/"cache", threads=0, known=fakes, say=quiet)
    assert failed == []
    assert len(load_results(tmp_path/"results/south.jsonl")) == 2


@pytest.mark.parametrize("jobs", [0, -1])
def test_less_than_one_at_a_time_is_refused_before_anything_is_written(jobs, fakes, tiny_checkpoint, tmp_path):
    with pytest.raises(ValueError, match=f"^jobs is {jobs}; the number of conditions at a time should be 1 or more$"):
        study(tmp_path/"study", Plan(str(tiny_checkpoint)), jobs=jobs, known=fakes, say=quiet)
    assert not (tmp_path/"study").exists()


def test_a_named_experiment_without_conditions_is_refused(fakes, tiny_checkpoint, tmp_path):
    "The quick study has none of these; a study of nothing must not end as a success."
    with pytest.raises(ValueError, match="^adapters is part of the full study only; add --full$"):
        study(tmp_path/"study", Plan(str(tiny_checkpoint), only=("adapters",)), say=quiet)
    assert not (tmp_path/"study").exists()

    without = FAKE.format(name="empty").replace("range(3 if full else 1)", "range(0)")
    (tmp_path/"fake_empty.py").write_text(without)
    known = fakes | {"empty": ("fake_empty:E", True)}
    with pytest.raises(ValueError, match="^empty has no condition, not even in the full study$"):
        planned_arms(Plan(str(tiny_checkpoint), only=("south", "empty")), known=known)


def test_adapters_for_a_recording_need_the_full_study(tiny_checkpoint, recording):
    plan = Plan(str(tiny_checkpoint), only=("adapters",), recording=str(recording))
    with pytest.raises(ValueError, match="^adapters is part of the full study only; add --full$"):
        planned_arms(plan)
    assert [len(arms) for _, arms in planned_arms(replace(plan, full=True))] == [4] # three seeds and the visual hull


def test_a_lost_process_costs_its_conditions_only(fakes, tiny_checkpoint, tmp_path):
    module = tmp_path/"fake_north.py"
    module.write_text(module.read_text().replace("time.sleep(.3)", "arm.seed == 2 and os.kill(os.getpid(), 9)"))
    plan = Plan(str(tiny_checkpoint), full=True, only=("north",))
    failed = run_arms(plan, tmp_path/"results", tmp_path/"cache", jobs=2, known=fakes, say=quiet)
    stored = load_results(tmp_path/"results/north.jsonl")
    assert failed and len(stored) + len(failed) == 6
    assert all("terminated abruptly" in message for *_, message in failed)


def test_an_interrupt_that_torch_makes_an_error_ends_the_study(fakes, tiny_checkpoint, tmp_path, monkeypatch):
    "Ctrl-C while torch reads an element of a storage becomes a ValueError there; no condition has failed for that."
    def interrupted(storage, i):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the interrupt was ignored")

    module = tmp_path/"fake_north.py"
    reads = "torch.asarray(torch.UntypedStorage(8), dtype=torch.uint8)"
    module.write_text("import torch" + module.read_text().replace("time.sleep(.3)", f"arm.seed == 1 and {reads}"))
    monkeypatch.delitem(sys.modules, "fake_north", raising=False)
    monkeypatch.setattr(torch.UntypedStorage, "__getitem__", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(ValueError, match="could not determine the shape"):
            torch.asarray(torch.UntypedStorage(8), dtype=torch.uint8)
        plan = Plan(str(tiny_checkpoint), full=True, only=("north",))
        with pytest.raises(KeyboardInterrupt):
            run_arms(plan, tmp_path/"results", tmp_path/"cache", jobs=1, known=fakes, say=quiet)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert [line["seed"] for line in load_results(tmp_path/"results/north.jsonl")] == [0, 0]


def test_another_network_is_excluded_and_counted(tiny_checkpoint, tmp_path):
    shutil.copytree(RESULTS, tmp_path/"results")
    experiment = experiments(Plan(str(tiny_checkpoint), only=("recipes",)))[0]
    arm = experiment.arms(True, tiny_checkpoint)[2]
    measured = records_of(load_results(RESULTS/"recipes.jsonl"), "iou")
    foreign = [dict(record, iou=.99) for record in measured if record["frame"] == "2"]
    append_result(tmp_path/"results/recipes.jsonl", arm, foreign, seconds=1.)

    report_from(tmp_path/"results", tmp_path/"with", only=("recipes",))
    report_from(RESULTS, tmp_path/"without", only=("recipes",))
    page, plain = (html.unescape((tmp_path/name/"index.html").read_text()) for name in ("with", "without"))
    assert f"1 condition of checkpoint {checkpoint_hash(tiny_checkpoint)}" in page
    assert "Excluded: 1 condition" not in plain
    page, plain = (re.sub(r" Excluded:[^<]*", "", text) for text in (page, plain))
    assert page.count("0.99") == plain.count("0.99")

    sections = report_from(tmp_path/"results", tmp_path/"tiny", tiny_checkpoint)
    # these compare shipped networks, whichever is studied
    shipped = ("variety", "dependence", "adaptation", "usable", "one_image")
    others = [s for s in sections if s.done and s.experiment.name not in shipped]
    with_network = [s for s in others if "checkpoint" in s.done[0]["settings"]]
    assert [(s.experiment.name, len(s.done)) for s in with_network] == [("recipes", 1)]


@pytest.fixture
def recorded_results(tmp_path):
    "A folder with stored results of a recording and nothing else, as a study of one leaves it."
    folder = tmp_path/"of_recording"
    folder.mkdir()
    for name in ("doctor", "recipes"):
        shutil.copy(RESULTS/f"recording_{name}.jsonl", folder)
    return folder


def test_a_report_of_a_recording_alone(recorded_results, tmp_path):
    "No sentence about procedural mice, and an experiment can be selected by the name that it was run by."
    sections = report_from(recorded_results, tmp_path/"all")
    assert [s.experiment.name for s in sections if s.done] == ["recording_doctor", "recording_recipes"]
    page = html.unescape((tmp_path/"all/index.html").read_text())
    assert "twelve mice" not in page and "Not in this report" not in page

    selected = report_from(recorded_results, tmp_path/"recipes", only=("recipes",))
    assert [s.experiment.name for s in selected if s.done] == ["recording_recipes"]
    assert "Recording: six preprocessing methods" in (tmp_path/"recipes/index.html").read_text()
    with pytest.raises(ValueError, match="^there is no experiment 'recipe'; there are recipes, factors"):
        report_from(recorded_results, tmp_path/"wrong", only=("recipe",))

    report_from(RESULTS, tmp_path/"both", only=("recipes",))
    assert "twelve mice" in (tmp_path/"both/index.html").read_text()


def test_a_recording_measured_with_other_settings_is_excluded(recorded_results):
    "The last ones are shown: the frames of one setting, not the mean over all settings."
    line = of_networks(load_results(recorded_results/"recording_recipes.jsonl"))[-1]
    settings = line["settings"] | dict(smooth=not line["settings"]["smooth"])
    for frame in (5, 6):
        arm = Arm(line["experiment"], f"frame {frame}", 0, settings | dict(frame=frame))
        append_result(recorded_results/"recording_recipes.jsonl", arm, line["records"], seconds=1.)
    others = {"zoom": EXPERIMENTS["zoom"]}
    section, = stored_parts(recorded_results, shipped_checkpoint(), only=("recipes",), known=others)
    assert [x["settings"]["frame"] for x in section.done] == [5, 6]
    assert section.others == {"other settings": 8} # the visual hulls of the other frames, too


def test_the_visual_hull_of_a_frame_stands_beside_every_setting(recorded_results):
    line = of_networks(load_results(recorded_results/"recording_recipes.jsonl"))[-1]
    settings = line["settings"] | dict(smooth=not line["settings"]["smooth"])
    arm = Arm(line["experiment"], line["name"], 0, settings)
    append_result(recorded_results/"recording_recipes.jsonl", arm, line["records"], seconds=1.)
    others = {"zoom": EXPERIMENTS["zoom"]}
    section, = stored_parts(recorded_results, shipped_checkpoint(), only=("recipes",), known=others)
    assert [x["name"] for x in section.done] == [line["name"], f"visual hull, {line['name']}"]
    rows = [row[0] for row in section.experiment.table(section.done).rows]
    assert rows[-2:] == list(HULL_ROWS)


def test_the_stored_results_are_complete_and_of_the_shipped_checkpoint():
    complete = {s.experiment.name for s in stored_parts(RESULTS, shipped_checkpoint()) if len(s.done) == s.asked}
    assert complete >= {"recipes", "factors", "control", "zoom", "gap"}


def test_the_visual_hull_stands_in_the_tables():
    "The domain gap and the doctor score no reconstruction; the adaptation compares networks before and after."
    without = {"gap", "adaptation", "recording_doctor"}
    for section in stored_parts(RESULTS, shipped_checkpoint()):
        name = section.experiment.name
        make_table = section.experiment.table
        if name in without or make_table is None: continue
        rows = make_table(section.done).rows
        assert any("visual hull" in str(cell) for row in rows for cell in row), name


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.jsonl")), ids=lambda file: file.stem)
def test_stored_results_hold_no_path_and_no_image_of_a_recording(file):
    assert not re.search(r"/(home|tmp|work|root|mnt)/", file.read_text())
    if not file.name.startswith("recording"): return
    for line in load_results(file):
        for record in line["records"]:
            assert not {"picture", "png"} & set(record)
            assert len(json.dumps(record)) < 5000


def test_the_stored_domain_gap_is_measured_again():
    "The head of the domain gap, with fewer samples."
    gap = experiments(Plan(str(shipped_checkpoint()), only=("gap",)))[0]
    arm = gap.arms(True, None)[2]
    stored = {line["key"]: line for line in load_results(RESULTS/"gap.jsonl")}[arm.key]
    again = gap.run(Arm("gap", "mouse", 0, arm.settings | dict(n=6)), None, None)[0]
    assert again["symmetry"][0] == pytest.approx(stored["records"][0]["symmetry"][0], abs=.12)


def test_a_stored_mouse_of_the_factorial_is_measured_again(tmp_path):
    "All sixteen cells of one mouse."
    checkpoint = shipped_checkpoint()
    factors = experiments(Plan(str(checkpoint), only=("factors",)))[0]
    lines = load_results(RESULTS/"factors.jsonl", checkpoint=checkpoint_hash(checkpoint), scene=1)
    stored = {record["cell"]: record["iou"] for record in records_of(of_networks(lines))}
    again = factors.run(factors.arms(False, checkpoint)[1], checkpoint, tmp_path)
    assert all(abs(record["iou"] - stored[record["cell"]]) < .02 for record in again)


@pytest.mark.slow
def test_a_recording_by_the_command(run_command, recording, tmp_path):
    "The exact camera beats millimetres; images of the recording lie in the report and in no stored line."
    out = tmp_path/"study"
    got = run_command("study", "--recording", recording, "--truth", recording/"truth/heldout_views", "--frames", "20",
                      "--only", "doctor,recipes", "--out", out, "--jobs", 1)
    assert got.returncode == 0, got.stderr
    stored = load_results(out/"results/recording_recipes.jsonl")
    iou = {row["arm"]: row["iou"][0] for row in summary(records_of(stored, "iou"))}
    assert iou["exact"] > iou["mm"] + .2
    assert str(recording) not in json.dumps(stored) and "picture" not in json.dumps(stored)
    page = (out/"index.html").read_text()
    images = re.findall(r'src="([^"]+)"', page)
    assert len(images) == page.count("<figure>") == 1
    assert all((out/image).is_file() for image in images)
    assert "<h1>GS-LRM on the recording" in page
    assert "This rig will work" in got.stdout and "report:" in got.stdout
    assert "Recording: diagnosis" in got.stderr


def test_without_truth_each_camera_is_held_out_in_turn(recording, tmp_path):
    plan = Plan(str(shipped_checkpoint()), recording=str(recording), frames=(5,), only=("recipes",))
    experiment = experiments(plan, tmp_path)[0]
    arm = experiment.arms(False, plan.checkpoint)[0]
    exact_only = Arm(arm.experiment, arm.name, 0, arm.settings | dict(recipes=["exact"]))
    records = experiment.run(exact_only, plan.checkpoint, tmp_path)
    scored = records_of([dict(records=records)], "iou")
    novel = {(record["frame"], record["camera"]) for record in scored if record["split"] == "novel"}
    assert novel == {(f"5 without camera {i}", f"camera {i}") for i in range(6)}


def test_a_folder_with_other_contents_is_refused(run_command, tmp_path):
    (tmp_path/"thesis").mkdir()
    (tmp_path/"thesis/chapter.tex").touch()
    got = run_command("study", "--from-results", RESULTS, "--out", tmp_path/"thesis")
    assert got.returncode == 2
    assert "is no study's" in got.stderr and "Traceback" not in got.stderr
