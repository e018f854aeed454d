"""`samples.npz`: inputs, spikes and votes of a run's best network for a few samples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.loading import printable
from plif_lightning.runtime.files import written_whole


@dataclass(frozen=True)
class Events:
    """Event recordings of the samples.

    Attributes:
        address: index into a frame [2, H, W] of each event, [E].
        time: time of each event since its recording's first one [us], [E].
        offset: sample i has events [offset[i], offset[i + 1]), [S + 1].
        sensor: (height, width).
        bounds: step t of sample i has its events [bounds[i, t], bounds[i, t + 1]), [S, T + 1]; None in older files.
    """

    address: NDArray[Any]
    time: NDArray[Any]
    offset: NDArray[Any]
    sensor: tuple[int, int]
    bounds: NDArray[Any] | None = None


@dataclass(frozen=True)
class Samples:
    """Inputs, spikes and votes of a run's best network for a few validation samples.

    Attributes:
        label: class of each sample [S].
        classes: names of all classes.
        frames: network inputs [T or 1, S, C, H, W].
        rates: firing rates of the first layer [S, C', H', W'].
        spikes: spikes of the first layer for the first S' samples [T, S', C', H', W'], bool.
        votes: votes at each step [T, S, classes].
        events: recordings from which the frames were built; None for images.
    """

    label: NDArray[Any]
    classes: list[str]
    frames: NDArray[Any]
    rates: NDArray[Any]
    spikes: NDArray[Any]
    votes: NDArray[Any]
    events: Events | None = None


def read_samples(folder: RunFolder) -> Samples | None:
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
            found = Samples(
                stored["label"],
                [printable(str(name)) for name in stored["classes"]],
                stored["frames"],
                stored["counts"].astype(np.float32) / shape[0],
                bits.reshape(shape).astype(bool),
                np.nan_to_num(stored["votes"].astype(np.float32)),
                _events(stored) if "event_address" in stored else None,
            )
        _require_shapes(found)
        return found
    except Exception as error:  # zipfile, zlib and NumPy each raise their own types
        raise UserError(f"{folder.samples} cannot be read: {' '.join(str(error).split())}.") from error


def _events(stored: Any) -> Events:
    height, width = (int(side) for side in stored["sensor"])
    bounds = stored.get("event_bounds")
    return Events(stored["event_address"], stored["event_time"], stored["event_offset"], (height, width), bounds)


def _fits(events: Events, samples: int, steps: int) -> bool:
    count, offset, (height, width) = len(events.address), events.offset, events.sensor
    bounds = events.bounds
    return (
        events.address.shape == events.time.shape == (count,)
        and offset.shape == (samples + 1,)
        and (offset[0], offset[-1]) == (0, count)
        and bool((np.diff(offset) >= 0).all())
        and (count == 0 or 0 <= events.address.min() <= events.address.max() < 2 * height * width)
        and (bounds is None or (bounds.shape == (samples, steps + 1) and bool((np.diff(bounds) >= 0).all())))
    )


def _require_shapes(samples: Samples) -> None:
    steps, played, channels, height, width = samples.spikes.shape
    n, classes = len(samples.label), len(samples.classes)
    shapes = samples.label.shape, samples.rates.shape, samples.votes.shape
    fits = (
        shapes == ((n,), (n, channels, height, width), (steps, n, classes))
        and n >= played > 0
        and samples.frames.ndim == 5
        and samples.frames.shape[:2] in ((1, n), (steps, n))
        and 0 not in samples.frames.shape
        and 0 <= samples.label.min() <= samples.label.max() < classes
        and (samples.events is None or _fits(samples.events, n, steps))
    )
    if not fits:
        raise ValueError("the shapes or values of its arrays do not match")


def write_samples(folder: RunFolder, samples: Samples) -> None:
    """Write the file that `read_samples` reads."""
    steps = len(samples.spikes)
    events = samples.events
    more: dict[str, Any] = {} if events is None else {
        "event_address": events.address, "event_time": events.time, "event_offset": events.offset,
        "sensor": np.asarray(events.sensor),
    }  # fmt: skip
    if events is not None and events.bounds is not None:
        more["event_bounds"] = events.bounds
    with written_whole(folder.samples, "wb") as file:
        np.savez_compressed(
            file,
            label=samples.label,
            classes=np.asarray(samples.classes),
            frames=samples.frames,
            counts=np.rint(samples.rates * steps).astype(np.uint16 if steps > 255 else np.uint8),
            spikes=np.packbits(samples.spikes),
            spikes_shape=np.asarray(samples.spikes.shape),
            votes=samples.votes.astype(np.float16),
            **more,
        )
