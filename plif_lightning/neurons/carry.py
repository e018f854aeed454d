"""States passed in and out of a single time-step; neurons themselves keep none."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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


class Carried:
    """States before and after a time-step.

    Args:
        before: state of each layer of neurons before the step; layers without an entry start at V_reset.
        masks: of dropout, which is the same at all steps, by layer; the first step adds them. None if no layer may draw
            one.

    Attributes:
        after: state of each layer that was called, after the step.
    """

    def __init__(self, before: Mapping[nn.Module, LayerState], masks: dict[nn.Module, Tensor] | None = None) -> None:
        self.before, self.masks = before, masks
        self.after: dict[nn.Module, LayerState] = {}

    def through(
        self,
        neuron: nn.Module,
        run: Callable[[tuple[Tensor, ...] | None], tuple[Tensor, tuple[Tensor, ...]]],
    ) -> Tensor:
        """Spikes of the neurons; their new state is stored in `after`.

        Args:
            neuron: the layer of neurons.
            run: maps its states (None: the first ones) to its spikes and its next states.

        Raises:
            UserError: the neuron was already called in this step.
        """
        if neuron in self.after:
            raise UserError(
                "a neuron is used twice in the network, so it has two states after a step: give each layer its own."
            )
        before = self.before.get(neuron)
        spikes, after = run(None if before is None else as_tuple(before))
        self.after[neuron] = from_tuple(after)
        return spikes


_carried: ContextVar[Carried | None] = ContextVar("active_states", default=None)


def active_states() -> Carried | None:
    """States of the time-step that is running; None if a complete sequence is running."""
    # Dynamo does not support context variables; `step` runs modules uncompiled. (torch.export does run them.)
    return None if torch.compiler.is_dynamo_compiling() else _carried.get()


@contextmanager
def carry_states(
    before: Mapping[nn.Module, LayerState], masks: dict[nn.Module, Tensor] | None = None
) -> Iterator[Carried]:
    """Run neurons from the states `before` while the context lasts; yields the `Carried` with their new ones."""
    token = _carried.set(Carried(before, masks))
    try:
        yield _carried.get()  # type: ignore[misc]
    finally:
        _carried.reset(token)
