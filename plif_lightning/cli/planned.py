"""Settings of a run that is planned, beside those of one that was made."""

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from plif_lightning import configs
from plif_lightning.cli.checkpoint import expand, model_defaults
from plif_lightning.cli.runner import Job
from plif_lightning.errors import UserError
from plif_lightning.runs.process import options
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import identity, says_something, without_order


def comparable_settings(config: dict[str, Any]) -> str:
    """The settings of a configuration that distinguish a planned run from others, as one text."""
    return json.dumps(sorted(_settings(config).items(), key=without_order), default=str)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    # Settings that an older run does not name had their default then.
    found = identity({**config, "model": {**model_defaults(), **(config.get("model") or {})}}, planned=True)
    found |= {name: config.get(name) for name in ("seed_everything", "test_after_fit")}
    if found.get("data.validation") == "holdout":  # validated on the test set, a run does not depend on the rule
        found["best_of_ties"] = config.get("best_of_ties", "first") or "last"
    return found


def _edited(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between a run's configuration and the one that its files give now, with both values."""
    then, now = _settings(before), _settings(after)
    found = {}
    for name in dict.fromkeys((*then, *now)):
        # Options of a whole block that only one names came with another version, those within a class do not.
        is_new = name not in then or name not in now
        if is_new and (name.count(".") < 2 or not says_something(name, {**now, **then}[name])):
            continue
        if name == "seed_everything" and isinstance(now[name], bool):
            continue  # each run draws its own seed
        if then.get(name) != now.get(name):
            found[name] = then.get(name), now.get(name)
    return found


def planned_config(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The configuration of the arguments of a fit as its parser reads them; None if it refuses them."""
    from plif_lightning.cli.lightning import place_absolutely, run  # which loads Lightning

    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            run(expand([*arguments, "--print_config"]))
    except UserError:
        return None  # the run reports it
    except SystemExit as stop:
        if stop.code not in (0, None):
            return None
    config: dict[str, Any] = yaml.safe_load(out.getvalue())
    if not isinstance(config.get("data"), dict):
        return None  # nor does it run without a data set
    place_absolutely(config["data"]["init_args"])  # as in the configuration that a run keeps
    return config


def files_of(arguments: Sequence[str]) -> tuple[Path, ...]:
    """The configurations that arguments name, as far as they are files."""
    found = []
    for name, value in options(arguments):
        if name == "config":
            with contextlib.suppress(UserError):  # the run reports it
                found.append(configs.resolve(value))
    return tuple(found)


def edited_since(files: Iterable[Path], moment: float) -> list[Path]:
    """Files that were written or put in their place after a moment [s since 1970]."""
    found = []
    for path in dict.fromkeys(files):
        with contextlib.suppress(OSError):
            status = path.stat()
            if max(status.st_mtime, status.st_ctime) > moment:
                found.append(path)
    return found


def require_unedited(made: Iterable[tuple[Job, Run]]) -> None:
    """Refuse runs of configurations that say something else by now: they would stand beside others of the same name.

    Of the runs that name the same files only the one that was started first is compared: it saw them earliest.

    Args:
        made: planned runs, each with what lies in its folder.

    Raises:
        UserError: a run has other settings than its files now give.
    """
    first: dict[tuple[Path, ...], tuple[Job, Run]] = {}
    for job, run in made:
        files = files_of(job.arguments)
        if run.config and run.started and (files not in first or run.started < first[files][1].started):
            first[files] = job, run
    for files, (job, run) in first.items():
        edited = edited_since(files, run.started)
        config = planned_config(job.arguments) if edited else None
        if config is None:
            continue
        if found := _edited(run.config, config):
            differ = "; ".join(f"{name} was {then}, is {now}" for name, (then, now) in found.items())
            raise UserError(
                f"{job.folder.path} holds a run with other settings than {' and '.join(map(str, edited))} gives now: "
                f"{differ}. Pass another --runs, or move that folder away."
            )


class Watched:
    """The configurations that runs name, while they are made.

    Args:
        arguments: those of each run.
    """

    def __init__(self, arguments: Iterable[Sequence[str]]) -> None:
        files = dict.fromkeys(path for of_one in arguments for path in files_of(of_one))
        self._before = {path: _content(path) for path in files}

    def warning(self) -> str:
        """A sentence on files that were edited meanwhile; empty if none was."""
        edited = [str(path) for path, before in self._before.items() if _content(path) != before]
        if not edited:
            return ""
        return (
            f"{' and '.join(edited)} changed while runs were made: those that began later have other settings (see "
            "their config.yaml)."
        )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
