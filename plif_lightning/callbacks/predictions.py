"""Write predictions and the confusion matrix as CSV."""

import csv
import itertools
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from plif_lightning.callbacks.logger import run_folder, writes_files
from plif_lightning.data import SpikingDataModule
from plif_lightning.runtime.files import atomic_write
from plif_lightning.training.task import SpikingClassifier

Batch = dict[str, Tensor]


def class_names_of(trainer: L.Trainer, num_classes: int) -> list[str]:
    """Return the class names of the data set, or class numbers if it has none."""
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return list(names or map(str, range(num_classes)))


class ConfusionMatrix(Callback):
    """Writes `confusion_matrix.csv` of a test: samples of each class (rows) by their prediction (columns)."""

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        if not writes_files(trainer):
            return
        counts = pl_module.confusion_matrix.tolist()
        names = class_names_of(trainer, len(counts))
        with atomic_write(run_folder(trainer).confusion_matrix) as file:
            writer = csv.writer(file)
            writer.writerow(["true \\ predicted", *names])
            writer.writerows([name, *row] for name, row in zip(names, counts, strict=True))


class PredictionWriter(Callback):
    """Writes `predictions.csv`: sample, label and prediction, as numbers and by name, and the votes for each class.

    Rows are in the order of the data. Samples of folders have their file, and their window's times if they are events.
    """

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self.path: Path | None = None

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.received_sigterm:  # Lightning checks only in training and evaluation
            raise SIGTERMException
        self._batches.append({key: value.cpu() for key, value in outputs.items()})

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batches, self._batches = _of_all_processes(self._batches, trainer.world_size), []
        folder = run_folder(trainer)
        if not writes_files(trainer):
            return
        columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        names = class_names_of(trainer, columns["votes"].shape[1])
        data = getattr(trainer, "datamodule", None)
        provenance = data.provenance(train=False) if isinstance(data, SpikingDataModule) else {}
        self.path = folder.predictions
        with atomic_write(self.path) as file:
            writer = csv.writer(file)
            # Names may look like other numbers: the folders 0, 1, 10, 2 are the classes 0 to 3.
            votes = [f"votes {name}" for name in names]
            writer.writerow(["sample", *provenance, "label", "prediction", "label name", "prediction name", *votes])
            for i in columns["sample"].argsort().tolist():
                sample = int(columns["sample"][i])
                classes = [int(columns[key][i]) for key in ("label", "prediction")]
                named = [names[label] if 0 <= label < len(names) else "" for label in classes]
                row = [f"{vote:.6g}" for vote in columns["votes"][i].tolist()]
                origin = [column[sample] for column in provenance.values()]
                writer.writerow([sample, *origin, *classes, *named, *row])


def _of_all_processes(batches: list[Batch], count: int) -> list[Batch]:
    """Return the batches of all processes. Collective: every process must call it."""
    if count == 1:
        return batches
    gathered: list[list[Batch]] = [[] for _ in range(count)]
    torch.distributed.all_gather_object(gathered, batches)
    return list(itertools.chain.from_iterable(gathered))
