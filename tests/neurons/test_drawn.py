"""Initial values that are drawn from a distribution, and parameters of each neuron."""

import pytest
import scipy.stats
import torch

import plif_lightning as pl
from plif_lightning.cli import main
from plif_lightning.errors import UserError


def test_time_constants_are_drawn_above_1():
    torch.manual_seed(0)
    tau = pl.PLIF({"gamma": [3, 5]}, "neuron", 4000).tau.double().numpy()
    assert tau.min() > 1
    expected = scipy.stats.gamma(3, scale=5)
    above = expected.sf(1)  # values below are drawn again
    assert scipy.stats.kstest(tau, lambda x: (expected.cdf(x) - 1 + above) / above).pvalue > 0.01


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: pl.LIF({"uniform": [2, 8]}, "channel", 6), "tau"),
        (lambda: pl.ALIF(rho={"beta": [9, 1]}, tau_per="channel", channels=6), "rho"),
        (lambda: pl.KLIF(slope={"normal": [1, 0.1]}, tau_per="neuron", channels=6), "slope"),
    ],
)
def test_values_follow_the_seed_and_differ_between_neurons(make, name):
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(make().learned()[name])
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert len(values[0].unique()) == 6


def test_a_network_of_heterogeneous_neurons_runs_streams_and_is_read_back(tmp_path):
    torch.manual_seed(0)
    net = pl.SpikingNetwork(
        (12,), 3, 6, structure="RFC20-PLIF-FC3", init_tau={"gamma": [3, 5]}, tau_per="neuron", v_threshold=0.1
    ).eval()
    x = 20 * torch.rand(6, 2, 12)
    pl.save_pretrained(net, tmp_path)
    torch.testing.assert_close(pl.from_pretrained(tmp_path)(x), net(x))
    torch.testing.assert_close(pl.deploy.deployed(net)(x), net(x))
    assert net(x).any()


def test_neurons_of_maps_have_values_per_channel():
    with pytest.raises(UserError, match="PLIF: tau_per=neuron is for layers of features"):
        pl.SpikingNetwork((1, 8, 8), 3, 2, tau_per="neuron")


@pytest.mark.parametrize(
    ("initial", "expected"),
    [
        (
            {"weibull": [1.0]},
            "init_tau must be a number or one of uniform, normal, ",
        ),
        ({"gamma": [3, 5], "normal": [1]}, "init_tau must be a number or one of"),
        ({"uniform": [-2, -1]}, "gives hardly a value between 1.0 and inf"),
    ],
)
def test_other_distributions_are_refused(initial, expected):
    with pytest.raises(UserError, match=expected):
        pl.PLIF(initial, "channel", 4)


def test_layers_draw_a_value_each():
    net = pl.SpikingNetwork((4,), 3, 2, structure="FC8-PLIF-FC8-PLIF-FC3", init_tau={"gamma": [3, 5]})
    values = [neuron.tau.item() for _, neuron in net.neurons()]
    assert len({*values, 2.0}) == 3


@pytest.mark.parametrize("tau_per", ["layer", "channel"])
def test_neurons_of_any_class_draw_on_the_command_line(tau_per, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = ["--model.neuron", "plif_lightning.CLIF", "--model.neuron.k", "{beta: [2, 5]}", "--model.tau_per", tau_per]
    few = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
    main(["fit", "--config", "quickstart", *drawn, *few, "--run_folder", "RUN", "--record_samples", "0"])
    for _, neuron in pl.load_network("RUN/checkpoints/last.ckpt").neurons():
        assert (neuron.k.numel() == 1) == (tau_per == "layer")
        assert len(neuron.k.unique()) == neuron.k.numel()


def test_the_command_line_takes_a_distribution(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "quickstart", "--model.init_tau", "{gamma: [3, 5]}", "--print_config"])
    assert stop.value.code == 0
    assert "gamma:\n    - 3.0\n    - 5.0" in capsys.readouterr().out
