"""What a notebook cell cannot show: several processes, killed processes, a full disk, mistakes that must be seen."""
import ast
import json
import math
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gslrm_mouse.cameras.domain import CameraDomain
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.models import gslrm
from gslrm_mouse.models.checkpoint import ModelCard, checkpoint_hash, read_card, save_checkpoint
from gslrm_mouse.scenes.dataset import scene_views
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.training import loop
from gslrm_mouse.training.batches import BatchStream
from gslrm_mouse.training.guard import GuardState
from gslrm_mouse.training.loop import export_run, load_trained, open_run, run_training, train, train_step
from gslrm_mouse.training.losses import Losses
from gslrm_mouse.training.runs import checkpoints, last_checkpoint, load_state, read_log
from gslrm_mouse.training.settings import ALLOWED_VALUES, check_keys, known_keys, load_settings, settings_from
from gslrm_mouse.training.sources import build_dataset
from gslrm_mouse.training.state import initial_network
from gslrm_mouse.training.step import forward_pass
from gslrm_mouse.views.samples import write_sample

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT/"configs").glob("*.yaml"))
MASKED = dict(masked_l2_loss=True, background_loss_weight=.5)
HANGS = 1800 # seconds after which a process is taken to hang; a loaded machine may need minutes


def tiny(updates=4, batch=2, n_layer=1, **training):
    "Settings of a network that takes milliseconds, on procedural heads and objects of 16 px."
    sections = dict(
        runtime=dict(use_amp=False),
        dataset=dict(n_scenes=6, num_views=5, num_input_views=3),
        dataloader=dict(batch_size_per_gpu=batch, num_workers=0),
        optimizer=dict(lr=1e-3, muon_lr=1e-3),
        schedule=dict(max_fwdbwd_passes=updates, warmup=2),
        checkpointing=dict(checkpoint_every=2))
    for section, values in training.items(): sections[section] = {**sections.get(section, {}), **values}
    model = dict(image_tokenizer=dict(image_size=16), transformer=dict(d=64, d_head=32, n_layer=n_layer))
    return settings_from(dict(model=model, training=sections))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def weights(run):
    return load_state(last_checkpoint(run))[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def steps(run):
    return [r for r in read_log(run) if "event" not in r]


def events(run, kind="gradient"):
    return [r for r in read_log(run) if r.get("event") == kind]


def losses(run):
    return [r["loss"] for r in steps(run)]


def largest_gap(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def python(*command):
    "What a process of its own prints; one thread."
    threads = dict(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    env = {**os.environ, **threads, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# ---- several processes

TWO = """
import sys
sys.path.insert(0, sys.argv[1])
from test_loop import *
out, cache = sys.argv[2:]
run_training(tiny(10, 1), out, cache=cache)
run_training(tiny(4, 1, losses=MASKED), out + "_masked", cache=cache)
strict = dict(use_amp=False, grad_clip_norm=1e-4, allowed_gradnorm_factor=1.)
run_training(tiny(3, 1, runtime=strict), out + "_skipped", cache=cache)
"""


def test_two_processes_are_one(tmp_path, cache):
    script = tmp_path/"two.py"
    script.write_text(TWO)
    port = 29500 + os.getpid() % 2000
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port)
    run_training(tiny(10, 2), tmp_path/"one", cache=cache)
    python(*launcher, script, ROOT/"tests/training", tmp_path/"two", cache)
    assert [read_log(tmp_path/x)[0]["processes"] for x in ("one", "two")] == [1, 2]

    one, two = losses(tmp_path/"one"), losses(tmp_path/"two")
    assert len(one) == 10 and largest_gap(one, two) < 1e-4
    assert one[-1] < one[0] - 1e-3 # the network learned: untrained ones would be equal, too
    one_weights, two_weights = weights(tmp_path/"one"), weights(tmp_path/"two")
    assert max((one_weights[k] - two_weights[k]).abs().max().item() for k in one_weights) < 1e-3

    # An event holds the cameras of all processes.
    assert [len(e["samples"]) for e in events(tmp_path/"two_skipped")] == [2, 2, 2]

    # The masks of the two processes differ in size, the loss does not.
    run_training(tiny(4, 2, losses=MASKED), tmp_path/"one_masked", cache=cache)
    assert largest_gap(losses(tmp_path/"one_masked"), losses(tmp_path/"two_masked")) < 1e-4

    # Other batches would be noticed.
    run_training(replace(tiny(10, 2), seed=1), tmp_path/"other", cache=cache)
    assert largest_gap(one, losses(tmp_path/"other")) > 1e-3


# ---- killed processes

KILLS = """
import os, random, shutil, signal, sys, time, traceback
sys.path.insert(0, sys.argv[1])
from test_loop import *
import accelerate
folder, cache, N_KILLS, STEPS = Path(sys.argv[2]), sys.argv[3], int(sys.argv[5]), 24
run, whole = folder/"run", folder/"whole"
settings = tiny(STEPS, 1, checkpointing=dict(checkpoint_every=3))

def child(out):
    pid = os.fork()
    if pid: return pid
    try:
        run_training(settings, out, cache=cache, resume=bool(checkpoints(out)))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

def exit_code(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def has_ended(pid): return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

def reached(out, since):
    "Last step in the log of a process started at `since`: -1 before the first, None before there is a log."
    log = out/"log.jsonl"
    if not log.is_file() or log.stat().st_mtime_ns < since: return None
    return max((r.get("step", -1) for r in read_log(out)), default=-1)

def kill_at(out, step):
    "Start or resume a run and kill it some milliseconds after its log has reached `step`; its exit code."
    since = time.time_ns()
    pid = child(out)
    while not has_ended(pid):
        now = reached(out, since)
        if now is not None and now >= step: break
        time.sleep(.002)
    time.sleep(random.uniform(0, .03))
    os.kill(pid, signal.SIGKILL)
    return exit_code(pid)

# What is loaded and compiled once is inherited by the children.
model, _, _ = initial_network(settings)
stream = BatchStream(settings, build_dataset(settings, cache))
Losses()(forward_pass(model, stream(0)))["loss"].backward()

assert exit_code(child(whole)) == 0
random.seed(int(sys.argv[4]))
kills, finished, resumed = 0, 0, 0
while kills < N_KILLS:
    first = int(last_checkpoint(run).name.split("_")[1]) if checkpoints(run) else 0
    resumed += bool(checkpoints(run))
    code = kill_at(run, random.randrange(first - 1, STEPS))
    assert code in (0, -signal.SIGKILL), code
    if code == 0:
        finished += 1
        assert same(weights(whole), weights(run))
        shutil.rmtree(run)
    else: kills += 1
assert exit_code(child(run)) == 0
assert same(weights(whole), weights(run))
assert losses(whole) == losses(run)
left = [p.name for p in (run/"checkpoints").iterdir() if p.name.startswith(".")]
print(json.dumps(dict(kills=kills, finished=finished, resumed=resumed, left=left)))
"""


@pytest.mark.parametrize("n", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills(tmp_path, cache, n):
    "Killed at random steps, a run ends with the weights and losses of one that was left alone."
    printed = python("-c", KILLS, ROOT/"tests/training", tmp_path, cache, 3, n)
    counts = json.loads(printed.splitlines()[-1])
    assert counts["kills"] == n and counts["resumed"] >= n//4, counts
    assert not counts["left"], counts


def test_killed_before_the_first_update(tmp_path, cache):
    "The log exists only if a checkpoint does: a run can always be started or resumed."
    run_training(tiny(4), tmp_path/"a", cache=cache, stop_at=0)
    assert [p.name for p in checkpoints(tmp_path/"a")] == ["step_00000000"]
    (tmp_path/"a/log.jsonl").write_text('{"event": "mani') # the manifest was cut off
    run_training(tiny(4), tmp_path/"a", cache=cache, resume=True)
    run_training(tiny(4), tmp_path/"b", cache=cache)
    assert same(weights(tmp_path/"a"), weights(tmp_path/"b"))
    assert read_log(tmp_path/"a")[0]["event"] == "manifest"


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from test_loop import *
run, cache = Path(sys.argv[2]), sys.argv[3]
run_training(tiny(6), run, cache=cache, stop_at=2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
try: run_training(tiny(6), run, cache=cache, resume=True)
except ValueError as e: print(e)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print([p.name for p in (run/"checkpoints").iterdir()])
run_training(tiny(6), run, cache=cache, resume=True)
"""


def test_full_disk(tmp_path, cache):
    "Simulated by a limit on file sizes: the error names the last good checkpoint, and the run resumes from it."
    message, left = python("-c", FULL, ROOT/"tests/training", tmp_path/"full", cache).splitlines()[-2:]
    for fragment in ("could not be written", "File too large", "last good one is"): assert fragment in message
    assert message.endswith("step_00000002")
    assert sorted(ast.literal_eval(left)) == ["step_00000000", "step_00000002"]
    run_training(tiny(6), tmp_path/"plain", cache=cache)
    assert same(weights(tmp_path/"plain"), weights(tmp_path/"full"))


def test_passes_of_a_step_may_have_different_terms(tmp_path, cache):
    "The warm-up of a loss ends between two passes of one step: each term is averaged under its own name."
    losses = dict(warmup_pointsdist=True, alpha_loss_weight=.2)
    run = open_run(tiny(4, 1, losses=losses), tmp_path/"run", cache=cache)
    batch = run.stream(0)
    warming, warm = (run.losses(forward_pass(run.raw, batch, points=True, bf16=False), k) for k in (999, 1000))
    assert "pointsdist" in warming and "pointsdist" not in warm and "alpha" in warm
    record, _ = train_step(run, [(999, batch), (1000, batch)])
    for name in ("loss", "pointsdist", "alpha"):
        values = [float(terms.get(name, 0.)) for terms in (warming, warm)]
        assert abs(record[name] - sum(values)/2) < 1e-6


# ---- resuming

GUARDED = dict(
    use_amp=False, grad_clip_norm=.1, allowed_gradnorm_factor=1., relative_gradnorm_z=3., max_skipped_share=1.)
RESUMED = {
    "lora": tiny(
        6, lora=dict(enabled=True, rank=2), losses=dict(ssim_loss_weight=.2), optimizer=dict(muon_lr=0.)),
    "accumulation": tiny(12, 1, runtime=dict(use_amp=False, grad_accum_steps=2)),
    "guard": tiny(36, runtime=GUARDED, checkpointing=dict(checkpoint_every=9)),
    "bf16 and threads": tiny(6, runtime=dict(use_amp=True), dataloader=dict(num_workers=2)),
    "heads": tiny(6, freeze_layers=dict(policy="heads", enabled=True)),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_resume_to_the_bit(tmp_path, cache, kind):
    s, whole, resumed = RESUMED[kind], tmp_path/"a", tmp_path/"b"
    run_training(s, whole, cache=cache)
    half = read_log(whole)[-1]["step"]//2 + 1
    run_training(s, resumed, cache=cache, stop_at=half)
    assert not same(weights(whole), weights(resumed))
    run_training(s, resumed, cache=cache, resume=True)
    assert same(weights(whole), weights(resumed))
    assert losses(whole) == losses(resumed)
    if kind == "guard":
        assert len(events(whole)) == len(events(resumed)) > 0
        guards = [load_state(last_checkpoint(run))[1]["guard"] for run in (whole, resumed)]
        assert guards[0] == guards[1]


def test_init_and_resume_are_two_words(tmp_path, cache):
    a, b = tmp_path/"a", tmp_path/"b"
    run_training(tiny(2), a, cache=cache)
    unknown_tracker = tiny(2, logging=dict(trackers=["tensorbored"]))
    refused = [ # settings, folder, options, error, a fragment of its message
        (tiny(2), a, dict(cache=cache), FileExistsError, "--resume"),
        (tiny(2), b, dict(resume=True), FileNotFoundError, "nothing to resume"),
        (tiny(2), b, dict(init="nowhere.safetensors"), FileNotFoundError, "nowhere.safetensors"),
        (tiny(2), a, dict(init="shipped", resume=True), ValueError, "exclude"),
        (tiny(2), b, dict(init="shipped"), ValueError, "another network"),
        (tiny(2, optimizer=dict(lr=.5)), a, dict(cache=cache, resume=True), ValueError, "0.001 there, 0.5 here"),
        (tiny(2, 4), a, dict(cache=cache, resume=True), ValueError, "batch 2 there, 4 here"),
        (tiny(2), b, dict(device="cuda:9", cache=cache), ValueError, "CUDA"),
        (unknown_tracker, b, dict(cache=cache), ValueError, "tensorbored"),
    ]
    for s, out, options, error, fragment in refused:
        with pytest.raises(error, match=fragment): run_training(s, out, **options)
    assert not b.exists()
    # Settings that do not decide the weights may change.
    other = tiny(2, logging=dict(vis_every=1), checkpointing=dict(checkpoint_every=1))
    run_training(other, a, cache=cache, resume=True)


def test_a_schedule_may_change_and_it_is_noted(tmp_path, cache):
    a, b = tmp_path/"a", tmp_path/"b"
    run_training(tiny(8), a, cache=cache, stop_at=4, command="first")
    run_training(tiny(6), a, cache=cache, resume=True, command="second")
    turn, = events(a, "resumed")
    assert (turn["step"], turn["command"]) == (4, "second")
    assert turn["changed"] == ["max_fwdbwd_passes 8 there, 6 here"]

    run_training(tiny(8), b, cache=cache, stop_at=6)
    lr_a, lr_b = ([r["lr"] for r in steps(run)] for run in (a, b))
    assert len(lr_a) == 6 and lr_a[:4] == lr_b[:4] and lr_a[5] < lr_b[5]

    facts = read_card(export_run(a, "third", n_eval=1)).training
    assert facts["changes"][0] == dict(step=0, command="first")
    assert facts["changes"][1]["step"] == 4
    assert facts["curve"]["step"][-1] == 6
    assert "changes" not in read_card(export_run(b, n_eval=1)).training


def test_last_k_are_kept(tmp_path, cache):
    s = tiny(8, checkpointing=dict(checkpoint_every=2, checkpoints_total_limit=2))
    run_training(s, tmp_path/"a", cache=cache)
    assert [p.name for p in checkpoints(tmp_path/"a")] == ["step_00000006", "step_00000008"]


# ---- an optimisation step

def test_accumulation_is_the_mean_of_its_passes(tmp_path, cache):
    s = tiny(4, 1, runtime=dict(use_amp=False, grad_accum_steps=2))
    run_training(s, tmp_path/"a", cache=cache, stop_at=1)
    first = steps(tmp_path/"a")[0]

    model, _, _ = initial_network(s)
    stream, loss = BatchStream(s, build_dataset(s, cache)), Losses(s.training.losses)
    a, b = (loss(forward_pass(model, stream(k), bf16=False))["loss"] for k in (0, 1))
    ((a + b)/2).backward()
    grad_norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    assert abs(first["loss"] - (a + b).item()/2) < 1e-6
    assert abs(first["grad_norm"]/grad_norm - 1) < 1e-4
    assert abs(a.item() - b.item()) > 1e-4


def test_recomputed_layers_change_nothing(tmp_path, cache):
    run_training(tiny(3), tmp_path/"a", cache=cache)
    recomputing = tiny(3, runtime=dict(use_amp=False, grad_checkpoint_every=1))
    run_training(recomputing, tmp_path/"b", cache=cache)
    a, b = weights(tmp_path/"a"), weights(tmp_path/"b")
    assert a.keys() == b.keys()
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-5


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("every, groups", [(0, []), (1, [1, 1, 1]), (2, [2, 1]), (5, [3])])
def test_the_settings_say_how_many_layers_are_recomputed_together(tmp_path, cache, monkeypatch, every, groups, lora):
    adapters = dict(enabled=True, rank=2) if lora else {}
    s = tiny(2, n_layer=3, lora=adapters, runtime=dict(use_amp=False, grad_checkpoint_every=every))
    run = open_run(s, tmp_path/"a", cache=cache)
    recomputed, checkpoint = [], gslrm.checkpoint

    def counted(run_layers, layers, *args, **kwargs):
        recomputed.append(len(layers))
        return checkpoint(run_layers, layers, *args, **kwargs)
    monkeypatch.setattr(gslrm, "checkpoint", counted)
    train_step(run, [(0, run.stream(0))])
    assert recomputed == groups


def test_what_is_not_finite_is_not_followed(tmp_path, cache):
    run = open_run(tiny(4), tmp_path/"a", cache=cache)
    batch = run.stream(0)
    before = {k: v.clone() for k, v in run.raw.state_dict().items()}
    truth = batch.truth.clone()
    truth[0] = math.nan
    record, event = train_step(run, [(0, replace(batch, truth=truth))])
    assert record["skipped"] and event["reason"] == "not finite"
    assert same(before, run.raw.state_dict())
    assert run.guard == GuardState(updates=1, skipped=1)
    record, event = train_step(run, [(0, batch)])
    assert not record["skipped"] and event is None
    assert not same(before, run.raw.state_dict())


def write_samples(folder, n=6):
    for i in range(n): write_sample(scene_views(i, "head", 64, 5), folder/f"sample_{i:06d}")
    return folder


def move_closer(cameras, i, factor):
    "Divide the distance of camera `i` in an opencv_cameras.json."
    rig = json.loads(cameras.read_text())
    for row in rig["frames"][i]["w2c"][:3]: row[3] /= factor
    cameras.write_text(json.dumps(rig))


def on_samples(folder):
    return settings_from(dict(
        model=dict(image_tokenizer=dict(image_size=64), transformer=dict(d=256, n_layer=6)),
        training=dict(
            runtime=dict(grad_clip_norm=.1, allowed_gradnorm_factor=1., max_skipped_share=1.),
            dataset=dict(dataset_path=str(folder), num_views=5, num_input_views=3, val_share=0.),
            dataloader=dict(batch_size_per_gpu=1, num_workers=0),
            optimizer=dict(lr=1e-6),
            schedule=dict(max_fwdbwd_passes=20, warmup=1))))


def test_a_planted_camera_is_named(tmp_path):
    "Six samples, one camera of which is 2.7 times too close: the event names it. Without it there is no event."
    good, bad = write_samples(tmp_path/"good"), write_samples(tmp_path/"bad")
    move_closer(bad/"sample_000003/opencv_cameras.json", 2, 2.7)
    for folder in (good, bad):
        run_training(on_samples(folder), tmp_path/f"run_{folder.name}", init="shipped", cache=tmp_path/"cache")
    assert not events(tmp_path/"run_good")

    found = events(tmp_path/"run_bad")
    assert found
    for odd in (e["oddest"] for e in found):
        assert (odd["camera"], odd["what"]) == ("cam_002", "distance")
        assert odd["sample"].endswith("sample_000003")
    first = found[0]
    for key in ("step", "norm", "threshold", "shares", "loss", "samples"): assert first[key], key
    assert abs(sum(first["shares"].values()) - 1) < .05
    sample = first["samples"][0]
    assert {name for name, _ in sample["inputs"] + sample["targets"]} == {f"cam_{i:03d}" for i in range(5)}


# ---- data

def test_recording_splits_by_time(recording, tmp_path):
    dataset = dict(
        dataset_path=str(recording), method="exact", val_share=.25, gap=4, heldout_cameras=[1],
        num_views=4, num_input_views=3, frames="0:40:2")
    s = settings_from(dict(model=dict(image_tokenizer=dict(image_size=32)), training=dict(dataset=dataset)))
    source = build_dataset(s, tmp_path)
    assert source.numbers == tuple(range(0, 22, 2))
    assert source.val == tuple(range(30, 40, 2))
    assert source.n_views == 5
    views = source[3]
    assert views.names == tuple(f"camera {i}" for i in (0, 2, 3, 4, 5))
    assert abs(views.cameras.centers.norm(dim=-1).mean() - 2.7) < .1
    batch = BatchStream(s, source)(0)
    assert {int(x["name"].split()[-1]) for x in batch.samples} <= set(source.numbers)


def test_facelift_sample_is_a_source(sample, tmp_path):
    dataset = dict(dataset_path=str(sample.parent), val_share=0., num_views=8, num_input_views=4)
    s = settings_from(dict(model=dict(image_tokenizer=dict(image_size=32)), training=dict(dataset=dataset)))
    batch = BatchStream(s, build_dataset(s, tmp_path))(0)
    assert batch.images.shape == (2, 4, 32, 32, 3) and batch.truth.shape == (2, 4, 32, 32, 3)
    assert torch.allclose(batch.cameras.centers.norm(dim=-1), torch.tensor(2.7), atol=1e-3)
    for x in batch.samples:
        assert not set(x["inputs"]) & set(x["targets"])
        assert len(set(x["inputs"] + x["targets"])) == 8


# ---- settings

ORIGINAL = { # lr, passes, warm-up, clip, factor, weight decay, SSIM weight
    "mouse_gslrm_real_camera": (1e-6, 5000, 200, 100., 20., .05, .5),
    "mouse_gslrm_freeze_all": (1e-4, 5000, 100, 10., 20., .01, .5),
    "mouse_gslrm_pixel_based": (1e-6, 10000, 200, 100., 20., .05, .5),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configurations(path):
    full = load_settings(path)
    t, d, l = full.training, full.training.dataset, full.training.losses
    if path.stem in ORIGINAL:
        numbers = (t.optimizer.lr, t.schedule.max_fwdbwd_passes, t.schedule.warmup, t.runtime.grad_clip_norm,
                   t.runtime.allowed_gradnorm_factor, t.optimizer.weight_decay, l.ssim_loss_weight)
        assert numbers == ORIGINAL[path.stem]
        assert (d.num_input_views, d.num_views, d.target_has_input) == (5, 6, True)
        assert (l.l2_loss_weight, l.lpips_loss_weight) == (1., 0.)
        assert (full.config.d, full.config.n_layer) == (1024, 24)
        assert t.freeze_layers.enabled == (path.stem == "mouse_gslrm_freeze_all")
    if not path.stem.startswith(("pretrain", "conditioning")):
        small = load_settings(path, scale="small")
        initial_network(small, "shipped")
        assert small.training.optimizer.lr == t.optimizer.lr or t.lora.enabled


def leaves():
    return [k for k, v in known_keys().items() if not hasattr(v, "__dataclass_fields__")]


def nested(key, value):
    "A dict of dicts with `value` at `key`."
    for part in reversed(key.split(".")): value = {part: value}
    return value


def test_unknown_keys_name_the_nearest():
    rng = np.random.default_rng(0)
    keys = [k for k in leaves() if "." in k and len(k.split(".")[-1]) > 2]
    assert len(keys) > 100
    for key in rng.choice(keys, 40, replace=False):
        section, name = key.rsplit(".", 1)
        i = int(rng.integers(1, len(name)))
        wrong = f"{section}.{name[:i]}x{name[i:]}"
        with pytest.raises(ValueError) as e: check_keys(nested(wrong, 1), "test")
        assert f"no setting {wrong};" in str(e.value)
    with pytest.raises(ValueError, match="nearest known one is training.dataset.normalize_distance_to"):
        check_keys(nested("training.dataset.normalise_distance_to", 2.7), "test")


def test_no_key_that_nobody_reads():
    "The code that trains reads every setting, or the setting is refused at every value that would do something."
    package = ROOT/"gslrm_mouse"
    modules = [package/"models/lora.py", package/"scenes/dataset.py", *(package/"training").glob("*.py")]
    source = "\n".join(p.read_text() for p in modules)
    keys = [k for k in leaves() if k not in ALLOWED_VALUES]
    assert len(keys) > 90
    assert not [k for k in keys if not re.search(rf"\.{k.split('.')[-1]}\b", source)]


FEW = [
    "training.schedule.max_fwdbwd_passes=1", "training.dataset.rig_scale=8", "training.dataset.n_scenes=1",
    "training.dataloader.batch_size_per_gpu=1", "validation.n=1",
]


def test_small_run_ends_with_a_checkpoint(tmp_path):
    "`train` from end to end; the card has the ranges of the training cameras, which experiment A had in millimetres."
    config = ROOT/"configs/mouse_gslrm_real_camera.yaml"
    path = train(config, FEW, tmp_path/"a", "small", n_eval=1)
    card = read_card(path)
    assert path.name == "model.safetensors"
    assert 200 < card.domain.distance[0] < card.domain.distance[1] < 450
    assert card.training["init"] and card.training["steps"] == 1
    _, s, state = load_trained(last_checkpoint(tmp_path/"a"))
    assert state["step"] == 1 and s.training.dataset.method == "mm"
    with pytest.raises(ValueError, match="no scale 'tiny'"): train(config, scale="tiny")


def test_a_resumed_run_still_knows_what_it_started_from(tmp_path, cache):
    first = run_and_export(tiny(2), tmp_path/"first", cache)
    run_training(tiny(4), tmp_path/"second", str(first), stop_at=2, cache=cache)
    second = run_and_export(tiny(4), tmp_path/"second", cache, resume=True)
    assert read_card(first).training["init"] == ""
    assert read_card(second).training["init"] == checkpoint_hash(first)


def run_and_export(s, out, cache, **options):
    run_training(s, out, cache=cache, **options)
    return export_run(out, n_eval=1)


def test_a_run_begun_with_init_resumes_with_its_domain(tmp_path, cache):
    "Frames of a recording are prepared for the checkpoint that the run began with, before and after an interruption."
    run_training(tiny(1), tmp_path/"first", cache=cache)
    network = load_trained(last_checkpoint(tmp_path/"first"))[0]
    domain = CameraDomain(fov=(30., 30.), distance=(4., 4.), image_size=16)
    init = save_checkpoint(tmp_path/"init.safetensors", network, ModelCard(network.config, domain, {}))
    missing = dict(resume_ckpt="nowhere.safetensors", checkpoint_every=2) # is not looked for: --init was given
    s = tiny(4, checkpointing=missing)
    run_training(s, tmp_path/"whole", str(init), cache=cache)
    run_training(s, tmp_path/"resumed", str(init), stop_at=2, cache=cache)
    assert open_run(s, tmp_path/"resumed", resume=True, cache=cache).domain == domain
    run_training(s, tmp_path/"resumed", cache=cache, resume=True)
    assert same(weights(tmp_path/"whole"), weights(tmp_path/"resumed"))


def test_a_data_set_for_validation_is_validated_with(tmp_path):
    recording = write_recording(tmp_path/"rec", 6, seed=4, cams=mouse_rig().resized(96, 85), truth=False)
    dataset = dict(dataset_path=str(recording), method="mm", num_views=4, num_input_views=3, frames="0:4", val_share=0.)
    s = tiny(2, dataset=dataset)
    validation = replace(s.validation, enabled=True, dataset_path=str(recording), val_every=1, n=2)
    run_training(replace(s, validation=validation), tmp_path/"run", cache=tmp_path/"cache")
    found = events(tmp_path/"run", "validation")
    assert [(event["step"], event["moments"]) for event in found] == [(0, 2), (1, 2)]
    wrong = replace(validation, dataset_path=str(tmp_path/"nowhere"))
    with pytest.raises(FileNotFoundError, match="^validation.dataset_path"):
        run_training(replace(s, validation=wrong), tmp_path/"other", cache=tmp_path/"cache")
    assert not (tmp_path/"other/log.jsonl").exists()


def test_a_device_is_written_as_torch_knows_it(tmp_path, cache):
    with pytest.raises(ValueError, match="there is no device 'gpu'"):
        run_training(tiny(1), tmp_path/"run", device="gpu", cache=cache)


def test_an_interrupt_that_is_lost_on_its_way_ends_the_run(tmp_path, cache, monkeypatch):
    "A destructor, or a callback of a library, swallows the KeyboardInterrupt: the next step does not begin."
    original = loop.train_step
    steps_done = []

    def swallows(run, passes):
        steps_done.append(run.step)
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return original(run, passes)

    monkeypatch.setattr(loop, "train_step", swallows)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_training(tiny(4), tmp_path/"run", cache=cache)
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps_done == [0]
