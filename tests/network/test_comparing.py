"""What `check` compares on a device."""

import pytest
import torch
from torch import nn

from plif_lightning.network import comparing


def test_every_neuron_and_form_of_a_cpu_is_compared_and_none_where_only_the_reference_runs(monkeypatch):
    for name in ("difference", "_network_difference", "_convolutions_difference"):
        monkeypatch.setattr(comparing, name, lambda *of, name=name: name)
    found = dict(comparing.comparisons(torch.device("cpu")))
    assert found == {
        **dict.fromkeys(comparing.NEURONS, "difference"),
        f"{len(comparing.SEEN_WRONG)} convolutions": "_convolutions_difference",
        **dict.fromkeys(comparing._FORMS, "_network_difference"),
    }
    ((name, reason),) = comparing.comparisons(torch.device("meta"))
    assert name == "kernels"
    assert reason.startswith("none runs on this device")


@pytest.mark.parametrize(
    ("votes", "gradient", "reason"),
    [
        (0.0, 1.0, ""),
        (1.0, 1.0, "100.0 % of the votes differ"),
        (0.0, 3.0, "votes or a gradient differ by 200 %"),
    ],
)
def test_a_network_differs_by_the_share_of_its_votes_or_the_norm_of_a_gradient(monkeypatch, votes, gradient, reason):
    class Scaled(nn.Module):
        """Votes, all shifted, and gradients, all scaled, on any backend but the reference.

        The gradient of `cancelled` is rounding beside that of `fc`, and is another one on each backend.
        """

        is_reference = False

        def __init__(self):
            super().__init__()
            self.fc, self.cancelled = nn.Linear(2 * 16 * 16, 10), nn.Parameter(torch.zeros(10))

        def forward(self, x):
            rounding = (1e-6 if self.is_reference else 3e-6) * self.cancelled
            y = (self.fc(100 * x.flatten(-3)) + rounding).expand(4, -1, -1)
            return y if self.is_reference else (y - y.detach()) * gradient + y.detach() + votes

    def of_reference(net, backend):
        net.is_reference = backend == "reference"
        return net

    monkeypatch.setattr(comparing, "use_backend", of_reference)
    monkeypatch.setattr(comparing, "has_votes", lambda net: True)
    monkeypatch.setattr(comparing, "SpikingNetwork", lambda *_, **__: Scaled())
    assert comparing._network_difference("", False, {}, torch.device("cpu")) == reason
