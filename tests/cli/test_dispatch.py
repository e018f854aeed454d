"""Which command answers, help, names of configurations, and the installed copy."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from plif_lightning.cli import main
from plif_lightning.cli.dispatch import COMMANDS
from tests.cli.calls import SILENT, TINY, refused
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_missing_command_lists_all_commands(arguments, capsys):
    main(arguments)
    out = capsys.readouterr().out
    assert "usage: " in out
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", out, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["--help"], ["tables", "--help"], ["stream", "--help"], ["sweep", "--help"]])
def test_help_is_short_and_loads_no_torch(arguments):
    code = (
        "import atexit, sys; from plif_lightning.cli import main; "
        "atexit.register(lambda: sys.stderr.write(' '.join({'torch', 'lightning'} & sys.modules.keys()))); "
        f"main({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stderr == ""
    assert 5 < len(done.stdout.splitlines()) <= 45
    assert arguments[0] in done.stdout or arguments == ["--help"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--help"], ["--model.v_threshold", "--trainer.max_epochs", "--checkpoint.every_n_batches", "--run_folder"]),
        (["--data.help", "NMNIST"], ["--data.slicing", "downsample frames to size x size pixels"]),
    ],
)
def test_fit_help_lists_its_and_the_data_sets_arguments(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in named:
        assert text in out


def test_an_error_ends_in_sys_exit_where_wandb_reads_the_status_of_its_run(monkeypatch):
    """Found with W&B's agent: runs that had failed or been killed were finished ones there."""
    statuses = []
    monkeypatch.setattr(sys, "exit", statuses.append)
    main(["fti"])
    assert statuses == [2]


@pytest.mark.parametrize(("name", "near"), [("fti", "fit"), ("table", "tables"), ("reprot", "report")])
def test_an_unknown_command_names_the_nearest(name, near, capsys):
    assert f"unknown command {name}. Did you mean {near}?" in refused(capsys, name)


def test_configurations_resolve_by_name_from_any_folder(capsys):
    main(["fit", "--config", "quickstart", "--config=lif", *TINY, *SILENT, "--trainer.fast_dev_run", "1"])
    assert "{c6k3s1-BN-LIF-MPk2s2}*2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quikstart", "there is no configuration quikstart. Did you mean quickstart?"),
        ("nowhere.yaml", "there is no configuration nowhere.yaml. Give the path of a file, or one of cifar10,"),
        (".", "is a folder"),
    ],
)
def test_a_configuration_that_is_none_is_named(name, expected, capsys):
    for command in ("fit", "prepare"):
        assert expected in refused(capsys, command, "--config", name)


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """What `pip install .` would put into site-packages."""
    pytest.importorskip("hatchling", reason="test extra `dev`")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site-packages")
    return folder / "site-packages"


def run_installed(installed, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "from plif_lightning.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_an_installed_copy_has_every_configuration_the_licence_and_the_console_script(installed):
    def below(folder):
        return {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")}

    assert below(installed / "plif_lightning" / "_configs") == below(REPOSITORY / "configs")
    assert (installed / "plif_lightning" / "py.typed").is_file()
    assert (installed / "plif_lightning" / "__init__.pyi").is_file()
    assert (installed / "plif_lightning" / "analysis" / "report.html").is_file()
    facts = next(installed.glob("*.dist-info"))
    assert "plif-lightning = plif_lightning.cli:main" in (facts / "entry_points.txt").read_text()
    assert list(facts.rglob("LICENSE"))


@pytest.mark.slow
def test_an_installed_copy_trains_by_name_with_the_papers_settings_under_it(installed):
    done = run_installed(installed, "fit", "--config", "fashionmnist", "--print_config")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["trainer"]["max_epochs"] == 1024
    assert config["model"]["lr_scheduler"]["init_args"]["T_max"] == 64
    brief = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
    # Its kernels would be compiled anew, beside other copies' compiled code.
    brief += ["--record_samples", "0", "--test_after_fit", "false", "--model.backend", "reference"]
    done = run_installed(installed, "fit", "--config", "quickstart", *TINY, *SILENT, *brief)
    assert done.returncode == 0, done.stderr
    assert "plif-lightning test --ckpt_path" in done.stdout
    assert Path("runs/quickstart/version_0/checkpoints/best.ckpt").is_file()
