"""Group runs into panels and curves, and name them."""

import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plif_lightning.analysis.figures.page import NoDataError, escape_formula, for_title, literal, shorten
from plif_lightning.analysis.select import by_key, counted, data_title, setting_of
from plif_lightning.analysis.words import labels
from plif_lightning.runs.run import Run


class Panel(NamedTuple):
    """Common properties of the runs in a panel.

    Attributes:
        data: name of the data set.
        conditions: T and the evaluation protocol; accuracies under different ones are not comparable.
        shared: settings of all these runs that differ from their configuration.
    """

    data: str
    conditions: str
    shared: str = ""

    @property
    def title(self) -> str:
        return "\n".join(line for line in self if line)


Curve = tuple[list[float], list[float]]  # epochs and values
Groups = list[tuple[str, list[Run]]]  # label and runs of each curve


def by_panel(runs: Sequence[Run], wanted: Callable[[Run], bool]) -> dict[Panel, Groups]:
    """Group runs by data set, T and protocol, then by their keys.

    Args:
        runs: to choose from.
        wanted: True for runs that the figure can show.
    """
    panels: dict[Panel, list[Run]] = defaultdict(list)
    for run in filter(wanted, runs):
        panels[panel_of(run)].append(run)
    grouped = {}
    for panel, of_panel in sorted(panels.items()):
        groups = [counted(alike) for alike in by_key(of_panel)]
        first_runs = [group[0] for group in groups]
        named = labels(first_runs)
        lengths = [f", {run.settings.get('trainer.max_epochs')} epochs" for run in first_runs]
        each = [label + length for label, length in zip(named.each, lengths, strict=True)]
        labelled = sorted(zip(each if len({*lengths}) > 1 else named.each, groups, strict=True), key=_sort_key)
        grouped[Panel(panel.data, panel.conditions, for_title(named.shared))] = labelled
    return grouped


def _sort_key(labelled: tuple[str, list[Run]]) -> tuple[Any, ...]:
    """Sort key of curves: PLIF first, then by tau_0, max-pooling before others."""
    label, runs = labelled
    setting = setting_of(runs[0])
    return setting.neuron != "plif", setting.init_tau, setting.pooling != "max", label


def panel_of(run: Run) -> Panel:
    of_origin = f", {shorten(origin)}" if (origin := run.record.data.origin) else ""
    name = escape_formula(textwrap.fill(shorten(data_title(run), 30) + of_origin, 36))
    steps = literal(run.setting("data.time_steps", "?"), 12)
    return Panel(name, f"T = {steps}, protocol {run.protocol}")


def source_of(run: Run) -> str:
    """Data set, settings and name of the run that a figure shows, for its caption."""
    return f"Data: {' '.join(panel_of(run).data.splitlines())}; {labels([run]).each[0]}; run {literal(run.name)}."


def common_epochs(curves: Sequence[Curve]) -> tuple[list[float], NDArray[np.float64]]:
    """Return the epochs that all curves have, and the values there [curves, epochs].

    Raises:
        NoDataError: there is no common epoch.
    """
    common = sorted(set.intersection(*(set(epochs) for epochs, _ in curves)))
    if not common:
        raise NoDataError("runs that differ only in their seed have no epoch in common.")
    return common, np.array([[dict(zip(*curve, strict=True))[e] for e in common] for curve in curves])
