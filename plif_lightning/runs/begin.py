"""The beginning of a run's record, and the record of a run that another program trained."""

import csv
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from plif_lightning.errors import UserError, require_known_arguments
from plif_lightning.runs.code import Sources, hashes_of
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import Difference, Identity
from plif_lightning.runs.record import DataRecord, Record, Session, read_record, write_record
from plif_lightning.runs.settings import defaults, is_of, nest_settings
from plif_lightning.runtime.files import atomic_write


def begin(
    folder: RunFolder,
    arguments: Sequence[str],
    identity: Identity,
    data: DataRecord,
    surroundings: Mapping[str, str],
    step: int | None = None,
    sources: Sources | None = None,
) -> set[str]:
    """Write the record of a fit that starts or resumes.

    Args:
        folder: folder of the run.
        arguments: arguments of main.py.
        identity: of the run's configuration.
        data: of the run.
        surroundings: machine, versions, commit.
        step: step of the optimiser at which a run is resumed; None for a new run.
        sources: the user's code, see `plif_lightning.runs.code`.

    Returns:
        Keys of `surroundings` with values that differ from those of the session before.
    """
    record = read_record(folder) if step is not None else Record()
    sessions = record.sessions
    here = replace(identity, code=hashes_of(sources or {}), data=data.identity)
    changes: list[Difference] = []
    if step is not None and sessions:
        earlier = Identity.of_record(record)
        kept = {name: value for name, value in earlier.settings.items() if is_of(name, "ckpt_path")}
        here = earlier.resumed_with(replace(here, settings={**here.settings, **kept}), step)
        changes = [*here.changes[len(earlier.changes) :]]
    _keep_sources(folder, sources or {}, step)
    session = Session(
        step=step,
        arguments=[*arguments],
        settings=dict(here.settings),
        code=dict(here.code),
        changes=[(change.name, change.before, change.now) for change in changes],
        surroundings=dict(surroundings),
        started=time.time(),
        process={"host": socket.gethostname(), "pid": os.getpid()},
    )
    # A resumed run loses all that was recorded at its end.
    write_record(folder, Record((*sessions, session), data, wandb=record.wandb))
    before = sessions[-1].surroundings if sessions else surroundings
    return {name for name, value in surroundings.items() if before.get(name, value) != value}


def _keep_sources(folder: RunFolder, sources: Sources, step: int | None) -> None:
    """Write the user's code into the folder; files of a resumed run that differ are kept under another name."""
    for name, text in sources.items():
        path = folder.source(name)
        if step is not None and path.is_file() and path.read_text("utf-8") != text:
            path.replace(path.with_name(f"{path.stem}.until_step_{step}{path.suffix}"))
        with atomic_write(path) as file:
            file.write(text)


def record_run(
    folder: str | Path,
    settings: Mapping[str, Any],
    accuracy: float,
    *,
    data: str,
    samples: tuple[int, int],
    epochs: int,
    validation: Literal["holdout", "test"] = "holdout",
    validation_accuracy: float | None = None,
    seed: int | None = None,
) -> None:
    """Record a run that another program trained, so that tables and data frames have it beside runs of `fit`.

    Args:
        folder: a new folder, below the folder of the runs.
        settings: by their names on the command line, such as {"model.neuron": "lif", "data.time_steps": 8}; runs are
            averaged if all but their seeds are equal.
        accuracy: on the test set, from 0 to 1.
        data: name of the data set, as in tables.
        samples: number of training samples, held-out ones included, and of test samples.
        epochs: number of epochs.
        validation: how the epoch was chosen: held-out samples, or the test set itself.
        validation_accuracy: of the chosen epoch on the held-out samples, from 0 to 1.
        seed: the run's seed.

    Raises:
        UserError: the folder holds a run already, a name is no setting, or an accuracy lies outside of 0 to 1.
    """
    files = RunFolder(Path(folder))
    if files.record.exists():
        raise UserError(f"{folder} holds a run already: pass another folder.")
    known = {".".join(name.split(".")[:2]) for name in defaults()}
    named = [".".join(name.split(".")[:2]) for name in settings if not is_of(name, "data")]
    require_known_arguments("record_run", named, known)
    for argument, share in (("accuracy", accuracy), ("validation_accuracy", validation_accuracy)):
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"{argument} must lie from 0 to 1, got {share}.")
    all_settings = {"data": data, "data.validation": validation, **settings, "trainer.max_epochs": epochs}
    config = {"seed_everything": seed, **nest_settings(all_settings)}
    has_holdout = validation == "holdout"
    metric, best = ("val/acc", validation_accuracy) if has_holdout else ("test_as_val/acc", accuracy)
    with atomic_write(files.config) as file:
        yaml.safe_dump(config, file)
    with atomic_write(files.metrics) as file:
        # The loss, unknown here, marks the line of an epoch's end.
        row = [epochs - 1, epochs - 1, "nan", "" if best is None else best]
        csv.writer(file).writerows([["epoch", "step", "train/loss", metric], row])
    parts = {"training": samples[0], "test": samples[1]}
    of_data = DataRecord(data, samples=parts, content=f"{data} {samples[0]}", test_content=f"{data} {samples[1]}")
    now = time.time()
    session = Session(settings=all_settings, started=now)
    test = accuracy if has_holdout else None
    write_record(files, Record([session], of_data, test=test, ended=now, of_another_program=True))
