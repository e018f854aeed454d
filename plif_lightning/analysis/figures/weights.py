"""Distributions of W_fc / tau during training (S1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from plif_lightning.analysis import paper
from plif_lightning.analysis.figures.page import Drawn, NoDataError, ink, literal, new_panels
from plif_lightning.analysis.figures.panels import source_of
from plif_lightning.analysis.select import setting_of
from plif_lightning.runs.histograms import Histogram, read_histograms
from plif_lightning.runs.run import Run

_ROWS = 8  # epochs of a panel


def figure_s1(runs: Sequence[Run]) -> Drawn:
    """Draw the distribution of W_fc / tau of each FC layer, from before training to its end."""
    recorded = [(run, read_histograms(run.folder)) for run in runs]
    with_epochs = [(run, rows) for run, rows in recorded if len({row.epoch for row in rows}) > 1]
    if not with_epochs:
        raise NoDataError("no run has recorded the distribution of W_fc / tau.")
    run, rows = max(with_epochs, key=_preference)
    layers = sorted({row.layer for row in rows})
    figure, axes = new_panels(len(layers), 2.9)
    for ax, layer in zip(axes, layers, strict=True):
        _draw_ridges(ax, _spread([row for row in rows if row.layer == layer]))
        ax.set_xlabel(f"$W_{{fc}} / \\tau$ of {literal(layer, 20)}")
    return figure, (
        "Density of W_fc / tau of each FC layer, starting before training, with mean and standard deviation at the "
        f"right. {source_of(run)}"
    )


def _preference(pair: tuple[Run, list[Histogram]]) -> tuple[Any, ...]:
    """Sort key: CIFAR10-DVS as in the paper, then the paper's other data sets, then PLIF, then the longest record."""
    run, rows = pair
    is_plif = setting_of(run).neuron == "plif"
    return run.data_set == "CIFAR10DVS", run.data_set in paper.TITLES, is_plif, len(rows)


def _spread(rows: Sequence[Histogram]) -> list[Histogram]:
    """Choose up to _ROWS rows at equal distances, the first and last among them."""
    count = min(_ROWS, len(rows))
    return [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(count)]


def _draw_ridges(ax: Axes, rows: Sequence[Histogram]) -> None:
    """Draw one density above the other, the first epoch on top."""
    count = len(rows)
    tallest = max(_density(row)[1].max() for row in rows)
    for index, row in enumerate(rows):
        x, y = _density(row)
        base = count - 1 - index
        ax.fill_between(x, base, base + 1.6 * y / tallest, color=str(0.75 - 0.5 * index / count), zorder=index)
        ax.plot(x, base + 1.6 * y / tallest, color=ink(), linewidth=0.7, zorder=index + 0.5)
        ax.text(1.02, base, f"{row.mean:.2g} $\\pm$ {row.std:.2g}", fontsize=6, transform=ax.get_yaxis_transform())
    ax.set_yticks(range(count), [f"epoch {row.epoch}" for row in reversed(rows)], fontsize=8)
    width = max(abs(value) for row in rows for value in _central(row))
    ax.set_xlim(-width, width)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _density(row: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bin centres and densities."""
    edges = np.linspace(row.low, row.high, len(row.counts) + 1)
    return (edges[1:] + edges[:-1]) / 2, np.asarray(row.counts) / (sum(row.counts) * np.diff(edges))


def _central(row: Histogram) -> list[float]:
    """Bounds of the central 99.8 % of the weights."""
    x, _ = _density(row)
    share = np.cumsum(row.counts) / sum(row.counts)
    return [float(x[int(np.searchsorted(share, 0.001))]), float(x[min(int(np.searchsorted(share, 0.999)), len(x) - 1)])]
