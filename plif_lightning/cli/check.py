"""`check`: this machine, and each form of a layer against the reference; a page for bug reports."""

from pathlib import Path

import torch

from plif_lightning.cli.parser import PlainParser
from plif_lightning.errors import UserError
from plif_lightning.network import comparing
from plif_lightning.runtime.files import atomic_write
from plif_lightning.runtime.process import surroundings


def _why_no_gpu(gpu: bool) -> str:
    if gpu:
        return "--device cpu"
    if not torch.backends.cuda.is_built():
        return "this PyTorch was built for CPUs, see docs/install.md"
    return "PyTorch finds none that it can use"


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
        speeds = ", ".join(f"{name} {ms:.1f}" for name, ms in comparing.speeds(device).items())
        say(f"  LIF [16, 32, 16384], forward and backward [ms]: {speeds}")
    if all(device.type == "cpu" for device in devices):
        say(f"\nNo GPU was checked: {_why_no_gpu(gpu)}.")
    say(f"\n{failed} of these differ from the reference." if failed else "\nAll equal the reference.")
    if options.report is not None:
        with atomic_write(options.report) as file:
            file.write("\n".join([*lines, ""]))
    return 1 if failed else 0
