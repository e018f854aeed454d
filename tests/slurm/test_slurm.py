"""Runs as jobs of a real SLURM, whose daemons are started on this machine."""

import shlex
import sys
from pathlib import Path

import pytest
import torch

from plif_lightning.runs.run import read_run
from tests.cli.calls import FEW, QUICKSTART, SILENT, TINY, command, load, until
from tests.conftest import REPOSITORY
from tests.slurm.cluster import Cluster, cluster, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed: {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def main_py(*arguments):
    return shlex.join([sys.executable, str(REPOSITORY / "main.py"), *arguments])


def output(folder: Path):
    return "".join(path.read_text() for path in sorted(folder.glob("*.out")))


def weights(run: Path):
    return load(run / "checkpoints/last.ckpt")["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], value) for name, value in other.items())


ARGUMENTS = ["fit", "--config", QUICKSTART, *SILENT, "--test_after_fit", "false"]
SMALL = [*ARGUMENTS, *TINY, *FEW, "--trainer.max_epochs", "2"]


def test_two_tasks_are_two_ranks(slurm: Cluster, tmp_path):
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    job = slurm.submit(tmp_path, f"srun {main_py(*SMALL, *ddp, '--run_folder', 'run')}", "--ntasks-per-node", "2")
    assert slurm.wait(job)["JobState"] == "COMPLETED", output(tmp_path)
    assert output(tmp_path).count("fit finished") == 1
    assert "CPU x 2" in output(tmp_path)
    alone = command(*SMALL, *ddp, "--run_folder", "alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert same(weights(tmp_path / "run"), weights(tmp_path / "alone"))


def in_training(run: Path, epochs: int, seconds: float = 200):
    until(lambda: (run / "metrics.csv").is_file() and len(read_run(run).metrics) >= epochs, seconds)


def test_requeued_job_ends_like_an_uninterrupted_one(slurm: Cluster, tmp_path):
    arguments = [*ARGUMENTS, "--model.channels", "8", "--trainer.max_epochs", "12"]
    auto = [*arguments, "--run_folder", "run"]
    job = slurm.submit(tmp_path, f"srun {main_py(*auto)}", "--ntasks", "1", "--requeue")
    in_training(tmp_path / "run", 2)
    slurm.call("scancel", "--signal=USR1", job)
    state = slurm.wait(job)
    assert state["JobState"] == "COMPLETED", output(tmp_path)
    assert state["Restarts"] == "1", output(tmp_path)
    assert output(tmp_path).count("the job is requeued") == 1
    assert not list(tmp_path.glob("**/hpc_ckpt*"))
    straight = command(*arguments, "--run_folder", "straight", cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    assert same(weights(tmp_path / "run"), weights(tmp_path / "straight"))
    assert [row["epoch"] for row in read_run(tmp_path / "run").metrics] == list(range(12))


def test_job_near_its_time_limit_saves_and_resumes(slurm: Cluster, tmp_path):
    arguments = [*ARGUMENTS, "--model.channels", "8", "--trainer.max_epochs", "100000"]
    auto = [*arguments, "--run_folder", "run"]
    options = ["--ntasks", "1", "--requeue", "--time", "2", "--signal", "USR1@60"]
    job = slurm.submit(tmp_path, f"srun {main_py(*auto)}", *options)
    until(lambda: slurm.state(job)["Restarts"] != "0", 600)  # it waits for two minutes before it starts a job again
    assert slurm.state(job)["Restarts"] == "1", output(tmp_path)
    before = len(read_run(tmp_path / "run").metrics)
    in_training(tmp_path / "run", before + 2, seconds=400)
    slurm.call("scancel", "--signal=TERM", job)  # as where a node is being drained
    assert slurm.wait(job)["JobState"] == "FAILED"
    assert slurm.state(job)["ExitCode"].startswith("143")
    said = output(tmp_path)
    assert "stopped by SIGUSR1" in said
    assert "stopped by SIGTERM" in said
    epochs = [row["epoch"] for row in read_run(tmp_path / "run").metrics]
    assert epochs == list(range(len(epochs)))


def test_an_array_job_runs_a_sweep(slurm: Cluster, tmp_path):
    few = [*TINY, *FEW, *SILENT, "--trainer.max_epochs", "1", "--test_after_fit", "false"]
    (tmp_path / "grid.yaml").write_text(
        "program: main.py\nmethod: grid\nparameters:\n  config: {value: quickstart}\n"
        "  model.init_tau: {values: [2.0, 4.0, 16.0]}\n  model.neuron: {values: [plif, lif]}\n"
    )
    script = "sweep grid.yaml --runs runs/grid --index $SLURM_ARRAY_TASK_ID/3 --"
    job = slurm.submit(tmp_path, f"srun {main_py()} {script} {shlex.join(few)}", "--ntasks", "1", "--array", "0-2")
    slurm.wait(job)
    assert output(tmp_path).count("2 runs are done: ") == 3, output(tmp_path)
    runs = [read_run(path) for path in sorted((tmp_path / "runs/grid").iterdir()) if path.is_dir()]
    assert [run.status for run in runs] == ["finished"] * 6
    assert {(run.setting("model.init_tau"), run.setting("model.neuron")) for run in runs} == {
        (tau, neuron) for tau in (2.0, 4.0, 16.0) for neuron in ("plif", "lif")
    }
