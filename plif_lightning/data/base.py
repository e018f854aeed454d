"""What all data modules share: the protocols, the loaders, and what the network must know."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args

import lightning as L
import torch
from torch import Tensor

from plif_lightning.data.loading import BatchedDataset, BatchPlan, ResumableLoader, make_loader
from plif_lightning.data.splits import holdout_split
from plif_lightning.errors import UserError
from plif_lightning.runtime.randomness import run_seed

Validation = Literal["test", "holdout"]


class Part(NamedTuple):
    """What is there of the training or test set.

    Attributes:
        name: `training` or `test`.
        counts: samples of each class.
        bytes: of what is read.
        events: of all recordings; None for images.
    """

    name: str
    counts: list[int]
    bytes: int
    events: int | None = None


@dataclass(eq=False, repr=False)
class SpikingDataModule(L.LightningDataModule):
    """Base of all data modules. A subclass reads the data and names its shape; see `labels` and `dataset`.

    A subclass is a dataclass too: its fields are arguments beside the inherited ones, and `--help` shows them all.

    Class attributes that a subclass sets:
        title: the data set's name for people.
        input_shape: (C, H, W).
        class_names: one name per class.

    Args:
        root: folder that holds the data set's own folder.
        time_steps: T, the simulated time-steps.
        validation: `test` validates on the test set and keeps its best epoch (Tables 2, 4, 5);
            `holdout` validates on a part of the training set and leaves the test set alone (Table S2).
        holdout_fraction: share of each class that `holdout` takes from the training set.
        batch_size: training samples per process and step.
        eval_batch_size: samples per step in validation, test and prediction.
        drop_last: leave out an incomplete last training batch.
        num_workers: loader processes; the batches do not depend on them.
        download: fetch the data set if it is not there.

    Raises:
        UserError: an argument lies outside its range.
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
        if self.validation not in get_args(Validation):
            known = ", ".join(get_args(Validation))
            raise UserError(f"data.validation must be one of {known}, got {self.validation!r}.")
        if not 0 < self.holdout_fraction < 1:
            raise UserError(f"data.holdout_fraction must lie in (0, 1), got {self.holdout_fraction}.")
        self.train_set: BatchedDataset | None = None
        self.val_set: BatchedDataset | None = None
        self.test_set: BatchedDataset | None = None
        # whether the last `prepare_data` had anything to do
        self.prepared = False

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def val_name(self) -> str:
        """Prefix of the validation metrics: a test set used for model selection is called so."""
        return "test_as_val" if self.validation == "test" else "val"

    @property
    def protocol(self) -> str:
        """How accuracy is measured, in words."""
        if self.validation == "test":
            return "A: best test epoch (selected on the test set, as in Tables 2, 4 and 5)"
        share = f"{100 * self.holdout_fraction:g}%"
        return f"B: best-on-validation epoch, {share} of each class held out (as in Table S2)"

    def labels(self, train: bool) -> Tensor:
        """Labels of the training or test set, int64 [n]; reads the files."""
        raise NotImplementedError

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> BatchedDataset:
        """The samples `indices` (None: all) of the training or test set."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Makes the data sets of a stage (fit, validate, test or predict), or all of them."""
        if stage in ("fit", "validate", None) and self.train_set is None:
            if self.validation == "holdout":
                train, val = holdout_split(self.labels(train=True), self.holdout_fraction)
                self.train_set = self.dataset(train=True, indices=train, augment=True)
                self.val_set = self.dataset(train=True, indices=val, augment=False)
            else:
                self.train_set = self.dataset(train=True, indices=None, augment=True)
                self.val_set = self.dataset(train=False, indices=None, augment=False)
        if stage in ("test", "predict", None) and self.test_set is None:
            self.test_set = self.dataset(train=False, indices=None, augment=False)

    def _plan(self, dataset: BatchedDataset | None, train: bool) -> ResumableLoader:
        if dataset is None:
            raise UserError(f"{type(self).__name__} has read no data yet: call prepare_data() and setup() first.")
        trainer = self.trainer
        plan = BatchPlan(
            len(dataset),
            self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            drop_last=train and self.drop_last,
            seed=run_seed(),
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
        """What is there of the training and the test set."""
        raise NotImplementedError

    def identity(self) -> str:
        """Changes where the training set does: what a held-out part is taken from. After `setup`."""
        return str(len(self.labels(train=True)))

    def reading(self) -> str:
        """What a network that is trained on this takes for granted: the order of the classes, how values are scaled."""
        return f"classes {', '.join(self.class_names)}"

    def verify(self) -> int:
        """Reads everything that was prepared once, and compares it with what was written.

        Returns:
            How many checksums were compared.

        Raises:
            UserError: something differs.
        """
        return 0

    @property
    def origin_note(self) -> str:
        """Which of several publications of the data set this is, and whether all of it; empty where there is one."""
        return ""

    def sizes(self) -> dict[str, int]:
        """Number of samples of each part that was set up."""
        parts = {"training": self.train_set, self.val_name.replace("_", " "): self.val_set, "test": self.test_set}
        return {name: len(part) for name, part in parts.items() if part is not None}

    def describe(self) -> str:
        """Name, origin and number of samples of each part that was set up."""
        note = f" ({self.origin_note})" if self.origin_note else ""
        return f"{self.title}{note}: " + ", ".join(f"{size:,} {name}" for name, size in self.sizes().items())


def place_below(store: str, home: Path) -> Path:
    """A data set's folder in one that is shared: two homes of the same name do not take each other's."""
    place = hashlib.blake2b(os.fspath(home.resolve()).encode(), digest_size=4).hexdigest()
    return Path(store).expanduser().absolute() / f"{home.absolute().name}-{place}"


def as_index(indices: Tensor | None, n: int) -> Tensor:
    """Places in the original data set, int64 [n]."""
    return torch.arange(n) if indices is None else indices
