"""Fused forms of the reference's functions, with their gradients."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.equations import Dynamics
from plif_lightning.dynamics.reference import States, checked, in_own_precision
from plif_lightning.kernels import ops as ops  # registers the operators
from plif_lightning.kernels.layout import POOLS, Pool, real_type, rows_of


class _Fire(torch.autograd.Function):
    """Neurons alone; saves x, the learned rows and the first states for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, learned: Tensor, states: Tensor | None, neuron: str, steps: int) -> tuple[Tensor, Tensor]:
        one = x.new_ones(1, x.shape[2], dtype=real_type(x))
        return torch.ops.plif.fire(x, one, torch.zeros_like(one), learned, states, steps, POOLS["none"], neuron, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.settings = inputs[3:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        x, learned, states = ctx.saved_tensors
        neuron, steps = ctx.settings
        one = x.new_ones(1, x.shape[2], dtype=real_type(x))
        zero = torch.zeros_like(one)
        grad_x, grad_first, _, grad_learned = torch.ops.plif.fire_backward(
            x, one, zero, zero, learned, states, no_seed(), grad_spikes, grad_last, steps, POOLS["none"], neuron, 0, 0
        )
        return grad_x, grad_learned, None if states is None else grad_first, None, None


def no_seed() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def run(
    x: Tensor, dynamics: Dynamics, states: Sequence[Tensor] | None = None, time_steps: int | None = None
) -> tuple[Tensor, States]:
    """`reference.run`, in one pass over x; same arguments, results and errors."""
    steps = checked(x, dynamics, states, time_steps)
    with in_own_precision(x.device):
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
        spikes, last = _Fire.apply(maps, learned, first, dynamics.key, steps)
    return spikes.reshape(steps, *x.shape[1:]).to(x.dtype), last.reshape(len(last), *x.shape[1:]).unbind()


class _NormFirePool(torch.autograd.Function):
    """BN's affine map, neurons and pool; saves y, statistics, parameters and first states for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        learned: Tensor,
        mean: Tensor,
        invstd: Tensor,
        seed: Tensor,
        states: Tensor | None,
        last: bool,
        batch_statistics: bool,
        synchronise: bool,
        pool: int,
        neuron: str,
        steps: int,
        added: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        scale, shift = affine(weight, bias, mean, invstd)
        return torch.ops.plif.fire(y, scale, shift, learned, states, steps, pool, neuron, last, added)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        y, weight, bias, learned, mean, invstd, seed, states, *ctx.settings, added = inputs
        ctx.save_for_backward(y, learned, mean, invstd, *affine(weight, bias, mean, invstd), seed, states, added)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        y, learned, mean, invstd, scale, shift, seed, states, added = ctx.saved_tensors
        last, batch_statistics, synchronise, pool, neuron, steps = ctx.settings
        windows = (y.shape[3] // 2) * (y.shape[4] // 2)
        grad_y, grad_first, sums, grad_learned = torch.ops.plif.fire_backward(
            y, scale, shift, mean, learned, states, seed, grad_out, grad_last if last else None,
            steps, pool, neuron, windows, 0, added,
        )  # fmt: skip
        # That of BN's output, which `normalize_backward` replaces.
        grad_added = grad_y.clone() if added is not None and ctx.needs_input_grad[-1] else None
        grad_weight, grad_bias = (sums[1] * invstd).sum(0), sums[0].sum(0)
        offset = slope = torch.zeros_like(scale)
        if batch_statistics:
            count = y.numel() // (y.shape[2] * len(scale))
            slope, constant = through_statistics(sums, count, scale, invstd, synchronise)
            offset = constant - slope * mean
        torch.ops.plif.normalize_backward(grad_y, y, scale, offset, slope)
        return (
            grad_y,
            grad_weight,
            grad_bias,
            grad_learned,
            *[None] * 3,
            None if states is None else grad_first,
            *[None] * 6,
            grad_added,
        )


def affine(weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """BN as scale y + shift, [S, C] each."""
    scale = weight * invstd
    return scale, bias - mean * scale


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


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each step and channel of y [T, N, C, H, W], [T, C] each; without gradient."""
    mean, var = torch.ops.plif.moments(y.detach())
    return mean, var


def moments_over_processes(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of values [*, C] over the batches of all processes, from those of this process."""
    counts = torch.full_like(mean, float(count))
    total, squares, n = _summed_over_processes(torch.stack([mean * counts, (var + mean.square()) * counts, counts]))
    mean = total / n
    return mean, (squares / n - mean.square()).clamp_(min=0), n


def norm_fire_pool(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    invstd: Tensor,
    dynamics: Dynamics,
    *,
    batch_statistics: bool,
    synchronise: bool = False,
    pool: Pool = "none",
    seed: Tensor | None = None,
    time_steps: int | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """Pooled spikes of BN's output: BN, `reference.run` and a 2x2 pool in one pass over y.

    Args:
        y: the convolution's output [T, N, C, H, W], or [1, N, C, H, W] held for `time_steps`.
        weight: BN's weight [C].
        bias: BN's bias [C].
        mean: mean of the normalisation, per step and channel or per channel, [T or 1, C]; gets no gradient.
        invstd: 1 / sqrt(variance + eps), as mean.
        dynamics: the neurons.
        batch_statistics: mean and invstd are statistics of y, so that its gradient flows through them too.
        synchronise: they are taken over y of all processes.
        pool: none, max_first, max_random or avg.
        seed: int64 on the CPU, for max_random.
        time_steps: T, for a held y.
        added: what is added to BN's output, in the shape of y, such as the shortcut of a residual block; on a CPU.

    Returns:
        Spikes [T, N, C, H', W'] in the dtype of y.
    """
    statistics = (mean, invstd, batch_statistics, synchronise)
    return _norm_fire_pool(y, weight, bias, statistics, dynamics, time_steps, pool=pool, seed=seed, added=added)[0]


def norm_fire(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    invstd: Tensor,
    dynamics: Dynamics,
    states: Sequence[Tensor] | None,
    *,
    batch_statistics: bool,
    synchronise: bool = False,
    added: Tensor | None = None,
) -> tuple[Tensor, States]:
    """`norm_fire_pool` without a pool, from states [N, C, H, W] (None: the first ones); returns the last ones too."""
    checked(y, dynamics, states, None)
    first = None if states is None else torch.stack([state.to(real_type(y)) for state in states])
    statistics = (mean, invstd, batch_statistics, synchronise)
    spikes, last = _norm_fire_pool(y, weight, bias, statistics, dynamics, states=first, last=True, added=added)
    return spikes, last.unbind()


def _norm_fire_pool(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[Tensor, Tensor, bool, bool],
    dynamics: Dynamics,
    time_steps: int | None = None,
    *,
    pool: Pool = "none",
    seed: Tensor | None = None,
    states: Tensor | None = None,
    last: bool = False,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    mean, invstd, of_batch, of_all_processes = statistics
    steps = len(y) if time_steps is None else time_steps
    with in_own_precision(y.device):
        given = y, *real_rows(y, weight, bias, mean, invstd, dynamics), no_seed() if seed is None else seed, states
        settings = last, of_batch, of_all_processes, POOLS[pool], dynamics.key, steps
        return _NormFirePool.apply(*given, *settings, added)


def real_rows(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, dynamics: Dynamics
) -> tuple[Tensor, ...]:
    """BN's weight and bias, `rows_of` the neurons, mean and invstd, in the type that kernels compute x in."""
    real = real_type(x)
    return weight.to(real), bias.to(real), rows_of(dynamics, x), mean.to(real), invstd.to(real)
