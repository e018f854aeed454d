"""Extreme inputs and layers: results are defined, and equal in all forms."""

import lightning as L
import pytest
import torch

from benchmarks.step import make_fire
from plif_lightning.errors import NonFiniteError
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.neurons import PLIF
from plif_lightning.training.task import SpikingClassifier

FORMS = ("reference", "cpu")


def lively(backend, **kwargs):
    """A small network that fires."""
    torch.manual_seed(1)
    settings = {"channels": 8, "fc_features": 20, "dropout": 0.0, "pool_ties": "first", **kwargs}
    network = SpikingNetwork((1, 8, 8), 10, 4, backend=backend, **settings)
    make_fire(network)
    return network


def gradients(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.parametrize("value", [1e30, -1e30, 1e-40, float("nan"), float("inf")])
def test_votes_are_defined_whatever_comes_in(value):
    x = torch.rand(4, 3, 1, 8, 8)
    x[:, 1] = value
    votes = [lively(form).eval()(x) for form in FORMS]
    assert torch.isfinite(votes[0]).all()
    assert torch.equal(*votes)
    alone = lively("reference").eval()(x[:, [0, 2]])  # other samples of the batch are unaffected
    assert torch.equal(votes[0][:, [0, 2]], alone)


@pytest.mark.parametrize(("mean", "deviation"), [(1e3, 1.0), (1e5, 1.0), (1e10, 1e10), (0.0, 1e-20)])
def test_batch_statistics_of_extreme_values_match_the_reference(mean, deviation):
    x = torch.randn(4, 6, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * deviation + mean
    found = []
    for form in FORMS:
        network = lively(form)
        votes = network(x)
        votes.square().sum().backward()
        found.append((votes, gradients(network)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.isfinite(found[0][1]).all()
    scale = found[0][1].abs().max().item()
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=3e-3 * scale)


def test_an_input_that_is_no_number_ends_training_with_a_sentence():
    class Bad(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return torch.full((1, 8, 8), float("nan")), i % 10

    task = SpikingClassifier((1, 8, 8), 10, 4, channels=8, fc_features=20)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(Bad(), batch_size=4)
    with pytest.raises(NonFiniteError, match="is NaN or infinite at step"):
        trainer.fit(task, loader, loader)


@pytest.mark.parametrize("init_tau", [1.0001, 1e6])
def test_time_constants_at_their_edges(init_tau):
    found = []
    for form in FORMS:
        network = lively(form, init_tau=init_tau)
        x = torch.rand(4, 6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        votes = network(x)
        votes.square().sum().backward()
        found.append((votes, gradients(network)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.isfinite(found[1][1]).all()
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)
    neuron = PLIF(init_tau=init_tau)
    assert neuron.learned()["tau"].item() == pytest.approx(init_tau, rel=1e-3)


@pytest.mark.parametrize(("bias", "rate"), [(-100.0, 0.0), (100.0, 1.0)])
def test_a_layer_that_is_silent_or_always_fires_is_computed_the_same(bias, rate):
    found = []
    for form in FORMS:
        network = lively(form)
        with torch.no_grad():
            network.encoder.conv2.norm.bn.bias.fill_(bias)
        fired = []
        network.encoder.conv2.neuron.register_forward_hook(lambda module, x, spikes, to=fired: to.append(spikes))
        x = torch.rand(4, 6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        votes = network(x)
        votes.square().sum().backward()
        assert fired[0].mean() == rate
        found.append((votes, gradients(network)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)


def test_a_gradient_through_hundreds_of_steps_is_that_of_the_reference():
    found = []
    x = torch.rand(300, 2, 8)
    for form in FORMS:
        neuron = use_backend(PLIF(init_tau=1.05), form)
        y = x.clone().requires_grad_()
        spikes = neuron(y)
        spikes[-1].sum().backward()  # decays by 1 - k per step, through subnormal numbers
        found.append(y.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-30)
