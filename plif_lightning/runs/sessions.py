"""The starts of a run, which `run.json` lists: its first, and each that resumed it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Session:
    """A start of a run.

    Attributes:
        step: of the optimiser at which the run was resumed; None for its first start.
        arguments: of main.py; empty if unknown.
        settings: those that differ from their defaults, by dotted names.
        code: hash of each module of the user's.
        changes: name, value before and value now of what resuming changed and makes another run of it.
        surroundings: machine, versions, commit, threads and form.
        started: time of the start [s since 1970]; 0 if unknown.
        process: its host and number.
    """

    step: int | None = None
    arguments: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    changes: Sequence[tuple[str, Any, Any]] = ()
    surroundings: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0
    process: Mapping[str, Any] = field(default_factory=dict)

    def recorded(self) -> dict[str, Any]:
        """The session as `run.json` holds it, without what is unknown or empty."""
        return {name: value for name, value in asdict(self).items() if value not in (None, [], (), {})}


_TYPES: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "arguments": list,
    "settings": dict,
    "code": dict,
    "changes": list,
    "surroundings": dict,
    "started": (int, float),
    "process": dict,
}


def sessions_of(record: Mapping[str, Any]) -> list[Session]:
    """The sessions in the content of a `run.json`; what cannot be one is left out."""
    recorded = record.get("sessions")
    return [
        Session(**{name: session[name] for name, kind in _TYPES.items() if isinstance(session.get(name), kind)})
        for session in (recorded if isinstance(recorded, list) else [])
        if isinstance(session, dict)
    ]
