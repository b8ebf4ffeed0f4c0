"""The doctor as a user meets it: exit status, sentences, JSON. It judges what is there, not what it is called."""
import json
import pickle
import re
import shutil
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from conftest import command_process
from PIL import Image
from torch.nn.functional import max_pool2d

import gslrm_mouse.evaluation.sensitivity as sensitivity
import gslrm_mouse.models.checkpoint as checkpoint
import gslrm_mouse.reconstruction.frame as frame
from gslrm_mouse.calibration.formats import write_calibration
from gslrm_mouse.calibration.json_frames import nerfstudio_bytes
from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.pinhole import Cameras, look_at, orbit
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.doctor.checks import duplicates, explain_disagreement, silhouettes, view_order
from gslrm_mouse.doctor.diagnosis import diagnose
from gslrm_mouse.doctor.evidence import Diagnostic, Evidence
from gslrm_mouse.models.gslrm import GSLRM
from gslrm_mouse.preprocess.canonical import canonicalize
from gslrm_mouse.preprocess.silhouettes import foreground_stats
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.video import video_frames, write_video
from gslrm_mouse.views.recordings import read_views
from gslrm_mouse.views.samples import read_sample, write_sample
from gslrm_mouse.views.warp import warp_views


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")/"film"
    return write_recording(folder, 3, seed=4, cams=mouse_rig().resized(576, 512), truth=False)


@pytest.fixture
def doctor(run_command):
    return partial(run_command, "doctor")


def test_a_sound_recording_is_compatible(recording):
    got = command_process("doctor", recording, "--json") # with whatever libraries print
    content = json.loads(got.stdout)
    assert got.returncode == 0 and content["status"] == 0 and content["findings"] == [] and not got.stderr
    assert .6 < content["predicted"]["iou"] < .8
    notes = {note["name"]: note for note in content["notes"]}
    assert {"units", "origin", "coverage"} <= set(notes)
    assert all(note["note"] for note in notes.values())
    assert 300 < notes["units"]["number"] < 350


def test_a_checkpoint_of_varied_cameras_knows_the_rig(recording):
    known, varied = diagnose(recording, "gslrm_64"), diagnose(recording, "gslrm_any")
    names, more = ({note.name for note in d.notes} for d in (varied, known))
    assert {"field_of_view", "distance_spread"} <= more and not names & {"field_of_view", "distance_spread"}
    [field_of_view] = [note.number for note in known.notes if note.name == "field_of_view"]
    assert 35 < field_of_view < 39 # of the images as `reconstruct` shows them, 39° are those of the lenses
    assert {"units", "origin", "coverage"} <= names # the animal is small for both
    assert not known.findings and not varied.findings


def test_it_predicts_for_the_views_as_reconstruct_shows_them(recording):
    shown, before = diagnose(recording), diagnose(recording, choose="distance")
    assert (shown.choose, before.choose) == ("object", "distance")
    assert shown.predicted.iou > before.predicted.iou # the animal is larger in the images
    assert "zoom 1.4 to a relative size of 0.189" in shown.predicted.said
    assert "is predicted for the views as reconstruct shows them, one zoom for all." in shown.verdict
    assert "is predicted after canonicalising." in before.verdict
    assert json.loads(shown.to_json())["choose"] == "object"
    with pytest.raises(ValueError, match="'object' or 'distance', got 'coverage'"):
        diagnose(recording, choose="coverage")


def test_what_is_predicted_for_is_what_reconstruct_shows(recording, tmp_path, run_command, monkeypatch):
    presented = []

    def recorded(*args, choose, **kwargs):
        presented.append(choose)
        return canonicalize(*args, choose=choose, **kwargs)

    monkeypatch.setattr(frame, "canonicalize", recorded)
    got = run_command("reconstruct", recording, "--checkpoint", "gslrm_64", "--out", tmp_path/"r", "--no-fit",
                      "--no-turntable", "--no-panels", "--no-viewer")
    assert got.returncode == 0, got.stderr
    assert presented == [diagnose(recording, "gslrm_64").choose] == ["object"]


def test_a_sample_in_model_units_is_judged_in_the_cameras_it_has(recording, tmp_path):
    views = read_views(recording, 0)
    sample = write_sample(canonicalize(views, FACELIFT_DOMAIN, size=128).views, tmp_path/"model")
    assert diagnose(sample).choose == "distance"
    assert diagnose(sample, unit="m").choose == "object" # which `reconstruct --unit m` canonicalises


def with_short_lenses(recording, folder):
    "A copy whose calibration states focal lengths that are too short."
    shutil.copytree(recording, folder)
    rig = pickle.loads((folder/"new_cam.pkl").read_bytes())
    for camera in rig:
        camera["K"][[0, 1], [0, 1]] /= 1.5
    (folder/"new_cam.pkl").write_bytes(pickle.dumps(rig, protocol=4))
    return folder


def test_a_broken_one_will_fail(doctor, recording, tmp_path):
    folder = with_short_lenses(recording, tmp_path/"k")
    got = doctor(folder)
    assert got.returncode == 1 and "overwritten_k" in got.stdout and f"gslrm_mouse doctor {folder}" in got.stdout
    assert got.stdout.startswith("This rig will fail: other focal lengths than the lenses had.")


@pytest.mark.parametrize("name, content", [
    ("absent", None),
    ("a.json", b"{"),
    ("a.pkl", b"\x80\x04c"),
    ("a.toml", b"x = "),
    ("empty/", None),
])
def test_what_cannot_be_read_has_a_status_of_its_own(doctor, tmp_path, name, content):
    if name.endswith("/"): (tmp_path/name).mkdir()
    elif content is not None: (tmp_path/name).write_bytes(content)
    got = doctor(tmp_path/name)
    assert got.returncode == 3 and not got.stdout
    assert "Traceback" not in got.stderr and len(got.stderr.strip().splitlines()) == 1


def test_usage_is_another_status(doctor):
    assert doctor("--no-such-option").returncode == 2


@pytest.mark.parametrize("chosen, raised, line", [
    ([0, 1, 2, 3, 4, 5], 0, "this rig can be used by gslrm, lgm, zero123plus and sv3d"),
    ([0, 2, 4], 9, "this rig can be used by gslrm, zero123plus and sv3d; lgm needs 4 cameras"),
    ([3], 0, "this rig can be used by zero123plus and sv3d, if its floor is at height 0 and up is +z (else --floor, "
             "--up); gslrm needs 2 cameras; lgm needs 4 cameras"),
    ([3], -9, "this rig can be used by none; gslrm needs 2 cameras; lgm needs 4 cameras; zero123plus and sv3d need "
                "the height of the floor and the up direction (--floor, --up)"),
])
def test_one_line_says_which_models_can_use_the_rig(tmp_path, chosen, raised, line):
    "By its cameras and masks, and with one camera by whether it can see a floor at height 0."
    world = Similarity(.01, torch.eye(3).double(), torch.tensor([0., 0., raised]).double(), "mm", "model")
    views = raytrace(mouse_scene(4), mouse_rig()[chosen].resized(288, 256), 1)
    moved = replace(views, cameras=world.cameras(views.cameras))
    diagnosis = diagnose(write_sample(moved, tmp_path/"sample"))
    [said] = [text for text in str(diagnosis).splitlines() if text.startswith("  models (--model)")]
    assert said == f"  models (--model): {line}"
    models = json.loads(diagnosis.to_json())["models"]
    assert list(models) == ["gslrm", "lgm", "zero123plus", "sv3d"]
    assert [not models[name] for name in models] == [name in line.split(";")[0] for name in models]


def test_what_is_wrong_with_a_rig_comes_before_its_models(recording, tmp_path):
    "Masks are none of the models' matter while there are none; another fault concerns them all."
    folder = with_short_lenses(recording, tmp_path/"k")
    assert "models (--model), once that is mended: this rig can be used by gslrm, lgm" in str(diagnose(folder))
    shutil.rmtree(folder/"simpleclick_undist")
    without = str(diagnose(folder))
    assert "can be used by none; gslrm needs masks of 2 cameras; lgm needs masks of 4 cameras" in without
    rig = write_calibration(mouse_rig(), tmp_path/"rig.toml")
    assert "has the cameras for gslrm, lgm, zero123plus and sv3d (no masks were examined)" in str(diagnose(rig))


def never(*args, **kwargs): raise AssertionError("the network was loaded")


def test_no_network_is_loaded(recording, monkeypatch):
    "`evaluation.sensitivity`, which the doctor uses, has a `load_checkpoint` of its own."
    for owner, name in ((checkpoint, "load_checkpoint"), (sensitivity, "load_checkpoint"), (GSLRM, "__init__")):
        monkeypatch.setattr(owner, name, never)
    assert diagnose(recording).status == 0


@pytest.mark.parametrize("owner, name, load", [
    (checkpoint, "load_checkpoint", lambda folder: checkpoint.load_checkpoint()),
    (sensitivity, "load_checkpoint", lambda folder: sensitivity.measure_sensitivity(out=folder/"table.json")),
    (GSLRM, "__init__", lambda folder: checkpoint.load_checkpoint()),
])
def test_loading_a_network_would_be_noticed(monkeypatch, tmp_path, owner, name, load):
    "Each of the patches above stops the code that loads a network by that name."
    monkeypatch.setattr(owner, name, never)
    with pytest.raises(AssertionError, match="the network was loaded"): load(tmp_path)


def random_rig(n, middle, generator):
    "Cameras of 320 × 300 px in mm at random places, with random intrinsics and aims, each seeing the whole animal."
    def uniform(*shape): return torch.rand(*shape, generator=generator, dtype=torch.float64)
    azimuth, elevation = (torch.arange(n) + .6*uniform(n))*2*np.pi/n, .1 + .7*uniform(n)
    distance = 250 + 150*uniform(n)
    direction = torch.stack(
        [elevation.cos()*azimuth.cos(), elevation.cos()*azimuth.sin(), elevation.sin()], -1)
    eye = middle + distance[:, None]*direction
    K = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = 250 + 80*uniform(n)
    K[:, 0, 2], K[:, 1, 2] = 160 + 20*(uniform(n) - .5), 150 + 20*(uniform(n) - .5)
    return Cameras(K, look_at(eye, middle + 10*(uniform(n, 3) - .5)), 320, 300, "mm")


@pytest.mark.parametrize("seed", range(6))
def test_random_rigs_that_are_sound_have_no_finding(tmp_path, seed):
    "Rigs of 3 to 8 cameras unlike the documented one."
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(3, 9, (1,), generator=generator))
    scene = mouse_scene(seed)
    cams = random_rig(n, torch.from_numpy(scene.centers).mean(0), generator)
    evidence = Evidence(tmp_path, "sample", "", cams, raytrace(scene, cams, 2))
    found = list(silhouettes(evidence, None, None, None))
    assert [f.name for f in found] == ["residual"], found


def test_exchanged_cameras_are_named_in_large_rigs():
    "Numbers of two digits, too."
    scene = mouse_scene(3)
    around = orbit(torch.arange(11)*360/11, 25., size=128)
    middle = torch.from_numpy(scene.centers).mean(0)
    eye = middle + around.centers.double()*110
    views = raytrace(scene, Cameras(around.K.double(), look_at(eye, middle.expand(11, 3)), 128, 128, "mm"), 1)
    exchanged = replace(views, cameras=views.cameras[[10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]])
    found = explain_disagreement(exchanged, None)
    assert found.name == "swapped" and "if cameras 0 and 10 are exchanged" in found.says, found


@cache
def ring(n, seed=0, size=192):
    "A mouse seen by n cameras around it, sound; traced once for all tests, which change copies."
    scene = mouse_scene(seed)
    jitter = 3*torch.randn(n, generator=torch.Generator().manual_seed(seed))
    around = orbit(torch.arange(n)*360/n + jitter, 25., size=size)
    middle = torch.from_numpy(scene.centers).mean(0)
    shift = 4*torch.randn(n, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    eye = middle + around.centers.double()*80
    K = around.K.double().clone()
    K[:, 0, 2] += 7
    K[:, 1, 2] -= 4
    return raytrace(scene, Cameras(K, look_at(eye, middle + shift), size, size, "mm"), 1)


def with_cameras(views, *, K=None, w2c=None):
    cams = views.cameras
    cams = replace(cams, K=cams.K if K is None else K, w2c=cams.w2c if w2c is None else w2c)
    return replace(views, cameras=cams)


def transposed(views):
    w2c = views.cameras.w2c.clone()
    w2c[:, :3, :3] = w2c[:, :3, :3].mT.clone()
    return with_cameras(views, w2c=w2c)


def moved(views, i=2, by=20): # mm
    w2c = views.cameras.w2c.clone()
    w2c[i, 0, 3] += by
    return with_cameras(views, w2c=w2c)


def swapped_center(views):
    K = views.cameras.K.clone()
    K[:, :2, 2] = K[:, :2, 2].flip(1)
    return with_cameras(views, K=K)


def with_k(views, x, y):
    return with_cameras(views, K=views.cameras.K*views.cameras.K.new_tensor([x, y, 1.])[:, None])


def ordered(views, order): return replace(views, cameras=views.cameras[order])


def opengl(views):
    flip = torch.diag(torch.tensor([1., -1, -1, 1], dtype=views.cameras.w2c.dtype))
    return with_cameras(views, w2c=flip @ views.cameras.w2c)


@pytest.mark.parametrize("seed, name, damage, fragment", [
    (0, "transposed", transposed, "if R is transposed"),
    (1, "swapped", lambda v: ordered(v, [1, 2, 3, 4, 5, 0]), "in the order 5, 0, 1, 2, 3, 4"),
    (0, "swapped", lambda v: ordered(v, [5, 4, 3, 2, 1, 0]), "in the order 5, 4, 3, 2, 1, 0"),
    (1, "swapped", lambda v: ordered(v, [0, 1, 4, 3, 2, 5]), "cameras 2 and 4 are exchanged"),
    (0, "swapped", lambda v: ordered(v, [3, 0, 5, 1, 4, 2]), "in the order 1, 3, 5, 0, 4, 2"),
    (1, "moved_camera", moved, "without camera 2"),
    (0, "moved_camera", lambda v: moved(v, 4, 8), "without camera 4"),
    (1, "another_size", lambda v: with_k(v, .5, .5), "K is multiplied by 2.00"),
    (0, "another_size", lambda v: with_k(v, 2., 2.), "K is multiplied by 0.50"),
    (1, "anisotropic_k", lambda v: with_k(v, 1., 1.25), "(fy) is multiplied by 0.8"),
    (0, "opengl_axes", opengl, "turned round"),
    (1, "inverted_poses", lambda v: with_cameras(v, w2c=torch.linalg.inv(v.cameras.w2c)), "poses are inverted"),
    (0, "flipped", lambda v: replace(v, images=v.images.flip(2), alpha=v.alpha.flip(2)), "images are mirrored"),
])
def test_a_mistake_is_named_if_undoing_it_makes_the_silhouettes_agree(seed, name, damage, fragment):
    found = explain_disagreement(damage(ring(6, seed)), None)
    assert found.name == name and fragment in found.says, found


def inexact_poses(views, seed): # half a degree
    turns = .5*np.pi/180*torch.randn(len(views), 3, generator=torch.Generator().manual_seed(seed)).double()/3**.5
    w2c = views.cameras.w2c.clone()
    w2c[:, :3] = torch.linalg.matrix_exp(torch.cross(turns[:, None], torch.eye(3).double()[None], dim=-1)) @ w2c[:, :3]
    return with_cameras(views, w2c=w2c)


def inexact_masks(views, seed): # two pixels too narrow or too wide
    alpha = views.alpha[:, None]
    alpha = 1 - max_pool2d(1 - alpha, 5, 1, 2) if seed % 2 else max_pool2d(alpha, 5, 1, 2)
    return replace(views, alpha=alpha[:, 0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", [inexact_poses, inexact_masks])
def test_no_mistake_is_named_where_poses_or_masks_are_only_inexact(damage, seed):
    found = explain_disagreement(damage(ring(5 + seed, seed), seed), None)
    assert found is None or found.name == "disagreement", found


def test_exchanged_center_is_named():
    views = ring(6)
    K = views.cameras.K.clone()
    K[:, 0, 2] += 12
    K[:, 1, 2] -= 9
    shifted = raytrace(mouse_scene(0), replace(views.cameras, K=K), 1)
    found = explain_disagreement(swapped_center(shifted), None)
    assert found.name == "swapped_center", found


def test_several_mistakes_are_a_disagreement_with_the_view_that_disagrees_most():
    "No single correction undoes two mistakes."
    views = moved(moved(with_k(ring(6), 1.3, 1.), 1), 4)
    found = explain_disagreement(views, None)
    assert found.name == "disagreement" and "disagrees most" in found.says, found


def test_an_animal_near_the_middle_is_no_sign_of_recentring():
    "Cameras that aim at the animal, all with small errors of their poses."
    views = ring(6)
    w2c = views.cameras.w2c.clone()
    w2c[:, :3, 3] += 6*torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=w2c.dtype)
    evidence = Evidence("x", "sample", "", views=with_cameras(views, w2c=w2c))
    [found] = silhouettes(evidence, None, None, None)
    assert found.name == "disagreement", found


def test_recentred_images_are_named():
    views = ring(6, size=160)
    center = foreground_stats(views)[1] - .5 # of mass, as the legacy scripts took it
    H = torch.eye(3).double().repeat(6, 1, 1)
    H[:, :2, 2] = center - 80 # from a pixel of the shifted image to one of the stored image
    images, alpha = warp_views(views, H, 160, 160)
    evidence = Evidence("x", "sample", "", views=replace(views, images=images, alpha=alpha))
    [found] = silhouettes(evidence, None, None, None)
    assert found.name == "recentred" and "once the images are shifted back" in found.says, found


@pytest.mark.slow
def test_large_rigs_are_searched_in_seconds():
    "36 cameras, one of them moved; or one copied over another, which loses one view of many and costs nothing."
    views = ring(36, size=144)
    found = explain_disagreement(moved(views, 33), None)
    assert found.name == "moved_camera" and "without camera 33" in found.says, found
    w2c = views.cameras.w2c.clone()
    w2c[5] = w2c[4]
    evidence = Evidence("x", "calibration", "", cameras=replace(views.cameras, w2c=w2c))
    center = torch.from_numpy(mouse_scene(0).centers).mean(0)
    [found] = duplicates(evidence, center, None, sensitivity.load_sensitivity())
    assert not found.note and 0 <= found.cost < .01, found


def test_two_entries_of_one_camera_are_only_a_note():
    views = ring(6)[[0, 1, 2, 3, 4, 5, 5]]
    evidence = Evidence("x", "sample", "", cameras=views.cameras, views=views)
    [found] = duplicates(evidence, torch.from_numpy(mouse_scene(0).centers).mean(0), None, None)
    assert found.note, found


def test_one_camera_is_too_few(doctor, tmp_path):
    cams = mouse_rig()[[0]]
    path = write_calibration(cams, tmp_path/"one.toml")
    got = doctor(path, "--json")
    content = json.loads(got.stdout)
    assert got.returncode == 1 and [f["name"] for f in content["findings"]] == ["too_few_views"]
    assert content["notes"] == [] and content["verdict"] == "This rig will fail: one camera."


@pytest.mark.parametrize("up", [[0., -.89, -.456], [.3, .8, .2], [-.7, .1, -.3]])
def test_the_proposed_up_is_exact_and_can_be_typed(run_command, tmp_path, up):
    up = torch.nn.functional.normalize(torch.tensor(up).double(), dim=0)
    eye = torch.tensor([[300., 0, 0], [0, 200, -400], [-300, 10, 0], [0, -200, 400]]).double()
    cams = Cameras(mouse_rig().K[:4].double(), look_at(eye, torch.zeros(3).double(), up), 1152, 1024, "mm")
    path = write_calibration(cams, tmp_path/"c.pkl")
    [found] = [f for f in diagnose(path, size=(1152, 1024)).findings if f.name == "up_axis"]
    command, vector = found.cure.split("gslrm_mouse ")[1].split(" --up ")
    assert command == "reconstruct RECORDING"
    proposed = torch.tensor([float(x) for x in vector.split(",")]).double()
    mean = -cams.R[:, 1].mean(0)
    assert torch.rad2deg(torch.acos((proposed/proposed.norm()) @ (mean/mean.norm()))) < .1
    got = run_command("reconstruct", "nowhere", "--up", vector, "--out", tmp_path/"x")
    assert "nowhere" in got.stderr and got.returncode == 2, got.stderr


def nerfstudio(views, folder, mode):
    folder.mkdir()
    (folder/"images").mkdir()
    frames = []
    for i in range(len(views)):
        rgb = (views.images[i]*255).byte().numpy()
        mask = ((views.alpha[i] > .5)*255).byte().numpy()
        Image.fromarray(rgb).save(folder/f"images/{i}.png")
        frame = json.loads(nerfstudio_bytes(views.cameras))["frames"][i] | dict(file_path=f"images/{i}.png")
        if mode == "mask":
            Image.fromarray(mask).save(folder/f"images/mask_{i}.png")
            frame["mask_path"] = f"images/mask_{i}.png"
        frames.append(frame)
    cams = views.cameras
    (folder/"transforms.json").write_text(json.dumps(dict(w=cams.width, h=cams.height, frames=frames)))
    return folder


def test_nerfstudio_folders_need_alpha_or_masks(doctor, tmp_path):
    views = ring(5)
    got = doctor(nerfstudio(views, tmp_path/"rgb", "none"))
    assert got.returncode == 1 and "no_alpha" in got.stdout and "mask_path" in got.stdout, got.stdout + got.stderr
    folder = nerfstudio(views, tmp_path/"mask", "mask")
    found = read_sample(folder)
    assert torch.equal(found.alpha > .5, views.alpha > .5) and (found.images[found.alpha == 0] == 1).all()
    assert doctor(folder).returncode == 0
    (folder/"images/mask_3.png").unlink()
    with pytest.raises(FileNotFoundError, match="camera 3: the mask .*mask_3.png is not there"): read_sample(folder)


def rewrite_video(path, frames, fps=20): return write_video(path, frames, fps=fps, crf=12)


def test_videos_of_different_length_are_a_finding(recording, tmp_path):
    shutil.copytree(recording, tmp_path/"film")
    video = tmp_path/"film/videos_undist/3.mp4"
    frames = list(video_frames(video))
    rewrite_video(video, frames[:2])
    found = {f.name: f for f in diagnose(tmp_path/"film").findings}
    says = found["frame_counts"].says
    assert "videos_undist/3.mp4 2" in says and "simpleclick_undist/5.mp4 3" in says


def test_videos_of_another_rate_are_a_finding(recording, tmp_path):
    shutil.copytree(recording, tmp_path/"film")
    video = tmp_path/"film/videos_undist/3.mp4"
    rewrite_video(video, list(video_frames(video)), fps=10)
    [found] = diagnose(tmp_path/"film").findings
    assert found.name == "frame_times" and "videos_undist/3.mp4 3 frames, 0.200 s" in found.says, found
    assert "videos_undist/2.mp4 3 frames, 0.100 s" in found.says


def test_the_unit_can_be_stated(doctor, tmp_path):
    "A rig in quarter metres, which nothing can guess."
    rig = mouse_rig().resized(576, 512)
    folder = write_recording(tmp_path/"film", 3, seed=4, cams=rig, truth=False)
    (folder/"new_cam.pkl").unlink()
    text = write_calibration(rig, tmp_path/"calibration.toml").read_text()

    def in_quarter_metres(match): return f"translation = {[x/250 for x in json.loads(match[1])]}"

    (folder/"calibration.toml").write_text(re.sub(r"translation = (\[.*?\])", in_quarter_metres, text))
    got = doctor(folder)
    assert got.returncode == 3 and "--unit" in got.stderr, got.stderr
    assert doctor(folder, "--unit", "m").returncode == 0


def test_the_verdict_comes_first_and_notes_are_behind_verbose(doctor, recording):
    plain, verbose = doctor(recording), doctor(recording, "--verbose")
    assert plain.stdout.startswith("This rig will work: ") and "note ·" not in plain.stdout
    assert verbose.stdout.count("note ·") == len(diagnose(recording).notes)
    assert "cameras of the videos, by position: 0.mp4: 0" in plain.stdout


def test_every_name_is_registered():
    "A name that the code gives and the list of findings lacks is an error at once."
    with pytest.raises(ValueError, match="is none of"): Diagnostic("unheard_of", "", "", "")


def test_calibrations_without_a_size_name_the_option(doctor, tmp_path):
    got = doctor(write_calibration(mouse_rig(), tmp_path/"new_cam.pkl"))
    assert got.returncode == 3 and f"gslrm_mouse doctor {tmp_path/'new_cam.pkl'} --size" in got.stderr


def test_a_speck_in_one_mask_is_a_finding(recording, tmp_path):
    "Of one pixel it is gone in small images, of two in smaller ones; neither ends the diagnosis."
    for side, name in ((1, "mask_empty"), (2, "disagreement")):
        folder = shutil.copytree(recording, tmp_path/str(side))
        path = folder/"simpleclick_undist/3.mp4"
        masks = [np.zeros_like(frame) for frame in video_frames(path)]
        for mask in masks:
            mask[200:200 + side, 300:300 + side] = 255
        write_video(path, masks, fps=20, crf=1)
        assert [finding.name for finding in diagnose(folder).findings] == [name]


def test_a_blender_sample_without_alpha_is_named(tmp_path):
    "The size of its images is in the images only, and they cannot be used."
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path/"0.png")
    frames = [dict(file_path="./0", transform_matrix=np.eye(4).tolist()) for _ in range(2)]
    (tmp_path/"transforms.json").write_text(json.dumps(dict(camera_angle_x=.7, frames=frames)))
    assert "no_alpha" in {finding.name for finding in diagnose(tmp_path).findings}


def test_the_order_around_the_animal_does_not_depend_on_the_world_axes():
    in_order = orbit([0., 60, 120, 180, 240, 300], [10.]*6, 300., 40., 64, unit="mm")
    exchanged = in_order[[0, 2, 1, 3, 4, 5]]
    turned = torch.tensor([[1., 0, 0], [0, 0, -1], [0, 1, 0]]) # y down

    def in_turned_world(cams):
        w2c = cams.w2c.clone()
        w2c[:, :3, :3] = w2c[:, :3, :3] @ turned.T.to(w2c)
        return replace(cams, w2c=w2c)

    for cams in (in_order, in_turned_world(in_order)):
        assert list(view_order(Evidence("x", "recording", "", cameras=cams), torch.zeros(3), None, None)) == []
    for cams in (exchanged, in_turned_world(exchanged)):
        [note] = view_order(Evidence("x", "recording", "", cameras=cams), torch.zeros(3), None, None)
        assert "0, 2, 1, 3, 4, 5" in note.says
