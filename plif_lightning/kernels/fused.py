"""The fused forms with the signatures of the reference, and their gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from plif_lightning.kernels import ops
from plif_lightning.neurons.dynamics import checked
from plif_lightning.neurons.surrogate import Surrogate


class _Fire(torch.autograd.Function):
    """Neurons alone; keeps x, k and V_{-1}."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        v_threshold: float,
        v_reset: float,
        detach_reset: bool,
        surrogate: Surrogate,
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        one = x.new_ones(1, x.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
        ctx.save_for_backward(x, k, v)
        ctx.settings = (v_threshold, v_reset, detach_reset, surrogate, steps)
        return torch.ops.plif.fire(
            x, one, torch.zeros_like(one), k, v, steps, ops.POOLS["none"], v_threshold, v_reset, True
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        x, k, v = ctx.saved_tensors
        v_threshold, v_reset, detach_reset, surrogate, steps = ctx.settings
        one = x.new_ones(1, x.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
        zero = torch.zeros_like(one)
        grad_x, grad_first, _, grad_k = torch.ops.plif.fire_backward(
            x, one, zero, zero, k, v, torch.zeros((), dtype=torch.int64), grad_spikes, grad_v, steps,
            ops.POOLS["none"], v_threshold, v_reset, detach_reset,
            ops.SURROGATES[surrogate.name], surrogate.width,
        )  # fmt: skip
        return grad_x, _like(grad_k, k), None if v is None else grad_first, None, None, None, None, None


def _like(grad_k: Tensor, k: Tensor | None) -> Tensor | None:
    """The gradient per channel in the shape of k."""
    if k is None:
        return None
    return (grad_k if k.dim() else grad_k.sum()).to(k.dtype)


def integrate_and_fire(
    x: Tensor,
    k: Tensor | None,
    v: Tensor | None = None,
    *,
    v_threshold: float = 1.0,
    v_reset: float = 0.0,
    detach_reset: bool = True,
    surrogate: Surrogate | None = None,
    time_steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`neurons.integrate_and_fire`, in one pass over x; same arguments, results and errors."""
    steps = checked(x, k, v, time_steps)
    real = torch.promote_types(x.dtype, torch.float32)
    if x.is_contiguous() and (k is None or k.dim() == 0):
        shape = (1, 1, 1, -1)  # nothing depends on where a neuron lies
    else:
        c, h = (*x.shape[2:], 1, 1)[:2]
        shape = (x.shape[1], c, h, -1)
    maps = x.reshape(len(x), *shape)
    first = None if v is None else v.to(real).reshape(shape if shape[0] != 1 else (1, 1, 1, v.numel()))
    with torch.autocast(x.device.type, enabled=False):
        spikes, last = _Fire.apply(
            maps,
            None if k is None else k.to(real),
            first,
            v_threshold,
            v_reset,
            detach_reset,
            surrogate or Surrogate(),
            steps,
        )
    return spikes.reshape(steps, *x.shape[1:]), last.reshape(x.shape[1:])


class _NormFirePool(torch.autograd.Function):
    """BN's affine map, neurons and pool; keeps y, statistics and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        k: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        seed: Tensor,
        batch_statistics: bool,
        synchronise: bool,
        pool: int,
        v_threshold: float,
        v_reset: float,
        detach_reset: bool,
        surrogate: Surrogate,
        steps: int,
    ) -> Tensor:
        scale = weight * invstd
        shift = bias - mean * scale
        ctx.save_for_backward(y, k, mean, invstd, scale, shift, seed)
        ctx.settings = (batch_statistics, synchronise, pool, v_threshold, v_reset, detach_reset, surrogate, steps)
        return torch.ops.plif.fire(y, scale, shift, k, None, steps, pool, v_threshold, v_reset, False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        y, k, mean, invstd, scale, shift, seed = ctx.saved_tensors
        batch_statistics, synchronise, pool, v_threshold, v_reset, detach_reset, surrogate, steps = ctx.settings
        grad_y, _, sums, grad_k = torch.ops.plif.fire_backward(
            y, scale, shift, mean, k, None, seed, grad_out, None, steps, pool, v_threshold, v_reset, detach_reset,
            ops.SURROGATES[surrogate.name], surrogate.width,
        )  # fmt: skip
        grad_weight, grad_bias = (sums[1] * invstd).sum(0), sums[0].sum(0)
        offset = slope = torch.zeros_like(scale)
        if batch_statistics:
            count = torch.tensor(float(y.numel() // (y.shape[2] * len(scale))), device=y.device)
            if synchronise:
                sums = _summed_over_processes(sums)
                count = _summed_over_processes(count)
            # dL/dy = scale (dL/dX - mean of it - normalised y times the mean of dL/dX times normalised y)
            slope = -scale * invstd.square() * sums[1] / count
            offset = -scale * sums[0] / count - slope * mean
        torch.ops.plif.normalize_backward(grad_y, y, scale, offset, slope)
        return grad_y, grad_weight, grad_bias, _like(grad_k, k), *[None] * 11


def _summed_over_processes(values: Tensor) -> Tensor:
    values = values.clone()
    dist.all_reduce(values)
    return values


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each step and channel of y [T, N, C, H, W], [T, C] each; without gradient."""
    mean, var = torch.ops.plif.moments(y.detach())
    return mean, var


def moments_over_processes(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of values of all processes' batches together, from those of each [*, C]."""
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
    k: Tensor | None,
    *,
    batch_statistics: bool,
    synchronise: bool = False,
    pool: ops.Pool = "none",
    seed: Tensor | None = None,
    v_threshold: float = 1.0,
    v_reset: float = 0.0,
    detach_reset: bool = True,
    surrogate: Surrogate | None = None,
    time_steps: int | None = None,
) -> Tensor:
    """Pooled spikes of BN's output: BN, `neurons.integrate_and_fire` and a 2x2 pool in one pass over y.

    Args:
        y: the convolution's output [T, N, C, H, W], or [1, N, C, H, W] held for `time_steps`.
        weight: of BN [C].
        bias: of BN [C].
        mean: that y is normalised with, per step and channel or per channel, [T or 1, C]; no gradient flows to it.
        invstd: 1 / sqrt(variance + eps), as mean.
        k: 1/tau, a scalar or [C]; None without leak.
        batch_statistics: whether mean and invstd are y's own, so that its gradient flows through them too.
        synchronise: whether they are those of all processes' y.
        pool: none, max_first, max_random or avg.
        seed: int64 on the CPU, for max_random.
        v_threshold: V_th.
        v_reset: V_reset.
        detach_reset: no gradient flows through the spike of the reset.
        surrogate: of the backward pass.
        time_steps: T, only for a y of one step.

    Returns:
        Spikes [T, N, C, H', W'] in the dtype of y.
    """
    real = torch.promote_types(y.dtype, torch.float32)
    with torch.autocast(y.device.type, enabled=False):
        return _NormFirePool.apply(
            y,
            weight.to(real),
            bias.to(real),
            None if k is None else k.to(real),
            mean.to(real),
            invstd.to(real),
            torch.zeros((), dtype=torch.int64) if seed is None else seed,
            batch_statistics,
            synchronise,
            ops.POOLS[pool],
            v_threshold,
            v_reset,
            detach_reset,
            surrogate or Surrogate(),
            len(y) if time_steps is None else time_steps,
        )
