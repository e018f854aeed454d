"""What a checkpoint, and a configuration's bare name, do to the arguments, before any parser sees them."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plif_lightning import configs
from plif_lightning.cli.arguments import take, values
from plif_lightning.cli.commands import EVALUATIONS
from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.settings import comparable, flat, key_of

# Arguments of the network that the data set gives: they are not keys.
FROM_DATA = ("input_shape", "num_classes", "time_steps")
CONFIG = ("--config", "-c")
_INFORMATIVE = {"--help-all", "--print_config"}


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says beside its weights; of none, nothing.

    Attributes:
        config: of the run that wrote it.
        step: at which it was written.
        epochs: that were whole then.
        training_set: identity of the training set of its run.
        reading: how that run read its data.
    """

    config: dict[str, Any] | None = None
    step: int = 0
    epochs: int = 0
    training_set: str | None = None
    reading: str | None = None


@dataclass(frozen=True)
class Expanded:
    """The arguments of a command, and what a checkpoint among them says.

    Attributes:
        given: as the user wrote them.
        arguments: for the parser: configurations as files, and a checkpoint's own configuration before what is given.
        stored: what the checkpoint holds.
        folder: of the run to be resumed, or whose checkpoint is evaluated.
        resumes: whether the same arguments begin a run or go on with it (`--resume auto`).
    """

    given: list[str]
    arguments: list[str]
    stored: Stored = Stored()
    folder: RunFolder | None = None
    resumes: bool = False

    @property
    def command(self) -> str:
        return self.given[0]


def expand(argv: Sequence[str]) -> Expanded:
    """Resolve `--ckpt_path` and `--resume`, and put the configuration stored in a checkpoint before the arguments.

    Args:
        argv: the command and its arguments.

    Raises:
        CheckpointError: an evaluation has no checkpoint, or the one that is named is none.
        UserError: there is no such configuration.
    """
    given = list(argv)
    command, rest = given[0], given[1:]
    for value in values(rest, *CONFIG):
        config_file(value)  # refuses what cannot be one before Lightning is loaded
    if _INFORMATIVE & {argument.split("=")[0] for argument in rest}:
        shown = ("--help" if a == "--help-all" else a for a in take(rest, "--resume")[1])
        return Expanded(given, [command, *shown])
    resume, rest = take(rest, "--resume")
    if resume:
        return _resumed(given, resume, rest)
    named, others = take(rest, "--ckpt_path")
    if not named:
        if command in EVALUATIONS:
            raise CheckpointError(
                f"{command} needs a checkpoint, or it would measure random weights: "
                f"pass --ckpt_path RUN/checkpoints/best.ckpt."
            )
        return Expanded(given, given)
    if len(named) > 1:
        raise CheckpointError(f"--ckpt_path must be given once, got {' and '.join(named)}.")
    if not named[0]:
        raise CheckpointError("--ckpt_path needs a file, such as RUN/checkpoints/last.ckpt.")
    if command in EVALUATIONS:
        return _evaluation(given, named[0], others)
    in_place = named[0] == "last"
    path = _last_of(others) if in_place else Path(named[0])
    stored = read_checkpoint(path)
    if "class_path" not in (stored.config or {}).get("data", {}):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it names no data set to resume with.")
    folder = RunFolder.of_checkpoint(path) if in_place else None
    return Expanded(given, [command, *others, f"--ckpt_path={path}"], stored, folder)


def _resumed(given: list[str], resume: list[str], rest: list[str]) -> Expanded:
    """The arguments of `fit --resume auto --run_folder DIR`: those of a new run, or of one that is resumed."""
    command = given[0]
    if resume != ["auto"]:
        raise UserError(f"--resume must be auto, got {' '.join(filter(None, resume)) or 'nothing'}.")
    if command != "fit":
        raise UserError(f"--resume auto is for fit, not for {command}.")
    folders, others = take(rest, "--run_folder")
    if len(folders) != 1 or values(rest, "--ckpt_path"):
        raise UserError("--resume auto needs --run_folder DIR, the run to start or to resume, and no --ckpt_path.")
    if not folders[0].strip():
        raise UserError("run_folder must name a folder, got nothing.")
    folder = RunFolder(Path(folders[0]).absolute())
    if not folder.last.is_file():
        return Expanded(given, [command, *rest], resumes=True)
    stored = read_checkpoint(folder.last)
    return Expanded(given, [command, *others, f"--ckpt_path={folder.last}"], stored, folder, resumes=True)


def _evaluation(given: list[str], named: str, others: list[str]) -> Expanded:
    """The arguments of an evaluation of a checkpoint, with its own configuration before them."""
    command = given[0]
    if named == "last":
        raise CheckpointError(f"{command} needs the file: pass --ckpt_path RUN/checkpoints/last.ckpt.")
    path = Path(named)
    stored = read_checkpoint(path)
    assert stored.config is not None
    arguments = _evaluated(stored.config, [*others, f"--ckpt_path={path}"])
    return Expanded(given, [command, *arguments], stored, RunFolder.of_checkpoint(path))


def _evaluated(stored: dict[str, Any], rest: list[str]) -> list[str]:
    """The arguments of an evaluation, after what of the stored configuration counts in one.

    Raises:
        CheckpointError: neither names a data set.
    """
    # Left out: what acts in training alone. It names classes, in a stranger's checkpoint any.
    model = {name: value for name, value in stored["model"].items() if not key_of(f"model.{name}").training}
    arguments = stored["data"]["init_args"]
    data = {**stored["data"], "init_args": {name: v for name, v in arguments.items() if name != "augmentation"}}
    kept: dict[str, Any] = {"model": model}
    if "seed_everything" in stored:
        kept["seed_everything"] = stored["seed_everything"]
    if "precision" in stored.get("trainer", {}):
        kept["trainer"] = {"precision": stored["trainer"]["precision"]}
    if "class_path" in data:
        kept["data"] = data
    elif not values(rest, "--data") and not values(rest, *CONFIG):
        raise CheckpointError(
            "the checkpoint names no data set, as none of another Trainer does: pass --data NAME, such as --data MNIST."
        )
    elif not values(rest, "--data.time_steps"):
        rest = [*rest, f"--data.time_steps={data['init_args']['time_steps']}"]
    return [f"--config={yaml.safe_dump(kept)}", *rest]


def config_file(value: str) -> str:
    """The file of a configuration that is given by its path or bare name; one that is YAML itself as it is.

    Raises:
        UserError: there is no such configuration.
    """
    if is_yaml_text(value):
        return value
    if not value:
        raise UserError("--config needs the name or the path of a configuration, got nothing.")
    path = configs.resolve(value)
    _require_configuration(path)
    return str(path)


def _require_configuration(path: Path) -> None:
    """Says what is wrong with a file that can be no configuration, where jsonargparse would fail in its own ways."""
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
        json.dumps(loaded, default=str)  # a structure that holds itself has no end
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the configuration {path} cannot be read as text: {error}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"the configuration {path} is not YAML: {' '.join(str(error).split())}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the configuration {path} holds a part that contains itself.") from error
    if not isinstance(loaded, dict):
        raise UserError(f"the configuration {path} must hold names and values, got {type(loaded).__name__}.")
    for name in ("model", "trainer", "checkpoint"):
        if not isinstance(loaded.get(name, {}), dict):
            raise UserError(f"{name} in {path} must hold names and values, got {loaded[name]!r}.")


def is_yaml_text(value: str) -> bool:
    """Whether the value of `--config` is a configuration itself, and not the name of one."""
    return "\n" in value or ": " in value


def _last_of(argv: Sequence[str]) -> Path:
    """`last.ckpt` of the run whose configuration is given with `--config RUN/config.yaml`."""
    tried = [RunFolder(Path(value).parent).last for value in values(argv, *CONFIG)]
    for path in reversed(tried):
        if path.is_file():
            return path
    raise CheckpointError(
        "--ckpt_path last resumes a run, named by --config RUN/config.yaml, but there is no "
        f"{' or '.join(map(str, tried)) or 'such configuration'}. Leave --ckpt_path out to start a new run."
    )


def read_checkpoint(path: Path) -> Stored:
    """What is stored in a checkpoint.

    Raises:
        CheckpointError: there is no such file, or it is not a whole checkpoint of this project.
    """
    from plif_lightning.network.loading import configuration_in, load_checkpoint  # which loads PyTorch

    checkpoint = load_checkpoint(path, mapped=True)
    config, hyper_parameters = configuration_in(checkpoint, path), checkpoint.get("hyper_parameters")
    if not config and isinstance(hyper_parameters, dict) and "time_steps" in hyper_parameters:
        # Another Trainer's: the network's arguments are there, its data are not.
        config = {"model": {name: value for name, value in hyper_parameters.items() if name not in FROM_DATA}}
        config["data"] = {"init_args": {"time_steps": hyper_parameters["time_steps"]}}
    if not config or not isinstance(checkpoint.get("global_step"), int):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it holds no configuration.")
    done: Any = checkpoint
    for name in ("loops", "fit_loop", "epoch_progress", "current"):
        done = done.get(name) if isinstance(done, dict) else None
    epochs = done.get("processed") if isinstance(done, dict) else checkpoint.get("epoch", 0)
    texts = (checkpoint.get(name) for name in ("training_set", "reading"))
    return Stored(
        config,
        checkpoint["global_step"],
        epochs if isinstance(epochs, int) else 0,
        *(text if isinstance(text, str) else None for text in texts),
    )


def refuse_other_settings(expanded: Expanded, given: dict[str, Any]) -> None:
    """Compares the configuration that was parsed with the one stored in the checkpoint.

    Raises:
        CheckpointError: they differ in what the checkpoint's weights, split or next batches depend on.
    """
    stored = expanded.stored.config
    assert stored is not None
    # What an older checkpoint does not name had the default then.
    defaults = {"model": model_defaults()}
    old, new = {**comparable(defaults), **comparable(stored)}, comparable(given)
    there, here = {**flat(defaults), **flat(stored)}, flat(given)
    differences = [
        f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and _must_agree(name, expanded.command, stored)
    ]
    if differences:
        raise CheckpointError(
            f"the checkpoint belongs to other settings: {'; '.join(differences)}. "
            "Leave them out, or start a new run in another folder."
        )


def _must_agree(name: str, command: str, stored: dict[str, Any]) -> bool:
    """True if a setting must be that of the checkpoint: for training on with it, or for a fair evaluation of it."""
    key = key_of(name)
    if key.identity == "never":
        return False
    if command == "fit":
        return key.fixed
    if name.startswith("model."):
        return not key.training
    if "class_path" not in stored["data"]:  # another Trainer's: only T is known
        return name == "data.time_steps"
    held_out = stored["data"]["init_args"].get("validation") == "holdout"
    return key.split == "always" or (held_out and key.split == "holdout")


def refuse_shorter(expanded: Expanded, trainer: dict[str, Any]) -> None:
    """Compares how long a run that goes on is to be with how long it has been.

    Raises:
        CheckpointError: it is longer already.
    """
    stored = expanded.stored
    for name, what, done in (("max_epochs", "epochs", stored.epochs), ("max_steps", "steps", stored.step)):
        limit = trainer.get(name)
        if limit is not None and 0 <= limit < done:
            raise CheckpointError(
                f"the run has {done} {what} already, and trainer.{name} is {limit}: leave it out, or start a new run "
                "in another folder."
            )


def model_defaults() -> dict[str, Any]:
    """Of the arguments of a task and its network."""
    from plif_lightning.network.network import DEFAULTS
    from plif_lightning.training.task import SpikingClassifier

    own = {name: p.default for name, p in inspect.signature(SpikingClassifier).parameters.items()}
    plain = {name: value for name, value in own.items() if value is not inspect.Parameter.empty and not callable(value)}
    return {**DEFAULTS, **plain}
