"""Averaged weights: what is validated, tested, saved and logged of them."""

from pathlib import Path

import lightning as L
import pytest
import torch

from plif_lightning.callbacks import EMA
from plif_lightning.cli import main
from plif_lightning.errors import UserError
from plif_lightning.layers.delay import Delay
from plif_lightning.network import load_network
from plif_lightning.runs.run import read_run
from tests.cli.calls import FEW, SILENT, TINY, fit, load, rows

AVERAGED = ["--trainer.callbacks", "[{class_path: EMAWeightAveraging, init_args: {decay: 0.97}}]"]


def test_an_average_warms_up_and_the_summary_names_it(capsys):
    """timm's: 66 steps at a decay of 0.999 alone average little but the initial weights."""
    argv = [*FEW, "--trainer.limit_train_batches", "40", "--trainer.max_epochs", "2", "--test_after_fit", "false"]
    fit(*argv, "--trainer.callbacks", "EMA", "--run_folder", "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "averaging validation, test and best.ckpt use averaged weights (EMA)" in said
    assert ", averaged weights)" in said
    accuracies = [float(row.get("val/acc") or row["test_as_val/acc"]) for row in rows("run/metrics.csv")]
    assert accuracies[-1] > 0.2  # 10 % without warm-up


def test_the_average_is_that_of_timm():
    average, decay = 1.0, 0.9
    ema = EMA(decay)
    for step in range(1, 40):
        of_timm = max(min(decay, 1 - (1 + step / 1.0) ** (-2 / 3)), 0.0)
        expected = of_timm * average + (1 - of_timm) * step
        average = ema._average(torch.tensor(average), torch.tensor(float(step)), torch.tensor(step)).item()
        assert average == pytest.approx(expected, rel=1e-6)


class Narrower(L.Callback):
    """Sets the width of a delay's Gaussian in each epoch, as docs/tutorials/delays.md does."""

    def on_train_epoch_start(self, trainer, pl_module):
        (delay,) = (module for module in pl_module.modules() if isinstance(module, Delay))
        delay.sigma.fill_(2 / (1 + trainer.current_epoch))


def test_a_width_that_a_schedule_sets_is_not_averaged():
    structure = "FC8-PLIF-DELAY(max_delay=2,kernel=gaussian)-FC10b"
    few = ["--model.structure", structure, "--data.sequence", "rows", *FEW, "--trainer.max_epochs", "2"]
    callbacks = ["--trainer.callbacks", "[EMA, tests.callbacks.test_averaging.Narrower]"]
    fit("--data.time_steps=8", *few, *callbacks, "--test_after_fit", "false", "--run_folder", "run")
    last = load("run/checkpoints/last.ckpt")
    assert last["state_dict"]["network.classifier.delay1.sigma"] == 1.0
    (of_average, trained) = (
        last[name]["network.classifier.delay1.delay"] for name in ("state_dict", "current_model_state")
    )
    assert not torch.equal(of_average, trained)


def test_averaged_weights_are_tested_and_saved(tmp_path):
    fit(*FEW, *AVERAGED, "--trainer.max_epochs", "2", "--model.channels", "6", "--run_folder", "run")
    tested = read_run(Path("run")).test
    best = load("run/checkpoints/best.ckpt")
    main(["test", "--ckpt_path", "run/checkpoints/best.ckpt", *SILENT, "--trainer.limit_test_batches", "2"])
    assert float(rows("run/test/metrics.csv")[0]["test/acc"]) == tested
    # What is logged of tau is that of the network whose accuracy is logged.
    logged = next(row for row in rows("run/metrics.csv") if row["tau/fc1"] and int(row["epoch"]) == best["epoch"])
    a = best["state_dict"]["network.classifier.fc1.neuron.a"]
    assert float(logged["tau/fc1"]) == pytest.approx(1 + (-a).exp().item(), rel=1e-6)
    network = load_network("run/checkpoints/best.ckpt").state_dict()
    assert all(torch.equal(value, best["state_dict"][f"network.{name}"]) for name, value in network.items())
    assert any(not torch.equal(value, best["current_model_state"][name]) for name, value in best["state_dict"].items())


def test_a_run_without_an_average_begins_from_the_weights_that_were_trained():
    few = [*TINY, *FEW, "--trainer.limit_train_batches", "8", "--test_after_fit", "false", "--record_samples", "0"]
    fit(*few, *AVERAGED, "--trainer.max_epochs", "1", "--run_folder", "run")
    before = load("run/checkpoints/last.ckpt")
    still = ["--model.optimizer.lr", "0", "--trainer.max_epochs", "2", "--run_folder", "other"]
    fit(*few, *still, "--ckpt_path", "run/checkpoints/last.ckpt")
    after = load("other/checkpoints/last.ckpt")["state_dict"]
    name = "network.classifier.fc1.fc.weight"
    assert torch.equal(after[name], before["current_model_state"][name])
    assert not torch.equal(after[name], before["state_dict"][name])


def test_tau_of_averaged_weights_stands_alone_where_not_every_epoch_is_validated():
    """Found by a review: every other value was that of the weights in training."""
    few = [*TINY, *FEW, "--test_after_fit", "false", "--record_samples", "0", "--trainer.max_epochs", "3"]
    fit(*few, *AVERAGED, "--trainer.check_val_every_n_epoch", "2", "--run_folder", "run")
    assert {row["epoch"] for row in rows("run/metrics.csv") if row["tau/fc1"]} == {"1"}


@pytest.mark.parametrize(("decay", "valid"), [(0.0, True), (0.999, True), (1.0, False), (-0.1, False)])
def test_a_decay_lies_from_0_to_below_1(decay, valid):
    if valid:
        assert EMA(decay, warmup=False)._average(torch.ones(1), torch.zeros(1), 5).item() == pytest.approx(decay)
    else:
        with pytest.raises(UserError, match=r"decay must lie in \[0, 1\), got"):
            EMA(decay)
