"""The product that skips silent inputs, against the dense one."""

import pytest
import torch

from plif_lightning.kernels.sparse import count_nonzero, sparse_linear


def product(x, weight):
    return sparse_linear(x, weight.t().contiguous(), count_nonzero(x))


def spikes(*shape, share=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator).lt(share).float() * torch.rand(*shape, generator=generator)


@pytest.mark.parametrize("shape", [(1, 7), (6, 50), (128, 300), (6, 1)])
@pytest.mark.parametrize("out", [1, 5, 513, 1100])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_the_product_is_that_of_the_dense_layer(shape, out, share):
    x, weight = spikes(*shape, share=share), torch.randn(out, shape[-1])
    exact = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(product(x, weight), exact, rtol=1e-5, atol=1e-5)


def test_without_a_spike_it_is_zero():
    assert not product(torch.zeros(6, 40), torch.randn(5, 40)).any()


def test_values_that_are_not_zero_are_counted_row_by_row():
    assert count_nonzero(torch.tensor([[0.0, 2, -1], [0, 0, 0]])).tolist() == [2, 0]
