"""The parser of the commands that Lightning runs, and its messages with the nearest known name."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, get_args

import lightning as L
import lightning.pytorch.callbacks as callbacks
import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from plif_lightning import data as data_module
from plif_lightning.callbacks import LastCheckpoint
from plif_lightning.cli.checkpoint import config_file
from plif_lightning.data import ImageAugmentation, SpikingDataModule
from plif_lightning.data.event_augment import EventAugmentation
from plif_lightning.errors import UserError
from plif_lightning.runtime import program
from plif_lightning.runtime.program import EXTRAS
from plif_lightning.structure import FROM_DATA
from plif_lightning.training.task import SpikingClassifier


class ConfigFile(ActionConfigFile):
    """A configuration by path, or by bare name."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        ActionConfigFile.apply_config(parser, cfg, dest, config_file(value))


class Parser(LightningArgumentParser):
    """Report parser errors in one sentence, and suggest the nearest key for an unknown one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would turn a mistyped key into another one.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("action") is ActionConfigFile:  # LightningCLI's
            kwargs["action"] = ConfigFile
        return super().add_argument(*args, **kwargs)

    def whole_numbers_first(self) -> None:
        """Read a whole number as one wherever a setting takes int or float.

        Lightning takes a limit of 1 for one batch and 1.0 for all of them. Its `Optional[Union[int, float]]` is the
        `Optional[Union[float, int]]` of whichever module was imported first, because typing keeps one object for both.
        """
        for action in self._actions:
            kinds = get_args(getattr(action, "_typehint", None))
            if len(kinds) == 3 and all(kind in kinds for kind in (int, float, type(None))):
                action._typehint = int | float | None  # type: ignore[attr-defined]

    def format_help(self, *arguments: Any) -> str:
        for action in self._actions:
            if action.help:  # Lightning's docstrings are in Sphinx's markup
                action.help = re.sub(r":[a-z:]+:`~?([^`]*)`", r"\1", action.help).replace("``", "")
        return super().format_help(*arguments)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise own_error(ex) or UserError(in_one_sentence(message, known_keys)) from ex


def own_error(error: BaseException | None) -> UserError | None:
    """The error of an argument's class, or of a missing package, without what jsonargparse wrapped around it."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        if needed := re.search(r"Requirement '([^']+)' not met", str(error)):
            extra = EXTRAS.get(re.split(r"[^\w-]", needed[1])[0])
            command = f"pip install '{needed[1]}'" if extra is None else program.installing(extra)
            return UserError(f"{needed[1]} is not installed, but what was asked for needs it: {command}.")
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


def _classes_below(base: type, module: Any) -> dict[str, type]:
    found = [(name, c) for name, c in vars(module).items() if isinstance(c, type)]
    return {name: c for name, c in found if issubclass(c, base) and c is not base and not name.startswith("_")}


def data_classes() -> dict[str, type[SpikingDataModule]]:
    """The data sets, by the name of their class."""
    classes = _classes_below(SpikingDataModule, data_module)
    return {name: c for name, c in classes.items() if hasattr(c, "title")}


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
    """jsonargparse's message on one line, with the nearest known name if it names an unknown key or class.

    Args:
        message: of jsonargparse.
        known: gives every key that may be given.
    """
    message = " ".join(message.split())
    if re.search(r"arguments are required: (\w+\.)?data$", message):
        return f"{message}: pass --config NAME, or --data with one of {', '.join(data_classes())}."
    if message.startswith('Parser key "model.channels"'):
        given = re.search(r"Given value: (.*?)$", message)
        return (
            "model.channels must be a number, or a list with one for the convolutions before each pool such as "
            f"'[64,128]'; got {given[1] if given else 'another value'}."
        )
    if needed := re.search(r"arguments are required: (\w+)(?= |$)", message):
        return f"a class that was given needs {needed[1]}: pass --KEY.{needed[1]}=VALUE after --KEY=CLASS."
    if several := re.search(
        r"Multiple subclasses with name (\w+)\. Give the full class path.*?: ([\w., ]+)\. ", message
    ):
        block = re.match(r'Parser key "([\w.]+)"', message)
        return (
            f"{block[1] if block else 'an argument'}: several classes are named {several[1]}: give one of {several[2]}."
        )
    if block := re.match(r'Parser key "(model\.(?:neuron|network)|data(?=".* (?:No module|not correspond) ))', message):
        errors = message.partition(" Given value type: ")[0].split(" - ")[1:]
        named = re.search(r"Given value: ([\w.]+)$", message)
        for error in errors:
            if not error.startswith(("Expected a ", "Does not validate")):  # the import's own, or of an argument
                return f"{block[1]}{f' {named[1]}' if named else ''}: {error.rstrip('.')}."
        return message
    given = re.search(r"(?:dot import path string|Import path): '?([\w.]+)", message)
    if given and not re.search(r"Expected a <class '(?:float|int|str|bool)'>", message):
        block = re.match(r'Parser key "([\w.]+)"', message)
        key, known_names = block[1] if block else "an argument", known_classes()
        if given[1] in known_names:
            return f"{key} does not take {given[1]}, a class of another kind."
        return f"{key} names no class {given[1]}.{_nearest(given[1], known_names)}"
    if re.match(r'Parser key "(?:data\.)?augmentation".*Expected a <class \'list\'>', message):
        return "data.augmentation must be a list of classes: pass --data.augmentation+=NAME for each."
    if named := re.search(r"(?:unrecognized arguments: (?:--)?|[Oo]ption '|[Kk]ey ')([\w.]+)", message):
        key = named[1].replace("init_args.", "")
        owners = [name for name, c in data_classes().items() if key in inspect.signature(c).parameters]
        if owners and message.startswith("Option"):  # of the data set that was chosen, which has no such argument
            return f"this data set has no argument {key}: only {', '.join(owners)} have it."
        return f"unknown argument {key}.{_nearest(key, known())}"
    return message


def known_classes() -> set[str]:
    """Names by which classes may be given without their module."""
    bases: dict[type, Any] = dict.fromkeys((SpikingDataModule, ImageAugmentation, EventAugmentation), data_module)
    bases |= {Optimizer: torch.optim, LRScheduler: torch.optim.lr_scheduler, Callback: callbacks}
    return {name for base, module in bases.items() for name in _classes_below(base, module)}
