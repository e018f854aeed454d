"""Figures in the run's folder: learning curve, tau curve, confusion matrix."""

import contextlib
import csv
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from plif_lightning.callbacks.logger import is_trial, known_run_folder, run_folder, writes_files
from plif_lightning.errors import UserError
from plif_lightning.runs.loading import printable
from plif_lightning.runs.metrics import neuron_kinds, read_metrics
from plif_lightning.runtime.files import written_whole
from plif_lightning.runtime.program import MissingExtraError, needed_by
from plif_lightning.training.task import SpikingClassifier

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def _or_warning(picture: Path) -> Iterator[None]:
    """Turn any error into a warning: the result of a fit counts more than a figure."""
    try:
        yield
    except Exception as error:  # matplotlib raises many: missing fonts, names that are not text, a full disk
        _log.warning("%s could not be drawn (%s: %s).", picture, type(error).__name__, error)


@cache
def _curves() -> Any:
    """The functions that draw; None, with one warning, where the package that they need is not installed."""
    try:
        with needed_by("drawing a run's curves"):
            from plif_lightning.plot import curves
    except MissingExtraError as error:
        _log.warning("No curves are drawn: %s", error)
        return None
    return curves


def _save(figure: Any, path: Path) -> None:
    with written_whole(path, "wb") as file:
        figure.savefig(file, format="png")


class CurvePlots(Callback):
    """Writes curves of learning and of the neurons' parameters to the run's folder when a fit ends or fails."""

    @rank_zero_only
    def _plot(self, trainer: L.Trainer) -> None:
        # run_folder() may wait for the other processes, which are gone if the run failed before its start.
        folder = known_run_folder(trainer)
        if folder is None or is_trial(trainer) or not folder.metrics.is_file():
            return
        metrics = read_metrics(folder.metrics)
        title = getattr(getattr(trainer, "datamodule", None), "title", "")
        if metrics and (draw := _curves()) is not None:
            with _or_warning(folder.learning_curve):
                _save(draw.learning_curve(metrics, title), folder.learning_curve)
            if kinds := neuron_kinds(metrics):
                with _or_warning(folder.tau_curve):
                    _save(draw.tau_curve(metrics, title, kinds), folder.tau_curve)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._plot(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit":
            with contextlib.suppress(OSError, UserError):  # report the error that ended the fit, not this one
                for logger in trainer.loggers:
                    logger.save()
                self._plot(trainer)


def class_names_of(trainer: L.Trainer, num_classes: int) -> list[str]:
    """Return the class names of the data set, or class numbers if it has none."""
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return list(names or map(str, range(num_classes)))


class ConfusionMatrix(Callback):
    """Writes the confusion matrix of a test into the run's folder, as CSV and PNG."""

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        if not writes_files(trainer):
            return
        counts = pl_module.confusion_matrix.cpu()
        names = class_names_of(trainer, len(counts))
        folder = run_folder(trainer)
        with written_whole(folder.confusion_counts) as file:
            writer = csv.writer(file)
            writer.writerow(["true \\ predicted", *names])
            writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
        if (draw := _curves()) is None:
            return
        with _or_warning(folder.confusion_picture):
            figure = draw.confusion_matrix(counts.tolist(), [printable(name) for name in names])
            _save(figure, folder.confusion_picture)
