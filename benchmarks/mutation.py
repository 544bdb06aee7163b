"""How good are the unit tests? Break the core on purpose, one small change at a time, and see whether they notice.

    python benchmarks/mutation.py                      all of them
    python benchmarks/mutation.py breaker --limit 60   some mutants of one module
    python benchmarks/mutation.py --jobs 2 --minutes 8

Changes comparisons, arithmetic, `and`/`or`/`not`, conditions, numbers, True/False, `min`/`max`, and drops single
statements, one per mutant, in a copy of the package that goes first on the path; then runs the module's own tests with
`-x`. What is printed as SURVIVED is either not tested or changes nothing that could be seen. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "src"
TESTS = {
    name: [f"tests/unit/test_{name}.py"]
    for name in ("admission", "breaker", "budget", "gate", "limit", "rate", "retry")
}
HURRY = ["--hypothesis-profile=hurry"]  # the first failure is enough: do not shrink it
PATIENCE = 120.0

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
SWAPPED = {"min": "max", "max": "min"}


class Mutant(NamedTuple):
    """One change: where, what, and the whole changed source."""

    module: str
    line: int
    change: str
    source: str


def changes_of(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every small change of one node, as new nodes."""

    def changed(**fields: object) -> ast.AST:
        new = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                yield "comparison", changed(ops=[*node.ops[:index], other(), *node.ops[index + 1 :]])
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in ARITHMETIC:
        yield "arithmetic", changed(op=ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "boolean", changed(op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
        for value in node.values:
            yield "boolean", value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "negation", node.operand
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "condition", changed(test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "constant", ast.Constant(not node.value)
        elif isinstance(node.value, (int, float)):
            yield "constant", ast.Constant(node.value + 1)
            if node.value:
                yield "constant", ast.Constant(0)
        elif isinstance(node.value, str) and node.value:
            yield "constant", ast.Constant("mutant")
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SWAPPED:
        yield "min/max", changed(func=ast.Name(SWAPPED[node.func.id], ast.Load()))
    if isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign)) and not isinstance(node.value, ast.Constant):
        yield "dropped", ast.Pass()


def mutants_of(module: str) -> Iterator[Mutant]:
    """Every mutant of one module of the core; types, docstrings and declarations are left alone."""
    text = (SOURCE / "deepseek_resilient" / "core" / f"{module}.py").read_text()
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    seen: set[int] = set()
    for function in functions:
        for parent in (node for statement in function.body for node in (function, *ast.walk(statement))):
            if id(parent) in seen or _is_docstring(parent) or isinstance(parent, (ast.arguments, ast.JoinedStr)):
                continue
            seen.add(id(parent))
            for name, value in ast.iter_fields(parent):
                if parent is function and name != "body":
                    continue
                places = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
                for index, node in places:
                    if not isinstance(node, ast.AST) or _is_docstring(node):
                        continue
                    for kind, new in changes_of(node):
                        _put(parent, name, index, new)
                        source = ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
                        _put(parent, name, index, node)
                        before, after = ast.unparse(node).splitlines()[0], ast.unparse(new).splitlines()[0]
                        yield Mutant(module, node.lineno, f"{kind}: {before}  ->  {after}", source)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _put(parent: ast.AST, name: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


def is_killed(mutant: Mutant, place: Path) -> bool:
    """Whether the module's tests fail on the mutant (a test run that hangs has noticed, too)."""
    (place / "deepseek_resilient" / "core" / f"{mutant.module}.py").write_text(mutant.source)
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *HURRY,
        *TESTS[mutant.module],
    ]
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=REPOSITORY, env=environment, capture_output=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1, 2):
        raise SystemExit(f"the tests could not be run:\n{done.stdout.decode()}{done.stderr.decode()}")
    return done.returncode != 0


def run(mutants: list[Mutant], jobs: int, seconds: float) -> int:
    """Try them all, or as many as time allows; print the survivors and the score; how many survived."""
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(number) for number in range(jobs)]
        for place in places:
            shutil.copytree(SOURCE / "deepseek_resilient", place / "deepseek_resilient")

        def work(number: int) -> list[tuple[Mutant, bool]]:
            found = []
            for mutant in mutants[number::jobs]:
                if time.monotonic() > until:
                    break
                original = SOURCE / "deepseek_resilient" / "core" / f"{mutant.module}.py"
                killed = is_killed(mutant, places[number])
                shutil.copy(original, places[number] / "deepseek_resilient" / "core" / original.name)
                found.append((mutant, killed))
                if not killed:
                    print(f"SURVIVED {mutant.module}.py:{mutant.line}: {mutant.change}", flush=True)
            return found

        for module in {mutant.module for mutant in mutants}:
            original = SOURCE / "deepseek_resilient" / "core" / f"{module}.py"
            if is_killed(Mutant(module, 0, "none", original.read_text()), places[0]):
                raise SystemExit(f"the tests of {module}.py fail already without a change")
        with ThreadPoolExecutor(jobs) as pool:
            results = [result for found in pool.map(work, range(jobs)) for result in found]
    for module in TESTS:
        kills = [killed for mutant, killed in results if mutant.module == module]
        if kills:
            print(f"{module}: {sum(kills)} of {len(kills)} killed")
    print(f"in all {sum(killed for _, killed in results)} of {len(results)} killed; {len(mutants)} mutants exist")
    return sum(not killed for _, killed in results)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), help=f"of {', '.join(TESTS)}; default all")
    parser.add_argument("--limit", type=int, help="a random choice of at most so many mutants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=8.0)
    options = parser.parse_args()
    unknown = set(options.modules) - set(TESTS)
    if unknown:
        parser.error(f"unknown module: {', '.join(sorted(unknown))}")
    mutants = [mutant for module in options.modules for mutant in mutants_of(module)]
    random.Random(options.seed).shuffle(mutants)
    run(mutants[: options.limit], options.jobs, options.minutes * 60.0)


if __name__ == "__main__":
    main()
