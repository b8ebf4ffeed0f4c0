"Data sets made by the legacy methods: whole samples or none, resumable, split by time, errors in a sentence."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from gslrm_mouse.calibration.formats import read_calibration, write_calibration
from gslrm_mouse.cameras.domain import CameraDomain, FACELIFT_DOMAIN
from gslrm_mouse.cameras.presets import facelift_rig, mouse_rig
from gslrm_mouse.files import locked_folder
from gslrm_mouse.preprocess.canonical import canonicalize, virtual_cameras
from gslrm_mouse.preprocess.dataset import preprocess_dataset, split_by_time, write_prepared
from gslrm_mouse.preprocess.grading import grade_folder, grade_letter, grades
from gslrm_mouse.preprocess.methods import METHODS, get_method
from gslrm_mouse.preprocess.silhouettes import check_model_input, foreground_stats
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.views.hull import visual_hull
from gslrm_mouse.views.recordings import MASKS, RIG, VIDEOS, read_views
from gslrm_mouse.views.samples import write_sample
from gslrm_mouse.views.triangulation import triangulate
from gslrm_mouse.views.views import Views

N = 6 # frames


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")/"rec"
    return write_recording(folder, N, seed=5, cams=mouse_rig().resized(144, 128), truth=False)


@pytest.fixture
def square(tmp_path):
    "Two samples of four views in model units, rectangles that differ."
    for k in range(2):
        alpha = torch.zeros(4, 64, 64)
        for v in range(4): alpha[v, 20 + k:30 + 2*v, 12 + 3*v:40] = 1
        images = 1 - alpha[..., None]*torch.tensor([.2, .5, .8])
        write_sample(Views(images, alpha, facelift_rig(64, n=4)), tmp_path/"in"/f"sample_{k:06d}")
    return tmp_path/"in"


def on_white(alpha): return 1 - alpha[..., None].expand(-1, -1, -1, 3)


def sentence(e):
    text = str(e.value)
    assert "\n" not in text and text, text
    return text


def refused(*args, error=ValueError, **kwargs):
    "The sentence with which `preprocess_dataset` refuses."
    with pytest.raises(error) as e: preprocess_dataset(*args, **kwargs)
    return sentence(e)


# ---- the folder ----

def test_layout_and_lists(recording, tmp_path):
    out = tmp_path/"d"
    made = preprocess_dataset(recording, out, "bbox_center", size=64, val_share=.3)
    names = [f"sample_{i:06d}" for i in range(N)]
    lists = ["data_mouse_train.txt", "data_mouse_val.txt", "preprocess.json"]
    assert sorted(p.name for p in out.iterdir()) == [*lists, *names]
    images = [f"images/cam_{v:03d}.png" for v in range(6)]
    for name in names:
        files = sorted(str(p.relative_to(out/name)) for p in (out/name).rglob("*") if p.is_file())
        assert files == [*images, "opencv_cameras.json"]
        for file in images:
            with Image.open(out/name/file) as im: assert im.mode == "RGBA" and im.size == (64, 64)
    train, val = ((out/f"data_mouse_{k}.txt").read_text().split() for k in ("train", "val"))
    assert train == made["train"] == sorted(train) and val == made["val"] == names[4:]
    assert max(train) < made["gap"][0] < min(val)
    assert json.loads((out/"preprocess.json").read_text()) == made and made["complete"]


@pytest.mark.parametrize("name", METHODS)
def test_reads_back(recording, tmp_path, name):
    preprocess_dataset(recording, tmp_path/"d", name, [3], 64)
    folder = tmp_path/"d/sample_000000"
    got, domain = read_views(folder), replace(FACELIFT_DOMAIN, image_size=64)
    options = {"as_was": True} if name == "pixel_based" else {}
    want = METHODS[name](read_views(recording, 3), domain, **options)
    assert torch.allclose(got.cameras.K, want.views.cameras.K.double(), atol=1e-9)
    assert torch.allclose(got.cameras.w2c, want.views.cameras.w2c.double(), atol=1e-12)
    assert (got.images - want.views.images).abs().max() < 2/255
    assert (got.alpha - want.views.alpha).abs().max() < .51/255

    note = json.loads((folder/"opencv_cameras.json").read_text())["gslrm_mouse"]
    back = note["back"]
    assert (note["statement"], note["frame"], note["exact"]) == (want.statement, 3, want.exact)
    assert back["scale"] == want.to_source.scale
    if want.exact: # the similarity in the file takes the stored cameras back to the rig, whoever reads it
        centers = np.array(back["Q"])*back["scale"] @ got.cameras.centers.numpy().T + np.array(back["c"])[:, None]
        assert np.abs(centers.T - mouse_rig().centers.numpy()).max() < 1e-6


def test_default_is_as_it_was(recording, tmp_path):
    "The pixel-based data set copies the converter's cameras; the study's condition of that name rotates them."
    preprocess_dataset(recording, tmp_path/"d", "pixel_based", [0], 64)
    domain, views = replace(FACELIFT_DOMAIN, image_size=64), read_views(recording, 0)
    w2c = read_views(tmp_path/"d/sample_000000").cameras.w2c
    assert torch.allclose(w2c, METHODS["converted"](views, domain).views.cameras.w2c, atol=1e-9)
    rotated = METHODS["pixel_based"](views, domain).views.cameras.w2c
    assert not torch.allclose(w2c[:, :3, :3], rotated[:, :3, :3], atol=.05)


# ---- stopped and continued ----

def contents(folder): return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_after_a_kill(recording, tmp_path):
    out = tmp_path/"d"
    code = ("from gslrm_mouse.preprocess.dataset import preprocess_dataset as f; "
            f"f({str(recording)!r}, {str(out)!r}, 'uniform_per_view', size=512)")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if (out/"sample_000001").exists() or process.poll() is not None: break
        time.sleep(.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    samples = sorted(out.glob("sample_*"))
    assert 2 <= len(samples) < N and not (out/"data_mouse_train.txt").exists()
    assert not json.loads((out/"preprocess.json").read_text())["complete"]
    for folder in samples: read_views(folder) # what has a name is whole

    files = [f for folder in samples for f in folder.rglob("*") if f.is_file()]
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in files}
    (out/".sample_000003.deadbeef/images").mkdir(parents=True) # what a kill may leave has none
    made = preprocess_dataset(recording, out, "uniform_per_view", size=512)
    assert made["samples"] == N
    assert all((f.stat().st_mtime_ns, f.read_bytes()) == state for f, state in before.items())
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_one_process_at_a_time(recording, tmp_path):
    "A second run removes nothing that the first one is writing."
    out = tmp_path/"d"
    made = preprocess_dataset(recording, out, "similarity", [0, 1], 32)
    half_written = out/".sample_000001.deadbeef"
    half_written.mkdir()
    with locked_folder(out):
        message = refused(recording, out, "similarity", [0, 1], 32, error=FileExistsError)
        assert f"{out} is being written by another process" in message and half_written.is_dir()
    assert preprocess_dataset(recording, out, "similarity", [0, 1], 32) == made and not half_written.exists()


def truncate(file): file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [
    lambda d: (d/"images/cam_003.png").unlink(),
    lambda d: truncate(d/"images/cam_003.png"),
    lambda d: (d/"images/cam_000.png").write_bytes(b""),
    lambda d: (d/"opencv_cameras.json").write_text('{"frames": ['),
    lambda d: (d/"opencv_cameras.json").write_text("[]"),
    lambda d: (d/"opencv_cameras.json").unlink(),
    shutil.rmtree,
])
def test_half_a_sample_is_made_again(recording, tmp_path, damage):
    made = preprocess_dataset(recording, tmp_path/"d", "similarity", [0, 1, 2], 32)
    folder = tmp_path/"d/sample_000001"
    before = contents(folder)
    damage(folder)
    assert preprocess_dataset(recording, tmp_path/"d", "similarity", [0, 1, 2], 32) == made
    assert contents(folder) == before


@pytest.mark.parametrize("change, message", [
    (dict(method="mm"), "another method"),
    (dict(size=64), "another size"),
    (dict(frames=[0, 2]), "another frames"),
    (dict(ratio=.4), "another options"),
    (dict(val_share=.5), "another val_share"),
])
def test_one_folder_one_data_set(recording, tmp_path, change, message):
    args = dict(method="bbox_center", frames=[0, 1], size=32)
    preprocess_dataset(recording, tmp_path/"d", **args)
    assert message in refused(recording, tmp_path/"d", **{**args, **change})


# ---- errors in a sentence ----

@pytest.mark.parametrize("name, near", [
    ("pixel-based", "pixel_based"),
    ("bbox", "bbox_center"),
    ("uniform", "uniform_per_view or uniform_per_sample"),
    ("safe_scale", "com_safe_scale"),
    ("", "the known ones are mm"),
    ("🐭", "the known ones are mm"),
])
def test_unknown_method(tmp_path, recording, name, near):
    assert near in refused(recording, tmp_path/"d", name)
    assert not (tmp_path/"d").exists()
    with pytest.raises(ValueError): get_method(name)


def test_image_without_alpha(square, tmp_path):
    file = square/"sample_000001/images/cam_002.png"
    Image.open(file).convert("RGB").save(file)
    message = refused(square, tmp_path/"d", "pixel_based", size=64)
    assert "no alpha" in message and "cam_002.png" in message and "sample_000001" in message
    made = preprocess_dataset(square, tmp_path/"d", "pixel_based", size=64, skip_bad=True)
    assert made["samples"] == 1 and list(made["skipped"]) == ["sample_000001"] and made["val"] == []
    assert not (tmp_path/"d/sample_000001").exists()


def test_white_background_by_threshold(square, tmp_path):
    for file in square.rglob("*.png"):
        rgba = np.array(Image.open(file))
        rgba[rgba[..., 3] == 0] = 255
        Image.fromarray(rgba[..., :3]).save(file)
    made = preprocess_dataset(square, tmp_path/"d", "pixel_based", size=64, white_threshold=.98)
    assert made["samples"] == 2 and read_views(tmp_path/"d/sample_000000").alpha.mean() < .2


def test_empty_mask(square, tmp_path):
    file = square/"sample_000000/images/cam_001.png"
    rgba = np.array(Image.open(file))
    rgba[..., 3] = 0
    Image.fromarray(rgba).save(file)
    message = refused(square, tmp_path/"d", "bbox_center", size=64)
    assert "mask is empty" in message and "camera 1" in message
    shutil.rmtree(square/"sample_000001")
    assert "no sample could be made" in refused(square, tmp_path/"d2", "bbox_center", size=64, skip_bad=True)


def test_object_pushed_out_of_the_image(square, tmp_path):
    "The script that scaled about the middle of the image wrote such views; here they stop the run."
    alpha = torch.zeros(4, 64, 64)
    alpha[:, 50:60, 4:12] = 1
    write_sample(Views(on_white(alpha), alpha, facelift_rig(64, n=4)), square/"sample_000002")
    message = refused(square, tmp_path/"d", "uniform_per_view", [2], 64, ratio=.9, centered=False)
    assert "made by the method" in message and "the mask is empty" in message


def camera_file(folder, content:bytes):
    (folder/"s").mkdir(parents=True)
    (folder/"s/opencv_cameras.json").write_bytes(content)


@pytest.mark.parametrize("make", [
    lambda p: p.mkdir(),
    lambda p: (p/"sample_000000").mkdir(parents=True),
    lambda p: None,
    lambda p: camera_file(p, b"{"),
    lambda p: camera_file(p, os.urandom(200)),
    lambda p: camera_file(p, b'{"frames": []}'),
    lambda p: (p/"videos_undist").mkdir(parents=True),
])
def test_bad_source(tmp_path, make):
    make(tmp_path/"in")
    message = refused(tmp_path/"in", tmp_path/"d", "similarity", error=(ValueError, FileNotFoundError))
    assert str(tmp_path/"in") in message
    assert not list((tmp_path/"d").glob("sample_*"))


@pytest.mark.parametrize("more, message", [
    (dict(frames=[]), "no samples were asked for"),
    (dict(frames=[5]), "sample 5 was asked for"),
    (dict(frames=[-1]), "sample -1"),
    (dict(val_share=1.5), "val_share"),
    (dict(gap=9), "nothing to train on"),
    (dict(size=0), "at least 8"),
    (dict(speed=3), "no setting 'speed'"),
    (dict(recipe=len), "no setting 'recipe'"),
    (dict(method="mm"), "millimetres"),
])
def test_bad_settings(square, tmp_path, more, message):
    assert message in refused(square, tmp_path/"d", **{"method": "similarity", "size": 32, **more})


def test_a_folder_of_something_else_is_left_alone(recording, tmp_path):
    out = tmp_path/"d"
    out.mkdir()
    (out/"thesis.txt").write_text("x")
    refused(recording, out, "mm", error=FileExistsError)
    (out/"preprocess.json").write_text("{}")
    assert "no readable manifest" in refused(recording, out, "mm")
    assert sorted(p.name for p in out.iterdir()) == ["preprocess.json", "thesis.txt"]


# ---- the wrong type ----

def test_views_are_no_model_input(recording, tmp_path):
    "What `canonicalize` returns is a ModelInput; Views in its place, or the other way round, are named."
    views = read_views(recording, 0)
    prepared = canonicalize(views, replace(FACELIFT_DOMAIN, image_size=32))
    assert check_model_input(prepared) is prepared
    with pytest.raises(ValueError) as e: check_model_input(views)
    assert sentence(e).startswith("a ModelInput was expected, got Views; canonicalize(views, domain)")
    with pytest.raises(ValueError) as e: write_prepared(views, tmp_path/"s", views)
    assert "a ModelInput was expected, got Views" in sentence(e) and not (tmp_path/"s").exists()
    with pytest.raises(ValueError) as e: canonicalize(prepared, FACELIFT_DOMAIN)
    assert "takes the Views of a recording, got a Canonical" in sentence(e)


@pytest.mark.parametrize("K", [np.eye(3), np.eye(3).tolist(), None])
def test_intrinsics_are_a_tensor(K):
    with pytest.raises(ValueError) as e: virtual_cameras(mouse_rig(), torch.zeros(3), K, 64)
    assert f"K should be a (3, 3) torch tensor, got {type(K).__name__}" in sentence(e)


# ---- split and grades ----

@settings(deadline=None, max_examples=300)
@given(st.integers(1, 400), st.floats(0, .99), st.one_of(st.none(), st.integers(0, 40)))
def test_blocks_are_blocks(n, share, gap):
    try: train, between, val = split_by_time(n, share, gap)
    except ValueError:
        assert gap is not None and gap + max(1, round(n*share)) >= n or round(n*share) >= n
        return
    assert [*train, *between, *val] == list(range(n)) # consecutive, disjoint, in order: never shuffled
    assert len(train) >= 1
    if val: assert gap is None or val.start - train.stop == gap
    if val and gap is None and n >= 3 and len(val) < n - 1: assert len(between) >= 1


def test_grades_of_facelifts_own_sample(sample):
    g = grade_folder(sample)
    assert (g.n_samples, g.n_views, g.grade) == (1, 8, "D")
    assert abs(g.cv_views - .037) < .002 and abs(g.com["mean"] - 80.5) < .5 and abs(g.size - .574) < .002
    assert g.hull_iou_least > .99 and g.clipped == 1 and g.covered == 1


def test_the_grade_does_not_see_cameras():
    "Other cameras, other order of the cameras: the grade stays, what it misses does not."
    views = raytrace(mouse_scene(2), mouse_rig().resized(144, 128), 2)
    exchanged = replace(views, cameras=views.cameras[[2, 1, 0, 3, 4, 5]])
    a, b = grades([views, views]), grades([exchanged, exchanged])
    assert (a.grade, a.cv_views, a.com, a.size) == (b.grade, b.cv_views, b.com, b.size)
    assert b.hull_iou < a.hull_iou - .1 and b.residual_px > 1.5*a.residual_px


def test_grade_against_numpy():
    "The same numbers computed in another way: integer pixel indices, population spread."
    cams, domain = mouse_rig().resized(288, 256), replace(FACELIFT_DOMAIN, image_size=128)
    samples = [METHODS["bbox_center"](raytrace(mouse_scene(seed), cams, 2), domain).views for seed in (7, 8)]
    g = grades(samples)
    ratios, offsets = [], []
    for alpha in torch.cat([views.alpha for views in samples]).numpy():
        yx = np.argwhere((alpha*255) > 10)
        ratios.append((len(yx)/alpha.size)**.5)
        offsets.append(np.hypot(*(yx.mean(0) - 64))*4)
    ratios = np.array(ratios).reshape(2, 6)
    assert np.isclose(g.cv_views, ratios.std()/ratios.mean())
    assert np.isclose(g.cv_samples, ratios.mean(1).std()/ratios.mean())
    assert np.isclose(g.com["mean"], np.mean(offsets)) and np.isclose(g.com["p95"], np.percentile(offsets, 95))


@pytest.mark.parametrize("cv, offset, letter", [
    (.0099, 4.9, "A"), (.01, 4.9, "B"), (.0099, 5, "B"), (.03, 0, "C"), (.05, 0, "D"), (0, 20, "D")])
def test_letters(cv, offset, letter):
    assert grade_letter(cv, offset) == letter


# ---- the hull ----

def is_inside(point, cams, alpha):
    "Whether no silhouette excludes a point, camera by camera, in numpy; outside the image nothing is excluded."
    height, width = alpha.shape[1:]
    for K, w2c, mask in zip(cams.K.numpy(), cams.w2c.numpy(), alpha):
        q = K @ (w2c[:3, :3] @ point + w2c[:3, 3])
        x, y = int(np.floor(q[0]/q[2])), int(np.floor(q[1]/q[2]))
        if 0 <= x < width and 0 <= y < height and not mask[y, x]*255 > 10: return False
    return True


def test_hull_against_brute_force():
    "The centre of every voxel tested against every camera, one by one."
    views = raytrace(mouse_scene(4), mouse_rig().resized(72, 64), 2)
    hull = visual_hull(views, n=24)
    alpha, points = views.alpha.numpy(), hull.points.numpy()
    assert len(points) > 100 and all(is_inside(p, views.cameras, alpha) for p in points[::5])

    def voxel(p): return np.round((p - points[0])/hull.voxel).astype(int)
    occupied = {tuple(voxel(p)) for p in points}
    low, high = points.min(0), points.max(0)
    rng = np.random.default_rng(0)
    candidates = [voxel(rng.uniform(low, high)) for _ in range(400)]
    missing = [k for k in candidates if tuple(k) not in occupied]
    for k in missing: assert not is_inside(points[0] + k*hull.voxel, views.cameras, alpha)
    assert len(missing) > 50


def test_hull_center_is_near_the_animal():
    views, center = raytrace(mouse_scene(4), mouse_rig().resized(144, 128), 2), mouse_scene(4).center
    hull = visual_hull(views)
    assert (hull.points.mean(0) - center).norm() < 12 and (triangulate(views).point - center).norm() < 30
    elsewhere = visual_hull(views, center=torch.tensor([54., 57, 20]), extent=260.)
    assert torch.allclose(elsewhere.iou, hull.iou, atol=.02) and abs(elsewhere.volume/hull.volume - 1) < .1


def test_foreground_needs_a_foreground():
    alpha = torch.zeros(2, 8, 8)
    alpha[0, 2:4, 2:4] = 1
    alpha[1, 3, 3] = 9/255
    with pytest.raises(ValueError) as e: foreground_stats(Views(on_white(alpha), alpha, facelift_rig(8, n=2)))
    assert "camera 1" in sentence(e)


# ---- a changed source ----

@pytest.mark.parametrize("name", [RIG, f"{VIDEOS}/3.mp4", f"{MASKS}/0.mp4"])
def test_a_changed_source_is_not_mixed_with_the_old_one(recording, tmp_path, name):
    source, out = tmp_path/"rec", tmp_path/"d"
    shutil.copytree(recording, source)
    options = dict(method="similarity", frames=[0, 1], size=32)
    made = preprocess_dataset(source, out, **options)
    shutil.rmtree(out/"sample_000001")
    (source/"notes.txt").write_text("no part of the source")
    assert preprocess_dataset(source, out, **options) == made
    stored = (source/name).read_bytes()
    if name == RIG: (source/name).write_bytes(moved_rig(source))
    else: (source/name).write_bytes(stored + b"\0")
    shutil.rmtree(out/"sample_000001")
    text = refused(source, out, **options)
    assert f"made of another state of {source}: {name} has changed; choose another folder" in text
    assert not (out/"sample_000001").exists()
    (source/name).write_bytes(stored)
    assert preprocess_dataset(source, out, **options) == made


def test_another_checkpoint_is_not_mixed_with_the_old_one(recording, tmp_path):
    options = dict(method="similarity", frames=[0, 1], size=32)
    preprocess_dataset(recording, tmp_path/"d", **options)
    assert "another domain" in refused(recording, tmp_path/"d", **options, domain=CameraDomain(fov=(40., 40.)))


def moved_rig(recording): # its calibration with the cameras 40 mm farther away, in the same format
    cams = read_calibration(recording/RIG, 144, 128)
    w2c = cams.w2c.clone()
    w2c[:, 2, 3] += 40
    moved = recording.parent/"moved.pkl"
    write_calibration(replace(cams, w2c=w2c), moved)
    return moved.read_bytes()
