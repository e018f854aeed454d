"""A recording of an event camera as a picture: frames, time surface, pixels, and its rate over time."""

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from plif_lightning.analysis.figures.page import WIDTHS, Drawn, NothingToShowError
from plif_lightning.events.integration import BackgroundFilter, integrate, pixels_of
from plif_lightning.events.recording import Packed, Recording, Sensor, pack
from plif_lightning.plot.style import COLOURS, plain
from plif_lightning.plot.tensors import pictures

_FRAMES = 6
_BINS = 100
# Of the time surface, and of the background filter [us]; a tenth of a shorter recording.
_TAU = 50_000
_BACKGROUND_US = 10_000


def sensor_around(recording: Recording) -> Sensor:
    """Smallest sensor that contains all events."""
    return Sensor(int(np.max(recording.y, initial=0)) + 1, int(np.max(recording.x, initial=0)) + 1)


def _constant(most: int, duration: int) -> int:
    """A time [us] of one digit: at most `most`, and a tenth of the recording."""
    tenth = max(1, duration // 10)
    return min(most, tenth // 10 ** (len(str(tenth)) - 1) * 10 ** (len(str(tenth)) - 1))


def _surface(packed: Packed, sensor: Sensor, end: int, tau: int) -> NDArray[Any]:
    """exp(-(t - t_last) / tau) of each pixel's last event up to `end` [us], [H, W]; 0 without one.

    Source: Lagorce et al. 2017, HOTS.
    """
    count = int(np.searchsorted(packed.time, end, side="right"))
    last = np.full(sensor.pixels, -np.inf)
    last[pixels_of(packed, sensor)[:count]] = packed.time[:count]
    surface: NDArray[Any] = np.exp((last - end) / tau).reshape(sensor)
    return surface


def recording_figure(recording: Recording, sensor: Sensor | None, name: str) -> Drawn:
    """Draw a recording and return the figure with its caption.

    Args:
        recording: N > 0 events.
        sensor: size of the camera; None if it is not known, for the smallest one that contains the events.
        name: name of the recording.

    Raises:
        NothingToShowError: there are no events.
        RecordingError: an event lies outside the sensor, or time runs backwards.
    """
    if not len(recording.t):
        raise NothingToShowError(f"{name} holds no events.")
    size = sensor or sensor_around(recording)
    packed = pack(recording, size, name)
    duration = int(packed.time[-1]) + 1
    tau, background = _constant(_TAU, duration), _constant(_BACKGROUND_US, duration)
    keep = BackgroundFilter(size, background).kept(packed)
    edges = np.linspace(0, duration, _BINS + 1)
    on = packed.address.astype(np.int64) >= size.pixels
    counts = {
        "ON": np.histogram(packed.time[on], edges)[0],
        "OFF": np.histogram(packed.time[~on], edges)[0],
        f"with a neighbour in {background / 1000:g} ms": np.histogram(packed.time[keep], edges)[0],
    }
    busiest = int(edges[int(np.argmax(counts["ON"] + counts["OFF"])) + 1])
    with rc_context({"font.size": 8}):
        figure = _drawn(packed, size, counts, edges, busiest, tau)
    return figure, _caption(name, packed, sensor, size, keep, (busiest, tau, background))


def _times(duration: int) -> tuple[float, str]:
    """Unit for the times of a recording of `duration` us: the us in it, and its name."""
    return (1e6, "s") if duration >= 1_000_000 else (1e3, "ms")


def _caption(
    name: str,
    packed: Packed,
    sensor: Sensor | None,
    size: Sensor,
    keep: NDArray[np.bool_],
    times: tuple[int, int, int],
) -> str:
    duration = int(packed.time[-1]) + 1
    busiest, tau, background = times
    unit, second = _times(duration)
    on = (packed.address >= size.pixels).mean()
    return (
        f"{name}: {len(packed.time):,} events in {duration / unit:,.1f} {second} "
        f"({len(packed.time) / duration * 1e6:,.0f} a second, {100 * on:.0f} % ON), {size} pixels (height x width)"
        f"{'' if sensor else ', as far as they reach: the file does not name its sensor'}. Above, {_FRAMES} frames of "
        f"equal duration, ON red and OFF blue. Below, the time surface with a time constant of {tau / 1000:g} ms at "
        f"the busiest moment, {busiest / unit:,.1f} {second}; events of each pixel, on a logarithmic scale; and the "
        f"rate. {100 * keep.mean():.1f} % of the events have one of a pixel around within {background / 1000:g} ms "
        f"before: --data.background_us {background} keeps these."
    )


def _drawn(packed: Packed, sensor: Sensor, counts: dict[str, Any], edges: Any, busiest: int, tau: int) -> Figure:
    figure = Figure(figsize=(WIDTHS[2], 0.3 + 1.15 * sensor.height / sensor.width + 2.3), dpi=150, layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.15 * sensor.height / sensor.width + 0.3, 2.3])
    above, below = parts
    unit, second = _times(int(edges[-1]))
    frames = integrate(packed, sensor, _FRAMES, "by_time")
    for i, (ax, image) in enumerate(zip(np.ravel(above.subplots(1, _FRAMES)), pictures(frames), strict=True)):
        ax.imshow(image, interpolation="nearest" if max(sensor) <= 200 else "antialiased")
        ax.set_title(f"{i * edges[-1] / _FRAMES / unit:,.1f} {second}", fontsize=7)
        ax.set_xticks([])
        ax.set_yticks([])
    surface, pixels, rate = np.ravel(below.subplots(1, 3, width_ratios=[1, 1, 1.4]))
    surface.imshow(_surface(packed, sensor, busiest, tau), cmap="inferno", vmin=0, vmax=1)
    surface.set_title("time surface", fontsize=8)
    events = np.bincount(pixels_of(packed, sensor), minlength=sensor.pixels).reshape(sensor)
    shown = pixels.imshow(np.log10(1 + events), cmap="viridis")
    bar = below.colorbar(shown, ax=pixels, fraction=0.05, shrink=min(1.0, sensor.height / sensor.width))
    ticks = np.arange(0, int(np.log10(1 + events.max())) + 1)
    bar.set_ticks(np.log10(1 + 10.0**ticks), labels=[f"{10**tick:,}" for tick in ticks])
    pixels.set_title("events of each pixel", fontsize=8)
    for ax in (surface, pixels):
        ax.set_xticks([])
        ax.set_yticks([])
    middle, width = (edges[1:] + edges[:-1]) / 2 / unit, (edges[1] - edges[0]) / 1e6
    for (label, values), colour, dash in zip(counts.items(), (COLOURS[1], COLOURS[0], "0.45"), "--:", strict=True):
        rate.plot(middle, values / width, label=label, color=colour, linestyle=dash, linewidth=1)
    rate.set_xlabel(f"time [{second}]")
    rate.set_title("events a second", fontsize=8)
    rate.yaxis.set_major_formatter(EngFormatter(sep=""))
    rate.set_ylim(0, 1.5 * max(values.max() for values in counts.values()) / width)  # room for the legend
    rate.legend(frameon=False, fontsize=6.5, loc="upper right")
    plain(rate)
    return figure
