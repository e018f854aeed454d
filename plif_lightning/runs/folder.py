"""The layout of a run's folder: nothing else knows the names of its files."""

from dataclasses import dataclass
from pathlib import Path


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
    def command(self) -> Path:
        """The arguments that started the run, and which process it is."""
        return self.path / "command.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains."""
        return self.path / ".lock"

    @property
    def result(self) -> Path:
        """Written when a fit has ended: where there is none, the run is running or was ended."""
        return self.path / "result.json"

    @property
    def weights(self) -> Path:
        """Distributions of W_fc / tau, a line for each layer and epoch."""
        return self.path / "weights.jsonl"

    @property
    def samples(self) -> Path:
        """What the network did with a few samples."""
        return self.path / "samples.npz"

    @property
    def wandb(self) -> Path:
        """Which W&B run it is recorded in."""
        return self.path / "wandb.json"

    def evaluation(self, command: str) -> "RunFolder":
        """Where a later `test`, `validate` or `predict` of one of its checkpoints writes."""
        return RunFolder(self.path / command)

    @property
    def test_result(self) -> Path:
        """What a later `test` of the best checkpoint measured on the whole test set."""
        return self.evaluation("test").result

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

    @property
    def confusion_counts(self) -> Path:
        return self.path / "confusion_matrix.csv"

    @property
    def confusion_picture(self) -> Path:
        return self.path / "confusion_matrix.png"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @staticmethod
    def of_checkpoint(checkpoint: Path) -> "RunFolder":
        """The run a checkpoint belongs to; the checkpoint's own folder where it was moved out of one."""
        folder = checkpoint.resolve().parent
        return RunFolder(folder.parent if folder.name == "checkpoints" else folder)
