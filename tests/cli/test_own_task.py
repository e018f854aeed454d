"""`--model my_task.Task`: trained, resumed, tested, compared and read back."""

import importlib
import shutil

import pytest
import yaml

import plif_lightning as pl
from plif_lightning.cli import main
from plif_lightning.cli.start import task_in
from plif_lightning.errors import UserError
from tests.cli.calls import FEW, SILENT, TINY, refused, rows
from tests.conftest import REPOSITORY


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    shutil.copy(REPOSITORY / "tests/examples/own_task.py", tmp_path / "my_task.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


CALL = ("fit", "--config", "quickstart", *FEW, *SILENT)


def test_a_task_of_ones_own_has_a_whole_life(own_task, capsys, tmp_path):
    main([*CALL, "--trainer.max_epochs", "1", "--run_folder", "P"])
    of_task = "--model", "my_task.Task", "--model.penalty", "0.1"
    groups = '[{match: "classifier.*", lr: 1.0e-4}, {match: "*.tau", weight_decay: 0.01}]'
    main([*CALL, *of_task, "--model.parameter_groups", groups, "--trainer.max_epochs", "1", "--run_folder", "R"])
    config = yaml.safe_load((tmp_path / "R/config.yaml").read_text())
    assert (config["task"], config["model"]["penalty"]) == ("my_task.Task", 0.1)
    assert "penalty/all" in (tmp_path / "R/metrics.csv").read_text().splitlines()[0]
    main(["fit", "--run_folder", "R", "--trainer.max_epochs", "2"])
    main(["test", "--ckpt_path", "R/checkpoints/best.ckpt", *SILENT])
    capsys.readouterr()
    main(["runs", "--runs", ".", "--compare", "P", "R"])
    compared = capsys.readouterr().out
    assert "my_task.Task" in compared
    assert "model.penalty" in compared
    assert pl.load_network("R/checkpoints/best.ckpt").num_classes == 10
    assert importlib.import_module("my_task").Task.load_from_checkpoint("R/checkpoints/last.ckpt").penalty == 0.1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--task", "a.A"], "a.A"),
        (["--task", "a.A", "--task=b.B"], "b.B"),
        (["--config", "c.yaml"], "c.C"),
        (["--config", "c.yaml", "--config", "d.yaml"], "d.D"),
        (["--task", "a.A", "--config", "c.yaml"], "a.A"),
        (["--config", "plain.yaml"], None),
    ],
)
def test_the_last_task_counts_and_an_argument_before_a_configuration(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"c": "task: c.C", "d": "task: d.D", "plain": "model: {}"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert task_in(arguments) == expected


def test_a_loss_of_ones_own_is_named_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "my_loss.py").write_text(
        "from torch import nn\n\n\nclass Constant(nn.Module):\n"
        "    def forward(self, votes, target):\n        return 0 * votes.mean() + 3.5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    main([*CALL, *TINY, "--model.loss", "my_loss.Constant", "--trainer.max_epochs", "1", "--run_folder", "R"])
    assert [float(row["train/loss"]) for row in rows("R/metrics.csv") if row["train/loss"]] == [3.5]


def test_its_arguments_are_in_the_help(own_task, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model", "my_task.Task", "--help"])
    assert "weight of the sum of absolute weights" in capsys.readouterr().out


def test_a_class_that_is_no_task_is_refused(own_task, capsys):
    line = refused(capsys, *CALL, "--model", "collections.OrderedDict")
    assert line == "error: model collections.OrderedDict is not a subclass of plif_lightning.SpikingClassifier."


def test_objects_that_no_checkpoint_can_hold_are_refused_at_once():
    class Task(pl.SpikingClassifier):
        def __init__(self, teacher, **settings):
            super().__init__(**settings)

    with pytest.raises(UserError, match="teacher is a set, which a checkpoint cannot hold: let Task take a path"):
        Task({1, 2}, input_shape=(1, 8, 8), num_classes=3, time_steps=2)
