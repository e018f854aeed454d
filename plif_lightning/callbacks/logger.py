"""The run's folder and its table of metrics."""

import contextlib
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import MetricsTable

RUNS = "runs"  # default folder of all runs


def is_fast_dev_run(trainer: L.Trainer) -> bool:
    """True for a `fast_dev_run`, which writes no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


def writes_files(trainer: L.Trainer) -> bool:
    """True in the process that writes the run's files, unless it is a trial."""
    return trainer.is_global_zero and not is_fast_dev_run(trainer)


_folders: WeakKeyDictionary[L.Trainer, RunFolder] = WeakKeyDictionary()


def run_folder(trainer: L.Trainer) -> RunFolder:
    """Return the folder of this run, the same in every process.

    The first call is collective, so every process must make it: `LayerMonitor.setup` does.
    """
    if trainer not in _folders:
        _folders[trainer] = RunFolder(Path(trainer.log_dir or trainer.default_root_dir))
    return _folders[trainer]


def new_folder(root: Path) -> Path:
    """Create the next free `version_N` in a folder; no other process gets the same."""
    taken = [int(match[1]) for path in root.glob("version_*") if (match := re.fullmatch(r"version_(\d+)", path.name))]
    for number in itertools.count(max(taken, default=-1) + 1):
        folder = root / f"version_{number}"
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            if not os.path.lexists(folder):  # one of its parents is a file
                raise
    return folder


class RunLogger(Logger):
    """Writes `metrics.csv` into the run's folder.

    Args:
        folder: of the run, where Lightning writes its files, too.
        keep_before_step: keep the rows of a resumed run before this step.
    """

    name = version = ""  # Lightning joins them to the folder

    def __init__(self, folder: Path, keep_before_step: int = 0) -> None:
        super().__init__()
        self._folder, self._keep_before_step = folder, keep_before_step
        self._table: MetricsTable | None = None

    @property
    def save_dir(self) -> str:
        return os.fspath(self._folder)

    @property
    def table(self) -> MetricsTable:
        """The table, which is read when it is first asked for."""
        if self._table is None:
            self._table = MetricsTable(RunFolder(self._folder).metrics, self._keep_before_step)
        return self._table

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        self.table.add(values, step or 0)

    @rank_zero_only
    def save(self) -> None:
        if self._table is not None:
            self._table.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        # After an error, report it rather than a failure to write the table.
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            self.save()

    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: config.yaml has all hyperparameters."""
