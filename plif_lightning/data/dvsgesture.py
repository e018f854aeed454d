"""DVS128 Gesture (Amir et al. 2017)."""

from dataclasses import dataclass
from functools import partial

from plif_lightning.data.archives import Archive
from plif_lightning.data.event_module import numbered
from plif_lightning.data.obtaining import Origin, by_api
from plif_lightning.data.published import PublishedEvents
from plif_lightning.events import readers
from plif_lightning.events.recording import RecordingError, Sensor
from plif_lightning.events.store import RawFile
from plif_lightning.runtime.extras import needed_by


@dataclass(eq=False, repr=False)
class DVSGesture(PublishedEvents):
    """DVS128 Gesture: gestures of 29 people under several lights, 128x128 pixels.

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
    def origins(cls) -> dict[str, Origin]:
        with needed_by("the data set DVSGesture"):
            from tonic import datasets

        published = datasets.DVSGesture

        archive = Archive(
            "DvsGesture.tar.gz",
            "8a5c71fb11e24e5ca5b11866ca6c00a1",
            None,
            "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
            2 * 10**10,
        )
        copies = tuple(
            (Archive(name, md5, by_api(url), url, 4 * 10**10), (name.removesuffix(".tar.gz"),))
            for name, md5, url in (
                (published.train_filename, published.train_md5, published.train_url),
                (published.test_filename, published.test_md5, published.test_url),
            )
        )
        return {
            "original": Origin("DVSGesture", ((archive, ("DvsGesture",)),), (1_176, 288)),
            "tonic": Origin("DVSGesture", copies, (1_077, 264)),
        }

    def raw_files(self, train: bool) -> list[RawFile]:
        return self._original(train) if self.source == "original" else self._tonic(train)

    def _original(self, train: bool) -> list[RawFile]:
        folder = self.folder / "DvsGesture"
        listing = folder / f"trials_to_{'train' if train else 'test'}.txt"
        try:
            names = sorted({line.strip() for line in listing.read_text("utf-8-sig").splitlines() if line.strip()})
        except (OSError, UnicodeDecodeError) as error:
            raise RecordingError(f"{listing}, the list of recordings, cannot be read ({error}).") from error
        found = []
        for name in names:
            path = folder / name
            if not name.endswith(".aedat") or path.parent != folder:
                raise RecordingError(f"{listing}: {name!r} is no name of a recording in the same folder.")
            if not path.is_file():
                if self.allow_partial:
                    continue
                raise RecordingError(f"{path} is missing, but {listing.name} names it. Unpack DvsGesture.tar.gz again.")
            table = folder / f"{path.stem}_labels.csv"
            trials = len(readers.read_trials(table, self.num_classes))
            found.append(RawFile(name, (path, table), readers.gesture_trials, self.num_classes, trials))
        return found

    def _tonic(self, train: bool) -> list[RawFile]:
        folder = self.folder / f"ibmGesture{'Train' if train else 'Test'}"
        found = []
        for person in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else ():
            for number, path in numbered(person, ".npy"):
                if number >= self.num_classes:
                    raise RecordingError(f"{path}: class {number} is unknown; expected 0..{self.num_classes - 1}.")
                name = f"{folder.name}/{person.name}/{path.name}"
                found.append(RawFile(name, (path,), partial(readers.single, readers.read_gesture_npy), number))
        return found
