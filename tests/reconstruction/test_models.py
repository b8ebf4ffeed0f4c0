"""`reconstruct` with the other models, on narrow networks of random weights in the layout of the released files."""
import json
import pickle
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.gaussians.coarse_to_fine import foreground_crops
from gslrm_mouse.gaussians.ply import load_ply
from gslrm_mouse.gaussians.rasterize import render
from gslrm_mouse.metrics import image_scores
from gslrm_mouse.models import generator, lgm, named
from gslrm_mouse.models.lgm import LGM_DOMAIN
from gslrm_mouse.models.view_flow import ViewFlowGenerator
from gslrm_mouse.models.zero123plus import write_random_zero123plus
from gslrm_mouse.reconstruction.pipeline import reconstruct
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.views.recordings import read_views
from gslrm_mouse.views.triangulation import triangulate
from gslrm_mouse.views.views import Views

FEW_FILES = dict(turntable=False, viewer=False)
NARROW = lgm.LGMConfig(
    down=(32, 64), down_attention=(False, True), up=(64, 32), up_attention=(True, False), image_size=32)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")/"rec"
    return write_recording(folder, 1, seed=5, cams=mouse_rig().resized(144, 128), truth=False)


@pytest.fixture(scope="module")
def zero123plus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")/"zero123plus"
    write_random_zero123plus(folder)
    return folder


class Ball(generator.Zero123PlusGenerator):
    "Six views of a ball, whatever the weights: what random ones draw has no silhouette."
    def generate(self, view, seed=0): # noqa: ARG002 (as the class it stands for)
        cams = self.cameras(view)
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, self.size)]*2, indexing="ij")
        alpha = (x.square() + y.square() < .4).float().expand(len(cams), -1, -1)
        return Views(1 - .8*alpha[..., None].expand(-1, -1, -1, 3), alpha, cams)


def records(out):
    return [json.loads(line) for line in (out/"results.jsonl").read_text().splitlines()]


def test_a_generator_answers_in_the_world_of_the_rig(recording, zero123plus, tiny_checkpoint, tmp_path, monkeypatch):
    "One view is given to it, all are scored, and the answer lies where the animal is."
    monkeypatch.setattr(named, "Zero123PlusGenerator", partial(Ball, size=32, image_size=64))
    scores = reconstruct(
        recording, tmp_path/"out", checkpoint=tiny_checkpoint, model="zero123plus", weights=zero123plus, variant="1.2",
        fit=0, **FEW_FILES)
    assert set(scores) == {"input"} and len(records(tmp_path/"out")) == 6
    assert {r["arm"] for r in records(tmp_path/"out")} == {"Zero123++ 1.2 and GS-LRM"}
    middle = load_ply(tmp_path/"out"/"gaussians.ply").means.double().median(0).values
    animal = triangulate(read_views(recording, 0)).point
    assert (middle - animal).norm() < 30 # mm; of a rig of 600 mm, by its masks
    assert "the masks of 6 views" in (tmp_path/"out"/"cameras.txt").read_text()


def test_a_generators_answer_is_registered_by_all_masks(recording, zero123plus, tiny_checkpoint, tmp_path, monkeypatch):
    "As calibrated, the ball lies 150 mm behind the animal; the masks of all cameras bring it there, before any step."
    monkeypatch.setattr(named, "Zero123PlusGenerator", partial(Ball, size=32, image_size=64))
    cams = read_views(recording, 0).cameras
    animal = triangulate(read_views(recording, 0)).point
    depth = cams[0].to_camera(animal.to(cams.w2c)[None])[0, 0, 2].item()
    monkeypatch.setattr(named, "GeneratorReconstructor", partial(generator.GeneratorReconstructor, depth=depth + 150))
    said = []
    reconstruct(
        recording, tmp_path/"out", checkpoint=tiny_checkpoint, model="zero123plus", weights=zero123plus, variant="1.2",
        fit=0, panels=False, say=said.append, **FEW_FILES)
    middle = load_ply(tmp_path/"out"/"gaussians.ply").means.double().median(0).values
    assert (middle - animal).norm() < 30 # mm
    [line] = [line for line in said if line.startswith("registered by the silhouettes of 6 cameras: moved by 1")]
    assert line in (tmp_path/"out"/"cameras.txt").read_text().splitlines()


def test_the_shipped_generator_is_opened_by_name(recording, tiny_checkpoint, tmp_path, monkeypatch):
    "It says what it is; its answer is registered, and an optimisation begins in it."
    monkeypatch.setattr(named, "ViewFlowGenerator", partial(ViewFlowGenerator, steps=1))
    said = []
    reconstruct(recording, tmp_path/"out", checkpoint=tiny_checkpoint, model="zero123plus", weights="generator_laptop",
                quality="draft", inputs=5, panels=False, say=said.append, **FEW_FILES)
    assert {r["arm"] for r in records(tmp_path/"out") if not r["split"].startswith("novel_")} == {
        "small generator (generator_laptop) and GS-LRM, draft"}
    assert any("a small network that never saw a mouse" in line for line in said)
    assert any(line.startswith("registered by the silhouettes of 5 cameras: ") for line in said)
    assert {r["start"] for r in records(tmp_path/"out")} == {"network"}


def one_camera(recording, folder, raised=0.):
    "The first camera of a recording, in a world whose floor lies higher, in mm."
    shutil.copytree(recording, folder)
    [first, *_] = pickle.loads((recording/"new_cam.pkl").read_bytes())
    up = np.array([0., 0., raised])
    first["T"] = (first["T"].reshape(3) - first["R"] @ up).reshape(first["T"].shape)
    (folder/"new_cam.pkl").write_bytes(pickle.dumps([first], protocol=4))
    for place in ("videos_undist", "simpleclick_undist"):
        for file in (folder/place).glob("[1-9].*"):
            file.unlink()
    return folder


def test_one_camera_needs_its_floor(recording, zero123plus, tiny_checkpoint, tmp_path, monkeypatch, run_command):
    "The option of the command that its own error names; the same distance as in a world whose floor is at 0."
    monkeypatch.setattr(named, "Zero123PlusGenerator", partial(Ball, size=32, image_size=64))
    raised = one_camera(recording, tmp_path/"raised", raised=900.)
    def command(source, out, *more):
        return run_command(
            "reconstruct", source, "--out", tmp_path/out, "--checkpoint", tiny_checkpoint, "--model", "zero123plus",
            "--weights", zero123plus, "--variant", "1.2", "--no-fit", "--no-turntable", "--no-viewer", "--no-panels",
            *more)

    low = command(one_camera(recording, tmp_path/"one"), "a")
    high = command(raised, "b", "--floor", "900")
    assert (low.returncode, high.returncode) == (0, 0)
    assert "comes from the silhouette on a floor at height 0 mm" in low.stderr
    assert "comes from the silhouette on a floor at height 900 mm" in high.stderr
    assert "registered" not in low.stderr # one silhouette does not tell a place
    a, b = (load_ply(tmp_path/out/"gaussians.ply").means for out in "ab")
    torch.testing.assert_close(a + a.new_tensor([0., 0., 900.]), b, atol=.1, rtol=0)

    below = command(raised, "c", "--floor", "2000")
    assert below.returncode == 2 and not (tmp_path/"c").exists()
    assert "state the height of the floor" in below.stderr and "(--floor HEIGHT" in below.stderr


def test_the_floor_is_a_setting_of_generators(recording, zero123plus, tiny_checkpoint, tmp_path, monkeypatch):
    "Frames with another floor are not mixed; a folder of GS-LRM has no such entry."
    monkeypatch.setattr(named, "Zero123PlusGenerator", partial(Ball, size=32, image_size=64))
    options = dict(checkpoint=tiny_checkpoint, fit=0, frames=[0], film=False, panels=False, **FEW_FILES)
    generated = options | dict(model="zero123plus", weights=zero123plus, variant="1.2")
    reconstruct(recording, tmp_path/"out", **generated)
    with pytest.raises(ValueError, match="frames made with another floor"):
        reconstruct(recording, tmp_path/"out", floor=20., **generated)
    reconstruct(recording, tmp_path/"gslrm", **options)
    settings = json.loads((tmp_path/"gslrm"/"reconstruct.json").read_text())["settings"]
    assert not {"floor", "vae"} & settings.keys()


def test_a_damaged_folder_is_one_sentence(recording, zero123plus, tmp_path, run_command):
    damaged = shutil.copytree(zero123plus, tmp_path/"damaged")
    config = damaged/"vision_encoder"/"config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(hidden_size=13)))
    got = run_command("reconstruct", recording, "--out", tmp_path/"out", "--model", "zero123plus", "--weights", damaged,
                      "--variant", "1.2")
    assert got.returncode == 2 and str(config) in got.stderr and "Traceback" not in got.stderr


def test_a_file_without_an_encoder_names_the_option(recording, tmp_path, run_command):
    "The released sv3d_p.safetensors is reported to lack the encoder of its VAE."
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path/"sv3d_p.safetensors")
    got = run_command("reconstruct", recording, "--out", tmp_path/"out", "--model", "sv3d", "--weights",
                      tmp_path/"sv3d_p.safetensors")
    assert got.returncode == 2 and "holds no VAE encoder" in got.stderr and "(--vae FOLDER)" in got.stderr
    named_one = run_command("reconstruct", recording, "--out", tmp_path/"out", "--model", "sv3d", "--weights",
                            tmp_path/"sv3d_p.safetensors", "--vae", tmp_path/"my_vae")
    assert named_one.returncode == 2 and "my_vae" in named_one.stderr


def test_the_shipped_lgm_is_opened_by_name(recording, tiny_checkpoint, tmp_path):
    "Its file states the network, so no variant is needed; the hash of the file is a setting."
    reconstruct(recording, tmp_path/"out", checkpoint=tiny_checkpoint, model="lgm", weights="lgm_laptop", fit=0,
                panels=False, **FEW_FILES)
    assert {r["arm"] for r in records(tmp_path/"out")} == {"LGM (lgm_laptop)"}
    animal = triangulate(read_views(recording, 0)).point
    assert (load_ply(tmp_path/"out"/"gaussians.ply").means.double().median(0).values - animal).norm() < 60


def test_lgm_chooses_its_views_and_begins_the_optimisation(recording, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(named, "load_lgm", partial(lgm.load_lgm, config=NARROW))
    torch.manual_seed(0)
    save_file({name: v.contiguous() for name, v in lgm.LGM(NARROW).state_dict().items()}, tmp_path/"lgm.safetensors")
    said = []
    reconstruct(
        recording, tmp_path/"out", checkpoint=tiny_checkpoint, model="lgm", weights=tmp_path/"lgm.safetensors",
        variant="fixrot", quality="draft", inputs=5, say=said.append, **FEW_FILES)
    rows = records(tmp_path/"out")
    assert any("the model lgm was chosen" in line for line in said)
    assert not any("registered" in line for line in said) # its place is known
    assert [r["camera"] for r in rows if r["split"] == "input"] == [0, 1, 2, 4, 5]
    assert {r["start"] for r in rows} == {"network"}


def test_scores_belong_to_their_cameras_where_a_model_reorders(recording, tiny_checkpoint, tmp_path, monkeypatch):
    "LGM takes four views in an order of its own; each score is that of the camera it names."
    monkeypatch.setattr(named, "load_lgm", partial(lgm.load_lgm, config=NARROW))
    save_file({name: v.contiguous() for name, v in lgm.LGM(NARROW).state_dict().items()}, tmp_path/"lgm.safetensors")
    chosen = [round(i*6/4) for i in range(4)]
    views = read_views(recording, 0)[chosen]
    order = lgm.spread_views(views.cameras, triangulate(views).point)
    assert sorted(order) == [0, 1, 2, 3] and list(order) != [0, 1, 2, 3]
    reconstruct(
        recording, tmp_path/"out", checkpoint=tiny_checkpoint, model="lgm", weights=tmp_path/"lgm.safetensors",
        variant="original", fit=0, inputs=4, panels=False, **FEW_FILES)
    g = load_ply(tmp_path/"out"/"gaussians.ply")
    crops = foreground_crops(views, LGM_DOMAIN.image_size)
    image, alpha = render(replace(g, unit="mm"), crops.cameras, eps2d=0.)
    expected = [scores["iou"] for scores in image_scores(image, alpha, crops.images, crops.alpha)]
    rows = [r for r in records(tmp_path/"out") if r["split"] == "input"]
    assert [r["camera"] for r in rows] == chosen
    assert [r["iou"] for r in rows] == pytest.approx(expected, abs=1e-3)


def test_other_weights_do_not_continue_a_folder(recording, zero123plus, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(named, "Zero123PlusGenerator", partial(Ball, size=32, image_size=64))
    options = dict(
        checkpoint=tiny_checkpoint, model="zero123plus", weights=zero123plus, variant="1.2", fit=0, frames=[0],
        film=False, panels=False, **FEW_FILES)
    reconstruct(recording, tmp_path/"out", **options)
    reconstruct(recording, tmp_path/"out", **options)
    changed = tmp_path/"zero123plus"
    shutil.copytree(zero123plus, changed)
    index = json.loads((changed/"model_index.json").read_text())
    (changed/"model_index.json").write_text(json.dumps(index | dict(_diffusers_version="0")))
    with pytest.raises(ValueError, match="frames made with another weights"):
        reconstruct(recording, tmp_path/"out", **options | dict(weights=changed))


@pytest.mark.parametrize("options, message", [
    (dict(model="lgm"), "LGM needs weights, which are not included"),
    (dict(model="dreamer"), "there is no model 'dreamer'"),
    (dict(weights="x"), "GS-LRM takes its weights as a checkpoint"),
    (dict(model="sv3d", weights="x", choose="object"), "choose and sized are for GS-LRM"),
    (dict(floor=3.), "floor belongs to Zero123.. and SV3D; GS-LRM does not use it"),
    (dict(model="zero123plus", weights="x", variant="1.2", vae="y"), "vae belongs to SV3D; Zero123.. does not use it"),
    (dict(model="lgm", weights="lgm_laptop", variant="fixrot"), "it is known which network .* holds"),
    (dict(model="zero123plus", weights="generator"), "for generator; generator_laptop, which is shipped, needs none"),
    (dict(model="zero123plus", weights="generator_laptop", variant="1.2"), "the variant should be left out"),
])
def test_what_does_not_go_together(recording, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        reconstruct(recording, tmp_path/"out", **options)
    assert not (tmp_path/"out").exists()
