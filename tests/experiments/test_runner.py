"The study as it is used: stopped and gone on with, by seeds and by names, on a recording, from stored results; and that nothing of another network slips in."
import html, json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
from gslrm_mouse.experiments.base import Arm, append_result, load_results
from gslrm_mouse.cameras.domain import CameraDomain
from gslrm_mouse.models.checkpoint import ModelCard, checkpoint_hash, save_checkpoint, shipped_checkpoint
from gslrm_mouse.experiments.plan import Plan, records_of
from gslrm_mouse.experiments.registry import EXPERIMENTS, experiments
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.experiments.report import report_from, study
from gslrm_mouse.experiments.runner import run_arms, stored_parts

ROOT = Path(__file__).parents[2]
RESULTS = ROOT/"nbs/results"
FAKE = '''
import os, time
from pathlib import Path
from gslrm_mouse.experiments.base import Arm, Experiment, Finding
from gslrm_mouse.models.checkpoint import checkpoint_hash
def arms(full, checkpoint): return [Arm("{name}", n, s, dict(checkpoint=checkpoint_hash(checkpoint))) for s in range(3 if full else 1) for n in ("slow", "fast")]
def run(arm, checkpoint, cache):
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache/"calls", "a") as f: f.write(f"{{arm.experiment}} {{arm.name}} {{arm.seed}} {{os.getpid()}}\\n")
    time.sleep({sleep}); return [dict(iou=arm.seed/10, psnr=20., psnr_white=18., blob="x"*20000)]
E = Experiment("{name}", "?", arms, run, lambda done, folder: [], lambda done: [Finding("claim", f"{{len(done)}} arms", "open", "")])
'''


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    "Two experiments of six arms, in modules which worker processes find too."
    for name in ("north", "south"): (tmp_path/f"fake_{name}.py").write_text(FAKE.format(name=name, sleep=.3))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    return {n: (f"fake_{n}:E", True) for n in ("north", "south")}


@pytest.fixture
def tiny(tmp_path):
    net = GSLRM(GSLRMConfig(image_size=32, d=64, n_layer=1))
    return save_checkpoint(tmp_path/"tiny.safetensors", net, ModelCard(net.config, CameraDomain(image_size=32)))


def calls(cache): return [x.split()[:3] for x in (cache/"calls").read_text().splitlines()]
def quiet(*_): pass
def cli(*args, **kw): return subprocess.run([sys.executable, "-c", "from gslrm_mouse.cli import main; main()", *map(str, args)], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(ROOT)), **kw)


def test_two_at_a_time_write_whole_lines(fakes, tiny, tmp_path):
    failed = run_arms(Plan(str(tiny), full=True), tmp_path/"r", tmp_path/"c", jobs=2, known=fakes, say=quiet)
    assert failed == [] and len({x.split()[3] for x in (tmp_path/"c/calls").read_text().splitlines()}) == 2         # two processes, neither of them this one
    for n in fakes: assert sorted((x["name"], x["seed"]) for x in load_results(tmp_path/f"r/{n}.jsonl")) == sorted((n, s) for n in ("slow", "fast") for s in range(3))
    assert all(.2 < x["seconds"] < 30 for x in load_results(tmp_path/"r/north.jsonl"))
    run_arms(Plan(str(tiny), full=True), tmp_path/"r", tmp_path/"c", jobs=2, known=fakes, say=quiet)
    assert len(calls(tmp_path/"c")) == 12


def test_killed_and_gone_on_with(fakes, tiny, tmp_path):
    code = f"from gslrm_mouse.experiments.report import study; from gslrm_mouse.experiments.plan import Plan; study({str(tmp_path/'s')!r}, Plan({str(tiny)!r}, full=True), known={fakes!r})"
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 60
    while not ((tmp_path/"s/cache/calls").is_file() and len(calls(tmp_path/"s/cache")) >= 4) and time.time() < end: time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    before = calls(tmp_path/"s/cache")
    assert 4 <= len(before) < 12
    parts, failed = study(tmp_path/"s", Plan(str(tiny), full=True), known=fakes, say=quiet)
    after = calls(tmp_path/"s/cache")
    assert failed == [] and [len(q.done) for q in parts] == [6, 6] and len(after) <= 13 and len({tuple(x) for x in after}) == 12         # only the arm it was at is run twice


def test_seeds_and_names_choose_and_results_lie_where_they_are_told(fakes, tiny, tmp_path):
    study(tmp_path/"s", Plan(str(tiny), full=True, only=("south",), seeds=(2,)), results=tmp_path/"kept", cache=tmp_path/"c", known=fakes, say=quiet)
    assert calls(tmp_path/"c") == [["south", "slow", "2"], ["south", "fast", "2"]] and sorted(x.name for x in (tmp_path/"kept").iterdir()) == ["south.jsonl"] and not (tmp_path/"s/results").exists()
    page = (tmp_path/"s/index.html").read_text()
    assert "seeds 2" in page and "Not in this report: north" in page


def test_a_lost_process_costs_its_arms_only(fakes, tiny, tmp_path):
    (tmp_path/"fake_north.py").write_text((tmp_path/"fake_north.py").read_text().replace("time.sleep(0.3)", "os.kill(os.getpid(), 9) if arm.seed == 2 else None"))
    failed = run_arms(Plan(str(tiny), full=True, only=("north",)), tmp_path/"r", tmp_path/"c", jobs=2, known=fakes, say=quiet)
    kept = load_results(tmp_path/"r/north.jsonl")
    assert failed and len(kept) + len(failed) == 6 and all("terminated abruptly" in w for *_, w in failed)


def test_another_network_is_left_out_and_counted(tiny, tmp_path):
    shutil.copytree(RESULTS, tmp_path/"r")
    e = experiments(Plan(str(tiny), only=("recipes",)))[0]
    arm = e.arms(True, tiny)[2]
    records = [dict(r, iou=.99) for r in records_of(load_results(RESULTS/"recipes.jsonl"), "iou") if r["frame"] == "2"]
    append_result(tmp_path/"r/recipes.jsonl", arm, records, 1.)
    report_from(tmp_path/"r", tmp_path/"a")
    report_from(RESULTS, tmp_path/"b")
    a, b = (html.unescape((tmp_path/x/"index.html").read_text()) for x in "ab")
    assert f"1 arm of checkpoint {checkpoint_hash(tiny)}" in a and "Left out: 1 arm" not in b and re.sub(r" Left out:[^<]*", "", a).count("0.99") == re.sub(r" Left out:[^<]*", "", b).count("0.99")
    mine = report_from(tmp_path/"r", tmp_path/"m", tiny)
    assert [(p.experiment.name, len(p.done)) for p in mine if p.done and "checkpoint" in p.done[0]["settings"]] == [("recipes", 1)]


def test_the_stored_results_are_this_checkpoints_and_hold_no_picture_of_a_recording():
    parts = {p.experiment.name: p for p in stored_parts(RESULTS, shipped_checkpoint())}
    assert {n for n, p in parts.items() if not n.startswith("recording") and len(p.done) == p.asked} >= {"recipes", "factors", "control", "zoom", "gap"}
    for file in RESULTS.glob("*.jsonl"):
        text = file.read_text()
        assert not re.search(r"/(home|tmp|work|root|mnt)/", text), file
        if file.name.startswith("recording"): assert all(not {"picture", "png"} & set(r) and len(json.dumps(r)) < 5000 for x in load_results(file) for r in x["records"])


def test_committed_numbers_are_measured_again(tmp_path):
    "One arm anew: the head of the domain gap, and a mouse of the factorial's sixteen cells."
    e = {x.name: x for x in experiments(Plan(str(shipped_checkpoint())))}
    gap = e["gap"].arms(True, None)[2]
    kept = {x["key"]: x for x in load_results(RESULTS/"gap.jsonl")}[gap.key]
    small = e["gap"].run(Arm("gap", "mouse", 0, gap.settings | dict(n=6)), None, None)[0]
    assert small["symmetry"][0] == pytest.approx(kept["records"][0]["symmetry"][0], abs=.12)
    arm = e["factors"].arms(False, shipped_checkpoint())[1]
    cells = {r["cell"]: r for x in load_results(RESULTS/"factors.jsonl", checkpoint=checkpoint_hash(shipped_checkpoint())) if x["settings"]["scene"] == 1 for r in x["records"]}
    assert all(abs(r["iou"] - cells[r["cell"]]["iou"]) < .02 for r in e["factors"].run(arm, shipped_checkpoint(), tmp_path))


def test_a_recording_by_the_command(recording, tmp_path):
    "The command on a recording: exact beats millimetres; its pictures lie in the report and in no line that is kept."
    got = cli("study", "--recording", recording, "--truth", recording/"truth/heldout_views", "--frames", "20", "--only", "doctor,recipes", "--out", tmp_path/"s", "--jobs", 1)
    assert got.returncode == 0, got.stderr
    from gslrm_mouse.experiments.recipes import summary
    kept = load_results(tmp_path/"s/results/recording_recipes.jsonl")
    iou = {r["arm"]: r["iou"][0] for r in summary(records_of(kept, "iou"))}
    assert iou["exact"] > iou["mm"] + .2
    page = (tmp_path/"s/index.html").read_text()
    assert all((tmp_path/"s"/p).is_file() for p in re.findall(r"src='([^']+)'", page)) and page.count("<figure>") == 1 and str(recording) not in json.dumps(kept) and "picture" not in json.dumps(kept)
    assert "fit: novel-view IoU" in got.stdout and "recording_doctor" in got.stderr and "report:" in got.stdout


def test_without_truth_cameras_are_left_out_in_turn(recording, tmp_path):
    plan = Plan(str(shipped_checkpoint()), recording=str(recording), frames=(5,), only=("recipes",))
    e = experiments(plan, tmp_path)[0]
    arm = e.arms(False, plan.checkpoint)[0]
    novel = {(r["frame"], r["camera"]) for r in records_of([dict(records=e.run(Arm(arm.experiment, arm.name, 0, arm.settings | dict(recipes=["exact"])), plan.checkpoint, tmp_path))], "iou") if r["split"] == "novel"}
    assert novel == {(f"5 without camera {i}", f"camera {i}") for i in range(6)}


def test_the_command_from_stored_results(tmp_path):
    got = cli("study", "--from-results", RESULTS, "--out", tmp_path/"s")
    assert got.returncode == 0, got.stderr
    page = (tmp_path/"s/index.html").read_text()
    named = re.findall(r"<h2 id='(\w+)'", page)
    assert named[:5] == list(EXPERIMENTS)[:5] or {"recipes", "factors", "control", "zoom", "gap"} <= set(named)
    assert len(set(re.findall(r"id='?([\w-]+)", page))) == len(re.findall(r"id='?([\w-]+)", page)) and "http://" not in page and "https://" not in page
    again = cli("study", "--from-results", RESULTS, "--out", tmp_path/"s")
    assert again.returncode == 0 and (tmp_path/"s/index.html").read_text() == page
    (tmp_path/"thesis").mkdir()
    (tmp_path/"thesis/a").touch()
    no = cli("study", "--from-results", RESULTS, "--out", tmp_path/"thesis")
    assert no.returncode == 2 and "is no study's" in no.stderr and "Traceback" not in no.stderr
