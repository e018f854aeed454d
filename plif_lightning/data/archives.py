"""Archives of data sets: fetched, verified, unpacked. None is trusted, and nothing is left half done."""

import errno
import hashlib
import http.client
import os
import shutil
import ssl
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from plif_lightning.errors import DatasetNotFoundError, UserError

_CHUNK = 2**20
_TRIES = 4
_PAUSE = 2.0  # seconds before the second try, twice as long before each further one
_TIMEOUT = 30  # seconds without a byte


class ArchiveError(UserError):
    """An archive is not the published one, or holds what no data set holds."""


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        name: of the file.
        md5: of its content, in hexadecimal digits.
        url: where it is fetched from; None where people must fetch it themselves.
        page: where people find it.
        limit: largest size of its unpacked content [bytes].
    """

    name: str
    md5: str
    url: str | None
    page: str
    limit: int


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        yield progress, progress.add_task(description, total=total)


def _md5(path: Path, description: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, _bar(description, path.stat().st_size) as (progress, task):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.advance(task, len(chunk))
    return digest.hexdigest()


def verify(path: Path, archive: Archive) -> None:
    """Compares a file with the published one.

    Raises:
        ArchiveError: it is another one.
    """
    found = _md5(path, f"verifying {path.name}")
    if found != archive.md5:
        raise ArchiveError(
            f"{path} is not the published {archive.name}: its md5 is {found}, not {archive.md5}. It is damaged, "
            f"incomplete or another file: delete it, and fetch it anew from {archive.url or archive.page}."
        )


def _transfer(url: str, part: Path, name: str) -> None:
    """Adds to `part` what it lacks of the file."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "plif_lightning"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing; the md5 will tell
            return
        raise
    with response:
        # A server that knows no ranges sends everything again.
        goes_on = have > 0 and response.status == 206
        left = int(response.headers.get("Content-Length") or 0) or None
        total = left and left + (have if goes_on else 0)
        with part.open("ab" if goes_on else "wb") as file, _bar(f"fetching {name}", total) as (progress, task):
            progress.advance(task, have if goes_on else 0)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
    if total and part.stat().st_size < total:
        raise http.client.IncompleteRead(b"", total - part.stat().st_size)


def error_of_the_disk(error: Exception) -> bool:
    """Whether this is about a file here, and not about the network, to which urllib's and ssl's errors belong too."""
    disk = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    network = urllib.error.URLError | ssl.SSLError | ConnectionError | TimeoutError
    return isinstance(error, OSError) and not isinstance(error, network) and error.errno in disk


def fetch(archive: Archive, folder: Path) -> Path:
    """Downloads an archive, resuming a broken download, and verifies it before it gets its name.

    Raises:
        DatasetNotFoundError: it cannot be downloaded.
        ArchiveError: what was downloaded is not the published file.
    """
    assert archive.url is not None
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.name}.part"
    for attempt in range(1, _TRIES + 1):
        try:
            _transfer(archive.url, part, archive.name)
            break
        except (OSError, http.client.HTTPException) as error:
            if error_of_the_disk(error):
                raise UserError(
                    f"{archive.name} cannot be written into {folder}: {os.strerror(error.errno)}. Free some space, or "  # type: ignore[union-attr,arg-type]
                    f"point --data.root elsewhere. {part} keeps what has come; the next call resumes it."
                ) from error
            lasting = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if attempt == _TRIES or lasting:
                kept = f" {part} keeps what has come; the next call resumes it." if part.exists() else ""
                raise DatasetNotFoundError(
                    f"{archive.name} could not be downloaded from {archive.url} ({error}).{kept} "
                    f"Or fetch it by hand ({archive.page}) and put it into {folder}."
                ) from error
            time.sleep(_PAUSE * 2 ** (attempt - 1))
    found = _md5(part, f"verifying {archive.name}")
    if found != archive.md5:
        part.unlink()
        raise ArchiveError(
            f"{archive.url} gave another file than the published {archive.name}: its md5 is {found}, not "
            f"{archive.md5}. It was deleted. Try again, or fetch it by hand ({archive.page}) and put it into {folder}."
        )
    path = folder / archive.name
    part.replace(path)
    return path


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    content: IO[bytes] | None  # None for a folder


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{path}: {info.filename!r} is a link or a special file. Nothing was unpacked.")
            if info.is_dir():
                yield _Member(info.filename, 0, None)
            else:
                with archive.open(info) as content:
                    yield _Member(info.filename, info.file_size, content)


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            if not (info.isreg() or info.isdir()):
                raise ArchiveError(f"{path}: {info.name!r} is a link or a special file. Nothing was unpacked.")
            content = archive.extractfile(info) if info.isreg() else None
            yield _Member(info.name, info.size, content)


def _target(folder: Path, name: str, path: Path) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or any(":" in part or "\0" in part for part in parts):
        raise ArchiveError(f"{path}: {name!r} would leave the folder that it is unpacked into. Nothing was unpacked.")
    return folder.joinpath(*parts)


def unpack(path: Path, folder: Path, limit: int, nested: bool = False) -> None:
    """Unpacks a .zip or .tar.gz so that each of its top-level entries appears whole, or not at all.

    Args:
        path: of the archive.
        folder: that gets the entries; one that is there already is left as it is.
        limit: largest size of the content [bytes], that of all inner archives together.
        nested: whether the .zip files among the entries are unpacked too, and left out.

    Raises:
        ArchiveError: a path leaves the folder, a member is a link or special file, occurs twice or is
            truncated, or the content is larger than `limit` or than the space that is free, or of too many files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _unpack(path, folder, _Allowance(limit, shutil.disk_usage(folder).free), nested)


# Recordings of the largest data set (N-MNIST: 70,000 in 20 folders), and as many again.
_MOST_FILES = 140_000


@dataclass
class _Allowance:
    """What may still be written [bytes], and how many files and folders."""

    size: int
    free: int
    files: int = field(default_factory=lambda: _MOST_FILES)

    def take(self, path: Path, folder: Path, size: int) -> None:
        self.size -= size
        self.free -= size
        self.files -= 1
        if self.size < 0 or self.files < 0:
            raise ArchiveError(
                f"{path}: its content is larger, or of more files, than this data set is. Nothing was unpacked."
            )
        if self.free < 0:
            raise ArchiveError(f"{path}: its content is larger than the space that is free in {folder}.")


def _unpack(path: Path, folder: Path, allowance: _Allowance, nested: bool) -> None:
    beside = folder / f".unpacking-{path.name}"
    shutil.rmtree(beside, ignore_errors=True)  # of a killed process: whoever unpacks holds the lock
    beside.mkdir()
    try:
        with _bar(f"unpacking {path.name}", None) as (progress, task):
            for member in _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path):
                target = _target(beside, member.name, path)
                allowance.take(path, folder, member.size)
                if member.content is None:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    size = 0
                    # A member's stated size is not believed.
                    while size <= member.size and (chunk := member.content.read(_CHUNK)):
                        file.write(chunk)
                        size += len(chunk)
                        progress.advance(task, len(chunk))
                if size != member.size:
                    raise ArchiveError(
                        f"{path}: {member.name!r} is not of the size that it states. Nothing was unpacked."
                    )
        if nested:
            for inner in sorted(beside.glob("*.zip")):
                _unpack(inner, beside, allowance, nested=False)
                inner.unlink()
        for entry in sorted(beside.iterdir()):
            if not (folder / entry.name).exists():
                entry.rename(folder / entry.name)
    except FileExistsError as error:
        raise ArchiveError(f"{path}: {error.filename} occurs twice in it. Nothing was unpacked.") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"{path} is truncated or damaged ({error}). Nothing was unpacked.") from error
    except OSError as error:
        if error.errno is None or isinstance(error, NotADirectoryError | IsADirectoryError):
            raise ArchiveError(f"{path} is truncated or damaged ({error}). Nothing was unpacked.") from error
        raise UserError(
            f"{path} cannot be unpacked into {folder}: {os.strerror(error.errno)}. Nothing was left there."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
