"""The learning rate over a training: against PyTorch's schedules, and by the Trainer."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from plif_lightning.data import Digits
from plif_lightning.errors import UserError
from plif_lightning.training.schedules import OneCycle, length_of
from plif_lightning.training.task import SpikingClassifier


def rates(make, steps):
    """The learning rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def of_length(steps, **arguments):
    def make(optimizer):
        scheduler = OneCycle(optimizer, **arguments)
        scheduler.total_steps = steps
        return scheduler

    return make


def test_without_warm_up_it_is_pytorchs_cosine():
    expected = rates(lambda o: CosineAnnealingLR(o, T_max=50, eta_min=0.04), 50)
    assert rates(of_length(50, warmup=0.0, end=0.1), 50) == pytest.approx(expected)


def test_onecycle_decay_equals_pytorchs():
    # PyTorch's own counts from step 0 to the last one, this one to the end of the last one.
    expected = rates(lambda o: OneCycleLR(o, 0.4, total_steps=41, pct_start=11 / 41, final_div_factor=1e9), 41)
    ours = rates(of_length(40, warmup=0.25), 41)
    assert max(ours) == pytest.approx(0.4)
    assert ours[10:] == pytest.approx(expected[10:], abs=1e-6)
    assert ours[:11] == pytest.approx([0.4 * (0.1 + 0.9 * i / 10) for i in range(11)])


class Rates(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates_of(epochs, callbacks=(), **trainer):
    """The learning rate of each batch of a training, four in an epoch, with a cycle."""
    module = SpikingClassifier(
        *((1, 8, 8), 10, 2),
        channels=4,
        fc_features=12,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.4),
        lr_scheduler=lambda o: OneCycle(o, warmup=0.25),
    )
    seen = Rates()
    L.Trainer(
        max_epochs=epochs,
        limit_train_batches=4,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[seen, *callbacks],
        **trainer,
    ).fit(module, datamodule=Digits(time_steps=2, batch_size=4))
    return seen.seen


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_trainer_gives_it_its_length_and_steps_it_with_the_optimizer(accumulated):
    seen = rates_of(2, accumulate_grad_batches=accumulated)
    assert seen[::accumulated] == pytest.approx(rates(of_length(8 // accumulated, warmup=0.25), 8 // accumulated))


def test_a_longer_cycle_counts_from_the_next_step_on():
    """Found by a review: the first step of a run that went on had the rate 0 of the end of the old cycle."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    cycle = OneCycle(optimizer)
    cycle.set_length(4, 2)
    for _ in range(4):
        optimizer.step()
        cycle.step()
    assert optimizer.param_groups[0]["lr"] == 0
    cycle.set_length(8, 4)  # a run resumed with twice the epochs
    assert cycle.get_last_lr() == [optimizer.param_groups[0]["lr"]] == pytest.approx([0.4 * cycle.share(0.5)])
    cycle.set_length(4, 4)  # the same with half of the steps in an epoch, as with twice the devices
    optimizer.step()
    cycle.step()
    assert cycle.get_last_lr() == pytest.approx([0.4 * cycle.share(0.75)])


def test_a_cycle_that_is_new_in_a_later_epoch_has_the_epochs_that_are_left():
    """A run that begins from another's weights with another learning rate counts its epochs on."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    cycle = OneCycle(optimizer)
    cycle.set_length(8, 4, epoch=2)
    for _ in range(3):
        optimizer.step()
        cycle.step()
    assert cycle.get_last_lr() == pytest.approx([0.4 * cycle.share(0.75)])
    resumed = OneCycle(optimizer)
    resumed.load_state_dict(cycle.state_dict())
    resumed.set_length(8, 4, epoch=3)  # in the middle of the run
    optimizer.step()
    resumed.step()
    assert resumed.get_last_lr() == [0]


@pytest.mark.parametrize("arguments", [{"warmup": 1.0}, {"warmup": -0.1}, {"start": 2.0}, {"end": -1.0}])
def test_a_wrong_argument_is_refused(arguments):
    with pytest.raises(UserError, match=f"lr_scheduler.{next(iter(arguments))} must"):
        of_length(3, **arguments)(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4))


def test_onecycle_ends_with_training_under_changing_accumulation():
    """Found by a review: it was at its end after 20 of 50 steps."""
    seen = rates_of(4, callbacks=[GradientAccumulationScheduler({0: 4, 2: 1})])
    expected = rates(of_length(10, warmup=0.25), 10)
    assert seen[::4] == pytest.approx([expected[i] for i in (0, 1, 2, 6)])
    assert seen[8:] == pytest.approx(expected[2:])


def test_the_batches_that_an_epoch_ends_with_are_a_step_too():
    trainer = SimpleNamespace(estimated_stepping_batches=6, num_training_batches=5, accumulate_grad_batches=2)
    assert length_of(trainer) == (6, 2)  # two epochs of the batches 2 + 2 + 1
