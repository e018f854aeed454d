"""Check that values are finite without synchronising with a GPU."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Result(NamedTuple):
    finite: Tensor  # bool [], on the host
    copied: Any  # CUDA event of the copy to the host; None on a CPU
    step: int
    sentence: str


class FiniteCheck:
    """Reports the first non-finite values.

    Reading a result from a GPU immediately would synchronise with it and leave it idle afterwards. Results are
    therefore copied asynchronously and read one step later: by the first `ask` of another step, or by `settle`.

    Attributes:
        late: read results one step later; None: only on a GPU.
    """

    def __init__(self, late: bool | None = None) -> None:
        self.late = late
        self._pending: list[_Result] = []

    def ask(self, values: Tensor, step: int, sentence: str) -> str | None:
        """Return the sentence of the first non-finite values known so far; None if there are none.

        Args:
            values: values to check.
            step: training step that they belong to.
            sentence: message if they are not finite.
        """
        finite = torch.isfinite(values.detach()).all()
        on_gpu = values.device.type == "cuda"
        if not (on_gpu if self.late is None else self.late):
            return None if finite.item() else sentence
        host = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=on_gpu)
        host.copy_(finite, non_blocking=True)
        copied = None
        if on_gpu:
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(values.device))
        # All pending results belong to one step.
        found = self.settle() if self._pending and self._pending[0].step != step else None
        self._pending.append(_Result(host, copied, step, sentence))
        return found

    def settle(self) -> str | None:
        """Wait for all pending results and return the sentence of the first non-finite one; None if there is none."""
        pending, self._pending = self._pending, []
        for result in pending:
            if result.copied is not None:
                result.copied.synchronize()
            if not result.finite.item():
                return result.sentence
        return None
