"""The paper's neuromorphic data sets, with download, verification and unpacking."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from plif_lightning.data.base import split_name
from plif_lightning.data.events import EventDataModule
from plif_lightning.errors import DataNotFoundError, UserError
from plif_lightning.events.cache import Arrays
from plif_lightning.events.readers import read_any
from plif_lightning.events.recording import Recording, RecordingError, Sensor
from plif_lightning.runtime.files import folder_lock
from plif_lightning.runtime.program import needed_by

# Used because `ndownloader` URLs return a web page.
_FIGSHARE = "https://api.figshare.com/v2/file/download"


class Archive(NamedTuple):
    """A published file.

    Attributes:
        name: file name.
        md5: MD5 of the content, in hexadecimal digits.
        url: download URL; None if it must be downloaded by hand.
        page: web page to download it from by hand.
        folders: its content.
    """

    name: str
    md5: str
    url: str | None
    page: str
    folders: tuple[str, ...]


class Origin(NamedTuple):
    """A publication of a data set's recordings.

    Attributes:
        folder: their folder below `data.root`.
        archives: its archives.
        counts: published numbers of training and test recordings.
    """

    folder: str
    archives: tuple[Archive, ...]
    counts: tuple[int, int]


@dataclass(eq=False, repr=False)
class PublishedEvents(EventDataModule):
    """Base class of published event data sets. A subclass implements `origins` and `files`.

    Args:
        source: publication of the recordings; different publications are different data.
        allow_partial: accept fewer recordings than were published.
    """

    source: str = "original"
    allow_partial: bool = False

    def __post_init__(self) -> None:
        with needed_by(f"the data set {type(self).__name__}"):
            from tonic import datasets
        origins = self.origins(datasets)
        if self.source not in origins:
            raise UserError(f"data.source must be one of {', '.join(origins)}, got {self.source!r}.")
        self.origin = origins[self.source]
        super().__post_init__()
        self.folder = Path(self.root) / self.origin.folder

    @classmethod
    def origins(cls, datasets: Any) -> dict[str, Origin]:
        """Publications of the recordings, by their value of `source`; `datasets` is `tonic.datasets`."""
        raise NotImplementedError

    @property
    def home(self) -> Path:
        return Path(self.root) / self.origin.folder.split("/")[0]

    def cache_name(self, train: bool) -> str:
        return f"{self.source}-{super().cache_name(train)}"

    def _missing(self) -> list[Archive]:
        return [
            archive
            for archive in self.origin.archives
            if not all((self.folder / name).is_dir() for name in archive.folders)
        ]

    @property
    def has_files(self) -> bool:
        there = [(self.folder / name).is_dir() for archive in self.origin.archives for name in archive.folders]
        return any(there) if self.allow_partial else all(there)

    def obtain(self) -> None:
        """Download, verify and unpack the archives of missing folders.

        Raises:
            DataNotFoundError: an archive must be downloaded by hand, cannot be downloaded, or is damaged.
        """
        for archive in self._missing():
            path = self.folder / archive.name
            if not path.is_file() and (archive.url is None or not self.download):
                raise DataNotFoundError(
                    f"{self.title} ({self.source}) is not in {self.folder}. "
                    f"{'Pass --data.download=true, or fetch' if archive.url else 'Fetch'} {archive.name} (md5 "
                    f"{archive.md5}) from {archive.page} and put it there, or point --data.root to where it is."
                )
        with folder_lock(self.folder):
            for archive in self._missing():
                _fetch(archive, self.folder, self.download)
                _unpack(self.folder / archive.name, self.folder)

    def recordings(self, train: bool) -> Arrays:
        arrays = super().recordings(train)
        published = self.origin.counts[not train]
        if len(arrays["label"]) != published and not self.allow_partial:
            raise DataNotFoundError(
                f"{self.title} ({self.source}) has {published:,} {split_name(train)} recordings, but "
                f"{len(arrays['label']):,} are in {self.folder}: pass --data.allow_partial=true to use these."
            )
        return arrays

    @property
    def is_part(self) -> bool:
        counts = [len(self.recordings(train)["label"]) for train in (True, False)]
        return counts != [*self.origin.counts]

    @property
    def origin_note(self) -> str:
        """Publication of the recordings, and whether it is complete."""
        if not self.is_part:
            return self.source
        return f"{self.source}, a PART of its {' and '.join(f'{n:,}' for n in self.origin.counts)} recordings"


def _fetch(archive: Archive, folder: Path, download: bool) -> None:
    """Download an archive, if that is allowed and it is not there, and compare its MD5."""
    path = folder / archive.name
    try:
        if archive.url is not None and download:
            download_url(archive.url, os.fspath(folder), archive.name, archive.md5)
        is_right = check_integrity(os.fspath(path), archive.md5)
    except (OSError, RuntimeError) as error:
        raise DataNotFoundError(
            f"{archive.name} could not be downloaded from {archive.url} ({error}). Try again, fetch it by hand "
            f"({archive.page}) and put it into {folder}, or point --data.root to where it is."
        ) from error
    if not is_right:
        raise DataNotFoundError(
            f"{path} is not the published {archive.name}, whose md5 is {archive.md5}: delete it, and fetch it from "
            f"{archive.page}."
        )


def _unpack(path: Path, folder: Path) -> None:
    """Unpack an archive and the .zip files in it; each folder appears complete."""
    staging = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
    try:
        extract_archive(os.fspath(path), os.fspath(staging))
        for inner in staging.glob("*.zip"):
            extract_archive(os.fspath(inner), os.fspath(staging), remove_finished=True)
        for entry in staging.iterdir():
            if not (folder / entry.name).exists():
                entry.rename(folder / entry.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def number_files(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """Files of a folder with a suffix, sorted by the number at the end of their names."""
    if not folder.is_dir():
        return []
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if (match := re.fullmatch(rf".*?(\d+){re.escape(suffix)}", entry.name)) and entry.name[0] != ".":
                files.append((int(match[1]), Path(entry.path)))
    return sorted(files)


@dataclass(eq=False, repr=False)
class NMNIST(PublishedEvents):
    """N-MNIST (Orchard et al. 2015): 60,000 training and 10,000 test recordings of digits, 34x34 pixels."""

    time_steps: int = 10  # Table 3

    title = "N-MNIST"
    sensor = Sensor(34, 34)
    class_names = tuple("0123456789")

    @classmethod
    def origins(cls, datasets: Any) -> dict[str, Origin]:
        copy = datasets.NMNIST
        page = "https://data.mendeley.com/datasets/468j46mzdv"
        train = Archive(copy.train_filename, copy.train_md5, copy.train_url, page, (copy.train_folder,))
        test = Archive(copy.test_filename, copy.test_md5, copy.test_url, page, (copy.test_folder,))
        return {"original": Origin("NMNIST", (train, test), (60_000, 10_000))}

    def files(self, train: bool) -> list[tuple[Path, int]]:
        folder = self.folder / ("Train" if train else "Test")
        return [
            (path, label)
            for label, digit in enumerate(self.class_names)
            for _, path in number_files(folder / digit, ".bin")
        ]


_CIFAR10DVS = {
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


@dataclass(eq=False, repr=False)
class CIFAR10DVS(PublishedEvents):
    """CIFAR10-DVS (Li et al. 2017): 1,000 recordings of each of ten classes, 128x128 pixels.

    Recordings 0-899 of each class, by the number in the file name, are the training set, 900-999 the test set.
    `original` reads the AEDAT 2.0 files in the authors' orientation; `tonic` reads its AEDAT 4 copy unchanged.
    """

    title = "CIFAR10-DVS"
    sensor = Sensor(128, 128)
    class_names = tuple(_CIFAR10DVS)
    first_test = 900

    @classmethod
    def origins(cls, datasets: Any) -> dict[str, Origin]:
        page = "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671"
        archives = tuple(
            Archive(f"{name}.zip", md5, f"{_FIGSHARE}/{number}", page, (name,))
            for name, (number, md5) in _CIFAR10DVS.items()
        )
        copy = datasets.CIFAR10DVS
        of_tonic = Archive(copy.filename, copy.file_md5, _by_api(copy.url), copy.url, cls.class_names)
        counts = (9_000, 1_000)
        return {
            "original": Origin("CIFAR10DVS/original", archives, counts),
            "tonic": Origin("CIFAR10DVS", (of_tonic,), counts),
        }

    def files(self, train: bool) -> list[tuple[Path, int]]:
        suffix = ".aedat" if self.source == "original" else ".aedat4"
        return [
            (path, label)
            for label, name in enumerate(self.class_names)
            for number, path in number_files(self.folder / name, suffix)
            if (number < self.first_test) == train
        ]


@dataclass(eq=False, repr=False)
class DVSGesture(PublishedEvents):
    """DVS128 Gesture (Amir et al. 2017): gestures of 29 people under different lights, 128x128 pixels.

    `original` cuts the recordings of DvsGesture.tar.gz into all labelled trials: 1,176 for training and 288 for
    testing, as in the paper. `tonic` is its pre-cut copy with 1,077 and 264 clips and times in milliseconds, which is
    a different benchmark.
    """

    title = "DVS128 Gesture"
    sensor = Sensor(128, 128)
    class_names = (
        *("hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter-clockwise"),
        *("left arm clockwise", "left arm counter-clockwise", "arm roll", "air drums", "air guitar", "other gestures"),
    )

    @classmethod
    def origins(cls, datasets: Any) -> dict[str, Origin]:
        page = "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794"
        archive = Archive("DvsGesture.tar.gz", "8a5c71fb11e24e5ca5b11866ca6c00a1", None, page, ("DvsGesture",))
        copy = datasets.DVSGesture
        of_tonic = tuple(
            Archive(name, md5, _by_api(url), url, (name.removesuffix(".tar.gz"),))
            for name, md5, url in (
                (copy.train_filename, copy.train_md5, copy.train_url),
                (copy.test_filename, copy.test_md5, copy.test_url),
            )
        )
        return {
            "original": Origin("DVSGesture", (archive,), (1_176, 288)),
            "tonic": Origin("DVSGesture", of_tonic, (1_077, 264)),
        }

    def files(self, train: bool) -> list[tuple[Path, int]]:
        if self.source == "original":
            folder = self.folder / "DvsGesture"
            listed = (folder / f"trials_to_{'train' if train else 'test'}.txt").read_text("utf-8-sig").split()
            paths = [folder / name for name in sorted(set(listed))]
            return [(path, 0) for path in paths if path.is_file() or not self.allow_partial]
        folder = self.folder / f"ibmGesture{'Train' if train else 'Test'}"
        people = sorted(person for person in folder.iterdir() if person.is_dir()) if folder.is_dir() else []
        return [(path, label) for person in people for label, path in number_files(person, ".npy")]

    def read(self, path: Path, label: int) -> Iterable[tuple[int, Recording]]:
        """All trials that the label table of a recording names, in its order; or a clip of tonic's copy."""
        if self.source == "tonic":
            return [(label, read_any(path, ("x", "y", "p", "t"), "ms"))]
        return cut(read_any(path), path.with_name(f"{path.stem}_labels.csv"), self.num_classes)


def cut(recording: Recording, table: Path, classes: int) -> list[tuple[int, Recording]]:
    """(class from 0, events with start <= t < end) of each trial in a DVS128 Gesture label table.

    Its lines are `class,startTime_usec,endTime_usec`, class from 1. A class may occur twice, and trials may overlap
    slightly, as in user22_led_labels.csv.

    Raises:
        RecordingError: the table is malformed or names an unknown class, or a trial holds no event.
    """
    try:
        trials = np.loadtxt(table, np.int64, delimiter=",", skiprows=1, ndmin=2, encoding="utf-8-sig")
        if not ((trials[:, 0] >= 1) & (trials[:, 0] <= classes) & (trials[:, 1] < trials[:, 2])).all():
            raise ValueError(f"classes must lie in 1..{classes}, and trials end after they start")
    except (OSError, ValueError, IndexError) as error:
        raise RecordingError(f"{table} cannot be read as a table of class, start and end [us] ({error}).") from error
    parts = []
    for label, start, end in trials.tolist():
        span = slice(*np.searchsorted(recording.t, (start, end)))
        parts.append((label - 1, Recording(*(column[span] for column in recording))))
        if not len(parts[-1][1].t):
            raise RecordingError(
                f"{table}: no event lies between {start} and {end} us. The recording is truncated, or the table "
                "belongs to another one."
            )
    return parts


def _by_api(url: str) -> str:
    """URL of figshare's API for the file of an `ndownloader` URL."""
    return f"{_FIGSHARE}/{url.rsplit('/', 1)[-1]}"
