"""Settings of a run: the role of each, their defaults, and configurations by dotted names."""

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from enum import Flag, auto
from functools import cache
from typing import Any, TypeGuard

from plif_lightning.errors import UserError
from plif_lightning.structure import NUMBERS, Numbers, numbers_of, parse


class Role(Flag):
    """Role of a setting. A setting without a role is part of a run's identity, in training and evaluation.

    Attributes:
        PLACE: without effect on results: paths, display, loader processes; neither in the key nor in the command that
            repeats a run.
        HOW: how it computes: in that command, not in the key.
        LENGTH: may change when a run is resumed; the record has the change.
        TRAINING: an evaluation does not use it.
        SPLIT: chooses the samples that are held out; with others an evaluation would measure samples of the training.
        COLUMN: tables and figures have a column or axis for it.
        EFFORT: how long, how hard and how large a network is trained, which the paper's setting leaves open.
    """

    NONE = 0
    PLACE = auto()
    HOW = auto()
    LENGTH = auto()
    TRAINING = auto()
    SPLIT = auto()
    COLUMN = auto()
    EFFORT = auto()


# The only list of settings: the role of each by its dotted name, or by that of a block or class that it belongs to.
ROLES = {
    "accept_edited_code": Role.PLACE,
    "best_of_ties": Role.TRAINING,
    "checkpoint": Role.PLACE,
    "ckpt_path": Role.TRAINING,
    "data": Role.COLUMN,
    "data.allow_partial": Role.HOW,
    "data.augmentation": Role.TRAINING,
    "data.batch_size": Role.TRAINING | Role.LENGTH,
    "data.download": Role.HOW,
    "data.drop_last": Role.TRAINING,
    "data.eval_batch_size": Role.HOW,
    "data.holdout_fraction": Role.SPLIT,
    "data.num_workers": Role.PLACE,
    "data.root": Role.PLACE,
    "data.source": Role.SPLIT,
    "data.split": Role.SPLIT,
    "data.store": Role.PLACE,
    "data.test_fraction": Role.SPLIT,
    "data.time_steps": Role.COLUMN,
    "data.validation": Role.SPLIT | Role.COLUMN,
    "model.backend": Role.HOW,
    "model.channels": Role.EFFORT,
    "model.dropout": Role.EFFORT,
    "model.early_time_steps": Role.EFFORT,
    "model.fc_features": Role.EFFORT,
    "model.init_tau": Role.COLUMN,
    "model.lr_scheduler": Role.TRAINING | Role.EFFORT,
    "model.n_conv": Role.EFFORT,
    "model.n_down": Role.EFFORT,
    "model.n_fc": Role.EFFORT,
    "model.optimizer": Role.TRAINING | Role.EFFORT,
    "model.pooling": Role.COLUMN,
    "model.sparse": Role.HOW,
    "model.structure": Role.EFFORT,
    "model.votes_per_class": Role.EFFORT,
    "run_folder": Role.PLACE,
    "stop_after_step": Role.PLACE,
    "trainer": Role.HOW,
    "trainer.accumulate_grad_batches": Role.TRAINING,
    "trainer.callbacks": Role.TRAINING,
    "trainer.check_val_every_n_epoch": Role.TRAINING,
    "trainer.default_root_dir": Role.PLACE,
    "trainer.enable_progress_bar": Role.PLACE,
    "trainer.gradient_clip_algorithm": Role.TRAINING,
    "trainer.gradient_clip_val": Role.TRAINING,
    "trainer.limit_test_batches": Role.NONE,
    "trainer.limit_train_batches": Role.TRAINING,
    "trainer.limit_val_batches": Role.TRAINING,
    "trainer.max_epochs": Role.TRAINING | Role.LENGTH | Role.COLUMN,
    "trainer.max_steps": Role.TRAINING | Role.LENGTH,
    "trainer.max_time": Role.TRAINING | Role.LENGTH,
    "trainer.min_epochs": Role.TRAINING,
    "trainer.min_steps": Role.TRAINING,
    "trainer.plugins": Role.TRAINING,
    "trainer.precision": Role.NONE,
    "trainer.processes": Role.NONE,  # that train together without a common BN
    "trainer.strategy.ddp_comm_hook": Role.TRAINING,
    "trainer.val_check_interval": Role.TRAINING,
}
# Defaults of the Trainer's settings that are not None.
_OF_TRAINER = {
    "max_steps": -1, "precision": "32-true", "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "processes": 1,
}  # fmt: skip


def role(name: str) -> Role:
    """The role of a setting, such as `data.time_steps`, or of an argument of a class, such as `model.optimizer.lr`."""
    if name in ROLES:
        return ROLES[name]
    above = name
    while above := above.rpartition(".")[0]:
        if above in ROLES:
            return ROLES[above] & ~Role.COLUMN
    return Role.NONE


def is_of(name: str, *above: str) -> bool:
    """True for a setting, and for those of a block or a class.

    >>> is_of("model.neuron.k", "data.probe", "model.neuron"), is_of("model.neurons", "model.neuron")
    (True, False)
    """
    return any(f"{name}.".startswith(f"{block}.") for block in above)


def class_name(path: str) -> str:
    """A class as identities have it: one of this package by its name, which stays where a module is moved."""
    return path.rpartition(".")[2] if path.startswith("plif_lightning.") else path


def names_class(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """True for a value of a configuration that names a class, with its arguments."""
    return isinstance(value, Mapping) and "class_path" in value


_ARGUMENTS = ("init_args", "dict_kwargs")


def of_identity(block: str) -> list[str]:
    """Settings of a block of `ROLES`, by their names in it, that are part of a run's identity."""
    of_block = {name.removeprefix(f"{block}."): of for name, of in ROLES.items() if is_of(name, block)}
    return [name for name, of in of_block.items() if "." not in name and not of & (Role.PLACE | Role.HOW)]


def validation_of(config: Mapping[str, Any]) -> Any:
    """`data.validation` of a configuration; the default if it does not say."""
    return setting_in(config, "data.validation", "holdout")


def protocol(config: Mapping[str, Any]) -> str:
    """A if a configuration validates on the test set, B if on a held-out part of the training set."""
    return "A" if validation_of(config) == "test" else "B"


def default_ties(of_protocol: str) -> str:
    """Which of the epochs with the best accuracy is kept: the last on a held-out part, as in the authors' code."""
    return "last" if of_protocol == "B" else "first"


def limits_data(limit: Any) -> bool:
    """True if a `limit_..._batches` leaves out data: Lightning takes 1 for a single batch, 1.0 and None for all of
    them."""
    return limit is not None and not (isinstance(limit, float) and limit == 1.0)


def setting_in(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A value of a nested configuration by its dotted name, without `init_args`."""
    value: Any = config
    for component in name.split("."):
        if isinstance(value, Mapping) and component not in value and isinstance(value.get("init_args"), Mapping):
            value = value["init_args"]
        if not isinstance(value, Mapping) or component not in value:
            return default
        value = value[component]
    return value


def flatten_settings(block: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of a nested configuration by their names on the command line: a class is its path, a list its JSON."""
    for key, value in block.items():
        name = f"{above}{key}"
        if not isinstance(value, Mapping):
            yield name, json.dumps(value, default=str) if isinstance(value, (list, tuple)) else value
            continue
        if above and not {"class_path", *_ARGUMENTS} & value.keys():  # {gamma: [3, 5]}
            yield name, json.dumps(value)
            continue
        if names_class(value):
            yield name, value["class_path"]
        inner = {**value, **(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
        yield from flatten_settings(
            {n: v for n, v in inner.items() if n not in ("class_path", *_ARGUMENTS)}, f"{name}."
        )


def nest_settings(named: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of settings by their dotted names, as `setting_in` reads it."""
    config: dict[str, Any] = {}
    for name, value in named.items():
        *blocks, last = name.split(".")
        block = config
        for component in blocks:
            inner = block.setdefault(component, {})
            if not isinstance(inner, dict):  # of a class, and of its arguments
                inner = block[component] = {"class_path": inner, "init_args": {}}
            block = inner.get("init_args", inner)
        block[last] = value
    return config


def by_numbers(model: Mapping[str, Any]) -> dict[str, Any]:
    """Canonical settings of a network: the six numbers if they describe it, otherwise `structure` as text.

    User-defined networks and unreadable structures are returned unchanged.
    """
    text = model.get("structure")
    numbers_of_model = {name: model[name] for name in NUMBERS if model.get(name) is not None}
    if model.get("network") is not None or not (numbers_of_model or text is not None or "n_conv" in model):
        return dict(model)
    try:
        structure = None if text is None else parse(text)
    except UserError:
        return dict(model)
    numbers = Numbers() if structure is None else numbers_of(structure)
    if numbers is None:
        return {**model, "structure": str(structure)}
    return {**model, "structure": None, **asdict(numbers), **numbers_of_model}


@cache
def defaults() -> dict[str, Any]:
    """The default of each setting of the network, its training and the Trainer, by dotted names."""
    from plif_lightning.network.network import DEFAULTS  # which loads PyTorch
    from plif_lightning.training.task import SpikingClassifier

    of_model = {**DEFAULTS, **defaults_of(SpikingClassifier)}
    return {f"model.{name}": value for name, value in of_model.items()} | {
        f"trainer.{name}": _OF_TRAINER.get(name) for name in of_identity("trainer")
    }


def defaults_of(kind: Any) -> dict[str, Any]:
    """The default of each argument of a class."""
    arguments = inspect.signature(kind).parameters.values()
    return {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}
