"""The layout of a run's folder, and what stands in it. Nothing else knows file names."""

import csv
from dataclasses import dataclass
from pathlib import Path

from plif_lightning.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def tau_curve(self) -> Path:
        return self.path / "tau_curve.png"

    @staticmethod
    def of_checkpoint(checkpoint: Path) -> "RunFolder":
        """The run a checkpoint belongs to; the checkpoint's own folder where it was moved out of one."""
        folder = checkpoint.resolve().parent
        return RunFolder(folder.parent if folder.name == "checkpoints" else folder)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """One row of metrics per epoch, in order, from a run's `metrics.csv`.

    A logger writes several lines for one epoch (training, validation, layers); they are merged.

    Raises:
        UserError: the file cannot be read as such a table.
    """
    epochs: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                # A test after the fit is logged under the last epoch but belongs to the best one.
                if not row.get("epoch") or any(value and key.startswith("test/") for key, value in row.items()):
                    continue
                merged = epochs.setdefault(int(float(row["epoch"])), {})
                for key, value in row.items():
                    if value:
                        try:
                            merged[key] = float(value)
                        except ValueError:
                            raise UserError(f"{path}, line {line}: {key} must be a number, got {value!r}.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of metrics: {error}.") from error
    return [epochs[epoch] for epoch in sorted(epochs)]


def layer_values(row: dict[str, float], kind: str) -> dict[str, float]:
    """Values of one kind (`tau`, `rate`) by layer, in the order of the network."""
    return {key.removeprefix(f"{kind}/"): value for key, value in row.items() if key.startswith(f"{kind}/")}
