"""Write a run's best and last checkpoint."""

import math
import os
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from plif_lightning.callbacks.logger import is_trial, run_folder
from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.network.loading import load_checkpoint
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runtime.files import is_address, written_whole
from plif_lightning.training.task import SpikingClassifier

Ties = Literal["first", "last"]


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints atomically and refuses damaged ones.

    Lightning's own plugin writes to a temporary folder and moves the file. Across file systems that copies over the
    previous checkpoint, so a failed write may silently leave no checkpoint at all.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if is_address(str(path)):  # from a user's own ModelCheckpoint
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        for left in path.parent.glob(f"{path.name}.*.tmp"):  # left by a process killed while writing
            left.unlink(missing_ok=True)
        with written_whole(path, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))


class BestCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/best.ckpt`, the epoch with the highest accuracy under the run's protocol.

    Args:
        ties: which of several epochs with equal accuracy to keep; None: the last on a held-out validation set, as in
            the authors' code behind Table S2, and the first on the test set.
    """

    def __init__(self, ties: Ties | None = None) -> None:
        self.ties = ties
        # Update after each validation, before `last.ckpt` is written with this callback's state.
        super().__init__(
            filename=RunFolder(Path()).best.stem,
            mode="max",
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        self.monitor = f"{pl_module.val_name}/acc"
        self.ties = self.ties or ("last" if pl_module.val_name == "val" else "first")
        self.dirpath = os.fspath(run_folder(trainer).checkpoints)
        super().setup(trainer, pl_module, stage)

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        better = super().check_monitor_top_k(trainer, current)
        if self.ties == "first" or current is None or self.best_model_score is None:
            return better
        # The reduction is collective: every process calls it, whatever its own value.
        same = bool(current == self.best_model_score.to(current.device))
        return better | trainer.strategy.reduce_boolean_decision(same)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # If the folder's path has changed (relative, moved), ModelCheckpoint would reset the best accuracy and let a
        # worse epoch overwrite best.ckpt. A run that starts in a new folder has no best.ckpt and starts its own search.
        folder = RunFolder(Path(self.dirpath or "").parent)
        path, score = folder.best, state_dict["best_model_score"]
        if score is not None and not path.is_file() and folder.last.is_file():
            # last.ckpt in this folder shows that the run is resumed in place.
            raise CheckpointError(
                f"{path}, the best checkpoint so far ({100 * float(score):.2f} %), is missing: without it the run "
                f"would report another epoch as its best. Restore it, or start a new run from {folder.last} with "
                "--ckpt_path and another --run_folder."
            )
        if path.is_file() and score is not None:
            here = os.fspath(path)
            paths = {"dirpath": self.dirpath, "best_model_path": here, "kth_best_model_path": here}
            super().load_state_dict({**state_dict, **paths, "best_k_models": {here: score}})

    @property
    def state_key(self) -> str:
        # ModelCheckpoint's key contains the monitored metric, which is unknown when a checkpoint is loaded.
        return type(self).__name__


def best_checkpoint(trainer: L.Trainer) -> BestCheckpoint | None:
    """Return the callback that keeps this run's best checkpoint; None if there is none."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt`, from which an interrupted run resumes.

    Args:
        every_n_batches: also write it after this many training batches, not only after each epoch; a killed run
            loses at most that many. During gradient accumulation or right before a validation, it waits for the next
            batch after which the run can be resumed exactly.

    Attributes:
        due: write it after the next possible batch; other callbacks may set this.
    """

    def __init__(self, every_n_batches: int | None = None) -> None:
        if every_n_batches is not None and every_n_batches < 1:
            raise UserError(f"checkpoint.every_n_batches must be at least 1, got {every_n_batches}.")
        self.every_n_batches = every_n_batches
        self.due = False
        self.last_model_path = ""

    def _save(self, trainer: L.Trainer) -> None:
        self.due = False
        if not is_trial(trainer):
            path = run_folder(trainer).last
            trainer.save_checkpoint(path, weights_only=False)
            self.last_model_path = os.fspath(path)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if self.every_n_batches is not None and done % self.every_n_batches == 0:
            self.due = True
        if not self.due:
            return
        validation_next = done % (getattr(trainer, "val_check_batch", None) or math.inf) == 0
        accumulating = done % trainer.accumulate_grad_batches != 0
        if not (trainer.is_last_batch or validation_next or accumulating):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The progress bar has just requested the epoch's metrics on rank 0 only, which now waits for the other ranks
        # to reduce theirs. They must do so before any other collective.
        _ = trainer.callback_metrics
        self._save(trainer)
