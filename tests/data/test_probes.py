"""Probes of time: what they do to a sample, and what a network can still learn."""

from dataclasses import dataclass

import lightning as L
import pytest
import torch

import plif_lightning as pl
from plif_lightning.data import BinaryAdding, Digits, SpikingDataModule
from plif_lightning.data.base import as_index
from plif_lightning.data.generated import SequenceDataset
from plif_lightning.errors import UserError

T, F = 12, 6


@dataclass(eq=False, repr=False)
class Pulses(SpikingDataModule):
    """The same pulses in both classes, in the opposite order, at random times: the order alone tells."""

    time_steps: int = T
    title = "pulses"
    input_shape = (F,)
    class_names = ("forwards", "backwards")

    def labels(self, train):
        return torch.arange(200) % 2

    def dataset(self, train, indices, augment):
        generator = torch.Generator().manual_seed(int(train))
        x = torch.zeros(200, T, F)
        for sample, label in enumerate(self.labels(train).tolist()):
            at = torch.randperm(T, generator=generator)[:F].sort().values
            x[sample, at, torch.arange(F) if label == 0 else torch.arange(F).flip(0)] = 5
        return SequenceDataset(x, self.labels(train), as_index(indices, 200))

    def inventory(self):
        return []

    def identity(self, train=True):
        return "pulses"


def accuracy(probe):
    """On the test set, of a recurrent network that was trained under a probe."""
    L.seed_everything(0)
    data = Pulses(probe=probe)
    task = pl.SpikingClassifier(
        (F,), 2, T, structure="RFC32b-PLIF-FC2", loss="cross_entropy", optimizer=lambda p: torch.optim.Adam(p, lr=0.01)
    )
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=15, accelerator="cpu", **silent)
    trainer.fit(task, data)
    return trainer.test(task, data, verbose=False)[0]["test/acc"]


def test_what_is_told_by_the_order_alone_is_lost_under_a_probe():
    assert accuracy(None) > 0.9
    for probe in ("shuffled", "counts"):
        assert 0.3 < accuracy(probe) < 0.7  # chance: 4 standard deviations of 200 samples


def made(**settings):
    data = BinaryAdding(training_size=100, test_size=20, **settings)
    data.setup()
    return data


def test_a_shuffled_sample_holds_the_same_steps_in_an_order_of_its_own():
    plain, shuffled = (next(iter(made(probe=probe).val_dataloader())).x for probe in (None, "shuffled"))
    assert not torch.equal(plain, shuffled)
    codes, others = (2 * x[..., 0] + x[..., 1] for x in (plain, shuffled))
    assert torch.equal(codes.sort(1).values, others.sort(1).values)
    again = next(iter(made(probe="shuffled").val_dataloader())).x
    assert torch.equal(shuffled, again)
    loader = made(probe="shuffled").val_dataloader()
    first, second = (next(iter(loader)).x for _ in range(2))
    assert not torch.equal(first, second)  # in the next epoch


def test_counts_are_the_mean_at_every_step():
    data = made(probe="counts")
    x = next(iter(data.test_dataloader())).x
    plain = next(iter(made().test_dataloader())).x
    torch.testing.assert_close(x, plain.float().mean(1, keepdim=True).expand_as(x))
    assert "time-steps: counts" in data.describe()
    torch.testing.assert_close(data.test_samples(20)[0], x.transpose(0, 1))


def test_static_images_have_no_time_to_take_away():
    data = Digits(probe="shuffled")
    data.setup()
    with pytest.raises(UserError, match=r"data\.probe=shuffled takes time away, and static images have none"):
        next(iter(data.train_dataloader()))
