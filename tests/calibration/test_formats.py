"Calibration files of other tools: a written rig is read back; a damaged or hostile file gives a rig or one sentence."
import codecs
import importlib.util
import json
import pickle
import shutil
import struct
import subprocess
import sys
import time
import tomllib
import tracemalloc
import types
import zlib
from dataclasses import replace
from itertools import pairwise

import cv2
import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from gslrm_mouse.calibration import matlab_hdf5
from gslrm_mouse.calibration.formats import FORMATS, find_rigs, read_calibration, write_calibration
from gslrm_mouse.calibration.rig import Rig, SizeError, looks_transposed
from gslrm_mouse.cameras.lens import Lens
from gslrm_mouse.cameras.pinhole import CameraError, look_at
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.cameras.rotations import matrix_to_quat, matrix_to_rotvec, quat_to_matrix, rotvec_to_matrix

W, H = 640, 480
FILES = {
    "MAMMAL": "new_cam.pkl", "FaceLift": "opencv_cameras.json", "nerfstudio": "transforms.json", "Anipose": "c.toml",
    "Caliscope": "camera_array.toml", "Pose2Sim": "Calib.toml", "DANNCE": "c.mat", "Pose Splatter": "c.h5",
    "JARVIS": "jarvis", "Kalibr": "camchain.yaml", "OpenCV": "c.yml", "OpenCV XML": "c.xml", "OpenCV JSON": "c.json",
    "EasyMocap": "easymocap", "3DGS": "cameras.json", "COLMAP": "text", "COLMAP binary": "bin"}
WRITTEN = [name for name, f in FORMATS.items() if f.write]
FISHEYE = { # hold a fisheye lens
    "nerfstudio", "Anipose", "Caliscope", "Kalibr", "OpenCV", "OpenCV XML", "OpenCV JSON", "COLMAP", "COLMAP binary"}
SKEW = {"MAMMAL", "DANNCE", "Pose Splatter"} # hold skew
NO_LENS = {"FaceLift", "3DGS"} # hold cameras in model units and no lens
NO_NAMES = {"MAMMAL", "FaceLift", "Pose Splatter", "Caliscope", "Kalibr"} # hold no names, or numbers only
SORTED = {"JARVIS", "Caliscope"} # are read in the order of the names' numbers
COEFFICIENTS = {"COLMAP": 8, "COLMAP binary": 8, "Pose2Sim": 4, "Kalibr": 4} # as many as the format holds; else 5
CHILD_PROCESS = {"DANNCE", "Pose Splatter"} # slow to read
OTHERS = [name for name in WRITTEN if name not in CHILD_PROCESS]
WITH_TMP_PATH = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_rig(seed, n=3, kind="opencv", coefficients=5, skew=False):
    "An asymmetric rig in millimetres, whose axes pass near one aim."
    rng = np.random.default_rng(seed)
    eye = torch.from_numpy(rng.normal(size=(n, 3))*[1, 1, .4])
    distance = torch.from_numpy(rng.uniform(250, 420, (n, 1)))
    eye = eye/eye.norm(dim=1, keepdim=True)*distance + torch.tensor([50., 60, 70])
    w2c = look_at(eye, torch.from_numpy(rng.uniform(20, 80, (n, 3))))
    fx, fy, cx, cy = torch.from_numpy(rng.uniform([600, 610, 250, 180], [900, 930, 390, 300], (n, 4)).T)
    K = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = fx, fy, cx, cy
    scale = [.1, .05, .002, .003, .01, .02, .01, .003][:coefficients]
    distortion = torch.from_numpy(rng.normal(size=(n, coefficients))*scale)
    stored = K.clone()
    if skew: stored[:, 0, 1] = torch.from_numpy(rng.normal(size=n)*4)
    names = tuple(f"view_{i}" for i in rng.permutation(n))
    return Rig(K, w2c, W, H, "mm", lens=Lens(stored, distortion, W, H, kind), names=names)


def new_path(tmp_path, name):
    "A path for a file of a format, where nothing is yet."
    folder = tmp_path/name.replace(" ", "_")
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder/FILES[name], ignore_errors=True)
    return folder/FILES[name]


def opencv_K(lens, i):
    "K with the first pixel centre at 0."
    K = lens.K[i].numpy().copy()
    K[:2, 2] -= .5
    return K


def padded(distortion, n=14): return torch.nn.functional.pad(distortion, (0, n - distortion.shape[-1]))
def largest_difference(a, b): return (a - b).abs().max()


def assert_same(rig, expected, lens=True):
    size_and_unit = len(expected), expected.width, expected.height, expected.unit
    assert (len(rig), rig.width, rig.height, rig.unit) == size_and_unit
    assert largest_difference(rig.K, expected.K) < 1e-9
    assert largest_difference(rig.w2c, expected.w2c) < 1e-9
    if not lens:
        assert rig.lens is None
        return
    assert rig.lens.model == expected.lens.model
    assert largest_difference(rig.lens.K, expected.lens.K) < 1e-9
    assert largest_difference(padded(rig.lens.distortion), padded(expected.lens.distortion)) < 1e-9


def assert_refused(call, *fragments, exc=ValueError):
    "The call fails with `exc` and one sentence which holds all fragments."
    with pytest.raises(exc) as e: call()
    message = str(e.value)
    assert type(e.value) in (ValueError, SizeError, FileNotFoundError), repr(e.value)
    for fragment in fragments: assert fragment in message, message
    assert "\n" not in message and len(message) < 1500, message


# ---- written and read back ----
def storable_rig(name, seed, n, kind, skew):
    "A random rig, with the lens that the format can hold or without one."
    if kind == "fisheye" and name not in FISHEYE or name in NO_LENS: kind = "none"
    coefficients = 4 if kind == "fisheye" else COEFFICIENTS.get(name, 5)
    model = "fisheye" if kind == "fisheye" else "opencv"
    rig = random_rig(seed, n, model, coefficients, skew and name in SKEW)
    if name in NO_LENS: rig = in_model_units(rig)
    if name == "3DGS": rig = centred(rig)
    return rig, kind != "none"


def in_model_units(rig):
    w2c = rig.w2c.clone()
    w2c[:, :3, 3] *= .0085
    return replace(rig, w2c=w2c, unit="model")


def centred(rig):
    "The principal points in the middle of the images, the focal lengths still different."
    K = rig.K.clone()
    K[:, 0, 2], K[:, 1, 2] = W/2, H/2
    return replace(rig, K=K)


def sorted_by_name(rig):
    return rig[sorted(range(len(rig)), key=lambda i: int(rig.names[i].removeprefix("view_")))]


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=12, **WITH_TMP_PATH)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), kind=st.sampled_from(["none", "opencv", "fisheye"]),
       skew=st.booleans())
def test_round_trip(tmp_path, name, seed, n, kind, skew):
    rig, has_lens = storable_rig(name, seed, n, kind, skew)
    source = rig if has_lens else rig.cameras
    stated = None if FORMATS[name].world == "m" else source.unit # metres are what the format means
    back = read_calibration(write_calibration(source, new_path(tmp_path, name), name), W, H, stated)
    if has_lens and name in SORTED: source = rig = sorted_by_name(rig)
    assert_same(back, source, has_lens)
    if has_lens and name not in NO_NAMES: assert back.names == rig.names
    assert back.format == name.removesuffix(" binary").removesuffix(" XML")
    assert back.reason


@pytest.mark.parametrize("name", sorted(CHILD_PROCESS))
@pytest.mark.parametrize("skew", [False, True])
def test_round_trip_through_a_child_process(tmp_path, name, skew):
    rig = random_rig(5, 7, skew=skew)
    path = write_calibration(rig, new_path(tmp_path, name), name)
    assert_same(read_calibration(path, W, H, "mm"), rig)
    path = write_calibration(rig.cameras, new_path(tmp_path, name), name)
    assert_same(read_calibration(path, W, H, "mm"), rig, lens=False)


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in ("MAMMAL", "COLMAP binary")])
def test_text_from_windows(tmp_path, name):
    "A byte-order mark and the line ends of Windows change nothing."
    rig, has_lens = storable_rig(name, 3, 3, "opencv", False)
    source = rig if has_lens else rig.cameras
    path = write_calibration(source, new_path(tmp_path, name), name)
    files = list(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes().replace(b"\n", b"\r\n"))
    if has_lens and name in SORTED:
        source = sorted_by_name(rig)
    places = [path] if path.is_dir() else [path, path.parent]
    for place in places:
        stated = None if FORMATS[name].world == "m" else source.unit
        assert_same(read_calibration(place, W, H, stated), source, has_lens)


def test_comments_in_a_chain_of_cameras(tmp_path):
    rig, _ = storable_rig("Kalibr", 3, 2, "opencv", False)
    path = write_calibration(rig, new_path(tmp_path, "Kalibr"), "Kalibr")
    path.write_text(path.read_text().replace("cam0:", "cam0: # left").replace("cam1:", "cam1:\t# right"))
    assert_same(read_calibration(path), rig)


def test_formats_agree(tmp_path):
    "One rig written in all formats projects points to the same pixels."
    rig = random_rig(1, 4)
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 3))*20 + [50, 50, 50])
    names = [name for name in WRITTEN if name not in NO_LENS]
    assert len(names) == 15
    for name in names:
        stated = None if FORMATS[name].world == "m" else "mm"
        back = read_calibration(write_calibration(rig.cameras, new_path(tmp_path, name), name), W, H, stated)
        assert largest_difference(back.project(points), rig.project(points)) < 1e-6


@pytest.mark.parametrize("name, fragment", [
    ("FaceLift", "cannot hold a lens"), ("MAMMAL", "fisheye"), ("DANNCE", "no other lens"),
    ("Pose Splatter", "fisheye"), ("3DGS", "cannot hold a lens"), ("JARVIS", "no other lens"),
    ("EasyMocap", "no other lens"), ("Pose2Sim", "no other lens"),
])
def test_lens_is_never_dropped(tmp_path, name, fragment):
    rig = replace(random_rig(2, kind="fisheye", coefficients=4), unit=FORMATS[name].unit)
    path = new_path(tmp_path, name)
    assert_refused(lambda: write_calibration(rig, path, name), fragment)
    assert not any(path.parent.iterdir())


@pytest.mark.parametrize("name", sorted({*WRITTEN} - SKEW - NO_LENS))
def test_skew_is_never_dropped(tmp_path, name):
    assert_refused(lambda: write_calibration(random_rig(3, skew=True), new_path(tmp_path, name), name), "skew")


@pytest.mark.parametrize("name", ["nerfstudio", "DANNCE", "COLMAP", "Pose2Sim", "JARVIS", "EasyMocap", "Kalibr"])
def test_coefficients_are_never_dropped(tmp_path, name):
    rig = random_rig(3)
    distortion = padded(rig.lens.distortion)
    distortion[:, 9] = .01
    rig = replace(rig, lens=replace(rig.lens, distortion=distortion))
    assert_refused(lambda: write_calibration(rig, new_path(tmp_path, name), name), "undistort the images")


def test_mixed_lenses(tmp_path):
    path = write_calibration(random_rig(1), tmp_path/"c.toml")
    path.write_text(path.read_text().replace("[cam_1]", "[cam_1]\nfisheye = true"))
    assert_refused(lambda: read_calibration(path), "one kind", "c.toml")


# ---- compared with OpenCV ----
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["opencv", "fisheye"]), n=st.sampled_from([4, 5, 8]))
def test_lens_by_opencv(seed, kind, n):
    lens = random_rig(seed, 1, kind, 4 if kind == "fisheye" else n).lens
    K, distortion = opencv_K(lens, 0), lens.distortion[0].numpy()
    uv, _ = lens.distortion_map(0, lens.K[0], W, H)
    init_map = cv2.initUndistortRectifyMap if kind == "opencv" else cv2.fisheye.initUndistortRectifyMap
    mapx, mapy = init_map(K, distortion, np.eye(3), K, (W, H), cv2.CV_32FC1)
    assert np.abs(uv.numpy() - .5 - np.stack([mapx, mapy], -1)).max() < 1e-4

    pixels = np.array([[[100., 120]], [[400, 300]], [[320, 90]]]) # OpenCV's own inverse leads back to them
    if kind == "opencv": ideal = cv2.undistortPoints(pixels, K, distortion, None, None, K, (3, 200, 1e-12))
    else: ideal = cv2.fisheye.undistortPoints(pixels, K, distortion, None, K)
    rays = np.linalg.solve(K, np.concatenate([ideal[:, 0], np.ones((3, 1))], 1).T)[:2].T
    projected = lens.project(torch.from_numpy(rays[None]))[0].numpy()
    assert np.abs(projected - .5 - pixels[:, 0]).max() < 1e-4


def test_half_a_pixel_would_show():
    "The comparison with OpenCV fails where the first pixel is in the wrong place."
    lens = random_rig(0, 1).lens
    K = lens.K[0].numpy()
    mapx, _ = cv2.initUndistortRectifyMap(K, lens.distortion[0].numpy(), np.eye(3), K, (W, H), cv2.CV_32FC1)
    uv, _ = lens.distortion_map(0, lens.K[0], W, H)
    assert np.abs(uv[..., 0].numpy() - .5 - mapx).max() > 1e-3


def test_images_by_opencv():
    rig = random_rig(4, 1)
    y, x = np.mgrid[:H, :W]
    pattern = (.5 + .5*np.sin(x/9)*np.sin(y/7))[..., None].astype(np.float32)
    image = torch.from_numpy(pattern).expand(-1, -1, 3).contiguous()
    undistorted = rig.undistort(image[None])[0].numpy()
    by_opencv = cv2.undistort(image.numpy(), opencv_K(rig.lens, 0), rig.lens.distortion[0].numpy())
    uv, inside = rig.lens.distortion_map(0, rig.K[0], W, H)
    is_far_from_border = (uv > 1).all(-1) & (uv[..., 0] < W - 1) & (uv[..., 1] < H - 1) # OpenCV blends it with black
    compared = (inside & is_far_from_border).numpy()
    assert compared.mean() > .8
    assert np.abs(undistorted - by_opencv)[compared].max() < .02
    assert np.abs(image.numpy() - by_opencv)[compared].max() > .2


@settings(max_examples=100, deadline=None)
@given(axis=st.tuples(*[st.floats(-1, 1)]*3).filter(lambda a: sum(x*x for x in a) > .01), angle=st.floats(0, np.pi))
def test_rotations(axis, angle):
    rotvec = np.array(axis)/np.linalg.norm(axis)*angle
    R = cv2.Rodrigues(rotvec)[0]
    assert np.abs(rotvec_to_matrix(rotvec) - R).max() < 1e-12
    assert np.abs(rotvec_to_matrix(matrix_to_rotvec(R)) - R).max() < 1e-12
    assert np.abs(quat_to_matrix(matrix_to_quat(torch.from_numpy(R))).numpy() - R).max() < 1e-12


def test_transposed_rotations():
    cams = mouse_rig()
    w2c = cams.w2c.clone()
    w2c[:, :3, :3] = cams.R.mT
    assert "transposed" in looks_transposed(replace(cams, w2c=w2c))
    assert looks_transposed(cams) is None


# ---- damaged files ----
def damaged(data, n, seed):
    "Copies with bits flipped, bytes overwritten, pieces removed or repeated, or the end cut off."
    rng = np.random.default_rng(seed)
    counts = [0, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, 10**6]
    for i in range(n):
        copy = bytearray(data)
        at, size = rng.integers(len(copy)), int(rng.integers(1, 40))
        if i % 5 == 0: copy[at] ^= 1 << rng.integers(8)
        elif i % 5 == 1: copy[at:at + 8] = struct.pack("<Q", counts[rng.integers(6)])
        elif i % 5 == 2: del copy[at:at + size]
        elif i % 5 == 3: copy[at:at] = copy[at:at + size]*int(rng.integers(1, 30))
        else: copy = copy[:at]
        yield bytes(copy)


def is_rig(path, *size):
    "Whether the file gives a valid rig; otherwise it has to give one sentence that names the file."
    try: rig = read_calibration(path, *size)
    except (ValueError, FileNotFoundError) as e:
        assert type(e) in (ValueError, CameraError, FileNotFoundError), repr(e)
        assert "\n" not in str(e) and path.name in str(e), repr(e)
        return False
    assert rig.K.isfinite().all() and rig.w2c.isfinite().all()
    assert (torch.linalg.det(rig.R) - 1).abs().max() < 2e-3
    assert rig.lens is None or rig.lens.distortion.isfinite().all()
    return True


@pytest.mark.parametrize("name", OTHERS)
def test_damaged(tmp_path, name):
    rig = random_rig(7)
    if name in NO_LENS: rig = centred(in_model_units(rig.cameras))
    if name in ("Pose2Sim", "Kalibr"): rig = replace(rig, lens=replace(rig.lens, distortion=rig.lens.distortion[:, :4]))
    path = write_calibration(rig, new_path(tmp_path, name), name)
    files = [p for p in path.iterdir() if p.stat().st_size > 10] if path.is_dir() else [path]
    counts = {True: 0, False: 0}
    start = time.perf_counter()
    for file in files:
        whole = file.read_bytes()
        for data in damaged(whole, 300//len(files), 3):
            file.write_bytes(data)
            counts[is_rig(path, W, H)] += 1
        file.write_bytes(whole)
    assert min(counts.values()) > 0, counts
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize("name", sorted(CHILD_PROCESS))
def test_damaged_files_of_a_child_process(tmp_path, name):
    path = write_calibration(random_rig(7), new_path(tmp_path, name), name)
    n_refused = 0
    for data in damaged(path.read_bytes(), 25, 4):
        path.write_bytes(data)
        n_refused += not is_rig(path, W, H)
    assert n_refused > 0


STARTS = [
    b"", b"{", b'{"frames": [', b'{"w2c": 1, "frames": ', b'{"transform_matrix": 1, "frames": [', b"\x80\x04",
    b"%YAML:1.0\n---\nK: [", b"<?xml version='1.0'?><opencv_storage><K>",
    b"[cam_0]\nmatrix = 1\nrotation = 2\ntranslation = 3\n"]


@settings(max_examples=60, **WITH_TMP_PATH)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=200))
def test_random_files(tmp_path, start, rest):
    (tmp_path/"x").write_bytes(start + rest)
    is_rig(tmp_path/"x", W, H)


def toml_text(tables):
    lines = [[f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
             for name, table in tables.items()]
    return "\n".join("\n".join(table) for table in lines)


def yaml_content(rig):
    cameras = [dict(K=rig.lens.K[i].tolist(), R=rig.R[i].tolist(), T=rig.t[i].tolist()) for i in range(len(rig))]
    return dict(image_width=W, image_height=H, cameras=cameras)


def file_content(kind, rig, path):
    "What a file of the kind holds: the whole, and its first camera."
    if kind == "OpenCV":
        content = yaml_content(rig)
        return content, content["cameras"][0]
    data = write_calibration(rig, path, kind).read_bytes()
    if kind == "MAMMAL":
        content = pickle.loads(data)
        return content, content[0]
    if kind == "Anipose":
        content = tomllib.loads(data.decode())
        return content, content["cam_0"]
    content = json.loads(data)
    return content, content["frames"][0]


def to_bytes(kind, content):
    if kind == "MAMMAL": return pickle.dumps(content)
    if kind == "OpenCV": return ("%YAML:1.0\n---\n" + yaml.safe_dump(content)).encode()
    text = toml_text(content) if kind == "Anipose" else json.dumps(content)
    return text.encode()


any_value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=8)


@settings(max_examples=150, **WITH_TMP_PATH)
@given(data=st.data(), kind=st.sampled_from(["FaceLift", "nerfstudio", "Anipose", "OpenCV", "MAMMAL"]))
def test_wrong_values(tmp_path, data, kind):
    "One value of a valid file is replaced by any value."
    rig = random_rig(7)
    if kind == "FaceLift": rig = replace(rig.cameras, unit="model")
    path = new_path(tmp_path, kind)
    content, camera = file_content(kind, rig, path)
    value = data.draw(any_value)
    top_keys = [] if kind in ("MAMMAL", "Anipose") else list(content)
    key = data.draw(st.sampled_from([*top_keys, *camera]))
    changed = camera if key in camera else content
    changed[key] = value
    try: path.write_bytes(to_bytes(kind, content))
    except UnicodeEncodeError: return
    is_rig(path, W, H)


@pytest.mark.parametrize("key", ["fisheye_model", "distortion_model"])
def test_a_matrix_where_a_flag_belongs(tmp_path, key):
    path = write_calibration(random_rig(7).cameras, tmp_path/"a.yml")
    entry = f"{key}: !!opencv-matrix {{rows: 1, cols: 2, data: [0., 0.]}}"
    path.write_text(path.read_text().replace("name: ", f"{entry}\n      name: "))
    assert read_calibration(path, unit="mm").lens is None


# ---- hostile files ----
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
for last, this in pairwise("abcdefghij"): BOMB += f"{this}: &{this} [{','.join(['*' + last]*10)}]\n"
ENTITIES = '<!ENTITY a "aaaaaaaaaa">'
for last, this in pairwise("abcdefghij"): ENTITIES += f'<!ENTITY {this} "' + f"&{last};"*10 + '">'
STORAGE = "<opencv_storage><K>&{};</K></opencv_storage>"
ANIPOSE = "matrix = 1\nrotation = 2\n"
FRAME = '{"frames": [{"transform_matrix": %s, "fl_x": %s, "fl_y": 1, "cx": 1, "cy": 1, "w": %s, "h": 5}]}'
INFINITE = "matrix = [[1e999,0,0],[0,1,0],[0,0,1]]\nrotation = [0,0,0]\ntranslation = [0,0,0]\nsize = [5,5]"
HOSTILE = {
    "yaml aliases": ("a.yml", "%YAML:1.0\n" + BOMB + "K: *j\n"),
    "yaml lists": ("a.yml", "K: " + "["*200000),
    "yaml mappings": ("a.yml", "K: " + "{a: "*50000),
    "yaml command": ("a.yml", "K: [1]\nx: !!python/object/apply:os.system ['echo > RAN']\n"),
    "yaml object": ("a.yml", "K: [1]\nx: !!python/object/new:os.system ['echo > RAN']\n"),
    "yaml rows": ("a.yml", "K: !!opencv-matrix\n   rows: 99999999\n   cols: 99999999\n   data: [ 1. ]\n"),
    "yaml sizes": ("a.yml", "K: !!opencv-matrix\n   sizes: [ 99999999999 ]\n   data: [ 1. ]\n"),
    "yaml negative rows": ("a.yml", "K: !!opencv-matrix {rows: -1, cols: -1, data: [1.]}\n"),
    "yaml digits": ("a.yml", "K: [" + "9"*10000 + "]"),
    "yaml date": ("a.yml", "K: [1]\nimage_width: 2001-01-01\n"),
    "yaml lines": ("a.yml", "K: [1]\n" + "\n"*10**6 + "K: !!x"),
    "yaml encoding": ("a.yml", b"K: [1]\n" + b"\xff\xfe" + b"x"*50),
    "xml entities": ("a.xml", '<?xml version="1.0"?><!DOCTYPE l [' + ENTITIES + "]>" + STORAGE.format("j")),
    "xml file": ("a.xml", '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
                 + STORAGE.format("a")),
    "xml levels": ("a.xml", "<opencv_storage><K>" + "<_>"*100000 + "</_>"*100000 + "</K></opencv_storage>"),
    "xml utf-16": ("a.xml", '<?xml version="1.0" encoding="utf-16"?><opencv_storage><K>1</K></opencv_storage>'),
    "xml encoding": ("a.xml", '<?xml version="1.0" encoding="no-such"?><opencv_storage><K>1</K></opencv_storage>'),
    "xml comments": ("a.xml", "<opencv_storage>" + "<!--"*400000),
    "xml length": ("a.xml", "<opencv_storage><K>1</K>" + " "*3*2**20),
    "toml lists": ("a.toml", ANIPOSE + "translation = " + "["*100000),
    "toml key": ("a.toml", ANIPOSE + "translation = 3\n" + "a."*50000 + "b = 1"),
    "toml digits": ("a.toml", "[c]\nmatrix = " + "9"*10000 + "\nrotation = 1\ntranslation = 2"),
    "toml infinity": ("a.toml", "[c]\n" + INFINITE),
    "toml lines": ("a.toml", ANIPOSE + "\n"*10**6 + "translation = 1\n"),
    "toml encoding": ("a.toml", ANIPOSE.encode() + b"translation = 3\n#\xff"),
    "json lists": ("a.json", '{"transform_matrix": 1, "frames": ' + "["*100000),
    "json no frame": ("a.json", '{"frames": {}, "w2c": 1}'),
    "json text": ("a.json", FRAME % ("[[1]]", '"x"', "5")),
    "json large": ("a.json", FRAME % (json.dumps(np.eye(4).tolist()), "1e300", "1e9")),
    "json entries": ("a.json", '{"w2c": 1, "frames": [' + "[],"*10**5 + "1]}"),
    "mat size": ("a.mat", b"MATLAB 5.0 MAT-file" + bytes(109) + struct.pack("<II", 15, 2**32 - 1)),
    "mat short": ("a.mat", b"MATLAB"),
    "hdf5 noise": ("a.h5", b"\x89HDF\r\n\x1a\n" + b"\xff"*500),
    "hdf5 short": ("a.h5", b"\x89HDF\r\n\x1a\n"),
}


@pytest.mark.parametrize("name, content", HOSTILE.values(), ids=HOSTILE)
def test_hostile(tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.perf_counter()
    assert_refused(lambda: read_calibration(path, W, H), name)
    assert time.perf_counter() - start < 20

    tracemalloc.start()
    assert_refused(lambda: read_calibration(path, W, H), name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300e6
    if path.suffix not in (".h5", ".mat"): assert len(find_rigs(tmp_path)) <= 1 # the search does not fail either
    assert not (tmp_path/"RAN").exists()


def test_hostile_array_sizes(tmp_path):
    "A valid MATLAB file that declares gigabytes is stopped by the memory limit of the child process."
    path = tmp_path/"a.mat"
    savemat(path, dict(params=np.array([[{"K": np.eye(3)}], [{"K": np.eye(3)}]], object)))
    data = path.read_bytes()
    i = data.find(struct.pack("<ii", 2, 1))
    assert i > 0
    path.write_bytes(data[:i] + struct.pack("<ii", 1 << 30, 1) + data[i + 8:])
    assert_refused(lambda: read_calibration(path, W, H), "a.mat", "scipy cannot read it")


def test_zip_bomb_in_a_mat(tmp_path):
    matrix = struct.pack("<II", 14, 2**32 - 8) + bytes(40) + b"params" + bytes(3*2**30//8)
    bomb = zlib.compress(matrix, 9)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 256, b"IM")
    path = tmp_path/"a.mat"
    path.write_bytes(header + struct.pack("<II", 15, len(bomb)) + bomb)
    assert_refused(lambda: read_calibration(path, W, H), "a.mat")
    find_rigs(tmp_path)


@pytest.mark.parametrize("link", ["external", "soft", "virtual", "stored outside"])
def test_hdf5_reads_no_other_file(tmp_path, link):
    other, raw = tmp_path/"other.h5", tmp_path/"other.raw"
    write_calibration(random_rig(1), other)
    raw.write_bytes(np.zeros(27).tobytes())
    key = "camera_parameters/rotation"
    with h5py.File(tmp_path/"a.h5", "w") as f:
        if link == "external": f["camera_parameters"] = h5py.ExternalLink(str(other), "camera_parameters")
        elif link == "soft": f["camera_parameters"] = h5py.SoftLink("/elsewhere")
        elif link == "virtual":
            layout = h5py.VirtualLayout((3, 3, 3), "f8")
            layout[:] = h5py.VirtualSource(str(other), key, (3, 3, 3))
            f.create_virtual_dataset(key, layout)
        else: f.create_dataset(key, (3, 3, 3), "f8", external=[(str(raw), 0, 216)])
    assert_refused(lambda: read_calibration(tmp_path/"a.h5", W, H), "a.h5")


# ---- optional libraries ----
def test_missing_library_is_a_sentence(tmp_path, monkeypatch):
    path = write_calibration(random_rig(1), tmp_path/"a.mat")
    find_spec = importlib.util.find_spec

    def without_extras(name, *args): return None if name in ("scipy", "h5py") else find_spec(name, *args)
    monkeypatch.setattr(importlib.util, "find_spec", without_extras)
    assert_refused(lambda: read_calibration(path, W, H), "a.mat: scipy is needed", "gslrm_mouse[formats]")
    assert_refused(lambda: write_calibration(random_rig(1), tmp_path/"a.h5"), "h5py is needed", "gslrm_mouse[formats]")
    assert not (tmp_path/"a.h5").exists()


def test_a_limit_that_the_system_refuses(monkeypatch):
    "As macOS does with the limit of memory; the others hold."
    limits = {}

    def setrlimit(limit, value):
        if limit == "memory": raise ValueError("current limit exceeds maximum limit")
        limits[limit] = value
    names = dict(RLIMIT_AS="memory", RLIMIT_CPU="time", RLIMIT_CORE="core")
    monkeypatch.setitem(sys.modules, "resource", types.SimpleNamespace(setrlimit=setrlimit, **names))
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(matlab_hdf5._CHILD_LIMITS, dict(MEMORY=1, SECONDS=2, ENTRIES=3, PACKAGES=""))
    assert limits == dict(time=(2, 2), core=(0, 0))


def test_import_needs_no_extra():
    "The package can be imported where the optional libraries are not installed."
    code = ("import sys; sys.modules.update(dict.fromkeys(['scipy', 'h5py', 'pycolmap', 'cv2'])); "
            "import gslrm_mouse.calibration.formats")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# ---- folders ----
def test_one_file_per_camera(tmp_path):
    rig = random_rig(9, 11)
    for i in range(11):
        rvec, tvec = cv2.Rodrigues(rig.R[i].numpy())[0], rig.w2c[i, :3, 3:].numpy()
        values = dict(
            image_width=W, image_height=H, camera_matrix=opencv_K(rig.lens, i),
            distortion_coefficients=rig.lens.distortion[i:i + 1].numpy(), rvec=rvec, tvec=tvec)
        storage = cv2.FileStorage(str(tmp_path/f"cam_{i}.yml"), cv2.FileStorage_WRITE)
        for key, value in values.items(): storage.write(key, value)
        storage.release()
    found = read_calibration(tmp_path, unit="mm")
    assert_same(found, rig)
    assert found.names == tuple(f"cam_{i}" for i in range(11)) # 2 before 10
    (tmp_path/"cam_3.yml").write_text("%YAML:1.0\n---\ncamera_matrix: [1]\n")
    assert_refused(lambda: read_calibration(tmp_path), "camera 3")


def test_dannce_folder(tmp_path):
    rig = random_rig(9, 3, skew=True)
    for i in range(3):
        K, R, t = rig.lens.K[i].numpy().copy(), rig.R[i].numpy(), rig.t[i].numpy()
        K[:2, 2] += .5
        k1, k2, p1, p2, k3 = rig.lens.distortion[i].tolist()
        params = dict(K=K.T, r=R.T, t=t, RDistort=[k1, k2, k3], TDistort=[p1, p2])
        savemat(tmp_path/f"hires_cam{i + 1}_params.mat", params)
    assert_same(read_calibration(tmp_path, W, H, "mm"), rig)


def test_no_rig_in_a_folder(tmp_path):
    (tmp_path/"notes.txt").touch()
    assert_refused(lambda: read_calibration(tmp_path), "notes.txt", "COLMAP", exc=FileNotFoundError)


def test_huge_file(tmp_path):
    with open(tmp_path/"a.pkl", "wb") as f: f.truncate(600*2**20)
    assert_refused(lambda: read_calibration(tmp_path/"a.pkl"), "600 MB")
