"""Event store: content, rebuilding, damage and failed builds."""

import dataclasses
import errno
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plif_lightning.events import Sensor, readers
from plif_lightning.events import store as store_module
from plif_lightning.events.recording import RecordingError
from plif_lightning.events.store import (
    DamagedStoreError,
    EventStore,
    Kind,
    RawFile,
    StoreError,
    build,
    fingerprint,
    unwritable,
)
from plif_lightning.runtime.locks import folder_lock
from tests import writers
from tests.conftest import PATIENCE, REPOSITORY

KIND = Kind("test set", "original-test", Sensor(34, 34))


def raw_files_in(folder, n=5):
    """n recordings of 0, 10, 20, ... events."""
    found = []
    for i in range(n):
        path = folder / f"{i}.bin"
        if not path.exists():
            writers.write_file(path, writers.nmnist_bytes(writers.events_of(10 * i, i, 34, 34)))
        found.append(RawFile(path.name, (path,), partial(readers.single, readers.read_nmnist), i % 3))
    return found


@pytest.mark.parametrize("processes", [0, 2])
def test_it_holds_what_the_files_hold(tmp_path, processes):
    sources = raw_files_in(tmp_path / "raw")
    seen = []
    store = build(tmp_path / "store", KIND, sources, seen.append, processes)
    assert sum(seen) == len(store) == 5
    assert store.offset.tolist() == [0, 0, 10, 30, 60, 100]
    assert store.label.tolist() == [0, 1, 2, 0, 1]
    assert store.name.tolist() == [f"{i}.bin" for i in range(5)]
    assert store.address.dtype == np.uint16
    for i in range(5):
        t, x, y, p = writers.events_of(10 * i, i, 34, 34)
        part = slice(store.offset[i], store.offset[i + 1])
        assert store.address[part].tolist() == (p * 34 * 34 + y * 34 + x).tolist()
        assert (store.time[part] + store.start[i]).tolist() == t.tolist()
    assert store.verify() == 6
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == sorted(
        [f"original-test.{store.fingerprint}", "original-test.json", "original-test.seen.json"]
    )


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sensor=st.builds(Sensor, st.integers(1, 300), st.integers(1, 300)),
    recordings=st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 99), st.integers(0, 2**40), st.integers(0, 9)),
        min_size=1,
        max_size=5,
    ),
)
def test_any_recordings_come_back(tmp_path, sensor, recordings):
    held = [writers.events_of(n, seed, *sensor, last=2**31) for n, seed, _, _ in recordings]
    held = [one._replace(t=one.t + start) for one, (_, _, start, _) in zip(held, recordings, strict=True)]
    file = tmp_path / "a"
    file.touch()
    sources = [
        RawFile(f"{i}", (file,), lambda _, label, one=one: [(label, one)], label)
        for i, (one, (*_, label)) in enumerate(zip(held, recordings, strict=True))
    ]
    kind = Kind("test set", "original-test", sensor)
    build(tmp_path / "store", kind, sources, processes=0)
    store = EventStore(tmp_path / "store", kind)
    assert store.label.tolist() == [label for *_, label in recordings]
    for i, (t, x, y, p) in enumerate(held):
        address, time_ = store.events(i)
        assert np.array_equal(address, (p * sensor.height + y) * sensor.width + x)
        assert np.array_equal(time_ + store.start[i], t)


def test_another_process_gets_it_by_its_place(tmp_path):
    store = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert pickle.loads(data).address.tolist() == store.address.tolist()


def test_it_is_not_the_old_one_after_any_change(tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    marks = [fingerprint(KIND, raw_files_in(folder))]
    marks.append(fingerprint(KIND, raw_files_in(folder, 4)))
    marks.append(fingerprint(Kind(KIND.title, KIND.name, KIND.sensor, "as_recorded"), raw_files_in(folder)))
    marks.append(fingerprint(Kind(KIND.title, KIND.name, Sensor(34, 35)), raw_files_in(folder)))
    os.utime(folder / "3.bin", ns=(1, 1))
    marks.append(fingerprint(KIND, raw_files_in(folder)))
    (folder / "3.bin").write_bytes(b"")
    os.utime(folder / "3.bin", ns=(1, 1))
    marks.append(fingerprint(KIND, raw_files_in(folder)))
    renamed, relabelled = raw_files_in(folder), raw_files_in(folder)
    renamed[0] = dataclasses.replace(renamed[0], name="another")
    relabelled[0] = dataclasses.replace(relabelled[0], label=2)
    marks += [fingerprint(KIND, renamed), fingerprint(KIND, relabelled)]
    monkeypatch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
    marks.append(fingerprint(KIND, raw_files_in(folder)))
    assert len(set(marks)) == len(marks)


def test_a_store_of_another_format_is_not_taken(tmp_path, monkeypatch):
    build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    monkeypatch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
    with pytest.raises(StoreError, match="was built with other options"):
        EventStore(tmp_path / "store", KIND)


def end_this_process(files, label):
    os.kill(os.getpid(), signal.SIGKILL)


def take_memory(files, label):
    np.ones(3 * 2**30, np.float64)
    raise AssertionError("there is no limit")


@pytest.mark.parametrize(("read", "error"), [(end_this_process, StoreError), (take_memory, RecordingError)])
def test_a_decoder_that_cannot_be_trusted_harms_nobody_else(tmp_path, read, error):
    path = writers.write_file(tmp_path / "raw/1.bin", b"")
    source = RawFile("1.bin", (path,), read, own_process=True)
    with pytest.raises(error) as caught:
        build(tmp_path / "store", KIND, [source])
    if error is StoreError:
        assert f"{path} cannot be read: it crashes the process that decodes it" in str(caught.value)
    else:
        assert f"{path} needs more memory than events in a file of 0 bytes can" in str(caught.value)
    assert not list((tmp_path / "store").iterdir())


def test_a_new_build_takes_the_place_of_the_old_one(tmp_path):
    old = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    kept = old.address.copy()
    new = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw", 3))
    assert len(new) == 3
    assert old.address.tolist() == kept.tolist()  # the mapping of a running process stays valid
    assert [p.name for p in (tmp_path / "store").iterdir() if p.is_dir()] == [f"original-test.{new.fingerprint}"]


def damage(store, name, change):
    path = store.folder / f"{name}.npy"
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("name", ["address", "time", "offset", "label", "start", "name"])
def test_damage_is_found(tmp_path, name):
    store = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    damage(store, name, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=f"{name}.npy is damaged: its checksum"):
        store.verify()
    damage(store, name, lambda data: data[:-20])
    with pytest.raises(StoreError, match=f"{name}.npy is missing or damaged"):
        EventStore(tmp_path / "store", KIND)
    (store.folder / f"{name}.npy").unlink()
    with pytest.raises(StoreError, match=f"{name}.npy is missing or damaged"):
        EventStore(tmp_path / "store", KIND)
    assert len(build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))) == 5


def overwrite(path):
    """Zero a file's last 30 bytes, as after a power loss."""
    path.write_bytes(path.read_bytes()[:-30] + bytes(30))


@pytest.mark.parametrize("name", ["address", "time"])
def test_an_array_that_was_written_to_is_read_once_and_damage_is_found(tmp_path, name, monkeypatch):
    store = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    checked = []
    checksum = store_module._checksum
    monkeypatch.setattr(store_module, "_checksum", lambda path: checked.append(path) or checksum(path))
    EventStore(tmp_path / "store", KIND)
    assert checked == []
    os.utime(store.folder / f"{name}.npy")  # as after copying
    for times in (6, 6):
        EventStore(tmp_path / "store", KIND)
        assert len(checked) == times
    overwrite(store.folder / f"{name}.npy")
    with pytest.raises(DamagedStoreError, match=rf"{name}\.npy is damaged: its checksum"):
        EventStore(tmp_path / "store", KIND)


def test_a_store_that_says_no_times_is_read_once(tmp_path):
    store = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    note = tmp_path / "store" / "original-test.seen.json"
    for text in (None, "", "{"):
        note.unlink() if text is None else note.write_text(text)
        assert len(EventStore(tmp_path / "store", KIND)) == 5
        assert "time" in json.loads(note.read_text())
    note.unlink()
    overwrite(store.folder / "time.npy")
    with pytest.raises(DamagedStoreError):
        EventStore(tmp_path / "store", KIND)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"sensor": [34, 34]}'])
def test_a_damaged_description_is_no_store(tmp_path, text):
    store = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    store.path.write_text(text)
    with pytest.raises(StoreError, match="is damaged"):
        EventStore(tmp_path / "store", KIND)


def test_offsets_that_do_not_fit_are_no_store(tmp_path):
    store = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    np.save(store.folder / "offset.npy", np.array([0, 0, 30, 10, 60, 100]))
    with pytest.raises(StoreError, match="do not fit together"):
        EventStore(tmp_path / "store", KIND)


def test_a_store_of_other_options_is_not_taken(tmp_path):
    build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    with pytest.raises(StoreError, match="was built with other options"):
        EventStore(tmp_path / "store", Kind(KIND.title, KIND.name, KIND.sensor, "as_recorded"))


@pytest.mark.parametrize("processes", [0, 2])
def test_a_bad_recording_leaves_the_old_store_and_nothing_else(tmp_path, processes):
    old = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    before = sorted(path.name for path in (tmp_path / "store").iterdir())
    (tmp_path / "raw/3.bin").write_bytes(bytes(7))
    with pytest.raises(RecordingError, match=re.escape(str(tmp_path / "raw/3.bin"))):
        build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"), processes=processes)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before
    assert len(EventStore(tmp_path / "store", KIND)) == len(old)


def test_a_recording_that_vanishes_is_named(tmp_path):
    sources = raw_files_in(tmp_path / "raw")
    (tmp_path / "raw/3.bin").unlink()
    with pytest.raises(RecordingError, match=r"3\.bin cannot be read: No such file"):
        build(tmp_path / "store", KIND, sources)


SCRIPT = """
import sys
from pathlib import Path
from functools import partial
from plif_lightning.events.store import build, unwritable
from plif_lightning.runtime.locks import folder_lock
from tests.events.test_store import KIND, raw_files_in
folder = Path(sys.argv[1])
{before}
with folder_lock(folder / "store", partial(unwritable, folder)):
    build(folder / "store", KIND, raw_files_in(folder / "raw"), processes=0)
"""


def script(tmp_path, before="", **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(before=before), str(tmp_path)],
        cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **kwargs,
    )  # fmt: skip


LARGEST_FILE = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
"""
FULL_DISK = """
import errno
from plif_lightning.events import store
def write(self, values):
    raise OSError(errno.ENOSPC, "No space left on device")
store._Column.append = write
"""


@pytest.mark.parametrize(
    ("before", "expected"), [(LARGEST_FILE, "would be too large"), (FULL_DISK, "The disk is full: free some space")]
)
def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path, before, expected):
    raw_files_in(tmp_path / "raw")
    process = script(tmp_path, before)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert expected in error
    assert "--data.store DIR" in error
    assert not (tmp_path / "store").exists()


KILLED = """
import os, signal
from plif_lightning.events import store
store.written_whole = lambda path: os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_EARLIER = KILLED.replace("store.written_whole", "store._Column.close")


@pytest.mark.parametrize("before", [KILLED, KILLED_EARLIER])
def test_what_a_killed_build_leaves_is_no_store_and_is_taken_away(tmp_path, before):
    process = script(tmp_path, before)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "store").iterdir())) > 1
    with pytest.raises(StoreError, match="there is no event store"):
        EventStore(tmp_path / "store", KIND)
    with folder_lock(tmp_path / "store", partial(unwritable, tmp_path)):
        store = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {".lock", "original-test.json", "original-test.seen.json", store.folder.name}


def hold(folder, ready, release):
    with folder_lock(folder, partial(unwritable, folder)):
        ready.set()
        release.wait(PATIENCE)


def test_a_second_process_waits_and_says_so(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, release))
    process.start()
    assert ready.wait(PATIENCE)
    said = []

    def say():
        said.append(time.monotonic())
        release.set()

    with folder_lock(tmp_path, partial(unwritable, tmp_path), say):
        assert len(said) == 1
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EROFS, "The file system is read-only"), (errno.EACCES, "permission denied")]
)
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, number, expected):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)  # the tests may run as root, who can write everywhere
    with (
        pytest.raises(StoreError, match=f"cannot be written into .*{expected}.*--data.store DIR"),
        folder_lock(tmp_path / "store", partial(unwritable, tmp_path / "store")),
    ):
        pass


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "store").write_text("")
    with (
        pytest.raises(StoreError, match=re.escape(f"cannot be written into {tmp_path / 'store'}")),
        folder_lock(tmp_path / "store", partial(unwritable, tmp_path / "store")),
    ):
        pass


def test_the_description_can_be_read_by_people(tmp_path):
    store = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    meta = json.loads(store.path.read_text())
    assert meta["data"] == "test set"
    assert meta["arrays"]["address"]["shape"] == [100]


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.pop("folder"),
        lambda meta: meta.update(arrays={}),
        lambda meta: meta["arrays"]["time"].pop("shape"),
        lambda meta: meta["arrays"]["time"].update(dtype="nothing"),
    ],
)
def test_a_description_with_a_missing_part_is_no_store(tmp_path, change):
    store = build(tmp_path / "store", KIND, raw_files_in(tmp_path / "raw"))
    meta = json.loads(store.path.read_text())
    change(meta)
    store.path.write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="is damaged"):
        EventStore(tmp_path / "store", KIND)


def test_readers_end_with_the_process_that_started_them(tmp_path):
    code = (
        "import multiprocessing, time\n"
        "from plif_lightning.events.raw import _process_pool, _submit\n"
        "executor = _process_pool(1)\n"
        "_submit(executor, time.sleep, 100)\n"
        "time.sleep(2)\n"
        "print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "time.sleep(100)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    with process:
        child = int(process.stdout.readline().split()[0])
        process.kill()
    for _ in range(100):
        if not running(child):
            return
        time.sleep(0.1)
    raise AssertionError("the reader goes on")


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
