"""Base class of all data modules: validation protocols, loaders and input shape."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import lightning as L
import torch
from torch import Tensor

from plif_lightning.data.loading import BatchedDataset, BatchPlan, ResumableLoader, make_loader
from plif_lightning.data.splits import holdout_split
from plif_lightning.errors import UserError
from plif_lightning.runtime.randomness import run_seed

_log = logging.getLogger(__name__)
Validation = Literal["test", "holdout"]
# Settings that may change once data sets are made: loaders read them.
_READ_BY_LOADERS = {"batch_size", "eval_batch_size", "drop_last", "num_workers", "download"}


class Part(NamedTuple):
    """Size of the training or test set.

    Attributes:
        name: `training` or `test`.
        counts: samples per class.
        bytes: size of the data that is read.
        events: number of events in all recordings; None for images.
    """

    name: str
    counts: list[int]
    bytes: int
    events: int | None = None


@dataclass(eq=False, repr=False)
class SpikingDataModule(L.LightningDataModule):
    """Base class of all data modules. A subclass implements `labels` and `dataset`.

    A subclass is a dataclass, too: its fields become arguments beside the inherited ones, and `--help` shows them all.

    Class attributes that a subclass sets:
        title: display name of the data set.
        input_shape: (C, H, W).
        class_names: one name per class.

    Args:
        root: folder that contains the data set's folder.
        time_steps: T, the simulated time-steps.
        validation: `test` validates on the test set and keeps its best epoch (Tables 2, 4, 5);
            `holdout` validates on a part of the training set and does not touch the test set (Table S2).
        holdout_fraction: share of each class that `holdout` takes from the training set.
        batch_size: training samples per process and step.
        eval_batch_size: samples per process and step in validation, test and prediction.
        drop_last: drop an incomplete last training batch.
        num_workers: loader processes; batches do not depend on their number.
        download: download the data set if it is missing.

    Raises:
        UserError: an argument is out of range.
    """

    title: ClassVar[str]
    input_shape: ClassVar[tuple[int, int, int]]
    class_names: ClassVar[tuple[str, ...]]

    root: str = "data"
    time_steps: int = 8
    validation: Validation = "test"
    holdout_fraction: float = 0.15
    batch_size: int = 16
    eval_batch_size: int = 128
    drop_last: bool = False
    num_workers: int = 0
    download: bool = True

    def __post_init__(self) -> None:
        super().__init__()
        self.root = os.fspath(self.root)
        if self.root.startswith("~"):
            self.root = str(Path(self.root).expanduser())
        for kind in type(self).__mro__[: type(self).__mro__.index(SpikingDataModule)]:
            own = [name for name, hint in vars(kind).get("__annotations__", {}).items() if "ClassVar" not in str(hint)]
            if own and "__dataclass_fields__" not in vars(kind):
                raise TypeError(
                    f"{kind.__name__} has the fields {own}: decorate it with @dataclass(eq=False, repr=False)."
                )
        for name, least in (("time_steps", 1), ("batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"data.{name} must be at least {least}, got {value}.")
        self._require_known("validation", get_args(Validation))
        if not 0 < self.holdout_fraction < 1:
            raise UserError(f"data.holdout_fraction must lie in (0, 1), got {self.holdout_fraction}.")
        self.train_set: BatchedDataset | None = None
        self.val_set: BatchedDataset | None = None
        self.test_set: BatchedDataset | None = None
        self._made_with: dict[str, Any] = {}  # settings of the data sets
        # True if the last `prepare_data` downloaded, unpacked or built anything.
        self.prepared = False

    def _require_known(self, name: str, known: Sequence[str]) -> None:
        if (value := getattr(self, name)) not in known:
            raise UserError(f"data.{name} must be one of {', '.join(known)}, got {value!r}.")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def val_name(self) -> str:
        """Prefix of the validation metrics; it says so if the test set is used for model selection."""
        return "test_as_val" if self.validation == "test" else "val"

    @property
    def protocol(self) -> str:
        """Description of the evaluation protocol."""
        if self.validation == "test":
            return "A: best test epoch (selected on the test set, as in Tables 2, 4 and 5)"
        share = f"{100 * self.holdout_fraction:g}%"
        return f"B: best-on-validation epoch, {share} of each class held out (as in Table S2)"

    def labels(self, train: bool) -> Tensor:
        """Labels of the training or test set, int64 [n]; reads the files."""
        raise NotImplementedError

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> BatchedDataset:
        """Data set of the samples `indices` (None: all) of the training or test set."""
        raise NotImplementedError

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Indices of the training set's samples for training and for validation."""
        return holdout_split(self.labels(train=True), self.holdout_fraction)

    def setup(self, stage: str | None = None) -> None:
        """Create the data sets of a stage (fit, validate, test or predict; None: all).

        Raises:
            UserError: a setting was changed after data sets were created with it.
        """
        if changed := [name for name, value in self._made_with.items() if getattr(self, name) != value]:
            raise UserError(
                f"{type(self).__name__}: {', '.join(changed)} changed after the data sets were made, which keep the "
                "old value. Make another data module."
            )
        if stage in ("fit", "validate", None) and self.train_set is None:
            if self.validation == "holdout":
                train, val = self.held_out()
                self._require_classes(train, val)
                self.train_set = self.dataset(train=True, indices=train, augment=True)
                self.val_set = self.dataset(train=True, indices=val, augment=False)
            else:
                self.train_set = self.dataset(train=True, indices=None, augment=True)
                self.val_set = self.dataset(train=False, indices=None, augment=False)
        if stage in ("test", "predict", None) and self.test_set is None:
            self.test_set = self.dataset(train=False, indices=None, augment=False)
        names = [field.name for field in fields(self) if field.name not in _READ_BY_LOADERS]
        self._made_with = {name: getattr(self, name) for name in names}

    def _forget(self) -> None:
        """Forget what was read of the files before data sets are made of them: they may have changed."""
        for name in ("class_names", "input_shape"):
            self.__dict__.pop(name, None)  # where they are cached

    def _require_same(self, same: bool) -> None:
        """Refuse files that are others than those that the data sets were made of.

        Raises:
            UserError: they are.
        """
        if not same:
            raise UserError(
                f"the files of {self.title} in {self.root} changed after the data sets were made of them. Make another "
                "data module; after a fit, `test --ckpt_path` does."
            )

    def _require_classes(self, train: Tensor, val: Tensor) -> None:
        """Refuse a validation set that leaves no training sample of a class, and warn of one without a class.

        Raises:
            UserError: there is no training sample of a class.
        """
        labels = self.labels(train=True)
        there = labels.bincount(minlength=self.num_classes) > 0
        without = [
            [self.class_names[i] for i in (there & (labels[part].bincount(minlength=len(there)) == 0)).nonzero()]
            for part in (train, val)
        ]
        if without[0]:
            raise UserError(
                f"data.holdout_fraction={self.holdout_fraction} leaves no training sample of "
                f"{', '.join(without[0][:5])}: pass a smaller one."
            )
        if without[1]:
            _log.warning(
                "The validation set has no sample of %s%s: its accuracy says nothing about them. Pass a larger "
                "data.holdout_fraction.",
                ", ".join(without[1][:5]),
                f" and {len(without[1]) - 5} more classes" if len(without[1]) > 5 else "",
            )

    def _plan(self, dataset: BatchedDataset | None, train: bool) -> ResumableLoader:
        if dataset is None:
            raise UserError(f"{type(self).__name__} has read no data yet: call prepare_data() and setup() first.")
        trainer, seed = self.trainer, run_seed()
        if train and trainer is not None and trainer.world_size > 1:
            seed = trainer.strategy.broadcast(seed)  # processes of an unseeded run must shuffle alike
        plan = BatchPlan(
            len(dataset),
            self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            drop_last=train and self.drop_last,
            seed=seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return make_loader(dataset, plan, self.num_workers)

    def train_dataloader(self) -> ResumableLoader:
        return self._plan(self.train_set, train=True)

    def val_dataloader(self) -> ResumableLoader:
        return self._plan(self.val_set, train=False)

    def test_dataloader(self) -> ResumableLoader:
        return self._plan(self.test_set, train=False)

    def predict_dataloader(self) -> ResumableLoader:
        return self._plan(self.test_set, train=False)

    def inventory(self) -> list[Part]:
        """Sizes of the training and the test set."""
        raise NotImplementedError

    def identity(self, train: bool = True) -> str:
        """Identity of the training set, from which the holdout is taken, or of the test set; changes if that does.

        Call `setup` first.
        """
        return str(len(self.labels(train)))

    def reading(self) -> str:
        """Assumptions of a network trained on this data: class order and input scaling."""
        return f"classes {', '.join(self.class_names)}"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What lies between a stored sample and the network's input, in plain values, for `export.json`."""
        channels, *size = self.input_shape
        return {"channels": channels, "size": size}

    def verify(self) -> int:
        """Read all prepared data and compare its checksums.

        Returns:
            Number of checksums compared.

        Raises:
            UserError: a checksum differs.
        """
        return 0

    @property
    def origin_note(self) -> str:
        """Publication of the data set, and whether it is complete; empty if there is only one publication."""
        return ""

    def sizes(self) -> dict[str, int]:
        """Number of samples of each data set that `setup` created."""
        parts = {"training": self.train_set, self.val_name.replace("_", " "): self.val_set, "test": self.test_set}
        return {name: len(part) for name, part in parts.items() if part is not None}

    def describe(self) -> str:
        """Title, origin and sizes of the data sets that `setup` created."""
        note = f" ({self.origin_note})" if self.origin_note else ""
        return f"{self.title}{note}: " + ", ".join(f"{size:,} {name}" for name, size in self.sizes().items())


def place_below(store: str, home: Path) -> Path:
    """Folder of a data set below a shared `store`; a hash keeps homes of the same name apart."""
    place = hashlib.blake2b(os.fspath(home.resolve()).encode(), digest_size=4).hexdigest()
    return Path(store).expanduser().absolute() / f"{home.absolute().name}-{place}"


def as_index(indices: Tensor | None, n: int) -> Tensor:
    """Indices into the original data set, int64 [n]; all if `indices` is None."""
    return torch.arange(n) if indices is None else indices
