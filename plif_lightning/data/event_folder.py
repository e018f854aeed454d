"""User recordings of events in class folders."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.data.base import place_below
from plif_lightning.data.event_module import EventDataModule
from plif_lightning.data.folders import ClassFolders, first_few
from plif_lightning.data.splits import holdout_split
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.events import readers
from plif_lightning.events.raw import Kind, in_own_process
from plif_lightning.events.recording import Sensor
from plif_lightning.events.store import EventStore, RawFile
from plif_lightning.events.windows import Samples, parted, recordings_of, windowed, windows_of

_log = logging.getLogger(__name__)
Split = Literal["recording", "time"]


@dataclass(eq=False, repr=False)
class EventFolder(EventDataModule):
    """Recordings in class folders: ROOT/train/CLASS/* and ROOT/test/CLASS/*, or ROOT/CLASS/* with `test_fraction`.

    Formats: .aedat (2.0 of a DVS128, 3.1), .aedat4, .bag, .bin (N-MNIST's), .csv, .dat, .db3, .h5, .hdf5, .mcap, .npy,
    .npz, .raw (EVT 2.0, 2.1 and 3.0) and .txt; see docs/howto/events.md. A file holds one recording, which
    is one sample, or several with `window_events` or `window_ms`.

    Args:
        root: folder of the recordings.
        sensor: height and width of the camera [pixels]; default: what the files name. Files of several sensors need
            `size`, to which each is then brought.
        window_events: cut recordings into samples of so many events.
        window_ms: cut recordings into samples of so many milliseconds.
        stride_events: distance from one window to the next [events]; default: `window_events`, without overlap.
        stride_ms: the same [ms], with `window_ms`.
        test_fraction: take the last share of each class as the test set; ROOT then holds class folders.
        split: what `test_fraction` and `validation=holdout` take: `recording` takes whole recordings, `time` the last
            part of each one. No two sets share an event, so windows of a recording never overlap between them.
    """

    sensor: tuple[int, int] | None = None  # type: ignore[assignment,misc]
    window_events: int | None = None
    window_ms: float | None = None
    stride_events: int | None = None
    stride_ms: float | None = None
    test_fraction: float | None = None
    split: Split = "recording"

    title = "recordings in class folders"  # an instance uses its folder's name

    def __post_init__(self) -> None:
        self.windows = windows_of(self.window_events, self.window_ms, self.stride_events, self.stride_ms)
        self._require_known("split", get_args(Split))
        by_time = self.split == "time" or (self.windows is not None and self.windows.by_time)
        if by_time and self.time_order != "strict":
            raise UserError("data.window_ms and data.split=time need times in order: pass --data.time_order=strict.")
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise UserError(f"data.test_fraction must lie in (0, 1), got {self.test_fraction}.")
        root = Path(self.root).expanduser()
        together = self.test_fraction is not None
        self.folders = ClassFolders(root, readers.SUFFIXES, "recordings", together, readers.is_recording)
        self._require_one_layout(root)
        if self.windows is not None and not self.windows.by_time and self.windows.length < self.time_steps:
            raise UserError(
                f"data.window_events={self.window_events} cannot be cut into data.time_steps={self.time_steps} frames."
            )
        if self.split == "time" and self.test_fraction is None and self.validation != "holdout":
            raise UserError("data.split=time is for data.test_fraction or data.validation=holdout: pass one of them.")
        self.pooled = False  # recordings of several sensors, brought to `size` as they are read
        given = None if self.sensor is None else Sensor.of(self.sensor)
        self.sensor = given or self._sensor_of_files() or self._sensor_of_store(root)
        if self.sensor is None:
            if not any(True for _ in self._paths()):  # raises an error that names what is missing
                raise DatasetNotFoundError(f"{root} holds no recordings.")
            raise UserError(
                f"data.sensor must be given: no file in {root} names its sensor. Pass the camera's height and width, "
                "such as --data.sensor=[128,128]."
            )
        super().__post_init__()
        self.title = self.folders.title  # type: ignore[misc]

    def _require_one_layout(self, root: Path) -> None:
        """Refuse class folders where train and test are expected, and the other way round."""
        parts = [part for part in ("train", "test") if (root / part).is_dir()]
        if self.test_fraction is not None and len(parts) == 2:
            raise UserError(
                f"{root} has the folders train and test: leave data.test_fraction out, which is for class folders in "
                f"{root} itself."
            )
        if self.test_fraction is None and not parts and any(map(readers.is_recording, root.glob("[!.]*/*"))):
            raise DatasetNotFoundError(
                f"{root / 'train'} does not exist: data.root must hold train/CLASS/ and test/CLASS/ with recordings in "
                "them; or CLASS/, with --data.test_fraction, such as 0.2, to say how much of them is for testing."
            )

    # --- the sensor

    def _sensor_of_files(self) -> Sensor | None:
        """Sensor that the files name; None if none does.

        Raises:
            UserError: they name several, and `size` is not given.
        """
        if not self.there:
            return None
        found: dict[Sensor, Path] = {}
        trusting: list[Path] = []
        for path in self._paths():
            if path.suffix.lower() in readers.TRUSTING:
                trusting.append(path)
                continue
            sensor = readers.sensor_of(path)
            if sensor is not None:
                found.setdefault(sensor, path)
        for path, sensor in zip(trusting, in_own_process(readers.sensor_of, trusting), strict=True):
            if sensor is not None:
                found.setdefault(sensor, path)
        if len(found) < 2:
            return next(iter(found), None)
        if self.size is None:
            (one, first), (other, second) = list(found.items())[:2]
            raise UserError(
                f"{first} is of a sensor of {one} pixels, and {second} of {other}: pass --data.size, to which all are "
                "brought, or keep recordings of one sensor."
            )
        smallest, of = min((min(sensor), path) for sensor, path in found.items())
        if self.size > smallest:
            raise UserError(
                f"data.size must lie in 1..{smallest}, the smallest side of all sensors here (that of {of}), got "
                f"{self.size}: larger frames would have pixels that never see an event."
            )
        self.pooled = True
        return Sensor(self.size, self.size)

    def _sensor_of_store(self, root: Path) -> Sensor | None:
        """Sensor of an existing store, where the files are gone; None if there is none or several.

        Raises:
            UserError: recordings of several sensors are there in another size only.
        """
        if self.there:
            return None
        folder = place_below(self.store, root) if self.store else root / self._own_store
        found: set[tuple[Sensor, bool]] = set()
        others: set[int] = set()
        for path in folder.glob("*.json"):
            if not path.name.endswith(".seen.json") and re.search(r"-(train|all)(-|$)", path.stem):
                with suppress(OSError, ValueError, KeyError, TypeError):
                    sensor = Sensor(*json.loads(path.read_text("utf-8"))["sensor"])
                    pooled = "-pooled-" in path.stem
                    if pooled and self.size != sensor.height:
                        others.add(sensor.height)  # another size of these would be other pixels than from the files
                    else:
                        found.add((sensor, pooled))
        if others and not found:
            raise UserError(
                f"the recordings of {root} are gone, and their store has data.size "
                f"{', '.join(map(str, sorted(others)))}, not {self.size}: pass that, or put the recordings back."
            )
        if len(found) != 1:
            return None
        ((sensor, self.pooled),) = found
        return sensor

    def _paths(self) -> Iterator[Path]:
        for train in (True,) if self.folders.together else (True, False):
            yield from (path for _, path in self.folders.files(train))

    # --- files and store

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders, sorted; if the folders are missing, the store's class names."""
        return (() if self.there else self._classes_of_store()) or self.folders.classes()

    @property
    def there(self) -> bool:
        root = self.folders.root
        if self.folders.together:
            return root.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir())
        return any((root / part).is_dir() for part in ("train", "test"))

    def require_obtainable(self) -> None:
        if not self.there:
            self.folders.classes()  # raises an error that names what is missing

    def prepare_data(self) -> None:
        super().prepare_data()
        self.folders.say_what_is_left_out()
        if self.test_fraction is None or self.split == "recording":
            self._say_what_is_in_both()

    def _say_what_is_in_both(self) -> None:
        """Warn of recordings that are in the training and in the test set."""
        train, test = (EventStore(self.store_folder, self._kind(part)) for part in (True, False))
        for_training, for_test = torch.arange(len(train)), torch.arange(len(test))
        if self.test_fraction is not None:
            self._require_enough(train.label, self.test_fraction, "test")
            for_training, for_test = holdout_split(torch.from_numpy(train.label), self.test_fraction)
        known: dict[tuple[Any, ...], list[int]] = {}
        for i in for_training.tolist():
            known.setdefault(_brief(train, i), []).append(i)
        twice = []
        for j in for_test.tolist():
            candidates = known.get(_brief(test, j), ()) if len(test.events(j)[0]) else ()
            same = (i for i in candidates if all(map(np.array_equal, train.events(i), test.events(j))))
            if (i := next(same, None)) is not None:
                twice.append(f"{test.name[j]} is {train.name[i]}")
        if twice:
            _log.warning(
                "%d test recordings are training recordings, too: %s. What is measured on them says nothing.",
                len(twice),
                first_few(twice),
            )

    @property
    def classes_of_files(self) -> tuple[str, ...]:
        return self.class_names if self.there else ()

    @property
    def _own_store(self) -> str:
        # Hidden where class folders lie beside it.
        return ".plif_lightning" if self.folders.together else "events"

    @property
    def own_store(self) -> Path:
        return self.home / self._own_store

    @property
    def store_name(self) -> str:
        return f"{self.sensor}-pooled" if self.pooled else str(self.sensor)

    def _kind(self, train: bool) -> Kind:
        kind = super()._kind(train)
        if not self.folders.together:
            return kind
        # Both sets are samples of one store.
        return replace(kind, title=self.called, name=kind.name.replace("-train", "-all").replace("-test", "-all"))

    def raw_files(self, train: bool) -> list[RawFile]:
        assert self.sensor is not None
        reader = readers.read_any if self.pooled else partial(readers.of_sensor, sensor=Sensor.of(self.sensor))
        return [
            RawFile(
                "/".join(path.parts[-2 if self.folders.together else -3 :]),
                (path,),
                partial(readers.single, reader),
                label,
                own_process=path.suffix.lower() in readers.TRUSTING,
                sensor_of=readers.own_sensor if self.pooled else None,
            )
            for label, path in self.folders.files(train)
        ]

    # --- samples

    def samples_of(self, store: EventStore, train: bool) -> Samples:
        samples = recordings_of(store)
        by_time = self.windows is None or self.windows.by_time
        if self.test_fraction is not None:
            if self.split == "time":
                samples = parted(samples, store.time, self.test_fraction, by_time, last=2)
                samples = samples.chosen(samples.end > samples.begin)
            else:
                self._require_enough(store.label, self.test_fraction, "test")
                _, held_out = holdout_split(torch.from_numpy(store.label), self.test_fraction)
                samples.part[held_out.numpy()] = 2
            samples = samples.chosen((samples.part != 2) if train else (samples.part == 2))
        if train and self.validation == "holdout":
            if self.split == "time":
                samples = parted(samples, store.time, self.holdout_fraction, by_time)
                samples = samples.chosen(samples.end > samples.begin)
            else:
                if self.windows is not None:
                    self._require_enough(store.label[samples.recording], self.holdout_fraction, "validation")
                own = torch.from_numpy(store.label[samples.recording])
                _, held_out = holdout_split(own, self.holdout_fraction)
                samples.part[held_out.numpy()] = 1
        if self.windows is None:
            return samples
        found = windowed(samples, store.time, self.windows)
        self._require_windows(store, samples, found, train)
        return found

    def _require_enough(self, labels: NDArray[np.int64], share: float, what: str) -> None:
        """Refuse a share of which a class has no whole recording."""
        for label, name in enumerate(self.class_names):
            count = int((labels == label).sum())
            if count and int(share * count) == 0:
                raise UserError(
                    f"{name} has {count} recording{'s' * (count > 1)}: {share:g} of that is no whole one for the "
                    f"{what} set. Record more, take a larger share, or pass --data.split=time, which takes the last "
                    "part of each."
                )

    def _require_windows(self, store: EventStore, samples: Samples, found: Samples, train: bool) -> None:
        """Say which stretches are too short for a window, and refuse a class without any."""
        what = "training" if train else "test"
        # A recording may have a part in each set: one that is too short is missed there, whatever the others give.
        short = ~np.isin(3 * samples.recording + samples.part, 3 * found.recording + found.part)
        counts = np.bincount(store.label[found.recording], minlength=self.num_classes)
        for label in np.unique(store.label[samples.recording]):
            if counts[label] == 0:
                raise UserError(
                    f"the {what} recordings of {self.class_names[label]} are shorter than one of the {self.windows}: "
                    f"pass a shorter window. The longest is {self._longest(store, samples)}."
                )
        if short.any():
            sets = ("", " (validation)", "")
            names = [f"{store.name[samples.recording[i]]}{sets[samples.part[i]]}" for i in np.flatnonzero(short)]
            _log.warning(
                "%d of %d %s %s are shorter than one of the %s and give no sample: %s.",
                short.sum(),
                len(short),
                what,
                "parts of recordings" if self.split == "time" else "recordings",
                self.windows,
                first_few(names),
            )

    def _longest(self, store: EventStore, samples: Samples) -> str:
        """Length of the longest stretch, in the unit of the windows."""
        assert self.windows is not None
        if not self.windows.by_time:
            return f"{(samples.end - samples.begin).max()} events"
        spans = [store.time[b:e] for b, e in zip(samples.begin, samples.end, strict=True) if e > b]
        return f"{max((int(span[-1]) - int(span[0]) for span in spans), default=0)} us"

    def held_out(self) -> tuple[Tensor, Tensor]:
        part = torch.from_numpy(self.samples(train=True).part)
        if not (part == 1).any():
            raise UserError(
                f"holdout_fraction={self.holdout_fraction} leaves no sample for validation: pass a larger fraction"
                + (", or --data.split=time." if self.split == "recording" else ".")
            )
        return (part == 0).nonzero().flatten(), (part == 1).nonzero().flatten()

    def identity(self, train: bool = True) -> str:
        if self.windows is None and self.test_fraction is None and self.split == "recording":
            return super().identity(train)
        return f"{super().identity(train)} {self.windows}, {self.test_fraction} by {self.split}"


def _brief(store: EventStore, i: int) -> tuple[Any, ...]:
    """A key that equal recordings share: start, number of events, and the first and last of them."""
    address, time = store.events(i)
    return int(store.start[i]), len(time), *(part.tobytes() for part in (address[:32], time[:32], address[-32:]))
