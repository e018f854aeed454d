"""What the package needs, and what is said where a part of it is missing."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from plif_lightning.runtime import program
from plif_lightning.runtime.program import EXTRAS, missing, needed_by
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
# Names of packages that are imported under another one.
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def name_of(requirement):
    return re.split(r"[^\w.-]", requirement)[0]


def test_requirements_txt_is_the_package_and_what_main_py_may_use():
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
    "nir": ("from plif_lightning.deploy.nir import _nir; _nir()", "a NIR graph needs nir"),
    "optuna": ("from plif_lightning.cli.sweep import distribution; distribution('a', {})", "a search needs optuna"),
    "scipy": ("from plif_lightning.cli import main; main(['tables'])", "this command needs scipy"),
    "matplotlib": ("from plif_lightning.cli import main; main(['report'])", "this command needs matplotlib"),
}


@pytest.mark.parametrize(
    "package", ["nir", *(pytest.param(name, marks=pytest.mark.slow) for name in WITHOUT if name != "nir")]
)
def test_each_part_says_what_it_needs(package, tmp_path):
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


def test_workflows_install_what_the_readme_does():
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/tests.yml").read_text())["jobs"]
    commands = " ".join(step.get("run", "") for step in jobs["tests"]["steps"])
    for command in re.search(r"python -m pip install -e .*", (REPOSITORY / "README.md").read_text())[0].split(" && "):
        assert command in commands
