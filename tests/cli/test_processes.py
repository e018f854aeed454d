"""Several processes of one run."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from plif_lightning.callbacks import RunRecord
from plif_lightning.cli import main
from plif_lightning.cli.lightning import SyncOnGPUs
from plif_lightning.errors import UserError
from plif_lightning.runs.run import read_run
from tests.cli.calls import FEW, QUICKSTART, TINY, command, fit, load, rows, until
from tests.conftest import PATIENCE, REPOSITORY


@pytest.mark.slow
def test_fit_on_two_processes(tmp_path):
    done = command(
        *("fit", "--config", QUICKSTART, *TINY, *FEW, "--trainer.max_epochs", "2"),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fit finished") == 1
    assert "CPU x 2" in done.stdout
    assert read_run(Path("runs/quickstart/version_0")).settings["trainer.processes"] == 2
    assert [p.name for p in Path("runs/quickstart").iterdir()] == ["version_0"]
    assert load("runs/quickstart/version_0/checkpoints/best.ckpt")["global_step"] == 6  # of equal epochs the last


@pytest.mark.slow
def test_test_on_two_processes_equals_a_single_process(capsys):
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--test_after_fit", "false", "--run_folder", "run")
    arguments = ["test", "--ckpt_path", "run/checkpoints/best.ckpt", "--trainer.accelerator", "cpu"]
    capsys.readouterr()
    main(arguments)
    one = capsys.readouterr().out
    two = command(*arguments, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert two.returncode == 0, two.stderr
    losses = [re.search(r"loss +(\d\.\d+)", said)[1] for said in (one, two.stdout)]  # of 359 samples
    assert losses[0] == losses[1]


# 1,226 samples: an epoch of 77 batches of 16.
EPOCH = [*TINY, "--trainer.limit_val_batches", "1", "--test_after_fit", "false", "--record_samples", "0"]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then", "batches"), [((1, 16), (2, 16), 59), ((2, 16), (1, 32), 39)])
def test_a_run_that_loses_or_gains_a_process_within_an_epoch_sees_every_sample_once(first, then, batches, tmp_path):
    """Found by a review: it was refused, whichever batch size was given."""
    (devices, size), (others, other_size) = first, then
    many = ["--trainer.strategy", "ddp"]
    begun = ["fit", "--config", QUICKSTART, *EPOCH, "--model.lr_scheduler", "OneCycle", "--trainer.max_epochs", "2"]
    begun += ["--run_folder", "run", "--checkpoint.every_n_batches", "20", f"--trainer.devices={devices}"]
    begun += ["--trainer.enable_progress_bar", "false", f"--data.batch_size={size}", *(many if devices > 1 else [])]
    process = subprocess.Popen([sys.executable, str(REPOSITORY / "main.py"), *begun], cwd=tmp_path)
    last = Path("run/checkpoints/last.ckpt")
    until(lambda: process.poll() is not None or last.is_file())
    process.kill()
    process.wait()
    until(lambda: not any(str(tmp_path / "run") in path.read_text(errors="ignore") for path in cmdlines()))
    served = load(last)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["samples"]
    assert 0 < served < 1226
    done = command(
        *("fit", "--run_folder", "run", f"--trainer.devices={others}", f"--data.batch_size={other_size}"),
        *("--trainer.strategy", "ddp" if others > 1 else "auto"),
    )
    assert done.returncode == 0, done.stderr
    steps = load(last)["global_step"]
    before, whole = served // (devices * size), -(-1226 // (others * other_size))
    assert steps == before + -(-(1226 - served) // (others * other_size)) + whole
    rates = [float(row["lr"]) for row in rows("run/metrics.csv") if row["lr"]]
    assert rates[-1] < 1e-5  # OneCycle ends where the training does


def cmdlines():
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid())]


@pytest.mark.slow
def test_two_nodes_begun_by_torchrun(tmp_path):
    """Two agents on this machine, each with one process, as on two nodes."""
    arguments = ["fit", "--config", QUICKSTART, *TINY, *FEW, "--trainer.max_epochs", "2", "--run_folder", "run"]
    arguments += ["--trainer.devices", "1", "--trainer.num_nodes", "2", "--trainer.strategy", "ddp"]
    nodes = begin_two_nodes(arguments, tmp_path)
    said = [node.communicate(timeout=PATIENCE)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "".join(said).count("fit finished") == 1
    assert "CPU x 2" in said[0]
    assert load("run/checkpoints/best.ckpt")["global_step"] == 6  # of equal epochs the last


def begin_two_nodes(arguments, tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "SLURM_"))} | {
        "OMP_NUM_THREADS": "1"
    }
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank)),
                *("--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)),
                *(str(REPOSITORY / "main.py"), *arguments),
            ],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]


def test_node_without_access_to_the_run_folder_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("plif_lightning.callbacks.records._VISIBILITY_TIMEOUT", 0.0)

    class Node:
        fast_dev_run, is_global_zero, node_rank, world_size = False, False, 1, 1
        log_dir = str(tmp_path / "made by node 0")

    with pytest.raises(UserError, match=r"node 1 does not see the run's folder .*made by node 0, .* --run_folder"):
        RunRecord([], {}).on_fit_start(Node(), None)
    (tmp_path / "made by node 0").mkdir()
    RunRecord([], {}).on_fit_start(Node(), None)


@pytest.mark.usefixtures("unwatched")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_lost_ends_the_others(number, tmp_path):
    arguments = ["fit", "--config", QUICKSTART, *TINY, "--trainer.max_epochs", "100000"]
    arguments += ["--trainer.enable_progress_bar", "false", "--trainer.devices", "2"]
    arguments += ["--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout"]
    for timeout in ("0:00:15", "0:01:30", "0:15:00"):  # on a loaded machine they may not even find each other in time
        shutil.rmtree("run", ignore_errors=True)
        # Not a pipe, which the lost process would keep open, nor the file of a try whose processes may still write.
        file = Path(f"said {timeout[2:4]}")
        with file.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "main.py"), *arguments, timeout, "--run_folder", "run"],
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=output,
            )
        until(lambda started=process: started.poll() is not None or Path("run/checkpoints/last.ckpt").is_file())
        if process.poll() is None:
            break
    (child,) = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(child, number)
    process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    assert process.returncode not in (0, None)
    # Lightning looks every five seconds whether a process has died, and then ends the first one by force.
    if process.returncode != -signal.SIGKILL:
        assert file.read_text().count("Resume the run with: ") == 1
    assert load("run/checkpoints/last.ckpt")["global_step"] > 0


FAILS = """
from lightning.pytorch.callbacks import Callback

class Fails(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise RuntimeError(f"an error of process {trainer.global_rank}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_how_to_resume_ends_the_error_of_the_first_process(devices, tmp_path):
    (tmp_path / "fails.py").write_text(FAILS)
    done = command(
        *("fit", "--config", QUICKSTART, *TINY, *FEW, "--trainer.max_epochs", "2", "--run_folder", "run"),
        *("--trainer.devices", str(devices), "--trainer.strategy", "ddp" if devices > 1 else "auto"),
        *("--trainer.callbacks", "fails.Fails", "--trainer.enable_progress_bar", "false"),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert all(f"an error of process {rank}" in done.stderr for rank in range(devices))
    (line,) = [line for line in done.stderr.splitlines() if "Resume the run with: " in line]
    assert line.startswith(("Resume", "[rank0]: Resume"))


EQUIVALENCE = """
import sys
import lightning as L
import torch
from plif_lightning.data import Digits
from plif_lightning.training.task import SpikingClassifier
from tests.processes import leave_at_once

class FrozenStatistics(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for module in pl_module.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()

devices, out = int(sys.argv[1]), sys.argv[2]
L.seed_everything(2020)
module = SpikingClassifier(
    (1, 8, 8), 10, 4, channels=8, fc_features=32, dropout=0.0, pool_ties="first",
    optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
)
for part in module.network.modules():  # as it is initialised, and with frozen statistics, it hardly fires
    if isinstance(part, torch.nn.BatchNorm2d):
        part.weight.data.fill_(4)
        part.bias.data.fill_(0.5)
    if isinstance(part, torch.nn.Linear):
        part.weight.data.mul_(4)
data = Digits(time_steps=4, batch_size=16 // devices, drop_last=True)
trainer = L.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1, logger=False,
    limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False, callbacks=[FrozenStatistics()],
)
before = torch.nn.utils.parameters_to_vector(module.parameters()).clone()
trainer.fit(module, datamodule=data)
if trainer.is_global_zero:
    after = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.save({"before": before.detach(), "after": after}, out)
if devices > 1:  # neither process may leave while the other one still listens to it
    torch.distributed.barrier()
    leave_at_once()
"""


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    script = tmp_path / "equivalence.py"
    script.write_text(EQUIVALENCE)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        environment.pop(name, None)
    for devices in (1, 2):
        run = [sys.executable, str(script), str(devices), str(tmp_path / f"{devices}.pt")]
        done = subprocess.run(run, check=False, timeout=PATIENCE, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = load(tmp_path / "1.pt"), load(tmp_path / "2.pt")
    assert torch.equal(one["before"], two["before"])
    moved = (one["after"] - one["before"]).abs().max()
    assert moved > 0.01
    # Sums over a batch are taken in another order; a spike that flips by it may move a weight a little.
    torch.testing.assert_close(two["after"], one["after"], rtol=1e-4, atol=1e-4 * moved.item())


def test_gpus_in_company_synchronise_their_batch_statistics():
    from types import SimpleNamespace

    from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

    for processes, accelerator, kind in (
        (2, CUDAAccelerator(), nn.SyncBatchNorm),
        (1, CUDAAccelerator(), nn.BatchNorm2d),
        (2, CPUAccelerator(), nn.BatchNorm2d),
    ):
        model, sync = nn.Sequential(nn.BatchNorm2d(3)), SyncOnGPUs()
        model.trainer = SimpleNamespace(world_size=processes, accelerator=accelerator)
        assert type(sync.apply(model)[0]) is kind
        assert not isinstance(sync.revert(model)[0], nn.SyncBatchNorm)
