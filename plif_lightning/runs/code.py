"""The user's code that a run executes: hashed, so that no runs of edited code are averaged, and kept beside the run."""

import ast
import difflib
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runtime.process import changed_files

Sources = dict[str, str]
# For a module without a file, such as a notebook's.
UNKNOWN = "unknown"
# Name of the hash of all changed files of this package.
PACKAGE = "plif_lightning"
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_PACKAGE = Path(__file__).resolve().parents[1]
_LINES = 40  # of a difference that is shown


def sources_of(config: Mapping[str, Any]) -> Sources:
    """Source of each module of the user's that a configuration names, and of the local modules that they import.

    Modules of installed distributions and of Python's library are versions, not code; so is this package at a commit.
    Its changed files are code.

    Args:
        config: configuration of a `fit`, nested. The modules that it names have been imported.

    Returns:
        The text by the module's name; UNKNOWN for a module without a file.
    """
    sources: Sources = {}
    waiting = [name for text in _texts(config) for name in _NAME.findall(text)]
    while waiting:
        name = waiting.pop()
        for module in (name, name.rpartition(".")[0]):
            path = _local_file(module)
            if path is None or module in sources:
                continue
            sources[module] = UNKNOWN if not path.is_file() else path.read_text("utf-8")
            if path.is_file():
                waiting += _imports(sources[module], module, is_package=path.name == "__init__.py")
    changed = {f"{PACKAGE}/{path.relative_to(_PACKAGE).as_posix()}": path for path in changed_files()}
    return sources | {name: path.read_text("utf-8") for name, path in changed.items()}


def hashes_of(sources: Sources) -> dict[str, str]:
    """A hash of each module's syntax, without comments and docstrings; a joint hash of all changed files of this
    package."""
    hashes = {name: _hash(text) for name, text in sorted(sources.items())}
    changed = {name: hashes.pop(name) for name in list(hashes) if name.startswith(f"{PACKAGE}/")}
    return hashes | ({PACKAGE: _digest(str(changed))} if changed else {})


def kept_sources(folder: RunFolder) -> dict[str, str]:
    """The user's code in the folder of a run, as its last start executed it, by file."""
    files = sorted(folder.source("").parent.glob("*.py"))
    return {file.name: file.read_text("utf-8") for file in files if ".until_step_" not in file.name}


def difference(old: Sources, new: Sources, labels: tuple[str, str] = ("as it was", "now")) -> str:
    """The lines in which modules differ, as `diff -u` shows them; the first ones of many."""
    lines: list[str] = []
    for name in sorted({*old, *new}):
        before, after = (of.get(name, "").splitlines() for of in (old, new))
        there, here = (f"{name}, {label}" for label in labels)
        lines += difflib.unified_diff(before, after, there, here, "", "", 1, "")
    rest = len(lines) - _LINES
    return "\n".join([*lines[:_LINES], *([f"... and {rest} more lines"] if rest > 0 else [])])


def _texts(value: Any) -> Iterator[str]:
    """Texts of a configuration that may name classes: an import path, or a structure."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == "structure" and isinstance(item, str):
                yield item
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str) and _NAME.fullmatch(value):
        yield value


def _local_file(module: str) -> Path | None:
    """The file of a module that is neither installed nor part of Python or of this package; None for any other."""
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = find_spec(module) if module else None
        except (ImportError, AttributeError, ValueError):  # `a.B`, where a is a module and B a class
            return None
        origin = spec.origin if spec is not None and spec.has_location else None
        if origin is None:
            return None
    elif origin is None:  # a built-in module, a namespace, or made in memory
        is_made_in_memory = getattr(loaded, "__spec__", None) is None and module not in sys.builtin_module_names
        return Path(module) if is_made_in_memory and module != "__main__" else None
    path = Path(origin).resolve()
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    if path.suffix != ".py" or path.is_relative_to(_PACKAGE) or any(path.is_relative_to(root) for root in installed):
        return None
    return path


def _imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Names of the modules that a module imports, anywhere in it."""
    parts = module.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            of = ".".join([*base, *([node.module] if node.module else [])])
            yield of
            yield from (f"{of}.{alias.name}" for alias in node.names)


def _hash(text: str) -> str:
    if text != UNKNOWN:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_docstring(body[0]):
                body[:] = body[1:] or [ast.Pass()]
        text = ast.unparse(tree)
    return _digest(text)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
