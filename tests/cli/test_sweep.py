"""Grids of runs without a server."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from plif_lightning.cli import main
from plif_lightning.cli.grid import point_arguments, read_sweep, replaced, require_no_conflict, run_name, share
from plif_lightning.cli.planned import Watched, comparable_settings, files_of
from plif_lightning.cli.sweep import score
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.process import locked, process_identity
from plif_lightning.runs.reading import find_runs, read_run
from tests.cli.calls import until
from tests.conftest import PATIENCE, REPOSITORY
from tests.writers import write_run

SWEEPS = REPOSITORY / "configs" / "sweeps"
TINY = ["--model.channels=4", "--model.fc_features=12", "--data.time_steps=2", "--trainer.max_epochs=2"]
TINY += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
TINY += ["--trainer.enable_progress_bar=false", "--record_samples=1"]
SPELLED = [part for argument in TINY for part in argument.split("=", 1)]  # the same as --key value


def sweep(*arguments):
    try:
        main(["sweep", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return 0


# --- the files

GRIDS = {"table2": 6, "table4": 16, "table5": 8, "tableS2": 6, "leaderboard": 360}


@pytest.mark.parametrize("name", GRIDS)
def test_shipped_sweeps_are_grids_that_the_command_line_accepts(name):
    from tests.test_configs import parsed

    grid = read_sweep(SWEEPS / f"{name}.yaml")
    points = grid.points()
    assert len(points) == GRIDS[name]
    assert len({run_name(point) for point in points}) == len(points)
    arguments = point_arguments(grid, points[-1], [])
    assert arguments[0] == "fit"
    assert not any("wandb" in argument for argument in arguments)
    config = parsed(*arguments[1:])
    if name == "leaderboard":
        assert all(config["model"][key] == value for key, value in points[-1]["model"].items())
        return
    flat = {"model.neuron": config["model"]["neuron"], "model.init_tau": config["model"]["init_tau"]}
    flat |= {"model.pooling": config["model"]["pooling"], "test_after_fit": config["test_after_fit"]}
    flat["data.validation"] = config["data"]["init_args"]["validation"]
    for key, value in points[-1].items():
        assert key == "config" or flat[key] == value


@pytest.mark.parametrize("name", GRIDS)
def test_shipped_sweeps_are_what_wandbs_agent_takes(name):
    loaded = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())
    command = loaded["command"]
    assert command.index("fit") < command.index("${args}")
    assert all(
        "." in key or key in ("config", "seed_everything", "test_after_fit", "model") for key in loaded["parameters"]
    )
    assert loaded["name"] == name


def write(path: Path, **changes):
    content = {"method": "grid", "parameters": {"model.neuron": {"values": ["plif", "lif"]}}, **changes}
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "anneal"}, "method must be one of grid, random, bayes, got 'anneal'"),
        ({"parameters": None}, "is not a sweep file: it has no `parameters`"),
        ({"parameters": {"a": {"min": 0, "max": 1}}}, "parameter a of .* must have `value` or a list of `values`"),
        ({"parameters": {"a": {"values": []}}}, "parameter a of .* has no values"),
        ({"program": "train.py"}, "has program train.py, but `sweep` runs main.py: use `wandb agent` for it"),
        ({"name": "../../x"}, "name of .* must be that of a folder in runs/, got '../../x'"),
        ({"early_terminate": {}}, "has early_terminate, which method grid does not know here"),
        ({"metric": {"goal": "minimize"}}, "metric of .* must have a name"),
        ({"metric": {"name": "val/acc"}}, "metric val/acc of .* has no goal, and W&B's default is minimize"),
        ({"command": ["python"]}, "command of .* must be a list with"),
        ({"command": ["${args}", "${program}"]}, "and, after it, .*args"),
        ({"command": ["${program}", "fit", "${args}", "${args_no_hyphens}"]}, "use `wandb agent` for other forms"),
    ],
)
def test_other_sweep_files_are_refused(tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        read_sweep(write(tmp_path / "s.yaml", **changes))


def test_files_that_are_none_are_refused(tmp_path, capsys):
    assert sweep(tmp_path / "none.yaml") == 2
    assert "none.yaml. Give the path of a file, or one of leaderboard, table2" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("a: [")
    assert sweep(tmp_path / "bad.yaml") == 2
    assert "is not YAML" in capsys.readouterr().err


def test_values_can_be_replaced_and_added(tmp_path):
    grid = replaced(read_sweep(write(tmp_path / "s.yaml")), ["model.neuron=if", "seed_everything=1,2"])
    assert grid.points() == [{"model.neuron": "if", "seed_everything": s} for s in (1, 2)]
    with pytest.raises(UserError, match=r"--grid x=\{a is not YAML"):
        replaced(grid, ["x={a"])
    assert replaced(grid, ["x=[1,2],3"]).parameters["x"] == [[1, 2], 3]
    for nothing in ("x= ", "config=quickstart,~"):
        with pytest.raises(UserError, match=r"gives .* no value"):
            replaced(grid, [nothing])
    with pytest.raises(UserError, match=r"--grid must be KEY=VALUE,VALUE,\.\.\., got 'x'"):
        replaced(grid, ["x"])


def test_every_row_of_the_leaderboard_builds_a_network_that_differs(tmp_path):
    from plif_lightning.network.network import ARGUMENTS
    from tests.test_configs import parsed

    grid = read_sweep(SWEEPS / "leaderboard.yaml")
    seen = []
    for model in grid.parameters["model"]:
        point = {**grid.points()[0], "model": model}
        config = parsed(*point_arguments(grid, point, [])[1:])["model"]
        arguments = {key: value for key, value in config.items() if key in ARGUMENTS}
        with torch.device("meta"):
            SpikingNetwork((1, 8, 8), 10, 4, **arguments)
        assert config not in seen
        seen.append(config)


def test_a_mapping_is_named_by_its_entries_and_given_whole(tmp_path):
    values = [{}, {"neuron": "lif"}, {"loss": "tet", "optimizer": {"init_args": {"lr": 0.1}}}]
    grid = read_sweep(write(tmp_path / "s.yaml", parameters={"seed": {"value": 1}, "model": {"values": values}}))
    assert [run_name(point) for point in grid.points()] == ["seed-1", "neuron-lif_seed-1", "loss-tet_lr-0.1_seed-1"]
    given = [point_arguments(grid, point, [])[1] for point in grid.points()]
    assert given[:2] == ["--model={}", '--model={"neuron": "lif"}']


def test_arguments_behind_those_of_a_run_stay_behind(tmp_path):
    words = ["${program}", "fit", "--before=1", "${args}", "--behind=2"]
    grid = read_sweep(write(tmp_path / "s.yaml", command=words))
    assert point_arguments(grid, grid.points()[0], ["--last"]) == [
        *("fit", "--before=1", "--model.neuron=plif", "--behind=2", "--last")
    ]


def test_values_that_are_not_words_reach_the_command_line_as_json(tmp_path):
    grid = read_sweep(write(tmp_path / "s.yaml", parameters={"a": {"values": [True, None, [1, 2], 0.5]}}))
    given = [point_arguments(grid, point, ["--b"]) for point in grid.points()]
    assert [arguments[1] for arguments in given] == ["--a=true", "--a=null", "--a=[1, 2]", "--a=0.5"]
    assert all(arguments[-1] == "--b" for arguments in given)


# --- what is there already


TAUS = {"model.init_tau": {"values": [2.0, 4.0]}}


@pytest.mark.parametrize(
    ("parameters", "behind", "overrides", "expected"),
    [
        (TAUS, [], ["--model.init_tau=3"], "--model.init_tau 3, after --, would take the place of every value of the"),
        (TAUS, [], ["--model.init_tau", "3"], "parameter model.init_tau: leave it out"),
        (TAUS, [], ["--model", "{init_tau: 3}"], "--model {init_tau: 3}, after --, would"),
        (TAUS, [], ["--config", "tau16"], "--config tau16, after --, would"),
        (TAUS, ["--model.init_tau=3"], [], "--model.init_tau 3, behind ${args} in the command of s, would"),
        ({"model": {"values": [{}, {"init_tau": 3}]}}, [], ["--model.init_tau=3"], "the parameter model: leave"),
        ({"data.init_args.batch_size": {"value": 4}}, [], ["--data.batch_size=3"], "parameter data.init_args.batch"),
        ({**TAUS, "model": {"value": {"init_tau": 3}}}, [], [], "of s both give model.init_tau"),
        ({"model.channels": {"values": [8, 9]}}, [], ["--model.structure=FC10"], "FC10, after --, would"),
        ({"model.optimizer.lr": {"values": [1, 2]}}, [], ["--model.optimizer=null"], "null, after --, would"),
        ({"config": {"values": ["mnist", "nmnist"]}}, [], ["--config=cifar10"], "the parameter config: leave"),
        ({"data": {"values": ["MNIST", "NMNIST"]}}, [], ["--data=Digits"], "--data Digits, after --, would"),
    ],
)  # fmt: skip
def test_what_would_take_a_parameters_place_is_refused(parameters, behind, overrides, expected, tmp_path, capsys):
    """Found by a review: runs were named and ranked by values that none of them had."""
    command = ["${program}", "fit", "--config", "quickstart", "${args}", *behind]
    for changes in ({}, {"method": "random", "run_cap": 1}):
        more = {"model.dropout": {"values": [0.1, 0.2]}} if changes else {}
        path = write(tmp_path / "s.yaml", name="s", command=command, parameters={**parameters, **more}, **changes)
        assert sweep(path, "--runs", tmp_path / "runs", "--", *overrides) == 2
        assert expected in capsys.readouterr().err


def test_a_sweep_without_a_data_set_is_planned(tmp_path, capsys):
    finished_run(tmp_path / "runs" / "other" / "a", *SAME)
    assert sweep(write(tmp_path / "s.yaml", parameters=TAUS), "--runs", tmp_path / "runs" / "mine", "--dry-run") == 0


def test_a_configuration_given_by_name_is_watched():
    assert [path.stem for path in files_of(["fit", "--config=fashionmnist", "--config=lif", "--config=no"])] == [
        "fashionmnist",
        "lif",
    ]


def test_what_takes_no_parameters_place_is_accepted(tmp_path):
    parameters = {**TAUS, "config": {"value": "fashionmnist"}, "model.optimizer.lr": {"value": 0.1}}
    grid = read_sweep(write(tmp_path / "s.yaml", parameters=parameters))
    require_no_conflict(
        grid,
        [
            "--config=holdout",
            "--data=ImageFolder",
            "--model.optimizer=SGD",
            "--trainer.max_epochs=3",
            "--model.channels=4",
        ],
    )


def test_configurations_of_one_file_name_are_no_two_runs(tmp_path, capsys):
    path = write(tmp_path / "s.yaml", parameters={"config": {"values": ["a/x.yaml", "b/x.yaml"]}})
    assert sweep(path, "--runs", tmp_path / "runs") == 2
    said = capsys.readouterr().err
    assert "the same name x, that of {'config': 'a/x.yaml'} and that of {'config': 'b/x.yaml'}" in said


def test_a_long_name_is_cut_and_told_apart_by_its_hash():
    first, second = (run_name({"config": "a.yaml", "model.structure": f"{'c4k3s1-PLIF-' * 40}{end}"}) for end in "xy")
    assert len(first) == len(second) == 240
    assert first[:231] == second[:231]
    assert first != second


def planned(tmp_path, folder="a"):
    """A sweep of one run, whose folder is `folder`."""
    parameters = {"config": {"value": f"{folder}.yaml"}}
    return sweep(write(tmp_path / "s.yaml", name="s", parameters=parameters), "--runs", tmp_path / "runs")


def test_a_value_that_names_no_folder_is_refused(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "precious").write_text("x")
    for value in (".", "..", "/", ""):
        parameters = {"config": {"values": [value]}}
        path = write(tmp_path / "s.yaml", parameters=parameters)
        assert sweep(path, "--runs", tmp_path / "runs") == 2
        assert "give a run no name" in capsys.readouterr().err
    assert (tmp_path / "runs" / "precious").read_text() == "x"


def test_folders_that_are_no_runs_are_left_alone(tmp_path, capsys):
    foreign = tmp_path / "runs" / "a" / "raw.bin"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("x")
    assert planned(tmp_path) == 2
    assert "is no run's folder, and not empty" in capsys.readouterr().err
    assert foreign.read_text() == "x"


def test_a_run_that_was_begun_elsewhere_goes_on_unless_it_is_held(tmp_path, capsys):
    run = write_run(tmp_path / "runs" / "a", finished=False)
    run.command.write_text(json.dumps({"arguments": ["fit", "--config=a.yaml"], "host": "elsewhere", "pid": 1}))
    with locked(run):
        assert planned(tmp_path) == 2
    assert "is being trained by another process" in capsys.readouterr().err
    assert planned(tmp_path) == 1  # there is no a.yaml: it was begun
    assert (tmp_path / "runs" / ".broken" / "a-0" / "metrics.csv").is_file()


def test_a_run_that_has_just_begun_is_not_put_aside(tmp_path, capsys):
    run = RunFolder(tmp_path / "runs" / "a")
    with locked(run):  # while it prepares its data, there is nothing else in its folder
        assert planned(tmp_path) == 2
        assert run.path.is_dir()
    assert "is being trained by another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "points", "expected"),
    [
        ("0", 6, [0]),
        ("5", 6, [5]),
        ("1/3", 6, [1, 4]),
        ("0/1", 6, [0, 1, 2, 3, 4, 5]),
        ("7/12", 6, []),
        ("2/4", 6, [2]),
    ],
)
def test_a_share_of_a_sweep(text, points, expected):
    assert list(range(points))[share(text, points)] == expected


@pytest.mark.parametrize("text", ["6", "-1", "3/3", "1/0", "a", "", "1/2/3", "1.5"])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--index must be"):
        share(text, 6)


def test_the_shares_of_a_sweep_are_all_of_it_once(tmp_path, capsys):
    for i in range(3):
        main(["sweep", "table4", "--dry-run", "--runs", str(tmp_path), "--index", f"{i}/3"])
    parts = [line for line in capsys.readouterr().out.splitlines() if "--run_folder" in line]
    main(["sweep", "table4", "--dry-run", "--runs", str(tmp_path)])
    whole = [line for line in capsys.readouterr().out.splitlines() if "--run_folder" in line]
    assert sorted(parts) == sorted(whole)


def test_a_run_that_goes_on_is_left_alone(tmp_path, capsys):
    run = write_run(tmp_path / "runs" / "a", finished=False)
    run.command.write_text(json.dumps({"arguments": ["fit", "--config=a.yaml"], **process_identity()}))
    assert planned(tmp_path) == 2
    assert "is being trained by another process" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_put_aside_not_thrown_away(tmp_path):
    run = write_run(tmp_path / "runs" / "a", finished=False)
    run.command.unlink()
    assert planned(tmp_path) == 1  # there is no a.yaml
    assert (tmp_path / "runs" / ".broken" / "a-0" / "metrics.csv").is_file()


def test_two_sweeps_do_not_share_a_folder(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / ".sweep.lock"):
        process = [sys.executable, str(REPOSITORY / "main.py"), "sweep", str(write(tmp_path / "s.yaml"))]
        done = subprocess.run(
            [*process, "--runs", "runs"], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    assert done.returncode == 2
    assert "another sweep is running in" in done.stderr


@pytest.mark.parametrize("error", [NotImplementedError("flock"), OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))])
def test_storage_without_locks_is_no_hindrance(tmp_path, monkeypatch, capsys, error):
    def no_locks(*arguments):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    monkeypatch.setattr("plif_lightning.cli.sweep._run", lambda *arguments, **options: 0)
    main(["sweep", "--runs", "runs", str(write(tmp_path / "s.yaml"))])
    assert "start no second sweep in it" in " ".join(capsys.readouterr().out.split())


# --- runs


def test_a_grid_runs_once_and_a_second_call_finds_it_finished(tmp_path, capsys):
    path = write(tmp_path / "mini.yaml", name="mini")
    grid = [path, "--jobs", 2, "--grid", "config=configs/quickstart.yaml"]
    assert sweep(*grid, "--dry-run", "--", *TINY) == 0
    said = capsys.readouterr().out
    assert said.count("python main.py fit --config=") == 2
    assert not (tmp_path / "runs").exists()
    assert sweep(*grid, "--", *TINY) == 0
    said = capsys.readouterr().out
    assert "All 2 runs are finished" in said
    runs = find_runs(tmp_path / "runs" / "mini")
    assert sorted(run.setting("model.neuron") for run in runs) == ["lif", "plif"]
    assert all(run.status == "finished" and run.accuracy is not None for run in runs)
    assert all(run.folder.samples.is_file() and run.folder.weights.is_file() for run in runs)
    for run in runs:  # its validation, not its test, and the best one first
        assert f"{run.name} finished after" in said
        assert f"s: val/acc {100 * run.best[1]:.2f} %" in said
    ranking = said.split("val/acc, highest first:\n")[1].splitlines()[:2]
    best = sorted(runs, key=lambda run: (-run.best[1], run.name))
    assert [line.split() for line in ranking] == [[f"{100 * r.best[1]:.2f}", "%", r.name] for r in best]
    written = {run.name: run.folder.metrics.stat().st_mtime_ns for run in runs}
    assert sweep(*grid, "--", *SPELLED) == 0
    assert "2 finished" in capsys.readouterr().out
    assert written == {run.name: run.folder.metrics.stat().st_mtime_ns for run in find_runs(tmp_path / "runs" / "mini")}
    assert sweep(*grid, "--", *TINY, "--model.channels=5") == 2
    assert "holds a run of another command" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_run_is_shown_with_its_last_lines_and_its_command(tmp_path, capsys):
    parameters = {"config": {"value": "configs/quickstart.yaml"}, "model.init_tau": {"values": [0.5, 2.0]}}
    path = write(tmp_path / "mini.yaml", parameters=parameters)
    assert sweep(path, "--", *TINY) == 1
    said = capsys.readouterr().out
    assert "[2/2]" in said
    assert "error: init_tau must be > 1" in said.split("[2/2]")[0]  # at once, while others run
    assert "again: python main.py fit" in said
    assert "--model.init_tau=0.5" in said.split("again:")[1]
    assert [run.status for run in find_runs(tmp_path / "runs") if run.status == "finished"] == ["finished"]


@pytest.mark.slow
def test_a_run_that_leaves_no_result_says_why(tmp_path, capsys):
    path = write(tmp_path / "mini.yaml", parameters={"config": {"value": "configs/quickstart.yaml"}})
    assert sweep(path, "--", *TINY, "--trainer.fast_dev_run=true") == 1
    assert "it ended without an error, but" in capsys.readouterr().out


def test_a_grid_that_was_ended_goes_on_where_its_runs_stand(tmp_path):
    parameters = {"config": {"value": "configs/quickstart.yaml"}, "seed_everything": {"values": [1, 2]}}
    path = write(tmp_path / "mini.yaml", parameters=parameters)
    few = [a.replace("max_epochs=2", "max_epochs=40") for a in TINY]
    command = [sys.executable, str(REPOSITORY / "main.py"), "sweep", str(path), "--", *few]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    folder = tmp_path / "runs" / "mini" / "quickstart_seed_everything-1"
    until(lambda: process.poll() is not None or (folder / "checkpoints" / "last.ckpt").is_file())
    assert process.returncode is None, process.stdout.read()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    before = json.loads((folder / "command.json").read_text())["arguments"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = find_runs(tmp_path / "runs")
    assert [len(run.metrics) for run in runs] == [40, 40]
    assert json.loads((folder / "command.json").read_text())["arguments"] == before
    assert "--ckpt_path last" in (folder.parent / f"{folder.name}.log").read_text()


# --- runs that several sweeps have in common


def finished_run(folder, *arguments, root="data", **changes):
    """A run's folder with the configuration that these arguments make."""
    from tests.test_configs import parsed

    write_run(folder, arguments=arguments, **changes)
    config = parsed(*arguments)
    config["data"]["init_args"]["root"] = str(Path(root).absolute())
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


SAME = ("--config=fashionmnist", "--model.neuron=plif", "--model.init_tau=2.0")


@pytest.mark.parametrize("tau", ["2.0", "2"])
def test_a_finished_run_of_the_same_settings_serves_another_sweep(tau, capsys):
    beside = ("--trainer.enable_progress_bar=false", "--data.num_workers=0")
    finished_run(Path("runs/table4/a"), *SAME[:-1], f"--model.init_tau={tau}", *beside)
    assert sweep("table5", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "8 runs in runs/table5, 1 finished" in out
    assert "fashionmnist_pooling-max is runs/table4/a: the same settings" in out
    assert out.count("main.py fit") == 7


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["--seed_everything=7"], {}),
        (["--config=avgpool"], {}),
        (["--trainer.limit_train_batches=1"], {}),
        (["--trainer.enable_checkpointing=false"], {}),
        (["--model.lr_scheduler=null"], {}),
        (["--data.augmentation+=HorizontalFlip"], {}),
        (["--model.early_time_steps={2: 3, 4: 1}"], {}),
        ([], {"finished": False}),
        ([], {"root": "elsewhere"}),
    ],
    ids=lambda value: " ".join(map(str, value)) or "as it is",
)
def test_another_run_does_not_serve(arguments, changes, capsys):
    finished_run(Path("runs/table4/a"), *SAME, *arguments, **changes)
    assert sweep("table5", "--dry-run", "--grid", "config=fashionmnist", "--grid", "model.pooling=max") == 0
    out = capsys.readouterr().out
    assert "0 finished" in out
    assert out.count("main.py fit") == 1


@pytest.mark.parametrize(
    "started", [{"changes": [{"step": 9, "settings": {"trainer.accumulate_grad_batches": 1}}]}, {}]
)
def test_a_run_that_went_on_otherwise_or_from_other_weights_does_not_serve(started, capsys):
    """Found by a review."""
    finished_run(Path("runs/table4/a"), *SAME, *([] if started else ["--ckpt_path=other.ckpt"]))
    path = Path("runs/table4/a/command.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **started}))
    assert len(read_run(path.parent).changes) == len(started)
    assert sweep("table5", "--dry-run", "--grid", "config=fashionmnist", "--grid", "model.pooling=max") == 0
    assert "0 finished" in capsys.readouterr().out


def test_no_run_elsewhere_serves_one_that_begins_from_other_weights(capsys):
    """Found by a review: a run from new weights took the place of one from a checkpoint."""
    finished_run(Path("runs/table4/a"), *SAME)
    once = ["table5", "--dry-run", "--grid", "config=fashionmnist", "--grid", "model.pooling=max"]
    assert sweep(*once) == 0
    assert "1 finished" in capsys.readouterr().out
    assert sweep(*once, "--", "--ckpt_path=other.ckpt") == 0
    assert "0 finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (("time_steps: 2", "time_steps: 3"), "data.time_steps was 2.0, is 3.0"),
        (("# a", "best_of_ties: first"), "best_of_ties was last, is first"),
        (("fit: true", "fit: false"), "test_after_fit was True, is False"),
        (("model:", "model:\n  neuron: {class_path: plif_lightning.CLIF}"), "model.neuron.class_path was None, is"),
        (("model:", "model:\n  early_time_steps: {2: 4}"), "model.early_time_steps.2 was None, is 4.0"),
        (("# a", "# b"), None),
    ],
)
def test_runs_of_a_configuration_that_was_edited_are_another_sweep(edit, expected, capsys):
    """Found by a review: such runs were taken for finished ones, and ranked beside those of the new file."""
    mine = Path("mine.yaml").absolute()
    text = (REPOSITORY / "configs" / "quickstart.yaml").read_text()
    mine.write_text(f"# a\n{text.replace('time_steps: 8', 'time_steps: 2')}")
    assert "time_steps: 2" in mine.read_text()
    for seed in (1, 2):
        finished_run(Path(f"runs/s/mine_seed_everything-{seed}"), f"--config={mine}", f"--seed_everything={seed}")
        path = Path(f"runs/s/mine_seed_everything-{seed}/command.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": time.time()}))
    parameters = {"config": {"value": "mine.yaml"}, "seed_everything": {"values": [1, 2]}}
    file = write(Path("s.yaml"), name="s", parameters=parameters)
    assert sweep(file, "--dry-run") == 0
    time.sleep(0.02)  # a file system's clock is coarse
    mine.write_text(mine.read_text().replace(*edit))
    capsys.readouterr()
    assert sweep(file, "--dry-run") == (2 if expected else 0)
    said = capsys.readouterr()
    if expected:
        assert "mine_seed_everything-1 holds a run with other settings than" in said.err
        assert f"mine.yaml gives now: {expected}" in said.err
        assert "Pass another --runs" in said.err
    else:
        assert "2 finished" in said.out


def test_a_configuration_that_is_edited_while_runs_are_made_is_told_of(tmp_path):
    files = [tmp_path / name for name in ("a.yaml", "b.yaml")]
    for file in files:
        file.write_text("model: {init_tau: 2.0}")
    watched = Watched([["fit", f"--config={file}"] for file in files])
    files[0].touch()
    assert watched.warning() == ""
    files[1].write_text("model: {init_tau: 3.0}")
    assert watched.warning().startswith(f"{files[1]} changed while runs were made")


@pytest.mark.parametrize(
    ("one", "other"),
    [("{4: 1, 2: 3}", "{2: 3, 4: 1}"), ("{2: 3}", "{2: 3, 4: 1}"), ("null", "{2: 3}")],
)
def test_runs_with_other_time_steps_at_first_are_different_ones(one, other, capsys):
    finished_run(Path("runs/table4/a"), *SAME, f"--model.early_time_steps={one}")
    grid = ["--grid", "config=fashionmnist", "--grid", "model.pooling=max"]
    assert sweep("table5", "--dry-run", *grid, "--", f"--model.early_time_steps={other}") == 0
    assert "0 finished" in capsys.readouterr().out
    assert sweep("table5", "--dry-run", *grid, "--", f"--model.early_time_steps={one}") == 0
    assert "1 finished" in capsys.readouterr().out


def test_a_run_is_what_it_became_not_what_its_command_began(capsys):
    finished_run(Path("runs/table4/a"), *SAME)
    path = Path("runs/table4/a/config.yaml")
    path.write_text(path.read_text().replace("max_epochs: 1024", "max_epochs: 5"))
    assert sweep("table5", "--dry-run", "--grid", "config=fashionmnist") == 0
    assert "0 finished" in capsys.readouterr().out


def test_where_a_run_serves_the_tables_are_those_of_both_folders(capsys):
    finished_run(Path("runs/table4/a"), *SAME)
    (Path("runs/strange") / "b").mkdir(parents=True)
    (Path("runs/strange") / "b" / "result.json").write_text("{")
    grid = ["--grid", "config=fashionmnist", "--grid", "model.pooling=max"]
    assert sweep("table5", *grid) == 0
    assert "All 1 runs are finished: " in (out := capsys.readouterr().out)
    assert out.rstrip().endswith("tables --runs runs")


def test_runs_are_ranked_by_the_sweeps_own_metric(tmp_path):
    file = tmp_path / "s.yaml"
    by_loss = read_sweep(write(file, metric={"name": "train/loss", "goal": "minimize"}))
    assert (by_loss.metric, by_loss.maximise) == ("train/loss", False)
    a = write_run(tmp_path / "a", (0.7, 0.9, 0.8), validation="holdout", test=0.6)
    assert score(by_loss, a) == ("train/loss", read_run(a.path).curve("train/loss")[1][-1])
    assert score(replace(by_loss, metric="test/acc"), a) == ("test/acc", 0.6)
    for name in ("val/acc", "test_as_val/acc"):
        assert score(replace(by_loss, metric=name), a) == ("val/acc", 0.9)
    assert score(replace(by_loss, metric="rate/conv9"), a) == ("rate/conv9", None)
    with pytest.raises(UserError, match=r"metric of .* must have a name, and a goal"):
        read_sweep(write(file, metric={"name": "val/acc", "goal": "best"}))


def test_what_is_printed_can_be_pasted(tmp_path, capsys):
    write_run(tmp_path / "x;touch F" / "a").command.write_text(json.dumps({"arguments": ["fit", "--config=a.yaml"]}))
    path = write(tmp_path / "s.yaml", name="x;touch F", parameters={"config": {"value": "a.yaml"}})
    assert sweep(path, "--runs", tmp_path / "x;touch F") == 0
    assert "tables --runs 'x;touch F'" in capsys.readouterr().out


def test_a_run_of_before_a_setting_was_there_serves_a_sweep_beside_it():
    config = {"model": {"neuron": "plif"}, "data": {"class_path": "x", "init_args": {"validation": "test"}}}
    old = {**config, "best_of_ties": "first", "trainer": {}}
    new = {**old, "best_of_ties": None, "model": {**config["model"], "norm_held": "every_step"}}
    assert comparable_settings(old) == comparable_settings(new)
    assert comparable_settings(old) != comparable_settings({**new, "model": {**new["model"], "norm_held": "once"}})
    held = {"class_path": "x", "init_args": {"validation": "holdout"}}
    assert comparable_settings({**old, "data": held}) != comparable_settings({**new, "data": held})
