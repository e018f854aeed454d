"""Long recordings: windows as samples, and splits that share no event."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from plif_lightning.data import EventFolder, TimeDrop
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import UserError
from plif_lightning.events import Recording, Sensor, integrate, read_any
from plif_lightning.events.windows import Samples, Windows, cut_windows, left_out, recordings_of, split_at
from plif_lightning.runtime.randomness import hashed_uniform
from tests import writers

LONG = 1000


def write_long(root, parts=("train", "test"), files=2):
    """Recordings of 1,000 events over a second, as EVT 3."""
    for seed, (part, name, i) in enumerate(itertools.product(parts, ("left", "right"), range(files))):
        t, *others = writers.events_of(LONG, seed, 48, 64)
        t[0], t[-1] = 0, 999_999
        writers.write_file(root / part / name / f"{i}.raw", writers.evt3_bytes(Recording(t, *others), 48, 64))


@pytest.fixture
def root(tmp_path):
    write_long(tmp_path / "long")
    return tmp_path / "long"


def made(root, **arguments):
    data = EventFolder(root=str(root), **{"time_steps": 4, "validation": "test", **arguments})
    data.prepare_data()
    data.setup()
    return data


def everything(dataset, key=0):
    return dataset.batch(BatchRequest(key, torch.arange(len(dataset))))


@pytest.mark.parametrize(
    "given", [{"window_events": 300, "stride_events": 200}, {"window_ms": 100, "stride_ms": 50.5, "slicing": "by_time"}]
)
def test_windows_equal_manual_cuts(root, given):
    data = made(root, **given)
    assert data.sensor == (48, 64)  # as the files name it
    assert data.recordings(train=True)["offset"].tolist() == [LONG * i for i in range(5)]  # each event is there once
    expected, labels = [], []
    for path, label in data.files(train=True):
        recording = read_any(path)
        if "window_events" in given:
            cuts = [begin + 75 * np.arange(5) for begin in (0, 200, 400, 600)]
        else:  # 25 ms each, as a stream takes them, wherever the first and the last event are
            starts = range(0, 1_000_001 - 100_000, 50_500)
            cuts = [np.searchsorted(recording.t, start + 25_000 * np.arange(5)) for start in starts]
        for cut in cuts:
            slices = [Recording(*(c[first:end] for c in recording)) for first, end in itertools.pairwise(cut)]
            expected.append(np.stack([integrate(one, Sensor(48, 64), 1)[0] for one in slices]))
            labels.append(label)
    batch = everything(data.train_set)
    assert np.array_equal(batch.x, expected)
    assert batch.label.tolist() == labels
    whole = made(root)  # another training set of the same cache
    assert whole.recordings(train=True).content == data.recordings(train=True).content
    assert whole.identity() != data.identity()


def test_a_transform_that_changes_nothing_leaves_windows_by_time_as_they_are(root):
    given = {"window_ms": 100, "stride_ms": 50.5, "slicing": "by_time"}
    plain, transformed = made(root, **given), made(root, **given, augmentation=[lambda events: events])
    assert torch.equal(everything(transformed.train_set).x, everything(plain.train_set).x)


@pytest.mark.parametrize("windows", [Windows(7, 3, False), Windows(4, 9, False), Windows(50, 80, True)])
def test_left_out_events_are_counted_once(windows):
    draw = np.random.default_rng(0)
    offset = np.cumsum([0, 60, 0, 5, 90])
    time = np.concatenate([np.sort(draw.integers(0, 400, n)) for n in np.diff(offset)])
    samples = split_at(recordings_of(offset), time, 0.3, windows.by_time)
    found = cut_windows(samples, time, windows)
    held = {event for a, b in zip(found.begin, found.end, strict=True) for event in range(a, b)}
    stretches = [range(a, b) for a, b in itertools.pairwise(offset)]
    expected = [sum(event not in held for event in each) / max(len(each), 1) for each in stretches]
    assert left_out(samples, found) == pytest.approx(expected)


def test_recordings_that_lose_events_to_windows_are_counted(root, caplog):
    made(root, window_events=300)  # 100 of 1,000 are left over: no more than a tenth
    assert not caplog.messages
    made(root, window_events=400)
    made(root, window_events=400, stride_events=200)  # 1,000 = 400 + 3 * 200
    lost = "4 {} recordings lose more than a tenth of their events, which lie in none of the windows of 400 events."
    assert caplog.messages == [f"long: {lost.format(part)}" for part in ("training", "test")]


def test_windows_longer_than_all_recordings_of_a_class_are_refused_with_the_longest_of_each(tmp_path):
    lengths = {"left/0": 1500, "left/1": 300, "middle/0": 40, "middle/1": 90, "wide/0": 60, "wide/1": 0}
    for part, (name, events) in itertools.product(("train", "test"), lengths.items()):
        place = np.arange(events) % 40
        content = writers.evt3_bytes(Recording(1000 * np.arange(events), place, place, place % 2), 48, 64)
        writers.write_file(tmp_path / part / f"{name}.raw", content)
    given = [{"window_events": 400}, {"window_ms": 400, "stride_ms": 10}]
    windows = ["windows of 400 events", "windows of 400000 us every 10000 us"]
    longest = [("90 events", "60 events"), ("89000 us", "59000 us")]
    for arguments, named, (middle, wide) in zip(given, windows, longest, strict=True):
        classes = rf"middle \(the longest has {middle}\), wide \(the longest has {wide}\)"
        with pytest.raises(UserError, match=f"the {named} are longer than all training recordings of {classes}: pass"):
            made(tmp_path, **arguments)
    assert made(tmp_path, window_events=50).sizes()["training"] == 30 + 6 + 1 + 1


def test_short_test_recordings_are_refused_before_training(tmp_path):
    for part, events in (("train", 500), ("test", 50)):
        place = np.arange(events) % 40
        for name in ("left/0", "left/1", "right/0", "right/1"):
            content = writers.evt3_bytes(Recording(1000 * np.arange(events), place, place, place % 2), 48, 64)
            writers.write_file(tmp_path / part / f"{name}.raw", content)
    data = EventFolder(root=str(tmp_path), time_steps=4, window_events=100, validation="test")
    with pytest.raises(UserError, match=r"longer than all test recordings of left .* right"):
        data.prepare_data()


BY_EVENTS = {"window_events": 100, "stride_events": 30}
BY_TIME = {"window_ms": 100, "stride_ms": 40}


@pytest.mark.parametrize(
    ("split", "windows"), [("recording", BY_EVENTS), ("time", {}), ("time", BY_EVENTS), ("time", BY_TIME)]
)
def test_sets_share_no_event(tmp_path, split, windows):
    write_long(tmp_path, parts=("",), files=10)
    shares = {"test_fraction": 0.2, "validation": "holdout", "holdout_fraction": 0.25}
    data = made(tmp_path, split=split, **shares, **windows)
    sets = {"training": data.train_set, "val": data.val_set, "test": data.test_set}
    used, recordings = {}, {}
    for name, dataset in sets.items():
        chosen = dataset.samples.chosen(dataset.indices.numpy())
        used[name] = {event for begin, end in zip(chosen.begin, chosen.end, strict=True) for event in range(begin, end)}
        recordings[name] = set(chosen.recording.tolist())
    assert all(used.values())
    assert not used["training"] & used["val"]
    assert not used["training"] & used["test"]
    assert not used["val"] & used["test"]
    if split == "recording":
        assert recordings["test"] == {8, 9, 18, 19}
        assert recordings["val"] == {6, 7, 16, 17}
        assert recordings["training"] == set(range(20)) - recordings["test"] - recordings["val"]
    else:
        assert recordings["training"] == recordings["test"] == set(range(20))
        assert min(used["test"]) > max(e for e in used["training"] if e < LONG)
    # one cache for both sets, where it is no class
    assert len(list((tmp_path / ".plif_lightning").glob("*/*/manifest.json"))) == 1
    assert made(tmp_path, test_fraction=0.2).class_names == ("left", "right")


def test_bad_arguments_are_named(root):
    for arguments, message in (
        ({"window_events": 30, "window_ms": 10}, r"give data\.window_events, perhaps with data\.stride_events, or"),
        ({"window_ms": 10, "stride_events": 10}, r"give data\.window_events, perhaps with"),
        ({"window_events": 0}, r"must be at least 1 event or 0\.001 ms, got windows of 0 events"),
        ({"window_ms": 10, "stride_ms": -1}, r"must be at least 1 event or 0\.001 ms, got .* every -1000 us"),
        ({"window_events": 3}, r"data\.window_events=3 cannot be cut into data\.time_steps=4 frames"),
        ({"test_fraction": 1.5}, r"data\.test_fraction must lie in \(0, 1\), got 1\.5"),
        ({"split": "half"}, r"data\.split must be one of recording, time, got 'half'"),
    ):
        with pytest.raises(UserError, match=message):
            EventFolder(root=str(root), **{"time_steps": 4, **arguments})


def test_windows_of_transformed_events_have_the_same_slices(root):
    """Found by a review: training frames with a transform were cut otherwise than those of validation."""
    given = {"window_ms": 100, "slicing": "by_time"}
    plain, same = made(root, **given), made(root, **given, augmentation=[lambda events: events])
    x = everything(plain.train_set).x
    assert torch.equal(everything(same.train_set).x, x)
    fewer = everything(made(root, **given, augmentation=[lambda events: events[5:-5]]).train_set).x
    assert (fewer.int() <= x.int()).all()  # events that a transform drops shift no others


@pytest.mark.parametrize("given", [{"window_ms": 100, "slicing": "by_time"}, {"window_events": 100}])
def test_transform_sees_a_window_as_a_recording(root, given):
    """Found by a review: reversed in time, all events of a late window fell into its first slice."""
    spans = []

    def see(events):
        spans.append((int(events["t"].min()), int(events["t"].max())))
        return events

    everything(made(root, **given, augmentation=[see]).train_set)
    first, last = np.array(spans).T
    if "window_ms" in given:
        assert 0 < first.max() < 30_000  # of a window, not of its first event
        assert 70_000 < last.min() < last.max() < 100_000
    else:
        assert not first.any()
        assert 50_000 < last.min() < last.max() < 200_000


def test_time_is_dropped_within_a_window(root):
    data = made(root, window_events=500, augmentation=[TimeDrop(1.0)])
    counts = everything(data.train_set).x.flatten(1).sum(1)
    samples, time = data.samples(train=True), data.recordings(train=True)["time"].astype(float)
    length, place = hashed_uniform(0, torch.arange(8), 2).numpy().astype(float).T
    for i, (begin, end) in enumerate(zip(samples.begin, samples.end, strict=True)):
        share = (time[begin:end] - time[begin]) / (time[end - 1] - time[begin])
        first = place[i] * (1 - length[i])
        assert counts[i] == ((share < first) | (share >= first + length[i])).sum()


def test_an_empty_window_is_no_sample(tmp_path):
    t = np.array([0, 10, 990_000, 999_999])
    for part, name in itertools.product(("train", "test"), ("left", "right")):
        events = Recording(t, t * 0, t * 0, t * 0)
        writers.write_file(tmp_path / part / name / "0.raw", writers.evt3_bytes(events, 48, 64))
    assert made(tmp_path, window_ms=100).sizes()["training"] == 4  # the first and the last of ten, twice


def test_samples_to_measure_on_are_of_all_classes(root):
    """Found by a review: recordings are sorted by class, and the first ones were all of one."""
    data = EventFolder(root=str(root), time_steps=4, window_events=300, validation="test")
    x, label = data.test_samples(4)
    assert label.tolist() == [0, 0, 1, 1]
    assert x.shape == (4, 4, 2, 48, 64)


def test_a_split_is_the_same_after_the_files_are_gone_and_counts_each_event_once(tmp_path):
    write_long(tmp_path, parts=("",), files=5)
    given = {"test_fraction": 0.2, "split": "time", "window_events": 100, "stride_events": 50}
    before = made(tmp_path, **given)
    assert [(part.counts, part.events) for part in before.inventory()] == [([75, 75], 8000), ([15, 15], 2000)]
    for name in ("left", "right"):
        shutil.rmtree(tmp_path / name)
    after = made(tmp_path, **given)
    assert (after.sensor, after.class_names, after.sizes()) == (before.sensor, before.class_names, before.sizes())
    assert after.identity() == before.identity()


def test_the_last_window_by_time_may_end_with_the_last_event():
    one = Samples(*(np.array([value]) for value in (0, 4, 0, 0, 0, -1)))
    for length, expected in ((10, [0, 10, 20, 30]), (40, [0]), (41, [])):
        found = cut_windows(one, np.array([0, 10, 20, 39]), Windows(length, length, by_time=True))
        assert found.start.tolist() == expected


def test_frames_of_a_window_follow_from_the_stored_preprocessing_alone(root):
    """With NumPy, as another program would write them."""
    data = made(root, window_ms=100, slicing="by_time", size=24)
    how = json.loads(json.dumps(data.preprocessing))
    assert (how["window_us"], how["step_us"], how["window_events"]) == (100_000, 25_000, None)
    recording = read_any(root / "train/left/0.raw")
    t = recording.t - recording.t[0]
    for window in (0, 3, 9):
        x = data.train_set[BatchRequest(0, torch.tensor([window]))].x[0]
        expected = np.zeros(x.shape, int)
        begin = window * how["window_us"]
        inside = (t >= begin) & (t < begin + how["window_us"])
        row, column = (
            (side[inside].astype(int) * how["size"][i] // how["sensor"][i]) for i, side in enumerate(recording[2:0:-1])
        )
        step = ((t[inside] - begin) // how["step_us"]).astype(int)
        np.add.at(expected, (step, recording.p[inside].astype(int), row, column), 1)
        np.testing.assert_array_equal(x, expected)


def test_the_window_of_events_is_stored_too(root):
    how = made(root, window_events=200).preprocessing
    assert (how["window_us"], how["step_us"], how["window_events"]) == (None, None, 200)
