"""GLIF with a conductance for each time-step, as Yao et al. 2022 have it: a network of one's own, a loop in PyTorch.

With this file and glif_steps.yaml in the working directory:

python main.py fit --config glif_steps.yaml
"""

import torch
from torch import Tensor, nn


class Spike(torch.autograd.Function):
    """1 above the threshold; the surrogate's gradient is 1 within 0.2 of it."""

    @staticmethod
    def forward(ctx, v, threshold):
        ctx.save_for_backward(v - threshold)
        return (v > threshold).to(v)

    @staticmethod
    def backward(ctx, grad):
        near = grad * (ctx.saved_tensors[0].abs() < 0.2)
        return near, -near if ctx.needs_input_grad[1] else None


class GLIF(nn.Module):
    """Spikes [T, N, F] of inputs x [T, N, F]; every parameter is a sigmoid, its start is the benchmark's."""

    def __init__(self, features: int, time_steps: int):
        super().__init__()
        starts = {"alpha": 0.65, "beta": 0.35, "gamma": 0.65, "keep": 0.25, "threshold": 0.5, "decay": 0.0625}
        starts["subtract"] = 0.5
        self.raw = nn.ParameterDict(
            {name: torch.full((features,), start).logit() for name, start in starts.items()}
            | {"conduct": torch.full((time_steps, features), 0.5).logit()}
        )

    def forward(self, x: Tensor) -> Tensor:
        p = {name: raw.sigmoid() for name, raw in self.raw.items()}
        v = s = torch.zeros_like(x[0])
        spikes = []
        for step, conduct in zip(x, p["conduct"], strict=True):
            leaked = (1 - p["alpha"] * (1 - p["keep"])) * v * (1 - p["gamma"] * s) - (1 - p["alpha"]) * p["decay"]
            v = leaked + step * (1 - p["beta"] * (1 - conduct)) - (1 - p["gamma"]) * p["subtract"] * s
            s = Spike.apply(v, p["threshold"])
            spikes.append(s)
        return torch.stack(spikes)


class Network(nn.Module):
    time_aware = True

    def __init__(self, num_classes: int, time_steps: int, features: int = 64):
        super().__init__()
        first, second = GLIF(features, time_steps), GLIF(features, time_steps)
        self.layers = nn.Sequential(nn.Linear(2, features), first, nn.Linear(features, features), second)
        self.readout = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.layers(x)[-1]).expand(len(x), -1, -1)
