"""Gradients of `kernels/cpu.py`: the potentials are recomputed from the input, one unit of work at a time."""

import numpy as np

from plif_lightning.kernels.cpu import (
    ATAN,
    AVG,
    FAST_SIGMOID,
    MAX_RANDOM,
    NO_POOL,
    RECTANGLE,
    SIGMOID,
    TRIANGLE,
    _at,
    _fill,
    _is_learned,
    _load,
    _narrow,
    _normalise,
    _place,
    _reset,
    _store,
    _wide,
    aligned,
    working_rows,
)
from plif_lightning.kernels.layout import V_THRESHOLD, K
from plif_lightning.runtime.compiled import compiled

# mypy: disable-error-code="no-untyped-def"


@compiled
def _charge_again(
    y, t, start, chunk, n, scale, shift, s, k, potentials, before, row, resets, leak, v_threshold, v_reset, soft
):
    """Recompute H_t from H_{t-1} in the row `before`; from V_{-1} if not `resets`, i.e. at the first step."""
    step, of_step, last, r = np.uintp(t), np.uintp(s), np.uintp(before), np.uintp(row)
    for w in range(n // chunk):
        at, to = np.uintp(start + 2 * w * chunk), np.uintp(w * chunk)
        for j in range(chunk):
            i = np.uintp(j)
            x = _wide(y[step, at + i]) * scale[of_step, to + i] + shift[of_step, to + i]
            h = potentials[last, to + i]
            v = _reset(h, _at(v_threshold, to + i), v_reset, soft) if resets else h
            potentials[r, to + i] = (x - (v - v_reset)) * k[to + i] + v if leak else v + x


@compiled
def _charge_held(x, row_of_x, n, k, potentials, before, row, resets, leak, v_threshold, v_reset, soft):
    """`_charge_again` for a held input: X is the same at all steps."""
    held, last, r = np.uintp(row_of_x), np.uintp(before), np.uintp(row)
    for j in range(n):
        i = np.uintp(j)
        h = potentials[last, i]
        v = _reset(h, _at(v_threshold, i), v_reset, soft) if resets else h
        potentials[r, i] = (x[held, i] - (v - v_reset)) * k[i] + v if leak else v + x[held, i]


@compiled
def _count_fired(potentials, row, n, v_threshold, tied):
    """Number of tied neurons in each window: those that fired, or all four if none did."""
    one = tied.dtype.type(1.0)
    zero, four = one - one, one + one + one + one
    a, b, c, d = np.uintp(row), np.uintp(row + 1), np.uintp(row + 2), np.uintp(row + 3)
    for j in range(n):
        i = np.uintp(j)
        first = one if potentials[a, i] >= _at(v_threshold, i) else zero
        second = one if potentials[b, i] >= _at(v_threshold, i) else zero
        third = one if potentials[c, i] >= _at(v_threshold, i) else zero
        fourth = one if potentials[d, i] >= _at(v_threshold, i) else zero
        count = (first + second) + (third + fourth)
        tied[i] = count if count > zero else four


@compiled
def _ranks(tied, n, number, place, seed, rank):
    """Draw a rank uniformly from 0 to tied - 1 by hashing the position of the window (lowbias32, Wellons 2018)."""
    scale = rank.dtype.type(2**-24)
    first = np.uintp(0)
    for j in range(n):
        i = np.uintp(j)
        z = np.uint32(np.uint32(number[i] + place) ^ seed)
        z = np.uint32((z ^ (z >> np.uint32(16))) * np.uint32(0x7FEB352D))
        z = np.uint32((z ^ (z >> np.uint32(15))) * np.uint32(0x846CA68B))
        z = np.uint32(z ^ (z >> np.uint32(16)))
        rank[first, i] = np.floor(rank.dtype.type(np.int32(z >> np.uint32(8))) * scale * tied[i])


@compiled
def _winners(potentials, row, n, v_threshold, winner):
    """Replace a rank among the tied neurons of each window by the index of that neuron, 0 to 3."""
    one = winner.dtype.type(1.0)
    zero, only = one - one, np.uintp(0)
    a, b, c, d = np.uintp(row), np.uintp(row + 1), np.uintp(row + 2), np.uintp(row + 3)
    for j in range(n):
        i = np.uintp(j)
        rank = winner[only, i]
        one_of_first = one if potentials[a, i] >= _at(v_threshold, i) else zero
        of_two = one_of_first + (one if potentials[b, i] >= _at(v_threshold, i) else zero)
        of_three = of_two + (one if potentials[c, i] >= _at(v_threshold, i) else zero)
        of_all = of_three + (one if potentials[d, i] >= _at(v_threshold, i) else zero)
        passed = (one if one_of_first <= rank else zero) + (one if of_two <= rank else zero)
        passed = passed + (one if of_three <= rank else zero)
        winner[only, i] = passed if of_all > zero else rank


@compiled
def _grad_h(h, grad_spike, derivative, grad_v, v_threshold, v_reset, soft, detach):
    """dL/dH_t from dL/dS_t and dL/dV_t, Eqs. 8-17."""
    if not detach:
        grad_spike = grad_spike + grad_v * (-v_threshold if soft else v_reset - h)
    # grad_v - grad_v instead of 0 propagates NaN through a reset.
    kept = grad_v if soft or h < v_threshold else grad_v - grad_v
    return grad_spike * derivative + kept


@compiled
def _back_to_h(
    potentials, row_of_h, n, grad, share, winner, row, by_winner, grad_v, kind, width, detach, v_threshold, v_reset,
    soft,
):  # fmt: skip
    """Replace dL/dV_t by dL/dH_t. S_t gets a share of the window's gradient, or all of it if it is the winner."""
    one = grad.dtype.type(1.0)
    zero, half, pi, inverse = one - one, grad.dtype.type(0.5), grad.dtype.type(np.pi), one / width
    own = grad.dtype.type(row)
    only, r, of_h = np.uintp(0), np.uintp(row), np.uintp(row_of_h)
    # One loop per surrogate: in a common loop the exponential prevents vectorisation and doubles the runtime.
    if kind == ATAN:
        for j in range(n):
            i = np.uintp(j)
            h = potentials[of_h, i]
            z = pi * ((h - _at(v_threshold, i)) * inverse)
            derivative = one / (z * z + one) * inverse
            g = share * grad[only, i] if not by_winner or winner[only, i] == own else zero
            grad_v[r, i] = _grad_h(h, g, derivative, grad_v[r, i], _at(v_threshold, i), v_reset, soft, detach)
    elif kind == SIGMOID:
        for j in range(n):
            i = np.uintp(j)
            h = potentials[of_h, i]
            # s(z) s(-z), as s (1 - s) cancels if the neuron is saturated
            z = np.exp(-abs((h - _at(v_threshold, i)) / width))
            derivative = z / ((one + z) * (one + z)) / width
            g = share * grad[only, i] if not by_winner or winner[only, i] == own else zero
            grad_v[r, i] = _grad_h(h, g, derivative, grad_v[r, i], _at(v_threshold, i), v_reset, soft, detach)
    elif kind == TRIANGLE:
        for j in range(n):
            i = np.uintp(j)
            h = potentials[of_h, i]
            derivative = max(one - abs((h - _at(v_threshold, i)) / width), zero) / width
            g = share * grad[only, i] if not by_winner or winner[only, i] == own else zero
            grad_v[r, i] = _grad_h(h, g, derivative, grad_v[r, i], _at(v_threshold, i), v_reset, soft, detach)
    elif kind == RECTANGLE:
        for j in range(n):
            i = np.uintp(j)
            h = potentials[of_h, i]
            derivative = (one if abs((h - _at(v_threshold, i)) / width) < half else zero) / width
            g = share * grad[only, i] if not by_winner or winner[only, i] == own else zero
            grad_v[r, i] = _grad_h(h, g, derivative, grad_v[r, i], _at(v_threshold, i), v_reset, soft, detach)
    elif kind == FAST_SIGMOID:
        for j in range(n):
            i = np.uintp(j)
            h = potentials[of_h, i]
            z = one + abs((h - _at(v_threshold, i)) / width)
            derivative = half / (z * z) / width
            g = share * grad[only, i] if not by_winner or winner[only, i] == own else zero
            grad_v[r, i] = _grad_h(h, g, derivative, grad_v[r, i], _at(v_threshold, i), v_reset, soft, detach)
    else:
        raise ValueError("unknown surrogate")


@compiled
def _sum_with_y(y, t, start, chunk, n, mean, s, grad_h, row, totals, to_grad, to_product):
    """Add dL/dH, and its product with y - mean, to two rows of totals."""
    step, of_step, r = np.uintp(t), np.uintp(s), np.uintp(row)
    a, b = np.uintp(to_grad), np.uintp(to_product)
    for w in range(n // chunk):
        at, to = np.uintp(start + 2 * w * chunk), np.uintp(w * chunk)
        for j in range(chunk):
            i = np.uintp(j)
            g = grad_h[r, to + i]
            totals[a, to + i] = totals[a, to + i] + g
            totals[b, to + i] = totals[b, to + i] + g * (_wide(y[step, at + i]) - mean[of_step, to + i])


@compiled
def _sum_below_threshold(potentials, row_of_h, n, grad_v, row, v_threshold, totals, to_sum):
    """Add dL/dV_t where H_t < V_th: minus dL/dH_t this is dL/dV_th, for either reset."""
    of_h, r, a = np.uintp(row_of_h), np.uintp(row), np.uintp(to_sum)
    zero = totals.dtype.type(0.0)
    for j in range(n):
        i = np.uintp(j)
        totals[a, i] = totals[a, i] + (grad_v[r, i] if potentials[of_h, i] < _at(v_threshold, i) else zero)


@compiled
def _subtract(rows, row, n, totals, from_sum):
    r, a = np.uintp(row), np.uintp(from_sum)
    for j in range(n):
        i = np.uintp(j)
        totals[a, i] = totals[a, i] - rows[r, i]


@compiled
def _sum_with_v(potentials, before, n, grad_h, row, resets, v_threshold, v_reset, soft, totals, to_product):
    """Add dL/dH_t (V_{t-1} - V_reset) to totals; `before` and `resets` as in `_charge_again`."""
    last, r, a = np.uintp(before), np.uintp(row), np.uintp(to_product)
    for j in range(n):
        i = np.uintp(j)
        h = potentials[last, i]
        v = _reset(h, _at(v_threshold, i), v_reset, soft) if resets else h
        totals[a, i] = totals[a, i] + grad_h[r, i] * (v - v_reset)


@compiled
def _back_to_x(grad_v, row, n, chunk, k, leak, grad_y, t, start):
    """Compute dL/dX_t, and replace dL/dH_t by dL/dV_{t-1}."""
    r, step = np.uintp(row), np.uintp(t)
    for w in range(n // chunk):
        at, of = np.uintp(start + 2 * w * chunk), np.uintp(w * chunk)
        for j in range(chunk):
            i = np.uintp(j)
            g = grad_v[r, of + i] * k[of + i]
            grad_y[step, at + i] = _narrow(g, grad_y)
            grad_v[r, of + i] = grad_v[r, of + i] - g if leak else grad_v[r, of + i]


@compiled
def _back_to_held(grad_v, row, n, k, leak, total):
    """`_back_to_x` for a held input: sum up dL/dH_t over the steps."""
    r = np.uintp(row)
    for j in range(n):
        i = np.uintp(j)
        g = grad_v[r, i]
        total[r, i] = total[r, i] + g
        grad_v[r, i] = g - g * k[i] if leak else g


@compiled
def work_of_backward(real, steps, run, channels, pooled, map_windows):
    """Workspace of `backward_unit`; `number` identifies window and channel when ties are drawn."""
    rows = 4 if pooled else 1
    potentials = working_rows((steps + 1) * rows, run, real)  # V_{-1}, H_0, H_1, ...
    grad_v = working_rows(rows, run, real)
    held = working_rows(rows, run, real)  # X of a held input; the next row is its sum of dL/dH_t
    held_grad = working_rows(rows, run, real)
    window = working_rows(1, run, real)
    tied, winner = aligned(run, real), working_rows(1, run, real)
    number = np.empty(run, np.uint32)
    for i in range(run):
        number[i] = i // channels + i % channels * map_windows
    return potentials, grad_v, held, held_grad, window, tied, winner, number


@compiled
def place_of_ties(target, image_windows, channels, map_windows, first_window):
    """First hash input of a unit's ties at the first step, from the offset `target` of its output."""
    windows = target // channels
    return windows // image_windows * channels * map_windows + first_window + windows % image_windows


@compiled
def backward(
    begin, end, slot, y, scale, shift, mean, k, v_first, grad_out, grad_v_last, grad_y, grad_v_first, sums,
    sums_learned, steps, height, width, channels, run, pool, constants, v_threshold, seed, map_windows, first_window,
):  # fmt: skip
    """Gradients of units begin .. end - 1.

    grad_y gets dL/dX, with X = BN's output, in the shape of y. sums[slot, 0] and sums[slot, 1] get, for each row of
    scale, the sums of dL/dH = 1/k dL/dX and of dL/dH (y - mean); sums_learned[slot, K] gets that of
    dL/dH_t (V_{t-1} - V_reset), sums_learned[slot, V_THRESHOLD] gets dL/dV_th if it is learned; all [..., run]. The
    caller derives the gradients of BN and k from them.
    """
    pooled = pool != NO_POOL
    starts = np.zeros(4, np.int64)
    work = work_of_backward(scale.dtype, steps, run, channels, pooled, map_windows)
    image_windows = (height // 2) * (width // 2)
    of_step = y.shape[1] // (height * width) * map_windows
    for unit in range(begin, end):
        target, n = _place(unit, height, width, channels, pooled, run, starts)
        place = place_of_ties(target, image_windows, channels, map_windows, first_window) if pooled else 0
        backward_unit(
            y, starts, target, n, channels if pooled else n, slot, scale, shift, mean, k, v_first, grad_out,
            grad_v_last, grad_y, grad_v_first, sums, sums_learned, steps, pool, constants, v_threshold, seed, place,
            of_step, work,
        )  # fmt: skip


@compiled
def backward_unit(
    y, starts, target, n, chunk, slot, scale, shift, mean, k, v_first, grad_out, grad_v_last, grad_y, grad_v_first,
    sums, sums_learned, steps, pool, constants, v_threshold, seed, place, places_of_step, work,
):  # fmt: skip
    """Gradients of one unit: n outputs from `target` on; `starts` are the offsets of its neurons in a step of y."""
    leak, v_reset, soft, detach = constants.leak, constants.v_reset, constants.soft, constants.detach_reset
    kind, surrogate_width = constants.surrogate, constants.surrogate_width
    pooled = pool != NO_POOL
    pooled_max = pooled and pool != AVG
    rows = 4 if pooled else 1
    potentials, grad_v, held, held_grad, window, tied, winner, number = work
    constant = y.shape[0] == 1
    kinds = scale.shape[0]
    run = number.size
    totals = sums.reshape(sums.size // run, run)
    learned = sums_learned.reshape(sums_learned.size // run, run)
    to_learned = sums_learned.shape[1] * slot
    share, zero = scale.dtype.type(0.25 if pool == AVG else 1.0), scale.dtype.type(0.0)
    for i in range(rows):
        if v_first.shape[0]:
            _load(v_first, 0, starts[i], chunk, n, potentials, i)
        else:
            _fill(potentials, i, n, v_reset)
        if grad_v_last.shape[0]:
            _load(grad_v_last, 0, starts[i], chunk, n, grad_v, i)
        else:
            _fill(grad_v, i, n, zero)
        if constant:
            _normalise(y, 0, starts[i], chunk, n, scale, shift, 0, held, i)
            _fill(held_grad, i, n, zero)
    for t in range(steps):
        s = t if kinds > 1 else 0
        for i in range(rows):
            before, row = t * rows + i, (t + 1) * rows + i
            if constant:
                _charge_held(held, i, n, k, potentials, before, row, t > 0, leak, v_threshold, v_reset, soft)
            else:
                _charge_again(
                    y, t, starts[i], chunk, n, scale, shift, s, k, potentials, before, row, t > 0, leak,
                    v_threshold, v_reset, soft,
                )  # fmt: skip
    for t in range(steps - 1, -1, -1):
        s = t if kinds > 1 else 0
        _load(grad_out, t, target, n, n, window, 0)
        if pooled_max:
            if pool == MAX_RANDOM:
                _count_fired(potentials, (t + 1) * rows, n, v_threshold, tied)
                _ranks(tied, n, number, np.uint32(place + t * places_of_step), seed, winner)
            else:
                _fill(winner, 0, n, zero)
            _winners(potentials, (t + 1) * rows, n, v_threshold, winner)
        for i in range(rows):
            before, row = t * rows + i, (t + 1) * rows + i
            if _is_learned(v_threshold):
                of_threshold = to_learned + V_THRESHOLD
                _sum_below_threshold(potentials, row, n, grad_v, i, v_threshold, learned, of_threshold)
            _back_to_h(
                potentials, row, n, window, share, winner, i, pooled_max, grad_v, kind, surrogate_width, detach,
                v_threshold, v_reset, soft,
            )  # fmt: skip
            if _is_learned(v_threshold):
                _subtract(grad_v, i, n, learned, of_threshold)
            if leak:
                _sum_with_v(
                    potentials, before, n, grad_v, i, t > 0, v_threshold, v_reset, soft, learned, to_learned + K
                )
            if constant:
                _back_to_held(grad_v, i, n, k, leak, held_grad)
            else:
                to_grad = 2 * kinds * slot + s
                _sum_with_y(y, t, starts[i], chunk, n, mean, s, grad_v, i, totals, to_grad, to_grad + kinds)
                _back_to_x(grad_v, i, n, chunk, k, leak, grad_y, t, starts[i])
    for i in range(rows):
        if constant:
            to_grad = 2 * slot
            _sum_with_y(y, 0, starts[i], chunk, n, mean, 0, held_grad, i, totals, to_grad, to_grad + 1)
            _back_to_x(held_grad, i, n, chunk, k, leak, grad_y, 0, starts[i])
        if grad_v_first.shape[0]:
            _store(grad_v, i, n, chunk, grad_v_first, 0, starts[i])


@compiled
def normalise_back(begin, end, slot, y, grad, factor, offset, slope, run):
    """Replace dL/d(BN's output) in `grad` by dL/dy = factor grad + offset + slope y, `run` values at a time."""
    per_step = (y.shape[1] + run - 1) // run
    for unit in range(begin, end):
        t, first = unit // per_step, (unit % per_step) * run
        n = min(run, y.shape[1] - first)
        _normalise_back(y, grad, t, first, n, factor, offset, slope, t if factor.shape[0] > 1 else 0)


@compiled
def _normalise_back(y, grad, t, start, n, factor, offset, slope, s):
    step, first, of_step = np.uintp(t), np.uintp(start), np.uintp(s)
    for j in range(n):
        i = np.uintp(j)
        scaled = _wide(grad[step, first + i]) * factor[of_step, i] + offset[of_step, i]
        grad[step, first + i] = _narrow(scaled + _wide(y[step, first + i]) * slope[of_step, i], grad)
