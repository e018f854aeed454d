"""Learning rate schedules that advance after every optimiser step."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from plif_lightning.errors import UserError


def require_upwards(watcher: Any) -> None:
    """Refuse a callback or schedule that watches an accuracy and takes the lowest for the best, as by default.

    Raises:
        UserError: a run that improves would be stopped, its worst epoch kept, or its learning rate cut.
    """
    monitor = getattr(watcher, "monitor", None)
    if "acc" in str(monitor) and getattr(watcher, "mode", None) == "min":
        raise UserError(
            f"{type(watcher).__name__}: {monitor} improves upwards, and mode min takes its lowest value for the best: "
            "pass mode max."
        )


def length_of(trainer: L.Trainer) -> tuple[int, float]:
    """Steps of the optimiser in a training, and its epochs.

    Raises:
        UserError: the training has no end.
    """
    steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if not 0 < steps < math.inf:
        raise UserError("OneCycle needs a training of known length: pass --trainer.max_epochs.")
    callbacks = getattr(trainer, "callbacks", [])
    schedule = next((callback for callback in callbacks if isinstance(callback, GradientAccumulationScheduler)), None)
    if schedule is not None and batches < math.inf and (trainer.max_epochs or 0) > 0:
        # Lightning takes the accumulation of this epoch for that of all.
        epochs = range(trainer.max_epochs or 0)
        steps = sum(math.ceil(batches / schedule.get_accumulate_grad_batches(epoch)) for epoch in epochs)
        return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps, len(epochs)
    per_epoch = 1 if batches == math.inf else math.ceil(batches / trainer.accumulate_grad_batches)
    return int(steps), steps / per_epoch


class OneCycle(LRScheduler):
    """Linear warm-up to the optimiser's learning rate, then half a cosine down, over all steps of the training.

    The Trainer provides the number of steps; the schedule advances after every optimiser step. A run resumed with more
    epochs continues on the longer cycle.

    Args:
        optimizer: its learning rates are the peak values.
        warmup: fraction of the training until the peak; 0: cosine only.
        start: first learning rate, as a fraction of the peak.
        end: last learning rate, as a fraction of the peak.

    Raises:
        UserError: an argument lies outside its range.

    Source: Smith and Topin 2018 (one cycle), Loshchilov and Hutter 2017 (cosine).
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.2, start: float = 0.1, end: float = 0.0) -> None:
        for name, value in (("warmup", warmup), ("start", start), ("end", end)):
            if not 0 <= value <= 1 or (name == "warmup" and value == 1):
                raise UserError(f"lr_scheduler.{name} must lie in [0, 1], warmup below 1, got {value}.")
        self.warmup, self.start, self.end = warmup, start, end
        self.done = 0.0  # share of the training
        self.begun_at = 0  # epochs before the schedule
        self.total_steps = self.epochs = math.inf  # set once the Trainer is known
        super().__init__(optimizer)

    def set_length(self, steps: float, epochs: float, epoch: int = 0) -> None:
        """Set the number of optimiser steps and epochs in the training.

        A run that is resumed with other devices or accumulation has other steps and stays at its share of the training;
        a run of more epochs has done a smaller share of it.

        Args:
            steps: of the optimiser, for all epochs.
            epochs: their number.
            epoch: the one that begins, from 0. A schedule that is new there, in a run that begins from another's
                weights, has the epochs that are left.
        """
        self.begun_at = epoch if self.done == 0 else self.begun_at
        left = epochs - self.begun_at
        steps, epochs = steps * left / epochs, left
        if epochs != self.epochs and self.epochs < math.inf:
            self.done *= self.epochs / epochs
            self._last_lr = self.get_lr()
            for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
                group["lr"] = rate
        self.total_steps, self.epochs = steps, epochs

    def step(self, epoch: int | None = None) -> None:
        """Advance by an optimiser step."""
        if epoch is None and self.last_epoch >= 0:
            self.done += 1 / self.total_steps
        super().step(epoch)

    def share(self, done: float) -> float:
        """The learning rate as a fraction of the peak after a fraction `done` of the training."""
        if done < self.warmup:
            return self.start + (1 - self.start) * done / self.warmup
        falling = min((done - self.warmup) / (1 - self.warmup), 1.0)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * falling)) / 2

    def get_lr(self) -> list[float | Tensor]:
        share = self.share(self.done)
        return [rate * share for rate in self.base_lrs]
