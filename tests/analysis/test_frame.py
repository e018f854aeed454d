"""Runs as a data frame, and what tables say of the runs that they average."""

import math
from pathlib import Path

import pandas as pd
import pytest

import plif_lightning as pl
from plif_lightning.analysis.layers import layer_table
from plif_lightning.analysis.leaderboard import comparison_table, leaderboard_table
from plif_lightning.analysis.select import counted, groups
from plif_lightning.analysis.words import labels
from plif_lightning.cli import main
from plif_lightning.errors import UserError
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.run import find_runs
from plif_lightning.structure import NUMBERS
from tests.cli.calls import refused
from tests.writers import edit_session, write_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a", (0.5, 0.75, 0.7), seed=1)
    write_run(tmp_path / "runs" / "b", (0.5, 0.85, 0.7), seed=2)
    write_run(tmp_path / "runs" / "deep/c", (0.4,), seed=1, neuron="lif", init_tau=3.0, finished=False)
    return tmp_path / "runs"


def test_a_frame_has_a_row_a_run_with_results_and_every_setting(runs):
    frame = pl.read_runs(runs)
    assert list(frame.index) == ["a", "b", "deep/c"]
    assert frame.index.name == "run"
    assert frame.loc["a", ["status", "protocol", "seed", "epochs", "best_epoch"]].tolist() == ["finished", "A", 1, 3, 2]
    assert frame.loc["a", "accuracy"] == frame.loc["a", "validation"] == 0.75
    assert math.isnan(frame.loc["a", "test"])
    assert frame.loc["a", "minutes"] == 3
    assert frame.loc["a", "tau.conv1"] == pytest.approx(1.8)  # of the best epoch
    assert frame["model.init_tau"].tolist() == [2.0, 2.0, 3.0]
    assert frame["data.time_steps"].tolist() == [8, 8, 8]
    assert frame.loc["deep/c", "status"] == "failed"
    assert frame.groupby("model.neuron")["accuracy"].mean()["plif"] == pytest.approx(0.8)
    assert frame.loc["a", "key"] == frame.loc["b", "key"] != frame.loc["deep/c", "key"]
    assert frame.loc["a", "commit"] == "0123456789ab"


def test_runs_are_listed_with_distinguishing_settings(runs, capsys):
    main(["runs"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["status", "data", "seed", "epochs", "accuracy", "minutes"]
    assert head.split()[6:] == ["model.init_tau", "model.neuron", "trainer.max_epochs", "left_out"]
    expected = ["a", "finished", "plif_lightning.data.FashionMNIST", "1", "3", "0.75", "3", "2", "plif", "3"]
    assert rows[0].split() == expected
    assert rows[2].endswith("not come to their end (fit --run_folder RUN) (epoch 1, without a checkpoint)")
    paths = ["runs/deep/c", "./runs/deep/c/", str(Path("runs/deep/c").absolute()), "deep/c"]
    said = [(main(["runs", "--compare", "a", path]), capsys.readouterr().out)[1] for path in paths]
    assert len({*said}) == 1
    lines = {line.split()[0]: line.split()[1:] for line in said[0].splitlines()}
    assert lines["run"] == ["a", "deep/c"]
    assert lines["model.neuron"] == ["plif", "lif"]
    assert "data" not in lines
    assert "no is no run in runs: it has a, b, deep/c" in refused(capsys, "runs", "--compare", "a", "no")


@pytest.mark.parametrize("suffix", ["csv", "md", "tex", "html"])
def test_the_frame_is_written_by_pandas(suffix, runs, capsys):
    main(["runs", "--out", f"all.{suffix}"])
    text = Path(f"all.{suffix}").read_text()
    assert "model.init" in text.replace("\\", "")
    if suffix == "csv":
        assert pd.read_csv("all.csv", index_col="run")["accuracy"].tolist() == [0.75, 0.85, 0.4]
    assert "must end in .csv, .md, .tex, .html" in refused(capsys, "runs", "--out", "all.txt")


def test_a_table_names_the_runs_of_a_row_and_other_commits_below(runs, capsys):
    found = find_runs(runs)
    around = {"machine": "abacus, 1 core", "commit": "fedcba987654", "versions": "Python 5"}
    edit_session(found[1].folder, surroundings=around)
    table = comparison_table(find_runs(runs))
    assert table.runs == [["a", "b"]]
    assert table.with_its_runs.rows == [[*table.rows[0], "a b"]]
    notes = "\n".join(table.notes)
    assert "a, b are averaged over several commits: 0123456789ab (a); fedcba987654 (b)." in notes
    assert "several versions: Python 4, torch 9 (a); Python 5 (b)." in notes
    assert "machines" not in notes
    main(["tables", "--only", "runs", "--show_runs"])
    assert "a b" in capsys.readouterr().out


def test_labels_name_edited_code_and_changes_on_resuming(runs):
    first, second, _ = find_runs(runs)
    edit_session(first.folder, code={"my_nets": "0123"})
    edit_session(second.folder, step=30, changes=[["data.batch_size", 4, 8]])
    found = find_runs(runs)[:2]
    names = labels([group.runs[0] for group in groups(found)]).each
    assert len({*names}) == 2
    assert "batch_size 8 instead of 4 after step 30" in names[1]
    third = write_run(runs / "d", seed=1)
    edit_session(third, code={"my_nets": "4567"})
    edit_session(second.folder, changes=[], code={"my_nets": "89ab"})
    names = labels([group.runs[0] for group in groups(find_runs(runs))]).each
    assert len({*names}) == 3


def test_gradient_compression_hook_distinguishes_runs():
    hook = "torch.distributed.algorithms.ddp_comm_hooks.default_hooks.bf16_compress_hook"
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"ddp_comm_hook": hook}}
    plain = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"find_unused_parameters": True}}
    assert Identity.of({"trainer": {"strategy": strategy}}).settings["trainer.strategy.ddp_comm_hook"] == hook
    assert (
        Identity.of({"trainer": {"strategy": plain}}).settings
        == Identity.of({"trainer": {"strategy": "ddp"}}).settings
        == Identity.of({}).settings
    )


def test_gains_refer_to_the_chosen_baseline_and_name_it(runs, capsys):
    for seed in (1, 2):
        write_run(runs / f"lif{seed}", (0.5, 0.6 + seed / 100, 0.5), seed=seed, neuron="lif")
    found = find_runs(runs)
    by_default, chosen = comparison_table(found), comparison_table(found, {"model.neuron": "lif"})
    gain = by_default.columns.index("gain")
    assert [row[gain] == "baseline" for row in by_default.rows] == [True, False]  # PLIF, the paper's, is first
    assert chosen.columns[gain] == "gain beside neuron lif"
    assert [row[gain] == "baseline" for row in chosen.rows] == [False, True]
    assert chosen.rows[0][gain].startswith("+18.50")
    assert comparison_table(found, {"model.neuron": "clif"}).rows[0][gain] == ""
    main(["tables", "--only", "runs", "--baseline", "model.neuron=lif"])
    assert "gain beside neuron lif" in capsys.readouterr().out
    assert "--baseline must be NAME=VALUE" in refused(capsys, "tables", "--baseline", "lif")


def test_a_run_of_another_program_is_a_row_like_any_other(runs, capsys):
    about = {"data": "my gestures", "samples": (1000, 200), "epochs": 12}
    for seed, accuracy in ((1, 0.81), (2, 0.83)):
        settings = {"model.neuron": "lif", "data.time_steps": 8}
        pl.record_run(runs / f"mine{seed}", settings, accuracy, validation_accuracy=0.9, seed=seed, **about)
    pl.record_run(runs / "theirs", {"data.time_steps": 8}, 0.7, validation="test", seed=1, **about)
    frame = pl.read_runs(runs)
    assert frame.loc["mine1", ["status", "protocol", "seed", "epochs"]].tolist() == ["finished", "B", 1, 12]
    assert frame.loc["mine1", ["accuracy", "test", "validation"]].tolist() == [0.81, 0.81, 0.9]
    assert frame.loc["theirs", ["protocol", "accuracy"]].tolist() == ["A", 0.7]
    assert frame.loc["mine2", "data.time_steps"] == 8
    table = comparison_table(find_runs(runs))
    (row,) = [row for row, names in zip(table.rows, table.runs, strict=True) if names == ["mine1", "mine2"]]
    assert row[:6] == ["my gestures", "LIF, tau = 2", "B", "8", "12", "82.00"]
    assert ["theirs"] in table.runs
    with pytest.raises(ValueError, match="holds a run already"):
        pl.record_run(runs / "theirs", {}, 0.5, **about)
    with pytest.raises(ValueError, match="accuracy must lie from 0 to 1, got 81"):
        pl.record_run(runs / "percent", {}, 81, **about)


def test_a_change_on_resuming_is_named_whichever_run_comes_first(runs):
    for name in ("a", "b"):
        first, second, _ = find_runs(runs)
        changed_run = first if name == "a" else second
        for run in (first, second):
            edit_session(run.folder, step=724, changes=[["data.batch_size", 8, 32]] if run is changed_run else [])
        firsts = [group.runs[0] for group in groups(find_runs(runs))]
        of_runs = dict(zip([run.name for run in firsts], labels(firsts).each, strict=True))
        assert "batch_size 32 instead of 8 after step 724" in of_runs[name]


def test_latest_run_of_a_seed_counts_and_the_table_names_the_others(tmp_path):
    for name, started in (("a", 1.0), ("b", 2.0)):
        write_run(tmp_path / name, started=started)
    frame = pl.read_runs(tmp_path)
    assert frame["averaged"].to_dict() == {"a": False, "b": True}
    assert frame.loc["a", "left_out"] == "a later run, in brackets, has the same settings and seed (b)"
    assert pd.isna(frame.loc["b", "left_out"])
    notes = comparison_table(find_runs(tmp_path)).notes
    assert "Left out, because a later run, in brackets, has the same settings and seed: a (b)." in notes


def test_runs_on_other_data_are_told_apart(tmp_path):
    for name, content in (("a", "4e81"), ("b", "9f02"), ("c", "9f02")):
        write_run(tmp_path / name, content=content, seed=ord(name))
    table = comparison_table(find_runs(tmp_path))
    assert sorted(table.runs) == [["a"], ["b", "c"]]
    assert len({row[1] for row in table.rows}) == 2
    assert all(", content of the data " in row[1] for row in table.rows)
    write_run(tmp_path / "alike" / "d", content="4e81", seed=1)
    assert labels(find_runs(tmp_path / "alike")).each == ["PLIF, tau_0 = 2"]


def test_code_edited_on_resuming_is_named_as_it_was_and_as_it_is(tmp_path):
    folder = write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1)
    edit_session(folder, step=49, code={"my_nets": "fc6ed4aa"})
    edit_session(folder, changes=[["code", {"my_nets": "d3239dbb"}, {"my_nets": "fc6ed4aa"}]])
    table = comparison_table(find_runs(tmp_path))
    assert table.rows[0][1] == "PLIF, tau_0 = 2, code my_nets d3239d, code my_nets fc6ed4 after step 49"
    other = write_run(tmp_path / "c", seed=2)
    edit_session(other, code={"my_nets": "d3239dbb"})
    notes = comparison_table(find_runs(tmp_path)).notes
    assert "How code differs: runs --compare RUN RUN." in notes
    assert "How code differs: runs --compare RUN RUN." not in table.notes


def test_tables_say_why_a_folder_has_no_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "killed", (), finished=False)
    main(["tables"])
    assert "not come to their end (fit --run_folder RUN): killed (epoch 0, without a checkpoint)." in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_gain_over_some_seeds_says_so_whichever_side_lacks_them(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"plif{seed}", (0.5, 0.7 + seed / 100), seed=seed)
    write_run(tmp_path / "lif", (0.5, 0.8), seed=1, neuron="lif")
    table = comparison_table(find_runs(tmp_path))
    assert table.rows[0][table.columns.index("gain")] == "+9.00 (1 of 2 seeds)"


def test_layers_of_runs_of_other_lengths_are_told_apart(tmp_path):
    for name, accuracies, steps in (("a", (0.5, 0.6), 8), ("b", (0.5, 0.6, 0.7), 4)):
        write_run(tmp_path / name, accuracies, time_steps=steps)
    rows = layer_table(find_runs(tmp_path)).rows
    assert [row[2:6] for row in rows] == [
        [*of_run, layer] for of_run in (("A", "8", "2"), ("A", "4", "3")) for layer in ("conv1", "fc1")
    ]


def test_runs_that_no_leaderboard_has_are_named_with_their_settings(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"plif{seed}", validation="holdout", test=0.7, seed=seed)
        write_run(tmp_path / f"lif{seed}", validation="holdout", test=0.8, seed=seed, neuron="lif")
    write_run(tmp_path / "large", validation="holdout", test=0.8, data_arguments={"batch_size": 77})
    notes = " ".join(leaderboard_table(find_runs(tmp_path)).notes)
    assert "with them: large (PLIF, tau_0 = 2, batch_size 77, 3 epochs)." in notes


def test_a_batch_size_that_was_changed_on_resuming_is_not_shared_with_runs_that_always_had_it(tmp_path):
    write_run(tmp_path / "a", data_arguments={"batch_size": 32})
    folder = write_run(tmp_path / "b", data_arguments={"batch_size": 32}, seed=3)
    edit_session(folder, step=100, changes=[["data.batch_size", 8, 32]])
    table = comparison_table(find_runs(tmp_path))
    assert sorted(row[1] for row in table.rows) == [
        "PLIF, tau_0 = 2, batch_size 32", "PLIF, tau_0 = 2, batch_size 32 instead of 8 after step 100"
    ]  # fmt: skip
    assert not any(note.startswith("All of") for note in table.notes)


def test_missing_baseline_is_reported(tmp_path):
    write_run(tmp_path / "a")
    notes = comparison_table(find_runs(tmp_path), {"model.neuron": "liff"}).notes
    assert "No gains: no run has neuron liff." in notes


def test_run_of_another_program_is_labelled_and_its_settings_are_validated(tmp_path):
    known = {"data": "digits", "samples": (100, 10), "epochs": 3}
    pl.record_run(tmp_path / "a", {"model.neuron": "lif"}, 0.9, **known)
    pl.record_run(tmp_path / "b", {}, 0.9, **known)
    write_run(tmp_path / "c", neuron="lif", data="Digits", title="digits", validation="holdout", test=0.9)
    labels_of_rows = {row[1] for row in comparison_table(find_runs(tmp_path)).rows}
    assert {"?, recorded by another program", "LIF, tau = 2, recorded by another program"} < labels_of_rows
    for wrong, message in (({"model.neurn": "lif"}, "model.neuron"), ({"seed_everything": 4}, "seed_everything")):
        with pytest.raises(UserError, match=message):
            pl.record_run(tmp_path / "d", wrong, 0.9, **known)


def test_network_of_ones_own_is_not_labelled_with_arguments_it_lacks(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        model = {"network": {"class_path": "torch.nn.Flatten", "init_args": {"start_dim": seed}}, "dropout": 0.5}
        write_run(tmp_path / name, data="Digits", model={**model, "structure": None, **dict.fromkeys(NUMBERS)})
    named = labels(find_runs(tmp_path))
    assert not any("dropout" in label or "n_conv" in label for label in [*named.each, named.shared])


def test_runs_of_a_row_are_one_column_of_its_file(tmp_path):
    write_run(tmp_path / "runs/a")
    for extra in ([], ["--show_runs"]):
        main(["tables", "--runs", str(tmp_path / "runs"), "--only", "2", "--out", str(tmp_path / "out"), *extra])
        header = (tmp_path / "out/table2.csv").read_text().splitlines()[0].split(",")
        assert header.count("runs") == 1


def test_unknown_surroundings_are_missing(tmp_path):
    pl.record_run(tmp_path / "theirs", {}, 0.9, data="MNIST", samples=(100, 10), epochs=3)
    assert pl.read_runs(tmp_path).loc["theirs", ["commit", "machine", "versions"]].isna().all()


def test_a_curve_averages_runs_with_a_result_or_those_that_ended_or_all(tmp_path):
    def of_seeds(**runs):
        for seed, (name, settings) in enumerate(runs.items()):
            write_run(tmp_path / name, seed=seed, validation="holdout", **settings)
        return [run.name for run in counted(find_runs(tmp_path))]

    assert of_seeds(stopped={"finished": False}, other={"finished": False}) == ["other", "stopped"]
    assert of_seeds(untested={}) == ["untested"]
    assert of_seeds(tested={"test": 0.9}) == ["tested"]
