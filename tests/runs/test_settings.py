"""What a run is: settings that differ from their defaults, and their hash."""

import pytest

from plif_lightning import configs
from plif_lightning.analysis.select import beyond_shipped
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.record import Record, Session
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import by_numbers, protocol
from tests.test_configs import parsed


def settings(config, processes=1):
    return Identity.of(config, processes).settings


def key(found, data=""):
    return Identity(found, data=data).key


def of(*arguments, config="fashionmnist"):
    return settings(parsed(f"--config={config}", *arguments))


def test_a_setting_with_its_default_is_none_so_that_a_new_argument_changes_no_key():
    found = of("--model.optimizer.weight_decay=0", "--model.tau_per=layer", "--trainer.max_steps=-1")
    assert found == of()
    assert {"model.lr_scheduler.T_max": 64, "trainer.max_epochs": 1024}.items() <= found.items()
    assert not {"model.optimizer.weight_decay", "model.tau_per", "trainer.max_steps"} & found.keys()


@pytest.mark.parametrize(
    "argument",
    [
        *("--model.backend=reference", "--model.sparse=never", "--data.root=/far", "--data.num_workers=2"),
        *("--trainer.devices=2", "--trainer.profiler=simple", "--trainer.log_every_n_steps=7", "--record_samples=3"),
        "--trainer.callbacks=TQDMProgressBar",
        *("--test_after_fit=true", "--seed_everything=3", "--trainer.limit_val_batches=1.0", "--best_of_ties=first"),
        "--model.structure={c128k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10",
    ],
)
def test_how_and_where_a_run_computes_does_not_count(argument):
    assert of(argument) == of()


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--model.neuron=lif", "model.neuron", "lif"),
        ("--model.optimizer.lr=0.01", "model.optimizer.lr", 0.01),
        ("--data.time_steps=4", "data.time_steps", 4),
        ("--trainer.limit_val_batches=1", "trainer.limit_val_batches", 1),  # one batch, not all of them
        ("--trainer.precision=bf16-mixed", "trainer.precision", "bf16-mixed"),
        (
            "--trainer.callbacks=EarlyStopping",
            "trainer.callbacks",
            [{"class": "lightning.pytorch.callbacks.EarlyStopping"}],
        ),
        ("--best_of_ties=last", "best_of_ties", "last"),
        ("--model.lr_scheduler=OneCycle", "model.lr_scheduler", "OneCycle"),
        ("--model.early_time_steps={4: 1, 2: 1}", "model.early_time_steps", [[4, 1], [2, 1]]),
    ],
)
def test_settings_that_affect_results_change_the_key(argument, name, value):
    found = of(argument)
    assert found[name] == value
    assert name in [one.name for one in Identity(found).compared_with(Identity(of()))]
    assert key(found) != key(of())


def test_the_order_of_stages_is_their_meaning_and_that_of_settings_is_not():
    assert of("--model.early_time_steps={4: 1, 2: 1}") != of("--model.early_time_steps={2: 1, 4: 1}")
    one = of("--model.neuron=lif", "--model.reset=soft")
    assert key(one) == key(dict(reversed(one.items())))
    assert key(one, "this data") != key(one, "that data")


def test_the_batch_is_that_of_all_processes():
    config = parsed("--config=fashionmnist", "--data.batch_size=8")
    assert settings(config, processes=2) == of("--data.batch_size=16")


def test_classes_count_by_path_and_arguments(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("class A:\n    def __init__(self, v=1.0): ...\nclass B(A): ...\n")
    monkeypatch.syspath_prepend(tmp_path)

    def loss(name, **arguments):
        return settings({"model": {"loss": {"class_path": f"mine.{name}", "init_args": arguments}}})

    assert loss("A") == loss("A", v=1.0) == {"data": "?", "model.loss": "mine.A"}
    assert loss("A") != loss("B")
    assert loss("A", v=None)["model.loss.v"] is None


@pytest.mark.parametrize("name", configs.shipped_settings())
def test_parsed_shipped_configuration_has_no_differences(name):
    """Found by a review: CIFAR-10 was not, by the default of an augmentation."""
    config = parsed(f"--config={name}", "--trainer.devices=1")
    run = Run(RunFolder("run"), "run", "finished", config, record=Record([Session(settings=settings(config))]))
    assert beyond_shipped(run) == []


def test_the_numbers_of_the_paper_stand_for_its_structures():
    text = "{c8k3s1-BN-PLIF-MPk2s2}*2-DP-FC32-PLIF-DP-FC100-PLIF-APk10s10"
    assert by_numbers({"structure": text})["channels"] == 8
    other = text.replace("PLIF", "CLIF", 1)
    assert by_numbers({"structure": other})["structure"] is not None
    wider = by_numbers({"structure": text, "channels": 16})  # the argument beside it counts
    assert (wider["channels"], wider["fc_features"]) == (16, 32)
    assert by_numbers({"structure": "nonsense"}) == {"structure": "nonsense"}


def test_key_always_includes_the_protocol():
    """A key hashes what differs from the defaults, and the default was A before: an old A and a new B never meet."""
    block = {"class_path": "plif_lightning.data.Digits", "init_args": {}}
    of_default = settings({"data": block})
    assert of_default["data.validation"] == "holdout"
    assert protocol({"data": block}) == "B"
    of_test = settings({"data": {**block, "init_args": {"validation": "test"}}})
    without = {name: value for name, value in of_default.items() if name != "data.validation"}
    assert len({key(of_default), key(of_test), key(without)}) == 3
