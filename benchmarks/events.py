"""Events per second into frames, and samples per second into batches, beside tonic and SpikingJelly, on one core.

    PLIF_DATA_ROOT=DIR python benchmarks/events.py

DIR holds NMNIST/{Train,Test} and DVS128/*.aedat, real recordings of a DVS128 in AEDAT 2.0. Everything runs in
alternation in this one process; the median and the spread over the rounds are printed. First it is checked that all
give the same frames (tonic drops the events that T does not divide, so it gets a multiple of T).

Loader: our store to uint8 batches [16, T, 2, 128, 128] (and, as a second row, converted to float32 as the others
are), SpikingJelly's `load_npz_frames` on its cached frames through a DataLoader, compressed (its default) and not.
All files lie in the page cache.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does; it serves the others too

import numpy as np
import tonic
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import alternate, show_rates
from plif_lightning.data import EventFolder
from plif_lightning.data.loading import BatchPlan, make_loader
from plif_lightning.events import Recording, Sensor
from plif_lightning.events.aedat import read_aedat2
from plif_lightning.events.integration import bounds_by_count, count_events, integrate
from plif_lightning.events.readers import read_nmnist
from plif_lightning.events.recording import pack_events
from plif_lightning.runtime.process import processor
from tests import writers
from tests.peers import spikingjelly_dataset_utils

DVS128 = Sensor(128, 128)


def integration(title: str, recordings: list[Recording], sensor: Sensor, time_steps: int, rounds: int) -> None:
    peer = spikingjelly_dataset_utils()
    multiples = [Recording(*(c[: len(c) // time_steps * time_steps] for c in r)) for r in recordings]
    packed = [pack_events(r, sensor, title) for r in multiples]
    dictionaries = [dict(zip("txyp", r, strict=True)) for r in multiples]
    structured = [tonic.io.make_structured_array(r.x, r.y, r.t, r.p) for r in multiples]
    # as the loader does it: out of one array, 16 recordings at once
    address = np.concatenate([p.address for p in packed])
    offset = np.cumsum([0, *(len(p.address) for p in packed)])
    batches = [(offset[i : i + 17][:-1], offset[i : i + 17][1:]) for i in range(0, len(packed), 16)]
    to_frame = tonic.transforms.ToFrame(sensor_size=(sensor.width, sensor.height, 2), n_event_bins=time_steps)
    for p, d, s in zip(packed, dictionaries, structured, strict=True):
        frames = integrate(p, sensor, time_steps)
        assert (frames == peer.integrate_events_by_fixed_frames_number(d, "number", time_steps, *sensor)).all()
        assert (frames == to_frame(s)).all()
    cases: dict[str, Callable[[], Any]] = {
        "ours": lambda: [
            count_events(address, bounds_by_count(begin, end, time_steps), 2 * sensor.pixels) for begin, end in batches
        ],
        "ours, one by one": lambda: [integrate(p, sensor, time_steps) for p in packed],
        "SpikingJelly": lambda: [
            peer.integrate_events_by_fixed_frames_number(d, "number", time_steps, *sensor) for d in dictionaries
        ],
        "tonic": lambda: [to_frame(s) for s in structured],
    }
    seconds = alternate(cases, rounds)
    events = sum(len(r.t) for r in multiples)
    show_rates(
        f"{title}, T = {time_steps}, {len(recordings)} recordings of {events:,} events", "events/s", events, seconds
    )


class CachedFrames(Dataset[Any]):
    """SpikingJelly's data set of frames: a file for each recording, read anew each time."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.load = spikingjelly_dataset_utils().load_npz_frames

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.load(self.paths[i]), 0


def loader(recordings: list[Recording], time_steps: int, rounds: int, folder: Path) -> None:
    compressed, plain = [], []
    for i, recording in enumerate(recordings):
        writers.write_file(folder / f"raw/train/{'ab'[i % 2]}/{i:03}.aedat", writers.aedat2_bytes(recording))
        frames = spikingjelly_dataset_utils().integrate_events_by_fixed_frames_number(
            dict(zip("txyp", recording, strict=True)), "number", time_steps, 128, 128
        )
        compressed.append(folder / f"compressed{i}.npz")
        np.savez_compressed(compressed[-1], frames=frames)
        plain.append(folder / f"plain{i}.npz")
        np.savez(plain[-1], frames=frames)
    writers.write_file(folder / "raw/test/a/0.aedat", writers.aedat2_bytes(recordings[0]))
    n = len(recordings)
    dataset = EventFolder(root=str(folder / "raw"), time_steps=time_steps).dataset(True, None, augment=False)
    ours = make_loader(dataset, BatchPlan(n, 16, shuffle=True))
    theirs = {
        "SpikingJelly, .npz": DataLoader(CachedFrames(compressed), 16, shuffle=True),
        "SpikingJelly, uncompressed": DataLoader(CachedFrames(plain), 16, shuffle=True),
    }
    order = [int(Path(name).stem) for name in dataset.arrays["name"]]
    a, b = next(iter(make_loader(dataset, BatchPlan(n, 16)))), next(iter(DataLoader(CachedFrames(compressed), n)))
    assert torch.equal(a.x.float(), b[0][order[:16]])

    def run(batches: Any, convert: bool = False) -> None:
        for batch in batches:
            if convert:
                batch.x.float()

    cases: dict[str, Callable[[], Any]] = {
        "ours": partial(run, ours),
        "ours, and to float32": partial(run, ours, True),
        **{name: partial(run, batches) for name, batches in theirs.items()},
    }
    seconds = alternate(cases, rounds)
    events = sum(len(r.t) for r in recordings)
    show_rates(f"Loader, batch 16, T = {time_steps}, {n} recordings of {events // n:,} events", "samples/s", n, seconds)
    converted = {name: times for name, times in seconds.items() if "ours" not in name or "float32" in name}
    show_rates(
        "The same against ours with the conversion to float32", "samples/s", n, converted, "ours, and to float32"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--events", type=int, default=70_304, help="of each DVS128 recording")
    arguments = parser.parse_args()
    root = Path(os.environ.get("PLIF_DATA_ROOT", "data"))
    n = arguments.events
    whole = [read_aedat2(path) for path in sorted((root / "DVS128").glob("*.aedat"))]
    long = [r for r in whole if len(r.t) >= n]
    nmnist = [read_nmnist(path) for path in sorted((root / "NMNIST/Test").glob("*/*.bin"))]
    for found, what in ((long, f"DVS128/*.aedat with {n:,} events or more"), (nmnist, "NMNIST/Test/*/*.bin")):
        if not found:
            parser.error(f"{root} holds no {what}: set PLIF_DATA_ROOT to a folder that does.")
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"torch {torch.__version__}, tonic {tonic.__version__}, numpy {np.__version__}, {processor()}, one core")
    print(f"{arguments.rounds} rounds in alternation: median [lowest, highest]")
    integration("N-MNIST", nmnist, Sensor(34, 34), 10, arguments.rounds)
    first = [Recording(*(c[:n] for c in r)) for r in long]
    integration("DVS128", first, DVS128, 20, arguments.rounds)
    windows = []
    for recording in long:
        for first in np.linspace(0, len(recording.t) - n, 22).astype(int):
            windows.append(Recording(*(c[first : first + n] for c in recording)))
    with tempfile.TemporaryDirectory() as folder:
        loader(windows[:64], 20, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
