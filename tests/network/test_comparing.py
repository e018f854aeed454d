"""What `check` compares on a device."""

import torch

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
