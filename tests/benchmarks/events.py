"""Events per second into frames, and samples per second into batches, beside tonic and SpikingJelly, on one core.

    PLIF_DATA_ROOT=DIR python tests/benchmarks/events.py

DIR holds NMNIST/{Train,Test} and DVS128/*.aedat, real recordings of a DVS128 in AEDAT 2.0. Everything runs in
alternation in this one process; the median and the spread over the rounds are printed. First it is checked that all
give the same frames (tonic drops the events that T does not divide, so it gets a multiple of T).

Loader: our store to uint8 batches [16, T, 2, 128, 128] (and, as a second row, converted to float32 as the others
are), SpikingJelly's `load_npz_frames` on its cached frames through a DataLoader, compressed (its default) and not.
All files lie in the page cache.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does; it serves the others too

import numpy as np
import tonic
import torch
from torch.utils.data import DataLoader, Dataset

from plif_lightning.data import EventFolder
from plif_lightning.data.loading import BatchPlan, make_loader
from plif_lightning.events import Recording, Sensor
from plif_lightning.events.aedat import read_aedat2
from plif_lightning.events.integration import bounds_by_count, count_events, integrate
from plif_lightning.events.readers import read_nmnist
from plif_lightning.events.recording import pack
from plif_lightning.runtime.process import processor
from tests import writers
from tests.peers import spikingjelly_dataset_utils

DVS128 = Sensor(128, 128)


def alternate(rounds: int, **cases: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each case in each round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def show(title: str, unit: str, amount: float, seconds: dict[str, list[float]], ours: str = "ours") -> None:
    print(f"\n{title}")
    for name, times in seconds.items():
        rates = [amount / t for t in times]
        ratio = statistics.median(t / o for t, o in zip(times, seconds[ours], strict=True))
        note = "" if name == ours else f"   ours is {ratio:.1f} times as fast"
        print(f"  {name:28} {statistics.median(rates):14,.0f} [{min(rates):,.0f}, {max(rates):,.0f}] {unit}{note}")


def integration(title: str, recordings: list[Recording], sensor: Sensor, time_steps: int, rounds: int) -> None:
    peer = spikingjelly_dataset_utils()
    multiples = [Recording(*(c[: len(c) // time_steps * time_steps] for c in r)) for r in recordings]
    packed = [pack(r, sensor, title) for r in multiples]
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
    seconds = alternate(rounds, **cases)
    events = sum(len(r.t) for r in multiples)
    show(f"{title}, T = {time_steps}, {len(recordings)} recordings of {events:,} events", "events/s", events, seconds)


def by_time(recordings: list[Recording], time_steps: int, rounds: int) -> None:
    """Beside evlib, where it is installed (`pip install evlib`): it cuts by time only, and gives a table of counts."""
    try:
        import evlib
        import polars
    except ImportError:
        print("\nevlib is not installed")
        return
    tables, windows = [], []
    for r in recordings:
        since = polars.Series(r.t - r.t[0]).cast(polars.Duration("us"))
        columns = {"x": r.x.astype(np.int16), "y": r.y.astype(np.int16), "polarity": r.p.astype(np.int8)}
        tables.append(polars.DataFrame({"t": since, **columns}))
        windows.append((int(r.t[-1] - r.t[0]) + 1) / time_steps / 1000)
    packed = [pack(r, DVS128, "DVS128") for r in recordings]

    def theirs() -> list[Any]:
        return [
            evlib.create_stacked_histogram(table, *DVS128, bins=time_steps, window_duration_ms=window)
            for table, window in zip(tables, windows, strict=True)
        ]

    for found, r in zip(theirs(), recordings, strict=True):
        assert found["count"].sum() == len(r.t)
    cases: dict[str, Callable[[], Any]] = {
        "ours": lambda: [integrate(p, DVS128, time_steps, "by_time") for p in packed],
        "evlib, a table of counts": theirs,
    }
    events = sum(len(r.t) for r in recordings)
    title = f"DVS128 by time, T = {time_steps}, {len(recordings)} recordings of {events:,} events"
    show(title, "events/s", events, alternate(rounds, **cases))


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
        "ours, windows of one recording": partial(run, windows_of_one(recordings, time_steps, folder)),
        "ours, and to float32": partial(run, ours, True),
        **{name: partial(run, batches) for name, batches in theirs.items()},
    }
    seconds = alternate(rounds, **cases)
    events = sum(len(r.t) for r in recordings)
    show(f"Loader, batch 16, T = {time_steps}, {n} recordings of {events // n:,} events", "samples/s", n, seconds)
    converted = {name: times for name, times in seconds.items() if "ours" not in name or "float32" in name}
    show("The same against ours with the conversion to float32", "samples/s", n, converted, "ours, and to float32")
    bandwidth(dataset.arrays["address"], dataset.arrays["offset"], time_steps, rounds)


def windows_of_one(recordings: list[Recording], time_steps: int, folder: Path) -> Any:
    """Loader of windows that are the given recordings, of a store with one recording that strings them together."""
    count = len(recordings[0].t)
    shift = np.cumsum([0, *(int(r.t[-1] - r.t[0]) + 1 for r in recordings)])
    t = [r.t - r.t[0] + s for r, s in zip(recordings, shift[:-1], strict=True)]
    rest = [[getattr(r, name) for r in recordings] for name in ("x", "y", "p")]
    for part, name in (("train", "a"), ("train", "b"), ("test", "a")):
        path = folder / "long" / part / name / "long.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, **Recording(*map(np.concatenate, (t, *rest)))._asdict())
    module = EventFolder(root=str(folder / "long"), sensor=DVS128, time_steps=time_steps, window_events=count)
    n = len(recordings)
    dataset = module.dataset(train=True, indices=torch.arange(n), augment=False)
    return make_loader(dataset, BatchPlan(n, 16, shuffle=True))


def bandwidth(address: Any, offset: Any, time_steps: int, rounds: int) -> None:
    """How near the counting of a batch comes to writing its zeros and reading its events, and nothing else."""
    begin, end = offset[:16], offset[1:17]
    bounds = bounds_by_count(begin, end, time_steps)
    size = 2 * DVS128.pixels
    span = address[begin[0] : end[-1]]
    zeros = 16 * time_steps * size

    def memory_alone() -> None:
        np.empty(zeros, np.uint8).fill(0)
        span.sum(dtype=np.uint64)

    seconds = alternate(
        5 * rounds, count=lambda: count_events(address, bounds, size), memory=memory_alone, copy=lambda: span.copy()
    )
    count, memory = (statistics.median(seconds[name]) for name in ("count", "memory"))
    moved = zeros + span.nbytes
    print(
        f"\nCounting a batch of 16: {count * 1e3:.2f} ms for {moved / 1e6:.1f} MB, {moved / count / 1e9:.1f} GB/s "
        f"({len(span) / count / 1e6:,.0f} million events/s). Writing its zeros and reading its events alone takes "
        f"{memory * 1e3:.2f} ms: {100 * memory / count:.0f} % of the time."
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
    by_time(first, 20, arguments.rounds)
    windows = []
    for recording in long:
        for first in np.linspace(0, len(recording.t) - n, 22).astype(int):
            windows.append(Recording(*(c[first : first + n] for c in recording)))
    with tempfile.TemporaryDirectory() as folder:
        loader(windows[:64], 20, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
