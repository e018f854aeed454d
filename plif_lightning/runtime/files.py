"""Atomic file writes, locks between processes, and readable I/O errors."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from filelock import FileLock

_log = logging.getLogger(__name__)

_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}

_REASONS = {
    errno.ENOSPC: "The disk is full: free some space",
    errno.EDQUOT: "The disk quota is exceeded: free some space",
    errno.EFBIG: "The file would be too large for this file system or its limit",
    errno.EROFS: "The file system is read-only: choose another folder",
    errno.EEXIST: "a file or a broken link is where a folder must be: move it away, or choose another folder",
    errno.ENOTDIR: "one of its parent folders is a file: choose another folder",
    errno.EACCES: "permission denied: change its permissions",
}


def relative(path: Path) -> str:
    """Return the path relative to the working directory if it lies below it; otherwise absolute."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the working directory was deleted
        return str(path)
    path = path.resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def is_address(path: str) -> bool:
    """True for a URL such as s3://bucket, False for a path."""
    return "://" in path


def reason(error: OSError) -> str:
    """Return why a file cannot be written and how to fix it, as a sentence without full stop."""
    return _REASONS.get(error.errno or 0, f"{error.strerror or error}")


def about_writing(error: OSError) -> bool:
    """True if the error is a known reason for which a file cannot be written."""
    return error.errno in _REASONS


class _Watched:
    """A file that keeps its last write error, because some libraries replace it."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to any OSError without a file name, such as from `write`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


@contextmanager
def atomic_write(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Yield a temporary file that replaces `path` atomically if the block ends without an error.

    After an error, `path` is unchanged. The temporary file is in the same folder and is fsynced before the rename.
    Missing folders are created.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    watched = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open(mode, **({} if mode == "wb" else _TEXT)) as file:
            watched = _Watched(file)
            yield watched  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except Exception as error:
        cause = error if isinstance(error, OSError) else watched and watched.error
        if cause and cause.filename in (None, os.fspath(beside)):
            raise OSError(cause.errno, cause.strerror, os.fspath(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def file_lock(path: Path, *, blocking: bool = True) -> "FileLock":
    """Return the system's lock on a file, not acquired yet.

    Args:
        path: file, created when the lock is acquired; its folder must exist.
        blocking: wait for a process that holds it.

    Acquiring raises `filelock.Timeout` if it is held, and OSError or NotImplementedError if the file cannot be written
    or its file system has no locks.
    """
    from filelock import FileLock  # which takes 50 ms to load

    # A lock that outlives its process, as a file does, would be held forever.
    return FileLock(path, blocking=blocking, fallback_to_soft=False)


def has_no_locks(error: Exception) -> bool:
    """True if an error of a lock says that its file system has none."""
    without = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in without


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that a single process writes there. It is created if it is missing."""
    from filelock import Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = file_lock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("Another process is preparing %s: waiting for it.", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
