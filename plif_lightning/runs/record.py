"""`run.json`: what a run is, where it ran, on which data, and what came of it."""

import contextlib
import csv
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from plif_lightning.errors import UserError
from plif_lightning.runs.code import Sources, hashes_of
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.loading import loaded
from plif_lightning.runs.settings import defaults, differences, key, nested
from plif_lightning.runtime.files import written_whole

# Parts written at the end of a run; resumed training removes them.
_RESULTS = ("ended", "test", "tested", "cost")


def update(folder: RunFolder, **parts: Any) -> None:
    """Write parts of a run's record in place of those with their names; None removes one."""
    record = loaded(folder.record, [], optional=True) | parts
    with written_whole(folder.record) as file:
        json.dump({name: part for name, part in record.items() if part is not None}, file, indent=2)


def begin(
    folder: RunFolder,
    arguments: Sequence[str],
    settings: Mapping[str, Any],
    data: Mapping[str, Any],
    surroundings: Mapping[str, str],
    step: int | None = None,
    sources: Sources | None = None,
) -> set[str]:
    """Write the record of a fit that starts or goes on.

    Args:
        folder: folder of the run.
        arguments: arguments of main.py. A resumed run keeps its first ones.
        settings: see `plif_lightning.runs.settings`.
        data: title, origin, samples and identities of the data.
        surroundings: machine, versions, commit. Where a resumed run has others, both are kept.
        step: step of the optimiser at which a run is resumed; None for a new one.
        sources: the user's code, see `plif_lightning.runs.code`.

    Returns:
        Keys of `surroundings` whose values differ from before.
    """
    before = loaded(folder.record, [], optional=True) if step is not None else {}
    changes = [*before.get("changes", [])]
    known = before.get("settings", settings)
    settings = {**settings, **{name: known[name] for name in ("ckpt_path",) if name in known}}
    changed = [name for name in differences(known, settings) if _matters(name, settings)]
    changes += [[step, name, settings.get(name)] for name in changed]
    resumed = [*before.get("resumed", []), *([[step, [*arguments[1:]]]] if changed else [])]
    code = hashes_of(sources or {})
    if step is not None and (edited := sorted(differences(before.get("code") or {}, code))):
        changes.append([step, "code", {name: code.get(name) for name in edited}])
    for name, text in (sources or {}).items():
        with written_whole(folder.source(name)) as file:
            file.write(text)
    around: dict[str, str] = {}
    others = set()
    for name, value in surroundings.items():
        earlier = str((before.get("surroundings") or {}).get(name, value)).split(", then ")
        if earlier[-1] != value:
            others.add(name)
            earlier.append(value)
        around[name] = ", then ".join(earlier)
    given = before.get("arguments", list(arguments))
    # A length that no schedule depends on might have been given at once.
    lengths = [n for n in differences(known, settings) if n.startswith("trainer.max_") and n not in changed]
    of_run = dict(settings) | ({"changes": changes} if changes else {}) | ({"code": code} if code else {})
    content = f"{data.get('content')} {data.get('test_content')}"
    update(
        folder,
        arguments=[*given, *(f"--{name}={settings.get(name, defaults()[name])}" for name in lengths)],
        settings=dict(settings),
        changes=changes or None,
        resumed=resumed or None,
        code=code or None,
        key=key(of_run, content),
        data=dict(data),
        surroundings=around,
        started=time.time(),
        process=this_process(),
        **dict.fromkeys(_RESULTS),
    )
    return others


def _matters(name: str, settings: Mapping[str, Any]) -> bool:
    """True if training differs from a run that was begun with the new value.

    A length alone matters only to a schedule: a cycle depends on it, and a plateau's lacks a step when it is resumed.
    """
    schedules = ("OneCycle", "ReduceLROnPlateau")
    return not name.startswith("trainer.max_") or settings.get("model.lr_scheduler", "").endswith(schedules)


def _state_and_birth(pid: int) -> tuple[str, str] | None:
    """Return a process's state and start time (Linux only); the start time detects a reused pid."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return after_name[0], after_name[19]
    except (OSError, IndexError):
        return None


def this_process() -> dict[str, Any]:
    """Host, pid and start time of this process."""
    known = _state_and_birth(os.getpid())
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": known and known[1]}


def is_alive(record: Mapping[str, Any]) -> bool:
    """True if the process that trained the run of a record runs on this host."""
    process = record.get("process") or {}
    pid = process.get("pid")
    if process.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    known = _state_and_birth(pid)
    if known is not None:
        return known[0] not in "ZX" and known[1] == process.get("born")
    with contextlib.suppress(OSError, OverflowError):
        os.kill(pid, 0)
        return True
    return False


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
    """Record a run that another program trained, so that tables and data frames have it beside those of `fit`.

    Args:
        folder: a folder of its own, below the one that holds the runs.
        settings: by their names on the command line, such as {"model.neuron": "lif", "data.time_steps": 8}; runs are
            averaged if all but their seeds are equal.
        accuracy: on the test set, from 0 to 1.
        data: name of the data set, as in tables.
        samples: number of training samples, those held out included, and of test samples.
        epochs: number of epochs.
        validation: what chose the epoch: held-out samples, or the test set itself.
        validation_accuracy: of the chosen epoch on the held-out samples, from 0 to 1.
        seed: the run's seed.

    Raises:
        UserError: the folder holds a run already, or an accuracy lies outside of 0 to 1.
    """
    files = RunFolder(Path(folder))
    if files.record.exists():
        raise UserError(f"{folder} holds a run already: pass another folder.")
    for what, share in (("accuracy", accuracy), ("validation_accuracy", validation_accuracy)):
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"{what} must lie from 0 to 1, got {share}.")
    known = {"data": data, "data.validation": validation, **settings, "trainer.max_epochs": epochs}
    config = {"seed_everything": seed, **nested(known)}
    is_held_out = validation == "holdout"
    metric, best = ("val/acc", validation_accuracy) if is_held_out else ("test_as_val/acc", accuracy)
    with written_whole(files.config) as file:
        yaml.safe_dump(config, file)
    with written_whole(files.metrics) as file:
        # The loss, unknown here, marks the line of an epoch's end.
        row = [epochs - 1, epochs - 1, "nan", "" if best is None else best]
        csv.writer(file).writerows([["epoch", "step", "train/loss", metric], row])
    parts = {"training": samples[0], "test": samples[1]}
    update(
        files,
        settings=known,
        key=key(known, f"{data} {samples}"),
        data={"title": data, "samples": parts},
        of_another_program=True,
        test=accuracy if is_held_out else None,
        started=time.time(),
        ended=time.time(),
    )
