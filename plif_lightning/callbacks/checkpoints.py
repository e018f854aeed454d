"""Write a run's last checkpoint, and link its best."""

import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler
from lightning.pytorch.plugins.io import TorchCheckpointIO

from plif_lightning.callbacks.logger import is_fast_dev_run, run_folder
from plif_lightning.data.loading import ResumableLoader
from plif_lightning.errors import CheckpointError, require_count
from plif_lightning.network.storage.checkpoint import load_checkpoint
from plif_lightning.runs.settings import default_ties
from plif_lightning.runtime.files import atomic_write, is_address

_log = logging.getLogger(__name__)
Ties = Literal["first", "last"]


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints atomically and refuses damaged ones.

    Lightning's plugin writes to a temporary folder and moves the file. Across file systems that copies over the
    previous checkpoint, so a failed write may silently leave no checkpoint at all.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if is_address(str(path)):  # from a user's ModelCheckpoint
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        for left in path.parent.glob(f"{path.name}.*.tmp"):  # left by a process killed while writing
            left.unlink(missing_ok=True)
        with atomic_write(path, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def link_or_copy(path: Path, name: Path) -> None:
    """Give a file a second name, replacing any file there; both share content until either is replaced."""
    beside = name.with_name(f"{name.name}.link")
    try:
        beside.unlink(missing_ok=True)  # left by a process killed here
        os.link(path, beside)
    except OSError:  # a file system without links
        with atomic_write(name, "wb") as file, path.open("rb") as content:
            shutil.copyfileobj(content, file)
    else:
        beside.replace(name)
        beside.unlink(missing_ok=True)  # a rename to another name of the same file does nothing


def can_save(trainer: L.Trainer, done: int) -> bool:
    """True if a run can be resumed exactly from its state after this batch, of which `done` are done in this epoch.

    Not within gradient accumulation, nor right before a validation or the end of the epoch, which would not follow.
    """
    if trainer.is_last_batch or done % trainer.accumulate_grad_batches:
        return False
    interval = getattr(trainer, "_val_check_time_interval", None)
    if interval is not None:
        return time.monotonic() - trainer._last_val_time < interval  # type: ignore[attr-defined]
    if trainer.check_val_every_n_epoch is None:  # Lightning counts over epochs then
        done = trainer.fit_loop.total_batch_idx + 1
    return done % (getattr(trainer, "val_check_batch", None) or math.inf) != 0


class RunCheckpoints(Checkpoint):
    """Keeps `checkpoints/last.ckpt`, from which an interrupted run resumes, and `best.ckpt`, that of the best epoch.

    Which epoch is best is decided here, at its end, by the accuracy of the validation that ended it: validations
    within an epoch select nothing. last.ckpt is written first and records the best epoch, then best.ckpt is linked to
    it; a run that is killed in between links it when it is resumed.

    Args:
        every_n_batches: also write last.ckpt after this many training batches, not only after each epoch; a killed run
            loses at most that many. During gradient accumulation or right before a validation, it waits for the next
            batch after which the run can be resumed exactly.

    Attributes:
        due: write last.ckpt after the next possible batch; other callbacks may set this.
        ties: which of equally accurate epochs to keep; None: the last on a held-out validation set, as in
            the authors' code behind Table S2, and the first on the test set.
        best_epoch: counted from 0; None before the first validation.
        best_accuracy: of that epoch.
        last_model_path: of last.ckpt, as in Lightning's `ModelCheckpoint`; empty before it is there.
    """

    def __init__(self, every_n_batches: int | None = None) -> None:
        if every_n_batches is not None:
            require_count("checkpoint.every_n_batches", every_n_batches)
        self.every_n_batches = every_n_batches
        self.due = False
        self.ties: Ties | None = None
        self.best_epoch: int | None = None
        self.best_accuracy = -math.inf
        self.last_model_path = ""
        self._measured = math.nan  # by a validation that no training has followed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.ties = self.ties or default_ties("B" if pl_module.val_name == "val" else "A")  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        return {"best_epoch": self.best_epoch, "best_accuracy": self.best_accuracy}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the best epoch of a run that is resumed in place; other runs start without a best epoch."""
        state, folder = checkpoint["callbacks"].get(self.state_key), run_folder(trainer)
        best = state and state["best_epoch"]
        if best is None or not folder.last.is_file():
            return
        self.last_model_path = str(folder.last)
        self.best_epoch, self.best_accuracy = best, state["best_accuracy"]
        if trainer.is_global_zero and best == checkpoint["epoch"]:  # killed before the link, perhaps
            link_or_copy(folder.last, folder.best)
        elif trainer.is_global_zero and not folder.best.is_file():
            raise CheckpointError(
                f"{folder.best}, the best checkpoint so far ({100 * self.best_accuracy:.2f} %), is missing: without it "
                "the run would report another epoch as its best. Restore it, or start a new run from "
                f"{folder.last} with --ckpt_path and another --run_folder."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning calls no on_train_epoch_start for an epoch that a run resumes in its middle.
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer)
        self._set_position_in_epoch(trainer)
        every, batches = trainer.val_check_batch or math.inf, trainer.num_training_batches
        if every < batches < math.inf and batches % every:
            _log.warning(
                "An epoch has %d batches and a validation comes every %d: none ends an epoch, so no epoch is the best "
                "one. Pass another --trainer.val_check_interval.",
                *(batches, every),
            )

    @staticmethod
    def _set_position_in_epoch(trainer: L.Trainer) -> None:
        """Count a resumed epoch's batches in the current batch size: another size or number of processes may have begun
        it."""
        loader = trainer.train_dataloader
        if isinstance(loader, ResumableLoader) and loader.plan.done(trainer.current_epoch):
            current: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            further = loader.batches_done(trainer.current_epoch) - current.processed
            for count in ("ready", "started", "processed", "completed"):
                setattr(current, count, getattr(current, count) + further)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._measured = math.nan

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if self.every_n_batches is not None and done % self.every_n_batches == 0:
            self.due = True
        if self.due and can_save(trainer, done):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._measured = float(trainer.callback_metrics.get(f"{pl_module.val_name}/acc", math.nan))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The progress bar has just requested the epoch's metrics on rank 0 only, which now waits for the other ranks
        # to reduce theirs. They must do so before any other collective.
        _ = trainer.callback_metrics
        is_best = self._measured > self.best_accuracy or (self._measured == self.best_accuracy and self.ties == "last")
        if is_best:
            self.best_epoch, self.best_accuracy = trainer.current_epoch, self._measured
        self._save(trainer)
        if is_best and trainer.is_global_zero and not is_fast_dev_run(trainer):
            link_or_copy(run_folder(trainer).last, run_folder(trainer).best)

    def _save(self, trainer: L.Trainer) -> None:
        self.due = False
        if not is_fast_dev_run(trainer):
            trainer.save_checkpoint(run_folder(trainer).last, weights_only=False)
            self.last_model_path = str(run_folder(trainer).last)


def run_checkpoints(trainer: L.Trainer) -> RunCheckpoints | None:
    """Return the callback that writes this run's checkpoints; None if there is none."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoints)), None)
