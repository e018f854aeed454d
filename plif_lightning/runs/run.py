"""A run as read from its folder; unreadable parts are reported, the rest is read."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import CODE, Identity
from plif_lightning.runs.loading import load_mapping
from plif_lightning.runs.lock import in_use
from plif_lightning.runs.metrics import layer_values, read_metrics
from plif_lightning.runs.record import Record, read_record
from plif_lightning.runs.settings import class_name, default_ties, defaults, protocol, setting_in
from plif_lightning.runtime import program
from plif_lightning.structure import Structure, parse

RunState = Literal["new", "running", "resumable", "failed", "finished", "unreadable"]


@dataclass(frozen=True)
class Run:
    """A run as read from its folder, or from its row of a table of results.

    Attributes:
        folder: its files.
        name: path of the folder, relative to the searched folder.
        status: `new` if nothing began there; `running` while a process holds its lock; `finished`; stopped, it is
            `resumable` from a checkpoint, or `failed` without one, and begins again; `unreadable` if there is no usable
            configuration or record.
        config: nested configuration from `config.yaml`.
        metrics: a row per epoch.
        record: content of `run.json`.
        problems: a sentence for each unreadable part.
    """

    folder: RunFolder
    name: str
    status: RunState
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    record: Record = field(default_factory=Record)
    problems: list[str] = field(default_factory=list)

    def setting(self, name: str, default: Any = None) -> Any:
        """Return a configuration value by its dotted name, such as `model.init_tau` or `data.time_steps`."""
        return setting_in(self.config, name, default)

    @cached_property
    def key(self) -> str:
        """Hash of the run's identity: equal for runs that differ in their seed alone."""
        return self.identity.key if self.record.sessions else self.name

    @cached_property
    def identity(self) -> Identity:
        """What the run is, its seed aside."""
        return Identity.of_record(self.record)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that differ from their defaults, by dotted names."""
        return self.identity.settings

    def value(self, name: str) -> Any:
        """The value of a setting, its default included."""
        return self.settings.get(name, defaults().get(name, self.setting(name)))

    def surroundings(self, name: str) -> str | None:
        """Machine, versions or commit: `A, then B` where they changed on resuming; None if unknown."""
        values = [str(session.surroundings[name]) for session in self.record.sessions if name in session.surroundings]
        return ", then ".join(value for value, _ in groupby(values)) or None

    @property
    def arguments(self) -> list[str]:
        """Arguments of main.py of the first call, the last lengths included; empty if unknown."""
        sessions = self.record.sessions
        if not sessions or not sessions[0].arguments:
            return []
        changed = {name for session in sessions for name, *_ in session.changes}
        # A length that no schedule depends on might have been given at once.
        lengths = [name for name, *_ in self.identity.compared_with(Identity(sessions[0].settings))]
        later = [f"--{name}={self.identity.value(name)}" for name in lengths if name not in changed]
        return [*sessions[0].arguments, *later]

    @property
    def resumptions(self) -> list[tuple[int, list[str]]]:
        """Step and options of each call that resumed the run with changes."""
        return [
            (session.step or 0, [*session.arguments[1:]])
            for session in self.record.sessions
            if {name for name, *_ in session.changes} - {CODE}
        ]

    @property
    def started(self) -> float:
        """Time of the last start or resumption [s since 1970]; 0 if unknown."""
        return self.record.sessions[-1].started if self.record.sessions else 0.0

    @property
    def seed(self) -> int | None:
        """The run's seed; None if no other run can share it."""
        seed = self.setting("seed_everything")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def seed_or_name(self) -> int | str:
        """The run's seed, or its name where no other run can share a seed."""
        return self.name if self.seed is None else self.seed

    @property
    def data_set(self) -> str:
        """Class name of the data module; the full path if it is not part of plif_lightning."""
        return class_name(str(self.setting("data.class_path", "?")))

    @property
    def structure(self) -> Structure | None:
        """The network's layers; None for a user-defined network or an unreadable structure."""
        try:
            return None if self.record.structure is None else parse(self.record.structure)
        except UserError:
            return None

    @property
    def epochs(self) -> int:
        """Epochs since initialisation, including a checkpoint's from which the run started."""
        return int(self.metrics[-1]["epoch"]) + 1 if self.metrics else 0

    @property
    def protocol(self) -> str:
        """A: best epoch on the test set; B: best epoch on a held-out part of the training set, then tested once."""
        return protocol(self.config)

    @property
    def val_key(self) -> str:
        return "val/acc" if self.protocol == "B" else "test_as_val/acc"

    @property
    def best_of_ties(self) -> str:
        """Tie break between epochs of equal validation accuracy: `first` or `last`."""
        return self.setting("best_of_ties") or default_ties(self.protocol)

    @property
    def best_metrics(self) -> dict[str, float]:
        """Metrics of the epoch with the best validation; empty before the first."""
        if (epoch := self.record.best_epoch) is not None:  # of a published run that kept no accuracy of it
            return next((row for row in self.metrics if row["epoch"] + 1 == epoch), {})
        rows = [row for row in self.metrics if 0 <= row.get(self.val_key, math.nan) <= 1]
        if self.best_of_ties == "last":
            rows.reverse()
        return max(rows, key=lambda row: row[self.val_key], default={})

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch (from 1) and accuracy (0 to 1) of the best validation; None before the first."""
        row = self.best_metrics
        return (int(row["epoch"]) + 1, row[self.val_key]) if self.val_key in row else None

    @property
    def test(self) -> float | None:
        """Accuracy on the test set, measured once on the best epoch's weights, from 0 to 1; None if it was not."""
        return self.record.test

    @property
    def accuracy(self) -> float | None:
        """Accuracy that the protocol reports, from 0 to 1: that of the best epoch (A) or of the final test (B)."""
        if self.protocol == "B":
            return self.test
        return self.best[1] if self.best else None

    @property
    def has_result(self) -> bool:
        """True for a finished run whose accuracy is measured: of protocol B by its test."""
        return self.status == "finished" and self.accuracy is not None

    @property
    def lacks_test(self) -> bool:
        """True for a finished run of protocol B whose best checkpoint was never tested: it has no accuracy."""
        return self.status == "finished" and self.protocol == "B" and self.test is None

    @property
    def samples(self) -> dict[str, int]:
        """Number of samples of each part of the data."""
        tested = self.record.tested
        return {**self.record.data.samples, **({"test": tested} if tested else {})}

    @property
    def tested_samples(self) -> int | None:
        """Number of samples that `accuracy` was measured on; None if unknown."""
        return self.samples.get("test", self.samples.get("test as val"))

    @property
    def firing_rate(self) -> float | None:
        """Spikes per neuron and time-step over the network in the best epoch; None if unknown."""
        spikes, updates = self.spikes, self._updates
        return None if spikes is None or not updates else spikes / sum(updates.values())

    @property
    def spikes(self) -> float | None:
        """Spikes for a validation sample in the best epoch; None if they are unknown."""
        rates, updates = layer_values(self.best_metrics, "rate"), self._updates
        if not updates or not updates.keys() <= rates.keys():
            spikes: float | None = self.record.cost.get("spikes")  # of a row of a table of results
            return spikes
        return sum(rates[layer] * n for layer, n in updates.items())

    @property
    def _updates(self) -> dict[str, float]:
        """Neurons times steps of each layer that has neurons."""
        updates: dict[str, float] = self.record.cost.get("updates", {})
        return updates

    @property
    def energy(self) -> float | None:
        """Estimated energy for a sample [uJ], with 8-bit weights and memory, see `deploy.costs`; None if unknown."""
        picojoules = self.record.cost.get("pj_int8_reused")
        return None if picojoules is None else picojoules / 1e6

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Return epochs (from 1) and values of a metric."""
        rows = [row for row in self.metrics if name in row]
        return [row["epoch"] + 1 for row in rows], [row[name] for row in rows]

    def layers(self, kind: str) -> list[str]:
        """Return the layers that have values of a kind (`tau`, `rate`), in network order."""
        names: dict[str, None] = {}
        for row in self.metrics:
            names |= dict.fromkeys(layer_values(row, kind))
        return list(names)


def not_replaced(runs: Sequence[Run]) -> list[Run]:
    """Runs without those that a later one replaces: of the same identity and seed, or name where there is no seed.

    The later one is that which was started or resumed last.
    """
    by_start = sorted(runs, key=lambda run: run.started)
    latest = {(run.key, run.seed_or_name): id(run) for run in by_start}
    chosen = set(latest.values())
    return [run for run in runs if id(run) in chosen]


def read_run(folder: Path, root: Path | None = None) -> Run:
    """Read a run's folder; `Run.problems` names unreadable parts.

    Args:
        folder: of the run.
        root: folder that its name is relative to.
    """
    files = RunFolder(folder)
    problems: list[str] = []
    config, record, metrics = dict[str, Any](), Record(), list[dict[str, float]]()
    with _noting(problems):
        config = load_mapping(files.config)
    with _noting(problems):
        record = read_record(files)
    state = _state_of(files, record, readable=not problems)
    with _noting(problems):
        metrics = read_metrics(files.metrics, problems)
    name = os.path.relpath(folder, root) if root is not None else folder.name
    return Run(
        files,
        folder.name if name == "." else name,
        state,
        config,
        metrics,
        record,
        problems,
    )


@contextlib.contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Note what cannot be read; it never stops reading the rest."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))


def _state_of(files: RunFolder, record: Record, readable: bool) -> RunState:
    if not files.record.exists():
        return "new"
    if not readable:
        return "unreadable"
    if record.ended is not None:  # taken out where it is resumed
        return "finished"
    if in_use(files):
        return "running"
    return "resumable" if files.last.is_file() else "failed"


def find_runs(root: Path | str) -> list[Run]:
    """Return all runs in a folder and its subfolders in path order, unreadable ones included.

    Raises:
        UserError: the folder does not exist, or has no runs.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"runs must be a folder, got {root}, which does not exist: pass another, such as --runs DIR.")
    runs, seen, waiting = list[Run](), set[tuple[int, int]](), [root]
    while waiting:  # folders behind links follow the tree that holds the links
        for folder, below, files in os.walk(waiting.pop(0)):
            status = Path(folder).stat()
            if (inode := (status.st_dev, status.st_ino)) in seen:
                below.clear()
                continue
            seen.add(inode)
            below[:] = sorted((name for name in below if not name.startswith(".")), key=_by_number)
            if "run.json" in files:
                runs.append(read_run(Path(folder), root))
                below.clear()  # subfolders hold evaluations of this run
            waiting += [link for name in below if (link := Path(folder, name)).is_symlink()]
    if not runs:
        raise UserError(f"there is no run in {root}: `{program.program_name()} fit --config quickstart` creates one.")
    return runs


def _by_number(name: str) -> list[tuple[int, Any]]:
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return [(0, "".join(c for c in name if not c.isdigit())), *((1, int(d)) for d in digits)]
