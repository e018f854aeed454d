"""Data modules of the paper's data sets and of user data, their base classes and augmentations."""

from plif_lightning.data.augment import CutMix
from plif_lightning.data.base import SpikingDataModule, Validation
from plif_lightning.data.cochlea import SHD, SSC
from plif_lightning.data.event_augment import (
    EventDrop,
    EventFlip,
    EventMix,
    EventRotation,
    EventTranslation,
    PolarityFlip,
    TimeDrop,
)
from plif_lightning.data.event_folder import EventFolder
from plif_lightning.data.events import EventDataModule
from plif_lightning.data.generated import BinaryAdding
from plif_lightning.data.image_folder import ImageFolder
from plif_lightning.data.images import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST, ImageDataModule
from plif_lightning.data.published import CIFAR10DVS, NMNIST, DVSGesture
from plif_lightning.data.sequence_folder import SequenceFolder
from plif_lightning.data.tonic_events import TonicEvents

__all__ = [
    "CIFAR10",
    "CIFAR10DVS",
    "CIFAR100",
    "MNIST",
    "NMNIST",
    "SHD",
    "SSC",
    "BinaryAdding",
    "CutMix",
    "DVSGesture",
    "Digits",
    "EventDataModule",
    "EventDrop",
    "EventFlip",
    "EventFolder",
    "EventMix",
    "EventRotation",
    "EventTranslation",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "PolarityFlip",
    "SequenceFolder",
    "SpikingDataModule",
    "TimeDrop",
    "TonicEvents",
    "Validation",
]
