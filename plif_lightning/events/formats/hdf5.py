"""Events in HDF5: DSEC's layout, Metavision's, and others that name their columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plif_lightning.errors import UserError
from plif_lightning.events.formats.columns import (
    columns_of,
    from_table,
    in_microseconds,
    recording_from,
    stands_for,
    units_of,
)
from plif_lightning.events.formats.decoding import require_compression, sensor_from
from plif_lightning.events.recording import Recording, RecordingError, Sensor
from plif_lightning.runtime.extras import needed_by

# Number of the filter that compresses Metavision's events, ECF.
_ECF = 0x8ECF
_FILTERS = {32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32015: "Zstandard", 32026: "Blosc 2", 307: "BZip2"}


def _h5py() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needed_by("a recording in HDF5"):
        import h5py
    return h5py


def read_hdf5(path: str | Path) -> Recording:
    """Events of an HDF5 file.

    Layouts: a group with the data sets x, y, t and p under their usual names (DSEC: `events`, with `t_offset` beside
    it); a structured data set (Metavision: `CD/events`, compressed with ECF); a table [N, 4] named `events`. The file
    must hold one of them. Read by h5py. Times as in `read_numpy`.

    Raises:
        RecordingError: another format, a damaged file, no or several sets of events, or a filter that is missing.

    Source: https://dsec.ifi.uzh.ch/data-format; https://docs.prophesee.ai/stable/data/file_formats/hdf5.html
    """
    try:
        return _read(str(path))
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise RecordingError(f"{path} does not exist.") from error
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError and ValueError, each for many reasons
        reason = " ".join(str(error).split())[:200]
        raise RecordingError(f"{path} cannot be read as HDF5 ({reason}). It is damaged or another file.") from error


def sensor_in(path: str | Path) -> Sensor | None:
    """Sensor that the attribute `geometry` of a file of Metavision names, `1280x720`; None if there is none."""
    h5py = _h5py()

    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("geometry", "")
    except Exception:  # as many types as in `read_hdf5`, which will name the fault
        return None
    width, _, height = (text.decode("latin-1") if isinstance(text, bytes) else str(text)).partition("x")
    return sensor_from(height, width, str(path))


def _read(path: str) -> Recording:
    h5py = _h5py()

    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {}
        _search(file, found, set())
        if not found:
            raise RecordingError(
                f"{path} holds no events: a group with the data sets x, y, t and p, a structured data set of these "
                "fields or a table [N, 4] named `events` is expected."
            )
        if len(found) > 1:
            raise RecordingError(
                f"{path} holds several sets of events: {', '.join(sorted(found))}. Write one into a file of its own."
            )
        ((where, what),) = found.items()
        name = f"{path} ({where})"
        if isinstance(what, h5py.Group):
            columns = columns_of(what, name)
            data = {key: what[member] for key, (member, _) in columns.items()}
            _require_there([*data.values()], path)
            values = {key: _values(one, path) for key, one in data.items()}
            values["t"] = in_microseconds(values["t"], units_of(columns), name).astype(np.int64)
            values["t"] += _offset(what, file, name)
            return recording_from(values, None, name)
        _require_there([what], path)
        values = _values(what, path)
        if values.dtype.names is None:
            return from_table(values, name)
        columns = columns_of(values.dtype.names, name)
        return recording_from({key: values[field] for key, (field, _) in columns.items()}, units_of(columns), name)


def _search(group: Any, found: dict[str, Any], seen: set[int]) -> None:
    """Collect the sets of events in a group and in those below it, by their path; each object once."""
    h5py = _h5py()

    address = h5py.h5o.get_info(group.id).addr
    if address in seen:  # by another link
        return
    seen.add(address)
    if stands_for({member for member in group if _is_vector(group, member)}) == set("txyp"):
        found[group.name] = group
        return
    for member in group:
        if not isinstance(group.get(member, getlink=True), h5py.HardLink):
            continue  # a link may lead to another file, or to a group above
        item = group[member]
        if isinstance(item, h5py.Group):
            if not item.name.upper().endswith("EXT_TRIGGER"):
                _search(item, found, seen)
        elif isinstance(item, h5py.Dataset) and _is_table(item):
            found[item.name] = item


def _require_there(data: Sequence[Any], path: str) -> None:
    """Refuse data sets without data, which HDF5 reads as zeros, and those that would exhaust memory.

    Raises:
        RecordingError: a data set is virtual or in other files, was not written as a whole, or unpacks to far more than
            events can.
    """
    for one in data:
        chunks = -(-len(one) // one.chunks[0]) if one.chunks else 0
        written = one.id.get_num_chunks() if one.chunks else one.id.get_storage_size() > 0
        if one.is_virtual or one.external or (one.size and (written < chunks or not written)):
            raise RecordingError(
                f"{path}: the data of {one.name} are not in this file, or were not written as a whole."
            )
    unpacked = sum(int(one.size) * one.dtype.itemsize for one in data)
    require_compression(unpacked, sum(one.id.get_storage_size() for one in data), path)


def _is_vector(group: Any, member: str) -> bool:
    h5py = _h5py()

    item = group.get(member)
    return isinstance(item, h5py.Dataset) and item.ndim == 1 and _is_here(item, group)


def _is_here(item: Any, group: Any) -> bool:
    """True if an object lies in the file of a group, and was not reached through a link into another one."""
    return bool(item.file.filename == group.file.filename)


def _is_table(data: Any) -> bool:
    """True for a structured data set of events, and for numbers [N, 4]."""
    if data.dtype.names is not None:
        return data.ndim == 1 and stands_for(data.dtype.names) == set("txyp")
    return data.ndim == 2 and data.shape[1] == 4 and data.dtype.kind in "iuf" and "events" in data.name.lower()


def _offset(group: Any, file: Any, name: str) -> int:
    """DSEC's `t_offset`, in us, which is added to all times; 0 if there is none.

    Raises:
        RecordingError: it is no whole number.
    """
    for place in (file, group):
        if "t_offset" in place:
            item = place["t_offset"]
            if not isinstance(item, _h5py().Dataset) or not _is_here(item, file) or item.external or item.is_virtual:
                raise RecordingError(f"{name}: t_offset is not in this file.")
            offset = np.asarray(item[()]).reshape(-1)
            if len(offset) != 1 or offset.dtype.kind not in "iuf" or offset[0] % 1 or abs(float(offset[0])) >= 2**62:
                raise RecordingError(f"{name}: t_offset must be a whole number of us, got {offset[:3]}.")
            return int(offset[0])
    return 0


def _values(data: Any, path: str) -> Any:
    """Values of a data set.

    Raises:
        RecordingError: it is compressed with a filter that is not installed.
    """
    h5py = _h5py()

    plist = data.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if filters == [_ECF] and not h5py.h5z.filter_avail(_ECF):
        from plif_lightning.events.formats.ecf import decompressed

        return decompressed(data, path)
    missing = [code for code in filters if not h5py.h5z.filter_avail(code)]
    if missing:
        names = ", ".join(_FILTERS.get(code, f"filter {code}") for code in missing)
        with needed_by(f"{path}, which is compressed with {names},"):
            import hdf5plugin  # noqa: F401 (registers the filters)
    return data[()]
