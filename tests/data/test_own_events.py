"""User recordings of events, and data sets of tonic."""

import shutil

import numpy as np
import pytest
import tonic
import torch
from torchvision import transforms

from plif_lightning.data import NMNIST, EventFlip, EventFolder, HorizontalFlip, TonicEvents
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.events import Sensor, frames_of, integrate, read_any, read_nmnist
from tests import writers


@pytest.fixture
def root(tmp_path):
    writers.write_event_folder(tmp_path / "hands")
    return tmp_path / "hands"


def made(data):
    data.prepare_data()
    data.setup()
    return data


def test_frames_are_those_of_every_format(root):
    data = made(EventFolder(root=str(root), sensor=(128, 128), time_steps=4))
    assert data.class_names == ("left", "right")
    assert data.input_shape == (2, 128, 128)
    files = [path for _, path in data.folders.files(train=True)]
    assert {path.suffix for path in files} == {".aedat", ".aedat4", ".bin", ".npy", ".npz"}
    batch = data.train_set.batch(BatchRequest(0, torch.arange(len(files))))
    for i, path in enumerate(files):
        assert np.array_equal(batch.x[i], integrate(read_any(path), Sensor(128, 128), 4)), path
    assert batch.label.tolist() == [0] * 4 + [1] * 2
    assert [part.counts for part in data.inventory()] == [[4, 2], [1, 1]]
    again = EventFolder(root=str(root), sensor=(128, 128), time_steps=4, validation="holdout", holdout_fraction=0.5)
    again.prepare_data()
    assert not again.prepared
    again.setup()
    assert again.sizes() == {"training": 3, "val": 3, "test": 2}


def replace(root, name, **columns):
    events = {"x": [1, 2], "y": [1, 2], "t": [0, 5], "p": [0, 1], **columns}
    np.savez(root / "train" / "left" / name, **{key: np.array(values) for key, values in events.items() if values})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1, 128]}, r"a\.npz: event 1 has x = 128, but a sensor of 128 x 128 pixels.* comes from another sensor"),
        ({"t": [0.1, np.inf]}, r"a\.npz: a time is not a finite number"),
        ({"x": [1.5, 2]}, r"a\.npz: x must be whole numbers, got float64"),
        ({"t": [5, 0]}, r"a\.npz: time runs backwards"),
        ({"p": [2, 1]}, r"a\.npz: event 0 has polarity = 2"),
        ({"p": []}, r"a\.npz must hold x, y, t and p .* but lacks p"),
        ({"y": [1, 2, 3]}, r"a\.npz: every event needs x, y, t and p, got 2 of t, 2 of x, 3 of y"),
    ],
)
def test_what_a_recording_holds_is_checked(root, columns, message):
    replace(root, "a.npz", **columns)
    with pytest.raises(UserError, match=message):
        made(EventFolder(root=str(root), sensor=(128, 128)))
    assert not list(root.glob("events/*.json"))


def test_polarities_of_minus_one_and_one_are_off_and_on(root):
    replace(root, "0.npz", p=[-1, 1])
    data = made(EventFolder(root=str(root), sensor=(128, 128), time_steps=1))
    x, _ = data.train_set[[path.name for _, path in data.folders.files(train=True)].index("0.npz")]
    assert x.nonzero().tolist() == [[0, 0, 1, 1], [0, 1, 2, 2]]


def test_what_else_an_npz_holds_is_not_looked_at(root):
    events = {name: np.array(values) for name, values in {"x": [1], "y": [2], "t": [3], "p": [1]}.items()}
    np.savez(root / "a.npz", **events, about=np.array({"subject": 3}, dtype=object))
    assert [column.tolist() for column in read_any(root / "a.npz")] == [[3], [1], [2], [1]]


def break_folder(root, what):
    if what == "folder":
        (root / "train" / "left" / "b.aedat").mkdir()
    elif what == "suffix":
        for path in (root / "train" / "right").iterdir():
            path.rename(path.with_suffix(".mp4"))
    elif what == "npy":
        np.save(root / "train" / "left" / "b.npy", np.zeros((3, 4)))
    elif what == "zip":
        (root / "train" / "left" / "b.npz").write_bytes(b"PK\x03\x04")
    elif what == "aedat":
        (root / "train" / "left" / "b.aedat").write_bytes(b"#!AER-DAT1.0\r\n")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("suffix", r"train/right holds no file that ends in \.aedat, \.aedat4, \.bag, \.bin, \.csv, \.dat, \.db3, "),
        ("folder", r"b\.aedat cannot be read: Is a directory"),
        ("npy", r"b\.npy has four columns without names, and it is not clear which they are"),
        ("zip", r"b\.npz cannot be read as NumPy arrays"),
        ("aedat", r"b\.aedat begins with b'#!AER-DAT1': it is no AEDAT 2\.0, 3\.1 or 4\.0"),
    ],
)
def test_what_is_no_recording_is_named(root, what, message):
    break_folder(root, what)
    with pytest.raises(UserError, match=message):
        made(EventFolder(root=str(root), sensor=(128, 128)))


def test_the_sensor_must_be_given_where_no_file_names_it(root):
    assert EventFolder(root=str(root)).sensor == (128, 128)  # of the .aedat files
    for path in root.glob("*/*/*.aedat*"):
        path.unlink()
    with pytest.raises(UserError, match=r"data\.sensor must be given: no file in .*hands names its sensor"):
        EventFolder(root=str(root))
    with pytest.raises(UserError, match=r"sensor must be \(height, width\), got \(128, 128, 2\)"):
        EventFolder(root=str(root), sensor=(128, 128, 2))


# --- tonic


def test_nmnist_through_tonic_is_our_own_frame_by_frame(real_data, tmp_path):
    ours = NMNIST(root=str(real_data), allow_partial=True, store=str(tmp_path / "ours"), time_steps=5)
    theirs = TonicEvents(
        name="NMNIST", root=str(real_data), allow_partial=True, store=str(tmp_path / "tonic"), time_steps=5
    )
    assert theirs.input_shape == ours.input_shape
    assert theirs.class_names[3] == "3 - three"
    made(ours), made(theirs)
    assert ours.sizes() == theirs.sizes()
    for train in (True, False):
        a, b = ours.event_store(train), theirs.event_store(train)
        for name in ("address", "time", "offset", "label"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_tonics_transforms_change_events(real_data, tmp_path):
    tonic = pytest.importorskip("tonic.transforms")
    flip = tonic.RandomFlipLR(sensor_size=(34, 34, 2), p=1.0)
    place = {"root": str(real_data), "allow_partial": True, "store": str(tmp_path), "time_steps": 4}
    plain = made(NMNIST(**place))
    changed = made(NMNIST(**place, augmentation=[flip]))
    both = made(NMNIST(**place, augmentation=[EventFlip(1.0), flip]))
    request = BatchRequest(3, torch.tensor([0, 700, 31]))
    x = plain.train_set.batch(request).x
    assert torch.equal(changed.train_set.batch(request).x, x.flip(-1))
    assert torch.equal(both.train_set.batch(request).x, x)
    assert torch.equal(changed.test_set[0][0], plain.test_set[0][0])


def test_a_recording_without_events_passes_tonics_transforms(root):
    tonic = pytest.importorskip("tonic.transforms")
    replace(root, "0.npz", x=[], y=[], t=[], p=[])
    np.savez(root / "train" / "left" / "0.npz", **{name: np.zeros(0, np.int64) for name in "xytp"})
    transforms = [tonic.DropEventByTime(0.2), tonic.TimeAlignment()]
    data = made(EventFolder(root=str(root), sensor=(128, 128), augmentation=transforms, batch_size=1))
    x = data.train_set.batch(BatchRequest(0, torch.arange(len(data.train_set)))).x
    assert (x.flatten(1).sum(1) == 0).sum() == 1

    def fails(events):
        raise ValueError("no")

    broken = EventFolder(root=str(root), sensor=(128, 128), augmentation=[fails])
    broken.prepare_data()
    broken.setup()
    with pytest.raises(UserError, match=r"function fails on the events of train/left/\d\.\w+, an .*ValueError: no"):
        broken.train_set.batch(BatchRequest(0, torch.arange(6)))


def test_a_transforms_draws_depend_on_seed_and_sample_alone(real_data, tmp_path):
    tonic = pytest.importorskip("tonic.transforms")
    data = made(
        NMNIST(
            root=str(real_data),
            allow_partial=True,
            store=str(tmp_path),
            augmentation=[
                tonic.DropEvent(p=0.4),
                tonic.TimeJitter(std=2000, clip_negative=False),
                tonic.SpatialJitter(sensor_size=(34, 34, 2), var_x=3.0, var_y=3.0),
            ],
        )
    )
    before = np.random.get_state()[1].copy()
    both = data.train_set.batch(BatchRequest(3, torch.tensor([5, 9]))).x
    assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(data.train_set.batch(BatchRequest(3, torch.tensor([9]))).x[0], both[1])
    assert not torch.equal(data.train_set.batch(BatchRequest(4, torch.tensor([9]))).x[0], both[1])
    path = sorted((real_data / "NMNIST" / "Train").glob("*/*.bin"))
    assert 0 < both[0].sum() < len(read_nmnist(path[5]).t)


def test_a_transform_of_something_else_is_refused(real_data, tmp_path):
    tonic = pytest.importorskip("tonic.transforms")
    place = {"root": str(real_data), "allow_partial": True, "store": str(tmp_path)}
    for transform, message in (
        (tonic.ToFrame(sensor_size=(34, 34, 2), n_time_bins=3), "ToFrame must return events .* got ndarray"),
        (transforms.RandomCrop(3), "RandomCrop fails on the events of .*, an array with x, y, t and p .TypeError"),
    ):
        data = NMNIST(**place, augmentation=[transform])
        data.prepare_data()
        with pytest.raises(UserError, match=rf"data\.augmentation: {message}"):
            data.setup()
    with pytest.raises(UserError, match=r"transforms in data\.augmentation need times in order"):
        NMNIST(**place, augmentation=[lambda events: events], time_order="as_recorded")
    with pytest.raises(UserError, match=r"data\.augmentation has HorizontalFlip, which changes images"):
        NMNIST(**place, augmentation=[HorizontalFlip()])


def test_another_data_set_of_tonic(tmp_path):
    """POKER-DVS: files in its own format, read by tonic without downloading."""
    writers.write_pokerdvs(tmp_path)
    data = made(TonicEvents(name="POKERDVS", root=str(tmp_path), time_steps=3, allow_partial=True, download=False))
    assert (data.class_names, data.input_shape) == (("cl", "he", "di", "sp"), (2, 35, 35))
    assert data.sizes() == {"training": 8, "test as val": 4, "test": 4}
    store = data.event_store(train=True)
    assert sorted(store.label.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.train_set[0][0].sum() == store.offset[1]
    again = TonicEvents(name="POKERDVS", root=str(tmp_path), time_steps=3, allow_partial=True, download=False)
    again.prepare_data()
    assert not again.prepared
    inside = {"store": str(tmp_path / "POKERDVS" / "stores")}
    given = {"name": "POKERDVS", "root": str(tmp_path), "time_steps": 3, "allow_partial": True, "download": False}
    assert [made(TonicEvents(**given, **inside)).prepared for _ in range(3)] == [True, False, False]
    shutil.rmtree(inside["store"])
    changed = tmp_path / "POKERDVS" / "pips_train" / "sp" / "0.npy"
    np.save(changed, np.load(changed)[::2])
    halved = made(TonicEvents(name="POKERDVS", root=str(tmp_path), time_steps=3, allow_partial=True, download=False))
    assert len(halved.event_store(train=True).address) < len(store.address)
    next((tmp_path / "POKERDVS").glob("pips_train/cl/*.npy")).unlink()
    fewer = made(TonicEvents(name="POKERDVS", root=str(tmp_path), time_steps=3, allow_partial=True, download=False))
    assert fewer.sizes()["training"] == 7
    for part in (tmp_path / "POKERDVS").glob("pips_*"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    of_store = made(TonicEvents(name="POKERDVS", root=str(tmp_path), time_steps=3, allow_partial=True, download=False))
    assert of_store.sizes()["training"] == 7


def test_a_data_set_without_a_test_part_is_split_by_class(tmp_path):
    """N-Caltech101: classes are folders, the sensor is given, and the last share of each class is the test set."""
    folder = tmp_path / "NCALTECH101" / "Caltech101"
    for name in ("crab", "bass"):
        for i in range(5):
            recording = writers.events_of(50 + i, i, 180, 240, 10_000)
            writers.write_file(folder / name / f"image_{i:04d}.bin", writers.nmnist_bytes(recording))
    with pytest.raises(UserError, match=r"data\.sensor must be given: tonic does not know the sensor of NCALTECH101"):
        TonicEvents(name="NCALTECH101", root=str(tmp_path))
    there = {"root": str(tmp_path), "allow_partial": True, "download": False}
    data = made(TonicEvents(name="NCALTECH101", sensor=(180, 240), test_fraction=0.4, **there))
    assert data.class_names == ("bass", "crab")
    assert data.sizes() == {"training": 6, "test as val": 4, "test": 4}
    assert data.labels(train=False).tolist() == [0, 0, 1, 1]
    names = [f"Caltech101/{name}/image_{i:04d}.bin" for name in ("bass", "crab") for i in (3, 4)]
    assert data.event_store(train=False).name.tolist() == names  # the last by name, on any file system
    shutil.rmtree(folder)  # the store keeps the names of the classes
    data = made(TonicEvents(name="NCALTECH101", sensor=(180, 240), test_fraction=0.4, **there))
    assert data.class_names == ("bass", "crab")
    assert data.sizes() == {"training": 6, "test as val": 4, "test": 4}


def test_tonic_fetches_what_is_not_there(tmp_path, monkeypatch):
    """Found by a review: it was asked for its files before it had fetched them."""
    folder, fetched = tmp_path / "NCALTECH101", []

    def download(self):
        fetched.append(self.url)
        for name in ("crab", "bass"):
            for i in range(5):
                recording = writers.events_of(50 + i, i, 180, 240, 10_000)
                writers.write_file(folder / "Caltech101" / name / f"image_{i:04d}.bin", writers.nmnist_bytes(recording))

    monkeypatch.setattr(tonic.datasets.NCALTECH101, "download", download)
    given = {"name": "NCALTECH101", "root": str(tmp_path), "sensor": (180, 240), "test_fraction": 0.4}
    data = made(TonicEvents(**given, allow_partial=True))
    assert fetched
    assert data.prepared
    fetched.clear()
    assert not made(TonicEvents(**given, allow_partial=True)).prepared
    assert not fetched


def test_what_tonic_does_not_fetch_is_named(tmp_path):
    data = TonicEvents(name="DVSLip", root=str(tmp_path))
    with pytest.raises(DatasetNotFoundError, match=r"DVSLip of tonic is not in .*, and tonic does not fetch it"):
        data.prepare_data()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, r"data\.name must be given: one of ASLDVS, .*NMNIST, POKERDVS"),
        ("NCARS", r"must be a class of tonic\.datasets: one of .*; got 'NCARS'"),
        ("SHD", r"is not supported: its sensor of 700 x 1 x 1 is not two-dimensional. Supported are "),
        ("DSEC", "is not supported: it has no training and test set of labelled recordings"),
        ("VPR", "is not supported: its recordings have no classes"),
    ],
)
def test_what_tonic_has_not_is_named(name, message):
    with pytest.raises(UserError, match=message):
        TonicEvents(name=name)


def test_what_is_not_there_is_not_fetched_where_that_is_off(tmp_path):
    data = TonicEvents(name="NMNIST", root=str(tmp_path), download=False)
    with pytest.raises(
        DatasetNotFoundError, match=r"NMNIST of tonic is not in .*train\.zip from https://data\.mendeley"
    ):
        data.prepare_data()
    shutil.rmtree(tmp_path / "NMNIST", ignore_errors=True)


@pytest.mark.parametrize("prepared", [False, True])
def test_files_that_are_not_read_are_named(root, prepared, caplog):
    if prepared:
        made(EventFolder(root=str(root), sensor=(128, 128)))
    assert "ignored" not in caplog.text
    for i in range(6):
        for suffix in ("mp4", "avi"):
            (root / "train" / "left" / f"{i}.{suffix}").write_bytes(b"")
    (root / "test" / "right" / "by subject").mkdir()
    (root / "test" / "0.npz").write_bytes(b"")
    data = made(EventFolder(root=str(root), sensor=(128, 128)))
    assert data.prepared is not prepared
    assert f"14 files in {root} are ignored" in caplog.text
    assert "(.avi: 6, .mp4: 6, .npz: 1, folders: 1): test/0.npz, test/right/by subject, train/left/0.avi" in caplog.text
    assert "and 9 more. Only files in a class folder that end in .aedat, .aedat4, .bag, .bin, .csv" in caplog.text


def test_a_file_that_is_no_recording_is_said_to_be_none(root, caplog):
    for part in ("train", "test"):
        (root / part / "left" / "9.csv").write_text("Recording of camera 3\n1 2 3\n")
    made(EventFolder(root=str(root), sensor=(128, 128)))
    said = f"2 files in {root} are left out, because they do not look like recordings: test/left/9.csv, train/left"
    assert said in caplog.text
    assert "ignored" not in caplog.text
    for path in (root / "train/left").iterdir():
        if path.suffix != ".csv":
            path.unlink()
    with pytest.raises(UserError, match=r"holds no file that ends in .* \(9\.csv does not look like recordings\)"):
        made(EventFolder(root=str(root), sensor=(128, 128)))


def test_where_there_is_no_data_set_nothing_is_left(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="does not exist"):
        EventFolder(root=str(tmp_path / "none" / "here"), sensor=(128, 128)).prepare_data()
    with pytest.raises(DatasetNotFoundError):
        NMNIST(root=str(tmp_path / "none"), download=False).prepare_data()
    assert not (tmp_path / "none").exists()


def test_what_is_read_goes_into_frames_as_it_is(root):
    path = root / "train" / "left" / "0.npz"
    recording = read_any(path)
    expected = integrate(recording, Sensor(128, 128), 4)
    assert np.array_equal(frames_of(recording, sensor=(128, 128), time_steps=4), expected)
    assert np.array_equal(integrate(recording, (128, 128), 4), expected)
    with pytest.raises(UserError, match=r"sensor must be \(height, width\)"):
        integrate(recording, (128, 128, 2), 4)
