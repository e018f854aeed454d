"""Tables of results such as `configs/results.csv`, one row per run with the command that repeats it, and their runs."""

import csv
import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from plif_lightning import configs
from plif_lightning.analysis import paper
from plif_lightning.analysis.grouping import data_title, interval, is_limited, real, source
from plif_lightning.analysis.tables import Table
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import layer_values
from plif_lightning.runs.run import Run
from plif_lightning.runtime.files import written_whole

COLUMNS = (
    *("data", "source", "configuration", "overrides", "key", "seed", "protocol", "epochs", "T"),
    *("accuracy", "standard_error", "epoch", "accuracy_by_epoch", "tau", "tau_by_epoch", "firing_rate"),
    *("seconds", "seconds_to", "machine", "versions", "commit", "run", "command"),
    *("validation", "spikes", "energy_uj", "settings"),
)
# Epochs after which accuracy and tau are stored, and accuracies [%] for which the time to reach them is stored.
_EPOCHS = (1, 2, 3, 5, 10, 15, 20, 30, 64, 100, 1024)
_LEVELS = (50, 60, 70, 80, 90, 92, 93, 93.5, 93.85, 99, 99.5, 99.55, 99.65)
# Arguments for places, display and saving, which do not affect the computation.
_PLACES = {
    *("run_folder", "checkpoint.every_n_batches", "data.root", "data.store", "data.num_workers"),
    *("trainer.default_root_dir", "trainer.enable_progress_bar"),
}

Row = dict[str, str]


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield names and values of the options, `--key value` or `--key=value`, that follow the subcommand."""
    parts = list(arguments[1:])
    while parts:
        name, separator, value = parts.pop(0).removeprefix("--").partition("=")
        if not separator:
            value = parts.pop(0) if parts and not parts[0].startswith("--") else ""
        yield ("config" if name == "-c" else name), value


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
    return [(name, value) for name, value in named if name not in places]


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
    changes = [f"after step {step} {name}={value}" for step, name, value in run.changes]
    best = run.best
    last = run.metrics[-1] if run.metrics else {}
    return {
        "data": data_title(run),
        "source": source(run),
        "configuration": " + ".join(value for name, value in arguments if name == "config"),
        "overrides": " ".join([*overrides, *changes]),
        "key": run.key,
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
        **{name: run.part("surroundings").get(name, "") for name in ("machine", "versions", "commit")},
        "run": run.name,
        "command": "; ".join([_command(arguments), *changes]) if run.command else "",
        "validation": "" if best is None else _percent(best[1]),
        "spikes": "" if run.spikes is None else f"{run.spikes:.0f}",
        "energy_uj": "" if run.energy is None else f"{run.energy:.3f}",
        "settings": json.dumps(run.settings, default=str),
    }


def read_results(path: Path) -> list[Row]:
    """Read the rows of a file that `write_results` wrote.

    Raises:
        UserError: the file is not such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of results: {error}.") from error
    whole = tuple(reader.fieldnames or ()) == COLUMNS
    wrong = [
        i for i, row in enumerate(rows, start=2) if None in row.values() or not 0 <= real(row.get("accuracy")) <= 100
    ]
    if not whole or wrong:
        what = f"line {wrong[0]} lacks values or an accuracy in percent" if whole else "it has other columns"
        raise UserError(f"{path} is not a table of results: {what}. Pass another file, or move this one away.")
    return rows


def _identity(row: Row) -> tuple[str, ...]:
    """Identity of a row: a run with the same data, settings and seed replaces it.

    User-defined data of one name may differ in content.
    """
    seed = row["seed"] if row["seed"].isdigit() else row["run"]
    content = "" if row["data"] in paper.TITLES.values() else row["key"]
    changes = f" {row['overrides']}".partition(" after step ")[2]
    known = json.dumps(json.loads(row["settings"]), sort_keys=True)
    return row["data"], row["source"], row["protocol"], known, changes, content, seed


def write_results(path: Path, runs: Sequence[Run]) -> list[Row]:
    """Add the finished runs to a table of results and return all of its rows.

    Raises:
        UserError: path is another file.
    """
    finished = [run for run in runs if run.status == "finished" and run.accuracy is not None]
    new = [row_of(run) for run in sorted(finished, key=lambda run: run.started)]
    old = read_results(path) if path.exists() else []
    order = [*paper.TITLES.values()]

    def place(row: Row) -> tuple[object, ...]:
        known = order.index(row["data"]) if row["data"] in order else len(order)
        names = (row[name] for name in ("data", "protocol", "configuration", "overrides"))
        return known, *names, int(row["epochs"]), row["seed"]

    rows = sorted({_identity(row): row for row in (*old, *new)}.values(), key=place)
    with written_whole(path) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


_SAMPLES = re.compile(r"(\d[\d,]{0,15}) / (\d[\d,]{0,15}) samples")
_CLASSES = {title: name for name, title in paper.TITLES.items()}


def published_runs(path: Path) -> list[Run]:
    """Return a run for each row of a table of results, with what a leaderboard needs.

    Raises:
        UserError: the file is no table of results.
    """
    return [_run_of(row, path) for row in read_results(path)]


def _run_of(row: Row, path: Path) -> Run:
    samples = _SAMPLES.search(row["source"])
    training, tested = (int(n.replace(",", "")) for n in samples.groups()) if samples else (None, None)
    share = float(row["accuracy"]) / 100
    exact = round(share * tested) / tested if tested else share  # two decimals are too few for 1 / 359
    if abs(exact - share) < 6e-5:  # more: the Trainer limited the test, and only a part of these samples counted
        share = exact
    kind = f"plif_lightning.data.{_CLASSES[row['data']]}" if row["data"] in _CLASSES else row["data"]
    data = {
        "class_path": kind,
        "time_steps": int(row["T"]),
        "validation": {"A": "test", "B": "holdout"}[row["protocol"]],
    }
    config = {"data": data, "seed_everything": int(row["seed"]) if row["seed"].isdecimal() else None}
    record = {
        "settings": json.loads(row["settings"]),
        "key": row["key"],
        "data": {"title": row["data"], "content": row["source"], "samples": {"training": training, "test": tested}},
        "test": share,
        "cost": {"pj_int8_reused": 1e6 * real(row["energy_uj"]), "spikes": real(row["spikes"])},
    }
    run = Run(RunFolder(path), row["run"], "finished", config, record=record)
    run.metrics.append({"epoch": float(row["epochs"]) - 1, run.val_key: real(row["validation"]) / 100})
    return run


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
        groups[row["data"], row["key"]].append(row)
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
