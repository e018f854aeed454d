"""The search for thresholds at which neurons of others show what they do."""

import pytest
import torch

from plif_lightning.convert.excitation import is_telling, rate_of


@pytest.mark.parametrize(("spikes", "tells"), [(0, False), (2, False), (3, True), (79, True), (80, False)])
def test_a_node_tells_something_between_silence_and_saturation(spikes, tells):
    assert is_telling(rate_of(torch.arange(100) < spikes)) == tells
