"""Viewers in the documentation: beside a still image, from a disk and over HTTP; without JavaScript the image alone."""
import base64, io, json, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from browser import HARMLESS, SOFTWARE_WEBGL, Browser, served

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT/"tools/docs"))
pytest.importorskip("pypandoc", reason="pandoc is not installed: pip install pypandoc_binary")
pytest.importorskip("viser", reason="the viewer needs viser: pip install 'gslrm_mouse[view]'")
import build, check
from gslrm_mouse.gaussians.cloud import C0, Gaussians
from gslrm_mouse.reconstruction import viewer

RED, GREEN = (.9, .1, .1), (.1, .8, .1) # of the viewer, of the still image
PATIENCE = 120 # seconds


def write_red(path):
    n = 300
    offsets = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    g = Gaussians(
        means=offsets*torch.tensor([9., 4, 4]), quats=torch.tensor([1., 0, 0, 0]).expand(n, 4),
        scales=torch.full((n, 3), 2.), opacities=torch.full((n,), .9),
        sh=((torch.tensor(RED) - .5)/C0).expand(n, 1, 3), unit="mm")
    return viewer.write_viewer(path, g)


def notebook(name="example"):
    file = io.BytesIO()
    Image.new("RGB", (60, 60), tuple(round(255*x) for x in GREEN)).save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    output = dict(output_type="display_data", data={"image/png": png}, metadata={})
    source = f'#| echo: false\n#| viewer: {name}\n#| fig-alt: "Green."\n#| fig-cap: "A mouse."\nshow()'
    cells = [dict(cell_type="markdown", id="a", metadata={}, source="# Start\n\n> Why."),
             dict(cell_type="code", id="b", metadata={}, source=source, outputs=[output], execution_count=1)]
    return dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)


def built(folder, monkeypatch, makers, name="example"):
    (folder/"nbs").mkdir()
    (folder/"nbs/index.ipynb").write_text(json.dumps(notebook(name)))
    monkeypatch.setattr(build, "viewer_makers", lambda: makers)
    monkeypatch.setattr(build, "write_report", lambda *a: None)
    build.build(folder/"site", folder/"nbs", folder/"cache")
    return folder/"site"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield built(tmp_path_factory.mktemp("viewers"), monkeypatch, dict(example=write_red))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    b = Browser(tmp_path_factory.mktemp("browser"), SOFTWARE_WEBGL, PATIENCE)
    b("Emulation.setDeviceMetricsOverride", width=800, height=700, deviceScaleFactor=1, mobile=False)
    yield b
    b.close()


def pixels_of(browser): # red ones, green ones
    reply = browser("Page.captureScreenshot")
    if "data" not in reply: return [0, 0] # between two pages
    image = np.array(Image.open(io.BytesIO(base64.b64decode(reply["data"]))).convert("RGB"))/255
    return [int((np.abs(image - color).max(-1) < .2).sum()) for color in (RED, GREEN)]


def test_the_page_is_small_and_whole(site):
    page = (site/"index.html").read_text()
    assert len(page) < 2e4 < (site/"viewers/example.html").stat().st_size < 1.2e6
    assert check.faults(site) == []
    assert '<iframe src="viewers/example.html" title="viewer: Green." loading="lazy">' in page
    assert page.index("<img src=") < page.index("<iframe") < page.index("A mouse. <span")
    (site/"viewers/example.html").rename(site/"away")
    try:
        assert any("links to viewers/example.html, which is not there" in fault for fault in check.faults(site))
    finally:
        (site/"away").rename(site/"viewers/example.html")


@pytest.mark.parametrize("where", ["file", "http"])
def test_it_draws_beside_the_still_image(site, browser, where):
    with served(site) as home:
        own = home if where == "http" else "file:"
        browser.visit(home + "index.html" if where == "http" else (site/"index.html").as_uri())
        end = time.time() + PATIENCE
        while (pixels := pixels_of(browser))[0] < 300 and time.time() < end:
            time.sleep(.2)
        assert pixels[0] > 300 and pixels[1] > 1000, pixels
        assert [w for w in browser.wrong() if HARMLESS not in str(w)] == []
        assert [u for u in browser.asked() if not u.startswith((own, "data:", "blob:"))] == []


def test_without_javascript_there_is_the_still_image_alone(site, browser):
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser("Page.navigate", url=(site/"index.html").as_uri())
        end = time.time() + PATIENCE
        while pixels_of(browser)[1] < 1000 and time.time() < end:
            time.sleep(.2)
        red, green = pixels_of(browser)
    finally:
        browser("Emulation.setScriptExecutionDisabled", value=False)
    assert green > 1000 and red == 0
    hidden = "@media (scripting: none) { .viewer iframe, .viewer .live { display: none; } }"
    assert hidden in (site/"style.css").read_text()


def test_without_viser_and_with_a_wrong_name(tmp_path, monkeypatch):
    (tmp_path/"a").mkdir()
    page = (built(tmp_path/"a", monkeypatch, {})/"index.html").read_text()
    assert "<iframe" not in page and '<img src="index_files/1.png"' in page
    (tmp_path/"b").mkdir()
    with pytest.raises(ValueError, match="there is no viewer 'exmaple'; there are example"):
        built(tmp_path/"b", monkeypatch, dict(example=write_red), "exmaple")


def test_the_copy_for_quarto_has_a_frame(tmp_path, monkeypatch):
    import yaml
    class Start:
        viewers, alts, up = {"example"}, {"b": "Green."}, "../"
    cell = notebook()["cells"][1]
    same, frame = build.with_viewer(cell, Start)
    assert same is cell and '<iframe style="' in frame["source"] and 'src="../viewers/example.html"' in frame["source"]
    assert build.with_viewer(dict(cell, source="show()"), Start) == [dict(cell, source="show()")]
    assert yaml.safe_load(build.sidebar(ROOT/"nbs"))["project"]["resources"] == ["viewers/*.html"]


@pytest.mark.parametrize("name", viewer.EXAMPLE_ROWS)
def test_the_viewers_of_tutorials_draw(name, tmp_path, browser):
    "Not blank, in order, silent: from a disk."
    path = viewer.write_example_row(name, tmp_path/"page.html")
    assert path.stat().st_size < 1.7e6
    browser.visit(path.as_uri())
    end = time.time() + PATIENCE
    shown = 0
    while shown < 1000 and time.time() < end:
        time.sleep(.2)
        image = np.array(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))/255
        shown = int((image[200:].max(-1) < .6).sum()) # below viser's notice; the floor's lines are lighter
    assert shown >= 1000
    assert [w for w in browser.wrong() if HARMLESS not in str(w)] == []
    assert [u for u in browser.asked() if not u.startswith(("file:", "data:", "blob:"))] == []


MAKERS = build.viewer_makers() # the fixtures replace them
EMBEDDED = dict.fromkeys(
    ("index", "tutorials/bring_your_own_rig", "tutorials/why_did_it_go_white", "reconstruction/02_viewer"), "example")
EMBEDDED |= {f"tutorials/{name}": name for name in viewer.EXAMPLE_ROWS}


def test_every_tutorial_embeds_one():
    tutorials = {f"tutorials/{path.stem}" for path in (ROOT/"nbs/tutorials").glob("*.ipynb")}
    assert tutorials <= EMBEDDED.keys() and set(EMBEDDED.values()) == MAKERS.keys()


def test_the_pages_that_embed_one():
    for name, shown_there in EMBEDDED.items():
        cells = json.loads((ROOT/f"nbs/{name}.ipynb").read_text())["cells"]
        shown = [cell for cell in cells if f"\n#| viewer: {shown_there}\n" in build.text(cell["source"])]
        assert len(shown) == 1 and len(json.dumps(shown)) < 1.5e5, name # the still image, not the viewer
        assert "image/png" in shown[0]["outputs"][0]["data"], name
