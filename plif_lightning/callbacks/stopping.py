"""Stop a fit on Ctrl-C, `kill` or a scheduler's signal, so that it can be resumed."""

import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback

from plif_lightning.callbacks import slurm
from plif_lightning.callbacks.checkpoints import run_checkpoints
from plif_lightning.callbacks.logger import is_fast_dev_run, run_folder
from plif_lightning.errors import Stopped
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runtime import program
from plif_lightning.runtime.files import relative
from plif_lightning.runtime.process import OF_SCHEDULER, ending, takes_signals

_ENDING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
# A sweep forwards its signal to its runs, which may have received it already: within this time [s] it counts once.
_ECHO = 1.0


class StopOnSignal(Callback):
    """On a signal, writes `last.ckpt` and stops training at the next batch from which the run can be resumed.

    SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGHUP (a closed terminal) stop it; a second signal exits immediately. On
    SLURM the signal of `sbatch --signal` (SIGUSR1) also requeues the job. In distributed training a signal to any
    process stops all of them.

    Args:
        requeues: True if the same command resumes the run, so that its job can be requeued.

    Attributes:
        after_step: also stop, with success, after this step of the optimiser; None: after none.
        terminated: signal received outside training.
        trainer: the Trainer that trains; None before.
    """

    def __init__(self, requeues: bool = False) -> None:
        self.requeues = requeues
        self.after_step: int | None = None
        self._began_at = 0
        self._received: signal.Signals | None = None
        self._at = -math.inf
        self._agreed: signal.Signals | None = None  # known to all processes
        self._stops = False  # at the next batch from which the run can be resumed
        self.terminated: signal.Signals | None = None
        self.trainer: L.Trainer | None = None
        self._trained: L.Trainer | None = None

    @contextmanager
    def watching(self, trainer: L.Trainer) -> Iterator[None]:
        """Handle a scheduler's signal before training, too: it would end the process while it prepares data.

        SIGUSR1 is that of most, and saves outside of SLURM as well.
        """
        scheduler_signal = (slurm.requeue_signal(trainer) or OF_SCHEDULER) if takes_signals() else None
        if scheduler_signal is not None:
            signal.signal(scheduler_signal, self._receive)
        try:
            yield
        finally:
            if scheduler_signal is not None:
                signal.signal(scheduler_signal, signal.SIG_DFL)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Set handlers here: Lightning's handlers, just set, end a run as if it had finished. When training ends
        # it restores the previous ones.
        if self.terminated is not None and self._received is None:
            self._received = self.terminated  # its KeyboardInterrupt was swallowed by a callback
        self.trainer, self._began_at = trainer, trainer.global_step
        if takes_signals():
            for number in (signal.SIGINT, *ending()):
                signal.signal(number, self._receive)

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM outside training: end this process and its children as Ctrl-C does."""
        self.terminated = signal.Signals(number)
        raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received is None:
            # The first signal stays the reason: a SIGTERM after the scheduler's signal must not prevent requeueing.
            self._received, self._at = signal.Signals(number), now
        elif self._received in _ENDING and number in _ENDING and now - self._at > _ECHO:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._trained is not None:  # training has ended: everything is saved
            self._stop(self._trained, self._received)

    def _signal_of_any_process(self, trainer: L.Trainer) -> signal.Signals | None:
        """Return the signal that any process received. Collective: every process must call it."""
        received = int(self._received or 0)
        if trainer.world_size > 1:
            here = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(here, reduce_op="max"))
        return signal.Signals(received) if received else None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._agreed = self._agreed or self._signal_of_any_process(trainer)
        reached = self.after_step is not None and self._began_at < self.after_step <= trainer.global_step
        if not self._stops and (self._agreed is not None or reached):
            self._stops = True
            if (last := run_checkpoints(trainer)) is not None:
                last.due = True  # RunCheckpoints runs after this callback

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._stops:
            last = run_checkpoints(trainer)
            if last is None or not last.due:
                self._stop(trainer, self._agreed)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Testing and recording may take long; resuming the run does them.
        agreed = self._signal_of_any_process(trainer)
        if (received := self._agreed or agreed) is not None:
            self._stop(trainer, received)
        self._trained = trainer

    def say_if_trained(self) -> None:
        """Report an interruption after training, while testing or writing, as an interruption of the fit.

        Raises:
            Stopped: training had ended.
        """
        if self._trained is not None:
            self._stop(self._trained, self.terminated or signal.SIGINT)

    @property
    def resumption(self) -> str:
        """A sentence with the command that resumes the run; empty if none does, and on all processes but the first."""
        trainer = self.trainer
        if trainer is None or not trainer.is_global_zero or not _keeps_checkpoints(trainer):
            return ""
        folder = run_folder(trainer)
        return f"Resume the run with: {_resuming(folder)}" if folder.last.is_file() else ""

    def _stop(self, trainer: L.Trainer, received: signal.Signals | None) -> None:
        # After SIGUSR1 exit with the status of SIGTERM.
        status = 0 if received is None else 128 + (received if received in _ENDING else signal.SIGTERM)
        stopped = f"stopped{'' if received is None else f' by {received.name}'} after step {trainer.global_step}"
        message = f"{stopped}: this run keeps no checkpoints."
        if _keeps_checkpoints(trainer):
            message = f"{stopped}. Resume the run with: {_resuming(run_folder(trainer))}"
        if trainer.is_global_zero and received is not None and received == slurm.requeue_signal(trainer):
            if self.requeues:
                # Before requeueing, because SLURM ends a requeued job immediately.
                sys.stderr.write(f"{stopped}: the job is requeued.\n")
                sys.stderr.flush()
                message = slurm.requeue()
            else:
                message += f" {_NOT_REQUEUED}"
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, LightningEnvironment) and not trainer.is_global_zero:
            # With a failure status the parent process would exit immediately.
            status = 0
        raise Stopped(status, message if trainer.is_global_zero else "")


def _resuming(folder: RunFolder) -> str:
    return f"{program.program_name()} fit --run_folder {shlex.quote(relative(folder.path))}"


_NOT_REQUEUED = "The job is not requeued: pass --run_folder DIR for that."


def _keeps_checkpoints(trainer: L.Trainer) -> bool:
    return run_checkpoints(trainer) is not None and not is_fast_dev_run(trainer)
