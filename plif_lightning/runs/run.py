"""A run as read from its folder or from W&B."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import layer_values
from plif_lightning.runs.process import options

Status = Literal["finished", "running", "unfinished", "unreadable"]


def positive(value: Any) -> float | None:
    """A number of a file above zero that a float can hold; None for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 < number < math.inf else None


def setting_in(config: dict[str, Any], key: str, default: Any = None) -> Any:
    """A value of a configuration by its dotted key."""
    value: Any = config
    for name in key.split("."):
        if isinstance(value, dict) and name not in value and isinstance(value.get("init_args"), dict):
            value = value["init_args"]
        if not isinstance(value, dict) or name not in value:
            return default
        value = value[name]
    return value


def protocol_in(config: dict[str, Any]) -> Literal["A", "B"]:
    """A if a configuration validates on the test set, B if on a held-out part of the training set."""
    return "B" if setting_in(config, "data.validation") == "holdout" else "A"


def ties_in(config: dict[str, Any]) -> str:
    """Tie break between equally good validations: `first` or `last`."""
    # Older runs lack the setting; null means the default of the protocol.
    return setting_in(config, "best_of_ties", "first") or ("last" if protocol_in(config) == "B" else "first")


@dataclass(frozen=True)
class Run:
    """A run as read from its folder or from W&B.

    Attributes:
        folder: its files.
        name: path of the folder, relative to the one that was searched.
        status: `unreadable` if there is no usable configuration.
        config: nested configuration from `config.yaml`.
        metrics: one row per epoch.
        command: arguments of main.py.
        facts: data set, origin, samples and protocol from `data.json`.
        test: accuracy on the test set, measured once, from 0 to 1; None if it was not.
        surroundings: machine, versions and commit.
        problems: a sentence for each unreadable part.
        started: time of the last start or resumption [s since 1970]; 0 if unknown.
        changes: settings changed on resuming, as text, in order.
        cost: operations and estimated energy for a sample, from `cost.json`; empty if they were not counted.
    """

    folder: RunFolder
    name: str
    status: Status
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    test: float | None = None
    surroundings: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    started: float = 0.0
    changes: list[str] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a configuration value by its dotted key, such as `model.init_tau` or `data.time_steps`."""
        return setting_in(self.config, key, default)

    @property
    def begun_from(self) -> str | None:
        """Checkpoint of another run that this one began from; None if it began from new weights."""
        path = dict(options(self.command)).get("ckpt_path", "last")
        return None if path == "last" else path

    @property
    def data_set(self) -> str:
        """Class name of the data module; the full path if it is not part of plif_lightning."""
        path = str(self.setting("data.class_path", "?"))
        return path.rsplit(".", 1)[-1] if path.startswith("plif_lightning.") else path

    @property
    def epochs(self) -> int:
        """Epochs since initialisation, including those of a checkpoint that the run started from."""
        return int(self.metrics[-1]["epoch"]) + 1 if self.metrics else 0

    @property
    def whole_epochs(self) -> int:
        """Epochs that have ended; in the one after them there may be validations that follow."""
        ended = [row["epoch"] for row in self.metrics if any(key.startswith("train/") for key in row)]
        return int(max([*ended, self.epochs - 2, -1])) + 1

    @property
    def is_trained(self) -> bool:
        """True if it has trained as many epochs or steps as it should."""
        epochs, steps = self.setting("trainer.max_epochs"), self.setting("trainer.max_steps")
        done = int(self.metrics[-1].get("step", -1)) + 1 if self.metrics else 0
        return self.whole_epochs == epochs or (isinstance(steps, int) and 0 < steps <= done)

    @property
    def protocol(self) -> Literal["A", "B"]:
        """A: best epoch on the test set; B: best epoch on a held-out part of the training set, then one test."""
        return protocol_in(self.config)

    @property
    def val_key(self) -> str:
        return "val/acc" if self.protocol == "B" else "test_as_val/acc"

    @property
    def best_of_ties(self) -> str:
        """Tie break between epochs of equal validation accuracy: `first` or `last`."""
        return ties_in(self.config)

    @property
    def best_metrics(self) -> dict[str, float]:
        """Metrics of the epoch with the best validation; empty before the first."""
        rows = [row for row in self.metrics if 0 <= row.get(self.val_key, float("nan")) <= 1]
        if self.best_of_ties == "last":
            rows.reverse()
        return max(rows, key=lambda row: row[self.val_key], default={})

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch (from 1) and accuracy (0 to 1) of the best validation; None before the first."""
        row = self.best_metrics
        return (int(row["epoch"]) + 1, row[self.val_key]) if row else None

    @property
    def accuracy(self) -> float | None:
        """Accuracy that the protocol reports, from 0 to 1: that of the best epoch (A) or of the final test (B)."""
        if self.protocol == "B":
            return self.test
        return self.best[1] if self.best else None

    @property
    def tested_samples(self) -> int | None:
        """Number of samples that `accuracy` was measured on; None if unknown."""
        samples = self.facts.get("samples", {})
        found = samples.get("test", samples.get("test as val")) if isinstance(samples, dict) else None
        return found if isinstance(found, int) and 0 < found < 2**53 else None

    @property
    def firing_rate(self) -> float | None:
        """Spikes per neuron and time-step over the whole network in the best epoch; None if unknown."""
        spikes, updates = self.spikes, self._updates
        return None if spikes is None else spikes / sum(updates.values())

    @property
    def spikes(self) -> float | None:
        """Spikes for a validation sample in the best epoch; None if they are unknown."""
        rates, updates = layer_values(self.best_metrics, "rate"), self._updates
        if not updates or not updates.keys() <= rates.keys():
            return None
        return sum(rates[layer] * n for layer, n in updates.items())

    @property
    def _updates(self) -> dict[str, float]:
        """Neurons times steps of each layer that has neurons."""
        found = self.cost.get("updates")
        if not isinstance(found, dict):
            return {}
        return {name: n for name, n in ((name, positive(n)) for name, n in found.items()) if n is not None}

    @property
    def energy(self) -> float | None:
        """Estimated energy for a sample [uJ], with 8-bit weights and memory, see `deploy.costs`; None if unknown."""
        found = positive(self.cost.get("pj_int8_reused"))
        return None if found is None else found / 1e6

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Return epochs (from 1) and values of one metric."""
        rows = [row for row in self.metrics if key in row]
        return [row["epoch"] + 1 for row in rows], [row[key] for row in rows]

    def layers(self, kind: str) -> list[str]:
        """Return the layers that have values of a kind (`tau`, `rate`), in network order."""
        found: dict[str, None] = {}
        for row in self.metrics:
            found |= dict.fromkeys(layer_values(row, kind))
        return list(found)
