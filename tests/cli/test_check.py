"""`check`: every form on this machine against the reference."""

import pytest
import torch
from torch.nn import functional

from plif_lightning.cli import main
from plif_lightning.network import comparing


@pytest.fixture(autouse=True)
def _without_timing(monkeypatch):
    monkeypatch.setattr("plif_lightning.cli.check._speeds", lambda device: {"fused": 1.0})


def test_every_form_equals_the_reference_here(capsys):
    main(["check"])
    said = capsys.readouterr().out
    assert said.count("equals the reference") == len(comparing.NEURONS) + 1 + len(comparing._FORMS)
    assert said.endswith("All equal the reference.\n")
    assert "machine " in said
    assert "torch " in said


def test_a_form_that_differs_or_raises_is_named_and_the_status_is_1(monkeypatch, capsys):
    def raises(*of):
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(comparing, "NEURONS", ("PLIF",))
    monkeypatch.setattr(comparing, "difference", lambda dynamics, device: "3 of 10 spikes, pool none")
    monkeypatch.setattr(comparing, "_FORMS", {"held image": comparing._FORMS["held image"]})
    monkeypatch.setattr(comparing, "_network_difference", raises)
    monkeypatch.setattr(comparing.dense, "conv2d", lambda x, weight, **of: functional.conv2d(2 * x, weight, **of))
    with pytest.raises(SystemExit) as stop:
        main(["check"])
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "  PLIF                   3 of 10 spikes, pool none\n" in said
    assert "  held image             RuntimeError: no such instruction\n" in said
    assert "  60 convolutions        output of Convolution(" in said
    assert said.endswith("3 of these differ from the reference.\n")


def test_check_compares_a_device_and_writes_the_page(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(comparing, "NEURONS", ("PLIF",))
    monkeypatch.setattr(comparing, "_FORMS", {})
    main(["check", "--device", "cpu", "--report", str(tmp_path / "page.txt")])
    assert (tmp_path / "page.txt").read_text() == capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["check", "--device", "cuda"])
    assert "no CUDA device can be checked: " in capsys.readouterr().err
