"""Batches over time are told from samples by their dimensions."""

import pytest
import torch

from plif_lightning.runtime.batches import has_time


@pytest.mark.parametrize(
    ("shape", "input_shape", "expected"),
    [
        ((4, 3, 2, 8, 8), (2, 8, 8), True),
        ((3, 2, 8, 8), (2, 8, 8), False),
        ((4, 3, 5), (5,), True),
        ((3, 5), (5,), False),
        ((4, 3, 2, 8, 8), None, True),
        ((3, 2, 8, 8), None, False),
        ((4, 3, 5), None, True),
        ((3, 5), None, False),
    ],
)
def test_has_time(shape, input_shape, expected):
    assert has_time(torch.zeros(shape), input_shape) is expected
