"""Refuse checkpoints that do not match the data."""

import textwrap

import lightning as L
from lightning.pytorch.callbacks import Callback

from plif_lightning.data import SpikingDataModule
from plif_lightning.errors import CheckpointError


class SameData(Callback):
    """Refuses to use a checkpoint with data that does not match it.

    Resuming a run, or validating it on its held-out part, requires the same training set: different data are split
    differently, so held-out samples could have been trained on. Every evaluation requires the same classes and scale.

    Args:
        identity: `SpikingDataModule.identity` of the run's data; None if the checkpoint has none.
        reading: `SpikingDataModule.reading` of the run's data; None if the checkpoint has none.
    """

    def __init__(self, identity: str | None, reading: str | None) -> None:
        self.identity, self.reading = identity, reading

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        splits = stage == "fit" or (stage == "validate" and data.validation == "holdout")
        if splits and self.identity is not None and self.identity != data.identity():
            raise CheckpointError(
                f"the training set in {data.root} is not the one that the checkpoint's run was trained on. Restore "
                "it, or start a new run in another folder."
            )
        if stage != "fit" and self.reading is not None and self.reading != data.reading():
            here, then = (textwrap.shorten(text, 160, placeholder=" ...") for text in (data.reading(), self.reading))
            raise CheckpointError(
                f"the data in {data.root} is not read as the checkpoint's network learned it: {here}; it learned "
                f"{then}. Both follow from the training set: point --data.root to the one of the run."
            )
