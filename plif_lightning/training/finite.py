"""End training when a parameter or statistic is NaN or infinite."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from plif_lightning.errors import NonFiniteError


class FiniteGuard(Callback):
    """Ends training, before a checkpoint is written, when a parameter or a statistic of BN is NaN or infinite.

    The loss does not show it, because a neuron with a NaN potential stays silent; but the step after that makes the
    weights NaN. They are looked at once an epoch and before each checkpoint, which synchronises with a GPU.

    Args:
        network: of which parameters and buffers are checked.

    Raises:
        NonFiniteError: from the hooks; names the first, and the last good checkpoint.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._require_finite(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._require_finite(trainer)

    def _require_finite(self, trainer: L.Trainer) -> None:
        values = [(n, v) for n, v in self._network.state_dict().items() if v.is_floating_point()]
        finite = torch.stack([torch.isfinite(value).all() for _, value in values])
        if finite.all():
            return
        name = values[int(finite.int().argmin())][0]
        paths = [path for c in trainer.checkpoint_callbacks if (path := getattr(c, "last_model_path", ""))]
        advice = "No checkpoint was written before. Lower"
        if paths:
            advice = (
                f"To begin from the last good checkpoint, pass --ckpt_path {paths[-1]} and a new --run_folder; lower"
            )
        full = "" if trainer.precision in ("32-true", "64-true") else ", or use --trainer.precision 32-true"
        raise NonFiniteError(
            f"{name} is NaN or infinite at step {trainer.global_step} (epoch {trainer.current_epoch}): training "
            f"stopped. {advice} the learning rate{full}."
        )
