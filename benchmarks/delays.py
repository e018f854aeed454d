"""What a delay before an FC layer costs: a training step with the delay beside one without.

    python benchmarks/delays.py [--density 0.02] [--rounds 15]

One thread, T = 100. `apart` delays all values and multiplies them; `together` adds weights where a neuron fired.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does

import torch
from torch import nn

import plif_lightning as pl
from benchmarks.timing import alternate
from plif_lightning.kernels import Backend, linear_of_delayed, linear_of_spikes
from plif_lightning.runtime.process import processor

STEPS, SHAPES = 100, [(256, 256, 64), (512, 512, 64), (1024, 512, 64), (700, 256, 64), (2048, 2048, 16)]


def cases_of(inputs: int, outputs: int, batch: int, density: float, backward: bool) -> dict[str, object]:
    """A step, or the forward pass alone, of the layer: alone, and behind a delay in both forms."""
    torch.manual_seed(0)
    x = torch.rand(STEPS, batch, inputs).lt(density).float().requires_grad_()
    fc, delay = nn.Linear(inputs, outputs, bias=False), pl.Delay(inputs, 20)
    grad = torch.randn(STEPS, batch, outputs)
    skip = Backend().skips("linear", x, fc.weight)

    def together() -> torch.Tensor:
        whole, late = delay.between()
        return linear_of_delayed(x, fc.weight, whole.long(), late)

    forms = {
        "alone": lambda: linear_of_spikes(x, fc.weight, skip) if skip.any else fc(x),
        "apart": lambda: fc(delay(x)),
        "together": together,
    }

    def step(form):
        with torch.set_grad_enabled(backward):
            y = form()
        if backward:
            for tensor in (x, fc.weight, delay.delay):
                tensor.grad = None
            y.backward(grad)

    return {name: lambda form=form: step(form) for name, form in forms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.02, help="share of spikes")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, one thread, T = {STEPS}, {100 * given.density:g} % spikes")
    print("Times the layer's alone: median [least, most]; milliseconds of the layer alone")
    for inputs, outputs, batch in SHAPES:
        for backward in (True, False):
            seconds = alternate(cases_of(inputs, outputs, batch, given.density, backward), given.rounds)
            parts = [f"{inputs} to {outputs}, {batch} samples, {'step' if backward else 'forward'}"]
            for name in ("apart", "together"):
                ratios = [a / b for a, b in zip(seconds[name], seconds["alone"], strict=True)]
                parts.append(f"{name} {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
            print("; ".join(parts), f"; {1000 * statistics.median(seconds['alone']):.1f} ms")


if __name__ == "__main__":
    main()
