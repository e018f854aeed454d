"""Recurrent neurons over T on a CPU: event-driven recurrent products forward, one product a step backward."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.equations import Dynamics, program
from plif_lightning.dynamics.reference import in_real_precision
from plif_lightning.kernels import ops
from plif_lightning.kernels.bits import array_of_bits, words_for
from plif_lightning.kernels.dense import product
from plif_lightning.kernels.layout import BACKWARD, POOLS, Geometry, real_type, rows_of, threads_for
from plif_lightning.kernels.ops import outside_compile
from plif_lightning.kernels.parallel import parallel
from plif_lightning.kernels.sparse import TABLE_WORDS, linear_weight_of_bits

# Up to this share of spikes a step's recurrent product gathers the rows of what spiked: from 0.3 on, a dense product of
# 64 samples and 256 neurons is as fast (one thread, Zen 4).
_EVENT_DRIVEN = 0.25
_ONE = np.float32(1)


class _RecurrentFunction(torch.autograd.Function):
    """Saves inputs and states of every step for the backward pass, and spikes as bits where few neurons spiked."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, learned: Tensor, neuron: str, steps: int, through_time: bool, trains: bool
    ) -> Tensor:
        from plif_lightning.kernels import cpu  # deferred: imports numba

        inputs, spikes = y.new_empty(steps, *y.shape[1:]), y.new_empty(steps, *y.shape[1:])
        states = y.new_empty(steps, len(program(neuron).states), y[0].numel())
        layer = _Layer(y, learned, neuron)
        recurrent = _RecurrentProduct(weight, spikes, inputs)
        rows = _rows(inputs), _rows(spikes), states.numpy()
        for t, x in enumerate(y.expand(steps, *y.shape[1:]).unbind()):
            recurrent.write_input(x, t)
            before = rows[2][t - 1] if t else layer.none
            io = rows[0][t : t + 1], layer.none, layer.norm, layer.fire, (before, rows[2][t]), rows[1][t : t + 1]
            parallel(cpu.forward, layer.geometry.units, layer.geometry.threads, *io, layer.sizes)
        bits = recurrent.bits_if_few() if trains else None
        ctx.save_for_backward(weight, learned, inputs, states, spikes if bits is None else bits)
        ctx.settings = neuron, len(y), bits is not None, through_time
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
        from plif_lightning.kernels import cpu_backward  # deferred: imports numba

        weight, learned, inputs, states, spikes = ctx.saved_tensors
        neuron, given_steps, are_bits, through_time = ctx.settings
        steps, features = len(inputs), len(weight)
        layer = _Layer(inputs, learned, neuron, BACKWARD)
        grads, grad_out = torch.empty_like(inputs), grad_spikes.contiguous()
        grad_states = torch.empty_like(states[:2])
        total = torch.empty_like(inputs[0])
        rows = _rows(inputs), states.numpy(), _rows(grads), grad_states.numpy()
        of_steps, given = grads.unbind(), grad_out.unbind()
        sums = ops.sums_for(layer.geometry, 0, learned, states.dtype)
        for t in reversed(range(steps)):
            ends = t + 1 == steps or not through_time
            grad = given[t] if ends else torch.addmm(given[t], of_steps[t + 1], weight, out=total)
            before, grad_before = (rows[1][t - 1], rows[3][t % 2]) if t else (layer.none, layer.none)
            after = rows[3][(t + 1) % 2] if t + 1 < steps else layer.none
            gradients = grad.reshape(1, -1).numpy(), after, rows[2][t : t + 1], grad_before
            io = rows[0][t : t + 1], layer.none, layer.norm, layer.fire, before, gradients, sums
            geometry = layer.geometry
            parallel(cpu_backward.backward, geometry.units, geometry.threads, *io, layer.sizes, layer.seed)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            after, before = grads[1:].reshape(-1, features), spikes[:-1].flatten(0, 1)
            grad_weight = linear_weight_of_bits(before, after, features) if are_bits else product(after.t(), before)
        grad_learned = layer.geometry.sum_parameter_slots(sums[1], learned).to(learned.dtype)
        grad_y = grads if given_steps == steps else grads.sum(0, keepdim=True)
        return grad_y, grad_weight, grad_learned, None, None, None, None


class _Layer:
    """Arguments of the compiled loops that are the same at every step.

    Args:
        y: inputs [T, N, F].
        learned: parameters of the neurons, see `layout.rows_of`.
        neuron: key of their program.
        work: cost of a value of a step, in neuron-steps.

    Attributes:
        geometry: units of work of a step.
        none: an empty array, for absent arguments.
        norm: rows of BN, empty.
        fire: compiled code, parameters and first states.
        sizes: of a step.
        seed: of ties, which neurons without a pool have not.
    """

    def __init__(self, y: Tensor, learned: Tensor, neuron: str, work: int = 1) -> None:
        real, recorded = real_type(y), program(neuron)
        # Neurons with shared parameters are a long row; otherwise features are channels.
        shape = (1, 1, 1, y[0].numel()) if learned.shape[1] == 1 else (*y.shape[1:], 1, 1)
        self.geometry = Geometry(y[:1].reshape(1, *shape), 1, POOLS["none"], len(recorded.states), work)
        self.none = np.empty((0, 1), np.float64 if real == torch.float64 else np.float32)
        rows = self.geometry.tile_channels(ops.no_norm(y.reshape(len(y), *shape)), real)
        self.norm = (rows, rows, rows)
        codes = ops.codes_of_backward(neuron, POOLS["none"], real, learned)
        self.fire = (*codes, self.geometry.parameters(learned, real), ops.start_of(recorded, real))
        self.sizes, self.seed = tuple(self.geometry.sizes), np.uint32(0)


def _rows(values: Tensor) -> Any:
    """Values [T, N, F] as an array [T, N F] that shares their memory."""
    return values.reshape(len(values), -1).numpy()


class _RecurrentProduct:
    """Products of a step's spikes [N, F] and the recurrent weight; if few spiked, sums of the weight's rows of those.

    Arrays are made once for all steps: at 64 samples, allocations took as long as the sums.

    Args:
        weight: [F', F].
        spikes: of all steps [T, N, F], filled in from step to step; of float64 all products are dense.
        inputs: of the neurons at all steps [T, N, F], which `write_input` writes.
    """

    def __init__(self, weight: Tensor, spikes: Tensor, inputs: Tensor) -> None:
        steps, batch, features = spikes.shape
        self._spikes, self._packs, self._inputs = spikes.unbind(), spikes.dtype == torch.float32, inputs.unbind()
        self._table = weight.detach().t().contiguous()  # [F, F'], a row for each neuron that spikes
        self._bits = torch.empty(steps, batch, words_for(features), dtype=torch.int64, device="cpu")
        self._numbers = np.zeros((steps, threads_for(batch * features), 2), np.int64)
        self._arrays = spikes.numpy(), array_of_bits(self._bits), self._table.numpy(), inputs.numpy()

    def write_input(self, x: Tensor, t: int) -> None:
        """Write x [N, F] + the product of step t - 1."""
        from plif_lightning.kernels import cpu_sparse  # deferred: imports numba

        number = (self._pack(t - 1) if self._packs else x.numel()) if t else 0
        if number > _EVENT_DRIVEN * x.numel():
            torch.addmm(x, self._spikes[t - 1], self._table, out=self._inputs[t])
            return
        self._inputs[t].copy_(x)
        if number:
            _, bits, table, inputs = self._arrays
            blocks, threads = words_for(len(table)), threads_for(number * len(table))
            parallel(cpu_sparse.linear_of_table, blocks, threads, bits[t - 1], table, inputs[t], TABLE_WORDS, True)

    def bits_if_few(self) -> Tensor | None:
        """The spikes of all steps as bits [T, N, F / 64], if they are few."""
        if not self._packs:
            return None
        self._pack(len(self._bits) - 1)  # which no step has read
        return self._bits if self._numbers[:, :, 0].sum() <= _EVENT_DRIVEN * self._arrays[0].size else None

    def _pack(self, t: int) -> int:
        """Write the bits of a step, and return how many are set."""
        from plif_lightning.kernels import cpu_sparse

        spikes, bits, numbers = self._arrays[0][t], self._arrays[1][t], self._numbers[t]
        parallel(cpu_sparse.pack_bits, len(spikes), len(numbers), spikes, _ONE, bits, numbers)
        return int(numbers[:, 0].sum())


@outside_compile
def run_recurrent(y: Tensor, weight: Tensor, dynamics: Dynamics, steps: int) -> Tensor:
    """Spikes [T, N, F] of neurons whose input at step t is y_t + W s_{t-1}, from rest.

    Args:
        y: input without the recurrent part [T, N, F], or [1, N, F] held for all steps; on a CPU, float32 or float64.
        weight: W, [F, F], in the type of y.
        dynamics: the neurons.
        steps: T.
    """
    with in_real_precision(y.device):
        arguments = rows_of(dynamics, y), dynamics.key, steps, dynamics.firing.through_time
        spikes: Tensor = _RecurrentFunction.apply(y, weight, *arguments, torch.is_grad_enabled())
        return spikes
