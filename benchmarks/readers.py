"""Events read per second from each file format, on one core, beside the library that people use.

    python benchmarks/readers.py [--events 2000000] [--rounds 7] [--only .raw]

A recording of moving edges and noise is written in each format by the tests' writers and read in alternation; the
median and the spread over the rounds are printed. First it is checked that both read the same events, unless a note
says what differs. Files lie in the page cache. expelliarmus comes with tonic; aedat with '.[bench]', hdf5plugin with
'.[events]'; evlib, pandas and polars are used where they are installed.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does; it serves the others too

import h5py
import numpy as np

from benchmarks.timing import alternate, show_rates
from plif_lightning.events import Recording, read_any
from plif_lightning.events.tables import TimeUnit
from plif_lightning.runtime.process import processor
from tests import writers

HEIGHT, WIDTH = 720, 1280


def moving_edges(n: int) -> Recording:
    """Runs of neighbouring pixels in a row, as edges leave them, among noise."""
    random = np.random.default_rng(7)
    starts = n // 4
    t = np.sort(random.integers(0, n // 5, starts))
    y = random.integers(0, HEIGHT, starts)
    x = random.integers(0, WIDTH - 16, starts)
    p = random.integers(0, 2, starts)
    length = np.where(random.random(starts) < 0.5, 1, random.integers(2, 12, starts))
    owner = np.repeat(np.arange(starts), length)[:n]
    along = np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length)[:n]
    return Recording(t[owner], x[owner] + along, y[owner], p[owner])


def there(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def compare(
    title: str, path: Path, n: int, rounds: int, peers: dict[str, Callable[[], Any]], unit: TimeUnit | None = None
) -> None:
    """Print how fast we and the peers read a file."""
    cases: dict[str, Callable[[], Any]] = {"ours": lambda: read_any(path, time_unit=unit), **peers}
    assert len(read_any(path, time_unit=unit).t) == n, title
    title = f"{title}, {path.stat().st_size / n:.1f} bytes an event"
    show_rates(title, "M events/s", n / 1e6, alternate(cases, rounds))


def same(ours: Recording, theirs: Any, names: str = "txyp") -> None:
    for field, name in zip("txyp", names, strict=True):
        assert np.array_equal(getattr(ours, field), np.asarray(theirs[name])), field


def prophesee(folder: Path, recording: Recording, rounds: int) -> None:
    from expelliarmus import Wizard

    events = np.zeros(len(recording.t), [("t", "i8"), ("x", "i2"), ("y", "i2"), ("p", "u1")])
    for name, column in recording._asdict().items():
        events[name] = column
    for encoding, write in (("dat", writers.dat_bytes), ("evt2", writers.evt2_bytes), ("evt3", writers.evt3_bytes)):
        path = folder / f"{encoding}.{'dat' if encoding == 'dat' else 'raw'}"
        path.write_bytes(write(recording, HEIGHT, WIDTH))
        theirs = Wizard(encoding).read(path)
        if encoding == "evt3":  # it adds overflows of the lower part of a time twice
            theirs["t"] = recording.t
        same(read_any(path), theirs)
        peers: dict[str, Callable[[], Any]] = {"expelliarmus": lambda e=encoding, p=path: Wizard(e).read(p)}
        if encoding != "dat" and there("evlib"):
            import evlib

            peers["evlib"] = lambda p=path: evlib.load_events(str(p)).collect()
        compare(f"Prophesee {encoding}", path, len(recording.t), rounds, peers)
    path = writers.write_file(folder / "evt21.raw", writers.evt21_bytes(recording, HEIGHT, WIDTH))
    peers = {}
    if there("evlib"):
        import evlib

        peers["evlib"] = lambda: evlib.load_events(str(path)).collect()
    compare("Prophesee evt21", path, len(recording.t), rounds, peers)


def inivation(folder: Path, recording: Recording, rounds: int) -> None:
    for name, compression in (("uncompressed", 0), ("LZ4", 1), ("Zstandard", 3)):
        path = folder / f"{name}.aedat4"
        path.write_bytes(writers.aedat4_bytes(recording, compression, 10_000, HEIGHT, WIDTH))
        peers: dict[str, Callable[[], Any]] = {}
        if there("aedat"):
            import aedat

            def theirs(path: Path = path) -> list[Any]:
                packets = [packet["events"] for packet in aedat.Decoder(path) if "events" in packet]
                return [np.concatenate([packet[name] for packet in packets]) for name in ("t", "x", "y", "on")]

            same(read_any(path), dict(zip("txyp", theirs(), strict=True)))
            peers["aedat"] = theirs
        compare(f"AEDAT 4, {name}", path, len(recording.t), rounds, peers)


def text(folder: Path, recording: Recording, rounds: int) -> None:
    for unit, separator in (("us", ","), ("s", " ")):
        path = folder / f"{unit}.csv"
        path.write_bytes(writers.text_bytes(recording, separator=separator, unit=unit))
        kind = np.float64 if unit == "s" else np.int64
        peers: dict[str, Callable[[], Any]] = {
            "numpy.loadtxt": lambda p=path, s=separator, k=kind: np.loadtxt(p, k, skiprows=1, delimiter=s)
        }
        compare(f"text, {unit}", path, len(recording.t), rounds, peers, "s" if unit == "s" else None)


def hdf5(folder: Path, recording: Recording, rounds: int) -> None:
    def columns(path: Path) -> list[Any]:
        with h5py.File(path, "r") as file:
            t = file["events/t"][()].astype(np.int64) + file["t_offset"][()]
            return [t, *(file[f"events/{name}"][()] for name in "xyp")]

    settings: list[tuple[str, dict[str, Any]]] = [("uncompressed", {})]
    if there("hdf5plugin"):
        import hdf5plugin

        settings.append(("Blosc", dict(hdf5plugin.Blosc(cname="zstd"))))
    for name, compression in settings:
        path = writers.write_dsec(folder / f"{name}.h5", recording, **compression)
        compare(f"HDF5 of DSEC, {name}", path, len(recording.t), rounds, {"h5py": lambda p=path: columns(p)})


def arrays(folder: Path, recording: Recording, rounds: int) -> None:
    path = folder / "a.npz"
    np.savez(path, **recording._asdict())

    def theirs() -> list[Any]:
        with np.load(path) as loaded:
            return [loaded[name] for name in "txyp"]

    compare("NumPy, .npz", path, len(recording.t), rounds, {"numpy": theirs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["prophesee", "inivation", "text", "hdf5", "arrays"])
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for name in ("POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    print(f"numpy {np.__version__}, {processor()}, one core; {given.rounds} rounds: median [lowest, highest]")
    recording = moving_edges(given.events)
    with tempfile.TemporaryDirectory() as folder:
        for part in (prophesee, inivation, text, hdf5, arrays):
            if given.only in (None, part.__name__):
                part(Path(folder), recording, given.rounds)


if __name__ == "__main__":
    main()
