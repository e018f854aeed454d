"""Layout of a run's folder; the only place that names its files."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        """Settings and results of the run, see `plif_lightning.runs.record`."""
        return self.path / "run.json"

    def source(self, name: str) -> Path:
        """Text of a module, or of a file, as the run executed or read it, see `plif_lightning.runs.code`."""
        return self.path / "code" / (name if "/" in name else f"{name}.py")

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def lock(self) -> Path:
        """Lock of the process that trains in this folder."""
        return self.path / ".lock"

    @property
    def process(self) -> Path:
        """The lock's file of its process, on a file system without locks."""
        return self.path / ".process"

    @property
    def weights(self) -> Path:
        """Histograms of W_fc / tau, a line per layer and epoch."""
        return self.path / "weights.jsonl"

    @property
    def samples(self) -> Path:
        """Spikes and votes for a few samples."""
        return self.path / "samples.npz"

    def evaluation(self, command: str) -> "RunFolder":
        """Folder for the results of a later `test`, `validate` or `predict` of its checkpoints."""
        return RunFolder(self.path / command)

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
    def confusion_matrix(self) -> Path:
        return self.path / "confusion_matrix.csv"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @staticmethod
    def of_checkpoint(checkpoint: Path) -> "RunFolder":
        """Return the run that a checkpoint belongs to; for a checkpoint outside a run, its folder."""
        folder = checkpoint.resolve().parent
        return RunFolder(folder.parent if folder.name == "checkpoints" else folder)
