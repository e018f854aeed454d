"""Run a trained network on a stream of events or frames, with persistent states and running votes."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plif_lightning.deploy.folding import fold
from plif_lightning.deploy.frozen import Engine, freeze
from plif_lightning.errors import UserError, require_count
from plif_lightning.events.integration import (
    BackgroundFilter,
    Slicing,
    count_events,
    integrate,
    resize,
    without_background,
)
from plif_lightning.events.recording import Packed, Recording, Sensor, in_channels, pack_events, recording_of
from plif_lightning.network import step
from plif_lightning.signals.states import LayerState


class StreamingNetwork:
    """Runs a network time-step by time-step, on a stream of any length.

    Holds a copy of the network with BN folded. It sums in a fixed order, so votes do not depend on how a stream is
    split into calls. On a CPU it is `deployed`: layers process only non-zero inputs.

    Args:
        net: trained network from a structure, on any device; frames are moved there.
        events_per_step: number of events per time-step of `push`.
        us_per_step: duration of a time-step of `push` [us], counted from the first event, empty steps included; pass
            either this or `events_per_step`.
        engine: float32 or int8, see `deployed`; int8 on a CPU only.
        sensor: height and width of the camera [pixels], if larger than the network's frames (`size` of a data module).
        background_us: drop noise, as in the event data modules.
        last: average the votes of the last `last` time-steps, to follow scene changes sooner; None for all, or for the
            last alone of a structure that ends in LAST.
        polarities: channels of a line of sensors, whose features are polarities times sensors; 1 by default.

    Raises:
        UserError: an argument lies outside its range, the input encoder is random, or the network is user-defined.

    >>> import plif_lightning as pl
    >>> stream = StreamingNetwork(pl.SpikingNetwork((2, 8, 8), 3, 4, channels=4, fc_features=8), events_per_step=2)
    >>> stream.push([0, 1, 2], [0, 0, 5], [10, 12, 40], [1, 0, 1]).shape  # one step is complete, one event is pending
    torch.Size([1, 3])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        events_per_step: int | None = None,
        us_per_step: int | None = None,
        engine: Engine = "float32",
        sensor: tuple[int, int] | None = None,
        background_us: int | None = None,
        last: int | None = None,
        polarities: int | None = None,
    ) -> None:
        for name, value in (("events_per_step", events_per_step), ("us_per_step", us_per_step), ("last", last)):
            if value is not None:
                require_count(name, value)
        if events_per_step is not None and us_per_step is not None:
            raise UserError("give events_per_step or us_per_step, not both.")
        net = fold(net).requires_grad_(False)
        if net.inputs.name != "direct":
            raise UserError(f"input_encoder={net.inputs.name!r} needs all time-steps of an image: it cannot stream.")
        weight = next(net.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self._step: Callable[..., Any]
        if self.device.type == "cpu" and self.dtype == torch.float32:
            self.net: Any = freeze(net, engine)
            self._step = self.net.step
        elif engine == "float32":
            self.net = net
            self._step = partial(step, self.net)
        else:
            raise UserError(f"engine={engine!r} runs on a CPU in float32, not on {self.device} in {self.dtype}.")
        self.events_per_step, self.us_per_step = events_per_step, us_per_step
        is_line = len(net.input_shape) == 1
        self.polarities = polarities or (1 if is_line else net.input_shape[0])
        height, width = (1, net.input_shape[0] // self.polarities) if is_line else net.input_shape[1:]
        self.frame = Sensor(height, width)
        self.background_us, self.last = background_us, 1 if net.voting.is_last_step else last
        self.sensor = self.frame if sensor is None else Sensor.of(sensor)
        self._resized = None if self.sensor == self.frame else resize(self.sensor, self.frame)
        self.reset()

    def reset(self) -> None:
        """Clear states, votes and pending events."""
        self._filter = None if self.background_us is None else BackgroundFilter(self.sensor, self.background_us)
        self.states: dict[str, LayerState] | None = None
        self.total: Tensor | None = None
        self.steps = 0
        self._recent: list[Tensor] = []  # votes of the last steps
        self._waiting = np.zeros((2, 0), np.int64)  # address and time
        self.step_end: int | None = None  # time at which the current time-step ends [us]
        self.latest: int | None = None  # time of the last event, or of `advance` [us]

    @property
    def votes(self) -> Tensor:
        """Mean votes of the last steps, or of all since the last reset, [num_classes].

        [N, num_classes] for frames [N, C, H, W].
        """
        assert self.total is not None, "there are no votes before the first time-step"
        if self.last is not None:
            return torch.stack(self._recent).mean(0)
        return self.total / self.steps

    @property
    def waiting_events(self) -> int:
        """Number of pending events of an incomplete time-step."""
        return self._waiting.shape[1]

    @torch.no_grad()
    def step(self, frame: Any) -> Tensor:
        """Process a frame and return the running votes, [num_classes] or [N, num_classes].

        Args:
            frame: [C, H, W] or [F], or [N, C, H, W] or [N, F] for N streams at once; of any numeric type.

        Raises:
            UserError: the frame has another shape; the state is unchanged.
        """
        frame = torch.as_tensor(np.asarray(frame) if not isinstance(frame, Tensor) else frame)
        expected = [*self.net.input_shape]
        streams = list(frame.shape[: -len(expected)])
        before = streams if self.total is None else list(self.total.shape[:-1])
        if len(streams) > 1 or [*streams, *expected] != list(frame.shape) or streams != before:
            raise UserError(
                f"frame must be {[*before, *expected]}{'' if self.total is None else ', as before'}, or "
                f"[N, {', '.join(map(str, expected))}] in a new stream, got {list(frame.shape)}."
            )
        single = not streams
        batch = frame[None] if single else frame
        votes, self.states = self._step(batch.to(self.device, self.dtype), self.states)
        votes = votes[0] if single else votes
        # float64, so that the sum over a long stream does not absorb the votes of a step.
        self.total = votes.double() if self.total is None else self.total + votes
        self.steps += 1
        if self.last is not None:
            self._recent = [*self._recent, votes.double()][-self.last :]
        return self.votes

    def push(self, x: Any, y: Any = None, t: Any = None, p: Any = None, name: str = "events") -> Tensor:
        """Process events and return the running votes after each completed time-step, [steps, num_classes].

        Events of an incomplete step stay pending until the next call.

        Args:
            x: column of each event [pixel], or a `Recording`, or a structured array with x, y, t and p.
            y: row [pixel]; of a line of sensors it may be left out.
            t: time [us], ascending, not before events pushed earlier.
            p: polarity; of a line of sensors it may be left out.
            name: source of the events, for messages.

        Raises:
            UserError: neither events_per_step nor us_per_step was given; an event lies outside the sensor or goes back
                in time. The state is unchanged.
        """
        return self._stack_votes(self.pushed(x, y, t, p, name))

    def pushed(self, x: Any, y: Any = None, t: Any = None, p: Any = None, name: str = "events") -> Iterator[Tensor]:
        """Like `push`, but yield the votes after each time-step; events not yet processed stay pending."""
        if self.events_per_step is None and self.us_per_step is None:
            raise UserError("push needs to know where a time-step ends: pass events_per_step or us_per_step.")
        if self.sensor.is_line and t is not None:
            y, p = (np.zeros(len(t), np.uint8) if column is None else column for column in (y, p))
        recording = x if isinstance(x, Recording) else recording_of(x, y, t, p, name)
        packed = pack_events(in_channels(recording, self.polarities), self.sensor, name)
        time = packed.time.astype(np.int64) + packed.start
        if len(time):
            if self.latest is not None and time[0] < self.latest:
                raise UserError(
                    f"{name}: time jumps back from {self.latest} to {time[0]} us. If the camera's clock was reset, "
                    "call reset()."
                )
            self.latest = int(time[-1])
            address = self._addresses(packed).astype(np.int64)
            if self._filter is not None:
                keep = self._filter.keep_mask(packed)
                address, time = address[keep], time[keep]
            self._waiting = np.concatenate([self._waiting, np.stack([address, time])], 1)
        return map(self.step, self._frames())

    def advance(self, t: int) -> Tensor:
        """Process the time-steps that end until a time, silent ones included, and return the running votes after each.

        For decisions on a clock: without it only a later event closes a time-step, and silence decides nothing. In a
        new stream the first time-step begins at t.

        Args:
            t: time on the clock of the events [us]; later events may not lie before it.

        Returns:
            [steps, num_classes], as `push`.

        Raises:
            UserError: the stream has no `us_per_step`, or t lies before the last event. The state is unchanged.
        """
        return self._stack_votes(self.advanced(t))

    def advanced(self, t: int) -> Iterator[Tensor]:
        """Like `advance`, but yield the votes after each time-step."""
        if self.us_per_step is None:
            raise UserError("advance needs time-steps of a duration: pass us_per_step.")
        if self.latest is not None and t < self.latest:
            raise UserError(f"t must not lie before the last event at {self.latest} us, got {t}.")
        self.latest = int(t)
        self.step_end = self.step_end or self.latest + self.us_per_step
        return map(self.step, self._frames())

    def _stack_votes(self, votes: Iterable[Tensor]) -> Tensor:
        stacked = list(votes)
        if stacked:
            return torch.stack(stacked)
        return torch.zeros(0, self.net.num_classes if self.total is None else self.total.shape[-1], dtype=torch.float64)

    def _addresses(self, packed: Packed) -> Any:
        """Map events from the sensor to addresses in a frame."""
        return packed.address if self._resized is None else self._resized[packed.address]

    def run_recording(
        self, recording: Recording, slicing: Slicing = "by_count", name: str = "events"
    ) -> Iterator[Tensor]:
        """Slice a complete recording into T frames as a data set does, and yield the running votes after each.

        Args:
            recording: N >= 0 events.
            slicing: `by_count` (Eq. S1) or `by_time`.
            name: source of the recording, for messages.

        Raises:
            UserError: an event lies outside the sensor or goes back in time. The state is unchanged.
        """
        packed = pack_events(in_channels(recording, self.polarities), self.sensor, name)
        if self.background_us is not None:
            packed = without_background(packed, self.sensor, self.background_us)
        packed = packed._replace(address=self._addresses(packed))
        return map(self.step, map(self._input, integrate(packed, self.frame, self.net.time_steps, slicing)))

    def _input(self, counts: Any) -> Any:
        """Counts [2, H, W] as the network takes them: [C, H, W] or [F]."""
        return counts[: self.polarities].reshape(self.net.input_shape)

    def _frames(self) -> Iterator[Any]:
        """Yield a frame [C, H, W] for each complete step; the remaining events stay pending."""
        while True:
            waiting = self._waiting
            if self.events_per_step is not None:
                end = self.events_per_step
                if waiting.shape[1] < end:
                    break
            else:
                assert self.us_per_step is not None
                if self.step_end is None and waiting.shape[1]:
                    self.step_end = int(waiting[1, 0]) + self.us_per_step
                if self.step_end is None or (self.latest or 0) < self.step_end:
                    break
                end = int(np.searchsorted(waiting[1], self.step_end))
                self.step_end += self.us_per_step
            address = waiting[0, :end].astype(np.uint32)
            self._waiting = waiting[:, end:]
            counts = count_events(address, np.array([[0, end]]), 2 * self.frame.pixels)
            yield self._input(counts.reshape(2, *self.frame))
