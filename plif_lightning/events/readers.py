"""Readers of event-camera files: each loads a whole file into a checked `Recording` without a Python loop over events.

Every reader takes a path and raises a RecordingError that names it if the file is invalid. `formats` holds them.
"""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from plif_lightning.events.formats.aedat import (
    Aedat2Decoder,
    Aedat3Decoder,
    Aedat4Decoder,
    read_aedat2,
    read_aedat3,
    read_aedat4,
)
from plif_lightning.events.formats.arrays import read_gesture_npy, read_numpy
from plif_lightning.events.formats.decoding import LONGEST_HEADER, Decoder, content, no_events, opened
from plif_lightning.events.formats.hdf5 import read_hdf5, sensor_in
from plif_lightning.events.formats.nmnist import read_nmnist
from plif_lightning.events.formats.prophesee import DatDecoder, RawDecoder, read_dat, read_raw
from plif_lightning.events.formats.ros import read_rosbag
from plif_lightning.events.formats.text import TextDecoder, is_table, read_text
from plif_lightning.events.recording import Recording, RecordingError, Sensor

__all__ = [
    "read_aedat2",
    "read_aedat3",
    "read_aedat4",
    "read_any",
    "read_dat",
    "read_gesture_npy",
    "read_hdf5",
    "read_nmnist",
    "read_numpy",
    "read_raw",
    "read_rosbag",
    "read_text",
]

_AEDAT: dict[bytes, Callable[[str], Decoder]] = {
    b"#!AER-DAT2": Aedat2Decoder,
    b"#!AER-DAT3": Aedat3Decoder,
    b"#!AER-DAT4": Aedat4Decoder,
}
_READERS: dict[str, Callable[[str | Path], Recording]] = {
    ".aedat4": read_aedat4,
    ".bag": read_rosbag,
    ".bin": read_nmnist,
    ".csv": read_text,
    ".dat": read_dat,
    ".db3": read_rosbag,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".mcap": read_rosbag,
    ".npy": read_numpy,
    ".npz": read_numpy,
    ".raw": read_raw,
    ".txt": read_text,
}
_READERS_OF_AEDAT: dict[Callable[[str], Decoder], Callable[[str | Path], Recording]] = {
    Aedat2Decoder: read_aedat2,
    Aedat3Decoder: read_aedat3,
    Aedat4Decoder: read_aedat4,
}
_DECODERS: dict[str, Callable[[str], Decoder]] = {
    ".aedat4": Aedat4Decoder,
    ".csv": TextDecoder,
    ".dat": DatDecoder,
    ".raw": RawDecoder,
    ".txt": TextDecoder,
}
# Bytes that are read at once from a stream.
_PORTION = 2**23
# Suffixes of files that hold one recording.
SUFFIXES = tuple(sorted((".aedat", *_READERS)))
# Suffixes of files whose library may crash on a damaged file, or exhaust memory.
_HDF5 = (".h5", ".hdf5")
TRUSTING = (*_HDF5, ".bag", ".db3", ".mcap")


def _aedat_of(path: str | Path) -> Callable[[str], Decoder]:
    """Decoder of an .aedat file, by its first line."""
    with opened(path) as file:
        first = file.read(len("#!AER-DAT3"))
    if first not in _AEDAT:
        raise RecordingError(f"{path} begins with {first!r}: it is no AEDAT 2.0, 3.1 or 4.0.")
    return _AEDAT[first]


def read_any(path: str | Path) -> Recording:
    """Events of a file; the suffix (see SUFFIXES) selects the format, for .aedat together with the first line.

    Raises:
        RecordingError: another format, or a damaged file.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".aedat":
        return _READERS_OF_AEDAT[_aedat_of(path)](path)
    if suffix not in _READERS:
        raise RecordingError(f"{path} must end in one of {', '.join(SUFFIXES)}.")
    return _READERS[suffix](path)


def is_recording(path: str | Path) -> bool:
    """True if a file's suffix is one of SUFFIXES and, where it is .csv or .txt, its first lines are those of events."""
    suffix = Path(path).suffix.lower()
    return suffix in SUFFIXES and (suffix not in (".csv", ".txt") or is_table(path))


def sensor_of(path: str | Path) -> Sensor | None:
    """Sensor that a file names in its header; None if its format or this file does not name one.

    Raises:
        RecordingError: the header is damaged or of another format.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _HDF5:
        return sensor_in(path)
    kind = _aedat_of(path) if suffix == ".aedat" else _DECODERS.get(suffix)
    if kind is None:
        return None
    decoder = kind(str(path))
    with opened(path) as file:
        while not decoder.begun and (piece := file.read(2**12)):
            if len(decoder.pending) > LONGEST_HEADER:
                break
            decoder.decode(piece)
        if not decoder.begun:
            decoder.finish()
    return decoder.sensor


def own_sensor(path: Path) -> Sensor:
    """Sensor that a file names, for a data set of several.

    Raises:
        RecordingError: it names none.
    """
    own = sensor_of(path)
    if own is None:
        raise RecordingError(
            f"{path} does not name its sensor, and others here are of several: it cannot be brought to their size. "
            "Keep recordings of one sensor, or name it in the file: text may begin with `% geometry:WIDTH,HEIGHT`."
        )
    return own


def of_sensor(path: str | Path, sensor: Sensor) -> Recording:
    """Events of a file whose sensor, if it names one, must be `sensor`.

    Raises:
        RecordingError: the file is of another sensor.
    """
    own = sensor_of(path)
    if own not in (None, sensor):
        raise RecordingError(f"{path} is of a sensor of {own} pixels (height x width), and data.sensor is {sensor}.")
    return read_any(path)


def decoder_of(data: bytes, name: str) -> Decoder | None:
    """Decoder of a stream, told from its first bytes; None if more are needed: AEDAT, RAW, DAT, and text otherwise.

    Raises:
        RecordingError: they are the first bytes of no format that can be read as it grows.
    """
    if data.startswith(b"#!AER-DAT"[: len(data)]):
        if len(data) < 10:
            return None
        if data[:10] not in _AEDAT:
            raise RecordingError(f"{name} begins with {data[:10]!r}: it is no AEDAT 2.0, 3.1 or 4.0.")
        return _AEDAT[data[:10]](name)
    for magic, what in (
        (b"PK\x03\x04", ".npz"),
        (b"\x93NUMPY", ".npy"),
        (b"\x89HDF", "HDF5"),
        (b"#ROSBAG", "a ROS bag"),
    ):
        if data.startswith(magic):
            raise RecordingError(
                f"{name} is {what}, which is read as a whole: RAW, DAT, AEDAT and text can be followed."
            )
    if not data.startswith(b"%"):
        return TextDecoder(name)
    # Both formats of Prophesee begin with lines of `%`; only DAT says what its file contains, and its version.
    end = 0
    while data.startswith(b"%", end) and (line_end := data.find(b"\n", end)) >= 0:
        end = line_end + 1
    ends = end < len(data) and not data.startswith(b"%", end)
    if not ends and len(data) < LONGEST_HEADER and not data.endswith(b"% end\n"):
        return None
    header = data[:end].lower()
    if b"% data file containing" in header or b"% version" in header:
        return DatDecoder(name)
    if b"% evt " in header or b"% format " in header:
        return RawDecoder(name)
    return TextDecoder(name)


class EventStream:
    """Read complete events from a growing file or a pipe, in any format that `decoder_of` tells.

    Args:
        file: opened in binary mode.
        name: name of the file, for messages.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._first = b""
        self.decoder: Decoder | None = None
        self.ended = False  # True if the last `read` got no bytes

    @property
    def left(self) -> str:
        """Message about an incomplete event or header; empty if everything is complete."""
        if self.decoder is not None:
            return self.decoder.left
        return f"{self._name} ends within its header, before the first event." if self._first else ""

    def read(self) -> Recording:
        """Events completed since the last call; the bytes of an incomplete one are kept for the next call.

        Raises:
            RecordingError: the stream is damaged or in a format that cannot be read as it grows.
        """
        # On a pipe, `read1` returns the bytes available instead of blocking for more.
        read = getattr(self._file, "read1", self._file.read)
        new = read(_PORTION) or b""
        self.ended = not new
        return self.take(new)

    def flush(self) -> Recording:
        """Events that only the end of the stream completes."""
        return no_events() if self.decoder is None else self.decoder.flush()

    def take(self, data: bytes) -> Recording:
        """Events that are complete with these bytes."""
        if self.decoder is None:
            self._first += data
            self.decoder = decoder_of(self._first, self._name) if self._first else None
            if self.decoder is None:
                return no_events()
            data, self._first = self._first, b""
        return self.decoder.decode(data)


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
        lines = list(csv.reader(content(path).decode("utf-8-sig").splitlines()))
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
