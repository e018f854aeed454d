"""What a run notes of the machine it runs on."""

import subprocess

from plif_lightning.runtime import process as surroundings


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


def test_commit_describes_this_checkout_and_its_changes(tmp_path, monkeypatch):
    package = tmp_path / "plif_lightning"
    package.mkdir()
    monkeypatch.setattr(surroundings, "_PACKAGE", package)

    def git(*arguments):
        call = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    assert surroundings.commit() is None
    git("init", "-q")
    git("commit", "-qm", "of another project", "--allow-empty")
    (package / "__init__.py").write_text("")
    assert surroundings.commit() is None  # an installed package inside its checkout
    git("add", ".")
    git("commit", "-qm", "ours")
    head = git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "notes.txt").write_text("which change nothing")
    assert surroundings.commit() == head
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "new.yaml").write_text("a: 1")
    assert surroundings.commit() == f"{head}-dirty"
