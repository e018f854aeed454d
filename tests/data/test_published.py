"""Published event data sets: archives that are fetched, verified and unpacked, and what is in them."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tonic.datasets
import torch

from plif_lightning.data import CIFAR10DVS, NMNIST, DVSGesture, published
from plif_lightning.data.loading import BatchRequest
from plif_lightning.data.published import Archive, Origin, cut
from plif_lightning.errors import DataNotFoundError, UserError
from plif_lightning.events import Recording, RecordingError, read_any
from tests import writers

PAGE = "https://example.org/page"


def made(kind, root, **arguments):
    data = kind(root=str(root), **{"validation": "test", **arguments})
    data.prepare_data()
    return data


def counts_of(data):
    return tuple(len(data.recordings(train)["label"]) for train in (True, False))


def zipped(folder, path):
    """A folder as a .zip file."""
    with zipfile.ZipFile(path, "w") as file:
        for entry in [folder, *sorted(folder.rglob("*"))]:
            file.write(entry, entry.relative_to(folder.parent))
    return path


def publish(monkeypatch, kind, source, files, counts, site=None):
    """Let a data set consist of archives, {file: the folders in it}, at a site or to be fetched by hand."""
    md5 = {path: hashlib.md5(path.read_bytes()).hexdigest() for path in files}
    urls = {path: site and f"{site}/{path.name}" for path in files}
    archives = tuple(Archive(path.name, md5[path], urls[path], PAGE, folders) for path, folders in files.items())
    origins = {source: Origin(kind.origins(tonic.datasets)[source].folder, archives, counts)}
    monkeypatch.setattr(kind, "origins", classmethod(lambda cls, datasets: origins))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Address of a server of the files in a folder."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "site").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "site")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def digits(tmp_path, monkeypatch, site):
    """Folder of N-MNIST's archives at a site."""
    writers.write_nmnist(tmp_path / "raw")
    parts = [tmp_path / "raw/NMNIST" / name for name in ("Train", "Test")]
    files = {zipped(part, tmp_path / f"site/{part.name.lower()}.zip"): (part.name,) for part in parts}
    publish(monkeypatch, NMNIST, "original", files, (20, 10), site)
    return tmp_path / "site"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_archives_are_downloaded_verified_unpacked_and_read(digits, tmp_path):
    data, raw = made(NMNIST, tmp_path / "data"), made(NMNIST, tmp_path / "raw", download=False)
    assert names_in(tmp_path / "data/NMNIST") == [".lock", "Test", "Train", "events", "test.zip", "train.zip"]
    assert (data.origin_note, counts_of(data)) == ("original", (20, 10))
    assert [data.identity(train) for train in (True, False)] == [raw.identity(train) for train in (True, False)]
    shutil.rmtree(digits), shutil.rmtree(tmp_path / "data/NMNIST/Test"), shutil.rmtree(tmp_path / "data/NMNIST/events")
    again = made(NMNIST, tmp_path / "data", download=False)  # from the archive that is there
    assert again.identity(train=False) == raw.identity(train=False)


def test_another_archive_is_refused_by_name_and_nothing_is_unpacked(digits, tmp_path):
    folder = tmp_path / "data/NMNIST"
    writers.write_file(folder / "train.zip", b"something else")
    shutil.copy(digits / "test.zip", folder)
    with pytest.raises(DataNotFoundError, match=r"NMNIST/train\.zip is not the published train\.zip, whose md5 is"):
        made(NMNIST, tmp_path / "data", download=False)
    assert (folder / "train.zip").read_bytes() == b"something else"
    (digits / "train.zip").write_bytes(b"a web page")
    with pytest.raises(DataNotFoundError, match=rf"train\.zip could not be downloaded from http:.*{PAGE}"):
        made(NMNIST, tmp_path / "data")
    assert names_in(folder) == [".lock", "test.zip", "train.zip"]


def test_manual_downloads_are_named_and_found(tmp_path, monkeypatch):
    with pytest.raises(DataNotFoundError, match=r"Fetch DvsGesture\.tar\.gz \(md5 8a5c.*\) from https://ibm.* put"):
        made(DVSGesture, tmp_path / "data")
    with pytest.raises(DataNotFoundError, match=r"Pass --data\.download=true, or fetch train\.zip \(md5 "):
        made(NMNIST, tmp_path / "data", download=False)
    assert not (tmp_path / "data").exists()
    writers.write_dvsgesture(tmp_path / "raw")
    path = writers.write_file(tmp_path / "data/DVSGesture/DvsGesture.tar.gz", b"")
    with tarfile.open(path, "w:gz") as file:
        file.add(tmp_path / "raw/DVSGesture/DvsGesture", "DvsGesture")
    publish(monkeypatch, DVSGesture, "original", {path: ("DvsGesture",)}, (24, 12))
    assert counts_of(made(DVSGesture, tmp_path / "data")) == (24, 12)


def test_a_killed_or_failed_unpacking_leaves_no_half_folder(digits, tmp_path, monkeypatch):
    def unpack(path, folder):
        writers.write_file(Path(folder, "Train/0/00000.bin"), b"half")
        if multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device", path)

    with monkeypatch.context() as patch:
        patch.setattr(published, "extract_archive", unpack)
        with pytest.raises(OSError, match="No space left"):
            made(NMNIST, tmp_path / "data")
        assert names_in(tmp_path / "data/NMNIST") == [".lock", "train.zip"]
        process = multiprocessing.get_context("fork").Process(target=made, args=(NMNIST, tmp_path / "data"))
        process.start(), process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "data/NMNIST/Train").exists()
    assert counts_of(made(NMNIST, tmp_path / "data")) == (20, 10)


def test_incomplete_data_set_is_refused_unless_allow_partial(digits, tmp_path):
    writers.write_file(tmp_path / "raw/NMNIST/Test/0/00099.bin", b"")
    with pytest.raises(DataNotFoundError, match=r"has 10 test recordings, but 11 are in .*allow_partial=true"):
        made(NMNIST, tmp_path / "raw")
    for path in tmp_path.glob("raw/NMNIST/Test/[1-9]/*.bin"):
        path.unlink()
    data = made(NMNIST, tmp_path / "raw", allow_partial=True)
    data.setup("fit")
    assert "N-MNIST (original, a PART of its 20 and 10 recordings): 20 training" in data.describe()
    with pytest.raises(DataNotFoundError, match="has 10 test recordings, but 2 are in"):  # nor from its cache
        made(NMNIST, tmp_path / "raw")
    with pytest.raises(UserError, match=r"data\.source must be one of original, got 'ibm'"):
        NMNIST(source="ibm")


def test_nmnist_is_sorted_by_class_then_number(tmp_path):
    writers.write_nmnist(tmp_path)
    for name in ("._00000.bin", "readme.bin", "00007.txt"):
        writers.write_file(tmp_path / "NMNIST/Train/0" / name, b"of another program")
    data = made(NMNIST, tmp_path, allow_partial=True)
    arrays = data.recordings(train=True)
    assert arrays["name"].tolist()[:3] == ["Train/0/00000.bin", "Train/0/00010.bin", "Train/1/00001.bin"]
    assert arrays["label"].tolist() == [i // 2 for i in range(20)]
    assert data.input_shape == (2, 34, 34)


def test_cifar10dvs_is_split_by_the_number_in_the_name_and_tonics_copy_is_another_source(tmp_path):
    writers.write_cifar10dvs(tmp_path, (10, 9, 899, 900, 999))
    writers.write_cifar10dvs(tmp_path, (10, 9, 899, 900, 999), "tonic")
    original, copy = (made(CIFAR10DVS, tmp_path, source=source, allow_partial=True) for source in ("original", "tonic"))
    for data in (original, copy):
        numbers = [[Path(name).stem.split("_")[-1] for name in data.recordings(part)["name"]] for part in (True, False)]
        assert numbers == [["9", "10", "899"] * 3, ["900", "999"] * 3]
        data.setup("fit")
    every = BatchRequest(0, torch.arange(9))
    assert torch.equal(original.train_set.batch(every).x, copy.train_set.batch(every).x)
    assert original.cache_folder(train=True) != copy.cache_folder(train=True)
    assert "CIFAR10-DVS (tonic, a PART of its 9,000 and 1,000 recordings): 9 training" in copy.describe()


def test_gesture_has_all_trials_of_its_recordings_and_tonics_copy_its_clips(tmp_path):
    writers.write_dvsgesture(tmp_path), writers.write_tonic_gesture(tmp_path)
    listing = tmp_path / "DVSGesture/DvsGesture/trials_to_train.txt"
    listing.write_text(listing.read_text(), encoding="utf-8-sig", newline="\r\n")
    data = made(DVSGesture, tmp_path, allow_partial=True)
    arrays = data.recordings(train=True)
    assert counts_of(data) == (24, 12)
    # "arm roll" occurs twice in each recording
    assert np.bincount(arrays["label"]).tolist() == [2, 2, 2, 2, 2, 2, 2, 4, 2, 2, 2]
    assert arrays["name"].tolist()[12] == "DvsGesture/user02_natural.aedat#0"
    t = read_any(tmp_path / "DVSGesture/DvsGesture/user02_natural.aedat").t
    for i, (label, start, end) in enumerate(writers.GESTURE_TRIALS, 12):
        inside = t[(start <= t) & (t < end)]
        assert arrays["time"][slice(*arrays["offset"][i : i + 2])].tolist() == (inside - inside[0]).tolist()
        assert arrays["label"][i] == label - 1
    arrays = made(DVSGesture, tmp_path, source="tonic", allow_partial=True).recordings(train=False)
    assert arrays["label"].tolist() == list(range(11))
    assert arrays["name"].tolist()[2] == "ibmGestureTest/user24_led/2.npy"
    t = writers.events_of(100, 2, last=6_000).t  # [ms]
    assert arrays["time"][200:300].tolist() == (1000 * (t - t[0])).tolist()


def test_a_trial_has_the_events_from_its_start_to_before_its_end(tmp_path):
    table, head = tmp_path / "labels.csv", "class,startTime_usec,endTime_usec\n"
    t = np.array([9, 10, 19, 20, 29, 39, 40])
    table.write_text(f"{head}2,10,20\n1,20,40\n2,19,30\n")
    parts = cut(Recording(t, t, t, t % 2), table, 2)
    assert [(label, part.t.tolist()) for label, part in parts] == [(1, [10, 19]), (0, [20, 29, 39]), (1, [19, 20, 29])]
    for lines, message in (
        ("3,10,20\n", r"labels\.csv cannot be read as a table .*classes must lie in 1\.\.2"),
        ("1,20,20\n", r"labels\.csv cannot be read as a table .*trials end after they start"),
        ("1,ten,20\n", r"labels\.csv cannot be read as a table of class, start and end"),
        ("1,50,60\n", r"labels\.csv: no event lies between 50 and 60 us"),
    ):
        table.write_text(head + lines)
        with pytest.raises(RecordingError, match=message):
            cut(Recording(t, t, t, t % 2), table, 2)
