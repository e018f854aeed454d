"""The starting point of a command: a run to resume, a checkpoint to evaluate or to begin from, or nothing."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from plif_lightning import configs
from plif_lightning.cli.parser import option_names, parsed_yaml, take, values
from plif_lightning.errors import CheckpointError, Stopped, UserError
from plif_lightning.runs.code import PACKAGE, difference, hashes_of, sources_of
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.loading import load_mapping
from plif_lightning.runs.lock import lock_run
from plif_lightning.runs.run import read_run
from plif_lightning.runs.settings import Role, role, setting_in
from plif_lightning.runtime import program
from plif_lightning.runtime.files import atomic_write, relative
from plif_lightning.structure import FROM_DATA, Numbers

_log = logging.getLogger(__name__)
CONFIG = ("--config", "-c")
EVALUATIONS = ("validate", "test", "predict")
_INFORMATIVE = {"--help", "-h", "--print_config", "--data.help", "--model.neuron.help", "--trainer.callbacks.help"}


@dataclass(frozen=True)
class Stored:
    """Content of a checkpoint other than its weights; empty without a checkpoint.

    Attributes:
        config: configuration of the run that wrote it.
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
class Expanded:
    """Arguments of a command, and its starting point.

    Attributes:
        user_arguments: as the user wrote them.
        arguments: arguments for the parser; for evaluations, and resumed fits that name no data set, they begin
            with the stored configuration.
        stored: content of the checkpoint of a run that is resumed or evaluated.
        folder: folder of that run; None for another checkpoint's.
        begun_from: checkpoint of another run from which a new run begins.
        is_named: the run has a folder that the same arguments lead to again.
    """

    user_arguments: list[str]
    arguments: list[str]
    stored: Stored = Stored()
    folder: RunFolder | None = None
    begun_from: str | None = None
    is_named: bool = False

    @property
    def command(self) -> str:
        return self.user_arguments[0]


def expand(argv: Sequence[str]) -> Expanded:
    """Find the starting point of a command, before any parser reads its arguments.

    Args:
        argv: the command and its arguments.

    Raises:
        CheckpointError: an evaluation has no checkpoint, or the file is not a checkpoint.
        UserError: a configuration does not exist.
        Stopped: the run of `fit --run_folder` is finished and kept no checkpoint.
    """
    command, rest = argv[0], _with_task(argv[1:])
    for value in values(rest, *CONFIG):
        config_file(value)  # refuses a wrong name before Lightning is loaded
    if _INFORMATIVE & option_names(rest):
        expanded = Expanded(list(argv), [command, *rest])
    else:
        expanded = (_evaluation if command in EVALUATIONS else _fit)(command, rest)
    return replace(expanded, arguments=_with_structures(expanded.arguments))


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
    found = [setting_in(content_of(config), "task") for config in values(arguments, *CONFIG)]
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


def _fit(command: str, rest: list[str]) -> Expanded:
    """`fit --run_folder DIR` and `--ckpt_path RUN/checkpoints/last.ckpt` resume a run that has begun."""
    argv = [command, *rest]
    checkpoint, rest = take(rest, "--ckpt_path")
    folders, options = take(rest, "--run_folder")
    path, named = _single_value("--ckpt_path", checkpoint), _single_value("--run_folder", folders)
    resumed = f"{program.program_name()} fit --run_folder RUN starts the run of a folder, or resumes it"
    if "--resume" in option_names(rest) or path == "last":
        raise UserError(f"{'--resume auto' if path != 'last' else '--ckpt_path last'} is not needed: {resumed}.")
    folder = None if named is None else RunFolder(_expand_variables(named).absolute())
    if folder is None and path is not None and Path(path).is_file():
        of_run = RunFolder.of_checkpoint(Path(path))
        if of_run.last == Path(path).resolve():
            folder, path = of_run, None
    if folder is not None and folder.last.is_file():
        stored = _read_last(folder)
        origin = (load_mapping(folder.record, [], optional=True).get("settings") or {}).get("ckpt_path")
        if path not in (None, origin):
            raise CheckpointError(
                f"{folder.path} holds a run that began from {origin or 'new weights'}, not from {path}."
            )
        stored_config = [] if _names_data(options) else [f"--config={yaml.safe_dump(stored.config)}"]
        arguments = [command, *stored_config, *options, f"--run_folder={folder.path}", f"--ckpt_path={folder.last}"]
        return Expanded(argv, arguments, stored, folder, is_named=True)
    record = {} if folder is None else load_mapping(folder.record, [], optional=True)
    if folder is not None and "ended" in record:
        raise Stopped(0, _finished_in_words(folder))
    if folder is not None and not _names_data(options) and not _INFORMATIVE & option_names(options):
        if not record.get("arguments"):
            raise UserError(
                f"{folder.path} holds no run to resume: start it with its data set, such as fit --config NAME "
                f"--run_folder {named}."
            )
        # It was ended before its first checkpoint, and begins again as it was called.
        origin, begun = take(take(record["arguments"][1:], "--run_folder")[1], "--ckpt_path")
        path, options = path or _single_value("--ckpt_path", origin), [*begun, *options]
        argv = [command, *options, *([f"--ckpt_path={path}"] if path else []), f"--run_folder={named}"]
    arguments = [command, *options, *([] if folder is None else [f"--run_folder={folder.path}"])]
    if path is not None:
        if setting_in(read_checkpoint(Path(path)).config or {}, "model.folded"):
            raise CheckpointError(f"{path} is folded, and cannot be trained: begin from the checkpoint of its run.")
        arguments.append(f"--ckpt_path={path}")
    return Expanded(argv, arguments, begun_from=path, is_named=named is not None)


def _read_last(folder: RunFolder) -> Stored:
    """Read last.ckpt; if it is damaged, replace it by an intact best.ckpt, with a warning.

    Raises:
        CheckpointError: both are damaged.
    """
    try:
        return read_checkpoint(folder.last)
    except CheckpointError as damage:
        if not folder.best.is_file() or folder.best.samefile(folder.last):
            same = " best.ckpt is the same file." if folder.best.is_file() else ""
            raise CheckpointError(
                f"{damage}{same} The run cannot be resumed: put a copy of the file there, or start it again in another "
                "--run_folder."
            ) from damage
        stored = read_checkpoint(folder.best)
        with lock_run(folder), atomic_write(folder.last, "wb") as file:
            file.write(folder.best.read_bytes())
        _log.warning(
            "%s The run is resumed from best.ckpt: epochs from %d on are trained again.", damage, stored.epochs + 1
        )
        return stored


def _names_data(argv: Sequence[str]) -> bool:
    """True if arguments describe a complete run: they name its data set."""
    class_paths = [setting_in(content_of(config), "data.class_path") for config in values(argv, *CONFIG)]
    return bool({"--data", "--data.class_path"} & option_names(argv)) or any(class_paths)


def _finished_in_words(folder: RunFolder) -> str:
    run = read_run(folder.path)
    accuracy = "" if run.accuracy is None else f", {100 * run.accuracy:.2f} %"
    return f"{relative(folder.path)} is finished{accuracy}: nothing to do."


def _evaluation(command: str, rest: list[str]) -> Expanded:
    """Put the configuration of the checkpoint first."""
    checkpoint, options = take(rest, "--ckpt_path")
    named = _single_value("--ckpt_path", checkpoint)
    if named is None or named == "last":
        raise CheckpointError(
            f"{command} needs a checkpoint, or it would measure random weights: "
            f"pass --ckpt_path RUN/checkpoints/best.ckpt."
        )
    path = Path(named)
    stored = read_checkpoint(path)
    assert stored.config is not None
    arguments = _evaluation_arguments(stored.config, [*options, f"--ckpt_path={path}"])
    return Expanded([command, *rest], [command, *arguments], stored, RunFolder.of_checkpoint(path))


def _with_structures(arguments: Sequence[str]) -> list[str]:
    """Set the numbers of Table 1 to null before each structure, so that earlier ones do not change it.

    Numbers behind a structure change it, as in a sweep.
    """
    expanded: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        value = value if equals else following
        if name == "--model.structure" or (name in (*CONFIG, "--model") and _has_structure(name, value)):
            expanded += [f"--model.{number}=null" for number in Numbers._fields]
        expanded.append(argument)
    return expanded


def _has_structure(name: str, value: str) -> bool:
    """True if a configuration, a path or YAML text, or a mapping for `--model` holds a structure."""
    model = content_of(f"model: {value}") if name == "--model" else content_of(value)
    return isinstance(model.get("model"), dict) and model["model"].get("structure") is not None


def _evaluation_arguments(stored: dict[str, Any], rest: list[str]) -> list[str]:
    """Return the arguments of an evaluation, after the parts of the stored configuration that affect it.

    Raises:
        CheckpointError: neither of the two names a data set.
    """
    # Optimiser, schedule and augmentation are dropped: they may name any class to import, and an evaluation uses none.
    # data.class_path is imported, and must be a SpikingDataModule.
    model = {name: value for name, value in stored["model"].items() if not role(f"model.{name}") & Role.TRAINING}
    _require_modules(model.get("network"))
    arguments = stored["data"]["init_args"]
    data = {**stored["data"], "init_args": {name: v for name, v in arguments.items() if name != "augmentation"}}
    config: dict[str, Any] = {"model": model, "task": stored.get("task")}
    if "seed_everything" in stored:
        config["seed_everything"] = stored["seed_everything"]
    if "precision" in stored.get("trainer", {}):
        config["trainer"] = {"precision": stored["trainer"]["precision"]}
    if "class_path" in data:
        config["data"] = data
    elif not values(rest, "--data") and not values(rest, *CONFIG):
        raise CheckpointError(
            "the checkpoint names no data set because another Trainer wrote it: pass --data NAME, such as --data MNIST."
        )
    elif not values(rest, "--data.time_steps"):
        rest = [*rest, f"--data.time_steps={data['init_args']['time_steps']}"]
    return [f"--config={yaml.safe_dump(config)}", *rest]


def _require_modules(named: Any) -> None:
    """Refuse a user-defined network that a checkpoint names unless it and its parts are modules.

    Raises:
        UserError: a class is something else, or cannot be imported.
    """
    from plif_lightning.network.user_networks import imported_network  # which loads PyTorch

    if isinstance(named, dict) and isinstance(named.get("class_path"), str):
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

    if "class_path" in block:
        import_class("data set", block["class_path"], SpikingDataModule, "plif_lightning.data.SpikingDataModule")


def config_file(value: str) -> str:
    """Return the path of a configuration given by path or name; YAML text is returned as it is.

    Raises:
        UserError: the configuration does not exist.
    """
    if is_yaml_text(value):
        return value
    return str(configs.resolve(value))


def content_of(config: str) -> dict[str, Any]:
    """Return the content of a configuration, given by path, name or YAML text.

    Empty if it cannot be read or holds something else: the parser reports that.
    """
    try:
        text = config if is_yaml_text(config) else configs.resolve(config).read_text("utf-8")
        content = parsed_yaml(text, config)
    except (OSError, UserError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def is_yaml_text(value: str) -> bool:
    """True if the value of `--config` is YAML itself, not a name or path."""
    return "\n" in value or ": " in value


def read_checkpoint(path: Path) -> Stored:
    """Read the content of a checkpoint other than its weights.

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
    return Stored(config, checkpoint.get("settings"), checkpoint["global_step"], epochs, *parts)


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


def compare(expanded: Expanded, parsed: dict[str, Any]) -> list[str]:
    """Compare the parsed configuration of a resumed fit or an evaluation with that of its checkpoint.

    Args:
        expanded: the command.
        parsed: its configuration, as plain values.

    Returns:
        Settings of an evaluation that affect its accuracy and differ from the run's.

    Raises:
        CheckpointError: they differ in a setting on which the checkpoint's weights, split or next batches depend.
        Stopped: the run is finished already.
    """
    stored, old, new = expanded.stored.config, expanded.stored.settings, Identity.of(parsed)
    if stored is None or old is None:
        return []
    changed = [name for name, *_ in new.compared_with(Identity(old))]
    if stored.get("seed_everything") != parsed.get("seed_everything"):
        changed.append("seed_everything")
    if expanded.command == "fit":
        refused = [name for name in changed if not role(name) & Role.LENGTH]
    else:
        changed, refused = _of_evaluation(changed, stored, parsed, new)
    if refused:
        values = ((name, _value(old, stored, name), _value(new.settings, parsed, name)) for name in refused)
        differing = "; ".join(f"{name} is {there} there, {here} here" for name, there, here in values)
        raise CheckpointError(
            f"the checkpoint belongs to other settings: {differing}. Leave them out, or start a new run"
            + (" with --config, --ckpt_path and another --run_folder." if expanded.command == "fit" else ".")
        )
    if expanded.command == "fit":
        _compare_length(expanded, stored["trainer"], parsed["trainer"], changed)
    if edited := _code_difference(expanded.folder, parsed):
        _refuse_or_name(edited, expanded, parsed)
        changed.append("code")
    return changed


def _of_evaluation(
    changed: Sequence[str], stored: Mapping[str, Any], parsed: Mapping[str, Any], new: Identity
) -> tuple[list[str], list[str]]:
    """Of changed settings, those that affect an accuracy, and of these the refused ones: a network's, a split's."""
    changed = [name for name in changed if not role(name) & Role.TRAINING]
    if "trainer.limit_test_batches" not in new.settings:  # testing all samples is always a valid test
        changed = [name for name in changed if name != "trainer.limit_test_batches"]
    of_data = ("data.class_path", "data.root")
    same_data = all(setting_in(stored, name) == setting_in(parsed, name) for name in of_data)
    of_network = {name for name in changed if name == "task" or name.startswith("model.")}
    return changed, [name for name in changed if name in of_network or (same_data and role(name) & Role.SPLIT)]


def _refuse_or_name(edited: str, expanded: Expanded, parsed: Mapping[str, Any]) -> None:
    """Refuse to resume with edited code that was not accepted; an evaluation names where the run's is."""
    if expanded.command == "fit" and not parsed.get("accept_edited_code"):
        raise CheckpointError(
            f"the code of the run was edited since:\n{edited}\nUndo it, start a new run in another --run_folder, "
            "or, where network and equations are as before, resume with --accept_edited_code true: the record says "
            "so, and the run is averaged with no other."
        )
    if expanded.command != "fit":
        code_folder = relative(expanded.folder.source("").parent) if expanded.folder else ""
        _log.warning("The code of the run was edited since; as it was, it is in %s:\n%s", code_folder, edited)


def _code_difference(folder: RunFolder | None, config: Mapping[str, Any]) -> str:
    """How the user's code differs from that of a run; empty if it does not, or if there is no run."""
    record = {} if folder is None else load_mapping(folder.record, [], optional=True)
    if folder is None or not record:
        return ""
    now = sources_of(config)
    here = Identity({}, code=hashes_of(now))
    # Changed files of this package are recorded, as another commit of it would be.
    edited = [name for name in here.edited_code(Identity.of_record(record)) if name != PACKAGE]
    paths = {name: folder.source(name) for name in edited}
    then = {name: path.read_text("utf-8") for name, path in paths.items() if path.is_file()}
    return difference(then, {name: now[name] for name in edited if name in now})


def _value(of: Mapping[str, Any], config: Mapping[str, Any], name: str) -> str:
    return repr(of[name] if name in of else setting_in(config, name))


def _compare_length(
    expanded: Expanded, stored: Mapping[str, Any], trainer: Mapping[str, Any], changed: Sequence[str]
) -> None:
    """Refuse a length that a resumed run has passed, or on which its callbacks depend; end a run that is finished."""
    assert expanded.folder is not None
    limits = ("max_epochs", "max_steps", "max_time")
    done = {"max_epochs": expanded.stored.epochs, "max_steps": expanded.stored.step}
    reached = {name: n for name, n in done.items() if trainer[name] is not None and 0 <= trainer[name] <= n}
    is_finished = "ended" in load_mapping(expanded.folder.record, [], optional=True)
    if is_finished and (reached or all(stored[name] == trainer[name] for name in limits)):
        raise Stopped(0, _finished_in_words(expanded.folder))
    for name, n in reached.items():
        if trainer[name] < n:
            raise CheckpointError(
                f"the run has {n} {name.removeprefix('max_')} already, and trainer.{name} is {trainer[name]}: leave it "
                "out, or start a new run in another folder."
            )
    if "trainer.max_epochs" in changed and "StochasticWeightAveraging" in str(stored["callbacks"]):
        raise CheckpointError(
            "trainer.max_epochs cannot be changed: StochasticWeightAveraging begins at a share of it. Leave it out, or "
            "start a new run in another folder."
        )
