"""The event store: all recordings of a split in a few memory-mapped arrays, built once.

NAME.json defines the store: it names the folder of the arrays and is written last, atomically. The leftovers of a
killed build are therefore not a store; the next build deletes them.
"""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.errors import UserError
from plif_lightning.events.recording import Packed, Recording, RecordingError, Sensor, TimeOrder, address_type, pack
from plif_lightning.runtime.cores import cores
from plif_lightning.runtime.files import not_written, written_whole
from plif_lightning.runtime.mapped import explain_bus_errors

# Increment when a build produces other arrays from the same files; older stores are then rebuilt.
FORMAT = 2
# Raw data below this size is read in this process, because starting others would take longer.
_MIN_BYTES_FOR_PROCESSES = 64 * 2**20
# Files are read in chunks of about this size, which bounds the memory of the reader processes and the queue.
_PORTION = 16 * 2**20
# Address space of a process whose decoder trusts the sizes in a file.
_MEMORY = 8 * 2**30


ARRAYS = ("address", "time", "offset", "label", "start", "name")


class StoreError(UserError):
    """A store is missing, damaged, or could not be built."""


class DamagedStoreError(StoreError):
    """A store differs from what was built."""


@dataclasses.dataclass(frozen=True)
class RawFile:
    """A file (or several that belong together) and the function that reads its recordings; must be picklable.

    Attributes:
        name: name of the recording, relative to the data set's folder, with `/`.
        paths: files to read; a store is up to date if their sizes and modification times are unchanged.
        read: returns (label, recording) for each recording in `paths`; a module-level function.
        label: passed to `read`.
        recordings: number of recordings that `read` returns.
        own_process: read in a separate process, because a damaged file may crash it.
    """

    name: str
    paths: tuple[Path, ...]
    read: Callable[[tuple[Path, ...], int], Sequence[tuple[int, Recording]]]
    label: int = 0
    recordings: int = 1
    own_process: bool = False

    def stats(self) -> list[os.stat_result]:
        """File status of each path.

        Raises:
            RecordingError: a file is missing.
        """
        try:
            return [path.stat() for path in self.paths]
        except OSError as error:
            raise RecordingError(f"{error.filename} cannot be read: {error.strerror}.") from error

    def size(self) -> int:
        return sum(stat.st_size for stat in self.stats())


@dataclasses.dataclass(frozen=True)
class Kind:
    """Specification of a store: everything besides the raw files that determines its arrays.

    Attributes:
        title: data set and split, for messages.
        name: name of the store's files.
        sensor: size of the camera.
        time_order: see `recording.pack`.
        classes: class names, if they come from the files; () if the data set defines them.
    """

    title: str
    name: str
    sensor: Sensor
    time_order: TimeOrder = "strict"
    classes: tuple[str, ...] = ()


def fingerprint(kind: Kind, raw_files: Sequence[RawFile]) -> str:
    """Hash of the format, the options and every raw file's name, label, size and modification time."""
    digest = hashlib.blake2b(repr((FORMAT, kind.sensor, kind.time_order)).encode(), digest_size=16)
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
        try:
            meta = json.loads(self.path.read_text("utf-8"))
            self.sensor = Sensor(*meta["sensor"])
            self.fingerprint: str = meta["fingerprint"]
            arrays: dict[str, dict[str, Any]] = meta["arrays"]
            same = (meta["format"], self.sensor, meta["time_order"]) == (FORMAT, kind.sensor, kind.time_order)
            self.classes = tuple(map(str, meta.get("classes", ())))
            self.folder = folder / meta["folder"]
            self._checksums = {name: str(arrays[name]["blake2b"]) for name in ARRAYS}
            expected_arrays = {name: (tuple(arrays[name]["shape"]), np.dtype(arrays[name]["dtype"])) for name in ARRAYS}
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
        if expected not in (None, self.fingerprint):
            raise StoreError(f"{self.path} was rebuilt by another process in the meantime. Start again.")
        for name, (shape, dtype) in expected_arrays.items():
            setattr(self, name, self._open(name, shape, dtype))
        n = len(self.label)
        if (
            len(self.offset) != n + 1
            or self.offset[0] != 0
            or self.offset[-1] != len(self.address)
            or len(self.time) != len(self.address)
            or (self.offset[1:] < self.offset[:-1]).any()
        ):
            raise DamagedStoreError(f"{self.folder} is damaged: its arrays do not fit together.")
        if expected is None:
            self._require_unchanged()
        explain_bus_errors()

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


def _read(raw_files: Sequence[RawFile], kind: Kind) -> list[tuple[int, str, Packed]]:
    """(label, name, recording) of all recordings in some raw files; may run in a separate process."""
    found = []
    if any(raw.own_process for raw in raw_files):
        _limit_memory()
    for raw in raw_files:
        try:
            recordings = raw.read(raw.paths, raw.label)
        except OSError as error:
            raise RecordingError(f"{error.filename or raw.paths[0]} cannot be read: {error.strerror}.") from error
        assert len(recordings) == raw.recordings
        for i, (label, recording) in enumerate(recordings):
            name = raw.name if raw.recordings == 1 else f"{raw.name}#{i}"
            found.append((label, name, pack(recording, kind.sensor, str(raw.paths[0]), kind.time_order)))
    return found


def _limit_memory() -> None:
    """Limit this process's memory, so that a damaged file ends it instead of exhausting the machine."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    with suppress(ValueError, OSError):  # macOS refuses a limit below what is already reserved
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _portions(raw_files: Sequence[RawFile]) -> Iterator[list[RawFile]]:
    portion: list[RawFile] = []
    size = 0
    for raw in raw_files:
        portion.append(raw)
        size += raw.size()
        if size >= _PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _read_all(
    raw_files: Sequence[RawFile], kind: Kind, processes: int | None
) -> Iterator[list[tuple[int, str, Packed]]]:
    """Recordings of all raw files in order, read in parallel if there is enough data."""
    needed = any(raw.own_process for raw in raw_files)
    if processes is None:
        processes = cores() if sum(raw.size() for raw in raw_files) >= _MIN_BYTES_FOR_PROCESSES else 0
    if processes == 0 and not needed:
        for portion in _portions(raw_files):
            yield _read(portion, kind)
        return
    # Spawned, because a fork would copy locks that other threads hold.
    with _process_pool(max(1, processes)) as executor:
        waiting: deque[tuple[list[RawFile], Future[list[tuple[int, str, Packed]]]]] = deque()
        portions = _portions(raw_files)
        try:
            while True:
                for portion in itertools.islice(portions, 2 * max(1, processes) - len(waiting)):
                    with _without_main():
                        waiting.append((portion, executor.submit(_read, portion, kind)))
                if not waiting:
                    return
                yield waiting[0][1].result()
                waiting.popleft()
        except BrokenProcessPool as error:
            raise StoreError(_who_died([raw for portion, _ in waiting for raw in portion], kind)) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when its parent has exited for any reason, including SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _process_pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep spawned processes from importing this program's main module.

    They do not need it, and a script without a `__name__` guard would run again in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _who_died(raw_files: Sequence[RawFile], kind: Kind) -> str:
    """Error message for a lost reader process. To find the cause, read each unsafe file again in its own process."""
    for raw in raw_files:
        if not raw.own_process:
            continue
        with _process_pool(1) as executor:
            try:
                with _without_main():
                    future = executor.submit(_read, [raw], kind)
                future.result()
            except BrokenProcessPool:
                return f"{raw.paths[0]} cannot be read: it crashes the process that decodes it. The file is damaged."
    return (
        f"{kind.title}: a process that reads recordings was killed from outside, for example because memory ran "
        f"out, between {raw_files[0].paths[0]} and {raw_files[-1].paths[-1]}. Nothing was left behind; try again."
    )


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

    The caller holds `locked(folder)`.

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
    _remove(path for path in folder.glob(f"{kind.name}.*.tmp"))
    try:
        staging.mkdir(parents=True)
        arrays = _write(staging, kind, _read_all(raw_files, kind, processes), progress)
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
    _remove([path for path in folder.glob(f"{kind.name}.*") if path.is_dir() and path != but])


def _write(
    folder: Path,
    kind: Kind,
    recordings: Iterable[list[tuple[int, str, Packed]]],
    progress: Callable[[int], None],
) -> dict[str, Any]:
    columns = {
        "address": _Column(folder / "address.npy", address_type(kind.sensor)),
        "time": _Column(folder / "time.npy", np.dtype(np.uint32)),
    }
    lengths, labels, starts, names = [0], [], [], []
    try:
        for portion in recordings:
            for label, name, packed in portion:
                columns["address"].append(packed.address)
                columns["time"].append(packed.time)
                lengths.append(len(packed.address))
                labels.append(label)
                starts.append(packed.start)
                names.append(name)
            progress(len(portion))
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
