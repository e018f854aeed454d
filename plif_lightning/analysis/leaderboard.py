"""What a setting gains: runs of protocol B beside runs with the paper's setting, over the same seeds."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from plif_lightning import configs
from plif_lightning.analysis.settings import data_title, in_words, model_settings, setup
from plif_lightning.analysis.tables import Cell, Table, cells, interval, numbers_in_words
from plif_lightning.errors import UserError
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import identity, says_something
from plif_lightning.structure import Numbers, parse
from plif_lightning.structure.layers import FC, Conv, Integrator, Neurons, Residual

# What may differ from base.yaml in "the paper's setting": how long and how hard a network is trained, and its size.
_TRAINING = ("model.dropout", "model.optimizer", "model.lr_scheduler", "model.early_time_steps", "model.structure")
_NUMBERS = {f"model.{name}" for name in Numbers._fields}
# Name of the setting that changes nothing.
_PAPER = "the paper's"


@dataclass(frozen=True)
class Standing:
    """A setting on the leaderboard of a data set.

    Attributes:
        data: name of the data set.
        change: what it changes in the paper's setting, in words; empty for that setting itself.
        cell: its runs, accuracy on the test set and interval.
        validation: mean validation accuracy of the best epochs [%], by which rows are ranked.
        gain: mean difference of the test accuracy to the paper's setting over the seeds of both [points].
        low: end of the 95 % interval of the difference; NaN for fewer than two seeds.
        high: the other end.
    """

    data: str
    change: str
    cell: Cell
    validation: float
    gain: float
    low: float
    high: float

    @property
    def is_paper(self) -> bool:
        return not self.change

    @property
    def name(self) -> str:
        return self.change or _PAPER

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval of the difference does not contain 0, otherwise empty."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else ""

    def mean(self, what: str) -> float:
        """Mean over the runs of a property of `Run`, such as `spikes`; NaN if a run does not know it."""
        values = [getattr(run, what) for run in self.cell.runs]
        return math.nan if None in values else statistics.fmean(values)


def standings(runs: Sequence[Run]) -> list[list[Standing]]:
    """Leaderboards: settings that share data, epochs and all else but `model`, best validation accuracy first.

    Runs belong together with a run of the paper's setting (neuron, loss, pooling and all else that base.yaml fixes,
    except dropout, optimiser and schedule). Of several such settings, the one from which the others differ least is
    the one compared with. Settings without one have no leaderboard.
    """
    return _standings(_groups(runs))


def _standings(groups: Sequence[Sequence[Cell]]) -> list[list[Standing]]:
    found = [_leaderboard(group) for group in groups if len(group) > 1]
    return sorted(filter(None, found), key=lambda rows: rows[0].data)


def _groups(runs: Sequence[Run]) -> list[list[Cell]]:
    """Settings that share data, epochs and all else but `model`."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells([run for run in runs if run.protocol == "B"]):
        groups[setup(cell.runs[0])].append(cell)
    return [*groups.values()]


def _model(run: Run) -> dict[str, Any]:
    """The settings of a run's network and its training that are not none, false or zero: later options' defaults."""
    return {key: value for key, value in model_settings(run).items() if says_something(key, value)}


@cache
def _paper_model() -> dict[str, Any]:
    from plif_lightning.network.network import DEFAULTS  # which loads PyTorch, not needed for --help

    base = yaml.safe_load((configs.folder() / "base.yaml").read_text("utf-8"))
    defaults = {name: value for name, value in DEFAULTS.items() if name not in ("neuron", "dropout")}
    known = {**identity({"model": defaults}), **identity({"model": base["model"]})}
    fixed = {k: v for k, v in known.items() if k.startswith("model.") and not k.startswith(_TRAINING)}
    return {key: value for key, value in fixed.items() if key not in _NUMBERS}


def _is_paper(run: Run) -> bool:
    """True for the paper's neurons, loss, BN and pools, without any other setting but of training and size."""
    paper = _paper_model()
    for key, value in identity(run.config).items():
        if key.startswith("model.") and not key.startswith(_TRAINING) and key not in _NUMBERS:
            expected = paper.get(key)
            if value != expected and not (expected is None and not says_something(key, value)):
                return False
    text = run.setting("model.structure")
    try:
        layers = () if text is None else parse(text).layers
    except UserError:
        return False
    weighted = [layer for layer in layers if isinstance(layer, (Conv, FC))]
    usual = all(layer.neurons == Neurons("PLIF") and getattr(layer, "norm", True) for layer in weighted)
    return usual and not any(isinstance(layer, (Residual, Integrator)) for layer in layers)


def _changed(base: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """Settings in which two networks differ; a structure stands for the numbers it replaces, a class for its name."""
    found = [key for key in dict.fromkeys((*model, *base)) if base.get(key) != model.get(key)]
    if "model.structure" in found:
        found = [key for key in found if key not in _NUMBERS]
    return [key for key in found if f"{key}.class_path" not in found]


def _leaderboard(group: Sequence[Cell]) -> list[Standing]:
    models = [_model(cell.runs[0]) for cell in group]
    papers = [i for i, cell in enumerate(group) if _is_paper(cell.runs[0])]
    if not papers:
        return []
    chosen = min(papers, key=lambda i: sum(len(_changed(models[i], model)) for model in models))
    base = group[chosen]
    found = []
    changes = [_changed(models[chosen], model) for model in models]
    words = [
        ", ".join(_in_words(key, cell.runs[0], base.runs[0]) for key in changes[i]) for i, cell in enumerate(group)
    ]
    alike = Counter(words)
    for i, cell in enumerate(group):
        if alike[words[i]] > 1:  # classes of one name, or numbers that differ after six digits
            words[i] = ", ".join(f"{key} {models[i].get(key)!r}" for key in changes[i])
        validation = 100 * statistics.fmean(run.best[1] if run.best else math.nan for run in cell.runs)
        found.append(Standing(data_title(cell.runs[0]), words[i], cell, validation, *_gain(cell, base)))
    # NaN, an unknown validation accuracy, comes last: sorting by NaN itself would give an arbitrary order.
    return sorted(found, key=lambda row: (math.isnan(row.validation), -row.validation, row.change))


def _in_words(key: str, run: Run, base: Run) -> str:
    """A setting in words; of a structure, only its end from where it differs."""
    value = identity(run.config).get(key)
    if key != "model.structure":
        return in_words(key, value)
    own, other = (str(one.setting(key)).split("-") for one in (run, base))
    same = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), 0)
    return f"structure {'...-' if same else ''}{'-'.join(own[same:])}"


def _gain(cell: Cell, base: Cell) -> tuple[float, float, float]:
    """Mean and 95 % interval of the differences of accuracy [points] over the seeds that both have."""
    of_seed = {_seed(run): run.accuracy for run in base.runs}
    pairs = [(run.accuracy, None if _seed(run) is None else of_seed.get(_seed(run))) for run in cell.runs]
    # Rounded: equal differences of float fractions differ in their last digits, and would have an interval.
    apart = [round(100 * (own - other), 6) for own, other in pairs if own is not None and other is not None]
    if cell is base or not apart:
        return (0.0 if cell is base else math.nan), math.nan, math.nan
    return (statistics.fmean(apart), *interval(apart, None))


def _seed(run: Run) -> int | None:
    """A run's own seed; None if it has none that another run can share."""
    seed = run.setting("seed_everything")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


_COLUMNS = (
    *("data set", "setting", "validation", "test", "95 % interval", "gain", "its 95 % interval", "verdict", "seeds"),
    *("firing [%]", "spikes", "energy [uJ]", "training [ms]"),
)

_EMPTY = (
    "It needs runs of protocol B (data.validation holdout) that share data, T and epochs, among them one with the "
    "paper's neuron, loss and pooling: `sweep leaderboard` makes them."
)


def leaderboard_table(runs: Sequence[Run]) -> Table:
    """All leaderboards as one table."""
    groups = _groups(runs)
    found = _standings(groups)
    rows = [_row(standing) for rows in found for standing in rows]
    if not rows:
        return Table("leaderboard", "Leaderboard", list(_COLUMNS), [], [_EMPTY, *_left_out(groups, found)])
    note = (
        "Accuracy B [%], means over seeds, ranked by validation accuracy. A row changes in the paper's setting what it "
        "names. Gain: test accuracy beside the paper's setting over the same seeds, with Student's 95 % interval of "
        "the differences (none for fewer than two different ones), which covers the seed, not the choice of test "
        "samples; better or worse where it leaves out 0, which one in twenty settings without any effect does by "
        "chance. Spikes and firing: for a sample, of all layers, in the "
        "best epoch. Energy: a sample, 8 bits, memory included, weights reused (see `cost`). Training: milliseconds "
        "for a sample, median of the epochs, while the machine did what it did."
    )
    return Table("leaderboard", "Leaderboard", list(_COLUMNS), rows, [note, *_left_out(groups, found)])


def gains_table(runs: Sequence[Run]) -> Table:
    """The gain of each setting on every data set that has a leaderboard, in the order of their names.

    An order by gain would invite a choice on the test set.
    """
    found = standings(runs)
    rows: dict[str, dict[int, Standing]] = defaultdict(dict)
    for i, board in enumerate(found):
        for row in board:
            rows[row.change][i] = row
    changes = sorted(rows)  # the paper's changes nothing, and is first
    cells = [[change or _PAPER, *(_gain_cell(rows[change].get(i)) for i in range(len(found)))] for change in changes]
    heads = [
        "setting",
        *(f"{board[0].data}, {board[0].cell.epochs} epochs, {seeds_in_words(board)}" for board in found),
    ]
    note = (
        "Test accuracy B of the paper's setting [%], and what other settings gain [points], with the 95 % interval of "
        "paired differences over seeds, on one test set; bold: it leaves out 0."
    )
    return Table("gains", "Gains on all data sets", heads, cells, [note])


def seeds_in_words(rows: Sequence[Standing]) -> str:
    """Return from how many to how many seeds the rows have: `3 to 5 seeds`."""
    seeds = [len(row.cell.runs) for row in rows]
    return f"{numbers_in_words(seeds)} seed{'s' if max(seeds) > 1 else ''}"


def _gain_cell(row: Standing | None) -> str:
    if row is None:
        return ""
    if row.is_paper:
        return f"{row.cell.accuracy:.2f}"
    if math.isnan(row.gain):
        return ""
    text = f"{row.gain:+z.2f}" + ("" if math.isnan(row.low) else f" [{row.low:+z.2f}, {row.high:+z.2f}]")
    return f"**{text}**" if row.verdict else text


def _left_out(groups: Sequence[Sequence[Cell]], found: Sequence[Sequence[Standing]]) -> list[str]:
    """Name the runs that have no run of the paper's setting to be compared with.

    A setting that shares its setup with no other is named only if its data set has a leaderboard.
    """
    names = {row.data for rows in found for row in rows}
    shown = {id(row.cell) for rows in found for row in rows}
    others = [
        cell
        for group in groups
        for cell in group
        if id(cell) not in shown and (len(group) > 1 or data_title(cell.runs[0]) in names)
    ]
    if not others:
        return []
    why = "no run of the paper's setting has their samples, epochs, Trainer and changes on resuming"
    return [f"Not shown, because {why}: {', '.join(run.name for cell in others for run in cell.runs)}."]


def _row(one: Standing) -> list[str]:
    def number(value: float, digits: int) -> str:
        return "" if math.isnan(value) else f"{value:,.{digits}f}"

    def ends(low: float, high: float, sign: str = "") -> str:
        return "" if math.isnan(low) else f"[{low:{sign}z.2f}, {high:{sign}z.2f}]"

    several = len(one.cell.runs) > 1
    return [
        one.data,
        one.name,
        number(one.validation, 2),
        number(one.cell.accuracy, 2),
        ends(one.cell.low, one.cell.high) if several else "",
        "" if one.is_paper or math.isnan(one.gain) else f"{one.gain:+z.2f}",
        ends(one.low, one.high, "+"),
        one.verdict,
        str(len(one.cell.runs)),
        number(100 * one.mean("firing_rate"), 1),
        number(one.mean("spikes"), 0),
        number(one.mean("energy"), 2),
        number(_milliseconds(one.cell.runs), 2),
    ]


def _milliseconds(runs: Sequence[Run]) -> float:
    """Median time of an epoch for a training sample [ms]."""
    speeds = [speed for run in runs for speed in run.curve("train/samples_per_second")[1] if speed > 0]
    return 1000 / statistics.median(speeds) if speeds else math.nan
