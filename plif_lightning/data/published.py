"""Base class of published neuromorphic data sets, whose archives are downloaded, verified and unpacked."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from plif_lightning.data.event_module import EventDataModule
from plif_lightning.data.obtaining import Obtaining, Origin
from plif_lightning.errors import UserError
from plif_lightning.runtime.files import not_written
from plif_lightning.runtime.locks import folder_lock


@dataclass(eq=False, repr=False)
class PublishedEvents(EventDataModule):
    """Base class of published event data sets. A subclass implements `origins` and `raw_files`.

    Args:
        source: publication of the recordings; different publications are different data.
        allow_partial: accept fewer recordings than were published.
    """

    source: str = "original"
    allow_partial: bool = False

    def __post_init__(self) -> None:
        self._origins = self.origins()
        self._require_known("source", tuple(self._origins))
        super().__post_init__()
        origin = self._origins[self.source]
        self.files = Obtaining(self.title, self.source, origin, Path(self.root), self.download, self.allow_partial)
        self.folder = self.files.folder

    @classmethod
    def origins(cls) -> dict[str, Origin]:
        """Publications of the recordings, by their value of `source`."""
        raise NotImplementedError

    @property
    def home(self) -> Path:
        return Path(self.root) / self._origins[self.source].folder.split("/")[0]

    @property
    def called(self) -> str:
        return f"{self.title} ({self.source})"

    @property
    def store_name(self) -> str:
        return self.source

    @property
    def there(self) -> bool:
        return self.files.suffices

    def require_obtainable(self) -> None:
        self.files.require_obtainable()

    def obtain(self) -> bool:
        waiting = folder_lock(self.folder, self._unwritable, self._warn_of_waiting)
        with waiting if self.files.wanted() else nullcontext():
            return self.files.obtain()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(not_written(f"the files of {self.title}", self.folder, "data.root", error))

    def require_count(self, train: bool, found: int) -> None:
        self.files.require_count(train, found)

    @property
    def origin_note(self) -> str:
        """Publication of the recordings, and whether it is complete."""
        counts = self.files.origin.counts
        if all(len(self.event_store(train)) == n for train, n in zip((True, False), counts, strict=True)):
            return self.source
        return f"{self.source}, a PART of its {' and '.join(f'{n:,}' for n in counts)} recordings"
