"""Images read as sequences, by rows or pixels."""

import pickle

import pytest
import torch

from plif_lightning.data import Digits
from plif_lightning.data.loading import BatchRequest
from plif_lightning.errors import UserError


def a_batch(sequence=None, steps=8, **settings):
    data = Digits(sequence=sequence, time_steps=steps, **settings)
    data.setup("test")
    return data, pickle.loads(pickle.dumps(data.test_set)).batch(BatchRequest(0, torch.arange(4))).x


def test_rows_and_pixels_are_the_images():
    images = a_batch()[1]
    data, rows = a_batch("rows")
    assert data.input_shape == (8,)
    assert rows.shape == (4, 8, 8)
    assert torch.equal(rows[:, 3], images[:, 0, 3])
    data, pixels = a_batch("pixels", 64)
    assert data.input_shape == (1,)
    assert torch.equal(pixels[:, 8 * 2 + 5, 0], images[:, 0, 2, 5])


def test_the_random_order_is_that_of_its_seed_and_of_all_images():
    pixels = a_batch("pixels", 64)[1]
    data, permuted = a_batch("permuted", 64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(permuted, pixels[:, order])
    other, elsewhere = a_batch("permuted", 64, permutation_seed=1)
    assert not torch.equal(elsewhere, permuted)
    assert other.reading() != data.reading()
    assert data.preprocessing["sequence"] == {"name": "permuted", "seed": 0, "order": order.tolist()}


def test_time_steps_are_those_of_the_sequence():
    with pytest.raises(UserError, match=r"scikit-learn digits by pixels has 64 steps: pass --data\.time_steps 64"):
        a_batch("pixels", 8)
    with pytest.raises(UserError, match=r"data\.sequence"):
        Digits(sequence="columns")
