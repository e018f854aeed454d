"""Learning rates that change within an epoch."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from plif_lightning.errors import UserError


class OneCycle(LRScheduler):
    """A linear warm-up to the optimiser's learning rate, then half a cosine down, over all steps of the training.

    It takes its length from the Trainer, and is stepped after every step of the optimiser. A run that is resumed with
    more epochs goes on in the longer cycle.

    Args:
        optimizer: whose learning rates are the highest ones.
        warmup: share of the training in which they are reached; 0: a cosine alone.
        start: first learning rate, as a share of the highest.
        end: last learning rate, as a share of the highest.

    Raises:
        UserError: an argument lies outside its range.

    Source: Smith and Topin 2018 (one cycle), Loshchilov and Hutter 2017 (cosine).
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.2, start: float = 0.1, end: float = 0.0) -> None:
        for name, value in (("warmup", warmup), ("start", start), ("end", end)):
            if not 0 <= value <= 1 or (name == "warmup" and value == 1):
                raise UserError(f"lr_scheduler.{name} must lie in [0, 1], warmup below 1, got {value}.")
        self.warmup, self.start, self.end = warmup, start, end
        self.total_steps: float = math.inf  # until the Trainer is known
        super().__init__(optimizer)

    def share(self, done: float) -> float:
        """The learning rate as a share of the highest, when a share `done` of the training is over."""
        if done < self.warmup:
            return self.start + (1 - self.start) * done / self.warmup
        falling = min((done - self.warmup) / (1 - self.warmup), 1.0)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * falling)) / 2

    def get_lr(self) -> list[float | Tensor]:
        share = self.share(self.last_epoch / self.total_steps)
        return [rate * share for rate in self.base_lrs]
