"""`wandb.json`, the id of a run at W&B; and runs read from W&B."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import merge
from plif_lightning.runs.run import Run, Status, ties_in
from plif_lightning.runtime.files import written_whole
from plif_lightning.runtime.program import needed_by

PREFIX = "wandb:"
_STATES: dict[str, Status] = {"finished": "finished", "running": "running"}


def write_identity(folder: RunFolder, run: Any) -> None:
    """Write id and project of the W&B run."""
    with written_whole(folder.wandb) as file:
        json.dump({"id": run.id, "project": run.project}, file)


def read_identity(folder: RunFolder) -> str | None:
    """Return the id of the W&B run; None if there is none."""
    try:
        return str(json.loads(folder.wandb.read_text("utf-8"))["id"])
    except (OSError, ValueError, KeyError):
        return None


def runs_of_project(project: str) -> list[Run]:
    with needed_by("reading runs of Weights & Biases"):
        import wandb

    try:
        found = [run_of_wandb(run) for run in wandb.Api().runs(project)]
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(
            f"the runs of {project} cannot be read from W&B: {' '.join(str(error).split())}. The name must be "
            "ENTITY/PROJECT; run `wandb login` first."
        ) from error
    if not found:
        raise UserError(f"the W&B project {project} has no runs.")
    return found


def _step(row: dict[str, Any], otherwise: float) -> float:
    step = row.get("trainer/global_step")
    return step if isinstance(step, (int, float)) else otherwise


def _that_count(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of epochs, without those that a killed run had logged after its checkpoint and then logged again."""
    found: list[dict[str, Any]] = []
    for row in history:
        if row.get("epoch") is None or any(key.startswith("test/") for key in row):
            continue
        step, measured = _step(row, math.inf), {key for key in row if key.endswith("/acc")}
        first = place = len(found)
        while place and _step(found[place - 1], -math.inf) >= step:
            place -= 1
            if _step(found[place], -math.inf) > step or measured & found[place].keys():
                first = place
        found[first:] = [row]
    return found


def run_of_wandb(run: Any) -> Run:
    """Convert a run from W&B's API (`wandb.apis.public.Run`) that was logged with `variants/wandb.yaml`."""
    epochs: dict[int, dict[str, float]] = {}
    problems: list[str] = []
    try:
        history = list(run.scan_history())
    except Exception as error:  # the client's own types are private; a run that logged nothing has no history
        history, problems = [], [f"its history cannot be read from W&B: {' '.join(str(error).split())}."]
    config = dict(run.config)
    for row in _that_count(history):
        values = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and not k.startswith("_")}
        merge(epochs.setdefault(int(row["epoch"]), {}), values, ties_in(config))
    test = run.summary.get("test/acc")
    return Run(
        RunFolder(Path("wandb") / str(run.id)),  # does not exist
        str(run.name),
        _STATES.get(str(run.state), "unfinished") if "model" in config else "unreadable",
        config,
        [epochs[epoch] for epoch in sorted(epochs)],
        [],
        dict(config.get("facts") or {}),
        float(test) if isinstance(test, (int, float)) else None,
        problems=problems,
    )
