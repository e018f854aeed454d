"""Renew the tables, the caption and the figure of configs/RESULTS.md after runs were added: python tests/publish.py

First add them: `python main.py tables --runs RUNS --results configs/results.csv`, or for the leaderboard
`configs/leaderboard/results.csv`. The prose is yours to mend; `git diff` shows what it stands beside.
"""

import contextlib
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

if __package__ is None:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from plif_lightning.analysis.figures import drawn, write_figures
from plif_lightning.analysis.leaderboard import gains_table
from plif_lightning.analysis.results import published_runs, read_results, results_table
from plif_lightning.analysis.tables import markdown
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "configs" / "RESULTS.md"
ALL_RUNS = REPOSITORY / "configs" / "results.csv"
LEADERBOARD = REPOSITORY / "configs" / "leaderboard" / "results.csv"
FIGURE = REPOSITORY / ".github" / "leaderboard.png"


def with_table(page: str, heading: str, table: str) -> str:
    """The page with another table in the place of the first one below a heading."""
    above, title, below = page.partition(f"\n## {heading}\n")
    lines = below.split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    last = next(i for i, line in enumerate(lines[first:], first) if not line.startswith("|"))
    return above + title + "\n".join([*lines[:first], *table.splitlines(), *lines[last:]])


def with_caption(page: str, image: str, caption: str) -> str:
    """The page with another paragraph below an image."""
    above, name, below = page.partition(f"{image})\n\n")
    text = textwrap.fill(caption, 130, break_on_hyphens=False, break_long_words=False)
    return above + name + text + below[below.index("\n\n") :]


def renewed(page: str) -> str:
    """The page with the tables and the caption that the tables of results give."""
    runs = published_runs(LEADERBOARD)
    page = with_table(page, "All runs", markdown(results_table(read_results(ALL_RUNS))))
    page = with_table(page, "Leaderboard", markdown(gains_table(runs)))
    return with_caption(page, FIGURE.name, drawn("leaderboard", runs)[1])


def main() -> None:
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        write_figures(published_runs(LEADERBOARD), Path(folder), ["leaderboard"])
        shutil.copy(Path(folder, "figureleaderboard.png"), FIGURE)
    sys.stdout.write(f"{PAGE}\n{FIGURE}\n")


if __name__ == "__main__":
    main()
