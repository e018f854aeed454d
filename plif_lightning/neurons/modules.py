"""Neuron modules: PLIF (learned time constant), LIF (fixed) and IF (no leak)."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from plif_lightning.dynamics import Equations, Firing
from plif_lightning.dynamics.equations import GIVEN, Dynamics, program_of
from plif_lightning.dynamics.firing import FiringKeywords, Keywords
from plif_lightning.dynamics.leaky import LEAKY, PERFECT
from plif_lightning.dynamics.reference import Trace, trace
from plif_lightning.errors import UserError, require_known_arguments
from plif_lightning.kernels import Backend
from plif_lightning.neurons.parameters import Initial, Parameter, drawn, fixed, learned
from plif_lightning.signals.signal import LayerModule, Signal
from plif_lightning.signals.states import LayerState, advance, as_tuple, from_tuple

TauPer = Literal["layer", "channel", "neuron"]
_EQUATIONS = ("charge", "after", "threshold", "fire")
# Names that a parameter cannot have: arguments and attributes of every neuron, and other values of equations.
RESERVED = {
    *(*Firing.__dataclass_fields__, *GIVEN, "tau_per", "channels", "learn_threshold", "learn", "settings", "backend"),
    *("constants", "v_threshold_raw", "training"),
}


class Neuron(LayerModule):
    """A layer of spiking neurons without hidden state; the base class of every neuron.

    A subclass defines equations: functions in its body, without `self`, with arguments named after the values that they
    need (see `Equations`), and its parameters, declared with `learned` and `fixed`. Everything else follows: kernels,
    gradients, single time-steps, exports, its arguments on the command line.

    >>> from plif_lightning.neurons import fixed, learned
    >>> class Adaptive(Neuron):
    ...     state = ("v", "w")
    ...     k = learned(0.5, "unit")
    ...     rho = fixed(0.9, "unit")
    ...     def charge(v, w, x, k):
    ...         return v + k * (x - w - v)
    ...     def after(reset, w, s, rho):
    ...         return reset, rho * w + (1 - rho) * s
    >>> neuron = Adaptive(rho=0.95, v_threshold=0.5)
    >>> neuron(torch.ones([8, 1, 1])).flatten().tolist()
    [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]

    Args:
        tau_per: share parameters per `layer` (the paper), or have them per `channel` (dimension 2 of the input), or per
            `neuron`, which is the same for features and does not take maps.
        channels: number of channels, for `tau_per="channel"` or `"neuron"`.
        learn_threshold: learn V_th too, initialised with v_threshold.
        learn: names of the parameters that are learned; None for parameters declared `learned`.
        settings: values of declared parameters, and constants of firing and reset, by name: see `Firing`.

    With `learn_threshold` the parameter is `v_threshold_raw`, r: V_th = V_0 + (v_threshold - V_0) exp(r), r = 0 before
    training, where V_0 = max(V_reset, 0). V_th therefore stays positive and above V_reset for any r.

    Attributes:
        state: names of the states; a state named v starts at V_reset, any other at zero.
        equations: the neuron's equations.
        declared: its parameters, by name.
        runs_equations: its output is that of its equations: `simulate`, `run` and `forward` are not overridden.
        fires: and it is spikes, zeros and ones: no equation `fire` gives other values.
        settings: the constructor arguments, by name.
        backend: the form that runs: the fastest on the device of x, unless set by `use_backend`.

    Raises:
        UserError: an argument is unknown or out of range; or an equation cannot be compiled, with its line.
    """

    state: ClassVar[tuple[str, ...]] = ("v",)
    carries = state
    equations: ClassVar[Equations]
    declared: ClassVar[dict[str, Parameter]] = {}
    runs_equations: ClassVar[bool] = True
    fires: ClassVar[bool] = True
    settings: dict[str, Any]

    def __new__(cls, *arguments: Any, **named: Any) -> "Neuron":
        neuron = super().__new__(cls)
        # Arguments by name, from which equal layers are made; copies and pickles bring theirs.
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        neuron.__dict__["settings"] = dict(zip(names, arguments, strict=False)) | named
        return neuron

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        _require_equations(cls)
        # Equations have no self: neither instance nor class passes it.
        functions: dict[str, Any] = {name: inspect.getattr_static(cls, name, None) for name in _EQUATIONS}
        for name, function in functions.items():
            if inspect.isfunction(function):
                setattr(cls, name, staticmethod(function))
            elif isinstance(function, staticmethod):
                functions[name] = function.__func__
        cls.declared = _declared_in(cls)
        cls.carries = (cls.state,) if isinstance(cls.state, str) else tuple(cls.state)
        if "equations" not in vars(cls) and functions["charge"] is not None:
            cls.equations = Equations(cls.carries, **functions)
        elif any(functions.values()) or "state" in vars(cls):
            raise UserError(f"{cls.__name__} has no charge, or `equations` beside other equations: write one of them.")
        overridable = ("simulate", "run", "forward")
        cls.runs_equations = all(getattr(cls, name) is getattr(Neuron, name) for name in overridable)
        cls.fires = cls.runs_equations and getattr(getattr(cls, "equations", None), "fire", None) is None
        if cls.declared and getattr(cls.__init__, "is_generated", cls.__init__ is Neuron.__init__):
            cls.__init__ = _constructor(cls.declared)  # type: ignore[method-assign]

    def __init__(
        self,
        tau_per: TauPer = "layer",
        channels: int | None = None,
        learn_threshold: bool = False,
        learn: list[str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        argument_names = [
            name for name in inspect.signature(type(self).__init__).parameters if name not in ("self", "firing")
        ]
        of_all = ("tau_per", "channels", "learn_threshold", *Firing.__dataclass_fields__)
        require_known_arguments(kind, settings, [*dict.fromkeys([*argument_names, *self.declared, *of_all])])
        if tau_per not in get_args(TauPer) or (tau_per != "layer" and channels is None):
            raise UserError(f"tau_per must be layer, or channel or neuron beside channels=C, got {tau_per!r}.")
        self.tau_per = tau_per
        require_known_arguments(f"learn: {kind}", learn or (), self.declared)
        self._shape = _shape(tau_per, channels)
        parameters = {name: settings.pop(name) for name in self.declared if name in settings}
        self.constants = Firing(**settings)
        self._lowest = max(self.constants.v_reset, 0.0)
        if learn_threshold not in (True, False):
            raise UserError(f"learn_threshold must be true or false, got {learn_threshold!r}.")
        self.v_threshold_raw = nn.Parameter(torch.zeros(self._shape)) if learn_threshold else None
        if learn_threshold and not self._lowest < self.constants.v_threshold < math.inf:
            raise UserError(
                f"v_threshold must be above zero and v_reset to be learned, got {self.constants.v_threshold}."
            )
        for name, parameter in self.declared.items():
            parameter = parameter.at(parameters.get(name, parameter.initial), self._shape)
            if parameter.is_learned if learn is None else name in learn:
                self.register_parameter(parameter.stored_as, nn.Parameter(parameter.raw(self._shape)))
            elif parameter.stored_as == f"{name}_raw":
                self.register_buffer(f"{name}_value", parameter.values(self._shape))
            else:
                self.register_buffer(parameter.stored_as, parameter.raw(self._shape))
        self.backend = Backend("auto")
        for name in self.equations.parameters:
            if not isinstance(inspect.getattr_static(type(self), name, None), (Parameter, property)):
                raise UserError(
                    f"the equations of {kind} use {name}: declare it in the class, as `{name} = learned(0.5)` or "
                    f"`fixed(0.5)`. They have no self, but {', '.join((*GIVEN, *self.equations.state))}."
                )
        self._keyed = self.constants, program_of(self.equations, self.firing).key

    def value_of(self, name: str) -> Tensor:
        """The current value of a declared parameter, a scalar or [channels]."""
        constant: Tensor | None = self._buffers.get(f"{name}_value")
        parameter = self.declared[name]
        return self._broadcast(parameter.value(getattr(self, parameter.stored_as)) if constant is None else constant)

    def _broadcast(self, value: Tensor) -> Tensor:
        """A value of all channels as a scalar."""
        return value.reshape(()) if self._shape == [1] else value

    @property
    def firing(self) -> Firing:
        """Constants of firing and reset, with the current V_th."""
        if self.v_threshold_raw is None:
            return self.constants
        above = (self.constants.v_threshold - self._lowest) * torch.exp(self.v_threshold_raw)
        return replace(self.constants, v_threshold=self._broadcast(self._lowest + above))

    @property
    def v_threshold(self) -> float | Tensor:
        """The current V_th: a number; if it is learned a tensor, a scalar or [channels], detached."""
        threshold = self.firing.v_threshold
        return threshold.detach() if isinstance(threshold, Tensor) else threshold

    @property
    def v_reset(self) -> float:
        """V_reset, where neurons start; with a soft reset nothing is reset to it."""
        return self.constants.v_reset

    @property
    def dynamics(self) -> Dynamics:
        """Equations, current parameters and constants, as functions over time take them."""
        constants, key = self._keyed
        if constants is not self.constants:  # somebody set others
            key = program_of(self.equations, self.firing).key
            self._keyed = self.constants, key
        parameters = {name: getattr(self, name) for name in self.equations.parameters}
        return Dynamics(self.equations, parameters, self.firing, key)

    def simulate(
        self, x: Tensor, v: LayerState | None = None, time_steps: int | None = None
    ) -> tuple[Tensor, LayerState]:
        """Spikes [T, N, *] and the last state: `dynamics.reference.run` with this layer's equations.

        Args:
            x: [T, N, features, ...], or [1, N, ...] with `time_steps`.
            v: state before the first step, [N, ...]; a tuple for more states; None for V_reset and zeros.
            time_steps: T, for a static input.

        Raises:
            UserError: x has fewer than three dimensions, such as a batch [N, features] without time.
        """
        if x.dim() < 3:
            raise UserError(
                f"x must be [T, N, features, ...], got {list(x.shape)}: a batch [N, features] has no time. "
                "plif_lightning.over_time(net) runs a stack of layers over time."
            )
        spikes, states = self.backend.run(x, self.dynamics, None if v is None else as_tuple(v), time_steps)
        return spikes, from_tuple(states)

    def trace(self, x: Tensor, v: LayerState | None = None, time_steps: int | None = None) -> Trace:
        """Spikes and states of every step, [T, N, *] each, from the reference; arguments as `simulate`."""
        if type(self).trace is Neuron.trace and type(self).simulate is not Neuron.simulate:
            raise UserError(f"{type(self).__name__} overrides simulate: override trace too.")
        return trace(x, self.dynamics, None if v is None else as_tuple(v), time_steps)

    def run(self, x: Signal) -> Tensor:
        """Spikes [T, N, *]; from V_reset, or in a `step` from the state of the previous step."""
        return advance(self, partial(self._states_after, x.values, x.steps))

    def _states_after(
        self, x: Tensor, steps: int, states: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        spikes, after = self.simulate(x, None if states is None else from_tuple(states), steps)
        return spikes, as_tuple(after)

    def keeps_spikes(self, spikes: bool) -> bool:
        return self.fires

    def learned(self) -> dict[str, Tensor]:
        """Parameters of the equations, and V_th if it is learned; see `Layer`."""
        values = {name: self.value_of(name).detach() for name in self.declared}
        if self.v_threshold_raw is not None:
            values["v_threshold"] = torch.as_tensor(self.firing.v_threshold).detach()
        return values

    def extra_repr(self) -> str:
        texts = [
            f"{name}=[{value.numel()} channels]" if value.numel() != 1
            else f"{name} on meta" if value.is_meta
            else f"{name}={value.item():.4g}"
            for name, value in self.learned().items()
        ]  # fmt: skip
        return ", ".join([*texts, *(f"{name}={value!r}" for name, value in asdict(self.constants).items())])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._keyed = self.constants, program_of(self.equations, self.firing).key  # perhaps in another process


def _shape(tau_per: TauPer, channels: int | None) -> list[int]:
    """Shape of a parameter: a value per layer is a vector too, because FSDP refuses scalar parameters."""
    return [1] if tau_per == "layer" or channels is None else [channels]


def _require_equations(cls: type) -> None:
    """Refuse functions in the body of a class of neurons that would never be called.

    Raises:
        UserError: a function without self, or a static method named like an equation, is no equation.
    """
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, staticmethod) else value
        if not inspect.isfunction(function) or name in _EQUATIONS or name.startswith("__"):
            continue
        near = difflib.get_close_matches(name, _EQUATIONS, 1)
        without_self = next(iter(inspect.signature(function).parameters), "") != "self"
        if near or (without_self and function is value):
            hint = f"Did you mean {near[0]}?" if near else f"Equations are {', '.join(_EQUATIONS)}."
            raise UserError(f"{cls.__name__}.{name} is no equation of neurons and would never be called. {hint}")


def _declared_in(cls: type) -> dict[str, Parameter]:
    """The parameters that a class and its bases declare, by name.

    Raises:
        UserError: every neuron has something of that name.
    """
    declared: dict[str, Parameter] = {}
    for base in reversed(cls.__mro__):
        declared |= {name: value for name, value in vars(base).items() if isinstance(value, Parameter)}
    state: Any = getattr(cls, "state", ())
    taken = RESERVED | ({state} if isinstance(state, str) else {*state})
    for name in declared:
        if name in taken or hasattr(Neuron, name):
            raise UserError(f"{cls.__name__}: every neuron has a {name} already; give the parameter another name.")
    return declared


def _constructor(declared: Mapping[str, Parameter]) -> Callable[..., None]:
    """A constructor that takes the declared parameters by name, for help and command line; see `Neuron`."""

    def __init__(self: Neuron, **settings: Any) -> None:  # noqa: N807
        Neuron.__init__(self, **settings)

    kind = inspect.Parameter.KEYWORD_ONLY
    arguments = [
        inspect.Parameter(n, kind, default=parameter.initial, annotation=Initial) for n, parameter in declared.items()
    ]
    learn = inspect.Parameter("learn", kind, default=None, annotation=list[str] | None)
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __init__.is_generated = True  # type: ignore[attr-defined]
    __init__.__signature__ = inspect.Signature([self_parameter, *arguments, learn])  # type: ignore[attr-defined]
    return __init__


class LIF(Neuron):
    """Leaky integrate-and-fire neurons with a fixed time constant; spikes [T, N, *] from inputs [T, N, *].

    Args:
        init_tau: tau > 1, in time-steps; or {distribution: arguments}, from which values are `drawn`.
        k: 1 / tau, which may be given instead.
        tau_per: a tau per `layer`, `channel` or `neuron`, see `Neuron`; they differ only if drawn.
        channels: number of channels, for `tau_per="channel"` or `"neuron"`.
        learn_threshold: learn V_th, positive by construction, see `Neuron`.
        firing: constants of firing and reset, by name: see `Firing`.

    Raises:
        UserError: a constant lies outside its range.
    """

    equations = LEAKY
    k = fixed(0.5, "unit", stored_as="a")
    a: Tensor

    def __init__(
        self,
        init_tau: Initial = 2.0,
        tau_per: TauPer = "layer",
        channels: int | None = None,
        learn_threshold: bool = False,
        **firing: Keywords[FiringKeywords],
    ) -> None:
        tau = drawn(init_tau, _shape(tau_per, channels), 1.0, math.inf, "init_tau")
        if not isinstance(tau, Tensor) and not 1 < tau < math.inf:
            raise UserError(f"init_tau must be > 1 (1/tau = sigmoid(a) lies in (0, 1)), got {init_tau}.")
        settings: dict[str, Any] = {"k": 1 / tau, **firing}
        super().__init__(tau_per, channels, learn_threshold, **settings)

    @property
    def tau(self) -> Tensor:
        """Membrane time constant in time-steps, a scalar or [channels], detached."""
        return 1 / self.value_of("k").detach()

    def learned(self) -> dict[str, Tensor]:
        return {"tau": self.tau, **{name: value for name, value in super().learned().items() if name != "k"}}


class PLIF(LIF):
    """Parametric leaky integrate-and-fire neurons: the time constant tau = 1 / sigmoid(a) is learned.

    Spikes [T, N, *] from inputs [T, N, *]. `a` is the parameter and `tau` a property.

    Args:
        init_tau: tau_0 > 1, in time-steps; a_0 = -log(tau_0 - 1). Or {distribution: arguments}, see `LIF`.
        k: 1 / tau_0 = sigmoid(a_0), which may be given instead.
        tau_per: an `a` per `layer` (the paper), `channel` or `neuron`, see `Neuron`.
        channels: number of channels, for `tau_per="channel"` or `"neuron"`.
        learn_threshold: learn V_th too, positive by construction, see `Neuron`.
        firing: constants of firing and reset, by name: see `Firing`.

    Raises:
        UserError: a constant lies outside its range.

    Source: Fang et al. 2021, Sec. 3.3.

    >>> neuron = PLIF(init_tau=2.0)
    >>> neuron(torch.full([4, 1, 1], 1.5)).flatten()
    tensor([0., 1., 0., 1.], grad_fn=<ViewBackward0>)
    """

    equations = LEAKY
    k = learned(0.5, "unit", stored_as="a")


class IF(Neuron):
    """Integrate-and-fire neurons without leak: H_t = V_{t-1} + X_t, the limit of tau to infinity.

    The input is not divided by tau: in the paper's limit W_fc / tau converges (Sec. 4.3).
    """

    equations = PERFECT

    @property
    def tau(self) -> Tensor:
        """Infinity, the time constant of a potential that does not leak."""
        return torch.tensor(math.inf)
