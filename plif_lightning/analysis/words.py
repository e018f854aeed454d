"""Runs, settings, their differences and means in words: where values become text, which nothing reads back."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from plif_lightning.analysis import paper
from plif_lightning.analysis.paper import Setting
from plif_lightning.analysis.select import (
    Group,
    data_title,
    distinguishing,
    is_limited,
    latest,
    names_of,
    samples_of,
    setting_of,
)
from plif_lightning.runs.identity import CODE, Difference
from plif_lightning.runs.run import Run


def neuron(setting: Setting) -> str:
    """`PLIF, tau_0 = 2`; of other neurons `CLIF`, with an initial tau that is not the paper's."""
    tau = "of each layer" if math.isnan(setting.init_tau) else f"= {setting.init_tau:g}"
    of_leaky = {"plif": f"PLIF, tau_0 {tau}", "lif": f"LIF, tau {tau}"}
    name = setting.neuron.upper() if setting.neuron.islower() else setting.neuron
    other = (
        "" if setting.init_tau in (2.0, math.inf) or math.isnan(setting.init_tau) else f", tau = {setting.init_tau:g}"
    )
    return of_leaky.get(setting.neuron, f"{name}{other}")


def numbers(numbers: Iterable[int]) -> str:
    """`3`, or `3 to 5` for different numbers."""
    ordered = sorted({*numbers})
    return " to ".join(map(str, dict.fromkeys((ordered[0], ordered[-1]))))


def protocol_and_length(group: Group) -> tuple[str, str, str]:
    """Protocol, T and number of epochs of a group's runs."""
    return group.protocol, str(group.runs[0].setting("data.time_steps", "")), numbers(group.epochs)


def interval(low: float, high: float, sign: str = "") -> str:
    """`[92.10, 93.05]`; empty where it is unknown. `sign`: `+` for differences."""
    return "" if math.isnan(low) else f"[{low:{sign}z.2f}, {high:{sign}z.2f}]"


def gain(mean: float, low: float, high: float, shared: int, seeds: int) -> str:
    """`+0.51 [+0.20, +0.82]`; empty where it is unknown. `shared`: seeds that both have, of those of the larger."""
    if math.isnan(mean):
        return ""
    of_some = f"({shared} of {seeds} seeds)" if shared < seeds else ""
    return " ".join(filter(None, (f"{mean:+z.2f}", interval(low, high, "+"), of_some)))


def difference(of: Difference) -> str:
    """A setting as a user gives it, without the block that it belongs to: `lr 0.01`, `batch_size 8 instead of 4 after
    step 50`."""
    setting = of.name.split(".", 1)[-1]
    after = "" if of.step is None else f" after step {of.step}"
    if of.name == CODE and of.now:  # modules with the first digits of their hashes
        return f"{setting} {', '.join(f'{name} {str(digest)[:6]}' for name, digest in of.now.items())}{after}"
    return f"{setting} {of.now} instead of {of.before}{after}" if after else f"{setting} {_value(of.now)}"


def changes(run: Run) -> list[str]:
    """What a run changed when it was resumed."""
    return [difference(change) for change in run.identity.changes]


def _value(value: Any) -> str:
    return " and ".join(map(_single_value, value if isinstance(value, list) else [value]))


def _single_value(value: Any) -> str:
    if isinstance(value, Mapping) and "class" not in value:  # of a list of mappings: a group of parameters
        return ", ".join(f"{name} {_single_value(item)}" for name, item in value.items())
    if isinstance(value, Mapping):
        value = value["class"]
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    is_class = re.fullmatch(r"([a-zA-Z_]\w*\.)+[A-Z]\w*", str(value))  # no file such as `weights.json`
    return str(value).rsplit(".", 1)[-1] if is_class else str(value)


def source(run: Run) -> str:
    """Origin of a run's data and number of samples; for a subset also the full number."""
    samples = samples_of(run)
    origin = run.record.data.origin
    parts = [origin] if origin else []
    if samples is not None:
        parts.append(f"{samples[0]:,} / {samples[1]:,} samples")
        of_paper = paper.SAMPLES.get(setting_of(run).data_set)
        if of_paper is not None and samples != of_paper and not run.record.data.is_part:
            parts.append(f"of {of_paper[0]:,} / {of_paper[1]:,}")
    if is_limited(run):
        parts.append("a part of them by the trainer's limits")
    return ", ".join(parts)


_UNFINISHED = {"running": "running", "resumable": "stopped", "failed": "without a checkpoint"}


def why_left_out(run: Run, counted: Mapping[tuple[str, int | str], Run]) -> tuple[str, str]:
    """Why no row averages a run, and what only this run's reason says, in brackets; empty where one does.

    Args:
        run: the run.
        counted: the latest of each seed, see `latest`.
    """
    if run.status in _UNFINISHED:
        return (
            "they have not come to their end (fit --run_folder RUN)",
            f"(epoch {run.epochs}, {_UNFINISHED[run.status]})",
        )
    if run.lacks_test:
        return "their test set was never measured (test --ckpt_path RUN/...)", ""
    if not run.has_result:
        return ("no accuracy was measured" if run.status == "finished" else ""), ""
    later = counted[run.key, run.seed_or_name]
    return ("", "") if later is run else ("a later run, in brackets, has the same settings and seed", f"({later.name})")


def left_out(runs: Sequence[Run]) -> list[str]:
    """Name the runs that no row averages, and why."""
    counted, names_by_reason = latest(runs), defaultdict[str, list[str]](list)
    for run in runs:
        reason, of_run = why_left_out(run, counted)
        names_by_reason[reason].append(f"{run.name} {of_run}".strip())
    return [f"Left out, because {why}: {', '.join(names)}." for why, names in names_by_reason.items() if why]


def notes_on_groups(found: Sequence[Group]) -> list[str]:
    """Notes on groups whose runs differ in commit, versions or machine, or that differ in code."""
    alike: dict[tuple[str, tuple[str, ...]], list[tuple[Group, dict[str, str]]]] = defaultdict(list)
    for group in found:
        for name, plural in (("commit", "commits"), ("versions", "versions"), ("machine", "machines")):
            run_of = {run.surroundings(name) or "unknown": run.name for run in group.runs}
            if len(run_of) > 1:
                alike[plural, tuple(sorted(run_of))].append((group, run_of))
    notes = []
    for (plural, values), rows in alike.items():
        averaged, which = f"The runs of {len(rows)} rows", "; ".join(values)
        if len(rows) == 1:
            group, run_of = rows[0]
            averaged, which = ", ".join(names_of(group)), "; ".join(f"{value} ({run})" for value, run in run_of.items())
        notes.append(f"{averaged} are averaged over several {plural}: {which}.")
    codes = [group.runs[0].identity.code for group in found]
    if sum(map(bool, codes)) > 1:
        notes.append("How code differs: runs --compare RUN RUN.")
    return notes


class Labels(NamedTuple):
    """Names of the curves of runs.

    Attributes:
        each: for every run its neuron, its pooling unless it is max, and the settings that not all runs share.
        shared: settings that all of them share beyond their configuration; empty for a single run.
    """

    each: list[str]
    shared: str


def labels(runs: Sequence[Run]) -> Labels:
    """Names for the curves of some runs of a data set, without shared settings."""
    settings = [{(*one.fact, repr(one.now)): difference(one) for one in found} for found in distinguishing(runs)]
    shared = set.intersection(*map(set, settings)) if len(runs) > 1 else set()
    names = []
    for run, of_run in zip(runs, settings, strict=True):
        setting = setting_of(run)
        pooling = "" if setting.pooling in ("max", "?") else f"{setting.pooling}-pooling"
        own = (text for fact, text in of_run.items() if fact not in shared)
        names.append(", ".join(text for text in (neuron(setting), pooling, *own) if text))
    return Labels(names, ", ".join(text for fact, text in settings[0].items() if fact in shared))


def labels_of(averaged: Sequence[Group]) -> tuple[list[str], list[str]]:
    """A label for each group, and a note for each data set with the settings that its groups share and labels leave
    out."""
    by_data: dict[str, list[Group]] = defaultdict(list)
    for group in averaged:
        by_data[data_title(group.runs[0])].append(group)
    label_of: dict[int, str] = {}
    notes = []
    for title, of_data in by_data.items():
        named = labels([group.runs[0] for group in of_data])
        label_of |= {id(group): label for group, label in zip(of_data, named.each, strict=True)}
        notes += [f"All of {title}: {named.shared}."] if named.shared else []
    return [label_of[id(group)] for group in averaged], notes
