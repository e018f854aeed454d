"""Prophesee's files: RAW (EVT 2.0, 2.1 and 3.0) and DAT.

The loops over words fill t, x, y and p and return the number of events, or -1 - i if word i has a type that its
encoding does not define. Their state is in an array, so that a file is read in portions, which stay in the cache.

Source: https://docs.prophesee.ai/stable/data/encoding_formats, and the decoders of OpenEB 5.1.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.recording import Recording, RecordingError, Sensor
from plif_lightning.runtime.compiled import compile_cached

Array = NDArray[Any]
_log = logging.getLogger(__name__)
# Addresses have at most 14 bits, so this sensor contains them all.
_ANY = Sensor(2**14, 2**14)
# Where more events than this share lie outside the sensor of the header, the file is damaged.
_FEW = 0.01
# Bytes that are read at once: few enough to stay in the cache.
_PORTION = 2**18

# Types of EVT 3 words, the upper four bits.
_ROW, _OTHER_ROW, _COLUMN, _BASE, _VECTOR_12, _VECTOR_8, _TIME_LOW, _TIME_HIGH = 0, 1, 2, 3, 4, 5, 6, 8
# CONTINUED_4, EXT_TRIGGER, OTHERS and CONTINUED_12 hold no pixel.
_NO_PIXELS = 1 << 7 | 1 << 10 | 1 << 14 | 1 << 15
# EVT 2: IMU events beside them, and types of old cameras that OpenEB names.
_NO_PIXELS_2 = 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15
_NO_PIXELS_21 = 1 << 10 | 1 << 14 | 1 << 15


@compile_cached
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


@compile_cached
def _row(
    bits: int,
    now: int,
    column: int,
    row: int,
    polarity: int,
    height: int,
    width: int,
    n: int,
    t: Array,
    x: Array,
    y: Array,
    p: Array,
) -> tuple[int, int]:
    """Fill a pixel for each bit, from `column` on, behind the first n; the new n, and the pixels outside the sensor."""
    outside = 0
    while bits:
        if bits & 1:
            if column < width and row < height:
                t[n], x[n], y[n], p[n] = now, column, row, polarity
                n += 1
            else:
                outside += 1
        bits >>= 1
        column += 1
    return n, outside


@compile_cached
def evt3(words: Array, state: Array, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """EVT 3: words of 16 bits, of a file. State: pixels outside, lower parts of times that run backwards."""
    high: Any = np.int64(-1)
    now: Any = np.int64(0)
    row: Any = np.int64(-1)
    outside, backwards = 0, 0
    base: Any = 0
    polarity: Any = 0
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
                backwards += value < (now & 0xFFF)
                now = (now & ~np.int64(0xFFF)) | value
        elif kind == _BASE:
            base, polarity = value & 0x7FF, value >> 11
        elif kind in (_VECTOR_12, _VECTOR_8):
            if row >= 0 and high >= 0:
                bits = value if kind == _VECTOR_12 else value & 0xFF
                n, lost = _row(bits, now, base, row, polarity, height, width, n, t, x, y, p)
                outside += lost
            base += 12 if kind == _VECTOR_12 else 8
        elif kind == _OTHER_ROW:
            row = -1  # pixels that follow are no changes of brightness
        elif not (_NO_PIXELS >> kind) & 1:
            return -1 - i
    state[0], state[1] = outside, backwards
    return n


@compile_cached
def _outside_2(words: Array, height: int, width: int) -> int:
    """Number of EVT 2 pixels outside the sensor."""
    outside = 0
    for word in words:
        outside += ((word >> 11) & 0x7FF) >= width or (word & 0x7FF) >= height
    return outside


@compile_cached
def _all_2(words: Array, now: int, t: Array, x: Array, y: Array, p: Array) -> None:
    """Fill all EVT 2 pixels. Loops without branches over few arrays become vector instructions."""
    for i in range(len(words)):
        t[i] = now + np.int64((words[i] >> 22) & 0x3F)
    for i in range(len(words)):
        x[i] = (words[i] >> 11) & 0x7FF
        y[i] = words[i] & 0x7FF
        p[i] = words[i] >> 28


@compile_cached
def _decode_in_sensor(words: Array, now: int, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """Fill the EVT 2 pixels that lie within the sensor; their number."""
    n = 0
    for word in words:
        column, row = (word >> 11) & 0x7FF, word & 0x7FF
        if column < width and row < height:
            t[n], x[n], y[n], p[n] = now + np.int64((word >> 22) & 0x3F), column, row, word >> 28
            n += 1
    return n


@compile_cached
def evt2(words: Array, state: Array, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """EVT 2: words of 32 bits. State: pixels outside, 0, 1 + time high in us, us that its overflows add."""
    outside, high, added = state[0], state[2] - 1, state[3]
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
                    _decode_in_sensor(run, added + high, height, width, t[n:], x[n:], y[n:], p[n:])
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
    state[0], state[2], state[3] = outside, high + 1, added
    return n


@compile_cached
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


@compile_cached
def evt21(words: Array, state: Array, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """EVT 2.1: words of 64 bits, each up to 32 pixels of a row. State as in `evt2`."""
    outside, high, added = state[0], state[2] - 1, state[3]
    n = 0
    for i in range(len(words)):
        upper = np.int64(words[i] >> np.uint64(32))
        kind = upper >> 28
        if kind <= 1:
            column, row = (upper >> 11) & 0x7FF, upper & 0x7FF
            bits = np.int64(words[i] & np.uint64(0xFFFFFFFF))
            if high >= 0:
                now = added + high + ((upper >> 22) & 0x3F)
                n, lost = _row(bits, now, column, row, kind, height, width, n, t, x, y, p)
                outside += lost
        elif kind == 8:
            value = (upper & 0xFFFFFFF) << 6
            if high - value >= 2**33:
                added += 2**34
            high = value
        elif not (_NO_PIXELS_21 >> kind) & 1:
            return -1 - i
    state[0], state[2], state[3] = outside, high + 1, added
    return n


@compile_cached
def _all_dat(words: Array, t: Array, x: Array, y: Array, p: Array) -> None:
    """Fill all DAT events. Without a branch in it, this loop becomes vector instructions."""
    for i in range(len(words)):
        address = words[i] >> np.uint64(32)
        t[i] = np.int64(words[i] & np.uint64(0xFFFFFFFF))
        x[i] = address & np.uint64(0x3FFF)
        y[i] = (address >> np.uint64(14)) & np.uint64(0x3FFF)
        p[i] = (address >> np.uint64(28)) & np.uint64(1)


@compile_cached
def dat(words: Array, state: Array, height: int, width: int, t: Array, x: Array, y: Array, p: Array) -> int:
    """DAT: words of 64 bits, an address above a time [us]. State: pixels outside, 0, last time, us of overflows."""
    outside, last, added = state[0], state[2], state[3]
    low, side = np.uint64(0xFFFFFFFF), np.uint64(0x3FFF)
    unusual = np.int64(added != 0 or last > np.int64(words[0] & low))
    for i in range(len(words)):
        address = words[i] >> np.uint64(32)
        unusual += (address & side) >= width or ((address >> np.uint64(14)) & side) >= height
    for i in range(1, len(words)):
        unusual += (words[i - 1] & low) > (words[i] & low)
    if unusual == 0:
        _all_dat(words, t, x, y, p)
        state[2] = np.int64(words[-1] & low)
        return len(words)
    n = 0
    for i in range(len(words)):
        now, address = np.int64(words[i] & low), np.int64(words[i] >> np.uint64(32))
        if last - now > 2**31:
            added += 2**32
        last = now
        column, row = address & 0x3FFF, (address >> 14) & 0x3FFF
        if column < width and row < height:
            t[n], x[n], y[n], p[n] = added + now, column, row, (address >> 28) & 1
            n += 1
        else:
            outside += 1
    state[0], state[2], state[3] = outside, last, added
    return n


class _Encoding(NamedTuple):
    """An encoding.

    Attributes:
        title: name, for messages.
        word: type of a word.
        loop: decodes words.
        pixels: counts the pixels in words; None if a word holds at most one event.
    """

    title: str
    word: str
    loop: Callable[..., int]
    pixels: Callable[..., int] | None


_ENCODINGS = {
    "2.0": _Encoding("EVT 2.0", "<u4", evt2, None),
    "2.1": _Encoding("EVT 2.1", "<u8", evt21, count_evt21),
    "3.0": _Encoding("EVT 3.0", "<u2", evt3, count_evt3),
}
_DAT = _Encoding("DAT", "<u8", dat, None)
_FORMATS = {"EVT2": "2.0", "EVT21": "2.1", "EVT3": "3.0"}


class _Header(NamedTuple):
    """Where the words begin [bytes], their encoding, the sensor, and whether halves of words are swapped."""

    begin: int
    encoding: _Encoding
    sensor: Sensor | None
    swapped: bool


def _header(file: IO[bytes], path: Path) -> _Header:
    """Read the lines that begin with `% `, and for DAT the type and the size of an event, a byte each."""
    fields: dict[str, str] = {}
    begin = 0
    while (line := file.readline(2**16)).startswith(b"% "):
        key, _, value = line.decode("latin-1").lstrip("% ").partition(" ")
        fields[key.lower().strip()] = value.strip()
        begin += len(line)
        if line.strip().upper() == b"% END":
            break
    name, *options = fields.get("format", "").split(";")
    fields |= dict(option.split("=", 1) for option in options if "=" in option)
    width, _, height = fields.get("geometry", "").partition("x")
    width, height = fields.get("width", width), fields.get("height", height)
    sensor = Sensor(int(height), int(width)) if width.isdecimal() and height.isdecimal() else None
    if path.suffix.lower() == ".dat":
        file.seek(begin)
        kind = tuple(file.read(2))
        if kind not in ((0, 8), (12, 8)) or fields.get("version", "2") != "2":
            raise RecordingError(
                f"{path}: its events are of type {kind[:1]} and size {kind[1:]}, version {fields.get('version')}; DAT "
                "of version 2 with events of type 0 or 12 and 8 bytes is read."
            )
        return _Header(begin + 2, _DAT, sensor, swapped=False)
    encoding = _ENCODINGS.get(_FORMATS.get(name, fields.get("evt", "") if not name else ""))
    if encoding is None:
        raise RecordingError(
            f"{path}: its encoding is {name or fields.get('evt') or 'not named in its header'}; EVT 2.0, 2.1 and 3.0 "
            "are read."
        )
    return _Header(begin, encoding, sensor, fields.get("endianness") == "legacy")


def sensor_in_prophesee(path: Path) -> Sensor | None:
    """Sensor that the header of a RAW or DAT file names."""
    with path.open("rb") as file:
        return _header(file, path).sensor


def _words(content: bytes, header: _Header) -> Array:
    words = np.frombuffer(content, header.encoding.word)
    if header.swapped:  # two halves of 32 bits, the upper first
        words = words.view("<u4").reshape(-1, 2)[:, ::-1].copy().view("<u8").reshape(-1)
    return words


def read_prophesee(path: Path) -> Recording:
    """Events of a Prophesee RAW file in EVT 2.0, EVT 2.1 or EVT 3.0, or of a DAT file, version 2.

    RAW: lines that begin with `% ` name the encoding (`% evt 3.0` or `% format EVT3;height=720;width=1280`); words of
    32, 64 or 16 bits follow, little-endian. Words before the first high part of a time are skipped, as are triggers and
    monitoring events. Overflows of the counter (2^34 us; 2^24 us in EVT 3.0) are added. EVT 2.1 has its halves swapped
    where the header says `endianness legacy`.

    DAT: such lines, the type and the size of an event in a byte each, then events: time [us] uint32, x (14 bits), y
    (14) and polarity. An overflow of the counter adds 2^32 us.

    Events outside the sensor that the header names are dropped, as OpenEB does, with a warning.

    Raises:
        RecordingError: another format, or a truncated or damaged file, or more than one event in a hundred lies outside
            the sensor.
    """
    with path.open("rb") as file:
        header = _header(file, path)
        title, word, loop, pixels = header.encoding
        width = np.dtype(word).itemsize
        size = path.stat().st_size - header.begin
        if size % width:
            raise RecordingError(f"{path} ends within a word of {width} bytes. It is truncated.")
        file.seek(header.begin)
        end = header.begin + size  # a file that grows is read up to here
        words = _words(file.read(size if pixels else min(_PORTION, size)), header)
        capacity = size // width if pixels is None else pixels(words)
        columns: list[Any] = [np.empty(capacity, kind) for kind in (np.int64, np.uint16, np.uint16, np.uint8)]
        state, n = np.zeros(4, np.int64), 0
        while len(words):
            more = loop(words, state, *(header.sensor or _ANY), *(column[n:] for column in columns))
            if more < 0:
                raise RecordingError(
                    f"{path}: a word before byte {file.tell()} has a type that {title} does not have. The file is "
                    "damaged or in another encoding."
                )
            n += more
            words = _words(file.read(min(_PORTION, end - file.tell())), header)
    outside, backwards = state[:2].tolist()
    if backwards:
        raise RecordingError(
            f"{path}: the lower part of its time runs backwards without a TIME_HIGH word between, so its times are "
            "lost. expelliarmus writes such files (a TIME_HIGH word in 100 ms): write EVT 2 or DAT with it instead."
        )
    if outside > _FEW * (outside + n):
        raise RecordingError(
            f"{outside:,} of {outside + n:,} events of {path} lie outside the sensor of {header.sensor} pixels that "
            "its header names. It is damaged, or has another file's header."
        )
    if outside:
        _log.warning("%s: %d events outside the sensor that its header names are dropped.", path, outside)
    return Recording(*(column[:n] for column in columns))
