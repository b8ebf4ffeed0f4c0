"""The built documentation: complete, linked, silent on the network, alive in a browser."""
import ast, importlib, io, json, os, pkgutil, re, shutil, subprocess, sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
import pytest
from browser import HARMLESS, Browser, served
from conftest import command_process

from gslrm_mouse.experiments.registry import EXPERIMENTS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT/"tools/docs"))
pytest.importorskip("pypandoc", reason="pandoc is not installed: pip install pypandoc_binary")
import build, check


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The whole site, made by the command, in a folder of its own."
    out = tmp_path_factory.mktemp("docs")/"site"
    with redirect_stdout(io.StringIO()) as said:
        build.main([str(out)])
    assert "pages" in said.getvalue() and str(out/"index.html") in said.getvalue()
    return out


def is_viewer(page): # shown in a frame
    return page.startswith("viewers/") or page == "reports/study/viewer.html"

def pages(site):
    found = (p.relative_to(site).as_posix() for p in site.rglob("*.html"))
    return sorted(page for page in found if not is_viewer(page))

def modules():
    found = [m for m in pkgutil.walk_packages([str(ROOT/"gslrm_mouse")], "gslrm_mouse.") if not m.ispkg]
    return [m.name.removeprefix("gslrm_mouse.") for m in found if not m.name.rsplit(".", 1)[1].startswith("_")]


@pytest.fixture(scope="session")
def copied(tmp_path_factory):
    "The copy of the notebooks for Quarto."
    to = tmp_path_factory.mktemp("quarto")/"_nbs"
    build.for_quarto(ROOT/"nbs", to)
    return to


def test_links_anchors_and_pictures(site):
    assert check.faults(site) == []


NO_ALT = re.compile(r'(<img[^>]*) alt="[^"]*"')

PLANTED = ( # what the check says, the change on the page of pinhole cameras
    ("source/cameras.pinhole.html#line-",
     lambda x: x.replace('href="../source/cameras.pinhole.html#src-', 'href="../source/cameras.pinhole.html#line-', 1)),
    ("links to lenses.html, which is not there",
     lambda x: x.replace('href="../cameras/lens.html"', 'href="lenses.html"', 1)),
    ("the picture ../cameras/pinhole_files/1.png has no alternative text",
     lambda x: NO_ALT.sub(r'\1 alt=" "', x, count=1)),
    ("loads https://example.org/site.js from elsewhere",
     lambda x: x.replace('src="../site.js"', 'src="https://example.org/site.js"', 1)),
    ("the id 'orbit' is there twice",
     lambda x: x.replace('id="intrinsics"', 'id="orbit"', 1)),
)

def test_planted_faults_are_found(site, tmp_path):
    bad = tmp_path/"site"
    shutil.copytree(site, bad)
    whole = (bad/"cameras/pinhole.html").read_text()
    for _, change in PLANTED:
        assert change(whole) != whole
        whole = change(whole)
    (bad/"cameras/pinhole.html").write_text(whole)
    (bad/"cameras/rays_files/1.png").unlink()
    lens = (bad/"cameras/lens.html").read_text()
    (bad/"cameras/lens.html").write_text(NO_ALT.sub(r"\1", lens, count=1))
    found = check.faults(bad)
    on_page = [fault for fault in found if fault.startswith("cameras/pinhole.html: ")]
    for said, _ in PLANTED: assert len([fault for fault in on_page if said in fault]) == 1, said
    on_rays = [fault for fault in found if fault.startswith("cameras/rays.html: links to ")]
    on_lens = [fault for fault in found if fault.startswith("cameras/lens.html: the picture ")]
    assert any("rays_files/1.png, which is not there" in fault for fault in on_rays)
    assert any("lens_files/1.png has no" in fault for fault in on_lens)
    planted = ("cameras/rays.html", "cameras/lens.html")
    new = set(found) - set(check.faults(site))
    rest = [f for f in new if not any(said in f for said, _ in PLANTED) and not f.startswith(planted)]
    assert all("#intrinsics" in f for f in rest), rest


def test_every_public_symbol_has_an_entry(site):
    index = (site/"pages/api.html").read_text()
    found = re.findall(r'href="\.\./([\w/]+\.html)#([^"]+)"[^>]*><code>([\w.]+)</code>', index)
    missing = []
    for m in modules():
        page_name = m.replace(".", "/") + ".html"
        page = check.links_of(site/page_name)
        for name in importlib.import_module(f"gslrm_mouse.{m}").__all__:
            there = [a for p, a, n in found if p == page_name and n == name]
            if not there or there[0] not in page.ids: missing.append(f"{m}.{name}")
    assert missing == []
    assert "gslrm_mouse" in index and not [n for _, _, n in found if n == "no_such_symbol"]


def test_a_signature_says_shapes_units_errors_and_source(site):
    import inspect
    from gslrm_mouse.cameras import similarity
    whole = (site/"cameras/similarity.html").read_text()
    entry = whole[whole.index('id="fit_similarity"'):]
    entry = re.sub("<[^>]+>", "", entry[:entry.index("<details")])
    parts = ("(N, 3) points", "unit of y", "The least-squares similarity", "ValueError", "three points off one line")
    for part in parts: assert part in entry, part
    line = inspect.getsourcelines(similarity.fit_similarity)[1]
    assert f'href="../source/cameras.similarity.html#src-{line}"' in whole
    source = (site/"source/cameras.similarity.html").read_text()
    assert "fit_similarity" in re.search(rf'id="src-{line}".*', source)[0]


def test_the_opening_text_of_a_notebook_is_kept(site):
    assert 'id="conventions"' in (site/"cameras/pinhole.html").read_text()


def test_links_within_code_stay():
    md = "[x](a.ipynb#b) `[y](c.ipynb)` and\n\n``````python\n[z](d.ipynb)\n``````\n\n[`w`](e.ipynb)"
    assert [m["notebook"] for m in build.LINK.finditer(md) if m["notebook"]] == ["a.ipynb", "e.ipynb"]


def test_maths_is_markup(site):
    whole = (site/"cameras/rays.html").read_text()
    text = re.sub(r"<annotation.*?</annotation>|<pre.*?</pre>|<code.*?</code>", "", whole, flags=re.S)
    assert whole.count("<math") > 10 and "$$" not in text


def test_every_notebook_has_its_place(tmp_path):
    import yaml
    groups = build.grouped(ROOT/"nbs")
    listed = [p for members in groups.values() for p in members]
    notebooks = [p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    assert sorted(listed) == sorted(notebooks)
    assert len(set(listed)) == len(listed)
    (tmp_path/"99_lost.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="99_lost.ipynb: in no group"): build.grouped(tmp_path)
    contents = yaml.safe_load(build.sidebar(ROOT/"nbs"))["website"]["sidebar"]["contents"]
    assert [section["section"] for section in contents] == list(groups)
    cameras = next(section["contents"] for section in contents if section["section"].startswith("Cameras"))
    assert "cameras/01_pinhole.ipynb" in cameras


# --- start pages of the rooms ------------------------------------------------------------------------------------

ROOMS = ("cameras", "calibration", "views", "masks", "scenes", "gaussians", "preprocess", "models", "training",
         "reconstruction", "evaluation", "doctor", "experiments")

def markdown_of(path): # of a notebook
    cells = json.loads(path.read_text())["cells"]
    return [build.text(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]

def sentences_of(text): return [x for x in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9*`\[])", text.strip()) if x]

def neighbours_of(room):
    k = ROOMS.index(room)
    return {ROOMS[i] for i in (k - 1, k + 1) if 0 <= i < len(ROOMS)}

def test_the_rooms_are_those_of_the_package():
    groups = build.grouped(ROOT/"nbs").values()
    starts = [build.start_page(members, ROOT/"nbs")[0] for members in groups]
    assert [start.parent.name for start in starts if start] == list(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_a_start_page(site, room):
    "Five sentences, links to the rooms before and after, a figure of one of its notebooks, all its notebooks."
    title, sentences, figure = markdown_of(ROOT/f"nbs/{room}/index.ipynb")
    assert len(sentences_of(sentences)) == 5
    assert set(re.findall(r"\]\(\.\./(\w+)/index\.ipynb\)", sentences)) >= neighbours_of(room)
    assert build.FIGURE.fullmatch(figure)
    whole = (site/f"{room}/index.html").read_text()
    shown = re.search(rf'<figure><img src="\.\./{room}/[^"]+_files/\d+\.\w+"[^>]* alt="[^"]{{20,}}"', whole)
    assert shown and re.search(rf'<figcaption>\s*(<p>\s*)?<a\s+href="\.\./{room}/', whole)
    contents = whole[whole.index('id="notebooks"'):]
    for path in sorted((ROOT/"nbs"/room).glob("[0-9]*.ipynb")):
        page, purpose = build.page_of(path, ROOT/"nbs"), re.search(r"^> (.+)$", markdown_of(path)[0], re.M)[1]
        assert f'href="../{page}"' in contents, path.name
        assert build.plain(purpose) in build.words(contents), path.name
    sidebar = (site/"pages/limits.html").read_text()
    name = re.match("# (.+)", title)[1]
    assert f'<summary><h2><a href="../{room}/index.html">{name}</a></h2></summary>' in sidebar


def test_a_start_page_that_names_a_wrong_figure_is_refused():
    folder = ROOT/"nbs/cameras"
    class Notebook: figures, alts = {"abc": ("cameras/x_files/1.png", (4, 3))}, {"abc": "A camera."}
    class Start: path = folder/"index.ipynb"
    made = {folder/"01_pinhole.ipynb": Notebook}
    def shown(source): return build.with_figures(source, Start, made, lambda f: f"{f.name} {f.caption} {f.alt}")
    assert shown("Figure: [One.](01_pinhole.ipynb#abc)") == "cameras/x_files/1.png One. A camera."
    assert shown("A figure: [One.](01_pinhole.ipynb#abc)").startswith("A figure")
    with pytest.raises(ValueError, match="cell abd of 01_pinhole.ipynb stores no figure; cells that do: abc"):
        shown("Figure: [One.](01_pinhole.ipynb#abd)")
    with pytest.raises(ValueError, match="02_none.ipynb, which is no notebook here"):
        shown("Figure: [One.](02_none.ipynb#abc)")


def test_the_copy_for_quarto_has_start_pages(copied):
    import yaml
    start = copied/"doctor/index.ipynb"
    source = "\n".join(markdown_of(start))
    image = re.search(r"!\[[^\]]+\]\((figure_\w+\.(?:png|jpg))\)", source)[1]
    assert (start.parent/image).stat().st_size > 1000
    assert "| [Diagnosis](02_diagnosis.ipynb) |" in source
    sections = yaml.safe_load((copied/"sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    assert "doctor/index.ipynb" in [section.get("href") for section in sections]


# --- pages of questions, requirements, and plain words -----------------------------------------------------------

def faults_of_answers(md):
    "Questions without a question mark, answers of fewer than two or more than four sentences, or without a link."
    found = []
    for part in re.split(r"^### ", md, flags=re.M)[1:]:
        question, answer = part.split("\n", 1)
        answer = re.split(r"^## ", answer, flags=re.M)[0].strip()
        text = answer.split("→")[0]
        if not question.endswith("?"): found.append(f"{question}: no question")
        if not 1 < len(sentences_of(text)) < 5: found.append(f"{question}: {len(sentences_of(text))} sentences")
        if not re.search(r"\]\([^)]+\.ipynb[^)]*\)", answer): found.append(f"{question}: no link")
    return found

def test_questions_have_short_answers_and_a_link(site):
    md = "\n".join(markdown_of(ROOT/"nbs/pages/faq.ipynb"))
    assert md.count("\n### ") > 15
    assert faults_of_answers(md) == []
    assert faults_of_answers("### Why?\n\nSo.\n") == ["Why?: 1 sentences", "Why?: no link"]
    long = "One. Two. Three. Four. Five. → [a](a.ipynb)"
    assert faults_of_answers(f"### Why?\n\n{long}\n") == ["Why?: 5 sentences"]
    for page in ("index.html", "cameras/rays.html"):
        assert "pages/faq.html" in (site/page).read_text() and "pages/requirements.html" in (site/page).read_text()


MEASURED = ("demo", "doctor", "preprocess", "reconstruct", "reconstruct --no-fit", "train", "study")

def unmeasured(md):
    "Commands without a row in a table of time and memory."
    lines = [line for line in md.splitlines() if line.startswith("| `") and re.search(r"\d (s|min)\b", line)]
    named = {re.match(r"\| `([^`]+)`", line)[1] for line in lines}
    return [command for command in MEASURED if command not in named]

def test_requirements_name_every_command():
    md = "\n".join(markdown_of(ROOT/"nbs/pages/requirements.ipynb"))
    assert unmeasured(md) == []
    assert unmeasured(re.sub(r"^\| `train`.*\n", "", md, flags=re.M)) == ["train"]
    assert "have not run any of this on a GPU" in md


# Words that terms.md replaces: film → video, picture → image, knob → camera perturbation, …
OLD_WORDS = re.compile(r"\b(films?|filmed|pictures?|knobs?|honest|twins?|updates|liveliest)\b", re.I)

def old_words(md): return OLD_WORDS.findall(re.sub(r"`[^`]*`|\]\([^)]*\)|^```.*?^```", " ", md, flags=re.M | re.S))

def test_pages_use_the_words_of_the_field():
    paths = [ROOT/"nbs/index.ipynb", *(ROOT/"nbs/pages").glob("*.ipynb"), *(ROOT/"nbs").glob("*/index.ipynb")]
    assert len(paths) > 20
    for path in paths: assert old_words("\n".join(markdown_of(path))) == [], path
    assert old_words("A film, `film.mp4` and [a picture](film.ipynb).") == ["film", "picture"]


TUTORIALS = ("bring_your_own_rig", "which_model", "why_did_it_go_white", "lora", "released_checkpoint")

@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_start_from_the_package_alone(site, name):
    "Each has its page, reads nothing beyond an installed package, has a picture early, and checks what it shows."
    sidebar = (site/"pages/limits.html").read_text()
    assert f'href="../tutorials/{name}.html"' in sidebar
    notebook = json.loads((ROOT/f"nbs/tutorials/{name}.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = [build.text(cell["source"]) for cell in cells]
    tree = ast.parse("\n".join(sources))
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert not [s for s in strings if "../" in s or s.startswith(("configs/", "results/", "http"))]
    def has_picture(cell): return any("image/png" in output.get("data", {}) for output in cell["outputs"])
    visible = [cell for cell, source in zip(cells, sources) if not source.startswith("#| hide\n")]
    with_pictures = [i for i, cell in enumerate(visible) if has_picture(cell)]
    assert with_pictures[0] < 6 and len(with_pictures) > 2
    n_checks = sum(isinstance(n, ast.Assert) for n in ast.walk(tree)) + sum("test_" in source for source in sources)
    assert n_checks > 8
    prints = [re.search(r"\bprint\(", source) and "def " not in source for source in sources]
    silent = [source for cell, source, prints_ in zip(cells, sources, prints) if prints_ and cell["outputs"] == []]
    assert not silent, "outputs are stored"


def mixed(cell):
    "Whether a cell imports and computes: nbdev runs every cell that imports something, and none before it."
    source = build.text(cell["source"])
    if cell["cell_type"] != "code" or re.search(r"^#\| *(export|exec_doc|eval)", source, re.M): return False
    tree = ast.parse(source)
    def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))
    only_definitions = all(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body)
    only_imports = all(is_import(node) for node in tree.body)
    return any(is_import(node) for node in ast.walk(tree)) and not only_imports and not only_definitions


def test_the_copy_for_quarto_says_the_same():
    "In the copy opening texts stand in cells of their own; nothing is lost, and no cell imports and computes."
    for path in [p for members in build.grouped(ROOT/"nbs").values() for p in members]:
        raw = json.loads(path.read_text())
        before = [build.text(cell["source"]) for cell in raw["cells"]]
        after = [build.text(cell["source"]) for cell in build.opened(raw)["cells"]]
        assert "\n".join(before).split() == "\n".join(after).split()
        bad = [build.text(cell["source"])[:80] for cell in raw["cells"] if mixed(cell)]
        assert not bad, (path.name, bad)


@pytest.mark.parametrize("source, is_mixed", [
    ("import os; a = 1", True), ("import os\nimport re", False), ("def f(): import io", False),
    ("def f(): import io\nf()", True), ("a = 1", False), ("#| export\nimport os; a = 1", False)])
def test_mixed_cells_are_seen(source, is_mixed):
    assert mixed(dict(cell_type="code", source=source)) == is_mixed


NBDEV = """import sys
from pathlib import Path
from nbdev.serve_drv import exec_nb
from nbdev.processors import FilterDefaults
for a, b in zip(sys.argv[1::2], sys.argv[2::2]): exec_nb(Path(a), Path(b), FilterDefaults)"""

def test_nbdev_takes_the_copy(copied, tmp_path):
    "nbdev's own processing goes through; a cell that imports and computes is where it would stop."
    names = [*(f"tutorials/{name}" for name in TUTORIALS), "cameras/05_rays", "views/00_views",
             "gaussians/05_rasterize", "gaussians/06_fit", "index", "cameras/index"]
    def run(*paths):
        args = [str(x) for path in paths for x in (path, tmp_path/"out.ipynb")]
        command = [sys.executable, "-W", "ignore", "-c", NBDEV, *args]
        env = os.environ | dict(MPLBACKEND="agg")
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    result = run(*[folder/f"{name}.ipynb" for folder in (copied, ROOT/"nbs") for name in names])
    assert result.returncode == 0, result.stderr[-800:]
    bad = json.loads((ROOT/"nbs/cameras/05_rays.ipynb").read_text())
    source = "import os; print(of_an_earlier_cell)"
    bad["cells"].append(dict(cell_type="code", id="x", metadata={}, outputs=[], execution_count=None, source=source))
    (tmp_path/"bad.ipynb").write_text(json.dumps(bad))
    assert "Error in notebook: Plücker rays in cell" in run(tmp_path/"bad.ipynb").stderr


COMMAND = re.compile(r"<code>(gslrm_mouse study --from-results) [^<]*</code>") # with the folders it was made in

@pytest.mark.slow
def test_the_report_is_the_one_of_the_command(site, tmp_path):
    "Written from the stored results by another process, which hashes strings otherwise."
    out = tmp_path/"study"
    got = command_process("study", "--from-results", ROOT/"nbs/results", "--out", out)
    assert got.returncode == 0, got.stderr
    page, shown = (folder.joinpath("index.html").read_text() for folder in (out, site/"reports/study"))
    assert COMMAND.sub(r"\1", page) == COMMAND.sub(r"\1", shown)
    assert COMMAND.search(shown)[0] == "<code>gslrm_mouse study --from-results nbs/results</code>"
    headings = re.findall(r'<h2 id="(\w+)">([^<]+)', page)
    assert {"recipes", "factors", "control", "zoom", "gap"} <= {name for name, _ in headings} & set(EXPERIMENTS)
    assert not any("_" in words for _, words in headings)
    ids = re.findall(r'id="([\w-]+)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert "http://" not in page and "https://" not in page


def test_the_report_has_its_place():
    page = Path("a.ipynb")
    groups, pages_, titles = {"Experiments": [page]}, {page: "a.html"}, {page: "a"}
    with_report = build.navigation(groups, pages_, titles, "a.html", "../", "reports/study/index.html")
    assert 'href="../reports/study/index.html">report of the study' in with_report
    assert "report" not in build.navigation(groups, pages_, titles, "a.html", "")


def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    (tmp_path/"thesis.txt").write_text("years of work")
    said = subprocess.run([sys.executable, ROOT/"tools/docs/build.py", tmp_path], capture_output=True, text=True)
    assert said.returncode == 1 and "should be empty or a site built before" in said.stderr
    assert (tmp_path/"thesis.txt").exists()


def test_changelog_knows_this_version():
    version = re.search(r"^version = (.+)$", (ROOT/"settings.ini").read_text(), re.M)[1]
    assert re.search(rf"^## .*{re.escape(version)}", (ROOT/"CHANGELOG.md").read_text(), re.M)


# --- in a browser ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    b = Browser(tmp_path_factory.mktemp("browser"))
    yield b
    b.close()


@pytest.fixture(scope="session")
def home(site):
    with served(site) as address:
        yield address


LOADED = """Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode())))
    .then(() => [...document.images].filter(i => !i.naturalWidth || !i.alt.trim()).length)"""

@pytest.mark.slow
def test_every_page_in_a_browser(site, browser, home):
    for page in pages(site):
        wrong, asked = browser.visit(home + page)
        assert [w for w in wrong if HARMLESS not in str(w)] == [], page
        assert [u for u in asked if not u.startswith((home, "data:", f"blob:{home}"))] == [], page
        if not page.startswith("source/"): assert browser.js(LOADED) == 0, page
        if page.startswith(("source/", "reports/")): continue
        with on_a_telephone(browser): # the page is laid out anew
            assert browser.js(WIDE) == [], page
            assert browser.js(BAD_CARDS) == 0, page


def test_the_browser_would_complain(site, browser, home, tmp_path):
    scripts = '<script src="missing.js"></script><script>console.error("ouch"); throw new Error("oops")</script>'
    (site/"bad.html").write_text(scripts + '<img src="http://127.0.0.1:9/x.png" alt="x">')
    try: wrong, asked = browser.visit(home + "bad.html")
    finally: (site/"bad.html").unlink()
    assert len(wrong) >= 3 and "http://127.0.0.1:9/x.png" in asked


def test_from_a_disk_without_a_server(site, browser):
    wrong, asked = browser.visit((site/"cameras/pinhole.html").as_uri())
    assert wrong == [] and all(u.startswith(("file:", "data:")) for u in asked)
    browser.js("document.getElementById('query').value = 'umeyama'; search()")
    assert "fit_similarity" in browser.js("search().then(() => document.getElementById('hits').innerText)")


def test_search_leads_to_the_place(browser, home):
    browser.visit(home + "index.html")
    def found(words):
        links = "[...hits.querySelectorAll('a')].map(a => a.getAttribute('href'))"
        return browser.js(f"(query.value = {json.dumps(words)}, search().then(() => {links}))")
    assert found("look_at")[0] == "cameras/pinhole.html#look_at"
    assert found("principal point")
    for words in ("plucker", "millimeters", "novel view synthesis", "citation"): assert found(words), words
    assert found("zzzyx") == [] and "nothing found" in browser.js("hits.innerText")


FOUND = """new Promise(r => {
    let n = 0
    const t = setInterval(() => {
        if (document.querySelector('.widget %s') || ++n > 100) { clearInterval(t); r(n) }
    }, 50)
})"""
STILL = """(w => {
    let e = w
    while (e = e.previousElementSibling) if (e.matches('figure')) return !!e.querySelector('img').alt
    return false
})(document.querySelector('.widget'))"""

def with_widgets():
    "Pages whose notebooks show a widget, and what kind: `interact` redraws by Python, a `Tab` of pictures needs none."
    found = {}
    for path in [p for members in build.grouped(ROOT/"nbs").values() for p in members]:
        raw = json.loads(path.read_text())
        state = raw["metadata"].get("widgets", {}).get(build.STATE, {}).get("state", {})
        kinds = {widget["model_name"] for widget in state.values()}
        if kinds: found[build.page_of(path, ROOT/"nbs")] = kinds
    return found


EXPECTED_WIDGETS = {
    "cameras/rays.html": "FloatSliderModel", "gaussians/cloud.html": "FloatSliderModel",
    "gaussians/rasterize.html": "FloatSliderModel", "preprocess/canonical.html": "TabModel",
    "experiments/factors.html": "ToggleButtonModel", "pages/glossary.html": "TabModel"}

def test_there_is_a_widget_for_each_of_these():
    kinds = with_widgets()
    for page, kind in EXPECTED_WIDGETS.items(): assert kind in kinds[page], page


PRESS_RIGHT = """(h => {
    h.focus()
    for (const t of ['keydown', 'keyup'])
        h.dispatchEvent(new KeyboardEvent(t, {key: 'ArrowRight', code: 'ArrowRight', bubbles: true}))
})(document.querySelector('.widget .noUi-handle'))"""
SLIDER = (".widget-readout", "document.querySelector('.widget .widget-readout').innerText", PRESS_RIGHT)
BUTTON = (".widget-toggle-button",
          "document.querySelector('.widget .widget-toggle-button').classList.contains('mod-active')",
          "document.querySelector('.widget .widget-toggle-button').click()")

def test_sliders_and_buttons_move(browser, home):
    for page, kinds in with_widgets().items():
        if "FloatSliderModel" in kinds: selector, value, move = SLIDER
        elif "ToggleButtonModel" in kinds: selector, value, move = BUTTON
        else: continue
        browser.visit(home + page)
        assert browser.js(FOUND % selector) < 100, page
        before = browser.js(value)
        browser.js(move)
        assert browser.js(value) != before, page
        assert browser.js(STILL), f"{page}: a still figure stands before the widget"
        assert "none runs behind this page" in browser.js("document.querySelector('.widget .note').innerText"), page
        assert browser.wrong() == [], page


CLICK = """(t => {
    for (const e of ['pointerdown', 'mousedown', 'pointerup', 'mouseup', 'click'])
        t.dispatchEvent(new (e[0] === 'p' ? PointerEvent : MouseEvent)(
            e, {bubbles: true, button: 0, clientX: t.getBoundingClientRect().x + 9,
                clientY: t.getBoundingClientRect().y + 9}))
})"""
TABS = "[...document.querySelectorAll('.widget .lm-TabBar-tab, .widget .p-TabBar-tab')]"
VISIBLE = """[...document.querySelectorAll('.widget img')]
    .filter(i => i.offsetParent && i.naturalWidth).map(i => i.src)"""

@pytest.mark.parametrize("page", ["pages/glossary.html", "preprocess/canonical.html"])
def test_a_widget_of_pictures_works_without_python(browser, home, page):
    browser.visit(home + page)
    assert browser.js(FOUND % ".lm-TabBar-tab, .widget .p-TabBar-tab") < 100
    assert browser.js(STILL)
    seen = browser.js(VISIBLE)
    assert len(seen) == 1
    for k in range(1, browser.js(f"{TABS}.length")):
        browser.js(f"{CLICK}({TABS}[{k}])")
        visible = browser.js(VISIBLE)
        assert len(visible) == 1 and visible[0] not in seen
        seen += visible
    assert len(seen) > 3
    assert browser.wrong() == []
    assert browser.js("[...document.querySelectorAll('.widget img')].every(i => i.alt.trim())")


# What is wider than the screen and does not lie in a box that scrolls, and tables outside of such a box.
WIDE = """(() => {
    const scrolls = e => e && (/(auto|scroll|hidden)/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement))
    const width = document.documentElement.clientWidth
    const wide = [...document.querySelectorAll('main *, header *')].filter(
        e => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement) && !e.closest('math, .widget'))
    const bare = [...document.querySelectorAll('table')].filter(t => !t.closest('.scroll'))
    const page = document.documentElement.scrollWidth > width ? ['page'] : []
    return [...page, ...[...wide, ...bare].map(e => e.tagName.toLowerCase() + ' ' + e.className)]
})()"""
# Cards whose cells stand beside each other or stick out.
BAD_CARDS = """[...document.querySelectorAll('.cards td')].filter(
    d => d.offsetParent && (getComputedStyle(d).display != 'block' || d.scrollWidth > d.clientWidth + 1)).length"""

@contextmanager
def on_a_telephone(browser):
    browser("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
    try:
        yield browser
    finally:
        browser("Emulation.clearDeviceMetricsOverride")

@pytest.fixture
def telephone(browser):
    with on_a_telephone(browser):
        yield browser

def test_findings_are_cards_on_a_telephone(telephone, home):
    telephone.visit(home + "pages/findings.html")
    assert telephone.js(WIDE) == [] and telephone.js(BAD_CARDS) == 0
    assert telephone.js("document.querySelectorAll('.cards').length") > 4
    label = "getComputedStyle(document.querySelector('.cards td:nth-child(2)'), '::before').content"
    named = "document.querySelector('.cards td:nth-child(2)').dataset.label"
    assert "attr(" in telephone.js(label) or telephone.js(named) in telephone.js(label)
    assert telephone.js(named)


def test_what_sticks_out_is_seen_when_a_page_is_turned_into_a_telephone(browser, home):
    "As `test_every_page_in_a_browser` does it."
    browser.visit(home + "index.html")
    wide = '<div class="planted" style="width: 450px">x</div>'
    browser.js(f"content.insertAdjacentHTML('beforeend', {json.dumps(wide)})")
    assert browser.js(WIDE) == [], "a desktop has the room"
    with on_a_telephone(browser):
        assert "div planted" in browser.js(WIDE)


def test_what_sticks_out_on_a_telephone_is_seen(telephone, home):
    def plant(html): telephone.js(f"content.insertAdjacentHTML('beforeend', {json.dumps(html)})")
    telephone.visit(home + "index.html")
    assert telephone.js(WIDE) == [] and telephone.js(BAD_CARDS) == 0
    plant('<div class="planted" style="width: 700px">x</div><table></table>')
    found = telephone.js(WIDE)
    assert "div planted" in found and "table " in found and "page" in found
    words = "words in one line that goes on and on and on and on and on"
    plant(f'<div class="cards"><table><tr><td style="white-space: nowrap">{words}</td></tr></table></div>')
    assert telephone.js(BAD_CARDS) == 1


DOCTOR = "document.querySelector('#sidebar summary a[href$=\"doctor/index.html\"]')"

def test_the_menu_of_a_telephone_leads_to_a_room(telephone, home):
    telephone.visit(home + "index.html")
    telephone.js("menu.click()")
    assert telephone.js("menu.getAttribute('aria-expanded')") == "true"
    assert telephone.js(f"{DOCTOR}.getBoundingClientRect().height") >= 30, "large enough for a finger"
    address = telephone.js(f"{DOCTOR}.href")
    assert address == home + "doctor/index.html"
    telephone.visit(address)
    telephone.js("menu.click()")
    assert telephone.js(f"{DOCTOR}.getAttribute('aria-current')") == "page"
    assert telephone.js(f"{DOCTOR}.closest('details').open")


@pytest.mark.parametrize("cell, is_card", [
    ("0.73 [0.72, 0.74]", False), ("a sentence that is too long for a column", True)])
def test_tables_of_sentences_become_cards(cell, is_card):
    table = f"<table><thead><tr><th>claim</th><th>why</th></tr></thead><tr><td>a</td><td>{cell}</td></tr></table>"
    boxed = build.boxed_table(table)
    assert boxed.startswith('<div class="scroll cards">' if is_card else '<div class="scroll">')
    assert ('<td data-label="why">' in boxed) == is_card


def test_dark_light_and_telephone(site, browser, home):
    background = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)"
    def shade(): return browser.js(f"{background}.reduce((a, x) => a + +x, 0)")
    browser("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value="dark")])
    browser.visit(home + "index.html")
    assert shade() < 200
    browser.js("document.getElementById('theme').click()")
    assert shade() > 600
    browser.visit(home + "cameras/pinhole.html")
    assert shade() > 600, "the choice is kept"
    browser.js("localStorage.clear()")
    browser("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value="light")])
    browser("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
    try:
        tutorials = [page for page in pages(site) if page.startswith("tutorials/")]
        for page in ("index.html", "preprocess/canonical.html", "calibration/formats.html", "pages/api.html",
                     "experiments/factors.html", *tutorials):
            browser.visit(home + page)
            assert browser.js("document.documentElement.scrollWidth") <= 390, page
        def hidden(): return browser.js("getComputedStyle(document.getElementById('sidebar')).display == 'none'")
        assert hidden()
        browser.js("document.getElementById('menu').click()")
        assert not hidden()
        top = browser.js("document.querySelector('#sidebar h2').getBoundingClientRect().top")
        bottom = browser.js("document.querySelector('header').getBoundingClientRect().bottom")
        assert top >= bottom, "the menu begins below the head of the page"
    finally:
        browser("Emulation.clearDeviceMetricsOverride")
