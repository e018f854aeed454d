"""Identity of a run: the settings that distinguish it, and their hash. Runs with equal keys are averaged."""

import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from enum import Flag, auto
from functools import cache
from typing import Any

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


_PACKAGE = "plif_lightning."
_ARGUMENTS = ("init_args", "dict_kwargs")
# Callbacks of the Trainer that only show something.
_SHOWING = ("ProgressBar", "LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary")


def settings(config: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
    """The settings of a run's identity, by dotted names, where they differ from their defaults.

    A new argument of a class therefore changes no earlier run. Classes that the configuration names are imported: it
    must be the user's, not a file's.

    Args:
        config: configuration of a `fit`, nested.
        processes: that train together; their batches add up.
    """
    model, data, trainer = (config.get(block) or {} for block in ("model", "data", "trainer"))
    if processes > 1 and (size := setting_in(config, "data.batch_size")) is not None:
        data = {**data, "init_args": {**data["init_args"], "batch_size": size * processes}}
    # The protocol is always among them: accuracies of two protocols are never averaged.
    named = {"data.validation": validation_of(config)} if data else {}
    named |= dict(_of_class("data", data))
    named |= dict(_of_block("model", by_numbers(model)))
    counted = {name: trainer.get(name, _OF_TRAINER.get(name)) for name in _counted_of_trainer()}
    counted = {name: value for name, value in counted.items() if not name.startswith("limit_") or limits_data(value)}
    named |= dict(_of_block("trainer", {**counted, "callbacks": _callbacks(counted["callbacks"])}))
    if hook := setting_in(config, "trainer.strategy.ddp_comm_hook"):  # which may round gradients
        named["trainer.strategy.ddp_comm_hook"] = hook
    if config.get("task"):
        named["task"] = config["task"]
    if config.get("best_of_ties") is not None and config["best_of_ties"] != default_ties(protocol(config)):
        named["best_of_ties"] = config["best_of_ties"]
    return {name: value for name, value in named.items() if not role(name) & (Role.PLACE | Role.HOW)}


def _counted_of_trainer() -> list[str]:
    """The Trainer's settings that are part of a run's identity."""
    of_trainer = {name.removeprefix("trainer."): of for name, of in ROLES.items() if name.startswith("trainer.")}
    return [name for name, of in of_trainer.items() if "." not in name and not of & (Role.PLACE | Role.HOW)]


def key(named: Mapping[str, Any], content: str = "") -> str:
    """Hash of a run's settings and of the identity of its data; equal for runs that differ in their seed alone."""
    text = json.dumps([sorted(named.items()), content], default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of settings in which two runs differ; a missing setting has its default."""
    return [name for name in dict.fromkeys((*first, *second)) if first.get(name) != second.get(name)]


def value_in(named: Mapping[str, Any], name: str) -> Any:
    """The value of a setting among those that differ from their defaults; its default if it is not among them."""
    if name in named:
        return named[name]
    if not name.startswith("data.") or "data" not in named:
        return defaults().get(name)
    path = named["data"] if "." in named["data"] else f"{_PACKAGE}data.{named['data']}"
    module, _, kind = path.rpartition(".")
    return _plain(defaults_of(getattr(importlib.import_module(module), kind)).get(name.removeprefix("data.")))


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
        if "class_path" in value:
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
    numbers_of_model = {name: model[name] for name in Numbers._fields if model.get(name) is not None}
    if model.get("network") is not None or not (numbers_of_model or text is not None or "n_conv" in model):
        return dict(model)
    try:
        structure = None if text is None else parse(text)
    except UserError:
        return dict(model)
    numbers = NUMBERS if structure is None else numbers_of(structure)
    if numbers is None:
        return {**model, "structure": str(structure)}
    return {**model, "structure": None, **numbers._asdict(), **numbers_of_model}


def _callbacks(value: Any) -> list[Any] | None:
    """The Trainer's callbacks without progress bars and the like."""
    callbacks = value if isinstance(value, list) else [value] if value is not None else []
    return [
        callback for callback in callbacks if not any(class_name in str(callback) for class_name in _SHOWING)
    ] or None


@cache
def defaults() -> dict[str, Any]:
    """The default of each setting of the network, its training and the Trainer, by dotted names."""
    from plif_lightning.network.network import DEFAULTS  # which loads PyTorch
    from plif_lightning.training.task import SpikingClassifier

    of_model = {**DEFAULTS, **defaults_of(SpikingClassifier)}
    return {f"model.{name}": value for name, value in of_model.items()} | {
        f"trainer.{name}": _OF_TRAINER.get(name) for name in _counted_of_trainer()
    }


def defaults_of(kind: Any) -> dict[str, Any]:
    """The default of each argument of a class."""
    arguments = inspect.signature(kind).parameters.values()
    return {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}


def _of_block(
    name: str, block: Mapping[str, Any], of_class: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a block that differ from the defaults of a class, or of network, training and Trainer."""
    for setting, value in block.items():
        full = f"{name}.{setting}"
        default = defaults().get(full) if of_class is None else of_class.get(setting)
        if isinstance(value, Mapping) and "class_path" in value:
            yield from _of_class(full, value)
        elif isinstance(value, Mapping):
            # Their order may be their meaning.
            yield full, [[int(key) if str(key).isdecimal() else key, _plain(item)] for key, item in value.items()]
        elif _plain(value) != _plain(default):
            yield full, _plain(value)


def _of_class(name: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    path = str(value.get("class_path", "?"))
    module, _, kind = path.rpartition(".")
    of_class = defaults_of(getattr(importlib.import_module(module), kind)) if module else {}
    # A class of this package by its name, which stays where a module is moved.
    yield name, kind if path.startswith(_PACKAGE) else path
    yield from _of_block(name, {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}, of_class)


def _plain(value: Any) -> Any:
    """A value as it returns from JSON; for a class, its name and non-default arguments."""
    if isinstance(value, Mapping) and "class_path" in value:
        return dict(_of_class("class", value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
