"""Neurons over T time-steps in plain PyTorch and its autograd: the reference for every faster implementation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plif_lightning.dynamics.equations import TENSORS, Dynamics, Step
from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.leaky import leaky
from plif_lightning.errors import UserError

States = tuple[Tensor, ...]


def run(
    x: Tensor,
    dynamics: Dynamics,
    states: Sequence[Tensor] | None = None,
    time_steps: int | None = None,
) -> tuple[Tensor, States]:
    """Spikes and last states of neurons that charge, fire and reset for T steps.

    Calls are stateless. A sequence may be split anywhere in time: pass the returned states to the next call.

    Args:
        x: input X, [T, N, *], or [1, N, *] with `time_steps` for an input that is constant over T steps.
        dynamics: the neuron; its parameters are scalars or have a value per channel (dimension 2 of x).
        states: before the first step, [N, *] each; None for V_reset and zeros.
        time_steps: T, only for an x with a single step.

    Returns:
        Spikes of 0 and 1, [T, N, *] in the dtype of x; the states after the last step, [N, *], at least float32,
        even under autocast.

    Raises:
        UserError: x has fewer than two dimensions or no time-step, or shapes do not match.
    """
    time_steps = check_inputs(x, dynamics, states, time_steps)
    spikes, last = [], None
    with in_real_precision(x.device):
        for last in _steps(x, dynamics, states, time_steps):
            spikes.append(last.s.to(x.dtype))
        assert last is not None
        return torch.stack(spikes), last.after


def integrate_and_fire(
    x: Tensor,
    k: Tensor | None,
    v: Tensor | None = None,
    *,
    firing: Firing = Firing(),
    time_steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes and last membrane potential of the paper's neurons.

    charge: H_t = V_{t-1} + k (X_t - (V_{t-1} - V_reset)), or H_t = V_{t-1} + X_t without leak;
    fire: S_t = 1 if H_t >= V_th else 0;
    hard reset: V_t = H_t (1 - S_t) + V_reset S_t; soft reset: V_t = H_t - V_th S_t.

    Args:
        x: as in `run`.
        k: 1/tau in (0, 1), a scalar or a value per channel (dimension 2 of x); None: no leak (IF).
        v: potential V_{-1} before the first step, [N, *]; V_reset by default.
        firing: threshold, reset and surrogate.
        time_steps: as in `run`.

    Returns:
        Spikes and the potential V_{T-1}, as in `run`.

    Raises:
        UserError: as in `run`.

    Source: Fang et al. 2021, Eqs. 2-6 (with the brackets that Eqs. 5 and 6 lack) and 8-17.
    """
    spikes, (v,) = run(x, leaky(k, firing), None if v is None else (v,), time_steps)
    return spikes, v


class Trace(NamedTuple):
    """Spikes and potentials of a layer at each time-step.

    Attributes:
        spikes: S, [T, N, *].
        charged: H, the potential compared with the threshold, [T, N, *].
        v: the first state after the reset, the potential V of the paper's neurons, [T, N, *].
        v_threshold: V_th, a number or [channels]; [T, N, *] where it changes from step to step.
        states: all states after the reset by name, [T, N, *] each.
    """

    spikes: Tensor
    charged: Tensor
    v: Tensor
    v_threshold: float | Tensor = 1.0
    states: Mapping[str, Tensor] = {}


@torch.no_grad()
def trace(
    x: Tensor,
    dynamics: Dynamics,
    states: Sequence[Tensor] | None = None,
    time_steps: int | None = None,
) -> Trace:
    """Spikes and potentials of every step, without gradients; arguments and errors as in `run`."""
    time_steps = check_inputs(x, dynamics, states, time_steps)
    with in_real_precision(x.device):
        steps = list(_steps(x, dynamics, states, time_steps))
    equations, firing = dynamics.equations, dynamics.firing
    after = {name: torch.stack([step.after[i] for step in steps]) for i, name in enumerate(equations.state)}
    spikes, charged = torch.stack([step.s for step in steps]), torch.stack([step.h for step in steps])
    threshold = firing.v_threshold
    if equations.threshold is not None:
        threshold = torch.stack([torch.as_tensor(step.threshold).expand_as(step.h) for step in steps])
    return Trace(spikes, charged, after[equations.state[0]], threshold, after)


def in_real_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Context manager that disables autocast on a device."""
    return torch.autocast(device.type, enabled=False) if autocast_in_force(device) else nullcontext()


def autocast_in_force(device: torch.device) -> bool:
    """True if autocast is enabled on this device; always False on the meta device, which has none."""
    # torch.amp.is_autocast_available cannot be compiled by PyTorch 2.10.
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def _steps(x: Tensor, dynamics: Dynamics, states: Sequence[Tensor] | None, time_steps: int) -> Iterator[Step]:
    """Yield the values of each step, in float32 at least."""
    equations, parameters, firing, _ = dynamics
    dtype = torch.promote_types(x.dtype, torch.float32)
    if states is None:
        initial = equations.start(firing)
        states = [torch.full((), start, dtype=dtype, device=x.device).expand(x.shape[1:]) for start in initial]
    states = tuple(state.to(dtype) for state in states)
    values = {name: over_channels(value, x).to(dtype) for name, value in parameters.items()}
    if isinstance(firing.v_threshold, Tensor):
        firing = replace(firing, v_threshold=over_channels(firing.v_threshold, x))
    for x_t in x.expand(time_steps, *x.shape[1:]):
        if not firing.through_time:
            states = tuple(state.detach() for state in states)
        step = equations.step(x_t.to(dtype), states, values, firing, TENSORS)
        states = step.after
        yield step


def over_channels(value: Tensor, x: Tensor) -> Tensor:
    """A value per channel in a shape that broadcasts with a step of x; a shared value is a scalar."""
    return value.reshape(()) if value.numel() == 1 else value.view(-1, *[1] * (x.dim() - 3))


def check_inputs(x: Tensor, dynamics: Dynamics, states: Sequence[Tensor] | None, time_steps: int | None) -> int:
    """Check the arguments of `run` and return T.

    Raises:
        UserError: see `run`.
    """
    equations, parameters, firing, _ = dynamics
    time_steps = _number_of_steps(x, time_steps)
    given_shapes = [(tuple(state.shape), state.device) for state in states or ()]
    if states is not None and given_shapes != [(tuple(x.shape[1:]), x.device)] * len(equations.state):
        raise UserError(
            f"states must be {', '.join(equations.state)}, each of the shape of one step of x, {tuple(x.shape[1:])} on "
            f"{x.device}, got {', '.join(f'{shape} on {device}' for shape, device in given_shapes)}."
        )
    for name, value in (*parameters.items(), ("v_threshold", firing.v_threshold)):
        if isinstance(value, Tensor) and value.numel() != 1 and value.shape != x.shape[2:3]:
            shapes = f"x {tuple(x.shape)}, got {tuple(value.shape)}"
            raise UserError(f"{name} must be a scalar or one value per channel of {shapes}.")
    return time_steps


def _number_of_steps(x: Tensor, time_steps: int | None) -> int:
    """T of an input with that many steps, or with a single step that is held for `time_steps`."""
    if x.dim() < 2 or x.shape[0] == 0:
        raise UserError(f"x must be [T, N, *] with T >= 1, got shape {tuple(x.shape)}.")
    if time_steps is None:
        return x.shape[0]
    if time_steps < 1 or x.shape[0] not in (1, time_steps):
        raise UserError(f"x must have 1 or time_steps = {time_steps} >= 1 steps, got {x.shape[0]}.")
    return time_steps
