"""Arguments of a class that another class has kept."""

from pathlib import Path

import pytest
import yaml

from plif_lightning import configs
from plif_lightning.cli.checkpoint import expand
from plif_lightning.cli.leftovers import leftovers
from plif_lightning.cli.planned import planned_config
from tests.cli.calls import FEW, TINY, fit

QUICK = ("--config", "quickstart")
ERASE = ("--data.augmentation+=RandomErasing", "--data.augmentation.p=0.3")


def said(*arguments):
    config = planned_config(["fit", *arguments])
    assert config is not None
    return leftovers(configs.folder() / "base.yaml", expand(["fit", *arguments]).arguments, config)


def file(name, content):
    Path(name).write_text(yaml.safe_dump(content))
    return f"--config={name}"


def augmentation(*classes):
    return {"data": {"init_args": {"augmentation": [dict(one) for one in classes]}}}


def test_what_a_class_keeps_of_the_one_before_is_said():
    """Found by a review: HorizontalFlip ran with p = 0.9 because RandomErasing had it."""
    clif = file("clif.yaml", {"model": {"neuron": {"class_path": "plif_lightning.CLIF", "init_args": {"k": 0.3}}}})
    klif = file("klif.yaml", {"model": {"neuron": {"class_path": "KLIF"}}})
    for given in (
        (clif, klif),
        ("--model.neuron", "plif_lightning.CLIF", "--model.neuron.k", "0.3", "--model.neuron=KLIF"),
    ):
        (sentence,) = said(*QUICK, *given)
        assert sentence.startswith("model.neuron: KLIF keeps k = 0.3, given for CLIF. Give KLIF values of its own")
    erase = file("erase.yaml", augmentation({"class_path": "RandomErasing", "init_args": {"p": 0.9}}))
    flip = file("flip.yaml", augmentation({"class_path": "HorizontalFlip"}))
    assert "data.augmentation[0]: HorizontalFlip keeps p = 0.9, given for RandomErasing" in said(*QUICK, erase, flip)[0]
    assert "HorizontalFlip keeps p = 0.3" in said(*QUICK, *ERASE, "--config", "fast_fashionmnist")[0]
    (sentence,) = said("--config", "mnist", "--config", "fast_mnist", "--model.optimizer", "SGD")
    assert "SGD keeps lr = 0.0015, weight_decay = 0.01, fused = True, given for AdamW" in sentence


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.neuron=plif_lightning.CLIF", "--model.neuron.k=0.3", "--model.neuron=KLIF", "--model.neuron.k=0.4"],
        ["--model.neuron=plif_lightning.CLIF", "--model.neuron.k=0.3", "--model.neuron=lif"],
        [*ERASE, "--data.augmentation+=HorizontalFlip"],
        [*ERASE, "--data.augmentation=[{class_path: HorizontalFlip}, {class_path: RandomErasing}]"],
        ["--model.optimizer=SGD", "--model.optimizer.lr=0.1"],
        ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=30"],
        ["--data.batch_size=7", "--data=MNIST"],
        ["--config=holdout", "--model.structure={c6k3s1-BN-PLIF-MPk2s2}*2-DP-FC100-PLIF-APk10s10"],
    ],
)
def test_of_what_was_given_for_the_class_itself_nothing_is_said(arguments):
    assert said(*QUICK, *arguments) == []


def test_a_fit_says_it(caplog):
    kept = ["--model.neuron", "plif_lightning.CLIF", "--model.neuron.k", "0.3", "--model.neuron", "KLIF"]
    fit(*TINY, *FEW, *kept, "--trainer.max_epochs", "1", "--test_after_fit", "false", "--record_samples", "0")
    assert caplog.text.count("model.neuron: KLIF keeps k = 0.3, given for CLIF.") == 1
