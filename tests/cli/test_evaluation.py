"""`test`, `validate` and `predict` of a checkpoint, with `plif_lightning.callbacks.predictions` and `.engine`."""

import shutil
from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml

import plif_lightning as pl
from plif_lightning.cli import main
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.lock import lock_run
from plif_lightning.runs.run import read_run
from plif_lightning.training.task import SpikingClassifier
from tests import writers
from tests.cli.calls import FEW, QUICKSTART, SILENT, TINY, fit, load, refused, resume, rows


def test_test_needs_nothing_but_the_checkpoint(run, tmp_path, monkeypatch, capsys):
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt")])
    out = capsys.readouterr().out
    assert "359 test" in out
    assert "B: best-on-validation epoch" in out.replace("\n", " ")
    here = rows(run / "test/metrics.csv")[0]["test/acc"]
    counts = rows(run / "test/confusion_matrix.csv")
    assert sum(int(v) for row in counts for k, v in row.items() if "true" not in k) == 359
    # also after it was moved, from another working directory
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (run / "checkpoints/best.ckpt").rename(moved / "renamed.ckpt")
    monkeypatch.chdir(moved)
    main(["test", "--ckpt_path=renamed.ckpt", *SILENT])
    assert rows(moved / "test/metrics.csv")[0]["test/acc"] == here


def test_testing_after_selection_on_the_test_set_is_stated(capsys):
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--test_after_fit", "false", "--data.validation", "test")
    assert "best test epoch" in capsys.readouterr().out
    run = Path("runs/quickstart/version_0")
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    assert "A: best test epoch" in capsys.readouterr().out
    main(["validate", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    assert "accuracy (test set)" in capsys.readouterr().out


def test_validate_uses_the_checkpoints_validation_split(run, capsys):
    main(["validate", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT, "--trainer.limit_val_batches", "1"])
    assert "212 val" in capsys.readouterr().out
    best = max(float(row["val/acc"]) for row in rows(run / "metrics.csv") if row["val/acc"])
    assert float(rows(run / "validate/metrics.csv")[0]["val/acc"]) == pytest.approx(best)


def test_predict_writes_label_prediction_and_votes_in_the_datas_order(run):
    main(["predict", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    table = rows(run / "predict/predictions.csv")
    assert [int(row["sample"]) for row in table] == list(range(359))
    right = 0
    for row in table:
        votes = [float(row[f"votes {c}"]) for c in range(10)]
        assert votes[int(row["prediction"])] == max(votes)
        assert (row["label name"], row["prediction name"]) == (row["label"], row["prediction"])
        right += row["label"] == row["prediction"]
    assert right / 359 == pytest.approx(float(rows(run / "test/metrics.csv")[0]["test/acc"]), abs=1e-6)


def test_rows_of_the_confusion_matrix_are_the_classes_and_columns_the_predictions(run):
    for subcommand in ("predict", "test"):
        main([subcommand, "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
    expected = Counter((row["label"], row["prediction"]) for row in rows(run / "predict/predictions.csv"))
    assert any(expected[one] != expected[one[::-1]] for one in expected)
    for row in rows(run / "test/confusion_matrix.csv"):
        label = row.pop("true \\ predicted")
        assert {name: int(number) for name, number in row.items()} == {name: expected[label, name] for name in row}


def test_only_a_test_as_in_training_is_a_result_of_the_run(run, caplog):
    """What accuracy B is read from: not with another T or precision, nor while the run goes on."""
    test = ["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT]
    for name, value in (("data.time_steps", "1"), ("trainer.precision", "bf16-mixed"), ("seed_everything", "7")):
        main([*test, f"--{name}", value])
        assert f"With another {name} than in training" in caplog.text
        assert read_run(run).accuracy is None
        assert not (run / "test").exists()
        assert (run / "test_other/confusion_matrix.csv").is_file()
    with lock_run(RunFolder(run)):
        main(test)
        assert "its best checkpoint may change" in caplog.text
        assert not (run / "test").exists()
    main([*test, "--data.eval_batch_size", "50", "--data.batch_size", "8"])
    assert read_run(run).accuracy is not None
    assert (run / "test/confusion_matrix.csv").is_file()  # the first one there
    longer = ["--trainer.max_epochs", "3", "--test_after_fit", "false"]
    resume(run, *longer)
    assert read_run(run).accuracy is None  # it was of what was the best checkpoint then


def test_a_run_in_bfloat16_is_tested_in_bfloat16(caplog):
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--trainer.precision", "bf16-mixed", "--run_folder", "run")
    tested = read_run(Path("run")).accuracy
    precisions = []
    with pytest.MonkeyPatch.context() as patch:
        start = SpikingClassifier.on_test_epoch_end
        patch.setattr(
            SpikingClassifier,
            "on_test_epoch_end",
            lambda task: (precisions.append(task.trainer.precision), start(task)),
        )
        main(["test", "--ckpt_path", "run/checkpoints/best.ckpt", *SILENT, "--trainer.limit_test_batches", "2"])
    assert precisions == ["bf16-mixed"]
    assert "With another" not in caplog.text
    assert float(rows("run/test/metrics.csv")[0]["test/acc"]) == tested


def test_checkpoints_load_with_weights_only_and_restore_the_task(run):
    from plif_lightning.training.task import SpikingClassifier

    for name in ("best", "last"):
        checkpoint = load(run / f"checkpoints/{name}.ckpt")
        assert yaml.safe_load(checkpoint["cli_config"])["model"]["channels"] == 6
    task = SpikingClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True)
    assert str(task.network.structure).startswith("{c6k3s1")


@pytest.mark.parametrize("subcommand", ["test", "validate", "predict"])
def test_an_evaluation_without_a_checkpoint_is_refused(subcommand, capsys):
    message = refused(capsys, subcommand, "--config", QUICKSTART)
    assert "random weights" in message
    assert "--ckpt_path RUN/checkpoints/best.ckpt" in message


@pytest.mark.parametrize(("subcommand", "part"), [("test", "test"), ("validate", "val"), ("predict", "predict")])
def test_an_evaluation_of_nothing_is_refused(subcommand, part, run, capsys):
    best = ["--ckpt_path", str(run / "checkpoints/best.ckpt")]
    for nothing in ("0", "0.0"):
        message = refused(capsys, subcommand, *best, f"--trainer.limit_{part}_batches", nothing)
        assert f"trainer.limit_{part}_batches must be above 0, or nothing is trained or measured" in message
    assert "--ckpt_path must be given once" in refused(capsys, subcommand, *best, *best)


def test_model_settings_that_contradict_the_checkpoint_are_refused(run, capsys):
    best = str(run / "checkpoints/best.ckpt")
    message = refused(capsys, "test", "--ckpt_path", best, "--model.init_tau", "3")
    assert "model.init_tau is 2.0 there, 3 here" in message
    main(["test", "--ckpt_path", best, "--model.init_tau", "2.0", *SILENT])


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "other", "missing"])
def test_a_file_that_is_no_checkpoint_is_refused_by_its_name(kind, run, capsys):
    path = Path("bad.ckpt")
    if kind == "truncated":
        path.write_bytes((run / "checkpoints/best.ckpt").read_bytes()[:20_000])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "other":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    message = refused(capsys, "test", "--ckpt_path", str(path))
    assert "bad.ckpt" in message


def test_a_checkpoint_of_another_trainer_is_measured_on_the_data_that_are_named(tmp_path, capsys):
    data = pl.data.Digits(time_steps=2)
    task = pl.SpikingClassifier(data.input_shape, data.num_classes, data.time_steps, channels=6, fc_features=20)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=1, **silent)
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint("net.ckpt")
    assert "names no data set" in refused(capsys, "test", "--ckpt_path", "net.ckpt")
    assert "names no data set" in refused(capsys, "cost", "--ckpt_path", "net.ckpt")
    main(["test", "--ckpt_path", "net.ckpt", "--data", "Digits", *SILENT])
    expected = trainer.test(task, datamodule=data, verbose=False)[0]["test/acc"]
    assert float(rows(tmp_path / "test/metrics.csv")[0]["test/acc"]) == pytest.approx(expected)
    main(["cost", "--ckpt_path", "net.ckpt", "--data", "Digits", "--samples", "4"])
    assert "measured on 4" in " ".join(capsys.readouterr().out.split())
    main(["export", "--ckpt_path", "net.ckpt", "--out", "out"])
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(pl.load_network("out")(x), task.network.eval()(x))


def test_a_test_on_other_shares_of_the_same_recordings_is_refused(capsys):
    """Found by a review: with another data.test_fraction, 14 of 20 test recordings were those of the training."""
    for i in range(8):
        path = writers.write_file(Path(f"mine/{'ab'[i % 2]}/{i}.npz"), b"")
        np.savez(path, **writers.events_of(60, i, 12, 12)._asdict())
    data = ["--data", "EventFolder", "--data.root", "mine", "--data.sensor=[12,12]", "--data.time_steps", "2"]
    data += ["--data.validation", "test"]
    small = ["--model.structure", "FC4-PLIF-FC2", "--model.loss", "tet", "--trainer.max_epochs", "1", *SILENT]
    main(["fit", *data, "--data.test_fraction", "0.5", *small, "--run_folder", "run"])
    test = ["test", "--ckpt_path", "run/checkpoints/best.ckpt", *SILENT]
    assert "data.test_fraction is 0.5 there, 0.75 here" in refused(capsys, *test, "--data.test_fraction", "0.75")
    assert "data.split is" in refused(capsys, *test, "--data.split", "time")
    shutil.copytree("mine", "other")  # all of it is new to the network
    main([*test, "--data.root", "other", "--data.test_fraction", "0.75"])
    predict = ["predict", *test[1:]]
    main(predict)
    before = Path("run/predict/predictions.csv").read_bytes()
    main([*predict, "--data.root", "other", "--data.test_fraction", "0.75"])
    assert Path("run/predict/predictions.csv").read_bytes() == before
    assert len(rows(Path("run/predict_other/predictions.csv"))) == 6
