"""A network as NeuroBench takes it."""

from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.network.stepping import run_network, unwrapped
from plif_lightning.network.user_networks import neurons_of
from plif_lightning.neurons import Neuron
from plif_lightning.runtime.batches import has_time
from plif_lightning.runtime.program import needed_by

with needed_by("an adapter to NeuroBench"):
    from neurobench.hooks.layer import LayerHook
    from neurobench.hooks.neuron import NeuronHook
    from neurobench.models import NeuroBenchModel


class NeuroBenchNetwork(NeuroBenchModel):
    """An adapter for NeuroBench's `Benchmark`. Yik et al. 2025, "The NeuroBench framework", Nat. Commun. 16.

    Wrapped in NeuroBench's `TorchModel`, a network of this project has an activation sparsity of 0 and no membrane
    updates, without a warning, because NeuroBench looks for snnTorch neurons. Here they are found, and named by their
    layers.

    NeuroBench's counts differ from `deploy.costs` in these points only:

    - Operations: `Dense`, `Effective_MACs` and `Effective_ACs` are `dense`, and `actual` of layers without and with
      spikes for input. But NeuroBench treats a batch of frames without a count above 1 as spikes, so the
      operations of the first layer may be MACs in a batch and ACs in the next; `costs` always counts MACs.
      `costs` adds a MAC for the leak of each neuron and step. NeuroBench sums in float32.
    - Activation sparsity is that of the neurons' spikes, before any pooling; `costs.firing` is that of each layer's
      input, after it.
    - Footprint: bytes of all parameters and buffers, with BN's; in a network folded for inference there is no BN.
    - Membrane updates: potentials that differ from the previous step's, and all of the first step; `costs.updates`
      counts every neuron at every step.

    Args:
        net: trained network over [T, N, *], of this project's neurons; also a compiled one or a `SpikingClassifier`.

    Raises:
        UserError: it has no spiking neuron.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = unwrapped(net).eval()
        self._neurons = dict(neurons_of(self.net))
        if not self._neurons:
            raise UserError(f"{type(self.net).__name__} has no spiking neuron of this project: take TorchModel for it.")
        self.add_activation_module(Neuron)

    def __net__(self) -> nn.Module:
        return self.net

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """Votes [N, T, classes] of samples over time [N, T, *]; four dimensions are static images [N, C, H, W]."""
        over_time = has_time(batch, getattr(self.net, "input_shape", None))
        votes: Tensor = run_network(self.net, batch.transpose(0, 1) if over_time else batch)
        return votes.transpose(0, 1)

    def activation_layers(self) -> list[dict[str, Any]]:
        return [{"layer_name": name, "layer": neuron} for name, neuron in self._neurons.items()]

    def register_hooks(self) -> None:
        self.activation_hooks += [_Hook(neuron, name) for name, neuron in self._neurons.items()]
        self.connection_hooks += [LayerHook(layer) for layer in self.connection_layers()]


class _Potentials:
    """Potentials of a hook, before (0) or after (1) the steps: traced when they are first read after a call.

    NeuroBench assigns to them and empties them; they follow from `activation_inputs`, which it treats the same.
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def __get__(self, hook: "_Hook", owner: type) -> list[Tensor]:
        if hook.traced is None:
            hook.traced = hook.potentials()
        return hook.traced[self.index]

    def __set__(self, hook: "_Hook", value: list[Tensor]) -> None:
        pass


class _Hook(NeuronHook):
    """NeuroBench's hook of a layer of neurons; potentials are computed only for a metric that asks for them."""

    traced: tuple[list[Tensor], list[Tensor]] | None = None
    pre_fire_mem_potential = _Potentials(0)
    post_fire_mem_potential = _Potentials(1)

    _steps: tuple[int, ...] = ()  # T of each of `activation_inputs`

    def hook_fn(self, layer: Any, inputs: tuple[Any, ...], spikes: Tensor) -> None:
        super().hook_fn(layer, inputs, spikes)
        if not inputs:
            raise UserError(f"{self.name} is called with its input by name, which NeuroBench's hooks do not see.")
        self._steps = (*self._steps[: len(self.activation_inputs) - 1], len(spikes))
        self.traced = None

    def potentials(self) -> tuple[list[Tensor], list[Tensor]]:
        """Potentials before and after the steps of all calls since the last reset, as NeuroBench compares them.

        It counts the first entry fully, and changes of the others. So the first step of a call is an entry, and
        all other steps of all calls, which may have different shapes, another.
        """
        first: list[Tensor] = []
        before: list[Tensor] = []
        after: list[Tensor] = []
        for (x, *_), steps in zip(self.activation_inputs, self._steps, strict=True):
            v = self.layer.trace(x, time_steps=steps if len(x) == 1 else None).v  # a held input has a single step
            first.append(v[0].flatten())
            before.append(v[:-1].flatten())
            after.append(v[1:].flatten())
        if not first:
            return [], []
        all_steps = torch.cat(first)
        return [all_steps, torch.cat(before)], [all_steps, torch.cat(after)]
