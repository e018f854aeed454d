"""Every command of READMEs and docs is run, or parsed where it is long; every link leads somewhere; the Python runs."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from plif_lightning.cli import main
from tests.cli.calls import SILENT, TINY
from tests.conftest import PATIENCE, REPOSITORY
from tests.examples.tutorials import source
from tests.writers import COST, PAPER, events_of, evt3_bytes, write_file, write_run

READMES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "configs/RESULTS.md", "docs/**/*.md", "tests/README.md")
    for path in REPOSITORY.glob(pattern)
    if not {"_build", "reference"} & set(path.parts)  # written by a build of the docs
)


def commands(path):
    """The indented lines of a README that call something, as lists of words."""
    lines = [line[4:] for line in path.read_text().splitlines() if line.startswith("    ")]
    found = [line for line in lines if re.match(r"(PLIF_\w+=\S+ )?(python|wandb|plif-lightning) ", line)]
    return [part.strip() for line in found for part in line.split("&&")]


ALL = [(path, command) for path in READMES for command in commands(path)]
OF_MAIN = [command for _, command in ALL if re.match(r"(python main\.py|plif-lightning) ", command)]
INLINE = sorted(set(re.findall(r"`(python main\.py [^`]+)`", "\n".join(path.read_text() for path in READMES))))
BENCHMARKS = sorted({word for _, command in ALL for word in command.split() if word.startswith("benchmarks/")})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run's folder, in the place of RUN."""
    folder = tmp_path_factory.mktemp("run") / "RUN"
    main([
        *("fit", "--config", "quickstart", *TINY, *SILENT, "--run_folder", str(folder), "--trainer.max_epochs", "1"),
        *("--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--test_after_fit", "false"),
    ])  # fmt: skip
    return folder


def test_readmes_contain_commands():
    found = [str(path.relative_to(REPOSITORY)) for path in READMES]
    assert {"README.md", "configs/RESULTS.md", "docs/howto/configure.md", "tests/README.md"} <= {*found}
    assert len([path for path in found if path.startswith("docs/")]) >= 20
    assert len(OF_MAIN) >= 40
    assert len(BENCHMARKS) >= 6


def test_places_named_in_contributing_exist():
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    package = REPOSITORY / "plif_lightning"
    paths = {name for name in re.findall(r"`([^`\s]+)`", page) if re.fullmatch(r"[\w/.]+(\.(py|md|jsonl|pyi)|/)", name)}
    folders = [REPOSITORY, package, *(path for path in package.iterdir() if path.is_dir())]
    assert len(paths) > 40
    assert not [name for name in paths if not any((folder / name).exists() for folder in folders)]
    table = re.findall(r"^\| [^|]+ \| ([^|]+) \| [^|]+ \|$", page, re.M)[1:]
    assert len(table) > 5
    for cell in table:
        for place in cell.split(";"):
            named = re.findall(r"`([\w./]+)`", place)
            text = (package / next(name for name in named if name.endswith(".py"))).read_text()
            assert all(name.split(".")[-1] in text for name in named if not re.search(r"/|\.py$", name)), cell
    of_files = re.findall(r"`(\w+)`(?:, \w+,)? (?:of|in)\s+`([\w/]+\.py)`", page)
    assert len(of_files) > 10
    for name, file in of_files:
        path = next(folder / file for folder in (REPOSITORY, package) if (folder / file).exists())
        assert re.search(rf"\b{name}\b", path.read_text()), f"{file} has no {name}"


COMMANDS = [
    pytest.param(command, marks=[pytest.mark.slow] if re.search(r" (export|figures|report) ", command) else [])
    for command in sorted({*OF_MAIN, *INLINE})
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works(command, run, tmp_path, monkeypatch, capsys):
    words = [word.replace("RUN", str(run)).replace("DIR", str(tmp_path)) for word in shlex.split(command)[2:]]
    if command.startswith("plif-lightning"):
        words = shlex.split(command)[1:]
    if "my_neurons" in command:
        shutil.copy(REPOSITORY / "tests/examples/own_neuron.py", tmp_path / "my_neurons.py")
    if "my_task" in command:
        shutil.copy(REPOSITORY / "tests/examples/own_task.py", tmp_path / "my_task.py")
    if "every_epoch" in command:
        monkeypatch.syspath_prepend(REPOSITORY / "tests/examples")
    if "my_losses" in command:
        page = (REPOSITORY / "docs/howto/network.md").read_text()
        imports = (
            "import plif_lightning as pl\nimport torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
        )
        block = re.search(r"```python\n(class Distil.*?)```", page, re.S)
        (tmp_path / "my_losses.py").write_text(imports + block[1])
    if "my_functions" in command:
        page = (REPOSITORY / "docs/tutorials/neuron.md").read_text()
        (tmp_path / "my_functions.py").write_text(re.search(r"# my_functions.py\n(.*?)```", page, re.S)[1])
    if "my_transformer" in command:
        (tmp_path / "my_transformer.py").write_text(source("transformer"))
    if "my_" in command:
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(REPOSITORY)
    name = words[0]
    if {"--help", "--data.help"} & {*words}:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert "usage: " in capsys.readouterr().out
    elif name == "fit" and str(run) not in words and f"{run}/checkpoints/last.ckpt" not in words:
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print_config"])
        assert stop.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["model"]
    elif name == "fit":
        with pytest.raises(SystemExit) as stop:
            main(words)  # there is nothing left to train
        assert stop.value.code == 0
    elif name == "prepare":
        with pytest.raises(SystemExit) as stop:  # it gets as far as to the files, which are not there
            main([*words, "--data.download", "false"])
        assert stop.value.code == 2
        assert ("holds no class folders" if "EventFolder" in words else "is not in") in capsys.readouterr().err
    elif name == "sweep":
        at = words.index("--") if "--" in words else len(words)
        main([*words[:at], "--dry-run", "--runs", str(tmp_path / "runs"), *words[at:]])
    elif name in ("runs", "tables", "figures", "report"):
        write_run(tmp_path / "runs" / "a")
        for neuron in ("plif", "lif"):
            model = {**PAPER, "neuron": neuron}
            write_run(tmp_path / "runs" / neuron, validation="holdout", test=0.7, model=model, cost=COST)
        out = {"runs": "runs.csv", "tables": "tables", "figures": "figures", "report": "report.html"}[name]
        recording = write_file(tmp_path / "hand.raw", evt3_bytes(events_of(500, 0)))
        places = {"configs/results.jsonl": tmp_path / "results.jsonl", "FILE": recording}
        words = [str(places.get(word, word)) for word in words]
        main([*words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / out)])
        assert (tmp_path / out).exists()
    elif name == "export":
        main(words)
        assert (tmp_path / "network.ckpt").is_file()
    elif name == "cost":
        main([*words, "--samples", "2"])
    elif name == "check":  # it gets as far as to the device
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(SystemExit):
            main(words)
        assert "no CUDA device" in capsys.readouterr().err
    elif name == "stream":  # it gets as far as to the run's network, which takes digits
        words = [str(run / "checkpoints/best.ckpt") if word == str(tmp_path) else word for word in words]
        with pytest.raises(SystemExit):
            main(words)
        assert "the network takes 1 x 8 x 8 images" in capsys.readouterr().err
    else:
        assert name in ("test", "validate", "predict")
        if str(tmp_path) in words:
            main(["export", f"--ckpt_path={run}/checkpoints/best.ckpt", f"--out={tmp_path}"])
        main([*words, *SILENT, "--trainer.limit_test_batches", "1", "--trainer.limit_predict_batches", "1"])


@pytest.mark.slow
def test_benchmarks_say_how_they_are_called():
    pytest.importorskip("spikingjelly", reason="test extra `bench`")
    # One process for all: what they import takes seconds.
    code = """
import contextlib, io, json, runpy, sys
said = {}
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, (path, stop.code)
    said[path] = out.getvalue()
print(json.dumps(said))
"""
    call = [sys.executable, "-c", code, *BENCHMARKS]
    done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    for path, said in json.loads(done.stdout).items():
        assert f"python {path}" in said


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        # Pages of the reference are there only after a build, which checks its links itself.
        assert (path.parent / target).exists() or (path.parent / target).parent.name == "reference", target


def test_sweep_files_that_are_named_are_there():
    for _, command in ALL:
        if command.startswith("wandb sweep"):
            assert (REPOSITORY / command.split()[2]).is_file()


def test_the_python_of_the_readme_runs():
    for block in re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})


def test_the_readme_is_short_and_no_measured_table_row_stands_twice():
    assert len((REPOSITORY / "README.md").read_text().split()) <= 450
    rows = [
        line for path in READMES for line in path.read_text().splitlines() if re.match(r"\| .*\d\.\d.*\d\.\d", line)
    ]
    assert len(rows) == len(set(rows))


def test_the_table_of_faults_names_tests_that_are_there():
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", (REPOSITORY / "docs/failures.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert re.search(rf"^def {name}\(", (REPOSITORY / "tests" / file).read_text(), re.MULTILINE), f"{file}::{name}"


def test_paper_is_short_and_its_citations_exist():
    paper = (REPOSITORY / "docs/paper.md").read_text()
    assert len(paper.split()) <= 1000
    entries = re.findall(r"^@\w+\{(\w+),", (REPOSITORY / "docs/paper.bib").read_text(), re.MULTILINE)
    cited = set(re.findall(r"@(\w+)", paper.split("---", 2)[2]))
    assert cited == set(entries)
