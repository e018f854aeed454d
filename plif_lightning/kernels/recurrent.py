"""Recurrent neurons over T on a CPU: event-driven recurrent products forward, one product a step backward."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.equations import Dynamics, program
from plif_lightning.dynamics.reference import check_inputs, in_real_precision
from plif_lightning.kernels import loops, ops
from plif_lightning.kernels.bits import array_of_bits, words_for
from plif_lightning.kernels.dense import add_product, product
from plif_lightning.kernels.density import RECURRENT
from plif_lightning.kernels.layout import BACKWARD, POOLS, Geometry, real_type, rows_of, threads_for
from plif_lightning.kernels.ops import outside_compile
from plif_lightning.kernels.parallel import parallel
from plif_lightning.kernels.sparse import TABLE_WORDS, linear_weight_of_bits

# Steps from one choice of products to the next; at first 1, 1, 2 and 4.
_STEPS = 8


class _RecurrentFunction(torch.autograd.Function):
    """Saves inputs and states of every step for the backward pass, and spikes as bits where few neurons spiked."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, learned: Tensor, neuron: str, steps: int, through_time: bool, trains: bool
    ) -> Tensor:
        y, batch, features = y.detach().contiguous(), *y.shape[1:]
        inputs, spikes = y.new_empty(steps, batch, features), y.new_empty(steps, batch, features)
        layer = _Layer(y, learned, neuron)
        states = y.new_empty(steps + 1, len(program(neuron).states), batch * features)
        states[0] = torch.from_numpy(layer.fire[-1])[:, None]  # `NeuronCode.start`
        table = weight.detach().t().contiguous()  # a row for each neuron that spikes
        bits = torch.empty(steps, batch, words_for(features), dtype=torch.int64, device="cpu")
        numbers = np.zeros((steps, torch.get_num_threads(), 2), np.int64)
        packs = y.dtype == torch.float32  # in float64 all products are dense
        events = (array_of_bits(bits), table.numpy(), numbers) if packs else None
        arrays = y.numpy(), inputs.numpy(), states.numpy(), spikes.numpy(), layer.fire, layer.geometry.run, events
        limit = RECURRENT * batch * features  # spikes of a step
        event_driven, fired, total, t = packs, 0, 0, 0
        while t < steps:
            last = min(2 * t, t + _STEPS, steps) if event_driven and t else t + 1
            dense = t > 0 and not event_driven
            if dense:
                add_product(y[t if len(y) > 1 else 0], spikes[t - 1], table, out=inputs[t])
            threads = threads_for((last - t) * batch * features + fired * features)
            parallel(loops.cpu_recurrent.forward, batch, threads, t, last, not dense, *arrays, TABLE_WORDS)
            fired = int(numbers[t:last, :, 0].sum())
            event_driven = packs and fired <= limit * (last - t)
            total, t = total + fired, last
        are_bits = trains and packs and total <= limit * steps
        # Not the output itself, to which a caller may write.
        ctx.save_for_backward(weight, learned, inputs, states, bits if are_bits else spikes.to(torch.bool))
        ctx.settings = neuron, len(y), are_bits, through_time
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
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
            grad = given[t] if ends else add_product(given[t], of_steps[t + 1], weight, out=total)
            before, grad_before = (rows[1][t], rows[3][t % 2]) if t else (layer.none, layer.none)
            after = rows[3][(t + 1) % 2] if t + 1 < steps else layer.none
            gradients = grad.reshape(1, -1).numpy(), after, rows[2][t : t + 1], grad_before
            io = rows[0][t : t + 1], layer.none, layer.norm, layer.fire, before, gradients, sums
            geometry = layer.geometry
            parallel(loops.cpu_backward.backward, geometry.units, geometry.threads, *io, layer.sizes, layer.seed)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            after, before = grads[1:].reshape(-1, features), spikes[:-1].flatten(0, 1)
            if are_bits:
                grad_weight = linear_weight_of_bits(before, after, features)
            else:
                grad_weight = product(after.t(), before.to(after.dtype))
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


@outside_compile
def run_recurrent(y: Tensor, weight: Tensor, dynamics: Dynamics, steps: int) -> Tensor:
    """Spikes [T, N, F] of neurons whose input at step t is y_t + W s_{t-1}, from rest.

    Args:
        y: input without the recurrent part [T, N, F], or [1, N, F] held for all steps; on a CPU, float32 or float64.
        weight: W, [F, F], in the type of y.
        dynamics: the neurons.
        steps: T.

    Raises:
        UserError: the neurons' parameters are of another number of features.
    """
    check_inputs(y, dynamics, None, steps)
    with in_real_precision(y.device):
        arguments = rows_of(dynamics, y), dynamics.key, steps, dynamics.firing.through_time
        spikes: Tensor = _RecurrentFunction.apply(y, weight, *arguments, torch.is_grad_enabled())
        return spikes
