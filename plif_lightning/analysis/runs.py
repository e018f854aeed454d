"""The layout of a run's folder, and what stands in it. Nothing else knows file names."""

import csv
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from plif_lightning.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def command(self) -> Path:
        """The arguments that started the run, and which process it is."""
        return self.path / "command.json"

    @property
    def result(self) -> Path:
        """Written when a fit has ended: where there is none, the run is going on or was broken off."""
        return self.path / "result.json"

    @property
    def weights(self) -> Path:
        """Distributions of W_fc / tau, a line for each layer and epoch."""
        return self.path / "weights.jsonl"

    @property
    def samples(self) -> Path:
        """What the network did with a few samples."""
        return self.path / "samples.npz"

    @property
    def wandb(self) -> Path:
        """Which W&B run it is recorded in."""
        return self.path / "wandb.json"

    @property
    def test_result(self) -> Path:
        """What a later `test` of the best checkpoint measured on the whole test set."""
        return self.path / "test" / "result.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def tau_curve(self) -> Path:
        return self.path / "tau_curve.png"

    @staticmethod
    def of_checkpoint(checkpoint: Path) -> "RunFolder":
        """The run a checkpoint belongs to; the checkpoint's own folder where it was moved out of one."""
        folder = checkpoint.resolve().parent
        return RunFolder(folder.parent if folder.name == "checkpoints" else folder)


def read_metrics(path: Path, problems: list[str] | None = None) -> list[dict[str, float]]:
    """One row of metrics per epoch, in order, from a run's `metrics.csv`.

    A logger writes several lines for one epoch (training, validation, layers); they are merged.

    Args:
        path: the table.
        problems: gets a sentence for each line that cannot be read, which is then left out; without it, that is an
            error.

    Raises:
        UserError: the file cannot be read as such a table.
    """
    epochs: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                # A test after the fit is logged under the last epoch but belongs to the best one.
                if not row.get("epoch") or any(value and key and key.startswith("test/") for key, value in row.items()):
                    continue
                try:
                    values = _numbers(row)
                except ValueError as error:
                    message = f"{path}, line {line}: {error}."
                    if problems is None:
                        raise UserError(message) from None
                    problems.append(f"{message} The line is left out.")
                    continue
                epochs.setdefault(int(values["epoch"]), {}).update(values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of metrics: {error}.") from error
    return [epochs[epoch] for epoch in sorted(epochs)]


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    values = {}
    for key, value in row.items():
        if key is None:
            raise ValueError(f"there are more values than columns: {value}")
        if value:
            try:
                values[key] = float(value)
            except ValueError:
                raise ValueError(f"{key} must be a number, got {value!r}") from None
    if not np.isfinite(values["epoch"]):
        raise ValueError(f"epoch must be a number, got {row['epoch']!r}")
    return values


def layer_values(row: dict[str, float], kind: str) -> dict[str, float]:
    """Values of one kind (`tau`, `rate`) by layer, in the order of the network."""
    return {key.removeprefix(f"{kind}/"): value for key, value in row.items() if key.startswith(f"{kind}/")}


# --- a run as a whole

Status = Literal["finished", "running", "unfinished", "unreadable"]


@dataclass(frozen=True)
class Histogram:
    """Distribution of an FC layer's W / tau after an epoch (counted from 1): counts between equally spaced edges."""

    layer: str
    epoch: int
    low: float
    high: float
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """What a run's best network did with a few samples of its validation part.

    Attributes:
        label: class of each sample [S].
        classes: names of all classes.
        frames: of each sample [T or 1, S, C, H, W].
        rates: mean of the first layer's spikes over time [S, C', H', W'].
        spikes: of the first samples in the first layer [T, S', C', H', W'], bool.
        votes: of each step [T, S, classes].
    """

    label: NDArray[Any]
    classes: list[str]
    frames: NDArray[Any]
    rates: NDArray[Any]
    spikes: NDArray[Any]
    votes: NDArray[Any]


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        folder: where it is.
        name: the folder, from the one that was searched.
        status: unreadable where there is nothing to be told of it.
        config: nested, as `config.yaml` holds it.
        metrics: a row per epoch.
        command: arguments of main.py.
        facts: data set, origin, samples and protocol, as the run wrote them.
        test: accuracy of the test set measured once, as a share; None where it was not.
        host: where it was begun.
        problems: what could not be read, in sentences.
    """

    folder: RunFolder
    name: str
    status: Status
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    test: float | None = None
    host: str | None = None
    problems: list[str] = field(default_factory=list)

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted key, such as `model.init_tau` or `data.time_steps`."""
        value: Any = self.config
        for name in key.split("."):
            if isinstance(value, dict) and name not in value and isinstance(value.get("init_args"), dict):
                value = value["init_args"]
            if not isinstance(value, dict) or name not in value:
                return default
            value = value[name]
        return value

    @property
    def data_set(self) -> str:
        """Name of the data module's class."""
        return str(self.setting("data.class_path", "?")).rsplit(".", 1)[-1]

    @property
    def protocol(self) -> Literal["A", "B"]:
        """A: the best epoch on the test set; B: the best on a part held out of the training set, tested once."""
        return "B" if self.setting("data.validation") == "holdout" else "A"

    @property
    def val_key(self) -> str:
        return "val/acc" if self.protocol == "B" else "test_as_val/acc"

    @property
    def best(self) -> tuple[int, float] | None:
        """(epoch, counted from 1; accuracy as a share) of the best validation; None before the first."""
        rows = [row for row in self.metrics if 0 <= row.get(self.val_key, float("nan")) <= 1]
        if not rows:
            return None
        row = max(rows, key=lambda row: row[self.val_key])
        return int(row["epoch"]) + 1, row[self.val_key]

    @property
    def accuracy(self) -> float | None:
        """What the run's protocol reports, as a share: the best epoch's (A), or the one test's (B)."""
        if self.protocol == "B":
            return self.test
        return self.best[1] if self.best else None

    @property
    def tested_samples(self) -> int | None:
        """Samples that `accuracy` is a share of."""
        samples = self.facts.get("samples", {})
        found = samples.get("test", samples.get("test as val")) if isinstance(samples, dict) else None
        return found if isinstance(found, int) and found > 0 else None

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Epochs, counted from 1, and values of one metric."""
        rows = [row for row in self.metrics if key in row]
        return [row["epoch"] + 1 for row in rows], [row[key] for row in rows]

    def layers(self, kind: str) -> list[str]:
        """Layers that have values of a kind (`tau`, `rate`), in the order of the network."""
        found: dict[str, None] = {}
        for row in self.metrics:
            found |= dict.fromkeys(layer_values(row, kind))
        return list(found)


def _is_run(folder: Path) -> bool:
    run = RunFolder(folder)
    return run.config.is_file() or run.metrics.is_file() or run.command.is_file()


def find_runs(root: Path | str) -> list[Run]:
    """All runs in a folder and below it, in the order of their paths; a run that cannot be read is among them.

    Args:
        root: the folder; or `wandb:ENTITY/PROJECT`, read by W&B's API, which knows no samples and no W / tau.

    Raises:
        UserError: there is no such folder or project, or no run in it.
    """
    if str(root).startswith(_WANDB):
        return _wandb_runs(str(root).removeprefix(_WANDB))
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"runs must be a folder, got {root}, which is not there.")
    found = []
    for folder, below, _ in os.walk(root):
        below[:] = sorted((name for name in below if not name.startswith(".")), key=_by_number)
        if _is_run(Path(folder)):
            found.append(read_run(Path(folder), root))
            below.clear()  # evaluations of the run have folders of their own
    if not found:
        raise UserError(f"there is no run in {root}: `python main.py fit --config configs/quickstart.yaml` makes one.")
    return found


_WANDB = "wandb:"
_STATES: dict[str, Status] = {"finished": "finished", "running": "running"}


def _wandb_runs(project: str) -> list[Run]:
    import wandb

    try:
        found = [run_of_wandb(run) for run in wandb.Api().runs(project)]
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(
            f"the runs of {project} cannot be read from W&B: {' '.join(str(error).split())}. It must be "
            "ENTITY/PROJECT, and `wandb login` comes first."
        ) from error
    if not found:
        raise UserError(f"there is no run in W&B's project {project}.")
    return found


def run_of_wandb(run: Any) -> Run:
    """A run as W&B's API gives it (`wandb.apis.public.Run`), that `variants/wandb.yaml` recorded."""
    epochs: dict[int, dict[str, float]] = {}
    for row in run.scan_history():
        if row.get("epoch") is not None and not any(key.startswith("test/") for key in row):
            values = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and not k.startswith("_")}
            epochs.setdefault(int(row["epoch"]), {}).update(values)
    config = dict(run.config)
    test = run.summary.get("test/acc")
    return Run(
        RunFolder(Path("wandb") / str(run.id)),  # nothing is there
        str(run.name),
        _STATES.get(str(run.state), "unfinished") if "model" in config else "unreadable",
        config,
        [epochs[epoch] for epoch in sorted(epochs)],
        [],
        dict(config.get("facts") or {}),
        float(test) if isinstance(test, (int, float)) else None,
    )


def _by_number(name: str) -> list[tuple[int, Any]]:
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return [(0, "".join(c for c in name if not c.isdigit())), *((1, int(d)) for d in digits)]


def read_run(folder: Path, root: Path | None = None) -> Run:
    """What a run's folder holds; what cannot be read stands in `problems`."""
    files = RunFolder(folder)
    problems: list[str] = []
    config = _loaded(files.config, problems)
    metrics: list[dict[str, float]] = []
    if files.metrics.is_file():
        try:
            metrics = read_metrics(files.metrics, problems)
        except UserError as error:
            problems.append(str(error))
    else:
        problems.append(f"{files.metrics} is not there: no epoch was finished.")
    started = _loaded(files.command, problems, optional=True)
    result = _loaded(files.result, problems, optional=True)
    test = result.get("test")
    facts = _loaded(files.data, problems, optional=True)
    if isinstance(result.get("samples"), dict):
        facts["samples"] = result["samples"]
    if test is None and files.test_result.is_file():
        later = _loaded(files.test_result, problems, optional=True)
        test = later.get("test")
        if isinstance(facts.get("samples"), dict):
            facts["samples"] = {**facts["samples"], "test": later.get("samples")}
    if test is not None and not (isinstance(test, (int, float)) and 0 <= test <= 1):
        problems.append(f"{files.result}: test must be a share from 0 to 1, got {test!r}.")
        test = None
    if not config:
        status: Status = "unreadable"
    elif result:
        status = "finished"
    else:
        status = "running" if _is_alive(started) else "unfinished"
    arguments = started.get("arguments")
    host = started.get("host")
    name = os.path.relpath(folder, root) if root is not None else folder.name
    return Run(
        files,
        _printable(folder.name if name == "." else name),
        status,
        config,
        metrics,
        [str(part) for part in arguments] if isinstance(arguments, list) else [],
        facts,
        None if test is None else float(test),
        host if isinstance(host, str) else None,
        [_printable(problem) for problem in problems],
    )


def _printable(value: Any) -> Any:
    """Without characters that no file can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_printable(part) for part in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(part) for key, part in value.items()}
    return value


def _loaded(path: Path, problems: list[str], optional: bool = False) -> dict[str, Any]:
    try:
        text = path.read_text()
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except FileNotFoundError:
        if not optional:
            problems.append(f"{path} is not there.")
        return {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        problems.append(f"{path} cannot be read: {' '.join(str(error).split())}.")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path} must hold names and values, got {type(value).__name__}.")
        return {}
    return _printable(value)


# libyaml's, where PyYAML has it: a hundred configurations in a second instead of ten
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _state_and_birth(pid: int) -> tuple[str, str] | None:
    """A process's state and start, where the system tells them (Linux); a pid may be given to another one later."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return after_name[0], after_name[19]
    except (OSError, IndexError):
        return None


def _is_alive(started: dict[str, Any]) -> bool:
    pid = started.get("pid")
    if started.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    known = _state_and_birth(pid)
    if known is not None:
        state, born = known
        return state not in "ZX" and born == started.get("born", born)
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def process_identity() -> dict[str, Any]:
    """What tells later whether a run is still going on."""
    known = _state_and_birth(os.getpid())
    return {"host": socket.gethostname(), "pid": os.getpid(), **({} if known is None else {"born": known[1]})}


def read_histograms(folder: RunFolder) -> list[Histogram]:
    """Distributions of W / tau in the order of epochs; lines that cannot be read are left out."""
    found: dict[tuple[str, int], Histogram] = {}
    try:
        lines = folder.weights.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            counts = np.asarray(row["counts"], np.int64)
            low, high = float(row["low"]), float(row["high"])
            if counts.ndim != 1 or counts.sum() <= 0 or not -np.inf < low < high < np.inf:
                continue
            key = str(row["layer"]), int(row["epoch"])
            found[key] = Histogram(*key, low, high, counts)
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return sorted(found.values(), key=lambda h: h.epoch)


def read_samples(folder: RunFolder) -> Samples | None:
    """What the run's network did with a few samples; None where nothing was recorded.

    Raises:
        UserError: the file is damaged.
    """
    if not folder.samples.is_file():
        return None
    try:
        with folder.samples.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            shape = tuple(stored["spikes_shape"])
            bits = np.unpackbits(stored["spikes"], count=int(np.prod(shape)))
            found = Samples(
                stored["label"],
                [str(name) for name in stored["classes"]],
                stored["frames"],
                stored["counts"].astype(np.float32) / shape[0],
                bits.reshape(shape).astype(bool),
                np.nan_to_num(stored["votes"].astype(np.float32)),
            )
        _require_shapes(found)
        return found
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise UserError(f"{folder.samples} cannot be read: {' '.join(str(error).split())}.") from error


def _require_shapes(samples: Samples) -> None:
    steps, played, channels, height, width = samples.spikes.shape
    n = len(samples.label)
    fits = (
        samples.label.shape == (n,)
        and n >= played > 0
        and samples.frames.ndim == 5
        and samples.frames.shape[:2] in ((1, n), (steps, n))
        and 0 not in samples.frames.shape
        and samples.rates.shape == (n, channels, height, width)
        and samples.votes.shape == (steps, n, len(samples.classes))
        and 0 <= samples.label.min() <= samples.label.max() < len(samples.classes)
    )
    if not fits:
        raise ValueError("its parts do not fit together")


def write_samples(folder: RunFolder, samples: Samples, file: Any) -> None:
    """Writes what `read_samples` reads."""
    steps = len(samples.spikes)
    np.savez_compressed(
        file,
        label=samples.label,
        classes=np.asarray(samples.classes),
        frames=samples.frames,
        counts=np.rint(samples.rates * steps).astype(np.uint16 if steps > 255 else np.uint8),
        spikes=np.packbits(samples.spikes),
        spikes_shape=np.asarray(samples.spikes.shape),
        votes=samples.votes.astype(np.float16),
    )
