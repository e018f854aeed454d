"""Times of several ways to do the same, in alternation."""

import statistics
import time
from collections.abc import Callable
from typing import Any

Seconds = dict[str, list[float]]


def alternate(cases: dict[str, Callable[[], Any]], rounds: int, finished: Callable[[], Any] = lambda: None) -> Seconds:
    """Seconds of each case in each round, until `finished` returns; the first round warms up."""
    seconds: Seconds = {title: [] for title in cases}
    for _ in range(rounds + 1):
        for title, case in cases.items():
            start = time.perf_counter()
            case()
            finished()
            seconds[title].append(time.perf_counter() - start)
    return {title: times[1:] for title, times in seconds.items()}


def show_rates(what: str, unit: str, amount: float, seconds: Seconds, ours: str = "ours") -> None:
    """Print the median rate of each case with its spread, and how many times as fast ours is."""
    print(f"\n{what}")
    for title, times in seconds.items():
        rates = [amount / t for t in times]
        ratio = statistics.median(t / o for t, o in zip(times, seconds[ours], strict=True))
        note = "" if title == ours else f"   ours is {ratio:.2f} times as fast"
        print(f"  {title:34} {statistics.median(rates):14,.1f} [{min(rates):,.1f}, {max(rates):,.1f}] {unit}{note}")
