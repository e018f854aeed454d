"""Events in ROS bags, read through the package `rosbags`."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from plif_lightning.events.formats.decoding import joined, no_events
from plif_lightning.events.recording import Recording, RecordingError
from plif_lightning.runtime.extras import needed_by

_ARRAYS = ("dvs_msgs/msg/EventArray", "prophesee_event_msgs/msg/EventArray")
_FIELDS = [("x", "<u2"), ("y", "<u2"), ("sec", "<u4"), ("nsec", "<u4"), ("p", "u1")]
_EVENT_1 = np.dtype(_FIELDS)
# ROS 2 (CDR) aligns each number to its size: but for the first event, a time lies 6 bytes after its event's beginning.
_EVENT_2 = np.dtype(
    {
        "names": [name for name, _ in _FIELDS],
        "formats": [kind for _, kind in _FIELDS],
        "offsets": [0, 2, 6, 10, 14],
        "itemsize": 16,
    }
)


def read_rosbag(path: str | Path) -> Recording:
    """Events of a ROS bag (.bag; .mcap or .db3 of ROS 2): the messages EventArray of its one topic of events.

    Raises:
        RecordingError: the package `rosbags` is missing, the bag is damaged, or has no or several topics of events.

    Source: https://github.com/uzh-rpg/rpg_dvs_ros
    """
    with needed_by(f"the ROS bag {path}"):
        from rosbags.highlevel import AnyReader
    where = Path(path)
    if not where.exists():
        raise RecordingError(f"{path} does not exist.")
    bag = where
    if where.suffix.lower() != ".bag":  # of ROS 2: a folder, whose metadata name its files
        bag = where.parent
        _require_alone(where)
    try:
        with AnyReader([bag]) as reader:
            topics = {connection.topic for connection in reader.connections if connection.msgtype in _ARRAYS}
            if len(topics) != 1:
                found = ", ".join(sorted(topics)) or "none: " + ", ".join(
                    sorted({c.msgtype for c in reader.connections})
                )
                raise RecordingError(f"{path} must have one topic of {' or '.join(_ARRAYS)}, and has {found[:300]}.")
            chosen = [c for c in reader.connections if c.topic in topics]
            cdr = reader.is2
            parts = [_events(bytes(raw), cdr) for _, _, raw in reader.messages(connections=chosen)]
    except (RecordingError, MemoryError):
        raise
    except Exception as error:  # rosbags and its decompressors have their own types
        reason = " ".join(str(error).split())[:200]
        raise RecordingError(f"{path} cannot be read as a ROS bag ({reason}). It is damaged or another.") from error
    return joined(parts)


def _require_alone(path: Path) -> None:
    """Refuse a file of ROS 2 that is not the one file that the metadata beside it name.

    Raises:
        RecordingError: there are no metadata, or they name others.
    """
    import yaml

    try:
        metadata = yaml.safe_load((path.parent / "metadata.yaml").read_text("utf-8"))
        files = metadata["rosbag2_bagfile_information"]["relative_file_paths"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        files = []
    if files != [path.name]:
        # Other entries, such as nested lists, may be very long.
        named = ", ".join(name for name in files if isinstance(name, str)) if isinstance(files, list) else ""
        raise RecordingError(
            f"{path}: a bag of ROS 2 is read by the metadata.yaml beside it, which must name it alone, and names "
            f"{named[:300] or 'none'}. `rosbags-convert` makes one .bag of a bag."
        )


def _events(message: bytes, cdr: bool) -> Recording:
    """Events of a serialized EventArray."""
    at = 4 + 8  # sequence number (CDR: encapsulation) and time
    (length,) = struct.unpack_from("<I", message, at)
    at += 4 + length
    if cdr:
        at += -(at - 4) % 4
    at += 8  # height and width
    (count,) = struct.unpack_from("<I", message, at)
    at += 4
    if not count:
        return no_events()
    kind, begin = (_EVENT_2, at - 2) if cdr else (_EVENT_1, at)
    end = begin + count * kind.itemsize - (1 if cdr else 0)
    if end > len(message):
        raise ValueError(f"a message of {len(message)} bytes names {count} events")
    found: Any = np.frombuffer(message + b"\0", kind, count, begin)
    x, y = found["x"].copy(), found["y"].copy()
    if cdr:
        x[0], y[0] = struct.unpack_from("<HH", message, at)
    t = found["sec"].astype(np.int64) * 1_000_000 + found["nsec"] // 1000
    return Recording(t, x, y, found["p"])
