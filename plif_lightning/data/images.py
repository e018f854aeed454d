"""Static images, held in memory or memory-mapped as uint8: MNIST, Fashion-MNIST, CIFAR-10, scikit-learn's digits."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from plif_lightning.data.augment import CutMix, augment, mixed_batch, of_batches
from plif_lightning.data.base import SpikingDataModule, SplitInventory, as_index, split_name
from plif_lightning.data.loading import Batch, BatchedDataset, BatchRequest
from plif_lightning.data.mixes import mixture
from plif_lightning.data.sequences import ImageSequence, SequenceName
from plif_lightning.errors import DataNotFoundError, UserError, require_one_of
from plif_lightning.runtime.program import needed_by


class ImageDataset(BatchedDataset):
    """Static images; each call indexes, augments and normalises a batch.

    Args:
        arrays: `images` of the original data set, uint8 [m, C, H, W], and their labels `label`, int64 [m].
        num_classes: number of classes.
        sample: indices of the images in this data set, int64 [n].
        mean: mean per channel, for intensities in [0, 1].
        std: standard deviation per channel.
        augmentation: applied in this order.
        sequence: read images as sequences; None for images.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        num_classes: int,
        sample: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Sequence[CutMix | v2.Transform] = (),
        sequence: ImageSequence | None = None,
    ) -> None:
        self.arrays, self.num_classes, self.sample, self.augmentation = arrays, num_classes, sample, augmentation
        self.mean, self.std, self.sequence = mean, std, sequence
        self.each, self.mix = of_batches(augmentation)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self.images = torch.from_numpy(arrays["images"])  # nothing writes into it
        self._labels = torch.tensor(arrays["label"])
        std_ = torch.tensor(std).view(-1, 1, 1)
        self.scale = 1 / (255 * std_)
        self.shift = -torch.tensor(mean).view(-1, 1, 1) / std_

    def __len__(self) -> int:
        return len(self.sample)

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickling maps cached images again, instead of sending them through a pipe.
        arguments = self.arrays, self.num_classes, self.sample, self.mean, self.std, self.augmentation, self.sequence
        return type(self), arguments

    def labels(self) -> Tensor:
        return self._labels[self.sample]

    def batch(self, request: BatchRequest) -> Batch:
        # index_select, here and below: ten times faster than indexing for small batches
        sample = self.sample.index_select(0, request.indices)
        height, width = self.images.shape[-2:]
        samples, target = mixture(
            self.augmentation, request.key, sample, self.sample, (height, width), self._labels, self.num_classes
        )
        images = self.images.index_select(0, samples)
        if self.each:  # a partner draws its random numbers as if it were a sample
            images = augment(self.each, request.key, samples, images)
        x = images.to(torch.float32).mul_(self.scale).add_(self.shift)
        label = self._labels.index_select(0, sample)
        if self.mix is not None:
            x, target = mixed_batch(self.mix, request.key, sample, x, label, self.num_classes)
        return Batch(x if self.sequence is None else self.sequence(x), label, sample, target)


@dataclass(eq=False, repr=False)
class ImageDataModule(SpikingDataModule):
    """Base class of static image data sets. A subclass implements `read`.

    Class attributes that a subclass sets, in addition to `SpikingDataModule`'s:
        image_shape: (C, H, W), in the place of `input_shape`.
        mean: mean per channel, for intensities in [0, 1].
        std: standard deviation per channel.

    Args:
        augmentation: of the training images, in this order: transforms of `torchvision.transforms.v2` of an
            image uint8 [C, H, W]; `CutMix`; last, its MixUp or CutMix of batches, drawn for each batch
            if there are more. Random numbers depend on the seed, the epoch and the sample alone; those of
            batches on the batch's first sample.
        normalize: zero mean and unit variance per channel; otherwise intensities in [0, 1].
        sequence: read an image as a sequence [T, F] by `rows`, by `pixels`, or by pixels in a random order that all
            images share (`permuted`), with `time_steps` the image's height, or its number of pixels.
        permutation_seed: of the random order.
    """

    image_shape: ClassVar[tuple[int, ...]]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    augmentation: list[CutMix | v2.Transform] | None = None
    normalize: bool = True
    sequence: SequenceName | None = None
    permutation_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        of_batches(self.augmentation or ())
        if self.sequence is not None:
            require_one_of("data.sequence", self.sequence, SequenceName)
        self._arrays: dict[bool, Mapping[str, NDArray[Any]]] = {}
        self._identities: dict[bool, str] = {}

    @property
    def image_sequence(self) -> ImageSequence | None:
        """How images are read as sequences; None for images."""
        return None if self.sequence is None else ImageSequence(self.sequence, self.permutation_seed)

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(C, H, W), or (F,) of sequences."""
        return self.image_shape if self.image_sequence is None else self.image_sequence.shape(self.image_shape)[1:]

    def read(self, train: bool) -> tuple[Any, Any]:
        """Images uint8 [n, C, H, W] and labels int64 [n] of the training or test set, arrays or tensors."""
        raise NotImplementedError

    def arrays(self, train: bool) -> Mapping[str, NDArray[Any]]:
        """`images` uint8 [n, C, H, W] and `label` int64 [n] of the training or test set, read once."""
        if train not in self._arrays:
            images, labels = map(np.asarray, self.read(train))
            fits = images.dtype == np.uint8 and images.shape == (len(labels), *self.image_shape) and len(labels)
            if not fits or labels.min() < 0 or labels.max() >= self.num_classes:
                raise UserError(
                    f"{self.title} in {self.root} must hold images uint8 [n, {', '.join(map(str, self.image_shape))}] "
                    f"and labels below {self.num_classes}, got {images.dtype} {list(images.shape)}."
                )
            self._arrays[train] = {"images": np.ascontiguousarray(images), "label": labels.astype(np.int64)}
        return self._arrays[train]

    def labels(self, train: bool) -> Tensor:
        return torch.tensor(self.arrays(train)["label"])

    def identity(self, train: bool = True) -> str:
        if train not in self._identities:  # every checkpoint asks
            digest = hashlib.blake2b(digest_size=16)
            for name in ("images", "label"):
                digest.update(np.ascontiguousarray(self.arrays(train)[name]).data)
            self._identities[train] = digest.hexdigest()
        return self._identities[train]

    def reading(self) -> str:
        of_sequence = "" if self.image_sequence is None else f"{self.sequence}, seed {self.permutation_seed}; "
        if not self.normalize:
            return f"{of_sequence}{super().reading()}"
        scale = [f"{value:.4g}" for value in (*self.mean, *self.std)]
        return f"mean and deviation {', '.join(scale)}; {of_sequence}{super().reading()}"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Channels, size [pixels], and x = (pixel * scale - mean) / std, per channel, of pixels 0..255."""
        mean, std = (self.mean, self.std) if self.normalize else ((0.0,), (1.0,))
        channels, *size = self.image_shape
        of_pixels = {"scale": 1 / 255, "mean": [*map(float, mean)], "std": [*map(float, std)]}
        sequence = (
            {} if self.image_sequence is None else {"sequence": self.image_sequence.description(self.image_shape)}
        )
        kind = "images" if self.image_sequence is None else "sequences"
        return {**super().preprocessing, "kind": kind, "channels": channels, "size": size, **of_pixels, **sequence}

    def inventory(self) -> list[SplitInventory]:
        return [
            SplitInventory(
                split_name(train),
                self.labels(train).bincount(minlength=self.num_classes).tolist(),
                self.arrays(train)["images"].nbytes,
            )
            for train in (True, False)
        ]

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> ImageDataset:
        arrays = self.arrays(train)
        mean, std = (self.mean, self.std) if self.normalize else ((0.0,), (1.0,))
        chosen, sequence = as_index(indices, len(arrays["label"])), self.image_sequence
        if sequence is not None and (steps := sequence.shape(self.image_shape)[0]) != self.time_steps:
            raise UserError(f"{self.title} by {sequence.name} has {steps} steps: pass --data.time_steps {steps}.")
        of_split = (self.augmentation or ()) if augment else ()
        return ImageDataset(arrays, self.num_classes, chosen, mean, std, of_split, sequence)


@dataclass(eq=False, repr=False)
class TorchvisionDataModule(ImageDataModule):
    """Base class of data sets that torchvision downloads, verifies and reads.

    Class attributes that a subclass sets, in addition to `ImageDataModule`'s:
        torchvision_class: class of `torchvision.datasets`.
        files: files that it reads, for messages.
        published: numbers of training and of test images.
    """

    torchvision_class: ClassVar[Any]
    files: ClassVar[str]
    published: ClassVar[tuple[int, int]]

    def prepare_data(self) -> None:
        for train in (True, False):
            self._open(train, self.download)

    def _open(self, train: bool, download: bool = False) -> Any:
        try:
            return self.torchvision_class(self.root, train=train, download=download)
        except Exception as error:  # torchvision raises many types for missing and for damaged files
            fault = f"cannot be {'downloaded' if download else 'read'} ({str(error) or type(error).__name__})"
            raise DataNotFoundError(
                f"{self.title} in {Path(self.root).absolute()} {fault}: {self.files} are missing or damaged. "
                "Delete a damaged file; put the files there, "
                f"{'' if download else 'pass --data.download=true, '}or point --data.root to where they are."
            ) from error

    def read(self, train: bool) -> tuple[Any, Any]:
        data = self._open(train)
        images = np.asarray(data.data)
        return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2), data.targets

    @property
    def is_part(self) -> bool:
        return tuple(len(self.labels(train)) for train in (True, False)) != self.published

    @property
    def origin_note(self) -> str:
        if not self.is_part:
            return ""
        return f"a PART of its {' and '.join(f'{n:,}' for n in self.published)} images, or another data set"


_IDX = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"


@dataclass(eq=False, repr=False)
class MNIST(TorchvisionDataModule):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits."""

    title = "MNIST"
    torchvision_class = datasets.MNIST
    files = _IDX
    published = 60_000, 10_000
    image_shape = (1, 28, 28)
    class_names = tuple("0123456789")
    mean, std = (0.1307,), (0.3081,)


@dataclass(eq=False, repr=False)
class FashionMNIST(TorchvisionDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images."""

    title = "Fashion-MNIST"
    torchvision_class = datasets.FashionMNIST
    files = f"Fashion{_IDX}"
    published = 60_000, 10_000
    image_shape = (1, 28, 28)
    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    mean, std = (0.2860,), (0.3530,)


@dataclass(eq=False, repr=False)
class CIFAR10(TorchvisionDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images.

    Args:
        authors_std: divide by the authors' standard deviations, means of per-image ones, instead of over all
            pixels.
    """

    authors_std: bool = False

    title = "CIFAR-10"
    torchvision_class = datasets.CIFAR10
    published = 50_000, 10_000
    files = "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}"
    image_shape = (3, 32, 32)
    class_names = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    # Over all pixels of the training images, which gives the unit variance of S-Sec. 5.
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.authors_std:
            self.std = (0.2023, 0.1994, 0.2010)  # type: ignore[misc]


_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""


@dataclass(eq=False, repr=False)
class CIFAR100(TorchvisionDataModule):
    """CIFAR-100: 50,000 training and 10,000 test images of 100 classes."""

    title = "CIFAR-100"
    torchvision_class = datasets.CIFAR100
    published = 50_000, 10_000
    files = "cifar-100-python/{train,test,meta}"
    image_shape = (3, 32, 32)
    class_names = tuple(_CIFAR100.split())
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


@dataclass(eq=False, repr=False)
class Digits(ImageDataModule):
    """scikit-learn's 1,797 digits of 8x8 pixels; every fifth is a test image. Nothing to download."""

    title = "scikit-learn digits"
    image_shape = (1, 8, 8)
    class_names = tuple("0123456789")
    mean, std = (0.3053,), (0.3760,)

    def read(self, train: bool) -> tuple[Any, Any]:
        with needed_by("the data set Digits"):
            from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        chosen = (np.arange(len(images)) % 5 != 4) == train
        return images[chosen], digits.target[chosen]
