"""Are the notebooks clean, and do package and README say what the notebooks say? Exit 1 and name the files if not.

Works on a copy, so that a check never changes what it checks."""
import filecmp, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).parent.parent
with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/root.name
    copy.mkdir()
    for name in ("nbs", "gslrm_mouse", "tools", "settings.ini", "setup.py", "README.md", "_quarto.yml"):
        source = root/name
        if source.is_dir(): shutil.copytree(source, copy/name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        elif source.exists(): shutil.copy(source, copy/name)
    for command in (["nbdev_clean"], ["nbdev_export"], [sys.executable, "tools/readme.py"]):
        subprocess.run(command, cwd=copy, check=True, stdout=subprocess.DEVNULL)
    paths = [p.relative_to(copy) for d in ("nbs", "gslrm_mouse") for p in (copy/d).rglob("*") if p.suffix in (".ipynb", ".py")] + [Path("README.md")]
    mine = {p.relative_to(root) for d in ("nbs", "gslrm_mouse") for p in (root/d).rglob("*") if p.suffix in (".ipynb", ".py") and ".ipynb_checkpoints" not in p.parts}
    wrong = sorted(str(p) for p in paths if not (root/p).is_file() or not filecmp.cmp(root/p, copy/p, shallow=False))
    wrong += sorted(f"{p} (no notebook exports it)" for p in mine - set(paths))
if wrong:
    sys.exit("not in step with the notebooks; run nbdev_clean, nbdev_export and make readme:\n  " + "\n  ".join(wrong))
print("notebooks are clean, package and README are in step with them")
