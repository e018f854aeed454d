"""Plots of tensors."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot

import plif_lightning as pl
from plif_lightning.errors import UserError


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


def test_a_raster_has_a_dot_for_every_spike():
    spikes = (torch.rand(9, 3, 4, 2, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    axes = pl.plot.raster(spikes, sample=1)
    dots = axes.collections[0].get_offsets()
    expected = spikes[:, 1].flatten(1).nonzero()
    assert {tuple(dot) for dot in np.asarray(dots).tolist()} == {tuple(map(float, at)) for at in expected.tolist()}
    assert axes.get_xlabel() == "time-step"
    assert pl.plot.raster(spikes[:, 0, :, 0], axes) is axes


def test_a_membrane_trace_shows_potentials_threshold_and_spikes():
    neuron = pl.PLIF()
    trace = neuron.trace(torch.full([5, 1, 3], 1.5, requires_grad=True))
    axes = pl.plot.membrane(trace, neurons=[0, 2])
    assert axes.lines[0].get_ydata() == pytest.approx([0.75, 1.125, 0.75, 1.125, 0.75])
    assert axes.lines[1].get_xdata().tolist() == [1, 3]  # its spikes
    assert "$V_{th}$" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(pl.plot.membrane([0.1, 0.2], v_threshold=None).lines) == 1
    assert (
        pl.plot.raster(trace).collections[0].get_offsets().tolist()
        == pl.plot.raster(trace.spikes).collections[0].get_offsets().tolist()
    )


def test_the_threshold_that_is_drawn_is_the_neurons():
    x = torch.full([5, 1, 3], 1.5)
    for made, expected in ((pl.PLIF(v_threshold=0.3), 0.3), (pl.PLIF(v_threshold=0.5, learn_threshold=True), 0.5)):
        assert pl.plot.membrane(made.trace(x)).lines[-1].get_ydata() == pytest.approx([expected] * 2)
    each = pl.PLIF(tau_per="channel", channels=3, learn_threshold=True)
    labels = [line.get_label() for line in pl.plot.membrane(each.trace(x)).lines]
    assert "$V_{th}$" not in labels
    adaptive = pl.ALIF(beta=1.0).trace(2 * x)
    lines = [line.get_ydata() for line in pl.plot.membrane(adaptive, neurons=[0]).lines]
    assert any(np.array_equal(line, adaptive.v_threshold[:, 0, 0]) for line in lines)
    assert pl.plot.membrane([0.1, 0.2]).lines[-1].get_ydata() == pytest.approx([1, 1])


@pytest.mark.parametrize("shape", [(12, 2, 6, 5), (12, 3, 2, 6, 5), (1, 6, 5)])
def test_every_frame_is_plotted(shape):
    axes = pl.plot.frames(torch.randint(0, 4, shape))
    assert len(axes) == (12 if len(shape) > 3 else 1)
    assert all(ax.images[0].get_array().shape == (6, 5, 3) for ax in axes)


def test_frames_share_a_colour_scale():
    axes = pl.plot.frames(np.stack([np.full((1, 2, 2), value) for value in (0.0, 0.5, 1.0)]))
    assert [float(ax.images[0].get_array()[0, 0, 0]) for ax in axes] == [0.0, 0.5, 1.0]
    (ones,) = pl.plot.frames(np.ones((1, 1, 2, 2)))
    assert ones.images[0].get_array().min() == 1
    events = np.zeros((2, 2, 3, 3))
    events[0, 1], events[1, 1] = 50, 100
    weak, strong = (ax.images[0].get_array()[0, 0].tolist() for ax in pl.plot.frames(events))
    assert weak == [1, 0.5, 0.5]
    assert strong == [1, 0, 0]


def test_a_response_is_the_rate_at_each_constant_input():
    axes = pl.plot.response(pl.LIF(init_tau=2.0), inputs=[0.5, 0.9, 1.9, 3.0], steps=100)
    # H = V + (X - V) / 2 from 0 reaches 1 first in step 1 from X = 2, in step 2 from 4 / 3, never from X <= 1.
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0, 0, 0.5, 1])
    torch.manual_seed(0)
    assert len(pl.plot.response(pl.PLIF({"uniform": [2, 9]}, "channel", 3)).lines) == 3


def test_a_map_is_a_layers_rate_at_each_place():
    spikes = torch.zeros(4, 2, 3, 2, 5)
    spikes[:2, 1, 0, 1, 4] = 1
    traces = pl.traces(torch.nn.Sequential(pl.PLIF(), torch.nn.Flatten(), pl.PLIF()), 5 * torch.ones(3, 2, 6, 9))[1]
    patches = traces["0"].spikes  # [3, 2, 6, 9]: nine patches
    axes = pl.plot.maps({"conv": spikes, "attention": patches, "fc": traces["2"]}, sample=1)
    expected = np.zeros((2, 5))
    expected[1, 4] = 2 / 12
    np.testing.assert_allclose(axes[0].images[0].get_array(), expected)
    assert axes[0].images[0].get_clim() == (0, pytest.approx(expected.max()))
    np.testing.assert_allclose(axes[1].images[0].get_array(), patches[:, 1].mean((0, 1)).view(3, 3))
    assert [ax.get_title() for ax in axes] == ["conv\nup to 17 %", "attention\nup to 100 %"]
    with pytest.raises(UserError, match=r"conv has 8 patches: pass .* size=\(H, W\)"):
        pl.plot.maps({"conv": spikes.flatten(3)[..., :8]})
    assert pl.plot.maps({"conv": spikes.flatten(3)}, size=(2, 5))[0].images[0].get_array().shape == (2, 5)
    with pytest.raises(UserError, match="there are none"):
        pl.plot.maps({"fc": traces["2"]})
