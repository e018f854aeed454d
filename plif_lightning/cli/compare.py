"""Compare a resumed run or an evaluation with the run that wrote its checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plif_lightning.cli.start import Origin, Start, finished_in_words, origin_of
from plif_lightning.errors import CheckpointError, Stopped, UserError
from plif_lightning.runs.code import PACKAGE, difference, hashes_of, sources_of
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.record import read_record
from plif_lightning.runs.settings import Role, is_of, role, setting_in
from plif_lightning.runtime.files import relative

_log = logging.getLogger(__name__)
_LIMITS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")


def compare(start: Start, origin: Origin, parsed: dict[str, Any]) -> list[str]:
    """Compare the parsed configuration of a resumed fit or an evaluation with that of its checkpoint.

    Args:
        start: of the command.
        origin: of the checkpoint.
        parsed: configuration of the command, as plain values.

    Returns:
        Settings of an evaluation that affect its accuracy and differ from the run's.

    Raises:
        CheckpointError: they differ in a setting on which the checkpoint's weights, split or next batches depend.
        Stopped: the run is finished already.
    """
    stored, old, new = origin.config, origin.settings, Identity.of(parsed)
    if stored is None or old is None:
        return []
    changed = [name for name, *_ in new.compared_with(Identity(old))]
    if stored.get("seed_everything") != parsed.get("seed_everything"):
        changed.append("seed_everything")
    if start.command == "fit":
        refused = [name for name in changed if not role(name) & Role.LENGTH]
    else:
        changed, refused = _of_evaluation(changed, stored, parsed, new)

    def differing(names: Sequence[str]) -> str:
        values = ((name, _value(old, stored, name), _value(new.settings, parsed, name)) for name in names)
        return "; ".join(f"{name} is {there} there, {here} here" for name, there, here in values)

    if refused:
        new_run = (
            ", or start a new run: with --config and another --run_folder, and with --ckpt_path if it is to begin from "
            "these weights"
        )
        raise CheckpointError(
            f"the checkpoint belongs to other settings: {differing(refused)}. Leave them out"
            f"{new_run if start.command == 'fit' else ''}."
        )
    if edited := _code_difference(start.folder, parsed):
        _refuse_or_name(edited, start, parsed)
    folder = start.folder
    if start.command == "fit" and folder and _is_finished(folder, origin, parsed, changed):
        if others := [name for name in changed if name not in _LIMITS]:
            raise CheckpointError(f"the run is finished: {differing(others)}. Pass another --run_folder.")
        raise Stopped(0, finished_in_words(folder))
    return [*changed, "code"] if edited else changed


def _of_evaluation(
    changed: Sequence[str], stored: Mapping[str, Any], parsed: Mapping[str, Any], new: Identity
) -> tuple[list[str], list[str]]:
    """Of changed settings, those that affect an accuracy, and of these the refused ones: a network's, a split's."""
    changed = [name for name in changed if not role(name) & Role.TRAINING]
    if "trainer.limit_test_batches" not in new.settings:  # testing all samples is always a valid test
        changed = [name for name in changed if name != "trainer.limit_test_batches"]
    of_data = ("data.class_path", "data.root")
    same_data = all(setting_in(stored, name) == setting_in(parsed, name) for name in of_data)
    of_network = {name for name in changed if is_of(name, "task", "model")}
    return changed, [name for name in changed if name in of_network or (same_data and role(name) & Role.SPLIT)]


def _refuse_or_name(edited: str, start: Start, parsed: Mapping[str, Any]) -> None:
    """Refuse to resume with edited code that was not accepted; an evaluation names where the run's is."""
    if start.command == "fit" and not parsed.get("accept_edited_code"):
        raise CheckpointError(
            f"the code of the run was edited since:\n{edited}\nUndo it, start a new run in another --run_folder, "
            "or, where network and equations are as before, resume with --accept_edited_code true: the record says "
            "so, and the run is averaged only with runs that were resumed alike."
        )
    if start.command != "fit":
        code_folder = relative(start.folder.source("").parent) if start.folder else ""
        _log.warning("The code of the run was edited since; as it was, it is in %s:\n%s", code_folder, edited)


def _code_difference(folder: RunFolder | None, config: Mapping[str, Any]) -> str:
    """How the user's code differs from that of a run; empty if it does not, or if there is no run."""
    if folder is None:
        return ""
    now = sources_of(config)
    here = Identity({}, code=hashes_of(now))
    # Changed files of this package are recorded, as another commit of it would be.
    edited = [name for name in here.edited_code(Identity.of_record(read_record(folder))) if name != PACKAGE]
    paths = {name: folder.source(name) for name in edited}
    then = {name: path.read_text("utf-8") for name, path in paths.items() if path.is_file()}
    return difference(then, {name: now[name] for name in edited if name in now})


def _value(of: Mapping[str, Any], config: Mapping[str, Any], name: str) -> str:
    return repr(of[name] if name in of else setting_in(config, name))


def require_length(path: Path, parsed: Mapping[str, Any]) -> None:
    """Refuse a new run that would train nothing, because Lightning counts on from the checkpoint that it begins from.

    Args:
        path: of the checkpoint.
        parsed: configuration of the command, as plain values.

    Raises:
        UserError: the checkpoint has as many epochs or steps as the run is to have.
    """
    for name, n in _reached(origin_of(path), parsed).items():
        unit = name.removeprefix("trainer.max_")
        raise UserError(f"{path} has {n} {unit} already, which {name} counts, too: pass --{name} {n + 1} or more.")


def _reached(origin: Origin, parsed: Mapping[str, Any]) -> dict[str, int]:
    """The epochs and steps of a checkpoint that are not below the length of a run, by the setting of that length."""
    done = {"trainer.max_epochs": origin.epochs, "trainer.max_steps": origin.step}
    limits = {name: setting_in(parsed, name) for name in done}
    return {name: n for name, n in done.items() if limits[name] is not None and 0 <= limits[name] <= n}


def _is_finished(folder: RunFolder, origin: Origin, parsed: Mapping[str, Any], changed: Sequence[str]) -> bool:
    """True if a run is finished, and its length is not to grow.

    Raises:
        CheckpointError: the run has passed the length, or its callbacks depend on it.
    """
    assert origin.config is not None
    stored, reached = origin.config, _reached(origin, parsed)
    limits = {name: setting_in(parsed, name) for name in _LIMITS}
    for name, n in reached.items():
        if limits[name] < n:
            raise CheckpointError(
                f"the run has {n} {name.removeprefix('trainer.max_')} already, and {name} is {limits[name]}: leave it "
                "out, or start a new run in another folder."
            )
    is_same = all(setting_in(stored, name) == value for name, value in limits.items())
    if read_record(folder).ended is not None and (reached or is_same):
        return True
    if "trainer.max_epochs" in changed and "StochasticWeightAveraging" in str(stored["trainer"]["callbacks"]):
        raise CheckpointError(
            "trainer.max_epochs cannot be changed: StochasticWeightAveraging begins at a share of it. Leave it out, or "
            "start a new run in another folder."
        )
    return False
