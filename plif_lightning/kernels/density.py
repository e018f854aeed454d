"""Event-driven or dense: every threshold, and the rule that reads them from a sample of a layer's input."""

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plif_lightning.kernels.bits import estimate_density
from plif_lightning.kernels.dense import WIDENS_BFLOAT16, takes_patches

# Layers of spikes, of delayed spikes, and a block of convolution, neurons and pool on frames of events.
OpName = Literal["conv", "linear", "delayed", "events"]

# Types of the event-driven loops; float64 and float16 are always dense.
TYPES = (torch.float32, torch.bfloat16)
# Densities, shares of non-zero inputs, up to which an operator, and the gradient of its weight, skip silent inputs: in
# float32 without and with AMX, in bfloat16 without and with it. (A processor with AMX is an Intel, whose library of
# dense products is faster in float32, too.) Measured by benchmarks/sparse.py and structures.py.
BREAK_EVEN: dict[OpName, tuple[tuple[float, float], ...]] = {
    "conv": ((0.3, 0.35), (0.2, 0.3), (0.12, 0.15), (0.0, 0.05)),
    "linear": ((0.3, 0.3), (0.25, 0.15), (0.12, 0.12), (0.0, 0.0)),
    # Both products or none. From 0.2 on a step takes as long as the dense one (256 to 2,048 inputs, one thread, Zen 4);
    # with AMX not measured.
    "delayed": ((0.2, 0.2), (0.1, 0.1), (0.0, 0.0), (0.0, 0.0)),
    "events": ((0.3, 0.2), (0.3, 0.2), (0.2, 0.1), (0.2, 0.1)),
}
# Narrower layers, in inputs or outputs, are always dense; with AMX smaller maps are, too.
LEAST_WIDTH: dict[OpName, int] = {"conv": 64, "linear": 64, "delayed": 64, "events": 0}
# FC layers of fewer inputs or outputs than this are event-driven at low densities alone, in float32: from 64 on, a step
# takes a third to a seventh of the dense time at 2 % (256 to 2,048 inputs, one thread, Zen 4).
_NARROW, _NARROW_DENSITY = 512, 0.05
LEAST_SIDE = 8
# Multiplications of the dense form below which even sampling the density costs too much.
_WORTH_LOOKING = 2**24
# Recurrent products of the next steps gather the rows of what spiked up to this share of spikes: from 0.3 on, a dense
# product of 64 samples and 256 neurons is as fast (one thread, Zen 4).
RECURRENT = 0.25
# Density up to which moments of patches are computed from the non-zero values only.
FEW_EVENTS = 0.1
# Up to this many input channels the backward pass recomputes the convolution instead of storing its output: events
# have 2.
FEW_CHANNELS = 4
# Spikes of at least this many values are stored as bits (CPU) or bytes (GPU) for the backward pass; below it, packing
# and unpacking cost more than they save.
MANY_SPIKES = 2**23


class Skip(NamedTuple):
    """Which products of a layer skip silent inputs.

    Attributes:
        output: the layer's output.
        gradient: the gradient of its weight; as the output where there is none.
        density: share of non-zero inputs in a sample; None if none was taken.
        reason: why the output does not, in words.
    """

    output: bool
    gradient: bool
    density: float | None = None
    reason: str = ""

    @property
    def any(self) -> bool:
        return self.output or self.gradient


NEVER, ALWAYS = Skip(False, False), Skip(True, True)


@functools.cache
def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def break_even(name: OpName, weight: Tensor, dtype: torch.dtype, side: int) -> tuple[float, float]:
    """Densities up to which an operator, and the gradient of its weight, are faster event-driven.

    Args:
        name: the operator.
        weight: [O, C, K, K] or [O, K].
        dtype: of the products, a type of TYPES.
        side: shorter side of the maps.
    """
    if min(weight.shape[:2]) < LEAST_WIDTH[name] or (name == "conv" and side < LEAST_SIDE and _has_amx()):
        return 0.0, 0.0
    by_bfloat16 = dtype == torch.bfloat16 and not WIDENS_BFLOAT16
    if name == "linear" and min(weight.shape) < _NARROW:
        return (0.0, 0.0) if dtype == torch.bfloat16 else (_NARROW_DENSITY, _NARROW_DENSITY)
    return BREAK_EVEN[name][2 * by_bfloat16 + _has_amx()]


def skips(name: OpName, x: Tensor, weight: Tensor, value: float, stride: int, everything: bool) -> Skip:
    """Which products of a layer skip silent inputs, see `Backend.skips`.

    Args:
        name: the operator; x, weight, value, stride likewise.
        everything: skip whatever the density, if the sample is spikes.
    """
    conv = weight.dim() == 4
    rows = x.permute(0, 2, 3, 1).flatten(0, 2) if conv else x.flatten(0, -2)
    multiplications = len(rows) / stride**2 * weight.numel()
    if not rows.numel() or rows.shape[1] != weight.shape[1]:
        return NEVER
    if not everything and multiplications < _WORTH_LOOKING:
        return NEVER._replace(reason="too few products to look for silent inputs")
    if not everything and conv and takes_patches(x, weight, stride):
        return NEVER._replace(reason="few pixels: a product of patches")
    density, only_spikes = estimate_density(rows, value)
    if name != "events" and not only_spikes:
        return NEVER._replace(density=density, reason="its input has other values than 0 and 1")
    if everything:
        return ALWAYS._replace(density=density)
    output, gradient = break_even(name, weight, x.dtype, min(x.shape[2:]) if conv else 1)
    trained = torch.is_grad_enabled() and weight.requires_grad
    of_output, of_gradient = (density <= limit and limit > 0 for limit in (output, gradient))
    reason = f"event-driven up to {100 * output:.2g} %" if output else "narrow, small or AMX: dense at any density"
    return Skip(of_output, of_gradient if trained else of_output, density, "" if of_output else reason)
