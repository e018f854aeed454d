from pathlib import Path

import pytest

from tests.cli.calls import FEW, TINY, fit


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch, sketched):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run():
    """A finished small run."""
    fit(*TINY, *FEW, "--trainer.max_epochs", "2", "--test_after_fit", "false")
    return Path("runs/quickstart/version_0")
