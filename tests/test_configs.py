"""Every shipped configuration: it parses, and its network is the paper's."""

import functools
import io
import json
from contextlib import redirect_stdout

import pytest
import torch
import yaml

from plif_lightning import configs, data
from plif_lightning.cli import main
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.network import ARGUMENTS

CONFIGS = configs.folder()
# Table S1, and the number of learned values that follows from it
TABLE_S1 = {
    "mnist": "{c128k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10",
    "fashionmnist": "{c128k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10",
    "nmnist": "{c128k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10",
    "cifar10": "{{c256k3s1-BN-PLIF}*3-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10",
    "cifar10dvs": "{c128k3s1-BN-PLIF-MPk2s2}*4-DP-FC512-PLIF-DP-FC100-PLIF-APk10s10",
    "dvsgesture": "{c128k3s1-BN-PLIF-MPk2s2}*5-DP-FC512-PLIF-DP-FC110-PLIF-APk10s10",
}
PARAMETERS = {
    "mnist": 13_198_980,
    "fashionmnist": 13_198_980,
    "nmnist": 17_132_292,
    "cifar10": 36_718_344,
    "cifar10dvs": 4_691_206,
    "dvsgesture": 1_698_311,
}
# Table 3
TIME_STEPS = {"mnist": 8, "fashionmnist": 8, "nmnist": 10, "cifar10": 8, "cifar10dvs": 20, "dvsgesture": 20}
TIME_STEPS["cifar100"] = 8  # not in the paper
# With a literature's own settings, and a recurrent variant.
SEQUENCES = sorted(
    p.stem for p in (CONFIGS / "sequences").glob("*.yaml") if (CONFIGS / f"sequences/{p.stem}_recurrent.yaml").is_file()
)
COMPLETE = sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem != "base")
VARIANTS = sorted(p.stem for p in (CONFIGS / "variants").glob("*.yaml"))
RECIPES = sorted(p.stem for p in (CONFIGS / "recipes").glob("*.yaml"))
OF_EVENTS = ["fast_nmnist"]


def parsed(*arguments):
    """The configuration as `fit --print_config` shows it."""
    return yaml.safe_load(_printed(*arguments))


@functools.cache
def _printed(*arguments):
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as stop:
        main(["fit", *arguments, "--print_config"])
    assert stop.value.code == 0
    return out.getvalue()


@pytest.mark.parametrize("name", TABLE_S1)
def test_network_of_a_config_is_its_row_of_table_s1(name):
    with torch.device("meta"):
        network = configs.network_of(name)
    assert str(network.structure) == TABLE_S1[name]
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", TABLE_S1)
def test_linked_data_values_match_the_data_module(name):
    config = parsed("--config", name)
    module = getattr(data, config["data"]["class_path"].rsplit(".", 1)[-1])
    assert (module().input_shape, module().num_classes) == configs.INPUTS[name]
    assert module().time_steps == config["data"]["init_args"]["time_steps"] == TIME_STEPS[name]


@pytest.mark.parametrize("name", COMPLETE)
def test_a_complete_config_parses_with_the_papers_settings(name):
    config = parsed("--config", str(CONFIGS / f"{name}.yaml"))
    assert config["seed_everything"] == 2020
    model = config["model"]
    assert model["optimizer"]["class_path"] == "torch.optim.Adam"
    assert model["optimizer"]["init_args"]["lr"] == 0.001
    assert model["lr_scheduler"]["class_path"] == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert config["data"]["init_args"]["batch_size"] == 16
    assert (model["neuron"], model["init_tau"], model["loss"], model["norm_statistics"]) == (
        *("plif", 2.0),
        *("per_step", "per_step"),
    )
    if name != "quickstart":
        assert config["trainer"]["max_epochs"] == 1024
        assert model["lr_scheduler"]["init_args"]["T_max"] == 64
        assert model["dropout"] == 0.5
        assert config["data"]["init_args"]["time_steps"] == TIME_STEPS[name]
        assert config["data"]["init_args"]["validation"] == ("holdout" if name == "cifar100" else "test")


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_config_of_sequences_has_a_network_for_them_and_a_recurrent_variant(name, monkeypatch):
    config = parsed("--config", name)
    monkeypatch.setattr(data.SHD, "class_names", tuple(map(str, range(20))))  # of files that are not there
    varied = parsed("--config", name, "--config", f"{name}_recurrent")
    module = getattr(data, config["data"]["class_path"].rpartition(".")[2])(**config["data"]["init_args"])
    for structure, is_recurrent in ((config["model"]["structure"], False), (varied["model"]["structure"], True)):
        net = SpikingNetwork(module.input_shape, module.num_classes, module.time_steps, structure=structure)
        assert net(torch.zeros(module.time_steps, 2, *module.input_shape)).shape[1:] == (2, module.num_classes)
        assert structure.startswith("RFC") == is_recurrent
    assert SEQUENCES == ["binary_adding", "binary_adding_adlif", "psmnist", "shd", "smnist_rows"]
    for text in (configs.resolve(name), configs.resolve(f"{name}_recurrent")):
        assert text.read_text().startswith("# ")


# these change how images become inputs
OF_IMAGES = {"poisson", "latency", "authors_code_mnist"}
EVENTS = {"nmnist", "cifar10dvs", "dvsgesture"}
# and this one names an argument of one data set
OF_CIFAR10 = "authors_code_cifar10"


@pytest.mark.parametrize("variant", sorted(OF_IMAGES))
def test_a_variant_of_images_is_refused_for_events(variant, capsys):
    path = CONFIGS / "variants" / f"{variant}.yaml"
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(CONFIGS / "nmnist.yaml"), "--config", str(path)])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    if variant == "authors_code_mnist":
        assert "data.augmentation of events may hold EventFlip, " in error
    else:
        assert error == "error: Option 'normalize' is not accepted."


def bases(variant):
    """The data sets that a variant or recipe is for: of images, or of events; one of them tried by day."""
    if variant in RECIPES:
        return [name for name in COMPLETE if (name in EVENTS) == (variant in OF_EVENTS)]
    if variant == OF_CIFAR10:
        return ["cifar10"]
    return [name for name in COMPLETE if not (name in EVENTS and variant in OF_IMAGES)]


PAIRS = [
    pytest.param(name, variant, marks=[] if i == number % len(bases(variant)) else [pytest.mark.slow])
    for number, variant in enumerate([*VARIANTS, *RECIPES])
    for i, name in enumerate(bases(variant))
]


@pytest.mark.parametrize(("name", "variant"), PAIRS)
def test_variants_and_recipes_change_only_their_keys(name, variant):
    path = configs.resolve(variant)
    base = parsed("--config", str(CONFIGS / f"{name}.yaml"))
    varied = parsed("--config", str(CONFIGS / f"{name}.yaml"), "--config", str(path))

    def leaves(value, key=()):
        if not isinstance(value, dict):
            return {key: value}
        return {k: v for name, part in value.items() for k, v in leaves(part, (*key, str(name))).items()}

    own = leaves(yaml.safe_load(path.read_text()))
    before, after = leaves(base), leaves(varied)
    changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
    # the logger becomes a list, with all its defaults
    free = {("trainer", "logger"), ("model", "optimizer"), ("model", "lr_scheduler")}
    # a class that a variant names is shown with all its defaults
    classes = {k[:-1] for k in own if k[-1] == "class_path"}
    free |= {k for k in changed if any(k[: len(c)] == c for c in classes)}
    assert {k for k in changed if k[:2] not in free and k not in free} <= own.keys()
    assert variant in RECIPES or not any(k[:2] in {("model", "optimizer"), ("model", "lr_scheduler")} for k in changed)
    # classes in lists are shown with all their defaults; plain values as they stand in the file
    for key, value in own.items():
        if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
            assert after[key] == value


def test_a_network_of_other_depths_prints_in_the_same_notation():
    deep = SpikingNetwork((1, 16, 16), 3, 2, n_conv=2, n_down=1, n_fc=3, channels=4, fc_features=6, votes_per_class=5)
    assert str(deep.structure) == "{c4k3s1-BN-PLIF}*2-MPk2s2-{DP-FC6-PLIF}*2-DP-FC15-PLIF-APk5s5"
    plain = SpikingNetwork((1, 8, 8), 2, 2, n_down=1, n_fc=1, channels=4, dropout=0.0, neuron="lif", pooling="avg")
    assert str(plain.structure) == "c4k3s1-BN-LIF-APk2s2-DP-FC20-LIF-APk10s10"


# What of a network decides what is evaluated: a recipe may not touch it.
EVALUATED = {"neuron", "init_tau", "v_threshold", "v_reset", "surrogate", "pooling", "norm_statistics", "reset"}
EVALUATED |= {"n_conv", "n_down", "n_fc", "channels", "fc_features", "votes_per_class", "input_encoder"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_leaves_the_network_alone_and_tests_once(name):
    text = configs.resolve(name).read_text()
    recipe = yaml.safe_load(text)
    assert len(text.splitlines()) <= 30
    assert text.splitlines()[0].rstrip().endswith(f"--config {name}")
    assert not EVALUATED & recipe["model"].keys()
    assert "time_steps" not in recipe["data"]["init_args"]
    assert (recipe["test_after_fit"], recipe["data"]["init_args"]["validation"]) == (True, "holdout")
    early = recipe["model"].get("early_time_steps", {})
    assert sum(early.values()) < recipe["trainer"]["max_epochs"]


@pytest.mark.slow
def test_every_row_of_the_leaderboard_builds_a_network_that_differs():
    sweep, seen = yaml.safe_load(configs.resolve("leaderboard", "sweeps").read_text()), []
    for model in sweep["parameters"]["model"]["values"]:
        config = parsed("--config=small", "--config=small_digits", f"--model={json.dumps(model)}")["model"]
        with torch.device("meta"):
            SpikingNetwork((1, 8, 8), 10, 4, **{key: value for key, value in config.items() if key in ARGUMENTS})
        assert config not in seen
        seen.append(config)
