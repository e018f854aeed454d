"""User recordings of events in class folders."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from plif_lightning.data.event_module import EventDataModule
from plif_lightning.data.folders import ClassFolders
from plif_lightning.errors import UserError
from plif_lightning.events import readers
from plif_lightning.events.recording import Sensor
from plif_lightning.events.remote import classes_at
from plif_lightning.events.store import EventStore, RawFile, StoreError


@dataclass(eq=False, repr=False)
class EventFolder(EventDataModule):
    """Recordings in class folders: ROOT/train/CLASS/* and ROOT/test/CLASS/*, one per file.

    Formats: .aedat (2.0 of a DVS128, 3.1), .aedat4, .bin (N-MNIST's format), .npz with the arrays x, y, t [us] and p,
    or .npy with a structured array of these fields.

    Args:
        sensor: height and width of the camera [pixels]; required.
    """

    sensor: tuple[int, int] | None = None  # type: ignore[assignment,misc]

    title = "recordings in class folders"  # an instance uses its folder's name

    def __post_init__(self) -> None:
        if self.sensor is None:
            raise UserError(
                "data.sensor must be given: the camera's height and width, such as --data.sensor=[128,128]."
            )
        self.sensor = Sensor.of(self.sensor)
        super().__post_init__()
        self.folders = ClassFolders(Path(self.root), readers.SUFFIXES, "recordings")
        self.title = self.folders.title  # type: ignore[misc]

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders, sorted; if the folders are missing, the store's class names."""
        if not self.there:
            kind = self._kind(train=True)
            found: tuple[str, ...] = ()
            if self.address is not None:
                found = classes_at(self.address, kind)
            else:
                with suppress(StoreError):
                    found = EventStore(self.store_folder, kind).classes
            if found:
                return found
        return self.folders.classes()

    @property
    def there(self) -> bool:
        return any((Path(self.root) / part).is_dir() for part in ("train", "test"))

    def require_obtainable(self) -> None:
        if not self.there:
            self.folders.classes()  # raises an error that names what is missing

    def prepare_data(self) -> None:
        super().prepare_data()
        self.folders.say_what_is_left_out()

    @property
    def classes_of_files(self) -> tuple[str, ...]:
        return self.class_names if self.there else ()

    @property
    def store_name(self) -> str:
        return str(self.sensor)

    def raw_files(self, train: bool) -> list[RawFile]:
        return [
            RawFile(
                "/".join(path.parts[-3:]),
                (path,),
                partial(readers.single, readers.read_any),
                label,
                own_process=path.suffix.lower() in readers.TRUSTING,
            )
            for label, path in self.folders.files(train)
        ]
