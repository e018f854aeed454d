"""The table of results: a row a run, whose command repeats it."""

import re

import numpy as np
import pytest
import yaml

from plif_lightning.analysis.figures import drawn
from plif_lightning.analysis.grouping import data_title, groups
from plif_lightning.analysis.leaderboard import gains_table, leaderboard_table, standings
from plif_lightning.analysis.results import (
    COLUMNS,
    published_runs,
    read_results,
    results_table,
    row_of,
    write_results,
)
from plif_lightning.analysis.tables import markdown
from plif_lightning.cli import main
from plif_lightning.errors import UserError
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


def test_seeds_that_reached_the_same_have_no_interval(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / "runs" / str(seed), accuracies=(0.90,), seed=seed)
    (row,) = results_table(write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs"))).rows
    assert "90.00, 2 seeds" in row


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
    given += ["--data.augmentation+=HorizontalFlip", "--data.augmentation+=RandomCrop", "--data.augmentation.padding=1"]
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


def test_an_accuracy_that_is_reached_exactly_counts_though_it_is_kept_in_float32(tmp_path):
    write_run(tmp_path / "a", accuracies=[float(np.float32(share)) for share in (0.7, 0.9, 0.9385)])
    assert row_of(read_run(tmp_path / "a"))["seconds_to"] == "70: 60 (epoch 1); 90: 120 (epoch 2); 93.85: 180 (epoch 3)"


def test_a_configuration_of_ones_own_keeps_its_path(tmp_path):
    write_run(tmp_path / "a", arguments=["--config", "/home/me/configs/mnist.yaml", "--ckpt_path", "other.ckpt"])
    a = row_of(read_run(tmp_path / "a"))
    assert a["configuration"] == "/home/me/configs/mnist.yaml"
    assert a["command"].endswith("--ckpt_path other.ckpt")


def test_a_value_that_begins_with_a_dash_is_no_option_of_the_command(tmp_path):
    write_run(tmp_path / "a", arguments=["--config=fashionmnist", "--model.v_reset=-1e-3", "--model.init_tau=3"])
    (row,) = write_results(tmp_path / "results.csv", find_runs(tmp_path))
    assert row["command"] == "python main.py fit --config fashionmnist --model.v_reset=-1e-3 --model.init_tau 3"


def test_own_data_is_never_the_papers_and_its_folder_is_part_of_the_command(tmp_path):
    for name in ("cats", "cars"):
        given = ["--data.root", f"/somewhere/{name}"]
        write_run(tmp_path / "runs" / name, data="ImageFolder", title="MNIST", arguments=given, content=name)
    rows = write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs"))
    assert [row["command"] for row in rows] == [
        f"python main.py fit --data.root data/{name}" for name in ("cars", "cats")
    ]
    assert rows[0]["data"] == "MNIST (ImageFolder)"
    assert all(cells[1] == "" for cells in results_table(rows).rows)
    other = write_run(tmp_path / "other", data="MNIST")
    other.config.write_text(other.config.read_text().replace("plif_lightning.data.MNIST", "mydata.MNIST"))
    assert row_of(read_run(tmp_path / "other"))["data"] == "MNIST (mydata.MNIST)"


def test_of_the_same_settings_and_seed_the_latest_counts_everywhere(tmp_path):
    for name, started, accuracy in (("a", 2.0, 0.95), ("b", 1.0, 0.9)):
        write_run(tmp_path / "runs" / name, (0.5, accuracy), started=started)
    runs = find_runs(tmp_path / "runs")
    assert [row["accuracy"] for row in write_results(tmp_path / "results.csv", runs)] == ["95.00"]
    assert [group.accuracy for group in groups(runs)] == [95.0]


def test_a_limited_evaluation_has_no_error_and_no_number_of_the_papers(tmp_path):
    write_run(tmp_path / "runs" / "a", trainer={"limit_val_batches": 1})
    (row,) = write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs"))
    assert row["standard_error"] == ""
    assert "a part of them" in row["source"]
    assert results_table([row]).rows[0][1] == ""


def test_a_run_that_was_never_tested_is_named(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", validation="holdout")
    main(["tables", "--runs", str(tmp_path / "runs"), "--only", "S2", "--results", str(tmp_path / "results.csv")])
    said = capsys.readouterr()
    assert "note: a has no row: its test set was never measured." in said.err
    assert "test --ckpt_path" in said.err
    assert "was never measured" in " ".join(said.out.split())


def test_epochs_count_from_new_weights(tmp_path):
    run = write_run(tmp_path / "a", (0.5, 0.75, 0.7))
    lines = run.metrics.read_text().splitlines()
    run.metrics.write_text("\n".join([lines[0], lines[3]]) + "\n")
    row = row_of(read_run(tmp_path / "a"))
    assert (row["epochs"], row["epoch"]) == ("3", "3")


def test_a_part_of_the_data_stands_beside_no_number_of_the_papers(tmp_path):
    write_run(tmp_path / "runs" / "a", samples=(1000, 100), data="NMNIST")
    table = results_table(write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs")))
    assert table.rows[0][:2] == ["N-MNIST (1,000 / 100 samples, of 60,000 / 10,000)", ""]


def test_the_table_leaves_out_overrides_that_a_later_one_replaces(tmp_path):
    write_run(tmp_path / "runs" / "a")
    (row,) = write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs"))
    given = (
        "t.max=20 m.steps={2: 8, 4: 16} d.a+=Crop d.a.pixels=2 d.a+=Mix d.a.pixels=2 t.max=40 after step 10 t.max=50 "
        "after step 90 t.max=60"
    )
    (shown,) = results_table([row | {"configuration": "", "overrides": given}]).rows
    assert shown[2] == given.removeprefix("t.max=20 ")


def test_data_of_ones_own_in_folders_of_one_name_are_rows_of_their_own(tmp_path):
    for place, content in (("raw", "x"), ("cropped", "y")):
        write_run(
            *(tmp_path / "runs" / place, (0.5,)), data="EventFolder", title="gestures", content=content,
            arguments=["--config=configs/nmnist.yaml", "--data=EventFolder", f"--data.root=/data/{place}/gestures"],
        )  # fmt: skip
    runs = find_runs(tmp_path / "runs")
    assert len(write_results(tmp_path / "results.csv", runs)) == 2
    assert len(write_results(tmp_path / "results.csv", runs)) == 2  # once more


def test_an_interval_ends_at_nothing_and_at_all(tmp_path):
    for seed, accuracy in enumerate((0.02, 0.3)):
        write_run(tmp_path / "runs" / f"{seed}", (accuracy,), seed=seed)
    rows = write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs"))
    assert results_table(rows).rows[0][5] == "16.00 [0.00, 100.00], 2 seeds"


def row_words(row):
    """What stands after `fit` in a row's command."""
    import shlex

    words = shlex.split(row["command"])
    assert words[:3] == ["python", "main.py", "fit"]
    return words[3:]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\n1,2\n", "it has other columns"),
        (f"{','.join(COLUMNS)}\n1,2\n".encode(), "line 2 lacks values"),
        (f"{','.join(COLUMNS)}\n{','.join('x' for _ in COLUMNS)}\n".encode(), "or an accuracy in percent"),
        ("\xff".encode("latin-1"), "cannot be read as a table of results"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(content, expected, tmp_path):
    write_run(tmp_path / "runs" / "a")
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        write_results(path, find_runs(tmp_path / "runs"))
    assert path.read_bytes() == content


def test_a_batch_size_that_changed_on_the_way_stands_in_the_row(tmp_path):
    for name in ("straight", "changed"):
        folder = write_run(tmp_path / name, seed=name == "changed")
    update(folder, changes=[[154, "data.batch_size", 32]])
    rows = write_results(tmp_path / "results.csv", find_runs(tmp_path))
    (row,) = (row for row in rows if row["run"] == "changed")
    assert row["overrides"].endswith("after step 154 data.batch_size=32")
    assert row["command"].endswith("; after step 154 data.batch_size=32")
    assert len(rows) == 2


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


def test_the_settings_of_a_real_run_survive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    neuron = "{class_path: plif_lightning.neurons.CLIF, init_args: {k: 0.3}}"
    command = ["fit", "--config", "quickstart", "--model", f"{{neuron: {neuron}}}"]
    main(
        [*command, "--model.early_time_steps={1: 1}", "--trainer.max_epochs=2", "--test_after_fit=true", *FEW, *SILENT]
    )
    (run,) = find_runs("runs")
    write_results(tmp_path / "results.csv", [run])
    (published,) = published_runs(tmp_path / "results.csv")
    assert published.settings == run.settings
    assert published.key == run.key
    assert published.settings["model.neuron.k"] == 0.3
    assert published.setting("seed_everything") == run.setting("seed_everything")
    assert (published.protocol, published.epochs, data_title(published)) == ("B", 2, data_title(run))
    assert published.accuracy == pytest.approx(run.accuracy, abs=6e-5)
    assert published.best[1] == pytest.approx(run.best[1], abs=6e-5)
    assert published.spikes == pytest.approx(run.spikes, abs=0.5)


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
    assert rows
    for row in rows:
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


def test_a_page_with_other_tables_and_another_caption_is_renewed():
    page = "a\n\n## T\n\nb\n\n| x |\n|---|\n| 1 |\n\nc\n\n![d](e.png)\n\nf\ng\n\nh\n"
    assert publish.with_table(page, "T", "| y |\n|---|\n") == page.replace("| x |\n|---|\n| 1 |", "| y |\n|---|")
    assert publish.with_caption(page, "e.png", "i") == page.replace("f\ng", "i")


def test_the_short_table_of_the_readme_is_of_measured_runs():
    """Accuracy, epochs, minutes and number of seeds of each of its rows are those of a row of the results."""
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    short = [re.split(r"\s*\|\s*", line)[1:-1] for line in lines if re.search(r"\| \d+\.\d\d \([AB]\) \|", line)]
    table = markdown(results_table(read_results(RESULTS))).splitlines()
    whole = {
        (row[5].split(" ")[0], row[4], row[3], row[7], (re.findall(r", (\d+) seeds$", row[5]) or ["1"])[0])
        for row in (re.split(r"\s*\|\s*", line)[1:-1] for line in table)
        if len(row) == 8
    }
    assert len(short) >= 8
    for row in short:
        accuracy, protocol = row[2].rstrip(")").split(" (")
        assert (accuracy, protocol, *row[4:7]) in whole
