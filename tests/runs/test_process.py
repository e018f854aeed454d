"""`command.json`: arguments and environment of a run."""

import json
import subprocess

import pytest

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.process import Resumption, options, write_command
from plif_lightning.runtime import process as surroundings


def read(folder):
    return json.loads(folder.command.read_text())


def test_options_are_read_in_both_forms():
    given = ["fit", "--a", "1", "--b=2=3", "-c", "lif", "--flag", "--d", "-1"]
    assert list(options(given)) == [("a", "1"), ("b", "2=3"), ("config", "lif"), ("flag", ""), ("d", "-1")]


def test_a_resumed_run_keeps_what_started_it_and_adds_what_changed(tmp_path):
    folder = RunFolder(tmp_path)
    write_command(folder, ["fit", "--config", "x"], {"machine": "a", "commit": "1"})
    again = ["fit", "--config", "RUN/config.yaml", "--ckpt_path", "last", "--trainer.gradient_clip_val", "7"]
    write_command(folder, again, {"machine": "b", "commit": "1"}, Resumption(3, {"trainer.gradient_clip_val": 7}))
    changes = [{"step": 3, "settings": {"trainer.gradient_clip_val": 7}}]
    assert read(folder)["arguments"] == ["fit", "--config", "x"]
    assert read(folder)["changes"] == changes
    assert read(folder)["surroundings"] == {"machine": "a, then b", "commit": "1"}
    write_command(folder, again[:5], {"machine": "b"}, Resumption(5, {}, {"trainer.max_epochs": 9}))
    assert read(folder)["changes"] == changes
    assert read(folder)["arguments"] == ["fit", "--config", "x", "--trainer.max_epochs=9"]
    assert read(folder)["surroundings"] == {"machine": "a, then b", "commit": "1"}
    write_command(folder, ["fit"], {"machine": "c"})
    assert read(folder)["surroundings"] == {"machine": "c"}
    assert "changes" not in read(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"arguments": ["fit"], "surroundings": null}'])
def test_a_record_that_cannot_be_read_is_written_anew(content, tmp_path):
    folder = RunFolder(tmp_path)
    folder.command.write_text(content)
    write_command(folder, ["fit", "--config", "x"], {"machine": "b"}, Resumption(1))
    assert read(folder)["surroundings"] == {"machine": "b"}


def test_the_commit_is_that_of_the_projects_own_checkout_and_says_what_is_not_in_it(tmp_path, monkeypatch):
    package = tmp_path / "plif_lightning"
    package.mkdir()
    monkeypatch.setattr(surroundings, "_PACKAGE", package)

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert surroundings.commit() is None
    git("init", "-q")
    (package / "__init__.py").write_text("")
    assert surroundings.commit() is None  # an installed package inside the checkout of another project
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "--short=12", "HEAD")
    assert surroundings.commit() == head
    (tmp_path / "configs").mkdir()
    (tmp_path / "notes.txt").write_text("which change nothing")
    assert surroundings.commit() == head
    (tmp_path / "configs" / "new.yaml").write_text("a: 1")
    assert surroundings.commit() == f"{head}-dirty"


def test_surroundings_name_processor_cores_and_versions():
    found = surroundings.surroundings("1 x H100")
    assert found["machine"].endswith(", 1 x H100")
    assert "core" in found["machine"]
    assert {part.split()[0] for part in found["versions"].split(", ")} == {
        "Python",
        "torch",
        "lightning",
        "numba",
        "numpy",
    }
