"""Data sets of tonic whose recordings have a two-dimensional sensor and one class each."""

import inspect
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from plif_lightning.data.event_module import OWN_STORE, EventDataModule
from plif_lightning.data.splits import holdout_split
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.events.recording import Recording, RecordingError, Sensor, recording_of
from plif_lightning.events.store import RawFile
from plif_lightning.runtime.extras import needed_by


@dataclass(eq=False, repr=False)
class TonicEvents(EventDataModule):
    """A class of `tonic.datasets`. tonic downloads, verifies and reads it; this package stores, slices and loads it.

    Args:
        name: name of the class, such as POKERDVS; required.
        sensor: height and width of the camera; required if tonic does not know them, as for NCALTECH101.
        test_fraction: share of each class, its last recordings, for the test set if tonic defines none.
        allow_partial: accept fewer recordings than tonic expects.
    """

    name: str | None = None
    sensor: tuple[int, int] | None = None  # type: ignore[assignment,misc]
    test_fraction: float = 0.1
    allow_partial: bool = False

    title = "a data set of tonic"  # an instance uses the data set's name

    def __post_init__(self) -> None:
        if self.name is None:
            raise UserError(f"data.name must be given: one of {', '.join(known())}, such as --data.name=POKERDVS.")
        kind = _class(self.name)
        size = getattr(kind, "sensor_size", None)
        if size is not None and self.sensor is None:
            self.sensor = (size[1], size[0])
        if self.sensor is None:
            raise UserError(
                f"data.sensor must be given: tonic does not know the sensor of {self.name}; height and width, such as "
                "--data.sensor=[180,240]."
            )
        self.sensor = Sensor.of(self.sensor)
        self.title = f"{self.name} of tonic"  # type: ignore[misc]
        if not 0 < self.test_fraction < 1:
            raise UserError(f"data.test_fraction must lie in (0, 1), got {self.test_fraction}.")
        super().__post_init__()

    @property
    def home(self) -> Path:
        assert self.name is not None
        return Path(self.root) / self.name

    @property
    def store_name(self) -> str:
        share = "" if "train" in _parameters(_class(self.name)) else f"-{self.test_fraction:g}"
        return f"tonic-{self.sensor}{share}"

    def _source(self, train: bool) -> "_Source":
        assert self.name is not None
        return _Source(self.name, str(Path(self.root)), train, self.allow_partial)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Class names from tonic; if it has none, the recordings' labels, sorted, or those of an existing store."""
        classes: Any = getattr(_class(self.name), "classes", None)
        if isinstance(classes, dict):
            classes = sorted(classes, key=lambda name: classes[name])
        if classes is None and not self.there:
            classes = self._classes_of_store() or None
        if classes is None:
            classes = sorted({str(target) for target in self._data(train=True).targets})
        return tuple(map(str, classes))

    @property
    def classes_of_files(self) -> tuple[str, ...]:
        named = getattr(_class(self.name), "classes", None) is not None
        return () if named or not self.there else self.class_names

    def _data(self, train: bool) -> Any:
        return _opened(self._source(train), self.download)

    def prepare_data(self) -> None:
        _opened.cache_clear()  # files may have changed since
        super().prepare_data()

    @property
    def there(self) -> bool:
        try:
            for train in (True, False):
                _opened(self._source(train), download=False)
        except DatasetNotFoundError:
            return False
        return True

    def obtain(self) -> bool:
        """Let tonic download missing files. Always True."""
        for train in (True, False):
            self._data(train)
        return True

    def raw_files(self, train: bool) -> list[RawFile]:
        source = self._source(train)
        data = _opened(source, download=False)
        # tonic's order partly depends on the file system; sorting by class and name makes it deterministic.
        home = Path(data.location_on_system)
        listed = sorted(
            (self._label(target), "" if _file(data, i) == home else _file(data, i).relative_to(home).as_posix(), i)
            for i, target in enumerate(data.targets)
        )
        if "train" not in _parameters(_class(self.name)):
            for_training, for_test = holdout_split(torch.tensor([label for label, *_ in listed]), self.test_fraction)
            listed = [listed[place] for place in (for_training if train else for_test).tolist()]
        count = len(data.targets)
        # Recordings that tonic holds in memory: the first one stands for all files, which tell if a store is stale.
        together = iter([_files_below(home, self.store_folder)])
        return [
            RawFile(
                name or str(i),
                (_file(data, i),) if name else next(together, (home,)),
                partial(read_one, source, i, name, count),
                label,
            )
            for label, name, i in listed
        ]

    def _label(self, target: Any) -> int:
        if isinstance(target, str):
            if target not in self.class_names:
                raise UserError(f"{self.title} has a recording of the unknown class {target!r}.")
            return self.class_names.index(target)
        return int(target)


@dataclass(frozen=True)
class _Source:
    """Picklable arguments for opening the training or test set of a tonic data set."""

    name: str
    root: str
    train: bool
    allow_partial: bool


@lru_cache(maxsize=4)
def _opened(source: _Source, download: bool) -> Any:
    """The tonic data set.

    Raises:
        DatasetNotFoundError: it is missing, and cannot or may not be downloaded.
    """
    kind = _class(source.name)

    def refuse(self: Any) -> None:
        where = f"{getattr(self, 'filename', 'its files')} from {getattr(self, 'url', 'its page')}"
        raise DatasetNotFoundError(
            f"{source.name} of tonic is not in {self.location_on_system}. Pass --data.download=true, or put {where} "
            "there."
        )

    methods: dict[str, Any] = {} if download else {"download": refuse}
    if source.allow_partial:
        # Other files than those of the event store, which lies beside them.
        methods["_check_exists"] = lambda self: any(
            path.is_file() and path.relative_to(self.location_on_system).parts[0] != OWN_STORE
            for path in Path(self.location_on_system, self.folder_name or "").glob("*/**/*")
        )
    # Same class name, because tonic names the folder after it.
    kind = type(kind.__name__, (kind,), methods)
    arguments = {"train": source.train} if "train" in _parameters(kind) else {}
    try:
        return kind(save_to=source.root, **arguments)
    except UserError:
        raise
    except SystemExit as error:  # raised by DVSLip, which must be downloaded by hand
        raise DatasetNotFoundError(
            f"{source.name} of tonic is not in {source.root}, and tonic does not fetch it: put its files into "
            f"{Path(source.root) / source.name}."
        ) from error
    except (OSError, RuntimeError, urllib.error.URLError, EOFError, ValueError) as error:
        raise DatasetNotFoundError(
            f"{source.name} of tonic could not be obtained ({error}). Put its files into "
            f"{Path(source.root) / source.name} as tonic expects them, or point --data.root to where they are."
        ) from error


def read_one(
    source: _Source, index: int, name: str, count: int, files: tuple[Path, ...], label: int
) -> list[tuple[int, Recording]]:
    """Recording `index` of `count`, read by tonic; may run in a separate process."""
    data = _opened(source, download=False)
    if len(data) != count or (name and not _file(data, index).as_posix().endswith(name)):
        raise RecordingError(f"{files[0]}: {source.name} changed while it was being read. Start again.")
    try:
        events, _ = data[index]
    except (OSError, ValueError, IndexError, KeyError, EOFError, TypeError) as error:
        raise RecordingError(f"{files[0]} cannot be read by tonic ({error}). It is damaged or another file.") from error
    return [(label, recording_of(events, name=str(files[0])))]


def _file(data: Any, index: int) -> Path:
    """File of a recording; the data set's folder if tonic does not expose the file."""
    found = data.data[index]
    return Path(found) if isinstance(found, str) else Path(data.location_on_system)


def _files_below(home: Path, store: Path) -> tuple[Path, ...]:
    """The data set's folder and all files in it, but those of event stores."""
    files = (path for path in sorted(home.rglob("*")) if path.is_file())
    stores = (home / OWN_STORE, home / store)
    return (home, *(path for path in files if not any(path.is_relative_to(one) for one in stores)))


def _parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.__init__).parameters


def _required(kind: Any) -> set[str]:
    """Names of the parameters without a default."""
    return {name for name, parameter in _parameters(kind).items() if parameter.default is parameter.empty}


def known() -> list[str]:
    """Names of the supported classes of `tonic.datasets`."""
    with needed_by("a data set of tonic"):
        import tonic.datasets

    return sorted(name for name in tonic.datasets.__all__ if not _why_unsupported(getattr(tonic.datasets, name)))


def _why_unsupported(kind: Any) -> str:
    """Reason why a class of `tonic.datasets` is not supported; empty if it is."""
    size = getattr(kind, "sensor_size", None)
    if size is None:
        if not hasattr(kind, "file_md5"):
            return "it holds no events"
    elif len(size) != 3 or size[1] < 2:
        return f"its sensor of {' x '.join(map(str, size))} is not two-dimensional"
    if "save_to" not in _parameters(kind) or _required(kind) - {"self", "save_to"}:
        return "it has no training and test set of labelled recordings"
    if size is not None and not hasattr(kind, "classes"):
        return "its recordings have no classes"
    return ""


def _class(name: str | None) -> Any:
    """Class of `tonic.datasets` by name.

    Raises:
        UserError: there is no such class, or it is not supported.
    """
    with needed_by("a data set of tonic"):
        import tonic.datasets

    kind = getattr(tonic.datasets, str(name), None)
    if not inspect.isclass(kind):
        raise UserError(f"data.name must be a class of tonic.datasets: one of {', '.join(known())}; got {name!r}.")
    if reason := _why_unsupported(kind):
        raise UserError(f"data.name={name} is not supported: {reason}. Supported are {', '.join(known())}.")
    return kind
