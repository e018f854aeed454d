"""Settings of a run: which tell two runs apart, which an evaluation depends on, which are fixed when it is resumed.

`KEYS` is the one table; tables, sweeps, resumption and evaluation read it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from plif_lightning.errors import UserError
from plif_lightning.structure import NUMBERS, Numbers, numbers_of, parse


class Key(NamedTuple):
    """A setting, or all settings below a dotted name.

    Attributes:
        name: dotted name, without `init_args`.
        identity: two runs that differ in it are two experiments: always, never (it changes neither what is computed
            nor how it is measured), or only while one is planned, whose data and files cannot be compared yet.
        training_only: an evaluation does not use it.
        fixed: a run cannot be resumed with another value, because weights or the samples of the next batches depend on
            it, or because the checkpoint restores it.
        split: an evaluation cannot use another value, because samples of the training set would count as held out:
            always; if a part was held out; or, `root`, unless the data lie elsewhere.
        column: tables show it in a column: as the paper does, or as one of ours.
    """

    name: str
    identity: Literal["always", "never", "planned"] = "always"
    training_only: bool = False
    fixed: bool = False
    split: Literal["always", "holdout", "root"] | None = None
    column: Literal["paper", "own"] | None = None


# The most specific row applies, alone: `model.backend` inherits nothing from `model`.
KEYS = {
    key.name: key
    for key in (
        Key("seed_everything", fixed=True),
        Key("model", fixed=True),
        Key("model.neuron", fixed=True, column="paper"),
        Key("model.init_tau", fixed=True, column="paper"),
        Key("model.pooling", fixed=True, column="paper"),
        # Lightning restores the state of optimiser and schedule, learning rate included, from the checkpoint: another
        # value here would have no effect.
        Key("model.optimizer", training_only=True, fixed=True),
        Key("model.lr_scheduler", training_only=True, fixed=True),
        Key("model.backend", identity="never"),
        Key("model.sparse", identity="never"),
        Key("data.class_path", fixed=True, column="own"),
        Key("data.root", identity="planned"),
        Key("data.allow_partial", identity="planned"),
        Key("data.store", identity="never"),
        Key("data.num_workers", identity="never"),
        Key("data.download", identity="never"),
        Key("data.eval_batch_size", identity="never"),
        Key("data.validation", fixed=True, split="always", column="own"),
        Key("data.holdout_fraction", fixed=True, split="always"),
        Key("data.test_fraction", fixed=True, split="root"),
        Key("data.split", fixed=True, split="root"),
        Key("data.source", fixed=True, split="holdout"),
        Key("data.time_steps", fixed=True),
        Key("data.slicing", fixed=True),
        Key("data.size", fixed=True),
        Key("data.batch_size", training_only=True, fixed=True),
        Key("data.drop_last", training_only=True, fixed=True),
        Key("data.augmentation", training_only=True),
        Key("trainer.max_epochs", column="own"),
        Key("trainer.logger", identity="never"),
        Key("trainer.default_root_dir", identity="never"),
        Key("trainer.log_every_n_steps", identity="never"),
        Key("trainer.profiler", identity="never"),
        Key("trainer.num_sanity_val_steps", identity="never"),
        Key("trainer.enable_progress_bar", identity="never"),
        Key("trainer.enable_model_summary", identity="never"),
        Key("trainer.enable_checkpointing", identity="planned"),
    )
}


# Options whose default is none, and that mean something else by zero; those of a network or loss of one's own may.
_ZERO_COUNTS = ("model.tet_lambda", "model.network.", "model.loss.")


def key_of(name: str) -> Key:
    """The row of a dotted setting."""
    while name not in KEYS and "." in name:
        name = name.rpartition(".")[0]
    return KEYS.get(name, Key(name))


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration by dotted names, without `init_args`, with its network `by_numbers`."""
    model = config.get("model")
    return dict(dotted({**config, "model": by_numbers(model)} if isinstance(model, Mapping) and model else config, ""))


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """`flat` with one text for equal settings: 2 and 2.0, and the import paths of a class that has moved."""
    return {name: _comparable(name, value) for name, value in flat(config).items()}


def by_numbers(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network with `structure` where it is not the paper's, otherwise with the six numbers.

    A network that does not use them (one of one's own), or whose structure cannot be read, is returned as it is.
    """
    text = model.get("structure")
    given = {name: model[name] for name in Numbers._fields if model.get(name) is not None}
    if model.get("network") is not None or not (given or text is not None or "n_conv" in model):
        return dict(model)
    try:
        found = None if text is None else parse(text)
    except UserError:
        return dict(model)
    numbers = NUMBERS if found is None else numbers_of(found)
    if numbers is None:
        return {**model, "structure": str(found)}
    return {**model, "structure": None, **numbers._asdict(), **given}


def dotted(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names, without `init_args`, and the values of all settings below a name."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from dotted(part, key if name == "init_args" else f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _comparable(name: str, value: Any) -> Any:
    # Lightning takes a limit of 1 for one batch and 1.0 for all of them.
    number = isinstance(value, int) and not isinstance(value, bool) and ".limit_" not in name
    return float(value) if number and abs(value) < 2**53 else _first_path(value)


def is_part(limit: Any) -> bool:
    """True if a `limit_..._batches` leaves out data: Lightning takes 1 for one batch, 1.0 and None for all of them."""
    return limit is not None and not (isinstance(limit, float) and limit == 1.0)


def without_order(item: tuple[str, Any]) -> str:
    """Sorts settings, but not the parts of one: the order of `early_time_steps` is their meaning."""
    return item[0].rpartition(".")[0] if item[0].startswith("model.early_time_steps.") else item[0]


# Classes that have moved, by their first import path: hashes in tables of results are of that.
_MOVED = (
    (re.compile(r"^plif_lightning\.training\.(schedules\.)?OneCycle$"), "plif_lightning.schedules.OneCycle"),
    (
        re.compile(r"^plif_lightning\.data\.(?:event_augment\.)?(Event(?:Drop|Flip|Mix|Rotation|Translation)|TimeDrop|"
                   r"PolarityFlip)$"),
        r"plif_lightning.events.augment.\1",
    ),
)  # fmt: skip


def _first_path(value: Any) -> Any:
    """A value with the first import path of every class in it."""
    if isinstance(value, Mapping):
        return {name: _first_path(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_first_path(part) for part in value]
    if isinstance(value, str):
        for path, first in _MOVED:
            value = path.sub(first, value)
    return value


def identity(config: Mapping[str, Any], planned: bool = False) -> dict[str, Any]:
    """The settings of network, data and Trainer that tell two runs apart, by dotted names.

    Args:
        config: as a run keeps it.
        planned: one of the runs to be compared is not made yet.
    """
    trainer = config.get("trainer", {})
    trainer = dict(trainer) if isinstance(trainer, Mapping) else {}
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]  # Lightning takes a single one, too
    trainer["callbacks"] = [c for c in callbacks if "ProgressBar" not in str(c)] or None
    parts = comparable({"model": config.get("model", {}), "data": config.get("data", {}), "trainer": trainer})
    ignored = {"never"} if planned else {"never", "planned"}
    return {name: value for name, value in parts.items() if key_of(name).identity not in ignored}


def says_something(name: str, value: Any) -> bool:
    """True if a setting is not left out where runs are compared.

    None, false and zero are: most options that are added later have one of them as default.
    """
    return value not in (None, False, 0) or (value is not None and name.startswith(_ZERO_COUNTS))


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a resumed run has from now on and had otherwise before, by dotted names.

    Args:
        before: its stored configuration.
        after: the one that it is resumed with.
    """
    old, new = ({**identity(c), "best_of_ties": c.get("best_of_ties")} for c in (before, after))
    names = [name for name in (*old, *new) if name in old or says_something(name, new[name])]
    found = {name: new.get(name) for name in dict.fromkeys(names) if old.get(name) != new.get(name)}
    return {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in found.items()}


def only_longer(name: str, after: Mapping[str, Any]) -> bool:
    """True if a changed setting only makes a run longer: no schedule depends on it.

    A cycle and an averaging of weights depend on the number of epochs; of a plateau's schedule a resumed run lacks a
    step.
    """
    settings = identity(after)
    depends = ("OneCycle", "ReduceLROnPlateau", "StochasticWeightAveraging")
    given = f"{settings.get('model.lr_scheduler.class_path')} {settings.get('trainer.callbacks')}"
    return name in ("trainer.max_epochs", "trainer.max_steps") and not any(name in given for name in depends)
