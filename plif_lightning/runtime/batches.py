"""Batches over time and batches that are held for all time-steps."""

from typing import Any


def has_time(x: Any) -> bool:
    """True for x [T, N, *], or a loader's [N, T, *]; False for samples [N, *], which are held for all T steps.

    A sample is features [F] or maps [C, H, W], so that the number of dimensions tells.
    """
    return bool(x.dim() % 2)


def sample_axis(x: Any) -> int:
    """Dimension of the samples: 1 of x [T, N, *], 0 of samples [N, *]."""
    return 1 if has_time(x) else 0
