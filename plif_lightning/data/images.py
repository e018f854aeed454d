"""Base class of static image data sets, held in memory as uint8."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plif_lightning.data.augment import ImageAugmentation, mixture, require_one_mix
from plif_lightning.data.base import Part, SpikingDataModule, as_index
from plif_lightning.data.batch import Batch
from plif_lightning.data.loading import BatchedDataset, BatchRequest
from plif_lightning.errors import UserError
from plif_lightning.runtime.randomness import hashed_uniform


class ImageDataset(BatchedDataset):
    """Static images; each batch is indexed, augmented and normalised in one call.

    Args:
        images: images of the original data set, uint8 [m, C, H, W].
        labels: their labels, int64 [m].
        num_classes: how many there are.
        sample: indices of the images in this data set, int64 [n].
        mean: mean per channel, for intensities in [0, 1].
        std: standard deviation per channel.
        augmentation: applied in this order.
        images_anew: maps the images again in another process; for memory-mapped files, where pickling would copy them.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        sample: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Sequence[ImageAugmentation] = (),
        images_anew: Callable[[], Tensor] | None = None,
    ) -> None:
        self.images, self._labels, self.sample, self.augmentation = images, labels, sample, augmentation
        self.num_classes, self.images_anew = num_classes, images_anew
        std_ = torch.tensor(std).view(-1, 1, 1)
        self.scale = 1 / (255 * std_)
        self.shift = -torch.tensor(mean).view(-1, 1, 1) / std_

    def __len__(self) -> int:
        return len(self.sample)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "images": None} if self.images_anew is not None else vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.images_anew is not None:
            self.images = self.images_anew()

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
        if self.augmentation:
            # A partner uses its own random numbers, so it is augmented as it would be as a sample.
            uniform = hashed_uniform(request.key, samples, sum(a.draws for a in self.augmentation))
            for augment in self.augmentation:  # CutMix makes one image out of two
                images = augment(images, uniform[: len(images), : augment.draws])
                uniform = uniform[:, augment.draws :]
        x = images.to(torch.float32).mul_(self.scale).add_(self.shift)
        return Batch(x, self._labels.index_select(0, sample), sample, target)


@dataclass(eq=False, repr=False)
class ImageDataModule(SpikingDataModule):
    """Base class of static image data sets. A subclass implements `read`.

    Class attributes that a subclass sets, beside those of `SpikingDataModule`:
        mean: mean per channel, for intensities in [0, 1].
        std: standard deviation per channel.

    Args:
        augmentation: augmentation of the training images, in this order.
        normalize: zero mean and unit variance per channel; otherwise intensities in [0, 1].
    """

    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    augmentation: list[ImageAugmentation] | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_mix(self.augmentation or ())
        self._arrays: dict[bool, tuple[Tensor, Tensor]] = {}

    def _forget(self) -> None:
        super()._forget()
        self._arrays.clear()

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Images uint8 [n, C, H, W] and labels int64 [n] of the training or test set."""
        raise NotImplementedError

    def images_anew(self, train: bool) -> Callable[[], Tensor] | None:
        """Function that maps the images of `read` again in another process; None if they are in memory."""
        return None

    def arrays(self, train: bool) -> tuple[Tensor, Tensor]:
        """Checked and cached result of `read`."""
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

    def reading(self) -> str:
        if not self.normalize:
            return super().reading()
        scale = [f"{value:.4g}" for value in (*self.mean, *self.std)]
        return f"mean and deviation {', '.join(scale)}; {super().reading()}"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Channels, size [pixels], and x = (pixel * scale - mean) / std, per channel, of pixels 0..255."""
        mean, std = (self.mean, self.std) if self.normalize else ((0.0,), (1.0,))
        return {**super().preprocessing, "scale": 1 / 255, "mean": [*map(float, mean)], "std": [*map(float, std)]}

    def inventory(self) -> list[Part]:
        return [
            Part(name, self.labels(train).bincount(minlength=self.num_classes).tolist(), self.arrays(train)[0].nbytes)
            for train, name in ((True, "training"), (False, "test"))
        ]

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> ImageDataset:
        images, labels = self.arrays(train)
        mean, std = (self.mean, self.std) if self.normalize else ((0.0,), (1.0,))
        return ImageDataset(
            images,
            labels,
            self.num_classes,
            as_index(indices, len(labels)),
            mean,
            std,
            (self.augmentation or ()) if augment else (),
            self.images_anew(train),
        )
