"""The table of measured runs: means over seeds, beside the paper's accuracies, with configuration and changes."""

import math
from collections.abc import Sequence
from statistics import fmean

from plif_lightning.analysis import paper, words
from plif_lightning.analysis.select import Group, data_title, groups, interval, is_limited
from plif_lightning.analysis.tables import Table
from plif_lightning.runs.command import recorded_arguments
from plif_lightning.runs.metrics import layer_values
from plif_lightning.runs.run import Run

_COLUMNS = ["data set", "paper A, B", "configuration", "epochs", "protocol", "accuracy [%]", "tau", "minutes"]


def measured_table(runs: Sequence[Run]) -> Table:
    """Means over the seeds of each setting, in the order of the runs."""
    averaged = groups(runs)
    notes = ["\u00b1: one standard error of one run, over the tested samples; [ ]: Student's 95 % interval over seeds."]
    names = [[run.name for run in group.runs] for group in averaged]
    return Table("", "Measured", _COLUMNS, [_row(group) for group in averaged], notes, names)


def _row(group: Group) -> list[str]:
    first, data_set = group.runs[0], group.setting.data_set
    # Accuracies on a part of the data cannot be compared with the paper's.
    is_subset = data_set in paper.TITLES and not group.has_all_samples
    of_paper = "" if is_subset or data_set not in paper.TITLES else _of_paper(data_set)
    minutes = [run.metrics[-1]["seconds"] / 60 for run in group.runs if "seconds" in run.metrics[-1]]
    return [
        f"{data_title(first)} ({words.source(first)})" if is_subset else data_title(first),
        of_paper,
        ", ".join(filter(None, (_configuration(first), overrides(first)))),
        words.numbers(group.epochs),
        group.protocol,
        _accuracy(group),
        _taus(group.runs),
        f"{fmean(minutes):.{0 if fmean(minutes) >= 10 else 1}f}" if minutes else "",
    ]


def _of_paper(data_set: str) -> str:
    return f"{paper.TABLE_2[data_set]:.2f}, {paper.TABLE_S2[data_set]:.2f}"


def _accuracy(group: Group) -> str:
    """Mean accuracy [%] over seeds with its interval, or a single accuracy with its standard error."""
    shares = [run.accuracy for run in group.runs if run.accuracy is not None]
    accuracy = f"{100 * fmean(shares):.2f}"
    if len(shares) > 1:
        low, high = interval(shares, None)  # none if all seeds reached the same
        of_mean = words.interval(100 * max(low, 0.0), 100 * min(high, 1.0)) if not math.isnan(low) else ""
        return f"{accuracy}{f' {of_mean}' if of_mean else ''}, {len(shares)} seeds"
    error = standard_error(group.runs[0])
    return accuracy if error is None else f"{accuracy} \u00b1 {100 * error:.2f}"


def standard_error(run: Run) -> float | None:
    """Standard error of a run's accuracy over the tested samples; None where their number is unknown."""
    accuracy, tested = run.accuracy, run.tested_samples
    if accuracy is None or not tested or is_limited(run):
        return None
    return math.sqrt(accuracy * (1 - accuracy) / tested)


def _taus(runs: Sequence[Run]) -> str:
    """Means over runs of the tau of each layer in the best epoch: `conv1 1.32, fc1 5.20`."""
    each = [taus for taus in (layer_values(run.best_metrics, "tau") for run in runs) if taus]
    return ", ".join(
        f"{layer} {fmean(taus[layer] for taus in each):.2f}" for layer in (each[0] if each else {})
        if all(layer in taus for taus in each)
    )  # fmt: skip


def _configuration(run: Run) -> str:
    """The configurations of a run: `mnist + authors_code_mnist`."""
    arguments = recorded_arguments(run, run.arguments[1:])
    return " + ".join(value for name, value in arguments if name == "config")


def overrides(run: Run) -> str:
    """Arguments of a run beside its configurations, without overridden arguments, then changes on resuming.

    Arguments after `a+=x`, such as `a.b=1`, belong to that x.
    """
    arguments = recorded_arguments(run, run.arguments[1:])
    options = [(name, value) for name, value in arguments if name not in ("config", "seed_everything")]
    names = [name for name, _ in options]
    appended = tuple(name.replace("+", ".") for name in names if name.endswith("+"))
    in_force = [
        f"{name}={value}"
        for i, (name, value) in enumerate(options)
        if name.endswith("+") or name.startswith(appended) or name not in names[i + 1 :]
    ]
    return " ".join([*in_force, *words.changes(run)])
