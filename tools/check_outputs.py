"""Are the outputs that a notebook stores those which it makes today? Compared in structure, not in noise: kinds of outputs and of their data, and text with its numbers masked.

    python tools/check_outputs.py [NAME…]     00_cameras, tutorials/lora, …; all notebooks when none is named
    python tools/check_outputs.py --times     and how long each took; those over two minutes are called slow

Cells marked `#| cuda`, `#| slow` or `#| notest` are not run and not compared, nor those marked `#| exec_doc`, which are run when pages are made. Exit 1 and name the cells that differ."""
import difflib, os, re, sys, time
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

root = Path(__file__).resolve().parents[1]
SKIPPED = re.compile(r"^\s*#\|\s*(cuda|slow|notest|exec_doc|eval:\s*false)", re.M)
LONG = 120 # seconds
NUMBER = re.compile(r"(?<![A-Za-z_])[-+−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?%?|\b(?:nan|inf)\b")

def masked(text:str) -> str:
    "Text without its numbers, folders of the moment, hashes, colours of a terminal, and the spaces by which columns are aligned."
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]|(?:/[\w.-]+)*/tmp\w*(?:/[\w.-]+)?|0x[0-9a-f]+", "", text)
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,40}\b", "#", text)
    return re.sub(r"#(?:[\s,×]*#)*", "#", re.sub(r"\s+", " ", NUMBER.sub("#", text))).strip()

def shape_of(outputs:list) -> list[tuple]: # (kind, mimes, masked text)
    "What is compared of a cell's outputs; pieces of one stream are one, progress on stderr is none."
    found = []
    for o in outputs:
        if o.output_type == "stream":
            if o.name == "stderr": continue
            if found and found[-1][0] == "stream": found[-1] = ("stream", (), found[-1][2] + o.text)
            else: found.append(("stream", (), o.text))
        else:
            d = o.get("data", {})
            seen = d.get("text/markdown", "" if any(k.startswith(("image/", "application/")) for k in d) else d.get("text/plain", ""))
            found.append((o.output_type, tuple(sorted(d)), seen if isinstance(seen, str) else "".join(seen)))
    return [(k, m, masked(t)) for k, m, t in found]

def difference(was:list, now:list) -> str:
    "One sentence on how the outputs of a cell differ; empty where they agree."
    if [x[:2] for x in was] != [x[:2] for x in now]:
        said = lambda xs: ", ".join(f"{k}{' of ' + ' and '.join(m) if m else ''}" for k, m, _ in xs) or "nothing"
        return f"stored {said(was)}; made {said(now)}"
    for (_, _, a), (_, _, b) in zip(was, now):
        if a != b:
            i = next(i for i, (x, y) in enumerate(zip(a + "\0", b + "\0")) if x != y)
            cut = lambda t: repr(t[max(0, i - 25):i + 45])
            return f"the text reads {cut(b)} where {cut(a)} is stored"
    return ""

def rerun(path:Path): # the notebook as it comes out today
    "The notebook executed anew, its skipped cells left alone."
    nb = nbformat.read(path, 4)
    kept = {}
    for c in nb.cells:
        if c.cell_type == "code" and SKIPPED.search(c.source):
            kept[c.id] = c.source
            c.source = "pass"
    NotebookClient(nb, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    return nb

def faults(path:Path) -> list[str]:
    "One sentence for every cell whose stored outputs are not what it makes."
    stored = nbformat.read(path, 4)
    cells = [c for c in stored.cells if c.cell_type == "code"]
    try: made = [c for c in rerun(path).cells if c.cell_type == "code"]
    except CellExecutionError as e: return [f"{path.relative_to(root)}: it stops with {e.ename}: {e.evalue}"]
    found = [(i, a, difference(shape_of(a.outputs), shape_of(b.outputs))) for i, (a, b) in enumerate(zip(cells, made), 1) if not SKIPPED.search(a.source)]
    return [f"{path.relative_to(root)}, code cell {i} ({next((l for l in a.source.splitlines() if not l.startswith('#')), '')[:60]}): {d}" for i, a, d in found if d]

def paths(names) -> list[Path]:
    "The notebooks of these names; ValueError for a name that none has."
    every = {p.relative_to(root/"nbs").with_suffix("").as_posix(): p for p in sorted((root/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts}
    names = [re.sub(r"^nbs/|\.ipynb$", "", n) for n in names]
    if unknown := [n for n in names if n not in every]: raise ValueError(f"there is no notebook {unknown[0]!r}; the nearest are {', '.join(difflib.get_close_matches(unknown[0], every, 3, 0))}")
    return [every[n] for n in names or every]

if __name__ == "__main__":
    os.environ.update(TQDM_DISABLE="1", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"), MPLBACKEND="module://matplotlib_inline.backend_inline")
    wrong, times = [], "--times" in sys.argv
    try: todo = paths([a for a in sys.argv[1:] if not a.startswith("--")])
    except ValueError as e: sys.exit(str(e))
    for p in todo:
        start = time.time()
        found = faults(p)
        took = time.time() - start
        wrong += found
        if times: print(f"{took:6.0f} s  {p.relative_to(root/'nbs')}{'  slow' if took > LONG else ''}", flush=True)
        for f in found: print(f, flush=True)
    if wrong: sys.exit(f"{len(wrong)} cells store something else than they make; run their notebooks and save them")
    print(f"{len(todo)} notebooks store what they make")
