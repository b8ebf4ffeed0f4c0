"Stored training frames are made anew when anything that is read of their source has changed."
import shutil
from dataclasses import replace

import pytest
import torch
from gslrm_mouse.calibration.formats import write_calibration
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.training.settings import settings_from
from gslrm_mouse.training.sources import build_dataset
from gslrm_mouse.views.recordings import RIG, VIDEOS, open_recording

CAMERAS = mouse_rig().resized(144, 128)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("film")/"rec", 4, cams=CAMERAS, truth=False)


def moved(cams, mm): # every camera farther from the animal
    w2c = cams.w2c.clone()
    w2c[:, 2, 3] += mm
    return type(cams)(cams.K, w2c, cams.width, cams.height, cams.unit)


def dataset_of(recording, cache):
    dataset = dict(dataset_path=str(recording), method="mm", val_share=0., frames="0:2")
    tree = dict(model=dict(image_tokenizer=dict(image_size=32)), training=dict(dataset=dataset))
    return build_dataset(settings_from(tree), cache)


@pytest.mark.parametrize("name", ["rig.yml", "rig.xml", "camera_params.h5", "label3d_dannce.mat", RIG, "sparse/0"])
def test_a_corrected_calibration_is_not_trained_with_the_old_cameras(film, tmp_path, name):
    if name == "camera_params.h5": pytest.importorskip("h5py")
    if name == "label3d_dannce.mat": pytest.importorskip("scipy")
    recording = tmp_path/"rec"
    shutil.copytree(film, recording)
    (recording/RIG).unlink()
    facts = []
    for cams in (CAMERAS, moved(CAMERAS, 40.)):
        if (recording/name).is_dir(): shutil.rmtree(recording/name)
        (recording/name).parent.mkdir(exist_ok=True)
        write_calibration(cams, recording/name)
        dataset = dataset_of(recording, tmp_path/"cache")
        read = open_recording(recording).cameras.w2c
        assert torch.allclose(dataset.moment(0).cameras.w2c.double(), read.double(), atol=1e-3)
        facts.append(dataset.facts())
    assert facts[0] != facts[1] # a run that resumes compares them


def test_the_content_of_a_video_counts_not_its_size(film, tmp_path):
    recording = tmp_path/"rec"
    shutil.copytree(film, recording)
    before = dataset_of(recording, tmp_path/"cache")
    shutil.copy(recording/VIDEOS/"1.mp4", tmp_path/"other.mp4")
    data = bytearray((recording/VIDEOS/"1.mp4").read_bytes())
    data[-1] ^= 1
    (recording/VIDEOS/"1.mp4").write_bytes(data)
    after = dataset_of(recording, tmp_path/"cache")
    assert before.folder != after.folder and before.facts() != after.facts()


def settings_of(recording, **dataset):
    dataset = dict(dataset_path=str(recording), method="mm") | dataset
    return settings_from(dict(model=dict(image_tokenizer=dict(image_size=32)), training=dict(dataset=dataset)))


def test_a_source_for_validation_is_used_whole(film, tmp_path):
    s = settings_of(film, frames="0:2")
    source = build_dataset(s, tmp_path/"cache", path=str(film))
    assert source.held_out(9) == [0, 1, 2, 3]
    with pytest.raises(FileNotFoundError, match="^validation.dataset_path: "):
        build_dataset(s, tmp_path/"cache", path=str(tmp_path/"nowhere"))
    with pytest.raises(FileNotFoundError, match="^training.dataset.dataset_path: "):
        build_dataset(settings_of(tmp_path/"nowhere"), tmp_path/"cache")


def test_held_out_cameras_are_never_trained_on(film, tmp_path):
    with pytest.raises(ValueError, match="names all 6 cameras"):
        build_dataset(settings_of(film, heldout_cameras=list(range(6))), tmp_path/"cache")
    source = build_dataset(settings_of(film, heldout_cameras=[0], val_share=0.), tmp_path/"cache")
    five = replace(source, prepare=lambda views: source.prepare(views)[1:], folder=tmp_path/"five")
    assert len(source[0]) == 5
    with pytest.raises(ValueError, match="it has 4 views where the others have 5"):
        five[0]
