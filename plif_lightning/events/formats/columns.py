"""Columns of events under the names that people give them."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.recording import Recording, RecordingError, recording_of

_ALIASES = {
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "x": ("x", "xs", "col", "column"),
    "y": ("y", "ys", "row"),
    "p": ("p", "ps", "pol", "pols", "polarity", "polarities", "on"),
}
NAMES = "x, y, t and p"
_COLUMN = {alias: column for column, aliases in _ALIASES.items() for alias in aliases}
# Microseconds in a unit.
_UNITS = {"s": 1e6, "sec": 1e6, "seconds": 1e6, "ms": 1e3, "us": 1.0, "µs": 1.0, "microseconds": 1.0, "ns": 1e-3}


class Column(NamedTuple):
    """A column of events.

    Attributes:
        name: t, x, y or p.
        unit: microseconds in the unit that the name of a time says; None if it says none.
    """

    name: str
    unit: float | None = None


def column_of(name: str) -> Column | None:
    """The column that a name such as `ts`, `Polarity`, `t_us` or `time [s]` stands for; None if it stands for none.

    >>> column_of("time [s]"), column_of("xs"), column_of("label")
    (Column(name='t', unit=1000000.0), Column(name='x', unit=None), None)
    """
    words = [word for word in re.split(r"[^a-zµ]+", name.strip().lower()) if word]
    if len(words) == 1 and words[0] in _COLUMN:
        return Column(_COLUMN[words[0]])
    if len(words) == 2 and _COLUMN.get(words[0]) == "t" and words[1] in _UNITS:
        return Column("t", _UNITS[words[1]])
    return None


def columns_of(names: Iterable[str]) -> dict[str, tuple[str, Column]]:
    """Each of t, x, y and p that is there, with its name among `names` and what that name says.

    Raises:
        ValueError: two names stand for one column.
    """
    found: dict[str, tuple[str, Column]] = {}
    for name in names:
        column = column_of(name)
        if column is None:
            continue
        if column.name in found:
            raise ValueError(f"{found[column.name][0]} and {name} may both be {column.name}")
        found[column.name] = (name, column)
    return found


def in_microseconds(t: Any, unit: float | None, name: str) -> NDArray[Any]:
    """Times in us. Without a unit, whole numbers are us, and numbers with a fraction seconds.

    Raises:
        RecordingError: a time is not a finite number.
    """
    t = np.asarray(t)
    if t.dtype.kind == "f":
        if not np.isfinite(t).all():
            raise RecordingError(f"{name}: a time is not a finite number. It is damaged.")
        if unit is None:
            unit = 1.0 if (t == np.floor(t)).all() else 1e6
        scaled = t.astype(np.float64) * unit
        if np.abs(scaled).max(initial=0) >= 2**63:
            raise RecordingError(f"{name}: times must lie below 2^63 us, got {scaled.max():g}.")
        return np.rint(scaled).astype(np.int64)
    if unit is None or unit == 1.0 or t.dtype.kind not in "iu":
        return t
    t = t.astype(np.int64)
    return (t + round(0.5 / unit)) // round(1 / unit) if unit < 1 else t * round(unit)


def recording_from(columns: dict[str, Any], units: dict[str, float | None], name: str) -> Recording:
    """Recording of named columns.

    Raises:
        RecordingError: one is missing or holds no numbers.
    """
    missing = [column for column in ("x", "y", "t", "p") if column not in columns]
    if missing:
        raise RecordingError(f"{name} must hold {NAMES}, but lacks {', '.join(missing)}.")
    t = columns["t"]
    if getattr(t, "ndim", 0) == 1:
        t = in_microseconds(t, units.get("t"), name)
    return recording_of(columns["x"], columns["y"], t, columns["p"], name=name)


def order_of(table: NDArray[Any], name: str) -> tuple[int, int, int, int]:
    """Which of four unnamed columns are t, x, y and p, told from their values.

    p is the one that holds only 0 and 1, or -1 and 1; t the one that never falls; the other two are x and y.

    Args:
        table: numbers [N, 4].
        name: name of the file, for messages.

    Raises:
        RecordingError: more than one column may be p, or t.
    """
    binary = [i for i in range(4) if np.isin(table[:, i], (0, 1)).all() or np.isin(table[:, i], (-1, 1)).all()]
    ascending = [i for i in range(4) if i not in binary and not (table[1:, i] < table[:-1, i]).any()]
    if len(binary) != 1 or len(ascending) != 1:
        what = f"{len(binary)} hold two values, as polarities do, and {len(ascending)} others never fall, as times do"
        raise RecordingError(
            f"{name} has four columns without names, and it is not clear which they are: {what}. Name them: a header "
            "`t,x,y,p` in text, four arrays of these names in .npz, a structured array in .npy."
        )
    x, y = (i for i in range(4) if i not in (*binary, *ascending))
    return ascending[0], x, y, binary[0]


def from_table(table: NDArray[Any], name: str) -> Recording:
    """Recording of four unnamed columns; see `order_of`.

    Raises:
        RecordingError: the columns cannot be told apart.
    """
    if not len(table):
        return recording_of(table[:, 0], table[:, 0], table[:, 0], table[:, 0], name)
    t, x, y, p = (table[:, i] for i in order_of(table, name))
    return recording_of(x, y, in_microseconds(t, None, name), p, name)
