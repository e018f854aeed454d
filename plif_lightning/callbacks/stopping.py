"""What a fit does when it is told to end: by Ctrl-C, by `kill`, by a scheduler."""

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback

from plif_lightning.callbacks.checkpoints import LastCheckpoint
from plif_lightning.callbacks.logger import is_trial, run_folder
from plif_lightning.errors import Stopped
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runtime import early, program
from plif_lightning.runtime.signals import ending, takes_signals

_ENDING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
# A sweep that is told to end tells its runs, which may just have been told themselves: no second signal [s].
_ECHO = 1.0


class StopOnSignal(Callback):
    """Ends training at the first batch after a signal from which the run can be resumed, with `last.ckpt` written.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal) end it; a second one does so at once. On SLURM the signal of
    `sbatch --signal` (SIGUSR1) also puts the job back into the queue. Where several processes train together, one that
    is told is enough.

    Args:
        requeues: whether the same command resumes the run, so that a job may be put back into the queue.
    """

    def __init__(self, requeues: bool = False) -> None:
        self.requeues = requeues
        self._received: signal.Signals | None = None
        self._at = -math.inf
        self._agreed: signal.Signals | None = None  # by all processes
        self.terminated: signal.Signals | None = None  # outside training
        self.trainer: L.Trainer | None = None
        self._trained: L.Trainer | None = None

    @contextmanager
    def watching(self, trainer: L.Trainer) -> Iterator[None]:
        """Takes the scheduler's signal, which would end the process: data may have to be prepared before training."""
        own = _of_scheduler(trainer) if takes_signals() else None
        if own is not None:
            signal.signal(own, self._receive)
            if own in early.received:
                self._received = own
        try:
            yield
        finally:
            if own is not None:
                signal.signal(own, signal.SIG_DFL)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Now, not before: Lightning has just set its own, which end a run as if it were finished, and puts back those
        # that were there before when training ends.
        if self.terminated is not None and self._received is None:
            self._received = self.terminated  # what was raised then got lost in somebody's callback
        self.trainer = trainer
        if takes_signals():
            for one in (signal.SIGINT, *ending()):
                signal.signal(one, self._receive)

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Ends this process as Ctrl-C does, with those that it has started: the handler of SIGTERM, but in training."""
        self.terminated = signal.Signals(number)
        raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received is None:
            # It stays the reason: where SIGTERM follows a scheduler's signal, the job is to go back into the queue.
            self._received, self._at = signal.Signals(number), now
        elif self._received in _ENDING and number in _ENDING and now - self._at > _ECHO:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._trained is not None:  # nothing is left to be saved
            self._stop(self._trained, self._received)

    def _told(self, trainer: L.Trainer) -> signal.Signals | None:
        """What any of the processes was told; all of them must ask."""
        told = int(self._received or 0)
        if trainer.world_size > 1:
            here = torch.tensor(told, device=trainer.strategy.root_device)
            told = int(trainer.strategy.reduce(here, reduce_op="max"))
        return signal.Signals(told) if told else None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        told = self._told(trainer)
        if told is not None and self._agreed is None:
            self._agreed = told
            if (last := _last_checkpoint(trainer)) is not None:
                last.due = True  # it is called after this callback

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._agreed is not None:
            last = _last_checkpoint(trainer)
            if last is None or not last.due:
                self._stop(trainer, self._agreed)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # What comes after training may take long: testing, recording. It is done when the run is resumed.
        told = self._told(trainer)
        if (received := self._agreed or told) is not None:
            self._stop(trainer, received)
        self._trained = trainer

    def say_if_trained(self) -> None:
        """Ends the program in the words of a fit, if it was interrupted after training: in its test, or in writing.

        Raises:
            Stopped: it was.
        """
        if self._trained is not None:
            self._stop(self._trained, self.terminated or signal.SIGINT)

    @property
    def resumption(self) -> str:
        """The command that resumes the run, as a sentence; nothing where there is none to be resumed."""
        trainer = self.trainer
        if trainer is None or is_trial(trainer) or _last_checkpoint(trainer) is None:
            return ""
        folder = run_folder(trainer)
        return f"Resume the run with: {_resuming(folder)}" if folder.last.is_file() else ""

    def _stop(self, trainer: L.Trainer, received: signal.Signals) -> None:
        folder = run_folder(trainer)
        # SIGUSR1 would not end anything by itself; for whoever asks, the run was ended like by SIGTERM.
        status = 128 + (received if received in _ENDING else signal.SIGTERM)
        kept = f"after step {trainer.global_step}"
        if _last_checkpoint(trainer) is None or is_trial(trainer):
            message = f"stopped by {received.name} {kept}: this run keeps no checkpoints."
        else:
            message = f"stopped by {received.name} {kept}. Resume the run with: {_resuming(folder)}"
        if trainer.is_global_zero and received == _of_scheduler(trainer):
            if self.requeues:
                # Now: SLURM ends a job that is put back into the queue at once.
                sys.stderr.write(f"stopped by {received.name} {kept}: the job goes back into the queue.\n")
                sys.stderr.flush()
                message = _requeue()
            else:
                message += f" {_NOT_REQUEUED}"
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, LightningEnvironment) and not trainer.is_global_zero:
            # The process that started this one would end itself at once where this one seems to have failed.
            status = 0
        raise Stopped(status, message if trainer.is_global_zero else "")


def _resuming(folder: RunFolder) -> str:
    return f"{program.shown()} fit --config {shlex.quote(str(folder.config))} --ckpt_path last"


_NOT_REQUEUED = "The job is not put back into the queue: for that, pass --run_folder DIR --resume auto."


def _last_checkpoint(trainer: L.Trainer) -> LastCheckpoint | None:
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)


def _of_scheduler(trainer: L.Trainer) -> signal.Signals | None:
    """The signal by which SLURM says that a job's time is nearly over."""
    environment = trainer._accelerator_connector.cluster_environment
    return environment.requeue_signal if isinstance(environment, SLURMEnvironment) else None


def _requeue() -> str:
    """Puts this SLURM job back into the queue; what became of that."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        return f"The job {job} could not be put back into the queue: there is no scontrol on this node."
    done = subprocess.run([scontrol, "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"The job {job} could not be put back into the queue: {' '.join(done.stderr.split())}."
    return ""
