"""`check`: this machine, and each form of a layer against the reference; a page for bug reports."""

import torch

from plif_lightning.cli.parser import PlainParser
from plif_lightning.network import comparing
from plif_lightning.runtime.process import surroundings


def check(argv: list[str]) -> int:
    """Print the page; 1 if anything differs."""
    PlainParser("check", "Compare each form of a layer with the reference on this machine.").parse_args(argv)
    devices = [torch.device("cpu")]
    gpu = torch.cuda.is_available()
    if gpu:
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    for name, text in surroundings(torch.cuda.get_device_name() if gpu else None).items():
        print(f"{name:9} {text}")
    failed = 0
    for device in devices:
        print(f"\n{device}")
        for name, reason in comparing.comparisons(device):
            failed += bool(reason)
            print(f"  {name:22} {reason or 'equals the reference'}")
        speeds = ", ".join(f"{name} {ms:.1f}" for name, ms in comparing.speeds(device).items())
        print(f"  LIF [16, 32, 16384], forward and backward [ms]: {speeds}")
    print(f"\n{failed} of these differ from the reference." if failed else "\nAll equal the reference.")
    return 1 if failed else 0
