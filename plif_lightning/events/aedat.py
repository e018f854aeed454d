"""AEDAT 2.0, 3.1 and 4.0, the files of jAER, cAER and DV."""

import re
import struct
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.recording import Recording, RecordingError, Sensor
from plif_lightning.runtime.program import needed_by

# AEDAT 2.0 of a DVS128: bit 15 marks an external input signal of the camera, not a pixel.
_AEDAT2_SPECIAL = 0x8000
_PACKET_3 = struct.Struct("<hhiiiiii")
_POLARITY = 1
_TYPES = 32  # of packets in AEDAT 3.1; libcaer has about fifteen
_ENDS = (b"#!END-HEADER", b"#END OF ASCII HEADER")
_DVS128 = Sensor(128, 128)
_AEDAT4 = b"#!AER-DAT4.0\r\n"
_EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("on", "u1"), ("pad", "V3")])
# First bytes of the table of contents that ends an AEDAT 4 file, compressed with LZ4 or Zstandard.
_TABLES = (0x184D2204, -0x02D04AD8)


def _after_header(data: bytes, path: Path) -> int:
    """Length of the leading lines that begin with `#`, up to the line that ends the header at most."""
    at = 0
    while data.startswith(b"#", at):
        line_end = data.find(b"\n", at) + 1
        if line_end == 0:
            raise RecordingError(f"{path} ends within its header. It is truncated.")
        if data[at:line_end].strip().upper() in _ENDS:
            return line_end
        at = line_end
    return at


def read_aedat2(path: Path) -> Recording:
    """Events of an AEDAT 2.0 file of a DVS128, as in CIFAR10-DVS.

    `#` lines, then address and time [us] of each event, big-endian uint32. Bit 0 of an address is the
    polarity, bits 1-7 are x, bits 8-14 y; bit 15 marks an input signal of the camera, which is skipped. The camera
    counts x from the right and encodes ON as 0: both are inverted, as in the authors' code, so that p = 1 is ON. Times
    are unsigned, and an overflow of the counter adds 2^32 us to later ones.
    """
    data = path.read_bytes()
    begin = _after_header(data, path)
    if (len(data) - begin) % 8:
        raise RecordingError(f"{path} ends within an event of 8 bytes. It is truncated.")
    raw = np.frombuffer(data, ">u4", offset=begin).reshape(-1, 2)
    address, t = raw[:, 0].astype(np.uint32), raw[:, 1].astype(np.int64)
    if address.max(initial=0) >= 2 * _AEDAT2_SPECIAL:
        i = int(np.argmax(address >= 2 * _AEDAT2_SPECIAL))
        raise RecordingError(
            f"{path}: the address of event {i} is {address[i]:#x}, which no DVS128 has. "
            "The file is damaged or comes from another sensor."
        )
    # Only a backward jump of more than half the range is an overflow of the counter.
    t += 2**32 * np.cumsum(np.diff(t, prepend=t[:1]) < -(2**31))
    pixel = address < _AEDAT2_SPECIAL
    address, t = address[pixel], t[pixel]
    x = 127 - ((address >> 1) & 0x7F).astype(np.int16)
    y = ((address >> 8) & 0x7F).astype(np.int16)
    return Recording(t, x, y, 1 - (address & 1).astype(np.int16))


def read_aedat3(path: Path) -> Recording:
    """Polarity events of an AEDAT 3.1 file, as in DVS128 Gesture.

    `#` lines, then packets: a header of 28 bytes (little-endian: type and source int16; size of an event,
    offset of its time, overflows of the time, capacity, number and valid number of events int32), and
    `capacity` events. A polarity event is data uint32 (bit 0 valid, bit 1 polarity, bits 2-16 y,
    bits 17-31 x) and time uint32 [us], to which the packet's overflows add 2^31 each. Packets of other
    types and invalid events are skipped.

    Source: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-3.1.html
    """
    data = path.read_bytes()
    at = _after_header(data, path)
    parts, overflows = [np.zeros((0, 2), np.uint32)], [0]
    while at < len(data):
        if len(data) - at < _PACKET_3.size:
            raise RecordingError(f"{path} ends within the packet at byte {at}. It is truncated.")
        kind, _, size, time_at, loops, capacity, number, _ = _PACKET_3.unpack_from(data, at)
        is_valid = 0 <= kind < _TYPES and size >= 1 and 0 <= number <= capacity and loops >= 0
        if not is_valid or (kind == _POLARITY and (size, time_at) != (8, 4)):
            raise RecordingError(
                f"{path}: the packet at byte {at} says type {kind}, {number} of {capacity} events of {size} bytes and "
                f"{loops} overflows. The file is damaged."
            )
        begin, end = at + _PACKET_3.size, at + _PACKET_3.size + capacity * size
        if end > len(data):
            raise RecordingError(f"{path} ends within the packet at byte {at}. It is truncated.")
        if kind == _POLARITY:
            parts.append(np.frombuffer(data, "<u4", 2 * number, begin).reshape(-1, 2))
            overflows.append(loops)
        at = end
    raw = np.concatenate(parts)
    event, t = raw[:, 0], raw[:, 1].astype(np.int64)
    if any(overflows):
        t += np.repeat(2**31 * np.array(overflows), [len(times_of_packet) for times_of_packet in parts])
    valid = (event & 1).astype(bool)
    if not valid.all():
        event, t = event[valid], t[valid]
    return Recording(t, (event >> 17) & 0x7FFF, (event >> 2) & 0x7FFF, (event >> 1) & 1)


class _Table:
    """A FlatBuffers table. Every offset in it is a stranger's word, so each access is checked.

    Args:
        data: the buffer, which begins with the offset of the table.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data
        self.root = self._number("<I", 0)
        self.fields = self.root - self._number("<i", self.root)

    def _number(self, kind: str, at: int) -> int:
        if at < 0:  # from the end of the buffer, to Python
            raise ValueError("an offset points outside its packet")
        return int(struct.unpack_from(kind, self.data, at)[0])

    def _slot(self, field: int) -> int:
        """Position of a field in the buffer; 0 if the table does not have it."""
        slot = 4 + 2 * field
        offset = self._number("<H", self.fields + slot) if slot < self._number("<H", self.fields) else 0
        return self.root + offset if offset else 0

    def number(self, field: int, kind: str, default: int) -> int:
        slot = self._slot(field)
        return self._number(kind, slot) if slot else default

    def vector(self, field: int, kind: Any) -> NDArray[Any]:
        """Elements of a vector of structs or bytes; empty if the table does not have it."""
        slot = self._slot(field)
        if not slot:
            return np.zeros(0, kind)
        start = slot + self._number("<I", slot)
        return np.frombuffer(self.data, kind, self._number("<I", start), start + 4)


class _Header(NamedTuple):
    """Header of an AEDAT 4 file: where its packets begin and end (-1 if unknown), and its first event stream."""

    begin: int
    end: int
    compression: int
    streams: set[int]
    events: int
    sensor: Sensor | None


def _header_4(data: bytes, path: Path) -> _Header:
    start = len(_AEDAT4)
    if not data.startswith(_AEDAT4):
        raise RecordingError(f"{path} is no AEDAT 4 file: it begins with {data[:start]!r}.")
    begin = start + 4 + struct.unpack_from("<I", data, start)[0]
    table = _Table(data[start + 4 : begin])
    info = ElementTree.fromstring(table.vector(2, "u1").tobytes().decode())
    streams = {
        int(str(node.get("name"))): {attribute.get("key"): attribute.text for attribute in node.iter("attr")}
        for node in info.iterfind("./node/node")
    }
    of_events = sorted(number for number, keys in streams.items() if keys.get("typeIdentifier") == "EVTS")
    if not of_events:
        raise RecordingError(f"{path} has no event stream.")
    width, height = (streams[of_events[0]].get(key) for key in ("sizeX", "sizeY"))
    sensor = Sensor(int(height), int(width)) if height and width else None
    return _Header(begin, table.number(1, "<q", -1), table.number(0, "<i", 0), {*streams}, of_events[0], sensor)


def sensor_in_aedat4(path: Path) -> Sensor | None:
    """Sensor that the header of an AEDAT 4 file names."""
    with path.open("rb") as file:
        start = file.read(len(_AEDAT4) + 4)
        return _header_4(start + file.read(int.from_bytes(start[-4:], "little")), path).sensor


def _unpack(data: memoryview, compression: int) -> bytes | memoryview:
    """Content of a packet. Compression: 0 none, 1 and 2 LZ4, 3 and 4 Zstandard."""
    if compression == 0:
        return data
    with needed_by("a compressed AEDAT 4 recording"):
        import lz4.frame
        import zstandard

    if compression in (1, 2):
        return bytes(lz4.frame.decompress(data))
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def read_aedat4(path: Path) -> Recording:
    """Events of the first event stream of an AEDAT 4 file, as in tonic's copy of CIFAR10-DVS.

    `#!AER-DAT4.0`, then FlatBuffers: a header with the compression and an XML description of the streams, and packets
    of events (t int64 [us], x and y int16, polarity), compressed with LZ4 or Zstandard. A table of contents ends it.

    Source: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-4.0.html
    """
    data = path.read_bytes()
    header = _header_4(data, path)
    end = len(data) if header.end < 0 else header.end
    if end < header.begin:
        raise RecordingError(f"{path}: its header says that packets end at byte {end}, within it. It is damaged.")
    packets = [np.zeros(0, _EVENT)]
    view, at = memoryview(data), header.begin
    while at < end:
        stream, size = struct.unpack_from("<ii", data, at)
        if header.end < 0 and (stream in _TABLES or data[at + 8 : at + 12] == b"FTAB"):
            break
        if stream not in header.streams or size < 0 or at + 8 + size > min(end, len(data)):
            raise RecordingError(f"{path}: the packet at byte {at} is damaged, or the file is truncated.")
        if stream == header.events:
            content = memoryview(_unpack(view[at + 8 : at + 8 + size], header.compression))
            packets.append(_Table(content[4:]).vector(0, _EVENT))
        at += 8 + size
    return Recording(*(np.concatenate([packet[name] for packet in packets]) for name in ("t", "x", "y", "on")))


def sensor_in_aedat(path: Path) -> Sensor | None:
    """Sensor of an AEDAT 2.0 or 3.1 file, where it is that of a DVS128."""
    with path.open("rb") as file:
        lines = b"".join(file.readlines(2**16))
    is_dvs128 = lines.startswith(b"#!AER-DAT2") or re.search(rb"^#.*DVS128", lines, re.MULTILINE)
    return _DVS128 if is_dvs128 else None
