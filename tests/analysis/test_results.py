"""Published runs: a line a run, whose command repeats it, and their table."""

import re

import numpy as np
import pytest
import yaml

from plif_lightning.analysis.figures import drawn
from plif_lightning.analysis.leaderboard import gains_table, leaderboard_table, standings
from plif_lightning.analysis.measured import measured_table
from plif_lightning.analysis.select import groups
from plif_lightning.cli import main
from plif_lightning.runs.command import commands
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.published import add_published, read_published
from plif_lightning.runs.run import find_runs, read_run
from tests.cli.calls import FEW, SILENT, TINY, refused
from tests.conftest import REPOSITORY
from tests.test_configs import parsed
from tests.writers import COST, PAPER, edit_session, write_run
from tools import publish

RESULTS = publish.ALL_RUNS
SHIPPED = str(REPOSITORY / "configs/fashionmnist.yaml")
HOLDOUT = ("--config", SHIPPED, "--trainer.max_epochs=3", "-c", "holdout", "--data.root", "/far")


def test_published_run_keeps_measurements_and_drops_local_paths(tmp_path):
    write_run(
        tmp_path / "a",
        accuracies=(0.5, 0.91, 0.9),
        validation="holdout",
        test=0.8994,
        arguments=[*HOLDOUT, "--model.loss", "rate"],
        cost=COST,
    )
    run = read_run(tmp_path / "a", tmp_path)
    (read,) = add_published(tmp_path / "results.jsonl", [run])
    assert read_published(tmp_path / "results.jsonl") == [read]
    for name in (
        "name",
        "key",
        "identity",
        "metrics",
        "best",
        "test",
        "accuracy",
        "samples",
        "spikes",
        "energy",
    ):
        assert getattr(read, name) == getattr(run, name)
    assert commands(read) == commands(run)
    assert commands(read)[0][:5] == ["fit", "--config", "fashionmnist", "--trainer.max_epochs", "3"]
    assert "/far" not in (tmp_path / "results.jsonl").read_text()
    assert read.record.wandb is None
    assert [session.process for session in read.record.sessions] == [{}]


def test_long_run_keeps_selected_best_and_threshold_epochs(tmp_path):
    # 0.9 is kept in float32, where it is slightly less.
    accuracies = [0.4] * 5 + [0.55, float(np.float32(0.9)), 0.85, 0.91, *[0.6] * 30]
    write_run(tmp_path / "a", accuracies=accuracies)
    (kept,) = add_published(tmp_path / "results.jsonl", find_runs(tmp_path))
    assert [row["epoch"] + 1 for row in kept.metrics] == [1, 2, 3, 5, 6, 7, 9, 10, 15, 20, 30, 39]
    assert kept.best == (9, 0.91)


def test_publishing_replaces_runs_with_equal_key_and_seed(tmp_path):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", seed=7)
    write_run(tmp_path / "runs" / "c", seed=8, finished=False)
    path = tmp_path / "results.jsonl"
    assert [run.name for run in add_published(path, find_runs(tmp_path / "runs"))] == ["a", "b"]
    write_run(tmp_path / "later" / "d", seed=9)
    write_run(tmp_path / "later" / "e", seed=7)
    add_published(path, find_runs(tmp_path / "later"))
    runs = read_published(path)
    assert [(run.name, run.setting("seed_everything")) for run in runs] == [("a", 2020), ("e", 7), ("d", 9)]
    assert runs == add_published(path, find_runs(tmp_path / "later"))


def test_measured_table_averages_seeds(tmp_path):
    write_run(tmp_path / "runs" / "a", accuracies=(0.90,))
    write_run(tmp_path / "runs" / "b", accuracies=(0.92,), seed=7)
    table = measured_table(add_published(tmp_path / "results.jsonl", find_runs(tmp_path / "runs")))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert len(table.rows) == 1
    assert cells["paper A, B"] == "94.38, 93.85"
    assert cells["accuracy [%]"] == "91.00 [78.29, 100.00], 2 seeds"
    assert cells["minutes"] == "1.0"


def test_the_command_writes_the_file_and_prints_its_table(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    arguments = ["tables", "--runs", str(tmp_path / "runs"), "--only", "4", "--out", str(tmp_path / "out")]
    main([*arguments, "--results", str(tmp_path / "results.jsonl")])
    assert "Measured" in capsys.readouterr().out
    assert len(read_published(tmp_path / "results.jsonl")) == 1
    assert "paper A, B" in (tmp_path / "out" / "tables.md").read_text()


def test_recorded_command_reproduces_the_configuration(tmp_path):
    """Configurations after arguments, lists that grow, a run that went on with other arguments: all as it became."""
    given = ["--model.pooling", "avg", "--config", "quickstart", *TINY, *FEW, *SILENT, "--config", "lif"]
    v2 = "torchvision.transforms.v2"
    given += [f"--data.augmentation+={v2}.RandomHorizontalFlip", f"--data.augmentation+={v2}.RandomErasing"]
    given += ["--data.augmentation.p=0.3"]
    main(["fit", *given, "--trainer.max_epochs", "1", "--record_samples=0", "--run_folder", str(tmp_path / "a")])
    main(["fit", "--run_folder", str(tmp_path / "a"), "--trainer.max_epochs", "2"])
    run = read_run(tmp_path / "a")
    again, then = parsed(*only_command(run)), yaml.safe_load(run.folder.config.read_text())
    for config in (again, then):
        for name in ("root", "store"):
            config["data"]["init_args"].pop(name, None)
        del config["trainer"]["enable_progress_bar"]
    for block in ("model", "data", "trainer", "seed_everything", "test_after_fit", "best_of_ties", "record_samples"):
        assert again[block] == then[block]
    assert then["trainer"]["max_epochs"] == 2
    assert len(then["data"]["init_args"]["augmentation"]) == 2
    assert run.surroundings("machine")
    assert "torch " in run.surroundings("versions")


def test_of_the_same_settings_and_seed_the_latest_counts_everywhere(tmp_path):
    for name, started, accuracy in (("a", 2.0, 0.95), ("b", 1.0, 0.9)):
        write_run(tmp_path / "runs" / name, (0.5, accuracy), started=started)
    runs = find_runs(tmp_path / "runs")
    assert [run.accuracy for run in add_published(tmp_path / "results.jsonl", runs)] == [0.95]
    assert [group.accuracy for group in groups(runs)] == [95.0]


def test_images_as_sequences_are_another_data_set_than_the_papers(tmp_path):
    write_run(tmp_path / "runs" / "a", data="MNIST")
    write_run(tmp_path / "runs" / "b", data="MNIST", data_arguments={"sequence": "rows"})
    table = measured_table(add_published(tmp_path / "results.jsonl", find_runs(tmp_path / "runs")))
    assert [row[:2] for row in table.rows] == [["MNIST", "99.72, 99.63"], ["MNIST by rows", ""]]


def test_subset_of_the_data_is_not_compared_with_the_paper(tmp_path):
    write_run(tmp_path / "runs" / "a", samples=(1000, 100), data="NMNIST")
    table = measured_table(add_published(tmp_path / "results.jsonl", find_runs(tmp_path / "runs")))
    assert table.rows[0][:2] == ["N-MNIST (1,000 / 100 samples, of 60,000 / 10,000)", ""]


def only_command(run):
    """Arguments after `fit` of the single command that repeats a run."""
    ((command, *words),) = commands(run)
    assert command == "fit"
    return words


# --- published runs

PUBLISHED = str(REPOSITORY / "configs/leaderboard/results.jsonl")
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
    add_published(tmp_path / "results.jsonl", runs)
    published = read_published(tmp_path / "results.jsonl")
    assert gains_table(published) == gains_table(runs)
    assert len(gains_table(runs).rows) == 4
    own, there = leaderboard_table(runs), leaderboard_table(published)
    assert own == there
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
def test_published_rows_stay_separate_where_runs_do(tmp_path, more):
    write_run(tmp_path / "a", validation="holdout", test=323 / 359, model=PAPER, samples=(60_000, 359))
    other = {"samples": (60_000, 359), **more}
    write_run(tmp_path / "b", validation="holdout", test=330 / 359, model={**PAPER, "neuron": "lif"}, **other)
    runs = find_runs(tmp_path)
    add_published(tmp_path / "results.jsonl", runs)
    assert standings(read_published(tmp_path / "results.jsonl")) == []


def test_run_changed_on_resuming_has_a_separate_row(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, arguments=("--config", SHIPPED, "--trainer.max_epochs=3"))
    edit_session(RunFolder(tmp_path / "b"), step=20, changes=[["data.batch_size", 16, 32]])
    runs = add_published(tmp_path / "results.jsonl", find_runs(tmp_path))
    cells = [row[2] for row in measured_table(runs).rows]
    given = "fashionmnist, trainer.max_epochs=3"
    assert cells == [given, f"{given} batch_size 32 instead of 16 after step 20"]


def test_the_commands_take_a_file_of_published_runs(tmp_path, capsys):
    main(["tables", "--runs", PUBLISHED, "--only", "leaderboard,gains", "--out", str(tmp_path / "tables")])
    assert {path.name for path in (tmp_path / "tables").glob("*.csv")} == {"tableleaderboard.csv", "tablegains.csv"}
    main(["figures", "--runs", PUBLISHED, "--only", "leaderboard", "--out", str(tmp_path / "figures")])
    assert (tmp_path / "figures" / "figureleaderboard.png").is_file()
    main(["runs", "--runs", str(RESULTS), "--out", str(tmp_path / "runs.csv")])
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 1 + len(read_published(RESULTS))


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", '{"run": "a", "config": {}, "record": {}, "metrics": []}'])
def test_another_file_than_of_published_runs_is_named_with_its_line(tmp_path, capsys, line):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{line}\n")
    assert f"{path}, line 1" in refused(capsys, "tables", "--runs", str(path))


# --- the results of this project


def test_published_commands_reproduce_their_configurations(monkeypatch):
    folder = REPOSITORY / "tests" / "examples"  # with the callback, the neuron and the network of some
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    # One of each data set and number of epochs: the others differ in what only they are asked for.
    for run in {(run.data_set, run.epochs): run for run in read_published(RESULTS)}.values():
        config = parsed(*only_command(run))
        data = config["data"]["init_args"]
        assert config["trainer"]["max_epochs"] == run.epochs
        assert data["time_steps"] == run.setting("data.time_steps")
        assert {"test": "A", "holdout": "B"}[data["validation"]] == run.protocol
        assert config["seed_everything"] == run.setting("seed_everything")
        assert all(run.surroundings(name) for name in ("machine", "versions", "commit"))
        assert "dirty" not in run.surroundings("commit")
        assert run.samples["test"] > 0
        assert run.metrics[-1]["seconds"] > 0


def test_results_page_matches_the_published_runs():
    """If it fails: python tools/publish.py."""
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


def test_an_older_run_of_a_seed_does_not_replace_a_newer_one(tmp_path):
    file = tmp_path / "results.jsonl"
    for name, started, accuracy in (("new", 2.0, 0.8), ("old", 1.0, 0.6)):
        write_run(tmp_path / name, (accuracy,), started=started)
        add_published(file, find_runs(tmp_path / name))
    assert [run.accuracy for run in read_published(file)] == [0.8]
    write_run(tmp_path / "newest", (0.7,), started=3.0)
    assert [run.accuracy for run in add_published(file, find_runs(tmp_path / "newest"))] == [0.7]
