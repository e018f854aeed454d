"""Mistakes are answered with one sentence."""

import pytest

from tests.cli.calls import CONFIGS, QUICKSTART, SILENT, refused


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.init_tua", "3"], "unknown argument model.init_tua. Did you mean model.init_tau?"),
        (["--data.tim_steps", "3"], "unknown argument tim_steps. Did you mean data.time_steps?"),
        (["--trainer.max_epoch", "3"], "unknown argument trainer.max_epoch. Did you mean trainer.max_epochs?"),
        (["--data", "Digit"], "Did you mean Digits?"),
        (["--model.optimizer", "Adamm"], "model.optimizer must be one of"),
        (["--model.optimizer", "Adamm"], "got 'Adamm'. Did you mean Adam?"),
        (["--model.lr_scheduler", "StepLr"], "got 'StepLr'. Did you mean StepLR?"),
        (["--trainer.callbacks", "EarlyStoping"], "EarlyStoping"),
        (
            ["--trainer.callbacks", "EarlyStopping"],
            "trainer.callbacks: EarlyStopping needs monitor: pass --trainer.call",
        ),
        (["--trainer.logger", "MLFlowLogger"], "mlflow"),
        (["--model.reset", "medium"], "model.reset"),
        (["--data.time_steps", "0"], "data.time_steps must be at least 1, got 0"),
        (["--model.init_tau", "1"], "init_tau must be > 1"),
        (["--model.neuron", "gru"], "model.neuron"),
        (["--model.n_down", "5"], "n_down=5 pools leave nothing of an input of 8x8"),
        (["--data.batch_size", "2000", "--data.drop_last", "true"], "larger than the data (1226 samples)"),
        (["--trainer.precision", "16-mixed", "--trainer.accelerator", "cpu"], "pass bf16-mixed or 32-true"),
        (["--trainer.overfit_batches", "2"], "pass limit_train_batches instead"),
        (["--trainer.val_check_interval", "500"], "must be less than or equal to the number of the training batches"),
        (["--checkpoint.every_n_batches", "0"], "checkpoint.every_n_batches must be at least 1"),
        (["--ckpt_path", "."], "is a folder"),
        (["--ckpt_path"], "--ckpt_path needs a file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model.input_encoder", "poisson"], "--data.normalize=false"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_with_one_sentence(arguments, expected, capsys):
    assert expected in refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *arguments)


def test_an_unknown_key_in_a_file_is_answered_with_the_nearest(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  poolin: avg\n")
    assert "Did you mean model.pooling?" in refused(capsys, "fit", "--config", QUICKSTART, "--config", str(path))


def test_a_missing_data_set_is_answered_with_files_and_place(capsys, tmp_path):
    message = refused(
        capsys,
        *("fit", "--config", str(CONFIGS / "mnist.yaml"), *SILENT),
        *("--data.root", str(tmp_path / "no"), "--data.download", "false"),
    )
    for part in ("MNIST/raw", str(tmp_path / "no"), "--data.root", "--data.download=true"):
        assert part in message


def test_a_class_that_is_not_found_elsewhere_is_not_blamed_on_the_data(capsys):
    for arguments in (["--model.optimizer", "Adamm"], ["--trainer.callbacks", "EarlyStoping"]):
        assert "data must be" not in refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *arguments)
