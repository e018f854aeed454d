"""`weights.jsonl`: histograms of W_fc / tau, one line per layer and epoch (Fig. S1)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runtime.files import naming


@dataclass(frozen=True)
class Histogram:
    """Histogram of an FC layer's W / tau after an epoch, counted from 1, with equally spaced edges.

    `mean` and `std` are those of W / tau itself, not of the bins; None in lines of older runs.
    """

    layer: str
    epoch: int
    low: float
    high: float
    counts: NDArray[np.int64]
    mean: float | None = None
    std: float | None = None


def append_histograms(folder: RunFolder, rows: Sequence[Histogram]) -> None:
    """Append lines. If a resumed run repeats an epoch, readers use the later line."""
    with naming(folder.weights), folder.weights.open("a+b") as file:
        if file.tell() and file.seek(-1, 2) and file.read(1) != b"\n":
            file.write(b"\n")  # behind the part of a line that a killed process wrote
        file.writelines(f"{json.dumps({**asdict(row), 'counts': row.counts.tolist()})}\n".encode() for row in rows)


def read_histograms(folder: RunFolder) -> list[Histogram]:
    """Return the histograms of W / tau in the order of epochs, skipping unreadable lines."""
    found: dict[tuple[str, int], Histogram] = {}
    try:
        lines = folder.weights.read_text("utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            counts = np.asarray(row["counts"], np.int64)
            low, high = float(row["low"]), float(row["high"])
            if counts.ndim != 1 or counts.sum() <= 0 or not -np.inf < low < high < np.inf:
                continue
            key = str(row["layer"]), int(row["epoch"])
            mean, std = (None if row.get(name) is None else float(row[name]) for name in ("mean", "std"))
            found[key] = Histogram(*key, low, high, counts, mean, std)
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return sorted(found.values(), key=lambda h: h.epoch)
