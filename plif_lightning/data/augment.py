"""Batched augmentation of uint8 images; the caller passes the random numbers of each sample."""

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from plif_lightning.errors import UserError


def require_share(name: str, value: float) -> None:
    """Check a probability or another share.

    Raises:
        UserError: it lies outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie in [0, 1], got {value}.")


class ImageAugmentation(ABC):
    """A random change of images, determined by `draws` uniform random numbers per image."""

    draws: int

    @abstractmethod
    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Augmented images, uint8 [N, C, H, W], from images of that shape and random numbers in [0, 1), [N, draws]."""


class HorizontalFlip(ImageAugmentation):
    """Mirror an image left to right with probability `p`.

    Args:
        p: probability.
    """

    draws = 1

    def __init__(self, p: float = 0.5) -> None:
        require_share("p", p)
        self.p = p

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
