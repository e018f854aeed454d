"""A trained network for inference on an ordinary CPU: frozen, BN folded, each layer in its fastest form."""

import copy
import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.deploy.engines import Engine, require_engine
from plif_lightning.deploy.folding import fold
from plif_lightning.deploy.layers import event_layers, network_of, refuses_containers, spiking_layers, weighted
from plif_lightning.deploy.plain import ConvLayer, DeployedNetwork, FCLayer, Layer, ModuleLayer
from plif_lightning.deploy.weights import LARGEST, Dense, Packed, Rows, Weights, can_be_packed, quantised
from plif_lightning.errors import UserError
from plif_lightning.kernels import SparseMaps
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.network.blocks import refuses_block
from plif_lightning.network.conv import ConvBlock, images_channels_last
from plif_lightning.runtime.timing import least_seconds

_log = logging.getLogger(__name__)
# Inputs of layers of which nothing is known, and how many of them are not zero: frames of events, and as in trained
# networks.
_USUAL_SHARE_OF_EVENTS, _USUAL_SHARE = 0.01, 0.1
# Forms are tried on no more: all layers' inputs are in memory for that.
_MOST_SAMPLES = 16


def deployed(
    net: SpikingNetwork, engine: Engine = "auto", x: Tensor | None = None, *, time_steps: int | None = None
) -> DeployedNetwork:
    """A frozen copy of a network for inference on a CPU.

    Args:
        net: trained.
        engine: `dense`: the library's convolutions and FC layers. `events`: event-driven ones, whose sums are those of
            the network with `sparse="always"`, to the bit. `auto`: for each layer the faster of the two. `int16`,
            `int8`, `int4`: weights rounded to so many bits, except for the first layer, which is as with `auto`; for
            each layer the faster of event-driven sums and the library's 8-bit instructions, with equal results.
        x: typical inputs: frames [T, N, C, H, W] or static images [N, C, H, W]. The forms of each layer are timed on
            the first 16 of them. `auto` needs x; forms of integers are timed on random spikes without it, with a
            density of 0.1, for one sample.
        time_steps: steps per call, if x is not given and it is not the network's T: 1 for a stream.

    A layer that the kernels do not support, or with hooks, stays as it is (`dense`). Hooks are called in the trial,
    too.

    Raises:
        UserError: an unknown engine; `auto` without x; BN cannot be folded; a layer is too large for sums of int32.
    """
    require_engine(engine)
    net = network_of(net)
    x = None if x is None or x.numel() == 0 else x.float()
    if engine == "auto" and x is None:
        raise UserError("engine='auto' tries each layer's forms on inputs as they will come: pass x.")
    folded = fold(copy.deepcopy(net).float()).cpu().requires_grad_(False)
    use_backend(folded, "cpu", "never")
    inputs = {} if engine in ("dense", "events") else inputs_of(folded, x, time_steps)
    spiking = spiking_layers(net)
    free = [] if engine == "dense" or refuses_containers(net) else [*event_layers(net, x), *spiking]
    layers: list[Layer] = []
    chosen: dict[str, str] = {}
    for name, block in folded.blocks().items():
        room = "encoder" if name in dict(folded.encoder.named_children()) else "classifier"
        if (reason := refuses_block(block)) is not None:
            _log.info("deployed: %s stays as it is: %s", name, reason)
            forms: dict[str, Layer] = {"dense": ModuleLayer(f"{room}.{name}", block, flat=room == "classifier")}
        else:
            given, kind = inputs.get(name), ConvLayer if isinstance(block, ConvBlock) else FCLayer
            makers = forms_of(block, engine if name in free else "dense", given, binary=name in spiking)
            forms = {form: kind(f"{room}.{name}.neuron", block, make()) for form, make in makers.items()}
        chosen[name] = _best(forms, inputs.get(name), layers[-1] if layers else None)
        layers.append(forms[chosen[name]])
    _log.info("deployed: %s", ", ".join(f"{name} {form}" for name, form in chosen.items()))
    return DeployedNetwork(folded, layers, chosen)


def forms_of(
    block: nn.Module, engine: Engine, x: Tensor | None, *, binary: bool = True
) -> dict[str, Callable[[], Weights]]:
    """The forms of a block's weight that an engine chooses from.

    Args:
        block: of a folded network.
        engine: the engine.
        x: an input of the block.
        binary: its inputs are spikes; else they are events.
    """
    layer = getattr(block, weighted(block))
    weight, stride = layer.weight.detach(), layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
    forms: dict[str, Callable[[], Weights]] = {
        "events": lambda: Rows(weight, binary=binary, stride=stride), "dense": lambda: Dense(weight, stride)
    }  # fmt: skip
    if engine in ("events", "dense"):
        return {engine: forms[engine]}
    if engine == "auto" or not binary:
        return forms
    largest = LARGEST[engine]
    if weight[0].numel() * largest >= 2**31:
        raise UserError(f"{weight[0].numel()} inputs are too many for weights up to {largest}: take int8.")
    integers, scale = quantised(weight, largest)
    forms = {f"{engine} events": lambda: Rows(integers, scale, stride=stride)}
    if can_be_packed(integers):
        like = None if x is None else x.flatten(0, -4).shape if x.dim() == 5 else x.flatten(0, -2).shape
        forms[f"{engine} dense"] = lambda: Packed(integers, scale, like, stride)
    return forms


@torch.no_grad()
def _best(forms: dict[str, Layer], x: Tensor | None, before: Layer | None) -> str:
    """The form of a layer that takes the least time for x; the only or first one if there is nothing to try.

    Args:
        forms: the layer in each form.
        x: its input, maps [T, N, C, H, W] or rows.
        before: the layer before, which may hand over spikes as bits.
    """
    if x is None or len(forms) == 1:
        return next(iter(forms))
    return _fastest(forms, x, isinstance(before, ConvLayer) and before.event_driven)


def _fastest(forms: dict[str, Layer], x: Tensor, as_bits: bool) -> str:
    runs = [run_alone(form, x, as_bits) for form in forms.values()]
    return min(zip(least_seconds(*runs), forms, strict=True))[1]


def run_alone(layer: Layer, x: Tensor, as_bits: bool = False) -> Callable[[], Any]:
    """A layer on x, maps [T, N, C, H, W] or rows, ready to be timed; `as_bits`: given as bits."""
    if x.dim() != 5:
        return partial(layer, x, 1, 1, None)
    maps = images_channels_last(x.flatten(0, 1))
    return partial(layer, SparseMaps.of(maps, binary=True) if as_bits else maps, len(x), len(x), None)


@torch.no_grad()
def inputs_of(net: SpikingNetwork, x: Tensor | None, time_steps: int | None = None) -> dict[str, Tensor]:
    """The input of each layer, maps [T, N, C, H, W] or rows [R, K]; random spikes without x, or where it gives none.

    Args:
        net: folded.
        x: as `deployed` takes it.
        time_steps: of random spikes; the network's T where it is None.
    """
    known = x is not None
    if x is None:
        steps = (time_steps or net.time_steps,) if net.inputs.name == "direct" else ()
        x = torch.zeros(*steps, 1, *net.input_shape)
    frames = x.dim() == 5
    inputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, block in net.blocks().items():

            def keep(module: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
                inputs[name] = given[0]

            stack.callback(block.register_forward_pre_hook(keep).remove)
        stack.enter_context(net.for_time_steps(len(x) if frames else net.time_steps))
        stack.enter_context(torch.random.fork_rng(devices=[]))  # an encoder may draw
        net(x[:, :_MOST_SAMPLES] if frames else x[:_MOST_SAMPLES])
    generator = torch.Generator().manual_seed(0)
    share = _USUAL_SHARE_OF_EVENTS
    for name, given in inputs.items():
        if not known or not given.any():
            given = torch.rand(given.shape, generator=generator).lt(share).float()
        inputs[name], share = given if given.dim() == 5 else given.flatten(0, -2), _USUAL_SHARE
    return inputs
