"""The command line as users call it, on small files in the real formats."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
import yaml

from plif_lightning import commands
from plif_lightning.callbacks import LastCheckpoint
from plif_lightning.cli import CONFIGS, READERS, main, needs_sync_batchnorm
from tests import writers
from tests.conftest import REPOSITORY

QUICKSTART = str(CONFIGS / "quickstart.yaml")
# the quickstart's network, smaller still
TINY = ["--model.channels", "6", "--model.fc_features", "20", "--data.time_steps", "2"]
FEW = ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "2"]
SILENT = ["--trainer.enable_progress_bar", "false", "--trainer.callbacks", "[]"]


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fit(*arguments, config=QUICKSTART):
    main(["fit", "--config", config, *SILENT, *arguments])


def refused(capsys, *arguments):
    """The one sentence with which a command ends."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def command(*arguments, timeout=240, **kwargs):
    """`python main.py ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **kwargs,
    )


def load(path):
    return torch.load(path, weights_only=True)


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


# --- the commands of the README


def test_quickstart_ends_with_a_summary_and_every_file(capsys):
    main(["fit", "--config", QUICKSTART, *TINY, *FEW, "--trainer.max_epochs", "2"])
    out = capsys.readouterr().out
    run = Path("runs/quickstart/version_0")
    for name in ("config.yaml", "metrics.csv", "learning_curve.png", "tau_curve.png", "confusion_matrix.png"):
        assert (run / name).stat().st_size > 0
    for text in (
        "{c6k3s1-BN-PLIF-MPk2s2}*2-DP-FC20-PLIF-DP-FC100-PLIF-APk10s10",
        "1,226 training, 212 val",
        "B: best-on-validation epoch",
        "test accuracy",
        "measured once",
        "python main.py test --ckpt_path",
        "conv1",
    ):
        assert text in out.replace("\n", " ")
    assert not list(run.glob("**/*.tmp"))
    assert not (run / "hparams.yaml").exists()


@pytest.mark.slow
def test_quickstart_reaches_97_percent_on_its_test_part():
    fit()
    accuracy = [row["test/acc"] for row in rows("runs/quickstart/version_0/metrics.csv") if row["test/acc"]]
    assert float(accuracy[0]) >= 0.97


@pytest.mark.parametrize("name", ["mnist", "fashionmnist"])
def test_fit_of_the_papers_mnist_networks(name, tmp_path):
    writers.write_mnist(tmp_path / "data", train=8, test=4, name={"mnist": "MNIST"}.get(name, "FashionMNIST"))
    fit(
        *("--data.root", str(tmp_path / "data"), "--trainer.max_epochs", "2", "--data.batch_size", "4"),
        *("--trainer.enable_checkpointing", "false"),
        config=str(CONFIGS / f"{name}.yaml"),
    )
    metrics = rows(f"runs/{name}/version_0/metrics.csv")
    assert [row["epoch"] for row in metrics if row["test_as_val/acc"]] == ["0", "1"]
    assert all(float(row["rate/conv1"]) > 0 for row in metrics if row["rate/conv1"])


def test_fit_of_the_cifar10_network_with_variants_and_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a, **k: True)
    writers.write_cifar10(tmp_path / "data", train=10, test=4)
    fit(
        *("--config", str(CONFIGS / "variants/lif.yaml"), "--model.init_tau", "16", "--model.pooling", "avg"),
        *("--data.root", str(tmp_path / "data"), "--data.batch_size", "2"),
        *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"),
        *("--trainer.enable_checkpointing", "false"),
        config=str(CONFIGS / "cifar10.yaml"),
    )
    assert "{{c256k3s1-BN-LIF}*3-APk2s2}*2-DP-FC2048-LIF-DP-FC100-LIF-APk10s10" in capsys.readouterr().out
    measured = [row for row in rows("runs/cifar10/version_0/metrics.csv") if row["tau/conv1"]]
    assert float(measured[0]["tau/conv1"]) == pytest.approx(16, rel=1e-5)


def test_fit_with_the_holdout_variant_tests_once_at_the_end(tmp_path):
    writers.write_mnist(tmp_path / "data", train=80, test=8)
    fit(
        *("--config", str(CONFIGS / "variants/holdout.yaml"), "--data.root", str(tmp_path / "data")),
        *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1", "--data.batch_size", "4"),
        *("--model.channels", "4", "--model.fc_features", "8"),
        config=str(CONFIGS / "mnist.yaml"),
    )
    metrics = rows("runs/mnist/version_0/metrics.csv")
    assert len([row for row in metrics if row["val/acc"]]) == 2
    assert len([row for row in metrics if row["test/acc"]]) == 1
    assert not any(key.startswith("test_as_val") for key in metrics[0])


def test_fit_in_bf16(tmp_path):
    writers.write_mnist(tmp_path / "data", train=8, test=4, name="FashionMNIST")
    fit(
        *("--data.root", str(tmp_path / "data"), "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "1"),
        *("--data.batch_size", "4", "--trainer.enable_checkpointing", "false"),
        config=str(CONFIGS / "fashionmnist.yaml"),
    )
    assert rows("runs/fashionmnist/version_0/metrics.csv")


def test_fit_on_two_processes(tmp_path):
    done = command(
        *("fit", "--config", QUICKSTART, *TINY, *FEW, "--trainer.max_epochs", "2"),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fit finished") == 1
    assert "CPU x 2" in done.stdout
    assert [p.name for p in Path("runs/quickstart").iterdir()] == ["version_0"]
    assert load("runs/quickstart/version_0/checkpoints/best.ckpt")["global_step"] == 3


EQUIVALENCE = """
import sys
import lightning as L
import torch
from plif_lightning.data import Digits
from plif_lightning.task import SpikingClassifier
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


def test_two_processes_learn_what_one_learns_with_the_doubled_batch(tmp_path):
    script = tmp_path / "equivalence.py"
    script.write_text(EQUIVALENCE)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        environment.pop(name, None)
    for devices in (1, 2):
        run = [sys.executable, str(script), str(devices), str(tmp_path / f"{devices}.pt")]
        done = subprocess.run(run, check=False, timeout=240, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = load(tmp_path / "1.pt"), load(tmp_path / "2.pt")
    assert torch.equal(one["before"], two["before"])
    moved = (one["after"] - one["before"]).abs().max()
    assert moved > 0.01
    # Sums over a batch are taken in another order; a spike that flips by it may move a weight a little.
    torch.testing.assert_close(two["after"], one["after"], rtol=1e-4, atol=1e-4 * moved.item())


@pytest.fixture
def run():
    """A finished small run."""
    fit(*TINY, *FEW, "--trainer.max_epochs", "2", "--test_after_fit", "false")
    return Path("runs/quickstart/version_0")


def test_test_needs_nothing_but_the_checkpoint(run, tmp_path, monkeypatch, capsys):
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt")])
    out = capsys.readouterr().out
    assert "359 test" in out
    assert "B: best-on-validation epoch" in out.replace("\n", " ")
    here = rows(run / "test/metrics.csv")[0]["test/acc"]
    counts = rows(run / "test/confusion_matrix.csv")
    assert sum(int(v) for row in counts for k, v in row.items() if "true" not in k) == 359
    # also after it was moved, from another working directory
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (run / "checkpoints/best.ckpt").rename(moved / "renamed.ckpt")
    monkeypatch.chdir(moved)
    main(["test", "--ckpt_path=renamed.ckpt", *SILENT])
    assert rows(moved / "test/metrics.csv")[0]["test/acc"] == here


def test_test_of_a_model_selection_on_the_test_set_says_so(capsys):
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--test_after_fit", "false", "--data.validation", "test")
    assert "best test epoch" in capsys.readouterr().out
    run = Path("runs/quickstart/version_0")
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    assert "A: best test epoch" in capsys.readouterr().out
    main(["validate", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    assert "accuracy (test set)" in capsys.readouterr().out


def test_validate_measures_the_checkpoints_own_validation_part(run, capsys):
    main(["validate", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT, "--trainer.limit_val_batches", "1"])
    assert "212 val" in capsys.readouterr().out
    best = max(float(row["val/acc"]) for row in rows(run / "metrics.csv") if row["val/acc"])
    assert float(rows(run / "validate/metrics.csv")[0]["val/acc"]) == pytest.approx(best)


def test_predict_writes_label_prediction_and_votes_in_the_datas_order(run):
    main(["predict", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    table = rows(run / "predict/predictions.csv")
    assert [int(row["sample"]) for row in table] == list(range(359))
    right = 0
    for row in table:
        votes = [float(row[f"votes {c}"]) for c in range(10)]
        assert votes[int(row["prediction"])] == max(votes)
        right += row["label"] == row["prediction"]
    assert right / 359 == pytest.approx(float(rows(run / "test/metrics.csv")[0]["test/acc"]), abs=1e-6)


def test_a_data_override_beside_a_checkpoint_wins(run, capsys):
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT, "--data.eval_batch_size", "50"])
    assert "359 test" in capsys.readouterr().out


def test_checkpoints_load_with_weights_only_and_restore_the_task(run):
    from plif_lightning.task import SpikingClassifier

    for name in ("best", "last"):
        checkpoint = load(run / f"checkpoints/{name}.ckpt")
        assert yaml.safe_load(checkpoint["cli_config"])["model"]["channels"] == 6
    task = SpikingClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True)
    assert str(task.network.structure).startswith("{c6k3s1")


def test_print_config_and_help_work_anywhere(tmp_path, capsys):
    for arguments in (["fit", "--help"], ["--help"], ["test", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert "usage: " in capsys.readouterr().out
    assert list(READERS) == list(commands._READERS)  # those that the help names are those that are answered
    done = command("fit", "--print_config", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["trainer"]["max_epochs"] == 1024


def test_an_optimiser_and_a_scheduler_are_replaced_from_the_command_line(run):
    fit(
        *(*TINY, *FEW, "--trainer.max_epochs", "2", "--test_after_fit", "false"),
        *("--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--model.optimizer.momentum", "0.9"),
        *("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1"),
    )
    metrics = rows("runs/quickstart/version_1/metrics.csv")
    assert [float(row["lr"]) for row in metrics if row["lr"]] == pytest.approx([0.1, 0.01])
    state = load("runs/quickstart/version_1/checkpoints/last.ckpt")["optimizer_states"][0]
    assert state["param_groups"][0]["momentum"] == 0.9


def test_wandb_variant_records_beside_the_runs_own_files(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--config", str(CONFIGS / "variants/wandb.yaml"))
    assert Path("runs/quickstart/version_0/metrics.csv").exists()
    assert list(Path("runs/wandb").glob("offline-run-*/*.wandb"))
    wandb.finish()  # a process has one W&B run at a time: the next test's is another


# --- resuming


def progress(run):
    try:
        return load(run / "checkpoints/last.ckpt")["global_step"]
    except (OSError, RuntimeError):
        return 0


@pytest.mark.parametrize("moment", ["after an epoch", "in an epoch"])
def test_a_killed_run_goes_on_exactly(moment, tmp_path):
    arguments = [
        *("fit", "--config", QUICKSTART, *SILENT, "--test_after_fit", "false", "--trainer.max_epochs", "4"),
        *("--model.channels", "8", "--data.augmentation", "[{class_path: RandomCrop, init_args: {padding: 1}}]"),
    ]
    straight = command(*arguments, "--trainer.logger.name", "straight", cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    killed = Path("runs/killed/version_0")
    interval = ["--checkpoint.every_n_batches", "10"] if moment == "in an epoch" else []
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments, *interval, "--trainer.logger.name", "killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        step = progress(killed)
        if step >= 2 * 77 and (moment == "after an epoch" or step % 77 != 0):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = progress(killed)
    assert 2 * 77 <= step < 4 * 77
    resumed = command("fit", "--config", str(killed / "config.yaml"), "--ckpt_path", "last", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert [p.name for p in Path("runs/killed").iterdir()] == ["version_0"]

    expected, actual = (load(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("straight", "killed"))
    assert actual["global_step"] == expected["global_step"] == 308
    for name, value in expected["state_dict"].items():
        assert torch.equal(actual["state_dict"][name], value), name
    for i, state in expected["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(actual["optimizer_states"][0]["state"][i][name], value), (i, name)
    assert actual["lr_schedulers"] == expected["lr_schedulers"]
    tables = [rows(f"runs/{name}/version_0/metrics.csv") for name in ("straight", "killed")]
    for table in tables:
        for row in table:
            row.pop("train/samples_per_second")
    assert tables[0] == tables[1]
    best = [load(f"runs/{name}/version_0/checkpoints/best.ckpt")["global_step"] for name in ("straight", "killed")]
    assert best[0] == best[1]


def test_a_resumed_run_keeps_a_configuration_that_starts_anew(run):
    config = (run / "config.yaml").read_text()
    fit("--ckpt_path", "last", "--trainer.max_epochs", "3", config=str(run / "config.yaml"))
    epochs = [row["epoch"] for row in rows(run / "metrics.csv") if row["train/loss"]]
    assert epochs == ["0", "1", "2"]
    assert (run / "config.yaml").read_text() == config.replace("max_epochs: 2", "max_epochs: 3")


def test_a_moved_run_that_goes_on_remembers_its_best_epoch(run, tmp_path):
    best = max(float(row["val/acc"]) for row in rows(run / "metrics.csv") if row["val/acc"])
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    run.rename(moved)
    before = (moved / "checkpoints/best.ckpt").read_bytes()
    # a learning rate of nothing: the third epoch is not better than the best of the first two
    last = load(moved / "checkpoints/last.ckpt")
    for group in last["optimizer_states"][0]["param_groups"]:
        group["lr"] = 0.0
    torch.save(last, moved / "checkpoints/last.ckpt")
    fit("--ckpt_path", "last", "--trainer.max_epochs", "3", config=str(moved / "config.yaml"))
    third = [float(row["val/acc"]) for row in rows(moved / "metrics.csv") if row["val/acc"]][-1]
    assert third <= best
    assert (moved / "checkpoints/best.ckpt").read_bytes() == before


def test_a_run_of_one_epoch_goes_on_and_keeps_its_best(capsys):
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--test_after_fit", "false")
    run = Path("runs/quickstart/version_0")
    first = load(run / "checkpoints/last.ckpt")["callbacks"]["BestCheckpoint"]["best_model_score"].item()
    assert first == pytest.approx(float(next(row["val/acc"] for row in rows(run / "metrics.csv") if row["val/acc"])))
    fit("--ckpt_path", "last", "--trainer.max_epochs", "2", config=str(run / "config.yaml"))
    assert [row["epoch"] for row in rows(run / "metrics.csv") if row["val/acc"]] == ["0", "1"]


@pytest.mark.parametrize("validation", ["1", "0"])
def test_a_run_broken_off_within_an_epoch_goes_on_with_or_without_validation(validation, monkeypatch):
    arguments = [*TINY, *FEW, "--test_after_fit", "false", "--trainer.limit_val_batches", validation]
    fit(*arguments, "--trainer.max_epochs", "2", "--trainer.logger.name", "straight")
    save = LastCheckpoint._save

    def save_and_break_off(self, trainer):
        save(self, trainer)
        raise RuntimeError("power cut")

    more = ["--checkpoint.every_n_batches", "2", "--trainer.max_epochs", "2", "--trainer.logger.name", "cut"]
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", save_and_break_off)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(*arguments, *more)
    run = Path("runs/cut/version_0")
    assert progress(run) == 2
    fit("--ckpt_path", "last", config=str(run / "config.yaml"))
    one, other = (load(f"runs/{name}/version_0/checkpoints/last.ckpt")["state_dict"] for name in ("straight", "cut"))
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_mid_epoch_checkpoints_wait_until_gradients_are_complete():
    arguments = ["--trainer.accumulate_grad_batches", "2", "--checkpoint.every_n_batches", "1"]
    fit(*TINY, *arguments, "--trainer.max_steps", "2", "--test_after_fit", "false")
    batches = load("runs/quickstart/version_0/checkpoints/last.ckpt")["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert batches["current"]["ready"] == 4


def test_the_summary_names_the_epoch_and_accuracy_of_the_best_checkpoint(capsys):
    arguments = ["--trainer.val_check_interval", "0.25", "--trainer.max_epochs", "2", "--test_after_fit", "false"]
    fit("--model.optimizer.lr", "0.01", "--model.channels", "8", *arguments)
    run = Path("runs/quickstart/version_0")
    best = max(float(row["val/acc"]) for row in rows(run / "metrics.csv") if row["val/acc"])
    assert (
        f"{100 * best:.2f} % (epoch {load(run / 'checkpoints/best.ckpt')['epoch'] + 1} of 2)" in capsys.readouterr().out
    )


def test_validation_on_another_split_than_the_runs_is_refused(run, capsys):
    best = str(run / "checkpoints/best.ckpt")
    message = refused(capsys, "validate", "--ckpt_path", best, "--data.holdout_fraction", "0.9")
    assert "data.holdout_fraction is 0.15 there, 0.9 here" in message


def test_a_checkpoint_named_in_a_file_is_refused(run, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"ckpt_path: {run / 'checkpoints/last.ckpt'}\n")
    assert "pass it as --ckpt_path" in refused(capsys, "fit", "--config", QUICKSTART, "--config", str(path))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, "--trainer.logger.save_dir", "file/runs")
    assert "file/runs" in message


def test_a_resume_that_finds_nothing_is_refused(capsys):
    message = refused(capsys, "fit", "--config", QUICKSTART, "--ckpt_path", "last")
    assert "--config RUN/config.yaml" in message
    assert "there is no" in message
    assert not Path("runs").exists()


def test_a_resume_with_other_settings_is_refused(run, capsys):
    last = str(run / "checkpoints/last.ckpt")
    message = refused(capsys, "fit", "--config", QUICKSTART, "--ckpt_path", last)
    assert "model.channels is 6 there, 32 here" in message
    message = refused(
        capsys, *("fit", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--data.validation", "test")
    )
    assert "data.validation is 'holdout' there, 'test' here" in message


def test_the_config_of_a_run_starts_a_new_run(run):
    fit(*FEW, config=str(run / "config.yaml"))
    assert sorted(p.name for p in Path("runs/quickstart").iterdir()) == ["version_0", "version_1"]


def test_an_existing_run_is_not_written_over(run, capsys):
    before = (run / "metrics.csv").read_text()
    message = refused(capsys, "fit", "--config", QUICKSTART, *TINY, "--trainer.logger.version", "0")
    assert "version_0 already holds a run" in message
    assert "--ckpt_path last" in message
    assert (run / "metrics.csv").read_text() == before


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.init_tua", "3"], "unknown argument model.init_tua. Did you mean model.init_tau?"),
        (["--data.tim_steps", "3"], "unknown argument tim_steps. Did you mean data.time_steps?"),
        (["--trainer.max_epoch", "3"], "unknown argument trainer.max_epoch. Did you mean trainer.max_epochs?"),
        (["--data", "Digit"], "Did you mean Digits?"),
        (["--data.time_steps", "0"], "data.time_steps must be at least 1, got 0"),
        (["--model.init_tau", "1"], "init_tau must be > 1"),
        (["--model.neuron", "gru"], "model.neuron"),
        (["--model.n_down", "5"], "n_down=5 pools leave nothing of an input of 8x8"),
        (["--data.batch_size", "2000", "--data.drop_last", "true"], "larger than the data (1226 samples)"),
        (["--trainer.precision", "16-mixed", "--trainer.accelerator", "cpu"], "pass bf16-mixed or 32-true"),
        (["--trainer.overfit_batches", "2"], "pass limit_train_batches instead"),
        (["--trainer.val_check_interval", "500"], "must be less than or equal to the number of the training batches"),
        (["--checkpoint.every_n_batches", "0"], "checkpoint.every_n_batches must be at least 1"),
        (["--ckpt_path", "."], "is a folder"),
        (["--ckpt_path"], "--ckpt_path needs a file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model.input_encoder", "poisson"], "--data.normalize=false"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_with_one_sentence(arguments, expected, capsys):
    assert expected in refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *arguments)


def test_an_unknown_key_in_a_file_is_answered_with_the_nearest(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  poolin: avg\n")
    assert "Did you mean model.pooling?" in refused(capsys, "fit", "--config", QUICKSTART, "--config", str(path))


def test_a_missing_data_set_is_answered_with_files_and_place(capsys, tmp_path):
    message = refused(
        capsys,
        *("fit", "--config", str(CONFIGS / "mnist.yaml"), *SILENT),
        *("--data.root", str(tmp_path / "no"), "--data.download", "false"),
    )
    for part in ("MNIST/raw", str(tmp_path / "no"), "--data.root", "--data.download=true"):
        assert part in message


@pytest.mark.parametrize("subcommand", ["test", "validate", "predict"])
def test_an_evaluation_without_a_checkpoint_is_refused(subcommand, capsys):
    message = refused(capsys, subcommand, "--config", QUICKSTART)
    assert "random weights" in message
    assert "--ckpt_path RUN/checkpoints/best.ckpt" in message


def test_model_settings_beside_a_checkpoint_that_says_otherwise_are_refused(run, capsys):
    best = str(run / "checkpoints/best.ckpt")
    message = refused(capsys, "test", "--ckpt_path", best, "--model.init_tau", "3")
    assert "model.init_tau is 2.0 there, 3.0 here" in message
    main(["test", "--ckpt_path", best, "--model.init_tau", "2.0", *SILENT])


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "other", "missing"])
def test_a_file_that_is_no_checkpoint_is_refused_by_its_name(kind, run, capsys):
    path = Path("bad.ckpt")
    if kind == "truncated":
        path.write_bytes((run / "checkpoints/best.ckpt").read_bytes()[:20_000])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "other":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    message = refused(capsys, "test", "--ckpt_path", str(path))
    assert "bad.ckpt" in message


def test_gpus_in_company_synchronise_their_batch_statistics():
    from types import SimpleNamespace

    from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

    assert needs_sync_batchnorm(SimpleNamespace(world_size=2, accelerator=CUDAAccelerator()))
    assert not needs_sync_batchnorm(SimpleNamespace(world_size=1, accelerator=CUDAAccelerator()))
    assert not needs_sync_batchnorm(SimpleNamespace(world_size=2, accelerator=CPUAccelerator()))


def test_a_dev_run_leaves_no_files(capsys):
    fit(*TINY, "--trainer.fast_dev_run", "true")
    assert not list(Path().iterdir())
    assert "checkpoint" not in capsys.readouterr().out


def test_a_fit_without_validation_says_that_it_could_not_test(capsys):
    fit(*TINY, *FEW, "--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1")
    assert "not measured: no validation chose an epoch" in capsys.readouterr().out
    assert Path("runs/quickstart/version_0/checkpoints/last.ckpt").exists()


def test_stored_configuration_is_plain_text(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert json.loads(json.dumps(config)) == config
    assert Path(config["data"]["init_args"]["root"]).is_absolute()


def test_accumulation_clipping_and_resume_are_the_same_on_every_backend():
    given = ["--trainer.precision", "64-true", "--trainer.accumulate_grad_batches", "2"]
    given += ["--trainer.gradient_clip_val", "0.05", "--trainer.limit_train_batches", "6"]
    given += ["--trainer.limit_val_batches", "1", "--test_after_fit", "false"]
    for backend in ("cpu", "reference"):
        fit(*TINY, *given, "--model.backend", backend, "--trainer.max_epochs", "2", "--run_folder", backend)
    fit(*TINY, *given, "--model.backend", "reference", "--trainer.max_epochs", "1", "--run_folder", "mixed")
    main(["fit", "--config", "mixed/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2",
          "--model.backend", "cpu"])  # fmt: skip
    ours, theirs, mixed = (load(f"{name}/checkpoints/last.ckpt") for name in ("cpu", "reference", "mixed"))
    assert ours["global_step"] == theirs["global_step"] == 6
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(mixed["state_dict"][name], value, rtol=1e-7, atol=1e-9)


def test_a_profile_names_the_kernels(tmp_path):
    done = command(
        "fit", "--config", QUICKSTART, *SILENT, *TINY, *FEW, "--trainer.max_epochs", "1",
        "--trainer.profiler", "pytorch", "--run_folder", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr + "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*.txt"))
    for name in ("plif::fire", "plif::fire_backward", "ConvBlock", "PLIF"):
        assert name in said
