"""Exports of a checkpoint to other formats."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.callbacks.engine import DeployedForm
from plif_lightning.cli import main
from plif_lightning.deploy import deployed, fold, round_delays
from plif_lightning.deploy.exporting import export, write_onnx
from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.layers.readout import mean_votes
from plif_lightning.network import SpikingNetwork, load_network
from plif_lightning.network.network import ARGUMENTS
from plif_lightning.network.storage.fingerprint import fingerprint
from plif_lightning.training.task import SpikingClassifier
from tests.cli.calls import SILENT, TINY, fit, refused, rows
from tests.deploy.conftest import frames, trained

SHORT = ["--trainer.limit_train_batches", "5", "--trainer.limit_val_batches", "1", "--test_after_fit", "false"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Checkpoint of a short run on static images."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(*TINY, *SHORT, "--trainer.max_epochs", "2", "--run_folder", "RUN")
    assert load_network(folder / "RUN/checkpoints/best.ckpt")(images()).any()
    return folder / "RUN/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "exported"
    export(str(checkpoint), str(out), ("network", "pt2", "onnx", "nir"))
    return out


def images(n=5):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_export_folder_has_a_manifest(exported):
    facts = json.loads((exported / "export.json").read_text())
    names = {"network.ckpt", "network.pt2", "network.onnx", "step.onnx", "network.nir"}
    assert {path.name for path in exported.iterdir() if path.is_file()} == names | {"export.json"}
    assert facts["input"] == ["N", 1, 8, 8]
    assert facts["time_steps"] == 2
    assert facts["structure"] == str(load_network(exported).structure)
    assert set(facts["states_before_the_first_step"]) == {"v_conv1", "v_conv2", "v_fc1", "v_fc2"}
    assert set(facts["nir_readers"]) == {"SpikingJelly", "snnTorch", "Norse"}


def test_image_network_can_be_exported_for_frames(checkpoint, tmp_path):
    for takes, expected in ((None, ["N", 1, 8, 8]), ("frames", [2, "N", 1, 8, 8])):
        export(str(checkpoint), str(tmp_path / "out"), takes=takes)
        assert json.loads((tmp_path / "out/export.json").read_text())["input"] == expected


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


@pytest.mark.parametrize("engine", ["float32", "int8"])
def test_predict_runs_it_on_an_engine(checkpoint, exported, engine):
    tables = []
    for path, more in ((checkpoint, []), (exported, ["--engine", engine])):
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


def test_onnxruntime_votes_the_same_for_any_batch(exported):
    session = onnxruntime.InferenceSession(exported / "network.onnx")
    net = deployed(load_network(exported))
    for n in (1, 7):
        (votes,) = session.run(["votes"], {"x": images(n).numpy()})
        torch.testing.assert_close(torch.from_numpy(votes), net(images(n)))


def test_an_encoder_that_draws_is_not_exported(checkpoint, tmp_path):
    drawn = torch.load(checkpoint, weights_only=True)
    drawn["hyper_parameters"]["input_encoder"] = "poisson"
    arguments = {name: value for name, value in drawn["hyper_parameters"].items() if name in ARGUMENTS}
    drawn["fingerprint"] = fingerprint(SpikingNetwork(**arguments))
    torch.save(drawn, tmp_path / "drawn.ckpt")
    for form in ("pt2", "onnx"):
        with pytest.raises(UserError, match=f"input_encoder='poisson' cannot be exported to {form}"):
            export(tmp_path / "drawn.ckpt", tmp_path / "out", ["network", form])
    assert not (tmp_path / "out").exists()


def test_onnxruntime_runs_it_step_by_step(exported):
    session = onnxruntime.InferenceSession(exported / "step.onnx")
    names = [one.name for one in session.get_inputs()]
    assert names[0] == "frame"
    net = deployed(load_network(exported))
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


def test_a_damaged_folder_is_refused(exported, tmp_path):
    data = (exported / "network.ckpt").read_bytes()
    (tmp_path / "network.ckpt").write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match=r"network\.ckpt cannot be read as a checkpoint"):
        load_network(tmp_path)
    (tmp_path / "network.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"network\.ckpt does not exist"):
        load_network(tmp_path)


def test_failed_export_keeps_the_previous_one(checkpoint, exported, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(checkpoint, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def fails(*arguments, **settings):
        raise UserError("no")

    monkeypatch.setattr("plif_lightning.deploy.exporting.to_export", fails)
    with pytest.raises(UserError, match="no"):
        export(checkpoint, out, ["pt2"])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize(("package", "form"), [("onnxscript", "onnx"), ("nir", "nir")])
def test_a_package_that_is_missing_is_named_and_leaves_nothing(checkpoint, tmp_path, monkeypatch, package, form):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}, which is not installed: pip install '\.\[export\]'"):
        export(checkpoint, tmp_path / "out", [form])
    assert not (tmp_path / "out").exists()


def test_export_replaces_only_an_earlier_export(checkpoint, exported, tmp_path):
    out = tmp_path / "out"
    export(checkpoint, out, ["nir"])
    export(exported, out)  # from an exported folder
    assert {file.name for file in out.iterdir()} == {"export.json", "network.ckpt", "network.nir"}  # renewed
    (tmp_path / "mine.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="is not what export wrote: --out must name a new folder"):
            export(checkpoint, place)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "mine.txt"}


def test_an_engine_is_no_result_of_the_run(checkpoint, tmp_path, capsys):
    run = tmp_path / "RUN"
    shutil.copytree(checkpoint.parent.parent, run)
    shutil.rmtree(run / "test", ignore_errors=True)
    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *SILENT, "--engine", "int8"])
    assert "int8: conv1 dense, conv2 event-driven, int8" in " ".join(capsys.readouterr().out.split())
    assert (run / "test_int8/metrics.csv").is_file()
    assert not (run / "test").exists()


def test_the_command_line_exports_and_refuses(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["export", "--ckpt_path", str(checkpoint), "--out", "out"])
    assert "network.ckpt" in capsys.readouterr().out
    assert [file.name for file in sorted(Path("out").iterdir())] == ["export.json", "network.ckpt"]
    for arguments, message in (
        (["--format", "tflite"], "--format must be some of network, pt2, onnx, nir, got tflite"),
        (["--ckpt_path", "no.ckpt"], "checkpoint no.ckpt does not exist"),
        (["--out", str(checkpoint)], "is not what export wrote: --out must name a new folder"),
    ):
        line = refused(capsys, "export", "--ckpt_path", str(checkpoint), "--out", "other", *arguments)
        assert message in line
    torch.save({"state_dict": {"a": torch.ones(1)}}, "foreign.ckpt")
    assert "foreign.ckpt does not say what its network is" in refused(
        capsys, "export", "--ckpt_path", "foreign.ckpt", "--out", "o"
    )


def test_folded_checkpoint_cannot_be_trained(exported, capsys):
    line = refused(capsys, "fit", "--config", "quickstart", *TINY, "--ckpt_path", str(exported / "network.ckpt"))
    assert "folded" in line


@pytest.mark.parametrize("structure", ["RFC8-ALIF-FC3-LI", "c4k3s1-BN-PLIF-MPk2s2-RFC12-LIF(v_reset=-0.5)-FC3-LAST"])
def test_onnx_of_a_recurrent_network_is_a_scan_for_any_number_of_steps(structure, tmp_path):
    torch.manual_seed(0)
    shape = (2, 6, 6) if "c4" in structure else (5,)
    net = SpikingNetwork(shape, 3, 50, structure=structure, v_threshold=0.1).eval()
    write_onnx(net, False, tmp_path)
    assert (tmp_path / "network.onnx").stat().st_size < 2 * (tmp_path / "step.onnx").stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    for steps, samples in ((50, 1), (3, 4)):
        x = 5 * torch.rand(steps, samples, *shape)
        (votes,) = session.run(None, {"x": x.numpy()})
        expected = SpikingNetwork(**net.arguments | {"time_steps": steps}).eval()
        expected.load_state_dict(net.state_dict())
        torch.testing.assert_close(torch.from_numpy(votes), expected(x).detach())
    assert expected(x).any()


@pytest.mark.slow
def test_onnx_step_documents_its_initial_potentials(tmp_path):
    net = trained(v_reset=-0.5, steps=2)
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


def of_trainer(network, path):
    """The checkpoint of Lightning's own Trainer, after a step on the network."""
    task = SpikingClassifier((1, 8, 8), 3, 4, network=network, loss="cross_entropy")
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1, limit_val_batches=0, accelerator="cpu", enable_model_summary=False, **silent)
    batch = [(image, i % 3) for i, image in enumerate(images())]
    loader = torch.utils.data.DataLoader(batch, 5)
    trainer.fit(task, loader, loader)
    trainer.save_checkpoint(path)
    return task.network.eval()


def test_the_command_line_rounds_delays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "c4k3s1-BN-PLIF-DELAY(max_delay=2{})-FC10b"
    fit(*TINY, *SHORT, "--model.structure", text.format(""), "--run_folder", "RUN", "--trainer.max_epochs", "1")
    path = "RUN/checkpoints/best.ckpt"
    main(["export", "--ckpt_path", path, "--out", "out", "--round_delays", "--format", "nir", "--format", "pretrained"])
    rounded = round_delays(load_network(path))(images())
    assert not torch.allclose(rounded, load_network(path)(images()))
    for net in (load_network("out"), pl.from_pretrained("out")):
        assert str(net.structure) == text.format(",rounds=true")
        torch.testing.assert_close(net(images()), rounded)
    main(["test", "--ckpt_path", "out", *SILENT])


def test_a_network_in_the_place_of_the_checkpoints_is_the_one_in_the_folder(checkpoint, tmp_path):
    trained = load_network(checkpoint)
    other = SpikingNetwork(**{**trained.arguments, "neuron": "lif", "v_threshold": 0.07})
    other.load_state_dict({name: value for name, value in trained.state_dict().items() if name in other.state_dict()})
    with torch.no_grad():
        other.layers()["fc1"].fc.weight.mul_(2)
    task = SpikingClassifier.load_from_checkpoint(checkpoint, weights_only=True)
    task.network = other
    export(checkpoint, tmp_path / "out", ["onnx"], network=task)
    expected = other.eval()(images())
    assert expected.any()
    assert not torch.equal(expected, trained(images()))
    torch.testing.assert_close(load_network(tmp_path / "out")(images()), expected)
    session = onnxruntime.InferenceSession(tmp_path / "out/network.onnx")
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": images().numpy()})[0]), expected)
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    assert session.get_outputs()[0].shape == [2, "batch", 10]
    main(["predict", "--ckpt_path", str(tmp_path / "out"), *SILENT])
    data = pl.data.Digits(time_steps=2)
    predicted = [int(row["prediction"]) for row in rows(tmp_path / "out/predict/predictions.csv")]
    assert predicted == mean_votes(fold(other)(data.test_samples(len(predicted))[0])).argmax(-1).tolist()


@pytest.mark.parametrize("structure", ["FC", "of a network of one's own"])
def test_what_was_built_in_python_is_exported_with_the_checkpoint_of_any_trainer(structure, tmp_path):
    layers = (nn.Flatten(), nn.Linear(64, 12), pl.PLIF(), pl.Delay(12, 2), nn.Linear(12, 3), pl.LeakyIntegrator(3.0))
    text = "FC12-PLIF-DELAY(max_delay=2)-FC3b-LI(init_tau=3.0)"
    is_own = structure != "FC"
    network = nn.Sequential(*layers) if is_own else SpikingNetwork((1, 8, 8), 3, 4, structure=text)
    net = of_trainer(network, tmp_path / "mine.ckpt")
    export(tmp_path / "mine.ckpt", tmp_path / "out", ["pt2", "onnx"], "images", network)
    session = onnxruntime.InferenceSession(tmp_path / "out/network.onnx")
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": images().numpy()})[0]), net(images()))
    again = load_network(tmp_path / "out", *([nn.Sequential(*layers)] if is_own else []))
    torch.testing.assert_close(again(images()), net(images()))
    facts = json.loads((tmp_path / "out/export.json").read_text())
    assert ("states_before_the_first_step" in facts) == (tmp_path / "out/step.onnx").exists() == (not is_own)


def test_programs_ask_what_a_network_takes_where_no_data_module_says_it(tmp_path):
    """A program in the folder, which an export writes again, asks as one that is named does; NIR has no T."""
    net = of_trainer(SpikingNetwork((1, 8, 8), 3, 4, structure="FC12-PLIF-FC3b-LI"), tmp_path / "mine.ckpt")
    place = tmp_path / "mine.ckpt", tmp_path / "out"
    asks = pytest.raises(UserError, match="does not say what its network takes: pass --input images or frames")
    with asks:
        export(*place, ["pt2"], network=net)
    assert not (tmp_path / "out").exists()
    for formats, takes in ((["nir"], None), (["network"], None), (["pt2"], "frames")):
        export(*place, formats, takes, net)
        assert "nir_readers" in json.loads((tmp_path / "out/export.json").read_text())
    with asks:
        export(*place, network=net)


def test_a_rounded_network_of_a_users_class_is_not_the_one_of_the_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("delayed.py").write_text(
        "import plif_lightning as pl\nfrom torch import nn\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self, num_classes: int):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 8), pl.Delay(8, 2), nn.Linear(8, num_classes))\n"
    )
    one = ["--model.network", "delayed.Net", "--model.loss", "cross_entropy", "--trainer.max_epochs", "1"]
    fit("--data.time_steps=2", *SHORT, *one, "--run_folder", "RUN")
    main(["export", "--ckpt_path=RUN/checkpoints/best.ckpt", "--out=out", "--format=onnx", "--round_delays"])
    rounded = round_delays(load_network("RUN/checkpoints/best.ckpt"))
    session = onnxruntime.InferenceSession("out/network.onnx")
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": images().numpy()})[0]), rounded(images()))
    with pytest.raises(CheckpointError, match="was built in Python"):
        load_network("out")
    assert "such as one with rounded delays: measure it in Python" in refused(capsys, "test", "--ckpt_path", "out")
    torch.testing.assert_close(load_network("out", rounded)(images()), rounded(images()))


def test_an_evaluation_on_an_engine_that_breaks_off_leaves_the_network_in_the_task(checkpoint):
    task = SpikingClassifier.load_from_checkpoint(checkpoint, weights_only=True)
    network = task.network
    wrong = torch.utils.data.DataLoader([(torch.rand(1, 5, 5), 0)])  # images of another size
    silent = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    with pytest.raises(UserError, match="x must be"):
        L.Trainer(callbacks=[DeployedForm("float32")], **silent).test(task, wrong)
    assert task.network is network


def test_an_export_into_a_folder_renews_the_formats_that_are_there(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out", ["pt2"], takes="frames")
    before = (tmp_path / "out/network.pt2").stat().st_ino
    assert "network.pt2" in export(checkpoint, tmp_path / "out", takes="frames")
    assert (tmp_path / "out/network.pt2").stat().st_ino != before
