"""The runs of a table of results, such as `configs/leaderboard/results.csv`, without their folders."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plif_lightning.analysis import paper
from plif_lightning.analysis.results import Row, read_results, repetition
from plif_lightning.analysis.settings import real
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.loading import printable
from plif_lightning.runs.run import Run

_SAMPLES = re.compile(r"(\d[\d,]{0,15}) / (\d[\d,]{0,15}) samples")
_CLASSES = {title: name for name, title in paper.TITLES.items()}


@dataclass(frozen=True)
class PublishedRun(Run):
    """A run read from its row of a table of results: only what a leaderboard needs.

    Attributes:
        counted: spikes for a validation sample in the best epoch; None if the row has none.
    """

    counted: float | None = None

    @property
    def spikes(self) -> float | None:
        return self.counted

    @property
    def firing_rate(self) -> None:
        """Unknown: a row has the rate of each layer, but not its number of neurons."""


def published_runs(path: Path) -> list[Run]:
    """Return a run for each row of a table of results.

    A run without settings in its row is unreadable, and its `problems` say so.

    Raises:
        UserError: the file is no table of results, or two of its rows are of one experiment and seed.
    """
    rows = read_results(path)
    seen: dict[tuple[str, ...], str] = {}
    for row in rows:
        key = (row["model"], row["setup"], repetition(row))
        if all(key) and key in seen:
            raise UserError(
                f"{path} has two runs with the same settings and seed: {seen[key]} and {row['run']}. Delete the line "
                "of one."
            )
        seen[key] = row["run"]
    return [_run(row, path) for row in rows]


def _run(row: Row, path: Path) -> Run:
    model = _model(row["model"])
    if not model or not row["setup"]:
        problem = (
            f"its row in {path} has no valid settings in the columns model and setup, which earlier versions did not "
            "write: `tables --results` with the run's folder adds the row again."
        )
        return Run(RunFolder(path), row["run"], "unreadable", problems=[problem])
    samples = _SAMPLES.search(row["source"])
    training, tested = (int(n.replace(",", "")) for n in samples.groups()) if samples else (None, None)
    share = float(row["accuracy"]) / 100
    exact = round(share * tested) / tested if tested else share  # two decimals are too few for 1 / 359
    if abs(exact - share) < 6e-5:  # more: the Trainer limited the test, and only a part of these samples counted
        share = exact
    data = {
        "class_path": f"plif_lightning.data.{_CLASSES[row['data']]}" if row["data"] in _CLASSES else row["data"],
        "validation": "holdout" if row["protocol"] == "B" else "test",
    }
    run = PublishedRun(
        RunFolder(path),
        row["run"],
        "finished",
        {"model": model, "data": data, "seed_everything": int(row["seed"]) if row["seed"].isdecimal() else None},
        facts={"data": row["data"], "content": row["setup"], "samples": {"training": training, "test": tested}},
        test=share,
        cost={"pj_int8_reused": 1e6 * real(row["energy_uj"])},
        counted=real(row["spikes"]) if row["spikes"] else None,
    )
    run.metrics.append({"epoch": float(row["epochs"]) - 1, run.val_key: real(row["validation"]) / 100})
    return run


def _model(text: str) -> dict[str, Any]:
    """The block `model` of a configuration from its settings by dotted names; empty if the text is something else."""
    try:
        settings = printable(json.loads(text))
    except (ValueError, RecursionError):
        return {}
    found: dict[str, Any] = {}
    for name, value in settings.items() if isinstance(settings, dict) else ():
        *above, last = name.split(".")
        block: Any = found
        for part in above:
            block = block.setdefault(part, {})
            if not isinstance(block, dict):
                return {}
        block[last] = value
    return found
