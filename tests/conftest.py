import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts without a seed, a login or a run of another one."""
    for name in list(os.environ):
        if name.startswith(("PL_", "WANDB_")):
            monkeypatch.delenv(name)
    # seed_everything sets these; monkeypatch takes them away again
    monkeypatch.setenv("PL_GLOBAL_SEED", "2020")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")


@pytest.fixture
def configs() -> Path:
    return REPOSITORY / "configs"


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where PLIF_DATA_ROOT names none."""
    root = os.environ.get("PLIF_DATA_ROOT")
    if root is None:
        pytest.skip("PLIF_DATA_ROOT is not set")
    return Path(root)
