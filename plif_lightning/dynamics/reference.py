"""The paper's neuron over T time-steps in plain PyTorch: the reference for every faster implementation."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.firing import Firing
from plif_lightning.errors import UserError


def integrate_and_fire(
    x: Tensor,
    k: Tensor | None,
    v: Tensor | None = None,
    *,
    firing: Firing = Firing(),
    time_steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes and last membrane potential of neurons that charge, fire and reset for T steps.

    charge: H_t = V_{t-1} + k (X_t - (V_{t-1} - V_reset)), or H_t = V_{t-1} + X_t without leak;
    fire: S_t = 1 if H_t >= V_th else 0;
    hard reset: V_t = H_t (1 - S_t) + V_reset S_t; soft reset: V_t = H_t - V_th S_t.

    Calls are stateless. A sequence may be split anywhere in time: pass the returned potential to the next
    call as `v`.

    Args:
        x: input X, [T, N, *], or [1, N, *] with `time_steps` for an input that is constant over T steps.
        k: 1/tau in (0, 1), a scalar or one value per channel (dimension 2 of x); None: no leak (IF).
        v: potential V_{-1} before the first step, [N, *]; V_reset by default.
        firing: threshold, reset and surrogate.
        time_steps: T, only for an x with one step.

    Returns:
        Spikes of 0 and 1, [T, N, *] in the dtype of x; the potential V_{T-1}, [N, *], at least float32,
        even under autocast.

    Raises:
        UserError: x has fewer than two dimensions or no time-step, or shapes do not match.

    Source: Fang et al. 2021, Eqs. 2-6 (with the brackets that Eqs. 5 and 6 lack) and 8-17.
    """
    time_steps = checked(x, k, v, firing, time_steps)
    with in_own_precision(x.device):
        return _IntegrateAndFire.apply(x, *_prepared(x, k, v, firing), firing, time_steps)


class Trace(NamedTuple):
    """Spikes and potentials of a layer at each time-step.

    Attributes:
        spikes: S, [T, N, *].
        charged: H, the potential compared with V_th, [T, N, *].
        v: V, the potential after the reset, [T, N, *].
        v_threshold: V_th, a number or [channels].
    """

    spikes: Tensor
    charged: Tensor
    v: Tensor
    v_threshold: float | Tensor = 1.0


def trace(
    x: Tensor,
    k: Tensor | None,
    v: Tensor | None = None,
    *,
    firing: Firing = Firing(),
    time_steps: int | None = None,
) -> Trace:
    """Spikes and potentials of every step, without gradients; arguments and errors as in `integrate_and_fire`."""
    time_steps = checked(x, k, v, firing, time_steps)
    with torch.no_grad(), in_own_precision(x.device):
        steps = _steps(x, *_prepared(x, k, v, firing), firing, time_steps)
        charged, spikes, after = (torch.stack(values) for values in zip(*steps, strict=True))
    return Trace(spikes, charged, after, firing.v_threshold)


def in_own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Context manager that disables autocast on a device."""
    return torch.autocast(device.type, enabled=False) if autocast_in_force(device) else nullcontext()


def autocast_in_force(device: torch.device) -> bool:
    """True if autocast is enabled on this device; always False on the meta device, which has none."""
    # torch.amp.is_autocast_available cannot be compiled by PyTorch 2.10.
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def _prepared(
    x: Tensor, k: Tensor | None, v: Tensor | None, firing: Firing
) -> tuple[Tensor | None, Tensor, float | Tensor]:
    """k, V_{-1} and V_th in shapes that broadcast with one step of x, and k and V_{-1} in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if v is None:
        v = torch.full((), firing.v_reset, dtype=dtype, device=x.device).expand(x.shape[1:])
    k = _over_channels(k, x)
    return None if k is None else k.to(dtype), v.to(dtype), _over_channels(firing.v_threshold, x)


def _over_channels(value: Any, x: Tensor) -> Any:
    """One value per channel in a shape that broadcasts with one step of x; anything else is returned unchanged."""
    return value.view(-1, *[1] * (x.dim() - 3)) if isinstance(value, Tensor) and value.dim() > 0 else value


def checked(x: Tensor, k: Tensor | None, v: Tensor | None, firing: Firing, time_steps: int | None) -> int:
    """Check the arguments of `integrate_and_fire` and return T.

    Raises:
        UserError: see `integrate_and_fire`.
    """
    time_steps = _number_of_steps(x, time_steps)
    if v is not None and v.shape != x.shape[1:]:
        raise UserError(f"v must have the shape of one step of x, {tuple(x.shape[1:])}, got {tuple(v.shape)}.")
    if v is not None and v.device != x.device:
        raise UserError(f"v must be on the device of x, {x.device}, got one on {v.device}.")
    for name, value in (("k", k), ("v_threshold", firing.v_threshold)):
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape != x.shape[2:3]:
            shapes = f"x {tuple(x.shape)}, got {tuple(value.shape)}"
            raise UserError(f"{name} must be a scalar or one value per channel of {shapes}.")
    return time_steps


def _number_of_steps(x: Tensor, time_steps: int | None) -> int:
    """T of an input with that many steps, or with one step that is held for `time_steps`."""
    if x.dim() < 2 or x.shape[0] == 0:
        raise UserError(f"x must be [T, N, *] with T >= 1, got shape {tuple(x.shape)}.")
    if time_steps is None:
        return x.shape[0]
    if time_steps < 1:
        raise UserError(f"time_steps must be at least 1, got {time_steps}.")
    if x.shape[0] not in (1, time_steps):
        raise UserError(f"x must have 1 or time_steps = {time_steps} steps, got {x.shape[0]}.")
    return time_steps


def _charge(x: Tensor, k: Tensor | None, v: Tensor, v_reset: float) -> Tensor:
    """H_t: Eq. 3 with the paper's k(a); without leak, the sum of input and potential."""
    if k is None:
        return v + x
    drive = x - v if v_reset == 0 else x - (v - v_reset)
    return drive.mul_(k).add_(v)


def _fire(h: Tensor, v_threshold: float | Tensor) -> Tensor:
    """S_t in the dtype of h, which is faster to write and to compute with than a boolean mask."""
    return torch.ge(h, v_threshold, out=torch.empty_like(h))


def _reset(h: Tensor, fired: Tensor, v_threshold: float | Tensor, firing: Firing) -> Tensor:
    """V_t = H_t (1 - S_t) + V_reset S_t, or H_t - V_th S_t for a soft reset."""
    if firing.reset == "soft":
        return h - v_threshold * fired
    # Evaluating H_t (1 - S_t) + V_reset S_t literally would give NaN for an infinite H_t.
    return h.masked_fill(fired != 0, firing.v_reset)


def _steps(
    x: Tensor, k: Tensor | None, v: Tensor, v_threshold: float | Tensor, firing: Firing, time_steps: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield H_t, S_t and V_t of each step, for values as `_prepared` returns them."""
    for x_t in x.expand(time_steps, *x.shape[1:]):
        h = _charge(x_t.to(v.dtype), k, v, firing.v_reset)
        fired = _fire(h, v_threshold)
        v = _reset(h, fired, v_threshold, firing)
        yield h, fired, v


def _grad_of_charged(
    h: Tensor, grad_fire: Tensor, grad_v: Tensor, v_threshold: float | Tensor, firing: Firing, to: Tensor | None
) -> Tensor:
    """dL/dH_t from dL/dS_t and dL/dV_t; adds dL/dV_th of this step to `to`.

    dS/dV_th is -dS/dH, and under a soft reset dV/dV_th is -S.
    """
    fired, soft = _fire(h, v_threshold), firing.reset == "soft"
    if not firing.detach_reset:
        grad_fire = grad_fire + grad_v * (-v_threshold if soft else firing.v_reset - h)
    grad_h = firing.gradient.derivative(h - v_threshold).mul_(grad_fire)
    if to is not None:
        to -= (grad_h + grad_v * fired if soft else grad_h).sum_to_size(to.shape)
    return grad_h.add_(grad_v if soft else grad_v.masked_fill(fired != 0, 0.0))


class _IntegrateAndFire(torch.autograd.Function):
    """Saves only x, k, V_{-1} and V_th; the backward pass recomputes H and applies Eqs. 8-17."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        k: Tensor | None,
        v: Tensor,
        v_threshold: float | Tensor,
        firing: Firing,
        time_steps: int,
    ) -> tuple[Tensor, Tensor]:
        learned = isinstance(v_threshold, Tensor)
        ctx.save_for_backward(x, k, v, v_threshold if learned else None)
        ctx.settings = (v_threshold if not learned else None, firing, time_steps)
        spikes = x.new_empty(time_steps, *x.shape[1:])
        for t, (_, fired, v_t) in enumerate(_steps(x, k, v, v_threshold, firing, time_steps)):
            spikes[t], v = fired, v_t
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        x, k, v, learned = ctx.saved_tensors
        v_threshold, firing, time_steps = ctx.settings
        v_threshold = v_threshold if learned is None else learned
        constant, inputs = x.shape[0] == 1, x.expand(time_steps, *x.shape[1:])
        potentials, resets = [], [v]
        for h, _, after in _steps(x, k, v, v_threshold, firing, time_steps):
            potentials.append(h)
            resets.append(after)
        grad_v = grad_v.to(v.dtype)
        grad_x = torch.zeros_like(x, dtype=v.dtype) if constant else torch.empty_like(x)
        grad_k = None if k is None else torch.zeros_like(k)
        grad_threshold = None if learned is None else torch.zeros_like(learned, dtype=v.dtype)
        for t in reversed(range(time_steps)):
            grad_fire = grad_spikes[t].to(v.dtype)
            grad_h = _grad_of_charged(potentials.pop(), grad_fire, grad_v, v_threshold, firing, grad_threshold)
            if k is None:
                grad_input, grad_v = grad_h, grad_h
            else:
                drive = inputs[t].to(v.dtype) - (resets[t] - firing.v_reset)
                grad_k += drive.mul_(grad_h).sum_to_size(k.shape)
                grad_input = grad_h * k
                grad_v = grad_h.sub_(grad_input)
            if constant:
                grad_x[0] += grad_input
            else:
                grad_x[t] = grad_input
        return grad_x.to(x.dtype), grad_k, grad_v, grad_threshold, None, None
