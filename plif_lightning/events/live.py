"""Events of a table of text that is still being written: a pipe, or a file that grows."""

import os
import queue
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plif_lightning.events.readers import SUFFIXES
from plif_lightning.events.recording import Recording, RecordingError
from plif_lightning.events.tables import COMMENTS, TextLayout, TimeUnit

_BYTES = 2**16  # read at once
_POLL = 0.001  # of a file that has not grown [s]
_SILENCE = Recording(*np.zeros((4, 0), np.int64))


class Arrival(NamedTuple):
    """Events that arrived together, or silence.

    Attributes:
        at: time on this machine's monotonic clock [s].
        events: N >= 0 events.
    """

    at: float
    events: Recording


class LiveText:
    """Events of text in the format of `read_text`, as they arrive.

    A pipe and standard input end when their writer closes them, a regular file never.

    Args:
        path: a pipe, a file that grows, or `-` for standard input.
        columns: names of the columns of a text without a header.
        unit: unit of the times; us by default.

    Attributes:
        name: of the source, for messages.
        grows: it is a regular file, which another program may still append to.

    Raises:
        RecordingError: the file is of another format, or does not exist.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None, unit: TimeUnit | None = None) -> None:
        if path.suffix.lower() in {*SUFFIXES} - {".csv", ".txt"}:
            raise RecordingError(f"{path} cannot be followed: a live source is text, a line for each event.")
        self.name = "standard input" if path == Path("-") else str(path)
        self._columns, self._unit = columns, unit
        self._layout: TextLayout | None = None
        self._incomplete = b""  # an incomplete line
        self._arrived: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        try:
            descriptor = 0 if path == Path("-") else os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise RecordingError(f"{path} does not exist.") from error
        self.grows = descriptor != 0 and stat.S_ISREG(os.fstat(descriptor).st_mode)
        threading.Thread(target=self._follow, args=(descriptor,), daemon=True).start()

    def _follow(self, descriptor: int) -> None:
        """Queue bytes as they arrive, and none at the end."""
        while True:
            data = os.read(descriptor, _BYTES)
            if data or not self.grows:
                self._arrived.put((time.monotonic(), data))
            if not data and not self.grows:
                return
            if not data:
                time.sleep(_POLL)

    def take(self, wait: float | None) -> Arrival | None:
        """The events that arrive next, silence after `wait` seconds, or None at the end.

        Args:
            wait: time to wait [s]; None for any time.

        Raises:
            RecordingError: the text does not name its columns, or a line is not an event.
        """
        try:
            at, data = self._arrived.get(timeout=wait)
        except queue.Empty:
            return Arrival(time.monotonic(), _SILENCE)
        if not data:
            return None
        *complete, self._incomplete = (self._incomplete + data).split(b"\n")
        return Arrival(at, self._read([*self._events(complete)]))

    def _events(self, lines: Sequence[bytes]) -> Iterator[str]:
        """Lines that hold an event; the first line of the text tells the layout."""
        for line in lines:
            text = line.decode("utf-8-sig", "replace").strip()
            if not text or text[0] in COMMENTS:
                continue
            if self._layout is None:
                self._layout = TextLayout.of(text, self._columns, self.name)
                if self._layout.has_header:
                    continue
            yield text

    def _read(self, lines: list[str]) -> Recording:
        if not lines:
            return _SILENCE
        assert self._layout is not None
        try:
            return self._layout.read(lines, self._unit, self.name)
        except RecordingError:  # which names the way out, such as another unit
            raise
        except ValueError as error:
            line = next((line for line in lines if not self._is_event(line)), lines[0])
            raise RecordingError(f"{self.name} cannot be read: {line!r} is no event.") from error

    def _is_event(self, line: str) -> bool:
        assert self._layout is not None
        try:
            return len(self._layout.read([line], self._unit, self.name).t) == 1
        except ValueError:
            return False
