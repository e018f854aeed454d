"""Write the pages of the reference: the public API, the command line, the configuration keys."""

import ast
import collections.abc
import contextlib
import io
import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plif_lightning

PACKAGE = Path(plif_lightning.__file__).parent
# Public rooms, and what they hold.
ROOMS = {
    "": "Neurons and networks",
    "data": "Data sets",
    "deploy": "Deployment",
    "events": "Recordings of event cameras",
    "plot": "Plots",
    "neurobench": "NeuroBench",
}


def write_reference(folder: Path) -> None:
    """Write python.md, commands.md and configuration.md, each only if it changed."""
    for name, text in (("python", _python()), ("commands", _commands()), ("configuration", _configuration())):
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def _public(room: str) -> list[str]:
    """Names that a room's stub lists, without other rooms."""
    stub = PACKAGE / room / "__init__.pyi"
    if not stub.is_file():
        stub = PACKAGE / room / "__init__.py"
    found: list[str] = []
    for node in ast.parse(stub.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            found += [alias.asname or alias.name for alias in node.names]
    return sorted({name for name in found if name not in ROOMS and not name.startswith("_")}, key=str.lower)


def _python() -> str:
    lines = ["# Python", "", "The public API; how it may change: [stability](../stability.md).", ""]
    for room, title in ROOMS.items():
        module = f"plif_lightning.{room}".rstrip(".")
        lines += [f"## {title}", "", f"`{module}`", "", "```{eval-rst}"]
        for name in _public(room):
            found = getattr(__import__(module, fromlist=[name]), name)
            if typing.get_origin(found) is typing.Literal:
                values = ", ".join(f"``{value}``" for value in typing.get_args(found))
                lines += [f".. py:data:: {module}.{name}", "", f"   One of {values}.", ""]
                continue
            kind = "autoclass" if isinstance(found, type) else "autofunction" if callable(found) else "autodata"
            lines += [f".. {kind}:: {module}.{name}"]
            if kind == "autoclass":
                lines += ["   :members:"]
            lines += [""]
        lines += ["```", ""]
    return "\n".join(lines)


def _help_of(*words: str) -> str:
    """Output of a command in a terminal of 110 columns."""
    from plif_lightning.cli import main

    out = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "110"
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*words])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.__setitem__("COLUMNS", before)
    return out.getvalue().rstrip()


def _commands() -> str:
    from plif_lightning.cli.dispatch import COMMANDS

    lines = ["# Commands", "", "```text", _help_of("--help"), "```", ""]
    for name, command in COMMANDS.items():
        if command.module not in (None, "prepare"):  # Lightning's parsers print hundreds of lines
            lines += [f"## {name}", "", "```text", _help_of(name, "--help"), "```", ""]
    return "\n".join(lines)


def _configuration() -> str:
    head = (
        "Every key of `fit` that belongs to this project, as `--KEY VALUE` or in a YAML file. Keys of the Trainer are "
        "Lightning's: [trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html)."
    )
    lines = ["# Configuration keys", "", head, ""]
    for title, rows in _keys():
        lines += [f"## {title}", ""]
        for key, kind, default, text in rows:
            more = ", ".join(filter(None, [kind, f"default {default}" if default else ""]))
            lines += [f"{key}{f' ({more})' if more else ''}", f": {_sentence(text)}", ""]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    words = " ".join(text.split()).replace("<", "&lt;")
    return f"{words[:1].upper()}{words[1:]}" if words else "\u2013"


def _fit_parser() -> Any:
    """The parser of `fit`, as LightningCLI builds it."""
    from plif_lightning.cli.lightning import PlifCLI
    from plif_lightning.cli.start import start_of

    class BuiltError(Exception):
        """Ends the command line as soon as its parser is there."""

    class Parsing(PlifCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise BuiltError(self._subcommand_parsers["fit"])

    with contextlib.ExitStack() as held:
        try:
            Parsing(start_of(["fit"], held), held, None)  # type: ignore[arg-type]
        except BuiltError as built:
            return built.args[0]
    raise AssertionError


def _keys() -> Iterator[tuple[str, list[tuple[str, str, str, str]]]]:
    """Titles and rows (key, type, default, help) of run, network and each data set."""
    from jsonargparse import ArgumentParser

    import plif_lightning.data as data
    from plif_lightning.data import SpikingDataModule

    parser = _fit_parser()
    rows = list(_rows(parser))
    yield "Run", [row for row in rows if not row[0].startswith(("`model.", "`trainer", "`data"))]
    yield "Network and training", [row for row in rows if row[0].startswith("`model.")]
    for name in sorted(dir(data)):
        kind = getattr(data, name)
        if isinstance(kind, type) and issubclass(kind, SpikingDataModule) and kind is not SpikingDataModule:
            own = ArgumentParser()
            own.add_class_arguments(kind, "data")
            yield f"Data: {name}", list(_rows(own))


def _type_in_words(kind: Any) -> str:
    """A type as a reader of a configuration needs it: choices of a Literal, short names of classes."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind is None:
        return ""
    if kind is type(None):
        return "null"
    if origin is typing.Literal:
        return ", ".join(str(value) for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_in_words(part) for part in inside))
    if origin is collections.abc.Callable:
        return "class"
    if origin is not None and inside:
        own = ", ".join(_type_in_words(part) for part in inside if part is not Ellipsis)
        return f"{origin.__name__} of {own}"
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def _rows(parser: Any) -> Iterator[tuple[str, str, str, str]]:
    for action in parser._actions:
        if action.dest in ("help", "config", "data", "data.help", "print_config", "checkpoint") or action.dest.endswith(
            (".help", "help_all")
        ):
            continue
        if not action.option_strings or ("." not in action.dest and action.dest in ("model", "trainer")):
            continue
        shown = _type_in_words(getattr(action, "_typehint", None) or action.type)
        default = "" if action.default is None or str(action.default) == "==SUPPRESS==" else str(action.default)
        text = (action.help or "").split(" (type:")[0] if action.help != "==SUPPRESS==" else ""
        yield f"`{action.dest}`", shown, f"`{default}`" if default else "", text
