"""Event-driven convolutions and FC layers of spikes on the CPU; they save the spikes as bits for the backward pass.

The operators count the spikes of their input and let `policy.choose` decide between the event-driven loops of
`cpu_sparse.py` and the dense library.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.reference import in_own_precision
from plif_lightning.errors import UserError
from plif_lightning.kernels.bits import (
    SparseMaps,
    array_of_bits,
    array_of_rows,
    number_of_spikes,
    pack,
    pixels_of,
    unpack,
    words_for,
)
from plif_lightning.kernels.dense import conv2d, conv2d_input, conv2d_weight, linear, product
from plif_lightning.kernels.layout import (
    KERNELS,
    LANES,
    SUM,
    at_a_time,
    channels_innermost,
    convolved,
    real_type,
    threads_for,
)
from plif_lightning.kernels.operators import operator
from plif_lightning.kernels.parallel import parallel
from plif_lightning.kernels.policy import Op, Sparse, Timed, candidates_of, choose
from plif_lightning.kernels.small_maps import SMALL, input_of_small_maps

# Block sizes that keep a block and its lists in the second-level cache: values of a feature map's gradient, bytes of an
# FC layer's output gradient, words of inputs and bytes of outputs of an FC weight, words of inputs of a table.
_GRAD_AT_A_TIME = 3 * 2**15
_GRAD_OF_ROWS = 2**18
_FC_BLOCK = (8, 2**9)
_TABLE_WORDS = 4
_NO_SCALE = np.ones(1, np.float32)  # for tables of floats


def require_fit(x: Tensor, weight: Tensor) -> None:
    """Refuse shapes that do not match: the loops would read beyond the weight's end.

    Raises:
        UserError: x [N, C, H, W] or [*, K] does not fit the weight [O, C, K, K], K = 1, 3 or 5, or [O, K].
    """
    conv = weight.dim() == 4
    inputs = x.shape[1] if conv else x.shape[-1]
    square = weight.shape[2:] in [(kernel, kernel) for kernel in KERNELS]
    if inputs != weight.shape[1] or (conv and (x.dim() != 4 or not square)):
        raise UserError(f"x {list(x.shape)} does not fit a weight of shape {list(weight.shape)}.")


def _density(bits: Tensor, inputs: int) -> float:
    """Density of spikes given as bits [R, inputs / 64]."""
    return number_of_spikes(bits) / max(1, len(bits) * inputs)


# ---- convolution: x [N, C, H, W], C innermost; K x K with padding K // 2


def kernel_of(shape: tuple[int, ...], channels: int) -> int:
    """K of a table of this shape, [K K C, O], for an input of C channels.

    Raises:
        UserError: the table is of another number of channels.
    """
    kernel = math.isqrt(shape[0] // max(1, channels))
    if kernel not in KERNELS or kernel**2 * channels != shape[0]:
        raise UserError(f"x of {channels} channels does not fit a table of shape {list(shape)}.")
    return kernel


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
    from plif_lightning.kernels import cpu_sparse

    images, channels, height, width = x.shape
    taps = cpu_sparse.taps_of(kernel_of(table.shape, channels))
    outputs, size = table.shape[1], convolved((height, width), stride)
    out = torch.empty(images * math.prod(size), outputs, dtype=dtype, device="cpu")
    scales, threads = _NO_SCALE if scale is None else scale.numpy(), threads_for(SUM * out.numel())
    rows = array_of_rows(in_vectors(table))
    arrays = *x.arrays(rows), rows, scales, array_of_rows(out)
    parallel(cpu_sparse.conv, images * size[0], threads, *arrays, height, width, stride, taps)
    return out.view(images, *size, outputs).permute(0, 3, 1, 2)


def table_of(weight: Tensor) -> Tensor:
    """Transpose a weight [O, C, K, K] or [O, K] into the rows that inputs add to the outputs, [K K C or K, O]."""
    rows = weight.detach().permute(2, 3, 1, 0).flatten(0, 2) if weight.dim() == 4 else weight.detach().t()
    return rows.contiguous()


def in_vectors(rows: Tensor) -> Tensor:
    """Pad rows [*, O] with zeros to a multiple of 16 outputs, as the loops of a convolution require."""
    missing = -rows.shape[-1] % LANES
    return F.pad(rows, (0, missing)) if missing else rows


def conv_of_table(
    x: Tensor, table: Tensor, scale: Tensor | None = None, *, binary: bool = True, stride: int = 1
) -> Tensor:
    """Event-driven convolution with padding K // 2 from a weight stored as `table_of` it; no gradients.

    Args:
        x: [N, C, H, W], float32 on the CPU.
        table: [K K C, O], float32, or int8 or int16 if x is spikes.
        scale: factor of each output [O], float32; for a table of integers.
        binary: x is spikes.
        stride: 1 or 2.

    Returns:
        [N, O, H', W'], float32, O innermost in memory.
    """
    return conv_events(SparseMaps.of(x, binary), table.contiguous(), torch.float32, scale, stride)


def linear_of_table(x: Tensor, table: Tensor, scale: Tensor | None = None) -> Tensor:
    """FC layer [*, O] of spikes x [*, K] from a weight stored as `table_of` it, [K, O]; see `conv_of_table`."""
    return linear_of_bits(pack(x.flatten(0, -2))[0], x.shape[-1], table, scale).unflatten(0, x.shape[:-1])


def linear_of_bits(bits: Tensor, inputs: int, table: Tensor, scale: Tensor | None = None) -> Tensor:
    """`linear_of_table` [R, O] for spikes as bits [R, K / 64] of K = `inputs` inputs."""
    from plif_lightning.kernels import cpu_sparse

    if len(table) != inputs:
        raise UserError(f"x of {inputs} inputs does not fit a table of shape {list(table.shape)}.")
    table = table.contiguous()
    totals = torch.empty(len(bits), table.shape[1], dtype=torch.float32 if scale is None else torch.int32, device="cpu")
    blocks, threads = words_for(table.shape[1]), threads_for(len(bits) * inputs * table.shape[1])
    if threads > 1:  # that was if all inputs were spikes
        threads = threads_for(number_of_spikes(bits) * table.shape[1])
    arrays = array_of_bits(bits), table.numpy(), totals.numpy()
    parallel(cpu_sparse.linear_of_table, blocks, threads, *arrays, _TABLE_WORDS)
    return totals if scale is None else totals * scale


@operator()
def _conv_of_spikes(x: Tensor, weight: Tensor, stride: int, sparse: str) -> tuple[Tensor, Tensor]:
    """Convolution with padding K // 2, [N, O, H', W'] with O innermost, and the spikes as bits [N H W, C / 64]."""
    require_fit(x, weight)
    bits, spikes = pack(pixels_of(x))
    n, channels, height, width = x.shape
    if choose(Op.of("conv", x, weight, stride), spikes / max(1, x.numel()), sparse):
        maps = SparseMaps(bits, None, (n, channels, height, width))
        return conv_events(maps, table_of(weight), x.dtype, stride=stride), bits
    y = conv2d(x.detach(), weight.detach(), stride=stride, padding=weight.shape[-1] // 2)
    return y.contiguous(memory_format=torch.channels_last), bits


@_conv_of_spikes.register_fake
def _(x: Tensor, weight: Tensor, stride: int, sparse: str) -> tuple[Tensor, Tensor]:
    n, channels, height, width = x.shape
    y = x.new_empty(n, *convolved((height, width), stride), len(weight)).permute(0, 3, 1, 2)
    return y, x.new_empty(n * height * width, words_for(channels), dtype=torch.int64)


class _Window(NamedTuple):
    """What the gradient of a convolution's weight depends on, beside the output's gradient.

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
    def of(cls, x: Tensor, weight: Tensor, stride: int) -> "_Window":
        _, channels, height, width = x.shape
        return cls(channels, height, width, weight.shape[-1], stride)

    def weight(self, outputs: int) -> tuple[int, int, int, int]:
        """Shape of the weight."""
        return outputs, self.channels, self.kernel, self.kernel


def _conv_weight_events(bits: Tensor, grad: Tensor, window: _Window) -> Tensor:
    from plif_lightning.kernels import cpu_sparse

    outputs, (channels, height, width, kernel, stride) = grad.shape[1], window
    if not len(bits):
        return torch.zeros(window.weight(outputs), dtype=torch.float32, device="cpu")
    rows = pixels_of(grad.detach())
    out = torch.empty(kernel**2 * channels, outputs, dtype=torch.float32, device="cpu")
    at_a_time = _GRAD_AT_A_TIME * 4 // grad.element_size()
    arrays = array_of_bits(bits), array_of_rows(rows), out.numpy()
    sizes = height, width, channels, at_a_time, stride, kernel
    parallel(cpu_sparse.conv_weight, channels, threads_for(SUM * rows.numel()), *arrays, *sizes)
    return out.view(kernel, kernel, channels, outputs).permute(3, 2, 0, 1)


@operator()
def _conv_of_spikes_weight(bits: Tensor, grad: Tensor, window: list[int], sparse: str) -> Tensor:
    """Gradient of the convolution's weight [O, C, K, K], in float32 at least; `window` is a `_Window`."""
    channels, height, width, kernel, stride = given = _Window(*window)
    op = Op("conv_weight", grad.dtype, len(bits), channels, grad.shape[1], (height, width), kernel, stride)
    if choose(op, _density(bits, channels), sparse):
        return _conv_weight_events(bits, grad, given).contiguous()

    def spikes(first: int, last: int) -> Tensor:
        pixels = bits[first * height * width : last * height * width]
        return unpack(pixels, channels, grad.dtype).view(-1, height, width, channels).permute(0, 3, 1, 2)

    return _conv_weight_dense(grad, given, spikes)


def _conv_weight_dense(grad: Tensor, window: _Window, spikes: Callable[[int, int], Tensor]) -> Tensor:
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


@_conv_of_spikes_weight.register_fake
def _(bits: Tensor, grad: Tensor, window: list[int], sparse: str) -> Tensor:
    return grad.new_empty(_Window(*window).weight(grad.shape[1]), dtype=real_type(grad))


class _ConvOfSpikes(torch.autograd.Function):
    """Convolution with padding K // 2; saves its input as one bit per value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int, sparse: Sparse) -> tuple[Tensor, Tensor]:
        y, bits = torch.ops.plif.conv_of_spikes(x, weight.to(x.dtype), stride, sparse)
        return y, bits

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, stride, sparse = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], weight)
        ctx.settings = _Window.of(x, weight, stride), sparse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        bits, weight = ctx.saved_tensors
        window, sparse = ctx.settings
        grad_x = _conv_of_gradient(grad, weight, window) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.ops.plif.conv_of_spikes_weight(bits, channels_innermost(grad), list(window), sparse)
            grad_weight = grad_weight.to(weight.dtype)
        return grad_x, grad_weight, None, None


class _ConvOfBytes(torch.autograd.Function):
    """Convolution with padding K // 2 on other devices; saves its input as one byte per value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        y = conv2d(x, weight.to(x.dtype), stride=stride, padding=weight.shape[-1] // 2)
        return y, x.to(torch.uint8)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, stride = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], weight)
        ctx.window = _Window.of(x, weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        spikes, weight = ctx.saved_tensors
        grad_x = _conv_of_gradient(grad, weight, ctx.window) if ctx.needs_input_grad[0] else None
        some = lambda first, last: spikes[first:last].to(grad.dtype)  # noqa: E731
        return grad_x, _conv_weight_dense(grad, ctx.window, some).to(weight.dtype), None


def _conv_of_gradient(grad: Tensor, weight: Tensor, window: _Window) -> Tensor:
    """Gradient of the input of a convolution with padding K // 2: one with the mirrored weight, at stride 1."""
    weight, padding = weight.to(grad.dtype), window.kernel // 2
    if grad.device.type == "cpu" and max(window.height, window.width) <= SMALL and window.kernel > 1:
        return input_of_small_maps(grad, weight, (window.height, window.width), window.stride)
    if window.stride == 1:
        return conv2d(grad, weight.flip(2, 3).transpose(0, 1), padding=padding)
    shape = len(grad), window.channels, window.height, window.width
    return conv2d_input(shape, weight, grad, stride=window.stride, padding=padding)


# ---- FC layer: x [R, K], weight [O, K]
#
# A spike adds a column of the weight, which is stored by rows, so the loops load it in blocks and transpose each in the
# cache. A weight with strides (1, O) would avoid that, but PyTorch's fused optimisers copy a non-contiguous gradient
# (45 ms per step for FC1 of Fashion-MNIST, torch 2.13), and give wrong results if strides differ.


def _linear_events(bits: Tensor, weight: Tensor) -> Tensor:
    from plif_lightning.kernels import cpu_sparse

    weight = weight.detach().contiguous()
    out = torch.empty(len(bits), len(weight), dtype=torch.float32, device="cpu")
    blocks, (words, of_outputs) = words_for(len(weight)), _FC_BLOCK
    arrays = array_of_bits(bits), array_of_rows(weight), out.numpy()
    outputs = of_outputs // weight.element_size()
    parallel(cpu_sparse.linear, blocks, threads_for(weight.numel()), *arrays, words, outputs)
    return out


def _as(value: float, dtype: torch.dtype) -> float:
    """`value` rounded to `dtype`."""
    return torch.tensor(value, dtype=dtype, device="cpu").item()


@operator()
def _linear_of_spikes(x: Tensor, weight: Tensor, value: float, sparse: str) -> tuple[Tensor, Tensor]:
    """x weight^T [R, O], and bits [R, K / 64] that mark the non-zero values of x, which all equal `value`."""
    require_fit(x, weight)
    bits, spikes = pack(x)
    if choose(Op.of("linear", x, weight), spikes / max(1, x.numel()), sparse):
        return _linear_events(bits, weight).mul_(_as(value, x.dtype)).to(x.dtype), bits
    return product(x.detach(), weight.detach().t()), bits


@_linear_of_spikes.register_fake
def _(x: Tensor, weight: Tensor, value: float, sparse: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(weight)), x.new_empty(len(x), words_for(x.shape[1]), dtype=torch.int64)


def _linear_weight_events(bits: Tensor, grad: Tensor, inputs: int) -> Tensor:
    from plif_lightning.kernels import cpu_sparse

    if not len(bits):
        return torch.zeros(grad.shape[1], inputs, dtype=torch.float32, device="cpu")
    out = torch.empty(grad.shape[1], inputs, dtype=torch.float32, device="cpu")
    outputs = min(1024, max(128, _GRAD_OF_ROWS // (grad.element_size() * len(grad)) // 64 * 64))
    arrays = array_of_bits(bits), array_of_rows(grad), out.numpy()
    parallel(cpu_sparse.linear_weight, words_for(inputs), threads_for(out.numel()), *arrays, outputs)
    return out


@operator()
def _linear_of_spikes_weight(bits: Tensor, grad: Tensor, inputs: int, value: float, sparse: str) -> Tensor:
    """Gradient of the FC layer's weight [O, K], in float32 at least."""
    # The output's gradient has few rows: scaling it is cheaper than scaling the weight's gradient.
    grad = (grad.detach() * _as(value, grad.dtype)).contiguous()
    if choose(Op("linear_weight", grad.dtype, len(bits), inputs, grad.shape[1]), _density(bits, inputs), sparse):
        return _linear_weight_events(bits, grad, inputs)
    return product(grad.t(), unpack(bits, inputs, grad.dtype)).to(real_type(grad))


@_linear_of_spikes_weight.register_fake
def _(bits: Tensor, grad: Tensor, inputs: int, value: float, sparse: str) -> Tensor:
    return grad.new_empty(grad.shape[1], inputs, dtype=real_type(grad))


class _LinearOfSpikes(torch.autograd.Function):
    """FC layer without bias; saves its input as one bit per value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, value: float, sparse: Sparse) -> tuple[Tensor, Tensor, Tensor | None]:
        narrow = weight.to(x.dtype)
        y, bits = torch.ops.plif.linear_of_spikes(x, narrow, value, sparse)
        return y, bits, None if narrow is weight else narrow

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor | None]) -> None:
        _, weight, *ctx.settings = inputs
        _, bits, narrow = output
        ctx.mark_non_differentiable(*(one for one in (bits, narrow) if one is not None))
        ctx.set_materialize_grads(False)
        # The gradient of x needs the narrow weight again; it is half as large, and takes long to make.
        ctx.save_for_backward(bits, weight, narrow)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        bits, weight, narrow = ctx.saved_tensors
        used = weight if narrow is None else narrow
        grad_x = product(grad, used.to(grad.dtype)) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.ops.plif.linear_of_spikes_weight(bits, grad, weight.shape[1], *ctx.settings)
            grad_weight = grad_weight.to(weight.dtype)
        return grad_x, grad_weight, None, None


def _require_spikes(x: Tensor, fits: bool, shape: str) -> None:
    if not fits or (x.device.type == "cpu" and x.dtype == torch.float16):
        raise UserError(
            f"x must be {shape} in float32, bfloat16 or float64, got {list(x.shape)} in {str(x.dtype)[6:]}."
        )


def conv_of_spikes(x: Tensor, weight: Tensor, sparse: Sparse = "auto", stride: int = 1) -> Tensor:
    """`conv2d(x, weight, stride=stride, padding=K // 2)` of spikes.

    Saves one bit per input for the backward pass (a byte on a GPU).

    Args:
        x: spikes [N, C, H, W], not float16.
        weight: [O, C, K, K], K = 1, 3 or 5, finite (conv2d turns an infinite weight into NaN at silent inputs too);
            cast to the dtype of x, its gradient is in its own dtype.
        sparse: skip silent inputs if that is faster (`auto`), `never` or `always`.
        stride: 1 or 2.

    Returns:
        [N, O, H', W'], equal to conv2d's, in float32 bit-identical if PyTorch adds in the same order. Gradients equal
        those of conv2d up to the order of sums.

    Raises:
        UserError: x has another shape or type.
    """
    _require_spikes(x, x.dim() == 4, "[N, C, H, W]")
    with in_own_precision(x.device):
        if x.device.type == "cpu":
            return _ConvOfSpikes.apply(x, weight, stride, sparse)[0]
        return _ConvOfBytes.apply(x, weight, stride)[0]


def linear_of_spikes(x: Tensor, weight: Tensor, value: float = 1.0, sparse: Sparse = "auto") -> Tensor:
    """`linear(x, weight)` of spikes; saves one bit per input for the backward pass.

    Args:
        x: zeros and `value`s [N, K] or [*, N, K], on the CPU, not float16.
        weight: [O, K], as in `conv_of_spikes`.
        value: value of a spike: 1 / (1 - p) after dropout.
        sparse: as in `conv_of_spikes`.

    Raises:
        UserError: x has another shape or type.
    """
    _require_spikes(x, x.dim() >= 2, "[*, N, K]")
    with torch.autocast("cpu", enabled=False):
        y = _LinearOfSpikes.apply(x.flatten(0, -2), weight, value, sparse)[0]
    return y.unflatten(0, x.shape[:-1])


@candidates_of("conv", "conv_weight", "linear", "linear_weight")
def _candidates(op: Op, density: float) -> tuple[Timed, Timed]:
    """Event-driven and dense form on random spikes; weight gradients are in float32, as under autocast."""
    generator = torch.Generator().manual_seed(0)
    spikes = torch.rand(op.rows, op.inputs, generator=generator).lt(density).to(op.dtype)
    grad = torch.rand(op.rows, op.outputs, generator=generator).to(op.dtype)
    bits, _ = pack(spikes)
    if op.name.startswith("linear"):
        weight = torch.rand(op.outputs, op.inputs, generator=generator).to(op.dtype)
        if op.name == "linear":
            return lambda: _linear_events(pack(spikes)[0], weight).to(op.dtype), lambda: linear(spikes, weight, None)
        return lambda: _linear_weight_events(bits, grad, op.inputs), lambda: product(grad.t(), spikes).float()
    x = spikes.view(-1, *op.size, op.inputs).permute(0, 3, 1, 2)
    weight = torch.rand(op.outputs, op.inputs, op.kernel, op.kernel, generator=generator).to(op.dtype)
    sizes: dict[str, Any] = {"stride": op.stride, "padding": op.kernel // 2}
    if op.name == "conv":
        dense = weight.contiguous(memory_format=torch.channels_last)
        return (
            lambda: conv_events(SparseMaps.of(x, binary=True), table_of(weight), op.dtype, stride=op.stride),
            lambda: conv2d(x, dense, **sizes),
        )
    height, width = convolved((op.size[0], op.size[1]), op.stride)
    g = grad[: len(x) * height * width].view(len(x), height, width, -1).permute(0, 3, 1, 2)
    window = _Window.of(x, weight, op.stride)
    return (
        lambda: _conv_weight_events(bits, g, window).contiguous(),
        lambda: conv2d_weight(x, weight.shape, g, **sizes),
    )
