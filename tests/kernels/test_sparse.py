"""FC layers that skip silent inputs."""

import copy

import pytest
import torch
from torch import nn

from plif_lightning.kernels import Backend, SparseLinear, fused
from plif_lightning.network.blocks import FCBlock, TimeDropout
from plif_lightning.neurons import PLIF


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(fused, "_LARGE", 0)


def held():
    made = SparseLinear()
    made.hold()
    return made


def spikes(*shape, share=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator).lt(share).float() * torch.rand(*shape, generator=generator)


@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 2, 50), (8, 16, 300), (2, 3, 1)])
@pytest.mark.parametrize("out", [1, 5, 513, 1100])
def test_the_product_is_that_of_the_dense_layer(shape, out):
    x, weight = spikes(*shape), torch.randn(out, shape[-1])
    with torch.no_grad():
        ours = held()(x, weight)
    exact = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_without_a_spike_it_is_zero():
    with torch.no_grad():
        assert not held()(torch.zeros(2, 3, 40), torch.randn(5, 40)).any()


def test_a_changed_weight_is_seen():
    sparse, weight, x = held(), nn.Parameter(torch.randn(5, 40)), spikes(2, 3, 40)
    with torch.no_grad():
        before = sparse(x, weight)
        weight.add_(1.0)
        torch.testing.assert_close(sparse(x, weight), x @ weight.T)
        assert not torch.equal(sparse(x, weight), before)
        assert copy.deepcopy(sparse)(x, weight) is None  # nobody holds the copy's weight
        sparse.release()
        assert sparse(x, weight) is None


def test_another_weight_in_the_same_place_is_another_weight():
    sparse, x = held(), spikes(2, 3, 40)
    with torch.no_grad():
        for seed in range(5):
            weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(sparse(x, weight), x @ weight.T)
            del weight


def test_a_weight_that_is_not_a_number_shows():
    weight = torch.randn(5, 40)
    weight[0, 0] = float("nan")
    with torch.no_grad():
        assert held()(spikes(2, 3, 40), weight) is None
    with torch.inference_mode():
        assert held()(spikes(2, 3, 40), torch.randn(5, 40)) is None


def test_the_trainer_holds_weights_while_it_evaluates(monkeypatch):
    from plif_lightning.task import SpikingClassifier

    task = SpikingClassifier((1, 8, 8), 10, 3, channels=4, fc_features=8)
    for stage in ("validation", "test", "predict"):
        getattr(task, f"on_{stage}_start")()
        assert all(block.sparse._held for block in task.network.classifier)
        getattr(task, f"on_{stage}_end")()
        assert not any(block.sparse._held for block in task.network.classifier)


def test_the_dense_product_is_taken_where_skipping_does_not_win():
    x, weight = spikes(2, 3, 40), torch.randn(5, 40)
    assert held()(x, weight) is None  # gradients are wanted
    with torch.no_grad():
        assert held()(torch.ones(2, 3, 40), weight) is None
        assert held()(x.double(), weight.double()) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert held()(x, weight) is None


def test_a_block_gives_the_spikes_of_the_reference_and_calls_what_is_watched():
    torch.manual_seed(0)
    fc = nn.Linear(400, 300, bias=False)
    made = FCBlock(TimeDropout(0.5), fc, PLIF(), Backend("cpu")).eval()
    made.sparse.hold()
    reference = FCBlock(TimeDropout(0.5), fc, PLIF()).eval()
    x = 20 * spikes(8, 4, 400).round()
    with torch.no_grad():
        assert (made(x) != reference(x)).float().mean() < 1e-3
        calls = []
        fc.register_forward_hook(lambda *a: calls.append(1))
        made(x)
    assert calls == [1]
