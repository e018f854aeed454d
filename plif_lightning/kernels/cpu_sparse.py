"""Event-driven convolutions and FC layers of spikes, compiled for the CPU: silent inputs are skipped.

A product with zeros and ones is a sum of rows: rows of the weight for the output, rows of the output's gradient for
the gradient of the weight. Spikes come as bits, see `cpu_bits`. Each loop turns them into index lists and adds the
listed rows with `vectors`, in blocks that stay in the second-level cache. The order of each sum does not depend on the
number of threads.
"""

from typing import Any

import numba
import numpy as np
from numba.cpython.unsafe.tuple import tuple_setitem as _tuple_setitem
from numba.extending import overload

from plif_lightning.kernels.cpu import _narrow, _wide, aligned_rows
from plif_lightning.kernels.vectors import (
    add_row_16,
    lowest_bit,
    sum_16,
    sum_64,
    transpose_16,
)
from plif_lightning.runtime.compiled import compile_loop, inner

# mypy: disable-error-code="no-untyped-def"

tuple_setitem: Any = _tuple_setitem  # typed as a function of the compiler's

_INTEGERS = (numba.types.int8, numba.types.int16)
# Padding between the rows of a block: rows at distances of a power of two would evict each other from the caches.
_GAP = 16


@inner
def _list(bits, row, first, last, indices, to):
    """List the spikes of words first .. last - 1 in indices[to:], in order; returns the end of the list."""
    r, end = np.uintp(row), np.uintp(to)
    for w in range(first, last):
        word = bits[r, np.uintp(w)]
        while word != 0:
            indices[end] = 64 * w + lowest_bit(word)
            end += np.uintp(1)
            word &= word - np.uint64(1)
    return np.int64(end)


@inner
def _sum(table, shift, range_stride, column, columns, indices, ranges, out, to, overwrite):
    """`vectors.sum_64` for any number of columns."""
    done = 0
    while done + 64 <= columns:
        sum_64(table, shift, range_stride, column + done, indices, ranges, out, to + done, overwrite)
        done += 64
    while done + 16 <= columns:
        sum_16(table, shift, range_stride, column + done, indices, ranges, out, to + done, overwrite)
        done += 16
    for j in range(done, columns):
        total = out.dtype.type(0.0) if overwrite else out[to + j]
        for n in range(len(ranges) // 2):
            for i in range(ranges[2 * n], ranges[2 * n + 1]):
                total += _wide(table[indices[i] + shift + n * range_stride, column + j])
        out[to + j] = total


def totals(table, rows):
    """A flat array of zeros for `rows` sums of a table's rows, int32 for integers, else float32."""
    raise NotImplementedError


@overload(totals, inline="always")
def _totals_overload(table, rows):
    dtype = np.int32 if table.dtype in _INTEGERS else np.float32

    def zeros(table, rows):
        sums = aligned_rows(rows * table.shape[1], dtype)
        sums[:] = 0
        return sums

    return zeros


def _add_row(table, row, column, factor, out, to):
    """`vectors.add_row_16` for tables of floats; a no-op for tables of integers, which take spikes only."""
    raise NotImplementedError


@overload(_add_row, inline="always")
def _add_row_overload(table, row, column, factor, out, to):
    if table.dtype in _INTEGERS:
        return lambda table, row, column, factor, out, to: None
    return lambda table, row, column, factor, out, to: add_row_16(table, row, column, factor, out, to)


def _scale(total, scale, j):
    """The sum of output j, times its scale if it is a sum of integers."""
    raise NotImplementedError


@overload(_scale, inline="always")
def _scaled_overload(total, scale, j):
    if total == numba.types.int32:
        return lambda total, scale, j: np.float32(total) * scale[j]
    return lambda total, scale, j: total


def ranges_around(offsets, row, y, x, height, width, taps):
    """Ranges (begin, end) in the lists of `list_rows` of the pixels that a window of K x K around a pixel covers.

    A range for each of the K rows of the window; ranges outside of a map are empty. `row` is the index of row y among
    the rows of all feature maps. `taps` is `taps_of` K.
    """
    raise NotImplementedError


@overload(ranges_around)
def _ranges_around_overload(offsets, row, y, x, height, width, taps):
    if taps.count == 2:

        def single_range(offsets, row, y, x, height, width, taps):
            pixel = np.uintp(row * width + x)
            return offsets[pixel], offsets[pixel + np.uintp(1)]

        return single_range
    if taps.count == 6:

        def three(offsets, row, y, x, height, width, taps):
            left, right = row * width + max(x - 1, 0), row * width + min(x + 2, width)
            first, last, begin, end = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
            if y > 0:
                first, last = offsets[np.uintp(left - width)], offsets[np.uintp(right - width)]
            if y + 1 < height:
                begin, end = offsets[np.uintp(left + width)], offsets[np.uintp(right + width)]
            return first, last, offsets[np.uintp(left)], offsets[np.uintp(right)], begin, end

        return three

    half = taps.count // 4

    def any_number(offsets, row, y, x, height, width, taps):
        left, right = row * width + max(x - half, 0), row * width + min(x + half + 1, width)
        for i in range(-half, half + 1):
            if 0 <= y + i < height:
                taps = tuple_setitem(taps, 2 * (i + half), offsets[np.uintp(left + i * width)])
                taps = tuple_setitem(taps, 2 * (i + half) + 1, offsets[np.uintp(right + i * width)])
        return taps

    return any_number


def taps_of(kernel):
    """A tuple of 2 K zeros, whose length tells the loops the size K of a kernel when they are compiled."""
    return (0,) * (2 * kernel)


@inner
def is_silent(ranges):
    """True if all ranges from `ranges_around` are empty."""
    silent = True
    for i in range(len(ranges) // 2):
        silent = silent and ranges[2 * i] == ranges[2 * i + 1]
    return silent


@inner
def sum_ranges(indices, ranges, values, row, x, width, table, sums, to):
    """Write the K x K convolution at pixel x of a row of all feature maps to sums[to:].

    ranges are from `ranges_around`; values has all pixels, flat, or empty for spikes; table as in `conv`.
    """
    taps = len(ranges) // 2
    half = taps // 2
    channels, outputs = table.shape[0] // (taps * taps), table.shape[1]
    # A place belongs to pixel x - K // 2 + d of row y - K // 2 + i, with d, i = 0 .. K - 1; its table row is that of
    # tap K i + d.
    shift, range_stride = (half - x) * channels, taps * channels
    if values.size == 0:
        _sum(table, shift, range_stride, 0, outputs, indices, ranges, sums, to, True)
        return
    for j in range(outputs):
        sums[np.uintp(to + j)] = 0
    for i in range(taps):
        of_row = (row + i - half) * width * channels
        for e in range(ranges[2 * i], ranges[2 * i + 1]):
            index = indices[np.uintp(e)]
            value = _wide(values[np.uintp(of_row + index)])
            for j in range(0, outputs, 16):
                _add_row(table, index + shift + i * range_stride, j, value, sums, to + j)


@compile_loop
def conv(begin, end, slot, indices, offsets, values, table, scale, out, height, width, stride, taps):
    """K x K convolution with padding K // 2 of feature maps [H, W]: rows begin .. end - 1 of all its outputs.

    indices and offsets are from `list_rows`; values has all pixels, flat, or empty for spikes. table is
    [K K C, O], ordered by tap and then channel, with O padded to a multiple of 16; out is [N H' W', outputs]. Sums of a
    table of integers are multiplied by `scale` [O]. taps is `taps_of` K.
    """
    outputs = out.shape[1]
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    sums = totals(table, 2)  # the second row stays zero
    for r in range(begin, end):
        y = r % rows * stride
        row = r // rows * height + y
        for c in range(columns):
            x = c * stride
            ranges = ranges_around(offsets, row, y, x, height, width, taps)
            first = np.uintp(table.shape[1])
            if not is_silent(ranges):
                first = np.uintp(0)
                sum_ranges(indices, ranges, values, row, x, width, table, sums, 0)
            p = np.uintp(r * columns + c)
            for j in range(outputs):
                i = np.uintp(j)
                out[p, i] = _narrow(_scale(sums[first + i], scale, i), out)


@inner
def _row_range(grad, image, first, rows, before, after, gap, height, width, padded, to):
    """Copy rows first - before .. first + rows + after - 1 of an image to padded[to:], `gap` zeros left of each and
    zeros outside of the image."""
    zero = padded.dtype.type(0)
    outputs = grad.shape[1]
    for y in range(first - before, first + rows + after):
        in_map = 0 <= y < height
        for x in range(-gap, width):
            p, q = np.uintp(to), np.uintp((image * height + y) * width + x)
            if in_map and x >= 0:
                for j in range(outputs):
                    padded[p, np.uintp(j)] = grad[q, np.uintp(j)]
            else:
                for j in range(outputs):
                    padded[p, np.uintp(j)] = zero
            to += 1
    return to


@inner
def _list_channels(bits, image, first, last, height, width, begin, end, position, across, stride, lists, counts):
    """Append spikes in rows first .. last - 1 of an image to the lists of each channel begin .. end - 1.

    There is a list for each remainder of a spike's row and column by the stride; it holds where in `_row_range` the
    output of the rest lies, `position` being that of the first row's first pixel, `across` the distance between rows.
    """
    for y in range(first, last):
        for x in range(width):
            pixel = np.uintp((image * height + y) * width + x)
            kind = np.uintp(y % stride * stride + x % stride)
            here = position + (y - first) // stride * across + x // stride
            for w in range(begin // 64, (end + 63) // 64):
                word = bits[pixel, np.uintp(w)]
                while word != 0:
                    c = 64 * w + lowest_bit(word) - begin
                    if 0 <= c < end - begin:
                        lists[np.uintp(c), kind, np.uintp(counts[c, kind])] = here
                        counts[c, kind] += 1
                    word &= word - np.uint64(1)


@compile_loop
def conv_weight(begin, end, slot, bits, grad, out, height, width, channels, at_a_time, stride, kernel):
    """Gradient of the weight for input channels begin .. end - 1, from the output's gradient.

    The input is feature maps [H, W], grad is [N H' W', O], out is [K K C, O] as the table of `conv`. Works on blocks of
    about `at_a_time` values of grad: a band of rows of an image, or a few images.
    """
    outputs, half = grad.shape[1], kernel // 2
    images = bits.shape[0] // (height * width)
    of_height, of_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    # An input at s a + r reaches outputs a + d, with d = (r + K // 2 - tap) / s where that is an integer.
    before, after = half // stride, (half + stride - 1) // stride
    gap = max(before, after)
    across = of_width + gap
    rows = max(1, min(of_height, at_a_time // (outputs * across) - before - after))
    per_image = (rows + before + after) * across
    together = max(1, at_a_time // (outputs * per_image)) if rows == of_height else 1
    together = min(together, images)
    pixels = together * per_image + gap
    padded = aligned_rows(pixels * outputs, grad.dtype).reshape((pixels, outputs))
    phases = stride * stride
    lists = np.empty((end - begin, phases, together * rows * of_width), np.int32)
    counts = np.empty((end - begin, phases), np.int64)
    flat, indices = out.reshape(out.size), lists.reshape(lists.size)
    fresh = True
    for first in range(0, images, together):
        for y in range(0, of_height, rows):
            n = min(rows, of_height - y)
            counts[:] = 0
            to = 0
            for image in range(first, min(first + together, images)):
                target = to + before * across + gap
                to = _row_range(grad, image, y, n, before, after, gap, of_height, of_width, padded, to)
                last = min(height, stride * (y + n))
                _list_channels(
                    bits, image, stride * y, last, height, width, begin, end, target, across, stride, lists, counts
                )
            for i in range(gap):
                padded[to + i] = 0
            for c in range(end - begin):
                for tap in range(kernel * kernel):
                    down, right = half - tap // kernel, half - tap % kernel
                    r, s = -down % stride, -right % stride
                    kind = c * phases + r * stride + s
                    number = counts[c, r * stride + s]
                    if number or fresh:
                        of_channel = (kind * lists.shape[2], kind * lists.shape[2] + number)
                        shift = (r + down) // stride * across + (s + right) // stride
                        row = (tap * channels + begin + c) * outputs
                        _sum(padded, shift, 0, 0, outputs, indices, of_channel, flat, row, fresh)
            fresh = False


@inner
def transpose(x, row, rows, column, columns, out, to, stride):
    """out[to + j stride + i] = x[row + i, column + j] for i < rows, j < columns."""
    full_rows, across = rows // 16 * 16, columns // 16 * 16
    for i in range(0, full_rows, 16):
        for j in range(0, across, 16):
            transpose_16(x, row + i, column + j, out, to + j * stride + i, stride)
    for i in range(rows):
        for j in range(across if i < full_rows else 0, columns):
            out[to + j * stride + i] = x[row + i, column + j]


@compile_loop
def linear(begin, end, slot, bits, weight, out, words, outputs, adds):
    """FC layer, blocks begin .. end - 1 of 64 outputs. bits are [R, K / 64], weight is [O, K], out [R, O] float32.

    Each block of the weight, `words` words of inputs by `outputs` outputs, is transposed once and used for all rows
    while it is in the cache. The sums replace `out`, or are added to it.
    """
    flat = out.reshape(out.size)
    indices = np.empty(64 * words, np.int32)
    stride = outputs + _GAP
    of_block = aligned_rows(64 * words * stride, weight.dtype)
    block = of_block.reshape((64 * words, stride))
    last_output = min(64 * end, weight.shape[0])
    for output in range(64 * begin, last_output, outputs):
        n = min(outputs, last_output - output)
        for first in range(0, bits.shape[1], words):
            last = min(first + words, bits.shape[1])
            inputs = min(64 * last, weight.shape[1]) - 64 * first
            transpose(weight, output, n, 64 * first, inputs, of_block, 0, stride)
            for r in range(bits.shape[0]):
                m = _list(bits, r, first, last, indices, 0)
                replaces = first == 0 and not adds
                if m or replaces:
                    to = r * out.shape[1] + output
                    _sum(block, -64 * first, 0, 0, n, indices, (0, m), flat, to, replaces)


@compile_loop
def linear_of_table(begin, end, slot, bits, table, totals, words, adds):
    """FC layer, blocks begin .. end - 1 of 64 outputs, with the weight's columns as rows of a table [K, O].

    For few rows R: only table rows of inputs that spiked are loaded, and `words` words of inputs are processed for all
    R at a time, while they are in the cache. totals are [R, O]: float32, or int32 for a table of integers; the sums
    replace them, or are added to them.
    """
    flat = totals.reshape(totals.size)
    outputs = table.shape[1]
    column, n = 64 * begin, min(64 * end, outputs) - 64 * begin
    indices = np.empty(64 * words, np.int32)
    for first in range(0, bits.shape[1], words):
        last = min(first + words, bits.shape[1])
        for r in range(bits.shape[0]):
            m = _list(bits, r, first, last, indices, 0)
            fresh = first == 0 and not adds
            if m or fresh:
                _sum(table, 0, 0, column, n, indices, (0, m), flat, r * outputs + column, fresh)


@compile_loop
def linear_weight(begin, end, slot, bits, grad, out, outputs, at_a_time, words):
    """Gradient of the weight [O, K] of an FC layer, words begin .. end - 1 of 64 inputs, from the output's [R, O].

    A block of `words` words' inputs by `outputs` outputs is summed up in the cache, `at_a_time` rows after another,
    which all of its inputs share, then transposed to `out`.
    """
    rows, words = grad.shape[0], min(words, end - begin)
    chunks = (rows + at_a_time - 1) // at_a_time
    lists = np.empty((64 * words, rows), np.int32)
    bounds = np.zeros((chunks + 1, 64 * words), np.int64)  # of each chunk of rows, in the list of each input
    indices = lists.reshape(lists.size)
    stride = outputs + _GAP
    of_block, flat = aligned_rows(64 * words * stride, np.float32), out.reshape(out.size)
    block = of_block.reshape((64 * words, stride))
    inputs = out.shape[1]
    for first in range(begin, end, words):
        last = min(first + words, end)
        for chunk in range(chunks):
            counts = bounds[chunk + 1]
            counts[:] = bounds[chunk]
            for r in range(chunk * at_a_time, min((chunk + 1) * at_a_time, rows)):
                for w in range(first, last):
                    word = bits[np.uintp(r), np.uintp(w)]
                    while word != 0:
                        c = 64 * (w - first) + lowest_bit(word)
                        lists[np.uintp(c), np.uintp(counts[c])] = r
                        counts[c] += 1
                        word &= word - np.uint64(1)
        of_words = min(64 * last, inputs) - 64 * first
        for output in range(0, grad.shape[1], outputs):
            n = min(outputs, grad.shape[1] - output)
            for chunk in range(chunks):
                for c in range(of_words):
                    of_input = (c * rows + bounds[chunk, c], c * rows + bounds[chunk + 1, c])
                    _sum(grad, 0, 0, output, n, indices, of_input, of_block, c * stride, chunk == 0)
            # Few rows of `out` at a time: their distance may be a power of two as well.
            for j in range(0, n, 16):
                transpose(block, 0, of_words, j, min(16, n - j), flat, (output + j) * inputs + 64 * first, inputs)
