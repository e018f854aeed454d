"""Outputs of every form may be written in place, as `out += identity` of a residual network does."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.network import use_backend
from tests.conftest import PATIENCE, REPOSITORY

# Structure, its sample, values of its input, and arguments of the network; the block that is written to.
FORMS = {
    "events, one pass": ("c8k3s1-BN-PLIF-FC4b", (2, 8, 8), {}, "conv1"),
    "events, one pass, event-driven": ("c8k3s1-BN-PLIF-MPk2s2-FC4b", (2, 8, 8), {"sparse": "always"}, "conv1"),
    "average pool": ("c8k3s1-BN-PLIF-APk2s2-FC4b", (2, 8, 8), {}, "conv1"),
    "of spikes": ("c8k3s1-BN-PLIF-c8k3s1-BN-PLIF-MPk2s2-FC4b", (2, 8, 8), {}, "conv2"),
    "of spikes, odd": ("c8k3s1-BN-PLIF-c7k3s2-BN-PLIF-FC4b", (2, 7, 5), {}, "conv2"),
    "of spikes, event-driven": ("c8k3s1-BN-PLIF-c8k3s1-BN-PLIF-FC4b", (2, 8, 8), {"sparse": "always"}, "conv2"),
    "a convolution alone, event-driven": ("c8k3s1-BN-PLIF-c8k3s1-BN-FC4b", (2, 8, 8), {"sparse": "always"}, "conv2"),
    "patches of a small map": ("c512k3s1-BN-PLIF-c512k3s1-BN-PLIF-FC4b", (2, 2, 2), {}, "conv2"),
    "a bias": ("c8k3s1-BN-PLIF-FC4b", (2, 8, 8), {"folded": True}, "conv1"),
    "depthwise": ("c8k3s1-BN-PLIF-c8k3s1g8-BN-PLIF-FC4b", (2, 8, 8), {}, "conv2"),
    "a sum": ("c8k3s1-BN-PLIF-ADD(c8k3s1-BN-PLIF-c8k3s1-BN)-PLIF-FC4b", (2, 8, 8), {}, "res1"),
    "an FC layer": ("c8k3s1-BN-PLIF-DP-FC9-PLIF-FC4b", (2, 8, 8), {}, "fc1"),
    "an FC layer, event-driven": ("c8k3s1-BN-PLIF-DP-FC9-PLIF-FC4b", (2, 8, 8), {"sparse": "always"}, "fc1"),
    "recurrent": ("RFC9-PLIF-FC4b", (12,), {}, "fc1"),
    "reference": ("c8k3s1-BN-PLIF-MPk2s2-FC4b", (2, 8, 8), {"backend": "reference"}, "conv1"),
}


# Forms that are meant to run.
CHOSEN = {
    "events, one pass": "one pass",
    "of spikes": "fused, dense",
    "an FC layer": "dense",
    "recurrent": "recurrent, fused",
    "reference": "part by part",
}


def outputs_and_gradients(net, x, block, write):
    """Votes and gradients where the output of a block, times 1.5 and plus 0.25, is its next layer's input."""
    layer = net.layers()[block]
    run = type(layer).run

    def change(x):  # not by a hook, with which a block runs part by part
        y = run(layer, x)
        if not write:
            return y * 1.5 + 0.25
        y *= 1.5
        y += 0.25
        return y

    torch.manual_seed(0)
    net.zero_grad()
    layer.run = change
    votes = net(x)
    votes.square().sum().backward()
    return [votes.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FORMS)
def test_outputs_of_blocks_are_written_in_place(name, dtype):
    structure, shape, settings, block = FORMS[name]
    torch.manual_seed(0)
    net = pl.SpikingNetwork(shape, 4, 5, structure=structure, **settings).to(dtype)
    x = (torch.rand(5, 3, *shape) < 0.4).to(dtype) * 3
    ours, expected = (outputs_and_gradients(net, x, block, write) for write in (True, False))
    assert len(ours) == len(expected) > 3
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    if name in CHOSEN:
        assert CHOSEN[name] in net.forms()[block]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("shape", [(5, 3, 8), (5, 3, 8, 4), (5, 3, 8, 5, 7), (1, 3, 8, 4, 4)])
@pytest.mark.parametrize(
    "neuron", [pl.PLIF(), pl.CLIF(), pl.ILIF(), pl.PLIF(tau_per="channel", channels=8), pl.Recurrent(8, pl.PLIF())],
    ids=lambda neuron: f"{type(neuron).__name__}{getattr(neuron, 'a', torch.ones(1)).numel()}",
)  # fmt: skip
def test_spikes_of_neurons_are_written_in_place(neuron, shape, backend):
    if isinstance(neuron, pl.Recurrent) and len(shape) > 3:
        pytest.skip("recurrent neurons have features alone")
    use_backend(neuron, backend)
    torch.manual_seed(0)
    x, gradients = 2 * torch.randn(shape), []
    for write in (True, False):
        for layout in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
            neuron.zero_grad()
            leaf = layout.clone().requires_grad_()
            y = neuron(leaf)
            if write:
                y += 0.25
                y.mul_(1.5)
            else:
                y = (y + 0.25) * 1.5
            y.square().sum().backward()
            gradients.append([y.detach(), leaf.grad, *(p.grad.clone() for p in neuron.parameters())])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b)


class SEWBlock(nn.Module):
    """As in SEW-ResNet's repository: `out += identity` behind a node, within and without a sum."""

    def __init__(self, layer, neuron):
        super().__init__()
        self.conv1, self.sn1 = nn.Sequential(layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4)), neuron.LIFNode()
        self.conv2, self.sn2 = nn.Sequential(layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4)), neuron.LIFNode()

    def forward(self, x):
        out = self.sn2(self.conv2(self.sn1(self.conv1(x))))
        out += x
        return out


@pytest.mark.parametrize("with_example", [True, False])
def test_converted_networks_write_in_place(with_example):
    activation = pytest.importorskip("spikingjelly.activation_based", reason="test extra `bench`")
    from spikingjelly.activation_based import functional, layer, neuron

    assert activation
    torch.manual_seed(0)
    net = nn.Sequential(SEWBlock(layer, neuron), SEWBlock(layer, neuron))
    functional.set_step_mode(net, "m")
    x = torch.rand(4, 3, 4, 6, 6)
    converted = pl.from_spikingjelly(net, *([x] if with_example else []))
    if with_example:
        assert len(converted.conversion.blocks) == 4
        assert converted.conversion.compared
    results = []
    for made, names in ((net, {}), (converted, {name: here for name, (here, _) in converted.names.items()})):
        functional.reset_net(made)
        y = made(x.clone())
        y.square().sum().backward()
        parameters = dict(made.named_parameters())
        results.append([y.detach(), *(parameters[names.get(name, name)].grad for name, _ in net.named_parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


INTERPRETED = """
import torch
import plif_lightning as pl
from plif_lightning.kernels import layout

layout.ON_CPU = "triton"
torch.manual_seed(0)
net = pl.SpikingNetwork((2, 6, 6), 4, 3, structure="c8k3s1-BN-PLIF-MPk2s2-c8k3s1-BN-PLIF-FC4b", pool_ties="first")
x, results = (torch.rand(3, 2, 2, 6, 6) < 0.4).float() * 3, []
for write in (True, False):
    net.zero_grad()
    def change(module, inputs, y):
        return y.mul_(1.5).add_(0.25) if write else y * 1.5 + 0.25
    with net.encoder.conv1.register_forward_hook(change), net.encoder.conv2.register_forward_hook(change):
        votes = net(x)
    votes.square().sum().backward()
    y = pl.PLIF()(x)
    y += 1
    results.append([votes.detach(), *(p.grad for p in net.parameters())])
for a, b in zip(*results, strict=True):
    torch.testing.assert_close(a, b)
print("equal")
"""


def test_outputs_of_triton_kernels_are_written_in_place():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.split() == ["equal"], done.stderr
