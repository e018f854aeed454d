"""Run commands, JSON on stdin, in a process that cannot import what the wheel does not require."""

import contextlib
import io
import json
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def normal(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


def required(distribution, found):
    """Names of all distributions that one needs without extras, its own included."""
    name = normal(distribution)
    if name in found:
        return found
    found.add(name)
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # of another system
        return found
    for line in lines:
        if "extra ==" not in line:
            required(re.split(r"[^\w.-]", line, maxsplit=1)[0], found)
    return found


class Filter:
    """A finder of modules and distributions that finds only those that are required."""

    def __init__(self, finder, refused, allowed):
        self.finder, self.refused, self.allowed = finder, refused, allowed

    def find_distributions(self, *arguments):
        found = self.finder.find_distributions(*arguments) if hasattr(self.finder, "find_distributions") else ()
        return (one for one in found if normal(one.name) in self.allowed)

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in self.refused else self.finder.find_spec(name, *arguments)


def refuse_others():
    """Make every import of what no required distribution brings fail, as if it were not installed."""
    allowed = {"plif-lightning"}
    for of_signatures in ("typeshed-client", "docstring-parser"):  # jsonargparse[signatures]
        required(of_signatures, allowed)
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        required(re.split(r"[^\w.-]", line, maxsplit=1)[0], allowed)
    brought = metadata.packages_distributions()
    names = {name: set(map(normal, by)) for name, by in brought.items()}
    refused = {name for name, by in names.items() if not by & allowed} - {"tests"}
    sys.meta_path[:] = [Filter(finder, refused, allowed) for finder in sys.meta_path]


def outcome(main, argv):
    """(exit status, last line of stderr, files that appeared) of a command."""
    before = {*Path().rglob("*")}
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(argv)
        except SystemExit as stop:
            status = stop.code or 0
    lines = [line for line in err.getvalue().splitlines() if line.startswith("error")] or [""]
    return [status, lines[-1], sorted(str(path) for path in {*Path().rglob("*")} - before)]


if __name__ == "__main__":
    refuse_others()
    from plif_lightning.cli import main

    commands = json.load(sys.stdin)
    found = [outcome(main, argv) for argv in commands]
    sys.stdout.write(json.dumps(found))
