"""Table of all commands, for help, dispatch and signal handling."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A command.

    Attributes:
        name: name on the command line.
        summary: text for the overview.
        module: module of `plif_lightning.cli` with a function of this name, which takes arguments and returns the
            exit status; None for Lightning's own commands, which `cli.lightning` runs.
        writes: True if SIGTERM and SIGHUP end it like Ctrl-C, removing unfinished files. Other commands can be resumed
            or only print.
    """

    name: str
    summary: str
    module: str | None = None
    writes: bool = False

    def function(self) -> Callable[[list[str]], int]:
        """Import and return the function that runs the command."""
        return getattr(self._module(), self.name)

    def parser(self) -> Any:
        """Return the command's own argparse parser, from `PARSERS` of its module."""
        return self._module().PARSERS[self.name]()

    @property
    def has_parser(self) -> bool:
        return self.module not in (None, "prepare")

    def _module(self) -> Any:
        return importlib.import_module(f"plif_lightning.cli.{self.module}")


_ALL = (
    Command("prepare", "download, verify and unpack a data set, and list its contents", "prepare", writes=True),
    Command("fit", "train a network; keep its best and its last checkpoint"),
    Command("validate", "evaluate a checkpoint on its validation set"),
    Command("test", "evaluate a checkpoint on the test set, per class too"),
    Command("predict", "write a checkpoint's predictions and votes to a CSV file"),
    Command("export", "export a checkpoint: BN-folded, torch.export, ONNX, NIR", "deploy", writes=True),
    Command("stream", "classify a recording, a growing file, a pipe or a socket as events arrive", "streaming"),
    Command("cost", "estimate operations, memory traffic and energy", "deploy", writes=True),
    Command("sweep", "run a parameter grid, one process and one folder per run", "sweep"),
    Command("tables", "print the paper's tables, with your runs beside the paper's numbers", "results", writes=True),
    Command(
        "figures", "draw the paper's figures from your runs, or a recording, as PDF and PNG", "results", writes=True
    ),
    Command("report", "write one page with tables, figures and all runs", "results", writes=True),
)
COMMANDS = {command.name: command for command in _ALL}
EVALUATIONS = ("validate", "test", "predict")
