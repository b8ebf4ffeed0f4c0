"""`WORLD` names the images of the scene generator: stored results are found by it, so it may change only when they do.

    python tests/scenes/test_world.py      draws the stored images again, after a change of WORLD
"""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gslrm_mouse.experiments.base import load_results
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.models.checkpoint import checkpoint_hash, shipped_checkpoint
from gslrm_mouse.experiments.plan import Plan
from gslrm_mouse.experiments.registry import EXPERIMENTS, experiments
from gslrm_mouse.experiments.runner import stored_parts
from gslrm_mouse.scenes.bodies import SCENES, canonical_scene, mouse_scene
from gslrm_mouse.scenes.dataset import WORLD
from gslrm_mouse.scenes.tracer import raytrace

ROOT = Path(__file__).parents[2]
STORED = ROOT/"tests/data"/f"world_{WORLD}.png"
SEEDS = (0, 7, 1_000_003)
SIZE = 24 # pixels


def world_images(seeds=SEEDS) -> np.ndarray: # rows of images, RGBA
    "A few seeds of each kind from an oblique camera, and the same mice in millimetres from one camera of the rig."
    camera = orbit([-65], 20., 2.9, 44., SIZE)
    rig = mouse_rig()
    rig = rig[[2]].resized(rig.width//36, rig.height//32)
    rows = [[raytrace(canonical_scene(kind, seed), camera) for seed in seeds] for kind in SCENES]
    rows.append([raytrace(mouse_scene(seed), rig) for seed in seeds])
    sheet = []
    for row in rows:
        tiles = []
        for views in row:
            rgba = np.concatenate([views.images[0].numpy(), views.alpha[0, ..., None].numpy()], -1)
            tile = np.zeros((32, 32, 4), np.uint8)
            tile[:rgba.shape[0], :rgba.shape[1]] = np.round(rgba*255)
            tiles.append(tile)
        sheet.append(np.concatenate(tiles, 1))
    return np.concatenate(sheet)


def differing_share(images, stored) -> float:
    "Share of values that differ by more than two levels: at an edge, a ray may fall either way on another machine."
    return float((np.abs(images.astype(int) - stored.astype(int)) > 2).mean())


@pytest.fixture(scope="module")
def stored():
    return np.asarray(Image.open(STORED))


def test_the_world_is_the_one_its_version_names(stored):
    assert differing_share(world_images(), stored) < 1e-3


def test_another_world_is_noticed(stored):
    assert differing_share(world_images((1, 8, 1_000_004)), stored) > .05


def test_a_change_of_one_scene_is_noticed(stored):
    assert differing_share(world_images((0, 7, 1_000_004)), stored) > .01


def found_results(results=ROOT/"nbs/results") -> dict:
    "For each experiment, the number of stored results that the quick or the full study plans."
    checkpoint = shipped_checkpoint("gslrm_64")
    found = {}
    for name, experiment in EXPERIMENTS.items():
        [experiment] = experiments(Plan(str(checkpoint), only=(name,)), None, EXPERIMENTS)
        planned = {arm.key for full in (True, False) for arm in experiment.arms(full, checkpoint)}
        stored = {line["key"] for line in load_results(results/f"{name}.jsonl")}
        found[name] = len(planned & stored)
    for section in stored_parts(results, checkpoint):
        if section.experiment.name.startswith("recording_"): found[section.experiment.name] = len(section.done)
    larger = checkpoint_hash(shipped_checkpoint("gslrm_128"))
    at_128 = load_results(results/"recording_adapters_128.jsonl", checkpoint=larger)
    return found | {"recording_adapters_128": len(at_128)}


def test_every_stored_result_is_still_found():
    found = found_results()
    stored = {path.stem: len(path.read_text().splitlines()) for path in (ROOT/"nbs/results").glob("*.jsonl")}
    assert found == stored
    assert sum(found.values()) == 525


if __name__ == "__main__":
    Image.fromarray(world_images()).save(STORED)
