"""Prophesee's files: RAW (EVT 2.0, 2.1 and 3.0) and DAT."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plif_lightning.events.formats.decoding import Decoder, empty_columns, header_lines, read_whole, sensor_from
from plif_lightning.events.recording import Recording, RecordingError, Sensor

_log = logging.getLogger(__name__)
# Addresses have at most 14 bits, so this sensor contains them all.
_ANY = 2**14
# Where more events than this share lie outside the sensor of the header, the file is damaged.
_FEW = 0.01
# ... once there are so many.
_ENOUGH = 1000


def _fields(header: bytes) -> dict[str, str]:
    """Keys, in lower case, and values of the lines of a header."""
    fields = {}
    for line in header.decode("latin-1").splitlines():
        key, _, value = line.lstrip("% ").partition(" ")
        fields[key.lower()] = value.strip()
    return fields


class _Words(Decoder):
    """Decode a header of lines that begin with `%`, and words of one size.

    Events outside the sensor that the header names are dropped, as OpenEB does, with a warning; if they are more than
    one in a hundred, the file is refused.
    """

    _type: np.dtype[Any]
    _state: Any
    _loop: Callable[..., int]
    _count: Callable[..., int] | None = None  # pixels in words; None if a word holds at most one
    _outside = 0
    _said = 0  # of these, when they were last said
    _kept = 0
    _read = 0  # words

    def fill(self, data: bytes, at: int, columns: Sequence[Any]) -> tuple[int, int]:
        words, rest = self._words(data, at)
        n = self._loop(words, self._state, *(self.sensor or (_ANY, _ANY)), *columns)
        if n < 0:
            raise RecordingError(
                f"{self.name}: word {self._read - 1 - n} after the header has the type "
                f"{int(words[-1 - n]) >> (8 * words.itemsize - 4):#x}, which {self.title} does not have. The file is "
                "damaged or in another encoding."
            )
        self._read += len(words)
        self._kept += n
        self._say_what_is_outside()
        return n, rest

    def _events(self, data: bytes, at: int) -> tuple[Recording, int]:
        words, _ = self._words(data, at)
        columns = empty_columns(len(words) if self._count is None else self._count(words))
        n, rest = self.fill(data, at, columns)
        return Recording(*(column[:n] for column in columns)), rest

    def finish(self) -> Recording:
        if self.begun:
            self._say_what_is_outside(final=True)
        return super().finish()

    def _say_what_is_outside(self, final: bool = False) -> None:
        outside = int(self._state[-1])
        if outside == self._outside and not final:
            return
        what = f"{outside:,} of {outside + self._kept:,} events of {self.name} lie outside the sensor of {self.sensor}"
        if outside > _FEW * (outside + self._kept) and (final or outside + self._kept >= _ENOUGH):
            raise RecordingError(f"{what} pixels that its header names. It is damaged, or has another file's header.")
        if outside > self._said and (final or not self._said):
            so_far = "" if final else " so far"
            _log.warning("%s pixels (height x width) that its header names%s: they are dropped.", what, so_far)
            self._said = outside
        self._outside = outside

    def _words(self, data: bytes, at: int) -> tuple[Any, int]:
        """Whole words from byte `at` on, and where the rest begins."""
        count = (len(data) - at) // self._type.itemsize
        return np.frombuffer(data, self._type, count, at), at + count * self._type.itemsize


class _Encoding(NamedTuple):
    """An encoding of RAW files.

    Attributes:
        title: name, for messages.
        word: type of a word.
        state: of the loop before the first word.
        loop: name of its function in `words`.
        pixels: name of the function that counts pixels; "" if there is at most one to a word.
    """

    title: str
    word: str
    state: tuple[int, ...]
    loop: str
    pixels: str


_ENCODINGS = {
    "2.0": _Encoding("EVT 2.0", "<u4", (-1, 0, 0), "evt2", ""),
    "2.1": _Encoding("EVT 2.1", "<u8", (-1, 0, 0), "evt21", "count_evt21"),
    "3.0": _Encoding("EVT 3.0", "<u2", (-1, 0, -1, 0, 0, 0), "evt3", "count_evt3"),
}
_FORMATS = {"EVT2": "2.0", "EVT21": "2.1", "EVT3": "3.0"}


class RawDecoder(_Words):
    """Decode a Prophesee RAW file; see `read_raw`.

    Args:
        name: name of the source, for messages.
    """

    title = "RAW file of Prophesee"
    event_bytes = 2

    def _header(self, data: bytes, final: bool) -> int | None:
        from plif_lightning.events.formats import words as loops

        if data and not data.startswith(b"%"):
            raise RecordingError(f"{self.name} is no RAW file of Prophesee: it does not begin with lines of '% '.")
        end = header_lines(data, b"% ", (b"% END",), final)
        if end is None:
            return None
        fields = _fields(data[:end])
        name, *options = fields.get("format", "").split(";")
        version = _FORMATS.get(name, fields.get("evt", ""))
        if (name and name not in _FORMATS) or version not in _ENCODINGS:
            raise RecordingError(
                f"{self.name}: its encoding is {name or version or 'not named in its header'}; EVT 2.0, EVT 2.1 and "
                "EVT 3.0 are read. Metavision's metavision_file_to_hdf5 converts others."
            )
        if name and fields.get("evt", version) != version:
            raise RecordingError(f"{self.name}: its header names two encodings, {name} and {fields['evt']}: damaged.")
        encoding = _ENCODINGS[version]
        self.title = encoding.title
        self._type, self._state = np.dtype(encoding.word), np.array(encoding.state, np.int64)
        self._loop = getattr(loops, encoding.loop)
        self.event_bytes = self._type.itemsize
        if encoding.pixels:
            self._count, self.many = getattr(loops, encoding.pixels), True
        settings = {**fields, **dict(option.split("=", 1) for option in options if "=" in option)}
        self._swapped = settings.get("endianness") == "legacy"
        self.sensor = self._sensor(settings)
        return end

    def _sensor(self, fields: dict[str, str]) -> Sensor | None:
        """Sensor from the format or the geometry."""
        width, _, height = fields.get("geometry", "").partition("x")
        found = sensor_from(fields.get("height"), fields.get("width"), self.name), sensor_from(height, width, self.name)
        named = [*{sensor for sensor in found if sensor is not None}]
        if len(named) > 1:
            raise RecordingError(f"{self.name}: its header names two sensors, {named[0]} and {named[1]}: damaged.")
        return named[0] if named else None

    def _words(self, data: bytes, at: int) -> tuple[Any, int]:
        words, rest = super()._words(data, at)
        if self._swapped:  # two halves of 32 bits, the upper one first
            words = words.view("<u4").reshape(-1, 2)[:, ::-1].copy().view("<u8").reshape(-1)
        return words, rest


class DatDecoder(_Words):
    """Decode a DAT file; see `read_dat`.

    Args:
        name: name of the source, for messages.
    """

    title = "DAT file of Prophesee"
    _type, event_bytes = np.dtype("<u8"), 8

    def _header(self, data: bytes, final: bool) -> int | None:
        end = header_lines(data, b"% ", final=final)
        if end is None or (len(data) < end + 2 and not final):
            return None
        fields = _fields(data[:end])
        kind = tuple(data[end : end + 2])
        if end == 0 or kind not in ((0, 8), (12, 8)):
            found = "it has no header" if end == 0 else f"its events are of type {kind[:1]} and size {kind[1:]}"
            raise RecordingError(
                f"{self.name} is no DAT file of Prophesee with events of 8 bytes and type 0 or 12: {found}."
            )
        if fields.get("version", "2") != "2":
            raise RecordingError(f"{self.name}: version {fields['version']} of DAT is not read, only version 2.")
        from plif_lightning.events.formats.words import dat

        self._loop, self._state = dat, np.zeros(3, np.int64)
        self.sensor = sensor_from(fields.get("height"), fields.get("width"), self.name)
        return end + 2


def read_raw(path: str | Path) -> Recording:
    """Events of a Prophesee RAW file in EVT 2.0, EVT 2.1 or EVT 3.0.

    Lines that begin with `% ` name the encoding (`% evt 3.0` or `% format EVT3;height=720;width=1280`); words of 32, 64
    or 16 bits follow, little-endian. Words before the first high part of a time are skipped, as are triggers and
    monitoring events. Overflows of the counter (2^34 us; 2^24 us in EVT 3.0) are added. EVT 2.1 has its halves swapped
    where the header says `endianness legacy`.

    Raises:
        RecordingError: another format, or a truncated or damaged file.

    Source: https://docs.prophesee.ai/stable/data/encoding_formats; OpenEB 5.1.
    """
    return read_whole(path, RawDecoder(str(path)))


def read_dat(path: str | Path) -> Recording:
    """Events of a Prophesee DAT file, version 2.

    Lines that begin with % and a space, the type and the size of an event in a byte each, then events, little-endian:
    time [us] uint32, x (14 bits), y (14) and polarity. An overflow of the counter adds 2^32 us.

    Raises:
        RecordingError: another format, or a truncated or damaged file.

    Source: https://docs.prophesee.ai/stable/data/file_formats/dat.html
    """
    return read_whole(path, DatDecoder(str(path)))
