"""A trained network for inference on an ordinary CPU: frozen, BN folded, each layer in its fastest form."""

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from plif_lightning.deploy.folding import fold
from plif_lightning.deploy.integers import LARGEST, PackedConv, PackedLinear, can_be_packed, quantised
from plif_lightning.deploy.layers import spiking_layers, weighted
from plif_lightning.errors import UserError
from plif_lightning.kernels import conv_of_table, linear_of_table, table_of
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.network.blocks import ConvBlock, images_channels_last
from plif_lightning.neurons import Neuron
from plif_lightning.runtime.timing import least_seconds

_log = logging.getLogger(__name__)
Engine = Literal["auto", "dense", "events", "int16", "int8", "int4"]
# Spikes for layers of which nothing is known: as in trained networks, one in ten inputs.
_USUAL_SHARE = 0.1


class _Frozen(nn.Module):
    """A layer whose weight is kept as rows that spikes add up; float32, or integers with a scale for each output."""

    table: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("table", table_of(weight))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)


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
        forms: of each layer: dense or events; of integers `int8 dense`, `int8 events` and so on.
        net: the folded network with its layers in these forms.
    """

    def __init__(self, net: SpikingNetwork) -> None:
        super().__init__()
        self.net = fold(net).float().cpu().requires_grad_(False)
        self.forms = dict.fromkeys(self.net.blocks(), "dense")
        for block in self.net.blocks().values():
            use_backend(block, "cpu", "never")

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes] for x [T, N, C, H, W] or static images [N, C, H, W]."""
        return self.net(x)

    def neurons(self) -> Iterator[tuple[str, Neuron]]:
        """(layer name, neuron) of every spiking layer, from input to output."""
        return self.net.neurons()


def deployed(net: SpikingNetwork, engine: Engine = "auto", x: Tensor | None = None) -> DeployedNetwork:
    """A frozen copy of a network for inference on a CPU.

    Args:
        net: trained.
        engine: `dense`: the library's convolutions and FC layers. `events`: they touch only what spiked; the sums are
            those of the network with `sparse="always"`, to the bit. `auto`: for each layer the faster of the two.
            `int16`, `int8`, `int4`: weights rounded to so many bits, the first layer's aside; for each layer the faster
            of touching only what spiked and the library's 8-bit instructions, which give the same numbers.
        x: some inputs, as they will come: frames [T, N, C, H, W] or static images [N, C, H, W]. The forms of each layer
            are tried on them. `auto` needs x; forms of integers are else tried on random spikes of one sample.

    A layer of another kind than the paper's, or with hooks, stays as it is (`dense`).

    Raises:
        UserError: an unknown engine; `auto` without x; BN cannot be folded; a layer is too large for sums of int32.
    """
    if engine not in get_args(Engine):
        raise UserError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")
    if engine == "auto" and (x is None or x.numel() == 0):
        raise UserError("engine='auto' tries each layer's forms on inputs as they will come: pass x.")
    made = DeployedNetwork(net)
    if engine != "dense":
        blocks, inputs = made.net.blocks(), {} if engine == "events" else _inputs(made, x)
        for name in spiking_layers(net):
            forms = _forms(blocks[name], engine, inputs.get(name))
            made.forms[name] = _fastest(forms, inputs[name]) if len(forms) > 1 else next(iter(forms))
            setattr(blocks[name], weighted(blocks[name]), forms[made.forms[name]])
    _log.info("deployed: %s", ", ".join(f"{name} {form}" for name, form in made.forms.items()))
    return made


def _forms(block: nn.Module, engine: Engine, x: Tensor | None) -> dict[str, nn.Module]:
    """The forms of a block's layer that an engine chooses from; x is an input of the layer."""
    layer: Any = block.get_submodule(weighted(block))
    rows, packed = (FrozenConv, PackedConv) if isinstance(block, ConvBlock) else (FrozenLinear, PackedLinear)
    weight, bias = layer.weight.detach(), layer.bias
    if engine not in LARGEST:
        events: dict[str, nn.Module] = {"events": rows(weight, None, bias)}
        return events if engine == "events" else {**events, "dense": layer}
    largest = LARGEST[engine]
    if weight[0].numel() * largest >= 2**31:
        raise UserError(f"{weight[0].numel()} inputs are too many for weights up to {largest}: take int8.")
    integers, scale = quantised(weight, largest)
    forms: dict[str, nn.Module] = {f"{engine} events": rows(integers, scale, bias)}
    if can_be_packed(integers):
        forms[f"{engine} dense"] = packed(integers, scale, bias, None if x is None else x.shape)
    return forms


@torch.no_grad()
def _fastest(forms: dict[str, nn.Module], x: Tensor) -> str:
    seconds = {name: least_seconds(partial(form, x)) for name, form in forms.items()}
    return min(seconds, key=seconds.__getitem__)


def _inputs(made: DeployedNetwork, x: Tensor | None) -> dict[str, Tensor]:
    """What x gives to each layer, images [N, C, H, W] or rows [R, K]; random spikes where it gives none."""
    if x is None or x.numel() == 0:
        x = torch.zeros(made.net.time_steps, 1, *made.net.input_shape)
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name, block in made.net.blocks().items():

        def keep(module: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
            inputs[name] = given[0]

        hooks.append(block.register_forward_pre_hook(keep))
    with made.net.for_time_steps(len(x) if x.dim() == 5 else made.net.time_steps):  # a stream's inputs are one step
        made(x)
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(0)
    for name, given in inputs.items():
        if not given.any():
            given = torch.rand(given.shape, generator=generator).lt(_USUAL_SHARE).float()
        maps = given.dim() == 5
        inputs[name] = images_channels_last(given.flatten(0, 1)) if maps else given.flatten(0, -2)
    return inputs
