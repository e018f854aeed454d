"""NeuroBench's metrics of our networks, beside our own counts."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import plif_lightning as pl
from plif_lightning.deploy.costs import cost
from plif_lightning.deploy.folding import fold

pytest.importorskip("neurobench", reason="test extra `bench`")
from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
from neurobench.metrics.workload import (
    ActivationSparsity,
    ActivationSparsityByLayer,
    ClassificationAccuracy,
    MembraneUpdates,
    SynapticOperations,
)
from neurobench.models import SNNTorchModel
from neurobench.processors.postprocessors import ChooseMaxCount

STATIC = [Footprint, ConnectionSparsity, ParameterCount]
WORKLOAD = [
    ClassificationAccuracy, ActivationSparsity, ActivationSparsityByLayer, SynapticOperations, MembraneUpdates,
]  # fmt: skip
NET = "{c8k3s1-BN-PLIF-MPk2s2}*2-DP-FC32-PLIF-DP-FC20-PLIF-APk2s2"


def network(structure=NET, shape=(2, 16, 16), time_steps=4, **changes):
    """A network whose every layer fires."""
    torch.manual_seed(0)
    net = pl.SpikingNetwork(shape, 10, time_steps, structure=structure, **changes).eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.uniform_(-0.2, 1.0)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.bias.fill_(1.0)
    return net


def frames(low, high, n=12, time_steps=4):
    return torch.randint(low, high, (n, time_steps, 2, 16, 16), generator=torch.Generator().manual_seed(1)).float()


def measured(model, x, labels=None, batch=4):
    labels = torch.zeros(len(x), dtype=torch.long) if labels is None else labels
    loader = DataLoader(TensorDataset(x, labels), batch_size=batch)
    return Benchmark(model, loader, [], [ChooseMaxCount()], [STATIC, WORKLOAD]).run(quiet=True)


def operations(found):
    return {name: found["SynapticOperations"][name] for name in ("Dense", "Effective_MACs", "Effective_ACs")}


def ours(net, x):
    """The same numbers by `costs`, whose leak is no synaptic operation."""
    found = cost(net, x.transpose(0, 1) if x.dim() == 5 else x)
    return {
        "Dense": found.total("dense"),
        "Effective_MACs": sum(layer.actual for layer in found.layers if not layer.spikes),
        "Effective_ACs": found.total("accumulates"),
    }


@pytest.mark.parametrize("pooling", ["MP", "AP"])
def test_operations_agree_with_costs(pooling):
    net, x = network(NET.replace("MP", pooling)), frames(0, 4)
    found = measured(pl.neurobench.NeuroBenchNetwork(net), x)
    assert operations(found) == pytest.approx(ours(net, x), rel=1e-6)
    # After average pooling nothing but the last layers' input is spikes.
    assert found["SynapticOperations"]["Effective_ACs"] > 0


def test_of_a_static_image_the_first_layer_runs_once_in_both():
    net = network(shape=(1, 16, 16))
    x = torch.rand(6, 1, 16, 16)
    found = measured(pl.neurobench.NeuroBenchNetwork(net), x)
    assert operations(found) == pytest.approx(ours(net, x), rel=1e-6)


def test_sparsity_is_that_of_spikes_before_pooling_by_layer():
    net, x = network(), frames(0, 4)
    found = measured(pl.neurobench.NeuroBenchNetwork(net), x, batch=12)
    _, traced = pl.traces(net, x.transpose(0, 1))
    spikes = {name: trace.spikes for name, trace in traced.items()}
    by_layer = found["ActivationSparsityByLayer"]
    assert list(by_layer) == ["conv1", "conv2", "fc1", "fc2"]
    for (name, sparsity), fired in zip(by_layer.items(), spikes.values(), strict=True):
        assert sparsity == pytest.approx(1 - fired.mean().item()), name
    total = sum(int(fired.sum()) for fired in spikes.values()) / sum(fired.numel() for fired in spikes.values())
    assert found["ActivationSparsity"] == pytest.approx(1 - total)
    pooled = cost(net, x.transpose(0, 1)).layers[1].firing
    assert pooled > 1.5 * spikes["encoder.conv1.neuron"].mean()


def test_membrane_updates_and_sparsity_agree_with_snntorch():
    """One layer of LIF neurons with V = beta V + x and reset to zero, in both libraries."""
    torch.manual_seed(3)
    fc = nn.Linear(6, 5, bias=False)

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = fc
            self.lif = snn.Leaky(beta=0.5, threshold=1.0, reset_mechanism="zero", init_hidden=True, reset_delay=False)

        def reset(self):
            self.lif.reset_mem()

        def forward(self, x):
            return self.lif(self.fc(x)), None

    class Decaying(pl.Neuron):
        def charge(v, x):  # noqa: N805
            return 0.5 * v + x

    mine = pl.over_time(nn.Sequential(fc, Decaying()))
    x = 3 * torch.rand(8, 7, 6)
    x[x < 1] = 0
    found, theirs = (
        measured(model, x, torch.zeros(8, dtype=torch.long))
        for model in (pl.neurobench.NeuroBenchNetwork(mine), SNNTorchModel(Theirs()))
    )
    assert found["MembraneUpdates"] == theirs["MembraneUpdates"] > 0
    assert found["ActivationSparsity"] == theirs["ActivationSparsity"]
    assert found["SynapticOperations"] == theirs["SynapticOperations"]


def test_the_footprint_counts_bn_until_it_is_folded():
    net = network()
    found, folded = (measured(pl.neurobench.NeuroBenchNetwork(one), frames(0, 4)) for one in (net, fold(net)))
    of_bn = [part for part in net.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    state = [value for part in of_bn for value in part.state_dict().values()]
    biases = 2 * 8  # folding gives each convolution one
    assert found["Footprint"] - folded["Footprint"] == sum(v.numel() * v.element_size() for v in state) - 4 * biases
    assert found["ParameterCount"] == sum(p.numel() for p in net.parameters())


def test_accuracy_and_votes_agree_with_the_network():
    net, x = network(), frames(0, 4)
    wrapped = pl.neurobench.NeuroBenchNetwork(net)
    with torch.no_grad():
        votes = net(x.transpose(0, 1))
    assert torch.equal(wrapped(x), votes.transpose(0, 1))
    labels = votes.sum(0).argmax(1)
    labels[:3] = 9 - labels[:3]
    found = measured(wrapped, x, labels)
    assert found["ClassificationAccuracy"] == pytest.approx((votes.sum(0).argmax(1) == labels).float().mean().item())
