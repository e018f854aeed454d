"""The fused operators as PyTorch sees them: one schema for each, with a kernel for the CPU and one for CUDA.

`plif::fire` is BN's affine map, the neuron over all T and the pool; `plif::fire_backward` recomputes the potentials
from its input; `plif::moments` gives BN's statistics; `plif::normalize_backward` turns the gradient of BN's output
into that of its input. `norm_fire_pool` ties them together, with BN's exact gradient.
"""

import os
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.kernels.parallel import parallel

Pool = Literal["none", "max_first", "max_random", "avg"]
# what kernels/cpu.py and kernels/gpu.py are told
POOLS: dict[str, int] = {"none": 0, "max_first": 1, "max_random": 2, "avg": 3}
SURROGATES: dict[str, int] = {"atan": 0, "sigmoid": 1, "triangle": 2, "rectangle": 3}
# A run of a map that is worked on at a time [values]: long enough for short loops not to cost much, and so short
# that T potentials of it stay in the second-level cache.
_RUN = 1024
_CACHE = 2**17  # values
# Below this many neuron-steps, handing work to other threads takes longer than the work.
_WORTH_THREADS = 2**16


def channels_last(y: Tensor) -> Tensor:
    """The same [T, N, C, H, W] with C innermost in memory."""
    return y.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, y.shape[:2])


def empty_map(y: Tensor, steps: int, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """An empty [T, N, C, height, width] with C innermost, of another type than y where one is named."""
    _, n, c = y.shape[:3]
    return y.new_empty(steps, n, height, width, c, dtype=dtype or y.dtype).permute(0, 1, 4, 2, 3)


def _rows(y: Tensor) -> NDArray[Any]:
    """The memory of a map with C innermost as [T, everything of a step]; bfloat16 as its bits."""
    flat = y.detach().permute(0, 1, 3, 4, 2).reshape(y.shape[0], -1)
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


def _real(y: Tensor) -> torch.dtype:
    return torch.promote_types(y.dtype, torch.float32)


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class _Geometry:
    """How a map is cut into units of work; arguments of the compiled loops."""

    def __init__(self, y: Tensor, steps: int, pool: int) -> None:
        _, n, self.channels, height, self.width = y.shape
        self.pooled = pool != POOLS["none"]
        neurons = 4 if self.pooled else 1
        longest = max(1, min(_RUN, _CACHE // (steps * neurons)) // self.channels)
        if self.pooled:
            self.height, windows = height, self.width // 2
            per_run = min(longest, max(windows, 1))
            self.units = n * (height // 2) * -(-windows // per_run)
        else:
            # without windows all images are one
            self.height, positions = n * height, n * height * self.width
            per_run = min(longest, positions)
            self.units = -(-positions // per_run)
        self.run = per_run * self.channels
        self.threads = torch.get_num_threads() if steps * y[0].numel() >= _WORTH_THREADS else 1

    def tiled(self, values: Tensor, real: torch.dtype) -> NDArray[Any]:
        """One row of values per channel, or several, [S, C], repeated over a run [S, run]."""
        return values.detach().to(real).repeat(1, self.run // self.channels).numpy()

    def summed(self, totals: NDArray[Any]) -> Tensor:
        """Sums per slot and place in a run, [slots, ..., run], as sums per channel [..., C]."""
        by_channel = totals.reshape(*totals.shape[:-1], -1, self.channels)
        return torch.from_numpy(by_channel.sum((0, -2), dtype=np.float64))


def _scalar(value: float, real: torch.dtype) -> Any:
    return np.float64(value) if real == torch.float64 else np.float32(value)


def _per_channel(k: Tensor | None, channels: int, real: torch.dtype) -> Tensor:
    return torch.ones(1, channels, dtype=real) if k is None else k.detach().to(real).expand(channels)[None]


def _optional(v: Tensor | None, real: torch.dtype) -> NDArray[Any]:
    """A potential [N, C, H, W] as the compiled loops take it, [1, everything of a step]; empty where there is none."""
    return torch.empty(0, 1, dtype=real).numpy() if v is None else _rows(channels_last(v.detach().to(real)[None]))


@torch.library.custom_op("plif::fire", mutates_args=(), device_types="cpu")
def fire(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    steps: int,
    pool: int,
    v_threshold: float,
    v_reset: float,
    last: bool,
) -> tuple[Tensor, Tensor]:
    """Pooled spikes [T, N, C, H', W'] and, where `last`, the potential after the last step [N, C, H, W].

    Args:
        y: [T, N, C, H, W], or [1, N, C, H, W] held for T steps.
        scale: of each channel, and of each step where BN's statistics are, [T or 1, C].
        shift: as scale.
        k: 1/tau, a scalar or [C]; None without leak.
        v: potential before the first step [N, C, H, W]; V_reset where it is None.
        steps: T.
        pool: number of the pooling, see POOLS.
        v_threshold: V_th.
        v_reset: V_reset.
        last: whether the last potential is wanted; without a pool only.
    """
    if interpreted():
        from plif_lightning.kernels import gpu

        return gpu.fire(y, scale, shift, k, v, steps, pool, v_threshold, v_reset, last)
    from plif_lightning.kernels import cpu

    y = channels_last(y)
    real = _real(y)
    geometry = _Geometry(y, steps, pool)
    halve = 2 if geometry.pooled else 1
    out = empty_map(y, steps, y.shape[3] // halve, y.shape[4] // halve)
    final = empty_map(y, 1, y.shape[3], y.shape[4], real)[0] if last else y.new_empty(0, dtype=real)
    parallel(
        cpu.forward,
        geometry.units,
        geometry.threads,
        _rows(y),
        geometry.tiled(scale, real),
        geometry.tiled(shift, real),
        geometry.tiled(_per_channel(k, geometry.channels, real), real)[0],
        _optional(v, real),
        _rows(final[None]) if last else _optional(None, real),
        _rows(out),
        steps,
        geometry.height,
        geometry.width,
        geometry.channels,
        geometry.run,
        pool,
        k is not None,
        _scalar(v_threshold, real),
        _scalar(v_reset, real),
    )
    return out, final


@fire.register_fake
def _(
    y: Tensor,
    scale: Any,
    shift: Any,
    k: Any,
    v: Any,
    steps: int,
    pool: int,
    v_threshold: float,
    v_reset: float,
    last: bool,
) -> tuple[Tensor, Tensor]:
    halve = 2 if pool else 1
    out = empty_map(y, steps, y.shape[3] // halve, y.shape[4] // halve)
    return out, empty_map(y, 1, y.shape[3], y.shape[4], _real(y))[0] if last else y.new_empty(0, dtype=_real(y))


@torch.library.custom_op("plif::fire_backward", mutates_args=(), device_types="cpu")
def fire_backward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    seed: Tensor,
    grad_out: Tensor,
    grad_last: Tensor | None,
    steps: int,
    pool: int,
    v_threshold: float,
    v_reset: float,
    detach_reset: bool,
    surrogate: int,
    surrogate_width: float,
    windows: int,
    first_window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dL/dX in the shape of y, X being scale y + shift; dL/dV_{-1}; sums; dL/dk per channel [C].

    The sums [2, T or 1, C] are, for each row of scale, those of dL/dX and of dL/dX (y - mean). Other arguments as
    `fire`; seed decides among tied neurons of a window, int64. Where y is a band of rows of a map, `windows` is the
    number of windows of the whole map, and `first_window` that of the band's first: what a seed draws depends on them.
    """
    if interpreted():
        from plif_lightning.kernels import gpu

        return gpu.fire_backward(
            y,
            scale,
            shift,
            mean,
            k,
            v,
            seed,
            grad_out,
            grad_last,
            steps,
            pool,
            v_threshold,
            v_reset,
            detach_reset,
            surrogate,
            surrogate_width,
            windows,
            first_window,
        )
    from plif_lightning.kernels import cpu

    y = channels_last(y)
    real = _real(y)
    geometry = _Geometry(y, steps, pool)
    grad_y = empty_map(y, len(y), *y.shape[3:])
    if geometry.pooled and (y.shape[3] % 2 or y.shape[4] % 2):
        grad_y.zero_()  # an odd last row or column lies in no window
    grad_v = y.new_empty(0, dtype=real) if v is None else empty_map(y, 1, y.shape[3], y.shape[4], real)[0]
    slots = geometry.threads
    sums = np.zeros((slots, 2, len(scale), geometry.run), np.float64 if real == torch.float64 else np.float32)
    sums_v = np.zeros((slots, geometry.run), sums.dtype)
    k_of_channel = _per_channel(k, geometry.channels, real)
    parallel(
        cpu.backward,
        geometry.units,
        geometry.threads,
        _rows(y),
        geometry.tiled(scale, real),
        geometry.tiled(shift, real),
        geometry.tiled(mean, real),
        geometry.tiled(k_of_channel, real)[0],
        _optional(v, real),
        _rows(channels_last(grad_out.to(y.dtype))),
        _optional(grad_last, real),
        _rows(grad_y),
        _optional(None, real) if v is None else _rows(grad_v[None]),
        sums,
        sums_v,
        steps,
        geometry.height,
        geometry.width,
        geometry.channels,
        geometry.run,
        pool,
        k is not None,
        detach_reset,
        _scalar(v_threshold, real),
        _scalar(v_reset, real),
        surrogate,
        _scalar(surrogate_width, real),
        np.uint32(int(seed) & 0xFFFFFFFF),
        windows,
        first_window,
    )
    grad_h, grad_h_y = geometry.summed(sums)
    grad_k = torch.zeros_like(grad_h[0])
    if k is not None:
        # dL/dk = dL/dH (X - (V - V_reset)), and X = scale (y - mean) + scale mean + shift
        scale, shift, mean = scale.double(), shift.double(), mean.double()
        grad_k = (scale * grad_h_y + (scale * mean + shift) * grad_h).sum(0) - geometry.summed(sums_v)
    return grad_y, grad_v, torch.stack([grad_h, grad_h_y]).mul(k_of_channel.double()).to(real), grad_k.to(real)


@fire_backward.register_fake
def _(
    y: Tensor, scale: Tensor, shift: Any, mean: Any, k: Any, v: Tensor | None, seed: Any, grad_out: Any, grad_last: Any,
    steps: int, pool: int, v_threshold: float, v_reset: float, detach_reset: bool, surrogate: int,
    surrogate_width: float, windows: int, first_window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    real = _real(y)
    return (
        empty_map(y, y.shape[0], *y.shape[3:]),
        y.new_empty(0, dtype=real) if v is None else empty_map(y, 1, y.shape[3], y.shape[4], real)[0],
        y.new_empty(2, scale.shape[0], y.shape[2], dtype=real),
        y.new_empty(y.shape[2], dtype=real),
    )


@torch.library.custom_op("plif::moments", mutates_args=(), device_types="cpu")
def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each step and channel of y [T, N, C, H, W], [T, C] each, in float32 at least."""
    if interpreted():
        from plif_lightning.kernels import gpu

        return gpu.moments(y)
    from plif_lightning.kernels import cpu

    y = channels_last(y)
    real = _real(y)
    geometry = _Geometry(y, 1, POOLS["none"])
    # About a value of each channel, so that a mean far from zero does not eat the variance's digits.
    pivot = y[:, 0, :, 0, 0].to(real)
    units = len(y) * -(-y[0].numel() // geometry.run)
    sums = np.zeros((geometry.threads, 2, len(y), geometry.run), np.float64 if real == torch.float64 else np.float32)
    parallel(cpu.statistics, units, geometry.threads, _rows(y), geometry.tiled(pivot, real), geometry.run, sums)
    count = y.shape[1] * y.shape[3] * y.shape[4]
    first, second = geometry.summed(sums) / count
    return (pivot + first).to(real), (second - first.square()).clamp_(min=0).to(real)


@moments.register_fake
def _(y: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(y.new_empty(y.shape[0], y.shape[2], dtype=_real(y)) for _ in range(2))  # type: ignore[return-value]


@torch.library.custom_op("plif::normalize_backward", mutates_args={"grad"}, device_types="cpu")
def normalize_backward(grad: Tensor, y: Tensor, factor: Tensor, offset: Tensor, slope: Tensor) -> None:
    """Turns dL/dX in `grad` into factor dL/dX + offset + slope y; the three are [T or 1, C]."""
    if interpreted():
        from plif_lightning.kernels import gpu

        gpu.normalize_backward(grad, y, factor, offset, slope)
        return
    from plif_lightning.kernels import cpu

    y = channels_last(y)
    real = _real(y)
    geometry = _Geometry(y, 1, POOLS["none"])
    units = len(y) * -(-y[0].numel() // geometry.run)
    tiles = (geometry.tiled(values, real) for values in (factor, offset, slope))
    parallel(cpu.normalise_back, units, geometry.threads, _rows(y), _rows(grad), *tiles, geometry.run)


@normalize_backward.register_fake
def _(grad: Tensor, y: Tensor, factor: Tensor, offset: Tensor, slope: Tensor) -> None:
    return None


@fire.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from plif_lightning.kernels import gpu

    return gpu.fire(*arguments)


@fire_backward.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from plif_lightning.kernels import gpu

    return gpu.fire_backward(*arguments)


@moments.register_kernel("cuda")
def _(y: Tensor) -> tuple[Tensor, Tensor]:
    from plif_lightning.kernels import gpu

    return gpu.moments(y)


@normalize_backward.register_kernel("cuda")
def _(*arguments: Any) -> None:
    from plif_lightning.kernels import gpu

    gpu.normalize_backward(*arguments)


# Inputs and outputs whose weights are used for all rows at a time: they stay in the second-level cache.
_BLOCK = (128, 1024)


def count_nonzero(x: Tensor) -> Tensor:
    """Values that are not zero in each row of x [R, K], on the CPU, [R] int64."""
    from plif_lightning.kernels import cpu

    counts = torch.empty(len(x), dtype=torch.int64)
    threads = torch.get_num_threads() if x.numel() >= _WORTH_THREADS else 1
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
    threads = torch.get_num_threads() if total * rows.shape[1] >= _WORTH_THREADS else 1
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
