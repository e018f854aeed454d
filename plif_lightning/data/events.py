"""N-MNIST, CIFAR10-DVS and DVS128 Gesture: events in a memory-mapped store, counted into frames batch by batch."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional

from plif_lightning.batch import Batch
from plif_lightning.data.archives import Archive, fetch, unpack, verify
from plif_lightning.data.base import Part, SpikingDataModule, Validation, as_index
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.events import readers
from plif_lightning.events.augment import EventAugmentation, EventChanges, EventMix, TimeDrop, resized
from plif_lightning.events.integration import (
    DamagedEventsError,
    Pass,
    Slicing,
    bounds_by_count,
    bounds_by_time,
    count_events,
)
from plif_lightning.events.recording import RecordingError, Sensor, TimeOrder
from plif_lightning.events.store import EventStore, Kind, Source, StoreError, build, fingerprint, locked
from plif_lightning.randomness import fold_in, hashed_uniform

_log = logging.getLogger(__name__)


class EventDataset:
    """Recordings of a store, read a batch at a time: sliced, augmented and counted together.

    Args:
        store: of the split.
        indices: of the recordings, int64 [n].
        num_classes: of the data set.
        time_steps: T.
        slicing: `by_count` or `by_time`.
        size: of the frames; the sensor's where it is None.
        augmentation: applied in this order.
    """

    def __init__(
        self,
        store: EventStore,
        indices: Tensor,
        num_classes: int,
        time_steps: int,
        slicing: Slicing = "by_count",
        size: Sensor | None = None,
        augmentation: Sequence[EventAugmentation] = (),
    ) -> None:
        self.store, self.indices, self.num_classes = store, indices, num_classes
        self.time_steps, self.slicing, self.augmentation = time_steps, slicing, augmentation
        self.frame = size or store.sensor
        self._resized = resized(store.sensor, self.frame) if self.frame != store.sensor else None
        self._labels = torch.from_numpy(store.label)
        # The machine code is made here, not while the first batch is waited for.
        self[BatchRequest(0, torch.zeros(1, dtype=torch.int64))]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, request: BatchRequest) -> Batch:
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


@dataclass(frozen=True)
class Origin:
    """Where the recordings of a data set come from.

    Attributes:
        folder: that holds them, below `data.root`.
        archives: file and the entries that unpacking it gives.
        counts: published numbers of training and test recordings.
    """

    folder: str
    archives: tuple[tuple[Archive, tuple[str, ...]], ...]
    counts: tuple[int, int]


class EventDataModule(SpikingDataModule):
    """Base of the neuromorphic data sets. A subclass names its origins and lists its files; see `sources`.

    Args:
        root: folder that holds the data set's own folder.
        time_steps: T, the frames of a recording.
        validation: `test` or `holdout`, see `SpikingDataModule`.
        holdout_fraction: share of each class that `holdout` takes from the training set.
        batch_size: training samples per process and step.
        eval_batch_size: samples per step in validation, test and prediction.
        drop_last: leave out an incomplete last training batch.
        num_workers: loader processes; the batches do not depend on them.
        download: fetch the data set if it is not there.
        source: which publication of the recordings; they are not the same data.
        slicing: `by_count` cuts a recording into T slices of equally many events (the paper), `by_time` into
            slices of equal duration.
        size: collect the sensor's pixels in frames of size x size.
        augmentation: changes of the training recordings, in this order; none in the paper.
        allow_partial: take the recordings that are there, though they are not as many as were published.
        time_order: `strict` refuses a recording whose times run backwards; `as_recorded` keeps the file's order.
        store: folder of the event stores; `events` in the data set's own folder where it is not given.
    """

    sensor: Sensor
    origins: dict[str, Origin]

    def __init__(
        self,
        root: str = "data",
        time_steps: int = 20,
        validation: Validation = "test",
        holdout_fraction: float = 0.15,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        drop_last: bool = False,
        num_workers: int = 0,
        download: bool = True,
        source: str = "original",
        slicing: Slicing = "by_count",
        size: int | None = None,
        augmentation: list[EventAugmentation] | None = None,
        allow_partial: bool = False,
        time_order: TimeOrder = "strict",
        store: str | None = None,
    ) -> None:
        super().__init__(
            root,
            time_steps,
            validation,
            holdout_fraction,
            batch_size,
            eval_batch_size,
            drop_last,
            num_workers,
            download,
        )
        for name, value, known in (
            ("source", source, tuple(self.origins)),
            ("slicing", slicing, get_args(Slicing)),
            ("time_order", time_order, get_args(TimeOrder)),
        ):
            if value not in known:
                raise UserError(f"data.{name} must be one of {', '.join(known)}, got {value!r}.")
        if size is not None and not 1 <= size <= min(self.sensor):
            raise UserError(f"data.size must lie in 1..{min(self.sensor)}, got {size}.")
        if slicing == "by_time" and time_order != "strict":
            raise UserError("data.slicing=by_time needs times in order: pass --data.time_order=strict.")
        if sum(isinstance(a, EventMix) for a in augmentation or []) > 1:
            raise UserError("data.augmentation has EventMix more than once.")
        drops = sum(isinstance(a, TimeDrop) for a in augmentation or [])
        if drops > 1 or (drops and time_order != "strict"):
            raise UserError("data.augmentation may have TimeDrop once, and needs --data.time_order=strict for it.")
        self.source, self.slicing, self.augmentation = source, slicing, augmentation or []
        self.size = None if size is None else Sensor(size, size)
        self.allow_partial, self.time_order = allow_partial, time_order
        self.origin = self.origins[source]
        self.folder = self.root / self.origin.folder
        own = self.origin.folder.split("/")[0]
        self.store_folder = self.root / own / "events"
        if store:
            # Two roots may share a folder of stores without taking each other's.
            place = hashlib.blake2b(os.fspath((self.root / own).resolve()).encode(), digest_size=4).hexdigest()
            self.store_folder = Path(store).expanduser().absolute() / f"{own}-{place}"
        self._stores: dict[bool, EventStore] = {}

    @property
    def input_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        return (2, *(self.size or self.sensor))

    def sources(self, train: bool) -> list[Source]:
        """The files of the training or test set that are in `folder`, in the order of the samples.

        Sorted by class, then by number: a split by class and order is the same on every machine.
        """
        raise NotImplementedError

    def _kind(self, train: bool) -> Kind:
        part = "train" if train else "test"
        name = f"{self.source}-{part}" + ("" if self.time_order == "strict" else f"-{self.time_order}")
        return Kind(f"{self.title} ({self.source}), {part}", name, self.sensor, self.time_order)

    # --- what is on the disk

    def prepare_data(self) -> None:
        """Fetches and unpacks what is missing, and builds the stores that are missing or out of date."""
        self.prepared = False
        if self._ready():
            return
        self._require_obtainable()
        with locked(self.store_folder, self._say_that_it_waits):
            if self._ready():  # by the process that was waited for
                return
            with locked(self.folder, self._say_that_it_waits) if self._wanted() else nullcontext():
                self._obtain()
            for train in (True, False):
                sources = self.sources(train)
                self._require_count(train, sum(source.recordings for source in sources))
                if not self._is_current(train, sources):
                    self._build(train, sources)
                    self.prepared = True

    @staticmethod
    def _say_that_it_waits() -> None:
        _log.warning("Another process prepares this data set: waiting for it.")

    def _ready(self) -> bool:
        """Whether both stores are there and hold what the files do; where the files are gone, what they held."""
        there = self._missing() == [] or (self.allow_partial and self._anything())
        # of a part whose folder is gone there is only what the store holds
        return all(self._is_current(train, (self.sources(train) if there else None) or None) for train in (True, False))

    def _is_current(self, train: bool, sources: Sequence[Source] | None) -> bool:
        kind = self._kind(train)
        try:
            store = EventStore(self.store_folder, kind)
        except StoreError:
            return False
        if sources is not None and store.fingerprint != fingerprint(kind, sources):
            return False
        return len(store) > 0 and (self.allow_partial or len(store) == self.origin.counts[not train])

    def _build(self, train: bool, sources: Sequence[Source]) -> None:
        kind = self._kind(train)
        with Progress() as bar:
            task = bar.add_task(f"event store of {kind.title}", total=sum(source.recordings for source in sources))
            build(self.store_folder, kind, sources, lambda recordings: bar.advance(task, recordings))

    def _entries(self) -> list[str]:
        return [entry for _, entries in self.origin.archives for entry in entries]

    def _missing(self) -> list[str]:
        return [entry for entry in self._entries() if not (self.folder / entry).is_dir()]

    def _anything(self) -> bool:
        return len(self._missing()) < len(self._entries())

    def _wanted(self) -> list[tuple[Archive, tuple[str, ...]]]:
        """The archives that would give what is not in the folder."""
        missing = set(self._missing())
        if self.allow_partial and self._anything():
            return []
        return [(archive, entries) for archive, entries in self.origin.archives if missing & set(entries)]

    def _require_obtainable(self) -> None:
        """Before anything is written.

        Raises:
            DatasetNotFoundError: an archive must be fetched by hand, or `data.download` is off.
        """
        for archive, _ in self._wanted():
            if not (self.folder / archive.name).is_file() and (archive.url is None or not self.download):
                how = "Pass --data.download=true, or fetch" if archive.url is not None else "Fetch"
                raise DatasetNotFoundError(
                    f"{self.title} ({self.source}) is not in {self.folder}. {how} {archive.name} (md5 {archive.md5}) "
                    f"from {archive.page} and put it there, or point --data.root to where it is."
                )

    def _obtain(self) -> None:
        """Unpacks, and where that is possible downloads, whatever of the data set is not in its folder."""
        for archive, entries in self._wanted():
            path = self.folder / archive.name
            if path.is_file():
                verify(path, archive)
            else:
                path = fetch(archive, self.folder)
            self._unpack(path, archive, entries)
            self.prepared = True

    def _unpack(self, path: Path, archive: Archive, entries: Iterable[str]) -> None:
        unpack(path, self.folder, archive.limit, nested=True)
        for entry in entries:
            if not (self.folder / entry).is_dir():
                raise DatasetNotFoundError(
                    f"{path} holds no folder {entry!r}: it is not {archive.name} of {self.title}."
                )

    def _require_count(self, train: bool, found: int) -> None:
        part, published = ("training", self.origin.counts[0]) if train else ("test", self.origin.counts[1])
        if found == published or (found > 0 and self.allow_partial):
            return
        if found > published:
            way = "Take away what does not belong there, or pass --data.allow_partial=true to take all of it."
        elif found == 0:
            way = "Put them there, or point --data.root to them."
        else:
            way = "Add the missing ones, or pass --data.allow_partial=true to take what is there."
        raise DatasetNotFoundError(
            f"{self.title} ({self.source}) has {published:,} {part} recordings, but {found:,} are in "
            f"{self.folder}. {way}"
        )

    # --- what the loaders read

    def event_store(self, train: bool) -> EventStore:
        """The store of the training or test set; `prepare_data` comes first."""
        if train not in self._stores:
            store = EventStore(self.store_folder, self._kind(train))
            self._require_count(train, len(store))
            if len(store) and not 0 <= store.label.min() <= store.label.max() < self.num_classes:
                raise StoreError(
                    f"{store.folder} is damaged: labels {store.label.min()}..{store.label.max()}, but there are "
                    f"{self.num_classes} classes. Delete {store.path}, and it will be built anew."
                )
            self._stores[train] = store
        return self._stores[train]

    def labels(self, train: bool) -> Tensor:
        return torch.from_numpy(self.event_store(train).label)

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> EventDataset:
        store = self.event_store(train)
        return EventDataset(
            store,
            as_index(indices, len(store)),
            self.num_classes,
            self.time_steps,
            self.slicing,
            self.size,
            self.augmentation if augment else (),
        )

    def identity(self) -> str:
        return self.event_store(train=True).content

    def inventory(self) -> list[Part]:
        parts = []
        for train, name in ((True, "training"), (False, "test")):
            store = self.event_store(train)
            counts = np.bincount(store.label, minlength=self.num_classes).tolist()
            parts.append(Part(name, counts, store.bytes, len(store.address)))
        return parts

    def verify(self) -> int:
        return sum(self.event_store(train).verify() for train in (True, False))

    @property
    def origin_note(self) -> str:
        """Which publication, and whether all of it."""
        if all(
            len(self.event_store(train)) == count
            for train, count in zip((True, False), self.origin.counts, strict=True)
        ):
            return self.source
        of = " and ".join(f"{count:,}" for count in self.origin.counts)
        return f"{self.source}, a PART of its {of} recordings"


def _numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """The files of a folder whose names end in a number, in the order of that number."""
    if not folder.is_dir():
        return []
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if path.suffix != suffix or path.name.startswith("."):
                continue
            number = re.search(r"\d+$", path.stem)
            if number is None:
                raise RecordingError(f"{path}: its name must end in the recording's number.")
            found.append((int(number[0]), path))
    return sorted(found)


_MENDELEY = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files"
_FIGSHARE = "https://api.figshare.com/v2/file/download"  # the address with `ndownloader` answers with a web page


class NMNIST(EventDataModule):
    __doc__ = (
        f"N-MNIST: 60,000 training and 10,000 test recordings of digits, 34x34 pixels.\n\n{EventDataModule.__doc__}"
    )
    title = "N-MNIST"
    sensor = Sensor(34, 34)
    class_names = tuple("0123456789")
    origins = {
        "original": Origin(
            "NMNIST",
            tuple(
                (
                    Archive(
                        name,
                        md5,
                        f"{_MENDELEY}/{place}/file_downloaded",
                        "https://data.mendeley.com/datasets/468j46mzdv",
                        limit,
                    ),
                    (entry,),
                )
                for name, md5, place, limit, entry in (
                    (
                        "train.zip",
                        "20959b8e626244a1b502305a9e6e2031",
                        "39c25547-014b-4137-a934-9d29fa53c7a0",
                        4 * 10**9,
                        "Train",
                    ),
                    (
                        "test.zip",
                        "69ca8762b2fe404d9b9bad1103e97832",
                        "05a4d654-7e03-4c15-bdfa-9bb2bcbea494",
                        10**9,
                        "Test",
                    ),
                )
            ),
            (60_000, 10_000),
        )
    }

    def sources(self, train: bool) -> list[Source]:
        part = "Train" if train else "Test"
        return [
            Source(f"{part}/{digit}/{path.name}", (path,), partial(readers.single, readers.read_nmnist), label)
            for label, digit in enumerate(self.class_names)
            for _, path in _numbered(self.folder / part / digit, ".bin")
        ]


_CIFAR10DVS_FILES = {
    "airplane": (7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
    "automobile": (7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
    "bird": (7712794, "a9c207c91c55b9dc2002dc21c684d785"),
    "cat": (7712812, "52c63c677c2b15fa5146a8daf4d56687"),
    "deer": (7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    "dog": (7712818, "f379ebdf6703d16e0a690782e62639c3"),
    "frog": (7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
    "horse": (7712851, "e7cbbf77bec584ffbf913f00e682782a"),
    "ship": (7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
    "truck": (7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
}


class CIFAR10DVS(EventDataModule):
    __doc__ = f"""CIFAR10-DVS: 1,000 recordings of each of ten classes, 128x128 pixels.

    Of each class the recordings 0-899, by the number in the file's name, are for training, 900-999 for testing.
    `original` are the AEDAT 2.0 files, in the authors' orientation; `tonic` its AEDAT 4 copy, as it is.

    {EventDataModule.__doc__}"""
    title = "CIFAR10-DVS"
    sensor = Sensor(128, 128)
    class_names = tuple(_CIFAR10DVS_FILES)
    origins = {
        "original": Origin(
            "CIFAR10DVS/original",
            tuple(
                (
                    Archive(
                        f"{name}.zip",
                        md5,
                        f"{_FIGSHARE}/{number}",
                        "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
                        10**10,
                    ),
                    (name,),
                )
                for name, (number, md5) in _CIFAR10DVS_FILES.items()
            ),
            (9_000, 1_000),
        ),
        "tonic": Origin(
            "CIFAR10DVS",
            (
                (
                    Archive(
                        "CIFAR10DVS.zip",
                        "ce3a4a0682dc0943703bd8f749a7701c",
                        f"{_FIGSHARE}/38023437",
                        "https://figshare.com/ndownloader/files/38023437",
                        5 * 10**10,
                    ),
                    class_names,
                ),
            ),
            (9_000, 1_000),
        ),
    }
    first_test = 900

    def sources(self, train: bool) -> list[Source]:
        suffix, reader, alone = (
            (".aedat", readers.read_aedat2, False)
            if self.source == "original"
            else (".aedat4", readers.read_aedat4, True)
        )
        return [
            Source(f"{name}/{path.name}", (path,), partial(readers.single, reader), label, own_process=alone)
            for label, name in enumerate(self.class_names)
            for number, path in _numbered(self.folder / name, suffix)
            if (number < self.first_test) == train
        ]


class DVSGesture(EventDataModule):
    __doc__ = f"""DVS128 Gesture: gestures of 29 people under several lights, 128x128 pixels.

    `original` cuts the recordings of DvsGesture.tar.gz into all their labelled trials: 1,176 for training and
    288 for testing, as in the paper. `tonic` is its pre-cut copy with 1,077 and 264 and times in milliseconds:
    another benchmark.

    {EventDataModule.__doc__}"""
    title = "DVS128 Gesture"
    sensor = Sensor(128, 128)
    class_names = (
        *("hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter-clockwise"),
        *("left arm clockwise", "left arm counter-clockwise", "arm roll", "air drums", "air guitar", "other gestures"),
    )
    origins = {
        "original": Origin(
            "DVSGesture",
            (
                (
                    Archive(
                        "DvsGesture.tar.gz",
                        "8a5c71fb11e24e5ca5b11866ca6c00a1",
                        None,
                        "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
                        2 * 10**10,
                    ),
                    ("DvsGesture",),
                ),
            ),
            (1_176, 288),
        ),
        "tonic": Origin(
            "DVSGesture",
            tuple(
                (
                    Archive(
                        f"{entry}.tar.gz",
                        md5,
                        f"{_FIGSHARE}/{number}",
                        f"https://figshare.com/ndownloader/files/{number}",
                        4 * 10**10,
                    ),
                    (entry,),
                )
                for entry, md5, number in (
                    ("ibmGestureTrain", "3a8f0d4120a166bac7591f77409cb105", 38022171),
                    ("ibmGestureTest", "56070e45dadaa85fff82e0fbfbc06de5", 38020584),
                )
            ),
            (1_077, 264),
        ),
    }

    def sources(self, train: bool) -> list[Source]:
        return self._original(train) if self.source == "original" else self._tonic(train)

    def _original(self, train: bool) -> list[Source]:
        folder = self.folder / "DvsGesture"
        listing = folder / f"trials_to_{'train' if train else 'test'}.txt"
        try:
            names = sorted({line.strip() for line in listing.read_text().splitlines() if line.strip()})
        except (OSError, UnicodeDecodeError) as error:
            raise RecordingError(f"{listing}, the list of this part's recordings, cannot be read ({error}).") from error
        found = []
        for name in names:
            path = folder / name
            if not name.endswith(".aedat") or path.parent != folder:
                raise RecordingError(f"{listing}: {name!r} is no name of a recording in the same folder.")
            if not path.is_file():
                if self.allow_partial:
                    continue
                raise RecordingError(f"{path} is missing, but {listing.name} names it. Unpack DvsGesture.tar.gz anew.")
            table = folder / f"{path.stem}_labels.csv"
            trials = len(readers.read_trials(table, self.num_classes))
            found.append(Source(name, (path, table), readers.gesture_trials, self.num_classes, trials))
        return found

    def _tonic(self, train: bool) -> list[Source]:
        folder = self.folder / f"ibmGesture{'Train' if train else 'Test'}"
        found = []
        for person in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else ():
            for number, path in _numbered(person, ".npy"):
                if number >= self.num_classes:
                    raise RecordingError(f"{path}: class {number} is unknown; expected 0..{self.num_classes - 1}.")
                name = f"{folder.name}/{person.name}/{path.name}"
                found.append(Source(name, (path,), partial(readers.single, readers.read_gesture_npy), number))
        return found
