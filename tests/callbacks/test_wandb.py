"""Weights & Biases with the real client, offline and against a local server."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import wandb
import yaml

from plif_lightning.cli import main
from plif_lightning.cli.sweep_file import read_sweep
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.run import find_runs
from tests.callbacks.wandb_server import WandbServer
from tests.cli.calls import SILENT, TINY, until
from tests.conftest import PATIENCE, REPOSITORY

QUICKSTART = str(REPOSITORY / "configs" / "quickstart.yaml")
WANDB = str(REPOSITORY / "configs" / "variants" / "wandb.yaml")
FEW = ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "2"]


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")


def client(*arguments, environment, timeout=PATIENCE):
    command = [str(Path(sys.executable).parent / "wandb"), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False, cwd=REPOSITORY
    )


def agent_of(path, server, folder):
    """Make a sweep of a file, and start W&B's agent in a folder with the configurations, like the repository."""
    environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_SILENT": "false"}
    environment |= {"WANDB_DIR": str(folder)}
    made = client("sweep", str(path), environment=environment)
    assert made.returncode == 0, made.stderr
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "main.py").symlink_to(REPOSITORY / "main.py")
    environment["PYTHONPATH"] = str(REPOSITORY)
    # The agent calls `python`, which must be this one even if its environment is not activated.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [str(Path(sys.executable).parent / "wandb"), "agent", "e/plif_lightning/S"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


@pytest.mark.slow
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
        agent = agent_of(path, server, tmp_path)
        said = "".join(agent.communicate(timeout=PATIENCE))
    assert server.exit_codes == {"run1": 0, "run2": 0}, said[-3000:]
    assert "locked" not in said
    assert "Ignoring project" not in said
    assert "anonymous" not in said
    for name, neuron in (("run1", "plif"), ("run2", "lif")):
        config = server.configs[name]
        assert (config["model"]["neuron"], config["model"]["init_tau"], config["seed_everything"]) == (neuron, 4.0, 7)
        assert config["data"]["class_path"] == "plif_lightning.data.Digits"
        rows = server.rows(name)
        assert [row["epoch"] for row in rows if "train/loss" in row] == [0, 1]
        keys = {key for row in rows for key in row}
        assert {"train/acc", "val/acc", "tau/conv1", "rate/fc2", "test/acc"} <= keys
        assert (server.groups[name], server.tags[name]) == ("table4", ["table4"])
    folders = list((tmp_path / "runs" / "quickstart").iterdir())
    assert len(folders) == 2  # named after the configuration, not after the variant


@pytest.mark.slow
def test_a_preempted_run_of_an_agent_is_resumed_in_its_folder(tmp_path):
    """With the command of the page on clusters."""
    page = (REPOSITORY / "docs/howto/cluster.md").read_text()
    command = yaml.safe_load(
        next(part for part in re.findall(r"```yaml\n(.*?)```", page, re.S) if "WANDB_RUN_ID" in part)
    )
    small = {"config": "configs/quickstart.yaml", "trainer.max_epochs": 40, "model.channels": 4}
    parameters = {"parameters": {key: {"value": value} for key, value in small.items()}}
    path, logger = tmp_path / "sweep.yaml", tmp_path / "wandb.yaml"
    path.write_text(yaml.safe_dump({"program": "main.py", "method": "grid", **parameters, **command}))
    logger.write_text(Path(WANDB).read_text().replace("preemptible: false", "preemptible: true"))
    folder = RunFolder(tmp_path / "runs" / "table4" / "run1")
    with WandbServer() as server:
        agent = agent_of(path, server, tmp_path)
        until(lambda: agent.poll() is not None or folder.last.is_file())
        os.kill(json.loads(folder.record.read_text())["sessions"][-1]["process"]["pid"], signal.SIGTERM)
        said = "".join(agent.communicate(timeout=PATIENCE))
    assert (server.preempting, server.exit_codes) == ({"run1"}, {"run1": 0}), said[-3000:]
    assert "stopped by SIGTERM" in said
    assert [(run.status, len(run.metrics)) for run in find_runs(tmp_path / "runs")] == [("finished", 40)]
    assert "--run_folder" not in read_sweep(path).arguments  # a sweep without the server has folders of its own


def records(folder):
    """Records of an offline run, read by the client's own reader."""
    (path,) = Path(folder).glob("*.wandb")
    done = client("leet", "inspect", "--json", str(path.absolute()), environment=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def offline(*arguments):
    """In this process, which has one W&B run at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        main(["fit", *arguments])
    wandb.finish()


def test_resumed_offline_run_continues_the_same_wandb_run():
    first = ["--config", QUICKSTART, "--config", WANDB, *SILENT, *TINY, *FEW, "--run_folder", "run"]
    offline(*first, "--trainer.max_epochs", "1")
    (folder,) = Path("run/wandb").glob("offline-run-*")
    found = records(folder)
    config = {k: v for r in found if r["type"] == "config" for k, v in r["config"]["update"].items()}
    assert config["model"]["channels"] == 6
    assert config["trainer"]["max_epochs"] == 1
    history = [r["history"]["item"] for r in found if r["type"] == "history"]
    assert any("train/loss" in row and "tau/conv1" in row for row in history)
    with chdir("run"):  # resuming works from any folder
        offline("--ckpt_path", "checkpoints/last.ckpt", "--trainer.max_epochs", "2")
    ids = [re.search(r"-(\w+)$", path.name)[1] for path in Path("run/wandb").glob("offline-run-*")]
    assert ids == [json.loads(Path("run/run.json").read_text())["wandb"]] * 2


@pytest.mark.slow
def test_checkpoints_become_artifacts_where_that_is_asked_for(tmp_path):
    config = yaml.safe_load(Path(WANDB).read_text())
    config["trainer"]["logger"][0]["init_args"]["checkpoints"] = True
    Path("wandb.yaml").write_text(yaml.safe_dump(config))
    given = ["--config", QUICKSTART, "--config", "wandb.yaml", *SILENT, *TINY, *FEW, "--trainer.max_epochs", "1"]
    offline(*given)
    (folder,) = Path("runs/quickstart/version_0/wandb").glob("offline-run-*")
    artifacts = [r for r in records(folder) if "artifact" in json.dumps(r) and "model-" in json.dumps(r)]
    assert artifacts


@pytest.mark.slow
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
