"FaceLift's checkpoint files: all of the network or a sentence, nothing run, nothing copied, nothing left behind."
import json, os, subprocess, sys, zipfile
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file
from gslrm_mouse.models.checkpoint import checkpoint_hash, load_checkpoint, read_card
from gslrm_mouse.cameras.presets import inference_rig
from gslrm_mouse.models.facelift import convert, facelift_picture, facelift_ply, facelift_tensors
from gslrm_mouse.models.facelift import load_facelift
from gslrm_mouse.gaussians.ply import load_ply
from gslrm_mouse.models.gslrm import GSLRMConfig

NARROW = GSLRMConfig(image_size=16, d=32, d_head=16, n_layer=2)
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


def state(config=NARROW, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=g)*.1 for k, s in facelift_tensors(config, perceptual=True).items() if "conv" not in k or "conv1." in k}


def save(path, model, **more):
    torch.save({"model": model, "optimizer": {"state": {0: {"step": torch.tensor(3.), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "betas": (.9, .95)}]}, "lr_scheduler": {"last_epoch": 3}, "fwdbwd_pass_step": 21125, "param_update_step": 5281, **more}, path)
    return path


@pytest.fixture
def file(tmp_path): return save(tmp_path/"ckpt_0000000000021125.pt", state())


def refused(path, says, config=NARROW, exc=ValueError):
    with pytest.raises(exc) as e: load_facelift(path, config)
    assert says in str(e.value) and "\n" not in str(e.value) and Path(path).name in str(e.value), e.value
    return str(e.value)


def test_the_table_of_the_released_file():
    "Numbers and shapes of the specification's section 15."
    whole, net = facelift_tensors(perceptual=True), facelift_tensors()
    names, count = list(whole), lambda d: sum(int(np.prod(s)) for s in d.values())
    assert (len(whole), count(whole), len(net), count(net)) == (183, 323_590_208, 151, 303_565_824)
    assert names[0] == "gaussian_position_embeddings" and names[2] == "input_layer_norm.weight" and names[147:151] == ["gaussian_upsampler.layernorm.weight", "gaussian_upsampler.linear.weight", "pixel_gaussian_decoder.0.weight", "pixel_gaussian_decoder.1.weight"]
    for i in range(24): assert names[3 + 6*i:9 + 6*i] == [f"transformer_layers.{i}.{k}.weight" for k in ("norm1", "norm2", "attn.to_qkv", "attn.fc", "mlp.mlp.0", "mlp.mlp.2")]
    assert whole["patch_embedder.1.weight"] == (1024, 576) and whole["gaussian_upsampler.linear.weight"] == (14, 1024) and whole["pixel_gaussian_decoder.1.weight"] == (896, 1024) and whole[names[3 + 4]] == (4096, 1024)
    assert whole["loss_calculator.perceptual_loss_module.net.conv9.weight"] == (512, 256, 3, 3) and names[-1] == "loss_calculator.perceptual_loss_module.net.conv16.bias"


def test_every_tensor_is_the_files(file):
    model, want = load_facelift(file, NARROW), state()
    assert not model.training and model.config == NARROW
    got = model.state_dict()
    assert got.keys() == {k for k in want if not k.startswith("loss_calculator.")}
    assert all(torch.equal(v, want[k]) for k, v in got.items()) and all(p.requires_grad for p in model.parameters())
    with torch.no_grad(): model.input_layer_norm.weight.add_(1)                     # a mapped weight can be trained, and the file does not notice
    assert torch.equal(load_facelift(file, NARROW).input_layer_norm.weight, want["input_layer_norm.weight"])


def test_any_missing_or_extra_key_is_named(tmp_path):
    whole = state()
    for k in facelift_tensors(NARROW):
        assert k in refused(save(tmp_path/"a.pt", {n: v for n, v in whole.items() if n != k}), "1 weights are missing")
    assert "view_type_embeddings" in refused(save(tmp_path/"b.pt", {**whole, "view_type_embeddings": torch.zeros(2, 32)}), "1 are unknown")
    refused(save(tmp_path/"c.pt", {"module." + k: v for k, v in whole.items()}), "19 weights are missing")
    refused(save(tmp_path/"d.pt", {**whole, 7: torch.zeros(1)}), "unknown (7)")
    load_facelift(save(tmp_path/"e.pt", {**whole, "loss_calculator.anything": torch.zeros(3)}), NARROW)
    load_facelift(save(tmp_path/"f.pt", {k: v for k, v in whole.items() if not k.startswith("loss_")}), NARROW)


@pytest.mark.parametrize("change, says", [
    (lambda s: s.update({"input_layer_norm.weight": torch.ones(33)}), "input_layer_norm.weight (33,) instead of (32,)"),
    (lambda s: s.update({"patch_embedder.1.weight": torch.zeros(32, 768)}), "patch_embedder.1.weight takes 12 channels a pixel, colour and rays='nearest' make 9"),
    (lambda s: s.update({"patch_embedder.1.weight": torch.zeros(())}), "patch_embedder.1.weight () instead of (32, 576)"),
    (lambda s: s.update({"transformer_layers.1.attn.fc.weight": torch.full((32, 32), float("nan"))}), "transformer_layers.1.attn.fc.weight holds NaN or infinity"),
    (lambda s: s.update({"input_layer_norm.weight": torch.full((32,), float("inf"))}), "input_layer_norm.weight holds NaN or infinity"),
    (lambda s: s.update({"input_layer_norm.weight": torch.ones(32, dtype=torch.int64)}), "no floating-point numbers in input_layer_norm.weight"),
    (lambda s: s.update({"input_layer_norm.weight": [1.]*32}), "no floating-point numbers in input_layer_norm.weight"),
    (lambda s: s.clear(), "its `model` is empty")])
def test_wrong_tensors(tmp_path, change, says):
    s = state()
    change(s)
    refused(save(tmp_path/"a.pt", s), says)


def test_foreign_files(tmp_path, file):
    refused(tmp_path/"none.pt", "the folder holds ckpt_0000000000021125.pt", exc=FileNotFoundError)
    refused(tmp_path, "no checkpoint at", exc=FileNotFoundError)
    for name, data in dict(empty=b"", text=b"not weights", old=b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.").items():
        (tmp_path/name).write_bytes(data)
        refused(tmp_path/name, f"found {len(data)} bytes")
    torch.save(state(), tmp_path/"bare.pt")
    refused(tmp_path/"bare.pt", "an entry `model`, found 21 entries")
    torch.save({"model_state_dict": state()}, tmp_path/"other.pt")
    refused(tmp_path/"other.pt", "found 1 entries (model_state_dict)")
    torch.save({"model": torch.zeros(3)}, tmp_path/"tensor.pt")
    refused(tmp_path/"tensor.pt", "found 1 entries (model)")
    torch.save([1, 2], tmp_path/"list.pt")
    refused(tmp_path/"list.pt", "found list")
    torch.save({"model": state()}, tmp_path/"legacy.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path/"legacy.pt", "a zip file of torch.save was looked for")
    with zipfile.ZipFile(tmp_path/"a.zip", "w") as z: z.writestr("readme.txt", "hello")
    refused(tmp_path/"a.zip", "not readable as a file of torch.save")
    refused(file, "does not fit the configuration", GSLRMConfig())                  # the released configuration is not guessed away


class Harm:
    def __init__(self, where): self.where = where
    def __reduce__(self): return os.system, (f"touch {self.where}",)


@pytest.mark.parametrize("place", ["optimizer", "inside"])
def test_code_in_the_file_is_not_run(tmp_path, place):
    mark = tmp_path/"harmed"
    s = state()
    path = save(tmp_path/"a.pt", s, optimizer=Harm(mark)) if place == "optimizer" else save(tmp_path/"a.pt", {**s, "input_layer_norm.weight": Harm(mark)})
    assert "system" in refused(path, "holds something other than weights, and nothing in it was run") and not mark.exists()
    with pytest.raises(ValueError): convert(path, tmp_path/"a.safetensors")
    assert not mark.exists() and not (tmp_path/"a.safetensors").exists()
    torch.load(path, weights_only=False)                                            # the file does do harm, if one lets it
    assert mark.exists()


def test_truncated_anywhere(tmp_path, file):
    whole = file.read_bytes()
    for n in (0, 1, 4, 100, 1000, len(whole)//2, len(whole) - 100, len(whole) - 1):
        (tmp_path/"cut.pt").write_bytes(whole[:n])
        refused(tmp_path/"cut.pt", "not readable as a file of torch.save" if n > 3 else "looked for")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), junk=st.binary(min_size=1, max_size=16), tail=st.booleans())
def test_damaged_files_are_read_or_refused(tmp_path, file, at, junk, tail):
    data = bytearray(file.read_bytes())
    low = len(data) - 4000 if tail else 0                                    # the end holds the zip's directory
    i = low + int(at*(len(data) - low - len(junk)))
    data[i:i + len(junk)] = junk
    path = tmp_path/f"damaged{abs(hash((i, junk)))}.pt"
    path.write_bytes(bytes(data))
    try: m = load_facelift(path, NARROW)
    except (ValueError, FileNotFoundError) as e: assert "\n" not in str(e)
    else:
        assert all(p.isfinite().all() for p in m.parameters())
        del m
    path.unlink()


def test_conversion(tmp_path, file):
    (tmp_path/"c.yaml").write_text(YAML)
    out = convert(file, tmp_path/"a.safetensors", tmp_path/"c.yaml")
    card = read_card(out)
    assert card.config == NARROW and card.domain.image_size == 16 and card.domain.fov == (50., 50.) and card.domain.distance == (2.7, 2.7) and card.domain.elevation == (20., 20.)
    assert abs(sum(card.domain.coverage)/2 - .574) < 1e-3 and card.domain.n_views == (4, 6)
    assert (card.training["source"], card.training["sha256"], card.training["fwdbwd_pass_step"], card.training["param_update_step"]) == (file.name, checkpoint_hash(file), 21125, 5281) and "Adobe" in card.training["licence"]
    stored = load_file(out)
    want = state()
    assert len(stored) == 19 and all(torch.equal(v, want[k]) for k, v in stored.items())
    model, _ = load_checkpoint(out)
    assert all(torch.equal(v, want[k]) for k, v in model.state_dict().items())
    half = convert(file, tmp_path/"b.safetensors", tmp_path/"c.yaml", "float16")
    assert half.stat().st_size < .6*out.stat().st_size and load_file(half)["input_layer_norm.weight"].dtype == torch.float16
    with pytest.raises(FileExistsError, match="--overwrite"): convert(file, out, tmp_path/"c.yaml")
    convert(file, out, tmp_path/"c.yaml", overwrite=True)
    for bad, says in ((dict(out=tmp_path/"a.pt"), "\\*.safetensors"), (dict(out=tmp_path/"no"/"a.safetensors"), "folder that exists"), (dict(out=tmp_path/"c.safetensors", dtype="int8"), "float32 or float16"), (dict(out=tmp_path/"c.safetensors", config=None), "does not fit the configuration")):
        with pytest.raises(ValueError, match=says): convert(**{**dict(path=file, config=tmp_path/"c.yaml"), **bad})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "c.yaml", file.name]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory by Linux's /proc")
def test_no_second_copy(tmp_path):
    "42 MB of weights are loaded with less than a quarter of that in memory of one's own."
    config = replace(NARROW, d=256, n_layer=13)
    file = save(tmp_path/"big.pt", state(config))
    (tmp_path/"c.yaml").write_text(YAML.replace("d: 32", "d: 256").replace("n_layer: 2", "n_layer: 13"))
    code = f"""
import sys, torch
from gslrm_mouse.models.facelift import convert, load_facelift
from gslrm_mouse.models.checkpoint import load_checkpoint
from gslrm_mouse.models.gslrm import GSLRMConfig
c = GSLRMConfig.from_yaml({str(tmp_path/'c.yaml')!r}); own = lambda: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))/1e3
torch.load({str(file)!r}, weights_only=True, mmap=True); base = own()
m = load_facelift({str(file)!r}, c); a = own() - base
convert({str(file)!r}, {str(tmp_path/'a.safetensors')!r}, {str(tmp_path/'c.yaml')!r}); b = own() - base
n, _ = load_checkpoint({str(tmp_path/'a.safetensors')!r}); print(a, b, own() - base)
"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert r.returncode == 0, r.stderr
    assert file.stat().st_size > 40e6 and all(float(x) < 11 for x in r.stdout.split()), r.stdout


def test_pictures_need_squares():
    for bad in (np.zeros((4, 5, 4), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.float32)):
        with pytest.raises(ValueError, match="a square RGBA picture in uint8 was expected"): facelift_picture(bad, 2)


def test_inference_rig_is_the_one_in_the_file(sample):
    frames = json.loads((sample.parent/"inference_rig.json").read_text())["frames"]
    rig = inference_rig()
    for mine, i in enumerate((2, 1, 0, 5, 4, 3)):
        np.testing.assert_allclose(rig.w2c[mine].numpy(), np.array(frames[i]["w2c"]), atol=2e-5)
        assert abs(rig.K[mine, 0, 0].item() - frames[i]["fx"]) < 1e-3
    assert np.abs(rig.w2c[0].numpy() - np.array(frames[0]["w2c"])).max() > .5           # in another order it would not fit


def test_ply_of_higher_degrees_reads_back(tmp_path):
    for degree in (0, 1, 2, 3):
        p = dict(xyz=torch.randn(5, 3), features=torch.randn(5, (degree + 1)**2, 3), scaling=torch.randn(5, 3), rotation=torch.randn(5, 4), opacity=torch.randn(5, 1))
        for viewer in (True, False):
            (tmp_path/"a.ply").write_bytes(facelift_ply(p, viewer=viewer))
            g = load_ply(tmp_path/"a.ply")
            K = (degree + 1)**2
            assert torch.equal(g.sh[:, :K], p["features"]) and not g.sh[:, K:].any() and g.sh_degree == (3 if viewer else degree) and torch.equal(g.quats, p["rotation"])
