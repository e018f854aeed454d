"""Input encoders of S-Sec. 10: turn an image into the input of T time-steps."""

from typing import Literal

import torch
from torch import Tensor

from plif_lightning.errors import UserError
from plif_lightning.signals.signal import LayerModule, Signal

InputEncoderName = Literal["direct", "poisson", "latency"]


class InputEncoder(LayerModule):
    """Turns images [1, N, C, H, W] into the first layer's input.

    Args:
        name: `direct` passes the input through unchanged; the first conv-BN-neuron is then the learnable
            encoder (the paper). `poisson` fires at each of T steps with probability p; `latency`
            fires once, at step floor((T - 1) (1 - p)), exact for the p = 0, 1/255, ..., 1 of 8-bit images.
            Both need intensities p in [0, 1], i.e. data that is not normalised.

    Raises:
        UserError: for `poisson` and `latency`: frames instead of an image, a call in `step`, or values beyond [0, 1].

    Source: Fang et al. 2021, S-Sec. 10.
    """

    geometry = ("name",)

    def __init__(self, name: InputEncoderName) -> None:
        super().__init__()
        self.name = name

    def run(self, x: Signal) -> Tensor:
        return x.values if self.name == "direct" else self._spikes(x)

    def keeps_spikes(self, spikes: bool) -> bool:
        return spikes or self.name != "direct"

    def _spikes(self, signal: Signal) -> Tensor:
        x, time_steps = signal.values, signal.steps
        if len(x) != 1 or signal.is_step:
            raise UserError(f"input_encoder={self.name!r} encodes an image for all T at once: frames need 'direct'.")
        low, high = x.aminmax()
        if low < 0 or high > 1:
            raise UserError(
                f"input_encoder={self.name!r} needs intensities in [0, 1], got [{low:.3g}, {high:.3g}]: "
                "pass --data.normalize=false."
            )
        if self.name == "poisson":
            return torch.bernoulli(x.expand(time_steps, *x.shape[1:]))
        # Integer arithmetic: in floating point 5 (1 - 51/255) is below 4.
        darkness = 255 - torch.round(255 * x).long()
        fire_at = (time_steps - 1) * darkness // 255
        steps = torch.arange(time_steps, device=x.device).view(-1, *[1] * (x.dim() - 1))
        return (fire_at == steps).to(x.dtype)
