"""Networks drawn at random come back from what was written of them: safetensors and checkpoints."""

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

import plif_lightning as pl
from plif_lightning.deploy import to_nir
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.storage.fingerprint import fingerprint
from tests.deploy.conftest import frames, trained

LEAKY = ["PLIF", "LIF", "LIF(init_tau=3.5)", "PLIF(v_threshold=0.7,tau_per=channel)", "PLIF(v_reset=-0.2)"]
OTHERS = ["IF", "PLIF(reset=soft)", "CLIF", "KLIF", "ALIF"]
kernels, strides, channels = st.sampled_from([1, 3, 5]), st.sampled_from([1, 1, 2]), st.integers(1, 5)
norms = st.sampled_from(["-BN", "-BN", ""])
pools = st.sampled_from(["", "", "-MPk2s2", "-APk2s2", "-MPk3s2p1"])


@st.composite
def blocks(draw, neurons):
    c, k, s, of = draw(channels), draw(kernels), draw(strides), draw(neurons)
    plain = f"c{c}k{k}s{s}{draw(norms)}-{of}"
    if draw(st.integers(0, 3)):
        return plain + draw(pools)
    return f"{plain}-ADD(c{c}k3s1-BN-{draw(neurons)})"  # the sum of a block's spikes and of what another makes of them


@st.composite
def structures(draw, kinds=(*LEAKY, *OTHERS)):
    neurons = st.sampled_from(kinds)
    encoder = draw(st.lists(blocks(neurons), min_size=1, max_size=3))
    hidden = draw(st.sampled_from([[], ["FC7-PLIF"], ["FC5b-LIF", "FC4-PLIF"]]))
    end = draw(st.sampled_from(["FC6-PLIF-APk2s2", "FC3-PLIF", "FC3b", "FC3-LI(init_tau=4.0)"]))
    return "-".join([*encoder, *hidden, end])


def drawn(structure: str) -> SpikingNetwork:
    """The network of a structure whose layers fire; refused are those that leave no pixel for a pool."""
    try:
        return trained(structure=structure)
    except UserError:
        reject()


def votes(net, x):
    with torch.no_grad():
        return net(x)


@given(structure=structures())
def test_a_file_of_weights_is_the_network_again(structure, tmp_path):
    pytest.importorskip("safetensors", reason="extra `hub`")
    net = drawn(structure)
    pl.save_pretrained(net, tmp_path)
    again = pl.from_pretrained(tmp_path)
    assert str(again.structure) == str(net.structure)
    assert again.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(votes(again, frames(net)), votes(net, frames(net)))


@given(structure=structures())
def test_a_checkpoint_is_the_network_again(structure, tmp_path):
    net = drawn(structure)
    task = pl.SpikingClassifier(net.input_shape, net.num_classes, net.time_steps, structure=structure)
    task.network.load_state_dict(net.state_dict())
    stored = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), "global_step": 1}
    torch.save(stored | {"fingerprint": fingerprint(task.network)}, tmp_path / "a.ckpt")
    again = pl.load_network(tmp_path / "a.ckpt")
    x = frames(net)
    assert torch.equal(votes(again, x), votes(task.network.eval(), x))


@given(structure=structures(OTHERS))
def test_unsupported_layers_of_a_graph_are_named(structure):
    pytest.importorskip("nir", reason="extra `export`")
    with pytest.raises(UserError, match=r"consists of \w+ with a (hard|soft) reset, and NIR"):
        to_nir(drawn(structure))
