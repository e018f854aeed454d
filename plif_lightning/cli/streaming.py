"""`stream`: a trained network on a recording, a growing file, a pipe or a socket."""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from plif_lightning.cli.parser import PlainParser
from plif_lightning.cli.trained import Trained, checkpoint_parser, read_trained
from plif_lightning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from plif_lightning.deploy.streaming import StreamingNetwork
    from plif_lightning.events.recording import Recording, Sensor
    from plif_lightning.events.sockets import EventSocket

# Interval of measuring firing rates [time-steps]: a step that reports its spikes is slower.
_RATES_EVERY = 10


def _number(text: str, low: float, high: float, what: str) -> float:
    """Parse a number from `low` to `high`."""
    with suppress(ValueError):
        if low <= (value := float(text)) <= high:
            return value
    raise argparse.ArgumentTypeError(f"must be {what}, got {text}")


_positive = partial(_number, low=0.001, high=sys.float_info.max, what="a number of at least 0.001")


def _stream_parser() -> PlainParser:
    parser = checkpoint_parser("stream", "Classify a recording, a growing file, a pipe or a socket as events arrive.")
    parser.add_argument("--file", help="a recording; - reads one from standard input as it comes")
    parser.add_argument("--port", type=int, help="read AER packets or text from this TCP and UDP port of this machine")
    parser.add_argument("--live", action="store_true", help="follow a growing file until Ctrl-C")
    parser.add_argument(
        "--idle", type=_positive, help="with --live or --port: end after this many seconds without an event"
    )
    parser.add_argument(
        "--events_per_step",
        type=int,
        help="events per time-step (default: those of its windows, or all in T steps; needed if live without windows)",
    )
    parser.add_argument("--ms_per_step", type=_positive, help="milliseconds per time-step, instead of events")
    parser.add_argument(
        "--last", type=int, help="decide by the mean votes of so many last time-steps (default: of all)"
    )
    parser.add_argument("--engine", choices=["float32", "int8"], default="float32", help="weights (default: float32)")
    parser.add_argument("--plain", action="store_true", help="print a line for each time-step instead of a table")
    return parser


PARSERS = {"stream": _stream_parser}


def _growing(file: str, idle: float | None, left: list[str], sensors: list["Sensor"]) -> Iterator["Recording"]:
    """Yield the events of a growing file or of standard input as they arrive.

    Args:
        file: path, or - for standard input.
        idle: seconds without an event after which a file ends; None for never.
        left: receives the description of an incomplete event or header at the end.
        sensors: receives the sensor that the header names, before the first events.
    """
    from plif_lightning.events.readers import EventStream

    with _opened(file) as opened:
        stream = EventStream(opened, _name(file))
        patience = 0.0 if file == "-" else idle
        since = time.monotonic()
        while True:
            some = stream.read()
            if stream.decoder is not None and stream.decoder.sensor is not None and not sensors:
                sensors.append(stream.decoder.sensor)
            if len(some.t):
                yield some
            if not stream.ended:
                since = time.monotonic()
            elif patience is not None and time.monotonic() - since >= patience:
                break
            else:
                time.sleep(0.01)
        yield stream.flush()
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
    return given.live or given.file == "-" or given.port is not None


def _has_step_length(given: argparse.Namespace) -> bool:
    return given.events_per_step is not None or given.ms_per_step is not None


def _require_compatible(given: argparse.Namespace) -> None:
    """Refuse options of `stream` that contradict each other."""
    if given.file is not None and given.port is not None:
        raise UserError("give --file or --port, not both.")
    if given.file is None and given.port is None:
        raise UserError("give --file, such as --file recording.raw, or --port, such as --port 9000.")
    if given.live and given.port is not None:
        raise UserError("--live is for --file: a port is live.")
    if given.events_per_step is not None and given.ms_per_step is not None:
        raise UserError("give --events_per_step or --ms_per_step, not both.")
    if given.idle is not None and not given.live and given.port is None:
        raise UserError("--idle is for --live and --port.")


def _take_step_length(given: argparse.Namespace, trained: Trained) -> None:
    """Take the length of a time-step from the windows that the network was trained on, if none is given."""
    settings = trained.data.get("init_args", {})
    if not _has_step_length(given):
        steps = trained.net.time_steps
        by_time = settings.get("slicing") == "by_time"
        if settings.get("window_events"):
            given.events_per_step = max(1, settings["window_events"] // steps)
            if by_time:
                _say_other_slices("of equal duration", f"{given.events_per_step} events")
        elif settings.get("window_ms"):
            given.ms_per_step = settings["window_ms"] / steps
            if not by_time:
                _say_other_slices("of equally many events", f"{given.ms_per_step:g} ms")


def _say_other_slices(trained: str, taken: str) -> None:
    print(
        f"note: the network's windows were cut into time-steps {trained}; those of this stream have {taken}, so "
        "that votes may differ (--events_per_step and --ms_per_step choose others).",
        flush=True,
    )


def _network(given: argparse.Namespace, trained: Trained) -> "StreamingNetwork":
    """Build the streaming network that the options of `stream` describe."""
    from plif_lightning.deploy.streaming import StreamingNetwork

    if trained.net.input_shape[0] != 2:
        raise UserError(
            f"the network takes {' x '.join(map(str, trained.net.input_shape))} images, and a stream gives frames of "
            "events, 2 x H x W."
        )
    return StreamingNetwork(
        trained.net,
        events_per_step=given.events_per_step,
        us_per_step=None if given.ms_per_step is None else round(1000 * given.ms_per_step),
        engine=given.engine,
        sensor=trained.sensor,
        last=given.last,
        background_us=trained.data.get("init_args", {}).get("background_us"),
    )


def _take_sensor(network: "StreamingNetwork", trained: Trained, sensor: Any, name: str) -> None:
    """Check the sensor that a source names; a network of recordings of several sensors takes it.

    Raises:
        UserError: the network was trained on another sensor.
    """
    if sensor in (None, network.sensor):
        return
    if trained.sensor is not None and network.sensor == network.frame:
        network.use_sensor(sensor)
        return
    raise UserError(
        f"{name} is of a sensor of {sensor} pixels (height x width), and the network was trained on {network.sensor}."
    )


def _steps(
    given: argparse.Namespace,
    network: "StreamingNetwork",
    trained: Trained,
    source: "EventSocket | None",
    left: list[str],
) -> Iterator[Any]:
    """Return an iterator that runs one time-step of the network at a time; `left` as in `_growing`."""
    from plif_lightning.events.readers import read_any, sensor_of

    if source is not None:
        name = f"port {source.port}"
        pieces = source.pieces(given.idle)
        return itertools.chain.from_iterable(network.pushed(piece, name=name) for piece in pieces)
    if _grows(given):
        return _followed(given, network, trained, left)
    recording = read_any(given.file)
    _take_sensor(network, trained, sensor_of(given.file), given.file)
    if factor := trained.data.get("init_args", {}).get("hot_pixels"):
        from plif_lightning.events.noise import without_hot_pixels

        recording = without_hot_pixels(recording, network.sensor, factor, given.file)
    if _has_step_length(given):
        return network.pushed(recording, name=given.file)
    if not len(recording.t):
        raise UserError(f"{given.file} holds no events.")
    return network.whole(recording, trained.data.get("init_args", {}).get("slicing", "by_count"), given.file)


def _followed(
    given: argparse.Namespace, network: "StreamingNetwork", trained: Trained, left: list[str]
) -> Iterator[Any]:
    """Run the time-steps of a growing file or of standard input."""
    sensors: list[Sensor] = []
    for piece in _growing(given.file, given.idle, left, sensors):
        _take_sensor(network, trained, sensors[0] if sensors else None, _name(given.file))
        yield from network.pushed(piece, name=_name(given.file))


def _print_decision(network: "StreamingNetwork", class_names: Sequence[str]) -> bool:
    """Print the decision and return True, or print that there is none and return False."""
    if network.steps > 0 and network.votes.any():
        print(f"decision: {class_names[int(network.votes.argmax())]} after {network.steps} time-steps", flush=True)
        return True
    if network.steps > 0:
        last = "" if network.last is None or network.last >= network.steps else f"the last {network.last} of "
        print(f"no decision: no output neuron has fired in {last}{network.steps} time-steps.", flush=True)
    return False


def _say_what_was_lost(source: "EventSocket | None") -> None:
    if source is not None and (source.late or source.damaged):
        print(f"dropped: {source.late} events that came late, and {source.damaged} damaged packets or events.")


def stream(argv: list[str]) -> int:
    """Classify a stream as its events arrive, and return the exit status: 1 without a decision."""
    given = _stream_parser().parse_args(argv)
    _require_compatible(given)
    trained = read_trained(given.ckpt_path)
    _take_step_length(given, trained)
    network = _network(given, trained)
    if _grows(given) and not _has_step_length(given):
        raise UserError("a live stream has no end to divide by T: pass --events_per_step or --ms_per_step.")
    left: list[str] = []
    with ExitStack() as stack:
        source = None
        if given.port is not None:
            from plif_lightning.events.sockets import EventSocket

            source = stack.enter_context(EventSocket(given.port, network.sensor))
            print(f"listening on TCP and UDP port {source.port} of this machine", flush=True)
        if _grows(given) and trained.data.get("init_args", {}).get("hot_pixels"):
            print(
                "note: the network's data have no hot pixels; to find them takes a whole recording, so they stay here."
            )
        screen = _Screen(network, trained.class_names, given.plain or not sys.stdout.isatty())
        steps = _steps(given, network, trained, source, left)
        with suppress(KeyboardInterrupt), screen:
            for _ in steps:
                pass
        decided = _print_decision(network, trained.class_names)
        _say_what_was_lost(source)
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
