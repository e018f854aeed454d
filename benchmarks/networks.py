"""Training step and inference of the paper's networks beside SpikingJelly 2.0, in alternation in one process.

    [PLIF_DATA_ROOT=DIR] python benchmarks/networks.py [--rounds 7] [--fast]
    python benchmarks/networks.py --device cuda
    python benchmarks/networks.py --ckpt_path RUN/checkpoints/best.ckpt --config cifar10dvs [--batch 2]

Same network, sizes, batch, T, type, threads and optimiser (fused Adam); BN over all time-steps together, the first
winner in a pool, as SpikingJelly has them. At equal weights, without dropout, votes in float64 are compared
first. The third column is the network as the authors wrote it: the same layers of SpikingJelly, called once a time-step
(BN of each step then, our default). Peak memory is that of a process which only does 3 training steps, beyond what it
held after its imports and inputs. The floor is convolutions and FC layers alone, forward and backward. With
`--ckpt_path`, a trained network on samples of its test set, instead of new ones whose layers are made to fire so much.
On a GPU, where SpikingJelly takes Triton kernels by itself, memory is the most that PyTorch held there.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does; it serves the others too

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from benchmarks.step import inputs, make_fire, peak, peak_of_imports
from benchmarks.timing import alternate
from plif_lightning.cli.trained import read_to_test
from plif_lightning.configs import network_of
from plif_lightning.deploy import Engine, deployed
from plif_lightning.network import SpikingNetwork
from plif_lightning.runtime.process import processor
from plif_lightning.signals.signal import Signal, run_layer
from plif_lightning.training.losses import rate_mse

Contenders = dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]]
CASES = {"cpu": {"fashionmnist": 16, "cifar10dvs": 2}, "cuda": {"cifar10": 16, "cifar10dvs": 16, "dvsgesture": 16}}
# Of a layer's outputs, spikes after the pool: in trained networks of Fashion-MNIST 8.7, 8.2 and 12.1 % (conv1, conv2,
# fc1), of MNIST 8.1, 7.6 and 14.9 %, of an N-MNIST part 4.0, 9.2 and 22.8 %.
SHARE = 0.09


def peer(net: SpikingNetwork, step_mode: str) -> nn.Sequential:
    """The same network of SpikingJelly's layers, with the same weights."""

    def plif() -> nn.Module:
        return neuron.ParametricLIFNode(
            init_tau=2.0, decay_input=True, detach_reset=True, surrogate_function=surrogate.ATan(2.0),
            step_mode=step_mode,
        )  # fmt: skip

    layers: list[nn.Module] = []
    for block in net.encoder:
        conv = block.conv
        layers += [
            layer.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=False, step_mode=step_mode),
            layer.BatchNorm2d(conv.out_channels, step_mode=step_mode),
            plif(),
        ]
        if block.pool is not None:
            layers.append(layer.MaxPool2d(2, 2, step_mode=step_mode))
    layers.append(layer.Flatten(step_mode=step_mode))
    for block in net.classifier:
        layers += [
            layer.Dropout(0.5, step_mode=step_mode),
            layer.Linear(block.fc.in_features, block.fc.out_features, bias=False, step_mode=step_mode),
            plif(),
        ]
    layers.append(layer.VotingLayer(10, step_mode=step_mode))
    made = nn.Sequential(*layers)
    with torch.no_grad():
        for theirs, ours in zip(made.parameters(), net.parameters(), strict=True):
            theirs.copy_(ours.reshape(theirs.shape))  # SpikingJelly has scalars
    return made


def run_peer(net: nn.Sequential, x: Tensor, steps: int, step_mode: str) -> Tensor:
    functional.reset_net(net)
    x = x if x.is_floating_point() else x.float()
    x = x if x.dim() == 5 else x.expand(steps, *x.shape)
    return net(x) if step_mode == "m" else torch.stack([net(step) for step in x])


def training_step(
    forward: Callable[[Tensor], Tensor], parameters: Any, x: Tensor, label: Tensor, bf16: bool
) -> Callable[[], float]:
    optimizer = torch.optim.Adam(list(parameters), lr=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            votes = forward(x)
        loss = rate_mse(votes.float(), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def inference(forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], float]:
    def step() -> float:
        with torch.no_grad():
            return forward(x).sum().item()

    return step


def fire_as_trained(net: SpikingNetwork, x: Tensor, training: bool) -> dict[str, float]:
    """Scales BN and FC weights so that each layer spikes as in trained networks: one that is new does not.

    Gives the share of each layer's outputs that are spikes, as they come out of its pool.
    """
    net.train(training)
    shares = {}
    with torch.no_grad():
        signal = run_layer(net.inputs, Signal((x[None] if x.dim() == 4 else x).float(), net.time_steps))
        for name, block in [*net.encoder.named_children(), *net.classifier.named_children()]:
            signal = signal._replace(values=signal.values.flatten(2)) if name == "fc1" else signal
            weight = block.norm.bn.weight if hasattr(block, "norm") else block.fc.weight
            first, low, high = weight.clone(), 0.1, 100.0
            for _ in range(12):
                middle = (low * high) ** 0.5
                weight.copy_(first * middle)
                y = run_layer(block, signal)
                shares[name] = (y.values != 0).float().mean().item()
                low, high = (middle, high) if shares[name] < SHARE else (low, middle)
            signal = y
    return shares


def contenders(
    name: str,
    batch: int,
    time_steps: int | None = None,
    trained: bool = False,
    training: bool = True,
    with_compiled: bool = False,
) -> tuple[Contenders, Tensor, Tensor]:
    torch.manual_seed(0)
    net = network_of(name, time_steps, norm_statistics="all_steps", pool_ties="first")
    x = inputs(name, net, batch)
    if trained:
        shares = fire_as_trained(net, x, training)
        print(f"  spikes: {in_words(shares)}")
    return with_peers(net, with_compiled), x, torch.randint(0, 10, (batch,))


def in_words(shares: dict[str, float], digits: int = 0) -> str:
    return ", ".join(f"{layer} {100 * share:.{digits}f} %" for layer, share in shares.items())


def with_peers(net: SpikingNetwork, with_compiled: bool = False) -> Contenders:
    found: Contenders = {"ours": (net, net)}
    for title, mode in (("SpikingJelly, multi-step", "m"), ("SpikingJelly, as the authors", "s")):
        other = peer(net, mode).train(net.training)
        found[title] = (other, lambda x, n=other, m=mode: run_peer(n, x, net.time_steps, m))
    if with_compiled:
        other, forward = found["SpikingJelly, multi-step"]
        found["SpikingJelly, compiled"] = (other, torch.compile(forward, dynamic=False))
    return found


def firing(net: SpikingNetwork, x: Tensor) -> dict[str, float]:
    """The share of each layer's outputs that are spikes, as they come out of its pool."""
    found: dict[str, float] = {}
    names = {block: name for name, block in net.blocks().items()}

    def note(block: nn.Module, given: Any, y: Tensor) -> None:
        found[names[block]] = (y != 0).float().mean().item()

    hooks = [block.register_forward_hook(note) for block in names]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return found


def of_checkpoint(name: str, path: Path, root: str | None, batch: int, rounds: int, fast: bool) -> None:
    """A new and a trained network, with BN and pools as SpikingJelly has them, on samples of the test set."""
    trained, x, label = read_to_test(path, root, batch)
    torch.manual_seed(0)
    net = network_of(name, trained.time_steps, norm_statistics="all_steps", pool_ties="first")
    x = x.float()
    print(f"\n{name}, samples of its test set, batch {batch}, T = {net.time_steps}")
    print(f"  spikes of a new network in training: {in_words(firing(net.train(), x), 1)}")
    compare(name, "training step, fp32, fresh", with_peers(copy.deepcopy(net)), x, label, False, rounds, fast)
    net.load_state_dict(trained.state_dict())
    print(f"  spikes in training: {in_words(firing(net.train(), x), 1)}")
    for bf16 in (False, True):
        what = f"training step, {'bf16-mixed' if bf16 else 'fp32'}"
        compare(name, what, with_peers(copy.deepcopy(net)), x, label, bf16, rounds, fast)
    net.load_state_dict(trained.state_dict())  # BN has counted on
    print(f"  spikes in inference: {in_words(firing(net.eval(), x), 1)}")
    infer("inference", net, x, 3 * rounds, fast)


def infer(what: str, net: SpikingNetwork, x: Tensor, rounds: int, fast: bool) -> None:
    """Prints the seconds of inference, deployed too."""
    found = with_peers(net.eval())
    for engine in get_args(Engine):
        found[f"ours, deployed, {engine}"] = (made := deployed(net, engine), made)
    show(what, alternate({t: inference(f, x) for t, (_, f) in of_interest(found, fast).items()}, rounds, finished))


def of_interest(found: Contenders, fast: bool) -> Contenders:
    return {title: made for title, made in found.items() if not fast or title != "SpikingJelly, as the authors"}


def compare(
    name: str, what: str, found: Contenders, x: Tensor, label: Tensor, bf16: bool, rounds: int, fast: bool
) -> None:
    """Prints the seconds of a training step."""
    cases: dict[str, Callable[[], Any]] = {
        title: training_step(forward, module.parameters(), x, label, bf16)
        for title, (module, forward) in of_interest(found, fast).items()
    }
    cases["convolutions and FC alone"] = floor(name, len(label), bf16)
    show(what, alternate(cases, rounds, finished))


def check(name: str, batch: int) -> None:
    """The same votes at the same weights, without dropout; in float64, where no rounding flips a spike."""
    found, x, _ = contenders(name, batch)
    votes = {}
    for title, (module, forward) in found.items():
        for part in module.modules():
            if isinstance(part, layer.Dropout) or type(part).__name__ == "TimeDropout":
                part.p = 0.0
        make_fire(module)  # enough to tell networks apart
        module.double()
        with torch.no_grad():
            votes[title] = forward(x.double())
    ours, theirs = votes["ours"], votes["SpikingJelly, multi-step"]
    same = torch.isclose(ours, theirs.to(ours.dtype), rtol=0, atol=1e-9)
    print(f"  votes at equal weights, in float64: {int(same.sum())} of {same.numel()} equal")
    assert ours.any()
    assert same.all()


def on_gpu() -> bool:
    """Whether `--device` is one."""
    return torch.get_default_device().type == "cuda"


def finished() -> None:
    """Waits until a GPU has done all that it was told."""
    if on_gpu():
        torch.cuda.synchronize()


def show(what: str, seconds: dict[str, list[float]]) -> None:
    print(f"  {what}")
    for title, times in seconds.items():
        ratio = statistics.median(t / o for t, o in zip(times, seconds["ours"], strict=True))
        note = "" if title == "ours" else f"  {ratio:.2f}x ours"
        low, middle, high = (1e3 * value for value in (min(times), statistics.median(times), max(times)))
        print(f"    {title:32} {middle:8.1f} [{low:.1f}, {high:.1f}] ms{note}")


def floor(name: str, batch: int, bf16: bool) -> Callable[[], None]:
    """Convolutions and FC layers alone, on maps of the network's sizes."""
    net = network_of(name)
    static = inputs(name, net, batch).dim() == 4
    work = []
    for i, (part, shape) in enumerate(dense_layers(net)):
        n = batch * (1 if i == 0 and static else net.time_steps)
        x = torch.rand(n, *shape).lt(0.1).float()
        if len(shape) == 3:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_(i > 0)
        work.append((part, x))

    def step() -> None:
        for part, x in work:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                y = part(x)
            y.backward(torch.ones_like(y))
            part.weight.grad = x.grad = None

    return step


def dense_layers(net: SpikingNetwork) -> list[tuple[Any, tuple[int, ...]]]:
    found = []
    shape = net.input_shape
    for part in net.encoder:
        found.append((part.conv, shape))
        halve = 1 if part.pool is None else 2
        shape = (part.conv.out_channels, shape[1] // halve, shape[2] // halve)
    found += [(part.fc, (part.fc.in_features,)) for part in net.classifier]
    return found


def alone(name: str, batch: int, title: str, steps: int, time_steps: int | None = None) -> tuple[list[float], float]:
    """Seconds of each training step of one contender in this process, fp32, and the peak memory [MiB]."""
    before = peak_of_imports()
    found, x, label = contenders(name, batch, time_steps)
    module, forward = found.pop(title)
    found.clear()
    step = training_step(forward, module.parameters(), x, label, False)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds, (torch.cuda.max_memory_allocated() if on_gpu() else peak() - before) / 2**20


def recordings(root: str, number: int) -> Tensor:
    """Frames [T, N, C, H, W] of the first recordings of an N-MNIST test part."""
    from plif_lightning.data import NMNIST

    data = NMNIST(root=root, time_steps=10, batch_size=number, allow_partial=True)
    data.prepare_data()
    data.setup("test")
    return next(iter(data.test_dataloader())).x[:number].transpose(0, 1).float()


def of_recordings(root: str, number: int, rounds: int, fast: bool) -> None:
    print(f"\nnmnist, real recordings, batch {number}")
    x = recordings(root, number)
    torch.manual_seed(0)
    net = network_of("nmnist", norm_statistics="all_steps", pool_ties="first")
    shares = fire_as_trained(net, x, training=False)
    print(f"  spikes: {in_words(shares)}")
    infer("inference, firing as trained", net, x, 5 * rounds, fast)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fast", action="store_true", help="without the authors' form")
    parser.add_argument("--compiled", action="store_true", help="training with SpikingJelly under torch.compile, too")
    parser.add_argument("--memory", nargs=3, help="measure memory in this process: CONFIG BATCH CONTENDER")
    parser.add_argument("--ckpt_path", type=Path)
    parser.add_argument("--config", help="of the checkpoint's network")
    parser.add_argument("--data.root", dest="root")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", choices=CASES, default="cpu")
    arguments = parser.parse_args()
    torch.set_default_device(arguments.device)
    if arguments.memory:
        _, mib = alone(arguments.memory[0], int(arguments.memory[1]), arguments.memory[2], 3)
        print(int(mib))
        return
    card = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, " if on_gpu() else ""
    machine = f"{card}{processor()}, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {machine}, {arguments.rounds} rounds")
    if arguments.ckpt_path is not None:
        of = arguments.config, arguments.ckpt_path, arguments.root, arguments.batch
        of_checkpoint(*of, arguments.rounds, arguments.fast)
        return
    if (root := os.environ.get("PLIF_DATA_ROOT")) and not on_gpu():  # deployed networks run on a CPU
        for number in 1, 4:
            of_recordings(root, number, arguments.rounds, arguments.fast)
    for name, batch in CASES[arguments.device].items():
        print(f"\n{name}, batch {batch}")
        check(name, batch)
        runs = [(False, False), (True, False), (True, True)]
        if name == "cifar10dvs" and not on_gpu():
            runs.pop()
        for trained, bf16 in runs:
            found, x, label = contenders(name, batch, trained=trained, with_compiled=arguments.compiled)
            what = f"training step, {'bf16-mixed' if bf16 else 'fp32'}, {'firing as trained' if trained else 'fresh'}"
            compare(name, what, found, x, label, bf16, arguments.rounds, arguments.fast)
        found, x, _ = contenders(name, batch, trained=True, training=False)
        for module, _ in found.values():
            module.eval()
        cases = {t: inference(f, x) for t, (_, f) in found.items()}
        show("inference, firing as trained", alternate(cases, arguments.rounds, finished))
        for title in found:
            command = [sys.executable, __file__, "--memory", name, str(batch), title, "--device", arguments.device]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"    peak memory of training, {title}: {int(done.stdout.split()[-1]):,} MiB")


if __name__ == "__main__":
    main()
