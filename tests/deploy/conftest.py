import pytest
import torch

from plif_lightning.network import SpikingNetwork


def trained(shape=(2, 12, 12), classes=3, steps=4, **changes) -> SpikingNetwork:
    """A network that fires, with non-trivial BN statistics and a different tau in each layer or channel."""
    torch.manual_seed(0)
    settings = {
        "channels": 8,
        "fc_features": 20,
        "votes_per_class": 2,
        "neuron": "plif",
        "pool_ties": "first",
    } | changes
    net = SpikingNetwork(shape, classes, steps, **settings)
    for i, (_, neuron) in enumerate(net.neurons()):
        if hasattr(neuron, "a"):
            neuron.a.data -= 0.2 * i
        if neuron.k is not None and neuron.k.dim():  # tau, and a learned threshold, per channel
            neuron.a.data += torch.linspace(-0.7, 0.7, len(neuron.a))
        if neuron.b is not None:
            neuron.b.data -= torch.linspace(0.0, 0.3, neuron.b.numel()).view_as(neuron.b)
    for block in net.encoder:
        bn = block.norm.bn
        torch.nn.init.uniform_(bn.weight, 1.0, 2.0)
        torch.nn.init.uniform_(bn.bias, 0.1, 0.6)
        torch.nn.init.normal_(bn.running_mean, std=0.2)
        torch.nn.init.uniform_(bn.running_var, 0.05, 0.4)
    net.eval()
    x = torch.rand(2, *shape) if net.inputs.name != "direct" else frames(net)
    with torch.no_grad():
        spikes = net.encoder(net.inputs(x[None] if x.dim() == 4 else x)).flatten(2)
        for block in net.classifier:
            weight = block.fc.weight.add_(0.05).clone()
            for power in range(12):  # raise the weights until the layer fires often enough
                block.fc.weight.copy_(weight * 1.5**power)
                if block(spikes).mean() > 0.25:
                    break
            spikes = block(spikes)
    return net


def frames(net: SpikingNetwork, samples: int = 3) -> torch.Tensor:
    """Random event counts [T, N, C, H, W]."""
    shape = (net.time_steps, samples, *net.input_shape)
    return torch.poisson(torch.full(shape, 0.4), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> SpikingNetwork:
    return trained()
