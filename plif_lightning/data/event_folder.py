"""User recordings of events in class folders."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.data.base import SplitInventory, holdout_split, require_fraction, split_name
from plif_lightning.data.events import EventDataModule
from plif_lightning.data.folders import ClassFolders, first_few
from plif_lightning.errors import UserError, require_one_of
from plif_lightning.events.cache import Arrays, find
from plif_lightning.events.readers import SUFFIXES, TABLES, read_any, sensor_of
from plif_lightning.events.recording import Recording, RecordingError, Sensor, rescale
from plif_lightning.events.tables import TimeUnit
from plif_lightning.events.windows import Samples, cut_windows, left_out, recordings_of, split_at, windows_of

Split = Literal["recording", "time"]

_log = logging.getLogger(__name__)
# Share of a recording's events outside of all windows that is worth a line.
_MUCH = 0.1


@dataclass(eq=False, repr=False)
class EventFolder(EventDataModule):
    """Recordings in class folders: ROOT/train/CLASS/* and ROOT/test/CLASS/*, or ROOT/CLASS/* with `test_fraction`.

    Formats: .aedat (2.0 of a DVS128, 3.1), .aedat4, .bin (N-MNIST's), .csv, .dat, .h5, .hdf5, .npy, .npz, .raw (EVT
    2.0, 2.1 and 3.0) and .txt; see docs/howto/events.md. A file holds one recording, which is a sample, or many
    with `window_events` or `window_ms`.

    Args:
        root: folder of the recordings.
        sensor: height and width of the camera [pixels], [1, W] of a line of sensors; default: from the first file.
        polarities: 1 to count events of both polarities together, or if they have none.
        size: downsample frames to size x size pixels; or their height and width, to which each recording is rescaled
            from the sensor that its file names, or else `sensor`.
        columns: column names of a table without a header, such as [t, x, y, p]; [t, x] of a line of sensors without
            polarity.
        time_unit: unit of times in tables (text, NumPy, HDF5); us by default.
        window_events: events per sample; recordings are cut.
        window_ms: milliseconds per sample; recordings are cut.
        stride_events: distance between windows [events]; default: `window_events`, without overlap.
        stride_ms: the same [ms], with `window_ms`.
        test_fraction: take the last share of each class as the test set; ROOT then holds class folders.
        split: unit of `test_fraction` and `validation=holdout`: `recording` takes entire recordings, `time` the last
            part of each. No two sets share an event, so windows of a recording never overlap between them.
    """

    sensor: tuple[int, int] | None = None  # type: ignore[assignment,misc]
    polarities: Literal[1, 2] = 2  # type: ignore[misc]
    size: int | tuple[int, int] | None = None  # type: ignore[assignment]
    columns: list[str] | None = None
    time_unit: TimeUnit | None = None
    window_events: int | None = None
    window_ms: float | None = None
    stride_events: int | None = None
    stride_ms: float | None = None
    test_fraction: float | None = None
    split: Split = "recording"

    title = "recordings in class folders"  # an instance uses its folder's name

    def __post_init__(self) -> None:
        self.windows = windows_of(self.window_events, self.window_ms, self.stride_events, self.stride_ms)
        require_one_of("data.split", self.split, Split)
        require_one_of("data.polarities", self.polarities, Literal[1, 2])
        if self.windows is not None and self.step_ms is not None:
            raise UserError("data.step_ms is the duration of a step of entire recordings: leave it out with windows.")
        if self.test_fraction is not None:
            require_fraction("data.test_fraction", self.test_fraction)
        self.root = os.fspath(Path(self.root).expanduser())
        self.folders = ClassFolders(Path(self.root), SUFFIXES, "recordings", self.test_fraction is not None)
        if self.windows is not None and not self.windows.by_time and self.windows.length < self.time_steps:
            raise UserError(
                f"data.window_events={self.window_events} cannot be cut into data.time_steps={self.time_steps} frames."
            )
        self._of_tables = self.sensor  # of files that do not name their sensor
        if self._rescales:
            self.sensor = Sensor.of(self.size)
        elif self.sensor is None:
            self.sensor = self._sensor()
        self.sensor = Sensor.of(self.sensor)
        super().__post_init__()
        self.title = self.folders.title  # type: ignore[misc]

    @property
    def _rescales(self) -> bool:
        """True if each recording is rescaled to `sensor`, which is then the frames' size."""
        return self.size is not None and not isinstance(self.size, int)

    def _sensor(self) -> tuple[int, int]:
        """Sensor that the first file names, or the cache if there are no files."""
        if not self.has_files:
            if (arrays := find(self.cache_folder(train=True))) is None:
                self.obtain()
            assert arrays is not None
            height, width = arrays["sensor"].tolist()
            return height, width
        first, _ = self.files(train=True)[0]
        if (sensor := sensor_of(first)) is None:
            raise UserError(
                f"data.sensor must be given: {first} does not name its sensor. Pass the camera's height and width, "
                "such as --data.sensor=[128,128]."
            )
        return sensor

    @property
    def has_files(self) -> bool:
        return self.folders.exist

    def obtain(self) -> None:
        self.folders.classes()  # raises an error that names the missing folder

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders, sorted; if the folders are missing, from the cache."""
        return self.folders.classes() if self.has_files else tuple(map(str, self.recordings(train=True)["classes"]))

    def options(self) -> tuple[Any, ...]:
        return (*super().options(), self.columns, self.time_unit, *((self._of_tables,) if self._rescales else ()))

    @property
    def default_cache_folder(self) -> str:
        # Hidden where class folders lie beside it.
        return super().default_cache_folder if self.test_fraction is None else ".plif_lightning"

    def cache_name(self, train: bool) -> str:
        # With `test_fraction` both sets share a cache.
        name = super().cache_name(train) if self.test_fraction is None else "all"
        return f"{name}-{self.sensor}" if self._rescales else name

    def files(self, train: bool) -> list[tuple[Path, int]]:
        return [(Path(path), label) for path, label in self.folders.files(train)]

    def read(self, path: Path, label: int) -> Iterable[tuple[int, Recording]]:
        named = sensor_of(path)
        recording = read_any(path, self.columns, self.time_unit)
        if self._rescales:
            named_columns = named or self._of_tables
            if named_columns is None:
                raise RecordingError(f"{path} does not name its sensor: pass --data.sensor=[HEIGHT,WIDTH] for it.")
            return [(label, rescale(recording, Sensor.of(named_columns), Sensor.of(self.sensor), str(path)))]
        if named not in (None, self.sensor):
            raise RecordingError(
                f"{path} is of a sensor of {named} pixels (height x width), not of {self.sensor}: pass "
                "--data.size=[HEIGHT,WIDTH], to which each recording is rescaled."
            )
        return [(label, recording)]

    def inventory(self) -> list[SplitInventory]:
        parts = super().inventory()
        unit = f", times of tables in {self.time_unit or 'us'}"
        return [split._replace(files=split.files + unit) if self._has_tables else split for split in parts]

    @property
    def _has_tables(self) -> bool:
        return any(suffix in TABLES for formats in self._formats.values() for suffix in formats)

    # --- samples

    def samples_of(self, arrays: Arrays, train: bool) -> Samples:
        samples = recordings_of(arrays["offset"])
        if self.test_fraction is not None:
            samples = self._split(samples, arrays, self.test_fraction, "test", 2)
            samples = samples.chosen((samples.part != 2) if train else (samples.part == 2))
        if train and self.validation == "holdout":
            samples = self._split(samples, arrays, self.holdout_fraction, "validation", 1)
        return samples if self.windows is None else self._cut_into_windows(samples, arrays, train)

    def _split(self, samples: Samples, arrays: Arrays, share: float, argument: str, split_number: int) -> Samples:
        """Give the last share of each class, or of each recording, another part."""
        if self.split == "time":
            by_time = self.windows is None or self.windows.by_time
            samples = split_at(samples, arrays["time"], share, by_time, split_number)
            return samples.chosen(samples.end > samples.begin)
        labels = arrays["label"][samples.recording]
        counts = np.bincount(labels, minlength=self.num_classes)
        if few := [
            name for name, n in zip(self.class_names, counts.tolist(), strict=True) if n and int(share * n) == 0
        ]:
            raise UserError(
                f"{share:g} of the recordings of {first_few(few)} is no whole one for the {argument} set: record more, "
                "take a larger share, or pass --data.split=time, which takes the last part of each"
                f"{'' if split_number == 2 else ', or --data.validation test'}."
            )
        samples.part[holdout_split(torch.from_numpy(labels), share)[1].numpy()] = split_number
        return samples

    def _cut_into_windows(self, samples: Samples, arrays: Arrays, train: bool) -> Samples:
        """Windows of the samples; stretches without any are refused where a class has no other."""
        assert self.windows is not None
        windows_of = cut_windows(samples, arrays["time"], self.windows)
        counts = np.bincount(arrays["label"][windows_of.recording], minlength=self.num_classes)
        lengths = self._lengths(samples, arrays["time"])
        labels = arrays["label"][samples.recording]
        short = {
            self.class_names[label]: int(lengths[labels == label].max())
            for label in np.unique(labels).tolist()
            if counts[label] == 0
        }
        if short:
            unit = "us" if self.windows.by_time else "events"
            lacking = first_few([f"{name} (the longest has {longest} {unit})" for name, longest in short.items()])
            raise UserError(
                f"the {self.windows} are longer than all {split_name(train)} recordings of {lacking}: "
                "pass shorter ones."
            )
        if many := int((left_out(samples, windows_of) > _MUCH).sum()):
            message = "%s: %d %s recordings lose more than a tenth of their events, which lie in none of the %s."
            _log.warning(message, self.title, many, split_name(train), self.windows)
        return windows_of

    def _lengths(self, samples: Samples, time: NDArray[Any]) -> NDArray[np.int64]:
        """Length of each stretch, in the unit of the windows, int64 [N]."""
        assert self.windows is not None
        if not self.windows.by_time:
            return samples.end - samples.begin
        is_there = samples.end > samples.begin
        last, first = (time[np.where(is_there, at, 0)].astype(np.int64) for at in (samples.end - 1, samples.begin))
        return np.where(is_there, last - first, 0)

    def held_out(self) -> tuple[Tensor, Tensor]:
        split = torch.from_numpy(self.samples(train=True).part)
        if not (split == 1).any():
            raise UserError(
                f"holdout_fraction={self.holdout_fraction} leaves no sample for validation: pass a larger one."
            )
        return (split == 0).nonzero().flatten(), (split == 1).nonzero().flatten()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """As of any event data set, with the window that a sample is, and how long a time-step of it lasts.

        Where recordings are rescaled individually, `sensor` is for files that name none, or None.
        """
        window_us = None if self.window_ms is None else round(1000 * self.window_ms)
        by_time = window_us is not None and self.slicing == "by_time"
        return {
            **super().preprocessing,
            **({"sensor": self._of_tables and [*self._of_tables]} if self._rescales else {}),
            "rescales": self._rescales,
            "window_events": self.window_events,
            "window_us": window_us,
            **({"step_us": window_us / self.time_steps} if window_us is not None and by_time else {}),
            "columns": self.columns,
            "time_unit": self.time_unit,
        }

    def identity(self, train: bool = True) -> str:
        if self.windows is None and self.test_fraction is None and self.split == "recording":
            return super().identity(train)
        return f"{super().identity(train)} {self.windows}, {self.test_fraction} by {self.split}"
