"""The event store: all recordings of a split in a few memory-mapped arrays, built once.

NAME.json defines the store: it names the folder of the arrays and is written last, atomically. The leftovers of a
killed build are therefore not a store; the next build deletes them.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.raw import Kind as Kind
from plif_lightning.events.raw import Labelled, read_all
from plif_lightning.events.raw import RawFile as RawFile
from plif_lightning.events.raw import StoreError as StoreError
from plif_lightning.events.recording import Sensor, address_type
from plif_lightning.runtime.files import not_written, written_whole
from plif_lightning.runtime.mapped import explain_bus_errors

_log = logging.getLogger(__name__)
# Increment when a build produces other arrays from the same files; older stores are then rebuilt.
FORMAT = 2
ARRAYS = ("address", "time", "offset", "label", "start", "name")


class DamagedStoreError(StoreError):
    """A store differs from what was built."""


def fingerprint(kind: Kind, raw_files: Sequence[RawFile]) -> str:
    """Hash of the format, the options and every raw file's name, label, size and modification time."""
    options = (FORMAT, kind.sensor, kind.time_order, *([str(kind.noise)] if kind.noise else []))
    digest = hashlib.blake2b(repr(options).encode(), digest_size=16)
    if kind.noise and any(raw.sensor_of is not None for raw in raw_files):
        digest.update(b"before pixels are summed")  # older stores were cleaned afterwards
    for raw in raw_files:
        stats = [(stat.st_size, stat.st_mtime_ns) for stat in raw.stats()]
        digest.update(repr((raw.name, raw.label, stats)).encode())
    return digest.hexdigest()


class EventStore:
    """The recordings of one split.

    Args:
        folder: folder of the store.
        kind: specification that it must match.
        expected: required fingerprint, when reopening the same store in another process; None accepts any.

    Attributes:
        address: index into a frame [2, H, W] of every event.
        time: time of every event since its recording's first one [us], uint32.
        offset: recording i has events [offset[i], offset[i + 1]), int64 [n + 1].
        label: int64 [n].
        start: time of each recording's first event [us], int64 [n].
        name: source file of each recording, and its index in that file if there are several, [n].
        classes: class names; () if the store has none.
        raw_bytes: size of the files that it was built of; None of older stores.

    If an array's file size or modification time has changed, it is read once and compared with its checksum.

    Raises:
        StoreError: there is no such store, or it does not match `kind`.
        DamagedStoreError: an array differs from what was written.
    """

    address: NDArray[Any]
    time: NDArray[np.uint32]
    offset: NDArray[np.int64]
    label: NDArray[np.int64]
    start: NDArray[np.int64]
    name: NDArray[Any]

    def __init__(self, folder: Path, kind: Kind, expected: str | None = None) -> None:
        self.path, self.kind = folder / f"{kind.name}.json", kind
        arrays = self._described()
        if expected not in (None, self.fingerprint):
            raise StoreError(f"{self.path} was rebuilt by another process in the meantime. Start again.")
        for name, (shape, dtype) in arrays.items():
            setattr(self, name, self._open(name, shape, dtype))
        self._require_consistent()
        if expected is None:
            self._require_unchanged()
        explain_bus_errors()

    def _described(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Read NAME.json. Returns the shape and dtype of each array."""
        kind = self.kind
        try:
            meta = json.loads(self.path.read_text("utf-8"))
            self.sensor = Sensor(*meta["sensor"])
            self.fingerprint: str = meta["fingerprint"]
            arrays: dict[str, dict[str, Any]] = meta["arrays"]
            same = (meta["format"], self.sensor, meta["time_order"]) == (FORMAT, kind.sensor, kind.time_order)
            self.classes = tuple(map(str, meta.get("classes", ())))
            self.raw_bytes: int | None = None if meta.get("raw_bytes") is None else int(meta["raw_bytes"])
            self.folder = self.path.parent / meta["folder"]
            self._checksums = {name: str(arrays[name]["blake2b"]) for name in ARRAYS}
            found = {name: (tuple(arrays[name]["shape"]), np.dtype(arrays[name]["dtype"])) for name in ARRAYS}
        except FileNotFoundError as error:
            raise StoreError(f"there is no event store {self.path}.") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedStoreError(f"{self.path} is damaged ({type(error).__name__}: {error}).") from error
        if not same:
            raise StoreError(f"{self.path} was built with other options.")
        if kind.classes and self.classes != kind.classes:
            raise StoreError(
                f"{self.path} holds recordings of {', '.join(self.classes)}, not of {', '.join(kind.classes)}."
            )
        return found

    def _require_consistent(self) -> None:
        if (
            len(self.offset) != len(self.label) + 1
            or self.offset[0] != 0
            or self.offset[-1] != len(self.address)
            or len(self.time) != len(self.address)
            or (self.offset[1:] < self.offset[:-1]).any()
        ):
            raise DamagedStoreError(f"{self.folder} is damaged: its arrays do not fit together.")

    def _require_unchanged(self) -> None:
        """Verify arrays that may have changed since the last verification: loaders do not check what they read."""
        with suppress(OSError, ValueError):
            if json.loads(_verification_file(self.path).read_text("utf-8")) == _sizes_and_times(self.folder):
                return
        self.verify()
        with suppress(OSError):  # the folder may be read-only
            _record_verification(self.path, self.folder)

    def _open(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r" if name in ("address", "time") and 0 not in shape else None)
        except Exception as error:  # NumPy evaluates the header as Python, which raises many types
            raise DamagedStoreError(f"{path} is missing or damaged ({error}).") from error
        if array.shape != shape or array.dtype != dtype:
            raise DamagedStoreError(
                f"{path} is damaged: {dtype} {list(shape)} expected, got {array.dtype} {list(array.shape)}."
            )
        # A plain array on the same memory avoids the overhead of memmap objects.
        return np.asarray(array)

    def __len__(self) -> int:
        return len(self.label)

    def events(self, i: int) -> tuple[NDArray[Any], NDArray[np.uint32]]:
        """Addresses and times of recording i."""
        one = slice(self.offset[i], self.offset[i + 1])
        return self.address[one], self.time[one]

    def __reduce__(self) -> tuple[type["EventStore"], tuple[Path, Kind, str]]:
        # Unpickling maps the files again, instead of sending gigabytes through a pipe.
        return EventStore, (self.path.parent, self.kind, self.fingerprint)

    def verify(self) -> int:
        """Read all arrays and compare their checksums.

        Returns:
            Number of arrays.

        Raises:
            DamagedStoreError: a checksum differs.
        """
        for name, expected in self._checksums.items():
            if _checksum(self.folder / f"{name}.npy") != expected:
                raise DamagedStoreError(
                    f"{self.folder / f'{name}.npy'} is damaged: its checksum is not the one of its build. Delete "
                    f"{self.path} to rebuild it."
                )
        return len(self._checksums)

    @property
    def content(self) -> str:
        """Checksums of all recordings and labels, as one string."""
        return "".join(self._checksums[name] for name in ("address", "time", "label", "offset"))

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def _verification_file(path: Path) -> Path:
    """File with the sizes and modification times of the arrays at their last verification."""
    return path.with_suffix(".seen.json")


def _sizes_and_times(folder: Path) -> dict[str, list[int]]:
    """Size and modification time [ns] of each array's file."""
    stats = {name: (folder / f"{name}.npy").stat() for name in ARRAYS}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _record_verification(path: Path, folder: Path) -> None:
    with written_whole(_verification_file(path)) as file:
        json.dump(_sizes_and_times(folder), file)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class _Column:
    """A one-dimensional .npy file, written sequentially."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.length = path, dtype, 0
        self.file: IO[bytes] = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        # NumPy pads the header for the largest length, so its size never changes.
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, values: NDArray[Any]) -> None:
        assert values.dtype == self.dtype
        self.file.write(np.ascontiguousarray(values).data.cast("B"))
        self.length += len(values)

    def close(self) -> dict[str, Any]:
        self.file.seek(0)
        self._write_header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"dtype": self.dtype.str, "shape": [self.length], "blake2b": _checksum(self.path)}


def unwritable(folder: Path, error: OSError, what: str = "the event store") -> StoreError:
    """Error for a store's folder that cannot be written."""
    return StoreError(not_written(what, folder, "data.store", error))


def build(
    folder: Path,
    kind: Kind,
    raw_files: Sequence[RawFile],
    progress: Callable[[int], None] = lambda recordings: None,
    processes: int | None = None,
) -> EventStore:
    """Build the store of some raw files, replacing an existing one.

    The caller holds `runtime.locks.folder_lock(folder)`.

    Args:
        folder: folder of the store.
        kind: specification of the store.
        raw_files: raw files, in the order of the recordings.
        progress: called with the number of recordings added since the last call.
        processes: number of reader processes; None uses all cores for large data, 0 reads in this process.

    Raises:
        RecordingError: a file cannot be read.
        StoreError: the store cannot be written.
    """
    mark = fingerprint(kind, raw_files)
    final = folder / f"{kind.name}.{mark}"
    staging = folder / f"{kind.name}.{mark}.tmp"
    _remove(_arrays_of(folder, kind, ".tmp"))
    try:
        staging.mkdir(parents=True)
        arrays = _write(staging, kind, read_all(raw_files, kind, processes), progress)
        _remove([final])  # a damaged build of the same raw files
        staging.rename(final)
        with written_whole(folder / f"{kind.name}.json") as file:
            meta = {
                "format": FORMAT,
                "data": kind.title,
                "sensor": list(kind.sensor),
                "time_order": kind.time_order,
                "classes": list(kind.classes),
                "fingerprint": mark,
                "raw_bytes": sum(raw.size() for raw in raw_files),
                "folder": final.name,
                "arrays": arrays,
            }
            json.dump(meta, file, indent=2)
        _record_verification(folder / f"{kind.name}.json", final)  # the checksums were just computed
    except OSError as error:
        raise unwritable(folder, error, f"the event store of {kind.title}") from error
    finally:
        _remove([staging])
    store = EventStore(folder, kind)
    remove_others(folder, kind, final)
    return store


def remove_others(folder: Path, kind: Kind, but: Path) -> None:
    """Delete the arrays of older stores of this kind."""
    _remove([path for path in _arrays_of(folder, kind) if path != but])


def _arrays_of(folder: Path, kind: Kind, suffix: str = "") -> list[Path]:
    """Folders of a kind's arrays. A name may begin another one: that of hot_pixels=2 begins that of 2.5."""
    name = re.compile(re.escape(kind.name) + r"\.[0-9a-f]+" + re.escape(suffix))
    return [path for path in folder.glob(f"{kind.name}.*") if name.fullmatch(path.name) and path.is_dir()]


def _write(folder: Path, kind: Kind, recordings: Iterable[Labelled], progress: Callable[[int], None]) -> dict[str, Any]:
    columns = {
        "address": _Column(folder / "address.npy", address_type(kind.sensor)),
        "time": _Column(folder / "time.npy", np.dtype(np.uint32)),
    }
    lengths, labels, starts, names = [0], [], [], []
    dropped = 0
    try:
        for portion in recordings:
            for label, name, packed in portion:
                columns["address"].append(packed.address)
                columns["time"].append(packed.time)
                lengths.append(len(packed.address))
                labels.append(label)
                starts.append(packed.start)
                names.append(name)
                dropped += packed.dropped
            progress(len(portion))
        if kind.noise:
            share = 100 * dropped / max(1, dropped + sum(lengths))
            _log.warning("%s: %s drops %.1f %% of the events.", kind.title, kind.noise, share)
        small = {
            "offset": np.cumsum(lengths, dtype=np.int64),
            "label": np.array(labels, np.int64),
            "start": np.array(starts, np.int64),
            "name": np.array(names, np.str_),
        }
        for name, values in small.items():
            columns[name] = _Column(folder / f"{name}.npy", values.dtype)
            columns[name].append(values)
        return {name: column.close() for name, column in columns.items()}
    finally:
        for column in columns.values():
            column.file.close()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
