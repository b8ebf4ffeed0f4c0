"SV3D: the original's numbers with the original's file names, and the sampler against its formula."
import copy
import json
import math

import numpy as np
import pytest
import torch
from conftest import recorded_numbers
from safetensors.torch import save_file
from test_diffusion import NARROW_CLIP, original_clip, original_vae

from gslrm_mouse.models.diffusion import (
    CLIP_MEAN, CLIP_STD, VAE_CONFIG, meta_image_encoder, meta_vae, narrow_vae, resized_smoothly, write_component)
from gslrm_mouse.models.sv3d import (
    SV3D, SV3DPipeline, frame_conditioning, load_sv3d, load_sv3d_pipeline, sample_latents, sinusoidal_embedding,
    sv3d_cameras, sv3d_orbit, sv3d_scheduler)

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


def difference_of(model, recorded, dtype=torch.float32):
    sample, context, vector = (recorded[key].to(dtype) for key in ("sample", "context", "vector"))
    with torch.no_grad():
        v = model(sample[None], recorded["c_noise"][0].to(dtype), context[:1], vector[None])
    return (v[0] - recorded["output"]).abs()


def test_the_network_computes_what_the_original_computed(original, recorded):
    "In float64 only the rounding of the original's float32 remains, on every machine alike."
    assert recorded["c_noise"].unique().numel() == 1
    assert recorded["output"].std() > .1
    assert difference_of(original, recorded).max() <= 5e-5
    exact = difference_of(copy.deepcopy(original).double(), recorded, torch.float64)
    assert exact.square().mean().sqrt() <= 3e-6
    assert exact.max() <= 1.2e-5 # three of 768 values lie above 1e-5: the original's own rounding


def test_the_epsilon_of_the_normalisation_matters(original, recorded):
    "The residual blocks have 1e-5, where diffusers builds many with 1e-6."
    other = copy.deepcopy(original)
    changed = [module for name, module in other.named_modules()
               if isinstance(module, torch.nn.GroupNorm) and "_res_block." in name]
    for module in changed: module.eps = 1e-6
    assert len(changed) == 2*(8 + 12 + 2)*2
    assert difference_of(other, recorded).max() > 1e-4


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
    np.testing.assert_allclose(sinusoidal_embedding(torch.from_numpy(x), 16).numpy(), expected, atol=1e-6)


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


FIRST_STAGE, ENCODER, VISUAL = (
    "first_stage_model.", "conditioner.embedders.1.encoder.", "conditioner.embedders.0.open_clip.model.visual.")
VAE_SIZES = VAE_CONFIG | dict(
    block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, down_block_types=("DownEncoderBlock2D",)*2,
    up_block_types=("UpDecoderBlock2D",)*2)
CLIP_SIZES = NARROW_CLIP | dict(projection_dim=16)
NARROW = dict(sizes=SIZES, vae_config=VAE_SIZES, clip_config=CLIP_SIZES)


def with_prefix(prefix, state):
    return {prefix + key: v.contiguous() for key, v in state.items()}


@pytest.fixture(scope="module")
def released(weights):
    "All entries of a file as it is released: a VAE beside the image encoder, and a decoder of its own."
    decoder = {key: v*.5 for key, v in original_vae().items() if key.startswith("decoder.")}
    text = {"conditioner.embedders.0.open_clip.model.logit_scale": torch.zeros(())}
    return {**weights, **with_prefix(FIRST_STAGE, decoder), **with_prefix(ENCODER, original_vae()),
            **with_prefix(VISUAL, original_clip(CLIP_SIZES)), **text}


def load(entries, path, **more):
    save_file(entries, path)
    return load_sv3d_pipeline(path, **(NARROW | more))


def test_a_released_file_holds_all_parts(released, tmp_path):
    pipeline = load(released, tmp_path/"sv3d_p.safetensors")
    assert pipeline.name == "sv3d_p" and pipeline.is_told_angles
    original, got = original_vae(), pipeline.vae.state_dict()
    assert torch.equal(got["encoder.conv_in.weight"], original["encoder.conv_in.weight"])
    assert torch.equal(got["quant_conv.bias"], original["quant_conv.bias"])
    assert torch.equal(got["decoder.conv_out.bias"], original["decoder.conv_out.bias"]*.5) # its own decoder
    assert "post_quant_conv.weight" not in got # which has no convolution in front
    projection = pipeline.image_encoder.state_dict()["visual_projection.weight"]
    assert torch.equal(projection, original_clip(CLIP_SIZES)["proj"].T)

    single = {key: v for key, v in released.items() if not key.startswith(FIRST_STAGE)}
    got = load(single, tmp_path/"a.safetensors").vae.state_dict()
    assert torch.equal(got["decoder.conv_out.bias"], original["decoder.conv_out.bias"])
    assert torch.equal(got["post_quant_conv.bias"], original["post_quant_conv.bias"])


def test_every_entry_of_a_file_belongs_somewhere(released, tmp_path):
    with pytest.raises(ValueError, match="1 tensors belong to no known part of SV3D, the first is model_ema.x"):
        load(released | {"model_ema.x": torch.zeros(1)}, tmp_path/"a.safetensors")
    with pytest.raises(ValueError, match="SV3D's VAE: 0 weights are missing .none., 1 are unknown .decoder.extra"):
        load(released | {FIRST_STAGE + "decoder.extra": torch.zeros(1)}, tmp_path/"a.safetensors")
    name = VISUAL + "transformer.resblocks.1.ln_2.bias"
    with pytest.raises(ValueError, match="encoder: 1 weights are missing .vision_model.encoder.layers.1.layer_norm2"):
        load({key: v for key, v in released.items() if key != name}, tmp_path/"a.safetensors")

    def without(prefix):
        return {key: v for key, v in released.items() if not key.startswith(prefix)}

    with pytest.raises(ValueError, match="holds no VAE encoder .*; state a folder with the VAE of Stable"):
        load(without(ENCODER), tmp_path/"a.safetensors")
    with pytest.raises(ValueError, match="holds no image encoder .*; use a converted folder with unet, vae"):
        load(without(VISUAL), tmp_path/"a.safetensors")

    vae = narrow_vae()
    write_component(tmp_path, "my_vae", vae)
    pipeline = load(without(ENCODER), tmp_path/"a.safetensors", vae=tmp_path/"my_vae")
    assert torch.equal(pipeline.vae.state_dict()["decoder.conv_in.bias"], vae.state_dict()["decoder.conv_in.bias"])
    with pytest.raises(ValueError, match="config.json describes AutoencoderKL, SV3D has CLIPVision"):
        load(released, tmp_path/"a.safetensors", image_encoder=tmp_path/"my_vae")


def random_pipeline(n_conditioning=1280):
    torch.manual_seed(5)
    encoder = meta_image_encoder(CLIP_SIZES).to_empty(device="cpu").eval()
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=.2)
    for module in encoder.modules():
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(5)[None]
    return SV3DPipeline(SV3D(n_conditioning, **SIZES).eval(), narrow_vae(halvings=1), encoder)


@pytest.fixture(scope="module")
def pipeline():
    return random_pipeline()


def test_a_converted_folder_is_read(pipeline, tmp_path):
    parts = dict(unet=pipeline.network.unet, vae=pipeline.vae, image_encoder=pipeline.image_encoder)
    for name, part in parts.items():
        write_component(tmp_path, name, part)
    got = load_sv3d_pipeline(tmp_path).state_dict()
    assert got.keys() == pipeline.state_dict().keys()
    for key, v in pipeline.state_dict().items():
        assert torch.equal(got[key], v), key
    path = tmp_path/"unet"/"config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(projection_class_embeddings_input_dim=768)))
    with pytest.raises(ValueError, match=r"256 \(sv3d_u\) or 1280 \(sv3d_p\) numbers a frame, its config.json has 768"):
        load_sv3d_pipeline(tmp_path)


def test_what_the_network_is_given_of_the_image(pipeline):
    "The mode of the VAE's encoding, not scaled, and CLIP's embedding of the small image."
    image = torch.rand(16, 16, 3)
    with torch.no_grad():
        latents, embedding = pipeline.conditions(image)
        x = image.permute(2, 0, 1)[None]
        moments = pipeline.vae.quant_conv(pipeline.vae.encoder(2*x - 1))
        torch.testing.assert_close(latents, moments[0, :4], rtol=1e-3, atol=1e-4)
        small = resized_smoothly(x, 28)
        small = (small - torch.tensor(CLIP_MEAN)[:, None, None])/torch.tensor(CLIP_STD)[:, None, None]
        torch.testing.assert_close(embedding, pipeline.image_encoder(small).image_embeds, rtol=1e-3, atol=1e-4)


def test_frames_of_an_orbit(pipeline):
    image, quick = torch.rand(16, 16, 3), dict(steps=1, show_progress=False)
    frames = pipeline(image, 15., seed=1, **quick)
    assert frames.shape == (21, 16, 16, 3) and torch.equal(frames[-1], image)
    few = dict(azimuths=[100., 250., 360.], **quick)
    frames = pipeline(image, [10., 20., 15.], seed=1, **few)
    torch.testing.assert_close(pipeline(image, [10., 20., 15.], seed=1, chunk=1, **few), frames, rtol=0, atol=1e-5)
    assert not torch.equal(frames[0], pipeline(image, [10., 20., 15.], seed=2, **few)[0])
    assert not torch.equal(frames[0], pipeline(image, [40., 20., 15.], seed=1, **few)[0])
    assert not torch.equal(frames[0], pipeline(image.flip(0), [10., 20., 15.], seed=1, **few)[0])
    with pytest.raises(ValueError, match="pass elevations, in degrees"):
        pipeline(image, **quick)
    with pytest.raises(ValueError, match="multiple of 16 px .released: 576., got 16 × 20 px"):
        pipeline(torch.rand(20, 16, 3), 10., **quick)


def test_sv3d_u_is_given_no_angles():
    pipeline = random_pipeline(256)
    image, quick = torch.rand(16, 16, 3), dict(steps=1, show_progress=False)
    assert pipeline.name == "sv3d_u" and not pipeline.is_told_angles
    assert pipeline(image, **quick).shape == (21, 16, 16, 3)
    with pytest.raises(ValueError, match="sv3d_u is given no angles"):
        pipeline(image, 10., **quick)


def test_a_dynamic_orbit_is_told_frame_by_frame():
    elevations, azimuths = [10., -20., 35.], [30., 200., 75.]
    given = frame_conditioning(sv3d_cameras(elevations, azimuths), angles=True).double().numpy()
    for row, elevation, azimuth in zip(given, elevations, azimuths):
        polar, around = math.radians(90 - elevation), math.radians((azimuth - 75) % 360)
        for start, angle in ((256, polar), (768, around)):
            frequencies = 1e4**(-np.arange(256)/256)
            expected = np.concatenate([np.cos(angle*frequencies), np.sin(angle*frequencies)])
            np.testing.assert_allclose(row[start:start + 512], expected, atol=1e-4)
    assert torch.allclose(sv3d_orbit(30.).w2c, sv3d_cameras(30., torch.arange(1, 22)*360/21).w2c)
    with pytest.raises(ValueError, match="got 2 azimuths and 3 elevations"):
        sv3d_cameras(elevations, azimuths[:2])


def test_the_released_vae_has_the_size_of_stable_diffusions():
    assert sum(p.numel() for p in meta_vae().parameters()) == 83_653_863
