"""Augmentation by torchvision's transforms, each image alone, and mixtures against torchvision's."""

import pytest
import torch
from torchvision.transforms import v2

from plif_lightning.data import Digits
from plif_lightning.data.augment import CutMix, augment
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import UserError
from plif_lightning.runtime.randomness import fold_in


def images(n=40, shape=(3, 12, 14)):
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def uniform(n, draws):
    return torch.rand(n, draws, generator=torch.Generator().manual_seed(1))


CHAIN = [v2.RandomHorizontalFlip(), v2.RandomCrop((12, 14), padding=2), v2.RandAugment(), v2.RandomErasing(0.7)]


def test_augmented_image_equals_torchvisions_and_depends_on_key_and_sample():
    x, samples = images(12), torch.arange(12) * 7
    before = torch.get_rng_state()
    together = augment(CHAIN, 3, samples, x)
    assert torch.equal(torch.get_rng_state(), before)
    for sample, image, found in zip(samples.tolist(), x, together, strict=True):
        for place, transform in enumerate(CHAIN):
            torch.manual_seed(fold_in(3, sample, place))
            image = transform(image)
        assert torch.equal(found, image)
    assert torch.equal(augment(CHAIN, 3, samples[5:6], x[5:6])[0], together[5])
    assert not torch.equal(augment(CHAIN, 4, samples, x), together)


@pytest.mark.parametrize("transform", [v2.ToDtype(torch.float32), v2.CenterCrop(5), v2.RandomCrop(20, padding=9)])
def test_a_transform_that_changes_type_or_size_is_refused_by_name(transform):
    with pytest.raises(UserError, match=rf"{type(transform).__name__} makes torch\.\w+ \[3, "):
        augment([transform], 0, torch.arange(2), images(2))


def batch_of(*augmentation, key=3):
    data = Digits(augmentation=list(augmentation))
    data.setup("fit")
    return data.train_set.batch(BatchRequest(key, torch.arange(16)))


@pytest.mark.parametrize("mix", [v2.MixUp(), v2.CutMix(alpha=0.5)])
def test_a_batch_is_mixed_by_torchvision(mix):
    plain, mixed = batch_of(v2.RandomHorizontalFlip()), batch_of(v2.RandomHorizontalFlip(), mix)
    assert torch.equal(mixed.label, plain.label)
    torch.manual_seed(fold_in(3, "mix", 0))
    x, target = type(mix)(alpha=mix.alpha, num_classes=10)(plain.x, plain.label)
    assert torch.equal(mixed.x, x)
    assert torch.equal(mixed.target, target)
    assert mix.num_classes is None
    assert torch.equal(batch_of(v2.RandomHorizontalFlip(), mix).x, mixed.x)
    for wrong in ([mix, v2.RandomHorizontalFlip()], [CutMix(), mix], [mix, CutMix()]):
        with pytest.raises(UserError, match=r"must be the only mix, and torchvision's last|more than once"):
            Digits(augmentation=wrong)


@pytest.mark.parametrize("choice", [False, True])
def test_each_batch_draws_mixup_or_cutmix(choice):
    """As in Spikformer's recipe: timm's Mixup with mixup_alpha 0.5 and cutmix_alpha 1."""
    mixes = [v2.MixUp(alpha=0.5), v2.CutMix(alpha=1.0)]
    given = [v2.RandomChoice(mixes)] if choice else mixes
    plain, drawn = batch_of(), []
    for key in range(20):
        mixed = batch_of(v2.RandomHorizontalFlip(0.0), *given, key=key)
        torch.manual_seed(fold_in(key, "mix", 0))
        drawn.append(int(torch.multinomial(torch.tensor([0.5, 0.5]), 1)))
        mix = type(mixes[drawn[-1]])(alpha=mixes[drawn[-1]].alpha, num_classes=10)
        x, target = mix(plain.x, plain.label)
        assert torch.equal(mixed.x, x)
        assert torch.equal(mixed.target, target)
    assert 4 < sum(drawn) < 16


def test_a_mixture_is_torchvisions_with_the_same_rectangle():
    x, u = images(80, (3, 12, 14)), uniform(40, 5)
    before = x.clone()
    mix = CutMix(0.7)
    boxes = mix.boxes(u.numpy(), 12, 14)
    y = mix(x, u)
    assert torch.equal(x, before)
    for own, partner, after, box, draw in zip(x[:40], x[40:], y, boxes.tolist(), u.tolist(), strict=True):
        pair = torch.stack([own, partner])
        theirs = v2.CutMix(num_classes=2).transform(pair, {"labels": None, "batch_size": 2, "box": box})[0]
        assert torch.equal(after, theirs if draw[0] < 0.7 else own)
        if draw[0] < 0.7:
            # Before it is cut at the image's border, a rectangle has the drawn centre and the drawn share of the area.
            for low, high, centre, size in ((box[0], box[2], draw[2], 14), (box[1], box[3], draw[3], 12)):
                half = draw[1] ** 0.5 * size / 2
                assert abs(low - max(centre * size - half, 0)) <= 0.5 + 1e-4
                assert abs(high - min(centre * size + half, size)) <= 0.5 + 1e-4
    assert 5 < (boxes.any(1) == 0).sum() < 20
