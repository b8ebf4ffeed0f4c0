"Data sets made by the old recipes: whole samples or none, resumable after a kill, split by time, and one sentence for whatever is wrong."
import json, os, shutil, signal, subprocess, sys, time
from dataclasses import replace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.presets import facelift_rig, mouse_rig
from gslrm_mouse.preprocess.canonical import canonicalize
from gslrm_mouse.preprocess.dataset import preprocess_dataset, split_by_time
from gslrm_mouse.preprocess.grading import grade_folder, grade_letter, grades
from gslrm_mouse.views.hull import visual_hull
from gslrm_mouse.preprocess.recipes import METHODS, RECIPES, get_recipe
from gslrm_mouse.preprocess.silhouettes import foreground_stats
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.views.recordings import read_views
from gslrm_mouse.views.samples import write_sample
from gslrm_mouse.views.triangulation import triangulate
from gslrm_mouse.views.views import Views

N = 6


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("film")/"rec", N, seed=5, cams=mouse_rig().resized(144, 128), truth=False)


@pytest.fixture
def square(tmp_path):
    "Two samples of four views in model units, unlike squares."
    for k in range(2):
        a = torch.zeros(4, 64, 64)
        for v in range(4): a[v, 20 + k:30 + 2*v, 12 + 3*v:40] = 1
        write_sample(Views(1 - a[..., None]*torch.tensor([.2, .5, .8]), a, facelift_rig(64, n=4)), tmp_path/"in"/f"sample_{k:06d}")
    return tmp_path/"in"


def sentence(e):
    text = str(e.value)
    assert "\n" not in text and text, text
    return text


# ---- the folder ----

def test_layout_and_lists(film, tmp_path):
    made = preprocess_dataset(film, tmp_path/"d", "bbox_center", size=64, val_share=.3)
    assert sorted(p.name for p in (tmp_path/"d").iterdir()) == ["data_mouse_train.txt", "data_mouse_val.txt", "preprocess.json", *(f"sample_{i:06d}" for i in range(N))]
    for i in range(N):
        d = tmp_path/"d"/f"sample_{i:06d}"
        assert sorted(str(p.relative_to(d)) for p in d.rglob("*") if p.is_file()) == [f"images/cam_{v:03d}.png" for v in range(6)] + ["opencv_cameras.json"]
        for v in range(6):
            with Image.open(d/f"images/cam_{v:03d}.png") as im: assert im.mode == "RGBA" and im.size == (64, 64)
    train, val = ((tmp_path/"d"/f"data_mouse_{k}.txt").read_text().split() for k in ("train", "val"))
    assert train == made["train"] == sorted(train) and val == made["val"] == [f"sample_{i:06d}" for i in (4, 5)] and max(train) < made["gap"][0] < min(val)
    assert json.loads((tmp_path/"d/preprocess.json").read_text()) == made and made["complete"]


@pytest.mark.parametrize("name", [*METHODS, "exact"])
def test_reads_back(film, tmp_path, name):
    recipe = canonicalize if name == "exact" else None
    preprocess_dataset(film, tmp_path/"d", name, [3], 64, recipe=recipe)
    got, domain = read_views(tmp_path/"d/sample_000000"), replace(FACELIFT_DOMAIN, image_size=64)
    want = (recipe or METHODS[name])(read_views(film, 3), domain, **({"as_was": True} if name == "pixel_based" else {}))
    assert torch.allclose(got.cameras.K, want.views.cameras.K.double(), atol=1e-9) and torch.allclose(got.cameras.w2c, want.views.cameras.w2c.double(), atol=1e-12)
    assert (got.images - want.views.images).abs().max() < 2/255 and (got.alpha - want.views.alpha).abs().max() < .51/255
    note = json.loads((tmp_path/"d/sample_000000/opencv_cameras.json").read_text())["gslrm_mouse"]
    assert note["statement"] == want.statement and note["frame"] == 3 and note["exact"] == want.exact and note["back"]["scale"] == want.to_source.scale
    if want.exact:      # the similarity in the file takes the stored cameras back to the rig, whoever reads it
        back = np.array(note["back"]["Q"])*note["back"]["scale"] @ got.cameras.centers.numpy().T + np.array(note["back"]["c"])[:, None]
        assert np.abs(back.T - mouse_rig().centers.numpy()).max() < 1e-6


def test_default_is_as_it_was(film, tmp_path):
    "The pixel-based data set copies the converter's cameras; the study's arm of that name turns them."
    preprocess_dataset(film, tmp_path/"d", "pixel_based", [0], 64)
    domain, views = replace(FACELIFT_DOMAIN, image_size=64), read_views(film, 0)
    w2c = read_views(tmp_path/"d/sample_000000").cameras.w2c
    assert torch.allclose(w2c, METHODS["converted"](views, domain).views.cameras.w2c, atol=1e-9)
    assert not torch.allclose(w2c[:, :3, :3], RECIPES["pixel_based"](views, domain).views.cameras.w2c[:, :3, :3], atol=.05)


def test_methods_hold_the_studys_recipes():
    assert list(RECIPES) == ["mm", "per_camera", "similarity", "overwritten_k", "pixel_based"] and all(METHODS[k] is v for k, v in RECIPES.items())


# ---- stopped, and gone on with ----

def test_after_a_kill(film, tmp_path):
    out = tmp_path/"d"
    code = f"from gslrm_mouse.preprocess.dataset import preprocess_dataset as f; f({str(film)!r}, {str(out)!r}, 'uniform_per_view', size=512)"
    p = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if (out/"sample_000001").exists() or p.poll() is not None: break
        time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    there = sorted(x for x in out.glob("sample_*"))
    assert 2 <= len(there) < N and not (out/"data_mouse_train.txt").exists() and not json.loads((out/"preprocess.json").read_text())["complete"]
    for x in there: read_views(x)                                                        # what has a name is whole
    kept = {f: (f.stat().st_mtime_ns, f.read_bytes()) for x in there for f in x.rglob("*") if f.is_file()}
    (out/".sample_000003.deadbeef/images").mkdir(parents=True)                            # and what a kill may leave has none
    made = preprocess_dataset(film, out, "uniform_per_view", size=512)
    assert made["samples"] == N and all((f.stat().st_mtime_ns, f.read_bytes()) == v for f, v in kept.items())
    assert not [x for x in out.iterdir() if x.name.startswith(".")]


@pytest.mark.parametrize("damage", [
    lambda d: (d/"images/cam_003.png").unlink(),
    lambda d: (d/"images/cam_003.png").write_bytes((d/"images/cam_003.png").read_bytes()[:-9]),
    lambda d: (d/"images/cam_000.png").write_bytes(b""),
    lambda d: (d/"opencv_cameras.json").write_text('{"frames": ['),
    lambda d: (d/"opencv_cameras.json").write_text("[]"),
    lambda d: (d/"opencv_cameras.json").unlink(),
    lambda d: shutil.rmtree(d),
])
def test_half_a_sample_is_made_again(film, tmp_path, damage):
    a = preprocess_dataset(film, tmp_path/"d", "similarity", [0, 1, 2], 32)
    d = tmp_path/"d/sample_000001"
    before = {p.name: p.read_bytes() for p in d.rglob("*") if p.is_file()}
    damage(d)
    assert preprocess_dataset(film, tmp_path/"d", "similarity", [0, 1, 2], 32) == a
    assert {p.name: p.read_bytes() for p in d.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("change, said", [(dict(method="mm"), "another method"), (dict(size=64), "another size"), (dict(frames=[0, 2]), "another frames"), (dict(ratio=.4), "another options"), (dict(val_share=.5), "another val_share")])
def test_one_folder_one_data_set(film, tmp_path, change, said):
    args = dict(method="bbox_center", frames=[0, 1], size=32)
    preprocess_dataset(film, tmp_path/"d", **args)
    with pytest.raises(ValueError) as e: preprocess_dataset(film, tmp_path/"d", **{**args, **change})
    assert said in sentence(e)


# ---- what is wrong is said ----

@pytest.mark.parametrize("name, near", [("pixel-based", "pixel_based"), ("bbox", "bbox_center"), ("uniform", "uniform_per_view or uniform_per_sample"), ("safe_scale", "com_safe_scale"), ("", "the known ones are mm"), ("🐭", "the known ones are mm")])
def test_unknown_method(tmp_path, film, name, near):
    with pytest.raises(ValueError) as e: preprocess_dataset(film, tmp_path/"d", name)
    assert near in sentence(e) and not (tmp_path/"d").exists()
    with pytest.raises(ValueError): get_recipe(name)


def test_picture_without_alpha(square, tmp_path):
    f = square/"sample_000001/images/cam_002.png"
    Image.open(f).convert("RGB").save(f)
    with pytest.raises(ValueError) as e: preprocess_dataset(square, tmp_path/"d", "pixel_based", size=64)
    assert "no alpha" in sentence(e) and "cam_002.png" in str(e.value) and "sample_000001" in str(e.value)
    made = preprocess_dataset(square, tmp_path/"d", "pixel_based", size=64, skip_bad=True)
    assert made["samples"] == 1 and list(made["skipped"]) == ["sample_000001"] and made["val"] == [] and not (tmp_path/"d/sample_000001").exists()


def test_white_background_by_threshold(square, tmp_path):
    for f in square.rglob("*.png"):
        rgba = np.array(Image.open(f))
        rgba[rgba[..., 3] == 0] = 255
        Image.fromarray(rgba[..., :3]).save(f)
    made = preprocess_dataset(square, tmp_path/"d", "pixel_based", size=64, white_threshold=.98)
    assert made["samples"] == 2 and read_views(tmp_path/"d/sample_000000").alpha.mean() < .2


def test_empty_mask(square, tmp_path):
    f = square/"sample_000000/images/cam_001.png"
    rgba = np.array(Image.open(f))
    rgba[..., 3] = 0
    Image.fromarray(rgba).save(f)
    with pytest.raises(ValueError) as e: preprocess_dataset(square, tmp_path/"d", "bbox_center", size=64)
    assert "mask is empty" in sentence(e) and "camera 1" in str(e.value)
    for p in square.glob("*"): shutil.rmtree(p) if p.name == "sample_000001" else None
    with pytest.raises(ValueError) as e: preprocess_dataset(square, tmp_path/"d2", "bbox_center", size=64, skip_bad=True)
    assert "no sample could be made" in sentence(e)


def test_object_pushed_out_of_the_picture(square, tmp_path):
    "The script that scaled about the picture's middle wrote such views; here they stop the run."
    a = torch.zeros(4, 64, 64)
    a[:, 50:60, 4:12] = 1
    write_sample(Views(1 - a[..., None].expand(-1, -1, -1, 3), a, facelift_rig(64, n=4)), square/"sample_000002")
    with pytest.raises(ValueError) as e: preprocess_dataset(square, tmp_path/"d", "uniform_per_view", [2], 64, ratio=.9, centered=False)
    assert "made by the recipe" in sentence(e) and "the mask is empty" in str(e.value)


@pytest.mark.parametrize("make", [
    lambda p: p.mkdir(), lambda p: (p/"sample_000000").mkdir(parents=True), lambda p: None,
    lambda p: ((p/"s").mkdir(parents=True), (p/"s/opencv_cameras.json").write_text("{")),
    lambda p: ((p/"s").mkdir(parents=True), (p/"s/opencv_cameras.json").write_bytes(os.urandom(200))),
    lambda p: ((p/"s").mkdir(parents=True), (p/"s/opencv_cameras.json").write_text('{"frames": []}')),
    lambda p: (p/"videos_undist").mkdir(parents=True),
])
def test_bad_source(tmp_path, make):
    make(tmp_path/"in")
    with pytest.raises((ValueError, FileNotFoundError)) as e: preprocess_dataset(tmp_path/"in", tmp_path/"d", "similarity")
    assert str(tmp_path/"in") in sentence(e)
    assert not list((tmp_path/"d").glob("sample_*"))


@pytest.mark.parametrize("more, said", [(dict(frames=[]), "no samples were asked for"), (dict(frames=[5]), "sample 5 was asked for"), (dict(frames=[-1]), "sample -1"), (dict(val_share=1.5), "val_share"), (dict(gap=9), "nothing to train on"), (dict(size=0), "at least 8"), (dict(speed=3), "no setting 'speed'"), (dict(method="mm"), "millimetres")])
def test_bad_settings(square, tmp_path, more, said):
    with pytest.raises(ValueError) as e: preprocess_dataset(square, tmp_path/"d", **{"method": "similarity", "size": 32, **more})
    assert said in sentence(e)


def test_a_folder_of_something_else_is_left_alone(film, tmp_path):
    (tmp_path/"d").mkdir()
    (tmp_path/"d/thesis.txt").write_text("x")
    with pytest.raises(FileExistsError): preprocess_dataset(film, tmp_path/"d", "mm")
    (tmp_path/"d/preprocess.json").write_text("{}")
    with pytest.raises(ValueError) as e: preprocess_dataset(film, tmp_path/"d", "mm")
    assert "no readable manifest" in sentence(e) and sorted(p.name for p in (tmp_path/"d").iterdir()) == ["preprocess.json", "thesis.txt"]


# ---- split and grades ----

@settings(deadline=None, max_examples=300)
@given(st.integers(1, 400), st.floats(0, .99), st.one_of(st.none(), st.integers(0, 40)))
def test_blocks_are_blocks(n, share, gap):
    try: train, between, val = split_by_time(n, share, gap)
    except ValueError:
        assert gap is not None and gap + max(1, round(n*share)) >= n or round(n*share) >= n
        return
    assert [*train, *between, *val] == list(range(n)) and len(train) >= 1                # consecutive, disjoint, in order: never shuffled
    if val: assert gap is None or val.start - train.stop == gap
    if val and gap is None and n >= 3 and len(val) < n - 1: assert len(between) >= 1


def test_grades_of_facelifts_own_sample(sample):
    g = grade_folder(sample)
    assert (g.n_samples, g.n_views, g.grade) == (1, 8, "D") and abs(g.cv_views - .037) < .002 and abs(g.com["mean"] - 80.5) < .5 and abs(g.size - .574) < .002
    assert g.hull_iou_least > .99 and g.clipped == 1 and g.covered == 1


def test_the_grade_does_not_see_cameras():
    "Other cameras, other order of the cameras: the grade stays, what it misses does not."
    v = raytrace(mouse_scene(2), mouse_rig().resized(144, 128), 2)
    w = replace(v, cameras=v.cameras[[2, 1, 0, 3, 4, 5]])
    a, b = grades([v, v]), grades([w, w])
    assert (a.grade, a.cv_views, a.com, a.size) == (b.grade, b.cv_views, b.com, b.size)
    assert b.hull_iou < a.hull_iou - .1 and b.residual_px > 1.5*a.residual_px


def test_grade_against_numpy():
    "The old numbers by another way: integer pixel indices, population spread."
    v = raytrace(mouse_scene(7), mouse_rig().resized(288, 256), 2)
    w = METHODS["bbox_center"](v, replace(FACELIFT_DOMAIN, image_size=128)).views
    g = grades([w, METHODS["bbox_center"](raytrace(mouse_scene(8), v.cameras, 2), replace(FACELIFT_DOMAIN, image_size=128)).views])
    ratio, off = [], []
    for views in (w, METHODS["bbox_center"](raytrace(mouse_scene(8), v.cameras, 2), replace(FACELIFT_DOMAIN, image_size=128)).views):
        for a in views.alpha.numpy():
            yx = np.argwhere((a*255) > 10)
            ratio.append((len(yx)/a.size)**.5)
            off.append(np.hypot(*(yx.mean(0) - 64))*4)
    ratio = np.array(ratio).reshape(2, 6)
    assert np.isclose(g.cv_views, ratio.std()/ratio.mean()) and np.isclose(g.cv_samples, ratio.mean(1).std()/ratio.mean()) and np.isclose(g.com["mean"], np.mean(off)) and np.isclose(g.com["p95"], np.percentile(off, 95))


def test_letters():
    assert [grade_letter(*x) for x in ((.0099, 4.9), (.01, 4.9), (.0099, 5), (.03, 0), (.05, 0), (0, 20))] == ["A", "B", "B", "C", "D", "D"]


# ---- the hull ----

def test_hull_against_brute_force():
    "Every voxel centre asked of every camera, one by one, in numpy."
    v = raytrace(mouse_scene(4), mouse_rig().resized(72, 64), 2)
    h = visual_hull(v, n=24)
    K, w2c, alpha = v.cameras.K.numpy(), v.cameras.w2c.numpy(), v.alpha.numpy()
    def inside(p):
        for k, m, a in zip(K, w2c, alpha):
            q = k @ (m[:3, :3] @ p + m[:3, 3])
            x, y = int(np.floor(q[0]/q[2])), int(np.floor(q[1]/q[2]))
            if 0 <= x < 72 and 0 <= y < 64 and not a[y, x]*255 > 10: return False
        return True
    points = h.points.numpy()
    assert len(points) > 100 and all(inside(p) for p in points[::5])
    have = {tuple(np.round((p - points[0])/h.voxel).astype(int)) for p in points}
    lo, hi = points.min(0), points.max(0)
    r = np.random.default_rng(0)
    missing = 0
    for _ in range(400):
        k = np.round((r.uniform(lo, hi) - points[0])/h.voxel).astype(int)
        if tuple(k) not in have:
            missing += 1
            assert not inside(points[0] + k*h.voxel)
    assert missing > 50


def test_hull_center_is_near_the_animal():
    v = raytrace(mouse_scene(4), mouse_rig().resized(144, 128), 2)
    h = visual_hull(v)
    assert (h.points.mean(0) - mouse_scene(4).center).norm() < 12 and (triangulate(v).point - mouse_scene(4).center).norm() < 30
    a, b = visual_hull(v, center=torch.tensor([54., 57, 20]), extent=260.), h
    assert torch.allclose(a.iou, b.iou, atol=.02) and abs(a.volume/b.volume - 1) < .1


def test_foreground_needs_a_foreground():
    a = torch.zeros(2, 8, 8)
    a[0, 2:4, 2:4] = 1
    a[1, 3, 3] = 9/255
    with pytest.raises(ValueError) as e: foreground_stats(Views(1 - a[..., None].expand(-1, -1, -1, 3), a, facelift_rig(8, n=2)))
    assert "camera 1" in sentence(e)
