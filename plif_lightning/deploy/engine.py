"""A trained network for inference on an ordinary CPU: frozen, BN folded, each layer in its fastest form."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from plif_lightning.deploy.folding import fold
from plif_lightning.deploy.integers import LARGEST, PackedConv, PackedLinear, can_be_packed, quantised
from plif_lightning.deploy.layers import event_layers, network_of, spiking_layers, weighted
from plif_lightning.deploy.prepared import PlainConv, Prepared
from plif_lightning.deploy.rows import RowsConv, RowsLinear
from plif_lightning.errors import UserError
from plif_lightning.kernels import SparseMaps
from plif_lightning.network import SpikingNetwork, step, use_backend
from plif_lightning.network.blocks import ConvBlock, images_channels_last
from plif_lightning.neurons import Neuron
from plif_lightning.runtime.timing import least_seconds

_log = logging.getLogger(__name__)
Engine = Literal["auto", "dense", "events", "int16", "int8", "int4"]
# Inputs of layers of which nothing is known, and how many of them are not zero: frames of events, and as in trained
# networks.
_USUAL_SHARE_OF_EVENTS, _USUAL_SHARE = 0.01, 0.1
# Forms are tried on no more: all layers' inputs are in memory for that.
_MOST_SAMPLES = 16


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
        self._prepared: Prepared | None = None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes] for x [T, N, C, H, W] or static images [N, C, H, W], float32 or whole numbers."""
        calls, as_floats = self._calls(), x if x.is_floating_point() else x.float()
        return calls(as_floats) if calls.fits(as_floats) else self.net(x)

    @torch.no_grad()
    def step(self, frame: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """One time-step, as `plif_lightning.step` of `net`: votes [N, num_classes] and the potential of each neuron."""
        calls, as_floats = self._calls(), frame if frame.is_floating_point() else frame.float()
        return calls.step(as_floats, state) if calls.goes_on(as_floats, state) else step(self.net, frame, state)

    def _calls(self) -> Prepared:
        if self._prepared is None or not self._prepared.is_current():
            self._prepared = Prepared(self.net)
        return self._prepared

    def train(self, mode: bool = True) -> "DeployedNetwork":
        """Stays in evaluation mode: there is nothing to train."""
        return super().train(False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    def neurons(self) -> Iterator[tuple[str, Neuron]]:
        """(layer name, neuron) of every spiking layer, from input to output."""
        return self.net.neurons()


def require_engine(engine: str) -> None:
    """Refuses a name that is none of the engines.

    Raises:
        UserError: it is not.
    """
    if engine not in get_args(Engine):
        raise UserError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")


def deployed(
    net: SpikingNetwork, engine: Engine = "auto", x: Tensor | None = None, *, time_steps: int | None = None
) -> DeployedNetwork:
    """A frozen copy of a network for inference on a CPU.

    Args:
        net: trained.
        engine: `dense`: the library's convolutions and FC layers. `events`: they touch only what spiked; the sums are
            those of the network with `sparse="always"`, to the bit. `auto`: for each layer the faster of the two.
            `int16`, `int8`, `int4`: weights rounded to so many bits, the first layer's aside, which is as with `auto`;
            for each layer the faster of touching only what spiked and the library's 8-bit instructions, which give the
            same numbers.
        x: some inputs, as they will come: frames [T, N, C, H, W] or static images [N, C, H, W]. The forms of each layer
            are tried on the first 16 of them. `auto` needs x; forms of integers are else tried on random spikes, one
            in ten inputs of one sample.
        time_steps: how many come at a time, where x is not given and it is not the network's T: 1 for a stream.

    A layer of another kind than the paper's, or with hooks, stays as it is (`dense`). Hooks hear the trial, too.

    Raises:
        UserError: an unknown engine; `auto` without x; BN cannot be folded; a layer is too large for sums of int32.
    """
    require_engine(engine)
    net = network_of(net)
    x = None if x is None or x.numel() == 0 else x.float()
    if engine == "auto" and x is None:
        raise UserError("engine='auto' tries each layer's forms on inputs as they will come: pass x.")
    made = DeployedNetwork(net)
    if engine != "dense":
        blocks, inputs = made.net.blocks(), {} if engine == "events" else inputs_of(made, x, time_steps)
        spiking, of_events = spiking_layers(net), event_layers(net, x)
        before, hand_over_bits = dict(pairwise(reversed(blocks))), set()
        for name in [*of_events, *spiking]:
            block, given = blocks[name], inputs.get(name)
            as_bits = before.get(name) in hand_over_bits
            forms = forms_of(block, engine, given, binary=name in spiking)
            best = next(iter(forms))
            if given is not None and len(forms) > 1:
                best = _fastest(block, forms, given, as_bits)
            setattr(block, weighted(block), forms[best])
            made.forms[name] = best
            if "events" in best and isinstance(block, ConvBlock) and block.pool_name != "avg":
                hand_over_bits.add(name)
    _log.info("deployed: %s", ", ".join(f"{name} {form}" for name, form in made.forms.items()))
    return made


def forms_of(block: nn.Module, engine: Engine, x: Tensor | None, *, binary: bool = True) -> dict[str, nn.Module]:
    """The forms of a block's layer that an engine chooses from.

    Args:
        block: of a folded network.
        engine: the engine.
        x: an input of the block.
        binary: whether its inputs are spikes; else they are events.
    """
    layer: Any = block.get_submodule(weighted(block))
    of_conv = isinstance(block, ConvBlock)
    rows = partial(RowsConv, binary=binary) if of_conv else RowsLinear
    packed = PackedConv if of_conv else PackedLinear
    weight, bias = layer.weight.detach(), layer.bias
    if engine not in LARGEST or not binary:
        events: dict[str, nn.Module] = {"events": rows(weight, None, bias)}
        return events if engine == "events" else {**events, "dense": layer}
    largest = LARGEST[engine]
    if weight[0].numel() * largest >= 2**31:
        raise UserError(f"{weight[0].numel()} inputs are too many for weights up to {largest}: take int8.")
    integers, scale = quantised(weight, largest)
    forms: dict[str, nn.Module] = {f"{engine} events": rows(integers, scale, bias)}
    if can_be_packed(integers):
        like = None if x is None else x.flatten(0, -4).shape if x.dim() == 5 else x.flatten(0, -2).shape
        forms[f"{engine} dense"] = packed(integers, scale, bias, like)
    return forms


@torch.no_grad()
def _fastest(block: nn.Module, forms: dict[str, nn.Module], x: Tensor, as_bits: bool) -> str:
    """The form with which a block takes the least time for x; `as_bits`: the block before hands over bits."""
    runs = [runs_alone(block, form, x, as_bits) for form in forms.values()]
    return min(zip(least_seconds(*runs), forms, strict=True))[1]


def runs_alone(block: nn.Module, form: nn.Module, x: Tensor, as_bits: bool = False) -> Callable[[], Any]:
    """A block with its layer in a form, ready to be timed: of an FC layer that layer alone.

    Args:
        block: of a folded network; keeps its own layer.
        form: one of `forms_of` it.
        x: maps [T, N, C, H, W], or rows.
        as_bits: whether x are spikes that the block before hands over as bits.
    """
    if not isinstance(block, ConvBlock):
        return partial(form, x)
    images = images_channels_last(x.flatten(0, 1))
    plain = PlainConv(block, form)
    return partial(plain, SparseMaps.of(images, binary=True) if as_bits else images, len(x), len(x))


def inputs_of(made: DeployedNetwork, x: Tensor | None, time_steps: int | None = None) -> dict[str, Tensor]:
    """What x gives to each layer, maps [T, N, C, H, W] or rows [R, K]; random spikes without x, or where it gives none.

    Args:
        made: not used for anything else at the time.
        x: as `deployed` takes it.
        time_steps: of random spikes; the network's T where it is None.
    """
    net, known = made.net, x is not None
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
        made(x[:, :_MOST_SAMPLES] if frames else x[:_MOST_SAMPLES])
    generator = torch.Generator().manual_seed(0)
    share = _USUAL_SHARE_OF_EVENTS
    for name, given in inputs.items():
        if not known or not given.any():
            given = torch.rand(given.shape, generator=generator).lt(share).float()
        inputs[name], share = given if given.dim() == 5 else given.flatten(0, -2), _USUAL_SHARE
    return inputs
