"""Runs and checkpoints that earlier versions wrote go on loading, with the same votes.

`tests/earlier/` holds runs of a128805, f06ffea and 0.1.0, each made by that version on scikit-learn's digits, and the
votes that it gave for five inputs.
"""

import shutil

import numpy as np
import pytest
import torch

import plif_lightning as pl
from plif_lightning.cli import main
from plif_lightning.runs.reading import read_run
from tests.conftest import REPOSITORY

EARLIER = REPOSITORY / "tests" / "earlier"
VERSIONS = {"a128805": 63.51, "f06ffea": 63.51, "0.1.0": 64.90}  # accuracy on the test set [%], as each printed it


def images():
    """The inputs of which each version recorded its votes."""
    ramp = torch.linspace(-1, 3, 5 * 64).reshape(5, 1, 8, 8).flip(0)
    return ramp + torch.sin(torch.arange(320.0)).reshape(5, 1, 8, 8)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint_gives_the_votes_that_it_gave(version):
    net = pl.load_network(EARLIER / version / "checkpoints" / "best.ckpt")
    expected = np.load(EARLIER / version / "votes.npy")
    assert len(np.unique(expected.transpose(1, 0, 2).reshape(5, -1), axis=0)) == 5  # votes that say something
    with torch.no_grad():
        frames = images()[None].expand(3, -1, -1, -1, -1)
        np.testing.assert_array_equal(net(frames.contiguous()).numpy(), expected)
        np.testing.assert_array_equal(net(images()).numpy(), expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint_is_tested_by_its_name_alone(version, tmp_path, capsys):
    shutil.copytree(EARLIER / version, tmp_path / "run")  # the result is written there
    main(["test", "--ckpt_path", str(tmp_path / "run/checkpoints/best.ckpt"), "--trainer.enable_progress_bar", "false"])
    assert f"{VERSIONS[version]:.2f} %" in capsys.readouterr().out


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_folder_is_read(version):
    run = read_run(EARLIER / version)
    assert (run.status, run.problems) == ("finished", [])
    assert run.accuracy == pytest.approx(VERSIONS[version] / 100, abs=5e-5)
    assert run.epochs == 3
    assert run.layers("tau") == ["conv1", "conv2", "fc1", "fc2"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_configuration_is_read(version, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(EARLIER / version / "config.yaml"), "--print_config"])
    assert stop.value.code == 0
    assert "v_threshold: 0.2" in capsys.readouterr().out
