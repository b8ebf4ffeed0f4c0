"""Whatever the bytes of an image, a truth folder or a YAML file: it is read, or one sentence says why not."""
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.files import IMAGE_FORMATS, load_yaml, open_image
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.views.samples import read_truth, straight_alpha

CASES = 300 # of each kind


def mutated(data:bytes, rng) -> bytes:
    "The bytes with a few changed, cut, doubled or overwritten by ones that decoders stumble over."
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0: data[at] = rng.randrange(256)
        elif kind == 1: data[at:at + rng.randint(1, 9)] = rng.choice([b"", b"\xff"*4, b"\0"*8, b"\x7f\xff\xff\xff"])
        elif kind == 2: data[at:at] = data[at:at + rng.randint(1, 40)]
        else: del data[at + rng.randint(1, 200):at + rng.randint(200, 400)]
        if not data: data = bytearray(b"\0")
    return bytes(data)


def try_reading(read, counts):
    try: read()
    except (ValueError, FileNotFoundError) as e:
        assert "\n" not in str(e)
        counts["refused"] += 1
    else: counts["read"] += 1


@pytest.mark.parametrize("suffix", [f.lower() for f in IMAGE_FORMATS])
def test_images(tmp_path, suffix):
    rng, file, counts = random.Random(suffix), tmp_path/f"image.{suffix}", dict(read=0, refused=0)
    mode = "RGB" if suffix in ("jpeg", "bmp") else "RGBA"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, len(mode)), np.uint8), mode).save(file)
    data = file.read_bytes()
    for _ in range(CASES):
        file.write_bytes(mutated(data, rng))
        try_reading(lambda: open_image(file), counts)
    assert counts["refused"] > CASES/20


JUNK = [None, True, -1, 10**400, 1e308, float("nan"), "", "x", [], [[]], {}, [None]*3, [[1, 2], [3]], {"a": 1}]


def replaced(content, rng):
    "The JSON content with one value, at any depth, replaced by something else."
    places = []
    def collect(x):
        items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
        for key, value in items:
            places.append((x, key))
            collect(value)
    collect(content)
    parent, key = rng.choice(places)
    parent[key] = rng.choice(JUNK)
    return content


def test_truth(tmp_path):
    one = raytrace(mouse_scene(3), mouse_rig()[0].resized(32, 24))
    Image.fromarray(straight_alpha(one)[0]).save(tmp_path/"frame_000_view_0.png")
    K, w2c = one.cameras.K[0].tolist(), one.cameras.w2c[0].tolist()
    camera = dict(view=0, name="a", w=32, h=24, K=K, w2c=w2c)
    text = json.dumps(dict(units="mm", pixel_centre_of_first_pixel=[.5, .5], cameras=[camera]))
    (tmp_path/"heldout_cameras.json").write_text(text)
    assert torch.equal(read_truth(tmp_path, 0)[0].cameras.K, one.cameras.K)
    rng, counts = random.Random(0), dict(read=0, refused=0)
    for _ in range(CASES):
        (tmp_path/"heldout_cameras.json").write_text(json.dumps(replaced(json.loads(text), rng)))
        try_reading(lambda: read_truth(tmp_path, 0), counts)
    assert counts["read"] and counts["refused"]


def test_yaml():
    text = "model: {image_tokenizer: {image_size: 64}, list: [1, 2.5, null, 'x']}\nother: &a [1, {b: c}]\n"
    rng, counts = random.Random(1), dict(read=0, refused=0)
    for _ in range(CASES):
        changed = mutated(text.encode(), rng).decode("latin-1")
        try_reading(lambda changed=changed: load_yaml(changed, "x.yaml"), counts)
    assert counts["read"] and counts["refused"]
