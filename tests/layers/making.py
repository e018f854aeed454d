"""Recurrent layers and inputs that tests make."""

import torch

import plif_lightning as pl

T, N, F = 7, 3, 5
NEURONS = {
    "plif": lambda: pl.PLIF(init_tau=2.0),
    "lif, soft reset": lambda: pl.LIF(init_tau=3.0, reset="soft", v_threshold=0.6),
    "alif": lambda: pl.ALIF(),
    "per channel": lambda: pl.PLIF(tau_per="channel", channels=F),
    "threshold learned": lambda: pl.PLIF(learn_threshold=True, detach_reset=False),
    "no gradient through time": lambda: pl.PLIF(through_time=False),
}


def a_layer(neuron, dtype=torch.float64, bias=False):
    torch.manual_seed(0)
    layer = pl.Recurrent(F, neuron, bias).to(dtype)
    with torch.no_grad():
        layer.recurrent.weight.mul_(3)
    return layer


def an_input(dtype=torch.float64, steps=T):
    return (3 * torch.rand(steps, N, F, dtype=dtype, generator=torch.Generator().manual_seed(1))).requires_grad_()


def values_and_gradients(layer, x, time_steps=None):
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = layer(x, time_steps)
    weight = torch.rand(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    (y * weight).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]
