"""Learning rate schedules that advance after every optimiser step."""

import math

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from plif_lightning.errors import UserError


def steps_of(trainer: L.Trainer) -> tuple[int, int]:
    """Steps of the optimiser in a training, and in its first epoch.

    Raises:
        UserError: the training has no end.
    """
    steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if not 0 < steps < math.inf:
        raise UserError("OneCycle needs a training of known length: pass --trainer.max_epochs.")
    callbacks = getattr(trainer, "callbacks", [])
    schedule = next((one for one in callbacks if isinstance(one, GradientAccumulationScheduler)), None)
    if batches == math.inf:
        return int(steps), 1
    if schedule is None or not trainer.max_epochs or trainer.max_epochs < 0:
        return int(steps), math.ceil(batches / trainer.accumulate_grad_batches)
    # Lightning takes the accumulation of this epoch for that of all.
    epochs = range(trainer.max_epochs)
    of_epoch = [math.ceil(batches / schedule.get_accumulate_grad_batches(epoch)) for epoch in epochs]
    most = trainer.max_steps if trainer.max_steps > 0 else math.inf
    return int(min(sum(of_epoch), most)), of_epoch[0]


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
        self.total_steps: float = math.inf  # set once the Trainer is known
        self.of_epoch: int | None = None
        super().__init__(optimizer)

    def set_length(self, steps: float, of_epoch: int) -> None:
        """Set the number of optimiser steps in the training and in an epoch; a change counts from the next step on.

        If a resumed run has another number of steps per epoch (other devices or accumulation), the position in epochs
        is kept.
        """
        before, self.of_epoch = self.of_epoch or of_epoch, of_epoch
        if (steps, of_epoch) == (self.total_steps, before):
            return
        self.total_steps, self.last_epoch = steps, round(self.last_epoch * of_epoch / before)
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def share(self, done: float) -> float:
        """Return the learning rate as a fraction of the peak after a fraction `done` of the training."""
        if done < self.warmup:
            return self.start + (1 - self.start) * done / self.warmup
        falling = min((done - self.warmup) / (1 - self.warmup), 1.0)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * falling)) / 2

    def get_lr(self) -> list[float | Tensor]:
        share = self.share(self.last_epoch / self.total_steps)
        return [rate * share for rate in self.base_lrs]
