"""Batched augmentation of uint8 images; the caller passes the random numbers of each sample."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
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
    """Base class of augmentations whose only argument is a probability.

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


def require_one_mix(augmentation: Sequence[Any]) -> None:
    """Refuse a second mix: a sample has one partner.

    Raises:
        UserError: there are several.
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
        augmentation: every augmentation of a data set, in its order, at most one a `RectangleMix`.
        key: as for `hashed_uniform`.
        sample: int64 [N].
        pool: the samples that partners are drawn from, int64 [n].
        size: height and width of the frame that rectangles lie in.
        labels: of all samples, int64.
        num_classes: how many there are.

    Returns:
        Samples int64 [N] or [2 N]; targets, class shares in proportion to the areas, float32 [N, num_classes].
    """
    draws = [a.draws for a in augmentation]
    for mix, first in zip(augmentation, np.cumsum([0, *draws]), strict=False):
        if isinstance(mix, RectangleMix):
            uniform = hashed_uniform(key, sample, sum(draws)).numpy()[:, first : first + mix.draws]
            partner = (uniform[:, 4].astype(np.float64) * len(pool)).astype(np.int64)
            samples = torch.cat([sample, pool.index_select(0, torch.from_numpy(partner))])
            left, top, right, bottom = mix.boxes(uniform, *size).T
            share = torch.from_numpy((right - left) * (bottom - top) / math.prod(size)).float()[:, None]
            own, other = functional.one_hot(labels[samples], num_classes).float().chunk(2)
            return samples, own * (1 - share) + other * share
    return sample, None


class ImageAugmentation(ABC):
    """A random change of images, determined by `draws` uniform random numbers per image."""

    draws: int

    @abstractmethod
    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Augmented images, uint8 [N, C, H, W], from images of that shape and random numbers in [0, 1), [N, draws]."""


class HorizontalFlip(WithProbability, ImageAugmentation):
    """Mirror an image left to right with probability `p`.

    Args:
        p: probability.
    """

    draws = 1

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        flip = uniform[:, 0].numpy() < self.p
        flipped = images.numpy().copy()
        flipped[flip] = flipped[flip][..., ::-1]
        return torch.from_numpy(flipped)


class RandomCrop(ImageAugmentation):
    """Crop the zero-padded image to its original size at a random position.

    Args:
        padding: pixels added on each side.
    """

    draws = 2

    def __init__(self, padding: int = 4) -> None:
        if padding < 0:
            raise UserError(f"padding must be at least 0, got {padding}.")
        self.padding = padding

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = functional.pad(images, [self.padding] * 4).numpy()
        corners = (uniform * (2 * self.padding + 1)).to(torch.int32).tolist()
        # One slice per image copies whole rows: several times faster than one gather over pixels.
        cut = np.empty(images.shape, dtype=np.uint8)
        for image, (top, left), out in zip(padded, corners, cut, strict=True):
            out[:] = image[:, top : top + height, left : left + width]
        return torch.from_numpy(cut)


@lru_cache(maxsize=8)
def _pixels(height: int, width: int) -> Tensor:
    """(x, y, 1) of every pixel, relative to the image's centre, float32 [H * W, 3]."""
    x = (torch.arange(width) - (width - 1) / 2).expand(height, width)
    y = (torch.arange(height) - (height - 1) / 2)[:, None].expand(height, width)
    return torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)


class RandomAffine(ImageAugmentation):
    """Rotate, shift and scale an image about its centre; nearest neighbour, zeros outside.

    The defaults are the authors' for MNIST. Same transformation as `torchvision.transforms.RandomAffine`.

    Args:
        degrees: rotation, uniform in [-degrees, degrees].
        translate: largest shift, as a share of the image size.
        scale: smallest and largest magnification.
    """

    draws = 4

    def __init__(
        self, degrees: float = 30.0, translate: float = 0.15, scale: tuple[float, float] = (0.85, 1.11)
    ) -> None:
        if not (0 <= translate <= 1 and 0 < scale[0] <= scale[1] and degrees >= 0):
            raise UserError(
                "expected degrees >= 0, translate in [0, 1] and 0 < scale[0] <= scale[1], "
                f"got degrees={degrees}, translate={translate}, scale={scale}."
            )
        self.degrees = degrees
        self.translate = translate
        self.scale = scale

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        u = uniform.numpy().astype(np.float64)
        angle = (2 * u[:, 0] - 1) * math.radians(self.degrees)
        # torchvision also rounds shifts to whole pixels.
        shift_x = ((2 * u[:, 1] - 1) * self.translate * width).round()
        shift_y = ((2 * u[:, 2] - 1) * self.translate * height).round()
        scale = self.scale[0] + u[:, 3] * (self.scale[1] - self.scale[0])
        # From output to input: undo the shift, rotate back, scale back; in pixels from the centre.
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        x = np.stack([cos, sin, -cos * shift_x - sin * shift_y]) / (width / 2)
        y = np.stack([-sin, cos, sin * shift_x - cos * shift_y]) / (height / 2)
        matrix = torch.from_numpy(np.stack([x, y]).transpose(2, 1, 0).astype(np.float32))  # [N, 3, 2]
        grid = torch.matmul(_pixels(height, width), matrix).unflatten(1, (height, width))
        moved = functional.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
        return moved.to(torch.uint8)


class RandomErasing(ImageAugmentation):
    """Set a random rectangle inside an image to zero with probability `p`.

    Args:
        p: probability.
        area: smallest and largest area, as a share of the image.
        ratio: smallest and largest aspect ratio, height / width.

    Source: Zhong et al. 2017.
    """

    draws = 5

    def __init__(
        self, p: float = 0.5, area: tuple[float, float] = (0.02, 0.2), ratio: tuple[float, float] = (0.3, 3.3)
    ) -> None:
        if not (0 <= p <= 1 and 0 < area[0] <= area[1] <= 1 and 0 < ratio[0] <= ratio[1]):
            raise UserError(
                "expected p in [0, 1], 0 < area[0] <= area[1] <= 1 and 0 < ratio[0] <= ratio[1], "
                f"got p={p}, area={area}, ratio={ratio}."
            )
        self.p = p
        self.area = area
        self.ratio = ratio

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        u = uniform.numpy().astype(np.float64)
        area = (self.area[0] + u[:, 1] * (self.area[1] - self.area[0])) * rows * columns
        low, high = map(math.log, self.ratio)
        ratio = np.exp(low + u[:, 2] * (high - low))
        height = np.clip(np.sqrt(area * ratio).round(), 1, rows).astype(int)
        width = np.clip(np.sqrt(area / ratio).round(), 1, columns).astype(int)
        top = (u[:, 3] * (rows - height + 1)).astype(int)
        left = (u[:, 4] * (columns - width + 1)).astype(int)
        erased = images.numpy().copy()
        for i in np.flatnonzero(u[:, 0] < self.p):
            erased[i, :, top[i] : top[i] + height[i], left[i] : left[i] + width[i]] = 0
        return torch.from_numpy(erased)


class CutMix(RectangleMix, ImageAugmentation):
    """Replace a rectangle of an image with that of another training image.

    The target becomes a mixture of both classes, in proportion to their areas. Augmentations before it change both
    images, those after it the mixture.

    Args:
        p: probability.

    Source: Yun et al. 2019, with alpha = 1.
    """

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Mixtures, uint8 [N, C, H, W], from images [2 N, C, H, W], the second half the partners of the first."""
        own, other = (half.numpy() for half in images.chunk(2))
        mixed = own.copy()
        for i, (left, top, right, bottom) in enumerate(self.boxes(uniform[: len(own)].numpy(), *images.shape[-2:])):
            mixed[i, :, top:bottom, left:right] = other[i, :, top:bottom, left:right]
        return torch.from_numpy(mixed)
