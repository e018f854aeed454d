"""The paper's network: spiking encoder, spiking classifier, voting."""

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor, nn

from plif_lightning.dynamics import Firing
from plif_lightning.dynamics.firing import Keywords as Keywords
from plif_lightning.errors import UserError, require_known_arguments
from plif_lightning.kernels import Backend, BackendName, Sparse
from plif_lightning.network.blocks import Blocks, FCBlock
from plif_lightning.network.conv import ConvBlock
from plif_lightning.network.hooks import Hear, listening
from plif_lightning.network.inputs import InputEncoder, InputEncoderName
from plif_lightning.network.layers import Pool2d, TimeDropout
from plif_lightning.network.norm import NormHeld, NormStatistics, TimeBatchNorm2d
from plif_lightning.network.over_time import OverTime
from plif_lightning.network.pooling import Pooling, PoolTies, SpikeMaxPool2d
from plif_lightning.network.structure import Structure
from plif_lightning.neurons import Neuron, make_neuron
from plif_lightning.neurons import NeuronName as NeuronName
from plif_lightning.neurons import as_plain as as_plain
from plif_lightning.neurons.carry import carried
from plif_lightning.neurons.making import NeuronKeywords
from plif_lightning.runtime.memory import memory_limit


class Voting(nn.Module):
    """Mean of the M output neurons of each class: [T, N, M C] to votes [T, N, C], in float32 at least."""

    def __init__(self, votes_per_class: int) -> None:
        super().__init__()
        self.votes_per_class = votes_per_class

    def forward(self, spikes: Tensor) -> Tensor:
        real = torch.promote_types(spikes.dtype, torch.float32)
        return spikes.to(real).unflatten(-1, (-1, self.votes_per_class)).mean(-1)

    def extra_repr(self) -> str:
        return f"votes_per_class={self.votes_per_class}"


def _require_memory(values: int, part: str, lower: str) -> None:
    """Refuse a network that exceeds the memory, before allocating it: the system may kill the process otherwise."""
    limit = memory_limit()
    if limit is not None and 4 * values > limit:
        raise UserError(
            f"the network is too large: {part} alone would take {4 * values / 2**30:,.0f} GiB, and this machine, or "
            f"container, has {limit / 2**30:,.0f}. Lower {lower}."
        )


def require_input(x: Tensor, time_steps: int, input_shape: tuple[int, ...]) -> None:
    """Refuse an input that is neither frames of all time-steps nor static images.

    Raises:
        UserError: it is not.
    """
    if x.dim() not in (4, 5) or x.shape[-3:] != input_shape or (x.dim() == 5 and len(x) != time_steps):
        c, h, w = input_shape
        raise UserError(
            f"x must be [{time_steps}, N, {c}, {h}, {w}], time first, or static images [N, {c}, {h}, {w}], "
            f"got {list(x.shape)}."
        )


class SpikingNetwork(nn.Module):
    """n_down x [n_conv x (conv - BN - neuron) - pool] - n_fc x (dropout - FC - neuron) - voting.

    Votes [T, N, num_classes] in [0, 1] from inputs [T, N, C, H, W], or from static images [N, C, H, W], held for
    `time_steps`, whose first convolution and BN run once. There is no hidden state: every call starts at V_reset.

    Args:
        input_shape: (C, H, W), from the data.
        num_classes: number of classes, from the data.
        time_steps: T, from the data.
        n_conv: conv-BN-neuron blocks before each pool (N_conv).
        n_down: pools (N_down).
        n_fc: FC layers, the output layer included (N_fc).
        channels: output channels of every convolution.
        fc_features: output features of every FC layer but the last, which has M * num_classes.
        votes_per_class: M, output neurons per class.
        dropout: drop probability before every FC layer, or one value per FC layer.
        neuron: plif (learned tau), lif (fixed tau), if (no leak), clif, alif, qif, eif, klif, synaptic or glif; or a
            subclass of `Neuron`, its import path, or a layer like those of the network.
        pooling: max or avg.
        pool_ties: which of several firing neurons in a max-pool window gets the gradient: random (the paper) or first.
        norm_statistics: BN statistics per_step (the paper), or of all_steps together.
        norm_held: updates of the first BN's running statistics by a static image: every_step (T updates; the paper's
            Algorithm S1) or once (the authors' code).
        input_encoder: direct (the paper: the first block is the learnable encoder), poisson or latency.
        backend: kernels of neurons, BN and pools: auto (the fastest that run on the device), reference, cpu or triton.
        sparse: skip silent inputs in convolutions and FC layers of spikes on a CPU: auto (where it is faster), never
            or always.
        folded: a bias in every convolution instead of BN, as returned by `deploy.fold`.
        neuron_settings: init_tau, tau_per, v_threshold and other arguments of `make_neuron`.

    Raises:
        UserError: an argument lies outside its range or does not fit the others.

    Source: Fang et al. 2021, Secs. 3.5 and 4.1, Tables 1 and S1.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        time_steps: int,
        n_conv: int = 1,
        n_down: int = 2,
        n_fc: int = 2,
        channels: int = 128,
        fc_features: int = 2048,
        votes_per_class: int = 10,
        dropout: float | list[float] = 0.5,
        neuron: NeuronName | Neuron = "plif",
        pooling: Pooling = "max",
        pool_ties: PoolTies = "random",
        norm_statistics: NormStatistics = "per_step",
        norm_held: NormHeld = "every_step",
        input_encoder: InputEncoderName = "direct",
        backend: BackendName = "auto",
        sparse: Sparse = "auto",
        folded: bool = False,
        **neuron_settings: Keywords[NeuronKeywords],
    ) -> None:
        super().__init__()
        require_known_arguments("SpikingNetwork", neuron_settings, ARGUMENTS)
        self.backend = Backend(backend, sparse)
        for name, value in (
            ("time_steps", time_steps),
            ("num_classes", num_classes),
            ("n_conv", n_conv),
            ("n_down", n_down),
            ("n_fc", n_fc),
            ("channels", channels),
            ("fc_features", fc_features),
            ("votes_per_class", votes_per_class),
        ):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}.")
        if pooling not in get_args(Pooling):
            raise UserError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}.")
        in_channels, height, width = input_shape
        pooled = height >> n_down, width >> n_down
        if 0 in pooled:
            raise UserError(
                f"n_down={n_down} pools leave nothing of an input of {height}x{width}: pass a smaller n_down."
            )
        dropouts = [dropout] * n_fc if isinstance(dropout, (int, float)) else list(dropout)
        if len(dropouts) != n_fc:
            raise UserError(f"dropout must be one number or n_fc = {n_fc} of them, got {len(dropouts)}.")

        features = [*[fc_features] * (n_fc - 1), votes_per_class * num_classes]
        self.input_shape = tuple(input_shape)
        self.time_steps = time_steps
        self.num_classes, self.channels = num_classes, channels
        in_features = channels * pooled[0] * pooled[1]
        convs = 9 * channels * (in_channels + channels * (n_conv * n_down - 1))
        fcs = sum(i * o for i, o in itertools.pairwise([in_features, *features]))
        _require_memory(convs + fcs, "its weights", "channels or fc_features")
        first_map = time_steps * channels * height * width
        _require_memory(first_map, "one sample's first feature map", "time_steps or channels")
        sizes = [channels] * n_conv * n_down + features
        neurons = iter([make_neuron(neuron, size, **neuron_settings) for size in sizes])
        self.inputs = InputEncoder(input_encoder, time_steps)
        encoder: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(n_conv * n_down):
            conv = nn.Conv2d(channels if i else in_channels, channels, 3, padding=1, bias=folded)
            norm = None if folded else TimeBatchNorm2d(channels, norm_statistics, norm_held)
            pool = Pool2d(SpikeMaxPool2d(pool_ties) if pooling == "max" else nn.AvgPool2d(2))
            last_of_stage = (i + 1) % n_conv == 0
            encoder[f"conv{i + 1}"] = ConvBlock(
                conv, norm, next(neurons), pool if last_of_stage else None, time_steps=time_steps
            )
        self.encoder = Blocks(encoder)
        classifier: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (out_features, p) in enumerate(zip(features, dropouts, strict=True)):
            fc = nn.Linear(in_features, out_features, bias=False)
            classifier[f"fc{i + 1}"] = FCBlock(TimeDropout(p), fc, next(neurons))
            in_features = out_features
        self.classifier = Blocks(classifier)
        self.voting = Voting(votes_per_class)
        use_backend(self, backend, sparse)

    def forward(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes] for x [T, N, C, H, W] or static images [N, C, H, W], of any numeric type."""
        steps = self.time_steps if carried() is None else 1
        require_input(x, steps, self.input_shape)
        if x.dim() == 4:
            x = x[None]
        if not x.is_floating_point():  # event counts are stored as uint8
            weight = next(self.parameters(), None)  # None for a deployed network without weights
            x = x.float() if weight is None else x.to(weight.dtype)
        spikes = self.encoder(self.inputs(x)).flatten(2)
        if isinstance(self.encoder, Blocks) and isinstance(self.classifier, Blocks):
            binary = self.encoder.gives_binary(x.device) and not self.classifier._forward_pre_hooks
            return self.voting(self.classifier(spikes, binary))
        return self.voting(self.classifier(spikes))

    @contextmanager
    def for_time_steps(self, time_steps: int) -> Iterator[None]:
        """Run with another T while the context lasts; no parameter depends on T."""
        blocks = [block for block in self.encoder if isinstance(block, ConvBlock)]
        parts: list[SpikingNetwork | InputEncoder | ConvBlock] = [self, self.inputs, *blocks]
        original = self.time_steps
        for part in parts:
            part.time_steps = time_steps
        try:
            yield
        finally:
            for part in parts:
                part.time_steps = original

    @contextmanager
    def listening(self, hear: Hear) -> Iterator[None]:
        """Call `hear(layer, spikes)` with each layer's spikes [T, N, *], before its pool, while the context lasts.

        Blocks then run part by part, which is slower and gives the same spikes.
        """
        blocks = [block for block in self.blocks().values() if isinstance(block, ConvBlock)]
        for block in blocks:
            block.listened = True
        try:
            with listening(dict(self.neurons()), hear):
                yield
        finally:
            for block in blocks:
                block.listened = False

    @property
    def structure(self) -> Structure:
        """The current layers in the notation of Table S1."""
        return Structure.of(self.encoder.children(), self.classifier.children(), self.voting)

    def kernels(self, device: torch.device) -> str:
        """The kernels that run on `device`, and each convolutional block that needs a slower form, with the reason."""
        chosen = self.backend.chosen(device)
        if chosen == "reference":
            return "reference kernels"
        blocks = [(name, block) for name, block in self.blocks().items() if isinstance(block, ConvBlock)]
        declined = [f"{name} part by part: {reason}" for name, block in blocks if (reason := block.refuses_fusion)]
        declined += [
            f"{name} stores its convolution's output: {reason}"
            for name, block in blocks
            if block.refuses_fusion is None and (reason := block.refuses_conv)
        ]
        silent = {
            "auto": ", silent inputs skipped where that is faster",
            "always": ", silent inputs skipped",
            "never": "",
        }
        skips = silent[self.backend.sparse] if chosen == "cpu" else ""
        return "; ".join([f"{chosen} kernels{skips}", *declined])

    def blocks(self) -> dict[str, nn.Module]:
        """The layers from input to output, by name: conv1, ..., fc1, ..."""
        return {**dict(self.encoder.named_children()), **dict(self.classifier.named_children())}

    def neurons(self) -> Iterator[tuple[str, Neuron]]:
        """(layer name, neuron) of every spiking layer, from input to output."""
        for name, block in self.blocks().items():
            if isinstance(block, (ConvBlock, FCBlock)):
                yield name, block.neuron


_PARAMETERS = {
    name: parameter
    for function in (Firing, make_neuron, SpikingNetwork)  # the default of the last one wins
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
}
# Arguments of SpikingNetwork, including those that it passes on, and their defaults.
ARGUMENTS = frozenset(_PARAMETERS)
DEFAULTS = {name: p.default for name, p in _PARAMETERS.items() if p.default is not p.empty}


class NetworkKeywords(NeuronKeywords, total=False):
    """Arguments of `SpikingNetwork` for type checkers, where a constructor passes them on."""

    n_conv: int
    n_down: int
    n_fc: int
    channels: int
    fc_features: int
    votes_per_class: int
    dropout: float | list[float]
    neuron: NeuronName | Neuron
    pooling: Pooling
    pool_ties: PoolTies
    norm_statistics: NormStatistics
    norm_held: NormHeld
    input_encoder: InputEncoderName
    backend: BackendName
    sparse: Sparse
    folded: bool


def use_backend(module: nn.Module, name: BackendName = "auto", sparse: Sparse = "auto") -> nn.Module:
    """Set the backend of every neuron and block in `module` in place; returns `module`.

    Args:
        module: a network, or any module that contains neurons.
        name: auto (the fastest that runs on the device), reference, cpu or triton.
        sparse: skip silent inputs in convolutions and FC layers of spikes on a CPU: auto (where it is faster), never
            or always.

    Raises:
        UserError: an unknown name, or one that cannot run on this machine.
    """
    backend = Backend(name, sparse)
    for part in module.modules():
        if isinstance(part, (Neuron, ConvBlock, FCBlock, SpikingNetwork)):
            part.backend = backend
        elif isinstance(part, OverTime):  # which skips silent inputs only if it is told to
            part.backend = Backend(name, part.backend.sparse if sparse == "auto" else sparse)
    return module
