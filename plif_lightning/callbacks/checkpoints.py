"""Write a run's best and last checkpoint."""

import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from plif_lightning.callbacks.logger import is_trial, run_folder
from plif_lightning.errors import CheckpointError, require_count
from plif_lightning.network.checkpoint import load_checkpoint
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

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_global_step_saved = -1  # several validations may fall between two steps of the optimiser
        super().on_validation_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        # A run killed before `last.ckpt` is written resumes from the previous one, and needs the best known then.
        folder = RunFolder(Path(filepath).parents[1])
        if trainer.is_global_zero and folder.best.is_file() and not folder.best_before.exists():
            _keep(folder.best, folder.best_before)
        super()._save_checkpoint(trainer, filepath)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        folder = RunFolder(Path(self.dirpath or "").parent)
        if trainer.is_global_zero and folder.best_before.is_file() and folder.best.is_file():
            if _batches(load_checkpoint(folder.best)) > _batches(checkpoint):
                folder.best_before.replace(folder.best)
            else:  # the run was killed before it was deleted
                folder.best_before.unlink()
        trainer.strategy.barrier()

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


def _keep(path: Path, beside: Path) -> None:
    """Give a file a second name; both name the same content, until the first is replaced."""
    try:
        os.link(path, beside)
    except OSError:  # a file system without links
        with written_whole(beside, "wb") as file, path.open("rb") as content:
            shutil.copyfileobj(content, file)


def _batches(checkpoint: Mapping[str, Any]) -> int:
    """Number of training batches before a checkpoint."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"])


def best_checkpoint(trainer: L.Trainer) -> BestCheckpoint | None:
    """Return the callback that keeps this run's best checkpoint; None if there is none."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)


def _validates_next(trainer: L.Trainer, done: int) -> bool:
    """True if a validation follows this batch, of which `done` are done in this epoch."""
    interval = getattr(trainer, "_val_check_time_interval", None)
    if interval is not None:
        return time.monotonic() - trainer._last_val_time >= interval  # type: ignore[attr-defined]
    if trainer.check_val_every_n_epoch is None:  # Lightning counts over epochs then
        done = trainer.fit_loop.total_batch_idx + 1
    return done % (getattr(trainer, "val_check_batch", None) or math.inf) == 0


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
        if every_n_batches is not None:
            require_count("checkpoint.every_n_batches", every_n_batches)
        self.every_n_batches = every_n_batches
        self.due = False
        self.last_model_path = ""

    def _save(self, trainer: L.Trainer) -> None:
        self.due = False
        if not is_trial(trainer):
            path = run_folder(trainer).last
            trainer.save_checkpoint(path, weights_only=False)
            self.last_model_path = os.fspath(path)
            if trainer.is_global_zero:
                run_folder(trainer).best_before.unlink(missing_ok=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning calls no on_train_epoch_start for an epoch that a run resumes in its middle.
        for callback in getattr(trainer, "callbacks", []):
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if self.every_n_batches is not None and done % self.every_n_batches == 0:
            self.due = True
        if not self.due:
            return
        accumulating = done % trainer.accumulate_grad_batches != 0
        if not (trainer.is_last_batch or _validates_next(trainer, done) or accumulating):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The progress bar has just requested the epoch's metrics on rank 0 only, which now waits for the other ranks
        # to reduce theirs. They must do so before any other collective.
        _ = trainer.callback_metrics
        self._save(trainer)
