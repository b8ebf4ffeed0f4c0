"""Damaged and hostile files for every reader of the package, from a seed; used by test_fuzz.py and tools/fuzz.py.

`READERS[name](folder)` writes a whole file of a kind into a folder and returns a function which takes a random
generator, damages the file (leaves it whole for None), and returns the call that reads it. That call has to end well,
or with one sentence."""
import contextlib
import io
import json
import pickle
import random
import re
import shutil
import struct
import zipfile
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from gslrm_mouse.calibration.formats import FORMATS, read_calibration, write_calibration
from gslrm_mouse.calibration.rig import Rig
from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.lens import Lens
from gslrm_mouse.cameras.presets import facelift_rig, mouse_rig
from gslrm_mouse.evaluation.sensitivity import load_sensitivity, sensitivity_file
from gslrm_mouse.experiments.base import Arm, append_result, load_results
from gslrm_mouse.files import IMAGE_FORMATS, load_yaml, open_image
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.ply import load_ply, ply_world, save_ply
from gslrm_mouse.masks.imported import decode_rle, read_coco, read_mask_folder, read_png
from gslrm_mouse.models.checkpoint import ModelCard, checkpoint_path, load_checkpoint, save_checkpoint
from gslrm_mouse.models.facelift import load_facelift
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.models.lora import add_lora, load_adapter, save_adapter
from gslrm_mouse.scenes.bodies import canonical_scene, mouse_scene
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.training.loop import load_trained, open_run, run_training
from gslrm_mouse.training.runs import last_checkpoint, read_log
from gslrm_mouse.training.settings import load_settings, settings_from
from gslrm_mouse.video import video_frames, video_info, write_video
from gslrm_mouse.views.samples import KEYPOINTS, read_keypoints, read_sample, read_truth, straight_alpha
from gslrm_mouse.views.samples import write_sample

ROOT = Path(__file__).parents[1]
W, H = 1152, 1024
ERRORS = ValueError, FileNotFoundError, FileExistsError, IsADirectoryError # what the command line prints as a sentence


# ---- damage
def mutated(data:bytes, rng) -> bytes:
    "The bytes with a few changed, cut, doubled or overwritten by ones that decoders stumble over."
    if rng is None: return data
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0: data[at] = rng.randrange(256)
        elif kind == 1: data[at:at + rng.randint(1, 9)] = rng.choice([b"", b"\xff"*4, b"\0"*8, b"\x7f\xff\xff\xff"])
        elif kind == 2: data[at:at] = data[at:at + rng.randint(1, 40)]
        elif kind == 3: data[at:at + 4] = struct.pack("<f", rng.choice([0., -1., 1e30, float("nan"), float("inf")]))
        else: del data[at + rng.randint(1, 200):at + rng.randint(200, 400)]
        if not data: data = bytearray(b"\0")
    return bytes(data)


JUNK = [None, True, -1, 0, 10**400, 1e308, float("nan"), "", "x", "a\nb", [], [[]], {}, [None]*3, [[1, 2], [3]],
        {"a": 1}, "1e400", 2**40]


def all_places(content):
    "(container, key) of every value in nested dicts and lists."
    items = ()
    if isinstance(content, dict): items = content.items()
    if isinstance(content, list): items = enumerate(content)
    for key, value in items:
        yield content, key
        yield from all_places(value)


def replaced(content, rng, junk=JUNK):
    "A copy of nested dicts and lists with one or two values, at any depth, replaced, removed or renamed."
    if rng is None: return content
    content = deepcopy(content)
    for _ in range(rng.randint(1, 2)):
        places = list(all_places(content))
        if not places: break
        parent, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0: del parent[key]
        elif kind == 1 and isinstance(parent, dict): parent[rng.choice(["x", "a\nb", ""])] = parent.pop(key)
        else: parent[key] = deepcopy(rng.choice(junk))
    return content


TOKENS = ["x", "-1", "0", "1e999", ".nan", "nan", "''", "[]", "{}", '"a"', "null", "1 2", "99999999999999999999", "*a",
          "&a", "!!python/object:x", "\n", "true", "0x10", "1_0", "²", "\u2028"]


def retokened(text:str, rng) -> str:
    "The text with one to three of its numbers and words replaced."
    for _ in range(rng.randint(1, 3)):
        tokens = list(re.finditer(r"[-+.\w]+", text))
        if not tokens: return text
        token = rng.choice(tokens)
        text = text[:token.start()] + rng.choice(TOKENS) + text[token.end():]
    return text


def damaged_text(data:bytes, rng) -> bytes:
    "Half of the files by bytes, half by words."
    if rng is None or rng.random() < .5: return mutated(data, rng)
    return retokened(data.decode(errors="replace"), rng).encode()


def damaged_json(data:bytes, rng) -> bytes:
    "Most of the files by values, the others by bytes and words."
    if rng is None or rng.random() < .3: return damaged_text(data, rng)
    return json.dumps(replaced(json.loads(data), rng)).encode()


def outcome(read):
    "`read`, `refused`, or a sentence on what is wrong with the error that came."
    try: read()
    except ERRORS as e:
        if isinstance(e, (UnicodeError, json.JSONDecodeError)): return f"{type(e).__name__} of a library: {e}"[:200]
        message = str(e)
        if len(message.splitlines()) != 1: return f"a message of several lines: {message!r}"[:300]
        if len(message) > 1500: return f"a message of {len(message)} characters: {message[:100]!r}"
        return "refused"
    except Exception as e: return f"{type(e).__name__}: {e}"[:300]
    return "read"


# ---- images, videos, masks
def image_reader(folder, suffix):
    file = folder/f"image.{suffix}"
    mode = "RGB" if suffix in ("jpeg", "bmp") else "RGBA"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, len(mode)), np.uint8), mode).save(file)
    data = file.read_bytes()
    def case(rng):
        file.write_bytes(mutated(data, rng))
        return lambda: open_image(file)
    return case


def video_reader(folder):
    file = folder/"video.mp4"
    rng = np.random.default_rng(0)
    write_video(file, [rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(4)], fps=20)
    data = file.read_bytes()
    def read():
        video_info(file)
        for _ in video_frames(file): pass
    def case(rng):
        file.write_bytes(mutated(data, rng))
        return read
    return case


def coco_reader(folder):
    file = folder/"masks.json"
    mask = dict(size=[6, 8], counts=[8, 8, 32])
    images = [dict(id=i, file_name=f"cam_{i}/frame_000000.png") for i in range(2)]
    annotations = [dict(id=i, image_id=i, segmentation=mask) for i in range(2)]
    annotations[1]["segmentation"] = dict(size=[6, 8], counts="88P1")
    data = json.dumps(dict(images=images, annotations=annotations)).encode()
    def read():
        for frames in read_coco(file).values():
            for items in frames.values():
                for item in items: decode_rle(item, 8, 6)
    def case(rng):
        file.write_bytes(damaged_json(data, rng))
        return read
    return case


def mask_folder_reader(folder):
    out = io.BytesIO()
    Image.fromarray(np.eye(8, dtype=np.uint8)*255).save(out, "PNG")
    names = ["frame_000000", "cam_1_frame_3", "x", "1e5", "a\nb_1", "²", "cam", "9"*30, "-1"]
    def read():
        for frames in read_mask_folder(folder/"masks", 0).values():
            for file in frames.values(): read_png(file, 8, 8)
    def case(rng):
        shutil.rmtree(folder/"masks", ignore_errors=True)
        (folder/"masks/0").mkdir(parents=True)
        name = rng.choice(names) if rng else names[0]
        is_whole = rng is None or rng.random() < .5
        (folder/"masks/0"/f"{name}.png").write_bytes(out.getvalue() if is_whole else mutated(out.getvalue(), rng))
        return read
    return case


# ---- truth, samples
def truth_reader(folder):
    one = raytrace(mouse_scene(3), mouse_rig()[0].resized(32, 24))
    Image.fromarray(straight_alpha(one)[0]).save(folder/"frame_000_view_0.png")
    camera = dict(view=0, name="a", w=32, h=24, K=one.cameras.K[0].tolist(), w2c=one.cameras.w2c[0].tolist())
    content = dict(units="mm", pixel_centre_of_first_pixel=[.5, .5], cameras=[camera])
    data = json.dumps(content).encode()
    def case(rng):
        (folder/"heldout_cameras.json").write_bytes(damaged_json(data, rng))
        return lambda: read_truth(folder, 0)
    return case


def keypoints_reader(folder):
    path = folder/KEYPOINTS
    path.parent.mkdir()
    out = io.BytesIO()
    np.savez_compressed(out, keypoints_mm=np.zeros((2, 3, 3)), names=["a", "b", "c"])
    def case(rng):
        path.write_bytes(mutated(out.getvalue(), rng))
        return lambda: read_keypoints(folder)
    return case


def sample_reader(folder):
    write_sample(raytrace(canonical_scene("head", 0), facelift_rig(16)[:3]), folder/"sample")
    file = folder/"sample/opencv_cameras.json"
    data = file.read_bytes()
    def case(rng):
        file.write_bytes(damaged_json(data, rng))
        return lambda: read_sample(folder/"sample")
    return case


# ---- rigs
def rig_to_write(name):
    rig = mouse_rig()[:3]
    if name == "3DGS": rig.K[:, :2, 2] = torch.tensor([W/2, H/2]) # which its file does not hold
    lens = Lens(rig.K, torch.tensor([[-.1, .02, .001, -.002]]*3, dtype=torch.float64), rig.width, rig.height)
    rig = Rig(rig.K, rig.w2c, rig.width, rig.height, "mm", lens=lens)
    return replace(rig.cameras, unit="model") if FORMATS[name].unit == "model" else rig


def is_json(data):
    try: json.loads(data)
    except ValueError: return False
    return True


def rig_path(folder, name):
    "A path of the name that files of the format have, by which some are recognised."
    if name.startswith("COLMAP"): return folder/"sparse"
    file = Path(FORMATS[name].file.split(",")[0].replace("*", "rig")).name
    return folder/(file if file.endswith(FORMATS[name].suffixes or "") else f"rig{FORMATS[name].suffixes[0]}")


def rig_reader(folder, name):
    path = write_calibration(rig_to_write(name), rig_path(folder, name), name)
    files = sorted(p for p in path.iterdir() if p.stat().st_size > 10) if path.is_dir() else [path]
    whole = {file: file.read_bytes() for file in files}
    damage = damaged_json if all(map(is_json, whole.values())) else damaged_text
    if name in ("MAMMAL", "DANNCE", "Pose Splatter", "COLMAP binary"): damage = mutated
    def read():
        rig = read_calibration(path, W, H)
        assert rig.K.isfinite().all() and rig.w2c.isfinite().all()
    def case(rng):
        for file, data in whole.items(): file.write_bytes(data)
        file = rng.choice(files) if rng else files[0]
        file.write_bytes(damage(whole[file], rng))
        return read
    return case


PICKLE_JUNK = [
    *JUNK[:4], 1e308, float("nan"), "x", b"x", (1,), {1, 2}, frozenset([(1, (2,))]), {(1, 2): 3}, 1 + 2j, object,
    np.eye(3), np.eye(2, dtype=np.int8), np.array("x"), np.array([None]), np.zeros((0, 3)), np.float32(3)]


def pickle_reader(folder):
    file = folder/"new_cam.pkl"
    content = pickle.loads(write_calibration(rig_to_write("MAMMAL"), file, "MAMMAL").read_bytes())
    def case(rng):
        protocol = rng.randint(2, 5) if rng else 4
        file.write_bytes(pickle.dumps(replaced(content, rng, PICKLE_JUNK), protocol))
        return lambda: read_calibration(file, W, H)
    return case


# ---- Gaussians
def ply_reader(folder):
    file = folder/"a.ply"
    save_ply(small_gaussians(), file)
    data = file.read_bytes()
    end = data.index(b"end_header")
    def read():
        g = load_ply(file)
        ply_world(file)
        assert g.scales.isfinite().all() and g.quats.norm(dim=-1).min() > 0, "accepted, though no Gaussians"
    def case(rng):
        if rng is None or rng.random() < .5: changed = damaged_text(data[:end], rng) + data[end:]
        else:
            body = bytearray(data)
            at = end + 11 + 4*rng.randrange((len(data) - end - 11)//4)
            body[at:at + 4] = struct.pack("<f", rng.choice([float("nan"), float("inf"), 1e30, -1e30, 100., 0., 3e38]))
            changed = bytes(body)
        file.write_bytes(changed)
        return read
    return case


def small_gaussians():
    return Gaussians(
        means=torch.randn(5, 3), quats=torch.randn(5, 4), scales=torch.rand(5, 3) + .01, opacities=torch.rand(5),
        sh=torch.randn(5, 1, 3), unit="mm")


# ---- settings
def yaml_reader(folder):
    text = "model: {image_tokenizer: {image_size: 64}, list: [1, 2.5, null, 'x']}\nother: &a [1, {b: c}]\n"
    def case(rng):
        changed = damaged_text(text.encode(), rng)
        return lambda: load_yaml(changed, "x.yaml")
    return case


def damaged_yaml(data, rng):
    if rng is None or rng.random() < .5: return damaged_text(data, rng)
    return yaml.safe_dump(replaced(yaml.safe_load(data), rng)).encode()


def settings_reader(folder):
    file, data = folder/"a.yaml", (ROOT/"configs/mouse_gslrm_lora.yaml").read_bytes()
    def case(rng):
        file.write_bytes(damaged_yaml(data, rng))
        scale = rng.choice(["full", "small"]) if rng else "small"
        return lambda: load_settings(file, scale=scale)
    return case


def original_config():
    sections = dict(
        image_tokenizer=dict(image_size=64, patch_size=8, in_channels=9),
        transformer=dict(d=64, d_head=32, n_layer=2), hard_pixelalign=True, use_custom_plucker=True,
        gaussians=dict(n_gaussians=2, sh_degree=0, upsampler=dict(upsample_factor=1)))
    return dict(model=sections, inference=True)


def original_config_reader(folder):
    file, data = folder/"a.yaml", yaml.safe_dump(original_config()).encode()
    def case(rng):
        file.write_bytes(damaged_yaml(data, rng))
        return lambda: GSLRMConfig.from_yaml(file)
    return case


# ---- networks
NARROW = GSLRMConfig(image_size=16, d=32, d_head=16, n_layer=1)


@cache
def narrow_network():
    torch.manual_seed(0)
    return GSLRM(NARROW).eval()


def damaged_safetensors(data, rng):
    "By bytes, or by values of the header or of the card in it."
    if rng is None or rng.random() < .4: return mutated(data, rng)
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    card = header.get("__metadata__", {}).get("card")
    if card and rng.random() < .6: header["__metadata__"]["card"] = json.dumps(replaced(json.loads(card), rng))
    else: header = replaced(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size:]


def checkpoint_reader(folder):
    file = folder/"a.safetensors"
    data = save_checkpoint(file, narrow_network(), ModelCard(NARROW, FACELIFT_DOMAIN)).read_bytes()
    def case(rng):
        file.write_bytes(damaged_safetensors(data, rng))
        return lambda: load_checkpoint(file)
    return case


def damaged_torch_file(content, path, rng):
    "By values before it is written, by bytes of the pickle in it, or by bytes of the file."
    kind = None if rng is None else rng.randrange(3)
    torch.save(replaced(content, rng) if kind == 0 else content, path)
    if kind == 1:
        with zipfile.ZipFile(path) as f: entries = {entry: f.read(entry) for entry in f.infolist()}
        with zipfile.ZipFile(path, "w") as f:
            for entry, data in entries.items():
                is_pickle = entry.filename.endswith("data.pkl")
                f.writestr(entry.filename, mutated(data, rng) if is_pickle else data)
    if kind == 2: path.write_bytes(mutated(path.read_bytes(), rng))


def facelift_reader(folder):
    file, content = folder/"a.pt", dict(model=dict(narrow_network().state_dict()), step=3)
    def case(rng):
        damaged_torch_file(content, file, rng)
        return lambda: load_facelift(file, NARROW)
    return case


def sensitivity_reader(folder):
    file = folder/"a.sensitivity.json"
    content = json.loads(sensitivity_file(checkpoint_path()).read_text())
    content["rows"] = [row for row in content["rows"] if (row["knob"], row["kind"]) == ("focal", "honest")]
    data = json.dumps(content).encode()
    def case(rng):
        file.write_bytes(damaged_json(data, rng))
        return lambda: load_sensitivity(path=file).predict("focal", .9)
    return case


def adapter_reader(folder):
    adapted = add_lora(deepcopy(narrow_network()), 2, 4., seed=0)
    save_adapter(folder/"adapter", adapted)
    whole = {file: file.read_bytes() for file in (folder/"adapter").iterdir()}
    def case(rng):
        for file, data in whole.items(): file.write_bytes(data)
        file = rng.choice(sorted(whole)) if rng else min(whole)
        damage = damaged_json if file.suffix == ".json" else damaged_safetensors
        file.write_bytes(damage(whole[file], rng))
        return lambda: load_adapter(deepcopy(narrow_network()), folder/"adapter")
    return case


def tiny_settings():
    training = dict(
        runtime=dict(use_amp=False), dataset=dict(n_scenes=2, num_views=5, num_input_views=3),
        dataloader=dict(batch_size_per_gpu=1, num_workers=0), optimizer=dict(lr=1e-3, muon_lr=1e-3),
        schedule=dict(max_fwdbwd_passes=4, warmup=2), checkpointing=dict(checkpoint_every=2))
    transformer = dict(d=32, d_head=16, n_layer=1)
    return settings_from(dict(
        model=dict(image_tokenizer=dict(image_size=16), transformer=transformer), training=training))


def state_reader(folder, whole_run):
    "state.pt of a run, read to export it or (`whole_run`) to continue it."
    s = tiny_settings()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_training(s, folder/"run", stop_at=2, cache=folder/"cache")
    path = last_checkpoint(folder/"run")
    content = torch.load(path/"state.pt", weights_only=True)
    def read():
        if whole_run: open_run(s, folder/"run", resume=True, cache=folder/"cache")
        else: load_trained(path)
    def case(rng):
        damaged_torch_file(content, path/"state.pt", rng)
        return read
    return case


# ---- records
def damaged_lines(data, rng):
    if rng is None or rng.random() < .4: return damaged_text(data, rng)
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    lines[i] = json.dumps(replaced(json.loads(lines[i]), rng)).encode()
    return b"\n".join(lines)


def results_reader(folder):
    file = folder/"results.jsonl"
    for seed in range(3): append_result(file, Arm("gap", "a", seed, dict(checkpoint="x")), [dict(psnr=3., view=1)], 2.)
    data = file.read_bytes()
    def case(rng):
        file.write_bytes(damaged_lines(data, rng))
        return lambda: load_results(file, checkpoint="x")
    return case


def log_reader(folder):
    file, data = folder/"log.jsonl", b'{"event": "manifest"}\n{"step": 0, "loss": 1.5}\n{"step": 1, "loss": 1.2}\n'
    def case(rng):
        file.write_bytes(damaged_lines(data, rng))
        return lambda: read_log(folder)
    return case


READERS = {
    **{f"image {suffix}": partial(image_reader, suffix=suffix.lower()) for suffix in IMAGE_FORMATS},
    **{f"rig {name}": partial(rig_reader, name=name) for name, f in FORMATS.items() if f.write is not None},
    "rig pickle": pickle_reader, "video": video_reader, "COCO": coco_reader, "mask folder": mask_folder_reader,
    "truth": truth_reader, "keypoints": keypoints_reader, "sample": sample_reader, "PLY": ply_reader,
    "YAML": yaml_reader,
    "settings": settings_reader, "convert --config": original_config_reader,
    "safetensors": checkpoint_reader, "sensitivity": sensitivity_reader, "torch.save": facelift_reader,
    "adapter": adapter_reader,
    "state.pt": partial(state_reader, whole_run=False), "state.pt, resumed": partial(state_reader, whole_run=True),
    "results.jsonl": results_reader, "log.jsonl": log_reader,
}
SHARES = { # of the cases of other readers: a case takes a tenth of a second to some seconds
    "rig DANNCE": .05, "rig Pose Splatter": .05, "state.pt": .05, "state.pt, resumed": .05, "adapter": .05,
    "settings": .2}


def case_rng(name, seed, i): return random.Random(f"{name} {seed} {i}")
