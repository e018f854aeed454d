"""Networks of SpikingJelly 2.0 beside their conversions by `from_spikingjelly`, in alternation.

    python benchmarks/converted.py [--rounds 9] [NETWORK ...]

Forward and backward in training, and inference; random images, T = 4, batch 8, float32, the same weights. The weight of
every BN is 1.5, so that layers fire. `spikformer`, `ms_resnet` and `tet_vgg` are written as in their repositories:
convolution and BN over [T N, *], in `tet_vgg` within a container of its own, nodes over [T, N, *].
"""

import argparse
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does; it serves the other too

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
from torch import Tensor, nn

import plif_lightning as pl
from benchmarks.timing import alternate
from plif_lightning.runtime.process import processor

SETTINGS: dict[str, Any] = {"surrogate_function": surrogate.ATan(), "detach_reset": True}


def node() -> nn.Module:
    return neuron.LIFNode(step_mode="m", **SETTINGS)


class Layer(nn.Module):
    """A layer and BN over [T N, *], then a node over [T, N, *]."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm, self.node = layer, norm, node()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x.flatten(0, 1)))
        spikes: Tensor = self.node(y.reshape(*x.shape[:2], *y.shape[1:]).contiguous())
        return spikes


def conv(inputs: int, outputs: int, stride: int = 1) -> Layer:
    return Layer(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


def tokens(inputs: int, outputs: int) -> Layer:
    return Layer(nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs))


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.query, self.key, self.value, self.projection = (tokens(channels, channels) for _ in range(4))
        self.wide, self.narrow = tokens(channels, 4 * channels), tokens(4 * channels, channels)
        self.node, self.heads = node(), heads

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(3)
        heads = [of(z).unflatten(2, (self.heads, -1)).mT for of in (self.query, self.key, self.value)]
        mixed = 0.125 * (heads[0] @ (heads[1].mT @ heads[2]))
        z = z + self.projection(self.node(mixed.mT.reshape(z.shape).contiguous()))
        return (z + self.narrow(self.wide(z))).view(x.shape)


class Shortcut(nn.Module):
    """MS-ResNet's block: nodes before convolutions, and numbers in the shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nodes = nn.ModuleList([node(), node()])
        self.convs = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for spiking, convolution, norm in zip(self.nodes, self.convs, self.norms, strict=True):
            y = norm(convolution(spiking(y).flatten(0, 1))).view(x.shape)
        return x + y


class Network(nn.Module):
    def __init__(self, first: nn.Module, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.first, self.body, self.head = first, body, nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        votes: Tensor = self.head(self.body(self.first(x)).flatten(3).mean(3))
        return votes


def spikformer() -> nn.Module:
    first = nn.Sequential(conv(3, 32), conv(32, 64), conv(64, 128, 2), conv(128, 128, 2))
    return Network(first, nn.Sequential(Attention(128), Attention(128)), 128)


def ms_resnet() -> nn.Module:
    return Network(conv(3, 64), nn.Sequential(*(Shortcut(64) for _ in range(4))), 64)


class OverFrames(nn.Module):
    """TET's `SeqToANNContainer`: layers over [T N, *]."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.module = nn.Sequential(*layers) if len(layers) > 1 else layers[0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x.flatten(0, 1).contiguous())
        return y.view(*x.shape[:2], *y.shape[1:])


def tet_vgg() -> nn.Module:
    layers: list[nn.Module] = []
    sizes = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    for i, (before, after) in enumerate(pairwise(sizes)):
        layers += [OverFrames(nn.Conv2d(before, after, 3, 1, 1), nn.BatchNorm2d(after)), node()]
        layers += [OverFrames(nn.AvgPool2d(2))] if i % 2 else []
    return nn.Sequential(*layers, nn.Flatten(2), OverFrames(nn.Linear(512 * 9, 10)))


def multi_step(net: nn.Module) -> nn.Module:
    functional.set_step_mode(net, "m")
    return net


NETWORKS = {
    "spikformer": (spikformer, 32),
    "ms_resnet": (ms_resnet, 32),
    "tet_vgg": (tet_vgg, 48),
    "sew_resnet18": (
        lambda: multi_step(
            sew_resnet.sew_resnet18(cnf="ADD", num_classes=10, spiking_neuron=neuron.LIFNode, **SETTINGS)
        ),
        64,
    ),
    "spiking_vgg11_bn": (
        lambda: multi_step(spiking_vgg.spiking_vgg11_bn(num_classes=10, spiking_neuron=neuron.LIFNode, **SETTINGS)),
        64,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*NETWORKS], metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(f"{processor()}, {torch.get_num_threads()} threads")
    for name in options.networks:
        torch.manual_seed(0)
        make, size = NETWORKS[name]
        net, x = make(), torch.rand(4, 8, 3, size, size)
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.constant_(module.weight, 1.5)
        converted = pl.from_spikingjelly(net, x[:, :2])
        print(f"\n{name}: {converted.conversion}")

        def train(network: nn.Module, x: Tensor = x) -> None:
            network.train().zero_grad()
            functional.reset_net(network)
            network(x).square().sum().backward()

        @torch.no_grad()
        def infer(network: nn.Module, x: Tensor = x) -> None:
            functional.reset_net(network.eval())
            network(x)

        for run in (train, infer):
            cases = {"SpikingJelly": lambda run=run, net=net: run(net), "ours": lambda run=run, net=converted: run(net)}
            seconds = alternate(cases, options.rounds)
            pairs = zip(seconds["SpikingJelly"], seconds["ours"], strict=True)
            ratios = sorted(theirs / ours for theirs, ours in pairs)
            times = ", ".join(f"{title} {1e3 * statistics.median(of):.0f} ms" for title, of in seconds.items())
            print(f"  {run.__name__}: {times}; {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]")


if __name__ == "__main__":
    main()
