"""ECF, the compression of events in Metavision's HDF5 files.

A chunk begins with uint32 (number of events times 4, and two bits for the packing) and the first time, uint64; then
follow times as steps and repetitions, and rows, columns and polarities in one of three packings.

Source: https://github.com/prophesee-ai/hdf5_ecf
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.recording import RecordingError
from plif_lightning.runtime.compiled import compiled

Array = NDArray[Any]
_EVENT = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")], align=True)
# Most events of a chunk.
_MOST = 65535


@compiled
def _word(data: Array, at: int, size: int) -> int:
    """Little-endian integer of `size` bytes; -1 past the end."""
    if at + size > len(data):
        return -1
    value: Any = np.int64(0)
    for i in range(size):
        value |= np.int64(data[at + i]) << (8 * i)
    return value


@compiled
def _times(data: Array, at: int, t: Array) -> int:
    """Fill the times from byte `at` on; where the next part begins, or -1."""
    now = _word(data, at, 8)
    if len(data) < at + 8:
        return -1
    at += 8
    i, n = 0, len(t)
    while i < n:
        value = _word(data, at, 1)
        if value < 0:
            return -1
        step, count = value >> 4, value & 15
        if step == 15:
            # A longer step: four bits of each byte that begins with 15, the lowest first.
            long, shift = np.int64(0), 0
            while value >= 0 and value >> 4 == 15:
                if shift > 60:
                    return -1
                long |= (value & 15) << shift
                shift += 4
                at += 1
                value = _word(data, at, 1)
            now += long
            continue
        at += 1
        now += step
        if count == 15:
            count = _word(data, at, 2)
            at += 2
        if count < 0 or i + count > n:
            return -1
        for _ in range(count):
            t[i] = now
            i += 1
    return at


@compiled
def _repeated(data: Array, at: int, size: int, bits: int, length: int, out: Array) -> int:
    """Fill values of run lengths: words of `size` bytes whose lower `bits` are a count, all ones for a longer one."""
    i, n = 0, len(out)
    most = (1 << bits) - 1
    while i < n:
        value = _word(data, at, size)
        at += size
        count = value & most
        if value >= 0 and count == most:
            count = _word(data, at, length)
            at += length
        if value < 0 or count < 0 or i + count > n:
            return -1
        for _ in range(count):
            out[i] = value >> bits
            i += 1
    return at


@compiled
def _masked(data: Array, at: int, x: Array) -> int:
    """Fill columns: words of 16 bits, a column and which of the next five columns follow."""
    i, n = 0, len(x)
    while i < n:
        value = _word(data, at, 2)
        if value < 0:
            return -1
        at += 2
        column = value >> 5
        x[i] = column
        i += 1
        for j in range(5):
            if value >> (4 - j) & 1:
                if i >= n:
                    return at  # the encoder pads the last word
                x[i] = column + j + 1
                i += 1
    return at


@compiled
def _packed(data: Array, at: int, width: int, rows: int, x: Array, y: Array, p: Array) -> int:
    """Fill groups of four values of 12 bits (column, polarity) or 24 bits (row, too), three words of `width` bytes."""
    n, bits = len(x), 8 * width
    share = bits // 4
    for i in range(0, n, 4):
        a, b, c = _word(data, at, width), _word(data, at + width, width), _word(data, at + 2 * width, width)
        if min(a, b, c) < 0:
            return -1
        at += 3 * width
        low = (np.int64(1) << bits) - 1
        for j in range(min(4, n - i)):
            if j == 0:
                value = a >> share
            elif j == 1:
                value = (a & (low >> (bits - share))) | (b >> (2 * share)) << share
            elif j == 2:
                value = (b & (low >> (bits - 2 * share))) | (c >> (3 * share)) << (2 * share)
            else:
                value = c & (low >> share)
            p[i + j] = value & 1
            x[i + j] = (value >> 1) & 0x7FF
            if rows:
                y[i + j] = (value >> 12) & 0x7FF
    return at


@compiled
def _chunk(data: Array, t: Array, x: Array, y: Array, p: Array) -> int:
    """Fill the events of a chunk; -1 if it is damaged."""
    flags = _word(data, 0, 4)
    at = _times(data, 4, t)
    if at < 0:
        return -1
    if flags & 2:
        return _packed(data, at, 4, 1, x, y, p)
    at = _repeated(data, at, 2, 5, 2, y)
    if at < 0:
        return -1
    if flags & 1:
        return _packed(data, at, 2, 0, x, y, p)
    at = _masked(data, at, x)
    return -1 if at < 0 else _repeated(data, at, 1, 7, 2, p)


def decompressed(data: Any, path: str) -> Array:
    """Events of an HDF5 data set that ECF compresses, as a structured array with x, y, p and t [us].

    Raises:
        RecordingError: a chunk is damaged.
    """
    total, chunk = len(data), data.chunks[0]
    events = np.empty(total, _EVENT)
    for number, begin in enumerate(range(0, total, chunk)):
        _, raw = data.id.read_direct_chunk((begin,))
        content = np.frombuffer(raw, np.uint8)
        count = int.from_bytes(raw[:4], "little") >> 2
        if count > _MOST or min(total, begin + chunk) - begin > count:
            raise RecordingError(f"{path}: chunk {number} of its events is damaged: it holds {count}.")
        columns = [np.empty(count, kind) for kind in (np.int64, np.uint16, np.uint16, np.uint8)]
        if _chunk(content, *columns) < 0:
            raise RecordingError(f"{path}: chunk {number} of its events is damaged.")
        here = slice(begin, min(total, begin + chunk))
        for name, column in zip("txyp", columns, strict=True):
            events[name][here] = column[: here.stop - begin]
    return events
