"""A neuron of a user's own file, in every command."""

import sys
from pathlib import Path

import pytest
import torch

import plif_lightning as pl
from plif_lightning.cli import main
from plif_lightning.errors import UserError
from tests.cli.calls import FEW, QUICKSTART, SILENT, TINY, fit, load, refused, resume, rows
from tests.conftest import REPOSITORY

OWN = ["--model.neuron", "my_neurons.CLIF", "--model.neuron.k", "0.6"]
BEST = "runs/quickstart/version_0/checkpoints/best.ckpt"


@pytest.fixture(autouse=True)
def own_file(monkeypatch):
    """The example's neuron in the folder of the command, as a user has hers."""
    Path("my_neurons.py").write_text((REPOSITORY / "tests/examples/own_neuron.py").read_text())
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_neurons", None)


def test_it_is_trained_tested_and_read_again(capsys):
    fit(*TINY, *FEW, *OWN, "--trainer.max_epochs", "2")
    metrics = rows("runs/quickstart/version_0/metrics.csv")
    assert 0.5 < float(metrics[0]["k/conv1"]) < 0.7
    assert metrics[0]["k/conv1"] != metrics[1]["k/conv1"]  # learned
    assert "k                      conv1 0." in capsys.readouterr().out
    stored = load(BEST)["hyper_parameters"]["neuron"]
    assert stored["class_path"] == "my_neurons.CLIF"
    assert stored["init_args"]["k"] == 0.6
    main(["test", "--ckpt_path", BEST, *SILENT])
    main(["predict", "--ckpt_path", BEST, *SILENT, "--trainer.limit_predict_batches", "1"])
    main(["cost", "--ckpt_path", BEST, "--samples", "2"])
    main(["report", "--runs", "runs", "--out", "report.html"])
    assert "CLIF(k=0.6)" in Path("report.html").read_text()
    main(["tables", "--runs", "runs", "--out", "tables"])
    assert "CLIF(k=0.6)" in "".join(path.read_text() for path in Path("tables").glob("*.md"))
    assert capsys.readouterr().err.count("error") == 0
    net = pl.load_network(BEST)
    x = torch.rand(5, 1, 8, 8)
    votes = net(x).detach()
    torch.testing.assert_close(pl.deploy.deployed(net)(x), votes)
    main(["export", "--ckpt_path", BEST, "--out", "exported", "--format", "pt2"])
    exported = pl.load_network("exported")
    torch.testing.assert_close(exported(x), votes)


def test_it_is_resumed_to_the_same_weights():
    fit(*TINY, *FEW, *OWN, "--trainer.max_epochs", "2", "--run_folder", "whole")
    fit(*TINY, *FEW, *OWN, "--trainer.max_epochs", "1", "--run_folder", "half")
    resume("half", "--trainer.max_epochs", "2", *SILENT)
    whole, half = (load(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("whole", "half"))
    for name, value in whole.items():
        assert torch.equal(value, half[name]), name


def test_a_checkpoint_of_other_equations_is_refused(capsys):
    fit(*TINY, *FEW, *OWN, "--trainer.max_epochs", "1")
    Path("my_neurons.py").write_text(
        Path("my_neurons.py").read_text().replace("m * torch.sigmoid", "0.5 * m * torch.sigmoid")
    )
    sys.modules.pop("my_neurons")
    assert "the equations or constants of neurons" in refused(capsys, "test", "--ckpt_path", BEST, *SILENT)
    with pytest.raises(UserError, match="the equations or constants of neurons"):
        pl.load_network(BEST)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.neuron", "my_neurons.CLIFF"], "module 'my_neurons' has no attribute 'CLIFF'"),
        (["--model.neuron", "their_neurons.CLIF"], "No module named 'their_neurons'"),
        (["--model.neuron", "torch.nn.Linear"], "Import path does not correspond to a subclass of Neuron"),
        (["--model.neuron", "my_neurons.CLIF", "--model.neuron.q", "1"], "Option 'q' is not accepted"),
        (["--model.neuron", "clif", "--model.neuron.k", "0.3"], "Expected a dot import path string: clif"),
        (
            ["--model.neuron", "my_neurons.CLIF", "--model.neuron", "CLIF"],
            "Give the full class path to avoid ambiguity: plif_lightning.CLIF, ",
        ),
        (["--model.neuron", "my_neurons.CLIF", "--model.init_tau", "4"], "init_tau=4.0 has no meaning for CLIF"),
    ],
)
def test_a_mistake_is_named(arguments, message, capsys):
    assert message in refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *arguments)


MY = "import plif_lightning as pl\nclass My(pl.Neuron):"


def test_a_checkpoint_names_only_neurons(tmp_path):
    fit(*TINY, *FEW, "--trainer.max_epochs", "1")
    checkpoint = load(BEST)
    for path, message in (("os.system", "not a subclass"), ("nowhere.CLIF", "cannot be imported")):
        checkpoint["hyper_parameters"]["neuron"] = {"class_path": path, "init_args": {"command": "touch broken"}}
        torch.save(checkpoint, tmp_path / "foreign.ckpt")
        with pytest.raises(UserError, match=message):
            pl.load_network(tmp_path / "foreign.ckpt")
    assert not Path("broken").exists()


def test_checkpoint_with_unimportable_data_set_says_where_to_run(tmp_path, capsys):
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--run_folder", "run")
    path = "run/checkpoints/last.ckpt"
    checkpoint = load(path)
    checkpoint["cli_config"] = checkpoint["cli_config"].replace("plif_lightning.data.Digits", "my_data.Mine")
    torch.save(checkpoint, path)
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("plif_lightning.data.Digits", "my_data.Mine"))
    for arguments in (["test", "--ckpt_path", path], ["cost", "--ckpt_path", path], ["fit", "--run_folder", "run"]):
        line = refused(capsys, *arguments)
        assert line.startswith("error: data set my_data.Mine cannot be imported")
        assert line.endswith("run the command where my_data.py lies, or install its package.")
