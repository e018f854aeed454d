"""Sequences in class folders: read by NumPy and pandas, padded, normalised, trained from the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from plif_lightning.cli import main
from plif_lightning.data import SequenceFolder
from plif_lightning.errors import DataNotFoundError, UserError
from plif_lightning.runs.run import read_run
from tests.cli.calls import SILENT, refused


def sequence(label, seed, steps=9):
    """Three features; the class is which of the first two rises."""
    random = np.random.default_rng(seed)
    values = random.normal(5, 0.5, (steps, 3)).astype(np.float32)
    values[:, label] += np.linspace(0, 8, steps, dtype=np.float32)
    return values


def write(path: Path, values, header=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(values, columns=["a", "b", "c"][: values.shape[1]])
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False, header=header)
    else:
        pytest.importorskip("pyarrow", reason="pandas reads .parquet by it")
        table.to_parquet(path)
    return path


@pytest.fixture
def root(tmp_path):
    for part, number in (("train", 10), ("test", 4)):
        for label, name in enumerate(("fall", "rise")):
            for i in range(number):
                suffix = (".npy", ".csv")[i % 2]
                seed = 100 * label + i + (1000 if part == "test" else 0)
                write(tmp_path / "hands" / part / name / f"{i}{suffix}", sequence(label, seed, 9 - i % 3), i % 4 == 1)
    return tmp_path / "hands"


def made(root, **settings):
    data = SequenceFolder(root=str(root), time_steps=9, **{"validation": "test", **settings})
    data.prepare_data()
    data.setup()
    return data


def test_files_of_each_format_are_the_sequences_that_were_written(root):
    data = made(root, normalize=False)
    assert (data.input_shape, data.class_names, data.num_classes) == ((3,), ("fall", "rise"), 2)
    assert data.sizes() == {"training": 20, "test as val": 8, "test": 8}
    names = data.provenance(train=True)["file"].tolist()
    for name, label, seed in (("train/fall/0.npy", 0, 0), ("train/rise/1.csv", 1, 101), ("train/rise/3.csv", 1, 103)):
        x, found = data.train_set[names.index(name)]
        steps = 9 - seed % 100 % 3
        assert int(found) == label
        np.testing.assert_allclose(x[:steps], sequence(label, seed, steps), rtol=1e-6)
        assert not x[steps:].any()


def test_tables_of_parquet_are_read(root):
    write(root / "train/rise/more.parquet", sequence(1, 7))
    data = made(root, normalize=False)
    names = data.provenance(train=True)["file"].tolist()
    x, _ = data.train_set[names.index("train/rise/more.parquet")]
    np.testing.assert_allclose(x, sequence(1, 7), rtol=1e-6)


def test_features_are_normalised_over_the_training_set_and_ends_are_zero(root):
    data = made(root)
    values = np.concatenate([sequence(label, 100 * label + i, 9 - i % 3) for label in (0, 1) for i in range(10)])
    for train in (True, False):
        x, _ = data.train_set[1] if train else data.test_set[0]
        expected = (sequence(0, 1, 8) if train else sequence(0, 1000)) - values.mean(0, dtype=np.float64)
        expected = expected / values.std(0, dtype=np.float64)
        np.testing.assert_allclose(x[: len(expected)], expected, atol=1e-5)
        assert not x[len(expected) :].any()
    facts = data.preprocessing
    np.testing.assert_allclose(facts["mean"], values.mean(0, dtype=np.float64), rtol=1e-6)
    assert facts["features"] == 3


def test_columns_are_chosen_by_name_and_a_changed_file_is_read_again(root):
    for path in root.rglob("*.npy"):
        write(path.with_suffix(".csv"), np.load(path))
        path.unlink()
    for path in root.rglob("*.csv"):
        write(path, pd.read_csv(path, header=None, skiprows=int(path.read_text()[0] == "a")).to_numpy(np.float32))
    data = made(root, columns=["c", "a"], normalize=False)
    x, _ = data.train_set[0]
    np.testing.assert_allclose(x, sequence(0, 0)[:, [2, 0]], rtol=1e-5)
    before = data.identity()
    write(root / "train/fall/0.csv", sequence(0, 77))
    assert made(root, columns=["c", "a"], normalize=False).identity() != before


def test_cached_sequences_are_enough(root):
    before = made(root)
    for path in root.rglob("*"):
        if path.is_file() and ".plif_lightning" not in path.parts:
            path.unlink()
    for folder in sorted((p for p in root.rglob("*") if p.is_dir() and ".plif_lightning" not in p.parts), reverse=True):
        folder.rmdir()
    again = made(root)
    assert again.class_names == before.class_names
    assert torch.equal(again.test_set[3][0], before.test_set[3][0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((9, 2)), "has 2 columns, but the first sequence, .*0.npy, has 3"),
        (np.zeros(9), r"must hold numbers \[T, F\], got \[9\]"),
        (np.zeros((0, 3)), r"must hold numbers \[T, F\], got \[0, 3\]"),
        (
            np.where(np.arange(27).reshape(9, 3) == 13, np.inf, 0),
            r"2.npy: the number of feature 1 at time-step 4, both",
        ),
        (np.array([["a"] * 3]), "cannot be read as a sequence of numbers"),
        (np.zeros((10, 3)), r"the longest training sequence has 10 steps: pass --data.time_steps 10; shorter ones"),
    ],
)
def test_what_is_no_sequence_is_refused_with_its_file(root, values, message):
    np.save(root / "train/rise/2.npy", values)
    with pytest.raises(UserError, match=message):
        made(root)


def test_a_damaged_file_and_a_missing_folder_are_named(root, tmp_path):
    path = root / "test/rise/0.npy"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"rise/0\.npy cannot be read as a sequence of numbers"):
        made(root)
    with pytest.raises(DataNotFoundError, match="must hold sequences as train/CLASS"):
        made(tmp_path / "nothing")


def test_a_folder_of_ones_own_trains_from_the_command_line(root, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    call = ["fit", "--data", "SequenceFolder", "--data.root", "hands", *SILENT, "--run_folder", "run"]
    call += ["--model.structure", "RFC16-PLIF-FC20-PLIF-APk10s10", "--data.batch_size", "4", "--test_after_fit", "true"]
    assert "has 9 steps: pass --data.time_steps 9" in refused(capsys, *call, "--data.time_steps", "5")
    main([*call, "--data.time_steps", "9", "--trainer.max_epochs", "12", "--model.optimizer.lr", "0.01"])
    assert read_run(Path("run")).test > 0.8
    main(["cost", "--ckpt_path", "run/checkpoints/best.ckpt"])
    assert "fc1.recurrent" in capsys.readouterr().out
    main(["export", "--ckpt_path", "run/checkpoints/best.ckpt", "--out", "out", "--format", "pt2"])
    assert '"features": 3' in Path("out/export.json").read_text()
    caplog.clear()
    main(["test", "--ckpt_path", "run/checkpoints/best.ckpt", *SILENT])
    assert "is normalised by another" not in caplog.text
    shutil.copytree("hands", "other", ignore=shutil.ignore_patterns(".plif_lightning"))
    for path in Path("other/train").glob("*/*.npy"):
        np.save(path, 10 * np.load(path))
    assert json.loads(Path("out/export.json").read_text())["preprocessing"]["columns"] == ["a", "b", "c"]
    main(["test", "--ckpt_path", "run/checkpoints/best.ckpt", "--data.root", "other", *SILENT])
    assert "The data is normalised by another mean and std than in training" in caplog.text
    for path in Path("other").glob("t*/*/*.*"):
        write(path.with_suffix(".npy"), np.ones((9, 2)))
        path.unlink() if path.suffix == ".csv" else None
    said = refused(capsys, "test", "--ckpt_path", "run/checkpoints/best.ckpt", "--data.root", "other", *SILENT)
    assert "is not read as the checkpoint's network learned it" in said
    assert "2 features" in said


def test_tables_are_read_in_the_order_of_the_first_ones_names(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    for name in ("a", "b"):
        for part in ("train", "test"):
            write(tmp_path / part / name / "0.csv", values)
    table = pd.DataFrame(values, columns=["a", "b", "c"])
    table[["c", "b", "a"]].to_csv(tmp_path / "train/b/1.csv", index=False)
    data = SequenceFolder(root=str(tmp_path), time_steps=4, validation="test", normalize=False)
    for x, _ in (data.prepare_data(), data.setup(), data.train_set)[-1]:
        np.testing.assert_allclose(x, values)
    table.rename(columns={"c": "d"}).to_csv(tmp_path / "train/b/2.csv", index=False)
    with pytest.raises(UserError, match=r"2\.csv cannot be read .*\(no column c among a, b, d\)"):
        SequenceFolder(root=str(tmp_path), time_steps=4).prepare_data()


def test_a_first_row_with_an_empty_field_is_no_line_of_names(tmp_path):
    for name in ("a", "b"):
        for part in ("train", "test"):
            path = write(tmp_path / part / name / "0.csv", np.ones((3, 2), np.float32))
    path.write_text("1.0,\n1.0,2.0\n")
    with pytest.raises(UserError, match="of feature 1 at time-step 0"):
        SequenceFolder(root=str(tmp_path), time_steps=4).prepare_data()


@pytest.mark.parametrize(
    "settings",
    [{"index": False}, {}, {"sep": ";", "decimal": ",", "index": False}, {"sep": ";", "header": ["x", "y"]}],
    ids=str,
)
def test_a_csv_of_pandas_is_the_table_that_was_written(settings, tmp_path):
    """Names that pandas gives columns without any are no row, and its index is no feature."""
    values = np.arange(8, dtype=np.float32).reshape(4, 2) + 0.5
    for name in ("a", "b"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
            pd.DataFrame(values).to_csv(tmp_path / part / name / "0.csv", **settings)
    data = SequenceFolder(root=str(tmp_path), time_steps=4, validation="test", normalize=False)
    for x, _ in (data.prepare_data(), data.setup(), data.train_set)[-1]:
        np.testing.assert_allclose(x, values)


def test_a_class_without_test_samples_is_named(root, caplog):
    shutil.rmtree(root / "test/rise")
    made(root)
    assert "test has no rise" in caplog.text
