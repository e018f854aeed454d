"""Learned axonal delays, with a memory that `pl.step` carries: a layer of one's own.

An `nn.Module` that shifts [T, N, C] by itself would see nothing of the steps before in a single step, and is refused.
"""

# ruff: noqa: N805  # equations have no self
# mypy: disable-error-code="no-untyped-def"
import torch

import plif_lightning as pl


class AxonalDelay(pl.Neuron):
    """y[t] = x[t - delay], of each channel, 0 to 3 steps; between two steps it is interpolated.

    Args:
        delay: [steps].
    """

    state = ("one_ago", "two_ago", "three_ago")
    delay = pl.learned(1.5, "positive")

    def charge(x):
        return x

    def fire(h, one_ago, two_ago, three_ago, delay):
        shares = [torch.relu(1 - torch.abs(delay - steps)) for steps in range(4)]
        return h * shares[0] + one_ago * shares[1] + two_ago * shares[2] + three_ago * shares[3]

    def after(h, one_ago, two_ago):
        return h, one_ago, two_ago
