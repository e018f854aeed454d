"""Batches of frames from the recordings of an event store."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.data.augment import mixture
from plif_lightning.data.batch import Batch
from plif_lightning.data.event_augment import EventAugmentation, EventChanges
from plif_lightning.data.loading import BatchedDataset, BatchRequest
from plif_lightning.errors import UserError
from plif_lightning.events.integration import DamagedEventsError, Pass, Slicing, count_events, resized, slice_bounds
from plif_lightning.events.recording import Packed, Recording, Sensor, pack, recording_of
from plif_lightning.events.store import EventStore, StoreError
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
    """Samples of a store; each batch is sliced, augmented and counted in one call.

    Args:
        store: store of the split.
        indices: indices of the samples, int64 [n].
        num_classes: number of classes of the data set.
        time_steps: T.
        slicing: `by_count` or `by_time`.
        frame: height and width of the frames; None for those of the sensor.
        augmentation: callables on structured arrays of events, such as `tonic.transforms`, are applied first, then
            the `EventAugmentation`s; each group in the given order.
        samples: recordings or windows of the store; None for all its recordings.
    """

    def __init__(
        self,
        store: EventStore,
        indices: Tensor,
        num_classes: int,
        time_steps: int,
        slicing: Slicing = "by_count",
        frame: Sensor | None = None,
        augmentation: Sequence[EventAugmentation | Transform] = (),
        samples: Samples | None = None,
    ) -> None:
        self.samples = recordings_of(store) if samples is None else samples
        self.store, self.indices, self.num_classes = store, indices, num_classes
        self.time_steps, self.slicing = time_steps, slicing
        self.augmentation = [a for a in augmentation if isinstance(a, EventAugmentation)]
        self.transforms: list[Transform] = [a for a in augmentation if not isinstance(a, EventAugmentation)]
        self.frame = frame or store.sensor
        self._resized = resized(store.sensor, self.frame) if self.frame != store.sensor else None
        self._labels = torch.from_numpy(store.label[self.samples.recording])
        # Reads one sample, so that numba compiles here and not in the first batch.
        self.batch(BatchRequest(0, torch.zeros(1, dtype=torch.int64)))

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> Tensor:
        return self._labels[self.indices]

    def events_of(self, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Addresses in a frame [2, H, W] of the sensor's size and times [us] of a sample's events, not augmented."""
        sample = int(self.indices[i])
        one = slice(self.samples.begin[sample], self.samples.end[sample])
        return self.store.address[one], self.store.time[one]

    def bounds_of(self, i: int) -> NDArray[Any]:
        """Step t of a sample has its events [bounds[t], bounds[t + 1]), [T + 1]; not augmented."""
        one = slice(sample := int(self.indices[i]), sample + 1)
        begin, end = self.samples.begin[one], self.samples.end[one]
        span = self.samples.start[one], self.samples.duration[one]
        found: NDArray[Any] = slice_bounds(self.slicing, self.store.time, begin, end, self.time_steps, *span)
        return found.reshape(-1) - begin

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
        try:
            counts = count_events(events.address, bounds, 2 * self.frame.pixels, n, maps, passes)
        except DamagedEventsError as error:
            raise StoreError(
                f"{self.store.folder} is damaged: an event lies outside the sensor. Delete {self.store.path} "
                "to rebuild it."
            ) from error
        frames = torch.from_numpy(counts).view(self.time_steps, n, 2, *self.frame)
        # Batches are sample-first, networks time-first; both are views.
        return Batch(frames.transpose(0, 1), self._labels.index_select(0, sample), sample, target)

    def _with_partners(self, key: int, sample: Tensor) -> tuple[NDArray[Any], Tensor | None]:
        """A batch's samples, followed by their `EventMix` partners, and the targets of mixed samples."""
        samples, target = mixture(
            self.augmentation, key, sample, self.indices, self.store.sensor, self._labels, self.num_classes
        )
        return samples.numpy(), target

    def _events(self, key: int, samples: NDArray[Any]) -> Events:
        """Events of each pass: the store's own arrays, or transformed copies if there are transforms."""
        begin, end = self.samples.begin[samples], self.samples.end[samples]
        if not self.transforms:
            return Events(self.store.address, self.store.time, begin, end, np.zeros(len(begin), np.int64))
        first = self.store.time[np.minimum(begin, len(self.store.time) - 1)]
        base = np.where(self.samples.duration[samples] < 0, first, self.samples.start[samples])
        changed = [self._transformed(key, *one_pass) for one_pass in zip(samples, begin, end, base, strict=True)]
        offset = np.cumsum([0, *(len(one.address) for one in changed)])
        return Events(
            np.concatenate([one.address for one in changed]),
            np.concatenate([one.time for one in changed]),
            offset[:-1],
            offset[1:],
            base + np.array([one.start for one in changed], np.int64),  # `pack` counts times from the first event
        )

    def _transformed(self, key: int, sample: int, begin: int, end: int, base: int) -> Packed:
        """One transformed sample, whose times count from `base`.

        Seeds NumPy's global generator for the transforms, and restores it.
        """
        sensor, name = self.store.sensor, str(self.store.name[self.samples.recording[sample]])
        events = np.empty(end - begin, _TONIC)
        polarity, pixel = np.divmod(self.store.address[begin:end], sensor.pixels)
        events["y"], events["x"] = np.divmod(pixel, sensor.width)
        events["t"], events["p"] = self.store.time[begin:end].astype(np.int64) - base, polarity
        state = np.random.get_state()
        np.random.seed(fold_in(key, "transforms", int(sample)) % 2**32)
        try:
            for transform in self.transforms:
                if not len(events):
                    break  # most of tonic's transforms fail without events
                try:
                    events = transform(events)
                except Exception as error:  # third-party code may raise anything
                    raise UserError(
                        f"data.augmentation: {type(transform).__name__} fails on the events of "
                        f"{name}, an array with x, y, t and p ({type(error).__name__}: {error})."
                    ) from error
                if getattr(getattr(events, "dtype", None), "names", None) is None:
                    raise UserError(
                        f"data.augmentation: {type(transform).__name__} must return events (an array with x, y, t "
                        f"and p), got {type(events).__name__}: frames are computed afterwards."
                    )
        finally:
            np.random.set_state(state)
        changed = recording_of(events, name=f"{name} after data.augmentation", sorted_by_time=True)
        inside = (changed.x >= 0) & (changed.x < sensor.width) & (changed.y >= 0) & (changed.y < sensor.height)
        changed = Recording(*(column[inside] for column in changed))  # drop events outside the sensor
        return pack(changed, sensor, name)

    def _augmented(self, key: int, samples: NDArray[Any], n: int, events: Events) -> tuple[NDArray[Any], Pass]:
        """Address tables and event changes of all passes."""
        draws = [a.draws for a in self.augmentation]
        mix = len(samples) > n
        changes = EventChanges(len(samples), self.store.sensor)
        # A partner uses its own random numbers, so it is augmented as it would be as a sample.
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
            maps[n:] = changes.maps(inside_box=True)[n:]
        if self._resized is not None:
            maps = np.where(maps >= 0, self._resized[maps], -1)
        drop_begin, drop_end = self._dropped(events, changes)
        keep = np.rint(changes.keep * 2**32).astype(np.int64)
        keys = np.array([fold_in(key, "events", int(s)) for s in samples], np.uint64)
        return maps, Pass(row, np.arange(m), drop_begin, drop_end, keep, keys)

    @staticmethod
    def _dropped(events: Events, changes: EventChanges) -> tuple[NDArray[Any], NDArray[Any]]:
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
