"""Noise of event cameras: background activity and hot pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.recording import Noise, Packed, Recording, Sensor, pack
from plif_lightning.runtime.compiled import compiled

Array = NDArray[Any]
# Before the first event of a pixel's neighbours.
_NEVER = -(2**62)


@compiled
def _supported(pixel: Array, time: Array, last: Array, width: int, us: int, keep: Array) -> None:
    """Mark events with a neighbour's event in the last `us`; `last` is [H + 2, W + 2], its rim is never read."""
    stride = width + 2
    for e in range(len(pixel)):
        y, x = pixel[e] // width, pixel[e] % width
        place = (y + 1) * stride + x + 1
        now = time[e]
        keep[e] = now - last[place] <= us
        for row in range(-1, 2):
            for column in range(-1, 2):
                if row != 0 or column != 0:
                    last[place + row * stride + column] = now


def pixels_of(packed: Packed, sensor: Sensor) -> Array:
    """Pixel of each event, y * W + x, int64 [N]."""
    pixels: Array = packed.address.astype(np.int64) % sensor.pixels
    return pixels


class BackgroundFilter:
    """Drop events that no other event of the eight pixels around preceded within some time: noise is alone.

    It remembers the last times, so a stream may be cut anywhere.

    Args:
        sensor: size of the camera.
        us: longest time since the neighbour's event [us].

    Source: Delbruck 2008, "Frame-free dynamic digital vision", background activity filter (as in jAER).
    """

    def __init__(self, sensor: Sensor, us: int) -> None:
        self.sensor, self.us = sensor, us
        self.last = np.full((sensor.height + 2) * (sensor.width + 2), _NEVER, np.int64)

    def kept(self, packed: Packed) -> NDArray[np.bool_]:
        """Which events of the next piece of a stream stay, bool [N]."""
        pixel = pixels_of(packed, self.sensor)
        keep = np.empty(len(pixel), np.bool_)
        time = packed.time.astype(np.int64) + packed.start
        _supported(pixel, time, self.last, self.sensor.width, self.us, keep)
        return keep


def hot_pixels(packed: Packed, sensor: Sensor, factor: float) -> NDArray[np.bool_]:
    """Pixels that fire without a cause: more than `factor` times as often as each pixel around, plus one, bool [H, W].

    What moves fires neighbours, too. Two hot pixels side by side are not found.
    """
    counts = np.bincount(pixels_of(packed, sensor), minlength=sensor.pixels)
    framed = np.zeros((sensor.height + 2, sensor.width + 2), np.int64)
    framed[1:-1, 1:-1] = counts.reshape(sensor)
    around = np.zeros(sensor, np.int64)
    for row in range(3):
        for column in range(3):
            if (row, column) != (1, 1):
                part = framed[row : row + sensor.height, column : column + sensor.width]
                np.maximum(around, part, out=around)
    found: NDArray[np.bool_] = framed[1:-1, 1:-1] > factor * (1 + around)
    return found


def without_hot_pixels(recording: Recording, sensor: Sensor, factor: float, name: str) -> Recording:
    """A recording without its hot pixels.

    Raises:
        RecordingError: an event lies outside the sensor.
    """
    packed = pack(recording, sensor, name, "as_recorded")
    keep = ~hot_pixels(packed, sensor, factor).reshape(-1)[pixels_of(packed, sensor)]
    return Recording(*(np.asarray(column)[keep] for column in recording))


def cleaned(packed: Packed, sensor: Sensor, noise: Noise) -> Packed:
    """A recording without noise. Hot pixels go first, so that they support no neighbour."""
    if noise.hot_factor is not None:
        hot = hot_pixels(packed, sensor, noise.hot_factor).reshape(-1)
        packed = _chosen(packed, ~hot[pixels_of(packed, sensor)])
    if noise.background_us is not None:
        packed = _chosen(packed, BackgroundFilter(sensor, noise.background_us).kept(packed))
    return packed


def _chosen(packed: Packed, keep: NDArray[np.bool_]) -> Packed:
    """Some events of a recording, whose times count from the first of them."""
    if keep.all():
        return packed
    address, time = packed.address[keep], packed.time[keep]
    first = int(time.min()) if len(time) else 0
    dropped = packed.dropped + len(keep) - len(time)
    return Packed(address, time - np.uint32(first), packed.start + first if len(time) else 0, dropped)
