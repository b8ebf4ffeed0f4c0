"""What ruff does not see: nested conditional expressions, expressions used for their effect, packed f-strings."""
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTED = re.search(r"^LINTED = ((?:.*\\\n)*.*)$", (ROOT/"Makefile").read_text(), re.M)[1].replace("\\", " ").split()


def files(suffix):
    for name in LINTED:
        path = ROOT/name
        found = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path]
        yield from (p for p in found if p.suffix == suffix and ".ipynb_checkpoints" not in p.parts)


def sources():
    "Every cell of every notebook, and every other file that follows the rules: (where, code)."
    for path in files(".ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code": yield f"{path.relative_to(ROOT)}, cell {cell['id']}", source
    for path in files(".py"): yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def nested_conditionals(tree):
    "A conditional expression directly inside another one."
    for node in ast.walk(tree):
        if not isinstance(node, ast.IfExp): continue
        parts = (node.test, node.body, node.orelse)
        if any(isinstance(inner, ast.IfExp) for part in parts for inner in ast.walk(part)): yield node.lineno


def effects(tree):
    "A statement that is a conditional expression or a comprehension."
    kinds = (ast.IfExp, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    last = tree.body[-1] if tree.body else None
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, kinds) and node is not last: yield node.lineno


def packed_strings(tree):
    "An f-string that decides more than once."
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        decisions = [x for x in ast.walk(node) if isinstance(x, ast.IfExp)]
        if len(decisions) > 1:
            yield node.lineno


CHECKS = (nested_conditionals, effects, packed_strings)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_style(check):
    found = []
    for where, source in sources():
        if source.lstrip().startswith(("%", "!")): continue
        found += [f"{where}, line {line}" for line in check(ast.parse(source))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("check, bad, good", [
    (nested_conditionals, "x = 1 if a else 2 if b else 3", "x = 1 if a else 2"),
    (effects, "f() if a else g()\nx = 1", "if a: f()\nx = 1"),
    (effects, "[f(x) for x in y]\nz = 1", "z = [f(x) for x in y]"),
    (packed_strings, "s = f\"{1 if a else 2} {3 if b else 4}\"", "s = f\"{1 if a else 2}\""),
])
def test_the_checks_see_it(check, bad, good):
    assert list(check(ast.parse(bad)))
    assert not list(check(ast.parse(good)))
