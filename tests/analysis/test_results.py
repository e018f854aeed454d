"""The table of results: a row a run, whose command repeats it."""

import re

import numpy as np
import pytest
import yaml

from plif_lightning.analysis.figures import drawn
from plif_lightning.analysis.grouping import groups
from plif_lightning.analysis.leaderboard import gains_table, leaderboard_table, standings
from plif_lightning.analysis.results import COLUMNS, published_runs, read_results, results_table, row_of, write_results
from plif_lightning.cli import main
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.record import update
from plif_lightning.runs.run import find_runs, read_run
from tests import publish
from tests.cli.calls import FEW, SILENT, TINY, refused
from tests.conftest import REPOSITORY
from tests.test_configs import parsed
from tests.writers import COST, PAPER, write_run

RESULTS = publish.ALL_RUNS
SHIPPED = str(REPOSITORY / "configs/fashionmnist.yaml")
HOLDOUT = ("--config", SHIPPED, "--trainer.max_epochs=3", "-c", "holdout", "--data.root", "/far")


def test_a_row_tells_what_was_measured_and_with_what(tmp_path):
    write_run(
        tmp_path / "a",
        accuracies=(0.5, 0.91, 0.9),
        validation="holdout",
        test=0.8994,
        arguments=[*HOLDOUT, "--model.loss", "rate"],
        cost=COST,
    )
    row = row_of(read_run(tmp_path / "a", tmp_path))
    assert list(row) == list(COLUMNS)
    expected = {
        "data": "Fashion-MNIST",
        "source": "60,000 / 10,000 samples",
        "configuration": "fashionmnist + holdout",
        "overrides": "trainer.max_epochs=3 model.loss=rate",
        "seed": "2020",
        "protocol": "B",
        "epochs": "3",
        "T": "8",
        "accuracy": "89.94",
        "standard_error": "0.30",
        "epoch": "2",
        "accuracy_by_epoch": "1: 50.00; 2: 91.00; 3: 90.00",
        "tau": "conv1 1.800, fc1 2.100",
        "tau_by_epoch": "1: conv1 1.900, fc1 2.200; 2: conv1 1.800, fc1 2.100; 3: conv1 1.700, fc1 2.000",
        "firing_rate": "conv1 0.1000, fc1 0.0200",
        "seconds": "180",
        "seconds_to": "50: 60 (epoch 1); 90: 120 (epoch 2)",
        "machine": "abacus, 1 core",
        "versions": "Python 4, torch 9",
        "commit": "0123456789ab",
        "run": "a",
        "command": "python main.py fit --config fashionmnist --trainer.max_epochs 3 --config holdout --model.loss rate",
        "validation": "91.00",
        "spikes": "102",
        "energy_uj": "2.500",
    }
    assert {name: row[name] for name in expected} == expected


def test_rows_are_added_and_those_of_the_same_run_renewed(tmp_path):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", seed=7)
    write_run(tmp_path / "runs" / "c", seed=8, finished=False)
    path = tmp_path / "results.csv"
    assert [row["run"] for row in write_results(path, find_runs(tmp_path / "runs"))] == ["a", "b"]
    write_run(tmp_path / "later" / "d", seed=9)
    write_run(tmp_path / "later" / "e", seed=7)
    write_results(path, find_runs(tmp_path / "later"))
    rows = read_results(path)
    assert [(row["run"], row["seed"]) for row in rows] == [("a", "2020"), ("e", "7"), ("d", "9")]
    assert rows == write_results(path, find_runs(tmp_path / "later"))


def test_the_table_takes_seeds_together(tmp_path):
    write_run(tmp_path / "runs" / "a", accuracies=(0.90,))
    write_run(tmp_path / "runs" / "b", accuracies=(0.92,), seed=7)
    table = results_table(write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs")))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert len(table.rows) == 1
    assert cells["paper A, B"] == "94.38, 93.85"
    assert cells["accuracy [%]"] == "91.00 [78.29, 100.00], 2 seeds"
    assert cells["minutes"] == "1.0"


def test_the_command_writes_the_table_and_prints_it(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    arguments = ["tables", "--runs", str(tmp_path / "runs"), "--only", "4", "--out", str(tmp_path / "out")]
    main([*arguments, "--results", str(tmp_path / "results.csv")])
    assert "Measured" in capsys.readouterr().out
    assert len(read_results(tmp_path / "results.csv")) == 1
    assert "paper A, B" in (tmp_path / "out" / "tables.md").read_text()


def test_the_command_of_a_row_makes_the_same_configuration(tmp_path):
    """Configurations after arguments, lists that grow, a run that went on with other arguments: all as it became."""
    given = ["--model.pooling", "avg", "--config", "quickstart", *TINY, *FEW, *SILENT, "--config", "lif"]
    v2 = "torchvision.transforms.v2"
    given += [f"--data.augmentation+={v2}.RandomHorizontalFlip", f"--data.augmentation+={v2}.RandomErasing"]
    given += ["--data.augmentation.p=0.3"]
    main(["fit", *given, "--trainer.max_epochs", "1", "--record_samples=0", "--run_folder", str(tmp_path / "a")])
    main(["fit", "--run_folder", str(tmp_path / "a"), "--trainer.max_epochs", "2"])
    run = read_run(tmp_path / "a")
    again, then = parsed(*row_words(row_of(run))), yaml.safe_load(run.folder.config.read_text())
    for config in (again, then):
        for name in ("root", "store"):
            config["data"]["init_args"].pop(name, None)
        del config["trainer"]["enable_progress_bar"]
    for block in ("model", "data", "trainer", "seed_everything", "test_after_fit", "best_of_ties", "record_samples"):
        assert again[block] == then[block]
    assert then["trainer"]["max_epochs"] == 2
    assert len(then["data"]["init_args"]["augmentation"]) == 2
    assert run.part("surroundings").keys() >= {"machine", "versions"}
    assert "torch " in run.part("surroundings")["versions"]


def test_of_the_same_settings_and_seed_the_latest_counts_everywhere(tmp_path):
    for name, started, accuracy in (("a", 2.0, 0.95), ("b", 1.0, 0.9)):
        write_run(tmp_path / "runs" / name, (0.5, accuracy), started=started)
    runs = find_runs(tmp_path / "runs")
    assert [row["accuracy"] for row in write_results(tmp_path / "results.csv", runs)] == ["95.00"]
    assert [group.accuracy for group in groups(runs)] == [95.0]


def test_a_part_of_the_data_stands_beside_no_number_of_the_papers(tmp_path):
    write_run(tmp_path / "runs" / "a", samples=(1000, 100), data="NMNIST")
    table = results_table(write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs")))
    assert table.rows[0][:2] == ["N-MNIST (1,000 / 100 samples, of 60,000 / 10,000)", ""]


def row_words(row):
    """What stands after `fit` in a row's command."""
    import shlex

    words = shlex.split(row["command"])
    assert words[:3] == ["python", "main.py", "fit"]
    return words[3:]


# --- runs of a table

PUBLISHED = str(REPOSITORY / "configs/leaderboard/results.csv")
RIGHT = {1: 323, 2: 327, 3: 334}  # of 359
STRUCTURE = "c8k3s1-BN-PLIF-MPk2s2-DP-FC32-PLIF-{}"
CHANGES = {
    "paper": {},
    "clif": {"neuron": "clif"},
    "soft": {"reset": "soft", "dropout": 0.2},
    "readout": {"structure": STRUCTURE.format("DP-FC10b")},
}


def test_the_leaderboard_of_a_table_is_that_of_its_runs(tmp_path):
    for i, (name, model) in enumerate(CHANGES.items()):
        for seed, right in RIGHT.items():
            write_run(
                tmp_path / "runs" / f"{name}-{seed}", (0.5, 0.8 + 0.01 * i), seed=seed, validation="holdout", cost=COST,
                test=(right + 4 * (i * seed % 4)) / 359, samples=(60_000, 359),
                model={**PAPER, "structure": STRUCTURE.format("DP-FC100-PLIF-APk10s10"), **model},
            )  # fmt: skip
    runs = find_runs(tmp_path / "runs")
    write_results(tmp_path / "results.csv", runs)
    published = published_runs(tmp_path / "results.csv")
    assert gains_table(published) == gains_table(runs)
    assert len(gains_table(runs).rows) == 4
    own, there = leaderboard_table(runs), leaderboard_table(published)
    unknown = {own.columns.index(name) for name in ("firing [%]", "training [ms]")}
    assert [[cell for i, cell in enumerate(row) if i not in unknown] for row in own.rows] == [
        [cell for i, cell in enumerate(row) if i not in unknown] for row in there.rows
    ]
    assert drawn("leaderboard", published)[1] == drawn("leaderboard", runs)[1]


@pytest.mark.parametrize(
    "more",
    [
        {"trainer": {"precision": "bf16-mixed"}},
        {"trainer": {"limit_train_batches": 3}},
        {"time_steps": 4},
        {"origin": "another"},
        {"samples": (50_000, 359)},
    ],
)
def test_what_keeps_runs_apart_keeps_their_rows_apart(tmp_path, more):
    write_run(tmp_path / "a", validation="holdout", test=323 / 359, model=PAPER, samples=(60_000, 359))
    other = {"samples": (60_000, 359), **more}
    write_run(tmp_path / "b", validation="holdout", test=330 / 359, model={**PAPER, "neuron": "lif"}, **other)
    runs = find_runs(tmp_path)
    write_results(tmp_path / "results.csv", runs)
    assert standings(published_runs(tmp_path / "results.csv")) == []


def test_a_run_that_was_changed_on_the_way_has_a_row_beside_that_of_the_unchanged_one(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, arguments=("--config", SHIPPED, "--trainer.max_epochs=3"))
    update(RunFolder(tmp_path / "b"), changes=[[20, "data.batch_size", 32]])
    rows = write_results(tmp_path / "results.csv", find_runs(tmp_path))
    given = "trainer.max_epochs=3"
    assert [row["overrides"] for row in rows] == [given, f"{given} after step 20 data.batch_size=32"]


def test_the_commands_take_a_table_and_refuse_what_it_does_not_hold(tmp_path, capsys):
    main(["tables", "--runs", PUBLISHED, "--out", str(tmp_path / "tables")])
    assert {path.name for path in (tmp_path / "tables").glob("*.csv")} == {
        *("tableleaderboard.csv", "tablegains.csv", "results.csv")
    }
    main(["figures", "--runs", PUBLISHED, "--out", str(tmp_path / "figures")])
    assert (tmp_path / "figures" / "figureleaderboard.png").is_file()
    capsys.readouterr()
    for arguments, sentence in (
        (["tables", "--only", "4"], "--only must be some of leaderboard,gains, got 4"),
        (["tables", "--results", "x.csv"], "--results adds runs to a table, and"),
        (["figures", "--only", "6"], "--only must be some of leaderboard, got 6"),
        (["report"], "which is a file"),
    ):
        assert sentence in refused(capsys, *arguments, "--runs", PUBLISHED)


# --- the results of this project


def test_the_commands_of_the_results_are_of_the_runs_that_they_tell_of():
    rows = read_results(RESULTS)
    for row in {row["key"]: row for row in rows}.values():
        config = parsed(*row_words(row))
        data = config["data"]["init_args"]
        assert config["trainer"]["max_epochs"] == int(row["epochs"])
        assert data["time_steps"] == int(row["T"])
        assert {"test": "A", "holdout": "B"}[data["validation"]] == row["protocol"]
        assert config["seed_everything"] == int(row["seed"])
        assert all(row[name] for name in ("source", "key", "accuracy", "seconds", "machine", "versions", "commit"))
        assert "dirty" not in row["commit"]


def test_tables_and_caption_of_the_page_are_those_of_the_results():
    """If it fails: python tests/publish.py."""
    page = publish.PAGE.read_text()
    assert publish.renewed(page) == page


def test_the_rows_of_the_readme_are_of_measured_runs():
    """Accuracy with its interval, epochs and minutes of each of its rows are those of a row of the results."""
    readme = (REPOSITORY / "README.md").read_text()
    short = re.findall(r"^\|.*\| ([\d.]+ \[.*?\]) \| (\d+, [\d.]+) \|", readme, re.MULTILINE)
    known = {
        (row[2].rpartition(", ")[0], re.sub(r".* (\d+) epochs.*", rf"\1, {row[4]}", row[1]))
        for row in publish.accuracies().rows
    }
    assert len(short) == 4
    assert set(short) <= known


def test_an_accuracy_that_is_reached_exactly_counts_though_it_is_kept_in_float32(tmp_path):
    write_run(tmp_path / "a", accuracies=[float(np.float32(share)) for share in (0.7, 0.9, 0.9385)])
    assert row_of(read_run(tmp_path / "a"))["seconds_to"] == "70: 60 (epoch 1); 90: 120 (epoch 2); 93.85: 180 (epoch 3)"
