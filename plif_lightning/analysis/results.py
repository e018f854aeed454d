"""`configs/results.csv`, one row per run with the command that repeats it, and the table of configs/RESULTS.md."""

import csv
import hashlib
import json
import math
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from plif_lightning import configs
from plif_lightning.analysis import paper
from plif_lightning.analysis.settings import data_title, experiment, is_limited, model_settings, real, setup
from plif_lightning.analysis.tables import Table, interval, source
from plif_lightning.errors import UserError
from plif_lightning.runs.metrics import layer_values
from plif_lightning.runs.process import options
from plif_lightning.runs.run import Run
from plif_lightning.runtime.files import written_whole

_FIRST = (
    *("data", "source", "configuration", "overrides", "hash", "seed", "protocol", "epochs", "T"),
    *("accuracy", "standard_error", "epoch", "accuracy_by_epoch", "tau", "tau_by_epoch", "firing_rate"),
    *("seconds", "seconds_to", "machine", "versions", "commit", "run", "command"),
)
# Those of later versions are behind; a file without them is read, too. The last two are for the leaderboard: settings
# of the network and its training, and a hash of all others but the seed.
COLUMNS = (*_FIRST, "validation", "spikes", "energy_uj", "model", "setup")
# Epochs after which accuracy and tau are stored, and accuracies [%] for which the time to reach them is stored.
_EPOCHS = (1, 2, 3, 5, 10, 15, 20, 30, 64, 100, 1024)
_LEVELS = (50, 60, 70, 80, 90, 92, 93, 93.5, 93.85, 99, 99.5, 99.55, 99.65)
# Arguments for places, display and saving, which do not affect the computation.
_PLACES = {
    *("resume", "checkpoint.every_n_batches"),
    *("run_folder", "data.root", "data.store", "data.num_workers", "trainer.default_root_dir"),
    *("trainer.enable_progress_bar", "trainer.logger.save_dir", "trainer.logger.name"),
}

Row = dict[str, str]


def digest(run: Run) -> str:
    """Hash a run's settings and data, but not its seed, machine and folder."""
    return _hash(experiment(run, epochs=run.epochs))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _named(value: str) -> str:
    """Return the bare name of a shipped configuration, given by name or path; any other value unchanged."""
    path = Path(value)
    shipped = configs.names().get(path.stem)
    if shipped is None:
        return value
    inside = Path("configs", shipped.relative_to(configs.folder()))
    same = path.is_file() and path.read_bytes() == shipped.read_bytes()
    return path.stem if value == path.stem or (path == inside and not path.is_file()) or same else value


def told(run: Run) -> list[tuple[str, str]]:
    """Return a run's arguments in order, with bare names of configurations and without those in _PLACES.

    The folder of a user's own data identifies the data set; it is kept, as a folder in `data`.
    """
    named = [(name, _named(value) if name == "config" else value) for name, value in options(run.command)]
    places = _PLACES
    if run.data_set in ("ImageFolder", "EventFolder"):
        places = _PLACES - {"data.root"}
        named = [(name, f"data/{Path(value).name}" if name == "data.root" else value) for name, value in named]
    return [(name, value) for name, value in named if name not in places and (name, value) != ("ckpt_path", "last")]


def _command(arguments: Iterable[tuple[str, str]]) -> str:
    words = ["python", "main.py", "fit"]
    for name, value in arguments:
        # After a space, a value with a leading dash would be parsed as an option.
        words += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", *([value] if value else [])]
    return shlex.join(words)


def _layers(metrics: dict[str, float], kind: str, digits: int) -> str:
    return ", ".join(f"{layer} {value:.{digits}f}" for layer, value in layer_values(metrics, kind).items())


def _seconds_to(run: Run) -> str:
    """Return seconds and epoch at which validation first reached each accuracy [%], as `90: 612 (epoch 2)`."""

    def reaches(row: dict[str, float], level: float) -> bool:
        return round(100 * row[run.val_key], 4) >= level  # in float32 metrics 0.9 is slightly less

    found = []
    rows = [row for row in run.metrics if run.val_key in row and "seconds" in row]
    for level, next_level in pairwise((*_LEVELS, math.inf)):
        row = next((row for row in rows if reaches(row, level)), None)
        later = next((row for row in rows if reaches(row, next_level)), None)
        if row is not None and row is not later:  # only the highest level that an epoch reached
            found.append(f"{level:g}: {row['seconds']:.0f} (epoch {row['epoch'] + 1:.0f})")
    return "; ".join(found)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _standard_error(run: Run) -> str:
    """Return the standard error [%] of the accuracy over tested samples; empty if either is unknown."""
    accuracy, tested = run.accuracy, run.tested_samples
    if accuracy is None or not tested or is_limited(run):
        return ""
    return _percent(math.sqrt(accuracy * (1 - accuracy) / tested))


def _by_epoch(run: Run, text: Callable[[dict[str, float]], str]) -> str:
    """Join the text of each epoch in _EPOCHS, as `1: 98.22; 2: 98.65`, without empty ones."""
    texts = ((int(row["epoch"]) + 1, text(row)) for row in run.metrics)
    return "; ".join(f"{epoch}: {said}" for epoch, said in texts if epoch in _EPOCHS and said)


def row_of(run: Run) -> Row:
    """Return the row of a finished run."""
    arguments = told(run)
    overrides = [f"{name}={value}" for name, value in arguments if name not in ("config", "seed_everything")]
    best = run.best
    last = run.metrics[-1] if run.metrics else {}
    return {
        "data": data_title(run),
        "source": source(run),
        "configuration": " + ".join(value for name, value in arguments if name == "config"),
        "overrides": " ".join([*overrides, *run.changes]),
        "hash": digest(run),
        "seed": str(run.setting("seed_everything", "")),
        "protocol": run.protocol,
        "epochs": str(run.epochs),
        "T": str(run.setting("data.time_steps", "")),
        "accuracy": _percent(run.accuracy),
        "standard_error": _standard_error(run),
        "epoch": "" if best is None else str(best[0]),
        "accuracy_by_epoch": _by_epoch(run, lambda row: _percent(row.get(run.val_key))),
        "tau": _layers(run.best_metrics, "tau", 3),
        "tau_by_epoch": _by_epoch(run, lambda row: _layers(row, "tau", 3)),
        "firing_rate": _layers(run.best_metrics, "rate", 4),
        "seconds": f"{last['seconds']:.0f}" if "seconds" in last else "",
        "seconds_to": _seconds_to(run),
        **{name: run.surroundings.get(name, "") for name in ("machine", "versions", "commit")},
        "run": run.name,
        "command": "; ".join([_command(arguments), *run.changes]) if run.command else "",
        "validation": "" if best is None else _percent(best[1]),
        "spikes": "" if run.spikes is None else f"{run.spikes:.0f}",
        "energy_uj": "" if run.energy is None else f"{run.energy:.3f}",
        "model": _model(run),
        "setup": _hash(setup(run)),
    }


def _model(run: Run) -> str:
    """The settings of network and training by dotted names, as JSON, with the structure as it was given."""
    found = {key.removeprefix("model."): value for key, value in model_settings(run).items()}
    given = run.setting("model.structure")
    return json.dumps(found if given is None else {**found, "structure": given})


def read_results(path: Path) -> list[Row]:
    """Read the rows of a file that `write_results` wrote.

    Raises:
        UserError: the file is not such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            names = tuple(reader.fieldnames or ())
            if names == COLUMNS[: len(names)] and len(names) >= len(_FIRST):
                names, rows = COLUMNS, [{**dict.fromkeys(COLUMNS, ""), **row} for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of results: {error}.") from error
    problem = _problem_of_columns(names)
    for line, row in enumerate(rows, start=2):
        problem = problem or _problem_of_line(line, row)
    if problem := problem or _problem_of_layers(rows):
        raise UserError(
            f"{path} is not a table of results: {problem}. Mend that, pass another file, or move this one away."
        )
    return rows


def _problem_of_columns(names: tuple[str, ...]) -> str:
    """Return how columns differ from COLUMNS; empty if they do not."""
    if names == COLUMNS:
        return ""
    unlike = [name for name in (*COLUMNS, *names) if name not in COLUMNS or name not in names]
    return f"its columns differ ({', '.join(unlike) or 'their order'})"


# Columns of numbers, with the largest that each may hold; all but accuracy may be empty.
_NUMBERS = {
    **dict.fromkeys(("accuracy", "validation"), 100.0),
    **dict.fromkeys(("standard_error", "seconds", "spikes", "energy_uj"), math.inf),
}
# Pattern of other columns, and what a message says they must be. An unseeded run has no number as its seed.
_FORMS = {
    "seed": (re.compile("[0-9]*|None|True|False"), "a whole number"),
    "protocol": (re.compile("[AB]"), "A or B"),
    "epochs": (re.compile("[0-9]{1,9}"), "a whole number"),
    "tau": (re.compile(r"(\S+ -?\d+(\.\d+)?(, (?=.)|$))*"), "like `conv1 1.32, fc1 5.2`"),
}


def _problem_of_line(line: int, row: Row) -> str:
    """Return what is wrong with a row; empty if nothing is."""
    if None in row or None in row.values():
        return f"line {line} has too few or too many values"
    for name, most in _NUMBERS.items():
        text = row[name]
        if (text or name == "accuracy") and not 0 <= real(text) <= min(most, sys.float_info.max):
            wanted = "a number from 0" + (f" to {most:g}" if math.isfinite(most) else "")
            return f"{name} in line {line} must be {wanted}, got {text!r}"
    for name, (form, wanted) in _FORMS.items():
        if not form.fullmatch(row[name]):
            return f"{name} in line {line} must be {wanted}, got {row[name]!r}"
    return ""


def _problem_of_layers(rows: Sequence[Row]) -> str:
    """Return which row names other layers than an earlier one of the same experiment; empty if none does."""
    seen: dict[tuple[str, str], list[str]] = {}
    for line, row in enumerate(rows, start=2):
        layers = [part.rpartition(" ")[0] for part in row["tau"].split(", ")]
        if row["tau"] and layers != seen.setdefault((row["data"], row["hash"]), layers):
            return f"tau in line {line} is of other layers than that of an earlier line with its hash: {row['tau']!r}"
    return ""


def _experiment_key(row: Row, shipped: Set[str]) -> tuple[str, ...]:
    """Identify the experiment and seed that a row's command asks for; `shipped` names the project's configurations."""
    names = [(word.partition("=")[0], word) for word in row["overrides"].split()]
    # Runs read from W&B have none; files and data of one's own may be others now, or elsewhere, under the same name.
    own = set(row["configuration"].split(" + ")) - shipped or any(
        name in ("data", "data.class_path") for name, _ in names
    )
    if not row["command"] or own:
        return row["hash"], repetition(row)
    overrides = [word for name, word in names if name not in _PLACES]
    asked = (row[name] for name in ("data", "source", "protocol", "configuration"))
    return *asked, repetition(row), *overrides


def repetition(row: Row) -> str:
    """Identify a row among those of the same experiment: by its seed, or by its run if it has no seed."""
    return row["seed"] if row["seed"].isdigit() else row["run"]


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Merge rows; a new row replaces an old one with the same seed and the same settings or the same command."""
    shipped = configs.names().keys()
    by_command = {_experiment_key(row, shipped): row for row in (*old, *new)}
    found = {(row["hash"], repetition(row)): row for row in by_command.values()}
    order = [*paper.TITLES.values()]

    def place(row: Row) -> tuple[object, ...]:
        known = order.index(row["data"]) if row["data"] in order else len(order)
        names = (row[name] for name in ("data", "protocol", "configuration", "overrides"))
        return known, *names, int(row["epochs"]), row["seed"]

    return sorted(found.values(), key=place)


def write_results(path: Path, runs: Sequence[Run]) -> list[Row]:
    """Add the finished runs to a table of results and return all of its rows.

    Raises:
        UserError: path is another file.
    """
    finished = [run for run in runs if run.status == "finished" and run.accuracy is not None]
    new = [row_of(run) for run in sorted(finished, key=lambda run: run.started)]
    rows = merged(read_results(path) if path.exists() else [], new)
    with written_whole(path) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


_PAPER = {paper.TITLES[name]: (paper.TABLE_2[name], paper.TABLE_S2[name]) for name in paper.TITLES}


def _mean_of_layers(texts: Sequence[str]) -> str:
    """Average texts such as `conv1 1.32, fc1 5.2` layer by layer."""
    layers = [[part.rpartition(" ") for part in text.split(", ")] for text in texts if text]
    return ", ".join(
        f"{same[0][0]} {fmean(float(value) for *_, value in same):.2f}" for same in zip(*layers, strict=True)
    )


def _accuracy_of(group: Sequence[Row]) -> str:
    """Return the mean accuracy [%] over seeds with its interval, or a single accuracy with its standard error."""
    shares = [float(row["accuracy"]) / 100 for row in group]
    accuracy = f"{100 * fmean(shares):.2f}"
    if len(shares) > 1:
        low, high = interval(shares, None)  # none if all seeds reached the same
        ends = "" if math.isnan(low) else f" [{100 * max(low, 0.0):.2f}, {100 * min(high, 1.0):.2f}]"
        return f"{accuracy}{ends}, {len(shares)} seeds"
    error = group[0]["standard_error"]
    return f"{accuracy} \u00b1 {error}" if error else accuracy


def results_table(rows: Sequence[Row]) -> Table:
    """Return the table for the README: the mean over seeds."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["data"], row["hash"]].append(row)
    columns = ["data set", "paper A, B", "configuration", "epochs", "protocol", "accuracy [%]", "tau", "minutes"]
    notes = ["\u00b1: one standard error of one run, over the tested samples; [ ]: Student's 95 % interval over seeds."]
    return Table("", "Measured", columns, [_means(group) for group in groups.values()], notes)


def _in_force(overrides: str) -> str:
    """Overrides without those that a later one replaces. What follows `a+=x`, such as `a.b=1`, belongs to that x."""
    overrides, *later = overrides.partition(" after step ")  # changes on resuming, which all say something
    words = re.split(r" (?=[\w.]+\+?=)", overrides)
    names = [word.partition("=")[0] for word in words]
    appended = tuple(name.replace("+", ".") for name in names if name.endswith("+"))
    many = [name.endswith("+") or name.startswith(appended) for name in names]
    kept = [word for i, word in enumerate(words) if many[i] or names[i] not in names[i + 1 :]]
    return " ".join(kept) + "".join(later)


def _means(group: Sequence[Row]) -> list[str]:
    """Return the row of `results_table` for runs that differ only in their seed."""
    first = group[0]
    data = first["data"]
    # Accuracies on a part of the data cannot be compared with the paper's.
    is_part = bool({"of", "part", "PART"} & set(first["source"].split()))
    known = None if is_part else _PAPER.get(data)
    minutes = [float(row["seconds"]) / 60 for row in group if row["seconds"]]
    return [
        f"{data} ({first['source']})" if is_part else data,
        "" if known is None else f"{known[0]:.2f}, {known[1]:.2f}",
        ", ".join(filter(None, (first["configuration"], _in_force(first["overrides"])))),
        first["epochs"],
        first["protocol"],
        _accuracy_of(group),
        _mean_of_layers([row["tau"] for row in group]),
        f"{fmean(minutes):.{0 if fmean(minutes) >= 10 else 1}f}" if minutes else "",
    ]
