"Masks: what a notebook cell cannot hold. Bad input, killed runs, run lengths against pycocotools, folders as other tools write them."
import json, re, signal, subprocess, sys, time
import av, numpy as np, pytest
from PIL import Image

pytest.importorskip("cv2", reason="opencv-python-headless (the extra `masks`) is not installed")
from hypothesis import given, settings, strategies as st
from gslrm_mouse.calibration.formats import write_calibration
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.masks.confidence import summarize_masks
from gslrm_mouse.masks.imported import decode_rle, read_png
from gslrm_mouse.masks.make import import_masks, make_masks, write_mask_video
from gslrm_mouse.video import video_frames
from gslrm_mouse.views.recordings import MASKS, MASK_THRESHOLD, VIDEOS, open_recording

W, H, N = 96, 64, 16

def write_video(path, frames, rate=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as f:
        s = f.add_stream("libx264", rate=rate, options=dict(crf="8"))
        s.width, s.height, s.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for x in frames: f.mux(s.encode(av.VideoFrame.from_ndarray(x, format="rgb24")))
        f.mux(s.encode())

def box(i, v=0):
    m = np.zeros((H, W), bool)
    m[20 + v:44 + v, 4 + 4*i:26 + 4*i] = True
    return m

def film(v=0, n=N, move=lambda i: 0, still=False):
    "A dark, grainy box which walks over a patterned floor; `move(i)` shakes the camera."
    rng = np.random.default_rng(v)
    floor = np.kron(rng.integers(110, 190, (H//4, W//4, 1)), np.ones((4, 4, 1)))*[1, .97, .9]
    grain = rng.integers(-18, 18, (H, W, 1))
    out = []
    for i in range(n):
        m = box(0 if still else i, v)
        out.append(np.roll(np.where(m[..., None], [62, 48, 40] + grain, floor), move(i), 1))
    return np.stack(out).clip(0, 255).astype(np.uint8)

def stored(folder, c=0): return np.stack([x.mean(-1) > MASK_THRESHOLD for x in video_frames(folder/f"{c}.mp4")])

def iou(a, b): return (a & b).sum()/(a | b).sum()

@pytest.fixture
def rec(tmp_path):
    for v in range(2): write_video(tmp_path/"rec"/VIDEOS/f"{v}.mp4", film(v))
    write_calibration(mouse_rig()[:2].resized(W, H), tmp_path/"rec"/"new_cam.pkl")
    return tmp_path/"rec"

def says(call, *parts, exc=ValueError):
    with pytest.raises(exc) as e: call()
    text = str(e.value)
    for part in parts: assert part in text, text
    assert "\n" not in text and not re.search(r"[a-z]\. [A-Z]", text), text

# ---- made ----

def test_made_masks_open_and_fit(rec):
    reports = make_masks(rec)
    for v in range(2):
        got = stored(rec/MASKS, v)
        assert got.shape == (N, H, W)
        assert min(iou(a, box(i, v)) for i, a in enumerate(got)) > .85
        assert max(iou(a, box(i, v)) for i, a in enumerate(np.roll(got, 3, 0))) < .85      # the same masks at other frames do not
    assert open_recording(rec).frame(5).alpha.sum() > 0 and [r.camera for r in reports] == [0, 1]
    assert sorted(p.name for p in (rec/MASKS).iterdir()) == ["0.mp4", "1.mp4", "masks.json", "masks.png"]
    assert [r["sentence"] for r in json.loads((rec/MASKS/"masks.json").read_text())] == [str(r) for r in reports] and summarize_masks(reports).count("\n") >= 2

def test_existing_masks_stay(rec):
    make_masks(rec)
    before = (rec/MASKS/"0.mp4").stat().st_mtime_ns
    says(lambda: make_masks(rec), "only when overwriting", exc=FileExistsError)
    assert (rec/MASKS/"0.mp4").stat().st_mtime_ns == before
    make_masks(rec, overwrite=True)
    assert (rec/MASKS/"0.mp4").stat().st_mtime_ns > before
    (rec/MASKS/"thesis.tex").write_text("years of work")
    says(lambda: make_masks(rec, overwrite=True), "holds more than masks", "thesis.tex")
    assert (rec/MASKS/"thesis.tex").exists()

def test_bad_recordings(rec, tmp_path):
    says(lambda: make_masks(tmp_path/"nowhere"), "videos_undist", exc=FileNotFoundError)
    write_video(rec/VIDEOS/"1.mp4", film(1, 1))
    says(lambda: make_masks(rec), "1.mp4", "it has 1 frames", "at least 8")
    write_video(rec/VIDEOS/"1.mp4", film(1, still=True))
    says(lambda: make_masks(rec), "nothing stands out in its 16 frames (0%")
    (rec/VIDEOS/"1.mp4").write_bytes(b"no video")
    says(lambda: make_masks(rec), "no readable video")
    for bad in 0, -3, 255, float("nan"): says(lambda: make_masks(rec, threshold=bad), "threshold should lie")
    says(lambda: make_masks(rec, samples=3), "at least 8 samples")
    assert sorted(p.name for p in rec.iterdir()) == ["new_cam.pkl", VIDEOS]                  # nothing is left behind

def test_damaged_in_the_middle(rec):
    data = bytearray((rec/VIDEOS/"1.mp4").read_bytes())
    a = data.index(b"mdat")
    (rec/VIDEOS/"1.mp4").write_bytes(data[:a + 4] + bytes(len(data) - a - 4) if a > data.index(b"moov") else data[:a + 400] + bytes(600) + data[a + 1000:])
    says(lambda: make_masks(rec), "1.mp4")
    assert not (rec/MASKS).exists()

@pytest.mark.parametrize("move", [lambda i: i//3, lambda i: (0, 2)[i % 2], lambda i: 4*(i > 8)])
def test_moving_camera_is_doubted(rec, move):
    write_video(rec/VIDEOS/"1.mp4", film(1, move=move))
    still, moving = make_masks(rec)
    assert moving.sure == "unsure" and np.median(moving.confidence) < .8 < np.median(still.confidence) and still.sure != "unsure" and len(moving.doubts) > N//4 > len(still.doubts)
    assert "camera 1: unsure" in summarize_masks([still, moving]) and "look at masks.png" in summarize_masks([still, moving])

def test_camera_that_never_rests(rec):
    write_video(rec/VIDEOS/"1.mp4", film(1, move=lambda i: 3*i))
    says(lambda: make_masks(rec), "1.mp4", "is not at rest", "a camera that moves")

def test_killed_midway(rec):
    write_video(rec/VIDEOS/"1.mp4", np.concatenate([film(1)]*60))
    p = subprocess.Popen([sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from gslrm_mouse.masks.make import make_masks; make_masks({str(rec)!r})"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 60
    while not list(rec.glob(".*/0.mp4")) and p.poll() is None and time.time() < end: time.sleep(.02)
    assert p.poll() is None, "it ended before it could be killed"
    p.send_signal(signal.SIGINT)
    p.wait(60)
    assert sorted(q.name for q in rec.iterdir()) == ["new_cam.pkl", VIDEOS]
    p = subprocess.Popen([sys.executable, "-c", f"from gslrm_mouse.masks.make import make_masks; make_masks({str(rec)!r})"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(rec.glob(".*/0.mp4")) and p.poll() is None and time.time() < end: time.sleep(.02)
    p.kill()
    p.wait(60)
    assert not (rec/MASKS).exists()                                   # killed hard: a hidden folder at most, never masks

# ---- read ----

def save(path, im):
    path.parent.mkdir(parents=True, exist_ok=True)
    im.save(path)

def as_palette(m):
    im = Image.frombytes("P", (W, H), (m*np.uint8(2)).tobytes())
    im.putpalette([0, 0, 0, 250, 0, 0, 7, 7, 7])
    return im
WRITERS = {"white on black": lambda m: Image.fromarray(m.astype(np.uint8)*255), "one bit": lambda m: Image.fromarray(m), "alpha": lambda m: Image.fromarray(np.dstack([np.full((H, W, 3), 200, np.uint8), m.astype(np.uint8)*255])), "opaque alpha": lambda m: Image.fromarray(np.dstack([np.repeat(m[..., None].astype(np.uint8)*255, 3, -1), np.full((H, W), 255, np.uint8)])),
           "palette": as_palette, "labels": lambda m: Image.fromarray(m.astype(np.uint8)*4), "coloured": lambda m: Image.fromarray(m[..., None]*np.array([0, 128, 0], np.uint8)), "16 bit labels": lambda m: Image.fromarray(m.astype(np.uint16)*3)}

@pytest.mark.parametrize("kind", WRITERS)
def test_png_kinds(tmp_path, kind):
    save(tmp_path/"m.png", WRITERS[kind](box(3)))
    assert (read_png(tmp_path/"m.png", W, H) == box(3)).all()
    says(lambda: read_png(tmp_path/"m.png", H, W), "it is 96 × 64 px")

@pytest.mark.parametrize("name", ["{c}/{i:05d}.png", "cam_{c:03d}/frame_{i:06d}.png", "frame_{i:06d}_view_{c}.png", "camera {c}/masks/{i}.PNG", "{c}/{j:05d}.png"])
def test_png_folders(rec, tmp_path, name):
    for c in range(2):
        for i in range(N): save(tmp_path/"in"/name.format(c=c, i=i, j=i + 1), WRITERS["palette"](box(i, 5*c)))
    reports = import_masks(rec, tmp_path/"in")
    for c in range(2): assert (stored(rec/MASKS, c) == np.stack([box(i, 5*c) for i in range(N)])).all()
    assert open_recording(rec).n_frames == N and not reports[0].made

def test_png_folders_that_do_not_fit(rec, tmp_path):
    f = tmp_path/"in"
    says(lambda: import_masks(rec, f), "was looked for", exc=FileNotFoundError)
    f.mkdir()
    says(lambda: import_masks(rec, f), "were looked for", exc=FileNotFoundError)
    for c in range(2):
        for i in range(N): save(f/f"{c}/{i:05d}.png", WRITERS["palette"](box(i)))
    (f/"1/00007.png").rename(f/"1/00099.png")
    says(lambda: import_masks(rec, f), "camera 1", "frame 7", "1 of 16")
    (f/"1/00099.png").rename(f/"1/7.png")
    save(f/"1/00016.png", as_palette(box(1)))
    says(lambda: import_masks(rec, f), "17 masks, but the video has 16")
    (f/"1/00016.png").rename(f/"1/007.png")
    says(lambda: import_masks(rec, f), "second mask for frame 7")
    (f/"1/007.png").unlink()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 100, (H, W), dtype=np.uint8))
    save(f/"1/00003.png", noise)
    says(lambda: import_masks(rec, f), "00003.png", "neither white on black")
    (f/"1/00003.png").write_bytes(b"\x89PNG")
    says(lambda: import_masks(rec, f), "00003.png is no readable mask")
    save(f/"2/0.png", as_palette(box(0)))
    says(lambda: import_masks(rec, f), "cameras 0, 1 were looked for, found 0, 1, 2")
    assert not (rec/MASKS).exists()

def coco(c=2, n=N): return dict(images=[dict(id=100*v + i, file_name=f"cam_{v}/{i}.jpg") for v in range(c) for i in range(n)], annotations=[dict(image_id=100*v + i, segmentation=runs(box(i, 5*v))) for v in range(c) for i in range(n)])

def runs(m):
    "Uncompressed run lengths, the obvious way."
    counts, last = [0], False
    for x in m.T.ravel().tolist():
        if x != last:
            counts.append(0)
            last = x
        counts[-1] += 1
    return dict(size=list(m.shape), counts=counts)

def test_coco(rec, tmp_path):
    f = tmp_path/"masks.json"
    data = coco()
    data["annotations"].pop(3)
    f.write_text(json.dumps(data))
    reports = make_masks(rec, source=f)
    assert (stored(rec/MASKS, 1) == np.stack([box(i, 5) for i in range(N)])).all() and not stored(rec/MASKS, 0)[3].any() and reports[0].doubts[3] == "empty" and reports[0].confidence[3] == 0
    for change, why in ((lambda d: d.pop("images"), "`images` and `annotations`"), (lambda d: d["images"].pop(2), "belongs to no image"), (lambda d: (d["images"].pop(2), d["annotations"].pop(2)), "frame 2"), (lambda d: d["images"][1].update(id=0), "two images have the id"),
                        (lambda d: d["images"][1].update(id=[1]), "should have an id"), (lambda d: d["annotations"][5].update(image_id={}), "belongs to no image"), (lambda d: d["annotations"][5].update(segmentation=[[1, 2, 3, 4, 5, 6]]), "polygons"), (lambda d: d["annotations"][5]["segmentation"].update(size=[W, H]), "the video is [64, 96]"),
                        (lambda d: d["annotations"][5]["segmentation"].update(counts=[10**12, -10**12, H*W]), "negative"), (lambda d: d["annotations"][5]["segmentation"].update(counts=[H*W - 1]), "fill 6143"), (lambda d: d["annotations"][5]["segmentation"].update(counts="o"*99), "does not belong")):
        data = coco()
        change(data)
        f.write_text(json.dumps(data))
        says(lambda: import_masks(rec, f, tmp_path/"out"), why)
        assert not (tmp_path/"out").exists()
    f.write_text("["*100000)
    says(lambda: import_masks(rec, f, tmp_path/"out"), "no readable JSON")
    f.rename(tmp_path/"masks.xml")
    says(lambda: import_masks(rec, tmp_path/"masks.xml"), "ends in '.xml'", exc=FileNotFoundError)

def test_one_json_per_camera(rec, tmp_path):
    for c in range(2):
        (tmp_path/"in").mkdir(exist_ok=True)
        (tmp_path/"in"/f"cam_{c}.json").write_text(json.dumps(dict(images=[dict(id=i, file_name=f"{i:05d}.jpg") for i in range(N)], annotations=[dict(image_id=i, segmentation=runs(box(i, 5*c))) for i in range(N)])))
    import_masks(rec, tmp_path/"in")
    assert (stored(rec/MASKS, 1)[4] == box(4, 5)).all()

masks = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1)).map(lambda a: np.random.default_rng(a[2]).random(a[:2]) < a[3])

@given(masks)
@settings(max_examples=150, deadline=None)
def test_rle_round_trip(m): assert (decode_rle(runs(m), m.shape[1], m.shape[0]) == m).all()

@given(masks, st.booleans())
@settings(max_examples=150, deadline=None)
def test_rle_against_pycocotools(m, big):
    oracle = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    if big: m = np.kron(m, np.ones((23, 9), bool))                                          # long runs: numbers of several groups
    said = oracle.encode(np.asfortranarray(m.astype(np.uint8)))
    assert (decode_rle(dict(size=said["size"], counts=said["counts"].decode()), m.shape[1], m.shape[0]) == m).all()

@given(st.one_of(st.text(max_size=60), st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=60), st.lists(st.one_of(st.integers(-2**70, 2**70), st.none(), st.floats(), st.booleans()), max_size=20)))
@settings(max_examples=300, deadline=None)
def test_hostile_rle(counts):
    try: m = decode_rle(dict(size=[7, 5], counts=counts), 5, 7)
    except ValueError: return
    assert m.shape == (7, 5) and m.dtype == bool

def test_a_changed_mask_is_noticed(tmp_path, monkeypatch):
    import gslrm_mouse.masks.make as M
    monkeypatch.setattr(M, "video_frames", lambda path: iter(np.zeros((2, H, W, 3), np.uint8)))
    says(lambda: write_mask_video(tmp_path/"m.mp4", [box(0), box(1)]), "the codec changed mask 0")

def test_without_opencv(rec, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    says(lambda: make_masks(rec), "pip install 'gslrm_mouse[masks]'", exc=ImportError)
    assert not (rec/MASKS).exists()

def test_real_size(recording, tmp_path):
    "Against the stored masks of the rendered recording, one camera."
    (tmp_path/VIDEOS).mkdir()
    (tmp_path/VIDEOS/"1.mp4").write_bytes((recording/VIDEOS/"1.mp4").read_bytes())
    make_masks(tmp_path, samples=20)
    scores = [iou(a, b) for a, b in zip(stored(tmp_path/MASKS, 1), stored(recording/MASKS, 1))]
    assert np.mean(scores) > .92 and min(scores) > .85
