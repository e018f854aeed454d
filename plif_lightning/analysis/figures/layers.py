"""Curves of each layer over epochs: time constants, firing rates, and any other value that a callback logs."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from plif_lightning.analysis.figures.page import (
    WIDTH,
    Drawn,
    NoDataError,
    escape_formula,
    legends_below,
    literal,
    new_figure,
    shorten,
)
from plif_lightning.analysis.figures.panels import by_panel, common_epochs
from plif_lightning.plot.style import COLOURS, DASHES, FILLS, MARKERS, plain
from plif_lightning.runs.metrics import LAYER_TITLES, layer_quantities
from plif_lightning.runs.run import Run

_MOST = 12  # settings, of which each has a row


def figure_layers(runs: Sequence[Run]) -> Drawn:
    """Draw every recorded quantity of each layer over epochs: a row per setting, a column per quantity."""
    panels = by_panel(runs, lambda run: any(_has_curve(quantity, [run]) for quantity in layer_quantities(run.metrics)))
    rows = [(panel, label, group) for panel, groups in panels.items() for label, group in groups]
    if not rows:
        raise NoDataError("no run has recorded values of its layers yet.")
    drawn_rows = rows[:_MOST]
    quantities = [
        [quantity for quantity in layer_quantities(group[0].metrics) if _has_curve(quantity, group)]
        for *_, group in drawn_rows
    ]
    columns = max(map(len, quantities))
    figure, axes = new_figure(WIDTH, 2.5 * len(drawn_rows), len(drawn_rows), columns)
    of_rows = [
        dict.fromkeys(layer for quantity in of_setting for layer in group[0].layers(quantity))
        for (*_, group), of_setting in zip(drawn_rows, quantities, strict=True)
    ]
    numbers = {layer: i for i, layer in enumerate(dict.fromkeys(layer for layers in of_rows for layer in layers))}
    for (panel, label, group), of_setting, of_row, layers in zip(drawn_rows, quantities, axes, of_rows, strict=True):
        for quantity, ax in zip(of_setting, of_row, strict=False):
            _draw(ax, quantity, group, numbers)
        for layer in layers:  # the legend, of the first panel, has every layer of the row
            if layer not in group[0].layers(of_setting[0]):
                draw_layer(of_row[0], numbers[layer], [], np.empty((1, 0)), label=literal(layer, 20))
        for ax in of_row[len(of_setting) :]:
            ax.set_visible(False)
        words = ", ".join([" ".join(panel.data.split()), panel.conditions, label])
        of_row[0].set_title(escape_formula(textwrap.fill(shorten(words, 150), 96 // columns)), loc="left", fontsize=7.5)
    legends_below(figure, [*axes[:, 0]], 2)
    left_out = f" {len(rows) - _MOST} more settings are left out." if len(rows) > _MOST else ""
    return figure, (
        "Values of each layer over epochs. Lines: mean of runs that differ only in their seed; bands: minimum to "
        f"maximum.{left_out}"
    )


def _has_curve(quantity: str, group: Sequence[Run]) -> bool:
    """True if all runs of a group have a kind of value of their layers at some epoch."""
    epochs = [set(run.curve(f"{quantity}/{layer}")[0]) for run in group for layer in group[0].layers(quantity)]
    return bool(epochs) and bool(set.intersection(*epochs))


def _draw(ax: Axes, quantity: str, group: Sequence[Run], numbers: Mapping[str, int]) -> None:
    """Draw the curves of a quantity, in the colours of the layers' numbers."""
    for layer in group[0].layers(quantity):
        epochs, values = common_epochs([run.curve(f"{quantity}/{layer}") for run in group])
        draw_layer(ax, numbers[layer], epochs, values, label=literal(layer, 20))
    ax.set_xlabel("epoch")
    ax.set_ylabel(LAYER_TITLES.get(quantity, literal(quantity, 30)).replace(" [", "\n["))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(ax)


def draw_layer(
    ax: Axes, layer: int, epochs: Sequence[float], values: NDArray[np.float64], *, label: str | None, style: int = 0
) -> None:
    """Draw mean and range of a layer's values over runs.

    Args:
        ax: to draw on.
        layer: its number, for colour and marker.
        epochs: of the values.
        values: [runs, epochs].
        label: in the legend; None for none.
        style: number of the runs' setting, for the style of its lines.
    """
    colour = COLOURS[layer % 8]
    ax.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    ax.plot(
        epochs, values.mean(0), DASHES[style % 4], color=colour, marker=MARKERS[layer % 8], fillstyle=FILLS[style % 4],
        markevery=max(1, len(epochs) // 6), markersize=4, label=label,
    )  # fmt: skip
