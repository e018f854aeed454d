"""Recurrent neurons in a container of SpikingJelly."""

from torch import Tensor, nn

from plif_lightning.layers.recurrent import recurrent_spikes
from plif_lightning.neurons import Neuron
from plif_lightning.signals.signal import LayerModule, Signal, keeps_spikes


class RecurrentContainer(LayerModule):
    """SpikingJelly's `LinearRecurrentContainer`: one weight [F_in, F_in + F] of the inputs and the previous spikes.

    Args:
        rc: its linear layer.
        linear: a layer [F, F_in] between `rc` and the neurons, or None.
        neuron: the neurons.
    """

    carries = ("s",)
    step_mode = "m"

    def __init__(self, rc: nn.Linear, linear: nn.Linear | None, neuron: Neuron) -> None:
        super().__init__()
        self.rc, self.linear, self.neuron = rc, linear, neuron

    def run(self, x: Signal) -> Tensor:
        weight: Tensor = self.rc.weight
        bias: Tensor | None = self.rc.bias
        if self.linear is not None:
            # Not called: its input is no input of the network.
            outer, outer_bias = self.linear.weight, self.linear.bias
            weight, bias = outer @ weight, outer_bias if bias is None else nn.functional.linear(bias, outer, outer_bias)
        size = x.values.shape[-1]
        inputs = nn.functional.linear(x.values, weight[:, :size], bias)
        return recurrent_spikes(self, self.neuron, Signal(inputs, x.steps), weight[:, size:].contiguous())[0]

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.neuron, spikes=False)
