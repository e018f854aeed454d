"""A W&B sweep file: the parameters, the search and the command that it says."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plif_lightning.cli.parser import parsed_yaml, take
from plif_lightning.errors import UserError

METHODS = ("grid", "random", "bayes")
ARGS = "${args}"
_KNOWN = {
    *("program", "method", "project", "entity", "name", "description", "metric", "command", "parameters"),
    *("run_cap", "early_terminate"),
}


@dataclass(frozen=True)
class Sweep:
    """A W&B sweep file.

    Attributes:
        name: name of the sweep.
        arguments: arguments of main.py shared by all runs, with ARGS in place of a run's arguments.
        parameters: specification of each parameter by its dotted name, as in the file: `value`, `values`, `min`...
        metric: metric that ranks the runs.
        maximise: True if the highest value is best.
        method: grid, random or bayes.
        run_cap: number of runs of a search; None if the file says none.
        early_terminate: settings of Optuna's hyperband pruner in W&B's words; None without.
    """

    name: str
    arguments: list[str]
    parameters: dict[str, dict[str, Any]]
    metric: str = "val/acc"
    maximise: bool = True
    method: str = "grid"
    run_cap: int | None = None
    early_terminate: dict[str, Any] | None = None

    def points(self) -> list[dict[str, Any]]:
        """Return all combinations of values of a grid; the last parameter varies fastest."""
        values = [spec.get("values", [spec.get("value")]) for spec in self.parameters.values()]
        return [dict(zip(self.parameters, point, strict=True)) for point in itertools.product(*values)]


def read_sweep(path: Path, changes: Sequence[str] = ()) -> Sweep:
    """Read a W&B sweep file.

    Arguments after the program in its `command` are kept, without W&B's configuration.

    Args:
        path: the file.
        changes: parameters that are replaced or added, each as `KEY=VALUE,VALUE`.

    Raises:
        UserError: the file is not a sweep file, or needs W&B's agent.
    """
    loaded = parsed_yaml(path.read_text("utf-8"), f"the sweep file {path}")
    if not isinstance(loaded, dict) or not isinstance(loaded.get("parameters"), dict):
        raise UserError(f"{path} is not a sweep file: it has no `parameters`. See configs/sweeps/table4.yaml.")
    parameters = _flat(loaded["parameters"])
    for change in changes:
        key, _, values = change.partition("=")
        parameters[key] = {"values": parsed_yaml(f"[{values}]", f"--grid {change}")}
    metric = loaded.get("metric") or {"name": Sweep.metric, "goal": "maximize"}
    if (problem := _problem_of(loaded, parameters, metric)) is not None:
        raise UserError(f"{path}: {problem}.")
    return Sweep(
        str(loaded.get("name") or path.stem),
        _arguments(loaded.get("command") or ["${program}", "fit", ARGS], path),
        parameters,
        str(metric["name"]),
        metric["goal"] == "maximize",
        loaded["method"],
        loaded.get("run_cap"),
        loaded.get("early_terminate"),
    )


def _problem_of(loaded: dict[str, Any], parameters: dict[str, Any], metric: dict[str, Any]) -> str | None:
    """The part of a sweep file that `sweep` cannot run; None if it can run all of it."""
    method, unknown = loaded.get("method"), sorted(map(str, loaded.keys() - _KNOWN))
    if method not in METHODS or unknown:
        unsupported = f"the key {', '.join(unknown)}" if unknown else f"the method {method!r}"
        return f"{unsupported} is not known to `sweep`: use `wandb agent`, or {', '.join(METHODS)}"
    wrong = [key for key, spec in parameters.items() if not spec.get("values") and "value" not in spec]
    if method == "grid" and wrong:
        return f"parameter {wrong[0]} must have `value` or `values` in a grid"
    if not metric.get("name") or metric.get("goal") not in ("maximize", "minimize"):
        return "metric needs a name, and a goal: maximize or minimize"
    return None


def _flat(parameters: dict[str, Any], above: str = "") -> dict[str, dict[str, Any]]:
    """Parameters by their dotted names: W&B nests a block in another `parameters`."""
    flat: dict[str, dict[str, Any]] = {}
    for key, spec in parameters.items():
        if isinstance(spec, dict) and spec.keys() == {"parameters"}:
            flat |= _flat(spec["parameters"], f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = spec if isinstance(spec, dict) else {"value": spec}
    return flat


def _arguments(command: Sequence[Any], path: Path) -> list[str]:
    """Return the arguments after the program in a W&B `command`, without W&B's options.

    That is `--config wandb.yaml`, and `--run_folder` by W&B's id of the run.
    """
    parts = [str(word) for word in command]
    if "${program}" not in parts or parts.count(ARGS) != 1:
        raise UserError(f"command of {path} must have ${{program}} and ${{args}} once: use `wandb agent` for others.")
    arguments: list[str] = []
    for argument in parts[parts.index("${program}") + 1 :]:
        if Path(argument.removeprefix("--config=")).name != "wandb.yaml":
            arguments.append(argument)
        elif arguments and arguments[-1] == "--config":
            arguments.pop()
    return take(arguments, "--run_folder")[1]
