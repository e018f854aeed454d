"""Long recordings: windows as samples, splits that share no event, and sensors that files name."""

import os
import re
import shutil
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plif_lightning.callbacks import records
from plif_lightning.data import EventFolder, TimeDrop, event_folder
from plif_lightning.data.loading import BatchRequest
from plif_lightning.data.testing import spread_test_samples
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.events import Recording, Sensor, integrate, raw, read_any
from plif_lightning.events.integration import resized
from plif_lightning.events.noise import cleaned
from plif_lightning.events.recording import Noise, RecordingError, pack
from plif_lightning.events.windows import Samples, Windows, parted, windowed
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.samples import Samples as RecordedSamples
from plif_lightning.runs.samples import read_samples, write_samples
from tests import writers

LONG = 1000


def write_long(root, parts=("train", "test"), classes=("left", "right"), files=2, events=LONG, last=1_000_000):
    """Recordings of `events` events over a second, as EVT 3."""
    for p, part in enumerate(parts):
        for label, name in enumerate(classes):
            for i in range(files):
                random = np.random.default_rng(100 * p + 10 * label + i)
                t = np.sort(random.integers(0, last, events))
                t[0], t[-1] = 0, last - 1
                recording = Recording(t, *(random.integers(0, high, events) for high in (64, 48, 2)))
                writers.write_file(root / part / name / f"{i}.raw", writers.evt3_bytes(recording, 48, 64))


@pytest.fixture
def root(tmp_path):
    write_long(tmp_path / "long")
    return tmp_path / "long"


def made(root, **arguments):
    data = EventFolder(root=str(root), time_steps=4, **arguments)
    data.prepare_data()
    data.setup()
    return data


def test_samples_to_measure_on_are_of_all_classes(root):
    """Found by a review: recordings are sorted by class, and the first ones were all of one."""
    data = EventFolder(root=str(root), time_steps=4, window_events=300)
    x, label = spread_test_samples(data, 4)
    assert label.tolist() == [0, 0, 1, 1]
    assert x.shape == (4, 4, 2, 48, 64)
    assert len(spread_test_samples(data, 100)[1]) == len(data.test_set)


@pytest.mark.parametrize("arguments", [{"window_ms": 100.0, "slicing": "by_time"}, {"window_events": 300}, {}])
def test_recorded_steps_are_those_that_the_network_saw(root, arguments, tmp_path, monkeypatch):
    """Found by a review: the report cut windows of equal duration from their first event to their last."""
    monkeypatch.setattr(records, "_MAX_EVENTS", 40)
    dataset = made(root, **arguments).val_set
    for i in range(len(dataset)):
        frames = dataset[BatchRequest(0, torch.tensor([i]))].x[0]
        assert np.diff(dataset.bounds_of(i)).tolist() == frames.flatten(1).sum(1).tolist()
    recorded = records._events(dataset, [0, 1])
    for i in (0, 1):
        size = recorded.offset[i + 1] - recorded.offset[i]
        nth = -(-len(dataset.events_of(i)[0]) // 40)
        steps = np.searchsorted(dataset.bounds_of(i)[1:], np.arange(size) * nth, side="right")  # of each kept event
        assert np.diff(recorded.bounds[i]).tolist() == np.bincount(steps, minlength=4).tolist()
    run = RunFolder(tmp_path)
    frames = np.zeros((4, 2, 2, 48, 64), np.uint8)
    spikes = np.zeros((4, 2, 1, 3, 3), bool)
    rates, votes = np.zeros((2, 1, 3, 3)), np.zeros((4, 2, 2))
    write_samples(run, RecordedSamples(np.array([0, 1]), ["a", "b"], frames, rates, spikes, votes, recorded))
    assert np.array_equal(read_samples(run).events.bounds, recorded.bounds)


def test_files_that_change_between_two_calls_are_read_anew_or_refused(root):
    data = EventFolder(root=str(root), time_steps=4)
    data.prepare_data()
    assert len(data.labels(train=True)) == 4
    new = writers.events_of(500, 9, 48, 64)
    for name in ("left", "middle"):
        for part in ("train", "test"):
            writers.write_file(root / part / name / "new.raw", writers.evt3_bytes(new, 48, 64))
    data.prepare_data()
    assert data.class_names == ("left", "middle", "right")
    assert data.labels(train=True).tolist() == [0, 0, 0, 1, 2, 2]
    data.setup()
    os.utime(root / "train/left/0.raw")  # touched: the rebuilt store is the same
    data.prepare_data()
    assert data.prepared
    shutil.rmtree(data.store_folder)
    data.prepare_data()
    (root / "train/middle/new.raw").unlink()
    other = writers.events_of(400, 8, 48, 64)
    writers.write_file(root / "train/middle/new.raw", writers.evt3_bytes(other, 48, 64))
    with pytest.raises(UserError, match=r"changed after the data sets were made of them\. Make another data module"):
        data.prepare_data()


def test_windows_of_events_are_what_cutting_by_hand_gives(root):
    data = made(root, window_events=300, stride_events=200)
    assert data.sensor == (48, 64)  # as the files name it
    assert data.sizes() == {"training": 16, "test as val": 16, "test": 16}
    batch = data.train_set.batch(BatchRequest(0, torch.arange(16)))
    i = 0
    for label, path in data.folders.files(train=True):
        recording = read_any(path)
        for begin in (0, 200, 400, 600):
            window = Recording(*(column[begin : begin + 300] for column in recording))
            assert np.array_equal(batch.x[i], integrate(window, Sensor(48, 64), 4))
            assert batch.label[i] == label
            i += 1
    assert len(data.event_store(train=True)) == 4  # the recordings are there once
    assert data.event_store(train=True).offset[-1] == 4 * LONG


def test_windows_of_milliseconds_are_what_cutting_by_hand_gives(root):
    data = made(root, window_ms=100, stride_ms=50.5, slicing="by_time")
    recording = read_any(next(data.folders.files(train=True))[1])
    starts = np.arange(0, 1_000_001 - 100_000, 50_500)
    samples = data.samples(train=True)
    own = samples.recording == 0
    assert own.sum() == len(starts)
    batch = data.train_set.batch(BatchRequest(0, torch.arange(len(starts))))
    for i, start in enumerate(starts):
        for j in range(4):  # 25 ms each, as a stream takes them, wherever the first and the last event are
            first = start + 25_000 * j
            inside = (recording.t >= first) & (recording.t < first + 25_000)
            slice_ = Recording(*(column[inside] for column in recording))
            assert np.array_equal(batch.x[i, j], integrate(slice_, Sensor(48, 64), 1)[0])


def test_windows_of_transformed_events_have_the_same_slices(root):
    """Found by a review: training frames with a transform were cut otherwise than those of validation."""
    given = {"window_ms": 100, "slicing": "by_time"}
    plain, same = made(root, **given), made(root, **given, augmentation=[lambda events: events])
    every = BatchRequest(0, torch.arange(len(plain.train_set)))
    assert torch.equal(plain.train_set.batch(every).x, same.train_set.batch(every).x)
    fewer = made(root, **given, augmentation=[lambda events: events[5:-5]]).train_set.batch(every).x.int()
    assert (fewer <= plain.train_set.batch(every).x).all()  # events that a transform drops shift no others


@pytest.mark.parametrize(
    "given",
    [
        {"window_ms": 100, "slicing": "by_time"},
        {"window_events": 200},
        {"split": "time", "validation": "holdout", "holdout_fraction": 0.5},
    ],
)
def test_transforms_see_a_window_as_a_recording_of_its_own(root, given):
    """Found by a review: reversed in time, all events of a late window fell into its first slice."""
    spans = []

    def see(events):
        spans.append((int(events["t"].min()), int(events["t"].max())))
        return events

    def reverse(events):  # as tonic's RandomTimeReversal, which takes the last event's time for the length
        events = events[::-1].copy()
        events["t"] = 99_999 - events["t"]
        return events

    data = made(root, **given, augmentation=[see])
    data.train_set.batch(BatchRequest(0, torch.arange(len(data.train_set))))
    if "window_ms" in given:
        assert all(0 <= first < 30_000 and 70_000 < last < 100_000 for first, last in spans)
        every = BatchRequest(0, torch.arange(len(data.train_set)))
        backwards = made(root, **given, augmentation=[reverse]).train_set.batch(every).x
        frames = backwards.int().sum((2, 3, 4))
        assert (frames - data.train_set.batch(every).x.flip(1).int().sum((2, 3, 4))).abs().max() <= 1  # at the edges
    else:
        assert all(first == 0 and last > 100_000 for first, last in spans)


def test_an_empty_window_is_no_sample(tmp_path):
    t = np.array([0, 10, 990_000, 999_999])
    for part in ("train", "test"):
        for name in ("left", "right"):
            events = Recording(t, t * 0, t * 0, t * 0)
            writers.write_file(tmp_path / part / name / "0.raw", writers.evt3_bytes(events, 48, 64))
    data = made(tmp_path, window_ms=100)
    assert data.sizes()["training"] == 4  # the first and the last of ten, twice


@pytest.mark.parametrize(
    "windows", [{}, {"window_events": 100, "stride_events": 30}, {"window_ms": 100, "stride_ms": 40}]
)
@pytest.mark.parametrize("split", ["recording", "time"])
def test_sets_share_no_event(tmp_path, split, windows):
    write_long(tmp_path, parts=("",), files=10)
    data = made(
        tmp_path, test_fraction=0.2, validation="holdout", holdout_fraction=0.25, split=split, size=24, **windows
    )
    assert not (tmp_path / "events").exists()  # it would be a class
    assert made(tmp_path, test_fraction=0.2).class_names == ("left", "right")
    sets = {"training": data.train_set, "val": data.val_set, "test": data.test_set}
    used = {}
    for name, dataset in sets.items():
        chosen = dataset.samples.chosen(dataset.indices.numpy())
        assert len(chosen.begin)
        used[name] = set()
        for begin, end in zip(chosen.begin, chosen.end, strict=True):
            used[name] |= set(range(begin, end))
    assert not used["training"] & used["val"]
    assert not used["training"] & used["test"]
    assert not used["val"] & used["test"]
    recordings = {name: set(dataset.samples.recording[dataset.indices.numpy()]) for name, dataset in sets.items()}
    if split == "recording":
        assert not recordings["training"] & (recordings["val"] | recordings["test"])
        assert sorted(recordings["test"]) == [8, 9, 18, 19]
        assert sorted(recordings["val"]) == [6, 7, 16, 17]
    else:
        assert recordings["training"] == recordings["test"] == set(range(20))
        assert min(used["test"]) > max(e for e in used["training"] if e < LONG)
    assert len(list((tmp_path / ".plif_lightning").glob("*.json"))) == 2  # one store, and when it was verified


def test_the_same_split_after_the_files_are_gone(tmp_path):
    write_long(tmp_path, parts=("",), files=5)
    arguments = {"test_fraction": 0.2, "window_events": 100}
    before = made(tmp_path, **arguments)
    for name in ("left", "right"):
        for path in (tmp_path / name).iterdir():
            path.unlink()
        (tmp_path / name).rmdir()
    after = made(tmp_path, **arguments)
    assert (after.sensor, after.class_names, after.sizes()) == (before.sensor, before.class_names, before.sizes())
    assert after.identity() == before.identity()


def test_other_windows_are_another_training_set(root):
    found = [made(root, **windows).identity() for windows in ({}, {"window_events": 100}, {"window_events": 200})]
    assert len(set(found)) == 3


def test_a_class_of_one_recording_needs_a_split_by_time(tmp_path):
    write_long(tmp_path, parts=("",), files=1)
    with pytest.raises(
        UserError, match=r"left has 1 recording: 0\.2 of that is no whole one for the test set\. .*split=time"
    ):
        made(tmp_path, test_fraction=0.2, window_events=100)
    data = made(
        tmp_path, test_fraction=0.2, window_events=100, split="time", validation="holdout", holdout_fraction=0.25
    )
    assert data.sizes() == {"training": 12, "val": 4, "test": 4}


def test_a_part_that_is_too_short_for_a_window_is_said(tmp_path, caplog):
    """Found by a review: a recording's training part hid that its validation part gave no sample."""
    for name in ("left", "right"):
        for i, events in enumerate((3000, 1000, 1000)):
            recording = writers.events_of(events, i, 48, 64)
            writers.write_file(tmp_path / name / f"{i}.raw", writers.evt3_bytes(recording, 48, 64))
    share = {"split": "time", "test_fraction": 0.2, "validation": "holdout", "holdout_fraction": 0.15}
    data = made(tmp_path, window_events=150, **share)
    assert "4 of 12 training parts of recordings are shorter than one of the windows of 150 events" in caplog.text
    assert "left/1.raw (validation), left/2.raw (validation), right/1.raw (validation), right/2.raw" in caplog.text
    assert data.sizes()["val"] == 4


def test_what_is_too_short_for_a_window_is_said(root, caplog):
    short = Recording(*(column[:50] for column in writers.events_of(50, 0, 48, 64)))
    writers.write_file(root / "train/left/short.raw", writers.evt3_bytes(short, 48, 64))
    data = made(root, window_events=300)
    assert "1 of 5 training recordings are shorter than one of the windows of 300 events" in caplog.text
    assert "train/left/short.raw" in caplog.text
    assert data.sizes()["training"] == 12
    with pytest.raises(
        UserError, match="the training recordings of left are shorter than one of the windows of 2000 events"
    ):
        made(root, window_events=2000)


def test_a_recording_in_both_sets_is_said(root, caplog):
    content = (root / "train/left/1.raw").read_bytes()
    writers.write_file(root / "test/left/again.raw", content)
    for settings in ({}, {}, {"split": "time", "validation": "holdout"}):  # in every run
        caplog.clear()
        made(root, **settings)
        assert "1 test recordings are training recordings, too: test/left/again.raw is train/left/1" in caplog.text


def test_a_recording_that_is_there_twice_is_said_where_a_share_is_for_testing(tmp_path, caplog):
    write_long(tmp_path, parts=("",), files=4)
    (tmp_path / "left/9.raw").write_bytes((tmp_path / "left/0.raw").read_bytes())
    made(tmp_path, test_fraction=0.25)
    assert "1 test recordings are training recordings, too: left/9.raw is left/0.raw" in caplog.text


def test_what_is_in_each_set_is_counted(tmp_path):
    write_long(tmp_path, parts=("",), files=4)
    data = made(tmp_path, test_fraction=0.25)
    assert [(part.counts, part.events) for part in data.inventory()] == [([3, 3], 6 * LONG), ([1, 1], 2 * LONG)]
    data = made(tmp_path, test_fraction=0.25, split="time", window_events=100)
    assert [(part.counts, part.events) for part in data.inventory()] == [([28, 28], 5600), ([8, 8], 1600)]


def test_what_noise_filters_drop_is_said(root, caplog):
    made(root, background_us=5000)
    assert re.search(r"long, train: background5000us drops \d\d\.\d % of the events", caplog.text)


@pytest.mark.parametrize("damage", ["crash", "hang"])
def test_a_damaged_hdf5_file_does_not_end_this_process(root, damage, monkeypatch):
    path = writers.write_metavision(root / "train/left/a.h5", writers.events_of(1500, 1), packing=1)
    assert path.is_file()
    monkeypatch.setattr(event_folder.readers, "sensor_of", {"crash": os_exit, "hang": wait_long}[damage])
    monkeypatch.setattr(raw, "_PATIENCE", 3)
    with pytest.raises(RecordingError, match=r"a\.h5 cannot be read"):
        EventFolder(root=str(root))


def os_exit(path):
    if path.suffix == ".h5":
        os._exit(3)


def wait_long(path):
    if path.suffix == ".h5":
        time.sleep(60)


def test_a_missing_folder_is_named_before_the_sensor(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"nope/train does not exist"):
        EventFolder(root=str(tmp_path / "nope"))
    (tmp_path / "flat").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"has no class folders"):
        EventFolder(root=str(tmp_path / "flat"), test_fraction=0.2)


def test_time_is_dropped_within_a_window(root):
    data = made(root, window_events=500, augmentation=[TimeDrop(1.0)])
    x = data.train_set.batch(BatchRequest(5, torch.arange(8))).x
    counts = x.flatten(1).sum(1)
    assert ((counts > 0) & (counts < 500)).sum() >= 4
    last = data.train_set.batch(BatchRequest(5, torch.tensor([1]))).x
    assert torch.equal(last[0], x[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_events": 30, "window_ms": 10}, "give data.window_events or data.window_ms, not both"),
        ({"window_events": 0}, r"data.window_events must be from 1 to 10\^9, got 0"),
        ({"window_ms": 0.0}, r"data.window_ms must be from 0.001 to 10\^9, got 0"),
        ({"window_ms": 10, "stride_ms": -1}, r"data.stride_ms must be from 0.001 to 10\^9, got -1"),
        ({"window_ms": float("inf")}, r"data.window_ms must be from 0.001 to 10\^9, got inf"),
        ({"window_events": 2.5}, "data.window_events must be a whole number, got 2.5"),
        ({"window_events": 30, "stride_events": 10**30}, r"data.stride_events must be from 1 to 10\^9"),
        ({"background_us": 10**30}, r"data.background_us must be from 1 to 10\^9"),
        ({"stride_events": 10}, "data.stride_events needs data.window_events"),
        ({"window_ms": 10, "stride_events": 10}, "data.stride_events needs data.window_events"),
        ({"test_fraction": 1.5}, r"data.test_fraction must lie in \(0, 1\), got 1.5"),
        ({"test_fraction": 0.5}, "has the folders train and test: leave data.test_fraction out"),
        ({"split": "time"}, "data.split=time is for data.test_fraction or data.validation=holdout"),
        ({"window_events": 5}, "data.window_events=5 cannot be cut into data.time_steps=20 frames"),
        ({"split": "half"}, "data.split must be one of recording, time, got 'half'"),
        ({"window_ms": 10, "time_order": "as_recorded"}, "need times in order"),
    ],
)
def test_bad_arguments_are_named(root, arguments, message):
    with pytest.raises(UserError, match=message):
        EventFolder(root=str(root), **arguments)


def test_class_folders_without_parts_are_explained(tmp_path):
    write_long(tmp_path, parts=("",))
    with pytest.raises(DatasetNotFoundError, match=r"or CLASS/, with --data\.test_fraction, such as 0\.2"):
        EventFolder(root=str(tmp_path))


def test_a_class_that_a_part_lacks_is_said(tmp_path, caplog):
    """Found by a review: a validation set without a class, and a training set without one, were silent."""
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, events in (("short", 1500), ("long", 8000)):
            t = np.sort(random.integers(0, 1_000_000, events))
            recording = Recording(t, *(random.integers(0, high, events) for high in (64, 48, 2)))
            writers.write_file(tmp_path / part / name / "0.raw", writers.evt3_bytes(recording, 48, 64))
    given = {"window_events": 700, "split": "time", "validation": "holdout"}
    with pytest.raises(UserError, match=r"holdout_fraction=0\.6 leaves no training sample of short"):
        made(tmp_path, **given, holdout_fraction=0.6)
    with pytest.raises(UserError, match=r"holdout_fraction=0\.95 leaves no training sample of long, short"):
        made(tmp_path, **given, holdout_fraction=0.95)
    data = made(tmp_path, **given, holdout_fraction=0.2)
    assert data.val_set.labels().unique().tolist() == [0]
    assert "The validation set has no sample of short: its accuracy says nothing" in caplog.text


def test_a_recording_without_events_is_said(root, caplog):
    empty = Recording(*[np.zeros(0, np.int64)] * 4)
    writers.write_file(root / "train/left/2.raw", writers.evt3_bytes(empty, 48, 64))
    data = made(root)
    assert data.sizes()["training"] == 5
    assert "1 of 5 training recordings of long hold no event, and are blank samples: train/left/2.raw." in caplog.text


# --- sensors


def test_files_of_two_sensors(root):
    other = writers.events_of(500, 9, 96, 128)
    path = writers.write_file(root / "train/right/other.raw", writers.evt2_bytes(other, 96, 128))
    with pytest.raises(
        UserError, match=r"is of a sensor of 48x64 pixels, and .*other\.raw of 96x128: pass --data\.size"
    ):
        EventFolder(root=str(root))
    data = made(root, size=12)
    assert data.input_shape == (2, 12, 12)
    place = [path for _, path in data.folders.files(train=True)].index(path)
    x, _ = data.train_set[place]
    small = Recording(other.t, other.x * 12 // 128, other.y * 12 // 96, other.p)
    assert np.array_equal(x, integrate(small, Sensor(12, 12), 4))
    with pytest.raises(UserError, match=r"data\.size must lie in 1\.\.48, the smallest side of all sensors here"):
        EventFolder(root=str(root), size=49)
    cleaned_first = made(root, size=12, background_us=10**6)
    kept = cleaned(pack(other, Sensor(96, 128), "a"), Sensor(96, 128), Noise(10**6))
    assert 0 < len(kept.address) < 500
    address = resized(Sensor(96, 128), Sensor(12, 12))[kept.address]
    assert np.array_equal(cleaned_first.event_store(True).events(place)[0], address)
    for part in ("train", "test"):
        shutil.move(root / part, root / f"moved-{part}")
    with pytest.raises(UserError, match=r"are gone, and their store has data\.size 12, not 6: pass that"):
        EventFolder(root=str(root), size=6)
    for noise in ({}, {"background_us": 10**6}):
        assert made(root, size=12, **noise).sizes() == data.sizes()  # from the stores alone
        assert made(root, size=12, **noise).pooled
    for part in ("train", "test"):
        shutil.move(root / f"moved-{part}", root / part)
    np.savez(root / "train/right/none.npz", **other._asdict())
    with pytest.raises(RecordingError, match=r"none\.npz does not name its sensor, and others here are of several"):
        made(root, size=12)


def test_a_sensor_that_the_files_do_not_have_is_refused(root):
    with pytest.raises(RecordingError, match=r"0\.raw is of a sensor of 48x64 pixels .*, and data\.sensor is 128x128"):
        made(root, sensor=(128, 128))


# --- the arithmetic of windows


@given(
    st.lists(st.lists(st.integers(0, 500), max_size=40).map(sorted), min_size=1, max_size=4),
    st.integers(1, 60),
    st.integers(1, 60),
    st.booleans(),
    st.floats(0.05, 0.95),
)
def test_windows_by_their_definition(recordings, length, stride, by_time, share):
    time = np.array([t for one in recordings for t in one], np.int64)
    offset = np.cumsum([0, *map(len, recordings)])
    n = len(recordings)
    whole = Samples(offset[:-1], offset[1:], *np.array([range(n), [0] * n, [0] * n, [-1] * n], np.int64))
    parts = parted(whole, time, share, by_time)
    assert np.array_equal(parts.begin[1::2], parts.end[::2])
    assert parts.part.tolist() == [0, 1] * n
    found = windowed(parts, time, Windows(length, stride, by_time))
    expected = []
    for begin, end, recording, part, *_ in zip(*parts, strict=True):
        own = time[begin:end]
        start = 0
        while True:
            if by_time:
                if not len(own) or own[0] + start + length > own[-1] + 1:
                    break
                inside = np.flatnonzero((own >= own[0] + start) & (own < own[0] + start + length))
                if len(inside):
                    window = (own[0] + start, length)
                    expected.append((begin + inside[0], begin + inside[-1] + 1, recording, part, *window))
            else:
                if start + length > len(own):
                    break
                expected.append((begin + start, begin + start + length, recording, part, 0, -1))
            start += stride
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected
