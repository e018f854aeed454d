"""Runs as a pandas data frame, a row a run, for tables and plots of one's own."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plif_lightning.errors import UserError
from plif_lightning.runs.metrics import layer_kinds, layer_values
from plif_lightning.runs.results import runs_in
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import flat
from plif_lightning.runtime.files import written_whole
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
        Columns in this order: `status` (finished, running, unfinished, unreadable); `protocol` (A: best epoch on the
        test set, B: on held-out samples); `seed`; `epochs`; `accuracy`, the one that the protocol reports, and
        `validation` and `test`, each from 0 to 1; `best_epoch`, from 1; `minutes` of training; `spikes` for a sample;
        `firing_rate`; `energy_uj`; `tau.LAYER`, `rate.LAYER` and whatever else is logged as `KIND/LAYER`, of the best
        epoch; `structure` of the network, in the paper's notation; `key`, equal for runs that tables average; `code`,
        modules of the user's with their hashes; `commit`, `machine`, `versions`; every other number of `run.json`;
        `changes` on resuming; then every setting, defaults included, by its name on the command line, such as
        `model.init_tau`. A class is its import path, a list its JSON. What is unknown is missing (NaN or None).

    Raises:
        UserError: the folder does not exist, or has no runs.
        MissingExtraError: pandas is not installed.

    >>> read_runs("runs").groupby("model.neuron")["accuracy"].mean()  # doctest: +SKIP
    """
    with needed_by("a data frame of runs"):
        import pandas as pd

    rows = [_row(run) for run in runs_in(folder)]
    order = dict.fromkeys(name for part in ("results", "settings") for row in rows for name in row[part])
    values = [{**row["settings"], **row["results"]} for row in rows]
    index = pd.Index([row["name"] for row in rows], name="run")
    frame = pd.DataFrame(values, index=index, columns=list(order))
    return frame.astype(dict.fromkeys(_NUMBERS, "float64"))


def _row(run: Run) -> dict[str, Any]:
    best, last = run.best, run.metrics[-1] if run.metrics else {}
    layers = {kind: layer_values(run.best_metrics, kind) for kind in layer_kinds([run.best_metrics])}
    results = {
        "status": run.status,
        "protocol": run.protocol if run.config else None,
        "seed": run.setting("seed_everything"),
        "epochs": run.epochs,
        "accuracy": run.accuracy,
        "validation": None if best is None else best[1],
        "test": run.test,
        "best_epoch": None if best is None else best[0],
        "minutes": last["seconds"] / 60 if "seconds" in last else None,
        "spikes": run.spikes,
        "firing_rate": run.firing_rate,
        "energy_uj": run.energy,
        **{f"{kind}.{layer}": value for kind, values in layers.items() for layer, value in values.items()},
        "structure": run.record.get("structure"),
        "key": run.key,
        "code": ", ".join(f"{name} {digest}" for name, digest in run.part("code").items()) or None,
        **{name: run.part("surroundings").get(name) for name in ("commit", "machine", "versions")},
        **{name: value for name, value in run.record.items() if type(value) in (int, float) and name != "test"},
        "changes": "; ".join(f"{name}={value} after step {step}" for step, name, value in run.changes) or None,
    }
    blocks: dict[str, Any] = {name: run.config[name] for name in ("data", "model", "trainer") if name in run.config}
    return {"name": run.name, "results": results, "settings": dict(flat(blocks))}


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
    with written_whole(path) as file:
        file.write(writers[path.suffix]())
