"""Raw files of a data set, read in order by one process or several."""

import dataclasses
import itertools
import multiprocessing
import os
import stat
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from plif_lightning.errors import UserError
from plif_lightning.events.recording import (
    NO_NOISE_FILTER,
    Noise,
    Packed,
    Recording,
    RecordingError,
    Sensor,
    TimeOrder,
    address_type,
    pack,
)
from plif_lightning.runtime.cores import cores

# Raw data below this size is read in this process, because starting others would take longer.
_MIN_BYTES_FOR_PROCESSES = 64 * 2**20
# Files are read in chunks of about this size, which bounds the memory of the reader processes and the queue.
_PORTION = 16 * 2**20
# Address space of a process whose decoder trusts the sizes in a file.
_MEMORY = 8 * 2**30
# More for large files: columns of 8 bytes each, and copies of them, of events that are packed in a few bytes.
_MEMORY_PER_BYTE = 40

# How long the header of one file may take [s].
_PATIENCE = 60

T = TypeVar("T")
# (label, name, recording) of each recording in some raw files
Labelled: TypeAlias = list[tuple[int, str, Packed]]


class StoreError(UserError):
    """A store is missing, damaged, or could not be built."""


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
        sensor_of: the sensor of the first path, whose pixels are summed to those of the store; None if it is the
            store's.
    """

    name: str
    paths: tuple[Path, ...]
    read: Callable[[tuple[Path, ...], int], Sequence[tuple[int, Recording]]]
    label: int = 0
    recordings: int = 1
    own_process: bool = False
    sensor_of: Callable[[Path], Sensor] | None = None

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
        return sum(status.st_size for status in self.stats() if stat.S_ISREG(status.st_mode))


@dataclasses.dataclass(frozen=True)
class Kind:
    """Specification of a store: all options, apart from the raw files, that determine its arrays.

    Attributes:
        title: data set and split, for messages.
        name: name of the store's files.
        sensor: size of the camera.
        time_order: see `recording.pack`.
        classes: class names, if they come from the files; () if the data set defines them.
        noise: what is taken from the recordings.
    """

    title: str
    name: str
    sensor: Sensor
    time_order: TimeOrder = "strict"
    classes: tuple[str, ...] = ()
    noise: Noise = NO_NOISE_FILTER


def _read(raw_files: Sequence[RawFile], kind: Kind) -> Labelled:
    """(label, name, recording) of all recordings in some raw files; may run in a separate process."""
    found = []
    if any(raw.own_process for raw in raw_files):
        _limit_memory(max(_MEMORY, _MEMORY_PER_BYTE * max(raw.size() for raw in raw_files)))
    for raw in raw_files:
        try:
            recordings = raw.read(raw.paths, raw.label)
        except MemoryError as error:
            raise RecordingError(
                f"{raw.paths[0]} needs more memory than events in a file of {raw.size():,} bytes can. It is damaged or "
                "packed to exhaust memory."
            ) from error
        except OSError as error:
            raise RecordingError(f"{error.filename or raw.paths[0]} cannot be read: {error.strerror}.") from error
        assert len(recordings) == raw.recordings
        for i, (label, recording) in enumerate(recordings):
            name = raw.name if raw.recordings == 1 else f"{raw.name}#{i}"
            sensor = kind.sensor if raw.sensor_of is None else raw.sensor_of(raw.paths[0])
            packed = pack(recording, sensor, str(raw.paths[0]), kind.time_order)
            if kind.noise:
                from plif_lightning.events.noise import cleaned

                packed = cleaned(packed, sensor, kind.noise)
            if raw.sensor_of is not None:
                from plif_lightning.events.integration import resized

                address = resized(sensor, kind.sensor)[packed.address]
                packed = packed._replace(address=address.astype(address_type(kind.sensor)))
            found.append((label, name, packed))
    return found


def _limit_memory(most: int) -> None:
    """Limit this process's memory, so that a damaged file ends it instead of exhausting the machine."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
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


def read_all(raw_files: Sequence[RawFile], kind: Kind, processes: int | None) -> Iterator[Labelled]:
    """Recordings of all raw files in order, read in parallel if there is enough data.

    Raises:
        RecordingError: a file cannot be read.
        StoreError: a process that reads files was killed.
    """
    if processes is None:
        processes = cores() if sum(raw.size() for raw in raw_files) >= _MIN_BYTES_FOR_PROCESSES else 0
    if processes > 0 or any(raw.own_process for raw in raw_files):
        yield from _read_in_processes(raw_files, kind, max(1, processes))
    else:
        for portion in _portions(raw_files):
            yield _read(portion, kind)


def _read_in_processes(raw_files: Sequence[RawFile], kind: Kind, processes: int) -> Iterator[Labelled]:
    """Recordings of all raw files in order; at most two chunks of files per process are read ahead."""
    with _process_pool(processes) as executor:
        waiting: deque[tuple[list[RawFile], Future[Labelled]]] = deque()
        portions = _portions(raw_files)
        try:
            while True:
                for portion in itertools.islice(portions, 2 * processes - len(waiting)):
                    waiting.append((portion, _submit(executor, _read, portion, kind)))
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
    # Spawned, because a fork would copy locks that other threads hold.
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent)


def _submit(executor: ProcessPoolExecutor, function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call a function in a spawned process, which does not import this program's main module.

    It does not need it, and a script without a `__name__` guard would run again in each process.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        return executor.submit(function, *arguments)
    finally:
        sys.modules["__main__"] = main


def in_own_process(function: Callable[[Path], T], paths: Sequence[Path]) -> list[T]:
    """Call a function of a file, whose library may crash on a damaged one, in a process of its own.

    Raises:
        RecordingError: a file crashes that process, or keeps it busy for too long.
    """
    found: list[T] = []
    if not paths:
        return found
    executor = _process_pool(1)
    try:
        for path in paths:
            try:
                found.append(_submit(executor, function, path).result(_PATIENCE))
            except BrokenProcessPool as error:
                raise RecordingError(
                    f"{path} cannot be read: it crashes the process that reads it. It is damaged."
                ) from error
            except TimeoutError as error:
                for process in multiprocessing.active_children():
                    if process.pid in (executor._processes or {}):
                        process.kill()
                raise RecordingError(f"{path} cannot be read within {_PATIENCE} s. It is damaged.") from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    return found


def _who_died(raw_files: Sequence[RawFile], kind: Kind) -> str:
    """Error message for a lost reader process. To find the cause, read each unsafe file again in its own process."""
    for raw in raw_files:
        if not raw.own_process:
            continue
        with _process_pool(1) as executor:
            try:
                _submit(executor, _read, [raw], kind).result()
            except BrokenProcessPool:
                return f"{raw.paths[0]} cannot be read: it crashes the process that decodes it. The file is damaged."
    return (
        f"{kind.title}: a process that reads recordings was killed from outside, for example because memory ran "
        f"out, between {raw_files[0].paths[0]} and {raw_files[-1].paths[-1]}. Nothing was left behind; try again."
    )
