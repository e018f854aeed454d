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

from plif_lightning.callbacks import RunCheckpoints
from plif_lightning.callbacks import checkpoints as writing
from plif_lightning.cli import main
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import Difference
from plif_lightning.runs.run import find_runs, read_run
from tests.cli.calls import FEW, QUICKSTART, SILENT, TINY, fit, load, refused, resume, rows, until
from tests.conftest import REPOSITORY

# A few seconds an epoch.
SMALL = [*TINY, "--test_after_fit", "false", "--record_samples", "0", "--trainer.limit_train_batches", "32"]

LEARNING = ["--model.structure", "c6k3s1-BN-PLIF-MPk2s2-FC40-PLIF-APk4s4", "--model.dropout", "0"]
LEARNING += ["--model.optimizer.lr", "0.02"]


@contextmanager
def power_cut(saved, at=lambda trainer: True):
    """End a fit where it writes its last checkpoint: after that if it is `saved`, else before."""
    save = RunCheckpoints._save

    def save_and_break_off(self, trainer):
        if saved or not at(trainer):
            save(self, trainer)
        if at(trainer):
            raise RuntimeError("power cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunCheckpoints, "_save", save_and_break_off)
        with pytest.raises(RuntimeError, match="power cut"):
            yield


def save_anew(path, checkpoint):
    """Replace a checkpoint, not the content that it may share with best.ckpt."""
    path.unlink()
    torch.save(checkpoint, path)


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
EPOCH = 24  # batches
LONG = ["--test_after_fit", "false", "--trainer.max_epochs", "4", "--model.channels", "8"]
LONG += ["--trainer.limit_train_batches", str(EPOCH)]
LONG += [
    "--data.augmentation",
    "[{class_path: torchvision.transforms.v2.RandomCrop, init_args: {size: 8, padding: 1}}]",
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nothing happens to, with and without the recipe; made once."""

    @functools.cache
    def run(of_recipe):
        folder = tmp_path_factory.mktemp("straight")
        fit(*(RECIPE if of_recipe else []), *LONG, "--run_folder", str(folder / "run"))
        return folder / "run"

    return run


@pytest.mark.parametrize(
    "moment",
    [*(pytest.param(m, marks=pytest.mark.slow) for m in ("after an epoch", "in an epoch")), "in an epoch of a recipe"],
)
def test_killed_run_resumes_exactly(moment, straight, tmp_path):
    recipe = RECIPE if "recipe" in moment else []
    undisturbed = straight(bool(recipe))
    killed = Path("runs/killed/version_0")
    arguments = ["fit", "--config", QUICKSTART, *SILENT, *recipe, *LONG, "--run_folder", "runs/killed/version_0"]
    arguments += ["--checkpoint.every_n_batches", "10"] if "in an epoch" in moment else []
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def is_the_moment():
        step = progress(killed)
        return step >= 2 * EPOCH and (moment == "after an epoch" or step % EPOCH != 0)

    until(lambda: process.poll() is not None or is_the_moment())
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = progress(killed)
    assert 2 * EPOCH <= step < 4 * EPOCH
    resume(killed)
    assert [p.name for p in Path("runs/killed").iterdir()] == ["version_0"]

    expected, actual = (load(run / "checkpoints/last.ckpt") for run in (undisturbed, killed))
    assert actual["global_step"] == expected["global_step"] == 4 * EPOCH
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


def test_a_resumed_run_keeps_its_configuration(run):
    config = (run / "config.yaml").read_text()
    resume(run, "--trainer.max_epochs", "3")
    epochs = [row["epoch"] for row in rows(run / "metrics.csv") if row["train/loss"]]
    assert epochs == ["0", "1", "2"]
    assert (run / "config.yaml").read_text() == config.replace("max_epochs: 2", "max_epochs: 3")


def test_moved_run_resumes_with_its_best_epoch(run, tmp_path):
    best = max(float(row["val/acc"]) for row in rows(run / "metrics.csv") if row["val/acc"])
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    run.rename(moved)
    before = (moved / "checkpoints/best.ckpt").read_bytes()
    last = load(moved / "checkpoints/last.ckpt")
    last["callbacks"]["RunCheckpoints"] |= {"best_epoch": 0, "best_accuracy": 1.0}  # the third epoch is no better
    save_anew(moved / "checkpoints/last.ckpt", last)
    resume(moved, "--trainer.max_epochs", "3")
    third = [float(row["val/acc"]) for row in rows(moved / "metrics.csv") if row["val/acc"]][-1]
    assert third <= best < 1
    assert (moved / "checkpoints/best.ckpt").read_bytes() == before


@pytest.mark.parametrize("validation", ["1", "0"])
def test_run_interrupted_within_an_epoch_resumes_with_or_without_validation(validation):
    arguments = [*TINY, *FEW, "--test_after_fit", "false", "--trainer.limit_val_batches", validation]
    fit(*arguments, "--trainer.max_epochs", "2", "--run_folder", "runs/straight/version_0")
    more = ["--checkpoint.every_n_batches", "2", "--trainer.max_epochs", "2", "--run_folder", "runs/cut/version_0"]
    with power_cut(saved=True):
        fit(*arguments, *more)
    run = Path("runs/cut/version_0")
    assert progress(run) == 2
    resume(run)
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
    monkeypatch.setattr(RunCheckpoints, "_save", lambda self, trainer: saved.append(trainer.global_step))
    monkeypatch.setattr(writing, "link_or_copy", lambda path, name: None)
    arguments = ["--checkpoint.every_n_batches", "1", "--trainer.limit_train_batches", "6", "--record_samples", "0"]
    arguments += ["--trainer.val_check_interval", *interval, "--trainer.limit_val_batches", "1"]
    fit(*TINY, *arguments, "--trainer.max_epochs", str(expected[-1] // 6), "--test_after_fit", "false")
    assert saved == expected


def test_onecycle_resumes_with_another_epoch_length():
    """Found by a review: with other devices it was taken for ended, and nothing was learned."""
    cycle = ["--model.lr_scheduler", "OneCycle", "--run_folder", "run"]
    fit(*SMALL, *cycle, "--trainer.max_epochs", "2")
    resume("run", "--trainer.max_epochs", "4", "--data.batch_size", "64")
    rates = [float(row["lr"]) for row in rows("run/metrics.csv") if row["lr"]]
    peak = 1e-3
    # After the second of two epochs 0; after the third of four three eighths of the cosine are left, after the last 0.
    assert rates[1] < 0.01 * peak
    assert 0.1 * peak < rates[2] < 0.3 * peak
    assert rates[3] < 0.01 * peak


def test_run_begun_from_a_checkpoint_selects_a_new_best_epoch(run, tmp_path):
    last = load(run / "checkpoints/last.ckpt")
    last["callbacks"]["RunCheckpoints"]["best_accuracy"] = 1.0
    torch.save(last, tmp_path / "other.ckpt")
    more = ["--trainer.max_epochs", "3", "--run_folder", "new", "--test_after_fit", "false"]
    fit("--ckpt_path", str(tmp_path / "other.ckpt"), *more, config=str(run / "config.yaml"))
    assert load("new/checkpoints/best.ckpt")["epoch"] == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, "--run_folder", "file/run")
    assert "file" in message


def test_run_with_stochastic_weight_averaging_resumes_exactly():
    swa = ["--trainer.callbacks", "StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"]
    arguments = ["fit", "--config", QUICKSTART, *SILENT[:2], *TINY, *FEW, "--test_after_fit", "false", *swa]
    arguments += ["--trainer.callbacks.swa_epoch_start", "1", "--trainer.max_epochs", "4"]
    main([*arguments, "--run_folder", "straight"])
    main([*arguments, "--run_folder", "stopped", "--trainer.max_steps", "6"])
    assert yaml.safe_load(Path("stopped/config.yaml").read_text())["trainer"]["callbacks"]
    resume("stopped", "--trainer.max_steps", "-1")
    straight, stopped = (load(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("straight", "stopped"))
    assert all(torch.equal(stopped[name], value) for name, value in straight.items())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.channels", "32"], "model.channels is 6 there, 32 here"),
        (["--model.optimizer.lr", "0.1"], "model.optimizer.lr is 0.001 there, 0.1 here"),
        (["--data.validation", "test"], "data.validation is 'holdout' there"),
        (["--seed_everything", "3"], "seed_everything is 2020 there, 3 here"),
        (["--best_of_ties", "first"], "best_of_ties is"),
        (["--config", QUICKSTART], "model.channels is 6 there, 32 here"),
    ],
)
def test_a_resume_with_other_settings_is_refused(arguments, expected, run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for begin in (["--run_folder", str(run)], ["--ckpt_path", str(run / "checkpoints/last.ckpt")]):
        message = refused(capsys, "fit", *begin, *arguments, "--trainer.max_epochs", "3")
        assert expected in message
        assert "start a new run: with --config and another --run_folder" in message
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_without_its_configuration_names_the_file_and_takes_another(run, capsys):
    (run / "config.yaml").rename("kept.yaml")
    said = refused(capsys, "fit", "--run_folder", str(run), "--trainer.max_epochs", "3")
    assert said.endswith(
        f"{(run / 'config.yaml').absolute()} is missing: pass the run's configuration, such as --config NAME, too."
    )
    resume(run, "--config", "kept.yaml", "--trainer.max_epochs", "3")
    assert [row["epoch"] for row in rows(run / "metrics.csv")] == ["0", "1", "2"]


def test_settings_that_may_differ_are_taken_over(run):
    more = ["--trainer.max_epochs", "3", "--data.batch_size", "32", "--record_samples", "0", "--trainer.profiler"]
    resume(run, *more, "simple", "--trainer.log_every_n_steps", "7", "--data.num_workers", "1")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["trainer"]["max_epochs"], config["data"]["init_args"]["batch_size"]) == (3, 32)
    found = read_run(run)
    assert found.status == "finished"
    assert found.identity.changes == (Difference("data.batch_size", 16, 32, 6),)


def test_a_new_run_begins_from_a_checkpoint_with_whatever_differs(run):
    last = str(run / "checkpoints/last.ckpt")
    before = Path(last).read_bytes()
    few = ["--config", QUICKSTART, *SILENT, *TINY, *FEW, "--trainer.max_epochs", "3", "--test_after_fit", "false"]
    main(["fit", *few, "--ckpt_path", last, "--run_folder", "same"])
    main(["fit", *few, "--ckpt_path", last, "--run_folder", "other", "--model.optimizer.lr", "0.5"])
    same, other = (load(f"{name}/checkpoints/last.ckpt") for name in ("same", "other"))
    assert same["global_step"] == other["global_step"] == 9
    assert same["optimizer_states"][0]["param_groups"][0]["lr"] < 0.001  # of its schedule's third epoch
    assert other["optimizer_states"][0]["param_groups"][0]["lr"] > 0.4  # anew: the stored state holds the old value
    assert Path(last).read_bytes() == before
    assert read_run(Path("same")).settings["ckpt_path"] == last
    assert read_run(Path("same")).settings["ckpt_path.content"] == read_run(Path("other")).settings["ckpt_path.content"]
    assert [row["epoch"] for row in rows("same/metrics.csv")] == ["2"]
    main(["fit", *few, "--ckpt_path", last, "--run_folder", "same", "--trainer.max_epochs", "4"])  # resumes it
    assert [row["epoch"] for row in rows("same/metrics.csv")] == ["2", "3"]
    first, last_of_same = read_run(Path("same")), "same/checkpoints/last.ckpt"
    main(["fit", *few, "--ckpt_path", last_of_same, "--run_folder", "begun1", "--trainer.max_epochs", "5"])
    main(["fit", "--run_folder", "same", "--trainer.max_epochs", "5"])  # the same path, with other weights from now on
    main(["fit", *few, "--ckpt_path", last_of_same, "--run_folder", "begun2", "--trainer.max_epochs", "6"])
    began = [read_run(Path(name)).settings for name in ("same", "begun1", "begun2")]
    assert began[0]["ckpt_path.content"] == first.settings["ckpt_path.content"]  # stays where the run is resumed
    assert began[1]["ckpt_path"] == began[2]["ckpt_path"]
    assert began[1]["ckpt_path.content"] != began[2]["ckpt_path.content"]


@pytest.mark.parametrize(("limit", "done"), [("max_epochs", 2), ("max_steps", 6)])
def test_a_new_run_that_its_checkpoint_has_passed_is_refused_and_leaves_no_folder(run, limit, done, capsys):
    last = str(run / "checkpoints/last.ckpt")
    few = ["--config", QUICKSTART, *SILENT, *TINY, *FEW, "--ckpt_path", last, "--run_folder", "new"]
    said = refused(capsys, "fit", *few, f"--trainer.{limit}", str(done))
    assert said == (
        f"error: {last} has {done} {limit[4:]} already, which trainer.{limit} counts, too: pass --trainer.{limit} "
        f"{done + 1} or more."
    )
    assert not Path("new").exists()


def test_run_killed_before_linking_best_links_it_on_resume(monkeypatch):
    def cut(path, name):
        if load(path)["epoch"] == 1:
            raise RuntimeError("power cut")
        link(path, name)

    link = writing.link_or_copy
    with monkeypatch.context() as patch:
        patch.setattr(writing, "link_or_copy", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(*SMALL, *LEARNING, "--run_folder", "cut", "--trainer.max_epochs", "3")
    run = RunFolder(Path("cut"))
    assert [load(path)["epoch"] for path in (run.best, run.last)] == [0, 1]
    monkeypatch.setattr(RunCheckpoints, "on_train_epoch_end", lambda self, *rest: None)  # nothing more is written
    resume("cut")
    assert load(run.best)["epoch"] == 1
    assert run.best.samefile(run.last)


def test_where_there_are_no_links_the_best_checkpoint_is_a_copy(monkeypatch, tmp_path):
    def no_links(*arguments):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", no_links)
    (tmp_path / "last").write_bytes(b"content")
    writing.link_or_copy(tmp_path / "last", tmp_path / "best")
    assert (tmp_path / "best").read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]


def test_only_the_validation_at_the_end_of_an_epoch_selects(caplog):
    """Its weights are those of the checkpoint; others are logged."""
    often = ["--trainer.val_check_interval", "8", "--trainer.max_epochs", "2", "--run_folder"]
    fit(*SMALL, *LEARNING, *often, "often")
    measured = [float(row["val/acc"]) for row in rows("often/metrics.csv") if row["val/acc"]]
    assert len(measured) == 8
    run = read_run(Path("often"))
    assert [row["val/acc"] for row in run.metrics] == [measured[3], measured[7]]
    assert load(run.folder.best)["callbacks"]["RunCheckpoints"]["best_accuracy"] == pytest.approx(run.best[1])
    assert "none ends an epoch" not in caplog.text
    fit(*SMALL, "--trainer.val_check_interval", "5", "--trainer.max_epochs", "1", "--run_folder", "never")
    assert "An epoch has 32 batches and a validation comes every 5: none ends an epoch" in caplog.text
    assert not Path("never/checkpoints/best.ckpt").exists()


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
    still = ["--model.optimizer.lr=0", "--model.v_threshold=1", *more, "--run_folder=here", "--test_after_fit=false"]
    fit(*TINY, *FEW, *still, "--trainer.max_epochs", "2")
    best = [load("here/checkpoints/best.ckpt")["epoch"]]
    resume("here", "--trainer.max_epochs", "3")
    best.append(load("here/checkpoints/best.ckpt")["epoch"])
    accuracies = {row.get("val/acc") or row["test_as_val/acc"] for row in rows("here/metrics.csv")}
    assert len(accuracies) == 1  # a tie
    assert best == epochs
    assert read_run(Path("here")).best[0] == epochs[-1] + 1


def test_training_seconds_accumulate_over_resumes(run):
    before = float(rows(run / "metrics.csv")[-1]["seconds"])
    resume(run, "--trainer.max_epochs", "3")
    seconds = [float(row["seconds"]) for row in rows(run / "metrics.csv") if row["seconds"]]
    assert seconds == sorted(seconds)
    assert len(seconds) == 3
    assert seconds[2] > before


def test_accumulation_schedule_resumes_within_an_epoch():
    """Found by a review: the rest of the epoch was trained without it."""
    schedule = "[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 3}}}]"
    arguments = [
        *TINY,
        *FEW,
        "--trainer.limit_train_batches",
        "9",
        "--test_after_fit",
        "false",
        "--record_samples",
        "0",
    ]
    arguments += ["--trainer.callbacks", schedule, "--trainer.max_epochs", "1"]
    fit(*arguments, "--run_folder", "straight")
    with power_cut(saved=True):
        fit(*arguments, "--checkpoint.every_n_batches", "3", "--run_folder", "cut")
    resume("cut")
    one, other = (load(f"{name}/checkpoints/last.ckpt") for name in ("straight", "cut"))
    assert one["global_step"] == other["global_step"] == 3
    assert all(torch.equal(other["state_dict"][name], value) for name, value in one["state_dict"].items())


def test_truncated_last_checkpoint_resumes_from_best(tmp_path, caplog):
    arguments = [*SMALL, *LEARNING, "--trainer.max_epochs", "3"]
    fit(*arguments, "--run_folder", "straight")
    fit(*arguments, "--trainer.max_epochs", "2", "--run_folder", "cut")
    folder = RunFolder(Path("cut"))
    best = load(folder.best)["epoch"]
    content = folder.last.read_bytes()
    folder.last.unlink()
    folder.last.write_bytes(content[: len(content) // 2])
    fit(*arguments, "--run_folder", "cut")
    assert "The run is resumed from best.ckpt" in caplog.text
    assert f"epochs from {best + 2} on are trained again" in caplog.text
    ours, theirs = (load(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("cut", "straight"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_changed_global_batch_size_is_reported(run, caplog):
    resume(run, "--trainer.max_epochs", "3", "--data.batch_size", "8")
    said = "Batches of all processes together have 8 samples now, 16 before; the learning rate"
    assert said in caplog.text
    assert "The run had ended: tables and figures will have the longer one in its place." in caplog.text


def test_a_folder_may_have_an_environment_variable_in_its_name(monkeypatch, capsys):
    """As W&B's agents start a command without a shell."""
    monkeypatch.setenv("NAME_OF_RUN", "abc")
    main(
        [
            "fit",
            "--config",
            QUICKSTART,
            *SILENT,
            *TINY,
            *FEW,
            "--trainer.max_epochs=1",
            "--run_folder=runs/$NAME_OF_RUN",
        ]
    )
    assert [run.name for run in find_runs("runs")] == ["abc"]
    said = refused(capsys, "fit", "--config", QUICKSTART, "--run_folder", "runs/$NO_SUCH_NAME")
    assert "--run_folder runs/$NO_SUCH_NAME names an environment variable that is not set" in said
