"""The documentation where Quarto is missing: the notebooks as nbdev processes them, through pandoc, into one folder that needs no network.

    python tools/docs/build.py [OUT]        the site, `_docs` when OUT is left out
    python tools/docs/build.py --quarto TO  where Quarto is there: a copy of the notebooks for `nbdev_docs --path TO`, with what nbdev would lose or stumble over put right"""
import ast, base64, gzip, hashlib, html, importlib, inspect, json, os, re, shutil, sys, time
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path, PurePosixPath
from string import Template

root, here = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
os.chdir(root)
sys.path.insert(0, str(root))                                 # nbdev looks for settings.ini from where it stands

# In the order in which they are read: notebooks by the number in their name, pages by name, what a folder holds beyond those named by "folder/".
GROUPS = (("Start", ("index", "pages/glossary", "pages/limits")), ("Tutorials", ("tutorials/bring_your_own_rig", "tutorials/why_did_it_go_white", "tutorials/lora", "tutorials/released_checkpoint", "tutorials/")), ("Cameras", ("00", "01", "02")), ("Pictures", ("05", "06")), ("Gaussians and rendering", ("03", "04")),
          ("Recipes and the exact camera", ("07", "08")), ("Model and training", ("09", "10", "pages/model_cards", "11", "12", "13")), ("Failure and doctor", ("15", "16")), ("Study", ("14", "17", "18")),
          ("Reference", ("pages/conventions", "pages/api", "pages/contributing", "pages/changelog")))
WIDGET, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
FROM = "commonmark_x-smart"                                                   # what Jupyter renders, with attributes and maths

def grouped(nbs:Path) -> dict[str, list[Path]]:
    "Notebooks of `nbs` by group, in reading order; ValueError for one that belongs to none."
    paths = {p.relative_to(nbs).with_suffix("").as_posix(): p for p in sorted(nbs.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts}
    belongs = lambda name, key: name == key or key.endswith("/") and name.startswith(key) or key.isdigit() and re.match(rf"{key}[a-z]?_", name)
    groups = {title: list(dict.fromkeys(p for key in keys for name, p in paths.items() if belongs(name, key))) for title, keys in GROUPS}
    lost = set(paths.values()) - {p for ps in groups.values() for p in ps}
    if lost: raise ValueError(f"{', '.join(sorted(str(p) for p in lost))}: in no group of the sidebar; GROUPS in tools/docs/build.py knows notebooks by their number")
    return groups

def sidebar(nbs:Path) -> str:
    "The same groups for Quarto."
    import yaml
    contents = [dict(section=title, contents=[p.relative_to(nbs).as_posix() for p in paths]) for title, paths in grouped(nbs).items()]
    return yaml.safe_dump(dict(website=dict(sidebar=dict(contents=contents))), sort_keys=False, allow_unicode=True)

def page_of(path:Path, nbs:Path) -> str:
    "nbs/01a_lens.ipynb → lens.html, as nbdev names it."
    from nbdev.doclinks import _nbpath2html
    return PurePosixPath(_nbpath2html(path.relative_to(nbs))).as_posix()


# --- what stands where ---------------------------------------------------------------------------------------------------------------

def lines_of(module:Path) -> dict[str, int]:
    "Where each name of a module is defined: functions, classes, their methods (patched ones too), constants."
    from nbdev.showdoc import showdoc_nm
    found = {}
    for n in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): found[showdoc_nm(n)] = n.lineno
        if isinstance(n, ast.ClassDef): found |= {f"{n.name}.{m.name}": m.lineno for m in n.body if isinstance(m, ast.FunctionDef)}
        if isinstance(n, (ast.Assign, ast.AnnAssign)):
            for t in n.targets if isinstance(n, ast.Assign) else [n.target]: found |= {x.id: n.lineno for x in ast.walk(t) if isinstance(x, ast.Name)}
    return found

def raises_of(module:Path) -> dict[str, list[tuple[str, str]]]:
    "What each function of a module raises itself: the error and its sentence, with … for what is filled in."
    from nbdev.showdoc import showdoc_nm
    def sentence(call):
        if not isinstance(call, ast.Call) or not call.args: return ""
        parts = [x for x in ast.walk(call.args[0]) if isinstance(x, (ast.Constant, ast.JoinedStr))]
        if not parts: return ""
        values = parts[0].values if isinstance(parts[0], ast.JoinedStr) else [parts[0]]
        return re.sub(r"\s+", " ", "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in values)).strip().replace("`", "").replace("*", r"\*").replace("_", r"\_").replace("$", r"\$").replace("<", r"\<").replace("[", r"\[")
    def found(n): return list(dict.fromkeys((ast.unparse(r.exc.func if isinstance(r.exc, ast.Call) else r.exc), sentence(r.exc)) for r in ast.walk(n) if isinstance(r, ast.Raise) and r.exc and isinstance(r.exc, (ast.Call, ast.Name))))
    defs = [n for n in ast.parse(module.read_text(encoding="utf-8")).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return {showdoc_nm(n): [(k, s) for k, s in found(n) if re.fullmatch(r"[A-Z]\w*", k)] for n in defs}

def constants_of(source:str) -> list[str]:
    "Public names which a cell assigns at its top level."
    return [x.id for n in ast.parse(source).body if isinstance(n, ast.Assign) for t in n.targets for x in ast.walk(t) if isinstance(x, ast.Name) and not x.id.startswith("_")]


def opened(raw:dict) -> dict:
    "The notebook with a first cell of title and `>` line only: nbdev throws away whatever else stands in it."
    first = raw["cells"][0]
    said = text(first["source"])
    if first["cell_type"] == "markdown" and (m := re.match(r"\s*#\s.*\n(?:\s*>.*(?:\n|\Z))*", said + "\n")) and (rest := said[m.end():].strip()):
        raw["cells"][:1] = [first | dict(source=m[0].strip()), dict(cell_type="markdown", id=first.get("id", "0")[:6] + "-t", metadata={}, source=rest)]
    return raw

def for_quarto(nbs:Path, to:Path):
    "A copy of `nbs` which `nbdev_docs --path` can build: opening texts kept, alternative texts written out, pages in groups."
    import tempfile
    if to.exists(): shutil.rmtree(to)
    shutil.copytree(nbs, to, ignore=shutil.ignore_patterns(".*"))
    groups = grouped(nbs)
    pages = {p: page_of(p, nbs) for ps in groups.values() for p in ps} | {p.resolve(): page_of(p, nbs) for ps in groups.values() for p in ps}
    for p in (p for ps in groups.values() for p in ps):
        with tempfile.TemporaryDirectory() as tmp: alts = Page(p, nbs, Path(tmp), pages).alts
        raw = opened(json.loads(p.read_text(encoding="utf-8")))
        for c in raw["cells"]:
            if c.get("id") in alts and not re.search(r"^#\| *fig-(alt|cap)", text(c["source"]), re.M): c["source"] = f"#| fig-alt: {json.dumps(alts[c['id']], ensure_ascii=False)}\n" + text(c["source"])
        (to/p.relative_to(nbs)).write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    (to/"sidebar.yml").write_text(sidebar(nbs), encoding="utf-8")
    os.utime(to/"index.ipynb", (0, 0))     # so that nbdev does not make another README from it
    shutil.rmtree(root/"_proc", ignore_errors=True)


# --- nbdev's processing, but for one thing: a documented symbol is looked up in the package instead of running the notebook again -------

def processed(path:Path):
    "The notebook as nbdev hands it to Quarto, with its exported code kept (`cell.fold_`) and its `show_doc` cells answered (`cell.symbol_`)."
    from execnb.nbio import dict2nb
    from nbdev.process import NBProcessor
    from nbdev.processors import FilterDefaults, Processor, _default_exp, _is_showdoc, rm_export, exec_show_docs, insert_warning, clean_show_doc, add_fold, mv_exports
    from nbdev.showdoc import show_doc
    raw = json.loads(path.read_text(encoding="utf-8"))
    widgets = raw["metadata"].pop("widgets", {}).get(STATE)     # a stored link has a `source` which nbdev takes for a cell's
    nb = dict2nb(opened(raw))
    nb.path_ = str(path)
    module = _default_exp(nb)

    class answer(Processor):
        def cell(self, cell):
            if not (module and cell.cell_type == "code" and _is_showdoc(cell)): return
            cell.symbol_ = cell.source.strip()[len("show_doc("):-1]
            cell.source, cell.cell_type = show_doc(attrgetter(cell.symbol_)(importlib.import_module(f"gslrm_mouse.{module}")))._repr_markdown_(), "markdown"

    def fold(cell):
        if {"hide", "default_exp"} & cell.directives_.keys(): del cell["source"]
        elif {"export", "exports", "exporti"} & cell.directives_.keys():
            if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(cell.source).body): del cell["source"]
            else: cell.fold_ = True

    fresh = any("exec_doc" in c.source for c in nb.cells if c.cell_type == "code")
    swap = {rm_export: fold, insert_warning: None, clean_show_doc: None, add_fold: None, mv_exports: None, exec_show_docs: exec_show_docs if fresh else answer}
    procs = [q for p in FilterDefaults().base_procs() if (q := swap.get(p, p)) is not None]
    if fresh: nb.has_docs_ = True
    NBProcessor(nb=nb, procs=procs).process()
    return nb, module, widgets


# --- one page ------------------------------------------------------------------------------------------------------------------------

def plain(md:str) -> str:
    "Markdown as a reader hears it: no links, marks, code fences or tables; formulas in words as far as they have any."
    md = re.sub(r"```.*?```|\$\$.*?\$\$|^\s*\|.*$|^\s*#.*$|<[^>]+>", " ", md, flags=re.S | re.M)
    md = re.sub(r"!?\[([^\]]*)\]\([^)]*\)(\{[^}]*\})?", r"\1", md)
    md = re.sub(r"\$([^$]*)\$", lambda m: m[1].replace("\\", "").replace("{", "").replace("}", ""), md)
    return re.sub(r"\s+", " ", re.sub(r"[*`>]|^\s*[-\d]+[.)]?\s", "", md, flags=re.M)).strip()

def last_sentence(md:str) -> str:
    "What the text says just before a picture."
    said = [s.strip(" :;") for s in re.split(r"(?<=[.!?:])\s+(?=[A-Z0-9\"(])", plain(md)) if len(s.strip(" :;.")) > 15]
    return said[-1] if said else ""

def labels_of(source:str) -> str:
    "What a cell draws, and the titles, axes and curves it writes into its picture, as far as they stand there word by word."
    part = lambda pattern, name: f"{name} {', '.join(dict.fromkeys(found))}" if (found := [m[1] for m in re.finditer(rf"""(?:{pattern})\(?["']([^"'{{}}]{{2,}})["']""", source)]) else ""
    kinds = [k for word, k in (("imshow|show_views|show_choice", "pictures"), (r"\.plot\(|plot_pull|semilogx|errorbar", "curves"), ("draw_cameras|3d", "cameras and points in space"), (r"\.bar", "bars"), ("scatter", "points")) if re.search(word, source)]
    panels = f", {m[1]} × {m[2]} panels" if (m := re.search(r"subplots\((\d+), (\d+)", source)) else ""
    return "; ".join(filter(None, (" and ".join(kinds or ["drawing"]) + panels, part("title", "titled"), part("xlabel", "across:"), part("ylabel", "up:"), part(r"\blabel=", "curves:"))))

def alt_of(cell, heading:str, said:str, near:bool) -> str:
    "A picture's alternative text: `fig-alt` or `fig-cap` of its cell; else the section, the last sentence said right before it, and what is written into it."
    for key in ("fig-alt:", "fig-cap:"):
        if key in cell.directives_: return " ".join(cell.directives_[key]).strip("\"'")
    labels = labels_of(cell.source)
    return re.sub(r"([.?!])\.", r"\1", ". ".join(filter(None, (heading, said if near or ";" not in labels else "", labels[0].upper() + labels[1:]))) + ".")

def raw(s:str) -> str: return f"\n\n``````{{=html}}\n{s}\n``````\n\n"
def code(s:str) -> str: return f"\n\n``````python\n{s.strip()}\n``````\n\n"
def text(x) -> str: return x if isinstance(x, str) else "".join(x)

def documented(name:str, obj) -> bool: return not name.split(".")[-1].startswith("__") or bool((getattr(obj, "__doc__", None) or "").strip())

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
        self.lines = lines_of(root/f"gslrm_mouse/{self.module}.py") if self.module else {}
        self.raises = raises_of(root/f"gslrm_mouse/{self.module}.py") if self.module else {}
        self.heading, self.said, self.near = self.title, "", False
        self.pictures, self.alts = 0, {}
        self.widgets = False
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
        d = {k: v[0] if v else "" for k, v in cell.directives_.items()}
        source = "\n".join(x for x in cell.source.splitlines() if not re.match(r"#\|", x)).strip()
        shown = "" if d.get("echo:") == "false" or not source else code(source)
        if d.get("output:") == "false" or d.get("include:") == "false": return before + (shown if d.get("include:") != "false" else "")
        return before + shown + "".join(self.output(cell, o, near) for o in cell.get("outputs", []))

    def flush(self) -> str:
        "The symbols of the last exported cell in the order of their source, then its code."
        said = "".join(self.symbol(c) for c in sorted(self.symbols, key=lambda c: self.lines[c.symbol_])) + self.held
        self.held, self.symbols = "", []
        return said

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
        if isinstance(obj, type): md = re.sub(r"^def (.*?)\)->None:$", r"class \1)", re.sub(r"```python\ndef ", "```python\ndef ", md), count=1, flags=re.S | re.M)
        if isinstance(obj, property): md = re.sub(r"```python\ndef (\w+)\(\)", r"```python\n@property\ndef \1(self)", md)
        md = re.sub(r"^\*(.*?)\*$", r"\1" if getattr(obj, "__doc__", None) else "", md, flags=re.S | re.M)
        raised = "".join(f"* `{kind}`" + (f": “{said}”" if said else "") + "\n" for kind, said in self.raises.get(name, ()))
        return f"\n\n### `{name}` [source]({self.source_link(name)}){{.source}} {{#{self.anchor(name)} .symbol}}\n\n{md.strip()}\n\n" + (f"::: {{.raises}}\nRaises\n\n{raised}:::\n\n" if raised else "")

    def folded(self, source:str) -> str:
        "Exported code, closed; constants and private names, which have no signature, are found there by their names."
        private = [n.name for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name.startswith("_") and n.name in self.lines]
        ids = "".join(f'<span id="{self.anchor(n)}"></span>' for n in private + [n for n in constants_of(source) if n in self.lines])
        names = ", ".join(f"<code>{html.escape(n)}</code>" for n in constants_of(source) if n in self.lines)
        return raw(f'{ids}<details class="src"><summary>code{": " + names if names else ""}</summary>') + code(source) + raw("</details>")

    def output(self, cell, o, near:bool) -> str:
        if o["output_type"] == "error": raise ValueError(f"{self.path}: a cell stores an error, {o['ename']}: {o['evalue']}")
        if o["output_type"] == "stream": return raw(f'<pre class="out">{html.escape(text(o["text"]).rstrip())}</pre>')
        data = o.get("data", {})
        for mime, suffix in (("image/png", "png"), ("image/jpeg", "jpg")):
            if mime in data:
                alt = self.alts[cell.get("id")] = alt_of(cell, self.heading, self.said, near)
                return self.picture(base64.b64decode(text(data[mime])), suffix, alt)
        if WIDGET in data: return self.widget(data[WIDGET])
        if "text/markdown" in data: return "\n\n" + text(data["text/markdown"]) + "\n\n"
        if "text/html" in data: return raw(text(data["text/html"]))
        if re.fullmatch(r"<.* at 0x[0-9a-f]+>", text(data.get("text/plain", "")).strip()): return ""
        if "text/plain" in data: return raw(f'<pre class="out">{html.escape(text(data["text/plain"]))}</pre>')
        raise ValueError(f"{self.path}: an output of the kinds {', '.join(data)} has no place in the documentation")

    def picture(self, data:bytes, suffix:str, alt:str) -> str:
        import io
        from PIL import Image
        self.pictures += 1
        name = f"{self.url.removesuffix('.html')}_files/{self.pictures}.{suffix}"
        (self.out/name).parent.mkdir(parents=True, exist_ok=True)
        (self.out/name).write_bytes(data)
        w, h = Image.open(io.BytesIO(data)).size
        return raw(f'<figure><img src="{self.up}{name}" width="{w}" height="{h}" loading="lazy" alt="{html.escape(alt)}"></figure>')

    def widget(self, view:dict) -> str:
        if self.state is None or view["model_id"] not in self.state["state"]: raise ValueError(f"{self.path}: the state of its widget is not stored; run the notebook and save it with its widgets")
        self.widgets = True
        asks = any(s["model_name"] == "OutputModel" for s in self.state["state"].values())
        note = "<p class=\"note\">The controls move, but their picture is drawn by Python, and none runs behind this page: the figure above shows the point. Open the notebook to play.</p>" if asks else ""
        return raw(f'<div class="widget"><script type="{WIDGET}">{json.dumps(dict(view))}</script>{note}</div>')

    def links(self, md:str) -> str:
        "Links between notebooks and to nbdev's host become links between pages."
        def there(m):
            target = (self.path.parent/m[1]).resolve()
            if target not in self.pages: raise ValueError(f"{self.path}: links to {m[1]}, which is no notebook here")
            return f"]({self.up}{self.pages[target]}{m[2] or ''})"
        md = re.sub(r"\]\((?!https?:)([^)\s#]+\.ipynb)(#[^)\s]*)?\)", there, md)
        return md.replace(f"]({self.host}/", f"]({self.up}")


# --- pandoc, search, frame -------------------------------------------------------------------------------------------------------------

def html_of(md:str, cache:Path) -> str:
    "Through pandoc, or from what it said to the same text before."
    import pypandoc
    kept = cache/hashlib.sha256((FROM + md).encode()).hexdigest()
    if not kept.exists():
        body = pypandoc.convert_text(md, "html5", format=FROM, extra_args=["--mathml", "--wrap=none"])
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_text(body, encoding="utf-8")
    return kept.read_text(encoding="utf-8")

HEAD = re.compile(r'<h([2-4])\s+id="([^"]+)"([^>]*)>(.*?)</h\1>', re.S)
def words(s:str) -> str:
    "The text of a piece of page, without formulas, code to fold out and links to sources."
    s = re.sub(r"<math.*?</math>|<script.*?</script>|<details.*?</details>|<a [^>]*class=\"source\".*?</a>|<pre class=\"out\">.*?</pre>", " ", s, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"</?(?:span|a|code|em|strong|b|i)\b[^>]*>", "", s)))).strip()

def finished(body:str) -> str:
    "Wide tables scroll by themselves, headings can be linked to, ids are unique, links abroad say so, lines of code are numbered in sources only."
    if "numberSource" not in body: body = re.sub(r'<span id="cb\d+-\d+"><a [^>]*></a>', "<span>", body)
    body = re.sub(r'<(h[2-4]) class="([^"]*)" id="([^"]*)"', r'<\1 id="\3" class="\2"', body)
    body = re.sub(r"(<table\b.*?</table>)", r'<div class="scroll">\1</div>', body, flags=re.S)
    seen = set()
    def once(m):
        n, name = 1, m[2]
        while name in seen:
            name = f"{m[2]}-s{n}"
            n += 1
        seen.add(name)
        return f'<h{m[1]} id="{name}"{m[3]}>{m[4]}<a class="here" href="#{name}" aria-label="link to this section">#</a></h{m[1]}>'
    symbols = {m[2] for m in HEAD.finditer(body) if "symbol" in m[3]} | set(re.findall(r'<span id="([^"]+)"></span>', body))
    def apart(m): return m[0] if "symbol" in m[3] or m[2] not in symbols else m[0].replace(f'id="{m[2]}"', f'id="{m[2]}-section"', 1)
    body = HEAD.sub(once, HEAD.sub(apart, body))
    return re.sub(r'<a\s+href="https?://', lambda m: m[0].replace("<a", '<a rel="noopener external"', 1), body)

def toc_of(body:str) -> str:
    items = "".join(f'<li class="l{m[1]}{" sym" if "symbol" in m[3] else ""}"><a href="#{m[2]}">{html.escape(words(m[4]).removesuffix("#").strip())}</a></li>' for m in HEAD.finditer(body) if m[1] in "23")
    return f'<nav class="toc" aria-label="On this page"><h2>On this page</h2><ul>{items}</ul></nav>' if items else '<nav class="toc" aria-label="On this page"></nav>'

def sections_of(url:str, title:str, says:str, body:str) -> list[list[str]]:
    "What the search looks through: one entry per heading, [page, title, anchor, heading, text]."
    example = r'<div class="sourceCode".*?</div>'
    body = re.sub(r'(class="symbol">(?:(?!</h3>).)*</h3>\s*' + example + ")|" + example, lambda m: m[1] or " ", body, flags=re.S)     # signatures are looked through, examples are not
    heads = list(HEAD.finditer(body))
    ends = [m.start() for m in heads[1:]] + [len(body)]
    top = body[:heads[0].start()] if heads else body
    return [[url, title, "", "", f"{says} {words(top)}"]] + [[url, title, m[2], words(m[4]).removesuffix("#").strip(), words(body[m.end():e])] for m, e in zip(heads, ends)]

def navigation(groups:dict, pages:dict, titles:dict, current:str, up:str, report:str=None) -> str:
    link = lambda url, title: f'<li><a href="{up}{url}"{" aria-current=page" if url == current else ""}>{html.escape(title)}</a></li>'
    part = lambda t, ps: f"<h2>{t}</h2><ul>" + "".join(link(pages[p], titles[p]) for p in ps) + (link(report, "report") if report and t == "Study" else "") + "</ul>"
    return "".join(part(t, ps) for t, ps in groups.items() if ps)

def report_of(study, out:Path, results:Path) -> str|None:
    "The study's report from its stored results, beside the pages; its address, None where `study` cannot write one from them."
    if "from_results" not in inspect.signature(study).parameters: return None
    study(out=out/"reports/study", from_results=results)
    return "reports/study/index.html"

def build(out:Path, nbs:Path=root/"nbs", cache:Path=root/"_proc/pandoc") -> dict:
    "The whole site into `out`; returns how much of what."
    groups = grouped(nbs)
    order = [p for ps in groups.values() for p in ps]
    pages = {p.resolve(): page_of(p, nbs) for p in order} | {p: page_of(p, nbs) for p in order}
    if out.exists() and not (out/"search.js").exists() and any(out.iterdir()): raise ValueError(f"{out}: should be empty or a site built before, found other files")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    from gslrm_mouse.cli import study
    report = report_of(study, out, nbs/"results")
    made = [Page(p, nbs, out, pages) for p in order]
    titles = {p.path: p.title for p in made}
    frame = Template((here/"page.html").read_text(encoding="utf-8"))
    search = []
    sources = {m: code((root/f"gslrm_mouse/{m}.py").read_text(encoding="utf-8")).replace("``````python", "``````{.python .numberLines #src}", 1) for m in (p.module for p in made) if m}
    with ThreadPoolExecutor(os.cpu_count()) as pool: bodies = list(pool.map(lambda md: html_of(md, cache), [p.links(p.md) for p in made] + list(sources.values())))
    for i, (p, body) in enumerate(zip(made, bodies)):
        body = finished(body)
        search += sections_of(p.url, p.title, p.says, body)
        turn = lambda k, cls, word: f'<a class="{cls}" href="{p.up}{made[k].url}"><small>{word}</small>{html.escape(made[k].title)}</a>' if 0 <= k < len(made) else "<span></span>"
        tail = f'<script type="{STATE}">{json.dumps(p.state).replace("</", "<" + chr(92) + "/")}</script><script src="{p.up}html-manager.js" data-jupyter-widgets-cdn="./"></script>' if p.widgets else ""
        where = f'<a href="{p.repo}/nbs/{p.path.relative_to(nbs).as_posix()}" rel="noopener external">notebook</a>' + (f' · <a href="{p.up}source/{p.module}.html">module <code>gslrm_mouse.{p.module}</code></a>' if p.module else "") + (f' · <a href="{report}">report of the study</a>' if report and p.url == "index.html" else "")
        whole = frame.substitute(title=html.escape(p.title), says=f'<p class="says">{html_of(p.links(p.says), cache)}</p>'.replace("<p class=\"says\"><p>", '<p class="says">').replace("</p>\n</p>", "</p>") if p.says else "", body=body, up=p.up, toc=toc_of(body), turn=turn(i - 1, "prev", "before") + turn(i + 1, "next", "next"),
                                 nav=navigation(groups, pages, titles, p.url, p.up, report), tail=tail, where=where, description=html.escape(plain(p.says)))
        (out/p.url).parent.mkdir(parents=True, exist_ok=True)
        (out/p.url).write_text(whole, encoding="utf-8")
    for (m, _), body in zip(sources.items(), bodies[len(made):]):
        page = next(p for p in made if p.module == m)
        (out/"source").mkdir(exist_ok=True)
        (out/f"source/{m}.html").write_text(frame.substitute(title=f"{m}.py", says=f'<p class="says">Made from the notebook <a href="../{page.url}">{page.title}</a>, which explains it.</p>', body=body, up="../", toc="", turn="", tail="", where="", description=f"Source of gslrm_mouse.{m}",
                                                            nav=navigation(groups, pages, titles, "", "../", report)), encoding="utf-8")
    for name in ("style.css", "site.js", "vendor/stix-two-math.woff", "vendor/LICENSE.txt"): shutil.copy(here/name, out/Path(name).name)
    if any(p.widgets for p in made): (out/"html-manager.js").write_bytes(gzip.decompress((here/"vendor/html-manager-1.0.15.js.gz").read_bytes()))
    if (nbs/"images").is_dir(): shutil.copytree(nbs/"images", out/"images")
    (out/"search.js").write_text("window.SEARCH = " + json.dumps(search, ensure_ascii=False).replace("</", "<\\/"), encoding="utf-8")
    return dict(pages=len(made), sources=len(sources), pictures=sum(p.pictures for p in made), widgets=sum(p.widgets for p in made), sections=len(search))

if __name__ == "__main__":
    start = time.time()
    out = Path(sys.argv[-1] if sys.argv[1:] else "_docs").resolve()
    try:
        if sys.argv[1:2] == ["--quarto"]:
            for_quarto(root/"nbs", out)
            sys.exit()
        said = build(out)
    except ValueError as e: sys.exit(str(e))
    print(", ".join(f"{n} {k}" for k, n in said.items()) + f", in {time.time() - start:.0f} s: {out/'index.html'}")
