"""Samples of cached events: recordings, or windows of them. Windows are bounds; no event is copied."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plif_lightning.errors import UserError

Array = NDArray[Any]


class Samples(NamedTuple):
    """N stretches of cached events. All arrays are int64 [N].

    Attributes:
        begin: first event.
        end: index past the last event.
        recording: index of the recording that they lie in.
        part: 0; 1 and 2 for the later parts of recordings that `split_at` cut.
        start: time at which a window by time begins [us]; otherwise 0.
        duration: of a window by time [us]; otherwise -1, from the first event to the last.
    """

    begin: Array
    end: Array
    recording: Array
    part: Array
    start: Array
    duration: Array

    def chosen(self, which: Array) -> "Samples":
        """The samples at some indices, or where a mask is true."""
        return Samples(*(column[which] for column in self))


def recordings_of(offset: Array) -> Samples:
    """Each recording as a sample; recording i has the events [offset[i], offset[i + 1])."""
    n = len(offset) - 1
    zero = np.zeros(n, np.int64)
    return Samples(offset[:-1], offset[1:], np.arange(n), zero.copy(), zero, zero - 1)


class Windows(NamedTuple):
    """Windows of equally many events, or of equal duration, at regular distances.

    Attributes:
        length: of a window, in events or us.
        stride: between the beginnings of windows.
        by_time: length and stride are us; otherwise events.
    """

    length: int
    stride: int
    by_time: bool

    def __str__(self) -> str:
        unit = "us" if self.by_time else "events"
        every = "" if self.stride == self.length else f" every {self.stride} {unit}"
        return f"windows of {self.length} {unit}{every}"


def windows_of(
    events: int | None, ms: float | None, stride_events: int | None, stride_ms: float | None
) -> Windows | None:
    """Windows from the arguments of a data module; None without any.

    Raises:
        UserError: a length or a distance is not positive, or two arguments contradict each other.

    >>> windows_of(None, 50, None, 12.5)
    Windows(length=50000, stride=12500, by_time=True)
    """
    lacks = (stride_events is not None and events is None) or (stride_ms is not None and ms is None)
    if (events is not None and ms is not None) or lacks:
        raise UserError(
            "give data.window_events, perhaps with data.stride_events, or data.window_ms, perhaps with data.stride_ms."
        )
    if events is not None:
        windows = Windows(events, events if stride_events is None else stride_events, by_time=False)
    elif ms is not None:
        windows = Windows(round(1000 * ms), round(1000 * (ms if stride_ms is None else stride_ms)), by_time=True)
    else:
        return None
    if min(windows.length, windows.stride) < 1:
        raise UserError(f"windows and their strides must be at least 1 event or 0.001 ms, got {windows}.")
    return windows


def _cut_at(time: Array, begin: int, end: int, share: float, by_time: bool) -> int:
    """Event at which the last `share` of a stretch begins."""
    if begin == end:
        return begin
    if not by_time:
        return begin + round((1 - share) * (end - begin))
    first, last = int(time[begin]), int(time[end - 1])
    return begin + int(np.searchsorted(time[begin:end], first + round((1 - share) * (last - first))))


def split_at(samples: Samples, time: Array, share: float, by_time: bool, last: int = 1) -> Samples:
    """Cut each sample of part 0 in two: its last `share`, in events or in time, becomes part `last`."""
    parts = []
    for begin, end, recording, part, *span in zip(*samples, strict=True):
        if part:
            parts.append((begin, end, recording, part, *span))
            continue
        cut = _cut_at(time, begin, end, share, by_time)
        parts += [(begin, cut, recording, 0, *span), (cut, end, recording, last, *span)]
    return Samples(*np.array(parts, np.int64).reshape(-1, len(samples)).T)


def left_out(samples: Samples, windows: Samples) -> Array:
    """Share of the events of each recording that no window of them holds, float64 [recordings].

    Args:
        samples: stretches of events, in their order.
        windows: from `cut_windows`.

    >>> sample = Samples(*(np.array([value]) for value in (0, 5, 0, 0, 0, -1)))
    >>> left_out(sample, cut_windows(sample, np.arange(5), Windows(2, 2, by_time=False)))
    array([0.2])
    """
    before = np.maximum.accumulate(np.concatenate([[0], windows.end]))[:-1]
    overlap = np.maximum(windows.end - np.maximum(windows.begin, before), 0)
    n = int(samples.recording.max(initial=-1)) + 1
    all_events = np.bincount(samples.recording, samples.end - samples.begin, n)
    return 1 - np.bincount(windows.recording, overlap, n) / np.maximum(all_events, 1) - (all_events == 0)


def lasting(samples: Samples, time: Array, us: int, from_zero: bool = False) -> tuple[Samples, int]:
    """The first `us` of each sample, longer where it ends before; and how many samples lose events.

    They count from the sample's first event, or from time 0.

    >>> sample = Samples(*(np.array([value]) for value in (0, 3, 0, 0, 0, -1)))
    >>> lasting(sample, np.array([0, 10, 20]), 15)[0][:2]
    (array([0]), array([2]))
    """
    spans = [*zip(samples.begin.tolist(), samples.end.tolist(), strict=True)]
    start = np.array([0 if from_zero or begin == end else int(time[begin]) for begin, end in spans], np.int64)
    kept = [np.searchsorted(time[begin:end], at + us) for (begin, end), at in zip(spans, start, strict=True)]
    last = samples.begin + np.array(kept, np.int64)
    cut = samples._replace(end=last, start=start, duration=np.full(len(last), us, np.int64))
    return cut, int((last < samples.end).sum())


def cut_windows(samples: Samples, time: Array, windows: Windows) -> Samples:
    """All complete windows of each sample that hold an event. Windows of different samples never overlap.

    A window by time covers length us from its beginning, its end excluded; the first begins with the first event.

    Args:
        samples: stretches of events.
        time: times of all events, ascending within a recording.
        windows: their length and distance.

    >>> sample = Samples(*(np.array([value]) for value in (0, 5, 0, 0, 0, -1)))
    >>> cut_windows(sample, np.array([0, 10, 20, 30, 40]), Windows(20, 10, by_time=True))[:2]
    (array([0, 1, 2]), array([2, 3, 4]))
    """
    begins, stops, counts, times = [], [], [], []
    for begin, end in zip(samples.begin, samples.end, strict=True):
        if windows.by_time:
            times_of_recording = time[begin:end]
            first, last = (
                (int(times_of_recording[0]), int(times_of_recording[-1])) if len(times_of_recording) else (0, -1)
            )
            start_times = np.arange(first, last + 2 - windows.length, windows.stride, dtype=np.int64)
            a = begin + np.searchsorted(times_of_recording, start_times)
            b = begin + np.searchsorted(times_of_recording, start_times + windows.length)
            a, b, start_times = a[a < b], b[a < b], start_times[a < b]
        else:
            a = np.arange(begin, end + 1 - windows.length, windows.stride, dtype=np.int64)
            b, start_times = a + windows.length, np.zeros(len(a), np.int64)
        begins.append(a)
        stops.append(b)
        counts.append(len(a))
        times.append(start_times)
    empty = [np.zeros(0, np.int64)]
    return Samples(
        np.concatenate(begins or empty),
        np.concatenate(stops or empty),
        np.repeat(samples.recording, counts),
        np.repeat(samples.part, counts),
        np.concatenate(times or empty),
        np.full(sum(counts), windows.length if windows.by_time else -1),
    )
