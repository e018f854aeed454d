"""`search.json`: what a search has found so far, beside its runs."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plif_lightning.runs.folder import walked
from plif_lightning.runs.loading import loaded
from plif_lightning.runtime.files import written_whole

FILE = "search.json"


@dataclass(frozen=True)
class Trial:
    """A run of a search.

    Attributes:
        run: name of its folder.
        state: finished, ended (early), failed or running.
        value: of the search's metric; None if it has none.
        parameters: the values that were searched, by dotted names.
    """

    run: str
    state: str
    value: float | None
    parameters: dict[str, Any]


@dataclass(frozen=True)
class SearchRecord:
    """What a search has found so far.

    Attributes:
        name: of the search.
        method: random or bayes.
        metric: name of the metric.
        maximise: True if its highest value is best.
        trials: its runs, best first, then those without a value.
        logarithmic: parameters whose logarithm is uniform.
        importance: share of the metric's variance that each parameter explains; empty for few runs.
        command: command of the best run; empty without one.
    """

    name: str
    method: str
    metric: str
    maximise: bool
    trials: list[Trial]
    logarithmic: list[str] = field(default_factory=list)
    importance: dict[str, float] = field(default_factory=dict)
    command: str = ""

    @property
    def ranking(self) -> list[tuple[Trial, float]]:
        """Runs that have a value, and their values, best first."""
        return [(trial, trial.value) for trial in self.trials if trial.value is not None]


def ranked(trials: Sequence[Trial], maximise: bool) -> list[Trial]:
    """Trials, best first, those without a value last."""

    def place(trial: Trial) -> tuple[bool, float, str]:
        value = trial.value if trial.value is not None else 0.0
        return trial.value is None, -value if maximise else value, trial.run

    return sorted(trials, key=place)


def write_search(folder: Path, record: SearchRecord) -> None:
    with written_whole(folder / FILE) as file:
        json.dump(asdict(record), file, indent=1)


def find_searches(root: Path | str, problems: list[str]) -> list[SearchRecord]:
    """Read the searches in a folder and its subfolders; a sentence for each that cannot be read goes to `problems`."""
    found = []
    for folder, _, files in walked(root):
        if FILE in files:
            path, before = folder / FILE, len(problems)
            record = _record(loaded(path, problems))
            if record is None and len(problems) == before:
                problems.append(f"{path} is not what a search writes.")
            elif record is not None:
                found.append(record)
    return found


def _record(given: dict[str, Any]) -> SearchRecord | None:
    """A record from a file, which may hold anything; None if it is none."""
    try:
        trials = [_trial(**trial) for trial in given["trials"]]
        return SearchRecord(
            str(given["name"]),
            str(given["method"]),
            str(given["metric"]),
            bool(given["maximise"]),
            ranked(trials, bool(given["maximise"])),
            [str(name) for name in given["logarithmic"]],
            {str(name): float(share) for name, share in given["importance"].items()},
            str(given["command"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _trial(run: Any, state: Any, value: Any, parameters: Any) -> Trial:
    number = None if value is None else float(value)
    values = {str(key): _shown(one) for key, one in parameters.items()}
    return Trial(str(run), str(state), number if number is None or math.isfinite(number) else None, values)


def _shown(value: Any) -> Any:
    """A number, or the text of anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value if math.isfinite(float(value)) else str(value)
    return value if isinstance(value, str) else json.dumps(value)
