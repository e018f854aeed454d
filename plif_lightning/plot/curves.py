"""Figures of one run: learning curve, time constants over epochs, confusion matrix."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plif_lightning.plot.style import COLOURS, MARKERS, plain

Metrics = Sequence[dict[str, float]]
_PARTS = {"train": "training", "val": "validation", "test_as_val": "test (used to select the epoch)"}


def learning_curve(metrics: Metrics, title: str) -> Figure:
    """Draw accuracy [%] and loss over epochs, one line for each of training, validation and test set.

    Args:
        metrics: one row per epoch with `epoch` (counted from 0) and keys such as `train/loss` or `val/acc`.
        title: the figure's title.
    """
    figure, axes = _axes(title, ["accuracy [%]", "loss"])
    for i, (part, label) in enumerate(_PARTS.items()):
        _line(axes[0], i, metrics, f"{part}/acc", label, 100)
        _line(axes[1], i, metrics, f"{part}/loss", label)
    return _with_legends(figure)


_KINDS = {"tau": "membrane time constant $\\tau$ [time-steps]", "v_threshold": "threshold $V_{th}$"}


def tau_curve(metrics: Metrics, title: str, kinds: Sequence[str] = ("tau",)) -> Figure:
    """Draw the time constant [time-steps] of each layer over epochs, or other parameters of its neurons.

    Args:
        metrics: one row per epoch with `epoch` (counted from 0) and `tau/<layer>`; the last row with a tau names the
            layers.
        title: the figure's title.
        kinds: names of the parameters, one part of the figure each.
    """
    figure, axes = _axes(title, [_KINDS.get(kind, kind) for kind in kinds])
    for ax, kind in zip(axes, kinds, strict=True):
        of_layers = ([key for key in row if key.startswith(f"{kind}/")] for row in reversed(metrics))
        for i, key in enumerate(next(filter(None, of_layers), [])):
            _line(ax, i, metrics, key, key.removeprefix(f"{kind}/"))
    return _with_legends(figure)


def confusion_matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Draw counts of true against predicted class, shaded by the share of the true class.

    Args:
        counts: [true class, predicted class].
        names: of the classes.
    """
    n = len(names)
    side = 3.6 + 0.28 * n
    figure = Figure(figsize=(side + 1.2, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    totals = [sum(row) for row in counts]
    share = [[count / max(total, 1) for count in row] for row, total in zip(counts, totals, strict=True)]
    image = axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    long = max(map(len, names)) > 3
    axes.set_xticks(range(n), names, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(n), [f"{name} ({total})" for name, total in zip(names, totals, strict=True)])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (samples)")
    right = sum(counts[i][i] for i in range(n))
    whole = sum(totals)
    axes.set_title(f"accuracy {100 * right / max(whole, 1):.2f} %: {right:,} of {whole:,}", loc="left", fontsize=11)
    if n <= 30:  # numbers in more cells cannot be read
        _write_counts(axes, counts, share)
    return figure


def _write_counts(axes: Axes, counts: Sequence[Sequence[int]], share: Sequence[Sequence[float]]) -> None:
    """Write each non-zero count into its cell."""
    size = 9 if len(counts) <= 12 else 5
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                colour = "white" if share[i][j] > 0.5 else "black"
                axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=size)


def _axes(title: str, y_labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    # Fixed margins [inches], because a constrained layout draws the figure twice, at the end of every fit.
    width, height = 1.0 + 4.6 * len(y_labels), 3.6
    figure = Figure(figsize=(width, height), dpi=150)
    margins = {"left": 0.8 / width, "right": 1 - 0.2 / width, "bottom": 0.55 / height, "top": 1 - 0.35 / height}
    axes = list(figure.subplots(1, len(y_labels), squeeze=False, gridspec_kw={**margins, "wspace": 0.22})[0])
    axes[0].set_title(title, loc="left", fontsize=11)
    for ax, y_label in zip(axes, y_labels, strict=True):
        ax.set_xlabel("epoch")
        ax.set_ylabel(y_label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(ax)
    return figure, axes


def _line(ax: Axes, i: int, metrics: Metrics, key: str, label: str, factor: float = 1.0) -> None:
    rows = [row for row in metrics if key in row]
    if rows:
        ax.plot(
            [row["epoch"] + 1 for row in rows],
            [factor * row[key] for row in rows],
            label=label,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4 if len(rows) <= 64 else 0,
            linewidth=1.5,
        )


def _with_legends(figure: Figure) -> Figure:
    for ax in figure.axes:
        if ax.lines:
            ax.legend(frameon=False)
    return figure
