"""The lock of a run's folder: a single process trains there."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.loading import load_mapping
from plif_lightning.runs.record import is_alive
from plif_lightning.runtime.files import file_lock


class InUseError(UserError):
    """Another process trains in a run's folder."""


def remove_empty(folder: Path) -> None:
    """Delete a folder if it is empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def lock_run(folder: RunFolder) -> Iterator[None]:
    """Lock a run's folder, so that no other process trains in it. The folder is created, and deleted if left empty.

    Raises:
        InUseError: another process holds the lock.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = file_lock(folder.lock, blocking=False)
    record = load_mapping(folder.record, [], optional=True)
    try:
        lock.acquire()
        is_locked = False
    except Timeout:
        is_locked = True
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT):
            raise
        is_locked = is_alive(record)  # the file system does not support locks
    if is_locked:
        process = record.get("process") or {}
        who = f"process {process['pid']} on {process['host']}" if "pid" in process else "another process"
        raise InUseError(f"{folder.path} is being trained by {who}: wait for it, or end it first.")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if set(folder.path.iterdir()) == {folder.lock}:
                folder.lock.unlink()
        lock.release()
        remove_empty(folder.path)


def in_use(folder: RunFolder) -> bool:
    """True if another process trains in a run's folder."""
    if not folder.lock.exists():
        return False
    try:
        with lock_run(folder):
            return False
    except InUseError:
        return True
