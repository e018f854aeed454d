"""Delays between two time-steps, compiled for the CPU: silent inputs are skipped.

A value v of a channel with whole delay k adds v on_time to the output k steps later, and v late to that after it.
"""

import numpy as np

from plif_lightning.kernels.cpu_sparse import transpose
from plif_lightning.kernels.vectors import equal_16, lowest_bit
from plif_lightning.runtime.compiled import compile_loop, inner

# mypy: disable-error-code="no-untyped-def"

# A bit for each of 16 values.
_ALL_16 = np.uint64(0xFFFF)
# Channels that are shifted together, so that some lines of a cache are read at once.
_AT_A_TIME = 128


@inner
def _list_values(flat, first, number, found):
    """Write the places of the non-zero ones of `number` values from `first` on into `found`; returns how many."""
    count, zero = 0, flat.dtype.type(0)
    for at in range(0, number - 15, 16):
        word = _ALL_16 ^ equal_16(flat, first + at, zero)
        while word:
            found[count] = at + np.int64(lowest_bit(word))
            count += 1
            word &= word - np.uint64(1)
    for at in range(number // 16 * 16, number):
        found[count] = at
        count += flat[first + at] != 0
    return count


@compile_loop
def forward(begin, end, slot, x, whole, on_time, late, out):
    """The output [T, P, C] of rows begin .. end - 1 of x [T, P, C].

    Args:
        whole: k of each channel [C].
        on_time, late: shares of a value [C].
    """
    steps, rows, channels = x.shape
    flat, found = x.reshape(x.size), np.empty(channels, np.int64)
    for row in range(begin, end):
        for t in range(steps):
            out[t, row] = 0
        for t in range(steps):
            for i in range(_list_values(flat, (t * rows + row) * channels, channels, found)):
                c = found[i]
                value, to = x[t, row, c], t + whole[c]
                if to < steps:
                    out[to, row, c] += value * on_time[c]
                if to + 1 < steps:
                    out[to + 1, row, c] += value * late[c]


@compile_loop
def backward_input(begin, end, slot, grad, whole, on_time, late, grad_x):
    """The gradient of rows begin .. end - 1 of x, from that of the output; both [T, P, C]."""
    steps, rows, channels = grad.shape
    by_step, flat = grad.reshape((steps, rows * channels)), grad_x.reshape(grad_x.size)
    stride = steps + 1
    for c in range(channels):
        stride = max(stride, steps + 1 + whole[c])
    # The steps of each of some channels, one behind the other, so that a shift is a place in memory; then zeros.
    there, here = np.zeros(_AT_A_TIME * stride, grad.dtype), np.empty((_AT_A_TIME, steps), grad.dtype)
    for row in range(begin, end):
        for first in range(0, channels, _AT_A_TIME):
            number = min(_AT_A_TIME, channels - first)
            transpose(by_step, 0, steps, row * channels + first, number, there, 0, stride)
            for i in range(number):
                at, now, after = i * stride + whole[first + i], on_time[first + i], late[first + i]
                for t in range(steps):
                    here[np.uintp(i), np.uintp(t)] = there[np.uintp(at + t)] * now + there[np.uintp(at + t + 1)] * after
            transpose(here, 0, number, 0, steps, flat, row * channels + first, rows * channels)


@compile_loop
def backward_shares(begin, end, slot, grad, x, whole, grad_shares):
    """Add the gradients of `on_time` and `late` of rows begin .. end - 1 to grad_shares[slot], [2, C] in float64."""
    steps, rows, channels = x.shape
    flat, found = x.reshape(x.size), np.empty(channels, np.int64)
    sums = grad_shares[slot]
    for row in range(begin, end):
        for t in range(steps):
            for i in range(_list_values(flat, (t * rows + row) * channels, channels, found)):
                c = found[i]
                value, to = np.float64(x[t, row, c]), t + whole[c]
                if to < steps:
                    sums[0, c] += value * grad[to, row, c]
                if to + 1 < steps:
                    sums[1, c] += value * grad[to + 1, row, c]


@compile_loop
def delay_bits(begin, end, slot, bits, whole, out):
    """Spikes of rows begin .. end - 1 as bits [T, P, C / 64], k steps later in `out`, which is zero before."""
    steps, _, words = bits.shape
    for row in range(begin, end):
        for t in range(steps):
            for w in range(words):
                word = bits[t, row, w]
                while word:
                    bit = lowest_bit(word)
                    to = t + whole[64 * w + bit]
                    if to < steps:
                        out[to, row, w] |= np.uint64(1) << np.uint64(bit)
                    word &= word - np.uint64(1)
