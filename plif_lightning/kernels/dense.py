"""Dense products and convolutions by the fastest of the ways that PyTorch brings along."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn import grad as of_conv2d
from torch.nn.modules.utils import _pair

from plif_lightning.dynamics.reference import autocast_in_force, in_real_precision
from plif_lightning.kernels.layout import real_type
from plif_lightning.kernels.onednn import Sides, Window, errs_in_bfloat16, without_stride
from plif_lightning.runtime.process import processor

# Multiply-adds, and rows of the first matrix, from which the library matters; with an autograd function around it.
# (AMD EPYC, Zen 5: from 2^21 on oneDNN is 1.3 to 2.4 times as fast as MKL, with few rows it copies the second matrix.)
_LARGE, _LARGE_WITH_GRADIENTS, _MANY_ROWS = 2**22, 2**23, 8
# oneDNN copies a convolution's weight into another layout at every call, which takes longer than the products where a
# large weight meets few pixels. A product of patches takes it as it is: 5 times as fast with 512 channels and 64
# pixels, 1.1 to 1.9 times with 256 pixels, half as fast with 1,024 (AMD EPYC, Zen 3).
_FEW_PIXELS, _MANY_WEIGHTS = 256, 2**18


@functools.cache
def mkl_is_slow() -> bool:
    """True if MKL, which multiplies matrices in float32, uses half of the processor's vectors: on AMD with AVX-512.

    Measured on an AMD EPYC (Zen 4), 128 x 2048 times 2048 x 6272: MKL 61 ms, oneDNN 40.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and "AMD" in processor() and torch.backends.mkldnn.is_available()


def _multiplies_bfloat16() -> bool:
    supports = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supports is not None and supports()


# True on processors for which oneDNN has no bfloat16 kernels, such as without AVX-512: PyTorch's loops take 7
# to 100 times as long as float32 there (AMD EPYC, Zen 3). A constant, so that torch.compile can trace it.
WIDENS_BFLOAT16 = not _multiplies_bfloat16()


def computing_type(x: Tensor, weight: Tensor | None = None) -> torch.dtype:
    """The type that a layer computes in; without a weight, for one of the type of x."""
    if autocast_in_force(x.device):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)


def _is_bfloat16_on_cpu(x: Tensor) -> bool:
    narrow = x.dtype != torch.float64 and computing_type(x) == torch.bfloat16  # autocast leaves float64 alone
    return x.device.type == "cpu" and narrow


def widens(x: Tensor) -> bool:
    """True if products of x are faster by way of float32: sums in float32, rounded once, as oneDNN's are."""
    return WIDENS_BFLOAT16 and _is_bfloat16_on_cpu(x)


def _convolves_in_float32(x: Tensor, shape: Sequence[int], dilation: int | Sequence[int] = 1, **_: Any) -> bool:
    """True if a convolution of x with a weight [O, C, K, K] is exact, or faster, by way of float32."""
    return widens(x) or (_is_bfloat16_on_cpu(x) and errs_in_bfloat16(shape, dilation))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b for matrices [M, K] and [K, N] of the same type."""
    if widens(a):
        return product(a.float(), b.float()).to(a.dtype)
    return _onednn_product(a, b.t()) if _takes_onednn(a, b, _LARGE) else a @ b


def add_product(y: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """y + a b for matrices, written into `out`; no gradients."""
    if _takes_onednn(a, b, _LARGE):
        return torch.add(y, _onednn_product(a, b.t()), out=out)
    return torch.addmm(y, a, b, out=out)


def _onednn_product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T for matrices [M, K] and [N, K] in float32."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return result


def _takes_onednn(a: Tensor, b: Tensor, large: int) -> bool:
    """True if a b^T or a b, with a [M, K] and K N values in b, is faster by oneDNN than by MKL."""
    if a.device.type != "cpu" or a.dtype != torch.float32 or b.dtype != torch.float32 or _is_traced():
        return False
    if len(a) * b.numel() < large or len(a) < _MANY_ROWS:
        return False
    return mkl_is_slow() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_traced() -> bool:
    """True while PyTorch compiles, exports or traces, which knows its own operators alone, of any number of rows."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch._C._is_tracing()


class _Product(torch.autograd.Function):
    """a b^T for matrices [M, K] and [N, K] by oneDNN, differentiable as often as asked."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _onednn_product(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        of_a = _matrix_product(grad, b.t()) if ctx.needs_input_grad[0] else None
        return of_a, _matrix_product(grad.t(), a.t()) if ctx.needs_input_grad[1] else None


def _matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T for matrices [M, K] and [N, K]."""
    # Transforms of functions and forward derivatives know PyTorch's own operators alone.
    transformed = torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    if transformed or autocast_in_force(a.device) or not _takes_onednn(a, b, _LARGE_WITH_GRADIENTS):
        return F.linear(a, b)
    product: Tensor = _Product.apply(a, b)
    return product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`: of bfloat16 by way of float32, and by oneDNN in the place of MKL, where faster."""
    if widens(x):
        with in_real_precision(x.device):
            return linear(*_widen(x, weight, bias)).bfloat16()
    if x.dim() < 2 or _is_traced() or x.numel() * len(weight) < _LARGE_WITH_GRADIENTS:
        return F.linear(x, weight, bias)
    y = _matrix_product(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias.to(y.dtype)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, **settings: Any) -> Tensor:
    """`torch.nn.functional.conv2d`, of bfloat16 by way of float32 and of few pixels by patches where that is faster."""
    if _convolves_in_float32(x, weight.shape, **settings):
        with in_real_precision(x.device):
            return conv2d(*_widen(x, weight, bias), **settings).bfloat16()
    x, settings = without_stride(x, weight.shape, settings)
    window = Window.of(x, weight.shape, **settings)
    convolve = _conv2d_of_patches if takes_patches(x, weight, settings.get("stride", 1)) else F.conv2d
    if any(window.idle):
        weight = F.pad(weight, [-taps for taps in window.idle])
    return convolve(window.padded_input(x), weight, bias, *window.settings)


def takes_patches(x: Tensor, weight: Tensor, stride: int | Sequence[int]) -> bool:
    """True if a convolution of x [N, C, H, W] is faster as a product of its patches."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    down, across = _pair(stride)
    pixels = x.shape[0] * -(-x.shape[2] // down) * -(-x.shape[3] // across)
    groups = x.shape[1] != weight.shape[1]
    return 0 < pixels <= _FEW_PIXELS and weight.numel() >= _MANY_WEIGHTS and not groups


def _conv2d_of_patches(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sides, padding: Sides, dilation: Sides, groups: int
) -> Tensor:
    """`torch.nn.functional.conv2d` without groups."""
    patches = F.unfold(x, weight.shape[2:], dilation, padding, stride).transpose(1, 2)  # [N, H' W', C K K]
    height = (x.shape[2] + 2 * padding[0] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    return linear(patches, weight.flatten(1), bias).unflatten(1, (height, -1)).permute(0, 3, 1, 2)


def conv2d_weight(x: Tensor, shape: Sequence[int], grad: Tensor, **settings: Any) -> Tensor:
    """Gradient of a convolution's weight of a shape, in float32 at least, from that of its output; no gradients."""
    x, settings = without_stride(x, shape, settings)
    window = Window.of(x, shape, **settings)
    left, right, top, bottom = window.idle
    used = [*shape[:2], shape[2] - top - bottom, shape[3] - left - right]
    x, grad_y = (x.float(), grad.float()) if _convolves_in_float32(grad, shape, **settings) else (x, grad)
    grad_weight = of_conv2d.conv2d_weight(window.padded_input(x), used, grad_y, *window.settings)
    return F.pad(grad_weight, window.idle).to(real_type(grad))


def conv2d_input(shape: Sequence[int], weight: Tensor, grad: Tensor, **settings: Any) -> Tensor:
    """Gradient of a convolution's input of a shape from that of its output, in its type; no gradients."""
    operands = (weight.float(), grad.float()) if widens(grad) else (weight, grad)
    return of_conv2d.conv2d_input(shape, *operands, **settings).to(grad.dtype)


def _widen(*values: Tensor | None) -> list[Any]:
    """Values in float32, rounded to bfloat16 first."""
    return [None if value is None else value.bfloat16().float() for value in values]
