"""Grids and searches without a server."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import yaml

from plif_lightning.cli import main
from plif_lightning.cli.job import Job, job_of, run_name
from plif_lightning.cli.search import Search, distribution
from plif_lightning.cli.sweep import Grid, Runner, make_finished, share
from plif_lightning.cli.sweep_file import Sweep, read_sweep
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.lock import in_use, lock_run
from plif_lightning.runs.record import update
from plif_lightning.runs.run import find_runs
from tests.cli.calls import QUICKSTART, until
from tests.conftest import PATIENCE, REPOSITORY
from tests.writers import edit_session, write_run

optuna = pytest.importorskip("optuna", reason="test extra `search`")
D = optuna.distributions
GRIDS = {"table2": 6, "table4": 16, "table5": 8, "tableS2": 6, "leaderboard": 372}
TINY = ["--model.channels=4", "--model.fc_features=12", "--data.time_steps=2", "--trainer.max_epochs=2"]
TINY += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
TINY += ["--trainer.enable_progress_bar=false", "--record_samples=1"]
LONG = [*TINY, "--trainer.max_epochs=10000"]
NEURONS = {"model.neuron": {"values": ["plif", "lif"]}}
SPACE = {"model.init_tau": {"min": 1.5, "max": 8.0}, **NEURONS}


def write(path, method="grid", **changes):
    """A sweep file of the quickstart."""
    content = {
        "method": method,
        "name": "mini",
        "parameters": NEURONS if method == "grid" else SPACE,
        "command": ["${interpreter}", "${program}", "fit", "--config", QUICKSTART, "${args}"],
        **({} if method == "grid" else {"run_cap": 2}),
        **changes,
    }
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


@pytest.mark.parametrize(("processes", "threads"), [(1, None), (2, "3"), (4, "1"), (9, "1")])
def test_processes_share_the_cores(processes, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    assert Runner(processes)._environment.get("OMP_NUM_THREADS") == threads


def sweep(*arguments):
    try:
        return main(["sweep", *map(str, arguments)]) or 0
    except SystemExit as stop:
        return stop.code


def started(*arguments):
    """A sweep in a process and process group of its own; what it prints is in the file `said`."""
    command = [sys.executable, str(REPOSITORY / "main.py"), "sweep", *map(str, arguments)]
    with Path("said").open("a") as said:
        return subprocess.Popen(command, start_new_session=True, stdout=said, stderr=said)


def saved(pattern, count=1):
    """True if as many runs have a checkpoint."""
    return len(list(Path().glob(f"runs/mini/{pattern}/checkpoints/last.ckpt"))) >= count


@pytest.mark.parametrize("name", GRIDS)
def test_shipped_sweeps_are_grids_that_fit_accepts(name):
    from tests.test_configs import parsed

    grid = read_sweep(REPOSITORY / "configs" / "sweeps" / f"{name}.yaml")
    points = grid.points()
    assert (grid.name, len(points), len({run_name(point) for point in points})) == (name, GRIDS[name], GRIDS[name])
    arguments = job_of(grid, Path("runs"), points[-1], []).arguments
    assert arguments[0] == "fit"
    assert not any("wandb" in argument for argument in arguments)
    config = parsed(*arguments[1:])
    flat = {f"model.{key}": value for key, value in config["model"].items()} | {"model": config["model"]}
    flat |= {key: config[key] for key in ("seed_everything", "test_after_fit")}
    flat["data.validation"] = config["data"]["init_args"]["validation"]
    for key, value in points[-1].items():
        assert key == "config" or flat[key] == (flat[key] | value if isinstance(value, dict) else value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "anneal"}, "the method 'anneal' is not known to `sweep`: use `wandb agent`, or grid"),
        ({"controller": {}}, "the key controller is not known to `sweep`"),
        ({"parameters": None}, "is not a sweep file: it has no `parameters`"),
        ({"parameters": {"a": {"values": []}}}, "parameter a must have `value` or `values`"),
        ({"metric": {"name": "val/acc"}}, "metric needs a name, and a goal: maximize or minimize"),
        ({"command": ["${program}", "fit"]}, "command of .* must have .*program.* and .*args.* once"),
    ],
)
def test_other_sweep_files_are_refused(tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        read_sweep(write(tmp_path / "s.yaml", **changes))


def test_run_is_named_by_its_values_and_gets_them_in_place_of_args(tmp_path):
    """W&B's nested parameters, values alone and `--grid`; of W&B's configuration the command keeps nothing."""
    nested = {"model": {"parameters": {"init_tau": {"values": [2.0, 4.0]}, "loss": "rate"}}}
    words = ["${env}", "X=1", "python", "${program}", "fit", "--config", "configs/variants/wandb.yaml"]
    words += ["--config=a/wandb.yaml", "--config", "mine.yaml", "${args}", "--behind=2"]
    path = write(tmp_path / "s.yaml", parameters={**nested, "config": {"value": "b/own.yaml"}}, command=words)
    grid = read_sweep(path, ["model.init_tau=3", "a=true,~,[1, 2]", "model={loss: tet}"])
    first, *_, last = [job_of(grid, tmp_path, point, ["--last"]) for point in grid.points()]
    assert first.name == "own_init_tau-3_loss-rate_a-true_model--loss-tet-"
    given = ["--config=b/own.yaml", "--model.init_tau=3", "--model.loss=rate", "--a=true", '--model={"loss": "tet"}']
    assert first.arguments == ["fit", "--config", "mine.yaml", *given, "--behind=2", "--last"]
    assert first.command[-1:] == [f"--run_folder={tmp_path / first.name}"]
    assert "--a=[1, 2]" in last.arguments
    assert "--a=null" in job_of(grid, tmp_path, grid.points()[1], []).arguments
    assert len(run_name({"model.structure": "c4k3s1-PLIF-" * 40})) == 200


def test_parameters_within_blocks_of_blocks_have_the_names_of_all_of_them(tmp_path):
    inner = {"parameters": {"lr": {"values": [0.1, 0.2]}, "betas": {"parameters": {"first": 0.9}}}}
    grid = read_sweep(write(tmp_path / "s.yaml", parameters={"model": {"parameters": {"optimizer": inner}}}))
    assert grid.points() == [{"model.optimizer.lr": lr, "model.optimizer.betas.first": 0.9} for lr in (0.1, 0.2)]


def test_the_shares_of_a_grid_are_all_of_it_once(capsys):
    def printed(*index):
        assert sweep("table4", "--dry-run", *index) == 0
        return capsys.readouterr().out.splitlines()

    whole = printed()
    assert len(whole) == 16
    assert all(line.startswith("python main.py fit --config=") for line in whole)
    assert [printed("--index", f"{i}/3") for i in range(3)] == [whole[i::3] for i in range(3)]
    assert printed("--index", "15") == whole[15:]
    assert not Path("runs").exists()
    for text in ("16", "-1", "3/3", "1/0", "a", "1/2/3", "1.5"):
        with pytest.raises(UserError, match="--index must be I or I/N, counted from 0, for 16 runs"):
            share(text, 16)


def test_grid_runs_once_and_failures_do_not_stop_others(capsys):
    """Two at a time; a second call runs what failed, and another value."""
    grid = [write(Path("s.yaml"), parameters={"model.init_tau": {"values": [0.5, 2.0]}}), "--jobs", 2]
    assert sweep(*grid, "--", *TINY) == 1
    said = capsys.readouterr().out
    assert "init_tau-0.5 failed\n" in said
    assert "  error: init_tau must be > 1" in said  # the end of its output
    assert "failed: init_tau-0.5  again: python main.py fit" in said
    runs = [run for run in find_runs("runs/mini") if run.status == "finished"]
    assert [run.setting("model.init_tau") for run in runs] == [2.0]
    written = [run.folder.metrics.stat().st_mtime_ns for run in runs]
    logs = [Path(f"runs/mini/{run.name}.log").read_text() for run in runs]
    assert sweep(*grid, "--grid", "model.init_tau=2.0,4.0", "--", *TINY) == 0
    said = capsys.readouterr().out
    assert "2 runs are done: python main.py report --runs runs/mini" in said
    assert written == [run.folder.metrics.stat().st_mtime_ns for run in runs]
    assert logs == [Path(f"runs/mini/{run.name}.log").read_text() for run in runs]
    best = sorted(find_runs("runs/mini"), key=lambda run: (-run.best[1], run.name))
    ranking = said.split("val/acc, highest first:\n")[1].splitlines()[:2]
    assert [line.split() for line in ranking] == [[f"{100 * run.best[1]:.2f}", "%", run.name] for run in best]


@pytest.mark.slow
def test_a_grid_that_was_killed_with_its_runs_is_finished_by_the_same_call():
    few = [*TINY, "--trainer.max_epochs=40"]
    grid = [write(Path("s.yaml"), parameters={"seed_everything": {"values": [1, 2]}}), "--", *few]
    process = started(*grid)
    until(lambda: process.poll() is not None or saved("seed_everything-1"))
    assert process.returncode is None, Path("said").read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    until(lambda: not any(in_use(RunFolder(path)) for path in Path("runs/mini").iterdir()))
    assert sweep(*grid) == 0
    assert [(run.status, len(run.metrics)) for run in find_runs("runs")] == [("finished", 40)] * 2
    assert Path("runs/mini/seed_everything-1.log").read_text().count("$ python main.py fit") == 2


@pytest.mark.parametrize(("told", "status"), [((signal.SIGTERM,), 143), ((), 130)], ids=["SIGTERM", "Ctrl-C"])
def test_an_interrupted_sweep_ends_with_the_status_of_its_signal(monkeypatch, capsys, told, status):
    def interrupted(*_):
        raise KeyboardInterrupt(*told)

    monkeypatch.setattr(Runner, "run", interrupted)
    assert sweep(write(Path("s.yaml"))) == status
    assert "interrupted: the same command resumes the runs." in capsys.readouterr().out


@pytest.mark.slow
def test_sigterm_ends_a_sweep_and_its_runs_which_save():
    process = started(write(Path("s.yaml")), "--jobs", 2, "--", *LONG)
    until(lambda: process.poll() is not None or saved("*", 2))
    process.terminate()
    assert process.wait(PATIENCE) == 143
    assert "interrupted: the same command resumes the runs." in Path("said").read_text()
    assert [run.status for run in find_runs("runs")] == ["resumable"] * 2
    assert all("stopped by SIGTERM" in log.read_text() for log in Path("runs/mini").glob("*.log"))


@pytest.mark.slow
def test_a_schedulers_signal_to_all_processes_lets_the_runs_of_a_sweep_save():
    process = started(write(Path("s.yaml")), "--jobs", 2, "--", *LONG)
    until(lambda: process.poll() is not None or saved("*", 2))
    os.killpg(process.pid, signal.SIGUSR1)
    assert process.wait(PATIENCE) == 128 + signal.SIGUSR1
    assert "interrupted: the same command resumes the runs." in Path("said").read_text()
    assert [run.status for run in find_runs("runs")] == ["resumable"] * 2
    assert all("stopped by SIGUSR1" in log.read_text() for log in Path("runs/mini").glob("*.log"))


RANKINGS = {
    ("val/acc", "maximize"): "highest first: 90.00 % 1 70.00 % 0",
    ("test/acc", "maximize"): "highest first: 30.00 % 0 10.00 % 1",
    ("train/loss", "minimize"): "lowest first: 0.05 0 0.05 1",
    ("val/acc", "minimize"): "lowest first: 70.00 % 0 90.00 % 1",
}
SEEDS = {"seed_everything": {"values": [0, 1]}}


def test_runs_are_ranked_by_the_metric_and_averaged_over_seeds(capsys):
    path = Path("s.yaml")
    for seed, level in enumerate((0.7, 0.9)):  # finished: a call trains nothing
        given = ["--config", QUICKSTART, f"--seed_everything={seed}"]
        place = Path(f"runs/mini/seed_everything-{seed}")
        write_run(place, (level, 0.3), validation="holdout", test=1 - level, seed=seed, arguments=given)
    for (metric, goal), ranking in RANKINGS.items():
        assert sweep(write(path, parameters=SEEDS, metric={"name": metric, "goal": goal})) == 0
        said = " ".join(capsys.readouterr().out.replace("seed_everything-", "").split())
        assert f"{metric}, {ranking} " in said
        assert "PLIF, tau_0 = 2 │ B │ 8 │ 2 │ 20.00 │" in said  # the mean of both
        assert "2 runs are done" in said
    assert sweep(path, "--", "--trainer.max_epochs=3") == 2
    assert "seed_everything-0 is finished, with other arguments: fit --config" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_use_is_named_with_its_process_and_the_others_are_run(capsys):
    """Found by a review: a sweep that was killed without its run kept all of the next call's from starting."""
    grid = [write(Path("s.yaml"), parameters=SEEDS), "--", *TINY]
    folder = RunFolder(Path("runs/mini/seed_everything-0"))
    with lock_run(folder):
        update(folder, process={"host": "here", "pid": os.getpid()})
        assert sweep(*grid) == 1
    said = capsys.readouterr().out
    assert f"is being trained by process {os.getpid()} on" in said
    assert "in use: seed_everything-0  again: python main.py fit" in said
    assert [run.status for run in find_runs("runs")][1] == "finished"
    assert sweep(*grid) == 0


def test_run_taken_by_another_process_is_not_failed(monkeypatch):
    """Found by a user: a sweep repeated while its run still trained printed the run's own success as a failure."""
    job = Job("a", RunFolder(Path("runs/a")), [])
    refused = [
        sys.executable,
        "-c",
        "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n1/0",
    ]
    monkeypatch.setattr(Job, "command", property(lambda self: refused))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(Runner(1).run, job)
        until(lambda: job.state == "running")
        with lock_run(job.folder):
            Path("go").touch()
            call.result(PATIENCE)
    assert job.state == "in use"
    Runner(1).run(job)
    assert job.state == "failed"  # by itself


def a_search(folder, method="random", cap=1, **changes):
    """A search that has run nothing."""
    folder.mkdir(exist_ok=True)
    return Search(read_sweep(write(folder / "s.yaml", method, **changes)), folder, [], cap, seed=10**6)


def trials(root):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(f"{root}/search.journal"))
    return optuna.load_study(study_name="search", storage=storage).trials


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"min": 1, "max": 8}, D.IntDistribution(1, 8)),
        ({"min": 1, "max": 8, "distribution": "int_uniform"}, D.IntDistribution(1, 8)),
        ({"min": 0.5, "max": 8}, D.FloatDistribution(0.5, 8)),
        ({"min": 1, "max": 8, "distribution": "uniform"}, D.FloatDistribution(1, 8)),
        ({"min": 1e-4, "max": 0.1, "distribution": "log_uniform_values"}, D.FloatDistribution(1e-4, 0.1, log=True)),
        ({"min": 0.0, "max": 1, "distribution": "q_uniform", "q": 0.25}, D.FloatDistribution(0, 1, step=0.25)),
        ({"min": 32, "max": 96, "distribution": "q_uniform", "q": 32}, D.IntDistribution(32, 96, step=32)),
        ({"values": ["a", True, None]}, D.CategoricalDistribution(['"a"', "true", "null"])),
        ({"value": 3}, D.CategoricalDistribution(["3"])),
    ],
)
def test_distributions_are_wandbs(spec, expected):
    assert distribution("a", spec) == expected
    for other in ({"min": 1}, {"min": "1e-3", "max": 1}, {"mu": 0}, {"min": 0, "max": 1, "distribution": "beta"}):
        with pytest.raises(UserError, match="parameter a must have `value`, `values`, or numbers `min` and `max` with"):
            distribution("a", other)


@pytest.mark.parametrize(
    ("method", "changes", "arguments", "message"),
    [
        ("random", {"run_cap": None}, [], "a search has no end by itself: run_cap, or --cap, must be a whole number"),
        ("bayes", {}, ["--index", "0"], "--index and --grid are not for method bayes"),
        ("random", {}, ["--grid", "a=1"], "--index and --grid are not for method random"),
        ("grid", {}, ["--cap", "3"], "--cap and --seed are not for method grid"),
        ("grid", {}, ["--seed", "3"], "--cap and --seed are not for method grid"),
        ("grid", {}, ["--jobs", "0"], "--jobs must be a whole number, at least 1, got 0"),
        ("grid", {"parameters": {"config": {"values": ["a/x.yaml", "b/x.yaml"]}}}, [], "have the same name"),
    ],
)
def test_unsupported_options_of_a_method_are_refused(method, changes, arguments, message, capsys):
    assert sweep(write(Path("s.yaml"), method, **changes), *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_seed_gives_the_same_parameters_whichever_process_asks(method, tmp_path):
    def asked(folder, cap):
        search, numbers = a_search(tmp_path / folder, method, cap), []
        for job in search.jobs():
            numbers.append(int(job.name.partition("_")[0]))
            search.study.tell(numbers[-1], 0.5)
        return [search.study.trials[number].params for number in numbers]

    whole = asked("a", 4)
    assert len({point["model.init_tau"] for point in whole}) == 4
    assert asked("b", 2) + asked("b", 4) == whole


@pytest.mark.slow
def test_search_runs_as_many_trials_as_asked(capsys):
    path = write(Path("s.yaml"), "bayes")
    assert sweep(path, "--jobs", 2, "--seed", 1, "--", *TINY) == 0
    assert "val/acc, highest first:" in capsys.readouterr().out
    for trial in trials("runs/mini"):
        (run,) = (run for run in find_runs("runs") if run.name.startswith(f"mini/{trial.number:04d}_init_tau-"))
        assert run.setting("model.init_tau") == trial.params["model.init_tau"]
        assert run.setting("model.neuron") == json.loads(trial.params["model.neuron"])
        assert trial.value == run.best[1]
    before = [record.stat().st_mtime_ns for record in Path().rglob("run.json")]
    assert sweep(path, "--", *TINY) == 0
    assert "val/acc, highest first:" in capsys.readouterr().out
    assert [record.stat().st_mtime_ns for record in Path().rglob("run.json")] == before
    assert len(before) == 2
    assert sweep(write(path, "bayes", parameters={**SPACE, "a": {"value": 1}}), "--", *TINY) == 2
    assert "holds a search with another metric, other parameters or arguments" in capsys.readouterr().err


@pytest.mark.slow
def test_concurrent_searches_take_over_trials_of_killed_processes():
    call = (write(Path("s.yaml"), "random", run_cap=1), "--", *LONG)
    killed = started(*call)
    until(lambda: killed.poll() is not None or saved("0000_*"))
    killed.kill()  # its run goes on
    killed.wait(PATIENCE)
    assert sweep(*call) == 1  # it is skipped
    log = next(Path("runs/mini").glob("0000_*.log"))
    assert log.read_text().count("$ python main.py") == 1
    os.killpg(killed.pid, signal.SIGKILL)
    until(lambda: not in_use(RunFolder(log.with_suffix(""))))
    two = [started(*call) for _ in "ab"]
    until(lambda: log.read_text().count("$ python main.py") == 2 and any(one.poll() is not None for one in two))
    for one in two:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGINT)  # as Ctrl-C does, the runs included
    assert sorted(one.wait(PATIENCE) for one in two) == [0, 130], Path(
        "said"
    ).read_text()  # there was nothing to do for the other one
    assert [trial.state.name for trial in trials("runs/mini")] == ["RUNNING"]


def test_partially_drawn_trial_is_completed(tmp_path):
    search = a_search(tmp_path)
    half = search.study.ask({"model.init_tau": search.space["model.init_tau"]})
    next(a_search(tmp_path).jobs())
    (found,) = trials(tmp_path)
    trial = found.params
    assert trial == {**half.params, "model.neuron": trial["model.neuron"]}


class Written:
    """A runner whose runs are written: the accuracy of four epochs, of as many as there should be."""

    def __init__(self, *runs):
        self.processes, self.stopped, self._runs = 1, Event(), iter(runs)

    def run(self, job, should_end):
        level, epochs = next(self._runs)
        length = {"max_epochs": epochs}
        write_run(job.folder.path, (level,) * 4, validation="holdout", finished=False, trainer=length)
        job.output.write_text("it fails")
        job.state = "failed" if level == 0 else "ended" if should_end() else "finished"


def test_bad_runs_end_early_and_count(tmp_path):
    early = {"type": "hyperband", "min_iter": 1, "eta": 3}
    runs = [(0.9, 9)] * 4 + [(0.1, 9)] * 2 + [(0.1, 4), (0, 9)]  # the last but one has no epoch left, the last fails
    search = a_search(tmp_path, cap=len(runs), early_terminate=early)
    assert make_finished(search.sweep, tmp_path, search, Written(*runs)) == 1
    expected = ["COMPLETE"] * 4 + ["PRUNED"] * 2 + ["COMPLETE", "FAIL"]
    assert [trial.state.name for trial in trials(tmp_path)] == expected
    assert list(a_search(tmp_path, cap=len(runs), early_terminate=early).jobs()) == []


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_exit_status_zero_needs_a_finished_record(state, tmp_path, monkeypatch):
    """One that SLURM stops and requeues has status 0, too."""
    job = Job("run", RunFolder(tmp_path / "run"), ["fit"])
    write_run(job.folder.path, finished=False)
    record = json.loads(job.folder.record.read_text()) | ({"ended": 9.0} if state == "finished" else {})
    code = f"open({str(job.folder.record)!r}, 'w').write({json.dumps(record)!r})"
    monkeypatch.setattr(Job, "command", [sys.executable, "-c", code])
    Runner(1).run(job)
    assert job.state == state


@pytest.mark.slow
def test_a_run_that_is_ended_early_saves(tmp_path):
    folder = RunFolder(tmp_path / "run")
    job = Job("run", folder, ["fit", "--config", QUICKSTART, *LONG])
    Runner(1).run(job, folder.last.is_file)
    assert job.state == "ended"
    assert "stopped by SIGTERM" in job.output.read_text()


def test_swept_parameters_cannot_be_overridden(capsys):
    """Runs would be named, and ranked, by values that none of them has."""
    path = write(Path("s.yaml"), parameters={"model.init_tau": {"values": [2.0, 4.0]}})
    assert sweep(path, "--", "--model.init_tau=3") == 2
    assert "--model.init_tau is swept: behind -- it would replace every value" in capsys.readouterr().err


class RaisingIn(Runner):
    """Runs the first job until it is to stop, and raises at the second."""

    def run(self, job, should_end):
        if job.name == "b":
            raise UserError("a folder is another run's")
        assert self.stopped.wait(PATIENCE)
        job.state = "stopped"


def test_where_a_thread_raises_the_others_stop(tmp_path):
    runner, jobs = RaisingIn(2), [Job(name, RunFolder(tmp_path / name), ["fit"]) for name in "abc"]
    with pytest.raises(UserError, match="another run's"):
        make_finished(Sweep("s", [], {}), tmp_path, Grid(jobs), runner)
    assert runner.stopped.is_set()
    assert [job.state for job in jobs] == ["stopped", "waiting", "waiting"]


def test_a_run_that_finishes_as_the_sweep_is_stopped_is_finished(tmp_path, monkeypatch):
    job = Job("run", RunFolder(tmp_path / "run"), ["fit"])
    write_run(job.folder.path, finished=False)
    record = json.dumps(json.loads(job.folder.record.read_text()) | {"ended": 9.0})
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        f"open({str(job.folder.record)!r}, 'w').write({record!r}); print('ready', flush=True); signal.pause()"
    )
    monkeypatch.setattr(Job, "command", [sys.executable, "-c", code])
    runner = Runner(1)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(runner.run, job)
        until(
            lambda: (
                job.output.is_file() and "ready" in job.output.read_text() and "ended" in job.folder.record.read_text()
            )
        )
        runner.stopped.set()
        call.result(PATIENCE)
    assert job.state == "finished"


def test_finished_run_with_edited_code_is_reported_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nets_of_sweep.py").write_text("SIZE = 1\n")
    folder = write_run(tmp_path / "runs/a", model={"loss": "nets_of_sweep.SIZE"})
    edit_session(folder, code={"nets_of_sweep": "0123456789ab"}, arguments=["fit"])
    job = Job("a", folder, ["fit"])
    Runner(1).run(job)
    assert job.state == "finished"
    assert "a is finished, with nets_of_sweep as before the last edit: pass another --runs" in capsys.readouterr().out
