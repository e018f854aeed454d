"""Kernels against the reference on a tiny layer: for `auto`, once for a GPU, and for `check`."""

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
# Pool, steps of the input (a single step is held for all), and whether states are given and returned.
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


def _fused_outputs(y: Tensor, norm: Norm, dynamics: Dynamics, states: list[Tensor] | None, pool: Pool) -> list[Tensor]:
    # Statistics get no separate gradient: the backward kernel knows their input.
    norm = norm._replace(mean=norm.mean.detach(), invstd=norm.invstd.detach())
    spikes, last = norm_fire_pool(y, norm, dynamics, states, pool=pool, time_steps=_STEPS, last=pool == "none")
    return [spikes, *last]


def _outputs_and_gradients(
    form: Callable[..., list[Tensor]], dynamics: Dynamics, tensors: dict[str, Tensor], pool: Pool
) -> dict[str, Tensor]:
    """Spikes, last states and all gradients of a layer in training, by name."""
    leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    x, weight, bias = (leaves[name] for name in ("x", "BN's weight", "BN's bias"))
    firing = dynamics.firing
    if "v_threshold" in leaves:
        firing = replace(firing, v_threshold=leaves["v_threshold"][0])
    leaves_of_parameters = {name: leaves[name] for name in dynamics.parameters}
    var, mean = torch.var_mean(x, (1, 3, 4), correction=0)
    norm = Norm(weight, bias, mean, torch.rsqrt(var + _EPS), of_batch=True)
    names = [name for name in dynamics.equations.state if f"first {name}" in leaves]
    states = [leaves[f"first {name}"] for name in names] or None
    outputs = form(x, norm, Dynamics(dynamics.equations, leaves_of_parameters, firing, dynamics.key), states, pool)
    trained = [out for out in outputs if out.requires_grad]
    weights = [torch.linspace(-1, 2, out.numel(), device=x.device).view(out.shape) for out in trained]
    torch.autograd.backward(trained, weights)
    gradients = {f"the gradient of {n}": leaf * 0 if leaf.grad is None else leaf.grad for n, leaf in leaves.items()}
    return {**dict(zip(("spikes", *dynamics.equations.state), outputs, strict=False)), **gradients}


def difference(dynamics: Dynamics, device: torch.device) -> str:
    """How the fused kernels of a device differ from the reference for a layer of neurons; empty if they do not.

    The layer is compared as it trains: BN with the batch's statistics of each step, all gradients, also through the
    statistics and of the first states included; and for a held input.

    Args:
        dynamics: the neurons; of values per channel the first is taken.
        device: of the kernels.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    learned = {**dynamics.parameters, "v_threshold": dynamics.firing.v_threshold}
    tensors = {
        name: value.detach().flatten()[:1].float().to(device)
        for name, value in learned.items()
        if isinstance(value, Tensor)
    }
    tensors |= {"BN's weight": drawn(_SHAPE[1]) + 1.5, "BN's bias": drawn(_SHAPE[1]) + 0.3}
    scales = 1 + torch.arange(_STEPS, device=device).view(-1, 1, 1, 1, 1)  # other statistics at each step
    with torch.enable_grad():
        for pool, steps, with_states in _CASES:
            if pool != "none" and dynamics.equations.fire is not None:
                continue  # the kernels pool spikes
            x = drawn(steps, *_SHAPE) * scales[:steps] + scales[:steps] / 2
            states = {f"first {name}": 0.3 * drawn(*_SHAPE) for name in dynamics.equations.state if with_states}
            fused, reference = (
                _outputs_and_gradients(f, dynamics, tensors | {"x": x} | states, pool)
                for f in (_fused_outputs, _reference)
            )
            for name, b in reference.items():
                a, b = fused[name].detach(), b.detach()
                rtol = 0.0 if name == "spikes" else _RTOL
                if not torch.allclose(a, b, rtol=rtol, atol=rtol * float(b.abs().max())):
                    error = float((a - b).abs().max())
                    by = f"{int((a != b).sum())} of {a.numel()} values" if name == "spikes" else f"{error:.2g}"
                    return f"{name} by {by}, pool {pool}{'' if steps > 1 else ', held input'}"
            moments_here = zip(moments(x), reversed(torch.var_mean(x, (1, 3, 4), correction=0)), strict=True)
            if not all(torch.allclose(a, b, rtol=_RTOL, atol=1e-5) for a, b in moments_here):
                return "the moments of BN"
    return ""


def failure_of(compare: Callable[[], str]) -> str:
    """The result of a comparison; or the first line of its error, as from a compiler or driver."""
    try:
        return compare()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def agrees(dynamics: Dynamics, device: torch.device) -> bool:
    """True if the kernels of a device agree with the reference for these equations; tried once in a process.

    If they differ, cannot be compiled or raise, a warning names the reason.
    """
    case = dynamics.key, device
    if case not in _found:
        if torch.compiler.is_compiling():
            return True
        _found[case] = failure_of(partial(difference, dynamics, device))
        if _found[case]:
            _log.warning(
                "The reference runs instead of the Triton kernels on %s, which differ from it: %s. Please report it "
                "with the output of `plif-lightning check`.", device, _found[case],
            )  # fmt: skip
    return not _found[case]
