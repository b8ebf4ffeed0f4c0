"Rigs whose images differ in size: every number is that of a rig of one size, of which some images were cut."
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from gslrm_mouse.calibration.formats import read_calibration, write_calibration
from gslrm_mouse.calibration.rig import Rig
from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.lens import Lens
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.doctor.checks import search_corrections
from gslrm_mouse.doctor.diagnosis import diagnose
from gslrm_mouse.doctor.evidence import shrink_views
from gslrm_mouse.masks.make import make_masks, write_mask_video
from gslrm_mouse.metrics import image_scores
from gslrm_mouse.gaussians.rasterize import render
from gslrm_mouse.preprocess.canonical import canonicalize, cropped
from gslrm_mouse.preprocess.dataset import preprocess_dataset
from gslrm_mouse.preprocess.methods import METHODS
from gslrm_mouse.preprocess.silhouettes import border_share, com_offsets, size_ratios
from gslrm_mouse.reconstruction.frame import load_cloud
from gslrm_mouse.reconstruction.pipeline import reconstruct
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.video import video_frames, write_video
from gslrm_mouse.views.hull import hull_cover, visual_hull
from gslrm_mouse.views.recordings import open_recording, read_views
from gslrm_mouse.views.samples import read_sample, write_sample
from gslrm_mouse.views.views import check_views, pad_views, unpad_views

W, H = 288, 256
SMALL = {1: (250, 230), 4: (262, 250)} # cut on the right and below, in which the mouse stays whole
DOMAIN = replace(FACELIFT_DOMAIN, image_size=96)


def cut(views, sizes):
    "The views with some of them cut to the first pixels."
    return pad_views([cropped(v, 0, 0, *sizes.get(i, (W, H))) for i, v in enumerate(unpad_views(views))])


@pytest.fixture(scope="module")
def whole(): return raytrace(mouse_scene(3), mouse_rig().resized(W, H), 2)


@pytest.fixture(scope="module")
def two(whole): return check_views(cut(whole, SMALL))


# ---- in memory ----
def test_padding_changes_no_geometry(whole, two):
    assert two.cameras.size_text == "288 × 256 and 250 × 230 and 262 × 250 px"
    assert torch.equal(two.cameras.K, whole.cameras.K) and torch.equal(two.alpha, whole.alpha)
    a, b = visual_hull(whole), visual_hull(two)
    assert torch.equal(a.points, b.points) and torch.equal(a.iou, b.iou)
    for choose in "distance", "zoom":
        a, b = canonicalize(whole, DOMAIN, choose=choose), canonicalize(two, DOMAIN, choose=choose)
        assert torch.equal(a.views.images, b.views.images) and torch.equal(a.views.cameras.K, b.views.cameras.K)
        assert a.certificate == b.certificate and b.views.cameras.sizes is None


def test_relative_sizes_and_middles_are_those_of_each_image(two):
    alone = unpad_views(two)
    for measure in size_ratios, com_offsets:
        assert np.allclose(measure(two), [float(measure(view)[0]) for view in alone], rtol=1e-12)


@pytest.mark.parametrize("edge", ["right", "below"])
def test_a_silhouette_at_the_border_of_its_own_image_is_noticed(whole, edge):
    rows, columns = (whole.alpha[2] > .5).any(1).nonzero()[:, 0], (whole.alpha[2] > .5).any(0).nonzero()[:, 0]
    width, height = (int(x.double().mean()) for x in (columns, rows))
    size = (width, H - 6) if edge == "right" else (W - 6, height)
    views = cut(whole, {2: size})
    alone = unpad_views(views)[2]
    assert border_share(views)[2] == border_share(alone)[0] > 0 and (border_share(views)[[0, 1, 3, 4, 5]] == 0).all()
    report = canonicalize(views, DOMAIN).certificate.views
    assert report[2].at_border > .01 and all(report[i].at_border == 0 for i in (0, 1, 3, 4, 5))
    assert visual_hull(views).iou.min() > .97 # what lies beyond that border contradicts nothing
    points = hull_cover(views).corners().flatten(0, 1)
    seen = visual_hull(whole).points # of the whole animal
    assert (points.amin(0) <= seen.amin(0)).all() and (points.amax(0) >= seen.amax(0)).all()
    padded = replace(views, cameras=replace(views.cameras, sizes=None)) # as if the padding were background
    assert canonicalize(padded, DOMAIN).certificate.views[2].at_border == 0
    assert visual_hull(padded).iou.min() < .95


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_see_each_image_by_itself(two, name):
    "The images that a method makes of each view alone, where it treats them one by one."
    made = METHODS[name](two, DOMAIN)
    assert made.views.cameras.sizes is None and made.views.images.shape == (6, 96, 96, 3)
    if name not in ("mm", "converted"): return
    for i in range(6):
        alone = METHODS[name](pad_views([unpad_views(two)[i]]*2), DOMAIN, center=torch.zeros(3))
        assert torch.allclose(alone.views.images[0], made.views.images[i], atol=2e-5)
        assert torch.allclose(alone.views.cameras.K[0], made.views.cameras.K[i])


def test_mistakes_are_undone_in_each_image(two):
    "Mirrored images, each about its own middle; small images keep the ratio of the sizes."
    mirrored = pad_views([replace(v, images=v.images.flip(2), alpha=v.alpha.flip(2)) for v in unpad_views(two)])
    assert search_corrections(mirrored).correction.name == "flipped"
    small = shrink_views(two, 144)
    assert small.cameras.size_text == "144 × 128 and 125 × 115 and 131 × 125 px"


# ---- lenses ----
def barrel(rig, sizes):
    n = len(rig)
    distortion = torch.tensor([[-.25, .08, .003, -.002, .01]], dtype=torch.float64)*torch.linspace(.6, 1, n)[:, None]
    K = rig.K.double()
    return Rig(K, rig.w2c.double(), W, H, "mm", sizes=sizes, lens=Lens(K, distortion, W, H, sizes=sizes),
               names=tuple(f"view{i}" for i in range(n)))


def test_lenses_of_two_sizes_by_opencv():
    sizes = torch.tensor([SMALL.get(i, (W, H)) for i in range(6)])
    rig = barrel(mouse_rig().resized(W, H), sizes)
    images = torch.rand(6, H, W, 1, generator=torch.Generator().manual_seed(0))
    undistorted = rig.undistort(images)
    for v, (width, height) in enumerate(sizes.tolist()):
        K = rig.K[v].numpy() - [[0, 0, .5], [0, 0, .5], [0, 0, 0]]
        own = images[v, :height, :width, 0].numpy()
        by_opencv = cv2.undistort(own, K, rig.lens.distortion[v].numpy())
        inner = np.s_[8:height - 8, 8:width - 8]
        assert np.abs(undistorted[v, :height, :width, 0].numpy() - by_opencv)[inner].max() < .05
        assert not undistorted[v, height:].any() and not undistorted[v, :, width:].any()


@pytest.mark.parametrize("name", ["rig.toml", "transforms.json", "rig.yml", "rig.xml", "colmap"])
def test_files_hold_every_size(tmp_path, name):
    rig = barrel(mouse_rig().resized(W, H), torch.tensor([SMALL.get(i, (W, H)) for i in range(6)]))
    back = read_calibration(write_calibration(rig, tmp_path/name), unit="mm")
    assert torch.equal(back.image_sizes, rig.image_sizes)
    assert [back.lens.size_of(v) for v in range(6)] == list(map(tuple, rig.image_sizes.tolist()))
    assert torch.allclose(back.K, rig.K, atol=1e-9)
    assert torch.allclose(back.lens.distortion[:, :5], rig.lens.distortion, atol=1e-12)


# ---- on disk ----
def test_a_sample_of_two_sizes(tmp_path, two):
    views = replace(two, cameras=replace(two.cameras, unit="model"))
    folder = write_sample(views, tmp_path/"sample")
    frames = json.loads((folder/"opencv_cameras.json").read_text())["frames"]
    for i, frame in enumerate(frames):
        size = SMALL.get(i, (W, H))
        assert (frame["w"], frame["h"]) == size
        with Image.open(folder/frame["file_path"]) as image: assert image.size == size
    back = read_sample(folder, unit="model")
    assert torch.equal(back.cameras.image_sizes, views.cameras.image_sizes)
    assert (back.alpha - views.alpha).abs().max() < .003 and (back.images - views.images).abs().max() < .01
    some = read_sample(folder, [4, 0], unit="model")
    assert some.cameras.image_sizes.tolist() == [[262, 250], [288, 256]]
    assert read_sample(folder, size=32, unit="model").cameras.size_text == "32 × 32 px"
    frames[4]["w"] = 300
    (folder/"opencv_cameras.json").write_text(json.dumps(dict(frames=frames)))
    with pytest.raises(ValueError, match="262 × 250 px, its camera says 300 × 250"): read_sample(folder, unit="model")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    "A recording of one size, of which the videos and masks of two cameras were cut."
    cams, folder = mouse_rig().resized(W, H), tmp_path_factory.mktemp("two")/"rec"
    write_recording(folder, 8, seed=4, cams=cams, truth=False)
    for camera, (width, height) in SMALL.items():
        for kind, write in ("videos_undist", write_film), ("simpleclick_undist", write_masks):
            file = folder/kind/f"{camera}.mp4"
            frames = [frame[:height, :width] for frame in video_frames(file)]
            file.unlink()
            write(file, frames)
    return folder


def write_film(path, frames): write_video(path, frames, 20)


def write_masks(path, frames): write_mask_video(path, [frame.mean(-1) > 127 for frame in frames], 20)


def test_a_recording_of_two_sizes(film):
    recording = open_recording(film)
    assert recording.cameras.size_text == "288 × 256 and 250 × 230 and 262 × 250 px"
    views = recording.frame(1)
    true = raytrace(mouse_scene(4), mouse_rig().resized(W, H), 2)
    for i, view in enumerate(unpad_views(views)):
        assert (view.cameras.width, view.cameras.height) == SMALL.get(i, (W, H))
        overlap = (view.alpha[0] > .5) & (true.alpha[i, :view.cameras.height, :view.cameras.width] > .5)
        assert overlap.sum() > .5*(view.alpha > .5).sum() # the mouse moves between the frames
    assert torch.allclose(views.cameras.K, mouse_rig().resized(W, H).K, atol=1e-4)
    assert recording[[4, 1]].cameras.image_sizes.tolist() == [[262, 250], [250, 230]]


@pytest.mark.parametrize("order", [range(6), (3, 0, 4, 5, 1, 2)])
@pytest.mark.parametrize("name", ["calibration.toml", "transforms.json", "rig.json"])
def test_sizes_follow_the_names(film, tmp_path, order, name):
    "Cameras in another order than the videos, in files with and without sizes."
    sizes = torch.tensor([SMALL.get(i, (W, H)) for i in range(6)])
    cams, names = mouse_rig().resized(W, H), tuple(f"cam{i}" for i in range(6))
    rig = Rig(cams.K, cams.w2c, W, H, "mm", sizes=sizes, names=names)
    folder = tmp_path/"rec"
    folder.mkdir()
    for part in "videos_undist", "simpleclick_undist": (folder/part).symlink_to(film/part)
    format = "OpenCV JSON" if name == "rig.json" else None
    path = write_calibration(rig[list(order)], folder/name, format)
    if name == "rig.json": # a file without sizes
        content = json.loads(path.read_text())
        for camera in content["cameras"]: del camera["image_width"], camera["image_height"]
        path.write_text(json.dumps(content))
    recording = open_recording(folder, "mm")
    assert recording.matched == "name" and recording.rig.names == rig.names
    assert torch.equal(recording.cameras.image_sizes, sizes) and torch.allclose(recording.cameras.K, rig.K.double())


def test_sizes_that_make_no_sense(film, tmp_path):
    folder = tmp_path/"rec"
    folder.mkdir()
    for part in "videos_undist", "simpleclick_undist": (folder/part).symlink_to(film/part)
    cams, names = mouse_rig().resized(W, H), tuple(f"cam{i}" for i in range(6))
    rig = Rig(cams.K, cams.w2c, W, H, "mm", names=names)
    write_calibration(rig, folder/"calibration.toml")
    with pytest.raises(ValueError, match="video 1 is 250 × 230 px, its camera cam1 in calibration.toml .* 288 × 256"):
        open_recording(folder)
    write_calibration(rig[:5], folder/"new_cam.pkl")
    (folder/"calibration.toml").unlink()
    with pytest.raises(ValueError, match="it holds 5 cameras, and the sizes of 6 images were given"):
        open_recording(folder)


# ---- end to end ----
def test_doctor(film, tmp_path):
    diagnosis = diagnose(film)
    assert diagnosis.status == 0 and "288 × 256 and 250 × 230 and 262 × 250 px" in diagnosis.evidence.says
    folder = tmp_path/"rec"
    folder.mkdir()
    (folder/"videos_undist").symlink_to(film/"videos_undist")
    (folder/"new_cam.pkl").symlink_to(film/"new_cam.pkl")
    without_masks = diagnose(folder)
    assert [f.name for f in without_masks.findings] == ["masks_missing"]
    assert without_masks.evidence.cameras.size_text == diagnosis.evidence.cameras.size_text
    reports = make_masks(film, out=folder/"made")
    assert all(report.agreement > .9 for report in reports)


def test_preprocess_and_reconstruct(film, tiny_checkpoint, tmp_path):
    out = tmp_path/"out"
    reconstruct(film, out, 1, inputs=5, quality="draft", checkpoint=tiny_checkpoint, turntable=False)
    records = [json.loads(line) for line in (out/"results.jsonl").read_text().splitlines()]
    novel, = (r for r in records if r["split"] == "novel")
    size = SMALL.get(novel["camera"], (W, H))
    assert (novel["width"], novel["height"]) == (size[0]//8, size[1]//8)

    truth = unpad_views(read_views(film, 1))[novel["camera"]].resized(size[0]//8, size[1]//8)
    cloud = load_cloud(out/"gaussians.ply")[0]
    score, = image_scores(*render(cloud, truth.cameras, eps2d=0.), truth.images, truth.alpha)
    assert abs(score["psnr"] - novel["psnr"]) < .01 and abs(score["iou"] - novel["iou"]) < .01
    made = preprocess_dataset(film, tmp_path/"data", "mm", [1, 2, 3], size=64)
    assert made["samples"] == 3 and read_sample(tmp_path/"data/sample_000000").cameras.size_text == "64 × 64 px"
