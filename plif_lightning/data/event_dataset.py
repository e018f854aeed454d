"""Recordings of an event store as batches of frames."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from plif_lightning.batch import Batch
from plif_lightning.data.loading import BatchedDataset, BatchRequest
from plif_lightning.events.augment import EventAugmentation, EventChanges, EventMix, resized
from plif_lightning.events.integration import (
    DamagedEventsError,
    Pass,
    Slicing,
    bounds_by_count,
    bounds_by_time,
    count_events,
)
from plif_lightning.events.recording import Sensor
from plif_lightning.events.store import EventStore, StoreError
from plif_lightning.runtime.randomness import fold_in, hashed_uniform


class EventDataset(BatchedDataset):
    """Recordings of a store, read a batch at a time: sliced, augmented and counted together.

    Args:
        store: of the split.
        indices: of the recordings, int64 [n].
        num_classes: of the data set.
        time_steps: T.
        slicing: `by_count` or `by_time`.
        frame: height and width of the frames; the sensor's where it is None.
        augmentation: applied in this order.
    """

    def __init__(
        self,
        store: EventStore,
        indices: Tensor,
        num_classes: int,
        time_steps: int,
        slicing: Slicing = "by_count",
        frame: Sensor | None = None,
        augmentation: Sequence[EventAugmentation] = (),
    ) -> None:
        self.store, self.indices, self.num_classes = store, indices, num_classes
        self.time_steps, self.slicing, self.augmentation = time_steps, slicing, augmentation
        self.frame = frame or store.sensor
        self._resized = resized(store.sensor, self.frame) if self.frame != store.sensor else None
        self._labels = torch.from_numpy(store.label)
        # The machine code is made here, not while the first batch is waited for.
        self.batch(BatchRequest(0, torch.zeros(1, dtype=torch.int64)))

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, request: BatchRequest) -> Batch:
        sample = self.indices.index_select(0, request.indices)
        n = len(sample)
        recordings = sample.numpy()
        target = passes = maps = None
        if self.augmentation:
            recordings, target, maps, passes = self._augmented(request.key, sample)
        elif self._resized is not None:
            everything = np.zeros(n, np.int64)
            passes = Pass(
                np.arange(n), everything, everything, everything, everything + 2**32, everything.view(np.uint64)
            )
            maps = self._resized[None]
        begin, end = self.store.offset[recordings], self.store.offset[recordings + 1]
        if self.slicing == "by_count":
            bounds = bounds_by_count(begin, end, self.time_steps)
        else:
            bounds = bounds_by_time(self.store.time, begin, end, self.time_steps)
        try:
            counts = count_events(self.store.address, bounds, 2 * self.frame.pixels, n, maps, passes)
        except DamagedEventsError as error:
            raise StoreError(
                f"{self.store.folder} is damaged: an event lies outside the sensor. Delete {self.store.path}, "
                "and it will be built anew."
            ) from error
        frames = torch.from_numpy(counts).view(self.time_steps, n, 2, *self.frame)
        return Batch(frames.transpose(0, 1), self._labels.index_select(0, sample), sample, target)

    def _augmented(self, key: int, sample: Tensor) -> tuple[NDArray[Any], Tensor | None, NDArray[Any], Pass]:
        """Which recordings are read, their targets, where their pixels go, and what else happens to them."""
        n = len(sample)
        draws = [a.draws for a in self.augmentation]
        recordings, mix = sample.numpy(), None
        for augment, first in zip(self.augmentation, np.cumsum([0, *draws]), strict=False):
            if isinstance(augment, EventMix):
                mix = augment
                uniform = hashed_uniform(key, sample, sum(draws)).numpy()
                partner = augment.partner(uniform[:, first : first + augment.draws], len(self.indices))
                recordings = np.concatenate([recordings, self.indices.numpy()[partner]])
        changes = EventChanges(len(recordings), self.store.sensor)
        # A partner is changed as it would be itself: its numbers are its own.
        uniform = hashed_uniform(key, torch.from_numpy(recordings), sum(draws)).numpy()
        for augment in self.augmentation:
            augment(changes, uniform[:, : augment.draws])
            uniform = uniform[:, augment.draws :]
        target = None
        m = len(recordings)
        row = np.arange(m)
        if mix is not None:
            # Its rectangle is that of the recording that it is put into.
            changes.box[n:] = changes.box[:n]
            left, top, right, bottom = changes.box[:n].T
            share = torch.from_numpy((right - left) * (bottom - top) / self.store.sensor.pixels).float()[:, None]
            own, other = (
                functional.one_hot(self._labels[torch.from_numpy(part)], self.num_classes).float()
                for part in (recordings[:n], recordings[n:])
            )
            target = own * (1 - share) + other * share
            row[n:] = np.arange(n)
        maps = changes.maps()
        if mix is not None:
            maps[n:] = changes.maps(inside_box=True)[n:]
        if self._resized is not None:
            maps = np.where(maps >= 0, self._resized[maps], -1)
        drop_begin, drop_end = self._dropped(recordings, changes)
        keep = np.rint(changes.keep * 2**32).astype(np.int64)
        keys = np.array([fold_in(key, "events", int(r)) for r in recordings], np.uint64)
        return recordings, target, maps, Pass(row, np.arange(m), drop_begin, drop_end, keep, keys)

    def _dropped(self, recordings: NDArray[Any], changes: EventChanges) -> tuple[NDArray[Any], NDArray[Any]]:
        """The events in the intervals of time that are left out, int64 [M] each."""
        begin, end = np.zeros(len(recordings), np.int64), np.zeros(len(recordings), np.int64)
        for i, recording in enumerate(recordings):
            if changes.drop_to[i] > changes.drop_from[i]:
                first = self.store.offset[recording]
                time = self.store.time[first : self.store.offset[recording + 1]]
                if len(time):
                    window = np.array([changes.drop_from[i], changes.drop_to[i]]) * float(time[-1])
                    begin[i], end[i] = first + np.searchsorted(time, window)
        return begin, end
