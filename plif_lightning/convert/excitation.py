"""Make the nodes of a network fire, so that a comparison of it proves something."""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from plif_lightning.convert.recording import record_calls

# Shares of a node's outputs between which its behaviour is visible.
_SILENT, _SATURATED = 0.02, 0.8
# Thresholds above V_reset that are tried: a few for all nodes, since kernels are compiled for each.
_THRESHOLDS = (0.3, 0.1, 0.03, 0.01, 0.001, 1.0, 3.0, 10.0, 100.0)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, _BatchNorm)


def is_telling(rate: float) -> bool:
    """True if a node fires neither too rarely nor too often to prove anything."""
    return _SILENT < rate < _SATURATED


def rate_of(y: Tensor) -> float:
    """Share of a node's outputs that are not zero."""
    return (y != 0).double().mean().item()


class Excitation:
    """Random affine parameters and statistics of BN, and a threshold at which each node fires in training.

    Where a node of the user's has no threshold, the weights before it are scaled.

    Args:
        net: the network, which is changed.
        x: an example.
        nodes: its spiking neurons.
        reset: resets a network.
    """

    def __init__(
        self, net: nn.Module, x: Tensor, nodes: Collection[nn.Module], reset: Callable[[nn.Module], None]
    ) -> None:
        self.net, self.x, self.nodes, self.reset = net, x, set(nodes), reset
        self._settled: set[nn.Module] = set()

    def run(self) -> None:
        """Set thresholds, weights and statistics; the network is in training mode."""
        norms: list[Any] = [module for module in self.net.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.uniform_(norm.bias, -0.3, 0.7)
        norms = [norm for norm in norms if norm.running_mean is not None]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0  # the statistics of this call
        with ExitStack() as hooks:
            for node in self.nodes:
                if hasattr(node, "v_threshold"):
                    hooks.enter_context(node.register_forward_pre_hook(lambda node, of: self._settle(node, of[0])))
            for _ in range(12):
                if not self._run_and_rescale():
                    break
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)

    def _settle(self, node: Any, x: Tensor) -> None:
        """Set the threshold at which a node fires at a moderate rate, before its first call."""
        if node in self._settled:
            return
        self._settled.add(node)
        best = 2.0, node.v_threshold
        for threshold in (node.v_threshold, *((node.v_reset or 0.0) + above for above in _THRESHOLDS)):
            self._set_threshold(node, threshold)
            rate = rate_of(node(x))
            best = min(best, (abs(rate - 0.3), threshold))
            if 0.1 < rate < 0.5:
                break
        self._set_threshold(node, best[1])

    def _set_threshold(self, node: Any, threshold: float) -> None:
        node.v_threshold = threshold
        first_values = getattr(node, "_memories_rv", {})
        if "v_threshold" in first_values:  # clock_driven keeps it as a state, which a reset restores
            first_values["v_threshold"] = threshold
        self.reset(node)

    def _run_and_rescale(self) -> bool:
        """Run the network, and scale the weights before nodes without a threshold that do not fire, or always do."""
        self.reset(self.net)
        weighted = [module for module in self.net.modules() if isinstance(module, _WEIGHTED)]
        before, scaled = None, False
        for module, _, y in record_calls([*weighted, *self.nodes], self.net, self.x):
            if module not in self.nodes:
                before = module
            elif before is not None and not hasattr(module, "v_threshold"):
                rate = rate_of(y)
                if not is_telling(rate):
                    scaled = True
                    for parameter in before.parameters():
                        parameter.data *= 2.0 if rate <= _SILENT else 0.5
        self.reset(self.net)
        return scaled
