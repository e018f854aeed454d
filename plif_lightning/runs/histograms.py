"""`weights.jsonl`: histograms of W_fc / tau, a line per layer and epoch (Fig. S1)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runtime.files import naming


@dataclass(frozen=True)
class Histogram:
    """Histogram of an FC layer's W / tau after an epoch, counted from 1, with equally spaced edges.

    `mean` and `std` are of W / tau itself, not of the bins.
    """

    layer: str
    epoch: int
    low: float
    high: float
    counts: list[int]
    mean: float
    std: float


def append_histograms(folder: RunFolder, rows: Sequence[Histogram]) -> None:
    """Append lines. If a resumed run repeats an epoch, readers use the later line."""
    with naming(folder.weights), folder.weights.open("a+b") as file:
        if file.tell() and file.seek(-1, 2) and file.read(1) != b"\n":
            file.write(b"\n")  # behind the part of a line that a killed process wrote
        file.writelines(f"{json.dumps(asdict(row))}\n".encode() for row in rows)


def read_histograms(folder: RunFolder) -> list[Histogram]:
    """Return the histograms of W / tau in the order of epochs, without a line that a kill cut off."""
    histograms: dict[tuple[str, int], Histogram] = {}
    for line in folder.weights.read_text("utf-8").splitlines() if folder.weights.is_file() else ():
        try:
            row = Histogram(**json.loads(line))
        except (ValueError, TypeError):
            continue
        histograms[row.layer, row.epoch] = row
    return sorted(histograms.values(), key=lambda row: row.epoch)
