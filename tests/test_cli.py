"""The command as a user meets it: files that open, mistakes that end in one sentence."""
import json

import pytest
from conftest import command_process

from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.models.checkpoint import read_card, shipped_checkpoint
from gslrm_mouse.scenes.recording import write_recording


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
    (("preprocess", "nowhere", "x", "--cut", ".1"), "--choose object only; got --cut 0.1 with --method exact --choose "
                                                   "distance"),
    (("preprocess", "nowhere", "x", "--method", "mm", "--choose", "object", "--cut", ".1"), "with --method mm"),
    (("preprocess", "nowhere", "x", "--choose", "object", "--cut", ".5"), "a share of the silhouette below one half"),
    (("preprocess", "nowhere", "x", "--choose", "object", "--cut", "nan"), "got --cut nan"),
])
def test_mistakes(run_command, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    assert_mistake(run_command(*args), tmp_path/"x", said)


def assert_mistake(got, out, said):
    assert got.returncode == 2 and "Traceback" not in got.stderr and said in got.stderr, got.stderr
    assert not out.exists() or not list(out.iterdir())


def test_a_mistake_in_a_process(tmp_path):
    got = command_process("reconstruct", "nowhere", "--out", "x", cwd=tmp_path)
    assert_mistake(got, tmp_path/"x", "nowhere")
    assert not got.stdout and got.stderr.count("\n") == 1


def test_unknown_settings_are_refused(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = run_command("study", "--no-such-option", "1")
    assert got.returncode == 2 and "no-such-option" in got.stdout + got.stderr


def test_shipped_checkpoint_knows_its_cameras():
    card = read_card(shipped_checkpoint())
    assert card.domain.fov == (50., 50.) and card.domain.distance == (2.7, 2.7)
    heads = card.training["held_out"]["head"]
    assert card.training["steps"] > 0
    assert heads["psnr"] > heads["psnr_white"] + 5


def test_a_share_of_the_silhouettes_may_be_cut(run_command, tmp_path):
    film = write_recording(tmp_path/"film", 1, seed=4, cams=mouse_rig().resized(288, 256), truth=False)
    options = "--frames", "0", "--size", "64", "--choose", "object"
    whole = run_command("preprocess", film, tmp_path/"whole", *options)
    cut = run_command("preprocess", film, tmp_path/"cut", *options, "--cut", ".1")
    assert cut.returncode == whole.returncode == 0, cut.stderr
    assert "of a silhouette lies outside its image" in cut.stdout and "outside its image" not in whole.stdout
    options_of = {name: json.loads((tmp_path/name/"preprocess.json").read_text())["settings"]["options"]
                  for name in ("whole", "cut")}
    assert options_of == dict(whole=dict(choose="object"), cut=dict(choose="object", cut=.1))
    focal = {name: json.loads((tmp_path/name/"sample_000000/opencv_cameras.json").read_text())["frames"][0]["fx"]
             for name in ("whole", "cut")}
    assert focal["cut"] > 1.05*focal["whole"] # the animal is larger
    again = run_command("preprocess", film, tmp_path/"whole", *options, "--cut", ".1")
    assert again.returncode == 2 and "another options" in again.stderr


def test_sample_to_files(run_command, sample, tmp_path):
    got = run_command("reconstruct", sample, "--out", tmp_path/"r", "--quality", "draft")
    assert got.returncode == 0, got.stderr
    expected = {"gaussians.ply", "turntable.mp4", "views.png", "views_novel.png", "cameras.png", "cameras.txt",
                "results.jsonl", "view.html", "view.json"}
    assert {p.name for p in (tmp_path/"r").iterdir()} == expected
    records = [json.loads(x) for x in (tmp_path/"r/results.jsonl").read_text().splitlines()]
    novel = [r for r in records if r["split"] == "novel"]
    assert len(novel) == 4 and sum(r["psnr"] - r["psnr_white"] for r in novel) > 0
