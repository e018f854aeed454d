"""The fused forms with the signatures of the reference, and their gradients."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.reference import checked, in_own_precision
from plif_lightning.kernels import ops as ops  # registers the operators
from plif_lightning.kernels.layout import POOLS, Constants, Pool, at_a_time, empty_map, real_type, rows_of


class _Fire(torch.autograd.Function):
    """Neurons alone; keeps x, what is learned, and V_{-1}."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, learned: Tensor, v: Tensor | None, constants: Sequence[float], steps: int
    ) -> tuple[Tensor, Tensor]:
        one = x.new_ones(1, x.shape[2], dtype=real_type(x))
        ctx.save_for_backward(x, learned, v)
        ctx.settings = (constants, steps)
        return torch.ops.plif.fire(x, one, torch.zeros_like(one), learned, v, steps, POOLS["none"], constants, True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        x, learned, v = ctx.saved_tensors
        constants, steps = ctx.settings
        one = x.new_ones(1, x.shape[2], dtype=real_type(x))
        zero = torch.zeros_like(one)
        grad_x, grad_first, _, grad_learned = torch.ops.plif.fire_backward(
            x, one, zero, zero, learned, v, _no_seed(), grad_spikes, grad_v, steps, POOLS["none"], constants, 0, 0
        )
        return grad_x, grad_learned, None if v is None else grad_first, None, None


def _no_seed() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def integrate_and_fire(
    x: Tensor,
    k: Tensor | None,
    v: Tensor | None = None,
    *,
    firing: Firing = Firing(),
    time_steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`dynamics.integrate_and_fire`, in one pass over x; same arguments, results and errors."""
    steps = checked(x, k, v, firing, time_steps)
    with in_own_precision(x.device):
        learned = rows_of(k, firing, x)
        if x.is_contiguous() and learned.shape[1] == 1:
            shape = (1, 1, 1, x[0].numel())  # nothing depends on where a neuron lies
        else:
            c, h = (*x.shape[2:], 1, 1)[:2]
            shape = (x.shape[1], c, h, math.prod(x.shape[4:]))
        maps = x.reshape(len(x), *shape)
        if not x.dtype.is_floating_point:
            maps = maps.to(real_type(x))  # the kernels take 16 bits of an integer for a bfloat16
        first = None if v is None else v.to(real_type(x)).reshape(shape)
        spikes, last = _Fire.apply(maps, learned, first, [*Constants.of(firing, leak=k is not None)], steps)
    return spikes.reshape(steps, *x.shape[1:]).to(x.dtype), last.reshape(x.shape[1:])


class _NormFirePool(torch.autograd.Function):
    """BN's affine map, neurons and pool; keeps y, statistics and parameters, and V_{-1} where that is not V_reset."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        learned: Tensor,
        mean: Tensor,
        invstd: Tensor,
        seed: Tensor,
        v: Tensor | None,
        last: bool,
        batch_statistics: bool,
        synchronise: bool,
        pool: int,
        constants: Sequence[float],
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        scale = weight * invstd
        shift = bias - mean * scale
        ctx.save_for_backward(y, learned, mean, invstd, scale, shift, seed, v)
        ctx.settings = (last, batch_statistics, synchronise, pool, constants, steps)
        return torch.ops.plif.fire(y, scale, shift, learned, v, steps, pool, constants, last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        y, learned, mean, invstd, scale, shift, seed, v = ctx.saved_tensors
        last, batch_statistics, synchronise, pool, constants, steps = ctx.settings
        windows = (y.shape[3] // 2) * (y.shape[4] // 2)
        grad_y, grad_v, sums, grad_learned = torch.ops.plif.fire_backward(
            y, scale, shift, mean, learned, v, seed, grad_out, grad_last if last else None,
            steps, pool, constants, windows, 0,
        )  # fmt: skip
        grad_weight, grad_bias = (sums[1] * invstd).sum(0), sums[0].sum(0)
        offset = slope = torch.zeros_like(scale)
        if batch_statistics:
            count = y.numel() // (y.shape[2] * len(scale))
            slope, constant = _through_statistics(sums, count, scale, invstd, synchronise)
            offset = constant - slope * mean
        torch.ops.plif.normalize_backward(grad_y, y, scale, offset, slope)
        return grad_y, grad_weight, grad_bias, grad_learned, *[None] * 3, None if v is None else grad_v, *[None] * 6


def _through_statistics(
    sums: Tensor, count: int, scale: Tensor, invstd: Tensor, synchronise: bool
) -> tuple[Tensor, Tensor]:
    """BN's gradient through the batch's statistics: dL/dy = scale dL/dX + slope (y - mean) + constant.

    That is scale (dL/dX - mean of it - normalised y times the mean of dL/dX times normalised y), X being BN's output.

    Args:
        sums: those of `ops.fire_backward` [2, S, C].
        count: values that each of the S statistics is over, in this process.
        scale: BN's weight / standard deviation [S, C].
        invstd: [S, C].
        synchronise: whether the statistics are over all processes.
    """
    n = torch.tensor(float(count), device=sums.device)
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
    pool: Pool = "none",
    seed: Tensor | None = None,
    firing: Firing = Firing(),
    time_steps: int | None = None,
) -> Tensor:
    """Pooled spikes of BN's output: BN, `dynamics.integrate_and_fire` and a 2x2 pool in one pass over y.

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
        firing: V_th, V_reset, the surrogate and what the reset passes on.
        time_steps: T, only for a y of one step.

    Returns:
        Spikes [T, N, C, H', W'] in the dtype of y.
    """
    statistics = (mean, invstd, batch_statistics, synchronise)
    return _norm_fire_pool(y, weight, bias, statistics, k, firing, time_steps, pool=pool, seed=seed)[0]


def norm_fire(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    invstd: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    *,
    batch_statistics: bool,
    synchronise: bool = False,
    firing: Firing = Firing(),
) -> tuple[Tensor, Tensor]:
    """`norm_fire_pool` without a pool, from the potential v [N, C, H, W] on (None: V_reset), which it gives back."""
    checked(y, k, v, firing, None)
    v = None if v is None else v.to(real_type(y))
    return _norm_fire_pool(y, weight, bias, (mean, invstd, batch_statistics, synchronise), k, firing, v=v, last=True)


def _norm_fire_pool(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[Tensor, Tensor, bool, bool],
    k: Tensor | None,
    firing: Firing,
    time_steps: int | None = None,
    *,
    pool: Pool = "none",
    seed: Tensor | None = None,
    v: Tensor | None = None,
    last: bool = False,
) -> tuple[Tensor, Tensor]:
    real = real_type(y)
    mean, invstd, of_batch, of_all_processes = statistics
    with in_own_precision(y.device):
        return _NormFirePool.apply(
            y,
            weight.to(real),
            bias.to(real),
            rows_of(k, firing, y),
            mean.to(real),
            invstd.to(real),
            _no_seed() if seed is None else seed,
            v,
            last,
            of_batch,
            of_all_processes,
            POOLS[pool],
            [*Constants.of(firing, leak=k is not None)],
            len(y) if time_steps is None else time_steps,
        )


class PatchMoments(NamedTuple):
    """What the batch statistics of any 3x3 convolution over x [T, N, C, H, W] follow from, in float64.

    Attributes:
        mean: of the values of a patch, with the zeros around an image, [T, 9 C].
        covariance: of them [T, 9 C, 9 C].
    """

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(x: Tensor) -> "PatchMoments":
        means, covariances = [], []
        for step in x:
            patches = F.unfold(step.to(real_type(x)), 3, padding=1)  # [N, 9 C, H W]
            mean = patches.mean((0, 2))
            patches -= mean[:, None]
            covariances.append(torch.bmm(patches, patches.transpose(1, 2)).sum(0) / (len(patches) * patches.shape[2]))
            means.append(mean)
        return PatchMoments(torch.stack(means).double(), torch.stack(covariances).double())

    def of_convolution(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each step and channel of the convolution's output, [T, C'] each."""
        w = weight.detach().flatten(1).double()
        variance = ((self.covariance @ w.T) * w.T).sum(1)
        return (self.mean @ w.T).to(real_type(weight)), variance.clamp_(min=0).to(real_type(weight))


class _EncodeFirePool(torch.autograd.Function):
    """Convolution, BN's affine map, neurons and pool, a band of rows at a time; keeps x, statistics and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        conv: Tensor,
        weight: Tensor,
        bias: Tensor,
        learned: Tensor,
        mean: Tensor,
        invstd: Tensor,
        seed: Tensor,
        patch_mean: Tensor | None,
        patch_covariance: Tensor | None,
        synchronise: bool,
        pool: int,
        constants: Sequence[float],
    ) -> Tensor:
        scale = weight * invstd
        shift = bias - mean * scale
        ctx.save_for_backward(x, conv, learned, mean, invstd, scale, shift, seed, patch_mean, patch_covariance)
        ctx.settings = (synchronise, pool, constants)
        halve = 2 if pool else 1
        height, width = x.shape[3] // halve, x.shape[4] // halve
        out = None
        for first, band in _bands(x, len(conv), pool):
            y = F.conv2d(band, conv, padding=(0, 1)).unflatten(0, x.shape[:2])
            spikes = torch.ops.plif.fire(y, scale, shift, learned, None, len(x), pool, constants, False)[0]
            if spikes.shape[3] == height:
                return spikes  # all in one band
            if out is None:
                out = empty_map(y, len(x), height, width)
            out[:, :, :, first // halve : first // halve + spikes.shape[3]] = spikes
        assert out is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, conv, learned, mean, invstd, scale, shift, seed, patch_mean, patch_covariance = ctx.saved_tensors
        synchronise, pool, constants = ctx.settings
        halve = 2 if pool else 1
        width = x.shape[4] // halve
        grad_conv = torch.zeros_like(conv, dtype=real_type(conv))
        sums, grad_learned = scale.new_zeros(2, *scale.shape), torch.zeros_like(learned)
        for first, band in _bands(x, len(conv), pool):
            y = F.conv2d(band, conv, padding=(0, 1)).unflatten(0, x.shape[:2])
            rows = y.shape[3] // halve
            first_window = first // halve * width
            grad_y, _, sums_of_band, grad_of_band = torch.ops.plif.fire_backward(
                y, scale, shift, mean, learned, None, seed, grad_out[:, :, :, first // halve : first // halve + rows],
                None, len(x), pool, constants, (x.shape[3] // halve) * width, first_window,
            )  # fmt: skip
            if len(scale) > 1:
                grad_y *= scale[:, None, :, None, None]
            grad_conv += conv2d_weight(band, conv.shape, grad_y.flatten(0, 1), padding=(0, 1))
            sums += sums_of_band
            grad_learned += grad_of_band
        if len(scale) == 1:
            grad_conv *= scale[0][:, None, None, None]
        if patch_mean is not None:
            # The rest of dL/dy, slope (y - mean) + constant, is a function of y, which is linear in the patches: what
            # it adds to the gradient of the weights follows from the patches' moments.
            of_step = x.shape[1] * x.shape[3] * x.shape[4]
            count = of_step * (len(x) // len(scale))
            slope, constant = (
                values.double()[:, :, None] for values in _through_statistics(sums, count, scale, invstd, synchronise)
            )
            w = conv.flatten(1).double()
            of_y = w @ patch_covariance  # [T, C', 9 C]
            beside = (patch_mean @ w.T - mean)[:, :, None] * patch_mean[:, None]
            grad_conv += (
                (slope * (of_y + beside) + constant * patch_mean[:, None]).sum(0).mul(of_step).view_as(conv)
            ).to(grad_conv.dtype)
        grad_weight, grad_bias = (sums[1] * invstd).sum(0), sums[0].sum(0)
        return None, grad_conv.to(conv.dtype), grad_weight, grad_bias, grad_learned, *[None] * 8


def _bands(x: Tensor, channels: int, pool: int) -> Iterator[tuple[int, Tensor]]:
    """First row of each band, and what a convolution [T N, C, rows + 2, W] needs for it: a row more at both ends."""
    t, n, _, height, width = x.shape
    rows = max(2, at_a_time(x.device) // max(1, t * n * width * channels) // 2 * 2)
    around = F.pad(x.flatten(0, 1), (0, 0, 1, 1))
    last = height // 2 * 2 if pool else height
    for first in range(0, last, rows):
        yield first, around[:, :, first : min(first + rows, last) + 2]


def encode_fire_pool(
    x: Tensor,
    conv: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    invstd: Tensor,
    k: Tensor | None,
    *,
    patches: PatchMoments | None = None,
    synchronise: bool = False,
    pool: Pool = "none",
    seed: Tensor | None = None,
    firing: Firing = Firing(),
) -> Tensor:
    """`norm_fire_pool` of a 3x3 convolution of x, whose output is never there as a whole, nor kept.

    The first convolution of a network for events has few input channels and the largest output: to compute it again,
    a band of rows at a time, costs less than to write it into memory and read it. No gradient flows to x.

    Args:
        x: events or images [T, N, C, H, W].
        conv: weight of a convolution with padding 1 and without bias [C', C, 3, 3], in the dtype of x.
        weight: of BN [C'].
        bias: of BN [C'].
        mean: that the convolution's output is normalised with, [T or 1, C'].
        invstd: as mean.
        k: 1/tau, a scalar or [C']; None without leak.
        patches: those of x, where mean and invstd are of this batch and gradients flow through them.
        synchronise: whether they are those of all processes' batches.
        pool: as `norm_fire_pool`, and so are the arguments after it.

    Returns:
        Spikes [T, N, C', H', W'] in the dtype of x.
    """
    real = real_type(x)
    with in_own_precision(x.device):
        return _EncodeFirePool.apply(
            x,
            conv,
            weight.to(real),
            bias.to(real),
            rows_of(k, firing, x),
            mean.to(real),
            invstd.to(real),
            _no_seed() if seed is None else seed,
            None if patches is None else patches.mean,
            None if patches is None else patches.covariance,
            synchronise,
            POOLS[pool],
            [*Constants.of(firing, leak=k is not None)],
        )
