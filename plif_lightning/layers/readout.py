"""Output of a network from its last layer: votes, or a readout's value, last value or leaky integral.

A readout says of its output what others need to know of it: see `Readout`.
"""

import math
from functools import partial

import torch
from torch import Tensor

from plif_lightning.errors import UserError
from plif_lightning.signals.signal import LayerModule, Signal
from plif_lightning.signals.states import advance


def _real(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_votes(votes: Tensor) -> Tensor:
    """Mean over time of votes [T, N, C], [N, C], for decisions.

    In float64 (where the device has it): in float32 a sum's last bit depends on the number of samples, and would decide
    between classes with equally many votes.
    """
    return votes.mean(0, dtype=torch.float32 if votes.device.type == "mps" else torch.float64)


class Readout(LayerModule):
    """The last layer's output [T, N, C], in float32 at least: spikes of a neuron per class, or its values.

    Attributes:
        keeps_votes: its output is votes if its input is spikes.
        votes_per_class: M, output neurons per class, of which it takes the mean.
        is_last_step: it gives a single step, the last.
        init_tau: time constant of its leaky integral, in time-steps; None without.
    """

    geometry = ("votes_per_class", "init_tau")
    keeps_votes = True
    votes_per_class = 1
    is_last_step = False
    init_tau: float | None = None

    def run(self, x: Signal) -> Tensor:
        return _real(x.values)


class Voting(Readout):
    """Mean of the M output neurons of each class: [T, N, M C] to votes [T, N, C], in float32 at least."""

    def __init__(self, votes_per_class: int) -> None:
        super().__init__()
        self.votes_per_class = votes_per_class

    def run(self, x: Signal) -> Tensor:
        return _real(x.values).unflatten(-1, (-1, self.votes_per_class)).mean(-1)


class LastStep(Readout):
    """The last time-step of a readout, in float32 at least: [T, N, C] to [1, N, C]; in single steps, each of them."""

    keeps_votes, is_last_step = False, True

    def run(self, x: Signal) -> Tensor:
        return _real(x.values[-1:])


class LeakyIntegrator(Readout):
    """The leaky integral of a readout, V_t = V_{t-1} + (X_t - V_{t-1}) / tau, V_0 = 0: [T, N, C] to [T, N, C].

    Args:
        init_tau: the time constant tau, in time-steps; it is not learned.

    Raises:
        UserError: init_tau is not above 1.
    """

    keeps_votes, carries = False, ("v",)

    def __init__(self, init_tau: float = 2.0) -> None:
        super().__init__()
        if not 1 < init_tau < math.inf:
            raise UserError(f"init_tau of LI must be a number above 1, got {init_tau}.")
        self.init_tau = float(init_tau)

    def run(self, x: Signal) -> Tensor:
        return advance(self, partial(self._integrate, _real(x.values), float(self.init_tau or 0)))

    @staticmethod
    def _integrate(x: Tensor, tau: float, before: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The integral at every step, and the last."""
        potentials = []
        v = torch.zeros_like(x[0]) if before is None else before[0]
        for step in x:
            v = v + (step - v) / tau
            potentials.append(v)
        return torch.stack(potentials), (v,)

    def extra_repr(self) -> str:
        return f"init_tau={self.init_tau}"
