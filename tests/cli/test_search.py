"""Searches by Optuna behind a W&B sweep file, and runs that are forked from a warm process."""

import csv
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from plif_lightning.cli.grid import read_sweep
from plif_lightning.cli.runner import Job, Runner
from plif_lightning.cli.warm import WarmStart
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.searches import find_searches
from tests.cli.calls import until
from tests.cli.test_sweep import SPELLED, TINY, sweep
from tests.conftest import PATIENCE, REPOSITORY
from tests.writers import write_run

optuna = pytest.importorskip("optuna", reason="test extra `search`")
from plif_lightning.cli.search import JOURNAL, Search, distribution  # noqa: E402

QUICK = str(REPOSITORY / "configs/quickstart.yaml")
SPACE = {"model.init_tau": {"min": 1.5, "max": 8.0}, "model.neuron": {"values": ["plif", "lif"]}}


def write(path, method="random", parameters=SPACE, **more):
    content = {
        "program": "main.py",
        "method": method,
        "name": "s",
        "run_cap": 3,
        "metric": {"name": "val/acc", "goal": "maximize"},
        "command": ["${interpreter}", "${program}", "fit", "--config", QUICK, "${args}"],
        "parameters": parameters,
        **more,
    }
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def trials(root):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(root / JOURNAL)))
    return optuna.load_study(study_name="search", storage=storage).trials


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"min": 1, "max": 8}, optuna.distributions.IntDistribution(1, 8)),
        ({"min": 0.5, "max": 8}, optuna.distributions.FloatDistribution(0.5, 8)),
        (
            {"min": 1e-4, "max": 0.1, "distribution": "log_uniform_values"},
            optuna.distributions.FloatDistribution(1e-4, 0.1, log=True),
        ),
        (
            {"min": 0.0, "max": 1.0, "distribution": "q_uniform", "q": 0.25},
            optuna.distributions.FloatDistribution(0, 1, step=0.25),
        ),
        (
            {"min": 20, "max": 128, "distribution": "q_uniform", "q": 32},
            optuna.distributions.IntDistribution(32, 128, step=32),
        ),
        (
            {"min": 0.3, "max": 1.1, "distribution": "q_uniform", "q": 0.25},
            optuna.distributions.FloatDistribution(0.5, 1.0, step=0.25),
        ),
        *(  # in binary 0.3 / 0.1 is less than 3, and 0.7 / 0.1 less than 7
            (
                {"min": q, "max": most, "distribution": "q_uniform", "q": q},
                optuna.distributions.FloatDistribution(q, most, step=q),
            )
            for q, most in ((0.1, 0.3), (0.2, 0.6), (0.1, 0.7), (0.05, 0.15))
        ),
        ({"values": ["a", True, None]}, optuna.distributions.CategoricalDistribution(['"a"', "true", "null"])),
        ({"value": 3}, 3),
    ],
)
def test_distributions_are_wandbs(spec, expected):
    assert distribution("a", spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"min": 1}, "parameter a must have one of `value`, `values`, or `min` and `max`"),
        ({"min": 1, "max": 2, "values": [1]}, "must have one of"),
        ({"min": 1, "max": float("inf")}, "max of parameter a must be a number, got inf"),
        ({"min": "1e-3", "max": 1}, "min of parameter a must be a number, got '1e-3', which YAML reads .* write 0.001"),
        ({"min": 0, "max": "1e-10"}, "got '1e-10', which YAML reads as a text: write 1.0e-10"),
        ({"min": True, "max": 3}, "min of parameter a must be a number, got True"),
        ({"min": 0, "max": 1, "distribution": 5}, "must have numbers `min` below `max`, and a distribution of"),
        ({"min": 0, "max": 1, "q": 0.5}, "has a q, which only the distribution q_uniform uses"),
        ({"min": 0.2, "max": 0.8, "distribution": "int_uniform"}, "int_uniform, which needs whole numbers"),
        ({"min": 1, "max": 9, "distribution": "q_uniform", "q": 0}, "has no multiple of q = 0 between 1 and 9"),
        ({"min": 1.5, "max": 4, "distribution": "q_uniform", "q": 10}, "has no multiple of q = 10 between 1.5 and 4"),
        ({"min": 1, "max": 9, "distribution": "q_uniform", "q": "a"}, "q of parameter a must be a number, got 'a'"),
        ({"values": [datetime.date(2020, 1, 1)]}, "has a value that is no number, text, list or mapping"),
        ({1: 2, "min": 3}, "parameter a has 1, which a search here does not know"),
        ({"min": 2, "max": 1}, "numbers `min` below `max`"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "needs `min` above 0"),
        (
            {"min": 0, "max": 1, "distribution": "normal"},
            "and a distribution of categorical, int_uniform, log",
        ),
        ({"mu": 0, "sigma": 1}, "parameter a has mu, sigma"),
        ({"values": []}, "must have a list of `values`"),
    ],
)
def test_other_forms_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        distribution("a", spec)


def test_nested_parameters_are_dotted(tmp_path):
    nested = {"model": {"parameters": {"init_tau": {"min": 2.0, "max": 4.0}, "neuron": {"value": "plif"}}}}
    assert read_sweep(write(tmp_path / "s.yaml", parameters=nested)).space == {
        "model.init_tau": {"min": 2.0, "max": 4.0},
        "model.neuron": {"value": "plif"},
    }
    grid = {"model": {"parameters": {"init_tau": {"values": [2.0, 4.0]}}}}
    assert read_sweep(write(tmp_path / "g.yaml", "grid", grid, run_cap=None)).parameters == {
        "model.init_tau": [2.0, 4.0]
    }


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"run_cap": None}, [], "a search has no end by itself: pass --cap"),
        ({"run_cap": 0}, [], "run_cap of .* must be a whole number, at least 1, got 0"),
        ({"method": "anneal"}, [], "method must be one of grid, random, bayes, got 'anneal'"),
        ({"method": "grid", "parameters": {"a": {"values": [1]}}}, [], "has run_cap, which method grid does not know"),
        ({"early_terminate": {"type": "median"}}, [], "early_terminate must be of type hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, [], "early_terminate needs min_iter"),
        (
            {
                "early_terminate": {"type": "hyperband", "min_iter": 1},
                "metric": {"name": "test/acc", "goal": "maximize"},
            },
            *([], "early_terminate needs a metric of every epoch, such as val/acc: test/acc is measured once"),
        ),
        ({"parameters": {"a": {"value": 1}}}, [], "has no parameter to search"),
        ({}, ["--index", "0"], "--index is for method grid"),
        ({}, ["--grid", "a=1"], "--grid is for method grid"),
    ],
)
def test_what_does_not_go_is_named(tmp_path, monkeypatch, capsys, changes, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert sweep(write(Path("s.yaml"), **changes), *arguments) == 2
    import re

    assert re.search(message, capsys.readouterr().err)


def test_a_search_runs_to_its_number_and_a_second_call_finds_it_done(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write(Path("s.yaml"), "bayes")
    assert sweep(file, "--seed", "1", "--", *TINY) == 0
    out = capsys.readouterr().out
    root = Path("runs/s")
    done = trials(root)
    assert [trial.state.name for trial in done] == ["COMPLETE"] * 3
    for trial in done:
        assert 1.5 <= trial.params["model.init_tau"] <= 8
        (folder,) = root.glob(f"{trial.number:04d}_*/")
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["model"]["init_tau"] == trial.params["model.init_tau"]
        assert config["model"]["neuron"] == json.loads(trial.params["model.neuron"])
        curve = [
            float(row["val/acc"])
            for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines())
            if row["val/acc"]
        ]
        assert trial.value == max(curve)
    assert "val/acc, highest first:" in out
    assert "best: python main.py fit --config" in out
    problems = []
    (found,) = find_searches("runs", problems)
    assert problems == []
    assert [value for _, value in found.ranking] == sorted((trial.value for trial in done), reverse=True)
    best = max(done, key=lambda trial: trial.value).params
    assert f"--model.init_tau={best['model.init_tau']}" in found.command
    assert {trial.parameters["model.neuron"] for trial, _ in found.ranking} <= {"plif", "lif"}
    assert ", rank 1 of " in out
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/result.json")}
    assert sweep(file, "--", *SPELLED) == 0
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/result.json")} == before
    assert sweep(file, "--", *TINY, "--model.channels=5") == 2
    assert "holds another search" in capsys.readouterr().err


def test_a_search_that_was_killed_goes_on_with_its_runs(tmp_path):
    file = write(tmp_path / "s.yaml", run_cap=2)
    long = [*TINY, "--trainer.max_epochs=400", "--trainer.limit_train_batches=20"]
    call = [sys.executable, f"{REPOSITORY}/main.py", "sweep", str(file), "--runs", "r", "--"]
    process = subprocess.Popen([*call, *long], cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    until(lambda: list(tmp_path.glob("r/0000_*/checkpoints/last.ckpt")))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    assert [trial.state.name for trial in trials(tmp_path / "r")] == ["RUNNING"]
    # Both processes share what is left; the run that was begun goes on.
    two = [
        subprocess.Popen([*call, *long], cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL) for _ in "ab"
    ]
    until(lambda: len(list(tmp_path.glob("r/000?_*/checkpoints/last.ckpt"))) == 2)
    assert [trial.number for trial in trials(tmp_path / "r")] == [0, 1]
    for one in two:
        os.killpg(one.pid, signal.SIGTERM)
    for one in two:
        assert one.wait(PATIENCE) == 130
    assert [trial.state.name for trial in trials(tmp_path / "r")] == ["RUNNING", "RUNNING"]
    log = next(tmp_path.glob("r/0000_*.log")).read_text()
    assert log.count("$ python main.py") == 2
    assert "--ckpt_path last" in log


@pytest.mark.slow
def test_a_search_of_runs_that_fail_ends_and_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write(Path("s.yaml"), run_cap=2)
    for call in (1, 2):  # the second tries them again
        assert sweep(file, "--", "--model.surrogate=nothing") == 1
        out = capsys.readouterr().out
        assert out.count("failed after") == 2
        assert "nothing" in out
        assert out.count("failed: 0000_") == out.count("failed: 0001_") == 1
        assert "The same command tries failed runs again." in out
        assert [trial.state.name for trial in trials(Path("runs/s"))] == ["FAIL", "FAIL"] * call


def told(search, cap, *states):
    """The jobs of the trials that a search claims, each told to have ended so."""
    jobs = []
    for state, trial in zip(states, search.claimed(cap), strict=True):
        job = search.job(trial)
        if state == "finished":
            write_run(job.folder.path, (0.8,), validation="holdout")
        job.state = state
        search.tell(trial, job)
        jobs.append(job)
    return jobs


def test_a_run_that_failed_is_tried_again_in_its_folder_by_the_next_call(tmp_path):
    first = told(a_search(tmp_path), 2, "failed", "failed")
    a_search(tmp_path)  # another process that is killed before it begins
    search = a_search(tmp_path)
    second = told(search, 2, "finished", "failed")
    assert [(job.folder, job.arguments) for job in second] == [(job.folder, job.arguments) for job in first]
    assert [job.name for job in search.failed()] == [second[1].name]
    found = [(trial.run, trial.state) for trial in search.write().trials]
    assert sorted(found) == [(second[0].name, "finished"), (second[1].name, "failed")]
    third = told(a_search(tmp_path), 3, "finished", "finished")
    assert third[0].name == second[1].name
    assert not a_search(tmp_path).failed()


def test_bad_runs_end_early(tmp_path):
    """Successive halving on curves that are known."""
    settings = {"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 2}}
    search = Search(read_sweep(write(tmp_path / "s.yaml", **settings)), tmp_path, [], seed=1)
    ended = []
    for level, trial in zip((0.9, 0.8, 0.1, 0.95), search.claimed(4), strict=True):
        job = search.job(trial)
        ended.append(ends(search, trial, (level,) * 4))
        write_run(job.folder.path, (level,) * 4, validation="holdout")
        job.state = "ended" if ended[-1] else "finished"
        search.tell(trial, job)
    assert ended == [False, True, True, False]
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]


# --- warm starts


def run_once(folder, warm):
    arguments = ["fit", "--config", QUICK, *TINY]
    jobs = [
        Job(f"{i}", RunFolder(folder / f"{i}"), [*arguments, f"--seed_everything={i}"], folder / f"{i}.log")
        for i in (1, 2)
    ]
    with Runner(1, warm) as runner:
        for job in jobs:
            runner.run(job)
    assert [job.state for job in jobs] == ["finished", "finished"], jobs[0].output.read_text()
    return jobs


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_run_of_a_warm_process_is_that_of_a_new_one_to_the_bit(tmp_path):
    warm, cold = run_once(tmp_path / "warm", True), run_once(tmp_path / "cold", False)
    for one, other in zip(warm, cold, strict=True):
        a, b = (torch.load(job.folder.last, weights_only=False)["state_dict"] for job in (one, other))
        assert all(torch.equal(a[name], b[name]) for name in b)
        told, as_told = (json.loads(job.folder.command.read_text()) for job in (one, other))
        assert told["surroundings"] == as_told["surroundings"]
        assert told["pid"] != as_told["pid"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_warm_run_is_ended_and_its_status_known(tmp_path):
    start = WarmStart(os.environ)
    failed = start.start([], ["fit", "--config", "nowhere.yaml"], tmp_path / "a.log")
    assert failed.wait(PATIENCE) == 2
    assert "nowhere.yaml" in (tmp_path / "a.log").read_text()
    folder = RunFolder(tmp_path / "run")
    long = ["fit", "--config", QUICK, *TINY, "--trainer.max_epochs=1000", f"--run_folder={folder.path}"]
    going = start.start([], long, tmp_path / "b.log")
    until(folder.last.is_file)
    assert going.wait(0.01) is None
    going.terminate()
    assert going.wait(PATIENCE) == 128 + signal.SIGTERM
    start.close()


def a_search(folder, **changes):
    """A search that has run nothing."""
    folder.mkdir(exist_ok=True)
    return Search(read_sweep(write(folder / "s.yaml", **changes)), folder, [], seed=7)


def ends(search, trial, curve, finished=False, **trainer):
    """True if a run is ended whose validation accuracies have been these so far."""
    job = search.job(trial)
    shutil.rmtree(job.folder.path, ignore_errors=True)
    length = {"max_epochs": 99, **trainer}
    write_run(job.folder.path, curve, validation="holdout", finished=finished, trainer=length)
    found = search.should_end(trial, job)
    shutil.rmtree(job.folder.path)
    return found


def asked(search, cap):
    """The first parameter of new trials, up to a number of them, each told."""
    found = []
    for trial in search.claimed(cap):
        found.append(trial.params["model.init_tau"])
        search.study.tell(trial, 0.5)
    return found


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_seed_gives_other_values_in_every_process_and_call(tmp_path, method):
    whole = asked(a_search(tmp_path / "a", method=method), 4)
    assert len(set(whole)) == 4
    assert asked(a_search(tmp_path / "b", method=method), 2) == whole[:2]
    again = a_search(tmp_path / "b", method=method)  # another process, or a second call
    assert asked(again, 4) == whole[2:]


def test_hyperband_looks_at_wandbs_epochs_and_ends_no_run_that_has_trained_them_all(tmp_path):
    search = a_search(tmp_path, early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2}, run_cap=9)
    ended = []
    for i, trial in enumerate(search.claimed(5)):
        good, epochs = i < 4, 2 + (i == 4)
        for done in range(1, epochs + 1):
            if ends(search, trial, (0.9 if good else 0.1,) * done, max_epochs=epochs):
                ended.append((i, done))
                break
        else:
            search.study.tell(trial, 0.9 if good else 0.1)
    assert ended == [(4, 2)]  # the bad run, after its second epoch; the good ones had no more to train


HALVING = {"early_terminate": {"type": "hyperband", "min_iter": 4, "eta": 4}, "run_cap": 9}


def after_good_runs(folder, search):
    """The trials of a search after three good runs."""
    claimed = search.claimed(9)
    for _ in range(3):
        trial = next(claimed)
        assert not ends(search, trial, (0.9,) * 8)
        search.study.tell(trial, 0.9)
    return claimed


def test_a_run_that_was_ended_is_not_taken_up_again_if_the_search_is_killed_meanwhile(tmp_path):
    """Found by a review: the pruner had passed its epoch, and it trained on to the next one."""
    search = a_search(tmp_path, **HALVING)
    claimed = after_good_runs(tmp_path, search)
    bad = next(claimed)
    assert ends(search, bad, (0.2,) * 4)
    claimed.close()
    assert next(a_search(tmp_path, **HALVING).claimed(9)).number == bad.number + 1
    assert trials(tmp_path)[bad.number].state.name == "PRUNED"


def test_a_run_that_is_ended_is_so_after_ctrl_c_too(tmp_path, monkeypatch):
    runner = Runner(1)

    class Ends:
        asked = 0

        def wait(self, timeout):
            self.asked += 1
            if self.asked > 1:
                runner.stop()
            return 143 if self.asked > 1 else None

        def terminate(self):
            pass

    monkeypatch.setattr(runner._start, "start", lambda *given: Ends())
    job = Job("x", RunFolder(tmp_path / "x"), ["fit"], tmp_path / "x.log")
    runner.run(job, lambda job: True)
    assert job.state == "ended"


def test_a_run_tried_again_is_judged_by_epochs_that_are_new(tmp_path):
    """Found by a review: the best run was ended for its first epochs, which it had passed before it failed."""
    search = a_search(tmp_path, **HALVING)
    claimed = search.claimed(9)
    failed, curve = next(claimed), (*(0.5,) * 4, *(0.95,) * 16)
    assert not ends(search, failed, curve)
    search.study.tell(failed, state=optuna.trial.TrialState.FAIL)
    claimed.close()
    for trial, level in zip(search.claimed(4), (0.9,) * 3, strict=True):
        assert not ends(search, trial, (level,) * 8)
        search.study.tell(trial, level)
    search = a_search(tmp_path, **HALVING)
    again = next(search.claimed(9))
    assert search.job(again).name == search.job(failed).name
    before, now = (trials(tmp_path)[one.number] for one in (failed, again))
    assert now.intermediate_values == before.intermediate_values
    assert now.system_attrs.items() >= {k: v for k, v in before.system_attrs.items() if "rung" in k}.items()
    assert not ends(search, again, (*curve, 0.96))


def test_a_process_killed_while_it_draws_parameters_breaks_no_search(tmp_path):
    """Found by a review: every later call ended in a KeyError."""
    search = a_search(tmp_path, run_cap=2)
    half = search.study.ask({"model.init_tau": search.free["model.init_tau"]})
    found = asked(a_search(tmp_path, run_cap=2), 2)
    assert len(found) == 2
    assert trials(tmp_path)[half.number].state.name == "FAIL"
    assert asked(a_search(tmp_path, run_cap=2), 2) == []
    assert [trial.state for trial in search.write().trials] == ["finished"] * 2


def test_a_process_killed_while_it_draws_a_run_once_more_loses_none(tmp_path):
    """Found by a review: the run was neither tried again nor named, and the search ended as if all was well."""
    search = a_search(tmp_path, run_cap=1)
    failed = next(search.claimed(1))
    search.study.tell(failed, state=optuna.trial.TrialState.FAIL)
    half = a_search(tmp_path, run_cap=1).study.ask()  # the second try, before its parameters are drawn
    assert half.user_attrs["run"] == failed.number
    assert asked(a_search(tmp_path, run_cap=1), 1) == [failed.params["model.init_tau"]]


def test_an_epoch_is_judged_when_it_has_ended(tmp_path):
    """Found by a review: with several validations in an epoch, the one that was read first counted."""
    early = {"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 2}}
    search = a_search(tmp_path, **early)
    claimed = search.claimed(9)
    first = next(claimed)
    assert not ends(search, first, (0.8, 0.8))
    search.study.tell(first, 0.8)
    second = next(claimed)
    folder = search.job(second).folder
    write_run(folder.path, (), validation="holdout", finished=False, trainer={"max_epochs": 9})
    for rows, expected in (
        ("0,9,0.6,\n", {}),
        ("0,9,0.6,\n0,19,0.9,\n", {}),
        ("0,9,0.6,\n0,19,0.9,\n0,20,,0.1\n", {1: 0.9}),
        ("0,9,0.6,\n0,19,0.9,\n1,29,0.7,\n", {1: 0.9}),
    ):
        folder.metrics.write_text(f"epoch,step,val/acc,train/loss\n{rows}")
        assert not search.should_end(second, search.job(second))
        assert trials(tmp_path)[second.number].intermediate_values == expected


@pytest.mark.parametrize("how", ["max_steps", "result"])
def test_a_run_that_has_trained_is_not_ended(how, tmp_path):
    """Found by a review: those whose length max_steps gives were, in their test and after it."""
    search = a_search(tmp_path, **HALVING)
    bad = next(after_good_runs(tmp_path, search))
    length = {"max_epochs": 1024, "max_steps": 40 if how == "max_steps" else -1}
    assert not ends(search, bad, (0.2,) * 4, finished=how == "result", **length)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metric": {"name": "val/acc", "goal": "minimize"}}, "goal"),
        ({"method": "bayes"}, "method"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2}}, "early termination"),
        ({"metric": {"name": "val/loss", "goal": "maximize"}}, "metric"),
        ({"metric": {"name": "val/loss"}, "method": "bayes"}, "metric and goal and method"),
    ],
)
def test_a_search_whose_aim_has_changed_is_another_one(tmp_path, changes, named):
    a_search(tmp_path)
    with pytest.raises(UserError, match=f"holds another search, with other {named}: pass another"):
        a_search(tmp_path, **changes)


def test_a_search_ends_at_its_metrics_target(tmp_path):
    search = a_search(tmp_path, metric={"name": "val/acc", "goal": "maximize", "target": 0.5}, run_cap=9)
    assert len(asked(search, 9)) == 1
    metric = {"name": "x", "target": 1}
    file = write(tmp_path / "g.yaml", "grid", {"a": {"values": [1]}}, metric=metric, run_cap=None)
    with pytest.raises(UserError, match="has a target, which method grid does not know"):
        read_sweep(file)


@pytest.mark.parametrize("plan", ["no plan", "[1, 2]", "3"])
def test_a_journal_of_another_program_is_refused(tmp_path, plan):
    a_search(tmp_path).study.set_user_attr("plan", plan)
    with pytest.raises(UserError, match=r"search\.journal is damaged"):
        a_search(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "noise", "strange"])
def test_a_damaged_journal_is_named(tmp_path, damage):
    asked(a_search(tmp_path), 1)
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    strange = whole + b'{"op_code": 99, "worker_id": "w"}\n'
    journal.write_bytes({"cut": whole[:-20], "noise": b"\x00{]" + whole, "strange": strange}[damage])
    with pytest.raises(UserError, match=r"search\.journal is damaged .* delete that line; otherwise pass another"):
        asked(a_search(tmp_path), 2)


@pytest.mark.parametrize(
    ("early", "message"),
    [
        ({"type": "hyperband", "max_iter": "a"}, "as whole numbers above 0"),
        ({"type": "hyperband", "min_iter": 1, "eta": 0}, "eta of at least 2"),
        ({"type": "hyperband", "s": 2}, "needs min_iter, or max_iter and s"),
        ({"type": "hyperband", "min_iter": 1, "strict": True}, "strict: true"),
        ({"type": "envelope"}, "must be of type hyperband"),
    ],
)
def test_other_forms_of_early_termination_are_named(tmp_path, early, message):
    with pytest.raises(UserError, match=message):
        a_search(tmp_path, early_terminate=early)


def test_options_of_a_search_must_be_numbers_above_zero(tmp_path, capsys):
    file = write(tmp_path / "s.yaml")
    for option in ("--cap", "--jobs"):
        assert sweep(file, "--runs", tmp_path / "r", option, "0") == 2
        assert f"{option} must be a whole number, at least 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_metric_that_no_run_has_is_a_failure_with_a_reason(tmp_path, capsys):
    file = write(tmp_path / "s.yaml", metric={"name": "val/accuracy", "goal": "maximize"}, run_cap=1)
    assert sweep(file, "--runs", tmp_path / "r", "--", *TINY) == 1
    assert "it has no val/accuracy, the sweep's metric." in capsys.readouterr().out


def test_a_run_that_outlived_its_search_is_waited_for_and_counts(tmp_path, monkeypatch):
    search = a_search(tmp_path)
    trial = next(iter(search.claimed(1)))
    job = search.job(trial)
    answers = iter([True, True, False])
    monkeypatch.setattr("plif_lightning.cli.search.in_use", lambda folder: next(answers))
    monkeypatch.setattr("plif_lightning.cli.search._INTERVAL", 0)
    write_run(job.folder.path, (0.5, 0.8), validation="holdout", test=0.7)
    assert search.is_done(job, lambda: False)
    job.state = "finished"
    assert search.tell(trial, job) == 0.8


@pytest.mark.slow
def test_a_run_whose_server_is_killed_is_waited_for(tmp_path):
    start = WarmStart(dict(os.environ))
    folder = RunFolder(tmp_path / "r")
    arguments = ["fit", "--config", QUICK, *TINY, f"--run_folder={folder.path}"]
    started = start.start([sys.executable, f"{REPOSITORY}/main.py", *arguments], arguments, tmp_path / "log")
    assert start._server is not None
    start._server.kill()
    assert started.wait(PATIENCE) == -signal.SIGKILL  # how it ended nobody knows, but it has ended
    assert folder.result.is_file()
    start.close()
