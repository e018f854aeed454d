from pathlib import Path

import pytest

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import MetricsTable, layer_values, read_metrics

TABLE = """epoch,step,train/acc,val/acc,tau/conv1,tau/fc1,test/acc
0,40,,0.9,,,
0,76,0.4,0.5,2.0,2.1,
1,153,0.7,0.75,1.9,2.3,
1,154,,,,,0.8
"""


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(TABLE)
    return path


def test_lines_of_an_epoch_are_merged_and_tests_left_out(metrics):
    rows = read_metrics(metrics)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[1] == {"epoch": 1, "step": 153, "train/acc": 0.7, "val/acc": 0.75, "tau/conv1": 1.9, "tau/fc1": 2.3}
    assert layer_values(rows[0], "tau") == {"conv1": 2.0, "fc1": 2.1}


def test_only_the_last_validation_of_an_epoch_counts(metrics):
    """Its weights are in the checkpoint; those within an epoch are logged and select nothing."""
    metrics.write_text(
        "epoch,step,val/acc,rate/conv1,tau/conv1,train/acc\n0,1,0.9,0.5,,\n0,2,0.7,0.6,1.9,0.4\n1,3,0.8,0.5,,\n"
    )
    first, second = read_metrics(metrics)
    assert {name: first[name] for name in ("val/acc", "rate/conv1", "tau/conv1", "train/acc", "step")} == {
        "val/acc": 0.7, "rate/conv1": 0.6, "tau/conv1": 1.9, "train/acc": 0.4, "step": 2,
    }  # fmt: skip
    assert second == {"epoch": 1, "step": 3}  # an epoch that has not ended


def test_two_validations_of_a_step_are_two_rows(tmp_path):
    """Where gradients are accumulated: the second took the place of the first."""
    table = MetricsTable(tmp_path / "metrics.csv")
    for metrics in ({"val/acc": 0.8}, {"val/acc": 0.6, "rate/conv1": 0.6}, {"train/loss": 0.1}):
        table.add({"epoch": 0.0, **metrics}, 4)
    table.save()
    assert len(table.rows) == 2
    (row,) = read_metrics(table.path)
    assert (row["val/acc"], row["rate/conv1"], row["train/loss"]) == (0.6, 0.6, 0.1)


def test_a_line_that_is_no_number_is_named(metrics):
    metrics.write_text(TABLE.replace("0.75", "much"))
    with pytest.raises(
        UserError, match=r"metrics.csv, line 4: every value must be a number .could not convert string to float: 'much'"
    ):
        read_metrics(metrics)


def test_resumed_run_skips_unreadable_metric_lines(metrics, caplog):
    metrics.write_text(TABLE.replace("0,76,0.4", "0,abc,0.4"))
    assert [row["step"] for row in MetricsTable(metrics, before=154).rows] == ["40", "153"]
    said = "line 3: every value must be a number (could not convert string to float: 'abc'). The line is skipped."
    assert f"{metrics}, {said}" in caplog.text
    metrics.write_bytes(b"epoch,step\n\xff\xfe,1\n")
    with pytest.raises(UserError, match=r"cannot be read as a table of metrics: .* Move it away"):
        MetricsTable(metrics, before=154)


def test_without_a_table_there_are_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == []
    (tmp_path / "metrics.csv").mkdir()
    assert read_metrics(tmp_path / "metrics.csv") == []


def test_a_checkpoint_knows_its_run(tmp_path):
    run = RunFolder(tmp_path / "runs" / "version_0")
    assert RunFolder.of_checkpoint(run.best) == run
    assert RunFolder.of_checkpoint(tmp_path / "best.ckpt").path == Path(tmp_path)
