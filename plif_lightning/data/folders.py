"""Files in class folders: ROOT/train/CLASS/file and ROOT/test/CLASS/file, or ROOT/CLASS/file."""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from plif_lightning.errors import DataNotFoundError, UserError
from plif_lightning.events.cache import Arrays, ArrayWriter, cached, find, key_of

_log = logging.getLogger(__name__)
# Number of names in a message.
_NAMED = 5


def first_few(names: Sequence[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder, except hidden ones, sorted by name."""
    return sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda e: e.name)


@dataclass
class ClassFolders:
    """The files of a data set, sorted by class and name.

    Args:
        root: folder with `train` and `test`, which contain a folder per class.
        suffixes: lower-case suffixes of the files to read; others are ignored, with a warning.
        what: plural noun for the files, for messages.
        together: the class folders lie in `root` itself, and hold the files of both sets.
    """

    root: Path
    suffixes: Collection[str]
    noun: str
    together: bool = False
    _files: dict[bool, list[tuple[str, int]]] = field(default_factory=dict, init=False)

    @property
    def title(self) -> str:
        """Name of the root folder; for a symbolic link, that of the link."""
        return Path(os.path.abspath(self.root)).name  # noqa: PTH100 (which would follow links)

    @property
    def exist(self) -> bool:
        """True if there are class folders, whatever they hold."""
        return self._split_folder(train=True).is_dir() and any(
            entry.is_dir() for entry in _visible(self._split_folder(train=True))
        )

    def _split_folder(self, train: bool) -> Path:
        """Folder of the class folders of the training or test set."""
        return self.root / ("" if self.together else "train" if train else "test")

    def _folders(self, train: bool) -> list[str]:
        folder = self._split_folder(train)
        if folder.is_dir() and (names := [entry.name for entry in _visible(folder) if entry.is_dir()]):
            return names
        raise DataNotFoundError(
            f"{folder} holds no class folders: data.root must hold {self.noun} as train/CLASS/* and test/CLASS/*"
            + (", or as CLASS/* with data.test_fraction." if self.noun == "recordings" else ".")
        )

    def classes(self) -> tuple[str, ...]:
        """Names of the training set's class folders, sorted.

        Raises:
            UserError: there are fewer than two, or the test set has a class that the training set lacks.
        """
        train, test = self._folders(train=True), self._folders(train=False)
        if len(train) < 2 or not set(test) <= set(train):
            raise UserError(
                f"{self.root} must hold at least two classes, and in the test set none that the training set lacks; "
                f"it has {', '.join(train)}, for testing {', '.join(test)}."
            )
        return tuple(train)

    def files(self, train: bool) -> list[tuple[str, int]]:
        """(path, label) of each file of the training or test set; looked for once.

        Raises:
            UserError: a class folder holds no file to read.
        """
        if train not in self._files:
            self._files[train] = self._list_files(train)
        return self._files[train]

    def arrays(
        self,
        folder: Path,
        options: Sequence[Any],
        train: bool,
        build: Callable[[list[tuple[str, int]], ArrayWriter], None],
    ) -> Arrays:
        """The arrays that `build` makes of the files of a set, from the cache in `folder` unless files were changed.

        `options` are what else they depend on, beside the classes.
        """
        if not self.exist and (stored := find(folder)) is not None:
            return stored
        files = self.files(train)
        stated = [(os.path.basename(path), label, os.stat(path).st_size) for path, label in files]  # noqa: PTH116, PTH119
        key = key_of(*options, self.classes(), stated)
        return cached(folder, key, partial(build, files), [path for path, _ in files])

    def _list_files(self, train: bool) -> list[tuple[str, int]]:
        files: list[tuple[str, int]] = []
        classes, ignored = self.classes(), []
        for name in self._folders(train):
            before, label = len(files), classes.index(name)
            for entry in _visible(self._split_folder(train) / name):
                if os.path.splitext(entry.name)[1].lower() in self.suffixes:  # noqa: PTH122 (faster for many files)
                    files.append((entry.path, label))  # no Path, which takes ten times as long
                else:
                    ignored.append(f"{name}/{entry.name}")
            if len(files) == before:
                raise UserError(
                    f"{self._split_folder(train) / name} has no file that ends in {', '.join(sorted(self.suffixes))}: "
                    f"put {self.noun} into it, or remove the folder."
                )
        if not train and (untested := sorted({*classes} - {*self._folders(train)})):
            _log.warning("%s has no %s: the test says nothing of them.", self._split_folder(train), first_few(untested))
        if ignored:
            _log.warning("%s: %d files are ignored: %s.", self._split_folder(train), len(ignored), first_few(ignored))
        return files
