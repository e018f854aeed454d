import pytest
import torch

from plif_lightning.network import SpikingNetwork


def trained(shape=(2, 12, 12), classes=3, steps=4, **changes) -> SpikingNetwork:
    """A network that fires, with non-trivial BN statistics and a different tau in each layer or channel."""
    torch.manual_seed(0)
    settings = {
        **({} if "structure" in changes else {"channels": 8, "fc_features": 20, "votes_per_class": 2}),
        "neuron": "plif",
        "pool_ties": "first",
    } | changes
    net = SpikingNetwork(shape, classes, steps, **settings)
    for i, (_, neuron) in enumerate(net.neurons()):
        if hasattr(neuron, "a"):
            neuron.a.data -= 0.2 * i
            if len(neuron.a) > 1:  # tau per channel
                neuron.a.data += torch.linspace(-0.7, 0.7, len(neuron.a))
        if neuron.v_threshold_raw is not None:
            neuron.v_threshold_raw.data -= torch.linspace(0.0, 0.3, len(neuron.v_threshold_raw))
    for bn in net.modules():
        if not isinstance(bn, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            continue
        torch.nn.init.uniform_(bn.weight, 1.0, 2.0)
        torch.nn.init.uniform_(bn.bias, 0.1, 0.6)
        torch.nn.init.normal_(bn.running_mean, std=0.2)
        torch.nn.init.uniform_(bn.running_var, 0.05, 0.4)
    net.eval()
    x = torch.rand(2, *shape) if net.inputs.name != "direct" else frames(net)
    with torch.no_grad():
        spikes = net.encoder(x[None] if x.dim() == 4 else x, net.time_steps).flatten(2)
        for block in net.classifier:
            if not hasattr(block, "fc"):  # a delay
                spikes = block(spikes)
                continue
            weight = block.fc.weight.add_(0.05).clone()
            for power in range(12):  # raise the weights until the layer fires often enough
                block.fc.weight.copy_(weight * 1.5**power)
                if block.neuron is None or block(spikes).mean() > 0.25:
                    break
            spikes = block(spikes)
    return net


# Networks beyond the paper's: every kind of block, spikes and sums of spikes and real numbers between them.
STRUCTURES = {
    "residual": "c8k3s1-BN-PLIF-ADD(c8k3s1-BN-PLIF)-ADD(c6k3s2-BN-PLIF-c6k3s1-BN-LIF|c6k1s2-BN-PLIF)-AP-FC3b",
    "sums before neurons": "c8k5s1-BN-PLIF-MPk2s2-{ADD(c8k3s1-BN-PLIF-c8k3s1-BN)-PLIF}*2-FC12-PLIF-FC3",
    "residual first": "ADD(c2k3s1-BN-PLIF-c2k3s1-BN)-PLIF-ADD(c2k3s1-BN|c2k1s1-BN-PLIF)-CLIF-FC3-PLIF",
    "real residuals": "c8k3s1-BN-ADD(PLIF-c8k3s1-BN)-ADD(PLIF-c6k3s2-BN|c6k1s2-BN)-PLIF-APk2s2-FC3",
    "windows": "c8k5s2p1-BN-PLIF-MPk3s2p1-c6k1s1-BN-PLIF-APk2s1-c8k3s1g2-BN-PLIF-FC6-PLIF-APk2s2",
    "integral": "c8k3s2-BN-PLIF-c6k3s1-BN-PLIF-FC3-LI(init_tau=3.0)",
    "products": "c8k3s1-BN-PLIF-AND(c8k3s1-BN-PLIF)-IAND(c8k1s1-BN-PLIF)-MPk2s2-FC6-PLIF-APk2s2",
    "rectangles": "c8k3x5s1-BN-PLIF-MPk4x2s2p1x0-c6k1x3s2x1-BN-PLIF-FC3-PLIF",
    "recurrent": "c8k3s1-BN-PLIF-MPk2s2-RFC20-PLIF(v_threshold=2.0)-FC3-PLIF",
    "whole delays": "c8k3s1-BN-PLIF-DELAY(max_delay=2,rounds=true)-c6k3s1-BN-PLIF-MPk2s2-RFC20-PLIF-"
    "DELAY(max_delay=3,rounds=true)-FC6-PLIF-APk2s2",
    "BN of features": "c8k3s1-BN-PLIF-MPk2s2-RFC20-BN-PLIF(v_threshold=4.0)-FC12-BN-PLIF(v_threshold=4.0)-FC3-BN",
    "one neuron a class": "c8k3s1-BN-PLIF-MP-FC3-PLIF",
}


def frames(net: SpikingNetwork, samples: int = 3) -> torch.Tensor:
    """Random event counts [T, N, C, H, W]."""
    shape = (net.time_steps, samples, *net.input_shape)
    return torch.poisson(torch.full(shape, 0.4), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> SpikingNetwork:
    return trained()
