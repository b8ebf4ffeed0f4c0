"Shared parts of diffusion models: names of the original code against independent readers, folders, images."
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from gslrm_mouse.models.diffusion import (
    CLIP_CONFIG, CLIP_MEAN, CLIP_STD, ImageProcessor, clip_weights, load_image_encoder, load_image_processor,
    load_text_encoder, load_vae, meta_image_encoder, meta_text_encoder, narrow_vae, resized_smoothly, vae_weights,
    write_component)

pytest.importorskip("diffusers")

NARROW_CLIP = CLIP_CONFIG | dict(
    hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3, image_size=28, projection_dim=5)


def original_vae(narrow=8, wide=16):
    "Random tensors with the original's names: two levels, the second wider."
    shapes = {
        "encoder.conv_in": (narrow, 3, 3, 3), "encoder.conv_out": (8, wide, 3, 3), "encoder.norm_out": (wide,),
        "encoder.down.0.downsample.conv": (narrow, narrow, 3, 3),
        "decoder.conv_in": (wide, 4, 3, 3), "decoder.conv_out": (3, narrow, 3, 3), "decoder.norm_out": (narrow,),
        "decoder.up.1.upsample.conv": (wide, wide, 3, 3), "quant_conv": (8, 8, 1, 1), "post_quant_conv": (4, 4, 1, 1),
    }

    def put_block(name, n_in, n_out):
        shapes.update({f"{name}.norm1": (n_in,), f"{name}.conv1": (n_out, n_in, 3, 3), f"{name}.norm2": (n_out,),
                       f"{name}.conv2": (n_out, n_out, 3, 3)})
        if n_in != n_out:
            shapes[f"{name}.nin_shortcut"] = (n_out, n_in, 1, 1)

    put_block("encoder.down.0.block.0", narrow, narrow)
    put_block("encoder.down.1.block.0", narrow, wide)
    for i in range(2):
        put_block(f"decoder.up.1.block.{i}", wide, wide)
        put_block(f"decoder.up.0.block.{i}", narrow if i else wide, narrow)
    for half in ("encoder", "decoder"):
        put_block(f"{half}.mid.block_1", wide, wide)
        put_block(f"{half}.mid.block_2", wide, wide)
        shapes[f"{half}.mid.attn_1.norm"] = (wide,)
        for layer in ("q", "k", "v", "proj_out"):
            shapes[f"{half}.mid.attn_1.{layer}"] = (wide, wide, 1, 1)
    draw = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=draw)*.2
        state[f"{name}.bias"] = torch.randn(shape[:1], generator=draw)*.2
    return state


def original_clip(config=NARROW_CLIP):
    "Random tensors with OpenCLIP's names, without `visual.`."
    width, inner, draw = config["hidden_size"], config["intermediate_size"], torch.Generator().manual_seed(4)
    shapes = {
        "class_embedding": (width,), "positional_embedding": (5, width), "proj": (width, config["projection_dim"]),
        "conv1.weight": (width, 3, 14, 14)}
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for i in range(config["num_hidden_layers"]):
        block = f"transformer.resblocks.{i}"
        for name, shape in (("ln_1", (width,)), ("ln_2", (width,)), ("mlp.c_fc", (inner, width)),
                            ("mlp.c_proj", (width, inner)), ("attn.out_proj", (width, width))):
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        shapes |= {f"{block}.attn.in_proj_weight": (3*width, width), f"{block}.attn.in_proj_bias": (3*width,)}
    return {name: torch.randn(shape, generator=draw)*.3 for name, shape in shapes.items()}


def openclip_forward(w, image, heads, layers):
    "The vision transformer of CLIP, written out with OpenCLIP's names."
    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    x = F.conv2d(image, w["conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], 1) + w["positional_embedding"]
    x = norm(x, "ln_pre")
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        y = norm(x, f"{block}.ln_1").transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            y, y, y, y.shape[-1], heads, w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"], None, None,
            False, 0., w[f"{block}.attn.out_proj.weight"], w[f"{block}.attn.out_proj.bias"], training=False)
        x = x + y.transpose(0, 1)
        y = F.linear(norm(x, f"{block}.ln_2"), w[f"{block}.mlp.c_fc.weight"], w[f"{block}.mlp.c_fc.bias"])
        x = x + F.linear(F.gelu(y), w[f"{block}.mlp.c_proj.weight"], w[f"{block}.mlp.c_proj.bias"])
    return norm(x[:, 0], "ln_post") @ w["proj"]


def test_a_vae_of_the_original_code_has_the_names_that_diffusers_gives_it():
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    state = original_vae()
    config = dict(down_block_types=("DownEncoderBlock2D",)*2, up_block_types=("UpDecoderBlock2D",)*2)
    expected = convert_ldm_vae_checkpoint({f"first_stage_model.{key}": v for key, v in state.items()}, config)
    got = vae_weights(state)
    assert got.keys() == expected.keys()
    for name, v in expected.items():
        assert torch.equal(got[name], v), name


def test_an_image_encoder_of_openclip_computes_the_same_embedding():
    w, image = original_clip(), torch.randn(2, 3, 28, 28)
    model = meta_image_encoder(NARROW_CLIP)
    model.load_state_dict(clip_weights(w), assign=True)
    with torch.no_grad():
        got = model.eval()(image).image_embeds
    expected = openclip_forward(w, image, heads=3, layers=2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    swapped = {key: v.roll(12, 0) if "in_proj" in key else v for key, v in w.items()} # k, v, q order
    model.load_state_dict(clip_weights(swapped), assign=True)
    with torch.no_grad():
        assert (model(image).image_embeds - expected).abs().max() > 1e-2


def test_the_smooth_resize_is_that_of_the_svd_pipeline():
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
    images = torch.rand(2, 3, 41, 30)
    for size in (7, 14, 28):
        expected = _resize_with_antialiasing(images, (size, size))
        torch.testing.assert_close(resized_smoothly(images, size), expected, rtol=1e-4, atol=1e-5)
    assert (resized_smoothly(images, 7) - F.interpolate(images, (7, 7), mode="bicubic")).abs().max() > .05


def test_the_image_processor_is_that_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    from transformers.models.clip import image_processing_pil_clip as clip
    config = dict(size=dict(shortest_edge=20), crop_size=dict(height=16, width=16), image_mean=list(CLIP_MEAN),
                  image_std=list(CLIP_STD), resample=3)
    (tmp_path/"features").mkdir()
    (tmp_path/"features"/"preprocessor_config.json").write_text(json.dumps(config))
    processor = load_image_processor(tmp_path, "features", "a model")
    for height, width in ((33, 47), (77, 77), (154, 200)): # 77*(20/77) is less than 20 in floating point
        pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = clip.CLIPImageProcessorPil(**config)(pixels, return_tensors="pt").pixel_values
        got = processor(torch.from_numpy(pixels).float()/255)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert processor == ImageProcessor(20, 16, CLIP_MEAN, CLIP_STD, 3)


@pytest.mark.parametrize("change, message", [
    (dict(do_center_crop=False), "switched off: center_crop"),
    (dict(crop_size=dict(height=16, width=8)), "a square crop"),
    (dict(size=dict(height=20, width=20)), "shortest edge"), (dict(image_std=[.8]), "three numbers")])
def test_other_image_processors_are_refused(tmp_path, change, message):
    (tmp_path/"features").mkdir()
    config = dict(size=20, crop_size=16, image_mean=[.5]*3, image_std=[.8]*3) | change
    (tmp_path/"features"/"preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_image_processor(tmp_path, "features", "a model")


def test_encoders_are_read_with_the_names_of_older_files(tmp_path):
    "The text encoder's prefix and the numbers of positions, which transformers 5 no longer writes."
    config = dict(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                  bos_token_id=8, eos_token_id=9)
    model = meta_text_encoder(config).to_empty(device="cpu").eval()
    for p in model.parameters():
        torch.nn.init.normal_(p)
    file = write_component(tmp_path, "text_encoder", model)
    weights = {key: v.clone() for key, v in model.state_dict().items()}
    prefixed = {f"text_model.{key.removeprefix('text_model.')}": v for key, v in weights.items()}
    save_file(prefixed | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    ids = torch.tensor([[8, 3, 9] + [0]*74])
    with torch.no_grad():
        expected = load_text_encoder(tmp_path, "a model")(ids)[0]
        save_file(weights, file)
        assert torch.equal(load_text_encoder(tmp_path, "a model")(ids)[0], expected)
    assert expected.isfinite().all() and expected.std() > .1

    save_file(prefixed | {"text_model.extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="1 are unknown"):
        load_text_encoder(tmp_path, "a model")


def test_a_folder_is_read_whole_or_not_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="SV3D has a folder vae, which is missing; .* holds nothing"):
        load_vae(tmp_path, "SV3D")
    vae = narrow_vae()
    file = write_component(tmp_path, "vae", vae)
    weights = {key: v.clone() for key, v in vae.state_dict().items()}
    save_file(weights | {"decoder.conv_in.bias": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"decoder.conv_in.bias \(3,\) instead of \(8,\)"):
        load_vae(tmp_path, "SV3D")
    save_file(weights | {"decoder.conv_in.bias": torch.full((8,), math.nan)}, file)
    with pytest.raises(ValueError, match="decoder.conv_in.bias holds NaN"):
        load_vae(tmp_path, "SV3D")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match="holds no .safetensors file"):
        load_vae(tmp_path, "SV3D")
    with pytest.raises(ValueError, match="describes AutoencoderKL, SV3D has CLIPVisionModelWithProjection"):
        load_image_encoder(tmp_path, "SV3D", "vae")
    (tmp_path/"vae"/"config.json").write_text("[1]")
    with pytest.raises(ValueError, match="an object was expected, found list"):
        load_vae(tmp_path, "SV3D")
    (tmp_path/"vae"/"config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json was looked for"):
        load_vae(tmp_path, "SV3D")
