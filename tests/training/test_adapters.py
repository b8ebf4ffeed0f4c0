"""Adapters: cameras that stray, policies by a word, what is kept of the network as it was, chains, and a recording's held-out parts."""
import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gslrm_mouse.models.checkpoint import load_checkpoint, read_card, shipped_checkpoint
from gslrm_mouse.training.freeze import POLICIES, apply_trainable, module_of, policy_overrides
from gslrm_mouse.models.lora import add_lora, fingerprint, load_adapters, merge_adapter, save_adapter
from gslrm_mouse.models.gslrm import GSLRM
from gslrm_mouse.scenes.bodies import canonical_scene
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.scenes.dataset import SpreadSettings
from gslrm_mouse.training.settings import load_settings, settings_from
from gslrm_mouse.scenes.dataset import canonical_cameras, perturb_cameras
from gslrm_mouse.training.batches import BatchStream
from gslrm_mouse.training.sources import SceneDataset, build_dataset
from gslrm_mouse.training.loop import load_trained, run_training
from gslrm_mouse.training.state import initial_network
from gslrm_mouse.training.step import forward_pass

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT/"configs").glob("*.yaml"))
WIDE = SpreadSettings([.7, 1.9], [.85, 1.2], .08, [.8, 1.25], 9., [.3, .9])


def tiny(steps=4, seed=0, **training):
    t = dict(dataset=dict(n_scenes=4, num_views=4, input_views=[2], target_views=1, replay_share=.5), schedule=dict(max_fwdbwd_passes=steps, warmup=1), optimizer=dict(lr=1e-2, weight_decay=0.), runtime=dict(use_amp=False), checkpointing=dict(checkpoint_every=2))
    for k, v in training.items(): t[k] = t.get(k, {}) | v
    return settings_from(dict(seed=seed, model=dict(image_tokenizer=dict(image_size=32), transformer=dict(d=64, d_head=32, n_layer=2)), training=t))


def quietly(*args, **kw):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()): return run_training(*args, **kw)


# ---- cameras that stray

def test_pictures_are_taken_by_the_cameras_that_are_told():
    "A small ball off the origin is where a projection written out by hand puts it; with the canonical K or pose it is not."
    scene = canonical_scene("head", 3)
    at, r = np.array([.21, -.13, .17]), .05
    ball = replace(scene, centers=at[None], A=np.eye(3)[None]/r, colors=scene.colors[:1]*0, texture=scene.texture[:1]*0)
    home = canonical_cameras(6, 128, 4)
    away = perturb_cameras(home, WIDE, 4)
    alpha = raytrace(ball, away, 3).alpha.numpy()
    seen = 0
    for i in range(6):
        if alpha[i, [0, -1]].any() or alpha[i, :, [0, -1]].any() or not alpha[i].any(): continue
        y, x = np.mgrid[:128, :128] + .5
        middle = np.array([(alpha[i]*x).sum(), (alpha[i]*y).sum()])/alpha[i].sum()
        def pixel(K, w2c):
            p = K @ (w2c[:3, :3] @ at + w2c[:3, 3])
            return p[:2]/p[2]
        told = [c.double().numpy() for c in (away.K[i], away.w2c[i])]
        assert np.abs(pixel(*told) - middle).max() < .3
        assert np.abs(pixel(home.K[i].double().numpy(), told[1]) - middle).max() > 1 and np.abs(pixel(told[0], home.w2c[i].double().numpy()) - middle).max() > 1
        seen += 1
    assert seen >= 4


def test_stray_scenes_are_kept_apart_and_again_the_same(tmp_path):
    a, b = SceneDataset(tmp_path, 32, ("head",), 3, spread=WIDE), SceneDataset(tmp_path, 32, ("head",), 3)
    first, plain = a[1], b[1]
    assert torch.equal(a[1].images, first.images) and torch.equal(a[1].cameras.K, first.cameras.K)
    assert not torch.allclose(first.images, plain.images, atol=.05) and not torch.allclose(first.cameras.K, plain.cameras.K)
    assert a.facts() != b.facts() and len({p.parent for p in tmp_path.rglob("*.npy")}) == 2


@pytest.mark.parametrize("wrong, said", [("focal=[1]", "a range of positive factors"), ("size=[0,1]", "a range of positive factors"), ("distance=[1.2,.8]", "a range of positive factors")])
def test_ranges(wrong, said):
    with pytest.raises(ValueError, match=said): load_settings(ROOT/"configs/camera_adapter.yaml", [f"training.dataset.camera_spread.{wrong}"], "small")
    with pytest.raises(ValueError, match="procedural scenes"): load_settings(ROOT/"configs/camera_adapter.yaml", ["training.dataset.dataset_path=somewhere"], "small")


# ---- policies

@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_policy_wins_over_any_file(path):
    scale = "full" if path.stem.startswith("pretrain") else "small"
    parts = {"none": {"patch_embedder", "layers", "heads"}, "transformer": {"patch_embedder", "heads"}, "heads": {"heads"}, "patch_embedder": {"layers", "heads"}, "layers:6": {"patch_embedder", "heads"}, "lora": {"lora layers"}, "lora+heads": {"lora layers", "heads"}}
    assert {p.split(":")[0] for p in parts} == {p.split(":")[0] for p in POLICIES} | {"lora", "lora+heads"}
    for policy, want in parts.items():
        s = load_settings(path, [*policy_overrides(policy), "training.lora.target_modules=[attention,mlp]"], scale)
        got = set()
        for n, p in apply_trainable(GSLRM(s.config), s).named_parameters():
            m = module_of(n)
            name = "layers" if m.startswith("transformer_layers") else "heads" if "gaussian_" in m and "embeddings" not in m else m if m == "patch_embedder" else None
            if p.requires_grad and name: got.add(("lora " if "lora_" in n else "") + name)
        assert got == want, policy
    with pytest.raises(ValueError, match="nearest is heads"): policy_overrides("headz")


# ---- what is kept of the network as it was

@pytest.mark.parametrize("policy", ["lora", "none"])
def test_distillation_keeps_the_outputs(tmp_path, policy):
    "On replayed scenes the raw outputs move less with distillation than with the replayed pictures, and the teacher is the start."
    from omegaconf import OmegaConf
    over = OmegaConf.to_container(OmegaConf.from_dotlist(list(policy_overrides(policy))))["training"]
    moved = {}
    for weight in (0., 10.):
        s = tiny(6, losses=dict(distill_loss_weight=weight), optimizer=dict(lr=3e-3, weight_decay=0.), **over)
        kept = quietly(s, tmp_path/f"{weight}", cache=tmp_path/"cache")
        before, _, _ = initial_network(s)
        model, _, _ = load_trained(kept)
        v = SceneDataset(tmp_path/"cache", 32)[2]
        c = replace(v.cameras, K=v.cameras.K[None, :2], w2c=v.cameras.w2c[None, :2])
        a, b = {}, {}
        with torch.no_grad():
            before(v.images[None, :2], c, a)
            model(v.images[None, :2], c, b)
        moved[weight] = (a["raw_gaussians"] - b["raw_gaussians"]).square().mean().item()
    assert 0 < moved[10.] < .5*moved[0.], moved


def test_a_resumed_run_has_the_same_teacher(tmp_path):
    "With full tuning the teacher is a copy of the start; a run that goes on must not take its own half-way weights for it."
    s = tiny(4, losses=dict(distill_loss_weight=3.), checkpointing=dict(checkpoint_every=2))
    start = quietly(tiny(1, 9), tmp_path/"start", cache=tmp_path/"cache")
    from gslrm_mouse.models.checkpoint import ModelCard, save_checkpoint
    from gslrm_mouse.cameras.domain import CameraDomain
    init = save_checkpoint(tmp_path/"start.safetensors", load_trained(start)[0], ModelCard(s.config, CameraDomain(image_size=32), {}))
    whole = quietly(s, tmp_path/"a", init, cache=tmp_path/"cache")
    quietly(s, tmp_path/"b", init, stop_at=2, cache=tmp_path/"cache")
    with pytest.raises(ValueError, match="name the one it started from"): quietly(s, tmp_path/"b", resume=True, cache=tmp_path/"cache")
    again = quietly(replace(s, training=replace(s.training, checkpointing=replace(s.training.checkpointing, resume_ckpt=str(init)))), tmp_path/"b", resume=True, cache=tmp_path/"cache")
    for a, b in zip(load_trained(whole)[0].state_dict().values(), load_trained(again)[0].state_dict().values()): assert torch.equal(a, b)


def test_distillation_needs_something_replayed():
    with pytest.raises(ValueError, match="needs replayed samples"): tiny(losses=dict(distill_loss_weight=1.), dataset=dict(replay_share=0.))


# ---- chains

def test_peft_itself_adds_up_what_is_kept(tmp_path):
    "Two adapters kept beside the shipped checkpoint, loaded by peft alone, give what `load_adapters` gives; one of them alone does not."
    from peft import PeftModel
    fresh = lambda: load_checkpoint()[0]
    def trainedlike(model, seed):
        m = add_lora(model, 3, 6., seed=seed)
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad(): [p.copy_(.02*torch.randn(p.shape, generator=g)) for n, p in m.named_parameters() if "lora_B" in n]
        return m.eval()
    first = trainedlike(fresh(), 1)
    save_adapter(tmp_path/"camera", first)
    save_adapter(tmp_path/"mouse", trainedlike(merge_adapter(first), 2))
    ours = fingerprint(load_adapters(fresh(), [tmp_path/"camera", tmp_path/"mouse"]))
    theirs = PeftModel.from_pretrained(fresh(), str(tmp_path/"camera"), adapter_name="camera")
    theirs.load_adapter(str(tmp_path/"mouse"), adapter_name="mouse")
    theirs.base_model.set_adapter(["camera", "mouse"])
    assert torch.allclose(fingerprint(theirs.eval()), ours, atol=1e-5)
    theirs.base_model.set_adapter(["mouse"])
    assert (fingerprint(theirs) - ours).abs().max() > 1e-2


# ---- a recording

def test_targets_finer_than_inputs(tmp_path):
    "The finer picture, averaged over areas, is the one that a run with targets of the inputs' size asks for."
    a, b = (tiny(dataset=dict(target_size=n, replay_share=0.)) for n in (0, 64))
    plain, fine = (BatchStream(s, build_dataset(s, tmp_path))(3) for s in (a, b))
    assert fine.truth.shape[-3:-1] == (64, 64) and fine.images.shape == plain.images.shape
    small = torch.nn.functional.avg_pool2d(fine.truth.flatten(0, 1).movedim(-1, 1), 2).movedim(1, -1)
    assert (small - plain.truth.flatten(0, 1)).abs().mean() < .01 < (small.flip(2) - plain.truth.flatten(0, 1)).abs().mean()
    model = GSLRM(a.config)
    with torch.no_grad(): assert forward_pass(model, fine, bf16=False).image.shape[-3:-1] == (64, 64)
    with pytest.raises(ValueError, match="smaller than the inputs"): tiny(dataset=dict(target_size=16))


def test_recording_is_split(recording, tmp_path):
    "Frames after the first block and the camera left out are in no batch of the adapter's run."
    from gslrm_mouse.experiments.recording import RecordingPlan, film_run
    s = film_run(read_card(shipped_checkpoint()).config, recording, RecordingPlan(train="0:2", zoom=1.6), heldout=(2,))
    stream = BatchStream(replace(s, training=replace(s.training, dataset=replace(s.training.dataset, replay_share=0.))), build_dataset(s, tmp_path))
    seen = [x for k in range(12) for x in stream(k).samples]
    assert {x["name"].rsplit(" ", 1)[-1] for x in seen} == {"0", "1"}
    assert {c for x in seen for c in x["inputs"] + x["targets"]} == {f"camera {i}" for i in (0, 1, 3, 4, 5)}
    for x in seen: assert not set(x["inputs"]) & set(x["targets"])


def test_any_film_of_any_rig_is_divided(monkeypatch, tmp_path):
    "Frames that teach are before those that are asked, all of them exist, and there is always a camera to leave out."
    from types import SimpleNamespace
    import gslrm_mouse.experiments.recording as a
    for cams in (3, 4, 5, 6, 9, 24):
        for n in (2, 3, 4, 7, 16, 40, 41, 161, 1000, 36000):
            monkeypatch.setattr(a, "open_recording", lambda path: SimpleNamespace(n_frames=n, cameras=[None]*cams))
            truth = tmp_path/f"truth_{n}"
            truth.mkdir(exist_ok=True)
            for f in {0, n//2, n - 1}: (truth/f"frame_{f:03d}_view_0.png").touch()
            x = a.complete_plan(a.RecordingPlan(zoom=2.), "film", truth)
            teach = a.parse_frames(x.train, n)
            assert 1 <= len(teach) <= 60 and 1 <= len(x.alone) <= 10 and max(teach) < min(x.asked) and max(teach) < min(x.alone) and max(x.alone) < n
            assert set(x.asked) <= {n//2, n - 1} and n - 1 in x.asked and x.left_out and max(x.left_out) < cams and len(set(x.left_out)) == len(x.left_out)
    assert a.complete_plan(a.RecordingPlan(zoom=2.), "film").asked == ()
