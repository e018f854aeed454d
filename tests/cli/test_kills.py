"""Killed at any moment: dozens of `kill -9` at random moments, after each of which everything on disk is whole."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from plif_lightning.runs.metrics import read_metrics
from plif_lightning.runs.run import read_run
from tests import writers
from tests.cli.calls import QUICKSTART, SILENT, command, load
from tests.conftest import REPOSITORY
from tests.writers import write_run

pytestmark = pytest.mark.slow


def killed(arguments, folder, when, environment=None):
    """Whether `main.py` was killed, as soon as `when()` says so, before it had ended."""
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "main.py"), *arguments],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        while process.poll() is None and not when():
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode in (0, -signal.SIGKILL), (folder / "output").read_text()[-3000:]
    return process.returncode != 0


def some_time_after(condition, seconds):
    """Says so once, so many seconds after the condition holds."""
    since = []

    def when():
        if not since and condition():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return when


def changed(path):
    """Whether a file is another one than now."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    return lambda: path.exists() and path.stat().st_mtime_ns != before


def whole(run: Path):
    """Steps of the last checkpoint; everything that has its final name can be read."""
    step = 0
    for path in run.glob("checkpoints/*.ckpt"):
        checkpoint = load(path)
        assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())
        step = max(step, checkpoint["global_step"] if path.name == "last.ckpt" else 0)
    if (run / "metrics.csv").is_file():
        assert [row["epoch"] for row in read_metrics(run / "metrics.csv")][:1] == [0]
    if (run / "config.yaml").is_file() and (run / "metrics.csv").is_file():
        assert not read_run(run).problems
    return step


def test_a_run_that_is_killed_50_times_reaches_the_same_weights(tmp_path):
    arguments = ["fit", "--config", QUICKSTART, *SILENT, "--test_after_fit", "false", "--model.channels", "8"]
    arguments += ["--trainer.max_epochs", "60", "--checkpoint.every_n_batches", "1"]
    auto = [*arguments, "--run_folder", "run"]
    other = Path("/dev/shm")  # another file system than the run's, where there is one
    environment = {**os.environ, "TMPDIR": str(other)} if other.is_dir() else dict(os.environ)
    moments, steps = random.Random(2020), [0]
    while len(steps) <= 50:
        trained = changed(tmp_path / "run/checkpoints/last.ckpt") if moments.random() < 0.8 else lambda: True
        if not killed(auto, tmp_path, some_time_after(trained, moments.uniform(0, 1.5)), environment):
            break  # a fast machine: the run has ended
        steps.append(whole(tmp_path / "run"))
        assert steps[-1] >= steps[-2]  # nothing that was saved is lost
    assert len(set(steps)) > 5
    done = command(*auto, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "run").rglob("*.tmp"))
    straight = command(*arguments, "--run_folder", "straight", cwd=tmp_path, timeout=900)
    assert straight.returncode == 0, straight.stderr
    one, two = (load(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("run", "straight"))
    assert all(torch.equal(one[name], value) for name, value in two.items())
    epochs = [[row["epoch"] for row in read_metrics(tmp_path / name / "metrics.csv")] for name in ("run", "straight")]
    assert epochs[0] == epochs[1]


def test_a_cache_that_is_killed_while_it_is_built_is_none_and_is_built_by_the_next(tmp_path):
    writers.write_nmnist(tmp_path, train=3000, test=500)
    prepare = ["prepare", "--config", "nmnist", "--data.root", str(tmp_path), "--data.allow_partial", "true"]
    moments, kills = random.Random(1), 0
    events = tmp_path / "NMNIST/events"
    for _ in range(12):
        building = some_time_after(lambda: any(events.glob("*/*.tmp")), moments.uniform(0, 0.3))
        if not killed(prepare, tmp_path, building):
            break
        kills += 1
    assert kills > 0
    done = command(*prepare, "--verify", "true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all 3,000 500" in " ".join(done.stdout.split())
    for part in ("train", "test"):
        assert len([path for path in (events / f"original-{part}").iterdir() if path.is_dir()]) == 1


def test_killed_report_keeps_the_previous_one(tmp_path):
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "report.html").write_text("the one before")
    moments = random.Random(3)
    for _ in range(8):
        moment = some_time_after(lambda: True, moments.uniform(1, 5))
        was_killed = killed(["report", "--runs", "runs", "--out", "report.html"], tmp_path, moment)
        text = (tmp_path / "report.html").read_text()
        assert text == "the one before" or text.rstrip().endswith("</html>")
        if not was_killed:
            assert text != "the one before"
