"""Signals between layers, and the loop that runs layers: `signal = layer.run(signal, states)`."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from plif_lightning.network.inspect import is_called_plainly
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import Carried, active_states

# Layers of PyTorch that pass on their input's values.
_KEEP_LEVELS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity)


class Signal(NamedTuple):
    """A sequence of T steps and its number of levels.

    Attributes:
        values: [T, N, *]; [1, N, *] where all T steps are equal. In a deployed network they may be `SparseMaps`.
        steps: T.
        levels: 1 for spikes, zeros and ones (behind dropout, zeros and its scale); None for other numbers.
    """

    values: Any
    steps: int
    levels: int | None = None

    @property
    def is_held(self) -> bool:
        """True if a single step stands for all T, so that layers without a state run once."""
        return self.steps > 1 and isinstance(self.values, Tensor) and self.values.shape[0] < self.steps


class SignalModule(nn.Module):
    """A layer over time. Its states live with the caller: `run` takes and updates them.

    `forward` is for hooks and for user-defined networks: it takes and returns tensors, and finds the states of a
    `step` in its context.
    """

    def run(self, x: Signal, states: Carried | None) -> Signal:
        """The output for x.

        Args:
            x: the input.
            states: None for a complete sequence from rest; in a single time-step `states.before` is read and
                `states.after` written, by `Carried.through`.
        """
        raise NotImplementedError

    def levels(self, levels: int | None) -> int | None:
        """Levels of the output, for the input's levels."""
        raise NotImplementedError

    def forward(self, x: Tensor, time_steps: int | None = None, levels: int | None = None) -> Tensor:
        """The output [T, N, *] for x [T, N, *].

        Args:
            x: [T, N, *], or [1, N, *], which stands for `time_steps` equal steps.
            time_steps: T; by default the length of x.
            levels: 1 if x is known to be spikes.
        """
        output: Tensor = self.run(Signal(x, time_steps or len(x), levels), active_states()).values
        return output


def levels_of(neuron: Any) -> int | None:
    """Levels of the output of neurons: 1 if it is the spikes of their equations."""
    return 1 if isinstance(neuron, Neuron) and neuron.fires else None


def output_levels(layer: Any, levels: int | None) -> int | None:
    """Levels of the output of a layer, for its input's levels."""
    if isinstance(layer, SignalModule):
        return layer.levels(levels)
    if isinstance(layer, nn.Sequential):
        return functools.reduce(lambda before, child: output_levels(child, before), layer, levels)
    return levels if isinstance(layer, _KEEP_LEVELS) else levels_of(layer)


def run_layer(layer: Any, x: Signal, states: Carried | None) -> Signal:
    """The output of a layer: a layer of this package, or any module over [T, N, *]."""
    if type(layer) is nn.Sequential and is_called_plainly(layer):
        return run_layers(layer, x, states)
    if isinstance(layer, SignalModule) and type(layer).forward is SignalModule.forward:
        if is_called_plainly(layer):
            return layer.run(x, states)
        # By name: a hook that changes the input returns the values alone.
        y = layer(x.values, time_steps=x.steps, levels=x.levels)
    else:
        y = layer(x.values, x.steps) if isinstance(layer, Neuron) else layer(x.values)
    return Signal(y, x.steps, output_levels(layer, x.levels))


def run_layers(
    layers: Iterable[Any],
    x: Signal,
    states: Carried | None,
    run: Callable[[Any, Signal, Carried | None], Signal] = run_layer,
) -> Signal:
    """The output of layers in sequence, each run by `run`."""
    for layer in layers:
        x = run(layer, x, states)
    return x
