"""Renew tables and pictures of configs/RESULTS.md and README.md after runs were added: python tools/publish.py

First add them: `python main.py tables --runs RUNS --results configs/results.jsonl`, or for the leaderboard
`configs/leaderboard/results.jsonl`. The prose is yours to mend; `git diff` shows what it stands beside.
"""

import contextlib
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

if __package__ is None:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from plif_lightning.analysis.figures import write_figures
from plif_lightning.analysis.leaderboard import gains_table
from plif_lightning.analysis.measured import measured_table
from plif_lightning.analysis.select import data_title, interval
from plif_lightning.analysis.tables import Table, markdown
from plif_lightning.runs.metrics import layer_values
from plif_lightning.runs.published import read_published
from plif_lightning.structure.layers import neurons_in
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "configs" / "RESULTS.md"
ALL_RUNS = REPOSITORY / "configs" / "results.jsonl"
LEADERBOARD = REPOSITORY / "configs" / "leaderboard" / "results.jsonl"
FIGURE = REPOSITORY / ".github" / "leaderboard.png"
OVERVIEW = REPOSITORY / ".github" / "overview.png"
# Rows of the page's table, by key of the runs; results.jsonl holds all runs.
SHOWN = {
    "1f132bc960bb": "`authors_code_mnist`",
    "b968d711bbb9": "`fast_mnist`",
    "608e46dde506": "`fast_mnist`, longer",
    "daa421b28f65": "`authors_code`",
    "8872826d643c": "`fast_fashionmnist`",
    "796ecbbc4bfd": "`long_fashionmnist`",
    "0d670dcabd1f": "`smnist_rows_recurrent`, PLIF",
    "6eddaeca05f8": "the same, LIF",
    "cd5e0dd43606": "the paper's, 1,000 / 100 recordings",
    "41b01b77d70e": "`fast_nmnist`, the same part",
    "4465580dd6db": "`vgg7`, T = 4",
    "6534ffe32818": "`vgg7`, longer, 5 % held out",
    "1052b1f6f305": "32 channels, T = 4, PLIF, tau_0 = 2",
    "b0ffc4b9426e": "the same, LIF, tau = 2",
    "9e84a18cce9c": "the same, PLIF, tau_0 = 16",
    "fd08e5dd28a8": "the same, LIF, tau = 16",
    "483dd1b1fc87": "`quickstart`",
}


# The benchmark's accuracies on binary adding [%], the best epoch on its test set, by network.
THEIRS = {
    "LIF, tau = 50": "29.60", "PLIF": "29.40",
    "ALIF": "40.30", "GLIF, a conductance for each step": "90.15",
    "recurrent, LIF, tau = 2": "53.35", "recurrent, PLIF": "53.25", "recurrent, ALIF": "68.00",
    "adLIF, BN": "42.00", "recurrent, adLIF, BN": "99.05",
}  # fmt: skip
# Names of classes that are not their own, most of tests/examples.
OWN = {"adaptive_neuron.AdaptiveLIF": "ALIF", "glif_by_steps.Network": "GLIF, a conductance for each step"}
OWN |= {"plif_lightning.neurons.AdLIF": "adLIF"}

# docs/benchmarks.md: the Fashion-MNIST network as trained, memory of the CIFAR10-DVS network; ours and SpikingJelly's.
BESIDE = {"training step": (113, 316, "ms"), "inference": (21.9, 120, "ms"), "memory": (459, 4572, "MiB")}


def accuracies() -> Table:
    """The means over seeds of the runs that the page shows."""
    seeds = defaultdict(list)
    for run in read_published(ALL_RUNS):
        seeds[run.key].append(run)
    rows = []
    for key, name in SHOWN.items():
        table = measured_table(seeds[key])
        cell = dict(zip(table.columns, table.rows[0], strict=True))
        of_paper = dict(zip("AB", cell["paper A, B"].split(", "), strict=False)).get(cell["protocol"], "")
        run = f"{name}, {cell['epochs']} epochs ({cell['protocol']})"
        rows.append([cell["data set"].partition(" (")[0], run, cell["accuracy [%]"], of_paper, cell["minutes"]])
    return Table("", "", ["data set", "network, training", "accuracy [%]", "paper [%]", "minutes"], rows, [])


def by_network(data: str, theirs: Mapping[str, str]) -> Table:
    """Accuracies of each run on a data set, by both protocols, beside the benchmark's, where it has it."""
    found = defaultdict(list)
    for run in read_published(ALL_RUNS):
        if data_title(run) == data and any("test_each_epoch/acc" in row for row in run.metrics):
            chosen = run.setting("model.network") or run.setting("model.neuron")
            path = str(chosen["class_path"] if isinstance(chosen, dict) else chosen)
            name = OWN.get(path, path.rpartition(".")[2].removeprefix("Undecayed"))
            structure = str(run.setting("model.structure"))
            if "." not in path and run.structure is not None:  # its layers may name others
                named = dict.fromkeys(neurons.name for neurons in neurons_in(run.structure.layers))
                name = "+".join(path.upper() if neurons == "PLIF" else neurons for neurons in named)
            name += ", delays" * ("DELAY(" in structure) + ", BN" * ("-BN-" in structure)
            is_fixed = name.startswith("LIF") and "BN" not in name
            name += f", tau = {run.setting('model.init_tau'):.0f}" if is_fixed else ""
            found["recurrent, " * structure.startswith("R") + name].append(run)
    rows = []
    for network, runs in sorted(found.items()):
        runs.sort(key=lambda run: run.seed or 0)
        best = [max(row.get("test_each_epoch/acc", 0.0) for row in run.metrics) for run in runs]
        chosen = [run.accuracy or 0.0 for run in runs]
        minutes = [run.metrics[-1]["seconds"] / 60 for run in runs]
        ends = dict.fromkeys(f"{end:.0f}" for end in (min(minutes), max(minutes)))
        rows.append([network, of_seeds(best), theirs.get(network, ""), of_seeds(chosen), " to ".join(ends)])
    columns = ["network", "best epoch on the test set (A)", "Ma et al. (A)", "held-out epoch (B)", "minutes"]
    shown = [i for i, _ in enumerate(columns) if i != 2 or theirs]
    return Table("", "", [columns[i] for i in shown], [[row[i] for i in shown] for row in rows], [])


def of_seeds(shares: list[float]) -> str:
    """Each share [%]; of several, their mean and its 95 % interval."""
    each = ", ".join(f"{100 * share:.2f}" for share in shares)
    if len(shares) == 1:
        return each
    low, high = interval(shares, None)
    return f"{each}; {100 * fmean(shares):.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def with_table(page: str, heading: str, table: str) -> str:
    """The page with another table in the place of the first one below a heading."""
    above, title, below = page.partition(f"\n## {heading}\n")
    lines = below.split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    last = next(i for i, line in enumerate(lines[first:], first) if not line.startswith("|"))
    return above + title + "\n".join([*lines[:first], *table.splitlines(), *lines[last:]])


def compact(table: Table) -> str:
    """The table as Markdown without padding: a number that changes changes its line alone."""
    text = re.sub(r" +\|", " |", markdown(table))
    return re.sub(r":-+ ?", "---", text)


def renewed(page: str) -> str:
    """The page with the tables that the results give."""
    page = with_table(page, "Accuracy", compact(accuracies()))
    page = with_table(page, "Binary adding", compact(by_network("binary adding", THEIRS)))
    page = with_table(page, "MNIST by rows", compact(by_network("MNIST by rows", {})))
    return with_table(page, "Leaderboard", compact(gains_table(read_published(LEADERBOARD))))


def draw_overview(path: Path) -> None:
    """Draw the picture of the README: a neuron, speed and memory beside SpikingJelly, tau over epochs."""
    import matplotlib.pyplot as plt

    code = re.search(r"(class \w+\(pl\.Neuron.*?)\n\n\n", (REPOSITORY / "README.md").read_text("utf-8"), re.DOTALL)
    assert code is not None
    lines = [line.partition("  #")[0].rstrip() for line in code[1].splitlines()]
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(10.5, 2.6), width_ratios=(1.35, 1, 1), layout="constrained"
    )
    left.text(0, 0.93, "\n".join(lines), family="monospace", fontsize=8.5, va="top", linespacing=1.4)
    left.axis("off")
    left.set_title("a neuron is its equations", loc="left", fontsize=10)
    for i, (name, (ours, theirs, unit)) in enumerate(reversed(BESIDE.items())):
        middle.barh(i + 0.2, 1, 0.36, color="0.82")
        middle.barh(i - 0.2, ours / theirs, 0.36, color="#0072B2")
        middle.text(0.98, i + 0.2, f"SpikingJelly, {theirs:,} {unit}", va="center", ha="right", fontsize=8)
        middle.text(ours / theirs + 0.02, i - 0.2, f"{ours:,} {unit}", va="center", fontsize=8)
        middle.text(-0.02, i, name, va="center", ha="right", fontsize=9)
    middle.axis("off")
    middle.set_title("speed and memory", loc="left", fontsize=10)
    (run,) = (run for run in read_published(ALL_RUNS) if SHOWN.get(run.key) == "`authors_code`")
    taus = {int(row["epoch"]) + 1: layer_values(row, "tau") for row in run.metrics if layer_values(row, "tau")}
    for layer, shift in zip(taus[1], (5, -5, 0, 0), strict=True):
        line = [2.0, *(tau[layer] for tau in taus.values())]
        right.plot([0, *taus], line, marker="o", markersize=3)
        right.annotate(layer, (max(taus), line[-1]), (4, shift), textcoords="offset points", va="center", fontsize=8)
    right.spines[["top", "right"]].set_visible(False)
    right.set_xticks([0, 5, 10])
    right.set_xlabel("epoch", fontsize=9)
    right.set_title("tau of each layer, learned", loc="left", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        write_figures(read_published(LEADERBOARD), Path(folder), ["leaderboard"])
        shutil.copy(Path(folder, "figureleaderboard.png"), FIGURE)
    draw_overview(OVERVIEW)
    sys.stdout.write(f"{PAGE}\n{FIGURE}\n{OVERVIEW}\n")


if __name__ == "__main__":
    main()
