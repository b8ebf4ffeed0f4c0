"GS-LRM against an independent implementation in float64, every branch of it, and everything it refuses."
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gslrm_mouse.cameras.domain import CameraDomain
from gslrm_mouse.cameras.pinhole import Cameras
from gslrm_mouse.cameras.presets import facelift_rig
from gslrm_mouse.models.checkpoint import ModelCard, load_checkpoint, load_weights
from gslrm_mouse.models.gslrm import (
    GSLRM, GSLRMConfig, n_flop, n_parameters, n_tokens, patchify, rig_rays, to_patch_order, to_raster_order,
)

TINY = GSLRMConfig(image_size=16, d=32, d_head=16, n_layer=2)
VARIANTS = {name: replace(TINY, **changes) for name, changes in dict(
    released=dict(),
    both=dict(rays="both"),
    moment=dict(rays="moment"),
    depth_range=dict(rays="moment", depth_min=.1, depth_max=4.5, depth_preact_bias=.7),
    reference=dict(rays="moment", depth_reference_origin=True),
    both_wins=dict(rays="both", depth_min=.1, depth_max=4.5, depth_reference_origin=True),
    only_min=dict(rays="moment", depth_min=.1),
    clipped=dict(clip_xyz=True),
    free=dict(hard_pixelalign=False),
    no_free=dict(n_gaussians=0),
    many_free=dict(n_gaussians=5),
    sh1=dict(sh_degree=1),
    sh2=dict(sh_degree=2, rays="both"),
    markers=dict(refsrc_marker=True, scaling_modifier=.5),
    patch4=dict(patch_size=4, d_head=8),
    biased=dict(depth_preact_bias=-1.3),
).items()}


def random_cameras(B, V, W, H, seed=0):
    "Random orientation with roll, fx ≠ fy, off-centre principal point, unequal radii."
    g = torch.Generator().manual_seed(seed)
    R = torch.linalg.qr(torch.randn(B, V, 3, 3, generator=g, dtype=torch.float64))[0]
    w2c = torch.eye(4, dtype=torch.float64).repeat(B, V, 1, 1)
    w2c[..., :3, :3] = R*torch.linalg.det(R)[..., None, None]
    w2c[..., :3, 3] = torch.tensor([.1, -.2, 2.5]) + .3*torch.randn(B, V, 3, generator=g)
    K = torch.zeros(B, V, 3, 3, dtype=torch.float64)
    K[..., 0, 0] = 1.1*W + torch.rand(B, V, generator=g)
    K[..., 1, 1] = .9*W + torch.rand(B, V, generator=g)
    K[..., 0, 2] = .45*W + torch.rand(B, V, generator=g)
    K[..., 1, 2] = .6*H + torch.rand(B, V, generator=g)
    K[..., 2, 2] = 1
    return Cameras(K.float(), w2c.float(), W, H)


def random_model(config, seed=1):
    "Weights without zeros or small output layers, so that every part has an effect."
    g, model = torch.Generator().manual_seed(seed), GSLRM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            scale, mean = (.15, 0) if p.ndim > 1 else (.2, 1)
            p.copy_(torch.randn(p.shape, generator=g)*scale + mean)
    return model


def tiny_inputs(views=2): # a model, images and cameras of one scene of 16 × 16 px
    return random_model(TINY), torch.rand(1, views, 16, 16, 3), random_cameras(1, views, 16, 16)


def scene_numbers(g): # (N, 14)
    return torch.cat([g.means, g.quats, g.scales, g.sh[..., 0, :], g.opacities[..., None]], -1)[0]


# ---- an independent implementation: one scene, NumPy, float64, pixel by pixel and token by token ----

def sigmoid(x): return 1/(1 + np.exp(-x))


def layer_norm(x, weight):
    return (x - x.mean(-1, keepdims=True))/np.sqrt(x.var(-1, keepdims=True) + 1e-5)*weight


def pixel_ray(K, c2w, row, column): # origin, unit direction
    in_camera = np.array([(column + .5 - K[0, 2])/K[0, 0], (row + .5 - K[1, 2])/K[1, 1], 1])
    return c2w[:3, 3], c2w[:3, :3] @ (in_camera/np.linalg.norm(in_camera))


def ray_channels(kind, o, d):
    nearest, moment = o - (o @ d)*d, np.cross(o, d)
    return dict(nearest=(d, nearest), both=(moment, d, nearest), moment=(moment, d))[kind]


def patch_pixels(height, width, p): # the pixels of each patch, in the order of the network
    for top in range(0, height, p):
        for left in range(0, width, p):
            yield [(row, column) for row in range(top, top + p) for column in range(left, left + p)]


def oracle_tokens(c, w, images, cams): # tokens, ray origins, ray directions
    tokens, origins, directions = [], [], []
    for view, image in enumerate(images):
        K = cams.K[view].numpy().astype(np.float64)
        c2w = np.linalg.inv(cams.w2c[view].numpy().astype(np.float64))
        for pixels in patch_pixels(*image.shape[:2], c.patch_size):
            channels = []
            for row, column in pixels:
                o, d = pixel_ray(K, c2w, row, column)
                channels += [2*image[row, column, :3].astype(np.float64) - 1, *ray_channels(c.rays, o, d)]
                origins.append(o)
                directions.append(d)
            token = w["patch_embedder.1.weight"] @ np.concatenate(channels)
            tokens.append(token + w["view_type_embeddings"][min(view, 1)] if c.refsrc_marker else token)
    return np.array(tokens), np.array(origins), np.array(directions)


def oracle_layer(c, w, x):
    q, k, v = np.split(layer_norm(x, w["norm1.weight"]) @ w["attn.to_qkv.weight"].T, 3, -1)
    heads = []
    for start in range(0, c.d, c.d_head):
        head = slice(start, start + c.d_head)
        a = np.exp(q[:, head] @ k[:, head].T/math.sqrt(c.d_head))
        heads.append(a/a.sum(-1, keepdims=True) @ v[:, head])
    x = x + np.concatenate(heads, -1) @ w["attn.fc.weight"].T
    a = layer_norm(x, w["norm2.weight"]) @ w["mlp.mlp.0.weight"].T
    gelu = a*(1 + np.vectorize(math.erf)(a/math.sqrt(2)))/2
    return x + gelu @ w["mlp.mlp.2.weight"].T


def oracle_depth(c, raw, o, d):
    s = sigmoid(raw.mean(-1, keepdims=True) + c.depth_preact_bias)
    if c.rays in ("nearest", "both"): return (2*s - 1)*1.8 - (o*d).sum(-1, keepdims=True)
    if c.depth_min > 0 and c.depth_max > 0: return s*(c.depth_max - c.depth_min) + c.depth_min
    if c.depth_reference_origin: return (2*s - 1)*1.8 + np.linalg.norm(o, axis=-1, keepdims=True)
    return (2*s - 1)*1.5 + 2.7


def oracle_decode(c, raw, o, d):
    G, K = c.n_gaussians, (c.sh_degree + 1)**2
    xyz, sh, scale, quat, opacity = np.split(raw, np.cumsum([3, 3*K, 3, 4]), -1)
    if c.hard_pixelalign:
        pixel_xyz = o + oracle_depth(c, xyz[G:], o, d)*d
        if c.clip_xyz: pixel_xyz = np.clip(pixel_xyz, -1, 1)
        xyz = np.concatenate([xyz[:G], pixel_xyz])
    scaling = np.minimum(scale - 2.3, -1.2)
    return dict(
        raw_gaussians=raw, xyz=xyz, features=sh.reshape(-1, K, 3), scaling=scaling, rotation=quat, opacity=opacity - 2,
        act_scaling=np.exp(scaling)*c.scaling_modifier,
        act_rotation=quat/np.linalg.norm(quat, axis=-1, keepdims=True),
        act_opacity=sigmoid(opacity - 2))


def oracle(c, state, images, cams):
    "All stages of one scene, from the words of the description."
    w = {name: v.numpy().astype(np.float64) for name, v in state.items()}
    tokens, o, d = oracle_tokens(c, w, images, cams)
    x = layer_norm(np.concatenate([w["gaussian_position_embeddings"], tokens]), w["input_layer_norm.weight"])
    for i in range(c.n_layer):
        prefix = f"transformer_layers.{i}."
        layer = {name.removeprefix(prefix): v for name, v in w.items() if name.startswith(prefix)}
        x = oracle_layer(c, layer, x)
    G = c.n_gaussians
    scene = layer_norm(x[:G], w["gaussian_upsampler.layernorm.weight"]) @ w["gaussian_upsampler.linear.weight"].T
    pixel = layer_norm(x[G:], w["pixel_gaussian_decoder.0.weight"]) @ w["pixel_gaussian_decoder.1.weight"].T
    return oracle_decode(c, np.concatenate([scene, pixel.reshape(-1, c.n_out)]), o, d)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_branch_equals_an_independent_implementation(name):
    c, B, V, W, H = VARIANTS[name], 2, 3, 24, 16
    model, cams, images = random_model(c), random_cameras(B, V, W, H), torch.rand(B, V, H, W, 4)
    stages = model.forward_stages(images, cams)
    for b in range(B):
        scene = replace(cams, K=cams.K[b], w2c=cams.w2c[b])
        for stage, expected in oracle(c, model.state_dict(), images[b].numpy(), scene).items():
            tolerance = 5e-5 if stage == "act_rotation" else 2e-5
            ours = stages[stage][b].numpy()
            np.testing.assert_allclose(ours, expected, atol=tolerance, rtol=0, err_msg=f"{name}, {stage}")
    assert stages["img_tokens"].shape == (B, V*W*H//c.patch_size**2, c.d)

    # raster order: row 13, column 7 of view 2
    is_pixel = torch.arange(W*H).view(1, 1, H, W, 1) == 13*W + 7
    in_view = int(to_patch_order(is_pixel.float(), c.patch_size)[0, :, 0].argmax())
    index = c.n_gaussians + 2*W*H + in_view
    assert stages["pixelalign_xyz"][1, 2, :, 13, 7].equal(stages["xyz"][1, index])


def test_the_variants_differ():
    "A flag without effect would pass the test above only if the oracle ignored it too."
    images, cams = torch.rand(1, 2, 16, 24, 3), random_cameras(1, 2, 24, 16)
    names = ("moment", "depth_range", "reference", "released", "clipped", "biased", "free")
    means = {name: random_model(VARIANTS[name])(images, cams).means for name in names}
    for i, a in enumerate(names):
        for b in names[i + 1:]: assert (means[a] - means[b]).abs().max() > 1e-2, (a, b)
    assert means["clipped"][:, 2:].abs().max() == 1
    assert means["released"][:, 2:].abs().max() > 1
    half = random_model(VARIANTS["markers"])(images, cams)
    whole = random_model(replace(VARIANTS["markers"], scaling_modifier=1.))(images, cams)
    torch.testing.assert_close(half.scales*2, whole.scales)


@torch.no_grad()
def test_alpha_is_ignored_and_any_size_is_taken():
    model, cams, rgba = random_model(TINY), random_cameras(1, 2, 40, 24), torch.rand(1, 2, 24, 40, 4)
    with_alpha, without = model(rgba, cams), model(rgba[..., :3], cams)
    assert torch.equal(with_alpha.means, without.means)
    assert len(with_alpha) == 2 + 2*24*40
    strided = rgba.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    assert torch.equal(model(strided, cams).means, with_alpha.means)


@given(B=st.integers(1, 2), V=st.integers(1, 3), h=st.integers(1, 4), w=st.integers(1, 4),
       p=st.sampled_from([1, 2, 4, 8]), C=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_patch_and_raster_order(B, V, h, w, p, C):
    x = torch.randn(B, V, h*p, w*p, C)
    rows = patchify(x, p)
    assert rows.shape == (B, V*h*w, p*p*C)
    assert torch.equal(to_raster_order(to_patch_order(x, p), h*p, w*p, p), x)
    view, i, j = V - 1, h - 1, w//2 # of the patch
    row, column, channel = p//2, p - 1, C//2 # in the patch
    value = rows[B - 1, (view*h + i)*w + j, (row*p + column)*C + channel]
    assert value == x[B - 1, view, i*p + row, j*p + column, channel]


@torch.no_grad()
def test_permuting_views_permutes_gaussians():
    model, images, cams = tiny_inputs(views=4)
    order = torch.tensor([2, 0, 3, 1])
    reordered = replace(cams, K=cams.K[:, order], w2c=cams.w2c[:, order])

    def outputs(model): # in order, images and cameras reordered, cameras only
        inputs = ((images, cams), (images[:, order], reordered), (images, reordered))
        return [scene_numbers(model(*pair)) for pair in inputs]

    def by_view(numbers): return numbers[2:].view(4, -1, 14)

    original, together, cameras_only = outputs(model)
    torch.testing.assert_close(by_view(together), by_view(original)[order], atol=2e-5, rtol=0)
    torch.testing.assert_close(together[:2], original[:2], atol=2e-5, rtol=0)
    assert (by_view(cameras_only) - by_view(original)).abs().amax((1, 2)).min() > .1
    original, together, _ = outputs(random_model(replace(TINY, refsrc_marker=True)))
    assert (by_view(together) - by_view(original)[order]).abs().max() > 1e-2


@torch.no_grad()
def test_scenes_of_a_batch_are_independent():
    model, cams, images = random_model(TINY), random_cameras(2, 2, 16, 16), torch.rand(2, 2, 16, 16, 3)
    second = replace(cams, K=cams.K[1:], w2c=cams.w2c[1:])
    torch.testing.assert_close(model(images, cams).means[1], model(images[1:], second).means[0], atol=2e-5, rtol=0)


@torch.no_grad()
def test_rays_once_per_rig():
    model, images, cams = tiny_inputs()
    rig = rig_rays(cams, TINY)
    assert torch.equal(model(images, rig).means, model(images, cams).means)
    with torch.autocast("cpu", torch.bfloat16): low = rig_rays(cams, TINY)
    assert torch.equal(low.features, rig.features)
    assert low.d.dtype == torch.float32


@torch.no_grad()
def test_autocast_moves_gaussians_along_their_rays_only():
    model, images, cams = tiny_inputs()
    full = model(images, cams)
    with torch.autocast("cpu", torch.bfloat16): low = model(images, cams)
    assert low.means.dtype == low.sh.dtype == torch.float32
    moved = (low.means - full.means)[0, 2:]
    assert 1e-4 < moved.norm(dim=-1).max() < .5
    d = rig_rays(cams, TINY).d[0]
    assert torch.linalg.cross(moved, d, dim=-1).norm(dim=-1).max() < 1e-5


@pytest.mark.parametrize("every", [1, 2, 3])
def test_recomputed_activations_give_the_same_gradients(every):
    images, cams = torch.rand(1, 2, 16, 16, 3), random_cameras(1, 2, 16, 16)

    def gradients(every): # gradients, bytes kept for the backward pass
        model = random_model(replace(TINY, n_layer=3))
        model.grad_checkpoint_every = every
        sizes = []
        def pack(t):
            sizes.append(t.nbytes)
            return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): g = model(images, cams)
        (g.means.square().sum() + g.sh.sum() + g.scales.sum() + g.opacities.sum()).backward()
        return [p.grad for p in model.parameters()], sum(sizes)

    expected, kept = gradients(0)
    recomputed, kept_fewer = gradients(every)
    for a, b in zip(expected, recomputed):
        assert a is not None and b is not None
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert kept_fewer < .8*kept


def test_counts():
    for c in VARIANTS.values(): assert n_parameters(c) == sum(p.numel() for p in GSLRM(c).parameters())
    c = replace(TINY, n_layer=3)
    model, images, rig = GSLRM(c), torch.rand(1, 2, 16, 24, 3), rig_rays(random_cameras(1, 2, 24, 16), TINY)
    counter = FlopCounterMode(display=False)
    # torch counts no products inside the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad(): model(images, rig)
    assert counter.get_total_flops() == n_flop(c, n_tokens(c, 2, 16, 24))


@pytest.mark.parametrize("change, message", [
    (dict(rays="plucker"), "rays must be one of nearest, moment, both, relative, fixed, none, got 'plucker'"),
    (dict(d_head=30), "multiple of d_head"),
    (dict(sh_degree=4), "0 to 3, got 4"),
    (dict(n_gaussians=-1), "not negative"),
    (dict(patch_size=0), "must be positive"),
])
def test_refused_configurations(change, message):
    with pytest.raises(ValueError, match=message): replace(TINY, **change)


CAMS = random_cameras(1, 2, 16, 16)
IMAGES = torch.zeros(1, 2, 16, 16, 3)


@pytest.mark.parametrize("images, cams, fragment", [
    (torch.rand(1, 2, 16, 16, 5), CAMS, "(B, V, H, W, 3 or 4), got (1, 2, 16, 16, 5)"),
    (IMAGES[0], CAMS, "(B, V, H, W, 3 or 4), got (2, 16, 16, 3)"),
    (IMAGES.permute(0, 1, 4, 2, 3), CAMS, "(1, 2, 3, 16, 16)"),
    (IMAGES.repeat(2, 1, 1, 1, 1), CAMS, "do not belong to 1 × 2 cameras of 16×16"),
    (IMAGES, random_cameras(1, 3, 16, 16), "do not belong to 1 × 3 cameras"),
    (IMAGES, random_cameras(1, 2, 24, 16), "do not belong to 1 × 2 cameras of 24×16"),
    (torch.rand(1, 2, 16, 20, 3), random_cameras(1, 2, 20, 16), "20×16 cannot be cut into patches of 8×8"),
    (IMAGES, replace(CAMS, K=CAMS.K[0], w2c=CAMS.w2c[0]), "cameras must be batched"),
    (IMAGES, rig_rays(CAMS, replace(TINY, rays="both")), "a network of 64 × 6 (rays='nearest')"),
])
def test_refused_inputs(images, cams, fragment):
    with pytest.raises(ValueError) as e: GSLRM(TINY)(images, cams)
    assert fragment in str(e.value)
    assert "\n" not in str(e.value)


YAML = """
model:
  class_name: gslrm.model.gslrm.GSLRM
  image_tokenizer: {image_size: 256, patch_size: 8, in_channels: 9}
  transformer: {d: 64, d_head: 32, n_layer: 3}
  gaussians:
    n_gaussians: 4
    sh_degree: 1
    scaling_modifier: 0.5
    upsampler: {upsample_factor: 1}
  add_refsrc_marker: true
  hard_pixelalign: true
  use_custom_plucker: true
  use_aug_plucker: true
  depth_preact_bias: 1
  clip_xyz: true
training: {crop_size: 3}
inference: {enabled: false, output_dir: x}
"""


def from_yaml(tmp_path, *changes):
    text = YAML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path/"c.yaml").write_text(text)
    return GSLRMConfig.from_yaml(tmp_path/"c.yaml")


def test_settings_files(tmp_path):
    config = from_yaml(tmp_path)
    # the custom rays take precedence over the augmented ones; the clip has no effect
    assert config == GSLRMConfig(
        image_size=256, patch_size=8, d=64, d_head=32, n_layer=3, n_gaussians=4, sh_degree=1, rays="nearest",
        refsrc_marker=True, hard_pixelalign=True, depth_preact_bias=1, scaling_modifier=.5)
    falsy_inference = ("inference: {enabled: false, output_dir: x}", "inference: false")
    assert from_yaml(tmp_path, falsy_inference).clip_xyz
    assert not from_yaml(tmp_path, ("clip_xyz: true", "clip_xyz: false"), ("inference", "other")).clip_xyz
    augmented = (("use_custom_plucker: true", "use_custom_plucker: false"), ("in_channels: 9", "in_channels: 12"))
    assert from_yaml(tmp_path, *augmented).rays == "both"
    depth_range = ("  use_custom_plucker: true\n  use_aug_plucker: true\n", "  depth_min: 0.1\n  depth_max: 4.5\n")
    assert from_yaml(tmp_path, depth_range) == replace(config, rays="moment", depth_min=.1, depth_max=4.5)


@pytest.mark.parametrize("old, new, fragment", [
    ("in_channels: 9", "in_channels: 12", "in_channels is 12, colour and rays='nearest' make 9"),
    ("in_channels: 9", 'in_channels: "9\\nor 8"', "in_channels is 9 or 8, colour"),
    ("n_layer: 3", "n_layers: 3", "lacks transformer.n_layer"),
    ("clip_xyz", "clip_xy", "unknown keys in the model section: clip_xy"),
    ("upsample_factor: 1", "upsample_factor: 2", "only 1 exists"),
    ("d: 64", "d: wide", "transformer.d 'wide'"),
    ("hard_pixelalign: true", "hard_pixelalign: 1", "hard_pixelalign 1"),
    ("inference:", "inferences:", "no `inference` section"),
    ("model:", "models:", "`model` section was looked for, found models"),
    ("{d: 64", "{{d: 64", "no readable YAML"),
    ("d_head: 32", "d_head: 30", "multiple of d_head"),
])
def test_refused_settings_files(tmp_path, old, new, fragment):
    with pytest.raises(ValueError) as e: from_yaml(tmp_path, (old, new))
    assert fragment in str(e.value)
    assert "\n" not in str(e.value)


def test_settings_file_must_exist_and_not_run(tmp_path):
    with pytest.raises(FileNotFoundError): GSLRMConfig.from_yaml(tmp_path/"none.yaml")
    for text in ("", "3", "!!python/object/apply:os.system ['touch harmed']", "model: [1, 2]", "\x00"):
        (tmp_path/"c.yaml").write_text(text)
        with pytest.raises(ValueError): GSLRMConfig.from_yaml(tmp_path/"c.yaml")


# of the Gaussians below, computed by the module when the checkpoint was trained
SHIPPED = [0.6130221, 1.6026238, 0.0429905, 0.1717335]


def test_the_shipped_checkpoint_is_what_it_was():
    model, card = load_checkpoint()
    assert card.config == GSLRMConfig(image_size=64, d=256, n_layer=6)
    cams = facelift_rig(64, n=8)[[0, 3]]
    cams = cams.batch()
    images = ((torch.arange(2*64*64*3) % 97)/96.).view(1, 2, 64, 64, 3)
    with torch.no_grad(): g = model(images, cams)
    numbers = [g.means[0, 1000:1010].mean(), g.sh.std(), g.scales.mean(), g.opacities.mean()]
    np.testing.assert_allclose([x.item() for x in numbers], SHIPPED, rtol=1e-4)


def test_load_weights_uses_the_given_tensors():
    model = random_model(TINY)
    state = model.state_dict()
    loaded = load_weights(TINY, state, "x")
    assert not loaded.training
    for ours, given_ in zip(loaded.parameters(), model.parameters()):
        assert ours.data_ptr() == given_.data_ptr()
        assert ours.requires_grad
    half = load_weights(TINY, {name: v.half() for name, v in state.items()}, "x")
    assert all(p.dtype == torch.float32 for p in half.parameters())


@pytest.mark.parametrize("variant, message", [
    ("both", "takes 12 channels a pixel, colour and rays='nearest' make 9"),
    ("markers", "are unknown \\(view_type_embeddings\\)"),
])
def test_load_weights_refuses_another_network(variant, message):
    state = random_model(VARIANTS[variant]).state_dict()
    with pytest.raises(ValueError, match=message): load_weights(TINY, state, "x")


def test_card_refuses_unknown_fields():
    text = ModelCard(TINY, CameraDomain()).to_json()
    assert ModelCard.from_json(text).config == TINY
    with pytest.raises(ValueError, match="width"): ModelCard.from_json(text.replace('"d":', '"width":'))
