"""The neuron written out step by step for PyTorch's autograd, in float64, surrogates by hand."""

import math

import torch


class _HandWrittenStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, name, width):
        ctx.save_for_backward(u)
        ctx.name, ctx.width = name, width
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        z = u / ctx.width
        if ctx.name == "atan":
            d = 1 / (1 + (math.pi * z) ** 2)
        elif ctx.name == "sigmoid":
            d = torch.exp(-z) / (1 + torch.exp(-z)) ** 2
        elif ctx.name == "triangle":
            d = torch.maximum(torch.zeros_like(z), 1 - torch.abs(z))
        elif ctx.name == "fast_sigmoid":
            d = 0.5 * (1 + torch.abs(z)) ** -2
        else:
            d = torch.where((z > -0.5) & (z < 0.5), 1.0, 0.0)
        return grad * d / (1 if ctx.name == "boxcar" else ctx.width), None, None


def run(x, k, v=None, *, v_threshold=1.0, v_reset=0.0, reset="hard", detach_reset=True, surrogate="atan", width=1.0):
    """Spikes [T, N, *] and the last potential; every operation is one that autograd differentiates."""
    v = torch.full_like(x[0], v_reset) if v is None else v
    if k is not None and k.dim():
        k = k.reshape(-1, *[1] * (x.dim() - 3))
    if isinstance(v_threshold, torch.Tensor) and v_threshold.dim():
        v_threshold = v_threshold.reshape(-1, *[1] * (x.dim() - 3))
    spikes = []
    for x_t in x:
        h = v + x_t if k is None else v + k * (-(v - v_reset) + x_t)
        s = _HandWrittenStep.apply(h - v_threshold, surrogate, width)
        spikes.append(s)
        s_reset = s.detach() if detach_reset else s
        v = h - v_threshold * s_reset if reset == "soft" else h * (1 - s_reset) + v_reset * s_reset
    return torch.stack(spikes), v


def sample(shape, dtype=torch.float64, seed=0):
    """Inputs that make about a third of the neurons fire, an initial potential, and upstream gradients."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64) * 2 + 0.7
    v = torch.randn(shape[1:], generator=g, dtype=torch.float64) * 0.3
    grads = (
        torch.randn(shape, generator=g, dtype=torch.float64),
        torch.randn(shape[1:], generator=g, dtype=torch.float64),
    )
    return x.to(dtype), v.to(dtype), tuple(grad.to(dtype) for grad in grads)
