"""Columns of events under the names that people give them."""

import re
import unicodedata
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
# Microseconds in a unit. NFKC makes the micro sign a Greek letter.
_UNITS = {"s": 1e6, "sec": 1e6, "seconds": 1e6, "ms": 1e3, "us": 1.0, "μs": 1.0, "microseconds": 1.0, "ns": 1e-3}
# Times with fractions and without a unit are seconds if a camera may give so few events [events/s].
_FEWEST = 100
_ENOUGH = 100  # events that tell


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

    Raises:
        ValueError: it is a time in an unknown unit.

    >>> column_of("time [s]"), column_of("xs"), column_of("label")
    (Column(name='t', unit=1000000.0), Column(name='x', unit=None), None)
    """
    text = unicodedata.normalize("NFKC", name).strip().lower()
    if text in _COLUMN:
        return Column(_COLUMN[text])
    found = re.fullmatch(r"([a-z]+)\s*(?:_\s*([a-zμ]+)|[\[(]\s*(.*?)\s*[\])])", text)
    if not found or _COLUMN.get(found[1]) is None:
        return None
    column, unit = _COLUMN[found[1]], found[2] or found[3] or ""
    if column != "t":
        return Column(column) if found[3] in ("px", "pixel", "pixels") else None
    if unit in _UNITS:
        return Column("t", _UNITS[unit])
    if found[2]:  # such as time_offset
        return None
    raise ValueError(f"the unit of {name!r} is not known: name it t_s, t_ms, t_us or t_ns")


def columns_of(names: Iterable[str], where: str) -> dict[str, tuple[str, Column]]:
    """Each of t, x, y and p that is there, with its name among `names` and what that name says.

    Raises:
        RecordingError: two names stand for one column, or a unit is unknown. The message begins with `where`.
    """
    found: dict[str, tuple[str, Column]] = {}
    for name in names:
        try:
            column = column_of(name)
        except ValueError as error:
            raise RecordingError(f"{where}: {error}.") from error
        if column is None:
            continue
        if column.name in found:
            raise RecordingError(f"{where}: {found[column.name][0]} and {name} may both be {column.name}: keep one.")
        found[column.name] = (name, column)
    return found


def stands_for(names: Iterable[str]) -> set[str]:
    """Which of t, x, y and p some names stand for, whatever the unit of a time."""
    found = set()
    for name in names:
        try:
            column = column_of(name)
        except ValueError:  # of a time; `columns_of` names it
            found.add("t")
        else:
            found |= {column.name} if column else set()
    return found


def units_of(columns: dict[str, tuple[str, Column]]) -> float | None:
    """Microseconds in the unit of the times, if their name says it."""
    return columns["t"][1].unit if "t" in columns else None


def require_plausible_seconds(count: int, seconds: float, name: str) -> None:
    """Refuse times with fractions as seconds if that makes a camera too slow: they are milliseconds, or microseconds.

    Raises:
        RecordingError: there are fewer than 100 events a second.
    """
    if count >= _ENOUGH and count < _FEWEST * seconds:
        raise RecordingError(
            f"{name}: its times have fractions, and as seconds they would give {count} events in {seconds:,.0f} s. Say "
            "their unit with the name of the column: t_s, t_ms, t_us or t_ns."
        )


def in_microseconds(t: Any, unit: float | None, name: str) -> NDArray[Any]:
    """Times in us. Without a unit, whole numbers are us, and numbers with a fraction seconds.

    Raises:
        RecordingError: a time is not a finite number below 2^63 us, or times are hardly seconds.
    """
    t = np.asarray(t)
    if t.dtype.kind not in "iuf" or t.ndim != 1:
        return t  # which `recording_of` refuses
    if t.dtype.kind == "f":
        if not np.isfinite(t).all():
            raise RecordingError(f"{name}: a time is not a finite number. It is damaged.")
        if unit is None:
            unit = 1.0 if (t == np.floor(t)).all() else 1e6
            if unit != 1.0:
                require_plausible_seconds(len(t), float(t.max() - t.min()), name)
    low, high = (float(t.min()), float(t.max())) if len(t) else (0.0, 0.0)
    if max(abs(low), abs(high)) * (unit or 1.0) >= 2**63:
        raise RecordingError(f"{name}: t must lie below 2^63 us, got {low:g} to {high:g}.")
    if t.dtype.kind == "f":
        return np.rint(t.astype(np.float64) * (unit or 1.0)).astype(np.int64)
    if unit is None or unit == 1.0:
        return t
    t = t.astype(np.int64)
    return (t + round(0.5 / unit)) // round(1 / unit) if unit < 1 else t * round(unit)


def recording_from(columns: dict[str, Any], unit: float | None, name: str) -> Recording:
    """Recording of named columns; `unit` as in `in_microseconds`.

    Raises:
        RecordingError: one is missing or holds no numbers.
    """
    missing = [column for column in ("x", "y", "t", "p") if column not in columns]
    if missing:
        raise RecordingError(f"{name} must hold {NAMES}, but lacks {', '.join(missing)}.")
    t = in_microseconds(columns["t"], unit, name)
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
