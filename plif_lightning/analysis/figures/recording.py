"""A recording of an event camera as a picture: frames, and its rate over time."""

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from plif_lightning.analysis.figures.page import WIDTH, Drawn, NoDataError
from plif_lightning.events.integration import integrate
from plif_lightning.events.recording import Recording, Sensor, pack_events
from plif_lightning.plot.style import COLOURS, plain
from plif_lightning.plot.tensors import pictures

_FRAMES, _BINS = 6, 100


def recording_figure(recording: Recording, sensor: Sensor | None, name: str) -> Drawn:
    """Draw a recording and return the figure with its caption.

    Args:
        recording: N > 0 events.
        sensor: size of the camera; None if unknown: the smallest that contains the events.
        name: name of the recording.

    Raises:
        NoDataError: there are no events.
        RecordingError: an event lies outside the sensor, or time runs backwards.
    """
    if not len(recording.t):
        raise NoDataError(f"{name} holds no events.")
    size = sensor or Sensor(int(np.max(recording.y)) + 1, int(np.max(recording.x)) + 1)
    packed = pack_events(recording, size, name)
    duration = int(packed.time[-1]) + 1
    unit, second = (1e6, "s") if duration >= 1_000_000 else (1e3, "ms")
    height = 1.15 * size.height / size.width + 0.3
    with rc_context({"font.size": 8}):
        figure = Figure(figsize=(WIDTH, height + 1.8), dpi=150, layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, 1.8])
        above, below = parts
        frames = pictures(integrate(packed, size, _FRAMES, "by_time"))
        for i, (ax, image) in enumerate(zip(np.ravel(above.subplots(1, _FRAMES)), frames, strict=True)):
            ax.imshow(image, interpolation="nearest" if max(size) <= 200 else "antialiased")
            ax.set_title(f"{i * duration / _FRAMES / unit:,.1f} {second}", fontsize=7)
            ax.set_axis_off()
        rate = below.subplots()
        edges = np.linspace(0, duration, _BINS + 1)
        on = packed.address.astype(np.int64) >= size.pixels
        for label, chosen, colour in (("ON", on, COLOURS[1]), ("OFF", ~on, COLOURS[0])):
            counts = np.histogram(packed.time[chosen], edges)[0]
            rate.plot(edges[:-1] / unit, counts / (edges[1] / 1e6), label=label, color=colour, linewidth=1)
        rate.set_xlabel(f"time [{second}]")
        rate.set_ylabel("events a second")
        rate.yaxis.set_major_formatter(EngFormatter(sep=""))
        rate.legend(frameon=False, fontsize=6.5)
        plain(rate)
    return figure, (
        f"{name}: {len(packed.time):,} events in {duration / unit:,.1f} {second} "
        f"({len(packed.time) / duration * 1e6:,.0f} a second, {100 * on.mean():.0f} % ON), {size} pixels (height x "
        f"width){'' if sensor else ', as far as they reach: the file does not name its sensor'}. Above, {_FRAMES} "
        "frames of equal duration, ON red and OFF blue; below, the rate."
    )
