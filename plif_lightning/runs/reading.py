"""Read all runs below a folder; unreadable parts are reported, the rest is read."""

import os
from pathlib import Path
from typing import Any

from plif_lightning.errors import UserError
from plif_lightning.runs import wandb
from plif_lightning.runs.folder import RunFolder, walked
from plif_lightning.runs.loading import loaded, printable
from plif_lightning.runs.metrics import read_metrics
from plif_lightning.runs.process import is_alive
from plif_lightning.runs.run import Run, Status, positive, ties_in
from plif_lightning.runtime import program


def _files_in(folder: Path) -> int:
    """How many of a run's files lie in a folder; 0 if it is none's."""
    run = RunFolder(folder)
    found = [file.is_file() for file in (run.config, run.metrics, run.command, run.data, run.result)]
    return sum(found) if any(found[:3]) else 0  # data and results alone may be an evaluation's


def find_runs(root: Path | str) -> list[Run]:
    """Return all runs in a folder and its subfolders in path order, unreadable ones included.

    Args:
        root: the folder; or `wandb:ENTITY/PROJECT`, read through W&B's API, without samples and W / tau.

    Raises:
        UserError: the folder or project does not exist, or has no runs.
    """
    if str(root).startswith(wandb.PREFIX):
        return wandb.runs_of_project(str(root).removeprefix(wandb.PREFIX))
    root = Path(root)
    if not root.is_dir():
        why = "is a file" if root.exists() else "does not exist"
        raise UserError(f"runs must be a folder, got {root}, which {why}.")
    found = []
    for folder, below, _ in walked(root, _by_number):
        if files := _files_in(folder):
            found.append(read_run(folder, root))
            if files > 1:  # a single one may lie above other runs by mistake
                below.clear()  # subfolders hold evaluations of this run
    if not found:
        raise UserError(f"there is no run in {root}: `{program.shown()} fit --config quickstart` creates one.")
    return found


def _by_number(name: str) -> list[tuple[int, Any]]:
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return [(0, "".join(c for c in name if not c.isdigit())), *((1, int(d)) for d in digits)]


def read_run(folder: Path, root: Path | None = None) -> Run:
    """Read a run's folder; `Run.problems` names unreadable parts."""
    files = RunFolder(folder)
    problems: list[str] = []
    config = loaded(files.config, problems)
    metrics = _metrics(files, problems, ties_in(config))
    started = loaded(files.command, problems, optional=True)
    result = loaded(files.result, problems, optional=True)
    facts = loaded(files.data, problems, optional=True)
    if isinstance(result.get("samples"), dict):
        facts["samples"] = result["samples"]
    arguments = started.get("arguments")
    around = started.get("surroundings")
    name = os.path.relpath(folder, root) if root is not None else folder.name
    return Run(
        files,
        printable(folder.name if name == "." else name),
        _status(config, result, started),
        config,
        metrics,
        [str(part) for part in arguments] if isinstance(arguments, list) else [],
        facts,
        _test(files, result, facts, problems),
        {str(k): str(v) for k, v in around.items()} if isinstance(around, dict) else {},
        printable(problems),
        positive(started.get("started")) or 0.0,
        _changes(started.get("changes")),
        loaded(files.cost, problems, optional=True),
    )


def _metrics(files: RunFolder, problems: list[str], ties: str) -> list[dict[str, float]]:
    """Read the metrics of each epoch; none if they cannot be read."""
    if not files.metrics.is_file():
        problems.append(f"{files.metrics} does not exist: no epoch was finished.")
        return []
    try:
        return read_metrics(files.metrics, problems, ties)
    except UserError as error:
        problems.append(str(error))
        return []


def _test(files: RunFolder, result: dict[str, Any], facts: dict[str, Any], problems: list[str]) -> float | None:
    """Return the test accuracy of the fit, or of a later `test`, whose number of samples is entered in `facts`."""
    test = result.get("test")
    if test is None and files.test_result.is_file():
        later = loaded(files.test_result, problems, optional=True)
        test = later.get("test")
        if isinstance(facts.get("samples"), dict):
            facts["samples"] = {**facts["samples"], "test": later.get("samples")}
    if test is None or (isinstance(test, (int, float)) and 0 <= test <= 1):
        return None if test is None else float(test)
    problems.append(f"{files.result}: test must be a fraction from 0 to 1, got {test!r}.")
    return None


def _status(config: dict[str, Any], result: dict[str, Any], started: dict[str, Any]) -> Status:
    if not config:
        return "unreadable"
    if result:
        return "finished"
    return "running" if is_alive(started) else "unfinished"


def _changes(changes: Any) -> list[str]:
    """Format changes as `after step 154 trainer.max_epochs=4`."""
    found = []
    for change in changes if isinstance(changes, list) else []:
        if isinstance(change, dict) and isinstance(settings := change.get("settings"), dict):
            values = " ".join(f"{name}={value}" for name, value in settings.items())
            found.append(f"after step {change.get('step')} {values}")
    return found
