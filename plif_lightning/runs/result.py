"""`data.json`, `cost.json`, `result.json`, `test/result.json`: data and results of a run."""

import json
import time
from collections.abc import Mapping
from typing import Any

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runtime.files import written_whole


def write_facts(folder: RunFolder, facts: Mapping[str, Any]) -> None:
    """Write the data set, origin, samples of each split and protocol of a fit that starts."""
    with written_whole(folder.data) as file:
        json.dump(facts, file, indent=2)


def write_cost(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write what a sample costs the best network, see `deploy.costs.Cost.summary`."""
    with written_whole(folder.cost) as file:
        json.dump(summary, file, indent=2)


def forget_results(folder: RunFolder) -> None:
    """Delete the results of a fit and of a later test, which are stale once training resumes."""
    for file in (folder.result, folder.test_result, folder.cost):
        file.unlink(missing_ok=True)


def write_result(folder: RunFolder, test: Mapping[str, float] | None, samples: Mapping[str, int]) -> None:
    """Mark a run as finished.

    Args:
        folder: folder of the run.
        test: metrics of its final test; None if it had none.
        samples: samples of each split that was used.
    """
    accuracy = None if test is None else test["test/acc"]
    with written_whole(folder.result) as file:
        json.dump({"ended": time.time(), "test": accuracy, "samples": samples}, file, indent=2)


def write_test_result(folder: RunFolder, metrics: Mapping[str, Any], samples: Mapping[str, int]) -> None:
    """Write the result of a `test` of the best checkpoint on the whole test set."""
    with written_whole(folder.test_result) as file:
        json.dump({"test": float(metrics["test/acc"]), "samples": samples.get("test")}, file, indent=2)
