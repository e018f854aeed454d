"""The command line. What needs no Lightning does not wait for it."""

from plif_lightning.cli.dispatch import main

__all__ = ["main"]
