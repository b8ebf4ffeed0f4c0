"""The package from outside: the names of a first script, rooms that hand on their names, one line for large objects."""
import importlib
import json
import pkgutil
import subprocess
import sys

import pytest
import torch

import gslrm_mouse
from gslrm_mouse.cameras import mouse_rig
from gslrm_mouse.gaussians import Gaussians
from gslrm_mouse.scenes import mouse_scene, raytrace

ROOMS = ("cameras", "calibration", "views", "masks", "scenes", "gaussians", "preprocess", "models", "training",
         "reconstruction", "evaluation", "doctor", "experiments") # each may import only those before it


def test_the_names_of_a_first_script():
    assert gslrm_mouse.__all__ == ["canonicalize", "diagnose", "load_checkpoint", "open_recording", "reconstruct"]
    for name in gslrm_mouse.__all__: assert callable(getattr(gslrm_mouse, name))
    with pytest.raises(AttributeError, match="no attribute 'reconstrukt'"): getattr(gslrm_mouse, "reconstrukt")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_hands_on_its_names(room):
    package = importlib.import_module(f"gslrm_mouse.{room}")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for name in package.__all__: assert getattr(package, name) is not None
    assert not modules & set(package.__all__), "a name of a module would hide the module"


def test_every_room_is_listed():
    found = {module.name for module in pkgutil.iter_modules(gslrm_mouse.__path__) if module.ispkg}
    assert found == set(ROOMS)


IMPORTS = """
import importlib, json, sys
loaded = {}
for room in sys.argv[1:]:
    importlib.import_module(f"gslrm_mouse.{room}")
    loaded[room] = [name for name in sys.modules if name.startswith("gslrm_mouse.")]
print(json.dumps(loaded))
"""


def loaded_rooms(order):
    "What is loaded after each room, of rooms that one process imports in this order."
    command = [sys.executable, "-c", IMPORTS, *order]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {room: {name.split(".")[1] for name in names} for room, names in json.loads(printed).items()}


@pytest.fixture(scope="module")
def loaded():
    return loaded_rooms(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_before_it(loaded, room):
    "Imported one after the other, a room that imports a later one loads it too early."
    assert room in loaded[room]
    assert not loaded[room] & set(ROOMS[ROOMS.index(room) + 1:])


def test_an_import_of_a_later_room_is_seen():
    assert "cameras" in loaded_rooms(["masks"])["masks"]


def test_large_objects_print_one_line():
    cams = mouse_rig().resized(96, 85)
    assert repr(cams) == "Cameras(6 cameras, 96 × 85 px, unit 'mm')"
    assert repr(raytrace(mouse_scene(0), cams, 1)) == "Views(6 views, 96 × 85 px, unit 'mm')"
    cloud = Gaussians(torch.zeros(5, 3), torch.ones(5, 4), torch.ones(5, 3), torch.ones(5), torch.zeros(5, 4, 3))
    assert repr(cloud) == "Gaussians(5, SH degree 1, cpu)"
