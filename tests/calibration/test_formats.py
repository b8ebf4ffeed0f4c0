"Rig files of eight tools: what goes out comes back, and no damaged or hostile file gives more than a rig or one sentence."
import json, pickle, shutil, struct, subprocess, sys, time, tracemalloc
from dataclasses import replace
import cv2, numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from gslrm_mouse.calibration.formats import FORMATS, find_rigs, read_calibration, write_calibration
from gslrm_mouse.cameras.pinhole import CameraError, look_at
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.cameras.lens import Lens
from gslrm_mouse.calibration.rig import Rig, looks_transposed
from gslrm_mouse.cameras.rotations import matrix_to_rotvec, quaternion_of, rotation_of, rotvec_to_matrix

W, H = 640, 480
PLACES = {"MAMMAL": "new_cam.pkl", "FaceLift": "opencv_cameras.json", "nerfstudio": "transforms.json", "Anipose": "c.toml", "DANNCE": "c.mat", "Pose Splatter": "c.h5", "OpenCV": "c.yml", "OpenCV XML": "c.xml", "COLMAP": "text", "COLMAP binary": "bin"}
FISHEYE, SKEW, NAMES = {"nerfstudio", "Anipose", "OpenCV", "OpenCV XML", "COLMAP", "COLMAP binary"}, {"MAMMAL", "DANNCE", "Pose Splatter"}, {"nerfstudio", "Anipose", "DANNCE", "OpenCV", "OpenCV XML", "COLMAP", "COLMAP binary"}
SLOW = {"DANNCE", "Pose Splatter"} # read in a process of their own

def random_rig(seed, n=3, kind="opencv", coefficients=5, skew=False):
    "A rig with nothing symmetric about it, millimetres, its axes near one aim."
    rng = np.random.default_rng(seed)
    eye = torch.from_numpy(rng.normal(size=(n, 3))*[1, 1, .4])
    eye = eye/eye.norm(dim=1, keepdim=True)*torch.from_numpy(rng.uniform(250, 420, (n, 1))) + torch.tensor([50., 60, 70])
    w2c = look_at(eye, torch.from_numpy(rng.uniform(20, 80, (n, 3))))
    K = torch.zeros(n, 3, 3, dtype=torch.float64)
    K[:, 2, 2] = 1
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = torch.from_numpy(rng.uniform([600, 610, 250, 180], [900, 930, 390, 300], (n, 4)).T)
    d = torch.from_numpy(rng.normal(size=(n, coefficients))*[.1, .05, .002, .003, .01, .02, .01, .003][:coefficients])
    stored = K.clone()
    stored[:, 0, 1] = torch.from_numpy(rng.normal(size=n)*4) if skew else 0
    return Rig(K, w2c, W, H, "mm", Lens(stored, d, W, H, kind), tuple(f"view_{i}" for i in rng.permutation(n)))

def place(tmp_path, name):
    d = tmp_path/name.replace(" ", "_")
    d.mkdir(exist_ok=True)
    shutil.rmtree(d/PLACES[name], ignore_errors=True)
    return d/PLACES[name]

def same(a, b, lens=True):
    assert (len(a), a.width, a.height, a.unit) == (len(b), b.width, b.height, b.unit)
    assert max((a.K - b.K).abs().max(), (a.w2c - b.w2c).abs().max()) < 1e-9
    if not lens:
        assert a.lens is None
        return
    n = 14
    pad = lambda d: torch.nn.functional.pad(d, (0, n - d.shape[-1]))
    assert a.lens.model == b.lens.model and max((a.lens.K - b.lens.K).abs().max(), (pad(a.lens.distortion) - pad(b.lens.distortion)).abs().max()) < 1e-9

def says(call, *parts, exc=ValueError):
    "The call fails with `exc` and one sentence which holds all `parts`."
    with pytest.raises(exc) as e: call()
    text = str(e.value)
    assert type(e.value) in (ValueError, FileNotFoundError), repr(e.value)
    for part in parts: assert part in text, text
    assert "\n" not in text and len(text) < 1500, text

# ---- there and back ----
@pytest.mark.parametrize("name", [n for n in FORMATS if n not in SLOW])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), kind=st.sampled_from(["none", "opencv", "fisheye"]), skew=st.booleans())
def test_round_trip(tmp_path, name, seed, n, kind, skew):
    if kind == "fisheye" and name not in FISHEYE or name == "FaceLift": kind = "none"
    rig = random_rig(seed, n, "fisheye" if kind == "fisheye" else "opencv", 4 if kind == "fisheye" else 8 if name.startswith("COLMAP") else 5, skew and name in SKEW)
    source = rig.cameras if kind == "none" else rig
    if name == "FaceLift":
        w2c = source.w2c.clone()
        w2c[:, :3, 3] *= .0085
        source = replace(source, w2c=w2c, unit="model")
    back = read_calibration(write_calibration(source, place(tmp_path, name), name), W, H, source.unit)
    same(back, source, kind != "none")
    if kind != "none" and name in NAMES: assert back.names == rig.names
    assert back.format == name.replace(" binary", "").replace(" XML", "") and back.reason

@pytest.mark.parametrize("name", sorted(SLOW))
@pytest.mark.parametrize("skew", [False, True])
def test_round_trip_in_arrays(tmp_path, name, skew):
    rig = random_rig(5, 7, skew=skew)
    same(read_calibration(write_calibration(rig, place(tmp_path, name), name), W, H, "mm"), rig)
    same(read_calibration(write_calibration(rig.cameras, place(tmp_path, name), name), W, H, "mm"), rig, False)

def test_formats_agree(tmp_path):
    "One rig through all formats is one rig: each half pixel and each transposition is in its place."
    rig = random_rig(1, 4)
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 3))*20 + [50, 50, 50])
    seen = []
    for name in FORMATS:
        if name != "FaceLift": seen.append(read_calibration(write_calibration(rig.cameras, place(tmp_path, name), name), W, H, "mm").project(X))
    assert len(seen) == 9 and max((s - rig.project(X)).abs().max() for s in seen) < 1e-6

@pytest.mark.parametrize("name, text", [("FaceLift", "cannot hold a lens"), ("MAMMAL", "fisheye"), ("DANNCE", "no other lens"), ("Pose Splatter", "fisheye")])
def test_lens_is_never_dropped(tmp_path, name, text):
    rig = random_rig(2, kind="fisheye", coefficients=4)
    says(lambda: write_calibration(replace(rig, unit=FORMATS[name].unit), place(tmp_path, name), name), text)
    assert not any(place(tmp_path, name).parent.iterdir())
@pytest.mark.parametrize("name", sorted(FISHEYE))
def test_skew_is_never_dropped(tmp_path, name): says(lambda: write_calibration(random_rig(3, skew=True), place(tmp_path, name), name), "skew")
@pytest.mark.parametrize("name", ["nerfstudio", "DANNCE", "COLMAP"])
def test_coefficients_are_never_dropped(tmp_path, name):
    rig = random_rig(3)
    d = torch.nn.functional.pad(rig.lens.distortion, (0, 9))
    d[:, 9] = .01
    says(lambda: write_calibration(replace(rig, lens=replace(rig.lens, distortion=d)), place(tmp_path, name), name), "undistort the pictures")
def test_mixed_lenses(tmp_path):
    p = write_calibration(random_rig(1), tmp_path/"c.toml")
    p.write_text(p.read_text().replace("[cam_1]", "[cam_1]\nfisheye = true"))
    says(lambda: read_calibration(p), "one kind", "c.toml")

# ---- the lens, by OpenCV ----
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["opencv", "fisheye"]), n=st.sampled_from([4, 5, 8]))
def test_lens_by_opencv(seed, kind, n):
    lens = random_rig(seed, 1, kind, 4 if kind == "fisheye" else n).lens
    K = lens.K[0].numpy().copy()
    K[:2, 2] -= .5
    d = lens.distortion[0].numpy()
    uv, inside = lens.source(0, lens.K[0], W, H)
    init = cv2.initUndistortRectifyMap if kind == "opencv" else cv2.fisheye.initUndistortRectifyMap
    mx, my = init(K, d, np.eye(3), K, (W, H), cv2.CV_32FC1)
    assert np.abs(uv.numpy() - .5 - np.stack([mx, my], -1)).max() < 1e-4
    p = np.array([[[100., 120]], [[400, 300]], [[320, 90]]])                            # and OpenCV's own inverse leads back
    back = cv2.undistortPoints(p, K, d, None, None, K, (3, 200, 1e-12)) if kind == "opencv" else cv2.fisheye.undistortPoints(p, K, d, None, K)
    xy = torch.from_numpy(np.linalg.solve(K, np.concatenate([back[:, 0], np.ones((3, 1))], 1).T)[:2].T[None])
    assert np.abs(lens.project(xy)[0].numpy() - .5 - p[:, 0]).max() < 1e-4

def test_half_a_pixel_would_show():
    "The oracle is sharp enough: with the first pixel at the wrong place it fails."
    lens = random_rig(0, 1).lens
    K = lens.K[0].numpy()
    mx, _ = cv2.initUndistortRectifyMap(K, lens.distortion[0].numpy(), np.eye(3), K, (W, H), cv2.CV_32FC1)
    assert np.abs(lens.source(0, lens.K[0], W, H)[0][..., 0].numpy() - .5 - mx).max() > 1e-3

def test_pictures_by_opencv():
    rig = random_rig(4, 1)
    K = rig.lens.K[0].numpy().copy()
    K[:2, 2] -= .5
    y, x = np.mgrid[:H, :W]
    picture = torch.from_numpy((.5 + .5*np.sin(x/9)*np.sin(y/7))[..., None].astype(np.float32)).expand(-1, -1, 3).contiguous()
    ours = rig.undistort(picture[None])[0]
    theirs = cv2.undistort(picture.numpy(), K, rig.lens.distortion[0].numpy())
    uv, inside = rig.lens.source(0, rig.K[0], W, H)
    inside = (inside & (uv > 1).all(-1) & (uv[..., 0] < W - 1) & (uv[..., 1] < H - 1)).numpy()     # OpenCV blends the border with black
    assert inside.mean() > .8 and np.abs(ours.numpy() - theirs)[inside].max() < .02 and np.abs(picture.numpy() - theirs)[inside].max() > .2

@settings(max_examples=100, deadline=None)
@given(axis=st.tuples(*[st.floats(-1, 1)]*3).filter(lambda a: sum(x*x for x in a) > .01), angle=st.floats(0, np.pi))
def test_rotations(axis, angle):
    r = np.array(axis)/np.linalg.norm(axis)*angle
    R = cv2.Rodrigues(r)[0]
    assert np.abs(rotvec_to_matrix(r) - R).max() < 1e-12 and np.abs(rotvec_to_matrix(matrix_to_rotvec(R)) - R).max() < 1e-12 and np.abs(rotation_of(quaternion_of(R)) - R).max() < 1e-12

def test_transposed_rotations():
    cams = mouse_rig()
    w2c = cams.w2c.clone()
    w2c[:, :3, :3] = cams.R.mT
    assert "transposed" in looks_transposed(replace(cams, w2c=w2c)) and looks_transposed(cams) is None

# ---- damaged ----
def damaged(data, n, seed):
    "Copies with bits flipped, bytes overwritten, pieces cut out, doubled or moved."
    rng = np.random.default_rng(seed)
    for i in range(n):
        b = bytearray(data)
        at, size = rng.integers(len(b)), int(rng.integers(1, 40))
        if i % 5 == 0: b[at] ^= 1 << rng.integers(8)
        elif i % 5 == 1: b[at:at + 8] = struct.pack("<Q", [0, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, 10**6][rng.integers(6)])
        elif i % 5 == 2: del b[at:at + size]
        elif i % 5 == 3: b[at:at] = b[at:at + size]*int(rng.integers(1, 30))
        else: b = b[:at]
        yield bytes(b)

def rig_or_sentence(path, *size):
    try: rig = read_calibration(path, *size)
    except (ValueError, FileNotFoundError) as e:
        assert type(e) in (ValueError, CameraError, FileNotFoundError) and "\n" not in str(e) and path.name in str(e), repr(e)
        return False
    assert rig.K.isfinite().all() and rig.w2c.isfinite().all() and (torch.linalg.det(rig.R) - 1).abs().max() < 2e-3 and (rig.lens is None or rig.lens.distortion.isfinite().all())
    return True

@pytest.mark.parametrize("name", [n for n in FORMATS if n not in SLOW])
def test_damaged(tmp_path, name):
    rig = random_rig(7)
    rig = rig.cameras if name == "FaceLift" else rig
    rig = replace(rig, unit="model") if name == "FaceLift" else rig
    path = write_calibration(rig, place(tmp_path, name), name)
    seen = {True: 0, False: 0}
    files = [p for p in path.iterdir() if p.stat().st_size > 10] if path.is_dir() else [path]
    start = time.perf_counter()
    for file in files:
        whole = file.read_bytes()
        for data in damaged(whole, 300//len(files), 3):
            file.write_bytes(data)
            seen[rig_or_sentence(path, W, H)] += 1
        file.write_bytes(whole)
    assert min(seen.values()) > 0 and time.perf_counter() - start < 60, seen

@pytest.mark.parametrize("name", sorted(SLOW))
def test_damaged_arrays(tmp_path, name):
    path = write_calibration(random_rig(7), place(tmp_path, name), name)
    whole = path.read_bytes()
    seen = {True: 0, False: 0}
    for data in damaged(whole, 25, 4):
        path.write_bytes(data)
        seen[rig_or_sentence(path, W, H)] += 1
    assert seen[False] > 0, seen

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([b"", b"{", b'{"frames": [', b'{"w2c": 1, "frames": ', b'{"transform_matrix": 1, "frames": [', b"\x80\x04", b"%YAML:1.0\n---\nK: [", b"<?xml version='1.0'?><opencv_storage><K>", b"[cam_0]\nmatrix = 1\nrotation = 2\ntranslation = 3\n"]), rest=st.binary(max_size=200))
def test_random_files(tmp_path, start, rest):
    (tmp_path/"x").write_bytes(start + rest)
    rig_or_sentence(tmp_path/"x", W, H)

_value = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)), lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=8)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["FaceLift", "nerfstudio", "Anipose", "OpenCV", "MAMMAL"]))
def test_wrong_values(tmp_path, data, kind):
    "One value of a sound file becomes anything at all."
    import tomllib, yaml
    rig = random_rig(7)
    rig = replace(rig.cameras, unit="model") if kind == "FaceLift" else rig
    path = write_calibration(rig, place(tmp_path, kind), kind)
    raw = path.read_bytes()
    value = data.draw(_value)
    content = pickle.loads(raw) if kind == "MAMMAL" else tomllib.loads(raw.decode()) if kind == "Anipose" else json.loads(raw) if kind != "OpenCV" else dict(image_width=W, image_height=H, cameras=[dict(K=rig.lens.K[i].tolist(), R=rig.R[i].tolist(), T=rig.t[i].tolist()) for i in range(3)])
    cams = content if kind == "MAMMAL" else list(content.values()) if kind == "Anipose" else content["cameras" if kind == "OpenCV" else "frames"]
    where = data.draw(st.sampled_from([*(content if kind not in ("MAMMAL", "Anipose") else ()), *cams[0]]))
    (cams[0] if where in cams[0] else content)[where] = value
    if kind == "MAMMAL": path.write_bytes(pickle.dumps(content))
    elif kind == "OpenCV": path.write_text("%YAML:1.0\n---\n" + yaml.safe_dump(content))
    elif kind == "Anipose":
        try: path.write_text("\n".join(f"[cam_{i}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in c.items()) for i, c in enumerate(cams)))
        except UnicodeEncodeError: return
    else: path.write_text(json.dumps(content))
    rig_or_sentence(path, W, H)

# ---- hostile ----
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)]*10)}]\n" for i in range(9)) + "K: *j\n"
@pytest.mark.parametrize("name, text", [
    ("a.yml", "%YAML:1.0\n" + BOMB), ("a.yml", "K: " + "["*200000), ("a.yml", "K: " + "{a: "*50000), ("a.yml", "K: [1]\nx: !!python/object/apply:os.system ['echo > RAN']\n"), ("a.yml", "K: [1]\nx: !!python/object/new:os.system ['echo > RAN']\n"),
    ("a.yml", "K: !!opencv-matrix\n   rows: 99999999\n   cols: 99999999\n   data: [ 1. ]\n"), ("a.yml", "K: !!opencv-matrix\n   sizes: [ 99999999999 ]\n   data: [ 1. ]\n"), ("a.yml", "K: !!opencv-matrix {rows: -1, cols: -1, data: [1.]}\n"), ("a.yml", "K: [" + "9"*10000 + "]"), ("a.yml", "K: [1]\nimage_width: 2001-01-01\n"),
    ("a.xml", '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + "".join(f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";")*10}">' for i in range(9)) + "]><opencv_storage><K>&j;</K></opencv_storage>"),
    ("a.xml", '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/hostname">]><opencv_storage><K>&a;</K></opencv_storage>'), ("a.xml", "<opencv_storage><K>" + "<_>"*100000 + "</_>"*100000 + "</K></opencv_storage>"),
    ("a.xml", '<?xml version="1.0" encoding="utf-16"?><opencv_storage><K>1</K></opencv_storage>'), ("a.xml", '<?xml version="1.0" encoding="no-such"?><opencv_storage><K>1</K></opencv_storage>'),
    ("a.toml", "matrix = 1\nrotation = 2\ntranslation = " + "["*100000), ("a.toml", "matrix = 1\nrotation = 2\ntranslation = 3\n" + "a."*50000 + "b = 1"), ("a.toml", "[c]\nmatrix = " + "9"*10000 + "\nrotation = 1\ntranslation = 2"), ("a.toml", "[c]\nmatrix = [[1e999,0,0],[0,1,0],[0,0,1]]\nrotation = [0,0,0]\ntranslation = [0,0,0]\nsize = [5,5]"),
    ("a.json", '{"transform_matrix": 1, "frames": ' + "["*100000), ("a.json", '{"frames": {}, "w2c": 1}'), ("a.json", '{"frames": [{"transform_matrix": [[1]], "fl_x": "x", "fl_y": 1, "cx": 1, "cy": 1, "w": 5, "h": 5}]}'), ("a.json", '{"frames": [{"transform_matrix": ' + json.dumps(np.eye(4).tolist()) + ', "fl_x": 1e300, "fl_y": 1, "cx": 1, "cy": 1, "w": 1e9, "h": 5}]}'),
    ("a.xml", "<opencv_storage>" + "<!--"*400000), ("a.xml", "<opencv_storage><K>1</K>" + " "*3*2**20), ("a.yml", "K: [1]\n" + "\n"*10**6 + "K: !!x"), ("a.toml", "matrix = 1\nrotation = 2\n" + "\n"*10**6 + "translation = 1\n"), ("a.json", '{"w2c": 1, "frames": [' + "[],"*10**5 + "1]}"),
    ("a.yml", b"K: [1]\n" + b"\xff\xfe" + b"x"*50), ("a.toml", b"matrix = 1\nrotation = 2\ntranslation = 3\n#\xff"), ("a.mat", b"MATLAB 5.0 MAT-file" + bytes(109) + struct.pack("<II", 15, 2**32 - 1)), ("a.mat", b"MATLAB"), ("a.h5", b"\x89HDF\r\n\x1a\n" + b"\xff"*500), ("a.h5", b"\x89HDF\r\n\x1a\n")])
def test_hostile(tmp_path, monkeypatch, name, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.perf_counter()
    says(lambda: read_calibration(path, W, H), name)
    assert time.perf_counter() - start < 20
    tracemalloc.start()
    says(lambda: read_calibration(path, W, H), name)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 300e6, most
    if not path.read_bytes().startswith((b"\x89HDF", b"MATLAB")): assert not find_rigs(tmp_path) or len(find_rigs(tmp_path)) == 1          # nor does the search stumble
    assert not (tmp_path/"RAN").exists()

def test_hostile_arrays_of_any_size(tmp_path):
    "Claims of gigabytes inside a sound MATLAB file end at the child's memory."
    import scipy.io
    path = tmp_path/"a.mat"
    scipy.io.savemat(path, dict(params=np.array([[{"K": np.eye(3)}], [{"K": np.eye(3)}]], object)))
    data = path.read_bytes()
    i = data.find(struct.pack("<ii", 2, 1))
    assert i > 0
    path.write_bytes(data[:i] + struct.pack("<ii", 1 << 30, 1) + data[i + 8:])
    says(lambda: read_calibration(path, W, H), "a.mat", "scipy cannot read it")

def test_zip_bomb_in_a_mat(tmp_path):
    import zlib
    bomb = zlib.compress(struct.pack("<II", 14, 2**32 - 8) + bytes(40) + b"params" + bytes(3*2**30//8), 9)
    path = tmp_path/"a.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 256, b"IM") + struct.pack("<II", 15, len(bomb)) + bomb)
    says(lambda: read_calibration(path, W, H), "a.mat")
    find_rigs(tmp_path)

@pytest.mark.parametrize("link", ["external", "soft", "virtual", "stored outside"])
def test_hdf5_reads_no_other_file(tmp_path, link):
    import h5py
    secret = tmp_path/"secret.h5"
    other = write_calibration(random_rig(1), tmp_path/"other.h5")
    shutil.move(other, secret)
    raw = tmp_path/"secret.raw"
    raw.write_bytes(np.zeros(27).tobytes())
    with h5py.File(tmp_path/"a.h5", "w") as f:
        if link == "external": f["camera_parameters"] = h5py.ExternalLink(str(secret), "camera_parameters")
        elif link == "soft": f["camera_parameters"] = h5py.SoftLink("/elsewhere")
        elif link == "virtual":
            v = h5py.VirtualLayout((3, 3, 3), "f8")
            v[:] = h5py.VirtualSource(str(secret), "camera_parameters/rotation", (3, 3, 3))
            f.create_virtual_dataset("camera_parameters/rotation", v)
        else: f.create_dataset("camera_parameters/rotation", (3, 3, 3), "f8", external=[(str(raw), 0, 216)])
    says(lambda: read_calibration(tmp_path/"a.h5", W, H), "a.h5")

def test_missing_library_is_a_sentence(tmp_path, monkeypatch):
    path = write_calibration(random_rig(1), tmp_path/"a.mat")
    import importlib.util
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in ("scipy", "h5py") else find(n, *a))
    says(lambda: read_calibration(path, W, H), "scipy is needed", "gslrm_mouse[formats]")
    says(lambda: write_calibration(random_rig(1), tmp_path/"a.h5"), "h5py is needed", "gslrm_mouse[formats]")
    assert not (tmp_path/"a.h5").exists()

def test_import_needs_no_extra():
    "The package can be imported where the extras are not installed."
    code = "import sys; sys.modules.update(dict.fromkeys(['scipy', 'h5py', 'pycolmap', 'cv2'])); import gslrm_mouse.calibration.formats"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

# ---- folders ----
def test_one_file_per_camera(tmp_path):
    rig = random_rig(9, 11)
    for i in range(11):
        f = cv2.FileStorage(str(tmp_path/f"cam_{i}.yml"), cv2.FileStorage_WRITE)
        f.write("image_width", W)
        f.write("image_height", H)
        K = rig.lens.K[i].numpy().copy()
        K[:2, 2] -= .5
        for k, v in dict(camera_matrix=K, distortion_coefficients=rig.lens.distortion[i:i + 1].numpy(), rvec=cv2.Rodrigues(rig.w2c[i, :3, :3].numpy())[0], tvec=rig.w2c[i, :3, 3:].numpy()).items(): f.write(k, v)
        f.release()
    got = read_calibration(tmp_path, unit="mm")
    same(got, rig)
    assert got.names == tuple(f"cam_{i}" for i in range(11))          # 2 before 10
    (tmp_path/"cam_3.yml").write_text("%YAML:1.0\n---\ncamera_matrix: [1]\n")
    says(lambda: read_calibration(tmp_path), "camera 3")

def test_dannce_folder(tmp_path):
    from scipy.io import savemat
    rig = random_rig(9, 3, skew=True)
    for i in range(3):
        K = rig.lens.K[i].numpy().copy()
        K[:2, 2] += .5
        m, d = rig.w2c[i].numpy(), rig.lens.distortion[i].numpy()
        savemat(tmp_path/f"hires_cam{i + 1}_params.mat", dict(K=K.T, r=m[:3, :3].T, t=m[:3, 3], RDistort=d[[0, 1, 4]], TDistort=d[2:4]))
    same(read_calibration(tmp_path, W, H, "mm"), rig)

def test_no_rig_in_a_folder(tmp_path):
    (tmp_path/"notes.txt").touch()
    says(lambda: read_calibration(tmp_path), "notes.txt", "COLMAP", exc=FileNotFoundError)
def test_huge_file(tmp_path):
    with open(tmp_path/"a.pkl", "wb") as f: f.truncate(600*2**20)
    says(lambda: read_calibration(tmp_path/"a.pkl"), "600 MB")
