"""Event augmentation: remap the pixels of a recording and drop events.

Slice boundaries come from the original recording: an event that is dropped or moved out of the frame leaves a
gap and shifts no other event into another time-step.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.data.mixes import RectangleMix, WithProbability, require_share
from plif_lightning.errors import UserError
from plif_lightning.events.recording import Sensor

Array = NDArray[Any]


class EventChanges:
    """Changes to the events of M passes over recordings. Augmentations update it in turn.

    Args:
        count: M.
        sensor: sensor of the recordings.

    Attributes:
        swap_polarity: bool [M].
        keep: probability of keeping an event, float64 [M].
        drop_from: start of the dropped interval, as a share of the recording's duration, float64 [M].
        drop_to: end of that interval, float64 [M].
        box: pixels (left, top, right, bottom; right and bottom excluded) that another recording fills, int64 [M, 4].
    """

    def __init__(self, count: int, sensor: Sensor) -> None:
        self.count, self.sensor = count, sensor
        self.swap_polarity = np.zeros(count, bool)
        self.keep = np.ones(count)
        self.drop_from, self.drop_to = np.zeros(count), np.zeros(count)
        self.box = np.zeros((count, 4), np.int64)
        self._coordinates: tuple[Array, Array] | None = None

    def coordinates(self) -> tuple[Array, Array]:
        """Target column and row of each sensor pixel, float32 [M, H W] each; may lie outside the sensor."""
        if self._coordinates is None:
            y, x = np.indices(self.sensor, np.float32).reshape(2, 1, -1)
            self._coordinates = np.repeat(x, self.count, 0), np.repeat(y, self.count, 0)
        return self._coordinates

    def move(self, x: Array, y: Array) -> None:
        """Replace the targets that `coordinates` returns."""
        self._coordinates = x, y

    def maps(self, within_box: bool = False) -> Array:
        """Target address of every sensor address, int32 [M, 2 H W]; -1 drops the event.

        Args:
            within_box: keep the targets inside the box instead of outside.
        """
        height, width = self.sensor
        x, y = (np.rint(coordinates).astype(np.int32) for coordinates in self.coordinates())
        lost = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        left, top, right, bottom = self.box.T[:, :, None]
        lost |= ((x >= left) & (x < right) & (y >= top) & (y < bottom)) != within_box
        pixel = y * width + x
        maps = np.stack([pixel, pixel + self.sensor.pixels], 1)  # [M, 2, H W]
        maps[self.swap_polarity] = maps[self.swap_polarity][:, ::-1]
        maps[np.broadcast_to(lost[:, None], maps.shape)] = -1
        return maps.reshape(self.count, -1)


class EventAugmentation(ABC):
    """A random change of recordings, determined by `draws` uniform random numbers per recording."""

    draws: int

    @abstractmethod
    def __call__(self, changes: EventChanges, uniform: Array) -> None:
        """Update `changes` from random numbers in [0, 1), float32 [M, draws]."""


class EventFlip(WithProbability, EventAugmentation):
    """Mirror a recording left to right with probability `p`.

    Args:
        p: probability.
    """

    draws = 1

    def __call__(self, changes: EventChanges, uniform: Array) -> None:
        x, y = changes.coordinates()
        flip = uniform[:, 0] < self.p
        x[flip] = changes.sensor.width - 1 - x[flip]
        changes.move(x, y)


class EventTranslation(EventAugmentation):
    """Shift a recording by an integer number of pixels, uniformly in both directions; events that leave the sensor are
    dropped.

    Args:
        pixels: largest shift.
    """

    draws = 2

    def __init__(self, pixels: int = 5) -> None:
        if pixels < 0:
            raise UserError(f"pixels must be at least 0, got {pixels}.")
        self.pixels = pixels

    def __call__(self, changes: EventChanges, uniform: Array) -> None:
        x, y = changes.coordinates()
        shift = np.floor(uniform * (2 * self.pixels + 1)) - self.pixels
        changes.move(x + shift[:, :1], y + shift[:, 1:])


class EventRotation(EventAugmentation):
    """Rotate a recording about the sensor's centre, to the nearest pixel.

    Args:
        degrees: largest angle; the angle is uniform in [-degrees, degrees].
    """

    draws = 1

    def __init__(self, degrees: float = 15.0) -> None:
        if degrees < 0:
            raise UserError(f"degrees must be at least 0, got {degrees}.")
        self.degrees = degrees

    def __call__(self, changes: EventChanges, uniform: Array) -> None:
        x, y = changes.coordinates()
        angle = (2 * uniform - 1) * math.radians(self.degrees)
        cos, sin = np.cos(angle), np.sin(angle)
        centre_x, centre_y = (changes.sensor.width - 1) / 2, (changes.sensor.height - 1) / 2
        from_x, from_y = x - centre_x, y - centre_y
        changes.move(cos * from_x - sin * from_y + centre_x, sin * from_x + cos * from_y + centre_y)


class PolarityFlip(WithProbability, EventAugmentation):
    """Swap ON and OFF events of a recording with probability `p`.

    Args:
        p: probability.
    """

    draws = 1

    def __call__(self, changes: EventChanges, uniform: Array) -> None:
        changes.swap_polarity ^= uniform[:, 0] < self.p


class TimeDrop(EventAugmentation):
    """Drop all events of a random time interval.

    Args:
        share: longest interval, as a share of the recording's duration; its length is uniform in [0, share].

    Source: "drop by time" of Gu et al. 2021, EventDrop.
    """

    draws = 2

    def __init__(self, share: float = 0.3) -> None:
        require_share("share", share)
        self.share = share

    def __call__(self, changes: EventChanges, uniform: Array) -> None:
        length = uniform[:, 0].astype(np.float64) * self.share
        changes.drop_from = uniform[:, 1] * (1 - length)
        changes.drop_to = changes.drop_from + length


class EventDrop(EventAugmentation):
    """Drop each event with a probability drawn per recording.

    Args:
        share: largest probability; it is uniform in [0, share].

    Source: "random drop" of Gu et al. 2021, EventDrop.
    """

    draws = 1

    def __init__(self, share: float = 0.3) -> None:
        require_share("share", share)
        self.share = share

    def __call__(self, changes: EventChanges, uniform: Array) -> None:
        changes.keep = changes.keep * (1 - uniform[:, 0].astype(np.float64) * self.share)


class EventMix(RectangleMix, EventAugmentation):
    """Replace a rectangle of a recording, over its full duration, with the same rectangle of another training
    recording.

    The target becomes a mixture of both classes, in proportion to their areas.

    Args:
        p: probability.

    Source: the mix of NDA, Li et al. 2022, "Neuromorphic Data Augmentation for Training Spiking Neural
    Networks", with its rectangle as in CutMix (Yun et al. 2019).
    """

    def __call__(self, changes: EventChanges, uniform: Array) -> None:
        changes.box = self.boxes(uniform, *changes.sensor)
