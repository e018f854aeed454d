"""`metrics.csv`: a row for each epoch."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from plif_lightning.errors import UserError
from plif_lightning.runtime.files import written_whole


def read_metrics(path: Path, problems: list[str] | None = None) -> list[dict[str, float]]:
    """One row of metrics per epoch, in order, from a run's `metrics.csv`.

    A logger writes several lines for one epoch (training, validation, layers); they are merged.

    Args:
        path: the table.
        problems: gets a sentence for each line that cannot be read, which is then left out; without it, that is an
            error.

    Raises:
        UserError: the file cannot be read as such a table.
    """
    epochs: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="") as file:
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
                epochs.setdefault(int(values["epoch"]), {}).update(values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of metrics: {error}.") from error
    return [epochs[epoch] for epoch in sorted(epochs)]


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
    if not np.isfinite(values["epoch"]):
        raise ValueError(f"epoch must be a number, got {row['epoch']!r}")
    return values


def layer_values(row: dict[str, float], kind: str) -> dict[str, float]:
    """Values of one kind (`tau`, `rate`) by layer, in the order of the network."""
    return {key.removeprefix(f"{kind}/"): value for key, value in row.items() if key.startswith(f"{kind}/")}


def keep_rows_before(path: Path, step: int) -> list[str]:
    """Takes the rows from a step on out of a table, which a resumed run will write again.

    Returns:
        The columns of what is left; none where nothing is, and the file is gone then.
    """
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if row.get("step") and int(float(row["step"])) < step]
        columns = list(reader.fieldnames or [])
    if not rows:
        path.unlink()
        return []
    with written_whole(path) as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
    return columns
