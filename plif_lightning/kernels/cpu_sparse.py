"""Convolutions and FC layers of spikes, compiled for the CPU: where nothing spiked, nothing is done.

A product with zeros and ones is a sum of rows: of the weight's for the output, of the output's gradient for the
gradient of the weight. Spikes come as bits, 64 inputs to a word. Each loop reads lists of who spiked from them and
has `vectors` add the rows, in blocks that stay in the second-level cache. Every sum has one order, whatever the number
of threads.
"""

import numba
import numpy as np
from numba.extending import overload

from plif_lightning.kernels.cpu import _narrow, _wide
from plif_lightning.kernels.vectors import (
    add_row_16,
    lowest_bit,
    nonzero_16,
    number_of_bits,
    spread_16,
    sum_16,
    sum_64,
    transpose_16,
)
from plif_lightning.runtime.compiled import compiled

# mypy: disable-error-code="no-untyped-def"

_INTEGERS = (numba.types.int8, numba.types.int16)
# Between the rows of a block: at distances of a power of two they would push each other out of the caches.
_GAP = 16


@compiled
def pack(begin, end, slot, x, bits, counts):
    """bits[r] gets which of x[r] are not zero, counts[slot] grows by how many. x is [R, K], bits [R, K / 64]."""
    inputs = x.shape[1]
    flat = x.reshape(x.size)
    total = 0
    for r in range(begin, end):
        for w in range(bits.shape[1]):
            first = 64 * w
            word = np.uint64(0)
            n = min(64, inputs - first)
            whole = n // 16
            for j in range(whole):
                word |= nonzero_16(flat, r * inputs + first + 16 * j) << np.uint64(16 * j)
            for j in range(16 * whole, n):
                word |= np.uint64(_wide(flat[np.uintp(r * inputs + first + j)]) != 0) << np.uint64(j)
            bits[r, w] = word
            total += number_of_bits(word)
    counts[slot] += total


@compiled
def unpack(begin, end, slot, bits, one, x):
    """The other way round: x[r] gets `one` where a bit is set, else 0."""
    inputs = x.shape[1]
    whole = inputs // 16 * 16
    flat = x.reshape(x.size)
    for r in range(begin, end):
        row, start = np.uintp(r), r * inputs
        for k in range(0, whole, 16):
            spread_16(bits[row, np.uintp(k >> 6)] >> np.uint64(k & 63), flat, start + k, one)
        for k in range(whole, inputs):
            i = np.uintp(k)
            x[row, i] = one if (bits[row, i >> np.uintp(6)] >> np.uint64(k & 63)) & np.uint64(1) else one - one


@compiled
def flatten(begin, end, slot, bits, flat, pixels):
    """Maps begin .. end - 1 as rows: flat [N, C H W / 64] gets bits [N H W, C / 64], the channels one after another."""
    for n in range(begin, end):
        flat[n] = 0
        for p in range(pixels):
            for w in range(bits.shape[1]):
                word = bits[np.uintp(n * pixels + p), np.uintp(w)]
                while word != 0:
                    place = np.uint64((64 * w + lowest_bit(word)) * pixels + p)
                    flat[np.uintp(n), place >> np.uint64(6)] |= np.uint64(1) << (place & np.uint64(63))
                    word &= word - np.uint64(1)


@compiled
def sample(rows, x):
    """How many values of so many rows of x [R, K] are not zero: rows all over x, whatever the period of its shape."""
    total = 0
    inputs = x.shape[1]
    flat = x.reshape(x.size)
    step = 7919 if x.shape[0] % 7919 else 7907  # a prime that does not divide the rows
    for i in range(rows):
        start = i * step % x.shape[0] * inputs
        for j in range(0, inputs // 16 * 16, 16):
            total += number_of_bits(nonzero_16(flat, start + j))
        for j in range(inputs // 16 * 16, inputs):
            total += 1 if _wide(flat[np.uintp(start + j)]) != 0 else 0
    return total


@compiled
def count(begin, end, slot, bits, counts):
    """counts[slot] grows by the bits that are set in rows begin .. end - 1."""
    total = 0
    for r in range(begin, end):
        for w in range(bits.shape[1]):
            total += number_of_bits(bits[r, w])
    counts[slot] += total


@compiled
def _list(bits, row, first, last, places, to):
    """Puts the inputs of words first .. last - 1 that spiked into places[to:], in order; where the list ends."""
    r, end = np.uintp(row), np.uintp(to)
    for w in range(first, last):
        word = bits[r, np.uintp(w)]
        while word != 0:
            places[end] = 64 * w + lowest_bit(word)
            end += np.uintp(1)
            word &= word - np.uint64(1)
    return np.int64(end)


@compiled
def _sum(table, shift, column, columns, places, at, count, out, to, fresh):
    """`vectors.sum_64` for any number of columns."""
    done = 0
    while done + 64 <= columns:
        sum_64(table, shift, column + done, places, at, count, out, to + done, fresh)
        done += 64
    while done + 16 <= columns:
        sum_16(table, shift, column + done, places, at, count, out, to + done, fresh)
        done += 16
    for j in range(done, columns):
        total = out.dtype.type(0.0) if fresh else out[to + j]
        for i in range(at, at + count):
            total += _wide(table[places[i] + shift, column + j])
        out[to + j] = total


def _totals(table, rows):
    """So many sums of a table's rows, zeros."""
    raise NotImplementedError


@overload(_totals, inline="always")
def _totals_overload(table, rows):
    if table.dtype in _INTEGERS:
        return lambda table, rows: np.zeros(rows * table.shape[1], np.int32)
    return lambda table, rows: np.zeros(rows * table.shape[1], np.float32)


def _add_row(table, row, column, factor, out, to):
    """`vectors.add_row_16` of a table of floats: one of integers is never multiplied."""
    raise NotImplementedError


@overload(_add_row, inline="always")
def _add_row_overload(table, row, column, factor, out, to):
    if table.dtype in _INTEGERS:
        return lambda table, row, column, factor, out, to: None
    return lambda table, row, column, factor, out, to: add_row_16(table, row, column, factor, out, to)


def _scaled(total, scale, j):
    """The sum of output j, times its scale where it is one of integers."""
    raise NotImplementedError


@overload(_scaled, inline="always")
def _scaled_overload(total, scale, j):
    if total == numba.types.int32:
        return lambda total, scale, j: np.float32(total) * scale[j]
    return lambda total, scale, j: total


@compiled
def _list_row(bits, first_pixel, left, columns, width, lists, counts, to):
    """Lists of columns left .. of a row of pixels, empty ones outside of it, in places to .. of lists, each as long."""
    longest = lists.size // counts.size
    for j in range(columns):
        here = np.uintp(to + j)
        counts[here] = 0
        if 0 <= left + j < width:
            start = (to + j) * longest
            counts[here] = _list(bits, first_pixel + left + j, 0, bits.shape[1], lists, start) - start


@compiled
def _spikes_around(counts, above, here, below):
    """How many of a pixel's neighbours' inputs are not zero; for the places see `_sum_around`."""
    a, h, b, spikes = np.uintp(above), np.uintp(here), np.uintp(below), 0
    for d in range(3):
        i = np.uintp(d)
        spikes += counts[a + i] + counts[h + i] + counts[b + i]
    return spikes


@compiled
def _sum_around(lists, counts, above, here, below, values, pixel, width, table, places, sums, to):
    """sums[to:] gets what a 3x3 convolution adds up at a pixel.

    above, here and below: where the lists of the pixels left of it are, in the three rows. values: of all pixels, flat;
    none of spikes.
    """
    channels, outputs = table.shape[0] // 9, table.shape[1]
    if values.size > 0:
        for j in range(outputs):
            sums[np.uintp(to + j)] = 0
    m = np.uintp(0)
    for tap in range(9):
        at = np.uintp((above if tap < 3 else here if tap < 6 else below) + tap % 3)
        listed, row = np.uintp(at * np.uintp(channels)), tap * channels
        if values.size > 0:
            of_pixel = (pixel + (tap // 3 - 1) * width + tap % 3 - 1) * channels
            for e in range(counts[at]):
                c = lists[listed + np.uintp(e)]
                value = _wide(values[np.uintp(of_pixel + c)])
                for j in range(0, outputs, 16):
                    _add_row(table, row + c, j, value, sums, to + j)
        else:
            for e in range(counts[at]):
                places[m] = lists[listed + np.uintp(e)] + row
                m += np.uintp(1)
    if values.size == 0:
        _sum(table, 0, 0, outputs, places, 0, np.int64(m), sums, to, True)


@compiled
def conv(begin, end, slot, bits, values, table, scale, out, height, width):
    """3x3 convolution with padding 1 of rows begin .. end - 1 of all images.

    bits are [N H W, C / 64] and say what is not zero; values are all pixels', flat, or none of spikes. table is
    [9 C, O], the rows of a tap after those of the tap before; of more outputs than out [N H W, O] has, a multiple
    of 16. What a table of integers gives is multiplied by `scale` [O].
    """
    channels, outputs = table.shape[0] // 9, out.shape[1]
    columns = width + 2
    lists = np.empty(4 * columns * channels, np.int32)
    counts = np.zeros(4 * columns, np.int64)  # of three rows, and of one outside of the image
    held = np.full(3, -1)  # which row of all rows' each holds
    places = np.empty(9 * channels, np.int32)
    sums = _totals(table, 2)  # the second are zeros
    for unit in range(begin, end):
        image, y = unit // height, unit % height
        for other in range(max(y - 1, 0), min(y + 2, height)):
            row = image * height + other
            if held[other % 3] != row:
                _list_row(bits, row * width, -1, columns, width, lists, counts, other % 3 * columns)
                held[other % 3] = row
        above = (y - 1) % 3 * columns if y > 0 else 3 * columns
        here = y % 3 * columns
        below = (y + 1) % 3 * columns if y + 1 < height else 3 * columns
        for x in range(width):
            found = _spikes_around(counts, above + x, here + x, below + x) > 0
            if found:
                pixel = (image * height + y) * width + x
                _sum_around(lists, counts, above + x, here + x, below + x, values, pixel, width, table, places, sums, 0)
            first, p = np.uintp(0 if found else table.shape[1]), np.uintp(unit * width + x)
            for j in range(outputs):
                i = np.uintp(j)
                out[p, i] = _narrow(_scaled(sums[first + i], scale, i), out)


@compiled
def _padded(grad, image, first, rows, height, width, padded, to):
    """Copies rows first - 1 .. first + rows of an image to padded[to:], zeros left of each and outside of the image."""
    zero = padded.dtype.type(0)
    outputs = grad.shape[1]
    for y in range(first - 1, first + rows + 1):
        inside = 0 <= y < height
        for x in range(-1, width):
            p, q = np.uintp(to), np.uintp((image * height + y) * width + x)
            if inside and x >= 0:
                for j in range(outputs):
                    padded[p, np.uintp(j)] = grad[q, np.uintp(j)]
            else:
                for j in range(outputs):
                    padded[p, np.uintp(j)] = zero
            to += 1
    return to


@compiled
def _list_channels(bits, first_pixel, rows, width, begin, end, place, lists, counts):
    """Adds to the list of each channel begin .. end - 1 where it spiked in some rows of an image."""
    for y in range(rows):
        for x in range(width):
            pixel, here = np.uintp(first_pixel + y * width + x), place + y * (width + 1) + x
            for w in range(begin // 64, (end + 63) // 64):
                word = bits[pixel, np.uintp(w)]
                while word != 0:
                    c = 64 * w + lowest_bit(word) - begin
                    if 0 <= c < end - begin:
                        lists[np.uintp(c), np.uintp(counts[c])] = here
                        counts[c] += 1
                    word &= word - np.uint64(1)


@compiled
def conv_weight(begin, end, slot, bits, grad, out, height, width, channels, at_a_time):
    """Gradient of the weight of input channels begin .. end - 1, from that of the output.

    grad is [N H W, O], out is [9 C, O] as `conv`'s table. `at_a_time` values of grad are worked on at a time: a band of
    rows of an image, or several images.
    """
    outputs = grad.shape[1]
    images = bits.shape[0] // (height * width)
    rows = max(1, min(height, at_a_time // (outputs * (width + 1)) - 2))
    per_image = (rows + 2) * (width + 1)
    together = max(1, at_a_time // (outputs * per_image)) if rows == height else 1
    together = min(together, images)
    padded = np.empty((together * per_image + 1, outputs), grad.dtype)
    lists = np.empty((end - begin, together * rows * width), np.int32)
    counts = np.empty(end - begin, np.int64)
    flat, places = out.reshape(out.size), lists.reshape(lists.size)
    fresh = True
    for first in range(0, images, together):
        for y in range(0, height, rows):
            n = min(rows, height - y)
            counts[:] = 0
            to = 0
            for image in range(first, min(first + together, images)):
                place = to + width + 2
                to = _padded(grad, image, y, n, height, width, padded, to)
                _list_channels(bits, (image * height + y) * width, n, width, begin, end, place, lists, counts)
            padded[to] = 0
            for c in range(end - begin):
                if counts[c] or fresh:
                    for tap in range(9):
                        shift = -((tap // 3 - 1) * (width + 1) + tap % 3 - 1)
                        row = (tap * channels + begin + c) * outputs
                        _sum(padded, shift, 0, outputs, places, c * lists.shape[1], counts[c], flat, row, fresh)
            fresh = False


@compiled
def _transpose(x, row, rows, column, columns, out, to, stride):
    """out[to + j stride + i] = x[row + i, column + j] for i < rows, j < columns."""
    whole, across = rows // 16 * 16, columns // 16 * 16
    for i in range(0, whole, 16):
        for j in range(0, across, 16):
            transpose_16(x, row + i, column + j, out, to + j * stride + i, stride)
    for i in range(rows):
        for j in range(across if i < whole else 0, columns):
            out[to + j * stride + i] = x[row + i, column + j]


@compiled
def linear(begin, end, slot, bits, weight, out, words, outputs):
    """FC layer, blocks begin .. end - 1 of 64 outputs. bits are [R, K / 64], weight is [O, K], out [R, O] float32.

    A block of the weight, for `words` of inputs and so many `outputs`, is transposed and then serves all r while it is
    in the cache.
    """
    flat = out.reshape(out.size)
    places = np.empty(64 * words, np.int32)
    stride = outputs + _GAP
    block = np.empty((64 * words, stride), weight.dtype)
    of_block = block.reshape(block.size)
    last_output = min(64 * end, weight.shape[0])
    for output in range(64 * begin, last_output, outputs):
        n = min(outputs, last_output - output)
        for first in range(0, bits.shape[1], words):
            last = min(first + words, bits.shape[1])
            inputs = min(64 * last, weight.shape[1]) - 64 * first
            _transpose(weight, output, n, 64 * first, inputs, of_block, 0, stride)
            for r in range(bits.shape[0]):
                m = _list(bits, r, first, last, places, 0)
                if m or first == 0:
                    to = r * out.shape[1] + output
                    _sum(block, -64 * first, 0, n, places, 0, m, flat, to, first == 0)


@compiled
def linear_of_table(begin, end, slot, bits, table, totals, words):
    """FC layer, blocks begin .. end - 1 of 64 outputs, with the weight's columns as rows of a table [K, O].

    For few r: no other part of the table is touched than rows of inputs that spiked, and each while it is in the cache
    for all r, `words` of inputs at a time. totals are [R, O]: float32, or int32 of a table of integers.
    """
    flat = totals.reshape(totals.size)
    outputs = table.shape[1]
    column, n = 64 * begin, min(64 * end, outputs) - 64 * begin
    places = np.empty(64 * words, np.int32)
    for first in range(0, bits.shape[1], words):
        last = min(first + words, bits.shape[1])
        for r in range(bits.shape[0]):
            m = _list(bits, r, first, last, places, 0)
            if m or first == 0:
                _sum(table, 0, column, n, places, 0, m, flat, r * outputs + column, first == 0)


@compiled
def linear_weight(begin, end, slot, bits, grad, out, outputs):
    """Gradient of its weight [O, K], words begin .. end - 1 of 64 inputs, from that of its output [R, O].

    That of a word's inputs and so many `outputs` is added up while it is in the cache, and transposed.
    """
    rows = grad.shape[0]
    lists = np.empty((64, rows), np.int32)
    counts = np.empty(64, np.int64)
    places = lists.reshape(lists.size)
    stride = outputs + _GAP
    block = np.empty((64, stride), np.float32)
    of_block, flat = block.reshape(block.size), out.reshape(out.size)
    inputs = out.shape[1]
    for w in range(begin, end):
        counts[:] = 0
        for r in range(rows):
            word = bits[np.uintp(r), np.uintp(w)]
            while word != 0:
                c = lowest_bit(word)
                lists[np.uintp(c), np.uintp(counts[c])] = r
                counts[c] += 1
                word &= word - np.uint64(1)
        of_word = min(64, inputs - 64 * w)
        for output in range(0, grad.shape[1], outputs):
            n = min(outputs, grad.shape[1] - output)
            for c in range(of_word):
                _sum(grad, 0, output, n, places, c * rows, counts[c], of_block, c * stride, True)
            # Few rows of `out` at a time: they may lie at such distances, too.
            for j in range(0, n, 16):
                _transpose(block, 0, of_word, j, min(16, n - j), flat, (output + j) * inputs + 64 * w, inputs)
