"""Mistakes are answered with one sentence."""

from pathlib import Path

import pytest
import yaml

from plif_lightning.cli.arguments import parsed_yaml
from tests.cli.calls import CONFIGS, QUICKSTART, SILENT, refused


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.init_tua", "3"], "unknown argument model.init_tua. Did you mean model.init_tau?"),
        (["--data.tim_steps", "3"], "unknown argument tim_steps. Did you mean data.time_steps?"),
        (["--trainer.max_epoch", "3"], "unknown argument trainer.max_epoch. Did you mean trainer.max_epochs?"),
        (["--data", "Digit"], "Did you mean Digits?"),
        (["--model.optimizer", "Adamm"], "model.optimizer names no class Adamm. Did you mean Adam?"),
        (["--model.lr_scheduler", "StepLr"], "model.lr_scheduler names no class StepLr. Did you mean StepLR?"),
        (["--data.augmentation+=RandomCrp"], "names no class RandomCrp. Did you mean RandomCrop?"),
        (["--trainer.callbacks", "EarlyStoping"], "EarlyStoping"),
        (
            ["--trainer.callbacks", "EarlyStopping"],
            "a class that was given needs monitor: pass --KEY.monitor=VALUE after --KEY=CLASS",
        ),
        (["--trainer.callbacks+=EarlyStopping"], "a class that was given needs monitor: pass --KEY.monitor"),
        (
            ["--trainer.logger+=TensorBoardLogger"],
            "a class that was given needs save_dir: pass --KEY.save_dir=VALUE",
        ),
        (["--trainer.logger", "MLFlowLogger"], "mlflow"),
        (["--model.reset", "medium"], "model.reset"),
        (["--data.time_steps", "0"], "data.time_steps must be a whole number, at least 1, got 0"),
        (["--model.init_tau", "1"], "init_tau must be > 1"),
        (["--model.neuron", "gru"], "model.neuron"),
        (["--model.n_down", "5"], "MPk2s2 of conv4 leaves nothing of a map of 1x1, from an input of 8x8"),
        (["--data.batch_size", "2000", "--data.drop_last", "true"], "larger than the data (1226 samples)"),
        (["--trainer.precision", "16-mixed", "--trainer.accelerator", "cpu"], "pass bf16-mixed or 32-true"),
        (["--trainer.overfit_batches", "2"], "pass limit_train_batches instead"),
        (["--trainer.barebones", "true"], "trainer.barebones would keep nothing of a run: pass --trainer.fast_dev_run"),
        (["--trainer.val_check_interval", "500"], "must be less than or equal to the number of the training batches"),
        (["--checkpoint.every_n_batches", "0"], "checkpoint.every_n_batches must be a whole number, at least 1"),
        (["--ckpt_path", "."], "checkpoint . does not exist, or is not a file such as RUN"),
        (["--ckpt_path"], "--ckpt_path needs a file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", ""], "--config needs the name or the path"),
        (["--seed_everything", "-1"], "seed_everything must be at least 0, got -1"),
        (["--seed_everything", "4294967296"], "seed_everything must be below 2^32"),
        (["--model.optimizer.lr", "abc"], "Given value: abc"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches must be at least 1, got 0"),
        (["--trainer.check_val_every_n_epoch", "0"], "trainer.check_val_every_n_epoch must be at least 1, got 0"),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs must be at least 1, got 0"),
        (["--trainer.max_epochs", "-2"], "trainer.max_epochs must be at least 1, got -2"),
        (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches must be above 0, got 0"),
        (["--trainer.limit_train_batches", "0.0"], "trainer.limit_train_batches must be above 0, got 0"),
        (["--trainer.limit_test_batches", "0"], "trainer.limit_test_batches must be above 0 with test_after_fit"),
        (
            ["--trainer.limit_test_batches", "0.01"],
            "trainer.limit_test_batches=0.01 leaves none of the 3 batches of the test after the fit",
        ),
        (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val must be at least 0, got -1"),
        (["--trainer.devices", "9999"], "trainer.devices must be at most"),
        (["--trainer.devices", "-3"], "should be an int > 0"),
        (
            ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2"],
            "trainer.strategy ddp_fork starts processes that",
        ),
        (
            ["--trainer.strategy", "ddp_spawn"],
            "trainer.strategy ddp_spawn starts processes that cannot hand a run back",
        ),
        (["--trainer.accelerator", "tpu"], "torch_xla"),
        (["--data.num_workers", "9999"], "data.num_workers must be at most"),
        (["--model.channels", "100000000"], "GiB more were needed: lower data.batch_size"),
        (["--trainer.callbacks", "Timer"], "Timer cannot be built with these arguments"),
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


@pytest.mark.parametrize("option", ["--run_folder", "--trainer.default_root_dir"])
@pytest.mark.parametrize("place", ["file", "link", "file/run", "link/run"])
def test_a_place_that_can_be_no_folder_is_named(option, place, capsys):
    Path("file").touch()
    Path("link").symlink_to("nowhere/at/all")
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, option, place)
    assert place.split("/")[0] in message
    assert "choose another folder" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: [1, 2]\n", "model in mine.yaml must hold names and values, got [1, 2]"),
        (b"a: &a [*a]\nmodel: *a\n", "holds a part that contains itself"),
        (bytes(range(128, 256)), "cannot be read as text"),
        (b"just words", "must hold names and values, got str"),
        (b"model: {", "is not YAML"),
        (
            b"model: {init_tau: 4.0}\ndata: {}\nmodel: {loss: rate}\n",
            "mine.yaml names model twice, the second time in line 3",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_named(content, expected, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_bytes(content)
    message = refused(capsys, "fit", "--config", QUICKSTART, "--config", "mine.yaml")
    assert "mine.yaml" in message
    assert expected in message


def test_merged_mappings_and_names_of_two_types_are_not_given_twice():
    text = "base: &b {x: 1}\nouter:\n  inner: &m {<<: *b, x: 2}\ntop: {<<: *m, y: 3}\n1: a\n'1': b\n"
    assert parsed_yaml(text, "text") == yaml.safe_load(text)


def test_memory_that_runs_out_is_said_with_how_much_was_needed(monkeypatch, capsys):
    def no_room(self, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes.")

    monkeypatch.setattr("plif_lightning.training.task.SpikingClassifier.forward", no_room)
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, "--model.channels", "6")
    assert "the memory was used up when 8.0 GiB more were needed: lower data.batch_size" in message
