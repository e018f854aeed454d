"""The command line on the neuromorphic data sets, from small files in the real formats."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plif_lightning.cli import main
from tests import writers
from tests.cli.calls import CONFIGS, SILENT, command, load, refused, rows
from tests.conftest import PATIENCE, REPOSITORY

PART = ["--data.allow_partial", "true"]
SMALL = ["--model.channels", "4", "--model.fc_features", "16", "--data.batch_size", "4", "--data.time_steps", "3"]


def config(name):
    return ["--config", str(CONFIGS / f"{name}.yaml")]


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


WRITERS = {
    "nmnist": lambda root: writers.write_nmnist(root, 8, 4),
    "cifar10dvs": lambda root: writers.write_cifar10dvs(root, (0, 900)),
    "dvsgesture": lambda root: writers.write_dvsgesture(root, (1, 24)),
}


@pytest.mark.parametrize("name", ["nmnist", "dvsgesture", pytest.param("cifar10dvs", marks=pytest.mark.slow)])
def test_fit_and_test_of_the_papers_networks(name, capsys):
    WRITERS[name](Path("data"))
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    few += ["--data.batch_size", "1", "--data.eval_batch_size", "1", "--record_samples", "1"]
    main(["fit", *config(name), *SILENT, *PART, *few])
    out = said(capsys)
    assert "(original, a PART of its" in out
    run = Path(f"runs/{name}/version_0")
    facts = json.loads((run / "run.json").read_text())["data"]
    assert facts["origin"].startswith("original, a PART of its")
    assert facts["samples"]["test as val"] > 0
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT, "--trainer.limit_test_batches", "1"])
    assert "a PART of its" in said(capsys)


def test_fit_with_every_augmentation_and_a_smaller_frame(capsys):
    writers.write_cifar10dvs(Path("data"), (0, 1, 900))
    path = Path("augmented.yaml")
    path.write_text(
        "data:\n  init_args:\n    size: 48\n    augmentation:\n"
        + "".join(
            f"      - class_path: plif_lightning.data.{name}\n"
            for name in (
                *("EventFlip", "EventTranslation", "EventRotation", "PolarityFlip"),
                *("TimeDrop", "EventDrop", "EventMix"),
            )
        )
    )
    brief = ["--trainer.max_epochs", "2", "--trainer.enable_checkpointing", "false"]
    main(["fit", *config("cifar10dvs"), "--config", str(path), *SILENT, *PART, *SMALL, *brief])
    assert rows("runs/cifar10dvs/version_0/metrics.csv")[-1]["train/loss"]


def test_prepare_reports_contents_and_runs_once(capsys):
    writers.write_nmnist(Path("data"))
    main(["prepare", *config("nmnist"), *PART])
    out = said(capsys)
    for text in ("N-MNIST (original, a PART of its 60,000 and 10,000 recordings)", "all 20 10", "events 13,000 6,500"):
        assert text in out
    assert "Prepared." in out
    assert out.count("reading N-MNIST") == 2
    main(["prepare", *config("nmnist"), *PART, "--verify", "true"])
    out = said(capsys)
    assert "reading N-MNIST" not in out
    assert "14 checksums compared: all are right." in out
    assert not Path("runs").exists()


def test_prepare_finds_damage(capsys):
    writers.write_nmnist(Path("data"))
    main(["prepare", *config("nmnist"), *PART])
    path = next(Path("data/NMNIST/events/original-train").glob("*/address.npy"))
    content = path.read_bytes()[:-1] + b"\xff"
    with writers.unnoticed(path):
        path.write_bytes(content)
    error = refused(capsys, "prepare", *config("nmnist"), *PART, "--verify", "true")
    assert "address.npy is damaged. Delete " in error


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("dvsgesture", [], "Fetch DvsGesture.tar.gz (md5 8a5c71fb11e24e5ca5b11866ca6c00a1)"),
        ("nmnist", ["--data.download", "false"], "Pass --data.download=true, or fetch train.zip"),
        ("dvsgesture", ["--data.source", "ibm"], "data.source must be one of original, tonic"),
        ("nmnist", ["--data.size", "99"], "data.size must lie in 1..34, got 99"),
        ("nmnist", ["--model.input_encoder", "poisson"], "input_encoder='poisson' encodes an image"),
    ],
)
def test_user_error_is_a_single_sentence(name, arguments, expected, capsys):
    if "poisson" in arguments:
        writers.write_nmnist(Path("data"))
        arguments = [*arguments, *PART, *SILENT]
    assert expected in refused(capsys, "fit", *config(name), *arguments)
    assert not list(Path().rglob("*.tmp"))


def test_damaged_recording_is_a_single_sentence(capsys):
    writers.write_nmnist(Path("data"))
    Path("data/NMNIST/Train/3/00003.bin").write_bytes(b"1234")
    error = refused(capsys, "fit", *config("nmnist"), *PART, *SILENT)
    assert "Train/3/00003.bin: 4 bytes are not a whole number of 5-byte events" in error


@pytest.mark.slow
def test_two_processes_prepare_at_once():
    writers.write_nmnist(Path("data"), 200, 20)
    arguments = [sys.executable, str(REPOSITORY / "main.py"), "prepare", *config("nmnist"), *PART]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in "ab"]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("Prepared." in out for out in outputs)
    assert sum(out.count("reading N-MNIST") for out in outputs) == 2  # each part by one of them


@pytest.mark.slow
def test_fit_on_two_processes_with_workers():
    writers.write_nmnist(Path("data"), 16, 8)
    done = command(
        *("fit", *config("nmnist"), *SMALL, *PART, "--data.num_workers", "1", "--data.batch_size", "2"),
        *("--trainer.max_epochs", "1", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
    )
    assert done.returncode == 0, done.stderr
    assert "16 training, 8 test as val" in " ".join(done.stdout.split())
    assert load("runs/nmnist/version_0/checkpoints/last.ckpt")["global_step"] == 4


@pytest.mark.slow
def test_a_mistake_in_the_data_ends_every_process():
    done = command(
        *("fit", *config("nmnist"), *SMALL, "--data.download", "false", "--trainer.max_epochs", "1"),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp"),
        timeout=PATIENCE,
    )
    assert done.returncode != 0
    assert "error: N-MNIST (original) is not in" in done.stderr


def test_a_run_is_not_continued_or_validated_on_another_training_set(capsys):
    writers.write_nmnist(Path("data"), 140, 8)
    brief = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--data.num_workers", "0"]
    main(["fit", *config("nmnist"), *SILENT, *PART, *SMALL, *brief, "--data.validation", "holdout"])
    run = "runs/nmnist/version_0"
    main(["validate", "--ckpt_path", f"{run}/checkpoints/best.ckpt", *SILENT])
    for i in range(70, 140):
        Path(f"data/NMNIST/Train/{i % 10}/{i:05d}.bin").unlink()
    capsys.readouterr()
    for arguments in (
        ["validate", "--ckpt_path", f"{run}/checkpoints/best.ckpt"],
        ["fit", "--run_folder", f"{run}", "--trainer.max_epochs", "2"],
    ):
        assert "is not the one that the checkpoint's run was trained on" in refused(capsys, *arguments, *SILENT)
    main(["test", "--ckpt_path", f"{run}/checkpoints/best.ckpt", *SILENT])
