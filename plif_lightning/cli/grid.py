"""Read a W&B sweep file as a grid of runs or as a search, and name each run and its arguments."""

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plif_lightning import configs
from plif_lightning.cli.arguments import parsed_yaml
from plif_lightning.cli.checkpoint import content_of
from plif_lightning.errors import UserError, require_count
from plif_lightning.runs.process import options
from plif_lightning.runs.settings import dotted
from plif_lightning.structure import Numbers

_PROGRAMS = ("main.py", "plif-lightning")
_KNOWN = {"program", "method", "project", "entity", "name", "description", "metric", "command", "parameters"}
_KNOWN_TO_SEARCHES = {"run_cap", "early_terminate"}
METHODS = ("grid", "random", "bayes")
ARGS = "${args}"
# Longest name of a run's folder [bytes]: file systems end at 255, and there is a log of the same name.
_LONGEST = 240


@dataclass(frozen=True)
class Sweep:
    """A grid of runs, or a search.

    Attributes:
        name: name of the sweep.
        arguments: arguments of main.py shared by all runs, with ARGS where those of a run belong.
        parameters: name and values of each dimension of the grid; empty for a search.
        metric: metric that ranks the runs.
        maximise: True if the highest value is best.
        method: grid, random or bayes.
        space: name and specification of each parameter of a search, as in W&B's file.
        run_cap: number of runs of a search; None if the file says none.
        early_terminate: hyperband's settings, as in W&B's file; None without.
        target: value of the metric at which a search begins no more runs; None without.
    """

    name: str
    arguments: list[str]
    parameters: dict[str, list[Any]]
    metric: str = "val/acc"
    maximise: bool = True
    method: str = "grid"
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    run_cap: int | None = None
    early_terminate: dict[str, Any] | None = None
    target: float | None = None

    def points(self) -> list[dict[str, Any]]:
        """Return all combinations of values; the last parameter varies fastest."""
        return [
            dict(zip(self.parameters, values, strict=True)) for values in itertools.product(*self.parameters.values())
        ]


def read_sweep(path: Path) -> Sweep:
    """Read a W&B sweep file.

    Arguments after the program in its `command` are kept, without W&B's own configuration.

    Raises:
        UserError: the file is not a sweep file, or needs W&B's own agent.
    """
    loaded = _load(path)
    name = str(loaded.get("name") or path.stem)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"name of {path} must be that of a folder in runs/, got {name!r}.")
    given = _flat(loaded["parameters"])
    metric, maximise, target = _ranking(path, loaded.get("metric") or {})
    arguments = _arguments(path, loaded.get("command"))
    if loaded["method"] == "grid":
        if target is not None:
            raise UserError(f"metric of {path} has a target, which method grid does not know here: every run is made.")
        parameters = {key: _values(path, key, values) for key, values in given.items()}
        return Sweep(name, arguments, parameters, metric, maximise)
    cap = loaded.get("run_cap")
    if cap is not None:
        require_count(f"run_cap of {path}", cap)
    space = {key: spec if isinstance(spec, dict) else {"value": spec} for key, spec in given.items()}
    early = loaded.get("early_terminate")
    return Sweep(name, arguments, {}, metric, maximise, loaded["method"], space, cap, early, target)


def _flat(parameters: dict[Any, Any], above: str = "") -> dict[str, Any]:
    """Parameters by their dotted names: W&B nests those of a block in its own `parameters`."""
    found: dict[str, Any] = {}
    for key, given in parameters.items():
        if isinstance(given, dict) and given.keys() == {"parameters"} and isinstance(given["parameters"], dict):
            found |= _flat(given["parameters"], f"{above}{key}.")
        else:
            found[f"{above}{key}"] = given
    return found


def _load(path: Path) -> dict[str, Any]:
    """Load a sweep file; refuse other files, and sweeps that need W&B's agent."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"the sweep file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the sweep file {path} is not YAML: {error}.") from error
    loaded = parsed_yaml(text, f"the sweep file {path}")
    if not isinstance(loaded, dict) or not isinstance(loaded.get("parameters"), dict) or not loaded["parameters"]:
        raise UserError(f"{path} is not a sweep file: it has no `parameters`. See configs/sweeps/table4.yaml.")
    if loaded.get("method") not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, got {loaded.get('method')!r} in {path}.")
    known = _KNOWN if loaded["method"] == "grid" else _KNOWN | _KNOWN_TO_SEARCHES
    if unknown := sorted(map(str, loaded.keys() - known)):
        raise UserError(
            f"{path} has {', '.join(unknown)}, which method {loaded['method']} does not know here: use `wandb sweep` "
            "for it."
        )
    program = loaded.get("program", _PROGRAMS[0])
    if Path(str(program)).name not in _PROGRAMS:
        raise UserError(f"{path} has program {program}, but `sweep` runs {_PROGRAMS[0]}: use `wandb agent` for it.")
    return loaded


def _values(path: Path, key: Any, given: Any) -> list[Any]:
    """Return the values of a parameter."""
    form = {*given} if isinstance(given, dict) else set()
    if form == {"value"}:
        return [given["value"]]
    if form != {"values"} or not isinstance(given["values"], list):
        raise UserError(f"parameter {key} of {path} must have `value` or a list of `values`, got {given!r}.")
    if not given["values"]:
        raise UserError(f"parameter {key} of {path} has no values.")
    return given["values"]


def _ranking(path: Path, metric: Any) -> tuple[str, bool, float | None]:
    """Return the metric that ranks the runs, True if its highest value is best, and its target."""
    if metric == {}:
        return Sweep.metric, Sweep.maximise, None
    is_whole = isinstance(metric, dict) and "name" in metric
    if not is_whole or metric.get("goal", "minimize") not in ("maximize", "minimize"):
        raise UserError(f"metric of {path} must have a name, and a goal, maximize or minimize; got {metric!r}.")
    if "goal" not in metric and str(metric["name"]).endswith("acc"):
        raise UserError(
            f"metric {metric['name']} of {path} has no goal, and W&B's default is minimize: write goal: maximize."
        )
    target = metric.get("target")
    if target is not None and (not isinstance(target, (int, float)) or isinstance(target, bool)):
        raise UserError(f"metric of {path} must have a number as target, got {target!r}.")
    return str(metric["name"]), metric.get("goal") == "maximize", target


def _arguments(path: Path, command: Any) -> list[str]:
    """Return the arguments after the program in a W&B `command`, ARGS among them; `fit` and ARGS without one."""
    if command is None:
        return ["fit", ARGS]
    parts = [str(part) for part in command] if isinstance(command, list) else []
    rest = parts[parts.index("${program}") + 1 :] if "${program}" in parts else []
    if [part for part in rest if part.startswith("${")] != [ARGS]:
        raise UserError(
            f"command of {path} must be a list with ${{program}} and, after it, ${{args}}, and nothing else in "
            "braces there: use `wandb agent` for other forms."
        )
    return _without_wandb(rest)


def _without_wandb(arguments: Sequence[str]) -> list[str]:
    """Drop `--config wandb.yaml`, which logs to W&B."""
    kept: list[str] = []
    for argument in arguments:
        if Path(argument.removeprefix("--config=")).name != "wandb.yaml":
            kept.append(argument)
        elif kept and kept[-1] in ("--config", "-c"):
            kept.pop()
    return kept


def replaced(sweep: Sweep, changes: Sequence[str]) -> Sweep:
    """Return the sweep with parameters replaced or added, each given as `KEY=VALUE,VALUE`.

    Raises:
        UserError: a change has another form.
    """
    parameters = dict(sweep.parameters)
    for change in changes:
        key, _, values = change.partition("=")
        if not key or not values:
            raise UserError(f"--grid must be KEY=VALUE,VALUE,..., got {change!r}.")
        parsed = parsed_yaml(f"[{values}]", f"--grid {change}")
        if not parsed or (key == "config" and any(value in ("", None) for value in parsed)):
            raise UserError(f"--grid {change!r} gives {key} no value.")
        parameters[key] = parsed
    return replace(sweep, parameters=parameters)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, list, dict)) or value is None else str(value)


def _config_first(point: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return names and values of a point, its configuration first: later arguments override it."""
    return sorted(point.items(), key=lambda item: item[0] != "config")


def run_name(point: dict[str, Any]) -> str:
    """Return the folder name of a run: the name of its configuration, then all other parameters."""
    parts = [text for key, value in _config_first(point) for text in _name_parts(key, value)]
    name = "_".join(re.sub(r"[^\w.+-]+", "-", text) for text in parts)
    if len(name.encode()) <= _LONGEST:
        return name
    told_apart = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{name.encode()[: _LONGEST - 9].decode(errors='ignore')}-{told_apart}"


def _name_parts(key: str, value: Any) -> list[str]:
    """The parts of a run's name for a parameter: one, or for a mapping such as `{neuron: lif}` one for each entry."""
    if key == "config":
        return [Path(str(value)).stem]
    if isinstance(value, dict):
        return [part for name, inner in value.items() for part in _name_parts(str(name), inner)]
    return [f"{key.rsplit('.', 1)[-1]}-{_text(value)}"]


def _file(value: str) -> str:
    """Return the absolute path of a configuration, so that the sweep can be repeated from another folder."""
    try:
        return str(configs.resolve(value).absolute())
    except UserError:  # the run reports it, without stopping the other runs
        return value


def point_arguments(sweep: Sweep, point: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return the arguments of main.py for one run; overrides come last, so they win."""
    given = [f"--{key}={_file(str(value)) if key == 'config' else _text(value)}" for key, value in _config_first(point)]
    place = sweep.arguments.index(ARGS)
    return [*sweep.arguments[:place], *given, *sweep.arguments[place + 1 :], *overrides]


def _settings_of(name: str, value: Any) -> dict[str, Any]:
    """The settings that an argument gives, by dotted names: of a mapping, such as `{neuron: lif}`, those in it."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "null")):
        with contextlib.suppress(UserError):
            value = parsed_yaml(value, name)
    return {one.removesuffix(".class_path"): given for one, given in dotted(value, name.replace(".init_args", ""))}


def _replaces(name: str, value: Any, setting: str) -> bool:
    """True if setting `name`, given `value`, overrides `setting`.

    It overrides the same one, any below it if the value is null, and the six numbers if it is a structure.
    """
    if name == "model.structure" and value is not None:
        return setting in (name, *(f"model.{number}" for number in Numbers._fields))
    return name == setting or (value is None and setting.startswith(f"{name}."))


def require_no_conflict(sweep: Sweep, overrides: Sequence[str]) -> None:
    """Refuse a sweep in which something else gives a value in the place of a parameter's: names would lie.

    Args:
        sweep: a grid or a search.
        overrides: arguments of main.py for all runs.

    Raises:
        UserError: two parameters give the same setting; or the end of the command, or `overrides`, gives a
            parameter's.
    """
    values = {**sweep.parameters, **{key: spec.get("values", [spec.get("value")]) for key, spec in sweep.space.items()}}
    given: dict[str, str] = {}  # setting: parameter
    for key, of_key in values.items():
        if key == "config":
            continue  # other parameters are meant to change it
        names = set().union(*(_settings_of(key, value) for value in of_key))
        if both := sorted(names & given.keys()):
            raise UserError(
                f"the parameters {given[both[0]]} and {key} of {sweep.name} both give {both[0]}, and the second would "
                "take the place of the first: leave one out."
            )
        given |= dict.fromkeys(names, key)
    # A configuration behind those of the parameter must not replace the data set of each.
    if any("data" in _settings_of("", content_of(str(value))) for value in values.get("config", ())):
        given.setdefault("data", "config")
    behind = sweep.arguments[sweep.arguments.index(ARGS) + 1 :]
    for arguments, where in ((behind, f"behind {ARGS} in the command of {sweep.name}"), (overrides, "after --")):
        for option, text in options(["fit", *arguments]):
            others = _settings_of("", content_of(text)) if option == "config" else _settings_of(option, text)
            for setting, key in given.items():
                if key == "config" and option != "config":
                    continue  # `--data ImageFolder` may replace the data set of every configuration
                if any(_replaces(name, value, setting) for name, value in others.items()):
                    raise UserError(
                        f"{f'--{option} {text}'.rstrip()}, {where}, would take the place of every value of the "
                        f"parameter {key}: leave it out, or take the parameter out of the sweep."
                    )


def share(text: str, points: int) -> slice:
    """Return the points that `--index I` (only the I-th) or `--index I/N` (every N-th from the I-th) selects.

    Raises:
        UserError: the text has another form, or I is out of range.
    """
    found = re.fullmatch(r"(\d+)(?:/(\d+))?", text)
    if not found:
        raise UserError(f"--index must be I, or I/N for every N-th run from the I-th, counted from 0, got {text!r}.")
    index, step = int(found[1]), int(found[2] or points)
    if not step:
        raise UserError(f"--index must be I/N with at least one share, got {text}.")
    if index >= step:
        raise UserError(f"--index must be from 0 to {step - 1} for {step} shares, got {text}.")
    return slice(index, None, step)  # with more shares than runs, the last ones are empty
