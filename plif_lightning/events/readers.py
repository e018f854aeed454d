"""Read a recording from a file of any format, without a Python loop over events."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from plif_lightning.errors import UserError
from plif_lightning.events.aedat import read_aedat2, read_aedat3, read_aedat4, sensor_in_aedat, sensor_in_aedat4
from plif_lightning.events.prophesee import read_prophesee, sensor_in_prophesee
from plif_lightning.events.recording import Recording, RecordingError, Sensor
from plif_lightning.events.tables import TimeUnit, read_hdf5, read_numpy, read_text, sensor_in_hdf5

_AEDAT = {b"#!AER-DAT2": read_aedat2, b"#!AER-DAT3": read_aedat3, b"#!AER-DAT4": read_aedat4}
_SENSORS: dict[str, Callable[[Path], Sensor | None]] = {
    ".aedat": sensor_in_aedat,
    ".aedat4": sensor_in_aedat4,
    ".dat": sensor_in_prophesee,
    ".h5": sensor_in_hdf5,
    ".hdf5": sensor_in_hdf5,
    ".raw": sensor_in_prophesee,
}
# An event of N-MNIST at this y only marks an overflow of the clock.
_OVERFLOW_Y = 240
_OVERFLOW_TIME = 2**13


def read_nmnist(path: Path) -> Recording:
    """Events of an N-MNIST file (also N-Caltech101): 40 bits each, big-endian.

    x (8 bits), y (8), polarity (1), time (23) [us]. y = 240 marks an overflow of the clock: it is not an event, and
    adds 2^13 us to every later time (as in the data set's Matlab reader).

    Source: Orchard et al. 2015.
    """
    data = path.read_bytes()
    if len(data) % 5:
        raise RecordingError(f"{path}: {len(data)} bytes are not a whole number of 5-byte events. It is truncated.")
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


def _read_aedat(path: Path) -> Recording:
    """Events of an .aedat file, with the version in the first line."""
    with path.open("rb") as file:
        first = file.read(10)
    if first not in _AEDAT:
        raise RecordingError(f"{path} begins with {first!r}: it is no AEDAT 2.0, 3.1 or 4.0.")
    return _AEDAT[first](path)


_READERS: dict[str, Callable[[Path], Recording]] = {
    ".aedat": _read_aedat,
    ".aedat4": read_aedat4,
    ".bin": read_nmnist,
    ".dat": read_prophesee,
    ".raw": read_prophesee,
}
_TABLES: dict[str, Callable[[Path, Sequence[str] | None, TimeUnit | None], Recording]] = {
    ".csv": read_text,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".npy": read_numpy,
    ".npz": read_numpy,
    ".txt": read_text,
}
# Suffixes of files that hold a recording.
SUFFIXES = tuple(sorted((*_READERS, *_TABLES)))
# Suffixes of files that need not name their unit of time.
TABLES = tuple(_TABLES)


def read_any(path: str | Path, columns: Sequence[str] | None = None, time_unit: TimeUnit | None = None) -> Recording:
    """Events of a file; the suffix (see SUFFIXES) selects the format, for .aedat together with the first line.

    Args:
        path: the file.
        columns: names of the columns of a text without a header, or of an array [N, 4], such as `t, x, y, p`; `t, x`
            of a line of sensors, whose y and p are 0.
        time_unit: unit of times in a table (text, NumPy, HDF5); us by default.

    Raises:
        RecordingError: another format, or a truncated or damaged file; the message names it.

    >>> read_any("digit.bin").t  # doctest: +SKIP
    array([937, 1030, ...])
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RecordingError(f"{path} must end in one of {', '.join(SUFFIXES)}.")
    with _errors_of(path):
        return _READERS[suffix](path) if suffix in _READERS else _TABLES[suffix](path, columns, time_unit)


def sensor_of(path: str | Path) -> Sensor | None:
    """Sensor from a file's header; None if the file does not name one.

    Raises:
        RecordingError: the header is damaged or of another format.
    """
    path = Path(path)
    find = _SENSORS.get(path.suffix.lower())
    with _errors_of(path):
        return None if find is None else find(path)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Name the file in the errors of its reader."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise RecordingError(f"{path} does not exist.") from error
    except Exception as error:  # h5py, NumPy, lz4 and the others each raise different errors for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise RecordingError(f"{path} cannot be read ({reason}). It is truncated, damaged or another file.") from error
