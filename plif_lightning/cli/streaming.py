"""`stream`: a trained network on a recording, one time-step at a time."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plif_lightning.cli.parser import PlainParser
from plif_lightning.cli.trained import Trained, checkpoint_parser, for_evaluation, read_trained
from plif_lightning.errors import UserError

if TYPE_CHECKING:
    from plif_lightning.deploy.streaming import StreamingNetwork


def _stream_parser() -> PlainParser:
    parser = checkpoint_parser("stream", "Classify a recording as its events arrive.")
    parser.add_argument("--file", type=Path, required=True, help="a recording")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--events_per_step",
        type=int,
        help="events per time-step (default: those of the network's windows, or all in T steps)",
    )
    length.add_argument("--ms_per_step", type=float, help="milliseconds per time-step, instead of events")
    parser.add_argument("--last", type=int, help="average the votes of the last LAST time-steps (default: all)")
    parser.add_argument("--engine", choices=["float32", "int8"], default="float32", help="weights (default: float32)")
    return parser


def _has_step_length(given: argparse.Namespace) -> bool:
    return given.events_per_step is not None or given.ms_per_step is not None


def _take_step_length(given: argparse.Namespace, trained: Trained) -> None:
    """Take the length of a time-step from the windows that the network was trained on, if none is given."""
    settings = trained.data.get("init_args", {})
    if not _has_step_length(given):
        steps = trained.net.time_steps
        if settings.get("window_events"):
            given.events_per_step = max(1, settings["window_events"] // steps)
        elif settings.get("window_ms"):
            given.ms_per_step = settings["window_ms"] / steps


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


def _steps(given: argparse.Namespace, network: "StreamingNetwork", trained: Trained) -> Iterator[Any]:
    """Return an iterator that runs one time-step of the network at a time."""
    from plif_lightning.events.readers import sensor_of

    settings = trained.data.get("init_args", {})
    sensor = sensor_of(given.file)
    if sensor not in (None, network.sensor):
        raise UserError(
            f"{given.file} is of a sensor of {sensor} pixels (height x width), and the network was trained on "
            f"{network.sensor}."
        )
    recording = _recording(given.file, trained)
    if _has_step_length(given):
        return network.pushed(recording, name=str(given.file))
    if not len(recording.t):
        raise UserError(f"{given.file} holds no events.")
    return network.whole(recording, settings.get("slicing", "by_count"), str(given.file))


def _recording(file: Path, trained: Trained) -> Any:
    """Events of a file, read as in training: by a data set of the user's own, if that is what was trained on."""
    settings = trained.data.get("init_args", {})
    path = str(trained.data.get("class_path", ""))
    if not path or path.startswith("plif_lightning."):
        from plif_lightning.events.readers import read_any

        return read_any(file, settings.get("columns"), settings.get("time_unit"))
    from plif_lightning.cli.prepare import data_in  # which loads Lightning

    data: Any = data_in(for_evaluation(trained.data))
    recordings = [recording for _, recording in data.read(file, 0)]
    if len(recordings) != 1:
        raise UserError(f"{path}.read gives {len(recordings)} recordings of {file}, and a stream takes one.")
    return recordings[0]


def _print_decision(network: "StreamingNetwork", class_names: Sequence[str]) -> bool:
    """Print the decision and return True, or print that there is none and return False."""
    if network.steps > 0 and network.votes.any():
        print(f"decision: {class_names[int(network.votes.argmax())]} after {network.steps} time-steps", flush=True)
        return True
    if network.steps > 0:
        last = "" if network.last is None or network.last >= network.steps else f"the last {network.last} of "
        print(f"no decision: no output neuron has fired in {last}{network.steps} time-steps.", flush=True)
    return False


def stream(argv: list[str]) -> int:
    """Classify a recording as its events arrive, and return the exit status: 1 without a decision."""
    given = _stream_parser().parse_args(argv)
    trained = read_trained(given.ckpt_path)
    _take_step_length(given, trained)
    network = _network(given, trained)
    with suppress(KeyboardInterrupt):
        for votes in _steps(given, network, trained):
            best = int(votes.argmax())
            leads = f"{trained.class_names[best]} {votes[best]:.3f}" if votes.any() else "no vote yet"
            print(f"step {network.steps}: {leads}", flush=True)
    decided = _print_decision(network, trained.class_names)
    if network.steps == 0:
        print(f"no time-step is complete: {network.waiting_events} events are pending.")
    return 0 if decided else 1
