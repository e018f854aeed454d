"""Static data sets that torchvision downloads, verifies and reads: MNIST, Fashion-MNIST, CIFAR-10."""

import gzip
import hashlib
import logging
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from plif_lightning.data.images import ImageDataModule
from plif_lightning.errors import DatasetNotFoundError, UserError
from plif_lightning.runtime.files import written_whole

_log = logging.getLogger(__name__)
# Largest accepted size of an unpacked file [bytes]; MNIST's largest has 47 million.
_LARGEST = 2**26


@dataclass(eq=False, repr=False)
class TorchvisionDataModule(ImageDataModule):
    """Base class of data sets that torchvision downloads, verifies and reads.

    Class attributes that a subclass sets, beside those of `ImageDataModule`:
        torchvision_class: class of `torchvision.datasets`.
        files: files that it reads, for messages.
        published: numbers of training and of test images; None if they are not known.
        digests: of training and of test images and labels; None where torchvision compares the files whenever it reads
            them.
    """

    torchvision_class: ClassVar[Any]
    files: ClassVar[str]
    published: ClassVar[tuple[int, int] | None] = None
    digests: ClassVar[tuple[str, str] | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._identity: dict[bool, str] = {}

    def identity(self, train: bool = True) -> str:
        # Of published images their number, as in checkpoints and runs of earlier versions.
        if train not in self._identity:
            found = super().identity(train)
            if self.digests is not None and (own := _digest(*self.arrays(train))) != self.digests[not train]:
                found = f"{found} {own}"
            self._identity[train] = found
        return self._identity[train]

    def prepare_data(self) -> None:
        self.prepared = self._unpack()
        if self.download and not self._there():
            self.prepared = True
            try:
                for train in (True, False):
                    self.torchvision_class(self.root, train=train, download=True)
            except (RuntimeError, URLError, OSError, ValueError, AssertionError, EOFError) as error:
                if self._unpacked() and all(path.is_file() for path in self._unpacked()):
                    raise self._damaged(error) from error  # torchvision fetches only what is missing
                raise DatasetNotFoundError(
                    f"{self.title} is not in {Path(self.root).absolute()} and could not be downloaded ({error}). "
                    f"Put {self.files} there, or point --data.root to them."
                ) from error

    def _unpack(self) -> bool:
        """Unpack .gz files in the raw folder, the form in which MNIST is published. True if there were any."""
        found = False
        for file, (name, md5) in zip(self._unpacked(), self._resources(), strict=True):
            packed = file.with_name(Path(name).name)
            if packed.is_file() and not file.is_file():
                try:
                    with gzip.open(packed) as source:
                        content = source.read(_LARGEST + 1)
                except (OSError, EOFError, zlib.error) as error:
                    raise UserError(f"{packed} cannot be unpacked ({error}): it is damaged. Delete it.") from error
                if len(content) > _LARGEST:
                    raise UserError(f"{packed} unpacks to more than {_LARGEST / 2**20:.0f} MiB: it is another file.")
                if (own := calculate_md5(packed)) != md5:
                    _log.warning(
                        "%s is not the file of %s that was published (its MD5 is %s, not %s): it was packed again, or "
                        "is of another data set.",
                        *(packed, self.title, own, md5),
                    )
                with written_whole(file, "wb") as target:
                    target.write(content)
                found = True
        return found

    def _resources(self) -> list[tuple[str, str]]:
        """Name and MD5 of each packed file, if torchvision unpacks them one by one."""
        return getattr(self.torchvision_class, "resources", [])

    def _unpacked(self) -> list[Path]:
        raw = Path(self.root) / self.torchvision_class.__name__ / "raw"
        return [raw / Path(name).stem for name, _ in self._resources()]

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self.title} in {Path(self.root).absolute()} cannot be read ({error or type(error).__name__}): a file of "
            f"{self.files} is damaged. Delete it{'' if self.download else ' and pass --data.download=true'}."
        )

    def _there(self) -> bool:
        try:
            for train in (True, False):
                self.torchvision_class(self.root, train=train, download=False)
        except Exception:  # the download reports the cause better
            return False
        return True

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        try:
            data = self.torchvision_class(self.root, train=train, download=False)
        except (RuntimeError, ValueError, AssertionError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
            folder = Path(self.root) / self.files.split("/", maxsplit=1)[0]
            # For CIFAR-10, torchvision has the same message for missing and for damaged files.
            missing = "not found" in str(error) and not ("corrupted" in str(error) and folder.is_dir())
            if missing:
                raise DatasetNotFoundError(
                    f"{self.title} not found in {Path(self.root).absolute()}. Put {self.files} there, "
                    "point --data.root to them, or pass --data.download=true."
                ) from error
            raise self._damaged(error) from error
        if self.published is not None and len(data) != self.published[not train]:
            _log.warning(
                "%s in %s has %d %s images, and the published one %d: results are of another data set.",
                self.title,
                Path(self.root).absolute(),
                len(data),
                "training" if train else "test",
                self.published[not train],
            )
        images = torch.as_tensor(data.data)
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
        return images, torch.as_tensor(data.targets)


def _digest(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in (images, labels.to(torch.uint8)):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


_IDX = "{train,t10k}-{images-idx3,labels-idx1}-ubyte (or their .gz)"


@dataclass(eq=False, repr=False)
class MNIST(TorchvisionDataModule):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits."""

    title = "MNIST"
    torchvision_class = datasets.MNIST
    files = f"MNIST/raw/{_IDX}"
    published = 60_000, 10_000
    digests = "4fbea2f00d40baac", "37949196e920e83b"
    input_shape = (1, 28, 28)
    class_names = tuple("0123456789")
    mean, std = (0.1307,), (0.3081,)


@dataclass(eq=False, repr=False)
class FashionMNIST(TorchvisionDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images."""

    title = "Fashion-MNIST"
    torchvision_class = datasets.FashionMNIST
    files = f"FashionMNIST/raw/{_IDX}"
    published = 60_000, 10_000
    digests = "476097ecb80ff8d0", "19e07d9f243258a1"
    input_shape = (1, 28, 28)
    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    mean, std = (0.2860,), (0.3530,)


@dataclass(eq=False, repr=False)
class CIFAR10(TorchvisionDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images.

    Args:
        authors_std: divide by the authors' standard deviations, means of per-image ones, instead of those over all
            pixels.
    """

    authors_std: bool = False

    title = "CIFAR-10"
    torchvision_class = datasets.CIFAR10
    published = 50_000, 10_000
    files = "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}"
    input_shape = (3, 32, 32)
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
