"""Events from a TCP or UDP socket of this machine, as AER packets or as text."""

import logging
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np

from plif_lightning.errors import UserError
from plif_lightning.events.formats.decoding import Decoder, joined, no_events
from plif_lightning.events.formats.text import TextDecoder
from plif_lightning.events.recording import Recording, RecordingError

_log = logging.getLogger(__name__)
_HOST = "127.0.0.1"
_PORTION = 2**20
# Datagrams that are decoded at once, and the room for those that come meanwhile [bytes].
_DATAGRAMS = 256
_BUFFER = 2**22
# A packet that is older than the last event by more than this comes from a clock that was reset [us].
_RESET = 1_000_000
_NO_TIME = 1 << 31


class AerDecoder(Decoder):
    """Decode AER words of 32 bits, as aestream and SPIF send them, little-endian.

    The upper half is x, the lower half y with the polarity in its highest bit. If the highest bit of x is not set, a
    time [us, uint32] follows; otherwise the time is that of arrival. Overflows of the time add 2^32 us.

    Args:
        name: name of the source, for messages.

    Source: https://github.com/aestream/aestream, src/cpp/output/dvs_to_udp.cpp
    """

    title = "AER"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.event_bytes = 4
        self._timed: bool | None = None
        self._last: int | None = None
        self._added = 0
        self._started = time.monotonic_ns()

    def _header(self, data: bytes, final: bool) -> int | None:
        return 0 if len(data) >= 4 else None

    def _events(self, data: bytes, at: int) -> tuple[Recording, int]:
        if self._timed is None and len(data) - at >= 4:
            self._timed = not int.from_bytes(data[at : at + 4], "little") & _NO_TIME
            self.event_bytes = 8 if self._timed else 4
        size = self.event_bytes or 4
        count = (len(data) - at) // size
        words = np.frombuffer(data, "<u4", count * size // 4, at).reshape(count, size // 4)
        if not count:
            return no_events(), at
        address = words[:, 0]
        if ((address & _NO_TIME == 0) != self._timed).any():
            raise RecordingError(f"{self.name}: some AER words have a time and others have none. They are damaged.")
        if self._timed:
            t = words[:, 1].astype(np.int64)
            jumps = np.diff(t, prepend=t[0] if self._last is None else self._last) < -(2**31)
            added = self._added + 2**32 * np.cumsum(jumps)
            self._last, self._added = int(t[-1]), int(added[-1])
            t += added
        else:
            t = np.full(count, (time.monotonic_ns() - self._started) // 1000)
        x, y, p = (address >> 16) & 0x7FFF, address & 0x7FFF, (address >> 15) & 1
        return Recording(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8)), at + count * size


def _decoder_of(data: bytes, name: str) -> Decoder | None:
    """Decoder of a connection's first bytes: text if they are printable, AER otherwise; None if more are needed."""
    if len(data) < 4:
        return None
    # The fourth byte of AER is the upper half of x, below 0x20 for any sensor, or above 0x7f.
    is_text = all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in data[:4])
    return TextDecoder(name) if is_text else AerDecoder(name)


class EventSocket:
    """Listens on a TCP and a UDP port of this machine. Use it as a context manager.

    What is lost or comes late leaves the order of the events intact: late ones are dropped and counted. A connection
    that closes may be followed by another.

    Args:
        port: number of both ports; 0 for any free one.

    Attributes:
        port: the number.
        late: events that were dropped because later ones had come before.
        damaged: packets and connections that could not be read.

    Raises:
        UserError: the port is taken or not allowed.
    """

    def __init__(self, port: int) -> None:
        self.late = self.damaged = 0
        self._tcp = self._udp = None
        if not 0 <= port < 2**16:
            raise UserError(f"--port must lie in 0..65535, got {port}.")
        try:
            self._tcp = socket.create_server((_HOST, port))
            self.port = int(self._tcp.getsockname()[1])
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with suppress(OSError):
                self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._udp.bind((_HOST, self.port))
        except OSError as error:
            self.close()
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"port {port} of this machine cannot be used ({reason}): pass another --port.") from error
        self._selector = selectors.DefaultSelector()
        for one in (self._tcp, self._udp):
            one.setblocking(False)
            self._selector.register(one, selectors.EVENT_READ)
        self._connection: socket.socket | None = None
        self._first = b""
        self._decoder: Decoder | None = None
        self._text: TextDecoder | None = None  # of datagrams
        self._aer = AerDecoder(f"UDP port {self.port}")
        self._latest: int | None = None
        self._shift = 0

    def __enter__(self) -> "EventSocket":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for one in (self._tcp, self._udp, getattr(self, "_connection", None)):
            if one is not None:
                one.close()
        if hasattr(self, "_selector"):
            self._selector.close()

    def pieces(self, idle: float | None = None) -> Iterator[Recording]:
        """Yield events as they come.

        Args:
            idle: seconds without an event after which this ends; None for never.
        """
        since = time.monotonic()
        while True:
            found = [self._read(key.fileobj) for key, _ in self._selector.select(0.05)]
            some = self._in_order(joined(found))
            if len(some.t):
                yield some
                since = time.monotonic()
            elif idle is not None and time.monotonic() - since >= idle:
                break
        rest = self._in_order(self._rest())
        if len(rest.t):
            yield rest

    def _read(self, ready: Any) -> Recording:
        """Events that a socket has."""
        if ready is self._tcp:
            self._accept()
            return no_events()
        return self._datagrams() if ready is self._udp else self._received()

    def _accept(self) -> None:
        assert self._tcp is not None
        with suppress(OSError):
            connection, _ = self._tcp.accept()
            if self._connection is not None:  # one source at a time
                connection.close()
                return
            connection.setblocking(False)
            self._connection, self._decoder, self._first = connection, None, b""
            self._selector.register(connection, selectors.EVENT_READ)

    def _received(self) -> Recording:
        """Events of the connection; it is closed at its end, and if its bytes cannot be read."""
        assert self._connection is not None
        data = b""
        with suppress(OSError):  # a reset connection
            data = self._connection.recv(_PORTION)
        name = f"TCP port {self.port}"
        try:
            if not data:
                rest = self._rest()
                if self._decoder is not None and self._decoder.left:
                    self.damaged += 1
                    _log.warning("%s", self._decoder.left)
                self._hang_up()
                return rest
            if self._decoder is None:
                self._first += data
                self._decoder = _decoder_of(self._first, name)
                if self._decoder is None:
                    return no_events()
                data, self._first = self._first, b""
            return self._decoder.decode(data)
        except RecordingError as error:
            self.damaged += 1
            _log.warning("%s The connection is closed; another one may follow.", error)
            self._hang_up()
            return no_events()

    def _rest(self) -> Recording:
        """Events that only the end of the connection, or of all datagrams, completes."""
        found = []
        for decoder in (self._decoder, self._text):
            if decoder is not None:
                with suppress(RecordingError):
                    found.append(decoder.flush())
        self._text = None
        return joined(found)

    def _hang_up(self) -> None:
        assert self._connection is not None
        self._selector.unregister(self._connection)
        self._connection.close()
        self._connection = self._decoder = None

    def _datagrams(self) -> Recording:
        """Events of the datagrams that came; those that cannot be read are dropped and counted."""
        assert self._udp is not None
        found = []
        for _ in range(_DATAGRAMS):
            try:
                data = self._udp.recv(2**16)
            except OSError:  # no more for now
                break
            try:
                found.append(self._datagram(data))
            except RecordingError as error:
                self.damaged += 1
                if self.damaged == 1:
                    _log.warning("%s It is dropped, and others like it.", error)
        return joined(found)

    def _datagram(self, data: bytes) -> Recording:
        kind = _decoder_of(data, f"UDP port {self.port}")
        if isinstance(kind, TextDecoder):
            self._text = self._text or kind
            try:
                return self._text.decode(data)
            except RecordingError:
                self._text.pending = b""
                raise
        self._aer.pending = b""
        found = self._aer.decode(data)
        if self._aer.pending or not data:
            raise RecordingError(
                f"UDP port {self.port}: a packet of {len(data)} bytes is no whole number of AER words."
            )
        return found

    def _in_order(self, recording: Recording) -> Recording:
        """Drop events that are older than one before, and go on from the last event where the clock was reset."""
        if not len(recording.t):
            return recording
        t = recording.t + self._shift
        if self._latest is not None and t[0] < self._latest - _RESET:
            _log.warning("The source's clock was reset: its times go on from the last event.")
            self._shift += self._latest - int(t[0])
            t = recording.t + self._shift
        start = int(t[0]) if self._latest is None else self._latest
        newest = np.maximum.accumulate(np.maximum(t, start))
        self._latest = int(newest[-1])
        keep = t == newest
        if keep.all():
            return recording._replace(t=t)
        self.late += int((~keep).sum())
        return Recording(*(column[keep] for column in recording._replace(t=t)))
