"""The house: which part may know which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import plif_lightning

PACKAGE = Path(plif_lightning.__file__).parent
# part -> the parts that it may import, itself aside
MAY_IMPORT = {
    "errors": set(),
    "allocator": set(),
    "randomness": set(),
    "batch": set(),
    "files": set(),
    "compiled": set(),
    "neurons": {"errors"},
    "kernels": {"compiled", "errors", "neurons"},
    "network": {"errors", "kernels", "neurons"},
    "losses": set(),
    "events": {"compiled", "errors", "files"},
    "data": {"errors", "randomness", "batch", "events"},
    "analysis": {"errors", "files", "neurons"},
    "task": {"errors", "randomness", "batch", "losses", "kernels", "neurons", "network"},
    "callbacks": {"analysis", "errors", "files", "task"},
    "records": {"analysis", "callbacks", "data", "files", "network", "task"},
    "wandb_logging": {"analysis", "callbacks", "errors", "files", "records"},
    "summary": {"analysis", "callbacks", "data", "network"},
    "cli": {
        "analysis",
        "callbacks",
        "data",
        "errors",
        "events",
        "files",
        "records",
        "summary",
        "task",
        "wandb_logging",
    },
    "sweep": {"analysis", "errors"},
    "commands": {"analysis", "cli", "data", "errors", "network", "sweep"},
    "__init__": set(),
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


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    part = part_of(path)
    assert imported(path) - {part} <= MAY_IMPORT[part]


def test_processes_that_read_recordings_start_without_torch():
    code = "import sys, plif_lightning.events.store; print(*{'torch', 'lightning', 'numba'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.split() == []


def test_main_defines_no_class():
    tree = ast.parse((PACKAGE.parent / "main.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
