"""What a disk may hold: every bad input ends in one sentence, never in cameras or images that were invented."""
import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from gslrm_mouse.calibration.formats import read_calibration, write_calibration
from gslrm_mouse.calibration.json_frames import facelift_bytes
from gslrm_mouse.calibration.mammal import mammal_to_bytes
from gslrm_mouse.cameras.pinhole import check_in_front
from gslrm_mouse.cameras.presets import facelift_rig, mouse_rig
from gslrm_mouse.video import decode_frame
from gslrm_mouse.views.recordings import open_recording, read_views
from gslrm_mouse.views.samples import read_sample, read_truth, write_sample
from gslrm_mouse.views.triangulation import triangulate
from gslrm_mouse.views.views import Views, check_views

DATA = Path(__file__).resolve().parents[2]/".."/"shared"/"data"
W, H, N, V = 64, 48, 8, 3


def write_video(path, frames, g="4", bf="1", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as f:
        s = f.add_stream("libx264", rate=100, options=dict(crf="12", g=g, bf=bf, **more))
        s.width, s.height, s.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for x in frames: f.mux(s.encode(av.VideoFrame.from_ndarray(x, format="rgb24")))
        f.mux(s.encode())


def mask(n=N, size=(H, W), full=True):
    x = np.zeros((n, *size, 3), np.uint8)
    x[:, 14:34, 20:44] = 255*full
    return x


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    "A tiny recording with nothing wrong; picture i has the grey value 20 i."
    path = tmp_path_factory.mktemp("data")/"rec"
    grey = np.repeat(np.arange(N, dtype=np.uint8)*20 + 20, H*W*3).reshape(N, H, W, 3)
    for v in range(V):
        write_video(path/"videos_undist"/f"{v}.mp4", grey)
        write_video(path/"simpleclick_undist"/f"{v}.mp4", mask())
    write_calibration(mouse_rig()[:V].resized(W, H), path/"new_cam.pkl")
    return path


@pytest.fixture
def rec(whole, tmp_path): return Path(shutil.copytree(whole, tmp_path/"rec"))


@pytest.fixture
def sample(tmp_path):
    cams = facelift_rig(32, n=4)
    alpha = torch.zeros(4, 32, 32)
    alpha[:, 8:24, 8:24] = 1
    return write_sample(Views(1 - alpha[..., None]*torch.tensor([.2, .5, .8]), alpha, cams), tmp_path/"sample")


def says(call, *parts, exc=ValueError):
    "The call fails with `exc` and one sentence which holds all `parts`."
    with pytest.raises(exc) as e: call()
    text = str(e.value)
    for part in parts: assert part in text, text
    assert type(e.value) in (ValueError, FileNotFoundError) or isinstance(e.value, exc)
    assert "\n" not in text and not re.search(r"[a-z]\. [A-Z]", text), text


def change_rig(rec, change):
    rig = pickle.loads((rec/"new_cam.pkl").read_bytes())
    rig = change(rig) or rig
    (rec/"new_cam.pkl").write_bytes(pickle.dumps(rig))


def change_json(sample, change):
    rig = json.loads((sample/"opencv_cameras.json").read_text())
    change(rig)
    (sample/"opencv_cameras.json").write_text(json.dumps(rig))


# ---- what is right stays right ----
def test_whole_recording(rec):
    assert open_recording(rec).n_frames == N
    for i in range(N):
        v = read_views(rec, i)
        assert len(v) == V and abs(v.images[:, 20:28, 28:36].mean().item() - (20*i + 20)/255) < .02
        assert v.images[v.alpha == 0].min() == 1


def test_whole_sample(sample): assert len(read_views(sample)) == 4


def test_numbers_are_sorted_as_numbers(rec, whole):
    for d in "videos_undist", "simpleclick_undist":
        for v in range(V, 11): shutil.copy(whole/d/"0.mp4", rec/d/f"{v}.mp4")
    write_calibration(mouse_rig()[torch.arange(11) % 6].resized(W, H), rec/"new_cam.pkl")
    assert read_views(rec, 0).names[-2:] == ("camera 9", "camera 10")


# ---- recordings ----
def test_nothing_there(tmp_path): says(lambda: read_views(tmp_path/"no"), "no", "looked for", exc=FileNotFoundError)


def test_unknown_folder(tmp_path):
    (tmp_path/"notes.txt").touch()
    says(lambda: read_views(tmp_path), "new_cam.pkl", "opencv_cameras.json", "notes.txt", exc=FileNotFoundError)


def test_missing_calibration(rec):
    (rec/"new_cam.pkl").unlink()
    says(lambda: read_views(rec), "new_cam.pkl", "videos_undist", exc=FileNotFoundError)


def test_missing_video(rec):
    (rec/"videos_undist/2.mp4").unlink()
    says(lambda: read_views(rec), "2.mp4", "0.mp4, 1.mp4", exc=FileNotFoundError)


def test_missing_mask(rec):
    (rec/"simpleclick_undist/1.mp4").unlink()
    says(lambda: read_views(rec), "simpleclick_undist", "1.mp4", "0.mp4, 2.mp4", exc=FileNotFoundError)


def test_missing_mask_folder(rec):
    shutil.rmtree(rec/"simpleclick_undist")
    says(lambda: read_views(rec), "simpleclick_undist", "new_cam.pkl", exc=FileNotFoundError)


def test_empty_mask(rec):
    write_video(rec/"simpleclick_undist/1.mp4", mask(full=False))
    says(lambda: read_views(rec, 3), "camera 1", "frame 3", "1.mp4", "empty")


def test_short_video(rec):
    write_video(rec/"videos_undist/1.mp4", mask(4))
    says(lambda: read_views(rec, 5), "1.mp4", "frame 5", "4 frames")
    assert open_recording(rec).n_frames == 4


def test_short_mask(rec):
    write_video(rec/"simpleclick_undist/0.mp4", mask(4))
    says(lambda: read_views(rec, 4), "simpleclick_undist", "frame 4", "4 frames")


@pytest.mark.parametrize("frame", [-1, N, 10**9])
def test_no_such_frame(rec, frame): says(lambda: read_views(rec, frame), f"frame {frame}", f"{N} frames")


def test_counts_differ(rec):
    change_rig(rec, lambda rig: rig[:2])
    says(lambda: read_views(rec), "3 videos", "2 cameras")


def test_sizes_differ(rec):
    write_video(rec/"simpleclick_undist/1.mp4", mask(size=(H, 80)))
    says(lambda: read_views(rec), "80", "64", "1.mp4")


def test_two_of_one_number(rec):
    shutil.copy(rec/"videos_undist/1.mp4", rec/"videos_undist/01.mp4")
    says(lambda: read_views(rec), "videos_undist", "01.mp4", "same number")


def test_mask_covers_all(rec):
    write_video(rec/"simpleclick_undist/1.mp4", np.full((N, H, W, 3), 255, np.uint8))
    says(lambda: read_views(rec), "camera 1", "covers the whole image")


def test_counts_in_memory(rec):
    v = read_views(rec)
    says(lambda: check_views(replace(v, cameras=v.cameras[:2])), "3 pictures", "2 cameras")
    says(lambda: check_views(replace(v, names=("a",))), "1 names")


def test_object_behind_a_camera(rec):
    v = read_views(rec)
    K, turn = v.cameras.K.clone(), torch.eye(4).double().repeat(V, 1, 1)
    K[:, 0, 2], K[:, 1, 2] = 32, 24 # the centroids lie on the axes, which meet at (54, 54, 59)
    turn[1, 0, 0], turn[1, 2, 2] = -1, -1 # camera 1 looks backwards
    cams = replace(v.cameras, K=K, w2c=turn @ v.cameras.w2c)
    says(lambda: triangulate(replace(v, cameras=cams)), "behind camera 1", "mm")
    says(lambda: check_in_front(cams, torch.tensor([54., 54, 59])), "behind camera 1")


@pytest.mark.parametrize("suffix", ["avi", "ts", "h264"])
def test_container_without_time_stamps(tmp_path, suffix):
    write_video(tmp_path/f"0.{suffix}", mask())
    says(lambda: decode_frame(tmp_path/f"0.{suffix}", 3), f"0.{suffix}", "remux")


def test_avi_in_disguise(rec, tmp_path):
    write_video(tmp_path/"0.avi", mask())
    shutil.copy(tmp_path/"0.avi", rec/"videos_undist/1.mp4")
    says(lambda: read_views(rec, 1), "1.mp4", "remux")

ENCODINGS = [dict(g="5", bf="3"), dict(g="9", bf="3", **{"x264-params": "open-gop=1:b-adapt=0"}), dict(g="250", bf="0")]


@pytest.mark.parametrize("options", ENCODINGS)
def test_sought_is_counted(tmp_path, options):
    blocks = np.random.default_rng(0).integers(0, 256, (30, 6, 8, 3))
    noise = np.kron(blocks, np.ones((1, 8, 8, 1), int)).astype(np.uint8)
    file = tmp_path/"0.mp4"
    write_video(file, noise, **options)
    with av.open(str(file)) as f: counted = [x.to_ndarray(format="rgb24") for x in f.decode(video=0)]
    assert len(counted) == 30
    for i, image in enumerate(counted): assert np.array_equal(decode_frame(file, i), image)


def test_no_video(rec):
    (rec/"videos_undist/0.mp4").write_bytes(b"\0"*300)
    says(lambda: read_views(rec), "0.mp4", "no readable video")


@pytest.mark.parametrize("share", [0., .3, .8])
def test_truncated_video(rec, share):
    f = rec/"videos_undist/0.mp4"
    data = f.read_bytes()
    f.write_bytes(data[:int(len(data)*share)])
    says(lambda: read_views(rec), "0.mp4")


# ---- calibrations ----
def test_mirrored(rec):
    change_rig(rec, lambda rig: rig[1].update(R=rig[1]["R"]*[[-1], [1], [1]]))
    says(lambda: read_views(rec), "camera 1", "det(R)", "mirrored")


@pytest.mark.parametrize("key", ["K", "R", "T"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan(rec, key, value):
    change_rig(rec, lambda rig: rig[2].update({key: rig[2][key] + value}))
    says(lambda: read_views(rec), "camera 2", "NaN")


def test_transposed(rec):
    change_rig(rec, lambda rig: rig[0].update(K=rig[0]["K"].T))
    says(lambda: read_views(rec), "camera 0", "transposed")


def test_wrong_shape(rec):
    change_rig(rec, lambda rig: rig[0].update(T=np.zeros(4)))
    says(lambda: read_views(rec), "camera 0", "(3,)", "(4,)")


def test_skew(rec):
    change_rig(rec, lambda rig: rig[1].update(K=rig[1]["K"] + [[0, -5.8, 0], [0, 0, 0], [0, 0, 0]]))
    r = open_recording(rec)
    assert r.rig.lens.K[:, 0, 1].tolist() == [0, -5.8, 0] and not r.rig.lens.distortion.any()
    assert not r.cameras.K[:, 0, 1].any() and len(r.frame(2)) == V


def test_undistorted_videos_with_distortion(rec):
    change_rig(rec, lambda rig: [d.update(dist=np.full(5, .1)) for d in rig] and None)
    says(lambda: read_views(rec), "videos_undist", "new_cam.pkl", "distortion")


def test_raw_videos_lose_their_lens(rec):
    change_rig(rec, lambda rig: [d.update(dist=np.array([-.2, .1, .01, .02, 0])) for d in rig] and None)
    (rec/"videos_undist").rename(rec/"videos")
    says(lambda: read_views(rec), "masks", "0.mp4", exc=FileNotFoundError) # the masks are of undistorted images
    (rec/"simpleclick_undist").rename(rec/"masks")
    assert open_recording(rec).rig.lens is not None and len(read_views(rec, 3)) == V


def test_two_rigs(rec):
    write_calibration(mouse_rig()[:V].resized(W, H), rec/"calibration.toml")
    says(lambda: read_views(rec), "new_cam.pkl", "calibration.toml", "2 are there")


def test_rig_of_another_tool(rec):
    before = open_recording(rec).cameras
    (rec/"new_cam.pkl").unlink()
    write_calibration(mouse_rig()[:V].resized(W, H), rec/"calibration.toml")
    r = open_recording(rec)
    assert r.rig.format == "Anipose"
    assert (r.cameras.w2c - before.w2c).abs().max() < 1e-9 and (r.cameras.K - before.K).abs().max() < 1e-9
    write_calibration(mouse_rig()[:V], rec/"calibration.toml")
    says(lambda: read_views(rec), "calibration.toml", "1152 × 1024", "64 × 48")


def test_cameras_by_number(rec):
    before = open_recording(rec).cameras
    change_rig(rec, lambda rig: {str(i): rig[i] for i in (2, 0, 1)})
    assert torch.equal(open_recording(rec).cameras.w2c, before.w2c)


def test_metres(rec):
    change_rig(rec, lambda rig: [d.update(T=d["T"]/1000) for d in rig] and None)
    says(lambda: read_views(rec), "metres", "new_cam.pkl")


def test_no_rig(rec):
    (rec/"new_cam.pkl").write_bytes(pickle.dumps(3))
    says(lambda: read_views(rec), "list or dict", "int")


def test_no_cameras(rec):
    (rec/"new_cam.pkl").write_bytes(pickle.dumps([]))
    says(lambda: read_views(rec), "no camera")


def test_size_needed(rec): says(lambda: read_calibration(rec/"new_cam.pkl"), "give width and height")


@pytest.mark.parametrize("cut", [0, 1, 2, 20, 300, -1])
def test_truncated_pickle(rec, cut):
    f = rec/"new_cam.pkl"
    f.write_bytes(f.read_bytes()[:cut])
    says(lambda: read_views(rec), "new_cam.pkl")


class Hostile:
    def __init__(self, call, *args): self.call, self.args = call, args
    def __reduce__(self): return self.call, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [os.system, eval, exec, getattr, np.load, np.fromfile])
def test_hostile_pickle(rec, protocol, call):
    trace = rec/"ran"
    arg = f"echo > {trace}" if call is os.system else f"open({str(trace)!r}, 'w')"
    (rec/"new_cam.pkl").write_bytes(pickle.dumps([{"K": Hostile(call, arg)}], protocol))
    says(lambda: read_views(rec), *([call.__name__, "was not run"] if protocol > 1 else ["new_cam.pkl"]))
    assert not trace.exists()


def nested_lists(depth=12): # 10^11 entries: short to write, long to walk through
    lists = [b"]q%c(" % i + b"h%c" % (i - 1)*10 + b"e" for i in range(1, depth)]
    return b"\x80\x03]q\x00K\x01a" + b"".join(lists) + b"."

CRAFTED = [
    b"\x80\x03r\xff\xff\xff\x7f.", b"\x80\x03Np99999999999999\n.", # the memo table asks for all memory
    b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"\x80\x02\x82\x01.", b"\x80\x03Pabc\n.", b"\x80\x03" + b"]"*5000 + b"a"*4999 + b".",
    nested_lists(),
    b"\x80\x02cnumpy\nndarray\n}X\x08\x00\x00\x00__call__K\x01sb.", # changes what it calls
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J\xff\xff\xff\x7f\x85"
    b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R\x89C\x00tb."]


@pytest.mark.parametrize("data", CRAFTED)
def test_crafted_pickle(tmp_path, data):
    (tmp_path/"c.pkl").write_bytes(data)
    says(lambda: read_calibration(tmp_path/"c.pkl", W, H), "c.pkl")


# ---- JSON and sample folders ----
WRONG_JSON = [
    "", "{", "[]", "{}", "null", "["*100000,
    '{"cameras": {"K": 1}}', '{"frames": 3}', '{"frames": []}', '{"frames": [3]}',
    '{"frames": [{"w": 3}]}', '{"frames": ' + "9"*5000 + "}"]


@pytest.mark.parametrize("text", WRONG_JSON)
def test_wrong_json(sample, text):
    (sample/"opencv_cameras.json").write_text(text)
    says(lambda: read_sample(sample), "opencv_cameras.json")
    says(lambda: read_calibration(sample/"opencv_cameras.json"), "opencv_cameras.json")
WRONG_NUMBERS = [
    ("fx", "wide"), ("fx", None), ("fx", 1e300), ("fy", -3), ("cx", float("nan")), ("w", 31), ("w", 32.5), ("w", True),
    ("h", 10**400), ("w2c", [[1, 0], [0, 1]]), ("w2c", 7), ("w2c", [[10**400]*4]*4)]


@pytest.mark.parametrize("key, value", WRONG_NUMBERS)
def test_wrong_number(sample, key, value):
    change_json(sample, lambda rig: rig["frames"][1].update({key: value}))
    says(lambda: read_sample(sample), "camera 1")


def test_mirrored_json(sample):
    def mirror(rig):
        first, *rows = rig["frames"][2]["w2c"]
        rig["frames"][2]["w2c"] = [[-x for x in first], *rows]
    change_json(sample, mirror)
    says(lambda: read_sample(sample), "camera 2", "mirrored")


def test_transposed_json(sample):
    change_json(sample, lambda rig: rig["frames"][0].update(w2c=np.array(rig["frames"][0]["w2c"]).T.tolist()))
    says(lambda: read_sample(sample), "camera 0", "transposed")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "images/../../secret.png", "..\\secret.png"])
def test_path_escape(sample, name):
    secret = sample.parent/"secret.png"
    shutil.copy(sample/"images/cam_000.png", secret)
    change_json(sample, lambda rig: rig["frames"][1].update(file_path=name))
    says(lambda: read_sample(sample), "camera 1", repr(name), "leads out")


def test_links_are_followed(sample, tmp_path):
    "Data often lie elsewhere: a link to an image, or to the whole folder, is what the user made."
    views = read_sample(sample)
    image = sample/"images/cam_001.png"
    image.rename(tmp_path/"elsewhere.png")
    image.symlink_to(tmp_path/"elsewhere.png")
    (tmp_path/"link").symlink_to(sample)
    assert torch.equal(read_sample(tmp_path/"link").images, views.images)


def test_names_of_other_systems(sample):
    views = read_sample(sample)
    for name in "images\\cam_001.png", "images/cam_001", "./images/cam_001.png":
        change_json(sample, lambda rig, name=name: rig["frames"][1].update(file_path=name))
        assert torch.equal(read_sample(sample).images, views.images)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_path_escape_of_nerfstudio(sample, name):
    views = read_sample(sample)
    rig = write_calibration(views.cameras, sample/"transforms.json")
    content = json.loads(rig.read_text())
    (sample/"opencv_cameras.json").unlink()
    for i, f in enumerate(content["frames"]): f["file_path"] = f"images/cam_{i:03d}.png"
    rig.write_text(json.dumps(content))
    again = read_views(sample)
    assert torch.equal(again.images, views.images) and (again.cameras.w2c - views.cameras.w2c).abs().max() < 1e-6
    shutil.copy(sample/"images/cam_000.png", sample.parent/"secret.png")
    content["frames"][1]["file_path"] = name
    rig.write_text(json.dumps(content))
    says(lambda: read_views(sample), "camera 1", name, "leads out")


@pytest.mark.parametrize("name", [3, None, "a\0b", ["x"]])
def test_odd_path(sample, name):
    change_json(sample, lambda rig: rig["frames"][1].update(file_path=name))
    says(lambda: read_sample(sample), "camera 1", "file_path")


def test_no_alpha(sample):
    f = sample/"images/cam_001.png"
    Image.fromarray((read_sample(sample).images[1]*255).round().byte().numpy()).save(f)
    says(lambda: read_sample(sample), "camera 1", "cam_001.png", "no alpha channel")
    assert read_sample(sample, white_threshold=.99).alpha.mean((1, 2)).tolist() == [.25]*4
    Image.new("RGBA", (32, 32), (9, 9, 9, 255)).save(f)
    says(lambda: read_sample(sample), "camera 1", "covers the whole image")
    Image.new("RGBA", (32, 32), (9, 9, 9, 0)).save(f)
    says(lambda: read_sample(sample), "camera 1", "empty")


def test_millimetres_in_json(sample):
    def far(rig):
        for f in rig["frames"]: f["w2c"] = [[*row[:3], row[3]*120] for row in f["w2c"][:3]] + [f["w2c"][3]]
    change_json(sample, far)
    assert read_sample(sample).cameras.unit == "mm"


def test_missing_picture(sample):
    (sample/"images/cam_002.png").unlink()
    says(lambda: read_sample(sample), "camera 2", "cam_002.png", "cam_001.png", exc=FileNotFoundError)


def test_truncated_picture(sample):
    f = sample/"images/cam_002.png"
    f.write_bytes(f.read_bytes()[:60])
    says(lambda: read_sample(sample), "cam_002.png", "no readable picture")


def test_missing_rig(sample):
    (sample/"opencv_cameras.json").unlink()
    says(lambda: read_sample(sample), "opencv_cameras.json", "images/", exc=FileNotFoundError)


def test_indices(sample): says(lambda: read_sample(sample, [0, 4]), "[0, 4]", "0 to 3")


def test_write_is_all_or_nothing(sample, tmp_path, monkeypatch):
    views = read_sample(sample)
    says(lambda: write_sample(views, sample), "new or empty")
    monkeypatch.setattr("gslrm_mouse.views.samples.facelift_frame", lambda *a, **k: 1/0)
    with pytest.raises(ZeroDivisionError): write_sample(views, tmp_path/"late")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sample"]


def test_units_are_not_mixed(sample, rec, tmp_path):
    says(lambda: write_sample(read_views(rec), tmp_path/"mm"), "'mm'")
    says(lambda: write_calibration(facelift_rig(), tmp_path/"a.pkl"), "Similarity")


# ---- noise ----
def flips(data, n, seed):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        b = bytearray(data)
        for _ in range(rng.integers(1, 4)): b[rng.integers(len(b))] = rng.integers(256)
        yield bytes(b)


@pytest.mark.parametrize("kind", ["pickle 2", "pickle 3", "pickle 5", "json"])
def test_random_bytes(tmp_path, kind):
    rig = mouse_rig().resized(W, H)
    f, seen = tmp_path/"x", {True: 0, False: 0}
    if kind == "json": data = facelift_bytes(facelift_rig(W, n=4))
    elif kind == "pickle 3": data = mammal_to_bytes(rig)
    else: data = pickle.dumps(pickle.loads(mammal_to_bytes(rig)), int(kind[-1]))
    for noisy in flips(data, 200, 0):
        f.write_bytes(noisy)
        try:
            cams = read_calibration(f, *(() if kind == "json" else (W, H)))
            ok = True
        except ValueError as e:
            ok = False
            assert str(f) in str(e)
        if ok:
            assert cams.K.isfinite().all() and cams.w2c.isfinite().all()
            assert torch.linalg.det(cams.R).sub(1).abs().max() < 2e-3
        seen[ok] += 1
    assert min(seen.values()) > 0, seen


def test_random_bytes_in_a_video(tmp_path):
    f, seen = tmp_path/"0.mp4", {True: 0, False: 0}
    write_video(f, mask())
    data = f.read_bytes()
    for noisy in flips(data, 200, 1):
        f.write_bytes(noisy)
        try: ok = decode_frame(f, 5).ndim == 3
        except ValueError as e:
            ok = False
            assert "0.mp4" in str(e)
        seen[ok] += 1
    assert min(seen.values()) > 0, seen


def test_random_bytes_in_a_picture(sample):
    f = sample/"images/cam_001.png"
    data = f.read_bytes()
    for noisy in flips(data, 200, 2):
        f.write_bytes(noisy)
        try: assert len(read_sample(sample, [1])) == 1
        except ValueError as e: assert "camera" in str(e)


# ---- stand-in data, where it is at hand ----
def at(name):
    if not (DATA/name).exists(): pytest.skip(f"no ../shared/data/{name} beside the project")
    return DATA/name


def test_standin_recording():
    path = at("mammal_standin")
    rec = open_recording(path)
    v = rec.frame(20)
    stated = json.loads((path/"truth/cameras.json").read_text())
    assert (rec.n_frames, len(v), v.cameras.unit, tuple(v.images.shape[1:3])) == (40, 6, "mm", (1024, 1152))
    assert stated["cameras"]
    assert (rec.cameras.K - mouse_rig().K).abs().max() < 1e-6
    assert (rec.cameras.centers - mouse_rig().centers).abs().max() < .1
    assert (v.alpha.mean((1, 2)) > .015).all() and (v.alpha.mean((1, 2)) < .06).all()
    t = triangulate(v)
    assert abs(t.residual_px - 18.31) < .05 # as NumPy computes it from the raw pickle
    assert (t.point - torch.tensor([71.49, 100.59, 12.35])).abs().max() < .02
    xyz = np.load(path/"truth/keypoints3d.npz")["keypoints_mm"][20].astype(float)
    uv = rec.cameras.project(torch.from_numpy(xyz)).long()
    inside = torch.stack([v.alpha[i][p[:, 1].clamp(0, 1023), p[:, 0].clamp(0, 1151)] for i, p in enumerate(uv)])
    assert inside.mean() > .97


def test_standin_truth():
    folder = at("mammal_standin/truth/heldout_views")
    views = read_truth(folder, 20)
    assert [tuple(v.images.shape) for v in views] == [(1, 1024, 1152, 3)]*2 + [(1, 512, 512, 3)]*4
    assert abs(views[5].cameras.K[0, 0, 0].item() - 548.993771650447) < 1e-9 and views[5].cameras.K[0, 0, 2] == 256
    says(lambda: read_truth(folder, 21), "frame 21", "0, 10, 20, 30", exc=FileNotFoundError)
    xyz = torch.from_numpy(np.load(folder.parent/"keypoints3d.npz")["keypoints_mm"][20]).double()
    for v in views:
        x, y = v.cameras.project(xyz)[0].long().T
        assert v.alpha[0, y, x].mean() > .9


def test_facelift_sample(tmp_path):
    v = read_views(at("facelift_sample/sample_000"))
    assert tuple(v.images.shape) == (8, 512, 512, 3) and v.cameras.unit == "model" and v.names[1] == "cam_004"
    assert (v.cameras.centers.norm(dim=-1) - 2.7).abs().max() < 1e-4
    assert abs(v.cameras.K[0, 0, 0] - 548.9937744140625) < 1e-9
    assert triangulate(v).residual_px < 40
    again = read_sample(write_sample(v[:2], tmp_path/"copy"))
    assert torch.equal(again.images, v.images[:2]) and torch.equal(again.cameras.w2c, v.cameras.w2c[:2])


def test_facelift_inference_rig():
    cams = read_calibration(at("facelift_sample/inference_rig.json"))
    assert len(cams) == 6 and (cams.width, cams.unit) == (512, "model")
