"""The lock of a run's folder: a single process trains there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, SoftFileLock, Timeout

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.record import read_record
from plif_lightning.runtime.files import file_lock, has_no_locks

# A process that only asks whether a run is in training holds its lock for a moment: a fit waits that long [s].
_PATIENCE = 0.5


class InUseError(UserError):
    """Another process trains in a run's folder."""


def remove_empty(folder: Path) -> None:
    """Delete a folder if it is empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def lock_run(folder: RunFolder, patience: float = _PATIENCE) -> Iterator[None]:
    """Lock a run's folder, so that no other process trains in it. The folder is created, and deleted if left empty.

    Args:
        folder: of the run.
        patience: time to wait for another process [s].

    Raises:
        InUseError: another process holds the lock.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    lock: BaseFileLock = file_lock(folder.lock)
    try:
        try:
            lock.acquire(timeout=patience)
        except (OSError, NotImplementedError) as error:
            if not has_no_locks(error):
                raise
            # A file with the name of its process, which filelock takes over once that has ended.
            lock = SoftFileLock(folder.process)
            lock.acquire(timeout=patience)
    except Timeout:
        sessions = read_record(folder).sessions
        process = sessions[-1].process if sessions else {}
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
        with lock_run(folder, patience=0):
            return False
    except InUseError:
        return True
    except OSError:  # of another user, or on storage that is only read: it cannot be locked from here
        return False
