"""Runs of a table of results: the leaderboard of their folders, without the folders."""

import csv
import random
from contextlib import suppress

import pytest

from plif_lightning.analysis.figures import NothingToShowError, drawn
from plif_lightning.analysis.leaderboard import gains_table, leaderboard_table, standings
from plif_lightning.analysis.published import published_runs
from plif_lightning.analysis.results import COLUMNS, write_results
from plif_lightning.analysis.settings import data_title, model_settings
from plif_lightning.cli import main
from plif_lightning.errors import UserError
from plif_lightning.runs.reading import find_runs
from tests.cli.calls import FEW, SILENT, refused
from tests.conftest import REPOSITORY
from tests.writers import COST, PAPER, write_run

PUBLISHED = str(REPOSITORY / "configs/leaderboard/results.csv")
RIGHT = {1: 323, 2: 327, 3: 334}  # of 359
STRUCTURE = "c8k3s1-BN-PLIF-MPk2s2-DP-FC32-PLIF-{}"
SPIKING = STRUCTURE.format("DP-FC100-PLIF-APk10s10")
CHANGES = {
    "paper": {},
    "clif": {"neuron": "clif"},
    "soft": {"reset": "soft", "dropout": 0.2},
    "readout": {"structure": STRUCTURE.format("DP-FC10b")},
}


def write_all(root):
    for i, (name, model) in enumerate(CHANGES.items()):
        for seed, right in RIGHT.items():
            write_run(
                root / f"{name}-{seed}", (0.5, 0.8 + 0.01 * i), seed=seed, validation="holdout", cost=COST,
                test=(right + 4 * (i * seed % 4)) / 359, samples=(60_000, 359),
                model={**PAPER, "structure": SPIKING, **model}, arguments=["--config", "small", f"--model={name}"],
            )  # fmt: skip


def write_table(root):
    """The table of all runs, as lines of names and values."""
    write_all(root / "runs")
    rows = write_results(root / "results.csv", find_runs(root / "runs"))
    return {row["run"]: row for row in rows}


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_it_is_the_leaderboard_of_the_runs_themselves(tmp_path):
    write_table(tmp_path)
    runs, published = find_runs(tmp_path / "runs"), published_runs(tmp_path / "results.csv")
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
        {"arguments": ["--ckpt_path", "other.ckpt"]},
    ],
)
def test_what_keeps_runs_apart_keeps_their_rows_apart(tmp_path, more):
    write_run(tmp_path / "a", validation="holdout", test=323 / 359, model=PAPER, samples=(60_000, 359))
    other = {"samples": (60_000, 359), **more}
    write_run(tmp_path / "b", validation="holdout", test=330 / 359, model={**PAPER, "neuron": "lif"}, **other)
    runs = find_runs(tmp_path)
    write_results(tmp_path / "results.csv", runs)
    assert standings(runs) == standings(published_runs(tmp_path / "results.csv")) == []


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
    assert model_settings(published) == model_settings(run)
    assert published.setting("model.neuron.k") == 0.3
    assert published.setting("seed_everything") == run.setting("seed_everything")
    assert (published.protocol, published.epochs, data_title(published)) == ("B", 2, data_title(run))
    assert published.accuracy == pytest.approx(run.accuracy, abs=6e-5)
    assert published.best[1] == pytest.approx(run.best[1], abs=6e-5)
    assert published.spikes == pytest.approx(run.spikes, abs=0.5)


def test_rows_without_settings_are_named_and_left_out(tmp_path, capsys):
    """Tables of earlier versions, and cells that hold something else."""
    rows = write_table(tmp_path)
    for name, text in (("clif-1", ""), ("clif-2", "{"), ("clif-3", "3"), ("soft-2", '{"a": 1, "a.b": 2}')):
        rows[name]["model"] = text
    rows["soft-3"]["setup"] = ""
    path = write_rows(tmp_path / "results.csv", rows.values())
    assert [run.name for run in published_runs(path) if run.status == "unreadable"] == [
        *("clif-1", "clif-2", "clif-3", "soft-2", "soft-3")
    ]
    main(["tables", "--runs", str(path), "--only", "gains"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "clif-1, clif-2, clif-3, soft-2, soft-3: its row in" in printed
    main(["figures", "--runs", str(path), "--out", str(tmp_path / "figures")])
    assert "note: left out: clif-1, clif-2, clif-3, soft-2, soft-3: its row in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["again", "readout-2"])
def test_two_rows_of_one_experiment_and_seed_are_refused(name, tmp_path):
    rows = write_table(tmp_path)
    path = write_rows(tmp_path / "results.csv", [*rows.values(), {**rows["readout-2"], "run": name, "accuracy": "10"}])
    with pytest.raises(UserError, match=f"two runs with the same settings and seed: readout-2 and {name}"):
        published_runs(path)


def test_runs_without_a_seed_are_two(tmp_path):
    """Found by a review: their rows, which `tables --results` had written, were refused."""
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, seed=False, validation="holdout", test=0.8, model=PAPER, cost=COST)
    write_results(tmp_path / "results.csv", find_runs(tmp_path / "runs"))
    assert [run.name for run in published_runs(tmp_path / "results.csv")] == ["a", "b"]


@pytest.mark.parametrize(("accuracy", "share"), [("98.89", 355 / 359), ("73.33", 0.7333), ("100.00", 1.0)])
def test_accuracies_are_whole_samples_where_the_whole_test_set_was_measured(tmp_path, accuracy, share):
    rows = write_table(tmp_path)
    (run,) = published_runs(write_rows(tmp_path / "a.csv", [{**rows["paper-1"], "accuracy": accuracy}]))
    assert run.accuracy == pytest.approx(share, abs=1e-9)


def test_without_the_papers_setting_the_runs_are_named(tmp_path):
    rows = write_table(tmp_path)
    path = write_rows(tmp_path / "results.csv", [row for name, row in rows.items() if "paper" not in name])
    table = leaderboard_table(published_runs(path))
    assert table.rows == []
    assert "clif-1, clif-2, clif-3, readout-1" in table.notes[-1]


@pytest.mark.parametrize("seed", range(40))
def test_a_table_of_any_content_is_read_or_refused(tmp_path, seed):
    """Every cell is a stranger's."""
    pick = random.Random(seed)
    cells = [
        *("", "-1", "0", "1e999", "nan", "9" * 400, "\u00b2", "1 / 0 samples", ", / , samples", "\x00", "B", "MNIST"),
        *('{"neuron": {"a": 3}}', '{"structure": 3, "n_conv": "x"}', '{"optimizer.lr": 1e999, "optimizer": []}'),
        *('{"a..b.": NaN}', '{"": {"": []}}', "[" * 3000, '{"early_time_steps": null, "neuron": [1]}'),
    ]
    rows = write_table(tmp_path)
    for row in rows.values():
        row.update({name: pick.choice(cells) for name in COLUMNS if pick.random() < 0.2})
    numbers = {"accuracy": "90", "seconds": "", "epochs": "2", "tau": ""}
    rows = [{**row, **numbers} if pick.random() < 0.7 else row for row in rows.values()]
    try:
        runs = published_runs(write_rows(tmp_path / "results.csv", rows))
    except UserError:
        return
    leaderboard_table(runs)
    gains_table(runs)
    with suppress(NothingToShowError):
        drawn("leaderboard", runs)


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
