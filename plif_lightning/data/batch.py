"""Batches: what the data modules give to the task."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from plif_lightning.errors import UserError


class Batch(NamedTuple):
    """N samples."""

    x: Tensor  # [N, T, C, H, W], or static images [N, C, H, W]; counts of events in the smallest type that holds them
    label: Tensor  # int64 [N]
    sample: Tensor  # int64 [N], its place in the original data set
    target: Tensor | None = None  # float32 [N, C] of mixed samples; None where the label is all of it


def as_batch(batch: Any) -> Batch:
    """A batch of this project's loaders as it is; a pair (x, label) of any other loader as such a batch.

    Args:
        batch: a `Batch`; or x [N, C, H, W] of static images or [N, T, C, H, W], and labels [N].

    Raises:
        UserError: it is neither.
    """
    if isinstance(batch, Batch):
        return batch
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else ()
    if [isinstance(part, Tensor) for part in parts] != [True, True]:
        length = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise UserError(f"a batch must be a pair (x, label) of tensors, got {type(batch).__name__}{length}.")
    x, label = parts
    if x.dim() not in (4, 5) or label.shape != x.shape[:1] or label.is_floating_point():
        raise UserError(
            "a batch must hold x [N, C, H, W] or [N, T, C, H, W] and integer labels [N], "
            f"got {list(x.shape)} and {label.dtype} {list(label.shape)}."
        )
    return Batch(x, label.long(), torch.arange(len(x), device=x.device))


def merged(x: Tensor, time_steps: int, *others: int) -> Tensor:
    """Frames [T, N, C, H, W] as fewer ones: the sums of `time_steps` equal groups, as of longer slices.

    Args:
        x: frames, of any type; sums of integers are int32.
        time_steps: how many there shall be.
        others: how many there shall be at other times, so that a wrong number is said at once.

    Raises:
        UserError: one of them does not divide T.
    """
    for steps in (*others, time_steps):
        if len(x) % steps:
            raise UserError(f"early_time_steps must divide the data's time_steps = {len(x)}, got {steps}.")
    if len(x) == time_steps:
        return x
    return x.unflatten(0, (time_steps, -1)).sum(1, dtype=x.dtype if x.is_floating_point() else torch.int32)


def time_first(x: Tensor) -> Tensor:
    """A batch's x as networks take it: [T, N, C, H, W]; static images [N, C, H, W] as they are."""
    return x.transpose(0, 1) if x.dim() == 5 else x
