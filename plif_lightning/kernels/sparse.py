"""Event-driven convolutions and FC layers of spikes on the CPU; they save the spikes as bits for the backward pass.

`density.Skip` says which products the loops of `cpu_sparse.py` compute, and which the dense library.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.reference import in_real_precision
from plif_lightning.kernels import loops
from plif_lightning.kernels.bits import (
    SparseMaps,
    array_of_bits,
    array_of_rows,
    number_of_spikes,
    pack_spikes,
    pixels_of,
    unpack,
    words_for,
)
from plif_lightning.kernels.dense import conv2d, conv2d_input, conv2d_weight, linear, product
from plif_lightning.kernels.density import Skip
from plif_lightning.kernels.layout import (
    LANES,
    SUM,
    at_a_time,
    channels_innermost,
    conv_output_size,
    empty_images,
    real_type,
    threads_for,
)
from plif_lightning.kernels.ops import outside_compile
from plif_lightning.kernels.parallel import parallel

# Block sizes that keep a block and its lists in the second-level cache: values of a feature map's gradient, outputs
# and rows of an FC layer's output gradient, words of inputs and bytes of outputs of an FC weight, words of inputs of a
# table.
_GRAD_AT_A_TIME = 3 * 2**15
_GRAD_OF_ROWS = (256, 256)
_FC_BLOCK = (8, 2**9)
TABLE_WORDS = 4
_NO_SCALE = np.ones(1, np.float32)  # for tables of floats


# ---- convolution: x [N, C, H, W], C innermost; K x K with padding K // 2


def kernel_of(shape: tuple[int, ...], channels: int) -> int:
    """K of a table of this shape, [K K C, O], for an input of C channels."""
    return math.isqrt(shape[0] // max(1, channels))


def conv_events(
    x: SparseMaps, table: Tensor, dtype: torch.dtype, scale: Tensor | None = None, stride: int = 1
) -> Tensor:
    """Event-driven convolution with padding K // 2.

    Args:
        x: the input [N, C, H, W].
        table: `table_of` the weight.
        dtype: dtype of the output.
        scale: factor of each output [O], for a table of integers.
        stride: 1 or 2.

    Returns:
        [N, O, H', W'], O innermost in memory.
    """
    images, channels, height, width = x.shape
    taps = loops.cpu_sparse.taps_of(kernel_of(table.shape, channels))
    outputs, size = table.shape[1], conv_output_size((height, width), stride)
    out = empty_images(images, outputs, *size, dtype)
    scales, threads = _NO_SCALE if scale is None else scale.numpy(), threads_for(SUM * out.numel())
    rows = array_of_rows(in_vectors(table))
    arrays = *x.arrays(rows), rows, scales, array_of_rows(pixels_of(out))
    parallel(loops.cpu_sparse.conv, images * size[0], threads, *arrays, height, width, stride, taps)
    return out


def table_of(weight: Tensor) -> Tensor:
    """Transpose a weight [O, C, K, K] or [O, K] into the rows that inputs add to the outputs, [K K C or K, O]."""
    rows = weight.detach().permute(2, 3, 1, 0).flatten(0, 2) if weight.dim() == 4 else weight.detach().t()
    return rows.contiguous()


def in_vectors(rows: Tensor) -> Tensor:
    """Pad rows [*, O] with zeros to a multiple of 16 outputs, as the loops of a convolution require."""
    missing = -rows.shape[-1] % LANES
    return F.pad(rows, (0, missing)) if missing else rows


def linear_of_bits(bits: Tensor, inputs: int, table: Tensor, scale: Tensor | None = None) -> Tensor:
    """FC layer [R, O] of spikes as bits [R, K / 64], K = `inputs`; no gradients.

    Args:
        bits: the spikes.
        inputs: K.
        table: `table_of` the weight, [K, O], contiguous: float32 or int8.
        scale: factor of each output [O], for a table of integers.
    """
    assert len(table) == inputs
    dtype = torch.float32 if scale is None else torch.int32
    totals = torch.empty(len(bits), table.shape[1], dtype=dtype, device="cpu")
    blocks, threads = words_for(table.shape[1]), threads_for(len(bits) * inputs * table.shape[1])
    if threads > 1:  # that was if all inputs were spikes
        threads = threads_for(number_of_spikes(bits) * table.shape[1])
    arrays = array_of_bits(bits), table.numpy(), totals.numpy()
    parallel(loops.cpu_sparse.linear_of_table, blocks, threads, *arrays, TABLE_WORDS, False)
    return totals if scale is None else totals * scale


class _ConvInput(NamedTuple):
    """Inputs of the gradient of a convolution's weight, beside the output's gradient.

    Attributes:
        channels: C.
        height, width: of the input's maps.
        kernel, stride: of the convolution.
    """

    channels: int
    height: int
    width: int
    kernel: int
    stride: int

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, stride: int) -> "_ConvInput":
        _, channels, height, width = x.shape
        return cls(channels, height, width, weight.shape[-1], stride)

    def weight(self, outputs: int) -> tuple[int, int, int, int]:
        """Shape of the weight."""
        return outputs, self.channels, self.kernel, self.kernel


def _conv_weight_events(bits: Tensor, grad: Tensor, window: _ConvInput) -> Tensor:
    outputs, (channels, height, width, kernel, stride) = grad.shape[1], window
    if not len(bits):
        return torch.zeros(window.weight(outputs), dtype=torch.float32, device="cpu")
    rows = pixels_of(grad.detach())
    out = torch.empty(kernel**2 * channels, outputs, dtype=torch.float32, device="cpu")
    at_a_time = _GRAD_AT_A_TIME * 4 // grad.element_size()
    arrays = array_of_bits(bits), array_of_rows(rows), out.numpy()
    sizes = height, width, channels, at_a_time, stride, kernel
    parallel(loops.cpu_sparse.conv_weight, channels, threads_for(SUM * rows.numel()), *arrays, *sizes)
    return out.view(kernel, kernel, channels, outputs).permute(3, 2, 0, 1)


def _conv_weight_of_bits(bits: Tensor, grad: Tensor, window: _ConvInput, event_driven: bool) -> Tensor:
    """Gradient of the convolution's weight [O, C, K, K], in float32 at least, from its input as bits."""
    if event_driven:
        return _conv_weight_events(bits, grad, window).contiguous()
    channels, height, width = window.channels, window.height, window.width

    def spikes(first: int, last: int) -> Tensor:
        pixels = bits[first * height * width : last * height * width]
        return unpack(pixels, channels, grad.dtype).view(-1, height, width, channels).permute(0, 3, 1, 2)

    return _conv_weight_dense(grad, window, spikes)


def _conv_weight_dense(grad: Tensor, window: _ConvInput, spikes: Callable[[int, int], Tensor]) -> Tensor:
    """Dense gradient of the weight [O, C, K, K], in float32 at least, from a few images at a time.

    `spikes(first, last)` returns the spikes of images first .. last - 1, [*, C, H, W] in the dtype of `grad`.
    """
    n, shape = len(grad), window.weight(grad.shape[1])
    out = torch.zeros(shape, dtype=real_type(grad), device=grad.device)
    together = max(1, at_a_time(grad.device) // (window.channels * window.height * window.width))
    for first in range(0, n, together):
        last, sizes = min(first + together, n), {"stride": window.stride, "padding": window.kernel // 2}
        out += conv2d_weight(spikes(first, last), shape, grad[first:last].detach(), **sizes)
    return out


class _ConvOfSpikes(torch.autograd.Function):
    """Convolution with padding K // 2; saves its input as a bit per value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bits: Tensor, skip: Skip, stride: int) -> Tensor:
        ctx.save_for_backward(bits, weight)
        ctx.settings = _ConvInput.of(x, weight, stride), skip
        narrow = weight.to(x.dtype)
        if skip.output:
            n, channels, height, width = x.shape
            maps = SparseMaps(bits, None, (n, channels, height, width))
            return conv_events(maps, table_of(narrow), x.dtype, stride=stride)
        y = conv2d(x, narrow, stride=stride, padding=weight.shape[-1] // 2)
        y = y.contiguous(memory_format=torch.channels_last)
        return y.clone() if y._is_view() else y  # a small map's, by patches: see `layout.empty_map`

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bits, weight = ctx.saved_tensors
        window, skip = ctx.settings
        grad_x = _conv_of_gradient(grad, weight, window) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = _conv_weight_of_bits(bits, channels_innermost(grad), window, skip.gradient).to(weight.dtype)
        return grad_x, grad_weight, None, None, None


class _ConvOfBytes(torch.autograd.Function):
    """Convolution with padding K // 2 on other devices; saves its input as a byte per value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x.to(torch.uint8), weight)
        ctx.window = _ConvInput.of(x, weight, stride)
        return conv2d(x, weight.to(x.dtype), stride=stride, padding=weight.shape[-1] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        spikes, weight = ctx.saved_tensors
        grad_x = _conv_of_gradient(grad, weight, ctx.window) if ctx.needs_input_grad[0] else None
        some = lambda first, last: spikes[first:last].to(grad.dtype)  # noqa: E731
        return grad_x, _conv_weight_dense(grad, ctx.window, some).to(weight.dtype), None


def _conv_of_gradient(grad: Tensor, weight: Tensor, window: _ConvInput) -> Tensor:
    """Gradient of the input of a convolution with padding K // 2: a convolution with the mirrored weight, at stride
    1."""
    weight, padding = weight.to(grad.dtype), window.kernel // 2
    if window.stride == 1:
        return conv2d(grad, weight.flip(2, 3).transpose(0, 1), padding=padding)
    shape = len(grad), window.channels, window.height, window.width
    return conv2d_input(shape, weight, grad, stride=window.stride, padding=padding)


# ---- FC layer: x [R, K], weight [O, K]
#
# A spike adds a column of the weight, which is stored by rows, so the loops load it in blocks and transpose each in the
# cache. A weight with strides (1, O) would avoid that, but PyTorch's fused optimisers copy a non-contiguous gradient
# (45 ms per step for FC1 of Fashion-MNIST, torch 2.13), and give wrong results if strides differ.


def linear_of_events(bits: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
    """FC layer [R, O], float32, of spikes as bits [R, K / 64], by the weight [O, K]; no gradients.

    Its sums are added to those in `added`, if there are any.
    """
    weight = weight.detach().contiguous()
    out = torch.empty(len(bits), len(weight), dtype=torch.float32, device="cpu") if added is None else added
    blocks, (words, of_outputs) = words_for(len(weight)), _FC_BLOCK
    arrays = array_of_bits(bits), array_of_rows(weight), out.numpy()
    outputs = of_outputs // weight.element_size()
    threads = threads_for(weight.numel())
    parallel(loops.cpu_sparse.linear, blocks, threads, *arrays, words, outputs, added is not None)
    return out


def _times(x: Tensor, value: float, dtype: torch.dtype) -> Tensor:
    """x times `value` rounded to `dtype`; x itself where spikes are 1, as they are without dropout."""
    return x if value == 1 else x * torch.tensor(value, dtype=dtype, device="cpu").item()


def linear_weight_of_bits(bits: Tensor, grad: Tensor, inputs: int) -> Tensor:
    """Gradient of an FC layer's weight [O, K], in float32, from its spikes as bits [R, K / 64] and `grad` [R, O]."""
    if not len(bits):
        return torch.zeros(grad.shape[1], inputs, dtype=torch.float32, device="cpu")
    out = torch.empty(grad.shape[1], inputs, dtype=torch.float32, device="cpu")
    arrays = array_of_bits(bits), array_of_rows(grad), out.numpy()
    # A wide or long gradient is read once for four words of inputs; a small one stays in the cache meanwhile, where
    # one word at a time is up to 1.8 times as fast (Intel Xeon with AMX).
    words = 4 if grad.shape[1] >= 512 or grad.numel() >= 2**19 else 1
    parallel(
        loops.cpu_sparse.linear_weight, words_for(inputs), threads_for(out.numel()), *arrays, *_GRAD_OF_ROWS, words
    )
    return out


class _LinearOfSpikes(torch.autograd.Function):
    """FC layer without bias; saves its input as a bit per value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bits: Tensor, value: float, skip: Skip) -> Tensor:
        narrow = weight.to(x.dtype)
        # The gradient of x needs the narrow weight again; it is half as large, and takes long to make.
        ctx.save_for_backward(bits, weight, None if narrow is weight else narrow)
        ctx.settings = value, skip
        if skip.output:
            return _times(linear_of_events(bits, narrow), value, x.dtype).to(x.dtype)
        return product(x.detach(), narrow.detach().t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bits, weight, narrow = ctx.saved_tensors
        value, skip = ctx.settings
        used = weight if narrow is None else narrow
        grad_x = product(grad, used.to(grad.dtype)) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            # The output's gradient has few rows: scaling it is cheaper than scaling the weight's gradient.
            scaled, inputs = _times(grad, value, grad.dtype).contiguous(), weight.shape[1]
            if skip.gradient:
                grad_weight = linear_weight_of_bits(bits, scaled, inputs)
            else:
                grad_weight = product(scaled.t(), unpack(bits, inputs, grad.dtype))
            grad_weight = grad_weight.to(weight.dtype)
        return grad_x, grad_weight, None, None, None


@outside_compile
def conv_of_spikes(x: Tensor, weight: Tensor, skip: Skip, stride: int = 1) -> Tensor:
    """`conv2d(x, weight, stride=stride, padding=K // 2)` of spikes.

    Saves a bit per input for the backward pass (a byte on a GPU). On a CPU an x that has other values than zeros and
    ones is convolved by PyTorch; elsewhere it ends the process, as a GPU reports errors later.

    Args:
        x: spikes [N, C, H, W], not float16.
        weight: [O, C, K, K], K = 1, 3 or 5, finite (conv2d turns an infinite weight into NaN at silent inputs too);
            cast to the dtype of x, its gradient is in the weight's dtype.
        skip: products that skip silent inputs.
        stride: 1 or 2.

    Returns:
        [N, O, H', W'], equal to conv2d's, in float32 bit-identical if PyTorch adds in the same order. Gradients equal
        conv2d's up to the order of sums.
    """
    with in_real_precision(x.device):
        if x.device.type != "cpu":
            # Not by a condition, for which the CPU would wait.
            torch._assert_async(((x == 0) | (x == 1)).all(), "a layer of spikes has other inputs than 0 and 1")
            return _ConvOfBytes.apply(x, weight, stride)
        bits = pack_spikes(pixels_of(x))
        if not bits.only_spikes:
            return conv2d(x, weight.to(x.dtype), stride=stride, padding=weight.shape[-1] // 2)
        return _ConvOfSpikes.apply(x, weight, bits.words, skip, stride)


@outside_compile
def linear_of_spikes(x: Tensor, weight: Tensor, skip: Skip, value: float = 1.0) -> Tensor:
    """`linear(x, weight)` of spikes; saves a bit per input for the backward pass.

    Args:
        x: zeros and `value`s [*, N, K], on the CPU, not float16; an x with other values is multiplied by PyTorch.
        weight: [O, K], as in `conv_of_spikes`.
        skip: products that skip silent inputs.
        value: value of a spike: 1 / (1 - p) after dropout.
    """
    with in_real_precision(x.device):
        rows = x.flatten(0, -2)
        bits = pack_spikes(rows, value)
        if not bits.only_spikes:
            return linear(x, weight.to(x.dtype), None)
        return _LinearOfSpikes.apply(rows, weight, bits.words, value, skip).unflatten(0, x.shape[:-1])
