"""Tables and figures without what they need: each says so, none ends in an error of its own."""

import pytest

from plif_lightning.analysis.figures import FIGURES, NoDataError, drawn, write_figures
from plif_lightning.analysis.frame import read_runs
from plif_lightning.analysis.layers import layer_table
from plif_lightning.analysis.leaderboard import comparison_table, gains_table, leaderboard_table, standings
from plif_lightning.analysis.measured import measured_table
from plif_lightning.analysis.report import write_report
from plif_lightning.analysis.tables import PAPER_TABLES, tau_table
from plif_lightning.runs.published import add_published, read_published
from plif_lightning.runs.run import find_runs
from tests.writers import write_run

# Of single neurons, without runs.
ALONE = ("1b", "2", "5b")


@pytest.fixture(params=["none", "unfinished", "untested", "without metrics"])
def runs(request, tmp_path):
    """Runs from which nothing can be averaged."""
    if request.param == "none":
        return []
    settings = {"validation": "holdout"} if request.param == "untested" else {"finished": request.param != "unfinished"}
    folder = write_run(tmp_path / "runs/a", layers=(), **settings)
    if request.param == "without metrics":
        folder.metrics.unlink()
    for path in (folder.weights, folder.samples):
        path.unlink(missing_ok=True)
    return find_runs(tmp_path / "runs")


def test_tables_of_runs_without_results_have_no_rows_of_theirs(runs):
    for table in (
        comparison_table(runs),
        leaderboard_table(runs),
        gains_table(runs),
        layer_table(runs),
        tau_table(runs),
    ):
        assert table.rows == []
        assert table.columns
    assert measured_table(runs).rows == []
    assert standings(runs) == []
    for table in (PAPER_TABLES[name](runs) for name in ("2", "4", "5", "S2")):
        assert len(table.rows) == {"2": 6, "4": 16, "5": 8, "S2": 6}[table.name]
        ours = table.columns.index("ours")
        assert {row[ours] for row in table.rows} == {""}
        assert not table.has_runs
    if runs:
        reasons = " ".join(comparison_table(runs).notes)
        assert "Left out, because" in reasons or runs[0].status == "finished"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_without_its_data_says_so(name, runs):
    if name in ALONE:
        assert drawn(name, runs)[1]
        return
    if name == "6" and runs and runs[0].metrics:
        assert drawn(name, runs)[1]  # curves of what was validated
        return
    with pytest.raises(NoDataError) as error:
        drawn(name, runs)
    assert "cannot be drawn" not in str(error.value)  # an error of another kind


def test_files_of_runs_without_results_are_written(runs, tmp_path, capsys):
    assert write_figures(runs, tmp_path / "figures", ["7"]) != 0
    assert "7" in capsys.readouterr().err
    if not runs:
        return
    write_report(runs, tmp_path / "report.html")
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")
    assert len(read_runs(tmp_path / "runs")) == 1
    assert add_published(tmp_path / "published.jsonl", runs) == read_published(tmp_path / "published.jsonl") == []
