"""`export`, `stream` and `cost` of a trained network. Only `cost` loads Lightning, for its data set."""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, get_args

from plif_lightning.cli.arguments import option_names
from plif_lightning.cli.parser import PlainParser
from plif_lightning.deploy.engines import Engine
from plif_lightning.errors import UserError
from plif_lightning.runtime.console import Console

if TYPE_CHECKING:
    from torch import Tensor

    from plif_lightning.deploy.costs import Cost
    from plif_lightning.deploy.streaming import StreamingNetwork
    from plif_lightning.events.recording import Recording
    from plif_lightning.network import SpikingNetwork

# Interval of measuring firing rates [time-steps]: a step that reports its spikes is slower.
_RATES_EVERY = 10
# Engines of a stream, which has no sample inputs for auto.
_ENGINES = [name for name in get_args(Engine) if name != "auto"]


def _parser(name: str, description: str) -> PlainParser:
    parser = PlainParser(name, description)
    parser.add_argument(
        "--ckpt_path",
        type=Path,
        required=True,
        help="the checkpoint, such as RUN/checkpoints/best.ckpt, or a folder that export wrote",
    )
    return parser


def _export_parser() -> PlainParser:
    parser = _parser("export", "Export a checkpoint: BN folded into its convolutions, for other programs.")
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument(
        "--format",
        action="append",
        default=[],
        help="network (always written), pt2 (torch.export), onnx, onnx_int8 or nir; may be repeated",
    )
    parser.add_argument(
        "--input",
        choices=["images", "frames"],
        help="input of the network, images [N, C, H, W] or frames [T, N, C, H, W] (default: that of its data set)",
    )
    return parser


def _number(text: str, low: float, high: float, what: str) -> float:
    """Parse a number from `low` to `high`."""
    with suppress(ValueError):
        if low <= (value := float(text)) <= high:
            return value
    raise argparse.ArgumentTypeError(f"must be {what}, got {text}")


_positive = partial(_number, low=0.001, high=sys.float_info.max, what="a number of at least 0.001")
_share = partial(_number, low=0.0, high=1.0, what="from 0 to 1")


def _stream_parser() -> PlainParser:
    parser = _parser("stream", "Classify a recording, a growing file or a pipe as events arrive.")
    parser.add_argument("--file", required=True, help="a recording; - reads AEDAT 2.0 from standard input")
    parser.add_argument("--live", action="store_true", help="follow a growing file (AEDAT 2.0) until Ctrl-C")
    parser.add_argument("--idle", type=_positive, help="with --live: end after this many seconds without an event")
    parser.add_argument(
        "--events_per_step", type=int, help="events per time-step (default: all in T steps; needed if live)"
    )
    parser.add_argument("--ms_per_step", type=_positive, help="milliseconds per time-step, instead of events")
    parser.add_argument(
        "--early_exit", type=_share, help="stop once the best class's mean vote leads by this margin, 0 to 1"
    )
    parser.add_argument(
        "--engine", choices=_ENGINES, default="events", help="engine of the layers, as in predict (default: events)"
    )
    parser.add_argument("--plain", action="store_true", help="print a line for each time-step instead of a table")
    return parser


def _cost_parser() -> PlainParser:
    parser = _parser("cost", "Estimate operations, memory traffic and energy.")
    parser.add_argument("--data.root", dest="root", help="folder of the data sets, if it has moved")
    parser.epilog = "--data NAME and --data.KEY VALUE, as in prepare: the data set, if the checkpoint names none."
    parser.add_argument("--samples", type=int, default=32, help="test samples to measure firing on (default: 32)")
    parser.add_argument("--out", type=Path, help="write a csv file with a row for each layer")
    return parser


PARSERS = {"export": _export_parser, "stream": _stream_parser, "cost": _cost_parser}


def export(argv: list[str]) -> int:
    """Write the files and print their sizes."""
    given = _export_parser().parse_args(argv)
    from plif_lightning.deploy.exporting import export as write

    files = write(given.ckpt_path, given.out, given.format or ["network"], given.input)
    for name, size in files.items():
        print(f"{given.out / name}  {size / 2**20:,.1f} MiB")
    return 0


class _Read(NamedTuple):
    """A network and its data set, read from a checkpoint.

    Attributes:
        net: the network.
        data: `data` block of the configuration; empty if the checkpoint has none.
        class_names: name of each class; its number if the name is unknown.
        sensor: height and width of the camera, if the data set pools its pixels into smaller frames; None otherwise.
    """

    net: "SpikingNetwork"
    data: dict[str, Any]
    class_names: list[str]
    sensor: Any


def _read(path: Path) -> _Read:
    """Read a checkpoint or an exported folder, without importing classes of other packages that it names."""
    from plif_lightning.network.loading import (
        checkpoint_file,
        class_names_in,
        configuration_in,
        load_checkpoint,
        network_in,
    )

    path = checkpoint_file(path)
    checkpoint = load_checkpoint(path)
    net, data = network_in(checkpoint, path), configuration_in(checkpoint, path).get("data", {})
    names, sensor = class_names_in(checkpoint, net.num_classes), checkpoint.get("sensor")
    settings = data.get("init_args", {})
    kind = None
    if names is None or sensor is None:  # an older checkpoint
        kind = _own_data_class(data)
        names = names or _names_of(kind, net.num_classes)
    if settings.get("size") is None:
        return _Read(net, data, names, None)
    return _Read(net, data, names, settings.get("sensor") or sensor or getattr(kind, "sensor", None))


def _names_of(kind: Any, num_classes: int) -> list[str]:
    """Return the class names that a data set declares for this number of classes; otherwise numbers."""
    names = getattr(kind, "class_names", None)
    if isinstance(names, tuple) and len(names) == num_classes:
        return list(names)
    return [str(i) for i in range(num_classes)]


def _own_data_class(data: dict[str, Any]) -> Any:
    """Return the class of a data set if it belongs to this package, otherwise None."""
    from plif_lightning import data as ours

    package, _, name = str(data.get("class_path")).rpartition(".")
    kind = getattr(ours, name, None) if package.split(".")[0] == "plif_lightning" else None
    return kind if isinstance(kind, type) and issubclass(kind, ours.SpikingDataModule) else None


def _growing(file: str, idle: float | None, left: list[str]) -> Iterator["Recording"]:
    """Yield the events of a growing file or of standard input as they arrive.

    Args:
        file: path, or - for standard input.
        idle: seconds without an event after which a file ends; None for never.
        left: receives the description of an incomplete event or header at the end.
    """
    from plif_lightning.events.readers import EventStream

    with _opened(file) as opened:
        stream = EventStream(opened, _name(file))
        patience = 0.0 if file == "-" else idle
        since = time.monotonic()
        while True:
            some = stream.read()
            if len(some.t):
                yield some
            if not stream.ended:
                since = time.monotonic()
            elif patience is not None and time.monotonic() - since >= patience:
                break
            else:
                time.sleep(0.01)
        if stream.left:
            left.append(stream.left)


def _opened(file: str) -> AbstractContextManager[BinaryIO]:
    """Open a file, or standard input for -."""
    from plif_lightning.events.recording import RecordingError

    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise RecordingError(f"{file} cannot be read: {error.strerror}.") from error


def _name(file: str) -> str:
    return "standard input" if file == "-" else file


def _grows(given: argparse.Namespace) -> bool:
    return given.live or given.file == "-"


def _has_step_length(given: argparse.Namespace) -> bool:
    return given.events_per_step is not None or given.ms_per_step is not None


def _require_compatible(given: argparse.Namespace) -> None:
    """Refuse options of `stream` that contradict each other."""
    if given.events_per_step is not None and given.ms_per_step is not None:
        raise UserError("give --events_per_step or --ms_per_step, not both.")
    if given.idle is not None and not given.live:
        raise UserError("--idle is for --live.")
    if _grows(given) and not _has_step_length(given):
        raise UserError("a live stream has no end to divide by T: pass --events_per_step or --ms_per_step.")


def _network(given: argparse.Namespace, read: _Read) -> "StreamingNetwork":
    """Build the streaming network that the options of `stream` describe."""
    from plif_lightning.deploy.streaming import StreamingNetwork
    from plif_lightning.network.own import has_votes

    if given.early_exit is not None and not has_votes(read.net):
        raise UserError(
            "--early_exit is a margin of votes in [0, 1]: this network's output are the logits of a readout."
        )
    if read.net.input_shape[0] != 2:
        raise UserError(
            f"the network takes {' x '.join(map(str, read.net.input_shape))} images, and a stream gives frames of "
            "events, 2 x H x W."
        )
    return StreamingNetwork(
        read.net,
        events_per_step=given.events_per_step,
        us_per_step=None if given.ms_per_step is None else round(1000 * given.ms_per_step),
        engine=given.engine,
        sensor=read.sensor,
    )


def _steps(given: argparse.Namespace, network: "StreamingNetwork", slicing: Any, left: list[str]) -> Iterator[Any]:
    """Return an iterator that runs one time-step of the network at a time; `left` as in `_growing`."""
    from plif_lightning.events.readers import read_any

    if _grows(given):
        pieces = _growing(given.file, given.idle, left)
        return itertools.chain.from_iterable(network.pushed(piece, name=_name(given.file)) for piece in pieces)
    recording = read_any(given.file)
    if _has_step_length(given):
        return network.pushed(recording, name=given.file)
    if not len(recording.t):
        raise UserError(f"{given.file} holds no events.")
    return network.whole(recording, slicing, given.file)


def _run(steps: Iterator[Any], network: "StreamingNetwork", early_exit: float | None) -> None:
    """Run time-steps to the end of a stream, or until the best class leads by `early_exit`."""
    for _ in steps:
        lead = network.margin if network.votes.any() else -1.0  # no class leads before the first vote
        if early_exit is not None and lead >= early_exit:
            break


def _print_decision(network: "StreamingNetwork", class_names: Sequence[str]) -> bool:
    """Print the decision and return True, or print that there is none and return False."""
    if network.total is not None and network.total.any():
        print(f"decision: {class_names[int(network.votes.argmax())]} after {network.steps} time-steps", flush=True)
        return True
    if network.steps > 0:
        print(f"no decision: no output neuron has fired in {network.steps} time-steps.", flush=True)
    return False


def stream(argv: list[str]) -> int:
    """Classify a stream as its events arrive, and return the exit status: 1 without a decision."""
    given = _stream_parser().parse_args(argv)
    _require_compatible(given)
    read = _read(given.ckpt_path)
    network = _network(given, read)
    screen = _Screen(network, read.class_names, given.plain or not sys.stdout.isatty())
    left: list[str] = []
    steps = _steps(given, network, read.data.get("init_args", {}).get("slicing", "by_count"), left)
    with suppress(KeyboardInterrupt), screen:
        _run(steps, network, given.early_exit)
    decided = _print_decision(network, read.class_names)
    if left and (network.steps == 0 or not given.live):
        raise UserError(left[0])
    if network.steps == 0:
        print(f"no time-step is complete: {network.waiting_events} events are pending.")
    return 0 if decided else 1


class _Screen:
    """Shows the running decision, votes, firing rates and latency, updated in each time-step."""

    def __init__(self, network: Any, names: list[str], plain: bool) -> None:
        self.network, self.names, self.plain = network, names, plain
        self.rates: dict[str, float] = {}
        self.rates_at = 0  # time-step in which they were measured
        self.milliseconds: list[float] = []
        self.live: Any = None
        self.step_of_network = network.step
        network.step = self._timed

    def __enter__(self) -> "_Screen":
        if not self.plain:
            from rich.live import Live

            self.live = Live(refresh_per_second=8)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def _timed(self, frame: Any) -> Any:
        """Run one time-step, measure its firing rates or its time, and show the result."""
        if self.network.steps % _RATES_EVERY == 0:
            from plif_lightning.network.own import listening

            with listening(self.network.net, self._hear):
                votes = self.step_of_network(frame)
            self.rates_at = self.network.steps
        else:
            start = time.perf_counter()
            votes = self.step_of_network(frame)
            self.milliseconds.append(1e3 * (time.perf_counter() - start))
        self._draw()
        return votes

    def _hear(self, layer: str, spikes: "Tensor") -> None:
        self.rates[layer] = spikes.mean().item()

    @property
    def latency(self) -> str:
        """Median time of the last steps; empty before the first is measured."""
        recent = sorted(self.milliseconds[-50:])
        return f"{recent[len(recent) // 2]:.1f} ms a step" if recent else ""

    def _draw(self) -> None:
        votes = self.network.votes
        best = int(votes.argmax()) if votes.any() else None
        if self.plain:
            self._print_line(votes, best)
        else:
            self.live.update(self._table(votes, best))

    def _print_line(self, votes: "Tensor", best: int | None) -> None:
        """Print one line; firing rates only in the time-step in which they were measured."""
        steps = self.network.steps
        leads = "no vote yet" if best is None else f"{self.names[best]} {votes[best]:.3f}"
        rates = " ".join(f"{name} {100 * rate:.1f}%" for name, rate in self.rates.items())
        shown = rates if steps == self.rates_at else ""
        print(f"step {steps}: {leads}  {self.latency}  {shown}".rstrip(), flush=True)

    def _table(self, votes: "Tensor", best: int | None) -> Any:
        """Return a table of all classes with their votes, and the latest firing rates."""
        from rich.markup import escape
        from rich.table import Table

        leads = "no vote yet" if best is None else escape(self.names[best])
        table = Table(title=f"step {self.network.steps}: {leads}  {self.latency}", title_justify="left")
        table.add_column("class")
        table.add_column("votes", justify="right")
        table.add_column("", min_width=24)
        for i, name in enumerate(map(escape, self.names)):
            vote = float(votes[i])
            table.add_row(f"[bold]{name}[/bold]" if i == best else name, f"{vote:.3f}", "#" * round(24 * vote))
        rates = ", ".join(f"{name} {100 * rate:.1f} %" for name, rate in self.rates.items())
        table.caption = f"firing in step {self.rates_at}: {rates}"
        return table


def read_to_test(
    path: Path, root: str | None, number: int, named: Sequence[str] = ()
) -> tuple["SpikingNetwork", "Tensor", "Tensor"]:
    """Return the network of a checkpoint, and test samples of its data set with labels; see `samples_to_test`.

    Args:
        path: path of the checkpoint.
        root: folder of the data sets, if not the configuration's.
        number: number of samples.
        named: `--data NAME` and other arguments of a data set that replaces the checkpoint's.

    Raises:
        UserError: no data set is named, or its data are not available.
    """
    from plif_lightning.cli.lightning import quieten
    from plif_lightning.data.testing import first_test_samples, samples_to_test

    quieten()
    read = _read(path)
    if named:
        from plif_lightning.cli.prepare import data_of

        roots = [] if root is None else [f"--data.root={root}"]
        module, _ = data_of([*named, *roots, f"--data.time_steps={read.net.time_steps}"])
        return read.net, *first_test_samples(module, number)
    if "class_path" not in read.data:
        raise UserError(f"{path} names no data set because another Trainer wrote it: pass --data NAME.")
    return read.net, *samples_to_test(read.data, root, number)


_COLUMNS = (
    "layer", "firing", "dense [M]", "MAC [M]", "AC [M]", "parameters [k]", "state [k]", "moved [MB]", "fp32 [uJ]",
    "int8, fetched [uJ]", "ANN, fetched [uJ]", "int8, reused [uJ]", "ANN, reused [uJ]",
)  # fmt: skip
# Property of a layer's cost, unit, and number of digits.
_NUMBERS = (
    ("dense", 1e6, 2), ("macs", 1e6, 2), ("accumulates", 1e6, 2), ("parameters", 1e3, 1), ("state", 1e3, 1),
    ("traffic", 1e6, 1), ("arithmetic", 1e6, 1),
)  # fmt: skip
# Method of a layer's cost, and its argument `reuse`.
_ENERGIES = tuple((name, reuse) for reuse in (False, True) for name in ("with_memory", "conventional"))


def cost(argv: list[str]) -> int:
    """Print the cost of each layer, write it into a file if one is given, and return the exit status."""
    parser = _cost_parser()
    given, named = parser.parse_known_args(argv)
    if named and not {"--data", "--config", "-c"} & option_names(named):
        parser.error(f"unrecognized arguments: {' '.join(named)}")
    if given.samples < 1:
        raise UserError(f"--samples must be at least 1, got {given.samples}.")
    from plif_lightning.deploy.costs import cost as count
    from plif_lightning.network.own import description

    net, x, _ = read_to_test(given.ckpt_path, given.root, given.samples, named)
    found = count(net, x)
    rows = _cost_rows(found)
    _print_cost(found, rows, description(net))
    if given.out is not None:
        import csv

        from plif_lightning.runtime.files import written_whole

        with written_whole(given.out) as file:
            csv.writer(file).writerows([_COLUMNS, *rows])
        print(given.out)
    return 0


def _cost_rows(found: "Cost") -> list[tuple[str, ...]]:
    """Return the cells of each layer, and of all layers in the last row."""
    layers = [(replace(found, layers=(layer,)), layer.layer, f"{100 * layer.firing:.1f} %") for layer in found.layers]
    return [
        (
            *first,
            *(f"{of.total(name) / unit:,.{digits}f}" for name, unit, digits in _NUMBERS),
            *(f"{of.total(*energy) / 1e6:,.1f}" for energy in _ENERGIES),
        )
        for of, *first in [*layers, (found, "all", "")]
    ]


def _print_cost(found: "Cost", rows: Sequence[Sequence[str]], structure: str) -> None:
    """Print the table, and the ratios of energy to conventional networks."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{escape(structure)}, T = {found.time_steps}, a sample, measured on {found.samples}")
    for column in _COLUMNS:
        table.add_column(escape(column), justify="left" if column == "layer" else "right")
    for i, cells in enumerate(rows):
        table.add_row(*cells, end_section=i == len(rows) - 2)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    arithmetic = found.total("arithmetic") / found.total("arithmetic_dense")
    fetched, reused = (found.total("with_memory", r) / found.total("conventional", r) for r in (False, True))
    console.print(
        f"Energies of a 45 nm process (Horowitz 2014). Arithmetic alone: {arithmetic:.2f} of a float32 network that "
        f"skips nothing over T steps. With memory, 8 bits, against a conventional network of this shape on one frame "
        f"(ANN): {fetched:.2f} times its energy if every operation fetches its weight, {reused:.2f} "
        "times if weights are reused. Above 1 the conventional network wins."
    )
