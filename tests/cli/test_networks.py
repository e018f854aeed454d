"""A structure, or a network of a user's own file, in every command."""

import re
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
import yaml

import plif_lightning as pl
from plif_lightning.cli import main
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.run import read_run
from tests.cli.calls import FEW, QUICKSTART, SILENT, fit, load, refused
from tests.deploy.conftest import STRUCTURES

BEST = "runs/quickstart/version_0/checkpoints/best.ckpt"
SHORT = [*FEW, "--trainer.max_epochs", "1", "--data.time_steps", "2"]
RESIDUAL = "c6k3s1-BN-PLIF-MPk2s2-ADD(c6k3s1-BN-PLIF)-ADD(c6k3s1-BN)-CLIF-AP-FC10-LI"


def test_a_structure_is_trained_tested_exported_and_read_again(capsys):
    fit(*SHORT, "--model.structure", RESIDUAL, "--model.loss", "tet", "--model.tet_lambda", "0.1")
    out = capsys.readouterr().out.replace("\n", " ")
    assert "c6k3s1-BN-PLIF-MPk2s2-ADD" in out
    assert "res2" in out
    main(["test", "--ckpt_path", BEST, *SILENT])
    main(["cost", "--ckpt_path", BEST, "--samples", "2"])
    main(["export", "--ckpt_path", BEST, "--out", "exported", "--format", "pt2", "--format", "onnx"])
    main(["predict", "--ckpt_path", "exported/network.ckpt", "--engine", "float32", *SILENT])
    assert "error" not in capsys.readouterr().err
    net = pl.load_network(BEST)
    assert str(net.structure) == RESIDUAL
    x = torch.rand(3, 1, 8, 8)
    votes = net(x).detach()
    torch.testing.assert_close(pl.load_network("exported")(x), votes)
    session = onnxruntime.InferenceSession("exported/network.onnx")
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), votes)
    session = onnxruntime.InferenceSession("exported/step.onnx")
    names = [given.name for given in session.get_inputs()]
    assert names == ["frame", "v_conv1", "v_conv2", "v_res2", "m_res2", "v_voting"]
    shapes = {given.name: [3, *given.shape[1:]] for given in session.get_inputs()}
    states = {name: torch.zeros(shapes[name]).numpy() for name in names[1:]}
    for vote in votes:
        y, *after = session.run(None, {"frame": x.numpy(), **states})
        states = dict(zip(names[1:], after, strict=True))
        torch.testing.assert_close(torch.from_numpy(y), vote)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.structure", "c6k3s1-BM-PLIF-FC10"], "structure, character 8: BM is no layer: did you mean BN"),
        (["--model.structure", "{c6k3s1-BN-PLIF-MPk2s2}*5-FC10"], "MPk2s2 of conv4 leaves nothing of a map of 1x1"),
        (["--model.structure", "ADD(c6k3s1-BN-PLIF)-FC10"], "res1, ADD(c6k3s1-BN-PLIF): its branch ends with"),
        (["--model.structure", "c6k3s1-BN-PLIF-FC9"], "FC9, gives 9 classes, but the data has 10: pass"),
        (["--model.structure", "c6k3s1-BN-PLIF-FC10", "--model.channels", "4"], "channels cannot be set beside"),
        (["--model.channels", "4,6"], "Given value: 4,6"),
        (["--model.network", "my_nets.Simple", "--model.structure", "FC10"], "describe two networks: give one of them"),
        (["--model.network", "my_nets.Nett", "--model.structure", "null"], "'my_nets' has no attribute 'Nett'"),
        (["--model.channels", "[4,6,8]"], "channels must be one number or n_down = 2 of them, got 3"),
        (["--model.tet_lambda", "0.1"], "tet trains a readout without spikes"),
        (["--model.network", "my_nets.Nett"], "module 'my_nets' has no attribute 'Nett'"),
        (["--model.network", "my_nets.Net"], "the following arguments are required: hidden"),
        (["--model.network", "my_nets.Net", "--model.network.hiden", "3"], "Option 'hiden' is not accepted"),
        (["--model.network", "my_nets.Averages", "--model.network.hidden", "3"], "got [2, 10]: do not average"),
        (["--model.network", "my_nets.Simple", "--config", "tau16"], "init_tau=16.0 would have no effect on Simple"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered(arguments, message, own_file, capsys):
    assert message in refused(capsys, "fit", "--config", QUICKSTART, *SILENT, *SHORT, *arguments)


OWN = """
import torch
from torch import nn
import plif_lightning as pl

class Net(nn.Module):
    def __init__(self, num_classes: int, hidden: int):
        super().__init__()
        self.body = pl.over_time(nn.Sequential(
            nn.Conv2d(1, hidden, 3, padding=1), nn.BatchNorm2d(hidden), pl.PLIF(), nn.MaxPool2d(2), nn.Flatten()))
        self.head = nn.Linear(hidden * 16, num_classes)
    def forward(self, x):
        return self.head(self.body(x.expand(self.time_steps, *x.shape) if x.dim() == 4 else x))

class Averages(Net):
    def forward(self, x):
        return super().forward(x).mean(0)

class Simple(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = pl.over_time(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), pl.PLIF()))
    def forward(self, x):
        return self.body(x.expand(self.time_steps, *x.shape) if x.dim() == 4 else x)

class ThroughNumpy(Simple):
    def forward(self, x):
        return super().forward(torch.from_numpy(x.numpy() * 1.0).float() if not x.requires_grad else x)

class MixedBounds(Simple):
    def forward(self, x):
        return super().forward(x.clamp(0, 1.5))

class Inverted(pl.SpikingNetwork):
    def __init__(self, input_shape, num_classes, time_steps):
        super().__init__(input_shape, num_classes, time_steps, structure="c4k3s1-BN-PLIF-MPk2s2-FC20-PLIF-APk2s2")
    def forward(self, x):
        return super().forward(1 - x)
"""


@pytest.fixture
def own_file(monkeypatch):
    Path("my_nets.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_nets", None)


def test_custom_forward_is_refused_where_layers_are_read(own_file, capsys):
    fit(*SHORT, "--model.network", "my_nets.Inverted")
    for arguments, message in (
        (["export", "--out", "x"], "need a network from a structure, got a Inverted"),
        (["export", "--out", "x", "--format", "pretrained"], "Inverted"),
        (["test", "--engine", "int8", *SILENT], "need a network from a structure, got a Inverted"),
    ):
        assert message in refused(capsys, *arguments, "--ckpt_path", BEST)
    assert not Path("x").exists()


def test_user_defined_network_trains_tests_exports_and_resumes(own_file, capsys):
    own = ["--model.network", "my_nets.Net", "--model.network.hidden", "5", "--model.loss", "cross_entropy"]
    fit(*SHORT, *own)
    out = capsys.readouterr().out
    assert "my_nets.Net" in out
    assert "body.net.2" in out
    assert load(BEST)["hyper_parameters"]["network"] == "my_nets.Net"
    main(["test", "--ckpt_path", BEST, *SILENT])
    main(["predict", "--ckpt_path", BEST, *SILENT])
    main(["cost", "--ckpt_path", BEST, "--samples", "2"])
    assert "body.net.2" in capsys.readouterr().out
    message = refused(capsys, "test", "--ckpt_path", BEST, "--engine", "int8", *SILENT)
    assert "need a network from a structure, got a Net" in message
    net = pl.load_network(BEST)
    x = torch.rand(3, 1, 8, 8)
    main(["export", "--ckpt_path", BEST, "--out", "exported", "--format", "pt2", "--format", "onnx"])
    program = torch.export.load("exported/network.pt2").module()
    for some in (x, x[:1]):
        torch.testing.assert_close(program(some), net(some).detach())
    assert "need a network from a structure, got a Net" in refused(
        capsys, "export", "--ckpt_path", BEST, "--out", "x", "--format", "nir"
    )
    main(["test", "--ckpt_path", "exported/network.ckpt", *SILENT])
    main(["fit", "--run_folder", "runs/quickstart/version_0", "--trainer.max_epochs", "2", *SILENT])
    fit(*SHORT, *own, "--trainer.max_epochs", "2", "--run_folder", "whole")
    resumed, whole = (
        load(f"{at}/checkpoints/last.ckpt")["state_dict"] for at in ("runs/quickstart/version_0", "whole")
    )
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    changed = ["--model.network.hidden", "6"]
    message = refused(capsys, "fit", "--run_folder", "whole", *changed)
    assert "model.network.hidden is 5 there, 6 here" in message
    main(["report", "--runs", "runs", "--out", "report.html"])


def test_a_network_that_pytorch_cannot_export_is_named(own_file, capsys):
    fit(*SHORT, "--model.network", "my_nets.ThroughNumpy")
    for name in ("pt2", "onnx"):
        line = refused(capsys, "export", "--ckpt_path", BEST, "--out", "x", "--format", name)
        assert re.search(rf"PyTorch cannot export ThroughNumpy to {name}: \w+: .* --format network takes any\.$", line)
        assert "\n" not in line
    assert not Path("x").exists()


def test_an_operation_that_pytorch_cannot_export_is_named_with_its_line(own_file, capsys):
    """Its exporter to ONNX wraps the error of the operation in advice and in codes of colour."""
    fit(*SHORT, "--model.network", "my_nets.MixedBounds")
    line = refused(capsys, "export", "--ckpt_path", BEST, "--out", "x", "--format", "onnx")
    assert re.search(
        r"MixedBounds to onnx: RuntimeError: .*aten\.clamp.* \(.*my_nets\.py:\d+\)\. Write it with other", line
    )
    assert "\x1b" not in line
    assert "\n" not in line


def test_a_checkpoint_cannot_name_anything_else(own_file, capsys):
    fit(*SHORT, "--model.network", "my_nets.Simple")
    for evil, message in (
        (
            {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "x"]}},
            "is not a subclass of torch.nn.Module",
        ),
        (
            {"class_path": "my_nets.Simple", "init_args": {"a": {"class_path": "os.system"}}},
            "os.system is not a subclass",
        ),
    ):
        checkpoint = torch.load(BEST, weights_only=True)
        config = yaml.safe_load(checkpoint["cli_config"])
        config["model"]["network"] = evil
        torch.save({**checkpoint, "cli_config": yaml.safe_dump(config)}, "evil.ckpt")
        assert message in refused(capsys, "test", "--ckpt_path", "evil.ckpt", *SILENT)
    assert not Path("x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRUCTURES)
def test_onnxruntime_and_pytorchs_program_vote_the_same(kind, tmp_path):
    from plif_lightning.deploy.exporting import to_export, write_onnx
    from tests.deploy.conftest import frames, trained

    net = trained(structure=STRUCTURES[kind], steps=2)  # an export's time grows with T
    x = frames(net)
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(to_export(net, static=False).module()(x), expected)
    write_onnx(net, False, tmp_path)
    found = onnxruntime.InferenceSession(tmp_path / "network.onnx").run(None, {"x": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_structure_in_a_mapping_replaces_earlier_numbers(capsys):
    mapping = '--model={"structure": "c9k3s1-BN-PLIF-FC10"}'
    for arguments, channels in (
        (["--model.channels", "6", mapping], None),
        ([mapping, "--model.channels", "6"], 6),
        (["--model.channels", "6", "--model", mapping.partition("=")[2]], None),
    ):
        with pytest.raises(SystemExit):
            main(["fit", "--config", QUICKSTART, *arguments, "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["model"]["channels"] == channels


EDITED = """
import plif_lightning as pl
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes: int):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes), pl.PLIF())
"""


def test_edited_code_is_neither_averaged_nor_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_nets.py"
    file.write_text(EDITED)
    own = [*SHORT, "--model.network", "edited_nets.Net", "--record_samples", "0"]
    fit(*own, "--run_folder", "runs/1", "--seed_everything", "1")
    file.write_text(f"# a comment\n{EDITED}")
    fit(*own, "--run_folder", "runs/2", "--seed_everything", "2")
    file.write_text(EDITED.replace("pl.PLIF()", "pl.LIF()"))
    fit(*own, "--run_folder", "runs/3", "--seed_everything", "3")
    keys = [read_run(Path("runs", name)).key for name in "123"]
    assert keys[0] == keys[1] != keys[2]
    assert RunFolder(Path("runs/3")).source("edited_nets").read_text() == file.read_text()
    capsys.readouterr()
    main(["runs", "--compare", "1", "2", "3"])
    said = capsys.readouterr().out
    assert "--- edited_nets.py, in 1\n+++ edited_nets.py, in 3" in said
    assert "+        super().__init__(nn.Flatten(), nn.Linear(64, num_classes), pl.LIF())" in said
    assert "the code of the run was edited since" in refused(capsys, "fit", "--run_folder", "runs/1")  # it is finished
    longer = ["--run_folder", "runs/1", "--trainer.max_epochs", "2"]
    line = refused(capsys, "fit", *longer)
    assert "the code of the run was edited since" in line
    assert "-        super().__init__(nn.Flatten(), nn.Linear(64, num_classes), pl.PLIF())" in line
    assert read_run(Path("runs/1")).epochs == 1
    main(["test", "--ckpt_path", "runs/1/checkpoints/best.ckpt", *SILENT])  # is no result of the run
    assert Path("runs/1/test_other").is_dir()
    main(["fit", *longer, "--accept_edited_code", "true"])
    (change,) = [what for what in read_run(Path("runs/1")).identity.changes if what.name == "code"]
    assert {*change.before} == {*change.now} == {"edited_nets"}
    assert change.before != change.now
    assert read_run(Path("runs/1")).key not in keys


READING = """
import json
from pathlib import Path
from torch import nn
import plif_lightning as pl

class Net(nn.Sequential):
    def __init__(self, num_classes: int, scales: str):
        scale = json.loads(Path(scales).read_text())["scale"]
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes), pl.PLIF())
        self[1].weight.data *= scale
"""


def test_a_file_that_an_argument_names_is_part_of_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reading_nets.py").write_text(READING)
    Path("a").mkdir()
    file = Path("a/scales.json")
    own = [*SHORT, "--model.network", "reading_nets.Net", "--model.network.scales", str(file), "--record_samples", "0"]
    for name, text in (("1", '{"scale": 1}'), ("2", '{"scale": 1}'), ("3", '{"scale": 2}')):
        file.write_text(text)
        fit(*own, "--run_folder", f"runs/{name}", "--seed_everything", name)
    first, second, third = (read_run(Path("runs", name)) for name in "123")
    assert first.key == second.key != third.key
    assert Path("runs/1/code/files/a/scales.json").read_text() == '{"scale": 1}'
    capsys.readouterr()
    main(["runs", "--compare", "1", "3"])
    said = capsys.readouterr().out
    assert '-{"scale": 1}\n+{"scale": 2}' in said
    line = refused(capsys, "fit", "--run_folder", "runs/1", "--trainer.max_epochs", "2")
    assert '+{"scale": 2}' in line
    main(["fit", "--run_folder", "runs/1", "--trainer.max_epochs", "2", "--accept_edited_code", "true"])
    assert [path.suffix for path in Path("runs/1/code/files/a").glob("scales.until_step_*")] == [".json"]
