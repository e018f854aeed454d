"""Augmentation of uint8 images: torchvision's transforms and mixtures, reproducible for each sample."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.transforms import v2

from plif_lightning.data.mixes import RectangleMix, require_single_mix
from plif_lightning.errors import UserError
from plif_lightning.runtime.randomness import fold_in, hashed_uniform

_OF_BATCHES = (v2.MixUp, v2.CutMix)


@contextmanager
def _drawing() -> Iterator[torch.Generator]:
    """Torchvision's generator; its state is restored afterwards."""
    generator = torch.default_generator
    before = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(before)


def augment(augmentation: Sequence["CutMix | v2.Transform"], key: int, samples: Tensor, images: Tensor) -> Tensor:
    """Images after each augmentation in turn, determined by `key` and sample alone.

    Args:
        augmentation: transforms of torchvision, each called with one image, and `CutMix`.
        key: as for `hashed_uniform`.
        samples: int64 [N], or [2 N] before a `CutMix`.
        images: uint8 [len(samples), C, H, W].

    Returns:
        uint8 [N, C, H, W].

    Raises:
        UserError: a transform changes the type or the size of an image.
    """
    with _drawing() as generator:
        for index, augment in enumerate(augmentation):
            if isinstance(augment, CutMix):
                images = augment(images, hashed_uniform(key, samples, augment.draws))
                continue
            changed = []
            for sample, image in zip(samples[: len(images)].tolist(), images, strict=True):
                generator.manual_seed(fold_in(key, sample, index))
                changed.append(augment(image))
                if changed[-1].dtype != torch.uint8 or changed[-1].shape != image.shape:
                    raise UserError(
                        f"data.augmentation: {type(augment).__name__} makes {changed[-1].dtype} "
                        f"{list(changed[-1].shape)} of an image uint8 {list(image.shape)}: keep type and size."
                    )
            images = torch.stack(changed)
    return images


def mixed_batch(
    mix: v2.Transform, key: int, sample: Tensor, x: Tensor, label: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """x [N, C, H, W] and class shares [N, num_classes] of a batch after `of_batches` mixed its images."""
    mix = copy.deepcopy(mix)
    for transform in getattr(mix, "transforms", [mix]):
        transform.num_classes = num_classes
    with _drawing() as generator:
        generator.manual_seed(fold_in(key, "mix", int(sample[0])))
        mixed, target = mix(x, label)
    return mixed, target


def _mixes_batches(augment: "CutMix | v2.Transform | None") -> bool:
    parts = augment.transforms if isinstance(augment, v2.RandomChoice) else [augment]
    return all(isinstance(transform, _OF_BATCHES) for transform in parts)


def of_batches(
    augmentation: Sequence["CutMix | v2.Transform"],
) -> tuple[list["CutMix | v2.Transform"], v2.Transform | None]:
    """Augmentations of single images, then a mix of complete batches, drawn for each batch if there are more.

    Raises:
        UserError: a mix of complete batches precedes another augmentation, or beside this project's `CutMix`.
    """
    require_single_mix(augmentation)
    mixes = [*itertools.takewhile(_mixes_batches, reversed(augmentation))][::-1]
    each = [*augmentation[: len(augmentation) - len(mixes)]]
    for augment in each:
        if _mixes_batches(augment) or (isinstance(augment, CutMix) and mixes):
            raise UserError(
                f"data.augmentation: {type(augment).__name__} must be the only mix, and torchvision's last. Each batch "
                "draws one of MixUp and torchvision.transforms.v2.CutMix if both are last."
            )
    return each, v2.RandomChoice(mixes) if len(mixes) > 1 else mixes[0] if mixes else None


class CutMix(RectangleMix):
    """Replace a rectangle of an image with that of another training image.

    The target becomes a mixture of both classes, in proportion to their areas. Augmentations before it change both
    images, then their mixtures.

    Args:
        p: probability.

    Source: Yun et al. 2019, with alpha = 1.
    """

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Mixtures, uint8 [N, C, H, W], from images [2 N, C, H, W], the second half the partners of the first."""
        image, partner = (half.numpy() for half in images.chunk(2))
        mixed = image.copy()
        for i, (left, top, right, bottom) in enumerate(self.boxes(uniform[: len(image)].numpy(), *images.shape[-2:])):
            mixed[i, :, top:bottom, left:right] = partner[i, :, top:bottom, left:right]
        return torch.from_numpy(mixed)
