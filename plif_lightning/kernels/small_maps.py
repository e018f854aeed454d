"""Convolutions of maps so small that most of a kernel lies outside: a matrix product with the taps that lie inside.

A 3x3 kernel reads one pixel of a 1x1 map, and four of a 2x2 map; libraries multiply by the zeros around them, too, and
are slow at such sizes. The products are added in another order than the library's, so sums differ by rounding.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.kernels.dense import product
from plif_lightning.kernels.layout import convolved, real_type

# Most pixels on a side of a map for which the product is faster.
SMALL = 2


def are_small(x: Tensor, weight: Tensor) -> bool:
    """True if the product is faster for x [N, C, H, W] and a weight [O, C, K, K], K odd, with padding K // 2."""
    small = max(x.shape[2:]) <= SMALL and weight.shape[-1] > 1 and x.numel() > 0
    return small and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def _taps(size: tuple[int, int], kernel: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """(output pixel, input pixel, row of the kernel, column of it) of each pair of pixels that a tap connects."""
    height, width = size
    rows, columns = convolved(size, stride)
    for o in range(rows * columns):
        for i in range(height * width):
            down = i // width - o // columns * stride + kernel // 2
            across = i % width - o % columns * stride + kernel // 2
            if 0 <= down < kernel and 0 <= across < kernel:
                yield o, i, down, across


def _matrix(weight: Tensor, size: tuple[int, int], stride: int, dtype: torch.dtype) -> Tensor:
    """The convolution as a matrix [H' W' O, H W C]."""
    outputs, channels, kernel, _ = weight.shape
    rows, columns = convolved(size, stride)
    pixels = size[0] * size[1]
    if rows * columns * pixels == 1:
        return weight[:, :, kernel // 2, kernel // 2].to(dtype).contiguous()
    taps = weight.permute(2, 3, 0, 1).to(dtype).contiguous()
    made = torch.zeros(rows * columns, outputs, pixels, channels, dtype=dtype, device="cpu")
    for o, i, down, across in _taps(size, kernel, stride):
        made[o, :, i] = taps[down, across]
    return made.view(rows * columns * outputs, -1)


def _of_weight(of_matrix: Tensor, weight: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """The gradient of the weight from that of the matrix [H' W' O, H W C], in its layout."""
    outputs, channels, kernel, _ = weight.shape
    taps = of_matrix.new_zeros(kernel, kernel, outputs, channels)
    if of_matrix.shape == (outputs, channels):
        taps[kernel // 2, kernel // 2] = of_matrix
    else:
        of_matrix = of_matrix.view(-1, outputs, size[0] * size[1], channels)
        for o, i, down, across in _taps(size, kernel, stride):
            taps[down, across] += of_matrix[o, :, i]
    found = taps.permute(2, 3, 0, 1)
    return found.contiguous() if weight.is_contiguous() else torch.empty_like(weight, dtype=found.dtype).copy_(found)


def input_of_small_maps(grad: Tensor, weight: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """The gradient of the input [N, C, H, W], (H, W) = `size`, from that of the output, in its type; no gradients."""
    g = grad.detach().permute(0, 2, 3, 1).reshape(len(grad), -1)
    grad_x = product(g, _matrix(weight.detach(), size, stride, g.dtype))
    return grad_x.view(len(grad), *size, weight.shape[1]).permute(0, 3, 1, 2)


def _flat(maps: Tensor) -> Tensor:
    """Maps [N, C, H, W] as rows [N, H W C]."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1)


class _ConvOfSmallMaps(torch.autograd.Function):
    """Keeps its input; the matrix, up to four times as large as the weight, is made again in the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        size = x.shape[2], x.shape[3]
        y = product(_flat(x), _matrix(weight.detach(), size, stride, x.dtype).t())
        return y.view(len(x), *convolved(size, stride), len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        size, stride = (x.shape[2], x.shape[3]), ctx.stride
        grad = grad.to(x.dtype)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = input_of_small_maps(grad, weight, size, stride)
        if ctx.needs_input_grad[1]:
            of_matrix = product(_flat(grad).t().contiguous(), _flat(x)).to(real_type(x))
            grad_weight = _of_weight(of_matrix, weight, size, stride).to(weight.dtype)
        return grad_x, grad_weight, None


def conv_of_small_maps(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """`conv2d(x, weight, stride=stride, padding=K // 2)` of small maps, see `are_small`.

    Args:
        x: [N, C, H, W].
        weight: [O, C, K, K], cast to the dtype of x; its gradient is in its own dtype.
        stride: of the convolution.

    Returns:
        [N, O, H', W'], O innermost in memory.
    """
    with torch.autocast("cpu", enabled=False):
        return _ConvOfSmallMaps.apply(x, weight, stride)
