"""Neurons whose output is a number: the equation `fire`, integer LIF, and SpikingJelly's."""

import copy

import pytest
import torch
from torch import nn

import plif_lightning as pl
from benchmarks.step import make_fire
from plif_lightning.deploy import cost, deployed
from plif_lightning.deploy.exporting import to_export
from plif_lightning.errors import UserError
from plif_lightning.network.user_networks import record_spikes
from plif_lightning.neurons.published import ILIF


@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize(("threshold", "detach"), [(1.0, True), (0.7, False)])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_integer_lif_is_spikingjellys_in_values_and_gradients(count, threshold, detach, backend):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="test extra `bench`")
    from spikingjelly.activation_based import surrogate

    torch.manual_seed(0)
    x, weight = 3 * torch.randn(9, 4, 50, dtype=torch.float64), torch.randn(9, 4, 50, dtype=torch.float64)
    counts = surrogate.MultiLevelSpikeCount(count)
    theirs = neuron.ILIFNode(4 / 3, threshold, counts, detach_reset=detach, step_mode="m")
    ours = pl.use_backend(ILIF(count, 0.75, v_threshold=threshold, detach_reset=detach).double(), backend)
    results = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        y = module(given)
        (y * weight).sum().backward()
        results.append((y.detach(), given.grad))
    assert results[0][0].max() == count
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_signed_spikes_cost_multiplications():
    torch.manual_seed(0)
    layer = pl.Recurrent(8, Ternary())
    x = 3 * torch.randn(6, 5, 8)
    before = layer(x)[:-1]
    recurrent = cost(layer, x).layers[1]
    assert (before < 0).any()
    assert not recurrent.spikes
    assert recurrent.actual == pytest.approx(8 * (before != 0).sum().item() / 5)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_halves_are_rounded_to_even_and_ends_have_a_gradient(backend):
    x = torch.tensor([[[-1.0, -0.25, 0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 3.5, 4.0, 4.25]]], requires_grad=True)
    y = pl.use_backend(ILIF(4), backend)(x)
    assert y.tolist() == [[[0, 0, 0, 0, 1, 2, 2, 3, 4, 4, 4]]]
    y.sum().backward()
    assert x.grad.tolist() == [[[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0]]]


def test_integer_lif_has_no_surrogate():
    with pytest.raises(UserError, match="ILIF passes gradients straight through: surrogate triangle would have no"):
        ILIF(surrogate="triangle")


class Ternary(pl.Neuron):
    """Fires -1, 0 or 1."""

    def charge(v, x):  # noqa: N805
        return 0.5 * v + x

    def fire(h, spike, v_threshold):  # noqa: N805
        return spike(h, v_threshold) - spike(-h, v_threshold)

    def after(h, s, v_threshold):  # noqa: N805
        return h - s * v_threshold


def test_fire_without_an_after_is_refused():
    equations = {"charge": lambda v, x: v + x, "fire": lambda h, spike: spike(h, 1.0) - spike(-h, 1.0)}
    with pytest.raises(UserError, match="gives another output than a single spike, of which no reset follows"):
        type("Signed", (pl.Neuron,), equations)()


def test_fire_is_an_equation_of_ones_own():
    torch.manual_seed(0)
    x = 2 * torch.randn(9, 4, 50)
    results = []
    for backend in ("auto", "reference"):
        given = x.clone().requires_grad_()
        y = pl.use_backend(Ternary(), backend)(given)
        y.square().sum().backward()
        results.append((y.detach(), given.grad))
    assert set(results[0][0].unique().tolist()) == {-1.0, 0.0, 1.0}
    torch.testing.assert_close(results[0], results[1])
    assert not Ternary.fires
    assert not type("Again", (Ternary,), {}).fires


STRUCTURES = [
    "c8k3s1-BN-ILIF-MPk2s2-c8k3s1-BN-ILIF-APk2s2-FC12-ILIF-FC3",
    "c8k3s1-BN-ILIF-ADD(c8k3s1-BN-ILIF(max_count=2))-AP-RFC12-ILIF-FC3-PLIF",
    "c8k3s1-BN-ILIF-MPk2s2-FC12-ILIF-FC6-ILIF-APk2s2",
]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("ties", ["random", "first"])
def test_a_network_of_integers_is_the_reference_in_every_form(structure, ties):
    torch.manual_seed(0)
    net = pl.SpikingNetwork((2, 12, 12), 3, 4, structure=structure, pool_ties=ties)
    make_fire(net)
    x = 3 * torch.rand(4, 3, 2, 12, 12)
    results = []
    for module in (net, pl.use_backend(copy.deepcopy(net), "reference")):
        torch.manual_seed(1)
        votes = module(x)
        votes.square().mean().backward()
        results.append([votes.detach(), *(parameter.grad for parameter in module.parameters())])
    assert results[0][0].max() > 1 or structure.endswith("-PLIF")
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    net.eval()
    with torch.no_grad():
        votes, state, steps = net(x), None, []
        for frame in x:
            y, state = pl.step(net, frame, state)
            steps.append(y)
        torch.testing.assert_close(torch.stack(steps), votes)
        torch.testing.assert_close(deployed(net)(x), votes)
        torch.testing.assert_close(to_export(net, static=False).module()(x), votes)


@pytest.mark.parametrize("engine", ["float32", "int8"])
def test_deployed_layers_of_counts_are_event_driven(engine):
    torch.manual_seed(0)
    structure = "c8k3s1-BN-ILIF-MPk2s2-c8k3s1-BN-ILIF-MPk2s2-FC12-ILIF-FC6-ILIF-APk2s2"
    net = pl.SpikingNetwork((2, 12, 12), 3, 4, structure=structure)
    make_fire(net)
    x = torch.poisson(torch.rand(4, 3, 2, 12, 12))
    frozen = deployed(net.eval(), engine)
    assert frozen.forms == dict.fromkeys(("conv1", "conv2", "fc1", "fc2"), "event-driven")
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x))


def test_each_spike_of_a_count_costs_an_accumulate():
    torch.manual_seed(0)
    net = pl.SpikingNetwork((2, 6, 6), 3, 4, structure="c8k3s1-BN-ILIF-FC3-PLIF")
    make_fire(net)
    x, counts = 3 * torch.rand(4, 5, 2, 6, 6), {}
    with record_spikes(net, counts.__setitem__):
        net.eval()(x)
    of_fc = cost(net, x).layers[1]
    assert counts["conv1"].max() > 1
    assert of_fc.accumulates == pytest.approx(3 * counts["conv1"].sum().item() / 5)
    assert (of_fc.macs, of_fc.firing) == (of_fc.updates, pytest.approx(counts["conv1"].mean().item()))


def test_spikingjellys_integer_nodes_are_converted():
    layer = pytest.importorskip("spikingjelly.activation_based.layer", reason="test extra `bench`")
    from spikingjelly.activation_based import neuron, surrogate

    torch.manual_seed(0)
    two = surrogate.MultiLevelSpikeCount(2)
    front = [layer.Conv2d(2, 6, 3, padding=1, bias=False, step_mode="m"), layer.BatchNorm2d(6, step_mode="m")]
    back = [layer.Flatten(step_mode="m"), layer.Linear(216, 5, step_mode="m")]
    net = nn.Sequential(
        *front, neuron.ILIFNode(step_mode="m"), *back, neuron.ILIFNode(2.0, surrogate_function=two, step_mode="m")
    )
    converted = pl.from_spikingjelly(net, 3 * torch.rand(5, 4, 2, 6, 6))
    assert str(converted.conversion) == "0 nodes in blocks, 2 alone, 0 kept; equal on the example"


class SdtBlock(nn.Module):
    """As in SDT-V3: integer neurons before separable convolutions and linear attention, residual sums of potentials."""

    def __init__(self, channels, nodes):
        super().__init__()
        wide = [nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.BatchNorm2d(2 * channels)]
        narrow = [nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        depth = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=False)
        self.wide, self.narrow = nn.Sequential(*wide), nn.Sequential(depth, *narrow)
        maps = [nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)) for _ in range(4)]
        self.maps = nn.ModuleList(maps)
        self.nodes = nn.ModuleList(nodes)

    def forward(self, x):
        def over_time(layers, y):
            return layers(y.flatten(0, 1)).unflatten(0, y.shape[:2])

        x = x + over_time(self.narrow, self.nodes[1](over_time(self.wide, self.nodes[0](x))))
        shared = self.nodes[2](x)
        q, k, v = (self.nodes[3 + i](over_time(self.maps[i], shared)).flatten(3) for i in range(3))
        attended = self.nodes[6](0.25 * (v @ k.mT) @ q).unflatten(3, x.shape[3:])
        return x + over_time(self.maps[3], attended)


def test_a_block_of_sdt_v3_is_converted():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="test extra `bench`")
    from spikingjelly.activation_based import functional

    torch.manual_seed(0)
    net = SdtBlock(6, [neuron.ILIFNode(step_mode="m") for _ in range(7)])
    x = 3 * torch.rand(4, 3, 6, 5, 5)
    converted = pl.from_spikingjelly(net, x)
    assert str(converted.conversion) == "0 nodes in blocks, 7 alone, 0 kept; equal on the example"
    functional.reset_net(net.eval())
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(x), net(x))


@pytest.mark.parametrize("count", [0, 9, 2.5])
def test_other_counts_are_refused(count):
    with pytest.raises(UserError, match="max_count must be an integer from 1 to 8"):
        ILIF(count)
