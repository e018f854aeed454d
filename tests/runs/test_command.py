"""The commands that repeat a run."""

import pytest

from plif_lightning.runs.command import commands
from plif_lightning.runs.identity import CODE
from plif_lightning.runs.record import Session
from plif_lightning.runs.run import read_run
from tests.conftest import REPOSITORY
from tests.writers import update, write_run


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("fashionmnist", "fashionmnist"),
        ("configs/fashionmnist.yaml", "fashionmnist"),  # in a checkout that is not here
        (str(REPOSITORY / "configs/fashionmnist.yaml"), "fashionmnist"),
        ("elsewhere/fashionmnist.yaml", "elsewhere/fashionmnist.yaml"),
        ("other.yaml", "other.yaml"),
    ],
)
def test_a_shipped_configuration_is_named_and_a_users_file_stays(tmp_path, monkeypatch, written, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("{}")
    write_run(tmp_path / "runs/a", arguments=("--config", written))
    assert commands(read_run(tmp_path / "runs/a")) == [["fit", "--config", named]]


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ([], 1),
        ([[CODE, {"my": "1"}, {"my": "2"}]], 1),  # no option repeats edited code
        ([["data.batch_size", 16, 32]], 2),
        ([["data.batch_size", 16, 32], [CODE, {"my": "1"}, {"my": "2"}]], 2),
    ],
    ids=["nothing", "code", "an option", "both"],
)
def test_a_resumption_that_changed_an_option_is_a_call_of_its_own(tmp_path, changes, calls):
    folder = write_run(tmp_path / "a")
    first = read_run(tmp_path / "a").record.sessions[0]
    later = Session(step=40, arguments=["fit", "--data.batch_size", "32"], changes=changes)
    update(folder, sessions=[first, later])
    found = commands(read_run(tmp_path / "a"))
    assert [call[0] for call in found] == ["fit"] * calls
    assert [any(word == "--stop_after_step=40" for word in call) for call in found] == [True, False][-calls:]
