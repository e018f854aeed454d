"""N-MNIST's files."""

from pathlib import Path

import numpy as np

from plif_lightning.events.formats.decoding import content
from plif_lightning.events.recording import Recording, RecordingError

# An event at this y only marks an overflow of the clock.
_OVERFLOW_Y = 240
_OVERFLOW_TIME = 2**13


def read_nmnist(path: str | Path) -> Recording:
    """Events of an N-MNIST file (also N-Caltech101): 40 bits each, big-endian.

    x (8 bits), y (8), polarity (1), time (23) [us]. y = 240 marks an overflow of the clock: it is not an event, and
    adds 2^13 us to every later time (as in the data set's own Matlab reader).

    Raises:
        RecordingError: the file's size is not a multiple of 5 bytes.

    Source: Orchard et al. 2015.
    """
    data = content(path)
    if len(data) % 5:
        raise RecordingError(
            f"{path}: {len(data)} bytes are not a whole number of 5-byte events. "
            "The file is truncated, or no N-MNIST recording."
        )
    raw = np.frombuffer(data, np.uint8).reshape(-1, 5)
    x, y = raw[:, 0], raw[:, 1]
    t = raw[:, 2:].astype(np.int64) @ np.array([2**16, 2**8, 1])
    p = raw[:, 2] >> 7
    t &= 2**23 - 1
    marker = y == _OVERFLOW_Y
    if marker.any():
        t += _OVERFLOW_TIME * np.cumsum(marker)
        keep = ~marker
        t, x, y, p = t[keep], x[keep], y[keep], p[keep]
    return Recording(t, x, y, p)
