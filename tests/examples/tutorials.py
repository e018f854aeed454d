"""The code of a tutorial that users copy."""

import re
from pathlib import Path
from typing import Any

_TUTORIALS = Path(__file__).parents[2] / "docs/tutorials"


def source(tutorial: str) -> str:
    """The first cell of a tutorial."""
    found = re.search(r"```\{code-cell\}\n(.*?)```", (_TUTORIALS / f"{tutorial}.md").read_text(), re.S)
    assert found is not None
    return found[1]


def cell(tutorial: str) -> dict[str, Any]:
    """The names that the first cell of a tutorial defines."""
    names: dict[str, Any] = {"__name__": tutorial}
    exec(source(tutorial), names)
    return names
