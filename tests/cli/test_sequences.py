"""Sequences from the command line: trained, tested, exported and counted."""

import json
from typing import ClassVar

import onnxruntime
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from plif_lightning.cli import main
from plif_lightning.data import SHD, Digits
from plif_lightning.errors import UserError
from plif_lightning.network import load_network
from tests import writers
from tests.cli.calls import FEW, TINY, fit


def test_images_by_rows_are_trained_tested_exported_and_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    structure = ("--model.structure", "RFC16-PLIF-FC10", "--model.loss", "cross_entropy")
    fit(*FEW, "--data.sequence", "rows", *structure, "--trainer.max_epochs", "1", "--run_folder", "R")
    checkpoint = ("--ckpt_path", "R/checkpoints/best.ckpt")
    main(["export", *checkpoint, "--out", "E", "--format", "onnx"])
    manifest = json.loads((tmp_path / "E/export.json").read_text())
    assert manifest["input"] == [8, "N", 8]
    assert manifest["preprocessing"]["sequence"] == {"name": "rows", "seed": 0}
    x, _ = Digits(sequence="rows").test_samples(5)
    with torch.no_grad():
        votes = load_network("E")(x)
    session = onnxruntime.InferenceSession("E/network.onnx")
    onnx = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(onnx), votes)
    main(["cost", *checkpoint, "--samples", "4"])
    assert "fc1.recurrent" in capsys.readouterr().out


def are_zeros():
    return (torch.tensor([1e-20]) * 1e-20).item() == 0


class Seen(Callback):
    products: ClassVar = []

    def on_train_start(self, trainer, task):
        self.products.append(are_zeros())


def test_numbers_below_the_normal_ones_are_zeros_while_a_command_runs(monkeypatch):
    def read(path):
        Seen.products.append(are_zeros())
        raise UserError("no checkpoint")

    monkeypatch.setattr("plif_lightning.cli.streaming.read_trained", read)
    monkeypatch.setattr(Seen, "products", [])
    callback = ("--trainer.callbacks", f"{__name__}.Seen", "--trainer.enable_checkpointing", "false")
    fit(*FEW, *TINY, "--trainer.max_epochs", "1", *callback)
    with pytest.raises(SystemExit):
        main(["stream", "--ckpt_path", "R", "--file", "E"])
    assert Seen.products == [True, True]
    assert not are_zeros()


def test_words_of_ones_own_are_trained_compared_and_streamed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    writers.write_cochlea(tmp_path / "SHD/shd_train.h5", 100, 0)
    writers.write_cochlea(tmp_path / "SHD/shd_test.h5", 20, 1)
    words = ("--data.root", ".", "--data.channels", "40", "--data.time_steps", "16", "--data.step_ms", "50")
    structure = ("--model.structure", "RFC32b-PLIF-FC2b", "--trainer.max_epochs", "30", "--data.batch_size", "20")
    # Mean counts over time are the same for both words: only their order tells.
    main(["fit", "--config", "shd", *words, *structure, "--model.optimizer.lr", "0.01", "--run_folder", "R"])
    main(["test", "--ckpt_path", "R/checkpoints/best.ckpt"])
    accuracy = json.loads((tmp_path / "R/run.json").read_text())["test"]
    assert accuracy > 0.9
    stream = ["stream", "--ckpt_path", "R/checkpoints/best.ckpt", "--file", "SHD/shd_test.h5"]
    with pytest.raises(SystemExit):
        main(stream)
    assert "SHD/shd_test.h5 holds 20 recordings: pass --number 0 to 19" in capsys.readouterr().err
    data, net = SHD(root=".", channels=40, time_steps=16, step_ms=50.0), load_network("R/checkpoints/best.ckpt")
    data.setup("test")
    decisions = []
    for number in range(4):
        main([*stream, "--number", str(number)])
        printed = capsys.readouterr().out
        shown = [
            float(line.split()[-1]) for line in printed.splitlines() if line.startswith("step") and "no" not in line
        ]
        votes = net(data.test_set[number][0][:, None].float())[:, 0].cumsum(0) / torch.arange(1, 17)[:, None]
        assert shown == pytest.approx([v for v in votes.amax(1).tolist() if v], abs=6e-4)
        decisions.append(printed.splitlines()[-1].split()[1])
        assert "after 16 time-steps" in printed  # as in training, silent ones included
    assert decisions == ["null", "eins", "null", "eins"]
