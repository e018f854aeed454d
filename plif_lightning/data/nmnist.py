"""N-MNIST (Orchard et al. 2015)."""

from dataclasses import dataclass
from functools import partial

from plif_lightning.data.archives import Archive
from plif_lightning.data.event_module import numbered
from plif_lightning.data.obtaining import Origin
from plif_lightning.data.published import PublishedEvents
from plif_lightning.events import readers
from plif_lightning.events.recording import Sensor
from plif_lightning.events.store import RawFile
from plif_lightning.runtime.extras import needed_by


@dataclass(eq=False, repr=False)
class NMNIST(PublishedEvents):
    """N-MNIST: 60,000 training and 10,000 test recordings of digits, 34x34 pixels."""

    time_steps: int = 10  # Table 3

    title = "N-MNIST"
    sensor = Sensor(34, 34)
    class_names = tuple("0123456789")

    @classmethod
    def origins(cls) -> dict[str, Origin]:
        with needed_by("the data set NMNIST"):
            from tonic import datasets

        published = datasets.NMNIST

        page = "https://data.mendeley.com/datasets/468j46mzdv"
        train = Archive(published.train_filename, published.train_md5, published.train_url, page, 4 * 10**9)
        test = Archive(published.test_filename, published.test_md5, published.test_url, page, 10**9)
        archives = ((train, (published.train_folder,)), (test, (published.test_folder,)))
        return {"original": Origin("NMNIST", archives, (60_000, 10_000))}

    def raw_files(self, train: bool) -> list[RawFile]:
        part = "Train" if train else "Test"
        return [
            RawFile(f"{part}/{digit}/{path.name}", (path,), partial(readers.single, readers.read_nmnist), label)
            for label, digit in enumerate(self.class_names)
            for _, path in numbered(self.folder / part / digit, ".bin")
        ]
