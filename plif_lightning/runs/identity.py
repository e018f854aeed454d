"""What a run is, its seed aside: its settings, the user's code, its changes on resuming, and its data.

Runs of equal keys are averaged. Resuming, evaluating, publishing, tables and figures ask the identity of runs.
"""

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from plif_lightning.runs.record import Record, Session
from plif_lightning.runs.settings import (
    Role,
    by_numbers,
    class_name,
    default_ties,
    defaults,
    defaults_of,
    is_of,
    limits_data,
    names_class,
    of_identity,
    protocol,
    role,
    setting_in,
    validation_of,
)

_PACKAGE = "plif_lightning."
# Callbacks of the Trainer that only show something.
_SHOWING = ("ProgressBar", "LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary")
# Differences that are no settings.
CODE, RECORDED_BY = "code", "recorded by"


class Difference(NamedTuple):
    """A setting in which runs differ, or the user's code.

    Attributes:
        name: dotted name of the setting, or CODE.
        before: value there; None for none.
        now: value here.
        step: of the optimiser, at which the run was resumed with it; None from the start.
    """

    name: str
    before: Any
    now: Any
    step: int | None = None

    @property
    def fact(self) -> tuple[str, int | None]:
        """What it is about: its name and step."""
        return self.name, self.step


@dataclass(frozen=True)
class Identity:
    """What a run is.

    Attributes:
        settings: those that differ from their defaults, by dotted names, so that a new argument changes no earlier run.
        code: hash of each module of the user's.
        changes: on resuming, in their order.
        data: identity of training and test set.
        is_of_another_program: another program trained it: settings that it does not name are unknown.
    """

    settings: Mapping[str, Any]
    code: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Difference, ...] = ()
    data: str = ""
    is_of_another_program: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], processes: int = 1) -> "Identity":
        """The identity of a configuration.

        Classes that it names are imported: it must be the user's, not a file's.

        Args:
            config: of a `fit`, nested.
            processes: that train together; their batches add up.
        """
        return cls(dict(_of_config(config, processes)))

    @classmethod
    def of_record(cls, record: Record) -> "Identity":
        """The identity in a run's record."""
        sessions = record.sessions
        last = sessions[-1] if sessions else Session()
        changes = [
            Difference(name, before, now, session.step) for session in sessions for name, before, now in session.changes
        ]
        return cls(last.settings, last.code, tuple(changes), record.data.identity, record.of_another_program)

    @property
    def key(self) -> str:
        """Hash; equal for runs that differ in their seed alone."""
        changes = [[change.step, *change[:3]] for change in self.changes]
        of_run = dict(self.settings) | ({"changes": changes} if changes else {})
        of_run |= {CODE: dict(self.code)} if self.code else {}
        text = json.dumps([sorted(of_run.items()), self.data], default=str)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def content(self) -> str:
        """Short hash of the data; empty where another program recorded the run, which may know its size alone."""
        return "" if self.is_of_another_program else hashlib.blake2b(self.data.encode(), digest_size=3).hexdigest()

    def value(self, name: str) -> Any:
        """The value of a setting, its default included."""
        if name in self.settings:
            return self.settings[name]
        if not is_of(name, "data") or "data" not in self.settings:
            return defaults().get(name)
        path = self.settings["data"] if "." in self.settings["data"] else f"{_PACKAGE}data.{self.settings['data']}"
        module, _, kind = path.rpartition(".")
        return _plain(defaults_of(getattr(importlib.import_module(module), kind)).get(name.removeprefix("data.")))

    def compared_with(self, other: "Identity") -> list[Difference]:
        """Settings in which it differs from another, whose values are `before`; None stands for a default."""
        return list(_compared(other.settings, self.settings))

    def edited_code(self, other: "Identity") -> list[str]:
        """Modules of the user's code that differ from another's."""
        return sorted(difference.name for difference in _compared(other.code, self.code))

    def resumed_with(self, now: "Identity", step: int) -> "Identity":
        """The identity of this run when it is resumed at a step with other settings or code."""
        names = [difference.name for difference in now.compared_with(self) if now.depends_on(difference.name)]
        changes = [Difference(name, self.value(name), now.value(name), step) for name in names]
        if edited := now.edited_code(self):
            before, after = ({name: of.get(name) for name in edited} for of in (self.code, now.code))
            changes.append(Difference(CODE, before, after, step))
        return replace(now, changes=(*self.changes, *changes))

    def depends_on(self, name: str) -> bool:
        """True if training differs from a run that was begun with the new value of a setting.

        A length alone matters only to a schedule: a cycle depends on it, and a plateau's lacks a step when it is
        resumed.
        """
        schedules = ("OneCycle", "ReduceLROnPlateau")
        return not name.startswith("trainer.max_") or self.settings.get("model.lr_scheduler", "").endswith(schedules)

    @property
    def beyond_defaults(self) -> list[Difference]:
        """All that may tell the run from others: settings, unless they were changed, code at its start, and
        changes."""
        changed = {change.name for change in self.changes}
        found = [Difference(name, None, now) for name, now in self.settings.items() if name not in changed]
        code = dict(self.code)
        for change in reversed(self.changes):
            code |= change.before if change.name == CODE else {}
        found += [Difference(CODE, None, {n: digest for n, digest in code.items() if digest})] if code else []
        found += self.changes
        return [*found, *([Difference(RECORDED_BY, None, "another program")] if self.is_of_another_program else [])]


def _compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    for name in dict.fromkeys((*now, *before)):
        if before.get(name) != now.get(name):
            yield Difference(name, before.get(name), now.get(name))


def _of_config(config: Mapping[str, Any], processes: int) -> Iterator[tuple[str, Any]]:
    """The settings of a run's identity that differ from their defaults."""
    model, data, trainer = (config.get(block) or {} for block in ("model", "data", "trainer"))
    if processes > 1 and (size := setting_in(config, "data.batch_size")) is not None:
        data = {**data, "init_args": {**data["init_args"], "batch_size": size * processes}}
    # The protocol is always among them: accuracies of two protocols are never averaged.
    named = {"data.validation": validation_of(config)} if data else {}
    named |= dict(_canonical("data", {"class_path": "?", **data}))
    of_trainer = {n: trainer.get(n, defaults().get(f"trainer.{n}")) for n in of_identity("trainer")}
    of_trainer = {n: value for n, value in of_trainer.items() if not n.startswith("limit_") or limits_data(value)}
    of_trainer["callbacks"] = _callbacks(of_trainer["callbacks"])
    for block, values in (("model", by_numbers(model)), ("trainer", of_trainer)):
        for name, value in values.items():
            named |= dict(_canonical(f"{block}.{name}", value, defaults().get(f"{block}.{name}")))
    if hook := setting_in(config, "trainer.strategy.ddp_comm_hook"):  # which may round gradients
        named["trainer.strategy.ddp_comm_hook"] = hook
    if config.get("task"):
        named["task"] = config["task"]
    if config.get("best_of_ties") is not None and config["best_of_ties"] != default_ties(protocol(config)):
        named["best_of_ties"] = config["best_of_ties"]
    yield from ((name, value) for name, value in named.items() if not role(name) & (Role.PLACE | Role.HOW))


def _canonical(name: str, value: Any, default: Any = None) -> Iterator[tuple[str, Any]]:
    """A setting by its dotted name, if it differs from its default; of a class its name, and its arguments likewise."""
    if names_class(value):
        path = str(value["class_path"])
        module, _, kind = path.rpartition(".")
        of_class = defaults_of(getattr(importlib.import_module(module), kind)) if module else {}
        yield name, class_name(path)
        for argument, given in {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}.items():
            yield from _canonical(f"{name}.{argument}", given, of_class.get(argument))
    elif isinstance(value, Mapping):
        # Their order may be their meaning.
        yield name, [[int(n) if str(n).isdecimal() else n, _plain(item)] for n, item in value.items()]
    elif _plain(value) != _plain(default):
        yield name, _plain(value)


def _plain(value: Any) -> Any:
    """A value as it returns from JSON; for a class, its name and non-default arguments."""
    if names_class(value):
        return dict(_canonical("class", value))
    if isinstance(value, Mapping):
        return {str(n): _plain(item) for n, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _callbacks(value: Any) -> list[Any] | None:
    """The Trainer's callbacks without progress bars and the like."""
    callbacks = value if isinstance(value, list) else [value] if value is not None else []
    return [
        callback for callback in callbacks if not any(class_name in str(callback) for class_name in _SHOWING)
    ] or None
