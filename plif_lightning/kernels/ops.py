"""The fused operators: plain functions of CPU tensors, and PyTorch operators for Triton's kernels.

`plif::fire` is BN's affine map, the neuron over all T and the pool; `plif::fire_backward` recomputes the potentials
from its input; `plif::moments` computes BN's statistics; `plif::normalize_backward` turns the gradient of BN's output
into that of its input. `fused.py` combines them, with BN's exact gradient.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.dynamics.equations import Program, program
from plif_lightning.kernels import layout, loops
from plif_lightning.kernels.layout import (
    BACKWARD,
    LANES,
    POOLS,
    AffineRows,
    Geometry,
    Gradients,
    NeuronCode,
    array_of,
    channels_last,
    empty_map,
    empty_states,
    real_type,
)
from plif_lightning.kernels.parallel import parallel, unnamed

_LIBRARY = torch.library.Library("plif", "FRAGMENT")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def outside_compile(function: _Function) -> _Function:
    """Decorator: run a function of CPU tensors outside of compiled graphs; the first argument is a tensor.

    `torch.compiler.disable` imports Dynamo, which takes a second, so it is called only once Dynamo has been imported.
    """
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def run(x: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal disabled
        if x.device.type != "cpu" or "torch._dynamo" not in sys.modules:
            return function(x, *arguments, **named)
        disabled = disabled or torch.compiler.disable(outside)
        return disabled(x, *arguments, **named)

    def outside(*arguments: Any, **named: Any) -> Any:
        # Otherwise Dynamo would compile `run` itself, for every shape, where a graph breaks at its call.
        torch._dynamo.eval_frame.skip_code(cast("Any", run).__code__)
        return function(*arguments, **named)

    return cast("_Function", run)


class _Kernel:
    """A kernel for CPU tensors, and its namesakes of `layout.ACCELERATORS` as the operator `torch.ops.plif.NAME`.

    Compilers and fake tensors see the operator as a call.

    Args:
        on_cpu: the kernel, with types that `torch.library.infer_schema` supports.
        mutates: names of the arguments that it writes to.
    """

    def __init__(self, on_cpu: Callable[..., Any], mutates: tuple[str, ...] = ()) -> None:
        self.on_cpu, self.name = on_cpu, on_cpu.__name__

        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
        _LIBRARY.define(self.name + torch.library.infer_schema(on_cpu, mutates_args=mutates), tags=tags)
        for name, accelerator in layout.ACCELERATORS.items():
            _LIBRARY.impl(self.name, functools.partial(self._run_in, name), accelerator.device.upper())
        _LIBRARY.impl(self.name, lambda *arguments: self._run_in(layout.ON_CPU, *arguments), "CPU")

    def _run_in(self, accelerator: str, *arguments: Any) -> Any:
        """The result of an accelerator's kernel, imported at the call: its package may be missing."""
        return getattr(importlib.import_module(layout.ACCELERATORS[accelerator].module), self.name)(*arguments)

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """Register a function that returns empty results, from which compilers infer shapes and types."""
        torch.library.register_fake(f"plif::{self.name}", fake, lib=_LIBRARY)

    def __call__(self, x: Tensor, *arguments: Any) -> Any:
        if x.device.type == "cpu" and layout.ON_CPU == "cpu":
            return self.on_cpu(x, *arguments)
        return getattr(torch.ops.plif, self.name)(x, *arguments)


def _optional(states: Tensor | None, real: torch.dtype) -> NDArray[Any]:
    """States [S, N, C, H, W] as the compiled loops take them, [S, N H W C]; empty for None."""
    if states is None or states.numel() == 0:
        return torch.empty(0, 1, dtype=real, device="cpu").numpy()
    return array_of(channels_last(states.detach().to(real)))


def _added_values(added: Tensor | None, y: Tensor) -> NDArray[Any]:
    """`added` as an array for the compiled loops; empty for None."""
    if added is None:
        return np.empty((0, 1), array_of(y).dtype)
    return array_of(channels_last(added.detach().to(y.dtype)))


def start_of(neuron: Program, real: torch.dtype) -> NDArray[Any]:
    """The states before the first step as the compiled loops take them, [S]."""
    return np.array(neuron.start, np.float64 if real == torch.float64 else np.float32)


def no_norm(y: Tensor) -> Tensor:
    """Scale and shift of `fire` without BN: [0, C] for the CPU's loops, which then read y itself; otherwise ones.

    (Their shift is zero times it.)
    """
    on_cpu = y.device.type == "cpu" and layout.ON_CPU == "cpu"
    return y.new_ones(0 if on_cpu else 1, y.shape[2], dtype=real_type(y))


class PreparedFire(NamedTuple):
    """`fire` for maps of a shape: the arguments of its loop that depend on no values of the map."""

    units: int
    threads: int
    norm: Any
    neuron: Any
    sizes: Any

    @classmethod
    def of(
        cls, geometry: Geometry, scale: Tensor, shift: Tensor, learned: Tensor, neuron: str, real: torch.dtype
    ) -> "PreparedFire":
        norm = AffineRows(geometry.tile_channels(scale, real), *[geometry.tile_channels(shift, real)] * 2)
        code = loops.machine_code_of("fire", neuron, real, learned.shape[1] == 1)
        loop = NeuronCode(code, 0, geometry.parameters(learned, real), start_of(program(neuron), real))
        return cls(geometry.units, geometry.threads, *unnamed(norm, loop, geometry.sizes))

    def __call__(self, y: Any, added: Any, states: tuple[Any, Any], out: Any) -> None:
        """Fill `out`, and the second of the states, from arrays of rows."""
        parallel(loops.cpu.forward, self.units, self.threads, y, added, self.norm, self.neuron, states, out, self.sizes)


@_Kernel
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
        scale: factor per channel, and per step if BN's statistics are, [T or 1, C]; without BN as of `no_norm`.
        shift: added to scale y, as scale.
        learned: parameters of the neurons, see `layout.rows_of`, [P, 1 or C].
        states: before the first step [S, N, C, H, W]; None for the neuron's.
        steps: T.
        pool: number of the pooling, see `layout.POOLS`.
        neuron: key of its program, see `equations.program`.
        last: return the last states; only without a pool.
        added: addend to scale y + shift, in the shape of y; None for none.
    """
    p = program(neuron)
    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, steps, pool, len(p.states))
    halve = 2 if geometry.pooled else 1
    out = empty_map(y, steps, y.shape[3] // halve, y.shape[4] // halve)
    final = empty_states(y, len(p.states) if last else 0)
    states_io = _optional(states, real), array_of(final) if last else _optional(None, real)
    prepared = PreparedFire.of(geometry, scale, shift, learned, neuron, real)
    prepared(array_of(y), _added_values(added, y), states_io, array_of(out))
    return out, final


@fire.register_fake
def _(
    y: Tensor, scale: Any, shift: Any, learned: Any, states: Any, steps: int, pool: int, neuron: str, last: bool,
    added: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    halve = 2 if pool else 1
    number = len(program(neuron).states) if last else 0
    return empty_map(y, steps, y.shape[3] // halve, y.shape[4] // halve), empty_states(y, number)


@_Kernel
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
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dL/dX in the shape of y, with X = scale y + shift + added; of the first states; sums; the gradient of `learned`.

    The sums [2, T or 1, C] are, for each row of scale, of dL/dX and of dL/dX (y - mean). Arguments as in `fire`,
    and `seed`, int64, which breaks ties within a window.
    """
    p = program(neuron)
    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, steps, pool, len(p.states), BACKWARD)
    grad_y = empty_map(y, len(y), *y.shape[3:])
    if geometry.pooled and (y.shape[3] % 2 or y.shape[4] % 2):
        grad_y.zero_()  # an odd last row or column lies in no window
    grad_first = empty_states(y, 0 if states is None else len(p.states))
    sums, sums_learned = sums_for(geometry, len(scale), learned, real)
    norm = AffineRows(*(geometry.tile_channels(row, real) for row in (scale, shift, mean)))
    codes = codes_of_backward(neuron, pool, real, learned)
    loop = NeuronCode(*codes, geometry.parameters(learned, real), start_of(p, real))
    grads = Gradients(
        array_of(channels_last(grad_out.to(y.dtype))),
        _optional(grad_last, real),
        array_of(grad_y),
        _optional(None, real) if states is None else array_of(grad_first),
    )
    inputs = array_of(y), _added_values(added, y), norm, loop, _optional(states, real)
    arguments = unnamed(*inputs, grads, (sums, sums_learned), geometry.sizes, seed_of(seed))
    parallel(loops.cpu_backward.backward, geometry.units, geometry.threads, *arguments)
    return grad_y, grad_first, *sums_of_backward(geometry, sums, sums_learned, scale, learned)


def seed_of(seed: Tensor) -> Any:
    """The seed as the compiled loops take it: uint32."""
    return np.uint32(int(seed) & 0xFFFFFFFF)


def codes_of_backward(neuron: str, pool: int, real: torch.dtype, learned: Tensor) -> tuple[int, int]:
    """Addresses of a neuron's code for `cpu_backward.backward`: a step, and a step back."""
    shared, to_winner = learned.shape[1] == 1, pool in (POOLS["max_first"], POOLS["max_random"])
    back = loops.machine_code_of("fire_back", neuron, real, shared, to_winner)
    return loops.machine_code_of("fire", neuron, real, shared), back


def sums_for(
    geometry: Geometry, norm_rows: int, learned: Tensor, real: torch.dtype
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Zeros for the sums of `cpu_backward.backward`, of each thread: for each row of scale, and of the parameters."""
    slots, shared = geometry.threads, learned.shape[1] == 1
    sums = np.zeros((slots, 2, norm_rows, geometry.run), np.float64 if real == torch.float64 else np.float32)
    return sums, np.zeros((slots, len(learned), LANES if shared else geometry.width), np.float64)


def sums_of_backward(
    geometry: Geometry, sums: NDArray[Any], sums_learned: NDArray[Any], scale: Tensor, learned: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums and the gradient of `learned` of `fire_backward`, from the sums of the compiled loops."""
    return geometry.sum_slots(sums).to(scale.dtype), geometry.sum_parameter_slots(sums_learned, learned).to(scale.dtype)


@fire_backward.register_fake
def _(
    y: Tensor, scale: Tensor, shift: Any, mean: Any, learned: Tensor, states: Tensor | None, seed: Any, grad_out: Any,
    grad_last: Any, steps: int, pool: int, neuron: str, added: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        empty_map(y, y.shape[0], *y.shape[3:]),
        empty_states(y, 0 if states is None else len(program(neuron).states)),
        y.new_empty(2, scale.shape[0], y.shape[2], dtype=real_type(y)),
        y.new_empty(learned.shape, dtype=real_type(y)),
    )


@_Kernel
def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each step and channel of y [T, N, C, H, W], [T, C] each, in float32 at least."""
    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, 1, POOLS["none"])
    # Moments about a value per channel: a mean far from zero would cancel the variance's digits.
    pivot = y[:, 0, :, 0, 0].to(real)
    units = len(y) * -(-y[0].numel() // geometry.run)
    sums = np.zeros((geometry.threads, 2, len(y), geometry.run), np.float64 if real == torch.float64 else np.float32)
    parallel(
        loops.cpu.statistics, units, geometry.threads,
        array_of(y), geometry.tile_channels(pivot, real), geometry.run, sums,
    )  # fmt: skip
    count = y.shape[1] * y.shape[3] * y.shape[4]
    first, second = geometry.sum_slots(sums) / count
    return (pivot + first).to(real), (second - first.square()).clamp_(min=0).to(real)


@moments.register_fake
def _(y: Tensor) -> tuple[Tensor, Tensor]:
    empty = [y.new_empty(y.shape[0], y.shape[2], dtype=real_type(y)) for _ in range(2)]
    return empty[0], empty[1]


@functools.partial(_Kernel, mutates=("grad",))
def normalize_backward(grad: Tensor, y: Tensor, factor: Tensor, offset: Tensor, slope: Tensor) -> None:
    """Replace dL/dX in `grad` by factor dL/dX + offset + slope y, in place; the three are [T or 1, C]."""
    y = channels_last(y)
    real = real_type(y)
    geometry = Geometry(y, 1, POOLS["none"])
    units = len(y) * -(-y[0].numel() // geometry.run)
    tiles = (geometry.tile_channels(values, real) for values in (factor, offset, slope))
    parallel(
        loops.cpu_backward.normalise_back, units, geometry.threads, array_of(y), array_of(grad), *tiles, geometry.run
    )


@normalize_backward.register_fake
def _(grad: Tensor, y: Tensor, factor: Tensor, offset: Tensor, slope: Tensor) -> None:
    return None
