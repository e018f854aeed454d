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

from plif_lightning.dynamics.equations import Program, program
from plif_lightning.errors import UserError
from plif_lightning.kernels import layout
from plif_lightning.kernels.layout import (
    BACKWARD,
    LANES,
    POOLS,
    Geometry,
    array_of,
    channels_last,
    empty_map,
    empty_states,
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


def _optional(states: Tensor | None, real: torch.dtype) -> NDArray[Any]:
    """States [S, N, C, H, W] as the compiled loops take them, [S, N H W C]; empty for None."""
    if states is None or states.numel() == 0:
        return torch.empty(0, 1, dtype=real, device="cpu").numpy()
    return array_of(channels_last(states.detach().to(real)))


def _added(added: Tensor | None, y: Tensor) -> NDArray[Any]:
    """`added` as an array for the compiled loops; empty for None."""
    if added is None:
        return np.empty((0, 1), array_of(y).dtype)
    if added.shape != y.shape:
        raise UserError(f"added must have the shape of y, {list(y.shape)}, got {list(added.shape)}.")
    return array_of(channels_last(added.detach().to(y.dtype)))


def start_of(neuron: Program, real: torch.dtype) -> NDArray[Any]:
    """The states before the first step as the compiled loops take them, [S]."""
    return np.array(neuron.start, np.float64 if real == torch.float64 else np.float32)


@_operator()
def fire(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    learned: Tensor,
    states: Tensor | None,
    steps: int,
    pool: int,
    neuron: str,
    last: bool,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Pooled spikes [T, N, C, H', W'] and, if `last`, the states after the last step [S, N, C, H, W].

    Args:
        y: [T, N, C, H, W], or [1, N, C, H, W] held for T steps.
        scale: factor per channel, and per step if BN's statistics are, [T or 1, C].
        shift: added to scale y, as scale.
        learned: parameters of the neurons, see `layout.rows_of`, [P, 1 or C].
        states: before the first step [S, N, C, H, W]; None for those of the neuron.
        steps: T.
        pool: number of the pooling, see `layout.POOLS`.
        neuron: key of its program, see `layout.key_of`.
        last: return the last states; only without a pool.
        added: what is added to scale y + shift, in the shape of y; None for nothing.
    """
    from plif_lightning.kernels import cpu  # deferred: imports numba
    from plif_lightning.kernels.machine_code import code_of

    layout.require_pool(pool)
    p = program(neuron)
    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, steps, pool, len(p.states))
    halve = 2 if geometry.pooled else 1
    out = empty_map(y, steps, y.shape[3] // halve, y.shape[4] // halve)
    final = empty_states(y, len(p.states) if last else 0)
    rows = geometry.tiled(scale, real), geometry.tiled(shift, real), geometry.parameters(learned, real)
    around = start_of(p, real), _optional(states, real), array_of(final) if last else _optional(None, real)
    code = code_of("fire", neuron, real, learned.shape[1] == 1)
    given = array_of(y), _added(added, y), *rows, *around, array_of(out), code, *geometry.sizes
    parallel(cpu.forward, geometry.units, geometry.threads, *given)
    return out, final


@fire.register_fake
def _(
    y: Tensor, scale: Any, shift: Any, learned: Any, states: Any, steps: int, pool: int, neuron: str, last: bool,
    added: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    halve = 2 if pool else 1
    number = len(program(neuron).states) if last else 0
    return empty_map(y, steps, y.shape[3] // halve, y.shape[4] // halve), empty_states(y, number)


@_operator()
def fire_backward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    learned: Tensor,
    states: Tensor | None,
    seed: Tensor,
    grad_out: Tensor,
    grad_last: Tensor | None,
    steps: int,
    pool: int,
    neuron: str,
    windows: int,
    first_window: int,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dL/dX in the shape of y, with X = scale y + shift + added; of the first states; sums; the gradient of `learned`.

    The sums [2, T or 1, C] are, for each row of scale, those of dL/dX and of dL/dX (y - mean). Arguments as in `fire`,
    and `seed`, int64, which breaks ties within a window. If y is a band of rows of a feature map, `windows` is the
    number of windows of the whole map, and `first_window` the index of the band's first: the drawn ties depend on them.
    """
    from plif_lightning.kernels import cpu_backward  # deferred: imports numba

    layout.require_pool(pool)
    p = program(neuron)
    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, steps, pool, len(p.states) + len(p.kept), BACKWARD)
    grad_y = empty_map(y, len(y), *y.shape[3:])
    if geometry.pooled and (y.shape[3] % 2 or y.shape[4] % 2):
        grad_y.zero_()  # an odd last row or column lies in no window
    grad_first = empty_states(y, 0 if states is None else len(p.states))
    sums, sums_learned = sums_for(geometry, len(scale), learned, real)
    rows = *(geometry.tiled(row, real) for row in (scale, shift, mean)), geometry.parameters(learned, real)
    given = (
        array_of(y),
        _added(added, y),
        *rows,
        start_of(p, real),
        _optional(states, real),
        array_of(channels_last(grad_out.to(y.dtype))),
    )
    found = array_of(grad_y), _optional(None, real) if states is None else array_of(grad_first), sums, sums_learned
    code = codes_of_backward(neuron, pool, real, learned)
    around = *geometry.sizes, len(p.kept), seed_of(seed), windows, first_window
    arguments = *given, _optional(grad_last, real), *found, *code, *around
    parallel(cpu_backward.backward, geometry.units, geometry.threads, *arguments)
    return grad_y, grad_first, *sums_of_backward(geometry, sums, sums_learned, scale, learned)


def seed_of(seed: Tensor) -> Any:
    """The seed as the compiled loops take it: uint32."""
    return np.uint32(int(seed) & 0xFFFFFFFF)


def codes_of_backward(neuron: str, pool: int, real: torch.dtype, learned: Tensor) -> tuple[int, int]:
    """Addresses of a neuron's code for `cpu_backward.backward`: a step, and a step back."""
    from plif_lightning.kernels.machine_code import code_of

    share = {POOLS["none"]: "alone", POOLS["avg"]: "quarter"}.get(pool, "winner")
    shared = learned.shape[1] == 1
    return code_of("fire", neuron, real, shared, True), code_of("fire_back", neuron, real, shared, share)


def sums_for(geometry: Geometry, kinds: int, learned: Tensor, real: torch.dtype) -> tuple[NDArray[Any], NDArray[Any]]:
    """Zeros for the sums of `cpu_backward.backward`, of each thread: for each row of scale, and of the parameters."""
    slots, shared = geometry.threads, learned.shape[1] == 1
    sums = np.zeros((slots, 2, kinds, geometry.run), np.float64 if real == torch.float64 else np.float32)
    return sums, np.zeros((slots, len(learned), LANES if shared else geometry.width), np.float64)


def sums_of_backward(
    geometry: Geometry, sums: NDArray[Any], sums_learned: NDArray[Any], scale: Tensor, learned: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums and the gradient of `learned` of `fire_backward`, from those of the compiled loops."""
    return geometry.summed(sums).to(scale.dtype), geometry.summed_parameters(sums_learned, learned).to(scale.dtype)


@fire_backward.register_fake
def _(
    y: Tensor, scale: Tensor, shift: Any, mean: Any, learned: Tensor, states: Tensor | None, seed: Any, grad_out: Any,
    grad_last: Any, steps: int, pool: int, neuron: str, windows: int, first_window: int,
    added: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        empty_map(y, y.shape[0], *y.shape[3:]),
        empty_states(y, 0 if states is None else len(program(neuron).states)),
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
