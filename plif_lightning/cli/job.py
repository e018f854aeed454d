"""A run of a sweep: its name, folder, command and score."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plif_lightning import configs
from plif_lightning.cli.sweep_file import ARGS, Sweep
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.run import read_run
from plif_lightning.runtime import program

# Longest name of a run's folder: file systems end at 255 bytes, and there is a log of the same name.
_LONGEST = 200


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, list, dict)) or value is None else str(value)


def _config_first(point: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return names and values of a point, its configuration first: later arguments override it."""
    return sorted(point.items(), key=lambda item: item[0] != "config")


def run_name(point: dict[str, Any]) -> str:
    """Return the folder name of a run: the name of its configuration, then all other parameters."""
    parts = [
        Path(str(value)).stem if name == "config" else f"{name.rsplit('.', 1)[-1]}-{_text(value)}"
        for name, value in _config_first(point)
    ]
    name = "_".join(re.sub(r"[^\w.+-]+", "-", text) for text in parts)
    return name[:_LONGEST]


def _file(value: str) -> str:
    """Return the absolute path of a configuration, so that the sweep can be repeated from another folder."""
    try:
        return str(configs.resolve(value).absolute())
    except UserError:  # the run reports it, without stopping the other runs
        return value


@dataclass
class Job:
    """A run of a sweep.

    Attributes:
        name: name of its folder.
        folder: its run folder.
        arguments: of main.py.
        state: finished, failed or ended early, once it is known.
    """

    name: str
    folder: RunFolder
    arguments: list[str]
    state: str = field(default="waiting")

    @property
    def command(self) -> list[str]:
        """Command that starts the run, or resumes it; safe to repeat."""
        return [*program.command(), *self.arguments, f"--run_folder={self.folder.path}"]

    @property
    def output(self) -> Path:
        return self.folder.path.with_name(f"{self.name}.log")


def job_of(sweep: Sweep, root: Path, point: dict[str, Any], overrides: Sequence[str], name: str = "") -> Job:
    """Return the run of a point; overrides come last, so they win."""
    name = name or run_name(point)
    options = [
        f"--{name}={_file(str(value)) if name == 'config' else _text(value)}" for name, value in _config_first(point)
    ]
    position = sweep.arguments.index(ARGS)
    arguments = [*sweep.arguments[:position], *options, *sweep.arguments[position + 1 :], *overrides]
    return Job(name, RunFolder(root / name), arguments)


def score(sweep: Sweep, job: Job) -> float | None:
    """Return the sweep's metric of a finished run; None if it has none, and for other runs.

    For validation accuracy (val/acc, or test_as_val/acc under protocol A) it is the value of the best epoch, for
    test/acc the result of the test, and for other metrics the last value.
    """
    if job.state != "finished":
        return None
    run = read_run(job.folder.path)
    if sweep.metric in ("val/acc", "test_as_val/acc"):
        value = run.best[1] if run.best else None
    elif sweep.metric == "test/acc":
        value = run.test
    else:
        value = next(reversed(run.curve(sweep.metric)[1]), None)
    return value if value is not None and math.isfinite(value) else None
