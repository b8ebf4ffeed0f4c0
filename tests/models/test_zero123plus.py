"Zero123++: attention, sampling and colours written out by hand, and folders that are refused."
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.models.diffusion import VAE_CONFIG, ImageProcessor, diffusion_libraries, write_component
from gslrm_mouse.models.zero123plus import (
    Zero123Plus, load_zero123plus, split_tile, write_random_zero123plus, zero123plus_cameras, zero123plus_domain)
from gslrm_mouse.views.views import Views

pytest.importorskip("diffusers")
QUICK = dict(steps=2, size=16, show_progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")/"zero123plus"
    torch.manual_seed(0)
    write_random_zero123plus(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_zero123plus(folder, version="1.2")


def view_of(image, alpha):
    return Views(image[None], alpha[None], orbit([0.], 10., size=image.shape[0]))


@pytest.fixture(scope="module")
def view():
    draw = torch.Generator().manual_seed(1)
    alpha = torch.zeros(24, 24)
    alpha[5:18, 7:21] = 1.
    colour = torch.rand(24, 24, 3, generator=draw)
    return view_of(colour*alpha[..., None] + 1 - alpha[..., None], alpha)


def test_cameras_of_both_versions():
    for version, elevations, distance in (("1.1", (30, -20), 1.09386), ("1.2", (20, -10), 1.86603)):
        cams = zero123plus_cameras(version, azimuth=10., size=64).to(torch.float64)
        for k, (o, axis) in enumerate(zip(cams.centers, cams.axes)):
            azimuth, elevation = math.radians(40 + 60*k), math.radians(elevations[k % 2])
            expected = distance*torch.tensor([math.cos(azimuth)*math.cos(elevation),
                                              math.sin(azimuth)*math.cos(elevation), math.sin(elevation)])
            torch.testing.assert_close(o, expected.double(), rtol=0, atol=1e-4)
            torch.testing.assert_close(axis, -o/o.norm(), rtol=0, atol=1e-5)
        assert cams.K[0, 0, 0]/64 == pytest.approx(distance, rel=1e-4) # one unit wide at the object
        assert zero123plus_domain(version).mean_distance == pytest.approx(distance, rel=1e-4)


def test_reference_attention_is_attention_to_both_images(model):
    "One self-attention, written out: queries of the image, keys and values of it and of the stored tokens."
    torch.manual_seed(2)
    block = model.unet.down_blocks[1].attentions[0].transformer_blocks[0]
    layer = block.attn1
    x, reference, written = torch.randn(2, 6, 8), torch.randn(2, 5, 8), {}
    with torch.no_grad():
        layer(reference, written=written)
        got = layer(x, read=written)
        (stored,) = written.values()
        assert torch.equal(stored, reference)
        both = torch.cat([x, reference], 1)
        q, k, v = (m(y).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
                   for m, y in ((layer.to_q, x), (layer.to_k, both), (layer.to_v, both)))
        weights = (q @ k.mT/math.sqrt(q.shape[-1])).softmax(-1)
        expected = layer.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert (layer(x) - expected).abs().max() > 1e-3

        text = block.attn2
        prompt = torch.randn(2, 3, 12)
        assert torch.equal(text(x, prompt, read=written), text(x, prompt)) # attention to the text does not read


class FlatVAE:
    "Latents of the size of the image; the decoder shows the first three channels."
    config = SimpleNamespace(block_out_channels=(1,), scaling_factor=.5)

    def encode(self, x):
        mean = torch.cat([x, x[:, :1]], 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.full_like(mean, .3)))

    def decode(self, z):
        return SimpleNamespace(sample=z[:, :3]*.1)


class RecordingUNet(nn.Module):
    "Answers with one number without the image and another with it, and keeps what it was given."
    config = SimpleNamespace(block_out_channels=(1,))
    attn_processors = {}

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.calls = []

    def set_attn_processor(self, processors):
        pass

    def forward(self, x, t, texts, cross_attention_kwargs):
        self.calls.append((x.clone(), float(t), texts.clone(), next(iter(cross_attention_kwargs))))
        return SimpleNamespace(sample=torch.tensor([-.1, .05])[:, None, None, None].expand(2, *x.shape[1:]))


def test_a_call_follows_the_formulas(view):
    "Noise, steps, guidance and colours in float64, from the same random numbers."
    steps, size, unet = 3, 6, RecordingUNet()
    ramp = np.linspace(.1, 1.2, 77)
    model = Zero123Plus(
        version="1.1", vae=FlatVAE(), unet=unet, ramp=ramp.tolist(), empty_prompt=[1, 2] + [0]*75,
        text_encoder=lambda ids: (ids[..., None].float().expand(1, 77, 4),),
        image_encoder=lambda x: SimpleNamespace(image_embeds=torch.arange(4.)[None]),
        vae_processor=ImageProcessor(8, 8, (.5,)*3, (.8,)*3), clip_processor=ImageProcessor(8, 8, (.5,)*3, (1.,)*3),
        scheduler=dict(_class_name="EulerAncestralDiscreteScheduler", num_train_timesteps=1000, beta_start=.00085,
                       beta_end=.012, beta_schedule="linear", prediction_type="v_prediction", steps_offset=1))
    got = model(view, seed=7, steps=steps, size=size, show_progress=False)

    draw = torch.Generator().manual_seed(7)
    def noise(*shape):
        return torch.randn(shape, generator=draw).double().numpy()

    on_grey = torch.where(view.alpha[0, ..., None] > 0, view.images[0], torch.tensor(127/255))
    image = model.vae_processor(on_grey)[0].double().numpy()
    means = np.stack([np.concatenate([x, x[:1]]) for x in (np.zeros((3, 8, 8)), image)])
    reference = means + .3*noise(2, 4, 8, 8)
    times = np.round(np.arange(1000, 0, -1000/steps)) - 1
    products = np.cumprod(1 - np.linspace(.00085, .012, 1000))
    sigmas = np.append(np.interp(times, np.arange(1000), np.sqrt((1 - products)/products)), 0)
    z = noise(1, 4, 3*size, 2*size)*sigmas.max()
    v = -.1 + 4*(.05 + .1)
    for i, (sigma, following) in enumerate(zip(sigmas, sigmas[1:])):
        noisy = (reference + sigma*noise(2, 4, 8, 8))/np.sqrt(sigma**2 + 1)
        first, second = unet.calls[2*i:2*i + 2]
        assert (first[3], second[3]) == ("written", "read") and first[1] == second[1] == times[i]
        np.testing.assert_allclose(first[0].numpy(), noisy, atol=2e-3)
        np.testing.assert_allclose(second[0].numpy(), np.repeat(z, 2, 0)/np.sqrt(sigma**2 + 1), atol=5e-3)
        clean = z/(sigma**2 + 1) - v*sigma/np.sqrt(sigma**2 + 1)
        up = np.sqrt(following**2*(sigma**2 - following**2)/sigma**2)
        down = np.sqrt(following**2 - up**2)
        z = z + (z - clean)/sigma*(down - sigma) + up*noise(1, 4, 3*size, 2*size)
    x = (z/.75 + .22)/.5*.1/.5*.8
    expected = split_tile(torch.from_numpy(np.clip((x[0, :3] + 1)/2, 0, 1)))
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=2e-3)
    assert expected.std() > .01

    texts = unet.calls[0][2]
    np.testing.assert_allclose(texts[0, :3, 0], [1, 2, 0])
    np.testing.assert_allclose(texts[1, :, 3] - texts[0, :, 3], 3*ramp, rtol=1e-5)


def test_the_order_of_the_tile():
    tile = torch.zeros(3, 9, 6)
    tile[:, 3:6, 3:] = 1. # second row, second column
    assert split_tile(tile).mean((1, 2, 3)).tolist() == [0, 0, 0, 1, 0, 0]


def test_seeds_image_and_background(model, view):
    images = model(view, seed=5, **QUICK)
    assert images.shape == (6, 16, 16, 3) and images.isfinite().all()
    assert torch.equal(images, model(view, seed=5, **QUICK))
    assert not torch.equal(images, model(view, seed=6, **QUICK))
    assert not torch.equal(images, model(view_of(view.images[0].flip(1), view.alpha[0].flip(1)), seed=5, **QUICK))
    moved = Views(view.images, view.alpha, orbit([75.], 50., 9., 20., 24))
    assert torch.equal(images, model(moved, seed=5, **QUICK)) # nothing of the camera is given
    with pytest.raises(ValueError, match="one square image, got 1 of 24 × 20 px"):
        model(Views(view.images[:, :20], view.alpha[:, :20], view.cameras), **QUICK)


def test_a_loaded_folder_holds_what_was_written(folder, model):
    for name, part in (("vae", model.vae), ("unet", model.unet)):
        file, = (folder/name).glob("*.safetensors")
        got = part.state_dict()
        for key, v in load_file(file).items():
            assert torch.equal(got[key], v)
    assert model.empty_prompt[0, :3].tolist() == [8, 9, 0] and model.empty_prompt.shape == (1, 77)
    assert not any(module.training for module in (model.vae, model.unet, model.text_encoder, model.image_encoder))


def replaced(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: v for key, v in (config | changes).items() if v is not None}))


@pytest.mark.parametrize("file, changes, message", [
    ("scheduler/scheduler_config.json", dict(prediction_type="epsilon"), "'v_prediction', found 'epsilon'"),
    ("scheduler/scheduler_config.json", dict(_class_name="DDIMScheduler"), "for _class_name 'EulerAncestral"),
    ("model_index.json", dict(ramping_coefficients=[1., 2.]), "77 numbers under ramping_coefficients, found 2 entries"),
    ("model_index.json", dict(ramping_coefficients=None), "found NoneType"),
    ("unet/config.json", dict(in_channels=8), "4 channels in and 4 out, its config.json has 8 and 4"),
    ("unet/config.json", dict(block_out_channels=[8, 16]), "does not fit its config.json"),
    ("unet/config.json", dict(_class_name="UNet3DConditionModel"), "describes UNet3DConditionModel"),
    ("tokenizer/vocab.json", {"!": None}, "! is missing"),
    ("tokenizer/vocab.json", {"<|endoftext|>": 99}, "a number from 0 to 9 was expected for <.endoftext.>, .* found 99"),
    ("tokenizer/vocab.json", {"!": "0"}, "was expected for !, .* found '0'"),
    ("vision_encoder/config.json", dict(hidden_size=13), "nothing can be built of this configuration"),
    ("text_encoder/config.json", dict(hidden_size=13), "nothing can be built of this configuration"),
    ("text_encoder/config.json", dict(architectures=5), "describes a network without a name"),
    ("text_encoder/config.json", dict(max_position_embeddings=76), "does not fit its config.json|has 77 tokens"),
    ("vae/config.json", dict(down_block_types=["Foo"]*4), "nothing can be built of .*Foo does not exist"),
    ("vae/config.json", dict(scaling_factor=0), "scaling_factor should be a positive number, found 0"),
    ("unet/config.json", dict(down_block_types=["Foo", "Foo"]), "nothing can be built of this configuration"),
    ("scheduler/scheduler_config.json", dict(num_train_timesteps="abc"), "nothing can be built of this configuration"),
    ("scheduler/scheduler_config.json", dict(beta_end=1e30), "no finite numbers|nothing can be built"),
    ("feature_extractor_clip/preprocessor_config.json", dict(size=32, crop_size=32), "the image encoder takes 28 px"),
    ("feature_extractor_vae/preprocessor_config.json", dict(image_std=5), "three numbers each"),
    ("feature_extractor_vae/preprocessor_config.json", dict(image_std=[.8, 0, .8]), "those of image_std positive"),
    ("feature_extractor_vae/preprocessor_config.json", dict(resample="abc"), "a number of Pillow's"),
])
def test_another_folder_is_refused(folder, tmp_path, file, changes, message):
    "In one sentence, which names the file or its folder."
    copy = shutil.copytree(folder, tmp_path/"model")
    replaced(copy/file, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_zero123plus(copy, version="1.2")
    assert str((copy/file).parent) in str(error.value) and "\n" not in str(error.value)


def test_parts_of_two_models_are_refused(folder, tmp_path):
    "Each is whole in itself, but the U-Net attends to texts of another width."
    copy = shutil.copytree(folder, tmp_path/"model")
    shutil.rmtree(copy/"text_encoder")
    _, transformers = diffusion_libraries("a test")
    config = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=10, bos_token_id=8,
        eos_token_id=9)
    write_component(copy, "text_encoder", transformers.CLIPTextModel(config))
    with pytest.raises(ValueError, match="text_encoder/config.json: the U-Net attends to 12 numbers a token, .* is 16"):
        load_zero123plus(copy, version="1.2")


def test_the_narrow_folder_is_quick_at_full_size(model):
    "Three halvings, as the released VAE has, and attention at half of that: 2,400 tokens of a tile of full size."
    assert len(model.vae.config.block_out_channels) == len(VAE_CONFIG["block_out_channels"]) == 4
    first, last = model.unet.down_blocks
    assert not hasattr(first, "attentions") and len(last.attentions) == 1


def test_a_missing_part_is_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path/"model")
    file, = (copy/"text_encoder").glob("*.safetensors")
    state = load_file(file)
    name = sorted(state)[0]
    save_file({key: v for key, v in state.items() if key != name}, file)
    with pytest.raises(ValueError, match=f"1 weights are missing .{name}"):
        load_zero123plus(copy, version="1.1")
    for part in ("vision_encoder", "feature_extractor_clip", "scheduler", "tokenizer"):
        other = shutil.copytree(folder, tmp_path/part)
        shutil.rmtree(other/part)
        with pytest.raises(FileNotFoundError, match=f"Zero123.. has a folder {part}, which is missing"):
            load_zero123plus(other, version="1.2")
    with pytest.raises(ValueError, match="one of 1.1, 1.2 .the files do not tell., got '1.3'"):
        load_zero123plus(folder, version="1.3")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_zero123plus(tmp_path/"nothing", version="1.2")
