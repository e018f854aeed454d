"""Every option of this project's commands, away from its default, changes what its row names."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from plif_lightning.cli import main
from plif_lightning.cli.dispatch import COMMANDS
from plif_lightning.cli.lightning import PlifCLI
from plif_lightning.cli.messages import Parser
from plif_lightning.cli.parser import PlainParser
from plif_lightning.data import EventFolder
from plif_lightning.network.storage.fingerprint import fingerprint
from tests.cli.calls import FEW, QUICKSTART, TINY, fit, load
from tests.conftest import REPOSITORY
from tests.deploy.conftest import trained as trained_network
from tests.writers import aedat2_bytes, events_of, text_bytes, write_image_folder, write_run

BEST = "runs/quickstart/version_0/checkpoints/best.ckpt"
SIZE = {"channels": 4, "fc_features": 10, "votes_per_class": 2, "pool_ties": "first"}


class FoundOptionsError(Exception):
    """The options of a parser that would read arguments."""


def options_of(command):
    """Every option of a command that has a parser of its own, each with its aliases."""

    def stop(parser, *arguments, **named):
        raise FoundOptionsError([tuple(a.option_strings) or (a.dest,) for a in parser._actions if a.dest != "help"])

    with pytest.MonkeyPatch.context() as patch:
        for kind in (PlainParser, Parser):
            patch.setattr(kind, "parse_known_args", stop)
            patch.setattr(kind, "parse_args", stop)
        with pytest.raises(FoundOptionsError) as found:
            main([command])
    return found.value.args[0]


@pytest.fixture
def said(capsys):
    """What a command prints, with its files' names in place of their folder."""

    def call(*arguments):
        capsys.readouterr()
        try:
            main(list(arguments))
            status = 0
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


@pytest.fixture
def streamed():
    """A network for 128 x 128 pixels as net.ckpt, and a recording, a.aedat."""
    net = trained_network((2, 128, 128), 11, 4, n_down=4, **SIZE)
    for block in net.encoder:
        block.norm.bn.bias.data += 0.6
    data = EventFolder(root=".", size=[128, 128], sensor=(128, 128))
    checkpoint = {
        "state_dict": {f"network.{name}": value for name, value in net.state_dict().items()},
        "fingerprint": fingerprint(net),
        "hyper_parameters": {"input_shape": [2, 128, 128], "num_classes": 11, "time_steps": 4, "n_down": 4, **SIZE},
        "preprocessing": data.preprocessing,
    }
    torch.save(checkpoint, "net.ckpt")
    torch.save({**checkpoint, "state_dict": {k: 0 * v for k, v in checkpoint["state_dict"].items()}}, "zero.ckpt")
    Path("a.csv").write_bytes(text_bytes(events_of(1000, 0), "txyp", ","))
    Path("b.csv").write_bytes(text_bytes(events_of(700, 1), "txyp", ","))
    Path("d.csv").write_bytes(text_bytes(events_of(700, 1), "txyp", ",", header=False))
    Path("c.aedat").write_bytes(aedat2_bytes(events_of(1000, 0)))


@pytest.fixture
def reported():
    """Four runs in `runs`, and one in `others`."""
    write_run(Path("runs/a"), seed=1)
    write_run(Path("runs/b"), (0.5, 0.6, 0.8), seed=2)
    write_run(Path("runs/c"), (0.5, 0.6, 0.9), seed=1, neuron="lif")
    write_run(Path("runs/d"), validation="holdout", test=0.7, seed=1)
    write_run(Path("others/e"), (0.1, 0.2, 0.3), seed=7, init_tau=16.0)


# (command, option): a call without it and with it, which differ in what is printed, or in the files that `made` names.
STREAM = ["stream", "--ckpt_path", "net.ckpt", "--file", "a.csv"]
DRAWN = ["figures", "--recording", "a.csv"]
BY_EVENTS = [*STREAM, "--events_per_step", "100"]
TABLES = ["tables", "--only", "runs"]
PRINTED = {
    ("stream", "--file"): ("streamed", BY_EVENTS, [*STREAM[:-1], "b.csv", *BY_EVENTS[-2:]]),
    ("stream", "--ckpt_path"): ("streamed", STREAM, ["stream", "--ckpt_path", "zero.ckpt", "--file", "a.csv"]),
    ("stream", "--events_per_step"): ("streamed", STREAM, [*STREAM, "--events_per_step", "100"]),
    ("stream", "--ms_per_step"): ("streamed", STREAM, [*STREAM, "--ms_per_step", "50"]),
    ("figures", "--time_unit"): ("streamed", DRAWN, [*DRAWN, "--time_unit", "ns"]),
    ("stream", "--last"): ("streamed", STREAM, [*STREAM, "--last", "1"]),
    ("stream", "--sensor"): ("streamed", STREAM, [*STREAM, "--sensor", "512", "512"]),
    ("stream", "--quiet"): ("streamed", STREAM, [*STREAM, "--quiet"]),
    ("stream", "-q"): ("streamed", STREAM, [*STREAM, "-q"]),
    ("cost", "--samples"): ("run", ["cost", "--ckpt_path", BEST], ["cost", "--ckpt_path", BEST, "--samples", "3"]),
    ("cost", "--ckpt_path"): ("run", ["cost", "--ckpt_path", BEST], ["cost", "--ckpt_path", "missing.ckpt"]),
    ("runs", "--runs"): ("reported", ["runs"], ["runs", "--runs", "others"]),
    ("runs", "--compare"): ("reported", ["runs"], ["runs", "--compare", "a", "c"]),
    ("tables", "--runs"): ("reported", TABLES, [*TABLES, "--runs", "others"]),
    ("tables", "--only"): ("reported", TABLES, ["tables", "--only", "2"]),
    ("tables", "--baseline"): ("reported", TABLES, [*TABLES, "--baseline", "model.neuron=lif"]),
    ("tables", "--show_runs"): ("reported", TABLES, [*TABLES, "--show_runs"]),
    ("sweep", "file"): ("run", ["sweep", "table4", "--dry-run"], ["sweep", "table5", "--dry-run"]),
    ("sweep", "--runs"): (
        "run", ["sweep", "table4", "--dry-run"], ["sweep", "table4", "--dry-run", "--runs", "elsewhere"],
    ),
    ("sweep", "--index"): ("run", ["sweep", "table4", "--dry-run"], ["sweep", "table4", "--dry-run", "--index", "1/3"]),
    ("sweep", "--grid"): (
        "run", ["sweep", "table4", "--dry-run"], ["sweep", "table4", "--dry-run", "--grid", "seed_everything=7"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("command", "option"), PRINTED)
def test_an_option_changes_what_its_command_prints(command, option, request, said):
    fixture, without, with_option = PRINTED[command, option]
    request.getfixturevalue(fixture)
    timing = re.compile(r"Latency of a sample.*?\n(?:.*\)\.\n)?")
    first, second, again = (
        (status, timing.sub("", out)) for status, out in (said(*without), said(*with_option), said(*without))
    )
    assert first == again
    assert first != second


# (command, option): a call with it, and a file that it makes, with a text in it.
MADE = {
    ("export", "--ckpt_path"): ("run", ["export", "--ckpt_path", BEST, "--out", "x"], "x/export.json", "best.ckpt"),
    ("export", "--out"): ("run", ["export", "--ckpt_path", BEST, "--out", "y"], "y/network.ckpt", None),
    ("export", "--format"): (
        "run", ["export", "--ckpt_path", BEST, "--out", "x", "--format", "nir"], "x/network.nir", None,
    ),
    ("export", "--license"): (
        "run",
        ["export", "--ckpt_path", BEST, "--out", "x", "--format", "pretrained", "--license", "mit"],
        "x/README.md", "license: mit",
    ),
    ("export", "--input"): (
        "run", ["export", "--ckpt_path", BEST, "--out", "x", "--input", "frames"], "x/export.json", '"N",',
    ),
    ("cost", "--out"): ("run", ["cost", "--ckpt_path", BEST, "--out", "cost.csv"], "cost.csv", "layer,firing [%]"),
    ("runs", "--out"): ("reported", ["runs", "--out", "all.csv"], "all.csv", "model.neuron"),
    ("tables", "--out"): ("reported", [*TABLES, "--out", "out"], "out/tableruns.csv", "a b"),
    ("tables", "--results"): ("reported", [*TABLES, "--results", "published.jsonl"], "published.jsonl", '"run": "c"'),
    ("figures", "--runs"): ("reported", ["figures", "--runs", "others", "--only", "6"], "figures/figure6.png", None),
    ("figures", "--out"): ("reported", ["figures", "--only", "6", "--out", "here"], "here/figure6.pdf", None),
    ("figures", "--only"): ("reported", ["figures", "--only", "7"], "figures/figure7.png", None),
    ("figures", "--columns"): (
        "streamed", ["figures", "--recording", "d.csv", "--out", "here", "--columns", "t", "x", "y", "p"], "here", None,
    ),
    ("figures", "--recording"): ("streamed", ["figures", "--recording", "c.aedat", "--out", "here"], "here", None),
    ("report", "--runs"): ("reported", ["report", "--runs", "others"], "report.html", "e</summary>"),
    ("report", "--out"): ("reported", ["report", "--out", "page.html"], "page.html", "<html"),
}  # fmt: skip


@pytest.mark.parametrize(("command", "option"), MADE)
def test_an_option_makes_the_file_that_its_row_names(command, option, request, said):
    fixture, call, path, text = MADE[command, option]
    request.getfixturevalue(fixture)
    assert not Path(path).exists()
    assert said(*call)[0] == 0
    assert Path(path).exists()
    assert text is None or text in Path(path).read_text("utf-8")
    if Path(path).is_dir():
        assert {file.suffix for file in Path(path).iterdir()} == {".pdf", ".png"}


def test_prepare_takes_its_data_set_from_each_option(said):
    write_image_folder(Path("pets"))
    named = ["--data.root=pets", "--data.size=8"]
    Path("mine.yaml").write_text("data: {class_path: ImageFolder, init_args: {root: pets, size: 8}}")
    said("prepare", "--data", "ImageFolder", *named)  # which decodes them
    first = said("prepare", "--data", "ImageFolder", *named)
    assert first[0] == 0
    assert "18" in first[1]  # images
    for call in (["--config", "mine.yaml"], ["-c", "mine.yaml"]):
        assert said("prepare", *call) == first
    verified = said("prepare", "-c", "mine.yaml", "--verify", "true")
    assert (verified[0], verified != first, "checksums" in verified[1]) == (0, True, True)


# Options that other tests take away from their defaults.
ELSEWHERE = {
    ("check", "--device"): "cli/test_check.py::test_check_compares_a_device_and_writes_the_page",
    ("check", "--report"): "cli/test_check.py::test_check_compares_a_device_and_writes_the_page",
    ("cost", "--data.root"): "cli/test_deploy.py::test_cost_is_a_table_and_a_file",
    ("export", "--round_delays"): "deploy/test_export.py::test_the_command_line_rounds_delays",
    ("stream", "--columns"): "cli/test_deploy.py::test_a_stream_names_columns_and_unit_itself",
    ("stream", "--time_unit"): "cli/test_deploy.py::test_a_stream_names_columns_and_unit_itself",
    ("stream", "--every_ms"): "cli/test_deploy.py::test_a_pipe_is_decided_on_a_clock_in_silence_too",
    ("stream", "--number"): "cli/test_sequences.py::test_words_of_ones_own_are_trained_compared_and_streamed",
    ("stream", "--engine"): "cli/test_options.py::test_the_engine_of_a_stream_has_its_weights",
    ("sweep", "--jobs"): "cli/test_options.py::test_jobs_run_at_once",
    ("sweep", "--dry-run"): "cli/test_sweep.py::test_the_shares_of_a_grid_are_all_of_it_once",
    ("sweep", "--cap"): "cli/test_sweep.py::test_search_runs_as_many_trials_as_asked",
    ("sweep", "--seed"): "cli/test_sweep.py::test_a_seed_gives_the_same_parameters_whichever_process_asks",
    ("prepare", "--config"): "cli/test_options.py::test_prepare_takes_its_data_set_from_each_option",
    ("prepare", "-c"): "cli/test_options.py::test_prepare_takes_its_data_set_from_each_option",
    ("prepare", "--data"): "cli/test_options.py::test_prepare_takes_its_data_set_from_each_option",
    ("prepare", "--verify"): "cli/test_options.py::test_prepare_takes_its_data_set_from_each_option",
}


def test_every_option_of_a_command_has_a_row():
    own = {name for name, command in COMMANDS.items() if command.module is not None}
    silent = {"--data.help", "--print_config"}  # which only show something
    found = {(name, option) for name in own for options in options_of(name) for option in options} - {
        (name, option) for name in own for option in silent
    }
    assert found == PRINTED.keys() | MADE.keys() | ELSEWHERE.keys()
    for place in {*ELSEWHERE.values(), *OF_FIT.values()}:
        file, name = place.split("::")
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(), place


def test_the_engine_of_a_stream_has_its_weights(streamed, monkeypatch):
    from plif_lightning.deploy import StreamingNetwork

    engines = []
    begin = StreamingNetwork.__init__

    def noted(self, *arguments, engine, **named):
        engines.append(engine)
        begin(self, *arguments, engine=engine, **named)

    monkeypatch.setattr(StreamingNetwork, "__init__", noted)
    for engine in ("int8", "float32"):
        main([*STREAM, "--engine", engine, "-q"])
    assert engines == ["int8", "float32"]


def test_jobs_run_at_once(monkeypatch):
    from plif_lightning.cli import sweep

    numbers = []
    monkeypatch.setattr(sweep, "Runner", lambda *arguments, **named: numbers.append((arguments, named)) or exit(0))
    Path("s.yaml").write_text(
        "program: main.py\nmethod: grid\nmetric: {name: val/acc, goal: maximize}\n"
        "parameters: {seed_everything: {values: [1, 2]}}\ncommand: ['${program}', fit, '${args}']\n"
    )
    for jobs in ("1", "2"):
        with pytest.raises(SystemExit):
            main(["sweep", "s.yaml", "--jobs", jobs])
    assert numbers[0] != numbers[1]


# --- fit, validate, test, predict

# Option of `fit` beside network, data and Trainer, and the test that takes it away from its default.
OF_FIT = {
    "config": "test_configs.py::test_a_complete_config_parses_with_the_papers_settings",
    "seed_everything": "cli/test_options.py::test_options_of_a_fit_change_its_files",
    "run_folder": "cli/test_options.py::test_options_of_a_fit_change_its_files",
    "task": "cli/test_own_task.py::test_a_task_of_ones_own_has_a_whole_life",
    "record_samples": "cli/test_options.py::test_options_of_a_fit_change_its_files",
    "test_after_fit": "cli/test_options.py::test_options_of_a_fit_change_its_files",
    "best_of_ties": "cli/test_resume.py::test_of_equal_accuracies_the_first_or_the_last_is_best_after_a_resume_too",
    "accept_edited_code": "cli/test_networks.py::test_edited_code_is_neither_averaged_nor_resumed",
    "stop_after_step": "cli/test_options.py::test_options_of_a_fit_change_its_files",
    "engine": "cli/test_networks.py::test_user_defined_network_trains_tests_exports_and_resumes",
    "ckpt_path": "cli/test_resume.py::test_a_new_run_begins_from_a_checkpoint_with_whatever_differs",
    "checkpoint.every_n_batches": "cli/test_options.py::test_options_of_a_fit_change_its_files",
}


def test_every_option_of_fit_has_a_row():
    found = []

    def stop(self, parser, arguments):
        found.extend(a.dest for a in self.run_parser._actions)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlifCLI, "parse_arguments", stop)
        with pytest.raises(SystemExit):
            main(["fit", "--config", QUICKSTART])
    of_commands = [a for a in found if not a.startswith(("model", "data", "trainer", "weights_only"))]
    assert {*of_commands} - {"help", "print_config", "checkpoint", "subcommand", "fit"} == OF_FIT.keys()


def test_options_of_a_fit_change_its_files():
    small = [*TINY, *FEW, "--trainer.max_epochs", "1", "--test_after_fit", "false"]
    fit(*small, "--run_folder", "plain", "--record_samples", "2", "--seed_everything", "1")
    fit(
        *small[:-2], "--run_folder", "other", "--record_samples", "0", "--seed_everything", "2",
        "--test_after_fit", "true",
    )  # fmt: skip
    assert Path("plain/samples.npz").is_file() != Path("other/samples.npz").is_file()
    plain, other = (load(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("plain", "other"))
    assert any(not torch.equal(value, other[name]) for name, value in plain.items())
    records = [yaml.safe_load(Path(name, "run.json").read_text()) for name in ("plain", "other")]
    assert ["test" in record for record in records] == [False, True]
    with pytest.raises(SystemExit):
        fit(*small, "--run_folder", "stopped", "--stop_after_step", "2")
    assert load("stopped/checkpoints/last.ckpt")["global_step"] == 2
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        from plif_lightning.callbacks.checkpoints import CheckpointFiles

        save = CheckpointFiles.save_checkpoint

        def noted(self, checkpoint, *arguments, **named):
            steps.append(checkpoint["global_step"])
            save(self, checkpoint, *arguments, **named)

        patch.setattr(CheckpointFiles, "save_checkpoint", noted)
        fit(*small, "--run_folder", "often", "--checkpoint.every_n_batches", "2")
    assert steps == [2, 3]
