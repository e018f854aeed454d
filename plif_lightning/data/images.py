"""MNIST, Fashion-MNIST, CIFAR-10 and scikit-learn's digits, held in memory as uint8."""

import pickle
from collections.abc import Sequence
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision import datasets

from plif_lightning.batch import Batch
from plif_lightning.data.augment import ImageAugmentation
from plif_lightning.data.base import Part, SpikingDataModule, Validation, as_index, take
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.randomness import hashed_uniform


class ImageDataset:
    """Static images, read a batch at a time: indexed, augmented, normalised together.

    Args:
        images: uint8 [n, C, H, W].
        labels: int64 [n].
        sample: place of each one in the original data set, int64 [n].
        mean: per channel, of intensities in [0, 1].
        std: per channel.
        augmentation: applied in this order.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        sample: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Sequence[ImageAugmentation] = (),
    ) -> None:
        self.images, self.labels, self.sample, self.augmentation = images, labels, sample, augmentation
        std_ = torch.tensor(std).view(-1, 1, 1)
        self.scale = 1 / (255 * std_)
        self.shift = -torch.tensor(mean).view(-1, 1, 1) / std_

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, request: BatchRequest) -> Batch:
        # index_select, here and below: ten times faster than indexing for small batches
        images = self.images.index_select(0, request.indices)
        sample = self.sample.index_select(0, request.indices)
        if self.augmentation:
            uniform = hashed_uniform(request.key, sample, sum(a.draws for a in self.augmentation))
            for augment in self.augmentation:
                images = augment(images, uniform[:, : augment.draws])
                uniform = uniform[:, augment.draws :]
        x = images.to(torch.float32).mul_(self.scale).add_(self.shift)
        return Batch(x[:, None], self.labels.index_select(0, request.indices), sample)


class ImageDataModule(SpikingDataModule):
    """Base of the static data sets.

    Args:
        root: folder that holds the data set's own folder, as torchvision lays it out.
        time_steps: T, for which each image is held.
        validation: `test` or `holdout`, see `SpikingDataModule`.
        holdout_fraction: share of each class that `holdout` takes from the training set.
        batch_size: training samples per process and step.
        eval_batch_size: samples per step in validation, test and prediction.
        drop_last: leave out an incomplete last training batch.
        num_workers: loader processes; the batches do not depend on them.
        download: fetch the data set if it is not there.
        augmentation: changes of the training images, in this order.
        normalize: zero mean and unit variance per channel; otherwise intensities in [0, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        root: str = "data",
        time_steps: int = 8,
        validation: Validation = "test",
        holdout_fraction: float = 0.15,
        batch_size: int = 16,
        eval_batch_size: int = 128,
        drop_last: bool = False,
        num_workers: int = 0,
        download: bool = True,
        augmentation: list[ImageAugmentation] | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__(
            root,
            time_steps,
            validation,
            holdout_fraction,
            batch_size,
            eval_batch_size,
            drop_last,
            num_workers,
            download,
        )
        self.augmentation = augmentation or []
        self.normalize = normalize
        self._arrays: dict[bool, tuple[Tensor, Tensor]] = {}

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Images uint8 [n, C, H, W] and labels int64 [n] of the training or test set."""
        raise NotImplementedError

    def arrays(self, train: bool) -> tuple[Tensor, Tensor]:
        """What `read` gives, checked and kept."""
        if train not in self._arrays:
            images, labels = self.read(train)
            part = "training" if train else "test"
            if images.shape[1:] != self.input_shape or len(images) != len(labels) or len(labels) == 0:
                raise UserError(
                    f"{self.title}'s {part} set in {self.root} must hold one label for each image of "
                    f"{list(self.input_shape)}, got images {list(images.shape)} and {len(labels)} labels."
                )
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise UserError(
                    f"{self.title}'s {part} labels in {self.root} must lie in 0..{self.num_classes - 1}, "
                    f"got {labels.min()}..{labels.max()}."
                )
            self._arrays[train] = images, labels
        return self._arrays[train]

    def labels(self, train: bool) -> Tensor:
        return self.arrays(train)[1]

    def inventory(self) -> list[Part]:
        return [
            Part(name, self.labels(train).bincount(minlength=self.num_classes).tolist(), self.arrays(train)[0].nbytes)
            for train, name in ((True, "training"), (False, "test"))
        ]

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> ImageDataset:
        images, labels = self.arrays(train)
        mean, std = (self.mean, self.std) if self.normalize else ((0.0,), (1.0,))
        return ImageDataset(
            take(images, indices),
            take(labels, indices),
            as_index(indices, len(labels)),
            mean,
            std,
            self.augmentation if augment else (),
        )


class _TorchvisionDataModule(ImageDataModule):
    """A data set that torchvision downloads, verifies and reads."""

    source: Any
    files: str

    def prepare_data(self) -> None:
        self.prepared = False
        if self.download and not self._there():
            self.prepared = True
            try:
                for train in (True, False):
                    self.source(self.root, train=train, download=True)
            except (RuntimeError, URLError, OSError) as error:
                raise DatasetNotFoundError(
                    f"{self.title} is not in {self.root.absolute()} and could not be downloaded ({error}). "
                    f"Put {self.files} there, or point --data.root to them."
                ) from error

    def _there(self) -> bool:
        try:
            for train in (True, False):
                self.source(self.root, train=train, download=False)
        except Exception:  # whatever is wrong, the download says it better
            return False
        return True

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        try:
            data = self.source(self.root, train=train, download=False)
        except RuntimeError as error:
            raise DatasetNotFoundError(
                f"{self.title} not found in {self.root.absolute()}. Put {self.files} there, point --data.root to them, "
                "or pass --data.download=true."
            ) from error
        except (ValueError, AssertionError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{self.title} in {self.root.absolute()} cannot be read ({error or type(error).__name__}): "
                f"a file of {self.files} is damaged. Delete it and pass --data.download=true."
            ) from error
        images = torch.as_tensor(data.data)
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
        return images, torch.as_tensor(data.targets)


_IDX = "{train,t10k}-{images-idx3,labels-idx1}-ubyte (or their .gz)"


class MNIST(_TorchvisionDataModule):
    __doc__ = f"MNIST: 60,000 training and 10,000 test images of handwritten digits.\n\n{ImageDataModule.__doc__}"
    title = "MNIST"
    source = datasets.MNIST
    files = f"MNIST/raw/{_IDX}"
    input_shape = (1, 28, 28)
    class_names = tuple("0123456789")
    mean, std = (0.1307,), (0.3081,)


class FashionMNIST(_TorchvisionDataModule):
    __doc__ = f"Fashion-MNIST: 60,000 training and 10,000 test images.\n\n{ImageDataModule.__doc__}"
    title = "Fashion-MNIST"
    source = datasets.FashionMNIST
    files = f"FashionMNIST/raw/{_IDX}"
    input_shape = (1, 28, 28)
    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    mean, std = (0.2860,), (0.3530,)


class CIFAR10(_TorchvisionDataModule):
    __doc__ = f"CIFAR-10: 50,000 training and 10,000 test images.\n\n{ImageDataModule.__doc__}"
    title = "CIFAR-10"
    source = datasets.CIFAR10
    files = "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}"
    input_shape = (3, 32, 32)
    class_names = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    # Over all pixels of the training images: unit variance, as S-Sec. 5 says. The authors' code has
    # 0.2023, 0.1994, 0.2010, the mean of the images' own deviations.
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Digits(ImageDataModule):
    __doc__ = f"""scikit-learn's 1,797 digits of 8x8 pixels; every fifth one is for testing. Nothing to download.

    {ImageDataModule.__doc__}"""
    title = "scikit-learn digits"
    input_shape = (1, 8, 8)
    class_names = tuple("0123456789")
    mean, std = (0.3053,), (0.3760,)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.as_tensor(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        labels = torch.as_tensor(digits.target, dtype=torch.int64)
        chosen = (torch.arange(len(labels)) % 5 != 4) == train
        return images[chosen], labels[chosen]
