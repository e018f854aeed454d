"""Convolution, BN, neurons and pool as a function that never stores the convolution's full output.

The event-driven form sums the non-zero inputs around each position; the dense form computes a band of rows at a time
with PyTorch's convolution. Both compute it again in the backward pass.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.equations import Dynamics, program, register
from plif_lightning.dynamics.reference import in_real_precision
from plif_lightning.kernels import loops, ops
from plif_lightning.kernels.bits import SparseMaps, array_of_bits, array_of_rows, words_for
from plif_lightning.kernels.dense import conv2d, conv2d_weight
from plif_lightning.kernels.density import NEVER, Skip
from plif_lightning.kernels.fused import Norm, affine, no_seed, through_statistics
from plif_lightning.kernels.layout import (
    POOLS,
    SUM,
    AffineRows,
    Geometry,
    Gradients,
    NeuronCode,
    Pool,
    Sizes,
    array_of,
    at_a_time,
    channels_last,
    conv_output_size,
    empty_images,
    real_type,
    rows_of,
    threads_for,
)
from plif_lightning.kernels.ops import codes_of_backward, outside_compile, seed_of, start_of, sums_for, sums_of_backward
from plif_lightning.kernels.parallel import parallel, unnamed
from plif_lightning.kernels.sparse import in_vectors, kernel_of, table_of

# Potentials per unit of work: they fill half of a first-level cache.
_AT_A_TIME = 2**12
# Minimum number of units of work per thread, for load balance, if the feature map is large enough.
_UNITS = 4
_NO_STATES = torch.empty(0, 1, 1, dtype=torch.float32, device="cpu")


class EventBlock:
    """A convolution with padding K // 2, BN's affine map or a bias, neurons and a 2x2 max-pool; no gradients.

    Its spikes equal the unfused layers': the sums are bit-identical to `conv_events`.

    Args:
        table: `table_of` the weight [K K C, O]: float32, bfloat16 or int8.
        scale: factor of the sums, [T or 1, O] float32.
        shift: added to the scaled sums, as scale.
        learned: parameters of the neurons, see `layout.rows_of`.
        neuron: key of their program.
        pool: none, max_first or max_random; the last two give the same spikes.
        stride: of the convolution, 1 or 2.
    """

    def __init__(
        self, table: Tensor, scale: Tensor, shift: Tensor, learned: Tensor, neuron: str, pool: Pool, stride: int = 1
    ) -> None:
        self._outputs, self._stride = table.shape[1], stride
        self._table = array_of_rows(in_vectors(table))
        rows = [in_vectors(x.detach()).reshape(-1).float().contiguous().numpy() for x in (scale, shift)]
        self._norm = tuple(AffineRows(rows[0], rows[1], rows[1]))
        learned, shared = learned.detach().float(), learned.shape[1] == 1
        self._parameters = (learned if shared else in_vectors(learned)).contiguous().numpy()
        self._program = program(neuron)
        self._start = start_of(self._program, torch.float32)
        self._variant = torch.float32, shared, table.dtype == torch.int8
        used = self._outputs - 64 * (words_for(self._outputs) - 1)  # outputs in the last word of a position
        self._valid = -1 if used == 64 else (1 << used) - 1
        self._pooled = pool != "none"

    def __call__(
        self, x: SparseMaps, steps: int, states: Tensor | None = None, last: bool = False
    ) -> tuple[SparseMaps, Tensor | None]:
        """Spikes [T N, O, H', W'] of x [T N, C, H, W], time first, and with `last` the states after the last step.

        States [S, N, H, W, O]; None: the neurons' first ones.
        """
        n, (height, width) = x.shape[0] // steps, conv_output_size(x.shape[2:], self._stride)
        of_state = self._start.size, -1, self._outputs
        before = _NO_STATES if states is None else states.reshape(of_state)
        size = self._start.size, n, height, width, self._outputs
        after = torch.empty(size, dtype=torch.float32, device="cpu") if last else None
        # With an odd size, neurons outside of all windows need their states too: pool afterwards.
        pools_in_kernel = self._pooled and not (last and (height % 2 or width % 2))
        spikes = self._run(x, steps, pools_in_kernel, before, _NO_STATES if after is None else after.view(of_state))
        if self._pooled and not pools_in_kernel:
            spikes = SparseMaps.of(F.max_pool2d(spikes.images(torch.float32), 2))
        return spikes, after

    def _run(self, x: SparseMaps, steps: int, pooled: bool, v_first: Tensor, v_last: Tensor) -> SparseMaps:
        images, channels, *of_maps = x.shape
        height, width = conv_output_size((of_maps[0], of_maps[1]), self._stride)
        taps = loops.cpu_sparse.taps_of(kernel_of(self._table.shape, channels))
        halve = 2 if pooled else 1
        rows, windows = height // halve, width // halve
        threads = threads_for(SUM * images * height * width * self._outputs)
        windows_per_thread = images // steps * rows * windows // threads
        values_per_window = halve**2 * self._table.shape[1] * self._start.size
        run = max(1, min(windows, _AT_A_TIME // values_per_window, windows_per_thread // _UNITS))
        words = words_for(self._outputs)
        bits = torch.empty(images * rows * windows, words, dtype=torch.int64, device="cpu")
        units = images // steps * rows * -(-windows // run)
        code = loops.machine_code_of("fire_window", register(self._program), *self._variant)
        neuron = tuple(NeuronCode(code, 0, self._parameters, self._start))
        states = v_first.contiguous().numpy(), v_last.numpy()
        sizes = tuple(Sizes(steps, of_maps[0], of_maps[1], channels, run, POOLS["max_first" if pooled else "none"]))
        parallel(
            loops.cpu_block.conv_fire_pool, units, threads, x.arrays(self._table), self._table, self._norm, neuron,
            states, array_of_bits(bits), self._valid, sizes, self._stride, taps,
        )  # fmt: skip
        return SparseMaps(bits, None, (images, self._outputs, rows, windows))


class PatchMoments(NamedTuple):
    """Moments of the 3x3 patches of x, in float64; the batch statistics of any 3x3 convolution over x follow from them.

    Attributes:
        mean: mean patch of x [T, N, C, H, W] with zero padding, [T, 9 C].
        covariance: covariance of the patches, [T, 9 C, 9 C].
    """

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(x: Tensor, events: bool = False) -> "PatchMoments":
        """Moments of x [T, N, C, H, W]; `events`: from its non-zero values only, which must be integers."""
        if events:
            return _moments_of_events(SparseMaps.of(x.flatten(0, 1)), len(x))
        means, covariances = [], []
        for step in x.detach():
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


def _moments_of_events(x: SparseMaps, t: int) -> PatchMoments:
    images, channels, height, width = x.shape
    n = images // t
    sums = torch.zeros(t, 9 * channels, dtype=torch.float64, device="cpu")
    products = torch.zeros(t, 9 * channels, 9 * channels, dtype=torch.float64, device="cpu")
    arrays = *x.arrays(), sums.numpy(), products.numpy()
    parallel(
        loops.cpu_block.patch_moments, t, threads_for(images * channels * height * width), *arrays, n, height, width
    )
    count = n * height * width
    mean = sums / count
    # E[xy] - E[x] E[y] does not lose digits here: event counts and their products are integers, exact in float64.
    return PatchMoments(mean, products / count - mean[:, :, None] * mean[:, None])


class _ConvFirePool(torch.autograd.Function):
    """Convolution, BN's affine map, neurons and pool; keeps x, statistics and parameters."""

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
        of_all_processes: bool,
        seed: Tensor,
        patch_mean: Tensor | None,
        patch_covariance: Tensor | None,
        skip_output: bool,
        skip_gradient: bool,
        pool: Pool,
        neuron: str,
        stride: int,
    ) -> Tensor:
        scale, shift = affine(Norm(weight, bias, mean, invstd))
        ctx.save_for_backward(x, conv, learned, mean, invstd, scale, shift, seed, patch_mean, patch_covariance)
        ctx.settings = of_all_processes, skip_gradient, pool, neuron
        t, n, _, height, width = x.shape
        if skip_output:
            block = EventBlock(table_of(conv), scale, shift, learned, neuron, pool, stride)
            return block(SparseMaps.of(x.flatten(0, 1)), t)[0].images(x.dtype)
        halve = 1 if pool == "none" else 2
        images = empty_images(t * n, len(conv), height // halve, width // halve, x.dtype, x.device)
        out = images.unflatten(0, (t, n))
        for first, band in _bands(x, len(conv), pool):
            y = conv2d(band, conv, padding=(0, 1)).unflatten(0, x.shape[:2])
            spikes = ops.fire(y, scale, shift, learned, None, t, POOLS[pool], neuron, False)[0]
            out[:, :, :, first // halve : first // halve + spikes.shape[3]] = spikes
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, conv, learned, mean, invstd, scale, shift, seed, patch_mean, patch_covariance = ctx.saved_tensors
        of_all_processes, skip_gradient, pool, neuron = ctx.settings
        grad_out = grad_out.unflatten(0, x.shape[:2])
        backward = _backward_of_events if skip_gradient else _backward_in_bands
        grad_conv, sums, grad_learned = backward(x, conv, scale, shift, mean, learned, seed, grad_out, pool, neuron)
        if patch_mean is not None:
            # The remaining term of dL/dy, slope (y - mean) + constant, is affine in y, and y is linear in the patches:
            # its part of the weight's gradient follows from the patches' moments.
            of_step = x.shape[1] * x.shape[3] * x.shape[4]
            count = of_step * (len(x) // len(scale))
            slope, constant = (
                values.double()[:, :, None]
                for values in through_statistics(sums, count, scale, invstd, of_all_processes)
            )
            w = conv.flatten(1).double()
            of_y = w @ patch_covariance  # [T, C', 9 C]
            of_means = (patch_mean @ w.T - mean)[:, :, None] * patch_mean[:, None]
            grad_conv += (
                (slope * (of_y + of_means) + constant * patch_mean[:, None]).sum(0).mul(of_step).view_as(conv)
            ).to(grad_conv.dtype)
        grad_weight, grad_bias = (sums[1] * invstd).sum(0), sums[0].sum(0)
        return None, grad_conv.to(conv.dtype), grad_weight, grad_bias, grad_learned, *[None] * 11


def _backward_of_events(
    x: Tensor, conv: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, learned: Tensor, seed: Tensor,
    grad_out: Tensor, pool: Pool, neuron: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradient of the convolution's weight, without that through BN's statistics; sums; gradient of `learned`.

    The last two, and the arguments, as in `ops.fire_backward`.
    """
    maps_of_x, real, number = SparseMaps.of(x.flatten(0, 1)), torch.float32, POOLS[pool]
    steps, n, outputs, height, width = len(grad_out), grad_out.shape[1], len(conv), *maps_of_x.shape[2:]
    halve = 1 if pool == "none" else 2
    maps = torch.empty(steps, n, outputs, height, width, device="meta")
    geometry = Geometry(maps, steps, number, len(program(neuron).states), SUM)
    # Sums of all steps and their gradients must fit the cache together with the states.
    run = max(1, min(width // halve, geometry.run // outputs // 2))
    geometry.use_run(run * outputs)
    slots = geometry.threads
    sums, sums_learned = sums_for(geometry, len(scale), learned, real)
    table = array_of_rows(in_vectors(table_of(conv)))
    grad_table = np.zeros((slots, len(scale), *table.shape), np.float32)
    norm = AffineRows(*(geometry.tile_channels(row, real) for row in (scale, shift, mean)))
    codes = codes_of_backward(neuron, number, real, learned)
    loop = NeuronCode(*codes, geometry.parameters(learned, real), start_of(program(neuron), real))
    grads = Gradients(array_of(channels_last(grad_out.to(conv.dtype))), *[_NO_STATES.flatten(1).numpy()] * 3)
    sizes = Sizes(steps, height, width, outputs, run, number)
    maps_and_table = maps_of_x.arrays(table), table
    arguments = unnamed(*maps_and_table, norm, loop, grads, (sums, sums_learned), grad_table, sizes, seed_of(seed))
    units = n * (height // halve) * -(-(width // halve) // run)
    parallel(loops.cpu_block.conv_fire_pool_backward, units, slots, *arguments)
    of_steps = torch.from_numpy(grad_table.sum(0))[..., :outputs] * scale[:, None]
    grad_conv = of_steps.sum(0).view(3, 3, x.shape[2], outputs).permute(3, 2, 0, 1).contiguous()
    return grad_conv, *sums_of_backward(geometry, sums, sums_learned, scale, learned)


def _backward_in_bands(
    x: Tensor, conv: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, learned: Tensor, seed: Tensor,
    grad_out: Tensor, pool: Pool, neuron: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `_backward_of_events`; ties of each band of rows are drawn from the seed and its first row."""
    halve = 1 if pool == "none" else 2
    grad_conv = conv.new_zeros(conv.shape, dtype=real_type(conv))
    sums, grad_learned = scale.new_zeros(2, *scale.shape), torch.zeros_like(learned)
    for first, band in _bands(x, len(conv), pool):
        y = conv2d(band, conv, padding=(0, 1)).unflatten(0, x.shape[:2])
        rows = y.shape[3] // halve
        grad_y, _, sums_of_band, grad_of_band = ops.fire_backward(
            y, scale, shift, mean, learned, None, seed + first,
            grad_out[:, :, :, first // halve : first // halve + rows], None, len(x), POOLS[pool], neuron,
        )  # fmt: skip
        if len(scale) > 1:
            grad_y *= scale[:, None, :, None, None]
        grad_conv += conv2d_weight(band, conv.shape, grad_y.flatten(0, 1), padding=(0, 1))
        sums += sums_of_band
        grad_learned += grad_of_band
    if len(scale) == 1:
        grad_conv *= scale[0][:, None, None, None]
    return grad_conv, sums, grad_learned


def _bands(x: Tensor, channels: int, pool: Pool) -> Iterator[tuple[int, Tensor]]:
    """First row of each band, and its convolution's input [T N, C, rows + 2, W], with a border row at both ends."""
    t, n, _, height, width = x.shape
    rows = max(2, at_a_time(x.device) // max(1, t * n * width * channels) // 2 * 2)
    padded = F.pad(x.flatten(0, 1), (0, 0, 1, 1))
    last = height if pool == "none" else height // 2 * 2
    for first in range(0, last, rows):
        yield first, padded[:, :, first : min(first + rows, last) + 2]


@outside_compile
def conv_fire_pool(
    x: Tensor,
    conv: Tensor,
    norm: Norm,
    dynamics: Dynamics,
    *,
    patches: PatchMoments | None = None,
    pool: Pool = "none",
    seed: Tensor | None = None,
    skip: Skip = NEVER,
    stride: int = 1,
) -> Tensor:
    """Convolution with padding K // 2, BN, neurons and pool of x. The full output of the convolution is never stored.

    The first convolution of a network for events has few input channels and the largest output: recomputing it in the
    backward pass is cheaper than storing and loading its output. If no gradients are needed, any block of spikes may
    use this function, because nothing has to be stored for a backward pass.

    Args:
        x: events or, without gradients, spikes [T, N, C, H, W]. No gradient flows to x.
        conv: weight of a convolution without bias [C', C, K, K], in the dtype of x; dense or with gradients 3x3.
        norm: BN.
        dynamics: the neurons.
        patches: moments of x, if BN normalises with statistics of this batch, so that gradients flow through them.
        pool: none, max_first, max_random or avg.
        seed: int64 on the CPU, for max_random.
        skip: skip zeros of x; never before an average pool. An infinite weight times a zero gives NaN only if the zero
            is not skipped.
        stride: 1 or 2; dense or with gradients 1.

    Returns:
        Spikes [T, N, C', H', W'] in the dtype of x.
    """
    with in_real_precision(x.device):
        norm = norm.to(real_type(x))
        images: Tensor = _ConvFirePool.apply(
            x, conv, norm.weight, norm.bias, rows_of(dynamics, x), norm.mean, norm.invstd, norm.of_all_processes,
            no_seed() if seed is None else seed, *(patches or (None, None)), skip.output, skip.gradient, pool,
            dynamics.key, stride,
        )  # fmt: skip
        return images.unflatten(0, x.shape[:2])
