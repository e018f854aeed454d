"""N-MNIST (Orchard et al. 2015)."""

from dataclasses import dataclass
from functools import partial

from plif_lightning.data.archives import Archive
from plif_lightning.data.event_module import EventDataModule, numbered
from plif_lightning.data.obtaining import Origin
from plif_lightning.events import readers
from plif_lightning.events.recording import Sensor
from plif_lightning.events.store import RawFile

_MENDELEY = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files"


@dataclass(eq=False, repr=False)
class NMNIST(EventDataModule):
    """N-MNIST: 60,000 training and 10,000 test recordings of digits, 34x34 pixels."""

    time_steps: int = 10  # Table 3

    title = "N-MNIST"
    sensor = Sensor(34, 34)
    class_names = tuple("0123456789")
    origins = {
        "original": Origin(
            "NMNIST",
            tuple(
                (
                    Archive(
                        name,
                        md5,
                        f"{_MENDELEY}/{place}/file_downloaded",
                        "https://data.mendeley.com/datasets/468j46mzdv",
                        limit,
                    ),
                    (entry,),
                )
                for name, md5, place, limit, entry in (
                    (
                        "train.zip",
                        "20959b8e626244a1b502305a9e6e2031",
                        "39c25547-014b-4137-a934-9d29fa53c7a0",
                        4 * 10**9,
                        "Train",
                    ),
                    (
                        "test.zip",
                        "69ca8762b2fe404d9b9bad1103e97832",
                        "05a4d654-7e03-4c15-bdfa-9bb2bcbea494",
                        10**9,
                        "Test",
                    ),
                )
            ),
            (60_000, 10_000),
        )
    }

    def raw_files(self, train: bool) -> list[RawFile]:
        part = "Train" if train else "Test"
        return [
            RawFile(f"{part}/{digit}/{path.name}", (path,), partial(readers.single, readers.read_nmnist), label)
            for label, digit in enumerate(self.class_names)
            for _, path in numbered(self.folder / part / digit, ".bin")
        ]
