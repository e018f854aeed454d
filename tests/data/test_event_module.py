"""Event data sets: from files to the cache, to batches, and to a network."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from plif_lightning import SpikingClassifier
from plif_lightning.data import CIFAR10DVS, NMNIST, CutMix, EventDataModule
from plif_lightning.data.event_augment import EventDrop, EventFlip, EventMix, EventRotation, PolarityFlip, TimeDrop
from plif_lightning.data.loading import BatchPlan, BatchRequest, make_loader
from plif_lightning.errors import DataNotFoundError, UserError
from plif_lightning.events import Recording, RecordingError, Sensor, read_any
from plif_lightning.events.integration import resize
from plif_lightning.runtime.randomness import hashed_uniform
from tests import writers


def made(kind, root, **arguments):
    data = kind(root=str(root), **{"allow_partial": True, "validation": "test", **arguments})
    data.prepare_data()
    data.setup()
    return data


def everything(dataset, key=1):
    return dataset[BatchRequest(key, torch.arange(len(dataset)))]


@pytest.fixture
def nmnist(tmp_path):
    writers.write_nmnist(tmp_path)
    return tmp_path


@pytest.fixture
def cifar10dvs(tmp_path):
    writers.write_cifar10dvs(tmp_path)
    return tmp_path


@dataclass(eq=False, repr=False)
class Bars(EventDataModule):
    """Bars that move: columns of t, x, y and p in a .npy file each; every n-th one is for testing."""

    every: int = 4

    title = "bars"
    sensor = Sensor(16, 16)
    class_names = ("left", "right")

    def files(self, train):
        folders = [(self.home / name, label) for label, name in enumerate(self.class_names)]
        found = [(path, label) for folder, label in folders for path in sorted(folder.glob("*.npy"))]
        return [(path, label) for path, label in found if (int(path.stem) % self.every > 0) == train]

    def read(self, path, label):
        return [(label, Recording(*np.load(path)))]


def test_two_methods_make_a_data_set_that_trains_and_is_opened_again_from_its_cache(tmp_path, caplog):
    for label, name in enumerate(Bars.class_names):
        (tmp_path / name).mkdir()
        for i in range(8):
            t, x, y, p = writers.events_of(4000, i, 16, 16)
            np.save(tmp_path / name / f"{i}.npy", [t, (x // 2 + 8 * label), y, p])
    data = Bars(root=str(tmp_path), time_steps=4, batch_size=4, validation="test")
    task = SpikingClassifier((2, 16, 16), 2, 4, channels=16, fc_features=64, dropout=0.0)
    before = next(task.parameters()).detach().clone()
    L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False).fit(task, datamodule=data)
    assert not torch.equal(next(task.parameters()), before)
    data.setup("test")
    assert data.sizes() == {"training": 12, "test as val": 4, "test": 4}
    batch = everything(data.train_set)
    assert batch.label.tolist() == data.labels(train=True).tolist() == [0] * 6 + [1] * 6
    assert batch.x.shape == (12, 4, *data.input_shape)
    assert torch.equal(batch.x[6:, :, :, :, :8], torch.zeros(6, 4, 2, 16, 8))
    with pytest.raises(DataNotFoundError, match="no training recordings with events"):
        Bars(root=str(tmp_path), every=1).prepare_data()  # not those that were cached before
    data.prepare_data()
    shutil.rmtree(tmp_path / "left"), shutil.rmtree(tmp_path / "right")
    again = Bars(root=str(tmp_path), time_steps=4, validation="test")
    again.prepare_data(), again.setup()
    assert torch.equal(everything(again.train_set).x, batch.x)
    assert "bars has no test recordings in" in caplog.text
    assert again.identity() == data.identity()


# --- batches


def frames_by_hand(recording, how):
    """Frames of a recording, event by event, from what `preprocessing` tells."""
    (height, width), sensor, steps = how["size"], how["sensor"], how["time_steps"]
    frames = np.zeros((steps, 2, height, width), np.int64)
    first, last = int(recording.t[0]), int(recording.t[-1])
    for i, (t, x, y, p) in enumerate(zip(*(column.tolist() for column in recording), strict=True)):
        if how["slicing"] == "by_count":
            step = i // (len(recording.t) // steps)
        else:
            step = (t - first) * steps // (last - first)
        channel = how["polarities"].index("on" if p else "off")
        frames[min(step, steps - 1), channel, y * height // sensor[0], x * width // sensor[1]] += 1
    return frames


@pytest.mark.parametrize(("slicing", "size"), [("by_count", None), ("by_count", 17), ("by_time", 20)])
def test_a_batch_holds_the_frames_that_counting_by_hand_gives(nmnist, slicing, size):
    data = made(NMNIST, nmnist, time_steps=7, slicing=slicing, size=size)
    batch = data.train_set[BatchRequest(0, torch.tensor([3, 0, 3]))]
    assert batch.x.shape == (3, 7, *data.input_shape)
    assert batch.x.dtype == torch.uint8
    assert batch.x.transpose(0, 1).is_contiguous()
    assert (batch.sample.tolist(), batch.label.tolist(), batch.target) == ([3, 0, 3], [1, 0, 1], None)
    for x, i in zip(batch.x, (3, 0, 3), strict=True):
        recording = read_any(nmnist / "NMNIST" / data.recordings(train=True)["name"][i])
        np.testing.assert_array_equal(x, frames_by_hand(recording, data.preprocessing))


def test_workers_and_processes_read_the_same_batches(nmnist):
    data = made(NMNIST, nmnist, time_steps=4, augmentation=[EventFlip(), EventDrop(), EventMix()])
    expected = list(make_loader(data.train_set, BatchPlan(20, 8, shuffle=True, seed=1)))
    loader = make_loader(data.train_set, BatchPlan(20, 8, shuffle=True, seed=1), num_workers=2)
    for ours, theirs in zip(expected, loader, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    parts = [make_loader(data.train_set, BatchPlan(20, 4, True, False, 1, rank, 2)) for rank in (0, 1)]
    for ours, theirs in zip(expected, zip(*parts, strict=True), strict=True):
        for a, *both in zip(ours, *theirs, strict=True):
            assert torch.equal(a, torch.cat(both))


def test_background_activity_is_dropped_before_the_cache(nmnist):
    data, whole = (made(NMNIST, nmnist, background_us=us) for us in (20_000, None))
    arrays = data.recordings(train=True)
    assert data.cache_folder(train=True) != whole.cache_folder(train=True)
    t, x, y, p = (column.astype(int) for column in read_any(nmnist / "NMNIST" / arrays["name"][0]))
    distance = np.maximum(abs(x[:, None] - x), abs(y[:, None] - y))
    kept = np.tril((distance == 1) & (t[:, None] - t <= 20_000)).any(1)
    assert 10 < kept.sum() < 190
    assert arrays["address"][: arrays["offset"][1]].tolist() == (p * 34 * 34 + y * 34 + x)[kept].tolist()
    assert arrays["time"][: arrays["offset"][1]].tolist() == (t[kept] - t[kept][0]).tolist()


def test_holdout_takes_the_last_recordings_of_each_class_and_is_never_mixed_in(tmp_path):
    writers.write_cifar10dvs(tmp_path, (*range(10), 900))
    given = {"validation": "holdout", "holdout_fraction": 0.2, "augmentation": [EventMix(1.0)]}
    data = made(CIFAR10DVS, tmp_path, time_steps=2, **given)
    assert (len(data.train_set), len(data.val_set)) == (24, 6)
    names = data.recordings(train=True)["name"][data.val_set.indices.numpy()]
    assert [int(Path(name).stem.split("_")[-1]) for name in names] == [8, 9] * 3
    indices = data.train_set.indices
    partners = [data.train_set._with_partners(key, indices)[0][len(indices) :] for key in range(20)]
    assert set(np.concatenate(partners).tolist()) == set(indices.tolist())


# --- augmentation


def augmented(root, *augmentation, key=1, **arguments):
    given = {"time_steps": 3, "augmentation": list(augmentation), **arguments}
    return everything(made(CIFAR10DVS, root, **given).train_set, key)


def test_training_frames_are_mirrored_or_exchanged_at_any_size_and_test_frames_are_not(cifar10dvs):
    plain, small = made(CIFAR10DVS, cifar10dvs, time_steps=3), augmented(cifar10dvs, size=48).x
    x = everything(plain.train_set).x
    flipped = made(CIFAR10DVS, cifar10dvs, time_steps=3, augmentation=[EventFlip(1.0)])
    assert torch.equal(everything(flipped.train_set).x, x.flip(-1))
    assert torch.equal(everything(flipped.test_set).x, everything(plain.test_set).x)
    assert torch.equal(augmented(cifar10dvs, PolarityFlip(1.0)).x, x.flip(2))
    table = torch.from_numpy(resize(Sensor(128, 128), Sensor(48, 48))).long()
    expected = torch.zeros(6, 3, 2 * 48 * 48, dtype=torch.int64)
    assert torch.equal(small.flatten(2).long(), expected.index_add_(2, table, x.flatten(2).long()))
    assert torch.equal(augmented(cifar10dvs, EventFlip(1.0), size=64).x, augmented(cifar10dvs, size=64).x.flip(-1))


def test_a_time_drop_leaves_out_exactly_its_interval_and_shifts_nothing(cifar10dvs):
    arrays = made(CIFAR10DVS, cifar10dvs).recordings(train=True)
    batch = augmented(cifar10dvs, TimeDrop(0.6), time_steps=2)
    uniform = hashed_uniform(1, torch.arange(6), 2).numpy().astype(np.float64)
    length = 0.6 * uniform[:, 0]
    first = uniform[:, 1] * (1 - length)
    for i in range(6):
        time = arrays["time"][arrays["offset"][i] : arrays["offset"][i + 1]].astype(float)
        kept = (time < first[i] * time[-1]) | (time >= (first[i] + length[i]) * time[-1])
        half = len(time) // 2
        assert batch.x[i].sum((1, 2, 3)).tolist() == [kept[:half].sum(), kept[half:].sum()]
    assert batch.x.sum() < 0.9 * len(arrays["address"])


def test_event_mix_replaces_a_rectangle_and_its_share_of_the_target(cifar10dvs):
    batch, plain = augmented(cifar10dvs, EventMix(1.0)), augmented(cifar10dvs, EventMix(0.0))
    assert torch.equal(plain.x, augmented(cifar10dvs).x)
    torch.testing.assert_close(batch.target.sum(1), torch.ones(6))
    assert (batch.target > 0).sum(1).max() == 2
    assert torch.equal(batch.label, plain.label)
    for x, own in zip(batch.x, plain.x, strict=True):  # every pixel comes from this recording or from its partner
        differs = [(x != own).any(0).any(0) & (x != other).any(0).any(0) for other in plain.x]
        assert any(not wrong.any() for wrong in differs)
    mixed, never = (augmented(cifar10dvs, EventDrop(0.9), EventMix(p)) for p in (1.0, 0.0))
    assert torch.equal(never.target.argmax(1), plain.label)
    for x, own in zip(mixed.x, never.x, strict=True):  # a partner is changed as it would be itself
        assert any(((x == own) | (x == other)).all() for other in never.x)


def test_numbers_depend_on_epoch_and_sample_alone(cifar10dvs):
    every = [EventFlip(), EventRotation(20.0), PolarityFlip(), TimeDrop(), EventDrop(), EventMix()]
    data = made(CIFAR10DVS, cifar10dvs, time_steps=3, augmentation=every)
    together = everything(data.train_set)
    alone = data.train_set[BatchRequest(1, torch.tensor([4]))]
    assert torch.equal(alone.x[0], together.x[4])
    assert torch.equal(alone.target[0], together.target[4])
    assert not torch.equal(everything(data.train_set, key=2).x, together.x)


# --- the cache


def test_another_size_name_or_label_of_a_file_is_another_data_set(nmnist):
    found = [made(NMNIST, nmnist).recordings(train=True)]
    path = nmnist / "NMNIST/Train/0/00000.bin"
    path.write_bytes(writers.nmnist_bytes(writers.events_of(7, 0, 34, 34)))
    found.append(made(NMNIST, nmnist).recordings(train=True))
    path = path.rename(path.with_name("00002.bin"))
    found.append(made(NMNIST, nmnist).recordings(train=True))
    path.rename(nmnist / "NMNIST/Train/1/00002.bin")
    found.append(made(NMNIST, nmnist).recordings(train=True))
    assert (found[1]["offset"][1], found[2]["name"][0]) == (7, "Train/0/00002.bin")
    assert np.bincount(found[3]["label"]).tolist()[:3] == [1, 3, 2]
    assert len({arrays.content for arrays in found}) == 4


def test_recordings_are_read_once_also_for_copies_with_or_without_the_files(nmnist, tmp_path, monkeypatch, caplog):
    first, copy = made(NMNIST, nmnist), tmp_path / "copy"
    shutil.copytree(nmnist / "NMNIST", copy / "NMNIST", copy_function=shutil.copyfile)  # all files have other times
    monkeypatch.setattr(NMNIST, "read", None)
    for root in (nmnist, copy):
        again = made(NMNIST, root, time_steps=3, slicing="by_time", size=17, augmentation=[EventFlip()])
        assert again.identity() == first.identity()
        assert again.verify() == 2 * len(first.recordings(train=True))
    for path in copy.glob("NMNIST/Test/*/*.bin"):
        path.unlink()
    with pytest.raises(DataNotFoundError, match="N-MNIST has no test recordings"):  # of one part alone
        made(NMNIST, copy)
    shutil.rmtree(copy / "NMNIST/Train"), shutil.rmtree(copy / "NMNIST/Test")
    data = made(NMNIST, copy, download=False)
    assert (data.identity(), data.labels(train=True).tolist()) == (first.identity(), first.labels(True).tolist())
    assert "N-MNIST has no training recordings in" in caplog.text


def test_caches_of_two_roots_can_share_a_store(tmp_path):
    for i in (1, 2):
        writers.write_nmnist(tmp_path / f"root{i}", 10 * i, 10)
    for _ in range(2):
        found = [made(NMNIST, tmp_path / f"root{i}", store=str(tmp_path / "s")).recordings(True) for i in (1, 2)]
        assert [len(arrays["label"]) for arrays in found] == [10, 20]
    assert len(list((tmp_path / "s").glob("NMNIST-*/original-train/*/manifest.json"))) == 2
    assert not (tmp_path / "root1/NMNIST/events").exists()


def test_a_damaged_recording_is_named_and_nothing_is_left(nmnist):
    (nmnist / "NMNIST/Test/3/00003.bin").write_bytes(bytes(4))
    with pytest.raises(RecordingError, match=r"Test/3/00003\.bin: 4 bytes are not"):
        made(NMNIST, nmnist)
    assert [path.name for path in (nmnist / "NMNIST/events/original-test").iterdir()] == [".lock"]


def test_arguments_outside_their_range_are_refused():
    for arguments, expected in (
        ({"slicing": "by_number"}, r"data\.slicing must be one of by_count, by_time"),
        ({"size": 35}, r"data\.size must lie in 1\.\.34, got 35"),
        ({"background_us": 0}, r"data\.background_us must be .* 1"),
        ({"augmentation": [EventMix(), EventMix()]}, "EventMix more than once"),
        ({"augmentation": [TimeDrop(), TimeDrop()]}, "TimeDrop once"),
        ({"augmentation": [CutMix()]}, r"may hold .*, not augmentations of images"),
    ):
        with pytest.raises(UserError, match=expected):
            NMNIST(**arguments)
    assert [NMNIST(size=size).size for size in (1, 34)] == [1, 34]
