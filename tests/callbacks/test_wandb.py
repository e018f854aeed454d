"""Weights & Biases with the real client, offline and against a local server."""

import importlib
import json
import os
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from plif_lightning.runs.wandb import run_of_wandb
from tests.callbacks.wandb_server import WandbServer
from tests.cli.calls import SILENT, TINY
from tests.conftest import PATIENCE, REPOSITORY

QUICKSTART = str(REPOSITORY / "configs" / "quickstart.yaml")
WANDB = str(REPOSITORY / "configs" / "variants" / "wandb.yaml")
FEW = ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "2"]


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")


def wandb(*arguments, environment, timeout=PATIENCE):
    command = [str(Path(sys.executable).parent / "wandb"), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False, cwd=REPOSITORY
    )


# Reads the project's runs back with the real client.
READ = """
import json
from plif_lightning.runs.reading import find_runs
for run in find_runs("wandb:e/plif_lightning"):
    print(json.dumps([run.name, run.status, run.setting("model.neuron"), run.test, run.problems]))
"""


def test_a_sweep_and_its_agent_run_the_shipped_command(tmp_path):
    sweep = yaml.safe_load((REPOSITORY / "configs" / "sweeps" / "table4.yaml").read_text())
    small = {"config": "configs/quickstart.yaml", "trainer.max_epochs": 2, "trainer.limit_train_batches": 3}
    small |= {"trainer.limit_val_batches": 1, "trainer.limit_test_batches": 1, "model.channels": 4}
    sweep["parameters"] = {k: {"value": v} for k, v in small.items()} | {
        "model.neuron": {"values": ["plif", "lif"]},
        "model.init_tau": {"value": 4.0},
        "seed_everything": {"value": 7},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    with WandbServer() as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_SILENT": "false"}
        environment |= {"WANDB_DIR": str(tmp_path)}
        made = wandb("sweep", str(path), environment=environment)
        assert made.returncode == 0, made.stderr
        command = [str(Path(sys.executable).parent / "wandb"), "agent", "e/plif_lightning/S"]
        # The agent runs in a folder that contains the configurations, like the repository.
        (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
        (tmp_path / "main.py").symlink_to(REPOSITORY / "main.py")
        environment["PYTHONPATH"] = str(REPOSITORY)
        # The agent calls `python`, which must be this one even if its environment is not activated.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        agent = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=tmp_path
        )
        read = subprocess.run(
            [sys.executable, "-c", READ], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    said = agent.stdout + agent.stderr
    assert read.returncode == 0, read.stderr[-3000:]
    found = [json.loads(line) for line in read.stdout.splitlines()]
    assert [run[:3] for run in found] == [["run1", "finished", "plif"], ["run2", "finished", "lif"]]
    for name, _, _, tested, problems in found:
        assert tested == next(row["test/acc"] for row in server.rows(name) if "test/acc" in row)
        # W&B's client reads histories from files that its server exports; the local one exports none.
        assert problems == [f"its history cannot be read from W&B: no history found for run {name}."]
    assert server.exit_codes == {"run1": 0, "run2": 0}, said[-3000:]
    assert "locked" not in said
    assert "Ignoring project" not in said
    assert "anonymous" not in said
    for name, neuron in (("run1", "plif"), ("run2", "lif")):
        config = server.configs[name]
        assert (config["model"]["neuron"], config["model"]["init_tau"], config["seed_everything"]) == (neuron, 4.0, 7)
        assert config["data"]["class_path"] == "plif_lightning.data.Digits"
        assert config["facts"]["samples"]["training"] == 1226
        rows = server.rows(name)
        assert [row["epoch"] for row in rows if "train/loss" in row] == [0, 1]
        keys = {key for row in rows for key in row}
        assert {"train/acc", "val/acc", "tau/conv1", "rate/fc2", "test/acc"} <= keys
        assert (server.groups[name], server.tags[name]) == ("table4", ["table4"])
    folders = list((tmp_path / "runs" / "quickstart").iterdir())
    assert len(folders) == 2  # named after the configuration, not after the variant


def records(folder):
    """Records of an offline run, read by the client's own reader."""
    (path,) = Path(folder).glob("*.wandb")
    done = wandb("leet", "inspect", "--json", str(path.absolute()), environment=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def command(*arguments):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments],
        env={**os.environ, "WANDB_MODE": "offline"}, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_offline_run_is_read_back_and_a_resumed_one_is_the_same_run():
    first = ["--config", QUICKSTART, "--config", WANDB, *SILENT, *TINY, *FEW, "--run_folder", "run"]
    command("fit", *first, "--trainer.max_epochs", "1")
    (folder,) = Path("runs/wandb").glob("offline-run-*")
    found = records(folder)
    config = {k: v for r in found if r["type"] == "config" for k, v in r["config"]["update"].items()}
    assert config["model"]["channels"] == 6
    assert config["trainer"]["max_epochs"] == 1
    history = [r["history"]["item"] for r in found if r["type"] == "history"]
    assert any("train/loss" in row and "tau/conv1" in row for row in history)
    with chdir("run"):  # resuming works from any folder
        command("fit", "--config", "config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    ids = [re.search(r"-(\w+)$", path.name)[1] for path in Path("runs/wandb").glob("offline-run-*")]
    assert ids == [json.loads(Path("run/wandb.json").read_text())["id"]] * 2


def test_checkpoints_become_artifacts_where_that_is_asked_for(tmp_path):
    config = yaml.safe_load(Path(WANDB).read_text())
    config["trainer"]["logger"][1]["init_args"]["checkpoints"] = "best"
    Path("wandb.yaml").write_text(yaml.safe_dump(config))
    given = ["--config", QUICKSTART, "--config", "wandb.yaml", *SILENT, *TINY, *FEW, "--trainer.max_epochs", "1"]
    command("fit", *given)
    (folder,) = Path("runs/wandb").glob("offline-run-*")
    artifacts = [r for r in records(folder) if "artifact" in json.dumps(r) and "model-" in json.dumps(r)]
    assert artifacts


def test_without_a_login_the_ways_out_are_named(tmp_path):
    arguments = ["fit", "--config", QUICKSTART, "--config", WANDB, *SILENT, *TINY, *FEW]
    environment = {**os.environ, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments],
        env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert "Weights & Biases cannot be used: No API key configured" in said
    assert "`wandb login`" in said
    assert "WANDB_MODE=offline" in said


def read(config, history):
    """A finished run with this history, as W&B's API has it."""
    return run_of_wandb(
        SimpleNamespace(
            id="abc", name="run", state="finished", config=config, summary={}, scan_history=lambda: iter(history)
        )
    )


def test_runs_of_wandbs_api_are_runs():
    config = {"model": {"neuron": "lif", "init_tau": 16.0, "pooling": "max"}, "seed_everything": 3}
    config["data"] = {"class_path": "plif_lightning.data.MNIST", "init_args": {"validation": "test", "time_steps": 8}}
    config["facts"] = {"samples": {"training": 60_000, "test as val": 10_000}}
    history = [
        {"epoch": 0, "test_as_val/acc": 0.9, "_step": 0, "note": "x"},
        {"epoch": 0, "train/loss": 0.1},
        {"epoch": None, "W_over_tau/fc1": {}},
        {"epoch": 1, "test_as_val/acc": 0.95},
        {"epoch": 1, "test/acc": 0.9},
    ]
    found = read(config, history)
    assert (found.status, found.accuracy, found.best) == ("finished", 0.95, (2, 0.95))
    assert found.metrics[0] == {"epoch": 0.0, "test_as_val/acc": 0.9, "train/loss": 0.1}
    assert found.setting("data.time_steps") == 8


def test_epochs_that_a_killed_run_repeated_count_once():
    """Found by a review: the better of both counted."""
    config = {"model": {}, "data": {"init_args": {"validation": "holdout"}}}
    step = "trainer/global_step"
    lost = [{"epoch": 1, "val/acc": 0.95, step: 19}, {"epoch": 1, "train/loss": 0.1, step: 19}]
    lost += [{"epoch": 2, "val/acc": 0.97, step: 29}]
    again = [{"epoch": 1, "val/acc": 0.9, step: 19}, {"epoch": 1, "train/loss": 0.2, step: 19}]
    history = [{"epoch": 0, "val/acc": 0.8, step: 9}, *lost, *again]
    found = read(config, history)
    assert [(row["epoch"], row["val/acc"]) for row in found.metrics] == [(0, 0.8), (1, 0.9)]
    assert found.metrics[1]["train/loss"] == 0.2
    history.append({"epoch": 2, "val/acc": 0.85, step: None})
    found = read(config, history)
    assert [row["val/acc"] for row in found.metrics] == [0.8, 0.9, 0.85]


def test_a_project_that_cannot_be_read_is_named(capsys, monkeypatch, tmp_path):
    from plif_lightning.cli import main as commands

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    try:
        with pytest.raises(SystemExit) as stop:
            commands(["tables", "--runs", "wandb:nobody/nothing"])
    finally:
        # Otherwise the client keeps this environment's settings for the rest of the process.
        importlib.import_module("wandb").teardown()
    assert stop.value.code == 2
    assert "the runs of nobody/nothing cannot be read from W&B" in capsys.readouterr().err
