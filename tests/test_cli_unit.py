"`--unit` in every command that reads a rig: a recording in quarter metres, which nothing can guess, stated as metres."
import inspect
import json
import re

import pytest
import torch

from gslrm_mouse.calibration.formats import write_calibration
from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.cli import COMMANDS, main
from gslrm_mouse.gaussians.ply import ply_world
from gslrm_mouse.scenes.recording import write_recording

RIG = mouse_rig().resized(144, 128)
CENTERS = 4*RIG.centers.double() # mm, of quarter metres that are stated as metres


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    folder = write_recording(tmp_path_factory.mktemp("film")/"film", 8, seed=4, cams=RIG, truth=False)
    (folder/"new_cam.pkl").unlink()
    path = write_calibration(RIG, folder/"calibration.toml")

    def in_quarter_metres(match): return f"translation = {[x/250 for x in json.loads(match[1])]}"

    path.write_text(re.sub(r"translation = (\[.*?\])", in_quarter_metres, path.read_text()))
    return folder


def run(*args): main([str(x) for x in args])


def assert_unit_is_asked_for(capsys, *args):
    with pytest.raises(SystemExit) as e: run(*args)
    assert e.value.code == 2 and "--unit mm, cm, m or model" in capsys.readouterr().err


def test_every_command_that_reads_a_rig_takes_it():
    reads_a_rig = {"study", "reconstruct", "doctor", "masks", "preprocess"}
    takes_a_unit = {name for name, command in COMMANDS.items() if "unit" in inspect.signature(command).parameters}
    assert takes_a_unit == reads_a_rig


def test_reconstruct(film, tiny_checkpoint, tmp_path, capsys):
    quickly = "--quality", "draft", "--no-turntable", "--no-panels"
    options = "--checkpoint", tiny_checkpoint, "--choose", "distance", *quickly
    assert_unit_is_asked_for(capsys, "reconstruct", film, "--out", tmp_path/"a", *options)
    run("reconstruct", film, "--out", tmp_path/"b", "--unit", "m", *options)
    records = [json.loads(line) for line in (tmp_path/"b/results.jsonl").read_text().splitlines()]
    assert {record["unit"] for record in records} == {"m"}
    unit, _, to_model = ply_world(tmp_path/"b/gaussians.ply")
    assert unit == "mm"
    distance = to_model(CENTERS).norm(dim=-1).mean().item()
    assert abs(distance - FACELIFT_DOMAIN.mean_distance) < 1e-3


def test_preprocess(film, tiny_checkpoint, tmp_path, capsys):
    options = "--frames", "1,2,3", "--size", "64", "--checkpoint", tiny_checkpoint
    assert_unit_is_asked_for(capsys, "preprocess", film, tmp_path/"a", *options)
    run("preprocess", film, tmp_path/"b", "--unit", "m", *options)
    assert json.loads((tmp_path/"b/preprocess.json").read_text())["settings"]["unit"] == "m"
    content = json.loads((tmp_path/"b/sample_000000/opencv_cameras.json").read_text())
    record = content["gslrm_mouse"]
    back = record["back"]
    assert (record["unit"], back["target"]) == ("m", "mm")
    w2c = torch.tensor([frame["w2c"] for frame in content["frames"]], dtype=torch.float64)
    centers = -(w2c[:, :3, :3].mT @ w2c[:, :3, 3:])[..., 0]
    Q, c = (torch.tensor(back[key], dtype=torch.float64) for key in ("Q", "c"))
    assert torch.allclose(back["scale"]*centers @ Q.T + c, CENTERS, atol=1e-2)


def test_masks(film, tmp_path, capsys):
    run("masks", film, "--out", tmp_path/"a")
    assert "that needs a calibration" in capsys.readouterr().out
    run("masks", film, "--out", tmp_path/"b", "--unit", "m")
    assert "rays through the masks' centroids meet within" in capsys.readouterr().out
    assert all(camera["agreement"] > .5 for camera in json.loads((tmp_path/"b/masks.json").read_text()))


def test_study(film, tmp_path, capsys):
    options = "--recording", film, "--only", "doctor"
    assert_unit_is_asked_for(capsys, "study", "--out", tmp_path/"a", *options)
    run("study", "--out", tmp_path/"b", "--unit", "m", *options)
    [path] = (tmp_path/"b/results").glob("*.jsonl")
    [done] = map(json.loads, path.read_text().splitlines())
    assert done["settings"]["unit"] == "m" and done["records"]
