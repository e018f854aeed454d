import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from plif_lightning.runtime.process import cores

REPOSITORY = Path(__file__).resolve().parent.parent
# For what must come, at some time: far more than it takes on a loaded machine [s].
PATIENCE = 1200
collect_ignore = ["mutations.py"]  # a script that needs a package of its own

if (_processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    # The processes of the suite share the cores; those that the tests start inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // _processes)))


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests wait for other processes, which do little."""
    return cores() + 1


def pytest_configure(config: pytest.Config) -> None:
    """Properties are tried with 20 examples by day and with 200 in `-m slow`, the same ones each time."""
    unused = [HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow]
    settings.register_profile(
        "plif_lightning", derandomize=True, deadline=None, suppress_health_check=unused,
        max_examples=200 if config.option.markexpr == "slow" else 20,
    )  # fmt: skip
    settings.load_profile("plif_lightning")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr == "slow":
        for item in items:
            if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker("slow")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and what the tests start would not hear a Ctrl-C either.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test starts without a seed, a login or a run of another one, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("PL_", "WANDB_")):
            monkeypatch.delenv(name)
    # seed_everything sets these; monkeypatch takes them away again
    monkeypatch.setenv("PL_GLOBAL_SEED", "2020")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """No test leaves its own handlers of signals to the next one, as no command may to a notebook."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    after = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of the test are not measured by coverage, whose own writing at their end would be in the way."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


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


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def fused_calls(monkeypatch):
    """Counts calls of the fused form of recurrent layers."""
    from plif_lightning.layers import recurrent

    calls, run = [], recurrent.run_recurrent
    monkeypatch.setattr(recurrent, "run_recurrent", lambda *arguments: calls.append(1) or run(*arguments))
    return calls
