"""Membrane potentials passed in and out of a single time-step; neurons themselves keep no state."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError


class Carried:
    """Membrane potentials before and after one time-step.

    Args:
        before: potential of each neuron [N, *] before the step; neurons without an entry start at V_reset.

    Attributes:
        after: potential of each neuron that was called, after the step.
    """

    def __init__(self, before: Mapping[nn.Module, Tensor]) -> None:
        self.before = before
        self.after: dict[nn.Module, Tensor] = {}

    def through(self, neuron: nn.Module, run: Callable[[Tensor | None], tuple[Tensor, Tensor]]) -> Tensor:
        """Spikes of the neuron; its new potential is stored in `after`.

        Args:
            neuron: the layer of neurons.
            run: maps its potential (None: V_reset) to its spikes and its next potential.

        Raises:
            UserError: the neuron was already called in this step.
        """
        if neuron in self.after:
            raise UserError(
                "a neuron is used twice in the network, so it has two potentials after a step: give each layer its own."
            )
        spikes, self.after[neuron] = run(self.before.get(neuron))
        return spikes


_carried: ContextVar[Carried | None] = ContextVar("carried", default=None)


def carried() -> Carried | None:
    """Potentials of the time-step that is running; None if a whole sequence is running."""
    # Dynamo does not support context variables; `step` runs modules uncompiled. (torch.export does run them.)
    return None if torch.compiler.is_dynamo_compiling() else _carried.get()


@contextmanager
def carrying(before: Mapping[nn.Module, Tensor]) -> Iterator[Carried]:
    """Run neurons from the potentials `before` while the context lasts; yields the `Carried` with their new ones."""
    token = _carried.set(Carried(before))
    try:
        yield _carried.get()  # type: ignore[misc]
    finally:
        _carried.reset(token)
