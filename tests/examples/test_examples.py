"""The examples do what they say."""

import pytest

from tests.examples import own_neuron


@pytest.mark.slow
def test_own_neuron(capsys):
    assert own_neuron.main() > 0.8
    assert "m after the last step: (2, 100)" in capsys.readouterr().out
