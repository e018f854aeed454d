"""Spikes as bits, 64 inputs per word, compiled for the CPU: packed, unpacked, counted and listed."""

import numpy as np

from plif_lightning.kernels.cpu import _wide
from plif_lightning.kernels.vectors import equal_16, lowest_bit, number_of_bits, spread_16
from plif_lightning.runtime.compiled import compile_loop

# mypy: disable-error-code="no-untyped-def"

# A bit for each of 16 values.
_ALL_16 = np.uint64(0xFFFF)


@compile_loop
def pack_bits(begin, end, slot, x, value, bits, counts):
    """Mark the non-zero values of x [R, K] in bits [R, ceil(K / 64)], uint64; a negative zero in bfloat16 counts as
    non-zero.

    Adds their number to counts[slot, 0], and to counts[slot, 1] how many of them are not `value`.
    """
    inputs = x.shape[1]
    flat = x.reshape(x.size)
    total = equal = 0
    zero = x.dtype.type(0)
    for r in range(begin, end):
        for w in range(bits.shape[1]):
            first = 64 * w
            word, same = np.uint64(0), np.uint64(0)
            n = min(64, inputs - first)
            vectors = n // 16
            for j in range(vectors):
                at = r * inputs + first + 16 * j
                word |= (_ALL_16 ^ equal_16(flat, at, zero)) << np.uint64(16 * j)
                same |= equal_16(flat, at, value) << np.uint64(16 * j)
            for j in range(16 * vectors, n):
                item = flat[np.uintp(r * inputs + first + j)]
                word |= np.uint64(_wide(item) != 0) << np.uint64(j)
                same |= np.uint64(item == value) << np.uint64(j)
            bits[r, w] = word
            total += number_of_bits(word)
            equal += number_of_bits(same)
    counts[slot, 0] += total
    counts[slot, 1] += total - equal


@compile_loop
def unpack_bits(begin, end, slot, bits, unit_value, x):
    """Inverse of `pack_bits`: x[r] gets `unit_value` where a bit is set, else 0."""
    inputs = x.shape[1]
    vector_end = inputs // 16 * 16
    flat = x.reshape(x.size)
    for r in range(begin, end):
        row, start = np.uintp(r), r * inputs
        for k in range(0, vector_end, 16):
            spread_16(bits[row, np.uintp(k >> 6)] >> np.uint64(k & 63), flat, start + k, unit_value)
        for k in range(vector_end, inputs):
            i = np.uintp(k)
            x[row, i] = (
                unit_value
                if (bits[row, i >> np.uintp(6)] >> np.uint64(k & 63)) & np.uint64(1)
                else unit_value - unit_value
            )


@compile_loop
def flatten(begin, end, slot, bits, flat, pixels):
    """Reorder bits [N H W, C / 64] of feature maps begin .. end - 1 to flat [N, C H W / 64], channel by channel."""
    for n in range(begin, end):
        flat[n] = 0
        for p in range(pixels):
            for w in range(bits.shape[1]):
                word = bits[np.uintp(n * pixels + p), np.uintp(w)]
                while word != 0:
                    index = np.uint64((64 * w + lowest_bit(word)) * pixels + p)
                    flat[np.uintp(n), index >> np.uint64(6)] |= np.uint64(1) << (index & np.uint64(63))
                    word &= word - np.uint64(1)


@compile_loop
def sample(rows, x, value):
    """Number of non-zero values in `rows` rows of x [R, K], and how many of them are not `value`.

    Rows are sampled with a prime stride, to avoid periods of the shape of x.
    """
    total = equal = 0
    zero = x.dtype.type(0)
    inputs = x.shape[1]
    flat = x.reshape(x.size)
    step = 7919 if x.shape[0] % 7919 else 7907  # a prime that does not divide the number of rows
    for i in range(rows):
        start = i * step % x.shape[0] * inputs
        for j in range(0, inputs // 16 * 16, 16):
            total += number_of_bits(_ALL_16 ^ equal_16(flat, start + j, zero))
            equal += number_of_bits(equal_16(flat, start + j, value))
        for j in range(inputs // 16 * 16, inputs):
            item = flat[np.uintp(start + j)]
            total += 1 if _wide(item) != 0 else 0
            equal += 1 if item == value else 0
    return total, total - equal


@compile_loop
def count(begin, end, slot, bits, counts):
    """Add the number of set bits in rows begin .. end - 1 to counts[slot]."""
    total = 0
    for r in range(begin, end):
        for w in range(bits.shape[1]):
            total += number_of_bits(bits[r, w])
    counts[slot] += total


@compile_loop
def count_rows(begin, end, slot, bits, width, counts):
    """counts[r] gets the number of set bits in row r of all feature maps, for rows begin .. end - 1."""
    for r in range(begin, end):
        counts[r] = 0
        for p in range(r * width, (r + 1) * width):
            for w in range(bits.shape[1]):
                counts[r] += number_of_bits(bits[np.uintp(p), np.uintp(w)])


@compile_loop
def list_rows(begin, end, slot, bits, row_offsets, width, channels, indices, offsets):
    """List the non-zero inputs of each row r of all feature maps in indices[row_offsets[r]:], as x channels + c, in
    order.

    offsets [N H W + 1] gets the index at which the list of each pixel begins.
    """
    for r in range(begin, end):
        to = np.uintp(row_offsets[r])
        for x in range(width):
            pixel = np.uintp(r * width + x)
            offsets[pixel] = to
            for w in range(bits.shape[1]):
                word = bits[pixel, np.uintp(w)]
                while word != 0:
                    indices[to] = x * channels + 64 * w + lowest_bit(word)
                    to += np.uintp(1)
                    word &= word - np.uint64(1)


@compile_loop
def list_maps(bits, rows, width, channels):
    """Index lists of all rows, in one thread: indices as of `list_rows`, and offsets [rows width + 1]."""
    row_offsets, offsets = np.empty(rows, np.int64), np.empty(rows * width + 1, np.int64)
    count_rows(0, rows, 0, bits, width, row_offsets)
    total = 0
    for r in range(rows):
        row_offsets[r], total = total, total + row_offsets[r]
    indices = np.empty(total, np.int32)
    offsets[rows * width] = total
    list_rows(0, rows, 0, bits, row_offsets, width, channels, indices, offsets)
    return indices, offsets
