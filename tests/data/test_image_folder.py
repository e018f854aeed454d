"""Images in class folders, against torchvision's ImageFolder, and refused input."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import datasets, transforms

from plif_lightning.data import ImageFolder
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import UserError
from tests import writers


@pytest.fixture
def root(tmp_path):
    writers.write_image_folder(tmp_path / "pets")
    return tmp_path / "pets"


def made(root, **settings):
    data = ImageFolder(root=str(root), **{"validation": "test", **settings})
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize(("size", "colour"), [(None, "auto"), (None, "grey"), (12, "rgb")])
def test_images_equal_torchvisions_image_folder(root, size, colour):
    cat = root / "train" / "cat"
    with Image.open(cat / "0.png") as image:
        image.save(cat / "0.jpg")
        clear = image.convert("RGBA")
    clear.putalpha(100)
    clear.save(cat / "transparent.png")
    image.save(cat / "frames.tif", save_all=True, append_images=[Image.new("RGB", image.size, "blue")])
    data = made(root, size=size, colour=colour, normalize=False)
    steps = [transforms.ToTensor()]
    if size:
        steps = [transforms.Resize((size, size)), *steps]
    if colour == "grey":
        steps = [transforms.Grayscale(), *steps]
    for train in (True, False):
        theirs = datasets.ImageFolder(root / ("train" if train else "test"), transforms.Compose(steps))
        ours = data.dataset(train, None, augment=False)
        assert data.class_names == tuple(theirs.classes)
        assert len(ours) == len(theirs) == (21 if train else 6)
        for (x, label), (image, target) in zip((ours[i] for i in range(len(ours))), theirs, strict=True):
            torch.testing.assert_close(x, image, atol=0.51 / 255, rtol=0)
            assert label == target
    assert data.input_shape == tuple(ours[0][0].shape)


def test_the_suffix_of_a_file_may_be_written_in_capitals(root):
    before = made(root)
    cat = root / "train" / "cat"
    (cat / "0.png").rename(cat / "0.PNG")  # as cameras name them
    after = made(root)
    assert torch.equal(after.labels(train=True), before.labels(train=True))
    assert torch.equal(after.dataset(True, None, False)[0][0], before.dataset(True, None, False)[0][0])


def test_images_follow_their_exif_orientation(root):
    upright = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    turned = upright.transpose(1, 0, 2)
    stored = [upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1]]
    stored += [turned, turned[::-1], turned[::-1, ::-1], turned[:, ::-1]]
    shutil.rmtree(root / "train" / "cat")
    (root / "train" / "cat").mkdir()
    for orientation, pixels in enumerate(stored, 1):
        exif = Image.Exif()
        exif[0x112] = orientation
        path = root / "train" / "cat" / f"{9 - orientation}.png"  # the first image, which sets the size, is turned
        Image.fromarray(pixels).save(path, exif=exif)
        with Image.open(path) as image:
            assert np.array_equal(ImageOps.exif_transpose(image), upright), orientation
    data = made(root)
    assert (data.arrays(True)["images"][:8] == upright.transpose(2, 0, 1)).all()
    assert data.input_shape == (3, 8, 10)


def test_mean_and_deviation_come_from_the_training_images(root):
    data = made(root)
    x = data.dataset(True, None, augment=False).batch(BatchRequest(0, torch.arange(18))).x
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_images_are_decoded_once_and_the_cache_can_be_copied_without_them(root, monkeypatch):
    first = made(root)
    made(root, size=5)  # another size deletes nothing
    expected = first.identity(), first.identity(train=False), first.input_shape, first.class_names, first.mean
    copy, alone = root.with_name("copy"), root.with_name("alone")
    shutil.copytree(root, copy, copy_function=shutil.copyfile)  # with other modification times
    shutil.copytree(root / ".plif_lightning", alone / ".plif_lightning")
    monkeypatch.setattr(Image, "open", None)
    for place in (root, copy, alone):
        again = made(place)
        for train in (True, False):
            assert np.array_equal(again.arrays(train)["images"], first.arrays(train)["images"])
            assert torch.equal(again.labels(train), first.labels(train))
    assert expected == (again.identity(), again.identity(False), again.input_shape, again.class_names, again.mean)
    assert first.verify() == 10  # five arrays of each part


def test_identity_changes_with_a_pixel_or_a_file(root):
    same, other = root.with_name("same"), root.with_name("other")
    for copy in (same, other):
        shutil.copytree(root, copy)
    path = other / "train" / "cat" / "0.png"
    with Image.open(path) as image:
        image.putpixel((3, 4), (1, 2, 3))
        image.save(path)
    whole, equal, changed = (made(place).identity() for place in (root, same, other))
    assert whole == equal != changed
    image.save(root / "train" / "cat" / "9.png")
    assert made(root).identity() not in (whole, changed)


def test_an_image_that_is_overwritten_with_as_many_bytes_is_read_again(tmp_path):
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            (root / part / name).mkdir(parents=True)
            Image.new("L", (5, 4), 100).save(root / part / name / "0.bmp")
    before = made(root)
    assert before.arrays(True)["images"].max() == 100
    Image.new("L", (5, 4), 200).save(root / "train/cat/0.bmp")
    assert made(root).arrays(True)["images"].max() == 200
    assert made(root).identity() != before.identity()


@pytest.mark.parametrize("damage", [lambda whole: whole[:-50] + bytes(50), lambda whole: whole[:-1]])
def test_a_damaged_cache_is_built_again_with_a_warning(root, damage, caplog):
    made(root)
    (path,) = root.glob(".plif_lightning/*-train/*/images.npy")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    made(root)
    assert "It is built again, if its files are there." in caplog.text
    assert path.read_bytes() == whole
    path.write_bytes(damage(whole))
    shutil.rmtree(root / "train")
    with pytest.raises(UserError, match="holds no class folders"):
        made(root)


def test_holdout_is_a_view_and_the_store_may_be_elsewhere(root, tmp_path):
    data = made(root, validation="holdout", holdout_fraction=0.34, store=str(tmp_path / "store"))
    assert not (root / ".plif_lightning").exists()
    assert data.train_set.images.data_ptr() == data.val_set.images.data_ptr()
    assert {int(data.val_set[i][1]) for i in range(len(data.val_set))} == {0, 1, 2}
    assert data.sizes() == {"training": 12, "val": 6, "test": 6}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.* cannot be written.*--data\.store"):
        made(root, store=str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: [path.unlink() for path in root.glob("train/cat/*")],
            r"train/cat has no file .*\.jpg.* or remove",
        ),
        (lambda root: (root / "test/fish").mkdir(), r"lacks; it has cat, dog, owl, for testing cat, dog, fish, owl"),
        (
            lambda root: [shutil.rmtree(path) for path in root.glob("*/[do]*")],
            r"at least two .* has cat, for testing cat",
        ),
        (
            lambda root: root.rename(root.with_name("gone")),
            r"no class folders: .* hold images as train/CLASS/\* and test/",
        ),
        (lambda root: Image.new("RGB", (9, 8)).save(root / "train/cat/2.png"), r"2\.png .*0\.png.* --data\.size=8"),
        (lambda root: Image.new("L", (10, 8)).save(root / "train/cat/2.png"), r"2\.png .*--data\.colour=grey or rgb"),
        (lambda root: Image.new("I;16", (10, 8)).save(root / "train/cat/2.png"), r"2\.png has pixels of mode 'I;16'"),
        (lambda root: (root / "train/cat/2.png").write_text("no image"), r"2\.png cannot be read as an image"),
        (lambda root: os.truncate(root / "train/dog/1.png", 60), r"dog/1\.png cannot be read as an image"),
    ],
    ids=["empty", "other class", "one class", "nothing", "sizes", "modes", "16 bits", "text", "truncated"],
)
def test_unreadable_image_is_named_and_leaves_no_cache(root, change, message):
    change(root)
    with pytest.raises(UserError, match=message):
        made(root)
    assert not list(root.rglob("*.npy"))
