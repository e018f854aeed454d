"""Data in class folders: ROOT/train/CLASS/file and ROOT/test/CLASS/file."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from plif_lightning.errors import DatasetNotFoundError, UserError


@dataclass(frozen=True)
class ClassFolders:
    """The files of a data set, sorted by class and name.

    Args:
        root: holds `train` and `test`, with a folder for each class in each.
        suffixes: of the files that count, in lower case; others are left alone.
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
            paths = sorted(
                Path(entry.path)
                for entry in os.scandir(folder)
                if not entry.name.startswith(".") and Path(entry.name).suffix.lower() in self.suffixes
            )
            if not paths:
                raise UserError(
                    f"{folder} holds no file that ends in {', '.join(sorted(self.suffixes))}: put {self.what} into it, "
                    "or take the folder away."
                )
            yield from ((label, path) for path in paths)
