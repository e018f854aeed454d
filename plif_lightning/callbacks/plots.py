"""Pictures that a run leaves: learning curve, tau curve, confusion matrix."""

import contextlib
import csv
import logging
from collections.abc import Iterator
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from plif_lightning.analysis.curves import plot_confusion, plot_learning_curve, plot_tau_curve
from plif_lightning.callbacks.logger import is_trial, known_run_folder, run_folder
from plif_lightning.errors import UserError
from plif_lightning.runs.loading import printable
from plif_lightning.runs.metrics import read_metrics
from plif_lightning.runtime.files import written_whole
from plif_lightning.task import SpikingClassifier

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def _without_consequences(picture: Path) -> Iterator[None]:
    """A picture that cannot be drawn or written is said to be missing; it ends no fit, whose result counts more."""
    try:
        yield
    except Exception as error:  # matplotlib has many: fonts, names that are no text, a full disk
        _log.warning("%s could not be drawn (%s: %s).", picture, type(error).__name__, error)


class CurvePlots(Callback):
    """Writes the learning curve and the tau curve beside the metrics, when a fit ends or fails."""

    @rank_zero_only
    def _plot(self, trainer: L.Trainer) -> None:
        # Not run_folder(): where a run ends before its start, nobody else is there to be asked.
        folder = known_run_folder(trainer)
        if folder is None or is_trial(trainer) or not folder.metrics.is_file():
            return
        metrics = read_metrics(folder.metrics)
        title = getattr(getattr(trainer, "datamodule", None), "title", "")
        if metrics:
            for plot, path in ((plot_learning_curve, folder.learning_curve), (plot_tau_curve, folder.tau_curve)):
                with _without_consequences(path):
                    plot(metrics, path, title)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._plot(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit":
            with contextlib.suppress(OSError, UserError):  # what ended the fit is to be read, not this
                for logger in trainer.loggers:
                    logger.save()
                self._plot(trainer)


def class_names_of(trainer: L.Trainer, num_classes: int) -> list[str]:
    """The data's names of its classes, or their numbers where it has none."""
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return list(names or map(str, range(num_classes)))


class ConfusionMatrix(Callback):
    """Writes the test's confusion matrix into the run's folder, as csv and png."""

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        if not trainer.is_global_zero or is_trial(trainer):
            return
        counts = pl_module.confusion_matrix.cpu()
        names = class_names_of(trainer, len(counts))
        folder = run_folder(trainer)
        with written_whole(folder.confusion_counts) as file:
            writer = csv.writer(file)
            writer.writerow(["true \\ predicted", *names])
            writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
        with _without_consequences(folder.confusion_picture):
            plot_confusion(counts.tolist(), [printable(name) for name in names], folder.confusion_picture)
