"""Learned time constants over epochs (7)."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from plif_lightning.analysis import paper
from plif_lightning.analysis.figures.layers import draw_layer
from plif_lightning.analysis.figures.page import (
    Drawn,
    NoDataError,
    for_legend,
    for_title,
    ink,
    legends_below,
    literal,
    new_panels,
)
from plif_lightning.analysis.figures.panels import Groups, by_panel, common_epochs
from plif_lightning.analysis.select import setting_of
from plif_lightning.plot.style import COLOURS, DASHES, FILLS, plain
from plif_lightning.runs.run import Run


def figure_7(runs: Sequence[Run]) -> Drawn:
    """Draw tau of each layer over epochs, for each initial value."""
    data = by_panel(runs, lambda run: setting_of(run).neuron != "lif" and bool(run.layers("tau")))
    if not data:
        raise NoDataError("no run has learned time constants yet.")
    # Line styles tell four settings apart; more than four get a panel each.
    panel_groups = [
        (panel, of_panel)
        for panel, groups in data.items()
        for of_panel in ([groups] if len(groups) <= len(DASHES) else [[group] for group in groups])
    ]
    figure, panels = new_panels(len(panel_groups), height=3.0)
    authors = False
    for ax, (panel, groups) in zip(panels, panel_groups, strict=True):
        # The legend distinguishes groups of runs; a single group is described in the title.
        alone = for_title(groups[0][0]) if len(groups) == 1 else ""
        if not alone:
            _add_keys(ax, groups)
        titled: set[str] = set()
        for style, (_, group) in enumerate(groups):
            authors |= _draw_group(ax, style, group, titled)
        _format_tau_axis(ax)
        ax.set_title("\n".join(filter(None, [panel.title, alone])), loc="left", fontsize=7.5)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(ax)
    legends_below(figure, panels, 2)
    return figure, (
        "tau of each neuron layer, counted from 0 at the input, over epochs. In the paper tau(6) of CIFAR-10 and "
        "tau(4) of CIFAR10-DVS, after the first FC layer, grow without bound. Lines: mean of runs that differ only in "
        "their seed; bands: minimum to maximum."
        + (" Crosses: the authors' runs, on the full data set." if authors else "")
    )


def _add_keys(ax: Axes, groups: Groups) -> None:
    """Add a legend entry without data for the line style of each group."""
    for g, (label, _) in enumerate(groups):
        ax.plot([], [], DASHES[g % 4], color=ink(0.7), marker="o", fillstyle=FILLS[g % 4], markersize=4,
                label=for_legend(label))  # fmt: skip


def _draw_group(ax: Axes, style: int, group: Sequence[Run], titled: set[str]) -> bool:
    """Draw mean and range of tau of each layer over runs that differ in their seed.

    Args:
        ax: to draw on.
        style: of the group in its panel, for its line style.
        group: the runs.
        titled: layers that the legend has; the group's are added.

    Returns:
        True if values of the authors were drawn, too.
    """
    names = group[0].layers("tau")
    initial = setting_of(group[0]).init_tau
    start = [] if math.isnan(initial) else [initial]
    authors = False
    for i, layer in enumerate(names):
        epochs, values = common_epochs([run.curve(f"tau/{layer}") for run in group if layer in run.layers("tau")])
        if start:
            values = np.insert(values, 0, start, axis=1)
        name = f"$\\tau({i})$: {literal(layer, 20)}"
        x = [*([0.0] if start else []), *epochs]
        draw_layer(ax, i, x, values, label=None if name in titled else name, style=style)
        titled.add(name)
        if marks := _authors_taus(group[0], i, len(names), max(epochs)):
            ax.plot(*zip(*marks, strict=True), "x", color=COLOURS[i % 8], markersize=7, markeredgewidth=1.6)
            authors = True
    return authors


def _authors_taus(run: Run, layer: int, layers: int, last: float) -> list[tuple[int, float]]:
    """Epochs up to `last` and tau of a layer in the authors' run of the same setting, if it has as many layers."""
    taus = paper.TAU.get(setting_of(run), ()) if run.protocol == "A" else ()
    epochs = zip(paper.TAU_EPOCHS, taus, strict=False)
    return [(e, theirs[layer]) for e, theirs in epochs if e <= last and len(theirs) == layers]


def _format_tau_axis(ax: Axes) -> None:
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # Powers of two, or round numbers if the axis spans less than a factor of 3.
    rounded = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    candidates = rounded if high / low < 3 else [2.0**e for e in range(21)]
    ax.yaxis.set_major_locator(FixedLocator([tick for tick in candidates if low <= tick <= high]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_ylabel("$\\tau$ [time-steps]")
