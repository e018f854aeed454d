"""Energy of inference, measured by the processor's own counters (RAPL)."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from plif_lightning.errors import UserError

POWERCAP = Path("/sys/class/powercap")
# Counters are read this often [s]: one that starts again after 65 kJ may do so after minutes.
_OFTEN = 10.0


@dataclass(frozen=True)
class _Zone:
    folder: Path
    range: int  # the counter starts again at this value [uJ]

    def read(self) -> int:
        return int((self.folder / "energy_uj").read_text())


class EnergyCounters:
    """The counters of all processor packages, and of their memory where it has its own: `intel-rapl`, also AMD's.

    They count the whole package, whatever it does, and Linux lets only root read them unless told otherwise.

    Args:
        root: folder of Linux's powercap interface; None for its usual place.

    Raises:
        UserError: the machine shows none, or only to root; says which.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.zones = []
        root = root or POWERCAP
        for folder in sorted(root.glob("intel-rapl:*")):
            try:
                name = (folder / "name").read_text().strip()
            except OSError:
                continue
            if not (name.startswith("package") or name == "dram"):
                continue  # cores and graphics are parts of a package; psys holds all of them
            try:
                zone = _Zone(folder, int((folder / "max_energy_range_uj").read_text()))
                zone.read()
                if zone.range < 1:
                    raise ValueError("its range is 0")
            except PermissionError:
                raise UserError(
                    f"the energy counter {folder / 'energy_uj'} may be read by root alone: run as root, or let the "
                    f"administrator allow it (chmod a+r {folder / 'energy_uj'})."
                ) from None
            except (OSError, ValueError) as error:
                # Energy without a part of it would be wrong.
                raise UserError(f"the energy counter {folder} of {name} cannot be read: {error}.") from error
            self.zones.append(zone)
        if not self.zones:
            raise UserError(
                f"this machine shows no energy counters of its processor (RAPL, {root}/intel-rapl:*), as most virtual "
                "machines: joules cannot be measured here."
            )

    def read(self) -> list[int]:
        """The counters [uJ]."""
        return [zone.read() for zone in self.zones]

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Energy between two readings, which must lie less than one turn of a counter apart [J]."""
        turns = zip(self.zones, before, after, strict=True)
        return sum((end - start) % zone.range for zone, start, end in turns) / 1e6


@dataclass(frozen=True)
class Measured:
    """What a call took, repeated over some seconds.

    Attributes:
        calls: number of calls.
        seconds: of one call, median over the rounds.
        watts: of the whole package meanwhile; None without counters.
        joules: of one call; None without counters.
        joules_above_idle: of one call, without what the machine draws idle in that time; None without counters.
    """

    calls: int
    seconds: float
    watts: float | None = None
    joules: float | None = None
    joules_above_idle: float | None = None


def measure(
    calls: dict[str, Callable[[], object]],
    seconds: float = 5.0,
    rounds: int = 3,
    counters: EnergyCounters | None = None,
) -> tuple[dict[str, Measured], float | None]:
    """Repeat each call for some seconds, in alternation, and return what one takes, and the idle machine's power [W].

    Args:
        calls: by name.
        seconds: of each call in a round.
        rounds: in each of which every call has its turn, after a pause that measures the idle machine.
        counters: None to measure time alone.

    Raises:
        UserError: seconds or rounds are not positive.
    """
    if not seconds > 0 or rounds < 1:
        raise UserError(f"seconds and rounds must be positive, got {seconds} and {rounds}.")
    for call in calls.values():
        call()  # memory is allocated, kernels are compiled
    idle: list[float] = []
    found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        if counters is not None:
            _, elapsed, joules = _repeat(lambda: time.sleep(min(seconds, 1.0)), seconds, counters)
            idle.append(joules / elapsed)
        for name, call in calls.items():
            found[name].append(_repeat(call, seconds, counters))
    resting = statistics.median(idle) if idle else None
    return {name: _summary(measured, resting) for name, measured in found.items()}, resting


def _repeat(call: Callable[[], object], seconds: float, counters: EnergyCounters | None) -> tuple[int, float, float]:
    """Call at least once and for at least these seconds: number of calls, seconds, joules."""
    before = [] if counters is None else counters.read()
    start = looked = time.perf_counter()
    number, joules = 0, 0.0
    while number == 0 or time.perf_counter() - start < seconds:
        call()
        number += 1
        if counters is not None and time.perf_counter() - looked > _OFTEN:
            now = counters.read()
            joules, before, looked = joules + counters.joules(before, now), now, time.perf_counter()
    elapsed = time.perf_counter() - start
    return number, elapsed, joules if counters is None else joules + counters.joules(before, counters.read())


def _summary(rounds: Sequence[tuple[int, float, float]], idle: float | None) -> Measured:
    number = sum(calls for calls, _, _ in rounds)
    seconds = statistics.median(elapsed / calls for calls, elapsed, _ in rounds)
    if idle is None:
        return Measured(number, seconds)
    joules = statistics.median(used / calls for calls, _, used in rounds)
    watts = statistics.median(used / elapsed for _, elapsed, used in rounds)
    return Measured(number, seconds, watts, joules, joules - idle * seconds)
