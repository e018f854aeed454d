"""`metrics.csv`: a row for each epoch."""

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plif_lightning.errors import UserError
from plif_lightning.runtime.files import written_whole

_log = logging.getLogger(__name__)


def read_metrics(path: Path, problems: list[str] | None = None) -> list[dict[str, float]]:
    """One row of metrics per epoch, in order, from a run's `metrics.csv`.

    Where one epoch has several lines (validation within an epoch, older runs), they are merged: of each metric the last
    value counts, of a validation's accuracy the best, whose checkpoint is kept.

    Args:
        path: the table.
        problems: gets a sentence for each line that cannot be read, which is then left out; without it, that is an
            error.

    Raises:
        UserError: the file cannot be read as such a table.
    """
    epochs: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                # A test after the fit is logged under the last epoch but belongs to the best one.
                if not row.get("epoch") or any(value and key and key.startswith("test/") for key, value in row.items()):
                    continue
                try:
                    values = _numbers(row)
                except ValueError as error:
                    message = f"{path}, line {line}: {error}."
                    if problems is None:
                        raise UserError(message) from None
                    problems.append(f"{message} The line is left out.")
                    continue
                merge(epochs.setdefault(int(values["epoch"]), {}), values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of metrics: {error}.") from error
    return [epochs[epoch] for epoch in sorted(epochs)]


def merge(epoch: dict[str, float], line: Mapping[str, float]) -> None:
    """Adds a line of metrics to those of its epoch: the last value counts, of a validation's accuracy the best."""
    best = {key: epoch[key] for key in ("val/acc", "test_as_val/acc") if epoch.get(key, 0.0) > line.get(key, 2.0)}
    epoch.update(line)
    epoch.update(best)


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    values = {}
    for key, value in row.items():
        if key is None:
            raise ValueError(f"there are more values than columns: {value}")
        if value:
            try:
                values[key] = float(value)
            except ValueError:
                raise ValueError(f"{key} must be a number, got {value!r}") from None
    for key in ("epoch", "step"):
        if not np.isfinite(values.get(key, 0.0)):
            raise ValueError(f"{key} must be a number, got {row[key]!r}")
    return values


def layer_values(row: dict[str, float], kind: str) -> dict[str, float]:
    """Values of one kind (`tau`, `rate`) by layer, in the order of the network."""
    return {key.removeprefix(f"{kind}/"): value for key, value in row.items() if key.startswith(f"{kind}/")}


class MetricsTable:
    """Writes what `read_metrics` reads: a row for each epoch. The file is whole after every `save`.

    Args:
        path: of the table; what it holds is kept.
        before: of it, only rows of steps before this one: a resumed run writes the others again.
    """

    def __init__(self, path: Path, before: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    found = list(csv.DictReader(file))
            except (UnicodeDecodeError, csv.Error) as error:
                raise UserError(
                    f"{path} cannot be read as a table of metrics: {error}. Move it away to go on without it."
                ) from error
            for line, row in enumerate(found, start=2):
                try:
                    if _numbers(row).get("step", before) < before:
                        self.rows.append({key: value for key, value in row.items() if value})
                except ValueError as error:
                    _log.warning("%s, line %d: %s. The line is left out.", path, line, error)
            if not self.rows:
                path.unlink()

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """What was measured at a step; it joins the row of the same step and epoch, unless it is a test's."""
        row = {**metrics, "step": step}
        last = self.rows[-1] if self.rows else {}
        same = all(last.get(key) == row.get(key) for key in ("epoch", "step"))
        if same and not any(key.startswith("test/") for key in (*row, *last)):
            last.update(row)
        else:
            self.rows.append(row)

    def save(self) -> None:
        """Writes the table anew: it has one row an epoch, so it is small."""
        if not self.rows:
            return
        keys = set().union(*self.rows) - {"epoch", "step"}
        with written_whole(self.path) as file:
            writer = csv.DictWriter(file, fieldnames=["epoch", "step", *sorted(keys)])
            writer.writeheader()
            writer.writerows(self.rows)
