"""Exports of a checkpoint to other formats."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from plif_lightning.cli import main
from plif_lightning.deploy import deployed, fold
from plif_lightning.deploy.exporting import export, to_export, to_export_step, write_onnx
from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.network import load_network
from plif_lightning.neurons import PLIF
from tests.cli.calls import SILENT, TINY, command, fit, refused, rows
from tests.conftest import REPOSITORY
from tests.deploy.conftest import frames, trained

SHORT = ["--trainer.limit_train_batches", "5", "--trainer.limit_val_batches", "1", "--test_after_fit", "false"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Checkpoint of a short run on static images."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(*TINY, *SHORT, "--trainer.max_epochs", "2", "--run_folder", "RUN")
    return folder / "RUN/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "exported"
    export(str(checkpoint), str(out), ("network", "pt2", "onnx", "onnx_int8", "nir"))
    return out


def images(n=5):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_folder_says_what_is_in_it(exported):
    facts = json.loads((exported / "export.json").read_text())
    onnx = {"network.onnx", "step.onnx", "network_int8.onnx", "step_int8.onnx"}
    names = {"network.ckpt", "network.pt2", "network.nir"} | onnx
    assert set(facts["sha256"]) == names
    assert {path.name for path in exported.iterdir() if path.is_file()} == names | {"export.json"}
    assert facts["input"] == ["N", 1, 8, 8]


def test_the_folded_network_is_loaded_from_the_folder(checkpoint, exported):
    net, folded = load_network(checkpoint), load_network(exported)
    torch.testing.assert_close(folded(images()), net(images()))
    assert folded.encoder.conv1.norm is None


def test_test_measures_it(checkpoint, exported):
    accuracy = []
    for path in (checkpoint, exported / "network.ckpt"):
        main(["test", "--ckpt_path", str(path), *SILENT])
        run = path.parent.parent if path == checkpoint else exported
        accuracy.append(rows(run / "test/metrics.csv")[0]["test/acc"])
    assert accuracy[0] == accuracy[1]


@pytest.mark.parametrize("engine", ["auto", "events", "int8"])
def test_predict_runs_it_on_an_engine(checkpoint, exported, engine):
    tables = []
    for path, more in ((checkpoint, []), (exported / "network.ckpt", ["--engine", engine])):
        main(["predict", "--ckpt_path", str(path), *SILENT, *more])
        folder = path.parent.parent / "predict" if path == checkpoint else exported / f"predict_{engine}"
        tables.append([row["prediction"] for row in rows(folder / "predictions.csv")])
    same = sum(a == b for a, b in zip(*tables, strict=True))
    assert same >= (0.9 if engine == "int8" else 1.0) * len(tables[0])


def test_pytorchs_program_loads_without_this_package(exported, tmp_path):
    torch.save(images(), tmp_path / "x.pt")
    code = (
        "import sys, torch; x = torch.load('x.pt'); torch.save(torch.export.load(sys.argv[1]).module()(x), 'y.pt'); "
        "assert not any(name.startswith('plif_lightning') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, exported / "network.pt2"], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), load_network(exported)(images()))


@pytest.mark.parametrize(("file", "engine"), [("network.onnx", "dense"), ("network_int8.onnx", "int8")])
def test_onnxruntime_votes_the_same_for_any_batch(exported, file, engine):
    session = onnxruntime.InferenceSession(exported / file)
    net = deployed(load_network(exported), engine)
    for n in (1, 7):
        (votes,) = session.run(["votes"], {"x": images(n).numpy()})
        torch.testing.assert_close(torch.from_numpy(votes), net(images(n)))


def test_onnxruntime_votes_with_rounded_weights_on_frames(tmp_path):
    net = trained()
    write_onnx(net, False, tmp_path, on_integers=True)
    session = onnxruntime.InferenceSession(tmp_path / "network_int8.onnx")
    x = frames(net, 5)
    (votes,) = session.run(["votes"], {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(votes), deployed(net, "int8")(x))
    assert not np.array_equal(votes, deployed(net, "events")(x).numpy())  # weights are rounded


def test_an_encoder_that_draws_is_not_exported(checkpoint, tmp_path):
    drawn = torch.load(checkpoint, weights_only=True)
    drawn["hyper_parameters"]["input_encoder"] = "poisson"
    del drawn["network_parts"]
    torch.save(drawn, tmp_path / "drawn.ckpt")
    for form in ("pt2", "onnx", "onnx_int8"):
        with pytest.raises(UserError, match=f"input_encoder='poisson' cannot be exported to {form}"):
            export(tmp_path / "drawn.ckpt", tmp_path / "out", ["network", form])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("file", "engine"), [("step.onnx", "dense"), ("step_int8.onnx", "int8")])
def test_onnxruntime_runs_it_step_by_step(exported, file, engine):
    session = onnxruntime.InferenceSession(exported / file)
    names = [one.name for one in session.get_inputs()]
    assert names[0] == "frame"
    net = deployed(load_network(exported), engine)
    state = net.step(images())[1]
    given = dict(zip(names[1:], (torch.zeros_like(v).numpy() for v in state.values()), strict=True))
    state = None
    for _ in range(3):
        expected, state = net.step(images(), state)
        votes, *after = session.run(None, {"frame": images().numpy(), **given})
        given = dict(zip(names[1:], after, strict=True))
        torch.testing.assert_close(torch.from_numpy(votes), expected)
        for v, ours in zip(after, state.values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(v), ours)


def test_a_folder_that_was_altered_is_refused(exported, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    facts = json.loads((exported / "export.json").read_text())
    for name in ("export.json", *facts["sha256"]):
        (copy / name).write_bytes((exported / name).read_bytes())
    onnx = (copy / "network.onnx").read_bytes()
    (copy / "network.onnx").write_bytes(onnx[:-1])
    with pytest.raises(CheckpointError, match=r"network\.onnx was altered after the export"):
        load_network(copy)
    (copy / "network.onnx").write_bytes(onnx)
    load_network(copy)
    data = bytearray((copy / "network.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "network.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match="was altered after the export: its hash differs"):
        load_network(copy)
    (copy / "network.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"network\.ckpt is missing, though export\.json names it"):
        load_network(copy)
    (copy / "export.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"export\.json is damaged"):
        load_network(copy)
    (copy / "export.json").unlink()
    with pytest.raises(CheckpointError, match=r"a folder without export\.json"):
        load_network(copy)


def test_an_export_that_fails_leaves_the_one_before(checkpoint, exported, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(checkpoint, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def fails(*arguments, **settings):
        raise UserError("no")

    monkeypatch.setattr("plif_lightning.deploy.exporting.to_export", fails)
    with pytest.raises(UserError, match="no"):
        export(checkpoint, out, ["pt2"])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_what_a_killed_export_left_is_taken_away_and_one_beside_is_not(checkpoint, tmp_path):
    for name, days in ((".exportold", 2), (".exportnew", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "network.ckpt").write_text("half")
        os.utime(tmp_path / name, (time.time() - days * 86_400,) * 2)
    export(checkpoint, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".exportnew", "network.ckpt", "export.json"}
    load_network(tmp_path)  # checks the hash


@pytest.mark.parametrize(("package", "form"), [("onnxscript", "onnx"), ("nir", "nir")])
def test_a_package_that_is_missing_is_named_and_leaves_nothing(checkpoint, tmp_path, monkeypatch, package, form):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}, which is not installed: pip install '\.\[export\]'"):
        export(checkpoint, tmp_path / "out", [form])
    assert not (tmp_path / "out").exists()


def test_an_export_of_another_network_leaves_nothing_of_the_one_before(checkpoint, exported, tmp_path):
    export(checkpoint, tmp_path, ["nir"])
    (tmp_path / "mine.txt").write_text("stays")
    export(exported, tmp_path)  # from an exported folder
    assert {file.name for file in tmp_path.iterdir()} == {"export.json", "network.ckpt", "mine.txt"}
    assert "BN" not in json.loads((tmp_path / "export.json").read_text())["structure"]


def test_a_users_own_folder_stays_and_what_is_in_the_way_goes(checkpoint, exported, tmp_path):
    soft = torch.load(checkpoint, weights_only=True)
    soft["hyper_parameters"]["reset"] = "soft"
    del soft["network_parts"]
    torch.save(soft, tmp_path / "soft.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="resets by subtraction"):
        export(tmp_path / "soft.ckpt", tmp_path / "empty", ["nir"])
    assert not list((tmp_path / "empty").iterdir())
    shutil.copytree(exported, tmp_path / "again", ignore=shutil.ignore_patterns("predict*", "test*"))
    (tmp_path / "again/export.json").write_text("{")
    (tmp_path / "again/mine.txt").write_text("mine")
    export(checkpoint, tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"network.ckpt", "export.json", "mine.txt"}


@pytest.mark.usefixtures("unwatched")
def test_a_full_disk_is_one_sentence(checkpoint, tmp_path):
    call = f"{sys.executable} {REPOSITORY}/main.py export --ckpt_path {checkpoint} --out {tmp_path}/out"
    done = subprocess.run(["bash", "-c", f"ulimit -f 8; {call}"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"{tmp_path}/out/network.ckpt" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_another_programs_network_takes_must_be_said(checkpoint, tmp_path):
    foreign = torch.load(checkpoint, weights_only=True)
    foreign["cli_config"] = "data: {class_path: mydata.Mine}\nmodel: {}"
    torch.save(foreign, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"pt2 must know if .* mydata.Mine is not part of .*: pass --input="):
        export(tmp_path / "foreign.ckpt", tmp_path / "out", ["network", "pt2"])
    assert not (tmp_path / "out").exists()
    export(tmp_path / "foreign.ckpt", tmp_path / "out", ["network", "pt2"], "frames")
    assert json.loads((tmp_path / "out/export.json").read_text())["input"] == [2, "N", 1, 8, 8]


def test_an_engine_is_no_result_of_the_run(checkpoint, tmp_path, capsys):
    run = tmp_path / "RUN"
    shutil.copytree(checkpoint.parent.parent, run)
    shutil.rmtree(run / "test", ignore_errors=True)
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT, "--engine", "int4"])
    assert "int4: conv1 dense, conv2 int4 " in " ".join(capsys.readouterr().out.split())
    assert (run / "test_int4/metrics.csv").is_file()
    assert not (run / "test").exists()


@pytest.mark.parametrize("tau_per", ["layer", "channel"])
def test_a_learned_threshold_is_exported(tau_per):
    net = trained(learn_threshold=True, tau_per=tau_per)
    x = frames(net)
    torch.testing.assert_close(to_export(net, static=False).module()(x), fold(net)(x))
    assert to_export_step(net) is not None


def test_the_command_line_exports_and_refuses(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["export", "--ckpt_path", str(checkpoint), "--out", "out"])
    assert "network.ckpt" in capsys.readouterr().out
    assert [file.name for file in sorted(Path("out").iterdir())] == ["export.json", "network.ckpt"]
    for arguments, message in (
        (["--format", "tflite"], "--format must be some of network, pt2, onnx, onnx_int8, nir, got tflite"),
        (["--ckpt_path", "no.ckpt"], "checkpoint no.ckpt does not exist"),
        (["--out", str(checkpoint)], "is a file: --out must name a folder"),
    ):
        line = refused(capsys, "export", "--ckpt_path", str(checkpoint), "--out", "other", *arguments)
        assert message in line
    torch.save({"state_dict": {"a": torch.ones(1)}}, "foreign.ckpt")
    assert "is not a checkpoint that `fit` wrote" in refused(
        capsys, "export", "--ckpt_path", "foreign.ckpt", "--out", "o"
    )


def test_training_does_not_go_on_from_a_folded_checkpoint(exported, capsys):
    line = refused(capsys, "fit", "--config", "quickstart", *TINY, "--ckpt_path", str(exported / "network.ckpt"))
    assert "folded" in line


def test_folding_twice_is_folding_once(exported):
    net = load_network(exported)
    assert torch.equal(fold(net)(images()), net(images()))


class Undecided(PLIF):
    def run(self, x, v=None, time_steps=None):
        spikes, v = super().run(x, v, time_steps)
        return (spikes, v) if spikes.sum() > 3 else (0 * spikes, v)


def test_neurons_that_no_exporter_can_follow_are_named():
    net = trained()
    net.encoder.conv2.neuron = Undecided()
    for write in (lambda: to_export(net, static=False), lambda: to_export_step(net)):
        with pytest.raises(UserError, match="conv2: Undecided overrides run") as refused:
            write()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("v_reset", [0.0, -0.5])
def test_a_step_in_onnx_says_which_potentials_it_begins_with(v_reset, tmp_path):
    net = trained(v_reset=v_reset, steps=2)
    write_onnx(net, False, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    said = session.get_modelmeta().custom_metadata_map
    x = frames(net)
    state = {}
    for given in session.get_inputs()[1:]:
        first = float(said[f"before_the_first_step.{given.name}"])
        state[given.name] = np.full([3, *given.shape[1:]], first, np.float32)
    for frame, expected in zip(x, fold(net)(x), strict=True):
        votes, *after = session.run(None, {"frame": frame.numpy(), **state})
        state = dict(zip(state, after, strict=True))
        torch.testing.assert_close(torch.from_numpy(votes), expected)


def test_a_program_is_exported_without_a_word_of_pytorchs(checkpoint, tmp_path):
    done = command("export", "--ckpt_path", str(checkpoint), "--out", str(tmp_path / "out"), "--format", "pt2")
    assert done.returncode == 0
    assert done.stderr == ""
