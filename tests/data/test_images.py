import gzip
import hashlib
import pickle
import re

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from plif_lightning import data as data_module
from plif_lightning.data import CIFAR10, MNIST, CutMix, Digits, FashionMNIST, HorizontalFlip, RandomCrop
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.runtime.randomness import hashed_uniform
from tests import writers


def prepared(module, stage="fit"):
    module.prepare_data()
    module.setup(stage)
    return module


def all_of(loader):
    parts = list(loader)
    return [torch.cat(tensors) for tensors in zip(*(batch[:3] for batch in parts), strict=True)]


def no_hashes(monkeypatch):
    """Accept the small test files, whose hashes differ from the published ones."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a, **k: True)


@pytest.mark.parametrize(
    ("make", "write", "source", "mean", "std"),
    [
        (MNIST, writers.write_mnist, datasets.MNIST, 0.1307, 0.3081),
        (
            FashionMNIST,
            lambda root: writers.write_mnist(root, name="FashionMNIST"),
            datasets.FashionMNIST,
            0.2860,
            0.3530,
        ),
        (CIFAR10, writers.write_cifar10, datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ],
    ids=["MNIST", "FashionMNIST", "CIFAR10"],
)
def test_batches_equal_torchvisions_own_pipeline(make, write, source, mean, std, tmp_path, monkeypatch):
    no_hashes(monkeypatch)
    write(tmp_path)
    module = prepared(make(root=str(tmp_path), eval_batch_size=8, download=False))
    x, label, sample = all_of(module.val_dataloader())
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    theirs = source(tmp_path, train=False, transform=transform)
    assert x.shape == (20, *module.input_shape)
    assert torch.equal(sample, torch.arange(20))
    how = module.preprocessing
    own_mean, own_std = (torch.tensor(how[name]).view(-1, 1, 1) for name in ("mean", "std"))
    as_told = (module.arrays(train=False)[0] * how["scale"] - own_mean) / own_std
    torch.testing.assert_close(x, as_told, rtol=1e-5, atol=1e-6)
    for i, (image, target) in enumerate(theirs):
        torch.testing.assert_close(x[i], image, rtol=1e-5, atol=1e-6)
        assert label[i] == target
    assert len(module.train_dataloader().dataset) == 40


@pytest.mark.parametrize("make", [MNIST, FashionMNIST])
def test_other_images_than_the_published_are_told_by_their_content(make, tmp_path):
    """Found by a review: resuming and testing accepted any images if their number was right."""
    writers.write_mnist(tmp_path, name=make.__name__)
    one, same = (make(root=str(tmp_path), download=False) for _ in range(2))
    assert one.identity() == same.identity()
    assert one.identity(train=False) == same.identity(train=False)
    path = tmp_path / make.__name__ / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    other = make(root=str(tmp_path), download=False)
    assert other.identity() == one.identity()
    assert other.identity(train=False) != one.identity(train=False)


def test_real_fashion_mnist_has_zero_mean_and_unit_variance(real_data):
    module = prepared(FashionMNIST(root=str(real_data), download=False))
    assert (module.identity(), module.identity(train=False)) == ("60000", "10000")
    assert len(module.train_set) == 60_000
    x = all_of(module.val_dataloader())[0]
    assert len(x) == 10_000
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_depends_on_seed_and_epoch_alone(num_workers):
    def epoch(epoch, batch_size=16, workers=num_workers):
        module = prepared(
            Digits(batch_size=batch_size, num_workers=workers, augmentation=[HorizontalFlip(), RandomCrop(2)])
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


def test_a_mix_takes_a_rectangle_of_another_training_image_and_its_share_of_the_target():
    (plain, _), (batch, train) = mixed(HorizontalFlip(0.5)), mixed(HorizontalFlip(0.5), CutMix(0.8))
    assert torch.equal(batch.label, plain.label)
    torch.testing.assert_close(batch.target.sum(1), torch.ones(len(train)))
    draws = hashed_uniform(3, train.sample, 6)
    partner = (draws[:, 5].double() * len(train)).long()  # 1 draw of the flip, then 5 of the mix
    original = mixed()[0].x
    # A partner is mirrored or not as it would be itself.
    own = torch.where((draws[:, 0] < 0.5)[:, None, None, None], original.flip(-1), original)
    other = own[partner]
    boxes = CutMix(0.8).boxes(draws[:, 1:].numpy(), 8, 8)
    shares = torch.zeros(len(train))
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        own[i, :, top:bottom, left:right] = other[i, :, top:bottom, left:right]
        shares[i] = (right - left) * (bottom - top) / 64
    torch.testing.assert_close(batch.x, own)
    label = torch.nn.functional.one_hot(plain.label, 10).float()
    torch.testing.assert_close(batch.target, label * (1 - shares[:, None]) + label[partner] * shares[:, None])
    assert 0.3 < shares[shares > 0].mean() < 0.5
    assert len(partner.unique()) > len(train) / 2


def test_what_comes_after_a_mix_changes_the_mixture():
    before, after = mixed(CutMix(1.0), HorizontalFlip(0.0)), mixed(CutMix(1.0), HorizontalFlip(1.0))
    assert torch.equal(before[0].x.flip(-1), after[0].x)
    assert torch.equal(before[0].target, after[0].target)


def test_a_mixture_depends_on_epoch_and_image_alone():
    together, train = mixed(RandomCrop(1), CutMix(), HorizontalFlip())
    alone = train.batch(BatchRequest(3, torch.tensor([7])))
    assert torch.equal(alone.x[0], together.x[7])
    assert torch.equal(alone.target[0], together.target[7])
    assert not torch.equal(mixed(RandomCrop(1), CutMix(), HorizontalFlip(), key=4)[0].x, together.x)


def test_two_mixes_are_refused():
    with pytest.raises(UserError, match="CutMix more than once"):
        Digits(augmentation=[CutMix(), HorizontalFlip(), CutMix()])


def test_validation_and_test_images_are_not_augmented():
    module = Digits(validation="holdout", augmentation=[HorizontalFlip(1.0)])
    module.setup("fit")
    module.setup("test")
    assert module.val_set.augmentation == ()
    assert module.test_set.augmentation == ()
    assert len(module.train_set.augmentation) == 1


def test_holdout_keeps_the_test_set_out_of_fit():
    module = Digits(validation="holdout")
    module.setup("fit")
    train, val = module.train_set, module.val_set
    assert module.test_set is None
    assert module.val_name == "val"
    assert not set(train.sample.tolist()) & set(val.sample.tolist())
    assert len(train) + len(val) == 1438
    for c in range(10):
        n = int((module.labels(True) == c).sum())
        assert int((val.labels() == c).sum()) == int(0.15 * n)


def test_the_test_set_used_for_selection_is_called_so():
    module = Digits(validation="test")
    module.setup("fit")
    assert module.val_name == "test_as_val"
    assert len(module.val_set) == 359
    assert "best test epoch" in module.protocol


def test_digits_train_and_test_parts_are_the_whole():
    module = Digits()
    assert len(module.labels(True)) == 1438
    assert len(module.labels(False)) == 359
    images = module.arrays(True)[0]
    assert images.dtype == torch.uint8
    assert images.max() == 255


def test_without_normalisation_images_lie_between_0_and_1():
    module = Digits(normalize=False)
    module.setup("fit")
    x = all_of(module.val_dataloader())[0]
    assert x.min() == 0
    assert x.max() == 1


@pytest.mark.parametrize("make", [MNIST, FashionMNIST, CIFAR10])
def test_a_missing_data_set_says_which_files_where_and_how(make, tmp_path):
    folder = writers.FOLDERS[make.__name__]
    with pytest.raises(DatasetNotFoundError) as error:
        prepared(make(root=str(tmp_path / "nowhere"), download=False))
    for part in (str(tmp_path / "nowhere"), folder, "--data.root", "--data.download=true"):
        assert part in str(error.value)


def test_a_failed_download_says_what_failed_and_where_files_may_be_put(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(datasets.MNIST, "download", offline)
    with pytest.raises(DatasetNotFoundError, match=r"could not be downloaded \(Error downloading.*Put MNIST/raw"):
        prepared(MNIST(root=str(tmp_path)))


def test_a_data_set_that_is_there_is_not_downloaded(tmp_path, monkeypatch):
    writers.write_mnist(tmp_path)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", lambda *a, **k: 1 / 0)
    prepared(MNIST(root=str(tmp_path), download=True))


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "short by a byte", "empty", "garbage", "gzip"])
def test_a_damaged_file_is_named(damage, download, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", lambda *a, **k: 1 / 0)
    writers.write_mnist(tmp_path)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[:-100],
            "short by a byte": whole[:-1],
            "empty": b"",
            "garbage": b"x" * 5000,
            "gzip": gzip.compress(whole),
        }[damage]
    )
    with pytest.raises(UserError, match=r"cannot be read .*MNIST/raw.* is damaged"):
        prepared(MNIST(root=str(tmp_path), download=download))


@pytest.mark.parametrize("hashes", [True, False])
def test_a_damaged_cifar10_file_is_named(hashes, tmp_path, monkeypatch):
    if not hashes:
        no_hashes(monkeypatch)
    writers.write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_2").write_bytes(b"not a pickle")
    with pytest.raises(UserError, match=r"cifar-10-batches-py.* is damaged"):
        prepared(CIFAR10(root=str(tmp_path), download=False))


def test_images_and_labels_of_different_number_are_refused(tmp_path):
    writers.write_mnist(tmp_path)
    writers.write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", writers.labels_of(39))
    with pytest.raises(UserError, match="one label for each image"):
        prepared(MNIST(root=str(tmp_path), download=False))


def test_a_label_without_a_class_is_refused(tmp_path):
    writers.write_mnist(tmp_path)
    writers.write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", writers.labels_of(40) + 5)
    with pytest.raises(UserError, match=r"must lie in 0\.\.9, got 5\.\.14"):
        prepared(MNIST(root=str(tmp_path), download=False))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"time_steps": 0}, "data.time_steps must be at least 1"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
        ({"num_workers": -1}, "data.num_workers must be at least 0"),
        ({"validation": "val"}, "data.validation must be one of test, holdout"),
        ({"holdout_fraction": 1.0}, "data.holdout_fraction must lie in"),
    ],
)
def test_a_wrong_argument_is_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        Digits(**kwargs)


def test_constructing_a_data_module_touches_no_file(tmp_path):
    for name in ("MNIST", "FashionMNIST", "CIFAR10"):
        module = getattr(data_module, name)(root=str(tmp_path / "nowhere"))
        assert module.num_classes == 10
        assert pickle.loads(pickle.dumps(module.input_shape)) == module.input_shape
    assert not (tmp_path / "nowhere").exists()


def test_a_plain_loader_gives_what_pytorch_users_expect():
    data = Digits(augmentation=[RandomCrop(1)])
    data.setup()
    x, label = data.test_set[3]
    assert x.shape == (1, 8, 8)
    assert label.shape == ()
    torch.testing.assert_close(x, data.test_set[BatchRequest(0, torch.tensor([3]))].x[0])
    assert torch.equal(data.test_set[-1][0], data.test_set[len(data.test_set) - 1][0])
    with pytest.raises(IndexError, match=r"index must lie in 0..358, got 359"):
        data.test_set[359]
    x, label = next(iter(DataLoader(data.train_set, batch_size=5, shuffle=True)))
    assert x.shape == (5, 1, 8, 8)
    assert label.shape == (5,)
    assert sum(len(y) for _, y in DataLoader(data.test_set, batch_size=100)) == 359


def test_setup_without_a_stage_makes_all_parts_and_loaders_ask_for_it():
    data = Digits(validation="holdout")
    with pytest.raises(UserError, match=r"Digits has read no data yet: call prepare_data\(\) and setup\(\) first"):
        data.train_dataloader()
    data.setup(None)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [1226, 212, 359]


def test_a_subclass_with_fields_that_is_no_dataclass_is_named():
    class Mine(Digits):
        time_steps: int = 4

    with pytest.raises(TypeError, match=r"Mine has the fields \['time_steps'\]: decorate it"):
        Mine()

    class Plain(Digits):
        title = "mine"

    assert Plain(time_steps=3).time_steps == 3


@pytest.mark.parametrize(("make", "name"), [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST")])
def test_packed_files_are_enough_without_a_download(make, name, tmp_path, monkeypatch, caplog):
    writers.write_mnist(tmp_path, name=name)
    whole, md5 = {}, {}
    for path in (tmp_path / name / "raw").iterdir():
        whole[path.name] = path.read_bytes()
        path.with_name(f"{path.name}.gz").write_bytes(packed := gzip.compress(path.read_bytes()))
        md5[f"{path.name}.gz"] = hashlib.md5(packed).hexdigest()
        path.unlink()
    prepared(make(root=str(tmp_path), download=False))
    assert re.search(r"ubyte\.gz is not the file of .*MNIST that was published \(its MD5 is", caplog.text)
    for path in (tmp_path / name / "raw").iterdir():
        if path.suffix != ".gz":
            path.unlink()
    caplog.clear()
    kind = make.torchvision_class
    monkeypatch.setattr(kind, "resources", [(file, md5[file]) for file, _ in kind.resources])
    module = prepared(make(root=str(tmp_path), download=False))
    assert module.prepared
    assert "that was published" not in caplog.text
    assert "has 40 training images, and the published one 60000" in caplog.text
    for file, content in whole.items():
        assert (tmp_path / name / "raw" / file).read_bytes() == content
    assert not prepared(make(root=str(tmp_path), download=False)).prepared
    path = tmp_path / name / "raw" / "train-labels-idx1-ubyte"
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(b"x" * 100)[:-5])
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz cannot be unpacked"):
        prepared(make(root=str(tmp_path), download=False))


def test_settings_do_not_change_once_data_sets_are_made():
    """Found by a review: test images were called held out."""
    module = Digits(validation="test")
    module.setup("fit")
    module.batch_size, module.num_workers = 4, 1
    module.setup("test")
    module.validation = "holdout"
    with pytest.raises(UserError, match=r"Digits: validation changed after the data sets were made.* Make another"):
        module.setup("fit")
