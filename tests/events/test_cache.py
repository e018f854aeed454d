"""The one cache: content, damage, killed builds, and processes that need it at once."""

import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from plif_lightning.errors import UserError
from plif_lightning.events import cache
from plif_lightning.events.cache import Arrays, DamagedArraysError, cached, find, key_of
from tests.conftest import PATIENCE, REPOSITORY
from tests.writers import unnoticed

HELD = {"numbers": np.arange(1000, dtype=np.uint16), "names": np.array(["a", "bc"]), "none": np.zeros((0, 3), np.int64)}


def build(writer):
    for name, values in HELD.items():
        writer.append(name, values[:1])
        writer.append(name, values[1:])


def not_again(writer):
    raise AssertionError("it is built again")


def test_cache_is_built_once_and_returns_the_arrays(tmp_path):
    first = cached(tmp_path / "a", "key", build)
    again = cached(tmp_path / "a", "key", not_again)
    for found in (first, again, pickle.loads(pickle.dumps(again))):
        assert {name: values.tolist() for name, values in found.items()} == {n: v.tolist() for n, v in HELD.items()}
        assert [values.dtype for values in found.values()] == [values.dtype for values in HELD.values()]
        assert found.content == first.content
    assert len(pickle.dumps(again)) < 1000  # its place
    assert not again["numbers"].flags.writeable
    assert again.verify() == 3
    assert sorted(path.name for path in (tmp_path / "a/key").iterdir()) == [
        *("manifest.json", "names.npy", "none.npy", "numbers.npy")
    ]


@given(
    values=arrays_of.arrays(
        st.sampled_from([np.uint8, np.int64, np.float32]), st.tuples(st.integers(0, 20), st.integers(1, 3))
    ),
    cuts=st.lists(st.integers(0, 20), max_size=3),
)
def test_pieces_of_any_length_give_the_same_content(tmp_path, values, cuts):
    def in_pieces(writer):
        for piece in np.split(values, sorted(cuts)):
            writer.append("values", piece)

    held = values.dtype, values.shape, values.tobytes()
    whole = cached(tmp_path / "whole", key_of(held), lambda writer: writer.append("values", values))
    pieces = cached(tmp_path / "pieces", key_of(held, cuts), in_pieces)
    assert np.array_equal(pieces["values"], values, equal_nan=True)
    assert pieces.content == whole.content


def test_stale_keys_are_deleted_after_a_month(tmp_path):
    old, unused = cached(tmp_path, "old", build), cached(tmp_path, "unused", build)
    os.utime(unused.folder, (time.time() - 31 * 24 * 3600,) * 2)
    new = cached(tmp_path, "new", lambda writer: writer.append("numbers", np.arange(3)))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["new", "old"]
    assert pickle.loads(pickle.dumps(old))["numbers"].tolist() == HELD["numbers"].tolist()  # in a new worker
    os.utime(old.folder, (time.time() - 60,) * 2)
    assert new.content != old.content
    assert find(tmp_path).content == new.content  # where the files are gone
    assert find(tmp_path / "nowhere") is None


@pytest.mark.parametrize("size", [1, 70_000, 5_000_000])
def test_overwritten_files_rebuild_and_copies_do_not(tmp_path, size, monkeypatch):
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path in paths:
        path.write_bytes(bytes(size))
    store = tmp_path / "store"
    content = cached(store, "key", build, paths).content
    assert cached(store, "key", not_again, paths).content == content
    os.utime(paths[0])
    assert cached(store, "key", not_again, paths).content == content
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_digest", not_again)  # its new time is known
        assert cached(store, "key", not_again, paths).content == content
    paths[1].write_bytes(bytes(size - 1) + b"1")
    with pytest.raises(AssertionError, match="built again"):
        cached(store, "key", not_again, paths)
    cached(store, "key", build, paths)
    cached(store, "key", not_again, paths)
    (store / "key/sources.json").unlink()
    with pytest.raises(AssertionError, match="built again"):
        cached(store, "key", not_again, paths)


def test_replacement_by_an_older_file_rebuilds(tmp_path):
    """As by `cp -p` or from an archive, which keep the times of files."""
    path = tmp_path / "a.npy"
    path.write_bytes(b"new")
    cached(tmp_path / "store", "key", build, [path])
    path.write_bytes(b"old")
    os.utime(path, (10**9, 10**9))
    with pytest.raises(AssertionError, match="built again"):
        cached(tmp_path / "store", "key", not_again, [path])


def flip(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("numbers.npy", flip),
        ("names.npy", lambda data: data[:-20]),
        ("numbers.npy", lambda data: b""),
        ("names.npy", None),
        ("manifest.json", lambda data: data[:-20]),
        ("manifest.json", lambda data: data.replace(b'"blake2b": "', b'"blake2b": "0')),
    ],
)
def test_damage_is_reported_and_rebuilt(tmp_path, caplog, name, change):
    content = cached(tmp_path, "key", build).content
    path = tmp_path / "key" / name
    if change:
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    for array in (tmp_path / "key").glob("n*.npy"):
        os.utime(array)
    assert cached(tmp_path, "key", build).content == content
    assert "It is built again" in caplog.text
    assert cached(tmp_path, "key", not_again).verify() == 3


def test_verify_finds_silent_damage(tmp_path):
    found = cached(tmp_path, "key", build)
    path = tmp_path / "key/numbers.npy"
    with unnoticed(path):
        path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(DamagedArraysError, match=r"numbers\.npy is damaged"):
        found.verify()


def test_a_copy_with_other_times_is_read_once_and_used(tmp_path):
    cached(tmp_path / "a", "key", build)
    (tmp_path / "a").rename(tmp_path / "b")
    for path in (tmp_path / "b/key").iterdir():
        os.utime(path)
    assert Arrays(tmp_path / "b/key").verify(changed=True) == 3
    assert Arrays(tmp_path / "b/key").verify(changed=True) == 0
    cached(tmp_path / "b", "key", not_again)


def test_a_read_only_copy_is_used(tmp_path, monkeypatch):
    cached(tmp_path, "key", build)
    os.utime(tmp_path / "key/numbers.npy")

    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)  # what every file that is written whole needs
    cached(tmp_path, "key", not_again)


def test_an_error_leaves_nothing_that_counts(tmp_path):
    def half(writer):
        writer.append("numbers", HELD["numbers"])
        raise UserError("this file is damaged")

    cached(tmp_path, "old", build)
    with pytest.raises(UserError, match="this file is damaged"):
        cached(tmp_path, "key", half)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "old"]


def test_unwritable_cache_names_the_way_out(tmp_path):
    def full(writer):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"a cannot be written\. The disk is full.*--data\.store DIR"):
        cached(tmp_path / "a", "key", full)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"b cannot be written.*--data\.store DIR"):
        cached(tmp_path / "file/b", "key", build)


SCRIPT = """
import os, sys, time
import numpy as np
from pathlib import Path
from plif_lightning.events.cache import cached

def build(writer):
    print("building", flush=True)
    for i in range(50):
        writer.append("numbers", np.full(1000, i))
        time.sleep({pause})

found = cached(Path(sys.argv[1]), "key", build)
print(found["numbers"].sum(), flush=True)
"""
WHOLE = str(1000 * sum(range(50)))


def start(folder, pause):
    command = [sys.executable, "-c", SCRIPT.format(pause=pause), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)


def test_of_eight_processes_a_single_one_builds(tmp_path):
    done = [process.communicate(timeout=PATIENCE) for process in [start(tmp_path, 0.02) for _ in range(8)]]
    assert sum("building" in out for out, _ in done) == 1
    assert all(out.split()[-1] == WHOLE for out, _ in done)
    assert any("Another process is preparing" in err for _, err in done)


def kill_builds(folder, number):
    """Kill builds at random moments; each leaves nothing that counts, or all of it."""
    random = np.random.default_rng(number)
    for i in range(number):
        place = folder / str(i % 5)
        process = start(place, 0.002)
        assert process.stdout.readline() in ("building\n", f"{WHOLE}\n")
        time.sleep(random.uniform(0, 0.15))
        process.kill()
        process.communicate()
        if (place / "key").is_dir():
            assert Arrays(place / "key").verify() == 1
            assert Arrays(place / "key")["numbers"].sum() == int(WHOLE)
            (place / "key").rename(folder / f"whole{i}")
    for place in map(folder.joinpath, "01234"[: min(number, 5)]):
        out, _ = start(place, 0).communicate(timeout=PATIENCE)
        assert out.split()[-1] == WHOLE
        assert sorted(path.name for path in place.iterdir()) == [".lock", "key"]


def test_a_killed_build_leaves_nothing_or_all_of_it(tmp_path):
    kill_builds(tmp_path, 3)


@pytest.mark.parametrize("size", [0, 100, 16 * 2**16, 16 * 2**16 + 1, 40 * 2**16])
def test_a_hash_sees_a_byte_of_any_block(size, tmp_path):
    """All of a file up to 1 MiB, otherwise the first and the last byte of 16 blocks at equal distances."""
    file = tmp_path / "file"
    file.write_bytes(bytes(size))
    found = {cache._digest(file)}
    firsts = [block * (size - 2**16) // 15 if size > 2**20 else block * 2**16 for block in range(16)]
    places = {at for first in firsts for at in (first, first + 2**16 - 1) if at < size}
    for at in places:
        changed = bytearray(size)
        changed[at] = 1
        file.write_bytes(changed)
        found.add(cache._digest(file))
    assert len(found) == 1 + len(places)
