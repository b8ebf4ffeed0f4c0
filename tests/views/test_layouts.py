"Folders of other labs: each layout is built with tiny videos, and every camera must get its own video, mask and pose."
import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fastcore import test as fastcore_test
from PIL import Image
from scipy.io import savemat

from gslrm_mouse import cli
from gslrm_mouse.calibration.formats import write_calibration
from gslrm_mouse.calibration.rig import Rig
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.doctor.evidence import read_evidence
from gslrm_mouse.masks import make
from gslrm_mouse.masks.imported import SeveralLabelsError, read_coco, read_png
from gslrm_mouse.masks.make import import_animals, import_masks, make_masks
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.video import decode_frame, video_info, write_video
from gslrm_mouse.views import recordings
from gslrm_mouse.views.recordings import camera_number, fingerprint_of_source, is_recording, open_moments
from gslrm_mouse.views.recordings import open_recording, read_views

W, H, N = 48, 40, 3 # pixels, frames
GREY = (60, 120, 180) # of each camera's video
CAMS = mouse_rig()[:3].resized(W, H)


def rig(names=(), order=(2, 0, 1)):
    "In a file's order, which is not that of the videos."
    return Rig(CAMS.K, CAMS.w2c, W, H, "mm", names=names)[list(order)]


def film(camera): return np.full((N, H, W, 3), GREY[camera], np.uint8)


def masks(camera): # a box, elsewhere in each camera
    boxes = np.zeros((N, H, W), np.uint8)
    boxes[:, 8:24, 6 + 8*camera:20 + 8*camera] = 255
    return boxes


def write(path, frames, codec=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if codec is None: return write_video(path, frames, 20)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(20))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"bf": "2", "b_strategy": "0"} if codec == "mpeg4" else {}
        for frame in frames: container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def lay_out(folder, videos, mask_videos, first=1, codec=None):
    "Videos and masks under these names, {n} being the camera's number and {letter} its letter."
    for camera in range(3):
        fields = dict(n=first + camera, letter="ABC"[camera])
        write(folder/videos.format(**fields), film(camera), codec)
        write(folder/mask_videos.format(**fields), masks(camera))
    return folder


def check(recording, matched="name"):
    "Every camera has its own video, mask and pose."
    assert recording.matched == matched and recording.n_frames == N
    assert torch.allclose(recording.cameras.w2c, CAMS.w2c.double(), atol=1e-6)
    assert torch.allclose(recording.cameras.K, CAMS.K.double(), atol=1e-4)
    views = recording.frame(1)
    for camera, (image, alpha) in enumerate(zip(views.images, views.alpha)):
        inside = torch.from_numpy(masks(camera)[0] > 0)
        assert ((alpha > .5) == inside).all()
        assert abs(255*image[inside].mean() - GREY[camera]) < 4


# ---- layouts ----
def dannce(folder):
    "One MATLAB file per camera: points are rows, the first pixel is (1, 1)."
    lay_out(folder, "videos/Camera{n}/0.mp4", "masks/{n}.mp4")
    (folder/"calibration").mkdir()
    for camera in range(3):
        K, w2c = CAMS.K[camera].numpy().copy(), CAMS.w2c[camera].numpy()
        K[:2, 2] += .5
        values = dict(K=K.T, r=w2c[:3, :3].T, t=w2c[None, :3, 3], RDistort=np.zeros((1, 2)), TDistort=np.zeros((1, 2)))
        savemat(folder/f"calibration/hires_cam{camera + 1}_params.mat", values)
    return folder


def anipose_letters(folder):
    lay_out(folder, "videos-raw/trial-cam{letter}.avi", "masks/trial-cam{letter}.mp4", codec="mjpeg")
    (folder/"calibration").mkdir()
    write_calibration(replace(rig(), names=("C", "A", "B")), folder/"calibration/calibration.toml")
    return folder


PAGE = Path(__file__).parents[2]/"nbs/views/03_recordings.ipynb"


def cells_by_heading(page): # {heading: source of the code cell below it}
    heading, found = None, {}
    for cell in json.loads(page.read_text())["cells"]:
        source = "".join(cell["source"])
        if source.startswith("##"):
            heading = source.splitlines()[0].lstrip("# ")
        elif cell["cell_type"] == "code":
            found.setdefault(heading, source)
    return found


def example(name):
    "Function of a folder that runs the page's example there, on a recording of which every camera is its own."
    def build(tmp):
        layouts = cells_by_heading(PAGE)
        folder = lay_out(tmp/"of_mammal", "videos_undist/{n}.mp4", "simpleclick_undist/{n}.mp4", first=0)
        write_calibration(rig(order=(0, 1, 2)), folder/"new_cam.pkl")
        page = vars(fastcore_test) | vars(recordings) | dict(write_calibration=write_calibration, shutil=shutil)
        page |= dict(recording=open_recording(folder), tmp=tmp)
        exec(layouts["Folders of other tools"], page)
        if LAYOUTS[name][0] == "name":
            page["named"] = page["named"][[2, 0, 1]]
        exec(layouts[name], page)
        return page["opened"].path
    return build


LAYOUTS = { # example of the page: how the cameras are matched, what the sentence says
    "MAMMAL": ("position", "3 videos (videos_undist/0.mp4 …), masks (simpleclick_undist/0.mp4 …), MAMMAL's"),
    "Any tool": ("name", "3 videos (videos/0.mp4 …), masks (masks/0.mp4 …), COLMAP's calibration"),
    "DANNCE": ("name", "(videos/Camera1/0.mp4 …), masks (masks/1.mp4 …), DANNCE's calibration in label3d_dannce.mat"),
    "Pose Splatter": (
        "position", "(Camera1/0.mp4 …), masks (mask_videos/1.mp4 …), Pose Splatter's calibration in camera_params.h5"),
    "Anipose": (
        "name", "(videos-raw/2026-01-01_cam1.mp4 …), masks (masks/1.mp4 …), Anipose's calibration in calibration.toml"),
    "Lightning Pose": ("name", "(session_cam0.mp4 …), masks (masks/0.mp4 …), Anipose's calibration in session.toml"),
}
VARIANTS = {
    dannce: ("name", "3 videos (videos/Camera1/0.mp4 …), masks (masks/1.mp4 …), DANNCE's calibration in calibration ("),
    anipose_letters: ("name", "(videos-raw/trial-camA.avi …), masks (masks/trial-camA.mp4 …)"),
}
ALL_LAYOUTS = {example(name): expected for name, expected in LAYOUTS.items()} | VARIANTS


def test_each_row_of_the_table_has_an_example():
    table = [line for line in PAGE.read_text().splitlines() if re.match(r' *"\| [A-Za-z ]+ \|', line)]
    rows = [line.split("|")[1].strip() for line in table[1:]]
    assert rows and {row.lower() for row in rows} == {name.lower() for name in LAYOUTS}


@pytest.mark.parametrize("build", ALL_LAYOUTS, ids=[*LAYOUTS, *(build.__name__ for build in VARIANTS)])
def test_layouts(tmp_path, build):
    matched, says = ALL_LAYOUTS[build]
    folder = build(tmp_path/"rec")
    assert is_recording(folder)
    recording = open_recording(folder, "mm")
    check(recording, matched)
    assert says in recording.describe()
    assert torch.equal(read_views(folder, 1, "mm").alpha, recording.frame(1).alpha)
    assert len(fingerprint_of_source(folder)) >= 7 # three videos, three masks, a calibration


@pytest.mark.parametrize("suffix", [".MP4", ".mov", ".mkv", ".avi"])
def test_containers(tmp_path, suffix):
    lay_out(tmp_path, "videos/{n}" + suffix, "masks/{n}.mp4", codec="mjpeg" if suffix == ".avi" else "libx264")
    write_calibration(rig(order=(0, 1, 2)), tmp_path/"new_cam.pkl")
    check(open_recording(tmp_path), "position")


def test_avi_with_reordered_frames(tmp_path):
    moving = np.stack([np.full((H, W, 3), 20*i, np.uint8) for i in range(10)])
    write(tmp_path/"0.avi", moving, "mpeg4")
    with pytest.raises(ValueError, match="avi file with B-frames .* remux"): video_info(tmp_path/"0.avi")
    write(tmp_path/"1.avi", moving, "mjpeg")
    for i in (7, 2, 9): assert abs(decode_frame(tmp_path/"1.avi", i).mean() - 20*i) < 4


def test_sizes_come_from_the_videos(tmp_path):
    "Pose Splatter's file holds none."
    folder = example("Pose Splatter")(tmp_path)
    recording = open_recording(folder)
    assert recording.cameras.size_text == f"{W} × {H} px"


@pytest.mark.parametrize("name, number", [
    ("Camera1", 1), ("session_cam0", 0), ("2026-01-01-vid2-camB", 2), ("view_12", 12), ("cam-3", 3), ("webcam4", None),
    ("camera", None), ("turntable", None), ("cam1_old", None), ("0", None)])
def test_camera_number(name, number): assert camera_number(name) == number


def test_results_are_no_recordings(tmp_path):
    for name in ("turntable.mp4", "film.mp4", "frame_000001/turntable.mp4"): write(tmp_path/name, film(0))
    assert not is_recording(tmp_path) and not is_recording(tmp_path/"film.mp4")


# ---- what is ambiguous is said ----
def test_parts_and_sessions(tmp_path):
    folder = dannce(tmp_path/"parts")
    write(folder/"videos/Camera1/3000.mp4", film(0))
    with pytest.raises(ValueError, match=r"same number among Camera1/0.mp4, Camera1/3000.mp4.*join the parts"):
        open_recording(folder)
    folder = example("Lightning Pose")(tmp_path/"sessions")
    write(folder/"other_cam1.mp4", film(1))
    with pytest.raises(ValueError, match="a folder of its own"): open_recording(folder)


def test_rig_file(tmp_path):
    folder = dannce(tmp_path/"rec")
    other = replace(CAMS, w2c=CAMS.w2c.flip(0))
    write_calibration(other, folder/"label3d_dannce.mat")
    with pytest.raises(ValueError, match="2 are there, .* choose one: --rig FILE"): open_recording(folder)
    check(open_recording(folder, "mm", rig_file=folder/"calibration"))
    chosen = open_recording(folder, "mm", rig_file=folder/"label3d_dannce.mat")
    assert torch.allclose(chosen.cameras.w2c, other.w2c.double(), atol=1e-6)
    _, read = open_moments(folder, unit="mm", rig_file=folder/"calibration")
    assert torch.allclose(next(read([0])).cameras.w2c, CAMS.w2c.double(), atol=1e-6)
    evidence = read_evidence(folder, unit="mm", rig_file=folder/"label3d_dannce.mat")
    assert "DANNCE's calibration in label3d_dannce.mat" in evidence.says
    assert torch.equal(evidence.cameras.w2c, chosen.cameras.w2c)
    with pytest.raises(FileNotFoundError, match="nowhere"): open_recording(folder, rig_file=folder/"nowhere.toml")
    with pytest.raises(ValueError, match="no recording"): open_moments(tmp_path, rig_file=folder/"calibration")


def test_rig_file_of_the_command(tmp_path, capsys):
    folder = dannce(tmp_path/"rec")
    write_calibration(CAMS, folder/"label3d_dannce.mat")
    with pytest.raises(SystemExit) as e: cli.main(["doctor", str(folder), "--unit", "mm"])
    assert e.value.code == 3 and "--rig FILE" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        cli.main(["doctor", str(folder), "--unit", "mm", "--rig", str(folder/"label3d_dannce.mat")])
    assert e.value.code in (0, 1) and "videos/Camera1/0.mp4" in capsys.readouterr().out


# ---- masks of other tools ----
@pytest.fixture
def raw(tmp_path): # without masks
    for camera in range(3): write(tmp_path/f"rec/videos/{camera}.mp4", film(camera))
    write_calibration(rig(order=(0, 1, 2)), tmp_path/"rec/new_cam.pkl")
    return tmp_path/"rec"


def save_labels(folder, values=(3, 7), first=0):
    "Palette PNG of two animals: the box, and a bar below it."
    for camera in range(3):
        for i, mask in enumerate(masks(camera)):
            labels = np.where(mask > 0, np.uint8(values[0]), np.uint8(0))
            labels[30:36, 10:40] = values[1]
            image = Image.frombytes("P", (W, H), labels.tobytes())
            image.putpalette([0, 0, 0]*8)
            (folder/str(first + camera)).mkdir(parents=True, exist_ok=True)
            image.save(folder/f"{first + camera}/{i:05d}.png")
    return folder


def check_animals(folders, matched="position"):
    "One recording shows the boxes, the other the bars, both the same videos and cameras."
    box_folder, bar_folder = folders
    assert (box_folder.name, bar_folder.name) == ("3", "7")
    check(open_recording(box_folder, "mm"), matched)
    bars = open_recording(bar_folder, "mm")
    assert torch.equal(bars.cameras.w2c, open_recording(box_folder, "mm").cameras.w2c) and bars.matched == matched
    is_bar = torch.zeros(3, H, W, dtype=torch.bool)
    is_bar[:, 30:36, 10:40] = True
    assert all(((views.alpha > .5) == is_bar).all() for views in bars.frames())


def test_one_of_two_animals(raw, tmp_path):
    labels = save_labels(tmp_path/"labels")
    with pytest.raises(SeveralLabelsError, match="the labels 3, 7 were found.*animal=LABEL.*import_animals"):
        import_masks(raw, labels)
    with pytest.raises(ValueError, match="label 4 was looked for, and the labels 3, 7"):
        import_masks(raw, labels, animal=4)
    assert not (raw/"masks").exists()
    import_masks(raw, labels, animal=3)
    check(open_recording(raw), "position")
    import_masks(raw, labels, animal=0, overwrite=True)
    both = open_recording(raw).frame(0).alpha > .5
    assert both[:, 32, 20].all() and both[0, 10, 8] and both[2, 10, 24]


def files_below(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def test_a_recording_for_each_animal(raw, tmp_path, capsys):
    labels = str(save_labels(tmp_path/"labels"))
    before = files_below(raw)
    cli.main(["masks", str(raw), "--source", labels])
    out = capsys.readouterr().out
    assert f"2 animals, a recording for each: {raw/'animals/3'}, {raw/'animals/7'}" in out
    assert out.count("camera 0:") == 2
    check_animals(sorted((raw/"animals").iterdir()))
    assert all((raw/"animals"/name).is_symlink() for name in ("3/videos/2.mp4", "7/videos/0.mp4", "7/new_cam.pkl"))
    assert [name for name in files_below(raw) if not name.startswith("animals/")] == before
    assert files_below(raw/"animals/3/masks") == ["0.mp4", "1.mp4", "2.mp4", "masks.json", "masks.png"]
    assert len(fingerprint_of_source(raw/"animals/3")) == 7
    assert read_evidence(raw/"animals/7").path == raw/"animals/7"
    (raw/"animals").rename(raw/"moved") # as deep as before
    check_animals(sorted((raw/"moved").iterdir()))

    cli.main(["masks", str(raw), "--source", labels, "--animal", "3"])
    assert "animals" not in capsys.readouterr().out and not (raw/"animals").exists()
    check(open_recording(raw), "position")


@pytest.mark.parametrize("name, first", [("Any tool", 0), ("Pose Splatter", 1), ("Anipose", 1), ("Lightning Pose", 0)])
def test_animals_of_each_layout(tmp_path, name, first):
    "The calibration lies in a folder below, as one file, in a folder above."
    folder = example(name)(tmp_path/"rec")
    labels = save_labels(tmp_path/"labels", first=first)
    check_animals(import_animals(folder, labels, tmp_path/"two", unit="mm"), LAYOUTS[name][0])


def test_animals_are_replaced_only_where_nothing_else_is(raw, tmp_path):
    labels = save_labels(tmp_path/"labels")
    folders = import_animals(raw, labels)
    with pytest.raises(FileExistsError, match="animals exists and was not touched"):
        import_animals(raw, labels)
    save_labels(labels, (3, 9))
    assert [folder.name for folder in import_animals(raw, labels, overwrite=True)] == ["3", "9"]
    assert not (raw/"animals/7").exists() and (raw/"videos/0.mp4").is_file()
    (raw/"animals/3/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds more than masks"):
        import_animals(raw, labels, overwrite=True)
    for folder in (raw, raw/"videos", raw.parent):
        with pytest.raises(ValueError, match="holds more than masks"):
            import_animals(raw, labels, folder, True)
    assert (raw/"videos/0.mp4").is_file() and len(folders) == 2


def test_all_animals_or_none(raw, tmp_path, monkeypatch):
    labels = save_labels(tmp_path/"labels")
    before = files_below(raw)
    for i in range(N):
        image = Image.open(labels/f"1/{i:05d}.png")
        image.point(lambda x: x*(x == 3)).save(labels/f"1/{i:05d}.png")
    with pytest.raises(ValueError, match="camera 1: label 7 was looked for.*animal 7 of 3, 7; --animal LABEL"):
        import_animals(raw, labels)
    assert files_below(raw) == before

    def interrupted(*args, animal, **options):
        if animal == 7: raise KeyboardInterrupt
        return import_masks(*args, animal=animal, **options)
    monkeypatch.setattr(make, "import_masks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_animals(raw, save_labels(labels))
    assert files_below(raw) == before


def save_coco(file, animals):
    "COCO of the three cameras: label of an animal: rows of its bar."
    images, annotations = [], []
    for camera in range(3):
        for i in range(N):
            images.append(dict(id=10*camera + i, file_name=f"cam_{camera}/{i}.jpg"))
            for label, (top, bottom) in animals.items():
                inside, below = bottom - top, H - bottom
                counts = [top, inside] + [below + top, inside]*(W - 1) + [below]
                bar = dict(size=[H, W], counts=counts)
                annotations.append(dict(image_id=10*camera + i, track_id=label, segmentation=bar))
    file.write_text(json.dumps(dict(images=images, annotations=annotations)))
    return file


def test_animals_of_coco(raw, tmp_path):
    "A label 0 is one animal, not all of them."
    animals = {0: (2, 9), 12: (20, 31), "mouse b": (33, 37)}
    folders = import_animals(raw, save_coco(tmp_path/"coco.json", animals))
    assert {folder.name for folder in folders} == {"0", "12", "mouse b"}
    for label, (top, bottom) in animals.items():
        alpha = open_recording(raw/"animals"/str(label)).frame(1).alpha > .5
        assert alpha[:, top:bottom].all() and alpha.sum() == 3*W*(bottom - top)
    for label in ("../away", "", "a/b", "x"*99):
        file = save_coco(tmp_path/"coco.json", {1: (2, 9), label: (20, 31)})
        with pytest.raises(ValueError, match="no name of a folder"):
            import_animals(raw, file, tmp_path/"out")
    assert not (tmp_path/"out").exists() and not (tmp_path/"away").exists()
    with pytest.raises(ValueError, match="labels of several animals were looked for, none was found"):
        import_animals(raw, raw/"videos", tmp_path/"out")


def test_masks_never_replace_the_videos(raw, tmp_path):
    labels = save_labels(tmp_path/"labels")
    with pytest.raises(ValueError, match="holds the videos"):
        import_masks(raw, labels, raw/"videos", overwrite=True, animal=3)
    with pytest.raises(ValueError, match="holds the videos"):
        make_masks(raw, None, raw/"videos", overwrite=True)
    assert video_info(raw/"videos/0.mp4").frames == N and decode_frame(raw/"videos/0.mp4", 0).mean() > 50


def test_hidden_images_are_no_masks(raw, tmp_path):
    "As macOS leaves them beside the files on other drives."
    labels = save_labels(tmp_path/"labels")
    (labels/"0/._00000.png").write_bytes(b"Mac OS X")
    import_masks(raw, labels, animal=3)
    check(open_recording(raw), "position")


def test_another_animal_in_a_later_frame(raw, tmp_path):
    "Each image has one label, and they differ."
    folder = save_labels(tmp_path/"labels", (3, 3))
    image = Image.open(folder/"1/00002.png")
    image.point(lambda x: 5*(x > 0)).save(folder/"1/00002.png")
    with pytest.raises(ValueError, match="the labels 3, 5 were found"): import_masks(raw, folder)


def test_labels_of_an_image_without_labels(tmp_path):
    Image.fromarray(masks(0)[0]).save(tmp_path/"0.png")
    assert read_png(tmp_path/"0.png", W, H).any()
    with pytest.raises(ValueError, match="one mask without labels, and label 2"): read_png(tmp_path/"0.png", W, H, 2)


@pytest.mark.parametrize("key", ["track_id", "category_id"])
def test_coco_of_two_animals(tmp_path, key):
    images = [dict(id=i, file_name=f"cam_0/{i}.jpg") for i in range(2)]
    annotations = [dict(image_id=i, segmentation=f"{i} {animal}") | {key: animal} for i in (0, 1) for animal in (1, 2)]
    if key == "track_id": annotations = [x | dict(category_id=1) for x in annotations]
    file = tmp_path/"coco.json"
    file.write_text(json.dumps(dict(images=images, annotations=annotations)))
    with pytest.raises(ValueError, match="the labels 1, 2 were found"): read_coco(file)
    with pytest.raises(ValueError, match="label 3 was looked for.*found 1, 2"): read_coco(file, animal=3)
    assert read_coco(file, animal=2) == {0: {0: ["0 2"], 1: ["1 2"]}}
    assert read_coco(file, animal=0)[0][1] == ["1 1", "1 2"]


def test_masks_that_are_videos(raw, tmp_path):
    def in_colour(camera): return masks(camera)[..., None].repeat(3, -1)
    for camera in range(3): write(tmp_path/f"in/Camera{camera}/0.mkv", in_colour(camera), "libx264")
    with pytest.raises(ValueError, match="no labels, and label 2"): import_masks(raw, tmp_path/"in", animal=2)
    import_masks(raw, tmp_path/"in")
    check(open_recording(raw), "position")
    write(tmp_path/"in/Camera1/0.mkv", in_colour(1)[:2], "libx264")
    with pytest.raises(ValueError, match="has 2 frames of 48 × 40 px, its camera's video 3"):
        import_masks(raw, tmp_path/"in", overwrite=True)


def test_images_where_videos_belong(raw, tmp_path):
    "The sentence holds the command, and the command cures it."
    save_labels(raw/"masks", (3, 3))
    with pytest.raises(FileNotFoundError, match="gslrm_mouse masks .* --source .*masks --out .*mask_videos"):
        open_recording(raw)
    import_masks(raw, raw/"masks", raw/"mask_videos")
    recording = open_recording(raw)
    assert {Path(file).parent.name for file in recording.masks.values()} == {"mask_videos"}


def test_every_image_that_a_sample_names_is_part_of_its_fingerprint(tmp_path):
    (tmp_path/"images").mkdir()
    images = [tmp_path/"images"/name for name in ("a.webp", "b.png", "c.jpg")]
    for image in images:
        Image.new("RGB", (4, 4)).save(image)
    names = ["images/a", "images\\b.png", "images/c.jpg", "../elsewhere.png", None, "images/none.png"]
    frames = [dict(file_path=name) for name in names]
    (tmp_path/"opencv_cameras.json").write_text(json.dumps(dict(frames=frames)))
    before = fingerprint_of_source(tmp_path)
    assert set(before) == {"opencv_cameras.json", "images/a.webp", "images/b.png", "images/c.jpg"}
    for image in images:
        Image.new("RGB", (4, 4), "red").save(image)
        after = fingerprint_of_source(tmp_path)
        name = f"images/{image.name}"
        assert after[name] != before[name]


def test_a_changed_model_below_a_chosen_folder_is_noticed(tmp_path):
    recording = write_recording(tmp_path/"rec", 2, seed=4, cams=mouse_rig().resized(96, 85), truth=False)
    project = tmp_path/"project"
    for mm in (0., 40.):
        cams = mouse_rig().resized(96, 85)
        w2c = cams.w2c.clone()
        w2c[:, 2, 3] += mm
        shutil.rmtree(project, ignore_errors=True)
        (project/"sparse").mkdir(parents=True)
        write_calibration(replace(cams, w2c=w2c), project/"sparse/0")
        state = fingerprint_of_source(recording, rig_file=project)
        assert any("sparse/0" in name for name in state)
        if mm == 0.:
            before = state
    assert state != before
