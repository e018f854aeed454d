"""Training and validation split, determined by the labels and the fraction alone."""

from fractions import Fraction

import torch
from torch import Tensor

from plif_lightning.errors import UserError


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
    if not 0 < fraction < 1:
        raise UserError(f"holdout_fraction must lie in (0, 1), got {fraction}.")
    # Exact decimal arithmetic: in floating point, 0.15 * 20 may be less than 3.
    exact = Fraction(str(fraction))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_class = (labels == label).nonzero().flatten()
        held_out[of_class[len(of_class) - int(exact * len(of_class)) :]] = True
    if not held_out.any():
        raise UserError(f"holdout_fraction={fraction} leaves no sample for validation: pass a larger fraction.")
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
