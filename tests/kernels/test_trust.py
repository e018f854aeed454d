"""On CUDA, `auto` compares kernels with the reference before it uses them; wrong kernels are detected."""

import logging

import pytest
import torch

import plif_lightning as pl
from plif_lightning.kernels import Backend, fused, trust
from plif_lightning.kernels.trust import agrees, difference

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    monkeypatch.setattr(trust, "_found", {})


NEURONS = [
    pl.PLIF(), pl.LIF(3.0, v_reset=-0.2), pl.IF(), pl.CLIF(), pl.ALIF(), pl.GLIF(), pl.PLIF(learn_threshold=True),
    pl.PLIF(tau_per="channel", channels=4), pl.PLIF(reset="soft", detach_reset=False),
]  # fmt: skip


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_right_kernels_agree(neuron, caplog):
    assert difference(neuron.dynamics, CPU) == ""
    assert agrees(neuron.dynamics, CPU)
    assert not [one for one in caplog.records if one.name == trust.__name__]  # the compiler may tell of a delay


def altered(change):
    """A kernel that is made wrong."""

    def wrong(kernel):
        def run(*arguments, **named):
            return change(kernel(*arguments, **named))

        return run

    return wrong


def fails(found):
    raise RuntimeError("no such instruction\nand more")


def lacks(found):
    raise FileNotFoundError("there is no ptxas")


@pytest.mark.parametrize(
    ("kernel", "change", "reason"),
    [
        ("fire", lambda found: (1 - found[0], *found[1:]), "spikes by "),
        ("fire_backward", lambda found: (found[0] * 1.1, *found[1:]), "the gradient of x by"),
        ("moments", lambda found: (found[0], found[1] + 1), "the moments of BN"),
        ("fire", fails, "RuntimeError: no such instruction"),
        ("fire", lacks, "FileNotFoundError: there is no ptxas"),
    ],
)
def test_wrong_kernel_is_disabled_with_a_warning(kernel, change, reason, monkeypatch, caplog):
    monkeypatch.setattr(fused.ops, kernel, altered(change)(getattr(fused.ops, kernel)))
    monkeypatch.setattr(Backend, "chosen", lambda self, device: "triton" if self.name == "auto" else self.name)
    neuron, x = pl.PLIF(), torch.randn(4, 2, 3)
    with caplog.at_level(logging.WARNING):
        spikes = [neuron(x) for _ in range(2)]
    expected = pl.use_backend(pl.PLIF(), "reference")(x)
    assert all(torch.equal(found, expected) for found in spikes)
    (record,) = (one for one in caplog.records if one.name == trust.__name__)
    assert record.message.startswith("The reference runs instead of the Triton kernels on cpu")
    assert reason in record.message
    assert "\n" not in record.message


def of_step_0(kernel):
    """A kernel that normalises every step with the statistics of the first."""
    return lambda y, scale, shift, *rest: kernel(
        y, scale[:1].expand_as(scale).clone(), shift[:1].expand_as(shift).clone(), *rest
    )


@pytest.mark.parametrize(
    ("where", "name", "change", "reason"),
    [
        (fused, "through_statistics", altered(lambda found: (0 * found[0], 0 * found[1])), "the gradient of x"),
        (fused, "through_statistics", altered(lambda found: (found[0], 0 * found[1])), "the gradient of x"),
        (fused.ops, "fire", of_step_0, "spikes by "),
        (fused.ops, "fire", altered(lambda found: (found[0], found[1] + 0.1)), "v by 0.1"),
        (fused.ops, "fire_backward", altered(lambda found: (found[0], 1.1 * found[1], *found[2:])), "of first v"),
        (fused.ops, "fire_backward", altered(lambda found: (*found[:2], 1.1 * found[2], found[3])), "gradient of"),
    ],
)
def test_training_is_compared_statistics_states_and_all(where, name, change, reason, monkeypatch):
    monkeypatch.setattr(where, name, change(getattr(where, name)))
    assert reason in difference(pl.PLIF().dynamics, CPU)


def test_every_neuron_is_compared_once_on_every_device(monkeypatch):
    asked = []

    def compared(dynamics, device):
        asked.append((dynamics.key, device.index))
        return "spikes" if asked[-1] == wrong else ""

    monkeypatch.setattr(trust, "difference", compared)
    neurons, devices = [pl.PLIF().dynamics, pl.IF().dynamics], [torch.device("cuda", i) for i in (0, 1)]
    pairs = [(neuron, device) for neuron in neurons for device in devices]
    keys = [(neuron.key, device.index) for neuron, device in pairs]
    wrong = keys[-1]
    for _ in range(2):
        assert [agrees(*pair) for pair in pairs] == [True, True, True, False]
    assert asked == keys
