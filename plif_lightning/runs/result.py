"""`data.json`, `result.json`, `test/result.json`: what a run says of its data and of its end."""

import json
import time
from collections.abc import Mapping
from typing import Any

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runtime.files import written_whole


def write_facts(folder: RunFolder, facts: Mapping[str, Any]) -> None:
    """Keeps what a fit is about to be trained on: data, origin, samples of each part, protocol."""
    with written_whole(folder.data) as file:
        json.dump(facts, file, indent=2)


def forget_results(folder: RunFolder) -> None:
    """Takes away what a run said at its end, and what a test of its best checkpoint measured: it is trained on."""
    folder.result.unlink(missing_ok=True)
    folder.test_result.unlink(missing_ok=True)


def write_result(folder: RunFolder, test: Mapping[str, float] | None, samples: Mapping[str, int]) -> None:
    """Says that the run came to its end.

    Args:
        folder: of the run.
        test: what its one test measured, where there was one.
        samples: of each part of the data that was read.
    """
    accuracy = None if test is None else test["test/acc"]
    with written_whole(folder.result) as file:
        json.dump({"ended": time.time(), "test": accuracy, "samples": samples}, file, indent=2)


def write_test_result(folder: RunFolder, metrics: Mapping[str, Any], samples: Mapping[str, int]) -> None:
    """Keeps what a `test` of the run's best checkpoint measured on the whole test set."""
    with written_whole(folder.test_result) as file:
        json.dump({"test": float(metrics["test/acc"]), "samples": samples.get("test")}, file, indent=2)
