"""Delays between two time-steps, compiled for the CPU: silent inputs are skipped.

A value v of a channel with whole delay k adds v on_time to the output k steps later, and v late to that after it.
"""

import numpy as np

from plif_lightning.kernels.vectors import equal_16, lowest_bit
from plif_lightning.runtime.compiled import compile_loop, inner

# mypy: disable-error-code="no-untyped-def"

# A bit for each of 16 values.
_ALL_16 = np.uint64(0xFFFF)


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
def backward(begin, end, slot, grad, x, whole, on_time, late, grad_x, grad_shares):
    """Gradients of rows begin .. end - 1 from `grad` [T, P, C]; `grad_x` is [T, P, C], or empty if nobody needs it.

    Adds those of `on_time` and `late` to grad_shares[slot], [2, C] in float64.
    """
    steps, rows, channels = x.shape
    flat, found = x.reshape(x.size), np.empty(channels, np.int64)
    sums = grad_shares[slot]
    for row in range(begin, end):
        for t in range(steps):
            for c in range(channels if grad_x.size else 0):
                to = t + whole[c]
                total = grad[to, row, c] * on_time[c] if to < steps else grad.dtype.type(0)
                grad_x[t, row, c] = total + grad[to + 1, row, c] * late[c] if to + 1 < steps else total
            for i in range(_list_values(flat, (t * rows + row) * channels, channels, found)):
                c = found[i]
                value, to = np.float64(x[t, row, c]), t + whole[c]
                if to < steps:
                    sums[0, c] += value * grad[to, row, c]
                if to + 1 < steps:
                    sums[1, c] += value * grad[to + 1, row, c]
