"""The doctor as a user meets it: exit status, sentences, JSON; and that it judges what is there, not what it is called."""
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.doctor.diagnosis import diagnose
from gslrm_mouse.scenes.recording import write_recording


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("film")/"film", 3, seed=4, cams=mouse_rig().resized(576, 512), truth=False)


def doctor(*args):
    return subprocess.run([sys.executable, "-c", "from gslrm_mouse.cli import main; main()", "doctor", *map(str, args)], capture_output=True, text=True)


def spoilt(film, to, change):
    shutil.copytree(film, to)
    rig = pickle.loads((to/"new_cam.pkl").read_bytes())
    for i, d in enumerate(rig): change(i, d)
    (to/"new_cam.pkl").write_bytes(pickle.dumps(rig, protocol=4))
    return to


def test_a_sound_recording_is_fit(film):
    got = doctor(film, "--json")
    d = json.loads(got.stdout)
    assert got.returncode == 0 and d["status"] == 0 and d["findings"] == [] and .6 < d["predicted"]["iou"] < .8 and not got.stderr
    notes = {n["name"]: n for n in d["notes"]}
    assert {"units", "origin", "coverage", "field_of_view"} <= set(notes) and all(n["note"] for n in notes.values())
    assert 300 < notes["units"]["number"] < 350 and 38 < notes["field_of_view"]["number"] < 41


def test_a_broken_one_will_fail(film, tmp_path):
    def change(i, d): d["K"][[0, 1], [0, 1]] /= 1.5
    got = doctor(spoilt(film, tmp_path/"k", change))
    assert got.returncode == 1 and "overwritten_k" in got.stdout and "gslrm_mouse preprocess" in got.stdout and got.stdout.strip().splitlines()[-1].startswith("will fail")


@pytest.mark.parametrize("make", [
    lambda p: p/"absent",
    lambda p: (p/"a.json").write_text("{") and p/"a.json",
    lambda p: (p/"a.pkl").write_bytes(b"\x80\x04c") and p/"a.pkl",
    lambda p: (p/"a.toml").write_text("x = ") and p/"a.toml",
    lambda p: (p/"empty").mkdir() or p/"empty",
])
def test_what_cannot_be_read_has_a_status_of_its_own(tmp_path, make):
    got = doctor(make(tmp_path))
    assert got.returncode == 3 and "Traceback" not in got.stderr and len(got.stderr.strip().splitlines()) == 1 and not got.stdout


def test_usage_is_another_status():
    got = doctor("--no-such-option")
    assert got.returncode == 2


def test_no_network_is_loaded(film, monkeypatch):
    import gslrm_mouse.models.checkpoint as c
    from gslrm_mouse.models.gslrm import GSLRM
    def never(*a, **k): raise AssertionError("the network was loaded")
    monkeypatch.setattr(c, "load_checkpoint", never)
    monkeypatch.setattr(GSLRM, "__init__", never)
    assert diagnose(film).status == 0


@pytest.mark.parametrize("seed", range(6))
def test_random_rigs_that_are_sound_are_fit(tmp_path, seed):
    "Other rigs than the documented one: 3 to 8 cameras at random places, lenses and aims, each seeing the whole animal."
    import torch
    from gslrm_mouse.cameras.pinhole import Cameras, look_at
    from gslrm_mouse.doctor.checks import silhouettes
    from gslrm_mouse.doctor.evidence import Evidence
    from gslrm_mouse.scenes.bodies import mouse_scene
    from gslrm_mouse.scenes.tracer import raytrace
    g = torch.Generator().manual_seed(seed)
    n = int(torch.randint(3, 9, (1,), generator=g))
    r = lambda *s: torch.rand(*s, generator=g, dtype=torch.float64)
    az, el, d = (torch.arange(n) + .6*r(n))*2*np.pi/n, .1 + .7*r(n), 250 + 150*r(n)
    scene = mouse_scene(seed)
    middle = torch.from_numpy(scene.centers).mean(0)
    eye = middle + d[:, None]*torch.stack([el.cos()*az.cos(), el.cos()*az.sin(), el.sin()], -1)
    K = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = 250 + 80*r(n)
    K[:, 0, 2], K[:, 1, 2] = 160 + 20*(r(n) - .5), 150 + 20*(r(n) - .5)
    cams = Cameras(K, look_at(eye, middle + 10*(r(n, 3) - .5)), 320, 300, "mm")
    found = list(silhouettes(Evidence(tmp_path, "sample", "", cams, raytrace(scene, cams, 2)), None, None, None))
    assert [f.name for f in found] == ["residual"], found
