"""Base class of event data modules: raw recordings to event store to frames."""

import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from plif_lightning.data.augment import ImageAugmentation, require_one_mix
from plif_lightning.data.base import Part, SpikingDataModule, as_index, place_below
from plif_lightning.data.event_augment import EventAugmentation, TimeDrop
from plif_lightning.data.event_dataset import EventDataset
from plif_lightning.data.folders import first_few
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.events.integration import Slicing
from plif_lightning.events.recording import Noise, RecordingError, Sensor, TimeOrder
from plif_lightning.events.remote import claim, classes_at, copies_of, fetch, publish
from plif_lightning.events.store import (
    DamagedStoreError,
    EventStore,
    Kind,
    RawFile,
    StoreError,
    build,
    fingerprint,
    unwritable,
)
from plif_lightning.events.windows import Samples, recordings_of
from plif_lightning.runtime.files import is_address
from plif_lightning.runtime.locks import folder_lock

_log = logging.getLogger(__name__)
# Folder of a data set's stores beside its files.
OWN_STORE = "events"


@dataclass(eq=False, repr=False)
class EventDataModule(SpikingDataModule):
    """Base class of event data sets. A subclass implements `raw_files` and, if needed, `home`.

    Class attributes that a subclass sets, beside those of `SpikingDataModule`:
        sensor: size of the camera.

    Args:
        time_steps: T, the frames of a recording.
        slicing: `by_count` cuts a recording into T slices of equally many events (the paper), `by_time` into
            slices of equal duration.
        size: downsample frames to size x size pixels.
        augmentation: augmentation of the training recordings; none in the paper. `tonic.transforms` on events are
            applied first, then this package's; each group in the given order.
        time_order: `strict` refuses a recording whose times run backwards; `as_recorded` keeps the file's order.
        background_us: drop events that no event of the eight pixels around preceded within so many us (Delbruck 2008);
            none by default.
        hot_pixels: drop pixels that fire more than this many times as often as each pixel around; none by default.
        store: folder of the event stores; default: `events` in the data set's folder. With a URL, such as
            s3://bucket/stores, each data set has a subfolder there, named like its own folder. A machine downloads the
            store once; if the URL has none yet, the machine that builds it uploads it.
    """

    sensor: ClassVar[Sensor]

    time_steps: int = 20
    eval_batch_size: int = 16
    slicing: Slicing = "by_count"
    size: int | None = None
    augmentation: list[EventAugmentation | Callable[[Any], Any]] | None = None
    time_order: TimeOrder = "strict"
    background_us: int | None = None
    hot_pixels: float | None = None
    store: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_noise()
        self._require_known("slicing", get_args(Slicing))
        self._require_known("time_order", get_args(TimeOrder))
        if self.size is not None and not 1 <= self.size <= min(self.sensor):
            raise UserError(f"data.size must lie in 1..{min(self.sensor)}, got {self.size}.")
        if self.slicing == "by_time" and self.time_order != "strict":
            raise UserError("data.slicing=by_time needs times in order: pass --data.time_order=strict.")
        _require_augmentation(self.augmentation or [], self.time_order)
        self.address: str | None = None
        if self.store is not None and is_address(self.store):
            # The data set's path differs between machines, but its folder name does not.
            self.address = f"{self.store.rstrip('/')}/{self.home.absolute().name}"
            self.store_folder = copies_of(self.address)
        else:
            self.store_folder = place_below(self.store, self.home) if self.store else self.own_store
        self._missing: frozenset[str] = frozenset()  # names of the stores that the address lacked
        self._stores: dict[bool, EventStore] = {}
        self._samples: dict[bool, Samples] = {}

    def _require_noise(self) -> None:
        for name in ("background_us", "hot_pixels"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 10**9:
                raise UserError(f"data.{name} must be from 1 to 10^9, got {value}.")
        if self.background_us is not None and self.time_order != "strict":
            raise UserError("data.background_us needs times in order: pass --data.time_order=strict.")

    @property
    def home(self) -> Path:
        """Folder of the data set."""
        return Path(self.root)

    @property
    def own_store(self) -> Path:
        """Folder of the stores if `store` names none."""
        return self.home / OWN_STORE

    @property
    def called(self) -> str:
        """Name of the data set, for messages."""
        return self.title

    @property
    def store_name(self) -> str:
        """Prefix of the store's file names; distinguishes stores in one folder."""
        return "events"

    @property
    def frame(self) -> Sensor:
        """Height and width of the frames."""
        return self.sensor if self.size is None else Sensor(self.size, self.size)

    @property
    def input_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        return (2, *self.frame)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Sensor and frame, (height, width) each, how a recording is cut into T slices, and the channels' polarities.

        The input counts the events of each slice, pixel and polarity; it is not normalised.
        """
        return {
            "sensor": [*self.sensor],
            "size": [*self.frame],
            "slicing": self.slicing,
            "time_steps": self.time_steps,
            "polarities": ["off", "on"],
            "background_us": self.background_us,
            "hot_pixels": self.hot_pixels,
        }

    def raw_files(self, train: bool) -> list[RawFile]:
        """Available files of the training or test set, in sample order.

        They are sorted by class, then by number, so that a split by class and order is the same on every machine.
        """
        raise NotImplementedError

    @property
    def classes_of_files(self) -> tuple[str, ...]:
        """Class names, if they come from the files; () if the data set defines them."""
        return ()

    def _classes_of_store(self) -> tuple[str, ...]:
        """Class names in an existing store, here or at a URL; () if there is none or it has none."""
        kind = self._kind(train=True)
        if self.address is not None:
            return classes_at(self.address, kind)
        with suppress(StoreError):
            return EventStore(self.store_folder, kind).classes
        return ()

    def _kind(self, train: bool) -> Kind:
        part = "train" if train else "test"
        noise = Noise(self.background_us, self.hot_pixels)
        marks = [self.time_order] * (self.time_order != "strict") + [str(noise)] * bool(noise)
        name = "-".join([self.store_name, part, *marks])
        return Kind(f"{self.called}, {part}", name, self.sensor, self.time_order, self.classes_of_files, noise)

    # --- files on disk; a subclass that downloads its files overrides the first four

    @property
    def there(self) -> bool:
        """True if the raw files exist; without them, an existing store is used."""
        return True

    def require_obtainable(self) -> None:
        """Raise the error that `obtain` would raise, before anything is written."""

    def obtain(self) -> bool:
        """Obtain missing raw files, in one process at a time. True if any were missing."""
        return False

    def require_count(self, train: bool, found: int) -> None:
        """Check the number of recordings of the training or test set.

        Raises:
            DatasetNotFoundError: it is not the expected number.
        """
        if found == 0:
            part = "training" if train else "test"
            raise DatasetNotFoundError(f"{self.title} has no {part} recordings in {self.home}. Put them there.")

    def prepare_data(self) -> None:
        """Download and unpack missing files, and build missing or stale stores."""
        self.prepared = False
        if not self._made_with:
            self._forget()
        self._prepare()
        # Another process may have rebuilt them as well.
        stores = self._stores.items() if self._made_with else ()
        self._require_same(
            all(EventStore(self.store_folder, self._kind(train)).content == store.content for train, store in stores)
        )

    def _prepare(self) -> None:
        if self.address is None:
            if self._ready():
                return
            self.require_obtainable()
        else:
            claim(self.store_folder)
        with folder_lock(self.store_folder, partial(unwritable, self.store_folder), self._warn_of_waiting):
            kinds = list(dict.fromkeys(self._kind(train) for train in (True, False)))
            address = self.address
            missing = [] if address is None else [kind for kind in kinds if not fetch(address, self.store_folder, kind)]
            self._missing = frozenset(kind.name for kind in missing)
            if not self._ready():  # another process may have built it meanwhile, or it was downloaded
                self._build_both()
            for kind in missing if self.there else ():
                publish(str(address), self.store_folder, kind)
        if missing and not self.there:
            _log.warning(
                "%s has no event store of %s, whose recordings are not here: the copy of an earlier one is used.",
                address,
                self.called,
            )
        if address is not None and self.there:
            self._say_what_differs(address)

    def _say_what_differs(self, address: str) -> None:
        """Warn where a store from a URL is of other recordings than those that lie here."""
        parts = (True,) if self._kind(True) == self._kind(False) else (True, False)
        for train in parts:
            raw_files, store = self.raw_files(train), EventStore(self.store_folder, self._kind(train))
            here = {(raw.name, raw.label) for raw in raw_files}
            there = set(zip(store.name.tolist(), store.label.tolist(), strict=True))
            several = any(raw.recordings > 1 for raw in raw_files)  # their labels are in the files
            size = sum(raw.size() for raw in raw_files)
            if here and not several and here != there:
                fewer, more = len(here - there), len(there - here)
                differs = f"has {more} recordings that are not in {self.home}, and lacks {fewer} that are"
            elif here and store.raw_bytes not in (None, size):
                differs = f"was built of {store.raw_bytes:,} bytes of files, and {self.home} has {size:,}"
            else:
                continue
            _log.warning(
                "The store %s at %s %s: the store's are used. Delete its files there to build it of those here, or "
                "pass another --data.store.",
                store.path.name,
                address,
                differs,
            )

    def _build_both(self) -> None:
        self.require_obtainable()
        self.prepared = self.obtain()
        outdated = {}
        for train in (True, False):
            if not train and self._kind(train) == self._kind(True):
                continue  # one store for both
            raw_files = self.raw_files(train)
            if not raw_files and self._is_current(train, None):
                _log.warning("Raw files of %s are missing: using the existing event store.", self._kind(train).title)
                continue
            self.require_count(train, sum(raw.recordings for raw in raw_files))
            if not self._is_current(train, raw_files):
                outdated[train] = raw_files
        for train, raw_files in outdated.items():  # only after both counts were checked
            self._build(train, raw_files)
            self.prepared = True

    @staticmethod
    def _warn_of_waiting() -> None:
        _log.warning("Another process is preparing this data set: waiting for it.")

    def _ready(self) -> bool:
        """True if both stores exist and match the raw files, as far as these exist."""
        there = self.there
        # If a split has no raw files, any valid store is current.
        return all(
            self._is_current(train, (self.raw_files(train) if there else None) or None) for train in (True, False)
        )

    def _is_current(self, train: bool, raw_files: Sequence[RawFile] | None) -> bool:
        kind = self._kind(train)
        try:
            store = EventStore(self.store_folder, kind)
        except DamagedStoreError as error:
            _log.warning("%s It is rebuilt if its recordings are available.", error)
            return False
        except StoreError:
            return False
        # A store from a URL was built on another machine, where the files have other modification times. If it was
        # deleted there, a rebuild is wanted: the copy counts only if it was built from these files.
        own = self.address is None or kind.name in self._missing
        if raw_files is not None and own and store.fingerprint != fingerprint(kind, raw_files):
            return False
        try:
            self.require_count(train, len(store))
        except DatasetNotFoundError:
            return False
        return True

    def _forget(self) -> None:
        super()._forget()
        self._stores.clear()
        self._samples.clear()

    def _build(self, train: bool, raw_files: Sequence[RawFile]) -> None:
        kind = self._kind(train)
        with Progress() as bar:
            task = bar.add_task(f"event store of {kind.title}", total=sum(raw.recordings for raw in raw_files))
            build(self.store_folder, kind, raw_files, lambda recordings: bar.advance(task, recordings))

    # --- data for the loaders

    def event_store(self, train: bool) -> EventStore:
        """Event store of the training or test set; call `prepare_data` first."""
        if train not in self._stores:
            store = EventStore(self.store_folder, self._kind(train))
            self.require_count(train, len(store))
            if len(store) and not 0 <= store.label.min() <= store.label.max() < self.num_classes:
                raise StoreError(
                    f"{store.folder} is damaged: labels {store.label.min()}..{store.label.max()}, but there are "
                    f"{self.num_classes} classes. Delete {store.path} to rebuild it."
                )
            if not len(store.address):
                part = "training" if train else "test"
                raise UserError(
                    f"none of the {len(store)} {part} recordings of {self.title} in {self.home} holds an event: look "
                    "at the files with plif_lightning.events.read_any."
                )
            self._stores[train] = store
        return self._stores[train]

    def samples_of(self, store: EventStore, train: bool) -> Samples:
        """Samples of the training or test set: all recordings of its store."""
        return recordings_of(store)

    def samples(self, train: bool) -> Samples:
        """Samples of the training or test set; call `prepare_data` first."""
        if train not in self._samples:
            store = self.event_store(train)
            self._samples[train] = found = self.samples_of(store, train)
            blank = store.name[found.recording[found.begin == found.end]]
            if len(blank):
                _log.warning(
                    "%d of %d %s recordings of %s hold no event, and are blank samples: %s.",
                    len(blank),
                    len(found.begin),
                    "training" if train else "test",
                    self.called,
                    first_few(blank.tolist()),
                )
        return self._samples[train]

    def labels(self, train: bool) -> Tensor:
        return torch.from_numpy(self.event_store(train).label[self.samples(train).recording])

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> EventDataset:
        store, samples = self.event_store(train), self.samples(train)
        return EventDataset(
            store,
            as_index(indices, len(samples.begin)),
            self.num_classes,
            self.time_steps,
            self.slicing,
            self.frame,
            (self.augmentation or ()) if augment else (),
            samples,
        )

    def identity(self, train: bool = True) -> str:
        return self.event_store(train).content

    def inventory(self) -> list[Part]:
        parts = []
        for train, name in ((True, "training"), (False, "test")):
            store, samples = self.event_store(train), self.samples(train)
            counts = np.bincount(self.labels(train), minlength=self.num_classes).tolist()
            parts.append(Part(name, counts, store.bytes, self._events_in(store, samples)))
        return parts

    @staticmethod
    def _events_in(store: EventStore, samples: Samples) -> int:
        """Events from the first to the last sample of each recording."""
        if not len(samples.begin):
            return 0
        first = np.full(len(store), len(store.address))
        last = np.zeros(len(store), np.int64)
        np.minimum.at(first, samples.recording, samples.begin)
        np.maximum.at(last, samples.recording, samples.end)
        return int(np.maximum(last - first, 0).sum())

    def verify(self) -> int:
        return sum(self.event_store(train).verify() for train in (True, False))


def _require_augmentation(augmentation: Sequence[Any], time_order: TimeOrder) -> None:
    """Refuse augmentation of images, a second EventMix or TimeDrop, and what needs times in order if they may not be.

    Raises:
        UserError: there is one of these.
    """
    if wrong := next((a for a in augmentation if isinstance(a, ImageAugmentation)), None):
        raise UserError(
            f"data.augmentation has {type(wrong).__name__}, which changes images: for events use "
            f"{', '.join(kind.__name__ for kind in EventAugmentation.__subclasses__())}, or tonic.transforms."
        )
    if time_order != "strict" and not all(isinstance(a, EventAugmentation) for a in augmentation):
        raise UserError("transforms in data.augmentation need times in order: pass --data.time_order=strict.")
    require_one_mix(augmentation)
    drops = sum(isinstance(a, TimeDrop) for a in augmentation)
    allowed = 1 if time_order == "strict" else 0
    if drops > allowed:
        raise UserError("data.augmentation may have TimeDrop once, and needs --data.time_order=strict for it.")


def numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """Files of a folder with a suffix, sorted by the number at the end of their names.

    Raises:
        RecordingError: a name does not end in a number.
    """
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
