"""`samples.npz`: inputs, spikes and votes of a run's best network for a few samples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runtime.files import atomic_write


@dataclass(frozen=True)
class RecordedSamples:
    """Inputs, spikes and votes of a run's best network for a few validation samples.

    Attributes:
        label: class of each sample [S].
        classes: names of all classes.
        frames: network inputs [T or 1, S, C, H, W].
        rates: firing rates of the first layer [S, C', H', W'].
        spikes: spikes of the first layer for the first S' samples [T, S', C', H', W'], bool.
        votes: votes at each step [T, S, classes].
    """

    label: NDArray[Any]
    classes: list[str]
    frames: NDArray[Any]
    rates: NDArray[Any]
    spikes: NDArray[Any]
    votes: NDArray[Any]


def read_samples(folder: RunFolder) -> RecordedSamples | None:
    """Read the samples of a run; None if nothing was recorded.

    Raises:
        UserError: the file is damaged.
    """
    if not folder.samples.is_file():
        return None
    try:
        with folder.samples.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            shape = tuple(stored["spikes_shape"])
            bits = np.unpackbits(stored["spikes"], count=int(np.prod(shape)))
            return RecordedSamples(
                stored["label"],
                [*map(str, stored["classes"])],
                stored["frames"],
                stored["rates"],
                bits.reshape(shape).astype(bool),
                stored["votes"],
            )
    except Exception as error:  # zipfile, zlib and NumPy each raise different types
        raise UserError(f"{folder.samples} cannot be read: {' '.join(str(error).split())}.") from error


def write_samples(folder: RunFolder, samples: RecordedSamples) -> None:
    """Write the file that `read_samples` reads."""
    with atomic_write(folder.samples, "wb") as file:
        np.savez_compressed(
            file,
            label=samples.label,
            classes=np.asarray(samples.classes),
            frames=samples.frames,
            rates=samples.rates,
            spikes=np.packbits(samples.spikes),
            spikes_shape=np.asarray(samples.spikes.shape),
            votes=samples.votes,
        )
