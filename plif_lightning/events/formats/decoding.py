"""What all formats share: opening files, and decoding bytes that come in pieces of any size."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from plif_lightning.events.recording import Recording, RecordingError, Sensor

# Longest header of a text-like format [bytes]; real ones have less than 10 KiB.
LONGEST_HEADER = 2**20
# Largest accepted compression ratio; recordings of real cameras reach 3 to 20.
_MAX_COMPRESSION = 100
# Addresses of all formats have at most 14 bits for a side.
_LARGEST_SIDE = 2**14
# Bytes that are read at once: few enough to stay in the cache. A multiple of all units.
_PORTION = 2**18


@contextmanager
def opened(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading.

    Raises:
        RecordingError: it is missing or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise RecordingError(f"{path} does not exist.") from error
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}.") from error


def content(path: str | Path) -> bytes:
    """All bytes of a file; errors as in `opened`."""
    with opened(path) as file:
        return file.read()


def require_compression(unpacked: int, packed: int, path: str | Path) -> None:
    """Refuse a file that would exhaust memory: its compression ratio is too high for events.

    Raises:
        RecordingError: the ratio exceeds the limit, and the content 1 GiB.
    """
    if unpacked > max(2**30, _MAX_COMPRESSION * packed):
        raise RecordingError(
            f"{path} has {packed / 2**20:,.0f} MiB and would unpack to {unpacked / 2**30:,.0f} GiB, far more "
            "than events can: it is not read."
        )


def named_sensor(height: int, width: int, name: str) -> Sensor:
    """Sensor that a file names.

    Raises:
        RecordingError: no camera is of that size.
    """
    if not 1 <= min(height, width) <= max(height, width) <= _LARGEST_SIDE:
        raise RecordingError(f"{name} names a sensor of {width} x {height} pixels (width x height). It is damaged.")
    return Sensor(height, width)


def sensor_from(height: str | None, width: str | None, name: str) -> Sensor | None:
    """Sensor from the texts of two numbers; None if they are none.

    Raises:
        RecordingError: no camera is of that size.
    """
    if not all(side and re.fullmatch(r"\d{1,9}", side, re.ASCII) for side in (height, width)):
        return None
    return named_sensor(int(height or 0), int(width or 0), name)


def no_events() -> Recording:
    nothing = np.zeros(0, np.int16)
    return Recording(np.zeros(0, np.int64), nothing, nothing, nothing)


def empty_columns(room: int) -> tuple[Any, Any, Any, Any]:
    """Arrays for t, x, y and p of `room` events, not initialised."""
    return np.empty(room, np.int64), np.empty(room, np.uint16), np.empty(room, np.uint16), np.empty(room, np.uint8)


class Decoder(ABC):
    """Decode a format from bytes that come in pieces of any size, as from a growing file, a pipe or a socket.

    Args:
        name: name of the source, for messages.

    Attributes:
        pending: bytes of an incomplete header or event.
        begun: True once the header is complete.
        header_bytes: its length.
        sensor: size of the camera, if the header names it.
    """

    title: str  # of the format, for messages
    event_bytes: int | None = None  # size of an event, or of the smallest unit
    many = False  # a unit may hold several events

    def __init__(self, name: str) -> None:
        self.name = name
        self.pending = b""
        self.begun = False
        self.header_bytes = 0
        self.sensor: Sensor | None = None

    def decode(self, data: bytes) -> Recording:
        """Events that are complete with these bytes.

        Raises:
            RecordingError: the source is damaged or in another format.
        """
        if self.pending:
            data = self.pending + data
        at = 0
        if not self.begun:
            self.begin(data)
            if not self.begun:
                return no_events()
            at = self.header_bytes
        recording, at = self._events(data, at)
        self.pending = data[at:]
        return recording

    def begin(self, data: bytes) -> None:
        """Read the header from the first bytes; they stay pending if it is not complete.

        Raises:
            RecordingError: it is the header of another format, or does not end.
        """
        end = self._header(data, final=False)
        if end is None and len(data) > LONGEST_HEADER:
            raise RecordingError(f"{self.name} is no {self.title}: its header does not end.")
        self.begun, self.header_bytes = end is not None, end or 0
        self.pending = b"" if self.begun else data

    def flush(self) -> Recording:
        """Events that only the end of the source completes: the last line of a text."""
        return no_events()

    def finish(self) -> Recording:
        """`flush`, and check that nothing is left.

        Raises:
            RecordingError: the source ends within its header or an event.
        """
        if not self.begun and (end := self._header(self.pending, final=True)) is not None:
            self.begun, self.pending = True, self.pending[end:]
        if self.left:
            raise RecordingError(f"{self.left} The file is truncated.")
        return self.flush()

    def fill(self, data: bytes, at: int, columns: Sequence[Any]) -> tuple[int, int]:
        """Decode the whole events from byte `at` on into t, x, y and p.

        Returns:
            The number of events, and where the incomplete rest begins.
        """
        recording, rest = self._events(data, at)
        n = len(recording.t)
        for column, values in zip(columns, recording, strict=True):
            column[:n] = values
        return n, rest

    @property
    def left(self) -> str:
        """Message about an incomplete event or header; empty if everything is complete."""
        if self.begun and not self.pending:
            return ""
        if not self.begun:
            return f"{self.name} ends within its header, before the first event."
        size = f"{self.event_bytes} " if self.event_bytes else ""
        return f"{self.name} ends within {self._unit}: {len(self.pending)} of its {size}bytes came."

    @property
    def _unit(self) -> str:
        return "an event"

    @abstractmethod
    def _header(self, data: bytes, final: bool) -> int | None:
        """Read the header; its length, or None if it is not complete. `final`: nothing follows.

        Raises:
            RecordingError: it is the header of another format.
        """

    @abstractmethod
    def _events(self, data: bytes, at: int) -> tuple[Recording, int]:
        """Events from byte `at` on, and where the incomplete rest begins."""


def read_whole(path: str | Path, decoder: Decoder) -> Recording:
    """Events of a whole file, portion by portion if its size tells how many they are at most.

    Raises:
        RecordingError: it is missing, truncated, damaged or in another format.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if decoder.event_bytes is None:
            return joined([decoder.decode(file.read()), decoder.finish()])
        decoder.begin(file.read(LONGEST_HEADER))
        if not decoder.begun:
            return decoder.finish()
        begin = file.seek(decoder.header_bytes)
        # What another process appends meanwhile is left out: there is no room for it.
        if decoder.many:
            return joined([decoder.decode(file.read(size - begin)), decoder.finish()])
        columns = empty_columns((size - begin) // decoder.event_bytes)
        n = 0
        for at in range(begin, size, _PORTION):
            portion = file.read(min(_PORTION, size - at))
            more, rest = decoder.fill(portion, 0, [column[n:] for column in columns])
            n += more
            decoder.pending = portion[rest:]
        decoder.finish()
    return Recording(*(column[:n] for column in columns))


def joined(parts: list[Recording]) -> Recording:
    """One recording of several parts."""
    parts = [part for part in parts if len(part.t)]
    if not parts:
        return no_events()
    return parts[0] if len(parts) == 1 else Recording(*map(np.concatenate, zip(*parts, strict=True)))


def header_lines(data: bytes, mark: bytes, ends: tuple[bytes, ...] = (), final: bool = True) -> int | None:
    """Length of the leading lines that begin with `mark`, up to one of `ends` at most.

    Args:
        data: the bytes that came so far.
        mark: beginning of each line.
        ends: lines that end the header, in capitals.
        final: nothing follows `data`.

    Returns:
        None if the header is not complete.
    """
    at = 0
    while data.startswith(mark, at):
        line_end = data.find(b"\n", at) + 1
        if line_end == 0:
            return None
        if data[at:line_end].strip().upper() in ends:
            return line_end
        at = line_end
    may_grow = not final and mark.startswith(data[at : at + len(mark)])
    return None if may_grow else at
