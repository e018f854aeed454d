"""Networks of `spikingjelly.clock_driven` as old repositories write them, converted; run with an old SpikingJelly."""

import sys

import pytest
import torch
from torch import nn

import plif_lightning as pl

pytest.importorskip("spikingjelly.clock_driven", reason="needs an old SpikingJelly")
from spikingjelly.clock_driven import functional, layer, neuron, surrogate


class Block(nn.Module):
    """As Spikformer's: time joins the batch for convolution and BN."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)
        self.lif = neuron.MultiStepLIFNode(tau=2.0, detach_reset=True, backend="torch")

    def forward(self, x):
        y = self.bn(self.conv(x.flatten(0, 1)))
        return self.lif(y.view(*x.shape[:2], *y.shape[1:]).contiguous())


class Former(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.qkv = Block(2, 8), Block(8, 8), nn.Linear(8, 24)
        self.lif = neuron.MultiStepLIFNode(tau=2.0, detach_reset=True)
        self.attention = neuron.MultiStepLIFNode(tau=2.0, v_threshold=0.5, detach_reset=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        q, k, v = self.lif(self.qkv(self.b(self.a(x)).flatten(3).mT)).chunk(3, -1)
        return self.head(self.attention(q @ k.mT @ v * 0.25).mean(2))


class Integrator(nn.Module):
    """An IF neuron of the repository's own."""

    def forward(self, x):
        v, spikes = torch.zeros_like(x[0]), []
        for step in x:
            v = v + step
            spike = surrogate.ATan()(v - 1.0)
            v = v * (1 - spike)
            spikes.append(spike)
        return torch.stack(spikes)


def plif():
    """As the PLIF paper's: containers, dropout over time, a learned tau."""
    node = neuron.MultiStepParametricLIFNode(init_tau=2.0, detach_reset=True, surrogate_function=surrogate.ATan())
    return nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
        *(node, layer.SeqToANNContainer(nn.MaxPool2d(2, 2)), layer.SeqToANNContainer(nn.Flatten())),
        *(layer.MultiStepDropout(0.2), nn.Linear(72, 5), neuron.MultiStepIFNode(v_threshold=0.5)),
    )


def one_layer():
    """A layer that is silent at its threshold."""
    linear = layer.SeqToANNContainer(nn.Flatten(), nn.Linear(72, 5))
    return nn.Sequential(linear, neuron.MultiStepLIFNode(tau=2.0, v_threshold=50.0))


def main():
    x = 4 * torch.rand(5, 3, 2, 6, 6)
    for make, expected in (
        (Former, "1 nodes in blocks, 3 alone"),
        (plif, "2 nodes in blocks"),
        (one_layer, "1 nodes in blocks"),
    ):
        torch.manual_seed(0)
        net = make()
        converted = pl.from_spikingjelly(net, x)
        assert expected in str(converted.conversion), converted.conversion
        assert converted.conversion.compared
        net.eval()
        functional.reset_net(net)
        with torch.no_grad():
            assert torch.equal(converted.eval()(x), net(x))
        net.load_state_dict(pl.to_spikingjelly_state_dict(converted))
    # A network with neurons of its own alone, as MS-ResNet's, beside this version.
    own = nn.Sequential(nn.Linear(3, 3), Integrator())
    converted = pl.from_spikingjelly(own, torch.rand(4, 2, 3), nodes={Integrator: lambda _: pl.IF(detach_reset=False)})
    assert str(converted.conversion) == "1 nodes in blocks, 0 alone, 0 kept; equal on the example"
    try:
        pl.from_spikingjelly(nn.Sequential(nn.Linear(3, 3), neuron.LIFNode()), torch.rand(4, 2, 3))
    except pl.errors.UserError as error:
        sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    main()
