"""Are the outputs that a notebook stores those which it makes today?

    python tools/check_outputs.py [NAME…]     cameras/05_rays, tutorials/lora, …; all notebooks when none is named
    python tools/check_outputs.py --times     and how long each took; those over two minutes are called slow

Compared in structure, not in noise: kinds of outputs and of their data, and text with its numbers masked.
Cells marked `#| cuda`, `#| slow` or `#| notest` are not run and not compared, nor those marked `#| exec_doc`, which are
run when pages are made. Exit 1 and name the cells that differ."""
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
    "Text without numbers, temporary folders, hashes, colours of a terminal, and the spaces that align columns."
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
            data = o.get("data", {})
            is_picture = any(mime.startswith(("image/", "application/")) for mime in data)
            text = data.get("text/markdown", "" if is_picture else data.get("text/plain", ""))
            found.append((o.output_type, tuple(sorted(data)), text if isinstance(text, str) else "".join(text)))
    return [(kind, mimes, masked(text)) for kind, mimes, text in found]

def listed(outputs:list) -> str:
    names = [f"{kind} of {' and '.join(mimes)}" if mimes else kind for kind, mimes, _ in outputs]
    return ", ".join(names) or "nothing"

def difference(was:list, now:list) -> str:
    "One sentence on how the outputs of a cell differ; empty where they agree."
    if [x[:2] for x in was] != [x[:2] for x in now]:
        return f"stored {listed(was)}; made {listed(now)}"
    for (_, _, a), (_, _, b) in zip(was, now):
        if a != b:
            i = next(i for i, (x, y) in enumerate(zip(a + "\0", b + "\0")) if x != y)
            around = slice(max(0, i - 25), i + 45)
            return f"the text reads {b[around]!r} where {a[around]!r} is stored"
    return ""

def rerun(path:Path): # the notebook as it comes out today
    "The notebook executed anew, its skipped cells left alone."
    nb = nbformat.read(path, 4)
    kept = {}
    for c in nb.cells:
        if c.cell_type == "code" and SKIPPED.search(c.source):
            kept[c.id] = c.source
            c.source = "pass"
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(nb, timeout=600, kernel_name="python3", resources=resources).execute()
    return nb

def faults(path:Path) -> list[str]:
    "One sentence for every cell whose stored outputs are not what it makes."
    stored = nbformat.read(path, 4)
    cells = [c for c in stored.cells if c.cell_type == "code"]
    try: made = [c for c in rerun(path).cells if c.cell_type == "code"]
    except CellExecutionError as e: return [f"{path.relative_to(root)}: it stops with {e.ename}: {e.evalue}"]
    found = []
    for i, (old, new) in enumerate(zip(cells, made), 1):
        if SKIPPED.search(old.source): continue
        differs = difference(shape_of(old.outputs), shape_of(new.outputs))
        first_line = next((line for line in old.source.splitlines() if not line.startswith("#")), "")
        if differs: found.append(f"{path.relative_to(root)}, code cell {i} ({first_line[:60]}): {differs}")
    return found

def paths(names) -> list[Path]:
    "The notebooks of these names; ValueError for a name that none has."
    notebooks = [p for p in sorted((root/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    every = {p.relative_to(root/"nbs").with_suffix("").as_posix(): p for p in notebooks}
    names = [re.sub(r"^nbs/|\.ipynb$", "", n) for n in names]
    unknown = [name for name in names if name not in every]
    if unknown:
        nearest = ", ".join(difflib.get_close_matches(unknown[0], every, 3, 0))
        raise ValueError(f"there is no notebook {unknown[0]!r}; the nearest are {nearest}")
    return [every[n] for n in names or every]

if __name__ == "__main__":
    os.environ.update(TQDM_DISABLE="1", MPLBACKEND="module://matplotlib_inline.backend_inline")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
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
