"""Adapters: randomised cameras, freeze policies by name, distillation, chains of adapters, and finer targets."""
import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel

from gslrm_mouse.cameras.domain import CameraDomain
from gslrm_mouse.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from gslrm_mouse.models.gslrm import GSLRM
from gslrm_mouse.models.lora import add_lora, fingerprint, load_adapters, merge_adapter, save_adapter
from gslrm_mouse.scenes.bodies import canonical_scene
from gslrm_mouse.scenes.dataset import SpreadSettings, canonical_cameras, perturb_cameras
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.training.batches import BatchStream
from gslrm_mouse.training.freeze import POLICIES, apply_trainable, module_of, policy_overrides
from gslrm_mouse.training.loop import load_trained, run_training
from gslrm_mouse.training.settings import load_settings, settings_from
from gslrm_mouse.training.sources import SceneDataset, build_dataset
from gslrm_mouse.training.state import initial_network
from gslrm_mouse.training.step import forward_pass

ROOT = Path(__file__).parents[2]
FEW_LAYERS = ("conditioning",) # networks with fewer layers than a policy names
CONFIGS = sorted(p for p in (ROOT/"configs").glob("*.yaml") if p.stem not in FEW_LAYERS)
CAMERA_ADAPTER = ROOT/"configs/camera_adapter.yaml"
WIDE = SpreadSettings(
    focal=[.7, 1.9], aspect=[.85, 1.2], principal=.08, distance=[.8, 1.25], aim=9., size=[.3, .9])


def tiny(passes=4, seed=0, **training):
    "Settings of a network of two layers, on procedural scenes of 32 px."
    sections = dict(
        dataset=dict(n_scenes=4, num_views=4, input_views=[2], target_views=1, replay_share=.5),
        schedule=dict(max_fwdbwd_passes=passes, warmup=1),
        optimizer=dict(lr=1e-2, weight_decay=0.),
        runtime=dict(use_amp=False),
        checkpointing=dict(checkpoint_every=2))
    for name, values in training.items(): sections[name] = sections.get(name, {}) | values
    model = dict(image_tokenizer=dict(image_size=32), transformer=dict(d=64, d_head=32, n_layer=2))
    return settings_from(dict(seed=seed, model=model, training=sections))


def quietly(*args, **kwargs):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()): return run_training(*args, **kwargs)


def trained_network(run): return load_trained(run)[0]


# ---- randomised cameras

def centroid(alpha): # (H, W), pixels
    y, x = np.mgrid[:alpha.shape[0], :alpha.shape[1]] + .5
    return np.array([(alpha*x).sum(), (alpha*y).sum()])/alpha.sum()


def is_whole(alpha): # the object is seen, and not cut at the border
    return alpha.any() and not alpha[[0, -1]].any() and not alpha[:, [0, -1]].any()


def project(point, K, w2c):
    p = K @ (w2c[:3, :3] @ point + w2c[:3, 3])
    return p[:2]/p[2]


def test_images_are_taken_by_the_cameras_that_come_with_them():
    "A small ball is where a projection by hand puts it; with the canonical K or pose it is not."
    point, radius = np.array([.21, -.13, .17]), .05
    scene = canonical_scene("head", 3)
    ball = replace(
        scene, centers=point[None], A=np.eye(3)[None]/radius, colors=scene.colors[:1]*0, texture=scene.texture[:1]*0)
    canonical = canonical_cameras(6, 128, 4)
    randomised = perturb_cameras(canonical, WIDE, 4)
    alpha = raytrace(ball, randomised, 3).alpha.numpy()
    n_seen = 0
    for i in range(6):
        if not is_whole(alpha[i]): continue
        n_seen += 1
        K, w2c = randomised.K[i].double().numpy(), randomised.w2c[i].double().numpy()
        canonical_K, canonical_w2c = canonical.K[i].double().numpy(), canonical.w2c[i].double().numpy()
        middle = centroid(alpha[i])
        assert np.abs(project(point, K, w2c) - middle).max() < .3
        assert np.abs(project(point, canonical_K, w2c) - middle).max() > 1
        assert np.abs(project(point, K, canonical_w2c) - middle).max() > 1
    assert n_seen >= 4


def test_randomised_scenes_have_their_own_cache_and_are_reproducible(tmp_path):
    randomised = SceneDataset(tmp_path, 32, kinds=("head",), n=3, spread=WIDE)
    canonical = SceneDataset(tmp_path, 32, kinds=("head",), n=3)
    first, plain = randomised[1], canonical[1]
    assert torch.equal(randomised[1].images, first.images)
    assert torch.equal(randomised[1].cameras.K, first.cameras.K)
    assert not torch.allclose(first.images, plain.images, atol=.05)
    assert not torch.allclose(first.cameras.K, plain.cameras.K)
    assert randomised.facts() != canonical.facts()
    assert len({path.parent for path in tmp_path.rglob("*.npy")}) == 2


@pytest.mark.parametrize("wrong", ["focal=[1]", "size=[0,1]", "distance=[1.2,.8]"])
def test_ranges_of_randomised_cameras(wrong):
    with pytest.raises(ValueError, match="a range of positive factors"):
        load_settings(CAMERA_ADAPTER, [f"training.dataset.camera_spread.{wrong}"], "small")


def test_randomised_cameras_need_procedural_scenes():
    with pytest.raises(ValueError, match="procedural scenes"):
        load_settings(CAMERA_ADAPTER, ["training.dataset.dataset_path=somewhere"], "small")


# ---- policies

TRAINED_BY = { # policy: what it trains
    "none": {"patch_embedder", "layers", "heads"},
    "transformer": {"patch_embedder", "heads"},
    "heads": {"heads"},
    "patch_embedder": {"layers", "heads"},
    "layers:6": {"patch_embedder", "heads"},
    "lora": {"lora layers"},
    "lora+heads": {"lora layers", "heads"},
}


def group_of(name): # of a parameter; None for the tokens and the norm
    part = module_of(name)
    if part.startswith("transformer_layers"): return "layers"
    if part == "patch_embedder": return part
    if "gaussian_" in part and "embeddings" not in part: return "heads"
    return None


def trained_groups(model):
    groups = set()
    for name, p in model.named_parameters():
        group = group_of(name)
        if p.requires_grad and group: groups.add(f"lora {group}" if "lora_" in name else group)
    return groups


def test_every_policy_is_tested():
    names = {policy.split(":")[0] for policy in POLICIES} | {"lora", "lora+heads"}
    assert {policy.split(":")[0] for policy in TRAINED_BY} == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_policy_wins_over_any_file(path):
    scale = "full" if path.stem.startswith("pretrain") else "small"
    for policy, expected in TRAINED_BY.items():
        overrides = [*policy_overrides(policy), "training.lora.target_modules=[attention,mlp]"]
        s = load_settings(path, overrides, scale)
        narrow = GSLRM(replace(s.config, d=64, d_head=32)) # the parameters have the same names
        assert trained_groups(apply_trainable(narrow, s)) == expected, policy


def test_an_unknown_policy():
    with pytest.raises(ValueError, match="nearest is heads"): policy_overrides("headz")


# ---- distillation

def raw_outputs(model, images, cams):
    kept = {}
    with torch.no_grad(): model(images, cams, kept)
    return kept["raw_gaussians"]


@pytest.mark.parametrize("policy", ["lora", "none"])
def test_distillation_keeps_the_outputs(tmp_path, policy):
    "On replayed scenes the raw outputs change less with distillation than with the images of those scenes as targets."
    overrides = OmegaConf.to_container(OmegaConf.from_dotlist(list(policy_overrides(policy))))["training"]
    cache = tmp_path/"cache"
    change = {}
    for weight in (0., 10.):
        s = tiny(6, losses=dict(distill_loss_weight=weight), optimizer=dict(lr=3e-3, weight_decay=0.), **overrides)
        run = quietly(s, tmp_path/f"{weight}", cache=cache)
        start, _, _ = initial_network(s)
        v = SceneDataset(cache, 32)[2][:2]
        images, cams = v.images[None], v.cameras.batch()
        before, after = (raw_outputs(model, images, cams) for model in (start, trained_network(run)))
        change[weight] = (before - after).square().mean().item()
    assert 0 < change[10.] < .5*change[0.], change


def test_a_resumed_run_has_the_same_teacher(tmp_path):
    "With full fine-tuning the teacher is a copy of the start; a resumed run must not use its own half-way weights."
    s = tiny(4, losses=dict(distill_loss_weight=3.), checkpointing=dict(checkpoint_every=2))
    cache = tmp_path/"cache"
    start = quietly(tiny(1, 9), tmp_path/"start", cache=cache)
    card = ModelCard(s.config, CameraDomain(image_size=32), {})
    init = save_checkpoint(tmp_path/"start.safetensors", trained_network(start), card)

    whole = quietly(s, tmp_path/"whole", init, cache=cache)
    quietly(s, tmp_path/"resumed", init, stop_at=2, cache=cache)
    with pytest.raises(ValueError, match="name the one it started from"):
        quietly(s, tmp_path/"resumed", resume=True, cache=cache)
    checkpointing = replace(s.training.checkpointing, resume_ckpt=str(init))
    with_init = replace(s, training=replace(s.training, checkpointing=checkpointing))
    resumed = quietly(with_init, tmp_path/"resumed", resume=True, cache=cache)

    expected, got = trained_network(whole).state_dict(), trained_network(resumed).state_dict()
    assert list(expected) == list(got)
    for name in expected: assert torch.equal(expected[name], got[name]), name


def test_distillation_needs_something_replayed():
    with pytest.raises(ValueError, match="needs replayed samples"):
        tiny(losses=dict(distill_loss_weight=1.), dataset=dict(replay_share=0.))


# ---- chains of adapters

def with_random_adapter(model, seed):
    "The network with an adapter whose B is not zero, as after training."
    adapted = add_lora(model, 3, 6., seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name: p.copy_(.02*torch.randn(p.shape, generator=generator))
    return adapted.eval()


def shipped_network():
    model, _ = load_checkpoint()
    return model


def test_peft_itself_adds_up_what_is_saved(tmp_path):
    "Two adapters loaded by peft alone give what `load_adapters` gives; one of them alone does not."
    camera, mouse = tmp_path/"camera", tmp_path/"mouse"
    first = with_random_adapter(shipped_network(), 1)
    save_adapter(camera, first)
    save_adapter(mouse, with_random_adapter(merge_adapter(first), 2))
    ours = fingerprint(load_adapters(shipped_network(), [camera, mouse]))

    by_peft = PeftModel.from_pretrained(shipped_network(), str(camera), adapter_name="camera")
    by_peft.load_adapter(str(mouse), adapter_name="mouse")
    by_peft.base_model.set_adapter(["camera", "mouse"])
    assert torch.allclose(fingerprint(by_peft.eval()), ours, atol=1e-5)
    by_peft.base_model.set_adapter(["mouse"])
    assert (fingerprint(by_peft) - ours).abs().max() > 1e-2


# ---- finer targets

def test_targets_finer_than_inputs(tmp_path):
    "The finer targets, averaged over areas, are the targets of a run without target_size."
    s, finer = tiny(dataset=dict(replay_share=0.)), tiny(dataset=dict(target_size=64, replay_share=0.))
    plain, fine = (BatchStream(x, build_dataset(x, tmp_path))(3) for x in (s, finer))
    assert fine.truth.shape[-3:-1] == (64, 64)
    assert fine.images.shape == plain.images.shape
    averaged = torch.nn.functional.avg_pool2d(fine.truth.flatten(0, 1).movedim(-1, 1), 2).movedim(1, -1)
    truth = plain.truth.flatten(0, 1)
    assert (averaged - truth).abs().mean() < .01 < (averaged.flip(2) - truth).abs().mean()
    with torch.no_grad(): out = forward_pass(GSLRM(s.config), fine, bf16=False)
    assert out.image.shape[-3:-1] == (64, 64)


def test_targets_coarser_than_inputs_are_refused():
    with pytest.raises(ValueError, match="smaller than the inputs"): tiny(dataset=dict(target_size=16))
