"""A network's cost as a torchmetrics metric, over as many batches as one likes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from plif_lightning.deploy.costs import cost
from plif_lightning.network import SpikingNetwork


class SynapticOperations(Metric):
    """Operations of a sample, on average: `accumulates` (inputs that spike) and `macs` (others, and neurons' leak).

    `update(net, x)` runs the network on x [T, N, C, H, W] or [N, C, H, W]; `compute()` gives both in a dictionary.
    """

    full_state_update = False
    accumulates: Tensor
    macs: Tensor
    samples: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name in ("accumulates", "macs", "samples"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, net: SpikingNetwork, x: Tensor) -> None:
        """Adds the samples of a batch."""
        found = cost(net, x)
        self.accumulates += found.total("accumulates") * found.samples
        self.macs += found.total("macs") * found.samples
        self.samples += found.samples

    def compute(self) -> dict[str, Tensor]:
        """Operations of a sample."""
        return {"accumulates": self.accumulates / self.samples, "macs": self.macs / self.samples}
