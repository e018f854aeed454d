"""The house: which part may know which."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import plif_lightning

PACKAGE = Path(plif_lightning.__file__).parent
# room -> the rooms that it may import, itself aside
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "structure": {"errors"},
    "runtime": {"errors"},
    "dynamics": {"errors"},
    "kernels": {"runtime", "errors", "dynamics"},
    "signals": {"errors"},
    "neurons": {"errors", "structure", "dynamics", "kernels", "signals"},
    "layers": {"errors", "structure", "dynamics", "kernels", "signals", "neurons"},
    "network": {"runtime", "errors", "version", "structure", "dynamics", "kernels", "signals", "neurons", "layers"},
    "convert": {"runtime", "errors", "dynamics", "signals", "neurons", "layers", "network"},
    "deploy": {
        *(
            "runtime",
            "errors",
            "structure",
            "dynamics",
            "kernels",
            "signals",
            "neurons",
            "layers",
            "network",
            "convert",
        ),
        "events",
    },
    "neurobench": {"errors", "network", "neurons", "runtime"},
    "plot": {"errors"},
    "configs": {"errors", "network"},
    "events": {"runtime", "errors"},
    "data": {"runtime", "errors", "events"},
    "runs": {
        "runtime",
        "errors",
        "structure",
        "configs",
        "network",
        "training",
    },  # for defaults, where they are asked for
    "analysis": {"runtime", "errors", "structure", "dynamics", "network", "configs", "plot", "runs", "events"},
    "training": {"runtime", "errors", "data", "signals", "neurons", "layers", "network"},
    "callbacks": {"runtime", "errors", "structure", "data", "layers", "network", "deploy", "runs", "training"},
    "cli": {
        *("runtime", "errors", "configs", "events", "data", "network", "runs", "analysis", "training", "callbacks"),
        *("deploy", "structure", "version", "neurons"),
    },
    "__init__": set(),
    "__main__": {"cli"},
}


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports, wherever in the file."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = (
                [node.module] if node.module != "plif_lightning" else [f"plif_lightning.{a.name}" for a in node.names]
            )
        parts |= {name.split(".")[1] for name in names if name.startswith("plif_lightning.")}
    return parts


FILES = sorted(PACKAGE.rglob("*.py"))


def test_imports_follow_the_arrows():
    for path in FILES:
        part = part_of(path)
        assert imported(path) - {part} <= MAY_IMPORT[part], path


def test_no_file_imports_itself_by_way_of_others():
    """Imports at the top of a file or in a function; a package's `__init__` is what it imports."""
    modules = {module_of(path): path for path in FILES}
    arrows = {name: {target for target in targets(path) if target in modules} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in sorted(arrows[name]):
                visit(target, [*way, name])
            done.add(name)

    for name in arrows:
        visit(name, [])


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def targets(path):
    """Modules that a file imports: of `from room import name` the file of that name, where there is one."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                below = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_file = below.with_suffix(".py").is_file() or (below / "__init__.py").is_file()
                found.add(f"{node.module}.{alias.name}" if is_file else node.module)
    return found


# Modules that a process imports one after another, and what none of them may have loaded by then.
LEAN = [
    (("plif_lightning", "events.cache", "events.readers"), {"torch", "lightning"}),
    # Both take longer to import than all else; a stream of a deployed network needs no Dynamo.
    (("deploy.frozen",), {"torch._dynamo", "numba", "lightning"}),
    (
        ("network", "runs", "cli", "cli.sweep", "cli.reports", "analysis.tables", "analysis.report"),
        {"lightning", "torchvision"},
    ),
]


@pytest.mark.parametrize(("modules", "others"), LEAN, ids=lambda value: str(sorted(value)[0]))
def test_a_module_loads_no_more_than_it_needs(modules, others):
    code = "import importlib, sys\n"
    for name in modules:
        full = name if name == "plif_lightning" else f"plif_lightning.{name}"
        code += f"importlib.import_module('{full}'); print('{name}', *{others!r} & sys.modules.keys())\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.split("\n")[:-1] == list(modules)


def test_public_names_are_there():
    names = {"PLIF", "Surrogate", "SpikingNetwork", "SpikingClassifier", "load_network", "use_backend"}
    assert names <= {*dir(plif_lightning)}
    assert all(getattr(plif_lightning, name) for name in dir(plif_lightning))


def test_every_allowed_import_is_used():
    used = {part: set().union(*(imported(path) for path in FILES if part_of(path) == part)) for part in MAY_IMPORT}
    assert {part: rooms - {part} for part, rooms in used.items()} == MAY_IMPORT


def test_other_libraries_are_known_to_conversion_alone():
    """Their packages, by name in code or in strings, in no room below `convert`: docstrings and prose may say more."""
    words = re.compile(r"spikingjelly|snntorch|norse|sinabs|\bnir\b")
    above = {"convert", "cli", "deploy", "neurobench"}
    for path in FILES:
        if part_of(path) in above or path.name == "program.py":  # which names the extras of packages
            continue
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            names = [getattr(node, name, None) for name in ("id", "attr", "name", "module", "arg")]
            names += [node.value] if isinstance(node, ast.Constant) and id(node) not in docs else []
            assert not [name for name in names if isinstance(name, str) and words.search(name)], (path, names)


def test_main_defines_no_class():
    tree = ast.parse((PACKAGE.parent / "main.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
