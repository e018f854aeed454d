"""The lock of a run's folder: a single process trains there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, SoftFileLock, Timeout

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.loading import load_mapping
from plif_lightning.runtime.files import file_lock, has_no_locks

# Who asks whether a run is in training holds its lock for a moment, too [s].
_ASKED = 0.5


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
    lock: BaseFileLock = file_lock(folder.lock)
    try:
        try:
            lock.acquire(timeout=_ASKED)
        except (OSError, NotImplementedError) as error:
            if not has_no_locks(error):
                raise
            # A file with the name of its process, which filelock takes over once that has ended.
            lock = SoftFileLock(folder.process)
            lock.acquire(timeout=_ASKED)
    except Timeout:
        process = load_mapping(folder.record, [], optional=True).get("process") or {}
        who = f"process {process['pid']} on {process['host']}" if "pid" in process else "another process"
        raise InUseError(f"{folder.path} is being trained by {who}: wait for it, or end it first.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if {*folder.path.iterdir()} <= {folder.lock, folder.process}:
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
