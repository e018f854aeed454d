"""`check`: this machine, and each form of a layer against the reference; a page for bug reports."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from plif_lightning.cli.parser import PlainParser
from plif_lightning.errors import UserError
from plif_lightning.network import comparing, use_backend
from plif_lightning.neurons import LIF
from plif_lightning.runtime.files import atomic_write
from plif_lightning.runtime.process import milliseconds, surroundings


def _why_no_gpu(gpu: bool) -> str:
    if gpu:
        return "--device cpu"
    if not torch.backends.cuda.is_built():
        return "this PyTorch was built for CPUs, see docs/install.md"
    return "PyTorch finds none that it can use"


def _training_step(net: nn.Module, x: Tensor, reset: Callable[[], object] = lambda: None) -> Callable[[], object]:
    def step() -> None:
        reset()
        net.zero_grad()
        net(x).sum().backward()

    return step


def _speeds(device: torch.device) -> dict[str, float]:
    """Forward and backward pass of a LIF layer, x [16, 32, 16384], by implementation [ms]."""
    x = torch.randn(16, 32, 16384, device=device, requires_grad=True)
    layers = {"fused": LIF(), "reference": use_backend(LIF(), "reference")}
    times = {name: milliseconds(_training_step(layer.to(device), x), device) for name, layer in layers.items()}
    with contextlib.suppress(ImportError):
        from spikingjelly.activation_based import functional as theirs
        from spikingjelly.activation_based import neuron, surrogate

        node = neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m").to(device)
        times["SpikingJelly"] = milliseconds(_training_step(node, x, lambda: theirs.reset_net(node)), device)
    return times


def check(argv: list[str]) -> int:
    """Print the page, and write it into a file if given; 1 if anything differs."""
    parser = PlainParser("check", "Compare each form of a layer with the reference on this machine.")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="one device alone (default: all that there are)")
    parser.add_argument("--report", type=Path, help="a file for the page, to send with a report")
    options = parser.parse_args(argv)
    gpu = torch.cuda.is_available()
    if options.device == "cuda" and not gpu:
        raise UserError(f"no CUDA device can be checked: {_why_no_gpu(gpu)}.")
    devices = [torch.device("cpu")] if options.device != "cuda" else []
    if gpu and options.device != "cpu":
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    for name, text in surroundings(torch.cuda.get_device_name() if gpu else None).items():
        say(f"{name:9} {text}")
    failed = 0
    for device in devices:
        say(f"\n{device}")
        for name, reason in comparing.comparisons(device):
            failed += bool(reason)
            say(f"  {name:22} {reason or 'equals the reference'}")
        speeds = ", ".join(f"{name} {ms:.1f}" for name, ms in _speeds(device).items())
        say(f"  LIF [16, 32, 16384], forward and backward [ms]: {speeds}")
    if all(device.type == "cpu" for device in devices):
        say(f"\nNo GPU was checked: {_why_no_gpu(gpu)}.")
    say(f"\n{failed} of these differ from the reference." if failed else "\nAll equal the reference.")
    if options.report is not None:
        with atomic_write(options.report) as file:
            file.write("\n".join([*lines, ""]))
    return 1 if failed else 0
