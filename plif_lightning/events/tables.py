"""Recordings as tables of numbers: NumPy's .npz and .npy, text, and HDF5."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.recording import Recording, RecordingError, Sensor, recording_of
from plif_lightning.runtime.program import needed_by

TimeUnit = Literal["s", "ms", "us", "ns"]
_COLUMNS = ("t", "x", "y", "p")
# Marks of a comment, at the beginning of a line of text.
COMMENTS = "#%"
_NAMES = {
    **dict.fromkeys(("t", "ts", "time", "times", "timestamp", "timestamps"), "t"),
    **dict.fromkeys(("x", "xs", "col", "column"), "x"),
    **dict.fromkeys(("y", "ys", "row"), "y"),
    **dict.fromkeys(("p", "ps", "pol", "pols", "polarity", "polarities", "on"), "p"),
}
_US = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1e-3}


def _named(names: Iterable[str]) -> dict[str, str]:
    """Each of t, x, y and p that is among some names, common aliases included, and its name there."""
    return {column: name for name in names if (column := _NAMES.get(name.strip().lower())) is not None}


def in_us(t: NDArray[Any], unit: TimeUnit | None, name: str) -> NDArray[Any]:
    """Times in us, without fractions; without a unit they are us.

    Raises:
        RecordingError: without a unit, times have fractions.
    """
    if unit is None:
        if t.dtype.kind == "f" and (t != np.floor(t)).any():
            raise RecordingError(
                f"{name}: its times have fractions, so they are not us: pass --data.time_unit s, or ms (`stream` and "
                "`figures`: --time_unit)."
            )
        return t
    if t.dtype.kind == "f":
        return np.rint(t.astype(np.float64) * _US[unit])
    t = t.astype(np.int64)
    return (t + 500) // 1000 if unit == "ns" else t * _US[unit]


def _required(columns: Sequence[str] | None) -> list[str]:
    """Those of t, x, y and p that a table must hold: of a line of sensors, its `columns` may leave out y and p."""
    named = _named(columns) if columns else _COLUMNS
    return [column for column in _COLUMNS if column in ("t", "x") or column in named]


def _recording(
    columns: dict[str, Any], unit: TimeUnit | None, name: str, required: Sequence[str] = _COLUMNS
) -> Recording:
    """Recording of named columns; y and p are 0 where they are not required."""
    if missing := [column for column in required if column not in columns]:
        raise RecordingError(
            f"{name} lacks {', '.join(missing)}: it must hold columns named t, x, y and p; --data.columns=[t,x,y,p] "
            "names those of a table without names, and [t,x] those of a line of sensors."
        )
    t = in_us(np.asarray(columns["t"]), unit, name)
    y, p = (columns[column] if column in required else np.zeros(len(t), np.uint8) for column in "yp")
    return recording_of(columns["x"], y, t, p, name=name)


def _from_array(array: Any, columns: Sequence[str] | None, unit: TimeUnit | None, name: str) -> Recording:
    """Recording of a structured array, or of numbers [N, columns]."""
    if array.dtype.names is not None:
        named_fields = {column: array[field] for column, field in _named(array.dtype.names).items()}
        return _recording(named_fields, unit, name, _required(columns))
    named = _named(columns or ())
    if array.ndim != 2 or (columns and array.shape[1] != len(columns)):
        raise RecordingError(f"{name} must hold {len(columns or _COLUMNS)} columns, got an array {list(array.shape)}.")
    by_column = {c: array[:, list(columns or ()).index(field)] for c, field in named.items()}
    return _recording(by_column, unit, name, _required(columns))


def read_numpy(path: Path, columns: Sequence[str] | None = None, unit: TimeUnit | None = None) -> Recording:
    """Events of a .npz with the arrays x, y, t and p, or of a .npy with a structured array of these fields or [N, 4].

    Args:
        path: the file.
        columns: names of the columns of [N, 4].
        unit: of the times; us without one.
    """
    with path.open("rb") as file:  # np.load leaves a damaged .npz open
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _from_array(loaded, columns, unit, str(path))
        names = list(loaded)
        if len(names) == 1:  # np.savez(file, events)
            return _from_array(loaded[names[0]], columns, unit, str(path))
        by_column = {column: loaded[name] for column, name in _named(names).items()}
        return _recording(by_column, unit, str(path), _required(columns))


class TextLayout(NamedTuple):
    """How a table of text is written, which its first line tells.

    Attributes:
        separator: between the numbers of a line; None for spaces.
        columns: index of t, x and, unless it is a line of sensors, y and p in a line.
        has_header: True if the first line names the columns.
    """

    separator: str | None
    columns: dict[str, int]
    has_header: bool

    @classmethod
    def of(cls, first: str, columns: Sequence[str] | None, name: str) -> "TextLayout":
        """Layout of a table from `first`, its first line that is neither blank nor a comment.

        Raises:
            RecordingError: neither the line nor `columns` names t, x, y and p.
        """
        separator = next((mark for mark in ",;\t" if mark in first), None)
        fields = [field.strip() for field in first.split(separator)]
        has_header = not all(re.fullmatch(r"[-+.\deE]+", field) for field in fields)
        names = columns or (fields if has_header else ())
        named = _named(names)
        required = _required(columns)
        if {*required} - {*named}:
            header = "has no header that names its columns" if not names else f"has the columns {', '.join(names)}"
            raise RecordingError(
                f"{name} {header}: name t, x, y and p in its first line, or by --data.columns=[t,x,y,p] (`stream` and "
                "`figures`: --columns t x y p)."
            )
        return cls(separator, {column: list(names).index(named[column]) for column in required}, has_header)

    def read(self, lines: Any, unit: TimeUnit | None, name: str, **settings: Any) -> Recording:
        """Events of a path or of lines, read by `numpy.loadtxt` with further settings."""
        settings = {"delimiter": self.separator, "usecols": [*self.columns.values()], "ndmin": 2, **settings}
        try:
            table = np.loadtxt(lines, np.int64, **settings)
        except ValueError:
            table = np.loadtxt(lines, np.float64, **settings)
        return _recording(dict(zip(self.columns, table.T, strict=True)), unit, name, [*self.columns])


def read_text(path: Path, columns: Sequence[str] | None = None, unit: TimeUnit | None = None) -> Recording:
    """Events of a text file, a line for each; commas, semicolons, tabs or spaces separate its numbers.

    Lines that begin with `#` or `%` are comments. The first other line names the columns, unless `columns` does.

    Args:
        path: the file.
        columns: names of the columns, in their order.
        unit: of the times; us without one.
    """
    first, line, is_percent = 0, "", False
    with path.open(encoding="utf-8-sig") as file:
        for first, line in enumerate(file):  # noqa: B007
            if line.strip() and line[0] not in COMMENTS:
                break
            is_percent |= line.startswith("%")
    layout = TextLayout.of(line, columns, str(path))
    return layout.read(path, unit, str(path), comments="%" if is_percent else "#", skiprows=first + layout.has_header)


def read_hdf5(path: Path, columns: Sequence[str] | None = None, unit: TimeUnit | None = None) -> Recording:
    """Events of an HDF5 file, read by h5py.

    It holds a group with the data sets x, y, t and p under their common names (DSEC: `events`, with `t_offset` beside
    it, which is added to the times), or a structured data set (Metavision: `CD/events`).

    Source: https://dsec.ifi.uzh.ch/data-format; https://docs.prophesee.ai/stable/data/file_formats/hdf5.html
    """
    with needed_by("a recording in HDF5"):
        import h5py
        import hdf5plugin  # noqa: F401 (registers filters, such as DSEC's)

    with h5py.File(path) as file:
        candidates: list[Any] = []
        required = _required(columns)

        def look(_: str, item: Any) -> None:
            names = item if isinstance(item, h5py.Group) else item.dtype.names or ()
            if not {*required} - {*_named(names)}:
                candidates.append(item)

        look("", file)
        file.visititems(look)
        if len(candidates) != 1:
            which = ", ".join(item.name for item in candidates) or "none"
            raise RecordingError(f"{path} must hold one set of events with {', '.join(required)}; it holds {which}.")
        events = candidates[0]
        name = f"{path} ({events.name})"
        if isinstance(events, h5py.Dataset):
            return _from_array(_contiguous(events, path), columns, unit, name)
        by_column = {column: _contiguous(events[field], path) for column, field in _named(events).items()}
        if "t_offset" in file:
            by_column["t"] = by_column["t"].astype(np.int64) + int(file["t_offset"][()])
        return _recording(by_column, unit, name, required)


def _contiguous(data: Any, path: Path) -> NDArray[Any]:
    """A data set of HDF5, which reads as zeros where it was never written.

    Raises:
        RecordingError: it was written incompletely.
    """
    chunks = -(-len(data) // data.chunks[0]) if data.chunks else 1
    written = data.id.get_num_chunks() if data.chunks else data.id.get_storage_size() > 0
    if data.size and written < chunks and not data.is_virtual and not data.external:
        raise RecordingError(f"{path}: {data.name} was not written as a whole. The file is truncated.")
    return data[()]


def sensor_in_hdf5(path: Path) -> Sensor | None:
    """Sensor that the attribute `geometry` of a file of Metavision names, `1280x720`."""
    with needed_by("a recording in HDF5"):
        import h5py

    with h5py.File(path) as file:
        match = re.fullmatch(r"(\d+)x(\d+)", str(file.attrs.get("geometry", "")))
    return Sensor(int(match[2]), int(match[1])) if match else None
