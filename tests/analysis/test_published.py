"""Runs of a table of results: the leaderboard of their folders, without the folders."""

import csv
import random

import pytest

from plif_lightning.analysis.figures import drawn
from plif_lightning.analysis.leaderboard import gains_table, leaderboard_table
from plif_lightning.analysis.published import published_runs
from plif_lightning.analysis.results import COLUMNS, write_results
from plif_lightning.cli import main
from plif_lightning.errors import UserError
from plif_lightning.runs.reading import find_runs
from tests.cli.calls import FEW, SILENT, refused
from tests.conftest import REPOSITORY
from tests.writers import COST, PAPER, write_run

PUBLISHED = str(REPOSITORY / "configs/leaderboard/results.csv")
COMMAND = "python main.py fit --config fashionmnist --config holdout --seed_everything 1"
# The paper's network is base.yaml's; `--model` and single options change it, as do further files.
CHANGES = {
    "paper": ({}, []),
    "lif": ({"neuron": "lif"}, ["--config", "lif"]),
    "soft": ({"reset": "soft", "dropout": 0.2}, ["--model", "{reset: soft, dropout: 0.2}"]),
    "tau": ({"init_tau": 16.0}, ["--model.init_tau=16"]),
}
RIGHT = {1: 323, 2: 327, 3: 334}  # of 359


def write_all(root):
    for i, (name, (model, arguments)) in enumerate(CHANGES.items()):
        for seed, right in RIGHT.items():
            write_run(
                root / f"{name}-{seed}", (0.5, 0.8 + 0.01 * i), seed=seed, validation="holdout", cost=COST,
                test=(right + 4 * (i * seed % 4)) / 359, model={**PAPER, **model}, samples=(60_000, 359),
                arguments=["-c", "fashionmnist", "-c", "holdout", "--seed_everything", str(seed), *arguments],
            )  # fmt: skip


def write_rows(path, **changes):
    """One row of a finished run of the paper's setting, changed."""
    row = dict.fromkeys(COLUMNS, "") | {
        "data": "Fashion-MNIST",
        "source": "60,000 / 359 samples",
        "hash": "0",
        "seed": "1",
        "protocol": "B",
        "epochs": "2",
        "epoch": "2",
        "accuracy": "90.00",
        "run": "a",
        "validation": "91",
        "spikes": "10",
        "command": COMMAND,
    }
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow(row | changes)
    return path


def test_it_is_the_leaderboard_of_the_runs_themselves(tmp_path):
    write_all(tmp_path / "runs")
    runs = find_runs(tmp_path / "runs")
    write_results(tmp_path / "results.csv", runs)
    published = published_runs(tmp_path / "results.csv")
    assert gains_table(published).rows == gains_table(runs).rows
    assert len(gains_table(runs).rows) == 4
    own, there = leaderboard_table(runs), leaderboard_table(published)
    unknown = {own.columns.index(name) for name in ("firing [%]", "training [ms]")}
    assert [[cell for i, cell in enumerate(row) if i not in unknown] for row in own.rows] == [
        [cell for i, cell in enumerate(row) if i not in unknown] for row in there.rows
    ]
    assert drawn("leaderboard", published)[1] == drawn("leaderboard", runs)[1]


def test_a_real_run_has_the_settings_that_its_row_gives(tmp_path, monkeypatch):
    """Settings of network and training, of the file that the program wrote and of the row's command."""
    monkeypatch.chdir(tmp_path)
    command = ["fit", "--config", "quickstart", "--model", "{neuron: clif}", "--model.optimizer.lr=0.003"]
    main([*command, "--test_after_fit=true", *FEW, *SILENT])
    (run,) = find_runs("runs")
    write_results(tmp_path / "results.csv", [run])
    (published,) = published_runs(tmp_path / "results.csv")
    for name in (
        *("seed_everything", "data.validation", "data.time_steps", "data.class_path", "model.neuron", "model.dropout"),
        *("model.optimizer.lr", "model.optimizer.class_path", "model.loss", "model.structure", "best_of_ties"),
    ):
        assert published.setting(name) == run.setting(name), name
    assert published.accuracy == pytest.approx(run.accuracy, abs=6e-5)
    assert published.best == pytest.approx(run.best, abs=1e-4)
    assert published.spikes == pytest.approx(run.spikes, abs=0.5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"command": ""}, "it has no command"),
        ({"command": "python main.py fit --config 'a"}, "its command cannot be read: No closing quotation"),
        ({"command": "python main.py fit --config mine"}, "there is no configuration mine."),
        ({"command": "python main.py fit --config fashionmnist"}, "says protocol B, but its command asks for A."),
    ],
)
def test_a_row_that_does_not_tell_its_settings_is_named_and_left_out(tmp_path, capsys, changes, sentence):
    path = write_rows(tmp_path / "results.csv", **changes)
    (run,) = published_runs(path)
    assert run.status == "unreadable"
    assert sentence in run.problems[0]
    main(["tables", "--runs", str(path), "--only", "gains"])
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_rows_of_one_command_with_different_settings_are_left_out(tmp_path, capsys):
    """Of two versions between which a configuration has changed: neither row may stand for the other."""
    write_all(tmp_path / "runs")
    path = tmp_path / "results.csv"
    rows = write_results(path, find_runs(tmp_path / "runs"))
    (other,) = (row for row in rows if row["run"] == "lif-2")
    path.write_text(path.read_text().replace(f",{other['hash']},2,", ",0123456789ab,2,"))
    runs = {run.name: run for run in published_runs(path)}
    assert {name for name, run in runs.items() if run.status == "unreadable"} == {"lif-1", "lif-2", "lif-3"}
    main(["tables", "--runs", str(path), "--only", "gains"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "lif-2: other rows have the same command, but another hash of all settings" in printed


@pytest.mark.parametrize(("accuracy", "share"), [("98.89", 355 / 359), ("73.33", 0.7333), ("100.00", 1.0)])
def test_accuracies_are_whole_samples_where_the_whole_test_set_was_measured(tmp_path, accuracy, share):
    (run,) = published_runs(write_rows(tmp_path / "a.csv", accuracy=accuracy))
    assert run.accuracy == pytest.approx(share, abs=1e-9)


def test_a_list_that_a_command_extends_tells_runs_apart(tmp_path):
    more = " --data.augmentation+=HorizontalFlip --data.augmentation.p=0.3 --trainer.precision=bf16-mixed"
    (plain,) = published_runs(write_rows(tmp_path / "a.csv"))
    (run,) = published_runs(write_rows(tmp_path / "b.csv", command=COMMAND + more))
    assert run.changes == ["data.augmentation+=HorizontalFlip", "data.augmentation.p=0.3"]
    assert run.setting("trainer.precision") == "bf16-mixed"
    assert plain.changes == []


@pytest.mark.parametrize("seed", range(40))
def test_a_table_of_any_content_is_read_or_refused(tmp_path, seed):
    """Every cell is a stranger's."""
    pick = random.Random(seed)
    cells = [
        *("", "-1", "0", "1e999", "nan", "9" * 400, "\u00b2", "x; y", "1 / 0 samples", ", / , samples", "\x00", "B"),
        *("python main.py fit --model '&x {model: *x}' --model={model: 3}", "a b c --model 3 --model.neuron.k 4"),
        *("python main.py fit --config quickstart --model.optimizer.lr '{' --data.x.y=1", "python main.py fit --=3"),
        "python main.py fit --config holdout --data.init_args=3 --data.validation=holdout --data.class_path=[1]",
        "python main.py fit --trainer=4 --data=5 --seed_everything=[1] --best_of_ties={a: 1} --model={class_path: 1}",
    ]
    changes = {name: pick.choice(cells) for name in COLUMNS if pick.random() < 0.3}
    path = write_rows(tmp_path / "results.csv", **{"command": pick.choice(cells[-5:]), **changes})
    try:
        runs = published_runs(path)
    except UserError:
        return
    leaderboard_table(runs)
    gains_table(runs)


def test_the_commands_take_such_a_table_and_refuse_what_it_cannot_tell(tmp_path, capsys):
    main(["tables", "--runs", PUBLISHED, "--out", str(tmp_path / "tables")])
    assert {path.name for path in (tmp_path / "tables").glob("*.csv")} == {
        *("tableleaderboard.csv", "tablegains.csv", "results.csv")
    }
    main(["figures", "--runs", PUBLISHED, "--out", str(tmp_path / "figures")])
    assert (tmp_path / "figures" / "figureleaderboard.png").is_file()
    capsys.readouterr()
    for arguments, sentence in (
        (["tables", "--only", "4"], "--only must be some of leaderboard,gains where --runs is a table of results"),
        (["tables", "--results", "x.csv"], "--results adds runs to a table, and"),
        (["figures", "--only", "6"], "--only must be some of leaderboard where --runs is a table of results"),
        (["report"], "which is a file"),
    ):
        assert sentence in refused(capsys, *arguments, "--runs", PUBLISHED)
