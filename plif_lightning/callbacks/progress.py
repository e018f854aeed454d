"""The progress bar."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme


class ProgressBar(RichProgressBar):
    """Lightning's, with epochs counted from 1, as everywhere else, and without the run's number.

    Args:
        leave: keep each epoch's bar, with its loss and accuracy, on the screen.
    """

    def __init__(self, leave: bool = True) -> None:
        super().__init__(leave=leave, theme=RichProgressBarTheme(metrics="", metrics_text_delimiter="  "))

    def _get_train_description(self, current_epoch: int) -> str:
        of = f"/{self.trainer.max_epochs}" if self.trainer.max_epochs not in (None, -1) else ""
        return f"Epoch {current_epoch + 1}{of}"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items
