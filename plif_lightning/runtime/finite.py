"""Whether values are finite, without waiting for a GPU."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Answer(NamedTuple):
    finite: Tensor  # on the host
    arrived: Any  # the event after which it is there; None where it is
    step: int
    sentence: str


class FiniteCheck:
    """Whether what is asked about is finite.

    To ask a GPU at once makes the host wait for it, so that it has nothing to do afterwards. Its answers are copied
    while it goes on, and read a step late: when something is asked at another step, or by `settle`.

    Attributes:
        late: whether answers are read late; where it is None, those of a GPU are.
    """

    def __init__(self, late: bool | None = None) -> None:
        self.late = late
        self._pending: list[_Answer] = []

    def ask(self, values: Tensor, step: int, sentence: str) -> str | None:
        """The sentence of the first of all that was not finite, as far as it is known; None where all is well.

        Args:
            values: what is to be finite.
            step: number of the step that it belongs to.
            sentence: what is to be said where it is not.
        """
        finite = torch.isfinite(values.detach()).all()
        on_gpu = values.device.type == "cuda"
        if not (on_gpu if self.late is None else self.late):
            return None if finite.item() else sentence
        host = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=on_gpu)
        host.copy_(finite, non_blocking=True)
        arrived = None
        if on_gpu:
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(values.device))
        # All that is pending is of one step.
        found = self.settle() if self._pending and self._pending[0].step != step else None
        self._pending.append(_Answer(host, arrived, step, sentence))
        return found

    def settle(self) -> str | None:
        """The same of all that was asked; waits for it."""
        pending, self._pending = self._pending, []
        for answer in pending:
            if answer.arrived is not None:
                answer.arrived.synchronize()
            if not answer.finite.item():
                return answer.sentence
        return None
