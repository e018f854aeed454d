"""Each form of a layer against the reference on a device; convolutions against exact ones."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from plif_lightning import neurons
from plif_lightning.kernels import Backend, dense
from plif_lightning.kernels.trust import difference, failure_of
from plif_lightning.network.network import SpikingNetwork, use_backend
from plif_lightning.network.user_networks import has_votes
from plif_lightning.structure import NEURONS

_BLOCKS = "c8k3s1-BN-PLIF-{}k2s2-c8k5s2-BN-PLIF-FC20-PLIF-FC8-PLIF"
# Form -> structure, whether its input is a static image, and arguments of the network.
_FORMS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "frames, max-pool": (_BLOCKS.format("MP"), False, {}),
    "frames, average pool": (_BLOCKS.format("AP"), False, {}),
    "held image": (_BLOCKS.format("MP"), True, {}),
    "BN of all steps": (_BLOCKS.format("MP"), False, {"norm_statistics": "all_steps"}),
    "residual sums": ("c8k3s1-BN-PLIF-ADD(c8k3s1-BN-PLIF-c8k3s1-BN)-PLIF-AP-FC8b", False, {}),
    "event-driven": (_BLOCKS.format("MP"), False, {"sparse": "always"}),
    "recurrent layer": ("FC32-PLIF-RFC32-PLIF-FC8-PLIF", False, {}),
    "delays": ("FC32-PLIF-DELAY(max_delay=2)-FC32-PLIF-FC8-PLIF", False, {"sparse": "always"}),
    "learned thresholds": (_BLOCKS.format("MP"), False, {"learn_threshold": True, "tau_per": "channel"}),
}
# Rounding moves a spike now and then: shares of votes, and of a gradient's length, that may differ.
_VOTES, _GRADIENT = 0.01, 0.1


def _network_difference(structure: str, static: bool, settings: dict[str, Any], device: torch.device) -> str:
    """How votes and gradients of a network differ from the reference's; empty if they do not."""
    torch.manual_seed(0)
    fused_net = SpikingNetwork((2, 16, 16), 8, 4, structure=structure, pool_ties="first", **settings).to(device)
    for module in fused_net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.bias)  # so that all layers fire
    x = (torch.rand((8, 2, 16, 16) if static else (4, 8, 2, 16, 16), device=device) < 0.3).float() * 3
    label = torch.arange(8, device=device)
    outputs = []
    for net in (fused_net, use_backend(copy.deepcopy(fused_net), "reference")):
        votes = net(x)
        functional.cross_entropy(10 * votes.mean(0), label).backward()
        outputs.append([votes.detach(), *(p.grad for p in net.parameters() if p.grad is not None)])
    share = (outputs[0][0] != outputs[1][0]).float().mean().item() if has_votes(fused_net) else 0.0
    if share > _VOTES:
        return f"{100 * share:.1f} % of the votes differ"
    least = 1e-3 * max(b.norm().item() for b in outputs[1])  # a gradient that cancels to nothing is rounding
    largest = max(((a - b).norm() / b.norm().clamp(min=least)).item() for a, b in zip(*outputs, strict=True))
    return "" if largest < _GRADIENT else f"votes or a gradient differ by {100 * largest:.0f} %"


class Convolution(NamedTuple):
    """A convolution with half of its kernel, dilated, as padding, 4 samples."""

    kernel: tuple[int, int]
    size: tuple[int, int]
    stride: int
    channels: tuple[int, int]
    innermost: bool
    dtype: torch.dtype
    dilation: int = 1
    groups: int = 1

    def difference(self) -> str:
        """How output and gradients differ from exact ones; empty if they do not.

        Errors are shares of the largest exact value, compared with `_ROUNDING`.
        """
        (height, width), (inputs, outputs) = self.kernel, self.channels
        x = torch.randn(4, inputs, *self.size)
        of_group = inputs // self.groups
        weight = torch.randn(outputs, of_group, height, width) / (of_group * height * width) ** 0.5
        x, weight = (value.to(self.dtype) for value in (x, weight))
        x = x.to(memory_format=torch.channels_last if self.innermost else torch.contiguous_format)
        padding = self.dilation * (height // 2), self.dilation * (width // 2)
        settings: Any = {
            "stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups
        }  # fmt: skip
        exact, own = ([v.detach().to(t).requires_grad_() for v in (x, weight)] for t in (torch.float64, self.dtype))
        expected = functional.conv2d(exact[0], exact[1], **settings)
        own_output = dense.conv2d(own[0], own[1], **settings)
        grad = torch.randn(own_output.shape).to(self.dtype)
        expected.backward(grad.double())
        own_output.backward(grad)
        for name, value, other in (
            ("output", own_output, expected),
            ("gradient of the input", own[0].grad, exact[0].grad),
            ("gradient of the weight", own[1].grad, exact[1].grad),
            ("conv2d_input", dense.conv2d_input(x.shape, weight, grad, **settings), exact[0].grad),
            ("conv2d_weight", dense.conv2d_weight(x, weight.shape, grad, **settings), exact[1].grad),
        ):
            assert value is not None
            assert other is not None
            error = ((value.double() - other).abs().max() / other.abs().max().clamp(min=_TINY)).item()
            if not error <= _ROUNDING[self.dtype]:  # NaN is not
                return f"{name} of {self} by {100 * error:.2g} %"
        return ""


# In bfloat16 oneDNN also rounds the sums of blocks of channels (AMD EPYC, Zen 4: 1.6 % from 128 channels on).
_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-5}
_TINY = 1e-3  # of values that are zero in truth
# Kernel, map, stride, channels: oneDNN was wrong there in bfloat16, see `kernels.onednn`: in gradients of the weight
# (Zen 4), in the last row in outputs (Intel with AMX).
_WRONG = [
    ((3, 3), (1, 1), 2, (16, 16)), ((3, 3), (1, 1), 3, (160, 16)), ((5, 5), (1, 1), 2, (16, 128)),
    ((7, 7), (1, 1), 2, (16, 16)), ((2, 2), (1, 1), 2, (16, 16)), ((4, 4), (1, 1), 3, (128, 128)),
    ((3, 3), (14, 1), 2, (16, 16)), ((3, 3), (1, 14), 2, (16, 16)), ((3, 3), (9, 2), 3, (16, 128)),
    ((2, 2), (9, 1), 2, (160, 128)), ((7, 7), (4, 1), 2, (16, 128)), ((5, 3), (1, 1), 3, (16, 128)),
    ((3, 5), (2, 1), 3, (128, 16)), ((5, 5), (1, 7), 1, (128, 128)), ((7, 7), (1, 5), 1, (128, 16)),
    ((7, 7), (2, 2), 1, (160, 128)), ((5, 3), (1, 2), 1, (128, 128)), ((7, 7), (2, 14), 1, (128, 128)),
    ((3, 3), (4, 2), 3, (128, 128)), ((5, 3), (5, 3), 3, (160, 128)), ((2, 2), (6, 1), 2, (128, 128)),
]  # fmt: skip
# Channels, groups, kernel, dilation of dilated ones (Zen 5).
_WRONG_DILATED = [
    (24, 1, 3, 2), (17, 1, 5, 3), (40, 1, 3, 3), (8, 8, 3, 2), (32, 32, 3, 2), (32, 16, 5, 2), (36, 4, 3, 2),
    (48, 2, 3, 3), (6, 6, 1, 2),
]  # fmt: skip
SEEN_WRONG = (
    *(
        Convolution(kernel, size, stride, channels, innermost, torch.bfloat16)
        for kernel, size, stride, channels in _WRONG
        for innermost in (False, True)
    ),
    *(
        Convolution((kernel, kernel), size, 1, (channels, channels), True, torch.bfloat16, dilation, groups)
        for channels, groups, kernel, dilation in _WRONG_DILATED
        for size in ((29, 29), (5, 29))
    ),
)


def _convolutions_difference() -> str:
    """The first difference among the convolutions that were wrong somewhere; empty if there is none."""
    torch.manual_seed(0)
    return next(filter(None, (convolution.difference() for convolution in SEEN_WRONG)), "")


def comparisons(device: torch.device) -> Iterator[tuple[str, str]]:
    """(name, difference from the reference) of each neuron and form on a device; empty where they are equal."""
    if Backend().chosen(device) == "reference":
        yield "kernels", "none runs on this device, such as where Triton is not installed: the reference does"
        return
    for name in NEURONS:
        yield name, failure_of(partial(difference, getattr(neurons, name)().dynamics, device))
    if device.type == "cpu":
        yield f"{len(SEEN_WRONG)} convolutions", failure_of(_convolutions_difference)
    for name, form in _FORMS.items():
        yield name, failure_of(partial(_network_difference, *form, device))
