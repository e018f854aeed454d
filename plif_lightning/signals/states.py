"""States passed in and out of a single time-step; layers themselves keep none."""

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError

# The state of a layer [N, *], its potential; a tuple of them for neurons with more states.
LayerState = Tensor | tuple[Tensor, ...]


def as_tuple(state: LayerState) -> tuple[Tensor, ...]:
    """The states of a layer as a tuple."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


def from_tuple(states: tuple[Tensor, ...]) -> LayerState:
    """Inverse of `as_tuple`."""
    return states[0] if len(states) == 1 else states


def detach_state(state: LayerState) -> LayerState:
    """The same states without gradient."""
    return from_tuple(tuple(tensor.detach() for tensor in as_tuple(state)))


class carry_states:  # noqa: N801 (a context manager)
    """Run layers from the states before a time-step while the context lasts; enters as itself.

    Args:
        before: state of each layer before the step; layers without an entry start from rest.
        masks: of dropout, which is the same at all steps, by layer; the first step adds them. None if no layer may draw
            one.

    Attributes:
        after: state of each layer that was called, after the step.
    """

    def __init__(self, before: Mapping[nn.Module, LayerState], masks: dict[nn.Module, Tensor] | None = None) -> None:
        self.before, self.masks = before, masks
        self.after: dict[nn.Module, LayerState] = {}

    def __enter__(self) -> "carry_states":
        self._token = _carried.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _carried.reset(self._token)


_carried: ContextVar[carry_states | None] = ContextVar("active_states", default=None)


def active_states() -> carry_states | None:
    """States of the time-step that is running; None if a complete sequence is running from rest."""
    # Dynamo does not support context variables; `step` runs modules uncompiled. (torch.export does run them.)
    return None if torch.compiler.is_dynamo_compiling() else _carried.get()


def advance(layer: nn.Module, run: Callable[[tuple[Tensor, ...] | None], tuple[Tensor, tuple[Tensor, ...]]]) -> Tensor:
    """The output of a layer with states: of a sequence from rest, or of a step, whose context they are read from.

    Args:
        layer: the layer.
        run: maps its states before (None: rest) to its output and its states after.

    Raises:
        UserError: the layer was already called in this step.
    """
    if (states := active_states()) is None:
        return run(None)[0]
    if layer in states.after:
        raise UserError(
            f"{type(layer).__name__} is used twice in the network, so it has two states after a step: "
            "give each place its own."
        )
    before = states.before.get(layer)
    output, after = run(None if before is None else as_tuple(before))
    states.after[layer] = from_tuple(after)
    return output


def run_step(
    layers: Mapping[str, nn.Module], before: Mapping[str, LayerState] | None, run: Callable[[], Tensor]
) -> tuple[Tensor, dict[str, LayerState]]:
    """The output of a time-step of layers with states, and their states after it, by name.

    Args:
        layers: those with states, by name.
        before: their states before the step; None for the first.
        run: gives the output.

    Raises:
        UserError: `before` is of another network.
    """
    if before is not None and not before.keys() <= layers.keys():
        raise _of_another_network(layers, before)
    with carry_states({layers[name]: state for name, state in (before or {}).items()}) as carried:
        y = run()
    # A layer that the network holds but does not call has no state.
    after = {name: carried.after[layer] for name, layer in layers.items() if layer in carried.after}
    if before is not None and before.keys() != after.keys():
        raise _of_another_network(after, before)
    return y, after


def _of_another_network(expected: Iterable[str], before: Iterable[str]) -> UserError:
    return UserError(
        f"state must hold the states of {', '.join(expected)}, as returned by the previous step, got "
        f"{', '.join(before) or 'nothing'}."
    )


def same_at_all_steps(layer: nn.Module, draw: Callable[[], Tensor]) -> Tensor:
    """A mask of dropout, drawn anew for a sequence, and in the first of single steps that are trained."""
    states = active_states()
    if states is None or states.masks is None:
        return draw()
    if layer not in states.masks:
        states.masks[layer] = draw()
    return states.masks[layer]


def stateful_modules(net: nn.Module) -> dict[str, nn.Module]:
    """The modules that carry a state from step to step, by name."""
    return {name: module for name, module in net.named_modules() if getattr(module, "carries", ())}
