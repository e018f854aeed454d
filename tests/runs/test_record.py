"""`run.json`: what a run is, where it ran and what came of it."""

from plif_lightning.runs.begin import begin
from plif_lightning.runs.command import split_options
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.record import DataRecord, update
from plif_lightning.runs.run import read_run

SETTINGS = {"data": "MNIST", "data.batch_size": 16, "trainer.max_epochs": 2}
DATA = DataRecord("MNIST", content="a", test_content="b")


def read(folder):
    return read_run(folder.path)


def changes(folder):
    return [(change.step, *change[:3]) for change in read(folder).identity.changes]


def test_options_are_read_in_both_forms():
    given = ["--a", "1", "--b=2=3", "-c", "lif", "--flag", "--d", "-1"]
    assert list(split_options(given)) == [("a", "1"), ("b", "2=3"), ("config", "lif"), ("flag", ""), ("d", "-1")]


def test_resumed_run_keeps_its_command_and_drops_results(tmp_path):
    folder = RunFolder(tmp_path)
    begin(folder, ["fit", "--config", "x"], Identity(SETTINGS), DATA, {"machine": "a", "commit": "1"})
    assert read(folder).key == Identity(SETTINGS, data="a b").key
    update(folder, ended=1.0, test=0.9, tested=359, cost={"a": 1}, of_a_callback=3)
    longer = {**SETTINGS, "trainer.max_epochs": 9}
    assert begin(folder, ["fit"], Identity(longer), DATA, {"machine": "b", "commit": "1"}, step=3) == {"machine"}
    again = read(folder)
    assert again.arguments == ["fit", "--config", "x", "--trainer.max_epochs=9"]
    assert (again.surroundings("machine"), again.surroundings("commit")) == ("a, then b", "1")
    assert (again.record.ended, again.test, again.record.tested, again.record.cost, again.record.others) == (
        None,
        None,
        None,
        {},
        {},
    )
    assert changes(folder) == []
    assert again.key == Identity(longer, data="a b").key  # that of a run that was begun with as many epochs


def test_a_run_that_returns_to_its_first_machine_names_every_change(tmp_path):
    folder = RunFolder(tmp_path)
    for step, machine in enumerate("abba"):
        begin(folder, ["fit"], Identity(SETTINGS), DATA, {"machine": machine}, step=step or None)
    assert read(folder).surroundings("machine") == "a, then b, then a"


def test_changing_the_batch_size_on_resume_changes_the_key(tmp_path):
    folder = RunFolder(tmp_path)
    begin(folder, ["fit"], Identity(SETTINGS), DATA, {})
    other = {**SETTINGS, "data.batch_size": 32}
    begin(folder, ["fit"], Identity(other), DATA, {}, step=7)
    assert changes(folder) == [(7, "data.batch_size", 16, 32)]
    assert read(folder).key not in (Identity(SETTINGS, data="a b").key, Identity(other, data="a b").key)
    begin(folder, ["fit"], Identity(other), DATA, {}, step=9)
    assert changes(folder) == [(7, "data.batch_size", 16, 32)]


def test_runs_that_began_with_other_batches_and_end_with_the_same_have_other_keys(tmp_path):
    keys = set()
    for name, size in (("a", 4), ("b", 8)):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        begun = {"data": "Digits", "data.batch_size": size}
        begin(folder, ["fit"], Identity(begun), DATA, {})
        begin(folder, ["fit"], Identity({"data": "Digits"}), DATA, {}, step=50)  # the default
        assert changes(folder) == [(50, "data.batch_size", size, 16)]
        keys.add(read(folder).key)
    assert len(keys) == 2


def test_lengthening_a_cycle_on_resume_changes_the_key(tmp_path):
    """Its learning rates are not those of a run that was begun with as many epochs."""
    folder = RunFolder(tmp_path)
    cycle = {**SETTINGS, "model.lr_scheduler": "OneCycle"}
    begin(folder, ["fit"], Identity(cycle), DATA, {})
    longer = {**cycle, "trainer.max_epochs": 4}
    begin(folder, ["fit"], Identity(longer), DATA, {}, step=7)
    assert changes(folder) == [(7, "trainer.max_epochs", 2, 4)]
    assert read(folder).key != Identity(longer, data="a b").key
