"""What a notebook cell cannot show: several processes, killed processes, a full disk, and mistakes that must not pass in silence."""
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gslrm_mouse.training.guard import GuardState
from gslrm_mouse.training.losses import Losses
from gslrm_mouse.training.runs import checkpoints, last_checkpoint, load_state, read_log
from gslrm_mouse.training.settings import ALLOWED_VALUES, check_keys, known_keys, load_settings, settings_from
from gslrm_mouse.scenes.dataset import scene_views
from gslrm_mouse.training.batches import BatchStream
from gslrm_mouse.training.sources import build_dataset
from gslrm_mouse.training.loop import export_run, load_trained, open_run, run_training, train, train_step
from gslrm_mouse.training.state import initial_network
from gslrm_mouse.training.step import forward_pass
from gslrm_mouse.views.samples import write_sample

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT/"configs").glob("*.yaml"))


def tiny(updates=4, batch=2, **training):
    "Settings of a network that takes milliseconds, on procedural heads and objects of 16 px."
    t = dict(runtime=dict(use_amp=False), dataset=dict(n_scenes=6, num_views=5, num_input_views=3), dataloader=dict(batch_size_per_gpu=batch, num_workers=0), optimizer=dict(lr=1e-3, muon_lr=1e-3), schedule=dict(max_fwdbwd_passes=updates, warmup=2), checkpointing=dict(checkpoint_every=2))
    for section, values in training.items(): t[section] = {**t.get(section, {}), **values}
    return settings_from(dict(model=dict(image_tokenizer=dict(image_size=16), transformer=dict(d=64, d_head=32, n_layer=1)), training=t))


MASKED = dict(masked_l2_loss=True, background_loss_weight=.5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def weights(run):
    return load_state(last_checkpoint(run))[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(run):
    return [r["loss"] for r in read_log(run) if "event" not in r]


def python(code, *args, launcher=(), timeout=80):
    "A process of its own, one thread."
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    got = subprocess.run([sys.executable, *launcher, *(["-c", code] if not launcher else [code]), *map(str, args)], capture_output=True, text=True, env=env, timeout=timeout)
    assert got.returncode == 0, got.stderr[-3000:]
    return got.stdout


# ---- several processes

def test_two_processes_are_one(tmp_path, cache):
    script = tmp_path/"two.py"
    script.write_text("import sys\nsys.path.insert(0, sys.argv[1])\nfrom test_loop import *\nrun_training(tiny(10, 1), sys.argv[2], cache=sys.argv[3])\nrun_training(tiny(4, 1, losses=MASKED), sys.argv[2] + '_masked', cache=sys.argv[3])\nrun_training(tiny(3, 1, runtime=dict(use_amp=False, grad_clip_norm=1e-4, allowed_gradnorm_factor=1.)), sys.argv[2] + '_skipped', cache=sys.argv[3])\n")
    run_training(tiny(10, 2), tmp_path/"one", cache=cache)
    python(str(script), ROOT/"tests/training", tmp_path/"two", cache, launcher=("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(29500 + os.getpid() % 2000)))
    a, b = losses(tmp_path/"one"), losses(tmp_path/"two")
    assert len(a) == len(b) == 10 and max(abs(x - y) for x, y in zip(a, b)) < 1e-4
    assert a[-1] < a[0] - 1e-3                                             # it did learn, or equality would say nothing
    wa, wb = weights(tmp_path/"one"), weights(tmp_path/"two")
    assert max((wa[k] - wb[k]).abs().max().item() for k in wa) < 1e-3
    events = [r for r in read_log(tmp_path/"two_skipped") if r.get("event") == "gradient"]
    assert [len(e["samples"]) for e in events] == [2, 2, 2]                 # an event holds the cameras of all processes
    assert [read_log(tmp_path/x)[0]["processes"] for x in ("one", "two")] == [1, 2]
    a, b = (losses(run_training(tiny(4, 2, losses=MASKED), tmp_path/"one_masked", cache=cache).parent.parent), losses(tmp_path/"two_masked"))
    assert max(abs(x - y) for x, y in zip(a, b)) < 1e-4                    # though the masks of the two processes differ in size
    a = losses(tmp_path/"one")
    c = losses(run_training(replace(tiny(10, 2), seed=1), tmp_path/"other", cache=cache).parent.parent)
    assert max(abs(x - y) for x, y in zip(a, c)) > 1e-3                     # another batch would show


# ---- killed processes

KILLS = """
import os, random, signal, sys, time, shutil
sys.path.insert(0, sys.argv[1]); from test_loop import *
folder, cache, settings = Path(sys.argv[2]), sys.argv[3], tiny(24, 1, checkpointing=dict(checkpoint_every=3))
def child(run):
    pid = os.fork()
    if pid: return pid
    try: run_training(settings, run, cache=cache, resume=bool(checkpoints(run))); os._exit(0)
    except BaseException:
        import traceback; traceback.print_exc(); os._exit(1)
def wait(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
model, stream = initial_network(settings)[0], BatchStream(settings, build_dataset(settings, cache)); Losses()(forward_pass(model, stream(0)))["loss"].backward(); import accelerate     # what is loaded and compiled once is inherited
start = time.time(); assert wait(child(folder/"whole")) == 0; seconds = time.time() - start
random.seed(int(sys.argv[4])); kills, finished, resumed = 0, 0, 0
while kills < 20:
    resumed += bool(checkpoints(folder/"run")); pid = child(folder/"run"); time.sleep(random.uniform(.1, .9)*seconds); os.kill(pid, signal.SIGKILL); code = wait(pid); kills += code == -9
    assert code in (0, -9), code
    if code == 0: finished += 1; assert same(weights(folder/"whole"), weights(folder/"run")); shutil.rmtree(folder/"run")
assert wait(child(folder/"run")) == 0
assert same(weights(folder/"whole"), weights(folder/"run")); assert losses(folder/"whole") == losses(folder/"run")
left = [p.name for p in (folder/"run"/"checkpoints").iterdir() if p.name.startswith(".")]
print(json.dumps(dict(kills=kills, finished=finished, resumed=resumed, left=left, seconds=seconds)))
"""


def test_twenty_kills(tmp_path, cache):
    said = json.loads(python(KILLS, ROOT/"tests/training", tmp_path, cache, 3).splitlines()[-1])
    assert said["kills"] == 20 and said["resumed"] > 5 and not said["left"], said


def test_killed_before_the_first_update(tmp_path, cache):
    "The log is there only when a checkpoint is: a run can always be begun or gone on with."
    run_training(tiny(4), tmp_path/"a", cache=cache, stop_at=0)
    assert [p.name for p in checkpoints(tmp_path/"a")] == ["step_00000000"]
    (tmp_path/"a/log.jsonl").write_text('{"event": "mani')                  # the manifest was cut off
    run_training(tiny(4), tmp_path/"a", cache=cache, resume=True)
    run_training(tiny(4), tmp_path/"b", cache=cache)
    assert same(weights(tmp_path/"a"), weights(tmp_path/"b")) and read_log(tmp_path/"a")[0]["event"] == "manifest"


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1]); from test_loop import *
run = Path(sys.argv[2]); run_training(tiny(6), run, cache=sys.argv[3], stop_at=2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
try: run_training(tiny(6), run, cache=sys.argv[3], resume=True)
except ValueError as e: print(e)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)); print([p.name for p in (run/"checkpoints").iterdir()])
run_training(tiny(6), run, cache=sys.argv[3], resume=True)
"""


def test_full_disk(tmp_path, cache):
    "Played by a limit on the size of files: the error names the last good checkpoint, from which the run goes on as if nothing had been."
    said, left = python(FULL, ROOT/"tests/training", tmp_path/"full", cache).splitlines()[-2:]
    assert "could not be written" in said and "File too large" in said and "last good one is" in said and said.endswith("step_00000002")
    assert sorted(eval(left)) == ["step_00000000", "step_00000002"]
    run_training(tiny(6), tmp_path/"plain", cache=cache)
    assert same(weights(tmp_path/"plain"), weights(tmp_path/"full"))


# ---- resuming

@pytest.mark.parametrize("what", ["lora", "accumulation", "guard", "bf16 and threads", "heads"])
def test_resume_to_the_bit(tmp_path, cache, what):
    s = {"lora": tiny(6, lora=dict(enabled=True, rank=2), losses=dict(ssim_loss_weight=.2), optimizer=dict(muon_lr=0.)), "accumulation": tiny(12, 1, runtime=dict(use_amp=False, grad_accum_steps=2)),
         "guard": tiny(36, runtime=dict(use_amp=False, grad_clip_norm=.1, allowed_gradnorm_factor=1., relative_gradnorm_z=3., max_skipped_share=1.), checkpointing=dict(checkpoint_every=9)),
         "bf16 and threads": tiny(6, runtime=dict(use_amp=True), dataloader=dict(num_workers=2)), "heads": tiny(6, freeze_layers=dict(policy="heads", enabled=True))}[what]
    run_training(s, tmp_path/"a", cache=cache)
    half = read_log(tmp_path/"a")[-1]["step"]//2 + 1
    run_training(s, tmp_path/"b", cache=cache, stop_at=half)
    assert not same(weights(tmp_path/"a"), weights(tmp_path/"b"))
    run_training(s, tmp_path/"b", cache=cache, resume=True)
    assert same(weights(tmp_path/"a"), weights(tmp_path/"b")) and losses(tmp_path/"a") == losses(tmp_path/"b")
    if what == "guard":
        assert sum(r.get("event") == "gradient" for r in read_log(tmp_path/"a")) == sum(r.get("event") == "gradient" for r in read_log(tmp_path/"b")) > 0
        assert load_state(last_checkpoint(tmp_path/"a"))[1]["guard"] == load_state(last_checkpoint(tmp_path/"b"))[1]["guard"]


def test_init_and_resume_are_two_words(tmp_path, cache):
    run_training(tiny(2), tmp_path/"a", cache=cache)
    for call, error, said in ((lambda: run_training(tiny(2), tmp_path/"a", cache=cache), FileExistsError, "--resume"), (lambda: run_training(tiny(2), tmp_path/"b", resume=True), FileNotFoundError, "nothing to resume"),
                              (lambda: run_training(tiny(2), tmp_path/"b", init="nowhere.safetensors"), FileNotFoundError, "nowhere.safetensors"), (lambda: run_training(tiny(2), tmp_path/"a", init="shipped", resume=True), ValueError, "exclude"),
                              (lambda: run_training(tiny(2), tmp_path/"b", init="shipped"), ValueError, "another network"), (lambda: run_training(tiny(2, optimizer=dict(lr=.5)), tmp_path/"a", cache=cache, resume=True), ValueError, "0.001 there, 0.5 here"),
                              (lambda: run_training(tiny(2, 4), tmp_path/"a", cache=cache, resume=True), ValueError, "batch 2 there, 4 here"), (lambda: run_training(tiny(2), tmp_path/"b", device="cuda:9", cache=cache), ValueError, "CUDA"),
                              (lambda: run_training(tiny(2, logging=dict(trackers=["tensorbored"])), tmp_path/"b", cache=cache), ValueError, "tensorbored")):
        with pytest.raises(error, match=said): call()
    assert not (tmp_path/"b").exists()
    run_training(tiny(2, logging=dict(vis_every=1), checkpointing=dict(checkpoint_every=1)), tmp_path/"a", cache=cache, resume=True)      # what does not decide the weights may change


def test_a_schedule_may_change_and_it_is_noted(tmp_path, cache):
    run_training(tiny(8), tmp_path/"a", cache=cache, stop_at=4, command="first")
    run_training(tiny(6), tmp_path/"a", cache=cache, resume=True, command="second")
    log = read_log(tmp_path/"a")
    turn, = [r for r in log if r.get("event") == "resumed"]
    assert turn["step"] == 4 and turn["command"] == "second" and turn["changed"] == ["max_fwdbwd_passes 8 there, 6 here"]
    run_training(tiny(8), tmp_path/"b", cache=cache, stop_at=6)
    a, b = ([r["lr"] for r in read_log(tmp_path/x) if "event" not in r] for x in "ab")
    assert len(a) == 6 and a[:4] == b[:4] and a[5] < b[5]
    from gslrm_mouse.models.checkpoint import read_card
    facts = read_card(export_run(tmp_path/"a", "third", n_eval=1)).training
    assert facts["changes"][0] == dict(step=0, command="first") and facts["changes"][1]["step"] == 4 and facts["curve"]["step"][-1] == 6
    assert "changes" not in read_card(export_run(tmp_path/"b", n_eval=1)).training


def test_last_k_are_kept(tmp_path, cache):
    run_training(tiny(8, checkpointing=dict(checkpoint_every=2, checkpoints_total_limit=2)), tmp_path/"a", cache=cache)
    assert [p.name for p in checkpoints(tmp_path/"a")] == ["step_00000006", "step_00000008"]


# ---- an update

def test_accumulation_is_the_mean_of_its_passes(tmp_path, cache):
    s = tiny(4, 1, runtime=dict(use_amp=False, grad_accum_steps=2))
    run_training(s, tmp_path/"a", cache=cache, stop_at=1)
    first = read_log(tmp_path/"a")[1]
    model, _, _ = initial_network(s)
    stream, loss = BatchStream(s, build_dataset(s, cache)), Losses(s.training.losses)
    parts = [loss(forward_pass(model, stream(k), bf16=False))["loss"] for k in (0, 1)]
    (sum(parts)/2).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    assert abs(first["loss"] - sum(parts).item()/2) < 1e-6 and abs(first["grad_norm"]/norm - 1) < 1e-4
    assert abs(parts[0].item() - parts[1].item()) > 1e-4


def test_recomputed_layers_change_nothing(tmp_path, cache):
    run_training(tiny(3), tmp_path/"a", cache=cache)
    run_training(tiny(3, runtime=dict(use_amp=False, grad_checkpoint_every=1)), tmp_path/"b", cache=cache)
    a, b = weights(tmp_path/"a"), weights(tmp_path/"b")
    assert a.keys() == b.keys() and max((a[k] - b[k]).abs().max().item() for k in a) < 1e-5


def test_what_is_not_finite_is_not_followed(tmp_path, cache):
    r = open_run(tiny(4), tmp_path/"a", cache=cache)
    b = r.stream(0)
    before = {k: v.clone() for k, v in r.raw.state_dict().items()}
    record, told = train_step(r, [(0, replace(b, truth=b.truth.clone().index_fill_(0, torch.tensor([0]), math.nan)))])
    assert record["skipped"] and told["reason"] == "not finite" and same(before, r.raw.state_dict()) and r.guard == GuardState(updates=1, skipped=1)
    record, told = train_step(r, [(0, b)])
    assert not record["skipped"] and told is None and not same(before, r.raw.state_dict())


def test_a_planted_camera_is_named(tmp_path):
    "A folder of six samples, one of which has one camera 2.7 times too near: the event says which. Without it there is no event."
    for bug in (True, False):
        folder = tmp_path/f"set_{bug}"
        for i in range(6): write_sample(scene_views(i, "head", 64, 5), folder/f"sample_{i:06d}")
        if bug:
            rig = folder/"sample_000003"/"opencv_cameras.json"
            d = json.loads(rig.read_text())
            for row in d["frames"][2]["w2c"][:3]: row[3] /= 2.7
            rig.write_text(json.dumps(d))
        s = settings_from(dict(model=dict(image_tokenizer=dict(image_size=64), transformer=dict(d=256, n_layer=6)), training=dict(runtime=dict(grad_clip_norm=.1, allowed_gradnorm_factor=1., max_skipped_share=1.), dataset=dict(dataset_path=str(folder), num_views=5, num_input_views=3, val_share=0.),
                              dataloader=dict(batch_size_per_gpu=1, num_workers=0), optimizer=dict(lr=1e-6), schedule=dict(max_fwdbwd_passes=20, warmup=1))))
        run_training(s, tmp_path/f"run_{bug}", init="shipped", cache=tmp_path/"cache")
        events = [r for r in read_log(tmp_path/f"run_{bug}") if r.get("event") == "gradient"]
        if not bug:
            assert not events
            continue
        assert events and all(e["oddest"]["camera"] == "cam_002" and e["oddest"]["sample"].endswith("sample_000003") and e["oddest"]["what"] == "distance" for e in events)
        for key in ("step", "norm", "threshold", "shares", "loss", "samples"): assert events[0][key], key
        assert abs(sum(events[0]["shares"].values()) - 1) < .05 and {n for n, _ in events[0]["samples"][0]["inputs"] + events[0]["samples"][0]["targets"]} == {f"cam_{i:03d}" for i in range(5)}


# ---- data

def test_recording_splits_by_time(recording, tmp_path):
    s = settings_from(dict(model=dict(image_tokenizer=dict(image_size=32)), training=dict(dataset=dict(dataset_path=str(recording), method="exact", val_share=.25, gap=4, heldout_cameras=[1], num_views=4, num_input_views=3, frames="0:40:2"))))
    source = build_dataset(s, tmp_path)
    assert source.numbers == tuple(range(0, 22, 2)) and source.val == tuple(range(30, 40, 2)) and source.n_views == 5
    v = source[3]
    assert v.names == tuple(f"camera {i}" for i in (0, 2, 3, 4, 5)) and abs(v.cameras.centers.norm(dim=-1).mean() - 2.7) < .1
    stream = BatchStream(s, source)
    names = {int(x["name"].split()[-1]) for x in stream(0).samples}
    assert names <= set(source.numbers)


def test_facelift_sample_is_a_source(sample, tmp_path):
    s = settings_from(dict(model=dict(image_tokenizer=dict(image_size=32)), training=dict(dataset=dict(dataset_path=str(sample.parent), val_share=0., num_views=8, num_input_views=4))))
    b = BatchStream(s, build_dataset(s, tmp_path))(0)
    assert b.images.shape == (2, 4, 32, 32, 3) and b.truth.shape == (2, 4, 32, 32, 3)
    assert torch.allclose(b.cameras.centers.norm(dim=-1), torch.tensor(2.7), atol=1e-3)
    for x in b.samples: assert not set(x["inputs"]) & set(x["targets"]) and len(set(x["inputs"] + x["targets"])) == 8


# ---- settings

@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configurations(path):
    full = load_settings(path)
    facts = {"mouse_gslrm_real_camera": (1e-6, 5000, 200, 100., 20., .05, .5), "mouse_gslrm_freeze_all": (1e-4, 5000, 100, 10., 20., .01, .5), "mouse_gslrm_pixel_based": (1e-6, 10000, 200, 100., 20., .05, .5)}      # lr, passes, warm-up, clip, factor, decay, SSIM
    if path.stem in facts:
        t = full.training
        assert (t.optimizer.lr, t.schedule.max_fwdbwd_passes, t.schedule.warmup, t.runtime.grad_clip_norm, t.runtime.allowed_gradnorm_factor, t.optimizer.weight_decay, t.losses.ssim_loss_weight) == facts[path.stem]
        assert (t.dataset.num_input_views, t.dataset.num_views, t.dataset.target_has_input, t.losses.l2_loss_weight, t.losses.lpips_loss_weight, full.config.d, full.config.n_layer) == (5, 6, True, 1., 0., 1024, 24)
        assert t.freeze_layers.enabled == (path.stem == "mouse_gslrm_freeze_all")
    if not path.stem.startswith("pretrain"):
        small = load_settings(path, scale="small")
        initial_network(small, "shipped")
        assert small.training.optimizer.lr == full.training.optimizer.lr or full.training.lora.enabled


def test_unknown_keys_name_the_nearest(tmp_path):
    r = np.random.default_rng(0)
    leaves = [k for k, v in known_keys().items() if not hasattr(v, "__dataclass_fields__") and "." in k and len(k.split(".")[-1]) > 2]
    assert len(leaves) > 100
    for key in r.choice(leaves, 40, replace=False):
        *path, last = key.split(".")
        i = int(r.integers(1, len(last)))
        wrong = last[:i] + "x" + last[i:]
        tree = {wrong: 1}
        for p in reversed(path): tree = {p: tree}
        with pytest.raises(ValueError) as e: check_keys(tree, "test")
        assert f"no setting {'.'.join(path)}.{wrong};" in str(e.value)
    with pytest.raises(ValueError, match="nearest known one is training.dataset.normalize_distance_to"): check_keys(dict(training=dict(dataset=dict(normalise_distance_to=2.7))), "test")


def test_no_key_that_nobody_reads():
    "The name of every setting occurs in the code that trains, or the setting is refused at every value that would do something."
    source = "\n".join((ROOT/"gslrm_mouse"/f"{m}.py").read_text() for m in ("models/lora", "scenes/dataset", *(f"training/{p.stem}" for p in (ROOT/"gslrm_mouse/training").glob("*.py"))))
    keys = [k for k, v in known_keys().items() if not hasattr(v, "__dataclass_fields__") and k not in ALLOWED_VALUES]
    assert len(keys) > 90 and not [k for k in keys if not re.search(rf"\.{k.split('.')[-1]}\b", source)]


def test_small_run_ends_with_a_checkpoint(tmp_path):
    "The whole way of `train`, and a card whose ranges are those of the training cameras: in millimetres, where experiment A ran."
    few = ["training.schedule.max_fwdbwd_passes=1", "training.dataset.rig_scale=8", "training.dataset.n_scenes=1", "training.dataloader.batch_size_per_gpu=1", "validation.n=1"]
    path = train(ROOT/"configs/mouse_gslrm_real_camera.yaml", few, tmp_path/"a", "small", n_eval=1)
    from gslrm_mouse.models.checkpoint import read_card
    card = read_card(path)
    assert path.name == "model.safetensors" and 200 < card.domain.distance[0] < card.domain.distance[1] < 450 and card.training["init"] and card.training["steps"] == 1
    model, s, state = load_trained(last_checkpoint(tmp_path/"a"))
    assert state["step"] == 1 and s.training.dataset.method == "mm"
    with pytest.raises(ValueError, match="no scale 'tiny'"): train(ROOT/"configs/mouse_gslrm_real_camera.yaml", scale="tiny")
