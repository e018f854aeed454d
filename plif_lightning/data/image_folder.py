"""User images in class folders."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.progress import Progress

from plif_lightning.data.base import caches_in
from plif_lightning.data.folders import ClassFolders
from plif_lightning.data.images import ImageDataModule
from plif_lightning.errors import UserError, require_count, require_one_of
from plif_lightning.events.cache import Arrays, ArrayWriter
from plif_lightning.runtime.process import cores

Colour = Literal["auto", "grey", "rgb"]
# Increment when the same files produce other arrays.
_FORMAT = 2
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
# Images that are decoded at once.
_PORTION = 256
# Pillow modes with values that fit 8-bit grey or RGB; transparency is dropped.
_GREY, _RGB = {"1", "L", "LA"}, {"RGB", "RGBA", "P", "CMYK", "YCbCr"}


@dataclass(eq=False, repr=False)
class ImageFolder(ImageDataModule):
    """Images in class folders: ROOT/train/CLASS/* and ROOT/test/CLASS/* (each as torchvision's ImageFolder).

    They are decoded once into arrays below ROOT/.plif_lightning, which are memory-mapped. An image is turned upright as
    its EXIF orientation says; of many frames the first is read, and transparency is dropped.

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
        require_one_of("data.colour", self.colour, Colour)
        if self.size is not None:
            require_count("data.size", self.size)
        self.folders = ClassFolders(Path(self.root), _SUFFIXES, "images")
        self.title = self.folders.title  # type: ignore[misc]
        self._cache: dict[bool, Arrays] = {}

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders, sorted."""
        return self.folders.classes() if self.folders.exist else tuple(map(str, self.arrays(True)["classes"]))

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(C, H, W), from the first image unless `size` and `colour` set it."""
        if not self.folders.exist:
            channels, height, width = self.arrays(True)["images"].shape[1:]
            return channels, height, width
        return self._decode_all(self.folders.files(train=True)[0][0]).shape

    @property
    def mean(self) -> tuple[float, ...]:  # type: ignore[override]
        """Mean per channel, over all pixels of the training images."""
        return tuple(self.arrays(True)["mean"].tolist())

    @property
    def std(self) -> tuple[float, ...]:  # type: ignore[override]
        """Standard deviation per channel, over all pixels of the training images."""
        return tuple(self.arrays(True)["std"].tolist())

    def prepare_data(self) -> None:
        for train in (True, False):
            self.arrays(train)

    def arrays(self, train: bool) -> Arrays:
        if train not in self._cache:
            folder_of_cache = caches_in(self.store, self.folders.root, ".plif_lightning")
            folder = folder_of_cache / f"{self.size or 'whole'}-{self.colour}-{'train' if train else 'test'}"
            options = _FORMAT, self.size, self.colour
            self._cache[train] = self.folders.arrays(folder, options, train, self._decode)
        return self._cache[train]

    def _decode(self, files: list[tuple[str, int]], writer: ArrayWriter) -> None:
        """Append the images, their labels, the class names, and mean and deviation of each channel."""
        shape, first = self.image_shape, files[0][0]
        counts = np.zeros((shape[0], 256), np.int64)

        def decode(entry: tuple[str, int]) -> NDArray[np.uint8]:
            image = self._decode_all(entry[0])
            if image.shape != shape:
                raise UserError(
                    f"{entry[0]} has channels, height and width {list(image.shape)}, but the first image, {first}, has "
                    f"{list(shape)}: pass --data.size={min(shape[1:])}, and --data.colour=grey or rgb."
                )
            return image

        with Progress() as bar, ThreadPoolExecutor(cores()) as pool:
            task = bar.add_task("decoding images", total=len(files))
            for at in range(0, len(files), _PORTION):
                portion = files[at : at + _PORTION]
                images = np.stack([*pool.map(decode, portion)])
                writer.append("images", images)
                for channel in range(shape[0]):
                    counts[channel] += np.bincount(images[:, channel].reshape(-1), minlength=256)
                bar.advance(task, len(portion))
        mean, std = _moments(counts)
        writer.append("label", np.array([label for _, label in files], np.int64))
        writer.append("classes", np.array(self.class_names))
        writer.append("mean", mean)
        writer.append("std", std)

    def _decode_all(self, path: str) -> NDArray[np.uint8]:
        """Pixels of an image, uint8 [C, H, W]."""
        try:
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.mode in _GREY | _RGB:
                    is_grey = self.colour == "grey" or (self.colour == "auto" and image.mode in _GREY)
                    image = image.convert("L" if is_grey else "RGB")
                if self.size:
                    image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
                pixels = np.asarray(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} cannot be read as an image ({error}): it is damaged or another file.") from error
        if pixels.dtype != np.uint8:
            raise UserError(
                f"{path} has pixels of mode {image.mode!r}: convert it to 8 bits of grey or colour a pixel."
            )
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def provenance(self, train: bool) -> dict[str, NDArray[Any]]:
        """`file` of each image, in the folder; empty if the files are gone."""
        if not self.folders.exist:
            return {}
        files = [os.path.relpath(path, self.folders.root) for path, _ in self.folders.files(train)]
        return {"file": np.array(files)}

    def identity(self, train: bool = True) -> str:
        return self.arrays(train).content

    def verify(self) -> int:
        return sum(self.arrays(train).verify() for train in (True, False))


def _moments(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact mean and standard deviation of intensities in [0, 1], from their histogram [channels, 256].

    The deviation of a constant channel is replaced by 1.
    """
    values = np.arange(256, dtype=np.int64)
    n = counts.sum(1)
    mean = counts @ values / (255 * n)
    std = np.sqrt(np.maximum(counts @ values**2 / (255**2 * n) - mean**2, 0))
    return mean, np.where(std > 0, std, 1.0)
