"""CIFAR10-DVS (Li et al. 2017)."""

from dataclasses import dataclass
from functools import partial

from plif_lightning.data.archives import Archive
from plif_lightning.data.event_module import numbered
from plif_lightning.data.obtaining import FIGSHARE, Origin, by_api
from plif_lightning.data.published import PublishedEvents
from plif_lightning.events import readers
from plif_lightning.events.recording import Sensor
from plif_lightning.events.store import RawFile
from plif_lightning.runtime.extras import needed_by

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


@dataclass(eq=False, repr=False)
class CIFAR10DVS(PublishedEvents):
    """CIFAR10-DVS: 1,000 recordings of each of ten classes, 128x128 pixels.

    Recordings 0-899 of each class, by the number in the file name, are the training set, 900-999 the test set.
    `original` reads the AEDAT 2.0 files in the authors' orientation; `tonic` reads its AEDAT 4 copy unchanged.
    """

    title = "CIFAR10-DVS"
    sensor = Sensor(128, 128)
    class_names = tuple(_CIFAR10DVS_FILES)
    first_test = 900

    @classmethod
    def origins(cls) -> dict[str, Origin]:
        with needed_by("the data set CIFAR10DVS"):
            from tonic import datasets

        published = datasets.CIFAR10DVS

        page = "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671"
        archives = tuple(
            (Archive(f"{name}.zip", md5, f"{FIGSHARE}/{number}", page, 10**10), (name,))
            for name, (number, md5) in _CIFAR10DVS_FILES.items()
        )
        copy = Archive(published.filename, published.file_md5, by_api(published.url), published.url, 5 * 10**10)
        counts = (9_000, 1_000)
        return {
            "original": Origin("CIFAR10DVS/original", archives, counts),
            "tonic": Origin("CIFAR10DVS", ((copy, cls.class_names),), counts),
        }

    def raw_files(self, train: bool) -> list[RawFile]:
        suffix, reader = (
            (".aedat", readers.read_aedat2) if self.source == "original" else (".aedat4", readers.read_aedat4)
        )
        return [
            RawFile(f"{name}/{path.name}", (path,), partial(readers.single, reader), label)
            for label, name in enumerate(self.class_names)
            for number, path in numbered(self.folder / name, suffix)
            if (number < self.first_test) == train
        ]
