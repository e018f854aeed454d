"""`results.jsonl`: runs to publish, a line a run with its settings, record and the metrics of some epochs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from plif_lightning.errors import UserError
from plif_lightning.runs.command import recorded_arguments
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.record import Record
from plif_lightning.runs.run import Run, find_runs, not_replaced
from plif_lightning.runs.settings import Role, role
from plif_lightning.runtime.files import atomic_write

# Epochs, from 1, with published metrics, beside the best, the last and the first to reach an accuracy [%].
_EPOCHS = (1, 2, 3, 5, 10, 15, 20, 30, 64, 100, 1024)
_LEVELS = (50, 60, 70, 80, 90, 92, 93, 93.5, 93.85, 99, 99.5, 99.55, 99.65)


def publish(run: Run) -> Run:
    """A finished run without paths and processes, with the metrics of some epochs."""
    sessions = []
    for session in run.record.sessions:
        options = [f"--{name}={value}" for name, value in recorded_arguments(run, session.arguments[1:])]
        sessions.append(replace(session, arguments=[*session.arguments[:1], *options], process={}))
    record = replace(run.record, sessions=sessions, wandb=None)
    return replace(run, config=_without_local_settings(run.config), record=record, metrics=_published_rows(run))


def _without_local_settings(block: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A configuration without paths, display and loader processes."""
    config = {}
    for name, value in block.items():
        full = above.rstrip(".") if name in ("init_args", "dict_kwargs") else f"{above}{name}"
        if not role(full) & Role.PLACE:
            config[name] = _without_local_settings(value, f"{full}.") if isinstance(value, Mapping) else value
    return config


def _published_rows(run: Run) -> list[dict[str, float]]:
    best = run.best_metrics
    epochs = {*_EPOCHS, *([best["epoch"] + 1] if best else [])}
    for name in {name for row in run.metrics for name in row if name.endswith("/acc") and name != "train/acc"}:
        # of other sets than the one that chooses, too, which callbacks may measure
        epochs.add(max((row[name], -row["epoch"], row["epoch"] + 1) for row in run.metrics if name in row)[2])
    for level, above in pairwise((*_LEVELS, math.inf)):
        # In float32 metrics 0.9 is slightly less. If an epoch is the first at more than a level, the highest counts.
        shares = ((row["epoch"] + 1, round(100 * row[run.val_key], 4)) for row in run.metrics if run.val_key in row)
        first = next(((epoch, share) for epoch, share in shares if share >= level), None)
        epochs |= {first[0]} if first is not None and first[1] < above else set()
    return [row for row in run.metrics if row is run.metrics[-1] or row["epoch"] + 1 in epochs]


def runs_in(path: Path | str) -> list[Run]:
    """The runs of a folder and its subfolders, see `find_runs`, or of a file of published ones.

    Raises:
        UserError: there are none, or the file is something else.
    """
    return read_published(Path(path)) if Path(path).is_file() else find_runs(path)


def read_published(path: Path) -> list[Run]:
    """Read the runs of a file that `add_published` wrote.

    Raises:
        UserError: the file is not such a file.
    """
    runs = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as published runs: {error}.") from error
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            record = Record.of(fields["record"])
            run = Run(RunFolder(path), fields["run"], "finished", fields["config"], fields["metrics"], record)
            has_accuracy = run.accuracy is not None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is not a published run: {error!r}.") from error
        if not has_accuracy:
            raise UserError(f"{path}, line {number}: the run {run.name} has no accuracy.")
        runs.append(run)
    return runs


def add_published(path: Path, runs: Sequence[Run], order: Sequence[str] = ()) -> list[Run]:
    """Add the finished runs to a file of published ones and return all of them.

    Of runs with the same key and seed the one that was started or resumed last stays, see `not_replaced`.

    Args:
        path: the file, which may not exist yet.
        runs: of which the finished ones are added.
        order: titles of data sets that come first.

    Raises:
        UserError: path is another file.
    """
    finished = [run for run in runs if run.has_result]
    old = read_published(path) if path.exists() else []
    kept = not_replaced([*old, *map(publish, finished)])

    def sort_key(run: Run) -> tuple[Any, ...]:
        title = str(run.record.data.title)
        rank = order.index(title) if title in order else len(order)
        return rank, title, run.protocol, run.arguments, run.epochs, str(run.seed_or_name)

    with atomic_write(path) as file:
        file.writelines(f"{json.dumps(_line(run), default=str)}\n" for run in sorted(kept, key=sort_key))
    return read_published(path)


def _line(run: Run) -> dict[str, Any]:
    return {"run": run.name, "config": run.config, "record": run.record.content(), "metrics": run.metrics}
