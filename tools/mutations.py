"""Mutation testing: change the package in small ways, one at a time, and see whether a test fails.

    pip install cosmic-ray
    python tools/mutations.py --number 60 --seed 0 --out runs/mutations.json

Draws changes at random from all that cosmic-ray would make, in the shares of GROUPS, makes each in a clone of the last
commit, and runs the tests that name the changed function or its module, then those of the folder that mirrors its own,
until one fails. Prints how many changes of each group failed a test, with the 95 % interval over all, and each change
that survived. The same command goes on where an interrupted one stopped.
"""

import argparse
import ast
import difflib
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cosmic_ray import mutating, plugins
from cosmic_ray.commands.init import init
from cosmic_ray.work_db import WorkDB, use_db
from scipy.stats import binomtest

ROOT = Path(__file__).parent.parent
# Rooms of the package, and their share of the changes.
GROUPS = {
    "network and deploy": (("network", "signals", "layers", "structure", "convert", "deploy"), 18),
    "kernels and neurons": (("kernels", "neurons", "dynamics"), 10),
    "data and events": (("data", "events"), 10),
    "training": (("training",), 7),
    "runs and command line": (("runs", "callbacks", "cli", "runtime"), 10),
    "analysis and plot": (("analysis", "plot"), 5),
}
# Not drawn: types (`int | None`), decorators (a compiled function computes the same without its own), `strict` of `zip`
# (which no caller trips over), and Triton, which needs a GPU.
LEFT_OUT = re.compile(r"core/(ReplaceBinaryOperator_BitOr_.*|RemoveDecorator)$")
GPU = {"gpu.py", "triton_code.py"}
COMMON = 12  # a name in more files of tests, `forward` say, tells nothing
SECONDS = 900  # of an endless loop; far above the tests' time


def draw(number: int, seed: int) -> list[dict[str, Any]]:
    """`number` changes in the shares of the groups, those of each group in random order."""
    drawn = []
    total = sum(share for _, share in GROUPS.values())
    for group, (rooms, share) in GROUPS.items():
        files = [file for room in rooms for file in sorted((ROOT / "plif_lightning" / room).rglob("*.py"))]
        with tempfile.TemporaryDirectory() as folder, use_db(f"{folder}/all.sqlite", WorkDB.Mode.create) as db:
            init([file for file in files if file.name not in GPU], db, {})
            made = [change for item in db.work_items for change in item.mutations]
        usable = sorted(
            (str(change.module_path.relative_to(ROOT)), change.start_pos[0], change.operator_name, change.occurrence)
            for change in made
            if not LEFT_OUT.match(change.operator_name) and not is_strictness(change.module_path, change.start_pos)
        )
        for file, line, operator, occurrence in random.Random(seed).sample(usable, round(number * share / total)):
            drawn.append({"group": group, "file": file, "line": line, "operator": operator, "occurrence": occurrence})
    return drawn


def is_strictness(path: Path, place: tuple[int, int]) -> bool:
    """True for the value of an argument `strict`."""
    line, column = place
    return source_lines(path)[line - 1][:column].endswith("strict=")


@functools.cache
def source_lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def function_at(source: str, line: int) -> str | None:
    """The innermost function or class that holds a line."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    around = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    around = [node for node in around if node.lineno <= line <= (node.end_lineno or node.lineno)]
    return max(around, key=lambda node: node.lineno).name if around else None


def tests_of(clone: Path, file: str, name: str | None) -> list[list[str]]:
    """Tests of a change, those first that are likely to notice it: they name its function or its module."""
    path = Path(file)
    texts = {test: test.read_text("utf-8") for test in sorted((clone / "tests").rglob("test_*.py"))}
    naming = set()
    for word in (name, ".".join(path.with_suffix("").parts)):
        found = {test for test, text in texts.items() if word and re.search(rf"\b{re.escape(word)}\b", text)}
        naming |= found if len(found) <= COMMON else set()
    mirrored = {test for test in texts if test.is_relative_to(clone / "tests" / path.parts[1])} - naming
    first, then = ([str(test.relative_to(clone)) for test in sorted(tests)] for tests in (naming, mirrored))
    return [[file, *first], then]


def run_tests(clone: Path, tests: list[str]) -> str:
    """ "passed", "failed" or "timeout"."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(clone), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "passed" if process.returncode in (0, 5) else "failed"  # 5: no test was collected


def try_change(clone: Path, change: dict[str, Any]) -> None:
    """Make a change, run its tests, and write into it what came of it."""
    path = clone / change["file"]
    before = path.read_text("utf-8")
    after = mutating.mutate_code(before, plugins.get_operator(change["operator"])(), change["occurrence"])
    change["diff"] = "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), n=2))
    change["function"] = function_at(before, change["line"])
    path.write_text(after, "utf-8")
    change["outcome"] = "passed"
    try:
        for tests in tests_of(clone, change["file"], change["function"]):
            if tests and change["outcome"] == "passed":
                change["outcome"] = run_tests(clone, tests)
    finally:
        path.write_text(before, "utf-8")


def report(changes: list[dict[str, Any]]) -> None:
    """Print the score and the changes that no test noticed."""
    tried = [change for change in changes if "outcome" in change]
    for change in tried:
        if change["outcome"] == "passed":
            print(change["file"], change["line"], change["function"])
            print(change["diff"])
    for group in GROUPS:
        found = [change["outcome"] != "passed" for change in tried if change["group"] == group]
        print(f"{group}: {sum(found)} of {len(found)}")
    killed = sum(change["outcome"] != "passed" for change in tried)
    low, high = binomtest(killed, len(tried)).proportion_ci(method="wilson")
    print(f"{killed} of {len(tried)} changes failed a test: {killed / len(tried):.0%} [{low:.0%}, {high:.0%}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60, help="how many changes are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/mutations.json"), help="what came of each change")
    given = parser.parse_args()
    out = given.out.absolute()
    clone = out.with_suffix(".clone")
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        out.write_text(json.dumps(draw(given.number, given.seed), indent=1), "utf-8")
    changes = json.loads(out.read_text("utf-8"))
    for number, change in enumerate(changes, 1):
        if "outcome" not in change:
            try_change(clone, change)
            print(f"{number}/{len(changes)} {change['outcome']}: {change['file']}:{change['line']}", flush=True)
            out.write_text(json.dumps(changes, indent=1), "utf-8")
    report(changes)


if __name__ == "__main__":
    main()
