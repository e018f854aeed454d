"""Gradients of `kernels/cpu.py`: the potentials are recomputed from the input, a unit of work at a time."""

import numpy as np

from plif_lightning.kernels.cpu import (
    AVG,
    MAX_RANDOM,
    NO_POOL,
    _fill,
    _load,
    _narrow,
    _store,
    _unit_bounds,
    _wide,
    address,
    aligned_rows,
    begin_states,
    is_direct,
    padded_width,
    read_input,
    working_rows,
)
from plif_lightning.kernels.machine_code import call, keep
from plif_lightning.runtime.compiled import compile_loop, inner

# mypy: disable-error-code="no-untyped-def"


@inner
def _count_fired(spikes, n, tied):
    """Number of tied neurons in each window: neurons that fired, or all four if none did."""
    unit_value = tied.dtype.type(1.0)
    zero, four = unit_value - unit_value, unit_value + unit_value + unit_value + unit_value
    a, b, c, d = np.uintp(0), np.uintp(1), np.uintp(2), np.uintp(3)
    for j in range(n):
        i = np.uintp(j)
        count = (spikes[a, i] + spikes[b, i]) + (spikes[c, i] + spikes[d, i])
        tied[i] = count if count > zero else four


@inner
def _ranks(tied, n, number, position, seed, rank, row):
    """Draw a rank uniformly from 0 to tied - 1 by hashing the position of the window (lowbias32, Wellons 2018)."""
    scale = rank.dtype.type(2**-24)
    r = np.uintp(row)
    for j in range(n):
        i = np.uintp(j)
        z = np.uint32(np.uint32(number[i] + position) ^ seed)
        z = np.uint32((z ^ (z >> np.uint32(16))) * np.uint32(0x7FEB352D))
        z = np.uint32((z ^ (z >> np.uint32(15))) * np.uint32(0x846CA68B))
        z = np.uint32(z ^ (z >> np.uint32(16)))
        rank[r, i] = np.floor(rank.dtype.type(np.int32(z >> np.uint32(8))) * scale * tied[i])


@inner
def _winners(spikes, n, winner, row):
    """Replace a rank among the tied neurons of each window by the index of that neuron, 0 to 3."""
    unit_value = winner.dtype.type(1.0)
    zero, r = unit_value - unit_value, np.uintp(row)
    a, b, c, d = np.uintp(0), np.uintp(1), np.uintp(2), np.uintp(3)
    for j in range(n):
        i = np.uintp(j)
        rank = winner[r, i]
        of_two = spikes[a, i] + spikes[b, i]
        of_three = of_two + spikes[c, i]
        passed = (unit_value if spikes[a, i] <= rank else zero) + (unit_value if of_two <= rank else zero)
        passed = passed + (unit_value if of_three <= rank else zero)
        winner[r, i] = passed if of_three + spikes[d, i] > zero else rank


@inner
def _sum_with_y(y, t, start, chunk, n, mean, s, grad, row, totals, to_grad, to_product):
    """Add dL/dX, and its product with y - mean, to two rows of totals."""
    step, of_step, r = np.uintp(t), np.uintp(s), np.uintp(row)
    a, b = np.uintp(to_grad), np.uintp(to_product)
    for w in range(n // chunk):
        at, to = np.uintp(start + 2 * w * chunk), np.uintp(w * chunk)
        for j in range(chunk):
            i = np.uintp(j)
            g = grad[r, to + i]
            totals[a, to + i] = totals[a, to + i] + g
            totals[b, to + i] = totals[b, to + i] + g * (_wide(y[step, at + i]) - mean[of_step, to + i])


@inner
def _add(rows, row, n, to, to_row):
    r, target = np.uintp(row), np.uintp(to_row)
    for j in range(n):
        i = np.uintp(j)
        to[target, i] = to[target, i] + rows[r, i]


@inner
def _scale(rows, row, n, factor):
    r = np.uintp(row)
    for j in range(n):
        i = np.uintp(j)
        rows[r, i] = rows[r, i] * factor


@inner
def work_of_backward(real, steps, states, run, channels, pooled, map_windows):
    """Workspace of `backward_unit`; `number` identifies window and channel when ties are drawn."""
    rows, width = 4 if pooled else 1, padded_width(run)
    history = working_rows((steps + 1) * states * rows, width, real)  # the states before step 0, 1, ...
    by_states = working_rows(states * rows, width, real)
    x = working_rows(rows, width, real)
    by_x = working_rows(rows, width, real)  # of a held input: its sum over the steps
    spikes = working_rows(rows, width, real)  # of a step
    by_step = working_rows(2, width, real)  # gradients of a step: of its window, and of X
    tied, winner = aligned_rows(width, real), working_rows(steps if pooled else 1, width, real)
    number = np.empty(run, np.uint32)
    for i in range(run if pooled else 0):
        number[i] = i // channels + i % channels * map_windows
    return history, by_states, x, by_x, spikes, by_step, tied, winner, number


@inner
def tie_position(target, image_windows, channels):
    """First hash input of a unit's ties at the first step, from the offset `target` of its output."""
    windows = target // channels
    return windows // image_windows * channels * image_windows + windows % image_windows


@compile_loop
def backward(begin, end, slot, y, added, norm, neuron, v_first, grads, sums, sizes, seed):
    """Gradients of units begin .. end - 1.

    Args:
        y: as in `cpu.forward`, and so are added, norm, neuron and sizes.
        v_first: states before the first step, [S, N H W C] or empty.
        grads: `layout.Gradients`; gradients of y and of v_first are written.
        sums: [slots, 2, rows of scale, run], which get for each row of scale the sums of dL/dX and of dL/dX (y - mean),
            and [slots, P, width], which get the gradients of the parameters, spread over 16 places if all
            neurons share them.
        seed: of the ties of a maximum.
    """
    steps, height, width, channels, run, pool = sizes
    pooled = pool != NO_POOL
    offsets = np.zeros(4, np.int64)
    image_windows = (height // 2) * (width // 2)
    work = work_of_backward(norm[0].dtype, steps, neuron[3].size, run, channels, pooled, image_windows)
    of_step = y.shape[1] // (height * width) * image_windows
    for unit in range(begin, end):
        target, n = _unit_bounds(unit, height, width, channels, pooled, run, offsets)
        position = tie_position(target, image_windows, channels) if pooled else 0
        of_unit = offsets, target, n, channels if pooled else n
        backward_unit(
            y, added, norm, neuron, v_first, grads, sums, slot, of_unit, steps, pool, (seed, position, of_step), work
        )


@inner(inline="always")  # or it would be compiled twice
def backward_unit(y, added, norm, neuron, v_first, grads, sums, slot, of_unit, steps, pool, ties, work):
    """Gradients of a unit: n outputs from `target` on; `offsets` are the offsets of its neurons in a step of y."""
    scale, shift, mean = norm
    fire, fire_back, parameters, start = neuron
    grad_out, grad_v_last, grad_y, grad_v_first = grads
    of_norm, of_parameters = sums
    offsets, target, n, chunk = of_unit
    seed, position, positions_of_step = ties
    history, by_states, x, by_x, spikes, by_step, tied, winner, number = work
    pooled = pool != NO_POOL
    first, second = np.int64(0), np.int64(1)  # numba compiles a function again for a literal
    pooled_max = pooled and pool != AVG
    rows = 4 if pooled else 1
    constant = y.shape[0] == 1
    direct = is_direct(y, added, scale, x, pooled, n) and not constant
    norm_rows = scale.shape[0]
    run, padded = number.size, x.shape[1]
    totals = of_norm.reshape(of_norm.size // run, run)
    of_row, of_state = padded * x.itemsize, rows * padded
    of_step = history.shape[0] // (steps + 1) * of_row
    to_learned = of_parameters.ctypes.data + slot * of_parameters.shape[1] * of_parameters.shape[2] * 8
    zero = x.dtype.type(0.0)
    begin_states(v_first, start, history, rows, offsets, chunk, n)
    for i in range(start.size * rows):
        if grad_v_last.shape[0]:
            _load(grad_v_last, i // rows, offsets[i % rows], chunk, n, by_states, i)
        else:
            _fill(by_states, i, n, zero)
    if constant:
        for i in range(rows):
            read_input(y, first, offsets[i], chunk, n, added, scale, shift, first, x, i)
            _fill(by_x, i, n, zero)
    for t in range(steps if pooled_max else steps - 1):  # the last step's spikes only choose winners
        s = t if norm_rows > 1 else 0
        for i in range(rows):
            if not (constant or direct):
                read_input(y, t, offsets[i], chunk, n, added, scale, shift, s, x, i)
            before = history.ctypes.data + t * of_step + i * of_row
            call(
                fire,
                (
                    n, address(y, t, target) if direct else x.ctypes.data + i * of_row, before, of_state,
                    before + of_step, of_state, parameters.ctypes.data, parameters.shape[1],
                    spikes.ctypes.data + i * of_row,
                ),
            )  # fmt: skip
        if pooled_max:
            if pool == MAX_RANDOM:
                _count_fired(spikes, n, tied)
                _ranks(tied, n, number, np.uint32(position + t * positions_of_step), seed, winner, t)
            else:
                _fill(winner, t, n, zero)
            _winners(spikes, n, winner, t)
    for t in range(steps - 1, -1, -1):
        s = t if norm_rows > 1 else 0
        if not direct:
            _load(grad_out, t, target, n, n, by_step, first)
            if pool == AVG:
                _scale(by_step, 0, n, x.dtype.type(0.25))
        for i in range(rows):
            if not (constant or direct):
                read_input(y, t, offsets[i], chunk, n, added, scale, shift, s, x, i)
            from_x, by_window, to_x = x.ctypes.data + i * of_row, by_step.ctypes.data, by_step.ctypes.data + of_row
            if direct:
                from_x, by_window = address(y, t, target), address(grad_out, t, target)
                to_x = address(grad_y, t, target)
            call(
                fire_back,
                (
                    n, from_x, history.ctypes.data + t * of_step + i * of_row, of_state, parameters.ctypes.data,
                    parameters.shape[1], by_window, winner.ctypes.data + (t * of_row if pooled_max else 0), i,
                    by_states.ctypes.data + i * of_row, of_state, to_x, to_learned, of_parameters.shape[2],
                ),
            )  # fmt: skip
            if constant:
                _add(by_step, 1, n, by_x, i)
            elif not direct:
                if norm_rows:
                    to_grad = 2 * norm_rows * slot + s
                    _sum_with_y(
                        y, t, offsets[i], chunk, n, mean, s, by_step, second, totals, to_grad, to_grad + norm_rows
                    )
                _store(by_step, second, n, chunk, grad_y, t, offsets[i])
    if constant:
        for i in range(rows):
            if norm_rows:
                to_grad = 2 * slot
                _sum_with_y(y, first, offsets[i], chunk, n, mean, first, by_x, i, totals, to_grad, to_grad + 1)
            _store(by_x, i, n, chunk, grad_y, first, offsets[i])
    if grad_v_first.shape[0]:
        for i in range(start.size * rows):
            _store(by_states, i, n, chunk, grad_v_first, i // rows, offsets[i % rows])
    keep(history)
    keep(winner)
    keep(spikes)
    keep(by_step)
    keep(by_states)
    keep(parameters)
    keep(of_parameters)
    keep(y)
    keep(grad_out)
    keep(grad_y)


@compile_loop
def normalise_back(begin, end, slot, y, grad, factor, offset, slope, run):
    """Replace dL/d(BN's output) in `grad` by dL/dy = factor grad + offset + slope y, `run` values at a time."""
    per_step = (y.shape[1] + run - 1) // run
    for unit in range(begin, end):
        t, first = unit // per_step, (unit % per_step) * run
        n = min(run, y.shape[1] - first)
        _normalise_back(y, grad, t, first, n, factor, offset, slope, t if factor.shape[0] > 1 else 0)


@inner
def _normalise_back(y, grad, t, start, n, factor, offset, slope, s):
    step, first, of_step = np.uintp(t), np.uintp(start), np.uintp(s)
    for j in range(n):
        i = np.uintp(j)
        scaled = _wide(grad[step, first + i]) * factor[of_step, i] + offset[of_step, i]
        grad[step, first + i] = _narrow(scaled + _wide(y[step, first + i]) * slope[of_step, i], grad)
