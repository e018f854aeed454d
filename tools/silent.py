"""Names the tests in which every network was silent: whatever two such networks compute, their votes are equal.

    python -m pytest -p tools.silent [tests/FOLDER]

A test of silence may stand there; in others lower `v_threshold`.
"""

import functools
from typing import Any

import pytest
import torch

_fired: dict[str, bool] = {}
_running: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _running[:] = [item.nodeid]


def pytest_collection_finish() -> None:
    """Note whether the outputs of each test's networks are all zero."""
    from plif_lightning.network import SpikingNetwork

    run = SpikingNetwork.forward

    @functools.wraps(run)
    def forward(*arguments: Any, **settings: Any) -> Any:
        votes = run(*arguments, **settings)
        if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()):
            for test in _running:
                _fired[test] = _fired.get(test, False) or bool(votes.detach().any())
        return votes

    SpikingNetwork.forward = forward  # type: ignore[method-assign]


def pytest_runtest_teardown(item: pytest.Item) -> None:
    item.user_properties.append(("silent", not _fired.get(item.nodeid, True)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for of_outcome in terminalreporter.stats.values() for report in of_outcome]
    reports = [report for report in reports if isinstance(report, pytest.TestReport) and report.when == "teardown"]
    silent = sorted(report.nodeid for report in reports if ("silent", True) in map(tuple, report.user_properties))
    terminalreporter.section(f"{len(silent)} tests of silent networks")
    terminalreporter.write("".join(f"{test}\n" for test in silent))
