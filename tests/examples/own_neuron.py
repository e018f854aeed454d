"""A neuron of one's own: its equations, trained, stepped and drawn.

python tests/examples/own_neuron.py
"""

# ruff: noqa: N805  # equations have no self
# mypy: disable-error-code="no-untyped-def"
import lightning as L
import torch

import plif_lightning as pl


class CLIF(pl.Neuron):
    """Complementary LIF (Huang et al. 2024)."""

    state = ("v", "m")
    k = pl.learned(0.5, "unit")  # 1/tau, between 0 and 1 by construction

    def charge(v, x, k):
        return (1 - k) * v + x

    def after(h, m, s, k):
        m = m * torch.sigmoid(k * h) + s
        return h - s * (1 + torch.sigmoid(m)), m


def main() -> float:
    L.seed_everything(0, verbose=False)
    data = pl.data.Digits()
    task = pl.SpikingClassifier(
        data.input_shape, data.num_classes, data.time_steps, channels=16, fc_features=64, neuron=CLIF(k=0.6)
    )
    trainer = L.Trainer(max_epochs=6, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(task, datamodule=data)
    accuracy = trainer.test(task, datamodule=data, verbose=False)[0]["test/acc"]
    net = task.network.eval()
    print(f"accuracy {accuracy:.3f}; k {[round(neuron.k.item(), 3) for _, neuron in net.neurons()]}")
    x = torch.rand(8, 2, *data.input_shape)
    _, state = pl.step(net, x[0])  # one time-step: both states of each layer
    print({name: [tuple(part.shape) for part in of_layer] for name, of_layer in state.items()})
    trace = pl.traces(net, x)[1]["classifier.fc2.neuron"]
    pl.plot.membrane(trace)  # the potential and the spikes of each neuron
    print("m after the last step:", tuple(trace.states["m"][-1].shape))
    return float(accuracy)


if __name__ == "__main__":
    main()
