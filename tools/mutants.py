"""Plant bugs and see whether the tests notice them.

    python tools/mutants.py               all of them, one after the other (some hours)
    python tools/mutants.py hull video    those whose name contains one of the words
    python tools/mutants.py --list        names and changes; checks that every text occurs exactly once

Each mutant is one change of text in a copy of the package: in the notebook of a module, and in the module made of it.
Then the notebook is run as a test, and after it the test files that are named, as far as they pass without the bug. A
mutant that all of them let pass has survived: a test is missing. The exit status is the number of survivors.
"""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 900 # seconds for one notebook or test file; a test that hangs has noticed


@dataclass(frozen=True)
class Mutant:
    "A bug."
    notebook:str # below nbs
    old:str
    new:str
    tests:tuple = () # pytest arguments, tried after the notebook

    @property
    def name(self): return f"{self.notebook}: {self.old.strip()[:60]} → {self.new.strip()[:60]}"


GEOMETRY, VIEWS = "tests/cameras/test_geometry.py", "tests/views"
KEY_FRAMES = "tests/reconstruction/test_pipeline.py::test_no_more_is_decoded_than_from_the_key_frame_on"
MUTANTS = (
    # ---- survivors of an earlier campaign ----
    Mutant("views/04_hull", "return 1.25*torch.stack(extents)", "return 1.*torch.stack(extents)"),
    Mutant("views/04_hull", "return max(2, (n + 1)//2)", "return max(1, n//4)"),
    Mutant("04_video", "bisect_right(keys, last) == bisect_right(keys, wanted)",
           "bisect_right(keys, last) + 1 >= bisect_right(keys, wanted)", (KEY_FRAMES,)),
    Mutant("04_video", "container.seek(start, stream=stream)", "container.seek(start - 1, stream=stream)",
           (KEY_FRAMES,)),
    Mutant("04_video", "f.pts >= stamp)", "f.pts > stamp)"),
    Mutant("experiments/02_recipes", "else r[\"frame\"] for r in selected]", "else i for i, r in enumerate(selected)]"),
    # ---- statistics ----
    Mutant("02_stats", "t_quantile(n - 1)", "t_quantile(n)"),
    Mutant("02_stats", "values.std(ddof=1)", "values.std()"),
    Mutant("02_stats", "values[groups == unit].mean()", "values[groups == unit][0]"),
    Mutant("experiments/11_lora_placement", ".setdefault(r[\"scene\"], []).append(after - before)",
           ".setdefault((x[\"seed\"], r[\"scene\"]), []).append(after - before)"),
    Mutant("experiments/04_control", "[0 if one_animal else r[\"scene\"] for", "[(r[\"scene\"], r[\"seed\"]) for"),
    Mutant("05_metrics", "return -10*mse.clamp", "return -20*mse.clamp"),
    Mutant("05_metrics", "(rendered | true).sum((-2, -1))", "true.sum((-2, -1))"),
    Mutant("00_files", "os.replace(part, path)", "shutil.copy(part, path)"),
    # ---- cameras ----
    Mutant("cameras/00_rotations", "2*(x*z + w*y)", "2*(x*z - w*y)", (GEOMETRY,)),
    Mutant("cameras/01_pinhole", "return -(self.R.mT @ self.t", "return -(self.R @ self.t", (GEOMETRY,)),
    Mutant("cameras/01_pinhole", "f = width/2/math.tan(math.radians(fov)/2)", "f = width/math.tan(math.radians(fov)/2)",
           (GEOMETRY,)),
    Mutant("cameras/02_similarity", "self.scale*cams.t - R @ c", "cams.t - R @ c", (GEOMETRY,)),
    Mutant("cameras/02_similarity", "self.Q @ other.Q", "other.Q @ self.Q", (GEOMETRY,)),
    Mutant("cameras/04_lens", "p1*xy2 + p2*(r2 + 2*x*x)", "p2*xy2 + p1*(r2 + 2*x*x)", (GEOMETRY,)),
    Mutant("cameras/04_lens", "+ .5 - K[1, 2])/K[1, 1]", "- K[1, 2])/K[1, 1]", (GEOMETRY,)),
    Mutant("cameras/05_rays", "torch.arange(cams.width, dtype=dtype, device=K.device) + .5",
           "torch.arange(cams.width, dtype=dtype, device=K.device)", (GEOMETRY,)),
    Mutant("cameras/07_perturb", "K[..., 0, 2] += x*cams.width", "K[..., 0, 2] += x*cams.height", (GEOMETRY,)),
    # ---- calibration ----
    Mutant("calibration/02_json_frames", "_FLIP[:3, :3] @ c2w[:3, :3].T", "_FLIP[:3, :3] @ c2w[:3, :3]",
           ("tests/calibration",)),
    Mutant("calibration/03_opencv", "np.array([[1, 1, 1, 1000.]]*3", "np.array([[1, 1, 1, 100.]]*3",
           ("tests/calibration",)),
    Mutant("calibration/05_colmap", "[0, focal[-1], cy]", "[0, focal[0], cy]", ("tests/calibration",)),
    # ---- views ----
    Mutant("views/00_views", "return colour*alpha + 1 - alpha", "return colour + 1 - alpha", (VIEWS,)),
    Mutant("views/01_triangulation", ".double().mean(0) + .5", ".double().mean(0)", (VIEWS,)),
    Mutant("views/02_samples", "K[:, :2, 2] += .5 - torch.tensor", "K[:, :2, 2] -= .5 - torch.tensor", (VIEWS,)),
    Mutant("views/03_recordings", "wanted = [video + first for video in videos]", "wanted = sorted(numbers)", (VIEWS,)),
    Mutant("views/03_recordings", "return numbered + _rig_files(path)", "return numbered",
           ("tests/training/test_sources.py",)),
    Mutant("views/04_hull", "0 < len(centers) < most:", "0 < len(centers) < 0:", ("tests/preprocess/test_bound.py",)),
    Mutant("views/04_hull", "uv.amin(1).T - 1, uv.amax(1).T + 2", "uv.amin(1).T + 1, uv.amax(1).T",
           ("tests/preprocess/test_bound.py",)),
    Mutant("views/05_warp", "px, py = x + .5/n, y + (j + .5)/n", "px, py = x, y + (j + .5)/n", (VIEWS,)),
    # ---- Gaussians ----
    Mutant("gaussians/00_cloud", "-.4886025119029199*x", ".4886025119029199*x", ("tests/gaussians",)),
    Mutant("gaussians/02_ply", "log_scales = g.scales.clamp(min=1e-37).log()", "log_scales = g.scales.clamp(min=1e-37)",
           ("tests/gaussians",)),
    Mutant("gaussians/04_reference", "-fx*u/z, zero, fy/z", "fx*u/z, zero, fy/z", ("tests/gaussians",)),
    # ---- models ----
    Mutant("models/00_gslrm", "(2*s - 1)*DEPTH_WINDOW - (o*d).sum", "(2*s - 1)*DEPTH_WINDOW + (o*d).sum",
           ("tests/models",)),
    Mutant("models/03_lora", "lora_alpha=alpha", "lora_alpha=rank", ("tests/training/test_adapters.py",)),
    # ---- masks ----
    Mutant("masks/00_background", ").clip(.5, 2)", ").clip(1, 2)", ("tests/masks",)),
    Mutant("masks/01_confidence", "m[1:-1, 0].sum() + m[1:-1, -1].sum()", "m[1:-1, 0].sum()", ("tests/masks",)),
    # ---- preprocess ----
    Mutant("preprocess/00_silhouettes", "y, x = torch.arange(h) + .5, torch.arange(w) + .5",
           "y, x = torch.arange(h), torch.arange(w)", ("tests/preprocess/test_dataset.py",)),
    Mutant("preprocess/01_recipes", "H[:, :2, 2] = src - dst/s[:, None]", "H[:, :2, 2] = src - dst*s[:, None]",
           ("tests/preprocess/test_dataset.py",)),
    Mutant("preprocess/03_dataset", "return range(train), range(train, n - val), range(n - val, n)",
           "return range(train), range(train, n - val), range(n - val - 1, n)", ("tests/preprocess/test_dataset.py",)),
    Mutant("preprocess/04_certificate", "(pretended - z*true)", "(pretended - true)", (GEOMETRY,)),
    Mutant("preprocess/05_canonical", "z = distances/distances.mean()", "z = distances.mean()/distances",
           ("tests/preprocess/test_bound.py",)),
    # ---- scenes, training ----
    Mutant("scenes/00_tracer", "self.A @ Q.T/sim.scale", "self.A @ Q.T*sim.scale", ("tests/scenes",)),
    Mutant("scenes/02_dataset", "K[:, 0, 0] *= draws[\"focal\"]/draws[\"aspect\"].sqrt()",
           "K[:, 0, 0] *= draws[\"focal\"]*draws[\"aspect\"].sqrt()", ("tests/training/test_adapters.py",)),
    Mutant("training/01_losses", "/(3*mask.sum().clamp(min=1))", "/mask.sum().clamp(min=1)",
           ("tests/training/test_loop.py",)),
    Mutant("training/03_sources", "w2c[:, :3, 3] /= factor[:, None]", "w2c[:, :3, 3] *= factor[:, None]",
           ("tests/training/test_sources.py",)),
    Mutant("training/05_guard", "(1 - k)*(state.var + k*deviation**2)", "state.var + k*deviation**2",
           ("tests/training/test_loop.py",)),
    # ---- reconstruction, evaluation, doctor, experiments ----
    Mutant("reconstruction/00_prediction", "(g.scales.square() + blur**2).sqrt()", "g.scales + blur",
           ("tests/reconstruction",)),
    Mutant("reconstruction/04_frame", "{round(i*n_views/n) for i in range(n)}", "set(range(n))",
           ("tests/reconstruction",)),
    Mutant("evaluation/01_sensitivity", "dict(low=round(max(low, 0.), 4)", "dict(low=round(low, 4)",
           ("tests/evaluation",)),
    Mutant("evaluation/00_scoring", "truth.images, truth.alpha > .5)", "truth.images, truth.alpha < .5)"),
    Mutant("doctor/00_evidence", "slack = .5*min(intervals", "slack = 50*min(intervals", ("tests/doctor",)),
    Mutant("experiments/03_factors", "shift = None if \"origin\" in on else -scale*center",
           "shift = None if \"origin\" in on else -center", ("tests/experiments/test_factors.py",)),
    Mutant("experiments/08_history", "return np.array(rows, float).mean(0) if rows",
           "return np.array(rows, float)[0] if rows", ("tests/experiments/test_history.py",)),
)


def module_of(notebook:Path) -> Path:
    "The module that is made of a notebook."
    text = "\n".join(source_of(cell) for cell in json.loads(notebook.read_text())["cells"])
    return Path(*re.search(r"^#\| default_exp (\S+)", text, re.M)[1].split(".")).with_suffix(".py")


def source_of(cell) -> str: return "".join(cell["source"])


def is_exported(cell) -> bool: return cell["cell_type"] == "code" and "#| export" in source_of(cell)


def copy_package(to:Path):
    "What the tests need; large and unchanged folders as links."
    shutil.copytree(ROOT/"gslrm_mouse", to/"gslrm_mouse", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (to/"gslrm_mouse/weights").symlink_to(ROOT/"gslrm_mouse/weights")
    ignore = shutil.ignore_patterns("__pycache__", "results", "images", ".ipynb_checkpoints")
    shutil.copytree(ROOT/"nbs", to/"nbs", ignore=ignore)
    for name in ("results", "images"): (to/"nbs"/name).symlink_to(ROOT/"nbs"/name)
    shutil.copytree(ROOT/"tests", to/"tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "configs", "tools", "benchmarks", "README.md", "CHANGELOG.md"):
        (to/name).symlink_to(ROOT/name)
    if (ROOT.parent/"shared").is_dir() and not (to.parent/"shared").exists():
        (to.parent/"shared").symlink_to(ROOT.parent/"shared")


def changed(mutant:Mutant, notebook:Path, module:Path) -> tuple[str, str]: # text of the notebook, of the module
    "Both with the bug; ValueError where its text does not occur exactly once."
    content, code = json.loads(notebook.read_text()), module.read_text()
    cells = [cell for cell in content["cells"] if is_exported(cell) and mutant.old in source_of(cell)]
    count = sum(source_of(cell).count(mutant.old) for cell in cells)
    if (count, code.count(mutant.old)) != (1, 1):
        raise ValueError(f"{mutant.name}: its text occurs {count} times in exported cells and "
                         f"{code.count(mutant.old)} times in {module.name}, 1 was expected")
    cells[0]["source"] = [source_of(cells[0]).replace(mutant.old, mutant.new)]
    return json.dumps(content), code.replace(mutant.old, mutant.new)


def passes(command, folder:Path) -> bool: # False also after `LIMIT` seconds
    environment = os.environ | dict(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")
    child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL, start_new_session=True)
    try: return child.wait(LIMIT) == 0
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        return False


def commands_of(mutant:Mutant) -> dict: # name: command
    "The tests of a mutant, its notebook first."
    notebook = f"nbs/{mutant.notebook}.ipynb"
    files = {test: [sys.executable, "-m", "pytest", "-q", "-x", test] for test in mutant.tests}
    return {notebook: ["nbdev_test", "--path", notebook, "--n_workers", "0"], **files}


def usable(mutant:Mutant, folder:Path, known:dict) -> dict: # name: command; `known`: name: whether it passes
    "The tests that pass without the bug: only they can notice it."
    commands = commands_of(mutant)
    for name, command in commands.items():
        if name in known: continue
        known[name] = passes(command, folder)
        if not known[name]: print(f"{name} fails without any bug and is left out", flush=True)
    return {name: command for name, command in commands.items() if known[name]}


def noticed_by(mutant:Mutant, folder:Path, known:dict) -> str: # "" for a survivor
    "The first test that fails with the bug in place; the copy is as before afterwards."
    notebook = folder/"nbs"/f"{mutant.notebook}.ipynb"
    module = folder/"gslrm_mouse"/module_of(notebook)
    before = notebook.read_text(), module.read_text()
    texts = changed(mutant, notebook, module)
    tests = usable(mutant, folder, known)
    try:
        for path, text in zip((notebook, module), texts): path.write_text(text)
        return next((name for name, command in tests.items() if not passes(command, folder)), "")
    finally:
        for path, text in zip((notebook, module), before): path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant bugs and see whether the tests notice them.")
    parser.add_argument("words", nargs="*", help="only mutants whose name contains one of them")
    parser.add_argument("--list", action="store_true", help="list the mutants and check their texts, run nothing")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.words or any(word in m.name for word in options.words)]
    if options.list:
        for mutant in chosen:
            notebook = ROOT/"nbs"/f"{mutant.notebook}.ipynb"
            changed(mutant, notebook, ROOT/"gslrm_mouse"/module_of(notebook))
            print(mutant.name)
        print(len(chosen), "mutants")
        return 0
    survivors, known = 0, {}
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)/"copy"
        folder.mkdir()
        copy_package(folder)
        for mutant in chosen:
            start = time.perf_counter()
            test = noticed_by(mutant, folder, known)
            survivors += not test
            verdict = f"noticed by {test}" if test else "SURVIVED"
            print(f"{verdict:50} {time.perf_counter() - start:5.0f} s  {mutant.name}", flush=True)
    print(f"{survivors} of {len(chosen)} survived")
    return survivors


if __name__ == "__main__": sys.exit(main())
