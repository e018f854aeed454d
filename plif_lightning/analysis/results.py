"""`configs/results.csv`: what was measured, a row a run with the command that repeats it, and the README's table."""

import csv
import hashlib
import json
import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from plif_lightning import configs
from plif_lightning.analysis import paper
from plif_lightning.analysis.settings import data_title, other_settings, setting_of
from plif_lightning.analysis.tables import Table, interval
from plif_lightning.errors import UserError
from plif_lightning.runs.metrics import layer_values
from plif_lightning.runs.run import Run
from plif_lightning.runtime.files import written_whole

COLUMNS = (
    *("data", "source", "configuration", "overrides", "hash", "seed", "protocol", "epochs", "T"),
    *("accuracy", "standard_error", "epoch", "accuracy_by_epoch", "tau", "tau_by_epoch", "firing_rate"),
    *("seconds", "seconds_to", "machine", "versions", "commit", "run", "command"),
)
# After these epochs accuracy and tau are kept, and at these accuracies [%] the seconds that they took.
_EPOCHS = (1, 2, 3, 5, 10, 15, 20, 30, 50, 100)
_LEVELS = (50, 60, 70, 80, 90, 92, 93, 93.5, 93.85, 99, 99.5, 99.55, 99.65)
# What of a command says where things lie and how a run shows itself, not what it computes.
_PLACES = {
    *("run_folder", "data.root", "data.store", "data.num_workers", "trainer.default_root_dir"),
    *("trainer.enable_progress_bar", "trainer.logger.save_dir", "trainer.logger.name"),
}

Row = dict[str, str]


def digest(run: Run) -> str:
    """The same for runs of the same settings on the same data, whatever their seeds, machines and folders."""
    told = json.dumps([setting_of(run), other_settings(run)], sort_keys=True, default=str)
    return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()


def options(command: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Options and values of a command, as `--key value` or `--key=value`."""
    parts = list(command[1:])
    while parts:
        name, separator, value = parts.pop(0).removeprefix("--").partition("=")
        if not separator:
            value = parts.pop(0) if parts and not parts[0].startswith("--") else ""
        yield ("config" if name in ("config", "-c") else name), value


def _named(value: str) -> str:
    """The bare name of a shipped configuration; another one as it is."""
    known = configs.names()
    stem = Path(value).stem
    return stem if stem in known and (value == stem or Path(value).suffix in (".yaml", ".yml")) else value


def told(run: Run) -> tuple[list[str], dict[str, str]]:
    """The configurations that a run was given, by their bare names, and its other arguments.

    Those that only say where something lies are left out.
    """
    names: list[str] = []
    overrides: dict[str, str] = {}
    for name, value in options(run.command):
        if name == "config":
            names.append(_named(value))
        elif name not in _PLACES and not name.startswith("ckpt_path"):
            overrides[name] = value
    return names, overrides


def _command(names: Sequence[str], overrides: dict[str, str]) -> str:
    words = ["python", "main.py", "fit"]
    for name in names:
        words += ["--config", name]
    for name, value in overrides.items():
        words += [f"--{name}", *([value] if value else [])]
    return shlex.join(words)


def _layers(metrics: dict[str, float], kind: str, digits: int) -> str:
    return ", ".join(f"{layer} {value:.{digits}f}" for layer, value in layer_values(metrics, kind).items())


def _seconds_to(run: Run) -> str:
    """`90: 612 (epoch 2)`: when the validation first reached an accuracy [%]."""
    found = []
    rows = [row for row in run.metrics if run.val_key in row and "seconds" in row]
    for level, next_level in pairwise((*_LEVELS, math.inf)):
        row = next((row for row in rows if 100 * row[run.val_key] >= level), None)
        later = next((row for row in rows if 100 * row[run.val_key] >= next_level), None)
        if row is not None and row is not later:  # of several levels that the same epoch reached the highest
            found.append(f"{level:g}: {row['seconds']:.0f} (epoch {row['epoch'] + 1:.0f})")
    return "; ".join(found)


def row_of(run: Run) -> Row:
    """A finished run's row."""
    names, overrides = told(run)
    shown = {int(row["epoch"]) + 1: row for row in run.metrics if int(row["epoch"]) + 1 in _EPOCHS}
    best = run.best
    at_best = next((row for row in run.metrics if best and int(row["epoch"]) + 1 == best[0]), {})
    accuracy, tested = run.accuracy, run.tested_samples
    error = "" if accuracy is None or not tested else f"{100 * math.sqrt(accuracy * (1 - accuracy) / tested):.2f}"
    samples = run.facts.get("samples")
    counts = [f"{value:,} {name}" for name, value in samples.items()] if isinstance(samples, dict) else []
    measured = {e: row[run.val_key] for e, row in shown.items() if run.val_key in row}
    return {
        "data": data_title(run),
        "source": "; ".join(part for part in (str(run.facts.get("origin") or ""), ", ".join(counts)) if part),
        "configuration": " + ".join(names),
        "overrides": " ".join(f"{name}={value}" for name, value in overrides.items() if name != "seed_everything"),
        "hash": digest(run),
        "seed": str(run.setting("seed_everything", "")),
        "protocol": run.protocol,
        "epochs": str(len(run.metrics)),
        "T": str(run.setting("data.time_steps", "")),
        "accuracy": "" if accuracy is None else f"{100 * accuracy:.2f}",
        "standard_error": error,
        "epoch": "" if best is None else str(best[0]),
        "accuracy_by_epoch": "; ".join(f"{e}: {100 * value:.2f}" for e, value in measured.items()),
        "tau": _layers(at_best, "tau", 3),
        "tau_by_epoch": "; ".join(
            f"{e}: {_layers(row, 'tau', 3)}" for e, row in shown.items() if _layers(row, "tau", 3)
        ),
        "firing_rate": _layers(at_best, "rate", 4),
        "seconds": f"{run.metrics[-1]['seconds']:.0f}" if run.metrics and "seconds" in run.metrics[-1] else "",
        "seconds_to": _seconds_to(run),
        **{name: run.surroundings.get(name, "") for name in ("machine", "versions", "commit")},
        "run": run.name,
        "command": _command(names, overrides),
    }


def read_results(path: Path) -> list[Row]:
    """The rows of a file that `write_results` wrote.

    Raises:
        UserError: it is another file.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of results: {error}.") from error
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing or any(None in row or None in row.values() for row in rows):
        what = f"it has no column {missing[0]}" if missing else "a line has too few or too many values"
        raise UserError(f"{path} is no table of results: {what}. Pass --results another file, or move that one away.")
    return rows


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Rows of both; of the same settings and seed the new one."""
    found = {(row["hash"], row["seed"]): row for row in (*old, *new)}
    order = [*paper.TITLES.values()]

    def place(row: Row) -> tuple[object, ...]:
        known = order.index(row["data"]) if row["data"] in order else len(order)
        return (
            known,
            row["data"],
            row["protocol"],
            row["configuration"],
            row["overrides"],
            int(row["epochs"]),
            row["seed"],
        )

    return sorted(found.values(), key=place)


def write_results(path: Path, runs: Sequence[Run]) -> list[Row]:
    """Adds the finished runs to a table of results, and gives all of its rows.

    Raises:
        UserError: there is another file of that name.
    """
    new = [row_of(run) for run in runs if run.status == "finished" and run.accuracy is not None]
    rows = merged(read_results(path) if path.exists() else [], new)
    with written_whole(path) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


_PAPER = {paper.TITLES[name]: (paper.TABLE_2[name], paper.TABLE_S2[name]) for name in paper.TITLES}


def results_table(rows: Sequence[Row]) -> Table:
    """The results for a reader: of several seeds their mean."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["data"], row["hash"]].append(row)
    cells = []
    for (data, _), group in groups.items():
        first = group[0]
        shares = [float(row["accuracy"]) / 100 for row in group]
        accuracy = f"{100 * sum(shares) / len(shares):.2f}"
        if len(shares) > 1:
            low, high = interval(shares, None)
            accuracy += f" [{100 * low:.2f}, {100 * min(high, 1.0):.2f}], {len(shares)} seeds"
        elif first["standard_error"]:
            accuracy += f" \u00b1 {first['standard_error']}"
        told_paper = _PAPER.get(data)
        cells.append(
            [
                data,
                "" if told_paper is None else f"{told_paper[0]:.2f}, {told_paper[1]:.2f}",
                " + ".join([first["configuration"], *first["overrides"].split()]),
                first["epochs"],
                first["protocol"],
                accuracy,
                first["tau"],
                f"{sum(float(row['seconds']) for row in group) / len(group) / 60:.0f}" if first["seconds"] else "",
            ]
        )
    return Table(
        "",
        "Measured",
        ["data set", "paper A, B", "configuration", "epochs", "protocol", "accuracy [%]", "tau", "minutes"],
        cells,
    )
