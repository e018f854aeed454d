"""Runs by what tells them apart, in the words of the command line."""

import importlib
import inspect
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from plif_lightning import configs
from plif_lightning.analysis import paper
from plif_lightning.analysis.paper import Setting
from plif_lightning.errors import UserError
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import by_numbers, identity, is_part, key_of, says_something, without_order
from plif_lightning.structure import Neurons, Numbers, parse
from plif_lightning.structure.layers import neurons_in

_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "fast_dev_run")


def other_settings(run: Run) -> dict[str, Any]:
    """The settings and facts, beside the paper's columns, in which runs that differ in their seed alone agree."""
    settings = identity(run.config).items()
    found = {key: value for key, value in settings if value is not None and key_of(key).column != "paper"}
    if run.begun_from is not None:
        found["ckpt_path"] = run.begun_from
    if run.changes:
        found["changes"] = run.changes
    if run.facts.get("content") is not None:
        found["content"] = run.facts["content"]
    return found | {"samples": run.facts.get("samples"), "origin": run.facts.get("origin"), "epochs": _length(run)}


def _length(run: Run) -> int:
    """Number of epochs; of a run that EarlyStopping may have ended, the number that it was set to train for."""
    most = run.setting("trainer.max_epochs")
    stops = "EarlyStopping" in str(run.setting("trainer.callbacks")) and run.status == "finished"
    return most if stops and isinstance(most, int) and most > 0 else run.epochs


def experiment(run: Run, epochs: int | None = None) -> str:
    """A text that is equal for runs that differ only in their seed, of any version.

    Args:
        run: the run.
        epochs: number of epochs in place of the one that `other_settings` gives.
    """
    given = other_settings(run) | ({} if epochs is None else {"epochs": epochs})
    others = {key: value for key, value in given.items() if says_something(key, value)}
    if run.protocol == "B":
        others["best_of_ties"] = run.best_of_ties
    return json.dumps([setting_of(run), sorted(others.items(), key=without_order)], default=str)


def model_settings(run: Run) -> dict[str, Any]:
    """The settings of a run's network and its training that are not none, by dotted names."""
    found = {key: value for key, value in identity(run.config).items() if key.startswith("model.")}
    return {key: value for key, value in found.items() if value is not None}


def setup(run: Run) -> str:
    """A text that is equal for runs that differ only in their network, its training and their seed."""
    others = {k: v for k, v in other_settings(run).items() if not k.startswith("model.") and says_something(k, v)}
    return json.dumps([data_title(run), run.best_of_ties, sorted(others.items(), key=without_order)], default=str)


# Facts with a column of their own, beside the settings that have one.
_FACTS = {"epochs", "samples", "origin", "content"}


def _has_column(key: str) -> bool:
    return key in _FACTS or key_of(key).column is not None


# Settings that no shipped configuration of a data set names, with their defaults; those of the network are in
# `DEFAULTS`, and others are none, false or zero.
_PLAIN = {
    "trainer.precision": "32-true",
    "trainer.callbacks": None,
    "trainer.devices": "auto",
    "trainer.num_nodes": 1.0,
    "trainer.max_steps": -1.0,
    "trainer.check_val_every_n_epoch": 1.0,
    "trainer.accumulate_grad_batches": 1.0,
    "model.label_smoothing": 0.0,
    "data.augmentation": None,
    "data.holdout_fraction": 0.15,
    "data.normalize": True,
    "data.source": "original",
}
# Settings of the Trainer that say how it computes, not what.
_HOW = {
    f"trainer.{name}"
    for name in (
        *("accelerator", "strategy", "benchmark", "deterministic", "inference_mode", "use_distributed_sampler"),
        *("detect_anomaly", "enable_autolog_hparams", "model_registry"),
    )
}
_ONE_DEVICE = (1.0, "1", [0], ["0"])


def real(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def data_title(run: Run) -> str:
    """Display name of the data set: the paper's, or the run's own, which is never one of the paper's."""
    title = str(run.facts.get("data") or run.data_set)
    own = f"{title} ({run.data_set})" if title in (*paper.TITLES, *paper.TITLES.values()) else title
    return paper.TITLES.get(run.data_set, own)


def setting_of(run: Run) -> Setting:
    """Data set, neuron, tau and pooling: the columns of the paper's tables. An IF neuron has no tau."""
    data_set = run.data_set if run.data_set in paper.TITLES else data_title(run)
    if (own := run.setting("model.network.class_path")) is not None:
        return Setting(data_set, str(own), math.nan, "?")
    neuron = _neurons_of(run.config.get("model", {}), _neuron(run.setting("model.neuron", "?")))
    tau = math.inf if neuron == "if" else real(run.setting("model.init_tau"))
    return Setting(data_set, neuron, tau, str(run.setting("model.pooling", "?")))


def _neurons_of(model: Any, plif: str) -> str:
    """The neurons of a network, with `plif` in the place of PLIF; several kinds of a structure are joined by +."""
    found = _in_structure(model)
    if found is None:
        return plif
    names = dict.fromkeys(neurons.name for neurons in found)
    return "+".join(plif if name == "PLIF" else name for name in names) or "no neurons"


def has_own_taus(run: Run) -> bool:
    """True if a layer of the structure has an initial tau of its own."""
    return any("init_tau" in dict(neurons.arguments) for neurons in _in_structure(run.config.get("model")) or ())


def _in_structure(model: Any) -> list[Neurons] | None:
    """The layers of neurons of a network's structure; None if it has none, or one that cannot be read."""
    text = by_numbers(model).get("structure") if isinstance(model, Mapping) else None
    if text is None:
        return None
    try:
        return [*neurons_in(parse(text).layers)]
    except UserError:
        return None


def _neuron(value: Any) -> str:
    """A neuron by its name, or by its class and its parameters: `CLIF(k=0.6)`."""
    if not isinstance(value, Mapping):
        return str(value)
    own = value.get("init_args")
    given = {name: v for name, v in own.items() if v is not None} if isinstance(own, Mapping) else {}
    path = str(value.get("class_path"))
    name = path.rsplit(".", 1)[-1] if path.startswith("plif_lightning.") else path
    return f"{name}({', '.join(f'{key}={v}' for key, v in given.items())})" if given else name


def is_limited(run: Run) -> bool:
    """True if the Trainer limited a run to a part of its data."""
    return bool(_limits_of(run))


def _limits_of(run: Run) -> list[str]:
    values = {name: run.setting(f"trainer.{name}") for name in _LIMITS}
    return [name for name, value in values.items() if value and is_part(value)]


def one_per_seed(runs: Sequence[Run]) -> list[Run]:
    """The run of each seed that was begun last; runs without a seed of their own all count."""
    found: dict[tuple[str, float], Run] = {}
    for i, run in enumerate(sorted(runs, key=lambda run: run.started)):
        seed = run.setting("seed_everything")
        number = math.nan if isinstance(seed, bool) else real(seed)
        found[("run", i) if math.isnan(number) else ("seed", number)] = run
    chosen = set(map(id, found.values()))
    return [run for run in runs if id(run) in chosen]


@cache
def _usual() -> dict[str, dict[str, Any]]:
    """The settings that the project ships for each data set, defaults included, by the data module's class."""
    from plif_lightning.network.network import DEFAULTS

    defaults = {name: value for name, value in DEFAULTS.items() if name not in (*Numbers._fields, "structure")}
    found = {}
    for blocks in configs.shipped().values():
        name = str(blocks["data"]["class_path"]).rsplit(".", 1)[-1]
        model = {key: _completed(value) for key, value in blocks["model"].items()}
        shipped = identity({**blocks, "model": model | {key: v for key, v in defaults.items() if key not in model}})
        found[name] = shipped | {key: value for key, value in _PLAIN.items() if key not in shipped}
    return found


def _completed(value: Any) -> Any:
    """A shipped optimiser or schedule with the defaults of its class."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    module, _, name = value["class_path"].rpartition(".")
    arguments = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    defaults = {one.name: one.default for one in arguments if one.default is not inspect.Parameter.empty}
    return {**value, "init_args": {**defaults, **value.get("init_args", {})}}


def unusual(run: Run) -> list[str]:
    """Settings that differ from the shipped configuration, or that leave out a part of the data.

    Of a data set that has no shipped configuration those are told that are unusual anywhere.
    """
    own, given = other_settings(run), identity(run.config)
    if own.get("trainer.devices") in _ONE_DEVICE:
        own["trainer.devices"] = "auto"
    usual = _usual().get(run.data_set)
    expected = _PLAIN if usual is None else usual
    replaced = [f"model.{name}" for name in Numbers._fields] if "model.structure" in own else []
    names = []
    for key in dict.fromkeys([*own, *expected]):
        if _has_column(key) or key in _HOW or key in replaced or key.removeprefix("trainer.") in _LIMITS:
            continue
        if key not in own:
            # None in its place; a run of an earlier version may lack it altogether.
            block = _given_above(key, given)
            differs, key = block is not None and says_something(key, expected[key]), block or key
        elif key in expected:
            differs = own[key] != expected[key]
        else:
            shown = usual is not None or key.startswith("model.early_time_steps.")
            differs = shown and says_something(key, own[key])
        if differs:
            names.append(key)
    names += [f"trainer.{name}" for name in _limits_of(run)]
    return list(dict.fromkeys(names))


def _given_above(key: str, given: Mapping[str, Any]) -> str | None:
    """The setting itself, or the one that it is a part of, where that is given as a whole."""
    while key not in given and "." in key:
        key = key.rpartition(".")[0]
    return key if key in given else None


def differences(runs: Sequence[Run]) -> list[str]:
    """Settings of each run beyond its configuration, such as `loss rate, batch_size 32`; empty if there are none.

    A setting that no shipped configuration names is listed if a run differs in it from most others.

    Args:
        runs: of the same data set.
    """
    return [", ".join(told) for told in _told(runs)]


def _told(runs: Sequence[Run]) -> list[list[str]]:
    settings = [other_settings(run) for run in runs]
    most = {}
    for key in dict.fromkeys(key for own in settings for key in own):
        (value, _), *rest = Counter(repr(own.get(key)) for own in settings).most_common()
        if rest and not _has_column(key):
            most[key] = value
    found = []
    for run, own in zip(runs, settings, strict=True):
        usual = _usual().get(run.data_set, {})
        known = {*usual, *_PLAIN}
        others = [key for key, value in most.items() if key in own and key not in known and repr(own[key]) != value]
        found.append([in_words(key, own.get(key)) for key in dict.fromkeys([*unusual(run), *others])])
    return found


def in_words(key: str, value: Any) -> str:
    """A setting as a user gives it, without the block that it belongs to."""
    name = key.split(".", 1)[-1].removesuffix(".class_path")
    if key.endswith(".class_path"):
        value = str(value).rsplit(".", 1)[-1]
    elif isinstance(value, bool) or value is None:
        value = {True: "true", False: "false", None: "none"}[value]
    elif isinstance(value, float):
        value = f"{value:g}"
    elif isinstance(value, list):
        classes = [one.get("class_path") if isinstance(one, Mapping) else one for one in value]
        value = " and ".join(str(one).rsplit(".", 1)[-1] if isinstance(one, str) else str(one) for one in classes)
    return f"{name} {value}"


def neuron_in_words(setting: Setting) -> str:
    """`PLIF, tau_0 = 2`."""
    tau = {"plif": f"PLIF, tau_0 = {setting.init_tau:g}", "lif": f"LIF, tau = {setting.init_tau:g}"}
    return tau.get(setting.neuron, setting.neuron.upper() if setting.neuron.islower() else setting.neuron)


class Labels(NamedTuple):
    """Names of the curves of runs.

    Attributes:
        each: for every run its neuron, its pooling unless it is max, and the settings that not all runs share.
        shared: settings that all of them share beyond their configuration; empty for a single run.
    """

    each: list[str]
    shared: str


def labels(runs: Sequence[Run]) -> Labels:
    """Names for the curves of some runs of a data set, without what they share."""
    told = _told(runs)
    shared = [words for words in told[0] if all(words in others for others in told)] if len(runs) > 1 else []
    found = []
    for run, own in zip(runs, told, strict=True):
        setting = setting_of(run)
        pooling = "" if setting.pooling == "max" else f"{setting.pooling}-pooling"
        parts = (neuron_in_words(setting), pooling, *(words for words in own if words not in shared))
        found.append(", ".join(part for part in parts if part))
    return Labels(found, ", ".join(shared))
