"""Write predictions as CSV."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from plif_lightning.callbacks.logger import is_trial, run_folder
from plif_lightning.callbacks.plots import class_names_of
from plif_lightning.runtime.files import written_whole


class PredictionWriter(Callback):
    """Writes `predictions.csv`: sample, label, prediction and the votes for each class, in the order of the data."""

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []
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
        gathered = [self._batches]
        if trainer.world_size > 1:
            gathered = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self._batches)
        self._batches = []
        folder = run_folder(trainer)
        if not trainer.is_global_zero or is_trial(trainer):
            return
        batches = [batch for of_rank in gathered for batch in of_rank]
        columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        order = columns["sample"].argsort().tolist()
        names = class_names_of(trainer, columns["votes"].shape[1])
        self.path = folder.predictions
        with written_whole(self.path) as file:
            writer = csv.writer(file)
            writer.writerow(["sample", "label", "prediction", *(f"votes {name}" for name in names)])
            for i in order:
                votes = [f"{vote:.6g}" for vote in columns["votes"][i].tolist()]
                writer.writerow([*(columns[key][i].item() for key in ("sample", "label", "prediction")), *votes])
