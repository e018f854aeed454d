"""Evaluations by a network in its deployed form."""

from collections.abc import Iterable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from plif_lightning.data.batch import as_batch, time_first
from plif_lightning.deploy import Engine, deployed
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork


class DeployedForm(Callback):
    """Measures `deployed(network, engine)` instead of the network, while an evaluation runs.

    Args:
        engine: see `deployed`; where a layer has several forms, they are tried on the first batch.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine: Engine = engine
        self.forms = ""  # of each layer, in words
        self._network: SpikingNetwork | None = None

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule, loader: Iterable[Any]) -> None:
        if pl_module.device.type != "cpu":
            raise UserError(f"--engine {self.engine} runs on a CPU: pass --trainer.accelerator cpu.")
        if trainer.precision != "32-true":
            raise UserError(f"--engine {self.engine} computes in float32: pass --trainer.precision 32-true.")
        network: SpikingNetwork = pl_module.network  # type: ignore[assignment]
        fixed = self.engine in ("dense", "events")
        batch = None if fixed else next(iter(loader), None)
        made = deployed(network, self.engine, None if batch is None else time_first(as_batch(batch).x))
        self.forms = ", ".join(f"{name} {form}" for name, form in made.forms.items())
        self._network, pl_module.network = network, made

    def _end(self, pl_module: L.LightningModule) -> None:
        if self._network is not None:
            pl_module.network, self._network = self._network, None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, pl_module, trainer.datamodule.predict_dataloader())  # type: ignore[attr-defined]

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, pl_module, trainer.datamodule.test_dataloader())  # type: ignore[attr-defined]

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end(pl_module)
