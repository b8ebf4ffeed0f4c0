"""Ctrl-C: one line that says what is kept and how to go on, exit status 130, no traceback. With real processes."""
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.scenes.recording import write_recording

# Where a shell started this test in the background, SIGINT is ignored, and children would inherit that.
START = """import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from gslrm_mouse.cli import main
main()"""


def interrupt(args, folder, has_begun):
    "Run a command in a process group of its own, send SIGINT to all of it as a terminal does once it has begun."
    log = folder/"stderr.txt"
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, args)], stdout=subprocess.DEVNULL, stderr=stderr, cwd=folder,
            start_new_session=True)
        while not has_begun(log):
            assert process.poll() is None, f"it ended before it had begun: {log.read_text()}"
            time.sleep(.02)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    return process.returncode, log.read_text()


def check(returncode, text, kept):
    assert returncode == 130, text
    assert "Traceback" not in text and "KeyboardInterrupt" not in text, text
    said = [line for line in text.replace("\r", "\n").splitlines() if line.startswith("gslrm_mouse: ")]
    assert len(said) == 1 and said[0].startswith("gslrm_mouse: interrupted") and kept in said[0], text


def test_demo_writes_nothing(tmp_path):
    check(*interrupt(["demo", "film"], tmp_path, lambda log: "rendering" in log.read_text()), "nothing was written")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stderr.txt"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_study_keeps_finished_conditions(tmp_path, jobs):
    "Also where processes of their own run the conditions."
    results = tmp_path/"study/results/gap.jsonl"
    args = ["study", "--full", "--only", "gap", "--out", "study", "--jobs", jobs]
    check(*interrupt(args, tmp_path, lambda log: results.exists()), "finished conditions are kept, and the same")
    assert results.read_text().endswith("\n")


def test_training_names_resume(tmp_path):
    args = ["pretrain", "--out", "run", "--steps", 100000, "--n-scenes", 2, "--batch", 1]
    check(*interrupt(args, tmp_path, lambda log: any((tmp_path/"run").glob("log.jsonl"))), "--resume")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")/"rec"
    return write_recording(folder, 10, seed=4, cams=mouse_rig().resized(96, 85), truth=False)


@pytest.mark.parametrize("args, finished, kept", [
    (["reconstruct", "--frames", "0:10", "--quality", "draft", "--no-panels"], "frame_000000",
     "with --frames the finished ones are"),
    (["preprocess", "--size", 64], "sample_000000", "finished samples are kept, and the same command goes on"),
])
def test_finished_frames_are_kept(recording, tmp_path, args, finished, kept):
    "Interrupted after the first frame: no folder is left that holds less than a whole one."
    command, *options = args
    out = ["--out", "out"] if command == "reconstruct" else ["out"]
    check(*interrupt([command, recording, *out, *options], tmp_path, has_finished_one), kept)
    folders = [p for p in (tmp_path/"out").rglob("*") if p.is_dir() and p.parent.name == "out"]
    assert finished in [p.name for p in folders] and len(folders) < 10
    files = {p.name: sorted(f.name for f in p.rglob("*")) for p in folders}
    assert all(set(names) >= set(files[finished]) for names in files.values()), files # a faded frame has one more


def has_finished_one(log): return re.search(r"\b[2-9]/10\b", log.read_text()) # preprocess counts what it begins


def test_masks_writes_nothing(recording, tmp_path):
    has_begun = r"masks: +\d+%"
    args = ["masks", recording, "--out", "masks"]
    check(*interrupt(args, tmp_path, lambda log: re.search(has_begun, log.read_text())), "nothing was written")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stderr.txt"]
    assert sorted(p.name for p in recording.parent.iterdir()) == ["rec"]
