"""AEDAT 2.0, 3.1 and 4.0, the files of jAER, cAER and DV."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.formats.decoding import (
    Decoder,
    header_lines,
    joined,
    no_events,
    read_whole,
    require_compression,
    sensor_from,
)
from plif_lightning.events.recording import Recording, RecordingError, Sensor
from plif_lightning.runtime.extras import needed_by

# AEDAT 2.0 of a DVS128: bit 15 marks an external input signal of the camera, not a pixel.
_AEDAT2_SPECIAL = 0x8000
_AEDAT3_HEADER = struct.Struct("<hhiiiiii")
_AEDAT3_POLARITY = 1
_AEDAT3_TYPES = 32  # libcaer has about fifteen
_ENDS = (b"#!END-HEADER", b"#END OF ASCII HEADER")
_DVS128 = Sensor(128, 128)
# AEDAT 4: events, and the largest packet that is unpacked [bytes]; DV writes packets of about 10 ms.
_EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("on", "u1"), ("pad", "V3")])
_LARGEST = 2**28
_AEDAT4 = b"#!AER-DAT4.0\r\n"
# First bytes of compressed data without a packet's header in front: the table of contents, which ends a file.
_TABLES = (0x184D2204, -0x02D04AD8)


class _Lines(Decoder):
    """Decode a header of lines that begin with `#`, the first of which names the version."""

    version: str

    def _header(self, data: bytes, final: bool) -> int | None:
        magic = f"#!AER-DAT{self.version}".encode()
        if not data.startswith(magic[: len(data)]) or (final and len(data) < len(magic)):
            first = data[:20].split(b"\n")[0].decode("ascii", "backslashreplace").strip()
            raise RecordingError(
                f"{self.name} is no AEDAT {self.version} file: it begins with {first!r}, not {magic.decode()!r}."
            )
        return header_lines(data, b"#", _ENDS, final)


class Aedat2Decoder(_Lines):
    """Decode an AEDAT 2.0 file of a DVS128; see `read_aedat2`.

    Args:
        name: name of the source, for messages.
    """

    title, version = "AEDAT 2.0", "2.0"
    event_bytes = 8

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.sensor = _DVS128
        self.read = 0  # records
        self._overflows = 0
        self._last = 0

    def _events(self, data: bytes, at: int) -> tuple[Recording, int]:
        count = (len(data) - at) // 8
        raw = np.frombuffer(data, ">u4", 2 * count, at).reshape(-1, 2)
        return self._decoded(raw), at + 8 * count

    def _decoded(self, raw: NDArray[Any]) -> Recording:
        if not len(raw):
            return no_events()
        address, t = raw[:, 0].astype(np.uint32), raw[:, 1].astype(np.int64)
        if address.max() >= 2 * _AEDAT2_SPECIAL:
            i = int(np.argmax(address >= 2 * _AEDAT2_SPECIAL))
            raise RecordingError(
                f"{self.name}: the address of event {self.read + i} is {address[i]:#x}, which no DVS128 has. "
                "The file is damaged or comes from another sensor."
            )
        # Only a backward jump of more than half the range is an overflow of the counter.
        jumps = np.diff(t, prepend=self._last if self.read else t[0]) < -(2**31)
        wrapped = self._overflows + np.cumsum(jumps)
        self.read, self._last, self._overflows = self.read + len(t), int(t[-1]), int(wrapped[-1])
        t += 2**32 * wrapped
        pixel = address < _AEDAT2_SPECIAL
        address, t = address[pixel], t[pixel]
        x = 127 - ((address >> 1) & 0x7F).astype(np.int16)
        y = ((address >> 8) & 0x7F).astype(np.int16)
        return Recording(t, x, y, 1 - (address & 1).astype(np.int16))


def read_aedat2(path: str | Path) -> Recording:
    """Events of an AEDAT 2.0 file of a DVS128, as in CIFAR10-DVS.

    `#` lines, then address and time [us] of each event, big-endian uint32. Bit 0 of an address is the
    polarity, bits 1-7 are x, bits 8-14 y; bit 15 marks an input signal of the camera, which is skipped. The camera
    counts x from the right and encodes ON as 0: both are inverted, as in the authors' code, so that p = 1 is ON. Times
    are unsigned, and an overflow of the counter adds 2^32 us to later ones.

    Raises:
        RecordingError: another format or sensor, or a truncated file.
    """
    return read_whole(path, Aedat2Decoder(str(path)))


class Aedat3Decoder(_Lines):
    """Decode the polarity events of an AEDAT 3.1 file; see `read_aedat3`.

    Args:
        name: name of the source, for messages.
    """

    title, version = "AEDAT 3.1", "3.1"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._done = 0  # bytes
        self._source: int | None = None

    @property
    def _unit(self) -> str:
        return f"the packet at byte {self._done}"

    def _header(self, data: bytes, final: bool) -> int | None:
        end = super()._header(data, final)
        if end is not None:
            self.sensor = _DVS128 if b"DVS128" in data[:end] else None
            form = re.search(rb"#\s*Format:\s*(\S+)", data[:end])
            if form and form[1].upper() != b"RAW":
                raise RecordingError(f"{self.name}: AEDAT 3.1 in the format {form[1].decode('latin-1')} is not read.")
        return end

    def _events(self, data: bytes, at: int) -> tuple[Recording, int]:
        parts: list[NDArray[Any]] = []
        overflows: list[int] = []
        self._done += at
        while len(data) - at >= _AEDAT3_HEADER.size:
            used = self._packet(data, at, parts, overflows)
            if used is None:
                break
            at, self._done = at + used, self._done + used
        if not parts:
            return no_events(), at
        raw = np.concatenate(parts)
        event, t = raw[:, 0], raw[:, 1].astype(np.int64)
        if any(overflows):
            t += np.repeat(2**31 * np.array(overflows), [len(part) for part in parts])
        valid = (event & 1).astype(bool)
        if not valid.all():
            event, t = event[valid], t[valid]
        return Recording(t, (event >> 17) & 0x7FFF, (event >> 2) & 0x7FFF, (event >> 1) & 1), at

    def _packet(self, data: bytes, at: int, parts: list[NDArray[Any]], overflows: list[int]) -> int | None:
        """Append events and overflows of the packet at byte `at`; its size, or None if it is not complete."""
        kind, source, size, time_at, loops, capacity, number, _ = _AEDAT3_HEADER.unpack_from(data, at)
        if not 0 <= kind < _AEDAT3_TYPES:
            raise RecordingError(f"{self.name}: {self._unit} is of unknown type {kind}. The file is damaged.")
        if size < 1 or capacity < 0 or not 0 <= number <= capacity or loops < 0:
            raise RecordingError(
                f"{self.name}: the packet at byte {self._done} says {number} of {capacity} events of {size} bytes and "
                f"{loops} overflows. The file is damaged."
            )
        at += _AEDAT3_HEADER.size
        if capacity * size > len(data) - at:
            return None
        if kind == _AEDAT3_POLARITY:
            if size != 8 or time_at != 4:
                raise RecordingError(
                    f"{self.name}: the packet at byte {self._done} has events of {size} bytes with their time at byte "
                    f"{time_at}; polarity events have 8 and 4. The file is damaged."
                )
            if self._source not in (None, source):
                raise RecordingError(
                    f"{self.name} holds events of the sources {self._source} and {source}: write each camera's into a "
                    "file of its own."
                )
            self._source = source
            parts.append(np.frombuffer(data, "<u4", count=2 * number, offset=at).reshape(-1, 2))
            overflows.append(loops)
        return _AEDAT3_HEADER.size + capacity * size


def read_aedat3(path: str | Path) -> Recording:
    """Polarity events of an AEDAT 3.1 file, as in DVS128 Gesture.

    `#` lines, then packets: a header of 28 bytes (little-endian: type and source int16; size of an event,
    offset of its time, overflows of the time, capacity, number and valid number of events int32), and
    `capacity` events. A polarity event is data uint32 (bit 0 valid, bit 1 polarity, bits 2-16 y,
    bits 17-31 x) and time uint32 [us], to which the packet's overflows add 2^31 each. Packets of other
    types and invalid events are skipped.

    Raises:
        RecordingError: another format, or a truncated or damaged file.

    Source: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-3.1.html
    """
    return read_whole(path, Aedat3Decoder(str(path)))


class _Buffer:
    """A FlatBuffers table. Every offset in it is a stranger's word, so each access is checked.

    Args:
        data: the buffer, which begins with the offset of the table.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data
        self.root = self._number("<I", 0)
        self.fields = self.root - self._number("<i", self.root)

    def _number(self, kind: str, at: int) -> int:
        if not 0 <= at <= len(self.data) - struct.calcsize(kind):
            raise ValueError("an offset points outside its packet")
        return int(struct.unpack_from(kind, self.data, at)[0])

    def _place(self, field: int) -> int:
        """Where a field lies; 0 if the table does not have it."""
        place = 4 + 2 * field
        offset = self._number("<H", self.fields + place) if place < self._number("<H", self.fields) else 0
        return self.root + offset if offset else 0

    def number(self, field: int, kind: str, default: int) -> int:
        place = self._place(field)
        return self._number(kind, place) if place else default

    def vector(self, field: int, kind: Any) -> NDArray[Any]:
        """Elements of a vector of structs or bytes; empty if the table does not have it."""
        place = self._place(field)
        if not place:
            return np.zeros(0, kind)
        start = place + self._number("<I", place)
        count = self._number("<I", start)
        if count * np.dtype(kind).itemsize > len(self.data) - start - 4:
            raise ValueError(f"{count} events do not fit into its packet")
        return np.frombuffer(self.data, kind, count, start + 4)


def _unpacked(data: memoryview, compression: int) -> bytes | memoryview:
    """Content of a packet. Compression: 0 none, 1 and 2 LZ4, 3 and 4 Zstandard."""
    if compression == 0:
        return data
    if compression in (1, 2):
        with needed_by("a compressed AEDAT 4 recording"):
            import lz4.frame

        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=_LARGEST))
    if compression in (3, 4):
        with needed_by("a compressed AEDAT 4 recording"):
            import zstandard

        reader, parts, room = zstandard.ZstdDecompressor().stream_reader(data), [], _LARGEST
        while room > 0 and (part := reader.read(min(room, 2**24))):
            parts.append(part)
            room -= len(part)
        return b"".join(parts)
    raise ValueError(f"compression {compression} is unknown")


class Aedat4Decoder(Decoder):
    """Decode the first event stream of an AEDAT 4 file; see `read_aedat4`.

    Args:
        name: name of the source, for messages.
    """

    title = "AEDAT 4"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._done = 0  # bytes
        self._end = -1  # byte at which the packets end; -1 if unknown
        self._unpacked = 0  # bytes

    @property
    def _unit(self) -> str:
        return f"the packet at byte {self._done}"

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that reads a packet, and turn its errors into one that names the file."""
        try:
            return function(*arguments)
        except (RecordingError, MemoryError):
            raise
        except Exception as error:  # lz4, zstandard and XML have their own types
            reason = str(error).split("\n")[0][:200]
            raise RecordingError(
                f"{self.name} cannot be read as AEDAT 4: {self._unit} is damaged ({reason})."
            ) from error

    def _header(self, data: bytes, final: bool) -> int | None:
        start = len(_AEDAT4)
        if not data.startswith(_AEDAT4[: len(data)]) or (final and len(data) < start):
            raise RecordingError(f"{self.name} is no AEDAT 4 file: it begins with {data[:start]!r}, not {_AEDAT4!r}.")
        if len(data) < start + 4:
            return None
        (size,) = struct.unpack_from("<I", data, start)
        end = start + 4 + size
        if len(data) < end:
            return None
        self._guarded(self._describe, data[start + 4 : end])
        return end

    def _describe(self, data: bytes) -> None:
        """Read compression, end, streams and sensor from the file's header."""
        header = _Buffer(data)
        self._compression, self._end = header.number(0, "<i", 0), header.number(1, "<q", -1)
        info = ElementTree.fromstring(header.vector(2, "u1").tobytes().decode())
        self._streams = {
            int(str(node.get("name"))): {attribute.get("key"): attribute.text for attribute in node.iter("attr")}
            for node in info.iterfind("./node/node")
        }
        of_events = sorted(number for number, keys in self._streams.items() if keys.get("typeIdentifier") == "EVTS")
        if not of_events:
            raise RecordingError(f"{self.name} has no event stream.")
        self._stream = of_events[0]
        keys = self._streams[self._stream]
        self.sensor = sensor_from(keys.get("sizeY"), keys.get("sizeX"), self.name)

    def _events(self, data: bytes, at: int) -> tuple[Recording, int]:
        parts: list[Any] = []
        view = memoryview(data)
        if not self._done:
            self._done = at
        while len(data) - at >= 8:
            stream, size = struct.unpack_from("<ii", data, at)
            if self._done == self._end or (self._end < 0 and stream not in self._streams):
                self._require_table(view[at:])
                self._end = self._done
                return _of(parts), len(data)  # the table of contents, to the end of the file
            if 0 <= self._end < self._done:
                raise RecordingError(f"{self.name} cannot be read as AEDAT 4: {self._unit} lies behind the last one.")
            if stream not in self._streams or size < 0:
                raise RecordingError(f"{self.name} cannot be read as AEDAT 4: {self._unit} is damaged.")
            if size > len(data) - at - 8:
                break
            if stream == self._stream:
                parts.append(self._guarded(self._packet, view[at + 8 : at + 8 + size]))
            at, self._done = at + 8 + size, self._done + 8 + size
        return _of(parts), at

    def _require_table(self, data: memoryview) -> None:
        """Refuse what is neither a packet nor the table of contents that ends a file."""
        (first,) = struct.unpack_from("<i", data)
        if first not in _TABLES and bytes(data[8:12]) != b"FTAB":
            raise RecordingError(f"{self.name} cannot be read as AEDAT 4: {self._unit} is damaged.")

    def finish(self) -> Recording:
        if self.begun and 0 <= self._end != self._done:
            raise RecordingError(
                f"{self.name} ends at byte {self._done}, and its header says that packets go on to {self._end}. It is "
                "truncated."
            )
        return super().finish()

    def _packet(self, data: memoryview) -> NDArray[Any]:
        content = memoryview(_unpacked(data, self._compression))
        self._unpacked += len(content)
        require_compression(self._unpacked, self._done + len(data), self.name)
        if bytes(content[8:12]) != b"EVTS":
            raise ValueError("it holds no events")
        return _Buffer(content[4:]).vector(0, _EVENT)


def _of(packets: list[NDArray[Any]]) -> Recording:
    """Recording of the events in some packets."""
    return joined([Recording(packet["t"], packet["x"], packet["y"], packet["on"]) for packet in packets])


def read_aedat4(path: str | Path) -> Recording:
    """Events of the first event stream of an AEDAT 4 file, as in tonic's copy of CIFAR10-DVS.

    `#!AER-DAT4.0`, then FlatBuffers: a header with the compression and an XML description of the streams, and packets
    of events (t int64 [us], x and y int16, polarity), compressed with LZ4 or Zstandard.

    Raises:
        RecordingError: another format, a damaged or truncated file, or one without an event stream.

    Source: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-4.0.html
    """
    return read_whole(path, Aedat4Decoder(str(path)))
