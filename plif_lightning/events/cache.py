"""Arrays that are built once and memory-mapped afterwards: the cache of events and of decoded images."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.errors import UserError
from plif_lightning.runtime.files import atomic_write, folder_lock, naming, reason
from plif_lightning.runtime.process import cores

_log = logging.getLogger(__name__)
_MANIFEST, _SOURCES = "manifest.json", "sources.json"
# A large file is compared by as many blocks of as many bytes.
_BLOCKS, _BLOCK = 16, 2**16
# Bytes that are hashed at once.
_PORTION = 2**24
# Seconds after which arrays that nobody opened are deleted.
_UNUSED = 30 * 24 * 3600


class DamagedArraysError(UserError):
    """An array differs from the written one."""


class Arrays(Mapping[str, NDArray[Any]]):
    """Named arrays of a folder, memory-mapped and read-only. Unpickling maps them again.

    Args:
        folder: folder that `cached` made.

    Attributes:
        content: hash of all arrays, made while they were written.

    Raises:
        DamagedArraysError: an array is missing, or its size or shape differs from the manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with suppress(OSError):  # the folder may be read-only
            os.utime(folder)  # last use
        try:
            self._manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
            self.content: str = self._manifest["content"]
            self._arrays = {name: _memory_map(folder, name, entry) for name, entry in self._manifest["arrays"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedArraysError(f"{folder} is incomplete or damaged ({error}).") from error

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[type["Arrays"], tuple[Path]]:
        return Arrays, (self.folder,)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(entry["size"] for entry in self._manifest["arrays"].values())

    def verify(self, changed: bool = False) -> int:
        """Read arrays in full and compare their hashes.

        Args:
            changed: only arrays with another modification time than noted.

        Returns:
            Number of arrays that were read.

        Raises:
            DamagedArraysError: a hash differs.
        """
        read = 0
        for name, entry in self._manifest["arrays"].items():
            path = _file(self.folder, name)
            changed_at = path.stat().st_mtime_ns
            if changed and changed_at == entry["time"]:
                continue
            digest = hashlib.blake2b(digest_size=16)
            flat = np.ascontiguousarray(self[name]).reshape(-1).view(np.uint8)
            for first in range(0, len(flat), _PORTION):
                digest.update(flat[first : first + _PORTION].data)
            if digest.hexdigest() != entry["blake2b"]:
                raise DamagedArraysError(f"{path} is damaged. Delete {self.folder} to build it again.")
            read, entry["time"] = read + 1, changed_at
        if read:
            with suppress(OSError), atomic_write(self.folder / _MANIFEST) as file:  # the folder may be read-only
                json.dump(self._manifest, file)
        return read


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _memory_map(folder: Path, name: str, entry: Mapping[str, Any]) -> NDArray[Any]:
    path, shape = _file(folder, name), tuple(entry["shape"])
    if path.stat().st_size != entry["size"]:
        raise ValueError(f"{path.name} has another size than what was written")
    array = np.load(path, mmap_mode=None if 0 in shape else "r", allow_pickle=False)
    if array.shape != shape or array.dtype.str != entry["dtype"]:
        raise ValueError(f"{path.name} has another shape or type than what was written")
    # A plain array on the same memory avoids the overhead of memmap objects.
    return np.asarray(array)


class ArrayWriter:
    """Writes arrays piece by piece into a folder; a context manager.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._columns: dict[str, _Column] = {}

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for column in self._columns.values():
            column.file.close()

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Append along the first axis to the array of this name; type and further axes are fixed by the first call."""
        if name not in self._columns:
            self._columns[name] = _Column(_file(self.folder, name), values)
        self._columns[name].append(values)

    def complete(self) -> None:
        """Complete the arrays, and write the manifest last."""
        arrays = {name: column.complete() for name, column in self._columns.items()}
        parts = [(name, *(arrays[name][key] for key in ("dtype", "shape", "blake2b"))) for name in sorted(arrays)]
        content = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
        with atomic_write(self.folder / _MANIFEST) as file:
            json.dump({"content": content, "arrays": arrays}, file)


class _Column:
    """A .npy file that is written sequentially."""

    def __init__(self, path: Path, like: NDArray[Any]) -> None:
        self.path, self.dtype, self.row = path, like.dtype, like.shape[1:]
        self.length, self.digest = 0, hashlib.blake2b(digest_size=16)
        self.file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        shape = (self.length, *self.row)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        # NumPy pads the header for the largest length, so its size never changes.
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, values: NDArray[Any]) -> None:
        assert (values.dtype, values.shape[1:]) == (self.dtype, self.row)
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        with naming(self.path):
            self.file.write(content)
        self.digest.update(content)
        self.length += len(values)

    def complete(self) -> dict[str, Any]:
        with naming(self.path), self.file:
            self.file.seek(0)
            self._write_header()
            self.file.flush()
            os.fsync(self.file.fileno())
        status = self.path.stat()
        return {
            "dtype": self.dtype.str,
            "shape": [self.length, *self.row],
            "blake2b": self.digest.hexdigest(),
            "size": status.st_size,
            "time": status.st_mtime_ns,
        }


def find(folder: Path, key: str | None = None, files: Sequence[str | Path] = ()) -> Arrays | None:
    """The arrays of `key`; without a key (the source files are missing) the last used; None if none is complete."""
    folders = sorted(folder.glob("*"), key=_last_use, reverse=True) if key is None else [folder / key]
    for candidate in folders:
        if candidate.suffix != ".tmp" and (candidate / _MANIFEST).is_file():
            try:
                arrays = Arrays(candidate)
                arrays.verify(changed=True)
                if _same_files(candidate, files):
                    return arrays
                _log.warning("%s is built again: files that it was made of have changed.", candidate)
            except DamagedArraysError as error:
                _log.warning("%s It is built again, if its files are there.", error)
    return None


def cached(folder: Path, key: str, build: Callable[[ArrayWriter], None], files: Sequence[str | Path] = ()) -> Arrays:
    """Arrays of a folder; they are built if the key is missing or damaged, or a file has changed.

    A single process builds, others wait. The arrays are written into a temporary folder, which is renamed when it is
    complete: a killed process leaves nothing that counts. Arrays of other keys are deleted if nobody opened them for
    30 days: another run may map arrays that it has open again, in a new worker process.

    Args:
        folder: folder of the arrays; each key has a folder in it.
        key: identifies their content, as a file name.
        build: appends all arrays to a writer.
        files: files from which they are made, if any.

    Raises:
        UserError: the folder cannot be written.
    """
    if (arrays := find(folder, key, files)) is not None:
        return arrays
    try:
        with folder_lock(folder):
            if (arrays := find(folder, key, files)) is not None:  # another process has built them meanwhile
                return arrays
            final, staging = folder / key, folder / f"{key}.tmp"
            _remove(folder.glob("*.tmp"))  # of killed processes
            staging.mkdir()
            try:
                with ArrayWriter(staging) as writer:
                    build(writer)
                    writer.complete()
                if files:
                    _note(staging, files)
                _remove([final])  # damaged, or of files that have changed
                staging.rename(final)
            finally:
                _remove([staging])
            _remove(path for path in folder.iterdir() if path.is_dir() and time.time() - _last_use(path) > _UNUSED)
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        why = reason(error) if isinstance(error, OSError) else error
        raise UserError(f"{folder} cannot be written. {why}. Or name another folder with --data.store DIR.") from error
    return Arrays(final)


def _last_use(folder: Path) -> float:
    return folder.stat().st_mtime


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _time(path: str | Path) -> int:
    """Time of the last change of a file [ns]; 0 for a recording that another library holds in memory."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 (faster for many files)
    except FileNotFoundError:
        return 0


def _digest(path: str | Path) -> str:
    """Hash of a file: of all of it up to 1 MiB, otherwise of 16 blocks."""
    digest = hashlib.blake2b(digest_size=16)
    with suppress(FileNotFoundError), Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for block in range(_BLOCKS):
            file.seek(block * max(0, size - _BLOCK) // (_BLOCKS - 1) if size > _BLOCKS * _BLOCK else block * _BLOCK)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _note(folder: Path, files: Sequence[str | Path], digests: Sequence[str] | None = None) -> None:
    """Write times and hashes of the files that arrays are made of."""
    times = [_time(path) for path in files]
    if digests is None:
        with ThreadPoolExecutor(cores()) as pool:
            digests = [*pool.map(_digest, files)]
    with atomic_write(folder / _SOURCES) as out:
        json.dump({"times": times, "digests": digests}, out)


def _same_files(folder: Path, files: Sequence[str | Path]) -> bool:
    """True if arrays were made of these files: only files with another time, as after a copy, are read."""
    if not files:
        return True
    try:
        noted = json.loads((folder / _SOURCES).read_text("utf-8"))
        recorded = zip(files, noted["times"], noted["digests"], strict=True)
        changed = [(path, digest) for path, time_then, digest in recorded if _time(path) != time_then]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    with ThreadPoolExecutor(cores()) as pool:
        if [*pool.map(_digest, (path for path, _ in changed))] != [digest for _, digest in changed]:
            return False
    if changed:
        with suppress(OSError):  # the folder may be read-only
            _note(folder, files, noted["digests"])
    return True


def key_of(*parts: Any) -> str:
    """A key of `cached`: a hash of some values, by their `repr`."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
