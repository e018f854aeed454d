"""Compiled loops on several threads."""

from plif_lightning.kernels.parallel import parallel


def test_each_thread_has_a_separate_range_and_slot():
    """Two threads with one slot would add to the same sums at the same time, and lose what the other added."""
    for units, threads, ranges in (
        (10, 3, [(0, 3, 0), (3, 6, 1), (6, 10, 2)]),
        (2, 3, [(0, 1, 0), (1, 2, 1)]),
        (1, 3, [(0, 1, 0)]),
        (0, 3, [(0, 0, 0)]),
    ):
        calls = []
        parallel(lambda *given, calls=calls: calls.append(given), units, threads, "a", "b")
        assert sorted(calls) == [(*of_thread, "a", "b") for of_thread in ranges]
