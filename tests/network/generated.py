"""Random structures of a seeded generator, and the votes and gradients of their networks.

    python tests/network/generated.py --out FILE.npz [--number 300]

writes votes and gradients in float64, so that two commits can be compared (run it with `PYTHONPATH` set to the other
checkout). The tests take a part of the structures.
"""

import argparse
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.structure import NEURONS

# Equations that call a transcendental function: their spikes are equal to rounding only.
TRANSCENDENTAL = ("CLIF", "EIF")


class Drawn(NamedTuple):
    """A network, and the shape of an input.

    Attributes:
        structure: in the notation.
        settings: further arguments of `SpikingNetwork`.
        samples: N.
        channels_last: the input lies in memory with C innermost.
        static: the input is images [N, C, H, W], not frames.
    """

    structure: str
    settings: dict[str, Any]
    samples: int
    channels_last: bool
    static: bool


def _size(draw: random.Random, square: bool = False) -> str:
    kernel = draw.choice([1, 3, 3, 3, 5, 7, 2])
    if draw.random() < 0.85 or square:
        return str(kernel)
    return f"{kernel}x{draw.choice([1, 3, 5])}"


def _neuron(draw: random.Random) -> str:
    name = draw.choice([*NEURONS, "PLIF", "PLIF", "LIF"])
    own = []
    if draw.random() < 0.3:
        own.append("v_threshold=0.6")
    if draw.random() < 0.2 and name not in ("CLIF", "GLIF"):
        own.append(draw.choice(["reset=soft", "v_reset=-0.3", "detach_reset=false"]))
    if draw.random() < 0.2:
        own.append("tau_per=channel")
    if draw.random() < 0.15:
        own.append("learn_threshold=true")
    return f"{name}({','.join(own)})" if own else name


def _conv(draw: random.Random, channels: int, stride: int | None = None, padded: bool = False) -> str:
    kernel = draw.choice([1, 3, 5]) if padded else _size(draw)
    stride = draw.choice([1, 1, 1, 2]) if stride is None else stride
    more = ""
    if not padded and draw.random() < 0.15:
        more += "p1"
    if not padded and draw.random() < 0.1:
        more += "d2"
    if not padded and draw.random() < 0.1:
        more += "g2"
    return f"c{channels}k{kernel}s{stride}{more}{draw.choice(['-BN', '-BN', '-BN', ''])}"


def _block(draw: random.Random, channels: int) -> str:
    kind = draw.random()
    if kind < 0.55:
        pool = draw.choice(["", "", "-MPk2s2", "-MPk2s2", "-APk2s2", "-MPk3s2p1", "-MPk2s1", "-APk3s2p1"])
        return f"{_conv(draw, channels)}-{_neuron(draw)}{pool}"
    if kind < 0.65:
        return _conv(draw, channels)  # real numbers, before neurons of their own or the next convolution
    if kind < 0.72:
        return _neuron(draw)
    how = draw.choice(["ADD", "ADD", "AND", "IAND"])
    branch = f"{_conv(draw, channels, 1, True)}-{_neuron(draw)}"
    if draw.random() < 0.5:
        stride = draw.choice([1, 2])
        end = f"{_conv(draw, channels, stride, True)}-{_neuron(draw)}"
        return f"{how}({branch}-{end}|c{channels}k1s{stride}-BN-{_neuron(draw)})"
    if how == "ADD" and draw.random() < 0.5:
        return f"c{channels}k3s1-BN-{_neuron(draw)}-ADD({branch}-c{channels}k3s1-BN)-{_neuron(draw)}"
    return f"c{channels}k3s1-BN-{_neuron(draw)}-{how}({branch})"


def _drawn(draw: random.Random) -> Drawn:
    blocks = [_block(draw, draw.choice([2, 4, 6, 16])) for _ in range(draw.choice([1, 2, 2, 3]))]
    blocks += draw.choice([[], [], [], ["DELAY(max_delay=2)"]])
    norm = draw.choice(["", "", "-BN"])
    hidden = draw.choice(["", f"FC7{norm}-{_neuron(draw)}-", f"DP(0.0)-FC12b{norm}-{_neuron(draw)}-"])
    whole = draw.choice(["", "", "", "-AP", "-MP"])
    end = draw.choice([f"FC6-{_neuron(draw)}-APk2s2", f"FC3-{_neuron(draw)}", "FC3b", "FC3", "FC3-LI(init_tau=4.0)"])
    settings: dict[str, Any] = {
        "norm_statistics": draw.choice(["per_step", "per_step", "all_steps"]),
        "norm_held": draw.choice(["every_step", "once"]),
        "pooling": draw.choice(["max", "max", "max", "avg"]),
        "surrogate": draw.choice(["atan", "sigmoid", "triangle"]),
    }
    if draw.random() < 0.3:
        settings["neuron"] = draw.choice(["lif", "klif", "glif", "alif"])
    if draw.random() < 0.3:
        settings["init_tau"] = 3.0
    structure = f"{'-'.join(blocks)}{whole}-{hidden}{end}"
    return Drawn(structure, settings, draw.choice([1, 2, 3]), draw.random() < 0.5, draw.random() < 0.3)


SHAPE, CLASSES, STEPS = (2, 12, 10), 3, 4


def network_of(one: Drawn, seed: int, **settings: Any) -> SpikingNetwork:
    """The network of a draw, with BN statistics and parameters that make it fire."""
    torch.manual_seed(seed)
    net = SpikingNetwork(
        SHAPE, CLASSES, STEPS, structure=one.structure, pool_ties="first", dropout=0.0, **one.settings, **settings
    )
    for part in net.modules():
        if isinstance(part, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            torch.nn.init.uniform_(part.weight, 0.8, 1.6)
            torch.nn.init.uniform_(part.bias, 0.1, 0.6)
            torch.nn.init.normal_(part.running_mean, std=0.2)
            torch.nn.init.uniform_(part.running_var, 0.1, 0.6)
        elif isinstance(part, torch.nn.Conv2d):
            part.weight.data.mul_(1.5)
        elif isinstance(part, torch.nn.Linear):
            part.weight.data.add_(0.12)
    return net


def input_of(one: Drawn, seed: int, dtype: torch.dtype) -> Tensor:
    """Frames [T, N, C, H, W] of counts, or images [N, C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    steps = () if one.static else (STEPS,)
    x = torch.poisson(torch.full((*steps, one.samples, *SHAPE), 0.6), generator=generator).to(dtype)
    if not one.channels_last:
        return x
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def structures(number: int, seed: int = 0) -> Iterator[tuple[int, Drawn]]:
    """(seed, draw) of `number` networks that can be built, not shrinking to nothing, and whose votes differ."""
    draw, found, tried = random.Random(seed), 0, 0
    while found < number:
        one, tried = _drawn(draw), tried + 1
        for threshold in (1.0, 0.3, 0.1, 0.03):  # two silent networks are equal whatever they compute
            loud = one._replace(settings={**one.settings, "v_threshold": threshold})
            try:
                with torch.no_grad():
                    votes = network_of(loud, tried, backend="reference").eval()(input_of(loud, tried, torch.float32))
            except UserError:
                break
            if len(votes.unique()) > 1:
                found += 1
                yield tried, loud
                break


def votes_and_gradients(one: Drawn, seed: int, **settings: Any) -> dict[str, Tensor]:
    """Votes and gradients of a training step, and votes in evaluation mode, in float64."""
    net = network_of(one, seed, **settings).double()
    x = input_of(one, seed, torch.float64)
    try:
        votes = net(x)
    except ValueError:  # BN over a single value
        return {"refused": torch.ones(1)}
    weight = torch.rand(votes.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (votes * weight).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    net.eval()
    with torch.no_grad():
        return {"votes": votes.detach(), **gradients, "evaluation": net(x)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--number", type=int, default=300)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for seed, one in structures(given.number):
        found[f"{seed} structure"] = np.array(one.structure)
        for name, value in votes_and_gradients(one, seed).items():
            found[f"{seed} {name}"] = value.numpy()
    np.savez_compressed(given.out, **found)


if __name__ == "__main__":
    main()
