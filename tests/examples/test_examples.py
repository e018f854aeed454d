"""The examples do what they say."""

import pytest

from tests.examples import own_network, own_neuron, own_recordings


def test_own_network(capsys):
    assert own_network.main() > 0.9
    out = capsys.readouterr().out
    assert "epoch 4" in out
    assert "potentials: [8, 1, 10]" in out


def test_own_recordings(capsys):
    assert own_recordings.main() > 0.9
    assert "t = 9: right" in capsys.readouterr().out


def test_own_neuron(capsys):
    assert own_neuron.main() > 0.8
    assert "m after the last step: (2, 100)" in capsys.readouterr().out


def test_own_search(capsys):
    pytest.importorskip("optuna", reason="test extra `search`")
    from tests.examples import own_search

    assert own_search.main(trials=3) > 0.5
    assert "best: {'init_tau':" in capsys.readouterr().out
