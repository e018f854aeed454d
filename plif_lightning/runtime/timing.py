"""Time several implementations of a function, to choose the fastest."""

import time
from collections.abc import Callable
from typing import Any


def least_seconds(*forms: Callable[[], Any]) -> list[float]:
    """Return the minimum runtime of each form [s] over seven rounds after a warm-up; other load only adds time.

    The forms alternate, so that each finds the caches as another left them. Slow forms get fewer rounds, at least one.
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
