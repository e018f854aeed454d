"""Data in class folders: ROOT/train/CLASS/file and ROOT/test/CLASS/file."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from plif_lightning.errors import DatasetNotFoundError, UserError

_log = logging.getLogger(__name__)
# Files of those that are not read that a warning names.
_NAMED = 5


@dataclass(frozen=True)
class ClassFolders:
    """The files of a data set, sorted by class and name.

    Args:
        root: holds `train` and `test`, with a folder for each class in each.
        suffixes: of the files that count, in lower case; others are left alone, see `say_what_is_left_out`.
        what: they are, for messages.
    """

    root: Path
    suffixes: Collection[str]
    what: str

    @property
    def title(self) -> str:
        """The name of the root, of a link its own."""
        return Path(os.path.abspath(self.root)).name  # noqa: PTH100 (which would follow links)

    def classes(self) -> tuple[str, ...]:
        """Names of the class folders of the training set, sorted.

        Raises:
            UserError: there are none, or the test set has others.
        """
        train, test = (set(self._folders(part)) for part in ("train", "test"))
        if more := sorted(test - train):
            raise UserError(
                f"{self.root / 'test' / more[0]} is a class that {self.root / 'train'} does not have: name the class "
                "folders of both alike."
            )
        if len(train) < 2:
            raise UserError(
                f"{self.root / 'train'} has one class folder, {min(train)}: there is nothing to tell apart."
            )
        return tuple(sorted(train))

    def _folders(self, part: str) -> list[str]:
        folder = self.root / part
        if not folder.is_dir():
            raise DatasetNotFoundError(
                f"{folder} does not exist: data.root must hold train/CLASS/ and test/CLASS/ with {self.what} in them."
            )
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        if not names:
            raise DatasetNotFoundError(f"{folder} has no class folders: put {self.what} into {folder / 'CLASS'}.")
        return names

    def say_what_is_left_out(self) -> None:
        """Warns of everything in the class folders that is not read, by name and number."""
        left: list[Path] = []
        for part in ("train", "test"):
            folder = self.root / part
            if not folder.is_dir():
                continue
            entries = [entry for entry in os.scandir(folder) if entry.name[0] != "."]
            left += [Path(entry.path) for entry in entries if not entry.is_dir()]
            for inside in (os.scandir(entry.path) for entry in entries if entry.is_dir()):
                left += [Path(entry.path) for entry in inside if entry.name[0] != "." and not self._counts(entry)]
        if left:
            kinds = Counter("folders" if path.is_dir() else path.suffix.lower() or "no ending" for path in left)
            names = [str(path.relative_to(self.root)) for path in sorted(left)]
            _log.warning(
                "%d files in %s are not read (%s): %s%s. Those that are read end in %s, and lie in a class folder.",
                len(left),
                self.root,
                ", ".join(f"{kind}: {number}" for kind, number in sorted(kinds.items())),
                ", ".join(names[:_NAMED]),
                f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "",
                ", ".join(sorted(self.suffixes)),
            )

    def _counts(self, entry: "os.DirEntry[str]") -> bool:
        # Not of pipes: to open one would wait for whoever writes into it.
        readable = entry.is_file() or entry.is_dir() or entry.is_symlink()
        return entry.name[0] != "." and Path(entry.name).suffix.lower() in self.suffixes and readable

    def files(self, train: bool) -> Iterator[tuple[int, Path]]:
        """(class, path) of each file of the training or test set.

        Raises:
            UserError: a class folder holds no such file.
        """
        part, classes = "train" if train else "test", self.classes()
        there = set(self._folders(part))
        for label, name in enumerate(classes):
            if name not in there:
                continue  # nothing of it is tested
            folder = self.root / part / name
            paths = sorted(Path(entry.path) for entry in os.scandir(folder) if self._counts(entry))
            if not paths:
                raise UserError(
                    f"{folder} holds no file that ends in {', '.join(sorted(self.suffixes))}: put {self.what} into it, "
                    "or take the folder away."
                )
            yield from ((label, path) for path in paths)
