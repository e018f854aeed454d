"""Evaluations by a network in its deployed form."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from plif_lightning.batch import as_batch, time_first
from plif_lightning.deploy import Engine, deployed
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork


class DeployedForm(Callback):
    """Measures `deployed(network, engine)` instead of the network, while an evaluation runs.

    Args:
        engine: see `deployed`; auto tries each layer's forms on the first batch.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine: Engine = engine
        self._network: SpikingNetwork | None = None

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        if self._network is not None:
            return
        if pl_module.device.type != "cpu":
            raise UserError(f"--engine {self.engine} runs on a CPU: pass --trainer.accelerator cpu.")
        if trainer.precision != "32-true":
            raise UserError(f"--engine {self.engine} computes in float32: pass --trainer.precision 32-true.")
        self._network = pl_module.network  # type: ignore[assignment]
        assert self._network is not None
        x = time_first(as_batch(batch).x).to(torch.float32)
        pl_module.network = deployed(self._network, self.engine, x)

    def _end(self, pl_module: L.LightningModule) -> None:
        if self._network is not None:
            pl_module.network, self._network = self._network, None

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin(trainer, pl_module, batch)

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin(trainer, pl_module, batch)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end(pl_module)
