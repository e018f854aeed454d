"""Spiking encoder, spiking classifier and votes, from a structure."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal, get_origin

import torch
from torch import Tensor, nn

from plif_lightning.dynamics import Firing
from plif_lightning.dynamics.firing import Keywords as Keywords
from plif_lightning.dynamics.surrogate import surrogate_name as surrogate_name
from plif_lightning.errors import UserError, require_count, require_known_arguments, require_one_of
from plif_lightning.kernels import Backend, BackendName, Sparse
from plif_lightning.layers.blocks import WITH_NEURON, layers_of
from plif_lightning.layers.inputs import InputEncoder, InputEncoderName
from plif_lightning.layers.norm import NormHeld, NormStatistics
from plif_lightning.layers.pooling import Pooling, PoolTies
from plif_lightning.layers.readout import LastStep, LeakyIntegrator, Readout, Voting
from plif_lightning.network.building import Builder
from plif_lightning.network.inspect import OnSpikes, record_spikes
from plif_lightning.network.over_time import OverTime, for_time_steps
from plif_lightning.neurons import Neuron
from plif_lightning.neurons import NeuronName as NeuronName
from plif_lightning.neurons.making import NeuronKeywords, class_of, make_layer, settings_of_all
from plif_lightning.runtime.batches import has_time
from plif_lightning.signals.signal import Signal, output_of, run_layer, run_layers
from plif_lightning.signals.states import active_states
from plif_lightning.structure import (
    FC,
    NUMBERS,
    Neurons,
    Pool,
    Structure,
    Votes,
    layer_specs,
    resolve_structure,
)
from plif_lightning.structure import Readout as WrittenReadout
from plif_lightning.structure.shapes import every_layer


def require_input(x: Tensor, time_steps: int, input_shape: tuple[int, ...]) -> None:
    """Refuse an input that is neither frames of all time-steps nor static images.

    Raises:
        UserError: it is not.
    """
    dims = len(input_shape)
    fits = x.dim() in (dims + 1, dims + 2) and x.shape[-dims:] == input_shape
    if not fits or (x.dim() == dims + 2 and len(x) != time_steps):
        sample = ", ".join(map(str, input_shape))
        static = "images" if dims > 1 else "samples"
        raise UserError(
            f"x must be [{time_steps}, N, {sample}], time first, or static {static} [N, {sample}], got {list(x.shape)}."
        )


def _with_settings(structure: Structure, neuron: Any, pooling: Pooling) -> tuple[Structure, dict[str, type[Neuron]]]:
    """A structure with `neuron` in the place of every PLIF and the pooling put in; and the class that it names."""
    kind, settings = class_of(neuron)
    is_builtin = kind.__module__.startswith("plif_lightning.")
    name = kind.__name__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}"

    def neurons(written: Neurons) -> Neurons:
        arguments = {**settings, **dict(written.arguments)}
        return Neurons(name, tuple(arguments.items())) if written.name == "PLIF" else written

    structure = structure.substitute(Neurons, neurons)
    if pooling == "avg":
        structure = structure.substitute(Pool, lambda pool: replace(pool, kind="AP"))
    return structure, {name: kind}


def _output(structure: Structure) -> Readout:
    match structure.layers[-1]:
        case Votes(per_class):
            return Voting(per_class)
        case WrittenReadout(name, arguments):
            require_known_arguments(name, dict(arguments), ["init_tau"] if name == "LI" else [])
            return LeakyIntegrator(**dict(arguments)) if name == "LI" else LastStep()  # type: ignore[arg-type]
    return Readout()


class SpikingNetwork(nn.Module):
    """A network from its structure: encoder, classifier, votes; by default the paper's.

    Votes [T, N, num_classes] in [0, 1], or the output of a readout, [1, N, num_classes] of its `LAST` step, from inputs
    [T, N, C, H, W], or from static images [N, C, H, W], held for `time_steps`, for which the first convolution and BN
    run once. There is no hidden state: every call starts at V_reset.

    Args:
        input_shape: (C, H, W), or (F,) of sequences, from the data.
        num_classes: number of classes, from the data.
        time_steps: T, from the data.
        structure: the layers, in the notation of Table S1 (`plif_lightning.structure.notation`); None for the paper's
            network, set by the next six arguments, which also change a structure of the paper's form.
        n_conv: conv-BN-neuron blocks before each pool (N_conv); 1 without a structure.
        n_down: pools (N_down); 2.
        n_fc: FC layers, the output layer included (N_fc); 2.
        channels: output channels of every convolution, or a number for the convolutions before each pool; 128.
        fc_features: output features of every FC layer but the last, which has M * num_classes; 2048.
        votes_per_class: M, output neurons per class; 10.
        dropout: drop probability of every `DP`, or a value for each.
        neuron: replaces every PLIF: plif (learned tau), lif (fixed tau), if (no leak) or another name of
            `plif_lightning.structure.NEURONS` in lower case; or a subclass of `Neuron`, its import path, or a layer to
            copy.
        pooling: avg replaces every max-pool with an average pool.
        pool_ties: which of the firing neurons in a max-pool window gets the gradient: random (the paper) or first.
            For windows of spikes of 2x2 with stride 2; in all others the first gets it.
        norm_statistics: BN statistics per_step (the paper), or of all_steps together.
        norm_held: updates of the first BN's running statistics by a static image: every_step (T updates; the paper's
            Algorithm S1) or once (the authors' code).
        input_encoder: direct (the paper: the first block is the learnable encoder), poisson or latency.
        backend: kernels of neurons, BN and pools: auto (the fastest that run on the device), reference, cpu or triton.
        sparse: skip silent inputs in convolutions and FC layers of spikes on a CPU: auto (where it is faster), never
            or always.
        folded: a bias in the place of every BN, as returned by `deploy.fold`.
        neuron_settings: init_tau, tau_per, v_threshold and other arguments of `settings_of_all`, for all neurons;
            arguments in the structure apply to a layer.

    Attributes:
        time_steps: T.
        structure: the layers as built; `str()` writes them in the notation of Table S1.
        layer_specs: the layers with their names, shapes and facts; `blocks` has the module of each.

    Raises:
        UserError: an argument lies outside its range or does not fit the others; the structure cannot be read, or does
            not fit the input or the number of classes.

    Source: Fang et al. 2021, Secs. 3.5 and 4.1, Tables 1 and S1.

    >>> net = SpikingNetwork((1, 8, 8), 3, 4, structure="c4k3s1-BN-PLIF-MPk2s2-FC3")
    >>> net(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([4, 2, 3])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        time_steps: int,
        structure: str | None = None,
        n_conv: int | None = None,
        n_down: int | None = None,
        n_fc: int | None = None,
        channels: int | list[int] | None = None,
        fc_features: int | None = None,
        votes_per_class: int | None = None,
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
        all_arguments: dict[str, Any] = {name: value for name, value in locals().items() if name in _PARAMETERS}
        all_arguments |= neuron_settings
        super().__init__()
        require_known_arguments("SpikingNetwork", neuron_settings, ARGUMENTS)
        for name, value in all_arguments.items():
            literal = _PARAMETERS[name].annotation
            if get_origin(literal) is Literal:
                require_one_of(name, value, literal)
        if "surrogate" in all_arguments:  # a function by its name, as checkpoints hold it
            all_arguments["surrogate"] = surrogate_name(all_arguments["surrogate"])
        self.arguments = all_arguments
        self.backend = Backend(backend, sparse)
        for name, value in (("time_steps", time_steps), ("num_classes", num_classes)):
            require_count(name, value)
        numbers = {name: all_arguments[name] for name in NUMBERS}
        self.structure, classes = _with_settings(resolve_structure(structure, numbers, num_classes), neuron, pooling)
        self.time_steps = time_steps
        self.inputs = InputEncoder(input_encoder)
        self.layer_specs = layers = layer_specs(
            self.structure, input_shape, num_classes, spikes=input_encoder != "direct"
        )
        needing = [str(spec.layer) for spec in every_layer(layers) if spec.layer.needs_time_gradient]
        if needing and neuron_settings.get("through_time") is False:
            raise UserError(
                f"through_time=False lets no gradient pass from a step to an earlier one, and {needing[0]} needs such "
                "a gradient: leave out one of them."
            )
        drops = sum(isinstance(spec.layer, FC) and spec.layer.dropout is None for spec in layers)
        dropouts = [*dropout] if isinstance(dropout, Iterable) else [dropout] * drops
        if len(dropouts) != drops:
            raise UserError(
                f"dropout must be one number or n_fc = {drops} of them, one for each DP, got {len(dropouts)}."
            )
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        of_all = settings_of_all(**neuron_settings)

        def make(written: Neurons, size: int) -> Neuron:
            kind: Any = classes.get(written.name, written.name)
            kind = kind.lower() if isinstance(kind, str) and "." not in kind else kind
            return make_layer(kind, size, dict(written.arguments), of_all)

        builder = Builder(make, iter(dropouts), pool_ties, norm_statistics, norm_held, folded)
        first_fc = next(i for i, spec in enumerate(layers) if isinstance(spec.layer, FC))
        self.encoder = builder.blocks(layers[:first_fc])
        self.classifier = builder.blocks(layers[first_fc:])
        self.voting = _output(self.structure)
        use_backend(self, backend, sparse)

    def forward(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes] for x [T, N, *] or static samples [N, *], of any numeric type.

        A sample is a map [C, H, W], or features [F].
        """
        steps = self.time_steps if active_states() is None else 1
        require_input(x, steps, self.input_shape)
        if not has_time(x, self.input_shape):
            x = x[None]
        dtype = next(self.parameters()).dtype
        # Event counts are stored as uint8, and NumPy's numbers are float64, which autocast leaves alone.
        left_alone = not x.is_floating_point() or x.dtype == torch.float64
        if x.dtype != dtype and (left_alone or not torch.is_autocast_enabled(x.device.type)):
            x = x.to(dtype)
        maps = run_layers((self.inputs, self.encoder), Signal(x, steps))
        y = run_layer(self.classifier, maps._replace(values=maps.values.flatten(2)))
        return output_of(self.voting, y._replace(values=y.every_step()))

    def for_time_steps(self, time_steps: int) -> AbstractContextManager[None]:
        """Run with another T while the context lasts, in all threads; no parameter depends on T."""
        return for_time_steps(self, time_steps)

    def record_spikes(self, on_spikes: OnSpikes) -> AbstractContextManager[None]:
        """`record_spikes` to the neurons of every layer, by the layer's name."""
        return record_spikes(dict(self.neurons()), on_spikes)

    def forms(self) -> dict[str, str]:
        """How each layer ran in its last call: its form, the density of its input, and why no faster form ran."""
        choices = {name: getattr(block, "choice", None) for name, block in self.layers().items()}
        return {name: str(choice) for name, choice in choices.items() if choice is not None}

    def blocks(self) -> dict[str, nn.Module]:
        """The blocks from input to output, by name: conv1, ..., fc1, ...; residual blocks included."""
        return {**dict(self.encoder.named_children()), **dict(self.classifier.named_children())}

    def layers(self) -> dict[str, nn.Module]:
        """`blocks`, with the layers of each residual block in its place, and itself behind them if it has neurons."""
        return {**dict(layers_of(self.encoder)), **dict(layers_of(self.classifier))}

    def neurons(self) -> Iterator[tuple[str, Neuron]]:
        """(layer name, neuron) of every spiking layer, from input to output."""
        for name, block in self.layers().items():
            if isinstance(block, WITH_NEURON) and block.neuron is not None:
                yield name, block.neuron


_PARAMETERS = {
    name: parameter
    for function in (Firing, settings_of_all, SpikingNetwork)  # the default of the last wins
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
}
# Arguments of SpikingNetwork, forwarded ones included, and their defaults.
ARGUMENTS = frozenset(_PARAMETERS)
DEFAULTS = {name: p.default for name, p in _PARAMETERS.items() if p.default is not p.empty}


class NetworkKeywords(NeuronKeywords, total=False):
    """Arguments of `SpikingNetwork` for type checkers, where a constructor passes them on."""

    structure: str | None
    n_conv: int | None
    n_down: int | None
    n_fc: int | None
    channels: int | list[int] | None
    fc_features: int | None
    votes_per_class: int | None
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
    """Set the backend of every neuron, delay and block in `module` in place; returns `module`.

    Args:
        module: a network, or any module that contains neurons.
        name: auto (the fastest that runs on the device), reference, cpu or triton.
        sparse: skip silent inputs in convolutions and FC layers of spikes on a CPU: auto (where it is faster), never
            or always.

    Raises:
        UserError: an unknown name, or a backend that cannot run on this machine.
    """
    backend = Backend(name, sparse)
    child: Any
    for child in module.modules():
        if isinstance(child, OverTime):  # which skips silent inputs only on request
            child.backend = Backend(name, child.backend.sparse if sparse == "auto" else sparse)
        elif isinstance(getattr(child, "backend", None), Backend):
            child.backend = backend
    return module
