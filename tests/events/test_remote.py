"""Event stores at a URL."""

import json
import re
import shutil

import fsspec
import pytest

from plif_lightning.data import CIFAR10DVS, NMNIST, DVSGesture, EventFolder
from plif_lightning.errors import UserError
from plif_lightning.events.remote import copies_of
from plif_lightning.events.store import StoreError
from tests import writers


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Simulate another machine: another temporary folder, and no recordings."""

    def move(name, recordings):
        root = tmp_path / name
        monkeypatch.setattr("tempfile.tempdir", str(root / "tmp"))
        (root / "tmp").mkdir(parents=True, exist_ok=True)
        if recordings and not (root / "NMNIST").exists():
            writers.write_nmnist(root)
        return root

    yield move
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["file", "memory"])
def address(request, tmp_path):
    return f"file://{tmp_path}/shared/stores" if request.param == "file" else "memory://bucket/stores"


def data(root, address):
    return NMNIST(root=str(root), time_steps=4, allow_partial=True, download=False, store=address)


def test_a_store_is_built_once_and_copied_once_to_each_machine(address, machine, monkeypatch, caplog):
    root = machine("builds", recordings=True)
    first = data(root, address)
    first.prepare_data()
    assert first.prepared
    second = data(machine("copies", recordings=False), address)
    assert copies_of(first.address).parts[:-2] == second.store_folder.parts[:-2]
    second.prepare_data()
    assert not second.prepared
    second.setup("fit")
    assert second.identity() == first.identity()
    assert second.verify() > 0
    assert second.origin_note == first.origin_note

    assert "that are not in" not in caplog.text
    writers.write_file(root / "NMNIST/Train/0/99999.bin", next((root / "NMNIST/Train/0").iterdir()).read_bytes())
    data(root, address).prepare_data()
    said = r"original-train.json at .* has 0 recordings that are not in .*, and lacks 1 that are"
    assert re.search(said, caplog.text)
    (root / "NMNIST/Train/0/99999.bin").unlink()
    changed = next((root / "NMNIST/Train/0").iterdir())
    changed.write_bytes(changed.read_bytes()[:-5])
    data(root, address).prepare_data()
    assert re.search(r"original-train.json at .* was built of 65,000 bytes of files, and .* has 64,995", caplog.text)

    def no_more(*arguments):
        raise AssertionError("it was copied before")

    monkeypatch.setattr("plif_lightning.events.remote._copy", no_more)
    again = data(machine("copies", recordings=False), address)
    again.prepare_data()
    assert again.identity() == first.identity()


def test_a_store_that_was_built_anew_is_copied_anew(address, machine):
    data(machine("builds", recordings=True), address).prepare_data()
    old = data(machine("copies", recordings=False), address)
    old.prepare_data()
    root = machine("builds", recordings=True)
    writers.write_nmnist(root, train=30)
    data(root, address).prepare_data()  # local files or modification times must not replace a shared store
    files, place = fsspec.core.url_to_fs(old.address)
    for path in files.glob(f"{place}/*.json"):
        files.rm_file(path)
    new = data(root, address)  # its machine still has the copy of the old one
    new.prepare_data()
    assert new.prepared
    assert new.identity() != old.identity()
    copied = data(machine("copies", recordings=False), address)
    copied.prepare_data()
    assert copied.identity() == new.identity()


def test_a_copy_that_is_not_what_was_built_is_refused(address, machine):
    builds = data(machine("builds", recordings=True), address)
    builds.prepare_data()
    files, root = fsspec.core.url_to_fs(builds.address)
    path = f"{root}/{builds.event_store(True).folder.name}/time.npy"
    damaged = bytearray(files.cat_file(path))
    damaged[-1] ^= 1
    files.pipe_file(path, bytes(damaged))
    copies = data(machine("copies", recordings=False), address)
    with pytest.raises(StoreError, match="differs from what was built"):
        copies.prepare_data()
    assert not list(copies.store_folder.glob("*.json"))


def test_a_store_that_was_built_but_not_published_is_published_by_the_next(address, machine, monkeypatch):
    def broken(*arguments):
        raise StoreError("the network is gone")

    root = machine("builds", recordings=True)
    with monkeypatch.context() as patch:
        patch.setattr("plif_lightning.data.event_module.publish", broken)
        with pytest.raises(StoreError, match="the network is gone"):
            data(root, address).prepare_data()
    again = data(root, address)
    again.prepare_data()
    assert not again.prepared
    copies = data(machine("copies", recordings=False), address)
    copies.prepare_data()
    assert copies.identity() == again.identity()


@pytest.mark.parametrize("name", ["..", "", "../../other", "original-train.x/../.."])
def test_a_strangers_store_cannot_name_other_folders(name, address, machine):
    builds = data(machine("builds", recordings=True), address)
    builds.prepare_data()
    files, root = fsspec.core.url_to_fs(builds.address)
    path = f"{root}/{builds.event_store(True).path.name}"
    meta = json.loads(files.cat_file(path))
    files.pipe_file(path, json.dumps({**meta, "folder": name, "arrays": {}}).encode())
    copies = data(machine("copies", recordings=False), address)
    beside = copies.store_folder.parent / "another"
    beside.mkdir(parents=True)
    with pytest.raises(StoreError, match="is no event store of this project"):
        copies.prepare_data()
    assert beside.is_dir()


def test_copies_are_not_taken_from_a_folder_that_others_may_write(address, machine, caplog):
    one = data(machine("builds", recordings=True), address)
    one.prepare_data()
    folder = one.store_folder.parent
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o775)  # as an earlier version made it under umask 002
    planted = folder / "planted"
    planted.mkdir()
    again = data(machine("builds", recordings=True), address)
    again.prepare_data()
    assert "its copies of event stores are fetched again" in caplog.text
    assert not planted.exists()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert again.identity() == one.identity()


def test_a_store_that_lacks_an_array_is_named(address, machine):
    builds = data(machine("builds", recordings=True), address)
    builds.prepare_data()
    files, root = fsspec.core.url_to_fs(builds.address)
    files.rm_file(f"{root}/{builds.event_store(True).folder.name}/label.npy")
    copies = data(machine("copies", recordings=False), address)
    with pytest.raises(StoreError, match=r"label\.npy is missing"):
        copies.prepare_data()
    assert not list(copies.store_folder.glob("*.tmp"))


def test_an_address_that_leads_nowhere_is_named(machine):
    root = machine("here", recordings=True)
    with pytest.raises(StoreError, match="the event stores at nowhere://x/NMNIST cannot be reached"):
        data(root, "nowhere://x").prepare_data()


def test_a_machine_without_recordings_and_without_a_store_says_so(address, machine):
    with pytest.raises(UserError, match="N-MNIST"):
        data(machine("empty", recordings=False), address).prepare_data()


def folder(root, address, **settings):
    return EventFolder(root=str(root / "hands"), sensor=(128, 128), time_steps=2, store=address, **settings)


def test_data_sets_do_not_take_each_others_stores(address, machine):
    root = machine("builds", recordings=True)
    writers.write_cifar10dvs(root)
    writers.write_dvsgesture(root)
    built = {}
    for kind in (CIFAR10DVS, DVSGesture):
        built[kind] = kind(root=str(root), allow_partial=True, download=False, store=address)
        built[kind].prepare_data()
        assert built[kind].prepared
    copies = machine("copies", recordings=False)
    for kind, there in built.items():
        data = kind(root=str(copies), allow_partial=True, download=False, store=address)
        data.prepare_data()
        assert not data.prepared
        assert data.identity() == there.identity()


def test_class_folders_of_other_classes_are_refused(address, machine):
    root = machine("builds", recordings=False)
    writers.write_event_folder(root / "hands")
    folder(root, address).prepare_data()
    root = machine("others", recordings=False)
    writers.write_event_folder(root / "hands")
    for part in ("train", "test"):
        (root / "hands" / part / "left").rename(root / "hands" / part / "up")
    with pytest.raises(
        StoreError, match="holds recordings of left, right, but those here are of right, up: pass another"
    ):
        folder(root, address).prepare_data()


def test_class_folders_are_served_without_their_files(address, machine):
    root = machine("builds", recordings=False)
    writers.write_event_folder(root / "hands")
    first = folder(root, address)
    first.prepare_data()
    local = folder(root, None)
    local.prepare_data()
    for part in ("train", "test"):
        shutil.rmtree(root / "hands" / part)
    for data in (folder(machine("copies", recordings=False), address), folder(root, None)):
        assert data.class_names == ("left", "right")
        data.prepare_data()
        assert not data.prepared
        assert data.identity() == first.identity()
    with pytest.raises(UserError, match="train does not exist"):
        folder(machine("empty", recordings=False), None).prepare_data()


def test_a_copy_that_lost_an_array_is_made_again(address, machine):
    builds = data(machine("builds", recordings=True), address)
    builds.prepare_data()
    root = machine("copies", recordings=False)
    for lost in ("address.npy", "label.npy"):
        copies = data(root, address)
        copies.prepare_data()
        (copies.event_store(True).folder / lost).unlink()
        again = data(root, address)
        again.prepare_data()
        assert again.identity() == builds.identity()


def test_copies_of_older_stores_are_taken_away(address, machine):
    root = machine("builds", recordings=True)
    for train in (20, 30):
        writers.write_nmnist(root, train=train)
        there = data(root, address)
        files, place = fsspec.core.url_to_fs(there.address)
        if files.exists(place):
            for path in files.glob(f"{place}/*.json"):
                files.rm_file(path)
        shutil.rmtree(there.store_folder, ignore_errors=True)
        there.prepare_data()
        copies = data(machine("copies", recordings=False), address)
        copies.prepare_data()
        assert len(copies.event_store(True)) == train
        machine("builds", recordings=True)
    assert len([path for path in copies.store_folder.iterdir() if path.is_dir()]) == 2
