"""The starting point of a command: a run to resume, a checkpoint to evaluate or to begin from, or nothing."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from plif_lightning import configs
from plif_lightning.cli.parser import option_names, parsed_yaml, take, values
from plif_lightning.errors import CheckpointError, Stopped, UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.record import Record, read_record
from plif_lightning.runs.run import read_run
from plif_lightning.runs.settings import Role, names_class, role, setting_in
from plif_lightning.runtime.files import atomic_write, relative
from plif_lightning.structure import FROM_DATA, NUMBERS

_log = logging.getLogger(__name__)
CONFIG = ("--config", "-c")
EVALUATIONS = ("validate", "test", "predict")
_INFORMATIVE = {"--help", "-h", "--print_config", "--data.help", "--model.neuron.help", "--trainer.callbacks.help"}


@dataclass(frozen=True)
class Origin:
    """Facts of the run that wrote a checkpoint; empty without a checkpoint.

    Attributes:
        config: configuration of the run.
        settings: the run's identity, see `plif_lightning.runs.settings`; None for another Trainer's checkpoint.
        step: global step.
        epochs: number of completed epochs.
        training_set: identity of the run's training set.
        reading: how the run read its data.
    """

    config: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    step: int = 0
    epochs: int = 0
    training_set: str | None = None
    reading: str | None = None


@dataclass(frozen=True)
class Start:
    """The starting point of a command.

    Attributes:
        user_arguments: as the user wrote them.
        arguments: for the parser: `start_of` names what differs from the user's.
        config: file of the stored configuration among them; None without.
        folder: folder of the run that is resumed or evaluated; None for a checkpoint that lies in none.
        origin: of the checkpoint that is evaluated; that of a resumed run is read once its folder is locked.
        begun_from: checkpoint of another run from which a new run begins.
        is_named: the run has a folder that the same arguments lead to again.
    """

    user_arguments: list[str]
    arguments: list[str]
    config: Path | None = None
    folder: RunFolder | None = None
    origin: Origin = Origin()
    begun_from: str | None = None
    is_named: bool = False

    @property
    def command(self) -> str:
        return self.user_arguments[0]


def start_of(argv: Sequence[str], resources: ExitStack) -> Start:
    """Find the starting point of a command, before any parser reads its arguments. These are rewritten:

    - `--model my_task.Task` to `--task`, because `model` holds the arguments of a fixed class;
    - the numbers of Table 1 to null before each structure, which jsonargparse would join with those of a configuration;
    - `--run_folder DIR` and `--ckpt_path RUN/checkpoints/last.ckpt` to both, behind `--config DIR/config.yaml`, where
      they resume a run and name no data set; a run without a checkpoint begins as it was called;
    - an evaluation begins with `--config FILE`, its checkpoint's configuration without the settings of training.

    Args:
        argv: the command and its arguments.
        resources: until the end of the command.

    Raises:
        CheckpointError: an evaluation has no checkpoint, or the file is not a checkpoint.
        UserError: a configuration does not exist.
        Stopped: the run of `fit --run_folder` is finished and kept no checkpoint.
    """
    command, rest = argv[0], _with_task(argv[1:])
    for value in values(rest, *CONFIG):
        configs.resolve(value)  # refuses a wrong name before Lightning is loaded
    if _INFORMATIVE & option_names(rest):
        start = Start(list(argv), [command, *rest])
    elif command in EVALUATIONS:
        start = _evaluation(command, rest, resources)
    else:
        start = _fit(command, rest)
    return replace(start, arguments=_with_structures(start.arguments))


def _with_task(arguments: Sequence[str]) -> list[str]:
    """`--model my_task.Task`, the import path of a subclass, as `--task`; `--model` with a mapping stays."""
    rest = list(arguments)
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        given = value if equals else " ".join(arguments[i + 1 : i + 2])
        if name == "--model" and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", given):
            rest[i] = argument.replace("--model", "--task", 1)
    return rest


def task_in(arguments: Sequence[str]) -> str | None:
    """Import path of the task that arguments name, themselves or in configurations; the last one counts."""
    found = [setting_in(read_config(config), "task") for config in values(arguments, *CONFIG)]
    named = [name for name in (*found, *values(arguments, "--task")) if name]
    return named[-1] if named else None


def _single_value(name: str, values: Sequence[str]) -> str | None:
    """The value of an option that may be given once."""
    if len(values) > 1 or values == [""]:
        raise UserError(f"{name} must be given once, with a path, got {' and '.join(values) or 'nothing'}.")
    return values[0] if values else None


def _expand_variables(folder: str) -> Path:
    """A run's folder with the values of environment variables: W&B's agents, without a shell, pass `$WANDB_RUN_ID`."""
    path = os.path.expandvars(folder)
    if "$" in path:
        raise UserError(f"--run_folder {folder} names an environment variable that is not set.")
    return Path(path)


def _fit(command: str, rest: list[str]) -> Start:
    """`fit --run_folder DIR` and `--ckpt_path RUN/checkpoints/last.ckpt` resume a run that has begun."""
    checkpoint, others = take(rest, "--ckpt_path")
    folders, options = take(others, "--run_folder")
    path, named = _single_value("--ckpt_path", checkpoint), _single_value("--run_folder", folders)
    folder = None if named is None else RunFolder(_expand_variables(named).absolute())
    if folder is None and path is not None and Path(path).is_file():
        its_run = RunFolder.of_checkpoint(Path(path))
        if its_run.last == Path(path).resolve():
            folder, path = its_run, None
    argv = [command, *rest]
    if folder is not None and folder.last.is_file():
        return _resumed(argv, folder, path, options)
    record = Record() if folder is None else read_record(folder)
    if folder is not None and record.ended is not None:
        raise Stopped(0, finished_in_words(folder))
    if folder is not None and not _names_data(options):  # it ended before its first checkpoint
        origin, begun = _first_call(folder, record)
        path, options = path or _single_value("--ckpt_path", origin), [*begun, *options]
        argv = [command, *options, *([f"--ckpt_path={path}"] if path else []), f"--run_folder={named}"]
    if path is not None and setting_in(origin_of(Path(path)).config or {}, "model.folded"):
        raise CheckpointError(f"{path} is folded, and cannot be trained: begin from the checkpoint of its run.")
    of_folder = [] if folder is None else [f"--run_folder={folder.path}"]
    arguments = [command, *options, *of_folder, *([] if path is None else [f"--ckpt_path={path}"])]
    return Start(argv, arguments, begun_from=path, is_named=named is not None)


def _resumed(argv: list[str], folder: RunFolder, path: str | None, options: list[str]) -> Start:
    """Resume a run from its last checkpoint, with its stored configuration unless the options name a data set."""
    begun_from = Identity.of_record(read_record(folder)).settings.get("ckpt_path")
    if path not in (None, begun_from):
        raise CheckpointError(
            f"{folder.path} holds a run that began from {begun_from or 'new weights'}, not from {path}."
        )
    config = None if _names_data(options) else folder.config
    if config is not None and not config.is_file():
        raise UserError(f"{config} is missing: pass the run's configuration, such as --config NAME, too.")
    stored = [] if config is None else [f"--config={config}"]
    arguments = [argv[0], *stored, *options, f"--run_folder={folder.path}", f"--ckpt_path={folder.last}"]
    return Start(argv, arguments, config, folder, is_named=True)


def _first_call(folder: RunFolder, record: Record) -> tuple[list[str], list[str]]:
    """Values of --ckpt_path, and the other options, with which a run was called first."""
    sessions = record.sessions
    if not sessions or not sessions[0].arguments:
        raise UserError(
            f"{folder.path} holds no run to resume: start it with its data set, such as fit --config NAME "
            f"--run_folder {relative(folder.path)}."
        )
    return take(take(sessions[0].arguments[1:], "--run_folder")[1], "--ckpt_path")


def origin_of_last(folder: RunFolder) -> Origin:
    """`origin_of` the last.ckpt of a run whose folder is locked; a damaged one is replaced by an intact best.ckpt.

    Raises:
        CheckpointError: both are damaged.
    """
    try:
        return origin_of(folder.last)
    except CheckpointError as damage:
        if not folder.best.is_file() or folder.best.samefile(folder.last):
            raise CheckpointError(
                f"{damage} There is no other best.ckpt, so the run cannot be resumed: put a copy of the file there, or "
                "start it again in another --run_folder."
            ) from damage
        origin = origin_of(folder.best)
        with atomic_write(folder.last, "wb") as file:
            file.write(folder.best.read_bytes())
        _log.warning(
            "%s The run is resumed from best.ckpt: epochs from %d on are trained again.", damage, origin.epochs + 1
        )
        return origin


def _names_data(argv: Sequence[str]) -> bool:
    """True if arguments describe a complete run: they name its data set."""
    class_paths = [setting_in(read_config(config), "data.class_path") for config in values(argv, *CONFIG)]
    return bool({"--data", "--data.class_path"} & option_names(argv)) or any(class_paths)


def finished_in_words(folder: RunFolder) -> str:
    run = read_run(folder.path)
    accuracy = "" if run.accuracy is None else f", {100 * run.accuracy:.2f} %"
    return f"{relative(folder.path)} is finished{accuracy}: nothing to do."


def _evaluation(command: str, rest: list[str], resources: ExitStack) -> Start:
    """The configuration of the checkpoint comes first.

    Raises:
        CheckpointError: there is no checkpoint; or neither it nor an option names a data set.
    """
    checkpoint, options = take(rest, "--ckpt_path")
    named = _single_value("--ckpt_path", checkpoint)
    if named is None or named == "last":
        raise CheckpointError(
            f"{command} needs a checkpoint, or it would measure random weights: "
            f"pass --ckpt_path RUN/checkpoints/best.ckpt."
        )
    from plif_lightning.network.storage.checkpoint import checkpoint_file

    path = checkpoint_file(Path(named))
    origin = origin_of(path)
    assert origin.config is not None
    if "model.network" in (origin.settings or {}) and not origin.config["model"].get("network"):
        raise CheckpointError(
            f"{path} holds a user-defined network that its class does not make, such as one with rounded delays: "
            "measure it in Python, with load_network(path, network)."
        )
    if not names_class(origin.config["data"]):
        if not values(options, "--data") and not values(options, *CONFIG):
            raise CheckpointError(
                "the checkpoint names no data set because another Trainer wrote it: pass --data NAME, such as --data "
                "MNIST."
            )
        if not values(options, "--data.time_steps"):
            options = [*options, f"--data.time_steps={origin.config['data']['init_args']['time_steps']}"]
    config = Path(resources.enter_context(TemporaryDirectory(prefix="plif_lightning_")), "config.yaml")
    config.write_text(yaml.safe_dump(_config_of_evaluation(origin.config)), "utf-8")
    arguments = [command, f"--config={config}", *options, f"--ckpt_path={path}"]
    its_run = RunFolder.of_checkpoint(path)
    return Start([command, *rest], arguments, config, its_run if its_run.record.is_file() else None, origin)


def _with_structures(arguments: Sequence[str]) -> list[str]:
    """Set the numbers of Table 1 to null before each structure, so that earlier ones do not change it.

    Numbers behind a structure change it, as in a sweep.
    """
    expanded: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        value = value if equals else following
        if name == "--model.structure" or (name in (*CONFIG, "--model") and _has_structure(name, value)):
            expanded += [f"--model.{number}=null" for number in NUMBERS]
        expanded.append(argument)
    return expanded


def _has_structure(name: str, value: str) -> bool:
    """True if a configuration, or a mapping for `--model`, holds a structure."""
    model = parsed_yaml(value, name) if name == "--model" else read_config(value).get("model")
    return isinstance(model, dict) and model.get("structure") is not None


def _config_of_evaluation(stored: dict[str, Any]) -> dict[str, Any]:
    """The parts of a stored configuration that affect an evaluation."""
    # Optimiser, schedule and augmentation are dropped: they may name any class to import, and an evaluation uses none.
    # data.class_path is imported, and must be a SpikingDataModule.
    model = {name: value for name, value in stored["model"].items() if not role(f"model.{name}") & Role.TRAINING}
    _require_modules(model.get("network"))
    config: dict[str, Any] = {"model": model, "task": stored.get("task")}
    if "seed_everything" in stored:
        config["seed_everything"] = stored["seed_everything"]
    if "precision" in stored.get("trainer", {}):
        config["trainer"] = {"precision": stored["trainer"]["precision"]}
    if names_class(stored["data"]):
        used = {name: value for name, value in stored["data"]["init_args"].items() if name != "augmentation"}
        config["data"] = {**stored["data"], "init_args": used}
    return config


def _require_modules(named: Any) -> None:
    """Refuse a user-defined network that a checkpoint names unless it and its parts are modules.

    Raises:
        UserError: a class is something else, or cannot be imported.
    """
    from plif_lightning.network.user_networks import imported_network  # which loads PyTorch

    if names_class(named) and isinstance(named["class_path"], str):
        imported_network(named["class_path"])
    for value in named.values() if isinstance(named, dict) else named if isinstance(named, list) else ():
        _require_modules(value)


def require_data_set(block: dict[str, Any]) -> None:
    """Refuse a stored `data` block with a class that cannot be imported here.

    Raises:
        UserError: it is missing, or no data set.
    """
    from plif_lightning.data import SpikingDataModule  # which loads PyTorch
    from plif_lightning.network.user_networks import import_class

    if names_class(block):
        import_class("data set", block["class_path"], SpikingDataModule, "plif_lightning.data.SpikingDataModule")


def read_config(config: str) -> dict[str, Any]:
    """Return the content of a configuration, given by path or name.

    Empty if it cannot be read or holds something else: the parser reports that.
    """
    try:
        content = parsed_yaml(configs.resolve(config).read_text("utf-8"), config)
    except (OSError, UserError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def origin_of(path: Path) -> Origin:
    """Read the facts of a checkpoint's run, without its weights.

    Raises:
        CheckpointError: the file does not exist, or is not a complete checkpoint of this project.
    """
    from plif_lightning.network.storage.checkpoint import configuration_in, load_checkpoint  # which loads PyTorch

    checkpoint = load_checkpoint(path, mapped=True)
    config = configuration_in(checkpoint) or _of_another_trainer(checkpoint)
    if not config or not isinstance(checkpoint.get("global_step"), int):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it holds no configuration.")
    epochs = setting_in(checkpoint, "loops.fit_loop.epoch_progress.current.processed", 0)
    parts = (checkpoint.get(name) for name in ("training_set", "reading"))
    return Origin(config, checkpoint.get("settings"), checkpoint["global_step"], epochs, *parts)


def _of_another_trainer(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration made of the hyperparameters that another Trainer stored: the network, and T of its data.

    Empty if there are none.
    """
    stored = checkpoint.get("hyper_parameters")
    if not isinstance(stored, dict) or "time_steps" not in stored:
        return {}
    return {
        "model": {name: value for name, value in stored.items() if name not in FROM_DATA},
        "data": {"init_args": {"time_steps": stored["time_steps"]}},
    }
