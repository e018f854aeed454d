"""Recordings of event cameras: from files to a cache, and the samples in it."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from plif_lightning.data.base import SpikingDataModule, SplitInventory, as_index, caches_in, split_name
from plif_lightning.data.event_augment import EventAugmentation, TimeDrop
from plif_lightning.data.event_dataset import EventDataset, Transform
from plif_lightning.data.folders import first_few
from plif_lightning.data.mixes import RectangleMix, require_single_mix
from plif_lightning.errors import DataNotFoundError, UserError, require_count, require_one_of
from plif_lightning.events.cache import Arrays, ArrayWriter, cached, find, key_of
from plif_lightning.events.integration import Slicing, without_background
from plif_lightning.events.readers import read_any
from plif_lightning.events.recording import (
    Packed,
    Recording,
    RecordingError,
    Sensor,
    address_type,
    in_channels,
    pack_events,
    recording_of,
)
from plif_lightning.events.windows import Samples, lasting, recordings_of
from plif_lightning.runtime.process import cores

_log = logging.getLogger(__name__)
# Increment when the same files produce other arrays.
_FORMAT = 3


def _size(path: Path) -> int:
    """Size of a file [bytes]; 0 for a recording that another library holds in memory."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@dataclass(eq=False, repr=False)
class EventDataModule(SpikingDataModule):
    """Base class of event data sets. A subclass implements `files` and, unless `read_any` works, `read`.

    Class attributes that a subclass sets, in addition to `SpikingDataModule`'s:
        sensor: size of the camera; (1, W) of a line of W sensors, whose samples are sequences [T, W].
        polarities: 2 for OFF and ON events in a channel each; 1 for events without polarity.
        from_zero: True if steps of a duration begin at time 0 of a recording, not at its first event.

    Args:
        time_steps: T, the frames of a recording.
        slicing: `by_count` cuts a recording into T slices of equally many events (the paper), `by_time` into
            slices of equal duration.
        step_ms: duration of a time-step [ms], with `slicing=by_time`, from the first event on, or `from_zero`: shorter
            recordings are padded with silence, of longer ones T steps are taken. By default a T-th of each recording.
        size: downsample frames to size x size pixels; a line of sensors to `size`.
        augmentation: augmentation of the training recordings; none in the paper. `tonic.transforms` on events are
            applied first, then this package's; each group in the given order.
        background_us: drop events with no earlier event in the 8 pixels around within this time [us] (Delbruck 2008);
            none by default.
        store: folder of the events' caches; default: `events` in the data set's folder.
    """

    sensor: ClassVar[Sensor]
    polarities: ClassVar[int] = 2
    from_zero: ClassVar[bool] = False
    own_format: ClassVar[bool] = False

    time_steps: int = 20
    eval_batch_size: int = 16
    slicing: Slicing = "by_count"
    step_ms: float | None = None
    size: int | None = None
    augmentation: list[EventAugmentation | Transform] | None = None
    background_us: int | None = None
    store: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("data.slicing", self.slicing, Slicing)
        if self.background_us is not None:
            require_count("data.background_us", self.background_us)
        if self.step_ms is not None and (self.slicing != "by_time" or self.step_us < 1):
            raise UserError(f"data.step_ms={self.step_ms} must be at least 0.001, with --data.slicing by_time.")
        longest = self.sensor.width if self.sensor.is_line else min(self.sensor)
        if isinstance(self.size, int) and not 1 <= self.size <= longest:
            raise UserError(f"data.size must lie in 1..{longest}, got {self.size}.")
        augmentation = self.augmentation or ()
        require_single_mix(augmentation)
        twice = sum(isinstance(a, TimeDrop) for a in augmentation) > 1
        of_frames = [a for a in augmentation if not isinstance(a, EventAugmentation)]
        if twice or any(isinstance(a, (RectangleMix, nn.Module)) for a in of_frames):
            raise UserError(
                "data.augmentation of events may hold "
                f"{', '.join(kind.__name__ for kind in EventAugmentation.__subclasses__())} (TimeDrop once) and "
                "tonic.transforms, not augmentations of images."
            )
        self._cache: dict[bool, Arrays] = {}
        self._files: dict[bool, list[tuple[Path, int]]] = {}
        self._formats: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self._samples: dict[bool, Samples] = {}

    def files(self, train: bool) -> list[tuple[Path, int]]:
        """(path, label) of each file of the training or test set, by class and number, the same on every machine."""
        raise NotImplementedError

    def read(self, path: Path, label: int) -> Iterable[tuple[int, Recording]]:
        """(label, recording) of each recording in a file; by default a single recording with the label from `files`.

        Called by concurrent threads.
        """
        return [(label, read_any(path))]

    def file_of(self, path: Path) -> Path:
        """The file on disk with the recordings of a path of `files`; if it changes, they are read again."""
        return path

    @property
    def home(self) -> Path:
        """Folder of the data set."""
        return Path(self.root)

    @property
    def has_files(self) -> bool:
        """True if the recordings exist; without them, events that were cached before are used."""
        return self.home.is_dir()

    def obtain(self) -> None:
        """Download missing files.

        Raises:
            DataNotFoundError: not available.
        """
        raise DataNotFoundError(f"{self.title} is not in {self.home}: put its recordings there.")

    @property
    def step_us(self) -> int:
        """Duration of a time-step [us]; 0 if it is a T-th of each recording."""
        return round(1000 * (self.step_ms or 0))

    @property
    def frame(self) -> Sensor:
        """Height and width of the frames."""
        if not isinstance(self.size, int):
            return self.sensor
        return Sensor(1 if self.sensor.is_line else self.size, self.size)

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.polarities * self.frame.width,) if self.frame.is_line else (self.polarities, *self.frame)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Sensor and frame, (height, width) each, how a recording is cut into T slices, and the channels' polarities.

        The input counts the events of each slice, pixel and polarity; it is not normalised.
        """
        return {
            **super().preprocessing,
            "kind": "events",
            "sensor": [*self.sensor],
            "size": [*self.frame],
            "pixel": "floor(x * size / sensor), of height and width",
            "slicing": self.slicing,
            "step_us": self.step_us or None,
            "from_zero": self.from_zero,
            "channels": self.polarities,
            "polarities": ["off", "on"] if self.polarities == 2 else ["all"],
            "background_us": self.background_us,
            "reader": self._reader,
        }

    @property
    def _reader(self) -> str | None:
        """Import path of this class where `read` is needed for its files, not only a reader of recordings."""
        kind = type(self)
        is_ours = kind.__module__.startswith("plif_lightning.")
        return None if is_ours and not self.own_format else f"{kind.__module__}.{kind.__qualname__}"

    # --- the cache

    def cache_folder(self, train: bool) -> Path:
        """Folder of the training or test set's cache; options that change the events change the folder."""
        noise = f"-background{self.background_us}us" if self.background_us else ""
        return caches_in(self.store, self.home, self.default_cache_folder) / f"{self.cache_name(train)}{noise}"

    @property
    def default_cache_folder(self) -> str:
        """Name of the folder of the caches in `home`."""
        return "events"

    def cache_name(self, train: bool) -> str:
        """Name of the training or test set's cache, unique in its home."""
        return "train" if train else "test"

    def prepare_data(self) -> None:
        """Download missing files, read the recordings unless already done, and refuse those that give no sample."""
        if not self.has_files and not all(find(self.cache_folder(train)) for train in (True, False)):
            self.obtain()
        for train in (True, False):
            self.samples(train)

    def recordings(self, train: bool) -> Arrays:
        """All recordings of the training or test set; they are read if they are not in the cache.

        Returns:
            `address`: index into a frame [2, H, W] of every event; `time`: since its recording's first event, or
            `from_zero` [us], uint32; `offset`: recording i has events [offset[i], offset[i + 1]), int64 [n + 1];
            `label`, int64 [n]; `name`: file of each recording, and its index in a file of many, [n]; `classes` and
            `sensor`.

        Raises:
            UserError: there are none, or not the expected number.
        """
        if train not in self._cache:
            folder = self.cache_folder(train)
            files = self._indexed_files(train)
            if files:
                self._formats[train] = Counter(path.suffix.lower() for path, _ in files)
                sources = [*dict.fromkeys(self.file_of(path) for path, _ in files)]
                labels, sizes = [label for _, label in files], [_size(path) for path in sources]
                key = key_of(_FORMAT, self.options(), self._names(files), labels, sizes)
                arrays: Arrays | None = cached(folder, key, partial(self._build, files), sources)
            elif self._indexed_files(not train):  # a cache of other recordings may lie here
                arrays = None
            elif (arrays := find(folder)) is not None:
                message = "%s has no %s recordings in %s: those cached before are used."
                _log.warning(message, self.title, split_name(train), self.home)
            if arrays is None or not len(arrays["address"]):
                raise DataNotFoundError(
                    f"{self.title} has no {split_name(train)} recordings with events in {self.home}: put them there."
                )
            self._cache[train] = arrays
        return self._cache[train]

    def _indexed_files(self, train: bool) -> list[tuple[Path, int]]:
        """`files`, called once; empty where the recordings are gone."""
        if train not in self._files:
            self._files[train] = self.files(train) if self.has_files else []
        return self._files[train]

    def options(self) -> tuple[Any, ...]:
        """Values that the cached events depend on, besides the files and `cache_folder`; a part of the key."""
        polarities = [] if self.polarities == 2 else [self.polarities]
        return (*self.sensor, self.class_names, *polarities, *(["from zero"] if self.from_zero else []))

    def _build(self, files: Sequence[tuple[Path, int]], writer: ArrayWriter) -> None:
        """Read all files, a few at a time, and append their recordings."""
        lengths, labels, names = [0], [], []
        writer.append("address", np.zeros(0, address_type(self.sensor)))
        writer.append("time", np.zeros(0, np.uint32))
        named = [*zip(self._names(files), files, strict=True)]
        at_once = 2 * cores()
        with Progress() as bar, ThreadPoolExecutor(cores()) as pool:
            task = bar.add_task(f"reading {self.title}", total=len(files))
            for first in range(0, len(files), at_once):
                portion = named[first : first + at_once]
                for (name, _), packed_recordings in zip(
                    portion, pool.map(lambda indexed: self._read_and_pack(*indexed[1]), portion), strict=True
                ):
                    for i, (label, packed) in enumerate(packed_recordings):
                        writer.append("address", packed.address)
                        writer.append("time", packed.time)
                        lengths.append(len(packed.time))
                        labels.append(label)
                        names.append(name if len(packed_recordings) == 1 else f"{name}#{i}")
                bar.advance(task, len(portion))
        writer.append("offset", np.cumsum(lengths, dtype=np.int64))
        writer.append("label", np.array(labels, np.int64))
        writer.append("name", np.array(names))
        writer.append("classes", np.array(self.class_names))
        writer.append("sensor", np.array(self.sensor))

    def _names(self, files: Sequence[tuple[Path, int]]) -> list[str]:
        """Names of files within the data set's folder."""
        home = f"{self.home}{os.sep}"
        return [os.fspath(path).removeprefix(home).replace(os.sep, "/") for path, _ in files]

    def _read_and_pack(self, path: Path, label: int) -> list[tuple[int, Packed]]:
        """Checked recordings of a file in 6 bytes an event."""
        try:
            read = self.read(path, label)
        except OSError as error:
            raise RecordingError(f"{path} cannot be read: {error}.") from error
        name = str(path)
        packed_recordings = [
            (target, pack_events(in_channels(recording_of(recording, name=name), self.polarities), self.sensor, name))
            for target, recording in read
        ]
        if self.background_us is not None:
            packed_recordings = [
                (target, without_background(packed, self.sensor, self.background_us))
                for target, packed in packed_recordings
            ]
        if not self.from_zero:
            return packed_recordings
        return [(target, packed.from_zero()) for target, packed in packed_recordings]

    # --- data for the loaders

    def samples_of(self, arrays: Arrays, train: bool) -> Samples:
        """Samples of the training or test set: all its recordings."""
        return recordings_of(arrays["offset"])

    def samples(self, train: bool) -> Samples:
        """Samples of the training or test set."""
        if train not in self._samples:
            arrays = self.recordings(train)
            windows = self.samples_of(arrays, train)
            if self.step_us:
                us = self.time_steps * self.step_us
                windows, cut = lasting(windows, arrays["time"], us, self.from_zero)
                if cut:
                    message = "%s: of %d of %d %s recordings, events after %d steps of %g ms are left out."
                    numbers = cut, len(windows.begin), split_name(train), self.time_steps, self.step_ms
                    _log.warning(message, self.title, *numbers)
            self._samples[train] = windows
            blank = arrays["name"][windows.recording[windows.begin == windows.end]]
            if len(blank):
                _log.warning("%s: %d recordings hold no event: %s.", self.title, len(blank), first_few(blank.tolist()))
        return self._samples[train]

    def labels(self, train: bool) -> Tensor:
        return torch.from_numpy(self.recordings(train)["label"][self.samples(train).recording])

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> EventDataset:
        samples = self.samples(train)
        return EventDataset(
            self.recordings(train),
            self.sensor,
            as_index(indices, len(samples.begin)),
            self.num_classes,
            self.time_steps,
            self.slicing,
            self.frame,
            (self.augmentation or ()) if augment else (),
            samples,
            self.polarities,
        )

    def provenance(self, train: bool) -> dict[str, NDArray[Any]]:
        """`file` of each sample, and times of its first and last event since the recording's first [us]."""
        arrays, samples = self.recordings(train), self.samples(train)
        last = np.maximum(samples.end - 1, 0)
        first = np.minimum(samples.begin, last)
        times = {"first event [us]": arrays["time"][first], "last event [us]": arrays["time"][last]}
        return {"file": arrays["name"][samples.recording], **times}

    def identity(self, train: bool = True) -> str:
        return self.recordings(train).content

    def inventory(self) -> list[SplitInventory]:
        parts = []
        for train in (True, False):
            arrays, samples = self.recordings(train), self.samples(train)
            counts = np.bincount(self.labels(train), minlength=self.num_classes).tolist()
            first, last = np.full(len(arrays["label"]), len(arrays["time"])), np.zeros(len(arrays["label"]), np.int64)
            np.minimum.at(first, samples.recording, samples.begin)
            np.maximum.at(last, samples.recording, samples.end)
            files = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(self._formats[train].items()))
            parts.append(
                SplitInventory(split_name(train), counts, arrays.bytes, int(np.maximum(last - first, 0).sum()), files)
            )
        return parts

    def verify(self) -> int:
        return sum(self.recordings(train).verify() for train in (True, False))
