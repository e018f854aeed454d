"""Event stores on object storage, at any fsspec URL (`s3://`, `file://`). Each machine downloads a store once."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec

from plif_lightning.events.store import ARRAYS, EventStore, Kind, StoreError, remove_others
from plif_lightning.runtime.files import naming, written_whole

_log = logging.getLogger(__name__)
_PORTION = 2**24  # bytes


def copies_of(address: str) -> Path:
    """Local folder for copies of the stores at a URL, below the system's temporary folder."""
    name = hashlib.blake2b(address.encode(), digest_size=8).hexdigest()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"plif_lightning-{user}" / name


def claim(copies: Path) -> None:
    """Make the user's folder of all copies. What lies there is taken as verified, so nobody else may write into it.

    Args:
        copies: a folder in it, as of `copies_of`.

    Raises:
        StoreError: it is another user's.
    """
    own = copies.parent
    mine = getattr(os, "getuid", lambda: 0)
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = own.stat()
        # A folder of an earlier version, in which others may have put copies.
        if status.st_uid == mine() and status.st_mode & 0o022:
            _log.warning("%s could be written by others: its copies of event stores are fetched again.", own)
            shutil.rmtree(own)
            own.mkdir(mode=0o700)
            status = own.stat()
    except OSError as error:
        raise StoreError(
            f"the copies of event stores cannot be kept in {own}: {error.strerror}. Set TMPDIR."
        ) from error
    if status.st_uid != mine():
        raise StoreError(
            f"{own}, where copies of event stores are kept, belongs to another user: set TMPDIR to one of your own."
        )


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Turn any error except a missing file into a StoreError that names the URL."""
    try:
        yield
    except (StoreError, FileNotFoundError):
        raise
    except Exception as error:  # every fsspec backend has its own error types
        missing = f" Install what is missing: {error}." if isinstance(error, ImportError) else ""
        reason = "" if missing else f" ({' '.join(str(error).split()) or type(error).__name__})"
        raise StoreError(f"the event stores at {address} cannot be reached{reason}.{missing}") from error


def fetch(address: str, folder: Path, kind: Kind) -> bool:
    """Download a store from a URL into a folder, unless it is already there. True if the URL has a store.

    The caller holds `runtime.locks.folder_lock(folder)`.

    Raises:
        StoreError: the URL cannot be reached, or the copy does not match its checksums.
        OSError: the copy cannot be written.
    """
    here = folder / f"{kind.name}.json"
    text = _text_at(address, kind)
    if text is None:
        return False
    name = _folder_of(text, kind, address)
    if here.is_file() and here.read_bytes() == text:
        with suppress(StoreError):  # the system may have deleted an array from its temporary folder
            EventStore(folder, kind)
            return True
    staging = folder / f"{name}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        for array in ARRAYS:
            with naming(staging / f"{array}.npy"), (staging / f"{array}.npy").open("wb") as copy:
                _copy(f"{address}/{name}/{array}.npy", copy)
        shutil.rmtree(folder / name, ignore_errors=True)
        staging.rename(folder / name)
        with written_whole(here, "wb") as file:
            file.write(text)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    try:
        EventStore(folder, kind).verify()
    except StoreError as error:
        here.unlink()
        raise StoreError(f"the copy of {address}/{kind.name}.json differs from what was built: {error}") from error
    remove_others(folder, kind, folder / name)
    return True


def classes_at(address: str, kind: Kind) -> tuple[str, ...]:
    """Class names of the store at a URL; () if there is no store or it has no names.

    Raises:
        StoreError: the URL cannot be reached.
    """
    text = _text_at(address, kind)
    return () if text is None else _classes_of(_meta(text, kind, address))


def _text_at(address: str, kind: Kind) -> bytes | None:
    """Content of the store's NAME.json at a URL; None if there is none."""
    try:
        with _reaching(address):
            files, root = fsspec.core.url_to_fs(address)
            return bytes(files.cat_file(f"{root}/{kind.name}.json"))
    except FileNotFoundError:
        return None


def _classes_of(meta: dict[str, Any]) -> tuple[str, ...]:
    classes = meta.get("classes", ())
    return tuple(map(str, classes)) if isinstance(classes, list) else ()


def _meta(text: bytes, kind: Kind, address: str) -> dict[str, Any]:
    try:
        meta = json.loads(text)
        if not isinstance(meta, dict):
            raise TypeError(f"{type(meta).__name__} is not a JSON object")
    except (ValueError, TypeError) as error:
        raise StoreError(f"{address}/{kind.name}.json is damaged ({type(error).__name__}: {error}).") from error
    return meta


def _folder_of(text: bytes, kind: Kind, address: str) -> str:
    """Folder name of a store's arrays. It is untrusted input, so it must be the name that a build would choose.

    Raises:
        StoreError: it is a different name, or the store has other classes.
    """
    meta = _meta(text, kind, address)
    try:
        name, expected = meta["folder"], f"{kind.name}.{meta['fingerprint']}"
    except KeyError as error:
        raise StoreError(f"{address}/{kind.name}.json is damaged ({type(error).__name__}: {error}).") from error
    if kind.classes and (found := _classes_of(meta)) != kind.classes:
        raise StoreError(
            f"the event store at {address} holds recordings of {', '.join(found) or 'unnamed classes'}, but those here "
            f"are of {', '.join(kind.classes)}: pass another URL with --data.store."
        )
    if name != expected or not re.fullmatch(r"[\w.-]+", name):
        raise StoreError(f"{address}/{kind.name}.json is no event store of this project: its folder is {name!r}.")
    return str(name)


def _copy(source: str, to: IO[bytes]) -> None:
    try:
        with _reaching(source):
            files, path = fsspec.core.url_to_fs(source)
            remote = files.open(path, "rb")
    except FileNotFoundError as error:
        raise StoreError(f"{source} is missing: that store is incomplete.") from error
    with remote:
        while True:
            with _reaching(source):
                portion = remote.read(_PORTION)
            if not portion:
                return
            to.write(portion)


def publish(address: str, folder: Path, kind: Kind) -> None:
    """Upload a store from a folder to a URL, NAME.json last: an interrupted upload does not count as a store.

    Raises:
        StoreError: the URL cannot be reached or written.
    """
    store = EventStore(folder, kind)
    with _reaching(address):
        files, root = fsspec.core.url_to_fs(address)
        files.makedirs(f"{root}/{store.folder.name}", exist_ok=True)
        for path in sorted(store.folder.iterdir()):
            files.put_file(os.fspath(path), f"{root}/{store.folder.name}/{path.name}")
        files.pipe_file(f"{root}/{kind.name}.json", store.path.read_bytes())
