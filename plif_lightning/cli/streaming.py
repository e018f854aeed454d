"""`stream`: classify a recording time-step by time-step."""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from plif_lightning.cli.parser import PlainParser, add_text_options
from plif_lightning.cli.trained import Trained, checkpoint_parser, for_evaluation, read_trained
from plif_lightning.errors import UserError
from plif_lightning.runtime.process import is_interrupt, subnormals_as_zeros

if TYPE_CHECKING:
    from plif_lightning.deploy.streaming import StreamingNetwork
    from plif_lightning.events.live import LiveText

# In silence a time-step is closed this share of its duration after its end: so long may its events take to arrive.
_GRACE = 0.5


@dataclass
class _Clock:
    """Measurements of a live stream.

    Attributes:
        latencies: for each time-step, the time from its closing to its votes [s].
        late: number of events that arrived after their time-step was closed.
        events: number of all events.
    """

    latencies: list[float] = field(default_factory=list)
    late: int = 0
    events: int = 0


def _stream_parser() -> PlainParser:
    parser = checkpoint_parser("stream", "Classify a recording as its events arrive.")
    parser.add_argument("--file", type=Path, required=True, help="a recording; with --every_ms also - or a pipe")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--events_per_step",
        type=int,
        help="events per time-step (default: those of the network's windows, or all in T steps)",
    )
    length.add_argument("--ms_per_step", type=float, help="milliseconds per time-step, instead of events")
    length.add_argument(
        "--every_ms",
        type=float,
        help="follow events of text in a pipe, in a file that grows or from standard input (-), and decide once in "
        "EVERY_MS milliseconds, in silence too",
    )
    parser.add_argument(
        "--sensor",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the camera, where the network was trained on recordings of several and the file does not name its own",
    )
    add_text_options(parser)
    parser.add_argument("--number", type=int, help="of the recording, from 0, in a file of many (SHD, SSC)")
    parser.add_argument("--last", type=int, help="average the votes of the last LAST time-steps (default: all)")
    parser.add_argument("--engine", choices=["float32", "int8"], default="float32", help="weights (default: float32)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the decision alone, not every time-step")
    return parser


def _has_step_length(options: argparse.Namespace) -> bool:
    return options.events_per_step is not None or options.ms_per_step is not None


def _take_step_length(options: argparse.Namespace, trained: Trained) -> None:
    """Take the length of a time-step from the clock, or, if none is given, from the windows of the training.

    Steps of another length than in training are named.
    """
    for name in ("every_ms", "ms_per_step"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise UserError(f"--{name} must be above 0 milliseconds, got {value:g}.")
    if options.every_ms is not None:
        options.ms_per_step = options.every_ms
    events, ms = trained.input.step_length()
    options.as_trained = not _has_step_length(options)
    if options.as_trained:
        options.events_per_step, options.ms_per_step = events, ms
    elif trained.input.kind is not None and (options.events_per_step, options.ms_per_step) != (events, ms):
        of_recording = f"a T-th of a recording's {trained.input.slicing.removeprefix('by_')}"
        trained_on = f"{events} events" if events else f"{ms:g} ms" if ms else of_recording.replace("count", "events")
        by_ms = options.events_per_step is None
        these = f"{options.ms_per_step:g} ms" if by_ms else f"{options.events_per_step} events"
        print(
            f"note: the network was trained on time-steps of {trained_on}, and these have {these}: its accuracy may be "
            "another.", file=sys.stderr, flush=True,
        )  # fmt: skip


def _network(options: argparse.Namespace, trained: Trained) -> "StreamingNetwork":
    """Build the streaming network that the options of `stream` describe."""
    from plif_lightning.deploy.streaming import StreamingNetwork

    spec = trained.input
    is_line = len(trained.net.input_shape) == 1
    channels = spec.channels or (1 if is_line else 2)
    if spec.probe is not None:
        raise UserError(
            f"the network was trained with data.probe={spec.probe}, which takes time away, and a stream has it: "
            "stream a network that was trained without a probe."
        )
    if spec.kind == "images" or (not is_line and trained.net.input_shape[0] != channels):
        raise UserError(
            f"the network takes {' x '.join(map(str, trained.net.input_shape))} images, and a stream gives frames of "
            "events, 2 x H x W."
        )
    if spec.kind == "sequences":
        raise UserError(
            "the network takes sequences, not events: call plif_lightning.deploy.StreamingNetwork.step with the "
            "features of each time-step (docs/howto/deploy.md)."
        )
    return StreamingNetwork(
        trained.net,
        events_per_step=options.events_per_step,
        us_per_step=None if options.ms_per_step is None else round(1000 * options.ms_per_step),
        engine=options.engine,
        sensor=None if spec.rescales else spec.sensor,
        last=options.last,
        background_us=spec.background_us,
        polarities=channels,
    )


def _live(options: argparse.Namespace, network: "StreamingNetwork", trained: Trained) -> "LiveText":
    """Open a live source, and compile before its events arrive."""
    import torch

    from plif_lightning.events.live import LiveText

    if trained.input.reader is not None:
        raise UserError(
            f"--every_ms reads text, and the network was trained on what {trained.input.reader}.read gives: call "
            "plif_lightning.deploy.StreamingNetwork with its events (docs/howto/deploy.md)."
        )
    network.step(torch.zeros(network.net.input_shape))
    network.reset()
    return LiveText(options.file, trained.input.columns, trained.input.time_unit)


def _steps_on_a_clock(
    network: "StreamingNetwork", source: "LiveText", rescale: Callable[[Any], Any], clock: "_Clock"
) -> Iterator[Any]:
    """Run a time-step when an event after its end arrives, or when the clock says that none will.

    Args:
        network: with time-steps of a duration.
        source: of its events. Events that arrive after their time-step was closed count in the next.
        rescale: changes a recording from the camera's size to the network's input size.
        clock: gets what is measured.
    """
    from numpy import maximum

    assert network.us_per_step is not None
    grace = _GRACE * network.us_per_step
    ahead: float | None = None  # of the events' clock before this machine's, for the event that took least [us]
    while True:
        wait = None
        if ahead is not None and network.step_end is not None:
            wait = max(0.0, (network.step_end + grace - ahead) / 1e6 - monotonic())
        if (arrival := source.take(wait)) is None:
            return
        at, events = arrival
        completed: Iterator[Any] = iter(())
        if len(events.t):
            seen = int(events.t[-1])
            ahead = seen - 1e6 * at if ahead is None else max(ahead, seen - 1e6 * at)
            t = events.t if network.latest is None else maximum(events.t, network.latest)
            clock.late += int((t != events.t).sum())
            clock.events += len(t)
            completed = network.pushed(rescale(events._replace(t=t)), name=source.name)
        elif ahead is not None:
            completed = network.advanced(max(network.latest or 0, int(1e6 * at + ahead - grace)))
        for votes in completed:
            clock.latencies.append(monotonic() - at)
            yield votes


def _steps(options: argparse.Namespace, network: "StreamingNetwork", trained: Trained) -> Iterator[Any]:
    """Return an iterator over the network's time-steps."""
    from plif_lightning.events.readers import sensor_of

    spec, sensor = trained.input, sensor_of(options.file)
    if sensor not in (None, network.sensor) and not spec.rescales:
        raise UserError(
            f"{options.file} is of a sensor of {sensor} pixels (height x width), and the network was trained on "
            f"{network.sensor}."
        )
    recording = _recording(options.file, trained, options.sensor, options.number)
    if not len(recording.t):
        raise UserError(f"{options.file} holds no events.")
    if _has_step_length(options):
        if spec.from_zero and network.us_per_step is not None:
            network.advance(0)
        steps = network.pushed(recording, name=str(options.file))
        if not options.as_trained or spec.step_us is None or spec.window_us is not None:
            return steps
        # As in training: T steps, silent ones included.
        assert network.us_per_step is not None
        begin = 0 if spec.from_zero else int(recording.t[0])
        end = begin + network.net.time_steps * network.us_per_step
        silence = (votes for _ in (0,) for votes in network.advanced(max(end, int(recording.t[-1]))))
        return itertools.islice(itertools.chain(steps, silence), network.net.time_steps)
    return network.run_recording(recording, spec.slicing, str(options.file))


def _rescale(trained: Trained, name: str, sensor: Any, recording: Any) -> Any:
    """Rescale a recording to the frame size if training rescaled its recordings; otherwise return it unchanged.

    Args:
        trained: the network and its data set.
        name: of the recording's file.
        sensor: from the file, or from the user.
        recording: its events.
    """
    from plif_lightning.events.recording import RecordingError, Sensor, rescale

    if not trained.input.rescales:
        return recording
    assert trained.input.size is not None
    if (sensor := sensor or trained.input.sensor) is None:
        raise UserError(f"{name} does not name its sensor: pass --sensor HEIGHT WIDTH.")
    try:
        return rescale(recording, Sensor.of(sensor), Sensor.of(trained.input.size), name)
    except RecordingError as error:
        raise UserError(f"{error} Pass --sensor HEIGHT WIDTH of its camera.") from error


def _recording(file: Path, trained: Trained, sensor: Any, number: int | None) -> Any:
    """Events of a file, read as in training: by the user-defined data set, if the network was trained on it.

    Args:
        file: the file.
        trained: the network and its data set.
        sensor: of a file that does not name it, if the recordings are rescaled.
        number: of the recording in a file of many.
    """
    if trained.input.reader is None:
        from plif_lightning.events.readers import read_any, sensor_of

        recording = read_any(file, trained.input.columns, trained.input.time_unit)
        return _rescale(trained, str(file), sensor_of(file) or sensor, recording)
    from plif_lightning.cli.prepare import data_in  # which loads Lightning

    data: Any = data_in(for_evaluation(trained.data))
    recordings = [recording for _, recording in data.read(file, 0)]
    if not 0 <= (number or 0) < len(recordings) or (number is None and len(recordings) > 1):
        raise UserError(f"{file} holds {len(recordings)} recordings: pass --number 0 to {len(recordings) - 1}.")
    return recordings[number or 0]


def _print_decision(network: "StreamingNetwork", class_names: Sequence[str]) -> bool:
    """Print the decision and return True, or print that there is none and return False."""
    if network.steps > 0 and network.votes.any():
        print(f"decision: {class_names[int(network.votes.argmax())]} after {network.steps} time-steps", flush=True)
        return True
    if network.steps > 0:
        last = "" if network.last is None or network.last >= network.steps else f"the last {network.last} of "
        print(f"no decision: no output neuron has fired in {last}{network.steps} time-steps.", flush=True)
    return False


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """End the block at Ctrl-C."""
    try:
        yield
    except BaseException as error:
        if not is_interrupt(error):
            raise


def stream(argv: list[str]) -> int:
    """Classify a recording as its events arrive, and return the exit status: 1 without a decision."""
    return _stream(_stream_parser().parse_args(argv))


@subnormals_as_zeros()
def _stream(options: argparse.Namespace) -> int:
    if str(options.file) == "-" and options.every_ms is None:
        raise UserError("standard input has no end that is known: pass --every_ms MILLISECONDS with --file -.")
    trained = read_trained(options.ckpt_path)
    written = {"columns": options.columns, "time_unit": options.time_unit}
    spec = replace(trained.input, **{name: value for name, value in written.items() if value})
    trained = replace(trained, input=spec)
    if options.sensor is not None and not spec.rescales:
        raise UserError("--sensor is for a network that was trained on recordings of several cameras: leave it out.")
    _take_step_length(options, trained)
    network = _network(options, trained)
    clock = _Clock()
    with _until_interrupted():
        if options.every_ms is None:
            steps = _steps(options, network, trained)
        else:
            source = _live(options, network, trained)
            if not options.quiet:
                until = ", until Ctrl-C" if source.grows else ""
                print(f"ready: following {source.name}, a decision every {options.every_ms:g} ms{until}", flush=True)
            rescale = partial(_rescale, trained, source.name, options.sensor)
            steps = _steps_on_a_clock(network, source, rescale, clock)
        for votes in steps:
            if options.quiet:
                continue
            best = int(votes.argmax())
            leads = f"{trained.class_names[best]} {votes[best]:.3f}" if votes.any() else "no vote yet"
            print(f"step {network.steps}: {leads}", flush=True)
    if clock.late:
        print(
            f"note: {clock.late} of {clock.events} events arrived after their time-step was closed, and count in a "
            "later one: write events sooner, start them after `ready`, or take longer steps. If they are most, their "
            "times have another unit (--time_unit) or jump back.", file=sys.stderr, flush=True,
        )  # fmt: skip
    if clock.latencies and not options.quiet:
        from numpy import percentile

        median, p99 = 1000 * percentile(clock.latencies, (50, 99))
        print(f"latency, from what ended a time-step to its votes: p50 {median:.2f} ms, p99 {p99:.2f} ms")
    decided = _print_decision(network, trained.class_names)
    if network.steps == 0:
        print(f"no time-step is complete: {network.waiting_events} events are pending.")
    elif network.waiting_events:
        late = f"note: {network.waiting_events} events behind the last complete time-step are not in the decision."
        print(late, file=sys.stderr, flush=True)
    return 0 if decided else 1
