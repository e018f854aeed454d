"""scikit-learn's digits: real images that need no download."""

from dataclasses import dataclass

import torch
from torch import Tensor

from plif_lightning.data.images import ImageDataModule
from plif_lightning.runtime.extras import needed_by


@dataclass(eq=False, repr=False)
class Digits(ImageDataModule):
    """scikit-learn's 1,797 digits of 8x8 pixels; every fifth one is a test image. Nothing to download."""

    title = "scikit-learn digits"
    input_shape = (1, 8, 8)
    class_names = tuple("0123456789")
    mean, std = (0.3053,), (0.3760,)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        with needed_by("the data set Digits"):
            from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.as_tensor(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        labels = torch.as_tensor(digits.target, dtype=torch.int64)
        chosen = (torch.arange(len(labels)) % 5 != 4) == train
        return images[chosen], labels[chosen]
