"""Runs that differ in nothing but their seed, together, and what tells them apart, in the words of the command line."""

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
from plif_lightning.runs.settings import Role, defaults, differences, role, settings
from plif_lightning.structure import Numbers
from plif_lightning.structure.layers import neurons_in

NUMBERS = {f"model.{name}" for name in Numbers._fields}


def real(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def data_title(run: Run) -> str:
    """Display name of the data set: the paper's, or the run's own, which is never one of the paper's."""
    title = str(run.part("data").get("title") or run.data_set)
    own = f"{title} ({run.data_set})" if title in (*paper.TITLES, *paper.TITLES.values()) else title
    return paper.TITLES.get(run.data_set, own)


def setting_of(run: Run) -> Setting:
    """Data set, neuron, tau and pooling: the columns of the paper's tables. An IF neuron has no tau."""
    data_set, given = run.data_set if run.data_set in paper.TITLES else data_title(run), run.settings
    if "model.network" in given:
        return Setting(data_set, str(given["model.network"]), math.nan, "?")
    neuron = str(given.get("model.neuron", "plif"))
    if arguments := [f"{n.split('.', 2)[2]}={value}" for n, value in given.items() if n.startswith("model.neuron.")]:
        neuron = f"{neuron}({', '.join(arguments)})"  # CLIF(k=0.6)
    if run.structure is not None:
        names = dict.fromkeys(neuron if one.name == "PLIF" else one.name for one in neurons_in(run.structure.layers))
        neuron = "+".join(names) or "no neurons"
    tau = math.inf if neuron == "if" else real(given.get("model.init_tau", 2.0))
    return Setting(data_set, neuron, tau, str(given.get("model.pooling", "max")))


def has_own_taus(run: Run) -> bool:
    """True if a layer of the structure has an initial tau of its own."""
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
        setting: what the paper's tables tell apart.
        runs: one for each seed.
        accuracy: their mean [%].
        low: end of the 95 % interval [%].
        high: the other end.
    """

    setting: Setting
    runs: list[Run]
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
    def is_whole(self) -> bool:
        """True if the runs saw all of the paper's data set."""
        run = self.runs[0]
        return samples_of(run) == paper.SAMPLES.get(self.setting.data_set) and not is_limited(run)

    @property
    def is_usual(self) -> bool:
        """True if all settings but those that tables show are as shipped."""
        return not unusual(self.runs[0])


def groups(runs: Sequence[Run]) -> list[Group]:
    """Finished runs, those with equal keys together; of one seed the latest."""
    found = []
    for alike in by_key(run for run in runs if run.status == "finished" and run.accuracy is not None):
        of_seeds = one_per_seed(alike)
        shares = [run.accuracy for run in of_seeds if run.accuracy is not None]
        low, high = interval(shares, None if is_limited(of_seeds[0]) else of_seeds[0].tested_samples)
        mean = 100 * statistics.fmean(shares)
        found.append(Group(setting_of(of_seeds[0]), of_seeds, mean, 100 * max(low, 0.0), 100 * min(high, 1.0)))
    return found


def names_of(group: Group | None) -> list[str]:
    """Folders of the runs of a group."""
    return [] if group is None else [run.name for run in group.runs]


def surroundings_in_words(found: Iterable[Group]) -> list[str]:
    """A note for the groups whose runs differ in commit, versions or machine, which do not keep them apart."""
    alike: dict[tuple[str, tuple[str, ...]], list[tuple[Group, dict[str, str]]]] = defaultdict(list)
    for group in found:
        for name, several in (("commit", "commits"), ("versions", "versions"), ("machine", "machines")):
            run_of = {str(run.part("surroundings").get(name, "unknown")): run.name for run in group.runs}
            if len(run_of) > 1:
                alike[several, tuple(sorted(run_of))].append((group, run_of))
    notes = []
    for (several, values), rows in alike.items():
        averaged, which = f"The runs of {len(rows)} rows", "; ".join(values)
        if len(rows) == 1:
            group, run_of = rows[0]
            averaged, which = ", ".join(names_of(group)), "; ".join(f"{one} ({run})" for one, run in run_of.items())
        notes.append(f"{averaged} are averaged over several {several}: {which}.")
    return notes


def by_key(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs with equal keys together."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.key].append(run)
    return [*found.values()]


def one_per_seed(runs: Sequence[Run]) -> list[Run]:
    """The run of each seed that was begun last; runs without a seed of their own all count."""
    found: dict[tuple[str, float], Run] = {}
    for i, run in enumerate(sorted(runs, key=lambda run: run.started)):
        seed = run.setting("seed_everything")
        number = math.nan if isinstance(seed, bool) else real(seed)
        found[("run", i) if math.isnan(number) else ("seed", number)] = run
    chosen = set(map(id, found.values()))
    return [run for run in runs if id(run) in chosen]


def interval(accuracies: Sequence[float], tested: int | None) -> tuple[float, float]:
    """The 95 % interval of accuracies, as shares.

    Of the mean over seeds by Student's t; of one run, and of seeds that all reached the same, by Wilson's binomial
    interval, over the test samples of one. NaN where neither is known.
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
    """`3`, or `3 to 5` for several different ones."""
    found = sorted({*numbers})
    return " to ".join(map(str, dict.fromkeys((found[0], found[-1]))))


def samples_of(run: Run) -> tuple[int, int] | None:
    """Training samples, those held out included, and samples of the test set."""
    counts, tested = run.samples, run.tested_samples
    if "training" not in counts or tested is None:
        return None
    return counts["training"] + counts.get("val", 0), tested


def source(run: Run) -> str:
    """Origin of a run's data and number of samples; for a part of the data also the whole number."""
    samples = samples_of(run)
    origin = run.part("data").get("origin")
    parts = [str(origin)] if origin else []
    if samples is not None:
        parts.append(f"{samples[0]:,} / {samples[1]:,} samples")
        whole = paper.SAMPLES.get(setting_of(run).data_set)
        if whole is not None and samples != whole and "PART" not in "".join(parts):
            parts.append(f"of {whole[0]:,} / {whole[1]:,}")
    if is_limited(run):
        parts.append("a part of them by the trainer's limits")
    return ", ".join(parts)


# --- what tells runs apart


@cache
def _usual() -> dict[str, dict[str, Any]]:
    """The settings that the project ships for each data set, by its name; for others those of base.yaml."""
    base = yaml.safe_load((configs.folder() / "base.yaml").read_text("utf-8"))
    found = {"": settings(base)}
    for blocks in configs.shipped().values():
        of_data = settings({**blocks, "trainer": base["trainer"]})
        found[of_data["data"]] = of_data
    return found


def paper_settings() -> dict[str, Any]:
    """Settings of network and training in base.yaml: the paper's."""
    return _usual()[""]


def unusual(run: Run) -> list[str]:
    """Settings that differ from the shipped configuration, without those that tables show in columns.

    Of a data set that has no shipped configuration, its own arguments and the size of its network do not count.
    """
    usual = _usual().get(run.data_set)
    found = telling(run.settings, usual or _usual()[""])
    if run.record.get("of_another_program"):  # what it does not say is unknown, not a default
        found = [name for name in found if name in run.settings]
    of_data = () if usual is not None else ("data.", "model.structure", *NUMBERS)
    return [name for name in found if not name.startswith(tuple(of_data))]


def telling(own: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """Settings in which a run differs from another, as a person would name them.

    A structure stands for the numbers that it replaces, and a class for the arguments of another class.
    """
    found = differences(own, usual)
    if "model.structure" in found or "model.network" in own:
        found = [name for name in found if name not in NUMBERS]
    classes = {name for name in found if any(other.startswith(f"{name}.") for other in (*own, *usual))}
    return [
        name
        for name in found
        if not role(name) & Role.COLUMN
        and not f"{name}.".startswith(("model.neuron.", "model.network."))
        and (name in own or not any(name.startswith(f"{kind}.") for kind in classes))
    ]


def labels_beyond(runs: Sequence[Run]) -> list[list[str]]:
    """Settings of each run beyond its configuration, and those in which it differs from most others, in words.

    Args:
        runs: of the same data set.
    """
    every = dict.fromkeys(name for run in runs for name in telling(run.distinctions, {}))
    most = {
        name: Counter(repr(run.distinctions.get(name)) for run in runs).most_common()
        for name in every
        if name not in (_usual().get(runs[0].data_set) or _usual()[""])
    }
    found = []
    for run in runs:
        own = run.distinctions
        # Of what is no setting, code and changes on resuming, none is the usual one.
        others = [
            name
            for name, known in most.items()
            if len(known) > 1 and (repr(own.get(name)) != known[0][0] or name not in run.settings)
        ]
        names = [*unusual(run), *(name for name in others if name in own)]
        found.append([in_words(name, value_of(run, name)) for name in dict.fromkeys(names)])
    return found


def value_of(run: Run, name: str) -> Any:
    """The value of a setting, its default included."""
    return run.distinctions.get(name, defaults().get(name, run.setting(name)))


def in_words(name: str, value: Any) -> str:
    """A setting as a user gives it, without the block that it belongs to."""
    several = value if isinstance(value, list) else [value]
    return f"{name.split('.', 1)[-1]} {' and '.join(map(_value_in_words, several))}"


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
    """Names for the curves of some runs of a data set, without what they share."""
    told = labels_beyond(runs)
    shared = [words for words in told[0] if all(words in others for others in told)] if len(runs) > 1 else []
    found = []
    for run, own in zip(runs, told, strict=True):
        setting = setting_of(run)
        pooling = "" if setting.pooling in ("max", "?") else f"{setting.pooling}-pooling"
        parts = (neuron_in_words(setting), pooling, *(words for words in own if words not in shared))
        found.append(", ".join(part for part in parts if part))
    return Labels(found, ", ".join(shared))


def labels_of(found: Sequence[Group]) -> tuple[list[str], list[str]]:
    """A label for each group, and a note for each data set whose groups share settings, which labels leave out."""
    by_data: dict[str, list[Group]] = defaultdict(list)
    for group in found:
        by_data[data_title(group.runs[0])].append(group)
    named: dict[int, str] = {}
    notes = []
    for title, of_data in by_data.items():
        told = labels([group.runs[0] for group in of_data])
        named |= {id(group): label for group, label in zip(of_data, told.each, strict=True)}
        notes += [f"All of {title}: {told.shared}."] if told.shared else []
    return [named[id(group)] for group in found], notes
