"""`metrics.csv`: a row per epoch."""

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plif_lightning.errors import UserError
from plif_lightning.runtime.files import atomic_write

_log = logging.getLogger(__name__)


def read_metrics(path: Path, problems: list[str] | None = None) -> list[dict[str, float]]:
    """Read a row of metrics per epoch, in order, from a run's `metrics.csv`.

    Lines of an epoch are merged. Of its validations only the last counts: its line has the metrics of the
    training, too, and its weights are in the checkpoint.

    Args:
        path: the table; without it there are no rows.
        problems: list that receives a sentence for each unreadable line, which is skipped; None: raise an error.

    Raises:
        UserError: the file, or without `problems` a line, cannot be read.
    """
    epochs: dict[int, dict[str, float]] = {}
    validated: dict[int, dict[str, float]] = {}
    try:
        for line, row in _lines(path):
            if not _is_of_epoch(row):
                continue
            try:
                values = _numbers(row)
            except ValueError as error:
                message = f"{path}, line {line}: {error}."
                if problems is None:
                    raise UserError(message) from None
                problems.append(f"{message} The line is skipped.")
                continue
            if not any(name.startswith("train/") for name in values):
                measured = {name: value for name, value in values.items() if name.startswith(_OF_VALIDATION)}
                validated[int(values["epoch"])] = measured or validated.get(int(values["epoch"]), {})
                values = {name: value for name, value in values.items() if name not in measured}
            epochs.setdefault(int(values["epoch"]), {}).update(values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of metrics: {error}.") from error
    for epoch, row in epochs.items():
        # Killed between last.ckpt and this table, which lacks the epoch's last line: its last validation ended it.
        if epoch < max(epochs) and not any(name.startswith("train/") for name in row):
            row.update(validated.get(epoch, {}))
    return [epochs[epoch] for epoch in sorted(epochs)]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the values of each line below the header; none before a run has written the table."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        yield from enumerate(csv.DictReader(file), start=2)


def _is_of_epoch(row: dict[str, Any]) -> bool:
    """True for metrics of an epoch; a test after the fit is logged under the last epoch but belongs to the best."""
    return bool(row.get("epoch")) and not _is_of_test({name: value for name, value in row.items() if value and name})


def _is_of_test(row: Mapping[str, Any]) -> bool:
    """True if a row has metrics of the test set."""
    return any(name.startswith("test/") for name in row)


# Metrics that a validation measures.
_OF_VALIDATION = ("val/", "test_as_val/", "rate/")
_ACCURACIES = ("val/acc", "test_as_val/acc")


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in row.items() if value}
    except (ValueError, TypeError) as error:
        raise ValueError(f"every value must be a number ({error})") from None


def layer_values(row: dict[str, float], quantity: str) -> dict[str, float]:
    """Return the values of a kind (`tau`, `rate`) by layer, in network order."""
    return {name.removeprefix(f"{quantity}/"): value for name, value in row.items() if name.startswith(f"{quantity}/")}


# Axis labels and heads of layer values; others are labelled by their names.
LAYER_TITLES = {"tau": "tau [time-steps]", "delay": "delay [time-steps]", "rate": "firing rate [per neuron and step]"}


# Prefixes of metrics of the network.
_STAGES = {"train", "val", "test_as_val", "test"}


def layer_quantities(metrics: Iterable[Mapping[str, float]]) -> list[str]:
    """Kinds of values that rows hold for layers, as `KIND/LAYER`: `tau`, `rate` and whatever else a callback logs."""
    quantities = {name.partition("/")[0] for row in metrics for name in row if "/" in name} - _STAGES
    return sorted(quantities, key=lambda quantity: ([*LAYER_TITLES, quantity].index(quantity), quantity))


class MetricsTable:
    """Writes the table that `read_metrics` reads, a row per epoch and validation; every `save` is atomic.

    Args:
        path: the table; existing rows are kept.
        before: drop existing rows from this step on, because a resumed run writes them again.
    """

    def __init__(self, path: Path, before: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        try:
            lines = [*_lines(path)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"{path} cannot be read as a table of metrics: {error}. Move it away to continue without it."
            ) from error
        for line, row in lines:
            try:
                if _numbers(row).get("step", before) < before:
                    self.rows.append({name: value for name, value in row.items() if value})
            except ValueError as error:
                _log.warning("%s, line %d: %s. The line is skipped.", path, line, error)
        if not self.rows:
            path.unlink(missing_ok=True)

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Add metrics of a step to the row of the same step and epoch; a test and a second validation get separate
        rows."""
        row = {**metrics, "step": step}
        last = self.rows[-1] if self.rows else {}
        same = all(last.get(name) == row.get(name) for name in ("epoch", "step"))
        again = any(name in last and name in row for name in _ACCURACIES)
        if same and not again and not _is_of_test({**row, **last}):
            last.update(row)
        else:
            self.rows.append(row)

    def save(self) -> None:
        """Rewrite the table, which is small: a row per epoch."""
        if not self.rows:
            return
        keys = set().union(*self.rows) - {"epoch", "step"}
        with atomic_write(self.path) as file:
            writer = csv.DictWriter(file, fieldnames=["epoch", "step", *sorted(keys)])
            writer.writeheader()
            writer.writerows(self.rows)


def value_in_words(metric: str, value: float) -> str:
    """`97.20 %` for an accuracy, five digits for another metric."""
    return f"{100 * value:.2f} %" if metric.endswith("acc") else f"{value:.5g}"
