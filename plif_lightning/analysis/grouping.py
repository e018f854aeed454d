"""Group runs that differ only in their seed, and label the settings that distinguish the groups."""

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import yaml
from scipy import special

from plif_lightning import configs
from plif_lightning.analysis import paper
from plif_lightning.analysis.paper import Setting
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import Role, defaults, differences, role, setting_in, settings
from plif_lightning.structure import Numbers
from plif_lightning.structure.layers import neurons_in

_AFTER = " after step "  # in the names of changes on resuming
NUMBERS = {f"model.{name}" for name in Numbers._fields}


def real(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def data_title(run: Run) -> str:
    """Display name of the data set: the paper's, or the run's, marked where it would read like the paper's."""
    title = str(run.section("data").get("title") or run.data_set)
    distinct = f"{title} ({run.data_set})" if title in (*paper.TITLES, *paper.TITLES.values()) else title
    sequence = run.setting("data.sequence")
    return paper.TITLES.get(run.data_set, distinct) + (f" by {sequence}" if sequence else "")


def setting_of(run: Run) -> Setting:
    """Data set, neuron, tau and pooling: the columns of the paper's tables. An IF neuron has no tau."""
    is_papers = run.data_set in paper.TITLES and not run.setting("data.sequence")
    data_set, run_settings = run.data_set if is_papers else data_title(run), run.settings
    if "model.network" in run_settings:
        return Setting(data_set, str(run_settings["model.network"]), math.nan, "?")
    neuron = str(run_settings.get("model.neuron", "?" if run.record.get("of_another_program") else "plif"))
    if arguments := [
        f"{n.split('.', 2)[2]}={value}" for n, value in run_settings.items() if n.startswith("model.neuron.")
    ]:
        neuron = f"{neuron}({', '.join(arguments)})"  # CLIF(k=0.6)
    if run.structure is not None:
        names = dict.fromkeys(
            neuron if neurons.name == "PLIF" else neurons.name for neurons in neurons_in(run.structure.layers)
        )
        neuron = "+".join(names) or "no neurons"
    drawn = setting_in(run.config, "model.init_tau")
    if isinstance(drawn, Mapping):
        (kind, arguments), *_ = drawn.items()
        neuron = f"{neuron.upper()}, tau drawn from {kind}({', '.join(f'{argument:g}' for argument in arguments)})"
    tau = math.inf if neuron == "if" else real(run_settings.get("model.init_tau", 2.0))
    return Setting(data_set, neuron, tau, str(run_settings.get("model.pooling", "max")))


def has_tau_per_layer(run: Run) -> bool:
    """True if a layer of the structure sets its initial tau."""
    layers = () if run.structure is None else run.structure.layers
    return any("init_tau" in dict(neurons.arguments) for neurons in neurons_in(layers))


def neuron_in_words(setting: Setting) -> str:
    """`PLIF, tau_0 = 2`; of other neurons `CLIF`, with an initial tau that is not the paper's."""
    tau = {"plif": f"PLIF, tau_0 = {setting.init_tau:g}", "lif": f"LIF, tau = {setting.init_tau:g}"}
    name = setting.neuron.upper() if setting.neuron.islower() else setting.neuron
    other = (
        "" if setting.init_tau in (2.0, math.inf) or math.isnan(setting.init_tau) else f", tau = {setting.init_tau:g}"
    )
    return tau.get(setting.neuron, f"{name}{other}")


def is_limited(run: Run) -> bool:
    """True if the Trainer limited a run to a part of its data."""
    return any(name.startswith("trainer.limit_") for name in run.settings)


# --- runs that differ in their seed alone


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        setting: columns of the paper's tables.
        runs: the latest of each seed.
        replaced: finished runs of the same seeds that were begun earlier.
        accuracy: their mean [%].
        low: end of the 95 % interval [%].
        high: the other end.
    """

    setting: Setting
    runs: list[Run]
    replaced: list[Run]
    accuracy: float
    low: float
    high: float

    @property
    def protocol(self) -> str:
        return self.runs[0].protocol

    @property
    def epochs(self) -> str:
        """Number of epochs: `9 to 12` where seeds ended after different ones."""
        return numbers_in_words([run.epochs for run in self.runs])

    @property
    def has_all_samples(self) -> bool:
        """True if the runs saw all of the paper's data set."""
        run = self.runs[0]
        return samples_of(run) == paper.SAMPLES.get(self.setting.data_set) and not is_limited(run)

    @property
    def has_shipped_settings(self) -> bool:
        """True if all settings without a column are as shipped."""
        return not differs_from_shipped(self.runs[0])


def groups(runs: Sequence[Run]) -> list[Group]:
    """Finished runs, grouped by key; the latest run of each seed."""
    averaged = []
    for alike in by_key(run for run in runs if run.has_result):
        of_seeds = latest_of_each_seed(alike)
        shares = [run.accuracy for run in of_seeds if run.accuracy is not None]
        low, high = interval(shares, None if is_limited(of_seeds[0]) else of_seeds[0].tested_samples)
        mean = 100 * statistics.fmean(shares)
        replaced = [run for run in alike if run not in of_seeds]
        ends = 100 * max(low, 0.0), 100 * min(high, 1.0)
        averaged.append(Group(setting_of(of_seeds[0]), of_seeds, replaced, mean, *ends))
    return averaged


def names_of(group: Group | None) -> list[str]:
    """Folders of the runs of a group."""
    return [] if group is None else [run.name for run in group.runs]


def notes_on_groups(found: Sequence[Group]) -> list[str]:
    """Notes on groups whose runs differ in commit, versions or machine, or that leave out earlier runs of a seed."""
    alike: dict[tuple[str, tuple[str, ...]], list[tuple[Group, dict[str, str]]]] = defaultdict(list)
    for group in found:
        for name, plural in (("commit", "commits"), ("versions", "versions"), ("machine", "machines")):
            run_of = {str(run.section("surroundings").get(name, "unknown")): run.name for run in group.runs}
            if len(run_of) > 1:
                alike[plural, tuple(sorted(run_of))].append((group, run_of))
    notes = []
    for (plural, values), rows in alike.items():
        averaged, which = f"The runs of {len(rows)} rows", "; ".join(values)
        if len(rows) == 1:
            group, run_of = rows[0]
            averaged, which = ", ".join(names_of(group)), "; ".join(f"{value} ({run})" for value, run in run_of.items())
        notes.append(f"{averaged} are averaged over several {plural}: {which}.")
    if left_out := [run.name for group in found for run in group.replaced]:
        notes.append(f"Left out, because a later run has the same settings and seed: {', '.join(left_out)}.")
    return notes


def by_key(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs with equal keys together."""
    by_hash: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_hash[run.key].append(run)
    return [*by_hash.values()]


def latest_of_each_seed(runs: Sequence[Run]) -> list[Run]:
    """The run of each seed that was begun last; runs without a seed all count."""
    latest: dict[tuple[str, int], Run] = {}
    for i, run in enumerate(sorted(runs, key=lambda run: run.started)):
        latest[("run", i) if run.seed is None else ("seed", run.seed)] = run
    chosen = set(map(id, latest.values()))
    return [run for run in runs if id(run) in chosen]


def interval(accuracies: Sequence[float], tested: int | None) -> tuple[float, float]:
    """The 95 % interval of accuracies, as shares.

    Student's t for the mean over seeds; for a single run, or equal accuracies, Wilson's binomial
    interval over the test samples of a run. NaN if their number is unknown.
    """
    n = len(accuracies)
    if len(set(accuracies)) > 1:
        mean = statistics.fmean(accuracies)
        half = float(special.stdtrit(n - 1, 0.975)) * statistics.stdev(accuracies) / math.sqrt(n)
        return mean - half, mean + half
    if tested is None or tested < 1:
        return math.nan, math.nan
    share, z = round(accuracies[0] * tested) / tested, float(special.ndtri(0.975))
    centre = share + z * z / (2 * tested)
    half = z * math.sqrt(share * (1 - share) / tested + z * z / (4 * tested * tested))
    return (centre - half) / (1 + z * z / tested), (centre + half) / (1 + z * z / tested)


def numbers_in_words(numbers: Iterable[int]) -> str:
    """`3`, or `3 to 5` for different numbers."""
    ordered = sorted({*numbers})
    return " to ".join(map(str, dict.fromkeys((ordered[0], ordered[-1]))))


def samples_of(run: Run) -> tuple[int, int] | None:
    """Training samples, held-out ones included, and samples of the test set."""
    counts, tested = run.samples, run.tested_samples
    if "training" not in counts or tested is None:
        return None
    return counts["training"] + counts.get("val", 0), tested


def source(run: Run) -> str:
    """Origin of a run's data and number of samples; for a subset also the full number."""
    samples = samples_of(run)
    origin = run.section("data").get("origin")
    parts = [str(origin)] if origin else []
    if samples is not None:
        parts.append(f"{samples[0]:,} / {samples[1]:,} samples")
        of_paper = paper.SAMPLES.get(setting_of(run).data_set)
        if of_paper is not None and samples != of_paper and "PART" not in "".join(parts):
            parts.append(f"of {of_paper[0]:,} / {of_paper[1]:,}")
    if is_limited(run):
        parts.append("a part of them by the trainer's limits")
    return ", ".join(parts)


# --- distinguishing settings


@cache
def _shipped_settings() -> dict[str, dict[str, Any]]:
    """The settings that the project ships for each data set, by its name; base.yaml's for other data sets."""
    base = yaml.safe_load((configs.folder() / "base.yaml").read_text("utf-8"))
    by_data_set = {"": settings(base)}
    for blocks in configs.shipped_settings().values():
        of_data = settings({**blocks, "trainer": base["trainer"]})
        by_data_set[of_data["data"]] = of_data
    return by_data_set


def paper_settings() -> dict[str, Any]:
    """Settings of network and training in base.yaml: the paper's."""
    return _shipped_settings()[""]


def differs_from_shipped(run: Run) -> list[str]:
    """Settings that differ from the shipped configuration, without settings that have a column.

    Of a data set that has no shipped configuration, data arguments and network size do not count.
    """
    shipped = _shipped_settings().get(run.data_set)
    distinctions = run.distinctions
    unchanged = {name: value for name, value in run.settings.items() if name in distinctions}
    names = visible_differences(unchanged, shipped or _shipped_settings()[""])
    names = [name for name in names if name in unchanged or name not in run.settings]
    if run.record.get("of_another_program"):  # unstated settings are unknown, not defaults
        names = [name for name in names if name in run.settings]
    of_data = () if shipped is not None else ("data.", "model.structure", *NUMBERS)
    return [name for name in names if not name.startswith(tuple(of_data))]


def visible_differences(settings: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """Settings in which a run differs from another, as a person would name them.

    A structure stands for the numbers that it replaces, and a class for the arguments of another class.
    """
    names = differences(settings, reference)
    if "model.structure" in names:
        names = [name for name in names if name not in NUMBERS]
    if "model.network" in settings:  # which has none of the network's arguments, but those that were given
        names = [name for name in names if name in settings or name not in _of_network()]
    classes = {name for name in names if any(other.startswith(f"{name}.") for other in (*settings, *reference))}
    return [
        name
        for name in names
        if not role(name) & Role.COLUMN
        and not f"{name}.".startswith(("model.neuron.", "model.network."))
        and (name in settings or not any(name.startswith(f"{kind}.") for kind in classes))
    ]


@cache
def _of_network() -> set[str]:
    """The settings that are arguments of `SpikingNetwork`."""
    from plif_lightning.network.network import ARGUMENTS  # which loads PyTorch

    return {f"model.{name}" for name in ARGUMENTS}


def distinguishing_settings(runs: Sequence[Run]) -> list[list[str]]:
    """Settings of each run beyond its configuration, and settings in which it differs from most others, in words.

    Args:
        runs: of the same data set.
    """
    every = dict.fromkeys(name for run in runs for name in visible_differences(run.distinctions, {}))
    frequent = {
        name: Counter(repr(run.distinctions.get(name)) for run in runs).most_common()
        for name in every
        if name not in (_shipped_settings().get(runs[0].data_set) or _shipped_settings()[""])
    }
    labels = []
    for run in runs:
        distinctions = run.distinctions
        # Code and changes on resuming are no settings and have no usual value.
        rare = [
            name
            for name, counts in frequent.items()
            if len(counts) > 1 and (repr(distinctions.get(name)) != counts[0][0] or name not in run.settings)
        ]
        changes = [name for name in distinctions if _AFTER in name]
        names = [*differs_from_shipped(run), *changes, *(name for name in rare if name in distinctions)]
        labels.append([in_words(name, value_of(run, name)) for name in dict.fromkeys(names)])
    return labels


def value_of(run: Run, name: str) -> Any:
    """The value of a setting, its default included."""
    return run.distinctions.get(name, defaults().get(name, run.setting(name)))


def in_words(name: str, value: Any) -> str:
    """A setting as a user gives it, without the block that it belongs to."""
    values = value if isinstance(value, list) else [value]
    setting, after, step = name.partition(_AFTER)
    return f"{setting.split('.', 1)[-1]} {' and '.join(map(_value_in_words, values))}{after}{step}"


def _value_in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("class", value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    is_class = re.fullmatch(r"[a-zA-Z_]\w*(\.[a-zA-Z_]\w*)+", str(value))
    return str(value).rsplit(".", 1)[-1] if is_class else str(value)


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
    settings = distinguishing_settings(runs)
    shared = (
        [words for words in settings[0] if all(words in other_words for other_words in settings)]
        if len(runs) > 1
        else []
    )
    names = []
    for run, own_words in zip(runs, settings, strict=True):
        setting = setting_of(run)
        pooling = "" if setting.pooling in ("max", "?") else f"{setting.pooling}-pooling"
        parts = (neuron_in_words(setting), pooling, *(words for words in own_words if words not in shared))
        names.append(", ".join(text for text in parts if text))
    return Labels(names, ", ".join(shared))


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
