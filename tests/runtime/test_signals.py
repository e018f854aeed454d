"""Handlers of signals around a command."""

import signal

from plif_lightning.runtime.process import on_termination


def test_the_handlers_before_a_command_are_there_after_it():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    received = []
    with on_termination(lambda number, frame: received.append(number)):
        signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Lightning leaves it
    assert received == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_handler_of_a_program_that_embeds_python_is_left_alone(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None)  # what Python says of one that it did not set
        with on_termination(lambda *arguments: None):
            pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
