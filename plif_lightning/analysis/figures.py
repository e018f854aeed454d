"""The paper's figures from this project's runs: functions of runs that give a figure and its caption.

What a reader of the figure must know stands in the caption, not in the picture; widths are those of a column, or of
two, of a paper.
"""

import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from plif_lightning.analysis import paper
from plif_lightning.analysis.settings import data_title, labels, one_per_seed, other_settings, setting_of
from plif_lightning.errors import UserError
from plif_lightning.plot import picture
from plif_lightning.plot.style import COLOURS, DASHES, FILLS, MARKERS, plain
from plif_lightning.runs.histograms import Histogram, read_histograms
from plif_lightning.runs.run import Run
from plif_lightning.runs.samples import Samples, read_samples
from plif_lightning.runtime.files import written_whole


class NothingToShowError(UserError):
    """No run has what a figure needs."""


Drawn = tuple[Figure, str]  # a figure and its caption
# Widths of a page [inches] with one and two columns (IEEE, CVF).
WIDTHS = {1: 3.35, 2: 6.9}
_columns: ContextVar[int] = ContextVar("columns", default=2)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **arguments: Any) -> tuple[Figure, Any]:
    """A figure of this shape, or of the page's width where it is wider."""
    most = WIDTHS[_columns.get()]
    size = (width, height) if width <= most else (most, height * most / width)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **arguments)


def _ink(share: float = 1.0) -> str:
    """Black, or white on a dark ground; weaker where `share` is below one."""
    dark = rcParams["figure.facecolor"] != "white"
    return str(0.15 + 0.75 * share if dark else 1 - share)


# --- without runs: the neuron itself


STEPS_PER_MS = 20


def membrane_response(
    current: NDArray[np.float64], tau: Sequence[float], weight: Sequence[float]
) -> NDArray[np.float64]:
    """Membrane potentials of this project's neurons that never fire, V_rest = 0.

    Args:
        current: I at each step of 1 / STEPS_PER_MS ms, [steps].
        tau: of each neuron [ms].
        weight: of each neuron.

    Returns:
        Potentials after each step [steps, neurons].
    """
    import torch  # which the figures of runs do not need

    from plif_lightning.dynamics import Firing
    from plif_lightning.dynamics.reference import trace

    k = torch.tensor([1 / (t * STEPS_PER_MS) for t in tau], dtype=torch.float64)
    x = torch.from_numpy(np.outer(current, weight))[:, None]  # [T, N = 1, neurons]
    return trace(x, k, firing=Firing(v_threshold=float("inf"))).v[:, 0].numpy()


_RESPONSES = (
    ("w, \u03c4", 1.0, 1.0),
    ("w+", 1.5, 1.0),
    ("w\u2212", 0.5, 1.0),
    ("\u03c4+", 1.0, 2.0),
    ("\u03c4\u2212", 1.0, 0.5),
)
TAU_MS = 10.0


def _responses(current: NDArray[np.float64], y_label: str, caption: str) -> Drawn:
    figure, axes = _figure(WIDTHS[_columns.get()], 3.4)
    weights, taus = [w for _, w, _ in _RESPONSES], [TAU_MS * t for _, _, t in _RESPONSES]
    traces = membrane_response(current, taus, weights)
    time = np.arange(1, len(current) + 1) / STEPS_PER_MS
    for i, (label, w, t) in enumerate(_RESPONSES):
        text = f"{label} (w = {w:g}, \u03c4 = {TAU_MS * t:g} ms)"
        style = DASHES[0] if i == 0 else DASHES[1 + (i - 1) % 3]
        mark = "" if i in (0, 1, 2) else MARKERS[i]
        axes[0, 0].plot(
            time, traces[:, i], style, color=COLOURS[i], label=text, marker=mark, markevery=0.11, markersize=4
        )
    axes[0, 0].set_xlabel("time t [ms]")
    axes[0, 0].set_ylabel(y_label)
    plain(axes[0, 0])
    _legends_below(figure, [axes[0, 0]], 2)
    return figure, caption


def figure_1b(runs: Sequence[Run]) -> Drawn:
    """The membrane potential under constant input: w stretches it in V, tau in t."""
    caption = "The membrane potential under constant input: w stretches it in V, tau in t."
    return _responses(np.ones(60 * STEPS_PER_MS), "membrane potential V [units of w I]", caption)


def figure_2(runs: Sequence[Run]) -> Drawn:
    """The membrane potential under spikes."""
    current = np.zeros(120 * STEPS_PER_MS)
    for at in (5, 80, 85, 90):
        current[at * STEPS_PER_MS] = STEPS_PER_MS  # a spike's charge, 1 ms, in one step
    return _responses(
        current,
        "membrane potential V [units of w / ms]",
        "The membrane potential under spikes at 5, 80, 85 and 90 ms, each of which lifts it by w / tau (Eq. 1).",
    )


def figure_5b(runs: Sequence[Run]) -> Drawn:
    """Which of three neurons of a max-pool window connects to the next layer, step by step."""
    import torch
    from torch.nn import functional

    from plif_lightning.dynamics import integrate_and_fire
    from plif_lightning.network import SpikeMaxPool2d

    steps = 20
    drive = torch.tensor([0.62, 0.80, 1.15], dtype=torch.float64).expand(steps, 1, 3)
    spikes = integrate_and_fire(2 * drive, torch.tensor(0.5, dtype=torch.float64))[0][:, 0].numpy()
    # Three neurons in a window of four, the last one silent: who gets the gradient is connected.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        window = functional.pad(torch.from_numpy(spikes), (0, 1)).view(steps, 1, 2, 2).requires_grad_()
        SpikeMaxPool2d("random")(window).sum().backward()
    assert window.grad is not None
    winners = window.grad.flatten(1).argmax(1).tolist()
    figure, axes = _figure(WIDTHS[_columns.get()], 2.3)
    ax = axes[0, 0]
    for i in range(3):
        at = np.flatnonzero(spikes[:, i])
        ax.plot(at, np.full(len(at), 3 - i), "|", color=_ink(0.75), markersize=14, markeredgewidth=1.5)
    for t in range(steps):
        fired = np.flatnonzero(spikes[t])
        if len(fired):
            winner = winners[t]
            ax.plot([t, t], [3 - winner, 0.12], color=COLOURS[0], linewidth=1.2)
            ax.plot(t, 3 - winner, "o", color=COLOURS[0], markersize=7, fillstyle="full" if len(fired) == 1 else "none")
            ax.plot(t, 0, "|", color=COLOURS[0], markersize=14, markeredgewidth=2)
    ax.set_yticks([3, 2, 1, 0], ["neuron 1", "neuron 2", "neuron 3", "after the pool"])
    ax.set_xlabel("time-step t")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(-0.5, 3.6)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return figure, (
        "Which of three neurons of a max-pool window connects to the next layer, step by step. A ring: drawn among "
        "neurons that fired together."
    )


# --- accuracy and tau over epochs


def moving_average(values: Sequence[float], window: int = 64) -> NDArray[np.float64]:
    """Means over the last `window` values, from the first whole window on."""
    sums = np.cumsum([0.0, *values])
    return (sums[window:] - sums[:-window]) / window


# Figures 6 and 7 show these four; others only where there are none of them.
_OF_THE_PAPERS_CURVES = ("FashionMNIST", "CIFAR10", "CIFAR10DVS", "DVSGesture")


class _Panel(NamedTuple):
    """What a panel's runs have in common.

    Attributes:
        data: the data set.
        told: what makes runs of it incomparable, T and the protocol.
        shared: what all of them were told beyond their configuration.
    """

    data: str
    told: str
    shared: str = ""

    @property
    def title(self) -> str:
        return "\n".join(part for part in self if part)


def _by_data(runs: Sequence[Run], wanted: Callable[[Run], bool]) -> dict[_Panel, list[tuple[str, list[Run]]]]:
    """Runs of each data set, those that differ in nothing but their seed (and length) together, and their label."""
    groups: dict[_Panel, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    runs = [run for run in runs if wanted(run)]
    for run in [run for run in runs if run.data_set in _OF_THE_PAPERS_CURVES] or runs:
        others = {k: v for k, v in other_settings(run).items() if k != "epochs"}
        groups[_panel_of(run)][f"{setting_of(run)} {sorted(others.items(), key=str)}"].append(run)
    # Means are over finished runs, of each seed one, as in the tables; a running one is shown where it is alone.
    for of_data in groups.values():
        for key, group in of_data.items():
            of_data[key] = one_per_seed([run for run in group if run.status == "finished"] or group)
    found = {}
    for name, of_data in sorted(groups.items()):
        named = labels([group[0] for group in of_data.values()])
        shared = _plain(textwrap.fill(_short(named.shared, 120), 62))
        found[name._replace(shared=shared)] = sorted(zip(named.each, of_data.values(), strict=True), key=_place)
    return found


def _place(labelled: tuple[str, list[Run]]) -> tuple[Any, ...]:
    """The order in which runs are listed: the paper's neuron first, what is as shipped before what is not."""
    label, runs = labelled
    setting = setting_of(runs[0])
    return setting.neuron != "plif", setting.init_tau, setting.pooling != "max", label


def _panel_of(run: Run) -> _Panel:
    origin = f", {_short(run.facts['origin'])}" if run.facts.get("origin") else ""
    name = _plain(textwrap.fill(_short(data_title(run), 30) + origin, 36))
    steps = _text(run.setting("data.time_steps", "?"), 12)
    return _Panel(name, f"T = {steps}, protocol {run.protocol}")


def _text(words: object, most: int = 60) -> str:
    """What a run is called, as it is: short enough, and no formula."""
    return _plain(_short(words, most))


def _short(words: object, most: int = 60) -> str:
    text = " ".join(str(words).split())
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # after a line was broken, which may be before any sign


def _for_legend(label: str) -> str:
    text = _plain(textwrap.fill(_short(label, 120), 42, subsequent_indent="  "))
    return text.replace("tau_0", "$\\tau_0$").replace("tau =", "$\\tau$ =")


# Entries of a legend, and its lines that a panel's height has room for.
_ENTRIES, _LINES = 16, 6


def _legends_below(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """A legend below each panel, for which the figure grows; of very many entries it says how many more there are."""
    longest = 0
    for ax in panels:
        handles, labels = ax.get_legend_handles_labels()
        if (more := len(labels) - _ENTRIES) > 0:
            handles = [*handles[:_ENTRIES], Line2D([], [], linestyle="")]
            labels = [*labels[:_ENTRIES], f"and {more} more"]
        longest = max(longest, sum(1 + label.count("\n") for label in labels) // columns)
        # The pad, in units of the font's size, leaves room for ticks and label.
        ax.legend(
            handles, labels, frameon=False, fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=5,
            ncols=columns, columnspacing=1.2,
        )  # fmt: skip
    rows = panels[0].get_gridspec().nrows  # type: ignore[union-attr]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + rows * 0.13 * max(0, longest - _LINES))


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, _columns.get())
    rows = -(-count // columns)
    figure, axes = _figure(WIDTHS[_columns.get()], height * rows, rows, columns)
    flat = list(axes.flat)
    for ax in flat[count:]:
        ax.set_visible(False)
    return figure, flat[:count]


def _aligned(curves: Sequence[tuple[list[float], list[float]]]) -> tuple[list[float], NDArray[np.float64]]:
    """Epochs that all curves have, and the values there [curves, epochs]."""
    common = sorted(set.intersection(*(set(epochs) for epochs, _ in curves)))
    if not common:
        raise NothingToShowError("runs that belong together have no epoch in common.")
    return common, np.array([[dict(zip(*curve, strict=True))[e] for e in common] for curve in curves])


def figure_6(runs: Sequence[Run]) -> Drawn:
    """Accuracy over epochs."""
    data = _by_data(runs, lambda run: len(run.curve(run.val_key)[0]) > 0)
    if not data:
        raise NothingToShowError("no run has measured an accuracy yet.")
    figure, panels = _panels(len(data), height=3.3)
    smoothed_any = authors = False
    for ax, (panel, groups) in zip(panels, data.items(), strict=True):
        for i, (label, group) in enumerate(groups):
            colour, style = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            curves = [run.curve(run.val_key) for run in group]
            try:
                epochs, values = _aligned(curves)
            except NothingToShowError:  # no epoch in common, so no mean
                epochs, values = curves[0][0], np.array([curves[0][1]])
            mean = 100 * values.mean(0)
            name = _for_legend(label) + (f" ({len(group)} runs)" if len(group) > 1 else "")
            smoothed = len(mean) >= 128
            smoothed_any |= smoothed
            for own_epochs, own in curves:
                ax.plot(own_epochs, [100 * v for v in own], color=colour, alpha=0.25, linewidth=0.8)
            x, y = (epochs[63:], moving_average(list(mean))) if smoothed else (epochs, mean)
            few = len(x) <= 32
            ax.plot(x, y, style, color=colour, label=name, marker=MARKERS[i % 8] if few else "", markersize=4)
            known = paper.CURVES.get(setting_of(group[0]))
            if known and group[0].protocol == "A":
                shown = [(e, a) for e, a in zip(paper.CURVE_EPOCHS, known, strict=True) if e <= max(epochs)]
                ax.plot(*zip(*shown, strict=True), "x", color=colour, markersize=7, markeredgewidth=1.8)
                authors = True
        ax.set_title(panel.title, loc="left", fontsize=7.5)
        ax.set_xlabel("epoch")
        ax.set_ylabel("accuracy [%]")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(ax)
    _legends_below(figure, panels, 1)
    return figure, (
        "Accuracy over epochs: each run faint, over it the mean of the runs that differ in their seed alone."
        + (" Where there are 128 epochs, the mean's 64-epoch moving average." if smoothed_any else "")
        + (" Crosses: the authors' runs, on all of the data." if authors else "")
    )


def figure_6t(runs: Sequence[Run]) -> Drawn:
    """The best accuracy so far over the time of the training."""
    data = _by_data(runs, lambda run: any(run.val_key in row and "seconds" in row for row in run.metrics))
    if not data:
        raise NothingToShowError("no run has measured an accuracy and its seconds yet.")
    by_title: dict[str, list[tuple[str, list[Run]]]] = defaultdict(list)
    for panel, groups in data.items():
        told = ", ".join(part.replace("\n", " ") for part in panel[1:] if part)
        by_title[panel.data] += [(f"{label}, {told}", group) for label, group in groups]
    shown = [run for groups in data.values() for _, group in groups for run in group]
    longest = max(row.get("seconds", 0.0) for run in shown for row in run.metrics)
    unit, seconds = ("minutes", 60) if longest >= 120 else ("seconds", 1)
    figure, panels = _panels(len(by_title), height=3.3)
    for ax, (title, groups) in zip(panels, by_title.items(), strict=True):
        for i, (label, group) in enumerate(groups):
            for run in group:
                rows = [row for row in run.metrics if run.val_key in row and "seconds" in row]
                best = np.maximum.accumulate([100 * row[run.val_key] for row in rows])
                ax.plot(
                    [row["seconds"] / seconds for row in rows], best, DASHES[i % 4], color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % 8] if len(rows) <= 32 else "", markersize=4, drawstyle="steps-post",
                    label=_for_legend(label) if run is group[0] else None,
                )  # fmt: skip
        ax.set_title(title, loc="left", fontsize=7.5)
        ax.set_xlabel(f"time [{unit}]")
        ax.set_xlim(left=0)
        ax.set_ylabel("best accuracy so far [%]")
        plain(ax)
    _legends_below(figure, panels, 1)
    machines = sorted({run.surroundings.get("machine", "an unknown machine") for run in shown})
    return figure, (
        "The best accuracy so far on the part that validates, over the time since the fit began, validations and what "
        "is compiled at its start included. "
        f"Computed on: {'; '.join(machines)}."
    )


def figure_7(runs: Sequence[Run]) -> Drawn:
    """tau of each layer over epochs, for each initial value."""
    data = _by_data(runs, lambda run: setting_of(run)[1::2] == ("plif", "max") and bool(run.layers("tau")))
    if not data:
        raise NothingToShowError("no run has learned time constants yet (neuron: plif, pooling: max).")
    figure, panels = _panels(len(data), height=3.0)
    authors = False
    for ax, (panel, groups) in zip(panels, data.items(), strict=True):
        titled = set()
        # The legend distinguishes groups of runs; a single group is described in the title.
        alone = groups[0][0] if len(groups) == 1 else ""
        for g, (label, _) in enumerate(() if alone else groups):
            ax.plot([], [], DASHES[g % 4], color=_ink(0.7), marker="o", fillstyle=FILLS[g % 4], markersize=4,
                    label=_for_legend(label))  # fmt: skip
        for g, (_, group) in enumerate(groups):
            start = setting_of(group[0]).init_tau
            names = group[0].layers("tau")
            known = paper.TAU.get(setting_of(group[0]), ()) if group[0].protocol == "A" else ()
            for i, layer in enumerate(names):
                curves = [run.curve(f"tau/{layer}") for run in group if layer in run.layers("tau")]
                epochs, values = _aligned(curves)
                name = f"$\\tau({i})$: {_text(layer, 20)}"
                ax.fill_between([0, *epochs], [start, *values.min(0)], [start, *values.max(0)], color=COLOURS[i % 8],
                                alpha=0.15, linewidth=0)  # fmt: skip
                ax.plot(
                    [0, *epochs], [start, *values.mean(0)], DASHES[g % 4], color=COLOURS[i % 8],
                    marker=MARKERS[i % 8], fillstyle=FILLS[g % 4], markevery=max(1, len(epochs) // 6), markersize=4,
                    label=None if name in titled else name,
                )  # fmt: skip
                titled.add(name)
                marks = [(e, theirs[i]) for e, theirs in zip(paper.TAU_EPOCHS, known, strict=False)
                         if e <= max(epochs) and len(theirs) == len(names)]  # fmt: skip
                if marks:
                    ax.plot(*zip(*marks, strict=True), "x", color=COLOURS[i % 8], markersize=7, markeredgewidth=1.6)
                    authors = True
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(_nice_ticks(ax.get_ylim()))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_title(
            "\n".join(filter(None, [panel.title, _plain(textwrap.fill(_short(alone, 120), 62))])),
            loc="left",
            fontsize=7.5,
        )
        ax.set_xlabel("epoch")
        ax.set_ylabel("$\\tau$ [time-steps]")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(ax)
    _legends_below(figure, panels, 2)
    return figure, (
        "tau of each layer of neurons, counted from 0 at the input, over epochs; in the paper tau(6) of CIFAR-10 and "
        "tau(4) of CIFAR10-DVS, behind the first FC layer, grow without end. Lines: the mean of the runs that "
        "differ in their seed alone; bands: from the least to the greatest."
        + (" Crosses: the authors' runs, on all of the data." if authors else "")
    )


def _nice_ticks(limits: tuple[float, float]) -> Any:
    low, high = limits
    candidates = [2.0**e for e in range(21)]
    if high / low < 3:
        candidates = [*MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    return FixedLocator([c for c in candidates if low <= c <= high])


def figure_s1(runs: Sequence[Run]) -> Drawn:
    """The distribution of W_fc / tau of each FC layer, from before training to its end."""
    recorded = [(run, read_histograms(run.folder)) for run in runs]
    found = [(run, rows) for run, rows in recorded if len({row.epoch for row in rows}) > 1]
    if not found:
        raise NothingToShowError("no run has recorded the distribution of W_fc / tau.")

    def preferred(pair: tuple[Run, list[Histogram]]) -> tuple[Any, ...]:
        run, rows = pair
        is_plif = setting_of(run).neuron == "plif"
        return run.data_set == "CIFAR10DVS", run.data_set in paper.TITLES, is_plif, len(rows)

    run, rows = max(found, key=preferred)
    layers = sorted({row.layer for row in rows})
    figure, axes = _panels(len(layers), 2.9)
    for ax, layer in zip(axes, layers, strict=True):
        of_layer = [row for row in rows if row.layer == layer]
        count = min(8, len(of_layer))
        chosen = [of_layer[round(i * (len(of_layer) - 1) / max(1, count - 1))] for i in range(count)]
        tallest = max(_density(row)[1].max() for row in chosen)
        for place, row in enumerate(chosen):
            x, y = _density(row)
            base = count - 1 - place
            ax.fill_between(x, base, base + 1.6 * y / tallest, color=str(0.75 - 0.5 * place / count), zorder=place)
            ax.plot(x, base + 1.6 * y / tallest, color=_ink(), linewidth=0.7, zorder=place + 0.5)
            if row.mean is not None and row.std is not None:
                ax.text(
                    1.02, base, f"{row.mean:.2g} $\\pm$ {row.std:.2g}", fontsize=6, transform=ax.get_yaxis_transform(),
                )  # fmt: skip
        ax.set_yticks(range(count), [f"epoch {row.epoch}" for row in reversed(chosen)], fontsize=8)
        ax.set_xlabel(f"$W_{{fc}} / \\tau$ of {_text(layer, 20)}")
        width = np.percentile(np.abs([value for row in chosen for value in _central(row)]), 100)
        ax.set_xlim(-width, width)
        ax.spines[["top", "right", "left"]].set_visible(False)
    return figure, (
        "The density of W_fc / tau of each FC layer, from before training on, with its mean and standard deviation at "
        f"the right. {_of(run)}"
    )


def _density(row: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    edges = np.linspace(row.low, row.high, len(row.counts) + 1)
    return (edges[1:] + edges[:-1]) / 2, row.counts / (row.counts.sum() * np.diff(edges))


def _central(row: Histogram) -> list[float]:
    """Where the middle 99.8 % of the weights end."""
    x, _ = _density(row)
    share = np.cumsum(row.counts) / row.counts.sum()
    return [float(x[int(np.searchsorted(share, 0.001))]), float(x[min(int(np.searchsorted(share, 0.999)), len(x) - 1)])]


# --- what a network does with samples


class Choice(NamedTuple):
    """What is shown of a run's samples, where somebody chooses: a class by its name, a channel of the first layer."""

    class_name: str | None = None
    channel: int | None = None


_EVERYTHING = Choice()
_choice: ContextVar[Choice] = ContextVar("choice", default=_EVERYTHING)


def _recorded(
    runs: Sequence[Run], data_set: str, wanted: Callable[[Samples], bool] = lambda samples: True
) -> tuple[Run, Samples]:
    """The run with the highest accuracy that recorded samples, of a data set where there is one; its record."""
    for run in sorted(runs, key=lambda run: (run.data_set != data_set, -(run.accuracy or 0.0))):
        try:
            samples = read_samples(run.folder)
        except UserError as error:
            print(f"note: {error}", file=sys.stderr)
            continue
        if samples is not None and wanted(samples):
            return run, _begun_with(samples, _choice.get().class_name)
    raise NothingToShowError("no finished run has recorded samples: fit records them at its end (--record_samples).")


def _begun_with(samples: Samples, class_name: str | None) -> Samples:
    """The same samples, that of a class first."""
    if class_name is None:
        return samples
    played = samples.spikes.shape[1]
    names = [samples.classes[int(label)] for label in samples.label[:played]]
    if class_name not in names:
        raise NothingToShowError(f"no sample of class {class_name!r} was recorded, but of {', '.join(names)}.")
    order = sorted(range(len(samples.label)), key=lambda i: (i != names.index(class_name), i))
    first = [i for i in order if i < played]
    return replace(
        samples, label=samples.label[order], frames=samples.frames[:, order], rates=samples.rates[order],
        spikes=samples.spikes[:, first], votes=samples.votes[:, order], events=None,
    )  # fmt: skip


def typical_channels(samples: Samples, count: int) -> list[int]:
    """Channels of the first layer whose firing rates vary most over their map, in order of their number."""
    if (channel := _choice.get().channel) is not None:
        if not 0 <= channel < samples.rates.shape[1]:
            raise NothingToShowError(f"channel must lie in 0..{samples.rates.shape[1] - 1}, got {channel}.")
        return [channel]
    spread = samples.rates.std((0, 2, 3))
    return sorted(np.argsort(-spread, kind="stable")[:count].tolist())


def _named(channels: Sequence[int]) -> str:
    different = sorted(set(channels))
    return f"channel{'s' if len(different) > 1 else ''} {', '.join(map(str, different))}"


def _show(ax: Axes, image: NDArray[Any]) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])


def _show_row(ax: Axes, images: NDArray[Any], label: str, titles: Sequence[str] = ()) -> None:
    """Images [N, H, W] or [N, H, W, 3] beside one another, with a frame around and a title above each.

    They share a panel: one for each would take ten times as long to draw.
    """
    n, h, w = images.shape[:3]
    step = w + max(1, w // 10)
    strip = np.zeros((h, n * step - (step - w), 4))  # transparent between them
    for i, image in enumerate(images):
        strip[:, i * step : i * step + w, :3] = image if image.ndim == 3 else image[..., None]
        strip[:, i * step : i * step + w, 3] = 1
    _show(ax, strip)
    ax.spines[:].set_visible(False)
    frames = [Rectangle((i * step - 0.5, -0.5), w, h) for i in range(n)]
    edge = {"edgecolor": rcParams["axes.edgecolor"], "linewidth": rcParams["axes.linewidth"]}
    ax.add_collection(PatchCollection(frames, facecolor="none", clip_on=False, **edge))
    ax.set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
    if titles:
        ax.set_xticks([i * step + (w - 1) / 2 for i in range(n)], titles, fontsize=7)
        ax.tick_params(length=0, labeltop=True, labelbottom=False)


def _name_of(samples: Samples, i: int) -> str:
    return _text(samples.classes[int(samples.label[i])], 24)


def figure_s2(runs: Sequence[Run]) -> Drawn:
    """A sample of each class, and firing rates of three channels of the first layer."""
    run, samples = _recorded(runs, "FashionMNIST")
    channels, count = typical_channels(samples, 3), len(samples.label)
    figure, axes = _figure(0.95 * count + 0.6, 1.1 * (1 + len(channels)), 1 + len(channels))
    shown = np.stack([picture(samples.frames[:, i].mean(0)) for i in range(count)])
    _show_row(axes[0, 0], shown, "input", [_name_of(samples, i) for i in range(count)])
    for row, c in enumerate(channels, start=1):
        _show_row(axes[row, 0], samples.rates[:, c], f"channel {c}")
    return figure, (
        f"A sample of each class, and the firing rates [spikes / time-step] of {_named(channels)} of the first layer, "
        f"from 0 (black) to 1 (white). {_of(run)}"
    )


def _of(run: Run) -> str:
    """Which run a figure shows, for its caption."""
    return f"Data: {' '.join(_panel_of(run).data.splitlines())}; {labels([run]).each[0]}; run {_text(run.name)}."


def _grid(maps: NDArray[Any]) -> NDArray[np.float64]:
    """Maps [C, H, W] side by side, in a square as far as possible, with grey between."""
    c, h, w = maps.shape
    columns = int(np.ceil(np.sqrt(c)))
    rows = -(-c // columns)
    grid = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1), 0.5)
    for i, one in enumerate(maps):
        row, column = divmod(i, columns)
        grid[row * (h + 1) : row * (h + 1) + h, column * (w + 1) : column * (w + 1) + w] = one
    return grid


def figure_s3(runs: Sequence[Run]) -> Drawn:
    """All channels of the first layer for one sample."""
    run, samples = _recorded(runs, "CIFAR10DVS")
    figure, axes = _figure(9.0, 4.9, 1, 2)
    spikes = samples.spikes[:, 0]
    last = len(spikes) - 1
    for ax, maps, label in zip(
        axes[0],
        (spikes[0], spikes.mean(0)),
        ("(a)", "(b)"),
        strict=True,
    ):
        _show(ax, _grid(maps.astype(np.float64)))
        ax.set_title(label, fontsize=7)
    return figure, (
        f"All channels of the first layer for a sample of class {_name_of(samples, 0)}: (a) spikes at t = 0, (b) "
        f"firing rates at t = {last} [spikes / time-step]. {_of(run)}"
    )


def _step_frames(samples: Samples, i: int) -> NDArray[Any]:
    """Input at each step [T, C, H, W]; a static image is the same at all."""
    frames = samples.frames[:, i]
    return np.repeat(frames, len(samples.spikes), 0) if len(frames) == 1 else frames


def _few_steps(steps: int) -> list[int]:
    """All time-steps, or where a row has no room for them 20 at equal distances."""
    return list(range(steps)) if steps <= 20 else [round(i * (steps - 1) / 19) for i in range(20)]


def _step_titles(steps: Sequence[int]) -> list[str]:
    return [f"t = {steps[0]}", *map(str, steps[1:])]


def figure_s4(runs: Sequence[Run]) -> Drawn:
    """One sample over time."""
    run, samples = _recorded(runs, "CIFAR10DVS")
    channels = (2 * typical_channels(samples, 2))[:2]
    frames, spikes = _step_frames(samples, 0), samples.spikes[:, 0].astype(np.float64)
    shown_steps = _few_steps(len(spikes))
    figure, axes = _figure(0.75 * len(shown_steps) + 0.9, 5.4, 6)
    so_far = np.arange(1, len(spikes) + 1)[:, None, None, None]
    parts = (
        ("(a)", frames.astype(np.float64), spikes),
        ("(b)", np.cumsum(frames.astype(np.float64), 0) / so_far, np.cumsum(spikes, 0) / so_far),
    )
    for part, (letter, shown, fired) in enumerate(parts):
        images = np.stack([picture(shown[t]) for t in shown_steps])
        titles = _step_titles(shown_steps) if part == 0 else ()
        _show_row(axes[3 * part, 0], images, f"{letter} {'mean ' if part else ''}input", titles)
        for row, c in enumerate(channels, start=1):
            label = f"{letter} {'rate, ch.' if part else 'channel'} {c}"
            _show_row(axes[3 * part + row, 0], fired[shown_steps, c], label)
    return figure, (
        f"A sample of class {_name_of(samples, 0)} over time: (a) input and spikes of {_named(channels)} of the first "
        f"layer, (b) their means so far, from 0 (black) to 1 (white). {_of(run)}"
    )


def figure_s5(runs: Sequence[Run]) -> Drawn:
    """Frames of three samples at each step, and spikes under each."""
    try:
        run, samples = _recorded(runs, "DVSGesture", lambda s: len(s.frames) > 1)
    except NothingToShowError:  # static images only
        run, samples = _recorded(runs, "DVSGesture")
    channel = typical_channels(samples, 1)[0]
    shown_steps, played = _few_steps(len(samples.spikes)), min(3, samples.spikes.shape[1])
    figure, axes = _figure(0.75 * len(shown_steps) + 0.9, 0.95 * 2 * played + 0.5, 2 * played)
    for i in range(played):
        frames = _step_frames(samples, i)
        images = np.stack([picture(frames[t]) for t in shown_steps])
        titles = _step_titles(shown_steps) if i == 0 else ()
        _show_row(axes[2 * i, 0], images, _name_of(samples, i), titles)
        _show_row(axes[2 * i + 1, 0], samples.spikes[shown_steps, i, channel], "spikes")
    return figure, (
        f"Frames of {played} samples at each step, and under each the spikes of channel {channel} of the first layer. "
        f"{_of(run)}"
    )


FIGURES: dict[str, Callable[[Sequence[Run]], Drawn]] = {
    "1b": figure_1b,
    "2": figure_2,
    "5b": figure_5b,
    "6": figure_6,
    "6t": figure_6t,
    "7": figure_7,
    "S1": figure_s1,
    "S2": figure_s2,
    "S3": figure_s3,
    "S4": figure_s4,
    "S5": figure_s5,
}


def drawn(name: str, runs: Sequence[Run], columns: int = 2, choice: Choice = _EVERYTHING) -> Drawn:
    """One of the figures, and its caption.

    Args:
        name: in FIGURES.
        runs: to choose from.
        columns: of a page that it is wide, see WIDTHS.
        choice: which of the recorded samples' classes and channels is shown.

    Raises:
        NothingToShowError: no run has what it needs, or one has something that cannot be drawn.
    """
    token, chosen = _columns.set(columns), _choice.set(choice)
    try:
        with rc_context({"font.size": 8}):
            return FIGURES[name](runs)
    except NothingToShowError:
        raise
    except Exception as error:  # runs are files from anywhere: the other figures can still be made
        raise NothingToShowError(f"a run holds what cannot be drawn ({type(error).__name__}: {error}).") from error
    finally:
        _columns.reset(token)
        _choice.reset(chosen)


def write_figures(
    runs: Sequence[Run], folder: Path, names: Sequence[str], columns: int = 2, choice: Choice = _EVERYTHING
) -> int:
    """Writes each figure as pdf and png, their captions, and says which could not be made and why.

    Returns:
        Exit status: 1 where none could be made.
    """
    captions = {}
    for name in names:
        try:
            figure, captions[name] = drawn(name, runs, columns, choice)
        except NothingToShowError as error:
            print(f"figure {name} is left out: {error}", file=sys.stderr)
            continue
        # Files that are the same whenever they are made.
        with rc_context({"pdf.fonttype": 42}):
            for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
                path = folder / f"figure{name}.{kind}"
                with written_whole(path, "wb") as file:
                    figure.savefig(file, format=kind, metadata=metadata)
                print(path)
    if captions:
        with written_whole(folder / "captions.md") as file:
            file.writelines(f"**Figure {name}.** {caption}\n\n" for name, caption in captions.items())
        print(folder / "captions.md")
    return 0 if captions else 1
