"""BN, the neuron over all T and the pool in a single pass, for CUDA in Triton; the neuron is `triton_code.py`'s.

Feature maps are [T, positions, C] with C innermost. A program processes a tile [P, M, BC] of P windows with M neurons
each (M = 1 without a pool) and BC channels, for all T steps in turn. The backward pass first recomputes the states
into a temporary buffer.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from plif_lightning.dynamics.equations import program
from plif_lightning.errors import UserError
from plif_lightning.kernels.layout import (
    POOLS,
    channels_last,
    empty_map,
    empty_states,
)
from plif_lightning.kernels.triton_code import triton_code_of

# mypy: disable-error-code="no-untyped-def,untyped-decorator,attr-defined,assignment"
# ruff: noqa: RUF005  # Triton has no unpacking in tuples

MAX_RANDOM = tl.constexpr(POOLS["max_random"])
AVG = tl.constexpr(POOLS["avg"])
# Values per tile; with more, the backward pass spills registers.
_TILE = 256
# Without fused multiply-adds, products are rounded as in the reference, so that neurons at their threshold agree.
# Without maxnreg, NVIDIA's assembler allocates so few registers that it spills some.
_OPTIONS = {"enable_fp_fusion": False, "maxnreg": 128}


@triton.jit
def _block_positions(block, positions, height, width, channels, c, P: tl.constexpr, M: tl.constexpr):
    """Offsets of a tile's neurons in a step [P, M, C] and of its windows in the output, and a mask of valid ones."""
    p = block * P + tl.arange(0, P)[:, None, None]
    m = tl.arange(0, M)[None, :, None]
    if M == 4:
        windows, rows = width // 2, height // 2
        column = p % windows
        row = (p // windows) % rows
        image = p // (windows * rows)
        at = (image * height + 2 * row + m // 2) * width + 2 * column + m % 2
    else:
        at = p + m
    in_bounds = (p < positions) & (c < channels)
    return at.to(tl.int64) * channels + c, p.to(tl.int64) * channels + c, in_bounds


@triton.jit
def _load(rows, stride, at, mask, NUMBER: tl.constexpr):
    """Values at `at` of rows at distance `stride`; zero where masked."""
    values = ()
    for i in tl.static_range(NUMBER):
        values = values + (tl.load(rows + i * stride + at, mask=mask, other=0.0),)
    return values


@triton.jit
def _store(values, rows, stride, at, mask, NUMBER: tl.constexpr):
    for i in tl.static_range(NUMBER):
        tl.store(rows + i * stride + at, values[i], mask=mask)


@triton.jit
def _first(start, v_first, step_size, at, in_bounds, S: tl.constexpr, START: tl.constexpr, SHAPE: tl.constexpr):
    """The states before the first step: v_first, or `start`."""
    if START:
        return _load(v_first, step_size, at, in_bounds, S)
    states = ()
    for i in tl.static_range(S):
        states = states + (tl.zeros(SHAPE, tl.float32) + tl.load(start + i),)
    return states


@triton.jit
def _total(value, in_bounds):
    """Sum over the neurons of a tile [1, 1, C]."""
    return tl.sum(tl.sum(tl.where(in_bounds, value, 0.0), 0, keep_dims=True), 1, keep_dims=True)


@triton.jit
def _forward(
    y, scale, shift, parameters, start, v_first, v_last, out,
    positions, steps, step_size, out_size, height, width, channels,
    FIRE: tl.constexpr, S: tl.constexpr, N: tl.constexpr, POOL: tl.constexpr, HELD: tl.constexpr,
    PER_STEP: tl.constexpr, START: tl.constexpr, LAST: tl.constexpr, P: tl.constexpr, M: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * BC + tl.arange(0, BC)[None, None, :]
    here = c < channels
    at, window, in_bounds = _block_positions(tl.program_id(0), positions, height, width, channels, c, P, M)
    values = _load(parameters, channels, c, here, N)
    states = _first(start, v_first, step_size, at, in_bounds, S, START, [P, M, BC])
    scale_ = tl.load(scale + c, mask=here, other=0.0)
    shift_ = tl.load(shift + c, mask=here, other=0.0)
    # Increment pointers per step: an offset into a long sequence may exceed 32 bits.
    y_t, out_t = y + at, out + window
    x = tl.load(y_t, mask=in_bounds, other=0.0).to(tl.float32) * scale_ + shift_
    for t in range(steps):
        if not HELD:
            if PER_STEP:
                scale_ = tl.load(scale + t * channels + c, mask=here, other=0.0)
                shift_ = tl.load(shift + t * channels + c, mask=here, other=0.0)
            x = tl.load(y_t, mask=in_bounds, other=0.0).to(tl.float32) * scale_ + shift_
            y_t += step_size
        spikes, states = FIRE(x, states, values)
        if POOL == AVG:
            pooled = tl.sum(spikes, 1, keep_dims=True) * 0.25
        else:
            pooled = tl.max(spikes, 1, keep_dims=True)
        tl.store(out_t, pooled.to(out.dtype.element_ty), mask=in_bounds)
        out_t += out_size
    if LAST:
        _store(states, v_last, step_size, at, in_bounds, S)


@triton.jit
def _backward(
    y, scale, shift, mean, parameters, start, v_first, grad_out, grad_last, history, grad_y, grad_first, sums,
    sums_learned, positions, steps, step_size, out_size, height, width, channels, images, seed,
    FIRE: tl.constexpr, FIRE_BACK: tl.constexpr, S: tl.constexpr, N: tl.constexpr, POOL: tl.constexpr,
    HELD: tl.constexpr, PER_STEP: tl.constexpr, START: tl.constexpr, LAST: tl.constexpr,
    P: tl.constexpr, M: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients; the caller reduces sums [programs, T or 1, 2, C] and sums_learned [programs, N, C] over programs."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)[None, None, :]
    here = c < channels
    values = _load(parameters, channels, c, here, N)
    scale_ = tl.load(scale + c, mask=here, other=0.0)
    shift_ = tl.load(shift + c, mask=here, other=0.0)
    mean_ = tl.load(mean + c, mask=here, other=0.0)
    rows = steps if PER_STEP else 1
    sums_of_program = sums + tl.program_id(0) * rows * 2 * channels
    totals = ()
    for _i in tl.static_range(N):
        totals = totals + (tl.zeros([1, 1, BC], tl.float32),)
    for block in range(tl.program_id(0), tl.cdiv(positions, P), tl.num_programs(0)):
        at, window, in_bounds = _block_positions(block, positions, height, width, channels, c, P, M)
        states = _first(start, v_first, step_size, at, in_bounds, S, START, [P, M, BC])
        y_t, history_t, out_t, grad_t = y + at, history + at, grad_out + window, grad_y + at
        raw = tl.load(y_t, mask=in_bounds, other=0.0).to(tl.float32)
        x = raw * scale_ + shift_
        for t in range(steps):
            if not HELD:
                if PER_STEP:
                    scale_ = tl.load(scale + t * channels + c, mask=here, other=0.0)
                    shift_ = tl.load(shift + t * channels + c, mask=here, other=0.0)
                raw = tl.load(y_t, mask=in_bounds, other=0.0).to(tl.float32)
                x = raw * scale_ + shift_
                y_t += step_size
                grad_t += step_size
            _store(states, history_t, step_size, 0, in_bounds, S)
            history_t += S * step_size
            out_t += out_size
            _spikes, states = FIRE(x, states, values)
        by_states = ()
        for _i in tl.static_range(S):
            by_states = by_states + (tl.zeros([P, M, BC], tl.float32),)
        if LAST:
            by_states = _load(grad_last, step_size, at, in_bounds, S)
        carried = tl.zeros([P, M, BC], tl.float32)
        for back in range(steps):
            t = steps - 1 - back
            history_t -= S * step_size
            out_t -= out_size
            before = _load(history_t, step_size, 0, in_bounds, S)
            if not HELD:
                if PER_STEP:
                    scale_ = tl.load(scale + t * channels + c, mask=here, other=0.0)
                    shift_ = tl.load(shift + t * channels + c, mask=here, other=0.0)
                    mean_ = tl.load(mean + t * channels + c, mask=here, other=0.0)
                y_t -= step_size
                grad_t -= step_size
                raw = tl.load(y_t, mask=in_bounds, other=0.0).to(tl.float32)
                x = raw * scale_ + shift_
            g = tl.load(out_t, mask=in_bounds, other=0.0).to(tl.float32)
            if M == 1:
                grad_fire = g
            elif POOL == AVG:
                grad_fire = tl.broadcast_to(g * 0.25, [P, M, BC])
            else:
                again, _after = FIRE(x, before, values)
                fired = again.to(tl.int32)
                fired = tl.where(tl.sum(fired, 1, keep_dims=True) == 0, 1, fired)  # none fired: all are tied
                tied = tl.sum(fired, 1, keep_dims=True)
                if POOL == MAX_RANDOM:
                    p = block * P + tl.arange(0, P)[:, None, None]
                    pooled_positions = (height // 2) * (width // 2)
                    number = (
                        (t * images + p // pooled_positions) * channels + c
                    ) * pooled_positions + p % pooled_positions
                    z = number.to(tl.uint32) ^ seed.to(tl.uint32)
                    z = (z ^ (z >> 16)) * 0x7FEB352D
                    z = (z ^ (z >> 15)) * 0x846CA68B
                    z = z ^ (z >> 16)
                    rank = ((z >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08 * tied).to(tl.int32)
                else:
                    rank = tl.zeros([P, 1, BC], tl.int32)
                ahead = tl.cumsum(fired, 1) - fired
                grad_fire = tl.where((fired == 1) & (ahead == rank), tl.broadcast_to(g, [P, M, BC]), 0.0)
            grad_x, by_states, by_parameters = FIRE_BACK(x, before, values, grad_fire, by_states)
            added = ()
            for i in tl.static_range(N):
                added = added + (totals[i] + _total(by_parameters[i], in_bounds),)
            totals = added
            grad_x = tl.where(in_bounds, grad_x, 0.0)
            row = sums_of_program + (t if PER_STEP else 0) * 2 * channels + c
            total = _total(grad_x, in_bounds)
            total_y = _total(grad_x * (raw - mean_), in_bounds)
            tl.store(row, tl.load(row, mask=here, other=0.0) + total, mask=here)
            tl.store(row + channels, tl.load(row + channels, mask=here, other=0.0) + total_y, mask=here)
            if HELD:
                carried += grad_x
            else:
                tl.store(grad_t, grad_x.to(grad_y.dtype.element_ty), mask=in_bounds)
        if HELD:
            tl.store(grad_y + at, carried.to(grad_y.dtype.element_ty), mask=in_bounds)
        if START:
            _store(by_states, grad_first, step_size, at, in_bounds, S)
    _store(totals, sums_learned + tl.program_id(0) * N * channels, channels, c, here, N)


@triton.jit
def _moments(y, pivot, sums, positions, channels, P: tl.constexpr, BC: tl.constexpr):
    """Sums [programs, T, 2, C] of y - pivot and of its square over a step, for the positions of each program."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]
    t = tl.program_id(2)
    here = c < channels
    step = y + t.to(tl.int64) * positions * channels
    pivot_ = tl.load(pivot + t * channels + c, mask=here, other=0.0)
    total = tl.zeros([1, BC], tl.float32)
    squares = tl.zeros([1, BC], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(positions, P), tl.num_programs(0)):
        p = block * P + tl.arange(0, P)[:, None]
        in_bounds = (p < positions) & here
        value = tl.load(step + p.to(tl.int64) * channels + c, mask=in_bounds, other=0.0).to(tl.float32) - pivot_
        value = tl.where(in_bounds, value, 0.0)
        total += tl.sum(value, 0, keep_dims=True)
        squares += tl.sum(value * value, 0, keep_dims=True)
    row = sums + (tl.program_id(0) * tl.num_programs(2) + t) * 2 * channels + c
    tl.store(row, total, mask=here)
    tl.store(row + channels, squares, mask=here)


@triton.jit
def _normalize_back(grad, y, factor, offset, slope, size, channels, PER_STEP: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_bounds = i < size
    c = i % channels + (t * channels if PER_STEP else 0)
    at = t.to(tl.int64) * size + i
    f = tl.load(factor + c, mask=in_bounds)
    o = tl.load(offset + c, mask=in_bounds)
    s = tl.load(slope + c, mask=in_bounds)
    g = tl.load(grad + at, mask=in_bounds).to(tl.float32)
    value = g * f + o + tl.load(y + at, mask=in_bounds).to(tl.float32) * s
    tl.store(grad + at, value.to(grad.dtype.element_ty), mask=in_bounds)


class _Tiles:
    """Division of a feature map into tiles."""

    def __init__(self, y: Tensor, pool: int) -> None:
        if y.dtype == torch.float64:
            raise UserError("backend='triton' computes in float32, but the data is float64: pass backend='reference'.")
        _, self.images, self.channels, self.height, self.width = y.shape
        self.neurons = 4 if pool else 1
        maps = (self.height // 2) * (self.width // 2) if pool else self.height * self.width
        self.positions = self.images * maps
        self.block_channels = min(64, triton.next_power_of_2(self.channels))
        self.block = max(1, _TILE // (self.neurons * self.block_channels))
        self.channel_blocks = triton.cdiv(self.channels, self.block_channels)
        self.blocks = max(1, triton.cdiv(self.positions, self.block))
        # Enough programs to fill the device; each processes some tiles and accumulates in a separate row of sums.
        full = 2 if y.device.type == "cpu" else 8 * torch.cuda.get_device_properties(y.device).multi_processor_count
        self.programs = min(self.blocks, max(1, full // self.channel_blocks))

    @property
    def constants(self) -> dict[str, int | bool]:
        return {"P": self.block, "M": self.neurons, "BC": self.block_channels, **_OPTIONS}


def _on_its_device(launch):
    """Decorator: Triton launches on the current device, which may not be that of the data."""

    @functools.wraps(launch)
    def run(x: Tensor, *arguments):
        with torch.cuda.device_of(x):
            return launch(x, *arguments)

    return run


def _rows(learned: Tensor, y: Tensor) -> Tensor:
    """The neurons' parameters [N, C]."""
    return learned.detach().float().expand(-1, y.shape[2]).contiguous()


def _start(neuron: str, y: Tensor) -> Tensor:
    return torch.tensor(program(neuron).start, dtype=torch.float32, device=y.device)


def _states(states: Tensor | None, y: Tensor) -> Tensor:
    """States [S, N, C, H, W] with C innermost; an empty tensor for None."""
    return y.new_empty(0, dtype=torch.float32) if states is None else channels_last(states.detach().float())


@_on_its_device
def fire(
    y: Tensor, scale: Tensor, shift: Tensor, learned: Tensor, states: Tensor | None, steps: int, pool: int,
    neuron: str, last: bool, added: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`ops.fire` on CUDA."""
    assert added is None
    code = triton_code_of(neuron)
    y = channels_last(y)
    tiles = _Tiles(y, pool)
    halve = 2 if pool else 1
    out = empty_map(y, steps, y.shape[3] // halve, y.shape[4] // halve)
    final = empty_states(y, code.states if last else 0)
    _forward[(tiles.blocks, tiles.channel_blocks)](
        y, scale.float().contiguous(), shift.float().contiguous(), _rows(learned, y), _start(neuron, y),
        _states(states, y), final, out, tiles.positions, steps, y[0].numel(), out[0].numel(), y.shape[3], y.shape[4],
        y.shape[2], FIRE=code.fire, S=code.states, N=code.parameters, POOL=pool, HELD=len(y) == 1,
        PER_STEP=len(scale) > 1, START=states is not None, LAST=last, **tiles.constants,
    )  # fmt: skip
    return out, final


@_on_its_device
def fire_backward(
    y: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, learned: Tensor, states: Tensor | None, seed: Tensor,
    grad_out: Tensor, grad_last: Tensor | None, steps: int, pool: int, neuron: str, added: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`ops.fire_backward` on CUDA."""
    assert added is None
    code = triton_code_of(neuron)
    y = channels_last(y)
    tiles = _Tiles(y, pool)
    grad_y = empty_map(y, len(y), *y.shape[3:])
    if pool and (y.shape[3] % 2 or y.shape[4] % 2):
        grad_y.zero_()  # an odd last row or column lies in no window
    grad_first = empty_states(y, 0 if states is None else code.states)
    grad_out = channels_last(grad_out.to(y.dtype))
    history = y.new_empty(steps, code.states, y[0].numel(), dtype=torch.float32)
    sums = y.new_zeros(tiles.programs, len(scale), 2, y.shape[2], dtype=torch.float32)
    sums_learned = y.new_zeros(tiles.programs, len(learned), y.shape[2], dtype=torch.float32)
    _backward[(tiles.programs, tiles.channel_blocks)](
        y, scale.float().contiguous(), shift.float().contiguous(), mean.float().contiguous(), _rows(learned, y),
        _start(neuron, y), _states(states, y), grad_out, _states(grad_last, y), history, grad_y, grad_first, sums,
        sums_learned, tiles.positions, steps, y[0].numel(), grad_out[0].numel(), y.shape[3], y.shape[4], y.shape[2],
        y.shape[1], int(seed),
        FIRE=code.fire, FIRE_BACK=code.fire_back, S=code.states, N=code.parameters, POOL=pool, HELD=len(y) == 1,
        PER_STEP=len(scale) > 1, START=states is not None, LAST=grad_last is not None, **tiles.constants,
    )  # fmt: skip
    grad_learned = sums_learned.double().sum(0)
    if learned.shape[1] == 1:
        grad_learned = grad_learned.sum(1, keepdim=True)
    totals = sums.sum(0, dtype=torch.float64).transpose(0, 1).float().contiguous()
    return grad_y, grad_first, totals, grad_learned.float()


@_on_its_device
def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """`ops.moments` on CUDA."""
    y = channels_last(y)
    tiles = _Tiles(y, POOLS["none"])
    pivot = y[:, 0, :, 0, 0].float().contiguous()
    sums = y.new_empty(tiles.programs, len(y), 2, y.shape[2], dtype=torch.float32)
    _moments[(tiles.programs, tiles.channel_blocks, len(y))](
        y, pivot, sums, tiles.positions, y.shape[2], P=tiles.block, BC=tiles.block_channels, **_OPTIONS
    )
    first, second = sums.sum(0, dtype=torch.float64).transpose(0, 1) / tiles.positions
    return (pivot + first).float(), (second - first.square()).clamp_(min=0).float()


@_on_its_device
def normalize_backward(grad: Tensor, y: Tensor, factor: Tensor, offset: Tensor, slope: Tensor) -> None:
    """`ops.normalize_backward` on CUDA."""
    y = channels_last(y)
    size, block = y[0].numel(), 1024
    _normalize_back[(triton.cdiv(size, block), len(y))](
        grad, y, *(values.float().contiguous() for values in (factor, offset, slope)), size, y.shape[2],
        PER_STEP=len(factor) > 1, BLOCK=block, **_OPTIONS,
    )  # fmt: skip
