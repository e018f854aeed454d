"""Data of one's own at the command line."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from plif_lightning.cli import main
from plif_lightning.events import read_any
from tests import writers
from tests.cli.calls import FEW, SILENT, TINY, refused, resume, rows

SMALL = [*TINY, *FEW, *SILENT, "--model.n_down", "1", "--trainer.max_epochs", "1", "--data.batch_size", "4"]
SMALL += ["--data.validation", "test"]  # few files


def kinds(tmp_path):
    writers.write_image_folder(tmp_path / "pets")
    writers.write_event_folder(tmp_path / "hands")
    writers.write_pokerdvs(tmp_path / "tonic")
    flip = '{"class_path": "tonic.transforms.RandomFlipLR", "init_args": {"sensor_size": [35, 35, 2]}}'
    return {
        "ImageFolder": ["--data.root", "pets", "--data.augmentation+=torchvision.transforms.v2.RandomHorizontalFlip"],
        "EventFolder": ["--data.root", "hands", "--data.sensor", "[128,128]", "--data.size", "16"],
        "TonicEvents": [
            *("--data.name", "POKERDVS", "--data.root", "tonic", "--data.download", "false"),
            f"--data.augmentation=[{flip}]",
        ],
    }


@pytest.mark.parametrize("kind", ["ImageFolder", "EventFolder", "TonicEvents"])
def test_a_network_is_trained_tested_and_taken_up_again(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr("tonic.datasets.POKERDVS._check_exists", lambda self: True)  # of these few recordings
    settings = kinds(tmp_path)[kind]
    main(["prepare", "--data", kind, *settings, "--data.validation", "test"])
    main(
        [
            "fit",
            "--data",
            kind,
            *settings,
            *SMALL,
            "--run_folder",
            "here",
            "--data.validation",
            "holdout",
            "--data.holdout_fraction",
            "0.5",
        ]
    )
    assert float(rows("here/metrics.csv")[-1]["epoch"]) == 0
    capsys.readouterr()
    main(["test", "--ckpt_path", "here/checkpoints/best.ckpt"])
    assert "accuracy" in capsys.readouterr().out
    resume("here", "--trainer.max_epochs", "2")
    main(["tables", "--runs", ".", "--only", "S2"])
    title = {"ImageFolder": "pets", "EventFolder": "hands", "TonicEvents": "POKERDVS of tonic"}[kind]
    assert title in capsys.readouterr().out


def test_a_checkpoint_knows_its_classes_and_its_scale(tmp_path, capsys):
    writers.write_image_folder(tmp_path / "pets")
    main(["fit", "--data", "ImageFolder", "--data.root", "pets", *SMALL, "--run_folder", "here"])
    checkpoint = ["--ckpt_path", "here/checkpoints/best.ckpt"]
    main(["test", *checkpoint])
    main(["predict", *checkpoint])
    found = {(row["label"], row["label name"]) for row in rows("here/predict/predictions.csv")}
    assert found == {("0", "cat"), ("1", "dog"), ("2", "owl")}
    for part in ("train", "test"):
        (tmp_path / "pets" / part / "cat").rename(tmp_path / "pets" / part / "zebra")
    for command in ("test", "predict", "validate"):
        message = refused(capsys, command, *checkpoint)
        assert "is not read as the checkpoint's network learned it" in message
        assert "classes dog, owl, zebra; it learned" in message


def test_predictions_name_the_file_and_the_window(tmp_path):
    writers.write_image_folder(tmp_path / "pets")
    main(["fit", "--data", "ImageFolder", "--data.root", "pets", *SMALL, "--run_folder", "images"])
    writers.write_event_folder(tmp_path / "hands")
    cut = ["--data.sensor", "[128,128]", "--data.size", "16", "--data.window_events", "120"]
    main(["fit", "--data", "EventFolder", "--data.root", "hands", *cut, *SMALL, "--run_folder", "events"])
    for run in ("images", "events"):
        main(["predict", "--ckpt_path", f"{run}/checkpoints/best.ckpt"])
    table = rows("images/predict/predictions.csv")
    assert len(table) == len({row["file"] for row in table})
    for row in table:
        assert (tmp_path / "pets" / row["file"]).is_file()
        assert Path(row["file"]).parts[:2] == ("test", row["label name"])
    table = rows("events/predict/predictions.csv")
    assert len(table) == 300 // 120 + 500 // 120
    for file in {row["file"] for row in table}:
        own = [row for row in table if row["file"] == file]
        assert Path(file).parts[:2] == ("test", own[0]["label name"])
        t = read_any(tmp_path / "hands" / file).t
        expected = [(t[at] - t[0], t[at + 119] - t[0]) for at in range(0, len(t) - 119, 120)]
        assert [(int(row["first event [us]"]), int(row["last event [us]"])) for row in own] == expected


def test_a_test_on_other_images_is_no_result_of_the_run(tmp_path, caplog):
    """Found by a review: the accuracy on a shifted test set took the place of the run's."""
    writers.write_image_folder(tmp_path / "pets")
    holdout = ["--data.validation", "holdout", "--data.holdout_fraction", "0.5"]
    main(["fit", "--data", "ImageFolder", "--data.root", "pets", *SMALL, *holdout, "--run_folder", "here"])
    result = Path("here/run.json")
    before = result.read_text()
    best = ["test", "--ckpt_path", "here/checkpoints/best.ckpt", *SILENT, "--data.root"]
    for place in ("moved", "shifted"):
        shutil.copytree(tmp_path / "pets", tmp_path / place)
    Image.new("RGB", (10, 8), (9, 9, 9)).save(tmp_path / "shifted" / "test" / "cat" / "0.png")
    main([*best, "shifted"])
    assert "With another test set than in training, this is no result of the run" in caplog.text
    assert Path("here/test_other").is_dir()
    assert not Path("here/test").exists()
    assert result.read_text() == before
    main([*best, "moved"])
    assert 0 <= json.loads(result.read_text())["test"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ImageFolder", "--data.root", "nowhere"], "nowhere/train holds no class folders: data.root must hold images"),
        (["EventFolder", "--data.root", "nowhere"], "train holds no class folders: data.root must hold"),
        (["EventFolder", "--data.root", "nowhere", "--data.sensor", "128"], "Given value: 128"),
        (["TonicEvents", "--data.name", "SHD"], "one of ASLDVS, CIFAR10DVS, DVSGesture, "),
    ],
)
def test_a_mistake_is_answered(capsys, arguments, message):
    assert message in refused(capsys, "fit", "--data", *arguments, *SMALL)
    assert not Path("runs").exists()
