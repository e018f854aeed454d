"""Data modules of the paper's data sets, and what they are made of."""

from plif_lightning.data.augment import HorizontalFlip, ImageAugmentation, RandomAffine, RandomCrop
from plif_lightning.data.base import SpikingDataModule, Validation
from plif_lightning.data.events import CIFAR10DVS, NMNIST, DVSGesture
from plif_lightning.data.images import CIFAR10, MNIST, Digits, FashionMNIST
from plif_lightning.events.augment import (
    EventDrop,
    EventFlip,
    EventMix,
    EventRotation,
    EventTranslation,
    PolarityFlip,
    TimeDrop,
)

__all__ = [
    "CIFAR10",
    "CIFAR10DVS",
    "MNIST",
    "NMNIST",
    "DVSGesture",
    "Digits",
    "EventDrop",
    "EventFlip",
    "EventMix",
    "EventRotation",
    "EventTranslation",
    "FashionMNIST",
    "HorizontalFlip",
    "ImageAugmentation",
    "PolarityFlip",
    "RandomAffine",
    "RandomCrop",
    "SpikingDataModule",
    "TimeDrop",
    "Validation",
]
