"""The user's code as a part of what a run is."""

import sys
import types

import pytest

from plif_lightning.runs import code
from plif_lightning.runs.code import UNKNOWN, difference, hashes_of, sources_of

NET = '''
"""Networks."""
import torch
from . import layers
from helpers.scales import SCALE  # of the input

class Net(torch.nn.Module):
    """A net."""
    def forward(self, x):
        return SCALE * x
'''


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A package of the user's, `nets`, which imports another, `helpers`."""
    for name, text in {
        "nets/__init__.py": "",
        "nets/big.py": NET,
        "nets/layers.py": "import json\n",
        "helpers/__init__.py": "",
        "helpers/scales.py": "SCALE = 1.0\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("nets", "helpers")]:
        del sys.modules[name]


def own(config):
    """Sources without changed files of the package, which this checkout may have."""
    return {name: text for name, text in sources_of(config).items() if "/" not in name}


CONFIG = {
    "model": {"network": {"class_path": "nets.big.Net", "init_args": {"x": 0.5}}, "loss": "torch.nn.MSELoss"},
    "data": {"class_path": "plif_lightning.data.Digits", "init_args": {"root": "/home/nets.big/data"}},
    "trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]},
}


def test_local_imports_are_code_and_installed_modules_are_not(modules):
    assert set(own(CONFIG)) == {"nets", "nets.big", "nets.layers", "helpers", "helpers.scales"}
    assert own({"model": {"network": None}, "data": CONFIG["data"]}) == {}


def test_neurons_in_a_structure_and_a_loss_are_code(modules):
    assert "nets.big" in own({"model": {"structure": "c4k3s1-BN-nets.big.Net(k=0.5)-FC3"}})
    assert "helpers.scales" in own({"model": {"loss": "helpers.scales.SCALE"}})


@pytest.mark.parametrize(
    ("name", "old", "new", "same"),
    [
        ("nets/big.py", '"""A net."""', '"""Described otherwise."""', True),
        ("nets/big.py", '"""A net."""', "# without one", True),
        ("nets/big.py", "  # of the input", "", True),
        ("nets/big.py", "return SCALE * x", "return (\n            SCALE * x)", True),
        ("nets/big.py", "SCALE * x", "x * SCALE", False),
        ("helpers/scales.py", "1.0", "2.0", False),
        ("nets/layers.py", "json", "csv", False),
    ],
)
def test_code_hash_ignores_comments_and_formatting(modules, name, old, new, same):
    before = hashes_of(own(CONFIG))
    path = modules / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (hashes_of(own(CONFIG)) == before) == same


def test_files_that_arguments_of_the_network_name_are_code(modules, monkeypatch):
    monkeypatch.chdir(modules)
    (modules / "w.json").write_text("[1]")
    (modules / "lif").write_text("")
    (modules / "large.bin").write_bytes(bytes([0xFF]) * 10)
    (modules / "large.txt").write_text("a" * 2**21)
    named = {"neuron": "lif", "loss": {"init_args": {"weights": "w.json", "others": ["large.bin", "./large.txt"]}}}
    named["structure"] = "FC2-nets.big.Net(k=0.5)-" * 100  # longer than a name of a file may be
    found = {
        name: text for name, text in sources_of({"model": named, "data": {"x": "w.json"}}).items() if "files/" in name
    }
    assert {*found} == {"files/w.json", "files/large.bin", "files/large.txt"}
    assert found["files/w.json"] == "[1]"
    assert max(map(len, found.values())) < 20  # hashes of what is no text, or large
    before = hashes_of(found)
    (modules / "w.json").write_text("[1] ")
    (modules / "large.bin").write_bytes(bytes([0xFE]) * 10)
    after = hashes_of(sources_of({"model": named}))
    assert [name for name in found if before[name] != after[name]] == ["files/w.json", "files/large.bin"]
    outside = str(modules / "w.json")
    assert f"files{outside}" in sources_of({"model": {"w": outside}})


def test_comments_in_the_package_do_not_count(monkeypatch):
    path = code._PACKAGE / "errors.py"
    text = path.read_text()
    monkeypatch.setattr(code, "changed_files", lambda: {path: f"# a comment\n{text}"})
    assert sources_of({}) == {}
    monkeypatch.setattr(code, "changed_files", lambda: {path: f"A = 1\n{text}"})
    assert sources_of({}) == {"plif_lightning/errors.py": text}


def test_a_class_without_a_file_is_unknown(monkeypatch):
    made = types.ModuleType("of_a_notebook")
    made.Net = type("Net", (), {})
    monkeypatch.setitem(sys.modules, "of_a_notebook", made)
    assert own({"network": "of_a_notebook.Net"}) == {"of_a_notebook": UNKNOWN}


def test_code_difference_is_a_truncated_diff():
    assert "-a = 1\n+a = 2" in difference({"m": "a = 1\n"}, {"m": "a = 2\n"})
    long = difference({"m": ""}, {"m": "\n".join(f"a{i} = 1" for i in range(100))})
    assert long.endswith("more lines")
    assert len(long.splitlines()) < 50
