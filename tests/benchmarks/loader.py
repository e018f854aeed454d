"""Images per second of the data modules' loader beside a plain torchvision one, on one core.

    python tests/benchmarks/loader.py

Both serve batches of 16 float images, augmented and normalised, from random images in memory: ours a
batch at a time, theirs through PIL, image by image, as torchvision's documentation has it. They run in
alternation; the median and the spread over the rounds are printed.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plif_lightning.data import HorizontalFlip, RandomAffine, RandomCrop
from plif_lightning.data.images import ImageDataset
from plif_lightning.data.loading import BatchPlan, make_loader
from plif_lightning.runtime.process import processor
from tests.benchmarks.timing import alternate, show_rates


class PILImages(Dataset):
    """What torchvision's MNIST and CIFAR10 do for each image."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: transforms.Compose) -> None:
        arrays = images.permute(0, 2, 3, 1).numpy()
        self.arrays = arrays[..., 0] if arrays.shape[-1] == 1 else arrays
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(np.ascontiguousarray(self.arrays[i]))), self.labels[i]


CASES = {
    "Fashion-MNIST, no augmentation": ((1, 28, 28), [], []),
    "MNIST, flip and crop": (
        (1, 28, 28),
        [HorizontalFlip(), RandomCrop(4)],
        [transforms.RandomHorizontalFlip(), transforms.RandomCrop(28, padding=4)],
    ),
    "MNIST, the authors' affine": (
        (1, 28, 28),
        [RandomAffine()],
        [transforms.RandomAffine(degrees=30, translate=(0.15, 0.15), scale=(0.85, 1.11))],
    ),
    "CIFAR-10, flip and crop": (
        (3, 32, 32),
        [HorizontalFlip(), RandomCrop(4)],
        [transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, padding=4)],
    ),
}


def run(loader: DataLoader) -> None:
    for _ in loader:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n = arguments.images
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {processor()}, 1 thread")
    print(f"{n} images, batch 16, {arguments.rounds} rounds in alternation: median [lowest, highest]")
    for name, (shape, ours, theirs) in CASES.items():
        images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        labels = torch.zeros(n, dtype=torch.int64)
        mean, std = [0.5] * shape[0], [0.25] * shape[0]
        arrays = {"images": images.numpy(), "label": labels.numpy()}
        dataset = ImageDataset(arrays, 10, torch.arange(n), mean, std, ours)
        transform = transforms.Compose([*theirs, transforms.ToTensor(), transforms.Normalize(mean, std)])
        loaders = (
            make_loader(dataset, BatchPlan(n, 16, shuffle=True)),
            DataLoader(PILImages(images, labels, transform), batch_size=16, shuffle=True),
        )
        cases = {
            title: partial(run, loader) for title, loader in zip(("ours", "torchvision, PIL"), loaders, strict=True)
        }
        show_rates(name, "images/s", n, alternate(cases, arguments.rounds))


if __name__ == "__main__":
    main()
