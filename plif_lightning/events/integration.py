"""From events to frames: the background filter, slices of a recording, and counting, many recordings at once."""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plif_lightning.errors import require_count, require_one_of
from plif_lightning.events.recording import Packed, Recording, RecordingError, Sensor, pack_events, recording_of
from plif_lightning.runtime.compiled import compile_cached

Slicing = Literal["by_count", "by_time"]
Array = NDArray[Any]
# Tried in this order until the counts fit; PyTorch supports all of them.
_COUNT_TYPES = (np.uint8, np.int16, np.int32)
# Before the first event of a pixel's neighbours.
_NEVER = -(2**62)


@compile_cached
def _has_neighbours(pixel: Array, time: Array, last: Array, width: int, us: int, keep: Array) -> None:
    """Mark events with a neighbour's event in the last `us`; `last` is [H + 2, W + 2], its rim is never read."""
    stride = width + 2
    for e in range(len(pixel)):
        y, x = pixel[e] // width, pixel[e] % width
        index = (y + 1) * stride + x + 1
        now = time[e]
        keep[e] = now - last[index] <= us
        for row in range(-1, 2):
            for column in range(-1, 2):
                if row != 0 or column != 0:
                    last[index + row * stride + column] = now


def pixels_of(packed: Packed, sensor: Sensor) -> Array:
    """Pixel of each event, y * W + x, int64 [N]."""
    pixels: Array = packed.address.astype(np.int64) % sensor.pixels
    return pixels


class BackgroundFilter:
    """Drop events that no other event of the eight pixels around preceded within some time: noise is alone.

    It remembers the last times, so a stream may be cut anywhere.

    Args:
        sensor: size of the camera.
        us: longest time since the neighbour's event [us].

    Source: Delbruck 2008, "Frame-free dynamic digital vision", background activity filter (as in jAER).
    """

    def __init__(self, sensor: Sensor, us: int) -> None:
        self.sensor, self.us = sensor, us
        self.last = np.full((sensor.height + 2) * (sensor.width + 2), _NEVER, np.int64)

    def keep_mask(self, packed: Packed) -> NDArray[np.bool_]:
        """Which events of the next piece of a stream stay, bool [N]."""
        pixel = pixels_of(packed, self.sensor)
        keep = np.empty(len(pixel), np.bool_)
        time = packed.time.astype(np.int64) + packed.start
        _has_neighbours(pixel, time, self.last, self.sensor.width, self.us, keep)
        return keep


def without_background(packed: Packed, sensor: Sensor, us: int) -> Packed:
    """A recording after `BackgroundFilter`; its times count from the first event that stays."""
    keep = BackgroundFilter(sensor, us).keep_mask(packed)
    address, time = packed.address[keep], packed.time[keep]
    first = int(time[0]) if len(time) else 0
    return Packed(address, time - np.uint32(first), packed.start + first if len(time) else 0)


def bounds_by_count(begin: Array, end: Array, time_steps: int) -> Array:
    """Bounds b of slices of equally many events: slice j of recording i is events [b[i, j], b[i, j + 1]).

    Args:
        begin: first event of each recording, int64 [N].
        end: index past its last event, int64 [N].
        time_steps: T.

    Returns:
        int64 [N, T + 1]. Each slice has floor(n / T) of n events; the last also takes the remainder, which is
        all events if n < T.

    Source: Fang et al. 2021, Eq. S1.

    >>> bounds_by_count(np.array([0, 7]), np.array([7, 8]), 3)
    array([[0, 2, 4, 7],
           [7, 7, 7, 8]])
    """
    bounds: Array = begin[:, None] + ((end - begin) // time_steps)[:, None] * np.arange(time_steps + 1)
    bounds[:, -1] = end
    return bounds


@compile_cached
def _search(time: Array, begin: Array, end: Array, start: Array, length: Array, bounds: Array) -> None:
    """Fill `bounds` with the first event at or after each slice's start; times must ascend."""
    slices = bounds.shape[1] - 1
    for i in range(len(begin)):
        bounds[i, :] = end[i]
        if begin[i] == end[i]:
            continue
        first, duration = start[i], length[i]
        if duration < 0:
            first = np.int64(time[begin[i]])
            duration = np.int64(time[end[i] - 1]) - first
        bounds[i, 0] = begin[i]
        for j in range(1, slices):
            low, high = bounds[i, j - 1], end[i]
            while low < high:
                middle = (low + high) // 2
                # exact in integers: t - t_0 >= j * duration / T
                if (np.int64(time[middle]) - first) * slices >= j * duration:
                    high = middle
                else:
                    low = middle + 1
            # If all events have the same time, they belong to the first slice.
            bounds[i, j] = end[i] if duration == 0 else low


def bounds_by_time(
    time: Array, begin: Array, end: Array, time_steps: int, start: Array | None = None, duration: Array | None = None
) -> Array:
    """Bounds of slices of equal duration between the first and the last event, both included.

    Args:
        time: times of all recordings' events, ascending within each recording.
        begin: first event of each recording, int64 [N].
        end: index past its last event, int64 [N].
        time_steps: T.
        start: time t_0 of each recording, if it is not that of its first event, int64 [N].
        duration: its duration D, which covers all of its events, int64 [N]; where it is -1, t_0 and D come from the
            first and the last event.

    Returns:
        int64 [N, T + 1], as in `bounds_by_count`. Slice j holds the events with
        j D / T <= t - t_0 < (j + 1) D / T; the last also includes t_0 + D.

    >>> time = np.array([10, 11, 12, 14, 20], dtype=np.uint32)
    >>> bounds_by_time(time, np.array([0]), np.array([5]), 5)
    array([[0, 2, 3, 4, 4, 5]])
    """
    bounds = np.empty((len(begin), time_steps + 1), np.int64)
    unknown = np.full(len(begin), -1)
    _search(time, begin, end, unknown if start is None else start, unknown if duration is None else duration, bounds)
    return bounds


def slice_bounds(
    slicing: Slicing,
    time: Array,
    begin: Array,
    end: Array,
    time_steps: int,
    start: Array | None = None,
    duration: Array | None = None,
) -> Array:
    """`bounds_by_count` or `bounds_by_time`, as `slicing` says."""
    if slicing == "by_count":
        return bounds_by_count(begin, end, time_steps)
    return bounds_by_time(time, begin, end, time_steps, start, duration)


class Pass(NamedTuple):
    """M passes, each over a recording and into a row of the batch. All arrays are [M].

    Attributes:
        row: row of the batch.
        pixel_map: row of the table of target addresses; -1 leaves addresses unchanged.
        drop_begin: events [drop_begin, drop_end) are dropped.
        drop_end: see `drop_begin`.
        keep: probability of keeping an event, times 2^32.
        key: key of the random numbers for `keep`, uint64.
    """

    row: Array
    pixel_map: Array
    drop_begin: Array
    drop_end: Array
    keep: Array
    key: Array


@compile_cached
def _count(address: Array, bounds: Array, frames: Array) -> int:
    """Count events into frames [T, N, size]; error bits: 1 if a count overflowed, 2 if an address is out of range."""
    status = 0
    size = frames.shape[2]
    top = np.iinfo(frames.dtype).max
    for i in range(bounds.shape[0]):
        for j in range(bounds.shape[1] - 1):
            frame = frames[j, i]
            # Zeroed here rather than in a separate pass, so that the frame is in L1 cache when counting starts.
            for pixel in range(size):
                frame[pixel] = 0
            for e in range(bounds[i, j], bounds[i, j + 1]):
                a = address[e]
                if a < size:
                    count = frame[a]
                    frame[a] = count + 1
                    if count == top:
                        status |= 1
                else:
                    status |= 2
    return status


@compile_cached
def _count_slice(
    address: Array,
    bounds: Array,
    j: int,
    maps: Array,
    pixel_map: int,
    drop_begin: int,
    drop_end: int,
    keep: int,
    key: int,
    frame: Array,
) -> int:
    """Count the events of slice j of a pass with its changes, see `Pass`; error bits as in `_count`."""
    status = 0
    first, size = bounds[0], maps.shape[1]
    top = np.iinfo(frame.dtype).max
    for e in range(bounds[j], bounds[j + 1]):
        a = np.int64(address[e])
        if a >= size:
            status |= 2
            continue
        if drop_begin <= e < drop_end:
            continue
        if keep < 2**32:
            # SplitMix64 at this event's index: independent of order, workers and batch
            z = key + np.uint64(e - first + 1) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            if np.int64(z >> np.uint64(32)) >= keep:
                continue
        if pixel_map >= 0:
            a = np.int64(maps[pixel_map, a])
            if a < 0:
                continue
        count = frame[a]
        frame[a] = count + 1
        if count == top:
            status |= 1
    return status


@compile_cached
def _count_changed(
    address: Array,
    bounds: Array,
    maps: Array,
    row: Array,
    pixel_map: Array,
    drop_begin: Array,
    drop_end: Array,
    keep: Array,
    key: Array,
    frames: Array,
) -> int:
    """`_count` with augmentation: address remapping (-1 drops the event) and dropped events.

    The first N passes fill a row each; later ones add to an existing row.
    """
    status = 0
    for i in range(bounds.shape[0]):
        for j in range(bounds.shape[1] - 1):
            frame = frames[j, row[i]]
            if i < frames.shape[1]:
                for pixel in range(frame.shape[0]):
                    frame[pixel] = 0
            status |= _count_slice(
                address, bounds[i], j, maps, pixel_map[i], drop_begin[i], drop_end[i], keep[i], key[i], frame
            )
    return status


def count_events(
    address: Array,
    bounds: Array,
    size: int,
    rows: int | None = None,
    maps: Array | None = None,
    passes: Pass | None = None,
) -> Array:
    """For each slice, count the events at each address (polarity and pixel).

    Args:
        address: addresses of all events, uint16 or uint32.
        bounds: slice bounds, int64 [M, T + 1]; see `bounds_by_count`.
        size: addresses of a frame, 2 H W.
        rows: N, the batch size; M if `passes` is None.
        maps: lookup tables int32 [R, 2 H W of the sensor], the new address of each sensor address; -1 drops the event.
        passes: changes to the events of each of the M passes; None for no change. The first N passes have
            the rows 0 .. N - 1.

    Returns:
        [T, N, size] in the smallest of uint8, int16 and int32 that holds the counts. Time is dimension 0, as in the
        network: `result.swapaxes(0, 1)` is the batch [N, T, size] without a copy.

    Raises:
        RecordingError: an address lies outside the sensor.
    """
    for count_type in _COUNT_TYPES:
        frames = np.empty((bounds.shape[1] - 1, len(bounds) if rows is None else rows, size), count_type)
        if passes is None:
            status = _count(address, bounds, frames)
        else:
            tables = np.zeros((0, size), np.int32) if maps is None else maps
            status = _count_changed(address, bounds, tables, *passes, frames)
        if status & 2:
            raise RecordingError(
                "an event lies outside the sensor: `prepare --verify true` tells if the cache is damaged."
            )
        if status == 0:
            return frames
    raise OverflowError("more than 2^31 events lie in one pixel of one slice")


def integrate(
    recording: Recording | Packed, sensor: Sensor | tuple[int, int], time_steps: int, slicing: Slicing = "by_count"
) -> NDArray[Any]:
    """Frames of a recording.

    Args:
        recording: N >= 0 events in order of time.
        sensor: (height, width).
        time_steps: T.
        slicing: `by_count` (Eq. S1) or `by_time`.

    Returns:
        Counts [T, 2, H, W] in the smallest of uint8, int16 and int32; channel p counts events of polarity p.

    Raises:
        UserError: time_steps or slicing is invalid.
        RecordingError: an event lies outside the sensor, or its time is before that of the previous event.

    Source: Fang et al. 2021, Eq. S1.

    >>> four = Recording(np.array([0, 1, 2, 9]), np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0]))
    >>> integrate(four, Sensor(2, 2), 2)[0].tolist()
    [[[1, 0], [0, 0]], [[0, 1], [0, 0]]]
    """
    require_count("time_steps", time_steps)
    require_one_of("slicing", slicing, Slicing)
    sensor = Sensor.of(sensor)
    packed = recording if isinstance(recording, Packed) else pack_events(recording, sensor, "recording")
    begin, end = np.array([0]), np.array([len(packed.address)])
    bounds = slice_bounds(slicing, packed.time, begin, end, time_steps)
    frames = count_events(packed.address, bounds, 2 * sensor.pixels)
    return frames.reshape(time_steps, 2, *sensor)


def frames_of(
    x: Any,
    y: Any = None,
    t: Any = None,
    p: Any = None,
    *,
    sensor: Sensor | tuple[int, int],
    time_steps: int,
    slicing: Slicing = "by_count",
) -> NDArray[Any]:
    """Frames of events in memory, computed as in the data modules.

    Args:
        x: column of each event [pixel]: an array, a list or a tensor, [N]; or, in place of all four arguments, a
            structured array with the fields x, y, t and p (as from tonic) or a `Recording` (as from `read_any`).
        y: row [pixel].
        t: time [us], in ascending order.
        p: polarity: 0 and 1, -1 and 1, or booleans.
        sensor: (height, width).
        time_steps: T.
        slicing: `by_count` (Eq. S1) or `by_time`.

    Returns:
        Counts [T, 2, H, W] in the smallest of uint8, int16 and int32; channel p counts events of polarity p.

    Raises:
        UserError: an argument is invalid, or times are in seconds or run backwards.

    >>> x, y, t, p = [0, 1, 1], [0, 0, 1], [10, 11, 90], [1, -1, 1]
    >>> frames_of(x, y, t, p, sensor=(2, 2), time_steps=2, slicing="by_time").tolist()
    [[[[0, 1], [0, 0]], [[1, 0], [0, 0]]], [[[0, 0], [0, 0]], [[0, 0], [0, 1]]]]
    """
    return integrate(recording_of(x, y, t, p), sensor, time_steps, slicing)


def resize(sensor: Sensor, size: Sensor) -> Array:
    """Target address of every sensor address when the sensor is downsampled to `size`, int32 [2 H W].

    Pixel x maps to floor(x * new width / width). This keeps every event; if the new size divides the old one, each new
    pixel sums equally many old ones.

    >>> resize(Sensor(2, 4), Sensor(1, 2)).tolist()
    [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    """
    p, y, x = np.indices((2, *sensor))
    target = p * size.pixels + (y * size.height // sensor.height) * size.width + x * size.width // sensor.width
    return target.reshape(-1).astype(np.int32)
