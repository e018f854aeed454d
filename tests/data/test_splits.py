import math

import pytest
import torch

from plif_lightning.data.splits import holdout_split
from plif_lightning.errors import UserError


def test_first_85_percent_of_each_class_train_and_the_rest_validates():
    labels = torch.tensor([i % 3 for i in range(60)])  # 20 of each
    train, val = holdout_split(labels, 0.15)
    assert torch.equal(train, torch.arange(51))
    assert torch.equal(val, torch.arange(51, 60))


@pytest.mark.parametrize("n", [98, 100, 1000, 6742])
@pytest.mark.parametrize("fraction", [0.15, 0.1, 0.25])
def test_training_part_is_the_ceiling_of_every_class(n, fraction):
    labels = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(n))
    train, val = holdout_split(labels, fraction)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(n))
    for c in range(4):
        size = int((labels == c).sum())
        of_class = (labels == c).nonzero().flatten()
        expected = math.ceil(round((1 - fraction) * size, 9))  # 0.85 * 20 is 17, not 17.000000000000004
        assert torch.equal(train[labels[train] == c], of_class[:expected])


def test_split_of_an_ordered_data_set_takes_from_every_class():
    _, val = holdout_split(torch.arange(5).repeat_interleave(20), 0.15)
    assert val.tolist() == [20 * c + i for c in range(5) for i in (17, 18, 19)]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(UserError, match="holdout_fraction must lie in"):
        holdout_split(torch.arange(5), fraction)


def test_a_holdout_of_nothing_is_refused():
    with pytest.raises(UserError, match="leaves no sample for validation"):
        holdout_split(torch.arange(5), 0.15)
