"""Sequences that are generated from a seed: nothing to download."""

from dataclasses import dataclass

import torch
from torch import Tensor

from plif_lightning.data.base import SpikingDataModule, SplitInventory, as_index, split_name
from plif_lightning.data.loading import Batch, BatchedDataset, BatchRequest
from plif_lightning.errors import UserError, require_count
from plif_lightning.runtime.randomness import fold_in

_MARKED = 9


class SequenceDataset(BatchedDataset):
    """Sequences in memory.

    Args:
        sequences: of the original data set, [m, T, F], of any type.
        label: their classes, int64 [m].
        sample: indices of the sequences in this data set, int64 [n].
    """

    def __init__(self, sequences: Tensor, label: Tensor, sample: Tensor) -> None:
        self.sequences, self.label, self.sample = sequences, label, sample

    def __len__(self) -> int:
        return len(self.sample)

    def labels(self) -> Tensor:
        return self.label[self.sample]

    def batch(self, request: BatchRequest) -> Batch:
        sample = self.sample.index_select(0, request.indices)
        return Batch(self.sequences.index_select(0, sample), self.label.index_select(0, sample), sample)


@dataclass(eq=False, repr=False)
class BinaryAdding(SpikingDataModule):
    """Binary adding: sequences [T, 2] of random bits, nine of them marked; the class is the number of marked ones.

    Channel 0 is the bits, channel 1 the marks. All 10 classes are equally frequent, as are the places of the marks.

    Args:
        training_size: number of training sequences.
        test_size: number of test sequences.
        data_seed: of the sequences.

    Source: Ma et al. 2025, "Spiking Neural Networks for Temporal Processing: Status Quo and Future Prospects", whose
    sizes are the defaults. There the test set's bits are the first of the training set's, with other marks.
    """

    time_steps: int = 100
    batch_size: int = 250
    eval_batch_size: int = 500
    training_size: int = 50_000
    test_size: int = 2000
    data_seed: int = 0

    title = "binary adding"
    input_shape = (2,)
    class_names = tuple("0123456789")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("data.training_size", self.training_size)
        require_count("data.test_size", self.test_size)
        if self.time_steps < _MARKED:
            raise UserError(f"data.time_steps must be at least {_MARKED}, the number of marks, got {self.time_steps}.")

    def labels(self, train: bool) -> Tensor:
        return torch.arange(self.training_size if train else self.test_size) % self.num_classes

    def sequences(self, train: bool) -> Tensor:
        """The training or the test set, uint8 [n, T, 2]."""
        label = self.labels(train)
        generator = torch.Generator().manual_seed(fold_in(self.data_seed, split_name(train)))
        bits = torch.randint(2, (len(label), self.time_steps), generator=generator, dtype=torch.uint8)
        # The first places of a random order: as many of the marks as the class says are at ones.
        places = torch.rand(bits.shape, generator=generator).argsort(1)[:, :_MARKED]
        bits.scatter_(1, places, (torch.arange(_MARKED) < label[:, None]).to(torch.uint8))
        return torch.stack([bits, torch.zeros_like(bits).scatter_(1, places, 1)], -1)

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> SequenceDataset:
        label = self.labels(train)
        return SequenceDataset(self.sequences(train), label, as_index(indices, len(label)))

    def inventory(self) -> list[SplitInventory]:
        counts = {train: self.labels(train).bincount(minlength=self.num_classes) for train in (True, False)}
        return [
            SplitInventory(split_name(train), of_split.tolist(), 2 * self.time_steps * int(of_split.sum()))
            for train, of_split in counts.items()
        ]

    def identity(self, train: bool = True) -> str:
        samples = self.training_size if train else self.test_size
        return f"seed {self.data_seed}, {samples} samples of {self.time_steps} steps"
