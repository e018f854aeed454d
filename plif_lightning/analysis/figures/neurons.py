"""Figures of single neurons, computed without runs: membrane potentials (1b, 2) and max-pooling of spikes (5b)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from plif_lightning.analysis.figures.page import WIDTH, Drawn, ink, legends_below, new_figure
from plif_lightning.plot.style import COLOURS, DASHES, MARKERS, plain
from plif_lightning.runs.run import Run

STEPS_PER_MS = 20
TAU_MS = 10.0
# Label, factor of w, factor of tau of each neuron in Figures 1b and 2.
RESPONSES = (
    ("w, \u03c4", 1.0, 1.0),
    ("w+", 1.5, 1.0),
    ("w\u2212", 0.5, 1.0),
    ("\u03c4+", 1.0, 2.0),
    ("\u03c4\u2212", 1.0, 0.5),
)


def membrane_response(
    current: NDArray[np.float64], tau: Sequence[float], weight: Sequence[float]
) -> NDArray[np.float64]:
    """Simulate the membrane potential of this project's neurons without firing, V_rest = 0.

    Args:
        current: I at each step of 1 / STEPS_PER_MS ms, [steps].
        tau: of each neuron [ms].
        weight: of each neuron.

    Returns:
        Potentials after each step [steps, neurons].
    """
    import torch  # here: figures of runs do not need it

    from plif_lightning.dynamics import Firing
    from plif_lightning.dynamics.leaky import leaky
    from plif_lightning.dynamics.reference import trace

    k = torch.tensor([1 / (t * STEPS_PER_MS) for t in tau], dtype=torch.float64)
    x = torch.from_numpy(np.outer(current, weight))[:, None]  # [T, N = 1, neurons]
    return trace(x, leaky(k, Firing(v_threshold=float("inf")))).v[:, 0].numpy()


def _responses(current: NDArray[np.float64], y_label: str, caption: str) -> Drawn:
    figure, axes = new_figure(WIDTH, 3.4)
    weights, taus = [w for _, w, _ in RESPONSES], [TAU_MS * t for _, _, t in RESPONSES]
    traces = membrane_response(current, taus, weights)
    time = np.arange(1, len(current) + 1) / STEPS_PER_MS
    for i, (label, w, t) in enumerate(RESPONSES):
        text = f"{label} (w = {w:g}, \u03c4 = {TAU_MS * t:g} ms)"
        style = DASHES[0] if i == 0 else DASHES[1 + (i - 1) % 3]
        mark = "" if i in (0, 1, 2) else MARKERS[i]
        axes[0, 0].plot(
            time, traces[:, i], style, color=COLOURS[i], label=text, marker=mark, markevery=0.11, markersize=4
        )
    axes[0, 0].set_xlabel("time t [ms]")
    axes[0, 0].set_ylabel(y_label)
    plain(axes[0, 0])
    legends_below(figure, [axes[0, 0]], 2)
    return figure, caption


def figure_1b(runs: Sequence[Run]) -> Drawn:
    """Draw the membrane potential under constant input."""
    caption = "Membrane potential under constant input: w scales it in V, tau in t."
    return _responses(np.ones(60 * STEPS_PER_MS), "membrane potential V [units of w I]", caption)


def figure_2(runs: Sequence[Run]) -> Drawn:
    """Draw the membrane potential in response to spikes."""
    current = np.zeros(120 * STEPS_PER_MS)
    for at in (5, 80, 85, 90):
        current[at * STEPS_PER_MS] = STEPS_PER_MS  # a spike's charge, 1 ms, in one step
    return _responses(
        current,
        "membrane potential V [units of w / ms]",
        "Membrane potential in response to spikes at 5, 80, 85 and 90 ms, each of which raises it by w / tau (Eq. 1).",
    )


def _pooled(steps: int) -> tuple[NDArray[np.float64], list[int]]:
    """Spikes of three neurons of a max-pool window [steps, 3], and the neuron that the pool selects at each step."""
    import torch
    from torch.nn import functional

    from plif_lightning.dynamics import integrate_and_fire
    from plif_lightning.network import SpikeMaxPool2d

    drive = torch.tensor([0.62, 0.80, 1.15], dtype=torch.float64).expand(steps, 1, 3)
    spikes = integrate_and_fire(2 * drive, torch.tensor(0.5, dtype=torch.float64))[0][:, 0]
    # The window has a fourth, silent neuron. The gradient flows to the neuron that is connected.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        window = functional.pad(spikes, (0, 1)).view(steps, 1, 2, 2).requires_grad_()
        SpikeMaxPool2d("random")(window).sum().backward()
    assert window.grad is not None
    return spikes.numpy(), window.grad.flatten(1).argmax(1).tolist()


def figure_5b(runs: Sequence[Run]) -> Drawn:
    """Draw which of three neurons of a max-pool window connects to the next layer at each time-step."""
    steps = 20
    spikes, winners = _pooled(steps)
    figure, axes = new_figure(WIDTH, 2.3)
    ax = axes[0, 0]
    for i in range(3):
        at = np.flatnonzero(spikes[:, i])
        ax.plot(at, np.full(len(at), 3 - i), "|", color=ink(0.75), markersize=14, markeredgewidth=1.5)
    for t, winner in enumerate(winners):
        fired = np.flatnonzero(spikes[t])
        if len(fired):
            ax.plot([t, t], [3 - winner, 0.12], color=COLOURS[0], linewidth=1.2)
            ax.plot(t, 3 - winner, "o", color=COLOURS[0], markersize=7, fillstyle="full" if len(fired) == 1 else "none")
            ax.plot(t, 0, "|", color=COLOURS[0], markersize=14, markeredgewidth=2)
    ax.set_yticks([3, 2, 1, 0], ["neuron 1", "neuron 2", "neuron 3", "after the pool"])
    ax.set_xlabel("time-step t")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(-0.5, 3.6)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return figure, (
        "Which of three neurons of a max-pool window connects to the next layer at each time-step. Rings: the neuron "
        "was drawn at random among those that fired together."
    )
