"""Every argument of the data modules, away from its default, changes what its row names."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from plif_lightning import data as data_modules
from plif_lightning.data import (
    CIFAR10,
    NMNIST,
    SHD,
    BinaryAdding,
    EventDrop,
    EventFolder,
    ImageFolder,
    SequenceFolder,
    SpikingDataModule,
    TonicEvents,
)
from plif_lightning.errors import UserError
from tests import writers

SENSOR = (12, 10)


def write_events(root):
    """Recordings of 60 events in 1 s, in two class folders."""
    for part, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("left", "right")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                random = np.random.default_rng(100 * label + i + 50 * (part == "test"))
                t = np.sort((random.random(60) ** 2 * 1_000_000).astype(np.int64))  # most at its beginning
                x, y, p = random.integers(0, 10, 60), random.integers(0, 12, 60), random.integers(0, 2, 60)
                table = np.stack([x, y, t, p], 1)
                np.savetxt(root / part / name / f"{i}.csv", table, "%d", ",", header="x,y,t,p", comments="")


def write_sequences(root):
    for part, name, i in itertools.product(("train", "test"), ("a", "b"), range(4)):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).normal(3, 2, (6, 3))
        np.savetxt(root / part / name / f"{i}.csv", values, "%.5f", ",", header="u,v,w", comments="")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_events(folder / "events")
    write_events(folder / "other")
    write_sequences(folder / "sequences")
    writers.write_image_folder(folder / "images")
    writers.write_nmnist(folder)
    for name, number in (("train", 12), ("test", 6)):
        writers.write_cochlea(folder / f"SHD/shd_{name}.h5", number, 0)
    for i, split in enumerate(("train", "test")):  # the class folders together, for `test_fraction`
        for path in (folder / "events" / split).rglob("*.csv"):
            place = folder / "together" / path.parent.name / f"{i}{path.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return folder


EVENTS = (EventFolder, {"root": "events", "sensor": SENSOR, "time_steps": 5, "holdout_fraction": 0.25})
WINDOWS = (EventFolder, {**EVENTS[1], "validation": "test", "time_steps": 2})
TOGETHER = {**WINDOWS[1], "root": "together", "test_fraction": 0.25}
IMAGES = (ImageFolder, {"root": "images", "size": 8, "validation": "test"})
SEQUENCES = (SequenceFolder, {"root": "sequences", "time_steps": 6, "validation": "test"})


def made(root, kind, arguments):
    arguments = {**arguments, "root": str(root / arguments.get("root", ""))}
    if "store" in arguments:
        arguments["store"] = str(root / arguments["store"])
    data = kind(**arguments)
    data.prepare_data()
    data.setup()
    return data


def batch(data):
    torch.manual_seed(0)
    return next(iter(data.train_dataloader())).x


def evaluated(data):
    return next(iter(data.test_dataloader())).x


def sizes(data):
    return data.sizes()


def number_of_batches(data):
    return len(data.train_dataloader())


def workers(data):
    return data.train_dataloader().num_workers


# Argument: module and its arguments beside, value, and what it changes.
ROWS = {
    "root": (*EVENTS, "other", lambda data: data.title),
    "time_steps": (*EVENTS, 4, evaluated),
    "validation": (*EVENTS, "test", sizes),
    "holdout_fraction": (*EVENTS, 0.5, sizes),
    "batch_size": (*EVENTS, 3, number_of_batches),
    "eval_batch_size": (*EVENTS, 3, lambda data: len(data.test_dataloader())),
    "drop_last": (EventFolder, {**EVENTS[1], "batch_size": 5}, True, number_of_batches),
    "num_workers": (*EVENTS, 1, workers),
    "probe": (*EVENTS, "counts", evaluated),
    "slicing": (*EVENTS, "by_time", evaluated),
    "step_ms": (EventFolder, {**EVENTS[1], "slicing": "by_time"}, 50.0, evaluated),
    "size": (*EVENTS, 5, evaluated),
    "augmentation": (*EVENTS, [EventDrop(share=0.9)], batch),
    "background_us": (*EVENTS, 20_000, evaluated),
    "store": (*EVENTS, "elsewhere", lambda data: data.cache_folder(True).parent.parent.name),
    "sensor": (*EVENTS, (14, 10), evaluated),
    "polarities": (*EVENTS, 1, lambda data: data.input_shape),
    "columns": (*EVENTS, ["y", "x", "t", "p"], None),
    "time_unit": (EventFolder, {**EVENTS[1], "slicing": "by_time", "step_ms": 50.0}, "ms", evaluated),
    "window_events": (*WINDOWS, 20, sizes),
    "window_ms": (*WINDOWS, 200.0, sizes),
    "stride_events": (EventFolder, {**WINDOWS[1], "window_events": 20}, 10, sizes),
    "stride_ms": (EventFolder, {**WINDOWS[1], "window_ms": 200.0}, 100.0, sizes),
    "test_fraction": (EventFolder, TOGETHER, 0.5, sizes),
    "split": (
        EventFolder,
        {**WINDOWS[1], "root": "together", "test_fraction": 0.25, "window_events": 10},
        "time",
        sizes,
    ),
    "colour": (*IMAGES, "grey", lambda data: data.input_shape),
    "normalize": (*IMAGES, False, evaluated),
    "sequence": (ImageFolder, {**IMAGES[1], "time_steps": 8}, "rows", lambda data: data.input_shape),
    "permutation_seed": (ImageFolder, {**IMAGES[1], "sequence": "permuted", "time_steps": 64}, 3, evaluated),
    "authors_std": (CIFAR10, {}, True, None),
    "channels": (SHD, {"time_steps": 4, "channels": 40}, 60, lambda data: data.input_shape),
    "training_size": (BinaryAdding, {"validation": "test", "training_size": 40, "test_size": 20}, 60, sizes),
    "test_size": (BinaryAdding, {"validation": "test", "training_size": 40, "test_size": 20}, 30, sizes),
    "data_seed": (BinaryAdding, {"validation": "test", "training_size": 40, "test_size": 20}, 1, evaluated),
    "allow_partial": (NMNIST, {"time_steps": 4, "download": False, "validation": "test"}, True, None),
    "download": (NMNIST, {"time_steps": 4, "allow_partial": True, "root": "missing"}, False, None),
    "source": (data_modules.CIFAR10DVS, {"download": False}, "tonic", None),
    "name": (TonicEvents, {"download": False, "time_steps": 3}, "POKERDVS", None),
}
# Further rows where another class has an argument of the same name with an effect of its own.
OTHERS = [
    ("size", ImageFolder, {"root": "images", "validation": "test", "size": 6}, 8, lambda data: data.input_shape),
    ("augmentation", *IMAGES, [v2.RandomHorizontalFlip(1.0)], batch),
    ("store", *IMAGES, "far", lambda data: data.arrays(True).folder.parents[2].name),
    ("columns", *SEQUENCES, ["w", "u"], lambda data: data.input_shape),
    ("normalize", *SEQUENCES, False, evaluated),
    ("store", *SEQUENCES, "far", lambda data: data.arrays(True).folder.parents[2].name),
    (
        "drop_last",
        BinaryAdding,
        {"validation": "test", "training_size": 40, "test_size": 20, "batch_size": 16},
        True,
        number_of_batches,
    ),
    ("probe", *SEQUENCES, "shuffled", evaluated),
]


def differ(a, b):
    if isinstance(a, torch.Tensor):
        return a.shape != b.shape or not torch.equal(a, b)
    return a != b


def test_every_argument_of_a_data_module_has_a_row():
    kinds = [k for k in vars(data_modules).values() if isinstance(k, type) and issubclass(k, SpikingDataModule)]
    assert {name for kind in kinds for name in inspect.signature(kind).parameters} == ROWS.keys()


CASES = [(name, *row) for name, row in ROWS.items() if row[-1] is not None] + OTHERS


@pytest.mark.parametrize(
    ("name", "kind", "arguments", "value", "observe"), CASES, ids=[f"{row[1].__name__}.{row[0]}" for row in CASES]
)
def test_an_argument_changes_what_its_row_names(root, name, kind, arguments, value, observe):
    default = observe(made(root, kind, arguments))
    assert not differ(default, observe(made(root, kind, arguments)))
    assert differ(default, observe(made(root, kind, {**arguments, name: value})))


def test_arguments_that_decide_whether_files_are_taken(root):
    kind, arguments, *_ = ROWS["allow_partial"]
    with pytest.raises(UserError, match="allow_partial=true"):
        made(root, kind, arguments)
    partial = made(root, kind, {**arguments, "allow_partial": True})
    assert partial.sizes()["test"] == 10
    with pytest.raises(UserError, match=r"fetch train\.zip|Pass --data\.download=true"):
        made(root, NMNIST, {"root": "nothing", "download": False})
    for source, expected in (("original", "airplane.zip"), ("tonic", "CIFAR10DVS.zip")):
        with pytest.raises(UserError, match=expected):
            made(root, data_modules.CIFAR10DVS, {"source": source, "download": False, "root": "nothing"})
    names = [TonicEvents(name=name).title for name in ("POKERDVS", "NMNIST")]
    assert names == ["POKERDVS of tonic", "NMNIST of tonic"]
    with pytest.raises(UserError, match=r"data\.name must be a class"):
        TonicEvents(name="POKER")


def test_the_authors_deviations_are_theirs():
    assert CIFAR10().std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
    assert CIFAR10(authors_std=True).std == (0.2023, 0.1994, 0.2010)


def test_columns_of_a_table_are_taken_by_their_order(root, tmp_path):
    """x and y change places where a table without names says so."""
    for path in (root / "events").rglob("*.csv"):
        place = tmp_path / path.relative_to(root / "events")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    arguments = {**EVENTS[1], "sensor": (12, 12), "root": ""}
    first, second = (
        made(tmp_path, EventFolder, {**arguments, "columns": list(columns)}) for columns in ("xytp", "yxtp")
    )
    assert torch.equal(evaluated(first), evaluated(second).transpose(-1, -2))
