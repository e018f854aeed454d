"""What a setting gains: runs of protocol B beside runs with the paper's setting, over the same seeds."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plif_lightning.analysis.grouping import (
    NUMBERS,
    Group,
    data_title,
    groups,
    in_words,
    interval,
    labels_of,
    names_of,
    numbers_in_words,
    paper_settings,
    surroundings_in_words,
    value_of,
)
from plif_lightning.analysis.tables import Table
from plif_lightning.runs.metrics import layer_values
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import Role, differences, role
from plif_lightning.structure.layers import FC, Conv, Neurons, Pool, Votes

# Name of the setting that changes nothing.
_PAPER = "the paper's"
_BASELINE = "baseline"  # in the place of its gain
# Settings, by dotted names, of the runs that gains are beside.
Baseline = Mapping[str, Any]


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
        baseline: name of the setting that gains are beside.
    """

    data: str
    change: str
    cell: Group
    validation: float
    gain: float
    low: float
    high: float
    baseline: str = _PAPER

    @property
    def is_baseline(self) -> bool:
        return not self.change

    @property
    def name(self) -> str:
        return self.change or self.baseline

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval of the difference does not contain 0, otherwise empty."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else ""

    def mean(self, what: str) -> float:
        """Mean over the runs of a property of `Run`, such as `spikes`; NaN if a run does not know it."""
        values = [getattr(run, what) for run in self.cell.runs]
        return math.nan if None in values else statistics.fmean(values)


def standings(runs: Sequence[Run], baseline: Baseline | None = None) -> list[list[Standing]]:
    """Leaderboards: settings that share data, epochs and all else but `model`, best validation accuracy first.

    Runs belong together with a run of the paper's setting (neuron, loss, pooling and all else that base.yaml fixes,
    except dropout, optimiser and schedule). Of several such settings, the one from which the others differ least is
    the one compared with. Settings without one have no leaderboard. `baseline`: settings of those that take the place
    of the paper's.
    """
    found = [_leaderboard(group, baseline) for group in _setups(runs) if len(group) > 1]
    return sorted(filter(None, found), key=lambda rows: rows[0].data)


def comparison_table(runs: Sequence[Run], baseline: Baseline | None = None) -> Table:
    """Every setting: the mean over its seeds, and its gain beside another one of the same data.

    That is the one with the settings of `baseline`, by default the paper's, or else the one from which the others
    differ least.
    """
    setups = sorted(_setups(runs, "AB"), key=lambda of: (data_title(of[0].runs[0]), -max(o.accuracy for o in of)))
    each, shared = labels_of([one for setup in setups for one in setup])
    rows, shown, words = [], list[Group](), iter(each)
    for setup in setups:
        labelled = [(one, next(words)) for one in setup]
        shown += sorted(setup, key=lambda one: -one.accuracy)
        rows += _compared(labelled, baseline)
    gain_head = "gain" if baseline is None else f"gain beside {baseline_in_words(baseline)}"
    columns = ["data set", "setting", "protocol", "T", "epochs", "accuracy [%]", "95 % interval", gain_head, "seeds"]
    note = (
        "Accuracy on the test set: of the best epoch there (A), or of the epoch chosen on a held-out part (B). Means "
        "over seeds, with Student's 95 % interval, or Wilson's of one run. Gain: beside the baseline, over "
        "the seeds of both, with the interval of the differences."
    )
    notes = [*shared, note]
    if any(row[-1] for row in rows):
        notes.append("Silent: layers that never fire in the best epoch, and in how many runs.")
    notes += surroundings_in_words(shown)
    return Table("runs", "Settings", [*columns, "silent"], rows, notes if rows else [], [*map(names_of, shown)])


def _compared(setup: Sequence[tuple[Group, str]], baseline: Baseline | None) -> list[list[str]]:
    """Rows of `comparison_table`, best first, for settings that share data, epochs and all else but `model`."""
    firsts = [one.runs[0] for one, _ in setup]
    among = _candidates(firsts, baseline) or ([] if baseline else [*range(len(firsts))])
    base = setup[_base(firsts, among)][0] if among else None
    rows = []
    for one, label in sorted(setup, key=lambda of: -of[0].accuracy):
        run = one.runs[0]
        gain = (math.nan,) * 3 if base is None else _gain(one, base)
        silent = Counter(layer for of in one.runs for layer in _silent(of))
        rows.append(
            [
                *(data_title(run), label, one.protocol, str(run.setting("data.time_steps", "")), one.epochs),
                *(f"{one.accuracy:.2f}", _ends(one.low, one.high).strip()),
                _gain_in_words(*gain) if one is not base else _BASELINE if len(setup) > 1 else "",
                str(len(one.runs)),
                "; ".join(f"{layer} ({n} of {len(one.runs)})" for layer, n in silent.items()),
            ]
        )
    return rows


def _gain_in_words(gain: float, low: float, high: float) -> str:
    return "" if math.isnan(gain) else f"{gain:+z.2f}{_ends(low, high, '+')}"


def _silent(run: Run) -> list[str]:
    """Layers that do not fire at all in the best epoch."""
    return [layer for layer, rate in layer_values(run.best_metrics, "rate").items() if rate == 0]


def _ends(low: float, high: float, sign: str = "") -> str:
    return "" if math.isnan(low) else f" [{low:{sign}z.2f}, {high:{sign}z.2f}]"


def _setups(runs: Sequence[Run], protocols: str = "B") -> list[list[Group]]:
    """Settings that share data, epochs and all else but `model`."""
    found: dict[str, list[Group]] = defaultdict(list)
    for group in groups([run for run in runs if run.protocol in protocols]):
        run = group.runs[0]
        others = {name: value for name, value in run.settings.items() if not name.startswith("model.")}
        content = [run.part("data").get(name) for name in ("content", "test_content")]
        found[repr([data_title(run), sorted(others.items()), run.changes, content])].append(group)
    return [*found.values()]


def _is_paper(run: Run) -> bool:
    """True for the paper's neurons, loss, BN and pools, without any other setting but of training and size."""
    for name in differences(run.settings, paper_settings()):
        if name.startswith("model.") and not role(name) & Role.EFFORT:
            return False
    if run.structure is None:
        return False
    layers = run.structure.layers
    weighted = [layer for layer in layers if isinstance(layer, (Conv, FC))]
    usual = all(layer.neurons == Neurons("PLIF") and getattr(layer, "norm", True) for layer in weighted)
    return usual and all(isinstance(layer, (Conv, FC, Pool, Votes)) for layer in layers)


def _changed(base: Run, run: Run) -> list[str]:
    """Settings in which two networks differ; a structure stands for the numbers it replaces, a class for its name."""
    found = [n for n in differences(run.distinctions, base.distinctions) if n.startswith("model.") or n == "code"]
    if "model.structure" in found:
        found = [name for name in found if name not in NUMBERS]
    return [name for name in found if name in run.settings or name.rpartition(".")[0] not in found]


def _candidates(firsts: Sequence[Run], baseline: Baseline | None) -> list[int]:
    """Those of some runs that others may be compared with: with the settings of `baseline`, or the paper's."""
    if baseline is None:
        return [i for i, run in enumerate(firsts) if _is_paper(run)]
    return [i for i, run in enumerate(firsts) if all(value_of(run, name) == v for name, v in baseline.items())]


def _with_setting(baseline: Baseline | None) -> str:
    return "the paper's setting" if baseline is None else f"the setting with {baseline_in_words(baseline)}"


def baseline_in_words(baseline: Baseline | None) -> str:
    """`neuron lif`, or the paper's."""
    return _PAPER if baseline is None else ", ".join(in_words(name, value) for name, value in baseline.items())


def _leaderboard(group: Sequence[Group], baseline: Baseline | None) -> list[Standing]:
    firsts = [one.runs[0] for one in group]
    among = _candidates(firsts, baseline)
    if not among:
        return []
    chosen, name = _base(firsts, among), baseline_in_words(baseline)
    changes = [_changed(firsts[chosen], run) for run in firsts]
    words = [
        ", ".join(_in_words(name, run, firsts[chosen]) for name in names)
        for run, names in zip(firsts, changes, strict=True)
    ]
    alike, found = Counter(words), []
    for i, one in enumerate(group):
        if alike[words[i]] > 1:  # classes of one name, or numbers that differ after six digits
            words[i] = ", ".join(f"{name} {value_of(firsts[i], name)!r}" for name in changes[i])
        validation = 100 * statistics.fmean(run.best[1] if run.best else math.nan for run in one.runs)
        gain = _gain(one, group[chosen])
        found.append(Standing(data_title(firsts[i]), words[i], one, validation, *gain, baseline=name))
    # NaN, an unknown validation accuracy, comes last: sorting by NaN itself would give an arbitrary order.
    return sorted(found, key=lambda row: (math.isnan(row.validation), -row.validation, row.change))


def _base(firsts: Sequence[Run], among: Sequence[int]) -> int:
    """The one of some runs from which all of them differ least."""
    return min(among, key=lambda i: sum(len(_changed(firsts[i], run)) for run in firsts))


def _in_words(name: str, run: Run, base: Run) -> str:
    """A setting in words; of a structure, only its end from where it differs."""
    if name != "model.structure":
        return in_words(name, value_of(run, name))
    own, other = (str(one.structure or "").split("-") for one in (run, base))
    same = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), 0)
    return f"structure {'...-' if same else ''}{'-'.join(own[same:])}"


def _gain(cell: Group, base: Group) -> tuple[float, float, float]:
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


def leaderboard_table(runs: Sequence[Run], baseline: Baseline | None = None) -> Table:
    """All leaderboards as one table."""
    found = standings(runs, baseline)
    rows = [_row(standing) for rows in found for standing in rows]
    if not rows:
        return Table("leaderboard", "Leaderboard", list(_COLUMNS), [], [_EMPTY])
    note = (
        "Accuracy B [%], means over seeds, ranked by validation accuracy. A row changes in "
        f"{_with_setting(baseline)} what it names. Gain: test accuracy beside that over the same seeds, with Student's "
        "95 % interval of the differences (none for fewer than two different ones), which covers the seed, not the "
        "choice of test samples; better or worse where it leaves out 0, which one in twenty settings without any "
        "effect does by chance. Spikes and firing: for a sample, of all layers, in the best epoch. Energy: a sample, "
        "8 bits, memory included, weights reused (see `cost`). Training: milliseconds for a sample, median of the "
        "epochs, while the machine did what it did."
    )
    shown = [standing.cell for board in found for standing in board]
    notes = [note, *surroundings_in_words(shown)]
    return Table("leaderboard", "Leaderboard", list(_COLUMNS), rows, notes, [*map(names_of, shown)])


def gains_table(runs: Sequence[Run], baseline: Baseline | None = None) -> Table:
    """The gain of each setting on every data set that has a leaderboard, in the order of their names.

    An order by gain would invite a choice on the test set.
    """
    found, name = standings(runs, baseline), baseline_in_words(baseline)
    rows: dict[str, dict[int, Standing]] = defaultdict(dict)
    for i, board in enumerate(found):
        for row in board:
            rows[row.change][i] = row
    changes = sorted(rows)  # the paper's changes nothing, and is first
    cells = [[change or name, *(_gain_cell(rows[change].get(i)) for i in range(len(found)))] for change in changes]
    heads = [
        "setting",
        *(f"{board[0].data}, {board[0].cell.epochs} epochs, {seeds_in_words(board)}" for board in found),
    ]
    note = (
        f"Test accuracy B of {_with_setting(baseline)} [%], and what other settings gain [points], with the 95 % "
        "interval of paired differences over seeds, on one test set; bold: it leaves out 0."
    )
    return Table("gains", "Gains on all data sets", heads, cells, [note])


def seeds_in_words(rows: Sequence[Standing]) -> str:
    """Return from how many to how many seeds the rows have: `3 to 5 seeds`."""
    seeds = [len(row.cell.runs) for row in rows]
    return f"{numbers_in_words(seeds)} seed{'s' if max(seeds) > 1 else ''}"


def _gain_cell(row: Standing | None) -> str:
    if row is None:
        return ""
    if row.is_baseline:
        return f"{row.cell.accuracy:.2f}"
    text = _gain_in_words(row.gain, row.low, row.high)
    return f"**{text}**" if row.verdict else text


def _row(one: Standing) -> list[str]:
    def number(value: float, digits: int) -> str:
        return "" if math.isnan(value) else f"{value:,.{digits}f}"

    several = len(one.cell.runs) > 1
    return [
        one.data,
        one.name,
        number(one.validation, 2),
        number(one.cell.accuracy, 2),
        _ends(one.cell.low, one.cell.high).strip() if several else "",
        _BASELINE if one.is_baseline else "" if math.isnan(one.gain) else f"{one.gain:+z.2f}",
        _ends(one.low, one.high, "+").strip(),
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
