"""Code that a run executes, and files that it reads: hashed as a part of its identity, and copied into its folder."""

import ast
import difflib
import hashlib
import os
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
# Before the name of a file that an argument of a class names.
_FILES = "files/"
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_PACKAGE = Path(__file__).resolve().parents[1]
_LINES = 40  # of a difference that is shown
_KEPT = 2**20  # bytes of a file; of larger ones, such as a teacher's checkpoint, the hash is kept


def sources_of(config: Mapping[str, Any]) -> Sources:
    """Source of each module of the user's that a configuration names, and of the local modules that they import.

    Modules of installed distributions and of Python's library are versions, not code; so is this package at a commit.
    Its changed files are code, and so are files that arguments of task, network, neurons and loss name: weights of
    classes, or a teacher's checkpoint.

    Args:
        config: configuration of a `fit`, nested. The modules that it names have been imported.

    Returns:
        The text by the module's or the file's name; UNKNOWN for a module without a file, a hash for a large file.
    """
    sources: Sources = {}
    waiting = [name for text in _texts(config) for name in _NAME.findall(text)]
    while waiting:
        name = waiting.pop()
        for module in (name, name.rpartition(".")[0]):
            path = _local_file(module)
            if path is None or module in sources:
                continue
            if not path.is_file():
                sources[module] = UNKNOWN
                continue
            sources[module] = path.read_text("utf-8")
            waiting += _imports(sources[module], module, is_package=path.name == "__init__.py")
    for path, text in changed_files().items():
        now = path.read_text("utf-8")
        if _hash(now) != _hash(text):
            sources[f"{PACKAGE}/{path.relative_to(_PACKAGE).as_posix()}"] = now
    return sources | dict(_files(config.get("model")))


def hashes_of(sources: Sources) -> dict[str, str]:
    """A hash of each module's syntax, without comments and docstrings, and of each file; a joint hash of all changed
    files of this package."""
    hashes = {name: _digest(text) if name.startswith(_FILES) else _hash(text) for name, text in sorted(sources.items())}
    changed = {name: hashes.pop(name) for name in list(hashes) if name.startswith(f"{PACKAGE}/")}
    return hashes | ({PACKAGE: _digest(str(changed))} if changed else {})


def file_digest(path: Path) -> str:
    """A hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:12]


def kept_sources(folder: RunFolder) -> dict[str, str]:
    """The code in the folder of a run, as its last start executed it, by file."""
    root = folder.source("").parent
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and ".until_step_" not in path.name]
    return {file.relative_to(root).as_posix(): file.read_text("utf-8") for file in files}


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


def _files(value: Any) -> Iterator[tuple[str, str]]:
    """Name and text, or hash, of the files that values of a configuration name."""
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _files(item)
    # Words such as `lif` are no files, even where one has that name. `Path.is_file` refuses long texts, as structures.
    if isinstance(value, str) and re.search(r"[./\\]", value) and os.path.isfile(value):  # noqa: PTH113
        path = Path(value)
        name = _FILES + "/".join(part for part in path.parts if part not in ("..", path.anchor))
        try:
            yield name, path.read_text("utf-8") if path.stat().st_size <= _KEPT else file_digest(path)
        except UnicodeDecodeError:
            yield name, file_digest(path)


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
