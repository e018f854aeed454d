"""An FC layer that skips silent inputs, on the CPU. Nothing but its benchmark uses it yet."""

import torch
from torch import Tensor

from plif_lightning.kernels.layout import WORTH_THREADS
from plif_lightning.kernels.parallel import parallel

# Inputs and outputs whose weights are used for all rows at a time: they stay in the second-level cache.
_BLOCK = (128, 1024)


def count_nonzero(x: Tensor) -> Tensor:
    """Values that are not zero in each row of x [R, K], on the CPU, [R] int64."""
    from plif_lightning.kernels import cpu  # which numba compiles

    counts = torch.empty(len(x), dtype=torch.int64)
    threads = torch.get_num_threads() if x.numel() >= WORTH_THREADS else 1
    parallel(cpu.count_nonzero, len(x), threads, x.detach().contiguous().numpy(), counts.numpy())
    return counts


@torch.library.custom_op("plif::sparse_linear", mutates_args=(), device_types="cpu")
def sparse_linear(x: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    """x [R, K] times rows [K, O], [R, O], in float32, skipping what is zero in x.

    `counts` are those of `count_nonzero`.
    """
    from plif_lightning.kernels import cpu

    x, rows = x.detach().contiguous(), rows.detach()
    starts = torch.zeros(len(x) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=starts[1:])
    total = int(starts[-1])
    place, values = torch.empty(total, dtype=torch.int64), x.new_empty(total)
    out = x.new_empty(len(x), rows.shape[1])
    threads = torch.get_num_threads() if total * rows.shape[1] >= WORTH_THREADS else 1
    parallel(cpu.take_nonzero, len(x), threads, x.numpy(), starts.numpy(), place.numpy(), values.numpy())
    parallel(
        cpu.gather_rows,
        len(x),
        threads,
        starts.numpy(),
        place.numpy(),
        values.numpy(),
        rows.numpy(),
        out.numpy(),
        *_BLOCK,
    )
    return out


@sparse_linear.register_fake
def _(x: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], rows.shape[1])
