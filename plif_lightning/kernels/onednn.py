"""Convolutions of oneDNN on a CPU without what it gets wrong, each with the processors and shapes where it was seen.

All were seen with torch 2.13, on processors for which oneDNN has bfloat16; others (Zen 3) show none of them. The slow
tests in `tests/kernels/test_dense.py` compare a grid of convolutions with exact ones.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

Sides = tuple[int, int]


def errs_in_bfloat16(shape: Sequence[int], dilation: int | Sequence[int]) -> bool:
    """True if gradients of a weight [O, C, K, K] of a convolution in bfloat16 may be garbage.

    They are (NaN, 1e18, or finite and of another direction) for dilated convolutions with C innermost, stride 1 and
    outputs 29 wide or more: ungrouped from 17 channels on, grouped from 1, if the channels of a group are no multiple
    of 16. Seen on an AMD EPYC (Zen 5, family 26). Float32 takes 0.5 to 1.4 times as long as bfloat16 there.
    """
    return _pair(dilation) != (1, 1) and shape[1] % 16 != 0


def without_stride(x: Tensor, shape: Sequence[int], settings: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Input and settings of a 1x1 convolution that skips no pixels: oneDNN's gradient at a stride can be wrong.

    With few channels and C innermost it writes beyond its memory (oneDNN issue 6035).
    """
    stride, padding = settings.get("stride", 1), settings.get("padding", 0)
    down, across = _pair(stride)
    if (down, across) == (1, 1) or tuple(shape[2:]) != (1, 1) or padding not in (0, (0, 0), "same", "valid"):
        return x, settings
    return x[:, :, ::down, ::across], settings | {"stride": 1}


class _Taps(NamedTuple):
    """The taps of a kernel that see any input, in a dimension.

    Attributes:
        idle: taps at the beginning and at the end that see padding only, as all but the middle tap of 3 on a map
            of a single pixel.
        padding: zeros on either side of the input, for the other taps.
        stride: 1 for a single output, to which it makes no difference.
        around: further ones at the beginning and at the end; below zero: inputs that the other taps do not see.
    """

    idle: Sides
    padding: int
    stride: int
    around: Sides = (0, 0)

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, padding: Sides, dilation: int) -> "_Taps":
        before, after = padding
        outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
        first = max(0, -(-(before - (outputs - 1) * stride) // dilation))
        last = max(0, kernel - -(-(size + before) // dilation))
        if first + last >= kernel:  # every output sees padding only
            first = last = 0
        stride = 1 if outputs == 1 else stride
        before -= first * dilation
        after = (outputs - 1) * stride + dilation * (kernel - first - last - 1) + 1 - size - before
        # On a map narrower than the stride a tap in the middle may step over it: zeros in memory are right for oneDNN.
        steps_over = size < stride and outputs > 1
        if 0 <= before - after < stride and before >= 0 and not steps_over:
            return cls((first, last), before, stride)
        return cls((first, last), 0, stride, (before, after))


class Window(NamedTuple):
    """A convolution on a CPU without what oneDNN gets wrong in bfloat16.

    The weight's gradient of taps that see padding only: it takes them from memory beyond the map (1e4 to 1e36, inf,
    NaN, or finite and wrong by 90 %). On AMD EPYC (Zen 4): on maps narrower than the stride (1x1 and 14x1 at 2, 9x2
    at 3); from 128 input channels on with kernels of height 5 on maps of height 1, and of height 7 on heights 1 and 2.

    The output at a stride, where it is one pixel wide and higher (1e20 to 1e39, NaN, or wrong by 80 %). On an Intel
    Xeon with AMX: from 128 channels to 128, kernels of width 2 and more.

    Attributes:
        idle: taps to leave out on the left, right, top and bottom.
        around: see `_Taps`; on the left, right, top and bottom.
        settings: stride, padding, dilation and groups.
    """

    idle: list[int]
    around: list[int]
    settings: tuple[Sides, Sides, Sides, int]

    @classmethod
    def of(
        cls,
        x: Tensor,
        shape: Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> "Window":
        """That of a kernel of a shape [O, C, K, K] over x [N, C, H, W]."""
        strides, dilations = _pair(stride), _pair(dilation)
        if isinstance(padding, str):
            total = [0 if padding == "valid" else d * (k - 1) for k, d in zip(shape[2:], dilations, strict=True)]
            paddings = [(zeros // 2, zeros - zeros // 2) for zeros in total]
        else:
            paddings = [(zeros, zeros) for zeros in _pair(padding)]
        sizes = zip(x.shape[2:], shape[2:], strides, paddings, dilations, strict=True)
        rows, columns = (_Taps.of(*side) for side in sizes)
        padding = rows.padding, columns.padding
        settings = (rows.stride, columns.stride), padding, dilations, groups
        return cls([*columns.idle, *rows.idle], [*columns.around, *rows.around], settings)

    def padded_input(self, x: Tensor) -> Tensor:
        return F.pad(x, self.around) if any(self.around) else x
