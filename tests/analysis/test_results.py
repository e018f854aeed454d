"""The table of results: a row a run, whose command repeats it."""

import pytest
import yaml

from plif_lightning.analysis.results import COLUMNS, digest, merged, read_results, results_table, row_of, write_results
from plif_lightning.analysis.tables import markdown
from plif_lightning.cli import main
from plif_lightning.errors import UserError
from plif_lightning.runs.reading import find_runs, read_run
from tests.cli.calls import FEW, SILENT, TINY
from tests.conftest import REPOSITORY
from tests.test_configs import parsed
from tests.writers import write_run

RESULTS = REPOSITORY / "configs" / "results.csv"
HOLDOUT = ("--config", "configs/fashionmnist.yaml", "--config", "holdout", "--data.root", "/far/away")


def test_a_row_tells_what_was_measured_and_with_what(tmp_path):
    write_run(
        tmp_path / "a",
        accuracies=(0.5, 0.91, 0.9),
        validation="holdout",
        test=0.8994,
        arguments=[*HOLDOUT, "--trainer.max_epochs=3", "--model.loss", "rate"],
    )
    row = row_of(read_run(tmp_path / "a", tmp_path))
    assert list(row) == list(COLUMNS)
    expected = {
        "data": "Fashion-MNIST",
        "source": "51,000 training, 9,000 val, 10,000 test",
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
        "command": "python main.py fit --config fashionmnist --config holdout --trainer.max_epochs 3 --model.loss rate",
    }
    assert {name: row[name] for name in expected} == expected


def test_the_hash_is_that_of_the_settings_not_of_the_seed_or_the_place(tmp_path):
    for name, changes in {
        "a": {},
        "seed": {"seed": 7},
        "tau": {"init_tau": 16.0},
        "long": {"accuracies": (0.1,) * 9},
    }.items():
        write_run(tmp_path / "deep" / name, **changes)
    found = {run.name: digest(run) for run in find_runs(tmp_path / "deep")}
    assert found["a"] == found["seed"]
    assert len({found["a"], found["tau"], found["long"]}) == 3


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
    assert rows == merged(rows, rows)


def test_the_table_takes_seeds_together(tmp_path):
    write_run(tmp_path / "runs" / "a", accuracies=(0.90,))
    write_run(tmp_path / "runs" / "b", accuracies=(0.92,), seed=7)
    table = results_table(write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs")))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert len(table.rows) == 1
    assert cells["paper A, B"] == "94.38, 93.85"
    assert cells["accuracy [%]"] == "91.00 [78.29, 100.00], 2 seeds"
    assert cells["minutes"] == "1"


def test_the_command_writes_the_table_and_prints_it(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    arguments = ["tables", "--runs", str(tmp_path / "runs"), "--only", "4", "--out", str(tmp_path / "out")]
    main([*arguments, "--results", str(tmp_path / "results.csv")])
    assert "Measured" in capsys.readouterr().out
    assert len(read_results(tmp_path / "results.csv")) == 1
    assert "paper A, B" in (tmp_path / "out" / "tables.md").read_text()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1,2\n", "it has no column data"),
        (f"{','.join(COLUMNS)}\n1,2\n", "a line has too few or too many values"),
        ("\xff".encode("latin-1"), "cannot be read as a table of results"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(content, expected, tmp_path):
    write_run(tmp_path / "runs" / "a")
    path = tmp_path / "results.csv"
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        write_results(path, find_runs(tmp_path / "runs"))
    assert path.read_bytes() == content


def test_the_command_of_a_row_makes_the_same_configuration(tmp_path):
    given = ["--config", "quickstart", *TINY, *FEW, *SILENT, "--trainer.max_epochs", "1", "--record_samples=0"]
    main(["fit", *given, "--data.augmentation", "[{class_path: HorizontalFlip}]", "--run_folder", str(tmp_path / "a")])
    run = read_run(tmp_path / "a")
    again = parsed(*row_words(row_of(run)))
    then = yaml.safe_load(run.folder.config.read_text())
    for block in ("model", "seed_everything", "test_after_fit", "best_of_ties"):
        assert again[block] == then[block]
    places = {"root", "store"}
    assert {k: v for k, v in again["data"]["init_args"].items() if k not in places} == {
        k: v for k, v in then["data"]["init_args"].items() if k not in places
    }
    assert run.surroundings.keys() >= {"machine", "versions"}
    assert "torch " in run.surroundings["versions"]


def row_words(row):
    """What stands after `fit` in a row's command."""
    import shlex

    words = shlex.split(row["command"])
    assert words[:3] == ["python", "main.py", "fit"]
    return words[3:]


# --- the results of this project


def test_the_commands_of_the_results_are_of_the_runs_that_they_tell_of():
    rows = read_results(RESULTS)
    assert rows
    for row in rows:
        config = parsed(*row_words(row))
        data = config["data"]["init_args"]
        assert config["trainer"]["max_epochs"] == int(row["epochs"])
        assert data["time_steps"] == int(row["T"])
        assert {"test": "A", "holdout": "B"}[data["validation"]] == row["protocol"]
        assert config["seed_everything"] == int(row["seed"])
        assert all(row[name] for name in ("source", "hash", "accuracy", "seconds", "machine", "versions", "commit"))
        assert "dirty" not in row["commit"]


def test_the_table_of_the_readme_is_that_of_the_results():
    assert markdown(results_table(read_results(RESULTS))) in (REPOSITORY / "README.md").read_text()
