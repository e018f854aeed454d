"""Refuses a checkpoint whose training set is not the one that is there."""

import lightning as L
from lightning.pytorch.callbacks import Callback

from plif_lightning.data import SpikingDataModule
from plif_lightning.errors import CheckpointError


class SameData(Callback):
    """Refuses to resume a run, or to validate it on what it held out, where the training set has changed.

    Another training set is split in another way: samples that the network was trained on would be called held out.

    Args:
        identity: of the training set of the run; None where a checkpoint knows none.
    """

    def __init__(self, identity: str | None) -> None:
        self.identity = identity

    def _require(self, trainer: L.Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        if self.identity is not None and isinstance(data, SpikingDataModule) and data.identity() != self.identity:
            raise CheckpointError(
                f"the training set in {data.root} is not the one that the checkpoint's run was trained on. Bring that "
                "one back, or start a new run without --ckpt_path."
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._require(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate" and trainer.datamodule.validation == "holdout":  # type: ignore[attr-defined]
            self._require(trainer)
