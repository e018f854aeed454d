"""The first value beyond a range is refused or left out, the last within it is taken; empty input has no events."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from plif_lightning.events import Recording, RecordingError, Sensor, read_any
from plif_lightning.events.integration import Pass, bounds_by_count, bounds_by_time, count_events, integrate
from plif_lightning.events.recording import pack_events, rescale
from plif_lightning.events.windows import Samples, Windows, cut_windows, lasting, recordings_of
from tests.writers import (
    aedat2_bytes,
    aedat3_bytes,
    aedat4_bytes,
    dat_bytes,
    events_of,
    evt3_bytes,
    nmnist_bytes,
    text_bytes,
    write_file,
)

SENSOR = Sensor(3, 4)
NONE = Recording(*(np.zeros(0, np.int64) for _ in range(4)))


def recording(**changed):
    columns = {"t": [0, 5, 9], "x": [0, 3, 1], "y": [0, 2, 1], "p": [0, 1, 1]} | changed
    return Recording(**{name: np.array(values) for name, values in columns.items()})


# Column: its largest value, and what is beyond.
@pytest.mark.parametrize(("column", "last"), [("x", 3), ("y", 2), ("p", 1)])
def test_the_last_pixel_and_polarity_are_taken_and_the_next_refused(column, last):
    for index, value in itertools.product(range(3), (0, last)):
        values = [0, 0, 0]
        values[index] = value
        assert len(pack_events(recording(**{column: values}), SENSOR, "file").time) == 3
    for index, value in itertools.product(range(3), (-1, last + 1)):
        values = [0, 0, 0]
        values[index] = value
        name = "polarity" if column == "p" else column
        with pytest.raises(RecordingError, match=rf"file: event {index} has {name} = {value}, but .* in 0\.\.{last}\."):
            pack_events(recording(**{column: values}), SENSOR, "file")
        if column != "p":
            with pytest.raises(RecordingError, match=f"file: event {index} has {column} = {value}"):
                rescale(recording(**{column: values}), SENSOR, Sensor(6, 8), "file")


def test_times_may_be_equal_and_not_run_backwards_and_span_32_bits():
    assert pack_events(recording(t=[5, 5, 5]), SENSOR, "file").start == 5
    with pytest.raises(RecordingError, match="time runs backwards at event 2, from 5 to 4 us"):
        pack_events(recording(t=[5, 5, 4]), SENSOR, "file")
    packed = pack_events(recording(t=[7, 8, 7 + 2**32 - 1]), SENSOR, "file")
    assert packed.time.tolist() == [0, 1, 2**32 - 1]
    with pytest.raises(RecordingError, match="span 72 minutes; at most 71"):
        pack_events(recording(t=[7, 8, 7 + 2**32]), SENSOR, "file")


def identity(rows):
    """A pass that changes nothing but is counted as one that does."""
    n = len(rows)
    return Pass(*(np.array(values) for values in (
        rows, np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64), np.full(n, 2**32, np.int64),
        np.zeros(n, np.uint64),
    )))  # fmt: skip


@pytest.mark.parametrize("changed", [False, True])
def test_the_last_address_is_counted_and_the_next_refused(changed):
    bounds, size = np.array([[0, 2, 3]]), 24
    more = {}
    if changed:
        more = {"rows": 1, "maps": np.arange(size, dtype=np.int32)[None], "passes": identity([0])}
    for dtype in (np.uint16, np.uint32):
        counts = count_events(np.array([0, size - 1, size - 1], dtype), bounds, size, **more)
        frames = counts.reshape(2, -1)
        assert (frames[0, 0], frames[0, -1], frames[1, -1], frames.sum()) == (1, 1, 1, 3)
        with pytest.raises(RecordingError, match="lies outside the sensor"):
            count_events(np.array([0, size, 0], dtype), bounds, size, **more)


@pytest.mark.parametrize("slicing", ["by_count", "by_time"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_no_events_and_fewer_events_than_steps_are_frames(slicing, steps):
    for events in (NONE, recording()):
        frames = integrate(pack_events(events, SENSOR, "file"), SENSOR, steps, slicing)
        assert np.asarray(frames).shape == (steps, 2, 3, 4)
        assert np.asarray(frames).sum() == len(events.t)


def test_bounds_of_slices():
    """Eq. S1: the last slice takes the remainder; slices of time end before the next begins."""
    assert bounds_by_count(np.array([0]), np.array([7]), 3).tolist() == [[0, 2, 4, 7]]
    assert bounds_by_count(np.array([4]), np.array([4]), 2).tolist() == [[4, 4, 4]]
    time = np.array([0, 3, 4, 8], np.uint32)
    assert bounds_by_time(time, np.array([0]), np.array([4]), 2).tolist()[0][0] == 0
    assert bounds_by_time(time, np.array([0]), np.array([4]), 2).tolist()[0][-1] == 4


# --- windows

STRETCH = Samples(*(np.array([value]) for value in (0, 5, 0, 0, 0, -1)))


@pytest.mark.parametrize(
    ("length", "stride", "by_time", "begin", "end", "start", "duration"),
    [
        (2, 2, False, [0, 2], [2, 4], [0, 0], -1),
        (5, 1, False, [0], [5], [0], -1),
        (6, 1, False, [], [], [], -1),
        (20, 10, True, [0, 1, 2], [2, 3, 4], [0, 10, 20], 20),
        (41, 10, True, [0], [5], [0], 41),
        (42, 10, True, [], [], [], 42),
    ],
)
def test_windows_fill_a_stretch_to_its_last_event(length, stride, by_time, begin, end, start, duration):
    time = np.array([0, 10, 20, 30, 40])
    windows = cut_windows(STRETCH, time, Windows(length, stride, by_time))
    assert (windows.begin.tolist(), windows.end.tolist(), windows.start.tolist()) == (begin, end, start)
    assert windows.duration.tolist() == [duration] * len(begin)  # -1: as long as its events
    assert windows.recording.tolist() == windows.part.tolist() == [0] * len(begin)


def test_samples_of_a_duration_end_before_it():
    time = np.array([3, 10, 20, 23, 40])
    for us, from_zero, end, start in ((20, False, 3, 3), (21, False, 4, 3), (20, True, 2, 0), (100, True, 5, 0)):
        cut, losing = lasting(STRETCH, time, us, from_zero)
        assert (cut.end.tolist(), cut.start.tolist(), cut.duration.tolist()) == ([end], [start], [us])
        assert losing == (end < 5)
    whole = recordings_of(np.array([0, 3, 5]))
    assert [column.tolist() for column in whole] == [[0, 3], [3, 5], [0, 1], [0, 0], [0, 0], [-1, -1]]
    nothing = recordings_of(np.array([0, 0]))
    assert lasting(nothing, time, 10)[1] == 0


# --- empty files of every format

FORMATS = {
    ".bin": nmnist_bytes,
    ".aedat": aedat2_bytes,
    "3.aedat": aedat3_bytes,
    ".aedat4": aedat4_bytes,
    ".dat": dat_bytes,
    ".raw": lambda events: evt3_bytes(events, 128, 128),
    ".csv": lambda events: text_bytes(events, "txyp", ","),
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_without_events_is_an_empty_recording_or_refused_with_its_name(suffix, tmp_path):
    path = write_file(tmp_path / f"none{suffix}", FORMATS[suffix](NONE))
    try:
        assert [len(column) for column in read_any(path)] == [0] * 4
    except RecordingError as error:
        assert path.name in str(error)  # noqa: PT017 (either is right)
    one = write_file(tmp_path / f"one{suffix}", FORMATS[suffix](events_of(1, 0)))
    assert len(read_any(one).t) == 1
    with pytest.raises(RecordingError, match="missing"):
        read_any(Path(tmp_path / f"missing{suffix}"))
