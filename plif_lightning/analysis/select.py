"""Which runs count, and which of them are averaged: tables, figures, leaderboard, data frame and report ask here."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from scipy import special

from plif_lightning import configs
from plif_lightning.analysis import paper
from plif_lightning.analysis.paper import Setting
from plif_lightning.runs.identity import Difference, Identity
from plif_lightning.runs.run import Run, not_replaced
from plif_lightning.runs.settings import Role, is_of, role, setting_in
from plif_lightning.structure import NUMBERS
from plif_lightning.structure.layers import neurons_in

_NUMBERS = {f"model.{name}" for name in NUMBERS}


def real(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def data_title(run: Run) -> str:
    """Display name of the data set: the paper's, or the run's, marked where it would read like the paper's."""
    title = run.record.data.title or run.data_set
    distinct = f"{title} ({run.data_set})" if title in (*paper.TITLES, *paper.TITLES.values()) else title
    sequence = run.setting("data.sequence")
    return paper.TITLES.get(run.data_set, distinct) + (f" by {sequence}" if sequence else "")


def neuron_names(run: Run, arguments: str = "") -> list[str]:
    """The classes of a run's neurons, each once: `plif`, or those that its structure names.

    `arguments` are written behind the class that the setting `model.neuron` names.
    """
    unnamed = "?" if run.record.of_another_program else "plif"
    of_run = f"{run.settings.get('model.neuron', unnamed)}{arguments}"
    in_structure = [] if run.structure is None else neurons_in(run.structure.layers)
    named = dict.fromkeys(of_run if neurons.name == "PLIF" else neurons.name for neurons in in_structure)
    return [of_run] if run.structure is None else [*named]


def setting_of(run: Run) -> Setting:
    """Data set, neuron, tau and pooling: the columns of the paper's tables. An IF neuron has no tau; it is NaN where
    layers begin with different ones."""
    is_papers = run.data_set in paper.TITLES and not run.setting("data.sequence")
    data_set, run_settings = run.data_set if is_papers else data_title(run), run.settings
    if "model.network" in run_settings:
        return Setting(data_set, str(run_settings["model.network"]), math.nan, "?")
    settings = [f"{n.split('.', 2)[2]}={value}" for n, value in run_settings.items() if n.startswith("model.neuron.")]
    neuron = "+".join(neuron_names(run, f"({', '.join(settings)})" if settings else "")) or "no neurons"  # CLIF(k=0.6)
    taus = [run_settings.get("model.init_tau", 2.0)]
    if run.structure is not None:
        taus = [dict(neurons.arguments).get("init_tau", *taus) for neurons in neurons_in(run.structure.layers)] or taus
    drawn = setting_in(run.config, "model.init_tau")
    if isinstance(drawn, Mapping):
        (kind, arguments), *_ = drawn.items()
        neuron = f"{neuron.upper()}, tau drawn from {kind}({', '.join(f'{argument:g}' for argument in arguments)})"
    tau = math.inf if neuron == "if" else real(taus[0]) if taus.count(taus[0]) == len(taus) else math.nan
    return Setting(data_set, neuron, tau, str(run_settings.get("model.pooling", "max")))


def is_limited(run: Run) -> bool:
    """True if the Trainer limited a run to a part of its data."""
    return any(name.startswith("trainer.limit_") for name in run.settings)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        setting: columns of the paper's tables.
        runs: the latest of each seed, by their last start or resumption.
        replaced: runs with a result of the same seeds that were started earlier.
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
    def epochs(self) -> list[int]:
        """Number of epochs of each run."""
        return [run.epochs for run in self.runs]

    @property
    def has_all_samples(self) -> bool:
        """True if the runs saw all of the paper's data set."""
        run = self.runs[0]
        return samples_of(run) == paper.SAMPLES.get(self.setting.data_set) and not is_limited(run)

    @property
    def has_shipped_settings(self) -> bool:
        """True if all settings without a column are as shipped."""
        return not beyond_shipped(self.runs[0])


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs that count, grouped by their identity: finished, with an accuracy, the latest of each seed."""
    averaged = []
    for alike in by_key(run for run in runs if run.has_result):
        of_seeds = not_replaced(alike)
        shares = [run.accuracy for run in of_seeds if run.accuracy is not None]
        low, high = interval(shares, None if is_limited(of_seeds[0]) else of_seeds[0].tested_samples)
        mean = 100 * statistics.fmean(shares)
        replaced = [run for run in alike if run not in of_seeds]
        ends = 100 * max(low, 0.0), 100 * min(high, 1.0)
        averaged.append(Group(setting_of(of_seeds[0]), of_seeds, replaced, mean, *ends))
    return averaged


def latest(runs: Iterable[Run]) -> dict[tuple[str, int | str], Run]:
    """The run that counts for each identity and seed: of those with a result the latest."""
    return {(run.key, run.seed_or_name): run for run in not_replaced([run for run in runs if run.has_result])}


def names_of(group: Group | None) -> list[str]:
    """Folders of the runs of a group."""
    return [] if group is None else [run.name for run in group.runs]


def by_key(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs with equal keys together."""
    by_hash: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_hash[run.key].append(run)
    return [*by_hash.values()]


def counted(alike: Sequence[Run]) -> list[Run]:
    """Of runs of an identity those that a curve averages: as a table does, or before one has a result those that ended,
    or all."""
    finished = [run for run in alike if run.status == "finished"]
    return not_replaced([run for run in alike if run.has_result] or finished or alike)


def samples_of(run: Run) -> tuple[int, int] | None:
    """Training samples, held-out ones included, and samples of the test set."""
    counts, tested = run.samples, run.tested_samples
    if "training" not in counts or tested is None:
        return None
    return counts["training"] + counts.get("val", 0), tested


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


# --- settings in which runs differ


@cache
def _shipped_settings() -> dict[str, Mapping[str, Any]]:
    """The settings that the project ships for each data set, by its name; base.yaml's for other data sets."""
    base = yaml.safe_load((configs.folder() / "base.yaml").read_text("utf-8"))
    by_data_set = {"": Identity.of(base).settings}
    for blocks in configs.shipped_settings().values():
        of_data = Identity.of({**blocks, "trainer": base["trainer"]}).settings
        by_data_set[of_data["data"]] = of_data
    return by_data_set


def paper_identity() -> Identity:
    """Settings of network and training in base.yaml: the paper's."""
    return Identity(_shipped_settings()[""])


def beyond_shipped(run: Run) -> list[Difference]:
    """Settings that differ from the shipped configuration, without settings that have a column.

    Of a data set that has no shipped configuration, data arguments and network size do not count.
    """
    shipped = _shipped_settings().get(run.data_set)
    changed = {change.name for change in run.identity.changes}
    unchanged = {name: value for name, value in run.settings.items() if name not in changed}
    differences = Identity(unchanged).compared_with(Identity(shipped or _shipped_settings()[""]))
    found = _without_columns(without_replaced(differences, unchanged))
    found = [one for one in found if one.name in unchanged or one.name not in run.settings]
    if run.identity.is_of_another_program:  # unstated settings are unknown, not defaults
        found = [one for one in found if one.name in run.settings]
    of_data = () if shipped is not None else ("data", "model.structure", *_NUMBERS)
    return [Difference(n, before, run.value(n)) for n, before, *_ in found if not is_of(n, *of_data)]


def without_replaced(differences: Sequence[Difference], settings: Mapping[str, Any]) -> list[Difference]:
    """Differences of a run with these settings as a person would name them.

    A structure stands for the numbers that it replaces, and a class for the arguments of another class.
    """
    names = {one.name for one in differences}
    if "model.structure" in names:
        names -= _NUMBERS
    if "model.network" in settings:  # which has none of the network's arguments, but those that were given
        names -= {name for name in names if name not in settings and name in _of_network()}
    names -= {n for n in names if n not in settings and any(n != kind and is_of(n, kind) for kind in names)}
    return [one for one in differences if one.step is not None or one.name in names]


def _without_columns(differences: Sequence[Difference]) -> list[Difference]:
    """Differences without settings that have a column."""
    of_column = ("model.neuron", "model.network")
    return [
        one
        for one in differences
        if one.step is not None or not (role(one.name) & Role.COLUMN or is_of(one.name, *of_column))
    ]


@cache
def _of_network() -> set[str]:
    """The settings that are arguments of `SpikingNetwork`."""
    from plif_lightning.network.network import ARGUMENTS  # which loads PyTorch

    return {f"model.{name}" for name in ARGUMENTS}


def distinguishing(runs: Sequence[Run]) -> list[list[Difference]]:
    """What each run has beyond its configuration, and in what it differs from most others.

    Args:
        runs: of the same data set.
    """
    facts = [{one.fact: one for one in run.identity.beyond_defaults} for run in runs]
    named = [_without_columns(without_replaced(run.identity.beyond_defaults, run.settings)) for run in runs]
    shipped = _shipped_settings().get(runs[0].data_set) or _shipped_settings()[""]
    rare: dict[Any, Any] = {}  # the usual value of each fact that not all runs share
    for fact in dict.fromkeys(one.fact for of_run in named for one in of_run if one.name not in shipped):
        values = [repr(of_run[fact].now) if fact in of_run else repr(None) for of_run in facts]
        usual = max(dict.fromkeys(values), key=values.count)
        if len({*values}) > 1:
            rare[fact] = usual
    contents = [run.identity.content for run in runs]
    is_of_several = len({*contents} - {""}) > 1
    found = []
    for run, of_run, content in zip(runs, facts, contents, strict=True):
        # Code and changes on resuming are no settings and have no usual value.
        own = [of_run[fact] for fact in rare if fact in of_run]
        own = [one for one in own if repr(one.now) != rare[one.fact] or one.name not in run.settings]
        if is_of_several and content:
            own.append(Difference("content of the data", None, content))
        changes = [one for one in of_run.values() if one.step is not None]
        all_of_run = {one.fact: one for one in (*beyond_shipped(run), *own, *changes)}
        found.append(list(all_of_run.values()))
    return found
