"""Base class of all data modules: validation protocols, loaders and input shape."""

import hashlib
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import lightning as L
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.data.loading import (
    Batch,
    BatchedDataset,
    BatchPlan,
    BatchRequest,
    ResumableLoader,
    make_loader,
    time_first,
)
from plif_lightning.errors import UserError, require_count, require_one_of
from plif_lightning.runtime.batches import has_time
from plif_lightning.runtime.randomness import fold_in, hashed_uniform, run_seed

Validation = Literal["test", "holdout"]
TimeProbe = Literal["shuffled", "counts"]


class SplitInventory(NamedTuple):
    """Size of the training or test set.

    Attributes:
        name: `training` or `test`.
        counts: samples per class.
        bytes: size of the data that is read.
        events: number of events in all recordings; None for images.
        files: number of files of each format.
    """

    name: str
    counts: list[int]
    bytes: int
    events: int | None = None
    files: str = ""


def split_name(train: bool) -> str:
    return "training" if train else "test"


def require_fraction(name: str, value: float) -> None:
    """Check a fraction of a data set, which leaves something on both sides.

    Raises:
        UserError: it lies outside (0, 1).
    """
    if not 0 < value < 1:
        raise UserError(f"{name} must lie in (0, 1), got {value}.")


def holdout_split(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation samples, each ascending.

    The first ceil((1 - fraction) n) samples of each class are for training, the rest for validation.

    Args:
        labels: int64 [n].
        fraction: share of each class that is held out, in (0, 1).

    Raises:
        UserError: the fraction lies outside (0, 1), or no sample is held out.

    Source: Fang et al. 2021, S-Sec. 7 (fraction 0.15).

    >>> holdout_split(torch.tensor([0, 1, 0, 0, 1, 0]), 0.25)
    (tensor([0, 1, 2, 3, 4]), tensor([5]))
    """
    require_fraction("holdout_fraction", fraction)
    # Exact decimal arithmetic: in floating point, 0.15 * 20 may be less than 3.
    exact = Fraction(str(fraction))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_class = (labels == label).nonzero().flatten()
        held_out[of_class[len(of_class) - int(exact * len(of_class)) :]] = True
    if not held_out.any():
        raise UserError(
            f"{fraction} of each class is no whole sample: pass a larger data.holdout_fraction or "
            "data.test_fraction, or data.validation test."
        )
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def holdout_groups(groups: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation samples, each ascending: no group has samples in both.

    The last groups are held out, as few as hold a `fraction` of all samples, and at least one.

    Args:
        groups: the group of each sample, such as its speaker, int64 [n].
        fraction: share of the samples that is held out, in (0, 1).

    Raises:
        UserError: the fraction lies outside (0, 1), or leaves no group for training.

    >>> holdout_groups(torch.tensor([0, 7, 7, 3, 0, 3]), 0.3)
    (tensor([0, 3, 4, 5]), tensor([1, 2]))
    """
    require_fraction("holdout_fraction", fraction)
    numbers, counts = groups.unique(return_counts=True)
    held = int((counts.flip(0).cumsum(0) < round(fraction * len(groups))).sum()) + 1
    if held >= len(numbers):
        raise UserError(f"data.holdout_fraction {fraction} leaves none of {len(numbers)} groups: pass a smaller one.")
    held_out = torch.isin(groups, numbers[len(numbers) - held :])
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


class ProbedDataset(BatchedDataset):
    """A data set without its time, to see what a network loses: x [N, T, *] in another order, or without one.

    Args:
        dataset: of samples with time-steps.
        probe: `shuffled`, the steps of each sample in a random order of its own, another one in each epoch; `counts`,
            the mean of all steps at every step, in float32.
        input_shape: of a sample at a step.
    """

    def __init__(self, dataset: BatchedDataset, probe: TimeProbe, input_shape: tuple[int, ...]) -> None:
        self.dataset, self.probe, self.input_shape = dataset, probe, input_shape

    def __len__(self) -> int:
        return len(self.dataset)

    def labels(self) -> Tensor:
        return self.dataset.labels()

    def batch(self, request: BatchRequest) -> Batch:
        """A batch of the data set.

        Raises:
            UserError: its samples have no time.
        """
        batch = self.dataset.batch(request)
        if not has_time(batch.x, self.input_shape):
            raise UserError(f"data.probe={self.probe} takes time away, and static images have none.")
        if self.probe == "counts":
            x = batch.x.float().mean(1, keepdim=True).expand(batch.x.shape)
        else:
            steps = batch.x.shape[1]
            order = hashed_uniform(fold_in(request.key, "probe"), batch.sample, steps).argsort(1)
            x = batch.x[torch.arange(len(order))[:, None], order]
        return batch._replace(x=x)


@dataclass(eq=False, repr=False)
class SpikingDataModule(L.LightningDataModule):
    """Base class of all data modules. A subclass implements `labels`, `dataset`, `inventory` and `identity`.

    A subclass is a dataclass, too: its fields become arguments beside the inherited ones, and `--help` shows them all.

    Class attributes that a subclass sets:
        title: display name of the data set.
        input_shape: (C, H, W), or (F,) of sequences [T, F].
        class_names: one name per class.

    Args:
        root: folder that contains the data set's folder; of a user-defined data set, its folder.
        time_steps: T, the simulated time-steps.
        validation: `holdout` validates on a part of the training set and does not touch the test set (Table S2);
            `test` validates on the test set and keeps its best epoch (Tables 2, 4, 5; the paper's configurations).
        holdout_fraction: share of each class that `holdout` takes from the training set.
        batch_size: training samples per process and step.
        eval_batch_size: samples per process and step in validation, test and prediction.
        drop_last: drop an incomplete last training batch.
        num_workers: loader processes; batches do not depend on their number.
        download: download the data set if it is missing.
        probe: take the time away, to see what a network needs it for: the steps of each sample `shuffled`, or `counts`,
            their mean at every step. In training and evaluation.

    Raises:
        UserError: an argument is out of range.
    """

    title: ClassVar[str]
    input_shape: ClassVar[tuple[int, ...]]
    class_names: ClassVar[tuple[str, ...]]

    root: str = "data"
    time_steps: int = 8
    validation: Validation = "holdout"
    holdout_fraction: float = 0.15
    batch_size: int = 16
    eval_batch_size: int = 128
    drop_last: bool = False
    num_workers: int = 0
    download: bool = True
    probe: TimeProbe | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.root = os.fspath(Path(self.root).expanduser())
        for name in ("time_steps", "batch_size", "eval_batch_size"):
            require_count(f"data.{name}", getattr(self, name))
        require_one_of("data.validation", self.validation, Validation)
        require_fraction("data.holdout_fraction", self.holdout_fraction)
        if self.probe is not None:
            require_one_of("data.probe", self.probe, TimeProbe)
        self.train_set: BatchedDataset | None = None
        self.val_set: BatchedDataset | None = None
        self.test_set: BatchedDataset | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def val_name(self) -> str:
        """Prefix of the validation metrics; shows if the test set is used for model selection."""
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
        """Create the data sets of a stage (fit, validate, test or predict; None: all)."""
        if stage in ("fit", "validate", None) and self.train_set is None:
            train, val = self.held_out() if self.validation == "holdout" else (None, None)
            self.train_set = self._probed(self.dataset(train=True, indices=train, augment=True))
            self.val_set = self._probed(self.dataset(self.validation == "holdout", indices=val, augment=False))
        if stage in ("test", "predict", None) and self.test_set is None:
            self.test_set = self._probed(self.dataset(train=False, indices=None, augment=False))

    def _probed(self, dataset: BatchedDataset) -> BatchedDataset:
        return dataset if self.probe is None else ProbedDataset(dataset, self.probe, self.input_shape)

    def _loader(self, dataset: BatchedDataset | None, train: bool) -> ResumableLoader:
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
        return self._loader(self.train_set, train=True)

    def val_dataloader(self) -> ResumableLoader:
        return self._loader(self.val_set, train=False)

    def test_dataloader(self) -> ResumableLoader:
        return self._loader(self.test_set, train=False)

    def predict_dataloader(self) -> ResumableLoader:
        return self._loader(self.test_set, train=False)

    def test_samples(self, number: int) -> tuple[Tensor, Tensor]:
        """Evenly spaced test samples, [T, N, C, H, W] or [N, C, H, W], and their labels [N].

        Recordings and images in folders are sorted by class: the first would share a class.
        """
        self.prepare_data()
        n = len(self.labels(train=False))
        chosen = torch.linspace(0, n - 1, min(number, n), dtype=torch.float64).round().long()
        subset = self._probed(self.dataset(train=False, indices=chosen, augment=False))
        batches = [subset.batch(BatchRequest(0, at)) for at in torch.arange(len(chosen)).split(self.eval_batch_size)]
        x = time_first(torch.cat([b.x for b in batches]), self.input_shape)
        return x.float(), torch.cat([b.label for b in batches])

    def provenance(self, train: bool) -> dict[str, NDArray[Any]]:
        """Where each sample of the training or test set comes from, [n] by column; empty if it is only a number."""
        return {}

    def inventory(self) -> list[SplitInventory]:
        """Sizes of the training and the test set."""
        raise NotImplementedError

    def identity(self, train: bool = True) -> str:
        """Identity of the training set, from which the holdout is taken, or of the test set; changes if that does."""
        raise NotImplementedError

    def reading(self) -> str:
        """Assumptions of a network trained on this data: class order and input scaling."""
        return f"classes {', '.join(self.class_names)}"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Preprocessing from a stored sample to the network's input, as plain values: what `InputSpec` reads, and more.

        It is stored in checkpoints and in `export.json`.
        """
        return {"kind": None, "probe": self.probe, "time_steps": self.time_steps}

    def verify(self) -> int:
        """Read all prepared data and compare its checksums.

        Returns:
            Number of checksums compared.

        Raises:
            UserError: a checksum differs.
        """
        return 0

    @property
    def is_part(self) -> bool:
        """True if it is not the complete data set that its title names, which `origin_note` says."""
        return False

    @property
    def origin_note(self) -> str:
        """Publication of the data set, and whether it is complete; empty by default."""
        return ""

    def sizes(self) -> dict[str, int]:
        """Number of samples of each data set that `setup` created."""
        parts = {"training": self.train_set, self.val_name.replace("_", " "): self.val_set, "test": self.test_set}
        return {name: len(dataset) for name, dataset in parts.items() if dataset is not None}

    def describe(self) -> str:
        """Title, origin and sizes of the data sets that `setup` created."""
        notes = [note for note in (self.origin_note, f"time-steps: {self.probe}" if self.probe else "") if note]
        note = f" ({'; '.join(notes)})" if notes else ""
        return f"{self.title}{note}: " + ", ".join(f"{size:,} {name}" for name, size in self.sizes().items())


def caches_in(store: str | None, home: Path, default: str) -> Path:
    """Folder of a data set's caches: `default` in its home, or one below a shared `store`.

    There a hash distinguishes homes of the same name.
    """
    if not store:
        return home / default
    digest = hashlib.blake2b(os.fspath(home.resolve()).encode(), digest_size=4).hexdigest()
    return Path(store).expanduser().absolute() / f"{home.absolute().name}-{digest}"


def as_index(indices: Tensor | None, n: int) -> Tensor:
    """Indices into the original data set, int64 [n]; all if `indices` is None."""
    return torch.arange(n) if indices is None else indices
