"""Mixtures of two training samples, an image or a recording each."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from plif_lightning.errors import UserError
from plif_lightning.runtime.randomness import hashed_uniform


def require_share(name: str, value: float) -> None:
    """Check a probability or another share.

    Raises:
        UserError: it lies outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie in [0, 1], got {value}.")


class WithProbability:
    """Base class of augmentations with a probability as their only argument.

    Args:
        p: probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        require_share("p", p)
        self.p = p


class RectangleMix(WithProbability):
    """Base class of augmentations that fill a rectangle from another training sample, the partner.

    Args:
        p: probability.
    """

    draws = 5

    def boxes(self, uniform: NDArray[Any], height: int, width: int) -> NDArray[Any]:
        """Left, top, right and bottom of each rectangle (right and bottom excluded), int64 [N, 4]; 0 where none is."""
        # The area's share is uniform in [0, 1], the centre uniform over the image.
        side = np.sqrt(uniform[:, 1])
        box = np.empty((len(uniform), 4), np.int64)
        for column, draw, size in ((0, 2, width), (1, 3, height)):
            centre = uniform[:, draw] * size
            half = side * size / 2
            box[:, column] = np.clip(np.rint(centre - half), 0, size)
            box[:, column + 2] = np.clip(np.rint(centre + half), 0, size)
        box[uniform[:, 0] >= self.p] = 0
        return box


def require_single_mix(augmentation: Sequence[Any]) -> None:
    """Refuse a second mix: a sample has a single partner.

    Raises:
        UserError: there are more.
    """
    mixes = [a for a in augmentation if isinstance(a, RectangleMix)]
    if len(mixes) > 1:
        raise UserError(f"data.augmentation has {type(mixes[-1]).__name__} more than once.")


def mixture(
    augmentation: Sequence[Any],
    key: int,
    sample: Tensor,
    pool: Tensor,
    size: tuple[int, int],
    labels: Tensor,
    num_classes: int,
) -> tuple[Tensor, Tensor | None]:
    """Samples, followed by the partners of as many if they are mixed, and the targets of the mixtures if they are.

    Args:
        augmentation: every augmentation of a data set, in its order, with at most one `RectangleMix`.
        key: as for `hashed_uniform`.
        sample: int64 [N].
        pool: the samples that partners are drawn from, int64 [n].
        size: height and width of the frame that rectangles lie in.
        labels: of all samples, int64.
        num_classes: how many there are.

    Returns:
        Samples int64 [N] or [2 N]; targets, class shares in proportion to the areas, float32 [N, num_classes].
    """
    draws = [getattr(a, "draws", 0) for a in augmentation]
    for mix, first in zip(augmentation, np.cumsum([0, *draws]), strict=False):
        if isinstance(mix, RectangleMix):
            uniform = hashed_uniform(key, sample, sum(draws)).numpy()[:, first : first + mix.draws]
            partner = (uniform[:, 4].astype(np.float64) * len(pool)).astype(np.int64)
            samples = torch.cat([sample, pool.index_select(0, torch.from_numpy(partner))])
            left, top, right, bottom = mix.boxes(uniform, *size).T
            share = torch.from_numpy((right - left) * (bottom - top) / math.prod(size)).float()[:, None]
            label, partner_label = functional.one_hot(labels[samples], num_classes).float().chunk(2)
            return samples, label * (1 - share) + partner_label * share
    return sample, None
