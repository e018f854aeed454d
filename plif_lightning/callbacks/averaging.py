"""Average the weights of a training."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from plif_lightning.errors import UserError
from plif_lightning.layers.delay import Delay


class EMA(WeightAveraging):
    """Exponential moving average of weights and BN's statistics after every step; validations and best.ckpt take it.

    Args:
        decay: weight of the former average after the warm-up.
        warmup: begin with a smaller decay, 1 - (1 + n) ** (-2 / 3) after n steps: otherwise the first hundreds of steps
            of a decay of 0.999 average little but the initial weights.

    Raises:
        UserError: decay lies outside [0, 1).

    Source: timm's `ModelEmaV3`.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"decay must lie in [0, 1), got {decay}.")
        super().__init__(avg_fn=self._average)
        self.decay, self.warmup = decay, warmup
        self._delays: list[tuple[Delay, Delay]] = []  # of the average, and in training

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            averaged = dict(self._average_model.module.named_modules())
            delays = ((name, module) for name, module in pl_module.named_modules() if isinstance(module, Delay))
            self._delays = [(averaged[name], module) for name, module in delays]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any, **named: Any
    ) -> None:
        """Average; but a delay's `sigma`, which a schedule sets, is the one in training, and not what it was before."""
        super().on_train_batch_end(trainer, pl_module, *arguments, **named)
        for averaged, trained in self._delays:
            averaged.sigma.copy_(trained.sigma)

    def _average(self, average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        decay = min(self.decay, 1 - (1 + int(steps)) ** (-2 / 3)) if self.warmup else self.decay
        return average * decay + current * (1 - decay)


def averaging(trainer: L.Trainer) -> str:
    """Name of the callback that averages weights for evaluations; empty without one."""
    return next((type(c).__name__ for c in trainer.callbacks if isinstance(c, WeightAveraging)), "")  # type: ignore[attr-defined]
