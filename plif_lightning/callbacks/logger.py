"""Where a run keeps its files, and its table of metrics."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import MetricsTable

RUNS = "runs"  # folder of all runs, where no other is given


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


class RunLogger(CSVLogger):
    """Writes `metrics.csv` into the run's folder, `save_dir/name/version_N`.

    Args:
        save_dir: folder of all runs.
        name: folder of this configuration's runs; the configuration's name where it is not given.
        version: N; the next free one where it is not given.
    """

    def __init__(self, save_dir: str = RUNS, name: str | None = None, version: int | str | None = None) -> None:
        super().__init__(save_dir, name or "", version)
        self._chosen = version is not None
        self._keep_before_step = 0

    def place(self, folder: Path, keep_before_step: int = 0) -> None:
        """Writes into `folder`, after those rows of its metrics that lie before a step."""
        self._root_dir = self._save_dir = os.fspath(folder.parent)
        self._name, self._version = "", folder.name
        self._keep_before_step = keep_before_step

    def claim(self) -> Path:
        """Makes the folder of a new run; the next free one where another process has just taken that."""
        while True:
            folder = Path(self.log_dir)
            try:
                folder.mkdir(parents=True, exist_ok=self._chosen)
                return folder
            except FileExistsError:
                if self._chosen or not os.path.lexists(folder):  # a file of that name, or a file among the parents
                    raise
                self._version = int(self.version) + 1  # a file of that name counts, too

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            table = MetricsTable(RunFolder(Path(self.log_dir)).metrics, self._keep_before_step)
            self._experiment = table  # type: ignore[assignment]
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        self.experiment.add(values, step or 0)

    def finalize(self, status: str) -> None:
        # After an error, that one is to be read, not that the table could not be written either.
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            super().finalize(status)

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: the run's config.yaml holds everything."""
