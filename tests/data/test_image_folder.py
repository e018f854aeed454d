"""Images in class folders, against torchvision's ImageFolder, and refused input."""

import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
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
    data = ImageFolder(root=str(root), **settings)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize(("size", "colour"), [(None, "auto"), (None, "grey"), (7, "auto"), (12, "rgb")])
def test_images_are_those_of_torchvisions_folder(root, size, colour):
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
        assert len(ours) == len(theirs)
        for (x, label), (image, target) in zip((ours[i] for i in range(len(ours))), theirs, strict=True):
            torch.testing.assert_close(x, image, atol=0.51 / 255, rtol=0)
            assert label == target
    assert data.input_shape == tuple(ours[0][0].shape)


def test_what_images_have_that_is_not_read_is_said_in_every_run(root, caplog):
    folder = next((root / "train").iterdir())
    with Image.open(next(folder.iterdir())) as first:
        red, blue = (Image.new("RGB", first.size, colour) for colour in ("red", "blue"))
    red.save(folder / "z.gif", save_all=True, append_images=[blue] * 2)
    clear = red.convert("RGBA")
    clear.putalpha(100)
    clear.save(folder / "z.png")
    turned = Image.Exif()
    turned[0x112] = 6
    red.save(folder / "z.jpg", exif=turned)
    red.convert("RGBA").save(folder / "z2.png")  # all of it is to be seen
    # Damaged EXIF or frames do not keep the pixels from being read.
    blue.save(folder / "z3.png", exif=b"Exif\0\0garbagegarbage")
    turned[0x112] = 0  # no orientation
    red.save(folder / "z4.jpg", exif=turned)
    cut = Image.new("RGB", first.size)
    cut.save(folder / "z5.gif", save_all=True, append_images=[blue] * 20)
    whole = (folder / "z5.gif").read_bytes()
    (folder / "z5.gif").write_bytes(whole[: 3 * len(whole) // 4])
    for _ in range(2):
        caplog.clear()
        made(root)
        for name, kind in (("z.gif", "several frames"), ("z.png", "transparent pixels"), ("z.jpg", "an EXIF")):
            assert re.search(rf"1 images have {kind}.* The first is train/{folder.name}/{name}\.", caplog.text)


def test_mean_and_deviation_are_those_of_the_training_images(root):
    data = made(root)
    x = data.dataset(True, None, augment=False).batch(BatchRequest(0, torch.arange(18))).x
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_they_are_decoded_once_and_anew_where_a_file_changes(root):
    first = made(root)
    assert first.prepared
    assert not made(root).prepared
    assert first.verify() == 2
    identity = first.identity()
    Image.new("RGB", (10, 8), (1, 2, 3)).save(root / "train" / "cat" / "0.png")
    again = made(root)
    assert again.prepared
    assert again.identity() != identity
    assert len([path for path in (root / ".plif_lightning").iterdir() if path.is_dir()]) == 1
    assert made(root, size=5).prepared
    assert not made(root).prepared  # another size deleted nothing
    (root / ".plif_lightning" / again._folder.name / "train.npy").write_bytes(b"short")
    assert made(root).prepared


def test_files_that_change_between_two_calls_are_read_anew_or_refused(root):
    """Found by a review: the new set's identity was recorded, and the old images were trained on."""
    data = ImageFolder(root=str(root))
    data.prepare_data()
    labels, images = data.labels(train=True), data.arrays(True)[0].clone()
    Image.new("RGB", (10, 8), (1, 2, 3)).save(root / "train" / "cat" / "00.png")
    data.prepare_data()
    assert len(data.labels(train=True)) == len(labels) + 1
    assert not torch.equal(data.arrays(True)[0][: len(images)], images)
    data.setup()
    Image.new("RGB", (10, 8), (3, 2, 1)).save(root / "train" / "cat" / "00.png")
    with pytest.raises(UserError, match=r"changed after the data sets were made of them\. Make another data module"):
        data.prepare_data()


def test_a_held_out_part_is_no_copy_and_a_store_may_lie_elsewhere(root, tmp_path):
    data = made(root, validation="holdout", holdout_fraction=0.34, store=str(tmp_path / "store"))
    assert not (root / ".plif_lightning").exists()
    assert data.train_set.images.data_ptr() == data.val_set.images.data_ptr()
    assert {int(data.val_set[i][1]) for i in range(len(data.val_set))} == {0, 1, 2}
    assert data.sizes() == {"training": 12, "val": 6, "test": 6}


def test_a_run_keeps_its_images_where_another_one_found_others(root):
    first = made(root)
    pickled = pickle.dumps(first.train_set)
    assert len(pickled) < first.train_set.images.nbytes + 2000
    assert torch.equal(pickle.loads(pickled).images, first.train_set.images)
    expected = first.dataset(False, None, augment=False).batch(BatchRequest(0, torch.arange(3))).x
    kept = ImageFolder(root=str(root), validation="holdout", holdout_fraction=0.34)
    kept.prepare_data()
    kept.setup("fit")
    Image.new("RGB", (10, 8), (1, 2, 3)).save(root / "train" / "cat" / "9.png")
    late = ImageFolder(root=str(root))
    late.prepare_data()
    assert made(root).prepared is False
    kept.setup("test")
    torch.testing.assert_close(kept.test_set.batch(BatchRequest(0, torch.arange(3))).x, expected)
    shutil.rmtree(root / ".plif_lightning")
    with pytest.raises(UserError, match="was deleted by another run, which found other images"):
        late.setup("fit")


def test_a_link_that_leads_nowhere_is_named(root):
    (root / "train" / "cat" / "z.png").symlink_to(root / "nowhere.png")
    with pytest.raises(UserError, match=r"z\.png cannot be read as an image"):
        made(root)


def test_a_data_set_has_the_name_that_its_folder_was_given_by(root, monkeypatch):
    link = root.parent / "animals"
    link.symlink_to(root)
    assert [ImageFolder(root=str(path)).title for path in (root, link)] == ["pets", "animals"]
    monkeypatch.chdir(root / "train")
    assert ImageFolder(root="..").title == "pets"


def change(root, what):
    cat = root / "train" / "cat"
    if what == "empty":
        for path in cat.iterdir():
            path.unlink()
    elif what == "other":
        (root / "test" / "fish").mkdir()
    elif what == "one":
        for part in ("train", "test"):
            for name in ("dog", "owl"):
                shutil.rmtree(root / part / name)
    elif what == "none":
        root.rename(root.with_name("gone"))
    elif what == "flat":
        (root / "train").rename(root / "first")
        (root / "train").mkdir()
    elif what == "sizes":
        Image.new("RGB", (9, 8)).save(cat / "2.png")
    elif what == "modes":
        Image.new("L", (10, 8)).save(cat / "2.png")
    elif what == "deep":
        Image.fromarray(np.zeros((8, 10), np.uint16)).save(cat / "2.png")
    elif what == "text":
        (cat / "2.png").write_text("no image")
    elif what == "short":
        path = root / "train" / "dog" / "1.png"
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty", r"train/cat holds no file that ends in .*\.jpg.* or remove the folder"),
        ("other", r"test/fish is a class that .*train does not have"),
        ("one", r"train has only one class folder, cat: at least two are needed"),
        ("none", r"pets/train does not exist: data\.root must hold train/CLASS/ and test/CLASS/"),
        ("flat", r"pets/train has no class folders"),
        ("sizes", r"2\.png has 9 x 8 pixels, but the first image has 10 x 8: pass --data\.size=8"),
        ("modes", r"2\.png is grey, but the first image is colour: pass --data\.colour=grey or"),
        ("deep", r"2\.png has pixels of mode 'I;16': convert it to 8 bits"),
        ("text", r"2\.png cannot be read as an image \(no image format is recognised\)"),
        ("short", r"dog/1\.png cannot be read as an image"),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_is_left(root, what, message):
    change(root, what)
    with pytest.raises(UserError, match=message):
        made(root)
    assert not list(root.glob(".plif_lightning/*/*.npy"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": 0}, "data.size must be a whole number, at least 1"), ({"colour": "cmyk"}, "one of auto, grey")],
)
def test_a_wrong_argument_is_named(root, settings, message):
    with pytest.raises(UserError, match=message):
        ImageFolder(root=str(root), **settings)


def test_a_folder_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file"):
        made(root, store=str(tmp_path / "file"))


def test_real_jpegs(real_data):
    root = real_data / "JPEG-CIFAR10"
    if not root.is_dir():
        pytest.skip("JPEG CIFAR-10 is not there")
    data = made(root)
    assert data.input_shape == (3, 32, 32)
    assert data.sizes() == {"training": 50_000, "test as val": 10_000, "test": 10_000}
    theirs = datasets.ImageFolder(root / "test", transforms.ToTensor())
    ours = ImageFolder(root=str(root), normalize=False)
    ours.setup()
    for i in (0, 1, 999, 1000, 9999):
        torch.testing.assert_close(ours.test_set[i][0], theirs[i][0], atol=1e-6, rtol=0)
        assert ours.test_set[i][1] == theirs[i][1]
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)  # values of the lossless images


def test_decoded_images_with_zeros_in_them_are_decoded_anew(root, caplog):
    data = made(root)
    path = data._folder / "train.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50] + bytes(50))
    again = made(root)
    assert again.prepared
    assert "train.npy is damaged: decoding the images again" in caplog.text
    assert path.read_bytes() == whole
    os.utime(path)
    assert not made(root).prepared  # modified, but with the same content


def test_a_pipe_among_the_images_is_not_waited_for(root, caplog):
    os.mkfifo(root / "train" / "cat" / "f.png")
    made(root)
    assert "(.png: 1): train/cat/f.png." in caplog.text


def test_files_that_are_not_read_are_named(root, caplog):
    made(root)
    assert "ignored" not in caplog.text
    (root / "train" / "cat" / "notes.txt").write_text("")
    made(root)
    assert f"1 files in {root} are ignored" in caplog.text
    assert "(.txt: 1): train/cat/notes.txt." in caplog.text
