"SV3D: the original's numbers with the original's file names, and the sampler against its formula."
import copy

import numpy as np
import pytest
import torch
from conftest import recorded_numbers
from safetensors.torch import save_file

from gslrm_mouse.models.sv3d import load_sv3d, sample_latents, sincos, sv3d_scheduler

pytest.importorskip("diffusers")

SIZES = dict(block_out_channels=(32,)*4, num_attention_heads=(2,)*4, cross_attention_dim=16)


@pytest.fixture(scope="module")
def recorded(): return recorded_numbers("sv3d_tiny.npz")


@pytest.fixture(scope="module")
def weights(recorded): return {key[2:]: v for key, v in recorded.items() if key.startswith("w:")}


@pytest.fixture(scope="module")
def original(weights, tmp_path_factory):
    "A file of the original's names, with the parts that do not belong to the network."
    path = tmp_path_factory.mktemp("sv3d")/"sv3d_p.safetensors"
    other = {"first_stage_model.decoder.conv_in.weight": torch.zeros(3), "conditioner.embedders.0.x": torch.zeros(2)}
    save_file({**weights, **other}, path)
    return load_sv3d(path, **SIZES)


def difference_of(model, recorded):
    sample, context, vector = recorded["sample"], recorded["context"][:1], recorded["vector"]
    with torch.no_grad(): v = model(sample[None], recorded["c_noise"][0], context, vector[None])
    return (v[0] - recorded["output"]).abs().max()


def test_the_network_computes_what_the_original_computed(original, recorded):
    "Attention written out and plain convolutions round as the original does; the usual kernels differ by rounding."
    from diffusers.models.attention_processor import AttnProcessor
    assert recorded["c_noise"].unique().numel() == 1
    assert recorded["output"].std() > .1
    assert difference_of(original, recorded) <= 5e-5
    plain = copy.deepcopy(original)
    plain.unet.set_attn_processor(AttnProcessor())
    with torch.backends.mkldnn.flags(enabled=False): difference = difference_of(plain, recorded)
    assert difference <= 1e-5, difference


def test_the_epsilon_of_the_normalisation_matters(original, recorded):
    "The residual blocks have 1e-5, where diffusers builds many with 1e-6."
    other = copy.deepcopy(original)
    changed = [module for name, module in other.named_modules()
               if isinstance(module, torch.nn.GroupNorm) and "_res_block." in name]
    for module in changed: module.eps = 1e-6
    assert len(changed) == 2*(8 + 12 + 2)*2
    assert difference_of(other, recorded) > 1e-4


def test_a_file_is_loaded_whole_or_not_at_all(weights, tmp_path):
    name = "model.diffusion_model.output_blocks.4.1.time_stack.0.attn1.to_q.weight"
    save_file({key: v for key, v in weights.items() if key != name}, tmp_path/"a.safetensors")
    with pytest.raises(ValueError, match="1 weights are missing .unet.up_blocks.1.attentions.1.temporal_transformer"):
        load_sv3d(tmp_path/"a.safetensors", **SIZES)
    save_file({**weights, "model.diffusion_model.extra": torch.zeros(1)}, tmp_path/"b.safetensors")
    with pytest.raises(ValueError, match="1 are unknown .unet.extra"): load_sv3d(tmp_path/"b.safetensors", **SIZES)
    with pytest.raises(ValueError, match="does not fit SV3D"): load_sv3d(tmp_path/"b.safetensors")


def test_sines_and_cosines():
    x = np.array([0., .7, 5.])
    frequencies = 1e4**(-np.arange(8)/8)
    expected = np.concatenate([np.cos(x[:, None]*frequencies), np.sin(x[:, None]*frequencies)], 1)
    np.testing.assert_allclose(sincos(torch.from_numpy(x), 16).numpy(), expected, atol=1e-6)


def test_guidance_and_sampling_follow_the_formula():
    "A network that answers with a constant per branch, stepped by hand in float64."
    class Constant(torch.nn.Module):
        def forward(self, sample, c_noise, context, conditioning):
            has_image = context.abs().sum((1, 2)) > 0
            assert sample.shape[2] == 8 and (sample[~has_image, :, 4:] == 0).all()
            return torch.where(has_image[:, None, None, None, None], 2., -1.).expand(*sample.shape[:2], 4, 2, 2)

    n, steps = 5, 4
    got = sample_latents(Constant(), torch.ones(4, 2, 2), torch.ones(1, 3), torch.zeros(n, 7), steps, seed=9)
    ramp = np.linspace(0, 1, steps)
    sigmas = np.append((700**(1/7) + ramp*(.002**(1/7) - 700**(1/7)))**7, 0)
    noise = torch.randn(n, 4, 2, 2, generator=torch.Generator().manual_seed(9)).double().numpy()
    x = noise*sv3d_scheduler(steps).init_noise_sigma.item()
    v = (-1 + np.array([1, 1.75, 2.5, 1.75, 1])*3)[:, None, None, None]
    for sigma, following in zip(sigmas, sigmas[1:]):
        denoised = x/(sigma**2 + 1) - v*sigma/np.sqrt(sigma**2 + 1)
        x = x + (x - denoised)/sigma*(following - sigma)
    np.testing.assert_allclose(got.numpy(), x, rtol=1e-3, atol=1e-3)
    assert 690 < sv3d_scheduler(steps).init_noise_sigma < 710
