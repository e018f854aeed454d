"""NumPy's files: .npz with an array for each column, .npy with a structured array or a table [N, 4]."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from plif_lightning.events.formats.columns import NAMES, columns_of, from_table, recording_from, units_of
from plif_lightning.events.formats.decoding import opened, require_compression
from plif_lightning.events.recording import Recording, RecordingError


@contextmanager
def _numpys_errors(path: str | Path, what: str) -> Iterator[None]:
    """Turn NumPy's errors into a RecordingError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise RecordingError(f"{path} does not exist.") from error
    except RecordingError:
        raise
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
    packed = unpacked = 0
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # NumPy will say what is wrong with it
        packed = sum(info.compress_size for info in archive.infolist())
        unpacked = sum(info.file_size for info in archive.infolist())
    require_compression(unpacked, packed, path)


def read_gesture_npy(path: str | Path) -> Recording:
    """Events of a clip of tonic's pre-cut DVS128 Gesture: an array [N, 4] of x, y, polarity and time [ms].

    Raises:
        RecordingError: another format, or a truncated file.
    """
    with opened(path) as file:
        if file.read(2) == b"PK":  # NumPy leaves a broken archive open
            raise RecordingError(f"{path} must hold numbers [N, 4] (x, y, polarity, time in ms), got an archive.")
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
    """Events of a .npz with the arrays x, y, t and p, or of a .npy with a structured array of these fields or [N, 4].

    Usual aliases are accepted: ts, timestamp, xs, pol, polarity and so on. Times are us, or seconds if they have
    fractions; a name may say the unit, such as `t_ns`. Polarities are 0 and 1, -1 and 1, or booleans. The columns of
    [N, 4] are told from their values, see `order_of`.

    Raises:
        RecordingError: another format, a truncated file, or columns that are missing or unclear.
    """
    _require_plausible(path)
    # Opened here, because NumPy leaves a broken archive open.
    with _numpys_errors(path, "NumPy arrays"), opened(path) as file:
        loaded = np.load(file, allow_pickle=False)
        with loaded if isinstance(loaded, np.lib.npyio.NpzFile) else nullcontext():
            if isinstance(loaded, np.ndarray) and file.read(1):
                raise RecordingError(f"{path} is longer than its header says. It is damaged.")
            if isinstance(loaded, np.ndarray) and loaded.dtype.names is None:
                return _from_array(loaded, str(path))
            names = list(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else list(loaded.dtype.names or ())
            found = columns_of(names, str(path))
            if not found and len(names) == 1:  # np.savez(file, events)
                return _from_array(np.asarray(loaded[names[0]]), str(path))
            columns: dict[str, Any] = {key: np.asarray(loaded[name]) for key, (name, _) in found.items()}
    if missing := [name for name in ("x", "y", "t", "p") if name not in columns]:
        raise RecordingError(
            f"{path} must hold {NAMES} (.npz: four arrays; .npy: a structured array), but lacks {', '.join(missing)}."
        )
    return recording_from(columns, units_of(found), str(path))


def _from_array(array: Any, name: str) -> Recording:
    """Recording of a structured array or of a table [N, 4]."""
    if array.dtype.names is not None:
        found = columns_of(array.dtype.names, name)
        return recording_from({key: array[field] for key, (field, _) in found.items()}, units_of(found), name)
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "iufb":
        raise RecordingError(
            f"{name} must hold {NAMES} (.npz: four arrays; .npy: a structured array, or numbers [N, 4]), got "
            f"{array.dtype} {list(array.shape)}."
        )
    return from_table(array, name)
