"""Events from a TCP or UDP socket of this machine, as AER packets or as text."""

import logging
import math
import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np

from plif_lightning.errors import UserError
from plif_lightning.events.formats.decoding import Decoder, joined, no_events
from plif_lightning.events.formats.text import TextDecoder
from plif_lightning.events.recording import Recording, RecordingError, Sensor

_log = logging.getLogger(__name__)
_HOST = "127.0.0.1"
_PORTION = 2**20
# Datagrams that are decoded at once, and the room for those that come meanwhile [bytes].
_DATAGRAMS = 256
_BUFFER = 2**22
# A packet that is older than the last event by more than this comes from a clock that was reset [us].
_RESET = 1_000_000
# A packet that is further ahead than this, beside the time that has passed, is damaged or from another clock [us].
_JUMP = 60_000_000
_NO_TIME = 1 << 31
# Connections that may wait for the one that is read; it gives way to them after this silence [s].
_WAITING = 16
_SILENCE = 10.0
# So few events at the end of a packet, on another time than those before, wait for what follows.
_UNDECIDED = 8
# Messages about what is damaged.
_SAID = 5
# Events outside the sensor are dropped up to this share of a packet.
_FEW = 0.01


class AerDecoder(Decoder):
    """Decode AER words of 32 bits, as aestream and SPIF send them, little-endian.

    The upper half is x, the lower half y with the polarity in its highest bit. If the highest bit of x is not set, a
    time [us, uint32] follows; otherwise the time is that of arrival. Overflows of the time add 2^32 us; another step
    back is a clock that was reset, or a damaged time, and is left as it is.

    Args:
        name: name of the source, for messages.
        started: time from which those of arrival count, as from `time.monotonic_ns`; default: now.

    Source: https://github.com/aestream/aestream, src/cpp/output/dvs_to_udp.cpp
    """

    title = "AER"

    def __init__(self, name: str, started: int | None = None) -> None:
        super().__init__(name)
        self.clock: tuple[int | None, int] = None, 0  # the last time, and us that overflows add
        self._started = time.monotonic_ns() if started is None else started

    def _header(self, data: bytes, final: bool) -> int | None:
        if len(data) < 4:
            return None
        self._timed = not int.from_bytes(data[:4], "little") & _NO_TIME
        self.event_bytes = 8 if self._timed else 4
        return 0

    def packet(self, data: bytes) -> Recording:
        """Events of a packet by itself, whatever those before were.

        Raises:
            RecordingError: it is no whole number of events; nothing has changed.
        """
        before = self.clock
        self.begun, self.pending = False, b""
        try:
            found = self.decode(data)
            if self.pending or not data:
                raise RecordingError(f"{self.name}: a packet of {len(data)} bytes is no whole number of AER events.")
        except RecordingError:
            self.clock = before
            raise
        return found

    def _events(self, data: bytes, at: int) -> tuple[Recording, int]:
        size = 8 if self._timed else 4
        count = (len(data) - at) // size
        words = np.frombuffer(data, "<u4", count * size // 4, at).reshape(count, size // 4)
        if not count:
            return no_events(), at
        address = words[:, 0]
        if ((address & _NO_TIME == 0) != self._timed).any():
            raise RecordingError(f"{self.name}: some AER words have a time and others have none. They are damaged.")
        if self._timed:
            t = words[:, 1].astype(np.int64)
            last, added_before = self.clock
            steps = np.diff(t, prepend=t[0] if last is None else last)
            jumps = (steps < 0) & (steps + 2**32 <= _JUMP)
            added = added_before + 2**32 * np.cumsum(jumps)
            self.clock = int(t[-1]), int(added[-1])
            t += added
        else:
            t = np.full(count, (time.monotonic_ns() - self._started) // 1000)
        x, y, p = (address >> 16) & 0x7FFF, address & 0x7FFF, (address >> 15) & 1
        return Recording(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8)), at + count * size


def _continues(last: int, part: Recording) -> bool:
    """True if the times of `part` continue from the time `last`."""
    return -_RESET <= int(part.t[0]) - last <= _JUMP


def _is_text(data: bytes) -> bool:
    """True for text, False for AER, whose fourth byte (the upper half of x) is below 0x20 or above 0x7f."""
    return len(data) >= 4 and all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in data[:4])


class EventSocket:
    """Listens on a TCP and a UDP port of this machine. Use it as a context manager.

    What is lost, comes late or is damaged leaves the order of the events intact: it is dropped and counted. Connections
    are read one after another, each to its end; a silent one gives way to one that waits.

    Args:
        port: number of both ports; 0 for any free one.
        sensor: events outside it are dropped; where they are more than one in a hundred of a packet, it is damaged.

    Attributes:
        port: the number.
        late: events that were dropped because later ones had come before.
        damaged: packets and connections that could not be read, and events outside the sensor.

    Raises:
        UserError: the port is taken or not allowed.
    """

    def __init__(self, port: int, sensor: Sensor | None = None) -> None:
        self.late = self.damaged = 0
        self.sensor = sensor
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
        self._started = time.monotonic_ns()
        self._waiting: deque[socket.socket] = deque()
        self._connection: socket.socket | None = None
        self._heard = 0.0  # when the connection sent something last
        self._first = b""
        self._decoder: Decoder | None = None
        self._text: TextDecoder | None = None  # of datagrams
        self._text_header = b""
        self._aer = AerDecoder(f"UDP port {self.port}", self._started)
        self._latest: int | None = None
        self._came = time.monotonic()  # when the last event came
        self._ahead: int | None = None  # time of a packet that was dropped because it is far ahead
        self._shift = 0
        self._is_new = False  # the next events are the first ones of a connection
        self._held = no_events()  # events whose time those that follow will tell from a damaged one

    def __enter__(self) -> "EventSocket":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for one in (self._tcp, self._udp, getattr(self, "_connection", None), *getattr(self, "_waiting", ())):
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
            for key, _ in self._selector.select(0.05):
                for some in self._read(key.fileobj):
                    if len(some.t):
                        yield some
                        since = time.monotonic()
            self._let_the_next_in()
            if idle is not None and time.monotonic() - since >= idle:
                break
        for decoder in (self._decoder, self._text):
            rest = self._accepted(self._flushed(decoder))
            if len(rest.t):
                yield rest
        self._drop_held()

    def _read(self, ready: Any) -> Iterator[Recording]:
        """Events that a socket has."""
        if ready is self._tcp:
            self._accept()
        elif ready is self._udp:
            yield from self._datagrams()
        else:
            yield self._accepted(self._received())

    def _accept(self) -> None:
        """Let a connection wait for its turn."""
        assert self._tcp is not None
        with suppress(OSError):
            connection, _ = self._tcp.accept()
            if len(self._waiting) >= _WAITING:
                self._damage(
                    f"TCP port {self.port}: more than {_WAITING} connections wait, and another one is refused."
                )
                connection.close()
                return
            connection.setblocking(False)
            self._waiting.append(connection)

    def _let_the_next_in(self) -> None:
        """Turn to the next connection when the one before has ended, or is silent."""
        if self._connection is not None and self._waiting and time.monotonic() - self._heard > _SILENCE:
            self._damage(f"TCP port {self.port}: a connection was silent for {_SILENCE:g} s while another waited.")
            self._hang_up()
        if self._connection is None and self._waiting:
            self._connection = self._waiting.popleft()
            self._decoder, self._first, self._is_new = None, b"", True
            self._drop_held()
            self._heard = time.monotonic()
            self._selector.register(self._connection, selectors.EVENT_READ)

    def _drop_held(self) -> None:
        self._drop_damaged(self._held)
        self._held = no_events()

    def _drop_damaged(self, part: Recording) -> None:
        if len(part.t):
            self._damage(f"port {self.port}: {len(part.t)} events with a damaged time are dropped.")

    def _damage(self, message: str) -> None:
        """Count something that cannot be read; only the first few are said."""
        self.damaged += 1
        if self.damaged <= _SAID:
            _log.warning("%s%s", message, " No more of these are said." if self.damaged == _SAID else "")

    def _received(self) -> Recording:
        """Events of the connection; it is closed at its end, and if its bytes cannot be read."""
        assert self._connection is not None
        data = b""
        with suppress(OSError):  # a reset connection
            data = self._connection.recv(_PORTION)
        self._heard = time.monotonic()
        try:
            if not data:
                rest = self._flushed(self._decoder)
                if self._first or (self._decoder is not None and self._decoder.left):
                    self._damage(f"TCP port {self.port}: a connection ended within an event.")
                self._hang_up()
                return rest
            if self._decoder is None:
                self._first += data
                if len(self._first) < 4:
                    return no_events()
                name = f"TCP port {self.port}"
                self._decoder = TextDecoder(name) if _is_text(self._first) else AerDecoder(name, self._started)
                data, self._first = self._first, b""
            return self._decoder.decode(data)
        except RecordingError as error:
            self._damage(f"{error} The connection is closed; another one may follow.")
            self._hang_up()
            return no_events()

    def _flushed(self, decoder: Decoder | None) -> Recording:
        """Events that only the end of a connection, or of all datagrams, completes."""
        try:
            return no_events() if decoder is None else decoder.flush()
        except RecordingError as error:
            self._damage(str(error))
            return no_events()

    def _hang_up(self) -> None:
        assert self._connection is not None
        self._selector.unregister(self._connection)
        self._connection.close()
        self._connection = self._decoder = None
        self._first = b""

    def _datagrams(self) -> Iterator[Recording]:
        """Events of the datagrams that came; those that cannot be read are dropped and counted."""
        assert self._udp is not None
        found = []
        for _ in range(_DATAGRAMS):
            try:
                data = self._udp.recv(2**16)
            except OSError:  # no more for now
                break
            before = self._aer.clock
            try:
                some = self._datagram(data)
            except RecordingError as error:
                self._damage(str(error))
                continue
            found.append(self._accepted(some))
            if not len(found[-1].t):  # a damaged time is no overflow
                self._aer.clock = before
        yield joined(found)

    def _datagram(self, data: bytes) -> Recording:
        if not _is_text(data):
            return self._aer.packet(data)
        lines = data if data.endswith(b"\n") else data + b"\n"  # a datagram holds whole lines
        first = lines[: lines.index(b"\n") + 1]
        if self._text is None:
            self._text = TextDecoder(f"UDP port {self.port}")
            self._text_header = first if re.search(rb"[A-Za-z]", first) else b""
        elif first == self._text_header:
            lines = lines[len(first) :]
        try:
            return self._text.decode(lines)
        except RecordingError:
            if not self._text.begun:
                self._text = None
            else:
                self._text.pending = b""
            raise

    def _accepted(self, recording: Recording) -> Recording:
        """Events within the sensor and in order, on the time of this socket."""
        if not len(recording.t):
            return recording
        if self.sensor is not None:
            inside = (recording.x >= 0) & (recording.y >= 0)
            inside &= (recording.x < self.sensor.width) & (recording.y < self.sensor.height)
            outside = int((~inside).sum())
            if outside > _FEW * len(inside):
                self._damage(f"port {self.port}: {outside} of {len(inside)} events of a packet lie outside the sensor.")
                return no_events()
            if outside:
                self.damaged += outside
                recording = Recording(*(column[inside] for column in recording))
        return self._on_one_time(recording)

    def _on_one_time(self, recording: Recording) -> Recording:
        """Events in order, without those of damaged times: those that others continue that came before them."""
        passed = time.monotonic() - self._came
        if len(self._held.t):
            recording, self._held, passed = joined([self._held, recording]), no_events(), math.inf
        steps = np.diff(recording.t)
        cuts = np.flatnonzero(np.abs(steps) > _RESET) + 1
        if not len(cuts):
            return self._in_order(recording, passed)
        parts = [Recording(*part) for part in zip(*(np.split(column, cuts) for column in recording), strict=True)]
        last = None if self._latest is None or self._is_new else self._latest - self._shift
        found = []
        for i, part in enumerate(parts):
            follows, few = last is None or _continues(last, part), len(part.t) <= _UNDECIDED
            after = parts[i + 1] if i + 1 < len(parts) else None
            leaves = not follows or (few and after is not None and after.t[0] < part.t[-1])
            if leaves and last is not None and after is not None and _continues(last, after):
                self._drop_damaged(part)
                continue
            if not follows and after is None and few:
                self._held = part
                break
            # Within a packet, and where others confirm it, another time is a pause or a clock that was reset.
            found.append(self._in_order(part, passed if i == 0 else math.inf))
            last = int(part.t[-1])
        return joined(found)

    def _in_order(self, recording: Recording, passed: float) -> Recording:
        """Drop events older than an earlier one, and continue from the last event if the clock was reset.

        Args:
            recording: events between which the clock neither jumps nor is reset.
            passed: since an event came [s].
        """
        t = recording.t + self._shift
        first = int(t[0])
        if self._latest is not None:
            if first < self._latest - (0 if self._is_new else _RESET):
                _log.warning("The source's clock was reset: its times go on from the last event.")
                self._shift += self._latest - first
                t = recording.t + self._shift
            elif first > self._latest + _JUMP + 1e6 * passed:
                # A single packet from far ahead is damaged; if the next one comes from there too, the clock is.
                if self._ahead is None or abs(first - self._ahead) > _JUMP:
                    self._ahead = first
                    self._damage(
                        f"port {self.port}: a packet is {(first - self._latest) / 1e6:.0f} s ahead. It is dropped."
                    )
                    return no_events()
                self._shift -= first - self._latest
                t = recording.t + self._shift
        self._is_new, self._ahead, self._came = False, None, time.monotonic()
        start = int(t[0]) if self._latest is None else self._latest
        newest = np.maximum.accumulate(np.maximum(t, start))
        self._latest = int(newest[-1])
        keep = t == newest
        if keep.all():
            return recording._replace(t=t)
        self.late += int((~keep).sum())
        return Recording(*(column[keep] for column in recording._replace(t=t)))
