"""How long something takes, for choices between forms of one function."""

import time
from collections.abc import Callable
from typing import Any


def least_seconds(*forms: Callable[[], Any]) -> list[float]:
    """Of each form the least of seven times, after one that warms up: what else runs on the machine only adds.

    They take turns, so that each finds the caches as another left them. Fewer times, but one, where a turn takes long.
    """
    times: list[list[float]] = [[] for _ in forms]
    for form in forms:
        form()
    began = time.perf_counter()
    while not times[0] or (len(times[0]) < 7 and time.perf_counter() - began < len(forms)):
        for form, of_form in zip(forms, times, strict=True):
            start = time.perf_counter()
            form()
            of_form.append(time.perf_counter() - start)
    return [min(of_form) for of_form in times]
