"""The house: which part may know which."""

import ast
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
    "neurons": {"errors"},
    "network": {"errors", "neurons"},
    "losses": set(),
    "data": {"errors", "randomness", "batch"},
    "analysis": {"errors"},
    "task": {"errors", "randomness", "batch", "losses", "neurons", "network"},
    "callbacks": {"analysis", "errors", "files", "task"},
    "summary": {"analysis", "callbacks", "data", "network"},
    "cli": {"analysis", "callbacks", "data", "errors", "files", "summary", "task"},
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


def test_main_defines_no_class():
    tree = ast.parse((PACKAGE.parent / "main.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
