"""Rewrite --ckpt_path and --resume, and check configurations, before any parser reads the arguments."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from plif_lightning import configs
from plif_lightning.cli.parser import option_names, parsed_yaml, take, values
from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.settings import comparable, flat, key_of
from plif_lightning.structure import FROM_DATA, Numbers

# Arguments of the network that its data set determines: they are not keys.
CONFIG = ("--config", "-c")
EVALUATIONS = ("validate", "test", "predict")
_T = TypeVar("_T")
_INFORMATIVE = {"--help", "-h", "--print_config", "--data.help", "--model.neuron.help", "--trainer.callbacks.help"}


@dataclass(frozen=True)
class Stored:
    """Content of a checkpoint other than its weights; empty without a checkpoint.

    Attributes:
        config: configuration of the run that wrote it.
        step: global step.
        epochs: number of completed epochs.
        training_set: identity of the run's training set.
        reading: how the run read its data.
    """

    config: dict[str, Any] | None = None
    step: int = 0
    epochs: int = 0
    training_set: str | None = None
    reading: str | None = None


@dataclass(frozen=True)
class Expanded:
    """Arguments of a command, and the content of the checkpoint among them.

    Attributes:
        given: arguments as the user wrote them.
        arguments: arguments for the parser: those of an evaluation begin with the stored configuration; of a resumed
            fit only the path of last.ckpt is filled in.
        stored: content of the checkpoint.
        folder: folder of the run to resume or evaluate.
        resumes: True if the same arguments start the run or resume it (`--resume auto`).
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
    """Resolve `--ckpt_path` and `--resume`; for an evaluation, put the checkpoint's configuration first.

    Args:
        argv: the command and its arguments.

    Raises:
        CheckpointError: an evaluation has no checkpoint, or the file is not a checkpoint.
        UserError: a configuration does not exist.
    """
    expanded = _expanded(list(argv))
    return replace(expanded, arguments=_with_structures(expanded.arguments))


def _with_structures(arguments: Sequence[str]) -> list[str]:
    """Let a structure take the place of the numbers before it, or numbers of an earlier file would change it.

    Numbers behind a structure change it, as those of a sweep do.
    """
    found: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        value = value if equals else following
        if name == "--model.structure" or (name in CONFIG and _has_structure(value)):
            found += [f"--model.{number}=null" for number in Numbers._fields]
        found.append(argument)
    return found


def _has_structure(config: str) -> bool:
    """True if a configuration, a path or YAML text, holds a structure."""
    model = content_of(config).get("model")
    return isinstance(model, dict) and model.get("structure") is not None


def _expanded(given: list[str]) -> Expanded:
    """`expand` without `_with_structures`."""
    command, rest = given[0], given[1:]
    for value in values(rest, *CONFIG):
        config_file(value)  # refuses a wrong one before Lightning is loaded
    if _INFORMATIVE & option_names(rest):
        return Expanded(given, [command, *take(rest, "--resume")[1]])
    resume, rest = take(rest, "--resume")
    if resume:
        return _start_or_resume(given, resume, rest)
    named, others = take(rest, "--ckpt_path")
    if not named and command not in EVALUATIONS:
        return Expanded(given, given)
    checkpoint = _only_checkpoint(command, named)
    expanded = _evaluation if command in EVALUATIONS else _resumption
    return expanded(given, checkpoint, others)


def _only_checkpoint(command: str, named: Sequence[str]) -> str:
    """Return the value of `--ckpt_path`.

    Raises:
        CheckpointError: there is none, or several.
    """
    if not named:
        raise CheckpointError(
            f"{command} needs a checkpoint, or it would measure random weights: "
            f"pass --ckpt_path RUN/checkpoints/best.ckpt."
        )
    if len(named) > 1:
        raise CheckpointError(f"--ckpt_path must be given once, got {' and '.join(named)}.")
    if not named[0]:
        raise CheckpointError("--ckpt_path needs a file, such as RUN/checkpoints/last.ckpt.")
    return named[0]


def _resumption(given: list[str], checkpoint: str, others: list[str]) -> Expanded:
    """Expand the arguments of a `fit` that resumes a checkpoint, in place for `--ckpt_path last`."""
    in_place = checkpoint == "last"
    path = _last_of(others) if in_place else Path(checkpoint)
    stored = read_checkpoint(path)
    if "class_path" not in (stored.config or {}).get("data", {}):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it names no data set to resume with.")
    folder = RunFolder.of_checkpoint(path) if in_place else None
    return Expanded(given, [given[0], *others, f"--ckpt_path={path}"], stored, folder)


def _start_or_resume(given: list[str], resume: list[str], rest: list[str]) -> Expanded:
    """Expand `fit --resume auto --run_folder DIR`, which resumes the run if it has a checkpoint."""
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


def _evaluation(given: list[str], checkpoint: str, others: list[str]) -> Expanded:
    """Expand the arguments of an evaluation, with the checkpoint's own configuration first."""
    command = given[0]
    if checkpoint == "last":
        raise CheckpointError(f"{command} needs the file: pass --ckpt_path RUN/checkpoints/last.ckpt.")
    path = Path(checkpoint)
    stored = read_checkpoint(path)
    assert stored.config is not None
    arguments = _evaluated(stored.config, [*others, f"--ckpt_path={path}"])
    return Expanded(given, [command, *arguments], stored, RunFolder.of_checkpoint(path))


def _evaluated(stored: dict[str, Any], rest: list[str]) -> list[str]:
    """Return the arguments of an evaluation, after the parts of the stored configuration that affect it.

    Raises:
        CheckpointError: neither of the two names a data set.
    """
    # Optimiser, schedule and augmentation are dropped: they may name any class to import, and an evaluation uses none.
    # data.class_path is imported, and must be a SpikingDataModule.
    model = {name: value for name, value in stored["model"].items() if not key_of(f"model.{name}").training_only}
    _require_own_network(model.get("network"))
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
            "the checkpoint names no data set because another Trainer wrote it: pass --data NAME, such as --data MNIST."
        )
    elif not values(rest, "--data.time_steps"):
        rest = [*rest, f"--data.time_steps={data['init_args']['time_steps']}"]
    return [f"--config={yaml.safe_dump(kept)}", *rest]


def _require_own_network(named: Any) -> None:
    """Refuse a network of one's own that a checkpoint names unless it, and what is in it, are modules.

    Raises:
        UserError: a class is something else, or cannot be imported.
    """
    from plif_lightning.network.own import imported_network  # which loads PyTorch

    if isinstance(named, dict) and isinstance(named.get("class_path"), str):
        imported_network(named["class_path"])
    for part in named.values() if isinstance(named, dict) else named if isinstance(named, list) else ():
        _require_own_network(part)


def config_file(value: str) -> str:
    """Return the path of a configuration given by path or name; YAML text is returned as it is.

    Raises:
        UserError: the configuration does not exist.
    """
    if is_yaml_text(value):
        return value
    if not value:
        raise UserError("--config needs the name or the path of a configuration, got nothing.")
    return str(configs.resolve(value))


def content_of(config: str) -> dict[str, Any]:
    """Return the content of a configuration, given by path, name or YAML text.

    Empty if it cannot be read or holds something else: the parser reports that.
    """
    try:
        text = config if is_yaml_text(config) else configs.resolve(config).read_text("utf-8")
        loaded = parsed_yaml(text, config)
    except (OSError, UserError, UnicodeDecodeError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def is_yaml_text(value: str) -> bool:
    """True if the value of `--config` is YAML itself, not a name or path."""
    return "\n" in value or ": " in value


def _last_of(argv: Sequence[str]) -> Path:
    """Return `last.ckpt` of the run whose configuration is given with `--config RUN/config.yaml`."""
    tried = [RunFolder(Path(value).parent).last for value in values(argv, *CONFIG)]
    for path in reversed(tried):
        if path.is_file():
            return path
    raise CheckpointError(
        "--ckpt_path last resumes a run, named by --config RUN/config.yaml, but there is no "
        f"{' or '.join(map(str, tried)) or 'such configuration'}. Leave --ckpt_path out to start a new run."
    )


def read_checkpoint(path: Path) -> Stored:
    """Read the content of a checkpoint other than its weights.

    Raises:
        CheckpointError: the file does not exist, or is not a complete checkpoint of this project.
    """
    from plif_lightning.network.checkpoint import configuration_in, load_checkpoint  # which loads PyTorch

    checkpoint = load_checkpoint(path, mapped=True)
    config = configuration_in(checkpoint) or _of_another_trainer(checkpoint)
    if not config or not isinstance(checkpoint.get("global_step"), int):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it holds no configuration.")
    training_set, reading = (_of_type(checkpoint.get(name), str) for name in ("training_set", "reading"))
    return Stored(config, checkpoint["global_step"], _epochs(checkpoint), training_set, reading)


def _of_type(value: Any, kind: type[_T]) -> _T | None:
    return value if isinstance(value, kind) else None


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


def _epochs(checkpoint: Mapping[str, Any]) -> int:
    """Return the number of completed epochs; 0 if a checkpoint does not say."""
    done: Any = checkpoint
    for name in ("loops", "fit_loop", "epoch_progress", "current"):
        done = done.get(name) if isinstance(done, dict) else None
    epochs = done.get("processed") if isinstance(done, dict) else checkpoint.get("epoch", 0)
    return _of_type(epochs, int) or 0


def refuse_other_settings(expanded: Expanded, given: dict[str, Any]) -> None:
    """Compare the parsed configuration with the one stored in the checkpoint.

    Raises:
        CheckpointError: they differ in what the checkpoint's weights, split or next batches depend on.
    """
    stored = expanded.stored.config
    assert stored is not None
    # Settings that an older checkpoint does not name had their default then.
    defaults = {"model": model_defaults()}
    old, new = _over(comparable(defaults), comparable(stored)), comparable(given)
    there, here = _over(flat(defaults), flat(stored)), flat(given)
    elsewhere = old.get("data.root") != new.get("data.root")
    differences = [
        f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and _must_agree(name, expanded.command, stored, elsewhere)
    ]
    stages = [[name for name in of if name.startswith("model.early_time_steps.")] for of in (old, new)]
    if expanded.command == "fit" and stages[0] != stages[1] and {*stages[0]} == {*stages[1]}:
        differences.append("the order of model.early_time_steps is another")
    if differences:
        raise CheckpointError(
            f"the checkpoint belongs to other settings: {'; '.join(differences)}. "
            "Pass the stored values, or start a new run in another folder."
        )


def _over(defaults: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings by dotted names, and defaults of others; a class takes the place of a default that is a name."""
    blocks = {name.rpartition(".")[0] for name in stored}
    return {**{name: value for name, value in defaults.items() if name not in blocks}, **stored}


def _must_agree(name: str, command: str, stored: dict[str, Any], elsewhere: bool) -> bool:
    """True if a setting must equal the checkpoint's, to resume it or to evaluate it fairly.

    Args:
        name: dotted name of the setting.
        command: fit, or an evaluation.
        stored: the checkpoint's configuration.
        elsewhere: the data lie elsewhere than those of the run.
    """
    key = key_of(name)
    if key.identity == "never":
        return False
    if key.split == "root":
        ours = str(stored["data"].get("class_path")).startswith("plif_lightning.")
        if not ours or name not in flat(stored):
            return False  # a data set of one's own may call something else so; an older checkpoint does not name it
    if command == "fit":
        return key.fixed
    if name.startswith("model."):
        return not key.training_only
    if "class_path" not in stored["data"]:  # another Trainer's: only T is known
        return name == "data.time_steps"
    held_out = stored["data"]["init_args"].get("validation") == "holdout"
    return key.split == "always" or (held_out and key.split == "holdout") or (not elsewhere and key.split == "root")


def refuse_shorter(expanded: Expanded, trainer: dict[str, Any]) -> None:
    """Compare the length of a resumed run with the length it has reached.

    Raises:
        CheckpointError: it is already longer.
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
    """Return the default of each argument of a task and its network."""
    from plif_lightning.network.network import DEFAULTS
    from plif_lightning.training.task import SpikingClassifier

    own = {name: p.default for name, p in inspect.signature(SpikingClassifier).parameters.items()}
    plain = {name: value for name, value in own.items() if value is not inspect.Parameter.empty and not callable(value)}
    return {**DEFAULTS, **plain}
