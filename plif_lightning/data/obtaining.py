"""Find, download and unpack the raw files of a published data set."""

from dataclasses import dataclass
from pathlib import Path

from plif_lightning.data.archives import Archive, fetch, unpack, verify
from plif_lightning.errors import DatasetNotFoundError

# Used because `ndownloader` URLs return a web page.
FIGSHARE = "https://api.figshare.com/v2/file/download"


def by_api(url: str) -> str:
    """URL of figshare's API for the file of an `ndownloader` URL."""
    return f"{FIGSHARE}/{url.rsplit('/', 1)[-1]}"


@dataclass(frozen=True)
class Origin:
    """One publication of a data set's recordings.

    Attributes:
        folder: their folder below `data.root`.
        archives: each archive and the folders that it unpacks to.
        counts: published numbers of training and test recordings.
    """

    folder: str
    archives: tuple[tuple[Archive, tuple[str, ...]], ...]
    counts: tuple[int, int]


class Obtaining:
    """Download, verify and unpack the files of an origin.

    Args:
        title: title of the data set, for messages.
        name: name of the origin, for messages.
        origin: the publication to obtain.
        root: folder that contains the data set's folder.
        download: download missing archives.
        allow_partial: accept an incomplete data set.
    """

    def __init__(
        self, title: str, name: str, origin: Origin, root: Path, download: bool = True, allow_partial: bool = False
    ) -> None:
        self.called, self.origin = f"{title} ({name})", origin
        self.title, self.folder = title, root / origin.folder
        self.download, self.allow_partial = download, allow_partial

    @property
    def missing(self) -> list[str]:
        """Folders of the origin that do not exist."""
        return [name for _, names in self.origin.archives for name in names if not (self.folder / name).is_dir()]

    @property
    def suffices(self) -> bool:
        """True if the data set is complete, or partially there and `allow_partial` is set."""
        missing = self.missing
        return not missing or (
            self.allow_partial and len(missing) < sum(len(names) for _, names in self.origin.archives)
        )

    def wanted(self) -> list[tuple[Archive, tuple[str, ...]]]:
        """Archives of the missing folders; none if `suffices`."""
        if self.suffices:
            return []
        missing = set(self.missing)
        return [(archive, names) for archive, names in self.origin.archives if missing & set(names)]

    def require_obtainable(self) -> None:
        """Check that `obtain` can get all archives; call it before anything is written.

        Raises:
            DatasetNotFoundError: an archive must be downloaded by hand, or `data.download` is off.
        """
        for archive, _ in self.wanted():
            if not (self.folder / archive.name).is_file() and (archive.url is None or not self.download):
                how = "Pass --data.download=true, or fetch" if archive.url is not None else "Fetch"
                raise DatasetNotFoundError(
                    f"{self.called} is not in {self.folder}. {how} {archive.name} (md5 {archive.md5}) "
                    f"from {archive.page} and put it there, or point --data.root to where it is."
                )

    def obtain(self) -> bool:
        """Download (if possible) and unpack all missing folders. True if any were missing.

        Raises:
            UserError: an archive cannot be downloaded, is not the published file, or lacks an expected folder.
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
        """Compare the number of training or test recordings with the published one.

        Raises:
            DatasetNotFoundError: it differs, and `allow_partial` does not permit that.
        """
        part, published = ("training", self.origin.counts[0]) if train else ("test", self.origin.counts[1])
        if found == published or (found > 0 and self.allow_partial):
            return
        if found > published:
            way = "Remove what does not belong there, or pass --data.allow_partial=true to use all of them."
        elif found == 0:
            way = "Put them there, or point --data.root to them."
        else:
            way = "Add the missing ones, or pass --data.allow_partial=true to use what is there."
        raise DatasetNotFoundError(
            f"{self.called} has {published:,} {part} recordings, but {found:,} are in {self.folder}. {way}"
        )
