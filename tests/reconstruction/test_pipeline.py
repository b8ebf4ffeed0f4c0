"Many frames: read once, made whole or not at all, gone on with after a kill, in steady memory; filters and PLY against numbers that are not ours."
import json, random, shutil, signal, subprocess, sys, textwrap, time
from dataclasses import replace
from pathlib import Path
import av, numpy as np, plyfile, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from gslrm_mouse import files
from gslrm_mouse.reconstruction import pipeline as module
from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.preprocess.canonical import canonicalize
from gslrm_mouse.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.filters import FILTERS, Filters
from gslrm_mouse.gaussians.ply import load_ply, ply_world
from gslrm_mouse.metrics import image_scores, mean_scores
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.gaussians.rasterize import render
from gslrm_mouse.reconstruction.film import cloud_center, cloud_radius, turntable_cameras, up_axis
from gslrm_mouse.reconstruction.pipeline import MANIFEST, frame_folder, load_finished, reconstruct
from gslrm_mouse.reconstruction.prediction import fit_to_views, predict, training_blur
from gslrm_mouse.scenes.bodies import canonical_scene, mouse_scene
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.video import decode_frame, decode_frames
from gslrm_mouse.views.recordings import open_recording, read_views
from gslrm_mouse.views.samples import write_sample
from conftest import DATA

N = 12


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("film")/"rec", N, seed=5, cams=mouse_rig().resized(144, 128), truth=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    net = GSLRM(GSLRMConfig(image_size=32, d=64, n_layer=1))
    return save_checkpoint(tmp_path_factory.mktemp("net")/"m.safetensors", net, ModelCard(net.config, replace(FACELIFT_DOMAIN, image_size=32)))


def settings_in(out): return json.loads((out/MANIFEST).read_text())["settings"]


def contents(out): return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}


def folders(out): return sorted(int(p.name[6:]) for p in out.glob("frame_*"))


# ---- reading ----

@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gop=st.integers(1, 40), bf=st.integers(0, 3), opened=st.booleans(), order=st.lists(st.integers(0, 29), min_size=1, max_size=12), sort=st.booleans())
def test_frames_are_those_counted(tmp_path, gop, bf, opened, order, sort):
    "Every frame shows its own number, so a neighbour would be seen."
    path = tmp_path/"0.mp4"
    with av.open(str(path), "w") as f:
        s = f.add_stream("libx264", rate=25, options=dict(crf="10", g=str(gop), bf=str(bf), **({"x264-params": "open-gop=1"} if opened else {})))
        s.width, s.height, s.pix_fmt = 64, 32, "yuv420p"
        for i in range(30):
            x = np.zeros((32, 64, 3), np.uint8)
            x[:, 2*i:2*i + 2] = 255
            x[:16, :8] = 8*i
            f.mux(s.encode(av.VideoFrame.from_ndarray(x, format="rgb24")))
        f.mux(s.encode())
    with av.open(str(path)) as f: counted = [x.to_ndarray(format="rgb24") for x in f.decode(video=0)]
    assert len(counted) == 30 and all(np.abs(counted[i].astype(int) - counted[i + 1]).max() > 60 for i in range(29))
    order = sorted(order) if sort else order
    for i, x in zip(order, decode_frames(path, order), strict=True): assert np.array_equal(x, counted[i])


def test_a_row_of_frames_is_decoded_once(film, monkeypatch):
    "Counted where the decoder hands out pictures: as many as there are up to the last one asked for, not one more."
    from gslrm_mouse import video
    path, seen = film/"videos_undist/0.mp4", []
    class Stream:
        def __init__(self, f): self.f = f
        def __getattr__(self, k): return getattr(self.f, k)
        def decode(self, s): return (seen.append(x) or x for x in self.f.decode(s))
    real = video.open_video
    monkeypatch.setattr(video, "open_video", lambda p: type("V", (), dict(__enter__=lambda s: Stream((s.__dict__.setdefault("cm", real(p))).__enter__()), __exit__=lambda s, *a: s.cm.__exit__(*a)))())
    list(decode_frames(path, [0, 3, 4, 9]))
    in_a_row = len(seen)
    seen.clear()
    for i in (0, 3, 4, 9): decode_frame(path, i)
    assert in_a_row == 10 and len(seen) == 1 + 4 + 5 + 10


def test_recording_in_a_row_is_recording_one_by_one(film):
    rec = open_recording(film)
    for i, v in zip((1, 2, 7, 4), rec.frames([1, 2, 7, 4]), strict=True):
        w = rec.frame(i)
        assert torch.equal(v.images, w.images) and torch.equal(v.alpha, w.alpha) and v.names == w.names
    assert not torch.equal(rec.frame(1).images, rec.frame(2).images)
    two = rec[[4, 1]].frame(3)
    assert torch.equal(two.images, rec.frame(3).images[[4, 1]]) and torch.equal(two.cameras.w2c, rec.cameras.w2c[[4, 1]])


# ---- filters ----

def test_filters_leave_what_facelift_leaves():
    if not (DATA/"parity/d_extras.npz").is_file(): pytest.skip("the parity numbers ../shared/data/parity/d_extras.npz are not on this machine")
    z = np.load(DATA/"parity/d_extras.npz")
    t = lambda k: torch.from_numpy(z[k])
    g = Gaussians(t("gs/xyz"), t("gs/rotation"), t("gs/scaling").exp(), t("gs/opacity")[:, 0].sigmoid(), t("gs/features"))
    cases = dict(inference=FILTERS["facelift"], training=FILTERS["training"], opacity_only_0p05=Filters(.05), scaling_0p1_only=Filters(None, .1), floater_0p6_only=Filters(None, floater=.6), nearfar_0p05_0p95=Filters(None, near_far=(.05, .95)))
    for k, f in cases.items(): assert f.mask(g, t("filter/cam_origins")).nonzero()[:, 0].tolist() == z[f"filter/kept_{k}"].tolist(), k
    turned = replace(g, means=g.means[:, [2, 0, 1]])                                       # and would not if the axes were others, where they differ
    assert all(f.mask(turned, t("filter/cam_origins")).nonzero()[:, 0].tolist() != z[f"filter/kept_{k}"].tolist() for k, f in cases.items() if k not in ("opacity_only_0p05", "training"))


def cloud(n, seed):
    r = np.random.default_rng(seed)
    f = lambda x: torch.from_numpy(x).float()
    return Gaussians(f(r.normal(size=(n, 3))*.7), f(r.normal(size=(n, 4))), f(np.exp(r.normal(size=(n, 3)) - 3)), f(r.uniform(size=n)), f(r.normal(size=(n, 1, 3))))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(0, 99), st.floats(0, 1), st.floats(0, .3), st.floats(0, 1), st.floats(.1, 1.5))
def test_filters_against_a_loop(n, seed, a, s, f, b):
    g = cloud(n, seed)
    keep = []
    for i in range(n):
        (x, y, z), o, big = (np.float32(v) for v in g.means[i].numpy()), g.opacities[i].item(), g.scales[i].max().item()
        keep.append(o > np.float32(a) and (big < np.float32(s) or z > 0) and not (abs(x) > np.float32(f) and abs(y) > np.float32(f) and z < -np.float32(f)) and abs(x) <= np.float32(b) and abs(y) <= np.float32(b) and -1 <= z <= 1)
    assert Filters(a, s, 0., f, ((-b, -b, -1.), (b, b, 1.))).mask(g).tolist() == keep
    assert Filters(None).mask(g).all()


# ---- files ----

@pytest.mark.parametrize("units", ["mm", "model"])
def test_units_of_the_ply(film, tmp_path, units):
    "Read by plyfile and carried by numpy: positions, scales and the picture of the rig are those of the other unit."
    reconstruct(film, tmp_path/"a", 3, units=units, turntable=False, panels=False)
    reconstruct(film, tmp_path/"b", 3, units={"mm": "model", "model": "mm"}[units], turntable=False, panels=False)
    a, b = (plyfile.PlyData.read(tmp_path/k/"gaussians.ply") for k in "ab")
    said = {c.split()[0]: c.split()[1:] for c in a.comments}
    assert said["unit"] == [units] and said["up"] == ["+z"] and said["to"][0] != units
    s, q, c = float(said["to"][1]), np.array(said["to"][2:6], float), np.array(said["to"][6:], float)
    xyz = lambda p: np.stack([p["vertex"][k] for k in "xyz"], 1).astype(float)
    assert np.allclose(q, [1, 0, 0, 0], atol=1e-9)                                        # this rig's world is upright: the similarity does not turn
    assert np.allclose(s*xyz(a) + c, xyz(b), atol=1e-5*max(1, s)) and np.allclose(a["vertex"]["scale_1"] + np.log(s), b["vertex"]["scale_1"], atol=1e-5) and not np.allclose(xyz(a), xyz(b), atol=.1)
    g, h = load_ply(tmp_path/"a/gaussians.ply"), load_ply(tmp_path/"b/gaussians.ply")
    cams = read_views(film, 3).cameras
    to = ply_world(tmp_path/"a/gaussians.ply")[2]
    inmm = (g, h) if units == "mm" else (g.transform(to), h)
    inmm = tuple(x if x.unit == "mm" else x.transform(to.inverse) for x in inmm)
    x, y = (render(k, cams)[0] for k in inmm)
    assert (x - y).abs().mean() < 1e-6 and x.min() < .5


def test_up_of_the_recording(film):
    "The same moment in a world whose up is -y: same cloud, same film, no matter how it lies in its file."
    model, card = load_checkpoint()
    views = raytrace(mouse_scene(3), mouse_rig().resized(288, 256), 2)
    lying = Similarity(1., torch.tensor([[1., 0, 0], [0, 0, -1], [0, 1, 0]]), None, "mm", "mm")
    side = replace(views, cameras=lying.cameras(views.cameras))
    pictures = {}
    for name, v, up in (("z", views, None), ("-y", side, torch.tensor([0., -1, 0])), ("not said", side, None)):
        p = canonicalize(v, card.domain, up=up)
        g = predict(model, p, training_blur(card.domain), FILTERS["ours"])
        pictures[name] = render(g, turntable_cameras(g, 5, 96, up=up_axis(p)))[0]
        if name == "-y":
            assert torch.allclose(up_axis(p), torch.tensor([0., -1, 0]).double(), atol=1e-9)
            wrong = render(g, turntable_cameras(g, 5, 96))[0]
    assert (pictures["z"] - pictures["-y"]).abs().mean() < 2e-3
    assert min((pictures["z"] - x).abs().mean() for x in (pictures["not said"], wrong)) > .01


@settings(deadline=None, max_examples=40)
@given(st.integers(5, 200), st.integers(0, 99), st.floats(.01, 100))
def test_middle_moves_with_the_cloud(n, seed, s):
    g = cloud(n, seed)
    sim = Similarity(s, None, torch.tensor([3., -7, 11]).double(), "model", "mm")
    c = cloud_center(g)
    assert torch.allclose(cloud_center(g.transform(sim)), sim(c), atol=1e-4*(s + 20)) and abs(cloud_radius(g.transform(sim), sim(c)) - s*cloud_radius(g, c)) < 1e-3*(s + 1)
    lone = replace(g, means=torch.cat([g.means, g.means[:1]*0 + 1e3]), quats=g.quats[[*range(n), 0]], scales=g.scales[[*range(n), 0]], opacities=torch.cat([g.opacities, torch.tensor([.041])]), sh=g.sh[[*range(n), 0]])
    assert ((cloud_center(lone) >= g.means.double().min(0).values - 1e-9) & (cloud_center(lone) <= g.means.double().max(0).values + 1e-9)).all()       # no stray takes it out of the cloud


# ---- many frames ----

def test_one_model_for_all(film, tiny, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(module, "load_checkpoint", lambda *a: loads.append(a) or load_checkpoint(*a))
    got = reconstruct(film, tmp_path/"d", checkpoint=tiny, frames=[5, 0, 5], turntable=False)
    assert len(loads) == 1 and folders(tmp_path/"d") == [0, 5] and set(got) == {"input"}
    files = {"gaussians.ply", "results.jsonl", "cameras.txt", "views.png", "cameras.png"}
    assert all({p.name for p in frame_folder(tmp_path/"d", i).iterdir()} == files for i in (0, 5))
    rows = [json.loads(x) for x in (tmp_path/"d/results.jsonl").read_text().splitlines()]
    assert [(r["frame"], r["camera"]) for r in rows] == [(i, c) for i in (0, 5) for c in range(6)] and {r["checkpoint"] for r in rows} == {settings_in(tmp_path/"d")["checkpoint"]}
    assert json.loads((tmp_path/"d"/MANIFEST).read_text())["complete"] and len(list(decode_frames(tmp_path/"d/film.mp4", [0, 1]))) == 2


def test_a_frame_of_many_is_the_frame_alone(film, tiny, tmp_path):
    kw = dict(checkpoint=tiny, turntable=False, panels=False)
    reconstruct(film, tmp_path/"one", 7, **kw)
    reconstruct(film, tmp_path/"many", frames=range(3, N, 4), film=False, **kw)
    for name in ("gaussians.ply", "cameras.txt"): assert (tmp_path/"one"/name).read_bytes() == (frame_folder(tmp_path/"many", 7)/name).read_bytes()
    assert (tmp_path/"one/gaussians.ply").read_bytes() != (frame_folder(tmp_path/"many", 3)/"gaussians.ply").read_bytes() and not (tmp_path/"many/film.mp4").exists()


def test_the_film_does_not_depend_on_the_unit(film, tmp_path):
    "Clouds of the shipped checkpoint, frame by frame where the animal is: the three pictures agree in both units, and the middle one with the input."
    shown = {}
    for units in ("mm", "model"):
        reconstruct(film, tmp_path/units, frames=[0, 6, 11], units=units, turntable=False, panels=False)
        shown[units] = np.stack(list(decode_frames(tmp_path/units/"film.mp4", range(3)))).astype(float)/255
    a, b = shown.values()
    assert a.shape[1:] == (256, 2*288 + 256 + 4, 3) and np.abs(a - b).mean() < 1e-3
    given, made, turned = a[:, 20:, :288], a[:, 20:, 290:578], a[:, :, 580:]
    dark = lambda x: x.mean(-1) < .7
    iou = lambda x, y: (x & y).sum()/(x | y).sum()
    assert min(iou(dark(x), dark(y)) for x, y in zip(given, made)) > .4 > iou(dark(given[0]), dark(made[2])) and all(dark(x).sum() > 300 for x in turned)
    assert np.abs(turned[0] - turned[1]).mean() > .005


def test_a_folder_of_samples(tiny, tmp_path):
    for k in range(3): write_sample(raytrace(canonical_scene("head", k), orbit(torch.arange(5)*72., 20., size=64)), tmp_path/"in"/f"sample_{k:06d}")
    got = reconstruct(tmp_path/"in", tmp_path/"d", checkpoint=tiny, frames=[0, 2], turntable=False, panels=False)
    assert folders(tmp_path/"d") == [0, 2] and set(got) == {"input", "novel"}
    with pytest.raises(ValueError, match="sample 3 was asked for, it has 3 samples"): reconstruct(tmp_path/"in", tmp_path/"e", checkpoint=tiny, frames=[3])


CHANGES = [(dict(filters=Filters(.5)), "filters"), (dict(units="model"), "units"), (dict(choose="size"), "choose"), (dict(up=torch.tensor([0., 1, 0])), "up"), (dict(inputs=4), "inputs"), (dict(sized=True), "sized"), (dict(panels=True), "panels"), (dict(checkpoint=None), "checkpoint")]


def test_settings_do_not_mix(film, tiny, tmp_path):
    out = tmp_path/"d"
    kw = dict(checkpoint=tiny, frames=[0, 1], turntable=False, panels=False, film=False)
    reconstruct(film, out, **kw)
    before = contents(out)
    for change, key in CHANGES:
        with pytest.raises(ValueError, match=f"another {key} ") as e: reconstruct(film, out, **{**kw, **change})
        assert "\n" not in str(e.value) and contents(out) == before
    with pytest.raises(ValueError, match="holds frame 1, made with another units"): reconstruct(film, out, **{**kw, "units": "model", "frames": [0], "overwrite": True})
    assert contents(out) == before
    reconstruct(film, out, **{**kw, "units": "model", "overwrite": True})
    assert {load_ply(p).unit for p in out.rglob("*.ply")} == {"model"} and settings_in(out)["units"] == "model"


def test_bad_frames(film, tiny, tmp_path):
    from gslrm_mouse.video import write_video
    rec = shutil.copytree(film, tmp_path/"rec")
    path = rec/"simpleclick_undist/2.mp4"
    masks = list(decode_frames(path, range(N)))
    masks[4] = masks[4]*0
    write_video(path, masks, fps=20, crf=12)
    kw = dict(checkpoint=tiny, frames=[3, 4, 5], turntable=False, panels=False)
    with pytest.raises(ValueError, match="frame 4: camera 2, frame 4: the mask in .* is empty; leave such out") as e: reconstruct(rec, tmp_path/"d", **kw)
    assert "\n" not in str(e.value) and folders(tmp_path/"d") == [3] and not json.loads((tmp_path/"d"/MANIFEST).read_text())["complete"]
    reconstruct(rec, tmp_path/"d", skip_bad=True, **kw)
    made = json.loads((tmp_path/"d"/MANIFEST).read_text())
    assert folders(tmp_path/"d") == [3, 5] == made["frames"] and list(made["skipped"]) == ["4"] and made["complete"] and len(list(decode_frames(tmp_path/"d/film.mp4", [0, 1]))) == 2
    with pytest.raises(ValueError, match="no frame could be made"): reconstruct(rec, tmp_path/"e", skip_bad=True, **{**kw, "frames": [4]})


# ---- killed ----

def start(film, out, tiny, **kw):
    code = f"from gslrm_mouse.reconstruction.pipeline import reconstruct as f; f({str(film)!r}, {str(out)!r}, checkpoint={str(tiny)!r}, **{kw!r})"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def kill_when(p, happened, after=0.):
    for _ in range(6000):
        if happened() or p.poll() is not None: break
        time.sleep(.005)
    time.sleep(after)
    p.send_signal(signal.SIGKILL)
    p.wait()


def test_after_kills_only_whole_frames(film, tiny, tmp_path):
    out, kept, dice, K = tmp_path/"d", {}, random.Random(0), 8
    for n in (1, 3):                                                                       # twice, at different places
        kill_when(start(film, out, tiny, frames=list(range(K)), panels=False), lambda: len(folders(out)) >= n if out.exists() else False, dice.uniform(0, .4))
        there = folders(out)
        assert n <= len(there) < K and not json.loads((out/MANIFEST).read_text())["complete"] and not (out/"film.mp4").exists()
        for i in there: assert len(load_finished(frame_folder(out, i), settings_in(out))) == 6 and len(list(decode_frames(frame_folder(out, i)/"turntable.mp4", [71]))) == 1     # what has a name is whole
        now = {p: v for i in there for p, v in contents(frame_folder(out, i)).items()}
        assert all(now[p] == v for p, v in kept.items())
        kept = now     # and what was whole is not made again
    (out/f".{frame_folder(out, K - 1).name}.deadbeef.part").mkdir()
    reconstruct(film, out, checkpoint=tiny, frames=range(K), panels=False)
    after = contents(out)
    assert all(after[p] == v for p, v in kept.items()) and folders(out) == list(range(K)) and json.loads((out/MANIFEST).read_text())["frames"] == list(range(K))
    assert not [p for p in out.rglob("*") if p.name.startswith(".")] and len((out/"results.jsonl").read_text().splitlines()) == 6*K and len(list(decode_frames(out/"film.mp4", [K - 1]))) == 1


def test_killed_while_replacing_keeps_the_old(film, tiny, tmp_path):
    "The old result, or the new one, whole; never nothing, never half."
    out = tmp_path/"d"
    reconstruct(film, out, 2, checkpoint=tiny, turntable=False, panels=False)
    old = {p.name: p.read_bytes() for p in out.iterdir()}
    for after in (0., .3):
        kill_when(start(film, out, tiny, frame=3, overwrite=True), lambda: any(p.suffix == ".part" for p in tmp_path.iterdir()), after)
        files = {p.name: p.read_bytes() for p in out.iterdir()}
        assert files == old or "turntable.mp4" in files and "cameras.txt" in files
    reconstruct(film, out, 3, checkpoint=tiny, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["d"] and json.loads((out/"results.jsonl").read_text().splitlines()[0])["frame"] == 3


@pytest.mark.parametrize("at", [1, 2])
def test_stopped_between_the_renames(film, tiny, tmp_path, monkeypatch, at):
    "The two moments in which the old folder has given way and the new one is not yet there, or not yet alone."
    out = tmp_path/"d"
    out.mkdir()
    (out/"x").write_text("old")
    real, calls = files.os.replace, []
    def dies(a, b):
        if len(calls) == at: raise KeyboardInterrupt
        calls.append(a)
        real(a, b)
    monkeypatch.setattr(files.os, "replace", dies)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)) if at == 2 else None
    with pytest.raises(KeyboardInterrupt):
        with files.atomic_folder(out, True) as f: (f/"x").write_text("new")
    monkeypatch.undo()
    with pytest.raises(FileExistsError): files.atomic_folder(out).__enter__()
    assert (out/"x").read_text() == ("old" if at == 1 else "new") and [p.name for p in tmp_path.iterdir()] == ["d"]


# ---- memory ----

def peaks(source, out, tiny, leak, **kw):
    code = textwrap.dedent(f"""
        import json, re
        from pathlib import Path
        from gslrm_mouse.reconstruction import pipeline as m
        real, peaks, kept = m._moment, [], []
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])/1024      # of this process; ru_maxrss remembers its parent's
        def moment(folder, views, *a):
            r = real(folder, views, *a); peaks.append(peak())
            if {leak}: kept.append(views)
            return r
        m._moment = moment
        m.reconstruct({str(source)!r}, {str(out)!r}, checkpoint={str(tiny)!r}, frames=range({N}), **{kw!r}); peaks.append(peak())
        print(json.dumps(peaks))""")
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc/self/status to read the peak memory from")
def test_memory_is_steady(tiny, tmp_path):
    "Peak memory after the third of twelve frames grows by less than three frames' views; it would by nine, were they kept."
    film = write_recording(tmp_path/"rec", N, seed=5, cams=mouse_rig().resized(576, 512), truth=False)
    one = 6*576*512*16/2**20
    steady, leaking = peaks(film, tmp_path/"steady", tiny, 0), peaks(film, tmp_path/"leaking", tiny, 1, panels=False, turntable=False, film=False)
    print("MiB after each frame, and at the end:", [round(x) for x in steady], "with a leak:", [round(x) for x in leaking])
    assert len(steady) == N + 1 and steady[-1] - steady[2] < 3*one < 6*one < leaking[-1] - leaking[2]


def test_a_fit_believes_its_cameras():
    "In the cameras it was filmed by, a fit is better than the network in a view that was kept back; with two of them exchanged it is worse than with none."
    v = raytrace(mouse_scene(4), mouse_rig().resized(288, 256), 2)
    five, kept = v[[0, 1, 2, 3, 5]], v[[4]]
    model, card = load_checkpoint()
    g = predict(model, canonicalize(five, card.domain), training_blur(card.domain))
    at = lambda x: mean_scores(image_scores(*render(x, kept.cameras, eps2d=0.), kept.images, kept.alpha))
    fitted = fit_to_views(g, five, card.domain, 80)
    assert fitted.unit == "mm" and at(fitted)["iou"] > at(g)["iou"] + .05 and at(fitted)["psnr"] > at(g)["psnr"] + 1
    swapped = replace(five, cameras=five.cameras[[1, 0, 2, 3, 4]])
    assert at(fit_to_views(g, swapped, card.domain, 80))["iou"] < at(g)["iou"]
    assert torch.equal(fit_to_views(g, five, card.domain, 5).means, fit_to_views(g, five, card.domain, 5).means)
