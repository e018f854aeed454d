"""Specification of a network's input, stored in its checkpoint by the data module, for `stream` and `export`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

Kind = Literal["images", "events", "sequences"]


@dataclass(frozen=True)
class InputSpec:
    """The part of a data module's `preprocessing` that commands without data ask for; None where it says nothing.

    Attributes:
        kind: static images, frames of events, or sequences of features.
        probe: what took the time away, see `SpikingDataModule`.
        time_steps: T.
        size: height and width of the frames [pixels].
        sensor: of the camera; of rescaled recordings for files that name none.
        rescales: each recording is rescaled to `size` from the sensor that its file names.
        slicing: by_count or by_time.
        step_us: duration of a time-step [us], if all have one.
        window_us, window_events: length of a sample that was cut from a recording.
        from_zero: the first time-step begins at time 0, not at the first event.
        channels: of a pixel: 2 polarities, or 1.
        background_us: see `EventDataModule`.
        columns, time_unit: of tables, see `EventFolder`.
        reader: import path of the data set that alone reads its files; None where any recording will do.
    """

    kind: Kind | None = None
    probe: str | None = None
    time_steps: int | None = None
    size: tuple[int, int] | None = None
    sensor: tuple[int, int] | None = None
    rescales: bool = False
    slicing: Any = "by_count"
    step_us: float | None = None
    window_us: float | None = None
    window_events: int | None = None
    from_zero: bool = False
    channels: int | None = None
    background_us: int | None = None
    columns: list[str] | None = None
    time_unit: Any = None
    reader: str | None = None

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any] | None) -> Self:
        """From what a checkpoint holds."""
        names = {field.name for field in fields(cls)}
        known = {name: value for name, value in (preprocessing or {}).items() if name in names}
        sizes = {name: tuple(known[name]) for name in ("size", "sensor") if known.get(name) is not None}
        return cls(**{**known, **sizes})

    def step_length(self) -> tuple[int | None, float | None]:
        """Events, or milliseconds, of a time-step; neither where it is a T-th of a recording."""
        steps = self.time_steps or 1
        if self.window_events is not None:
            return self.window_events // steps, None
        us = self.step_us or (self.window_us or 0) / steps
        return None, us / 1000 or None
