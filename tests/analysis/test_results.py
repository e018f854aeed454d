"""The table of results: a row a run, whose command repeats it."""

import csv
import json
import re

import numpy as np
import pytest
import yaml

from plif_lightning.analysis.results import COLUMNS, digest, merged, read_results, results_table, row_of, write_results
from plif_lightning.analysis.tables import cells, markdown
from plif_lightning.cli import main
from plif_lightning.errors import UserError
from plif_lightning.runs.reading import find_runs, read_run
from plif_lightning.runs.settings import changed, only_longer
from tests import publish
from tests.cli.calls import FEW, SILENT, TINY
from tests.conftest import REPOSITORY
from tests.test_configs import parsed
from tests.writers import COST, write_run

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


def test_a_table_of_an_earlier_version_is_read_and_gains_the_columns_that_came_later(tmp_path):
    write_run(tmp_path / "runs" / "a", cost=COST)
    write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs"))
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    earlier = COLUMNS[: COLUMNS.index("validation")]
    text = [",".join(earlier), ",".join(f'"{rows[0][name]}"' for name in earlier)]
    (tmp_path / "earlier.csv").write_text("\n".join(text).replace("2020", "7") + "\n")
    (old, new) = sorted(
        write_results(tmp_path / "earlier.csv", find_runs(tmp_path / "runs")), key=lambda r: r["spikes"]
    )
    assert (old["seed"], old["spikes"], old["accuracy"]) == ("7", "", "75.00")
    assert (new["seed"], new["spikes"]) == ("2020", "102")


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


def test_a_command_that_gives_another_result_now_renews_its_row(tmp_path):
    write_run(tmp_path / "runs" / "a")
    (row,) = write_results(tmp_path / "a.csv", find_runs(tmp_path / "runs"))
    later = {**row, "hash": "another", "accuracy": "93.00"}
    assert merged([row], [later]) == [later]
    assert merged([{**row, "overrides": "resume=auto checkpoint.every_n_batches=500"}], [later]) == [later]
    other = {**later, "overrides": "model.init_tau=4"}
    assert sorted(merged([row], [other]), key=str) == sorted([row, other], key=str)


def test_a_file_of_ones_own_that_was_edited_is_another_experiment(tmp_path):
    """Found by a review: the row of a run was gone after another with the same command and other settings."""
    write_run(tmp_path / "runs" / "a")
    (row,) = write_results(tmp_path / "a.csv", find_runs(tmp_path / "runs"))
    first, second = ({**row, "configuration": "fashionmnist + my.yaml", "hash": name} for name in ("one", "two"))
    assert merged([first], [second]) == [first, second]
    assert merged([first], [{**first, "accuracy": "93.00"}]) == [{**first, "accuracy": "93.00"}]


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


GOOD = {
    "accuracy": "93.5", "validation": "", "standard_error": "0.2", "seconds": "60", "spikes": "", "energy_uj": "0.5",
    "seed": "1", "protocol": "B", "epochs": "10", "tau": "conv1 1.32, fc1 5.2", "data": "d", "hash": "h",
}  # fmt: skip


def lines(*rows):
    text = [",".join(f'"{row.get(name, "x")}"' for name in COLUMNS) for row in rows]
    return "\n".join([",".join(COLUMNS), *text, ""])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1,2\n", "its columns differ .data, source"),
        (f"{','.join(COLUMNS)}\n1,2\n", "line 2 has too few or too many values"),
        (f"{','.join(COLUMNS)},notes\n", "its columns differ .notes"),
        *(
            (lines(GOOD, {**GOOD, name: value}), f"{name} in line 3 must be {wanted}.*, got '{value}'")
            for name, value, wanted in (
                ("accuracy", "x", "a number from 0 to 100"),
                ("accuracy", "", "a number from 0 to 100"),
                ("validation", "870", "a number from 0 to 100"),
                ("seconds", "nan", "a number from 0"),
                ("spikes", "-1", "a number from 0"),
                ("energy_uj", "inf", "a number from 0"),
                ("standard_error", "0,3", "a number from 0"),
                ("seed", "1.0", "a whole number"),  # as pandas writes them if one is missing
                ("protocol", "b", "A or B"),
                ("epochs", "10.0", "a whole number"),
                ("tau", "conv1", "like .conv1 1.32, fc1 5.2."),
                ("tau", "conv1 1.3, ", "like .conv1 1.32, fc1 5.2."),
            )
        ),
        (lines(GOOD, {**GOOD, "tau": "conv1 1.32"}), "tau in line 3 is of other layers"),
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
    """Configurations after arguments, lists that grow, a run that went on with other arguments: all as it became."""
    given = ["--model.pooling", "avg", "--config", "quickstart", *TINY, *FEW, *SILENT, "--config", "lif"]
    given += ["--data.augmentation+=HorizontalFlip", "--data.augmentation+=RandomCrop", "--data.augmentation.padding=1"]
    main(["fit", *given, "--trainer.max_epochs", "1", "--record_samples=0", "--run_folder", str(tmp_path / "a")])
    went_on = ["--config", str(tmp_path / "a" / "config.yaml"), "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    main(["fit", *went_on])
    run = read_run(tmp_path / "a")
    again, then = parsed(*row_words(row_of(run))), yaml.safe_load(run.folder.config.read_text())
    for config in (again, then):
        for name in ("root", "store"):
            config["data"]["init_args"].pop(name, None)
        del config["trainer"]["logger"], config["trainer"]["enable_progress_bar"]
    for block in ("model", "data", "trainer", "seed_everything", "test_after_fit", "best_of_ties", "record_samples"):
        assert again[block] == then[block]
    assert then["trainer"]["max_epochs"] == 2
    assert len(then["data"]["init_args"]["augmentation"]) == 2
    assert run.surroundings.keys() >= {"machine", "versions"}
    assert "torch " in run.surroundings["versions"]


def test_an_accuracy_that_is_reached_exactly_counts_though_it_is_kept_in_float32(tmp_path):
    write_run(tmp_path / "a", accuracies=[float(np.float32(share)) for share in (0.7, 0.9, 0.9385)])
    assert row_of(read_run(tmp_path / "a"))["seconds_to"] == "70: 60 (epoch 1); 90: 120 (epoch 2); 93.85: 180 (epoch 3)"


def test_a_configuration_of_ones_own_keeps_its_path(tmp_path):
    write_run(tmp_path / "a", arguments=["--config", "/home/me/configs/mnist.yaml", "--ckpt_path", "other.ckpt"])
    write_run(tmp_path / "b", arguments=["--config", "/home/me/configs/mnist.yaml", "--ckpt_path", "third.ckpt"])
    a, b = row_of(read_run(tmp_path / "a")), row_of(read_run(tmp_path / "b"))
    assert a["configuration"] == "/home/me/configs/mnist.yaml"
    assert a["command"].endswith("--ckpt_path other.ckpt")
    assert a["hash"] != b["hash"]  # what they began from differs


def test_a_run_that_went_on_with_other_settings_says_so_and_is_another_experiment(tmp_path):
    for name in ("straight", "changed"):
        write_run(tmp_path / name, seed=name == "changed")
    command = json.loads((tmp_path / "changed/command.json").read_text())
    command["changes"] = [{"step": 154, "settings": {"trainer.gradient_clip_val": 0.1}}]
    (tmp_path / "changed/command.json").write_text(json.dumps(command))
    straight, row = (row_of(read_run(tmp_path / name)) for name in ("straight", "changed"))
    assert row["hash"] != straight["hash"]
    assert row["overrides"].endswith("after step 154 trainer.gradient_clip_val=0.1")
    assert row["command"].endswith("; after step 154 trainer.gradient_clip_val=0.1")


def test_what_makes_a_run_only_longer_is_no_change():
    before = {"model": {"lr_scheduler": None}, "trainer": {"max_epochs": 2, "precision": "32-true", "callbacks": None}}
    after = {**before, "trainer": {"max_epochs": 4, "precision": "bf16-mixed", "callbacks": ["EMA"], "later": False}}
    found = changed(before, after)
    assert found == {"trainer.max_epochs": 4, "trainer.precision": "bf16-mixed", "trainer.callbacks": ["EMA"]}
    assert [name for name in found if only_longer(name, after)] == ["trainer.max_epochs"]
    cycle = {**after, "model": {"lr_scheduler": {"class_path": "plif_lightning.training.schedules.OneCycle"}}}
    assert not only_longer("trainer.max_epochs", cycle)
    plateau = {**after, "model": {"lr_scheduler": {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau"}}}
    assert not only_longer("trainer.max_epochs", plateau)
    average = [{"class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging", "init_args": {"swa_lrs": 0.1}}]
    assert not only_longer("trainer.max_epochs", {**after, "trainer": {**after["trainer"], "callbacks": average}})
    assert changed(before, before) == {}


def test_a_value_that_begins_with_a_dash_is_no_option_of_the_command(tmp_path):
    write_run(tmp_path / "a", arguments=["--config=fashionmnist", "--model.v_reset=-1e-3", "--model.init_tau=3"])
    (row,) = write_results(tmp_path / "results.csv", find_runs(tmp_path))
    assert row["command"] == "python main.py fit --config fashionmnist --model.v_reset=-1e-3 --model.init_tau 3"


def test_runs_without_a_command_are_told_apart_by_their_settings(tmp_path):
    for name, tau in (("a", 2.0), ("b", 16.0)):
        write_run(tmp_path / "runs" / name, init_tau=tau)
        (tmp_path / "runs" / name / "command.json").unlink()
    rows = write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs"))
    assert [row["command"] for row in rows] == ["", ""]


def test_own_data_is_never_the_papers_and_its_folder_is_part_of_the_command(tmp_path):
    for name in ("cats", "cars"):
        given = ["--data.root", f"/somewhere/{name}"]
        run = write_run(tmp_path / "runs" / name, data="ImageFolder", title="MNIST", arguments=given)
        run.data.write_text(json.dumps({**json.loads(run.data.read_text()), "content": name}))
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
        run = write_run(tmp_path / "runs" / name, (0.5, accuracy))
        run.command.write_text(json.dumps({**json.loads(run.command.read_text()), "started": started}))
    runs = find_runs(tmp_path / "runs")
    assert [row["accuracy"] for row in write_results(tmp_path / "results.csv", runs)] == ["95.00"]
    assert [cell.accuracy for cell in cells(runs)] == [95.0]


def test_of_several_validations_in_an_epoch_the_best_counts_as_its_checkpoint_does(tmp_path):
    run = write_run(tmp_path / "a", (0.5, 0.95, 0.7))
    run.metrics.write_text(run.metrics.read_text().replace("\n2,", "\n1,"))
    assert read_run(tmp_path / "a").best == (2, 0.95)


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
        run = write_run(
            *(tmp_path / "runs" / place, (0.5,)), data="EventFolder", title="gestures",
            arguments=["--config=configs/nmnist.yaml", "--data=EventFolder", f"--data.root=/data/{place}/gestures"],
        )  # fmt: skip
        run.data.write_text(json.dumps({**json.loads(run.data.read_text()), "content": content}))
    runs = find_runs(tmp_path / "runs")
    assert len(write_results(tmp_path / "results.csv", runs)) == 2
    assert len(write_results(tmp_path / "results.csv", runs)) == 2  # once more


def test_an_interval_ends_at_nothing_and_at_all(tmp_path):
    for seed, accuracy in enumerate((0.02, 0.3)):
        write_run(tmp_path / "runs" / f"{seed}", (accuracy,), seed=seed)
    rows = write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs"))
    assert results_table(rows).rows[0][5] == "16.00 [0.00, 100.00], 2 seeds"


def test_a_hash_outlives_new_options_but_not_ties(tmp_path):
    for name in ("old", "new", "ties"):
        write_run(tmp_path / name, validation="holdout", test=0.5)
    for name, key, value in (("new", "model", {"later": 0.0, "other": None}), ("ties", None, {"best_of_ties": "last"})):
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        (config[key] if key else config).update(value)
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    found = {run.name: digest(run) for run in find_runs(tmp_path)}
    assert found["old"] == found["new"] != found["ties"]


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
