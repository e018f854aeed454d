"""Batches, a sampler that plans them, and a loader that resumes within an epoch."""

import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from plif_lightning.errors import UserError, require_count
from plif_lightning.runtime.batches import has_time
from plif_lightning.runtime.randomness import fold_in


class Batch(NamedTuple):
    """N samples."""

    x: Tensor  # [N, T, *], or static [N, *], of maps [C, H, W] or features [F]; counts in the smallest type that fits
    label: Tensor  # int64 [N]
    sample: Tensor  # int64 [N], its place in the original data set
    target: Tensor | None = None  # float32 [N, C] of mixed samples; None where the label is all of it

    @property
    def answer(self) -> Tensor:
        """Target of a loss: class shares of mixed samples, or labels."""
        return self.label if self.target is None else self.target


def as_batch(batch: Any) -> Batch:
    """A batch of this project's loaders as it is; a pair (x, label) or a dict of any other loader as such a batch.

    Args:
        batch: a `Batch`; or x [N, C, H, W] of static images, [N, T, C, H, W], or sequences [N, T, F], and labels: int64
            [N], or float [N, C], the share of each class in a mixed sample (timm's Mixup). In a dict x is named
            `pixel_values`, and labels `label` or `labels`.

    Raises:
        UserError: it is none of them.
    """
    if isinstance(batch, Batch):
        return batch
    type_name = type(batch).__name__
    if isinstance(batch, Mapping):
        batch = batch.get("pixel_values"), batch.get("label", batch.get("labels"))
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else ()
    if [isinstance(item, Tensor) for item in parts] != [True, True]:
        raise UserError(
            f"a batch must be a pair (x, label) of tensors, or a dict of pixel_values and label, got {type_name}"
            f"{f' of {len(parts)}' if parts else ''}."
        )
    x, label = parts
    mixed = label.is_floating_point()
    if x.dim() not in (2, 3, 4, 5) or len(label) != len(x) or label.dim() != (2 if mixed else 1):
        raise UserError(
            "a batch must hold x [N, C, H, W], [N, T, C, H, W] or [N, T, F], and integer labels [N] or shares "
            f"[N, classes], got {list(x.shape)} and {label.dtype} {list(label.shape)}."
        )
    sample = torch.arange(len(x), device=x.device)
    return Batch(x, label.argmax(1), sample, label) if mixed else Batch(x, label.long(), sample)


def merge_time_steps(x: Tensor, time_steps: int, *more_seeds: int) -> Tensor:
    """Frames [T, N, C, H, W] as fewer ones: the sums of `time_steps` equal groups, as of longer slices.

    Args:
        x: frames, of any type; sums of integers are int32.
        time_steps: number of frames after the call.
        more_seeds: numbers of frames of later epochs, which are checked now.

    Raises:
        UserError: an entry does not divide T.
    """
    for steps in (*more_seeds, time_steps):
        if len(x) % steps:
            raise UserError(f"early_time_steps must divide the data's time_steps = {len(x)}, got {steps}.")
    if len(x) == time_steps:
        return x
    return x.unflatten(0, (time_steps, -1)).sum(1, dtype=x.dtype if x.is_floating_point() else torch.int32)


def time_first(x: Tensor, input_shape: Sequence[int]) -> Tensor:
    """A batch's x as networks take it: [T, N, *]; static samples [N, *] as they are."""
    return x.transpose(0, 1) if has_time(x, input_shape) else x


class BatchRequest(NamedTuple):
    """Sample indices of a batch and the key of its random numbers."""

    key: int
    indices: Tensor


class BatchedDataset(ABC):
    """A data set that reads batches; with an integer index it returns a sample, like PyTorch's data sets."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, request: BatchRequest) -> Batch:
        """Samples of a request, read together."""

    def labels(self) -> Tensor:
        """Label of each sample, int64 [n]. Reads every sample unless a subclass overrides it."""
        return torch.cat([self.batch(BatchRequest(0, torch.tensor([i]))).label for i in range(len(self))])

    @overload
    def __getitem__(self, request: BatchRequest) -> Batch: ...

    @overload
    def __getitem__(self, request: int) -> tuple[Tensor, Tensor]: ...

    def __getitem__(self, request: BatchRequest | int) -> Batch | tuple[Tensor, Tensor]:
        """A batch, or a sample: x [T, C, H, W] or [C, H, W], and its label or its class shares (mixed samples).

        A single sample is augmented with a key drawn from PyTorch's global generator.

        Raises:
            IndexError: the index is out of range.
        """
        if isinstance(request, BatchRequest):
            return self.batch(request)
        if not -len(self) <= request < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}, got {request}.")
        one = self.batch(BatchRequest(int(torch.randint(2**62, ())), torch.tensor([request % len(self)])))
        return one.x[0], one.label[0] if one.target is None else one.target[0]


class BatchPlan(DistributedSampler[Any]):
    """The batches of one process and epoch, determined by (seed, epoch) alone.

    In training, the shuffled epoch is cut into global batches of `world_size * batch_size` samples, and each process
    takes its share of each. Two processes therefore train on the same batches as one process with twice the batch
    size. In evaluation, every sample is seen exactly once, and every process gets the same number of batches.

    It derives from `DistributedSampler`, so that Lightning does not replace it.

    Args:
        length: number of samples in the data set.
        batch_size: samples per process.
        shuffle: training order.
        drop_last: drop an incomplete last global batch; otherwise it is padded with samples from the start of the
            epoch, so that every process gets the same size.
        seed: seed of the order and of the keys.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        UserError: there are too few samples for a batch, or for the number of processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        require_count("batch_size", batch_size)
        self.length, self.batch_size, self.shuffle, self.drop_last = length, batch_size, shuffle, drop_last
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self._started = False  # True once the current epoch was started
        self.resume_at: tuple[int, int] | None = None  # epoch and samples done in it of a run that is resumed
        if not shuffle and length < world_size:
            raise UserError(f"{length} samples are too few for {world_size} processes: pass fewer --trainer.devices.")
        if len(self) == 0:
            raise UserError(
                f"a batch of {batch_size} x {world_size} process(es) is larger than the data ({length} samples), and "
                "drop_last leaves nothing: pass a smaller --data.batch_size or --data.drop_last=false."
            )

    def __len__(self) -> int:
        if not self.shuffle:
            # Fewer, slightly larger batches, so that no process gets an empty batch.
            return min(math.ceil(self.length / self.global_batch), self.length // self.world_size)
        return self.length // self.global_batch if self.drop_last else math.ceil(self.length / self.global_batch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. The Trainer calls it; without it, each iteration is a new epoch."""
        self.epoch, self._started = epoch, False

    def begin(self) -> None:
        """Start an iteration over the epoch's batches."""
        if self._started:
            self.epoch += 1
        self._started = True

    @property
    def global_batch(self) -> int:
        """Samples per batch, over all processes."""
        return self.batch_size * self.world_size

    def done(self, epoch: int) -> int:
        """Samples of an epoch that were trained on before the run was resumed, in the order of the epoch."""
        return self.resume_at[1] if self.resume_at is not None and self.resume_at[0] == epoch else 0

    def __iter__(self) -> Iterator[BatchRequest]:
        key = fold_in(self.seed, "samples", self.epoch)
        for indices in self._training() if self.shuffle else self._evaluation():
            yield BatchRequest(key, indices)

    def _training(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(fold_in(self.seed, "shuffle", self.epoch))
        order = torch.randperm(self.length, generator=generator)
        batches = []
        for global_indices in order[self.done(self.epoch) :].split(self.global_batch):
            if self.drop_last and len(global_indices) < self.global_batch:
                break
            short = -len(global_indices) % self.world_size
            if short:
                global_indices = torch.cat([global_indices, order.repeat(math.ceil(short / len(order)))[:short]])
            batches.append(global_indices.chunk(self.world_size)[self.rank])
        return batches

    def _evaluation(self) -> list[Tensor]:
        mine = torch.arange(self.rank, self.length, self.world_size)
        # Every process needs the same number of batches, or collective operations would deadlock.
        return list(mine.tensor_split(len(self)))


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose state is the epoch and the samples of it that were served.

    Any number of processes and any batch size can resume from there: every sample is seen once.
    """

    _served = 0  # samples, over all processes

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        plan = self.plan
        plan.begin()
        self._served = plan.done(plan.epoch)
        for batch in super().__iter__():
            self._served = min(self._served + plan.global_batch, plan.length)
            yield batch
        plan.resume_at = None

    @property
    def plan(self) -> BatchPlan:
        assert isinstance(self.sampler, BatchPlan)
        return self.sampler

    def batches_done(self, epoch: int) -> int:
        """Number of batches, in the current batch size, that count as done when a run resumes in this epoch.

        Done and remaining batches add up to `len(plan)`.
        """
        plan = self.plan
        left = (plan.length - plan.done(epoch)) / plan.global_batch
        return len(plan) - (math.floor(left) if plan.drop_last else math.ceil(left))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.plan.epoch, "samples": self._served, "seed": self.plan.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.plan.resume_at = (state["epoch"], state["samples"])
        # An unseeded run has another seed after a restart: restore the seed that shuffled the interrupted epoch.
        self.plan.seed = state["seed"]


def _identity(batch: Any) -> Any:
    return batch


def _ignore_signals(worker: int) -> None:
    """Ignore termination signals: they reach all processes, but the main one needs batches until it has saved."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # not all on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def make_loader(dataset: BatchedDataset, plan: BatchPlan, num_workers: int = 0) -> ResumableLoader:
    """Create a loader that reads a planned batch per call of the data set."""
    return ResumableLoader(
        dataset,  # type: ignore[arg-type]
        sampler=plan,
        batch_size=None,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=_identity,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )
