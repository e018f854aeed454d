"""Mistakes end a command with status 2 and name the key; errors of libraries stand as they say them."""

from dataclasses import fields
from pathlib import Path

import pytest

from plif_lightning.cli.options import Options
from plif_lightning.runtime.process import cores
from tests.cli.calls import CONFIGS, QUICKSTART, SILENT, TINY, fit, refused


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("model.init_tua", "model.init_tau"),
        ("model.optimiser", "model.optimizer"),
        ("data.tim_steps", "data.time_steps"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("checkpoint.every_n_batch", "checkpoint.every_n_batches"),
        ("tets_after_fit", "test_after_fit"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, near, capsys):
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, f"--{key}", "3")
    assert key.removeprefix("data.") in message
    assert message.endswith(f" Did you mean {near}?")
    assert "\n" not in message


def test_an_unknown_key_in_a_file_is_answered_with_the_nearest(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  poolin: avg\n")
    assert "Did you mean model.pooling?" in refused(capsys, "fit", "--config", QUICKSTART, "--config", str(path))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model.reset", "medium", '"model.reset"'),
        ("model.neuron", "gru", '"model.neuron"'),
        ("model.optimizer", "Adamm", '"model.optimizer"'),
        ("model.optimizer.lr", "abc", '"lr"'),
        ("data", "Digit", '"data"'),
        ("data.augmentation", "RandomCrp", '"augmentation"'),
        ("trainer.callbacks", "EarlyStoping", '"trainer.callbacks"'),
        ("trainer.callbacks", "EarlyStopping", "monitor"),
    ],
)
def test_invalid_value_is_a_parser_error(key, value, named, capsys):
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, f"--{key}", value)
    assert named in message
    assert value in message


@pytest.mark.parametrize(
    ("value", "way_out"),
    [("SequenceFoldr", "Did you mean SequenceFolder?"), ("NotThere", "One of your own is MODULE.NotThere.")],
)
def test_an_unknown_class_is_answered_with_the_nearest_data_set(value, way_out, capsys):
    assert refused(capsys, "fit", "--data", value) == f'error: Parser key "data": there is no class {value}. {way_out}'


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data.time_steps", "0"], "data.time_steps must be a whole number, at least 1, got 0"),
        (["--model.init_tau", "1"], "init_tau must be > 1"),
        (["--model.n_down", "5"], "MPk2s2 of conv4 leaves nothing of a map of 1x1, from an input of 8x8"),
        (["--data.batch_size", "2000", "--data.drop_last", "true"], "larger than the data (1226 samples)"),
        (["--model.input_encoder", "poisson"], "--data.normalize=false"),
        (["--trainer.precision", "16-mixed", "--trainer.accelerator", "cpu"], "pass bf16-mixed or 32-true"),
        (["--trainer.overfit_batches", "2"], "pass limit_train_batches instead"),
        (["--engine", "int8"], "engine is for predict and test: leave it out for fit"),
        (["--checkpoint.every_n_batches", "0"], "checkpoint.every_n_batches must be a whole number, at least 1"),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs must be a whole number, at least 1, got 0"),
        (["--trainer.max_epochs", "-2"], "trainer.max_epochs must be a whole number, at least 1, got -2"),
        (["--trainer.max_steps", "0"], "trainer.max_steps must be a whole number, at least 1, got 0"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches must be"),
        (["--trainer.check_val_every_n_epoch", "0"], "trainer.check_val_every_n_epoch must be"),
        (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches must be above 0"),
        (["--trainer.limit_train_batches", "0.0"], "trainer.limit_train_batches must be above 0"),
        (["--trainer.limit_test_batches", "0"], "trainer.limit_test_batches must be above 0"),
        (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val must not be negative, got -1"),
        (["--trainer.val_check_interval", "0.0"], "trainer.val_check_interval must be above 0"),
        (["--data.num_workers", str(8 * cores() + 1)], "data.num_workers starts as many processes"),
        (["--trainer.devices", str(8 * cores() + 1)], "trainer.devices starts as many processes"),
        (["--ckpt_path", "."], "checkpoint . does not exist, or is not a file such as RUN"),
        (["--ckpt_path"], "--ckpt_path must be given once, with a path, got nothing"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", ""], "name a configuration file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_silently_wrong_settings_are_refused_in_a_line(arguments, expected, capsys):
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *arguments)
    assert expected in message
    assert "\n" not in message
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.parametrize("name", [field.name for field in fields(Options) if field.name not in ("task", "engine")])
def test_an_evaluation_refuses_an_option_of_fit(name, run, capsys):
    value = {"run_folder": "there", "best_of_ties": "first", "test_after_fit": "true", "accept_edited_code": "true"}
    call = ["test", f"--ckpt_path={run}/checkpoints/best.ckpt", f"--{name}={value.get(name, 3)}"]
    assert f"{name} is for fit: leave it out for test" in refused(capsys, *call)


def test_a_negative_number_of_samples_is_refused(capsys):
    message = refused(capsys, "fit", "--config", QUICKSTART, "--record_samples", "-1")
    assert 'key "record_samples":\n  Not of type NonNegativeInt: -1' in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed_everything", "-1"], "-1 is not in bounds"),
        (["--trainer.val_check_interval", "500"], "must be less than or equal to the number of the training batches"),
        (["--trainer.barebones", "true"], "barebones"),
        (["--trainer.limit_train_batches", "0.001"], "limit_train_batches"),
    ],
)
def test_an_error_of_a_library_is_raised_as_it_is(arguments, said):
    with pytest.raises(Exception, match=said):
        fit(*TINY, *arguments)
    assert not list(Path().rglob("*.ckpt"))


def test_missing_data_set_names_files_and_folder(capsys, tmp_path):
    message = refused(
        capsys,
        *("fit", "--config", str(CONFIGS / "mnist.yaml"), *SILENT),
        *("--data.root", str(tmp_path / "no"), "--data.download", "false"),
    )
    for part in ("MNIST/raw", str(tmp_path / "no"), "--data.root", "--data.download=true"):
        assert part in message


@pytest.mark.parametrize("option", ["--run_folder", "--trainer.default_root_dir"])
@pytest.mark.parametrize("place", ["file", "link/run"])
def test_invalid_folder_is_named(option, place, capsys):
    Path("file").touch()
    Path("link").symlink_to("nowhere/at/all")
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, option, place)
    assert place.split("/")[0] in message
    assert "choose another folder" in message


@pytest.mark.parametrize(
    ("command", "content", "said"),
    [
        ("fit", "model: [1, 2]\n", "model must hold names and values, got [1, 2]"),
        ("fit", "just words", "just words"),
        ("fit", "model: {", "mine.yaml is not YAML"),
        ("prepare", "model: {", "mine.yaml is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(command, content, said, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(content)
    assert said in refused(capsys, command, "--config", QUICKSTART, "--config", "mine.yaml")


def test_out_of_memory_is_pytorchs_error(monkeypatch):
    def no_room(self, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes.")

    monkeypatch.setattr("plif_lightning.network.SpikingNetwork.forward", no_room)
    with pytest.raises(RuntimeError, match="tried to allocate 8589934592 bytes") as caught:
        fit(*TINY)
    assert not hasattr(caught.value, "__notes__")  # nothing was saved


def test_empty_prepare_configuration_is_a_single_sentence(tmp_path, capsys):
    (tmp_path / "empty.yaml").write_text("")
    assert "data" in refused(capsys, "prepare", "--config", str(tmp_path / "empty.yaml"))
