"""The examples, and the code of the tutorials that users copy, do what they say."""

import pandas as pd
import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.cli import main
from tests.cli.calls import SILENT
from tests.conftest import REPOSITORY
from tests.examples import own_neuron
from tests.examples.axonal_delay import AxonalDelay
from tests.examples.tutorials import cell, source


@pytest.mark.slow
def test_neuron_example_runs(capsys):
    assert own_neuron.main() > 0.8
    assert "m after the last step: (2, 100)" in capsys.readouterr().out


def test_both_protocols_of_a_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "tests/examples")
    monkeypatch.chdir(tmp_path)
    adding = "--config", "binary_adding", "--data.time_steps", "12", "--data.training_size", "600", *SILENT
    both = "--trainer.callbacks+", "every_epoch.TestEveryEpoch", "--test_after_fit", "true"
    main(["fit", *adding, *both, "--trainer.max_epochs", "1", "--run_folder", "R"])
    metrics = pd.read_csv("R/metrics.csv")
    assert metrics["test_each_epoch/acc"].dropna().item() == pytest.approx(metrics["test/acc"].dropna().item())


TYPED = """
import torch
from torch import Tensor

import plif_lightning as pl


class Typed(pl.Neuron):
    k = pl.learned(0.5, "unit")

    @staticmethod
    def charge(v: Tensor, x: Tensor, k: Tensor) -> Tensor:
        return v + k * (x - v)


spikes, v = Typed().simulate(torch.randn(8, 16, 128))
votes: Tensor = pl.load_network("RUN/checkpoints/best.ckpt")(spikes)
"""


@pytest.mark.slow
def test_copied_examples_and_typed_equations_pass_mypy(tmp_path):
    api = pytest.importorskip("mypy.api")
    for name in ("neuron", "transformer"):
        (tmp_path / f"my_{name}.py").write_text(source(name))
    (tmp_path / "typed.py").write_text(TYPED)
    settings = ["--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    said, _, status = api.run([*settings, "--check-untyped-defs", *map(str, tmp_path.glob("my_*.py"))])
    assert status == 0, said
    said, _, status = api.run([*settings, "--strict", str(tmp_path / "typed.py")])
    assert status == 0, said
    (tmp_path / "typed.py").write_text(TYPED.replace("    @staticmethod\n", ""))
    assert api.run([*settings, "--strict", str(tmp_path / "typed.py")])[2]
    names = {}
    exec(TYPED.split("spikes, v")[0], names)
    x = torch.randn(4, 2, 3)
    assert torch.equal(names["Typed"]()(x), pl.PLIF(init_tau=2.0)(x))


def test_the_transformers_attention_is_that_of_spikingjelly():
    attention = pytest.importorskip("spikingjelly.activation_based.layer.attention", reason="test extra `bench`")
    from spikingjelly.activation_based import neuron, surrogate

    torch.manual_seed(0)
    ours = cell("transformer")["SelfAttention"](16, 4).double()
    kind, arctan = neuron.ParametricLIFNode, surrogate.ATan()
    theirs = attention.SpikingSelfAttention(16, 4, kind, surrogate_function=arctan, detach_reset=True).double()
    for node, v_threshold in ((theirs.qkv_lif, 1.0), (theirs.attn_lif, 0.5), (theirs.proj_lif, 1.0)):
        node.v_threshold, node.step_mode = v_threshold, "m"
    pairs = ((ours.qkv.net, theirs.qkv_conv_bn), (ours.out.net, theirs.proj_conv_bn))
    for here, there in pairs:
        torch.nn.init.constant_(there[1].weight, 3.0)
        for one, other in zip(here, there, strict=False):
            one.load_state_dict(other.state_dict())
    x = (torch.rand(5, 3, 16, 9) < 0.5).double()
    votes, expected = ours(x), theirs(x)
    assert 0 < expected.mean() < 1
    assert torch.equal(votes, expected)
    towards = torch.randn_like(votes)
    votes.backward(towards)
    expected.backward(towards)
    for here, there in pairs:
        torch.testing.assert_close(here[0].weight.grad, there[0].weight.grad)
    torch.testing.assert_close(ours.neuron.a.grad[0], theirs.attn_lif.w.grad)


@pytest.mark.parametrize("delay", [1.0, 2.0, 2.5, 3.0])
def test_an_axonal_delay_shifts_its_input_in_sequences_and_single_steps(delay):
    layer, x = AxonalDelay(delay=delay), torch.rand(8, 2, 5)
    padded = torch.cat([torch.zeros(4, 2, 5), x])
    early, share = int(delay), delay % 1
    expected = (1 - share) * padded[4 - early : 12 - early] + share * padded[3 - early : 11 - early]
    torch.testing.assert_close(layer(x), expected)
    net = nn.Sequential(nn.Linear(5, 6), pl.LIF(), layer, nn.Linear(6, 3)).eval()
    state, votes = None, []
    for frame in x:
        y, state = pl.step(net, frame, state)
        votes.append(y)
    torch.testing.assert_close(torch.stack(votes), pl.over_time(net)(x))
