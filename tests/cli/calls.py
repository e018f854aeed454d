"""The command line as users call it, for the tests: in this process, or in one of its own."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from plif_lightning import configs
from plif_lightning.cli import main
from tests.conftest import PATIENCE, REPOSITORY

CONFIGS = configs.folder()
QUICKSTART = str(CONFIGS / "quickstart.yaml")
# The quickstart's network, smaller still; at a threshold that its neurons reach, because silent networks are all equal.
TINY = ["--model.channels=6", "--model.fc_features=20", "--data.time_steps=2", "--model.v_threshold=0.1"]
FEW = ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "2"]
SILENT = ["--trainer.enable_progress_bar", "false", "--trainer.callbacks", "[]"]


def fit(*arguments, config=QUICKSTART):
    main(["fit", "--config", config, *SILENT, *arguments])


def resume(run, *arguments):
    """Make the run in a folder finished."""
    main(["fit", "--run_folder", str(run), *arguments])


def refused(capsys, *arguments):
    """The error with which a command ends: one line, or several of jsonargparse's."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    (begin,) = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return "\n".join(lines[begin:])


def command(*arguments, timeout=PATIENCE, text=True, **kwargs):
    """`python main.py ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments],
        capture_output=True,
        text=text,
        timeout=timeout,
        check=False,
        **kwargs,
    )


def until(condition, seconds=PATIENCE):
    """Waits until something is so; the limit is far beyond what it should take."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing came of it in {seconds} s"
        time.sleep(0.02)


def load(path):
    return torch.load(path, weights_only=True)


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))
