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

_log = logging.getLogger(__name__)
_SHAPE = (5, 3, 6, 5, 7)  # T, N, C, H, W; odd, so that tiles and pools have rests
_RTOL = 1e-3  # of a gradient's largest value: sums are taken in another order
_found: dict[tuple[str, torch.device], str] = {}


def _reference(y: Tensor, norm: Norm, dynamics: Dynamics, pool: str) -> Tensor:
    scale, shift = (row[:, None, :, None, None] for row in affine(norm))
    spikes = reference.run(y * scale + shift, dynamics)[0]
    if pool == "none":
        return spikes
    pooled = (functional.avg_pool2d if pool == "avg" else functional.max_pool2d)(spikes.flatten(0, 1), 2)
    return pooled.unflatten(0, spikes.shape[:2])


def difference(dynamics: Dynamics, device: torch.device) -> str:
    """How the fused kernels of a device differ from the reference for one layer of neurons; empty if they do not.

    Args:
        dynamics: the neurons; of values per channel the first one is taken.
        device: of the kernels.
    """
    given = {name: value.detach().flatten()[:1].float().to(device) for name, value in dynamics.parameters.items()}
    threshold = dynamics.firing.v_threshold
    if isinstance(threshold, Tensor):
        given["v_threshold"] = threshold.detach().flatten()[:1].float().to(device)
    generator = torch.Generator().manual_seed(0)
    y = (2 * torch.randn(_SHAPE, generator=generator)).to(device)
    rows = [torch.rand(1, _SHAPE[2], generator=generator).to(device) for _ in range(4)]
    norm = Norm(rows[0][0] + 0.5, rows[1][0], rows[2], rows[3] + 0.5)

    def both(run: Callable[..., Tensor], pool: str) -> list[Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in {**given, "y": y}.items()}
        firing = dynamics.firing
        if isinstance(threshold, Tensor):
            firing = replace(firing, v_threshold=leaves["v_threshold"][0])
        own = {name: leaves[name] for name in dynamics.parameters}
        spikes = run(leaves["y"], norm, Dynamics(dynamics.equations, own, firing, dynamics.key), pool=pool)
        weights = torch.linspace(-1, 2, spikes.numel(), device=device).view(spikes.shape)
        (spikes * weights).sum().backward()
        return [spikes.detach(), *(leaf.grad if leaf.grad is not None else leaf * 0 for leaf in leaves.values())]

    with torch.enable_grad():
        for pool in ("none", "max_first", "avg"):
            ours = both(lambda *of, **named: norm_fire_pool(*of, **named)[0], pool)
            theirs = both(_reference, pool)
            if not torch.equal(ours[0], theirs[0]):
                return f"{int((ours[0] != theirs[0]).sum())} of {ours[0].numel()} spikes, pool {pool}"
            for name, a, b in zip((*given, "x"), ours[1:], theirs[1:], strict=True):
                if not torch.allclose(a, b, rtol=_RTOL, atol=_RTOL * float(b.abs().max())):
                    return f"the gradient of {name} by {float((a - b).abs().max()):.2g}, pool {pool}"
    found, expected = moments(y), (y.mean((1, 3, 4)), y.var((1, 3, 4), correction=0))
    if not all(torch.allclose(a, b, rtol=_RTOL, atol=1e-5) for a, b in zip(found, expected, strict=True)):
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
