"""Lays real recordings of a DVS128 out as CIFAR10-DVS or as DVS128 Gesture, where those cannot be had.

    python benchmarks/stand_in.py cifar10dvs ROOT RECORDING.aedat ...
    python benchmarks/stand_in.py dvsgesture ROOT LABELS.csv TRIALS_TRAIN.txt TRIALS_TEST.txt RECORDING.aedat ...

The files are AEDAT 2.0 of a DVS128. Format, sensor and size of what is written are the data set's; the classes
are not: a class is a recording, cut into windows of equally many events (the last 15 % of them are for testing),
or the label table's trials laid over the recordings' events, one after another. Train on it with
`--data.allow_partial true`.
"""

import sys
from itertools import cycle
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.data import CIFAR10DVS
from plif_lightning.events import Recording
from plif_lightning.events.aedat import read_aedat2
from tests import writers

WINDOW = 5000  # events


def cifar10dvs(root: Path, paths: list[Path]) -> None:
    for name, path in zip(CIFAR10DVS.class_names, paths, strict=False):
        recording = read_aedat2(path)
        windows = len(recording.t) // WINDOW
        tests = round(0.15 * windows)
        for i in range(windows):
            part = Recording(*(column[i * WINDOW : (i + 1) * WINDOW] for column in recording))
            number = i if i < windows - tests else 900 + i - (windows - tests)
            file = root / f"CIFAR10DVS/original/{name}/cifar10_{name}_{number}.aedat"
            writers.write_file(file, writers.aedat2_bytes(part))
        print(f"{name}: {path.name}, {windows - tests} windows for training, {tests} for testing")


def dvsgesture(root: Path, labels: Path, lists: tuple[Path, Path], paths: list[Path]) -> None:
    folder = root / "DVSGesture/DvsGesture"
    trials = np.loadtxt(labels, np.int64, delimiter=",", skiprows=1)[:, 1:]
    source = cycle(read_aedat2(path) for path in paths)
    for part, listing in zip(("train", "test"), lists, strict=True):
        names = listing.read_text().split()
        writers.write_file(folder / f"trials_to_{part}.txt", "\n".join(names).encode())
        for name in names:
            pieces = []
            for start, end in trials:
                events = next(source)
                # the recording's own pace, in the trial's place
                t = start + (events.t - events.t[0]) % (end - start)
                order = np.argsort(t, kind="stable")
                pieces.append(Recording(*(column[order] for column in (t, *events[1:]))))
            whole = Recording(*map(np.concatenate, zip(*pieces, strict=True)))
            writers.write_file(folder / name, writers.aedat3_bytes(whole, packet=8000))
            writers.write_file(folder / f"{Path(name).stem}_labels.csv", labels.read_bytes())
        print(f"{part}: {len(names)} recordings of {len(trials)} trials")


def main() -> None:
    if len(sys.argv) < 4 or sys.argv[1] not in ("cifar10dvs", "dvsgesture"):
        raise SystemExit(__doc__)
    kind, root, *files = sys.argv[1], *map(Path, sys.argv[2:])
    if kind == "cifar10dvs":
        cifar10dvs(root, files)
    else:
        dvsgesture(root, files[0], (files[1], files[2]), files[3:])


if __name__ == "__main__":
    main()
