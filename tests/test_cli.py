"""The command as a user meets it: files that open, mistakes that end in one sentence."""
import json
import subprocess
import sys

import pytest
from gslrm_mouse.models.checkpoint import read_card, shipped_checkpoint


def run(*args, cwd=None):
    command = [sys.executable, "-c", "from gslrm_mouse.cli import main; main()", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("args, said", [
    (("reconstruct", "nowhere", "--out", "x"), "nowhere"),
    (("study", "--frames", "all", "--out", "x"), "frames are written 0,10,20 or 0:40:10, got 'all'"),
    (("study", "--seeds", "one", "--out", "x"), "seeds are written 0,10,20 or 0:40:10, got 'one'"),
    (("study", "--seeds", "9", "--only", "gap", "--out", "x"), "no condition has one of the seeds 9; the seeds are 0"),
    (("study", "--only", "zooms", "--out", "x"), "no experiment 'zooms'; there are"),
    (("study", "--truth", "nowhere", "--out", "x"), "--truth belongs to a --recording"),
    (("study", "--from-results", "nowhere", "--out", "x"), "nowhere: results of a study"),
    (("study", "--recording", "nowhere", "--out", "x"), "nowhere"),
    (("study", "--checkpoint", "no.safetensors", "--out", "x"), "no.safetensors"),
    (("study", "--device", "cuda:7", "--out", "x"), "cuda"),
    (("pretrain", "--out", "x", "--resume"), "nothing to resume"),
])
def test_mistakes(tmp_path, args, said):
    got = run(*args, cwd=tmp_path)
    assert got.returncode == 2 and "Traceback" not in got.stderr and said in got.stderr, got.stderr
    assert not (tmp_path/"x").exists() or not list((tmp_path/"x").iterdir())


def test_unknown_settings_are_refused(tmp_path):
    got = run("study", "--no-such-option", "1", cwd=tmp_path)
    assert got.returncode == 2 and "no-such-option" in got.stdout + got.stderr


def test_shipped_checkpoint_knows_its_cameras():
    card = read_card(shipped_checkpoint())
    assert card.domain.fov == (50., 50.) and card.domain.distance == (2.7, 2.7)
    heads = card.training["held_out"]["head"]
    assert card.training["steps"] > 0
    assert heads["psnr"] > heads["psnr_white"] + 5


def test_sample_to_files(sample, tmp_path):
    got = run("reconstruct", sample, "--out", tmp_path/"r")
    assert got.returncode == 0, got.stderr
    expected = {"gaussians.ply", "turntable.mp4", "views.png", "views_novel.png", "cameras.png", "cameras.txt",
                "results.jsonl", "view.html", "view.json"}
    assert {p.name for p in (tmp_path/"r").iterdir()} == expected
    records = [json.loads(x) for x in (tmp_path/"r/results.jsonl").read_text().splitlines()]
    novel = [r for r in records if r["split"] == "novel"]
    assert len(novel) == 4 and sum(r["psnr"] - r["psnr_white"] for r in novel) > 0
