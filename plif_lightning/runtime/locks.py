"""Locks between processes that are released when the process that holds them ends."""

import errno
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# A lock that outlives its process, as a file does, would be held forever.
_HARD: dict[str, Any] = (
    {"fallback_to_soft": False} if "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters else {}
)


def file_lock(path: Path, *, blocking: bool = True) -> FileLock:
    """Return the system's lock on a file, not acquired yet.

    Args:
        path: file, created when the lock is acquired; its folder must exist.
        blocking: wait for a process that holds it.

    Acquiring raises `filelock.Timeout` if it is held, and OSError or NotImplementedError if the file cannot be written
    or its file system has no locks.
    """
    return FileLock(path, blocking=blocking, **_HARD)


def is_about_locks(error: Exception) -> bool:
    """True if an error says that a file system has no locks."""
    without = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in without


@contextmanager
def folder_lock(
    folder: Path, unwritable: Callable[[OSError], Exception], waits: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock of a folder, so that one process at a time writes there.

    Args:
        folder: created if it is missing, and removed again if an error leaves it empty.
        unwritable: makes the error that is raised if the folder cannot be written.
        waits: called once if another process holds the lock.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = file_lock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waits()
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise unwritable(error if isinstance(error, OSError) else OSError(0, str(error))) from error
    try:
        yield
    except BaseException:
        if made:
            _remove_unused(folder, made)
        raise
    finally:
        lock.release()


def _remove_unused(folder: Path, made: list[Path]) -> None:
    """Remove a locked folder into which nothing was written, and the folders above it in `made`, from the inside."""
    if folder.is_dir() and set(folder.iterdir()) == {folder / ".lock"}:
        (folder / ".lock").unlink()
        for place in made:
            with suppress(OSError):
                place.rmdir()
