"""The doctor as a user meets it: exit status, sentences, JSON. It judges what is there, not what it is called."""
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import gslrm_mouse.evaluation.sensitivity as sensitivity
import gslrm_mouse.models.checkpoint as checkpoint
from gslrm_mouse.cameras.pinhole import Cameras, look_at, orbit
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.doctor.checks import explain_disagreement, silhouettes
from gslrm_mouse.doctor.diagnosis import diagnose
from gslrm_mouse.doctor.evidence import Evidence
from gslrm_mouse.models.gslrm import GSLRM
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.scenes.tracer import raytrace


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")/"film"
    return write_recording(folder, 3, seed=4, cams=mouse_rig().resized(576, 512), truth=False)


def doctor(*args):
    code = "from gslrm_mouse.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, "doctor", *map(str, args)], capture_output=True, text=True)


def test_a_sound_recording_is_compatible(recording):
    got = doctor(recording, "--json")
    content = json.loads(got.stdout)
    assert got.returncode == 0 and content["status"] == 0 and content["findings"] == [] and not got.stderr
    assert .6 < content["predicted"]["iou"] < .8
    notes = {note["name"]: note for note in content["notes"]}
    assert {"units", "origin", "coverage", "field_of_view"} <= set(notes)
    assert all(note["note"] for note in notes.values())
    assert 300 < notes["units"]["number"] < 350 and 38 < notes["field_of_view"]["number"] < 41


def test_a_broken_one_will_fail(recording, tmp_path):
    folder = tmp_path/"k"
    shutil.copytree(recording, folder)
    rig = pickle.loads((folder/"new_cam.pkl").read_bytes())
    for camera in rig: camera["K"][[0, 1], [0, 1]] /= 1.5
    (folder/"new_cam.pkl").write_bytes(pickle.dumps(rig, protocol=4))
    got = doctor(folder)
    assert got.returncode == 1 and "overwritten_k" in got.stdout and "gslrm_mouse preprocess" in got.stdout
    assert got.stdout.strip().splitlines()[-1].startswith("will fail")


@pytest.mark.parametrize("name, content", [
    ("absent", None),
    ("a.json", b"{"),
    ("a.pkl", b"\x80\x04c"),
    ("a.toml", b"x = "),
    ("empty/", None),
])
def test_what_cannot_be_read_has_a_status_of_its_own(tmp_path, name, content):
    if name.endswith("/"): (tmp_path/name).mkdir()
    elif content is not None: (tmp_path/name).write_bytes(content)
    got = doctor(tmp_path/name)
    assert got.returncode == 3 and not got.stdout
    assert "Traceback" not in got.stderr and len(got.stderr.strip().splitlines()) == 1


def test_usage_is_another_status():
    assert doctor("--no-such-option").returncode == 2


def never(*args, **kwargs): raise AssertionError("the network was loaded")


def test_no_network_is_loaded(recording, monkeypatch):
    "`evaluation.sensitivity`, which the doctor uses, has a `load_checkpoint` of its own."
    for owner, name in ((checkpoint, "load_checkpoint"), (sensitivity, "load_checkpoint"), (GSLRM, "__init__")):
        monkeypatch.setattr(owner, name, never)
    assert diagnose(recording).status == 0


@pytest.mark.parametrize("owner, name, load", [
    (checkpoint, "load_checkpoint", lambda folder: checkpoint.load_checkpoint()),
    (sensitivity, "load_checkpoint", lambda folder: sensitivity.measure_sensitivity(out=folder/"table.json")),
    (GSLRM, "__init__", lambda folder: checkpoint.load_checkpoint()),
])
def test_loading_a_network_would_be_noticed(monkeypatch, tmp_path, owner, name, load):
    "Each of the patches above stops the code that loads a network by that name."
    monkeypatch.setattr(owner, name, never)
    with pytest.raises(AssertionError, match="the network was loaded"): load(tmp_path)


def random_rig(n, middle, generator):
    "Cameras of 320 × 300 px in mm at random places, with random intrinsics and aims, each seeing the whole animal."
    def uniform(*shape): return torch.rand(*shape, generator=generator, dtype=torch.float64)
    azimuth, elevation = (torch.arange(n) + .6*uniform(n))*2*np.pi/n, .1 + .7*uniform(n)
    distance = 250 + 150*uniform(n)
    direction = torch.stack(
        [elevation.cos()*azimuth.cos(), elevation.cos()*azimuth.sin(), elevation.sin()], -1)
    eye = middle + distance[:, None]*direction
    K = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = 250 + 80*uniform(n)
    K[:, 0, 2], K[:, 1, 2] = 160 + 20*(uniform(n) - .5), 150 + 20*(uniform(n) - .5)
    return Cameras(K, look_at(eye, middle + 10*(uniform(n, 3) - .5)), 320, 300, "mm")


@pytest.mark.parametrize("seed", range(6))
def test_random_rigs_that_are_sound_have_no_finding(tmp_path, seed):
    "Rigs of 3 to 8 cameras unlike the documented one."
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(3, 9, (1,), generator=generator))
    scene = mouse_scene(seed)
    cams = random_rig(n, torch.from_numpy(scene.centers).mean(0), generator)
    evidence = Evidence(tmp_path, "sample", "", cams, raytrace(scene, cams, 2))
    found = list(silhouettes(evidence, None, None, None))
    assert [f.name for f in found] == ["residual"], found


def test_exchanged_cameras_are_named_in_large_rigs():
    "Numbers of two digits, too."
    scene = mouse_scene(3)
    around = orbit(torch.arange(11)*360/11, 25., size=128)
    middle = torch.from_numpy(scene.centers).mean(0)
    eye = middle + around.centers.double()*110
    views = raytrace(scene, Cameras(around.K.double(), look_at(eye, middle.expand(11, 3)), 128, 128, "mm"), 1)
    exchanged = replace(views, cameras=views.cameras[[10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]])
    found = explain_disagreement(exchanged, None)
    assert found.name == "swapped" and "if cameras 0 and 10 are exchanged" in found.says, found
