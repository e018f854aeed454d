"""`command.json`: arguments, process and environment of a run."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.loading import loaded
from plif_lightning.runtime.files import file_lock, written_whole


def _state_and_birth(pid: int) -> tuple[str, str] | None:
    """Return a process's state and start time (Linux only); the start time detects a reused pid."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return after_name[0], after_name[19]
    except (OSError, IndexError):
        return None


def is_alive(started: dict[str, Any]) -> bool:
    """True if the process described by `process_identity` runs on this host."""
    pid = started.get("pid")
    if started.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    known = _state_and_birth(pid)
    if known is not None:
        state, born = known
        return state not in "ZX" and born == started.get("born", born)
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def process_identity() -> dict[str, Any]:
    """Return host, pid and start time of this process, from which `is_alive` tells if it still runs."""
    known = _state_and_birth(os.getpid())
    return {"host": socket.gethostname(), "pid": os.getpid(), **({} if known is None else {"born": known[1]})}


def remove_empty(folder: Path) -> None:
    """Delete a folder if it is empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Lock a run's folder, so that no other process trains in it. The folder is created, and deleted if left empty.

    Raises:
        UserError: another process holds the lock.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = file_lock(folder.lock, blocking=False)
    try:
        lock.acquire()
        held = False
    except Timeout:
        held = True
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT):
            raise
        held = is_alive(loaded(folder.command, [], optional=True))  # the file system does not support locks
    if held:
        raise UserError(f"{folder.path} is being trained by another process: wait for it, or end it first.")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if set(folder.path.iterdir()) == {folder.lock}:
                folder.lock.unlink()
        lock.release()
        remove_empty(folder.path)


def in_use(folder: RunFolder) -> bool:
    """True if a process trains in a run's folder; may miss one on another host if the file system has no locks."""
    if not folder.result.is_file() and is_alive(loaded(folder.command, [], optional=True)):
        return True
    if not folder.lock.exists():
        return False
    try:
        with locked(folder):
            return False
    except UserError:
        return True


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield names and values of the options, `--key value` or `--key=value`, that follow the subcommand."""
    parts = list(arguments[1:])
    while parts:
        name, separator, value = parts.pop(0).removeprefix("--").partition("=")
        if not separator:
            value = parts.pop(0) if parts and not parts[0].startswith("--") else ""
        yield ("config" if name == "-c" else name), value


@dataclass(frozen=True)
class Resumption:
    """How a run was resumed.

    Attributes:
        step: training step at which it resumes.
        changed: new values of settings that differ from before, by their dotted keys.
        longer: new values of settings that only extend the run.
    """

    step: int
    changed: Mapping[str, Any] = field(default_factory=dict)
    longer: Mapping[str, Any] = field(default_factory=dict)


def write_command(
    folder: RunFolder, arguments: Sequence[str], surroundings: Mapping[str, str], resumed: Resumption | None = None
) -> set[str]:
    """Write `command.json` at the start of a fit.

    Args:
        folder: folder of the run.
        arguments: arguments of main.py. A resumed run keeps its original ones and appends `resumed.longer`.
        surroundings: machine, versions, commit. Where they differ from those of a resumed run, both are kept.
        resumed: how the run is resumed; None for a new run. Its changes are appended to earlier ones.

    Returns:
        Keys of `surroundings` whose values differ from before.
    """
    around, changes = dict(surroundings), []
    others: set[str] = set()
    if folder.command.is_file() and resumed is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            earlier = json.loads(folder.command.read_text("utf-8"))
            arguments = [*earlier["arguments"], *(f"--{name}={value}" for name, value in resumed.longer.items())]
            changes = [*earlier.get("changes", [])]
            if resumed.changed:
                changes.append({"step": resumed.step, "settings": dict(resumed.changed)})
            for name, value in (earlier.get("surroundings") or {}).items():
                known = str(value).split(", then ")
                if name in around and around[name] != known[-1]:
                    others.add(name)
                around[name] = ", then ".join(
                    known if around.get(name) in (None, known[-1]) else [*known, around[name]]
                )
    facts = {"arguments": list(arguments), "started": time.time(), **process_identity(), "surroundings": around}
    if changes:
        facts["changes"] = changes
    with written_whole(folder.command) as file:
        json.dump(facts, file, indent=2)
    return others
