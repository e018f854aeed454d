"""What a run notes of the machine it runs on."""

import subprocess

from plif_lightning.runtime import process as surroundings


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
