"""Where a run keeps its files, and its table of metrics."""

import os
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import keep_rows_before


def is_trial(trainer: L.Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which leaves no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


_folders: WeakKeyDictionary[L.Trainer, RunFolder] = WeakKeyDictionary()


def run_folder(trainer: L.Trainer) -> RunFolder:
    """The folder of this run, the same on every process.

    The first call asks the other processes, so all of them must make it: `LayerMonitor.setup` does.
    """
    if trainer not in _folders:
        _folders[trainer] = RunFolder(Path(trainer.log_dir or trainer.default_root_dir))
    return _folders[trainer]


def known_run_folder(trainer: L.Trainer) -> RunFolder | None:
    """The folder of this run where `run_folder` was called before; asks no other process."""
    return _folders.get(trainer)


class _Table(ExperimentWriter):
    """A metrics table that a resumed run continues, instead of deleting what is there."""

    def __init__(self, log_dir: str, keep_before_step: int) -> None:
        super().__init__(log_dir)
        self.metrics_keys = keep_rows_before(RunFolder(Path(log_dir)).metrics, keep_before_step)

    def _check_log_dir_exists(self) -> None:
        """Nothing: the folder is meant to exist."""

    def save(self) -> None:
        # Without the parent's hparams.yaml: config.yaml holds everything.
        super(ExperimentWriter, self).save()


class RunLogger(CSVLogger):
    """Writes `metrics.csv` into the run's folder, `save_dir/name/version_N`.

    Args:
        save_dir: folder of all runs.
        name: folder of this configuration's runs; the configuration's name where it is not given.
        version: N; the next free one where it is not given.
    """

    def __init__(self, save_dir: str = "runs", name: str | None = None, version: int | str | None = None) -> None:
        super().__init__(save_dir, name or "", version)
        self._keep_before_step = 0

    def place(self, folder: Path, keep_before_step: int = 0) -> None:
        """Writes into `folder`, after those rows of its metrics that lie before a step."""
        self._root_dir = self._save_dir = os.fspath(folder.parent)
        self._name, self._version = "", folder.name
        self._keep_before_step = keep_before_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Table(self.log_dir, self._keep_before_step)
        return self._experiment

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: the run's config.yaml holds everything."""
