"""Command line. Commands that need no Lightning do not load it."""

from plif_lightning.cli.dispatch import main

__all__ = ["main"]
