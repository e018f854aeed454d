"""Signals between layers, the protocol `Layer`, and the one loop that runs layers."""

import functools
import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from plif_lightning.signals.hooks import is_called_plainly
from plif_lightning.signals.states import active_states

# Layers of PyTorch that pass on their input's values.
_KEEP_VALUES = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity)


class Signal(NamedTuple):
    """A sequence of T steps.

    Attributes:
        values: [T, N, *]; [1, N, *] where all T steps are equal. In a deployed network they may be `SparseMaps`.
        steps: T.
        is_spikes: they are zeros and ones (behind dropout, zeros and its scale); False for other numbers.
    """

    values: Any
    steps: int
    is_spikes: bool = False

    @property
    def is_held(self) -> bool:
        """True if a single step stands for all T, so that layers without a state run once."""
        return self.steps > 1 and isinstance(self.values, Tensor) and self.values.shape[0] < self.steps

    @property
    def is_step(self) -> bool:
        """True if it is a single step, of which layers go on from their states before it."""
        return active_states() is not None

    def every_step(self) -> Tensor:
        """Values of all steps [T, N, *]; those of a held input share their memory."""
        values: Tensor = self.values
        return values.expand(self.steps, *values.shape[1:])


class Layer:
    """Base of all layers that `run_layer` runs. Its states in a single step are read and written by `states.advance`.

    Attributes:
        carries: names of the states that it carries from step to step; empty for none.
        geometry: names of the constants that its output depends on, beside its weights: no checkpoint is loaded into a
            layer of others.
        kept: numbers that it carries for each value of its output, of which a step reads and writes one, as a delay
            does; 0 for layers without such a memory.
        is_plain_call: `run` is all that a call of it does.
    """

    kept: int = 0
    carries: tuple[str, ...] = ()
    geometry: tuple[str, ...] = ()
    is_plain_call = True

    def run(self, x: Signal) -> Any:
        """The output's values: of T steps, or of one if x is held and all outputs are equal."""
        raise NotImplementedError

    def run_behind(self, before: "Layer", x: Signal) -> Any:
        """The output's values of the layer `before` it and of itself, where it can compute both at once; else None."""
        return None

    def keeps_spikes(self, spikes: bool) -> bool:
        """True if the output is spikes.

        Args:
            spikes: the input is.
        """
        return False

    def learned(self) -> dict[str, Tensor]:
        """Values to log in training, detached, by the names of their curves: `tau`, say. A shared one is a scalar."""
        return {}


class LayerModule(Layer, nn.Module):
    """A layer that is a module. `forward` is for hooks and for user-defined networks."""

    @property
    def is_plain_call(self) -> bool:  # type: ignore[override]
        return type(self).forward is LayerModule.forward and is_called_plainly(self)

    def forward(self, x: Tensor, time_steps: int | None = None, is_spikes: bool = False) -> Any:
        """The output [T, N, *] for x [T, N, *]; in a `step` it goes on from the states of the previous step.

        Args:
            x: [T, N, *], or [1, N, *], which stands for `time_steps` equal steps.
            time_steps: T; by default the length of x.
            is_spikes: x is known to be spikes.
        """
        return self.run(Signal(x, time_steps or len(x), is_spikes))


def keeps_spikes(layer: Any, spikes: bool) -> bool:
    """True if the output of a layer or another module is spikes, for an input that is or is not; None passes it on."""
    if layer is None:
        return spikes
    if isinstance(layer, nn.Sequential):
        return functools.reduce(lambda before, child: keeps_spikes(child, before), layer, spikes)
    if isinstance(layer, Layer):
        return layer.keeps_spikes(spikes)
    return spikes and isinstance(layer, _KEEP_VALUES)


@functools.cache
def _taken_by(forward: Any) -> tuple[str, ...]:
    """Facts of a signal that a forward takes; by name, since a hook that changes the input returns values alone."""
    taken = inspect.signature(forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    return tuple(name for name in ("time_steps", "is_spikes") if name in taken or takes_all)


def run_layer(layer: Any, x: Signal) -> Signal:
    """The output of a layer, or of any module over [T, N, *]."""
    if isinstance(layer, Layer) and layer.is_plain_call:
        return Signal(layer.run(x), x.steps, keeps_spikes(layer, x.is_spikes))
    if type(layer) is nn.Sequential and is_called_plainly(layer):
        return run_layers(layer, x)
    facts: dict[str, Any] = {"time_steps": x.steps, "is_spikes": x.is_spikes}
    forward: Any = vars(layer).get("forward", type(layer).forward)  # that of timers and offloaders
    values = layer(x.values, **{name: facts[name] for name in _taken_by(forward)})
    return Signal(values, x.steps, keeps_spikes(layer, x.is_spikes))


def output_of(layer: Any, x: Signal) -> Tensor:
    """The values of a layer's output [T, N, *]."""
    values: Tensor = run_layer(layer, x).values
    return values


def run_layers(layers: Iterable[Any], x: Signal) -> Signal:
    """The output of layers in sequence."""
    waiting = [*layers]
    while waiting:
        layer = waiting.pop(0)
        values = waiting[0].run_behind(layer, x) if waiting and isinstance(waiting[0], Layer) else None
        if values is None:
            x = run_layer(layer, x)
        else:
            x = Signal(values, x.steps, keeps_spikes(waiting.pop(0), keeps_spikes(layer, x.is_spikes)))
    return x
