"""User sequences in class folders."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.data.base import SpikingDataModule, SplitInventory, as_index, caches_in, split_name
from plif_lightning.data.folders import ClassFolders
from plif_lightning.data.generated import SequenceDataset
from plif_lightning.errors import UserError
from plif_lightning.events.cache import Arrays, ArrayWriter
from plif_lightning.runtime.program import needed_by

# Increment when the same files produce other arrays.
_FORMAT = 3
_SUFFIXES = {".npy", ".csv", ".parquet"}


@dataclass(eq=False, repr=False)
class SequenceFolder(SpikingDataModule):
    """Sequences [T, F] in class folders, `ROOT/train/CLASS/*` and `ROOT/test/CLASS/*`.

    A row is a time-step, a column a feature: .npy of NumPy, .csv with or without a line of names above, and .parquet
    (which needs pyarrow), by pandas. A .csv is separated by commas, or by semicolons, beside which commas are decimal;
    numbers 0, 1, ... in its first line are pandas' names, and a first column without a name is pandas' index, which is
    left out. Tables are read in the order of the first one's names. They are read once into arrays below
    ROOT/.plif_lightning. A sequence shorter than `time_steps` is padded with zeros behind its end, after normalisation;
    a longer one is refused.

    Args:
        columns: names of the columns of tables that are read, in this order; by default all.
        normalize: subtract each feature's mean over the training set, and divide by its standard deviation. False for
            spikes.
        store: folder for the arrays, if root is read-only.

    Raises:
        UserError: a file is no sequence of numbers, or has other columns than the first.
    """

    columns: list[str] | None = None
    normalize: bool = True
    store: str | None = None

    title = "sequences in class folders"  # an instance uses its folder's name

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folders = ClassFolders(Path(self.root), _SUFFIXES, "sequences")
        self.title = self.folders.title  # type: ignore[misc]
        self._cache: dict[bool, Arrays] = {}
        self._names: list[str] | None = None

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders, sorted."""
        return self.folders.classes() if self.folders.exist else tuple(map(str, self.arrays(True)["classes"]))

    @cached_property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(F,), of the first sequence."""
        if not self.folders.exist:
            return self.arrays(True)["values"].shape[1:]
        return self._read(self.folders.files(train=True)[0][0]).shape[1:]

    def prepare_data(self) -> None:
        for train in (True, False):
            self._require_length(train)

    def arrays(self, train: bool) -> Arrays:
        """`values` of all sequences, float32 [sum of T, F], their `offset`, `label`, `name` and `classes`."""
        if train not in self._cache:
            folder = caches_in(self.store, self.folders.root, ".plif_lightning") / f"sequences-{split_name(train)}"
            self._cache[train] = self.folders.arrays(folder, (_FORMAT, self.columns), train, self._read_all)
        return self._cache[train]

    def _read_all(self, files: Sequence[tuple[str, int]], writer: ArrayWriter) -> None:
        lengths = [0]
        for path, _ in files:
            values = self._read(path)
            if values.shape[1:] != self.input_shape:
                raise UserError(
                    f"{path} has {values.shape[1]} columns, but the first sequence, {files[0][0]}, has "
                    f"{self.input_shape[0]}: all need the same; of tables with names --data.columns=[...] reads some."
                )
            writer.append("values", values)
            lengths.append(len(values))
        writer.append("offset", np.cumsum(lengths, dtype=np.int64))
        writer.append("label", np.array([label for _, label in files], np.int64))
        writer.append("name", np.array([os.path.relpath(path, self.folders.root) for path, _ in files]))
        writer.append("classes", np.array(self.class_names))
        writer.append("columns", np.array(self.columns or self._names or [], str))

    def _read(self, path: str) -> NDArray[np.float32]:
        """A sequence, float32 [T, F].

        Raises:
            UserError: it is damaged, or holds something else.
        """
        try:
            if path.lower().endswith(".npy"):
                values = np.load(path, allow_pickle=False)
            else:
                with needed_by("a table"):
                    import pandas as pd
                is_csv = path.lower().endswith(".csv")
                table = pd.read_csv(path, **_layout_of(path)) if is_csv else pd.read_parquet(path)
                columns = self.columns or self._names_in(table)
                if missing := [name for name in columns or () if name not in table]:
                    raise KeyError(f"no column {', '.join(missing)} among {', '.join(map(str, table))}")
                values = (table if columns is None else table[columns]).to_numpy()
            sequence = np.asarray(values, np.float32)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read as a sequence of numbers ({error.args[-1]}).") from error
        if sequence.ndim != 2 or 0 in sequence.shape:
            raise UserError(f"{path} must hold numbers [T, F], got {list(sequence.shape)}.")
        for step, feature in np.argwhere(~np.isfinite(sequence))[:1]:
            raise UserError(
                f"{path}: the number of feature {feature} at time-step {step}, both counted from 0, is missing or not "
                "finite. Fill it in, or leave the file out."
            )
        return sequence

    def _names_in(self, table: Any) -> list[str] | None:
        """Names of the columns of the first table that has some, in whose order those of others are read."""
        if not all(isinstance(name, str) for name in table.columns):
            return None
        if self._names is None:
            self._names = list(table.columns)
        return self._names

    def _require_length(self, train: bool) -> None:
        longest = int(np.diff(self.arrays(train)["offset"]).max())
        if longest > self.time_steps:
            raise UserError(
                f"the longest {split_name(train)} sequence has {longest} steps: pass --data.time_steps {longest}; "
                "shorter ones are padded with zeros."
            )

    @cached_property
    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each feature over the training set [F]; 0 and 1 if it is not normalised.

        The deviation of a constant feature is replaced by 1.
        """
        values = self.arrays(True)["values"]
        if not self.normalize:
            return np.zeros(values.shape[1]), np.ones(values.shape[1])
        deviation = values.std(0, dtype=np.float64)
        return values.mean(0, dtype=np.float64), np.where(deviation > 0, deviation, 1.0)

    def labels(self, train: bool) -> Tensor:
        return torch.from_numpy(self.arrays(train)["label"].copy())

    def dataset(self, train: bool, indices: Tensor | None, augment: bool) -> SequenceDataset:
        self._require_length(train)
        arrays, (mean, deviation) = self.arrays(train), self.moments
        offset, features = arrays["offset"], len(mean)
        sequences = torch.zeros(len(arrays["label"]), self.time_steps, features)
        for sequence, begin, end in zip(sequences, offset, offset[1:], strict=False):
            sequence[: end - begin] = torch.from_numpy((arrays["values"][begin:end] - mean) / deviation)
        return SequenceDataset(sequences, self.labels(train), as_index(indices, len(sequences)))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Columns, and mean and standard deviation of each feature, with zeros behind the end of a sequence."""
        mean, deviation = (values.tolist() for values in self.moments)
        columns = self.arrays(True)["columns"].tolist() or None
        return {
            **super().preprocessing, "kind": "sequences", "features": self.input_shape[0], "columns": columns,
            "mean": mean, "std": deviation, "padding": "zeros behind the end, after normalisation",
        }  # fmt: skip

    def reading(self) -> str:
        features = self.input_shape[0]
        return f"{super().reading()}; {features} features, columns {self.columns}, normalised {self.normalize}"

    def inventory(self) -> list[SplitInventory]:
        parts = []
        for train in (True, False):
            counts = self.labels(train).bincount(minlength=self.num_classes).tolist()
            parts.append(SplitInventory(split_name(train), counts, self.arrays(train).bytes))
        return parts

    def provenance(self, train: bool) -> dict[str, NDArray[Any]]:
        """`file` of each sequence, in the folder."""
        return {"file": self.arrays(train)["name"]}

    def identity(self, train: bool = True) -> str:
        return self.arrays(train).content

    def verify(self) -> int:
        return sum(self.arrays(train).verify() for train in (True, False))


def _layout_of(path: str) -> dict[str, Any]:
    """Arguments of `pandas.read_csv` for a file, from its first two lines.

    Its separator is a semicolon if the first line has one, and commas are then decimal. The header is None if the file
    begins with numbers, some perhaps missing.
    """
    with Path(path).open(encoding="utf-8") as file:
        first, second = file.readline(), file.readline()
    separator = ";" if ";" in first else ","
    decimal = "," if separator == ";" and "," in first + second else "."
    cells = [cell.strip() for cell in first.split(separator)]
    try:
        begins_with_numbers = bool([float(cell.replace(decimal, ".")) for cell in cells if cell])
    except ValueError:
        begins_with_numbers = False
    has_index = not cells[0]
    counted = len(cells) > 1 and cells[has_index:] == [str(i) for i in range(len(cells) - has_index)]
    has_header = counted or not begins_with_numbers
    index = {"index_col": 0} if has_header and has_index else {}
    return {"sep": separator, "decimal": decimal, "header": 0 if has_header else None, **index}
