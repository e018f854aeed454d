"""Write predictions as CSV."""

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
from plif_lightning.callbacks.plots import class_names_of
from plif_lightning.runtime.files import written_whole

Batch = dict[str, Tensor]


class PredictionWriter(Callback):
    """Writes `predictions.csv`: sample, label and prediction, as numbers and by name, and the votes for each class.

    Rows are in the order of the data.
    """

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self.path: Path | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches = []

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
        batches = _of_all_processes(self._batches, trainer.world_size)
        self._batches = []
        folder = run_folder(trainer)
        if not writes_files(trainer):
            return
        columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        names = class_names_of(trainer, columns["votes"].shape[1])
        self.path = folder.predictions
        with written_whole(self.path) as file:
            writer = csv.writer(file)
            # Names may look like other numbers: the folders 0, 1, 10, 2 are the classes 0 to 3.
            of_classes = ["label", "prediction"]
            header = [
                "sample",
                *of_classes,
                *(f"{one} name" for one in of_classes),
                *(f"votes {name}" for name in names),
            ]
            writer.writerow(header)
            for i in columns["sample"].argsort().tolist():
                votes = [f"{vote:.6g}" for vote in columns["votes"][i].tolist()]
                classes = [int(columns[key][i]) for key in of_classes]
                writer.writerow(
                    [
                        columns["sample"][i].item(),
                        *classes,
                        *(names[one] if 0 <= one < len(names) else "" for one in classes),
                        *votes,
                    ]
                )


def _of_all_processes(batches: list[Batch], count: int) -> list[Batch]:
    """Return the batches of all processes. Collective: every process must call it."""
    if count == 1:
        return batches
    gathered: list[list[Batch]] = [[] for _ in range(count)]
    torch.distributed.all_gather_object(gathered, batches)
    return list(itertools.chain.from_iterable(gathered))
