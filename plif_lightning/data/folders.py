"""Data in class folders: ROOT/train/CLASS/file and ROOT/test/CLASS/file, or ROOT/CLASS/file."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plif_lightning.errors import DatasetNotFoundError, UserError

_log = logging.getLogger(__name__)
# Number of ignored files that a warning names.
_NAMED = 5


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder, except hidden ones."""
    return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]


def first_few(names: Sequence[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


@dataclass(frozen=True)
class ClassFolders:
    """The files of a data set, sorted by class and name.

    Args:
        root: folder with `train` and `test`, which contain one folder per class.
        suffixes: lower-case suffixes of the files to read; others are ignored, see `say_what_is_left_out`.
        what: plural noun for the files, for messages.
        together: the class folders lie in `root` itself, and hold the files of both sets.
        is_data: tells files of one kind that are data from others; None if their suffix says it.
    """

    root: Path
    suffixes: Collection[str]
    what: str
    together: bool = False
    is_data: Callable[[Path], bool] | None = None

    @property
    def title(self) -> str:
        """Name of the root folder; for a symbolic link, that of the link."""
        return Path(os.path.abspath(self.root)).name  # noqa: PTH100 (which would follow links)

    def classes(self) -> tuple[str, ...]:
        """Names of the training set's class folders, sorted.

        Raises:
            UserError: there are fewer than two, or the test set has one that the training set lacks.
        """
        train, test = (set(self._folders(self._part(train))) for train in (True, False))
        if more := sorted(test - train):
            raise UserError(
                f"{self.root / 'test' / more[0]} is a class that {self.root / 'train'} does not have: use the same "
                "class names in both."
            )
        if len(train) < 2:
            folder = self.root / self._part(train=True)
            raise UserError(f"{folder} has only one class folder, {min(train)}: at least two are needed.")
        return tuple(sorted(train))

    def _part(self, train: bool) -> str:
        """Folder of the class folders of the training or test set, below the root."""
        return "" if self.together else "train" if train else "test"

    def _folders(self, part: str) -> list[str]:
        folder = self.root / part
        if not folder.is_dir():
            layout = "CLASS/" if self.together else "train/CLASS/ and test/CLASS/"
            raise DatasetNotFoundError(
                f"{folder} does not exist: data.root must hold {layout} with {self.what} in them."
            )
        names = [entry.name for entry in _visible(folder) if entry.is_dir()]
        if not names:
            raise DatasetNotFoundError(f"{folder} has no class folders: put {self.what} into {folder / 'CLASS'}.")
        return names

    def _ignored(self) -> list[Path]:
        """Files and folders that `files` does not read, except hidden ones."""
        ignored: list[str] = []
        for folder in sorted({self.root / self._part(train) for train in (True, False)}):
            for entry in _visible(folder) if folder.is_dir() else ():
                if entry.is_dir():
                    ignored += [inside.path for inside in _visible(Path(entry.path)) if not self._counts(inside)]
                else:
                    ignored.append(entry.path)
        return sorted(map(Path, ignored))

    def say_what_is_left_out(self) -> None:
        """Warn of ignored files: how many there are, and the names of the first few."""
        ignored = self._ignored()
        depth = len(self.root.parts) + (2 if self.together else 3)
        wrong = {
            path: path.suffix.lower() in self.suffixes and len(path.parts) == depth and path.is_file()
            for path in ignored
        }
        unlike = [path for path in ignored if wrong[path]]
        if unlike:
            _log.warning(
                "%d files in %s are left out, because they do not look like %s: %s.",
                len(unlike),
                self.root,
                self.what,
                first_few([str(path.relative_to(self.root)) for path in unlike]),
            )
        ignored = [path for path in ignored if not wrong[path]]
        if not ignored:
            return
        kinds = Counter("folders" if path.is_dir() else path.suffix.lower() or "no ending" for path in ignored)
        _log.warning(
            "%d files in %s are ignored (%s): %s. Only files in a class folder that end in %s are read.",
            len(ignored),
            self.root,
            ", ".join(f"{kind}: {number}" for kind, number in sorted(kinds.items())),
            first_few([str(path.relative_to(self.root)) for path in ignored]),
            ", ".join(sorted(self.suffixes)),
        )

    def _ends_right(self, entry: os.DirEntry[str]) -> bool:
        # Excludes pipes, because opening one blocks until somebody writes into it.
        readable = entry.is_file() or entry.is_dir() or entry.is_symlink()
        return Path(entry.name).suffix.lower() in self.suffixes and readable

    def _counts(self, entry: os.DirEntry[str]) -> bool:
        if not self._ends_right(entry):
            return False
        return self.is_data is None or not entry.is_file() or self.is_data(Path(entry.path))

    def files(self, train: bool) -> Iterator[tuple[int, Path]]:
        """(label, path) of each file of the training or test set.

        Raises:
            UserError: a class folder holds no file to read.
        """
        part, classes = self._part(train), self.classes()
        there = set(self._folders(part))
        for label, name in enumerate(classes):
            if name not in there:
                continue  # the test set may lack a class
            folder = self.root / part / name
            paths = sorted(Path(entry.path) for entry in _visible(folder) if self._counts(entry))
            if not paths:
                unlike = [entry.name for entry in _visible(folder) if self._ends_right(entry)]
                no_data = f" ({unlike[0]} does not look like {self.what})" if unlike else ""
                raise UserError(
                    f"{folder} holds no file that ends in {', '.join(sorted(self.suffixes))}{no_data}: put {self.what} "
                    "into it, or remove the folder."
                )
            yield from ((label, path) for path in paths)
