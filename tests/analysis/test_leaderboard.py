"""The leaderboard: settings beside the paper's over the same seeds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from plif_lightning.analysis.figures import drawn
from plif_lightning.analysis.leaderboard import comparison_table, gains_table, leaderboard_table, standings
from plif_lightning.cli import main
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.record import update
from plif_lightning.runs.run import find_runs, read_run
from tests.cli.calls import refused
from tests.writers import COST, PAPER, edit_session, write_run

SEEDS = {1: 0.90, 2: 0.91, 3: 0.93}


def write(root, name, tests, **changes):
    """A run for each seed, of the paper's setting but for the changes; validation accuracy is the test's less 0.01."""
    for seed, test in tests.items():
        folder = write_run(
            *(root / f"{name}-{seed}", (0.5, test - 0.01)), seed=seed, validation="holdout", test=test,
            model={**PAPER, **changes}, cost=COST,
        )  # fmt: skip
        if "structure" in changes:
            update(folder, structure=changes["structure"])


def board(root):
    (found,) = standings(find_runs(root))
    return {row.change: row for row in found}


def test_a_gain_is_the_mean_of_paired_differences_with_students_interval(tmp_path):
    write(tmp_path, "paper", SEEDS)
    lif = {1: 0.88, 2: 0.90, 3: 0.915}
    write(tmp_path, "lif", lif, neuron="lif")
    found = board(tmp_path)
    assert list(found) == ["", "neuron lif"]  # by validation accuracy
    row = found["neuron lif"]
    expected = stats.ttest_rel([*lif.values()], [*SEEDS.values()]).confidence_interval()
    assert (row.gain.low, row.gain.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert row.gain.mean == pytest.approx(-1.5)
    assert row.verdict == "worse"
    assert row.cell.accuracy == pytest.approx(100 * np.mean([*lif.values()]))
    assert found[""].verdict == ""
    assert math.isnan(found[""].gain.low)


def test_gain_uses_common_seeds_and_has_no_interval_for_a_single_one(tmp_path):
    write(tmp_path, "paper", SEEDS)
    write(tmp_path, "rate", {3: 0.94, 4: 0.1}, loss="rate")
    write(tmp_path, "soft", {5: 0.9}, reset="soft")
    found = board(tmp_path)
    assert found["loss rate"].gain.mean == pytest.approx(1.0)
    assert math.isnan(found["loss rate"].gain.low)
    assert math.isnan(found["reset soft"].gain.mean)
    table = leaderboard_table(find_runs(tmp_path))
    rows = {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert (rows["loss rate"]["gain"], rows["loss rate"]["its 95 % interval"]) == ("+1.00 (1 of 3 seeds)", "")
    assert (rows["reset soft"]["gain"], rows["the paper's"]["gain"]) == ("", "baseline")


def test_baseline_is_the_setting_with_the_fewest_differences(tmp_path):
    """A width that was tried beside the paper's setting is a row, not the base of another leaderboard."""
    write(tmp_path, "paper", SEEDS, dropout=0.2)
    write(tmp_path, "lif", SEEDS, dropout=0.2, neuron="lif")
    write(tmp_path, "avg", SEEDS, dropout=0.2, pooling="avg")
    write(tmp_path, "more", SEEDS, dropout=0.5)
    assert set(board(tmp_path)) == {"", "neuron lif", "pooling avg", "dropout 0.5"}


def test_other_data_or_epochs_are_another_leaderboard_and_protocol_a_none(tmp_path):
    write(tmp_path, "paper", SEEDS)
    write(tmp_path, "lif", SEEDS, neuron="lif")
    write_run(tmp_path / "a", model={**PAPER, "loss": "rate"})
    for name, neuron in (("b", "plif"), ("c", "if")):
        write_run(
            *(tmp_path / name, (0.5, 0.6, 0.7)), validation="holdout", test=0.7, model={**PAPER, "neuron": neuron}
        )
    for name, neuron in (("d", "plif"), ("e", "if")):
        write_run(
            *(tmp_path / name, (0.5, 0.6, 0.7)), validation="holdout", test=0.7, model={**PAPER, "neuron": neuron},
            data_arguments={"batch_size": 7},
        )  # fmt: skip
    found = standings(find_runs(tmp_path))
    assert sorted(len(rows) for rows in found) == [2, 2, 2]
    assert {tuple(rows[0].cell.epochs) for rows in found} == {(2, 2, 2), (3,)}
    title = "Fashion-MNIST"
    # By epochs and what else tells them apart.
    assert {rows[0].data for rows in found} == {
        f"{title}, 2 epochs", f"{title}, 3 epochs", f"{title}, 3 epochs, batch_size 7"
    }  # fmt: skip


def test_the_papers_setting_with_edited_code_is_the_baseline_only_alone(tmp_path):
    write(tmp_path, "edited", SEEDS)
    for seed in SEEDS:
        edit_session(RunFolder(tmp_path / f"edited-{seed}"), code={"plif_lightning": "0123456789ab"})
    write(tmp_path, "lif", SEEDS, neuron="lif")
    (alone,) = standings(find_runs(tmp_path))
    assert [row.name for row in alone if row.is_baseline] == ["the paper's, code plif_lightning 012345"]
    write(tmp_path, "paper", SEEDS)
    (rows,) = standings(find_runs(tmp_path))
    assert {row.name: row.is_baseline for row in rows} == {
        "the paper's": True, "neuron lif": False, "code plif_lightning 012345": False
    }  # fmt: skip


def test_a_baseline_by_neuron_is_found_by_any_of_its_names_and_in_structures(tmp_path):
    write(tmp_path, "plif", SEEDS)
    write(tmp_path, "written", SEEDS, structure="FC8b-AdLIF-FC10b-AdLIF")
    write(tmp_path, "set", SEEDS, neuron={"class_path": "plif_lightning.AdLIF"})
    for value, found in (
        ("plif", {"plif"}), ("adlif", {"written", "set"}), ("AdLIF", {"written", "set"}),
        ("plif_lightning.AdLIF", {"written", "set"}),
    ):  # fmt: skip
        (rows,) = standings(find_runs(tmp_path), {"model.neuron": value})
        (base,) = (row for row in rows if row.is_baseline)
        assert base.cell.runs[0].name.partition("-")[0] in found


def test_of_settings_that_differ_alike_the_one_with_fewest_is_the_baseline(tmp_path):
    """Whatever the order of the runs."""
    write(tmp_path, "a", SEEDS, neuron="lif", reset="soft")
    write(tmp_path, "b", SEEDS, neuron="lif")
    for runs in (find_runs(tmp_path), find_runs(tmp_path)[::-1]):
        table = comparison_table(runs)
        gains = {row[1]: row[table.columns.index("gain")] for row in table.rows}
        assert gains["LIF, tau = 2"] == "baseline"


def test_settings_of_groups_are_whole_and_taus_are_the_structures(tmp_path):
    groups = [{"match": "*.delay", "lr": 0.00025}]
    write(tmp_path, "groups", SEEDS, parameter_groups=groups)
    for name, taus in (("ten", (10.0, 10.0)), ("mixed", (10.0, 3.0))):
        first, second = taus
        write(tmp_path, name, SEEDS, structure=f"FC8b-PLIF(init_tau={first})-FC10b-PLIF(init_tau={second})")
    settings = [row[1] for row in comparison_table(find_runs(tmp_path)).rows]
    assert any(setting.endswith("parameter_groups lr 0.00025, match *.delay") for setting in settings)
    assert sum(setting.startswith("PLIF, tau_0 = 10,") for setting in settings) == 1
    assert sum(setting.startswith("PLIF, tau_0 of each layer,") for setting in settings) == 1


def test_a_baseline_of_other_settings_than_the_networks_is_refused(tmp_path, capsys):
    write(tmp_path, "paper", SEEDS)
    message = refused(capsys, "tables", "--runs", str(tmp_path), "--baseline", "data.batch_size=32")
    assert "takes settings of --model and --data.probe, not data.batch_size" in message


def test_settings_that_were_tested_on_other_samples_are_not_compared(tmp_path):
    write(tmp_path, "paper", SEEDS)
    write(tmp_path, "lif", SEEDS, neuron="lif")
    write(tmp_path, "if", SEEDS, neuron="if")
    for name, content in (("paper", "x"), ("lif", "x"), ("if", "y")):
        for seed in SEEDS:
            folder = RunFolder(tmp_path / f"{name}-{seed}")
            update(folder, data=replace(read_run(folder.path).record.data, content="same", test_content=content))
    assert set(board(tmp_path)) == {"", "neuron lif"}


def test_without_the_papers_setting_there_is_none(tmp_path):
    write(tmp_path, "lif", SEEDS, neuron="lif")
    write(tmp_path, "if", SEEDS, neuron="if")
    assert standings(find_runs(tmp_path)) == []


def test_spikes_and_energy_come_from_the_best_epoch(tmp_path):
    write(tmp_path, "paper", SEEDS)
    write(tmp_path, "lif", SEEDS, neuron="lif")
    row = board(tmp_path)[""]
    # write_run gives firing rates of 0.1 and 0.02
    assert row.mean("spikes") == pytest.approx(0.1 * 1000 + 0.02 * 100)
    assert row.mean("firing_rate") == pytest.approx(102 / 1100)
    assert row.mean("energy") == pytest.approx(2.5)


def test_the_command_prints_it(tmp_path, capsys):
    write(tmp_path / "runs", "paper", SEEDS)
    write(tmp_path / "runs", "lif", {1: 0.88, 2: 0.90, 3: 0.915}, neuron="lif")
    write_run(tmp_path / "runs/other", (0.9,), data="NMNIST", seed=1, validation="holdout", test=0.9, model=PAPER)
    main(["tables", "--only", "leaderboard", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "neuron lif" in printed
    assert "worse" in printed
    assert "because no run with another setting" in " ".join(printed.split())
    assert "other (" in printed.partition("Left out")[2]
    assert "lif-1" not in printed.partition("Left out")[2]
    assert "the paper's" in (tmp_path / "out" / "tableleaderboard.csv").read_text()


def test_leaderboard_figure_names_significant_and_distant_settings(tmp_path):
    write(tmp_path, "paper", SEEDS)
    write(tmp_path, "lif", {1: 0.88, 2: 0.90, 3: 0.915}, neuron="lif")
    write(tmp_path, "avg", {1: 0.91, 2: 0.90, 3: 0.93}, pooling="avg")
    write(tmp_path, "dead", dict.fromkeys(SEEDS, 0.1), init_tau=16.0)
    figure, caption = drawn("leaderboard", find_runs(tmp_path))
    (ax,) = (ax for ax in figure.axes if ax.get_visible())
    assert [text.get_text() for text in ax.texts] == ["a"]
    assert len(ax.containers) == 3
    assert caption.endswith(" Fashion-MNIST, 2 epochs: (a) neuron lif; far below: init_tau 16 (10.0 %).")
    assert "3 seeds" in caption


def test_gains_of_all_data_sets_stand_side_by_side(tmp_path):
    write(tmp_path / "f", "paper", SEEDS)
    write(tmp_path / "f", "lif", {1: 0.88, 2: 0.90, 3: 0.915}, neuron="lif")
    write(tmp_path / "f", "soft", {1: 0.92}, reset="soft")
    for name, neuron, test in (("paper", "plif", 0.5), ("lif", "lif", 0.6)):
        model = {**PAPER, "neuron": neuron}
        write_run(tmp_path / "o" / name, seed=1, data="CIFAR10", validation="holdout", test=test, model=model)
    table = gains_table(find_runs(tmp_path))
    assert table.columns == ["setting", "CIFAR-10, 3 epochs, 1 seed", "Fashion-MNIST, 2 epochs, 1 to 3 seeds"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["the paper's", "neuron lif", "reset soft"]
    assert rows["the paper's"] == ["50.00", "91.33"]
    assert rows["neuron lif"][0] == "+10.00"
    assert rows["neuron lif"][1].startswith("**-1.50 [")
    assert rows["reset soft"] == ["", "+2.00 (1 of 3 seeds)"]


def test_comparison_table_lists_gains_and_silent_layers(tmp_path):
    write(tmp_path, "paper", SEEDS)
    write(tmp_path, "lif", {1: 0.88, 2: 0.90, 3: 0.915}, neuron="lif")
    write_run(tmp_path / "a", (0.6,))
    dead = write_run(tmp_path / "dead", (0.1,), init_tau=16.0)
    dead.metrics.write_text(dead.metrics.read_text().replace("0.020000000000000004", "0").replace("0.02", "0"))
    table = comparison_table(find_runs(tmp_path))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["protocol"], row["setting"], row["accuracy [%]"], row["seeds"]) for row in rows] == [
        ("B", "PLIF, tau_0 = 2", "91.33", "3"),
        ("B", "LIF, tau = 2", "89.83", "3"),
        ("A", "PLIF, tau_0 = 2", "60.00", "1"),
        ("A", "PLIF, tau_0 = 16", "10.00", "1"),
    ]
    assert [row["silent"] for row in rows] == ["", "", "", "fc1 (1 of 1)"]
    assert rows[1]["gain"].startswith("-1.50 [")
    assert [row["gain"] for row in rows if row["seeds"] == "1"] == ["baseline", "-50.00"]


def test_runs_with_different_epochs_or_time_constants_are_never_averaged(tmp_path):
    """Found by a review: a curve was the mean over four runs of 4 epochs and two of 3 epochs with another tau."""
    for seed in range(4):
        write_run(tmp_path / f"a{seed}", (0.5,) * 4, seed=seed, neuron="clif")
    for seed in (5, 6):
        write_run(tmp_path / f"b{seed}", (0.5,) * 3, seed=seed, neuron="clif", init_tau=4.0)
    table = comparison_table(find_runs(tmp_path))
    assert [row[1] for row in table.rows] == ["CLIF", "CLIF, tau = 4"]
    assert [row[8] for row in table.rows] == ["4", "2"]
    (panel,) = drawn("6", find_runs(tmp_path))[0].axes
    names = [str(line.get_label()) for line in panel.lines if not str(line.get_label()).startswith("_")]
    assert names == ["CLIF, 4 epochs (4 runs)", "CLIF, $\\tau$ = 4, 3 epochs (2 runs)"]


def test_equal_differences_have_no_interval_whatever_their_last_digits(tmp_path):
    """350 and 341 of 359 against 351 and 342: one sample each, but the fractions differ in the 16th digit."""
    write(tmp_path, "paper", {1: 350 / 359, 2: 341 / 359})
    write(tmp_path, "lif", {1: 351 / 359, 2: 342 / 359}, neuron="lif")
    row = board(tmp_path)["neuron lif"]
    assert row.gain.mean == pytest.approx(100 / 359, abs=1e-5)
    assert math.isnan(row.gain.low)
    assert row.verdict == ""


def test_runs_without_a_seed_are_not_paired(tmp_path):
    for name, neuron in (("paper", "plif"), ("lif", "lif")):
        for i in range(3):
            model = {**PAPER, "neuron": neuron}
            write_run(tmp_path / f"{name}{i}", seed=False, validation="holdout", test=0.7 + 0.01 * i, model=model)
    row = board(tmp_path)["neuron lif"]
    assert len(row.cell.runs) == 3
    assert math.isnan(row.gain.mean)


def test_a_probe_has_a_gain_beside_the_run_without_it(tmp_path):
    for name, seed, test, arguments in (
        ("plain", 1, 0.9, {}), ("shuffled", 1, 0.5, {"probe": "shuffled"}), ("counts", 1, 0.4, {"probe": "counts"}),
    ):  # fmt: skip
        write_run(tmp_path / name, validation="holdout", test=test, seed=seed, data_arguments=arguments)
    for neuron in (None, "lif"):
        if neuron is not None:  # of other networks than the paper's, too
            for folder in tmp_path.iterdir():
                edit_session(RunFolder(folder), settings={**read_run(folder).settings, "model.neuron": "lif"})
        table = comparison_table(find_runs(tmp_path))
        cells = {row[5]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
        assert [cells[accuracy]["gain"] for accuracy in ("90.00", "50.00", "40.00")] == ["baseline", "-40.00", "-50.00"]
    assert "probe shuffled" in cells["50.00"]["setting"]
