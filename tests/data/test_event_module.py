"""Neuromorphic data sets: from raw files to batches."""

import hashlib
import pickle
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plif_lightning.data import (
    CIFAR10DVS,
    NMNIST,
    DVSGesture,
    EventDrop,
    EventFlip,
    EventFolder,
    EventMix,
    EventRotation,
    EventTranslation,
    PolarityFlip,
    TimeDrop,
)
from plif_lightning.data import event_module as events_module
from plif_lightning.data.archives import ArchiveError
from plif_lightning.data.loading import BatchPlan, BatchRequest, make_loader
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.events import readers
from plif_lightning.events.integration import integrate, resized
from plif_lightning.events.recording import RecordingError, Sensor
from plif_lightning.events.store import StoreError
from plif_lightning.runtime.randomness import hashed_uniform
from tests import writers


def prepared(kind, root, **arguments):
    data = kind(root=str(root), allow_partial=True, **arguments)
    data.prepare_data()
    return data


@pytest.fixture
def nmnist(tmp_path):
    writers.write_nmnist(tmp_path)
    return tmp_path


@pytest.fixture
def cifar10dvs(tmp_path):
    writers.write_cifar10dvs(tmp_path)
    return tmp_path


def everything(dataset, key=1):
    return dataset[BatchRequest(key, torch.arange(len(dataset)))]


# --- content and order of the sets


def test_frames_can_be_made_from_what_preprocessing_tells(nmnist):
    data = prepared(NMNIST, nmnist, time_steps=4, size=17)
    data.setup("fit")
    how = data.preprocessing
    store = data.event_store(train=True)
    recording = readers.read_nmnist(nmnist / "NMNIST" / store.name[0])
    (height, width), sensor = how["size"], how["sensor"]
    y, x = recording.y.astype(int) * height // sensor[0], recording.x.astype(int) * width // sensor[1]
    channel = [how["polarities"].index("on" if p else "off") for p in recording.p.tolist()]
    assert how["slicing"] == "by_count"
    counts = np.zeros((how["time_steps"], 2, height, width), np.int64)
    each = len(recording.x) // how["time_steps"]
    step = np.minimum(np.arange(len(recording.x)) // each, how["time_steps"] - 1)
    np.add.at(counts, (step, channel, y, x), 1)
    assert np.array_equal(everything(data.dataset(True, None, False)).x[0], counts)


def test_nmnist_is_sorted_by_class_then_number(nmnist):
    data = prepared(NMNIST, nmnist, time_steps=4)
    store = data.event_store(train=True)
    assert store.name.tolist()[:4] == [
        "Train/0/00000.bin",
        "Train/0/00010.bin",
        "Train/1/00001.bin",
        "Train/1/00011.bin",
    ]
    assert store.label.tolist() == sorted(store.label.tolist())
    assert (len(store), len(data.event_store(train=False))) == (20, 10)
    assert data.input_shape == (2, 34, 34)


def test_cifar10dvs_is_split_by_the_number_in_the_name(tmp_path):
    writers.write_cifar10dvs(tmp_path, (10, 9, 899, 900, 999))
    data = prepared(CIFAR10DVS, tmp_path)
    names = [Path(name).stem for name in data.event_store(train=True).name]
    assert names[:3] == ["cifar10_airplane_9", "cifar10_airplane_10", "cifar10_airplane_899"]
    assert [Path(name).stem for name in data.event_store(train=False).name][:2] == [
        "cifar10_airplane_900",
        "cifar10_airplane_999",
    ]


def test_cifar10dvs_of_tonic_is_another_source(tmp_path):
    writers.write_cifar10dvs(tmp_path, (0, 900), "tonic")
    writers.write_cifar10dvs(tmp_path, (0, 900))
    original, copy = (prepared(CIFAR10DVS, tmp_path, source=source) for source in ("original", "tonic"))
    for data in (original, copy):
        data.setup("fit")
    assert torch.equal(everything(original.train_set).x, everything(copy.train_set).x)
    assert original.event_store(train=True).path != copy.event_store(train=True).path
    assert "CIFAR10-DVS (tonic, a PART of its 9,000 and 1,000 recordings): 3 training" in copy.describe()


def test_gesture_has_all_trials_of_its_recordings(tmp_path):
    writers.write_dvsgesture(tmp_path)
    data = prepared(DVSGesture, tmp_path)
    store = data.event_store(train=True)
    assert (len(store), len(data.event_store(train=False))) == (24, 12)
    # "arm roll" occurs twice in each recording
    assert np.bincount(store.label).tolist() == [2, 2, 2, 2, 2, 2, 2, 4, 2, 2, 2]
    assert store.name.tolist()[12] == "user02_natural.aedat#0"
    recording = readers.read_aedat3(tmp_path / "DVSGesture/DvsGesture/user02_natural.aedat")
    for i, (label, start, end) in enumerate(writers.GESTURE_TRIALS):
        t = store.time[store.offset[12 + i] : store.offset[13 + i]] + store.start[12 + i]
        assert t.tolist() == [time for time in recording.t.tolist() if start <= time < end]
        assert store.label[12 + i] == label - 1


def test_gesture_of_tonic(tmp_path):
    writers.write_tonic_gesture(tmp_path)
    data = prepared(DVSGesture, tmp_path, source="tonic")
    assert data.event_store(train=True).label.tolist() == list(range(11))
    assert data.event_store(train=False).name.tolist()[2] == "ibmGestureTest/user24_led/2.npy"


def test_holdout_takes_the_last_recordings_of_each_class(tmp_path):
    writers.write_cifar10dvs(tmp_path, (*range(10), 900))
    data = prepared(CIFAR10DVS, tmp_path, validation="holdout", holdout_fraction=0.2)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (24, 6)
    names = data.event_store(train=True).name[data.val_set.indices.numpy()]
    assert [int(Path(name).stem.split("_")[-1]) for name in names] == [8, 9] * 3


# --- batches


@pytest.mark.parametrize("slicing", ["by_count", "by_time"])
def test_a_batch_holds_the_frames_of_its_recordings(nmnist, slicing):
    data = prepared(NMNIST, nmnist, time_steps=4, slicing=slicing)
    data.setup("fit")
    batch = data.train_set[BatchRequest(0, torch.tensor([3, 0, 3]))]
    assert batch.x.shape == (3, 4, 2, 34, 34)
    assert batch.x.dtype == torch.uint8
    assert batch.x.transpose(0, 1).is_contiguous()
    assert (batch.sample.tolist(), batch.label.tolist(), batch.target) == ([3, 0, 3], [1, 0, 1], None)
    path = nmnist / "NMNIST" / data.event_store(train=True).name[3]
    expected = integrate(readers.read_nmnist(path), Sensor(34, 34), 4, slicing)
    for i in (0, 2):
        np.testing.assert_array_equal(batch.x[i], expected)


@pytest.mark.parametrize("size", [48, 64])
def test_frames_of_another_size_hold_the_same_events(cifar10dvs, size):
    whole, small = (prepared(CIFAR10DVS, cifar10dvs, time_steps=3, size=s) for s in (None, size))
    for data in (whole, small):
        data.setup("test")
    assert small.input_shape == (2, size, size)
    table = torch.from_numpy(resized(Sensor(128, 128), Sensor(size, size))).long()
    expected = torch.zeros(3, 3, 2 * size * size, dtype=torch.int64)
    expected.index_add_(2, table, everything(whole.test_set).x.flatten(2).long())
    assert torch.equal(everything(small.test_set).x.flatten(2).long(), expected)


def test_two_workers_and_spawned_ones_give_the_same_batches(nmnist):
    data = prepared(NMNIST, nmnist, time_steps=4, augmentation=[EventFlip(), EventDrop(), EventMix()])
    data.setup("fit")
    expected = list(make_loader(data.train_set, BatchPlan(20, 8, shuffle=True, seed=1)))
    for method in ("fork", "spawn"):
        loader = make_loader(data.train_set, BatchPlan(20, 8, shuffle=True, seed=1), num_workers=2)
        loader.multiprocessing_context = method
        for ours, theirs in zip(expected, loader, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a, b)


# --- augmentation


def augmented(root, *augmentation, key=1, **arguments):
    data = prepared(CIFAR10DVS, root, time_steps=3, augmentation=list(augmentation), **arguments)
    data.setup("fit")
    return everything(data.train_set, key)


def test_augmentation_leaves_the_test_set_alone(cifar10dvs):
    data = prepared(CIFAR10DVS, cifar10dvs, time_steps=3, augmentation=[EventDrop(1.0)])
    data.setup("fit")
    assert everything(data.val_set).x.sum() == 3000
    assert everything(data.train_set).x.sum() < 6000


def test_a_flip_mirrors_frames(cifar10dvs):
    assert torch.equal(augmented(cifar10dvs, EventFlip(1.0)).x, augmented(cifar10dvs).x.flip(-1))


def test_a_polarity_flip_exchanges_channels(cifar10dvs):
    assert torch.equal(augmented(cifar10dvs, PolarityFlip(1.0)).x, augmented(cifar10dvs).x.flip(2))


def test_a_flip_and_a_size(cifar10dvs):
    flipped = augmented(cifar10dvs, EventFlip(1.0), size=64)
    assert torch.equal(flipped.x, augmented(cifar10dvs, size=64).x.flip(-1))


def test_a_time_drop_empties_an_interval_and_shifts_nothing(cifar10dvs):
    before, after = augmented(cifar10dvs).x.int(), augmented(cifar10dvs, TimeDrop(1.0)).x.int()
    assert ((after == before) | (after < before)).all()
    data = prepared(CIFAR10DVS, cifar10dvs, time_steps=100, augmentation=[TimeDrop(1.0)])
    data.setup("fit")
    counts = everything(data.train_set).x.sum((2, 3, 4))  # 5 to 15 events in each slice
    for row in counts:
        empty = (row == 0).nonzero().flatten()
        assert len(empty) == 0 or len(empty) == empty[-1] - empty[0] + 1


def test_an_event_drop_keeps_about_its_share(cifar10dvs):
    before = augmented(cifar10dvs).x.sum((1, 2, 3, 4)).float()
    shares = torch.cat([augmented(cifar10dvs, EventDrop(0.5), key=k).x.sum((1, 2, 3, 4)) / before for k in range(50)])
    # uniform in [0.5, 1]
    assert abs(shares.mean() - 0.75) < 0.03
    assert shares.min() > 0.4
    assert shares.max() > 0.95


def test_a_mix_takes_a_rectangle_of_another_recording_and_its_share_of_the_target(cifar10dvs):
    batch, plain = augmented(cifar10dvs, EventMix(1.0)), augmented(cifar10dvs)
    torch.testing.assert_close(batch.target.sum(1), torch.ones(6))
    assert (batch.target > 0).sum(1).max() == 2
    assert torch.equal(batch.label, plain.label)
    for i in range(6):
        candidates = [
            (batch.x[i] != plain.x[i]).any(0).any(0) & (batch.x[i] != plain.x[j]).any(0).any(0) for j in range(6)
        ]
        # every pixel comes from this recording or from its partner
        assert any(not wrong.any() for wrong in candidates)


def test_a_mix_of_probability_zero_changes_nothing(cifar10dvs):
    batch, plain = augmented(cifar10dvs, EventMix(0.0)), augmented(cifar10dvs)
    assert torch.equal(batch.x, plain.x)
    assert torch.equal(batch.target.argmax(1), plain.label)


def test_numbers_depend_on_epoch_and_sample_alone(cifar10dvs):
    every = [EventFlip(), EventTranslation(9), EventRotation(20.0), PolarityFlip(), TimeDrop(), EventDrop(), EventMix()]
    data = prepared(CIFAR10DVS, cifar10dvs, time_steps=3, augmentation=every)
    data.setup("fit")
    together = everything(data.train_set)
    alone = data.train_set[BatchRequest(1, torch.tensor([4]))]
    assert torch.equal(alone.x[0], together.x[4])
    assert torch.equal(alone.target[0], together.target[4])
    assert not torch.equal(everything(data.train_set, key=2).x, together.x)


# --- prepare_data


def test_preparing_again_does_nothing(nmnist):
    data = prepared(NMNIST, nmnist)
    assert data.prepared
    before = {path: path.stat().st_mtime_ns for path in (nmnist / "NMNIST/events").rglob("*")}
    again = prepared(NMNIST, nmnist)
    assert not again.prepared
    assert {path: path.stat().st_mtime_ns for path in (nmnist / "NMNIST/events").rglob("*")} == before
    # options that do not change the events do not change the store
    assert not prepared(NMNIST, nmnist, time_steps=3, slicing="by_time", size=17, augmentation=[EventFlip()]).prepared


def test_a_changed_source_is_read_again(nmnist):
    prepared(NMNIST, nmnist)
    (nmnist / "NMNIST/Train/0/00000.bin").write_bytes(writers.nmnist_bytes(writers.events_of(7, 0, 34, 34)))
    data = prepared(NMNIST, nmnist)
    assert data.prepared
    assert data.event_store(train=True).offset[1] == 7


def test_a_damaged_store_is_built_anew(nmnist):
    store = prepared(NMNIST, nmnist).event_store(train=False)
    (store.folder / "time.npy").unlink()
    data = prepared(NMNIST, nmnist)
    assert data.prepared
    assert data.verify() == 12


def test_a_store_with_zeros_in_it_is_built_anew(nmnist, caplog):
    path = prepared(NMNIST, nmnist).event_store(train=True).folder / "address.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-60] + bytes(60))
    data = prepared(NMNIST, nmnist)
    assert data.prepared
    assert "address.npy is damaged: its checksum" in caplog.text
    assert path.read_bytes() == whole
    shutil.rmtree(nmnist / "NMNIST/Train")
    shutil.rmtree(nmnist / "NMNIST/Test")
    path.write_bytes(whole[:-60] + bytes(60))
    with pytest.raises(UserError):
        prepared(NMNIST, nmnist, download=False)


def test_recordings_without_an_event_are_nothing_to_train_on(tmp_path):
    for part in ("train", "test"):
        for name in ("left", "right"):
            (tmp_path / part / name).mkdir(parents=True)
            np.savez(tmp_path / part / name / "0.npz", **{column: np.zeros(0, np.int64) for column in "xytp"})
    data = EventFolder(root=str(tmp_path), sensor=(8, 8))
    data.prepare_data()
    with pytest.raises(UserError, match=r"none of the 2 training recordings of .* holds an event"):
        data.setup()


def test_a_store_serves_without_the_files_it_was_built_from(nmnist):
    prepared(NMNIST, nmnist)
    shutil.rmtree(nmnist / "NMNIST/Train")
    shutil.rmtree(nmnist / "NMNIST/Test")
    data = prepared(NMNIST, nmnist, download=False)
    assert not data.prepared
    assert len(data.event_store(train=True)) == 20


def test_of_a_part_whose_files_are_gone_the_store_serves_and_nothing_is_lost_to_a_wrong_count(nmnist, caplog):
    prepared(NMNIST, nmnist)
    for path in nmnist.glob("NMNIST/Test/*/*.bin"):
        path.unlink()
    writers.write_file(nmnist / "NMNIST/Train/0/00099.bin", writers.nmnist_bytes(writers.events_of(7, 0, 34, 34)))
    for built in (True, False):
        data = prepared(NMNIST, nmnist, download=False)
        assert data.prepared is built
        assert (len(data.event_store(True)), len(data.event_store(False))) == (21, 10)
    assert "Raw files of N-MNIST (original), test are missing: using the existing event store." in caplog.text


def test_a_finished_store_needs_no_place_to_write(nmnist, monkeypatch):
    prepared(NMNIST, nmnist)
    monkeypatch.setattr(events_module, "folder_lock", None)
    assert not prepared(NMNIST, nmnist).prepared


def test_the_store_can_lie_elsewhere(nmnist, tmp_path):
    data = prepared(NMNIST, nmnist, store=str(tmp_path / "scratch"))
    assert len(list((tmp_path / "scratch").glob("NMNIST-*/original-train.json"))) == 1
    assert not (nmnist / "NMNIST/events").exists()
    assert len(data.event_store(train=True)) == 20


def test_a_part_is_refused_unless_it_is_allowed(nmnist):
    data = NMNIST(root=str(nmnist))
    with pytest.raises(DatasetNotFoundError, match=r"60,000 training recordings, but 20 are in .*allow_partial=true"):
        data.prepare_data()
    prepared(NMNIST, nmnist)
    with pytest.raises(DatasetNotFoundError, match="but 20 are in"):  # nor from the store of another run
        NMNIST(root=str(nmnist)).setup("fit")


def test_an_empty_set_is_refused(tmp_path):
    (tmp_path / "NMNIST/Train/0").mkdir(parents=True)
    (tmp_path / "NMNIST/Test").mkdir()
    with pytest.raises(DatasetNotFoundError, match="60,000 training recordings, but 0 are in"):
        prepared(NMNIST, tmp_path)


def test_a_damaged_recording_is_named_and_nothing_is_written(nmnist):
    path = nmnist / "NMNIST/Test/3/00003.bin"
    path.write_bytes(bytes(4))
    with pytest.raises(RecordingError, match=r"Test/3/00003\.bin: 4 bytes are not"):
        prepared(NMNIST, nmnist)
    names = [p.name for p in (nmnist / "NMNIST/events").iterdir()]
    assert not [name for name in names if name.startswith("original-test") or name.endswith(".tmp")]


def test_an_address_outside_the_sensor_in_the_store_is_found_when_it_is_read(nmnist):
    store = prepared(NMNIST, nmnist).event_store(train=True)
    address = np.load(store.folder / "address.npy")
    address[:] = 65_000
    with writers.unnoticed(store.folder / "address.npy"):
        np.save(store.folder / "address.npy", address)
    with pytest.raises(StoreError, match=r"an event lies outside the sensor\. Delete"):
        prepared(NMNIST, nmnist).setup("fit")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: (f / "trials_to_train.txt").unlink(), r"trials_to_train\.txt, the list"),
        (lambda f: (f / "user01_natural_labels.csv").unlink(), r"user01_natural_labels\.csv does not exist"),
        (lambda f: (f / "trials_to_test.txt").write_text("../x.aedat\n"), r"'\.\./x\.aedat' is no name"),
        (lambda f: (f / "user24_natural.aedat").write_bytes(b""), r"user24_natural\.aedat is no AEDAT 3\.1 file"),
    ],
)
def test_gesture_files_that_do_not_fit_are_named(tmp_path, change, expected):
    writers.write_dvsgesture(tmp_path)
    change(tmp_path / "DVSGesture/DvsGesture")
    with pytest.raises(RecordingError, match=expected):
        prepared(DVSGesture, tmp_path)


def test_a_trial_list_may_begin_with_a_byte_order_mark(tmp_path):
    writers.write_dvsgesture(tmp_path)
    listing = tmp_path / "DVSGesture/DvsGesture/trials_to_train.txt"
    plain = len(prepared(DVSGesture, tmp_path).event_store(train=True))
    listing.write_text(listing.read_text(), encoding="utf-8-sig", newline="\r\n")
    assert len(prepared(DVSGesture, tmp_path).event_store(train=True)) == plain


def test_a_missing_gesture_recording_is_named_unless_a_part_is_allowed(tmp_path, monkeypatch):
    writers.write_dvsgesture(tmp_path)
    (tmp_path / "DVSGesture/DvsGesture/user02_natural.aedat").unlink()
    with pytest.raises(RecordingError, match=r"user02_natural\.aedat is missing, but trials_to_train\.txt names it"):
        DVSGesture(root=str(tmp_path)).prepare_data()
    assert len(prepared(DVSGesture, tmp_path).event_store(train=True)) == 12


def test_a_name_without_a_number_is_refused(cifar10dvs):
    writers.write_file(cifar10dvs / "CIFAR10DVS/original/bird/bird.aedat", b"")
    with pytest.raises(RecordingError, match="its name must end in the recording's number"):
        prepared(CIFAR10DVS, cifar10dvs)


# --- archives


def zip_of(folder: Path, path: Path) -> str:
    with zipfile.ZipFile(path, "w") as file:
        for entry in sorted(folder.rglob("*")):
            file.write(entry, entry.relative_to(folder.parent))
    return hashlib.md5(path.read_bytes()).hexdigest()


def with_origin(monkeypatch, kind, source, origin):
    origins = {**kind.origins(), source: origin}
    monkeypatch.setattr(kind, "origins", classmethod(lambda cls: origins))


def with_md5(monkeypatch, kind, source, md5s):
    origin = kind.origins()[source]
    archives = tuple(
        (replace(archive, md5=md5, url=None), entries)
        for (archive, entries), md5 in zip(origin.archives, md5s, strict=True)
    )
    with_origin(monkeypatch, kind, source, replace(origin, archives=archives))


def test_archives_are_verified_unpacked_and_read(tmp_path, monkeypatch):
    writers.write_nmnist(tmp_path / "raw")
    folder = tmp_path / "data/NMNIST"
    folder.mkdir(parents=True)
    md5s = [zip_of(tmp_path / "raw/NMNIST" / part, folder / f"{part.lower()}.zip") for part in ("Train", "Test")]
    with_md5(monkeypatch, NMNIST, "original", md5s)
    data = prepared(NMNIST, tmp_path / "data")
    assert (len(data.event_store(train=True)), len(data.event_store(train=False))) == (20, 10)


def test_another_archive_is_refused_and_nothing_is_unpacked(tmp_path):
    folder = tmp_path / "NMNIST"
    folder.mkdir()
    (folder / "train.zip").write_bytes(b"something else")
    with pytest.raises(ArchiveError, match=r"train\.zip is not the published train\.zip"):
        prepared(NMNIST, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "train.zip"]


def test_archives_inside_an_archive_are_unpacked(tmp_path, monkeypatch):
    writers.write_cifar10dvs(tmp_path / "raw", source="tonic")
    folder = tmp_path / "data/CIFAR10DVS"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "CIFAR10DVS.zip", "w") as outer:
        for name in CIFAR10DVS.class_names:
            inner = tmp_path / f"{name}.zip"
            (tmp_path / "raw/CIFAR10DVS" / name).mkdir(exist_ok=True)
            zip_of(tmp_path / "raw/CIFAR10DVS" / name, inner)
            with zipfile.ZipFile(inner, "a") as file:
                file.mkdir(name)
            outer.write(inner, inner.name)
    md5 = hashlib.md5((folder / "CIFAR10DVS.zip").read_bytes()).hexdigest()
    with_md5(monkeypatch, CIFAR10DVS, "tonic", [md5])
    data = prepared(CIFAR10DVS, tmp_path / "data", source="tonic")
    assert len(data.event_store(train=True)) == 6
    assert not list(folder.glob("airplane.zip"))


def test_the_gesture_archive_is_unpacked(tmp_path, monkeypatch):
    writers.write_dvsgesture(tmp_path / "raw")
    (tmp_path / "data/DVSGesture").mkdir(parents=True)
    path = tmp_path / "data/DVSGesture/DvsGesture.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(tmp_path / "raw/DVSGesture/DvsGesture", "DvsGesture")
    with_md5(monkeypatch, DVSGesture, "original", [hashlib.md5(path.read_bytes()).hexdigest()])
    assert len(prepared(DVSGesture, tmp_path / "data").event_store(train=False)) == 12


def test_what_must_be_fetched_by_hand_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(
        DatasetNotFoundError, match=r"Fetch DvsGesture\.tar\.gz \(md5 8a5c.*\) from https://ibm.* put it"
    ):
        DVSGesture(root=str(tmp_path / "data")).prepare_data()
    with pytest.raises(DatasetNotFoundError, match=r"Pass --data\.download=true, or fetch train\.zip"):
        NMNIST(root=str(tmp_path / "data"), download=False).prepare_data()
    assert not (tmp_path / "data").exists()


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"source": "ibm"}, "data.source must be one of original, tonic, got 'ibm'"),
        ({"slicing": "by_number"}, "data.slicing must be one of by_count, by_time"),
        ({"time_order": "any"}, "data.time_order must be one of strict, as_recorded"),
        ({"size": 129}, r"data.size must lie in 1..128, got 129"),
        ({"size": 0}, r"data.size must lie in 1..128, got 0"),
        ({"slicing": "by_time", "time_order": "as_recorded"}, "data.slicing=by_time needs times in order"),
        ({"augmentation": [EventMix(), EventMix()]}, "EventMix more than once"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, expected):
    with pytest.raises(UserError, match=expected):
        DVSGesture(**arguments)


# --- details not visible in whole batches


def test_a_time_drop_leaves_out_exactly_its_interval(cifar10dvs):
    data = prepared(CIFAR10DVS, cifar10dvs, time_steps=2, augmentation=[TimeDrop(0.6)])
    data.setup("fit")
    store = data.event_store(train=True)
    uniform = hashed_uniform(1, torch.arange(6), 2).numpy().astype(np.float64)
    length = 0.6 * uniform[:, 0]
    first = uniform[:, 1] * (1 - length)
    batch = everything(data.train_set)
    for i in range(6):
        time = store.time[store.offset[i] : store.offset[i + 1]].astype(float)
        kept = (time < first[i] * time[-1]) | (time >= (first[i] + length[i]) * time[-1])
        half = len(time) // 2
        assert batch.x[i].sum((1, 2, 3)).tolist() == [kept[:half].sum(), kept[half:].sum()]
    assert batch.x.sum() < 0.9 * len(store.address)


def test_a_mix_never_takes_from_what_is_held_out(tmp_path):
    writers.write_cifar10dvs(tmp_path, (*range(10), 900))
    data = prepared(CIFAR10DVS, tmp_path, time_steps=2, validation="holdout", holdout_fraction=0.5)
    data.augmentation = [EventMix(1.0)]
    data.setup("fit")
    indices = data.train_set.indices
    partners = [data.train_set._with_partners(key, indices)[0][len(indices) :] for key in range(20)]
    assert set(np.concatenate(partners).tolist()) == set(indices.tolist())


def test_a_partner_is_changed_as_it_would_be_itself(cifar10dvs):
    mixed = augmented(cifar10dvs, EventDrop(0.9), EventMix(1.0)).x.int()
    plain = augmented(cifar10dvs, EventDrop(0.9), EventMix(0.0)).x.int()
    for i in range(6):
        assert any(((mixed[i] == plain[i]) | (mixed[i] == plain[j])).all() for j in range(6))


def test_counts_that_do_not_fit_one_byte_are_counted_again_with_augmentation(tmp_path):
    zeros = np.zeros(300, np.int64)
    for number in (0, 900):
        path = tmp_path / f"CIFAR10DVS/original/bird/cifar10_bird_{number}.aedat"
        writers.write_file(path, writers.aedat2_bytes(writers.Recording(np.arange(300), zeros, zeros, zeros)))
    for arguments in ({"augmentation": [PolarityFlip(1.0)]}, {"size": 64}):
        data = prepared(CIFAR10DVS, tmp_path, time_steps=1, **arguments)
        data.setup("fit")
        batch = everything(data.train_set)
        assert batch.x.dtype == torch.int16
        assert batch.x.max() == 300


def test_an_address_outside_the_sensor_is_found_with_augmentation_too(nmnist):
    store = prepared(NMNIST, nmnist).event_store(train=True)
    address = np.load(store.folder / "address.npy")
    address[-1] = 65_000
    with writers.unnoticed(store.folder / "address.npy"):
        np.save(store.folder / "address.npy", address)
    data = prepared(NMNIST, nmnist, augmentation=[EventFlip()])
    data.setup("fit")
    with pytest.raises(StoreError, match="an event lies outside the sensor"):
        everything(data.train_set)


def test_a_process_that_waited_finds_the_store_of_the_other_one(nmnist, monkeypatch):
    data = NMNIST(root=str(nmnist), allow_partial=True)
    folder_lock = events_module.folder_lock
    calls = []

    def lock(folder, unwritable, waits):
        if not calls:
            calls.append(1)
            prepared(NMNIST, nmnist)
        return folder_lock(folder, unwritable, waits)

    monkeypatch.setattr(events_module, "folder_lock", lock)
    data.prepare_data()
    assert not data.prepared


def test_two_roots_share_a_folder_of_stores(tmp_path):
    for i in (1, 2):
        writers.write_nmnist(tmp_path / f"root{i}", 10 * i, 10)
    first, second = (prepared(NMNIST, tmp_path / f"root{i}", store=str(tmp_path / "s")) for i in (1, 2))
    assert not prepared(NMNIST, tmp_path / "root1", store=str(tmp_path / "s")).prepared
    assert (len(first.event_store(True)), len(second.event_store(True))) == (10, 20)


def test_a_worker_that_finds_another_store_says_so(nmnist):
    data = prepared(NMNIST, nmnist)
    pickled = pickle.dumps(data.event_store(train=True))
    (nmnist / "NMNIST/Train/0/00000.bin").unlink()
    prepared(NMNIST, nmnist)
    with pytest.raises(StoreError, match="was rebuilt by another process"):
        pickle.loads(pickled)


def test_a_label_that_no_class_has_is_damage(nmnist):
    store = prepared(NMNIST, nmnist).event_store(train=True)
    label = np.load(store.folder / "label.npy")
    label[0] = 99
    with writers.unnoticed(store.folder / "label.npy"):
        np.save(store.folder / "label.npy", label)
    with pytest.raises(StoreError, match=r"labels 0\.\.99, but there are 10 classes"):
        prepared(NMNIST, nmnist).setup("fit")


def test_hidden_files_are_no_recordings(nmnist):
    writers.write_file(nmnist / "NMNIST/Train/0/._00000.bin", b"of another system")
    assert len(prepared(NMNIST, nmnist).event_store(train=True)) == 20


def test_too_many_recordings_are_refused(nmnist, monkeypatch):
    with_origin(monkeypatch, NMNIST, "original", replace(NMNIST.origins()["original"], counts=(19, 10)))
    with pytest.raises(DatasetNotFoundError, match=r"has 19 training recordings, but 20 are in .* Remove what"):
        NMNIST(root=str(nmnist)).prepare_data()


@pytest.mark.parametrize("arguments", [{"augmentation": [TimeDrop(), TimeDrop()]}, {"time_order": "as_recorded"}])
def test_a_time_drop_is_refused_where_it_would_drop_something_else(arguments):
    with pytest.raises(UserError, match="TimeDrop once"):
        NMNIST(**{"augmentation": [TimeDrop()], **arguments})


def test_a_file_of_the_user_is_neither_taken_nor_deleted(tmp_path, monkeypatch):
    writers.write_cifar10dvs(tmp_path / "raw", source="tonic")
    folder = tmp_path / "data/CIFAR10DVS"
    folder.mkdir(parents=True)
    (folder / "airplane.zip").write_bytes(b"mine")
    with zipfile.ZipFile(folder / "CIFAR10DVS.zip", "w") as outer:
        for name in CIFAR10DVS.class_names:
            (tmp_path / "raw/CIFAR10DVS" / name).mkdir(exist_ok=True)
            zip_of(tmp_path / "raw/CIFAR10DVS" / name, tmp_path / f"{name}.zip")
            with zipfile.ZipFile(tmp_path / f"{name}.zip", "a") as file:
                file.mkdir(name)
            outer.write(tmp_path / f"{name}.zip", f"{name}.zip")
    with_md5(monkeypatch, CIFAR10DVS, "tonic", [hashlib.md5((folder / "CIFAR10DVS.zip").read_bytes()).hexdigest()])
    assert len(prepared(CIFAR10DVS, tmp_path / "data", source="tonic").event_store(train=True)) == 6
    assert (folder / "airplane.zip").read_bytes() == b"mine"
