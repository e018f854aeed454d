"""`export`, `stream` and `cost`: a trained network on its own. `cost` alone loads Lightning, for its data set."""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from plif_lightning.cli.parser import PlainParser
from plif_lightning.deploy.engines import Engine
from plif_lightning.errors import UserError
from plif_lightning.runtime.console import Console

if TYPE_CHECKING:
    from torch import Tensor

    from plif_lightning.events.recording import Recording
    from plif_lightning.network import SpikingNetwork

# Time-steps of which one measures firing rates: a neuron that is listened to is called by itself, which is slower.
_RATES_EVERY = 10
# Of a stream: auto would need inputs to try.
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
    parser = _parser("export", "Writes a checkpoint's network, BN folded into its convolutions, for other programs.")
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
        help="what the network takes, images [N, C, H, W] or frames [T, N, C, H, W] (default: what its data set gives)",
    )
    return parser


def _number(text: str, low: float, high: float, what: str) -> float:
    with suppress(ValueError):
        if low <= (value := float(text)) <= high:
            return value
    raise argparse.ArgumentTypeError(f"must be {what}, got {text}")


_positive = partial(_number, low=0.001, high=sys.float_info.max, what="a number of at least 0.001")
_share = partial(_number, low=0.0, high=1.0, what="from 0 to 1")


def _stream_parser() -> PlainParser:
    parser = _parser("stream", "Shows a network's running decision on a recording, a growing file or a pipe.")
    parser.add_argument("--file", required=True, help="a recording; - reads AEDAT 2.0 from standard input")
    parser.add_argument("--live", action="store_true", help="the file (AEDAT 2.0) grows: wait for more until Ctrl-C")
    parser.add_argument("--idle", type=_positive, help="with --live: end after so many seconds without an event")
    parser.add_argument("--events_per_step", type=int, help="events of a time-step (default: T steps, as in training)")
    parser.add_argument("--ms_per_step", type=_positive, help="milliseconds of a time-step, instead")
    parser.add_argument("--early_exit", type=_share, help="end when the best class is ahead by this share of the votes")
    parser.add_argument(
        "--engine", choices=_ENGINES, default="events", help="form of the layers, as of predict (default: events)"
    )
    parser.add_argument("--plain", action="store_true", help="a line for each time-step, instead of a table")
    return parser


def _cost_parser() -> PlainParser:
    parser = _parser("cost", "Counts what a network computes and moves, and estimates its energy.")
    parser.add_argument("--data.root", dest="root", help="folder of the data sets, where it is another one now")
    parser.epilog = "--data NAME and --data.KEY VALUE, as of prepare: the data set, where the checkpoint names none."
    parser.add_argument("--samples", type=int, default=32, help="test samples to measure firing on (default: 32)")
    parser.add_argument("--out", type=Path, help="a csv file with a row for each layer")
    return parser


PARSERS = {"export": _export_parser, "stream": _stream_parser, "cost": _cost_parser}


def export(argv: list[str]) -> int:
    """Writes the files, and says what they are."""
    given = _export_parser().parse_args(argv)
    from plif_lightning.deploy.exporting import export as write

    files = write(given.ckpt_path, given.out, given.format or ["network"], given.input)
    for name, size in files.items():
        print(f"{given.out / name}  {size / 2**20:,.1f} MiB")
    return 0


class _Read(NamedTuple):
    """A network and what its checkpoint says of its data.

    Attributes:
        net: the network.
        data: block of the configuration; empty where the checkpoint has none.
        class_names: a name for each class; its number where the checkpoint does not say.
        sensor: height and width of the camera whose pixels the data set collects in fewer ones; None where it does not.
    """

    net: "SpikingNetwork"
    data: dict[str, Any]
    class_names: list[str]
    sensor: Any


def _read(path: Path) -> _Read:
    """What a checkpoint, or a folder that export wrote, holds; nothing outside this package is imported for it."""
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
    kind = None if names is not None and sensor is not None else _own_data_class(data)  # of older checkpoints
    of_kind = getattr(kind, "class_names", None)
    if names is None and isinstance(of_kind, tuple) and len(of_kind) == net.num_classes:
        names = list(of_kind)
    names = names or [str(i) for i in range(net.num_classes)]
    if settings.get("size") is None:
        return _Read(net, data, names, None)
    return _Read(net, data, names, settings.get("sensor") or sensor or getattr(kind, "sensor", None))


def _own_data_class(data: dict[str, Any]) -> Any:
    """The class of a data set where it is one of this package; None where it is another program's."""
    from plif_lightning import data as ours

    package, _, name = str(data.get("class_path")).rpartition(".")
    kind = getattr(ours, name, None) if package.split(".")[0] == "plif_lightning" else None
    return kind if isinstance(kind, type) and issubclass(kind, ours.SpikingDataModule) else None


def _growing(file: str, idle: float | None, left: list[str]) -> Iterator["Recording"]:
    """The events of a file that grows, or of standard input, as they come; `left` gets what its end cuts off."""
    from plif_lightning.events.readers import Aedat2Stream
    from plif_lightning.events.recording import RecordingError

    with ExitStack() as held:
        try:
            opened = sys.stdin.buffer if file == "-" else held.enter_context(Path(file).open("rb"))
        except OSError as error:
            raise RecordingError(f"{file} cannot be read: {error.strerror}.") from error
        stream = Aedat2Stream(opened, _name(file))
        since = time.monotonic()
        while True:
            some = stream.read()
            if len(some.t):
                yield some
            if not stream.ended:
                since = time.monotonic()
            else:
                if file == "-" or (idle is not None and time.monotonic() - since >= idle):
                    break
                time.sleep(0.01)
        if stream.left:
            left.append(stream.left)


def _name(file: str) -> str:
    return "standard input" if file == "-" else file


def stream(argv: list[str]) -> int:
    """Shows the decision as it forms."""
    given = _stream_parser().parse_args(argv)
    from plif_lightning.deploy.streaming import StreamingNetwork
    from plif_lightning.events.readers import read_any

    if given.events_per_step is not None and given.ms_per_step is not None:
        raise UserError("give --events_per_step or --ms_per_step, not both.")
    if given.idle is not None and not given.live:
        raise UserError("--idle is for --live.")
    net, data, names, sensor = _read(given.ckpt_path)
    if net.input_shape[0] != 2:
        raise UserError(
            f"the network takes {' x '.join(map(str, net.input_shape))} images, and a stream gives frames of events, "
            "2 x H x W."
        )
    growing, cut = given.live or given.file == "-", given.events_per_step is not None or given.ms_per_step is not None
    if growing and not cut:
        raise UserError("a live stream has no end to divide by T: pass --events_per_step or --ms_per_step.")
    us = None if given.ms_per_step is None else round(1000 * given.ms_per_step)
    network = StreamingNetwork(
        net, events_per_step=given.events_per_step, us_per_step=us, engine=given.engine, sensor=sensor
    )
    screen = _Screen(network, names, given.plain or not sys.stdout.isatty())
    left: list[str] = []
    steps: Iterator[Any]
    if growing:
        pieces = _growing(given.file, given.idle, left)
        steps = itertools.chain.from_iterable(network.pushed(piece, name=_name(given.file)) for piece in pieces)
    elif cut:
        steps = network.pushed(read_any(given.file), name=given.file)
    else:
        recording = read_any(given.file)
        if not len(recording.t):
            raise UserError(f"{given.file} holds no events.")
        steps = network.whole(recording, data.get("init_args", {}).get("slicing", "by_count"), given.file)
    try:
        with screen:
            for _ in steps:
                ahead = network.margin if network.votes.any() else -1.0  # before the first vote nothing leads
                if given.early_exit is not None and ahead >= given.early_exit:
                    break
    except KeyboardInterrupt:
        pass
    decided = network.total is not None and bool(network.total.any())
    if decided:
        print(f"decision: {names[int(network.votes.argmax())]} after {network.steps} time-steps", flush=True)
    elif network.steps > 0:
        print(f"no decision: no output neuron has fired in {network.steps} time-steps.", flush=True)
    if left and (network.steps == 0 or not given.live):
        raise UserError(left[0])
    if network.steps == 0:
        print(f"no time-step came together: {network.waiting_events} events are waiting.")
    return 0 if decided else 1


class _Screen:
    """The running decision, votes, firing rates and latency, drawn anew with each time-step."""

    def __init__(self, network: Any, names: list[str], plain: bool) -> None:
        self.network, self.names, self.plain = network, names, plain
        self.rates: dict[str, float] = {}
        self.rates_at = 0  # the step that they were measured in
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
        if self.network.steps % _RATES_EVERY == 0:
            with self.network.net.listening(self._hear):
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
    def latency(self) -> float | None:
        recent = sorted(self.milliseconds[-50:])
        return recent[len(recent) // 2] if recent else None

    def _draw(self) -> None:
        votes, steps = self.network.votes, self.network.steps
        best = int(votes.argmax()) if votes.any() else None
        latency = "" if self.latency is None else f"{self.latency:.1f} ms a step"
        if self.plain:
            leads = "no vote yet" if best is None else f"{self.names[best]} {votes[best]:.3f}"
            rates = " ".join(f"{name} {100 * rate:.1f}%" for name, rate in self.rates.items())
            # Rates are shown with the step that they are of, and not again.
            print(f"step {steps}: {leads}  {latency}  {rates if steps == self.rates_at else ''}".rstrip(), flush=True)
            return
        from rich.markup import escape
        from rich.table import Table

        leads = "no vote yet" if best is None else escape(self.names[best])
        table = Table(title=f"step {steps}: {leads}  {latency}", title_justify="left")
        table.add_column("class")
        table.add_column("votes", justify="right")
        table.add_column("", min_width=24)
        for i, name in enumerate(map(escape, self.names)):
            vote = float(votes[i])
            table.add_row(f"[bold]{name}[/bold]" if i == best else name, f"{vote:.3f}", "#" * round(24 * vote))
        rates = ", ".join(f"{name} {100 * rate:.1f} %" for name, rate in self.rates.items())
        table.caption = f"firing in step {self.rates_at}: {rates}"
        self.live.update(table)


def read_to_test(
    path: Path, root: str | None, number: int, named: Sequence[str] = ()
) -> tuple["SpikingNetwork", "Tensor", "Tensor"]:
    """The network of a checkpoint, and some test samples of its data set with their labels; see `samples_to_test`.

    Args:
        path: of the checkpoint.
        root: of the data sets, where it is another than the configuration's.
        number: of samples.
        named: `--data NAME` and more arguments of a data set, which counts instead of the checkpoint's.

    Raises:
        UserError: no data set is named; the data cannot be had.
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
        raise UserError(f"{path} names no data set, as none of another Trainer does: pass --data NAME.")
    return read.net, *samples_to_test(read.data, root, number)


def cost(argv: list[str]) -> int:
    """Prints the table."""
    parser = _cost_parser()
    given, named = parser.parse_known_args(argv)
    if named and not {"--data", "--config", "-c"} & {argument.split("=")[0] for argument in named}:
        parser.error(f"unrecognized arguments: {' '.join(named)}")
    if given.samples < 1:
        raise UserError(f"--samples must be at least 1, got {given.samples}.")
    from rich.markup import escape
    from rich.table import Table

    from plif_lightning.deploy.costs import Cost
    from plif_lightning.deploy.costs import cost as count

    net, x, _ = read_to_test(given.ckpt_path, given.root, given.samples, named)
    found = count(net, x)
    columns = (
        "layer", "firing", "dense [M]", "MAC [M]", "AC [M]", "parameters [k]", "state [k]", "moved [MB]", "fp32 [uJ]",
        "int8, fetched [uJ]", "ANN, fetched [uJ]", "int8, reused [uJ]", "ANN, reused [uJ]",
    )  # fmt: skip

    numbers = (
        ("dense", 1e6, 2), ("macs", 1e6, 2), ("accumulates", 1e6, 2), ("parameters", 1e3, 1), ("state", 1e3, 1),
        ("traffic", 1e6, 1), ("arithmetic", 1e6, 1),
    )  # fmt: skip
    energies = [(name, reuse) for reuse in (False, True) for name in ("with_memory", "conventional")]

    def row(of: Cost, *first: str) -> tuple[str, ...]:
        """Of one layer, or of all of them."""
        plain = (f"{of.total(name) / unit:,.{digits}f}" for name, unit, digits in numbers)
        return *first, *plain, *(f"{of.total(*energy) / 1e6:,.1f}" for energy in energies)

    rows = [
        row(Cost((layer,), found.samples, found.time_steps), layer.layer, f"{100 * layer.firing:.1f} %")
        for layer in found.layers
    ]
    rows.append(row(found, "all", ""))
    table = Table(title=f"{escape(str(net.structure))}, T = {found.time_steps}, a sample, measured on {found.samples}")
    for i, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if i == 0 else "right")
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
    if given.out is not None:
        import csv

        from plif_lightning.runtime.files import written_whole

        with written_whole(given.out) as file:
            csv.writer(file).writerows([columns, *rows])
        print(given.out)
    return 0
