"""A convolution that skips what is silent, BN's affine map, the neuron over all T and the pool, compiled for the CPU.

Nothing but the neurons reads a convolution's output, the largest map of a network. Here it is never in memory: a unit
of work is a short run of a row (without a pool) or of two rows, whose potentials stay in the first-level cache for all
T steps. At each step the sums of a position are added up from what spiked around it, and its neurons take them from
there. Where nothing did, they are zeros and only the neurons remain: in a frame of events that is most of them.
"""

import numpy as np
from numba import types
from numba.extending import overload

from plif_lightning.kernels.cpu import NO_POOL, _narrow, _wide, backward_unit, place_of_ties, work_of_backward
from plif_lightning.kernels.cpu_sparse import _list_row, _spikes_around, _sum_around, _totals
from plif_lightning.kernels.layout import LANES
from plif_lightning.kernels.vectors import add_row_16, fire_16
from plif_lightning.runtime.compiled import compiled

# mypy: disable-error-code="no-untyped-def"


def _round(table, sums, to):
    """Rounds a position's sums to the table's type, as a convolution's output would be."""
    raise NotImplementedError


@overload(_round, inline="always")
def _round_overload(table, sums, to):
    if table.dtype != types.uint16:
        return lambda table, sums, to: None

    def rounded(table, sums, to):
        for j in range(table.shape[1]):
            i = np.uintp(to + j)
            sums[i] = _wide(_narrow(sums[i], table))

    return rounded


@compiled
def _load(potentials, pixel, v, to):
    p = np.uintp(pixel)
    for j in range(potentials.shape[1]):
        v[np.uintp(to + j)] = potentials[p, np.uintp(j)]


@compiled
def _store(v, at, potentials, pixel):
    p = np.uintp(pixel)
    for j in range(potentials.shape[1]):
        potentials[p, np.uintp(j)] = v[np.uintp(at + j)]


@compiled
def _list_around(bits, step, height, width, top, rows, left, columns, lists, counts, stride):
    """The lists of a row of `stride` columns after another, from an image's row `top` and column `left` on."""
    for i in range(rows):
        to = i * stride
        if 0 <= top + i < height:
            _list_row(bits, (step * height + top + i) * width, left, columns, width, lists, counts, to)
        else:
            for j in range(to, to + columns):
                counts[np.uintp(j)] = 0


@compiled
def conv_fire_pool(
    begin, end, slot, bits, values, table, scale, shift, k, v_threshold, v_first, v_last, out,
    steps, height, width, pooled, run, constants,
):  # fmt: skip
    """Spikes of units begin .. end - 1, as bits.

    bits, values and table are those of `cpu_sparse.conv`, for images [T N, H, W]; the table has a multiple of 16
    outputs O. scale and shift are [T or 1, O], k and v_threshold [O], all flat and float32; v_first and v_last are
    [N H W, outputs], or empty. out is [T N H' W', O / 64]. A unit is `run` windows of a row, or of two that are pooled;
    `constants` is `layout.Constants`.
    """
    channels, outputs = table.shape[0] // 9, table.shape[1]
    images = bits.shape[0] // (steps * height * width)
    halve = 2 if pooled else 1
    neurons, columns = halve * halve, halve * run + 2
    rows, windows = height // halve, width // halve
    runs = (windows + run - 1) // run
    lists = np.empty((halve + 2) * columns * channels, np.int32)
    counts = np.zeros((halve + 2) * columns, np.int64)
    places = np.empty(9 * channels, np.int32)
    sums = _totals(table, neurons + 1)  # the last are zeros
    at = np.zeros(4, np.int64)
    v = np.empty(run * neurons * outputs, np.float32)
    for unit in range(begin, end):
        image, r, first = unit // (runs * rows), unit // runs % rows, unit % runs * run
        n = min(run, windows - first)
        top, left = halve * r - 1, halve * first - 1
        for j in range(n * neurons * outputs):
            v[np.uintp(j)] = constants.v_reset
        if v_first.shape[0]:
            for i in range(n * neurons):
                y, x = top + 1 + i % neurons // halve, left + 1 + halve * (i // neurons) + i % halve
                _load(v_first, (image * height + y) * width + x, v, i * outputs)
        for t in range(steps):
            of_step = t * outputs if scale.size > outputs else 0
            step = t * images + image
            _list_around(bits, step, height, width, top, halve + 2, left, halve * n + 2, lists, counts, columns)
            for w in range(n):
                for i in range(neurons):
                    down, across = i // halve, halve * w + i % halve
                    above = down * columns + across
                    here, below = above + columns, above + 2 * columns
                    at[i] = neurons * outputs
                    if _spikes_around(counts, above, here, below) > 0:
                        at[i] = i * outputs
                        pixel = (step * height + top + 1 + down) * width + left + 1 + across
                        _sum_around(lists, counts, above, here, below, values, pixel, width, table, places, sums, at[i])
                        _round(table, sums, at[i])
                window = np.uintp((step * rows + r) * windows + first + w)
                word = np.uint64(0)
                for j in range(0, outputs, 16):
                    fired = np.uint64(0)
                    for i in range(neurons):
                        fired |= fire_16(
                            sums, at[i] + j, scale, shift, of_step + j, k, v_threshold, j, v,
                            (w * neurons + i) * outputs + j, constants.v_reset, constants.leak, constants.soft,
                        )  # fmt: skip
                    word |= fired << np.uint64(j & 63)
                    if j & 63 == 48 or j + 16 == outputs:
                        out[window, np.uintp(j >> 6)] = word
                        word = np.uint64(0)
        if v_last.shape[0]:
            for i in range(n * neurons):
                y, x = top + 1 + i % neurons // halve, left + 1 + halve * (i // neurons) + i % halve
                _store(v, i * outputs, v_last, (image * height + y) * width + x)


@compiled
def conv_fire_pool_backward(
    begin, end, slot, bits, values, table, scale, shift, mean, k, nothing, grad_out, sums, sums_learned, grad_table,
    steps, height, width, outputs, run, pool, constants, v_threshold, seed,
):  # fmt: skip
    """Gradients of units begin .. end - 1, which are those of `conv_fire_pool`, with the potentials made anew.

    What is not named there is as `cpu.backward` takes it, with tables of `outputs` channels and rows of so many for
    each of `run` windows. grad_table[slot] gets, for each row of scale, what the gradient of the table is before it is
    multiplied by that, [S, 9 C, O]. `nothing` stands for potentials that are not wanted.
    """
    channels = table.shape[0] // 9
    images = bits.shape[0] // (steps * height * width)
    pooled = pool != NO_POOL
    halve = 2 if pooled else 1
    columns = halve * run + 2
    rows, windows = height // halve, width // halve
    runs = (windows + run - 1) // run
    lists = np.empty((halve + 2) * columns * channels, np.int32)
    counts = np.zeros((halve + 2) * columns, np.int64)
    places = np.empty(9 * channels, np.int32)
    total = _totals(table, 1)
    # A vector more, which what is read of the last position's outputs may reach into.
    y = np.zeros((steps, halve * halve * run * outputs + LANES), np.float32)
    grad_y = np.zeros((steps, halve * halve * run * outputs + LANES), np.float32)
    starts = np.zeros(4, np.int64)
    for i in range(4):
        starts[i] = (i // 2 * 2 * run + i % 2) * outputs
    work = work_of_backward(np.float32, steps, run * outputs, outputs, pooled, rows * windows)
    flat_table, of_table = grad_table.reshape(grad_table.size), table.shape[0] * table.shape[1]
    kinds = scale.shape[0]
    for unit in range(begin, end):
        image, r, first = unit // (runs * rows), unit // runs % rows, unit % runs * run
        n = min(run, windows - first)
        top, left = halve * r - 1, halve * first - 1
        for t in range(steps):
            step = t * images + image
            _list_around(bits, step, height, width, top, halve + 2, left, halve * n + 2, lists, counts, columns)
            for down in range(halve):
                for across in range(halve * n):
                    above = down * columns + across
                    here, below = above + columns, above + 2 * columns
                    to = (down * halve * run + across) * outputs
                    found = _spikes_around(counts, above, here, below) > 0
                    if found:
                        pixel = (step * height + top + 1 + down) * width + left + 1 + across
                        _sum_around(lists, counts, above, here, below, values, pixel, width, table, places, total, 0)
                        _round(table, total, 0)
                    _put(total, found, outputs, y, t, to)
        target = ((image * rows + r) * windows + first) * outputs
        place = place_of_ties(target, rows * windows, outputs, rows * windows, 0)
        backward_unit(
            y, starts, target, n * outputs, outputs if pooled else n * outputs, slot, scale, shift, mean, k, nothing,
            grad_out, nothing, grad_y, nothing, sums, sums_learned, steps, pool, constants, v_threshold, seed, place,
            images * outputs * rows * windows, work,
        )  # fmt: skip
        for t in range(steps):
            step = t * images + image
            of_kind = (kinds * slot + (t if kinds > 1 else 0)) * of_table
            _list_around(bits, step, height, width, top, halve + 2, left, halve * n + 2, lists, counts, columns)
            for down in range(halve):
                for across in range(halve * n):
                    above = down * columns + across
                    if _spikes_around(counts, above, above + columns, above + 2 * columns) > 0:
                        pixel = (step * height + top + 1 + down) * width + left + 1 + across
                        to = (down * halve * run + across) * outputs
                        _add_to_table(
                            lists, counts, above, columns, values, pixel, width, grad_y, t, to, flat_table, of_kind,
                            channels, table.shape[1],
                        )  # fmt: skip


@compiled
def _put(total, found, outputs, y, t, to):
    """A position's sums into y, zeros where none were found."""
    step, first = np.uintp(t), np.uintp(to)
    if found:
        for j in range(outputs):
            y[step, first + np.uintp(j)] = total[np.uintp(j)]
    else:
        for j in range(outputs):
            y[step, first + np.uintp(j)] = 0


@compiled
def _add_to_table(
    lists, counts, above, columns, values, pixel, width, grad_y, t, start, table, to, channels, outputs
):  # fmt: skip
    """Adds a position's gradient, times each value that was summed up there, to that value's row of the table."""
    for tap in range(9):
        at = above + tap // 3 * columns + tap % 3
        of_pixel = (pixel + (tap // 3 - 1) * width + tap % 3 - 1) * channels
        for e in range(counts[at]):
            c = lists[at * channels + e]
            value = _wide(values[of_pixel + c]) if values.size > 0 else np.float32(1)
            row = to + (tap * channels + c) * outputs
            for j in range(0, outputs, 16):
                add_row_16(grad_y, t, start + j, value, table, row + j)


@compiled
def patch_moments(begin, end, slot, bits, values, sums, products, images, height, width):
    """Of steps begin .. end - 1: the sums of all 3x3 patches' values [T, 9 C], zeros around an image, and of their
    products [T, 9 C, 9 C]."""
    channels = sums.shape[1] // 9
    columns = width + 2
    lists = np.empty(3 * columns * channels, np.int32)
    counts = np.zeros(3 * columns, np.int64)
    places, found = np.empty(9 * channels, np.int64), np.empty(9 * channels, np.float64)
    for t in range(begin, end):
        for row in range(images * height):
            y = row % height
            step = t * images + row // height
            _list_around(bits, step, height, width, y - 1, 3, -1, columns, lists, counts, columns)
            for x in range(width):
                if _spikes_around(counts, x, x + columns, x + 2 * columns) == 0:
                    continue
                m = 0
                for tap in range(9):
                    at = x + tap // 3 * columns + tap % 3
                    of_pixel = ((step * height + y + tap // 3 - 1) * width + x + tap % 3 - 1) * channels
                    for e in range(counts[at]):
                        c = lists[at * channels + e]
                        places[m] = 9 * c + tap  # as in a flattened weight
                        found[m] = _wide(values[of_pixel + c])
                        m += 1
                for a in range(m):
                    sums[t, places[a]] += found[a]
                    for b in range(m):
                        products[t, places[a], places[b]] += found[a] * found[b]
