"""The paper's network: spiking encoder, spiking classifier, voting."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import get_args

from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.kernels import Backend, BackendName
from plif_lightning.network.blocks import ConvBlock, FCBlock, Pool2d, TimeDropout, is_watched
from plif_lightning.network.inputs import InputEncoder, InputEncoderName
from plif_lightning.network.norm import NormStatistics, TimeBatchNorm2d
from plif_lightning.network.pooling import Pooling, PoolTies, SpikeMaxPool2d
from plif_lightning.network.structure import Structure
from plif_lightning.neurons import Neuron, NeuronName, SurrogateName, TauPer, make_neuron


class Voting(nn.Module):
    """Mean of the M output neurons of each class: [T, N, M C] to votes [T, N, C] in float32."""

    def __init__(self, votes_per_class: int) -> None:
        super().__init__()
        self.votes_per_class = votes_per_class

    def forward(self, spikes: Tensor) -> Tensor:
        return spikes.float().unflatten(-1, (-1, self.votes_per_class)).mean(-1)

    def extra_repr(self) -> str:
        return f"votes_per_class={self.votes_per_class}"


class SpikingNetwork(nn.Module):
    """n_down x [n_conv x (conv - BN - neuron) - pool] - n_fc x (dropout - FC - neuron) - voting.

    Votes [T, N, num_classes] in [0, 1] from inputs [T, N, C, H, W], or from [1, N, C, H, W]: a static
    image, held for `time_steps`, whose first convolution and BN run once. There is no hidden state:
    every call starts at V_reset and leaves nothing behind.

    Args:
        input_shape: (C, H, W).
        num_classes: number of classes.
        time_steps: T.
        n_conv: conv-BN-neuron blocks before each pool (N_conv).
        n_down: pools (N_down).
        n_fc: FC layers, the output layer included (N_fc).
        channels: output channels of every convolution.
        fc_features: output features of every FC layer but the last, which has M * num_classes.
        votes_per_class: M, output neurons per class.
        dropout: drop probability before every FC layer, or one value for each of them.
        neuron: plif, lif or if.
        init_tau: tau_0 > 1 of plif, tau of lif.
        tau_per: one time constant per layer (the paper) or per channel.
        v_threshold: V_th.
        v_reset: V_reset.
        detach_reset: whether no gradient flows through the reset.
        surrogate: atan, sigmoid, triangle or rectangle.
        surrogate_width: width of the surrogate.
        pooling: max or avg.
        pool_ties: which of the tied neurons of a max-pool window receives the gradient.
        norm_statistics: BN statistics of each step or of all steps together.
        input_encoder: direct (the first block is the learnable encoder), poisson or latency.
        backend: which form of neurons, BN and pools runs: auto (the fastest), reference, cpu or triton.

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
        neuron: NeuronName = "plif",
        init_tau: float = 2.0,
        tau_per: TauPer = "layer",
        v_threshold: float = 1.0,
        v_reset: float = 0.0,
        detach_reset: bool = True,
        surrogate: SurrogateName = "atan",
        surrogate_width: float = 1.0,
        pooling: Pooling = "max",
        pool_ties: PoolTies = "random",
        norm_statistics: NormStatistics = "per_step",
        input_encoder: InputEncoderName = "direct",
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
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

        self.backend = kernels = Backend(backend)

        def make(features: int) -> Neuron:
            made = make_neuron(
                neuron,
                features,
                init_tau=init_tau,
                v_threshold=v_threshold,
                v_reset=v_reset,
                detach_reset=detach_reset,
                surrogate=surrogate,
                surrogate_width=surrogate_width,
                tau_per=tau_per,
            )
            made.integrate_and_fire = kernels.integrate_and_fire
            return made

        features = [*[fc_features] * (n_fc - 1), votes_per_class * num_classes]
        self.input_shape = tuple(input_shape)
        self.time_steps = time_steps
        self.structure = Structure(
            n_conv, n_down, channels, tuple(features), tuple(dropouts), votes_per_class, neuron, pooling
        )
        self.inputs = InputEncoder(input_encoder, time_steps)
        encoder: OrderedDict[str, nn.Module] = OrderedDict()
        for down in range(n_down):
            for i in range(n_conv):
                first = down == i == 0
                conv = nn.Conv2d(in_channels if first else channels, channels, 3, padding=1, bias=False)
                norm = TimeBatchNorm2d(channels, norm_statistics)
                encoder[f"conv{down * n_conv + i + 1}"] = ConvBlock(conv, norm, make(channels), time_steps, kernels)
            pool = SpikeMaxPool2d(pool_ties) if pooling == "max" else nn.AvgPool2d(2)
            encoder[f"pool{down + 1}"] = Pool2d(pool)
        self.encoder = nn.Sequential(encoder)
        classifier: OrderedDict[str, nn.Module] = OrderedDict()
        in_features = channels * pooled[0] * pooled[1]
        for i, (out_features, p) in enumerate(zip(features, dropouts, strict=True)):
            fc = nn.Linear(in_features, out_features, bias=False)
            classifier[f"fc{i + 1}"] = FCBlock(TimeDropout(p), fc, make(out_features), kernels)
            in_features = out_features
        self.classifier = nn.Sequential(classifier)
        self.voting = Voting(votes_per_class)

    def forward(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes] for x [T, N, C, H, W] or a static x [1, N, C, H, W], of any numeric type."""
        if x.dim() != 5 or x.shape[2:] != self.input_shape or len(x) not in (1, self.time_steps):
            c, h, w = self.input_shape
            raise UserError(f"x must be [{self.time_steps} or 1, N, {c}, {h}, {w}], got {list(x.shape)}.")
        if not x.is_floating_point():  # counts of events come in one byte each
            x = x.to(next(self.parameters()).dtype)
        return self.voting(self.classifier(self._encode(self.inputs(x)).flatten(2)))

    def _encode(self, x: Tensor) -> Tensor:
        pooled = False  # whether the part before has pooled already
        spikes = False  # whether x is known to be zeros and ones
        for part, following in itertools.pairwise([*self.encoder, None]):
            if isinstance(part, ConvBlock) and not is_watched(part):
                pool = following if isinstance(following, Pool2d) else None
                gives_spikes = part.gives_spikes(x, pool)
                x, spikes, pooled = part(x, pool, spikes), gives_spikes, pool is not None
            elif pooled:
                pooled = False
            else:
                x, spikes = part(x), False
        return x

    def hold_weights(self, held: bool = True) -> None:
        """Says that weights do not change until further notice, so that forms of them may be kept: for evaluation."""
        for block in self.classifier:
            if isinstance(block, FCBlock):
                block.sparse.hold() if held else block.sparse.release()

    def neurons(self) -> Iterator[tuple[str, Neuron]]:
        """(layer name, neuron) of every spiking layer, from input to output: conv1, ..., fc1, ..."""
        blocks: Sequence[tuple[str, nn.Module]] = [*self.encoder.named_children(), *self.classifier.named_children()]
        for name, block in blocks:
            if isinstance(block, (ConvBlock, FCBlock)):
                yield name, block.neuron
