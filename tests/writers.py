"""Small files in the formats of the real data sets."""

import csv
import itertools
import json
import os
import pickle
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import lz4.frame
import numpy as np
import yaml
import zstandard
from PIL import Image

from plif_lightning import configs
from plif_lightning import data as data_modules
from plif_lightning.errors import UserError
from plif_lightning.events import Recording
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.record import Session, read_record, update
from plif_lightning.runs.samples import RecordedSamples, write_samples
from plif_lightning.structure import NUMBERS, resolve_structure

FOLDERS = {"MNIST": "MNIST/raw", "FashionMNIST": "FashionMNIST/raw", "CIFAR10": "cifar-10-batches-py"}
FOLDERS["CIFAR100"] = "cifar-100-python"


def labels_of(n: int) -> np.ndarray:
    """0, 1, ..., 9, 0, 1, ..."""
    return (np.arange(n) % 10).astype(np.uint8)


def images_of(n: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Noise around a brightness that tells the class, so that a network has something to learn."""
    noise = np.random.default_rng(seed).integers(0, 60, (n, *shape))
    return (noise + 19 * labels_of(n).reshape(-1, *[1] * len(shape))).astype(np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Yann LeCun's idx format, uint8: magic number, sizes, data, big-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path, train: int = 40, test: int = 20, name: str = "MNIST") -> None:
    """`MNIST` or `FashionMNIST` as torchvision reads it."""
    folder = root / FOLDERS[name]
    for part, n, seed in (("train", train, 0), ("t10k", test, 1)):
        write_idx(folder / f"{part}-images-idx3-ubyte", images_of(n, (28, 28), seed))
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels_of(n))


def write_cifar10(root: Path, train: int = 40, test: int = 20) -> None:
    """CIFAR-10's python version: five training files and one test file of pickled dictionaries."""
    folder = root / FOLDERS["CIFAR10"]
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = images_of(train, (3072,), 0), labels_of(train)
    parts = [(f"data_batch_{i + 1}", images[i::5], labels[i::5]) for i in range(5)]
    for name, x, y in [*parts, ("test_batch", images_of(test, (3072,), 1), labels_of(test))]:
        (folder / name).write_bytes(pickle.dumps({"data": x, "labels": y.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))


def write_cifar100(root: Path, train: int = 40, test: int = 20) -> None:
    """CIFAR-100's python version: a training file and a test file of pickled dictionaries."""
    folder = root / FOLDERS["CIFAR100"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, seed in (("train", train, 0), ("test", test, 1)):
        content = {"data": images_of(n, (3072,), seed), "fine_labels": labels_of(n).tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))


# --- recordings of event cameras


def events_of(n: int, seed: int, height: int = 128, width: int = 128, last: int = 1_000_000) -> Recording:
    """n events at random places, in order of time [us]."""
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, last, n))
    return Recording(t, random.integers(0, width, n), random.integers(0, height, n), random.integers(0, 2, n))


def nmnist_bytes(recording: Recording) -> bytes:
    """N-MNIST: 5 bytes an event, with a marker (y = 240) for each time that 2^13 us are added to the counter."""
    t, x, y, p = (np.asarray(column).astype(np.int64) for column in recording)
    rows = []
    added = 0
    for event in zip(t, x, y, p, strict=True):
        while event[0] - added >= 2**23:
            added += 2**13
            rows.append((0, 0, 240, 0))
        rows.append((event[0] - added, *event[1:]))
    return b"".join(
        struct.pack(">BBBH", int(x), int(y), (int(p) << 7) | (int(t) >> 16), int(t) & 0xFFFF) for t, x, y, p in rows
    )


def aedat2_bytes(recording: Recording, header: str = "# This is a raw AE data file - do not edit\r\n") -> bytes:
    """AEDAT 2.0 of a DVS128, from events in the authors' orientation."""
    t, x, y, p = (np.asarray(column).astype(np.int64) for column in recording)
    address = (1 - p) | ((127 - x) << 1) | (y << 8)
    return f"#!AER-DAT2.0\r\n{header}".encode() + np.stack([address, t], 1).astype(">u4").tobytes()


def aedat3_bytes(recording: Recording, packet: int = 100, invalid: int = 0) -> bytes:
    """AEDAT 3.1: polarity packets of `packet` events, `invalid` marked ones at each end, and one other packet."""
    t, x, y, p = (np.asarray(column).astype(np.int64) for column in recording)
    parts = [b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"]
    parts.append(struct.pack("<hhiiiiii", 0, 1, 8, 4, 0, 1, 1, 1) + bytes(8))  # a special event
    # the counter has 31 bits, and a packet one number of overflows
    starts = sorted({*range(0, len(t), packet), *np.flatnonzero(np.diff(t >> 31)) + 1})
    for first, last in itertools.pairwise([*starts, len(t)]):
        part = slice(first, last)
        data = 1 | (p[part] << 1) | (y[part] << 2) | (x[part] << 17)
        events = np.stack([data, t[part] & (2**31 - 1)], 1)
        events = np.concatenate([events, np.tile(events[-1:] & [~1, -1], (invalid, 1))]).astype("<u4")
        n = len(events)
        overflows = int(t[first] >> 31)
        parts.append(struct.pack("<hhiiiiii", 1, 1, 8, 4, overflows, n, n, n - invalid) + events.tobytes())
    return b"".join(parts)


def aedat4_bytes(
    recording: Recording, compression: int = 0, packet: int = 1000, height: int = 128, width: int = 128
) -> bytes:
    """AEDAT 4: packets of events. FlatBuffers with one table each, written by hand.

    Compression: 0 none, 1 LZ4, 3 Zstandard.
    """
    info = (
        '<dv version="2.0"><node name="outInfo" path="/outInfo/"><node name="0" path="/outInfo/0/">'
        '<attr key="compression" type="string">NONE</attr><attr key="typeIdentifier" type="string">EVTS</attr>'
        f'<node name="info" path="/outInfo/0/info/"><attr key="sizeX" type="int">{width}</attr>'
        f'<attr key="sizeY" type="int">{height}</attr><attr key="source" type="string">DVS128</attr>'
        "</node></node></node></dv>\n"
    ).encode()
    # root offset, identifier, vtable (size, table's size, places of its fields), table, string
    table = struct.pack("<HHHHH2x", 10, 24, 4, 8, 16)
    table += struct.pack("<iiqI4x", 12, compression, -1, 8)
    header = struct.pack("<I4s", 20, b"IOHE") + table + struct.pack("<I", len(info)) + info + b"\0"
    data = b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header
    events = np.zeros(len(recording.t), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("on", "?"), ("pad", "V3")])
    for name, column in zip(("t", "x", "y", "on"), recording, strict=True):
        events[name] = column
    for first in range(0, max(len(events), 1), packet):
        some = events[first : first + packet]
        content = struct.pack("<I4sHHH2x", 16, b"EVTS", 6, 8, 4)
        content += struct.pack("<iI", 8, 8) + struct.pack("<4xI", len(some)) + some.tobytes()
        content = struct.pack("<I", len(content)) + content
        if compression == 1:
            content = lz4.frame.compress(content)
        elif compression == 3:
            content = zstandard.ZstdCompressor().compress(content)
        data += struct.pack("<ii", 0, len(content)) + content
    return data


def raw_header(evt: str, height: int, width: int, more: str = "") -> bytes:
    """Header of a Prophesee RAW file, as cameras of the third and fourth generation write it."""
    kind = {"2.0": "EVT2", "2.1": "EVT21", "3.0": "EVT3"}[evt]
    return (
        "% camera_integrator_name Prophesee\n% date 2023-03-29 16:37:46\n"
        f"% evt {evt}\n% format {kind};height={height};width={width}{more}\n% geometry {width}x{height}\n% end\n"
    ).encode()


def evt2_bytes(recording: Recording, height: int = 128, width: int = 128) -> bytes:
    """EVT 2.0: a word for each event, and one for each new upper part of the time."""
    words, high = [], -1
    for t, x, y, p in zip(*(column.tolist() for column in recording), strict=True):
        if t >> 6 != high:
            high = t >> 6
            words.append(8 << 28 | high & 0xFFFFFFF)
            words.append(0xA << 28)  # a trigger
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    return raw_header("2.0", height, width) + np.array(words, "<u4").tobytes()


def _runs(recording: Recording, reach: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(t, x, y, p, mask) of events that follow each other in one row within `reach` columns, at one time."""
    run: list[int] = []
    for t, x, y, p in zip(*(column.tolist() for column in recording), strict=True):
        if run and (t, y, p) == (run[0], run[2], run[3]) and run[5] < x < run[1] + reach:
            run[4] |= 1 << (x - run[1])
            run[5] = x
            continue
        if run:
            yield tuple(run[:5])  # type: ignore[misc]
        run = [t, x, y, p, 1, x]
    if run:
        yield tuple(run[:5])  # type: ignore[misc]


def evt21_bytes(recording: Recording, height: int = 128, width: int = 128, legacy: bool = False) -> bytes:
    """EVT 2.1: a word of 64 bits for up to 32 events of a row."""
    words, high = [], -1
    for t, x, y, p, mask in _runs(recording, 32):
        if t >> 6 != high:
            high = t >> 6
            words.append((8 << 28 | high & 0xFFFFFFF) << 32)
        words.append((p << 28 | (t & 63) << 22 | x << 11 | y) << 32 | mask)
    array = np.array(words, "<u8")
    if legacy:
        array = array.view("<u4").reshape(-1, 2)[:, ::-1].copy()
    more = ";endianness=legacy" if legacy else ";endianness=little"
    return raw_header("2.1", height, width, more) + array.tobytes()


def evt3_bytes(recording: Recording, height: int = 128, width: int = 128) -> bytes:
    """EVT 3.0: single events, and vectors of 12, 8 and 12 columns; times in two words, only where they change."""
    words: list[int] = []
    high = low = row = -1
    for t, x, y, p, mask in _runs(recording, 32):
        if t >> 12 != high:
            high, low = t >> 12, -1
            words.append(8 << 12 | high & 0xFFF)
        if t & 0xFFF != low:
            low = t & 0xFFF
            words.append(6 << 12 | low)
        if y != row:
            row = y
            words.append(y)
        if mask == 1:
            words.append(2 << 12 | p << 11 | x)
        else:
            words += [3 << 12 | p << 11 | x, 4 << 12 | mask & 0xFFF, 5 << 12 | mask >> 12 & 0xFF, 4 << 12 | mask >> 20]
    return raw_header("3.0", height, width) + np.array(words, "<u2").tobytes()


def dat_bytes(recording: Recording, height: int = 128, width: int = 128) -> bytes:
    """DAT of Prophesee, version 2."""
    t, x, y, p = (np.asarray(column).astype(np.int64) for column in recording)
    header = f"% Data file containing CD events\n% Version 2\n% Width {width}\n% Height {height}\n"
    words = np.stack([t & (2**32 - 1), x | y << 14 | p << 28], 1).astype("<u4")
    return header.encode() + bytes([12, 8]) + words.tobytes()


def text_bytes(
    recording: Recording, columns: str = "txyp", separator: str = ",", header: bool = True, unit: str = "us"
) -> bytes:
    """Text: a line for each event, its columns in any order; times in us, s or ns."""
    values = {name: list(map(str, column.tolist())) for name, column in recording._asdict().items()}
    if unit != "us":
        values["t"] = [f"{t // 10**6}.{t % 10**6:06d}" if unit == "s" else f"{t}000" for t in recording.t.tolist()]
    lines = [separator.join(columns)] if header else []
    lines += [separator.join(row) for row in zip(*(values[name] for name in columns), strict=True)]
    return "".join(f"{line}\n" for line in lines).encode()


def write_dsec(path: Path, recording: Recording, offset: int = 0, **compression: object) -> Path:
    """HDF5 in DSEC's layout: a data set for each column, times after `t_offset`."""
    with h5py.File(path, "w") as file:
        for name, column in recording._asdict().items():
            kind = {"t": np.uint32, "p": np.uint8}.get(name, np.uint16)
            values = (column - offset if name == "t" else column).astype(kind)
            file.create_dataset(f"events/{name}", data=values, **compression)
        file["t_offset"] = offset
        file["ms_to_idx"] = np.zeros(3, np.uint64)
    return path


def write_metavision(path: Path, recording: Recording) -> Path:
    """HDF5 in Metavision's layout: a structured data set; without ECF, the compression of its own."""
    kind = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
    with h5py.File(path, "w") as file:
        file.attrs["geometry"] = "128x128"
        file["EXT_TRIGGER/events"] = np.zeros(0, [("p", "i2"), ("t", "i8")])
        file["CD/events"] = np.array(list(zip(*(recording[i] for i in (1, 2, 3, 0)), strict=True)), kind)
    return path


def write_file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_nmnist(root: Path, train: int = 20, test: int = 10) -> None:
    """N-MNIST's folders; classes 0, 1, ..., 9, 0, 1, ...; brighter classes have more events."""
    for part, n, seed in (("Train", train, 0), ("Test", test, 1000)):
        for i, label in enumerate(labels_of(n)):
            recording = events_of(200 + 100 * int(label), seed + i, 34, 34, 300_000)
            write_file(root / "NMNIST" / part / str(label) / f"{i:05d}.bin", nmnist_bytes(recording))


def write_cifar10dvs(root: Path, numbers: tuple[int, ...] = (0, 1, 900), source: str = "original") -> None:
    """CIFAR10-DVS's folders with the recordings of these numbers of three of its classes."""
    for label, name in enumerate(("airplane", "automobile", "bird")):
        for number in numbers:
            recording = events_of(500 * (label + 1), 10 * label + number, 128, 128)
            if source == "original":
                path = root / f"CIFAR10DVS/original/{name}/cifar10_{name}_{number}.aedat"
                write_file(path, aedat2_bytes(recording))
            else:
                write_file(root / f"CIFAR10DVS/{name}/cifar10_{name}_{number}.aedat4", aedat4_bytes(recording))


def write_cochlea(path: Path, number: int, seed: int, speakers: bool = True) -> Path:
    """Spoken words in the HDF5 format of SHD and SSC: two words that differ in the order of their sounds alone.

    Each is 60 spikes of low channels and 60 of high ones, in 0.4 s and then 0.4 s; word 1 begins with the high ones.
    """
    random = np.random.default_rng(seed)
    label = np.arange(number) % 2
    low, high = (random.integers(first, first + 20, (number, 60)) for first in (0, 20))
    first, second = (np.sort(random.uniform(start, start + 0.4, (number, 60)), 1) for start in (0.0, 0.4))
    units = np.where(label[:, None] == 0, np.hstack([low, high]), np.hstack([high, low]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values, kind in (("times", np.hstack([first, second]), "f4"), ("units", units, "u2")):
            file.create_dataset(f"spikes/{name}", (number,), h5py.vlen_dtype(np.dtype(kind)))
            for i, of_recording in enumerate(values):
                file[f"spikes/{name}"][i] = of_recording.astype(kind)
        file["labels"] = label.astype("u2")
        file["extra/keys"] = np.array([b"null", b"eins"])
        if speakers:
            file["extra/speaker"] = (np.arange(number) // 2 % 5).astype("u2")
    return path


# of user01_natural; each recording has 12 trials, "arm roll" (8) sometimes twice
GESTURE_TRIALS = [
    (label, 1_000_000 * i, 1_000_000 * i + 900_000) for i, label in enumerate([*range(1, 9), 8, 9, 10, 11])
]


def write_dvsgesture(root: Path, people: tuple[int, ...] = (1, 2, 24), events: int = 5000) -> None:
    """DVS128 Gesture as DvsGesture.tar.gz unpacks; people from 24 on are for testing."""
    folder = root / "DVSGesture" / "DvsGesture"
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for person in people:
        stem = f"user{person:02d}_natural"
        write_file(folder / f"{stem}.aedat", aedat3_bytes(events_of(events, person, last=12_000_000)))
        lines = ["class,startTime_usec,endTime_usec", *(",".join(map(str, trial)) for trial in GESTURE_TRIALS)]
        write_file(folder / f"{stem}_labels.csv", "\n".join(lines).encode())
        lists["train" if person < 24 else "test"].append(f"{stem}.aedat")
    for part, names in lists.items():
        write_file(folder / f"trials_to_{part}.txt", "".join(f"{name}\n" for name in names).encode())


def write_tonic_gesture(root: Path) -> None:
    """DVS128 Gesture as tonic's archives unpack: float arrays [N, 4] of x, y, polarity and time [ms]."""
    for part, person in (("Train", "user01_natural"), ("Test", "user24_led")):
        for label in range(11):
            t, x, y, p = events_of(100, label, last=6_000)
            path = root / f"DVSGesture/ibmGesture{part}/{person}/{label}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.stack([x, y, p, t], 1).astype(np.float64))


# The paper's setting, and what a sample costs a network with it.
PAPER: dict[str, object] = yaml.safe_load((configs.folder() / "base.yaml").read_text())["model"]
COST: dict[str, object] = {"updates": {"conv1": 1000.0, "fc1": 100.0}, "pj_int8_reused": 2.5e6}


def _structure_of(model):
    """The part of a run's record that describes its network; none of a user-defined one, or of one that is no text."""
    if model.get("network") is not None:
        return {}
    try:
        return {"structure": str(resolve_structure(model.get("structure"), {n: model.get(n) for n in NUMBERS}, 10))}
    except UserError:
        return {"structure": str(model.get("structure"))}


def edit_session(folder: RunFolder, **parts: Any) -> None:
    """Replace parts of a run's last session; `changes` with their `step` are those of a resumed run."""
    *before, last = read_record(folder).sessions
    update(folder, sessions=[*before, replace(last, **parts)])


def write_run(
    folder: Path,
    accuracies: tuple[float, ...] = (0.5, 0.75, 0.7),
    *,
    neuron: str = "plif",
    init_tau: float = 2.0,
    pooling: str = "max",
    seed: object = 2020,
    data: str = "FashionMNIST",
    time_steps: int = 8,
    validation: str = "test",
    test: float | None = None,
    samples: tuple[int, int] = (60_000, 10_000),
    origin: str = "",
    finished: bool = True,
    title: str | None = None,
    frames: int = 1,
    trainer: dict[str, object] | None = None,
    arguments: Sequence[str] = ("--config", "configs/fashionmnist.yaml"),
    layers: Sequence[str] = ("conv1", "fc1"),
    model: dict[str, object] | None = None,
    cost: dict[str, object] | None = None,
    data_arguments: dict[str, object] | None = None,
    content: str = "",
    started: float = 1.0,
) -> RunFolder:
    """A run's folder, as `fit` leaves it."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    shipped = {
        blocks["data"]["class_path"].rsplit(".", 1)[-1]: blocks["model"]
        for blocks in configs.shipped_settings().values()
    }
    usual = shipped.get(data, PAPER)
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": len(accuracies), "precision": "32-true", **(trainer or {})},
        "model": {**usual, "neuron": neuron, "init_tau": init_tau, "pooling": pooling, **(model or {})},
        "data": {
            "class_path": f"plif_lightning.data.{data}",
            "init_args": {"root": "data", "time_steps": time_steps, "validation": validation, **(data_arguments or {})},
        },
    }
    run.config.write_text(yaml.safe_dump(config))
    around = {"machine": "abacus, 1 core", "versions": "Python 4, torch 9", "commit": "0123456789ab"}
    key = "val/acc" if validation == "holdout" else "test_as_val/acc"
    with run.metrics.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"{kind}/{layer}" for kind in ("tau", "rate") for layer in layers]
        writer.writerow(["epoch", "step", key, "train/loss", "seconds", *names])
        for epoch, accuracy in enumerate(accuracies):
            step, tau = 10 * epoch + 9, init_tau - 0.1 * (epoch + 1)
            values = [tau + 0.3 * i for i in range(len(layers))] + [0.1 / 5**i for i in range(len(layers))]
            writer.writerow([epoch, step, accuracy, 0.1 / (1 + epoch), 60 * (epoch + 1), *values])
    training, tested = samples
    held_out = training * 15 // 100 if validation == "holdout" else 0
    parts = {"training": training - held_out, "val" if held_out else "test as val": held_out or tested}
    title = title or {"FashionMNIST": "Fashion-MNIST"}.get(data, data)
    identity = f"{title} {origin} {samples} {content}"
    facts = {"title": title, "origin": origin, "samples": parts, "content": identity}
    known_class = data if hasattr(data_modules, data) else "Digits"
    block = {**config["data"], "class_path": f"plif_lightning.data.{known_class}"}  # type: ignore[dict-item]
    known = {**Identity.of({**config, "data": block}).settings, "data": data}
    process = {"pid": 2**30, "host": socket.gethostname()}
    called = ["fit", *arguments, f"--run_folder={folder}"]
    session = Session(arguments=called, settings=known, surroundings=around, started=started, process=process)
    record = {
        "sessions": [asdict(session)],
        **_structure_of(config["model"]),
        "data": facts,
    }
    with run.weights.open("w") as file:
        for epoch in range(len(accuracies) + 1):
            row = {"layer": "fc1", "epoch": epoch, "low": -1 - epoch, "high": 1 + epoch, "counts": [1, 4, 9, 4, 1]}
            row |= {"mean": 0.0, "std": 1.0}
            file.write(json.dumps(row) + "\n")
    if finished:
        record["ended"] = 1.0
        if test is not None:
            record |= {"test": test, "tested": tested}
        random = np.random.default_rng(7)
        channels, shape = 4, (2, 6, 7) if frames > 1 else (1, 6, 7)
        spikes = random.random((time_steps, 2, channels, 6, 7)) < 0.3
        recorded = RecordedSamples(
            np.array([0, 1, 2]),
            ["boot", "bag", "coat"],
            random.integers(0, 3, (frames, 3, *shape)).astype(np.uint8),
            np.concatenate([spikes.mean(0), spikes[:, :1].mean(0)]).astype(np.float32),
            spikes,
            random.random((time_steps, 3, 3)).astype(np.float32),
        )
        write_samples(run, recorded)
    if cost is not None:
        record["cost"] = cost
    run.record.write_text(json.dumps(record))
    return run


def write_image_folder(root: Path) -> None:
    """Class folders of colour images, 10 x 8 pixels, of three classes; six of each for training, two for testing."""
    for part, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("cat", "dog", "owl")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng(100 * label + i + len(part)).integers(0, 60, (8, 10, 3))
                Image.fromarray((noise + 60 * label).astype(np.uint8)).save(folder / f"{i}.png")


def write_event_folder(root: Path) -> None:
    """Class folders of recordings in every format that is read; of the same sensor, 128 x 128."""
    for part in ("train", "test"):
        for label, name in enumerate(("left", "right")):
            folder = root / part / name
            formats = [("0.npz", None)] if part == "test" else [
                [("0.npz", None), ("1.aedat", aedat2_bytes), ("2.aedat", aedat3_bytes), ("3.bin", nmnist_bytes)],
                [("0.npy", None), ("1.aedat4", aedat4_bytes)],
            ][label]  # fmt: skip
            for i, (file, content) in enumerate(formats):
                recording = events_of(300 + 200 * label, i)
                folder.mkdir(parents=True, exist_ok=True)
                if content is not None:
                    write_file(folder / file, content(recording))
                elif file.endswith(".npz"):
                    np.savez(folder / file, **recording._asdict())
                else:
                    fields = [(key, np.int64) for key in recording._fields]
                    np.save(folder / file, np.array(list(zip(*recording, strict=True)), fields))


def write_pokerdvs(root: Path) -> None:
    """POKER-DVS as tonic unpacks it: arrays [N, 4] of t, x, y, p in a folder for each suit."""
    for part, count in (("train", 2), ("test", 1)):
        for label, suit in enumerate(("cl", "he", "di", "sp")):
            for i in range(count):
                folder = root / "POKERDVS" / f"pips_{part}" / suit
                folder.mkdir(parents=True, exist_ok=True)
                t, x, y, p = events_of(60 + 10 * label, i, 35, 35, 5000)
                np.save(folder / f"{i}.npy", np.stack([t, x, y, p], 1))


@contextmanager
def unnoticed(path: Path) -> Iterator[None]:
    """Writes into a file meanwhile are as those of a disk that fails: at no time that the file system knows."""
    before = path.stat()
    yield
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
