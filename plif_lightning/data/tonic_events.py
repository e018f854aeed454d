"""Data sets of tonic with a two-dimensional sensor and a class per recording."""

import hashlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plif_lightning.data.base import holdout_split, require_fraction
from plif_lightning.data.events import EventDataModule
from plif_lightning.errors import DataNotFoundError, UserError
from plif_lightning.events.recording import Recording, RecordingError, Sensor, recording_of
from plif_lightning.runtime.program import needed_by


@dataclass(eq=False, repr=False)
class TonicEvents(EventDataModule):
    """A class of `tonic.datasets`. tonic downloads, verifies and reads it; this package caches, slices and loads it.

    Args:
        name: name of the class, such as POKERDVS; required.
        sensor: height and width of the camera; required if tonic does not know them, as for NCALTECH101.
        test_fraction: share of each class, its last recordings, for the test set if tonic defines none.
    """

    name: str | None = None
    sensor: tuple[int, int] | None = None  # type: ignore[assignment,misc]
    test_fraction: float = 0.1

    title = "a data set of tonic"  # an instance uses the data set's name

    def __post_init__(self) -> None:
        self._data_set_class = _class(self.name)
        size: Any = getattr(self._data_set_class, "sensor_size", None)
        if self.sensor is None and size is None:
            raise UserError(
                f"data.sensor must be given: tonic does not know the sensor of {self.name}; height and width, such as "
                "--data.sensor=[180,240]."
            )
        self.sensor = Sensor.of(self.sensor or (size[1], size[0]))
        self.title = f"{self.name} of tonic"  # type: ignore[misc]
        require_fraction("data.test_fraction", self.test_fraction)
        self._has_train_argument = "train" in _parameters(self._data_set_class)
        self._opened: dict[bool, Any] = {}
        self._index: dict[Path, tuple[bool, int]] = {}
        super().__post_init__()

    @property
    def home(self) -> Path:
        assert self.name is not None
        return Path(self.root) / self.name

    @property
    def has_files(self) -> bool:
        try:
            return all(len(self._data(train).targets) > 0 for train in (True, False))
        except DataNotFoundError:
            return False

    def obtain(self) -> None:
        for train in (True, False):
            self._data(train, self.download)

    def options(self) -> tuple[Any, ...]:
        return (*super().options(), self.test_fraction)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Class names from tonic; if it has none, the recordings' labels, sorted, or from the cache."""
        classes: Any = getattr(self._data_set_class, "classes", None)
        if isinstance(classes, dict):
            classes = sorted(classes, key=lambda name: classes[name])
        if classes is None and not self.has_files:
            classes = self.recordings(train=True)["classes"]
        if classes is None:
            classes = sorted({str(target) for target in self._data(train=True).targets})
        return tuple(map(str, classes))

    def _data(self, train: bool, download: bool = False) -> Any:
        """The tonic data set.

        Raises:
            DataNotFoundError: it is missing, and cannot or may not be downloaded.
        """
        if train not in self._opened:
            # Same class name, because tonic names the folder after it.
            kind = (
                self._data_set_class
                if download
                else type(self._data_set_class.__name__, (self._data_set_class,), {"download": _refuse})
            )
            try:
                self._opened[train] = kind(save_to=self.root, **({"train": train} if self._has_train_argument else {}))
            except (Exception, SystemExit) as error:  # SystemExit: sets that must be downloaded by hand
                way = "Put" if download else "Pass --data.download=true, put"
                raise DataNotFoundError(
                    f"{self.title} could not be obtained ({error}). {way} its files into {self.home} as tonic "
                    "expects them, or point --data.root to where they are."
                ) from error
        return self._opened[train]

    def files(self, train: bool) -> list[tuple[Path, int]]:
        data = self._data(train)
        home = Path(data.location_on_system)
        indexed = []
        for i, (recording_path, target) in enumerate(zip(data.data, data.targets, strict=True)):
            # Recordings that tonic holds in memory have their number and their hash for a name.
            is_path = isinstance(recording_path, str)
            path = Path(recording_path) if is_path else home / f"{i:08}-{_hash(recording_path)}"
            self._index[path] = (train, i)
            indexed.append((self._label(target), path))
        # tonic's order partly depends on the file system; sorting by class and name makes it deterministic.
        indexed.sort()
        if not self._has_train_argument:
            for_training, for_test = holdout_split(torch.tensor([label for label, _ in indexed]), self.test_fraction)
            indexed = [indexed[i] for i in (for_training if train else for_test).tolist()]
        return [(path, label) for label, path in indexed]

    def _label(self, target: Any) -> int:
        return self.class_names.index(target) if isinstance(target, str) else int(target)

    def read(self, path: Path, label: int) -> Iterable[tuple[int, Recording]]:
        train, i = self._index[path]
        try:
            events, _ = self._data(train)[i]
        except Exception as error:  # tonic defines no errors
            raise RecordingError(f"{path} cannot be read by tonic ({error}). It is damaged or another file.") from error
        return [(label, recording_of(events, name=str(path)))]


def _hash(recording: Any) -> str:
    return hashlib.blake2b(np.ascontiguousarray(recording).tobytes(), digest_size=8).hexdigest()


def _refuse(_: Any) -> None:
    raise DataNotFoundError("files are missing")


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind.__init__).parameters)


def _is_supported(kind: Any) -> bool:
    """True for a class with a two-dimensional sensor, and a class per recording."""
    size = getattr(kind, "sensor_size", None)
    parameters = _parameters(kind)
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    if "save_to" not in parameters or required - {"self", "save_to"}:
        return False
    if size is None:
        return hasattr(kind, "file_md5")
    return len(size) == 3 and size[1] > 1 and hasattr(kind, "classes")


def _class(name: str | None) -> Any:
    """Class of `tonic.datasets` by name.

    Raises:
        UserError: there is no such class, or it is not supported.
    """
    with needed_by("a data set of tonic"):
        import tonic.datasets

    supported = [
        class_name
        for class_name in sorted(tonic.datasets.__all__)
        if _is_supported(getattr(tonic.datasets, class_name))
    ]
    if name not in supported:
        raise UserError(
            f"data.name must be a class of tonic.datasets with a two-dimensional sensor and one class for each "
            f"recording: one of {', '.join(supported)}; got {name!r}."
        )
    return getattr(tonic.datasets, str(name))
