"""User images in class folders."""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from rich.progress import Progress
from torch import Tensor

from plif_lightning.data.base import place_below
from plif_lightning.data.folders import ClassFolders
from plif_lightning.data.images import ImageDataModule
from plif_lightning.errors import UserError, require_count
from plif_lightning.runtime.cores import cores
from plif_lightning.runtime.files import is_address, not_written, written_whole
from plif_lightning.runtime.locks import folder_lock
from plif_lightning.runtime.mapped import explain_bus_errors

Colour = Literal["auto", "grey", "rgb"]
_log = logging.getLogger(__name__)
# Increment when the same files produce other arrays.
_FORMAT = 1
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
# Images per chunk while decoding and hashing.
_PORTION = 256
# Pillow modes whose values fit 8-bit grey or RGB; transparency is dropped.
_GREY, _RGB = {"1", "L", "LA"}, {"RGB", "RGBA", "P", "CMYK", "YCbCr"}


@dataclass(eq=False, repr=False)
class ImageFolder(ImageDataModule):
    """Images in class folders: ROOT/train/CLASS/* and ROOT/test/CLASS/* (the layout of torchvision's ImageFolder).

    They are decoded once into arrays below ROOT/.plif_lightning, which are memory-mapped. Pixels are those of
    torchvision's ImageFolder: the first frame of several, without EXIF's rotation and without transparency; a warning
    counts such images.

    Args:
        size: resize images to size x size pixels, ignoring their aspect ratio; by default images keep their size,
            which must then be the same for all.
        colour: convert all images to grey or rgb; auto uses that of the first image and refuses a mixture.
        store: folder for the decoded images, if root is read-only.
    """

    size: int | None = None
    colour: Colour = "auto"
    store: str | None = None

    title = "images in class folders"  # an instance uses its folder's name

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_known("colour", get_args(Colour))
        if self.size is not None:
            require_count("data.size", self.size)
        root = Path(self.root)
        self.folders = ClassFolders(root, _SUFFIXES, "images")
        self.title = self.folders.title  # type: ignore[misc]
        if self.store and is_address(self.store):
            raise UserError(f"data.store of images must be a folder, got {self.store}.")
        self.cache = place_below(self.store, root) if self.store else root / ".plif_lightning"
        self._folder = self.cache
        self._facts: dict[str, Any] | None = None
        self._mapped: dict[bool, Tensor] = {}

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders, sorted."""
        return self.folders.classes()

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(C, H, W), taken from the first image as far as `size` and `colour` do not set it."""
        _, first = next(self.folders.files(train=True))
        with _opened(first) as image:
            width, height = (self.size, self.size) if self.size else image.size
            return len(_bands(image, self.colour, first)), height, width

    @property
    def mean(self) -> tuple[float, ...]:  # type: ignore[override]
        """Mean per channel, over all pixels of the training images."""
        return tuple(self._decoded()["mean"])

    @property
    def std(self) -> tuple[float, ...]:  # type: ignore[override]
        """Standard deviation per channel, over all pixels of the training images."""
        return tuple(self._decoded()["std"])

    # --- decoded images: FORM-FINGERPRINT/train.npy, test.npy and, written last, facts.json

    @property
    def _form(self) -> str:
        return f"{self.size or 'whole'}-{self.colour}"

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(repr((_FORMAT, self.size, self.colour)).encode(), digest_size=16)
        for train in (True, False):
            for label, path in self.folders.files(train):
                try:
                    stat = path.stat()
                except OSError as error:
                    raise _unreadable(path, error) from error
                digest.update(repr((label, path.parts[-3:], stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()

    def _decoded(self) -> dict[str, Any]:
        if self._facts is None:
            self.prepare_data()
            assert self._facts is not None
        return self._facts

    def prepare_data(self) -> None:
        """Decode the images, unless that was done before."""
        self.folders.say_what_is_left_out()
        self.prepared = False
        if not self._made_with:
            self._forget()
        before = self._facts if self._made_with else None
        folder = self.cache / f"{self._form}-{self._fingerprint()}"
        if folder != self._folder:
            self._folder, self._mapped = folder, {}
        self._facts = _facts(folder)
        if self._facts is None:
            self._decode_in_turn(folder)
        assert self._facts is not None
        parts = (("train", "labels"), ("train", "blake2b"), ("test", "labels"), ("test", "blake2b"))
        self._require_same(before is None or all(before[part][key] == self._facts[part][key] for part, key in parts))
        for kind, (count, first) in self._facts.get("unlike", {}).items():
            _log.warning("%s: %d images have %s. The first is %s.", self.root, count, kind, first)

    def _decode_in_turn(self, folder: Path) -> None:
        with folder_lock(self.cache, lambda error: UserError(self._unwritable(error))):
            self._facts = _facts(folder)  # another process may have decoded them meanwhile
            if self._facts is None:
                for old in self.cache.glob(f"{self._form}-*"):  # of other files; other sizes are kept
                    shutil.rmtree(old, ignore_errors=True)
                self._facts = self._decode(folder)
                self.prepared = True

    def _unwritable(self, error: OSError) -> str:
        return not_written("the decoded images", self.cache, "data.store", error)

    def _decode(self, folder: Path) -> dict[str, Any]:
        shape = self.input_shape
        files = {"train": list(self.folders.files(train=True)), "test": list(self.folders.files(train=False))}
        unlike: dict[str, tuple[int, str]] = {}
        facts: dict[str, Any] = {"shape": shape, "unlike": unlike}
        try:
            folder.mkdir()
            with Progress() as bar, ThreadPoolExecutor(cores()) as pool:
                task = bar.add_task("decoding images", total=sum(map(len, files.values())))
                for part, listed in files.items():
                    digest, counts = hashlib.blake2b(digest_size=16), np.zeros((shape[0], 256), np.int64)
                    # Not memory-mapped, because a full disk would then crash the process (SIGBUS).
                    with (folder / f"{part}.npy").open("wb") as file:
                        header = {"descr": "|u1", "fortran_order": False, "shape": (len(listed), *shape)}
                        np.lib.format.write_array_header_1_0(file, header)
                        for first in range(0, len(listed), _PORTION):
                            portion = listed[first : first + _PORTION]
                            decoded = pool.map(lambda entry: self._image(entry[1], shape), portion)
                            found, kinds = zip(*decoded, strict=True)
                            for (_, path), lacking in zip(portion, kinds, strict=True):
                                for kind in lacking:
                                    count, first_one = unlike.get(kind, (0, path.relative_to(self.root).as_posix()))
                                    unlike[kind] = count + 1, first_one
                            images = np.ascontiguousarray(np.stack(found))
                            file.write(images.data)
                            digest.update(images.data)
                            for channel in range(shape[0]):
                                counts[channel] += np.bincount(images[:, channel].reshape(-1), minlength=256)
                            bar.advance(task, len(portion))
                    facts[part] = {"labels": [label for label, _ in listed], "blake2b": digest.hexdigest()}
                    facts[part]["time"] = (folder / f"{part}.npy").stat().st_mtime_ns
                    if part == "train":
                        facts["mean"], facts["std"] = _moments(counts)
            with written_whole(folder / "facts.json") as file:
                json.dump(facts, file)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise UserError(
                    f"the decoded images cannot be written into {folder}: {error.strerror}. Pass --data.store DIR with "
                    "another folder."
                ) from error
            raise
        return facts

    def _image(self, path: Path, shape: Sequence[int]) -> tuple[NDArray[np.uint8], list[str]]:
        """Decoded pixels uint8 [C, H, W], and the properties that they lack, see `_lacking`."""
        with _opened(path) as image:
            bands = _bands(image, self.colour, path)
            # Other values of `colour` convert every image to the same.
            if len(bands) != shape[0]:
                this, first = ("grey", "colour") if len(bands) == 1 else ("colour", "grey")
                raise UserError(
                    f"{path} is {this}, but the first image is {first}: pass --data.colour=grey or --data.colour=rgb."
                )
            if not self.size and image.size != (shape[2], shape[1]):
                raise UserError(
                    f"{path} has {image.size[0]} x {image.size[1]} pixels, but the first image has "
                    f"{shape[2]} x {shape[1]}: pass --data.size={min(shape[1:])} to bring all to one size."
                )
            try:
                pixels = image.convert("L" if shape[0] == 1 else "RGB")
                if self.size:
                    pixels = pixels.resize((self.size, self.size), Image.Resampling.BILINEAR)
                array = np.asarray(pixels)
            except (OSError, ValueError, SyntaxError) as error:
                raise _unreadable(path, error) from error
            lacking = _lacking(image)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1), lacking

    def identity(self, train: bool = True) -> str:
        # Images are sorted by class, so the counts per class determine all labels.
        facts = self._decoded()["train" if train else "test"]
        return f"{facts['blake2b']} {np.bincount(facts['labels']).tolist()}"

    def verify(self) -> int:
        facts = self._decoded()
        for part in ("train", "test"):
            path = self._folder / f"{part}.npy"
            if _checksum(np.load(path, mmap_mode="r")) != facts[part]["blake2b"]:
                raise UserError(f"{path} is damaged. Delete {path.parent} to decode the images again.")
        return 2

    def images_anew(self, train: bool) -> Callable[[], Tensor]:
        return partial(_mapped, self._folder / f"{'train' if train else 'test'}.npy")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        facts = self._decoded()
        if not self._mapped:
            # Map both at once: a run that finds other files deletes these, but existing mappings stay valid.
            self._mapped = {part: self.images_anew(part)() for part in (True, False)}
        return self._mapped[train], torch.tensor(facts["train" if train else "test"]["labels"], dtype=torch.int64)


def _mapped(path: Path) -> Tensor:
    try:
        explain_bus_errors()
        # Copy-on-write, because PyTorch does not support read-only memory.
        return torch.from_numpy(np.asarray(np.load(path, mmap_mode="c")))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} was deleted by another run, which found other images in the class folders. Start again."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete {path.parent} to decode the images again.") from error


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = "no image format is recognised" if isinstance(error, UnidentifiedImageError) else error
    return UserError(f"{path} cannot be read as an image ({reason}): it is damaged or another file. Remove it.")


def _lacking(image: Image.Image) -> list[str]:
    """Properties of an image that decoding drops: orientation, transparency, further frames."""
    found = []
    with suppress(Exception):  # only for a warning: damage behind the pixels is no reason not to read them
        if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
            found.append("an EXIF orientation, by which they are not rotated")
        if "A" in image.mode or "transparency" in image.info:
            opaque = np.asarray(image.convert("RGBA").getchannel("A")).min() == 255
            found += [] if opaque else ["transparent pixels, whose hidden colour is read"]
        # Further frames of MPO are previews. Last: to count frames reads through the file.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            found.append("several frames, of which the first is read")
    return found


def _bands(image: Image.Image, colour: Colour, path: Path) -> str:
    """Pillow mode that an image is converted to, L or RGB."""
    if image.mode not in _GREY | _RGB:
        raise UserError(f"{path} has pixels of mode {image.mode!r}: convert it to 8 bits of grey or colour a pixel.")
    if colour == "auto":
        return "L" if image.mode in _GREY else "RGB"
    return "L" if colour == "grey" else "RGB"


def _facts(folder: Path) -> dict[str, Any] | None:
    """Content of facts.json; None if the decoded images are missing, incomplete or damaged.

    If an array's modification time has changed, it is read once and compared with its checksum.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / "facts.json").read_text("utf-8"))
        shape = facts["shape"]
        for part in ("train", "test"):
            with (folder / f"{part}.npy").open("rb") as file:
                np.lib.format.read_magic(file)
                found = np.lib.format.read_array_header_1_0(file)
                expected = len(facts[part]["labels"]) * math.prod(shape) + file.tell()
            file_stat = (folder / f"{part}.npy").stat()
            if found[0] != (len(facts[part]["labels"]), *shape) or file_stat.st_size != expected:
                return None
            if facts[part].get("time") != file_stat.st_mtime_ns:
                if _checksum(np.load(folder / f"{part}.npy", mmap_mode="r")) != facts[part]["blake2b"]:
                    _log.warning("%s is damaged: decoding the images again.", folder / f"{part}.npy")
                    return None
                facts[part]["time"] = file_stat.st_mtime_ns
                with suppress(OSError), written_whole(folder / "facts.json") as again:  # the folder may be read-only
                    json.dump(facts, again)
        return facts if len(facts["mean"]) == len(facts["std"]) == shape[0] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(images: NDArray[np.uint8]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for first in range(0, len(images), _PORTION):
        digest.update(np.ascontiguousarray(images[first : first + _PORTION]).data)
    return digest.hexdigest()


def _moments(counts: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Exact mean and standard deviation of intensities in [0, 1], from their histogram [channels, 256].

    The deviation of a constant channel is replaced by 1.
    """
    values = np.arange(256, dtype=np.int64)
    n = counts.sum(1)
    mean = counts @ values / (255 * n)
    std = np.sqrt(np.maximum(counts @ values**2 / (255**2 * n) - mean**2, 0))
    return mean.tolist(), np.where(std > 0, std, 1.0).tolist()
