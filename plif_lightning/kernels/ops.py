"""The fused operators: one schema each, with a CPU and a CUDA kernel.

`plif::fire` is BN's affine map, the neuron over all T and the pool; `plif::fire_backward` recomputes the potentials
from its input; `plif::moments` computes BN's statistics; `plif::normalize_backward` turns the gradient of BN's output
into that of its input. `fused.py` combines them, with BN's exact gradient.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.kernels import layout
from plif_lightning.kernels.layout import (
    BACKWARD,
    POOLS,
    Constants,
    Geometry,
    K,
    array_of,
    channels_last,
    empty_map,
    empty_potential,
    real_type,
)
from plif_lightning.kernels.operators import Operator
from plif_lightning.kernels.parallel import parallel


def _operator(mutates: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Operator]:
    """Register a function as the CPU kernel of the operator of its name, and its namesake in kernels/gpu.py for CUDA.

    With TRITON_INTERPRET=1 the CUDA kernel runs on the CPU too, in Triton's interpreter.
    """

    def register(on_cpu: Callable[..., Any]) -> Operator:
        def on_gpu(*arguments: Any) -> Any:
            from plif_lightning.kernels import gpu  # deferred: Triton may be missing

            # Triton launches on the current device, which may not be that of the data.
            with torch.cuda.device_of(arguments[0]):
                return getattr(gpu, on_cpu.__name__)(*arguments)

        @functools.wraps(on_cpu)
        def here(*arguments: Any) -> Any:
            return (on_gpu if layout.interpreted() else on_cpu)(*arguments)

        made = Operator(here, mutates, ["CPU"])
        made.register_kernel("CUDA", on_gpu)
        return made

    return register


def _optional(v: Tensor | None, real: torch.dtype) -> NDArray[Any]:
    """A potential [N, C, H, W] as the compiled loops take it, [1, N H W C]; empty for None."""
    if v is None or v.numel() == 0:
        return torch.empty(0, 1, dtype=real, device="cpu").numpy()
    return array_of(channels_last(v.detach().to(real)[None]))


@_operator()
def fire(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    learned: Tensor,
    v: Tensor | None,
    steps: int,
    pool: int,
    constants: Sequence[float],
    last: bool,
) -> tuple[Tensor, Tensor]:
    """Pooled spikes [T, N, C, H', W'] and, if `last`, the potential after the last step [N, C, H, W].

    Args:
        y: [T, N, C, H, W], or [1, N, C, H, W] held for T steps.
        scale: factor per channel, and per step if BN's statistics are, [T or 1, C].
        shift: added to scale y, as scale.
        learned: see `layout.rows_of`, [2, 1 or C].
        v: potential before the first step [N, C, H, W]; None for V_reset.
        steps: T.
        pool: number of the pooling, see `layout.POOLS`.
        constants: see `layout.Constants`.
        last: return the last potential; only without a pool.
    """
    from plif_lightning.kernels import cpu  # deferred: imports numba

    layout.require_pool(pool)
    c = Constants.from_numbers(constants)
    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, steps, pool)
    halve = 2 if geometry.pooled else 1
    out = empty_map(y, steps, y.shape[3] // halve, y.shape[4] // halve)
    final = empty_potential(y, last)
    rows = geometry.tiled(scale, real), geometry.tiled(shift, real), geometry.tiled_row(learned[K], real)
    potentials = _optional(v, real), array_of(final[None]) if last else _optional(None, real)
    given, settings = (array_of(y), *rows, *potentials), geometry.settings(learned, c, real)
    parallel(cpu.forward, geometry.units, geometry.threads, *given, array_of(out), *settings)
    return out, final


@fire.register_fake
def _(
    y: Tensor, scale: Any, shift: Any, learned: Any, v: Any, steps: int, pool: int, constants: Any, last: bool
) -> tuple[Tensor, Tensor]:
    halve = 2 if pool else 1
    return empty_map(y, steps, y.shape[3] // halve, y.shape[4] // halve), empty_potential(y, last)


@_operator()
def fire_backward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    learned: Tensor,
    v: Tensor | None,
    seed: Tensor,
    grad_out: Tensor,
    grad_last: Tensor | None,
    steps: int,
    pool: int,
    constants: Sequence[float],
    windows: int,
    first_window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dL/dX in the shape of y, with X = scale y + shift; dL/dV_{-1}; sums; the gradient of `learned`.

    The sums [2, T or 1, C] are, for each row of scale, those of dL/dX and of dL/dX (y - mean). Arguments as in `fire`,
    and `seed`, int64, which breaks ties within a window. If y is a band of rows of a feature map, `windows` is the
    number of windows of the whole map, and `first_window` the index of the band's first: the drawn ties depend on them.
    """
    from plif_lightning.kernels import cpu_backward  # deferred: imports numba

    layout.require_pool(pool)
    c = Constants.from_numbers(constants)
    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, steps, pool, BACKWARD)
    grad_y = empty_map(y, len(y), *y.shape[3:])
    if geometry.pooled and (y.shape[3] % 2 or y.shape[4] % 2):
        grad_y.zero_()  # an odd last row or column lies in no window
    grad_v = empty_potential(y, v is not None)
    slots = geometry.threads
    sums = np.zeros((slots, 2, len(scale), geometry.run), np.float64 if real == torch.float64 else np.float32)
    sums_learned = np.zeros((slots, len(learned), geometry.run), sums.dtype)
    rows = (*(geometry.tiled(row, real) for row in (scale, shift, mean)), geometry.tiled_row(learned[K], real))
    given = array_of(y), *rows, _optional(v, real), array_of(channels_last(grad_out.to(y.dtype)))
    found = array_of(grad_y), _optional(None, real) if v is None else array_of(grad_v[None]), sums, sums_learned
    settings = *geometry.settings(learned, c, real), seed_of(seed), windows, first_window
    parallel(
        cpu_backward.backward, geometry.units, geometry.threads, *given, _optional(grad_last, real), *found, *settings
    )
    return grad_y, grad_v, *sums_of_backward(geometry, sums, sums_learned, scale, shift, mean, learned, c)


def seed_of(seed: Tensor) -> Any:
    """The seed as the compiled loops take it: uint32."""
    return np.uint32(int(seed) & 0xFFFFFFFF)


def sums_of_backward(
    geometry: Geometry, sums: NDArray[Any], sums_learned: NDArray[Any], scale: Tensor, shift: Tensor, mean: Tensor,
    learned: Tensor, constants: Constants,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sums and the gradient of `learned` of `fire_backward`, from the partial sums of the compiled loops."""
    grad_h, grad_h_y = geometry.summed(sums)
    grad_learned = geometry.summed(sums_learned)
    if constants.leak:
        # dL/dk = dL/dH (X - (V - V_reset)), and X = scale (y - mean) + scale mean + shift
        wide_scale, wide_mean = scale.double(), mean.double()
        drive = (wide_scale * grad_h_y + (wide_scale * wide_mean + shift.double()) * grad_h).sum(0)
        grad_learned[K] = drive - grad_learned[K]
    totals = torch.stack([grad_h, grad_h_y]).mul(learned[K].double())
    return totals.to(scale.dtype), _like(grad_learned, learned).to(scale.dtype)


def _like(grad: Tensor, learned: Tensor) -> Tensor:
    """Reduce gradients per channel [2, C] to the shape of `learned`, [2, 1 or C]."""
    return grad if grad.shape == learned.shape else grad.sum(1, keepdim=True)


@fire_backward.register_fake
def _(
    y: Tensor, scale: Tensor, shift: Any, mean: Any, learned: Tensor, v: Tensor | None, seed: Any, grad_out: Any,
    grad_last: Any, steps: int, pool: int, constants: Any, windows: int, first_window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        empty_map(y, y.shape[0], *y.shape[3:]),
        empty_potential(y, v is not None),
        y.new_empty(2, scale.shape[0], y.shape[2], dtype=real_type(y)),
        y.new_empty(learned.shape, dtype=real_type(y)),
    )


@_operator()
def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each step and channel of y [T, N, C, H, W], [T, C] each, in float32 at least."""
    from plif_lightning.kernels import cpu  # deferred: imports numba

    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, 1, POOLS["none"])
    # Moments about one value per channel: a mean far from zero would cancel the variance's digits.
    pivot = y[:, 0, :, 0, 0].to(real)
    units = len(y) * -(-y[0].numel() // geometry.run)
    sums = np.zeros((geometry.threads, 2, len(y), geometry.run), np.float64 if real == torch.float64 else np.float32)
    parallel(cpu.statistics, units, geometry.threads, array_of(y), geometry.tiled(pivot, real), geometry.run, sums)
    count = y.shape[1] * y.shape[3] * y.shape[4]
    first, second = geometry.summed(sums) / count
    return (pivot + first).to(real), (second - first.square()).clamp_(min=0).to(real)


@moments.register_fake
def _(y: Tensor) -> tuple[Tensor, Tensor]:
    empty = [y.new_empty(y.shape[0], y.shape[2], dtype=real_type(y)) for _ in range(2)]
    return empty[0], empty[1]


@_operator(mutates=("grad",))
def normalize_backward(grad: Tensor, y: Tensor, factor: Tensor, offset: Tensor, slope: Tensor) -> None:
    """Replace dL/dX in `grad` by factor dL/dX + offset + slope y, in place; the three are [T or 1, C]."""
    from plif_lightning.kernels import cpu_backward  # deferred: imports numba

    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, 1, POOLS["none"])
    units = len(y) * -(-y[0].numel() // geometry.run)
    tiles = (geometry.tiled(values, real) for values in (factor, offset, slope))
    parallel(cpu_backward.normalise_back, units, geometry.threads, array_of(y), array_of(grad), *tiles, geometry.run)


@normalize_backward.register_fake
def _(grad: Tensor, y: Tensor, factor: Tensor, offset: Tensor, slope: Tensor) -> None:
    return None
