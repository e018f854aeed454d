"""Runs that were killed, moved or stopped, and go on."""

import functools
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from plif_lightning.callbacks import BestCheckpoint, LastCheckpoint
from plif_lightning.cli import main
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.reading import read_run
from tests.cli.calls import FEW, QUICKSTART, SILENT, TINY, fit, load, refused, rows, until
from tests.conftest import REPOSITORY

# A few seconds an epoch.
SMALL = [*TINY, "--test_after_fit", "false", "--record_samples", "0", "--trainer.limit_train_batches", "32"]

LEARNING = ["--model.structure", "c6k3s1-BN-PLIF-MPk2s2-FC40-PLIF-APk4s4", "--model.dropout", "0"]
LEARNING += ["--model.optimizer.lr", "0.02"]


@contextmanager
def power_cut(saved, at=lambda trainer: True):
    """End a fit where it writes its last checkpoint: after that if it is `saved`, else before."""
    save = LastCheckpoint._save

    def save_and_break_off(self, trainer):
        if saved or not at(trainer):
            save(self, trainer)
        if at(trainer):
            raise RuntimeError("power cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", save_and_break_off)
        with pytest.raises(RuntimeError, match="power cut"):
            yield


def progress(run):
    try:
        return load(run / "checkpoints/last.ckpt")["global_step"]
    except (OSError, RuntimeError):
        return 0


# A whole recipe, at a size where every one of its phases comes about before and after the kill.
RECIPE = ["--config", "fast_fashionmnist", "--model.early_time_steps", "{2: 1, 4: 2}", "--data.batch_size", "16"]
RECIPE += [
    "--trainer.callbacks",
    "[{class_path: EMAWeightAveraging, init_args: {decay: 0.9, update_every_n_steps: 2}}]",
]
LONG = ["--test_after_fit", "false", "--trainer.max_epochs", "4", "--model.channels", "8"]
LONG += ["--data.augmentation", "[{class_path: RandomCrop, init_args: {padding: 1}}]"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nothing happens to, with and without the recipe; made once."""

    @functools.cache
    def run(of_recipe):
        folder = tmp_path_factory.mktemp("straight")
        fit(*(RECIPE if of_recipe else []), *LONG, "--run_folder", str(folder / "run"))
        return folder / "run"

    return run


@pytest.mark.parametrize("moment", ["after an epoch", "in an epoch", "in an epoch of a recipe"])
def test_a_killed_run_goes_on_exactly(moment, straight, tmp_path):
    recipe = RECIPE if "recipe" in moment else []
    undisturbed = straight(bool(recipe))
    killed = Path("runs/killed/version_0")
    arguments = ["fit", "--config", QUICKSTART, *SILENT, *recipe, *LONG, "--trainer.logger.name", "killed"]
    arguments += ["--checkpoint.every_n_batches", "10"] if "in an epoch" in moment else []
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def is_the_moment():
        step = progress(killed)
        return step >= 2 * 77 and (moment == "after an epoch" or step % 77 != 0)

    until(lambda: process.poll() is not None or is_the_moment())
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = progress(killed)
    assert 2 * 77 <= step < 4 * 77
    main(["fit", "--config", str(killed / "config.yaml"), "--ckpt_path", "last"])
    assert [p.name for p in Path("runs/killed").iterdir()] == ["version_0"]

    expected, actual = (load(run / "checkpoints/last.ckpt") for run in (undisturbed, killed))
    assert actual["global_step"] == expected["global_step"] == 308
    for name, value in expected["state_dict"].items():
        assert torch.equal(actual["state_dict"][name], value), name
    for i, state in expected["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(actual["optimizer_states"][0]["state"][i][name], value), (i, name)
    assert actual["lr_schedulers"] == expected["lr_schedulers"]
    assert ("current_model_state" in expected) == bool(recipe)
    for name, value in expected.get("current_model_state", {}).items():
        assert torch.equal(actual["current_model_state"][name], value), name
    tables = [rows(run / "metrics.csv") for run in (undisturbed, killed)]
    for table in tables:
        for row in table:
            row.pop("train/samples_per_second")
            row.pop("seconds")
    assert tables[0] == tables[1]
    best = [load(run / "checkpoints/best.ckpt")["global_step"] for run in (undisturbed, killed)]
    assert best[0] == best[1]


def test_a_resumed_run_keeps_a_configuration_that_starts_anew(run):
    config = (run / "config.yaml").read_text()
    fit("--ckpt_path", "last", "--trainer.max_epochs", "3", config=str(run / "config.yaml"))
    epochs = [row["epoch"] for row in rows(run / "metrics.csv") if row["train/loss"]]
    assert epochs == ["0", "1", "2"]
    assert (run / "config.yaml").read_text() == config.replace("max_epochs: 2", "max_epochs: 3")


def test_a_moved_run_that_goes_on_remembers_its_best_epoch(run, tmp_path):
    best = max(float(row["val/acc"]) for row in rows(run / "metrics.csv") if row["val/acc"])
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    run.rename(moved)
    before = (moved / "checkpoints/best.ckpt").read_bytes()
    # a learning rate of nothing: the third epoch is not better than the best of the first two
    last = load(moved / "checkpoints/last.ckpt")
    for group in last["optimizer_states"][0]["param_groups"]:
        group["lr"] = 0.0
    torch.save(last, moved / "checkpoints/last.ckpt")
    ties = ["--best_of_ties", "first"]
    fit("--ckpt_path", "last", "--trainer.max_epochs", "3", *ties, config=str(moved / "config.yaml"))
    third = [float(row["val/acc"]) for row in rows(moved / "metrics.csv") if row["val/acc"]][-1]
    assert third <= best
    assert (moved / "checkpoints/best.ckpt").read_bytes() == before


def test_a_run_of_one_epoch_goes_on_and_keeps_its_best(capsys):
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--test_after_fit", "false")
    run = Path("runs/quickstart/version_0")
    first = load(run / "checkpoints/last.ckpt")["callbacks"]["BestCheckpoint"]["best_model_score"].item()
    assert first == pytest.approx(float(next(row["val/acc"] for row in rows(run / "metrics.csv") if row["val/acc"])))
    fit("--ckpt_path", "last", "--trainer.max_epochs", "2", config=str(run / "config.yaml"))
    assert [row["epoch"] for row in rows(run / "metrics.csv") if row["val/acc"]] == ["0", "1"]


@pytest.mark.parametrize("validation", ["1", "0"])
def test_a_run_broken_off_within_an_epoch_goes_on_with_or_without_validation(validation):
    arguments = [*TINY, *FEW, "--test_after_fit", "false", "--trainer.limit_val_batches", validation]
    fit(*arguments, "--trainer.max_epochs", "2", "--trainer.logger.name", "straight")
    more = ["--checkpoint.every_n_batches", "2", "--trainer.max_epochs", "2", "--trainer.logger.name", "cut"]
    with power_cut(saved=True):
        fit(*arguments, *more)
    run = Path("runs/cut/version_0")
    assert progress(run) == 2
    fit("--ckpt_path", "last", config=str(run / "config.yaml"))
    one, other = (load(f"runs/{name}/version_0/checkpoints/last.ckpt")["state_dict"] for name in ("straight", "cut"))
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_mid_epoch_checkpoints_wait_until_gradients_are_complete():
    arguments = ["--trainer.accumulate_grad_batches", "2", "--checkpoint.every_n_batches", "1"]
    fit(*TINY, *arguments, "--trainer.max_steps", "2", "--test_after_fit", "false")
    batches = load("runs/quickstart/version_0/checkpoints/last.ckpt")["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert batches["current"]["ready"] == 4


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (["2"], [1, 3, 5, 6]),
        (["4", "--trainer.check_val_every_n_epoch", "null"], [1, 2, 3, 5, 6, 7, 9, 10, 11, 12]),
        (["00:00:00:00"], [6]),
    ],
)
def test_mid_epoch_checkpoints_wait_for_a_validation_that_comes_next(interval, expected, monkeypatch):
    saved = []
    monkeypatch.setattr(LastCheckpoint, "_save", lambda self, trainer: saved.append(trainer.global_step))
    arguments = ["--checkpoint.every_n_batches", "1", "--trainer.limit_train_batches", "6", "--record_samples", "0"]
    arguments += ["--trainer.val_check_interval", *interval, "--trainer.limit_val_batches", "1"]
    fit(*TINY, *arguments, "--trainer.max_epochs", str(expected[-1] // 6), "--test_after_fit", "false")
    assert saved == expected


def test_a_run_killed_between_a_best_epoch_and_its_checkpoint_keeps_the_best_before():
    """Found by a review: it ended with the weights of an epoch that its metrics do not have."""
    with power_cut(saved=False, at=lambda trainer: trainer.current_epoch == 1):
        fit(*SMALL, *LEARNING, "--run_folder", "cut", "--trainer.max_epochs", "3", "--best_of_ties", "first")
    run = RunFolder(Path("cut"))
    assert [load(path)["epoch"] for path in (run.best_before, run.best, run.last)] == [0, 1, 0]
    first = load(run.last)["callbacks"]["BestCheckpoint"]["best_model_score"]
    # With such a learning rate the epochs that are repeated are worse than the first.
    last = load(run.last)
    for group in last["optimizer_states"][0]["param_groups"]:
        group["lr"] = 100.0
    torch.save(last, run.last)
    fit("--ckpt_path", "last", config=str(run.config))
    assert load(run.best)["epoch"] == read_run(run.path).best[0] - 1 == 0
    assert load(run.last)["callbacks"]["BestCheckpoint"]["best_model_score"] == first
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_best_checkpoint_before_that_was_left_is_not_taken_for_a_later_one():
    """Found by a review: a second kill put it in the place of the best one."""
    fit(*SMALL, *LEARNING, "--run_folder", "cut", "--trainer.max_epochs", "1", "--best_of_ties", "first")
    run = RunFolder(Path("cut"))
    run.best_before.write_bytes(b"of an earlier epoch, left by a kill right after last.ckpt was written")
    first = run.best.read_bytes()
    with power_cut(saved=False):
        fit("--ckpt_path", "last", "--trainer.max_epochs", "2", config=str(run.config))
    assert load(run.best)["epoch"] == 1
    assert run.best_before.read_bytes() == first


def test_of_several_validations_between_two_steps_the_best_is_kept(monkeypatch):
    """Found by a review: metrics.csv had the last one, best.ckpt the first."""
    measured = []
    better = BestCheckpoint.check_monitor_top_k
    monkeypatch.setattr(
        BestCheckpoint, "check_monitor_top_k", lambda *given: (measured.append(float(given[-1])), better(*given))[1]
    )
    often = ["--trainer.accumulate_grad_batches", "16", "--trainer.val_check_interval", "2"]
    fit(*SMALL, *LEARNING, *often, "--run_folder", "often", "--trainer.max_epochs", "2")
    assert len(measured) == 32
    run = read_run(Path("often"))
    assert run.best[1] == pytest.approx(max(measured))
    main(["validate", "--ckpt_path", str(run.folder.best), *SILENT])
    assert float(rows("often/validate/metrics.csv")[0]["val/acc"]) == pytest.approx(max(measured))


def test_a_cycle_goes_on_where_an_epoch_has_other_steps():
    """Found by a review: with other devices, or accumulation, it was taken for ended, and nothing was learned."""
    cycle = ["--model.lr_scheduler", "OneCycle", "--run_folder", "run"]
    fit(*SMALL, *cycle, "--trainer.max_epochs", "2")
    more = ["--trainer.max_epochs", "4", "--trainer.accumulate_grad_batches", "2"]
    fit("--ckpt_path", "last", *more, config="run/config.yaml")
    rates = [float(row["lr"]) for row in rows("run/metrics.csv") if row["lr"]]
    peak = 1e-3
    # After the second of two epochs 0; after the third of four three eighths of the cosine are left, after the last 0.
    assert rates[1] < 0.01 * peak
    assert 0.1 * peak < rates[2] < 0.3 * peak
    assert rates[3] < 0.01 * peak


def test_a_schedule_of_accumulation_goes_on_within_an_epoch():
    """Found by a review: the rest of the epoch was trained without it."""
    schedule = "[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 3}}}]"
    arguments = [*SMALL, "--trainer.callbacks", schedule, "--trainer.max_epochs", "1"]
    fit(*arguments, "--run_folder", "straight")
    with power_cut(saved=True):
        fit(*arguments, "--checkpoint.every_n_batches", "3", "--run_folder", "cut")
    main(["fit", "--config", "cut/config.yaml", "--ckpt_path", "last"])
    one, other = (load(f"{name}/checkpoints/last.ckpt") for name in ("straight", "cut"))
    assert one["global_step"] == other["global_step"]
    assert all(torch.equal(other["state_dict"][name], value) for name, value in one["state_dict"].items())


def test_a_run_begun_from_another_ones_checkpoint_finds_a_best_of_its_own(run, tmp_path):
    last = load(run / "checkpoints/last.ckpt")
    last["callbacks"]["BestCheckpoint"]["best_model_score"] = torch.tensor(1.0)
    torch.save(last, tmp_path / "other.ckpt")
    more = ["--trainer.max_epochs", "3", "--run_folder", "new", "--test_after_fit", "false"]
    fit("--ckpt_path", str(tmp_path / "other.ckpt"), *more, config=str(run / "config.yaml"))
    assert load("new/checkpoints/best.ckpt")["epoch"] == 2


def test_the_summary_names_the_epoch_and_accuracy_of_the_best_checkpoint(capsys):
    arguments = ["--trainer.val_check_interval", "0.25", "--trainer.max_epochs", "2", "--test_after_fit", "false"]
    fit("--model.optimizer.lr", "0.01", "--model.channels", "8", *arguments)
    run = Path("runs/quickstart/version_0")
    best = max(float(row["val/acc"]) for row in rows(run / "metrics.csv") if row["val/acc"])
    assert (
        f"{100 * best:.2f} % (epoch {load(run / 'checkpoints/best.ckpt')['epoch'] + 1} of 2)" in capsys.readouterr().out
    )


def test_a_checkpoint_named_in_a_file_is_refused(run, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"ckpt_path: {run / 'checkpoints/last.ckpt'}\n")
    assert "pass it as --ckpt_path" in refused(capsys, "fit", "--config", QUICKSTART, "--config", str(path))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, "--trainer.logger.save_dir", "file/runs")
    assert "file/runs" in message


def test_a_run_with_averaged_weights_of_the_last_epochs_goes_on_exactly():
    swa = ["--trainer.callbacks", "StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"]
    arguments = ["fit", "--config", QUICKSTART, *SILENT[:2], *TINY, *FEW, "--test_after_fit", "false", *swa]
    arguments += ["--trainer.callbacks.swa_epoch_start", "1", "--trainer.max_epochs", "4"]
    main([*arguments, "--run_folder", "straight"])
    main([*arguments, "--run_folder", "stopped", "--trainer.max_steps", "6"])
    assert yaml.safe_load(Path("stopped/config.yaml").read_text())["trainer"]["callbacks"]
    main(["fit", "--config", "stopped/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "-1"])
    straight, stopped = (load(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("straight", "stopped"))
    assert all(torch.equal(stopped[name], value) for name, value in straight.items())


def test_a_damaged_table_of_metrics_is_told_before_anything_is_trained(run, capsys):
    (run / "metrics.csv").write_bytes(b"epoch,step\n\xff\xfe,1\n")
    arguments = ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    assert "metrics.csv cannot be read as a table of metrics" in refused(capsys, *arguments)
    (run / "metrics.csv").unlink()
    main(arguments)
    assert rows(run / "metrics.csv")


def test_a_resume_that_finds_nothing_is_refused(capsys):
    message = refused(capsys, "fit", "--config", QUICKSTART, "--ckpt_path", "last")
    assert "--config RUN/config.yaml" in message
    assert "there is no" in message
    assert not Path("runs").exists()


def test_a_resume_with_other_settings_is_refused(run, capsys):
    last = str(run / "checkpoints/last.ckpt")
    message = refused(capsys, "fit", "--config", QUICKSTART, "--ckpt_path", last)
    assert "model.channels is 6 there, 32 here" in message
    message = refused(
        capsys, *("fit", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--data.validation", "test")
    )
    assert "data.validation is 'holdout' there, 'test' here" in message


def test_the_config_of_a_run_starts_a_new_run(run):
    fit(*FEW, config=str(run / "config.yaml"))
    assert sorted(p.name for p in Path("runs/quickstart").iterdir()) == ["version_0", "version_1"]


def test_an_existing_run_is_not_written_over(run, capsys):
    before = (run / "metrics.csv").read_text()
    message = refused(capsys, "fit", "--config", QUICKSTART, *TINY, "--trainer.logger.version", "0")
    assert "version_0 already holds a run" in message
    assert "--ckpt_path last" in message
    assert (run / "metrics.csv").read_text() == before


@pytest.mark.parametrize(
    ("more", "epochs"),
    [
        (["--best_of_ties", "first"], [0, 0]),
        (["--best_of_ties", "last"], [1, 2]),
        ([], [1, 2]),  # a part held out, as in the authors' code
        (["--data.validation", "test"], [0, 0]),
    ],
    ids=str,
)
def test_of_equal_accuracies_the_first_or_the_last_is_best_after_a_resume_too(more, epochs):
    still = ["--model.optimizer.lr", "0", *more, "--run_folder", "here", "--test_after_fit", "false"]
    fit(*TINY, *FEW, *still, "--trainer.max_epochs", "2")
    best = [load("here/checkpoints/best.ckpt")["epoch"]]
    main(["fit", "--config", "here/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "3", *SILENT])
    best.append(load("here/checkpoints/best.ckpt")["epoch"])
    accuracies = {row.get("val/acc") or row["test_as_val/acc"] for row in rows("here/metrics.csv")}
    assert len(accuracies) == 1  # a tie
    assert best == epochs
    assert read_run(Path("here")).best[0] == epochs[-1] + 1


AVERAGED = ["--trainer.callbacks", "[{class_path: EMAWeightAveraging, init_args: {decay: 0.97}}]"]


def test_the_averaged_weights_are_those_that_are_tested_and_kept(tmp_path):
    from plif_lightning.network import load_network
    from plif_lightning.runs.reading import read_run

    fit(*FEW, *AVERAGED, "--trainer.max_epochs", "2", "--model.channels", "6", "--run_folder", "run")
    tested = read_run(Path("run")).test
    best = load("run/checkpoints/best.ckpt")
    main(["test", "--ckpt_path", "run/checkpoints/best.ckpt", *SILENT, "--trainer.limit_test_batches", "2"])
    assert float(rows("run/test_other/metrics.csv")[0]["test/acc"]) == tested
    # What is logged of tau is that of the network whose accuracy is logged.
    logged = next(row for row in rows("run/metrics.csv") if row["tau/fc1"] and int(row["epoch"]) == best["epoch"])
    a = best["state_dict"]["network.classifier.fc1.neuron.a"]
    assert float(logged["tau/fc1"]) == pytest.approx(1 + (-a).exp().item(), rel=1e-6)
    network = load_network("run/checkpoints/best.ckpt").state_dict()
    assert all(torch.equal(value, best["state_dict"][f"network.{name}"]) for name, value in network.items())
    assert any(not torch.equal(value, best["current_model_state"][name]) for name, value in best["state_dict"].items())


def test_a_run_that_averaged_goes_on_without_from_the_weights_that_were_trained(tmp_path):
    few = [*FEW, "--trainer.limit_train_batches", "8", "--model.channels", "6", "--test_after_fit", "false"]
    fit(*few, *AVERAGED, "--trainer.max_epochs", "1", "--run_folder", "run")
    before = load("run/checkpoints/last.ckpt")
    two_steps = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2", "--trainer.callbacks", "[]"]
    main(["fit", "--config", "run/config.yaml", "--ckpt_path", "last", *two_steps])
    after = load("run/checkpoints/last.ckpt")
    assert after["global_step"] == 10
    assert "current_model_state" not in after
    name = "network.classifier.fc1.fc.weight"
    # Adam moves no weight by much more than its learning rate, 0.001, in a step.
    assert (after["state_dict"][name] - before["current_model_state"][name]).abs().max() < 0.0025
    assert (after["state_dict"][name] - before["state_dict"][name]).abs().max() > 0.004


def test_a_run_goes_on_with_an_average_that_it_had_not(tmp_path):
    fit(*FEW, "--trainer.max_epochs", "1", "--model.channels", "6", "--run_folder", "run")
    with pytest.warns(UserWarning, match="not created with WeightAveraging"):
        main(["fit", "--config", "run/config.yaml", "--ckpt_path", "last", *AVERAGED, "--trainer.max_epochs", "2"])
    assert "current_model_state" in load("run/checkpoints/last.ckpt")


def test_a_checkpoint_from_before_an_option_was_there_goes_on(tmp_path, capsys):
    fit(*FEW, "--trainer.max_epochs", "1", "--model.channels", "6", "--run_folder", "run")
    for path in ("run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt"):
        checkpoint = load(path)
        config = yaml.safe_load(checkpoint["cli_config"])
        for name in ("label_smoothing", "early_time_steps", "learn_threshold"):
            del config["model"][name]
        torch.save({**checkpoint, "cli_config": yaml.safe_dump(config)}, path)
    main(["fit", "--config", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    main(["test", "--ckpt_path", "run/checkpoints/best.ckpt", *SILENT, "--trainer.limit_test_batches", "1"])
    error = refused(capsys, "test", "--ckpt_path", "run/checkpoints/best.ckpt", "--model.label_smoothing", "0.1")
    assert "model.label_smoothing is 0.0 there, 0.1 here" in error


def test_the_seconds_of_a_run_go_on_where_they_were(run):
    before = float(rows(run / "metrics.csv")[-1]["seconds"])
    fit("--ckpt_path", "last", "--trainer.max_epochs", "3", config=str(run / "config.yaml"))
    seconds = [float(row["seconds"]) for row in rows(run / "metrics.csv") if row["seconds"]]
    assert seconds == sorted(seconds)
    assert len(seconds) == 3
    assert seconds[2] > before
