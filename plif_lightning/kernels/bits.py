"""Spikes packed as bits, 64 inputs per word, and index lists of non-zero inputs for the event-driven loops."""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.kernels import loops
from plif_lightning.kernels.layout import empty_images, threads_for
from plif_lightning.kernels.ops import outside_compile
from plif_lightning.kernels.parallel import parallel

_WORD = 64
# Cost of listing a spike, in neuron-steps.
_LISTED = 4
# Number of values sampled to estimate a density.
_SAMPLE = 2**17


def array_of_rows(x: Tensor) -> NDArray[Any]:
    """A matrix as a NumPy array that shares its memory; bfloat16 as its bits in uint16."""
    x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def array_of_bits(bits: Tensor) -> NDArray[Any]:
    """Words as the compiled loops take them: uint64, in the same memory."""
    return bits.numpy().view(np.uint64)


def pixels_of(x: Tensor) -> Tensor:
    """Feature maps [N, C, H, W] as rows [N H W, C], a view if C is innermost in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def words_for(inputs: int) -> int:
    """Number of words that hold a bit per input."""
    return -(-inputs // _WORD)


class Bits(NamedTuple):
    """The non-zero values of x [R, K], a bit each.

    Attributes:
        words: [R, K / 64], int64.
        number: of non-zero values.
        only_spikes: all of them equal the value of a spike.
    """

    words: Tensor
    number: int
    only_spikes: bool


def pack_spikes(x: Tensor, value: float = 1.0) -> Bits:
    """Bits of the spikes x [R, K] of a value."""
    words = torch.empty(len(x), words_for(x.shape[1]), dtype=torch.int64, device="cpu")
    threads = threads_for(x.numel())
    counts = np.zeros((threads, 2), np.int64)
    x = x.detach().contiguous()
    parallel(
        loops.cpu_bits.pack_bits, len(x), threads, array_of_rows(x), _as(value, x.dtype), array_of_bits(words), counts
    )
    number, not_binary = counts.sum(0)
    return Bits(words, int(number), not not_binary)


@functools.cache
def _as(value: float, dtype: torch.dtype) -> Any:
    """A number as the compiled loops compare it with values of a type."""
    return array_of_rows(torch.full((1,), value, dtype=dtype, device="cpu"))[0]


def unpack(bits: Tensor, inputs: int, dtype: torch.dtype) -> Tensor:
    """Spikes [R, K] from bits [R, K / 64]."""
    return _unpack_into(torch.empty(len(bits), inputs, dtype=dtype, device="cpu"), bits)


def _unpack_into(x: Tensor, bits: Tensor) -> Tensor:
    threads = threads_for(x.numel())
    parallel(loops.cpu_bits.unpack_bits, len(x), threads, array_of_bits(bits), _as(1.0, x.dtype), array_of_rows(x))
    return x


def number_of_spikes(bits: Tensor) -> int:
    """Number of bits that are set."""
    threads = threads_for(bits.numel())
    counts = np.zeros(threads, np.int64)
    parallel(loops.cpu_bits.count, len(bits), threads, array_of_bits(bits), counts)
    return int(counts.sum())


@outside_compile
def estimate_density(x: Tensor, value: float) -> tuple[float, bool]:
    """Estimated density of x [R, K], from a deterministic sample of its rows, and if its spikes all have a value."""
    x = x.detach().contiguous()
    rows = min(len(x), -(-_SAMPLE // x.shape[1]))
    spikes, not_binary = loops.cpu_bits.sample(rows, array_of_rows(x), _as(value, x.dtype))
    return spikes / (rows * x.shape[1]), not_binary == 0


class SparseMaps(NamedTuple):
    """Feature maps [N, C, H, W] in the form that the event-driven loops read.

    Attributes:
        bits: mark the non-zero values [N H W, C / 64].
        values: all values [N H W, C], float32 or bfloat16; None for spikes.
        shape: [N, C, H, W].
    """

    bits: Tensor
    values: Tensor | None
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, x: Tensor) -> "SparseMaps":
        """From a tensor [N, C, H, W]."""
        n, channels, height, width = x.shape
        rows = pixels_of(x.detach()).contiguous()
        bits = pack_spikes(rows)
        return cls(bits.words, None if bits.only_spikes else rows, (n, channels, height, width))

    def images(self, dtype: torch.dtype) -> Tensor:
        """Spikes as a tensor [N, C, H, W], C innermost in memory."""
        images = empty_images(*self.shape, dtype)
        _unpack_into(pixels_of(images), self.bits)
        return images

    def flattened(self) -> Tensor:
        """Spikes as bits of rows [N, C H W / 64], in the order of `Tensor.flatten`."""
        n, channels, height, width = self.shape
        inputs = channels * height * width
        bits = torch.empty(n, words_for(inputs), dtype=torch.int64, device="cpu")
        arrays = array_of_bits(self.bits), array_of_bits(bits)
        parallel(loops.cpu_bits.flatten, n, threads_for(n * inputs), *arrays, height * width)
        return bits

    def arrays(self, table: NDArray[Any] | None = None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """As the compiled loops take them: `list_rows`' indices and offsets, and the values, flat.

        For spikes the values are empty, with the dtype that values for this table would have.
        """
        indices, offsets = self._lists()
        if self.values is not None:
            return indices, offsets, array_of_rows(self.values).reshape(-1)
        # The same type as values, so that the loops are compiled for fewer types.
        wide = table is None or table.dtype != np.uint16
        return indices, offsets, np.empty(0, np.float32 if wide else np.uint16)

    def _lists(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        n, channels, height, width = self.shape
        rows, bits = n * height, array_of_bits(self.bits)
        if threads_for(_LISTED * rows * width) == 1:
            return loops.cpu_bits.list_maps(bits, rows, width, channels)
        counts, offsets = np.empty(rows, np.int64), np.empty(rows * width + 1, np.int64)
        parallel(loops.cpu_bits.count_rows, rows, threads_for(bits.size), bits, width, counts)
        bounds = counts.cumsum()
        offsets[-1] = total = bounds[-1] if rows else 0
        indices = np.empty(total, np.int32)
        threads = threads_for(_LISTED * (rows * width + total))
        parallel(loops.cpu_bits.list_rows, rows, threads, bits, bounds - counts, width, channels, indices, offsets)
        return indices, offsets
