"Units, sizes and the tools of item 17: right values by OpenCV, and one sentence for whatever cannot be read."
import codecs
import io
import json
import struct
import time

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from test_formats import H, W, assert_refused, assert_same, is_rig, new_path, random_rig

from gslrm_mouse.calibration.colmap import colmap_files
from gslrm_mouse.calibration.formats import FORMATS, find_rigs, read_calibration, write_calibration
from gslrm_mouse.calibration.json_frames import nerfstudio_bytes
from gslrm_mouse.cameras.pinhole import Cameras, look_at
from gslrm_mouse.cameras.presets import facelift_rig
from gslrm_mouse.files import write_atomic
from gslrm_mouse.views.samples import read_sample, write_sample
from gslrm_mouse.views.views import Views


def scaled(cams, scale):
    w2c = cams.w2c.clone()
    w2c[:, :3, 3] *= scale
    return Cameras(cams.K, w2c, cams.width, cams.height, cams.unit)


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# ---- units ----
@pytest.mark.parametrize("scale", [1e-3, .0136, .1, 1., 30.])
@pytest.mark.parametrize("name", ["COLMAP", "COLMAP binary", "nerfstudio"])
def test_no_unit_is_guessed_where_there_is_none(tmp_path, name, scale):
    path = write_calibration(scaled(random_rig(1).cameras, scale), new_path(tmp_path, name), name)
    if path.is_dir(): (path/"unit.txt").unlink()
    else: path.write_text(path.read_text().replace('"unit": "mm",', ""))
    rig = read_calibration(path)
    assert rig.unit == "model" and "has no unit" in rig.reason and "unit=" in rig.reason
    stated = read_calibration(path, unit="cm")
    assert stated.unit == "mm" and torch.allclose(stated.w2c[:, :3, 3], 10*rig.w2c[:, :3, 3])


@pytest.mark.parametrize("name", ["COLMAP", "COLMAP binary", "nerfstudio"])
def test_what_is_written_keeps_its_unit(tmp_path, name):
    rig = read_calibration(write_calibration(random_rig(1).cameras, new_path(tmp_path, name), name))
    assert (rig.unit, rig.reason) == ("mm", f"{name.removesuffix(' binary')} states mm")


def test_wrong_unit_in_a_file(tmp_path):
    data = nerfstudio_bytes(random_rig(1).cameras).replace(b'"unit": "mm"', b'"unit": "furlong"')
    assert_refused(lambda: read_calibration(save(tmp_path/"t.json", data)), "t.json", "furlong")
    folder = write_atomic(tmp_path/"model", colmap_files(random_rig(1).cameras) | {"unit.txt": b"\xff" + b"x"*999})
    assert_refused(lambda: read_calibration(folder), "model", "unit should be one of")


@pytest.mark.parametrize("distance, has_note", [(25, True), (31.8, True), (190, True), (210, False), (312, False)])
def test_note_where_centimetres_are_possible(tmp_path, distance, has_note):
    angle = torch.arange(5).double()*1.2
    directions = torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, .2)], 1)/1.04**.5
    w2c = look_at(directions*distance, torch.zeros(3))
    K = random_rig(1, 5).K
    path = write_calibration(Cameras(K, w2c, W, H, "mm"), tmp_path/"c.toml")
    rig = read_calibration(path)
    assert rig.unit == "mm" and ("centimetres if the animal is seen from" in rig.reason) == has_note
    assert ("state unit= to be sure" in rig.reason) == has_note
    assert torch.allclose(read_calibration(path, unit="cm").w2c[:, :3, 3], 10*rig.w2c[:, :3, 3])


@pytest.mark.parametrize("name", ["Pose2Sim", "Caliscope", "Kalibr"])
def test_metres(tmp_path, name):
    "A rig of people, three metres away, is in metres as well."
    source = scaled(random_rig(2, 4).cameras, 10)
    rig = read_calibration(write_calibration(source, new_path(tmp_path, name), name))
    assert_same(rig, source, lens=False)
    assert f"{name} writes metres" in rig.reason


# ---- sizes ----
def test_whole_numbers_as_floats(tmp_path):
    path = write_calibration(random_rig(1).cameras, tmp_path/"c.toml")
    path.write_text(path.read_text().replace("[640, 480]", "[640.0, 480.0]"))
    rig = read_calibration(path, unit="mm")
    assert (rig.width, rig.height, type(rig.width)) == (W, H, int)
    path.write_text(path.read_text().replace("[640.0, 480.0]", "[640.5, 480.0]"))
    assert_refused(lambda: read_calibration(path), "whole numbers", "640.5")


def test_cameras_of_different_sizes(tmp_path):
    path = write_calibration(random_rig(1).cameras, tmp_path/"c.toml")
    path.write_text(path.read_text().replace("[640, 480]", "[320, 240]", 1))
    rig = read_calibration(path, unit="mm")
    assert rig.size_text == "320 × 240 and 640 × 480 px"
    assert torch.allclose(rig.K, random_rig(1).K, atol=1e-9)
    assert_refused(lambda: read_calibration(path, W, H), "camera 0", "320 × 240", "expected 640 × 480 as given")


def test_blender(tmp_path):
    "K by the projection of two points at the edges of the field of view."
    angle = .6911112070083618
    frame = dict(file_path="./train/r_0", rotation=.0126, transform_matrix=np.eye(4).tolist())
    path = save(tmp_path/"transforms_train.json", json.dumps(dict(camera_angle_x=angle, frames=[frame, frame])))
    rig = read_calibration(path, 800, 600)
    edge = np.tan(angle/2)
    pixels = rig.project(torch.tensor([[edge, 0, -1], [-edge, edge*600/800, -1.]]).double())[0]
    assert torch.allclose(pixels, torch.tensor([[800., 300], [0, 0]]).double())
    assert rig.unit == "model" and rig.names == ("r_0", "r_0")
    assert_refused(lambda: read_calibration(path), "give width and height")


def test_blender_folder(tmp_path):
    "The size that the file does not hold is that of the images, and `file_path` has no suffix."
    frames = []
    for i in range(2):
        c2w = np.eye(4)
        c2w[:3, 3] = i, 0, 4
        frames.append(dict(file_path=f"./train/r_{i}", rotation=.0126, transform_matrix=c2w.tolist()))
        rgba = np.zeros((60, 80, 4), np.uint8)
        rgba[20:40, 30:50] = 200
        (tmp_path/"train").mkdir(exist_ok=True)
        Image.fromarray(rgba).save(tmp_path/f"train/r_{i}.png")
    save(tmp_path/"transforms.json", json.dumps(dict(camera_angle_x=.69, frames=frames)))
    cameras = read_sample(tmp_path).cameras
    assert (cameras.width, cameras.height, cameras.unit) == (80, 60, "model")
    assert np.allclose(cameras.K[1], [[40/np.tan(.345), 0, 40], [0, 40/np.tan(.345), 30], [0, 0, 1]])


def test_a_sample_from_windows(tmp_path):
    "Its JSON begins with a byte-order mark."
    alpha = torch.zeros(2, 16, 16)
    alpha[:, 4:12, 4:12] = 1
    views = Views(torch.ones(2, 16, 16, 3), alpha, facelift_rig(16, n=2))
    file = write_sample(views, tmp_path/"sample")/"opencv_cameras.json"
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert torch.allclose(read_sample(tmp_path/"sample").cameras.w2c.float(), views.cameras.w2c.float())


# ---- files of several tools in folders ----
def test_easymocap_folder(tmp_path):
    rig = random_rig(4, 5)
    folder = write_calibration(rig, tmp_path/"rec", "EasyMocap")
    assert len(find_rigs(folder)) == 1
    for path in (folder, folder/"intri.yml", folder/"extri.yml"): assert_same(read_calibration(path, unit="mm"), rig)
    (folder/"extri.yml").rename(tmp_path/"extri.yml")
    assert_refused(lambda: read_calibration(folder), "extri.yml was looked for", exc=FileNotFoundError)
    assert_refused(lambda: read_calibration(folder/"intri.yml"), "extri.yml was looked for", exc=FileNotFoundError)
    assert_refused(lambda: read_calibration(tmp_path/"extri.yml"), "intri.yml was looked for", exc=FileNotFoundError)


def test_easymocap_by_opencv(tmp_path):
    "cv2.FileStorage reads what is written."
    rig = random_rig(4, 2)
    folder = write_calibration(rig, tmp_path/"rec", "EasyMocap")
    intri, extri = (cv2.FileStorage(str(folder/f"{part}.yml"), cv2.FileStorage_READ) for part in ("intri", "extri"))
    points = np.array([[52., 40, 70], [60, 55, 66]])
    for i, name in enumerate(rig.names):
        matrices = [intri.getNode(f"{key}_{name}").mat() for key in ("K", "dist")]
        pose = [extri.getNode(f"{key}_{name}").mat() for key in ("R", "T")]
        by_opencv = cv2.projectPoints(points, *pose, *matrices)[0][:, 0]
        x = rig[i].to_camera(torch.from_numpy(points))[0]
        assert np.abs(rig.lens[i].project((x[:, :2]/x[:, 2:])[None])[0].numpy() - .5 - by_opencv).max() < 1e-6


def test_jarvis_folder(tmp_path):
    rig = random_rig(5, 11)
    folder = write_calibration(rig, tmp_path/"calibration", "JARVIS")
    found = read_calibration(tmp_path, W, H, "mm") # the folder `calibration` of a recording
    order = [rig.names.index(name) for name in found.names]
    assert found.names == tuple(f"view_{i}" for i in range(11)) # 2 before 10
    assert_same(found, rig[order])
    file = folder/"view_3.yaml"
    numbers = rig.lens.K[rig.names.index("view_3")].numpy() - [[0, 0, .5], [0, 0, .5], [0, 0, 0]]
    storage = cv2.FileStorage(str(file), cv2.FileStorage_READ)
    stored = storage.getNode("intrinsicMatrix").mat()
    assert np.abs(stored - numbers.T).max() < 1e-9
    upright = ", ".join(map(repr, numbers.ravel().tolist()))
    text = file.read_text()
    start = text.index("data: [") + len("data: [")
    file.write_text(text[:start] + upright + text[text.index("]", start):])
    assert_refused(lambda: read_calibration(tmp_path, W, H), "view_3.yaml", "transposed")


def test_json_per_camera(tmp_path):
    rig = random_rig(6, 4)
    write_calibration(rig, tmp_path/"all.json", "OpenCV JSON")
    content = json.loads((tmp_path/"all.json").read_text())
    for camera in content["cameras"]:
        save(tmp_path/"rec"/f"{camera['name']}.json", json.dumps(camera | dict(image_width=W, image_height=H)))
    found = read_calibration(tmp_path/"rec", unit="mm")
    assert_same(found, rig[[rig.names.index(name) for name in found.names]])
    save(tmp_path/"rec"/"all.json", (tmp_path/"all.json").read_bytes())
    assert_refused(lambda: read_calibration(tmp_path/"rec"), "found cameras in all.json")


def test_panoptic_json(tmp_path):
    "CMU Panoptic's keys: distCoef, resolution, t; its unit is the centimetre, so there is a note."
    rig = random_rig(6, 4)
    cameras = [dict(name=f"00_0{i}", type="hd", resolution=[W, H], panel=0, node=i, distCoef=camera["dist"],
                    K=camera["K"], R=camera["R"], t=[[x/10] for x in camera["T"]])
               for i, camera in enumerate(json.loads(FORMATS["OpenCV JSON"].write(rig))["cameras"])]
    path = save(tmp_path/"calibration.json", json.dumps(dict(cameras=cameras)))
    assert_same(read_calibration(path, unit="cm"), rig)
    assert "centimetres" in read_calibration(path).reason


# ---- MATLAB ----
def test_stereo_params_in_a_folder(tmp_path):
    radial, tangential = np.array([[-.28, .11, .03]]), np.array([[.001, -.002]])
    K = np.array([[900.5, 0, 0], [1.5, 890.25, 0], [331.6, 247.1, 1]]) # MATLAB's rows, with skew
    camera = dict(IntrinsicMatrix=K, RadialDistortion=radial, TangentialDistortion=tangential,
                  ImageSize=np.array([[480, 640]]), WorldUnits="mm")
    rotation = cv2.Rodrigues(np.array([.1, .9, -.2]))[0]
    out = io.BytesIO()
    pose = dict(RotationOfCamera2=rotation.T, TranslationOfCamera2=np.array([[-200., 10, 60]]))
    savemat(out, dict(stereoParams=dict(CameraParameters1=camera, CameraParameters2=camera) | pose))
    save(tmp_path/"rec"/"stereoParams.mat", out.getvalue())
    rig = read_calibration(tmp_path/"rec")
    assert (rig.format, rig.unit, rig.width, rig.height) == ("MATLAB stereo", "mm", 640, 480)
    assert rig.lens.distortion[1].tolist() == [-.28, .11, .001, -.002, .03]
    assert rig.lens.K[0].tolist() == [[900.5, 1.5, 331.1], [0, 890.25, 246.6], [0, 0, 1]]
    assert np.abs(rig.R[1].numpy() - rotation).max() < 1e-12 and rig.t[1].tolist() == [-200, 10, 60]
    assert_refused(lambda: write_calibration(rig, tmp_path/"x.mat", "MATLAB stereo"), "format should be one of")


def matlab_object(class_name):
    def padded(data): return data + bytes(-len(data) % 8)
    def element(kind, data): return struct.pack("<II", kind, len(data)) + padded(data)
    body = element(6, struct.pack("<II", 17, 0)) + element(1, b"stereoParams") + element(1, b"MCOS")
    body += element(1, class_name) + element(14, element(6, struct.pack("<II", 13, 0)))
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 256, b"IM") + element(14, body)


def test_matlab_object(tmp_path):
    save(tmp_path/"rec"/"stereoParams.mat", matlab_object(b"stereoParameters"))
    for path in (tmp_path/"rec"/"stereoParams.mat", tmp_path/"rec"):
        fragments = "stereoParams.mat", "struct(stereoParams)", "toStruct(cameraParams)"
        assert_refused(lambda p=path: read_calibration(p), *fragments)


# ---- damaged and hostile ----
GAUSSIANS = '{"width": "%s", "height": 1, "fx": 1, "fy": 1, "position": 3, "rotation": []}'
EYE = json.dumps(np.eye(3).tolist())
HOSTILE = {
    "kalibr list": ("a.yaml", "cam0:\n  intrinsics: " + "["*100000 + "\n  distortion_model: radtan\n"),
    "kalibr alias": ("a.yaml", "cam0:\n  intrinsics: &a [1]\n  distortion_model: *a\n"),
    "kalibr text": ("a.yaml", "cam0:\n  camera_model: pinhole\n  intrinsics: x\n  distortion_model: radtan\n"),
    "kalibr cameras": ("a.yaml", "cam0:\ncam1:\n  intrinsics: [1]\n  distortion_model: []\n"),
    "jarvis text": ("a.yaml", "intrinsicMatrix: 1\ndistortionCoefficients: x\nR: 3\nT: [1]\n"),
    "jarvis large": ("a.yaml", "intrinsicMatrix: [[1e300,0,0],[0,1e300,0],[1,1,1]]\n"
                     f"distortionCoefficients: [0]\nR: {EYE}\nT: [1e300, 0, 0]\n"),
    "json levels": ("a.json", '{"K": [1], "R": [1], "x": ' + "["*900 + "]"*900 + "}"),
    "json lens levels": ("a.json", '{"K": [1], "R": [1], "lens": ' + "["*900 + "]"*900 + "}"),
    "json cameras": ("a.json", '[{"K": [1], "R": [1]}, 3]'),
    "json dict of lens": ("a.json", f'{{"K": {EYE}, "R": {EYE}, "T": [0,0,1], "D": {{"k1": [[1]]}}}}'),
    "3dgs": ("a.json", f'[{GAUSSIANS % "x"}]'), "3dgs entries": ("a.json", f"[{GAUSSIANS % 1}," + "[],"*10**5 + "1]"),
    "toml caliscope": ("a.toml", "cameras = 3\n[c]\nrotation_count = 0\nmatrix = 1\nrotation = 2\ntranslation = 3\n"),
    "easymocap": ("intri.yml", "names: [[1], {a: 2}]\nK_1: 3\n"),
    "blender": ("a.json", '{"camera_angle_x": 1e999, "frames": [{"transform_matrix": 1}]}'),
}


@pytest.mark.parametrize("name, content", HOSTILE.values(), ids=HOSTILE)
def test_hostile(tmp_path, name, content):
    path = save(tmp_path/name, content)
    if name == "intri.yml": save(tmp_path/"extri.yml", "T_1: 3\nR_1: x\n")
    start = time.perf_counter()
    assert_refused(lambda: read_calibration(path, W, H), name.removesuffix("intri.yml"))
    assert time.perf_counter() - start < 20
    assert len(find_rigs(tmp_path)) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_random_matlab_heads(tmp_path, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(matlab_object(b"stereoParameters"))
    for _ in range(5): data[rng.integers(128, len(data))] = rng.integers(256)
    assert not is_rig(save(tmp_path/"a.mat", bytes(data[:rng.integers(100, len(data))])), W, H)
