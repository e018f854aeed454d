"""BN, the neuron over all T and the pool in one pass, compiled for the CPU.

A map is taken as rows of neighbouring values with C innermost (PyTorch's channels_last): whatever BN, a neuron or
a window does, it does to long rows at a time, in short loops over few arrays, which is what the compiler turns into
vector instructions. One unit of work is a run of a row (without pool) or of two rows (with a pool): all T steps of
it are done before the next one, so that its potentials stay in the cache. bfloat16 comes as its bits in uint16.
"""

import numba
import numpy as np
from numba.extending import overload

from plif_lightning.compiled import compiled
from plif_lightning.kernels.ops import POOLS, SURROGATES

# mypy: disable-error-code="no-untyped-def"

NO_POOL, MAX_RANDOM, AVG = (POOLS[name] for name in ("none", "max_random", "avg"))
ATAN, SIGMOID, TRIANGLE = (SURROGATES[name] for name in ("atan", "sigmoid", "triangle"))


def _widen(row, wide):
    """Copies values into a row of float32 (float64 where they are)."""
    raise NotImplementedError


@overload(_widen, inline="always")
def _widen_overload(row, wide):
    if row.dtype == numba.types.uint16:

        def bits(row, wide):
            for i in range(wide.shape[0]):
                wide[i] = np.uint32(np.uint32(row[i]) << np.uint32(16)).view(np.float32)

        return bits

    def values(row, wide):
        for i in range(wide.shape[0]):
            wide[i] = row[i]

    return values


def _narrow(wide, row):
    """Copies values out of a row of float32, rounded to the nearest (even) bfloat16 where that is wanted."""
    raise NotImplementedError


@overload(_narrow, inline="always")
def _narrow_overload(wide, row):
    if row.dtype == numba.types.uint16:

        def bits(wide, row):
            for i in range(wide.shape[0]):
                b = np.uint32(np.float32(wide[i]).view(np.uint32))
                row[i] = np.uint16((b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return bits

    def values(wide, row):
        for i in range(wide.shape[0]):
            row[i] = wide[i]

    return values


@compiled
def _affine(y, scale, shift, x):
    for i in range(x.shape[0]):
        x[i] = y[i] * scale[i] + shift[i]


@compiled
def _charge(x, k, v, leak, v_reset):
    """Turns the potential V_{t-1} into H_t."""
    if leak:
        for i in range(x.shape[0]):
            v[i] = (x[i] - (v[i] - v_reset)) * k[i] + v[i]
    else:
        for i in range(x.shape[0]):
            v[i] = v[i] + x[i]


@compiled
def _fire(v, spikes, v_threshold, v_reset):
    """Spikes of H_t, which becomes V_t."""
    for i in range(v.shape[0]):
        h = v[i]
        fired = h >= v_threshold
        spikes[i] = 1.0 if fired else 0.0
        v[i] = v_reset if fired else h


@compiled
def _pool(spikes, average, pooled):
    """Windows of four rows of spikes."""
    first, second, third, fourth = spikes[0], spikes[1], spikes[2], spikes[3]
    if average:
        quarter = pooled.dtype.type(0.25)
        for i in range(pooled.shape[0]):
            pooled[i] = quarter * ((first[i] + second[i]) + (third[i] + fourth[i]))
    else:
        for i in range(pooled.shape[0]):
            pooled[i] = max(max(first[i], second[i]), max(third[i], fourth[i]))


@compiled
def _place(unit, height, width, channels, pooled, run, starts):
    """Where a unit lies: the starts of its four neurons in a step, its place in the output, its length."""
    if not pooled:
        starts[0] = unit * run
        return unit * run, min(run, height * width * channels - unit * run)
    rows, windows = height // 2, width // 2
    per_run = run // channels
    runs = (windows + per_run - 1) // per_run
    r, first = unit // runs, (unit % runs) * per_run
    for i in range(4):
        row = r // rows * height + 2 * (r % rows) + i // 2
        starts[i] = (row * width + 2 * first + i % 2) * channels
    return (r * windows + first) * channels, min(per_run, windows - first) * channels


@compiled
def _load(step, start, pooled, channels, wide):
    """The values of one neuron of each window in a row, or those of a run without a pool."""
    if pooled:
        for w in range(wide.shape[0] // channels):
            at = start + 2 * w * channels
            _widen(step[at : at + channels], wide[w * channels : (w + 1) * channels])
    else:
        _widen(step[start : start + wide.shape[0]], wide)


@compiled
def _store(wide, start, pooled, channels, step):
    """The other way round."""
    if pooled:
        for w in range(wide.shape[0] // channels):
            at = start + 2 * w * channels
            _narrow(wide[w * channels : (w + 1) * channels], step[at : at + channels])
    else:
        _narrow(wide, step[start : start + wide.shape[0]])


@compiled
def forward(
    begin, end, slot, y, scale, shift, k, v_first, v_last, out,
    steps, height, width, channels, run, pool, leak, v_threshold, v_reset,
):  # fmt: skip
    """Spikes of units begin .. end - 1.

    y is [T or 1, everything of a step], scale and shift are [T or 1, run], k is [run]; v_first and v_last are
    [everything of a step], or empty. `height` is that of one image; without a pool, of all images together.
    """
    pooled = pool != NO_POOL
    rows = 4 if pooled else 1
    starts = np.zeros(4, np.int64)
    x = np.empty((rows, run), scale.dtype)
    v = np.empty((rows, run), scale.dtype)
    spikes = np.empty((rows, run), scale.dtype)
    window = np.empty(run, scale.dtype)
    constant = y.shape[0] == 1
    for unit in range(begin, end):
        target, n = _place(unit, height, width, channels, pooled, run, starts)
        for i in range(rows):
            if v_first.shape[0]:
                _load(v_first, starts[i], pooled, channels, v[i, :n])
            else:
                v[i, :n] = v_reset
            if constant:
                _load(y[0], starts[i], pooled, channels, x[i, :n])
                _affine(x[i, :n], scale[0], shift[0], x[i, :n])
        for t in range(steps):
            s = t if scale.shape[0] > 1 else 0
            for i in range(rows):
                if not constant:
                    _load(y[t], starts[i], pooled, channels, x[i, :n])
                    _affine(x[i, :n], scale[s], shift[s], x[i, :n])
                _charge(x[i, :n], k, v[i], leak, v_reset)
                _fire(v[i, :n], spikes[i], v_threshold, v_reset)
            if pooled:
                _pool(spikes, pool == AVG, window[:n])
                _narrow(window[:n], out[t, target : target + n])
            else:
                _narrow(spikes[0, :n], out[t, target : target + n])
        if v_last.shape[0]:
            for i in range(rows):
                _store(v[i, :n], starts[i], pooled, channels, v_last)


@compiled
def _surrogate(h, v_threshold, kind, width, derivative):
    one = derivative.dtype.type(1.0)
    if width == 1:
        for i in range(h.shape[0]):
            derivative[i] = h[i] - v_threshold
    else:
        for i in range(h.shape[0]):
            derivative[i] = (h[i] - v_threshold) / width
    if kind == ATAN:
        pi = derivative.dtype.type(np.pi)
        for i in range(h.shape[0]):
            z = pi * derivative[i]
            derivative[i] = one / (z * z + one)
    elif kind == SIGMOID:
        for i in range(h.shape[0]):
            z = one / (one + np.exp(-derivative[i]))
            derivative[i] = z * (one - z)
    elif kind == TRIANGLE:
        for i in range(h.shape[0]):
            derivative[i] = max(one - abs(derivative[i]), derivative.dtype.type(0.0))
    else:
        for i in range(h.shape[0]):
            derivative[i] = 1.0 if abs(derivative[i]) < 0.5 else 0.0
    if width != 1:
        for i in range(h.shape[0]):
            derivative[i] = derivative[i] / width


@compiled
def _flags(h, v_threshold, fired):
    one = fired.dtype.type(1.0)
    for i in range(fired.shape[0]):
        fired[i] = one if h[i] >= v_threshold else one - one


@compiled
def _or_all(flags, tied, none):
    """Counts the flags of four rows; where there is none, sets all."""
    one = tied.dtype.type(1.0)
    zero = one - one
    first, second, third, fourth = flags[0], flags[1], flags[2], flags[3]
    for i in range(tied.shape[0]):
        count = (first[i] + second[i]) + (third[i] + fourth[i])
        none[i] = one if count == zero else zero
        tied[i] = count + (4 * one if count == zero else zero)
    for row in range(4):
        for i in range(tied.shape[0]):
            flags[row, i] = max(flags[row, i], none[i])


@compiled
def _ranks(tied, number, place, seed, rank):
    """A rank from 0 to tied - 1, each with the same chance, from a hash of the place (lowbias32, Wellons 2018)."""
    scale = rank.dtype.type(2**-24)
    for i in range(tied.shape[0]):
        z = np.uint32(np.uint32(number[i] + place) ^ seed)
        z = np.uint32((z ^ (z >> np.uint32(16))) * np.uint32(0x7FEB352D))
        z = np.uint32((z ^ (z >> np.uint32(15))) * np.uint32(0x846CA68B))
        z = np.uint32(z ^ (z >> np.uint32(16)))
        rank[i] = np.floor(rank.dtype.type(np.int32(z >> np.uint32(8))) * scale * tied[i])


@compiled
def _take(flags, rank, grad):
    """Gives the gradient to a flagged neuron whose turn it is, and counts the flagged ones down."""
    zero = grad.dtype.type(0.0)
    for i in range(grad.shape[0]):
        fired = flags[i]
        flags[i] = grad[i] * fired if rank[i] == zero else zero
        rank[i] = rank[i] - fired


@compiled
def _unpool(h, grad, pool, v_threshold, number, place, seed, tied, rank, grads):
    """Gives each window's gradient to its four neurons: a fourth to each, or all of it to the winner.

    `number + place` tells each window from all others, counted as [T, N, C, H / 2, W / 2] (modulo 2^32): it and
    the seed decide among tied neurons, the same in every layout.
    """
    if pool == AVG:
        quarter = grad.dtype.type(0.25)
        for row in range(4):
            for i in range(grad.shape[0]):
                grads[row, i] = quarter * grad[i]
        return
    for row in range(4):
        _flags(h[row], v_threshold, grads[row, : grad.shape[0]])
    _or_all(grads, tied[: grad.shape[0]], rank)
    if pool == MAX_RANDOM:
        _ranks(tied[: grad.shape[0]], number, place, seed, rank)
    else:
        rank[:] = 0
    for row in range(4):
        _take(grads[row], rank, grad)


@compiled
def _step_back(h, derivative, k, grad_spikes, grad_v, grad_x, leak, detach, v_threshold, v_reset):
    """From the gradients of S_t and V_t to those of X_t and V_{t-1}, Eqs. 8-17."""
    if not detach:
        for i in range(h.shape[0]):
            grad_spikes[i] = grad_spikes[i] + grad_v[i] * (v_reset - h[i])
    for i in range(h.shape[0]):
        kept = grad_v[i] if h[i] < v_threshold else grad_v[i] - grad_v[i]
        grad_v[i] = grad_spikes[i] * derivative[i] + kept
    if leak:
        for i in range(h.shape[0]):
            grad_x[i] = grad_v[i] * k[i]
            grad_v[i] = grad_v[i] - grad_x[i]
    else:
        for i in range(h.shape[0]):
            grad_x[i] = grad_v[i]


@compiled
def _grad_k(x, h, grad_x, grad_v, v_threshold, v_reset, total):
    """Adds dL/dk = dL/dH (X - (V - V_reset)), V being what became of the step before's H.

    dL/dH is the sum of what X and V get of it.
    """
    for i in range(x.shape[0]):
        v = v_reset if h[i] >= v_threshold else h[i]
        total[i] = total[i] + (grad_x[i] + grad_v[i]) * (x[i] - (v - v_reset))


@compiled
def _grad_k_first(x, v, grad_x, grad_v, v_reset, total):
    """The same at the first step, where V is given."""
    for i in range(x.shape[0]):
        total[i] = total[i] + (grad_x[i] + grad_v[i]) * (x[i] - (v[i] - v_reset))


@compiled
def _add(values, total):
    for i in range(total.shape[0]):
        total[i] = total[i] + values[i]


@compiled
def _sums(y, mean, grad, total, total_y):
    for i in range(y.shape[0]):
        total[i] = total[i] + grad[i]
        total_y[i] = total_y[i] + grad[i] * (y[i] - mean[i])


@compiled
def backward(
    begin, end, slot, y, scale, shift, mean, k, v_first, grad_out, grad_v_last, grad_y, grad_v_first, sums, sum_k,
    steps, height, width, channels, run, pool, leak, detach, v_threshold, v_reset, kind, surrogate_width, seed,
    map_windows, first_window,
):  # fmt: skip
    """Gradients of units begin .. end - 1.

    grad_y gets dL/dX, X being BN's output, in the shape of y. sums[slot, 0 and 1] gets, for each row of scale,
    the sums of that and of it times (y - mean); sum_k[slot] those of dL/dk; all [..., run].
    """
    pooled = pool != NO_POOL
    rows = 4 if pooled else 1
    starts = np.zeros(4, np.int64)
    real = scale.dtype
    potentials = np.empty((steps, rows, run), real)  # H_t
    first = np.empty((rows, run), real)  # V_{-1}
    v = np.empty((rows, run), real)
    grad_v = np.empty((rows, run), real)
    grads = np.empty((rows, run), real)
    held = np.empty((rows, run), real)  # y where it is the same at all steps
    held_x = np.empty((rows, run), real)
    held_grad = np.empty((rows, run), real)
    raw, x, grad_x = np.empty(run, real), np.empty(run, real), np.empty(run, real)
    window, derivative, spikes = np.empty(run, real), np.empty(run, real), np.empty(run, real)
    tied, rank = np.empty(run, real), np.empty(run, real)
    constant = y.shape[0] == 1
    places = (height // 2) * (width // 2)
    images = y.shape[1] // (height * width * channels)
    number = np.empty(run, np.uint32)
    for i in range(run):
        number[i] = i // channels + i % channels * map_windows
    for unit in range(begin, end):
        target, n = _place(unit, height, width, channels, pooled, run, starts)
        for i in range(rows):
            if v_first.shape[0]:
                _load(v_first, starts[i], pooled, channels, first[i, :n])
            else:
                first[i, :n] = v_reset
            v[i, :n] = first[i, :n]
            if grad_v_last.shape[0]:
                _load(grad_v_last, starts[i], pooled, channels, grad_v[i, :n])
            else:
                grad_v[i, :n] = 0
            if constant:
                _load(y[0], starts[i], pooled, channels, held[i, :n])
                _affine(held[i, :n], scale[0], shift[0], held_x[i, :n])
                held_grad[i, :n] = 0
        for t in range(steps):
            s = t if scale.shape[0] > 1 else 0
            for i in range(rows):
                if constant:
                    _charge(held_x[i, :n], k, v[i], leak, v_reset)
                else:
                    _load(y[t], starts[i], pooled, channels, x[:n])
                    _affine(x[:n], scale[s], shift[s], x[:n])
                    _charge(x[:n], k, v[i], leak, v_reset)
                potentials[t, i, :n] = v[i, :n]
                _fire(v[i, :n], spikes, v_threshold, v_reset)
        for t in range(steps - 1, -1, -1):
            s = t if scale.shape[0] > 1 else 0
            if pooled:
                _widen(grad_out[t, target : target + n], window[:n])
                windows = target // channels
                place = (t * images + windows // places) * channels * map_windows + first_window + windows % places
                _unpool(potentials[t], window[:n], pool, v_threshold, number, np.uint32(place), seed, tied, rank, grads)
            else:
                _widen(grad_out[t, target : target + n], grads[0, :n])
            for i in range(rows):
                h = potentials[t, i, :n]
                _surrogate(h, v_threshold, kind, surrogate_width, derivative)
                _step_back(h, derivative, k, grads[i], grad_v[i], grad_x, leak, detach, v_threshold, v_reset)
                here = held_x[i, :n] if constant else x[:n]
                if not constant:
                    _load(y[t], starts[i], pooled, channels, raw[:n])
                    _affine(raw[:n], scale[s], shift[s], here)
                if leak and t > 0:
                    before = potentials[t - 1, i, :n]
                    _grad_k(here, before, grad_x, grad_v[i], v_threshold, v_reset, sum_k[slot])
                elif leak:
                    _grad_k_first(here, first[i], grad_x, grad_v[i], v_reset, sum_k[slot])
                if constant:
                    _add(grad_x, held_grad[i, :n])
                else:
                    _sums(raw[:n], mean[s], grad_x, sums[slot, 0, s], sums[slot, 1, s])
                    _store(grad_x[:n], starts[i], pooled, channels, grad_y[t])
        for i in range(rows):
            if constant:
                _sums(held[i, :n], mean[0], held_grad[i], sums[slot, 0, 0], sums[slot, 1, 0])
                _store(held_grad[i, :n], starts[i], pooled, channels, grad_y[0])
            if grad_v_first.shape[0]:
                _store(grad_v[i, :n], starts[i], pooled, channels, grad_v_first)


@compiled
def normalise_back(begin, end, slot, y, grad, factor, offset, slope, run):
    """Turns dL/d(BN's output) in `grad` into dL/dy = factor grad + offset + slope y, rows of `run` values at a time."""
    wide, wide_y = np.empty(run, factor.dtype), np.empty(run, factor.dtype)
    per_step = (y.shape[1] + run - 1) // run
    for unit in range(begin, end):
        t, first = unit // per_step, (unit % per_step) * run
        last = min(first + run, y.shape[1])
        s = t if factor.shape[0] > 1 else 0
        length = last - first
        _widen(y[t, first:last], wide_y[:length])
        _widen(grad[t, first:last], wide[:length])
        f, o, m = factor[s], offset[s], slope[s]
        for i in range(length):
            wide[i] = wide[i] * f[i] + o[i] + wide_y[i] * m[i]
        _narrow(wide[:length], grad[t, first:last])


@compiled
def _moments(y, pivot, total, squares):
    for i in range(y.shape[0]):
        y[i] = y[i] - pivot[i]
    for i in range(y.shape[0]):
        total[i] = total[i] + y[i]
        squares[i] = squares[i] + y[i] * y[i]


@compiled
def statistics(begin, end, slot, y, pivot, run, sums):
    """Adds to sums[slot, 0 and 1, t] the sums over step t of y - pivot and of its square, per place in a run."""
    wide = np.empty(run, sums.dtype)
    per_step = (y.shape[1] + run - 1) // run
    for unit in range(begin, end):
        t, first = unit // per_step, (unit % per_step) * run
        last = min(first + run, y.shape[1])
        _widen(y[t, first:last], wide[: last - first])
        _moments(wide[: last - first], pivot[t], sums[slot, 0, t], sums[slot, 1, t])


@compiled
def gather_rows(begin, end, slot, starts, places, values, rows, out, columns):
    """out[r] = sum over r's nonzero values, of each times the row of its place; `columns` of them at a time.

    starts [R + 1] tells where the values of each row begin; rows is [K, O], out is [R, O].
    """
    for first in range(0, rows.shape[1], columns):
        last = min(first + columns, rows.shape[1])
        width = last - first
        for r in range(begin, end):
            total = out[r, first:last]
            for i in range(width):
                total[i] = 0
            j, end_of_row = starts[r], starts[r + 1]
            while j + 3 < end_of_row:
                a, b = rows[places[j], first:last], rows[places[j + 1], first:last]
                c, d = rows[places[j + 2], first:last], rows[places[j + 3], first:last]
                va, vb, vc, vd = values[j], values[j + 1], values[j + 2], values[j + 3]
                for i in range(width):
                    total[i] = total[i] + ((va * a[i] + vb * b[i]) + (vc * c[i] + vd * d[i]))
                j += 4
            while j < end_of_row:
                a, va = rows[places[j], first:last], values[j]
                for i in range(width):
                    total[i] = total[i] + va * a[i]
                j += 1
