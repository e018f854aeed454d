"""Convolutional blocks that never store the convolution's full output.

The event-driven form sums the non-zero inputs around each position; the dense form computes one band of rows at a time
with PyTorch's convolution.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plif_lightning.dynamics.equations import Dynamics, program, registered
from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.leaky import leaky
from plif_lightning.errors import UserError
from plif_lightning.kernels.bits import (
    SparseMaps,
    array_of_bits,
    array_of_rows,
    number_of_spikes,
    words_for,
)
from plif_lightning.kernels.dense import conv2d, conv2d_weight
from plif_lightning.kernels.fused import no_seed
from plif_lightning.kernels.layout import (
    POOLS,
    SUM,
    Geometry,
    Pool,
    array_of,
    at_a_time,
    channels_last,
    convolved,
    real_type,
    require_channels,
    rows_of,
    threads_for,
)
from plif_lightning.kernels.operators import operator
from plif_lightning.kernels.ops import codes_of_backward, seed_of, start_of, sums_for, sums_of_backward
from plif_lightning.kernels.parallel import parallel
from plif_lightning.kernels.policy import TYPES, Op, OpName, Sparse, Timed, candidates_of, choose
from plif_lightning.kernels.sparse import in_vectors, kernel_of, require_fit, table_of

# Potentials per unit of work: they fill half of a first-level cache.
_AT_A_TIME = 2**12
# Minimum number of units of work per thread, for load balance, if the feature map is large enough.
_UNITS = 4
# Time-steps of a timing: enough for its feature maps to exceed the caches, as those of a network's first block do.
_STEPS = 8
_NO_STATES = torch.empty(0, 1, 1, dtype=torch.float32, device="cpu")


class EventBlock:
    """A convolution with padding K // 2, BN's affine map or a bias, neurons and a 2x2 max-pool; no gradients.

    Its spikes equal those of the parts run one by one: the sums are bit-identical to `conv_events`.

    Args:
        table: `table_of` the weight [K K C, O]: float32, bfloat16, int8 or int16.
        scale: factor of the sums, [T or 1, O] float32.
        shift: added to the scaled sums, as scale.
        learned: parameters of the neurons, see `layout.rows_of`.
        neuron: key of their program.
        pool: number of the pooling: none, max_first or max_random, which give the same spikes.
        stride: of the convolution, 1 or 2.
    """

    def __init__(
        self, table: Tensor, scale: Tensor, shift: Tensor, learned: Tensor, neuron: str, pool: int, stride: int = 1
    ) -> None:
        self._outputs, self._stride = table.shape[1], stride
        self._table = array_of_rows(in_vectors(table))
        self._rows = [in_vectors(x.detach()).reshape(-1).float().contiguous().numpy() for x in (scale, shift)]
        require_channels(learned, self._outputs)
        learned, shared = learned.detach().float(), learned.shape[1] == 1
        self._parameters = (learned if shared else in_vectors(learned)).contiguous().numpy()
        self._program = program(neuron)
        self._start = start_of(self._program, torch.float32)
        self._variant = torch.float32, shared, table.dtype in (torch.int8, torch.int16)
        self._valid = last_word(self._outputs)
        self._pooled = pool != POOLS["none"]

    @classmethod
    def of_neurons(
        cls, table: Tensor, scale: Tensor | None, bias: Tensor | None, dynamics: Dynamics, pool: Pool, stride: int = 1
    ) -> "EventBlock":
        """The block of a layer with folded BN.

        Args:
            table: as in the class.
            scale: factor of each output [O], for a table of integers.
            bias: bias of each output [O], or None.
            dynamics: the neurons.
            pool: none, max_first or max_random.
            stride: as in the class.
        """
        one = torch.ones(table.shape[1], dtype=torch.float32, device="cpu")
        shift = torch.zeros_like(one) if bias is None else bias
        learned, neuron = rows_of(dynamics, one), dynamics.key
        scale = one if scale is None else scale
        return cls(table, scale[None], shift[None], learned, neuron, POOLS[pool], stride)

    def __call__(self, x: SparseMaps, steps: int) -> SparseMaps:
        """Spikes [T N, O, H', W'] of x [T N, C, H, W], time first."""
        return self._run(x, steps, self._pooled, _NO_STATES, _NO_STATES)

    def step(self, x: SparseMaps, states: Tensor | None) -> tuple[SparseMaps, Tensor]:
        """Pooled spikes of one time-step x [N, C, H, W], and the next states; states [S, N, H, W, O] (None: first)."""
        n, (height, width) = x.shape[0], convolved(x.shape[2:], self._stride)
        after = torch.empty(self._start.size, n, height, width, self._outputs, dtype=torch.float32, device="cpu")
        before = _NO_STATES if states is None else states.reshape(self._start.size, -1, self._outputs)
        # With an odd size, neurons outside of all windows need their states too: pool afterwards.
        whole = self._pooled and height % 2 == width % 2 == 0
        spikes = self._run(x, 1, whole, before, after.view(self._start.size, -1, self._outputs))
        if self._pooled and not whole:
            spikes = SparseMaps.of(F.max_pool2d(spikes.images(torch.float32), 2), binary=True)
        return spikes, after

    def _run(self, x: SparseMaps, steps: int, pooled: bool, v_first: Tensor, v_last: Tensor) -> SparseMaps:
        from plif_lightning.kernels import cpu_block, cpu_sparse  # deferred: imports numba
        from plif_lightning.kernels.machine_code import code_of

        images, channels, *of_maps = x.shape
        height, width = convolved((of_maps[0], of_maps[1]), self._stride)
        taps = cpu_sparse.taps_of(kernel_of(self._table.shape, channels))
        halve = 2 if pooled else 1
        rows, windows = height // halve, width // halve
        threads = threads_for(SUM * images * height * width * self._outputs)
        of_thread = images // steps * rows * windows // threads
        of_window = halve**2 * self._table.shape[1] * self._start.size
        run = max(1, min(windows, _AT_A_TIME // of_window, of_thread // _UNITS))
        words = words_for(self._outputs)
        bits = torch.empty(images * rows * windows, words, dtype=torch.int64, device="cpu")
        units = images // steps * rows * -(-windows // run)
        code = code_of("fire_window", registered(self._program), *self._variant)
        parallel(
            cpu_block.conv_fire_pool, units, threads, *x.arrays(self._table), self._table, *self._rows,
            self._parameters, self._start, v_first.contiguous().numpy(), v_last.numpy(), array_of_bits(bits),
            code, self._valid, steps, *of_maps, pooled, run, self._stride, taps,
        )  # fmt: skip
        return SparseMaps(bits, None, (images, self._outputs, rows, windows))


def last_word(outputs: int) -> int:
    """The bits of outputs in the last word of a position, as a signed number."""
    used = outputs - 64 * (words_for(outputs) - 1)
    return -1 if used == 64 else (1 << used) - 1


@operator(devices=["CompositeExplicitAutograd"])
def _conv_fire_pool(
    x: Tensor,
    conv: Tensor,
    scale: Tensor,
    shift: Tensor,
    learned: Tensor,
    binary: bool,
    pool: int,
    neuron: str,
    sparse: str,
    stride: int,
) -> Tensor:
    """Pooled spikes [T, N, C', H', W'] of the convolution of x [T, N, C, H, W]; see `ops.fire`. binary: x is spikes."""
    require_fit(x.flatten(0, 1), conv)
    _require_rows(scale, shift, len(x), len(conv))
    maps = _sparse_maps(x, conv, "conv" if binary else "events", pool, sparse, stride)
    if maps is None:
        if (conv.shape[-1], stride) == (3, 1):
            return _in_bands(x, conv, scale, shift, learned, pool, neuron)
        y = conv2d(x.flatten(0, 1), conv, stride=stride, padding=conv.shape[-1] // 2).unflatten(0, x.shape[:2])
        return torch.ops.plif.fire(y, scale, shift, learned, None, len(x), pool, neuron, False)[0]
    block = EventBlock(table_of(conv), scale, shift, learned, neuron, pool, stride)
    return block(maps, len(x)).images(x.dtype).unflatten(0, x.shape[:2])


@_conv_fire_pool.register_fake
def _(
    x: Tensor, conv: Tensor, scale: Any, shift: Any, learned: Any, binary: bool, pool: int, neuron: Any, sparse: str,
    stride: int,
) -> Tensor:  # fmt: skip
    return _empty_spikes(x, conv, pool, stride)


def _empty_spikes(x: Tensor, conv: Tensor, pool: int, stride: int = 1) -> Tensor:
    halve = 2 if pool else 1
    t, n, height, width = *x.shape[:2], *convolved((x.shape[3], x.shape[4]), stride)
    return x.new_empty(t, n, height // halve, width // halve, len(conv)).permute(0, 1, 4, 2, 3)


def _require_rows(scale: Tensor, shift: Tensor, steps: int, outputs: int) -> None:
    """Refuse scale and shift of a wrong shape: the loops would read beyond their end."""
    for name, rows in (("scale", scale), ("shift", shift)):
        if rows.shape != scale.shape or rows.shape not in ((1, outputs), (steps, outputs)):
            raise UserError(
                f"{name} must be [1 or {steps}, {outputs}], the same for scale and shift, got {list(rows.shape)}."
            )


def _sparse_maps(x: Tensor, conv: Tensor, name: OpName, pool: int, sparse: str, stride: int = 1) -> SparseMaps | None:
    """The non-zero inputs of x [T, N, C, H, W] if `choose` takes the event-driven form of the operator, else None."""
    if sparse == "never" or x.device.type != "cpu" or pool == POOLS["avg"]:
        return None
    if x.dtype not in TYPES:
        return None
    maps = SparseMaps.of(x.flatten(0, 1), binary=name == "conv")
    density = number_of_spikes(maps.bits) / max(1, x.numel())
    return maps if choose(Op.of(name, x, conv, stride), density, sparse) else None


def _in_bands(x: Tensor, conv: Tensor, scale: Tensor, shift: Tensor, learned: Tensor, pool: int, neuron: str) -> Tensor:
    halve = 2 if pool else 1
    out = _empty_spikes(x, conv, pool)
    for first, band in _bands(x, len(conv), pool):
        y = conv2d(band, conv, padding=(0, 1)).unflatten(0, x.shape[:2])
        spikes = torch.ops.plif.fire(y, scale, shift, learned, None, len(x), pool, neuron, False)[0]
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
    neuron: str,
    sparse: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the convolution's weight, without that through BN's statistics; sums; gradient of `learned`.

    The last two as in `ops.fire_backward`; arguments as in `ops.fire_backward` and `conv_fire_pool`.
    """
    given = scale, shift, mean, learned, seed, grad_out, pool, neuron
    maps = _sparse_maps(x, conv, "events_weight", pool, sparse)
    return _back_in_bands(x, conv, *given) if maps is None else _back_to_events(maps, conv, *given)


def _back_to_events(
    x: SparseMaps, conv: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, learned: Tensor, seed: Tensor,
    grad_out: Tensor, pool: int, neuron: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from plif_lightning.kernels import cpu_block

    p, real = program(neuron), torch.float32
    steps, n, outputs, height, width = len(grad_out), grad_out.shape[1], len(conv), *x.shape[2:]
    halve = 2 if pool else 1
    maps = torch.empty(steps, n, outputs, height, width, device="meta")
    geometry = Geometry(maps, steps, pool, len(p.states) + len(p.kept), SUM)
    # Sums of all steps and their gradients must fit the cache together with the states.
    run = max(1, min(width // halve, geometry.run // outputs // 2))
    geometry.use_run(run * outputs)
    slots = geometry.threads
    sums, sums_learned = sums_for(geometry, len(scale), learned, real)
    table = array_of_rows(in_vectors(table_of(conv)))
    grad_table = np.zeros((slots, len(scale), *table.shape), np.float32)
    parallel(
        cpu_block.conv_fire_pool_backward, n * (height // halve) * -(-(width // halve) // run), slots, *x.arrays(table),
        table, *(geometry.tiled(row, real) for row in (scale, shift, mean)), geometry.parameters(learned, real),
        start_of(p, real), _NO_STATES.flatten(1).numpy(), array_of(channels_last(grad_out.to(conv.dtype))), sums,
        sums_learned, grad_table, *codes_of_backward(neuron, pool, real, learned), steps, height, width, outputs, run,
        pool, len(p.kept), seed_of(seed),
    )  # fmt: skip
    of_steps = torch.from_numpy(grad_table.sum(0))[..., :outputs] * scale[:, None]
    grad_conv = of_steps.sum(0).view(3, 3, x.shape[1], outputs).permute(3, 2, 0, 1).contiguous()
    return grad_conv, *sums_of_backward(geometry, sums, sums_learned, scale, learned)


def _back_in_bands(
    x: Tensor, conv: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, learned: Tensor, seed: Tensor,
    grad_out: Tensor, pool: int, neuron: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    halve = 2 if pool else 1
    height, width = x.shape[3] // halve, x.shape[4] // halve
    grad_conv = conv.new_zeros(conv.shape, dtype=real_type(conv))
    sums, grad_learned = scale.new_zeros(2, *scale.shape), torch.zeros_like(learned)
    for first, band in _bands(x, len(conv), pool):
        y = conv2d(band, conv, padding=(0, 1)).unflatten(0, x.shape[:2])
        rows = y.shape[3] // halve
        grad_y, _, sums_of_band, grad_of_band = torch.ops.plif.fire_backward(
            y, scale, shift, mean, learned, None, seed, grad_out[:, :, :, first // halve : first // halve + rows],
            None, len(x), pool, neuron, height * width, first // halve * width,
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
    neuron: Any, sparse: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_conv = conv.new_zeros(conv.shape, dtype=real_type(conv))
    return grad_conv, scale.new_zeros(2, *scale.shape), torch.zeros_like(learned)


def _bands(x: Tensor, channels: int, pool: int) -> Iterator[tuple[int, Tensor]]:
    """First row of each band, and its convolution's input [T N, C, rows + 2, W], with a border row at both ends."""
    t, n, _, height, width = x.shape
    rows = max(2, at_a_time(x.device) // max(1, t * n * width * channels) // 2 * 2)
    padded = F.pad(x.flatten(0, 1), (0, 0, 1, 1))
    last = height // 2 * 2 if pool else height
    for first in range(0, last, rows):
        yield first, padded[:, :, first : min(first + rows, last) + 2]


@candidates_of("events", "events_weight")
def _candidates(op: Op, density: float) -> tuple[Timed, Timed]:
    """Event-driven and dense form of a convolution-neuron-pool block, or of its gradients, on random frames."""
    generator = torch.Generator().manual_seed(0)
    (height, width), dtype = op.size, op.dtype
    n = op.rows // (height * width)
    x = torch.rand(_STEPS, n, height, width, op.inputs, generator=generator).lt(density).to(dtype)
    x = x.permute(0, 1, 4, 2, 3)
    conv = torch.rand(op.outputs, op.inputs, 3, 3, generator=generator).to(dtype)
    grad = torch.rand(_STEPS, n, height // 2, width // 2, op.outputs, generator=generator).to(dtype)
    grad = grad.permute(0, 1, 4, 2, 3)
    one = torch.ones(1, op.outputs, dtype=torch.float32, device="cpu")
    dynamics = leaky(torch.ones(()), Firing())
    learned, neuron, pool = rows_of(dynamics, one), dynamics.key, POOLS["max_first"]

    def form(sparse: Sparse) -> Timed:
        if op.name == "events":
            return lambda: torch.ops.plif.conv_fire_pool(x, conv, one, one, learned, False, pool, neuron, sparse, 1)
        return lambda: torch.ops.plif.conv_fire_pool_backward(
            x, conv, one, one, one, learned, no_seed(), grad, pool, neuron, sparse
        )

    return form("always"), form("never")
