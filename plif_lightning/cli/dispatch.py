"""The entry point: finds the command, runs it, and turns its errors into one sentence and an exit status."""

import difflib
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from plif_lightning.cli.commands import COMMANDS, Command
from plif_lightning.cli.help import overview, screen
from plif_lightning.errors import Stopped, UserError
from plif_lightning.runtime import early, files
from plif_lightning.runtime.allocator import tune_allocator
from plif_lightning.runtime.signals import on_termination
from plif_lightning.runtime.streams import whoever_listens
from plif_lightning.runtime.version import __version__


def main(args: list[str] | None = None) -> None:
    """Runs the command line; a user's mistake ends it with one sentence and exit status 2."""
    tune_allocator()  # before PyTorch allocates anything
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started this program
        nothing = Path(os.devnull).open("w")  # noqa: SIM115
        sys.stdout, sys.stderr = sys.stdout or nothing, sys.stderr or nothing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know all that a run is called
    argv = sys.argv[1:] if args is None else args
    try:
        status = _run(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        # Who reads what is printed wants no more of it; nor does Python's own last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        if error.filename is None and not files.about_writing(error):
            raise
        # no permission, no space, no such folder
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{files.reason(error)}.", file=sys.stderr)
        status = 2
    except Stopped as stop:
        if stop.message:
            print(stop.message, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    if status:
        raise SystemExit(status)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"plif_lightning {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown command {name}.{hint} The commands are {', '.join(COMMANDS)}.")
    if {"-h", "--help"} & set(rest):
        print(_help(command, rest))
        return 0
    run = _lightning(name) if command.module is None else command.function()
    if command.writes:
        with on_termination(_stop):
            return run(rest)
    return run(rest)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(128 + number, f"stopped by {signal.Signals(number).name}.")


def _help(command: Command, argv: list[str]) -> str:
    """One screen; for a command with a configuration or data set, all arguments of its data set too."""
    if command.has_parser:
        return command.parser().format_help().rstrip()
    if not any(argument.split("=")[0] in ("--config", "-c", "--data") for argument in argv):
        return screen(command.name)
    from plif_lightning.cli.prepare import help_of_data  # which loads Lightning

    return f"{screen(command.name)}\n\n{help_of_data(argv)}"


def _lightning(name: str) -> Callable[[list[str]], int]:
    """Training or evaluation by Lightning."""

    def train_or_evaluate(rest: list[str]) -> int:
        from plif_lightning.cli.checkpoint import expand

        if name == "fit":
            early.watch()  # PyTorch and Lightning take seconds to load
        expanded = expand([name, *rest])  # reports a bad checkpoint or file name before they are loaded
        from plif_lightning.cli.lightning import run

        return run(expanded)

    return whoever_listens()(train_or_evaluate) if name == "fit" else train_or_evaluate
