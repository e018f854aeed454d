"""Neurons beside other libraries' own forms of them: alone after an FC layer, and in a network.

    python benchmarks/neurons.py [--rounds 5] [--only alone|workload|network|recurrent] [--compiled]

Alone, LIF [16, 32, 16384], forward and backward, stands beside what moving its five arrays takes at the speed of a
copy: x, spikes; x again, both gradients.

The workload is that of Open Neuromorphic's benchmarks: Linear(n, n) and LIF, batch 16, T = 500, forward and backward,
on 1 and 2 threads; outputs are compared first. snnTorch and Norse call both layers at each step, as users do. The
network is Fashion-MNIST's, one training step, batch 16, all layers with the same neurons; another library's neuron runs
in SpikingJelly's network of the same layers. All in alternation in one process. `--compiled` adds Norse with its step
compiled by PyTorch, and SpikingJelly's recurrent network, which takes minutes.

Recurrent: 700 inputs, 2 % spikes, to 256 recurrent LIF at about 5 % firing, T = 100, batch 64, one thread, forward and
backward, beside a plain loop of PyTorch's operators, SpikingJelly's container (whose weight [F, 2 F] multiplies the
input current by an identity, too) and snnTorch's RLeaky, all with the same weights; spikes are compared first.
"""

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Norse uses torch.jit.script
    import norse.torch.functional.lsnn as lsnn
    import snntorch
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from torch import Tensor, nn

import plif_lightning as pl
from benchmarks.networks import fire_as_trained, peer, run_peer, show, training_step
from benchmarks.step import inputs
from benchmarks.timing import alternate
from plif_lightning.configs import network_of
from plif_lightning.runtime.process import processor
from plif_lightning.signals.signal import Signal

BATCH, STEPS, SIZES = 16, 500, (512, 1024, 4096)
ATAN = surrogate.ATan(2.0)


# --- alone


def alone(rounds: int) -> None:
    """LIF on [16, 32, 16384], and what moving its arrays takes: a copy reads one and writes one."""
    shape = 16, 32, 16384
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    source, target = torch.randn(shape), torch.empty(shape)
    ours = pl.LIF()
    theirs = neuron.LIFNode(2.0, surrogate_function=ATAN, detach_reset=True, step_mode="m")

    def both(layer: nn.Module) -> Callable[[], None]:
        def run() -> None:
            x.grad = None
            functional.reset_net(layer)
            layer(x).backward(grad)

        return run

    def forward() -> None:
        ours(x.detach())

    cases = {"ours": both(ours), "ours, forward": forward, "SpikingJelly": both(theirs)}
    cases["a copy of one array"] = lambda: target.copy_(source)
    seconds = alternate(cases, rounds)
    show(f"\nLIF {list(shape)}, float32", seconds)
    moved = [5 / 2 * copied for copied in seconds["a copy of one array"]]
    ratios = [t / floor for t, floor in zip(seconds["ours"], moved, strict=True)]
    print(f"    five arrays at the speed of a copy: {1e3 * statistics.median(moved):.1f} ms; ours takes ", end="")
    print(f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] times that")


Layer = Callable[[nn.Linear, Tensor], Tensor]


def of_norse(step: Callable[..., Any]) -> Layer:
    p = LIFBoxParameters(tau_mem_inv=torch.tensor(0.5), alpha=torch.tensor(100.0))

    def run(fc: nn.Linear, x: Tensor) -> Tensor:
        state, spikes = LIFBoxFeedForwardState(v=torch.zeros_like(x[0])), []
        for frame in x:
            s, state = step(fc(frame), state, p, 1.0)
            spikes.append(s)
        return torch.stack(spikes)

    return run


def of_snntorch() -> Layer:
    leaky = snntorch.Leaky(0.5, reset_mechanism="zero", reset_delay=False)

    def run(fc: nn.Linear, x: Tensor) -> Tensor:
        v, spikes = leaky.reset_mem(), []
        for frame in x:
            s, v = leaky(0.5 * fc(frame), v)  # its input is not scaled by 1 / tau
            spikes.append(s)
        return torch.stack(spikes)

    return run


def of_spikingjelly() -> Layer:
    node = neuron.LIFNode(2.0, surrogate_function=ATAN, detach_reset=True, step_mode="m")

    def run(fc: nn.Linear, x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(fc(x))

    return run


def workload(n: int, rounds: int, compiled: bool) -> None:
    torch.manual_seed(0)
    fc = nn.Linear(n, n)
    modules, skipping = (pl.over_time(nn.Sequential(fc, pl.LIF(2.0)), sparse) for sparse in ("never", "auto"))
    x = (torch.rand(STEPS, BATCH, n) < 0.1).float()
    with torch.no_grad():
        fc.weight.mul_(6)
    runs: dict[str, Layer] = {
        "ours": lambda fc, x: modules(x),
        "ours, sparse='auto'": lambda fc, x: skipping(x),
        "SpikingJelly, multi-step": of_spikingjelly(),
        "snnTorch": of_snntorch(),
        "Norse": of_norse(lif_box_feed_forward_step),
    }
    if compiled:
        runs["Norse, compiled"] = of_norse(torch.compile(lif_box_feed_forward_step))
    with torch.no_grad():
        spikes = {title: run(fc, x) for title, run in runs.items()}
    expected = spikes.pop("ours")
    differ = {title: (expected != s).float().mean().item() for title, s in spikes.items()}
    shares = ", ".join(f"{title} {share:.1e}" for title, share in differ.items())
    print(f"\nLinear({n}, {n}) and LIF, batch {BATCH}, T = {STEPS}; {expected.mean():.1%} fire; differ: {shares}")
    assert max(differ.values()) < 1e-4  # of rounding, where FC layers run step by step

    def step(run: Layer) -> Callable[[], None]:
        def forward_and_backward() -> None:
            fc.weight.grad = fc.bias.grad = None
            run(fc, x).sum().backward()

        return forward_and_backward

    cases = {title: step(run) for title, run in runs.items()} | {"Linear alone": step(lambda fc, x: fc(x))}
    threads = torch.get_num_threads()
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        show(f"{number} thread{'s' if number > 1 else ''}", alternate(cases, rounds))
    torch.set_num_threads(threads)


# --- in a network


class Lsnn(base.MemoryModule):
    """Norse's adaptive neuron as a node of SpikingJelly's; its current lasts one step."""

    def __init__(self) -> None:
        super().__init__()
        values = (1.0, 0.5, 0.1, 0.0, 1.0, 0.0, 0.2 / 0.9)
        self.p = lsnn.LSNNParameters(*(torch.tensor(value) for value in values))

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(x[0])
        state, spikes = lsnn.LSNNFeedForwardState(v=zero, i=zero, b=zero + 1), []
        for current in x:
            s, state = lsnn.lsnn_feed_forward_step(current, state, self.p, dt=1.0)
            spikes.append(s)
        return torch.stack(spikes)


# name of ours -> title and maker of another library's
THEIRS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "plif": (
        "SpikingJelly's PLIF",
        lambda: neuron.ParametricLIFNode(2.0, detach_reset=True, surrogate_function=ATAN, step_mode="m"),
    ),
    "clif": ("SpikingJelly's CLIF", lambda: neuron.ComplementaryLIFNode(2.0, surrogate_function=ATAN, step_mode="m")),
    "alif": ("Norse's LSNN", Lsnn),
    "qif": (
        "SpikingJelly's QIF",
        lambda: neuron.QIFNode(2.0, v_reset=0.0, detach_reset=True, surrogate_function=ATAN, step_mode="m"),
    ),
    "eif": (
        "SpikingJelly's EIF",
        lambda: neuron.EIFNode(2.0, v_reset=0.0, detach_reset=True, surrogate_function=ATAN, step_mode="m"),
    ),
    "klif": (
        "SpikingJelly's KLIF",
        lambda: neuron.KLIFNode(tau=2.0, detach_reset=True, surrogate_function=ATAN, step_mode="m"),
    ),
}


def with_neurons(of: nn.Sequential, make: Callable[[], nn.Module]) -> nn.Sequential:
    """SpikingJelly's network with other neurons."""
    parts = [make() if isinstance(part, neuron.ParametricLIFNode) else part for part in of]
    return nn.Sequential(*parts)


def network(rounds: int) -> None:
    print("\nFashion-MNIST's network, batch 16, a training step, fp32, all layers firing as trained")
    settings = {"norm_statistics": "all_steps", "pool_ties": "first"}
    cases: dict[str, Callable[[], Any]] = {}
    label = torch.randint(0, 10, (16,))
    for name, (title, make) in THEIRS.items():
        torch.manual_seed(0)
        ours = network_of("fashionmnist", neuron=name, **settings)
        x = inputs("fashionmnist", ours, 16)
        fire_as_trained(ours, x, training=True)
        like = network_of("fashionmnist", **settings)  # the same weights, which `peer` copies
        like.load_state_dict({k: v for k, v in ours.state_dict().items() if ".neuron." not in k}, strict=False)
        theirs = with_neurons(peer(like, "m"), make)
        cases["ours" if name == "plif" else f"ours, {name}"] = training_step(ours, ours.parameters(), x, label, False)
        forward = lambda x, n=theirs, t=ours.time_steps: run_peer(n, x, t, "m")  # noqa: E731
        cases[title] = training_step(forward, theirs.parameters(), x, label, False)
    show("ratios are to our PLIF", alternate(cases, rounds))


# --- recurrent


class PlainLoop(nn.Module):
    """Recurrent LIF in PyTorch's operators, step by step, with the surrogate of the others."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.recurrent = nn.Linear(len(weight), len(weight), bias=False)
        self.recurrent.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        v = spikes = torch.zeros_like(x[0])
        outputs = []
        for current in x:
            h = v + (current + self.recurrent(spikes) - v) * 0.5
            spikes = ATAN(h - 1.0)
            v = h * (1 - spikes.detach())
            outputs.append(spikes)
        return torch.stack(outputs)


class RLeaky(nn.Module):
    """snnTorch's recurrent neurons, called at each step."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.neurons = snntorch.RLeaky(
            0.5, linear_features=len(weight), reset_mechanism="zero", spike_grad=snntorch.surrogate.atan(alpha=2.0),
            reset_delay=False,
        )  # fmt: skip
        self.neurons.recurrent.weight = nn.Parameter(0.5 * weight)  # its input is not divided by tau
        nn.init.zeros_(self.neurons.recurrent.bias)

    def forward(self, x: Tensor) -> Tensor:
        spikes, v = torch.zeros(2, *x.shape[1:])
        outputs = []
        for current in x:
            spikes, v = self.neurons(0.5 * current, spikes, v)
            outputs.append(spikes)
        return torch.stack(outputs)


def recurrent(rounds: int, with_compiled: bool) -> None:
    """Recurrent LIF behind an FC layer, beside other libraries'."""
    steps, batch, inputs_, features = 100, 64, 700, 256
    torch.manual_seed(0)
    x = (torch.rand(steps, batch, inputs_) < 0.02).float()
    weight, loop_weight = 0.31 * torch.randn(features, inputs_), 0.05 * torch.randn(features, features)
    net = pl.SpikingNetwork((inputs_, 1, 1), features, steps, structure=f"RFC{features}-LIF-APk1s1")
    ours = net.classifier.fc1
    container = layer.LinearRecurrentContainer(
        neuron.LIFNode(2.0, surrogate_function=ATAN, detach_reset=True), features, features, bias=False
    )
    functional.set_step_mode(container, "m")
    peers = {
        "ours": ours,
        "a loop in PyTorch": nn.Sequential(nn.Linear(inputs_, features, bias=False), PlainLoop(loop_weight)),
        "SpikingJelly": nn.Sequential(nn.Linear(inputs_, features, bias=False), container),
        "snnTorch": nn.Sequential(nn.Linear(inputs_, features, bias=False), RLeaky(loop_weight)),
    }
    if with_compiled:  # with the same weights
        peers["SpikingJelly, compiled"] = torch.compile(peers["SpikingJelly"])
    with torch.no_grad():
        ours.fc.weight.copy_(weight)
        ours.recurrent.weight.copy_(loop_weight)
        container.rc.weight.copy_(torch.cat([torch.eye(features), loop_weight], 1))
        for name in list(peers)[1:4]:
            peers[name][0].weight.copy_(weight)  # type: ignore[index]

    def both(name: str) -> Tensor:
        module = peers[name]
        module.zero_grad()
        functional.reset_net(container)
        y = module.run(Signal(x, steps, is_spikes=True)) if module is ours else module(x)
        y.mean().backward()
        return y.detach()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spikes = {name: both(name) for name in peers}
    apart = {name: (y != spikes["ours"]).float().mean().item() for name, y in spikes.items()}
    print(f"  firing {100 * spikes['ours'].mean():.1f} %, {ours.choice}; other spikes than ours: {apart}")
    show("recurrent LIF, forward and backward", alternate({name: partial(both, name) for name in peers}, rounds))
    torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("alone", "workload", "network", "recurrent"))
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} threads, {arguments.rounds} rounds")
    if arguments.only in (None, "alone"):
        alone(arguments.rounds)
    if arguments.only in (None, "workload"):
        for n in SIZES:
            workload(n, arguments.rounds, arguments.compiled)
    if arguments.only in (None, "network"):
        network(arguments.rounds)
    if arguments.only in (None, "recurrent"):
        recurrent(arguments.rounds, arguments.compiled)


if __name__ == "__main__":
    main()
