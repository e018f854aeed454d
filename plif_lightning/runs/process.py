"""`command.json`: the arguments that started a run, which process it is, and what it is computed on and with."""

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
from plif_lightning.runtime.files import written_whole
from plif_lightning.runtime.locks import file_lock


def _state_and_birth(pid: int) -> tuple[str, str] | None:
    """A process's state and start, where the system tells them (Linux); a pid may be given to another one later."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return after_name[0], after_name[19]
    except (OSError, IndexError):
        return None


def is_alive(started: dict[str, Any]) -> bool:
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
    """What tells later whether a run is still running."""
    known = _state_and_birth(os.getpid())
    return {"host": socket.gethostname(), "pid": os.getpid(), **({} if known is None else {"born": known[1]})}


def remove_empty(folder: Path) -> None:
    """Takes a folder away, unless something is in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Holds a run's folder, so that no other process trains in it. It is made, and taken away where it stays empty.

    Raises:
        UserError: another process holds it.
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
        held = is_alive(loaded(folder.command, [], optional=True))  # a file system without locks
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
    """Whether a process trains in a run's folder, as far as that can be known from here."""
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
    """Names and values of a command's options, `--key value` or `--key=value`, after the command itself."""
    parts = list(arguments[1:])
    while parts:
        name, separator, value = parts.pop(0).removeprefix("--").partition("=")
        if not separator:
            value = parts.pop(0) if parts and not parts[0].startswith("--") else ""
        yield ("config" if name == "-c" else name), value


@dataclass(frozen=True)
class Resumption:
    """That a run goes on.

    Attributes:
        step: at which it was left.
        changed: settings that it has from now on, by their dotted keys, and had otherwise before.
        longer: those that make it longer, and change nothing else.
    """

    step: int
    changed: Mapping[str, Any] = field(default_factory=dict)
    longer: Mapping[str, Any] = field(default_factory=dict)


def write_command(
    folder: RunFolder, arguments: Sequence[str], surroundings: Mapping[str, str], resumed: Resumption | None = None
) -> set[str]:
    """Says that a fit has started; gives the surroundings that are others than a run that is resumed had.

    Args:
        folder: of the run.
        arguments: of main.py. A run that is resumed keeps those that started it, and gets what makes it longer.
        surroundings: machine, versions, commit. Where a run is resumed in others, it keeps both.
        resumed: where it is; what that changes is added to what it changed before.
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
