"""Convolutional blocks whose convolution's output is never in memory as a whole.

What is not zero in the input is gone over once; or the library's convolution makes a band of rows at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from plif_lightning.dynamics.firing import Firing
from plif_lightning.errors import UserError
from plif_lightning.kernels.bits import (
    SparseMaps,
    array_of_bits,
    array_of_rows,
    number_of_spikes,
    words_for,
)
from plif_lightning.kernels.fused import no_seed
from plif_lightning.kernels.layout import (
    POOLS,
    SUM,
    V_THRESHOLD,
    Constants,
    Geometry,
    K,
    Pool,
    array_of,
    at_a_time,
    channels_last,
    real_type,
    rows_of,
    threads_for,
)
from plif_lightning.kernels.operators import operator
from plif_lightning.kernels.ops import seed_of, sums_of_backward
from plif_lightning.kernels.parallel import parallel
from plif_lightning.kernels.policy import TYPES, Form, Op, OpName, Sparse, candidates_of, choose
from plif_lightning.kernels.sparse import in_vectors, require_fit, table_of

# Potentials that are worked on at a time: half of a first-level cache.
_AT_A_TIME = 2**12
# Units of work for each thread, where a map has so many: threads share them evenly.
_UNITS = 4
# Steps that forms are tried on: maps of so many leave the caches, as those of a network's first block do.
_STEPS = 8
_NO_POTENTIAL = torch.empty(0, 1, dtype=torch.float32, device="cpu")


class EventBlock:
    """A 3x3 convolution with padding 1, BN's affine map or a bias, neurons and a 2x2 max-pool; no gradients.

    Its spikes are those of the same parts one after another: the sums are `conv_events`'s, to the bit.

    Args:
        table: `table_of` the weight [9 C, O]: float32, bfloat16, int8 or int16.
        scale: what the sums are multiplied with, [T or 1, O] float32.
        shift: what is added then, as scale.
        learned: 1/tau and V_th, `layout.rows_of` them.
        constants: of the neurons.
        pool: none, max_first or max_random, of which the spikes are the same.
    """

    def __init__(
        self, table: Tensor, scale: Tensor, shift: Tensor, learned: Tensor, constants: Constants, pool: int
    ) -> None:
        self._outputs = table.shape[1]
        self._table = array_of_rows(in_vectors(table))
        rows = learned.detach().expand(2, self._outputs)
        # Outputs that only fill a vector up never fire: their potential stays at V_reset, or rises by zeros.
        thresholds = torch.full((self._table.shape[1],), torch.inf, dtype=torch.float32, device="cpu")
        thresholds[: self._outputs] = rows[V_THRESHOLD]
        rows_of_channels = (in_vectors(x.detach()).reshape(-1) for x in (scale, shift, rows[K]))
        self._rows = [*(row.float().contiguous().numpy() for row in rows_of_channels), thresholds.numpy()]
        self._constants = constants.of_type(torch.float32)
        self._pooled = pool != POOLS["none"]

    @classmethod
    def of_neurons(
        cls, table: Tensor, scale: Tensor | None, bias: Tensor | None, k: Tensor | None, firing: Firing, pool: Pool
    ) -> "EventBlock":
        """That of a folded layer.

        Args:
            table: as above.
            scale: of each output [O], for a table of integers.
            bias: of each output [O], or None.
            k: 1/tau, a scalar or [O]; None without leak.
            firing: V_th, V_reset, and what the reset is.
            pool: none, max_first or max_random.
        """
        one = torch.ones(table.shape[1], dtype=torch.float32, device="cpu")
        learned = rows_of(k, firing, one)
        shift = torch.zeros_like(one) if bias is None else bias
        constants = Constants.of(firing, leak=k is not None)
        return cls(table, (one if scale is None else scale)[None], shift[None], learned, constants, POOLS[pool])

    def __call__(self, x: SparseMaps, steps: int) -> SparseMaps:
        """Spikes [T N, O, H', W'] of x [T N, C, H, W], time first."""
        return self._run(x, steps, self._pooled, _NO_POTENTIAL, _NO_POTENTIAL)

    def step(self, x: SparseMaps, v: Tensor | None) -> tuple[SparseMaps, Tensor]:
        """Pooled spikes of x [N, C, H, W] and the potential after it; v [N, H, W, O], V_reset where it is None."""
        n, _, height, width = x.shape
        after = torch.empty(n, height, width, self._outputs, dtype=torch.float32, device="cpu")
        before = _NO_POTENTIAL if v is None else v.reshape(-1, self._outputs)
        # Neurons of a last row or column that is in no window have a potential, too.
        whole = self._pooled and height % 2 == width % 2 == 0
        spikes = self._run(x, 1, whole, before, after.view(-1, self._outputs))
        if self._pooled and not whole:
            spikes = SparseMaps.of(F.max_pool2d(spikes.images(torch.float32), 2), binary=True)
        return spikes, after

    def _run(self, x: SparseMaps, steps: int, pooled: bool, v_first: Tensor, v_last: Tensor) -> SparseMaps:
        from plif_lightning.kernels import cpu_block  # which numba compiles

        images, channels, height, width = x.shape
        if 9 * channels != len(self._table):
            raise UserError(f"x {list(x.shape)} does not fit a table of shape {list(self._table.shape)}.")
        halve = 2 if pooled else 1
        rows, windows = height // halve, width // halve
        threads = threads_for(SUM * images * height * width * self._outputs)
        of_thread = images // steps * rows * windows // threads
        run = max(1, min(windows, _AT_A_TIME // (halve**2 * self._table.shape[1]), of_thread // _UNITS))
        words = words_for(self._outputs)
        bits = torch.empty(images * rows * windows, words, dtype=torch.int64, device="cpu")
        units = images // steps * rows * -(-windows // run)
        parallel(
            cpu_block.conv_fire_pool, units, threads, *x.arrays(self._table), self._table, *self._rows,
            v_first.numpy(), v_last.numpy(), array_of_bits(bits), steps, height, width, pooled, run,
            self._constants,
        )  # fmt: skip
        return SparseMaps(bits, None, (images, self._outputs, rows, windows))


@operator(devices=["CompositeExplicitAutograd"])
def _conv_fire_pool(
    x: Tensor,
    conv: Tensor,
    scale: Tensor,
    shift: Tensor,
    learned: Tensor,
    binary: bool,
    pool: int,
    constants: Sequence[float],
    sparse: str,
) -> Tensor:
    """Pooled spikes [T, N, C', H', W'] of the convolution of x [T, N, C, H, W]; see `ops.fire`.

    The convolution's output is never there as a whole. binary: x holds zeros and ones.
    """
    require_fit(x.flatten(0, 1), conv)
    _require_rows(scale, shift, len(x), len(conv))
    maps = _sparse_maps(x, conv, "conv" if binary else "events", pool, sparse)
    if maps is None:
        return _in_bands(x, conv, scale, shift, learned, pool, constants)
    block = EventBlock(table_of(conv), scale, shift, learned, Constants.from_numbers(constants), pool)
    return block(maps, len(x)).images(x.dtype).unflatten(0, x.shape[:2])


@_conv_fire_pool.register_fake
def _(
    x: Tensor, conv: Tensor, scale: Any, shift: Any, learned: Any, binary: bool, pool: int, constants: Any, sparse: str
) -> Tensor:
    return _empty_spikes(x, conv, pool)


def _empty_spikes(x: Tensor, conv: Tensor, pool: int) -> Tensor:
    halve = 2 if pool else 1
    t, n, _, height, width = x.shape
    return x.new_empty(t, n, height // halve, width // halve, len(conv)).permute(0, 1, 4, 2, 3)


def _require_rows(scale: Tensor, shift: Tensor, steps: int, outputs: int) -> None:
    """Refuses rows that the loops would read beyond the end of."""
    for name, rows in (("scale", scale), ("shift", shift)):
        if rows.shape != scale.shape or rows.shape not in ((1, outputs), (steps, outputs)):
            raise UserError(f"{name} must be [1 or {steps}, {outputs}], both alike, got {list(rows.shape)}.")


def _sparse_maps(x: Tensor, conv: Tensor, name: OpName, pool: int, sparse: str) -> SparseMaps | None:
    """The non-zero inputs of x [T, N, C, H, W] if the event-driven form of the operator is to be taken, else None."""
    if sparse == "never" or x.device.type != "cpu" or pool == POOLS["avg"]:
        return None
    if x.dtype not in TYPES:
        return None
    maps = SparseMaps.of(x.flatten(0, 1), binary=name == "conv")
    density = number_of_spikes(maps.bits) / max(1, x.numel())
    return maps if choose(Op.of(name, x, conv), density, sparse) else None


def _in_bands(
    x: Tensor, conv: Tensor, scale: Tensor, shift: Tensor, learned: Tensor, pool: int, constants: Sequence[float]
) -> Tensor:
    halve = 2 if pool else 1
    out = _empty_spikes(x, conv, pool)
    for first, band in _bands(x, len(conv), pool):
        y = F.conv2d(band, conv, padding=(0, 1)).unflatten(0, x.shape[:2])
        spikes = torch.ops.plif.fire(y, scale, shift, learned, None, len(x), pool, constants, False)[0]
        if spikes.shape == out.shape:
            return spikes  # all in one band
        out[:, :, :, first // halve : first // halve + spikes.shape[3]] = spikes
    return out


@operator(devices=["CompositeExplicitAutograd"])
def _conv_fire_pool_backward(
    x: Tensor,
    conv: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    learned: Tensor,
    seed: Tensor,
    grad_out: Tensor,
    pool: int,
    constants: Sequence[float],
    sparse: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the convolution's weight, of the statistics in it aside; sums and gradient of `learned`.

    The last two are those of `ops.fire_backward`, whose arguments those here are, and of `conv_fire_pool`.
    """
    given = scale, shift, mean, learned, seed, grad_out, pool, constants
    maps = _sparse_maps(x, conv, "events_weight", pool, sparse)
    return _back_in_bands(x, conv, *given) if maps is None else _back_to_events(maps, conv, *given)


def _back_to_events(
    x: SparseMaps, conv: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, learned: Tensor, seed: Tensor,
    grad_out: Tensor, pool: int, constants: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from plif_lightning.kernels import cpu_block

    c, real = Constants.from_numbers(constants), torch.float32
    steps, n, outputs, height, width = len(grad_out), grad_out.shape[1], len(conv), *x.shape[2:]
    halve = 2 if pool else 1
    geometry = Geometry(torch.empty(steps, n, outputs, height, width, device="meta"), steps, pool, SUM)
    # The sums of all steps, and their gradients, are there beside the potentials.
    run = max(1, min(width // halve, geometry.run // outputs // 2))
    geometry.run = run * outputs
    slots = geometry.threads
    sums = np.zeros((slots, 2, len(scale), geometry.run), np.float32)
    sums_learned = np.zeros((slots, len(learned), geometry.run), np.float32)
    table = array_of_rows(in_vectors(table_of(conv)))
    grad_table = np.zeros((slots, len(scale), *table.shape), np.float32)
    parallel(
        cpu_block.conv_fire_pool_backward, n * (height // halve) * -(-(width // halve) // run), slots, *x.arrays(table),
        table, *(geometry.tiled(row, real) for row in (scale, shift, mean)), geometry.tiled_row(learned[K], real),
        _NO_POTENTIAL.numpy(), array_of(channels_last(grad_out.to(conv.dtype))), sums, sums_learned, grad_table, steps,
        height, width, outputs, run, pool, c.of_type(real), geometry.threshold(learned, c, real), seed_of(seed),
    )  # fmt: skip
    of_steps = torch.from_numpy(grad_table.sum(0))[..., :outputs] * scale[:, None]
    grad_conv = of_steps.sum(0).view(3, 3, x.shape[1], outputs).permute(3, 2, 0, 1).contiguous()
    return grad_conv, *sums_of_backward(geometry, sums, sums_learned, scale, shift, mean, learned, c)


def _back_in_bands(
    x: Tensor, conv: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, learned: Tensor, seed: Tensor,
    grad_out: Tensor, pool: int, constants: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    halve = 2 if pool else 1
    height, width = x.shape[3] // halve, x.shape[4] // halve
    grad_conv = conv.new_zeros(conv.shape, dtype=real_type(conv))
    sums, grad_learned = scale.new_zeros(2, *scale.shape), torch.zeros_like(learned)
    for first, band in _bands(x, len(conv), pool):
        y = F.conv2d(band, conv, padding=(0, 1)).unflatten(0, x.shape[:2])
        rows = y.shape[3] // halve
        grad_y, _, sums_of_band, grad_of_band = torch.ops.plif.fire_backward(
            y, scale, shift, mean, learned, None, seed, grad_out[:, :, :, first // halve : first // halve + rows],
            None, len(x), pool, constants, height * width, first // halve * width,
        )  # fmt: skip
        if len(scale) > 1:
            grad_y *= scale[:, None, :, None, None]
        grad_conv += conv2d_weight(band, conv.shape, grad_y.flatten(0, 1), padding=(0, 1))
        sums += sums_of_band
        grad_learned += grad_of_band
    if len(scale) == 1:
        grad_conv *= scale[0][:, None, None, None]
    return grad_conv, sums, grad_learned


@_conv_fire_pool_backward.register_fake
def _(
    x: Any, conv: Tensor, scale: Tensor, shift: Any, mean: Any, learned: Tensor, seed: Any, grad_out: Any, pool: Any,
    constants: Any, sparse: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_conv = conv.new_zeros(conv.shape, dtype=real_type(conv))
    return grad_conv, scale.new_zeros(2, *scale.shape), torch.zeros_like(learned)


def _bands(x: Tensor, channels: int, pool: int) -> Iterator[tuple[int, Tensor]]:
    """First row of each band, and what a convolution [T N, C, rows + 2, W] needs for it: a row more at both ends."""
    t, n, _, height, width = x.shape
    rows = max(2, at_a_time(x.device) // max(1, t * n * width * channels) // 2 * 2)
    around = F.pad(x.flatten(0, 1), (0, 0, 1, 1))
    last = height // 2 * 2 if pool else height
    for first in range(0, last, rows):
        yield first, around[:, :, first : min(first + rows, last) + 2]


@candidates_of("events", "events_weight")
def _candidates(op: Op, density: float) -> tuple[Form, Form]:
    """Both forms of a block of convolution, neurons and pool on random frames, or of its gradients."""
    generator = torch.Generator().manual_seed(0)
    (height, width), dtype = op.size, op.dtype
    n = op.rows // (height * width)
    x = torch.rand(_STEPS, n, height, width, op.inputs, generator=generator).lt(density).to(dtype)
    x = x.permute(0, 1, 4, 2, 3)
    conv = torch.rand(op.outputs, op.inputs, 3, 3, generator=generator).to(dtype)
    grad = torch.rand(_STEPS, n, height // 2, width // 2, op.outputs, generator=generator).to(dtype)
    grad = grad.permute(0, 1, 4, 2, 3)
    one = torch.ones(1, op.outputs, dtype=torch.float32, device="cpu")
    learned, pool = rows_of(None, Firing(), one), POOLS["max_first"]
    constants = [*Constants.of(Firing(), leak=True)]

    def form(sparse: Sparse) -> Form:
        if op.name == "events":
            return lambda: torch.ops.plif.conv_fire_pool(x, conv, one, one, learned, False, pool, constants, sparse)
        return lambda: torch.ops.plif.conv_fire_pool_backward(
            x, conv, one, one, one, learned, no_seed(), grad, pool, constants, sparse
        )

    return form("always"), form("never")
