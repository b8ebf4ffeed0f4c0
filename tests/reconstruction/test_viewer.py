"""The viewer in a browser, from a disk and over HTTP; the live one; the command line without viser."""
import io
import json
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
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.gaussians.cloud import C0, Gaussians
from gslrm_mouse.gaussians.ply import save_ply
from gslrm_mouse.reconstruction import pipeline, viewer
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.views.recordings import read_views
from gslrm_mouse.views.samples import KEYPOINTS
from gslrm_mouse.views.views import Views

pytest.importorskip("viser", reason="the viewer needs viser: pip install 'gslrm_mouse[view]'")
trimesh = pytest.importorskip("trimesh", reason="meshes need trimesh: pip install 'gslrm_mouse[view]'")
PATIENCE = 120 # seconds: a browser that draws on a busy processor


FIRST, SECOND, IMAGE = (.9, .1, .1), (.8, .1, .8), (.1, .8, .1) # colours of the frames and of the cameras' images
TRUTH = tuple(np.array(viewer.TRUTH_COLOUR)/255)


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
    truth = np.array([[[x, -16., z] for z in range(6)] for x in (-10, 10)]) # before the blob, at both of its ends
    path = tmp_path_factory.mktemp("viewer")/"view.html"
    return viewer.write_viewer(path, frames, cams, images, held_out=(1,), truth=truth)


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


def place_of(browser, color) -> float: # column, pixels
    image = np.array(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))/255
    columns = (np.abs(image - color).max(-1) < .08).nonzero()[1]
    assert len(columns) > 10
    return columns.mean()


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
    second = place_of(browser, TRUTH)
    press(browser, "Home")
    pixels = until_seen(browser, FIRST)
    assert pixels[SECOND] < 20 and pixels[IMAGE] > 20
    assert abs(place_of(browser, TRUTH) - second) > 10 # the true point moves with the slider
    assert [w for w in browser.wrong() if HARMLESS not in str(w)] == []
    assert [u for u in browser.asked() if not u.startswith((own, "data:", "blob:"))] == []


def test_it_is_seen_while_it_plays(page, browser):
    "A sequence begins anew at its end, and viser's page would fade the canvas each time."
    browser.visit(page.as_uri())
    opacity = "[...document.querySelectorAll('canvas')].map(canvas => +getComputedStyle(canvas).opacity)"
    while not browser.js(f"{opacity}.length > 0"):
        time.sleep(.2)
    end = time.time() + PATIENCE
    is_seen = False
    while not is_seen and time.time() < end:
        assert set(browser.js(opacity)) == {1}
        pixels = pixels_of(browser)
        is_seen = max(pixels[FIRST], pixels[SECOND]) > 300
    assert is_seen, pixels
    assert set(browser.js(opacity)) == {1}


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


def write_track(folder, numbers):
    header = "frame,centroid_x_mm,centroid_y_mm,centroid_z_mm,nose_x_mm,nose_y_mm,nose_z_mm\n"
    (folder/viewer.TRACK).write_text(header + "".join(f"{n},{n},0,10,{n + 20},0,10\n" for n in numbers))


@pytest.mark.parametrize("numbers, is_shown", [([0, 10], True), ([0, 20], False), ([], False)])
def test_the_viewer_shows_a_track_of_its_frames(result, numbers, is_shown):
    "The path on the floor, and the points; a track of other frames is of another state of the folder."
    if numbers:
        write_track(result, numbers)
    with viewer.live_viewer(result, port=0) as server:
        messages = server._websock_server._broadcast_buffer.message_from_id.values()
        nodes = {m.name: m for m in messages if hasattr(m, "props") and hasattr(m, "name")}
    assert ("/track/path" in nodes) == ("/track/points" in nodes) == is_shown
    if is_shown:
        assert nodes["/track/points"].props.points.tolist() == [[20, 0, 10]]
        path = nodes["/track/path"].props.points[0]
        assert path[:, 0].tolist() == [0, 10] and (path[:, 2] < 5).all()


def test_a_track_is_put_into_the_page(result, capsys):
    recording = write_recording(result.parent/"rec", 1, seed=4, cams=mouse_rig().resized(144, 128), truth=False)
    assert not pipeline.renew_view(result)
    viewer.write_view(result, read_views(recording), held_out=[1, 2, 4, 5])
    before, cameras = ((result/name).read_bytes() for name in (viewer.VIEWER, viewer.CAMERAS))
    settings = dict(source=str(recording), unit=None, rig_file=None, inputs=2)
    (result/pipeline.MANIFEST).write_text(json.dumps(dict(settings=settings)))
    write_track(result, [0, 10])
    assert pipeline.renew_view(result)
    after = (result/viewer.VIEWER).read_bytes()
    assert 50 < len(after) - len(before) < 3000
    assert (result/viewer.CAMERAS).read_bytes() == cameras
    (result/pipeline.MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match="is no manifest of this version"):
        pipeline.renew_view(result)
    assert (result/viewer.VIEWER).read_bytes() == after


def shown_points(folder) -> dict: # name: (K, 3) of each point cloud of the live viewer
    with viewer.live_viewer(folder, port=0) as server:
        messages = server._websock_server._broadcast_buffer.message_from_id.values()
        clouds = [m for m in messages if type(m).__name__ == "PointCloudMessage"]
        return {m.name: np.asarray(m.props.points, float) for m in clouds}


def test_the_true_points_of_a_recording(result):
    "Of the frames that are shown, as long as the cameras are those of the recording's own calibration."
    recording = write_recording(result.parent/"rec", 1, seed=4, cams=mouse_rig().resized(144, 128), truth=False)
    views = read_views(recording)
    truth = np.arange(11*2*3.).reshape(11, 2, 3)
    pages = {}
    for name in ("without", "with"):
        own = pipeline._true_points(recording, None)
        pipeline._write_view(result, views, inputs=None, of_recording=True, title="a", truth=own)
        pages[name] = (result/viewer.VIEWER).stat().st_size
        if name == "without":
            assert own is None and shown_points(result) == {}
            (recording/KEYPOINTS).parent.mkdir()
            np.savez(recording/KEYPOINTS, keypoints_mm=truth)
    assert 50 < pages["with"] - pages["without"] < 3000
    assert json.loads((result/viewer.CAMERAS).read_text())["truth"] == truth[[0, 10]].tolist()
    assert shown_points(result)["/truth"].tolist() == truth[0].tolist()
    save_ply(blob(FIRST, 20), result/"frame_000020/gaussians.ply") # of which nothing was known when it was written
    assert shown_points(result) == {}
    assert pipeline._true_points(recording, recording/"new_cam.pkl") is None

    one = result.parent/"one"
    save_ply(blob(FIRST, 0), one/"gaussians.ply")
    pipeline._write_view(one, views, inputs=None, of_recording=True, title="a", truth=own, frame=10)
    assert shown_points(one)["/truth"].tolist() == truth[10].tolist()


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
    before = out.read_bytes()
    refused = {out: "exists; choose another file or pass --overwrite", out/"b.ply": "is a file; choose another path"}
    for where, sentence in refused.items():
        with pytest.raises(SystemExit):
            cli.main(["mesh", str(result), "--frame", "0", "--out", str(where)])
        assert sentence in capsys.readouterr().err
    assert out.read_bytes() == before
    cli.main(["mesh", str(result), "--frame", "0", "--out", str(out), "--cells", "60", "--overwrite"])
    moved = mesh.centroid - trimesh.load(out).centroid
    assert mesh.is_watertight and abs(moved - [10, 0, 0]).max() < .1 # mm, as the frames are apart
    capsys.readouterr()
    wrong = {"--frame 3": "there is no frame_000003", "": "one has to be chosen", "--frame 0 --level 99": "nowhere"}
    for options, sentence in wrong.items():
        arguments = ["mesh", str(result), "--out", str(out), "--overwrite", *options.split()]
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert sentence in capsys.readouterr().err
