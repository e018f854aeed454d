"""Seconds and memory of what users wait for. Only the public API is used, so that older commits can be measured."""

import subprocess
import sys
from typing import Any

import numpy as np
import torch

import plif_lightning as pl

# Shape of a sample, classes, T and structure of a network.
IMAGES = ((1, 28, 28), 10, 8, "{c128k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10")
EVENTS = ((2, 128, 128), 10, 20, "{c128k3s1-BN-PLIF-MPk2s2}*4-DP-FC512-PLIF-DP-FC100-PLIF-APk10s10")
SMALL = ((2, 34, 34), 10, 10, "{c128k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10")


def network(kind: Any) -> pl.SpikingNetwork:
    torch.manual_seed(0)
    shape, classes, steps, structure = kind
    net = pl.SpikingNetwork(shape, classes, steps, structure=structure)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data *= 4  # so that new FC layers fire, as trained ones do
    return net


def trained(kind: Any) -> pl.SpikingNetwork:
    """A network whose BN has seen samples of this kind, so that it fires in evaluation, too."""
    net = network(kind)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        net(samples(kind, 2))
    return net.eval()


def samples(kind: Any, number: int) -> torch.Tensor:
    """Images, or frames with about as many events as a recording has."""
    shape, _, steps, _ = kind
    if kind is IMAGES:
        return torch.randn(number, *shape)
    return torch.poisson(torch.full((steps, number, *shape), 0.2))


class _Training:
    """A training step of 16 images, or of 2 recordings."""

    kind: Any = IMAGES
    number = 16
    bfloat16 = False

    def setup(self) -> None:
        self.net = network(self.kind)
        self.x = samples(self.kind, self.number)
        self.optimizer = torch.optim.Adam(self.net.parameters(), fused=True)
        self.time_step()

    def time_step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            votes = self.net(self.x)
        votes.float().square().mean().backward()
        self.optimizer.step()


class TrainingFashionMNIST(_Training):
    pass


class TrainingFashionMNISTInBfloat16(_Training):
    bfloat16 = True


class TrainingCIFAR10DVS(_Training):
    kind, number = EVENTS, 2

    def peakmem_step(self) -> None:
        self.time_step()


class Inference:
    """Two recordings of CIFAR10-DVS at once."""

    def setup(self) -> None:
        self.net, self.x = trained(EVENTS), samples(EVENTS, 2)
        self.time_inference()

    @torch.no_grad()
    def time_inference(self) -> None:
        self.net(self.x)


class Deployed:
    """A recording of N-MNIST, in 32-bit floats and in 8-bit integers."""

    params = ("float32", "int8")
    param_names = ("engine",)

    def setup(self, engine: Any) -> None:
        self.x = samples(SMALL, 1)
        self.net = pl.deploy.deployed(trained(SMALL), engine)
        self.time_sample(engine)

    @torch.no_grad()
    def time_sample(self, engine: Any) -> None:
        self.net(self.x)


class Stream:
    """One time-step of N-MNIST."""

    def setup(self) -> None:
        self.frame = samples(SMALL, 1)[0, 0]
        self.stream = pl.deploy.StreamingNetwork(trained(SMALL), events_per_step=400)
        self.time_step()

    def time_step(self) -> None:
        self.stream.step(self.frame)


class Frames:
    """Frames of a million events of a DVS128."""

    def setup(self) -> None:
        random = np.random.default_rng(0)
        x, y, p = (random.integers(0, size, 10**6) for size in (128, 128, 2))
        self.recording = pl.events.Recording(np.sort(random.integers(0, 10**7, 10**6)), x, y, p)
        self.time_frames()

    def time_frames(self) -> None:
        pl.events.integrate(self.recording, (128, 128), 20)


class Start:
    def time_import(self) -> None:
        subprocess.run([sys.executable, "-c", "import plif_lightning; plif_lightning.SpikingNetwork"], check=True)

    def time_help(self) -> None:
        subprocess.run([sys.executable, "-m", "plif_lightning", "--help"], check=True, stdout=subprocess.DEVNULL)
