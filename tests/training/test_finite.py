"""Non-finite values are reported immediately or one step later."""

import math

import torch

from plif_lightning.training.finite import FiniteCheck

GOOD, BAD = torch.ones(3), torch.tensor([0.0, math.nan])


def test_on_a_cpu_the_answer_is_there_at_once():
    check = FiniteCheck()
    assert check.ask(GOOD, 0, "good") is None
    assert check.ask(torch.tensor(math.inf), 0, "bad") == "bad"
    assert check.settle() is None


def test_late_it_is_there_at_the_next_step():
    check = FiniteCheck(late=True)
    assert check.ask(BAD, 3, "loss at 3") is None
    assert check.ask(BAD, 3, "gradient at 3") is None
    assert check.ask(GOOD, 4, "loss at 4") == "loss at 3"
    assert check.ask(BAD, 5, "loss at 5") is None
    assert check.settle() == "loss at 5"
    assert check.settle() is None


def test_what_is_asked_about_may_change_afterwards():
    check, values = FiniteCheck(late=True), GOOD.clone()
    check.ask(values, 0, "bad")
    values.fill_(math.nan)
    assert check.settle() is None
