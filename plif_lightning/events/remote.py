"""Event stores on object storage, at any address that fsspec knows (`s3://`, `file://`); each machine copies once."""

import hashlib
import json
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

_PORTION = 2**24  # bytes


def copies_of(address: str) -> Path:
    """Where this machine keeps its copies of the stores at an address: in the folder of temporary files."""
    name = hashlib.blake2b(address.encode(), digest_size=8).hexdigest()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"plif_lightning-{user}" / name


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Whatever goes wrong at an address names it, but that a file is not there."""
    try:
        yield
    except (StoreError, FileNotFoundError):
        raise
    except Exception as error:  # each file system has its own
        missing = f" Install what is missing: {error}." if isinstance(error, ImportError) else ""
        reason = "" if missing else f" ({' '.join(str(error).split()) or type(error).__name__})"
        raise StoreError(f"the event stores at {address} cannot be reached{reason}.{missing}") from error


def fetch(address: str, folder: Path, kind: Kind) -> bool:
    """Copies a store from an address into a folder, unless the same one is there; whether the address has one.

    The caller holds `locked(folder)`.

    Raises:
        StoreError: the address cannot be reached, or what came is not what the store says.
        OSError: the copy cannot be written.
    """
    here = folder / f"{kind.name}.json"
    text = _text_at(address, kind)
    if text is None:
        return False
    name = _folder_of(text, kind, address)
    if here.is_file() and here.read_bytes() == text:
        with suppress(StoreError):  # an array may have been swept out of the folder of temporary files
            EventStore(folder, kind)
            return True
    beside = folder / f"{name}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        for array in ARRAYS:
            with naming(beside / f"{array}.npy"), (beside / f"{array}.npy").open("wb") as copy:
                _copy(f"{address}/{name}/{array}.npy", copy)
        shutil.rmtree(folder / name, ignore_errors=True)
        beside.rename(folder / name)
        with written_whole(here, "wb") as file:
            file.write(text)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    try:
        EventStore(folder, kind).verify()
    except StoreError as error:
        here.unlink()
        raise StoreError(f"the copy of {address}/{kind.name}.json is not what was built: {error}") from error
    remove_others(folder, kind, folder / name)
    return True


def classes_at(address: str, kind: Kind) -> tuple[str, ...]:
    """Names of the classes of the store at an address; () where there is none, or it does not hold them.

    Raises:
        StoreError: the address cannot be reached.
    """
    text = _text_at(address, kind)
    return () if text is None else _classes_of(_meta(text, kind, address))


def _text_at(address: str, kind: Kind) -> bytes | None:
    """The NAME.json of a store at an address; None where there is none."""
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
            raise TypeError(f"{type(meta).__name__} is no table")
    except (ValueError, TypeError) as error:
        raise StoreError(f"{address}/{kind.name}.json is damaged ({type(error).__name__}: {error}).") from error
    return meta


def _folder_of(text: bytes, kind: Kind, address: str) -> str:
    """The name of a store's folder of arrays. A stranger may have written it: it must be the one that a build gives.

    Raises:
        StoreError: it is another one, or the store is of other classes.
    """
    meta = _meta(text, kind, address)
    try:
        name, expected = meta["folder"], f"{kind.name}.{meta['fingerprint']}"
    except KeyError as error:
        raise StoreError(f"{address}/{kind.name}.json is damaged ({type(error).__name__}: {error}).") from error
    if kind.classes and (found := _classes_of(meta)) != kind.classes:
        raise StoreError(
            f"the event store at {address} holds recordings of {', '.join(found) or 'unnamed classes'}, but those here "
            f"are of {', '.join(kind.classes)}: name another address with --data.store."
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
        raise StoreError(f"{source} is missing: that store is not whole.") from error
    with remote:
        while True:
            with _reaching(source):
                portion = remote.read(_PORTION)
            if not portion:
                return
            to.write(portion)


def publish(address: str, folder: Path, kind: Kind) -> None:
    """Copies a store from a folder to an address, its NAME.json last: a copy that was broken off is none.

    Raises:
        StoreError: the address cannot be reached or written.
    """
    store = EventStore(folder, kind)
    with _reaching(address):
        files, root = fsspec.core.url_to_fs(address)
        files.makedirs(f"{root}/{store.folder.name}", exist_ok=True)
        for path in sorted(store.folder.iterdir()):
            files.put_file(os.fspath(path), f"{root}/{store.folder.name}/{path.name}")
        files.pipe_file(f"{root}/{kind.name}.json", store.path.read_bytes())
