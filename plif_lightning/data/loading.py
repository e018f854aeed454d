"""Batches at a time: a sampler that plans whole batches, and a loader that can be resumed."""

import math
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from plif_lightning.batch import Batch
from plif_lightning.errors import UserError
from plif_lightning.runtime.randomness import fold_in


class BatchRequest(NamedTuple):
    """Which samples a batch takes, and the key of its random numbers."""

    key: int
    indices: Tensor


class BatchedDataset(ABC):
    """A data set that is read a batch at a time; by a plain index it gives one sample, as PyTorch's own do."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, request: BatchRequest) -> Batch:
        """The samples of a request, read together."""

    def labels(self) -> Tensor:
        """The class of each sample, int64 [n]; read sample by sample where a subclass knows no better."""
        return torch.cat([self.batch(BatchRequest(0, torch.tensor([i]))).label for i in range(len(self))])

    @overload
    def __getitem__(self, request: BatchRequest) -> Batch: ...

    @overload
    def __getitem__(self, request: int) -> tuple[Tensor, Tensor]: ...

    def __getitem__(self, request: BatchRequest | int) -> Batch | tuple[Tensor, Tensor]:
        """A batch; or one sample: x [T, C, H, W] or [C, H, W], and its label, or its shares of the classes.

        A sample that is asked for by its place is augmented by a draw of PyTorch's generator.

        Raises:
            IndexError: there is no such sample.
        """
        if isinstance(request, BatchRequest):
            return self.batch(request)
        if not -len(self) <= request < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}, got {request}.")
        one = self.batch(BatchRequest(int(torch.randint(2**62, ())), torch.tensor([request % len(self)])))
        return one.x[0], one.label[0] if one.target is None else one.target[0]


class BatchPlan(DistributedSampler[Any]):
    """The batches of one process and epoch, as a function of (seed, epoch) alone.

    In training the shuffled epoch is cut into global batches of `world_size * batch_size` samples and
    each process takes its part of every one, so that two processes do together what one does with the
    doubled batch. In evaluation every sample is seen exactly once, and every process gets the same
    number of batches.

    It is a `DistributedSampler`, so Lightning does not put another one in its place.

    Args:
        length: samples of the data set.
        batch_size: per process.
        shuffle: training order.
        drop_last: leave out an incomplete last global batch; otherwise it is filled up to the same
            size on every process with samples from the start of the epoch.
        seed: of the shuffle and of the keys.
        rank: this process.
        world_size: how many there are.

    Raises:
        UserError: no batch can be made.
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
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}.")
        self.length, self.batch_size, self.shuffle, self.drop_last = length, batch_size, shuffle, drop_last
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self._passed = False  # whether this epoch's pass was begun
        # (epoch, batch, samples of a batch of all processes) at which the next pass starts, where a run is resumed
        # within an epoch; older checkpoints do not say the samples
        self.resume_at: tuple[int, int, int | None] | None = None
        if not shuffle and length < world_size:
            raise UserError(f"{length} samples are too few for {world_size} processes: pass fewer --trainer.devices.")
        if len(self) == 0:
            raise UserError(
                f"a batch of {batch_size} x {world_size} process(es) is larger than the data ({length} samples), and "
                "drop_last leaves nothing: pass a smaller --data.batch_size or --data.drop_last=false."
            )

    def __len__(self) -> int:
        if not self.shuffle:
            # No process may get an empty batch: rather one of them takes one sample more in some.
            return min(math.ceil(self.length / self.global_batch), self.length // self.world_size)
        return self.length // self.global_batch if self.drop_last else math.ceil(self.length / self.global_batch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass; a Trainer calls it. Where nobody does, each pass is the next epoch."""
        self.epoch, self._passed = epoch, False

    def begin(self) -> None:
        """Begins a pass."""
        if self._passed:
            self.epoch += 1
        self._passed = True

    @property
    def global_batch(self) -> int:
        """Samples of a batch, of all processes together."""
        return self.batch_size * self.world_size

    def start(self) -> int:
        """The batch at which this epoch's pass begins.

        Raises:
            UserError: the run was left within this epoch, with batches of another size.
        """
        if self.resume_at is None or self.resume_at[0] != self.epoch:
            return 0
        _, served, global_batch = self.resume_at
        if served and global_batch not in (None, self.global_batch):
            raise UserError(
                f"the run was left within epoch {self.epoch}, after {served} batches of {global_batch} samples, and "
                f"would go on with batches of {self.global_batch}: samples would be skipped or seen twice. Resume it "
                "with as many devices and the same data.batch_size, at least to the end of that epoch."
            )
        return served

    def __iter__(self) -> Iterator[BatchRequest]:
        key = fold_in(self.seed, "samples", self.epoch)
        batches = self._training() if self.shuffle else self._evaluation()
        for indices in batches[self.start() :]:
            yield BatchRequest(key, indices)

    def _training(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(fold_in(self.seed, "shuffle", self.epoch))
        order = torch.randperm(self.length, generator=generator)
        batches = []
        for whole in order.split(self.batch_size * self.world_size)[: len(self)]:
            short = -len(whole) % self.world_size
            if short:
                whole = torch.cat([whole, order.repeat(math.ceil(short / len(order)))[:short]])
            batches.append(whole.chunk(self.world_size)[self.rank])
        return batches

    def _evaluation(self) -> list[Tensor]:
        mine = torch.arange(self.rank, self.length, self.world_size)
        # Equally many batches everywhere, or a collective operation would wait for ever.
        return list(mine.tensor_split(len(self)))


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose state is the epoch and the number of batches served in it."""

    _served = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        plan = self._plan()
        plan.begin()
        self._served = plan.start()
        for batch in super().__iter__():
            self._served += 1
            yield batch
        plan.resume_at = None

    def _plan(self) -> BatchPlan:
        assert isinstance(self.sampler, BatchPlan)
        return self.sampler

    def state_dict(self) -> dict[str, int]:
        plan = self._plan()
        return {"epoch": plan.epoch, "served": self._served, "global_batch": plan.global_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._plan().resume_at = (state["epoch"], state["served"], state.get("global_batch"))


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A terminal and a scheduler tell every process to end; the main one still needs batches until it has saved."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # not all on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)


# Where worker processes put the batches that they hand over, on Linux. A container has 64 MiB unless it is told.
_SHARED = Path("/dev/shm")


def _require_shared_memory(dataset: BatchedDataset, plan: BatchPlan, num_workers: int) -> None:
    """Refuses workers whose batches have no room: they would wait for ever, or be ended without a word.

    Raises:
        UserError: there is too little shared memory.
    """
    if not num_workers or not _SHARED.is_dir():
        return
    sample = dataset[BatchRequest(0, torch.zeros(1, dtype=torch.int64))].x
    # Each worker has two batches ready, PyTorch's prefetch_factor, and one is being used.
    batches = min(2 * num_workers + 1, len(plan))
    needed = sample.nbytes * min(plan.batch_size, len(dataset)) * batches
    free = shutil.disk_usage(_SHARED).free
    if needed > free:
        raise UserError(
            f"data.num_workers={num_workers} processes hand their batches over in {_SHARED}, where "
            f"{needed / 2**20:,.1f} MiB are needed and {free / 2**20:,.1f} are free: pass --data.num_workers 0, a "
            "smaller --data.batch_size or --data.eval_batch_size, or give a container more (docker run --shm-size 2g)."
        )


def make_loader(dataset: BatchedDataset, plan: BatchPlan, num_workers: int = 0) -> ResumableLoader:
    """A loader that fetches each planned batch with one call of the data set.

    Raises:
        UserError: there is too little shared memory for the workers' batches.
    """
    if len(dataset):
        _require_shared_memory(dataset, plan, num_workers)
    return ResumableLoader(
        dataset,  # type: ignore[arg-type]
        sampler=plan,
        batch_size=None,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=torch.cuda.is_available(),
    )
