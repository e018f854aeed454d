"""The paper's tables: its numbers, ours beside them, and nothing where nothing was run."""

import csv
import math

import pytest
from scipy import stats

from plif_lightning.analysis import paper
from plif_lightning.analysis.leaderboard import comparison_table
from plif_lightning.analysis.select import groups, interval
from plif_lightning.analysis.tables import PAPER_TABLES, Table, write_tables
from plif_lightning.cli import main
from plif_lightning.cli.reports import TABLES
from plif_lightning.runs.run import find_runs
from tests.writers import write_run


def rows(table, ours_only=True):
    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return [row for row in found if row["ours"] or not ours_only]


def tables(tmp_path):
    runs = find_runs(tmp_path)
    return {name: PAPER_TABLES[name](runs) for name in ("2", "4", "5", "S2", "tau")}


def test_seeds_are_averaged_and_repeated_seeds_count_once(tmp_path):
    for seed, accuracy in ((1, 0.90), (2, 0.92), (3, 0.94)):
        write_run(tmp_path / f"{seed}", (0.5, accuracy), seed=seed)
    write_run(tmp_path / "again", (0.5, 0.90), seed=1)
    (row,) = rows(tables(tmp_path)["4"])
    half = stats.t.ppf(0.975, 2) * 2 / math.sqrt(3)
    assert (row["data set"], row["neuron"], row["paper"]) == ("Fashion-MNIST", "PLIF, tau_0 = 2", "94.38")
    assert (row["ours"], row["difference"], row["seeds"], row["epochs"]) == ("92.00", "-2.38", "3", "2")
    assert row["95 % interval"] == f"[{92 - half:.2f}, {92 + half:.2f}]"


def test_of_seeds_that_agree_the_interval_is_binomial_too():
    assert interval([0.99] * 3, 100) == interval([0.99], 100)
    low, high = interval([0.99] * 3, 100)
    assert low < 0.99 < high
    assert math.isnan(interval([0.99] * 3, None)[0])


def test_single_run_has_a_binomial_interval():
    low, high = interval([0.9], 100)
    expected = stats.binomtest(90, 100).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert math.isnan(interval([0.9], None)[0])


@pytest.mark.parametrize(
    "other",
    [
        {"time_steps": 4},
        {"origin": "tonic"},
        {"samples": (1_000, 100)},
        {"accuracies": (0.5,)},
        {"validation": "holdout", "test": 0.8},
        {"model": {"loss": "tet", "tet_lambda": 0.0}},
        {"trainer": {"gradient_clip_val": 1.0}},
        {"trainer": {"max_steps": 3}},
        {"trainer": {"limit_val_batches": 0.5}},
        {"trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging"}]}},
        {"trainer": {"callbacks": {"class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging"}}},
    ],
)
def test_different_experiments_are_never_averaged(tmp_path, other):
    first = {"model": {"loss": "tet"}} if "model" in other else {}
    if isinstance(other.get("trainer", {}).get("callbacks"), dict):  # Lightning takes one without a list, too
        first = {"trainer": {"callbacks": {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}}}
    write_run(tmp_path / "a", seed=1, **first)
    write_run(tmp_path / "b", seed=2, **other)
    assert [len(group.runs) for group in groups(find_runs(tmp_path))] == [1, 1]
    assert len(rows(tables(tmp_path)["4"])) == 2


def test_runs_that_were_tested_on_other_samples_are_not_averaged(tmp_path):
    for seed, content in enumerate(("x", "x", "y", "z")):
        write_run(tmp_path / f"{seed}", seed=seed, content=content)
    assert sorted(len(group.runs) for group in groups(find_runs(tmp_path))) == [1, 1, 2]


def test_seeds_that_were_stopped_early_are_averaged(tmp_path):
    for seed, epochs in enumerate((2, 4, 3)):
        stops = [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/acc"}}]
        write_run(tmp_path / f"{seed}", (0.9,) * epochs, seed=seed, trainer={"max_epochs": 9, "callbacks": stops})
    write_run(tmp_path / "shorter", (0.9,) * 3, seed=8, trainer={"max_epochs": 3, "callbacks": stops})
    found = sorted((group.epochs, len(group.runs)) for group in groups(find_runs(tmp_path)))
    assert found == [([2, 4, 3], 3), ([3], 1)]


def test_every_finished_run_is_in_a_table_or_named(tmp_path, monkeypatch):
    """Found by a review: LIF with average pooling was in none, nor was a run that was never validated."""
    (tmp_path / "ournets.py").write_text("class Net: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, changes in {
        "lif": {"neuron": "lif", "pooling": "avg"},
        "tau": {"init_tau": 16.0, "pooling": "avg"},
        "own": {"model": {"network": {"class_path": "ournets.Net", "init_args": {}}, "structure": None}},
        "clif": {"neuron": "clif"},
    }.items():
        write_run(tmp_path / name, **changes)
    write_run(tmp_path / "never", (float("nan"),))
    assert {row[1] for row in comparison_table(find_runs(tmp_path)).rows} == {
        *("LIF, tau = 2, avg-pooling", "PLIF, tau_0 = 16, avg-pooling", "ournets.Net", "CLIF")
    }
    found = tables(tmp_path)
    assert {row["neuron"] for row in rows(found["4"])} == {"CLIF"}
    assert any("no accuracy was measured: never." in note for note in found["4"].notes)


@pytest.mark.parametrize("trainer", [{"limit_val_batches": 0.01}, {"limit_train_batches": 5}])
def test_run_on_limited_batches_has_no_difference_and_no_interval(tmp_path, trainer):
    write_run(tmp_path / "a", trainer=trainer)
    (row,) = rows(tables(tmp_path)["4"])
    assert (row["ours"], row["difference"], row["95 % interval"]) == ("75.00", "", "")
    assert next(iter(trainer)) in row["other settings"]


def test_custom_network_has_no_difference_to_the_paper(tmp_path):
    write_run(tmp_path / "a", model={"loss": "rate"})
    (row,) = rows(tables(tmp_path)["4"])
    assert (row["difference"], row["other settings"]) == ("", "loss rate")


def test_each_run_stands_in_its_table(tmp_path):
    write_run(tmp_path / "a", neuron="lif", init_tau=16.0)
    write_run(tmp_path / "b", pooling="avg")
    write_run(tmp_path / "c", data="Digits", title="digits")
    found = tables(tmp_path)
    assert [(r["data set"], r["neuron"]) for r in rows(found["4"])] == [("Fashion-MNIST", "LIF, tau = 16")]
    assert [(r["data set"], r["pooling"]) for r in rows(found["5"])] == [("Fashion-MNIST", "average")]
    assert rows(found["2"]) == []
    assert ("digits", "PLIF, tau_0 = 2") in [tuple(row[:2]) for row in comparison_table(find_runs(tmp_path)).rows]


def test_row_names_settings_that_differ_from_the_configuration(tmp_path):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, seed=ord(name))
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.002}}
    write_run(
        tmp_path / "d", model={"optimizer": optimizer, "tau_per": "channel"},
        data_arguments={"batch_size": 64, "drop_last": True, "root": "/elsewhere"},
    )  # fmt: skip
    others = {row["seeds"]: row["other settings"] for row in rows(tables(tmp_path)["2"])}
    assert others["3"] == ""
    assert others["1"] == "batch_size 64, drop_last true, optimizer AdamW, optimizer.lr 0.002, tau_per channel"


def test_tables_1_3_and_s1_come_from_the_configurations(tmp_path):
    write_run(tmp_path / "a", time_steps=4)
    found = {name: make(find_runs(tmp_path), None) for name, make in TABLES.items()}
    assert list(found) == ["runs", "layers", "1", "2", "2b", "3", "4", "5", "S1", "S2", "tau", "leaderboard", "gains"]
    assert found["1"].rows[4] == ["CIFAR10-DVS", "1", "4", "2", "128", "2x128x128", "20"]
    assert found["S1"].rows[2][1:] == [
        "{{c256k3s1-BN-PLIF}*3-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10",
        "36,718,344",
    ]
    assert found["3"].rows[1] == ["Fashion-MNIST", "[8]", "20", "8", "8", "4"]


def test_files_hold_the_same_cells(tmp_path):
    write_run(tmp_path / "runs" / "a", title="x | y", data="Other")
    runs = find_runs(tmp_path / "runs")
    made = [*(PAPER_TABLES[name](runs) for name in ("2", "4", "5", "S2", "tau")), comparison_table(runs)]
    write_tables(made, tmp_path / "out")
    with (tmp_path / "out" / "table4.csv").open(newline="") as file:
        columns, *rows = csv.reader(file)
    assert columns == [*made[1].columns, "runs"]
    assert [row[:-1] for row in rows] == made[1].rows
    assert "x \\| y" in (tmp_path / "out" / "tables.md").read_text()
    latex = (tmp_path / "out" / "table4.tex").read_text()
    assert latex.count(" \\\\\n") == 1 + len(made[1].rows)
    assert r"PLIF, $\tau_0$ = 2 &" in latex
    assert latex.count("&") == (1 + len(made[1].rows)) * (latex.splitlines()[3].count("&"))


def test_recipe_changes_are_named_and_suppress_the_difference(tmp_path):
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 1}}
    augmentation = [{"class_path": f"torchvision.transforms.v2.{name}"} for name in ("RandomInvert", "RandomCrop")]
    write_run(
        tmp_path / "a", trainer={"precision": "bf16-mixed", "callbacks": [average]},
        model={"early_time_steps": {"2": 7, "4": 6}, "label_smoothing": 0.1},
        data_arguments={"augmentation": augmentation},
    )  # fmt: skip
    write_run(tmp_path / "b")
    found = {row["other settings"]: row["difference"] for row in rows(tables(tmp_path)["2"])}
    words = "augmentation RandomInvert and RandomCrop, early_time_steps [2, 7] and [4, 6], label_smoothing 0.1, "
    words += "callbacks EMAWeightAveraging, precision bf16-mixed"
    assert found.keys() == {"", words}
    assert found[words] == ""
    assert found[""] != ""


def test_tau_table_compares_equal_epochs_with_the_authors(tmp_path):
    layers = ("conv1", "conv2", "fc1", "fc2")
    write_run(tmp_path / "a", (0.88, 0.9, 0.91, 0.92), layers=layers)
    write_run(tmp_path / "b", (0.89, 0.9, 0.91, 0.92), layers=layers, seed=7)
    write_run(tmp_path / "other network", (0.5,) * 4, init_tau=16.0)
    write_run(tmp_path / "protocol B", (0.5,) * 4, layers=layers, validation="holdout", test=0.5)
    table = PAPER_TABLES["tau"](find_runs(tmp_path))
    assert [row[2:8] for row in table.rows] == [
        ["8", "60,000 / 10,000 samples", "2", "1 of 4", "88.50", "88.96"],
        ["8", "60,000 / 10,000 samples", "2", "2 of 4", "90.00", "90.46"],
        ["8", "60,000 / 10,000 samples", "2", "3 of 4", "91.00", "91.10"],
    ]
    assert table.rows[0][8:] == [
        *("1.900 / 1.760 (+8.0 %)", "2.200 / 1.859 (+18.3 %)", "2.500 / 2.091 (+19.6 %)", "2.800 / 2.269 (+23.4 %)")
    ]


def test_tables_show_earlier_work_and_protocol_a(tmp_path):
    write_run(tmp_path / "a", validation="holdout", test=0.9)
    found = {name: make(find_runs(tmp_path), None) for name, make in TABLES.items()}
    earlier = found["2b"]
    assert earlier.rows[0] == ["[24]", "ANN2SNN", "98.37", "", "82.95", "", "", ""]
    assert len(earlier.rows) == 21
    cells = [cell for row in earlier.rows[:-1] for cell in row[2:] if cell]
    assert {cell for cell in cells if len(cell) < 5} == {
        *("50.7", "99.2", "96", "60.5", "99.5", "96.3", "32.2", "99.1", "52.4", "99.0", "54.0")  # as printed
    }
    for data_set, title in paper.TITLES.items():  # which is what the paper claims of all but CIFAR-10
        place = earlier.columns.index(title)
        best = max(float(row[place] or 0) for row in earlier.rows[:-1])
        assert (best < paper.TABLE_2[data_set]) == (data_set != "CIFAR10")
    assert {(row["paper, A"], row["paper"]) for row in rows(found["S2"], ours_only=False)} >= {("94.38", "93.85")}


def test_the_papers_numbers_are_consistent_between_its_tables():
    for setting, accuracy in {**paper.TABLE_4, **paper.TABLE_5}.items():
        if setting == paper.Setting(setting.data_set):
            assert accuracy == paper.TABLE_2[setting.data_set]
    assert len(paper.CURVES) == 30
    assert all(len(curve) == len(paper.CURVE_EPOCHS) for curve in paper.CURVES.values())


def test_the_command_prints_and_writes(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    main(["tables", "--runs", str(tmp_path / "runs"), "--only", "4,S2,gains", "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert "Table 4. PLIF and LIF" in out
    assert [line.partition(".")[0] for line in err.splitlines() if "no run belongs" in line] == [
        "note: Gains on all data sets: no run belongs to it"
    ]
    assert "Table 5." not in out
    assert "broken" in out
    assert (tmp_path / "out" / "tables.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tables", "--results", "results.csv", "--runs", "none"], "runs must be a folder, got none"),
        (["tables", "--runs", "nowhere"], "runs must be a folder, got nowhere"),
        (
            ["tables", "--baseline", "model.nuron=lif"],
            "--baseline has no argument model.nuron. Did you mean model.neuron?",
        ),
        (
            ["tables", "--only", "9"],
            "--only must be some of runs,layers,1,2,2b,3,4,5,S1",
        ),
        (["figures", "--only", "3"], "--only must be some of 1b,2,5b,6"),
        (["tables", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["report", "--out", "."], ".: Is a directory"),
        (["report", "--out", "/proc/none/report.html"], "/proc/none: No such file or directory"),
    ],
)
def test_user_error_is_a_single_sentence(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_structure_like_the_papers_is_the_same_experiment_as_its_numbers(tmp_path):
    text = "{c128k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10"
    numbers = {"n_conv": 1, "n_down": 2, "n_fc": 2, "channels": 128, "fc_features": 2048, "votes_per_class": 10}
    write_run(tmp_path / "text", model={**dict.fromkeys(numbers), "structure": text})
    write_run(tmp_path / "numbers", model={"structure": None, **numbers})
    assert len({run.key for run in find_runs(tmp_path)}) == 1


def test_damaged_run_does_not_affect_others(tmp_path):
    damaged = write_run(tmp_path / "runs" / "damaged")
    damaged.samples.write_bytes(b"PK")
    damaged.weights.write_text(damaged.weights.read_text().splitlines()[0] + "\n")
    damaged.metrics.write_text(damaged.metrics.read_text().replace("0.75", "inf"))
    write_run(tmp_path / "runs" / "whole", seed=5)
    main(["tables", "--runs", str(tmp_path / "runs")])  # exit status 0
    main(["figures", "--only", "S3,6", "--out", str(tmp_path / "f"), "--runs", str(tmp_path / "runs")])
    assert len(list((tmp_path / "f").glob("*.png"))) == 2


def test_columns_without_a_text_are_left_out_but_the_first_two():
    table = Table("a", "b", ["one", "two", "three", "four", "five"], [["", "", "", "x", ""], [""] * 5])
    assert table.without_empty_columns.columns == ["one", "two", "four"]
    assert table.without_empty_columns.rows == [["", "", "x"], ["", "", ""]]
