"""`run.json`: settings, machine, data and results of a run."""

import csv
import json
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
from plif_lightning.runs.identity import CODE, Identity, data_identity
from plif_lightning.runs.loading import load_mapping
from plif_lightning.runs.settings import defaults, nest_settings
from plif_lightning.runtime.files import atomic_write

# Parts written at the end of a run; resumed training removes them.
_RESULTS = ("ended", "test", "tested", "cost")


def update(folder: RunFolder, **parts: Any) -> None:
    """Replace parts of a run's record by name; None removes a part."""
    record = load_mapping(folder.record, [], optional=True) | parts
    with atomic_write(folder.record) as file:
        json.dump({name: value for name, value in record.items() if value is not None}, file, indent=2)


def begin(
    folder: RunFolder,
    arguments: Sequence[str],
    identity: Identity,
    data: Mapping[str, Any],
    surroundings: Mapping[str, str],
    step: int | None = None,
    sources: Sources | None = None,
) -> set[str]:
    """Write the record of a fit that starts or resumes.

    Args:
        folder: folder of the run.
        arguments: arguments of main.py. A resumed run keeps its first ones.
        identity: of the run's configuration.
        data: title, origin, samples and identities of the data.
        surroundings: machine, versions, commit. Where a resumed run has others, both are kept.
        step: step of the optimiser at which a run is resumed; None for a new run.
        sources: the user's code, see `plif_lightning.runs.code`.

    Returns:
        Keys of `surroundings` with values that differ from before.
    """
    before = load_mapping(folder.record, [], optional=True) if step is not None else {}
    earlier = Identity.of_record(before)
    here = replace(identity, code=hashes_of(sources or {}), data=data_identity(data))
    resumed = [*before.get("resumed", [])]
    lengths: list[str] = []
    if step is not None and earlier.settings:
        kept = {name: earlier.settings[name] for name in ("ckpt_path",) if name in earlier.settings}
        here = earlier.resumed_with(replace(here, settings={**here.settings, **kept}), step)
        changed = {change.name for change in here.changes[len(earlier.changes) :]}
        resumed += [[step, [*arguments[1:]]]] if changed - {CODE} else []
        # A length that no schedule depends on might have been given at once.
        lengths = [name for name, *_ in here.compared_with(earlier) if not here.depends_on(name)]
    _keep_sources(folder, sources or {}, step)
    environment, changed_environment = _added_to(before.get("surroundings") or {}, surroundings)
    update(
        folder,
        arguments=[
            *before.get("arguments", list(arguments)), *(f"--{name}={here.value(name)}" for name in lengths)
        ],
        settings=dict(here.settings),
        changes=here.recorded_changes or None,
        resumed=resumed or None,
        code=dict(here.code) or None,
        key=here.key,
        data=dict(data),
        surroundings=environment,
        started=time.time(),
        process={"host": socket.gethostname(), "pid": os.getpid()},
        **dict.fromkeys(_RESULTS),
    )  # fmt: skip
    return changed_environment


def _keep_sources(folder: RunFolder, sources: Sources, step: int | None) -> None:
    """Write the user's code into the folder; files of a resumed run that differ are kept under another name."""
    for name, text in sources.items():
        path = folder.source(name)
        if step is not None and path.is_file() and path.read_text("utf-8") != text:
            path.replace(path.with_suffix(f".until_step_{step}.py"))
        with atomic_write(path) as file:
            file.write(text)


def _added_to(before: Mapping[str, Any], surroundings: Mapping[str, str]) -> tuple[dict[str, Any], set[str]]:
    """Surroundings of a run from its begin on, a list where they changed, and the names of those that changed now."""
    all_of_run: dict[str, Any] = {}
    changed = set()
    for name, value in surroundings.items():
        there = before.get(name, value)
        earlier = there if isinstance(there, list) else [there]
        if earlier[-1] != value:
            changed.add(name)
        all_of_run[name] = [*earlier, value] if earlier[-1] != value else there
    return all_of_run, changed


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
    named = [".".join(name.split(".")[:2]) for name in settings if not name.startswith("data.")]
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
    content = {"content": f"{data} {samples[0]}", "test_content": f"{data} {samples[1]}"}
    update(
        files,
        settings=all_settings,
        key=Identity(all_settings, data=data_identity(content), is_of_another_program=True).key,
        data={"title": data, "samples": parts, **content},
        of_another_program=True,
        test=accuracy if has_holdout else None,
        started=time.time(),
        ended=time.time(),
    )
