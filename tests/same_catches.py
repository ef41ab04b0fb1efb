"""Shows that tests still find what they found: faults planted by a seeded draw, each in two commits, against the tests of its package.

    .venv/bin/python tests/same_catches.py OLD [NEW] [--number 60] [--seed 13] [--json FILE]

A fault is one small change of one function that both commits have: found by its name, or by its body wherever it moved. Each commit runs
the unit and property tests of the function's package (-x, at most 60 s; a run that takes longer has found the fault, since without it they
end in time or the package is left out). Exit code 1: a fault that was caught in OLD survives in NEW.
"""

import argparse
import ast
import copy
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 60
LEFT_OUT = {"__main__.py"}
"""Files of which no unit test can tell."""


class Function(NamedTuple):
    """One function of a tree: its file, its name with its class's, and its node."""

    path: str
    name: str
    node: ast.FunctionDef


class Fault(NamedTuple):
    """One change of one function: the number of the node among those that can be changed, and what is done to it."""

    function: str
    number: int
    what: str


# Faults


COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARISONS |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}


def changed(node: ast.AST) -> tuple[ast.AST, str] | None:
    """A node with a fault in it, and its name; None for a node that is left as it is."""
    made = copy.deepcopy(node)
    match made:
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            made.ops = [COMPARISONS[type(operator)]()]
            return made, "another comparison"
        case ast.BinOp(op=operator) if type(operator) in ARITHMETIC and not isinstance(
            made.left, ast.Constant | ast.JoinedStr
        ):
            made.op = ARITHMETIC[type(operator)]()
            return made, "another operation"
        case ast.BoolOp(op=operator):
            made.op = ast.Or() if isinstance(operator, ast.And) else ast.And()
            return made, "and for or"
        case ast.UnaryOp(op=ast.Not()):
            return made.operand, "a not less"
        case ast.If():
            made.test = ast.UnaryOp(ast.Not(), made.test)
            return made, "the other branch"
        case ast.Return(value=value) if value is not None and not (
            isinstance(value, ast.Constant) and value.value is None
        ):
            made.value = ast.Constant(None)
            return made, "None returned"
        case ast.Expr(value=ast.Call()):
            return ast.Pass(), "a call less"
    return None


def places(function: ast.AST) -> list[ast.AST]:
    """The nodes of a function that can be changed, in the order of the lines."""
    return [node for node in ast.walk(function) if node is not function and changed(node) is not None]


def planted(source: str, node: ast.FunctionDef, number: int) -> str:
    """The source of a file with the fault in the function's `number`-th place."""
    tree = ast.parse(source)
    function = next(
        other for other in ast.walk(tree) if isinstance(other, ast.FunctionDef) and other.lineno == node.lineno
    )
    target = places(function)[number]
    replacement = changed(target)
    assert replacement is not None

    class Plant(ast.NodeTransformer):
        def visit(self, here: ast.AST) -> ast.AST:
            return replacement[0] if here is target else self.generic_visit(here)

    return ast.unparse(ast.fix_missing_locations(Plant().visit(tree)))


# Functions of both


def functions_of(tree: Path) -> Iterator[Function]:
    for path in sorted((tree / "trainer").rglob("*.py")):
        if path.name in LEFT_OUT:
            continue
        for holder in ast.walk(ast.parse(path.read_text())):
            for node in getattr(holder, "body", []) if isinstance(holder, ast.Module | ast.ClassDef) else []:
                if isinstance(node, ast.FunctionDef):
                    name = f"{holder.name}.{node.name}" if isinstance(holder, ast.ClassDef) else node.name
                    yield Function(str(path.relative_to(tree)), name, node)


def body(function: Function) -> str:
    """The statements without the docstring, so that a better sentence is no other function."""
    statements = function.node.body
    is_documented = isinstance(statements[0], ast.Expr) and isinstance(statements[0].value, ast.Constant)
    return ast.dump(ast.Module(statements[1:] if is_documented else statements, []))


def pairs(old: Path, new: Path) -> tuple[list[tuple[Function, Function]], int]:
    """The functions that both have, with as many places for a fault; and how many of the old ones have no counterpart."""
    by_body: dict[str, list[Function]] = {}
    by_name: dict[str, list[Function]] = {}
    for function in functions_of(new):
        by_body.setdefault(body(function), []).append(function)
        by_name.setdefault(function.name, []).append(function)
    found, without = [], 0
    for function in functions_of(old):
        alike = by_body.get(body(function), [])
        if len(alike) != 1:
            alike = [other for other in by_name.get(function.name, []) if len(by_name[function.name]) == 1]
            kinds = [type(node) for node in places(function.node)]
            alike = [other for other in alike if [type(node) for node in places(other.node)] == kinds]
        if not alike:
            without += 1
        elif places(function.node):
            found.append((function, alike[0]))
    return found, without


# Tests


def tests_of(tree: Path, path: str) -> list[str]:
    """The unit and property tests of the package that a file lies in."""
    parts = Path(path).with_suffix("").parts[1:]
    unit = tree / "tests" / "unit"
    named = [unit / Path(*parts[:-1]) / f"test_{parts[-1]}.py", unit / f"test_{parts[-1]}.py"]
    folders = [unit / Path(*parts[:length]) for length in range(len(parts) - 1, 0, -1)]
    chosen = [place for place in (*folders, *named) if place.exists()][:1]
    word = re.compile(rf"trainer\.{re.escape(parts[0])}\b")
    chosen += [
        file for file in sorted((tree / "tests" / "property").glob("test_*.py")) if word.search(file.read_text())
    ]
    return [str(place.relative_to(tree)) for place in chosen]


def is_caught(tree: Path, tests: list[str]) -> bool:
    """Whether a test fails, or does not end in time."""
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not long", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return (
            subprocess.run(words, cwd=tree, env=environment, capture_output=True, timeout=LIMIT_SECONDS).returncode != 0
        )
    except subprocess.TimeoutExpired:
        return True


def tried(tree: Path, function: Function, number: int) -> bool | None:
    """Whether the fault is caught in this tree, which is left as it was; None where there are no tests of its package."""
    tests = tests_of(tree, function.path)
    if not tests:
        return None
    file = tree / function.path
    source = file.read_text()
    file.write_text(planted(source, function.node, number))
    try:
        return is_caught(tree, tests)
    finally:
        file.write_text(source)


def tree_of(commit: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(PROJECT), "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        old, new = tree_of(chosen.old, Path(scratch) / "old"), tree_of(chosen.new, Path(scratch) / "new")
        both, without = pairs(old, new)
        print(f"{len(both)} functions of both can have a fault, {without} of the old have no counterpart", flush=True)
        generator = random.Random(chosen.seed)
        for before, after in generator.sample(both, len(both)):
            if len(rows) >= chosen.number:
                break
            number = generator.randrange(len(places(before.node)))
            in_old = tried(old, before, number)
            if in_old is None:
                continue
            in_new = tried(new, after, number)
            what = changed(places(before.node)[number])[1]
            rows.append(
                {
                    "old": f"{before.path}:{before.name}",
                    "new": after.path,
                    "fault": what,
                    "in_old": in_old,
                    "in_new": in_new,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    lost = [row for row in rows if row["in_old"] and not row["in_new"]]
    caught = [sum(bool(row[side]) for row in rows) for side in ("in_old", "in_new")]
    print(
        f"{len(rows)} faults: {caught[0]} caught in {chosen.old}, {caught[1]} in {chosen.new}, {len(lost)} no longer caught"
    )
    if chosen.json:
        facts = {
            "old": chosen.old,
            "new": chosen.new,
            "seed": chosen.seed,
            "without_counterpart": without,
            "faults": rows,
        }
        chosen.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
