"""User recordings of events, and data sets of tonic."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import tonic
import torch

from plif_lightning.data import NMNIST, EventFlip, EventFolder, TonicEvents
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import UserError
from plif_lightning.events import RecordingError, Sensor, integrate, read_any
from tests import writers


@pytest.fixture
def root(tmp_path):
    writers.write_event_folder(tmp_path / "hands")
    return tmp_path / "hands"


def made(data):
    data.prepare_data()
    data.setup()
    return data


def of_hands(root, **arguments):
    return made(
        EventFolder(root=str(root), **{"sensor": (128, 128), "time_steps": 4, "validation": "test", **arguments})
    )


def everything(dataset, key=0):
    return dataset.batch(BatchRequest(key, torch.arange(len(dataset))))


def test_frames_agree_between_all_formats(root):
    data = of_hands(root)
    assert (data.title, data.class_names, data.input_shape) == ("hands", ("left", "right"), (2, 128, 128))
    files = [path for path, _ in data.files(train=True)]
    assert {path.suffix for path in files} == {".aedat", ".aedat4", ".bin", ".npy", ".npz"}
    batch = everything(data.train_set)
    for x, path in zip(batch.x, files, strict=True):
        assert np.array_equal(x, integrate(read_any(path), Sensor(128, 128), 4)), path
    assert batch.label.tolist() == [0] * 4 + [1] * 2
    assert [part.counts for part in data.inventory()] == [[4, 2], [1, 1]]
    assert data.inventory()[0].files == "2 .aedat, 1 .aedat4, 1 .bin, 1 .npy, 1 .npz, times of tables in us"
    again = of_hands(root, validation="holdout", holdout_fraction=0.5)
    assert again.sizes() == {"training": 3, "val": 3, "test": 2}
    assert again.identity() == data.identity()


def test_tables_take_columns_and_unit(root):
    plain = of_hands(root)
    for path in root.glob("*/*/*.np[yz]"):
        t, x, y, p = read_any(path)
        np.savetxt(path.with_suffix(".txt"), np.stack([y, t * 1e-6, p, x], 1), "%.6f")
        path.unlink()
    with pytest.raises(RecordingError, match=r"\d\.txt has no header that names its columns: .*--data\.columns="):
        of_hands(root)
    given = of_hands(root, columns=["y", "t", "p", "x"], time_unit="s")
    assert given.test_set.labels().tolist() == [0, 1]
    assert torch.equal(everything(given.test_set).x, everything(plain.test_set).x)
    with pytest.raises(RecordingError, match=r"\d\.txt: its times have fractions"):
        of_hands(root, columns=["y", "t", "p", "x"])


def test_invalid_recording_is_refused_and_leaves_no_cache(root):
    for x, message in (
        ([1, 128], r"a\.npz: event 1 has x = 128, but a sensor of 128x128 pixels.* comes from another sensor"),
        ([1.5, 2], r"a\.npz: x must be whole numbers"),
        ([1, 2, 3], r"a\.npz: every event needs x, y, t and p, got 2 of t, 3 of x, 2 of y"),
    ):
        np.savez(root / "train/left/a.npz", x=x, y=[1, 2], t=[0, 5], p=[-1, 1])
        with pytest.raises(RecordingError, match=message):
            of_hands(root)
        assert not [path for path in root.glob("events/*/*") if path.name != ".lock"]


def test_files_that_are_not_read_are_named_and_a_class_without_any_is_refused(root, caplog):
    for name in (*(f"train/left/{i}.mp4" for i in range(6)), "test/right/by subject", "test/right/.hidden"):
        (root / name).touch()
    of_hands(root)
    assert "hands/train: 6 files are ignored: left/0.mp4, left/1.mp4" in caplog.text
    assert "hands/test: 1 files are ignored: right/by subject." in caplog.text
    for path in (root / "train" / "right").iterdir():
        path.rename(path.with_suffix(".mp4"))
    with pytest.raises(UserError, match=r"train/right has no file that ends in \.aedat, \.aedat4, \.bin, \.csv, "):
        of_hands(root)


def test_sensor_comes_from_the_first_file_and_others_are_refused(root):
    with pytest.raises(UserError, match=r"data\.sensor must be given: .*left/0\.npz does not name its sensor"):
        EventFolder(root=str(root))
    with pytest.raises(UserError, match=r"sensor must be \(height, width\), got \(128, 128, 2\)"):
        EventFolder(root=str(root), sensor=(128, 128, 2))
    (root / "train/left/0.npz").rename(root / "train/left/9.npz")
    assert of_hands(root, sensor=None).sensor == (128, 128)
    with pytest.raises(RecordingError, match=r"left/1\.aedat is of a sensor of 128x128 pixels .*, not of 48x64"):
        of_hands(root, sensor=(48, 64))
    writers.write_file(root / "train/left/8.raw", writers.evt3_bytes(writers.events_of(100, 1, 48, 64), 48, 64))
    with pytest.raises(RecordingError, match=r"left/8\.raw is of a sensor of 48x64 pixels .*, not of 128x128"):
        of_hands(root, sensor=None)


def test_recordings_of_different_sensors_are_rescaled_to_the_same_frames(root):
    large = writers.events_of(100, 1, 48, 64)
    writers.write_file(root / "train/left/8.raw", writers.evt3_bytes(large, 48, 64))
    with pytest.raises(RecordingError, match=r"--data\.size=\[HEIGHT,WIDTH\]"):
        of_hands(root)
    data = of_hands(root, size=[20, 30])
    assert (data.input_shape, data.preprocessing["sensor"], data.preprocessing["size"]) == (
        (2, 20, 30),
        [128, 128],
        [20, 30],
    )
    assert [path.name for path, _ in data.files(train=True)][4] == "8.raw"
    x = torch.as_tensor(everything(data.train_set).x).double()
    own = torch.from_numpy(integrate(large, Sensor(48, 64), 4)).double()
    for i, count in (
        (0, torch.from_numpy(integrate(read_any(root / "train/left/0.npz"), Sensor(128, 128), 4))),
        (4, own),
    ):
        rows = torch.arange(count.shape[-2]) * 20 // count.shape[-2]
        columns = torch.arange(count.shape[-1]) * 30 // count.shape[-1]
        expected = torch.zeros(4, 2, 20, 30).double()
        for t, p, row, column in count.nonzero().tolist():
            expected[t, p, rows[row], columns[column]] += count[t, p, row, column]
        assert torch.equal(x[i], expected)
    with pytest.raises(RecordingError, match=r"0\.npz does not name its sensor: pass --data\.sensor"):
        of_hands(root, size=[20, 30], sensor=None)


@pytest.fixture
def few(monkeypatch):
    """tonic counts the files of a data set; here, any number will do."""
    for name in ("NMNIST", "POKERDVS", "NCALTECH101"):
        is_there = lambda self: Path(self.location_on_system, self.folder_name).is_dir()  # noqa: E731
        monkeypatch.setattr(getattr(tonic.datasets, name), "_check_exists", is_there)


def test_nmnist_through_tonic_equals_our_frames(real_data, tmp_path, few):
    ours = made(NMNIST(root=str(real_data), allow_partial=True, store=str(tmp_path / "ours"), time_steps=5))
    theirs = made(TonicEvents(name="NMNIST", root=str(real_data), store=str(tmp_path / "tonic"), time_steps=5))
    assert theirs.class_names[3] == "3 - three"
    assert (theirs.input_shape, theirs.sizes()) == (ours.input_shape, ours.sizes())
    for train in (True, False):
        a, b = ours.recordings(train), theirs.recordings(train)
        for name in ("address", "time", "offset", "label"):
            assert np.array_equal(a[name], b[name]), name


def test_tonics_transforms_change_training_events_before_our_augmentation(root):
    flip = tonic.transforms.RandomFlipLR(sensor_size=(128, 128, 2), p=1.0)
    plain, changed, both = (of_hands(root, augmentation=some) for some in (None, [flip], [EventFlip(1.0), flip]))
    x = everything(plain.train_set).x
    assert torch.equal(everything(changed.train_set).x, x.flip(-1))
    assert torch.equal(everything(both.train_set).x, x)
    assert torch.equal(everything(changed.test_set).x, everything(plain.test_set).x)
    np.savez(root / "train/left/0.npz", **{name: np.zeros(0, np.int64) for name in "xytp"})
    fails_without_events = [tonic.transforms.DropEventByTime(0.2), tonic.transforms.TimeAlignment()]
    counts = everything(of_hands(root, augmentation=fails_without_events).train_set).x.sum((1, 2, 3, 4))
    assert (counts == 0).tolist() == [True] + [False] * 5


def test_pokerdvs_is_read_by_tonic_once_and_served_from_the_cache(tmp_path, few):
    writers.write_pokerdvs(tmp_path)
    given = {"name": "POKERDVS", "root": str(tmp_path), "time_steps": 3, "validation": "test", "download": False}
    data = made(TonicEvents(**given))
    assert (data.class_names, data.input_shape) == (("cl", "he", "di", "sp"), (2, 35, 35))
    assert data.sizes() == {"training": 8, "test as val": 4, "test": 4}
    arrays = data.recordings(train=True)
    assert arrays["label"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    t, x, y, p = np.load(tmp_path / "POKERDVS/pips_train/sp/1.npy").T
    assert arrays["address"][arrays["offset"][7] :].tolist() == (p * 35 * 35 + y * 35 + x).tolist()
    assert arrays["time"][arrays["offset"][7] :].tolist() == (t - t[0]).tolist()
    np.save(tmp_path / "POKERDVS/pips_train/sp/1.npy", np.stack([t, x, y, p], 1)[::2])
    halved = made(TonicEvents(**given))
    assert len(halved.recordings(train=True)["address"]) == len(arrays["address"]) - 45
    for part in (tmp_path / "POKERDVS").glob("pips_*"):
        shutil.rmtree(part)
    assert torch.equal(everything(made(TonicEvents(**given)).train_set).x, everything(halved.train_set).x)


def test_the_draws_of_a_transform_depend_on_epoch_and_sample_alone(root):
    def drop(events):
        return events[np.random.random(len(events)) < 0.5]

    data = of_hands(root, augmentation=[drop])
    before = np.random.get_state()[1].copy()
    every = everything(data.train_set, key=3).x
    assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(data.train_set.batch(BatchRequest(3, torch.tensor([5]))).x[0], every[5])
    assert not torch.equal(everything(data.train_set, key=4).x, every)
    np.savez(root / "train/left/9.npz", **read_any(root / "train/left/0.npz")._asdict())  # the same events once more
    twice = everything(of_hands(root, augmentation=[drop]).train_set, key=3).x
    assert not torch.equal(twice[0], twice[4])


def test_tonic_data_set_without_a_test_set_is_split_by_class(tmp_path, few):
    """N-Caltech101: classes are folders, the sensor is given, and the last share of each class is the test set."""
    folder = tmp_path / "NCALTECH101/Caltech101"
    for name, i in itertools.product(("crab", "bass"), range(5)):
        content = writers.nmnist_bytes(writers.events_of(50 + i, i, 180, 240, 10_000))
        writers.write_file(folder / name / f"image_{i:04d}.bin", content)
    given = {
        "name": "NCALTECH101",
        "root": str(tmp_path),
        "sensor": (180, 240),
        "test_fraction": 0.4,
        "validation": "test",
        "download": False,
    }
    data = made(TonicEvents(**given))
    assert data.class_names == ("bass", "crab")
    assert data.labels(train=True).tolist() == [0, 0, 0, 1, 1, 1]
    names = [[Path(name).parts[-2:] for name in data.recordings(part)["name"]] for part in (True, False)]
    expected = [[(one, f"image_{i:04d}.bin") for one in ("bass", "crab") for i in part] for part in ((0, 1, 2), (3, 4))]
    assert names == expected  # the last by name, on any file system
    shutil.rmtree(folder)  # the cache keeps the names of the classes
    again = made(TonicEvents(**given))
    assert (again.class_names, again.identity(), again.sizes()) == (data.class_names, data.identity(), data.sizes())
