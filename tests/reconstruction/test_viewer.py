"""The viewer in a browser, from a disk and over HTTP; the live one; the command line without viser."""
import io
import re
import socket
import time

import numpy as np
import pytest
import torch
from browser import HARMLESS, SOFTWARE_WEBGL, Browser, served
from PIL import Image

from gslrm_mouse import cli
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.gaussians.cloud import C0, Gaussians
from gslrm_mouse.gaussians.ply import save_ply
from gslrm_mouse.reconstruction import pipeline, viewer
from gslrm_mouse.views.views import Views

pytest.importorskip("viser", reason="the viewer needs viser: pip install 'gslrm_mouse[view]'")
trimesh = pytest.importorskip("trimesh", reason="meshes need trimesh: pip install 'gslrm_mouse[view]'")
PATIENCE = 120 # seconds: a browser that draws on a busy processor


FIRST, SECOND, IMAGE = (.9, .1, .1), (.8, .1, .8), (.1, .8, .1) # colours of the frames and of the cameras' images


def blob(color, x):
    "A cigar along x in millimetres, filled with Gaussians."
    offsets = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    return Gaussians(
        means=torch.tensor([x, 0., 10]) + offsets*torch.tensor([9., 4, 4]),
        quats=torch.tensor([1., 0, 0, 0]).expand(400, 4),
        scales=torch.full((400, 3), 2.),
        opacities=torch.full((400,), .9),
        sh=((torch.tensor(color) - .5)/C0).expand(400, 1, 3),
        unit="mm")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    cams = orbit([30., 80., 140.], 20., 80., 40., 48, (0, 0, 10), unit="mm")
    images = torch.tensor(IMAGE).expand(3, 48, 48, 3)
    frames = [blob(FIRST, 0.), blob(SECOND, 0.)]
    return viewer.write_viewer(tmp_path_factory.mktemp("viewer")/"view.html", frames, cams, images, held_out=(1,))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    b = Browser(tmp_path_factory.mktemp("browser"), SOFTWARE_WEBGL, PATIENCE)
    b("Emulation.setDeviceMetricsOverride", width=480, height=480, deviceScaleFactor=1, mobile=False)
    yield b
    b.close()


@pytest.fixture
def home(page):
    with served(page.parent) as address:
        yield address


def pixels_of(browser) -> dict: # colour: pixels close to it
    image = np.array(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))/255
    return {color: int((np.abs(image - color).max(-1) < .2).sum()) for color in (FIRST, SECOND, IMAGE)}


def until_seen(browser, color):
    end = time.time() + PATIENCE
    while time.time() < end:
        pixels = pixels_of(browser)
        if pixels[color] > 300: return pixels
        time.sleep(.2)
    raise AssertionError(f"pixels of each colour: {pixels}")


def press(browser, key):
    event = f"new KeyboardEvent('keydown', {{key: '{key}', code: '{key}', bubbles: true}})"
    browser.js(f"document.querySelector('[role=slider]').dispatchEvent({event})")


def check_page(browser, url, own):
    browser.visit(url)
    while not browser.js("!!document.querySelector('canvas') && !!document.querySelector('[role=slider]')"):
        time.sleep(.2)
    press(browser, "End")
    assert until_seen(browser, SECOND)[FIRST] < 20
    press(browser, "Home")
    pixels = until_seen(browser, FIRST)
    assert pixels[SECOND] < 20 and pixels[IMAGE] > 20
    assert [w for w in browser.wrong() if HARMLESS not in str(w)] == []
    assert [u for u in browser.asked() if not u.startswith((own, "data:", "blob:"))] == []


def test_from_a_disk(page, browser): check_page(browser, page.as_uri(), "file:")


def test_over_http(browser, home): check_page(browser, f"{home}view.html", home)


# ---- without a browser ----

@pytest.fixture
def result(tmp_path):
    for i in (0, 10): save_ply(blob(FIRST, i), tmp_path/f"walk/frame_{i:06d}/gaussians.ply")
    return tmp_path/"walk"


def test_the_live_viewer_looks_through_a_camera_and_changes_frames(result):
    cams = orbit([30., 80.], 20., 80., 40., 48, (0, 0, 10), unit="mm")
    viewer.write_view(result, Views(torch.ones(2, 48, 48, 3), torch.ones(2, 48, 48), cams), held_out=[1])
    with viewer.live_viewer(result, port=0) as server:
        messages = [str(m) for m in server._websock_server._broadcast_buffer.message_from_id.values()]
        with socket.create_connection(("127.0.0.1", server.get_port())): pass
    assert any("camera 1, held out" in m and "camera 0" in m for m in messages)
    assert any("GuiSliderMessage" in m for m in messages)


def test_without_viser(result, monkeypatch, capsys):
    "One sentence says how to get it, and a reconstruction goes on without."
    monkeypatch.setattr(viewer, "has_viser", lambda: False)
    with pytest.raises(SystemExit) as stop: cli.main(["view", str(result)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"gslrm_mouse: {viewer.NEEDS_VISER}\n"
    monkeypatch.setattr(pipeline, "has_viser", lambda: False)
    assert not pipeline._can_write_viewer()
    assert capsys.readouterr().err == f"view.html is left out: {viewer.NEEDS_VISER}\n"
    assert not (result/"view.html").exists()


def test_mesh_on_the_command_line(result, capsys):
    out = result.parent/"mouse.ply"
    cli.main(["mesh", str(result), "--frame", "10", "--out", str(out), "--cells", "60"])
    assert re.fullmatch(r"written: .*mouse\.ply \([\d,]+ triangles, \d+\.\d cm³\)\n", capsys.readouterr().out)
    mesh = trimesh.load(out)
    cli.main(["mesh", str(result), "--frame", "0", "--out", str(out), "--cells", "60"])
    moved = mesh.centroid - trimesh.load(out).centroid
    assert mesh.is_watertight and abs(moved - [10, 0, 0]).max() < .1 # mm, as the frames are apart
    capsys.readouterr()
    wrong = {"--frame 3": "there is no frame_000003", "": "one has to be chosen", "--frame 0 --level 99": "nowhere"}
    for options, sentence in wrong.items():
        with pytest.raises(SystemExit): cli.main(["mesh", str(result), "--out", str(out), *options.split()])
        assert sentence in capsys.readouterr().err
