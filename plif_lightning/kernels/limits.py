"""Up to which share of spikes the event-driven form of a layer is faster than the dense one, on this machine.

Measured once for each layer's shape, when it is first met, and kept on disk: a run that is resumed, or repeated, takes
the same form at the same spikes. Where nothing can be written, nothing is measured either, and constants decide.
"""

import json
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from plif_lightning.runtime.compiled import compiled_code
from plif_lightning.runtime.files import written_whole
from plif_lightning.runtime.locks import file_lock
from plif_lightning.runtime.surroundings import processor
from plif_lightning.runtime.timing import least_seconds
from plif_lightning.version import __version__

_log = logging.getLogger(__name__)
# Rows of a layer's input that are measured with: enough to keep all threads busy.
_PIXELS, _SAMPLES = 4096, 128
_SHARES = (0.04, 0.16)
# The event-driven form is taken where it is faster by this much at least.
_MARGIN = 1.05
# The line is not followed further than this.
_MOST = 0.4
# Where nothing can be measured and kept: what held on the slowest of the machines tried.
_UNMEASURED = 0.08


Form = Callable[[], Any]
# Of a kind of layer, type of spikes, shape and share of spikes: the event-driven and the dense form, ready to run.
Contenders = Callable[[str, torch.dtype, tuple[int, ...], float], tuple[Form, Form]]


def limit(what: str, dtype: torch.dtype, shape: tuple[int, ...], contenders: Contenders) -> float:
    """The share of spikes up to which the event-driven form is faster, 0 to 1.

    Args:
        what: as `contenders` take it.
        dtype: of the spikes.
        shape: rows, inputs, outputs, and of maps their height and width.
        contenders: what is measured.
    """
    return _limit(what, dtype, _like(shape), torch.get_num_threads(), contenders)


def _like(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that stands for others with about as many rows, or more, so that little is measured."""
    rows, inputs, outputs, *size = shape
    if not size:
        return min(_SAMPLES, _rounded(rows)), inputs, outputs
    of_image = size[0] * size[1]
    images = min(rows // of_image, max(1, _PIXELS // of_image))
    return _rounded(images) * of_image, inputs, outputs, *size


def _rounded(number: int) -> int:
    """Up to the next of eight numbers between two powers of two, so that there are few shapes to measure."""
    step = 1 << max(0, (number - 1).bit_length() - 4)
    return -(-number // step) * step


@cache
def _limit(what: str, dtype: torch.dtype, shape: tuple[int, ...], threads: int, contenders: Contenders) -> float:
    name = f"{what} {str(dtype).removeprefix('torch.')} {'x'.join(map(str, shape))}, {threads} threads"
    # How long OpenMP's threads wait in a loop for more work takes the kernels' own threads up to half of their speed.
    waiting = os.environ.get("GOMP_SPINCOUNT", "default")
    machine = f"{processor()}, torch {torch.__version__}, plif_lightning {__version__}, GOMP_SPINCOUNT {waiting}"
    file = _file()
    if file is None:
        return _UNMEASURED
    try:
        # One process measures, the others wait for it and read.
        with file_lock(file.with_suffix(".lock")):
            known = _known(file)
            found = known.setdefault(machine, {}).get(name)
            if not isinstance(found, float) or not 0 <= found <= _MOST:
                found = known[machine][name] = round(_measured(what, dtype, shape, contenders), 4)
                with written_whole(file) as whole:
                    json.dump(known, whole, indent=1)
                _log.info("%s: silent inputs are skipped up to %.1f %% of spikes (%s)", name, 100 * found, file)
            return found
    except (OSError, NotImplementedError):  # nothing can be written, or the file system has no locks
        return _UNMEASURED


def _file() -> Path | None:
    folder = compiled_code()
    return None if folder is None else folder / "sparse_limits.json"


def _known(file: Path) -> dict[str, Any]:
    """What was measured, by machine and layer; nothing where the file is not there or damaged."""
    try:
        known = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(of, dict) for of in known.values()) else {}


def _measured(what: str, dtype: torch.dtype, shape: tuple[int, ...], contenders: Contenders) -> float:
    """Where the line through the event-driven form's times at two shares meets the dense form's time."""
    for _ in range(3):
        times = []
        dense_times = []
        for share in _SHARES:
            of_events, of_dense = least_seconds(*contenders(what, dtype, shape, share))
            times.append(of_events)
            dense_times.append(of_dense)
        a, b = times
        if b > a:  # else the machine was busy with something else
            found = _SHARES[0] + (min(dense_times) / _MARGIN - a) / (b - a) * (_SHARES[1] - _SHARES[0])
            return min(max(found, 0.0), _MOST)
    return _UNMEASURED
