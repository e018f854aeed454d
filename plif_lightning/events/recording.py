"""Recordings in memory: time-ordered events and their sensor."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from plif_lightning.errors import UserError

Ints: TypeAlias = NDArray[np.integer[Any]]


class RecordingError(UserError):
    """A file is not a recording of the expected format and sensor. The message names the file."""


class Sensor(NamedTuple):
    """Size of an event camera [pixels]."""

    height: int
    width: int

    @classmethod
    def of(cls, size: Any) -> "Sensor":
        """Sensor from (height, width).

        Raises:
            UserError: `size` is not a pair of positive integers.
        """
        try:
            height, width = (operator.index(side) for side in size)
        except (TypeError, ValueError):
            raise UserError(
                f"sensor must be (height, width), got {size!r}; tonic's sensor_size is (width, height, polarities)."
            ) from None
        if min(height, width) < 1:
            raise UserError(f"sensor must be at least 1 pixel high and wide, got {size!r}.")
        return cls(height, width)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def is_line(self) -> bool:
        """True for a row of sensors, such as a cochlea's: its frames are features."""
        return self.height == 1


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


def rescale(recording: Recording, sensor: Sensor, size: Sensor, name: str = "events") -> Recording:
    """Rescale a recording to another sensor size: pixel x becomes floor(x * new width / width), and y likewise.

    Raises:
        RecordingError: an event lies outside the sensor.

    >>> rescale(Recording(*np.array([[0], [5], [3], [1]])), Sensor(4, 8), Sensor(2, 2)).x
    array([1])
    """
    x, y = np.asarray(recording.x, np.int64), np.asarray(recording.y, np.int64)
    _require_within({"x": (x, sensor.width), "y": (y, sensor.height)}, sensor, name)
    return recording._replace(x=x * size.width // sensor.width, y=y * size.height // sensor.height)


def in_channels(recording: Recording, polarities: int) -> Recording:
    """A recording as it is, or, for 1 channel, with the same polarity 0 for all events."""
    return recording if polarities == 2 else recording._replace(p=np.zeros(len(recording.t), np.uint8))


class Packed(NamedTuple):
    """A recording in the format of the cache, 6 bytes per event.

    Attributes:
        address: index into a frame [2, H, W], p * H * W + y * W + x; uint16 (uint32 for large sensors) [N].
        time: time since the first event [us], uint32 [N].
        start: time of the first event [us]; 0 if there is none.
    """

    address: Ints
    time: NDArray[np.uint32]
    start: int

    def from_zero(self) -> "Packed":
        """The same with times that count from 0, not from the first event."""
        return Packed(self.address, self.time + np.uint32(self.start), 0)


def address_type(sensor: Sensor) -> np.dtype[Any]:
    """Smallest dtype that holds the addresses of a sensor."""
    return np.dtype(np.uint16 if 2 * sensor.pixels <= 2**16 else np.uint32)


def _integers(values: NDArray[Any], column: str, name: str) -> Ints:
    """Integers, converted from booleans or from floating-point numbers without a fraction."""
    if values.dtype.kind in "iu":
        return values
    if values.dtype == bool:
        return values.astype(np.uint8)
    is_integer = (np.abs(values) < 2**63) & (values == np.floor(values))  # neither NaN nor infinite
    if is_integer.all():
        return values.astype(np.int64)
    unit = " [us]" if column == "t" else ""
    raise RecordingError(f"{name}: {column} must be whole numbers{unit}, got some such as {values[~is_integer][0]}.")


def _columns_of(x: Any, y: Any, t: Any, p: Any, name: str) -> tuple[Any, Any, Any, Any]:
    """x, y, t and p from the arguments of `recording_of`, where x may stand for all four."""
    if y is not None or t is not None or p is not None:
        return x, y, t, p
    if isinstance(x, Recording):
        return x.x, x.y, x.t, x.p
    fields = getattr(getattr(x, "dtype", None), "names", None)
    if fields is None:
        return x, y, t, p
    polarity = "p" if "p" in fields else "polarity"
    if missing := [field for field in ("x", "y", "t", polarity) if field not in fields]:
        raise RecordingError(f"{name}: a structured array must have x, y, t and p, but lacks {', '.join(missing)}.")
    return x["x"], x["y"], x["t"], x[polarity]


def _numbers(values: Any, column: str, name: str) -> NDArray[Any]:
    """A number per event, [N], from an array, a list or a tensor."""
    numbers = np.asarray(values.detach() if hasattr(values, "detach") else values)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iufb":
        raise RecordingError(
            f"{name}: {column} must be one number per event, got {numbers.dtype} {list(numbers.shape)}."
        )
    return numbers


def recording_of(
    x: Any, y: Any = None, t: Any = None, p: Any = None, name: str = "events", sorted_by_time: bool = False
) -> Recording:
    """Recording from arrays, lists, tensors or a structured array.

    Args:
        x: column of each event [pixel]: an array, a list or a tensor, [N]; or, in place of all four arguments, a
            structured array with the fields x, y, t and p (or `polarity`), as from tonic, or a `Recording`.
        y: row [pixel].
        t: time [us].
        p: polarity: 0 and 1, -1 and 1, or booleans.
        name: name of the recording, for messages.
        sorted_by_time: sort the events by time.

    Raises:
        RecordingError: a column is missing, not numeric or of another length.
    """
    x, y, t, p = _columns_of(x, y, t, p, name)
    columns = {column: _numbers(values, column, name) for column, values in (("t", t), ("x", x), ("y", y), ("p", p))}
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{len(values)} of {column}" for column, values in columns.items())
        raise RecordingError(f"{name}: every event needs x, y, t and p, got {lengths}.")
    columns["t"] = _integers(columns["t"], "t", name)
    polarities = columns["p"]
    if polarities.min(initial=0) == -1 and ((polarities == -1) | (polarities == 1)).all():
        columns["p"] = (polarities > 0).astype(np.uint8)
    if sorted_by_time:
        order = np.argsort(columns["t"], kind="stable")
        columns = {column: values[order] for column, values in columns.items()}
    return Recording(**columns)


def _require_within(columns: Mapping[str, tuple[Ints, int]], sensor: Sensor, name: str) -> None:
    """Refuse values outside of 0 to size - 1, the columns (values, size) of a recording.

    Raises:
        RecordingError: there is one.
    """
    for axis, (values, size) in columns.items():
        if values.min(initial=0) < 0 or values.max(initial=0) >= size:
            i = int(np.argmax((values < 0) | (values >= size)))
            raise RecordingError(
                f"{name}: event {i} has {axis} = {values[i]}, but a sensor of {sensor} pixels (height x width) "
                f"has {axis} in 0..{size - 1}. It is damaged or comes from another sensor."
            )


def pack_events(recording: Recording, sensor: Sensor, name: str) -> Packed:
    """Check a recording and convert it to the format of the cache.

    Args:
        recording: N >= 0 events.
        sensor: sensor that must contain all of them.
        name: name of the file, for messages.

    Raises:
        RecordingError: a value is not a whole number, a coordinate or polarity is out of range, time runs backwards,
            or the recording is longer than 71 minutes (2^32 us).
    """
    if len(recording.t) == 0:
        return Packed(np.zeros(0, address_type(sensor)), np.zeros(0, np.uint32), 0)
    t, x, y, p = (
        _integers(np.asarray(column), column_name, name) for column_name, column in recording._asdict().items()
    )
    _require_within({"x": (x, sensor.width), "y": (y, sensor.height), "polarity": (p, 2)}, sensor, name)
    t = t.astype(np.int64, copy=False)
    if (t[1:] < t[:-1]).any():
        i = int(np.argmax(t[1:] < t[:-1])) + 1
        raise RecordingError(
            f"{name}: time runs backwards at event {i}, from {t[i - 1]} to {t[i]} us. It is damaged, or its clock was "
            "reset while it was recorded."
        )
    start, last = int(t[0]), int(t[-1])
    if last - start >= 2**32:
        raise RecordingError(
            f"{name}: its events span {(last - start) / 6e7:.0f} minutes; at most 71 (2^32 us) are expected. "
            "It is damaged, its clock was reset while it was recorded, or its times are not in microseconds."
        )
    address = p.astype(np.uint32) * np.uint32(sensor.pixels)
    address += y.astype(np.uint32) * np.uint32(sensor.width)
    address += x.astype(np.uint32)
    return Packed(address.astype(address_type(sensor)), (t - start).astype(np.uint32), start)
