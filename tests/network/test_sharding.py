"""Parameters that are divided over processes (FSDP 2)."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from plif_lightning.network import SpikingNetwork
from tests.processes import on_two_processes


def network():
    torch.manual_seed(0)
    return SpikingNetwork(
        (1, 8, 8), 3, 4, channels=8, fc_features=8, dropout=0.0, pool_ties="first", learn_threshold=True
    )


def halves(rank):
    torch.manual_seed(1)
    x = torch.rand(4, 1, 8, 8) * 3
    alone, shared = network().eval(), network().eval()
    mesh = init_device_mesh("cpu", (2,))
    for block in shared.blocks().values():
        fully_shard(block, mesh=mesh)
    fully_shard(shared, mesh=mesh)
    found = []
    for net in (alone, shared):
        votes = net(x)
        votes.sum().backward()
        whole = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in net.parameters()]
        found.append([votes.detach(), *whole])
    return found, all(isinstance(parameter, DTensor) for parameter in shared.parameters())


def test_sharded_network_equals_the_full_one(tmp_path):
    for found, sharded in on_two_processes(halves, tmp_path):
        assert sharded
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)
