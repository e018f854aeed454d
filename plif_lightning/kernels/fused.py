"""Fused forms of the reference's functions, with their gradients."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.equations import Dynamics
from plif_lightning.dynamics.reference import States, check_inputs, in_real_precision
from plif_lightning.kernels import ops
from plif_lightning.kernels.layout import POOLS, Pool, channels_last, real_type, rows_of
from plif_lightning.kernels.ops import outside_compile


class Norm(NamedTuple):
    """BN of a convolution's output: weight (y - mean) invstd + bias.

    Attributes:
        weight: [C].
        bias: [C].
        mean: per step and channel or per channel, [T or 1, C]; gets no gradient.
        invstd: 1 / sqrt(variance + eps), as mean.
        of_batch: mean and invstd are statistics of y, so that its gradient flows through them too.
        of_all_processes: they are taken over y of all processes (SyncBatchNorm).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    invstd: Tensor
    of_batch: bool = False
    of_all_processes: bool = False

    def to(self, real: torch.dtype) -> "Norm":
        """The same in the type that kernels compute in."""
        return self._replace(**{name: getattr(self, name).to(real) for name in self._fields[:4]})


class _FireFunction(torch.autograd.Function):
    """Neurons alone; saves x, the learned rows and the first states for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, learned: Tensor, states: Tensor | None, neuron: str, steps: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, learned, states)
        ctx.settings = neuron, steps
        # Most often the last states have no gradient; zeros in its place would cost a pass, and PyTorch's threads,
        # which fill them, spin for a while afterwards and delay the compiled loops (12 ms instead of 4.4 on two cores,
        # Zen 4).
        ctx.set_materialize_grads(False)
        scale = ops.no_norm(x)
        return ops.fire(x, scale, 0 * scale, learned, states, steps, POOLS["none"], neuron, True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        x, learned, states = ctx.saved_tensors
        neuron, steps = ctx.settings
        grad_spikes = x.new_zeros(steps, *x.shape[1:]) if grad_spikes is None else grad_spikes
        scale = ops.no_norm(x)
        zero = 0 * scale
        grad_x, grad_first, _, grad_learned = ops.fire_backward(
            x, scale, zero, zero, learned, states, no_seed(), grad_spikes, grad_last, steps, POOLS["none"], neuron
        )
        return grad_x, grad_learned, None if states is None else grad_first, None, None


def no_seed() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


@outside_compile
def run(
    x: Tensor, dynamics: Dynamics, states: Sequence[Tensor] | None = None, time_steps: int | None = None
) -> tuple[Tensor, States]:
    """`reference.run`, in a single pass over x; same arguments, results and errors."""
    steps = check_inputs(x, dynamics, states, time_steps)
    with in_real_precision(x.device):
        learned = rows_of(dynamics, x)
        if x.is_contiguous() and learned.shape[1] == 1:
            shape = (1, 1, 1, x[0].numel())  # all neurons are alike, so their layout does not matter
        else:
            c, h = (*x.shape[2:], 1, 1)[:2]
            shape = (x.shape[1], c, h, math.prod(x.shape[4:]))
        maps = x.reshape(len(x), *shape)
        if not x.dtype.is_floating_point:
            maps = maps.to(real_type(x))  # the kernels would read a 16-bit integer as bfloat16
        first = None if states is None else torch.stack([v.to(real_type(x)).reshape(shape) for v in states])
        spikes, last = _FireFunction.apply(maps, learned, first, dynamics.key, steps)
    return spikes.reshape(steps, *x.shape[1:]).to(x.dtype), last.reshape(len(last), *x.shape[1:]).unbind()


class _NormFirePool(torch.autograd.Function):
    """BN's affine map, neurons and pool; saves y, statistics, parameters and first states for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        learned: Tensor,
        states: Tensor | None,
        added: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        of_batch: bool,
        of_all_processes: bool,
        seed: Tensor,
        last: bool,
        pool: int,
        neuron: str,
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        scale, shift = affine(Norm(weight, bias, mean, invstd))
        ctx.save_for_backward(y, learned, mean, invstd, scale, shift, seed, states, added)
        ctx.settings = of_batch, of_all_processes, last, pool, neuron, steps
        return ops.fire(y, scale, shift, learned, states, steps, pool, neuron, last, added)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        y, learned, mean, invstd, scale, shift, seed, states, added = ctx.saved_tensors
        of_batch, of_all_processes, last, pool, neuron, steps = ctx.settings
        grad_y, grad_first, sums, grad_learned = ops.fire_backward(
            y, scale, shift, mean, learned, states, seed, grad_out, grad_last if last else None, steps, pool, neuron,
            added,
        )  # fmt: skip
        # That of BN's output, which `normalize_backward` replaces.
        grad_added = grad_y.clone() if added is not None and ctx.needs_input_grad[5] else None
        grad_weight, grad_bias = (sums[1] * invstd).sum(0), sums[0].sum(0)
        offset = slope = torch.zeros_like(scale)
        if of_batch:
            count = y.numel() // (y.shape[2] * len(scale))
            slope, constant = through_statistics(sums, count, scale, invstd, of_all_processes)
            offset = constant - slope * mean
        ops.normalize_backward(grad_y, y, scale, offset, slope)
        grad_states = None if states is None else grad_first
        return grad_y, grad_weight, grad_bias, grad_learned, grad_states, grad_added, *[None] * 9


class _Normalise(torch.autograd.Function):
    """BN alone, by statistics of the batch; saves y and statistics for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, of_all_processes: bool
    ) -> Tensor:
        scale, shift = affine(Norm(weight, bias, mean, invstd))
        ctx.save_for_backward(y, mean, invstd, scale)
        ctx.of_all_processes = of_all_processes
        return torch.addcmul(_over_maps(shift), y.to(scale.dtype), _over_maps(scale)).to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        y, mean, invstd, scale = ctx.saved_tensors
        # In y's layout: where layouts differ, PyTorch's operators take several times as long.
        grad, y = channels_last(grad_out).to(scale.dtype, copy=True), y.to(scale.dtype)
        of_step = y.shape[1] * y.shape[3] * y.shape[4]
        means = [ops.moments(values)[0] for values in (grad, grad * (y - _over_maps(mean)))]
        sums = of_step * torch.stack(means)
        sums = sums if len(scale) == len(y) else sums.sum(1, keepdim=True)
        count = of_step * (len(y) // len(scale))
        slope, constant = through_statistics(sums, count, scale, invstd, ctx.of_all_processes)
        ops.normalize_backward(grad, y, scale, constant - slope * mean, slope)
        return grad.to(grad_out.dtype), (sums[1] * invstd).sum(0), sums[0].sum(0), None, None, None


def _over_maps(rows: Tensor) -> Tensor:
    """Rows [S, C] beside maps [T, N, C, H, W]."""
    return rows[:, None, :, None, None]


def affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """BN as scale y + shift, [S, C] each."""
    scale = norm.weight * norm.invstd
    return scale, norm.bias - norm.mean * scale


def through_statistics(
    sums: Tensor, count: int, scale: Tensor, invstd: Tensor, synchronise: bool
) -> tuple[Tensor, Tensor]:
    """BN's gradient through the batch's statistics: dL/dy = scale dL/dX + slope (y - mean) + constant.

    With X = BN's output and z = normalised y: dL/dy = scale (dL/dX - mean(dL/dX) - z mean(dL/dX z)).

    Args:
        sums: sums from `ops.fire_backward` [2, S, C].
        count: number of values of each of the S statistics in this process.
        scale: BN's weight / standard deviation [S, C].
        invstd: [S, C].
        synchronise: the statistics are taken over all processes.

    Returns:
        slope and constant, [S, C] each.
    """
    n = torch.tensor(float(count), device=sums.device, dtype=sums.dtype)
    if synchronise:
        sums, n = _summed_over_processes(sums), _summed_over_processes(n)
    return -scale * invstd.square() * sums[1] / n, -scale * sums[0] / n


def _summed_over_processes(values: Tensor) -> Tensor:
    values = values.clone()
    dist.all_reduce(values)
    return values


@outside_compile
def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each step and channel of y [T, N, C, H, W], [T, C] each; without gradient."""
    return ops.moments(y.detach())


def moments_over_processes(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of values [*, C] over the batches of all processes, from the values of this process."""
    counts = torch.full_like(mean, float(count))
    total, n = _summed_over_processes(torch.stack([mean * counts, counts]))
    of_all = total / n
    # Deviations from the mean of all: squares minus the squared mean would cancel where the mean is large.
    return of_all, _summed_over_processes((var + (mean - of_all).square()) * counts) / n, n


@outside_compile
def normalise(y: Tensor, norm: Norm) -> Tensor:
    """BN of y [T, N, C, H, W], C innermost in memory, by statistics of the batch, in y's dtype."""
    norm = norm.to(real_type(y))
    output: Tensor = _Normalise.apply(y, *norm[:4], norm.of_all_processes)
    return output


@outside_compile
def norm_fire_pool(
    y: Tensor,
    norm: Norm,
    dynamics: Dynamics,
    states: Sequence[Tensor] | None = None,
    *,
    pool: Pool = "none",
    seed: Tensor | None = None,
    time_steps: int | None = None,
    added: Tensor | None = None,
    last: bool = False,
) -> tuple[Tensor, States]:
    """BN, `reference.run` and a 2x2 pool in a single pass over y.

    Args:
        y: the convolution's output [T, N, C, H, W], or [1, N, C, H, W] held for `time_steps`.
        norm: BN.
        dynamics: the neurons.
        states: before the first step, [N, C, H, W] each; None: the neurons' first ones.
        pool: none, max_first, max_random or avg.
        seed: int64 on the CPU, for max_random.
        time_steps: T, for a held y.
        added: addend to BN's output, in the shape of y, such as the shortcut of a residual block; on a CPU.
        last: return the states after the last step; only without a pool.

    Returns:
        Spikes [T, N, C, H', W'] in the dtype of y; the last states [N, C, H, W] each, none without `last`.
    """
    steps = check_inputs(y, dynamics, states, time_steps)
    real = real_type(y)
    first = None if states is None else torch.stack([state.to(real) for state in states])
    seed = no_seed() if seed is None else seed
    with in_real_precision(y.device):
        norm = norm.to(real)
        spikes, after = _NormFirePool.apply(
            y, norm.weight, norm.bias, rows_of(dynamics, y), first, added, *norm[2:], seed, last, POOLS[pool],
            dynamics.key, steps,
        )  # fmt: skip
    return spikes, after.unbind() if last else ()
