"""The progress bar."""

from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
    ProcessingSpeedColumn,
    RichProgressBarTheme,
)
from rich.progress import ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text


class _Time(ProgressColumn):
    """Remaining time of the epoch; once it has finished, its duration."""

    max_refresh = 0.5

    def __init__(self, style: Any) -> None:
        super().__init__()
        self.style = style

    def render(self, task: Task) -> Text:
        seconds = task.finished_time if task.finished else task.time_remaining
        return Text("-:--:--" if seconds is None else str(timedelta(seconds=int(seconds))), style=self.style)


class ProgressBar(RichProgressBar):
    """Lightning's progress bar on one line of 80 characters, with epochs counted from 1 and without the version number.

    Args:
        leave: keep the bar of each finished epoch, with its loss and accuracy.
    """

    def __init__(self, leave: bool = True) -> None:
        super().__init__(leave=leave, theme=RichProgressBarTheme(metrics="", metrics_text_delimiter=" "))

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        theme = self.theme
        return [
            TextColumn("[progress.description]{task.description}"),
            CustomBarColumn(
                bar_width=None,
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            BatchesProcessedColumn(style=theme.batch_progress),
            _Time(style=theme.time),
            ProcessingSpeedColumn(style=theme.processing_speed),
        ]

    def _init_progress(self, trainer: L.Trainer) -> None:
        super()._init_progress(trainer)
        if self._metric_component is not None:
            self._metric_component._table_column = Column(no_wrap=True)  # shrink the bar rather than wrap the metrics

    def _get_train_description(self, current_epoch: int) -> str:
        of = f"/{self.trainer.max_epochs}" if self.trainer.max_epochs not in (None, -1) else ""
        return f"Epoch {current_epoch + 1}{of}"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items
