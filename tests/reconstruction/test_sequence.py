"""Sequences: the same Gaussians in every frame, also after a kill; a lost animal is found again."""
import json
import shutil
from functools import partial

import numpy as np
import pytest

from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.gaussians.ply import load_ply
from gslrm_mouse.reconstruction import pipeline
from gslrm_mouse.reconstruction.pipeline import MANIFEST, frame_folder
from gslrm_mouse.reconstruction.sequence import MOTION, SEQUENCE, load_sequence
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.views.recordings import open_recording
from gslrm_mouse.views.triangulation import triangulate

N = 4
reconstruct = partial(
    pipeline.reconstruct, quality="draft", pixels=40, gaussians=150, sequence=True, turntable=False, film=False,
    viewer=False)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence")/"rec"
    return write_recording(folder, N, seed=102, cams=mouse_rig().resized(144, 128), truth=False)


@pytest.fixture(scope="module")
def whole(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")/"out"
    reconstruct(recording, out, frames=range(N))
    return out


def test_the_same_gaussians_follow_the_animal(recording, whole):
    sequence = load_sequence(whole)
    assert sequence.positions.shape == (N, len(load_ply(frame_folder(whole, 0)/"gaussians.ply")), 3)
    assert sequence.unit == "mm" and sequence.numbers.tolist() == list(range(N)) and sequence.kinds[0] == "first"
    places = np.array([triangulate(views).point.numpy() for views in open_recording(recording).frames()])
    moved = np.median(sequence.positions, 1)
    assert np.linalg.norm(places[-1] - places[0]) > 8
    assert np.linalg.norm((moved[-1] - moved[0]) - (places[-1] - places[0])) < 3
    steps = np.linalg.norm(np.diff(sequence.positions, axis=0), axis=-1)
    assert np.median(steps) < 8 # nobody changed places
    for i in range(N):
        stored = load_ply(frame_folder(whole, i)/"gaussians.ply")
        assert np.allclose(sequence.gaussians(i).means, stored.means)
        assert np.allclose(sequence.gaussians(i).scales, stored.scales, rtol=1e-4)


def test_a_killed_run_continues_to_the_same_numbers(recording, whole, tmp_path):
    out = tmp_path/"out"
    shutil.copytree(whole, out)
    shutil.rmtree(frame_folder(out, 2))
    (out/SEQUENCE).unlink()
    manifest = json.loads((out/MANIFEST).read_text())
    (out/MANIFEST).write_text(json.dumps(dict(settings=manifest["settings"], complete=False)))
    kept = (frame_folder(out, 1)/"gaussians.ply").stat().st_mtime_ns
    reconstruct(recording, out, frames=range(N)) # frame 3 is made again too: it began in frame 2
    assert (frame_folder(out, 1)/"gaussians.ply").stat().st_mtime_ns == kept
    for i in range(N):
        names = [p.name for p in frame_folder(out, i).iterdir() if p.name != "results.jsonl"] # they hold seconds
        assert MOTION in names
        for name in names:
            assert (frame_folder(out, i)/name).read_bytes() == (frame_folder(whole, i)/name).read_bytes()
    a, b = load_sequence(out), load_sequence(whole)
    assert np.array_equal(a.positions, b.positions) and np.array_equal(a.colors, b.colors)


def test_other_settings_are_refused(recording, whole):
    with pytest.raises(ValueError, match="holds frames made with another"):
        reconstruct(recording, whole, frames=[0], sequence=False)
    with pytest.raises(ValueError, match="a sequence needs frames"): reconstruct(recording, whole/"new")
    with pytest.raises(ValueError, match="a sequence needs frames"):
        reconstruct(recording, whole/"new", frames=[0], fit=3)
