"""The built documentation: complete, linked, silent on the network, alive in a browser."""
import http.server, importlib, json, os, pkgutil, re, shutil, subprocess, sys, threading, time, urllib.request
from functools import partial
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT/"tools/docs"))
pytest.importorskip("pypandoc", reason="pandoc is not installed: pip install pypandoc_binary")
import build, check


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The whole site, made by the command, in a folder of its own."
    out = tmp_path_factory.mktemp("docs")/"site"
    start = time.time()
    said = subprocess.run([sys.executable, ROOT/"tools/docs/build.py", out], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    print(f"built in {time.time() - start:.0f} s: {said.stdout}")
    return out


def pages(site): return sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))
def modules(): return [m.name for m in pkgutil.iter_modules([str(ROOT/"gslrm_mouse")]) if not m.name.startswith("_")]


def test_links_anchors_and_pictures(site):
    assert check.faults(site) == []


def test_planted_faults_are_found(site, tmp_path):
    bad = tmp_path/"site"
    shutil.copytree(site, bad)
    whole = (bad/"cameras.html").read_text()
    planted = (("source/cameras.html#line-", lambda x: x.replace('href="source/cameras.html#src-', 'href="source/cameras.html#line-', 1)), ("links to lenses.html, which is not there", lambda x: x.replace('href="lens.html"', 'href="lenses.html"', 1)),
               ("the picture cameras_files/1.png has no alternative text", lambda x: re.sub(r'(<img[^>]*) alt="[^"]*"', r'\1 alt=" "', x, count=1)), ("loads https://example.org/site.js from elsewhere", lambda x: x.replace('src="site.js"', 'src="https://example.org/site.js"', 1)),
               ("the id 'orbit' is there twice", lambda x: x.replace('id="intrinsics"', 'id="orbit"', 1)))
    for _, f in planted:
        assert f(whole) != whole
        whole = f(whole)
    (bad/"cameras.html").write_text(whole)
    (bad/"rays_files/1.png").unlink()
    (bad/"lens.html").write_text(re.sub(r'(<img[^>]*) alt="[^"]*"', r"\1", (bad/"lens.html").read_text(), count=1))
    found = check.faults(bad)
    for said, _ in planted: assert len([f for f in found if f.startswith("cameras.html: ") and said in f]) == 1, said
    assert "rays.html: links to rays_files/1.png, which is not there" in found and "lens.html: the picture lens_files/1.png has no alternative text" in found
    assert all("#intrinsics" in f for f in found if not any(s in f for s, _ in planted) and not f.startswith(("rays.html", "lens.html")))


def test_every_public_symbol_has_an_entry(site):
    index = (site/"pages/api.html").read_text()
    found = re.findall(r'href="\.\./(\w+\.html)#([^"]+)"[^>]*><code>([\w.]+)</code>', index)
    missing = []
    for m in modules():
        page = check.Links(site/f"{m}.html")
        for name in importlib.import_module(f"gslrm_mouse.{m}").__all__:
            there = [a for p, a, n in found if p == f"{m}.html" and n == name]
            if not there or there[0] not in page.ids: missing.append(f"{m}.{name}")
    assert missing == []
    assert "gslrm_mouse" in index and not [n for _, _, n in found if n == "no_such_symbol"]


def test_a_signature_says_shapes_units_errors_and_source(site):
    import inspect
    from gslrm_mouse.cameras import pinhole as cameras
    whole = (site/"cameras.html").read_text()
    entry = whole[whole.index('id="fit_similarity"'):]
    entry = re.sub("<[^>]+>", "", entry[:entry.index("<details")])
    for said in ("(N, 3) points", "unit of y", "the least squared error", "ValueError", "three points off one line, got … points"): assert said in entry, said
    line = inspect.getsourcelines(cameras.fit_similarity)[1]
    assert f'href="source/cameras.html#src-{line}"' in whole
    source = (site/"source/cameras.html").read_text()
    assert "fit_similarity" in re.search(rf'id="src-{line}".*', source)[0]


def test_the_opening_text_of_a_notebook_is_kept(site):
    assert 'id="conventions"' in (site/"cameras.html").read_text()


def test_maths_is_markup(site):
    whole = (site/"canonical.html").read_text()
    assert whole.count("<math") > 10 and "$$" not in re.sub(r"<annotation.*?</annotation>|<pre.*?</pre>|<code.*?</code>", "", whole, flags=re.S)


def test_every_notebook_has_its_place(tmp_path):
    groups = build.grouped(ROOT/"nbs")
    listed = [p for ps in groups.values() for p in ps]
    assert sorted(listed) == sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts) and len(set(listed)) == len(listed)
    (tmp_path/"99_lost.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="99_lost.ipynb: in no group"): build.grouped(tmp_path)
    import yaml
    contents = yaml.safe_load(build.sidebar(ROOT/"nbs"))["website"]["sidebar"]["contents"]
    assert [g["section"] for g in contents] == list(groups) and "00_cameras.ipynb" in next(g["contents"] for g in contents if g["section"] == "Cameras")


TUTORIALS = ("bring_your_own_rig", "why_did_it_go_white", "lora", "released_checkpoint")

def test_tutorials_start_from_the_package_alone(site):
    "Each has its page, reads nothing that is not in an installed package, has a picture early, and checks what it shows."
    import ast
    for name in TUTORIALS:
        assert f'href="../tutorials/{name}.html"' in (site/"pages/limits.html").read_text(), "it stands in the sidebar"
        cells = [c for c in json.loads((ROOT/f"nbs/tutorials/{name}.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
        code = [build.text(c["source"]) for c in cells]
        tree = ast.parse("\n".join(code))
        strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [s for s in strings if "../" in s or s.startswith(("configs/", "results/", "http"))], name
        pictures = [i for i, c in enumerate(cells) if any("image/png" in o.get("data", {}) for o in c["outputs"])]
        assert pictures[0] < 6 and len(pictures) > 2, name
        assert sum(isinstance(n, ast.Assert) for n in ast.walk(tree)) + sum("test_" in c for c in code) > 8, name
        assert not any(c["outputs"] == [] and "print(" in build.text(c["source"]) and "def " not in build.text(c["source"]) for c in cells), f"{name}: outputs are stored"


def mixed(cell):
    "Whether a cell imports and computes: nbdev runs every cell that imports something, and none before it. A cell of definitions only may import within them."
    import ast
    source = build.text(cell["source"])
    if cell["cell_type"] != "code" or re.search(r"^#\| *(export|exec_doc|eval)", source, re.M): return False
    tree = ast.parse(source)
    at = lambda n: isinstance(n, (ast.Import, ast.ImportFrom))
    return any(at(n) for n in ast.walk(tree)) and not all(at(n) for n in tree.body) and not all(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in tree.body)


def test_the_copy_for_quarto_says_the_same(tmp_path):
    "Where Quarto is there, nbdev builds a copy in which opening texts stand in cells of their own; nothing may be lost or changed on the way, and no cell may import and compute."
    for ps in build.grouped(ROOT/"nbs").values():
        for p in ps:
            raw = json.loads(p.read_text())
            before = [build.text(c["source"]) for c in raw["cells"]]
            opened = build.opened(raw)
            assert "\n".join(before).split() == "\n".join(build.text(c["source"]) for c in opened["cells"]).split()
            assert not (bad := [build.text(c["source"])[:80] for c in raw["cells"] if mixed(c)]), (p.name, bad)
    cell = lambda s: dict(cell_type="code", source=s)
    assert [mixed(cell(s)) for s in ("import os; a = 1", "import os\nimport re", "def f(): import io", "def f(): import io\nf()", "a = 1", "#| export\nimport os; a = 1")] == [True, False, False, True, False, False]


def test_nbdev_takes_the_copy(tmp_path):
    "nbdev's own processing, of which Quarto is only the last step, goes through in the copy and in the notebooks themselves; a cell that imports and computes is where it would stop."
    build.for_quarto(ROOT/"nbs", tmp_path/"_nbs")
    code = "import sys; from pathlib import Path; from nbdev.serve_drv import exec_nb; from nbdev.processors import FilterDefaults\nfor a, b in zip(sys.argv[1::2], sys.argv[2::2]): exec_nb(Path(a), Path(b), FilterDefaults)"
    names = [*(f"tutorials/{n}" for n in TUTORIALS), "02_rays", "05_views", "04b_rasterize", "11c_fit", "index"]
    run = lambda *paths: subprocess.run([sys.executable, "-W", "ignore", "-c", code, *[str(x) for p in paths for x in (p, tmp_path/"out.ipynb")]], cwd=ROOT, capture_output=True, text=True, env=os.environ | dict(MPLBACKEND="agg"))
    said = run(*[f/f"{n}.ipynb" for f in (tmp_path/"_nbs", ROOT/"nbs") for n in names])
    assert said.returncode == 0, said.stderr[-800:]
    bad = json.loads((ROOT/"nbs/02_rays.ipynb").read_text())
    bad["cells"].append(dict(cell_type="code", id="x", metadata={}, outputs=[], execution_count=None, source="import os; print(of_an_earlier_cell)"))
    (tmp_path/"bad.ipynb").write_text(json.dumps(bad))
    assert "Error in notebook: rays in cell" in run(tmp_path/"bad.ipynb").stderr


def test_the_report_has_its_place(tmp_path):
    def without(out): raise AssertionError("not to be called")
    def study(out, from_results=None):
        out.mkdir(parents=True)
        (out/"index.html").write_text(f"<p>{from_results.name}</p>")
    assert build.report_of(without, tmp_path, ROOT/"nbs/results") is None and build.report_of(study, tmp_path, ROOT/"nbs/results") == "reports/study/index.html" and (tmp_path/"reports/study/index.html").read_text() == "<p>results</p>"
    page = Path("a.ipynb")
    there = build.navigation({"Study": [page]}, {page: "a.html"}, {page: "a"}, "a.html", "../", "reports/study/index.html")
    assert 'href="../reports/study/index.html">report' in there and "report" not in build.navigation({"Study": [page]}, {page: "a.html"}, {page: "a"}, "a.html", "")


def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    (tmp_path/"thesis.txt").write_text("years of work")
    said = subprocess.run([sys.executable, ROOT/"tools/docs/build.py", tmp_path], capture_output=True, text=True)
    assert said.returncode == 1 and "should be empty or a site built before" in said.stderr and (tmp_path/"thesis.txt").exists()


def test_changelog_knows_this_version():
    version = re.search(r"^version = (.+)$", (ROOT/"settings.ini").read_text(), re.M)[1]
    assert re.search(rf"^## .*{re.escape(version)}", (ROOT/"CHANGELOG.md").read_text(), re.M)


# --- in a browser ----------------------------------------------------------------------------------------------------------------------

class Browser:
    "A headless Chromium, spoken to over its DevTools socket."
    def __init__(self, folder):
        import websocket
        binary = next((b for n in ("chromium", "chromium-browser", "google-chrome", "chrome") if (b := shutil.which(n))), None)
        if binary is None: pytest.skip("no Chromium on this machine")
        self.process = subprocess.Popen([binary, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"],
                                        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        port = folder/"DevToolsActivePort"
        end = time.time() + 30
        while not (port.exists() and port.read_text().count("\n")) and time.time() < end: time.sleep(.1)
        at = port.read_text().split()[0]
        tab = next(t for t in json.load(urllib.request.urlopen(f"http://127.0.0.1:{at}/json")) if t["type"] == "page")
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=30)
        self.n, self.events = 0, []
        for domain in ("Page", "Runtime", "Network", "Log"): self(f"{domain}.enable")

    def __call__(self, method, **params):
        self.n += 1
        self.socket.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while True:
            m = json.loads(self.socket.recv())
            if m.get("id") == self.n: return m.get("result", m)
            self.events.append(m)

    def js(self, code):
        r = self("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in r, r
        return r["result"].get("value")

    def visit(self, url):
        "What went wrong on the way, and what was asked for."
        for there in ("about:blank", url):                                    # what the page before has left to say is not this one's
            self.events.clear()
            self("Page.navigate", url=there)
            while not any(e.get("method") == "Page.loadEventFired" for e in self.events): self.events.append(json.loads(self.socket.recv()))
        self.js("new Promise(r => setTimeout(r, 30))")
        return self.wrong(), [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def wrong(self):
        return ([e["params"]["exceptionDetails"] for e in self.events if e.get("method") == "Runtime.exceptionThrown"] + [e["params"]["args"] for e in self.events if e.get("method") == "Runtime.consoleAPICalled" and e["params"]["type"] == "error"]
                + [e["params"]["entry"] for e in self.events if e.get("method") == "Log.entryAdded" and e["params"]["entry"]["level"] == "error"] + [e["params"] for e in self.events if e.get("method") == "Network.loadingFailed" and not e["params"].get("canceled")])


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    b = Browser(tmp_path_factory.mktemp("browser"))
    yield b
    b.socket.close()
    b.process.terminate()
    b.process.wait(20)


@pytest.fixture(scope="session")
def home(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


LOADED = "Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode()))).then(() => [...document.images].filter(i => !i.naturalWidth || !i.alt.trim()).length)"

def test_every_page_in_a_browser(site, browser, home):
    for page in pages(site):
        wrong, asked = browser.visit(home + page)
        assert wrong == [], page
        assert [u for u in asked if not u.startswith((home, "data:", f"blob:{home}"))] == [], page
        if not page.startswith("source/"): assert browser.js(LOADED) == 0, page


def test_the_browser_would_complain(site, browser, home, tmp_path):
    (site/"bad.html").write_text('<script src="missing.js"></script><script>console.error("ouch"); throw new Error("oops")</script><img src="http://127.0.0.1:9/x.png" alt="x">')
    try: wrong, asked = browser.visit(home + "bad.html")
    finally: (site/"bad.html").unlink()
    assert len(wrong) >= 3 and "http://127.0.0.1:9/x.png" in asked


def test_from_a_disk_without_a_server(site, browser):
    wrong, asked = browser.visit((site/"cameras.html").as_uri())
    assert wrong == [] and all(u.startswith(("file:", "data:")) for u in asked)
    browser.js("document.getElementById('query').value = 'umeyama'; search()")
    assert "fit_similarity" in browser.js("search().then(() => document.getElementById('hits').innerText)")


def test_search_leads_to_the_place(browser, home):
    browser.visit(home + "index.html")
    found = lambda q: browser.js(f"(query.value = {json.dumps(q)}, search().then(() => [...hits.querySelectorAll('a')].map(a => a.getAttribute('href'))))")
    assert found("look_at")[0] == "cameras.html#look_at"
    assert found("principal point")
    assert found("zzzyx") == [] and "nothing found" in browser.js("hits.innerText")


FOUND = "new Promise(r => { let n = 0; const t = setInterval(() => { if (document.querySelector('.widget %s') || ++n > 100) { clearInterval(t); r(n) } }, 50) })"
STILL = "(w => { let e = w; while (e = e.previousElementSibling) if (e.matches('figure')) return !!e.querySelector('img').alt; return false })(document.querySelector('.widget'))"

def with_widgets():
    "Pages whose notebooks show a widget, and what kind: `interact` redraws by Python, a `Tab` of pictures needs none."
    found = {}
    for p in (p for ps in build.grouped(ROOT/"nbs").values() for p in ps):
        raw = json.loads(p.read_text())
        state = raw["metadata"].get("widgets", {}).get(build.STATE, {}).get("state", {})
        kinds = {s["model_name"] for s in state.values()}
        if kinds: found[build.page_of(p, ROOT/"nbs")] = kinds
    return found


def test_there_is_a_widget_for_each_of_these():
    kinds = with_widgets()
    for page, kind in {"rays.html": "FloatSliderModel", "gaussians.html": "FloatSliderModel", "rasterize.html": "FloatSliderModel", "canonical.html": "TabModel", "factors.html": "ToggleButtonModel", "pages/glossary.html": "TabModel"}.items(): assert kind in kinds[page], page


def test_sliders_and_buttons_move(browser, home):
    for page, kinds in with_widgets().items():
        browser.visit(home + page)
        which = ".widget-readout" if "FloatSliderModel" in kinds else ".widget-toggle-button" if "ToggleButtonModel" in kinds else None
        if which is None: continue
        assert browser.js(FOUND % which) < 100, page
        now = "document.querySelector('.widget .widget-readout').innerText" if which == ".widget-readout" else "document.querySelector('.widget .widget-toggle-button').classList.contains('mod-active')"
        before = browser.js(now)
        browser.js("(h => { h.focus(); for (const t of ['keydown', 'keyup']) h.dispatchEvent(new KeyboardEvent(t, {key: 'ArrowRight', code: 'ArrowRight', bubbles: true})) })(document.querySelector('.widget .noUi-handle'))" if which == ".widget-readout" else "document.querySelector('.widget .widget-toggle-button').click()")
        assert browser.js(now) != before, page
        assert browser.js(STILL), f"{page}: a still figure stands before the widget"
        assert "none runs behind this page" in browser.js("document.querySelector('.widget .note').innerText"), page
        assert browser.wrong() == [], page


@pytest.mark.parametrize("page", ["pages/glossary.html", "canonical.html"])
def test_a_widget_of_pictures_works_without_python(browser, home, page):
    browser.visit(home + page)
    tabs = "[...document.querySelectorAll('.widget .lm-TabBar-tab, .widget .p-TabBar-tab')]"
    assert browser.js(FOUND % ".lm-TabBar-tab, .widget .p-TabBar-tab") < 100 and browser.js(STILL)
    shown = lambda: browser.js("[...document.querySelectorAll('.widget img')].filter(i => i.offsetParent && i.naturalWidth).map(i => i.src)")
    seen = shown()
    assert len(seen) == 1
    for k in range(1, browser.js(f"{tabs}.length")):
        browser.js(f"(t => {{ for (const e of ['pointerdown', 'mousedown', 'pointerup', 'mouseup', 'click']) t.dispatchEvent(new (e[0] === 'p' ? PointerEvent : MouseEvent)(e, {{bubbles: true, button: 0, clientX: t.getBoundingClientRect().x + 9, clientY: t.getBoundingClientRect().y + 9}})) }})({tabs}[{k}])")
        now = shown()
        assert len(now) == 1 and now[0] not in seen
        seen += now
    assert len(seen) > 3 and browser.wrong() == [] and browser.js("[...document.querySelectorAll('.widget img')].every(i => i.alt.trim())")


def test_dark_light_and_telephone(site, browser, home):
    shade = lambda: browser.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, x) => a + +x, 0)")
    browser("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value="dark")])
    browser.visit(home + "index.html")
    assert shade() < 200
    browser.js("document.getElementById('theme').click()")
    assert shade() > 600
    browser.visit(home + "cameras.html")
    assert shade() > 600, "the choice is kept"
    browser.js("localStorage.clear()")
    browser("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value="light")])
    browser("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
    try:
        for page in ("index.html", "canonical.html", "calibration.html", "pages/api.html", "factors.html", *(p for p in pages(site) if p.startswith("tutorials/"))):
            browser.visit(home + page)
            assert browser.js("document.documentElement.scrollWidth") <= 390, page
        hidden = lambda: browser.js("getComputedStyle(document.getElementById('sidebar')).display == 'none'")
        assert hidden()
        browser.js("document.getElementById('menu').click()")
        assert not hidden()
        assert browser.js("document.querySelector('#sidebar h2').getBoundingClientRect().top >= document.querySelector('header').getBoundingClientRect().bottom"), "the menu begins below the head of the page"
    finally: browser("Emulation.clearDeviceMetricsOverride")
