"""The run's folder and its table of metrics."""

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

RUNS = "runs"  # default folder of all runs


def is_trial(trainer: L.Trainer) -> bool:
    """True for a `fast_dev_run`, which writes no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


def writes_files(trainer: L.Trainer) -> bool:
    """True in the process that writes the run's files, unless it is a trial."""
    return trainer.is_global_zero and not is_trial(trainer)


_folders: WeakKeyDictionary[L.Trainer, RunFolder] = WeakKeyDictionary()


def run_folder(trainer: L.Trainer) -> RunFolder:
    """Return the folder of this run, the same in every process.

    The first call is collective, so every process must make it: `LayerMonitor.setup` does.
    """
    if trainer not in _folders:
        _folders[trainer] = RunFolder(Path(trainer.log_dir or trainer.default_root_dir))
    return _folders[trainer]


def known_run_folder(trainer: L.Trainer) -> RunFolder | None:
    """Return the folder of this run if `run_folder` was called before, without communication."""
    return _folders.get(trainer)


class RunLogger(CSVLogger):
    """Writes `metrics.csv` into the run's folder, `save_dir/name/version_N`.

    Args:
        save_dir: folder of all runs.
        name: folder of this configuration's runs; by default the configuration's name.
        version: N; by default the next free number.
    """

    def __init__(self, save_dir: str = RUNS, name: str | None = None, version: int | str | None = None) -> None:
        super().__init__(save_dir, name or "", version)
        self._chosen = version is not None
        self._keep_before_step = 0

    def place(self, folder: Path, keep_before_step: int = 0) -> None:
        """Write into `folder`, keeping the rows of its metrics before step `keep_before_step`."""
        self._root_dir = self._save_dir = os.fspath(folder.parent)
        self._name, self._version = "", folder.name
        self._keep_before_step = keep_before_step

    def claim(self) -> Path:
        """Create the folder of a new run; if another process has just created it, take the next free number."""
        while True:
            folder = Path(self.log_dir)
            try:
                folder.mkdir(parents=True, exist_ok=self._chosen)
                return folder
            except FileExistsError:
                if self._chosen or not os.path.lexists(folder):  # a file of that name, or a parent that is a file
                    raise
                self._version = int(self.version) + 1  # a file of that name counts as taken

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
        # After an error, report that one rather than a failure to write the table.
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            super().finalize(status)

    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: config.yaml has all hyperparameters."""
