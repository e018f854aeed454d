"""Batches over time and batches that are held for all time-steps."""

from collections.abc import Sequence
from typing import Any


def has_time(x: Any, input_shape: Sequence[int] | None) -> bool:
    """True for x [T, N, *], or a loader's [N, T, *]; False for samples [N, *], which are held for all T steps.

    Args:
        x: a batch.
        input_shape: of a sample at a step; None for a module that no data were given to: [F] or [C, H, W].
    """
    return bool(x.dim() % 2 if input_shape is None else x.dim() == len(input_shape) + 2)
