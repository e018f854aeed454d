"""The house: which part may know which."""

import ast
import importlib
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
    "neurons": {"errors", "dynamics", "kernels"},
    "network": {"runtime", "errors", "version", "structure", "dynamics", "kernels", "neurons"},
    "deploy": {"runtime", "errors", "structure", "dynamics", "kernels", "neurons", "network", "events"},
    "neurobench": {"errors", "network", "neurons", "runtime"},
    "plot": {"errors"},
    "configs": {"errors", "network"},
    "events": {"runtime", "errors"},
    "data": {"runtime", "errors", "events"},
    "runs": {"runtime", "errors", "structure", "network", "training"},  # for defaults, where they are asked for
    "analysis": {"runtime", "errors", "structure", "dynamics", "network", "configs", "plot", "runs", "events"},
    "training": {"runtime", "errors", "data", "network"},
    "callbacks": {"runtime", "errors", "data", "network", "deploy", "runs", "training"},
    "cli": {
        *("runtime", "errors", "configs", "events", "data", "network", "runs", "analysis", "training", "callbacks"),
        *("deploy", "structure", "version"),
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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    part = part_of(path)
    assert imported(path) - {part} <= MAY_IMPORT[part]


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


@pytest.mark.parametrize(
    "room", ["runs", "analysis.tables", "analysis.report", "cli", "cli.results", "cli.sweep", "network"]
)
def test_what_reads_runs_loads_no_lightning(room):
    code = f"import sys, plif_lightning.{room}; print(*{{'lightning', 'torchvision'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.split() == []


def test_public_names_are_there_and_load_only_when_they_are_used():
    code = (
        "import sys, plif_lightning as pl; assert 'torch' not in sys.modules; print(*(getattr(pl, n) for n in dir(pl)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    for name in (
        "PLIF",
        "LIF",
        "IF",
        "Surrogate",
        "SpikingNetwork",
        "SpikingClassifier",
        "load_network",
        "use_backend",
    ):
        assert name in dir(plif_lightning)
        assert name in done.stdout


def test_processes_that_read_recordings_start_without_torch():
    code = (
        "import sys, plif_lightning.events.cache, plif_lightning.events.readers; "
        "print(*{'torch', 'lightning'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.split() == []


def test_every_arrow_is_one_that_something_needs():
    used = {part: set().union(*(imported(path) for path in FILES if part_of(path) == part)) for part in MAY_IMPORT}
    assert {part: rooms - {part} for part, rooms in used.items()} == MAY_IMPORT


@pytest.mark.parametrize(
    "path",
    ["plif_lightning.data.EventFlip", "plif_lightning.training.OneCycle", "plif_lightning.data.MNIST"],
)
def test_class_paths_of_earlier_configurations_are_there(path):
    module, name = path.rsplit(".", 1)
    assert getattr(importlib.import_module(module), name).__name__ == name


def test_main_defines_no_class():
    tree = ast.parse((PACKAGE.parent / "main.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_kernels_are_there_without_dynamo_and_numba():
    """Both take longer to import than all else; a stream of a deployed network needs no Dynamo."""
    code = "import sys, plif_lightning.deploy.frozen; print(*{'torch._dynamo', 'numba'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.split() == []
