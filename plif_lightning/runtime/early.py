"""Catch a scheduler's signal that arrives while the program is still importing."""

import os
import signal
from types import FrameType

# Signals that arrived before the handlers of training were installed.
received: list[int] = []


def _remember(number: int, frame: FrameType | None) -> None:
    received.append(number)


def watch() -> None:
    """In a SLURM job, record SIGUSR1 until training can handle it; by default it would kill the process."""
    received.clear()
    if (
        "SLURM_JOB_ID" in os.environ
        and hasattr(signal, "SIGUSR1")
        and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGUSR1, _remember)
