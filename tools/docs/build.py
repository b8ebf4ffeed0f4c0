"""The documentation where Quarto is missing: the notebooks as nbdev processes them, through pandoc, into one folder.

    python tools/docs/build.py [OUT]        the site, `_docs` when OUT is left out
    python tools/docs/build.py --quarto TO  where Quarto is there: a copy of the notebooks for `nbdev_docs --path TO`,
                                            with what nbdev would lose or stumble over put right"""
import ast, base64, functools, gzip, hashlib, html, importlib, json, os, re, shutil, sys, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePosixPath
from string import Template

root, here = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
os.chdir(root) # nbdev looks for settings.ini in the working directory
sys.path.insert(0, str(root))

# The sidebar: a title, whether it begins closed, and pages or folders ("cameras/") in reading order.
# Of a folder its start page comes first (index.ipynb); the group's title leads to it.
GROUPS = (
    ("Start", False, ("index", "pages/faq", "pages/doctor_findings", "pages/findings", "pages/requirements",
                      "pages/glossary", "pages/limits")),
    ("How to", False, ("tutorials/bring_your_own_rig", "tutorials/why_did_it_go_white", "tutorials/lora",
                       "tutorials/released_checkpoint", "tutorials/")),
    ("Cameras, rays and lenses", True, ("cameras/",)),
    ("Calibration files", True, ("calibration/",)),
    ("Views, recordings, visual hull", True, ("views/",)),
    ("Masks", True, ("masks/",)),
    ("Synthetic scenes", True, ("scenes/",)),
    ("3D Gaussians and rasterization", True, ("gaussians/",)),
    ("Preprocessing and the canonical camera", True, ("preprocess/",)),
    ("Models, checkpoints, LoRA", True, ("models/index", "pages/model_cards", "models/")),
    ("Training", True, ("training/",)),
    ("Reconstruction", True, ("reconstruction/",)),
    ("Evaluation", True, ("evaluation/",)),
    ("Doctor", True, ("doctor/",)),
    ("Experiments and their report", True, ("experiments/",)),
    ("Reference", True, ("pages/conventions", "pages/api", "pages/contributing", "pages/changelog", "06_cli",
                         "05_metrics", "00_files", "01_threads", "02_stats", "03_plotting", "04_video")),
)
WIDGET, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
START_PAGE = "index.ipynb" # of a room
FROM = "commonmark_x-smart" # what Jupyter renders, with attributes and maths

def grouped(nbs:Path) -> dict[str, list[Path]]:
    "Notebooks of `nbs` by group, in reading order; ValueError for one that belongs to none."
    notebooks = [p for p in sorted(nbs.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    notebooks.sort(key=lambda p: p.name != START_PAGE)
    paths = {p.relative_to(nbs).with_suffix("").as_posix(): p for p in notebooks}
    def belongs(name, key): return name == key or key.endswith("/") and name.startswith(key)
    groups = {}
    for title, _, keys in GROUPS:
        members = [p for key in keys for name, p in paths.items() if belongs(name, key)]
        groups[title] = list(dict.fromkeys(members))
    lost = set(paths.values()) - {p for members in groups.values() for p in members}
    if lost:
        names = ", ".join(sorted(str(p) for p in lost))
        raise ValueError(f"{names}: in no group of the sidebar; GROUPS in tools/docs/build.py lists folders and pages")
    return groups

def is_start_page(path:Path, nbs:Path) -> bool: return path.name == START_PAGE and path.parent != nbs

def start_page(members:list[Path], nbs:Path) -> tuple: # (path or None, the other members)
    "The page that the title of a group leads to."
    starts = [p for p in members if is_start_page(p, nbs)]
    return (starts[0] if starts else None), [p for p in members if p not in starts]

def sidebar(nbs:Path) -> str:
    "The same groups for Quarto."
    import yaml
    def section(title, members):
        start, others = start_page(members, nbs)
        href = {} if start is None else dict(href=start.relative_to(nbs).as_posix())
        return dict(section=title, **href, contents=[p.relative_to(nbs).as_posix() for p in others])
    contents = [section(title, members) for title, members in grouped(nbs).items()]
    settings = dict(project=dict(resources=["viewers/*.html"]), website=dict(sidebar=dict(contents=contents)))
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)

def module_file(module:str) -> Path: # "cameras.pinhole" → gslrm_mouse/cameras/pinhole.py
    return (root/"gslrm_mouse"/module.replace(".", "/")).with_suffix(".py")

def page_of(path:Path, nbs:Path) -> str:
    "nbs/cameras/04_lens.ipynb → cameras/lens.html, as nbdev names it."
    from nbdev.doclinks import _nbpath2html
    return PurePosixPath(_nbpath2html(path.relative_to(nbs))).as_posix()


# --- what stands where ------------------------------------------------------------------------------------------

def names_in(target) -> list[str]: # of an assignment
    return [x.id for x in ast.walk(target) if isinstance(x, ast.Name)]

def lines_of(module:Path) -> dict[str, int]:
    "Where each name of a module is defined: functions, classes, their methods (patched ones too), constants."
    from nbdev.showdoc import showdoc_nm
    found = {}
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found[showdoc_nm(node)] = node.lineno
        if isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            found |= {f"{node.name}.{m.name}": m.lineno for m in methods}
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name: node.lineno for target in targets for name in names_in(target)}
    return found

MARKDOWN = str.maketrans({"`": "", "*": r"\*", "_": r"\_", "$": r"\$", "<": r"\<", "[": r"\["})

def error_sentence(call) -> str: # of `raise Kind(sentence)`
    "The sentence of an error, with … for what is filled in."
    if not isinstance(call, ast.Call) or not call.args: return ""
    parts = [x for x in ast.walk(call.args[0]) if isinstance(x, (ast.Constant, ast.JoinedStr))]
    if not parts: return ""
    values = parts[0].values if isinstance(parts[0], ast.JoinedStr) else [parts[0]]
    sentence = "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in values)
    return re.sub(r"\s+", " ", sentence).strip().translate(MARKDOWN)

def raises_of(module:Path) -> dict[str, list[tuple[str, str]]]:
    "What each function of a module raises itself: the error and its sentence."
    from nbdev.showdoc import showdoc_nm
    def raised(definition):
        found = []
        for node in ast.walk(definition):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, (ast.Call, ast.Name))): continue
            kind = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            if re.fullmatch(r"[A-Z]\w*", kind): found.append((kind, error_sentence(node.exc)))
        return list(dict.fromkeys(found))
    body = ast.parse(module.read_text(encoding="utf-8")).body
    return {showdoc_nm(n): raised(n) for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}

def constants_of(source:str) -> list[str]:
    "Public names which a cell assigns at its top level."
    targets = [t for n in ast.parse(source).body if isinstance(n, ast.Assign) for t in n.targets]
    return [name for target in targets for name in names_in(target) if not name.startswith("_")]


def opened(raw:dict) -> dict:
    "The notebook with a first cell of title and `>` line only: nbdev throws away whatever else stands in it."
    first = raw["cells"][0]
    source = text(first["source"])
    title = re.match(r"\s*#\s.*\n(?:\s*>.*(?:\n|\Z))*", source + "\n")
    if first["cell_type"] != "markdown" or not title: return raw
    rest = source[title.end():].strip()
    if rest:
        second = dict(cell_type="markdown", id=first.get("id", "0")[:6] + "-t", metadata={}, source=rest)
        raw["cells"][:1] = [first | dict(source=title[0].strip()), second]
    return raw

def with_alt(cell:dict, alts:dict):
    "The alternative text of the cell's picture, written out where the cell has none of its own."
    source = text(cell["source"])
    if cell.get("id") not in alts or re.search(r"^#\| *fig-(alt|cap)", source, re.M): return
    cell["source"] = f"#| fig-alt: {json.dumps(alts[cell['id']], ensure_ascii=False)}\n{source}"

def with_viewer(cell:dict, page) -> list[dict]: # the cell and, where it names one, a cell with the viewer's frame
    named = re.search(r"^#\| *viewer: *(\w+)", text(cell["source"]), re.M)
    if not named or named[1] not in page.viewers: return [cell]
    frame = viewer_frame(named[1], page.alts[cell["id"]], page.up)
    source = frame.replace("<iframe", '<iframe style="width: 100%; height: 22rem; border: 0"')
    return [cell, dict(cell_type="markdown", id=f"{cell['id']}-v", metadata={}, source=source)]

def fill_start_page(raw:dict, page, made:dict, folder:Path): # changes `raw`, writes its figure into `folder`
    def as_file(figure):
        file = folder/f"figure_{figure.cell}{Path(figure.name).suffix}"
        shutil.copy(page.out/figure.name, file)
        return f"![{figure.caption}]({file.name})"
    for cell in raw["cells"]: cell["source"] = with_figures(text(cell["source"]), page, made, as_file)
    raw["cells"].append(dict(cell_type="markdown", id="contents", metadata={}, source=contents_of(page, made)))

def for_quarto(nbs:Path, to:Path):
    "A copy of `nbs` for `nbdev_docs --path`: opening texts kept, alternative texts written out, pages in groups."
    import tempfile
    if to.exists(): shutil.rmtree(to)
    shutil.copytree(nbs, to, ignore=shutil.ignore_patterns(".*"))
    order = [p for members in grouped(nbs).values() for p in members]
    pages = {form: page_of(p, nbs) for p in order for form in (p, p.resolve())}
    with tempfile.TemporaryDirectory() as tmp:
        made = {p: Page(p, nbs, Path(tmp), pages) for p in order}
        for p, page in made.items():
            raw = opened(json.loads(p.read_text(encoding="utf-8")))
            for cell in raw["cells"]: with_alt(cell, page.alts)
            raw["cells"] = [copy for cell in raw["cells"] for copy in with_viewer(cell, page)]
            if is_start_page(p, nbs): fill_start_page(raw, page, made, to/p.parent.relative_to(nbs))
            (to/p.relative_to(nbs)).write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    write_viewers({name for page in made.values() for name in page.viewers}, viewer_makers(), to)
    (to/"sidebar.yml").write_text(sidebar(nbs), encoding="utf-8")
    os.utime(to/"index.ipynb", (0, 0)) # so that nbdev does not make another README from it
    shutil.rmtree(root/"_proc", ignore_errors=True) # what nbdev has processed before


# --- nbdev's processing, but for one thing: a documented symbol is looked up in the package
#     instead of running the notebook again ---------------------------------------------------------------------

def processed(path:Path):
    "The notebook as nbdev hands it to Quarto; exported code stays (`fold_`), `show_doc` is answered (`symbol_`)."
    return _processed(path, path.read_text(encoding="utf-8"))

@functools.cache # the site and the copy for Quarto are made of the same notebooks
def _processed(path:Path, content:str):
    from execnb.nbio import dict2nb
    from nbdev import processors
    from nbdev.process import NBProcessor
    from nbdev.showdoc import show_doc
    raw = json.loads(content)
    widgets = raw["metadata"].pop("widgets", {}).get(STATE) # nbdev would take a link's `source` for a cell's
    nb = dict2nb(opened(raw))
    nb.path_ = str(path)
    module = processors._default_exp(nb)

    class answer(processors.Processor):
        def cell(self, cell):
            if not (module and cell.cell_type == "code" and processors._is_showdoc(cell)): return
            cell.symbol_ = cell.source.strip()[len("show_doc("):-1]
            symbol = attrgetter(cell.symbol_)(importlib.import_module(f"gslrm_mouse.{module}"))
            cell.source, cell.cell_type = show_doc(symbol)._repr_markdown_(), "markdown"

    def fold(cell):
        if {"hide", "default_exp"} & cell.directives_.keys(): del cell["source"]
        elif {"export", "exports", "exporti"} & cell.directives_.keys():
            only_imports = all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(cell.source).body)
            if only_imports: del cell["source"]
            else: cell.fold_ = True

    is_fresh = any("exec_doc" in c.source for c in nb.cells if c.cell_type == "code")
    swap = {processors.rm_export: fold, processors.insert_warning: None, processors.clean_show_doc: None,
            processors.add_fold: None, processors.mv_exports: None,
            processors.exec_show_docs: processors.exec_show_docs if is_fresh else answer}
    procs = [q for p in processors.FilterDefaults().base_procs() if (q := swap.get(p, p)) is not None]
    if is_fresh: nb.has_docs_ = True
    NBProcessor(nb=nb, procs=procs).process()
    return nb, module, widgets


# --- one page ----------------------------------------------------------------------------------------------------

def plain(md:str) -> str:
    "Markdown as a reader hears it: no links, marks, code fences or tables; formulas in words as far as they have any."
    md = re.sub(r"```.*?```|\$\$.*?\$\$|^\s*\|.*$|^\s*#.*$|<[^>]+>", " ", md, flags=re.S | re.M)
    md = re.sub(r"!?\[([^\]]*)\]\([^)]*\)(\{[^}]*\})?", r"\1", md)
    md = re.sub(r"\$([^$]*)\$", lambda m: m[1].replace("\\", "").replace("{", "").replace("}", ""), md)
    return re.sub(r"\s+", " ", re.sub(r"[*`>]|^\s*[-\d]+[.)]?\s", "", md, flags=re.M)).strip()

def last_sentence(md:str) -> str:
    "What the text says just before a picture."
    sentences = [s.strip(" :;") for s in re.split(r"(?<=[.!?:])\s+(?=[A-Z0-9\"(])", plain(md))]
    long_ones = [s for s in sentences if len(s.strip(".")) > 15]
    return long_ones[-1] if long_ones else ""

KINDS_OF_FIGURE = (("imshow|show_views|plot_choices", "pictures"), (r"\.plot\(|plot_pull|semilogx|errorbar", "curves"),
                   ("draw_cameras|3d", "cameras and points in space"), (r"\.bar", "bars"), ("scatter", "points"))

def labels_of(source:str) -> str:
    "What a cell draws, and the titles, axes and curves it writes into its picture, as far as they are literals."
    def quoted(pattern, name):
        found = [m[1] for m in re.finditer(rf"""(?:{pattern})\(?["']([^"'{{}}]{{2,}})["']""", source)]
        return f"{name} {', '.join(dict.fromkeys(found))}" if found else ""
    kinds = [kind for words_, kind in KINDS_OF_FIGURE if re.search(words_, source)]
    grid = re.search(r"subplots\((\d+), (\d+)", source)
    panels = f", {grid[1]} × {grid[2]} panels" if grid else ""
    parts = (" and ".join(kinds or ["drawing"]) + panels, quoted("title", "titled"), quoted("xlabel", "across:"),
             quoted("ylabel", "up:"), quoted(r"\blabel=", "curves:"))
    return "; ".join(filter(None, parts))

def alt_of(cell, heading:str, sentence:str, near:bool) -> str:
    "A picture's alternative text: `fig-alt` or `fig-cap` of its cell; else section, last sentence and labels."
    for key in ("fig-alt:", "fig-cap:"):
        if key in cell.directives_: return " ".join(cell.directives_[key]).strip("\"'")
    labels = labels_of(cell.source)
    said = sentence if near or ";" not in labels else ""
    parts = filter(None, (heading, said, labels[0].upper() + labels[1:]))
    return re.sub(r"([.?!])\.", r"\1", ". ".join(parts) + ".")

def viewer_makers() -> dict: # name: function of the path of its page
    "The viewers that cells embed by `#| viewer: NAME`; none where viser, which draws them, is not installed."
    from gslrm_mouse.reconstruction.viewer import EXAMPLE_ROWS, has_viser, write_example, write_example_row
    rows = {name: functools.partial(write_example_row, name) for name in EXAMPLE_ROWS}
    return dict(example=write_example, **rows) if has_viser() else {}

VIEWER_HINT = '<span class="live">In the viewer beside the still image: drag to turn, scroll to come closer.</span>'

def viewer_frame(name:str, alt:str, up:str) -> str:
    return f'<iframe src="{up}viewers/{name}.html" title="viewer: {html.escape(alt)}" loading="lazy"></iframe>'

def write_viewers(names, makers:dict, out:Path): # into `out`/viewers
    for name in sorted(names):
        makers[name](out/f"viewers/{name}.html")

def raw(s:str) -> str: return f"\n\n``````{{=html}}\n{s}\n``````\n\n"
def code(s:str) -> str: return f"\n\n``````python\n{s.strip()}\n``````\n\n"
def text(x) -> str: return x if isinstance(x, str) else "".join(x)

def documented(name:str, obj) -> bool:
    is_special = name.split(".")[-1].startswith("__")
    return not is_special or bool((getattr(obj, "__doc__", None) or "").strip())

NO_KERNEL = ('<p class="note">The controls move, but their picture is drawn by Python, and none runs behind this page: '
             "the figure above shows the point. Open the notebook to play.</p>")

@dataclass
class Figure:
    "A figure that a page shows of another notebook."
    cell:str # its id
    name:str # of the image file, in the site
    size:tuple # width, height
    alt:str
    caption:str # markdown
    notebook:str # as the page links to it

FIGURE = re.compile(r"^Figure: \[(.+)\]\(([^()#\s]+\.ipynb)#([\w-]+)\)$", re.M)

def with_figures(md:str, page, made:dict, shown) -> str:
    "Each line `Figure: [caption](NOTEBOOK.ipynb#CELL)` becomes `shown(Figure)`; ValueError if the cell stores none."
    def found(m):
        other = made.get((page.path.parent/m[2]).resolve())
        if other is None: raise ValueError(f"{page.path}: shows a figure of {m[2]}, which is no notebook here")
        if m[3] not in other.figures:
            there = ", ".join(other.figures) or "none"
            raise ValueError(f"{page.path}: cell {m[3]} of {m[2]} stores no figure; cells that do: {there}")
        name, size = other.figures[m[3]]
        return shown(Figure(cell=m[3], name=name, size=size, alt=other.alts[m[3]], caption=m[1], notebook=m[2]))
    return FIGURE.sub(found, md)

def contents_of(page, made:dict) -> str:
    "The notebooks in the folder of a start page, with their titles and purposes."
    others = [other for path, other in made.items() if path.parent == page.path.parent and path != page.path]
    rows = [f"| [{other.title}]({other.path.name}) | {other.says} |" for other in others]
    return "\n".join(["## Notebooks", "", "| notebook | purpose |", "|---|---|", *rows])

CODE = r"(?P<fence>`{3,}).*?(?P=fence)|``.+?``|`(?:[^`\n]|\n(?!\n))+`"
LINK = re.compile(CODE + r"|\]\((?!https?:)(?P<notebook>[^)\s#]+\.ipynb)(?P<anchor>#[^)\s]*)?\)", re.S)

class Page:
    "One notebook on its way: its markdown, its pictures, where its symbols are."
    def __init__(self, path:Path, nbs:Path, out:Path, pages:dict):
        from nbdev.config import get_config
        cfg = get_config()
        self.host, self.repo = f"{cfg.doc_host}{cfg.doc_baseurl}", f"{cfg.git_url}/blob/{cfg.branch}"
        self.path, self.nbs, self.out, self.pages = path, nbs, out, pages
        self.url = pages[path]
        self.up = "../"*self.url.count("/")
        self.nb, self.module, self.state = processed(path)
        self.title, self.says = self.nb.frontmatter_["title"], self.nb.frontmatter_.get("description", "")
        self.lines = lines_of(module_file(self.module)) if self.module else {}
        self.raises = raises_of(module_file(self.module)) if self.module else {}
        self.heading, self.said, self.near = self.title, "", False
        self.pictures, self.alts, self.figures = 0, {}, {} # the last two by the id of the cell
        self.widgets = False
        self.makers, self.viewers = viewer_makers(), set()
        self.ids = set()
        self.held, self.symbols = "", []
        self.md = "".join(self.cell(c) for c in self.nb.cells) + self.flush()

    def cell(self, cell) -> str:
        if cell.cell_type == "raw": return ""
        if hasattr(cell, "symbol_"):
            self.symbols.append(cell)
            return ""
        before = self.flush()
        near, self.near = self.near, cell.cell_type == "markdown"
        if getattr(cell, "fold_", False):
            self.held = self.folded(cell.source)
            return before
        if cell.cell_type == "markdown":
            heads = re.findall(r"^#{2,4}\s+(.+?)\s*(?:\{.*\})?$", cell.source, re.M)
            if heads: self.heading, self.said = plain(heads[-1]), ""
            self.said = last_sentence(cell.source) or self.said
            return before + "\n\n" + cell.source + "\n\n"
        directives = {k: v[0] if v else "" for k, v in cell.directives_.items()}
        source = "\n".join(x for x in cell.source.splitlines() if not re.match(r"#\|", x)).strip()
        is_shown = source and directives.get("echo:") != "false" and directives.get("include:") != "false"
        before += code(source) if is_shown else ""
        if directives.get("output:") == "false" or directives.get("include:") == "false": return before
        return before + "".join(self.output(cell, o, near) for o in cell.get("outputs", []))

    def flush(self) -> str:
        "The symbols of the last exported cell in the order of their source, then its code."
        in_order = sorted(self.symbols, key=lambda c: self.lines[c.symbol_])
        held = "".join(self.symbol(c) for c in in_order) + self.held
        self.held, self.symbols = "", []
        return held

    def anchor(self, name:str) -> str:
        "As nbdev's index spells it; a second one that differs only in capitals is numbered, as pandoc does."
        a = name.lower()
        n = sum(x == a or re.fullmatch(rf"{re.escape(a)}-\d+", x) is not None for x in self.ids)
        a = f"{a}-{n}" if n else a
        self.ids.add(a)
        return a

    def source_link(self, name:str) -> str: return f"{self.up}source/{self.module}.html#src-{self.lines[name]}"

    def symbol(self, cell) -> str:
        md, name = cell.source, cell.symbol_
        obj = attrgetter(name)(importlib.import_module(f"gslrm_mouse.{self.module}"))
        if not documented(name, obj): return raw(f'<span id="{self.anchor(name)}"></span>')
        md = re.sub(r"^---\n\n(\[source\].*\n\n)?#+ .*\n", "", md)
        if isinstance(obj, type):
            md = re.sub(r"```python\ndef ", "```python\ndef ", md)
            md = re.sub(r"^def (.*?)\)->None:$", r"class \1)", md, count=1, flags=re.S | re.M)
        if isinstance(obj, property):
            md = re.sub(r"```python\ndef (\w+)\(\)", r"```python\n@property\ndef \1(self)", md)
        has_doc = bool(getattr(obj, "__doc__", None))
        md = re.sub(r"^\*(.*?)\*$", r"\1" if has_doc else "", md, flags=re.S | re.M)
        head = f"### `{name}` [source]({self.source_link(name)}){{.source}} {{#{self.anchor(name)} .symbol}}"
        return f"\n\n{head}\n\n{md.strip()}\n\n{self.raised(name)}"

    def raised(self, name:str) -> str:
        items = []
        for kind, sentence in self.raises.get(name, ()):
            items.append(f"* `{kind}`: “{sentence}”\n" if sentence else f"* `{kind}`\n")
        return f"::: {{.raises}}\nRaises\n\n{''.join(items)}:::\n\n" if items else ""

    def folded(self, source:str) -> str:
        "Exported code, closed; constants and private names, which have no signature, are found there by their names."
        defs = [n.name for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        private = [name for name in defs if name.startswith("_") and name in self.lines]
        constants = [name for name in constants_of(source) if name in self.lines]
        ids = "".join(f'<span id="{self.anchor(name)}"></span>' for name in private + constants)
        names = ", ".join(f"<code>{html.escape(name)}</code>" for name in constants)
        summary = f"code: {names}" if names else "code"
        return raw(f'{ids}<details class="src"><summary>{summary}</summary>') + code(source) + raw("</details>")

    def output(self, cell, o, near:bool) -> str:
        kind = o["output_type"]
        if kind == "error": raise ValueError(f"{self.path}: a cell stores an error, {o['ename']}: {o['evalue']}")
        if kind == "stream": return raw(f'<pre class="out">{html.escape(text(o["text"]).rstrip())}</pre>')
        data = o.get("data", {})
        for mime, suffix in (("image/png", "png"), ("image/jpeg", "jpg")):
            if mime in data:
                alt = self.alts[cell.get("id")] = alt_of(cell, self.heading, self.said, near)
                viewer, caption = (" ".join(cell.directives_.get(key, ())) for key in ("viewer:", "fig-cap:"))
                picture = self.picture(base64.b64decode(text(data[mime])), suffix, alt, cell.get("id"))
                if viewer:
                    picture = self.beside_viewer(picture, viewer, alt, caption.strip("\"'"))
                return raw(picture)
        if WIDGET in data: return self.widget(data[WIDGET])
        if "text/markdown" in data: return "\n\n" + text(data["text/markdown"]) + "\n\n"
        if "text/html" in data: return raw(text(data["text/html"]))
        if "text/plain" not in data:
            raise ValueError(f"{self.path}: an output of the kinds {', '.join(data)} has no place in the documentation")
        shown = text(data["text/plain"])
        is_address = re.fullmatch(r"<.* at 0x[0-9a-f]+>", shown.strip())
        return "" if is_address else raw(f'<pre class="out">{html.escape(shown)}</pre>')

    def beside_viewer(self, picture:str, viewer:str, alt:str, caption:str) -> str:
        "A figure and, beside it, the viewer that its cell names."
        if not self.makers: return picture
        if viewer not in self.makers:
            raise ValueError(f"{self.path}: there is no viewer {viewer!r}; there are {', '.join(self.makers)}")
        self.viewers.add(viewer)
        image = picture.removeprefix("<figure>").removesuffix("</figure>")
        caption = f"<figcaption>{html.escape(caption)} {VIEWER_HINT}</figcaption>"
        return f'<figure class="viewer">{image}{viewer_frame(viewer, alt, self.up)}{caption}</figure>'

    def picture(self, data:bytes, suffix:str, alt:str, cell:str) -> str:
        import io
        from PIL import Image
        self.pictures += 1
        name = f"{self.url.removesuffix('.html')}_files/{self.pictures}.{suffix}"
        (self.out/name).parent.mkdir(parents=True, exist_ok=True)
        (self.out/name).write_bytes(data)
        size = Image.open(io.BytesIO(data)).size
        self.figures[cell] = name, size
        return f"<figure>{self.image(name, size, alt)}</figure>"

    def image(self, name:str, size:tuple, alt:str) -> str:
        w, h = size
        return f'<img src="{self.up}{name}" width="{w}" height="{h}" loading="lazy" alt="{html.escape(alt)}">'

    def figure(self, f) -> str: # of another notebook
        image = self.image(f.name, f.size, f.alt)
        return f"{raw(f'<figure>{image}<figcaption>')}[{f.caption}]({f.notebook}){raw('</figcaption></figure>')}"

    def whole(self, made:dict) -> str:
        "The markdown with figures of other notebooks and, on a start page, the list of its room's notebooks."
        md = with_figures(self.md, self, made, self.figure)
        return f"{md}\n\n{contents_of(self, made)}" if is_start_page(self.path, self.nbs) else md

    def widget(self, view:dict) -> str:
        if self.state is None or view["model_id"] not in self.state["state"]:
            raise ValueError(f"{self.path}: the state of its widget is not stored; "
                             "run the notebook and save it with its widgets")
        self.widgets = True
        needs_kernel = any(s["model_name"] == "OutputModel" for s in self.state["state"].values())
        script = f'<script type="{WIDGET}">{json.dumps(dict(view))}</script>'
        return raw(f'<div class="widget">{script}{NO_KERNEL if needs_kernel else ""}</div>')

    def links(self, md:str) -> str:
        "Links between notebooks and to nbdev's host become links between pages, but for those within code."
        def there(m):
            if m["notebook"] is None: return m[0]
            target = (self.path.parent/m["notebook"]).resolve()
            if target not in self.pages:
                raise ValueError(f"{self.path}: links to {m['notebook']}, which is no notebook here")
            return f"]({self.up}{self.pages[target]}{m['anchor'] or ''})"
        md = LINK.sub(there, md)
        return md.replace(f"]({self.host}/", f"]({self.up}")


# --- pandoc, search, frame ---------------------------------------------------------------------------------------

def html_of(md:str, cache:Path) -> str:
    "Through pandoc, or from what it said to the same text before."
    import pypandoc
    kept = cache/hashlib.sha256((FROM + md).encode()).hexdigest()
    if not kept.exists():
        options = ["--mathml", "--wrap=none"]
        # the formats are known: to verify them takes two more processes for each text
        body = pypandoc.convert_text(md, "html5", format=FROM, extra_args=options, verify_format=False)
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_text(body, encoding="utf-8")
    return kept.read_text(encoding="utf-8")

HEAD = re.compile(r'<h([2-4])\s+id="([^"]+)"([^>]*)>(.*?)</h\1>', re.S)
HIDDEN = re.compile(r"<math.*?</math>|<script.*?</script>|<details.*?</details>|<a [^>]*class=\"source\".*?</a>"
                    r"|<pre class=\"out\">.*?</pre>", re.S)
INLINE = re.compile(r"</?(?:span|a|code|em|strong|b|i)\b[^>]*>")
def words(s:str) -> str:
    "The text of a piece of page, without formulas, code to fold out and links to sources."
    visible = INLINE.sub("", HIDDEN.sub(" ", s))
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", visible))).strip()

LONG_CELL = 28 # characters: a table with longer cells cannot be read in columns on a telephone

def boxed_table(table:str) -> str:
    "In a box within which it scrolls; one of sentences becomes cards on a telephone, each cell with its column's name."
    heads = [words(head) for head in re.findall(r"<th\b[^>]*>(.*?)</th>", table, re.S)]
    rows = [re.findall(r"<td\b[^>]*>(.*?)</td>", row, re.S) for row in re.findall(r"<tr\b.*?</tr>", table, re.S)]
    longest = max((len(words(cell)) for row in rows for cell in row), default=0)
    is_regular = all(len(row) in (0, len(heads)) for row in rows)
    if longest <= LONG_CELL or not is_regular: return f'<div class="scroll">{table}</div>'
    def labelled(row):
        labels = iter(heads)
        return re.sub(r"<td\b", lambda m: f'<td data-label="{html.escape(next(labels))}"', row[0])
    table = re.sub(r"<tr\b.*?</tr>", labelled, table, flags=re.S)
    return f'<div class="scroll cards">{table}</div>'

def finished(body:str) -> str:
    "Tables are boxed, headings can be linked to, ids are unique, outward links say so, only sources have line numbers."
    if "numberSource" not in body: body = re.sub(r'<span id="cb\d+-\d+"><a [^>]*></a>', "<span>", body)
    body = re.sub(r'<(h[2-4]) class="([^"]*)" id="([^"]*)"', r'<\1 id="\3" class="\2"', body)
    body = re.sub(r"<table\b.*?</table>", lambda m: boxed_table(m[0]), body, flags=re.S)
    seen = set()
    def once(m):
        n, name = 1, m[2]
        while name in seen:
            name = f"{m[2]}-s{n}"
            n += 1
        seen.add(name)
        here = f'<a class="here" href="#{name}" aria-label="link to this section">#</a>'
        return f'<h{m[1]} id="{name}"{m[3]}>{m[4]}{here}</h{m[1]}>'
    symbols = {m[2] for m in HEAD.finditer(body) if "symbol" in m[3]}
    symbols |= set(re.findall(r'<span id="([^"]+)"></span>', body))
    def apart(m):
        if "symbol" in m[3] or m[2] not in symbols: return m[0]
        return m[0].replace(f'id="{m[2]}"', f'id="{m[2]}-section"', 1)
    body = HEAD.sub(once, HEAD.sub(apart, body))
    return re.sub(r'<a\s+href="https?://', lambda m: m[0].replace("<a", '<a rel="noopener external"', 1), body)

def toc_of(body:str) -> str:
    items = []
    for m in HEAD.finditer(body):
        if m[1] not in "23": continue
        title = html.escape(words(m[4]).removesuffix("#").strip())
        kind = f"l{m[1]} sym" if "symbol" in m[3] else f"l{m[1]}"
        items.append(f'<li class="{kind}"><a href="#{m[2]}">{title}</a></li>')
    content = f"<h2>On this page</h2><ul>{''.join(items)}</ul>" if items else ""
    return f'<nav class="toc" aria-label="On this page">{content}</nav>'

def sections_of(url:str, title:str, says:str, body:str) -> list[list[str]]:
    "What the search looks through: one entry per heading, [page, title, anchor, heading, text]."
    example = r'<div class="sourceCode".*?</div>'
    signature = r'(class="symbol">(?:(?!</h3>).)*</h3>\s*' + example + ")"
    body = re.sub(f"{signature}|{example}", lambda m: m[1] or " ", body, flags=re.S) # signatures, but no examples
    heads = list(HEAD.finditer(body))
    ends = [m.start() for m in heads[1:]] + [len(body)]
    top = body[:heads[0].start()] if heads else body
    sections = [[url, title, "", "", f"{says} {words(top)}"]]
    for m, end in zip(heads, ends):
        sections.append([url, title, m[2], words(m[4]).removesuffix("#").strip(), words(body[m.end():end])])
    return sections

def navigation(groups:dict, pages:dict, titles:dict, current:str, up:str, report:str=None, *,
               nbs:Path=root/"nbs") -> str:
    "The sidebar: the title of a room opens its start page; a closed group is open where it holds the current page."
    closed = {title for title, is_closed, _ in GROUPS if is_closed}
    def link(url, title):
        here = " aria-current=page" if url == current else ""
        return f'<a href="{up}{url}"{here}>{html.escape(title)}</a>'
    def group(title, members):
        start, others = start_page(members, nbs)
        links = [link(pages[p], titles[p]) for p in others]
        if report and title.startswith("Experiments"): links.insert(0, link(report, "report of the study"))
        items = "<ul>" + "".join(f"<li>{x}</li>" for x in links) + "</ul>"
        if title not in closed: return f"<h2>{html.escape(title)}</h2>{items}"
        head = f"<span>{html.escape(title)}</span>" if start is None else link(pages[start], title)
        is_open = " open" if current in [pages[p] for p in members] else ""
        return f"<details{is_open}><summary><h2>{head}</h2></summary>{items}</details>"
    return "".join(group(title, members) for title, members in groups.items() if members)

def write_report(out:Path, results:Path) -> str:
    "The study's report from its stored results; its address."
    from gslrm_mouse.experiments.report import report_from
    report_from(results, out/"reports/study", command="gslrm_mouse study --from-results nbs/results")
    return "reports/study/index.html"

def turn_link(pages_made:list, k:int, kind:str, word:str, up:str) -> str:
    if not 0 <= k < len(pages_made): return "<span></span>"
    title = html.escape(pages_made[k].title)
    return f'<a class="{kind}" href="{up}{pages_made[k].url}"><small>{word}</small>{title}</a>'

def widget_scripts(page:Page) -> str:
    if not page.widgets: return ""
    state = json.dumps(page.state).replace("</", "<\\/")
    manager = f'<script src="{page.up}html-manager.js" data-jupyter-widgets-cdn="./"></script>'
    return f'<script type="{STATE}">{state}</script>{manager}'

def places_of(page:Page, nbs:Path, report:str|None) -> str:
    "Links to the notebook, its module and, on the start page, the report."
    notebook = f"{page.repo}/nbs/{page.path.relative_to(nbs).as_posix()}"
    links = [f'<a href="{notebook}" rel="noopener external">notebook</a>']
    if page.module:
        source = f"{page.up}source/{page.module}.html"
        links.append(f'<a href="{source}">module <code>gslrm_mouse.{page.module}</code></a>')
    if report and page.url == "index.html": links.append(f'<a href="{report}">report of the study</a>')
    return " · ".join(links)

def purpose_of(page:Page, cache:Path) -> str:
    if not page.says: return ""
    paragraph = html_of(page.links(page.says), cache).strip()
    return re.sub(r"^<p>", '<p class="says">', paragraph)

def copy_assets(out:Path, nbs:Path, with_widgets:bool):
    for name in ("style.css", "site.js", "vendor/stix-two-math.woff", "vendor/LICENSE.txt"):
        shutil.copy(here/name, out/Path(name).name)
    if with_widgets:
        packed = (here/"vendor/html-manager-1.0.15.js.gz").read_bytes()
        (out/"html-manager.js").write_bytes(gzip.decompress(packed))
    if (nbs/"images").is_dir(): shutil.copytree(nbs/"images", out/"images")

def numbered_source(module:str) -> str: # markdown
    source = code(module_file(module).read_text(encoding="utf-8"))
    return source.replace("``````python", "``````{.python .numberLines #src}", 1)

def build(out:Path, nbs:Path=root/"nbs", cache:Path=root/"build/pandoc") -> dict:
    "The whole site into `out`; returns how much of what."
    groups = grouped(nbs)
    order = [p for members in groups.values() for p in members]
    pages = {form: page_of(p, nbs) for p in order for form in (p.resolve(), p)}
    if out.exists() and not (out/"search.js").exists() and any(out.iterdir()):
        raise ValueError(f"{out}: should be empty or a site built before, found other files")
    shutil.rmtree(out, ignore_errors=True)
    (out/"source").mkdir(parents=True)
    (out/"search.js").touch() # a build that stops half-way leaves a folder that the next one may replace
    report = write_report(out, nbs/"results")
    made = [Page(p, nbs, out, pages) for p in order]
    titles = {page.path: page.title for page in made}
    frame = Template((here/"page.html").read_text(encoding="utf-8"))

    sources = {page.module: numbered_source(page.module) for page in made if page.module}
    by_path = {page.path.resolve(): page for page in made}
    texts = [page.links(page.whole(by_path)) for page in made] + list(sources.values())
    with ThreadPoolExecutor(os.cpu_count()) as pool: bodies = list(pool.map(lambda md: html_of(md, cache), texts))

    search = []
    for i, page in enumerate(made):
        body = finished(bodies[i])
        search += sections_of(page.url, page.title, page.says, body)
        whole = frame.substitute(
            title=html.escape(page.title),
            says=purpose_of(page, cache),
            description=html.escape(plain(page.says)),
            body=body,
            up=page.up,
            toc=toc_of(body),
            turn=turn_link(made, i - 1, "prev", "before", page.up) + turn_link(made, i + 1, "next", "next", page.up),
            nav=navigation(groups, pages, titles, page.url, page.up, report, nbs=nbs),
            where=places_of(page, nbs, report),
            tail=widget_scripts(page))
        (out/page.url).parent.mkdir(parents=True, exist_ok=True)
        (out/page.url).write_text(whole, encoding="utf-8")

    page_of_module = {page.module: page for page in made if page.module}
    for module, body in zip(sources, bodies[len(made):]):
        page = page_of_module[module]
        link = f'<a href="../{page.url}">{html.escape(page.title)}</a>'
        whole = frame.substitute(
            title=f"{module}.py",
            says=f'<p class="says">Made from the notebook {link}, which explains it.</p>',
            description=f"Source of gslrm_mouse.{module}",
            body=body,
            up="../",
            nav=navigation(groups, pages, titles, "", "../", report, nbs=nbs),
            toc="", turn="", tail="", where="")
        (out/f"source/{module}.html").write_text(whole, encoding="utf-8")

    viewers = {name for page in made for name in page.viewers}
    write_viewers(viewers, viewer_makers(), out)
    copy_assets(out, nbs, any(page.widgets for page in made))
    index = json.dumps(search, ensure_ascii=False).replace("</", "<\\/")
    (out/"search.js").write_text("window.SEARCH = " + index, encoding="utf-8")
    return dict(pages=len(made), sources=len(sources), pictures=sum(page.pictures for page in made),
                widgets=sum(page.widgets for page in made), viewers=len(viewers), sections=len(search))

def main(args:list[str]):
    "The command line; ValueError says in a sentence what is wrong."
    start = time.time()
    out = Path(args[-1] if args else "_docs").resolve()
    if args[:1] == ["--quarto"]:
        return for_quarto(root/"nbs", out)
    counts = ", ".join(f"{n} {kind}" for kind, n in build(out).items())
    print(f"{counts}, in {time.time() - start:.0f} s: {out/'index.html'}")

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
