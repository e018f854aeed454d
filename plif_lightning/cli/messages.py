"""jsonargparse's messages in one sentence, with the nearest known name; its own text where nothing better is known."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import lightning as L
import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch.cli import LightningArgumentParser

from plif_lightning import data as data_module
from plif_lightning.callbacks import LastCheckpoint
from plif_lightning.cli.checkpoint import FROM_DATA, config_file
from plif_lightning.data import ImageAugmentation, SpikingDataModule
from plif_lightning.data.event_augment import EventAugmentation
from plif_lightning.errors import UserError
from plif_lightning.training.task import SpikingClassifier


class ConfigFile(ActionConfigFile):
    """A configuration by path, or by bare name."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        ActionConfigFile.apply_config(parser, cfg, dest, config_file(value))


class Parser(LightningArgumentParser):
    """Says what is wrong in one sentence, with the nearest known key where an unknown one was given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would turn a mistyped key into another one.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("action") is ActionConfigFile:  # LightningCLI's
            kwargs["action"] = ConfigFile
        return super().add_argument(*args, **kwargs)

    def format_help(self, *arguments: Any) -> str:
        for action in self._actions:
            if action.help:  # Lightning's docstrings are in Sphinx's markup
                action.help = re.sub(r":[a-z:]+:`~?([^`]*)`", r"\1", action.help).replace("``", "")
        return super().format_help(*arguments)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise own_error(ex) or UserError(in_one_sentence(message, known_keys)) from ex


def own_error(error: BaseException | None) -> UserError | None:
    """What an argument's class refused, itself or for want of a package, out of what jsonargparse wrapped around it."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        if needed := re.search(r"Requirement '([^']+)' not met", str(error)):
            return UserError(
                f"{needed[1]} is not installed, but what was asked for needs it: pip install '{needed[1]}'."
            )
        error = error.__cause__ or error.__context__
    return None


# Keys of `fit` beside those of network, data and Trainer.
OWN_KEYS = (
    "config",
    "seed_everything",
    "ckpt_path",
    "run_folder",
    "resume",
    "record_samples",
    "test_after_fit",
    "best_of_ties",
    "engine",
)


def known_keys() -> set[str]:
    """Every key that may be given to `fit`."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(L.Trainer, "trainer")
    parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
    parser.add_class_arguments(SpikingClassifier, "model")
    keys = {*OWN_KEYS, "data.class_path", *parser.get_defaults(skip_validation=True).keys()}
    for data in data_classes().values():
        keys |= {f"data.{name}" for name in inspect.signature(data).parameters}
    return keys - {f"model.{name}" for name in FROM_DATA}


def _classes_below(base: type, *modules: Any) -> dict[str, type]:
    found = [(name, c) for module in modules for name, c in vars(module).items() if isinstance(c, type)]
    return {name: c for name, c in found if issubclass(c, base) and c is not base and not name.startswith("_")}


def data_classes() -> dict[str, type[SpikingDataModule]]:
    """The data sets, by the name of their class."""
    classes = _classes_below(SpikingDataModule, data_module)
    return {name: c for name, c in classes.items() if hasattr(c, "title")}


# Names by which a class may be given without its module: key, what it is called, its base, where it is looked for.
_NAMED = (
    ("optimizer", "model.optimizer", torch.optim.Optimizer, (torch.optim,)),
    ("lr_scheduler", "model.lr_scheduler", torch.optim.lr_scheduler.LRScheduler, (torch.optim.lr_scheduler,)),
)


def _nearest(key: str, known: Iterable[str]) -> str:
    """` Did you mean X?` for the known key that is most alike, or nothing."""
    known = sorted(known)
    # A key is mistyped in one of its parts: those that the block has, by their own names.
    block, dot, name = key.rpartition(".")
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == block}
    matches = [f"{block}{dot}{near}" for near in difflib.get_close_matches(name, beside, n=1, cutoff=0.7)]
    if not matches:
        by_last_name = {name.rsplit(".", 1)[-1]: name for name in known}
        matches = [
            by_last_name[n] for n in difflib.get_close_matches(key.rsplit(".", 1)[-1], by_last_name, n=1, cutoff=0.75)
        ]
    if not matches:
        return ""
    # Inside a class of its own, jsonargparse knows only the last part of a name.
    full = [name for name in known if name.rsplit(".", 1)[-1] == matches[0]]
    return f" Did you mean {max(full, key=len) if full else matches[0]}?"


def in_one_sentence(message: str, known: Callable[[], Iterable[str]]) -> str:
    """What the parser says, for a person; its own text where it is not recognised.

    Args:
        message: of jsonargparse.
        known: gives every key that may be given.
    """
    message = re.sub(r"\s*\n\s*", " ", message).strip()
    return (
        _of_augmentation(message)
        or _of_class(message)
        or _of_missing_data(message)
        or _of_missing_argument(message)
        or _of_unknown_key(message, known)
        or _of_type(message)
        or message
    )


def _of_class(message: str) -> str | None:
    """A class that cannot be found by its name."""
    if not (given := re.search(r"(?:Expected a dot import path string|Import path): (\S+)", message)):
        return None
    name = given[1].strip("'\"")
    parser_key = re.match(r'Parser key "([\w.]+)"', message)
    key = parser_key[1] if parser_key else ""
    if key == "data":
        names = list(data_classes())
        return f"data must be one of {', '.join(names)} or a class path, got {name!r}.{_nearest(name, names)}"
    for part, called, base, modules in _NAMED:
        if part in key:
            names = list(_classes_below(base, *modules))
            return f"{called} must be one of {', '.join(names)} or a class path, got {name!r}.{_nearest(name, names)}"
    return None


def _of_augmentation(message: str) -> str | None:
    if not re.match(r'Parser key "(?:data\.)?(?:init_args\.)?augmentation', message):
        return None
    events = EventAugmentation.__name__ in message
    names = ", ".join(_classes_below(EventAugmentation if events else ImageAugmentation, data_module))
    given = re.search(r"Given value: (.*?)(?: - Expected |$)", message)
    reason = re.search(r"expects a function or a callable class: (.*?)\.? Got value", message)
    names += ", or tonic.transforms.NAME" if events else ""
    return (
        f"data.augmentation of this data set must be a list of {names}; "
        f"got {given[1] if given else '?'}{f' ({reason[1]})' if events and reason else ''}. "
        "On the command line: --data.augmentation+=NAME --data.augmentation.ARGUMENT=VALUE."
    )


def _of_missing_data(message: str) -> str | None:
    if not re.search(r"arguments are required: (\w+\.)?data$", message):
        return None
    return f"{message}: pass --config NAME, or --data with one of {', '.join(data_classes())}."


_NEEDS = "a class that was given needs"


def _of_missing_argument(message: str) -> str | None:
    """An argument of a class that was given without it."""
    if not (missing := re.match(r"the following arguments are required: (\w+)$", message)) or missing[1] in OWN_KEYS:
        return None
    name = missing[1]
    return f"{_NEEDS} {name}: after --KEY=CLASS or --KEY+=CLASS, pass --KEY.{name}=VALUE."


def _of_type(message: str) -> str | None:
    """A value that is of none of several types."""
    found = re.match(
        r'Parser key "([\w.]+)": (?:- Expected a path .*? - )?'
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors:.*"
        r"Given value: (.*)$",
        message,
    )
    if not found:
        return None
    key, types, value = found.groups()
    if kinds := re.findall(r"Namespace\(class_path='(?:\w+\.)*(\w+)'", value):
        missing = re.search(rf"(?:arguments are required:|{_NEEDS}) (\w+)", message)
        name = missing[1].rsplit(".", 1)[-1] if missing else ""
        # of several, the one that was given last
        return f"{key}: {kinds[-1]} needs {name}: pass --{key}.{name}=VALUE after it." if missing else None
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>|(?:\w+\.)+(?=\w)", r"\1", types).replace("NoneType", "null")
    types = re.sub(r"Literal\[(.*?)\]", r"\1", types)
    if not key.startswith("data.") and any(key in inspect.signature(c).parameters for c in data_classes().values()):
        key = f"data.{key}"
    return f"{key} must be of {types.replace(', null', ' or null')}, got {value}."


def _of_unknown_key(message: str, known: Callable[[], Iterable[str]]) -> str | None:
    if unknown := re.search(r"unrecognized arguments: (?:--)?([\w.]+)", message):
        key = unknown[1]
    elif unknown := re.search(r"(?:[Oo]ption|[Kk]ey) '([\w.]+)'(?: is not|$)", message):
        key = unknown[1]
        inside = re.match(r'Parser key "([\w.]+)"', message)
        if inside and not key.startswith(inside[1]):
            key = f"{inside[1]}.{key}"
    else:
        return None
    key = key.replace("init_args.", "")
    owners = [name for name, c in data_classes().items() if key in inspect.signature(c).parameters]
    if owners and message.startswith("Option"):  # said inside the class of the data set that was chosen
        *most, last = owners
        return f"this data set has no argument {key}: only {', '.join(most)}{' and ' if most else ''}{last} have it."
    return f"unknown argument {key}.{_nearest(key, known())}"
