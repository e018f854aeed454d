"""Evaluations by a network in its deployed form."""

import lightning as L
from lightning.pytorch.callbacks import Callback

from plif_lightning.deploy import Engine, deployed
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork


class DeployedForm(Callback):
    """Measures `deployed(network, engine)` instead of the network, while an evaluation runs.

    Args:
        engine: see `deployed`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine: Engine = engine
        self.forms = ""  # of each layer, in words
        self._network: SpikingNetwork | None = None

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type != "cpu" or trainer.precision != "32-true":
            raise UserError(
                f"--engine {self.engine} computes in float32 on a CPU: pass --trainer.accelerator cpu "
                "--trainer.precision 32-true."
            )
        network: SpikingNetwork = pl_module.network  # type: ignore[assignment]
        deployed_network = deployed(network, self.engine)
        self.forms = ", ".join(f"{name} {form}" for name, form in deployed_network.forms.items())
        self._network, pl_module.network = network, deployed_network

    def _end(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException | None = None) -> None:
        if self._network is not None:
            pl_module.network, self._network = self._network, None

    on_predict_start = on_test_start = _begin
    on_predict_epoch_end = on_test_epoch_end = on_exception = _end
