"""Refuse checkpoints that do not match the data."""

import textwrap

import lightning as L
from lightning.pytorch.callbacks import Callback

from plif_lightning.data import SpikingDataModule
from plif_lightning.errors import CheckpointError


class SameData(Callback):
    """Refuses to use a checkpoint with data that does not match it.

    Resuming a run, or validating it on its held-out part, requires the same training set: a different one is split
    differently, so held-out samples could have been trained on. Every evaluation requires the same classes and scale.

    Args:
        identity: `SpikingDataModule.identity` of the run's data; None if the checkpoint has none.
        reading: `SpikingDataModule.reading` of the run's data; None if the checkpoint has none.
    """

    def __init__(self, identity: str | None, reading: str | None) -> None:
        self.identity, self.reading = identity, reading

    def _require(self, trainer: L.Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        if self.identity is None or not isinstance(data, SpikingDataModule):
            return
        # Checkpoints of earlier versions know only the number of static images.
        known = {data.identity(), str(len(data.labels(train=True)))} if self.identity.isdigit() else {data.identity()}
        if self.identity not in known:
            raise CheckpointError(
                f"the training set in {data.root} is not the one that the checkpoint's run was trained on. Restore "
                "it, or start a new run in another folder."
            )

    def _require_reading(self, trainer: L.Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        if self.reading is None or not isinstance(data, SpikingDataModule) or data.reading() == self.reading:
            return
        here, then = (textwrap.shorten(text, 160, placeholder=" ...") for text in (data.reading(), self.reading))
        raise CheckpointError(
            f"the data in {data.root} is not read as the checkpoint's network learned it: {here}; it learned {then}. "
            "Both follow from the training set: point --data.root to the one of the run."
        )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._require_reading(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._require_reading(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._require(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._require_reading(trainer)
        if trainer.state.fn == "validate" and trainer.datamodule.validation == "holdout":  # type: ignore[attr-defined]
            self._require(trainer)
