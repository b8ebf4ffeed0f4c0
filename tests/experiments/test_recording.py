"""The experiment on a recording: what is held out stays out, and any recording can be divided."""
from dataclasses import replace
from types import SimpleNamespace

from gslrm_mouse.experiments import recording as experiment
from gslrm_mouse.experiments.recording import RecordingPlan, complete_plan, film_run
from gslrm_mouse.models.checkpoint import read_card, shipped_checkpoint
from gslrm_mouse.training.batches import BatchStream
from gslrm_mouse.training.sources import build_dataset
from gslrm_mouse.views.recordings import parse_frames

N_CAMERAS = (3, 4, 5, 6, 9, 24)
N_FRAMES = (2, 3, 4, 7, 16, 40, 41, 161, 1000, 36000)


def test_recording_is_split(recording, tmp_path):
    "Frames after the first block and the held-out camera are in no batch of the adapter's run."
    config = read_card(shipped_checkpoint()).config
    s = film_run(config, recording, RecordingPlan(train="0:2", zoom=1.6), heldout=(2,))
    s = replace(s, training=replace(s.training, dataset=replace(s.training.dataset, replay_share=0.)))
    stream = BatchStream(s, build_dataset(s, tmp_path))
    samples = [sample for k in range(12) for sample in stream(k).samples]
    assert {sample["name"].rsplit(" ", 1)[-1] for sample in samples} == {"0", "1"}
    cameras = {camera for sample in samples for camera in sample["inputs"] + sample["targets"]}
    assert cameras == {f"camera {i}" for i in (0, 1, 3, 4, 5)}
    for sample in samples: assert not set(sample["inputs"]) & set(sample["targets"])


def write_truth(folder, n):
    "Empty files of target views for the first, the middle and the last of `n` frames."
    folder.mkdir(exist_ok=True)
    for frame in {0, n//2, n - 1}: (folder/f"frame_{frame:03d}_view_0.png").touch()
    return folder


def check_plan(plan, n, n_cameras):
    train = parse_frames(plan.train, n)
    assert 1 <= len(train) <= 60
    assert 1 <= len(plan.alone) <= 10
    assert max(train) < min(plan.asked)
    assert max(train) < min(plan.alone)
    assert max(plan.alone) < n
    assert set(plan.asked) <= {n//2, n - 1}
    assert n - 1 in plan.asked
    assert plan.left_out
    assert max(plan.left_out) < n_cameras
    assert len(set(plan.left_out)) == len(plan.left_out)


def test_any_film_of_any_rig_is_divided(monkeypatch, tmp_path):
    "Training frames come before evaluated ones, all of them exist, and there is always a camera to hold out."
    for n_cameras in N_CAMERAS:
        for n in N_FRAMES:
            film = SimpleNamespace(n_frames=n, cameras=[None]*n_cameras)
            monkeypatch.setattr(experiment, "open_recording", lambda path, unit=None, film=film: film)
            truth = write_truth(tmp_path/f"truth_{n}", n)
            check_plan(complete_plan(RecordingPlan(zoom=2.), "film", truth), n, n_cameras)
    assert complete_plan(RecordingPlan(zoom=2.), "film").asked == ()
