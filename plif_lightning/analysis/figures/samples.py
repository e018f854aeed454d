"""Recorded samples: input, spikes and firing rates of the first layer (S2 to S5)."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from plif_lightning.analysis.figures.page import Drawn, NoDataError, literal, new_figure
from plif_lightning.analysis.figures.panels import source_of
from plif_lightning.errors import UserError
from plif_lightning.plot.tensors import picture, pictures
from plif_lightning.runs.run import Run
from plif_lightning.runs.samples import RecordedSamples, read_samples

# --- choosing


def _run_with_samples(
    runs: Sequence[Run], data_set: str, wanted: Callable[[RecordedSamples], bool] = lambda samples: True
) -> tuple[Run, RecordedSamples]:
    """Return the run with recorded samples that has the highest accuracy, and its samples.

    Args:
        runs: to choose from.
        data_set: preferred data set.
        wanted: True for samples that the figure can show.

    Raises:
        NoDataError: there is none.
    """
    for run in sorted(runs, key=lambda run: (run.data_set != data_set, -(run.accuracy or 0.0))):
        try:
            samples = read_samples(run.folder)
        except UserError as error:
            sys.stderr.write(f"note: {error}\n")
            continue
        if samples is not None and wanted(samples):
            return run, samples
    raise NoDataError("no finished run has recorded samples: fit records some maps at its end (--record_samples).")


def typical_channels(samples: RecordedSamples, count: int) -> list[int]:
    """Return the `count` channels whose firing rates vary most over the map, sorted."""
    spread = samples.rates.std((0, 2, 3))
    return sorted(np.argsort(-spread, kind="stable")[:count].tolist())


def _named(channels: Sequence[int]) -> str:
    different = sorted(set(channels))
    return f"channel{'s' if len(different) > 1 else ''} {', '.join(map(str, different))}"


def _class_of(samples: RecordedSamples, i: int) -> str:
    return literal(samples.classes[int(samples.label[i])], 24)


def _step_frames(samples: RecordedSamples, i: int) -> NDArray[Any]:
    """Return the input at each step [T, C, H, W]; a static image is repeated."""
    frames = samples.frames[:, i]
    return np.repeat(frames, len(samples.spikes), 0) if len(frames) == 1 else frames


def _few_steps(steps: int) -> list[int]:
    """Return all time-steps, or 20 at equal distances if there are more than a row has room for."""
    return list(range(steps)) if steps <= 20 else [round(i * (steps - 1) / 19) for i in range(20)]


# --- drawing


def _show(ax: Axes, image: NDArray[Any]) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])


def _show_row(ax: Axes, images: NDArray[Any], label: str, titles: Sequence[str] = ()) -> None:
    """Draw images [N, H, W] or [N, H, W, 3] side by side, each with a frame and a title.

    They share one panel: a panel per image takes ten times as long to draw.
    """
    n, h, w = images.shape[:3]
    step = w + max(1, w // 10)
    strip = np.zeros((h, n * step - (step - w), 4))  # RGBA, transparent between the images
    for i, image in enumerate(images):
        strip[:, i * step : i * step + w, :3] = image if image.ndim == 3 else image[..., None]
        strip[:, i * step : i * step + w, 3] = 1
    _show(ax, strip)
    ax.spines[:].set_visible(False)
    frames = [Rectangle((i * step - 0.5, -0.5), w, h) for i in range(n)]
    edge = {"edgecolor": rcParams["axes.edgecolor"], "linewidth": rcParams["axes.linewidth"]}
    ax.add_collection(PatchCollection(frames, facecolor="none", clip_on=False, **edge))
    ax.set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
    if titles:
        ax.set_xticks([i * step + (w - 1) / 2 for i in range(n)], titles, fontsize=7)
        ax.tick_params(length=0, labeltop=True, labelbottom=False)


def _step_titles(steps: Sequence[int]) -> list[str]:
    return [f"t = {steps[0]}", *map(str, steps[1:])]


def _grid(maps: NDArray[Any]) -> NDArray[np.float64]:
    """Tile maps [C, H, W] into a nearly square grid with grey lines in between."""
    c, h, w = maps.shape
    columns = int(np.ceil(np.sqrt(c)))
    rows = -(-c // columns)
    grid = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1), 0.5)
    for i, feature_map in enumerate(maps):
        row, column = divmod(i, columns)
        grid[row * (h + 1) : row * (h + 1) + h, column * (w + 1) : column * (w + 1) + w] = feature_map
    return grid


# --- figures


def figure_s2(runs: Sequence[Run]) -> Drawn:
    """Draw a sample of each class, and firing rates of three channels of the first layer."""
    run, samples = _run_with_samples(runs, "FashionMNIST")
    channels, count = typical_channels(samples, 3), len(samples.label)
    figure, axes = new_figure(0.95 * count + 0.6, 1.1 * (1 + len(channels)), 1 + len(channels))
    pictures = np.stack([picture(samples.frames[:, i].mean(0)) for i in range(count)])
    _show_row(axes[0, 0], pictures, "input", [_class_of(samples, i) for i in range(count)])
    for row, c in enumerate(channels, start=1):
        _show_row(axes[row, 0], samples.rates[:, c], f"channel {c}")
    return figure, (
        f"A sample of each class, and the firing rates [spikes / time-step] of {_named(channels)} of the first layer, "
        f"from 0 (black) to 1 (white). {source_of(run)}"
    )


def figure_s3(runs: Sequence[Run]) -> Drawn:
    """Draw all channels of the first layer for one sample."""
    run, samples = _run_with_samples(runs, "CIFAR10DVS")
    figure, axes = new_figure(9.0, 4.9, 1, 2)
    spikes = samples.spikes[:, 0]
    last = len(spikes) - 1
    for ax, maps, label in zip(axes[0], (spikes[0], spikes.mean(0)), ("(a)", "(b)"), strict=True):
        _show(ax, _grid(maps.astype(np.float64)))
        ax.set_title(label, fontsize=7)
    return figure, (
        f"All channels of the first layer for a sample of class {_class_of(samples, 0)}: (a) spikes at t = 0, (b) "
        f"firing rates at t = {last} [spikes / time-step]. {source_of(run)}"
    )


def figure_s4(runs: Sequence[Run]) -> Drawn:
    """Draw input, spikes and their running means of one sample over time."""
    run, samples = _run_with_samples(runs, "CIFAR10DVS")
    channels = (2 * typical_channels(samples, 2))[:2]
    frames, spikes = _step_frames(samples, 0), samples.spikes[:, 0].astype(np.float64)
    steps = _few_steps(len(spikes))
    figure, axes = new_figure(0.75 * len(steps) + 0.9, 5.4, 6)
    so_far = np.arange(1, len(spikes) + 1)[:, None, None, None]
    parts = (
        ("(a)", frames.astype(np.float64), spikes),
        ("(b)", np.cumsum(frames.astype(np.float64), 0) / so_far, np.cumsum(spikes, 0) / so_far),
    )
    for row_number, (letter, inputs, fired) in enumerate(parts):
        images = pictures(inputs[steps])
        titles = _step_titles(steps) if row_number == 0 else ()
        _show_row(axes[3 * row_number, 0], images, f"{letter} {'mean ' if row_number else ''}input", titles)
        for row, c in enumerate(channels, start=1):
            label = f"{letter} {'rate, ch.' if row_number else 'channel'} {c}"
            _show_row(axes[3 * row_number + row, 0], fired[steps, c], label)
    return figure, (
        f"A sample of class {_class_of(samples, 0)} over time: (a) input and spikes of {_named(channels)} of the first "
        f"layer, (b) their means so far, from 0 (black) to 1 (white). {source_of(run)}"
    )


def figure_s5(runs: Sequence[Run]) -> Drawn:
    """Draw frames of three samples at each step, and the spikes below each."""
    try:
        run, samples = _run_with_samples(runs, "DVSGesture", lambda s: len(s.frames) > 1)
    except NoDataError:  # static images only
        run, samples = _run_with_samples(runs, "DVSGesture")
    channel = typical_channels(samples, 1)[0]
    steps, played = _few_steps(len(samples.spikes)), min(3, samples.spikes.shape[1])
    figure, axes = new_figure(0.75 * len(steps) + 0.9, 0.95 * 2 * played + 0.5, 2 * played)
    for i in range(played):
        frames = _step_frames(samples, i)
        images = pictures(frames[steps])
        titles = _step_titles(steps) if i == 0 else ()
        _show_row(axes[2 * i, 0], images, _class_of(samples, i), titles)
        _show_row(axes[2 * i + 1, 0], samples.spikes[steps, i, channel], "spikes")
    return figure, (
        f"Frames of {played} samples at each step, and below each the spikes of channel {channel} of the first layer. "
        f"{source_of(run)}"
    )
