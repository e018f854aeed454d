"""Gain of each setting: runs of protocol B beside runs with the paper's setting, over the same seeds."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from plif_lightning.analysis import words
from plif_lightning.analysis.select import (
    Group,
    data_title,
    distinguishing,
    groups,
    interval,
    names_of,
    neuron_names,
    paper_identity,
    without_replaced,
)
from plif_lightning.analysis.tables import Table
from plif_lightning.runs.code import PACKAGE
from plif_lightning.runs.identity import CODE, Difference
from plif_lightning.runs.metrics import layer_values
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import Role, class_name, is_of, role
from plif_lightning.structure.layers import FC, Conv, Neurons, Pool, Votes

# Name of the setting that changes nothing.
_PAPER = "the paper's"
_BASELINE = "baseline"  # in the place of its gain
# Blocks and settings that rows of a table may differ in.
COMPARED = ("model", "data.probe")
# Settings, by dotted names, of the runs that gains are beside.
Baseline = Mapping[str, Any]


@dataclass(frozen=True)
class Standing:
    """A setting on the leaderboard of a data set.

    Attributes:
        data: name of the data set, epochs, and what tells this leaderboard from others of the data set.
        change: its difference from the paper's setting, in words; empty for that setting itself.
        cell: its runs, accuracy on the test set and interval.
        validation: mean validation accuracy of the best epochs [%], by which rows are ranked.
        gain: of the test accuracy beside the paper's setting; its interval is NaN for fewer than two seeds.
        is_baseline: it is the setting that gains are beside.
        baseline: name of the setting that gains are beside.
    """

    data: str
    change: str
    cell: Group
    validation: float
    gain: "Gain"
    is_baseline: bool = False
    baseline: str = _PAPER

    @property
    def name(self) -> str:
        return self.change or self.baseline

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval of the difference does not contain 0, otherwise empty."""
        return "better" if self.gain.low > 0 else "worse" if self.gain.high < 0 else ""

    def mean(self, attribute: str) -> float:
        """Mean over the runs of a property of `Run`, such as `spikes`; NaN if a run does not know it."""
        values = [getattr(run, attribute) for run in self.cell.runs]
        return math.nan if None in values else statistics.fmean(values)


def standings(runs: Sequence[Run], baseline: Baseline | None = None) -> list[list[Standing]]:
    """Leaderboards: settings that share data, epochs and all else but `model`, best validation accuracy first.

    Runs belong together with a run of the paper's setting (neuron, loss, pooling and all else that base.yaml fixes,
    except dropout, optimiser and schedule). If there are more, the setting from which the others differ least is
    the baseline. Settings without a baseline have no leaderboard. `baseline`: settings of the runs that take the place
    of the paper's.
    """
    boards = [_leaderboard(group, baseline) for group in _setups(runs) if len(group) > 1]
    by_title: dict[str, list[list[Standing]]] = defaultdict(list)
    for rows in sorted(filter(None, boards), key=lambda rows: rows[0].data):
        by_title[rows[0].data].append(rows)
    return [named for title, boards in by_title.items() for named in _named(title, boards)]


def _named(title: str, boards: Sequence[list[Standing]]) -> list[list[Standing]]:
    """The leaderboards of a data set, named by it, their epochs and what tells them apart."""
    cells = [rows[0].cell for rows in boards]
    first_runs = [cell.runs[0] for cell in cells]
    steps = [f"T = {run.setting('data.time_steps')}" for run in first_runs]
    settings = [
        [words.difference(setting) for setting in settings if not is_of(setting.name, *COMPARED, CODE)]
        for settings in distinguishing(first_runs)
    ]
    named = []
    for rows, cell, of_steps, of_settings in zip(boards, cells, steps, settings, strict=True):
        before = [title, of_steps] if len({*steps}) > 1 else [title]
        behind = of_settings if len(boards) > 1 else []
        name = ", ".join([*before, f"{words.numbers(cell.epochs)} epochs", *behind])
        named.append([replace(row, data=name) for row in rows])
    return named


def comparison_table(runs: Sequence[Run], baseline: Baseline | None = None) -> Table:
    """Every setting: the mean over its seeds, and its gain beside the baseline of the same data.

    The baseline has the settings of `baseline`, by default the paper's; otherwise it is the setting from which others
    differ least.
    """
    setups = sorted(_setups(runs, "AB"), key=lambda of: (data_title(of[0].runs[0]), -max(o.accuracy for o in of)))
    each, shared = words.labels_of([cell for setup in setups for cell in setup])
    rows, cells, labels = [], list[Group](), iter(each)
    for setup in setups:
        labelled = [(cell, next(labels)) for cell in setup]
        cells += sorted(setup, key=lambda cell: -cell.accuracy)
        rows += _comparison_rows(labelled, baseline)
    gain_head = "gain" if baseline is None else f"gain beside {name_of_baseline(baseline)}"
    columns = ["data set", "setting", "protocol", "T", "epochs", "accuracy [%]", "95 % interval", gain_head, "seeds"]
    note = (
        "Accuracy on the test set: of the best epoch there (A), or of the epoch chosen on a held-out part (B). Means "
        "over seeds, with Student's 95 % interval, or Wilson's of one run and of seeds that all reached the same. "
        "Gain: beside the baseline, over the seeds that both have, with the interval of the differences; empty where "
        "no run of the baseline's settings shares a seed, data, epochs and all settings outside of --model. Runs of "
        "each row: `tables --show_runs`."
    )
    notes = [*shared, note, *words.left_out(runs)] if rows else words.left_out(runs)
    if baseline is not None and not any(_candidates([cell.runs[0] for cell in setup], baseline) for setup in setups):
        notes.append(f"No gains: no run has {name_of_baseline(baseline)}.")
    if any(row[-1] for row in rows):
        notes.append("Silent: layers that never fire in the best epoch, and in how many runs.")
    notes += words.notes_on_groups(cells)
    return Table("runs", "Settings", [*columns, "silent"], rows, notes, [*map(names_of, cells)])


def _comparison_rows(setup: Sequence[tuple[Group, str]], baseline: Baseline | None) -> list[list[str]]:
    """Rows of `comparison_table`, best first, for settings that share data, epochs and all else but `model`."""
    first_runs = [cell.runs[0] for cell, _ in setup]
    plain = [i for i, run in enumerate(first_runs) if "data.probe" not in run.settings]
    among = _candidates(first_runs, baseline) or ([] if baseline else plain)
    base = setup[_base(first_runs, among)][0] if among else None
    rows = []
    for cell, label in sorted(setup, key=lambda of: -of[0].accuracy):
        run = cell.runs[0]
        gain = _NO_GAIN if base is None else _gain(cell, base)
        silent = Counter(layer for of in cell.runs for layer in _silent_layers(of))
        rows.append(
            [
                *(data_title(run), label, *words.protocol_and_length(cell)),
                *(f"{cell.accuracy:.2f}", words.interval(cell.low, cell.high)),
                words.gain(*gain) if cell is not base else _BASELINE if len(setup) > 1 else "",
                str(len(cell.runs)),
                "; ".join(f"{layer} ({n} of {len(cell.runs)})" for layer, n in silent.items()),
            ]
        )
    return rows


def _silent_layers(run: Run) -> list[str]:
    """Layers that do not fire at all in the best epoch."""
    return [layer for layer, rate in layer_values(run.best_metrics, "rate").items() if rate == 0]


def _setups(runs: Sequence[Run], protocols: str = "B") -> list[list[Group]]:
    """Settings that share data, epochs and all else but `model` and a probe."""
    by_setup: dict[str, list[Group]] = defaultdict(list)
    for group in groups([run for run in runs if run.protocol in protocols]):
        run = group.runs[0]
        beside_model = {name: value for name, value in run.settings.items() if not is_of(name, *COMPARED)}
        content = run.record.data.identity
        by_setup[repr([data_title(run), sorted(beside_model.items()), run.identity.changes, content])].append(group)
    return [*by_setup.values()]


def _is_paper(run: Run) -> bool:
    """True for the paper's neurons, loss, BN and pools, without any other setting but of training and size."""
    for name, *_ in run.identity.compared_with(paper_identity()):
        if is_of(name, *COMPARED) and not role(name) & Role.EFFORT:
            return False
    if run.structure is None:
        return False
    layers = run.structure.layers
    weighted = [layer for layer in layers if isinstance(layer, (Conv, FC))]
    is_plain = all(layer.neurons == Neurons("PLIF") and layer.norm == isinstance(layer, Conv) for layer in weighted)
    return is_plain and all(isinstance(layer, (Conv, FC, Pool, Votes)) for layer in layers)


def _changed_settings(base: Run, run: Run) -> list[Difference]:
    """Settings in which two networks differ."""
    here, there = ({one.fact: one for one in of.identity.beyond_defaults} for of in (run, base))
    none = Difference("", None, None)
    found = [
        Difference(fact[0], there.get(fact, none).now, here[fact].now if fact in here else run.value(fact[0]), fact[1])
        for fact in dict.fromkeys((*here, *there))
        if here.get(fact, none).now != there.get(fact, none).now and is_of(fact[0], *COMPARED, CODE)
    ]
    return without_replaced(found, run.settings)


def _candidates(first_runs: Sequence[Run], baseline: Baseline | None) -> list[int]:
    """Indices of possible baselines: runs with the settings of `baseline`, or the paper's; without a probe."""
    if baseline is None:
        return [i for i, run in enumerate(first_runs) if _is_paper(run)]
    wanted = {"data.probe": None, **baseline}

    def has(run: Run, name: str, value: Any) -> bool:
        if name != "model.neuron":
            return bool(run.value(name) == value)
        # A structure's own neurons count, and a class by any of its names.
        return [kind.lower() for kind in neuron_names(run)] == [class_name(str(value)).lower()]

    return [i for i, run in enumerate(first_runs) if all(has(run, *of) for of in wanted.items())]


def _with_setting(baseline: Baseline | None) -> str:
    return "the paper's setting" if baseline is None else f"the setting with {name_of_baseline(baseline)}"


def name_of_baseline(baseline: Baseline | None) -> str:
    """`neuron lif`, or the paper's."""
    return (
        _PAPER
        if baseline is None
        else ", ".join(words.difference(Difference(name, None, value)) for name, value in baseline.items())
    )


def _leaderboard(group: Sequence[Group], baseline: Baseline | None) -> list[Standing]:
    first_runs = [cell.runs[0] for cell in group]
    among = _candidates(first_runs, baseline)
    if not among:
        return []
    chosen = _base(first_runs, among)
    beyond_defaults = first_runs[chosen].identity.beyond_defaults
    code = [words.difference(setting) for setting in beyond_defaults if setting.name == CODE]
    name = ", ".join([name_of_baseline(baseline), *code])
    changes = [_changed_settings(first_runs[chosen], run) for run in first_runs]
    labels = [
        ", ".join(_change(one, run, first_runs[chosen]) for one in found)
        for run, found in zip(first_runs, changes, strict=True)
    ]
    alike, rows = Counter(labels), []
    for i, cell in enumerate(group):
        if alike[labels[i]] > 1:  # classes of equal name, or numbers that differ after six digits
            labels[i] = ", ".join(f"{one.name} {one.now!r}" for one in changes[i])
        validation = 100 * statistics.fmean(run.best[1] if run.best else math.nan for run in cell.runs)
        gain = _gain(cell, group[chosen])
        rows.append(Standing(data_title(first_runs[i]), labels[i], cell, validation, gain, i == chosen, name))
    # NaN, an unknown validation accuracy, comes last: sorting by NaN itself would give an arbitrary order.
    return sorted(rows, key=lambda row: (math.isnan(row.validation), -row.validation, row.change))


def _base(first_runs: Sequence[Run], among: Sequence[int]) -> int:
    """Index of the run from which all others differ least, of equal ones that with the fewest settings; one of edited
    code only where there is no other."""

    def distance(i: int) -> tuple[bool, int, int, str]:
        run = first_runs[i]
        changed = sum(len(_changed_settings(run, other)) for other in first_runs)
        return PACKAGE in run.identity.code, changed, len(run.settings), run.key

    return min(among, key=distance)


def _change(change: Difference, run: Run, base: Run) -> str:
    """A setting in words; of a structure, only its end from where it differs."""
    if change.name != "model.structure":
        return words.difference(change)
    layers, base_layers = (str(of_run.structure or "").split("-") for of_run in (run, base))
    same = next((i for i, (a, b) in enumerate(zip(layers, base_layers, strict=False)) if a != b), 0)
    return f"structure {'...-' if same else ''}{'-'.join(layers[same:])}"


class Gain(NamedTuple):
    """Mean difference of accuracy [points] over the seeds that both have, and its 95 % interval.

    Attributes:
        seeds: their number.
        of_seeds: the seeds of the side that has more.
    """

    mean: float
    low: float
    high: float
    seeds: int
    of_seeds: int


_NO_INTERVAL = (math.nan, math.nan)
_NO_GAIN = Gain(math.nan, *_NO_INTERVAL, 0, 0)


def _gain(cell: Group, base: Group) -> Gain:
    """The gain of a setting beside another."""
    of_seed = {run.seed_or_name: run.accuracy for run in base.runs}
    pairs = [(run.accuracy, of_seed.get(run.seed_or_name)) for run in cell.runs]
    differences = [
        100 * (share - base_share) for share, base_share in pairs if share is not None and base_share is not None
    ]
    if cell is base or not differences:
        return Gain(0.0, *_NO_INTERVAL, len(cell.runs), len(cell.runs)) if cell is base else _NO_GAIN
    # Equal differences of accuracies in float32 differ in their last digits, and would have an interval.
    ends = interval(differences, None) if max(differences) - min(differences) > 1e-4 else _NO_INTERVAL
    return Gain(statistics.fmean(differences), *ends, len(differences), max(len(cell.runs), len(base.runs)))


_COLUMNS = (
    *("data set", "setting", "validation", "test", "95 % interval", "gain", "its 95 % interval", "verdict", "seeds"),
    *("firing [%]", "spikes", "energy [uJ]", "training [ms]"),
)

_EMPTY = (
    "It needs runs of protocol B (data.validation holdout) that share data, T and epochs, among them one with the "
    "paper's neuron, loss and pooling: `sweep leaderboard` makes them."
)


def leaderboard_table(runs: Sequence[Run], baseline: Baseline | None = None) -> Table:
    """All leaderboards in a table."""
    boards = standings(runs, baseline)
    rows = [_row(standing) for rows in boards for standing in rows]
    if not rows:
        return Table("leaderboard", "Leaderboard", list(_COLUMNS), [], [_EMPTY])
    note = (
        "Accuracy B [%], means over seeds, ranked by validation accuracy. A row changes in "
        f"{_with_setting(baseline)} what it names. 95 % interval: Student's over seeds; Wilson's over the test samples "
        "where all seeds reached the same. Gain: test accuracy beside that over the same seeds, with Student's "
        "95 % interval of the differences (none for fewer than two different ones), which covers the seed, not the "
        "choice of test samples; better or worse where it leaves out 0, which one in twenty settings without any "
        "effect does by chance. Spikes and firing: for a sample, of all layers, in the best epoch. Energy: a sample, "
        "8 bits, memory included, weights reused (see `cost`). Training: milliseconds for a sample, median of the "
        "epochs: wall time, machine not idle."
    )
    cells = [standing.cell for board in boards for standing in board]
    notes = [note, *_left_out(runs, cells, baseline), *words.notes_on_groups(cells)]
    return Table("leaderboard", "Leaderboard", list(_COLUMNS), rows, notes, [*map(names_of, cells)])


def _left_out(runs: Sequence[Run], cells: Sequence[Group], baseline: Baseline | None) -> list[str]:
    """Name the runs of protocol B that no leaderboard has, and why."""
    placed = {id(run) for cell in cells for run in cell.runs}
    rest = [cell for setup in _setups(runs) for cell in setup if id(cell.runs[0]) not in placed]
    notes = words.left_out([run for run in runs if run.protocol == "B"])
    bases, names_by_reason = _candidates([cell.runs[0] for cell in rest], baseline), defaultdict[str, list[str]](list)
    for i, (cell, label) in enumerate(zip(rest, words.labels_of([*rest, *cells])[0], strict=False)):
        missing = "another setting" if i in bases else _with_setting(baseline)
        names_by_reason[missing].append(f"{', '.join(names_of(cell))} ({label}, {words.numbers(cell.epochs)} epochs)")
    shared = "shares data, T, epochs and all settings outside of --model with them"
    notes += [
        f"Left out, because no run with {of} {shared}: {'; '.join(names)}." for of, names in names_by_reason.items()
    ]
    return notes


def gains_table(runs: Sequence[Run], baseline: Baseline | None = None) -> Table:
    """The gain of each setting on every data set that has a leaderboard, in the order of their names.

    An order by gain would invite a choice on the test set.
    """
    boards, name = standings(runs, baseline), name_of_baseline(baseline)
    rows: dict[str, dict[int, Standing]] = defaultdict(dict)
    for i, board in enumerate(boards):
        for row in board:
            rows[row.change][i] = row
    changes = sorted(rows)  # the paper's changes nothing, and is first
    cells = [[change or name, *(_gain_cell(rows[change].get(i)) for i in range(len(boards)))] for change in changes]
    averaged = [[name for row in rows[change].values() for name in names_of(row.cell)] for change in changes]
    heads = ["setting", *(f"{board[0].data}, {number_of_seeds(board)}" for board in boards)]
    note = (
        f"Test accuracy B of {_with_setting(baseline)} [%], and what other settings gain [points], with the 95 % "
        "interval of paired differences over seeds, on one test set; bold: it leaves out 0."
    )
    return Table("gains", "Gains on all data sets", heads, cells, [note], averaged)


def number_of_seeds(rows: Sequence[Standing]) -> str:
    """Return from how many to how many seeds the rows have: `3 to 5 seeds`."""
    seeds = [len(row.cell.runs) for row in rows]
    return f"{words.numbers(seeds)} seed{'s' if max(seeds) > 1 else ''}"


def _gain_cell(row: Standing | None) -> str:
    if row is None:
        return ""
    if row.is_baseline:
        return f"{row.cell.accuracy:.2f}"
    text = words.gain(*row.gain)
    return f"**{text}**" if row.verdict else text


def _row(standing: Standing) -> list[str]:
    def number(value: float, digits: int) -> str:
        return "" if math.isnan(value) else f"{value:,.{digits}f}"

    gain, seeds = standing.gain, len(standing.cell.runs)
    return [
        standing.data,
        standing.name,
        number(standing.validation, 2),
        number(standing.cell.accuracy, 2),
        words.interval(standing.cell.low, standing.cell.high) if seeds > 1 else "",
        _BASELINE if standing.is_baseline else words.gain(*gain._replace(low=math.nan)),
        words.interval(gain.low, gain.high, "+"),
        standing.verdict,
        str(seeds),
        number(100 * standing.mean("firing_rate"), 1),
        number(standing.mean("spikes"), 0),
        number(standing.mean("energy"), 2),
        number(_milliseconds(standing.cell.runs), 2),
    ]


def _milliseconds(runs: Sequence[Run]) -> float:
    """Median time of an epoch for a training sample [ms]."""
    speeds = [speed for run in runs for speed in run.curve("train/samples_per_second")[1] if speed > 0]
    return 1000 / statistics.median(speeds) if speeds else math.nan
