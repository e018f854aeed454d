"""Frames against hand-computed counts, SpikingJelly and properties that hold for every recording."""

import itertools
import multiprocessing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plif_lightning.events import Recording, RecordingError, Sensor, read_any
from plif_lightning.events.integration import (
    BackgroundFilter,
    Pass,
    bounds_by_count,
    bounds_by_time,
    count_events,
    integrate,
    without_background,
)
from plif_lightning.events.recording import pack_events
from tests import writers
from tests.conftest import PATIENCE

# (t, x, y, p) on a sensor of 2x2
FOUR = Recording(np.array([0, 1, 2, 9]), np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0]))
TINY = Sensor(2, 2)


def test_four_events_by_count():
    assert integrate(FOUR, TINY, 2).tolist() == [
        [[[1, 0], [0, 0]], [[0, 1], [0, 0]]],  # OFF at (0, 0), ON at x = 1, y = 0
        [[[0, 0], [1, 0]], [[0, 0], [0, 1]]],  # OFF at x = 0, y = 1, ON at (1, 1)
    ]


def test_four_events_by_time():
    # [0, 3), [3, 6), [6, 9]: the last event lies at the end, and is counted
    assert integrate(FOUR, TINY, 3, "by_time").sum((1, 2, 3)).tolist() == [3, 0, 1]


def test_last_slice_gets_the_remainder():
    assert integrate(FOUR, TINY, 3).sum((1, 2, 3)).tolist() == [1, 1, 2]


@pytest.mark.parametrize("slicing", ["by_count", "by_time"])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_events_than_slices(n, slicing):
    frames = integrate(Recording(*(column[:n] for column in FOUR)), TINY, 5, slicing)
    assert frames.shape == (5, 2, 2, 2)
    # floor(n / 5) = 0 events in each slice, and all of them in the last; by time: t = 0 and t = D
    expected = {"by_count": [0, 0, 0, 0, n], "by_time": [min(n, 1), 0, 0, 0, max(n - 1, 0)]}
    assert frames.sum((1, 2, 3)).tolist() == expected[slicing]


def test_simultaneous_events_fall_into_the_first_slice():
    same_time = FOUR._replace(t=np.full(4, 7))
    assert integrate(same_time, TINY, 3, "by_time").sum((1, 2, 3)).tolist() == [4, 0, 0]


@pytest.mark.parametrize(("n", "dtype"), [(255, np.uint8), (256, np.int16), (2**15 - 1, np.int16), (2**15, np.int32)])
def test_counts_come_in_the_smallest_type_that_holds_them(n, dtype):
    zeros = np.zeros(n, np.int64)
    frames = integrate(Recording(zeros, zeros, zeros, zeros), TINY, 1)
    assert frames.dtype == dtype
    assert frames[0, 0, 0, 0] == n


def test_an_address_outside_the_frame_is_refused_before_it_is_counted():
    with pytest.raises(RecordingError, match="an event lies outside the sensor"):
        count_events(np.array([8], np.uint16), np.array([[0, 1]]), 8)


def test_a_recording_in_disorder_is_refused():
    with pytest.raises(RecordingError, match="time runs backwards"):
        integrate(FOUR._replace(t=FOUR.t[::-1].copy()), TINY, 2)


def frames_by_definition(recording: Recording, sensor: Sensor, time_steps: int) -> np.ndarray:
    """Eq. S1, event by event."""
    n = len(recording.t)
    frames = np.zeros((time_steps, 2, *sensor), int)
    for i, (x, y, p) in enumerate(zip(*recording[1:], strict=True)):
        j = min(i // (n // time_steps), time_steps - 1) if n >= time_steps else time_steps - 1
        frames[j, p, y, x] += 1
    return frames


recordings = st.builds(
    lambda n, seed, last: writers.events_of(n, seed, 5, 7, last),
    st.integers(0, 200),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 50, 10**6]),
)


@given(recording=recordings, time_steps=st.integers(1, 25))
def test_frames_match_the_definition(recording, time_steps):
    frames = integrate(recording, Sensor(5, 7), time_steps)
    np.testing.assert_array_equal(frames, frames_by_definition(recording, Sensor(5, 7), time_steps))


@given(recording=recordings, time_steps=st.integers(1, 25), slicing=st.sampled_from(["by_count", "by_time"]))
def test_no_event_is_lost_and_order_within_a_slice_does_not_matter(recording, time_steps, slicing):
    sensor = Sensor(5, 7)
    frames = integrate(recording, sensor, time_steps, slicing)
    assert frames.sum() == len(recording.t)
    packed = pack_events(recording, sensor, "recording")
    ends = np.array([0]), np.array([len(recording.t)])
    if slicing == "by_count":
        bounds = bounds_by_count(*ends, time_steps)
    else:
        bounds = bounds_by_time(packed.time, *ends, time_steps)
    random = np.random.default_rng(0)
    slices = [packed.address[a:b] for a, b in itertools.pairwise(bounds[0])]
    shuffled = np.concatenate([random.permutation(part) for part in slices])
    np.testing.assert_array_equal(count_events(shuffled, bounds, 2 * sensor.pixels).reshape(frames.shape), frames)


@given(recording=recordings, time_steps=st.integers(1, 25))
def test_slices_of_time_have_the_bounds_of_their_definition(recording, time_steps):
    t = recording.t - (recording.t[0] if len(recording.t) else 0)
    time = t.astype(np.uint32)
    bounds = bounds_by_time(time, np.array([0]), np.array([len(t)]), time_steps)[0]
    duration = int(t[-1]) if len(t) else 0
    slices = [min(int(u) * time_steps // duration, time_steps - 1) if duration else 0 for u in t]
    assert np.diff(bounds).tolist() == [slices.count(j) for j in range(time_steps)]


def test_event_drop_depends_on_the_position_in_the_recording():
    """A recording of a batch does not begin at 0."""
    address = np.random.default_rng(0).integers(0, 50, 900).astype(np.uint16)
    ends = np.array([0, 300]), np.array([300, 900])
    of = {"row": [0, 1], "pixel_map": [-1] * 2, "drop_begin": [0] * 2, "drop_end": [0] * 2, "keep": [2**31] * 2}
    types = {"key": np.uint64}

    def counted(addresses, bounds, rows):
        columns = {name: np.array(column[-rows:], np.int64) for name, column in of.items()} | {"row": np.arange(rows)}
        passes = Pass(**columns, key=np.full(rows, 7, types["key"]))
        return count_events(addresses, bounds, 50, rows=rows, maps=np.zeros((0, 50), np.int32), passes=passes)

    together = counted(address, bounds_by_count(*ends, 4), 2)
    alone = counted(address[300:], bounds_by_count(np.array([0]), np.array([600]), 4), 1)
    assert 200 < alone.sum() < 400
    np.testing.assert_array_equal(together[:, 1], alone[:, 0])


@pytest.mark.parametrize("time_steps", [1, 10, 20])
def test_real_nmnist_frames_are_spikingjellys(real_data, spikingjelly_utils, time_steps):
    for path in sorted((real_data / "NMNIST").glob("*/*/*.bin"))[::7]:
        recording = read_any(path)
        theirs = spikingjelly_utils.integrate_events_by_fixed_frames_number(
            dict(zip("txyp", recording, strict=True)), "number", time_steps, 34, 34
        )
        np.testing.assert_array_equal(integrate(recording, Sensor(34, 34), time_steps), theirs)


@pytest.mark.parametrize("time_steps", [1, 16, 20])
def test_real_dvs128_frames_are_spikingjellys(real_data, spikingjelly_utils, time_steps):
    paths = sorted((real_data / "DVS128").glob("*.aedat"))
    if not paths:
        pytest.skip("no recordings of a DVS128")
    for path in paths:
        recording = read_any(path)
        theirs = spikingjelly_utils.integrate_events_by_fixed_frames_number(
            dict(zip("txyp", recording, strict=True)), "number", time_steps, 128, 128
        )
        np.testing.assert_array_equal(integrate(recording, Sensor(128, 128), time_steps), theirs)


def integrate_elsewhere(queue: "multiprocessing.Queue[list[int]]") -> None:
    queue.put(integrate(FOUR, TINY, 2).reshape(-1).tolist())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # loader workers fork, too
def test_it_works_in_a_process_that_was(method):
    expected = integrate(FOUR, TINY, 2).reshape(-1).tolist()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=integrate_elsewhere, args=(queue,))
    process.start()
    assert queue.get(timeout=PATIENCE) == expected
    process.join(timeout=PATIENCE)
    assert process.exitcode == 0


# --- background activity


def supported(recording: Recording, us: int) -> np.ndarray:
    """Whether a pixel around had an event at most `us` before, event by event."""
    keep, last = [], {}
    for t, x, y in zip(*(column.tolist() for column in recording[:3]), strict=True):
        around = [(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0)]
        keep.append(any(t - last[place] <= us for place in around if place in last))
        last[x, y] = t
    return np.array(keep)


@pytest.mark.parametrize("us", [1, 100, 2000])
def test_background_is_dropped_by_its_definition_in_a_stream_too(us):
    sensor = Sensor(20, 30)
    some = writers.events_of(2000, 7, *sensor, last=100_000)
    expected = supported(some, us)
    assert 0 < expected.sum() < len(expected)
    stream = BackgroundFilter(sensor, us)
    pieces = [Recording(*(column[begin : begin + 171] for column in some)) for begin in range(0, 2000, 171)]
    assert np.array_equal(
        np.concatenate([stream.keep_mask(pack_events(piece, sensor, "a")) for piece in pieces]), expected
    )
    whole = without_background(pack_events(some, sensor, "a"), sensor, us)
    kept = pack_events(Recording(*(column[expected] for column in some)), sensor, "a")
    assert whole.start == kept.start
    np.testing.assert_array_equal(whole.address, kept.address)
    np.testing.assert_array_equal(whole.time, kept.time)


def test_a_recording_may_be_nothing_but_background():
    nothing = without_background(pack_events(FOUR, TINY, "a"), TINY, 0)
    assert (len(nothing.time), nothing.start) == (0, 0)


def test_counts_that_do_not_fit_a_byte_are_counted_again_with_changes_too():
    n, no = 300, np.zeros(1, np.int64)
    for keep, expected in ((2**32, n), (0, 0)):
        frames = count_events(
            np.zeros(n, np.uint16),
            np.array([[0, n]]),
            8,
            1,
            np.full((1, 8), 5, np.int32),
            Pass(no, no, no, no, no + keep, no),
        )
        assert frames[0, 0].tolist() == [0] * 5 + [expected] + [0] * 2
