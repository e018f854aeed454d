"""Weights as integers, and layers of spikes that compute with them on the dense library's 8-bit instructions.

Zeros and ones times integers add up exactly, so these layers give what those of `rows` give, to the
bit: which is taken is a matter of speed alone. oneDNN has VNNI's and AMX's instructions; PyTorch reaches them through
the operators that its own compiler uses for quantised networks.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Largest integer of a weight. 16 bits fall into two parts of 8 with signs, of which the upper one ends at 127.
LARGEST = {"int16": 2**15 - 2**7 - 1, "int8": 2**7 - 1, "int4": 2**3 - 1}
# A float32 holds every sum of so many 8-bit weights exactly, so that two parts can be put together.
_MOST_INPUTS = 2**24 // 2**7


def quantised(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """A weight [O, *] as integers from -largest to largest, and the scale of each output [O].

    The input is spikes, which are exact, so nothing but the weight is rounded, and no data is needed to choose scales.
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


class Packed(nn.Module):
    """A layer of spikes with a weight [O, *] of integers: int8, or int16 up to 127 * 256 + 127.

    Args:
        integers: the weight.
        scale: of each output [O].
        bias: [O], or None.
        like: the shape of an input as it will come; others work, too, and may be slower. None: unknown.
    """

    scale: Tensor
    bias: Tensor | None

    def __init__(self, integers: Tensor, scale: Tensor, bias: Tensor | None, like: torch.Size | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        parts = _parts(integers)
        self._ones = None if len(parts) == 1 else torch.ones_like(scale)
        self.zero_points = torch.zeros(len(scale), dtype=torch.int32)
        self.like = None if like is None else list(like)
        self.packed = [self._pack(part) for part in parts]

    @property
    def scale_of_part(self) -> Tensor:
        """What the operator scales with: one part by the scale, two are put together first."""
        return self.scale if self._ones is None else self._ones

    def _pack(self, part: Tensor) -> Tensor:
        raise NotImplementedError

    def _unpack(self, packed: Tensor) -> Tensor:
        return packed.to_dense()

    def _sum(self, spikes: Tensor, packed: Tensor) -> Tensor:
        raise NotImplementedError

    def sums(self, x: Tensor) -> Tensor:
        """Without the bias."""
        spikes = x.to(torch.uint8)
        first, *second = (self._sum(spikes, packed) for packed in self.packed)
        return first.add_(second[0], alpha=256).mul_(self._of_outputs(self.scale)) if second else first

    def forward(self, x: Tensor) -> Tensor:
        y = self.sums(x)
        return y if self.bias is None else y.add_(self._of_outputs(self.bias))

    def _of_outputs(self, values: Tensor) -> Tensor:
        return values

    # What is packed can be neither copied nor written.
    def get_extra_state(self) -> list[Tensor]:
        return [self._unpack(packed) for packed in self.packed]

    def set_extra_state(self, state: list[Tensor]) -> None:
        self.packed = [self._pack(part) for part in state]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": self.get_extra_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.set_extra_state(self.packed)


class PackedConv(Packed):
    """3x3 convolution of spikes [N, C, H, W] with padding 1."""

    _geometry: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1], 1)  # stride, padding, dilation, groups

    def _pack(self, part: Tensor) -> Tensor:
        return torch.ops.onednn.qconv_prepack(part, self.scale_of_part, 1.0, 0, *self._geometry, self.like)

    def _sum(self, spikes: Tensor, packed: Tensor) -> Tensor:
        return torch.ops.onednn.qconv2d_pointwise(
            spikes, 1.0, 0, packed, self.scale_of_part, self.zero_points, None, *self._geometry,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip

    def _of_outputs(self, values: Tensor) -> Tensor:
        return values[:, None, None]


class PackedLinear(Packed):
    """FC layer of spikes [*, K]."""

    def _pack(self, part: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(part, self.like)

    def _unpack(self, packed: Tensor) -> Tensor:
        return packed.to_dense().t().contiguous()

    def _sum(self, spikes: Tensor, packed: Tensor) -> Tensor:
        y = torch.ops.onednn.qlinear_pointwise(
            spikes.flatten(0, -2), 1.0, 0, packed, self.scale_of_part, self.zero_points, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return y.unflatten(0, spikes.shape[:-1])  # given no rows, the operator drops the leading sizes


def can_be_packed(integers: Tensor) -> bool:
    """Whether `PackedConv` and `PackedLinear` compute exactly with such a weight in this installation of PyTorch."""
    return integers[0].numel() <= _MOST_INPUTS and _works()


@cache
def _works() -> bool:
    # PyTorch promises nothing of its own operators: they must be there, take these arguments, and saturate nowhere.
    integers = torch.full((2, 64, 3, 3), 127, dtype=torch.int8)
    integers[1] *= -1
    weight, scale, x = (
        integers.float(),
        torch.ones(2, dtype=torch.float32),
        torch.ones(1, 64, 3, 3, dtype=torch.float32),
    )
    rows = x.flatten(1)
    with torch.autocast("cpu", enabled=False):
        try:
            maps = PackedConv(integers, scale, None, x.shape)(x)
            sums = PackedLinear(integers.flatten(1), scale, None, None)(rows)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False
        exact = F.conv2d(x, weight, padding=1), F.linear(rows, weight.flatten(1))
    return torch.equal(maps, exact[0]) and torch.equal(sums, exact[1])
