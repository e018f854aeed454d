"""From event recordings of one's own to a prediction: files in class folders, training, then a live stream of events.

python tests/examples/own_recordings.py
"""

import tempfile
from pathlib import Path

import lightning as L
import numpy as np
import torch

import plif_lightning as pl

SENSOR, TIME_STEPS = (24, 32), 10


def recording(direction: int, seed: int) -> dict[str, np.ndarray]:
    """A bar that moves to the left (-1) or right (1) before a camera: x, y, t [us] and p of its events.

    What it comes to gets brighter (ON), what it leaves gets darker (OFF).
    """
    random = np.random.default_rng(seed)
    height, width = SENSOR
    t = np.sort(random.integers(0, 100_000, 3000))
    edge = (t / 100_000 * width * direction + random.integers(0, width)) % width
    p = random.integers(0, 2, len(t))
    x = (edge + (2 * p - 1) * direction + random.normal(0, 0.4, len(t))).astype(int) % width
    return {"x": x, "y": random.integers(height // 4, 3 * height // 4, len(t)), "t": t, "p": p}


def write(root: Path) -> None:
    """ROOT/train/CLASS/*.npz and ROOT/test/CLASS/*.npz, as a user would put them there."""
    for part, count in (("train", 40), ("test", 10)):
        for name, direction in (("left", -1), ("right", 1)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                np.savez(folder / f"{i:03d}.npz", **recording(direction, 1000 * len(part) + i))


def main() -> float:
    L.seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        data = pl.data.EventFolder(root=folder, sensor=SENSOR, time_steps=TIME_STEPS, batch_size=4)
        task = pl.SpikingClassifier(
            data.input_shape, data.num_classes, data.time_steps, channels=16, fc_features=64, dropout=0.0
        )
        trainer = L.Trainer(max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.fit(task, datamodule=data)
        accuracy = float(trainer.test(task, datamodule=data)[0]["test/acc"])
        classes = data.class_names

    # Events as a camera gives them: frames of them, one after another, and what the network thinks meanwhile.
    events = recording(direction=1, seed=7)
    frames = torch.from_numpy(pl.events.frames_of(**events, sensor=SENSOR, time_steps=TIME_STEPS))
    task.eval()
    state, votes = None, torch.zeros(1, len(classes))
    with torch.no_grad():
        for t, frame in enumerate(frames):
            step, state = pl.step(task, frame[None], state)
            votes += step
            shares = ", ".join(f"{name} {vote / (t + 1):.2f}" for name, vote in zip(classes, votes[0], strict=True))
            print(f"t = {t}: {classes[int(votes.argmax())]} ({shares})")
    return accuracy


if __name__ == "__main__":
    print(f"test accuracy {100 * main():.1f} %")
