"""Training step of networks beyond the paper's beside SpikingJelly 2.0's own models of them, in alternation.

    python benchmarks/structures.py [--rounds 9] [--batch 16] [NETWORK ...]

SEW-ResNet-18 and VGG-11 are SpikingJelly's; the others are the same layers of SpikingJelly. Same weights, sizes, batch,
T, threads and fused Adam; BN over all time-steps together, the first winner in a pool, as SpikingJelly has them; random
images of 32x32, T = 4. Weights are scaled so that 9 % of the neurons of every layer fire, as in trained networks. The
votes of both are compared first. Memory is what a process that only does 3 steps holds at most, beyond what a step of
a tiny network left: libraries and compiled code; the second figure is without weights, gradients and Adam's state.
SpikingJelly gets our allocator settings; `PLIF_ALLOCATOR=default` takes them from both.
"""

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does; it serves the other too

import torch
import yaml
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
from torch import Tensor, nn

from benchmarks.step import peak, peak_of_imports
from plif_lightning import configs
from plif_lightning.network import SpikingNetwork
from plif_lightning.runtime.process import processor
from plif_lightning.structure import FC, Conv, LayerSpec, Neurons, Pool, Residual, layer_specs

SHAPE, CLASSES, STEPS = (3, 32, 32), 10, 4
SHARE = 0.09
SETTINGS = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
NETWORKS = {
    # with ImageNet's stem, as SpikingJelly has it
    "sew_resnet18": "c64k7s2-BN-PLIF-MPk3s2p1-{ADD({c64k3s1-BN-PLIF}*2)}*2-"
    + "-".join(
        f"ADD(c{c}k3s2-BN-PLIF-c{c}k3s1-BN-PLIF|c{c}k1s2-BN-PLIF)-ADD({{c{c}k3s1-BN-PLIF}}*2)" for c in (128, 256, 512)
    )
    + "-AP-FC10b",
    "64-128-256": "c64k3s1-BN-PLIF-MPk2s2-c128k3s1-BN-PLIF-MPk2s2-c256k3s1-BN-PLIF-MPk2s2-FC512-PLIF-FC10b",
    "5x5, strides": "c64k5s1-BN-PLIF-c128k5s2-BN-PLIF-c256k3s2-BN-PLIF-c256k1s1-BN-PLIF-AP-FC10b",
    "vgg11": "",
    "resnet19": "",
}


def structure(name: str) -> str:
    if NETWORKS[name]:
        return NETWORKS[name]
    return yaml.safe_load((configs.folder() / "networks" / f"{name}.yaml").read_text())["model"]["structure"]


class Sum(nn.Module):
    """A residual block: the sum of a branch and its shortcut."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x) + self.shortcut(x)
        return y


def peer(layers: Iterable[LayerSpec]) -> nn.Sequential:
    """The same layers of SpikingJelly's."""
    return nn.Sequential(*(part for one in layers for part in parts_of(one)))


def parts_of(one: LayerSpec) -> list[nn.Module]:
    def pool(of: Pool, size: tuple[int, ...]) -> nn.Module:
        kind = layer.AvgPool2d if of.kind == "AP" else layer.MaxPool2d
        return kind(size[1:], 1) if of.kernel is None else kind(of.kernel, of.stride, of.padding)

    plif = functools.partial(neuron.ParametricLIFNode, **SETTINGS)
    match one.layer:
        case Conv() as conv:
            assert isinstance(conv.kernel, int)
            sizes = conv.kernel, conv.stride, conv.kernel // 2
            made = [layer.Conv2d(one.before[0], conv.channels, *sizes, bias=False), layer.BatchNorm2d(conv.channels)]
            made += [plif()] if conv.neurons else []
            return made + ([pool(conv.pool, one.after)] if isinstance(conv.pool, Pool) else [])
        case Pool() as alone:
            return [pool(alone, one.before)]
        case Neurons():
            return [plif()]
        case Residual():
            return [Sum(peer(one.branch), peer(one.shortcut)), *([plif()] if one.layer.neurons else [])]
        case FC() as fc:
            flat = [layer.Flatten()] if len(one.before) == 3 else []
            fully_connected = layer.Linear(torch.Size(one.before).numel(), fc.features, bias=fc.bias)
            return [*flat, fully_connected, *([plif()] if fc.neurons else [])]
    raise AssertionError(one.layer)


def spikingjellys(name: str, net: SpikingNetwork) -> nn.Module:
    torch.manual_seed(0)
    settings = {"num_classes": CLASSES, "spiking_neuron": neuron.ParametricLIFNode, **SETTINGS}
    if name == "sew_resnet18":
        made = sew_resnet.sew_resnet18(cnf="ADD", **settings)
    elif name == "vgg11":
        made = spiking_vgg.spiking_vgg11_bn(**settings)
        made.avgpool = layer.AdaptiveAvgPool2d((1, 1))  # for 32x32 instead of 224x224
        made.classifier[0] = layer.Linear(512, 4096)
    else:
        made = peer(layer_specs(net.structure, SHAPE, CLASSES))
    functional.set_step_mode(made, "m")
    idle = {part.bias for part in made.modules() if isinstance(part, nn.Conv2d)}  # which BN takes away
    with torch.no_grad():
        for theirs, ours in zip([p for p in made.parameters() if p not in idle], net.parameters(), strict=True):
            theirs.copy_(ours.reshape(theirs.shape))  # SpikingJelly has scalars
        for bias in idle - {None}:
            bias.zero_()
    for part in made.modules():
        if isinstance(part, nn.Dropout | layer.Dropout):
            part.p = 0.0
    return made


def ours(name: str, trained: bool = True) -> SpikingNetwork:
    torch.manual_seed(0)
    net = SpikingNetwork(
        SHAPE, CLASSES, STEPS, structure=structure(name), norm_statistics="all_steps", pool_ties="first", dropout=0.0
    )
    if trained:
        fire_as_trained(net)
    return net


def fire_as_trained(net: SpikingNetwork) -> None:
    """Scale BN and FC weights so that each layer fires as in trained networks: one that is new does not."""
    generator = torch.Generator().manual_seed(1)
    x, shares = torch.randn(STEPS, 4, *SHAPE, generator=generator), {}
    with torch.no_grad(), net.record_spikes(lambda name, spikes: shares.__setitem__(name, spikes.mean().item())):
        weight = next(net.parameters())
        for name, block in net.layers().items():
            if hasattr(block, "norm"):  # of neurons behind a sum the last BN before it
                weight = block.norm.bn.weight
            elif hasattr(block, "fc"):
                weight = block.fc.weight
            if getattr(block, "neuron", None) is None:
                continue
            first, low, high = weight.clone(), 0.05, 100.0
            for _ in range(9):
                middle = (low * high) ** 0.5
                weight.copy_(first * middle)
                net(x)
                low, high = (middle, high) if shares[name] < SHARE else (low, middle)


def network(name: str, which: str, trained: bool = True) -> nn.Module:
    net = ours(name, trained)
    return net if which == "ours" else spikingjellys(name, net)


def training_step(net: nn.Module, which: str, batch: int) -> Callable[[], float]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, batch, *SHAPE, generator=generator)
    label = torch.randint(0, CLASSES, (batch,), generator=generator)

    def step() -> float:
        optimizer.zero_grad()
        if which == "theirs":
            functional.reset_net(net)
        loss: Tensor = nn.functional.cross_entropy(net(x).mean(0), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def memory(name: str, which: str, batch: int) -> tuple[float, float]:
    """Peak memory of training in a process of its own, and that without weights, gradients and Adam's state [MiB]."""
    command = [sys.executable, __file__, name, "--batch", str(batch), "--only", which]
    whole, fixed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    return float(whole), float(whole) - float(fixed)


def print_memory(name: str, which: str, batch: int) -> None:
    peak_of_imports()
    tiny: Any = SpikingNetwork(SHAPE, CLASSES, STEPS, structure="c4k3s1-BN-PLIF-MPk2s2-FC10b")
    if which == "theirs":
        tiny = peer(layer_specs(tiny.structure, SHAPE, CLASSES))
        functional.set_step_mode(tiny, "m")
    for _ in range(2):
        training_step(tiny, which, 2)()
    before = peak() / 2**20
    net = network(name, which, trained=False)  # making it fire would take memory of its own
    size = sum(p.numel() for p in net.parameters()) * 4 / 2**20
    step = training_step(net, which, batch)
    for _ in range(3):
        step()
    print(peak() / 2**20 - before, 4 * size)


def require_equal(name: str) -> None:
    """Compare votes in float64; in float32 a spike that rounding adds changes many in the layers behind it."""
    x = torch.randn(STEPS, 2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = (network(name, which).double()(x) for which in ("ours", "theirs"))
    torch.testing.assert_close(ours, theirs)


def compare(name: str, rounds: int, batch: int) -> None:
    require_equal(name)
    steps = {which: training_step(network(name, which), which, batch) for which in ("ours", "theirs")}
    first = {which: step() for which, step in steps.items()}
    seconds: dict[str, list[float]] = {which: [] for which in steps}
    for _ in range(rounds):
        for which, step in steps.items():
            for repeat in range(3):
                start = time.perf_counter()
                step()
                if repeat:
                    seconds[which].append(time.perf_counter() - start)
    shown = []
    for times in seconds.values():
        shown.append(f"{1e3 * statistics.median(times):.0f} [{1e3 * min(times):.0f}, {1e3 * max(times):.0f}]")
    ratios = sorted(b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))
    held = [memory(name, which, batch) for which in steps]
    print(
        f"{name:14} step [ms]: ours {shown[0]}, SpikingJelly {shown[1]}, "
        f"ratio {statistics.median(seconds['theirs']) / statistics.median(seconds['ours']):.2f} "
        f"[{ratios[len(ratios) // 10]:.2f}, {ratios[-1 - len(ratios) // 10]:.2f}]; "
        f"memory [MiB]: {held[0][0]:,.0f}, {held[1][0]:,.0f}, ratio {held[1][0] / held[0][0]:.2f}; without weights and "
        f"optimiser {held[0][1]:,.0f}, {held[1][1]:,.0f}, ratio {held[1][1] / held[0][1]:.2f}; losses "
        f"{first['ours']:.5f}, {first['theirs']:.5f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*NETWORKS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", choices=["ours", "theirs"], help="print the memory of this one")
    given = parser.parse_args()
    if given.only:
        print_memory(given.networks[0], given.only, given.batch)
        return
    print(f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} threads, fp32, batch {given.batch}")
    for name in given.networks:
        compare(name, given.rounds, given.batch)


if __name__ == "__main__":
    main()
