"""Readouts: logits, their leaky integral, the last step."""

import copy

import pytest
import torch

from plif_lightning.deploy import StreamingNetwork, cost, deployed
from plif_lightning.errors import UserError
from plif_lightning.layers.readout import LeakyIntegrator
from plif_lightning.network import SpikingNetwork
from tests.deploy.conftest import STRUCTURES, frames, trained


def test_a_readout_may_be_read_at_its_last_step():
    text = "c8k3s2-BN-PLIF-RFC12-PLIF-FC3"
    all_steps, last = trained(structure=text), trained(structure=f"{text}-LAST")
    last.load_state_dict(all_steps.state_dict())
    x = frames(last)
    assert torch.equal(last(x), all_steps(x)[-1:])
    torch.testing.assert_close(deployed(last)(x), all_steps(x)[-1:])
    stream = StreamingNetwork(last)
    for frame in x:
        decision = stream.step(frame)
    torch.testing.assert_close(decision, all_steps(x)[-1].double())
    assert cost(last, x[0]).time_steps == last.time_steps


def test_a_readout_gives_logits_or_their_leaky_integral():
    net = trained(structure=STRUCTURES["integral"])
    x = frames(net)
    with torch.no_grad():
        votes = net(x)
        v, expected = torch.zeros(3, 3), []
        readout = copy.deepcopy(net)
        readout.voting = torch.nn.Identity()
        for y in readout(x):
            v = v + (y - v) / 3.0
            expected.append(v)
    torch.testing.assert_close(votes, torch.stack(expected))
    with pytest.raises(UserError, match="init_tau of LI must be a number above 1, got 1"):
        LeakyIntegrator(1)
    with pytest.raises(UserError, match="LI has no argument tau"):
        SpikingNetwork((1, 8, 8), 2, 2, structure="FC2-LI(tau=2)")
