"""Run a trained network on a stream of events or frames, with persistent potentials and running votes."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plif_lightning.deploy.engine import deployed
from plif_lightning.deploy.engines import Engine, require_engine
from plif_lightning.deploy.folding import fold
from plif_lightning.deploy.layers import overrides_containers
from plif_lightning.deploy.plain import DeployedNetwork
from plif_lightning.errors import UserError, require_count
from plif_lightning.events.integration import Slicing, count_events, integrate, resized
from plif_lightning.events.noise import BackgroundFilter, cleaned
from plif_lightning.events.recording import Noise, Packed, Recording, Sensor, pack, recording_of
from plif_lightning.network import SpikingNetwork, step
from plif_lightning.network.own import FROM_DATA
from plif_lightning.network.stepping import refuses_steps
from plif_lightning.network.tracing import plain
from plif_lightning.neurons.carry import LayerState, packed, unpacked


class StreamingNetwork:
    """Runs a network one time-step at a time, on a stream of any length.

    Holds a copy of the network with BN folded. It sums in a fixed order, so votes do not depend on how a stream is
    split into calls. On a CPU it is event-driven by default: layers process only non-zero inputs.

    Args:
        net: trained network on any device; frames are moved there. One of one's own streams as it is.
        events_per_step: number of events per time-step of `push`.
        us_per_step: duration of a time-step of `push` [us], counted from the first event, empty steps included; pass
            either this or `events_per_step`.
        engine: engine on a CPU, see `deployed`; not auto, which needs sample inputs.
        sensor: height and width of the camera [pixels], if larger than the network's frames (`size` of a data module).
        background_us: drop noise as the data module of this argument does.
        last: votes are the mean of so many last time-steps, which a change of scene changes soon; None for all.

    Raises:
        UserError: an argument lies outside its range, or the input encoder is random.

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
        engine: Engine = "events",
        sensor: tuple[int, int] | None = None,
        background_us: int | None = None,
        last: int | None = None,
    ) -> None:
        _require_one_length(events_per_step, us_per_step)
        net = plain(net)
        if isinstance(net, DeployedNetwork):
            raise UserError("pass the network itself and an engine, not what deployed returns.")
        own = not isinstance(net, SpikingNetwork)
        known: Any = net
        if own and not all(hasattr(net, name) for name in FROM_DATA):
            raise UserError(
                f"a stream needs to know {', '.join(FROM_DATA)} of {type(net).__name__}: set them, or pass its task or "
                "what load_network returns."
            )
        if isinstance(net, SpikingNetwork) and net.inputs.name != "direct":
            raise UserError(f"input_encoder={net.inputs.name!r} needs all time-steps of an image: it cannot stream.")
        require_engine(engine)
        if own and engine != "events":
            raise UserError(f"engine={engine!r} is for a SpikingNetwork: {type(net).__name__} streams as it is.")
        weight = next(net.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        if isinstance(net, SpikingNetwork) and overrides_containers(net) is not None:
            self._require_steps(copy.deepcopy(net).eval())  # it may look at other steps between its blocks
        if own:
            self.net: Any = copy.deepcopy(net).eval().requires_grad_(False)
            self._require_steps(self.net)
            self._step: Callable[..., Any] = partial(step, self.net)
        elif self.device.type == "cpu" and self.dtype == torch.float32:
            self.net = deployed(known, engine, time_steps=1)
            self._step = self.net.step
        elif engine == "events":
            self.net = fold(net).requires_grad_(False)
            self._step = partial(step, self.net)
        else:
            raise UserError(
                f"engine={engine!r} runs on a CPU in float32, and the network is on {self.device} in {self.dtype}."
            )
        self.events_per_step, self.us_per_step = events_per_step, us_per_step
        self.frame = Sensor(*known.input_shape[1:])
        self.background_us = background_us
        if last is not None:
            require_count("last", last)
        self.last = last
        self.use_sensor(self.frame if sensor is None else sensor)
        self.reset()

    def _require_steps(self, net: Any) -> None:
        """Refuse a network in evaluation mode that computes other votes step by step."""
        if reason := refuses_steps(net, net.input_shape, net.time_steps):
            raise UserError(f"{reason}.")

    def use_sensor(self, sensor: tuple[int, int]) -> None:
        """Take events of a sensor of this height and width [pixels], and bring them to the network's frames."""
        self.sensor = Sensor.of(sensor)
        self._filter = None if self.background_us is None else BackgroundFilter(self.sensor, self.background_us)
        self._resized = None if self.sensor == self.frame else resized(self.sensor, self.frame)

    def reset(self) -> None:
        """Clear potentials, votes and pending events."""
        self._filter = None if self.background_us is None else BackgroundFilter(self.sensor, self.background_us)
        self.potentials: dict[str, LayerState] | None = None
        self.total: Tensor | None = None
        self.steps = 0
        self._recent: list[Tensor] = []  # votes of the last steps
        self._waiting = np.zeros((2, 0), np.int64)  # address and time
        self._step_ends: int | None = None
        self._latest: int | None = None  # time of the last event

    @property
    def votes(self) -> Tensor:
        """Mean votes of the last steps, or of all since the last reset, [num_classes].

        [N, num_classes] for frames [N, C, H, W].

        Raises:
            UserError: there was no step yet.
        """
        if self.total is None:
            raise UserError("there are no votes before the first time-step.")
        if self.last is not None:
            return torch.stack(self._recent).mean(0)
        return self.total / self.steps

    @property
    def waiting_events(self) -> int:
        """Number of pending events of an incomplete time-step."""
        return self._waiting.shape[1]

    @property
    def margin(self) -> float:
        """Difference between the running votes of the best two classes, minimum over samples.

        0 before the first time-step.
        """
        return 0.0 if self.total is None else _margins(self.votes).min().item()

    @torch.no_grad()
    def step(self, frame: Any) -> Tensor:
        """Process one frame and return the running votes, [num_classes] or [N, num_classes].

        Args:
            frame: [C, H, W], or [N, C, H, W] for N streams at once; of any numeric type.

        Raises:
            UserError: the frame has another shape; the state is unchanged.
        """
        frame = torch.as_tensor(np.asarray(frame) if not isinstance(frame, Tensor) else frame)
        self._require_shape(frame)
        single = frame.dim() == 3
        batch = frame[None] if single else frame
        votes, self.potentials = self._step(batch.to(self.device, self.dtype), self.potentials)
        votes = votes[0] if single else votes
        # float64, so that the sum over a long stream does not absorb the votes of a step.
        self.total = votes.double() if self.total is None else self.total + votes
        self.steps += 1
        if self.last is not None:
            self._recent = [*self._recent, votes.double()][-self.last :]
        return self.votes

    def _require_shape(self, frame: Tensor) -> None:
        """Refuse a frame of another shape, or of another number of streams than before."""
        expected, streams = [*self.net.input_shape], list(frame.shape[:-3])
        before = streams if self.total is None else list(self.total.shape[:-1])
        if frame.dim() not in (3, 4) or list(frame.shape[-3:]) != expected or streams != before:
            count = f"{before[0]} streams" if before else "one stream"
            of_streams = "" if self.total is None else f" of {count}, as before"
            raise UserError(f"frame must be {expected} or [N, {', '.join(map(str, expected))}]{of_streams}, got "
                            f"{list(frame.shape)}.")  # fmt: skip

    def push(self, x: Any, y: Any = None, t: Any = None, p: Any = None, name: str = "events") -> Tensor:
        """Process events and return the running votes after each completed time-step, [steps, num_classes].

        Events of an incomplete step stay pending until the next call.

        Args:
            x: column of each event [pixel], or a `Recording`, or a structured array with x, y, t and p.
            y: row [pixel].
            t: time [us], ascending, not before events pushed earlier.
            p: polarity.
            name: source of the events, for messages.

        Raises:
            UserError: neither events_per_step nor us_per_step was given; an event lies outside the sensor or goes back
                in time. The state is unchanged.
        """
        found = list(self.pushed(x, y, t, p, name))
        if found:
            return torch.stack(found)
        return torch.zeros(0, self.net.num_classes if self.total is None else self.total.shape[-1], dtype=torch.float64)

    def pushed(self, x: Any, y: Any = None, t: Any = None, p: Any = None, name: str = "events") -> Iterator[Tensor]:
        """Like `push`, but yield the votes after each time-step; events not yet processed stay pending."""
        if self.events_per_step is None and self.us_per_step is None:
            raise UserError("push needs to know where a time-step ends: pass events_per_step or us_per_step.")
        if self.total is not None and self.total.dim() > 1:
            raise UserError("push takes one stream, but frames of several were given: call reset() first.")
        recording = x if isinstance(x, Recording) else recording_of(x, y, t, p, name)
        packed = pack(recording, self.sensor, name)
        time = packed.time.astype(np.int64) + packed.start
        if len(time):
            if self._latest is not None and time[0] < self._latest:
                raise UserError(
                    f"{name}: time jumps back from {self._latest} to {time[0]} us. If the camera's clock was reset, "
                    "call reset()."
                )
            self._latest = int(time[-1])
            address = self._addresses(packed).astype(np.int64)
            if self._filter is not None:
                keep = self._filter.kept(packed)
                address, time = address[keep], time[keep]
            self._waiting = np.concatenate([self._waiting, np.stack([address, time])], 1)
        return map(self.step, self._frames())

    def _addresses(self, packed: Packed) -> Any:
        """Map events from the sensor to addresses in a frame."""
        return packed.address if self._resized is None else self._resized[packed.address]

    def whole(self, recording: Recording, slicing: Slicing = "by_count", name: str = "events") -> Iterator[Tensor]:
        """Slice a complete recording into T frames as a data set does, and yield the running votes after each.

        Args:
            recording: N >= 0 events.
            slicing: `by_count` (Eq. S1) or `by_time`.
            name: source of the recording, for messages.

        Raises:
            UserError: an event lies outside the sensor or goes back in time. The state is unchanged.
        """
        packed = pack(recording, self.sensor, name)
        if self.background_us is not None:
            packed = cleaned(packed, self.sensor, Noise(self.background_us))
        packed = packed._replace(address=self._addresses(packed))
        return map(self.step, integrate(packed, self.frame, self.net.time_steps, slicing))

    def _frames(self) -> Iterator[Any]:
        """Yield a frame [C, H, W] for each complete step; the remaining events stay pending."""
        while True:
            waiting = self._waiting
            count = waiting.shape[1]
            if self.events_per_step is not None:
                if count < self.events_per_step:
                    break
                end = self.events_per_step
            else:
                if not count:
                    break
                if self._step_ends is None:
                    self._step_ends = int(waiting[1, 0]) + self.us_per_step  # type: ignore[operator]
                if waiting[1, -1] < self._step_ends:
                    break
                end = int(np.searchsorted(waiting[1], self._step_ends))
                self._step_ends += self.us_per_step  # type: ignore[operator]
            address = waiting[0, :end].astype(np.uint32)
            self._waiting = waiting[:, end:]
            yield count_events(address, np.array([[0, end]]), 2 * self.frame.pixels).reshape(2, *self.frame)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream for `load_state_dict`, as tensors and plain values."""
        return {
            "potentials": None if self.potentials is None else _copied(self.potentials),
            "total": self.total,
            "steps": self.steps,
            "waiting": torch.from_numpy(self._waiting.copy()),
            "step_ends": self._step_ends,
            "latest": self._latest,
            "recent": torch.stack(self._recent) if self._recent else None,
            "neighbours": None if self._filter is None else torch.from_numpy(self._filter.last.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another stream of the same network.

        Raises:
            UserError: it is not the state of a stream, or belongs to another network.
        """
        missing = self.state_dict().keys() - state.keys() - ({"neighbours"} if self._filter is None else set())
        missing -= {"recent"} if self.last is None else set()
        if missing:
            raise UserError(f"the state of a stream lacks {', '.join(sorted(missing))}.")
        waiting, potentials = state["waiting"], state["potentials"]
        if not isinstance(waiting, Tensor) or waiting.dim() != 2 or len(waiting) != 2:
            raise UserError("the state of a stream must hold the waiting events' addresses and times, [2, N].")
        if waiting.numel() and not 0 <= int(waiting[0].min()) <= int(waiting[0].max()) < 2 * self.frame.pixels:
            raise UserError("the state of a stream holds waiting events outside this network's frames.")
        if potentials is not None:
            self._require_own(potentials, state["total"])
        neighbours = state.get("neighbours")
        if self._filter is not None and (neighbours is None or len(neighbours) != len(self._filter.last)):
            raise UserError("the state is of a stream without background_us, or of another sensor.")
        votes = state.get("recent")
        recent: list[Tensor] = [] if votes is None or self.last is None else list(votes)[-self.last :]
        if self.last is not None and len(recent) < min(self.last, state["steps"]):
            raise UserError(f"the state is of a stream with fewer votes of last time-steps than last={self.last}.")
        self.potentials, self.total, self.steps = state["potentials"], state["total"], state["steps"]
        self._waiting, self._step_ends = waiting.numpy().copy(), state["step_ends"]
        self._latest = state["latest"]
        self._recent = recent
        if self._filter is not None and neighbours is not None:
            self._filter.last = neighbours.numpy().copy()

    @torch.no_grad()
    def _require_own(self, potentials: Mapping[str, LayerState], total: Tensor | None) -> None:
        """Refuse the states of another network, or of another number of streams than the votes are of."""
        samples = 1 if total is None or total.dim() == 1 else len(total)
        frames = torch.zeros(samples, *self.net.input_shape, device=self.device, dtype=self.dtype)
        _, own = self._step(frames, None)
        if _shapes(potentials) != _shapes(own):
            raise UserError("the state belongs to another network or another number of streams.")


def _copied(states: Mapping[str, LayerState]) -> dict[str, LayerState]:
    return {name: packed(tuple(v.clone() for v in unpacked(state))) for name, state in states.items()}


def _shapes(states: Mapping[str, LayerState]) -> dict[str, list[torch.Size]]:
    return {name: [v.shape for v in unpacked(state)] for name, state in states.items()}


def _require_one_length(events_per_step: int | None, us_per_step: int | None) -> None:
    """Refuse lengths of a time-step that are no whole numbers, or two of them."""
    for name, value in (("events_per_step", events_per_step), ("us_per_step", us_per_step)):
        if value is not None:
            require_count(name, value)
    if events_per_step is not None and us_per_step is not None:
        raise UserError("give events_per_step or us_per_step, not both.")


def _margins(votes: Tensor) -> Tensor:
    """Margin [*] between the best two classes in votes [*, num_classes]; with a single class, its votes."""
    if votes.shape[-1] == 1:
        return votes[..., 0]
    best = votes.topk(2, -1).values
    return best[..., 0] - best[..., 1]


def exits(votes: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return the decisions under early exit: stop as soon as the best class leads by `margin`.

    Args:
        votes: votes of each step [T, N, num_classes].
        margin: required difference between the running mean votes of the best two classes.

    Returns:
        Class and number of steps of each sample, [N] each; T steps if the margin is never reached.
    """
    counts = torch.arange(1, len(votes) + 1, device=votes.device).view(-1, 1, 1)
    running = votes.double().cumsum(0) / counts
    safe = (_margins(running) >= margin) & running.ne(0).any(-1)  # without a vote there is no decision
    safe[-1] = True
    at = safe.int().argmax(0)
    return running.argmax(-1).gather(0, at[None])[0], at + 1
