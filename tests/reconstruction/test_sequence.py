"""Sequences: the same Gaussians in every frame, also after a kill; a lost animal is found again."""
import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.coarse_to_fine import FitStage, foreground_crops
from gslrm_mouse.gaussians.ply import load_ply, save_ply
from gslrm_mouse.gaussians.surface import surface_gaussians
from gslrm_mouse.preprocess.silhouettes import border_share
from gslrm_mouse.reconstruction import pipeline
from gslrm_mouse.reconstruction.pipeline import MANIFEST, frame_folder
from gslrm_mouse.reconstruction.prediction import QUALITIES, optimise_scene, quality_of
from gslrm_mouse.reconstruction.sequence import (
    MOTION, SEQUENCE, SEQUENCE_QUALITIES, UNPOLISHED, Motion, SequenceQuality, _poses, _score, _seen_in,
    _shown_foreground, find_neighbours, follow, load_followed, load_sequence, rigidity_energy, save_motion,
    start_sequence)
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.video import decode_frames, write_video
from gslrm_mouse.views.hull import visual_hull
from gslrm_mouse.views.recordings import open_recording
from gslrm_mouse.views.triangulation import triangulate

N = 4
reconstruct = partial(
    pipeline.reconstruct, quality="draft", pixels=40, gaussians=150, sequence=True, turntable=False, film=False,
    viewer=False)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence")/"rec"
    return write_recording(folder, N, seed=102, cams=mouse_rig().resized(144, 128), truth=False)


@pytest.fixture(scope="module")
def whole(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")/"out"
    reconstruct(recording, out, frames=range(N))
    return out


def test_the_same_gaussians_follow_the_animal(recording, whole):
    sequence = load_sequence(whole)
    assert sequence.positions.shape == (N, len(load_ply(frame_folder(whole, 0)/"gaussians.ply")), 3)
    assert sequence.unit == "mm" and sequence.numbers.tolist() == list(range(N)) and sequence.kinds[0] == "first"
    places = np.array([triangulate(views).point.numpy() for views in open_recording(recording).frames()])
    moved = np.median(sequence.positions, 1)
    assert np.linalg.norm(places[-1] - places[0]) > 8
    assert np.linalg.norm((moved[-1] - moved[0]) - (places[-1] - places[0])) < 3
    steps = np.linalg.norm(np.diff(sequence.positions, axis=0), axis=-1)
    assert np.median(steps) < 8 # nobody changed places
    for i in range(N):
        stored = load_ply(frame_folder(whole, i)/"gaussians.ply")
        assert np.allclose(sequence.gaussians(i).means, stored.means)
        assert np.allclose(sequence.gaussians(i).scales, stored.scales, rtol=1e-4)


def test_a_killed_run_continues_to_the_same_numbers(recording, whole, tmp_path):
    out = tmp_path/"out"
    shutil.copytree(whole, out)
    shutil.rmtree(frame_folder(out, 2))
    (out/SEQUENCE).unlink()
    manifest = json.loads((out/MANIFEST).read_text())
    (out/MANIFEST).write_text(json.dumps(dict(settings=manifest["settings"], complete=False)))
    kept = (frame_folder(out, 1)/"gaussians.ply").stat().st_mtime_ns
    reconstruct(recording, out, frames=range(N)) # frame 3 is made again too: it began in frame 2
    assert (frame_folder(out, 1)/"gaussians.ply").stat().st_mtime_ns == kept
    for i in range(N):
        names = [p.name for p in frame_folder(out, i).iterdir() if p.name != "results.jsonl"] # they hold seconds
        assert MOTION in names
        for name in names:
            assert (frame_folder(out, i)/name).read_bytes() == (frame_folder(whole, i)/name).read_bytes()
    a, b = load_sequence(out), load_sequence(whole)
    assert np.array_equal(a.positions, b.positions) and np.array_equal(a.colors, b.colors)


def test_other_settings_are_refused(recording, whole):
    with pytest.raises(ValueError, match="holds frames made with another"):
        reconstruct(recording, whole, frames=[0], sequence=False)
    with pytest.raises(ValueError, match="a sequence needs frames"): reconstruct(recording, whole/"new")
    with pytest.raises(ValueError, match="a sequence needs frames"):
        reconstruct(recording, whole/"new", frames=[0], fit=3)


def cloud(means):
    n = len(means)
    return Gaussians(means, torch.tensor([[1., 0, 0, 0]]).repeat(n, 1), torch.ones(n, 3), torch.full((n,), .8),
                     torch.zeros(n, 1, 3), "mm")


def test_rigidity_counts_large_deviations_by_their_length():
    g = cloud(torch.tensor([[0., 0, 0], [3, 0, 0], [0, 4, 0], [0, 0, 6], [2, 2, 1]]))
    neighbours = find_neighbours(g, 2)

    def energy(deviation): # of one Gaussian, in mm
        return rigidity_energy(g.means + torch.eye(5)[:, 3:4]*torch.tensor([0., 0, deviation]), g.quats, neighbours)

    pairs = []
    for i, place in enumerate(g.means.numpy()):
        offsets = g.means.numpy() - place
        for j in np.linalg.norm(offsets, axis=1).argsort()[1:3]:
            pairs.append((i, j, np.linalg.norm(offsets[j])))
    length = np.sort([d for *_, d in pairs])[(len(pairs) - 1)//2] # as torch's median
    weights = np.array([np.exp(-.5*(d/length)**2) for *_, d in pairs])
    deviations = np.array([7.*((i == 3) != (j == 3)) for i, j, _ in pairs])/length
    expected = np.mean(weights/weights.mean()*(np.sqrt(deviations**2 + .1**2) - .1))
    assert float(energy(7.)) == pytest.approx(expected, rel=1e-4)
    assert 1.9 < energy(400.)/energy(200.) < 2.1
    assert 3.8 < energy(.02*length)/energy(.01*length) < 4.1


def test_a_sequence_is_made_of_a_frame_that_is_at_least_as_good():
    order = list(QUALITIES)
    assert set(SEQUENCE_QUALITIES) == set(order)
    assert all(order.index(chosen.first) >= order.index(name) for name, chosen in SEQUENCE_QUALITIES.items())


def test_the_command_makes_the_first_frame_better(whole):
    def conditions(i):
        lines = (frame_folder(whole, i)/"results.jsonl").read_text().splitlines()
        return {json.loads(line)["arm"].split(", ", 1)[1] for line in lines}

    assert conditions(0) == {SEQUENCE_QUALITIES["draft"].first}
    assert conditions(1) == {"draft, appearance"}


def test_the_appearance_closes_and_opens_after_a_loss():
    motion = Motion(rigid_size=32, rigid_steps=2, size=32, steps=4, settling=1)
    views = raytrace(mouse_scene(102), mouse_rig().resized(144, 128), 1)
    g = surface_gaussians(views, 20)
    neighbours = find_neighbours(g)
    shadow = replace(views, images=1 - views.alpha[..., None]*(1 - .3*views.images))
    frames, made = [views, views, views, shadow, shadow], [start_sequence(g, views, 0, motion)]
    for i, frame in enumerate(frames[1:], 1):
        made.append(follow(made[-1], frame, i, neighbours, quality_of("draft"), motion))
    assert [f.kind for f in made] == ["first", "appearance", "followed", "followed", "appearance"]

    def has_same_looks(i, j):
        a, b = made[i].gaussians, made[j].gaussians
        return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("scales", "opacities", "sh"))

    assert has_same_looks(1, 2) and has_same_looks(2, 3)
    assert not has_same_looks(0, 1) and not has_same_looks(3, 4)
    assert made[4].gaussians.sh.mean() < made[3].gaussians.sh.mean() # it became darker


def walking(seed, frames):
    return [raytrace(mouse_scene(seed, i/20), mouse_rig().resized(288, 256), 2) for i in frames]


def test_an_animal_that_walks_out_of_most_images_is_followed():
    frames = range(26, 31)
    views = walking(31, frames)
    quality = quality_of("draft")
    assert (border_share(views[0]) > 0).sum() == 4
    first = optimise_scene(surface_gaussians(views[0], 40), views[0], quality)
    followed = start_sequence(first, views[0], 0)
    neighbours = find_neighbours(first)
    assert followed.cameras == followed.point == () # two whole silhouettes are too few
    for i, frame in enumerate(views[1:], 1):
        followed = follow(followed, frame, i, neighbours, quality)
    moved = (followed.gaussians.means - first.means).mean(0)
    true = [mouse_scene(31, i/20).center for i in (frames[0], frames[-1])]
    assert (true[1] - true[0]).norm() > 14
    assert (moved - (true[1] - true[0])).norm() < 1


def test_an_image_with_a_sliver_of_the_animal_does_not_count():
    views = walking(102, [0])[0]
    g = surface_gaussians(views, 30)
    K = views.cameras.K.clone()
    u = views.cameras.project(g.means.double())[1, :, 0].quantile(.95) # a twentieth of them lies right of it
    K[1, 0, 2] -= u
    without = replace(views, cameras=replace(views.cameras, K=K))
    assert len(_seen_in(g, views)) == 6
    assert _seen_in(g, without).names == tuple(name for i, name in enumerate(views.names) if i != 1)


def test_a_run_that_was_killed_behind_its_last_frame_writes_the_rest(recording, whole, tmp_path):
    out = tmp_path/"out"
    shutil.copytree(whole, out)
    manifest = json.loads((out/MANIFEST).read_text())
    (out/MANIFEST).write_text(json.dumps(dict(settings=manifest["settings"], complete=False)))
    (out/SEQUENCE).unlink()
    reconstruct(recording, out, frames=range(N))
    assert json.loads((out/MANIFEST).read_text())["complete"]
    assert np.array_equal(load_sequence(out).positions, load_sequence(whole).positions)


def without_frame(number, make_frame):
    "The frame cannot be made, as one whose masks are empty."
    def make(folder, views, i, **kwargs):
        if i == number:
            raise ValueError("the mask is empty")
        return make_frame(folder, views, i, **kwargs)
    return make


def test_a_bad_frame_is_tried_again_and_those_after_it_stay(recording, tmp_path, monkeypatch):
    out = tmp_path/"out"
    make_frame = pipeline.make_frame
    monkeypatch.setattr(pipeline, "make_frame", without_frame(1, make_frame))
    reconstruct(recording, out, frames=range(N), skip_bad=True)

    def times():
        return [(frame_folder(out, i)/"gaussians.ply").stat().st_mtime_ns for i in (0, 2, 3)]

    before = times()
    assert load_followed(frame_folder(out, 2)).before == 0
    reconstruct(recording, out, frames=range(N), skip_bad=True)
    assert times() == before
    monkeypatch.setattr(pipeline, "make_frame", make_frame)
    reconstruct(recording, out, frames=range(N), skip_bad=True) # frame 1 can be made now, so 2 and 3 begin elsewhere
    assert times()[0] == before[0] and all(a > b for a, b in zip(times()[1:], before[1:]))
    assert [load_followed(frame_folder(out, i)).before for i in range(N)] == [None, 0, 1, 2]


def test_a_sequence_does_not_go_on_from_a_frame_of_other_settings(recording, whole, tmp_path, monkeypatch):
    out = tmp_path/"out"
    shutil.copytree(whole, out)
    monkeypatch.setattr(pipeline, "make_frame", without_frame(1, pipeline.make_frame))
    reconstruct(recording, out, frames=range(N), gaussians=200, overwrite=True, skip_bad=True)
    assert load_followed(frame_folder(out, 2)).before == 0
    assert len(load_sequence(out).positions[0]) == len(load_ply(frame_folder(out, 0)/"gaussians.ply"))


def test_an_animal_that_is_nowhere_near_is_made_anew():
    views = walking(102, [0])[0]
    g = surface_gaussians(views, 30)
    lost = replace(start_sequence(g, views, 0), shift=(0., 0., 5000.), cameras=())
    found = follow(lost, views, 3, find_neighbours(g), quality_of("draft", 32, 100))
    assert (found.kind, found.number, found.before, found.key) == ("anew", 3, 0, 3)


def test_neighbours_are_the_same_far_from_the_origin():
    rng = torch.Generator().manual_seed(0)
    near = cloud(20*torch.randn(1500, 3, generator=rng))
    far = replace(near, means=near.means + torch.tensor([0., 0, 5000]))
    same = (find_neighbours(near, 5).index == find_neighbours(far, 5).index).float().mean()
    assert same > .99 # single precision has 0.5 µm there


def test_a_sequence_needs_a_quality(recording, tmp_path):
    with pytest.raises(ValueError, match="a sequence needs frames, and a quality"):
        reconstruct(recording, tmp_path/"out", frames=[0], quality=None)


def test_a_sequence_goes_on_without_a_camera_that_does_not_see_the_animal(recording, tmp_path):
    rec = shutil.copytree(recording, tmp_path/"rec")
    path = rec/"simpleclick_undist/2.mp4"
    masks = list(decode_frames(path, range(N)))
    masks[2:] = [mask*0 for mask in masks[2:]]
    write_video(path, masks, fps=20, crf=12)
    reconstruct(rec, tmp_path/"out", frames=range(N))
    states = [load_followed(frame_folder(tmp_path/"out", i)) for i in range(N)]
    assert [state.kind for state in states][1:] == ["appearance"]*(N - 1)
    lost = _poses(open_recording(recording).frame(0))[2]
    is_whole = [lost in state.cameras for state in states]
    assert is_whole == [False, True, False, False] # its image cuts the animal in frame 0, and is empty from frame 2 on
    places = [triangulate(views).point for views in open_recording(recording).frames([0, N - 1])]
    moved = (states[-1].gaussians.means - states[0].gaussians.means).median(0).values
    assert (moved - (places[1] - places[0])).norm() < 3


@pytest.mark.parametrize("name", ["good", "best"])
def test_what_a_frame_shows_is_optimised_further(name):
    polish = SEQUENCE_QUALITIES[name].motion.polish
    assert polish and not any(stage.split for stage in polish) # the Gaussians keep their identity
    assert polish[-1].size >= QUALITIES[name].stages[-1].size # as sharp as a frame that is made alone


def test_a_polished_frame_keeps_its_gaussians_and_shows_more():
    rig = mouse_rig().resized(144, 128)
    motion = Motion(rigid_size=32, rigid_steps=5, size=32, steps=10)
    before, after = (raytrace(mouse_scene(102, t), rig, 2) for t in (0., .1))
    g = optimise_scene(surface_gaussians(before, 32), before, quality_of("draft"))
    first = start_sequence(g, before, 0, motion)
    neighbours = find_neighbours(g)
    finer = replace(motion, polish=(FitStage(64, 20, means_rate=.4),))
    plain, polished = (follow(first, after, 1, neighbours, quality_of("draft"), m) for m in (motion, finer))
    assert polished.shown is polished.polished and plain.shown is plain.gaussians
    assert torch.equal(polished.gaussians.means, plain.gaussians.means) # the next frame begins in the same
    assert len(polished.shown) == len(g)
    assert (plain.kind, polished.kind) == ("appearance", "appearance")
    crops = foreground_crops(after, 64)
    foreground = [_score(f.shown, crops)["psnr_fg"] for f in (plain, polished)]
    assert foreground[1] > foreground[0] + .5
    step = (polished.shown.means - plain.shown.means).norm(dim=-1).median()
    assert step < 2. # mm: they are the same places of the body


@pytest.mark.parametrize("polish", [(FitStage(64, 10, means_rate=.4),), ()], ids=["polished", "draft"])
def test_a_frame_that_faded_is_shown_made_anew_and_followed_as_before(polish, tmp_path):
    rig = mouse_rig().resized(144, 128)
    motion = Motion(rigid_size=32, rigid_steps=2, size=32, steps=2, lost=0., polish=polish)
    before, after = (raytrace(mouse_scene(seed), rig, 2) for seed in (102, 24)) # another posture: it cannot be followed
    g = optimise_scene(surface_gaussians(before, 32), before, quality_of("draft"))
    first = start_sequence(g, before, 0, motion)
    neighbours = find_neighbours(g)
    quality = replace(QUALITIES["good"], stages=(FitStage(64, 20), FitStage(256, 100))) # 256 px is not reached
    kept, anew = (follow(first, after, 1, neighbours, quality, replace(motion, faded=dB)) for dB in (99., 3.))
    assert (kept.kind, anew.kind) == ("appearance", "anew")
    assert torch.equal(anew.gaussians.means, kept.gaussians.means) # the next frame begins in the same
    assert anew.key == kept.key == 0
    assert len(anew.shown) == len(g)
    crops = foreground_crops(after, 64)
    foreground = [_score(f.shown, crops)["psnr_fg"] for f in (kept, anew)]
    assert foreground[1] > foreground[0] + 1
    assert first.shown_fg > _shown_foreground(kept.shown, after, motion) + 3
    save_motion(tmp_path, anew)
    save_ply(anew.shown, tmp_path/"gaussians.ply")
    with pytest.raises(FileNotFoundError, match=UNPOLISHED): load_followed(tmp_path)
    save_ply(anew.gaussians, tmp_path/UNPOLISHED)
    loaded = load_followed(tmp_path)
    assert loaded.kind == "anew"
    torch.testing.assert_close(loaded.shown.means, anew.shown.means)
    torch.testing.assert_close(loaded.gaussians.means, anew.gaussians.means)


def test_a_faded_frame_without_a_hull_shows_what_was_followed():
    rig = mouse_rig().resized(144, 128)
    polish = (FitStage(64, 5, means_rate=.4),)
    motion = Motion(rigid_size=32, rigid_steps=2, size=32, steps=2, lost=0., polish=polish, faded=-99.) # always
    before, after = (raytrace(mouse_scene(102, t), rig, 2) for t in (0., .05))
    shifted = after.alpha[0].roll(40, -1) # the masks of two cameras exclude each other
    excluding = replace(after, alpha=torch.cat([shifted[None], after.alpha[1:]]))
    assert not len(visual_hull(excluding).points)
    g = optimise_scene(surface_gaussians(before, 32), before, quality_of("draft"))
    first = start_sequence(g, before, 0, motion)
    neighbours = find_neighbours(g)
    quality = replace(QUALITIES["good"], stages=(FitStage(64, 20),))
    with_hull, without = (follow(first, views, 1, neighbours, quality, motion) for views in (after, excluding))
    assert (without.kind, with_hull.kind) == ("appearance", "anew")


def test_a_killed_run_of_polished_frames_continues_to_the_same_numbers(recording, tmp_path, monkeypatch):
    motion = Motion(rigid_steps=2, size=32, steps=2, polish=(FitStage(32, 3, means_rate=.4),))
    monkeypatch.setitem(SEQUENCE_QUALITIES, "best", SequenceQuality("draft", motion))
    out = tmp_path/"out"
    again = tmp_path/"again"
    reconstruct(recording, out, frames=range(3), quality="best")
    shutil.copytree(out, again)
    for i in (1, 2): # so both are made again, the second one from what is on the disk
        (frame_folder(again, i)/UNPOLISHED).unlink()
    reconstruct(recording, again, frames=range(3), quality="best")
    for i in range(3):
        for name in ("gaussians.ply", UNPOLISHED, MOTION):
            assert (frame_folder(again, i)/name).read_bytes() == (frame_folder(out, i)/name).read_bytes()
    shown, unpolished = (load_ply(frame_folder(out, 2)/name) for name in ("gaussians.ply", UNPOLISHED))
    assert not torch.equal(shown.means, unpolished.means)
    before = load_followed(frame_folder(out, 1))
    views = open_recording(recording).frame(2)
    assert not torch.equal(before.shown.means, before.gaussians.means)
    neighbours = find_neighbours(load_followed(frame_folder(out, before.key)).gaussians)
    followed = [follow(f, views, 2, neighbours, quality_of("draft", 40, 150), motion)
                for f in (before, replace(before, gaussians=before.shown))]
    distances = [(f.gaussians.means - unpolished.means).norm(dim=-1).max() for f in followed]
    assert distances[0] < 1e-3 < distances[1] # it began in what was followed, not in what was shown
    sequence = load_sequence(out)
    assert np.allclose(sequence.gaussians(2).means, shown.means)
    assert np.allclose(sequence.gaussians(2).scales, shown.scales, rtol=1e-4)


def test_files_of_a_sequence_are_made_of_the_frames_of_the_call(recording, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path/"out")
    for frames in (range(3), range(N)):
        reconstruct(recording, out, frames=frames)
        assert load_sequence(out).numbers.tolist() == list(frames)
    assert not (out/"follow.mp4").exists()
    reconstruct(recording, out, frames=range(N), film=True)
    assert (out/"follow.mp4").is_file() and (out/"film.mp4").is_file()
    (out/SEQUENCE).unlink()
    reconstruct(recording, out, frames=range(N))
    assert load_sequence(out).numbers.tolist() == list(range(N))
