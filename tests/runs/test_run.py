"""Reading complete and damaged run folders."""

import errno
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.lock import InUseError, lock_run
from plif_lightning.runs.record import update
from plif_lightning.runs.run import find_runs, read_run
from plif_lightning.runs.samples import read_samples
from tests.writers import write_run


def test_a_run_is_read_as_it_was_written(tmp_path):
    write_run(tmp_path / "table4" / "a", (0.5, 0.75, 0.7), init_tau=16.0, time_steps=8)
    (run,) = find_runs(tmp_path)
    assert (run.name, run.status, run.problems) == ("table4/a", "finished", [])
    assert (run.data_set, run.protocol, run.best, run.accuracy) == ("FashionMNIST", "A", (2, 0.75), 0.75)
    assert (run.setting("model.init_tau"), run.setting("data.time_steps"), run.setting("data.none", 3)) == (16.0, 8, 3)
    assert run.settings["model.init_tau"] == 16
    assert run.curve("tau/conv1") == ([1, 2, 3], pytest.approx([15.9, 15.8, 15.7]))
    assert run.layers("tau") == ["conv1", "fc1"]
    assert run.tested_samples == 10_000


def test_the_best_epoch_of_a_record_is_that_of_its_validation_accuracies_or_the_one_it_names(tmp_path):
    folder = write_run(tmp_path / "a", (0.5, 0.75, 0.7))
    assert read_run(folder.path).best_metrics["epoch"] == 1
    update(folder, best_epoch=3)
    assert read_run(folder.path).best_metrics["epoch"] == 2
    update(folder, best_epoch=4)
    assert read_run(folder.path).best_metrics == {}


def test_protocol_b_reports_the_single_test(tmp_path):
    write_run(tmp_path / "a", validation="holdout", test=0.9)
    folder = write_run(tmp_path / "b", validation="holdout")
    tested, not_tested = find_runs(tmp_path)
    assert (tested.protocol, tested.accuracy, tested.best) == ("B", 0.9, (2, 0.75))
    assert not_tested.accuracy is None
    update(folder, test=0.8, tested=10_000)
    later = find_runs(tmp_path)[1]
    assert (later.accuracy, later.tested_samples) == (0.8, 10_000)


@pytest.mark.parametrize("accuracy", [97.5, -0.1, "high"])
def test_an_accuracy_outside_zero_to_one_is_no_record(tmp_path, accuracy):
    folder = write_run(tmp_path / "a", validation="holdout")
    with pytest.raises((TypeError, ValueError)):
        update(folder, test=accuracy)
    folder.record.write_text(json.dumps(json.loads(folder.record.read_text()) | {"test": accuracy}))
    run = read_run(tmp_path / "a")
    assert (run.status, run.accuracy) == ("unreadable", None)
    assert any("run.json is no record of a run" in problem for problem in run.problems)


def test_subfolders_of_runs_and_hidden_folders_are_skipped(tmp_path):
    write_run(tmp_path / "x")
    write_run(tmp_path / "x" / "test" / "other")
    write_run(tmp_path / ".broken" / "b")
    assert [found.name for found in find_runs(tmp_path)] == ["x"]


def test_runs_come_in_the_order_of_their_numbers(tmp_path):
    for i in (10, 9, 100):
        write_run(tmp_path / f"version_{i}")
    assert [run.name for run in find_runs(tmp_path)] == ["version_9", "version_10", "version_100"]


@pytest.mark.parametrize(
    ("made", "result", "lacks"),
    [
        ({}, True, False),
        ({"finished": False}, False, False),
        ({"validation": "holdout", "test": 0.9}, True, False),
        ({"validation": "holdout"}, False, True),
    ],
    ids=str,
)
def test_a_run_has_a_result_once_it_is_finished_and_measured_as_its_protocol_says(tmp_path, made, result, lacks):
    write_run(tmp_path / "a", **made)
    run = read_run(tmp_path / "a")
    assert (run.has_result, run.lacks_test) == (result, lacks)


@pytest.mark.parametrize("there", [[], ["config.yaml"]])
def test_the_lock_of_a_folder_in_which_nothing_began_goes_with_its_holder(tmp_path, there):
    """Elsewhere it stays: who waits for it must not hold a file that is no longer there."""
    folder = RunFolder(tmp_path / "a")
    with lock_run(folder):
        for name in there:
            (folder.path / name).touch()
    assert folder.path.exists() == folder.lock.exists() == bool(there)


def test_running_and_interrupted_runs_are_distinguished(tmp_path):
    folder = write_run(tmp_path / "a", finished=False)
    assert read_run(tmp_path / "a").status == "failed"
    folder.checkpoints.mkdir()
    folder.last.touch()
    assert read_run(tmp_path / "a").status == "resumable"
    with lock_run(folder):
        assert read_run(tmp_path / "a").status == "running"
        update(folder, ended=1.0)
        assert read_run(tmp_path / "a").status == "finished"
    assert read_run(tmp_path / "b").status == "new"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_marks_a_run_where_the_file_system_has_no_locks(tmp_path, monkeypatch, code):
    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    folder = write_run(tmp_path / "a", finished=False)
    with lock_run(folder):
        assert read_run(tmp_path / "a").status == "running"
        with pytest.raises(InUseError, match="is being trained by process"), lock_run(folder):
            pass
    assert read_run(tmp_path / "a").status == "failed"
    killed = multiprocessing.get_context("fork").Process(target=_lock_and_die, args=[folder])
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert folder.process.exists()
    with lock_run(folder):  # its process has ended
        pass


def test_a_run_that_cannot_be_locked_from_here_is_read(tmp_path, monkeypatch):
    """A colleague's folder, or storage that is only read."""
    folder = write_run(tmp_path / "a", finished=False)
    with lock_run(folder):
        pass

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert read_run(tmp_path / "a").status == "failed"
    with pytest.raises(PermissionError), lock_run(folder):
        pass


def _lock_and_die(folder):
    with lock_run(folder):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("damage", "status", "problem"),
    [
        (lambda run: run.config.unlink(), "unreadable", "config.yaml does not exist"),
        (lambda run: run.config.write_text("a: [1"), "unreadable", "config.yaml cannot be read"),
        (lambda run: run.config.write_text("- 1"), "unreadable", "must hold names and values, got list"),
        (lambda run: run.record.write_text("{"), "unreadable", "run.json cannot be read"),
        (lambda run: run.metrics.write_bytes(b"\xff\xfe"), "finished", "cannot be read as a table"),
    ],
)
def test_unreadable_files_are_reported_and_the_rest_is_read(tmp_path, damage, status, problem):
    damage(write_run(tmp_path / "a"))
    write_run(tmp_path / "b")
    damaged, whole = find_runs(tmp_path)
    assert damaged.status == status
    assert any(problem in text for text in damaged.problems)
    assert whole.problems == []


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="which does not exist"):
        find_runs(tmp_path / "none")
    with pytest.raises(UserError, match="there is no run in"):
        find_runs(tmp_path)


def test_samples_are_read_back_and_a_damaged_file_is_named(tmp_path):
    folder = write_run(tmp_path / "a")
    samples = read_samples(folder)
    np.testing.assert_allclose(samples.rates[:2], samples.spikes.mean(0), atol=1e-6)
    folder.samples.write_bytes(folder.samples.read_bytes()[:200])
    with pytest.raises(UserError, match=r"samples\.npz cannot be read"):
        read_samples(folder)
