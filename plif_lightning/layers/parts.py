"""Parts of blocks, and facts of them that `plan` reads."""

from typing import Any

from torch import Tensor, nn

from plif_lightning.kernels import Backend, Pool
from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.plain import is_plain
from plif_lightning.layers.pooling import Pool2d, TimeDropout, draw_seed
from plif_lightning.layers.recurrent import RecurrentLinear
from plif_lightning.neurons import Neuron
from plif_lightning.signals.signal import LayerModule, keeps_spikes


class ConvParts(LayerModule):
    """Conv2d (no bias) - BN - neuron - pool over [T, N, C, H, W]; with a bias instead of BN if BN is folded.

    Args:
        conv: convolution over single images [N, C, H, W].
        norm: BN of its output; None if it is folded into the convolution, which then has a bias.
        neuron: the spiking neurons; None for a block without spiking output.
        pool: pool of the spikes [T, N, C, H, W]; None for a block without a pool.

    Attributes:
        choice: how the last call ran; None before the first.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: TimeBatchNorm | None,
        neuron: Neuron | None,
        pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.neuron = neuron
        self.pool = pool
        self.backend = Backend("reference")  # until `use_backend`
        self.choice: Any = None  # a `plan.Choice`

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.pool, keeps_spikes(self.neuron, spikes=False))

    @property
    def pool_name(self) -> Pool | None:
        """The kernels' name of the pooling; None if they do not have it."""
        if self.pool is None:
            return "none"
        return self.pool.name if isinstance(self.pool, Pool2d) and is_plain(self.pool, self.pool.pool) else None

    @property
    def kernel_pool(self) -> Pool:
        """The pooling in the kernels; other pools follow them."""
        return self.pool_name or "none"

    @property
    def normalises_by_batch(self) -> bool:
        """True if BN normalises with statistics of the batch."""
        return self.norm is not None and self.norm.bn.training

    def seed(self) -> Tensor | None:
        """Seed of the tie-breaking in max-pooling; None if the pool draws nothing."""
        return draw_seed(self.training) if self.pool_name == "max_random" else None


class FCParts(LayerModule):
    """Dropout - FC - BN - neuron over [T, N, F].

    Args:
        dropout: dropout of the input.
        fc: the FC layer.
        neuron: the spiking neurons; None for a readout.
        recurrent: weight from their spikes of the previous step to their input; None without.
        norm: BN of the FC layer's output, without the recurrent part; None without, or if it is folded.

    Attributes:
        choice: how the last call ran; None before the first, and for an input that is not spikes.
    """

    def __init__(
        self,
        dropout: TimeDropout,
        fc: nn.Linear,
        neuron: Neuron | None,
        recurrent: RecurrentLinear | None = None,
        norm: TimeBatchNorm | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = fc
        self.norm = norm
        self.recurrent = recurrent
        self.neuron = neuron
        self.backend = Backend("reference")  # until `use_backend`
        self.choice: Any = None  # a `plan.Choice`

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.neuron, spikes=False)
