"""A recording in memory: events in order of time, and the sensor that they lie on."""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from plif_lightning.errors import UserError

Ints: TypeAlias = NDArray[np.integer[Any]]
# strict refuses a recording whose times run backwards; as_recorded keeps its events in the file's order
TimeOrder = Literal["strict", "as_recorded"]


class RecordingError(UserError):
    """A file is not a recording of the expected format and sensor; the message names the file."""


class Sensor(NamedTuple):
    """Size of an event camera [pixels]."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


class Recording(NamedTuple):
    """N events.

    Attributes:
        t: time [us], int64 [N].
        x: column, from the left [pixel], [N].
        y: row, from the top [pixel], [N].
        p: polarity, 0 or 1, [N].
    """

    t: Ints
    x: Ints
    y: Ints
    p: Ints


class Packed(NamedTuple):
    """A recording as the event store keeps it: 6 bytes an event.

    Attributes:
        address: place in a frame [2, H, W], that is p * H * W + y * W + x; uint16 (uint32 on large sensors) [N].
        time: since the first event [us], uint32 [N].
        start: time of the first event [us]; 0 where there is none.
    """

    address: Ints
    time: NDArray[np.uint32]
    start: int


def address_type(sensor: Sensor) -> np.dtype[Any]:
    """The smallest type for the addresses of a sensor."""
    return np.dtype(np.uint16 if 2 * sensor.pixels <= 2**16 else np.uint32)


def pack(recording: Recording, sensor: Sensor, name: str, time_order: TimeOrder = "strict") -> Packed:
    """A checked recording in the store's form.

    Args:
        recording: N >= 0 events.
        sensor: on which all of them must lie.
        name: of the file, for messages.
        time_order: `strict` or `as_recorded`.

    Raises:
        RecordingError: a coordinate or polarity lies outside the sensor, a time runs backwards, or the
            recording is longer than 71 minutes (2^32 us).
    """
    t, x, y, p = recording
    if len(t) == 0:
        return Packed(np.zeros(0, address_type(sensor)), np.zeros(0, np.uint32), 0)
    for axis, values, size in (("x", x, sensor.width), ("y", y, sensor.height), ("polarity", p, 2)):
        if values.min() < 0 or values.max() >= size:
            i = int(np.argmax((values < 0) | (values >= size)))
            raise RecordingError(
                f"{name}: event {i} has {axis} = {values[i]}, but a sensor of {sensor.width} x {sensor.height} pixels "
                f"has {axis} in 0..{size - 1}. The file is damaged or comes from another sensor."
            )
    t = t.astype(np.int64, copy=False)
    if time_order == "strict" and (t[1:] < t[:-1]).any():
        i = int(np.argmax(t[1:] < t[:-1])) + 1
        raise RecordingError(
            f"{name}: time runs backwards at event {i}, from {t[i - 1]} to {t[i]} us. The file is damaged, or its "
            "clock was reset while it was recorded; to keep the file's order pass --data.time_order=as_recorded."
        )
    start = int(t.min())
    if int(t.max()) - start >= 2**32:
        raise RecordingError(
            f"{name}: its events span {(int(t.max()) - start) / 6e7:.0f} minutes; at most 71 (2^32 us) are expected. "
            "The file is damaged, or its clock was reset while it was recorded."
        )
    address = p.astype(np.uint32) * np.uint32(sensor.pixels)
    address += y.astype(np.uint32) * np.uint32(sensor.width)
    address += x.astype(np.uint32)
    return Packed(address.astype(address_type(sensor)), (t - start).astype(np.uint32), start)
