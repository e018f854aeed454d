"""Batched augmentation against torchvision's, image by image, with the same parameters."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from plif_lightning.data.augment import CutMix, HorizontalFlip, RandomAffine, RandomCrop, RandomErasing
from plif_lightning.errors import UserError


def images(n=40, shape=(3, 12, 14)):
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def uniform(n, draws):
    return torch.rand(n, draws, generator=torch.Generator().manual_seed(1))


def test_flip_mirrors_exactly_the_images_drawn():
    x, u = images(), uniform(40, 1)
    y = HorizontalFlip(0.3)(x, u)
    for before, after, draw in zip(x, y, u[:, 0], strict=True):
        assert torch.equal(after, tv.horizontal_flip(before) if draw < 0.3 else before)


def test_crop_equals_torchvisions_crop_of_the_padded_image():
    x, u = images(), uniform(40, 2)
    y = RandomCrop(3)(x, u)
    assert y.dtype == torch.uint8
    for before, after, (top, left) in zip(x, y, (u * 7).long().tolist(), strict=True):
        assert torch.equal(after, tv.crop(tv.pad(before, [3]), top, left, 12, 14))


def test_crop_reaches_every_place_and_no_other():
    corners = (torch.cartesian_prod(torch.linspace(0, 0.999999, 50), torch.tensor([0.0]))).float()
    x = torch.arange(1, 9, dtype=torch.uint8).view(1, 1, 8, 1).expand(50, 1, 8, 8)
    first_row = RandomCrop(2)(x, corners)[:, 0, 0, 4]
    assert first_row.unique().tolist() == [0, 1, 2, 3]
    assert RandomCrop(0)(x, corners).equal(x)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 14)])
def test_affine_equals_torchvisions_affine(shape):
    x, u = images(shape=shape), uniform(40, 4)
    y = RandomAffine()(x, u)
    height, width = shape[1:]
    for before, after, draw in zip(x, y, u.double().tolist(), strict=True):
        translate = [round((2 * draw[1] - 1) * 0.15 * width), round((2 * draw[2] - 1) * 0.15 * height)]
        expected = tv.affine(
            before,
            angle=(2 * draw[0] - 1) * 30,
            translate=translate,
            scale=0.85 + draw[3] * 0.26,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.NEAREST,
        )
        # Rounding may place a source position on the border of two pixels.
        assert (after != expected).float().mean() <= 0.02


def test_affine_without_any_change_is_the_identity():
    x = images()
    half = torch.full((40, 4), 0.5)
    assert torch.equal(RandomAffine(scale=(1.0, 1.0))(x, half), x)
    quarter_turn = torch.tensor([[1.0, 0.5, 0.5, 0.5]]).expand(40, 4)
    square = images(shape=(1, 9, 9))
    turned = RandomAffine(degrees=90.0, scale=(1.0, 1.0))(square, quarter_turn)
    assert torch.equal(turned, square.rot90(-1, (-2, -1)))


def test_erasing_zeroes_one_rectangle_of_the_asked_area_and_leaves_the_rest():
    x, u = images(400, (3, 28, 20)).clamp(min=1), uniform(400, 5)
    before = x.clone()
    y = RandomErasing(0.4, area=(0.05, 0.2), ratio=(0.5, 2.0))(x, u)
    assert torch.equal(x, before)
    erased = (y == 0).all(1)
    for image, after, mask, draw in zip(x, y, erased, u, strict=True):
        if draw[0] >= 0.4:
            assert torch.equal(image, after)
            continue
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        assert torch.equal(after, tv.erase(image, top, left, bottom - top, right - left, torch.tensor(0)))
        assert 0.04 <= mask.float().mean() <= 0.22
        assert 0.4 <= (bottom - top) / (right - left) <= 2.5
    assert 0.3 < erased.flatten(1).any(1).float().mean() < 0.5


def test_erasing_reaches_every_pixel_and_fits_into_the_smallest_image():
    y = RandomErasing(1.0)(images(2000, (1, 6, 5)).clamp(min=1), uniform(2000, 5))
    assert (y == 0).any(0).all()
    assert not RandomErasing(1.0)(torch.ones(3, 1, 1, 1, dtype=torch.uint8), uniform(3, 5)).any()


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


def test_a_wrong_argument_is_refused():
    wrong = (
        (HorizontalFlip, {"p": 1.5}),
        (CutMix, {"p": -0.1}),
        (RandomCrop, {"padding": -1}),
        (RandomAffine, {"scale": (0.0, 1.0)}),
        (RandomErasing, {"area": (0.0, 0.5)}),
        (RandomErasing, {"ratio": (2.0, 1.0)}),
    )
    for make, arguments in wrong:
        with pytest.raises(UserError, match=next(iter(arguments))):
            make(**arguments)
