"""Potentials that go in and out of one time-step, while it runs: neurons themselves keep none."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError


class Carried:
    """What a time-step starts from and ends with.

    Args:
        before: potential of each neuron [N, *] before the step; V_reset for those that are not in it.

    Attributes:
        after: potential of each neuron that was called, after the step.
    """

    def __init__(self, before: Mapping[nn.Module, Tensor]) -> None:
        self.before = before
        self.after: dict[nn.Module, Tensor] = {}

    def through(self, neuron: nn.Module, run: Callable[[Tensor | None], tuple[Tensor, Tensor]]) -> Tensor:
        """Spikes of `run`, which takes the neuron's potential and gives spikes and the next potential.

        Raises:
            UserError: the neuron was called before in this step.
        """
        if neuron in self.after:
            raise UserError("a neuron stands twice in the network, so its potential after a step is not one: make two.")
        spikes, self.after[neuron] = run(self.before.get(neuron))
        return spikes


_carried: ContextVar[Carried | None] = ContextVar("carried", default=None)


def carried() -> Carried | None:
    """What the time-step that runs here and now carries; None where a whole sequence runs."""
    # Dynamo knows no context variables; `step` runs modules as they are, not compiled. (torch.export runs them.)
    return None if torch.compiler.is_dynamo_compiling() else _carried.get()


@contextmanager
def carrying(before: Mapping[nn.Module, Tensor]) -> Iterator[Carried]:
    """Neurons that are called meanwhile start from `before`, and leave their potentials in what this gives."""
    token = _carried.set(Carried(before))
    try:
        yield _carried.get()  # type: ignore[misc]
    finally:
        _carried.reset(token)
