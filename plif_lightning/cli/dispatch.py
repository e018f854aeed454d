"""Entry point: run a command, and report its errors in one sentence and an exit status."""

import difflib
import importlib
import io
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from plif_lightning.errors import Stopped, UserError
from plif_lightning.runtime import files, program
from plif_lightning.runtime.process import is_interrupt, on_termination, tune_allocator
from plif_lightning.runtime.program import missing, require_package
from plif_lightning.version import __version__


class Command(NamedTuple):
    """A command.

    Attributes:
        summary: text for the overview.
        module: module of `plif_lightning.cli` with a function of the command's name, which takes arguments and returns
            the exit status; None for Lightning's commands.
        writes: SIGTERM and SIGHUP end it like Ctrl-C, removing unfinished files. Other commands can be resumed or only
            print.
        needs: packages beside the wheel's requirements, by the value of an option that needs them; "" for always.
    """

    summary: str
    module: str | None = None
    writes: bool = False
    needs: Mapping[str, tuple[str, ...]] = {}


_DATA = {"Digits": ("sklearn",)} | dict.fromkeys(("NMNIST", "CIFAR10DVS", "DVSGesture", "TonicEvents"), ("tonic",))
_FORMATS = {"onnx": ("onnx", "onnxscript"), "nir": ("nir",), "pretrained": ("safetensors",)}
_LOGGERS = {"WandbRunLogger": ("wandb",)}
_PLOTS = {"": ("matplotlib",)}
_PAGE = {"": ("matplotlib", "pandas")}
_FRAMES = {"": ("pandas", "tabulate", "jinja2")}
COMMANDS = {
    "prepare": Command(
        "download, verify and unpack a data set, and list its contents", "prepare", writes=True, needs=_DATA
    ),
    "fit": Command("train a network; keep its best and its last checkpoint", needs=_DATA | _LOGGERS),
    "validate": Command("evaluate a checkpoint on its validation set", needs=_DATA),
    "test": Command("evaluate a checkpoint on the test set, per class too", needs=_DATA),
    "predict": Command("write a checkpoint's predictions and votes to a CSV file", needs=_DATA),
    "export": Command("export a checkpoint: BN-folded, torch.export, ONNX, NIR", "deploy", writes=True, needs=_FORMATS),
    "stream": Command("classify a recording as its events arrive", "streaming"),
    "cost": Command("estimate operations, memory traffic and energy", "deploy", writes=True, needs=_DATA),
    "sweep": Command("run a parameter grid or a search, one process and one folder per run", "sweep"),
    "runs": Command("list runs, or what tells some of them apart", "reports", needs=_FRAMES),
    "tables": Command("print the paper's tables, with your runs beside the paper's numbers", "reports", writes=True),
    "figures": Command("draw the paper's figures from your runs, or a recording", "reports", writes=True, needs=_PLOTS),
    "report": Command("write one page with tables, figures and all runs", "reports", writes=True, needs=_PAGE),
    "check": Command("compare every form of a layer with the reference on this machine", "check"),
}


def overview() -> str:
    """Return the overview of all commands."""
    call = program.program_name()
    return "\n".join(
        [
            "Spiking networks with learnable membrane time constants (PLIF).",
            "",
            f"usage: {call} COMMAND [ARGUMENTS]",
            "",
            *(f"  {name:9} {command.summary}" for name, command in COMMANDS.items()),
            "",
            "prepare, fit, validate, test and predict take --config NAME, --model.KEY VALUE, --data.KEY VALUE and",
            "--trainer.KEY VALUE.",
            "",
            f"To start: {call} fit --config quickstart (on a CPU, nothing to download)",
            f"All arguments: {call} COMMAND --help; of a data set: {call} fit --data.help NMNIST; --version",
        ]
    )


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends it with one sentence and exit status 2."""
    tune_allocator()  # before PyTorch allocates anything
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # user-defined neurons and data modules; last, so that they hide nothing
    _prepare_output()
    try:
        status: int | None = _run(sys.argv[1:] if args is None else args)
    except Stopped as stop:
        if stop.message:
            print(stop.message, file=sys.stderr)
        sys.exit(stop.code)  # not `raise`: W&B reads the status of its run from a patched `sys.exit`
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        status = _report(missing(error, "this command") or error)
        if status is None:
            raise
    if status:
        sys.exit(status)


def _prepare_output() -> None:
    """Make both outputs accept any text, and discard it if the parent process closed them."""
    if sys.stdout is None or sys.stderr is None:
        sink = Path(os.devnull).open("w")  # noqa: SIM115
        sys.stdout, sys.stderr = sys.stdout or sink, sys.stderr or sink
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack characters of a run's name


def _report(error: BaseException) -> int | None:
    """Print an error in one sentence and return the exit status; None for an error of the program itself."""
    if isinstance(error, BrokenPipeError):
        # A reader such as `head` has exited. Python would flush stdout once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, KeyboardInterrupt) or (not isinstance(error, UserError) and is_interrupt(error)):
        print("interrupted", file=sys.stderr)
        return 130
    if not isinstance(error, (UserError, OSError)):
        return None
    text = f"{error}"
    if isinstance(error, OSError):
        if error.filename is None and not files.about_writing(error):
            return None
        # For example no permission, no space or no such folder.
        text = f"{f'{error.filename}: ' if error.filename else ''}{files.reason(error)}."
    print(f"error: {text}", file=sys.stderr)
    return 2


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
    _require_packages(name, command, rest)
    if command.module is None:
        from plif_lightning.cli.start import start_of

        with ExitStack() as resources:
            start = start_of([name, *rest], resources)  # reports a wrong file name before Lightning is loaded
            from plif_lightning.cli.lightning import run

            return run(start)
    function = getattr(importlib.import_module(f"plif_lightning.cli.{command.module}"), name)
    if command.writes:
        with on_termination(_stop):
            return int(function(rest))
    return int(function(rest))


def _require_packages(name: str, command: Command, argv: list[str]) -> None:
    """Name a package that a command needs before the time that its imports take, and before it writes anything."""
    if not command.needs or {"-h", "--help"} & {*argv}:
        return
    from plif_lightning.cli.parser import values
    from plif_lightning.cli.start import CONFIG, read_config
    from plif_lightning.runs.settings import setting_in

    chosen = ["", *values(argv, "--format"), *values(argv, "--data"), *values(argv, "--data.class_path")]
    for config in map(read_config, values(argv, *CONFIG)):
        chosen.append(str(setting_in(config, "data.class_path")))
        chosen += [name for name in _LOGGERS if name in str(setting_in(config, "trainer.logger"))]
    for value in chosen:
        for package in command.needs.get(value.rpartition(".")[2], ()):
            require_package(package, f"{name} {value.rpartition('.')[2]}".strip())


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(128 + number, f"stopped by {signal.Signals(number).name}.")
