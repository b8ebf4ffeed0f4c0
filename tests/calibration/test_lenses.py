"A lens under any known key is read with the right values; under any other key it is refused, in every format."
import io
import json
import pickle

import cv2
import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from gslrm_mouse.calibration.formats import read_calibration
from gslrm_mouse.calibration.rig import check_keys, read_lens

W, H = 1152, 1024
D5 = [-.28, .11, .001, -.002, .03]
D4 = [.031, .0052, -.0007, .0001] # of a fisheye
K = [np.array([[900.5, 0, 571.6], [0, 890.25, 347.1], [0, 0, 1]]),
     np.array([[870., 0, 601.3], [0, 905.5, 488.2], [0, 0, 1]])]
R = [cv2.Rodrigues(np.array(rvec))[0] for rvec in ([.3, -.7, 1.1], [-.9, .4, .6])]
T = [np.array([10., 66, 336]), np.array([-30., 20, 310])]
POINTS = np.array([[12., -30, 70], [-55, 5, 66], [8, 40, -20]])


def matrix(x):
    x = np.atleast_2d(x)
    return f"!!opencv-matrix\n   rows: {x.shape[0]}\n   cols: {x.shape[1]}\n   dt: d\n   data: {np.ravel(x).tolist()}\n"


def yaml_lines(keys, number=""):
    text = ""
    for key, value in keys.items():
        is_vector = isinstance(value, (list, np.ndarray))
        text += f"{key}{number}: " + (matrix(value) if is_vector else f"{json.dumps(value)}\n")
    return text


def opencv_yaml(keys):
    "One file per camera, by its name."
    size, files = dict(image_width=W, image_height=H), {}
    for i in (0, 1):
        camera = dict(camera_matrix=K[i], R=R[i], T=T[i][:, None])
        files[f"cam{i}.yml"] = ("%YAML:1.0\n---\n" + yaml_lines(size | camera | keys)).encode()
    return files


def opencv_numbered(keys):
    text = "%YAML:1.0\n---\n" + yaml_lines(dict(image_width=W, image_height=H))
    for i in (0, 1): text += yaml_lines(dict(K=K[i], R=R[i], T=T[i][:, None]) | keys, f"_{i}")
    return {"rig.yml": text.encode()}


def opencv_json(keys):
    cameras = [dict(K=K[i].tolist(), R=R[i].tolist(), T=T[i].tolist(), width=W, height=H) | keys for i in (0, 1)]
    return {"rig.json": json.dumps(cameras).encode()}


def mammal(keys):
    arrays = {key: np.array(value) if isinstance(value, list) else value for key, value in keys.items()}
    return {"c.pkl": pickle.dumps([dict(K=K[i], R=R[i], T=T[i]) | arrays for i in (0, 1)])}


def anipose(keys):
    text = ""
    for i in (0, 1):
        values = dict(size=[W, H], matrix=K[i].tolist(), rotation=cv2.Rodrigues(R[i])[0][:, 0].tolist(),
                      translation=T[i].tolist()) | keys
        text += f"[cam_{i}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    return {"c.toml": text.encode()}


def facelift(keys):
    frames = []
    for i in (0, 1):
        w2c = np.eye(4)
        w2c[:3, :3], w2c[:3, 3] = R[i], T[i]
        frames.append(dict(w=W, h=H, fx=K[i][0, 0], fy=K[i][1, 1], cx=K[i][0, 2] + .5, cy=K[i][1, 2] + .5,
                           w2c=w2c.tolist()) | keys)
    return {"opencv_cameras.json": json.dumps(dict(frames=frames)).encode()}


def jarvis(keys):
    files = {}
    for i in (0, 1):
        values = dict(intrinsicMatrix=K[i].T, R=R[i].T, T=T[i][:, None])
        if not any("dist" in key for key in keys): values["distortionCoefficients"] = np.zeros(5)
        files[f"Camera_{i}.yaml"] = ("%YAML:1.0\n---\n" + yaml_lines(values | keys)).encode()
    return files


def dannce(keys):
    out = io.BytesIO()
    one_pixel = np.array([[0, 0, 1.], [0, 0, 1], [0, 0, 0]])
    params = np.empty((2, 1), object)
    for i in (0, 1):
        arrays = {key: np.array(value) if isinstance(value, list) else value for key, value in keys.items()}
        params[i, 0] = dict(K=(K[i] + one_pixel).T, r=R[i].T, t=T[i][None]) | arrays
    savemat(out, dict(params=params))
    return {"c.mat": out.getvalue()}


def pose_splatter(keys):
    out = io.BytesIO()
    with h5py.File(out, "w") as f:
        group = f.create_group("camera_parameters")
        group["rotation"], group["translation"], group["intrinsic"] = np.stack(R), np.stack(T), np.stack(K)
        for key, value in keys.items(): group[key] = np.stack([value]*2) if isinstance(value, list) else value
    return {"c.h5": out.getvalue()}


FAST = [opencv_yaml, opencv_numbered, opencv_json, mammal, anipose, facelift]
ALL = [*FAST, dannce, pose_splatter]


def read(tmp_path, write, keys):
    folder = tmp_path/"rig"
    folder.mkdir()
    files = write(keys)
    for name, data in files.items(): (folder/name).write_bytes(data)
    return read_calibration(folder if len(files) > 1 else folder/next(iter(files)), W, H, "mm")


def stored_pixels(rig, i):
    x = rig[i].to_camera(torch.from_numpy(POINTS))[0]
    return rig.lens[i].project((x[:, :2]/x[:, 2:])[None])[0].numpy() - .5


def assert_lens(rig, coefficients, model="opencv"):
    "The stored images of all cameras are those that OpenCV computes."
    assert rig.lens is not None and rig.lens.model == model
    for i in (0, 1):
        rvec, D = cv2.Rodrigues(R[i])[0], np.array(coefficients)
        if model == "opencv": by_opencv = cv2.projectPoints(POINTS, rvec, T[i], K[i], D)[0]
        else: by_opencv = cv2.fisheye.projectPoints(POINTS[:, None], rvec, T[i][:, None], K[i], D)[0]
        assert np.abs(stored_pixels(rig, i) - by_opencv.reshape(-1, 2)).max() < 1e-6


# ---- read ----
VECTOR_KEYS = "distortion_coefficients dist_coeff dist distortion Distortion distCoeffs dist_coeffs kc D d".split()


@pytest.mark.parametrize("write", FAST, ids=lambda f: f.__name__)
@pytest.mark.parametrize("key", VECTOR_KEYS)
def test_coefficients_by_their_usual_names(tmp_path, write, key): assert_lens(read(tmp_path, write, {key: D5}), D5)


@pytest.mark.parametrize("write, key", [
    (dannce, "kc"), (dannce, "distCoeffs"), (pose_splatter, "distortion"), (pose_splatter, "dist"), 
    (jarvis, "distortionCoefficients"),
])
def test_coefficients_in_binary_formats(tmp_path, write, key): assert_lens(read(tmp_path, write, {key: D5}), D5)


@pytest.mark.parametrize("write", [dannce, opencv_json, mammal], ids=lambda f: f.__name__)
def test_radial_and_tangential(tmp_path, write):
    k1, k2, p1, p2, k3 = D5
    keys = dict(RadialDistortion=[k1, k2, k3], TangentialDistortion=[p1, p2])
    assert_lens(read(tmp_path, write, keys), D5)


@pytest.mark.parametrize("write", [f for f in FAST if f != opencv_numbered], ids=lambda f: f.__name__)
@pytest.mark.parametrize("keys, coefficients", [
    (dict(k1=-.28), [-.28, 0, 0, 0, 0]), (dict(k1=-.28, k2=.11, p1=.001, p2=-.002, k3=.03), D5),
    (dict(k1=-.28, k5=.01, k6=.02), [-.28, 0, 0, 0, 0, 0, .01, .02]),
])
def test_coefficients_one_by_one(tmp_path, write, keys, coefficients):
    assert_lens(read(tmp_path, write, keys), coefficients)


FISHEYE_FLAGS = [
    dict(fisheye=1), dict(is_fisheye=True), dict(fisheye_model=1), dict(distortion_model="equidistant"),
    dict(camera_model="KANNALA_BRANDT"), dict(lens_model="fisheye")]


@pytest.mark.parametrize("write", FAST, ids=lambda f: f.__name__)
@pytest.mark.parametrize("flag", FISHEYE_FLAGS, ids=lambda keys: next(iter(keys)))
def test_fisheye(tmp_path, write, flag): assert_lens(read(tmp_path, write, flag | dict(D=D4)), D4, "fisheye")


def test_flag_of_all_cameras(tmp_path):
    "A flag at the top of a file counts for each camera."
    data = json.dumps(dict(fisheye=True, cameras=json.loads(opencv_json(dict(D=D4))["rig.json"]))).encode()
    assert_lens(read(tmp_path, lambda keys: {"rig.json": data}, {}), D4, "fisheye")
    frames = json.loads(facelift({})["opencv_cameras.json"]) | dict(k1=-.28)
    data = json.dumps(frames).encode()
    (tmp_path/"f.json").write_bytes(data)
    assert_lens(read_calibration(tmp_path/"f.json", unit="mm"), [-.28, 0, 0, 0, 0])


# ---- refused ----
UNKNOWN = {
    "xi": 1.2, "lens": [.1, .2], "lens_params": [.1]*3, "radial": [-.28, .11], "tangential": [.001, -.002], "skew": 2.5,
    "alpha_c": .01, "k": [-.28, .11], "fisheye_coeffs": D4, "omni_xi": .9, "distortion_center": [570., 340.],
    "undistorted": 1, "rolling_shutter": [0., .1], "flip_horizontal": True, "binning": 2, "crop_x": 16,
    "prism": [.001, .002], "any_name": D5, "tilt": [.01, .02],
    "distortion_params": [-.28, .11, .03, 0, .001, -.002], "image_scale": .5}
MODELS = {
    "distortion_model": "omni", "camera_model": "FISHEYE624", "lens_type": "stereographic", "fisheye": "perhaps"}


@pytest.mark.parametrize("write", FAST, ids=lambda f: f.__name__)
@pytest.mark.parametrize("key", [*UNKNOWN, *MODELS])
def test_unknown_lens_is_refused(tmp_path, write, key):
    with pytest.raises(ValueError) as e: read(tmp_path, write, {key: (UNKNOWN | MODELS)[key]})
    message = str(e.value)
    assert key in message and "rig" in message and "\n" not in message and len(message) < 500, message


@pytest.mark.parametrize("write", [dannce, pose_splatter, jarvis], ids=lambda f: f.__name__)
@pytest.mark.parametrize("key", ["xi", "lens_params", "any_name"])
def test_unknown_lens_is_refused_in_binary_formats(tmp_path, write, key):
    with pytest.raises(ValueError, match=key): read(tmp_path, write, {key: UNKNOWN[key]})


@pytest.mark.parametrize("write", FAST, ids=lambda f: f.__name__)
def test_empty_values_are_no_lens(tmp_path, write):
    zeros = {key: [0.]*len(value) if isinstance(value, list) else 0 for key, value in UNKNOWN.items()}
    neutral = dict(binning=1, distortion_model="none", camera_model="pinhole", fisheye=0, D=[0.]*5, lens="")
    assert read(tmp_path, write, zeros | neutral).lens is None


@pytest.mark.parametrize("keys, fragment", [
    (dict(D=D5, dist=D5), "D and dist"), (dict(D=D5, k1=.1), "k1"),
    (dict(fisheye=True, distortion_model="radtan"), "contradict"),
    (dict(fisheye=False, camera_model="fisheye"), "contradict"), (dict(fisheye=True, D=D5), "fisheye model has 4"),
    (dict(fisheye=True, k1=.1, p1=.01), "p1"), (dict(D=[.1, .2]), "2 distortion coefficients"),
    (dict(D="three"), "D should be numbers"), (dict(D=dict(k1=.1, xi=2)), "xi"),
])
def test_contradictions(tmp_path, keys, fragment):
    with pytest.raises(ValueError, match=fragment): read(tmp_path, opencv_json, keys)


def test_harmless_keys():
    "What tools leave beside cameras is no lens."
    harmless = dict(
        camera_distance=2.7, square_size=5., rms=.3, reprojection_errors=[.1, .2, .3, .4], flags=0, board_width=9,
        blender_camera_location=[1.79, 1.79, .92], quat=[.5, -.5, .5, .5], file_path="images/lens.png", aabb_scale=16,
        rotation=.0126, R1=np.eye(3), P1=np.eye(3, 4), rotation_count=1, camera_model="Blackfly S",
        calibration_time="now", exposure=-4, per_view_errors=np.array([.2, .3, .4, .1, .5]),
        bbox=[-10, -20, 30, 40.5], timestamp=12.5)
    assert check_keys(harmless, (), "a file")[0] == "opencv"
    assert read_lens(harmless, "a file")[1].size == 0
