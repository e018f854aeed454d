"""A scheduler's signal that comes while the program is still being loaded."""

import os
import signal
from types import FrameType

# Signals that came before anybody could act on them.
received: list[int] = []


def _remember(number: int, frame: FrameType | None) -> None:
    received.append(number)


def watch() -> None:
    """In a SLURM job, remembers SIGUSR1, which would end the process, until training can act on it."""
    received.clear()
    if (
        "SLURM_JOB_ID" in os.environ
        and hasattr(signal, "SIGUSR1")
        and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGUSR1, _remember)
