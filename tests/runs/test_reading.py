"""Reading complete and damaged run folders."""

import json
import os
import socket
from dataclasses import replace

import numpy as np
import pytest

from plif_lightning.analysis.tables import cells
from plif_lightning.errors import UserError
from plif_lightning.runs.histograms import append_histograms, read_histograms
from plif_lightning.runs.process import process_identity
from plif_lightning.runs.reading import find_runs, read_run
from plif_lightning.runs.samples import read_samples
from tests.writers import write_run


def test_a_run_is_read_as_it_was_written(tmp_path):
    write_run(tmp_path / "table4" / "a", (0.5, 0.75, 0.7), init_tau=16.0, time_steps=8)
    (run,) = find_runs(tmp_path)
    assert (run.name, run.status, run.problems) == ("table4/a", "finished", [])
    assert (run.data_set, run.protocol, run.best, run.accuracy) == ("FashionMNIST", "A", (2, 0.75), 0.75)
    assert (run.setting("model.init_tau"), run.setting("data.time_steps"), run.setting("data.none", 3)) == (16.0, 8, 3)
    assert run.curve("tau/conv1") == ([1, 2, 3], pytest.approx([15.9, 15.8, 15.7]))
    assert run.layers("tau") == ["conv1", "fc1"]
    assert run.tested_samples == 10_000


def test_of_a_held_out_part_the_one_test_counts(tmp_path):
    write_run(tmp_path / "a", validation="holdout", test=0.9)
    write_run(tmp_path / "b", validation="holdout")
    tested, not_tested = find_runs(tmp_path)
    assert (tested.protocol, tested.accuracy, tested.best) == ("B", 0.9, (2, 0.75))
    assert not_tested.accuracy is None
    evaluation = tmp_path / "b" / "test" / "result.json"
    evaluation.parent.mkdir()
    evaluation.write_text('{"test": 0.8, "samples": 10000}')
    assert find_runs(tmp_path)[1].accuracy == 0.8
    assert find_runs(tmp_path)[1].tested_samples == 10_000


@pytest.mark.parametrize("accuracy", [97.5, -0.1, float("inf"), "high"])
def test_what_is_no_share_is_no_accuracy(tmp_path, accuracy):
    run = write_run(tmp_path / "a", validation="holdout", test=0.9)
    run.result.write_text(json.dumps({"test": accuracy}))
    found = read_run(tmp_path / "a")
    assert found.accuracy is None
    assert "test must be a fraction from 0 to 1" in found.problems[0]


@pytest.mark.parametrize("arguments", ["null", "5", "[" * 5000 + "]" * 5000])
def test_a_command_that_is_none_is_no_command(tmp_path, arguments):
    write_run(tmp_path / "a").command.write_text(f'{{"arguments": {arguments}}}')
    assert read_run(tmp_path / "a").command == []


def test_runs_behind_a_link_are_found_once(tmp_path):
    write_run(tmp_path / "scratch" / "b")
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "A").mkdir()
    for name, target in (("Z", "scratch/b"), ("A/best", "runs/a"), ("again", "runs")):
        (tmp_path / "runs" / name).symlink_to(tmp_path / target)
    assert [run.name for run in find_runs(tmp_path / "runs")] == ["a", "Z"]


def test_a_file_above_runs_hides_none(tmp_path):
    write_run(tmp_path / "x" / "version_0")
    (tmp_path / "config.yaml").write_text("a: 1")
    assert [(run.name, run.status) for run in find_runs(tmp_path)][1] == ("x/version_0", "finished")


def test_what_is_below_a_damaged_run_is_its_own(tmp_path):
    run = write_run(tmp_path / "x")
    write_run(tmp_path / "x" / "test" / "other")
    run.metrics.unlink()
    run.command.unlink()
    assert [found.name for found in find_runs(tmp_path)] == ["x"]


def test_numbers_that_no_float_holds_are_none(tmp_path):
    run = write_run(tmp_path / "a", seed=float("inf"))
    run.command.write_text(f'{{"started": 1{"0" * 400}}}')
    run.result.write_text(f'{{"samples": {{"training": 60000, "test as val": 1{"0" * 400}}}}}')
    found = read_run(tmp_path / "a")
    assert (found.started, found.tested_samples) == (0.0, None)
    assert len(cells([found])) == 1


def test_a_table_that_a_spreadsheet_saved_is_read_or_named(tmp_path):
    run = write_run(tmp_path / "a")
    text = run.metrics.read_text()
    run.metrics.write_text(text, encoding="utf-8-sig")
    assert len(read_run(tmp_path / "a").metrics) == 3
    run.metrics.write_text(text.replace(",", ";"))
    found = read_run(tmp_path / "a")
    assert found.metrics == []
    assert "its first line names no column epoch" in found.problems[0]


def test_a_histogram_behind_half_a_line_is_read(tmp_path):
    run = write_run(tmp_path / "a")
    whole = read_histograms(run)
    with run.weights.open("a") as file:
        file.write('{"layer": "fc1", "ep')
    append_histograms(run, [replace(whole[-1], epoch=9)])
    assert [row.epoch for row in read_histograms(run)] == [0, 1, 2, 3, 9]


def test_folders_that_begin_with_a_dot_are_not_searched(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / ".broken" / "b")
    assert [run.name for run in find_runs(tmp_path)] == ["a"]


def test_runs_come_in_the_order_of_their_numbers(tmp_path):
    for i in (10, 9, 100):
        write_run(tmp_path / f"version_{i}")
    assert [run.name for run in find_runs(tmp_path)] == ["version_9", "version_10", "version_100"]


def test_a_run_that_is_going_on_is_told_from_one_that_was_broken_off(tmp_path):
    folder = write_run(tmp_path / "a", finished=False)
    assert read_run(tmp_path / "a").status == "unfinished"
    folder.command.write_text(json.dumps({"arguments": [], "pid": os.getpid(), "host": socket.gethostname()}))
    assert read_run(tmp_path / "a").status == "running"
    folder.command.write_text(json.dumps({"arguments": [], **process_identity(), "born": "1"}))
    assert read_run(tmp_path / "a").status == "unfinished"  # the pid now belongs to another process
    folder.command.write_text(json.dumps({"arguments": [], "pid": os.getpid(), "host": "elsewhere"}))
    assert read_run(tmp_path / "a").status == "unfinished"


@pytest.mark.parametrize(
    ("damage", "status", "problem"),
    [
        (lambda run: run.config.unlink(), "unreadable", "config.yaml does not exist"),
        (lambda run: run.config.write_text("a: [1"), "unreadable", "config.yaml cannot be read"),
        (lambda run: run.config.write_text("- 1"), "unreadable", "must hold names and values, got list"),
        (lambda run: run.metrics.unlink(), "finished", "no epoch was finished"),
        (lambda run: run.result.write_text("{"), "unfinished", "result.json cannot be read"),
        (lambda run: run.data.write_bytes(b"\xff"), "finished", "data.json cannot be read"),
        (lambda run: run.metrics.write_bytes(b"\xff\xfe"), "finished", "cannot be read as a table"),
    ],
)
def test_what_cannot_be_read_is_said_and_the_rest_is_read(tmp_path, damage, status, problem):
    damage(write_run(tmp_path / "a"))
    write_run(tmp_path / "b")
    damaged, whole = find_runs(tmp_path)
    assert damaged.status == status
    assert any(problem in text for text in damaged.problems)
    assert whole.problems == []


def test_a_line_that_cannot_be_read_is_left_out_and_named(tmp_path):
    run = write_run(tmp_path / "a")
    with run.metrics.open("a") as file:
        file.write("3,39,xyz,0.1\n4,49,0.9,0.1,1,1,1,1,1,1\n5,59,0.8")
    found = read_run(tmp_path / "a")
    assert [row["epoch"] for row in found.metrics] == [0, 1, 2, 5]
    assert "line 5: test_as_val/acc must be a number, got 'xyz'" in found.problems[0]
    assert "line 6: there are more values than columns" in found.problems[1]


@pytest.mark.parametrize("text", ["", "epoch,step\n", "\x00"])
def test_an_empty_table_is_a_run_without_epochs(tmp_path, text):
    write_run(tmp_path / "a").metrics.write_text(text)
    found = read_run(tmp_path / "a")
    assert (found.metrics, found.best, found.accuracy) == ([], None, None)


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="which does not exist"):
        find_runs(tmp_path / "none")
    with pytest.raises(UserError, match="there is no run in"):
        find_runs(tmp_path)


def test_histograms_and_samples_are_read_back(tmp_path):
    folder = write_run(tmp_path / "a")
    with folder.weights.open("a") as file:
        file.write('{"layer": "fc1", "epoch": 3, "low": -7, "high": 7, "counts": [5]}\nnot json\n{"layer": 1}\n')
    rows = read_histograms(folder)
    assert [row.epoch for row in rows] == [0, 1, 2, 3]
    assert (rows[-1].low, rows[-1].counts.tolist()) == (-7.0, [5])  # the resumed run wrote this epoch again
    samples = read_samples(folder)
    np.testing.assert_allclose(samples.rates[:2], samples.spikes.mean(0), atol=1e-6)
    folder.samples.write_bytes(folder.samples.read_bytes()[:200])
    with pytest.raises(UserError, match=r"samples\.npz cannot be read"):
        read_samples(folder)
