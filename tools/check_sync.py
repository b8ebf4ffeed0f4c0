"""Are the notebooks clean, and do package and README say what the notebooks say? Exit 1 and name the files if not.

Works on a copy, so that a check never changes what it checks."""
import filecmp, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).parent.parent
COPIED = ("nbs", "gslrm_mouse", "tools", "settings.ini", "setup.py", "README.md", "_quarto.yml")
COMMANDS = (["nbdev_clean"], ["nbdev_export"], [sys.executable, "tools/readme.py"])

def generated(folder:Path) -> set[Path]: # relative to `folder`
    "Notebooks and modules."
    paths = [p for part in ("nbs", "gslrm_mouse") for p in (folder/part).rglob("*") if p.suffix in (".ipynb", ".py")]
    return {p.relative_to(folder) for p in paths if ".ipynb_checkpoints" not in p.parts}

with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/root.name
    copy.mkdir()
    for name in COPIED:
        source = root/name
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        if source.is_dir(): shutil.copytree(source, copy/name, symlinks=True, ignore=ignored)
        elif source.exists(): shutil.copy(source, copy/name)
    for command in COMMANDS: subprocess.run(command, cwd=copy, check=True, stdout=subprocess.DEVNULL)
    fresh = generated(copy)
    wrong = []
    for path in sorted(fresh | {Path("README.md")}):
        is_same = (root/path).is_file() and filecmp.cmp(root/path, copy/path, shallow=False)
        if not is_same: wrong.append(str(path))
    wrong += sorted(f"{path} (no notebook exports it)" for path in generated(root) - fresh)
if wrong:
    message = "not in step with the notebooks; run nbdev_clean, nbdev_export and make readme:"
    sys.exit("\n  ".join([message, *wrong]))
print("notebooks are clean, package and README are in step with them")
