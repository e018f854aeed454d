import pytest
import torch
from torch.nn import functional

import plif_lightning as pl
from plif_lightning.errors import UserError
from plif_lightning.training.losses import (
    LOSSES,
    loss_named,
    per_step_cross_entropy,
    per_step_mse,
    rate_cross_entropy,
    rate_mse,
    tet,
)


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    votes = torch.rand(8, 5, 4, generator=g, dtype=torch.float64)
    return votes, torch.tensor([0, 1, 2, 3, 1])


def test_per_step_is_rate_plus_variance_over_time(data):
    votes, label = data
    variance = votes.var(0, correction=0).mean()
    torch.testing.assert_close(per_step_mse(votes, label), rate_mse(votes, label) + variance)


def test_per_step_is_the_papers_sum(data):
    votes, label = data
    total = 0.0
    for t in range(8):
        for n in range(5):
            for i in range(4):
                total += (votes[t, n, i].item() - (1.0 if i == label[n] else 0.0)) ** 2 / (8 * 4)
    assert per_step_mse(votes, label).item() == pytest.approx(total / 5)


def test_rate_is_the_mean_squared_error_of_firing_rates(data):
    votes, label = data
    expected = ((votes.mean(0) - functional.one_hot(label, 4)) ** 2).mean()
    torch.testing.assert_close(rate_mse(votes, label), expected)


def test_perfect_votes_lose_nothing():
    label = torch.tensor([2, 0])
    votes = functional.one_hot(label, 3).float().expand(4, 2, 3)
    assert per_step_mse(votes, label) == rate_mse(votes, label) == 0


@pytest.mark.parametrize("loss", [per_step_mse, rate_mse])
def test_a_mixed_target_is_a_share_of_each_class(loss, data):
    votes, label = data
    one_hot = functional.one_hot(label, 4)
    torch.testing.assert_close(loss(votes, one_hot.float()), loss(votes, label))
    mixed = 0.25 * one_hot + 0.75 * one_hot.roll(1, 1)
    target = mixed if loss is rate_mse else mixed.expand_as(votes)
    torch.testing.assert_close(
        loss(votes, mixed), ((votes.mean(0) if loss is rate_mse else votes) - target).square().mean()
    )


def test_cross_entropy_is_pytorchs_of_ten_times_the_votes(data):
    votes, label = data
    steps = [functional.cross_entropy(10 * of_step, label) for of_step in votes]
    torch.testing.assert_close(per_step_cross_entropy(votes, label), torch.stack(steps).mean())
    torch.testing.assert_close(rate_cross_entropy(votes, label), functional.cross_entropy(10 * votes.mean(0), label))
    # by Jensen's inequality
    assert per_step_cross_entropy(votes, label) > rate_cross_entropy(votes, label)


def test_smoothing_is_pytorchs(data):
    votes, label = data
    expected = functional.cross_entropy(10 * votes.mean(0), label, label_smoothing=0.2)
    torch.testing.assert_close(rate_cross_entropy(votes, label, 0.2), expected)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_smoothing_is_the_loss_of_smoothed_shares(loss, data):
    votes, label = data
    shares = 0.9 * functional.one_hot(label, 4).double() + 0.1 / 4
    torch.testing.assert_close(loss(votes, label, 0.1), loss(votes, shares))


def test_tet_is_that_of_deng_et_al(data):
    """As in the authors' code: TET_loss(outputs, labels, CrossEntropyLoss(), means=1.0, lamb=0.05)."""
    outputs, label = 4 * data[0] - 1, data[1]
    of_steps = sum(functional.cross_entropy(of_step, label) for of_step in outputs) / len(outputs)
    distance = functional.mse_loss(outputs, torch.ones_like(outputs))
    torch.testing.assert_close(tet(outputs, label), 0.95 * of_steps + 0.05 * distance)
    torch.testing.assert_close(loss_named("tet", 0.2, votes=False)(outputs, label), 0.8 * of_steps + 0.2 * distance)


def test_cross_entropies_take_a_readouts_output_for_logits(data):
    outputs, label = data
    loss = loss_named("cross_entropy", votes=False)
    torch.testing.assert_close(loss(outputs, label), functional.cross_entropy(outputs.mean(0), label))
    of_steps = torch.stack([functional.cross_entropy(of_step, label) for of_step in outputs])
    torch.testing.assert_close(loss_named("per_step_cross_entropy", votes=False)(outputs, label), of_steps.mean())
    torch.testing.assert_close(loss_named("rate", votes=False)(outputs, label), rate_mse(outputs, label))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tets",), "loss must be one of per_step, rate, per_step_cross_entropy, cross_entropy, tet, got 'tets'"),
        (("tet", 1.5, False), r"tet_lambda=1\.5: tet trains a readout without spikes .* with a lambda from 0 to 1"),
        (("rate", 0.1), r"loss='rate', tet_lambda=0\.1: tet trains a readout without spikes"),
        (("tet",), "tet trains a readout without spikes .*; for votes there is per_step_cross_entropy"),
    ],
)
def test_a_loss_that_has_no_meaning_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        loss_named(*arguments)


def test_a_network_of_ones_own_that_gives_votes_is_trained_on_votes():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), pl.PLIF())
    task = pl.SpikingClassifier((4,), 3, 5, network=net, loss="cross_entropy")
    x, label = torch.rand(6, 5, 4), torch.arange(6) % 3
    votes = task(x)  # the first call tells whether its output is votes
    torch.testing.assert_close(task.loss(votes, label), torch.nn.functional.cross_entropy(10 * votes.mean(0), label))
