"""Small files in the formats of the real data sets."""

import pickle
import struct
from pathlib import Path

import numpy as np

FOLDERS = {"MNIST": "MNIST/raw", "FashionMNIST": "FashionMNIST/raw", "CIFAR10": "cifar-10-batches-py"}


def labels_of(n: int) -> np.ndarray:
    """0, 1, ..., 9, 0, 1, ..."""
    return (np.arange(n) % 10).astype(np.uint8)


def images_of(n: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Noise around a brightness that tells the class, so that a network has something to learn."""
    noise = np.random.default_rng(seed).integers(0, 60, (n, *shape))
    return (noise + 19 * labels_of(n).reshape(-1, *[1] * len(shape))).astype(np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Yann LeCun's idx format, uint8: magic number, sizes, data, big-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path, train: int = 40, test: int = 20, name: str = "MNIST") -> None:
    """`MNIST` or `FashionMNIST` as torchvision reads it."""
    folder = root / FOLDERS[name]
    for part, n, seed in (("train", train, 0), ("t10k", test, 1)):
        write_idx(folder / f"{part}-images-idx3-ubyte", images_of(n, (28, 28), seed))
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels_of(n))


def write_cifar10(root: Path, train: int = 40, test: int = 20) -> None:
    """CIFAR-10's python version: five training files and one test file of pickled dictionaries."""
    folder = root / FOLDERS["CIFAR10"]
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = images_of(train, (3072,), 0), labels_of(train)
    parts = [(f"data_batch_{i + 1}", images[i::5], labels[i::5]) for i in range(5)]
    for name, x, y in [*parts, ("test_batch", images_of(test, (3072,), 1), labels_of(test))]:
        (folder / name).write_bytes(pickle.dumps({"data": x, "labels": y.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
