"""Learned delays: each channel's signal some time-steps later."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.errors import UserError, require_count, require_one_of
from plif_lightning.kernels import Backend, delay_between_steps
from plif_lightning.signals.signal import LayerModule, Signal
from plif_lightning.signals.states import advance

DelayKernel = Literal["linear", "gaussian"]
_NARROWEST = 0.05  # width of a Gaussian [time-steps], all of which lies on a single lag


class Delay(LayerModule):
    """Each channel's signal [T, N, C, *] `delay` time-steps later; before the start it is zero.

    Between two steps `linear` divides a value between both; `gaussian` spreads it over all lags from 0 to `max_delay`,
    with shares that add up to 1. In a step it carries its last `max_delay` inputs, [N, max_delay, C, *].

    Args:
        channels: C.
        max_delay: D, in time-steps. Delays are used within 0 and D; at an end the gradient that leads out is dropped.
        kernel: linear or gaussian.
        init_delay: initial delay of all channels, in time-steps; None draws them evenly from 0 to D.
        sigma: width of the Gaussian, in time-steps; None for 1.
        rounds: in evaluation each delay is a whole number, so that spikes stay spikes.

    Attributes:
        delay: [C], in time-steps, as the optimiser moves it.
        sigma: a buffer, which a callback may `fill_` with less and less in training; below 0.05 it counts as that, a
            single lag.

    Raises:
        UserError: an argument lies outside its range.

    Source: Hammouamri et al. 2024, "Learning Delays in Spiking Neural Networks using Dilated Convolutions with
    Learnable Spacings", for a delay per channel.

    >>> delay = Delay(1, max_delay=3, init_delay=1.5)
    >>> delay(torch.tensor([1.0, 0, 0, 0]).view(4, 1, 1)).flatten().tolist()
    [0.0, 0.5, 0.5, 0.0]
    """

    carries = ("x",)
    sigma: Tensor
    geometry = ("max_delay", "kernel", "rounds")

    def __init__(
        self,
        channels: int,
        max_delay: int,
        kernel: DelayKernel = "linear",
        init_delay: float | None = None,
        sigma: float | None = None,
        rounds: bool = False,
    ) -> None:
        super().__init__()
        require_count("channels", channels)
        require_count("max_delay", max_delay)
        require_one_of("kernel", kernel, DelayKernel)
        require_one_of("rounds", rounds, Literal[True, False])
        if sigma is not None and kernel != "gaussian":
            raise UserError(f"sigma = {sigma} is the width of a Gaussian: give kernel=gaussian, too.")
        sigma = 1.0 if sigma is None else sigma
        for name, value in (("sigma", sigma), ("init_delay", init_delay)):
            if isinstance(value, (bool, str)):
                raise UserError(f"{name} must be a number, got {value!r}.")
        if init_delay is not None and not 0 <= init_delay <= max_delay:
            raise UserError(f"init_delay must be from 0 to max_delay = {max_delay}, got {init_delay}.")
        if not sigma > 0:
            raise UserError(f"sigma must be above 0, got {sigma}.")
        self.max_delay, self.kernel, self.rounds = max_delay, kernel, rounds
        self.kept, self.backend = max_delay, Backend("auto")
        start = torch.rand(channels) * max_delay if init_delay is None else torch.full((channels,), float(init_delay))
        self.delay = nn.Parameter(start)
        self.register_buffer("sigma", torch.tensor(float(sigma)))

    @property
    def is_whole(self) -> bool:
        """True if delays are rounded now."""
        return self.rounds and not self.training

    def run(self, x: Signal) -> Tensor:
        if x.values.dim() < 3 or x.values.shape[2] != len(self.delay):
            raise UserError(f"a delay of {len(self.delay)} channels takes [T, N, C, *], got {list(x.values.shape)}.")
        values = x.every_step()
        values = values if values.is_floating_point() else values.to(self.delay.dtype)
        return advance(self, partial(self._step, values)) if x.is_step else self._sequence(values)

    def keeps_spikes(self, spikes: bool) -> bool:
        return spikes and self.is_whole

    def learned(self) -> dict[str, Tensor]:
        """The delays in use [C], in time-steps."""
        return {"delay": self.used().detach()}

    def used(self) -> Tensor:
        """The delays within 0 and `max_delay`, [C]."""
        delay: Tensor = _Within.apply(self.delay, self.max_delay)
        return delay.round() if self.is_whole else delay

    def divides(self, x: Signal) -> bool:
        """True if a call does no more than to divide values x [T, N, C] between two steps by the compiled loops."""
        has_steps = x.values.dim() == 3 and not (x.is_step or x.is_held)
        return self.is_plain_call and has_steps and not self.is_whole and self._has_loops(x.values)

    def between(self) -> tuple[Tensor, Tensor]:
        """The whole part of the delays [C], at most `max_delay` - 1, and the rest: the share of the step after it.

        Of a delay that is not a number the second is not, either.
        """
        delay = self.used()
        whole = delay.detach().floor().nan_to_num(0).clamp(0, self.max_delay - 1)
        return whole, delay - whole

    def shares(self) -> Tensor:
        """The weight of the input at each lag from 0 to `max_delay`, [max_delay + 1, C]."""
        lags = torch.arange(self.max_delay + 1, device=self.delay.device)[:, None]
        if self.kernel == "gaussian" and not self.is_whole:
            return torch.softmax(-(((lags - self.used()) / self.sigma.clamp(min=_NARROWEST)) ** 2) / 2, 0)
        # Not (1 - |lag - delay|)+, which has no gradient at a whole delay.
        whole, late = self.between()
        return torch.where(lags == whole, 1 - late, torch.where(lags == whole + 1, late, torch.zeros_like(late)))

    def _sequence(self, x: Tensor) -> Tensor:
        """The output at every step, for x [T, N, C, *] from rest."""
        if self._has_loops(x):
            whole, late = self.between()
            rows = delay_between_steps(x.movedim(2, -1).flatten(1, -2), whole.long(), late)
            return rows.unflatten(1, x.shape[1:2] + x.shape[3:]).movedim(-1, 2)
        seen = torch.cat([x.new_zeros(self.max_delay, *x.shape[1:]), x])
        return _convolved(seen, self._shares_of_inputs(x))

    def _step(self, x: Tensor, before: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output of a single step x [1, N, C, *], and the inputs that the next one needs.

        Raises:
            UserError: the inputs before are of other samples, or of another delay.
        """
        shape = self.max_delay, *x.shape[1:]
        past = x.new_zeros(shape) if before is None else before[0].movedim(1, 0)
        if past.shape != shape:
            kept = [x.shape[1], self.max_delay, *x.shape[2:]]
            raise UserError(f"the state of a delay must be {kept}, got {list(before[0].shape) if before else None}.")
        seen = torch.cat([past, x])
        weights = self._shares_of_inputs(x).view(len(seen), 1, -1, *[1] * (x.dim() - 3))
        return (seen * weights).sum(0, keepdim=True), (seen[len(x) :].movedim(0, 1),)

    def _shares_of_inputs(self, x: Tensor) -> Tensor:
        """`shares` from the earliest input to the newest, in the type of x."""
        return self.shares().flip(0).to(x.dtype)

    def _has_loops(self, x: Tensor) -> bool:
        """True if the compiled loops run on x [T, N, C, *]: linear, on a CPU, in the parameter's type."""
        is_linear = self.kernel == "linear" or self.is_whole
        has_type = x.dtype == self.delay.dtype and x.dtype in (torch.float32, torch.float64)
        return is_linear and has_type and self.backend.chosen(x.device) == "cpu"

    def extra_repr(self) -> str:
        width = f" of sigma {self.sigma.item():.3g}" if self.kernel == "gaussian" else ""
        return f"{len(self.delay)}, max_delay={self.max_delay}, kernel={self.kernel!r}{width}, rounds={self.rounds}"


class _Within(torch.autograd.Function):
    """Values clamped to [0, limit]; at an end the gradient whose descent leads further out is dropped."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, limit: int) -> Tensor:
        return values.clamp(0, limit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.limit = inputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        leads_out = (values <= 0) & (grad > 0) | (values >= ctx.limit) & (grad < 0)
        return grad.masked_fill(leads_out, 0), None


def _convolved(seen: Tensor, shares: Tensor) -> Tensor:
    """[T, N, C, *] of inputs [D + T, N, C, *], the first D of them before the start, and shares [D + 1, C]."""
    channels = shares.shape[1]
    rows = seen.movedim((0, 2), (-1, -2))  # [N, *, C, D + T]
    y = F.conv1d(rows.flatten(0, -3), shares.t()[:, None], groups=channels)
    return y.view(*rows.shape[:-1], y.shape[-1]).movedim((-1, -2), (0, 2)).contiguous()
