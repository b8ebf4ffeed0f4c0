"""Many frames: read once, made whole or not at all, resumed after a kill, in steady memory; filters and PLY files."""
import io
import json
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import plyfile
import pytest
import torch
from conftest import DATA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gslrm_mouse import cli, files, video
from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.files import read_jsonl
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.filters import FILTERS, Filters
from gslrm_mouse.gaussians.ply import load_ply, ply_world
from gslrm_mouse.gaussians.rasterize import render
from gslrm_mouse.metrics import image_scores, mean_scores
from gslrm_mouse.models import named
from gslrm_mouse.models.checkpoint import load_checkpoint
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.preprocess.canonical import canonicalize
from gslrm_mouse.reconstruction import frame as one_frame
from gslrm_mouse.reconstruction import pipeline
from gslrm_mouse.reconstruction.film import cloud_center, cloud_radius, turntable_cameras, up_axis
from gslrm_mouse.reconstruction.pipeline import MANIFEST, frame_folder, load_finished
from gslrm_mouse.reconstruction.prediction import fit_to_views, predict, training_blur
from gslrm_mouse.scenes.bodies import canonical_scene, mouse_scene
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.video import decode_frame, decode_frames, write_video
from gslrm_mouse.views.recordings import MASKS, VIDEOS, open_recording, read_views
from gslrm_mouse.views.samples import write_sample

N = 12 # frames of the recording
HANGS = 1800 # seconds after which a process is taken to hang
reconstruct = partial(pipeline.reconstruct, fit=0) # the network alone: most of these tests are about files


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")/"rec"
    return write_recording(folder, N, seed=5, cams=mouse_rig().resized(144, 128), truth=False)


def manifest(out):
    return json.loads((out/MANIFEST).read_text())


def contents(out):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}


def folders(out):
    return sorted(int(p.name.removeprefix("frame_")) for p in out.glob("frame_*"))


def records(folder):
    return [json.loads(line) for line in (folder/"results.jsonl").read_text().splitlines()]


def without_seconds(lines):
    "The lines of stages without those that say how long one took."
    return [line for line in lines if not re.search(r": \d+ s$", line)]


def n_decoded(path, numbers):
    return len(list(decode_frames(path, numbers)))


# ---- reading ----

def write_numbered(path, gop, b_frames, open_gop):
    "A video of 30 frames, each of which shows its own number."
    options = dict(crf="10", g=str(gop), bf=str(b_frames))
    if open_gop: options["x264-params"] = "open-gop=1"
    with av.open(str(path), "w") as f:
        stream = f.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for i in range(30):
            image = np.zeros((32, 64, 3), np.uint8)
            image[:, 2*i:2*i + 2] = 255
            image[:16, :8] = 8*i
            f.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        f.mux(stream.encode())


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gop=st.integers(1, 40), b_frames=st.integers(0, 3), open_gop=st.booleans(),
    order=st.lists(st.integers(0, 29), min_size=1, max_size=12), is_sorted=st.booleans())
def test_frames_are_those_counted(tmp_path, gop, b_frames, open_gop, order, is_sorted):
    "A neighbouring frame would be noticed."
    path = tmp_path/"0.mp4"
    write_numbered(path, gop, b_frames, open_gop)
    with av.open(str(path)) as f: counted = [x.to_ndarray(format="rgb24") for x in f.decode(video=0)]
    assert len(counted) == 30
    assert all(np.abs(a.astype(int) - b).max() > 60 for a, b in zip(counted, counted[1:]))
    if is_sorted: order = sorted(order)
    for i, image in zip(order, decode_frames(path, order), strict=True): assert np.array_equal(image, counted[i])


def n_needed(path, numbers): # frames from the key frame before each, or from where the decoder is
    with av.open(str(path)) as f: packets = [(p.pts, p.is_keyframe) for p in f.demux(video=0) if p.pts is not None]
    keys = [i for i, (_, is_key) in enumerate(sorted(packets)) if is_key]
    total, last = 0, None
    for i in numbers:
        start = max(key for key in keys if key <= i)
        if last is not None and start <= last < i: start = last + 1
        total += i + 1 - start
        last = i
    return total, keys


@pytest.mark.parametrize("numbers", [[25], [1, 25], [12, 13], [15, 12], "a key frame", "behind the next one"])
def test_no_more_is_decoded_than_from_the_key_frame_on(tmp_path, monkeypatch, numbers):
    path = tmp_path/"0.mp4"
    write_numbered(path, gop=10, b_frames=0, open_gop=False)
    keys = n_needed(path, [])[1]
    key, next_key = next((a, b) for a, b in zip(keys, keys[1:]) if b - a > 3)
    if numbers == "a key frame": numbers = [next_key]
    if numbers == "behind the next one": numbers = [key, next_key + 1]
    decode_until, consumed = video._decode_until, []

    def counted(decoded, stamp):
        def counting():
            for frame in decoded:
                consumed.append(frame.pts)
                yield frame
        return decode_until(counting(), stamp)

    monkeypatch.setattr(video, "_decode_until", counted)
    for i, image in zip(numbers, decode_frames(path, numbers), strict=True):
        assert abs(int(image[4, 4].mean()) - 8*i) < 8
    assert len(consumed) == n_needed(path, numbers)[0]


class CountedVideo:
    "An opened video that notes every frame its decoder returns."
    def __init__(self, opened, decoded): self.opened, self.decoded = opened, decoded

    def __enter__(self):
        self.container = self.opened.__enter__()
        return self

    def __exit__(self, *args): return self.opened.__exit__(*args)

    def __getattr__(self, name): return getattr(self.container, name)

    def decode(self, stream):
        for frame in self.container.decode(stream):
            self.decoded.append(frame)
            yield frame


def test_a_row_of_frames_is_decoded_once(film, monkeypatch):
    "The decoder returns the frames up to the last one that is needed, each once and not one more."
    path, decoded, open_video = film/"videos_undist/0.mp4", [], video.open_video
    monkeypatch.setattr(video, "open_video", lambda p: CountedVideo(open_video(p), decoded))
    list(decode_frames(path, [0, 3, 4, 9]))
    assert len(decoded) == 10
    decoded.clear()
    for i in (0, 3, 4, 9): decode_frame(path, i)
    assert len(decoded) == 1 + 4 + 5 + 10


def test_recording_in_a_row_is_recording_one_by_one(film):
    rec = open_recording(film)
    for i, views in zip((1, 2, 7, 4), rec.frames([1, 2, 7, 4]), strict=True):
        alone = rec.frame(i)
        assert torch.equal(views.images, alone.images) and torch.equal(views.alpha, alone.alpha)
        assert views.names == alone.names
    assert not torch.equal(rec.frame(1).images, rec.frame(2).images)
    two = rec[[4, 1]].frame(3)
    assert torch.equal(two.images, rec.frame(3).images[[4, 1]])
    assert torch.equal(two.cameras.w2c, rec.cameras.w2c[[4, 1]])


# ---- filters ----

PARITY = dict(
    inference=FILTERS["facelift"], training=FILTERS["training"], opacity_only_0p05=Filters(.05),
    scaling_0p1_only=Filters(None, .1), floater_0p6_only=Filters(None, floater=.6),
    nearfar_0p05_0p95=Filters(None, near_far=(.05, .95)))


def test_filters_leave_what_facelift_leaves():
    path = DATA/"parity/d_extras.npz"
    if not path.is_file(): pytest.skip("the parity numbers ../shared/data/parity/d_extras.npz are not on this machine")
    numbers = np.load(path)
    def tensor(name): return torch.from_numpy(numbers[name])

    means, quats, features = (tensor(f"gs/{k}") for k in ("xyz", "rotation", "features"))
    g = Gaussians(means, quats, tensor("gs/scaling").exp(), tensor("gs/opacity")[:, 0].sigmoid(), features)
    other_axes = replace(g, means=g.means[:, [2, 0, 1]])
    origins = tensor("filter/cam_origins")
    for name, filters in PARITY.items():
        expected = numbers[f"filter/kept_{name}"].tolist()
        assert filters.mask(g, origins).nonzero()[:, 0].tolist() == expected, name
        looks_at_axes = name not in ("opacity_only_0p05", "training")
        if looks_at_axes: assert filters.mask(other_axes, origins).nonzero()[:, 0].tolist() != expected, name


def cloud(n, seed):
    rng = np.random.default_rng(seed)
    def tensor(x): return torch.from_numpy(x).float()

    means, quats, log_scales = rng.normal(size=(n, 3))*.7, rng.normal(size=(n, 4)), rng.normal(size=(n, 3)) - 3
    opacities, sh = rng.uniform(size=n), rng.normal(size=(n, 1, 3))
    return Gaussians(*map(tensor, (means, quats, np.exp(log_scales), opacities, sh)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(0, 99), st.floats(0, 1), st.floats(0, .3), st.floats(0, 1), st.floats(.1, 1.5))
def test_filters_against_a_loop(n, seed, opacity, scale, floater, box):
    g, expected = cloud(n, seed), []
    low_opacity, large, corner, side = (np.float32(x) for x in (opacity, scale, floater, box))
    for mean, o, scales in zip(g.means.numpy(), g.opacities, g.scales):
        x, y, z = mean
        is_visible = o.item() > low_opacity
        is_small = scales.max().item() < large or z > 0
        is_floater = abs(x) > corner and abs(y) > corner and z < -corner
        is_inside = abs(x) <= side and abs(y) <= side and -1 <= z <= 1
        expected.append(bool(is_visible and is_small and not is_floater and is_inside))
    filters = Filters(opacity, scale, 0., floater, ((-box, -box, -1.), (box, box, 1.)))
    assert filters.mask(g).tolist() == expected
    assert Filters(None).mask(g).all()


# ---- files ----

def comments(ply):
    return {key: values for key, *values in (c.split() for c in ply.comments)}


def positions(ply):
    return np.stack([ply["vertex"][k] for k in "xyz"], 1).astype(float)


@pytest.mark.parametrize("units, other", [("mm", "model"), ("model", "mm")])
def test_units_of_the_ply(film, tmp_path, units, other):
    "Read by plyfile and transformed by numpy: positions, scales and renderings are those of the other unit."
    options = dict(turntable=False, panels=False)
    for folder, unit in (("a", units), ("b", other)): reconstruct(film, tmp_path/folder, 3, units=unit, **options)
    paths = [tmp_path/folder/"gaussians.ply" for folder in "ab"]
    a, b = (plyfile.PlyData.read(p) for p in paths)
    header = comments(a)
    assert header["unit"] == [units] and header["up"] == ["+z"] and header["to"][0] != units
    scale, *numbers = (float(x) for x in header["to"][1:])
    quat, shift = np.array(numbers[:4]), np.array(numbers[4:])
    assert np.allclose(quat, [1, 0, 0, 0], atol=1e-9) # this rig's world is upright: the similarity does not turn
    assert np.allclose(scale*positions(a) + shift, positions(b), atol=1e-5*max(1, scale))
    assert np.allclose(a["vertex"]["scale_1"] + np.log(scale), b["vertex"]["scale_1"], atol=1e-5)
    assert not np.allclose(positions(a), positions(b), atol=.1)

    clouds, to_other = [load_ply(p) for p in paths], ply_world(paths[0])[2]
    to_mm = to_other if units == "model" else to_other.inverse
    in_mm = [g if g.unit == "mm" else g.transform(to_mm) for g in clouds]
    cameras = read_views(film, 3).cameras
    x, y = (render(g, cameras)[0] for g in in_mm)
    assert (x - y).abs().mean() < 1e-6 and x.min() < .5


def test_up_of_the_recording():
    "The same frame in a world whose up axis is -y: the same Gaussians and the same turntable."
    model, card = load_checkpoint()
    views = raytrace(mouse_scene(3), mouse_rig().resized(288, 256), 2)
    to_y_down = Similarity(1., torch.tensor([[1., 0, 0], [0, 0, -1], [0, 1, 0]]), None, "mm", "mm")
    y_down = replace(views, cameras=to_y_down.cameras(views.cameras))

    def reconstructed(views, up=None):
        prepared = canonicalize(views, card.domain, up=up)
        return predict(model, prepared, training_blur(card.domain), FILTERS["ours"]), up_axis(prepared)

    def turntable(g, up=None): return render(g, turntable_cameras(g, 5, 96, up=up))[0]

    minus_y = torch.tensor([0., -1, 0])
    upright, (lying, lying_up), undeclared = (reconstructed(*x) for x in ((views,), (y_down, minus_y), (y_down,)))
    assert torch.allclose(lying_up, minus_y.double(), atol=1e-9)
    expected = turntable(*upright)
    assert (expected - turntable(lying, lying_up)).abs().mean() < 2e-3
    assert (expected - turntable(*undeclared)).abs().mean() > .01
    assert (expected - turntable(lying)).abs().mean() > .01


@settings(deadline=None, max_examples=40)
@given(st.integers(5, 200), st.integers(0, 99), st.floats(.01, 100))
def test_middle_moves_with_the_cloud(n, seed, s):
    g = cloud(n, seed)
    similarity = Similarity(s, None, torch.tensor([3., -7, 11]).double(), "model", "mm")
    moved, center = g.transform(similarity), cloud_center(g)
    moved_center = similarity(center)
    assert torch.allclose(cloud_center(moved), moved_center, atol=1e-4*(s + 20))
    assert abs(cloud_radius(moved, moved_center) - s*cloud_radius(g, center)) < 1e-3*(s + 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(5, 200), st.integers(0, 99))
def test_a_floater_leaves_the_middle_in_the_cloud(n, seed):
    g = cloud(n, seed)
    floater = replace(g.select([0]), means=torch.full((1, 3), 1e3), opacities=torch.tensor([.041]))
    fields = ("means", "quats", "scales", "opacities", "sh")
    both = replace(g, **{k: torch.cat([getattr(g, k), getattr(floater, k)]) for k in fields})
    center = cloud_center(both)
    low, high = g.means.double().min(0).values, g.means.double().max(0).values
    assert (center >= low - 1e-9).all() and (center <= high + 1e-9).all()


# ---- many frames ----

def test_one_model_for_all(film, tiny_checkpoint, tmp_path, monkeypatch):
    loads, out = [], tmp_path/"d"

    def counted(*args):
        loads.append(args)
        return load_checkpoint(*args)
    monkeypatch.setattr(named, "load_checkpoint", counted)
    scores = reconstruct(film, out, checkpoint=tiny_checkpoint, frames=[5, 0, 5], turntable=False)
    assert len(loads) == 1
    assert folders(out) == [0, 5] and set(scores) == {"input"}
    names = {"gaussians.ply", "results.jsonl", "cameras.txt", "views.png", "cameras.png"}
    for i in (0, 5): assert {p.name for p in frame_folder(out, i).iterdir()} == names
    rows = records(out)
    assert [(r["frame"], r["camera"]) for r in rows] == [(i, camera) for i in (0, 5) for camera in range(6)]
    assert {r["checkpoint"] for r in rows} == {manifest(out)["settings"]["checkpoint"]}
    assert manifest(out)["complete"]
    assert n_decoded(out/"film.mp4", [0, 1]) == 2


def test_a_frame_of_many_is_the_frame_alone(film, tiny_checkpoint, tmp_path):
    options = dict(checkpoint=tiny_checkpoint, turntable=False, panels=False)
    one, many = tmp_path/"one", tmp_path/"many"
    reconstruct(film, one, 7, **options)
    reconstruct(film, many, frames=range(3, N, 4), film=False, viewer=False, **options)
    for name in ("gaussians.ply", "cameras.txt"):
        assert (one/name).read_bytes() == (frame_folder(many, 7)/name).read_bytes()
    assert (one/"gaussians.ply").read_bytes() != (frame_folder(many, 3)/"gaussians.ply").read_bytes()
    assert not (many/"film.mp4").exists()


def dark(image):
    return image.mean(-1) < .7


def overlap(a, b):
    return (a & b).sum()/(a | b).sum()


def test_the_film_does_not_depend_on_the_unit(film, tmp_path):
    "Gaussians of the shipped checkpoint: the video is the same in both units, and its reconstruction fits the input."
    images = []
    for units in ("mm", "model"):
        reconstruct(film, tmp_path/units, frames=[0, 6, 11], units=units, turntable=False, panels=False)
        decoded = list(decode_frames(tmp_path/units/"film.mp4", range(3)))
        images.append(np.stack(decoded).astype(float)/255)
    a, b = images
    assert a.shape[1:] == (256, 2*288 + 256 + 4, 3)
    assert np.abs(a - b).mean() < 1e-3
    inputs, reconstructed, turning = a[:, 20:, :288], a[:, 20:, 290:578], a[:, :, 580:]
    assert min(overlap(dark(x), dark(y)) for x, y in zip(inputs, reconstructed)) > .4
    assert overlap(dark(inputs[0]), dark(reconstructed[2])) < .4
    assert all(dark(x).sum() > 300 for x in turning)
    assert np.abs(turning[0] - turning[1]).mean() > .005


def test_a_folder_of_samples(tiny_checkpoint, tmp_path):
    cameras = orbit(torch.arange(5)*72., 20., size=64)
    for k in range(3): write_sample(raytrace(canonical_scene("head", k), cameras), tmp_path/"in"/f"sample_{k:06d}")
    options = dict(checkpoint=tiny_checkpoint, turntable=False, panels=False)
    scores = reconstruct(tmp_path/"in", tmp_path/"d", frames=[0, 2], **options)
    assert folders(tmp_path/"d") == [0, 2] and set(scores) == {"input", "novel"}
    with pytest.raises(ValueError, match="sample 3 .* 3 samples"):
        reconstruct(tmp_path/"in", tmp_path/"e", checkpoint=tiny_checkpoint, frames=[3])
    sample = tmp_path/"in"/"sample_000000"
    reconstruct(sample, tmp_path/"as_it_is", units="model", **options)
    with pytest.raises(ValueError, match="both are in model units"):
        reconstruct(sample, tmp_path/"turned", units="model", up=torch.tensor([0., 1, 0]), **options)


CHANGES = dict(
    filters=Filters(.5), units="model", choose="size", up=torch.tensor([0., 1, 0]), inputs=4, sized=True, panels=True,
    checkpoint=None)


def test_settings_do_not_mix(film, tiny_checkpoint, tmp_path):
    out = tmp_path/"d"
    options = dict(checkpoint=tiny_checkpoint, frames=[0, 1], turntable=False, panels=False, film=False, viewer=False)
    reconstruct(film, out, **options)
    before = contents(out)
    for key, value in CHANGES.items():
        with pytest.raises(ValueError, match=f"another {key} ") as e: reconstruct(film, out, **options | {key: value})
        assert "\n" not in str(e.value)
        assert contents(out) == before
    overwriting = options | dict(units="model", overwrite=True)
    with pytest.raises(ValueError, match="holds frame 1, made with another units"):
        reconstruct(film, out, **overwriting | dict(frames=[0]))
    assert contents(out) == before
    reconstruct(film, out, **overwriting)
    assert {load_ply(p).unit for p in out.rglob("*.ply")} == {"model"}
    assert manifest(out)["settings"]["units"] == "model"


def test_a_folder_of_another_version_is_named(film, tiny_checkpoint, tmp_path):
    out = tmp_path/"d"
    options = dict(checkpoint=tiny_checkpoint, frames=[0], turntable=False, panels=False, film=False, viewer=False)
    reconstruct(film, out, **options)
    current = manifest(out)
    elsewhere = "by a version in which the optimisation of a frame begins elsewhere"
    in_another_way = "by a version whose sequences follow the animal in another way"
    without_it = r"by another version, with other settings \(unit\)"
    for key, value, words in (
            ("start", 0, elsewhere), ("motion", dict(steps=30), in_another_way), ("unit", None, without_it)):
        older = json.loads(json.dumps(current))
        if value is None:
            del older["settings"][key]
        else:
            older["settings"][key] = value
        (out/MANIFEST).write_text(json.dumps(older))
        before = contents(out)
        with pytest.raises(ValueError, match=f"was begun {words}; choose another folder, or pass --overwrite"):
            reconstruct(film, out, **options | dict(frames=[0, 1]))
        assert contents(out) == before
    reconstruct(film, out, **options, overwrite=True)
    assert manifest(out)["settings"] == current["settings"]


def test_a_changed_source_does_not_mix(film, tiny_checkpoint, tmp_path):
    source, out = tmp_path/"rec", tmp_path/"d"
    shutil.copytree(film, source)
    options = dict(checkpoint=tiny_checkpoint, turntable=False, panels=False, film=False, viewer=False)
    reconstruct(source, out, frames=[0], **options)
    before = contents(out)
    for name in (f"{MASKS}/2.mp4", f"{VIDEOS}/0.mp4"):
        stored = (source/name).read_bytes()
        (source/name).write_bytes(stored + b"\0")
        with pytest.raises(ValueError, match=f"{name} has changed; choose another folder, or pass --overwrite"):
            reconstruct(source, out, frames=[0, 1], **options)
        assert contents(out) == before
        (source/name).write_bytes(stored)
    reconstruct(source, out, frames=[0, 1], **options)
    assert folders(out) == [0, 1]


def empty_mask(recording, camera, frame):
    path = recording/f"simpleclick_undist/{camera}.mp4"
    masks = list(decode_frames(path, range(N)))
    masks[frame] = masks[frame]*0
    write_video(path, masks, fps=20, crf=12)


def test_cameras_that_do_not_see_the_animal_are_left_out_of_a_frame(film, tiny_checkpoint, tmp_path, capsys):
    rec, out = shutil.copytree(film, tmp_path/"rec"), tmp_path/"d"
    for camera in (0, 3):
        empty_mask(rec, camera, 4)
    reconstruct(rec, out, frames=[3, 4], inputs=5, checkpoint=tiny_checkpoint, turntable=False, panels=False)

    def cameras(frame, split):
        records = read_jsonl(frame_folder(out, frame)/"results.jsonl")
        return [r["camera"] for r in records if r["split"] == split]

    every = {*cameras(3, "input"), *cameras(3, "novel")}
    assert every == set(range(6)) and len(cameras(3, "novel")) == 1
    assert cameras(4, "input") == [i for i in cameras(3, "input") if i not in (0, 3)]
    assert cameras(4, "novel") == [i for i in cameras(3, "novel") if i not in (0, 3)]
    assert n_decoded(out/"film.mp4", [0, 1]) == 2
    empty = [read_jsonl(frame_folder(out, frame)/"results.jsonl")[0].get("empty") for frame in (3, 4)]
    assert empty == [None, ["camera 0", "camera 3"]]
    assert "masks are empty there: camera 0 in 1 of 2, camera 3 in 1 of 2" in capsys.readouterr().err
    with pytest.raises(ValueError, match="camera 0, frame 4: the mask"): # of one frame, a missing mask is said
        reconstruct(rec, tmp_path/"one", frame=4, checkpoint=tiny_checkpoint)


def test_bad_frames(film, tiny_checkpoint, tmp_path):
    rec, out = shutil.copytree(film, tmp_path/"rec"), tmp_path/"d"
    for camera in range(1, 6):
        empty_mask(rec, camera, 4)
    options = dict(checkpoint=tiny_checkpoint, turntable=False, panels=False)
    empty = "frame 4: only 1 of 6 input views show the animal, the masks of the others are empty; leave such out"
    with pytest.raises(ValueError, match=empty) as e:
        reconstruct(rec, out, frames=[3, 4, 5], **options)
    assert "\n" not in str(e.value)
    assert folders(out) == [3] and not manifest(out)["complete"]

    reconstruct(rec, out, frames=[3, 4, 5], skip_bad=True, **options)
    made = manifest(out)
    assert folders(out) == [3, 5] == made["frames"]
    assert list(made["skipped"]) == ["4"] and made["complete"]
    assert n_decoded(out/"film.mp4", [0, 1]) == 2
    for folder in (out, tmp_path/"e"): # with other frames, and empty
        with pytest.raises(ValueError, match="no frame could be made"):
            reconstruct(rec, folder, frames=[4], skip_bad=True, **options)
    reconstruct(rec, out, frames=[3, 5], **options)
    assert list(manifest(out)["skipped"]) == ["4"] # is still missing


# ---- killed ----

def start(film, out, tiny_checkpoint, **options):
    code = f"""
from gslrm_mouse.reconstruction.pipeline import reconstruct
reconstruct({str(film)!r}, {str(out)!r}, checkpoint={str(tiny_checkpoint)!r}, fit=0, **{options!r})
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def kill_when(process, happened, after=0.):
    "Kill a process `after` seconds after `happened()`, however long that takes."
    deadline = time.monotonic() + HANGS
    while not happened() and process.poll() is None:
        assert time.monotonic() < deadline, "the process hangs"
        time.sleep(.005)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_after_kills_only_whole_frames(film, tiny_checkpoint, tmp_path):
    out, kept, rng, n_frames = tmp_path/"d", {}, random.Random(0), 8
    for n in (1, 3): # killed twice, after at least n frames
        process = start(film, out, tiny_checkpoint, frames=list(range(n_frames)), panels=False, turntable=False)
        kill_when(process, lambda n=n: out.exists() and len(folders(out)) >= n, rng.uniform(0, .05))
        present = folders(out)
        assert n <= len(present) < n_frames
        assert not manifest(out)["complete"] and not (out/"film.mp4").exists()
        for i in present: # whole
            assert len(load_finished(frame_folder(out, i), manifest(out)["settings"])) == 6
        now = {p: x for i in present for p, x in contents(frame_folder(out, i)).items()}
        assert all(now[p] == x for p, x in kept.items()) # whole frames are not made again
        kept = now

    (out/f".{frame_folder(out, n_frames - 1).name}.deadbeef.part").mkdir()
    reconstruct(film, out, checkpoint=tiny_checkpoint, frames=range(n_frames), panels=False, turntable=False)
    after = contents(out)
    assert all(after[p] == x for p, x in kept.items())
    assert folders(out) == list(range(n_frames)) == manifest(out)["frames"]
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]
    assert len(records(out)) == 6*n_frames
    assert n_decoded(out/"film.mp4", [n_frames - 1]) == 1


def test_killed_while_replacing_keeps_the_old(film, tiny_checkpoint, tmp_path):
    "The old result or the new one, whole; never nothing, never half."
    out = tmp_path/"d"
    reconstruct(film, out, 2, checkpoint=tiny_checkpoint, turntable=False, panels=False)
    old = {p.name: p.read_bytes() for p in out.iterdir()}
    for after in (0., .3):
        process = start(film, out, tiny_checkpoint, frame=3, overwrite=True)
        kill_when(process, lambda: any(p.suffix == ".part" for p in tmp_path.iterdir()), after)
        found = {p.name: p.read_bytes() for p in out.iterdir()}
        is_new = "turntable.mp4" in found and "cameras.txt" in found
        assert found == old or is_new
    reconstruct(film, out, 3, checkpoint=tiny_checkpoint, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert records(out)[0]["frame"] == 3


@pytest.mark.parametrize("n_renames", [1, 2])
def test_stopped_between_the_renames(tmp_path, monkeypatch, n_renames):
    "Stopped when the old folder has been moved away and the new one is not yet there, or the old one not yet deleted."
    out, renames, replace_file = tmp_path/"d", [], files.os.replace
    out.mkdir()
    (out/"x").write_text("old")

    def interrupt(*args, **options): raise KeyboardInterrupt

    def rename(source, target):
        if len(renames) == n_renames: interrupt()
        renames.append(source)
        replace_file(source, target)
    monkeypatch.setattr(files.os, "replace", rename)
    if n_renames == 2: monkeypatch.setattr(files.shutil, "rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        with files.atomic_folder(out, True) as folder: (folder/"x").write_text("new")
    monkeypatch.undo()
    with pytest.raises(FileExistsError): files.atomic_folder(out).__enter__()
    assert (out/"x").read_text() == ("old" if n_renames == 1 else "new")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


# ---- memory ----

PEAKS = """
import json, re
from functools import partial
from pathlib import Path
from gslrm_mouse.reconstruction import frame, pipeline
peaks, kept, make_frame = [], [], pipeline.make_frame
frame.turntable_cameras = partial(frame.turntable_cameras, n=6) # of the same size, and twelve times as quick

def peak(): # MiB, of this process; ru_maxrss remembers its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])/1024

def measured(folder, views, number, **options):
    records = make_frame(folder, views, number, **options)
    peaks.append(peak())
    if {leaks}: kept.append(views)
    return records

pipeline.make_frame = measured
pipeline.reconstruct({source!r}, {out!r}, checkpoint={checkpoint!r}, frames=range({n}), fit=0, **{options!r})
peaks.append(peak())
print(json.dumps(peaks))
"""


def memory_peaks(source, out, checkpoint, leaks, **options):
    "MiB after each frame, and at the end."
    facts = dict(source=str(source), out=str(out), checkpoint=str(checkpoint), leaks=leaks, n=N, options=options)
    code = textwrap.dedent(PEAKS.format(**facts))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANGS)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc/self/status")
def test_memory_is_steady(tiny_checkpoint, tmp_path):
    "After the third of twelve frames peak memory grows less than half as much as it does when views are kept."
    film = write_recording(tmp_path/"rec", N, seed=5, cams=mouse_rig().resized(576, 512), truth=False)
    views = 6*576*512*16/2**20 # MiB
    steady = memory_peaks(film, tmp_path/"steady", tiny_checkpoint, leaks=False)
    small = dict(panels=False, turntable=False, film=False, viewer=False)
    leaking = memory_peaks(film, tmp_path/"leaking", tiny_checkpoint, leaks=True, **small)
    print("MiB:", [round(x) for x in steady], "with a leak:", [round(x) for x in leaking])
    assert len(steady) == N + 1
    leaked = leaking[-1] - leaking[2]
    assert leaked > 6*views
    assert steady[-1] - steady[2] < leaked/2


def test_a_fit_believes_its_cameras():
    "With its true cameras a fit beats the network in a held-out view; with two cameras exchanged it is worse."
    views = raytrace(mouse_scene(4), mouse_rig().resized(288, 256), 2)
    inputs, held_out = views[[0, 1, 2, 3, 5]], views[[4]]
    model, card = load_checkpoint()

    def scores(g):
        image, alpha = render(g, held_out.cameras, eps2d=0.)
        return mean_scores(image_scores(image, alpha, held_out.images, held_out.alpha))

    g = predict(model, canonicalize(inputs, card.domain), training_blur(card.domain))
    fitted = fit_to_views(g, inputs, card.domain, 80)
    assert fitted.unit == "mm"
    network, fit = scores(g), scores(fitted)
    assert fit["iou"] > network["iou"] + .05 and fit["psnr"] > network["psnr"] + 1

    exchanged = replace(inputs, cameras=inputs.cameras[[1, 0, 2, 3, 4]])
    assert scores(fit_to_views(g, exchanged, card.domain, 80))["iou"] < network["iou"]
    first, second = (fit_to_views(g, inputs, card.domain, 5) for _ in range(2))
    assert torch.equal(first.means, second.means)


# ---- qualities ----

@pytest.fixture(scope="module")
def drafted(film, tiny_checkpoint, tmp_path_factory):
    "Frame 3 at quality draft, from five cameras; the sixth is held out."
    out, lines, optimise = tmp_path_factory.mktemp("draft")/"d", [], one_frame.optimise_scene
    def optimise_scene(*args, **options):
        lines.append("(optimisation)")
        return optimise(*args, **options)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(one_frame, "optimise_scene", optimise_scene)
        pipeline.reconstruct(
            film, out, 3, inputs=5, checkpoint=tiny_checkpoint, quality="draft", turntable=False, panels=False,
            say=lines.append)
    return out, lines


def test_held_out_views_list_the_baselines(drafted):
    out, lines = drafted
    rows = {r["split"]: r for r in records(out)}
    assert set(rows) == {"input", "novel", "novel_network", "novel_hull"}
    assert {r["start"] for r in rows.values()} == {"hull"}
    assert rows["novel"]["arm"] == rows["input"]["arm"] == "exact, draft"
    assert rows["novel_hull"]["arm"] == "hull" and rows["novel_hull"]["camera"] == rows["novel"]["camera"]
    assert rows["novel"]["iou"] > rows["novel_network"]["iou"] # of an untrained network


def test_each_stage_of_a_frame_is_said_when_it_begins(drafted):
    reading, choosing, began, optimising, optimisation = without_seconds(drafted[1])
    assert reading == "reading frame 3"
    assert choosing == "choosing where to begin: visual hull or network"
    assert began.startswith("began on the hull: the visual hull of 5 cameras explains")
    assert (optimising, optimisation) == ("optimising", "(optimisation)")


def test_stages_of_many_frames_are_the_first_one_and_the_files_of_all(film, tiny_checkpoint, tmp_path):
    "The frames themselves have one bar; what is finished is not said again, and without `say` nothing is."
    options = dict(checkpoint=tiny_checkpoint, frames=[0, 1], quality="draft", sequence=True, viewer=False)
    lines = []
    later = []
    pipeline.reconstruct(film, tmp_path/"d", say=lines.append, **options)
    files = ["film.mp4", "sequence.npz", "follow.mp4", "turntable.mp4"]
    assert without_seconds(lines) == ["reading frame 0", *(f"writing {name}" for name in files)]
    (tmp_path/"d/follow.mp4").unlink()
    pipeline.reconstruct(film, tmp_path/"d", say=later.append, **options)
    assert without_seconds(later) == ["reading frame 0", "writing follow.mp4"]


def test_a_terminal_shows_the_time_left_of_fit_optimisation_and_turntable(film, tmp_path, monkeypatch):
    "Each bar knows all its steps and reaches the last one."
    bars = {}
    class Terminal(io.StringIO):
        def isatty(self): return True

    class Bar(one_frame._StageBar):
        def close(self):
            bars[self.desc] = self.n, self.total
            super().close()

    monkeypatch.setattr(one_frame, "_StageBar", Bar)
    monkeypatch.setattr(sys, "stderr", Terminal())
    lines = []
    pipeline.reconstruct(
        film, tmp_path/"d", inputs=5, checkpoint="gslrm_any", quality="good", pixels=64, viewer=False, say=lines.append)
    bars = {name.removesuffix(": "): steps for name, steps in bars.items()}
    assert bars == {
        "reading frame 0": (0, None), "choosing where to begin: visual hull or network": (200, 200),
        "optimising at 64 px": (120, 120), "writing turntable.mp4": (72, 72),
        "drawing views.png and cameras.png": (0, None)}
    assert [line.split(":")[0] for line in lines] == ["began on the hull carved by the network"]


def test_qualities_do_not_mix(film, tiny_checkpoint, tmp_path):
    "A folder of the network alone is continued, and refused by sentence for a quality."
    out = tmp_path/"d"
    options = dict(checkpoint=tiny_checkpoint, frames=[1], turntable=False, panels=False, film=False, viewer=False)
    reconstruct(film, out, **options)
    before = contents(frame_folder(out, 1))
    reconstruct(film, out, **options)
    assert contents(frame_folder(out, 1)) == before
    with pytest.raises(ValueError, match=r"another quality \(None, not good\)"):
        pipeline.reconstruct(film, out, **options)


def test_an_optimisation_begins_on_the_hull_carved_by_the_network(tmp_path):
    "The file, the line and the baselines say so; the answer of a network that shows nothing is not used."
    recording = write_recording(tmp_path/"rec", 1, seed=4, cams=mouse_rig().resized(144, 128), truth=False)
    said = []
    options = dict(inputs=5, checkpoint="gslrm_any", quality="good", turntable=False, panels=False, viewer=False)
    pipeline.reconstruct(recording, tmp_path/"carved", say=said.append, **options)
    records = read_jsonl(tmp_path/"carved/results.jsonl")
    assert {r["start"] for r in records} == {"carved"}
    assert {r["split"] for r in records} == {"input", "novel", "novel_network", "novel_hull"}
    began = "began on the hull carved by the network: the network, fitted to the views, leaves"
    assert any(line.startswith(began) for line in said)
    nothing = Filters(opacity=.99999)
    pipeline.reconstruct(recording, tmp_path/"none", filters=nothing, **options)
    assert {r["start"] for r in read_jsonl(tmp_path/"none/results.jsonl")} == {"hull"}


def test_a_network_takes_cameras_in_its_own_unit():
    network, views = GSLRM(GSLRMConfig(image_size=32, d=64, n_layer=1)), mouse_rig().resized(32, 32)
    images = torch.ones(1, 6, 32, 32, 3)
    with pytest.raises(ValueError, match="cameras in model units, these are in 'mm'"):
        network(images, views.batch())


def test_the_report_says_that_cameras_were_exchanged():
    views = raytrace(mouse_scene(4), mouse_rig().resized(144, 128), 1)
    assert "unsound" not in str(canonicalize(views, FACELIFT_DOMAIN).certificate)
    exchanged = replace(views, cameras=views.cameras[[3, 0, 4, 1, 5, 2]])
    assert "unsound: the triangulation error" in str(canonicalize(exchanged, FACELIFT_DOMAIN).certificate)


def test_exchanged_cameras_need_force(film, tmp_path):
    "The doctor's finding is the error's sentence, before anything is written; --force goes on, and so do sound rigs."
    wrong = shutil.copytree(film, tmp_path/"wrong")
    rig = pickle.loads((wrong/"new_cam.pkl").read_bytes())
    (wrong/"new_cam.pkl").write_bytes(pickle.dumps([rig[i] for i in (1, 0, 2, 3, 4, 5)]))
    options = dict(source=wrong, number=3, unit=None, checkpoint=None, rig_file=None)
    with pytest.raises(ValueError, match="--force reconstructs it nevertheless") as e: cli._check_consistency(**options)
    assert "doctor" in str(e.value) and "\n" not in str(e.value)
    cli._check_consistency(**options | dict(source=film))
    with pytest.raises(SystemExit) as stop:
        cli.main(["reconstruct", str(wrong), "--frame", "3", "--out", str(tmp_path/"out")])
    assert stop.value.code == 2
    assert not (tmp_path/"out").exists()


def test_paths_and_options_are_checked_before_anything_is_computed(film, tmp_path, monkeypatch, capsys):
    "In one sentence, without a name of a temporary file; neither doctor nor network nor hull begin."
    def computed(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr(cli, "_check_consistency", computed)
    monkeypatch.setattr(pipeline, "make_frame", computed)
    (tmp_path/"file").write_text("mine")
    (tmp_path/"full").mkdir()
    (tmp_path/"full/notes.txt").write_text("mine")
    new = tmp_path/"new"
    wrong = [
        (f"--out {tmp_path}/full", "exists and is not empty; choose another folder or pass --overwrite"),
        (f"--out {tmp_path}/full --frames 0:2", "has no reconstruct.json to resume from; choose another folder"),
        (f"--out {tmp_path}/file/below", "file is a file; choose another path"),
        (f"--out {tmp_path}/{'long'*90}", "cannot be made in"),
        (f"--out {new} --pixels 5", "at least 32 pixels"),
        (f"--out {new} --inputs 9", "inputs=9 is more than the 6 views"),
        (f"--out {new} --inputs 1", "GS-LRM needs at least 2 input views, got 1"),
        (f"--out {new} --inputs 1 --frames 0:2", "GS-LRM needs at least 2 input views, got 1"),
        (f"--out {new} --inputs 3 --model lgm --weights lgm_laptop", "LGM needs at least 4 input views, got 3"),
        (f"--out {new} --checkpoint nowhere.safetensors", "no checkpoint at nowhere.safetensors"),
        (f"--out {new} --model lgm --variant fixrot", "LGM needs weights"),
        (f"--out {new} --up 1,2", "a direction is written 0,0,1"),
    ]
    before = contents(tmp_path)
    for options, sentence in wrong:
        with pytest.raises(SystemExit) as stop:
            cli.main(["reconstruct", str(film), *options.split()])
        said = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2 and sentence in said and ".part" not in said, (options, said)
    assert contents(tmp_path) == before
    with pytest.raises(AssertionError):
        cli.main(["reconstruct", str(film), "--out", str(new)])


def inverted_poses(folder):
    rig = pickle.loads((folder/"new_cam.pkl").read_bytes())
    for cam in rig:
        R, T = np.array(cam["R"]), np.array(cam["T"])
        cam["R"], cam["T"] = R.T, (-R.T @ T.reshape(3, 1)).reshape(T.shape)
    (folder/"new_cam.pkl").write_bytes(pickle.dumps(rig))


def inverted_masks(folder, cameras=range(6)):
    for path in (folder/"simpleclick_undist"/f"{camera}.mp4" for camera in cameras):
        write_video(path, [1 - torch.from_numpy(frame)/255 for frame in decode_frames(path, range(N))], 20, crf=1)


def error_of(*args):
    "The last line on stderr of a command that ends with status 2."
    stderr = io.StringIO()
    with redirect_stderr(stderr), pytest.raises(SystemExit) as stop:
        cli.main(["reconstruct", *map(str, args)])
    message = stderr.getvalue().splitlines()[-1]
    assert stop.value.code == 2 and message.startswith("gslrm_mouse: ")
    return message


def test_inverted_poses_and_masks_need_force(film, tmp_path):
    "One sentence each, and nothing is written."
    poses, masks = (shutil.copytree(film, tmp_path/name) for name in ("poses", "masks"))
    inverted_poses(poses)
    inverted_masks(masks)
    out = tmp_path/"out"
    assert "if the poses are inverted: the poses are those from camera to world" in error_of(poses, "--out", out)
    assert "seems inverted; the object should be white on black" in error_of(masks, "--out", out)
    assert not out.exists()
    cli._check_consistency(poses, 0, None, None, None, force=True)


def test_with_force_inverted_masks_are_taken_the_other_way_round(film, tiny_checkpoint, tmp_path, capsys):
    "All of them or one: the frame is that of sound masks, one line says so; a mask of the whole image stays an error."
    options = ["--checkpoint", str(tiny_checkpoint), "--no-fit", "--no-turntable", "--no-panels", "--no-viewer"]
    cli.main(["reconstruct", str(film), "--out", str(tmp_path/"sound"), *options])
    sound = records(tmp_path/"sound")
    for name, cameras in dict(all=range(6), one=[2]).items():
        recording = shutil.copytree(film, tmp_path/f"rec_{name}")
        inverted_masks(recording, cameras)
        capsys.readouterr()
        cli.main(["reconstruct", str(recording), "--force", "--out", str(tmp_path/name), *options])
        said = [line for line in capsys.readouterr().err.splitlines() if "--force" in line]
        assert len(said) == 1 and said[0].endswith("--force takes the masks that seem inverted the other way round")
        for a, b in zip(records(tmp_path/name), sound, strict=True):
            assert abs(a["iou"] - b["iou"]) < .02 and abs(a["psnr"] - b["psnr"]) < .3
    cli.main(["reconstruct", str(recording), "--force", "--frames", "0:2", "--out", str(tmp_path/"many"), *options])
    assert folders(tmp_path/"many") == [0, 1]
    with pytest.raises(ValueError, match="seems inverted"):
        reconstruct(recording, tmp_path/"unforced", checkpoint=tiny_checkpoint)
    path = recording/"simpleclick_undist/2.mp4"
    write_video(path, [np.full((128, 144, 3), 255, np.uint8)]*N, 20)
    says = error_of(recording, "--force", "--out", tmp_path/"full", *options)
    assert "--force does not help, as nothing can be reconstructed without silhouettes" in says


def test_a_network_refuses_cameras_in_another_unit(film):
    "Millimetres given to a network of model units are no white image but an error, by `predict` and by the network."
    network = GSLRM(GSLRMConfig(image_size=64, d=64, n_layer=1)).eval()
    prepared = canonicalize(read_views(film, 0), replace(FACELIFT_DOMAIN, image_size=64))
    assert len(predict(network, prepared))
    cams = prepared.to_source.cameras(prepared.views.cameras)
    in_mm = replace(prepared, views=replace(prepared.views, cameras=cams))
    with pytest.raises(ValueError, match="model units, these are in 'mm'"):
        network(in_mm.views.images[None], cams.batch())
    with pytest.raises(ValueError, match="model units|'mm'"):
        predict(network, in_mm)


def test_a_frame_replaces_nothing_but_a_frame(film, tiny_checkpoint, tmp_path):
    "Not the recording, not a folder of other things; what was there stays."
    recording = shutil.copytree(film, tmp_path/"rec")
    other = tmp_path/"other"
    other.mkdir()
    (other/"notes.txt").write_text("mine")
    options = dict(checkpoint=tiny_checkpoint, turntable=False, panels=False, viewer=False, overwrite=True)
    for out in (recording, recording.parent, other):
        before = contents(out)
        with pytest.raises(FileExistsError, match="not an earlier result of one frame"):
            reconstruct(recording, out, **options)
        assert contents(out) == before
    reconstruct(recording, tmp_path/"out", **options)
    reconstruct(recording, tmp_path/"out", frame=1, **options)
    assert {r["frame"] for r in records(tmp_path/"out")} == {1}
    shutil.move(recording, tmp_path/"out/rec")
    with pytest.raises(FileExistsError, match="out/rec lies in .*out, so --overwrite does not replace that"):
        reconstruct(tmp_path/"out/rec", tmp_path/"out", **options)
    assert (tmp_path/"out/rec").is_dir()


def test_a_recording_in_model_units_is_a_recording(film, tiny_checkpoint, tmp_path):
    "All of its cameras, canonicalised, as it would be in millimetres."
    recording = shutil.copytree(film, tmp_path/"rec")
    rig = pickle.loads((recording/"new_cam.pkl").read_bytes())
    for cam in rig:
        cam["T"] = np.array(cam["T"])/120
    (recording/"new_cam.pkl").write_bytes(pickle.dumps(rig))
    options = dict(checkpoint=tiny_checkpoint, turntable=False, panels=False, viewer=False)
    reconstruct(film, tmp_path/"mm", **options)
    reconstruct(recording, tmp_path/"model", unit="model", **options)
    in_mm, in_units = records(tmp_path/"mm"), records(tmp_path/"model")
    assert [r["camera"] for r in in_units] == [0, 1, 2, 3, 4, 5]
    for a, b in zip(in_mm, in_units, strict=True):
        assert (a["arm"], b["arm"]) == ("exact", "exact")
        assert abs(a["psnr"] - b["psnr"]) < .01


def test_files_of_all_frames_are_made_of_the_frames_that_are_there(film, tiny_checkpoint, tmp_path):
    out = tmp_path/"out"
    options = dict(checkpoint=tiny_checkpoint, turntable=False, panels=False, viewer=False)
    reconstruct(film, out, frames=[0, 1], **options)
    reconstruct(film, out, frames=[0, 1, 2], film=False, **options)
    assert manifest(out)["made_of"] == {}
    reconstruct(film, out, frames=[0, 1, 2], **options)
    assert n_decoded(out/"film.mp4", [0, 1, 2]) == 3
    assert manifest(out)["made_of"] == {"film.mp4": [0, 1, 2]}
    before = contents(out)
    reconstruct(film, out, frames=[0, 1, 2], **options)
    assert contents(out).keys() == before.keys()
    assert contents(out)[out/"film.mp4"] == before[out/"film.mp4"]


def test_a_camera_without_the_animal_needs_no_force(film, tiny_checkpoint, tmp_path, capsys):
    recording = shutil.copytree(film, tmp_path/"rec")
    empty_mask(recording, 3, 0)
    options = ["--checkpoint", str(tiny_checkpoint), "--no-fit", "--no-turntable", "--no-panels", "--no-viewer"]
    cli.main(["reconstruct", str(recording), "--frames", "0:2", "--force", "--out", str(tmp_path/"out"), *options])
    assert folders(tmp_path/"out") == [0, 1]
    mistakes = {("--device", "gpu"): "there is no device 'gpu'", ("--threads", "-1"): "--threads should be"}
    for wrong, fragment in mistakes.items():
        with pytest.raises(SystemExit) as stop:
            cli.main(["reconstruct", str(film), "--out", str(tmp_path/"no"), *options, *wrong])
        message = capsys.readouterr().err
        assert stop.value.code == 2 and fragment in message and "Traceback" not in message
