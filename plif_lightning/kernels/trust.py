"""Kernels against the reference on a tiny layer: what `auto` asks once of a GPU, and `check` prints."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from plif_lightning.dynamics import reference
from plif_lightning.dynamics.equations import Dynamics
from plif_lightning.kernels.fused import Norm, affine, moments, norm_fire_pool
from plif_lightning.kernels.layout import Pool

_log = logging.getLogger(__name__)
_STEPS = 5
_SHAPE = (3, 6, 5, 7)  # N, C, H, W; odd, so that tiles and pools have rests
_RTOL = 1e-3  # of a gradient's largest value: sums are taken in another order
_EPS = 1e-5
_found: dict[tuple[str, torch.device], str] = {}
# Pool, steps of the input (one is held for all), and whether states are given and returned.
_CASES: tuple[tuple[Pool, int, bool], ...] = (
    ("none", _STEPS, True),
    ("none", 1, True),
    ("max_first", _STEPS, False),
    ("avg", _STEPS, False),
)


def _reference(y: Tensor, norm: Norm, dynamics: Dynamics, states: list[Tensor] | None, pool: Pool) -> list[Tensor]:
    scale, shift = (row[:, None, :, None, None] for row in affine(norm))
    spikes, last = reference.run(y * scale + shift, dynamics, states, _STEPS)
    if pool == "none":
        return [spikes, *last]
    pooled = (functional.avg_pool2d if pool == "avg" else functional.max_pool2d)(spikes.flatten(0, 1), 2)
    return [pooled.unflatten(0, spikes.shape[:2])]


def _fused(y: Tensor, norm: Norm, dynamics: Dynamics, states: list[Tensor] | None, pool: Pool) -> list[Tensor]:
    # Statistics have no gradient of their own: the backward kernel knows what they are of.
    norm = norm._replace(mean=norm.mean.detach(), invstd=norm.invstd.detach())
    spikes, last = norm_fire_pool(y, norm, dynamics, states, pool=pool, time_steps=_STEPS, last=pool == "none")
    return [spikes, *last]


def difference(dynamics: Dynamics, device: torch.device) -> str:
    """How the fused kernels of a device differ from the reference for one layer of neurons; empty if they do not.

    The layer is compared as it trains: BN with the batch's statistics of each step, all gradients, those through the
    statistics and of the first states included; and for a held input.

    Args:
        dynamics: the neurons; of values per channel the first one is taken.
        device: of the kernels.
    """
    given = {name: value.detach().flatten()[:1].float().to(device) for name, value in dynamics.parameters.items()}
    threshold = dynamics.firing.v_threshold
    if isinstance(threshold, Tensor):
        given["v_threshold"] = threshold.detach().flatten()[:1].float().to(device)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    channels = _SHAPE[1]
    given |= {"BN's weight": drawn(channels) + 1.5, "BN's bias": drawn(channels) + 0.3}
    scales = 1 + torch.arange(_STEPS, device=device).view(-1, 1, 1, 1, 1)  # other statistics at each step

    def run(
        form: Callable[..., list[Tensor]], x: Tensor, before: list[Tensor], pool: Pool
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        leaves = {**given, "x": x, **{f"state {i}": state for i, state in enumerate(before)}}
        leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
        firing = dynamics.firing
        if isinstance(threshold, Tensor):
            firing = replace(firing, v_threshold=leaves["v_threshold"][0])
        own = {name: leaves[name] for name in dynamics.parameters}
        y = leaves["x"]
        var, mean = torch.var_mean(y, (1, 3, 4), correction=0)
        norm = Norm(leaves["BN's weight"], leaves["BN's bias"], mean, torch.rsqrt(var + _EPS), of_batch=True)
        states = [leaves[f"state {i}"] for i in range(len(before))] or None
        outputs = form(y, norm, Dynamics(dynamics.equations, own, firing, dynamics.key), states, pool)
        trained = [out for out in outputs if out.requires_grad]
        weights = [torch.linspace(-1, 2, out.numel(), device=device).view(out.shape) for out in trained]
        torch.autograd.backward(trained, weights)
        gradients = {name: leaf * 0 if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
        return [out.detach() for out in outputs], gradients

    with torch.enable_grad():
        for pool, steps, with_states in _CASES:
            x = drawn(steps, *_SHAPE) * scales[:steps] + scales[:steps] / 2
            before = [0.3 * drawn(*_SHAPE) for _ in dynamics.equations.state] if with_states else []
            where = f"pool {pool}" + ("" if steps > 1 else ", held input")
            outputs, gradients = run(_fused, x, before, pool)
            expected, expected_gradients = run(_reference, x, before, pool)
            if not torch.equal(outputs[0], expected[0]):
                return f"{int((outputs[0] != expected[0]).sum())} of {outputs[0].numel()} spikes, {where}"
            for name, a, b in (
                *zip(dynamics.equations.state, outputs[1:], expected[1:], strict=False),
                *((f"the gradient of {name}", gradients[name], b) for name, b in expected_gradients.items()),
            ):
                if not torch.allclose(a, b, rtol=_RTOL, atol=_RTOL * float(b.abs().max())):
                    return f"{name} by {float((a - b).abs().max()):.2g}, {where}"
            var_and_mean = torch.var_mean(x, (1, 3, 4), correction=0)
            for a, b in zip(moments(x), reversed(var_and_mean), strict=True):
                if not torch.allclose(a, b, rtol=_RTOL, atol=1e-5):
                    return "the moments of BN"
    return ""


def tried(compare: Callable[[], str]) -> str:
    """The result of a comparison; the first line of what it raised, as a compiler or driver may."""
    try:
        return compare()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def agrees(dynamics: Dynamics, device: torch.device) -> bool:
    """True if the kernels of a device agree with the reference for these equations; tried once in a process.

    If they differ, cannot be compiled or raise, one warning names the reason.
    """
    place = dynamics.key, device
    if place not in _found:
        if torch.compiler.is_compiling():
            return True
        _found[place] = tried(partial(difference, dynamics, device))
        if _found[place]:
            _log.warning(
                "The reference runs instead of the Triton kernels on %s, which differ from it: %s. Please report it "
                "with the output of `plif-lightning check`.", device, _found[place],
            )  # fmt: skip
    return not _found[place]
