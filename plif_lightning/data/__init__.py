"""Data modules of the paper's data sets, and what they are made of."""

from plif_lightning.data.augment import HorizontalFlip, ImageAugmentation, RandomAffine, RandomCrop
from plif_lightning.data.base import SpikingDataModule, Validation
from plif_lightning.data.images import CIFAR10, MNIST, Digits, FashionMNIST

__all__ = [
    "CIFAR10",
    "MNIST",
    "Digits",
    "FashionMNIST",
    "HorizontalFlip",
    "ImageAugmentation",
    "RandomAffine",
    "RandomCrop",
    "SpikingDataModule",
    "Validation",
]
