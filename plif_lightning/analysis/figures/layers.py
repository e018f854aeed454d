"""What is recorded of each layer over epochs: time constants, firing rates, and whatever else a callback logs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from plif_lightning.analysis.figures.grouping import aligned, by_panel
from plif_lightning.analysis.figures.page import (
    WIDTH,
    Drawn,
    NothingToShowError,
    for_title,
    legends_below,
    literal,
    new_figure,
)
from plif_lightning.plot.style import COLOURS, DASHES, FILLS, MARKERS, plain
from plif_lightning.runs.metrics import LAYER_TITLES, layer_kinds
from plif_lightning.runs.run import Run

_MOST = 12  # settings, of which each has a row


def figure_layers(runs: Sequence[Run]) -> Drawn:
    """Draw each kind of value of every layer over epochs: a row for each setting, its kinds side by side."""
    panels = by_panel(runs, lambda run: bool(layer_kinds(run.metrics)))
    rows = [(panel, label, group) for panel, groups in panels.items() for label, group in groups]
    if not rows:
        raise NothingToShowError("no run has recorded values of its layers yet.")
    shown = rows[:_MOST]
    kinds = [*dict.fromkeys(kind for *_, group in shown for kind in layer_kinds(group[0].metrics))]
    figure, axes = new_figure(WIDTH, 2.3 * len(shown), len(shown), len(kinds))
    for (panel, label, group), of_row in zip(shown, axes, strict=True):
        for kind, ax in zip(kinds, of_row, strict=True):
            if not group[0].layers(kind):
                ax.set_visible(False)
                continue
            _draw(ax, kind, group)
        of_row[0].set_title(f"{panel.title}\n{for_title(label)}", loc="left", fontsize=7.5)
    legends_below(figure, [ax for ax in axes[:, -1] if ax.get_visible()] or [axes[0, 0]], 2)
    left_out = f" {len(rows) - _MOST} more settings are left out." if len(rows) > _MOST else ""
    return figure, (
        "Values of each layer over epochs. Lines: mean of runs that differ only in their seed; bands: minimum to "
        f"maximum.{left_out}"
    )


def _draw(ax: Axes, kind: str, group: Sequence[Run]) -> None:
    for i, layer in enumerate(group[0].layers(kind)):
        epochs, values = aligned([run.curve(f"{kind}/{layer}") for run in group if layer in run.layers(kind)])
        draw_layer(ax, i, epochs, values, label=literal(layer, 20))
    ax.set_xlabel("epoch")
    ax.set_ylabel(LAYER_TITLES.get(kind, literal(kind, 30)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(ax)


def draw_layer(
    ax: Axes, layer: int, epochs: Sequence[float], values: NDArray[np.float64], *, label: str | None, place: int = 0
) -> None:
    """Draw mean and range of a layer's values over runs.

    Args:
        ax: to draw on.
        layer: its number, for colour and marker.
        epochs: of the values.
        values: [runs, epochs].
        label: in the legend; None for none.
        place: number of the runs' setting, for the style of its lines.
    """
    colour = COLOURS[layer % 8]
    ax.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    ax.plot(
        epochs, values.mean(0), DASHES[place % 4], color=colour, marker=MARKERS[layer % 8], fillstyle=FILLS[place % 4],
        markevery=max(1, len(epochs) // 6), markersize=4, label=label,
    )  # fmt: skip
