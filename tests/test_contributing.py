"""CONTRIBUTING.md names files, and names in them, that exist."""

import re

import pytest

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
FILES = sorted(set(re.findall(r"`([\w./]+\.(?:pyi?|md|yaml|toml))`", TEXT)))
# `NAME` of `FILE`, `NAME` in `FILE`
NAMES = sorted(set(re.findall(r"`(\w+)`(?:, \w+,)? (?:of|in)\s+`([\w/]+\.py)`", TEXT)))


def file_of(name):
    """The file of a name: from the root, or from the package."""
    found = [folder / name for folder in (REPOSITORY, REPOSITORY / "plif_lightning") if (folder / name).is_file()]
    assert found, f"CONTRIBUTING.md names {name}, which is not there"
    return found[0]


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_contributors_page_exist(name):
    file_of(name)


@pytest.mark.parametrize(("name", "file"), NAMES)
def test_names_of_the_contributors_page_are_in_their_files(name, file):
    assert re.search(rf"\b{name}\b", file_of(file).read_text("utf-8")), f"{file} has no {name}"


def test_the_page_names_places():
    assert len(FILES) > 25
    assert len(NAMES) > 10
