"""A trained network for inference on an ordinary CPU: frozen, BN folded, each layer in its fastest form."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plif_lightning.deploy.folding import fold
from plif_lightning.deploy.layers import is_usual, layers, takes_spikes
from plif_lightning.errors import UserError
from plif_lightning.kernels import conv_of_table, linear_of_table, table_of
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.network.blocks import ConvBlock, FCBlock
from plif_lightning.neurons import Neuron
from plif_lightning.runtime.timing import least_seconds

_log = logging.getLogger(__name__)
Engine = Literal["auto", "dense", "events", "int16", "int8", "int4"]
_LARGEST = {"int16": 2**15 - 1, "int8": 2**7 - 1, "int4": 2**3 - 1}


def quantised(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """A weight [O, *] as integers from -largest to largest, and the scale of each output [O].

    The input is spikes, which are exact, so nothing but the weight is rounded, and no data is needed to choose scales.
    """
    scale = weight.detach().flatten(1).abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / largest
    integers = (weight.detach() / scale.view(-1, *[1] * (weight.dim() - 1))).round()
    return integers.to(torch.int8 if largest < 2**7 else torch.int16), scale.float()


class _Frozen(nn.Module):
    """A layer whose weight is kept as rows that spikes add up; float32, or integers with a scale for each output."""

    table: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, largest: int | None) -> None:
        super().__init__()
        scale = None
        if largest is not None:
            if weight[0].numel() * largest >= 2**31:
                raise UserError(f"{weight[0].numel()} inputs are too many for weights up to {largest}: take int8.")
            weight, scale = quantised(weight, largest)
        self.register_buffer("table", table_of(weight))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())


class FrozenConv(_Frozen):
    """3x3 convolution of spikes [N, C, H, W] with padding 1."""

    def forward(self, x: Tensor) -> Tensor:
        y = conv_of_table(x, self.table, self.scale)
        return y if self.bias is None else y.add_(self.bias[:, None, None])


class FrozenLinear(_Frozen):
    """FC layer of spikes [*, K]."""

    def forward(self, x: Tensor) -> Tensor:
        return linear_of_table(x, self.table, self.scale)


class DeployedNetwork(nn.Module):
    """A network that only infers, on a CPU, in float32; see `deployed`.

    Attributes:
        forms: of each layer: dense, events, int16, int8 or int4.
        net: the folded network with its layers in these forms.
    """

    def __init__(self, net: SpikingNetwork, forms: dict[str, str]) -> None:
        super().__init__()
        self.net = fold(net).float().cpu().requires_grad_(False)
        self.forms = forms
        for name, block in layers(self.net).items():
            _give_form(block, forms[name])

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes] for x [T, N, C, H, W] or static images [N, C, H, W]."""
        return self.net(x)

    def neurons(self) -> Iterator[tuple[str, Neuron]]:
        """(layer name, neuron) of every spiking layer, from input to output."""
        return self.net.neurons()


def _give_form(block: nn.Module, form: str) -> None:
    use_backend(block, "cpu", "never")
    if form == "dense":
        return
    largest = _LARGEST.get(form)
    if isinstance(block, ConvBlock):
        block.conv = FrozenConv(block.conv.weight, block.conv.bias, largest)  # type: ignore[assignment]
    elif isinstance(block, FCBlock):
        block.fc = FrozenLinear(block.fc.weight, None, largest)  # type: ignore[assignment]


def _spiking_layers(net: SpikingNetwork) -> dict[str, bool]:
    """Whether each layer may be given another form: it is a usual one, and its input is zeros and ones."""
    blocks = layers(net)
    return {name: takes and is_usual(blocks[name]) for name, takes in takes_spikes(net).items()}


def deployed(net: SpikingNetwork, engine: Engine = "auto", x: Tensor | None = None) -> DeployedNetwork:
    """A frozen copy of a network for inference on a CPU.

    Args:
        net: trained.
        engine: `dense`: the library's convolutions and FC layers. `events`: they touch only what spiked; the sums are
            those of the network with `sparse="always"`, to the bit. `int16`, `int8`, `int4`: the same with weights
            rounded to so many bits, the first layer's aside. `auto`: for each layer the faster of dense and events, by
            trying both on x.
        x: some inputs, as they will come: frames [T, N, C, H, W] or static images [N, C, H, W]; for `auto`.

    A layer of another kind than the paper's, or with hooks, stays as it is (`dense`).

    Raises:
        UserError: an unknown engine; `auto` without x; BN cannot be folded; a layer is too large for sums of int32.
    """
    if engine not in get_args(Engine):
        raise UserError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")
    spikes = _spiking_layers(net)
    if engine == "auto":
        if x is None or x.numel() == 0:
            raise UserError("engine='auto' tries each layer's forms on inputs as they will come: pass x.")
        forms = _fastest(net, spikes, x)
    else:
        forms = {name: engine if takes else "dense" for name, takes in spikes.items()}
    made = DeployedNetwork(net, forms)
    _log.info("deployed: %s", ", ".join(f"{name} {form}" for name, form in forms.items()))
    return made


@torch.no_grad()
def _fastest(net: SpikingNetwork, spikes: dict[str, bool], x: Tensor) -> dict[str, str]:
    dense = DeployedNetwork(net, dict.fromkeys(spikes, "dense"))
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name, block in layers(dense.net).items():

        def keep(module: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
            inputs[name] = given[0]

        hooks.append(block.register_forward_pre_hook(keep))
    dense(x)
    for hook in hooks:
        hook.remove()
    forms = {}
    for name, block in layers(dense.net).items():
        forms[name] = "dense"
        if spikes[name]:
            of_form = _forms(block, inputs[name])
            seconds = {form: least_seconds(run) for form, run in of_form.items()}
            forms[name] = min(seconds, key=seconds.__getitem__)
    return forms


def _forms(block: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    if isinstance(block, ConvBlock):
        images = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        frozen, conv = FrozenConv(block.conv.weight, block.conv.bias, None), block.conv
        return {"dense": lambda: F.conv2d(images, conv.weight, conv.bias, padding=1), "events": lambda: frozen(images)}
    assert isinstance(block, FCBlock)
    rows, fc = FrozenLinear(block.fc.weight, None, None), block.fc
    return {"dense": lambda: F.linear(x, fc.weight), "events": lambda: rows(x)}
