"""Results of the paper and of its authors' published runs, from `paper.yaml`, which gives the source of each."""

from pathlib import Path
from typing import Any, NamedTuple

from plif_lightning.runs.loading import load_mapping


class Setting(NamedTuple):
    """Key of a result; `data_set` is the class name of the data module."""

    data_set: str
    neuron: str = "plif"
    init_tau: float = 2.0
    pooling: str = "max"


def _of_tuples(value: Any) -> Any:
    """A value with tuples in the place of lists."""
    return tuple(map(_of_tuples, value)) if isinstance(value, list) else value


_NUMBERS: dict[str, Any] = {
    name: {key: _of_tuples(item) for key, item in value.items()} if isinstance(value, dict) else _of_tuples(value)
    for name, value in load_mapping(Path(__file__).with_name("paper.yaml")).items()
}
TITLES: dict[str, str] = _NUMBERS["titles"]
SAMPLES: dict[str, tuple[int, int]] = _NUMBERS["samples"]
EPOCHS: int = _NUMBERS["epochs"]
TABLE_2: dict[str, float] = _NUMBERS["table_2"]
EARLIER: tuple[tuple[str, str, tuple[str, ...]], ...] = _NUMBERS["earlier"]
TABLE_S2: dict[str, float] = _NUMBERS["table_s2"]
TABLE_3: dict[str, tuple[str, str, int]] = _NUMBERS["table_3"]
TABLE_4 = {
    Setting(data_set, neuron, tau): accuracy
    for neuron, tau, row in _NUMBERS["table_4"]
    for data_set, accuracy in zip(_NUMBERS["ablated"], row, strict=True)
}
TABLE_5 = {
    Setting(data_set, pooling=pooling): accuracy
    for pooling, row in _NUMBERS["table_5"]
    for data_set, accuracy in zip(_NUMBERS["ablated"], row, strict=True)
}
CURVE_EPOCHS: tuple[int, ...] = _NUMBERS["curve_epochs"]
CURVES = {Setting(*setting): accuracies for *setting, accuracies in _NUMBERS["curves"]}
TAU_EPOCHS: tuple[int, ...] = _NUMBERS["tau_epochs"]
TAU = {Setting(*setting): rows for setting, *rows in _NUMBERS["tau"]}
