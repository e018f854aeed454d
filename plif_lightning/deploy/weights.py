"""A layer's weight in the forms that a deployed network chooses from; each gives the sums of a layer, without its bias.

A convolution over [N, C, H, W] has a padding of half its kernel; an FC layer takes rows [R, K].
"""

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from plif_lightning.kernels import conv_of_table, linear_of_table, table_of

# Largest integer of a weight. 16 bits fall into two parts of 8 with signs, of which the upper one ends at 127.
LARGEST = {"int16": 2**15 - 2**7 - 1, "int8": 2**7 - 1, "int4": 2**3 - 1}
# A float32 holds every sum of so many 8-bit weights exactly, so that two parts can be put together.
_MOST_INPUTS = 2**24 // 2**7


class Weights(Protocol):
    """A form of a weight.

    Attributes:
        takes: type of its input.
    """

    takes: torch.dtype

    def sums(self, x: Tensor) -> Tensor:
        """The layer's output in float32, without its bias."""


class Dense:
    """The library's convolution or FC layer with a weight [O, C, K, K] or [O, K]."""

    takes = torch.float32

    def __init__(self, weight: Tensor, stride: int = 1) -> None:
        self.weight, self._stride = weight.detach(), stride

    def sums(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return F.linear(x, self.weight)
        return F.conv2d(x, self.weight, stride=self._stride, padding=self.weight.shape[-1] // 2)


class Rows:
    """Event-driven: the weight as rows, of which non-zero inputs choose some to be added up.

    Args:
        weight: [O, C, K, K] or [O, K], float32 or integers.
        scale: of each output [O], for integers.
        binary: the input is spikes; else mostly zeros, as frames of events are (a convolution only).
        stride: of a convolution.
    """

    takes = torch.float32

    def __init__(self, weight: Tensor, scale: Tensor | None = None, *, binary: bool = True, stride: int = 1) -> None:
        self.table, self.scale, self.binary, self.stride = table_of(weight), scale, binary, stride
        self._conv = weight.dim() == 4

    def sums(self, x: Tensor) -> Tensor:
        if self._conv:
            return conv_of_table(x, self.table, self.scale, binary=self.binary, stride=self.stride)
        return linear_of_table(x, self.table, self.scale)


def quantised(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """A weight [O, *] as integers from -largest to largest, and the scale of each output [O].

    The input is spikes, which are exact, so only the weight is rounded, and no data is needed to choose scales.
    """
    scale = weight.detach().flatten(1).abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / largest
    integers = (weight.detach() / scale.view(-1, *[1] * (weight.dim() - 1))).round()
    return integers.to(torch.int8 if largest < 2**7 else torch.int16), scale.float()


def _parts(integers: Tensor) -> list[Tensor]:
    """Integers as int8: they are parts[0] + 256 parts[1]."""
    if integers.dtype == torch.int8:
        return [integers]
    high = (integers.int() + 128) >> 8
    return [(integers - 256 * high).to(torch.int8), high.to(torch.int8)]


class Packed:
    """Spikes times integers on oneDNN's 8-bit instructions (VNNI, AMX), exact, so equal to `Rows` to the bit.

    PyTorch reaches them through the operators that its own compiler uses for quantised networks.

    Args:
        integers: the weight [O, C, K, K] or [O, K]: int8, or int16 up to 127 * 256 + 127.
        scale: of each output [O].
        like: the shape of an input as it will come; others work, too, and may be slower. None: unknown.
        stride: of a convolution.
    """

    takes = torch.uint8

    def __init__(self, integers: Tensor, scale: Tensor, like: torch.Size | None = None, stride: int = 1) -> None:
        self.scale = scale
        half = integers.shape[-1] // 2
        self._geometry: tuple[Any, ...] = ([stride] * 2, [half] * 2, [1, 1], 1)  # stride, padding, dilation, groups
        self._conv = integers.dim() == 4
        self._like = None if like is None else list(like)
        self._zero_points = torch.zeros(len(scale), dtype=torch.int32)
        self._pack(_parts(integers))

    def _pack(self, parts: list[Tensor]) -> None:
        # One part is scaled by the operator, two are put together first.
        self._scale_of_part = self.scale if len(parts) == 1 else torch.ones_like(self.scale)
        self._parts = parts
        if self._conv:
            pack = torch.ops.onednn.qconv_prepack
            self._packed = [pack(p, self._scale_of_part, 1.0, 0, *self._geometry, self._like) for p in parts]
        else:
            self._packed = [torch.ops.onednn.qlinear_prepack(p, self._like) for p in parts]

    # Packed weights cannot be copied or pickled: they are packed again.
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_packed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._pack(self._parts)

    def _sum(self, spikes: Tensor, packed: Tensor) -> Tensor:
        given = spikes, 1.0, 0, packed, self._scale_of_part, self._zero_points, None
        after: tuple[Any, ...] = 1.0, 0, torch.float32, "none", [], ""
        if self._conv:
            return torch.ops.onednn.qconv2d_pointwise(*given, *self._geometry, *after)
        return torch.ops.onednn.qlinear_pointwise(*given, *after)

    def sums(self, x: Tensor) -> Tensor:
        spikes = x.to(torch.uint8)
        first, *second = (self._sum(spikes, packed) for packed in self._packed)
        if not second:
            return first
        return first.add_(second[0], alpha=256).mul_(self.scale[:, None, None] if self._conv else self.scale)


def can_be_packed(integers: Tensor) -> bool:
    """True if `Packed` computes exactly with such a weight in this installation of PyTorch."""
    return integers[0].numel() <= _MOST_INPUTS and _works()


@cache
def _works() -> bool:
    # PyTorch promises nothing of these operators: they must be there, take these arguments, and saturate nowhere.
    integers = torch.full((2, 64, 3, 3), 127, dtype=torch.int8)
    integers[1] *= -1
    scale, x = torch.ones(2, dtype=torch.float32), torch.ones(1, 64, 3, 3, dtype=torch.float32)
    weight, rows = integers.float(), x.flatten(1)
    with torch.autocast("cpu", enabled=False):
        try:
            maps = Packed(integers, scale, x.shape).sums(x)
            sums = Packed(integers.flatten(1), scale).sums(rows)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False
        exact = F.conv2d(x, weight, padding=1), F.linear(rows, weight.flatten(1))
    return torch.equal(maps, exact[0]) and torch.equal(sums, exact[1])
