"""Binary adding: its definition, its split, and what is refused."""

import pytest
import torch

from plif_lightning.data import BinaryAdding
from plif_lightning.errors import UserError


@pytest.mark.parametrize("train", [True, False])
def test_the_class_is_the_number_of_marked_ones(train):
    data = BinaryAdding(training_size=400, test_size=200)
    x = data.sequences(train).int()
    assert x.shape == (400 if train else 200, 100, 2)
    assert torch.equal(x[..., 1].sum(1), torch.full([len(x)], 9, dtype=torch.int32))
    assert torch.equal(x.prod(-1).sum(1), data.labels(train))
    others = x[..., 0][x[..., 1] == 0].double()
    assert abs(others.mean().item() - 0.5) < 0.02


def test_marks_and_marked_ones_are_anywhere():
    x = BinaryAdding(training_size=10_000).sequences(train=True).double()
    marks, marked_ones = x[..., 1].mean(0), x.prod(-1).mean(0)
    # 5 standard deviations of a mean of 10,000
    assert (marks - 0.09).abs().max() < 5 * (0.09 * 0.91 / 10_000) ** 0.5
    assert (marked_ones - 0.045).abs().max() < 5 * (0.045 * 0.955 / 10_000) ** 0.5


def test_it_is_the_same_in_every_process_and_another_for_another_seed():
    data, again, other = (BinaryAdding(training_size=50, data_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(data.sequences(train=True), again.sequences(train=True))
    assert data.identity() == again.identity()
    assert not torch.equal(data.sequences(train=True), other.sequences(train=True))
    assert data.identity() != other.identity()
    assert not torch.equal(data.sequences(train=True)[:50], data.sequences(train=False)[:50])


def test_a_part_is_held_out_of_every_class():
    data = BinaryAdding(training_size=500, holdout_fraction=0.1)
    data.setup("fit")
    assert data.val_set.labels().bincount().tolist() == [5] * 10
    batch = next(iter(data.val_dataloader()))
    assert batch.x.shape == (50, 100, 2)
    assert torch.equal(batch.x.int().prod(-1).sum(1), batch.label)


def test_fewer_steps_than_marks_are_refused():
    with pytest.raises(UserError, match=r"data.time_steps must be at least 9, the number of marks, got 8"):
        BinaryAdding(time_steps=8)


def test_the_inventory_counts_values():
    train, test = BinaryAdding(training_size=40, test_size=10, time_steps=20).inventory()
    assert (sum(train.counts), train.bytes) == (40, 40 * 20 * 2)
    assert (sum(test.counts), test.bytes) == (10, 10 * 20 * 2)
