import pytest

from tests.peers import spikingjelly_dataset_utils


@pytest.fixture(scope="session")
def spikingjelly_utils():
    return spikingjelly_dataset_utils()
