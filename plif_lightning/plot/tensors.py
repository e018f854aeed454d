"""Plots of a network's inputs, states and spikes, from arrays and tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from plif_lightning.errors import UserError
from plif_lightning.plot.style import COLOURS, plain

# Marks of a raster stop shrinking at this number of neurons.
_MAX_NEURONS = 2000
# Neurons of a membrane plot, unless they are given.
_DEFAULT_NEURONS = 4


def _array(values: Any) -> NDArray[Any]:
    """NumPy array from an array, a list, or a tensor on any device."""
    detach = getattr(values, "detach", None)
    array = np.asarray(values if detach is None else detach().float().cpu())
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise UserError(f"numbers are expected, got {array.dtype} {list(array.shape)}.")
    return array


def _sample(array: NDArray[Any], sample: int) -> NDArray[Any]:
    """Values of a sample, [T, *], from [T, N, *]."""
    return array[:, sample]


def _of_sample(values: Any, name: str, sample: int) -> NDArray[Any]:
    """Values of a sample, [T, neurons], from [T], [T, neurons] or [T, N, *]."""
    array = _array(values)
    if array.ndim > 2:
        array = _sample(array, sample)
    if array.ndim == 0:
        raise UserError(f"{name} must be [T], [T, neurons] or [T, N, *], got a single number.")
    return array.reshape(len(array), -1)


def _axes(axes: Axes | None, height: float) -> Axes:
    if axes is not None:
        return axes
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, height), layout="constrained")[1]


def _time_axis(axes: Axes, steps: int) -> None:
    axes.set_xlim(-0.5, steps - 0.5)
    axes.set_xlabel("time-step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes)


def raster(spikes: Any, axes: Axes | None = None, *, sample: int = 0) -> Axes:
    """Plot a spike raster: a mark per spike, neurons over time.

    Args:
        spikes: zeros and ones of a sample [T, neurons] or a batch [T, N, *].
        axes: axes to draw on; None creates new ones.
        sample: index of the sample in [T, N, *].

    Raises:
        UserError: a value is neither 0 nor 1.
    """
    fired = _of_sample(getattr(spikes, "spikes", spikes), "spikes", sample)
    if not np.isin(fired, (0, 1)).all():
        raise UserError(f"spikes must be zeros and ones, got values from {fired.min():g} to {fired.max():g}.")
    steps, neurons = fired.shape
    axes = _axes(axes, 3.2)
    t, neuron = np.nonzero(fired)
    axes.scatter(
        t, neuron, s=max(0.5, min(12.0, 1200 / min(neurons, _MAX_NEURONS))), marker="|", color="black", linewidths=1
    )
    axes.set_ylim(-0.5, neurons - 0.5)
    axes.set_ylabel("neuron")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _time_axis(axes, steps)
    return axes


def _threshold_of(v: Any) -> Any:
    """V_th of a `Trace`: a number, [T, N, *] if it changes, None if it differs between channels; 1 for other values."""
    if not hasattr(v, "charged"):
        return 1.0
    threshold = _array(v.v_threshold)
    if threshold.ndim == 0:
        return float(threshold)
    return threshold if threshold.shape == _array(v.charged).shape else None


def _chosen(neurons: Sequence[int] | None, count: int, spikes: NDArray[Any] | None) -> Sequence[int]:
    """The given neurons out of `count`; if none are given, those that fire most, or the first without spikes."""
    if neurons is None:
        order = np.arange(count) if spikes is None else np.argsort(-spikes.sum(0), kind="stable")
        neurons = sorted(order[:_DEFAULT_NEURONS].tolist())
    return neurons


def membrane(
    v: Any,
    axes: Axes | None = None,
    *,
    sample: int = 0,
    neurons: Sequence[int] | None = None,
    v_threshold: float | Literal["own"] | None = "own",
) -> Axes:
    """Plot membrane potentials over time; for a `Trace`, the potential before the reset with a mark per spike.

    Args:
        v: potentials of a neuron [T], a sample [T, neurons] or a batch [T, N, *]; or a layer's `Trace` from
            `traces` or `Neuron.trace`.
        axes: axes to draw on; None creates new ones.
        sample: index of the sample in [T, N, *].
        neurons: indices among the sample's neurons; None for the first four, or the four of a `Trace` that fire most.
        v_threshold: V_th, drawn as a line. `own` takes a `Trace`'s (a line per neuron if it changes, none if it
            differs between channels), and 1 for other potentials; None draws no line.

    Raises:
        IndexError: there is no such sample or neuron.
    """
    limit: Any = _threshold_of(v) if isinstance(v_threshold, str) else v_threshold
    spikes = None
    if hasattr(v, "charged"):
        spikes, v = _of_sample(v.spikes, "spikes", sample), v.charged
    potential = _of_sample(v, "v", sample)
    count = potential.shape[1]
    neurons = _chosen(neurons, count, spikes)
    axes = _axes(axes, 3.2)
    t = np.arange(len(potential))
    for row, i in enumerate(neurons):
        colour = COLOURS[row % len(COLOURS)]
        label = f"neuron {i}" if count > 1 else "potential"
        axes.plot(t, potential[:, i], color=colour, marker=".", linewidth=1.2, label=label)
        if spikes is not None:
            fired = np.flatnonzero(spikes[:, i])
            axes.plot(fired, potential[fired, i], "v", color=colour, markersize=6)
    if isinstance(limit, np.ndarray):
        of_sample = _of_sample(limit, "v_threshold", sample)
        for row, i in enumerate(neurons):
            style: dict[str, Any] = {"color": COLOURS[row % len(COLOURS)], "linestyle": "--", "linewidth": 1}
            axes.plot(t, of_sample[:, i], label="" if row else "$V_{th}$", **style)
    elif limit is not None:
        axes.axhline(limit, color="0.4", linestyle="--", linewidth=1, label="$V_{th}$")
    axes.set_ylabel("membrane potential" if spikes is None else "potential before the reset")
    axes.legend(frameon=False, fontsize=8)
    _time_axis(axes, len(potential))
    return axes


def frames(x: Any, axes: Sequence[Axes] | None = None, *, sample: int = 0) -> NDArray[Any]:
    """Plot the frames of a sample side by side: grey, RGB, or ON events red and OFF events blue.

    Args:
        x: frames [T, C, H, W] or [T, N, C, H, W], or an image [C, H, W]; C is 1, 2 (OFF, ON) or 3.
        axes: for each frame; None creates new ones.
        sample: index of the sample in [T, N, C, H, W].

    Returns:
        The axes, [T].

    Raises:
        UserError: x has the wrong shape.
    """
    array = _array(x)
    if array.ndim == 5:
        array = _sample(array, sample)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[1] not in (1, 2, 3):
        raise UserError(f"frames must be [T, C, H, W] or [T, N, C, H, W] with C = 1, 2 or 3, got {list(array.shape)}.")
    if axes is None:
        axes = _grid(len(array))
    for t, (ax, image) in enumerate(zip(axes, pictures(array), strict=True)):
        ax.imshow(image, interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        if len(array) > 1:
            ax.set_title(f"t = {t}", fontsize=8)
    return np.asarray(axes)


def maps(
    layers: Mapping[str, Any], axes: Sequence[Axes] | None = None, *, sample: int = 0, size: Sequence[int] | None = None
) -> NDArray[Any]:
    """Plot the activation map of each layer: the firing rate at each place, over all time-steps and channels.

    Args:
        layers: traces by name, as of `traces`, or spikes: [T, N, C, H, W], or [T, N, C, L] of L patches, such as those
            of attention. Others, as of FC layers, have no places and are left out.
        axes: for each map; None creates new ones.
        sample: index of the sample.
        size: height and width of the L patches; by default they are a square.

    Returns:
        The axes, one for each map.

    Raises:
        UserError: no layer has places, or L patches are not of this size.
    """
    rates = {}
    for name, layer in layers.items():
        spikes = _array(getattr(layer, "spikes", layer))
        if spikes.ndim not in (4, 5):
            continue
        rate = _sample(spikes, sample).mean((0, 1))
        if rate.ndim == 1:
            height, width = size or (round(rate.size**0.5),) * 2
            if height * width != rate.size:
                raise UserError(f"{name} has {rate.size} patches: pass their height and width as size=(H, W).")
            rate = rate.reshape(height, width)
        rates[name] = rate
    if not rates:
        raise UserError("maps need layers [T, N, C, H, W] or [T, N, C, L], of which there are none.")
    if axes is None:
        axes = _grid(len(rates), columns=5, width=2.0)
    for ax, (name, rate) in zip(axes, rates.items(), strict=True):
        ax.imshow(rate, vmin=0, cmap="magma", interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(f"{name}\nup to {100 * rate.max():.0f} %", fontsize=7)
    return np.asarray(axes)


def _grid(count: int, columns: int = 10, width: float = 1.1) -> list[Axes]:
    """New axes in rows of `columns`, each `width` inches wide."""
    from matplotlib import pyplot

    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = pyplot.subplots(
        rows, columns, squeeze=False, figsize=(width * columns, (width + 0.2) * rows), layout="constrained"
    )
    for unused in grid.flat[count:]:
        figure.delaxes(unused)
    return list(grid.flat[:count])


def picture(frame: NDArray[Any]) -> NDArray[np.float64]:
    """A frame [C, H, W] as an image [H, W, 3]: grey, RGB, or ON events red and OFF events blue; values 0 to 1."""
    return pictures(frame[None])[0]


def pictures(frames: NDArray[Any]) -> NDArray[np.float64]:
    """Frames [T, C, H, W] as images [T, H, W, 3] on a common scale, so that they are comparable; see `picture`."""
    frames = frames.astype(np.float64)
    if frames.shape[1] == 2:
        top = max(np.percentile(frames, 99.5), 1.0)
        off, on = np.clip(frames / top, 0, 1).swapaxes(0, 1)
        return np.stack([1 - off, 1 - np.maximum(on, off), 1 - on], -1)
    low, high = min(frames.min(), 0.0), frames.max()
    scaled = (frames - low) / (high - low if high > low else 1.0)
    return np.moveaxis(np.repeat(scaled, 3, 1) if frames.shape[1] == 1 else scaled, 1, -1)


def response(neuron: Any, axes: Axes | None = None, *, inputs: Any = None, steps: int = 200) -> Axes:
    """Plot a neuron's response, its firing rate over a constant input (f-I curve), a line for each channel.

    Args:
        neuron: a `Neuron` of any kind.
        axes: axes to draw on; None creates new ones.
        inputs: constant inputs, ascending, [n]; by default 121 from 0 to 4 times V_th.
        steps: time-steps for which each input is held, from rest.
    """
    import torch

    fires_at = float(torch.as_tensor(neuron.firing.v_threshold).detach().max())
    values = torch.linspace(0, 4 * fires_at, 121) if inputs is None else torch.as_tensor(inputs).float()
    channels = max((value.numel() for value in neuron.learned().values()), default=1)
    with torch.no_grad():
        spikes, _ = neuron.simulate(values.view(1, -1, 1).expand(1, -1, channels).contiguous(), time_steps=steps)
    axes = _axes(axes, 2.6)
    axes.plot(values.numpy(), spikes.float().mean(0).numpy())
    axes.set_xlabel("constant input")
    axes.set_ylabel("spikes per time-step")
    plain(axes)
    return axes
