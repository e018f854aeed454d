"""`fit`: what it trains, writes and says."""

import inspect
import json
from pathlib import Path
from typing import Any, Union

import pytest
import torch
import yaml
from lightning import Trainer

from plif_lightning.cli import main
from plif_lightning.cli.lightning import make_paths_absolute
from plif_lightning.network import load_network
from tests import writers
from tests.cli.calls import CONFIGS, FEW, QUICKSTART, SILENT, TINY, fit, load, refused, resume, rows


def test_quickstart_ends_with_a_summary_and_every_file(capsys):
    main(["fit", "--config", QUICKSTART, *TINY, *FEW, "--trainer.max_epochs", "2"])
    out = capsys.readouterr().out
    run = Path("runs/quickstart/version_0")
    for name in ("config.yaml", "run.json", "metrics.csv", "confusion_matrix.csv"):
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
    forms = json.loads((run / "run.json").read_text())["forms"]
    assert list(forms) == ["conv1", "conv2", "fc1", "fc2"]
    shown = " ".join(out.split("form of each layer")[1].split())
    assert all(f"{name} {form}" in shown for name, form in forms.items())


@pytest.mark.slow
def test_quickstart_reaches_97_percent_on_its_test_set():
    fit()
    accuracy = [row["test/acc"] for row in rows("runs/quickstart/version_0/metrics.csv") if row["test/acc"]]
    assert float(accuracy[0]) >= 0.97


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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AdamW", {"lr": 0.001, "weight_decay": 0.01, "fused": True}),
        ("SGD", {"lr": 0.001, "momentum": 0.0, "fused": True}),
        (f"{__name__}.OwnOptimizer", {"lr": 0.001, "momentum": 0.7, "weight_decay": 0.3}),
    ],
)
def test_replaced_optimiser_gets_its_defaults(name, expected, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "quickstart", "--model.optimizer", name, "--print_config"])
    optimizer = yaml.safe_load(capsys.readouterr().out)["model"]["optimizer"]
    assert expected.items() <= optimizer["init_args"].items()


class OwnOptimizer(torch.optim.SGD):
    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.7, weight_decay: float = 0.3) -> None:
        super().__init__(params, lr, momentum, weight_decay=weight_decay)


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


def test_data_and_cache_folders_are_stored_as_absolute_paths(tmp_path):
    data = {"root": "data", "store": "caches", "size": 8}
    make_paths_absolute(data)
    assert data == {"root": str(tmp_path / "data"), "store": str(tmp_path / "caches"), "size": 8}
    elsewhere = {"root": "s3://bucket/data", "store": None}
    make_paths_absolute(elsewhere)
    assert elsewhere == {"root": "s3://bucket/data", "store": None}


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
    resume("mixed", "--trainer.max_epochs", "2",
          "--model.backend", "cpu")  # fmt: skip
    ours, theirs, mixed = (load(f"{name}/checkpoints/last.ckpt") for name in ("cpu", "reference", "mixed"))
    assert ours["global_step"] == theirs["global_step"] == 6
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mixed["state_dict"][name], value, rtol=1e-10, atol=1e-12)


def test_learned_threshold_is_logged_saved_and_tested(capsys):
    fit(*TINY, *FEW, "--model.learn_threshold", "true", "--model.reset", "soft", "--trainer.max_epochs", "2",
        "--model.optimizer.lr", "0.05")  # fmt: skip
    run = Path("runs/quickstart/version_0")
    thresholds = [float(row["v_threshold/conv1"]) for row in rows(run / "metrics.csv") if row["v_threshold/conv1"]]
    assert len(thresholds) == 2
    assert thresholds[0] != thresholds[1]
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    network = load_network(run / "checkpoints/best.ckpt")
    assert network.encoder.conv1.neuron.constants.reset == "soft"
    assert not network.training


TWO = [*TINY, *FEW, "--trainer.max_epochs", "2", "--test_after_fit", "false"]


def test_whatever_watches_accuracy_knows_that_it_improves_upwards(capsys):
    first = ["fit", "--config", QUICKSTART, *SILENT[:2], *TWO]
    stops, keeps = (
        [f"--trainer.callbacks+={name}", "--trainer.callbacks.monitor", "val/acc"]
        for name in ("EarlyStopping", "ModelCheckpoint")
    )
    upwards = ["--trainer.callbacks.mode", "max"]
    plateau = ["--model.lr_scheduler", "lightning.pytorch.cli.ReduceLROnPlateau"]
    plateau += ["--model.lr_scheduler.monitor", "val/acc"]
    for watching, name in ((stops, "EarlyStopping"), (keeps, "ModelCheckpoint"), (plateau, "ReduceLROnPlateau")):
        assert f"{name}: val/acc improves upwards" in refused(capsys, *first, *watching)
    main([*first, *stops, *upwards, *keeps, *upwards, *plateau, "--model.lr_scheduler.mode", "max"])
    out = " ".join(capsys.readouterr().out.split())
    assert "limit_train_batches 3, limit_val_batches 1, limit_test_batches 2: results are of that part" in out


def test_epoch_is_a_single_row_of_metrics():
    fit(*TWO)
    table = rows("runs/quickstart/version_0/metrics.csv")
    assert [row["epoch"] for row in table] == ["0", "1"]
    assert all(row["train/loss"] and row["val/acc"] and row["tau/conv1"] for row in table)
    assert list(table[0])[:2] == ["epoch", "step"]


def test_the_same_seed_gives_the_same_weights_with_workers_and_with_deterministic_algorithms():
    arguments = [*TINY, *FEW, "--trainer.max_epochs", "2", "--test_after_fit", "false"]
    arguments += [
        "--data.augmentation",
        "[{class_path: torchvision.transforms.v2.RandomCrop, init_args: {size: 8, padding: 1}}]",
    ]
    found = []
    for i, more in enumerate([[], ["--data.num_workers", "2"], ["--trainer.deterministic", "true"]]):
        fit(*arguments, *more, "--run_folder", f"run{i}")
        found.append(load(f"run{i}/checkpoints/last.ckpt")["state_dict"])
        torch.use_deterministic_algorithms(False)
    for other in found[1:]:
        assert all(torch.equal(other[name], value) for name, value in found[0].items())


def test_another_number_of_threads_changes_a_step_by_no_more_than_rounding():
    from plif_lightning.network import SpikingNetwork

    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            torch.manual_seed(5)
            network = SpikingNetwork((1, 16, 16), 10, 4, channels=16, fc_features=64, dropout=0.0).double()
            images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
            votes = network(images)
            (votes.mean(0) - 0.1).square().sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("given", "read"), [("1", "1"), ("1.0", "1.0"), ("0.5", "0.5")])
def test_limit_of_one_batch_is_not_all_batches(given, read, monkeypatch, capsys):
    """Which module is imported first decides the order of a type's parts, and so what 1 is read as."""
    hints = inspect.unwrap(Trainer.__init__).__annotations__
    monkeypatch.setitem(hints, "limit_train_batches", Union[float, int, None])  # noqa: UP007
    with pytest.raises(SystemExit):
        main(["fit", "--config", QUICKSTART, "--trainer.limit_train_batches", given, "--print_config"])
    assert f"\n  limit_train_batches: {read}\n" in capsys.readouterr().out


def test_a_test_that_was_asked_for_and_not_measured_is_named(capsys):
    few = [*TINY, *FEW, "--trainer.max_epochs", "1", "--test_after_fit", "true"]
    fit(*few, "--trainer.limit_val_batches", "0")
    assert "not measured: there is no best checkpoint" in capsys.readouterr().out
    fit(*few)
    assert "not measured" not in capsys.readouterr().out
