"""The parser of the commands that Lightning runs, and values that it would take for something else without a word."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args

import lightning as L
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.cli import LightningArgumentParser

from plif_lightning import configs
from plif_lightning import data as data_module
from plif_lightning.cli.options import Options, add_options
from plif_lightning.cli.parser import parsed_yaml
from plif_lightning.data import SpikingDataModule
from plif_lightning.errors import UserError
from plif_lightning.runs.settings import names_class
from plif_lightning.runtime.process import cores
from plif_lightning.structure import FROM_DATA
from plif_lightning.training.task import SpikingClassifier


class ConfigFile(ActionConfigFile):
    """A configuration by path, or by bare name."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        path = configs.resolve(value)
        parsed_yaml(path.read_text("utf-8"), str(path))  # jsonargparse's error would not name the file
        ActionConfigFile.apply_config(parser, cfg, dest, str(path))


class Parser(LightningArgumentParser):
    """Report parser errors in one sentence, and suggest the nearest key for an unknown key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would turn a mistyped key into another.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("action") is ActionConfigFile:  # LightningCLI's
            kwargs["action"] = ConfigFile
        return super().add_argument(*args, **kwargs)

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """The defaults; of classes only arguments that the default configuration sets.

        jsonargparse adds the classes' defaults, and a class in their place would get them as if set by the
        user: AdamW the weight decay of Adam, 0. Its defaults are added when all arguments are read.
        """
        defaults = super().get_defaults(*args, **kwargs)
        for path in self.default_config_files:
            for name, value in parsed_yaml(Path(path).read_text("utf-8"), path).get("model", {}).items():
                if names_class(value):
                    defaults[f"model.{name}.init_args"] = Namespace(value["init_args"])
        return defaults

    def parse_integers_first(self) -> None:
        """Parse integers as int wherever a setting takes int or float.

        Lightning takes a limit of 1 for one batch and 1.0 for all of them. Its `Optional[Union[int, float]]` is the
        `Optional[Union[float, int]]` of whichever module was imported first, because typing caches a single object for
        both.
        """
        for action in self._actions:
            types = get_args(getattr(action, "_typehint", None))
            if len(types) == 3 and all(kind in types for kind in (int, float, type(None))):
                action._typehint = int | float | None  # type: ignore[attr-defined]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        user_error = user_error_of(ex)
        if user_error is None:
            message = message.strip().removesuffix(".")
            named = re.search(r"(?:unrecognized arguments: (?:--)?|[Oo]ption '|[Kk]ey ')([\w.]+)", message)
            keys = all_keys()
            if unknown := re.match(r'(Parser key "data":)[^$]*import path string: (\w+)$', message, re.MULTILINE):
                near = nearest(unknown[2], vars(data_module)) or f" One of your own is MODULE.{unknown[2]}."
                raise UserError(f"{unknown[1]} there is no class {unknown[2]}.{near}") from ex
            if named and "is not accepted" in message:  # by this class: another class may have such an argument
                keys = {name for name in keys if name.rpartition(".")[2] != named[1]}
            user_error = UserError(f"{message}.{nearest(named[1], keys) if named else ''}")
        raise user_error from ex


def user_error_of(error: BaseException | None) -> UserError | None:
    """The error of an argument's class, unwrapped from jsonargparse's or a loader process's."""
    while error is not None:
        if isinstance(error, UserError):
            in_worker = "Original Traceback" in str(error)
            return UserError(str(error).rpartition("Error: ")[2].strip()) if in_worker else error
        error = error.__cause__ or error.__context__
    return None


def all_keys() -> set[str]:
    """Every key that may be given to `fit`."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(L.Trainer, "trainer")
    add_options(parser)
    parser.add_class_arguments(SpikingClassifier, "model")
    keys = {"config", "seed_everything", "ckpt_path", "data.class_path", "model.optimizer"}
    keys |= {*parser.get_defaults(skip_validation=True).keys()}
    for kind in vars(data_module).values():
        if isinstance(kind, type) and issubclass(kind, SpikingDataModule):
            keys |= {f"data.{name}" for name in inspect.signature(kind).parameters}
    return keys - {f"model.{name}" for name in FROM_DATA}


def nearest(written: str, keys: Iterable[str]) -> str:
    """` Did you mean X?` for the key with the most similar last part, or nothing."""
    block, _, name = written.replace("init_args.", "").rpartition(".")
    by_name = {full.rpartition(".")[2]: full for full in sorted(keys, key=lambda full: full.startswith(block))}
    matches = difflib.get_close_matches(name, by_name, n=1, cutoff=0.7)
    return f" Did you mean {by_name[matches[0]]}?" if matches else ""


def refuse_silent(config: Any, command: str, names: Iterable[str]) -> None:
    """Refuse values with which something else would be trained or measured than they say.

    Args:
        config: configuration of the command.
        command: fit, validate, test or predict.
        names: names of the options on the command line.

    Raises:
        UserError: there is such a value.
    """
    for name in ("model", "data", "trainer"):
        if not isinstance(config[name], Namespace):
            raise UserError(f"{name} must hold names and values, got {config[name]}.")
    if (problem := next(_silent(config, command, names), None)) is not None:
        raise UserError(problem)


def _silent(config: Any, command: str, names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each value that `refuse_silent` refuses."""
    trainer, on_gpu = config.trainer, CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    for name in ("max_epochs", "max_steps", "accumulate_grad_batches", "check_val_every_n_epoch"):
        if isinstance(trainer[name], int) and trainer[name] != -1 and trainer[name] < 1:
            yield f"trainer.{name} must be a whole number, at least 1, got {trainer[name]}."
    above = {"fit": ["train"], "predict": ["predict"], "validate": ["val"], "test": ["test"]}[command]
    above += ["test"] if command == "fit" and config.test_after_fit else []
    for name in [*(f"limit_{stage}_batches" for stage in above), "val_check_interval"]:
        if trainer[name] == 0:
            yield f"trainer.{name} must be above 0, or nothing is trained or measured."
    if (clip := trainer.gradient_clip_val) is not None and clip < 0:
        yield f"trainer.gradient_clip_val must not be negative, got {clip}."
    yield from _of_this_machine(config, on_gpu)
    if trainer.overfit_batches:
        yield "trainer.overfit_batches would replace the data's order: pass limit_train_batches instead."
    yield from _of_other_commands(config, command, names)
    if config.model.network is not None and config.model.structure is not None and "--model.structure" in names:
        yield "--model.structure and --model.network describe two networks: give one of them."


def _of_other_commands(config: Any, command: str, names: Iterable[str]) -> Iterator[str]:
    for option in fields(Options):
        of = {"engine": ("predict", "test"), "task": (command,)}.get(option.name, ("fit",))
        # An evaluation's configuration is that of the fit.
        has_value = config.get(option.name) is not None and option.name in ("engine", "run_folder")
        if command not in of and (has_value or f"--{option.name}" in names):
            yield f"{option.name} is for {' and '.join(of)}: leave it out for {command}."


def _of_this_machine(config: Any, on_gpu: bool) -> Iterator[str]:
    trainer, max_workers = config.trainer, 8 * cores()
    for name, value in (("data.num_workers", config.data.init_args.num_workers), ("trainer.devices", trainer.devices)):
        if str(value).isdecimal() and int(value) > max_workers:
            yield f"{name} starts as many processes, at most {max_workers} on this machine, got {value}."
    if str(trainer.precision).startswith("16") and (trainer.accelerator == "cpu" or not on_gpu):
        yield f"--trainer.precision {trainer.precision} needs a GPU: on a CPU pass bf16-mixed or 32-true."
