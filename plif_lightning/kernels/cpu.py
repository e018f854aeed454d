"""BN, the neuron over all T and the pool in a single pass, compiled for the CPU; the neuron is `machine_code.py`'s.

A feature map is processed as rows of neighbouring values with C innermost (PyTorch's channels_last): BN, neurons and
windows run over long rows in short loops over few arrays, which the compiler vectorises. A unit of work is a run of a
row (without a pool) or of two rows (with a pool): all T steps of a unit run before the next unit, so that its
potentials stay in the cache. bfloat16 is passed as its bits in uint16.

The loops take complete arrays and unsigned indices into them. A slice would cost two atomic operations on its array's
reference count, and a signed index a test for negative values: as much as the loop itself. Each loop reads and writes
so few arrays that the compiler can check at run time that they do not overlap (at most 8 comparisons).
"""

import numba
import numpy as np
from numba.extending import overload

from plif_lightning.kernels.layout import LANES, POOLS
from plif_lightning.kernels.machine_code import call, keep
from plif_lightning.runtime.compiled import compile_cached, compile_loop, inner

# mypy: disable-error-code="no-untyped-def"

NO_POOL, MAX_RANDOM, AVG = (POOLS[name] for name in ("none", "max_random", "avg"))


def _wide(value):
    """A value as float32; float64 is unchanged."""
    raise NotImplementedError


@overload(_wide, inline="always")
def _wide_overload(value):
    if value == numba.types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


def _narrow(wide, array):
    """A value in the array's type; rounded to nearest even for bfloat16."""
    raise NotImplementedError


@overload(_narrow, inline="always")
def _narrow_overload(wide, array):
    if array.dtype == numba.types.uint16:

        def bits(wide, array):
            b = np.uint32(np.float32(wide).view(np.uint32))
            return np.uint16((b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return bits
    return lambda wide, array: wide


@compile_cached
def aligned_rows(size, dtype):
    """A flat uninitialised array of `size` values, aligned so that no vector crosses a cache line."""
    at_least = np.empty(size + 64, dtype)
    first = -at_least.ctypes.data % 64 // at_least.itemsize
    return at_least[first : first + size]


@inner
def working_rows(rows, run, dtype):
    """Workspace of `rows` rows of `run` zeros."""
    flat = aligned_rows(rows * run, dtype)
    flat[:] = 0
    return flat.reshape((rows, run))


@inner
def _unit_bounds(unit, height, width, channels, pooled, run, offsets):
    """Output offset and length of a unit; writes the offsets of its four neurons in a step to `offsets`."""
    if not pooled:
        offsets[0] = unit * run
        return unit * run, min(run, height * width * channels - unit * run)
    rows, windows = height // 2, width // 2
    per_run = run // channels
    runs = (windows + per_run - 1) // per_run
    r, first = unit // runs, (unit % runs) * per_run
    for i in range(4):
        row = r // rows * height + 2 * (r % rows) + i // 2
        offsets[i] = (row * width + 2 * first + i % 2) * channels
    return (r * windows + first) * channels, min(per_run, windows - first) * channels


@inner
def _load(y, t, start, chunk, n, rows, row):
    """Copy n values of a step from `start` on into a row; chunks alternate with another neuron's of the same window."""
    s, r = np.uintp(t), np.uintp(row)
    for w in range(n // chunk):
        at, to = np.uintp(start + 2 * w * chunk), np.uintp(w * chunk)
        for j in range(chunk):
            i = np.uintp(j)
            rows[r, to + i] = _wide(y[s, at + i])


@inner
def _store(rows, row, n, chunk, y, t, start):
    """Write a row back to the feature map; inverse of `_load`."""
    s, r = np.uintp(t), np.uintp(row)
    for w in range(n // chunk):
        at, of = np.uintp(start + 2 * w * chunk), np.uintp(w * chunk)
        for j in range(chunk):
            i = np.uintp(j)
            y[s, at + i] = _narrow(rows[r, of + i], y)


@inner
def _fill(rows, row, n, value):
    r = np.uintp(row)
    for j in range(n):
        rows[r, np.uintp(j)] = value


@inner
def _normalise(y, t, start, chunk, n, scale, shift, s, x, row):
    """BN's output X of the values that `_load` would copy."""
    step, of_step, r = np.uintp(t), np.uintp(s), np.uintp(row)
    for w in range(n // chunk):
        at, to = np.uintp(start + 2 * w * chunk), np.uintp(w * chunk)
        for j in range(chunk):
            i = np.uintp(j)
            x[r, to + i] = _wide(y[step, at + i]) * scale[of_step, to + i] + shift[of_step, to + i]


@inner
def _add_loaded(y, t, start, chunk, n, rows, row):
    """Add the values that `_load` would copy; nothing if y is empty."""
    if y.shape[0]:
        step, r = np.uintp(t), np.uintp(row)
        for w in range(n // chunk):
            at, to = np.uintp(start + 2 * w * chunk), np.uintp(w * chunk)
            for j in range(chunk):
                i = np.uintp(j)
                rows[r, to + i] = rows[r, to + i] + _wide(y[step, at + i])


@inner
def _pool(spikes, n, average, out, t, start):
    """Pool the windows formed by four rows of spikes."""
    step, first = np.uintp(t), np.uintp(start)
    a, b, c, d = np.uintp(0), np.uintp(1), np.uintp(2), np.uintp(3)
    quarter = spikes.dtype.type(0.25)
    if average:
        for j in range(n):
            i = np.uintp(j)
            total = (spikes[a, i] + spikes[b, i]) + (spikes[c, i] + spikes[d, i])
            out[step, first + i] = _narrow(quarter * total, out)
    else:
        for j in range(n):
            i = np.uintp(j)
            largest = max(max(spikes[a, i], spikes[b, i]), max(spikes[c, i], spikes[d, i]))
            out[step, first + i] = _narrow(largest, out)


@inner
def padded_width(run):
    """Length of a row of the workspace for `run` values."""
    return (run + LANES - 1) // LANES * LANES


@inner
def begin_states(v_first, start, states, rows, offsets, chunk, n):
    """Write the states before the first step to `states` [S * rows, width]: v_first [S, N H W C], or `start` [S]."""
    for s in range(start.size):
        for i in range(rows):
            if v_first.shape[0]:
                _load(v_first, s, offsets[i], chunk, n, states, s * rows + i)
            else:
                _fill(states, s * rows + i, n, start[s])


@inner
def read_input(y, t, start, chunk, n, added, scale, shift, s, x, row):
    """The neurons' input X of the values that `_load` would copy: BN of y, or y itself, plus `added`."""
    if scale.shape[0]:
        _normalise(y, t, start, chunk, n, scale, shift, s, x, row)
    else:
        _load(y, t, start, chunk, n, x, row)
    _add_loaded(added, t, start, chunk, n, x, row)


@inner
def is_direct(y, added, scale, real, pooled, n):
    """True if the neurons' code may work on the feature maps themselves: nothing is computed before or behind it."""
    computes = scale.shape[0] > 0 or added.shape[0] > 0 or pooled
    return not computes and n % LANES == 0 and y.itemsize == real.itemsize


@inner
def address(maps, t, start):
    """Address of a value of a step."""
    return maps.ctypes.data + (t * maps.shape[1] + start) * maps.itemsize


@compile_loop
def forward(begin, end, slot, y, added, norm, neuron, states_io, out, sizes):
    """Spikes of units begin .. end - 1; `slot` is the thread's number, see `parallel`.

    Args:
        y: [T or 1, N H W C].
        added: added to BN's output, as y; empty for nothing.
        norm: `layout.AffineRows`.
        neuron: `layout.NeuronCode`: addresses of its code, and its parameters.
        states_io: before the first step and after the last, [S, N H W C] or empty.
        out: [T, N H' W' C].
        sizes: `layout.Sizes`.
    """
    scale, shift, _ = norm
    fire, _, parameters, start = neuron
    v_first, v_last = states_io
    steps, height, width, channels, run, pool = sizes
    pooled = pool != NO_POOL
    first = np.int64(0)  # numba compiles a function again for a literal
    rows = 4 if pooled else 1
    offsets = np.zeros(4, np.int64)
    padded = padded_width(run)
    x = working_rows(rows, padded, scale.dtype)
    states = working_rows(start.size * rows, padded, scale.dtype)
    spikes = working_rows(rows, padded, scale.dtype)
    of_row, of_state = padded * x.itemsize, rows * padded
    constant = y.shape[0] == 1
    for unit in range(begin, end):
        target, n = _unit_bounds(unit, height, width, channels, pooled, run, offsets)
        chunk = channels if pooled else n
        direct = is_direct(y, added, scale, x, pooled, n)
        begin_states(v_first, start, states, rows, offsets, chunk, n)
        if constant and not direct:
            for i in range(rows):
                read_input(y, first, offsets[i], chunk, n, added, scale, shift, first, x, i)
        for t in range(steps):
            s = t if scale.shape[0] > 1 else 0
            for i in range(rows):
                if not (constant or direct):
                    read_input(y, t, offsets[i], chunk, n, added, scale, shift, s, x, i)
                state_pointer = states.ctypes.data + i * of_row
                from_x, to_spikes = x.ctypes.data + i * of_row, spikes.ctypes.data + i * of_row
                if direct:
                    from_x, to_spikes = address(y, first if constant else t, target), address(out, t, target)
                call(
                    fire,
                    (
                        n, from_x, state_pointer, of_state, state_pointer, of_state, parameters.ctypes.data,
                        parameters.shape[1], to_spikes,
                    ),
                )  # fmt: skip
            if pooled:
                _pool(spikes, n, pool == AVG, out, t, target)
            elif not direct:
                _store(spikes, first, n, n, out, t, target)
        if v_last.shape[0]:
            for i in range(start.size * rows):
                _store(states, i, n, chunk, v_last, i // rows, offsets[i % rows])
    keep(x)
    keep(states)
    keep(spikes)
    keep(parameters)
    keep(y)
    keep(out)


@compile_loop
def statistics(begin, end, slot, y, pivot, run, sums):
    """Add the sums over step t of y - pivot and of its square, per position of a run, to sums[slot, 0 and 1, t]."""
    per_step = (y.shape[1] + run - 1) // run
    totals = sums.reshape(sums.size // run, run)
    for unit in range(begin, end):
        t, first = unit // per_step, (unit % per_step) * run
        row = 2 * sums.shape[2] * slot + t
        _moments(y, t, first, min(run, y.shape[1] - first), pivot, totals, row, row + sums.shape[2])


@inner
def _moments(y, t, start, n, pivot, totals, to_sum, to_squares):
    step, first, a, b = np.uintp(t), np.uintp(start), np.uintp(to_sum), np.uintp(to_squares)
    for j in range(n):
        i = np.uintp(j)
        value = _wide(y[step, first + i]) - pivot[step, i]
        totals[a, i] = totals[a, i] + value
        totals[b, i] = totals[b, i] + value * value
