"""A neuron as its equations, and a time-step of it: run by PyTorch, or recorded for compiled code."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.expression import Gradient, Value, as_text, constant, gradients, number_of, record
from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.surrogate import spike
from plif_lightning.errors import UserError

# Names that equations may use besides states and parameters.
GIVEN = ("x", "h", "s", "reset", "v_threshold", "v_reset", "spike")


@dataclass(frozen=True)
class Equations:
    """The equations of a neuron: plain functions with arguments named after the values they need.

    Values are `x`, the input of the step; the states before the step; the parameters; `v_threshold` and `v_reset`. In
    `after` also `h`, the potential that was compared with the threshold; `s`, the spike, 1 or 0, without gradient if
    `Firing.detach_reset`; and `reset`, h after the reset that `Firing.reset` names. In `fire` also `h`, and `spike(u,
    threshold)`, 1 where u reaches a threshold, with the surrogate's gradient.

    Args:
        state: names of the states. A state named v starts at V_reset, any other at 0.
        charge: gives h.
        after: gives the states after the spike, in order; by default `reset`.
        threshold: gives the threshold of h; by default `v_threshold`.
        fire: gives s, of any values, such as integers; by default `spike(h, threshold)`.

    Raises:
        UserError: a function names an unavailable value.
    """

    state: tuple[str, ...]
    charge: Callable[..., Any]
    after: Callable[..., Any] | None = None
    threshold: Callable[..., Any] | None = None
    fire: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not self.state or len({*self.state} - {*GIVEN}) < len(self.state):
            raise UserError(
                f"state must name one state or more, each once and none of {', '.join(GIVEN)}, got {self.state}."
            )
        if self.after is None and len(self.state) > 1:
            raise UserError(
                f"{self.charge.__qualname__} belongs to a neuron with the states {', '.join(self.state)}: "
                "write `after`, which gives all of them after a spike."
            )
        if self.fire is not None and self.uses_firing_reset:
            raise UserError(
                f"{self.fire.__qualname__} gives another output than a single spike, of which no reset follows: write "
                "`after`, without `reset`."
            )
        for function, unknown in ((self.charge, {"h", "s", "reset"}), (self.threshold, {"h", "s", "reset"}),
                                  (self.fire, {"s", "reset"})):  # fmt: skip
            if function is not None and (early := unknown & set(_arguments(function))):
                raise UserError(f"{function.__qualname__} cannot use {', '.join(sorted(early))}: it is not known yet.")

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in order of first use."""
        functions = [self.charge, self.threshold, self.fire, self.after]
        names = [name for function in functions if function is not None for name in _arguments(function)]
        return tuple(dict.fromkeys(name for name in names if name not in (*self.state, *GIVEN)))

    @property
    def uses_firing_reset(self) -> bool:
        """True if `Firing.reset` defines the reset; False if the equations do."""
        return self.after is None or "reset" in _arguments(self.after)

    def start(self, firing: Firing) -> tuple[float, ...]:
        """The states before the first step."""
        return tuple(firing.v_reset if name == "v" else 0.0 for name in self.state)

    def step(self, x: Any, states: Sequence[Any], parameters: Mapping[str, Any], firing: Firing, ops: Any) -> "Step":
        """A time-step.

        Args:
            x: the input.
            states: before the step.
            parameters: by name.
            firing: threshold, reset and surrogate.
            ops: `TENSORS`, or `VALUES` to record the step.
        """
        values = {"x": x, "v_threshold": firing.v_threshold, "v_reset": firing.v_reset, **parameters}
        values |= dict(zip(self.state, states, strict=True))

        def of(function: Callable[..., Any]) -> Any:
            return ops.call(function, {name: values[name] for name in _arguments(function)})

        h = ops.filled(of(self.charge), x)
        threshold = firing.v_threshold if self.threshold is None else of(self.threshold)
        if self.fire is None:
            s = ops.spike(h, threshold, firing)
        else:
            values |= {"h": h, "spike": lambda u, at: ops.spike(u, at, firing)}
            s = ops.filled(of(self.fire), x)
        fired = s.detach() if firing.detach_reset else s
        if self.uses_firing_reset:
            values["reset"] = ops.chosen(fired, firing.v_reset if firing.reset == "hard" else h - threshold, h)
        if self.after is None:
            return Step(h, s, (values["reset"],), threshold)
        values |= {"h": h, "s": fired}
        after = of(self.after)
        after = after if isinstance(after, tuple) else (after,)
        if len(after) != len(self.state):
            raise UserError(
                f"{self.after.__qualname__} must give {len(self.state)} states ({', '.join(self.state)}), "
                f"got {len(after)}."
            )
        return Step(h, s, tuple(ops.filled(state, x) for state in after), threshold)


@functools.cache
def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of a function's arguments."""
    return tuple(inspect.signature(function).parameters)


class Step(NamedTuple):
    """Values of a time-step.

    Attributes:
        h: the potential that is compared with the threshold.
        s: the spike.
        after: the states after it.
        threshold: the threshold that h is compared with.
    """

    h: Any
    s: Any
    after: tuple[Any, ...]
    threshold: Any


class _Chosen(torch.autograd.Function):
    """s a + (1 - s) b for a spike s, without the product: an infinite b must not give NaN where s is 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(s != 0, a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        s, a, b = ctx.saved_tensors
        fired = s != 0
        by_a = grad.masked_fill(~fired, 0.0).sum_to_size(a.shape) if ctx.needs_input_grad[1] else None
        return grad * (a - b), by_a, grad.masked_fill(fired, 0.0)


class TENSORS:
    """Operations of a step on tensors."""

    @staticmethod
    def call(function: Callable[..., Any], values: dict[str, Any]) -> Any:
        return function(**values)

    @staticmethod
    def filled(value: Any, like: Tensor) -> Tensor:
        """A value of all neurons, such as a number or a parameter, for each of them."""
        return value.expand(like.shape) if isinstance(value, Tensor) else torch.full_like(like, value)

    @staticmethod
    def spike(h: Tensor, threshold: Any, firing: Firing) -> Tensor:
        return spike(h, threshold, firing.gradient)

    @staticmethod
    def chosen(s: Tensor, a: Any, b: Tensor) -> Tensor:
        return _Chosen.apply(s, torch.as_tensor(a, dtype=b.dtype, device=b.device), b)


class VALUES:
    """Operations of a step that is recorded."""

    @staticmethod
    def call(function: Callable[..., Any], values: dict[str, Any]) -> Any:
        return record(function, **values)

    @staticmethod
    def filled(value: Value, like: Value) -> Value:
        return number_of(value)

    @staticmethod
    def spike(h: Value, threshold: Any, firing: Firing) -> Value:
        return Value("spike", h, number_of(threshold))

    @staticmethod
    def chosen(s: Value, a: Any, b: Value) -> Value:
        return Value("chosen", s, number_of(a), b)


class Dynamics(NamedTuple):
    """A layer of neurons as its values, which functions that run it over time take together.

    Attributes:
        equations: the neuron.
        parameters: of the equations by name, a scalar or a value per channel each.
        firing: threshold, reset and surrogate.
        key: of their program.
    """

    equations: Equations
    parameters: Mapping[str, Tensor]
    firing: Firing
    key: str

    @classmethod
    def of(cls, equations: Equations, parameters: Mapping[str, Tensor], firing: Firing) -> "Dynamics":
        """With the key of the program, which is recorded if it is new; errors as `program_of`."""
        return cls(equations, parameters, firing, program_of(equations, firing).key)


class Program(NamedTuple):
    """A recorded step and its gradients, from which kernels are made.

    Inputs are named: x, the states, the parameters; for the gradients also `d s`, that of the spike, and that of each
    state after the step, `d` and its name. No name in Python has a space.

    Attributes:
        key: differs for programs that differ.
        states: their names.
        parameters: names of the parameters, V_th included if it is learned.
        start: the states before the first step.
        spike: the spike.
        after: the states after the step.
        by_x: gradient of x; None where it is zero.
        by_states: of the states before the step.
        by_parameters: of the parameters.
    """

    key: str
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    start: tuple[float, ...]
    spike: Value
    after: tuple[Value, ...]
    by_x: Gradient
    by_states: tuple[Gradient, ...]
    by_parameters: tuple[Gradient, ...]


_programs: dict[str, Program] = {}


@torch.enable_grad()
def program_of(equations: Equations, firing: Firing) -> Program:
    """The program of a neuron; a learned threshold is a parameter, other constants are part of it.

    So are numbers that the equations take from elsewhere, as they are now.

    Raises:
        UserError: an equation cannot be recorded; names the line.
    """
    learned = isinstance(firing.v_threshold, Tensor)
    names = (*equations.parameters, *(["v_threshold"] if learned else []))
    x, *inputs = (Value("input", name) for name in ("x", *equations.state, *names))
    states, parameters = inputs[: len(equations.state)], inputs[len(equations.state) :]
    constants = replace(firing, v_threshold=cast("Any", parameters[-1])) if learned else firing
    step = equations.step(x, states, dict(zip(equations.parameters, parameters, strict=False)), constants, VALUES)
    seeds = [(step.s, Value("input", "d s"))]
    seeds += [(after, Value("input", f"d {name}")) for after, name in zip(step.after, equations.state, strict=True)]
    by_x, *derivatives = gradients(seeds, [x, *states, *parameters], cast("Any", firing.gradient.derivative))
    by_states, by_parameters = tuple(derivatives[: len(states)]), tuple(derivatives[len(states) :])
    if not firing.through_time:
        by_states = (None,) * len(states)
    start = equations.start(constants)
    back = [by_x, *by_states, *by_parameters]
    text = as_text([step.s, *step.after, *(constant(0.0) if value is None else value for value in back)])
    key = hashlib.blake2b(f"{equations.state} {names} {start}\n{text}".encode(), digest_size=8).hexdigest()
    program = Program(key, equations.state, names, start, step.s, step.after, by_x, by_states, by_parameters)
    return _programs.setdefault(key, program)


def register(program: Program) -> str:
    """The key of a program, which may come from another process."""
    return _programs.setdefault(program.key, program).key


def program(key: str) -> Program:
    """The program of a key, of a neuron that was made in this process."""
    return _programs[key]
