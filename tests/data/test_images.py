import pickle

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import v2

from plif_lightning.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    CutMix,
    Digits,
    FashionMNIST,
    ImageDataModule,
)
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import DataNotFoundError, UserError
from plif_lightning.runtime.randomness import hashed_uniform
from tests import writers


def prepared(module, stage="fit"):
    module.prepare_data()
    module.setup(stage)
    return module


def all_of(loader):
    return [torch.cat(tensors) for tensors in zip(*(batch[:3] for batch in loader), strict=True)]


def written(make, root, monkeypatch):
    """A small data set in the files of a published one; its digests, which differ, are accepted."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a, **k: True)
    if make in (CIFAR10, CIFAR100):
        {CIFAR10: writers.write_cifar10, CIFAR100: writers.write_cifar100}[make](root)
    else:
        writers.write_mnist(root, name=make.__name__)
    return root


@pytest.mark.parametrize(
    ("make", "source", "mean", "std"),
    [
        (MNIST, datasets.MNIST, 0.1307, 0.3081),
        (FashionMNIST, datasets.FashionMNIST, 0.2860, 0.3530),
        (CIFAR10, datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        (CIFAR100, datasets.CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_batches_equal_torchvisions_pipeline(make, source, mean, std, tmp_path, monkeypatch):
    written(make, tmp_path, monkeypatch)
    module = prepared(make(root=str(tmp_path), eval_batch_size=8, download=False, validation="test"))
    x, label, sample = all_of(module.val_dataloader())
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    theirs = source(tmp_path, train=False, transform=transform)
    assert x.shape == (20, *module.input_shape)
    assert torch.equal(sample, torch.arange(20))
    how = module.preprocessing
    own_mean, own_std = (torch.tensor(how[name]).view(-1, 1, 1) for name in ("mean", "std"))
    as_told = (torch.from_numpy(module.arrays(train=False)["images"]) * how["scale"] - own_mean) / own_std
    torch.testing.assert_close(x, as_told, rtol=1e-5, atol=1e-6)
    for i, (image, target) in enumerate(theirs):
        torch.testing.assert_close(x[i], image, rtol=1e-5, atol=1e-6)
        assert label[i] == target
    assert len(module.train_dataloader().dataset) == 40
    part = "50,000 and 10,000" if make in (CIFAR10, CIFAR100) else "60,000 and 10,000"
    assert f"({module.origin_note}): 40 training" in module.describe()
    assert module.origin_note == f"a PART of its {part} images, or another data set"


def test_real_fashion_mnist_has_zero_mean_and_unit_variance(real_data):
    module = prepared(FashionMNIST(root=str(real_data), download=False, validation="test"))
    assert module.origin_note == ""
    assert len(module.train_set) == 60_000
    x = all_of(module.val_dataloader())[0]
    assert len(x) == 10_000
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_depends_on_seed_and_epoch_alone(num_workers):
    def epoch(epoch, batch_size=16, workers=num_workers):
        module = prepared(
            Digits(
                batch_size=batch_size,
                num_workers=workers,
                augmentation=[v2.RandomHorizontalFlip(), v2.RandomCrop(8, padding=2)],
            )
        )
        loader = module.train_dataloader()
        loader.sampler.set_epoch(epoch)
        x, _, sample = all_of(loader)
        return x[sample.argsort()]

    first = epoch(0)
    assert torch.equal(first, epoch(0, batch_size=50, workers=0))
    assert not torch.equal(first, epoch(1))


def mixed(*augmentation, key=3):
    """The training digits, without normalisation, and the set that they come from."""
    data = prepared(Digits(validation="holdout", augmentation=list(augmentation) or None, normalize=False))
    return data.train_set.batch(BatchRequest(key, torch.arange(len(data.train_set)))), data.train_set


def test_cutmix_replaces_a_rectangle_and_its_share_of_the_target():
    (plain, _), (batch, train) = mixed(), mixed(CutMix(0.8))
    assert torch.equal(batch.label, plain.label)
    torch.testing.assert_close(batch.target.sum(1), torch.ones(len(train)))
    draws = hashed_uniform(3, train.sample, 5)
    partner = (draws[:, 4].double() * len(train)).long()
    own = plain.x.clone()
    other = own[partner]
    boxes = CutMix(0.8).boxes(draws.numpy(), 8, 8)
    shares = torch.zeros(len(train))
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        own[i, :, top:bottom, left:right] = other[i, :, top:bottom, left:right]
        shares[i] = (right - left) * (bottom - top) / 64
    torch.testing.assert_close(batch.x, own)
    label = torch.nn.functional.one_hot(plain.label, 10).float()
    torch.testing.assert_close(batch.target, label * (1 - shares[:, None]) + label[partner] * shares[:, None])
    assert 0.3 < shares[shares > 0].mean() < 0.5
    assert len(partner.unique()) > len(train) / 2


def test_mixture_depends_on_epoch_and_image_alone():
    chain = v2.RandomCrop(8, padding=1), CutMix(), v2.RandomHorizontalFlip()
    together, train = mixed(*chain)
    alone = train.batch(BatchRequest(3, torch.tensor([7])))
    assert torch.equal(alone.x[0], together.x[7])
    assert torch.equal(alone.target[0], together.target[7])
    assert not torch.equal(mixed(*chain, key=4)[0].x, together.x)
    before, after = mixed(CutMix(1.0), v2.RandomHorizontalFlip(0.0)), mixed(CutMix(1.0), v2.RandomHorizontalFlip(1.0))
    assert torch.equal(before[0].x.flip(-1), after[0].x)
    assert torch.equal(before[0].target, after[0].target)
    with pytest.raises(UserError, match="CutMix more than once"):
        Digits(augmentation=[CutMix(), v2.RandomHorizontalFlip(), CutMix()])


def test_holdout_keeps_the_test_set_out_of_fit_and_only_training_images_are_augmented():
    module = Digits(validation="holdout", augmentation=[v2.RandomHorizontalFlip(1.0)])
    with pytest.raises(UserError, match=r"Digits has read no data yet: call prepare_data\(\) and setup\(\) first"):
        module.train_dataloader()
    module.setup("fit")
    train, val = module.train_set, module.val_set
    assert module.test_set is None
    assert module.val_name == "val"
    assert "15% of each class held out" in module.protocol
    assert not set(train.sample.tolist()) & set(val.sample.tolist())
    assert len(train) + len(val) == 1438
    for c in range(10):
        assert int((val.labels() == c).sum()) == int(0.15 * int((module.labels(True) == c).sum()))
    module.setup(None)
    assert module.sizes() == {"training": 1226, "val": 212, "test": 359}
    assert [len(part.augmentation) for part in (module.train_set, module.val_set, module.test_set)] == [1, 0, 0]


def test_the_test_set_used_for_selection_is_called_so():
    module = Digits(validation="test", normalize=False)
    module.setup("fit")
    assert module.val_name == "test_as_val"
    assert "best test epoch" in module.protocol
    x = all_of(module.val_dataloader())[0]
    assert (len(x), x.min(), x.max()) == (359, 0, 1)


@pytest.mark.parametrize("make", [MNIST, FashionMNIST, CIFAR10])
def test_missing_and_damaged_files_are_refused_with_their_folder_and_a_way_out(make, tmp_path, monkeypatch):
    folder = writers.FOLDERS[make.__name__]
    with pytest.raises(DataNotFoundError) as missing:
        prepared(make(root=str(tmp_path / "nowhere"), download=False))
    name = {CIFAR10: "data_batch_2"}.get(make, "train-images-idx3-ubyte")
    path = written(make, tmp_path / "there", monkeypatch) / folder / name
    whole = path.read_bytes()
    for content in (whole[:-1], b"", b"x" * 5000):
        path.write_bytes(content)
        with pytest.raises(DataNotFoundError) as damaged:
            prepared(make(root=str(tmp_path / "there"), download=False))
        for error, root in ((missing, "nowhere"), (damaged, "there")):
            for part in (
                str(tmp_path / root),
                f"{folder}/{{",
                "--data.root",
                "--data.download=true",
                "Delete a damaged",
            ):
                assert part in str(error.value)


def test_failed_download_is_refused_and_existing_files_are_kept(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(
        DataNotFoundError,
        match=r"(?s)cannot be downloaded \(Error downloading.*put the files there, or point --data.root to",
    ):
        prepared(MNIST(root=str(tmp_path)))
    writers.write_mnist(tmp_path)
    assert prepared(MNIST(root=str(tmp_path), download=True, validation="test")).sizes() == {
        "training": 40,
        "test as val": 20,
    }


class Mine(ImageDataModule):
    title, image_shape, class_names, mean, std = "mine", (1, 2, 2), ("a", "b"), (0.5,), (0.5,)

    def read(self, train):
        return self.images, self.own_labels


def own(images, labels):
    module = Mine(normalize=False)
    module.images, module.own_labels = images, labels
    return module


def test_user_images_are_arrays_or_tensors_and_validated():
    images, labels = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2), torch.tensor([0, 1, 1])
    for module in (own(images, labels), own(images.numpy(), labels.numpy())):
        module.setup("test")
        x, label, _ = all_of(module.test_dataloader())
        torch.testing.assert_close(x, images / 255)
        assert torch.equal(label, labels)
        assert module.identity() == own(images, labels).identity()
    other = images.clone()
    other[2, 0, 1, 1] ^= 1
    assert len({own(*one).identity() for one in ((images, labels), (other, labels), (images, 1 - labels))}) == 3
    for wrong in ((images.float(), labels), (images[:, 0], labels), (images, labels[:2]), (images, labels + 1)):
        with pytest.raises(
            UserError, match=r"mine in data must hold images uint8 \[n, 1, 2, 2\] and labels below 2, got"
        ):
            own(*wrong).labels(True)


def test_a_wrong_argument_is_named_and_constructing_a_data_module_touches_no_file(tmp_path):
    count = "must be a whole number, at least 1"
    wrong = {"time_steps": (0, count), "batch_size": (0, count), "validation": ("val", "must be one of test, holdout")}
    for name, (value, message) in {**wrong, "holdout_fraction": (1.0, "must lie in")}.items():
        with pytest.raises(UserError, match=rf"data\.{name} {message}"):
            Digits(**{name: value})
    for make in (MNIST, FashionMNIST, CIFAR10):
        assert make(root=str(tmp_path / "nowhere")).num_classes == 10
    assert not (tmp_path / "nowhere").exists()


def test_plain_data_loader_yields_samples_as_in_pytorch():
    data = Digits(augmentation=[v2.RandomCrop(8, padding=1)])
    data.setup()
    x, label = data.test_set[3]
    assert x.shape == (1, 8, 8)
    assert label.shape == ()
    torch.testing.assert_close(x, pickle.loads(pickle.dumps(data.test_set))[3][0])
    assert torch.equal(data.test_set[-1][0], data.test_set[len(data.test_set) - 1][0])
    with pytest.raises(IndexError, match=r"index must lie in 0..358, got 359"):
        data.test_set[359]
    x, label = next(iter(DataLoader(data.train_set, batch_size=5, shuffle=True)))
    assert x.shape == (5, 1, 8, 8)
    assert label.shape == (5,)
    assert sum(len(y) for _, y in DataLoader(data.test_set, batch_size=100)) == 359
