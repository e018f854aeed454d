"""Compiled loops count no references of the arrays that they are given."""

import platform

import numpy as np
import pytest

from plif_lightning.runtime.compiled import compile_cached, compile_loop, inner


@inner(inline="never")
def _add(row, factor, added, out, i):
    for j in range(len(row)):
        out[i] += factor * row[j] + added[j]


def _sum_of_rows(begin, end, slot, arrays, factor, out):
    rows, added = arrays
    for i in range(begin, end):
        row = rows[i]  # a view, which holds its array
        _add(row, factor, added, out, i)


def counts_of_references(compiled):
    """Atomic instructions in the machine code of the last call."""
    compiled.recompile()  # code of the cache has no text
    (text,) = compiled.inspect_asm().values()
    return text.count("\tlock")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86's instructions")
def test_a_loop_computes_without_counting_references():
    rows, added, results = np.arange(12.0).reshape(4, 3), np.ones(3), []
    for compiled in (compile_loop(_sum_of_rows), compile_cached(_sum_of_rows)):
        out = np.zeros(4)
        compiled(1, 4, 0, (rows, added), 2.0, out)
        results.append((out.tolist(), counts_of_references(compiled)))
    (ours, borrowed), (theirs, counted) = results
    assert ours == theirs == [0.0, 27.0, 45.0, 63.0]
    assert borrowed < counted
