"""Loops over the words of Prophesee's encodings. Their state is in an array, so that a stream may be cut anywhere.

The functions fill t, x, y and p and return the number of events, or -1 - i if word i has a type that its encoding does
not define. Events outside the sensor are counted in the last element of `state`.

Source: https://docs.prophesee.ai/stable/data/encoding_formats, and the decoders of OpenEB 5.1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.runtime.compiled import compiled

Array = NDArray[Any]

# Types of EVT 3 words, the upper four bits.
_ROW, _OTHER_ROW, _COLUMN, _BASE, _VECTOR_12, _VECTOR_8, _TIME_LOW, _TIME_HIGH = 0, 1, 2, 3, 4, 5, 6, 8
# CONTINUED_4, EXT_TRIGGER, OTHERS and CONTINUED_12 hold no pixel.
_NO_PIXELS = 1 << 7 | 1 << 10 | 1 << 14 | 1 << 15
# EVT 2: IMU events beside them, and types of old cameras that OpenEB names.
_NO_PIXELS_2 = 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15
_NO_PIXELS_21 = 1 << 10 | 1 << 14 | 1 << 15


@compiled
def count_evt3(words: Array) -> int:
    """Number of pixels in EVT 3 words."""
    total: Any = 0
    for i in range(len(words)):
        word = words[i]
        kind = word >> 12
        if kind == _COLUMN:
            total += 1
        elif kind in (_VECTOR_12, _VECTOR_8):
            bits = np.uint32(word & (0xFFF if kind == _VECTOR_12 else 0xFF))
            bits = bits - ((bits >> 1) & np.uint32(0x55555555))
            bits = (bits & np.uint32(0x33333333)) + ((bits >> 2) & np.uint32(0x33333333))
            bits = (bits + (bits >> 4)) & np.uint32(0x0F0F0F0F)
            total += np.int64((bits + (bits >> 8)) & np.uint32(0xFF))
    return total


@compiled
def evt3(words: Array, state: Array, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """EVT 3: words of 16 bits. State: time high (-1 before the first), time, row (or -1), base, polarity, outside."""
    high, now, row, base, polarity, outside = state[0], state[1], state[2], state[3], state[4], state[5]
    n = 0
    for i in range(len(words)):
        word = np.int64(words[i])
        kind, value = word >> 12, word & 0xFFF
        if kind == _TIME_HIGH:
            if high < 0:
                now = value << 12
            elif value != high:
                # Only a backward jump of at least half the range is an overflow of the counter.
                loops = (now >> 24) + (1 if high - value >= 2048 else 0)
                now = (loops << 24) | (value << 12)
            high = value
        elif kind == _COLUMN:
            column = value & 0x7FF
            if row >= 0 and high >= 0:
                if column < width and row < height:
                    t[n], x[n], y[n], p[n] = now, column, row, value >> 11
                    n += 1
                else:
                    outside += 1
        elif kind == _ROW:
            row = value & 0x7FF
        elif kind == _TIME_LOW:
            if high >= 0:
                now = (now & ~np.int64(0xFFF)) | value
        elif kind == _BASE:
            base, polarity = value & 0x7FF, value >> 11
        elif kind in (_VECTOR_12, _VECTOR_8):
            if row >= 0 and high >= 0:
                bits = value if kind == _VECTOR_12 else value & 0xFF
                column = base
                while bits:
                    if bits & 1:
                        if column < width and row < height:
                            t[n], x[n], y[n], p[n] = now, column, row, polarity
                            n += 1
                        else:
                            outside += 1
                    bits >>= 1
                    column += 1
            base += 12 if kind == _VECTOR_12 else 8
        elif kind == _OTHER_ROW:
            row = -1  # pixels that follow are no changes of brightness
        elif not (_NO_PIXELS >> kind) & 1:
            return -1 - i
    state[0], state[1], state[2], state[3], state[4], state[5] = high, now, row, base, polarity, outside
    return n


@compiled
def _outside_2(words: Array, height: int, width: int) -> int:
    """Number of EVT 2 pixels outside the sensor."""
    outside = 0
    for word in words:
        outside += ((word >> 11) & 0x7FF) >= width or (word & 0x7FF) >= height
    return outside


@compiled
def _all_2(words: Array, now: int, t: Array, x: Array, y: Array, p: Array) -> None:
    """Fill all EVT 2 pixels. Loops without branches over few arrays become vector instructions."""
    for i in range(len(words)):
        t[i] = now + np.int64((words[i] >> 22) & 0x3F)
    for i in range(len(words)):
        x[i] = (words[i] >> 11) & 0x7FF
        y[i] = words[i] & 0x7FF
        p[i] = words[i] >> 28


@compiled
def _inside_2(words: Array, now: int, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """Fill the EVT 2 pixels that lie within the sensor; their number."""
    n = 0
    for word in words:
        column, row = (word >> 11) & 0x7FF, word & 0x7FF
        if column < width and row < height:
            t[n], x[n], y[n], p[n] = now + np.int64((word >> 22) & 0x3F), column, row, word >> 28
            n += 1
    return n


@compiled
def evt2(words: Array, state: Array, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """EVT 2: words of 32 bits. State: time high in us (-1 before the first), us that its overflows add, outside."""
    high, added, outside = state[0], state[1], state[2]
    n, i = 0, 0
    while i < len(words):
        end = i
        while end < len(words) and words[end] < 0x20000000:
            end += 1
        if end > i:
            if high >= 0:
                run = words[i:end]
                beyond = _outside_2(run, height, width)
                if beyond:
                    _inside_2(run, added + high, height, width, t[n:], x[n:], y[n:], p[n:])
                else:
                    _all_2(run, added + high, t[n:], x[n:], y[n:], p[n:])
                n += end - i - beyond
                outside += beyond
            i = end
            continue
        kind = words[i] >> 28
        if kind == 8:
            value = np.int64(words[i] & 0xFFFFFFF) << 6
            if high - value >= 2**33:
                added += 2**34
            high = value
        elif not (_NO_PIXELS_2 >> kind) & 1:
            return -1 - i
        i += 1
    state[0], state[1], state[2] = high, added, outside
    return n


@compiled
def count_evt21(words: Array) -> int:
    """Number of pixels in EVT 2.1 words."""
    total = 0
    for i in range(len(words)):
        if words[i] >> np.uint64(61) == 0:
            bits = words[i] & np.uint64(0xFFFFFFFF)
            while bits:
                bits &= bits - np.uint64(1)
                total += 1
    return total


@compiled
def evt21(words: Array, state: Array, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """EVT 2.1: words of 64 bits, each up to 32 pixels of a row. State as in `evt2`."""
    high, added, outside = state[0], state[1], state[2]
    n = 0
    for i in range(len(words)):
        upper = np.int64(words[i] >> np.uint64(32))
        kind = upper >> 28
        if kind <= 1:
            column, row = (upper >> 11) & 0x7FF, upper & 0x7FF
            bits = np.int64(words[i] & np.uint64(0xFFFFFFFF))
            if high >= 0:
                now = added + high + ((upper >> 22) & 0x3F)
                while bits:
                    if bits & 1:
                        if column < width and row < height:
                            t[n], x[n], y[n], p[n] = now, column, row, kind
                            n += 1
                        else:
                            outside += 1
                    bits >>= 1
                    column += 1
        elif kind == 8:
            value = (upper & 0xFFFFFFF) << 6
            if high - value >= 2**33:
                added += 2**34
            high = value
        elif not (_NO_PIXELS_21 >> kind) & 1:
            return -1 - i
    state[0], state[1], state[2] = high, added, outside
    return n


@compiled
def dat(words: Array, state: Array, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """DAT: words of 64 bits, an address above a time [us]. State: last time, us that its overflows add, outside."""
    last, added, outside = state[0], state[1], state[2]
    low = np.uint64(0xFFFFFFFF)
    unusual = 0
    for i in range(len(words)):
        address = words[i] >> np.uint64(32)
        unusual += (address & np.uint64(0x3FFF)) >= width or ((address >> np.uint64(14)) & np.uint64(0x3FFF)) >= height
    for i in range(1, len(words)):
        unusual += (words[i - 1] & low) > (words[i] & low)
    if len(words) and last - np.int64(words[0] & low) > 2**31:
        added += 2**32
    if unusual == 0:  # without a branch in it, this loop becomes vector instructions
        for i in range(len(words)):
            address = words[i] >> np.uint64(32)
            t[i] = added + np.int64(words[i] & low)
            x[i] = address & np.uint64(0x3FFF)
            y[i] = (address >> np.uint64(14)) & np.uint64(0x3FFF)
            p[i] = (address >> np.uint64(28)) & np.uint64(1)
        if len(words):
            state[0] = np.int64(words[-1] & low)
        state[1] = added
        return len(words)
    n = 0
    for i in range(len(words)):
        now, address = np.int64(words[i] & low), np.int64(words[i] >> np.uint64(32))
        if i and last - now > 2**31:
            added += 2**32
        last = now
        column, row = address & 0x3FFF, (address >> 14) & 0x3FFF
        if column < width and row < height:
            t[n], x[n], y[n], p[n] = added + now, column, row, (address >> 28) & 1
            n += 1
        else:
            outside += 1
    state[0], state[1], state[2] = last, added, outside
    return n
