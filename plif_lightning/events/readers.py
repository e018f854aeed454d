"""Readers of event-camera files: each loads a whole file into a checked `Recording` without looping over events.

Every reader takes a path and raises a RecordingError that names it if the file is invalid.
"""

import csv
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.recording import Recording, RecordingError, recording_of

# N-MNIST: an event at this y only marks an overflow of the clock.
_OVERFLOW_Y = 240
_OVERFLOW_TIME = 2**13
# AEDAT 2.0 of a DVS128: bit 15 marks an external input signal of the camera, not a pixel.
_AEDAT2_SPECIAL = 0x8000
_LONGEST_HEADER = 2**20  # bytes
_PORTION = 2**20  # events
_AEDAT3_HEADER = struct.Struct("<hhiiiiii")
_AEDAT3_POLARITY = 1
# Largest accepted compression ratio; recordings of real cameras reach 3 to 20.
_MAX_COMPRESSION = 100


@contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    try:
        with Path(path).open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise RecordingError(f"{path} does not exist.") from error
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}.") from error


def _content(path: str | Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def read_nmnist(path: str | Path) -> Recording:
    """Events of an N-MNIST file (also N-Caltech101): 40 bits each, big-endian.

    x (8 bits), y (8), polarity (1), time (23) [us]. y = 240 marks an overflow of the clock: it is not an event, and
    adds 2^13 us to every later time (as in the data set's own Matlab reader).

    Raises:
        RecordingError: the file's size is not a multiple of 5 bytes.

    Source: Orchard et al. 2015.
    """
    data = _content(path)
    if len(data) % 5:
        raise RecordingError(
            f"{path}: {len(data)} bytes are not a whole number of 5-byte events. "
            "The file is truncated, or no N-MNIST recording."
        )
    raw = np.frombuffer(data, np.uint8).reshape(-1, 5)
    x, y = raw[:, 0], raw[:, 1]
    t = raw[:, 2:].astype(np.int64) @ np.array([2**16, 2**8, 1])
    p = raw[:, 2] >> 7
    t &= 2**23 - 1
    marker = y == _OVERFLOW_Y
    if marker.any():
        t += _OVERFLOW_TIME * np.cumsum(marker)
        keep = ~marker
        t, x, y, p = t[keep], x[keep], y[keep], p[keep]
    return Recording(t, x, y, p)


def _header(data: bytes, path: str | Path, version: str) -> int:
    """Offset of the data after the `#` lines of an AEDAT file, whose first line must name the version."""
    magic = f"#!AER-DAT{version}".encode()
    if not data.startswith(magic):
        first = data[:20].split(b"\n")[0].decode("ascii", "backslashreplace").strip()
        raise RecordingError(f"{path} is no AEDAT {version} file: it begins with {first!r}, not {magic.decode()!r}.")
    at = 0
    while data.startswith(b"#", at):
        line_end = data.find(b"\n", at) + 1
        if line_end == 0:
            raise RecordingError(f"{path}: its header is incomplete. The file is truncated.")
        ended = data[at:line_end].strip().upper() in (b"#!END-HEADER", b"#END OF ASCII HEADER")
        at = line_end
        if ended:
            break
    return at


class Aedat2Decoder:
    """Decode an AEDAT 2.0 file chunk by chunk.

    Args:
        name: name of the file, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.read = 0  # records
        self._overflows = 0
        self._last = 0

    def decode(self, data: bytes) -> Recording:
        """Events of a whole number of records; see `read_aedat2`.

        Raises:
            RecordingError: an address cannot come from a DVS128.
        """
        raw = np.frombuffer(data, ">u4").reshape(-1, 2)
        if not len(raw):
            return _no_events()
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


class Aedat2Stream:
    """Read complete events from a growing AEDAT 2.0 file or a pipe.

    Args:
        file: opened in binary mode.
        name: name of the file, for messages.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._decoder = Aedat2Decoder(name)
        self._header_is_read = False
        self.pending = b""  # bytes of an incomplete event or header
        self.ended = False  # True if the last `read` got no bytes

    @property
    def left(self) -> str:
        """Message about an incomplete event or header; empty if everything is complete."""
        if not self.pending:
            return ""
        if not self._header_is_read:
            return f"{self._name} ends within its header, before the first event."
        return f"{self._name} ends within an event: {len(self.pending)} of its 8 bytes came."

    def read(self) -> Recording:
        """Events completed since the last call; the bytes of an incomplete one are kept for the next call.

        Raises:
            RecordingError: the file is not AEDAT 2.0, or an address cannot come from a DVS128.
        """
        # On a pipe, `read1` returns the bytes available instead of blocking for more.
        read = getattr(self._file, "read1", self._file.read)
        new = read(8 * _PORTION) or b""
        self.ended = not new
        data = self.pending + new
        if not self._header_is_read:
            at = 0
            while data.startswith(b"#", at) and b"\n" in data[at:]:
                at = data.index(b"\n", at) + 1
            # The first byte of an event is zero, so it cannot be mistaken for a header line.
            if at == len(data) or data.startswith(b"#", at):
                if len(data) > _LONGEST_HEADER:
                    raise RecordingError(f"{self._name} is no AEDAT 2.0: its header does not end.")
                self.pending = data
                return _no_events()
            at = _header(data, self._name, "2.0")
            self._header_is_read, data = True, data[at:]
        whole = len(data) // 8 * 8
        self.pending = data[whole:]
        return self._decoder.decode(data[:whole])


def read_aedat2(path: str | Path) -> Recording:
    """Events of an AEDAT 2.0 file of a DVS128, as in CIFAR10-DVS.

    `#` lines, then address and time [us] of each event, big-endian uint32. Bit 0 of an address is the
    polarity, bits 1-7 are x, bits 8-14 y; bit 15 marks an input signal of the camera, which is skipped. The camera
    counts x from the right and encodes ON as 0: both are inverted, as in the authors' code, so that p = 1 is ON. Times
    are unsigned, and an overflow of the counter adds 2^32 us to later ones.

    Raises:
        RecordingError: another format or sensor, or a truncated file.
    """
    with _opened(path) as file:
        at = _header(file.read(_LONGEST_HEADER), path, "2.0")
        size = file.seek(0, os.SEEK_END) - at
        file.seek(at)
        if size % 8:
            raise RecordingError(
                f"{path}: {size} bytes after the header are not a whole number of 8-byte events. The file is truncated."
            )
        columns: list[NDArray[Any]] = [np.empty(size // 8, kind) for kind in (np.int64, np.int16, np.int16, np.int16)]
        decoder, kept = Aedat2Decoder(str(path)), 0
        # Decode in chunks, so that memory stays little above that of the events themselves.
        while len(raw := file.read(8 * _PORTION)):
            some = decoder.decode(raw)
            here = slice(kept, kept + len(some.t))
            for column, values in zip(columns, some, strict=True):
                column[here] = values
            kept += len(some.t)
    return Recording(*(column[:kept] for column in columns))


def _packet(data: bytes, at: int, path: str | Path) -> tuple[int, int, int, int, int, int]:
    """Checked header of the packet at byte `at`: type, event size, offset of the time, overflows, capacity, number."""
    if len(data) - at < _AEDAT3_HEADER.size:
        raise RecordingError(f"{path}: the packet at byte {at} has an incomplete header. The file is truncated.")
    kind, _, size, time_at, overflows, capacity, number, _ = _AEDAT3_HEADER.unpack_from(data, at)
    if size < 1 or capacity < 0 or not 0 <= number <= capacity or overflows < 0:
        raise RecordingError(
            f"{path}: the packet at byte {at} says {number} of {capacity} events of {size} bytes and {overflows} "
            "overflows. The file is damaged."
        )
    return kind, size, time_at, overflows, capacity, number


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
    data = _content(path)
    at = _header(data, path, "3.1")
    parts = []
    while at < len(data):
        kind, size, time_at, overflows, capacity, number = _packet(data, at, path)
        at += _AEDAT3_HEADER.size
        if capacity * size > len(data) - at:
            raise RecordingError(
                f"{path}: the packet at byte {at} has {capacity} events of {size} bytes, but only {len(data) - at} "
                "bytes follow. The file is truncated."
            )
        if kind == _AEDAT3_POLARITY:
            if size != 8 or time_at != 4:
                raise RecordingError(
                    f"{path}: the packet at byte {at} has events of {size} bytes with their time at byte {time_at}; "
                    "polarity events have 8 and 4. The file is damaged."
                )
            raw = np.frombuffer(data, "<u4", count=2 * number, offset=at).reshape(-1, 2)
            parts.append((raw[:, 0], raw[:, 1].astype(np.int64) + overflows * 2**31))
        at += capacity * size
    if not parts:
        return _no_events()
    event, t = (np.concatenate(column) for column in zip(*parts, strict=True))
    valid = (event & 1).astype(bool)
    if not valid.all():
        event, t = event[valid], t[valid]
    return Recording(t, (event >> 17) & 0x7FFF, (event >> 2) & 0x7FFF, (event >> 1) & 1)


def _no_events() -> Recording:
    nothing = np.zeros(0, np.int16)
    return Recording(np.zeros(0, np.int64), nothing, nothing, nothing)


def _aedat4_packets(path: str | Path) -> list[Any]:
    """Structured arrays of events in the first event stream of an AEDAT 4 file."""
    import aedat

    try:
        decoder = aedat.Decoder(Path(path))
        streams = sorted(number for number, s in decoder.id_to_stream().items() if s["type"] == "events")
        if not streams:
            raise RecordingError(f"{path} has no event stream.")
        return [packet["events"] for packet in decoder if packet["stream_id"] == streams[0]]
    except (RecordingError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        # The decoder is written in Rust, and its panics do not derive from Exception.
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise RecordingError(f"{path} cannot be read as AEDAT 4 ({reason}). It is damaged or another file.") from error


def read_aedat4(path: str | Path) -> Recording:
    """Events of the first event stream of an AEDAT 4 file, as in tonic's copy of CIFAR10-DVS.

    Decoded by the `aedat` package, which trusts the sizes in a file, so a damaged file can crash the process. The event
    store therefore reads these files in separate processes.

    Raises:
        RecordingError: another format, a damaged file, or one without an event stream.
    """
    packets = _aedat4_packets(path)
    if not packets:
        return _no_events()
    t, x, y, p = (np.concatenate([packet[name] for packet in packets]) for name in packets[0].dtype.names)
    return Recording(t.astype(np.int64), x, y, p.astype(np.int16))


@contextmanager
def _numpys_errors(path: str | Path, what: str) -> Iterator[None]:
    """Turn NumPy's errors into a RecordingError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise RecordingError(f"{path} does not exist.") from error
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise many types
        reason = str(error).split("\n")[0][:200]
        if "allow_pickle" in str(error):  # NumPy's own message suggests allowing pickles
            reason = "it holds Python objects, which could run any code"
        raise RecordingError(f"{path} cannot be read as {what} ({reason}). It is truncated or damaged.") from error


def _require_plausible(path: str | Path) -> None:
    """Refuse an archive that would exhaust memory: its compression ratio is too high for events.

    Raises:
        RecordingError: the ratio exceeds the limit, and the content 1 GiB.
    """
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        packed = sum(info.compress_size for info in archive.infolist())
        unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > max(2**30, _MAX_COMPRESSION * packed):
            raise RecordingError(
                f"{path} has {packed / 2**20:,.0f} MiB and would unpack to {unpacked / 2**30:,.0f} GiB, far more "
                "than events can: it is not read."
            )


def read_gesture_npy(path: str | Path) -> Recording:
    """Events of a clip of tonic's pre-cut DVS128 Gesture: an array [N, 4] of x, y, polarity and time [ms].

    Raises:
        RecordingError: another format, or a truncated file.
    """
    with _numpys_errors(path, "a NumPy array"):
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "iufb":
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive of arrays"
        raise RecordingError(f"{path} must hold numbers [N, 4] (x, y, polarity, time in ms), got {found}.")
    limit = np.float64(2**52)
    # False for NaN, too; `abs` of the smallest integer would be negative.
    if not ((array > -limit) & (array < limit)).all():
        raise RecordingError(f"{path} holds values that are no coordinates or times. The file is damaged.")
    if array.dtype.kind == "f" and (array[:, :3] != np.floor(array[:, :3])).any():
        raise RecordingError(f"{path} holds coordinates or polarities that are no whole numbers. The file is damaged.")
    x, y, p = np.asarray(array[:, :3]).T.astype(np.int64)
    t = np.rint(1000 * np.asarray(array[:, 3], np.float64)).astype(np.int64)
    return Recording(t, x, y, p)


def read_numpy(path: str | Path) -> Recording:
    """Events of a .npz with the arrays x, y, t [us] and p, or of a .npy with a structured array of these fields.

    Polarities are 0 and 1, -1 and 1, or booleans.

    Raises:
        RecordingError: another format, or a truncated file.
    """
    _require_plausible(path)
    with _numpys_errors(path, "NumPy arrays"):
        loaded = np.load(path, allow_pickle=False)
        with loaded if isinstance(loaded, np.lib.npyio.NpzFile) else nullcontext():
            names = list(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else list(loaded.dtype.names or ())
            wanted = {"x": "x", "y": "y", "t": "t", "p": "p" if "p" in names else "polarity"}
            columns = {column: np.asarray(loaded[name]) for column, name in wanted.items() if name in names}
    if missing := [name for name in ("x", "y", "t", "p") if name not in columns]:
        raise RecordingError(
            f"{path} must hold x, y, t and p (.npz: four arrays; .npy: a structured array), but lacks "
            f"{', '.join(missing)}."
        )
    return recording_of(columns["x"], columns["y"], columns["t"], columns["p"], name=str(path))


# Suffixes of files that hold one recording.
SUFFIXES = (".aedat", ".aedat4", ".bin", ".npy", ".npz")


def read_any(path: str | Path) -> Recording:
    """Events of a file; the suffix (see SUFFIXES) selects the format, for .aedat together with the first line.

    Raises:
        RecordingError: another format, or a damaged file.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".aedat":
        with _opened(path) as file:
            first = file.read(len("#!AER-DAT3"))
        versions = {b"#!AER-DAT2": read_aedat2, b"#!AER-DAT3": read_aedat3, b"#!AER-DAT4": read_aedat4}
        if first not in versions:
            raise RecordingError(f"{path} begins with {first!r}: it is no AEDAT 2.0, 3.1 or 4.0.")
        return versions[first](path)
    formats = {".aedat4": read_aedat4, ".bin": read_nmnist, ".npy": read_numpy, ".npz": read_numpy}
    if suffix not in formats:
        raise RecordingError(f"{path} must end in one of {', '.join(SUFFIXES)}.")
    return formats[suffix](path)


class Trial(NamedTuple):
    """A labelled part of a recording: class from 0, start and end time [us]."""

    label: int
    start: int
    end: int


def _trial(line: Sequence[str], classes: int, place: str) -> Trial:
    """Trial from a line of a label table; `place` is the line, for messages."""
    if len(line) != 3 or not all(re.fullmatch(r"\s*\d{1,18}\s*", cell, re.ASCII) for cell in line):
        raise RecordingError(f"{place}: expected class, start and end [us], got {','.join(line)!r}.")
    label, start, end = map(int, line)
    if not 1 <= label <= classes:
        raise RecordingError(f"{place}: class {label} is unknown; expected 1..{classes}.")
    if end <= start:
        raise RecordingError(f"{place}: the trial ends at {end} us, before its start at {start} us.")
    return Trial(label - 1, start, end)


def read_trials(path: str | Path, classes: int) -> list[Trial]:
    """Trials of a DVS128 Gesture label table: lines `class,startTime_usec,endTime_usec`, class from 1.

    A class may occur twice. Trials may overlap slightly, as in user22_led_labels.csv.

    Raises:
        RecordingError: the table is missing or malformed, names an unknown class, or is not sorted by start time.
    """
    try:
        lines = list(csv.reader(_content(path).decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(f"{path} is no table of labels ({error}).") from error
    if not lines or [cell.strip() for cell in lines[0]] != ["class", "startTime_usec", "endTime_usec"]:
        raise RecordingError(f"{path} must begin with the line class,startTime_usec,endTime_usec.")
    trials: list[Trial] = []
    latest = 0
    for number, line in enumerate(lines[1:], start=2):
        if not "".join(line).strip():
            continue
        trial = _trial(line, classes, f"{path}, line {number}")
        if trial.start < latest:
            raise RecordingError(f"{path}, line {number}: the trials are not in order of their start.")
        latest = trial.start
        trials.append(trial)
    if not trials:
        raise RecordingError(f"{path} lists no trial.")
    return trials


def cut(recording: Recording, trials: Sequence[Trial], path: Path) -> list[Recording]:
    """Events of each trial, start <= t < end.

    Raises:
        RecordingError: a trial holds no event, so table and recording do not match.
    """
    t = recording.t
    ordered = not (t[1:] < t[:-1]).any()
    parts = []
    for trial in trials:
        inside = slice(*np.searchsorted(t, trial[1:])) if ordered else (t >= trial.start) & (t < trial.end)
        parts.append(Recording(*(column[inside] for column in recording)))
        if len(parts[-1].t) == 0:
            raise RecordingError(
                f"{path}: no event lies between {trial.start} and {trial.end} us, where its label table has class "
                f"{trial.label + 1}. The recording is truncated, or the table belongs to another one."
            )
    return parts


# `RawFile.read` functions of the event store: (label, recording) of everything in some files. Defined at module level,
# so that reader processes can unpickle them.


def single(reader: Callable[[Path], Recording], files: tuple[Path, ...], label: int) -> list[tuple[int, Recording]]:
    """Read a file that holds one recording."""
    return [(label, reader(files[0]))]


def gesture_trials(files: tuple[Path, ...], classes: int) -> list[tuple[int, Recording]]:
    """Read a DVS128 Gesture recording and its label table: one recording per trial, in the table's order."""
    path, table = files
    trials = read_trials(table, classes)
    return [(t.label, part) for t, part in zip(trials, cut(read_aedat3(path), trials, path), strict=True)]
