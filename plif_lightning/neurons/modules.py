"""Neuron modules: PLIF (learned time constant), LIF (fixed) and IF (no leak)."""

import inspect
import math
from dataclasses import asdict, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from plif_lightning.dynamics import Firing
from plif_lightning.dynamics.firing import FiringKeywords, Keywords
from plif_lightning.dynamics.reference import Trace, trace
from plif_lightning.errors import UserError, require_known_arguments
from plif_lightning.kernels import Backend
from plif_lightning.neurons.carry import carried

NeuronName = Literal["plif", "lif", "if"]
TauPer = Literal["layer", "channel"]


class Neuron(nn.Module):
    """Base class of a layer of spiking neurons without hidden state.

    Args:
        tau_per: share learned values per `layer` (the paper) or per `channel` (dimension 2 of the input).
        channels: number of channels, for `tau_per="channel"`.
        learn_threshold: learn V_th too, initialised with v_threshold.
        firing: constants of firing and reset, by name: see `Firing`.

    With `learn_threshold` the parameter is `b`: V_th = V_0 + (v_threshold - V_0) exp(b), b_0 = 0, where
    V_0 = max(V_reset, 0). V_th therefore stays positive and above V_reset for any b.

    Attributes:
        backend: the form that runs: the fastest on the device of x, unless set by `use_backend`.
    """

    def __init__(
        self,
        tau_per: TauPer = "layer",
        channels: int | None = None,
        learn_threshold: bool = False,
        **firing: Keywords[FiringKeywords],
    ) -> None:
        super().__init__()
        if tau_per not in get_args(TauPer):
            raise UserError(f"tau_per must be one of {', '.join(get_args(TauPer))}, got {tau_per!r}.")
        if tau_per == "channel" and channels is None:
            raise UserError("tau_per='channel' needs the number of channels: pass channels=C.")
        if isinstance(firing.get("v_threshold"), Tensor):
            raise UserError("v_threshold of a neuron must be a number, got a tensor: pass learn_threshold=True.")
        known = [*inspect.signature(type(self).__init__).parameters, *Firing.__dataclass_fields__]
        require_known_arguments(type(self).__name__, firing, [name for name in known if name not in ("self", "firing")])
        self._shape = [channels] if tau_per == "channel" and channels is not None else []
        self.constants = Firing(**firing)
        self.b = nn.Parameter(torch.zeros(self._shape)) if learn_threshold else None
        self._lowest = max(self.constants.v_reset, 0.0)
        if learn_threshold and not self._lowest < self.constants.v_threshold < math.inf:
            raise UserError(
                f"v_threshold must be above zero and v_reset to be learned, got {self.constants.v_threshold}."
            )
        self.backend = Backend("auto")

    @property
    def firing(self) -> Firing:
        """Constants of firing and reset, with the current V_th."""
        if self.b is None:
            return self.constants
        v_threshold = self._lowest + (self.constants.v_threshold - self._lowest) * torch.exp(self.b)
        return replace(self.constants, v_threshold=v_threshold)

    @property
    def k(self) -> Tensor | None:
        """1/tau, the leak of the equations: a scalar or [C]; None without leak."""
        raise NotImplementedError

    @property
    def tau(self) -> Tensor:
        """Membrane time constant in time-steps: a scalar or [C], detached."""
        k = self.k
        return torch.tensor(math.inf) if k is None else 1 / k.detach()

    def run(self, x: Tensor, v: Tensor | None = None, time_steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Spikes [T, N, *] and the last potential [N, *]: `integrate_and_fire` with this layer's constants.

        Raises:
            UserError: x has fewer than three dimensions, such as a batch [N, features] without time.
        """
        self._require_time(x)
        return self.backend.integrate_and_fire(x, self.k, v, firing=self.firing, time_steps=time_steps)

    def trace(self, x: Tensor, v: Tensor | None = None, time_steps: int | None = None) -> Trace:
        """Spikes and potentials of every step, [T, N, *] each, from the reference; arguments as `run`.

        Raises:
            UserError: x as for `run`; or a subclass overrides `run` but not `trace`.
        """
        if type(self).trace is Neuron.trace and type(self).run is not Neuron.run:
            raise UserError(f"{type(self).__name__} overrides run: override trace too.")
        self._require_time(x)
        return trace(x, self.k, v, firing=self.firing, time_steps=time_steps)

    @staticmethod
    def _require_time(x: Tensor) -> None:
        if x.dim() < 3:
            raise UserError(
                f"x must be [T, N, features, ...], got {list(x.shape)}: a batch [N, features] has no time. "
                "plif_lightning.over_time(net) runs a stack of layers over time."
            )

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """Spikes [T, N, *] for x [T, N, *], or [1, N, *] held for `time_steps`; starts at V_reset.

        In a `step` it starts from the potential of the previous step.
        """
        if (state := carried()) is not None:
            return state.through(self, lambda v: self.run(x, v))
        return self.run(x, time_steps=time_steps)[0]

    def learned(self) -> dict[str, Tensor]:
        """Values to log in training, detached, by curve name: tau, and V_th if it is learned."""
        found = {} if self.k is None else {"tau": self.tau}
        v_threshold = self.firing.v_threshold
        return found | ({"v_threshold": v_threshold.detach()} if isinstance(v_threshold, Tensor) else {})

    def extra_repr(self) -> str:
        learned = "" if self.b is None else "learn_threshold=True, "
        return learned + ", ".join(f"{name}={value!r}" for name, value in asdict(self.constants).items())


class _Leaky(Neuron):
    """A neuron with the leak k = sigmoid(a) = 1/tau."""

    a: Tensor

    def __init__(
        self,
        init_tau: float = 2.0,
        tau_per: TauPer = "layer",
        channels: int | None = None,
        learn_threshold: bool = False,
        **firing: Keywords[FiringKeywords],
    ) -> None:
        super().__init__(tau_per, channels, learn_threshold, **firing)
        if not (1 < init_tau < math.inf):
            raise UserError(f"init_tau must be > 1 (1/tau = sigmoid(a) lies in (0, 1)), got {init_tau}.")
        self._set_a(torch.full(self._shape, -math.log(init_tau - 1)))

    def _set_a(self, a: Tensor) -> None:
        raise NotImplementedError

    @property
    def k(self) -> Tensor:
        return torch.sigmoid(self.a)

    def extra_repr(self) -> str:
        tau = f"tau=[{self.a.numel()} channels]"
        if self.a.dim() == 0:
            tau = "tau on meta" if self.a.is_meta else f"tau={self.tau.item():.4g}"
        return f"{tau}, {super().extra_repr()}"


class PLIF(_Leaky):
    """Parametric leaky integrate-and-fire neurons: the time constant tau = 1 / sigmoid(a) is learned.

    Spikes [T, N, *] from inputs [T, N, *]. `a` is the parameter and `tau` a property.

    Args:
        init_tau: tau_0 > 1, in time-steps; a_0 = -log(tau_0 - 1).
        tau_per: one `a` per `layer` (the paper) or per `channel` (dimension 2 of the input).
        channels: number of channels, for `tau_per="channel"`.
        learn_threshold: learn V_th too, positive by construction, see `Neuron`.
        firing: constants of firing and reset, by name: see `Firing`.

    Raises:
        UserError: a constant lies outside its range.

    Source: Fang et al. 2021, Sec. 3.3.

    >>> neuron = PLIF(init_tau=2.0)
    >>> neuron(torch.full([4, 1, 1], 1.5)).flatten()
    tensor([0., 1., 0., 1.], grad_fn=<ViewBackward0>)
    """

    def _set_a(self, a: Tensor) -> None:
        self.a = nn.Parameter(a)


class LIF(_Leaky):
    """Leaky integrate-and-fire neurons with the fixed time constant `init_tau`; arguments as `PLIF`."""

    def _set_a(self, a: Tensor) -> None:
        self.register_buffer("a", a)


class IF(Neuron):
    """Integrate-and-fire neurons without leak: H_t = V_{t-1} + X_t, the limit of tau to infinity.

    The input is not divided by tau: in the paper's limit W_fc / tau converges (Sec. 4.3).
    """

    @property
    def k(self) -> None:
        return None


class NeuronKeywords(FiringKeywords, total=False):
    """Arguments of `make_neuron` for type checkers, where a constructor passes them on."""

    init_tau: float
    tau_per: TauPer
    learn_threshold: bool


def make_neuron(
    neuron: NeuronName,
    channels: int,
    init_tau: float = 2.0,
    tau_per: TauPer = "layer",
    learn_threshold: bool = False,
    **firing: Keywords[FiringKeywords],
) -> Neuron:
    """A layer of neurons of the given kind for inputs [T, N, channels, *].

    Args:
        neuron: plif (learned tau), lif (fixed tau) or if (no leak).
        channels: channels of the input.
        init_tau: tau_0 > 1 of plif, tau of lif, in time-steps.
        tau_per: one time constant (and threshold, if learned) per layer (the paper) or per channel.
        learn_threshold: learn V_th too, initialised with v_threshold; it stays positive.
        firing: see `Firing`.

    Raises:
        UserError: an argument lies outside its range.
    """
    if neuron == "if":
        return IF(tau_per, channels, learn_threshold, **firing)
    leaky = {"plif": PLIF, "lif": LIF}
    if neuron not in leaky:
        raise UserError(f"neuron must be one of {', '.join(get_args(NeuronName))}, got {neuron!r}.")
    return leaky[neuron](init_tau, tau_per, channels, learn_threshold, **firing)
