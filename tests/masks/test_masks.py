"Masks: bad input, killed runs, run lengths against pycocotools, folders as other tools write them."
import json
import re
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="opencv-python-headless (the extra `masks`) is not installed")
from hypothesis import given, settings, strategies as st

from gslrm_mouse.calibration.formats import write_calibration
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.masks.confidence import summarize_masks
from gslrm_mouse.masks.imported import decode_rle, read_png
from gslrm_mouse.masks.make import import_masks, make_masks, write_mask_video
from gslrm_mouse.video import video_frames
from gslrm_mouse.views.recordings import MASK_THRESHOLD, MASKS, VIDEOS, open_recording

W, H, N = 96, 64, 16
FRAMES = range(N)


def write_video(path, frames, rate=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as f:
        stream = f.add_stream("libx264", rate=rate, options=dict(crf="8"))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames: f.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        f.mux(stream.encode())


def box(frame, shift=0): # (H, W) bool
    mask = np.zeros((H, W), bool)
    mask[20 + shift:44 + shift, 4 + 4*frame:26 + 4*frame] = True
    return mask


def boxes(shift=0): return np.stack([box(i, shift) for i in FRAMES])


def no_shake(frame): return 0


def video(camera=0, n=N, shake=no_shake, still=False):
    "A dark, grainy box that moves over a patterned floor; the camera is shifted by `shake(frame)` pixels."
    rng = np.random.default_rng(camera)
    floor = np.kron(rng.integers(110, 190, (H//4, W//4, 1)), np.ones((4, 4, 1)))*[1, .97, .9]
    grain = rng.integers(-18, 18, (H, W, 1))
    frames = []
    for i in range(n):
        mask = box(0 if still else i, camera)[..., None]
        frames.append(np.roll(np.where(mask, [62, 48, 40] + grain, floor), shake(i), 1))
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def stored_masks(folder, camera=0):
    return np.stack([x.mean(-1) > MASK_THRESHOLD for x in video_frames(folder/f"{camera}.mp4")])


def names(folder): return sorted(path.name for path in folder.iterdir())


def iou(a, b): return (a & b).sum()/(a | b).sum()


@pytest.fixture
def rec(tmp_path):
    for camera in range(2): write_video(tmp_path/"rec"/VIDEOS/f"{camera}.mp4", video(camera))
    write_calibration(mouse_rig()[:2].resized(W, H), tmp_path/"rec"/"new_cam.pkl")
    return tmp_path/"rec"


def assert_refused(call, *fragments, exc=ValueError):
    with pytest.raises(exc) as e: call()
    message = str(e.value)
    for fragment in fragments: assert fragment in message, message
    assert "\n" not in message, message
    assert not re.search(r"[a-z]\. [A-Z]", message), message # one sentence


# ---- made from the recording ----

def test_made_masks_open_and_fit(rec):
    reports = make_masks(rec)
    for camera in range(2):
        masks = stored_masks(rec/MASKS, camera)
        assert masks.shape == (N, H, W)
        assert min(iou(a, b) for a, b in zip(masks, boxes(camera))) > .85
        # the same masks at other frames do not fit
        assert max(iou(a, b) for a, b in zip(np.roll(masks, 3, 0), boxes(camera))) < .85
    assert open_recording(rec).frame(5).alpha.sum() > 0
    assert [report.camera for report in reports] == [0, 1]
    assert names(rec/MASKS) == ["0.mp4", "1.mp4", "masks.json", "masks.png"]
    stored = json.loads((rec/MASKS/"masks.json").read_text())
    assert [camera["sentence"] for camera in stored] == [str(report) for report in reports]
    assert summarize_masks(reports).count("\n") >= 2


def test_stored_names_of_a_report(rec):
    report, _ = make_masks(rec)
    stored, _ = json.loads((rec/MASKS/"masks.json").read_text())
    assert list(stored) == [
        "camera", "sure", "sentence", "made", "agreement", "residual_px", "confidence", "doubts", "frames",
    ]
    assert stored["sure"] == report.trust
    assert {int(frame): reason for frame, reason in stored["doubts"].items()} == report.doubtful


def test_existing_masks_stay(rec):
    make_masks(rec)
    first = rec/MASKS/"0.mp4"
    before = first.stat().st_mtime_ns
    assert_refused(lambda: make_masks(rec), "only when overwriting", exc=FileExistsError)
    assert first.stat().st_mtime_ns == before
    make_masks(rec, overwrite=True)
    assert first.stat().st_mtime_ns > before
    (rec/MASKS/"thesis.tex").write_text("years of work")
    assert_refused(lambda: make_masks(rec, overwrite=True), "holds more than masks", "thesis.tex")
    assert (rec/MASKS/"thesis.tex").exists()


def test_bad_recordings(rec, tmp_path):
    assert_refused(lambda: make_masks(tmp_path/"nowhere"), "videos_undist", exc=FileNotFoundError)
    write_video(rec/VIDEOS/"1.mp4", video(1, n=1))
    assert_refused(lambda: make_masks(rec), "1.mp4", "it has 1 frames", "at least 8")
    write_video(rec/VIDEOS/"1.mp4", video(1, still=True))
    assert_refused(lambda: make_masks(rec), "nothing stands out in its 16 frames (0%")
    (rec/VIDEOS/"1.mp4").write_bytes(b"no video")
    assert_refused(lambda: make_masks(rec), "no readable video")
    assert names(rec) == ["new_cam.pkl", VIDEOS] # nothing is left behind


@pytest.mark.parametrize("options, fragment", [
    *[(dict(threshold=bad), "threshold should lie") for bad in (0, -3, 255, float("nan"))],
    (dict(samples=3), "at least 8 samples"),
])
def test_bad_options(rec, options, fragment):
    assert_refused(lambda: make_masks(rec, **options), fragment)
    assert names(rec) == ["new_cam.pkl", VIDEOS]


def test_damaged_in_the_middle(rec):
    path = rec/VIDEOS/"1.mp4"
    data = path.read_bytes()
    start = data.index(b"mdat")
    if start > data.index(b"moov"): damaged = data[:start + 4] + bytes(len(data) - start - 4)
    else: damaged = data[:start + 400] + bytes(600) + data[start + 1000:]
    path.write_bytes(damaged)
    assert_refused(lambda: make_masks(rec), "1.mp4")
    assert not (rec/MASKS).exists()


def drift(frame): return frame//3
def tremble(frame): return (0, 2)[frame % 2]
def knock(frame): return 4*(frame > 8)


@pytest.mark.parametrize("shake", [drift, tremble, knock])
def test_moving_camera_is_doubtful(rec, shake):
    write_video(rec/VIDEOS/"1.mp4", video(1, shake=shake))
    still, moving = make_masks(rec)
    assert moving.trust == "unsure"
    assert still.trust != "unsure"
    assert np.median(moving.confidence) < .8 < np.median(still.confidence)
    assert len(moving.doubtful) > N//4 > len(still.doubtful)
    summary = summarize_masks([still, moving])
    assert "camera 1: unsure" in summary
    assert "look at masks.png" in summary


def test_camera_that_never_rests(rec):
    write_video(rec/VIDEOS/"1.mp4", video(1, shake=lambda frame: 3*frame))
    assert_refused(lambda: make_masks(rec), "1.mp4", "is not at rest", "a camera that moves")


HANGS = 1800 # seconds after which a process is taken to hang; a loaded machine may need minutes

MAKE_MASKS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from gslrm_mouse.masks.make import make_masks
make_masks({!r})
"""


def start_and_wait_for_a_mask(rec):
    command = [sys.executable, "-c", MAKE_MASKS.format(str(rec))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + HANGS
    while not list(rec.glob(".*/0.mp4")) and process.poll() is None and time.monotonic() < end: time.sleep(.02)
    return process


def test_killed_midway(rec):
    write_video(rec/VIDEOS/"1.mp4", np.concatenate([video(1)]*60))
    process = start_and_wait_for_a_mask(rec)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGINT)
    process.wait(HANGS)
    assert names(rec) == ["new_cam.pkl", VIDEOS]

    # killed hard: a hidden folder stays until the next call, but no masks
    process = start_and_wait_for_a_mask(rec)
    process.kill()
    process.wait(HANGS)
    assert not (rec/MASKS).exists()
    assert any(re.fullmatch(rf"\.{MASKS}\.[0-9a-f]{{8}}\.part", name) for name in names(rec))
    write_video(rec/VIDEOS/"1.mp4", video(1))
    make_masks(rec)
    assert names(rec) == sorted([MASKS, "new_cam.pkl", VIDEOS])

    # killed between the two renames: the old masks are there again
    (rec/MASKS).rename(rec/f".{MASKS}.0123abcd.old")
    (rec/f".{MASKS}.0123abcd.part").mkdir()
    assert_refused(lambda: make_masks(rec), "only when overwriting", exc=FileExistsError)
    assert names(rec) == sorted([MASKS, "new_cam.pkl", VIDEOS])


# ---- imported ----

def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def as_palette(mask):
    image = Image.frombytes("P", (W, H), (mask*np.uint8(2)).tobytes())
    image.putpalette([0, 0, 0, 250, 0, 0, 7, 7, 7])
    return image


def as_alpha(mask):
    colour = np.full((H, W, 3), 200, np.uint8)
    return Image.fromarray(np.dstack([colour, mask.astype(np.uint8)*255]))


def as_opaque(mask):
    white = np.repeat(mask[..., None].astype(np.uint8)*255, 3, -1)
    return Image.fromarray(np.dstack([white, np.full((H, W), 255, np.uint8)]))


WRITERS = {
    "white on black": lambda mask: Image.fromarray(mask.astype(np.uint8)*255),
    "one bit": Image.fromarray,
    "alpha": as_alpha,
    "opaque alpha": as_opaque,
    "palette": as_palette,
    "labels": lambda mask: Image.fromarray(mask.astype(np.uint8)*4),
    "coloured": lambda mask: Image.fromarray(mask[..., None]*np.array([0, 128, 0], np.uint8)),
    "16 bit labels": lambda mask: Image.fromarray(mask.astype(np.uint16)*3),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_png_kinds(tmp_path, kind):
    path = tmp_path/"m.png"
    save(path, WRITERS[kind](box(3)))
    assert (read_png(path, W, H) == box(3)).all()
    assert_refused(lambda: read_png(path, H, W), "it is 96 × 64 px")


@pytest.mark.parametrize("name", [
    "{c}/{i:05d}.png", "cam_{c:03d}/frame_{i:06d}.png", "frame_{i:06d}_view_{c}.png", "camera {c}/masks/{i}.PNG",
    "{c}/{j:05d}.png",
])
def test_png_folders(rec, tmp_path, name):
    for c in range(2):
        for i in FRAMES: save(tmp_path/"in"/name.format(c=c, i=i, j=i + 1), as_palette(box(i, 5*c)))
    reports = import_masks(rec, tmp_path/"in")
    for c in range(2): assert (stored_masks(rec/MASKS, c) == boxes(5*c)).all()
    assert open_recording(rec).n_frames == N
    assert not reports[0].made


@pytest.fixture
def folder(tmp_path): # of PNG masks that fit `rec`
    for c in range(2):
        for i in FRAMES: save(tmp_path/"in"/f"{c}/{i:05d}.png", as_palette(box(i)))
    return tmp_path/"in"


def test_folders_without_masks(rec, tmp_path):
    empty = tmp_path/"empty"
    assert_refused(lambda: import_masks(rec, empty), "was looked for", exc=FileNotFoundError)
    empty.mkdir()
    assert_refused(lambda: import_masks(rec, empty), "were looked for", exc=FileNotFoundError)


def test_wrong_numbers_of_frames(rec, folder):
    (folder/"1/00007.png").rename(folder/"1/00099.png")
    assert_refused(lambda: import_masks(rec, folder), "camera 1", "frame 7", "1 of 16")
    (folder/"1/00099.png").rename(folder/"1/7.png")
    save(folder/"1/00016.png", as_palette(box(1)))
    assert_refused(lambda: import_masks(rec, folder), "17 masks, but the video has 16")
    (folder/"1/00016.png").rename(folder/"1/007.png")
    assert_refused(lambda: import_masks(rec, folder), "second mask for frame 7")
    assert not (rec/MASKS).exists()


def test_images_that_are_no_masks(rec, folder):
    path = folder/"1/00003.png"
    save(path, Image.fromarray(np.random.default_rng(0).integers(0, 100, (H, W), dtype=np.uint8)))
    assert_refused(lambda: import_masks(rec, folder), "00003.png", "neither white on black")
    path.write_bytes(b"\x89PNG")
    assert_refused(lambda: import_masks(rec, folder), "00003.png is no readable picture")
    assert not (rec/MASKS).exists()


def test_wrong_cameras(rec, folder):
    save(folder/"2/0.png", as_palette(box(0)))
    assert_refused(lambda: import_masks(rec, folder), "cameras 0, 1 were looked for, found 0, 1, 2")
    assert not (rec/MASKS).exists()


def run_lengths(mask):
    "Uncompressed run lengths, the obvious way."
    counts, last = [0], False
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return dict(size=list(mask.shape), counts=counts)


def coco_data():
    images, annotations = [], []
    for camera in range(2):
        for i in FRAMES:
            id = 100*camera + i
            images.append(dict(id=id, file_name=f"cam_{camera}/{i}.jpg"))
            annotations.append(dict(image_id=id, segmentation=run_lengths(box(i, 5*camera))))
    return dict(images=images, annotations=annotations)


def test_coco(rec, tmp_path):
    file, data = tmp_path/"masks.json", coco_data()
    data["annotations"].pop(3)
    file.write_text(json.dumps(data))
    first, _ = make_masks(rec, source=file)
    assert (stored_masks(rec/MASKS, 1) == boxes(5)).all()
    assert not stored_masks(rec/MASKS, 0)[3].any()
    assert first.doubtful[3] == "empty"
    assert first.confidence[3] == 0


def without_a_frame(data):
    data["images"].pop(2)
    data["annotations"].pop(2)


def with_segmentation(**changes):
    def change(data): data["annotations"][5]["segmentation"].update(changes)
    return change


@pytest.mark.parametrize("change, fragment", [
    (lambda data: data.pop("images"), "`images` and `annotations`"),
    (lambda data: data["images"].pop(2), "belongs to no image"),
    (without_a_frame, "frame 2"),
    (lambda data: data["images"][1].update(id=0), "two images have the id"),
    (lambda data: data["images"][1].update(id=[1]), "should have an id"),
    (lambda data: data["annotations"][5].update(image_id={}), "belongs to no image"),
    (lambda data: data["annotations"][5].update(segmentation=[[1, 2, 3, 4, 5, 6]]), "polygons"),
    (with_segmentation(size=[W, H]), "the video is [64, 96]"),
    (with_segmentation(counts=[10**12, -10**12, H*W]), "negative"),
    (with_segmentation(counts=[H*W - 1]), "fill 6143"),
    (with_segmentation(counts="o"*99), "does not belong"),
])
def test_refused_coco(rec, tmp_path, change, fragment):
    file, data = tmp_path/"masks.json", coco_data()
    change(data)
    file.write_text(json.dumps(data))
    assert_refused(lambda: import_masks(rec, file, tmp_path/"out"), fragment)
    assert not (tmp_path/"out").exists()


def test_files_that_are_not_coco(rec, tmp_path):
    file, out = tmp_path/"masks.json", tmp_path/"out"
    file.write_text("["*100000)
    assert_refused(lambda: import_masks(rec, file, out), "no readable JSON")
    file = file.rename(tmp_path/"masks.xml")
    assert_refused(lambda: import_masks(rec, file, out), "ends in '.xml'", exc=FileNotFoundError)


def test_one_json_per_camera(rec, tmp_path):
    (tmp_path/"in").mkdir()
    images = [dict(id=i, file_name=f"{i:05d}.jpg") for i in FRAMES]
    for c in range(2):
        annotations = [dict(image_id=i, segmentation=run_lengths(box(i, 5*c))) for i in FRAMES]
        (tmp_path/"in"/f"cam_{c}.json").write_text(json.dumps(dict(images=images, annotations=annotations)))
    import_masks(rec, tmp_path/"in")
    assert (stored_masks(rec/MASKS, 1)[4] == box(4, 5)).all()


@st.composite
def random_masks(draw):
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng, share = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.floats(0, 1))
    return rng.random(shape) < share


@given(random_masks())
@settings(max_examples=150, deadline=None)
def test_rle_round_trip(mask): assert (decode_rle(run_lengths(mask), mask.shape[1], mask.shape[0]) == mask).all()


@given(random_masks(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_rle_against_pycocotools(mask, has_long_runs):
    oracle = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    # numbers of several groups
    if has_long_runs: mask = np.kron(mask, np.ones((23, 9), bool))
    encoded = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    rle = dict(size=encoded["size"], counts=encoded["counts"].decode())
    assert (decode_rle(rle, mask.shape[1], mask.shape[0]) == mask).all()


VALUES = st.one_of(st.integers(-2**70, 2**70), st.none(), st.floats(), st.booleans())
COUNTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=60),
    st.lists(VALUES, max_size=20))


@given(COUNTS)
@settings(max_examples=300, deadline=None)
def test_hostile_rle(counts):
    try: mask = decode_rle(dict(size=[7, 5], counts=counts), 5, 7)
    except ValueError: return
    assert mask.shape == (7, 5)
    assert mask.dtype == bool


def test_a_changed_mask_is_noticed(tmp_path, monkeypatch):
    import gslrm_mouse.masks.make as module
    monkeypatch.setattr(module, "video_frames", lambda path: iter(np.zeros((2, H, W, 3), np.uint8)))
    assert_refused(lambda: write_mask_video(tmp_path/"m.mp4", [box(0), box(1)]), "the codec changed mask 0")


def test_without_opencv(rec, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert_refused(lambda: make_masks(rec), "pip install 'gslrm_mouse[masks]'", exc=ImportError)
    assert not (rec/MASKS).exists()


@pytest.mark.slow
def test_real_size(recording, tmp_path):
    "Against the stored masks of the rendered recording, one camera."
    (tmp_path/VIDEOS).mkdir()
    (tmp_path/VIDEOS/"1.mp4").write_bytes((recording/VIDEOS/"1.mp4").read_bytes())
    make_masks(tmp_path, samples=20)
    pairs = zip(stored_masks(tmp_path/MASKS, 1), stored_masks(recording/MASKS, 1))
    scores = [iou(a, b) for a, b in pairs]
    assert np.mean(scores) > .92
    assert min(scores) > .85
