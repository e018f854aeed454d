"""Arguments of a class that another class has kept, because it has arguments of these names."""

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plif_lightning.cli.arguments import parsed_yaml
from plif_lightning.cli.checkpoint import content_of
from plif_lightning.errors import UserError
from plif_lightning.runs.process import options


def leftovers(base: Path, arguments: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Sentences on arguments that were given for a class, and that the class in its place now has.

    jsonargparse keeps them if the new class accepts them: CLIF with k = 0.3 and then KLIF is KLIF with k = 0.3.

    Args:
        base: the configuration below all others.
        arguments: of the command, in order.
        config: what they make.
    """
    given = _Given(_classes(config, ""))
    given.take("", content_of(str(base)))
    given.own.clear()  # what the base gives is meant for every class
    for path, value in _in_order(arguments):
        given.take(path, value)
    found: dict[tuple[str, str], list[str]] = {}
    for (path, name), (value, before) in given.left.items():
        if path not in given.final:
            continue
        now = given.final[path].get("init_args") or {}
        if name in now and now[name] == value != _default(str(given.final[path]["class_path"]), name):
            found.setdefault((path, before), []).append(f"{name} = {value}")
    sentences = []
    for (path, before), values in found.items():
        now = _last(given.final[path]["class_path"])
        kept = ", ".join(values)
        sentences.append(
            f"{path}: {now} keeps {kept}, given for {before}. Give {now} values of its own if that is not meant."
        )
    return sentences


class _Given:
    """Arguments given for each class so far, as configurations and options are read in order.

    Args:
        final: the classes of the whole configuration, by their places.
    """

    def __init__(self, final: dict[str, Mapping[str, Any]]) -> None:
        self.final = final
        self.classes: dict[str, str] = {}
        self.lengths: dict[str, int] = {}
        self.left: dict[tuple[str, str], tuple[Any, str]] = {}  # (place, name): value and the class it was given for
        self.own: dict[tuple[str, str], Any] = {}  # the same, of the class that is there

    def take(self, path: str, value: Any) -> None:
        """Take a value for a dotted name."""
        if path.endswith("+"):
            path, first = path[:-1], self.lengths.get(path[:-1], 0)
            elements = value if isinstance(value, list) else [value]
        elif isinstance(value, list):
            first, elements = 0, value
            if self.lengths.get(path) != len(value):  # only lists of one length are merged
                self._forget(f"{path}[")
        elif isinstance(value, Mapping):
            if "class_path" in value:
                self._set_class(path, str(value["class_path"]))
            for name, inner in value.items():
                if name != "class_path":
                    self.take(path if name == "init_args" else f"{path}.{name}".removeprefix("."), inner)
            return
        else:
            self._take_one(path, value)
            return
        self.lengths[path] = first + len(elements)
        for i, element in enumerate(elements, start=first):
            self.take(f"{path}[{i}]", element)

    def _take_one(self, path: str, value: Any) -> None:
        if path in self.final or path.endswith("]"):
            self._set_class(path, str(value))
            return
        place, _, name = path.rpartition(".")
        if place in self.lengths:  # an option for the last one of a list
            place = f"{place}[{self.lengths[place] - 1}]"
        self.own[place, name] = value
        self.left.pop((place, name), None)

    def _set_class(self, path: str, name: str) -> None:
        before = self.classes.get(path)
        if before is not None and _last(before) != _last(name):
            for key in [key for key in self.own if key[0] == path]:
                self.left[key] = (self.own.pop(key), _last(before))
        self.classes[path] = name

    def _forget(self, start: str) -> None:
        self.classes = {path: name for path, name in self.classes.items() if not path.startswith(start)}
        self.left = {key: value for key, value in self.left.items() if not key[0].startswith(start)}
        self.own = {key: value for key, value in self.own.items() if not key[0].startswith(start)}


def _in_order(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all arguments; of a configuration its content, without a name."""
    for name, value in options(arguments):
        if name == "config":
            yield "", content_of(value)
        else:
            yield name.replace(".init_args", ""), _value(value)


def _value(text: str) -> Any:
    """An option's value; a structure such as `{c6k3s1-PLIF}*2` is no YAML, and a text."""
    try:
        return parsed_yaml(text, text) if text else text
    except UserError:
        return text


def _classes(value: Any, path: str) -> dict[str, Mapping[str, Any]]:
    """The classes of a configuration by their places, such as `model.optimizer` and `trainer.callbacks[0]`."""
    found: dict[str, Mapping[str, Any]] = {}
    if isinstance(value, list):
        for i, one in enumerate(value):
            found |= _classes(one, f"{path}[{i}]")
    elif isinstance(value, Mapping):
        # A data set keeps on purpose what it shares with the one before: `--data MNIST` with a recipe's batch size.
        if "class_path" in value and path != "data":
            found[path] = value
        for name, inner in value.items():
            found |= _classes(inner, path if name == "init_args" else f"{path}.{name}".removeprefix("."))
    return found


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _default(path: str, argument: str) -> Any:
    """The default of a class's argument, for which nothing need be said."""
    module, _, name = path.rpartition(".")
    try:
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return inspect.Parameter.empty
    return parameters[argument].default if argument in parameters else inspect.Parameter.empty
