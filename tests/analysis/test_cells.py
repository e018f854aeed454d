"""Every printed number is the object's: cells of tables, files and summaries, each with its unit."""

import csv
import math
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from scipy import stats

from plif_lightning.analysis import paper
from plif_lightning.analysis.figures import drawn
from plif_lightning.analysis.frame import read_runs
from plif_lightning.analysis.layers import layer_table
from plif_lightning.analysis.leaderboard import comparison_table, leaderboard_table
from plif_lightning.analysis.measured import measured_table
from plif_lightning.analysis.report import _runs_table
from plif_lightning.analysis.tables import PAPER_TABLES, earlier_work
from plif_lightning.cli import main
from plif_lightning.cli.deploy import _COLUMNS, _cost_rows
from plif_lightning.deploy.costs import Cost, LayerCost, picojoules_a_byte
from plif_lightning.runs.run import find_runs, read_run
from plif_lightning.training.task import SpikingClassifier
from tests.cli.calls import QUICKSTART, SILENT, TINY
from tests.writers import PAPER, write_run

# --- the paper's numbers, typed once more from the paper

PAPERS = {
    "MNIST": (99.72, 99.63, "[64]", "400", 8, 60_000, 10_000),
    "FashionMNIST": (94.38, 93.85, "[8]", "20", 8, 60_000, 10_000),
    "CIFAR10": (93.50, 92.58, "[19]", "2048", 8, 50_000, 10_000),
    "NMNIST": (99.61, 99.57, "[58]", "59-64", 10, 60_000, 10_000),
    "CIFAR10DVS": (74.80, 69.00, "[58]", "230-292", 20, 9_000, 1_000),
    "DVSGesture": (97.57, 96.53, "[27]", "500 (training), 1800 (testing)", 20, 1_176, 288),
}
ABLATIONS = {
    ("plif", 2.0, "max"): (94.38, 93.50, 74.80, 97.57), ("lif", 2.0, "max"): (94.17, 93.03, 73.60, 96.88),
    ("plif", 16.0, "max"): (94.65, 93.23, 70.50, 92.01), ("lif", 16.0, "max"): (94.47, 47.50, 62.40, 76.74),
    ("plif", 2.0, "avg"): (94.74, 93.30, 72.70, 97.22),
}  # fmt: skip


def test_the_papers_numbers_are_its():
    for name, (a, b, work, theirs, steps, training, testing) in PAPERS.items():
        assert (paper.TABLE_2[name], paper.TABLE_S2[name]) == (a, b)
        assert paper.TABLE_3[name] == (work, theirs, steps)
        assert paper.SAMPLES[name] == (training, testing)
    known = {**paper.TABLE_4, **paper.TABLE_5}
    assert known == {
        paper.Setting(data_set, *setting): value
        for setting, values in ABLATIONS.items()
        for data_set, value in zip(("FashionMNIST", "CIFAR10", "CIFAR10DVS", "DVSGesture"), values, strict=True)
    }
    assert set(PAPERS) == set(paper.TITLES) == set(paper.TABLE_2) == set(paper.TABLE_S2)
    best = [max((float(cell) for row in paper.EARLIER if (cell := row[2][i])), default=0) for i in range(6)]
    assert best == [99.62, 92.07, 93.63, 99.53, 60.5, 96.09]
    assert earlier_work().rows[-1][2:] == [f"{a:.2f}" for a, *_ in PAPERS.values()]


def test_tables_of_the_networks_have_the_papers_cells():
    tables = {name: PAPER_TABLES[name]([]) for name in ("1", "3", "S1")}
    steps = {row[0]: row[1:] for row in tables["3"].rows}
    for name, (_, _, work, theirs, of_paper, *_) in PAPERS.items():
        assert steps[paper.TITLES[name]] == [work, theirs, str(of_paper), str(of_paper), ""]
    assert [row[1:] for row in tables["1"].rows if row[0] == "N-MNIST"] == [["1", "2", "2", "128", "2x34x34", "10"]]
    assert {row[0]: row[2] for row in tables["S1"].rows}["DVS128 Gesture"] == "1,698,311"


# --- runs

A, B = (0.51, 0.94, 0.92), (0.40, 0.90, 0.96)


def cells(table, row):
    return dict(zip(table.columns, table.rows[row], strict=True))


@pytest.fixture
def runs(tmp_path):
    """Two seeds of the paper's setting by protocol A."""
    for name, seed, accuracies in (("a", 1, A), ("b", 2, B)):
        write_run(tmp_path / "runs" / name, accuracies, seed=seed)
    return find_runs(tmp_path / "runs")


def interval(values):
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def test_cells_of_accuracies_are_the_runs(runs):
    mean, (low, high) = fmean([94.0, 96.0]), interval([94.0, 96.0])
    high = min(high, 100.0)
    table = PAPER_TABLES["2"](runs)
    row = next(cells(table, i) for i, cells_of in enumerate(table.rows) if cells_of[0] == "Fashion-MNIST")
    assert {name: row[name] for name in ("paper", "ours", "difference", "95 % interval", "seeds", "epochs", "T")} == {
        "paper": "94.38", "ours": f"{mean:.2f}", "difference": f"{mean - 94.38:+.2f}",
        "95 % interval": f"[{low:.2f}, {high:.2f}]", "seeds": "2", "epochs": "3", "T": "8",
    }  # fmt: skip
    table = comparison_table(runs)
    assert cells(table, 0) | {"setting": ""} == {
        "data set": "Fashion-MNIST", "setting": "", "protocol": "A", "T": "8", "epochs": "3", "accuracy [%]": "95.00",
        "95 % interval": f"[{low:.2f}, {high:.2f}]", "gain": "", "seeds": "2", "silent": "",
    }  # fmt: skip
    table = _runs_table(runs)
    assert [list(cells(table, i).values())[2:] for i in (0, 1)] == [
        ["2", "96.00", "3", "3", "finished"], ["1", "94.00", "2", "3", "finished"]
    ]  # fmt: skip
    measured = cells(measured_table(runs), 0)
    assert measured["accuracy [%]"] == f"95.00 [{low:.2f}, {high:.2f}], 2 seeds"
    assert measured["paper A, B"] == "94.38, 93.85"
    frame = read_runs(runs[0].folder.path.parent)
    assert frame.loc["b", ["seed", "epochs", "best_epoch", "accuracy"]].tolist() == [2, 3, 3, 0.96]


def test_a_single_run_has_wilsons_interval_and_its_standard_error(tmp_path):
    write_run(tmp_path / "a", (0.9,), seed=1, samples=(60_000, 500))
    (run,) = find_runs(tmp_path)
    z, p, n = stats.norm.ppf(0.975), 0.9, 500
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * end / (1 + z * z / n) for end in (centre - half, centre + half))
    assert cells(comparison_table([run]), 0)["95 % interval"] == f"[{low:.2f}, {high:.2f}]"
    assert cells(measured_table([run]), 0)["accuracy [%]"] == f"90.00 \u00b1 {100 * math.sqrt(p * (1 - p) / n):.2f}"


COST = {"updates": {"conv1": 100.0, "fc1": 20.0}, "pj_int8_reused": 2_500_000.0}


def test_cells_of_the_leaderboard_are_the_runs(tmp_path):
    tests = {"plif": (0.90, 0.92), "lif": (0.86, 0.90)}
    for neuron, accuracies in tests.items():
        for seed, test in enumerate(accuracies):
            write_run(
                tmp_path / f"{neuron}{seed}", (0.5, test - 0.1), seed=seed, validation="holdout", test=test,
                model={**PAPER, "neuron": neuron}, cost=COST,
            )  # fmt: skip
    runs = find_runs(tmp_path)
    table = leaderboard_table(runs)
    rate = {layer: fmean(run.best_metrics[f"rate/{layer}"] for run in runs) for layer in ("conv1", "fc1")}
    spikes = 100 * rate["conv1"] + 20 * rate["fc1"]
    seconds = [s for run in runs for s in run.curve("train/samples_per_second")[1]]
    for i, (neuron, gain) in enumerate((("plif", None), ("lif", [-4.0, -2.0]))):
        row, values = cells(table, i), [100 * test for test in tests[neuron]]
        low, high = interval(values)
        expected = {
            "validation": f"{fmean(values) - 10:.2f}", "test": f"{fmean(values):.2f}", "seeds": "2",
            "95 % interval": f"[{low:.2f}, {min(high, 100.0):.2f}]", "firing [%]": f"{100 * spikes / 120:.1f}",
            "spikes": f"{spikes:.0f}", "energy [uJ]": "2.50",
            "training [ms]": f"{1000 / seconds[0]:,.2f}" if seconds else "",
        }  # fmt: skip
        assert {name: row[name] for name in expected} == expected
        if gain is not None:
            low, high = interval(gain)
            assert (row["gain"], row["its 95 % interval"]) == ("-3.00", f"[{low:+.2f}, {high:+.2f}]")
    figure, caption = drawn("leaderboard", runs)
    places = [line.get_xydata()[0].tolist() for line in figure.axes[0].lines if line.get_marker() in "*o^v"]
    assert sorted(places) == sorted([[pytest.approx(spikes), 91.0], [pytest.approx(spikes), 88.0]])
    assert "far below" not in caption


def test_a_setting_far_below_is_named_and_not_drawn(tmp_path):
    for neuron, test in (("plif", 0.90), ("lif", 0.78), ("if", 0.785)):
        model = {**PAPER, "neuron": neuron}
        write_run(tmp_path / neuron, (0.5,), seed=1, validation="holdout", test=test, model=model, cost=COST)
    figure, caption = drawn("leaderboard", find_runs(tmp_path))
    assert "far below: neuron lif (78.0 %)" in caption
    assert "far below: neuron if" not in caption
    assert sum(line.get_marker() in tuple("*o^v") for line in figure.axes[0].lines) == 2


def test_cells_of_layers_are_means_over_seeds(runs):
    table = layer_table(runs)
    for i, layer in enumerate(("conv1", "fc1")):
        row = cells(table, i)
        assert row["layer"] == layer
        for kind, head in (("tau", "tau"), ("rate", "firing rate")):
            mean = fmean(run.best_metrics[f"{kind}/{layer}"] for run in runs)
            shown = next(value for name, value in row.items() if name.startswith(head))
            assert shown == f"{mean:.4g}"


@pytest.mark.parametrize(
    ("table_of", "note"),
    [
        (comparison_table, "Accuracy on the test set: of the best epoch there (A), or of the epoch"),
        (layer_table, "Means over seeds of the values in the best epoch."),
    ],
)
def test_a_table_says_where_its_values_are_from_and_an_empty_one_does_not(table_of, note, runs):
    assert any(str(text).startswith(note) for text in table_of(runs).notes)
    assert table_of([]).notes == []


# --- cost

LAYERS = (
    LayerCost("conv1", False, 0.25, 4e6, 1e6, 1e6, 4, 2e5, 500, 50_000),
    LayerCost("fc1", True, 0.05, 8e6, 4e5, 2e6, 4, 4e3, 2_000_000, 2_000, 2),
)


def test_cells_of_costs_are_formulas_of_their_layers():
    table = _cost_rows(Cost(LAYERS, 3, 4, ("delay: Delay",)))
    totals = [0.0] * 11
    for (name, firing, *numbers), of in zip(table, LAYERS, strict=False):
        mac, ac = (of.actual, 0.0) if not of.spikes else (0.0, of.actual)
        weight, state = picojoules_a_byte(of.parameters), picojoules_a_byte(4 * of.state)
        outputs = of.state // of.states
        operation = 0.1 if of.spikes else 0.3
        moved = 8 * of.updates * of.moved
        potentials, computed = moved * state, operation * of.actual + 0.3 * of.updates
        near = picojoules_a_byte(1)
        fetched, once = min(of.actual, of.parameters * of.runs), min(of.once, of.parameters)
        ann = 0.3 * of.once + 2 * outputs * picojoules_a_byte(outputs)
        expected = [
            of.dense / 1e6, (mac + of.updates) / 1e6, ac / 1e6, of.parameters / 1e3, of.state / 1e3,
            (of.actual + moved) / 1e6, (4.6 * (mac + of.updates) + 0.9 * ac) / 1e6,
            (of.actual * weight + potentials + computed) / 1e6, (of.once * weight + ann) / 1e6,
            (fetched * weight + of.actual * near + potentials + computed) / 1e6,
            (once * weight + of.once * near + ann) / 1e6,
        ]  # fmt: skip
        assert (name, firing) == (of.layer, 100 * of.firing)
        assert numbers == pytest.approx(expected)
        totals = [total + value for total, value in zip(totals, expected, strict=True)]
    assert table[-1][0] == "all"
    assert list(table[-1][2:]) == pytest.approx(totals)
    assert table[-2][0] == "delay: Delay, not counted"
    assert all(math.isnan(value) for value in (*table[-2][1:], table[-1][1]))
    assert len(_COLUMNS) == len(table[0])


# --- a task's test, and the summaries of a run


def test_a_confusion_matrix_and_accuracies_are_those_of_the_mean_over_time():
    """The last step alone says something else."""
    task = SpikingClassifier((2, 4, 4), 3, 4, structure="FC6-PLIF-FC3")
    votes = torch.zeros(4, 5, 3)
    predicted, label, last = torch.tensor([0, 1, 2, 2, 0]), torch.tensor([0, 1, 1, 2, 2]), torch.tensor([1, 2, 0, 0, 1])
    votes[:3, torch.arange(5), predicted] = 1.0
    votes[3, torch.arange(5), last] = 1.0
    task._evaluate = lambda batch, x, smoothing=0.0: (votes.mean(), votes)
    task.log = task.log_dict = lambda *named, **more: None
    task.eval()
    task.test_step((torch.zeros(5, 4, 2, 4, 4), label), 0)
    matrix = torch.zeros(3, 3, dtype=torch.int64)
    for row, column in zip(label, predicted, strict=True):
        matrix[row, column] += 1
    assert torch.equal(task.test_confusion.compute().long(), matrix)
    assert task.test_accuracy.compute().item() == pytest.approx(3 / 5)
    per_class = task.test_class_accuracy.compute()
    assert torch.allclose(torch.as_tensor(per_class).float(), torch.tensor([1.0, 0.5, 0.5]))


def test_the_summary_of_a_fit_and_a_test_have_the_files_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", QUICKSTART, *TINY, *SILENT, "--trainer.max_epochs", "2", "--run_folder", "run"])
    said = " ".join(capsys.readouterr().out.split())
    run = read_run(Path("run"))
    best = run.best_metrics
    assert f"best validation epoch {100 * best['val/acc']:.2f} % (epoch {int(best['epoch']) + 1} of 2)" in said
    assert f"test accuracy {100 * run.test:.2f} %" in said
    for kind, title in (("tau", "tau"), ("rate", "firing rate")):
        values = " ".join(f"{layer} {best[f'{kind}/{layer}']:.4g}" for layer in run.layers(kind))
        assert f"{title} {values}" in said
    speed = run.metrics[-1]["train/samples_per_second"]
    assert f"speed {speed:.0f} training samples per second" in said
    main(["test", "--ckpt_path", "run/checkpoints/best.ckpt", "--trainer.enable_progress_bar", "false"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"accuracy {100 * run.test:.2f} %" in said
    with Path("run/test/confusion_matrix.csv").open(newline="") as file:
        _, *lines = csv.reader(file)
    counts = [[int(float(cell)) for cell in line[-10:]] for line in lines]
    assert sum(map(sum, counts)) == 359
    assert sum(counts[i][i] for i in range(10)) / 359 == pytest.approx(run.test)
    shares = re.search(r"per class (.*?) firing", said)[1].split()[1::2]
    assert shares == [f"{100 * row[i] / sum(row):.1f}" for i, row in enumerate(counts)]
