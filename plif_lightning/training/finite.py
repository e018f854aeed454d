"""Check that values are finite without synchronising with a GPU."""

from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from plif_lightning.errors import NonFiniteError


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


class FiniteGuard(Callback):
    """Ends training when the loss or a gradient is NaN or infinite, before a checkpoint is written of such weights.

    A NaN never reaches the loss, because a neuron with a NaN potential stays silent. But it makes the gradient NaN in
    every layer below, so the small parameters (BN and `a`) and the first weight show it, and they are cheap to check. A
    gradient scaler skips such steps by itself.

    Args:
        network: whose gradients are checked.

    Raises:
        NonFiniteError: from the hooks; names the last good checkpoint.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._check = FiniteCheck()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._require(loss, "the loss", trainer)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            known = [p.grad for p in self._network.parameters() if p.grad is not None]
            small = [_values(grad).flatten() for i, grad in enumerate(known) if grad.dim() <= 1 or i == 0]
            if small:
                self._require(torch.cat(small), "a gradient", trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        _stop_if(self._check.settle(), trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _stop_if(self._check.settle(), trainer)

    def _require(self, values: Tensor, what: str, trainer: L.Trainer) -> None:
        sentence = f"{what} is NaN or infinite at step {trainer.global_step} (epoch {trainer.current_epoch})"
        _stop_if(self._check.ask(values, trainer.global_step, sentence), trainer)


def _values(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad


def _stop_if(found: str | None, trainer: L.Trainer) -> None:
    if found is not None:
        paths = [path for c in trainer.checkpoint_callbacks if (path := getattr(c, "last_model_path", ""))]
        kept = f"The last good checkpoint is {paths[-1]}." if paths else "No checkpoint was written before."
        raise NonFiniteError(
            f"{found}: training stopped. {kept} Lower the learning rate, or use --trainer.precision 32-true."
        )
