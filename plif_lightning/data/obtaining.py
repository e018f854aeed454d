"""The raw files of a data set's publication: what is there, what is missing, and how it gets there."""

from dataclasses import dataclass
from pathlib import Path

from plif_lightning.data.archives import Archive, fetch, unpack, verify
from plif_lightning.errors import DatasetNotFoundError

# the address with `ndownloader` answers with a web page
FIGSHARE = "https://api.figshare.com/v2/file/download"


def by_api(url: str) -> str:
    """The address at which figshare's API gives the file of an address with `ndownloader`."""
    return f"{FIGSHARE}/{url.rsplit('/', 1)[-1]}"


@dataclass(frozen=True)
class Origin:
    """One publication of a data set's recordings.

    Attributes:
        folder: that holds them, below `data.root`.
        archives: file and the folders that unpacking it gives.
        counts: published numbers of training and test recordings.
    """

    folder: str
    archives: tuple[tuple[Archive, tuple[str, ...]], ...]
    counts: tuple[int, int]


class Obtaining:
    """Fetches, verifies and unpacks an origin's files.

    Args:
        title: of the data set, for messages.
        name: of the origin, for messages.
        origin: what is wanted.
        root: folder that holds the data set's own folder.
        download: whether missing archives may be downloaded.
        allow_partial: whether what is there is enough.
    """

    def __init__(
        self, title: str, name: str, origin: Origin, root: Path, download: bool = True, allow_partial: bool = False
    ) -> None:
        self.called, self.origin = f"{title} ({name})", origin
        self.title, self.folder = title, root / origin.folder
        self.download, self.allow_partial = download, allow_partial

    @property
    def missing(self) -> list[str]:
        """Folders of the origin that are not there."""
        return [name for _, names in self.origin.archives for name in names if not (self.folder / name).is_dir()]

    @property
    def suffices(self) -> bool:
        """Whether nothing is missing, or something is there and that is allowed to be enough."""
        missing = self.missing
        return not missing or (
            self.allow_partial and len(missing) < sum(len(names) for _, names in self.origin.archives)
        )

    def wanted(self) -> list[tuple[Archive, tuple[str, ...]]]:
        """The archives that would give what is not in the folder."""
        if self.suffices:
            return []
        missing = set(self.missing)
        return [(archive, names) for archive, names in self.origin.archives if missing & set(names)]

    def require_obtainable(self) -> None:
        """To be asked before anything is written.

        Raises:
            DatasetNotFoundError: an archive must be fetched by hand, or `data.download` is off.
        """
        for archive, _ in self.wanted():
            if not (self.folder / archive.name).is_file() and (archive.url is None or not self.download):
                how = "Pass --data.download=true, or fetch" if archive.url is not None else "Fetch"
                raise DatasetNotFoundError(
                    f"{self.called} is not in {self.folder}. {how} {archive.name} (md5 {archive.md5}) "
                    f"from {archive.page} and put it there, or point --data.root to where it is."
                )

    def obtain(self) -> bool:
        """Unpacks, and where that is possible downloads, whatever is not in the folder; whether that was anything.

        Raises:
            UserError: it cannot be fetched, is not the published file, or does not unpack to what is wanted.
        """
        wanted = self.wanted()
        for archive, names in wanted:
            path = self.folder / archive.name
            if path.is_file():
                verify(path, archive)
            else:
                path = fetch(archive, self.folder)
            unpack(path, self.folder, archive.limit, nested=True)
            for name in names:
                if not (self.folder / name).is_dir():
                    raise DatasetNotFoundError(
                        f"{path} holds no folder {name!r}: it is not {archive.name} of {self.title}."
                    )
        return bool(wanted)

    def require_count(self, train: bool, found: int) -> None:
        """Compares the recordings of the training or test set with the published number.

        Raises:
            DatasetNotFoundError: it is another one, and that is not allowed.
        """
        part, published = ("training", self.origin.counts[0]) if train else ("test", self.origin.counts[1])
        if found == published or (found > 0 and self.allow_partial):
            return
        if found > published:
            way = "Take away what does not belong there, or pass --data.allow_partial=true to take all of it."
        elif found == 0:
            way = "Put them there, or point --data.root to them."
        else:
            way = "Add the missing ones, or pass --data.allow_partial=true to take what is there."
        raise DatasetNotFoundError(
            f"{self.called} has {published:,} {part} recordings, but {found:,} are in {self.folder}. {way}"
        )
