"""What the package needs, and what is said where a part of it is missing."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from plif_lightning.runtime import program
from plif_lightning.runtime.program import EXTRAS, missing, needed_by
from tests import writers
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
# Names of packages that are imported under another one.
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def name_of(requirement):
    return re.split(r"[^\w.-]", requirement)[0]


def test_requirements_match_the_packages_extras():
    lines = (line.split(" #")[0].strip() for line in (REPOSITORY / "requirements.txt").read_text().splitlines())
    wanted = [*PROJECT["dependencies"], *OPTIONAL["wandb"], *OPTIONAL["digits"], *OPTIONAL["report"]]
    wanted += [line for line in OPTIONAL["events"] if name_of(line) != "hdf5plugin"]
    assert sorted(line for line in lines if line and not line.startswith("#")) == sorted(wanted)


def test_every_optional_package_is_in_the_extra_that_is_named_for_it():
    for package, extra in EXTRAS.items():
        assert DISTRIBUTIONS.get(package, package) in map(name_of, OPTIONAL[extra]), package
    of_extras = {name_of(line) for extra in set(EXTRAS.values()) for line in OPTIONAL[extra]}
    assert of_extras == {DISTRIBUTIONS.get(package, package) for package in EXTRAS}


def test_the_extras_of_the_readmes_are_there():
    for path in REPOSITORY.rglob("*.md"):
        for named in re.findall(r"pip install (?:-e )?'(?:plif_lightning|\.)\[([\w,]+)\]'", path.read_text()):
            assert set(named.split(",")) <= set(OPTIONAL), path


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    with pytest.raises(ModuleNotFoundError), needed_by("the data set X"):  # of no extra
        import nowhere_to_be_found  # noqa: F401
    error = ModuleNotFoundError("No module named 'sklearn.datasets'", name="sklearn.datasets")
    assert str(missing(error, "the data set X")) == (
        f"the data set X needs sklearn, which is not installed: {program.installing('digits')}."
    )
    assert program.installing("digits") == "pip install '.[digits]'"
    assert missing(ValueError("x")) is None


# What each part says where its package is missing, in a process that cannot import it.
WITHOUT = {
    "sklearn": ("import plif_lightning as pl; pl.data.Digits().setup()", "the data set Digits needs sklearn"),
    "h5py": ("from plif_lightning.events import read_any; read_any('x.h5')", "a recording in HDF5 needs h5py"),
    "tonic": ("import plif_lightning as pl; pl.data.TonicEvents(name='NMNIST').prepare_data()", "needs tonic"),
    "wandb": ("from plif_lightning.callbacks import WandbRunLogger; WandbRunLogger().experiment", "needs wandb"),
    "nir": ("from plif_lightning.convert.nir import nir_package; nir_package()", "a NIR graph needs nir"),
    "optuna": ("from plif_lightning.cli.search import distribution; distribution('a', {})", "a search needs optuna"),
    "matplotlib": ("from plif_lightning.cli import main; main(['report'])", "report needs matplotlib"),
}


@pytest.mark.parametrize(
    "package", ["nir", *(pytest.param(name, marks=pytest.mark.slow) for name in WITHOUT if name != "nir")]
)
def test_missing_extras_are_named(package, tmp_path):
    code, expected = WITHOUT[package]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['{package}'] = None; {code}"],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert expected in last
    assert last.endswith(f"{program.installing(EXTRAS[package])}.")


def test_the_version_is_the_same_everywhere():
    from plif_lightning import __version__

    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert re.search(r"^## (\S+?),? ", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__


def test_paths_in_workflows_are_there():
    found = set()
    for workflow in (REPOSITORY / ".github/workflows").glob("*.yml"):
        for path in re.findall(r"(?<![$/\w])[\w.-]+/[\w./-]*\.(?:py|toml|md|yaml|txt)\b", workflow.read_text()):
            found.add(path)
            assert (REPOSITORY / path).exists(), (workflow.name, path)
    assert "plif_lightning/version.py" in found


def test_a_release_has_absolute_links_and_addresses(tmp_path):
    steps = yaml.safe_load((REPOSITORY / ".github/workflows/release.yml").read_text())["jobs"]["build"]["steps"]
    (step,) = (step["run"] for step in steps if "Absolute" in step.get("name", ""))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    about = {"GITHUB_REPOSITORY": "owner/name", "GITHUB_REF_NAME": "v1.2.3"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", step], cwd=tmp_path, check=True, env={**os.environ, **about})
    links = re.findall(r"\]\(([^)]+)\)", (tmp_path / "README.md").read_text())
    assert [link for link in links if not link.startswith("https://")] == []
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]
    assert urls.keys() == {"Paper", "Repository", "Documentation", "Changelog"}
    assert urls["Changelog"] == "https://github.com/owner/name/blob/v1.2.3/CHANGELOG.md"


def test_workflows_install_like_the_readme():
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/tests.yml").read_text())["jobs"]
    commands = " ".join(step.get("run", "") for step in jobs["tests"]["steps"])
    for command in re.search(r"python -m pip install -e .*", (REPOSITORY / "README.md").read_text())[0].split(" && "):
        assert command in commands


def test_every_command_works_from_the_bare_wheel_or_names_missing_packages(tmp_path):
    """In a process that cannot import any distribution outside of the wheel's requirements."""
    writers.write_mnist(tmp_path / "data", name="FashionMNIST")
    writers.write_image_folder(tmp_path / "pets")
    for part in ("train/left", "train/right", "test/left"):
        (tmp_path / "hands" / part).mkdir(parents=True)
        writers.write_dsec(tmp_path / "hands" / part / "0.h5", writers.events_of(100, 0))
    few = ["--trainer.max_epochs=1", "--model.channels=4", "--model.fc_features=10", "--data.time_steps=2"]
    few += ["--trainer.enable_progress_bar=false", "--data.root=data"]
    fit = ["fit", "--config", "fashionmnist", *few, "--run_folder"]
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump(SWEEP | {"command": ["${env}", "${interpreter}", "${program}", *fit[:-1], "${args}"]})
    )
    of_best = ["--ckpt_path", "run/checkpoints/best.ckpt"]
    works = [
        ["prepare", "--config", "fashionmnist", "--data.root=data"],
        [*fit, "run"],
        [
            "fit",
            "--data",
            "ImageFolder",
            "--data.root=pets",
            "--data.size=8",
            "--data.validation=test",
            *few[:-1],
            "--model.n_down=1",
            "--run_folder",
            "own",
        ],
        *([name, *of_best] for name in ("validate", "test", "predict", "cost")),
        ["export", *of_best, "--out", "out", "--format", "pt2"],
        ["sweep", "s.yaml"],
        ["tables"],
    ]
    names = {
        "Digits needs sklearn": ["fit", "--config", "quickstart"],
        "NMNIST needs tonic": ["fit", "--config", "nmnist"],
        "CIFAR10DVS needs tonic": ["prepare", "--config", "cifar10dvs"],
        "DVSGesture needs tonic": ["fit", "--config", "dvsgesture"],
        "TonicEvents needs tonic": ["fit", "--data", "TonicEvents", "--data.name", "POKERDVS"],
        "onnx needs onnx": ["export", *of_best, "--out", "o2", "--format", "onnx"],
        "nir needs nir": ["export", *of_best, "--out", "o3", "--format=nir"],
        "pretrained needs safetensors": ["export", *of_best, "--out", "o4", "--format", "pretrained"],
        "figures needs matplotlib": ["figures"],
        "report needs matplotlib": ["report"],
        "a recording in HDF5 needs h5py": [
            "prepare",
            "--data",
            "EventFolder",
            "--data.root",
            "hands",
            "--data.sensor=[128,128]",
        ],
    }
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests/bare.py")], input=json.dumps([*works, *names.values()]),
        capture_output=True, text=True, cwd=tmp_path, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    for argv, (status, error, _) in zip(works, outcomes, strict=False):
        assert (status, error) == (0, ""), argv
    for (name, argv), (status, error, files) in zip(names.items(), outcomes[len(works) :], strict=True):
        assert status == 2, argv
        assert name in error
        assert "pip install" in error
        assert not [path for path in files if not path.startswith("hands/events")], argv


SWEEP = {
    "program": "main.py",
    "method": "grid",
    "parameters": {"seed_everything": {"values": [1, 2]}},
    "metric": {"name": "test_as_val/acc", "goal": "maximize"},
}
