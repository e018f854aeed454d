"""Images read as sequences: a row or a pixel at each time-step."""

import functools
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

SequenceName = Literal["rows", "pixels", "permuted"]


class ImageSequence(NamedTuple):
    """How images [C, H, W] become sequences [T, F].

    Attributes:
        name: `rows`: T = H, F = C W; `pixels`: T = H W, F = C, row by row; `permuted`: pixels in a random order that
            is the same for all images.
        seed: of the random order.

    Source: Le, Jaitly, Hinton 2015, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units".
    """

    name: SequenceName
    seed: int = 0

    def shape(self, image: tuple[int, ...]) -> tuple[int, int]:
        """(T, F) for images (C, H, W)."""
        channels, height, width = image
        return (height, channels * width) if self.name == "rows" else (height * width, channels)

    def description(self, image: tuple[int, ...]) -> dict[str, Any]:
        """Name, seed, and the `order` of the permuted pixels, which row by row have the numbers 0 to H W - 1."""
        permuted = {"order": _order(self.shape(image)[0], self.seed).tolist()} if self.name == "permuted" else {}
        return {**self._asdict(), **permuted}

    def __call__(self, images: Tensor) -> Tensor:
        """[N, T, F] of images [N, C, H, W]."""
        if self.name == "rows":
            return images.transpose(1, 2).flatten(2)
        pixels = images.flatten(2).transpose(1, 2)
        if self.name == "pixels":
            return pixels
        return pixels[:, _order(pixels.shape[1], self.seed)]


@functools.cache
def _order(pixels: int, seed: int) -> Tensor:
    """A random order of pixels, drawn once for all batches."""
    return torch.randperm(pixels, generator=torch.Generator().manual_seed(seed))
