"""Download, verify and unpack data set archives. Their content is untrusted, and every step is atomic."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from plif_lightning.errors import DatasetNotFoundError, UserError

_CHUNK = 2**20
_TRIES = 4
_PAUSE = 2.0  # seconds before the second try, twice as long before each further one
_TIMEOUT = 30  # seconds without a byte


class ArchiveError(UserError):
    """An archive differs from the published one, or its content is unsafe."""


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        name: file name.
        md5: MD5 of the content, in hexadecimal digits.
        url: download URL; None if it must be downloaded by hand.
        page: web page to download it from by hand.
        limit: largest accepted size of the unpacked content [bytes].
    """

    name: str
    md5: str
    url: str | None
    page: str
    limit: int


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yields a function that advances it by a number of bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        yield partial(progress.advance, progress.add_task(description, total=total))


def _chunks(content: IO[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    """Rest of a file or response in chunks."""
    while chunk := content.read(_CHUNK):
        yield chunk
        advance(len(chunk))


def _md5(path: Path, description: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, _bar(description, path.stat().st_size) as advance:
        for chunk in _chunks(file, advance):
            digest.update(chunk)
    return digest.hexdigest()


def verify(path: Path, archive: Archive) -> None:
    """Compare a file's MD5 with the published one.

    Raises:
        ArchiveError: it differs.
    """
    found = _md5(path, f"verifying {path.name}")
    if found != archive.md5:
        raise ArchiveError(
            f"{path} is not the published {archive.name}: its md5 is {found}, not {archive.md5}. It is damaged, "
            f"incomplete or another file: delete it and download it again from {archive.url or archive.page}."
        )


def _response(url: str, have: int) -> Any:
    """Response with the bytes of a file after the first `have`; None if there are no more."""
    headers = {"User-Agent": "plif_lightning"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return None
        raise


def _transfer(url: str, part: Path, name: str) -> None:
    """Download the rest of a file and append it to `part`."""
    have = part.stat().st_size if part.exists() else 0
    response = _response(url, have)
    if response is None:  # the MD5 decides
        return
    with response:
        # A server without range requests sends the whole file again.
        have = have if response.status == 206 else 0
        left = int(response.headers.get("Content-Length") or 0)
        total = have + left if left else None
        with part.open("ab") as file, _bar(f"fetching {name}", total) as advance:
            file.truncate(have)
            advance(have)
            for chunk in _chunks(response, advance):
                file.write(chunk)
    if total and part.stat().st_size < total:
        raise http.client.IncompleteRead(b"", total - part.stat().st_size)


def error_of_the_disk(error: Exception) -> bool:
    """True if a local file caused the error; false for network errors, including those of urllib and ssl."""
    disk = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    network = urllib.error.URLError | ssl.SSLError | ConnectionError | TimeoutError
    return isinstance(error, OSError) and not isinstance(error, network) and error.errno in disk


def _download(archive: Archive, part: Path) -> None:
    """Append the rest of an archive to `part`, in several tries."""
    assert archive.url is not None
    folder = part.parent
    for attempt in range(1, _TRIES + 1):
        try:
            _transfer(archive.url, part, archive.name)
            return
        except (OSError, http.client.HTTPException) as error:
            if error_of_the_disk(error):
                raise UserError(
                    f"{archive.name} cannot be written into {folder}: {os.strerror(error.errno)}. Free some space, "  # type: ignore[union-attr,arg-type]
                    f"or point --data.root elsewhere. {part} keeps what was received; the next call resumes it."
                ) from error
            lasting = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if attempt == _TRIES or lasting:
                kept = f" {part} keeps what was received; the next call resumes it." if part.exists() else ""
                raise DatasetNotFoundError(
                    f"{archive.name} could not be downloaded from {archive.url} ({error}).{kept} "
                    f"Or fetch it by hand ({archive.page}) and put it into {folder}."
                ) from error
            time.sleep(_PAUSE * 2 ** (attempt - 1))


def fetch(archive: Archive, folder: Path) -> Path:
    """Download an archive, resuming an interrupted download, and verify it before renaming it to its final name.

    Raises:
        DatasetNotFoundError: it cannot be downloaded.
        ArchiveError: the downloaded file is not the published one.
        UserError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.name}.part"
    _download(archive, part)
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
    """Unpack a .zip or .tar.gz; each top-level entry appears atomically.

    Args:
        path: the archive.
        folder: folder for the entries; existing ones are left unchanged.
        limit: largest accepted size of the content, including all inner archives [bytes].
        nested: also unpack the .zip files among the entries, and delete them.

    Raises:
        ArchiveError: a path leaves the folder; a member is a link or special file, occurs twice or is truncated; or the
            content exceeds `limit`, the free space or the number of files.
        UserError: the content cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _unpack(path, folder, _Allowance(limit, shutil.disk_usage(folder).free), nested)


# Twice the files of the largest data set (N-MNIST: 70,000 recordings in 20 folders).
_MAX_FILES = 140_000


@dataclass
class _Allowance:
    """Remaining budget of bytes, and of files and folders."""

    size: int
    free: int
    files: int = field(default_factory=lambda: _MAX_FILES)

    def take(self, path: Path, folder: Path, size: int) -> None:
        self.size -= size
        self.free -= size
        self.files -= 1
        if self.size < 0 or self.files < 0:
            raise ArchiveError(f"{path}: its content has more bytes or files than this data set. Nothing was unpacked.")
        if self.free < 0:
            raise ArchiveError(f"{path}: its content is larger than the space that is free in {folder}.")


@contextmanager
def _explained(path: Path, folder: Path) -> Iterator[None]:
    """Turn errors of unpacking an archive into an ArchiveError, or into a UserError if the folder causes them."""
    try:
        yield
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


def _unpack(path: Path, folder: Path, allowance: _Allowance, nested: bool) -> None:
    staging = folder / f".unpacking-{path.name}"
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed process; the caller holds the lock
    staging.mkdir()
    try:
        with _explained(path, folder):
            with _bar(f"unpacking {path.name}", None) as advance:
                for member in _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path):
                    target = _target(staging, member.name, path)
                    allowance.take(path, folder, member.size)
                    _write(member, target, path, advance)
            if nested:
                for inner in sorted(staging.glob("*.zip")):
                    _unpack(inner, staging, allowance, nested=False)
                    inner.unlink()
            for entry in sorted(staging.iterdir()):
                if not (folder / entry.name).exists():
                    entry.rename(folder / entry.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(member: _Member, target: Path, path: Path, advance: Callable[[int], None]) -> None:
    """Write one member of an archive `path`. Its stated size is untrusted."""
    if member.content is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with target.open("xb") as file:
        for chunk in _chunks(member.content, advance):
            file.write(chunk)
            size += len(chunk)
            if size > member.size:
                break
    if size != member.size:
        raise ArchiveError(f"{path}: {member.name!r} is not of the size that it states. Nothing was unpacked.")
