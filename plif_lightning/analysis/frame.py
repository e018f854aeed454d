"""Runs as a pandas data frame, a row a run, for custom tables and plots."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plif_lightning.analysis import words
from plif_lightning.analysis.select import latest
from plif_lightning.errors import UserError
from plif_lightning.runs.metrics import layer_quantities, layer_values
from plif_lightning.runs.published import runs_in
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import flatten_settings
from plif_lightning.runtime.files import atomic_write
from plif_lightning.runtime.program import needed_by

if TYPE_CHECKING:
    import pandas as pd


# Results that are numbers, missing (NaN) where they are unknown.
_NUMBERS = ("accuracy", "validation", "test", "best_epoch", "minutes", "spikes", "firing_rate", "energy_uj")


def read_runs(folder: str | Path = "runs") -> "pd.DataFrame":
    """The runs in a folder and its subfolders, a row a run; its index, `run`, is the run's folder there.

    Args:
        folder: such as the `runs` of `fit`; or a file of published runs, such as configs/results.jsonl.

    Returns:
        Columns in this order: `status` (finished, running, resumable, failed without a checkpoint, unreadable);
        `protocol` (A: best epoch on the test set, B: on held-out samples); `seed`; `epochs`; `accuracy`, as the
        protocol reports it, and `validation` and `test`, each from 0 to 1; `best_epoch`, from 1; `minutes` of training;
        `spikes` for a sample; `firing_rate`; `energy_uj`; `tau.LAYER`, `rate.LAYER` and whatever else is logged as
        `KIND/LAYER`, of the best epoch; `structure` of the network, in the paper's notation; `key`, equal for runs that
        tables average, and `averaged`, True for the runs that they take (finished, with an accuracy, the latest of a
        seed), or `left_out`, why they do not; `code`, the user's modules with their hashes; `commit`, `machine`,
        `versions`; `started` and every other number of `run.json`; `changes` on resuming; then every setting, defaults
        included, by its name on the command line, such as `model.init_tau`. A class is its import path, a list its
        JSON. Unknown values are missing (NaN or None).

    Raises:
        UserError: the folder does not exist, or has no runs.
        MissingExtraError: pandas is not installed.

    >>> read_runs("runs").groupby("model.neuron")["accuracy"].mean()  # doctest: +SKIP
    """
    with needed_by("a data frame of runs"):
        import pandas as pd

    runs = runs_in(folder)
    counted = latest(runs)
    rows = [_row(run, " ".join(words.why_left_out(run, counted)).strip()) for run in runs]
    order = dict.fromkeys(name for block in ("results", "settings") for row in rows for name in row[block])
    values = [{**row["settings"], **row["results"]} for row in rows]
    index = pd.Index([row["name"] for row in rows], name="run")
    frame = pd.DataFrame(values, index=index, columns=list(order))
    return frame.astype(dict.fromkeys(_NUMBERS, "float64"))


def _row(run: Run, left_out: str) -> dict[str, Any]:
    best, last = run.best, run.metrics[-1] if run.metrics else {}
    layers = {quantity: layer_values(run.best_metrics, quantity) for quantity in layer_quantities([run.best_metrics])}
    outcomes = {
        "status": run.status,
        "protocol": run.protocol if run.config else None,
        "seed": run.setting("seed_everything"),
        "epochs": run.epochs,
        "accuracy": run.accuracy,
        "validation": None if best is None else best[1],
        "test": run.test,
        "best_epoch": int(run.best_metrics["epoch"]) + 1 if run.best_metrics else None,
        "minutes": last["seconds"] / 60 if "seconds" in last else None,
        "spikes": run.spikes,
        "firing_rate": run.firing_rate,
        "energy_uj": run.energy,
        **{f"{quantity}.{layer}": value for quantity, values in layers.items() for layer, value in values.items()},
        "structure": run.record.structure,
        "key": run.key,
        "averaged": run.has_result and not left_out,
        "left_out": left_out or None,
        "code": ", ".join(f"{name} {digest}" for name, digest in run.identity.code.items()) or None,
        **{name: run.surroundings(name) for name in ("commit", "machine", "versions")},
        "started": run.started or None,
        "ended": run.record.ended,
        "tested": run.record.tested,
        **{name: value for name, value in run.record.others.items() if type(value) in (int, float)},
        "changes": "; ".join(words.changes(run)) or None,
    }
    blocks: dict[str, Any] = {
        name: run.config[name] for name in ("data", "task", "model", "trainer") if run.config.get(name) is not None
    }
    return {"name": run.name, "results": outcomes, "settings": dict(flatten_settings(blocks))}


def write_frame(frame: "pd.DataFrame", path: Path) -> None:
    """Write a data frame as .csv, .md, .tex or .html, as the file's name says.

    Raises:
        UserError: it ends otherwise.
    """
    writers: dict[str, Callable[[], str]] = {
        ".csv": frame.to_csv,
        ".md": frame.to_markdown,
        ".tex": frame.to_latex,
        ".html": frame.to_html,
    }
    if path.suffix not in writers:
        raise UserError(f"--out must end in {', '.join(writers)}, got {path}.")
    with atomic_write(path) as file:
        file.write(writers[path.suffix]())
