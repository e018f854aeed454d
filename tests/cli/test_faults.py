"""What happens when a run is told to end, has no room, is in company, or finds damaged files."""

import contextlib
import errno
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy

from plif_lightning.callbacks import LayerMonitor
from plif_lightning.callbacks.checkpoints import CheckpointFiles
from plif_lightning.callbacks.logger import new_folder
from plif_lightning.callbacks.stopping import StopOnSignal
from plif_lightning.cli import main
from plif_lightning.cli.lightning import PlifCLI
from plif_lightning.errors import UserError
from plif_lightning.runs.command import commands
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.lock import lock_run
from plif_lightning.runs.record import update
from plif_lightning.runs.run import read_run
from plif_lightning.training.task import SpikingClassifier
from tests.cli.calls import FEW, QUICKSTART, SILENT, TINY, fit, load, refused, rows, until
from tests.conftest import PATIENCE, REPOSITORY
from tests.processes import on_two_processes
from tests.writers import write_image_folder

EIGHT = [*TINY, *FEW, "--trainer.limit_train_batches", "8", "--trainer.max_epochs", "3", "--test_after_fit", "false"]


def told_at(monkeypatch, step, number):
    """A signal comes within a batch, after so many steps."""
    start, told = LayerMonitor.on_train_batch_start, []

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == step and not told:
            told.append(step)
            signal.raise_signal(number)
        start(self, trainer, *rest)

    monkeypatch.setattr(LayerMonitor, "on_train_batch_start", on_train_batch_start)


def ended(*arguments):
    with pytest.raises(SystemExit) as stop:
        fit(*arguments)
    return stop.value.code


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Weights of runs that nobody disturbs, by their arguments."""
    known = {}

    def weights(*arguments):
        if arguments not in known:
            folder = tmp_path_factory.mktemp("straight")
            fit(*arguments, "--run_folder", str(folder / "run"))
            known[arguments] = load(folder / "run/checkpoints/last.ckpt")["state_dict"]
        return known[arguments]

    return weights


def exit_status(*arguments):
    try:
        main(list(arguments))
    except SystemExit as stop:
        return stop.code
    return 0


def same(one, other):
    return all(torch.equal(one[name], value) for name, value in other.items())


@pytest.mark.parametrize(
    ("number", "status", "told", "kept", "more"),
    [
        (signal.SIGTERM, 143, 10, 11, []),
        (signal.SIGINT, 130, 10, 11, []),
        (signal.SIGTERM, 143, 15, 16, []),  # in the last batch of an epoch
        (signal.SIGTERM, 143, 23, 24, []),  # in the last batch of all
        (signal.SIGTERM, 143, 5, 6, ["--trainer.accumulate_grad_batches", "2"]),
    ],
)
def test_a_signal_saves_and_prints_the_command_that_resumes(
    number, status, told, kept, more, straight, monkeypatch, capsys
):
    expected = straight(*EIGHT, *more)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        told_at(patch, told, number)
        assert ended(*EIGHT, *more, "--run_folder", "run") == status
    assert signal.getsignal(number) == before
    last = load("run/checkpoints/last.ckpt")
    assert last["global_step"] == kept
    assert read_run(Path("run")).status != "finished"
    said = capsys.readouterr().err
    assert f"stopped by {number.name} after step {kept}. Resume the run with: " in said
    command = said.split("Resume the run with: ")[1].split("main.py ")[1].split()
    assert command == ["fit", "--run_folder", "run"]
    main([*command, *SILENT[:2]])
    assert same(load("run/checkpoints/last.ckpt")["state_dict"], expected)
    assert read_run(Path("run")).status == "finished"


def test_the_commands_of_a_run_that_was_stopped_and_changed_repeat_it_exactly(monkeypatch):
    """Within an epoch and behind one, with a schedule that depends on the length."""
    with monkeypatch.context() as patch:
        told_at(patch, 10, signal.SIGTERM)
        assert ended(*EIGHT, "--model.lr_scheduler", "OneCycle", "--run_folder", "run") == 143
    with monkeypatch.context() as patch:
        told_at(patch, 12, signal.SIGINT)
        assert exit_status("fit", "--run_folder", "run", "--data.batch_size", "32", *SILENT[:2]) == 130
    main(["fit", "--run_folder", "run", *SILENT[:2]])
    main(["fit", "--run_folder", "run", "--trainer.max_epochs", "4", *SILENT[:2]])
    run = read_run(Path("run"))
    calls = commands(run)
    assert [call[-1].partition("=")[0] for call in calls] == ["--stop_after_step", "--stop_after_step", "--run_folder"]
    for call in calls:
        assert exit_status(*call, *SILENT[:2]) == 0
    again = read_run(Path("runs/run_again"))
    assert again.status == "finished"
    assert again.key == run.key
    one, other = (load(folder / "checkpoints/last.ckpt") for folder in (run.folder.path, again.folder.path))
    assert same(one["state_dict"], other["state_dict"])
    assert one["global_step"] == other["global_step"]


@pytest.fixture
def done(monkeypatch):
    """Handlers that are set and signals that are raised, neither of them for real."""
    calls = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: calls.append((number, handler)))
    monkeypatch.setattr(signal, "raise_signal", calls.append)
    return calls


def test_a_second_signal_is_obeyed_at_once(done):
    callback = StopOnSignal()
    callback._receive(signal.SIGINT, None)
    callback._receive(signal.SIGTERM, None)  # a sweep's, which was told by the same key
    assert not done
    callback._at -= 2
    callback._receive(signal.SIGINT, None)
    assert done == [(signal.SIGINT, signal.SIG_DFL), signal.SIGINT]


def test_sigterm_before_training_ends_it_even_if_a_callback_swallows_the_interrupt(monkeypatch, capsys):
    start = LayerMonitor.on_fit_start

    def on_fit_start(self, *rest):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        start(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(LayerMonitor, "on_fit_start", on_fit_start)
        assert ended(*EIGHT, "--run_folder", "run") == 143
    assert "stopped by SIGTERM after step 1. Resume the run with: " in capsys.readouterr().err


def test_sigterm_after_the_schedulers_signal_does_not_end_the_run_before_it_has_saved(done):
    callback = StopOnSignal()
    callback._receive(signal.SIGUSR1, None)
    callback._at -= 60
    callback._receive(signal.SIGTERM, None)
    assert not done
    assert callback._received == signal.SIGUSR1  # the job is still requeued


@pytest.mark.slow
def test_loader_workers_survive_until_the_run_has_saved(straight, monkeypatch):
    """A terminal tells the whole group of processes, its loaders too."""
    workers = ["--data.num_workers", "1"]
    expected = straight(*EIGHT)
    start = LayerMonitor.on_train_batch_start

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == 10:
            for child in multiprocessing.active_children():
                for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
                    os.kill(child.pid, number)
            signal.raise_signal(signal.SIGINT)
        start(self, trainer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(LayerMonitor, "on_train_batch_start", on_train_batch_start)
        assert ended(*EIGHT, *workers, "--run_folder", "run") == 130
    assert load("run/checkpoints/last.ckpt")["global_step"] == 11
    fit(*EIGHT, *workers, "--run_folder", "run")
    assert same(load("run/checkpoints/last.ckpt")["state_dict"], expected)


def told_one_of_two(rank):
    strategy = DDPStrategy(accelerator=CPUAccelerator(), parallel_devices=[torch.device("cpu")] * 2)
    callback = StopOnSignal()
    if rank == 1:
        callback._receive(signal.SIGTERM, None)
    return int(callback._signal_of_any_process(SimpleNamespace(world_size=2, strategy=strategy)))


def test_signal_to_any_process_reaches_all_at_the_end_of_training(tmp_path):
    assert on_two_processes(told_one_of_two, tmp_path) == [signal.SIGTERM] * 2


def test_interrupted_evaluation_fails(run, monkeypatch):
    def told(number):
        def on_test_batch_start(self, *rest):
            signal.raise_signal(number)

        monkeypatch.setattr(LayerMonitor, "on_test_batch_start", on_test_batch_start)
        with pytest.raises(SystemExit) as stop:
            main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT])
        return stop.value.code

    assert told(signal.SIGTERM) == 143
    assert told(signal.SIGINT) == 130
    assert read_run(run).accuracy is None


def test_interrupted_prediction_leaves_no_file(run, monkeypatch):
    step = SpikingClassifier.predict_step

    def predict_step(self, *rest):
        signal.raise_signal(signal.SIGTERM)
        return step(self, *rest)

    monkeypatch.setattr(SpikingClassifier, "predict_step", predict_step)
    assert exit_status("predict", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT) == 143
    assert not list(run.rglob("predictions.csv"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_during_the_final_test_prints_the_resume_command(number, status, monkeypatch, capsys):
    arguments = ["--config", QUICKSTART, *SILENT, *EIGHT, "--test_after_fit", "true", "--run_folder", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(LayerMonitor, "on_test_batch_start", lambda *rest: signal.raise_signal(number))
        assert exit_status("fit", *arguments) == status
    assert f"stopped by {number.name} after step 24. Resume the run with: " in capsys.readouterr().err
    assert read_run(Path("run")).status != "finished"
    assert exit_status("fit", *arguments) == 0
    assert read_run(Path("run")).status == "finished"


@pytest.mark.parametrize("arguments", [["report", "--out", "out/report.html"], ["tables", "--out", "out"]])
def test_sigterm_while_results_are_written_leaves_nothing_half(run, arguments, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert exit_status(*arguments, "--runs", str(run.parent.parent)) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(Path("out").iterdir())


def test_sigterm_while_data_are_prepared_leaves_nothing_half(monkeypatch, tmp_path):
    write_image_folder(tmp_path / "pets")
    prepare = ["prepare", "--data", "ImageFolder", "--data.root", "pets", "--data.store", "decoded"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: signal.raise_signal(signal.SIGTERM))
        assert exit_status(*prepare) == 143
    assert not [path for path in Path("decoded").rglob("*") if path.suffix in (".npy", ".json")]
    assert exit_status(*prepare) == 0


def test_sigterm_before_there_is_a_trainer_leaves_no_folder(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(PlifCLI, "instantiate_trainer", lambda self: signal.raise_signal(signal.SIGTERM))
    assert exit_status("fit", "--config", QUICKSTART, *SILENT) == 143
    assert "stopped by SIGTERM before training began." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert not Path("runs").exists()


def test_a_finished_run_that_cannot_be_taken_up_stays_finished(monkeypatch, capsys):
    few = ["--config", QUICKSTART, *SILENT, *TINY, *FEW, "--run_folder", "run"]
    main(["fit", *few, "--trainer.max_epochs", "1"])

    def refuses(self, state):
        raise UserError("not this optimizer's")

    kept = ("config.yaml", "run.json")
    before = {name: Path("run", name).read_bytes() for name in kept}
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "load_state_dict", refuses)
        assert refused(capsys, "fit", *few, "--trainer.max_epochs", "2") == "error: not this optimizer's"
    assert {name: Path("run", name).read_bytes() for name in kept} == before
    assert read_run(Path("run")).status == "finished"
    update(RunFolder(Path("run")), test=0.5)
    told_at(monkeypatch, 4, signal.SIGTERM)
    assert exit_status("fit", *few, "--trainer.max_epochs", "2") == 143
    assert read_run(Path("run")).status != "finished"
    assert read_run(Path("run")).test is None  # it was of an earlier best checkpoint
    assert read_run(Path("run")).config["trainer"]["max_epochs"] == 2


@pytest.mark.slow
def test_signal_to_any_process_ends_all(tmp_path):
    arguments = ["fit", "--config", QUICKSTART, *TINY, "--trainer.max_epochs", "1000", "--run_folder", "run"]
    processes = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.enable_progress_bar", "false"]
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments, *processes],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: process.poll() is not None or Path("run/checkpoints/last.ckpt").is_file())
    process.terminate()
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert said.count("stopped by SIGTERM") == 1
    assert load("run/checkpoints/last.ckpt")["global_step"] > 0
    with lock_run(RunFolder(Path("run"))):  # nobody holds it any more
        pass


# --- one command for a scheduler


def test_a_run_folder_is_started_resumed_and_left_alone_once_it_is_finished(straight, monkeypatch, capsys):
    expected = straight(*EIGHT)
    auto = ["--run_folder", "run"]
    with monkeypatch.context() as patch:
        told_at(patch, 12, signal.SIGTERM)
        assert ended(*EIGHT, *auto) == 143
    fit(*EIGHT, *auto)
    assert same(load("run/checkpoints/last.ckpt")["state_dict"], expected)
    assert [row["epoch"] for row in rows("run/metrics.csv") if row["train/loss"]] == ["0", "1", "2"]
    command_of = read_run(Path("run")).arguments
    assert command_of == ["fit", "--config", QUICKSTART, *SILENT, *EIGHT, *auto]
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    assert ended(*EIGHT, *auto) == 0
    assert "is finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()} == before
    line = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *EIGHT, *auto, "--data.batch_size", "8")
    assert re.fullmatch(r"error: the run is finished: data.batch_size is \d+ there, 8 here. Pass another.*", line)
    line = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *EIGHT, *auto, "--trainer.max_epochs", "2")
    assert "the run has 3 epochs already, and trainer.max_epochs is 2" in line
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()} == before
    fit(*EIGHT, "--trainer.max_epochs", "4", *auto)
    assert load("run/checkpoints/last.ckpt")["global_step"] == 32


@pytest.mark.parametrize("limit", [("max_epochs", 1, "2 epochs"), ("max_steps", 3, "6 steps")])
@pytest.mark.parametrize("named", [True, False])
def test_a_run_that_is_longer_already_is_not_shortened(limit, named, capsys):
    few = ["--config", QUICKSTART, *SILENT, *TINY, *FEW, "--trainer.max_epochs", "2", "--run_folder", "run"]
    main(["fit", *few])
    update(RunFolder(Path("run")), ended=None)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    name, value, done = limit
    going_on = few if named else ["--ckpt_path", "run/checkpoints/last.ckpt"]
    message = refused(capsys, "fit", *going_on, f"--trainer.{name}={value}")
    assert f"the run has {done} already, and trainer.{name} is {value}" in message
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_a_slurm_job_does_not_take_another_runs_weights(monkeypatch):
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")
    Path("hpc_ckpt_7.ckpt").write_text("another run's")
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--test_after_fit", "false")
    assert load("runs/quickstart/version_0/checkpoints/last.ckpt")["global_step"] == 3


def test_scheduler_signal_saves_and_reports_missing_run_folder(monkeypatch, capsys):
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")
    told_at(monkeypatch, 0, signal.SIGUSR1)
    assert ended(*EIGHT) == 143
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert load("runs/quickstart/version_0/checkpoints/last.ckpt")["global_step"] == 1
    said = capsys.readouterr().err
    assert "stopped by SIGUSR1 after step 1" in said
    assert "The job is not requeued: pass --run_folder DIR for that." in said


# --- two at once


def test_run_in_training_cannot_be_resumed_concurrently(run, capsys):
    before = (run / "metrics.csv").read_text()
    with lock_run(RunFolder(run)):
        more = ["--trainer.max_epochs", "3"]
        message = refused(capsys, "fit", "--ckpt_path", str(run / "checkpoints/last.ckpt"), *SILENT[:2], *more)
        assert "is being trained by process" in message
        auto = ["--run_folder", str(run), "--test_after_fit", "false", *FEW, *more]
        assert "is being trained" in refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *TINY, *auto)
    assert (run / "metrics.csv").read_text() == before


def test_concurrent_runs_get_separate_folders():
    assert [new_folder(Path("runs/name")).name for _ in range(3)] == ["version_0", "version_1", "version_2"]


def test_a_run_that_never_begins_leaves_nothing(capsys):
    refused(capsys, "fit", "--config", QUICKSTART, *SILENT, "--model.n_down", "9")
    refused(capsys, "fit", "--config", QUICKSTART, *SILENT, "--model.n_down", "9", "--run_folder", "here/run")
    assert not list(Path("runs").rglob("version_*"))
    assert not Path("here/run").exists()


# --- no room


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_failed_checkpoint_write_keeps_the_previous_one(tmp_path, monkeypatch):
    path, files = tmp_path / "run/checkpoints/last.ckpt", CheckpointFiles()
    files.save_checkpoint({"state_dict": {"a": torch.ones(3)}}, path)
    (path.parent / "last.ckpt.999.tmp").write_text("a killed process was writing this")
    before = path.read_bytes()
    for patched in ("write", "fsync"):
        with monkeypatch.context() as patch:
            if patched == "write":  # PyTorch's writer knows nothing of why its file takes no more
                patch.setattr("plif_lightning.runtime.files._Watched.write", _write_little)
            else:
                patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left") as error:
                files.save_checkpoint({"state_dict": {"a": torch.zeros(300)}}, path)
        assert error.value.filename == str(path)
        assert path.read_bytes() == before
        assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    files.save_checkpoint({"state_dict": {"a": torch.zeros(3)}}, path)
    assert files.load_checkpoint(path)["state_dict"]["a"].sum() == 0


def _write_little(self, content):
    if self._file.tell() > 100:
        self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise self.error
    return self._file.write(content)


def test_full_disk_ends_a_fit_and_names_the_file(monkeypatch, capsys):
    def too_late(checkpoint, file):
        full()

    monkeypatch.setattr(torch, "save", too_late)
    message = refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *TINY, *FEW, "--run_folder", "run")
    assert "run/checkpoints/last.ckpt: The disk is full: free some space." in message
    assert not list(Path("run/checkpoints").iterdir())


# --- damaged files


def flipped(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(run, capsys):
    path = run / "checkpoints/best.ckpt"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    whole = path.read_bytes()
    for at in (largest.header_offset + 200 + largest.file_size // 2, len(whole) - 30):
        path.write_bytes(whole)
        flipped(path, at)
        message = refused(capsys, "test", "--ckpt_path", str(path), *SILENT)
        assert "damaged" in message or "cannot be read as a checkpoint" in message


def test_a_damaged_last_checkpoint_is_replaced_by_the_best(run, capsys, caplog):
    last, best = run / "checkpoints/last.ckpt", run / "checkpoints/best.ckpt"
    call = ["fit", "--run_folder", str(run), "--trainer.max_epochs", "3", *SILENT]
    whole = last.read_bytes()
    best.unlink()
    best.hardlink_to(last)
    with zipfile.ZipFile(last) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    flipped(last, largest.header_offset + 200 + largest.file_size // 2)
    message = refused(capsys, *call)
    assert "There is no other best.ckpt, so the run cannot be resumed: put a copy of the file there" in message
    best.unlink()
    assert "There is no other best.ckpt, so the run cannot be resumed" in refused(capsys, *call)
    best.write_bytes(whole)
    main(call)
    message = r"last\.ckpt is damaged: .* The run is resumed from best\.ckpt: epochs from 3 on are"
    assert re.search(message, caplog.text)
    assert "Restored all states" not in capsys.readouterr().err
    assert load(last)["epoch"] == 2


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(capsys):
    message = refused(capsys, "fit", "--run_folder", "empty", *SILENT)
    assert "empty holds no run to resume: start it with its data set, such as fit --config NAME" in message
    call = ["fit", "--config", QUICKSTART, *TINY, *FEW, "--trainer.max_epochs", "1", *SILENT]
    main([*call, "--run_folder", "whole"])
    main([*call, "--run_folder", "early"])
    for name in ("last", "best"):
        Path(f"early/checkpoints/{name}.ckpt").unlink()
    update(RunFolder(Path("early")), ended=None)
    Path("early/metrics.csv").unlink()
    main(["fit", "--run_folder", "early"])
    first, again = (load(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("whole", "early"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    whole, early = (read_run(Path(name)) for name in ("whole", "early"))
    assert early.key == whole.key
    assert commands(early) == [[argument.replace("whole", "early") for argument in one] for one in commands(whole)]


def test_a_checkpoint_with_a_weight_missing_is_refused(run):
    path = run / "checkpoints/best.ckpt"
    checkpoint = load(path)
    del checkpoint["state_dict"]["network.classifier.fc1.fc.weight"]
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match=r"Missing key.*network\.classifier\.fc1\.fc\.weight"):
        main(["test", "--ckpt_path", str(path), *SILENT])


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize("form", ["in a checkpoint", "alone"])
def test_a_checkpoint_that_would_run_code_is_refused_without_advice_to_let_it(form, run, capsys):
    path = run / "checkpoints/best.ckpt"
    if form == "alone":
        path.write_bytes(pickle.dumps(Hostile()))
    else:
        torch.save({**load(path), "more": Hostile()}, path)
    message = refused(capsys, "test", "--ckpt_path", str(path), *SILENT)
    assert "weights_only" not in message
    assert str(path) in message
    assert not Path("touched").exists()


READING = ["test", "validate", "predict", "cost", "stream", "export", "fit"]


def read_by(command, path):
    """Arguments with which a command reads a checkpoint."""
    if command in ("test", "validate", "predict"):
        return [command, "--ckpt_path", str(path), *SILENT]
    more = {"stream": ["--file", "events.aedat"], "export": ["--out", "out"], "cost": []}
    if command in more:
        return [command, "--ckpt_path", str(path), *more[command]]
    return ["fit", "--config", QUICKSTART, *SILENT, *TINY, *FEW, "--ckpt_path", str(path), "--trainer.max_epochs", "2"]


@pytest.fixture(scope="module")
def module_that_says_so(tmp_path_factory):
    """A module that anybody could import; it says so when it is."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "told.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\n"
        "def called(*args, **kwargs):\n    Path('called').touch()\n"
        "class Called:\n"
        "    def __init__(self, *args, **kwargs):\n        called()\n    __call__ = __init__\n"
    )
    return folder


@pytest.fixture(scope="module")
def best_of_a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(*TINY, *FEW, "--trainer.max_epochs", "1", "--test_after_fit", "false", "--run_folder", str(folder / "run"))
    return load(folder / "run/checkpoints/best.ckpt")


@pytest.mark.parametrize(
    ("where", "what", "command"),
    [
        *(("data", what, command) for what in ("called", "Called") for command in READING),
        *(
            (part, "Called", name)
            for part in ("optimizer", "augmentation")
            for name in ("test", "cost", "stream", "fit")
        ),
        ("lr_scheduler", "Called", "test"),
    ],
)
def test_classes_named_by_a_checkpoint_are_not_called(
    where, what, command, best_of_a_run, module_that_says_so, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(module_that_says_so)
    monkeypatch.delitem(sys.modules, "told", raising=False)
    path, checkpoint = "best.ckpt", best_of_a_run
    config = yaml.safe_load(checkpoint["cli_config"])
    named = {"class_path": f"told.{what}", "init_args": {}}
    if where == "data":
        config["data"] = {**named, "init_args": config["data"]["init_args"]}
    elif where == "augmentation":
        config["data"]["init_args"]["augmentation"] = [named]
    else:
        config["model"][where] = named
    torch.save({**checkpoint, "cli_config": yaml.safe_dump(config)}, path)
    exit_status(*read_by(command, path))
    assert not Path("called").exists()
    # A data set may be a module of the user's own, which must be imported to see whether it is one.
    assert not Path("imported").exists() or (where == "data" and command in ("test", "validate", "predict", "cost"))
    assert "Traceback" not in capsys.readouterr().err


def test_a_tag_in_the_configuration_of_a_checkpoint_calls_nothing(best_of_a_run):
    torch.save({**best_of_a_run, "cli_config": "!!python/object/apply:os.system ['touch called']"}, "best.ckpt")
    with pytest.raises(yaml.constructor.ConstructorError):
        main(list(read_by("stream", "best.ckpt")))
    assert not Path("called").exists()


# --- told to end by a terminal that is closed


def test_a_closed_terminal_saves_as_sigterm_does_and_nohup_is_left_alone(straight, monkeypatch, capsys):
    expected = straight(*EIGHT)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    with monkeypatch.context() as patch:
        told_at(patch, 10, signal.SIGHUP)
        assert ended(*EIGHT, "--run_folder", "run") == 128 + signal.SIGHUP
    assert "stopped by SIGHUP after step 11. Resume the run with: " in capsys.readouterr().err
    fit(*EIGHT, "--run_folder", "run")
    assert same(load("run/checkpoints/last.ckpt")["state_dict"], expected)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        told_at(monkeypatch, 10, signal.SIGHUP)
        fit(*EIGHT, "--run_folder", "nohup")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert load("nohup/checkpoints/last.ckpt")["global_step"] == 24


# --- nothing is printed or drawn, somebody deletes


def test_a_best_checkpoint_that_is_missing_is_named(run, capsys):
    (run / "checkpoints/best.ckpt").unlink()
    last = load(run / "checkpoints/last.ckpt")
    last["callbacks"]["RunCheckpoints"]["best_epoch"] = 0  # an earlier epoch than its own
    torch.save(last, run / "checkpoints/last.ckpt")
    message = refused(capsys, "fit", "--run_folder", str(run), "--trainer.max_epochs", "3")
    assert "best.ckpt, the best checkpoint so far" in message
    # A run that begins in another folder from that checkpoint has its own best epoch to find.
    begin = ["--ckpt_path", str(run / "checkpoints/last.ckpt"), "--run_folder", "new", "--trainer.max_epochs", "3"]
    main(["fit", "--config", QUICKSTART, *SILENT, *TINY, *FEW, *begin, "--test_after_fit", "false"])
    assert load("new/checkpoints/best.ckpt")["epoch"] == 2
    assert read_run(Path("new")).settings["ckpt_path"] == str(run / "checkpoints/last.ckpt")


def test_changed_threads_and_kernels_on_resume_are_recorded(run, caplog):
    threads, around = str(torch.get_num_threads()), read_run(run).record.sessions[0].surroundings
    assert (around["threads"], around["form"]) == (threads, "cpu")
    resume = ["fit", "--run_folder", str(run), "--trainer.max_epochs"]
    main([*resume, "3", "--model.backend", "reference"])
    assert "resumes with different form" in caplog.text
    assert read_run(run).surroundings("form") == "cpu, then reference"
    caplog.clear()
    main([*resume, "4", "--model.backend", "reference"])
    assert "resumes with different" not in caplog.text
    torch.set_num_threads(int(threads) + 1)
    try:
        main([*resume, "5", "--model.backend", "reference"])
    finally:
        torch.set_num_threads(int(threads))
    assert "resumes with different threads" in caplog.text


def test_sigusr1_outside_slurm_saves_and_prints_the_resume_command(monkeypatch, capsys):
    told_at(monkeypatch, 0, signal.SIGUSR1)
    assert ended(*EIGHT) == 143
    assert load("runs/quickstart/version_0/checkpoints/last.ckpt")["global_step"] == 1
    said = capsys.readouterr().err
    assert "stopped by SIGUSR1 after step 1. Resume the run with:" in said
    assert "requeued" not in said
