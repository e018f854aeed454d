"""Recurrent layers in one compiled loop: equal to the loop over steps, on any number of threads, with less memory."""

import pytest
import torch

import plif_lightning as pl
from plif_lightning.kernels import layout
from tests.layers.making import NEURONS, F, N, T, a_layer, an_input, values_and_gradients


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize(("bias", "held"), [(False, False), (True, False), (False, True)])
def test_fused_form_equals_the_loop_in_float64(name, bias, held, fused_calls):
    layer = a_layer(NEURONS[name](), bias=bias)
    x = an_input(steps=1 if held else T)
    steps = T if held else None
    fused = values_and_gradients(layer, x, steps)
    pl.use_backend(layer, "reference")
    loop = values_and_gradients(layer, x, steps)
    assert len(fused_calls) == 1
    assert fused[0].shape == (T, N, F)
    assert 0.05 < fused[0].mean() < 0.95
    for ours, reference in zip(fused, loop, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("added", "share"), [(0.8, 0.15), (2.0, 0.6)])
@pytest.mark.parametrize("settings", [{}, {"tau_per": "channel", "channels": 100}])
def test_fused_spikes_equal_the_loops_in_float32(settings, added, share, monkeypatch):
    """On two threads, rows that fill no vectors; sums of multiples of 1/64 are exact in any order."""
    monkeypatch.setattr(layout, "WORTH_THREADS", 0)
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    layer = pl.Recurrent(100, pl.PLIF(**settings))
    x = torch.randint(-64, 65, (20, 9, 100), generator=torch.Generator().manual_seed(1)) / 64
    with torch.no_grad():
        layer.recurrent.weight.copy_((64 * layer.recurrent.weight).round() / 64)
    try:
        torch.set_num_threads(2)
        fused = layer(x + added)
    finally:
        torch.set_num_threads(threads)
    assert abs(fused.mean() - share) < 0.1
    assert torch.equal(fused, pl.use_backend(layer, "reference")(x + added))


def test_bfloat16_is_fused_in_float32(fused_calls):
    """Beside the float32 layer on the same rounded inputs."""
    layer, x = a_layer(pl.PLIF(), torch.float32), an_input(torch.float32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = values_and_gradients(layer, x)
    exact = values_and_gradients(layer, x.float())
    assert len(fused_calls) == 2
    assert mixed[0].dtype == mixed[1].dtype == torch.bfloat16
    assert torch.equal(mixed[0].float(), exact[0])
    for ours, reference in zip(mixed[1:], exact[1:], strict=True):
        torch.testing.assert_close(ours.float(), reference, rtol=0.02, atol=0.02 * float(reference.abs().max()))


def saved_bytes(layer, x):
    """Size of what a training forward saves for the backward pass, each storage once."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    assert y.requires_grad
    assert 0 < y.mean() < 0.25
    return sum(sizes.values())


def test_fused_form_saves_less_than_half_of_the_loop():
    torch.manual_seed(0)
    layer = pl.Recurrent(64, pl.LIF())
    x = torch.rand(50, 16, 64).mul_(1.5).requires_grad_()
    fused = saved_bytes(layer, x)
    assert fused < 0.5 * saved_bytes(pl.use_backend(layer, "reference"), x)
