"""Locks between processes that end with the process that holds them."""

import errno
import inspect
from pathlib import Path
from typing import Any

from filelock import FileLock

# A lock that its process leaves behind, as a file does, would be held for ever.
_HARD: dict[str, Any] = (
    {"fallback_to_soft": False} if "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters else {}
)


def file_lock(path: Path, *, blocking: bool = True) -> FileLock:
    """The system's lock on a file, which is made; not taken yet.

    Args:
        path: of the file; its folder must be there.
        blocking: whether to wait for a process that holds it.

    Acquiring raises `filelock.Timeout` where it is held, and OSError or NotImplementedError where the file cannot be
    written or its file system has no locks.
    """
    return FileLock(path, blocking=blocking, **_HARD)


def is_about_locks(error: Exception) -> bool:
    """Whether it says that a file system has no locks."""
    without = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in without
