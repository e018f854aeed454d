"""Event stores on object storage, at any address that fsspec knows (`s3://`, `file://`); each machine copies once."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from plif_lightning.events.store import EventStore, Kind, StoreError
from plif_lightning.runtime.files import written_whole


def is_address(store: str) -> bool:
    """Whether a store's place is an address instead of a folder."""
    return "://" in store


def copies_of(address: str) -> Path:
    """Where this machine keeps its copies of the stores at an address: in the folder of temporary files."""
    name = hashlib.blake2b(address.encode(), digest_size=8).hexdigest()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"plif_lightning-{user}" / name


@contextmanager
def _opened(address: str) -> Iterator[tuple[Any, str]]:
    """The file system and path of an address; whatever goes wrong there names it."""
    try:
        yield fsspec.core.url_to_fs(address)
    except StoreError:
        raise
    except Exception as error:  # each file system has its own
        missing = f" Install what is missing: {error}." if isinstance(error, ImportError) else ""
        reason = "" if missing else f" ({' '.join(str(error).split()) or type(error).__name__})"
        raise StoreError(f"the event stores at {address} cannot be reached{reason}.{missing}") from error


def fetch(address: str, folder: Path, kind: Kind) -> None:
    """Copies a store from an address into a folder, unless the same one is there or the address has none.

    The caller holds `locked(folder)`.

    Raises:
        StoreError: the address cannot be reached, or what came is not what the store says.
    """
    with _opened(address) as (files, root):
        path = f"{root}/{kind.name}.json"
        if not files.exists(path):
            return
        text = files.cat_file(path)
        here = folder / f"{kind.name}.json"
        if here.is_file() and here.read_bytes() == text:
            return
        meta = json.loads(text)
        name = Path(meta["folder"]).name
        beside = folder / f"{name}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            for array in meta["arrays"]:
                files.get_file(f"{root}/{name}/{array}.npy", os.fspath(beside / f"{array}.npy"))
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


def publish(address: str, folder: Path, kind: Kind) -> None:
    """Copies a store from a folder to an address, its NAME.json last.

    Raises:
        StoreError: the address cannot be reached or written.
    """
    store = EventStore(folder, kind)
    with _opened(address) as (files, root):
        files.makedirs(f"{root}/{store.folder.name}", exist_ok=True)
        for path in sorted(store.folder.iterdir()):
            files.put_file(os.fspath(path), f"{root}/{store.folder.name}/{path.name}")
        files.pipe_file(f"{root}/{kind.name}.json", store.path.read_bytes())
