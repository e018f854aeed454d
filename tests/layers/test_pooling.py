import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from plif_lightning.errors import UserError
from plif_lightning.layers.pooling import Pool2d, SpikeMaxPool2d
from plif_lightning.network import SpikingNetwork


def spikes(shape, share=0.4, dtype=torch.float32):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share).to(dtype)


@pytest.mark.parametrize("ties", ["first", "random"])
@pytest.mark.parametrize("shape", [(3, 2, 6, 8), (1, 1, 5, 7), (2, 3, 1, 1), (0, 2, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_equals_torch_max_pool(ties, shape, dtype):
    x = spikes(shape, dtype=dtype)
    y = SpikeMaxPool2d(ties)(x)
    assert y.dtype == dtype
    expected = nn.MaxPool2d(2)(x) if min(shape[-2:]) > 1 and shape[0] else x[..., : shape[-2] // 2, : shape[-1] // 2]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("shape", [(3, 2, 6, 8), (1, 4, 5, 7), (3, 1, 2, 5, 8), (3, 1, 2, 6, 7)])
def test_gradient_of_first_equals_torch_max_pool(shape, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, size: x.new_full(size, torch.nan))  # as memory may be
    x, y = spikes(shape).requires_grad_(), spikes(shape).requires_grad_()
    ours, theirs = SpikeMaxPool2d("first")(x), nn.MaxPool2d(2)(y.flatten(0, -4)).unflatten(0, shape[:-3])
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    ours.backward(grad)
    theirs.backward(grad)
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("ties", ["first", "random"])
def test_values_other_than_spikes_are_pooled_exactly(ties):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 2, 6, 9, generator=generator.manual_seed(0)).requires_grad_() for _ in range(2))
    ours, theirs = SpikeMaxPool2d(ties)(x), nn.MaxPool2d(2)(y)
    assert torch.equal(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("pattern", range(16))
def test_random_ties_give_each_neuron_that_fired_the_same_chance(pattern):
    torch.manual_seed(0)
    window = torch.tensor([pattern >> i & 1 for i in range(4)], dtype=torch.float32).view(2, 2)
    n = 12_000
    x = window.repeat(n, 1, 1, 1).requires_grad_()
    SpikeMaxPool2d("random")(x).sum().backward()
    assert torch.equal(x.grad.sum((-1, -2)), torch.ones(n, 1))  # one winner per window
    share = x.grad.mean(0).flatten()
    tied = window.flatten().bool() if pattern else torch.ones(4, dtype=torch.bool)
    assert share[~tied].sum() == 0
    # five standard deviations of a share of 12,000 draws
    assert (share[tied] - 1 / tied.sum()).abs().max() < 5 * 0.5 / n**0.5


def test_random_ties_differ_from_window_to_window_and_follow_the_seed():
    x = torch.ones(1, 1, 64, 64, requires_grad=True)

    def winners(seed):
        torch.manual_seed(seed)
        return torch.autograd.grad(SpikeMaxPool2d("random")(x).sum(), x)[0]

    assert torch.equal(winners(1), winners(1))
    assert not torch.equal(winners(1), winners(2))
    assert len(winners(1).view(32, 2, 32, 2).permute(0, 2, 1, 3).reshape(-1, 4).unique(dim=0)) == 4


def test_evaluation_draws_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with torch.no_grad():
        SpikeMaxPool2d("random").eval()(spikes((2, 2, 4, 4)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_network_draws_the_same_twice(backend, reentrant):
    torch.manual_seed(0)
    net = SpikingNetwork((2, 8, 8), 3, 5, channels=4, fc_features=40, v_threshold=0.1, backend=backend)
    outputs, gradients = [], []
    net.register_forward_hook(lambda module, inputs, votes: outputs.append(votes.detach()))
    x = torch.rand(5, 4, 2, 8, 8, requires_grad=True)
    for run in (lambda: checkpoint(net, x, use_reentrant=reentrant), lambda: net(x)):
        net.zero_grad()
        torch.manual_seed(1)
        run().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert len(outputs) == 2 + reentrant  # the non-reentrant kind stops recomputing once it has the saved tensors
    assert all(torch.equal(outputs[0], other) for other in outputs)
    torch.testing.assert_close(*gradients)


def test_pools_of_the_kernels():
    sizes = (2,), (2, 2, 1), (3, 2), ((2, 2), 2, (0, 0))
    assert [Pool2d(nn.AvgPool2d(*of)).name for of in sizes] == ["avg", None, None, "avg"]


def test_average_pool_with_divisor_is_not_fused():
    pool = nn.AvgPool2d(2, divisor_override=3)
    assert Pool2d(pool).name is None
    found = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(0)
        net = SpikingNetwork(
            (1, 8, 8), 3, 2, channels=4, n_down=1, fc_features=8, v_threshold=0.1, pooling="avg", backend=backend
        )
        net.encoder.conv1.norm.bn.bias.data += 1
        net.encoder.conv1.pool.pool = pool
        found.append(net.encoder(torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))))
    assert {round(3 * value) for value in found[0].unique().tolist()} > {0, 1, 2}  # thirds
    assert torch.equal(*found)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="pool_ties must be one of first, random"):
        SpikeMaxPool2d("last")


@pytest.mark.parametrize(
    "pooled",
    ["PLIF-MPk2s2", "ADD(c4k3s1-BN-PLIF)-PLIF-MPk2s2", "ADD(c4k3s1-BN)-PLIF-MPk2s2", "AND(c4k3s1-BN-PLIF)-MPk2s2"],
)
def test_ties_are_broken_wherever_a_pool_sees_spikes(pooled):
    structure = f"c4k3s1-BN-PLIF-{pooled}-FC3"
    for ties in ("first", "random"):
        net = SpikingNetwork((1, 8, 8), 3, 2, structure=structure, pool_ties=ties)
        (pool,) = (part for part in net.modules() if isinstance(part, SpikeMaxPool2d))
        assert pool.ties == ties
    summed = SpikingNetwork((1, 8, 8), 3, 2, structure="c4k3s1-BN-PLIF-ADD(c4k3s1-BN-PLIF)-MPk2s2-FC3")
    assert not any(isinstance(part, SpikeMaxPool2d) for part in summed.modules())  # sums are no spikes
