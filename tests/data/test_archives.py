"""Archives: downloaded from a local server, interrupted, replaced and malicious."""

import errno
import gzip
import hashlib
import io
import ssl
import stat
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plif_lightning.data import archives
from plif_lightning.data.archives import Archive, ArchiveError, fetch, unpack, verify
from plif_lightning.errors import DatasetNotFoundError, UserError

CONTENT = bytes(range(256)) * 40
LIMIT = 10**6


class Server(BaseHTTPRequestHandler):
    """Serve CONTENT; `breaks` holds the number of bytes after which each of the next responses ends."""

    breaks: list[int] = []
    ranges: list[str | None] = []
    content = CONTENT
    knows_ranges = True
    status = None

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).ranges.append(wanted)
        if self.status:
            self.send_error(self.status)
            return
        first = int(wanted.split("=")[1].rstrip("-")) if wanted and self.knows_ranges else 0
        if first >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        sent = self.content[first:]
        if self.breaks:
            sent = sent[: self.breaks.pop(0)]
        self.wfile.write(sent)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(archives, "_PAUSE", 0.0)
    handler = type("Handler", (Server,), {"breaks": [], "ranges": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        handler.url = f"http://127.0.0.1:{http.server_port}/data.zip"
        yield handler
        http.shutdown()
        thread.join()


def archive(server):
    md5 = hashlib.md5(CONTENT).hexdigest()
    return Archive("data.zip", md5, server.url, "https://example.org/data", LIMIT)


def test_a_file_is_fetched_and_verified(server, tmp_path):
    path = fetch(archive(server), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["data.zip"]


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = [1000, 2000]
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=3000-"]


def test_a_later_call_goes_on_too(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:5000])
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-"]


def test_a_whole_part_is_not_fetched_again(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.knows_ranges = False
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:5000])
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT


def test_another_file_is_refused_and_deleted(server, tmp_path):
    server.content = b"a web page"
    with pytest.raises(ArchiveError, match=r"gave another file than the published data\.zip: its md5 is"):
        fetch(archive(server), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 4)])
def test_a_server_that_refuses_is_named_with_the_way_out(server, tmp_path, status, tries):
    server.status = status
    with pytest.raises(DatasetNotFoundError, match=r"could not be downloaded from .*https://example.org/data"):
        fetch(archive(server), tmp_path)
    assert len(server.ranges) == tries


def test_a_download_that_never_ends_keeps_what_has_come(server, tmp_path):
    server.breaks = [10, 10, 10, 10]
    with pytest.raises(DatasetNotFoundError, match=r"data\.zip\.part keeps what was received"):
        fetch(archive(server), tmp_path)
    assert (tmp_path / "data.zip.part").read_bytes() == CONTENT[:40]


def test_a_file_put_there_by_hand_is_verified(tmp_path):
    path = tmp_path / "data.zip"
    path.write_bytes(CONTENT)
    whole = Archive("data.zip", hashlib.md5(CONTENT).hexdigest(), None, "https://example.org", LIMIT)
    verify(path, whole)
    with pytest.raises(ArchiveError, match=r"is not the published data\.zip: its md5 is .* not 000"):
        verify(path, replace(whole, md5="000"))
    assert path.exists()


# --- unpacking


def zipped(path: Path, members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def tarred(path: Path, members) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


GOOD = [("Train/0/a.bin", b"a"), ("Train/1/b.bin", b"bb"), ("Test/c.bin", b"")]


@pytest.mark.parametrize("make", [zipped, tarred])
def test_an_archive_is_unpacked_whole(make, tmp_path):
    unpack(make(tmp_path / "a", GOOD), tmp_path / "out", LIMIT)
    files = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*.bin")}
    assert files == dict(GOOD)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Test", "Train"]


def test_what_is_there_already_is_left_alone(tmp_path):
    (tmp_path / "out/Train").mkdir(parents=True)
    unpack(zipped(tmp_path / "a", GOOD), tmp_path / "out", LIMIT)
    assert not list((tmp_path / "out/Train").iterdir())
    assert (tmp_path / "out/Test/c.bin").exists()


def refused(path, tmp_path, expected, limit=LIMIT):
    with pytest.raises(ArchiveError, match=expected) as error:
        unpack(path, tmp_path / "out", limit)
    assert str(path) in str(error.value)
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("make", [zipped, tarred])
@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/escaped", "a\\..\\..\\escaped", "C:/escaped"])
def test_a_path_that_leaves_the_folder_is_refused(make, name, tmp_path):
    refused(make(tmp_path / "a", [("Train/a", b"a"), (name, b"x")]), tmp_path, "would leave the folder")


@pytest.mark.parametrize("make", [zipped, tarred])
def test_content_beyond_the_limit_is_refused(make, tmp_path):
    refused(
        make(tmp_path / "a", [("a", bytes(600)), ("b", bytes(600))]),
        tmp_path,
        "its content has more bytes or files",
        1000,
    )


def test_inner_archives_share_the_limit(tmp_path):
    inner = [(f"{i}.zip", zipped(tmp_path / f"inner{i}", [(f"{i}/a", bytes(600))]).read_bytes()) for i in range(8)]
    path = zipped(tmp_path / "a", inner)
    whole = sum(len(content) for _, content in inner) + 8 * 600
    with pytest.raises(ArchiveError, match="its content has more bytes or files"):
        unpack(path, tmp_path / "out", whole - 1, nested=True)
    assert not list((tmp_path / "out").iterdir())
    unpack(path, tmp_path / "out", whole, nested=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [str(i) for i in range(8)]


@pytest.mark.parametrize("make", [zipped, tarred])
def test_more_files_than_a_data_set_has_are_refused(make, tmp_path, monkeypatch):
    monkeypatch.setattr("plif_lightning.data.archives._MAX_FILES", 5)
    refused(make(tmp_path / "a", [(f"{i}", b"") for i in range(6)]), tmp_path, "more bytes or files than this data set")


def test_a_stated_size_is_not_believed(tmp_path):
    path = zipped(tmp_path / "a", [("a", bytes(100_000))])
    data = path.read_bytes()
    path.write_bytes(data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    refused(path, tmp_path, "damaged|not of the size")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_special_files_of_a_tar_are_refused(kind, tmp_path):
    with tarfile.open(tmp_path / "a", "w:gz") as file:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "../escaped"
        file.addfile(info)
    refused(tmp_path / "a", tmp_path, "is a link or a special file")


def test_links_of_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "../escaped")
    refused(tmp_path / "a", tmp_path, "is a link or a special file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", [zipped, tarred])
@pytest.mark.parametrize("twice", ["a", "a/b"])
def test_a_member_that_stands_in_the_way_of_another_is_refused(make, twice, tmp_path):
    refused(make(tmp_path / "a", [("a", b"1"), (twice, b"2")]), tmp_path, "occurs twice|damaged")


@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_truncated_archive_is_refused(make, tmp_path):
    path = make(tmp_path / "a", [("a", bytes(range(256)) * 100), ("b", b"b")])
    path.write_bytes(path.read_bytes()[:-50])
    refused(path, tmp_path, "is truncated or damaged")


def test_a_damaged_member_is_refused(tmp_path):
    path = zipped(tmp_path / "a", [("a", bytes(range(256)) * 100)])
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    refused(path, tmp_path, "is truncated or damaged")


# Without a time stamp, which would differ between pytest-xdist processes.
@pytest.mark.parametrize("content", [b"", b"garbage", gzip.compress(b"garbage", mtime=0)])
def test_what_is_no_archive_is_refused(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a", tmp_path, "is truncated or damaged")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2}))
    refused(zipped(tmp_path / "a", GOOD), tmp_path, "larger than the space that is free")


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 2**12), data=st.binary(min_size=1, max_size=4), kind=st.sampled_from([zipped, tarred]))
def test_fuzzed_archives(tmp_path, place, data, kind):
    path = kind(tmp_path / "a", GOOD)
    content = path.read_bytes()
    at = place % len(content)
    path.write_bytes(content[:at] + data + content[at + len(data) :])
    out = tmp_path / "out"
    try:
        unpack(path, out, LIMIT)
    except UserError:
        assert not list(out.iterdir())
    else:
        assert not [p for p in out.iterdir() if p.name.startswith(".unpacking")]
    for entry in sorted(out.rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() else entry.unlink()


def test_a_full_disk_while_fetching_is_said_and_keeps_what_has_come(server, tmp_path, monkeypatch):
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:100])

    def full(url, part, name):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "_transfer", full)
    with pytest.raises(UserError, match=r"cannot be written into .*No space left.*data\.zip\.part keeps"):
        fetch(archive(server), tmp_path)


def test_a_broken_secure_connection_is_tried_again(server, tmp_path, monkeypatch):
    transfer, calls = archives._transfer, []

    def broken_once(url, part, name):
        calls.append(url)
        if len(calls) == 1:
            raise ssl.SSLError(1, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC")
        transfer(url, part, name)

    monkeypatch.setattr(archives, "_transfer", broken_once)
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
