import contextlib
import shutil
from pathlib import Path

import pytest

from tests.cli.calls import FEW, TINY, fit


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with one finished small run, trained once for all tests."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "2020")
        patch.setenv("PL_SEED_WORKERS", "0")
        fit(*TINY, *FEW, "--trainer.max_epochs", "2", "--test_after_fit", "false")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A finished small run, a copy of `trained`, in the working directory."""
    shutil.copytree(trained / "runs", tmp_path / "runs", dirs_exist_ok=True)
    return Path("runs/quickstart/version_0")
