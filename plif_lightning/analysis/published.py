"""The runs of a table of results, such as `configs/leaderboard/results.csv`, without their folders."""

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plif_lightning import configs
from plif_lightning.analysis.results import Row, read_results
from plif_lightning.analysis.settings import experiment, real
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.loading import loaded, printable
from plif_lightning.runs.process import options
from plif_lightning.runs.run import Run

_SAMPLES = re.compile(r"(\d[\d,]{0,15}) / (\d[\d,]{0,15}) samples")


@dataclass(frozen=True)
class PublishedRun(Run):
    """A run as its row tells it: settings, accuracy, the best epoch, spikes and energy.

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

    A run whose settings cannot be told from its row is unreadable, and its `problems` say why.

    Raises:
        UserError: the file is no table of results.
    """
    rows = read_results(path)
    runs = [_run(row, path) for row in rows]
    told = [experiment(run) if run.status == "finished" else "" for run in runs]
    hashes: dict[str, set[str]] = defaultdict(set)
    for row, settings in zip(rows, told, strict=True):
        hashes[settings].add(row["hash"])
    return [
        _unreadable(run, _OTHER_SETTINGS) if settings and len(hashes[settings]) > 1 else run
        for run, settings in zip(runs, told, strict=True)
    ]


_OTHER_SETTINGS = (
    "other rows have the same command, but another hash of all settings: a configuration or a default has changed "
    "between them."
)


def _unreadable(run: Run, problem: str) -> Run:
    return Run(run.folder, run.name, "unreadable", problems=[*run.problems, problem])


def _run(row: Row, path: Path) -> Run:
    run: Run = PublishedRun(RunFolder(path), row["run"], "unreadable")
    try:
        config, changes = _settings(row)
    except UserError as error:
        return _unreadable(run, f"its settings cannot be told from {path}: {error}")
    samples = _SAMPLES.search(row["source"])
    training, tested = (int(n.replace(",", "")) for n in samples.groups()) if samples else (None, None)
    share = float(row["accuracy"]) / 100
    exact = round(share * tested) / tested if tested else share  # two decimals are too few for 1 / 359
    if abs(exact - share) < 6e-5:  # more: the Trainer limited the test, and only a part of these samples counted
        share = exact
    run = PublishedRun(
        run.folder,
        run.name,
        "finished",
        config,
        facts={"data": row["data"], "origin": row["source"], "samples": {"training": training, "test": tested}},
        test=share,
        surroundings={name: row[name] for name in ("machine", "versions", "commit")},
        changes=changes,
        cost={"pj_int8_reused": 1e6 * real(row["energy_uj"])},
        counted=real(row["spikes"]) if row["spikes"] else None,
    )
    if run.protocol != row["protocol"]:
        return _unreadable(run, f"{path} says protocol {row['protocol']}, but its command asks for {run.protocol}.")
    last, best = int(row["epochs"]) - 1, real(row["epoch"]) - 1
    if 0 <= best < last:
        run.metrics.append({"epoch": best})
    run.metrics.append({"epoch": float(last)})
    run.metrics[0][run.val_key] = real(row["validation"]) / 100
    return run


def _settings(row: Row) -> tuple[dict[str, Any], list[str]]:
    """The configuration that a row's command asks for, and the changes and parts of lists that it leaves out.

    Defaults that no file names, such as those of a data module, are missing in it.
    """
    if not row["command"]:
        raise UserError("it has no command, from which its settings could be told.")
    try:
        command, *changes = row["command"].split("; ")
        words = shlex.split(command)[2:]
    except ValueError as error:
        raise UserError(f"its command cannot be read: {error}.") from error
    config = _file(configs.folder() / "base.yaml")
    lists: set[str] = set()
    for name, value in options(words):
        lists |= {name.removesuffix("+")} if name.endswith("+") else set()
        if name == "config":
            _merge(config, _file(configs.resolve(value)))
        elif any(f"{name}.".startswith((f"{one}.", f"{one}+")) for one in lists):
            changes.append(f"{name}={value}")  # an entry of a list, or an argument of it
        else:
            _enter(config, name.split("."), _value(value))
    return config, changes


def _file(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    found = loaded(path, problems)
    if problems:
        raise UserError(problems[0])
    return found


def _value(text: str) -> Any:
    """The value of an option; text where it is not YAML, such as a network's structure."""
    try:
        return printable(yaml.safe_load(text))  # which has no mapping within itself
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    for name, value in new.items():
        _enter(old, [name], value)


def _enter(block: dict[str, Any], names: Sequence[str], value: Any) -> None:
    """Set a value by its dotted name; mappings are merged, and a class of another name keeps its arguments."""
    name, *below = names
    if "class_path" in block and name not in ("class_path", "init_args"):
        if not isinstance(block.get("init_args"), dict):
            block["init_args"] = {}
        block = block["init_args"]
    old = block.get(name)
    if below:
        if not isinstance(old, dict):
            old = block[name] = {} if old is None else {"class_path": old}
        _enter(old, below, value)
    elif isinstance(old, dict) and isinstance(value, dict):
        _merge(old, value)
    elif isinstance(old, dict) and "class_path" in old and isinstance(value, str):
        old["class_path"] = value
    else:
        block[name] = value
