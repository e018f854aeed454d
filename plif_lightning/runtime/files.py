"""Files that appear whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}

_REASONS = {
    errno.ENOSPC: "The disk is full: free some space",
    errno.EDQUOT: "The quota is used up: free some space",
    errno.EFBIG: "The file would be too large for this file system or its limit",
    errno.EROFS: "The file system is read-only: choose another place",
    errno.EEXIST: "there is a file, or a link to nothing, instead of a folder: move it away, or choose another place",
    errno.ENOTDIR: "a folder above it is a file: choose another place",
    errno.EACCES: "permission denied: change its permissions",
}


def relative(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # somebody has taken it away
        return str(path)
    path = path.resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def is_address(place: str) -> bool:
    """Whether a place is an address, such as s3://bucket, instead of a path."""
    return "://" in place


def reason(error: OSError) -> str:
    """Why a file cannot be written, and what helps, as a sentence without its full stop."""
    return _REASONS.get(error.errno or 0, f"{error.strerror or error}")


def about_writing(error: OSError) -> bool:
    """Whether it says that a file cannot be written."""
    return error.errno in _REASONS


class _Watched:
    """A file that remembers why it could not be written: not every library passes that on."""

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
    """Errors in writing say which file cannot be written: what fails within `write` names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


@contextmanager
def written_whole(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """A file to write into, which takes the place of `path` when the block ends without an error.

    Until then, and after an error, `path` is what it was before. It is replaced in one step, on its own file system,
    and only when all of the new content has reached the disk. Missing folders are made.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """
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
