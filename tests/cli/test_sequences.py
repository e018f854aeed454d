"""Sequences from the command line: trained, tested, exported and counted."""

import json

import onnxruntime
import torch

from plif_lightning.cli import main
from plif_lightning.data import Digits
from plif_lightning.network import load_network
from tests.cli.calls import FEW, fit


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
