"""Dense products by the faster of the two libraries that PyTorch brings along."""

import functools

import torch
from torch import Tensor

from plif_lightning.runtime.surroundings import processor

# Multiply-adds from which the library matters.
_LARGE = 2**26


@functools.cache
def mkl_is_slow() -> bool:
    """True if MKL, which multiplies matrices in float32, uses half of the processor's vectors: on AMD with AVX-512.

    Measured on an AMD EPYC (Zen 4), 128 x 2048 times 2048 x 6272: MKL 61 ms, oneDNN 40.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and "AMD" in processor() and torch.backends.mkldnn.is_available()


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b for matrices [M, K] and [K, N]."""
    large = a.shape[0] * b.numel() >= _LARGE
    if not large or a.dtype != torch.float32 or a.device.type != "cpu" or torch.compiler.is_compiling():
        return a @ b
    if not mkl_is_slow() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return a @ b
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
