"""Trained networks in safetensors: folders and the hub, served by this machine; and what is refused."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
import torch

import plif_lightning as pl
from plif_lightning.cli import main
from plif_lightning.deploy import fold
from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.network import SpikingNetwork
from tests.cli.calls import TINY, fit
from tests.conftest import REPOSITORY
from tests.deploy.conftest import STRUCTURES, frames, trained

safetensors = pytest.importorskip("safetensors.torch", reason="extra `hub`")
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.mark.parametrize("kind", STRUCTURES)
def test_every_network_gives_the_same_votes_again(kind, tmp_path):
    net = trained(structure=STRUCTURES[kind])
    pl.save_pretrained(net, tmp_path)
    again = pl.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(frames(net)), net(frames(net)))
    assert str(again.structure) == str(net.structure)
    assert not again.training


@pytest.mark.parametrize("changes", [{"neuron": "clif"}, {"init_tau": 3.0, "tau_per": "channel"}, {"v_threshold": 0.7}])
def test_pretrained_keeps_neurons_and_constants(changes, tmp_path):
    net = trained((2, 12, 12), 3, 4, channels=4, fc_features=8, votes_per_class=2, n_down=1, **changes)
    pl.save_pretrained(net, tmp_path)
    again = pl.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(frames(net)), net(frames(net)))


def test_a_folded_network_stays_folded(tmp_path):
    """Within a task, too."""
    net = fold(trained())
    task = pl.SpikingClassifier(net.input_shape, net.num_classes, net.time_steps)
    task.network = net
    pl.save_pretrained(task, tmp_path)
    again = pl.from_pretrained(tmp_path)
    assert set(again.state_dict()) == set(net.state_dict())
    with torch.no_grad():
        assert torch.equal(again(frames(net)), net(frames(net)))


def test_a_network_that_was_changed_by_hand_is_refused(tmp_path):
    net = trained()
    net.classifier.fc1.neuron = pl.IF()
    pl.save_pretrained(net, tmp_path)
    with pytest.raises(CheckpointError, match="differs from this one"):
        pl.from_pretrained(tmp_path)


def test_neurons_that_were_built_in_python_are_described(tmp_path):
    net = SpikingNetwork((1, 8, 8), 3, 2, structure="c4k3s1-BN-PLIF-FC3", neuron=pl.CLIF(k=0.3)).eval()
    pl.save_pretrained(net, tmp_path)
    again = pl.from_pretrained(tmp_path).encoder.conv1.neuron
    assert isinstance(again, pl.CLIF)
    assert again.k.item() == pytest.approx(0.3)


def altered(folder, change):
    """Change the description of a network."""
    about = json.loads((folder / CONFIG).read_text())
    change(about)
    (folder / CONFIG).write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["arguments"].update(neuron="stranger.Own"), "which is user-defined, and its code"),
        (
            lambda a: a["arguments"].update(neuron={"class_path": "stranger.Own"}),
            "which is user-defined, and its code is not imported",
        ),
        (
            lambda a: a["arguments"].update(structure="c4k3s1-BN-stranger.Own-FC3"),
            "which is user-defined, and its code is not imported",
        ),
        (lambda a: a["arguments"].update(n_down=3), "leaves nothing|differs from this one"),
        (lambda a: a["arguments"].update(v_threshold=0.7), "differs from this one"),
        (lambda a: a.pop("fingerprint"), "is not what save_pretrained writes, or is damaged"),
        (lambda a: a.pop("arguments"), "which is user-defined, and its code"),
        (lambda a: a.update(arguments=3), "is not what save_pretrained writes"),
    ],
)
def test_pretrained_file_cannot_name_arbitrary_classes(tmp_path, monkeypatch, change, message):
    (tmp_path / "stranger.py").write_text("import pathlib\npathlib.Path('marker').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    pl.save_pretrained(trained(), tmp_path)
    altered(tmp_path, change)
    with pytest.raises(UserError, match=message):
        pl.from_pretrained(tmp_path)
    assert not (tmp_path / "marker").exists()  # its file was not even imported


class Own(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.Linear(4, width), pl.PLIF())

    def forward(self, x):
        return self.layers(x)


def test_user_defined_network_loads_pretrained_weights(tmp_path):
    net, x = Own(), torch.rand(3, 2, 1, 2, 2)
    pl.save_pretrained(net, tmp_path, {"license": "mit"})
    assert 'pl.from_pretrained("FOLDER OR NAME ON THE HUB", Own(...))' in (tmp_path / "README.md").read_text()
    again = pl.from_pretrained(tmp_path, Own())
    assert torch.equal(again(x), net(x))
    assert not again.training
    with pytest.raises(CheckpointError, match=r"holds .*Own, which is user-defined, and its code is not imported"):
        pl.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="differs from this one"):
        pl.from_pretrained(tmp_path, torch.nn.Sequential(Own()))


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_damaged_and_other_files_are_refused(tmp_path, name):
    pl.save_pretrained(trained(), tmp_path)
    whole = (tmp_path / name).read_bytes()
    for content in (whole[:-10], whole[:4], b"", b"PK\x03\x04" * 99, b"\x80\x02}q\x00."):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="is not what save_pretrained writes, or is damaged"):
            pl.from_pretrained(tmp_path)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a repository of two small files needs."""

    files: dict[str, bytes] = {}
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        root = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            self.answer({"url": f"{root}/me/net"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    Hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"{root}/me/net/commit/{self.commit}"
            self.answer({"success": True, "commitOid": self.commit, "commitUrl": url, "hookOutput": ""})
        else:
            self.answer({}, 200)

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        name = self.path.split("?")[0].rpartition("/")[2]
        if "/resolve/" not in self.path or name not in self.files or "/me/net/" not in self.path:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        content = self.files[name]
        self.send_response(200)
        etag = hashlib.sha1(content).hexdigest()
        for key, value in (("X-Repo-Commit", self.commit), ("ETag", f'"{etag}"'), ("Content-Length", len(content))):
            self.send_header(key, str(value))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def answer(self, value, status=200, headers=None):
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **(headers or {}),
        }.items():
            self.send_header(key, str(text))
        self.end_headers()
        self.wfile.write(content)


def test_hub_round_trip(tmp_path):
    pytest.importorskip("huggingface_hub", reason="extra `hub`")
    code = """
import torch, plif_lightning as pl
from tests.deploy.conftest import frames, trained
net = trained()
print(pl.push_to_hub(net, "me/net", {"license": "mit", "accuracy": "99 %"}, token="secret"))
again = pl.from_pretrained("me/net", token="secret")
with torch.no_grad():
    assert torch.equal(again(frames(net)), net(frames(net)))
"""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        around = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path)}
        around |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **around}, capture_output=True, text=True, check=False
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert "/me/net" in done.stdout
    assert b"license: mit" in Hub.files["README.md"]


def test_export_writes_the_card_of_the_run(tmp_path):
    run = tmp_path / "run"
    fit(
        *(*TINY, "--data.validation", "holdout", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"),
        *("--run_folder", str(run), "--seed_everything", "7"),
    )
    call = ["export", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--out", str(tmp_path / "out")]
    main([*call, "--format", "pretrained", "--license", "cc-by-4.0"])
    card = (tmp_path / "out/README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "scikit-learn digits, 1,438 / 359 samples" in card
    assert "B: epoch chosen on held-out training samples" in card
    assert "--seed_everything 7" in card
    net = pl.from_pretrained(tmp_path / "out")
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(net(x), pl.load_network(run / "checkpoints/best.ckpt")(x))


def test_torch_hub_finds_the_entries(tmp_path):
    net = torch.hub.load(str(REPOSITORY), "network", "fashionmnist", source="local", channels=4, fc_features=8)
    assert net.input_shape == (1, 28, 28)
    pl.save_pretrained(trained(), tmp_path)
    again = torch.hub.load(str(REPOSITORY), "pretrained", str(tmp_path), source="local")
    assert isinstance(again, SpikingNetwork)
