"""Event-driven convolution, BN's affine map, the neuron over all T and the pool in a single pass, compiled for the CPU.

Only the neurons read a convolution's output, the largest feature map of a network, so it is never stored. A unit of
work is a short run of a row (without a pool) or of two rows (with a pool); its potentials stay in the first-level
cache for all T steps. At each step the sums of a position are computed from the non-zero inputs in its receptive field,
and its neurons consume them at once. Where all inputs are zero, as at most positions of an event frame, the sums are
zero and only the neurons are computed.
"""

import numpy as np
from numba import types
from numba.extending import overload

from plif_lightning.kernels.cpu import (
    NO_POOL,
    _narrow,
    _wide,
    working_rows,
)
from plif_lightning.kernels.cpu_backward import backward_unit, tie_position, work_of_backward
from plif_lightning.kernels.cpu_sparse import is_silent, ranges_around, sum_ranges, taps_of, totals
from plif_lightning.kernels.layout import LANES
from plif_lightning.kernels.machine_code import call, keep
from plif_lightning.kernels.vectors import add_row_16
from plif_lightning.runtime.compiled import compile_loop, inner

_TAPS_OF_3X3 = taps_of(3)

# mypy: disable-error-code="no-untyped-def"


def _round(table, sums, to):
    """Round a position's sums to the table's type, as a stored convolution output would be."""
    raise NotImplementedError


@overload(_round, inline="always")
def _round_overload(table, sums, to):
    if table.dtype != types.uint16:
        return lambda table, sums, to: None

    def round_up(table, sums, to):
        for j in range(table.shape[1]):
            i = np.uintp(to + j)
            sums[i] = _wide(_narrow(sums[i], table))

    return round_up


@inner
def _load(maps, state, pixel, states, to):
    s, p = np.uintp(state), np.uintp(pixel)
    for j in range(maps.shape[2]):
        states[s, np.uintp(to + j)] = maps[s, p, np.uintp(j)]


@inner
def _store(states, state, at, maps, pixel):
    s, p = np.uintp(state), np.uintp(pixel)
    for j in range(maps.shape[2]):
        maps[s, p, np.uintp(j)] = states[s, np.uintp(at + j)]


@compile_loop
def conv_fire_pool(begin, end, slot, maps, table, norm, neuron, states_io, out, valid, sizes, stride, taps):
    """Spikes of units begin .. end - 1, as bits. A unit is `run` positions of a row, or `run` windows of two rows.

    Args:
        maps: indices, offsets and values, as in `cpu_sparse.conv`, of feature maps [T N, height, width], whose
            convolution is [T N, H, W]; table, stride and taps likewise. The number of outputs O of the table is a
            multiple of 16.
        norm: `layout.AffineRows`, [T or 1, O], flat and float32.
        neuron: `layout.NeuronCode`, of `fire_window`; parameters [P, 1 or O].
        states_io: before the first step and after the last, [S, N H W, outputs], or empty.
        out: [T N H' W', O / 64].
        valid: the bits of outputs in the last word of a position.
        sizes: `layout.Sizes` of the feature maps.
    """
    indices, offsets, values = maps
    scale, shift, _ = norm
    fire_window, _, parameters, start = neuron
    v_first, v_last = states_io
    steps, of_height, of_width, _, run, pool = sizes
    pooled = pool != NO_POOL
    outputs = table.shape[1]
    images = (offsets.size - 1) // (steps * of_height * of_width)
    height, width = (of_height - 1) // stride + 1, (of_width - 1) // stride + 1
    halve = 2 if pooled else 1
    neurons = halve * halve
    rows, windows = height // halve, width // halve
    runs = (windows + run - 1) // run
    sums = totals(table, neurons + 1)  # the last row stays zero
    at = np.zeros(4, np.int64)
    states = working_rows(start.size, run * neurons * outputs, np.float32)
    for unit in range(begin, end):
        image, r, first = unit // (runs * rows), unit // runs % rows, unit % runs * run
        n = min(run, windows - first)
        top, left = halve * r, halve * first
        for s in range(start.size):
            for j in range(n * neurons * outputs):
                states[np.uintp(s), np.uintp(j)] = start[s]
            if v_first.shape[0]:
                for i in range(n * neurons):
                    y, x = top + i % neurons // halve, left + halve * (i // neurons) + i % halve
                    _load(v_first, s, (image * height + y) * width + x, states, i * outputs)
        for t in range(steps):
            of_step = t * outputs if scale.size > outputs else 0
            step = t * images + image
            for w in range(n):
                for i in range(neurons):
                    y, x = stride * (top + i // halve), stride * (left + halve * w + i % halve)
                    row = step * of_height + y
                    ranges = ranges_around(offsets, row, y, x, of_height, of_width, taps)
                    at[i] = neurons * outputs
                    if not is_silent(ranges):
                        at[i] = i * outputs
                        sum_ranges(indices, ranges, values, row, x, of_width, table, sums, at[i])
                        _round(table, sums, at[i])
                window = (step * rows + r) * windows + first + w
                call(
                    fire_window,
                    (
                        neurons, outputs, at.ctypes.data, sums.ctypes.data, scale.ctypes.data + 4 * of_step,
                        shift.ctypes.data + 4 * of_step, parameters.ctypes.data, parameters.shape[1],
                        states.ctypes.data + 4 * w * neurons * outputs, states.shape[1],
                        out.ctypes.data + window * out.shape[1] * 8, valid,
                    ),
                )  # fmt: skip
        if v_last.shape[0]:
            for s in range(start.size):
                for i in range(n * neurons):
                    y, x = top + i % neurons // halve, left + halve * (i // neurons) + i % halve
                    _store(states, s, i * outputs, v_last, (image * height + y) * width + x)
    keep(at)
    keep(sums)
    keep(states)
    keep(scale)
    keep(shift)
    keep(parameters)
    keep(out)


@compile_loop
def conv_fire_pool_backward(begin, end, slot, maps, table, norm, neuron, grads, sums, grad_table, sizes, seed):
    """Gradients of units begin .. end - 1, the same units as in `conv_fire_pool`; recomputes the potentials.

    Args:
        maps: as in `conv_fire_pool`, and so is table.
        norm: as in `cpu_backward.backward`, and so are neuron, grads, sums and seed; in grads, and in place of unused
            potentials, all but that of the output are empty.
        grad_table: [slots, S, 9 C, O] gets, for each row of scale, the gradient of the table before its multiplication
            by that row.
        sizes: `layout.Sizes`; channels are the outputs, the run counts windows.
    """
    indices, offsets, values = maps
    scale, start = norm[0], neuron[3]
    grad_out, unused, _, _ = grads
    steps, height, width, outputs, run, pool = sizes
    images = (offsets.size - 1) // (steps * height * width)
    pooled = pool != NO_POOL
    halve = 2 if pooled else 1
    rows, windows = height // halve, width // halve
    runs = (windows + run - 1) // run
    total = totals(table, 1)
    # An extra vector: vector loads of the last position's outputs may reach beyond them.
    of_step = halve * halve * run * outputs + LANES
    y = working_rows(steps, of_step, np.float32)
    grad_y = working_rows(steps, of_step, np.float32)
    offsets_of_unit = np.zeros(4, np.int64)
    for i in range(4):
        offsets_of_unit[i] = (i // 2 * 2 * run + i % 2) * outputs
    work = work_of_backward(np.float32, steps, start.size, run * outputs, outputs, pooled, rows * windows)
    flat_table, of_table = grad_table.reshape(grad_table.size), table.shape[0] * table.shape[1]
    norm_rows = scale.shape[0]
    for unit in range(begin, end):
        image, r, first = unit // (runs * rows), unit // runs % rows, unit % runs * run
        n = min(run, windows - first)
        top, left = halve * r, halve * first
        for t in range(steps):
            for down in range(halve):
                for across in range(halve * n):
                    row, x = (t * images + image) * height + top + down, left + across
                    ranges = ranges_around(offsets, row, top + down, x, height, width, _TAPS_OF_3X3)
                    is_active = not is_silent(ranges)
                    if is_active:
                        sum_ranges(indices, ranges, values, row, x, width, table, total, 0)
                        _round(table, total, 0)
                    _put(total, is_active, outputs, y, t, (down * halve * run + across) * outputs)
        target = ((image * rows + r) * windows + first) * outputs
        of_unit = offsets_of_unit, target, n * outputs, outputs if pooled else n * outputs
        ties = seed, tie_position(target, rows * windows, outputs), images * outputs * rows * windows
        of_grads = grad_out, unused, grad_y, unused
        backward_unit(y, unused, norm, neuron, unused, of_grads, sums, slot, of_unit, steps, pool, ties, work)
        for t in range(steps):
            to_table = (norm_rows * slot + (t if norm_rows > 1 else 0)) * of_table
            for down in range(halve):
                for across in range(halve * n):
                    row, x = (t * images + image) * height + top + down, left + across
                    ranges = ranges_around(offsets, row, top + down, x, height, width, _TAPS_OF_3X3)
                    to = (down * halve * run + across) * outputs
                    _add_to_table(indices, ranges, values, row, x, width, grad_y, t, to, flat_table, to_table, table)


@inner
def _put(total, is_active, outputs, y, t, to):
    """Write a position's sums to y, zeros if not `is_active`."""
    step, first = np.uintp(t), np.uintp(to)
    if is_active:
        for j in range(outputs):
            y[step, first + np.uintp(j)] = total[np.uintp(j)]
    else:
        for j in range(outputs):
            y[step, first + np.uintp(j)] = 0


@inner
def _add_to_table(indices, ranges, values, row, x, width, grad_y, t, start, grad_table, to, table):
    """Add a position's gradient times each input value in its receptive field to that input's row of grad_table."""
    channels, outputs = table.shape[0] // 9, table.shape[1]
    for i in range(3):
        of_row, shift = (row + i - 1) * width * channels, (3 * i + 1 - x) * channels
        for e in range(ranges[2 * i], ranges[2 * i + 1]):
            index = indices[np.uintp(e)]
            value = _wide(values[np.uintp(of_row + index)]) if values.size > 0 else np.float32(1)
            target = to + (index + shift) * outputs
            for j in range(0, outputs, 16):
                add_row_16(grad_y, t, start + j, value, grad_table, target + j)


@compile_loop
def patch_moments(begin, end, slot, indices, offsets, values, sums, products, images, height, width):
    """Sums over the 3x3 patches (zero padding) of steps begin .. end - 1: of their values [T, 9 C], and of products of
    two values [T, 9 C, 9 C]."""
    channels = sums.shape[1] // 9
    patch, counts = np.empty(9 * channels, np.int64), np.empty(9 * channels, np.float64)
    for t in range(begin, end):
        for row in range(t * images * height, (t + 1) * images * height):
            for x in range(width):
                ranges = ranges_around(offsets, row, row % height, x, height, width, _TAPS_OF_3X3)
                m = 0
                for i in range(3):
                    of_row, shift = (row + i - 1) * width * channels, (3 * i + 1 - x) * channels
                    for e in range(ranges[2 * i], ranges[2 * i + 1]):
                        index = indices[np.uintp(e)]
                        tap, c = (index + shift) // channels, (index + shift) % channels
                        patch[m] = 9 * c + tap  # as in a flattened weight
                        counts[m] = _wide(values[np.uintp(of_row + index)]) if values.size > 0 else np.float32(1)
                        m += 1
                for a in range(m):
                    sums[t, patch[a]] += counts[a]
                    for b in range(m):
                        products[t, patch[a], patch[b]] += counts[a] * counts[b]
