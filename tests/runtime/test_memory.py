"""Memory limit of the machine or the container."""

import os

import pytest

from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.runtime import memory


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_limit_counts(tmp_path, monkeypatch, file):
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.memory_limit() == machine
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("max\n")
    assert memory.memory_limit() == machine
    path.write_text(f"{2**20}\n")
    assert memory.memory_limit() == 2**20
    with pytest.raises(UserError, match="its weights alone would take 0 GiB, and this machine, or container"):
        SpikingNetwork((1, 28, 28), 10, 8, channels=128)
