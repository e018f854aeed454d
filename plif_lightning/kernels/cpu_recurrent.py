"""Steps of recurrent neurons, compiled for the CPU: the recurrent weight's rows of what spiked, then the neurons."""

import numpy as np

from plif_lightning.kernels.cpu import aligned_rows
from plif_lightning.kernels.cpu_bits import pack_bits
from plif_lightning.kernels.cpu_sparse import linear_of_table
from plif_lightning.kernels.layout import LANES
from plif_lightning.kernels.machine_code import call, keep
from plif_lightning.runtime.compiled import compile_loop, inner

# mypy: disable-error-code="no-untyped-def"


@inner
def _fire(neuron, x, before, after, out, begin, end, run, vector):
    """Neurons begin .. end - 1 of a step: spikes `out` and states `after` of inputs x and states `before`.

    x and out are [N F], states [S, N F]. The neurons' code takes whole vectors: the remainder of a run is copied to
    `vector` [2 + S, LANES], a row each for x, the spikes and every state, and back.
    """
    fire, _, parameters, start = neuron
    size, width = before.shape[1], parameters.shape[1]
    for first in range(begin, end, run):
        n = min(run, end - first)
        whole = n // LANES * LANES
        at = first * x.itemsize
        if whole:
            call(
                fire,
                (
                    whole, x.ctypes.data + at, before.ctypes.data + at, size, after.ctypes.data + at, size,
                    parameters.ctypes.data, width, out.ctypes.data + at,
                ),
            )  # fmt: skip
        if whole < n:
            for i in range(n - whole):
                j = first + whole + i
                vector[0, i] = x[j]
                for s in range(start.size):
                    vector[2 + s, i] = before[s, j]
            of_x, row = vector.ctypes.data, LANES * x.itemsize
            of_states = of_x + 2 * row
            of_parameters = parameters.ctypes.data + (whole * x.itemsize if width > 1 else 0)
            call(fire, (LANES, of_x, of_states, LANES, of_states, LANES, of_parameters, width, of_x + row))
            for i in range(n - whole):
                j = first + whole + i
                out[j] = vector[1, i]
                for s in range(start.size):
                    after[s, j] = vector[2 + s, i]


@compile_loop
def forward(begin, end, slot, first, last, writes_input, y, inputs, states, spikes, neuron, run, events, words):
    """Steps first .. last - 1 of samples begin .. end - 1; `slot` is the thread's number.

    Args:
        writes_input: whether `inputs` is to be written for these steps; else it is complete.
        y: input without the recurrent part [T or 1, N, F].
        inputs: of the neurons [T, N, F].
        states: before the first step and after each [T + 1, S, N F].
        spikes: [T, N, F].
        neuron: `layout.NeuronCode`.
        run: neurons at a time, a multiple of F where their parameters differ.
        events: the spikes as bits [T, N, ceil(F / 64)], the recurrent weight's columns as rows [F, F] and the numbers
            of spikes [T, slots, 2], as `pack_bits` counts them; None if spikes are not packed.
        words: of inputs at a time, see `linear_of_table`.
    """
    features = inputs.shape[2]
    blocks = (features + 63) // 64
    vector = aligned_rows((2 + states.shape[1]) * LANES, y.dtype).reshape((2 + states.shape[1], LANES))
    vector[:] = 0
    for t in range(first, last):
        if writes_input:
            inputs[t, begin:end] = y[t if y.shape[0] > 1 else 0, begin:end]
            if events is not None:
                bits, table, numbers = events
                if t > 0:
                    linear_of_table(0, blocks, slot, bits[t - 1, begin:end], table, inputs[t, begin:end], words, True)
        x, out = inputs[t].reshape(inputs[t].size), spikes[t].reshape(spikes[t].size)
        _fire(neuron, x, states[t], states[t + 1], out, begin * features, end * features, run, vector)
        if events is not None:
            bits, table, numbers = events
            pack_bits(0, end - begin, slot, spikes[t, begin:end], np.float32(1), bits[t, begin:end], numbers[t])
    keep(vector)
    keep(neuron[2])
    keep(inputs)
    keep(states)
    keep(spikes)
