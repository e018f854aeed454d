"""Cached events to batches of frames: augmented, sliced, counted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.data.event_augment import EventAugmentation, EventChanges
from plif_lightning.data.loading import Batch, BatchedDataset, BatchRequest
from plif_lightning.data.mixes import mixture
from plif_lightning.events.integration import Pass, Slicing, count_events, resize, slice_bounds
from plif_lightning.events.recording import Packed, Recording, Sensor, pack_events, recording_of
from plif_lightning.events.windows import Samples, recordings_of
from plif_lightning.runtime.randomness import fold_in, hashed_uniform

# Maps a structured array of events to another, like the transforms of tonic.
Transform = Callable[[Any], Any]
_TONIC = np.dtype([("x", np.int64), ("y", np.int64), ("t", np.int64), ("p", np.int64)])


class Events(NamedTuple):
    """Events of M passes over recordings: pass i has events [begin[i], end[i]); its times count from `zero[i]`."""

    address: NDArray[Any]
    time: NDArray[Any]
    begin: NDArray[Any]
    end: NDArray[Any]
    zero: NDArray[Any]


class EventDataset(BatchedDataset):
    """Samples of event recordings; each call slices, augments and counts a batch.

    Args:
        arrays: `address`, `time`, `offset`, `label` and `name` of all recordings, see `EventDataModule.recordings`.
        sensor: size of the camera.
        indices: indices of the samples, int64 [n].
        num_classes: number of classes of the data set.
        time_steps: T.
        slicing: `by_count` or `by_time`.
        frame: height and width of the frames; None for the sensor's.
        augmentation: callables on structured arrays of events, such as `tonic.transforms`, are applied first, then
            the `EventAugmentation`s; each group in the given order.
        samples: recordings or windows of them; None for all recordings.
        polarities: channels of the frames; 1 for events without polarity.

    Batches are frames [N, T, polarities, H, W], or sequences [N, T, polarities W] of a line of sensors.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        sensor: Sensor,
        indices: Tensor,
        num_classes: int,
        time_steps: int,
        slicing: Slicing = "by_count",
        frame: Sensor | None = None,
        augmentation: Sequence[EventAugmentation | Transform] = (),
        samples: Samples | None = None,
        polarities: int = 2,
    ) -> None:
        self.polarities = polarities
        self.samples = recordings_of(arrays["offset"]) if samples is None else samples
        self.arrays, self.sensor, self.indices, self.num_classes = arrays, sensor, indices, num_classes
        self.time_steps, self.slicing = time_steps, slicing
        self.augmentation = [a for a in augmentation if isinstance(a, EventAugmentation)]
        self.transforms: list[Transform] = [a for a in augmentation if not isinstance(a, EventAugmentation)]
        self.frame = frame or sensor
        self._resized = resize(sensor, self.frame) if self.frame != sensor else None
        self._labels = torch.from_numpy(arrays["label"][self.samples.recording])
        # Reads a sample, so that numba compiles here and not in the first batch.
        self.batch(BatchRequest(0, torch.zeros(1, dtype=torch.int64)))

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> Tensor:
        return self._labels[self.indices]

    def batch(self, request: BatchRequest) -> Batch:
        sample = self.indices.index_select(0, request.indices)
        n = len(sample)
        samples, target = self._with_partners(request.key, sample)
        events = self._events(request.key, samples)
        passes = maps = None
        if self.augmentation:
            maps, passes = self._augmented(request.key, samples, n, events)
        elif self._resized is not None:
            everything = np.zeros(n, np.int64)
            passes = Pass(
                np.arange(n), everything, everything, everything, everything + 2**32, everything.view(np.uint64)
            )
            maps = self._resized[None]
        span = self.samples.start[samples] - events.zero, self.samples.duration[samples]
        bounds = slice_bounds(self.slicing, events.time, events.begin, events.end, self.time_steps, *span)
        counts = count_events(events.address, bounds, 2 * self.frame.pixels, n, maps, passes)
        frames = torch.from_numpy(counts).view(self.time_steps, n, 2, *self.frame)[:, :, : self.polarities]
        frames = frames.flatten(2) if self.frame.is_line else frames
        # Batches are sample-first, networks time-first; both are views.
        return Batch(frames.transpose(0, 1), self._labels.index_select(0, sample), sample, target)

    def _with_partners(self, key: int, sample: Tensor) -> tuple[NDArray[Any], Tensor | None]:
        """A batch's samples, followed by their `EventMix` partners, and the targets of mixed samples."""
        samples, target = mixture(
            self.augmentation, key, sample, self.indices, self.sensor, self._labels, self.num_classes
        )
        return samples.numpy(), target

    def _events(self, key: int, samples: NDArray[Any]) -> Events:
        """Events of each pass: the cached arrays, or transformed copies if there are transforms."""
        begin, end = self.samples.begin[samples], self.samples.end[samples]
        if not self.transforms:
            return Events(self.arrays["address"], self.arrays["time"], begin, end, np.zeros(len(begin), np.int64))
        first = self.arrays["time"][np.minimum(begin, len(self.arrays["time"]) - 1)]
        base = np.where(self.samples.duration[samples] < 0, first, self.samples.start[samples])
        changed = [self._transform(key, *spans) for spans in zip(samples, begin, end, base, strict=True)]
        offset = np.cumsum([0, *(len(packed.address) for packed in changed)])
        address, time = (np.concatenate([getattr(one, name) for one in changed]) for name in ("address", "time"))
        starts = np.array([packed.start for packed in changed], np.int64)  # `pack_events` counts from the first event
        return Events(address, time, offset[:-1], offset[1:], base + starts)

    def _transform(self, key: int, sample: int, begin: int, end: int, base: int) -> Packed:
        """A transformed sample; its times count from `base`.

        Seeds NumPy's global generator for the transforms, and restores it.
        """
        sensor, name = self.sensor, str(self.arrays["name"][self.samples.recording[sample]])
        events = np.empty(end - begin, _TONIC)
        polarity, pixel = np.divmod(self.arrays["address"][begin:end], sensor.pixels)
        events["y"], events["x"] = np.divmod(pixel, sensor.width)
        events["t"], events["p"] = self.arrays["time"][begin:end].astype(np.int64) - base, polarity
        state = np.random.get_state()
        np.random.seed(fold_in(key, "transforms", int(sample)) % 2**32)
        try:
            for transform in self.transforms:
                if not len(events):
                    break  # most of tonic's transforms fail without events
                events = transform(events)
        finally:
            np.random.set_state(state)
        changed = recording_of(events, name=f"{name} after data.augmentation", sorted_by_time=True)
        in_bounds = (changed.x >= 0) & (changed.x < sensor.width) & (changed.y >= 0) & (changed.y < sensor.height)
        changed = Recording(*(column[in_bounds] for column in changed))  # drop events outside the sensor
        return pack_events(changed, sensor, name)

    def _augmented(self, key: int, samples: NDArray[Any], n: int, events: Events) -> tuple[NDArray[Any], Pass]:
        """Address tables and event changes of all passes."""
        draws = [a.draws for a in self.augmentation]
        mix = len(samples) > n
        changes = EventChanges(len(samples), self.sensor)
        # A partner draws its random numbers as if it were a sample, so it is augmented the same.
        uniform = hashed_uniform(key, torch.from_numpy(samples), sum(draws)).numpy()
        for augment in self.augmentation:
            augment(changes, uniform[:, : augment.draws])
            uniform = uniform[:, augment.draws :]
        m = len(samples)
        row = np.arange(m)
        if mix:
            # A partner fills the rectangle of the recording that it is mixed into.
            changes.box[n:] = changes.box[:n]
            row[n:] = np.arange(n)
        maps = changes.maps()
        if mix:
            maps[n:] = changes.maps(within_box=True)[n:]
        if self._resized is not None:
            maps = np.where(maps >= 0, self._resized[maps], -1)
        drop_begin, drop_end = self._without_dropped(events, changes)
        keep = np.rint(changes.keep * 2**32).astype(np.int64)
        keys = np.array([fold_in(key, "events", int(s)) for s in samples], np.uint64)
        return maps, Pass(row, np.arange(m), drop_begin, drop_end, keep, keys)

    @staticmethod
    def _without_dropped(events: Events, changes: EventChanges) -> tuple[NDArray[Any], NDArray[Any]]:
        """First and end event of the dropped time intervals, int64 [M] each."""
        count = len(events.begin)
        begin, end = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for i, (first, last) in enumerate(zip(events.begin, events.end, strict=True)):
            if changes.drop_to[i] > changes.drop_from[i]:
                time = events.time[first:last]
                if len(time):
                    start = float(time[0])
                    window = start + np.array([changes.drop_from[i], changes.drop_to[i]]) * (float(time[-1]) - start)
                    begin[i], end[i] = first + np.searchsorted(time, window)
        return begin, end
