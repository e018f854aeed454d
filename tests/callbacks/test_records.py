"""Records in a run's folder: commands, histograms, samples."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plif_lightning import configs
from plif_lightning.callbacks.records import RunRecord, record_samples, weight_histogram
from plif_lightning.cli import main
from plif_lightning.data import Digits
from plif_lightning.network import load_network
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.histograms import Histogram, append_histograms, read_histograms
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.run import read_run
from plif_lightning.runs.samples import read_samples
from plif_lightning.training.task import SpikingClassifier

SMALL = ["--model.channels", "6", "--model.fc_features", "20", "--data.time_steps", "3", "--trainer.callbacks", "[]"]
SMALL += ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"]
SMALL += ["--trainer.enable_progress_bar", "false", "--model.v_threshold", "0.1"]  # so that its neurons fire


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fit(*arguments):
    given = ["fit", "--config", str(configs.folder() / "quickstart.yaml"), *SMALL, *arguments]
    main(given)
    return given


def test_run_records_command_result_and_weights():
    given = fit("--trainer.max_epochs", "2", "--run_folder", "here")
    run = read_run(Path("here"))
    assert (run.status, run.arguments, run.problems) == ("finished", given, [])
    assert run.tested_samples == 359
    assert run.accuracy == json.loads(run.folder.record.read_text())["test"]
    rows = read_histograms(run.folder)
    assert [(row.layer, row.epoch) for row in rows] == [(f"fc{i}", epoch) for epoch in (0, 1, 2) for i in (1, 2)]
    assert sum(rows[0].counts) == 20 * 6 * 2 * 2
    net = load_network("here/checkpoints/last.ckpt")  # that of the last epoch
    for row, block in zip(rows[-2:], (net.classifier.fc1, net.classifier.fc2), strict=True):
        of_step = block.fc.weight.detach() / block.neuron.learned()["tau"]
        assert (row.mean, row.std) == pytest.approx((of_step.mean().item(), of_step.std(correction=0).item()), rel=1e-4)


def test_a_resumed_run_keeps_its_command_and_its_rows():
    given = fit("--trainer.max_epochs", "1", "--run_folder", "here")
    main(["fit", "--run_folder", "here", "--trainer.max_epochs", "2"])
    run = read_run(Path("here"))
    assert run.arguments == [*given, "--trainer.max_epochs=2"]
    first, second = ([row for row in read_histograms(run.folder) if row.layer == layer] for layer in ("fc1", "fc2"))
    assert [row.epoch for row in first] == [row.epoch for row in second] == [0, 1, 2]
    lines = (run.folder.path / "weights.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 6  # the histogram of epoch 0 is written once
    assert run.status == "finished"


def test_recorded_samples_match_the_best_network():
    fit("--trainer.max_epochs", "1", "--run_folder", "here", "--record_samples", "4")
    folder = RunFolder(Path("here"))
    samples = read_samples(folder)
    assert samples.label.tolist() == [0, 1, 2, 3]
    assert samples.spikes.shape == (3, 4, 6, 8, 8)
    network = SpikingClassifier.load_from_checkpoint(folder.best, weights_only=True).network.eval()
    votes = network(torch.from_numpy(samples.frames[0]).float())
    torch.testing.assert_close(torch.from_numpy(samples.votes).float(), votes.detach(), atol=0.11, rtol=0)
    assert samples.rates[0] == pytest.approx(samples.spikes[:, 0].mean(0), abs=1e-3)


@pytest.mark.parametrize("number", [0, 1])
def test_as_many_samples_as_asked_for_are_recorded(number):
    fit("--trainer.max_epochs", "1", "--run_folder", "here", "--record_samples", str(number))
    samples = read_samples(RunFolder(Path("here")))
    assert (0 if samples is None else len(samples.label)) == number
    assert bool(read_run(Path("here")).record.cost) == bool(number)


def test_spikes_are_recorded_up_to_a_number_of_values(monkeypatch):
    data = Digits(time_steps=3, validation="holdout")
    data.prepare_data()
    data.setup("fit")
    network = SpikingClassifier((1, 8, 8), 10, 3, channels=4, fc_features=8).network.eval()
    one = 3 * 4 * 8 * 8  # T C H W of the first layer
    for most, expected in ((2 * one, 2), (2 * one - 1, 1), (one - 1, None)):
        monkeypatch.setattr("plif_lightning.callbacks.records._MAX_SPIKES", most)
        samples = record_samples(network, data, [0, 1, 2, 3], torch.device("cpu"))
        assert (None if samples is None else samples.spikes.shape[1]) == expected


def test_histograms_are_of_w_over_tau():
    weight = torch.tensor([[1.0, -1.0], [2.0, 4.0]])
    row = weight_histogram("fc1", 3, weight, torch.tensor(0.5))
    assert (row.layer, row.epoch, row.low, row.high, sum(row.counts)) == ("fc1", 3, -0.5, 2.0, 4)
    assert (row.mean, row.std) == pytest.approx((0.75, np.std([0.5, -0.5, 1.0, 2.0])))
    row = weight_histogram("fc1", 3, weight, torch.tensor([1.0, 0.25]))
    assert (row.low, row.high) == (-1.0, 1.0)
    assert weight_histogram("fc1", 3, torch.zeros(2, 2), torch.tensor(0.5)).counts.count(4) == 1


def test_recording_leaves_the_network_as_it_was():
    data = Digits(time_steps=3, validation="holdout")
    data.prepare_data()
    data.setup("fit")
    network = SpikingClassifier((1, 8, 8), 10, 3, channels=4, fc_features=8).network.eval()
    record_samples(network, data, [0, 1], torch.device("cpu"))
    assert all(not neuron._forward_hooks for _, neuron in network.neurons())


def test_a_later_test_counts_only_of_the_best_checkpoint_on_all_of_the_test_set():
    fit("--trainer.max_epochs", "1", "--run_folder", "here", "--test_after_fit", "false")
    assert read_run(Path("here")).accuracy is None
    assert "trainer.processes" not in read_run(Path("here")).settings  # of one alone BN has all statistics
    main(["test", "--ckpt_path", "here/checkpoints/last.ckpt"])
    main(["test", "--ckpt_path", "here/checkpoints/best.ckpt", "--trainer.limit_test_batches", "0.4"])
    assert read_run(Path("here")).accuracy is None
    main(["test", "--ckpt_path", "here/checkpoints/best.ckpt"])
    run = read_run(Path("here"))
    assert run.accuracy is not None
    assert run.tested_samples == 359


def test_histograms_survive_truncated_lines_and_repeated_epochs(tmp_path):
    run = RunFolder(tmp_path)
    first, second = (Histogram("fc1", epoch, -1.0, 1.0, [1, 2], 0.0, 0.5) for epoch in (1, 2))
    append_histograms(run, [first, second])
    with run.weights.open("a") as file:
        file.write('{"layer": "fc1", "ep')  # of a process that was killed
    again, third = replace(second, counts=[2, 1]), replace(second, epoch=3)
    append_histograms(run, [again, third])
    assert read_histograms(run) == [first, again, third]


@pytest.mark.parametrize("other", ["optimizer", "lr_scheduler", "loss"])
def test_new_optimiser_or_schedule_takes_over_weights_only(other):
    """The state of the old schedule would take the place of the new one's settings."""
    changed = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}
    changed = {"loss": "rate", "lr_scheduler": changed, "optimizer": {"class_path": "torch.optim.SGD"}}[other]
    record = RunRecord([], {"model": {other: changed}}, begun_from="other.ckpt")
    checkpoint = {"settings": Identity.of({}).settings, "optimizer_states": [1], "lr_schedulers": [1]}
    record.on_load_checkpoint(None, None, checkpoint)
    kept = [1] if other == "loss" else []
    assert (checkpoint["optimizer_states"], checkpoint["lr_schedulers"]) == (kept, kept)
