"""A network and a training loop of one's own: ordinary layers, PLIF neurons, a plain PyTorch loop.

python tests/examples/own_network.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader

import plif_lightning as pl

TIME_STEPS, EPOCHS = 8, 4


def make() -> nn.Module:
    """Layers without a state see T N images at once; neurons see time."""
    return pl.over_time(
        nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            pl.PLIF(init_tau=2.0),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
            pl.PLIF(init_tau=2.0),
        )
    )


def main() -> float:
    torch.manual_seed(0)
    data = pl.data.Digits()
    data.prepare_data()
    data.setup()
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for epoch in range(EPOCHS):
        for images, labels in DataLoader(data.train_set, batch_size=32, shuffle=True):
            x = images.expand(TIME_STEPS, *images.shape)  # a static image at every time-step: [T, N, C, H, W]
            rates = net(x).mean(0)  # [N, 10]
            loss = nn.functional.mse_loss(rates, nn.functional.one_hot(labels, 10).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        taus = ", ".join(f"{layer.tau:.3f}" for layer in net.modules() if isinstance(layer, pl.PLIF))
        print(f"epoch {epoch + 1}: loss {loss:.4f}, tau {taus}")

    net.eval()
    right = 0
    with torch.no_grad():
        for images, labels in DataLoader(data.test_set, batch_size=128):
            state, votes = None, torch.zeros(len(images), 10)
            for _ in range(TIME_STEPS):  # one step at a time: the state goes in and comes out
                spikes, state = pl.step(net, images, state)
                votes += spikes
            right += (votes.argmax(1) == labels).sum().item()
    accuracy = right / len(data.test_set)
    print(f"test accuracy {100 * accuracy:.1f} %")

    y, traces = pl.traces(net, images[:1].expand(TIME_STEPS, 1, 1, 8, 8))
    print(f"{int(y.sum())} spikes in the last layer for one image; its potentials: {list(traces['net.6'].v.shape)}")
    return accuracy


if __name__ == "__main__":
    main()
