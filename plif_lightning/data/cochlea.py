"""Spoken words as spikes of an artificial cochlea: Spiking Heidelberg Digits and Speech Commands."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.data.base import holdout_groups, holdout_split
from plif_lightning.data.events import EventDataModule
from plif_lightning.errors import DataNotFoundError
from plif_lightning.events.integration import Slicing
from plif_lightning.events.recording import Recording, RecordingError, Sensor
from plif_lightning.runtime.program import needed_by

# Recordings that are read at once.
_CHUNK = 512


@dataclass(eq=False, repr=False)
class SHD(EventDataModule):
    """Spiking Heidelberg Digits: 20 spoken digits, 8,156 training and 2,264 test recordings of 700 channels.

    Files of one's own in the same HDF5 format take their place: `spikes/times` [s] and `spikes/units` of each
    recording, `labels`, and, optional, `extra/keys` (names of the classes) and `extra/speaker`. tonic downloads the
    published ones. With `validation=holdout` the last speakers are held out, so that none is in both sets; of
    a file without speakers, the last of each class.

    Args:
        channels: number of channels of the cochlea.

    Attributes:
        files_of: names of the files with training and with test recordings.

    Source: Cramer et al. 2020, "The Heidelberg Spiking Data Sets for the Systematic Evaluation of Spiking Neural
    Networks".
    """

    slicing: Slicing = "by_time"
    channels: int = 700

    title = "SHD"
    polarities = 1
    own_format = True
    from_zero = True  # as in the code of Bittar and Garner 2022; tonic's frames begin at the first event
    files_of: ClassVar[dict[bool, tuple[str, ...]]] = {True: ("shd_train.h5",), False: ("shd_test.h5",)}

    def __post_init__(self) -> None:
        self.sensor = Sensor.of((1, self.channels))  # type: ignore[misc]
        self._chunks: dict[Path, tuple[Path, slice]] = {}
        super().__post_init__()

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        """An HDF5 file.

        Raises:
            RecordingError: it is damaged, or lacks a data set that the block asks for.
        """
        with needed_by(f"the data set {self.title}"):
            import h5py
        try:
            with h5py.File(path) as file:
                yield file
        except (OSError, KeyError) as error:
            raise RecordingError(f"{path} cannot be read ({error}). It is damaged or another file.") from error

    @property
    def home(self) -> Path:
        return Path(self.root) / self.title

    @property
    def has_files(self) -> bool:
        return all((self.home / name).is_file() for names in self.files_of.values() for name in names)

    def obtain(self) -> None:
        names = [name for of_split in self.files_of.values() for name in of_split]
        if not self.download:
            raise DataNotFoundError(
                f"{self.title} needs {', '.join(names)} in {self.home}: pass --data.download=true, or point "
                "--data.root to where they are."
            )
        with needed_by(f"the download of {self.title}"):
            from tonic import datasets
        for name in names:
            part = name.removesuffix(".h5").partition("_")[2]  # train of shd_train.h5
            getattr(datasets, self.title)(save_to=self.root, **self.tonic_arguments(part))

    def tonic_arguments(self, part: str) -> dict[str, Any]:
        """Arguments of tonic's class for a part: train, valid or test."""
        return {"train": part == "train"}

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """`extra/keys` of the training file, or the numbers of its labels; from the cache if the files are missing."""
        if not self.has_files:
            return tuple(map(str, self.recordings(train=True)["classes"]))
        with self._open(self.home / self.files_of[True][0]) as file:
            if "extra/keys" in file:
                return tuple(key.decode() if isinstance(key, bytes) else str(key) for key in file["extra/keys"][()])
            return tuple(map(str, range(int(file["labels"][()].max()) + 1)))

    def files(self, train: bool) -> list[tuple[Path, int]]:
        """Parts of the files, each named after its file and its first recording; labels are read with them."""
        parts = []
        for name in self.files_of[train]:
            with self._open(self.home / name) as file:
                number = len(file["labels"])
            for first in range(0, number, _CHUNK):
                part = self.home / f"{Path(name).stem}-{first:07}"
                self._chunks[part] = self.home / name, slice(first, first + _CHUNK)
                parts.append((part, 0))
        return parts

    def file_of(self, path: Path) -> Path:
        return self._chunks[path][0]

    def read(self, path: Path, label: int) -> Iterable[tuple[int, Recording]]:
        """(label, recording) of each recording in a part, or in a file."""
        source, part = self._chunks.get(path, (path, slice(None)))
        with self._open(source) as file:
            all_times, all_units = file["spikes/times"][part], file["spikes/units"][part]
            labels = file["labels"][part].astype(int).tolist()
        for times, units, of_recording in zip(all_times, all_units, labels, strict=True):
            t = np.rint(np.asarray(times, np.float64) * 1e6).astype(np.int64)
            order = np.argsort(t, kind="stable")
            none = np.zeros(len(t), np.uint8)
            yield of_recording, Recording(t[order], np.asarray(units)[order], none, none)

    @property
    def protocol(self) -> str:
        held_out = "" if self.validation == "test" else self._held_out_in_words
        return f"B: best-on-validation epoch, {held_out} held out" if held_out else super().protocol

    @property
    def _held_out_in_words(self) -> str:
        if self.has_files and self._speakers is None:
            return ""
        return f"the last speakers, with {100 * self.holdout_fraction:g} % of the samples or more,"

    @cached_property
    def _speakers(self) -> Tensor | None:
        """The speaker of each training recording; None for a file without them."""
        if not self.has_files:
            raise DataNotFoundError(
                f"the speakers of {self.title} are in {self.files_of[True][0]}: put it into {self.home}, or pass "
                "--data.validation test."
            )
        with self._open(self.home / self.files_of[True][0]) as file:
            speakers = file["extra/speaker"][()] if "extra/speaker" in file else None
        return None if speakers is None else torch.from_numpy(speakers.astype(np.int64))

    def held_out(self) -> tuple[Tensor, Tensor]:
        if self._speakers is None:
            return holdout_split(self.labels(train=True), self.holdout_fraction)
        return holdout_groups(self._speakers, self.holdout_fraction)


@dataclass(eq=False, repr=False)
class SSC(SHD):
    """Spiking Speech Commands: 35 words, 75,466 training, 9,981 validation and 20,382 test recordings; see `SHD`.

    With `validation=holdout` the published validation set is held out; otherwise it is a part of the training set.
    """

    title = "SSC"
    files_of: ClassVar[dict[bool, tuple[str, ...]]] = {
        True: ("ssc_train.h5", "ssc_valid.h5"),
        False: ("ssc_test.h5",),
    }

    @property
    def _held_out_in_words(self) -> str:
        return "its published validation set"

    def tonic_arguments(self, part: str) -> dict[str, Any]:
        return {"split": part}

    def held_out(self) -> tuple[Tensor, Tensor]:
        names: NDArray[Any] = self.recordings(train=True)["name"]
        is_held_out = torch.from_numpy(np.char.startswith(names, "ssc_valid"))
        return (~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()
