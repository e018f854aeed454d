"""Surrogates of SpikingJelly that are none of this package's, as functions of u and a width."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plif_lightning.dynamics import surrogate
from plif_lightning.neurons.published import MOST_COUNTS


@surrogate
def piecewise_exp(u: Tensor, width: float) -> Tensor:
    """exp(-|u| / width) / (2 width)."""
    return (-(u / width).abs()).exp() / (2 * width)


@surrogate
def super_spike(u: Tensor, width: float) -> Tensor:
    """1 / (width (1 + |u|)^2)."""
    return 1 / (width * (1 + u.abs()).square())


@surrogate
def nonzero_sign_log_abs(u: Tensor, width: float) -> Tensor:
    """1 / (width + |u|)."""
    return 1 / (width + u.abs())


@surrogate
def erf(u: Tensor, width: float) -> Tensor:
    """The normal density exp(-(u / width)^2) / (width sqrt(pi))."""
    return (-(u / width).square()).exp() / (width * math.sqrt(math.pi))


@surrogate
def q_pseudo_spike(u: Tensor, width: float) -> Tensor:
    """(1 + 2 |u| / (alpha - 1)) ** -alpha, for alpha = 1 / width."""
    return (torch.log(1 + 2 * u.abs() / (1 / width - 1)) / -width).exp()


@surrogate
def piecewise_leaky_relu(u: Tensor, width: float) -> Tensor:
    """1 / (2 width) within the width, 0.01 outside."""
    return (u.abs() <= width).to(u.dtype) * (0.5 / width - 0.01) + 0.01


@surrogate
def s2nn(u: Tensor, width: float) -> Tensor:
    """The sigmoid's derivative below the threshold, 1 / (1 + u) above."""
    rises = torch.sigmoid(u / width)
    return torch.where(u < 0, rises * (1 - rises) / width, 1 / (1 + u.abs()))


@surrogate
def half_line(u: Tensor, width: float) -> Tensor:
    """1 / width above the threshold, 0 below."""
    return (u >= 0).to(u.dtype) / width


@surrogate
def log_tailed_relu(u: Tensor, width: float) -> Tensor:
    """0 below the threshold, then 1, and 1 / u from 1 on."""
    return torch.where(u <= 0, 0.0, 1 / u.clamp(min=1.0))


def counts_like_ilif(theirs: Any) -> bool:
    """True for integer firing whose gradient is 1 wherever a count rises."""
    if type(theirs).__name__ != "MultiLevelSpikeCount":
        return False
    most: int = theirs.max_spike_count
    return most <= MOST_COUNTS and (theirs.grad_min, theirs.grad_max) == (0, most)


# Class of SpikingJelly -> surrogate and width; None for parameters that have no counterpart.
SURROGATES: dict[str, Callable[[Any], tuple[Any, float] | None]] = {
    "ATan": lambda theirs: ("atan", 2 / theirs.alpha),
    "Sigmoid": lambda theirs: ("sigmoid", 1 / theirs.alpha),
    "SoftSign": lambda theirs: ("fast_sigmoid", 1 / theirs.alpha),
    "PiecewiseQuadratic": lambda theirs: ("triangle", 1 / theirs.alpha),
    "Rect": lambda theirs: ("rectangle", 1 / theirs.alpha),
    "PiecewiseExp": lambda theirs: (piecewise_exp, 1 / theirs.alpha),
    "SuperSpike": lambda theirs: (super_spike, 1 / theirs.alpha),
    "NonzeroSignLogAbs": lambda theirs: (nonzero_sign_log_abs, 1 / theirs.alpha),
    "Erf": lambda theirs: (erf, 1 / theirs.alpha),
    "QPseudoSpike": lambda theirs: (q_pseudo_spike, 1 / theirs.alpha),
    "PiecewiseLeakyReLU": lambda theirs: (piecewise_leaky_relu, float(theirs.w)) if theirs.c == 0.01 else None,
    "S2NN": lambda theirs: (s2nn, 1 / theirs.alpha) if theirs.beta == 1 else None,
    "LeakyKReLU": lambda theirs: (half_line, 1 / theirs.k) if theirs.leak == 0 else None,
    "LogTailedReLU": lambda theirs: (log_tailed_relu, 1.0) if theirs.alpha == 0 else None,
}


def surrogate_of(theirs: Any) -> tuple[Any, float] | None:
    """Surrogate and width that a surrogate function of SpikingJelly is; None if it is none."""
    kind = type(theirs)
    make = SURROGATES.get(kind.__name__) if kind.__module__.startswith("spikingjelly.") else None
    return None if make is None else make(theirs)
