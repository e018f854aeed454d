"""`run.json`: settings, machine, data and results of a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.loading import load_mapping
from plif_lightning.runtime.files import atomic_write


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


@dataclass(frozen=True)
class DataRecord:
    """The data of a run.

    Attributes:
        title: name of the data set, as in tables.
        origin: what the data are, where it is not the whole data set from its authors.
        is_part: the data set itself is a part of another.
        samples: number of samples of each part.
        content: hash that identifies the training set.
        test_content: hash that identifies the test set.
    """

    title: str | None = None
    origin: str | None = None
    is_part: bool = False
    samples: Mapping[str, int] = field(default_factory=dict)
    content: str | None = None
    test_content: str | None = None

    @property
    def identity(self) -> str:
        """The identity of training and test set."""
        return f"{self.content} {self.test_content}"


@dataclass(frozen=True)
class Record:
    """Content of `run.json`.

    Attributes:
        sessions: the starts of the run, in their order; empty if they are unknown.
        data: of the run.
        structure: the network's; None for a user-defined one.
        forms: the form of each layer in training.
        wandb: identity of its run in W&B.
        cost: of a sample, see `deploy.costs.Cost.summary`.
        test: accuracy on the test set, measured once on the best epoch's weights, from 0 to 1; None if it was not.
        tested: number of samples of that test.
        ended: time of its end [s since 1970]; None before, and where it is resumed.
        best_epoch: of a published run that kept no accuracy of it, counted from 1.
        of_another_program: see `record_run`.
        others: what callbacks recorded beside, by its name.
    """

    sessions: Sequence[Session] = ()
    data: DataRecord = DataRecord()
    structure: str | None = None
    forms: Mapping[str, str] = field(default_factory=dict)
    wandb: str | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    test: float | None = None
    tested: int | None = None
    ended: float | None = None
    best_epoch: int | None = None
    of_another_program: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.test is not None and not 0 <= self.test <= 1:
            raise ValueError(f"test must lie from 0 to 1, got {self.test}")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Record":
        """The record in the content of a file.

        Raises:
            TypeError, ValueError: it is none.
        """
        names = {own.name for own in fields(cls)}
        parts = {name: value for name, value in content.items() if name in names}
        parts |= {"sessions": [Session(**session) for session in content.get("sessions", ())]}
        parts |= {"data": DataRecord(**content.get("data", {}))}
        return cls(**parts, others={name: value for name, value in content.items() if name not in names})

    def content(self) -> dict[str, Any]:
        """The content of its file, without what is unknown."""
        parts = {**_known(self), **self.others}
        parts |= {"sessions": [_known(session) for session in self.sessions], "data": _known(self.data)}
        return {name: value for name, value in parts.items() if name != "others"}


def _known(part: Session | DataRecord | Record) -> dict[str, Any]:
    """The fields of a part that differ from those of an empty one."""
    unknown = asdict(type(part)())
    return {name: value for name, value in asdict(part).items() if value != unknown[name]}


def read_record(folder: RunFolder) -> Record:
    """Read the record of a run; an empty one before the run begins.

    Raises:
        UserError: the file is damaged.
    """
    if not folder.record.exists():
        return Record()
    try:
        return Record.of(load_mapping(folder.record))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder.record} is no record of a run: {error}.") from error


def write_record(folder: RunFolder, record: Record) -> None:
    with atomic_write(folder.record) as file:
        json.dump(record.content(), file, indent=2)


def update(folder: RunFolder, **parts: Any) -> None:
    """Replace parts of a run's record: attributes, and others by their names."""
    record = read_record(folder)
    own = {name: parts[name] for name in parts if name in {own.name for own in fields(Record)}}
    others = {name: parts[name] for name in parts if name not in own}
    write_record(folder, replace(record, **own, others={**record.others, **others}))
