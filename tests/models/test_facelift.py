"FaceLift's checkpoint files: the whole network or one sentence; nothing is run, copied or left behind."
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file

from gslrm_mouse.cameras.presets import inference_rig
from gslrm_mouse.gaussians.ply import load_ply
from gslrm_mouse.models.checkpoint import checkpoint_hash, load_checkpoint, read_card
from gslrm_mouse.models.facelift import convert, facelift_picture, facelift_ply, facelift_tensors, load_facelift
from gslrm_mouse.models.gslrm import GSLRMConfig

NARROW = GSLRMConfig(image_size=16, d=32, d_head=16, n_layer=2)
NORM = "input_layer_norm.weight"
YAML = """
model:
  image_tokenizer: {image_size: 16, patch_size: 8, in_channels: 9}
  transformer: {d: 32, d_head: 16, n_layer: 2}
  gaussians: {n_gaussians: 2, sh_degree: 0}
  hard_pixelalign: true
  use_custom_plucker: true
  clip_xyz: true
inference: {enabled: false}
"""


def random_state(config=NARROW, seed=0):
    "Weights of the network and of the first convolution of the perceptual loss."
    g = torch.Generator().manual_seed(seed)
    shapes = facelift_tensors(config, perceptual=True)
    return {name: torch.randn(shape, generator=g)*.1 for name, shape in shapes.items()
            if "conv" not in name or "conv1." in name}


def save(path, model, **entries):
    "A file in the original's layout."
    optimizer = {
        "state": {0: {"step": torch.tensor(3.), "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 1e-4, "betas": (.9, .95)}],
    }
    file = {
        "model": model,
        "optimizer": optimizer,
        "lr_scheduler": {"last_epoch": 3},
        "fwdbwd_pass_step": 21125,
        "param_update_step": 5281,
    }
    torch.save({**file, **entries}, path)
    return path


@pytest.fixture
def file(tmp_path): return save(tmp_path/"ckpt_0000000000021125.pt", random_state())


def assert_refused(path, fragment, config=NARROW, exc=ValueError):
    with pytest.raises(exc) as e: load_facelift(path, config)
    message = str(e.value)
    assert fragment in message, message
    assert "\n" not in message, message
    assert Path(path).name in message, message
    return message


def n_numbers(shapes): return sum(int(np.prod(shape)) for shape in shapes.values())


def test_the_table_of_the_released_file():
    "Counts and shapes of section 15 of the specification."
    whole, network = facelift_tensors(perceptual=True), facelift_tensors()
    assert (len(whole), n_numbers(whole)) == (183, 323_590_208)
    assert (len(network), n_numbers(network)) == (151, 303_565_824)

    names = list(whole)
    assert names[0] == "gaussian_position_embeddings"
    assert names[2] == NORM
    for i in range(24):
        parts = ("norm1", "norm2", "attn.to_qkv", "attn.fc", "mlp.mlp.0", "mlp.mlp.2")
        assert names[3 + 6*i:9 + 6*i] == [f"transformer_layers.{i}.{part}.weight" for part in parts]
    assert names[147:151] == [
        "gaussian_upsampler.layernorm.weight", "gaussian_upsampler.linear.weight",
        "pixel_gaussian_decoder.0.weight", "pixel_gaussian_decoder.1.weight",
    ]
    assert names[-1] == "loss_calculator.perceptual_loss_module.net.conv16.bias"

    assert whole["patch_embedder.1.weight"] == (1024, 576)
    assert whole["gaussian_upsampler.linear.weight"] == (14, 1024)
    assert whole["pixel_gaussian_decoder.1.weight"] == (896, 1024)
    assert whole[names[3 + 4]] == (4096, 1024)
    assert whole["loss_calculator.perceptual_loss_module.net.conv9.weight"] == (512, 256, 3, 3)


def test_every_tensor_is_the_files(file):
    model, expected = load_facelift(file, NARROW), random_state()
    assert not model.training
    assert model.config == NARROW
    loaded = model.state_dict()
    assert loaded.keys() == {name for name in expected if not name.startswith("loss_calculator.")}
    assert all(torch.equal(v, expected[name]) for name, v in loaded.items())
    assert all(p.requires_grad for p in model.parameters())
    # a mapped weight can be trained, and the file does not change
    with torch.no_grad(): model.input_layer_norm.weight.add_(1)
    assert torch.equal(load_facelift(file, NARROW).input_layer_norm.weight, expected[NORM])


def test_any_missing_or_extra_key_is_named(tmp_path):
    whole = random_state()
    for missing in facelift_tensors(NARROW):
        rest = {name: v for name, v in whole.items() if name != missing}
        assert missing in assert_refused(save(tmp_path/"a.pt", rest), "1 weights are missing")
    extra = save(tmp_path/"b.pt", {**whole, "view_type_embeddings": torch.zeros(2, 32)})
    assert "view_type_embeddings" in assert_refused(extra, "1 are unknown")
    prefixed = {"module." + name: v for name, v in whole.items()}
    assert_refused(save(tmp_path/"c.pt", prefixed), "19 weights are missing")
    assert_refused(save(tmp_path/"d.pt", {**whole, 7: torch.zeros(1)}), "unknown (7)")


def test_tensors_of_the_loss_do_not_matter(tmp_path):
    whole = random_state()
    network = {name: v for name, v in whole.items() if not name.startswith("loss_")}
    load_facelift(save(tmp_path/"more.pt", {**whole, "loss_calculator.anything": torch.zeros(3)}), NARROW)
    load_facelift(save(tmp_path/"none.pt", network), NARROW)


@pytest.mark.parametrize("name, value, fragment", [
    (NORM, torch.ones(33), "input_layer_norm.weight (33,) instead of (32,)"),
    ("patch_embedder.1.weight", torch.zeros(32, 768),
     "patch_embedder.1.weight takes 12 channels a pixel, colour and rays='nearest' make 9"),
    ("patch_embedder.1.weight", torch.zeros(()), "patch_embedder.1.weight () instead of (32, 576)"),
    ("transformer_layers.1.attn.fc.weight", torch.full((32, 32), float("nan")),
     "transformer_layers.1.attn.fc.weight holds NaN or infinity"),
    (NORM, torch.full((32,), float("inf")), "input_layer_norm.weight holds NaN or infinity"),
    (NORM, torch.ones(32, dtype=torch.int64), "no floating-point numbers in input_layer_norm.weight"),
    (NORM, [1.]*32, "no floating-point numbers in input_layer_norm.weight"),
])
def test_wrong_tensors(tmp_path, name, value, fragment):
    assert_refused(save(tmp_path/"a.pt", {**random_state(), name: value}), fragment)


def test_no_tensors(tmp_path): assert_refused(save(tmp_path/"a.pt", {}), "its `model` is empty")


def test_foreign_files(tmp_path, file):
    assert_refused(tmp_path/"none.pt", "the folder holds ckpt_0000000000021125.pt", exc=FileNotFoundError)
    assert_refused(tmp_path, "no checkpoint at", exc=FileNotFoundError)
    assert_refused(file, "does not fit the configuration", GSLRMConfig()) # no other configuration is tried
    old_format = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    for name, data in (("empty", b""), ("text", b"not weights"), ("old", old_format)):
        (tmp_path/name).write_bytes(data)
        assert_refused(tmp_path/name, f"found {len(data)} bytes")
    with zipfile.ZipFile(tmp_path/"a.zip", "w") as z: z.writestr("readme.txt", "hello")
    assert_refused(tmp_path/"a.zip", "not readable as a file of torch.save")
    torch.save({"model": random_state()}, tmp_path/"legacy.pt", _use_new_zipfile_serialization=False)
    assert_refused(tmp_path/"legacy.pt", "a zip file of torch.save was looked for")


@pytest.mark.parametrize("content, fragment", [
    (random_state(), "an entry `model`, found 21 entries"),
    ({"model_state_dict": random_state()}, "found 1 entries (model_state_dict)"),
    ({"model": torch.zeros(3)}, "found 1 entries (model)"),
    ([1, 2], "found list"),
], ids=["bare", "other name", "tensor", "list"])
def test_other_contents(tmp_path, content, fragment):
    torch.save(content, tmp_path/"a.pt")
    assert_refused(tmp_path/"a.pt", fragment)


class Harm:
    def __init__(self, marker): self.marker = marker
    def __reduce__(self): return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["optimizer", "inside"])
def test_code_in_the_file_is_not_run(tmp_path, place):
    marker, state = tmp_path/"harmed", random_state()
    if place == "optimizer": path = save(tmp_path/"a.pt", state, optimizer=Harm(marker))
    else: path = save(tmp_path/"a.pt", {**state, NORM: Harm(marker)})
    assert "system" in assert_refused(path, "holds something other than weights, and nothing in it was run")
    assert not marker.exists()
    with pytest.raises(ValueError): convert(path, tmp_path/"a.safetensors")
    assert not marker.exists()
    assert not (tmp_path/"a.safetensors").exists()
    torch.load(path, weights_only=False) # the file does do harm if it is allowed to
    assert marker.exists()


def test_truncated_anywhere(tmp_path, file):
    whole = file.read_bytes()
    for n in (0, 1, 4, 100, 1000, len(whole)//2, len(whole) - 100, len(whole) - 1):
        (tmp_path/"cut.pt").write_bytes(whole[:n])
        assert_refused(tmp_path/"cut.pt", "not readable as a file of torch.save" if n > 3 else "looked for")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), junk=st.binary(min_size=1, max_size=16), tail=st.booleans())
def test_damaged_files_are_read_or_refused(tmp_path, file, at, junk, tail):
    data = bytearray(file.read_bytes())
    start = len(data) - 4000 if tail else 0 # the end holds the zip's directory
    i = start + int(at*(len(data) - start - len(junk)))
    data[i:i + len(junk)] = junk
    path = tmp_path/f"damaged{abs(hash((i, junk)))}.pt"
    path.write_bytes(bytes(data))
    try: model = load_facelift(path, NARROW)
    except (ValueError, FileNotFoundError) as e: assert "\n" not in str(e)
    else:
        assert all(p.isfinite().all() for p in model.parameters())
        del model
    path.unlink()


@pytest.fixture
def yaml(tmp_path):
    path = tmp_path/"c.yaml"
    path.write_text(YAML)
    return path


def test_conversion(tmp_path, file, yaml):
    converted = convert(file, tmp_path/"a.safetensors", yaml)
    card = read_card(converted)
    assert card.config == NARROW
    assert card.domain.image_size == 16
    assert card.domain.fov == (50., 50.)
    assert card.domain.distance == (2.7, 2.7)
    assert card.domain.elevation == (20., 20.)
    assert abs(sum(card.domain.coverage)/2 - .574) < 1e-3
    assert card.domain.n_views == (4, 6)
    facts = card.training
    assert (facts["source"], facts["sha256"]) == (file.name, checkpoint_hash(file))
    assert (facts["fwdbwd_pass_step"], facts["param_update_step"]) == (21125, 5281)
    assert "Adobe" in facts["licence"]

    stored, expected = load_file(converted), random_state()
    assert len(stored) == 19
    assert all(torch.equal(v, expected[name]) for name, v in stored.items())
    model, _ = load_checkpoint(converted)
    assert all(torch.equal(v, expected[name]) for name, v in model.state_dict().items())

    half = convert(file, tmp_path/"b.safetensors", yaml, "float16")
    assert half.stat().st_size < .6*converted.stat().st_size
    assert load_file(half)[NORM].dtype == torch.float16


def test_conversion_replaces_only_when_told(tmp_path, file, yaml):
    converted = convert(file, tmp_path/"a.safetensors", yaml)
    with pytest.raises(FileExistsError, match="--overwrite"): convert(file, converted, yaml)
    convert(file, converted, yaml, overwrite=True)


def test_refused_conversions(tmp_path, file, yaml):
    good = dict(path=file, out=tmp_path/"c.safetensors", config=yaml)
    for change, message in (
        (dict(out=tmp_path/"a.pt"), "\\*.safetensors"),
        (dict(out=tmp_path/"no"/"a.safetensors"), "folder that exists"),
        (dict(dtype="int8"), "float32 or float16"),
        (dict(config=None), "does not fit the configuration"),
    ):
        with pytest.raises(ValueError, match=message): convert(**{**good, **change})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", file.name]


MEASURE = """
import torch
from gslrm_mouse.models.checkpoint import load_checkpoint
from gslrm_mouse.models.facelift import convert, load_facelift
from gslrm_mouse.models.gslrm import GSLRMConfig

def private_mb():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('RssAnon'))/1e3

file, yaml, out = {file!r}, {yaml!r}, {out!r}
config = GSLRMConfig.from_yaml(yaml)
torch.load(file, weights_only=True, mmap=True)
base = private_mb()
model = load_facelift(file, config)
print(private_mb() - base)
convert(file, out, yaml)
print(private_mb() - base)
converted, _ = load_checkpoint(out)
print(private_mb() - base)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory by Linux's /proc")
def test_no_second_copy(tmp_path):
    "42 MB of weights are loaded with less than a quarter of that in private memory."
    file = save(tmp_path/"big.pt", random_state(replace(NARROW, d=256, n_layer=13)))
    yaml = tmp_path/"c.yaml"
    yaml.write_text(YAML.replace("d: 32", "d: 256").replace("n_layer: 2", "n_layer: 13"))
    code = MEASURE.format(file=str(file), yaml=str(yaml), out=str(tmp_path/"a.safetensors"))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    assert file.stat().st_size > 40e6
    megabytes = [float(x) for x in result.stdout.split()]
    assert len(megabytes) == 3
    assert max(megabytes) < 11, megabytes


@pytest.mark.parametrize("bad", [
    np.zeros((4, 5, 4), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.float32),
], ids=["not square", "no alpha", "not bytes"])
def test_images_must_be_square_rgba(bad):
    with pytest.raises(ValueError, match="a square RGBA image in uint8 was expected"): facelift_picture(bad, 2)


def test_inference_rig_is_the_one_in_the_file(sample):
    frames = json.loads((sample.parent/"inference_rig.json").read_text())["frames"]
    rig = inference_rig()
    for ours, theirs in enumerate((2, 1, 0, 5, 4, 3)):
        np.testing.assert_allclose(rig.w2c[ours].numpy(), np.array(frames[theirs]["w2c"]), atol=2e-5)
        assert abs(rig.K[ours, 0, 0].item() - frames[theirs]["fx"]) < 1e-3
    # in another order it would not fit
    assert np.abs(rig.w2c[0].numpy() - np.array(frames[0]["w2c"])).max() > .5


@pytest.mark.parametrize("viewer", [True, False])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_of_higher_degrees_reads_back(tmp_path, degree, viewer):
    K = (degree + 1)**2
    params = dict(
        xyz=torch.randn(5, 3), features=torch.randn(5, K, 3), scaling=torch.randn(5, 3),
        rotation=torch.randn(5, 4), opacity=torch.randn(5, 1))
    (tmp_path/"a.ply").write_bytes(facelift_ply(params, viewer=viewer))
    read = load_ply(tmp_path/"a.ply")
    assert torch.equal(read.sh[:, :K], params["features"])
    assert not read.sh[:, K:].any()
    assert read.sh_degree == (3 if viewer else degree)
    assert torch.equal(read.quats, params["rotation"])
