"""Augmentation of whole batches of uint8 images, drawn sample by sample from numbers given to it."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from plif_lightning.errors import UserError


class ImageAugmentation(ABC):
    """A random change of images; `draws` uniform numbers per image decide it."""

    draws: int

    @abstractmethod
    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Changed images, uint8 [N, C, H, W], for images of that shape and numbers in [0, 1), [N, draws]."""


class HorizontalFlip(ImageAugmentation):
    """Mirrors an image left to right with probability `p`.

    Args:
        p: probability.
    """

    draws = 1

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise UserError(f"p must lie in [0, 1], got {p}.")
        self.p = p

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        flip = uniform[:, 0] < self.p
        return torch.where(flip[:, None, None, None], images.flip(-1), images)


class RandomCrop(ImageAugmentation):
    """Cuts an image of the original size out of the zero-padded one, at a random place.

    Args:
        padding: pixels added on each side.
    """

    draws = 2

    def __init__(self, padding: int = 4) -> None:
        if padding < 0:
            raise UserError(f"padding must be at least 0, got {padding}.")
        self.padding = padding

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        n, _, height, width = images.shape
        padded = functional.pad(images, [self.padding] * 4)
        corner = (uniform * (2 * self.padding + 1)).long()
        rows = corner[:, :1] + torch.arange(height)
        columns = corner[:, 1:] + torch.arange(width)
        cut = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
        return cut.permute(0, 3, 1, 2)


class RandomAffine(ImageAugmentation):
    """Rotates, shifts and scales an image about its centre; nearest neighbour, zeros outside.

    The defaults are the authors' for MNIST. Same transformation as `torchvision.transforms.RandomAffine`.

    Args:
        degrees: rotation, uniform in [-degrees, degrees].
        translate: largest shift as a share of the image's size.
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
        angle = (2 * uniform[:, 0] - 1) * math.radians(self.degrees)
        # torchvision shifts by whole pixels
        shift_x = ((2 * uniform[:, 1] - 1) * self.translate * width).round()
        shift_y = ((2 * uniform[:, 2] - 1) * self.translate * height).round()
        scale = self.scale[0] + uniform[:, 3] * (self.scale[1] - self.scale[0])
        # From output to input: undo the shift, rotate back, scale back; in pixels from the centre.
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        row_x = torch.stack([cos, sin, -cos * shift_x - sin * shift_y], -1)
        row_y = torch.stack([-sin, cos, sin * shift_x - cos * shift_y], -1)
        x = (torch.arange(width) - (width - 1) / 2).expand(height, width)
        y = (torch.arange(height) - (height - 1) / 2)[:, None].expand(height, width)
        pixels = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)  # [H * W, 3]
        grid = pixels @ torch.stack([row_x, row_y], -1)  # [N, H * W, 2]
        grid = grid / torch.tensor([width / 2, height / 2])
        grid = grid.unflatten(1, (height, width))
        moved = functional.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
        return moved.to(torch.uint8)
