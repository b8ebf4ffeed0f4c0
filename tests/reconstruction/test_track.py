"""A track of a moving body: it turns, shifts and grows with the body, and its three files say the same."""
import csv
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from gslrm_mouse import cli
from gslrm_mouse.cameras.rotations import matrix_to_quat, quaternion_product, rotvec_to_matrix
from gslrm_mouse.reconstruction.sequence import SEQUENCE, Sequence, save_sequence
from gslrm_mouse.reconstruction.track import NEEDS_TRACK, measure, track_table

pynwb, xarray = (pytest.importorskip(name, reason=NEEDS_TRACK) for name in ("pynwb", "xarray"))
FRAMES = 4
CELLS = 48


def body_points(rng):
    "An ellipsoid's surface of 60 × 24 × 20 mm along x, and a tail of 60 mm behind it."
    directions = rng.normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    tail = np.stack([np.linspace(-88, -31, 60), *rng.normal(scale=.4, size=(2, 60))], -1)
    return np.concatenate([directions*[30, 12, 10], tail])


def moved(points, turns, shifts):
    "A sequence of the points, turned about z by `turns` degrees and shifted."
    positions, rotations = [], []
    for turn, shift in zip(turns, shifts):
        R = rotvec_to_matrix([0, 0, math.radians(turn)])
        positions.append(points @ R.T + shift)
        quat = matrix_to_quat(torch.from_numpy(R)).float()
        rotations.append(quaternion_product(quat, torch.tensor([[1., 0, 0, 0]])).expand(len(points), 4))
    n = len(points)
    return Sequence(
        numbers=np.arange(len(turns)),
        positions=np.stack(positions).astype(np.float32),
        tracked=np.stack(positions).astype(np.float32),
        rotations=torch.stack(rotations).numpy(),
        scales=np.full((1, n, 3), 2., np.float32),
        opacities=np.full((1, n), .8, np.float32),
        colors=np.full((1, n, 3), .5, np.float32),
        appearance=np.zeros(len(turns), int),
        kinds=np.array(["first"] + ["followed"]*(len(turns) - 1)),
        iou=np.full(len(turns), .9),
        up=np.array([0., 0, 1]),
        unit="mm")


@pytest.fixture(scope="module")
def points():
    return body_points(np.random.default_rng(0))


@pytest.fixture(scope="module")
def still(points):
    return measure(moved(points, [0]*FRAMES, np.zeros((FRAMES, 3))), fps=20, points=4, cells=CELLS)


def test_a_body_of_known_size(still):
    assert still.names[:3] == ("nose", "tail_base", "tail_tip")
    assert np.allclose(still.axis[0], [1, 0, 0], atol=.02) and abs(still.heading[0]) < 1
    assert still.length[0] == pytest.approx(60, abs=4)
    assert still.length_with_tail[0] == pytest.approx(60 + 58, abs=6)
    assert still.speed.max() < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_what_moves_and_what_stays(points, still, seed):
    rng = np.random.default_rng(seed)
    turns, shifts = rng.uniform(-80, 80, FRAMES), rng.uniform(-50, 50, (FRAMES, 3))
    track = measure(moved(points, turns, shifts), fps=20, points=4, cells=CELLS)
    assert np.allclose(track.heading - still.heading, turns, atol=.05)
    for i in range(FRAMES):
        R = rotvec_to_matrix([0, 0, math.radians(turns[i])])
        assert np.allclose(track.points[i], still.points[i] @ R.T + shifts[i], atol=1e-3)
        off = np.linalg.norm(track.centroid[i] - (R @ still.centroid[i] + shifts[i]))
        assert off < .8 # a third of a cell of the grid, which does not turn
    assert np.allclose(track.length, still.length, rtol=1e-4)
    assert np.allclose(track.volume, still.volume, rtol=.1) # the grid has as many cells along any longest side
    assert np.allclose(track.point_confidence, .9, atol=1e-3)


def test_size(points, still):
    twice = moved(2*points, [0]*FRAMES, np.zeros((FRAMES, 3)))
    track = measure(replace(twice, scales=2*twice.scales), fps=20, points=4, cells=CELLS)
    assert np.allclose(track.volume, 8*still.volume, rtol=.01)
    assert np.allclose(track.area, 4*still.area, rtol=.01)
    assert np.allclose(track.length_with_tail, 2*still.length_with_tail, rtol=.01)


def test_a_point_that_is_torn_away_is_not_trusted(points, still):
    sequence = moved(points, [0]*FRAMES, np.zeros((FRAMES, 3)))
    torn = int(np.linalg.norm(points - still.points[0, 3], axis=1).argmin())
    sequence.positions[2, torn] += [0, 25, 0]
    track = measure(sequence, fps=20, points=4, cells=CELLS)
    assert track.point_confidence[2, 3] < .1 and track.point_confidence[[0, 1, 3], 3].min() > .89


def test_the_files_of_the_command_agree(points, tmp_path, capsys):
    shifts = np.arange(FRAMES)[:, None]*[3., 4., 0.] # 5 mm in a frame
    save_sequence(moved(points, [0]*FRAMES, shifts), tmp_path/SEQUENCE)
    cli.main(["track", str(tmp_path), "--fps", "20", "--points", "3", "--cells", str(CELLS)])
    line = capsys.readouterr().out.splitlines()[0]
    assert float(re.search(r"median speed ([\d.]+) mm/s", line)[1]) == pytest.approx(100, rel=.05)

    rows = list(csv.DictReader((tmp_path/"track.csv").open()))
    nose = np.array([[float(row[f"nose_{axis}_mm"]) for axis in "xyz"] for row in rows])
    with xarray.open_dataset(tmp_path/"track.nc", engine="scipy") as data:
        of_movement = data.position.sel(keypoint="nose", individual="mouse").values
    with pynwb.NWBHDF5IO(str(tmp_path/"track.nwb"), "r") as f:
        behavior = f.read().processing["behavior"]
        of_nwb, speed = behavior["PoseEstimation"]["nose"].data[:], behavior["speed"].data[:]
    assert np.allclose(nose, of_movement, rtol=1e-4, atol=1e-3) and np.allclose(of_nwb, of_movement)
    assert np.allclose([float(row["speed_mm_per_s"]) for row in rows], speed, rtol=1e-4)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["track", *map(str, arguments)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_what_cannot_be_tracked_is_said(points, tmp_path, capsys):
    assert SEQUENCE in refused(capsys, tmp_path)
    save_sequence(moved(points, [0, 0], np.zeros((2, 3))), tmp_path/SEQUENCE)
    assert "state them with --fps" in refused(capsys, tmp_path)
    assert "should be positive, got 0.0" in refused(capsys, tmp_path, "--fps", 0)
    whole = (tmp_path/SEQUENCE).read_bytes()
    (tmp_path/SEQUENCE).write_bytes(whole[:len(whole)//2])
    assert SEQUENCE in refused(capsys, tmp_path, "--fps", 20)
    assert not (tmp_path/"track.csv").exists()


def test_the_table_of_a_body_without_a_tail(points):
    track = measure(moved(points[:500], [0, 0], np.zeros((2, 3))), fps=20, points=2, cells=CELLS)
    assert track.names == ("nose", "tail_base", "surface_0", "surface_1") and np.isnan(track.length_with_tail).all()
    header, first = track_table(track).splitlines()[:2]
    assert dict(zip(header.split(","), first.split(",")))["length_with_tail_mm"] == "nan"
